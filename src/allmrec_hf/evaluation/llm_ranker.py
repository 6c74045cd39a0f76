"""A ranker of an A-LLMRec checkpoint for the evaluation: it retrieves, and ranks what it retrieved."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.memory import HeapTrimmer
from ..errors import ALLMRecError, DataError
from ..indices import check_padded
from ..modeling_allmrec import ALLMRecModel
from ..processing_allmrec import ALLMRecProcessor
from ..ranker import TitleLikelihood, UserBatch
from ..ranker_built_in import build_ranker, compared_rankers
from ..rows_at_once import RowsAtOnce
from .protocol import History
from .rankers import reranked_scores

logger = logging.getLogger(__name__)

Scores = NDArray[np.floating[Any]]
LONGEST_ANSWER = 64
RETRIEVED_AT_ONCE = 256


class ALLMRecRanker:
    """Rank candidates by a trained model.

    Args:
        model: The model with its LLM attached.
        processor: Its processor; one whose template has no slots makes the LLM recommend from text alone.
        name: The method's name in reports.
        batch_size: Users that the LLM reads at once.
        num_ranked: Of what is retrieved, the best items that the ranker scores; the rest follow in the order in which
            they were retrieved.
        num_permutations: Orders of the candidate list whose scores are averaged.
        ranker: What ranks, see `ranker_built_in.RANKERS`; the checkpoint's own choice where not given.
        max_tokens_per_batch: Tokens that the LLM reads at once, padding included: of `batch_size` users it reads as
            many as have them.

    Where the device's memory does not hold a batch, half of its users are read at once from then on.

    Raises:
        ALLMRecError: when a number is below 1.
        CheckpointError: when the processor's tokenizer or catalogue is not the model's, or the checkpoint lacks the
            ranker.
    """

    def __init__(
        self,
        model: ALLMRecModel,
        processor: ALLMRecProcessor,
        name: str = "a-llmrec",
        batch_size: int = 16,
        num_ranked: int = 20,
        num_permutations: int = 1,
        ranker: str | None = None,
        max_tokens_per_batch: int | None = None,
    ) -> None:
        for what, value in (
            ("batch_size", batch_size),
            ("num_ranked", num_ranked),
            ("num_permutations", num_permutations),
            ("max_tokens_per_batch", max_tokens_per_batch),
        ):
            if value is not None and value < 1:
                raise ALLMRecError(f"{what} must be at least 1, got {value}")
        processor.check_fits(model.config.tokenizer_fingerprint, model.cf_encoder.num_items)
        self.model = model.eval()
        self.processor = processor
        self.ranker = build_ranker(ranker, model, processor)
        self.name = name
        self.batch_size = batch_size
        self.num_ranked = num_ranked
        self.num_permutations = num_permutations
        self.max_tokens_per_batch = max_tokens_per_batch
        self._rows_at_once = RowsAtOnce()
        self._trimmer = HeapTrimmer(model.device.type == "cpu")

    def _batches(self, histories: Sequence[History]) -> list[NDArray[np.int64]]:
        """Return rows of users with histories of similar length, so that little is padding."""
        order = np.argsort(
            [min(len(history), self.processor.history_in_prompt) for history in histories], kind="stable"
        )
        return [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]

    def _lengths(self, histories: Sequence[Any], candidates: Sequence[Sequence[int]] | None = None) -> list[int] | None:
        """Return the tokens that the LLM reads of each user, where they are to be counted."""
        return None if self.max_tokens_per_batch is None else self.ranker.tokens_read(histories, candidates)

    def score(self, histories: Sequence[History], candidates: NDArray[np.int64]) -> Scores:
        """Return the ranker's `(B, C)` scores; `-inf` where a candidate is 0."""
        check_padded(candidates, self.model.cf_encoder.num_items, "candidates")
        scores = np.full(candidates.shape, -np.inf)
        for rows in self._batches(histories):
            lists = [[int(index) for index in candidates[row] if index > 0] for row in rows]
            users = UserBatch.encode(self.model, self.processor, [histories[row] for row in rows])

            def score(part: list[int], users: UserBatch = users, lists: list[list[int]] = lists) -> list[Scores]:
                some = users if len(part) == len(users) else users.take(part)
                found = self.ranker.score(some, [lists[row] for row in part], self.num_permutations)
                return list(found.scores.double().cpu().numpy())

            lengths = self._lengths(users.histories, lists)
            found = self._rows_at_once.collected(lengths, len(rows), self.max_tokens_per_batch, score)
            for row, values in zip(rows, found, strict=True):
                real = candidates[row] > 0
                scores[row, real] = values[: int(real.sum())]
            self._trimmer.tick()
        return scores

    def retrieve(self, histories: Sequence[History], top_k: int) -> tuple[NDArray[np.int64], Scores]:
        """Return unseen items: the best `num_ranked` of what is retrieved by the ranker, then the rest in its order."""
        items: list[NDArray[np.int64]] = []
        values: list[Scores] = []
        for start in range(0, len(histories), RETRIEVED_AT_ONCE):
            users = UserBatch.encode(self.model, self.processor, histories[start : start + RETRIEVED_AT_ONCE])

            def retrieve(part: list[int], users: UserBatch = users) -> list[tuple[Any, Any]]:
                found = self.ranker.retrieve(users if len(part) == len(users) else users.take(part), top_k)
                return list(zip(found.item_indices.cpu().numpy(), found.scores.float().cpu().numpy(), strict=True))

            lengths = self._lengths(users.histories)
            for row in self._rows_at_once.collected(lengths, len(users), self.max_tokens_per_batch, retrieve):
                items.append(row[0])
                values.append(row[1])
        retrieved, scores = np.stack(items), np.stack(values)
        if self.ranker.ranks_catalogue:
            return retrieved, scores
        second = self.score(histories, retrieved[:, : self.num_ranked])
        return reranked_scores(retrieved, scores, second, self.name)

    @property
    def ranks_catalogue(self) -> bool:
        """Whether the whole catalogue is ranked without an LLM pass for each item."""
        return self.ranker.ranks_catalogue

    def generate_titles(self, histories: Sequence[History], candidates: NDArray[np.int64]) -> list[str]:
        """Return the title that the LLM writes for each user, greedily, without its quotes (the paper's protocol)."""
        titles = [""] * len(histories)
        tokenizer = self.processor.tokenizer
        counts = TitleLikelihood(self.model, self.processor)
        for rows in self._batches(histories):
            known, lists = [histories[row].tolist() for row in rows], candidates[rows].tolist()

            def write(part: list[int], known: list[Any] = known, lists: list[Any] = lists) -> list[str]:
                batch = self.processor([known[row] for row in part], [lists[row] for row in part])
                end = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
                tokens = self.model.generate(
                    **batch.to(self.model.device),
                    max_new_tokens=min(LONGEST_ANSWER, batch["answer_ids"].shape[-1]),
                    pad_token_id=end,
                )
                return tokenizer.batch_decode(tokens, skip_special_tokens=True)

            lengths = None if self.max_tokens_per_batch is None else counts.tokens_read(known, lists)
            found = self._rows_at_once.collected(lengths, len(rows), self.max_tokens_per_batch, write)
            for row, text in zip(rows, found, strict=True):
                titles[row] = text.strip().split("\n")[0].strip().strip('"').strip()
        return titles

    def prompt_title(self, index: int) -> str:
        """Return the form in which the prompt shows an item's title."""
        return self.processor.candidate_title(index)


def checkpoint_rankers(
    model: ALLMRecModel,
    processor: ALLMRecProcessor,
    names: Sequence[str] = (),
    num_candidates: int | None = None,
    **options: Any,
) -> list[ALLMRecRanker]:
    """Return rankers of a checkpoint, side by side.

    Args:
        model: The model.
        processor: Its processor.
        names: Of `ranker_built_in.RANKERS`; where none is given, the checkpoint's own choice, and after it every other
            ranker that was trained for it.
        num_candidates: Candidates of a user, where they are given; a ranker that takes fewer is left out, with a
            warning.
        **options: As of `ALLMRecRanker`.

    Raises:
        DataError: when a ranker that `names` has takes fewer candidates.
    """
    chosen = list(names)
    if not chosen:
        others = compared_rankers(model.config) if model.config.rankers else []
        chosen = [model.config.ranker, *(name for name in others if name != model.config.ranker)]
    paper = chosen == [TitleLikelihood.kind]  # A-LLMRec as published needs no further name
    found = [
        ALLMRecRanker(model, processor, name="a-llmrec" if paper else f"a-llmrec {name}", ranker=name, **options)
        for name in chosen
    ]
    too_long = [each for each in found if (each.ranker.max_candidates or math.inf) < (num_candidates or 0)]
    for each in too_long:
        limit = f"the ranker {each.ranker.kind} takes {each.ranker.max_candidates} candidates of a user at most"
        if names:
            raise DataError(
                f"{limit}, and these data have {num_candidates}; prepare them with fewer (--num-candidates)"
            )
        logger.warning("%s, and these data have %d: it is left out", limit, num_candidates)
    return [each for each in found if each not in too_long]
