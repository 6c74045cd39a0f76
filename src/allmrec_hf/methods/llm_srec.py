"""LLM-SRec: distil the user representation of a sequential recommender into vectors of a frozen LLM."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ..cf_encoder import CFEncoder
from ..data.prepared import PreparedData
from ..evaluation.protocol import Ranker
from ..histories import pad_histories
from ..language_model import base_language_model, token_table
from ..language_model_checks import examine
from ..language_model_passes import accepted, padded_pass
from ..losses import listwise_loss
from ..processing_allmrec import ALLMRecProcessor, left_padded
from ..projector import Projector
from ..prompt import DOMAIN_WORDS, USER_SLOT, PromptTemplate
from ..ranking import ndcg_at_k, target_ranks
from ..training.arguments import ALLMRecTrainingArguments
from ..training.loop import run_stage
from ..training.pretrained_backbone import load_backbone
from ..training.projection import CandidateTask
from ..training.stage_arguments import StageArguments
from ..training.task import Batch
from ..training.trained import load_target_counts, target_counts
from ..training.warm_start import centre_inputs, start_near_words
from .llm_parts import (
    LLM_OPTIONS,
    VectorRanker,
    chosen_llm,
    llm_processor,
    on_device,
    required_llm,
    stage_options,
)
from .method import Method, Setting
from .shared import check_same_settings, run_until, stage_arguments

_USER_PROMPT = (
    "This user has {verb_past} {{history}} in the previous. Recommend one next {noun} for this user to {verb} next. "
    "{{candidates}}The recommendation is {{user}}"
)
_ITEM_PROMPT = "The {noun} title is {{history}}{{candidates}}. The {noun} representation is {{user}}"
WIDTH = 128
TEMPERATURE = 0.1
UNIFORMITY_SHARPNESS = 2.0  # of arXiv 2005.10242
PROMPTS_AT_ONCE = 64


class OutPrompts:
    """Make the prompts whose last place is the special token of users or of items.

    Args:
        users: Its template ends in the slot of [UserOut].
        items: Its template ends in the slot of [ItemOut]; the one item stands where a history would.
    """

    def __init__(self, users: ALLMRecProcessor, items: ALLMRecProcessor) -> None:
        self.users, self.items = users, items

    def of_users(self, histories: Sequence[np.ndarray]) -> Batch:
        """Return `input_ids`, `attention_mask`, `slot_ids` `(B, T)`, left-padded, of histories."""
        return _padded(self.users.encode_prompt(history.tolist(), []) for history in histories)

    def of_items(self, items: Sequence[int]) -> Batch:
        """Return the same of items."""
        return _padded(self.items.encode_prompt([int(item)], []) for item in items)


def _padded(prompts: Iterable[Any]) -> Batch:
    return left_padded([(prompt.tokens, prompt.slots) for prompt in prompts])


class LLMSRecModule(nn.Module):
    """The frozen LLM and backbone, and what is trained around them; the three losses.

    Trained are the item projector, the input vectors of [UserOut] and [ItemOut], and the three MLPs into the space
    where users and items meet: of the LLM's states of users and of items, and of the backbone's user representation.

    Args:
        language_model: A causal LM; it is frozen.
        backbone: The trained backbone; it is frozen.
        known: `(N + 1,)` True at items that training met; the others' CF vectors are meaningless and count as average.
        width: Width of the common space.
        name: Id or path of the LLM.
    """

    item_inputs: torch.Tensor

    def __init__(
        self, language_model: Any, backbone: CFEncoder, known: torch.Tensor, width: int, name: str | None = None
    ) -> None:
        super().__init__()
        self.language_model = language_model.requires_grad_(False).eval()
        self.backbone = backbone.requires_grad_(False).eval()
        self.config = copy.copy(language_model.config)  # its own: the LLM's says where the LLM comes from
        self.config.base_model_name_or_path = name
        self.pads_left = examine(self.language_model).pads_left
        words = token_table(language_model).float()
        state_width = language_model.get_output_embeddings().weight.shape[1]
        vectors = backbone.item_embeddings.detach().float()
        mean, spread = vectors[known].mean(dim=0), vectors[known].std(dim=0).clamp(min=1e-4)
        self.register_buffer("item_inputs", ((vectors - mean) / spread).masked_fill(~known[:, None], 0.0))
        self.item_projector = Projector(vectors.shape[1], words.shape[1], "gelu")
        self.out_tokens = nn.Parameter(words.mean(dim=0) + words.std(dim=0) * torch.randn(2, words.shape[1]))
        self.user_head = _head(state_width, width)
        self.item_head = _head(state_width, width)
        self.cf_head = _head(backbone.config.hidden_size, width)

    def train(self, mode: bool = True) -> LLMSRecModule:
        """Set training mode for what is trained; LLM and backbone stay in eval mode."""
        super().train(mode)
        self.language_model.eval()
        self.backbone.eval()
        return self

    def _states(self, prompts: Mapping[str, torch.Tensor], out_token: int) -> torch.Tensor:
        """Return the LLM's last hidden states `(P, d)` at the special token, the last place of every prompt."""
        slots, mask = prompts["slot_ids"], prompts["attention_mask"]
        embeds = self.language_model.get_input_embeddings()(prompts["input_ids"])
        items, out = slots > 0, slots == USER_SLOT
        if items.any():
            unique, inverse = torch.unique(slots[items], return_inverse=True)
            projected = F.embedding(inverse, self.item_projector(self.item_inputs[unique]))
            embeds = embeds.masked_scatter(items.unsqueeze(-1), projected.to(embeds.dtype))
        token = self.out_tokens[out_token].to(embeds.dtype)
        embeds = torch.where(out.unsqueeze(-1), token, embeds)
        return padded_pass(self._last_states, embeds, mask, 1, self.pads_left)[:, -1].float()

    def _last_states(self, keep: int, **inputs: torch.Tensor) -> torch.Tensor:
        """Return the last hidden states `(P, keep, d)` of the last places."""
        inner = base_language_model(self.language_model).base_model
        return inner(**inputs, **accepted(inner, {"use_cache": False})).last_hidden_state[:, -keep:]

    def users(self, prompts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return `(B, width)` user vectors of length 1."""
        return F.normalize(self.user_head(self._states(prompts, 0)), dim=-1)

    def items(self, prompts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return `(P, width)` item vectors of length 1."""
        return F.normalize(self.item_head(self._states(prompts, 1)), dim=-1)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Return the loss and its parts: retrieval, distillation and uniformity."""
        users = self.users(batch["users"])
        items = self.items(batch["items"])
        scores = torch.einsum("bd,bcd->bc", users, F.embedding(batch["places"], items)) / TEMPERATURE
        retrieval = listwise_loss(scores, batch["target_columns"])
        with torch.no_grad():
            representation = self.backbone.encode_users(batch["history_ids"], batch["history_mask"])
        wanted = F.normalize(self.cf_head(representation), dim=-1)
        distillation = (users - wanted).square().sum(dim=-1).mean()
        even = uniformity(users) + uniformity(items)
        return {
            "loss": retrieval + distillation + even,
            "retrieval": retrieval,
            "distillation": distillation,
            "uniformity": even,
        }


def uniformity(vectors: torch.Tensor) -> torch.Tensor:
    """Return log of the mean of exp(-2 d^2) over pairs of vectors `(P, d)` of length 1; 0 where all are the same."""
    if len(vectors) < 2:
        return vectors.sum() * 0.0
    rows, columns = torch.triu_indices(len(vectors), len(vectors), 1, device=vectors.device)
    similarity = (vectors @ vectors.T)[rows, columns]
    return torch.log(torch.exp(-UNIFORMITY_SHARPNESS * (2.0 - 2.0 * similarity)).mean())


def _head(input_dim: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(input_dim, input_dim), nn.LayerNorm(input_dim), nn.LeakyReLU(), nn.Linear(input_dim, width)
    )


class LLMSRecTask(CandidateTask):
    """LLM-SRec for the training loop, on the users, targets and candidates of stage 2.

    Args:
        module: The losses.
        prompts: The prompts.
        data: Prepared data.
        args: Whose targets and how many candidates, see `CandidateTask`.
        arguments: Batch size, seed and size of the validation.
    """

    name = "llm-srec"
    rows_add_up = False  # uniformity of the batch's users and items

    def __init__(
        self,
        module: LLMSRecModule,
        prompts: OutPrompts,
        data: PreparedData,
        args: ALLMRecTrainingArguments,
        arguments: StageArguments,
    ) -> None:
        super().__init__(prompts.users, data, args.project.targets, args.project.num_candidates, arguments)
        self.module: LLMSRecModule = module
        self.prompts = prompts

    def collate(self, examples: np.ndarray, generator: np.random.Generator) -> Batch:
        """Return both kinds of prompts, each item of the batch once, and where the candidates are among them."""
        samples = self.samples.take(examples)
        candidates = self.sampler.candidates(samples, self.num_candidates, generator)
        items, places = np.unique(candidates, return_inverse=True)
        history_ids, history_mask = pad_histories(samples.histories, self.processor.max_history_length)
        return {
            "target_columns": torch.from_numpy((candidates == samples.targets[:, None]).argmax(axis=1)),
            "users": self.prompts.of_users(samples.histories),
            "items": self.prompts.of_items(items.tolist()),
            "places": torch.from_numpy(places.reshape(candidates.shape)),
            "history_ids": history_ids,
            "history_mask": history_mask,
        }

    @torch.no_grad()
    def validate(self, examples: np.ndarray, device: torch.device) -> dict[str, np.ndarray]:
        """Return the NDCG@10 of some validation users on their candidates."""
        candidates = self.validation_candidates.take(examples)
        scores = srec_ranker(self.module, self.prompts, self.name, np.unique(candidates.items)).score(
            self.validation.take(examples).histories, candidates.items
        )
        return {"ndcg@10": ndcg_at_k(target_ranks(scores, candidates.target_columns), 10)}


@torch.no_grad()
def srec_ranker(module: LLMSRecModule, prompts: OutPrompts, name: str, items: np.ndarray | None = None) -> VectorRanker:
    """Return the ranker by dot product of the LLM's user and item vectors.

    Args:
        module: The model.
        prompts: The prompts.
        name: The ranker's name.
        items: The catalogue indices that will be asked for; all where not given.
    """
    module.eval()
    device = module.out_tokens.device
    num_items = len(module.item_inputs) - 1

    def moved(batch: Batch) -> Batch:
        return {key: value.to(device) for key, value in batch.items()}

    def encode_users(histories: Sequence[np.ndarray]) -> torch.Tensor:
        return module.users(moved(prompts.of_users(histories)))

    wanted = np.arange(1, num_items + 1) if items is None else items
    table = torch.zeros(num_items + 1, module.user_head[-1].out_features, device=device)  # type: ignore[call-overload]
    for start in range(0, len(wanted), PROMPTS_AT_ONCE):
        part = wanted[start : start + PROMPTS_AT_ONCE]
        table[torch.from_numpy(part).to(device)] = module.items(moved(prompts.of_items(part.tolist())))
    return VectorRanker(module, encode_users, table, name, batch_size=PROMPTS_AT_ONCE)


class LLMSRec(Method):
    """LLM-SRec (arXiv 2502.13909): user vectors of a frozen LLM, taught by a sequential recommender.

    LLM and backbone are frozen. Options beside those of the LLM, the backbone and the targets: `width` of the common
    space, and `num_candidates`, the target among them, of the retrieval loss.
    """

    name = "llm-srec"
    reads_llm = True
    paper = "Kim et al., KDD 2025, arXiv 2502.13909"
    simplified = (
        "User and item vectors have length 1, and the softmax a temperature of 0.1; the prompt names the last items of "
        "the history, without dates; [UserOut] and [ItemOut] are trained input vectors, no new words; they and the "
        "projector start near the LLM's words; items that training never met enter by their titles alone."
    )
    options: ClassVar[tuple[str, ...]] = (
        *LLM_OPTIONS,
        *stage_options("backbone"),
        *("targets", "history_in_prompt", "num_candidates", "width"),
    )

    def fit(self, data: PreparedData, setting: Setting) -> Ranker:
        """Train what stands around the LLM and return the ranker by dot product."""
        args = required_llm(self, setting)
        check_same_settings(self, setting, args.llm.source)
        folder = run_until(data, setting, args, "backbone") / "backbone"
        backbone = load_backbone(folder)
        backbone.target_counts = load_target_counts(str(folder), data.catalog)
        language_model, tokenizer = chosen_llm(args, setting)
        known = target_counts(backbone, data) > 0
        with torch.random.fork_rng():
            torch.manual_seed(setting.seed)
            width = int(setting.options.get("width", WIDTH))
            module = LLMSRecModule(language_model, backbone, known, width, args.llm.source)
        centre_inputs(module.item_projector, module.item_inputs[known])
        start_near_words(
            module.item_projector, token_table(language_model), torch.Generator().manual_seed(setting.seed)
        )
        noun, verb, verb_past = DOMAIN_WORDS[data.domain]
        users, items = (
            llm_processor(
                tokenizer,
                language_model,
                PromptTemplate(text.format(noun=noun, verb=verb, verb_past=verb_past)),
                data,
                args,
                backbone.config.max_history_length,
            )
            for text in (_USER_PROMPT, _ITEM_PROMPT)
        )
        prompts = OutPrompts(users, items)
        arguments = stage_arguments(setting, "project")
        task = LLMSRecTask(module, prompts, data, args, arguments)
        run_stage(task, arguments, setting.folder / "llm-srec", resume=True)
        return srec_ranker(on_device(module), prompts, self.name)
