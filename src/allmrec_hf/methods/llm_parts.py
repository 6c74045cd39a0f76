"""Shared parts of the methods with an LLM: options, loading, prompts and ranking."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.prepared import PreparedData
from ..errors import ALLMRecError
from ..evaluation.protocol import History, Ranker
from ..evaluation.rankers import best_unseen, reranked_scores
from ..indices import check_histories, check_padded
from ..language_model import config_width, context_length
from ..llm_files import find_llm, load_config
from ..part_sources import LANGUAGE_MODEL_PART, located
from ..processing_allmrec import ALLMRecProcessor
from ..prompt import PromptTemplate
from ..training.devices import place, process_state
from ..training.settings import SETTINGS_OF_STAGE, RunSettings, run_settings
from .method import Method, Setting

Scores = NDArray[np.floating[Any]]
GIVEN_BY_SETTING = ("cf", "text_encoder", "llm", "include_llm")  # the frozen LLM is never saved again
LLM_OPTIONS = ("llm_revision", "llm_options")
STAGE_2_OPTIONS = (
    *("targets", "projection_loss", "temperature", "warm_start_steps", "history_in_prompt", "num_candidates"),
    *("prompt", "score_normalization", "checkpoint_activations"),
)
_KINDS: dict[Any, tuple[Any, str]] = {
    bool: (bool, "true or false"),
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
    str: (str, "text"),
}


def run_options() -> tuple[str, ...]:
    """Return the fields of `RunSettings` that are a method's options; the setting itself gives the others."""
    return tuple(field.name for field in fields(RunSettings) if field.name not in GIVEN_BY_SETTING)


def stage_options(*stages: str) -> tuple[str, ...]:
    """Return the options that the stages `"cf"` and `"align"` depend on."""
    return tuple(name for stage in stages for name in SETTINGS_OF_STAGE[stage] if name not in GIVEN_BY_SETTING)


def chosen_settings(method: Method, setting: Setting) -> RunSettings:
    """Return the preset's run settings with the parts of the setting and the method's options.

    Raises:
        ALLMRecError: when an option is unknown or has a value that is none of the known ones.
    """
    known = {field.name for field in fields(RunSettings)}
    options = {name: value for name, value in method.checked(setting).items() if name in known}
    hints = get_type_hints(RunSettings)
    for name, value in options.items():
        values = get_args(hints[name]) if get_origin(hints[name]) is Literal else (value,)
        if value not in values:
            raise ALLMRecError(f"{name} of the method {method.name} must be one of {list(values)}; got {value!r}")
        kind = _KINDS.get(hints[name])
        if kind is not None and (not isinstance(value, kind[0]) or isinstance(value, bool) != (hints[name] is bool)):
            raise ALLMRecError(f"{name} of the method {method.name} must be {kind[1]}; got {value!r}")
    settings = replace(run_settings(setting.preset, setting.backbone), text_encoder=setting.text_encoder)
    return replace(settings, **{"llm": setting.llm, "include_llm": False, **options})


def required_llm(method: Method, setting: Setting) -> RunSettings:
    """Return `chosen_settings` of a method that cannot do without an LLM.

    Raises:
        ALLMRecError: when the setting names none.
    """
    return replace(chosen_settings(method, setting), llm=setting.required_llm(method.name))


def llm_processor(
    tokenizer: Any,
    language_model: Any,
    template: PromptTemplate,
    data: PreparedData,
    settings: RunSettings,
    max_history_length: int = 50,
    reserved: int = 0,
) -> ALLMRecProcessor:
    """Return a processor of the data's items for an LLM.

    Args:
        tokenizer: The LLM's.
        language_model: The LLM, which tells its context.
        template: The words of its prompts.
        data: The catalogue.
        settings: `history_in_prompt`.
        max_history_length: Items that the CF encoder reads.
        reserved: Tokens of the context to leave free.
    """
    processor = ALLMRecProcessor(
        tokenizer,
        template.to_dict(),
        history_in_prompt=settings.history_in_prompt,
        max_history_length=max_history_length,
        max_length=context_length(language_model) - reserved,
    )
    processor.catalog = data.catalog
    return processor


def own_prompt(settings: RunSettings, data: PreparedData) -> PromptTemplate:
    """Return the prompt of the settings, or the paper's in the words of the data's domain."""
    if settings.prompt is not None:
        return PromptTemplate.from_dict(settings.prompt)
    return PromptTemplate.for_domain(data.domain)


def input_width(llm: str, revision: str | None = None, trust_remote_code: bool = False) -> int:
    """Return d_llm, the width of an LLM's input embeddings, by its config alone."""
    return config_width(load_config(find_llm(located(llm, LANGUAGE_MODEL_PART), revision), trust_remote_code))


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
