"""Check a card: no placeholder is left, and a stored report holds every number of its tables and results."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..checkpoint_code import EVAL_RESULTS_FILE
from ..stored_values import yaml_value
from .card import CARD_FILE, ALLMRecCard, card_files
from .card_data import CARD_DATA_FILE
from .stored_reports import report_key, single_reports

PLACEHOLDER = re.compile(
    r"\{\{.*?\}\}|\{%.*?%\}|\b(?:TODO|TBD|FIXME)\b|\[?More Information Needed\]?|path/to/|\bITEM-ID-\d|\bORG/NAME\b"
    r"|\byour-(?:username|org|model|name|repo)\b|\bYOUR_[A-Z_]+\b|<(?:[A-Z][A-Z_-]*|your [^>]*|fill[^>]*)>"
    r"|\b[Ll]orem ipsum"
)
_NUMBER = re.compile(r"(?<![\w.@/-])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?(?![\w@/])")
_ROW = re.compile(r"^\s*\|.*\|\s*$")
_RULE = re.compile(r"^\s*\|(?:\s*:?-+:?\s*\|)+\s*$")


@dataclass(frozen=True, order=True)
class Finding:
    """One thing that is wrong with a card.

    Attributes:
        file: The file.
        line: Its line, from 1; 0 where it is about the whole file.
        told: What is wrong.
    """

    file: str
    line: int
    told: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.told}" if self.line else f"{self.file}: {self.told}"


def check_card(texts: Mapping[str, str], card: ALLMRecCard, stored: Iterable[Mapping[str, Any]]) -> list[Finding]:
    """Return what is wrong with the files of a card.

    A row that the stored data give must stand as they give it. Any other number in a table must at least be one that
    they hold, as precise as it is written. The numbers of `model-index` and of the evaluation results must be exactly
    those of the reports, and so must the reports inside `model_card.json` where they are stored beside it.

    Args:
        texts: The card's files: path -> text, `README.md` among them.
        card: The card's data, with the reports that its page shows.
        stored: The reports that were stored by themselves; where there are none, those of the card's data count.
    """
    stored = single_reports(stored)
    found = [*_differing_reports(card, stored)]
    for report in stored:
        if card.method in report["methods"]:
            card = card.with_report(report)
    files = card_files(card)
    for name, text in texts.items():
        if name != CARD_DATA_FILE:
            found += [Finding(name, line, f"the placeholder {words!r} is left") for line, words in _placeholders(text)]
    numbers = _Numbers([card.to_dict(), *stored])
    page, wanted = texts.get(CARD_FILE, ""), files[CARD_FILE]
    found += _table_findings(page, wanted, numbers)
    found += _index_findings(page, wanted)
    if EVAL_RESULTS_FILE in texts or EVAL_RESULTS_FILE in files:
        found += _results_findings(texts.get(EVAL_RESULTS_FILE), files.get(EVAL_RESULTS_FILE))
    return sorted(set(found))


def _placeholders(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        for match in PLACEHOLDER.finditer(line):
            yield number, match[0]


# -- the data of the card against the reports stored beside it


def _differing_reports(card: ALLMRecCard, stored: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    by_key = {report_key(report): report for report in stored}
    for report in card.reports if stored else []:
        key = report_key(report)
        about = f"the report of {key[0]}, {key[1]} split, protocol {key[2]}"
        if key not in by_key:
            yield Finding(CARD_DATA_FILE, 0, f"{about} is not among the stored reports")
            continue
        for place, value in _leaves(report):
            other = _at(by_key[key], place)
            if other != value and place[0] not in ("intervals", "versions"):
                where = " / ".join(map(str, place))
                yield Finding(CARD_DATA_FILE, 0, f"{about} has {value!r} at {where}, the stored report {other!r}")


def _leaves(values: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield from _leaves(value, (*place, name))
    elif isinstance(values, (list, tuple)):
        for number, value in enumerate(values):
            yield from _leaves(value, (*place, number))
    else:
        yield place, values


def _at(values: Any, place: tuple[Any, ...]) -> Any:
    for part in place:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return None
    return values


# -- numbers in tables


class _Numbers:
    """The numbers that stored data hold."""

    def __init__(self, stored: Iterable[Any]) -> None:
        found = {value for one in stored for _, value in _leaves(one)}
        numbers = {value for value in found if isinstance(value, (int, float)) and not isinstance(value, bool)}
        texts = [value for value in found if isinstance(value, str)]
        numbers |= {float(match[0].replace(",", "")) for text in texts for match in _NUMBER.finditer(text)}
        self.values = numbers

    def holds(self, written: str) -> bool:
        """Tell whether a number as it is written is one of them, rounded as it is."""
        plain = written.replace(",", "").lstrip("+")
        places = len(plain.partition(".")[2]) if "e" not in plain.lower() else None
        if places is None:
            return any(float(plain) == value for value in self.values)
        return any(f"{value:.{places}f}" == plain for value in self.values)


def _tables(text: str) -> Iterator[tuple[int, str, list[str]]]:
    """Yield the rows of all tables: line, the table's header, cells."""
    header, fenced = "", False
    lines = text.splitlines()
    for number, line in enumerate(lines, start=1):
        if line.lstrip().startswith(("```", "~~~")):
            fenced = not fenced
        if fenced or not _ROW.match(line):
            header = ""
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
        if number < len(lines) and _RULE.match(lines[number]) and not header:
            header = " | ".join(cells)
        elif not _RULE.match(line):
            yield number, header, cells


def _labels(cells: list[str]) -> tuple[str, ...]:
    """Return a row's cells with the numbers left open."""
    return tuple(_NUMBER.sub("#", cell) for cell in cells)


def _table_findings(page: str, wanted: str, numbers: _Numbers) -> Iterator[Finding]:
    """Yield the numbers of tables that the stored data do not give."""
    given: dict[tuple[str, tuple[str, ...]], list[list[str]]] = {}
    for section, header, cells in _sections(wanted):
        given.setdefault((section + header, _labels(cells)), []).append(cells)
    lines = [number for number, _, _ in _tables(page)]
    for line, (section, header, cells) in zip(lines, _sections(page), strict=True):
        rows = given.get((section + header, _labels(cells)), [])
        if cells in rows:
            continue
        if rows:
            shown = " | ".join(rows[0])
            yield Finding(CARD_FILE, line, f"the row {' | '.join(cells)!r} differs from the stored data: {shown!r}")
            continue
        for cell in cells:
            for match in _NUMBER.finditer(cell):
                if not numbers.holds(match[0]):
                    yield Finding(CARD_FILE, line, f"no stored report holds the number {match[0]}")


def _sections(text: str) -> Iterator[tuple[str, str, list[str]]]:
    """Yield the rows of all tables with the headings they stand under: a metric has one row in each group's table."""
    lines = text.splitlines()
    for number, header, cells in _tables(text):
        above: list[str] = []
        for line in reversed(lines[: number - 1]):
            if line.startswith("**") and not above:
                above.append(line)
            elif line.startswith("#"):
                above.append(line)
                break
        yield _NUMBER.sub("#", " / ".join(above)), header, cells


# -- results for machines


def _front_matter(text: str) -> Any:
    if not text.startswith("---\n"):
        return {}
    try:
        return yaml_value(text.split("\n---\n", 1)[0].removeprefix("---\n")) or {}
    except ValueError:
        return None


def _index_findings(page: str, wanted: str) -> Iterator[Finding]:
    own, given = _front_matter(page), _front_matter(wanted)
    if not isinstance(own, Mapping):
        yield Finding(CARD_FILE, 1, "its metadata are no YAML")
        return
    stored = dict(_index_numbers(given))
    for place, value in _index_numbers(own):
        if place not in stored:
            yield Finding(CARD_FILE, 1, f"model-index: no stored report holds {' / '.join(place)} ({value})")
        elif stored[place] != value:
            yield Finding(
                CARD_FILE, 1, f"model-index: {' / '.join(place)} is {value}, and {stored[place]} in the stored report"
            )


def _index_numbers(metadata: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for model in metadata.get("model-index") or []:
        for result in model.get("results") or []:
            data = result.get("dataset") or {}
            place = tuple(str(data.get(name)) for name in ("name", "config", "split"))
            for metric in result.get("metrics") or []:
                yield (*place, str(metric.get("type"))), metric.get("value")


def _results_findings(text: str | None, wanted: str | None) -> Iterator[Finding]:
    if text is None:
        yield Finding(EVAL_RESULTS_FILE, 0, "is missing; `allmrec card` writes it")
        return
    try:
        own = yaml_value(text) or []
        entries = [(str(entry["dataset"]["id"]), str(entry["dataset"]["task_id"]), entry) for entry in own]
    except (ValueError, KeyError, TypeError) as error:
        yield Finding(EVAL_RESULTS_FILE, 0, f"holds no evaluation results ({error})")
        return
    stored = {(entry["dataset"]["id"], entry["dataset"]["task_id"]): entry for entry in yaml_value(wanted or "[]")}
    for dataset, task, entry in entries:
        given = stored.get((dataset, task))
        if given is None:
            yield Finding(EVAL_RESULTS_FILE, 0, f"no stored report holds {task} of {dataset} ({entry.get('value')})")
        elif given["value"] != entry.get("value"):
            told = f"{task} of {dataset} is {entry.get('value')}, and {given['value']} in the stored report"
            yield Finding(EVAL_RESULTS_FILE, 0, told)
        elif given.get("notes") != entry.get("notes"):
            yield Finding(EVAL_RESULTS_FILE, 0, f"the notes of {task} of {dataset} are not those of the stored report")


# -- cards of data


def check_dataset_card(texts: Mapping[str, str], wanted: Mapping[str, str], info: Mapping[str, Any]) -> list[Finding]:
    """Return what is wrong with the card of prepared data.

    Args:
        texts: Its files, `README.md` and `eval.yaml`.
        wanted: The same as they are rendered from `dataset.json`.
        info: The content of `dataset.json`.
    """
    found: list[Finding] = []
    for name, text in wanted.items():
        if name not in texts:
            found.append(Finding(name, 0, "is missing; `allmrec card` writes it"))
            continue
        found += [
            Finding(name, line, f"the placeholder {words!r} is left") for line, words in _placeholders(texts[name])
        ]
        if name == CARD_FILE:
            found += _table_findings(texts[name], text, _Numbers([info]))
        elif _loaded(texts[name]) != _loaded(text):
            found.append(Finding(name, 0, "its tasks are not those of the prepared data; `allmrec card` writes it"))
    return sorted(set(found))


def _loaded(text: str) -> Any:
    try:
        return (yaml_value(text) or {}).get("tasks")
    except (ValueError, AttributeError):
        return None
