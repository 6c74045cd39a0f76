"""Prompts as vectors that vLLM takes in place of tokens (`prompt_embeds`), to ask for a letter or for a title."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import ALLMRecError, CheckpointError
from ..language_model_passes import last_logits, padded_pass
from ..modeling_allmrec import ALLMRecModel
from ..processing_allmrec import ALLMRecProcessor
from ..prompt import LETTERS
from ..ranker import CFScore, TitleLikelihood, UserBatch
from ..ranker_letter import LetterRanker, letter_order
from .export_users import ExportUser
from .rank_parity import TOP_K, RankParity, rank_parity

PATHS = ("letter", "generate")
PROMPTS_FOLDER = "prompts"
REQUESTS_FILE = "requests.jsonl"
TENSOR = "prompt_embeds"
USERS_AT_ONCE = 16
CHECKED_PROMPTS = 64  # whose next token is compared; an LLM reads each of them twice
SPARE_TOKENS = 8  # that a generation may have more than the longest title asked for


class _Prompt(NamedTuple):
    """A prompt's vectors `(T, d_llm)`, what the LLM says after it within its batch `(V,)`, and its request."""

    vectors: Tensor
    logits: Tensor | None
    request: dict[str, Any]


def check_prompts(model: ALLMRecModel, path: str, num_candidates: int, num_permutations: int) -> None:
    """Check that a model can write prompts of a path.

    Raises:
        ALLMRecError: when the path is unknown, or the numbers are not for it.
        CheckpointError: when the checkpoint lacks stage 2.
    """
    if path not in PATHS:
        raise ALLMRecError(
            f"unknown path {path!r} of prompts; known are {', '.join(PATHS)}. The log-likelihood of titles cannot be "
            "served from prompt_embeds: vLLM gives no log-probabilities of a prompt's tokens with them"
        )
    reason = TitleLikelihood.lacks(model.config)
    if reason is not None:
        raise CheckpointError(f"this checkpoint has no prompts to export ({reason})")
    if path == "letter" and not 1 <= num_candidates <= len(LETTERS):
        raise ALLMRecError(f"the path letter takes 1 to {len(LETTERS)} candidates, got {num_candidates}")
    if num_permutations != 1 and path != "letter":
        raise ALLMRecError("orders of the candidates are averaged over letters; the path generate has one order")


def write_prompts(
    folder: Path,
    model: ALLMRecModel,
    processor: ALLMRecProcessor,
    users: Sequence[ExportUser],
    path: str,
    num_candidates: int = 20,
    num_permutations: int = 1,
) -> list[dict[str, Any]]:
    """Write a file of vectors for each prompt and a line that says whose it is, and return the part of the record.

    Args:
        folder: Where to write.
        model: The model with its LLM.
        processor: Its processor.
        users: The users; the candidates of those without any are the backbone's best `num_candidates`.
        path: `letter`, which asks for a candidate's letter, or `generate`, which asks for a title.
        num_candidates: Candidates that are retrieved.
        num_permutations: Prompts of a user, whose candidates stand in other orders; letters only.

    Raises:
        ALLMRecError: when the LLM says something else after a file than after the prompt itself.
    """
    check_prompts(model, path, num_candidates, num_permutations)
    (folder / PROMPTS_FOLDER).mkdir()
    checked: list[tuple[str, Tensor]] = []
    longest, count, dtype = 0, 0, None
    with (folder / REQUESTS_FILE).open("w", encoding="utf-8") as lines:
        for prompt in _prompts(model, processor, users, path, num_candidates, num_permutations):
            name = f"{PROMPTS_FOLDER}/{count:08d}.safetensors"
            save_file({TENSOR: prompt.vectors.contiguous().cpu()}, folder / name)
            if prompt.logits is not None and len(checked) < CHECKED_PROMPTS:
                checked.append((name, prompt.logits))
            longest, count, dtype = max(longest, len(prompt.vectors)), count + 1, prompt.vectors.dtype
            lines.write(json.dumps({"file": name, **prompt.request}, ensure_ascii=False) + "\n")
    part = {
        "name": path,
        "file": REQUESTS_FILE,
        "prompts": count,
        "longest_prompt": longest,
        "tensor": {"name": TENSOR, "shape": ["tokens", model.config.llm_dim], "dtype": str(dtype).split(".")[-1]},
        "llm": model.config.base_model_name_or_path,
        "sampling": _sampling(model, processor, path),
        "server": "untested: no vLLM was run on these files",
    }
    return [{**part, "gate": _parity(folder, model, checked).require(f"the prompts of the path {path}")}]


def _sampling(model: ALLMRecModel, processor: ALLMRecProcessor, path: str) -> dict[str, Any]:
    """Return the settings of vLLM's `SamplingParams` that the path needs."""
    if path == "letter":
        ranker = LetterRanker(model, processor)
        letters = ranker.letter_ids.tolist()
        return {"max_tokens": 1, "temperature": 1.0, "logprobs": len(letters), "allowed_token_ids": letters}
    titles = max(len(processor.answer_tokens(item)) for item in range(1, len(processor.catalog) + 1))
    end = processor.tokenizer.eos_token_id
    return {"max_tokens": titles + SPARE_TOKENS, "temperature": 0.0, "stop_token_ids": [] if end is None else [end]}


def _prompts(
    model: ALLMRecModel,
    processor: ALLMRecProcessor,
    users: Sequence[ExportUser],
    path: str,
    num_candidates: int,
    num_permutations: int,
) -> Iterator[_Prompt]:
    number = 0
    for start in range(0, len(users), USERS_AT_ONCE):
        part = users[start : start + USERS_AT_ONCE]
        batch = UserBatch.encode(model, processor, [user.history for user in part])
        found = CFScore(model, processor).retrieve(batch, num_candidates).item_indices.tolist()
        rows = [
            sorted({item for item in user.candidates or best if item}) for user, best in zip(part, found, strict=True)
        ]
        for order in range(num_permutations):
            written = _letters if path == "letter" else _titles
            embeds, mask, requests = written(model, processor, batch, rows, order, num_permutations)
            logits: list[Tensor | None] = [None] * len(part)
            if number < CHECKED_PROMPTS:
                found_logits = padded_pass(_Logits(model), embeds, mask, 1, model.pads_left)[:, -1]
                logits = list(found_logits.float().cpu())
            for row, (user, request) in enumerate(zip(part, requests, strict=True)):
                number += 1
                told = {"user_id": user.user_id} if user.user_id is not None else {}
                vectors = embeds[row][mask[row].bool()]
                yield _Prompt(vectors, logits[row], {**told, "tokens": len(vectors), **request})


class _Logits:
    """Runs a model's LLM, as `padded_pass` calls it."""

    def __init__(self, model: ALLMRecModel) -> None:
        self.language_model = model.require_language_model()

    def __call__(self, keep: int, **inputs: Tensor) -> Tensor:
        return last_logits(self.language_model, keep, **inputs)


_Written = tuple[Tensor, Tensor, list[dict[str, Any]]]


def _letters(
    model: ALLMRecModel, processor: ALLMRecProcessor, users: UserBatch, rows: list[list[int]], order: int, orders: int
) -> _Written:
    ranker = LetterRanker(model, processor)
    most = max(len(row) for row in rows)
    if most > ranker.max_candidates:
        raise ALLMRecError(
            f"a user has {most} candidates, and the path letter marks at most {ranker.max_candidates}; give fewer"
        )
    listed = [letter_order(history, row, order, orders) for history, row in zip(users.histories, rows, strict=True)]
    batch = processor.letter_batch(users.histories, listed, ranker.template).to(model.device)
    embeds = model.embed_prompts(batch["input_ids"], batch["slot_ids"], user_representations=users.representations)
    tokens = ranker.letter_ids.tolist()
    requests = [
        {
            "order": order,
            "letters": [
                {"letter": letter, "token_id": token, "item_id": processor.catalog.item_id(item)}
                for letter, token, item in zip(LETTERS, tokens, items, strict=False)
            ],
        }
        for items in listed
    ]
    return embeds, batch["attention_mask"], requests


def _titles(
    model: ALLMRecModel, processor: ALLMRecProcessor, users: UserBatch, rows: list[list[int]], order: int, orders: int
) -> _Written:
    batch = processor(users.histories, rows, order).to(model.device)
    embeds = model.embed_prompts(batch["input_ids"], batch["slot_ids"], user_representations=users.representations)
    requests = [
        {
            "candidates": [
                {"item_id": processor.catalog.item_id(item), "title": processor.candidate_title(item)} for item in row
            ]
        }
        for row in rows
    ]
    return embeds, batch["attention_mask"], requests


def _parity(folder: Path, model: ALLMRecModel, checked: Sequence[tuple[str, Tensor]]) -> RankParity:
    """Compare the likeliest next tokens after the files, each read alone, with those after the prompts themselves."""
    ours = torch.stack([logits for _, logits in checked])  # (B, V)
    theirs = torch.stack([next_token_logits(model, folder / name).float().cpu() for name, _ in checked])
    expected, found = ours.topk(TOP_K).indices + 1, theirs.topk(TOP_K).indices + 1  # 0 is no token there
    padded = torch.cat([ours.new_full((len(ours), 1), float("-inf")), ours], dim=1)
    return rank_parity(expected, found, lambda tokens: padded.gather(1, tokens))


@torch.no_grad()
def next_token_logits(model: ALLMRecModel, path: Path) -> Tensor:
    """Return the logits `(V,)` of the token after a file's prompt, by this model's own LLM.

    Args:
        model: The model.
        path: A file that `write_prompts` wrote.
    """
    embeds = load_file(path)[TENSOR].unsqueeze(0).to(model.device)
    mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
    return last_logits(model.require_language_model(), 1, inputs_embeds=embeds, attention_mask=mask)[0, -1]
