"""Tokenize the text between slots as it is tokenized inside a sentence, whatever a tokenizer does at a text's start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

ANCHORS = ("\n", ".", "x", "0", '"', "-")
_SPACES = " ▁Ġ"
_PROBES = (',"a"', '"a', "a", " a", ". a", ', "a')


def normalizer(tokenizer: Any) -> Callable[[str], str] | None:
    """Return what a tokenizer does to a text before all else, such as Unicode's form NFKC; None where nothing."""
    found = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    return None if found is None else found.normalize_str


class SlotText:
    """Tokenizes pieces of a prompt whose slots are no text.

    A slot's vector stands between two pieces, so a piece is no beginning: Llama's tokenizers, for example, put a space
    before whatever follows a special token, and byte-level ones with `add_prefix_space` before any first word; inside
    a sentence there is none.

    Args:
        tokenizer: The LLM's.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._mark, self._mark_id = self._special_token()
        self._neutral = all(self._reads_alike(probe) for probe in _PROBES)
        self.start = self._start_tokens()
        """The tokens that the tokenizer puts before any text, such as `<s>`."""

    def _ids(self, text: str, special: bool = False) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=special)["input_ids"])

    def _special_token(self) -> tuple[str, int | None]:
        tokenizer = self._tokenizer
        for name in ("eos", "bos", "sep", "cls", "pad", "unk"):
            token, number = getattr(tokenizer, f"{name}_token", None), getattr(tokenizer, f"{name}_token_id", None)
            if token is not None and number is not None and self._ids(token) == [number]:
                return token, number
        return "", None

    def _start_tokens(self) -> list[int]:
        bare, full = self._ids("a"), self._ids("a", special=True)
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return full[:start]
        return full[:1] if full[:1] == [self._tokenizer.bos_token_id] else []

    def _behind_mark(self, text: str) -> list[int]:
        """Return the tokens of a text behind a special token, where tokenizers split before anything else."""
        tokens = self._ids(self._mark + text)
        return tokens[1:] if self._mark_id is not None and tokens[:1] == [self._mark_id] else tokens

    def _behind_anchor(self, text: str) -> list[int] | None:
        """Return the tokens of a text behind some character that does not melt into it; None where all do."""
        for anchor in ANCHORS:
            before, whole = self._behind_mark(anchor), self._behind_mark(anchor + text)
            seen = self._spelled(before).strip(_SPACES)  # one read as a space would swallow a space of the text's own
            if seen and whole[: len(before)] == before and len(whole) > len(before):
                return whole[len(before) :]
        return None

    def _reads_alike(self, probe: str) -> bool:
        """Tell whether a text behind the special token has the spaces that it has inside a sentence."""
        inside = self._behind_anchor(probe)
        return inside is None or self._spelled(self._behind_mark(probe)) == self._spelled(inside)

    def _spelled(self, tokens: Sequence[int]) -> str:
        return "".join(str(token) for token in self._tokenizer.convert_ids_to_tokens(list(tokens)))

    def inside(self, text: str) -> list[int]:
        """Return the tokens of a text as it stands inside a sentence."""
        if not text:
            return []
        found = None if self._neutral else self._behind_anchor(text)
        return self._behind_mark(text) if found is None else found

    def at_start(self, text: str) -> list[int]:
        """Return the tokens of a text that begins a prompt, without `start`."""
        return self._ids(text) if text else []

    def single_tokens(self, text: str, answers: Sequence[str]) -> tuple[str, list[int]] | None:
        """Return the one token that each of some short answers is behind a text inside a sentence.

        A tokenizer may write an answer together with the blank before it, behind a blank, or behind a line break: the
        first of these, or else none between, that gives every answer a token of its own.

        Args:
            text: The text before, which ends in no blank.
            answers: The answers, such as letters.

        Returns:
            The text, with what has to stand between, and the tokens of the answers; None where there is no way.
        """
        for between, blank in (("", " "), (" ", ""), ("\n", ""), ("", "")):
            before = self.inside(text + between)
            found = [self.inside(text + between + blank + answer) for answer in answers]
            tokens = [ids[-1] for ids in found if ids[:-1] == before and ids[-1] != self._tokenizer.unk_token_id]
            if len(set(tokens)) == len(answers):
                return text + between, tokens
        return None
