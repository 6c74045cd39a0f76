"""Free-text tasks for the frozen LLM: a template with slots for the user vector and the history.

A task is data: another question needs no code. `answer_scores` compares given answers by likelihood, `generate_answers`
lets the LLM write; `examples/favourite_category.py` measures both against the catalogue's own categories.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from ..catalog import ItemCatalog
from ..errors import DataError
from ..modeling_allmrec import ALLMRecModel
from ..processing_allmrec import ALLMRecProcessor, left_padded
from ..prompt import PromptTemplate, clean_title
from ..stored_values import json_value

LONGEST_ANSWER = 32
_PLACEHOLDER = re.compile(r"\{(\w*)\}")
_PLACEHOLDERS: dict[str, tuple[set[str], set[str]]] = {  # of each field: needed once, allowed once
    "prompt": ({"history"}, {"user", "item"}),
    "item": ({"title"}, {"vector"}),
    "separator": (set(), set()),
    "answer": ({"answer"}, set()),
}


@dataclass(frozen=True)
class TextTask:
    """A question to the LLM.

    Attributes:
        prompt: Text with `{history}` once, and at most once `{user}` (the user vector) and `{item}` (one item with its
            vector, for questions about a recommendation).
        item: Text of one item with `{title}` and at most once `{vector}`.
        separator: Text between two items.
        answer: An answer to be scored, with `{answer}`.
    """

    prompt: str
    item: str = '"{title}"{vector}'
    separator: str = ","
    answer: str = "{answer}"

    def __post_init__(self) -> None:
        for name, (needed, allowed) in _PLACEHOLDERS.items():
            text = getattr(self, name)
            found = _PLACEHOLDER.findall(text)
            if not (needed <= set(found) <= needed | allowed and len(found) == len(set(found))):
                takes = [f"{{{field}}} once" for field in sorted(needed)]
                takes += [f"{{{field}}} at most once" for field in sorted(allowed)]
                raise DataError(
                    f"a text task's {name} takes {', '.join(takes) or 'no placeholder'}; found "
                    f"{', '.join(f'{{{field}}}' for field in found) or 'no placeholder'} in {text!r}"
                )

    @property
    def asks_about_item(self) -> bool:
        """Tell whether the question is about one item."""
        return "{item}" in self.prompt

    def template(self) -> PromptTemplate:
        """Return the prompt template, whose list of candidates is the asked item or nothing."""
        prompt = (
            self.prompt.replace("{item}", "{candidates}") if self.asks_about_item else f"{self.prompt}{{candidates}}"
        )
        return PromptTemplate(prompt, self.item, self.separator, self.answer.replace("{answer}", "{title}"))

    def without_vectors(self) -> TextTask:
        """Return the same question with no slot: what the LLM can tell from titles alone."""
        return TextTask(
            self.prompt.replace("{user}", ""), self.item.replace("{vector}", ""), self.separator, self.answer
        )

    def to_dict(self) -> dict[str, str]:
        """Return the form that goes into JSON."""
        return asdict(self)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TextTask:
        """Read a task from a JSON file with the fields prompt, item, separator, answer.

        Raises:
            DataError: when it is no JSON object of these fields, or a field has other placeholders.
        """
        try:
            values = json_value(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is no readable JSON file ({error}); a task is an object with a prompt") from error
        known = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or "prompt" not in values or set(values) - known:
            raise DataError(f"{path} must be an object with prompt and maybe {sorted(known - {'prompt'})}")
        if not all(isinstance(value, str) for value in values.values()):
            raise DataError(f"{path}: every field of a task is text")
        try:
            return cls(**values)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error


_WATCHED = "{user} is a user representation.This user has watched {history} in the previous. "
TASKS = {
    "favourite-category": TextTask(f"{_WATCHED}The favourite category of this user is "),
    "why-this": TextTask(f"{_WATCHED}The recommendation is {{item}} because "),
}
"""The tasks that come with the package, by name."""


def find_task(name: str) -> TextTask:
    """Return a task of this package by name, or the one in a JSON file.

    Raises:
        DataError: when there is neither.
    """
    if name in TASKS:
        return TASKS[name]
    if name.endswith(".json"):
        return TextTask.load(name)
    raise DataError(f"unknown task {name!r}; known are {', '.join(TASKS)}, or give a JSON file of your own")


def choice_task(prompt: Mapping[str, str], answers: Sequence[str]) -> TextTask:
    """Return the question that stage 2 trained, with answers in the place of the candidates' titles.

    Args:
        prompt: The fields of a processor's prompt template.
        answers: What the prompt lists, in this order; none has a vector.
    """
    template = PromptTemplate.from_dict(dict(prompt))
    plain = template.item.replace("{vector}", "")
    cleaned = [clean_title(re.sub(r"[{}]", "", answer)) for answer in answers]
    listed = template.separator.join(plain.replace("{title}", answer) for answer in cleaned)
    return TextTask(
        template.prompt.replace("{candidates}", listed),
        template.item,
        template.separator,
        template.answer.replace("{title}", "{answer}"),
    )


def _processor_of(task: TextTask, processor: ALLMRecProcessor, catalog: ItemCatalog) -> ALLMRecProcessor:
    found = ALLMRecProcessor(
        processor.tokenizer,
        task.template().to_dict(),
        history_in_prompt=processor.history_in_prompt,
        max_history_length=processor.max_history_length,
        max_length=max(1, processor.max_length - LONGEST_ANSWER),
        max_title_characters=processor.max_title_characters,
    )
    found.catalog = catalog
    return found


def _prompts(
    task: TextTask, processor: ALLMRecProcessor, histories: Sequence[Sequence[int]], items: Sequence[int] | None
) -> dict[str, Tensor]:
    """Return `input_ids`, `slot_ids`, `attention_mask` `(B, T)` and the backbone's history tensors `(B, L)`."""
    if task.asks_about_item != (items is not None):
        raise DataError("this task asks about an item: give one for each history" if items is None else
                        "this task has no {item}; give no items")  # fmt: skip
    if not histories or not all(len(history) for history in histories):
        raise DataError("a history is empty; a free-text task needs at least one known item")
    asking = _processor_of(task, processor, processor.catalog)
    rows = [[item] for item in items] if items is not None else [[] for _ in histories]
    encoded = [asking.encode_prompt(history, row) for history, row in zip(histories, rows, strict=True)]
    return {
        **left_padded([(prompt.tokens, prompt.slots) for prompt in encoded]),
        **asking.history_tensors([list(history) for history in histories]),
    }


@torch.no_grad()
def answer_scores(
    model: ALLMRecModel,
    processor: ALLMRecProcessor,
    task: TextTask,
    histories: Sequence[Sequence[int]],
    answers: Sequence[str],
    items: Sequence[int] | None = None,
    batch_size: int = 16,
) -> Tensor:
    """Return the mean log-likelihood per token of each answer, `(B, C)`; without the end of sequence.

    Args:
        model: The model with its LLM.
        processor: Its processor.
        task: The question.
        histories: B lists of catalogue indices in time order.
        answers: C texts.
        items: The asked item of each history, where the task has `{item}`.
        batch_size: Users that the LLM reads at once.
    """
    if not answers:
        raise DataError("there are no answers to score; give at least one")
    numbered = {"item_id": [str(n) for n in range(len(answers))], "title": list(answers)}
    named = pl.DataFrame({**numbered, "description": None}, schema=dict.fromkeys((*numbered, "description"), pl.String))
    words = ItemCatalog(named, saved=True)  # as they are: "None" is an answer too
    writer = _processor_of(task, processor, words)
    end = writer.tokenizer.eos_token_id
    tokens = [writer.answer_tokens(index) for index in range(1, len(answers) + 1)]
    tokens = [row[:-1] if len(row) > 1 and row[-1] == end else row for row in tokens]
    longest = max(map(len, tokens))
    answer_ids = torch.tensor([row + [0] * (longest - len(row)) for row in tokens], device=model.device)
    answer_mask = torch.tensor([[n < len(row) for n in range(longest)] for row in tokens], device=model.device)
    scores = []
    for start in range(0, len(histories), batch_size):
        part = slice(start, start + batch_size)
        batch: Any = _prompts(task, processor, histories[part], None if items is None else items[part])
        found = model.candidate_log_likelihoods(
            **{name: value.to(model.device) for name, value in batch.items()},
            answer_ids=answer_ids.expand(len(batch["input_ids"]), -1, -1),
            answer_mask=answer_mask.expand(len(batch["input_ids"]), -1, -1),
        )
        scores.append(found.sum(dim=-1) / answer_mask.sum(dim=-1))
    return torch.cat(scores).double().cpu()


def generate_answers(
    model: ALLMRecModel,
    processor: ALLMRecProcessor,
    task: TextTask,
    histories: Sequence[Sequence[int]],
    items: Sequence[int] | None = None,
    max_new_tokens: int = 8,
    batch_size: int = 16,
) -> list[str]:
    """Return what the LLM writes after the question, greedily, one text for each history; see `answer_scores`."""
    tokenizer, texts = processor.tokenizer, []
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    for start in range(0, len(histories), batch_size):
        part = slice(start, start + batch_size)
        batch: Any = _prompts(task, processor, histories[part], None if items is None else items[part])
        batch = {name: value.to(model.device) for name, value in batch.items()}
        written = model.generate(
            **batch,
            max_new_tokens=min(max_new_tokens, LONGEST_ANSWER),
            **({} if pad is None else {"pad_token_id": pad}),
        )
        texts += [text.strip() for text in tokenizer.batch_decode(written, skip_special_tokens=True)]
    return texts
