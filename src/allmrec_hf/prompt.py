"""The prompt as pure text: a template with slots, and titles made harmless.

A rendered prompt is a list of `Segment`s, each some text followed by one slot for a vector. The text never carries the
slot, so nothing that a title contains can be mistaken for one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal, NamedTuple

from .errors import DataError

NO_SLOT = 0
USER_SLOT = -1
Context = Literal["whole", "no_vectors", "no_user"]
"""What a prompt says of the user: everything; all but the vectors of user and history; or nothing at all."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""What marks candidates where the LLM answers by a letter."""

DOMAIN_WORDS = {
    "movie": ("movie", "watch", "watched"),
    "game": ("game", "play", "played"),
    "item": ("item", "buy", "bought"),
}

_PAPER_USER = "{user} is a user representation."
_PAPER_CANDIDATES = " from the following {noun} title set, {{candidates}}"
_PAPER_PROMPT = (
    "{user}This user has {verb_past} {{history}} in the previous. Recommend one next "
    "{noun} for this user to {verb} next{candidates}. The recommendation is "
)
_FIELD = re.compile(r"\{(\w*)\}")
# Format characters without a glyph: soft hyphen, direction marks, zero-width space, word joiner, byte order mark, tags.
# Joiners (200C, 200D) stay: scripts and emoji need them.
_UNSEEN = re.compile(
    "[\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0001\U000e0020-\U000e007f]"
)


class Segment(NamedTuple):
    """Some text and the slot right after it: `NO_SLOT`, `USER_SLOT`, or the catalogue index of an item (> 0)."""

    text: str
    slot: int


class Title(NamedTuple):
    """A catalogue index and the harmless form of its title."""

    item: int
    text: str


def domain_words(domain: str, verbs: tuple[str, str] | None = None) -> tuple[str, str, str]:
    """Return what an item is called, what a user does with it, and has done.

    Raises:
        DataError: when a word is empty or holds a brace, which would be a slot of the prompt.
    """
    words = (domain, *(verbs or DOMAIN_WORDS.get(domain, DOMAIN_WORDS["item"])[1:]))
    if len(words) != 3 or not all(word.strip() and word.isprintable() and not set(word) & set("{}") for word in words):
        raise DataError(
            f"a domain is a noun with two verbs, such as book with read and read, without braces; got {words}"
        )
    return words


@dataclass(frozen=True)
class PromptTemplate:
    """The words around users, histories and candidates; data, so that another domain needs no code.

    Attributes:
        prompt: Text with `{history}` once, and `{candidates}` and `{user}` at most once; without `{candidates}` it
            lists none, without `{user}` the LLM sees no user representation.
        item: Text of one item with `{title}` and, at most once, `{vector}`, the slot of its projected joint embedding.
        separator: Text between two items.
        answer: What the LLM is trained to say and scored on, with `{title}`.
    """

    prompt: str
    item: str = '"{title}"{vector}'
    separator: str = ","
    answer: str = '"{title}"'

    def __post_init__(self) -> None:
        allowed = {
            "prompt": ({"history"}, {"user", "candidates"}),
            "item": ({"title"}, {"vector"}),
            "separator": (set(), set()),
            "answer": ({"title"}, set()),
        }
        for name, (required, optional) in allowed.items():
            found = _FIELD.findall(getattr(self, name))
            if not (set(found) >= required and set(found) <= required | optional and len(found) == len(set(found))):
                raise DataError(
                    f"prompt template: {name!r} needs {sorted(required)} once each and may have {sorted(optional)}; "
                    f"found {found} in {getattr(self, name)!r}"
                )

    @classmethod
    def for_domain(
        cls,
        domain: str,
        user_representation: bool = True,
        joint_embedding: bool = True,
        verbs: tuple[str, str] | None = None,
        candidates: bool = True,
    ) -> PromptTemplate:
        """Return the paper's prompt (table 1, arXiv 2404.11343) in the words of a domain.

        Args:
            domain: What an item is called: movie, game, item or any other noun, such as book.
            user_representation: Whether it has the sentence with the user's slot.
            joint_embedding: Whether a slot for its vector follows every title.
            verbs: What a user does with an item, and has done, such as `("read", "read")`; those of the paper's
                domains are known, others are bought.
            candidates: Whether it lists the candidates.

        Example:
            >>> "This user has read {history}" in PromptTemplate.for_domain("book", verbs=("read", "read")).prompt
            True
        """
        noun, verb, verb_past = domain_words(domain, verbs)
        user = _PAPER_USER if user_representation else ""
        words = {"noun": noun, "verb": verb, "verb_past": verb_past}
        listed = _PAPER_CANDIDATES.format(**words) if candidates else ""
        template = cls(prompt=_PAPER_PROMPT.format(user=user, candidates=listed, **words))
        return template if joint_embedding else replace(template, item=template.item.replace("{vector}", ""))

    @property
    def has_user_slot(self) -> bool:
        """Whether prompts have a slot for the user representation."""
        return "{user}" in self.prompt

    @property
    def lists_candidates(self) -> bool:
        """Whether prompts name the candidates."""
        return "{candidates}" in self.prompt

    @property
    def has_item_slots(self) -> bool:
        """Whether prompts have a slot for the joint embedding of every item."""
        return "{vector}" in self.item

    def with_natural_boundary(self) -> PromptTemplate:
        """Return the same text with the blank at the prompt's end moved to the front of the answer.

        A byte-pair tokenizer writes a blank and what follows as one token. After a prompt that ends in a blank, as the
        paper's does, a pretrained LLM expects no opening quote: the text is the same, its tokens are not.

        Example:
            >>> template = PromptTemplate.for_domain("movie").with_natural_boundary()
            >>> template.prompt[-21:], template.answer
            ('The recommendation is', ' "{title}"')
        """
        prompt = self.prompt.rstrip(" ")
        return replace(self, prompt=prompt, answer=self.prompt[len(prompt) :] + self.answer)

    @classmethod
    def from_dict(cls, values: dict[str, str]) -> PromptTemplate:
        """Build a template from its saved form; unknown fields are refused."""
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown or "prompt" not in values:
            raise DataError(f"a prompt template has the fields prompt, item, separator, answer; got {sorted(values)}")
        return cls(**values)

    def to_dict(self) -> dict[str, str]:
        """Return the form that goes into JSON."""
        return asdict(self)

    def without_vectors(self) -> PromptTemplate:
        """Return the same words with no slot at all: the prompt of an LLM that recommends from text alone."""
        return PromptTemplate(
            self.prompt.replace("{user}", ""), self.item.replace("{vector}", ""), self.separator, self.answer
        )

    def render(
        self, history: Sequence[Title], candidates: Sequence[Title], context: Context = "whole"
    ) -> list[Segment]:
        """Return the prompt as text segments and slots, in reading order.

        Args:
            history: The items that the prompt names as the user's.
            candidates: The items that it names as candidates; they keep their vectors in every context.
            context: What of the user is left out; the words around stay.
        """
        lists = {**self._history_list(history, context), "{candidates}": _Listed(candidates, self.item, self.separator)}
        return _rendered(self.prompt, lists, user=context == "whole")

    def _history_list(self, history: Sequence[Title], context: Context) -> dict[str, _Listed]:
        form = self.item if context == "whole" else self.item.replace("{vector}", "")
        return {"{history}": _Listed(() if context == "no_user" else history, form, self.separator)}

    def render_answer(self, title: str) -> str:
        """Return the answer that names a title (harmless form)."""
        return self.answer.replace("{title}", title)


@dataclass(frozen=True)
class LetterTemplate:
    """What the ranker `letter` adds to a prompt: letters before the candidates, and the question for one of them.

    Attributes:
        mark: Text before a candidate, with `{letter}`.
        separator: Text between two candidates.
        unlisted: What is put at the end of a prompt that lists no candidates, with `{candidates}`.
        answer: What stands before the letter, at the very end.
    """

    mark: str = "\n{letter}. "
    separator: str = ""
    unlisted: str = " one of these:{candidates}\nIt is"
    answer: str = " the one with the letter"

    def __post_init__(self) -> None:
        needed = {"mark": ["letter"], "separator": [], "unlisted": ["candidates"], "answer": []}
        for name, slots in needed.items():
            found = _FIELD.findall(getattr(self, name))
            if found != slots:
                raise DataError(f"letter template: {name!r} needs {slots} once each; found {found}")

    def to_dict(self) -> dict[str, str]:
        """Return the form that goes into JSON."""
        return asdict(self)

    def render(
        self,
        template: PromptTemplate,
        history: Sequence[Title],
        candidates: Sequence[Title],
        context: Context = "whole",
    ) -> list[Segment]:
        """Return a prompt that asks for a letter, as text segments and slots, in reading order.

        Args:
            template: The words around, whose blanks at the end go.
            history: The items that the prompt names as the user's.
            candidates: The items that it names as candidates, at most as many as there are `LETTERS`.
            context: What of the user is left out.
        """
        prompt = template.prompt.rstrip() + ("" if template.lists_candidates else self.unlisted) + self.answer
        forms = [self.mark.replace("{letter}", letter) + template.item for letter in LETTERS[: len(candidates)]]
        lists = {**template._history_list(history, context), "{candidates}": _Listed(candidates, forms, self.separator)}
        return _rendered(prompt, lists, user=context == "whole")


_HISTORY_PROMPT = "{user}This user has {verb_past} {{history}} in the previous. The next {noun} for this user is"


@dataclass(frozen=True)
class HistoryTemplate:
    """The words of the ranker `retrieval`, which reads a user's history, and an item, without a list of candidates.

    Attributes:
        prompt: Text with `{history}` once, and `{user}` at most once.
        item: As in `PromptTemplate`, of an item that the LLM reads by itself.
        history_item: The same of an item in a history; `{vector}` alone makes prompts some five times shorter.
        separator: As in `PromptTemplate`.
    """

    prompt: str
    item: str = '"{title}"{vector}'
    history_item: str = '"{title}"{vector}'
    separator: str = ","

    def __post_init__(self) -> None:
        PromptTemplate(self.prompt, self.item, self.separator)
        if set(_FIELD.findall(self.history_item)) - {"title", "vector"} or not _FIELD.findall(self.history_item):
            raise DataError(
                f"history template: 'history_item' needs {{title}}, {{vector}} or both; got {self.history_item!r}"
            )

    @classmethod
    def for_domain(
        cls, domain: str, verbs: tuple[str, str] | None = None, history_titles: bool = True
    ) -> HistoryTemplate:
        """Return the template in the words of a domain, see `PromptTemplate.for_domain`.

        Args:
            domain: What an item is called.
            verbs: What a user does with an item, and has done.
            history_titles: Whether a history names titles, or shows vectors alone.
        """
        noun, _, verb_past = domain_words(domain, verbs)
        prompt = _HISTORY_PROMPT.format(user=_PAPER_USER, noun=noun, verb_past=verb_past)
        return cls(prompt) if history_titles else cls(prompt, history_item="{vector}")

    def to_dict(self) -> dict[str, str]:
        """Return the form that goes into JSON."""
        return asdict(self)

    def render(self, history: Sequence[Title]) -> list[Segment]:
        """Return the prompt of a user as text segments and slots, in reading order."""
        return _rendered(self.prompt, {"{history}": _Listed(history, self.history_item, self.separator)})

    def render_item(self, item: Title) -> list[Segment]:
        """Return the prompt of one item."""
        return _rendered("{history}", {"{history}": _Listed([item], self.item, self.separator)})


class _Listed(NamedTuple):
    """How a prompt names items: the text of one, or of each its own, and what stands between two."""

    items: Sequence[Title]
    form: str | Sequence[str]
    separator: str


def _rendered(prompt: str, lists: Mapping[str, _Listed], user: bool = True) -> list[Segment]:
    """Return a prompt as text segments and slots.

    Args:
        prompt: Text with `{user}` and the names of lists.
        lists: Items, by the name in the prompt.
        user: Whether the user's slot is kept.
    """
    segments: list[Segment] = []
    text = ""
    for piece in re.split(r"(\{user\}|\{history\}|\{candidates\})", prompt):
        if piece == "{user}":
            if user:
                segments.append(Segment(text, USER_SLOT))
                text = ""
        elif piece in lists:
            items, forms, separator = lists[piece]
            for number, item in enumerate(items):
                form = forms if isinstance(forms, str) else forms[number]
                before, vector, after = form.partition("{vector}")
                text += (separator if number else "") + before.replace("{title}", item.text)
                if vector:
                    segments.append(Segment(text, item.item))
                    text = after.replace("{title}", item.text)
        else:
            text += piece
    segments.append(Segment(text, NO_SLOT))
    return segments


class ForbiddenTexts:
    """Texts that a title must not hold, such as a tokenizer's thousands of added tokens, found without trying each.

    Args:
        texts: The texts. One of a single character is left alone: nothing of it could be broken up.
        normalize: What a tokenizer makes of a text before it looks for its added tokens, where it does: full-width
            letters, for example, become plain ones.

    Example:
        >>> ForbiddenTexts(["</s>", "<unused7>"]).broken_up("3 </s> 4")
        '3 < /s> 4'
    """

    def __init__(self, texts: Iterable[str], normalize: Callable[[str], str] | None = None) -> None:
        self._normalize = normalize
        self._ordered = [text for text in sorted(texts, key=len, reverse=True) if len(text) > 1]
        self._places: dict[str, list[int]] = {}
        for place, text in enumerate(self._ordered):
            self._places.setdefault(text, []).append(place)
        lengths: dict[str, set[int]] = {}
        for text in self._places:
            lengths.setdefault(text[0], set()).add(len(text))
        self._lengths = {first: sorted(found) for first, found in lengths.items()}

    def broken_up(self, text: str) -> str:
        """Return the text with every forbidden one broken up by a space, the longest first.

        A text that holds none until it is normalized is returned in Unicode's form NFKC and broken up; where that does
        not help either, characters that are neither letters nor digits become spaces.
        """
        text = self._broken_up(text)
        if self._becomes_forbidden(text):
            text = self._broken_up(unicodedata.normalize("NFKC", text))
        if self._becomes_forbidden(text):
            text = " ".join("".join(char if char.isalnum() else " " for char in text).split())
        return text

    def _becomes_forbidden(self, text: str) -> bool:
        if self._normalize is None:
            return False
        normal = self._normalize(text)
        return normal != text and self._first(normal, 0) is not None

    def _broken_up(self, text: str) -> str:
        place = self._first(text, 0)
        while place is not None:
            token = self._ordered[place]
            broken = f"{token[:1]} {token[1:]}"
            if token in broken:  # white space in a token may survive the break, so one character goes instead
                broken = token[1:]
            while token in text:
                text = text.replace(token, broken)
            place = self._first(text, place + 1)  # a break may make another, shorter one
        return text

    def _first(self, text: str, earliest: int) -> int | None:
        """Return the first place in the order, from `earliest`, of a forbidden text that stands in a text."""
        found = None
        for start, first in enumerate(text):
            for length in self._lengths.get(first, ()):
                for place in self._places.get(text[start : start + length], ()):
                    if place >= earliest and (found is None or place < found):
                        found = place
        return found


def clean_title(title: str, forbidden: ForbiddenTexts | Iterable[str] = (), max_characters: int = 200) -> str:
    """Return a title that is safe inside a quoted prompt; it may be empty.

    Control characters and line breaks become spaces, runs of spaces one; characters that nobody sees (changes of
    direction, tags, zero-width spaces) go; double quotes become single ones; a longer title is cut at
    `max_characters`; any forbidden string (the tokenizer's special tokens) is broken up by a space. Who cleans many
    titles makes `ForbiddenTexts` once.

    Example:
        >>> clean_title('The "Big"\\n Sleep</s>', forbidden=["</s>"])
        "The 'Big' Sleep< /s>"
    """
    text = _UNSEEN.sub("", title)
    text = "".join(" " if unicodedata.category(char) in ("Cc", "Zl", "Zp", "Cs") else char for char in text)
    text = " ".join(text.split()).replace('"', "'")[:max_characters].rstrip()
    if not isinstance(forbidden, ForbiddenTexts):
        forbidden = ForbiddenTexts(forbidden)
    return forbidden.broken_up(text)
