"""An invented film world: titles, descriptions and tastes, drawn from one seed.

The world is made so that neither text nor collaboration is enough alone. A title tells the topic of a film, mostly;
which topic a user turns to next, and which films of a topic belong to one's circle, is written nowhere and can only
be learned from interactions. A fifth of the films are new releases without a single training interaction, where only
text can help. Nothing here is a real film, person or review.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..errors import DataError
from .synthetic_words import GENERIC_ADJECTIVES, GENERIC_NOUNS, GENRES, PROMPT_WORDS, SENTENCE_WORDS

_SEQUELS = ("II", "Returns")
_START_TIME = 1_600_000_000
_DAY = 86_400


class Topic(NamedTuple):
    """The words of one topic: its own name, its genre and genre-mate, and what its titles are made of."""

    name: str
    genre: str
    sibling: int
    genre_adjectives: tuple[str, ...]
    adjectives: tuple[str, ...]
    nouns: tuple[str, ...]


def _build_topics() -> tuple[Topic, ...]:
    topics: list[Topic] = []
    for genre, genre_adjectives, pair in GENRES:
        first = len(topics)
        for offset, (name, adjectives, nouns) in enumerate(pair):
            topics.append(Topic(name, genre, first + 1 - offset, genre_adjectives, adjectives, nouns))
    return tuple(topics)


TOPICS = _build_topics()


def invent_title(topic: int, generator: np.random.Generator) -> str:
    """Return one title of a topic, drawn from the grammar.

    "Adjective Noun" (50 %), "The Adjective Noun" (20 %), "Noun of Noun" (18 %) or "Adjective Noun II | Returns"
    (12 %); an adjective is generic (25 %), of the genre (35 %) or of the topic, a noun is generic (15 %), of the
    topic (77 %) or of the genre's other topic.

    Args:
        topic: Index into `TOPICS`.
        generator: Source of randomness.
    """
    form = generator.random()
    if 0.70 <= form < 0.88:
        first, second = _noun(topic, generator), _noun(topic, generator)
        while second == first:
            second = _noun(topic, generator)
        return f"{first} of {second}"
    title = f"{_adjective(topic, generator)} {_noun(topic, generator)}"
    if form < 0.50:
        return title
    return f"The {title}" if form < 0.70 else f"{title} {_pick(_SEQUELS, generator)}"


def invent_titles(
    count: int, generator: np.random.Generator, num_topics: int = len(TOPICS), exclude: frozenset[str] = frozenset()
) -> tuple[list[str], NDArray[np.int64]]:
    """Return `count` different titles, spread evenly over the topics, none of them in `exclude`.

    Args:
        count: Number of titles.
        generator: Source of randomness.
        num_topics: The first so many topics are used.
        exclude: Titles that must not come up, for example those of a catalogue.

    Returns:
        The titles, and the topic of each, `(count,)`.

    Raises:
        DataError: when the grammar does not hold so many different titles.
    """
    topics = generator.permutation(np.arange(count) % num_topics)
    titles: list[str] = []
    taken = set(exclude)
    for topic in topics:
        for _ in range(1000):
            title = invent_title(int(topic), generator)
            if title not in taken:
                break
        else:
            raise DataError(
                f"the invented world has no more than {len(titles)} different titles over {num_topics} topics, "
                f"{count} were asked for; lower num_items"
            )
        taken.add(title)
        titles.append(title)
    return titles, topics


def vocabulary() -> list[str]:
    """Return every word and sign that titles and the recommendation prompt are made of, in a fixed order."""
    words = [*PROMPT_WORDS, "of", "The", *_SEQUELS, *GENERIC_ADJECTIVES, *GENERIC_NOUNS]
    for genre, genre_adjectives, pair in GENRES:
        words += [genre, *genre_adjectives]
        for name, adjectives, nouns in pair:
            words += [name, *adjectives, *nouns]
    return list(dict.fromkeys(words))


def description_vocabulary() -> list[str]:
    """Return every word and sign of titles and descriptions in lower case, in a fixed order (for a text encoder)."""
    return list(dict.fromkeys([word.lower() for word in vocabulary()] + list(SENTENCE_WORDS)))


class SyntheticWorld:
    """Draws a catalogue and the interactions of its users; the same arguments give the same world.

    Every user watches 9 to 15 films. Each step stays in the topic (55 %) or moves to a hidden successor topic of
    another genre. Inside a topic, films are chosen by popularity (1 / rank ** 0.9), times `e ** 2` for those of
    the user's hidden community. New releases are a fifth of the catalogue: half of them can be the last or the
    second last film of a user (known at validation time), the other half only the last (never seen before the test).

    Args:
        seed: Draws everything.
        num_items: Films in the catalogue.
        num_users: Users.
        num_topics: Topics in use, even, at most 32; by default 32, fewer in a catalogue of under 384 films.
        new_release_share: Share of the catalogue that has no training interaction.
        cold_target_share: Share of the last and of the second last films that are new releases.
        num_communities: Hidden groups of users and films.

    Example:
        >>> world = SyntheticWorld(seed=0, num_items=120, num_users=200)
        >>> world.items().columns
        ['item_id', 'title', 'description', 'genre', 'topic']
    """

    def __init__(
        self,
        seed: int = 0,
        num_items: int = 1000,
        num_users: int = 3000,
        num_topics: int | None = None,
        new_release_share: float = 0.2,
        cold_target_share: float = 0.24,
        num_communities: int = 8,
    ) -> None:
        if num_topics is None:
            num_topics = min(len(TOPICS), max(4, num_items // 24 * 2))
        if num_topics % 2 or not 4 <= num_topics <= len(TOPICS):
            raise DataError(f"num_topics must be even and between 4 and {len(TOPICS)}, got {num_topics}")
        if num_items < 10 * num_topics or num_users < 1:
            raise DataError(
                f"an invented world needs at least 10 items per topic and one user; "
                f"got {num_items} items, {num_topics} topics, {num_users} users"
            )
        self.seed = seed
        self.num_items = num_items
        self.num_users = num_users
        self.num_topics = num_topics
        self.new_release_share = new_release_share
        self.cold_target_share = cold_target_share
        self.num_communities = num_communities

    def items(self) -> pl.DataFrame:
        """Return the catalogue: item_id, title, description, genre, topic (all text)."""
        titles, topics = self._titles
        generator = self._generator("descriptions")
        return pl.DataFrame(
            {
                "item_id": self.item_ids,
                "title": titles,
                "description": [invent_description(int(topic), generator) for topic in topics],
                "genre": [TOPICS[topic].genre for topic in topics],
                "topic": [TOPICS[topic].name for topic in topics],
            }
        )

    def interactions(self) -> pl.DataFrame:
        """Return user_id, item_id (text) and timestamp (seconds), by user and time."""
        choices, lengths = self._choices
        steps = np.arange(choices.shape[1])
        shown = steps[None, :] >= choices.shape[1] - lengths[:, None]  # (B, L), the last `length` steps are real
        users, _ = np.nonzero(shown)
        noise = self._generator("times").integers(0, _DAY // 2, size=choices.shape)
        times = _START_TIME + steps[None, :] * 7 * _DAY + noise
        return pl.DataFrame(
            {
                "user_id": [f"U{user + 1:05d}" for user in users],
                "item_id": np.array(self.item_ids)[choices[shown]].tolist(),
                "timestamp": times[shown].astype(np.int64),
            }
        )

    @property
    def item_ids(self) -> list[str]:
        """The ids of the films, `M0001` onwards, in catalogue order."""
        width = max(4, len(str(self.num_items)))
        return [f"M{item + 1:0{width}d}" for item in range(self.num_items)]

    @property
    def topic_names(self) -> list[str]:
        """The words that name the topics in use."""
        return [topic.name for topic in TOPICS[: self.num_topics]]

    @cached_property
    def release_class(self) -> NDArray[np.int64]:
        """0 for a film that is out, 1 for a new release known at validation time, 2 for one known only at test time."""
        _, topics = self._titles
        generator = self._generator("releases")
        classes = np.zeros(self.num_items, dtype=np.int64)
        per_topic = self.new_release_share * self.num_items / self.num_topics
        for topic in range(self.num_topics):
            members = generator.permutation(np.flatnonzero(topics == topic))
            # Rounded up and down in turn, so that the share holds over the whole catalogue.
            new = int((topic + 1) * per_topic + 1e-9) - int(topic * per_topic + 1e-9)
            classes[members[:new]] = 1 + (np.arange(new) + topic) % 2
        return classes

    def corpus(self, seed: int, num_documents: int, num_candidates: int = 20) -> Iterator[str]:
        """Yield reading exercises in the words of the recommendation prompt, as plain text.

        Titles are invented anew and none of the catalogue's is used; no user of this world and no interaction
        enters. The first word and the word behind each title are topic words; the answer is the candidate that
        carries the first word.

        Args:
            seed: Draws the documents.
            num_documents: How many.
            num_candidates: Titles to choose from in each.
        """
        generator = np.random.default_rng([seed, 1])
        titles, _ = invent_titles(4000, generator, exclude=frozenset(self._titles[0]))
        names = [topic.name for topic in TOPICS]
        for _ in range(num_documents):
            drawn = [titles[i] for i in generator.choice(len(titles), num_candidates + 3, replace=False)]
            tags = generator.permutation(len(names))[np.arange(num_candidates) % len(names)]
            answer = int(generator.integers(min(num_candidates, len(names))))
            watched = ",".join(f'"{title}"' for title in drawn[num_candidates:])
            candidates = ",".join(f'"{title}"{names[tag]}' for title, tag in zip(drawn, tags, strict=False))
            yield (
                f"{names[tags[answer]]} is a user representation.This user has watched {watched} in the previous. "
                f"Recommend one next movie for this user to watch next from the following movie title set, "
                f'{candidates}. The recommendation is "{drawn[answer]}"'
            )

    def _generator(self, purpose: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, *purpose.encode()])

    @cached_property
    def _titles(self) -> tuple[list[str], NDArray[np.int64]]:
        return invent_titles(self.num_items, self._generator("titles"), self.num_topics)

    @cached_property
    def _successors(self) -> NDArray[np.int64]:
        """Two hidden successors of each topic, `(topics, 2)`, each along one random cycle and in another genre."""
        generator = self._generator("drift")
        successors = np.empty((self.num_topics, 2), dtype=np.int64)
        for column in range(2):
            while True:
                cycle = generator.permutation(self.num_topics)
                successors[cycle, column] = np.roll(cycle, -1)
                if (successors[:, column] // 2 != np.arange(self.num_topics) // 2).all():
                    break
        return successors

    @cached_property
    def _choices(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Items of every user, `(B, 15)` with the real ones last, and how many are real, `(B,)`."""
        generator = self._generator("interactions")
        _, topics = self._titles
        communities = generator.integers(self.num_communities, size=self.num_items)
        popularity = -0.9 * np.log(generator.permutation(self.num_items) + 1.0)
        members = _group(topics, self.num_topics)  # (topics, widest), -1 fills
        user_communities = generator.integers(self.num_communities, size=self.num_users)
        lengths = generator.integers(9, 16, size=self.num_users)
        topic = generator.integers(self.num_topics, size=self.num_users)
        choices = np.full((self.num_users, 15), -1, dtype=np.int64)
        for step in range(15):
            topic = self._next_topics(topic, generator)
            wanted = self._wanted_class(step, generator)
            items = members[topic]  # (B, widest)
            weight = popularity[items] + 2.0 * (communities[items] == user_communities[:, None])
            weight = weight + generator.gumbel(size=items.shape)
            fits = self.release_class[items] == wanted[:, None]
            seen = (items[:, :, None] == choices[:, None, :]).any(axis=2)
            weight = np.where(fits, weight, weight - 1e3)  # a topic without such a release gives another film
            weight = np.where((~fits) & (self.release_class[items] > 0), -1e5, weight)
            weight = np.where(seen | (items < 0), -1e6, weight)
            chosen = np.take_along_axis(items, weight.argmax(axis=1)[:, None], axis=1)[:, 0]
            active = step >= 15 - lengths
            choices[active, step] = chosen[active]
        return choices, lengths

    def _next_topics(self, topics: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
        stay = generator.random(len(topics)) < 0.55
        column = (generator.random(len(topics)) >= 0.75).astype(np.int64)
        return np.where(stay, topics, self._successors[topics, column])

    def _wanted_class(self, step: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """Which release class each user's step draws from: new releases only at the last two steps."""
        cold = generator.random(self.num_users) < self.cold_target_share
        late = generator.random(self.num_users) < 0.5
        if step == 14:
            return np.where(cold, 1 + late, 0)
        return np.where(cold, 1, 0) if step == 13 else np.zeros(self.num_users, dtype=np.int64)


def _group(labels: NDArray[np.int64], num_groups: int) -> NDArray[np.int64]:
    """Return the members of each group as rows, `(num_groups, widest)`, filled up with -1."""
    groups = [np.flatnonzero(labels == group) for group in range(num_groups)]
    table = np.full((num_groups, max(len(group) for group in groups)), -1, dtype=np.int64)
    for row, group in enumerate(groups):
        table[row, : len(group)] = group
    return table


def _pick(words: tuple[str, ...], generator: np.random.Generator) -> str:
    return words[int(generator.random() * len(words))]


def _adjective(topic: int, generator: np.random.Generator) -> str:
    source = generator.random()
    if source < 0.25:
        return _pick(GENERIC_ADJECTIVES, generator)
    return _pick(TOPICS[topic].genre_adjectives if source < 0.60 else TOPICS[topic].adjectives, generator)


def _noun(topic: int, generator: np.random.Generator) -> str:
    source = generator.random()
    if source < 0.15:
        return _pick(GENERIC_NOUNS, generator)
    return _pick(TOPICS[topic if source < 0.92 else TOPICS[topic].sibling].nouns, generator)


def invent_description(topic: int, generator: np.random.Generator) -> str:
    """Return one sentence of topic, genre and generic words; half of the sentences name the topic.

    Args:
        topic: Index into `TOPICS`.
        generator: Source of randomness.
    """
    words = TOPICS[topic]
    first, second = _noun(topic, generator).lower(), _noun(topic, generator).lower()
    about = words.name.lower() if generator.random() < 0.5 else f"the {_pick(GENERIC_NOUNS, generator).lower()}"
    adjective = _adjective(topic, generator).lower()
    article = "An" if adjective[0] in "aeiou" else "A"
    return f"{article} {adjective} {words.genre.lower()} film about {about}, {first} and {second}."
