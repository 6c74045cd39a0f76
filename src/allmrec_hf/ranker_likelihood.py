"""Forms of the ranker `likelihood`, side by side in a checkpoint: sum, mean per token, and two that are calibrated."""

from __future__ import annotations

from typing import Any, ClassVar

from .ranker import ModelRanker, TitleLikelihood


class LikelihoodForm(TitleLikelihood):
    """The log-likelihood of the titles in one form, whatever form the checkpoint's `likelihood` has.

    A checkpoint has it where training was asked for it: `config.rankers` names it.
    """

    @classmethod
    def lacks(cls, config: Any) -> str | None:
        """Return what a checkpoint lacks."""
        missing = f"it was not asked for: allmrec train --stage rank --rankers likelihood,{cls.kind},..."
        return super().lacks(config) or (None if cls.kind in (config.rankers or {}) else missing)


class SumLikelihood(LikelihoodForm):
    """Rank by the sum over a title's tokens (the paper); long titles have low sums."""

    kind = "likelihood_sum"
    normalization: ClassVar[str | None] = "sum"


class MeanLikelihood(LikelihoodForm):
    """Rank by the mean over a title's tokens."""

    kind = "likelihood_mean"
    normalization: ClassVar[str | None] = "mean"


class CalibratedLikelihood(LikelihoodForm):
    """Rank by the sum, less that after the same prompt without the user: what the user adds to a title."""

    kind = "likelihood_calibrated"
    normalization: ClassVar[str | None] = "calibrated"


class VectorGain(LikelihoodForm):
    """Rank by the sum, less that after the same prompt without its vectors: what the vectors add to the words."""

    kind = "likelihood_vector_gain"
    normalization: ClassVar[str | None] = "vector_gain"


LIKELIHOOD_FORMS: dict[str, type[ModelRanker]] = {
    form.kind: form for form in (SumLikelihood, MeanLikelihood, CalibratedLikelihood, VectorGain)
}
