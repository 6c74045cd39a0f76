"""A-LLMRec and its ablations, which differ from it in options only."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from ..data.prepared import PreparedData
from ..evaluation.llm_ranker import ALLMRecRanker
from ..evaluation.protocol import Ranker
from ..language_model import input_width
from ..modeling_allmrec import ALLMRecModel
from ..processing_allmrec import ALLMRecProcessor
from ..ranker import TitleLikelihood
from ..ranker_fusion import Fusion
from ..ranker_letter import LetterRanker
from ..ranker_likelihood import LIKELIHOOD_FORMS
from ..ranker_retrieval import RetrievalRanker
from ..training.arguments import ALLMRecTrainingArguments
from ..training.llms import without_trust
from .llm_parts import STAGE_2_OPTIONS, on_device, ranking_options, required_llm, run_options
from .method import Method, Setting
from .shared import run_until

PROJECTORS = ("user_projector", "item_projector")
TRAINED_PARTS = ("aligner", *PROJECTORS, "retrieval_head")
OF_STAGE_2 = (TitleLikelihood.kind, *LIKELIHOOD_FORMS, LetterRanker.kind)
TRAINED_RANKERS = {
    **dict.fromkeys(OF_STAGE_2, TitleLikelihood.kind),
    RetrievalRanker.kind: RetrievalRanker.kind,
    Fusion.kind: f"{RetrievalRanker.kind},{Fusion.kind}",
}
"""By what a method ranks, the rankers that its run trains (`RankArguments.rankers`)."""


class ALLMRec(Method):
    """A-LLMRec (arXiv 2404.11343); what its variants train alike they train once.

    Its options are the settings of a run, so that every ablation is this method with other options, `ranker`, and
    `num_permutations`, the orders of the candidate list whose scores are averaged. `ranker` is one of `likelihood`, its
    forms and `letter`, by which a trained stage 2 ranks, or `retrieval` or `fusion` (of backbone, text, words and
    retrieval), which train no stage 2.

    Example:
        >>> "joint_dim" in ALLMRec.options and "backbone_name" not in ALLMRec.options
        True
    """

    name = "a-llmrec"
    reads_llm = True
    paper = "Kim et al., KDD 2024, arXiv 2404.11343"
    simplified = (
        "Ranks candidates by the likelihood of their titles in place of matching generated text. The preset says how "
        "the training differs; `paper` holds the published settings."
    )
    options: ClassVar[tuple[str, ...]] = (
        *run_options(),
        *ranking_options("retrieve", "rank"),
        *("ranker", "num_permutations"),
    )
    ranked_by = tuple(TRAINED_RANKERS)

    def idle_options(self, ranker: str) -> tuple[str, ...]:
        """Return the options of stages that the ranker does not train."""
        if ranker in OF_STAGE_2:
            return ranking_options("retrieve", "rank")
        of_stage_2 = {*STAGE_2_OPTIONS, "projector", "projector_tokens"} - {"max_title_tokens"}
        return (*of_stage_2, *(() if ranker == Fusion.kind else ranking_options("rank")))

    def fit(self, data: PreparedData, setting: Setting) -> Ranker:
        """Train what the ranker needs on top of the shared stages and return it."""
        args, kind = required_llm(self, setting), self.ranked_as(setting)
        return fit_run(data, setting, args.replaced(rank={"rankers": TRAINED_RANKERS[kind]}), self.name, kind)


def fit_run(data: PreparedData, setting: Setting, args: ALLMRecTrainingArguments, name: str, kind: str) -> Ranker:
    """Return a ranker of a run with these settings; what it trains is shared by all that rank by it."""
    folder = run_until(data, setting, args, args.rank.steps()[-1])
    model, processor = load_run(folder, args, setting.trust_remote_code)
    if kind in LIKELIHOOD_FORMS:
        model.config.rankers = {**(model.config.rankers or {}), kind: {}}
    permutations = int(setting.options.get("num_permutations", 1))
    return ALLMRecRanker(model, processor, name=name, num_permutations=permutations, ranker=kind)


def load_run(
    folder: Path, args: ALLMRecTrainingArguments, trust_remote_code: bool = False
) -> tuple[ALLMRecModel, ALLMRecProcessor]:
    """Return the model, with its LLM as it was loaded for training, and the processor of a finished run."""
    options, trust = without_trust(args.llm.loading_options(), trust_remote_code)
    model = ALLMRecModel.from_pretrained(folder, trust_remote_code=trust, **options)
    return on_device(model), ALLMRecProcessor.from_pretrained(folder, trust_remote_code=trust)


def _trained_parts(model: ALLMRecModel) -> list[Any]:
    likelihood = (model.config.rankers or {}).get(TitleLikelihood.kind, {}).get("trained", True)
    names = [name for name in TRAINED_PARTS if likelihood or name not in PROJECTORS]
    return [getattr(model, name, None) for name in names]


def facts(ranker: Ranker) -> dict[str, Any]:
    """Return what a report says of a ranker's parts.

    Returns:
        `llm` (its name), `llm_parameters`, `d_llm` and `trained_parameters` beside the backbone's, as far as the ranker
        has a `model`; an empty mapping where it has none.
    """
    model: Any = getattr(ranker, "model", None)
    if model is None:
        return {}
    found: dict[str, Any] = {}
    language_model = getattr(model, "language_model", None)
    if language_model is not None:
        name = getattr(model.config, "base_model_name_or_path", None)
        gguf_file = getattr(model.config, "base_model_gguf_file", None)
        name = f"{name}/{gguf_file}" if gguf_file else name
        found = {
            "llm": Path(name).name if name and Path(name).exists() else name,
            "llm_parameters": sum(p.numel() for n, p in language_model.named_parameters() if "lora_" not in n),
            "d_llm": input_width(language_model),
        }
    parts = _trained_parts(model) if isinstance(model, ALLMRecModel) else [model]
    trained = [p.numel() for part in parts if part is not None for p in part.parameters() if p.requires_grad]
    return found | {"trained_parameters": sum(trained)}
