"""Shared parts of the methods with an LLM: options, loading, prompts and ranking."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.prepared import PreparedData
from ..errors import ALLMRecError
from ..evaluation.protocol import History, Ranker
from ..evaluation.rankers import best_unseen, reranked_scores
from ..indices import check_histories, check_padded
from ..language_model import config_width, context_length
from ..llm_files import load_config
from ..processing_allmrec import ALLMRecProcessor
from ..prompt import PromptTemplate
from ..training.arguments import FLAT_NAMES, ALLMRecTrainingArguments
from ..training.devices import place, process_state
from ..training.llms import llm_source, load_llm
from .method import Method, Setting
from .shared import run_arguments

Scores = NDArray[np.floating[Any]]
GIVEN_BY_SETTING = ("backbone_name", "text_encoder", "llm_name", "include_llm")  # the frozen LLM is never saved again
LLM_OPTIONS = ("llm_revision", "llm_options", "gguf_file", "gguf_packed", "llm_check_memory")
STAGE_2_OPTIONS = (
    *("targets", "projection_loss", "listwise_temperature", "warm_start_steps", "history_in_prompt", "num_candidates"),
    *("prompt", "score_normalization", "gradient_checkpointing"),
    *("max_title_tokens", "candidates_in_prompt", "answer_boundary"),
)


def run_options() -> tuple[str, ...]:
    """Return the settings of a run that are a method's options.

    The setting itself gives some; those of the stages `retrieve` and `rank` are `ranking_options`.
    """
    unused = ("retrieve", "rank")
    return tuple(
        name for name, (stage, _) in FLAT_NAMES.items() if name not in GIVEN_BY_SETTING and stage not in unused
    )


def ranking_options(*stages: str) -> tuple[str, ...]:
    """Return the options that the stages `"retrieve"` and `"rank"` depend on; what is trained the method says."""
    chosen = ("rank_rankers", "rank_ranker")
    return tuple(name for name, (stage, _) in FLAT_NAMES.items() if stage in stages and name not in chosen)


def stage_options(*stages: str) -> tuple[str, ...]:
    """Return the options that the stages `"backbone"` and `"align"` depend on."""
    return tuple(name for name in run_options() if FLAT_NAMES[name][0] in stages)


def chosen_arguments(method: Method, setting: Setting) -> ALLMRecTrainingArguments:
    """Return the arguments of a run with the parts of the setting and the method's options.

    Raises:
        ALLMRecError: when an option is unknown or has an impossible value.
    """
    options = {name: value for name, value in method.checked(setting).items() if name in FLAT_NAMES}
    try:
        return run_arguments(setting).with_flat(**options)
    except ALLMRecError as error:
        raise ALLMRecError(f"an option of the method {method.name} cannot be used: {error}") from error


def required_llm(method: Method, setting: Setting) -> ALLMRecTrainingArguments:
    """Return `chosen_arguments` of a method that cannot do without an LLM.

    Raises:
        ALLMRecError: when the setting names none.
    """
    return chosen_arguments(method, setting).replaced(llm={"name": setting.required_llm(method.name)})


def llm_processor(
    tokenizer: Any,
    language_model: Any,
    template: PromptTemplate,
    data: PreparedData,
    args: ALLMRecTrainingArguments,
    max_history_length: int = 50,
    reserved: int = 0,
) -> ALLMRecProcessor:
    """Return a processor of the data's items for an LLM.

    Args:
        tokenizer: The LLM's.
        language_model: The LLM, which tells its context.
        template: The words of its prompts.
        data: The catalogue.
        args: `history_in_prompt` and `max_title_tokens`.
        max_history_length: Items that the backbone reads.
        reserved: Tokens of the context to leave free.
    """
    processor = ALLMRecProcessor(
        tokenizer,
        template.to_dict(),
        history_in_prompt=args.project.history_in_prompt,
        max_title_tokens=args.project.max_title_tokens,
        max_history_length=max_history_length,
        max_length=context_length(language_model) - reserved,
    )
    processor.catalog = data.catalog
    return processor


def own_prompt(args: ALLMRecTrainingArguments, data: PreparedData) -> PromptTemplate:
    """Return the prompt of the arguments, or the paper's in the words of the data's domain."""
    return args.project.words(data.domain, data.verbs)


def input_width(llm: str, revision: str | None = None, trust_remote_code: bool = False) -> int:
    """Return d_llm, the width of an LLM's input embeddings, by its config alone."""
    return config_width(load_config(llm_source(llm, revision), trust_remote_code))


def chosen_llm(args: ALLMRecTrainingArguments, setting: Setting) -> tuple[Any, Any]:
    """Return the LLM of the arguments and its tokenizer."""
    return load_llm(str(args.llm.name), args.llm.revision, args.llm.loading_options(), setting.trust_remote_code)


def on_device(model: Any) -> Any:
    """Return the model in eval mode where this process computes."""
    place(model, process_state().device)
    return model.eval()


def reranked(
    ranker: Ranker, retriever: Ranker, histories: Sequence[History], top_k: int, num_ranked: int
) -> tuple[NDArray[np.int64], Scores]:
    """Return what another ranker retrieves, its best `num_ranked` items in the order of this one, then the rest.

    The scores `(B, k)` are places, see `evaluation.rankers.reranked_scores`.
    """
    items, scores = retriever.retrieve(histories, top_k)
    return reranked_scores(items, scores, ranker.score(histories, items[:, :num_ranked]), ranker.name)


class VectorRanker:
    """Rank the whole catalogue by the dot product of a user's vector with the items'.

    Args:
        model: What made the vectors.
        encode_users: Returns `(B, d)` of B histories.
        item_vectors: `(N + 1, d)`, row 0 is padding.
        name: The method's name in reports.
        batch_size: Users at a time.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        encode_users: Callable[[Sequence[History]], torch.Tensor],
        item_vectors: torch.Tensor,
        name: str,
        batch_size: int = 64,
    ) -> None:
        self.model = model.eval()
        self.encode_users = encode_users
        self.item_vectors = item_vectors.float().cpu().numpy()
        self.name = name
        self.batch_size = batch_size

    def score(self, histories: Sequence[History], candidates: NDArray[np.int64]) -> Scores:
        """Return the `(B, C)` dot products; `-inf` where a candidate is 0."""
        check_padded(candidates, len(self.item_vectors) - 1, "candidates")
        scores = np.einsum("bd,bcd->bc", self._users(histories), self.item_vectors[candidates])
        return np.where(candidates > 0, scores, -np.inf)

    def retrieve(self, histories: Sequence[History], top_k: int) -> tuple[NDArray[np.int64], Scores]:
        """Return the unseen items of the highest dot products."""
        items, scores = [], []
        for start in range(0, len(histories), self.batch_size):
            batch = histories[start : start + self.batch_size]
            best, values = best_unseen(self._users(batch) @ self.item_vectors.T, batch, top_k)
            items.append(best)
            scores.append(values)
        return np.concatenate(items), np.concatenate(scores)

    @torch.no_grad()
    def _users(self, histories: Sequence[History]) -> NDArray[np.float32]:
        """Return `(B, d)` user vectors, users with histories of similar length at a time."""
        check_histories(histories, len(self.item_vectors) - 1)
        order = np.argsort([len(history) for history in histories], kind="stable")
        users = np.zeros((len(histories), self.item_vectors.shape[1]), dtype=np.float32)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            users[rows] = self.encode_users([histories[row] for row in rows]).float().cpu().numpy()
        return users
