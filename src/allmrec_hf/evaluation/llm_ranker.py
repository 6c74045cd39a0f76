"""The ranker of A-LLMRec: the backbone retrieves, the frozen LLM ranks by the likelihood of titles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.memory import HeapTrimmer
from ..errors import ALLMRecError
from ..indices import check_padded
from ..modeling_allmrec import ALLMRecModel
from ..processing_allmrec import ALLMRecProcessor
from .protocol import History
from .rankers import reranked_scores

Scores = NDArray[np.floating[Any]]
LONGEST_ANSWER = 64


class ALLMRecRanker:
    """Rank candidates by the LLM's log-likelihood of their titles.

    Args:
        model: The model with its LLM attached.
        processor: Its processor; one whose template has no slots makes the LLM recommend from text alone.
        name: The method's name in reports.
        batch_size: Users that the LLM reads at once.
        num_ranked: Of what is retrieved, the best items that the LLM ranks; the rest follow in the backbone's order.
        num_permutations: Orders of the candidate list whose scores are averaged.

    Raises:
        ALLMRecError: when a number is below 1.
        CheckpointError: when the processor's tokenizer or catalogue is not the model's.
    """

    def __init__(
        self,
        model: ALLMRecModel,
        processor: ALLMRecProcessor,
        name: str = "a-llmrec",
        batch_size: int = 16,
        num_ranked: int = 20,
        num_permutations: int = 1,
    ) -> None:
        for what, value in (
            ("batch_size", batch_size),
            ("num_ranked", num_ranked),
            ("num_permutations", num_permutations),
        ):
            if value < 1:
                raise ALLMRecError(f"{what} must be at least 1, got {value}")
        processor.check_fits(model.config.tokenizer_fingerprint, model.cf_encoder.num_items)
        self.model = model.eval()
        self.processor = processor
        self.name = name
        self.batch_size = batch_size
        self.num_ranked = num_ranked
        self.num_permutations = num_permutations
        self._trimmer = HeapTrimmer(model.device.type == "cpu")

    def _batches(self, histories: Sequence[History]) -> list[NDArray[np.int64]]:
        """Return rows of users with histories of similar length, so that little is padding."""
        order = np.argsort(
            [min(len(history), self.processor.history_in_prompt) for history in histories], kind="stable"
        )
        return [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]

    def score(self, histories: Sequence[History], candidates: NDArray[np.int64]) -> Scores:
        """Return `(B, C)` log-likelihoods of the candidates' titles; `-inf` where a candidate is 0."""
        check_padded(candidates, self.model.cf_encoder.num_items, "candidates")
        scores = np.full(candidates.shape, -np.inf)
        for rows in self._batches(histories):
            lists = [[int(index) for index in candidates[row] if index > 0] for row in rows]
            known = [histories[row].tolist() for row in rows]
            for permutation in range(self.num_permutations):
                batch = self.processor(known, lists, permutation=permutation).to(self.model.device)
                found = self.model.score(**batch).double().cpu().numpy() / self.num_permutations
                for row, values in zip(rows, found, strict=True):
                    real = candidates[row] > 0
                    kept = values[: int(real.sum())]
                    scores[row, real] = kept if permutation == 0 else scores[row, real] + kept
                self._trimmer.tick()
        return scores

    def retrieve(self, histories: Sequence[History], top_k: int) -> tuple[NDArray[np.int64], Scores]:
        """Return unseen items: the best `num_ranked` of the backbone by the LLM, then the rest in its order."""
        items: list[NDArray[np.int64]] = []
        values: list[Scores] = []
        for start in range(0, len(histories), 256):
            part = histories[start : start + 256]
            tensors = {n: t.to(self.model.device) for n, t in self.processor.history_tensors(part).items()}
            found = self.model.retrieve(**tensors, top_k=top_k)
            items.append(found.item_indices.cpu().numpy())
            values.append(found.scores.float().cpu().numpy())
        retrieved = np.concatenate(items)
        by_llm = self.score(histories, retrieved[:, : self.num_ranked])
        return reranked_scores(retrieved, np.concatenate(values), by_llm, self.name)

    def generate_titles(self, histories: Sequence[History], candidates: NDArray[np.int64]) -> list[str]:
        """Return the title that the LLM writes for each user, greedily, without its quotes (the paper's protocol)."""
        titles = [""] * len(histories)
        tokenizer = self.processor.tokenizer
        for rows in self._batches(histories):
            batch = self.processor([histories[row].tolist() for row in rows], candidates[rows].tolist())
            tokens = self.model.generate(
                **batch.to(self.model.device),
                max_new_tokens=min(LONGEST_ANSWER, batch["answer_ids"].shape[-1]),
                pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            )
            for row, text in zip(rows, tokenizer.batch_decode(tokens, skip_special_tokens=True), strict=True):
                titles[row] = text.strip().split("\n")[0].strip().strip('"').strip()
        return titles

    def prompt_title(self, index: int) -> str:
        """Return the form in which the prompt shows an item's title."""
        return self.processor.title(index)
