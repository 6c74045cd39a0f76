"""The processor turns histories and candidates into tensors, with the catalogue and the tokenizer."""

import hashlib
import json
import logging
import os
from array import array
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin
from transformers.utils import PROCESSOR_NAME, cached_file

from .caches import BoundedCache
from .catalog import CATALOG_FILE, ItemCatalog
from .checkpoint_code import name_processor_class, push_saved
from .errors import CheckpointError, DataError
from .files import finish_interrupted_write, folder_written_whole
from .histories import pad_histories, seen_items
from .indices import checked_index, checked_indices
from .item_titles import ItemTitles, LengthLimit
from .part_sources import CHECKPOINT_PART, located, one_line, require_found
from .prompt import (
    NO_SLOT,
    Context,
    ForbiddenTexts,
    HistoryTemplate,
    LetterTemplate,
    PromptTemplate,
    Segment,
    Title,
)
from .slot_text import SlotText, normalizer

logger = logging.getLogger(__name__)

IGNORED_LABEL = -100
SHORTEST_TITLE = 8
CACHED_TEXTS = 2**16  # tokenized pieces of prompts kept
EQUAL_ANSWERS = "; titles cut so far are no longer all different, and equal ones cannot be told apart: lost are"
LONGEST_CACHED_TEXT = 512  # characters; a longer piece names a user's whole history and hardly comes twice
_MODEL_KWARGS = (
    *("attn_implementation", "check_memory", "device_map", "dtype", "gguf_file", "gguf_packed", "max_memory"),
    *("quantization_config", "torch_dtype"),
)
_COUNTS = ("history_in_prompt", "max_history_length", "max_length", "max_title_characters")
_HUB_KWARGS = ("cache_dir", "revision", "token", "local_files_only", "subfolder")


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return a short hash of a tokenizer's vocabulary, equal for equal vocabularies."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=True)
    return hashlib.sha256(vocabulary.encode()).hexdigest()[:16]


def prompt_order(history: Sequence[int], candidates: Sequence[int], permutation: int) -> list[int]:
    """Return the candidates in an order drawn from the history and a number alone, whatever order they are given in."""
    generator = np.random.default_rng([permutation, *history])
    return generator.permutation(np.sort(np.asarray(candidates, dtype=np.int64))).tolist()


class EncodedPrompt(NamedTuple):
    """One prompt: token ids (0 at slots), slots, what was shortened, and the characters left of each title."""

    tokens: list[int]
    slots: list[int]
    note: str | None
    title_limit: int


class ALLMRecProcessor(ProcessorMixin):
    """Turns histories and candidates, as catalogue indices, into prompts, slots and answers.

    Args:
        tokenizer: The frozen LLM's tokenizer, used as it is: no token is added. None where the model has no LLM: there
            are no prompts then, and users are encoded by `history_tensors` alone.
        prompt: The prompt template's fields (`PromptTemplate.to_dict`); the paper's prompt for items where not given.
        history_in_prompt: The most recent history items that the prompt names (paper: 10).
        max_history_length: The most recent history items that the backbone reads.
        max_length: The LLM's context in tokens, answer included. A longer prompt first loses its oldest history items,
            then ends of titles; a warning says so.
        max_title_characters: Longer titles are cut.
        max_title_tokens: Titles of more tokens are cut behind a word; not where not given. A candidate's title, and
            with it the answer that names it, keeps as many more words as tell it from every other title of the
            catalogue. Of a tokenizer that writes a word as many tokens, one word's beginning may be all that is left.

    The catalogue is set by `processor.catalog = ItemCatalog(...)` and is saved with the processor as `items.parquet`.
    """

    def __init__(
        self,
        tokenizer=None,
        prompt=None,
        history_in_prompt=10,
        max_history_length=50,
        max_length=2048,
        max_title_characters=200,
        max_title_tokens=None,
    ):
        if tokenizer is None:
            self.tokenizer = self.chat_template = None
        else:
            super().__init__(tokenizer)
        self.prompt = prompt or PromptTemplate.for_domain("item").to_dict()
        self.history_in_prompt = history_in_prompt
        self.max_history_length = max_history_length
        self.max_length = max_length
        self.max_title_characters = max_title_characters
        self.max_title_tokens = max_title_tokens
        for name in (*_COUNTS, "max_title_tokens"):
            value = getattr(self, name)
            if (type(value) is not int or value < 1) and not (name not in _COUNTS and value is None):
                raise CheckpointError(f"the processor's {name} must be a whole number > 0, not {value!r}")
        if tokenizer is None and max_title_tokens is not None:
            raise CheckpointError(f"max_title_tokens is {max_title_tokens}, but there is no tokenizer to count with")
        self._template = PromptTemplate.from_dict(self.prompt)
        self._catalog: ItemCatalog | None = None
        self._kept_titles: ItemTitles | None = None
        self._kept_limits: tuple[int, int | None] | None = None
        self._segments = BoundedCache(CACHED_TEXTS)
        self._notes = BoundedCache(2)
        added = [] if tokenizer is None else [*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens]
        self._forbidden = ForbiddenTexts(added, normalizer(tokenizer))
        self._text_of_slots: Any = None if tokenizer is None else SlotText(tokenizer)

    @property
    def _slot_text(self) -> SlotText:
        self._require_tokenizer()
        return self._text_of_slots

    def _require_tokenizer(self) -> None:
        if self.tokenizer is None:
            raise CheckpointError(
                "this processor has no tokenizer, so it makes no prompts: its checkpoint was trained without an LLM"
            )

    # -- the catalogue

    @property
    def catalog(self) -> ItemCatalog:
        """The catalogue that indices refer to."""
        if self._catalog is None:
            raise CheckpointError(f"this processor has no catalogue: {CATALOG_FILE} is missing from its checkpoint")
        return self._catalog

    @catalog.setter
    def catalog(self, catalog: ItemCatalog) -> None:
        self._catalog = catalog
        self._kept_titles = None

    def _count_tokens(self, text: str) -> int:
        return len(self._slot_text.inside(text))

    @property
    def _titles(self) -> ItemTitles:
        limits = (self.max_title_characters, self.max_title_tokens)
        if self._kept_titles is None or self._kept_limits != limits:
            tokens = None if self.max_title_tokens is None else LengthLimit(self.max_title_tokens, self._count_tokens)
            self._kept_titles = ItemTitles(self.catalog, self._forbidden, self.max_title_characters, tokens)
            self._kept_limits = limits
        return self._kept_titles

    def title(self, index: int) -> str:
        """Return the harmless form of an item's title, see `ItemTitles`."""
        return self._titles.whole(checked_index(index, len(self.catalog)))

    def history_title(self, index: int) -> str:
        """Return an item's title as a prompt's history names it: `max_title_tokens` tokens at most."""
        return self._titles.short(checked_index(index, len(self.catalog)))

    def candidate_title(self, index: int) -> str:
        """Return an item's title as a list of candidates and the answer name it.

        It has `max_title_tokens` tokens, or as many more as tell it from every other title of the catalogue, so that
        two items have the same only where their whole titles are the same.
        """
        return self._titles.distinct(checked_index(index, len(self.catalog)))

    # -- tokens

    @property
    def fingerprint(self) -> str | None:
        """A short hash of the tokenizer's vocabulary; a checkpoint remembers it. None without a tokenizer."""
        return None if self.tokenizer is None else tokenizer_fingerprint(self.tokenizer)

    def check_fits(self, fingerprint: str | None, num_items: int) -> None:
        """Check that tokenizer and catalogue are those of a model.

        Args:
            fingerprint: What the model's config remembers of the tokenizer; None where it was never told.
            num_items: N, the number of items in the model's table.

        Raises:
            CheckpointError: when one is not.
        """
        if fingerprint is not None and fingerprint != self.fingerprint:
            raise CheckpointError(
                "the tokenizer is not the one this model was trained with (their vocabularies differ): load the "
                "processor from the model's own checkpoint"
            )
        if len(self.catalog) != num_items:
            raise CheckpointError(
                f"the catalogue has {len(self.catalog)} items but the model's item table {num_items}; load both from "
                "one checkpoint"
            )

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """Return the text of token ids, as the tokenizer's `decode` does."""
        self._require_tokenizer()
        return super().decode(*args, **kwargs)

    def batch_decode(self, *args: Any, **kwargs: Any) -> Any:
        """Return the texts of rows of token ids, as the tokenizer's `batch_decode` does."""
        self._require_tokenizer()
        return super().batch_decode(*args, **kwargs)

    def _tokenize(self, text: str, start: bool = False) -> list[int]:
        """Tokenize text as it stands after a slot, like the inside of a sentence, or as it begins a prompt."""
        if start:
            return self._slot_text.at_start(text)
        kept = self._segments.get(text)
        if kept is not None:
            return list(kept)
        tokens = self._slot_text.inside(text)
        if len(text) <= LONGEST_CACHED_TEXT:
            self._segments.put(text, array("i", tokens))  # 4 bytes a token; a list of Python integers takes 36
        return tokens

    def answer_tokens(self, index: int, title_limit: int | None = None) -> list[int]:
        """Return the tokens of the answer that names an item, with the end of sequence where the tokenizer has one.

        Args:
            index: Catalogue index.
            title_limit: Characters of the title where its prompt had to cut titles.
        """
        tokens = self._tokenize(self._template.render_answer(self.candidate_title(index)[:title_limit].rstrip()))
        return tokens if self.tokenizer.eos_token_id is None else [*tokens, self.tokenizer.eos_token_id]

    def _assemble(self, segments: Sequence[Segment]) -> tuple[list[int], list[int]]:
        tokens: list[int] = []
        slots: list[int] = []
        started = False
        for text, slot in segments:
            front = not tokens
            if text and not started:  # a user vector at the very front stands before the start token, as in the paper
                tokens += self._slot_text.start
                slots += [NO_SLOT] * len(self._slot_text.start)
                started = True
            text_tokens = self._tokenize(text, start=front)
            tokens += text_tokens
            slots += [NO_SLOT] * len(text_tokens)
            if slot != NO_SLOT:
                tokens.append(0)
                slots.append(slot)
        return tokens, slots

    def _titles_of(self, history: Sequence[int], limit: int) -> list[Title]:
        return [Title(index, self.history_title(index)[:limit].rstrip()) for index in history]

    @property
    def lists_candidates(self) -> bool:
        """Whether prompts name the candidates."""
        return self._template.lists_candidates

    def encode_prompt(
        self,
        history: Sequence[int],
        candidates: Sequence[int],
        context: Context = "whole",
        letters: LetterTemplate | None = None,
    ) -> EncodedPrompt:
        """Return one prompt that leaves room in the LLM's context for any candidate's answer.

        Args:
            history: Catalogue indices in time order; the prompt names the last `history_in_prompt`.
            candidates: Catalogue indices in the order in which the prompt lists them.
            context: What of the user is left out. What is shortened does not depend on it, so that an answer has the
                same tokens behind each.
            letters: Where the answer is a candidate's letter in place of its title: how the prompt asks for it.

        Raises:
            DataError: when an index is not in 1..N or not even one history item and the shortest titles fit.
        """
        candidates = checked_indices(candidates, len(self.catalog), "the candidate list")
        named = checked_indices(history, len(self.catalog), "the history")[-self.history_in_prompt :]
        wanted, limit = len(named), self.max_title_characters
        render = self._template.render if letters is None else partial(letters.render, self._template)
        answers = candidates if letters is None else []
        while True:
            room = self.max_length - max((len(self.answer_tokens(index, limit)) for index in answers), default=0)
            listed = [Title(index, self.candidate_title(index)[:limit].rstrip()) for index in candidates]
            tokens, slots = self._assemble(render(self._titles_of(named, limit), listed))
            if len(tokens) <= room:
                break
            if len(named) > 1:
                named = named[1:]
            elif limit > SHORTEST_TITLE:
                limit = max(SHORTEST_TITLE, limit // 2)
            else:
                raise DataError(
                    f"the prompt needs {len(tokens)} tokens with one history item and titles of {limit} characters, "
                    f"but the LLM's context leaves {room}; give fewer candidates (now {len(candidates)}) or an LLM "
                    "with a longer context"
                )
        note = None
        if len(named) < wanted or limit < self.max_title_characters:
            note = f"prompt shortened to {len(named)} of {wanted} history items"
            note += f" and titles of {limit} characters" if limit < self.max_title_characters else ""
            note += f" to fit the LLM's context of {self.max_length} tokens"
            lost = len({self.candidate_title(index) for index in answers}) - len({title.text for title in listed})
            note += f"{EQUAL_ANSWERS} {lost}" if lost > 0 else ""
        if context != "whole":
            tokens, slots = self._assemble(render(self._titles_of(named, limit), listed, context))
        return EncodedPrompt(tokens, slots, note, limit)

    def encode_history(self, template: HistoryTemplate, history: Sequence[int]) -> EncodedPrompt:
        """Return the prompt of a history without candidates; items that the LLM's context cannot hold go, oldest first.

        Args:
            template: The words around it.
            history: Catalogue indices in time order, all of which the prompt names where there is room.

        Raises:
            DataError: when an index is not in 1..N, or not even the last item fits.
        """
        named = checked_indices(history, len(self.catalog), "the history")
        limit = self.max_title_characters
        for first in range(len(named)):
            tokens, slots = self._assemble(template.render(self._titles_of(named[first:], limit)))
            if len(tokens) < self.max_length:  # one place is left for the learned token
                return EncodedPrompt(tokens, slots, None, limit)
        raise DataError(f"the LLM's context of {self.max_length} tokens holds no prompt of this history")

    def encode_item(self, template: HistoryTemplate, item: int) -> EncodedPrompt:
        """Return the prompt of one item, its title cut where the LLM's context cannot hold it."""
        limit = self.max_title_characters
        while True:
            tokens, slots = self._assemble(template.render_item(self._titles_of([item], limit)[0]))
            if len(tokens) < self.max_length or limit <= SHORTEST_TITLE:
                return EncodedPrompt(tokens, slots, None, limit)
            limit = max(SHORTEST_TITLE, limit // 2)

    # -- batches

    def __call__(  # type: ignore[override]
        self,
        histories: Sequence[Sequence[int]],
        candidates: Sequence[Sequence[int]],
        permutation: int = 0,
        context: Context = "whole",
    ) -> BatchFeature:
        """Return the tensors that `ALLMRecModel.score` and `ALLMRecModel.generate` take.

        The prompt lists the candidates in an order drawn from the history alone, so neither their order in the input
        nor the other users of a batch change a score, and no retrieval order leaks into the prompt.

        Args:
            histories: B lists of catalogue indices in time order, each with at least one item.
            candidates: B lists of catalogue indices; they may differ in length.
            permutation: Another number gives another order of the candidate list.
            context: What of the user is left out of the prompts, see `PromptTemplate.render`.

        Returns:
            `input_ids`, `attention_mask`, `slot_ids` `(B, T)`, left-padded; `history_ids`, `history_mask` `(B, L)`;
            `candidate_ids` `(B, C)`, 0 at padding; `answer_ids`, `answer_mask` `(B, C, A)`, right-padded.

        Raises:
            DataError: when a history or a candidate list is empty, an index is not in 1..N, or a prompt cannot fit.
        """
        histories, candidates = self._checked(histories, candidates)
        prompts = [
            self._checked_prompt(history, prompt_order(history, row, permutation), context)
            for history, row in zip(histories, candidates, strict=True)
        ]
        answers = [
            [self.answer_tokens(index, prompt.title_limit) for index in row]
            for prompt, row in zip(prompts, candidates, strict=True)
        ]
        columns = max(len(row) for row in answers)
        longest = max(len(answer) for row in answers for answer in row)
        lengths = [[*map(len, row), *[0] * (columns - len(row))] for row in answers]
        padded = [[[*answer, *[0] * (longest - len(answer))] for answer in row] for row in answers]
        padded = [[*row, *[[0] * longest] * (columns - len(row))] for row in padded]
        answer_mask = torch.arange(longest) < torch.tensor(lengths).unsqueeze(-1)
        candidate_ids = torch.tensor([[*row, *[0] * (columns - len(row))] for row in candidates])
        return BatchFeature(
            {
                **left_padded([(prompt.tokens, prompt.slots) for prompt in prompts]),
                **self._history_tensors(histories),
                "candidate_ids": candidate_ids,
                "answer_ids": torch.tensor(padded),
                "answer_mask": answer_mask,
            }
        )

    def training_batch(
        self, histories: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]], targets: Sequence[int]
    ) -> BatchFeature:
        """Return prompts with their answers appended, for `ALLMRecModel.forward` (stage 2).

        Args:
            histories: B lists of catalogue indices in time order.
            candidates: B lists of catalogue indices, the target among them.
            targets: B catalogue indices.

        Returns:
            `input_ids`, `attention_mask`, `slot_ids`, `labels` `(B, T)`, left-padded, labels -100 but at the answer;
            `history_ids`, `history_mask` `(B, L)`.
        """
        histories, candidates = self._checked(histories, candidates)
        targets = checked_indices(targets, len(self.catalog), "a target")
        if len(targets) != len(histories):
            raise DataError(f"there are {len(histories)} histories but {len(targets)} targets; give one each")
        rows, labels = [], []
        for history, row, target in zip(histories, candidates, targets, strict=True):
            prompt = self._checked_prompt(history, row)
            answer = self.answer_tokens(target, prompt.title_limit)
            rows.append((prompt.tokens + answer, prompt.slots + [NO_SLOT] * len(answer)))
            labels.append([IGNORED_LABEL] * len(prompt.tokens) + answer)
        batch = left_padded(rows)
        width = batch["input_ids"].shape[1]
        padded = [[IGNORED_LABEL] * (width - len(row)) + row for row in labels]
        return BatchFeature({**batch, **self._history_tensors(histories), "labels": torch.tensor(padded)})

    def _checked(
        self, histories: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]]
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Return histories and candidate lists as lists of Python integers from 1 to N."""
        count = len(self.catalog)
        if len(histories) != len(candidates):
            raise DataError(
                f"there are {len(histories)} histories but {len(candidates)} candidate lists; give one each"
            )
        return (
            [checked_indices(history, count, "a history") for history in histories],
            [checked_indices(row, count, "a candidate list") for row in candidates],
        )

    def letter_batch(
        self, histories: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]], letters: LetterTemplate
    ) -> BatchFeature:
        """Return prompts that ask for a letter; the candidates carry letters in the order given.

        Returns:
            `input_ids`, `attention_mask`, `slot_ids` `(B, T)`, left-padded; the letter comes behind the last token.
        """
        pairs = zip(*self._checked(histories, candidates), strict=True)
        prompts = [self._checked_prompt(history, row, letters=letters) for history, row in pairs]
        return BatchFeature(left_padded([(prompt.tokens, prompt.slots) for prompt in prompts]))

    def single_tokens(self, text: str, answers: Sequence[str]) -> tuple[str, list[int]] | None:
        """Return the one token that each answer is behind a text of prompts, see `SlotText.single_tokens`."""
        return self._slot_text.single_tokens(text, answers)

    def _checked_prompt(
        self,
        history: Sequence[int],
        candidates: Sequence[int],
        context: Context = "whole",
        letters: LetterTemplate | None = None,
    ) -> EncodedPrompt:
        if not len(history):
            raise DataError("the history is empty; a recommendation needs at least one known item")
        if not len(candidates):
            raise DataError("the candidate list is empty; give candidates, or none at all to retrieve them")
        prompt = self.encode_prompt(history, candidates, context, letters)
        kind = None if prompt.note is None else EQUAL_ANSWERS in prompt.note
        if kind is not None and self._notes.get(kind) is None:
            self._notes.put(kind, True)  # said once, not for every user of a run
            logger.warning("%s; others may be shortened too.", prompt.note)
        return prompt

    def history_tensors(self, histories: Sequence[Sequence[int] | np.ndarray]) -> dict[str, torch.Tensor]:
        """Return what `ALLMRecModel.retrieve` takes.

        Args:
            histories: B lists of catalogue indices in time order.

        Returns:
            `history_ids` and `history_mask` `(B, L)`, left-padded, the last `max_history_length` items for the CF
            encoder; `seen_ids` `(B, S)`, every item of the whole histories, 0 at padding, which retrieval leaves out.

        Raises:
            DataError: when an index is not in 1..N.
        """
        if self._catalog is not None:
            histories = [checked_indices(history, len(self._catalog), "a history") for history in histories]
        return {**self._history_tensors(histories), "seen_ids": seen_items(histories)}

    def _history_tensors(self, histories: Sequence[Sequence[int] | np.ndarray]) -> dict[str, torch.Tensor]:
        history_ids, history_mask = pad_histories(histories, self.max_history_length)
        return {"history_ids": history_ids, "history_mask": history_mask}

    # -- files

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Write tokenizer, `processor_config.json` and `items.parquet`, whole or not at all."""
        repo_id = kwargs.pop("repo_id", Path(save_directory).name)
        with folder_written_whole(save_directory) as folder:
            if self.tokenizer is None:
                self.to_json_file(folder / PROCESSOR_NAME)
            else:
                super().save_pretrained(str(folder))
            name_processor_class(folder)
            if self._catalog is not None:
                self._catalog.save(folder)
        if push_to_hub:
            self.push_to_hub(repo_id, **kwargs)
        return [str(save_directory)]

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:  # type: ignore[override]
        """Upload tokenizer, settings and catalogue, beside what the repository holds; its model card stays.

        Args:
            repo_id: `namespace/name`.
            **kwargs: `private`, `token`, `revision`, `commit_message`, `commit_description`, `create_pr`.

        Returns:
            The address of the commit.
        """
        return push_saved(self.save_pretrained, repo_id, **{"commit_message": "Upload ALLMRecProcessor", **kwargs})

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> "ALLMRecProcessor":
        """Load tokenizer, settings and catalogue from a folder or a Hub repository.

        Args:
            pretrained_model_name_or_path: A folder, a Hub repository, or `demo`.
            **kwargs: `subfolder`, `revision`, `token` and the like; `trust_remote_code` for a tokenizer with code of
                its own, which is refused where it is not given and never asked for on a terminal.

        Raises:
            CheckpointError: when tokenizer, settings or catalogue cannot be read.
        """
        for name in _MODEL_KWARGS:  # pipeline() gives the model's arguments to the processor too
            kwargs.pop(name, None)
        hub = {key: kwargs[key] for key in _HUB_KWARGS if kwargs.get(key)}
        kwargs["trust_remote_code"] = bool(kwargs.get("trust_remote_code"))
        try:
            pretrained_model_name_or_path = located(str(pretrained_model_name_or_path), CHECKPOINT_PART)
            finish_interrupted_write(Path(pretrained_model_name_or_path) / hub.get("subfolder", ""))
            require_found(pretrained_model_name_or_path, PROCESSOR_NAME, **hub)
            cached_file(pretrained_model_name_or_path, PROCESSOR_NAME, **hub)  # never a default prompt in silence
            processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except CheckpointError:
            raise
        except Exception as error:  # of any class: tokenizers raises plain `Exception`, JSON may be of any shape
            raise CheckpointError(
                f"tokenizer and processor of {pretrained_model_name_or_path} cannot be loaded: "
                f"{one_line(error)}; download or save them again"
            ) from error
        path = cached_file(
            pretrained_model_name_or_path, CATALOG_FILE, _raise_exceptions_for_missing_entries=False, **hub
        )
        if path is not None:
            processor.catalog = ItemCatalog.load(path)
        return processor

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: Any, processor_dict: Any = None, **kwargs: Any
    ) -> Any:
        if "tokenizer" in (processor_dict or {}):  # None, by `to_dict`: there is none to load
            return [None]
        return super()._get_arguments_from_pretrained(pretrained_model_name_or_path, processor_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return what `processor_config.json` holds; where there is no tokenizer, it says so."""
        found = super().to_dict()
        return {**found, "tokenizer": None} if self.tokenizer is None else found

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoProcessor") -> None:
        """Do nothing: the model's `save_pretrained` writes what a checkpoint needs to be found again."""


def left_padded(rows: Sequence[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    """Return `input_ids`, `attention_mask` and `slot_ids` `(B, T)` of prompts given as token ids and slots."""
    width = max(len(tokens) for tokens, _ in rows)
    fill = [width - len(tokens) for tokens, _ in rows]
    return {
        "input_ids": torch.tensor([[0] * n + tokens for n, (tokens, _) in zip(fill, rows, strict=True)]),
        "attention_mask": torch.arange(width) >= torch.tensor(fill)[:, None],
        "slot_ids": torch.tensor([[NO_SLOT] * n + slots for n, (_, slots) in zip(fill, rows, strict=True)]),
    }
