"""The page's parts as HTML. Titles are text from outside: every one is escaped and isolated from its surroundings."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..explaining.nearest_words import visible_text
from .page_model import Place, Placement
from .ranked_lists import ListedItem, RankedList

LONGEST_SHOWN = 160  # characters of a title
KINDS_AT_FIRST = 8  # of histories; the others are folded away
WORDS = {
    "likelihood": ("LLM", "how likely the language model finds the title"),
    "likelihood_sum": ("LLM sum", "how likely the language model finds the title"),
    "likelihood_mean": ("LLM mean", "how likely the language model finds a word of the title"),
    "likelihood_calibrated": ("LLM gain", "how much likelier the user makes the title to the language model"),
    "likelihood_vector_gain": ("LLM vectors", "how much likelier the vectors make the title to the language model"),
    "zero_shot": ("LLM titles", "how much likelier the history's titles make this one to the language model"),
    "letter": ("LLM letter", "which letter of the list the language model picks"),
    "retrieval": ("LLM vector", "how near the language model's vectors of user and item are"),
    "cf": ("CF", "what people with like histories chose (collaborative filtering)"),
    "text": ("Text", "how alike the texts of item and history are"),
    "words": ("Words", "which rare words the texts of item and history share"),
    "fusion": ("Fusion", "all of them, weighted by how popular the item is"),
    "fusion_sum": ("Sum", "all of them with one weight each"),
    "fusion_ranks": ("Ranks", "the ranks of all of them"),
    "likelihood_without": ("LLM alone", "the title's likelihood without the user"),
    "popularity": ("Popularity", "how often the item was chosen"),
}


def shown_title(title: str) -> str:
    """Return a title as text to show: control and direction characters written out, cut where it is very long."""
    text = visible_text(" ".join(title[: 10 * LONGEST_SHOWN].split()))
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 1]}…"


def safe(title: str) -> str:
    """Return a text from outside as HTML, isolated from the direction of what stands around it."""
    return f'<bdi dir="auto">{html.escape(shown_title(title))}</bdi>'


def word(ranker: str) -> str:
    """Return the short name of a ranker, escaped."""
    return html.escape(WORDS.get(ranker, (ranker, ""))[0])


def meaning(ranker: str) -> str:
    """Return what a ranker goes by, escaped."""
    return html.escape(WORDS.get(ranker, ("", "a ranker of this checkpoint"))[1])


def figure(value: float) -> str:
    """Return a score with about three digits."""
    kind = ".3f" if abs(value) < 1 else ".2f" if abs(value) < 1000 else ".3g"
    return f"{value:{kind}}".replace("-", "\u2212")


def signed(value: float) -> str:
    """Return a number with its sign."""
    return f"{value:+.2f}".replace("-", "\u2212")


def message(kind: str, what: str, todo: str = "", title: str = "") -> str:
    """Return a card that tells what is the case and what to do.

    Args:
        kind: `empty`, `error` or `note`.
        what: What is the case.
        todo: What to do.
        title: A few words in bold.
    """
    role = "alert" if kind == "error" else "note"
    parts = [f"<strong>{html.escape(visible_text(title))}</strong>"] if title else []
    parts += [f"<p>{html.escape(visible_text(text))}</p>" for text in (what, todo) if text]
    return f'<div class="am-card am-{kind}" role="{role}">{"".join(parts)}</div>'


def empty_history() -> str:
    """Return what stands in place of a result while there is no history."""
    return message(
        "empty",
        "Type a title above and pick it, or take one of the examples.",
        "Three or four items are enough.",
        "Nothing to go by yet",
    )


def ready() -> str:
    """Return what stands in place of a result whose history has changed."""
    return message("empty", "Press the button to see what follows from this history.", "", "The history is ready")


def failure(error: Exception | None) -> str:
    """Return the card of an error; one that is no user's mistake says nothing of its inside."""
    if error is None:
        return message(
            "error",
            "Something went wrong inside; the log of the server says what.",
            "Try again, or with another history.",
            "No answer",
        )
    return message("error", f"{error}.", "Change the history or the item and try again.", "This cannot be answered")


def lost() -> str:
    """Return what stands in place of a result when the server does not answer."""
    return message(
        "error", "The server does not answer, or too many people ask.", "Wait a little and try again.", "No answer"
    )


def loading(text: str) -> str:
    """Return what stands in place of a result while it is made."""
    bars = "".join(f'<div class="am-bone" style="width:{width}%"></div>' for width in (92, 78, 85, 64))
    return f'<div class="am-card am-loading" role="status"><p>{html.escape(text)}</p>{bars}</div>'


# -- lists


def legend(columns: Sequence[str]) -> str:
    """Return what each column goes by."""
    rows = "".join(f"<div><dt>{word(name)}</dt><dd>{meaning(name)}</dd></div>" for name in columns)
    return f'<dl class="am-legend">{rows}</dl>'


def _pill(name: str, rank: int, of: int, value: float, chosen: bool) -> str:
    strength = round(62 * (1 - (rank - 1) / max(1, of - 1)) + 4)
    label = f"{word(name)}: rank {rank} of {of}, score {figure(value)}"
    return (
        f'<span class="am-pill{" am-chosen" if chosen else ""}" style="--strength:{strength}%" title="{label}">'
        f'<span class="am-name">{word(name)}</span><span class="am-rank">{rank}</span>'
        f'<span class="am-value">{figure(value)}</span></span>'
    )


def _parts(item: ListedItem) -> str:
    """Return the parts of a score that has several, as small bars around zero."""
    if len(item.parts) < 2:
        return ""
    largest = max(map(abs, item.parts.values())) or 1.0
    rows = "".join(
        f'<span class="am-part">{word(name)} {_bar(value, largest)}<span>{signed(value)}</span></span>'
        for name, value in item.parts.items()
    )
    return f'<div class="am-parts"><span class="am-part">Score {figure(item.score)} =</span>{rows}</div>'


def _bar(value: float, largest: float, thin: bool = False) -> str:
    width = min(50.0, 50 * abs(value) / largest)
    side = "am-for" if value >= 0 else "am-against"
    return (
        f'<span class="am-track{" am-thin" if thin else ""}"><i class="{side}" style="width:{width:.1f}%"></i></span>'
    )


def list_html(
    found: RankedList, new_ids: Sequence[str] = (), opened: Mapping[str, str] | None = None, explains: bool = True
) -> str:
    """Return a ranked list.

    Args:
        found: The list.
        new_ids: Ids of the visitor's own items, which are marked.
        opened: By item id the HTML of the explanation that is shown below it.
        explains: Whether the items have a button that asks why.
    """
    opened, of = opened or {}, len(found.candidates)
    heads = "".join(f'<span class="am-col" title="{meaning(name)}">{word(name)}</span>' for name in found.columns)
    rows = [
        f'<div class="am-head" aria-hidden="true"><span></span><span>Item</span><span class="am-pills">{heads}</span>'
        "<span></span></div>"
    ]
    for item in found.items:
        pills = "".join(
            _pill(name, item.ranks[name], of, item.values[name], name == found.ranker) for name in found.columns
        )
        is_open = item.item_id in opened
        asked = f"Why {html.escape(shown_title(item.title), quote=True)}?"
        button = (
            f'<button type="button" class="am-why" data-item="{html.escape(item.item_id, quote=True)}" '
            f'aria-expanded="{str(is_open).lower()}" aria-label="{asked}">{"Close" if is_open else "Why?"}</button>'
        )
        new = '<span class="am-new">yours</span>' if item.item_id in new_ids else ""
        panel = f'<div class="am-panel">{opened[item.item_id]}</div>' if is_open else ""
        rows.append(
            f'<li class="am-item"><span class="am-place">{item.rank}</span><div class="am-what">'
            f'<span class="am-title">{safe(item.title)}</span> {new}<span class="am-id">{safe(item.item_id)}</span>'
            f'{_parts(item)}</div><div class="am-pills">{pills}</div>'
            f"{button if explains else '<span></span>'}{panel}</li>"
        )
    told = [*found.notes]
    if found.unknown_history:
        told.append(f"not in this catalogue, and left out: {', '.join(found.unknown_history[:5])}")
    notes = "".join(f'<p class="am-told">{html.escape(visible_text(note))}</p>' for note in told)
    lead = (
        f'<p class="am-lead">The best {len(found.items)} of {of} candidates, ranked by <b>{word(found.ranker)}</b>. '
        f"The numbers are the ranks that each way of scoring gives, 1 the best, with the score below.</p>"
    )
    return (
        f'{lead}{notes}<ol class="am-items" style="--columns:{len(found.columns)}">{"".join(rows)}</ol>'
        f"{legend(found.columns)}"
    )


def explanation_html(explanation: Mapping[str, Any]) -> str:
    """Return the bars of an explanation."""
    bars = sorted(explanation["contributions"], key=lambda one: -one["leave_one_out"]["total"])
    methods = ("leave_one_out", "gradient_x_input")
    largest = max((abs(one[method]["total"]) for one in bars for method in methods), default=0.0) or 1.0
    rows = "".join(
        f'<li><span class="am-label">{_source(one)}</span><span class="am-tracks">'
        f"{_bar(one['leave_one_out']['total'], largest)}{_bar(one['gradient_x_input']['total'], largest, True)}</span>"
        f'<span class="am-number">{signed(one["leave_one_out"]["total"])}</span></li>'
        for one in bars
    )
    nats = explanation["value"]["nats"]
    side = "likelier" if nats >= 0 else "less likely"
    notes = "".join(f'<p class="am-told">{html.escape(visible_text(note))}</p>' for note in explanation["notes"])
    return (
        f'<p class="am-lead">The language model finds this title <b>{figure(abs(nats))} nats {side}</b> than the mean '
        f"of the candidates. What speaks for it, and what against:</p>"
        f'<ul class="am-bars">{rows}</ul>{notes}'
        '<p class="am-key"><i class="am-swatch am-for"></i> for it <i class="am-swatch am-against"></i> against it. '
        "Thick bar and number: by how many nats the score falls without the item (leave-one-out); a nat is a factor of "
        "2.7. Thin bar: gradient times input.</p>"
    )


def _source(one: Mapping[str, Any]) -> str:
    return safe(one["title"]) if "title" in one else "<em>Your taste as a whole</em>"


# -- new items


def placement_html(placement: Placement) -> str:
    """Return where a new item ranks for the present history and for kinds of histories."""
    cards = "".join(_place(place) for place in placement.places)
    own = (
        f'<div class="am-places">{cards}</div>'
        if cards
        else message("empty", "Pick a history above and place the item again to see where it ranks for you.")
    )
    rankers = list(placement.kinds[0].medians) if placement.kinds else []
    heads = "".join(f"<span>{word(name)}</span>" for name in rankers)
    rows = [
        f'<li><span class="am-label">{safe(kind.name)}</span>'
        + "".join(_standing(name, kind.medians[name], placement.num_items) for name in rankers)
        + "</li>"
        for kind in placement.kinds
    ]
    rest = "".join(rows[KINDS_AT_FIRST:])
    rest = (
        f"<details><summary>The other {len(rows) - KINDS_AT_FIRST}</summary><ol>{rest}</ol></details>" if rest else ""
    )
    best = "".join(
        f"<li><b>{', '.join(f'{word(name)} {rank:,}' for name, rank in kind.best.items())}</b> for somebody who knows "
        f"{', '.join(safe(title) for title in placement.best_titles[kind.name])}</li>"
        for kind in placement.kinds[:3]
    )
    return (
        f'<h3 class="am-h">Where {safe(placement.title)} ranks for your history</h3>{own}'
        f'<h3 class="am-h">For whom it ranks high</h3><p class="am-lead">Its median rank among {placement.num_items:,} '
        "items for histories of one kind, the best kind first. A checkpoint holds no users, so these histories are "
        "made of each kind's popular items. The bars are logarithmic: a full one is rank 1.</p>"
        f'<div class="am-kinds" style="--columns:{len(rankers)}"><div class="am-khead" aria-hidden="true">'
        f"<span>Histories of</span>{heads}</div><ol>{''.join(rows[:KINDS_AT_FIRST])}</ol>{rest}</div>"
        f'<h3 class="am-h">The histories that suit it best</h3><ul class="am-best">{best}</ul>'
    )


def closeness(rank: float, of: int) -> float:
    """Return how near a rank is to the first, in per cent of the way from the last, by logarithms."""
    return 100.0 if of < 2 else 100 * max(0.0, 1 - math.log(rank) / math.log(of))


def _place(place: Place) -> str:
    among = "of all items" if place.whole else "of the candidates"
    share = closeness(place.rank, place.of)
    return (
        f'<div class="am-stat" title="{meaning(place.ranker)}"><span class="am-name">{word(place.ranker)}</span>'
        f'<span class="am-big">{place.rank:,}</span><span class="am-of">of {place.of:,} {among}</span>'
        f'<span class="am-meter"><i style="width:{share:.1f}%"></i></span></div>'
    )


def _standing(name: str, rank: float, of: int) -> str:
    share = closeness(rank, of)
    number = f"{rank:,.0f}" if rank == int(rank) else f"{rank:,.1f}"
    return (
        f'<span class="am-standing"><span class="am-sr">{word(name)} median rank </span><span>{number}</span>'
        f'<span class="am-meter"><i style="width:{share:.1f}%"></i></span></span>'
    )


def trials_html(trials: Sequence[Mapping[str, str]]) -> str:
    """Return the visitor's own items, each with a button that removes it."""
    if not trials:
        return ""
    rows = "".join(
        f'<li><span>{safe(trial["title"])}</span><button type="button" class="am-why" data-remove="{trial["item_id"]}" '
        f'aria-label="Remove {html.escape(shown_title(trial["title"]), quote=True)}">Remove</button></li>'
        for trial in trials
    )
    return (
        '<div class="am-card am-trials"><strong>Your items</strong><p>They are candidates of your recommendations. '
        "Nobody else sees them, the checkpoint stays as it is, and they are gone when you reload the page.</p>"
        f"<ul>{rows}</ul></div>"
    )


# -- comparison


def comparison_html(sides: Sequence[tuple[str, RankedList | None, str]]) -> str:
    """Return two lists beside each other.

    Args:
        sides: For each its name, its list and, where it has none, the HTML that says why.
    """
    lists = [found for _, found, _ in sides]
    ids = [[] if found is None else [item.item_id for item in found.items] for found in lists]
    both = len(set(ids[0]) & set(ids[1]))
    columns = []
    for number, (name, found, instead) in enumerate(sides):
        places = {item_id: place for place, item_id in enumerate(ids[1 - number], start=1)}
        body = (
            instead
            if found is None
            else f'<ol class="am-duel">{"".join(_duel(item, places) for item in found.items)}</ol>'
        )
        columns.append(
            f'<section class="am-side"><h3 class="am-h">{html.escape(visible_text(name))}</h3>{body}</section>'
        )
    lead = ""
    if None not in lists:
        lead = f'<p class="am-lead"><b>{both} of {len(ids[0])}</b> items stand in both lists. Arrows tell how much '
        lead += "higher or lower an item stands here than in the other list.</p>"
    return f'{lead}<div class="am-sides">{"".join(columns)}</div>'


def _duel(item: ListedItem, other: Mapping[str, int]) -> str:
    place = other.get(item.item_id)
    if place is None:
        move = '<span class="am-move am-only">only here</span>'
    elif place == item.rank:
        move = '<span class="am-move">same</span>'
    else:
        up = place > item.rank
        steps = abs(place - item.rank)
        said = f"{steps} {'higher' if up else 'lower'} than in the other list"
        move = f'<span class="am-move {"am-up" if up else "am-down"}" title="{said}">{"▲" if up else "▼"}{steps}</span>'
    return f'<li><span class="am-place">{item.rank}</span><span class="am-title">{safe(item.title)}</span>{move}</li>'
