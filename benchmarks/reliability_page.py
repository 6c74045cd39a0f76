"""Write docs/reliability.md: each attack, the command that makes it, what the stored report says, what does not hold.

Every figure of the page comes out of benchmarks/results; an attack whose report is not stored is said to be not run.

Run: python benchmarks/reliability_page.py
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "reliability.md"


@dataclass(frozen=True)
class Attack:
    """A section of the page.

    Attributes:
        title: Its heading.
        done: What is done.
        holds: What holds, and what does not.
        command: What measures it; None where tests alone do.
        report: The name of the stored report.
        figures: From the report to pairs of a name and a figure.
        tests: Files of tests that keep it.
    """

    title: str
    done: str
    holds: str
    tests: str
    command: str | None = None
    report: str | None = None
    figures: Callable[[Mapping[str, Any]], list[tuple[str, str]]] = lambda _: []


def _load(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    memory, seconds = found["memory_mb"], found["recommend_seconds"]
    return [
        ("clients, seconds", f"{found['clients']}, {found['seconds']:g}"),
        *((f"answers {status}", f"{count:,}") for status, count in found["statuses"].items()),
        ("recommendations, p50 and p95", f"{seconds['p50']} s, {seconds['p95']} s"),
        ("memory, second and last tenth", f"{memory['early']} MB, {memory['late']} MB"),
        ("machine", found["machine"]),
    ]


def _stores(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("kills", f"{found['kills']}"),
        ("confirmed items and events", f"{found['confirmed_items']:,}, {found['confirmed_events']:,}"),
        ("lost", f"{found['lost']}"),
        ("half a line put aside", f"{found['torn_ends_put_aside']}"),
    ]


def _kills(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    works = [(f"{name}: kills, wrong", f"{one['kills']}, {one['wrong']}") for name, one in found["works"].items()]
    return [("kills in all, wrong", f"{found['kills']}, {found['wrong']}"), *works]


def _bytes(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    counts = [(name, f"{count:,}") for name, count in found["outcomes"].items()]
    return [
        ("readers, cases", f"{len(found['readers'])}, {found['cases']:,}"),
        *counts,
        ("longest case", f"{found['slowest_s']} s"),
        ("most growth of memory", f"{found['most_memory_growth_mb']} MB"),
    ]


def _openapi(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    statuses = [(f"answers {status}", f"{count:,}") for status, count in found["statuses"].items()]
    return [("requests", f"{found['requests']:,}"), *statuses, ("500 or more", f"{found['wrong']}")]


def _tokens(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    medians = [(f"median, {name}", f"{value:,.0f} ns") for name, value in found["median_ns"].items()]
    ts = [(f"Welch's t, {name}", f"{value}") for name, value in found["welch_t_against_none_right"].items()]
    return [("refusals", f"{found['refusals']:,}"), *medians, *ts]


ATTACKS = (
    Attack(
        "Load",
        "64 clients ask one service without a pause; some post events and add items.",
        "No error but 429 counts as right. Clients and service share the machine, so the seconds are those of a "
        "full one.",
        "`tests/serving/test_micro_batches.py`",
        "python benchmarks/serving_load.py",
        "serving_load",
        _load,
    ),
    Attack(
        "Kills of what the service writes",
        "A process writes added items and events; it is killed with SIGKILL, and all that it had confirmed must "
        "be there.",
        "An end of the journal that was cut off is put aside and told.",
        "`tests/serving/test_process.py`, `test_added_items.py`",
        "python benchmarks/serving_kills.py",
        "serving_kills",
        _stores,
    ),
    Attack(
        "Kills of training, saving, adding, serving and bulk",
        "Each is done undisturbed, then killed with SIGKILL at random moments and taken up again. What comes "
        "out must be "
        "the same bytes; a checkpoint must load and be of one version after every kill.",
        "Files of a checkpoint move into their folder as one step: what a killed process left is put in place "
        "by the next "
        "one that reads or writes there, which needs the permission to write. A run over many users that is killed "
        "after its table is in place is finished: called again, it says that the table is there already.",
        "`tests/test_files.py`, `tests/training/test_resume.py`, `tests/batch_inference/test_recommend_users.py`",
        "python benchmarks/kills.py",
        "kills",
        _kills,
    ),
    Attack(
        "Random bytes",
        "Every reader of a file or of a request gets random bytes, random text, truncations, flipped bits, "
        "spliced blocks, "
        "and JSON or YAML with a value of another kind.",
        "Each is read or refused by an error of the project. A damaged parquet file can make Polars print a "
        "line of its "
        "own on standard error before the error. `AutoModel.from_pretrained` reads `config.json` before this "
        "package does: "
        "of a damaged one it says so in its own words.",
        "`tests/test_random_bytes.py`",
        "python benchmarks/random_bytes.py",
        "random_bytes",
        _bytes,
    ),
    Attack(
        "Requests made from the OpenAPI",
        "schemathesis makes valid and invalid requests of every route.",
        "No status of 500 or more, no stack trace.",
        "`tests/serving/test_any_request.py`, `test_every_field.py`",
        "python benchmarks/openapi_fuzz.py",
        "openapi_fuzz",
        _openapi,
    ),
    Attack(
        "Tokens",
        "Wrong, missing, reading tokens for writes; token files that all can read; the time of a refusal by how "
        "much of "
        "the token is right.",
        "Tokens are compared by their digests, all of them, in constant time. Who can guess billions of times "
        "is for the "
        "proxy before the service to stop.",
        "`tests/serving/test_tokens.py`",
        "python benchmarks/token_timing.py",
        "token_timing",
        _tokens,
    ),
    Attack(
        "Hostile titles",
        "Titles with slots, special tokens (also full-width or hidden by invisible characters), instructions, control "
        "characters, changes of direction, markup, tables, formulas, and of a megabyte go through preparing, training "
        "data, prompts, ranking, HTTP, MCP, cards, pages and logs.",
        "No other item's rows, labels, slots or answers change, and no score of a request that does not name the item. "
        "Where a prompt lists its candidates the LLM reads all of them: such a title can move the others' "
        "scores as any "
        "title can, and one of many tokens takes room from the history unless `max_title_tokens` is set. "
        "`max_title_characters` bounds it.",
        "`tests/test_hostile_titles.py`, `tests/test_prompt_properties.py`",
    ),
    Attack(
        "Bombs, links, pickles",
        "Gzip and parquet files that unfold to far more than they are, YAML with references upon references, "
        "deep nesting, "
        "archives with compressed parts, links out of a folder that is pushed.",
        "Refused by size or metadata before memory fills; no pickle is run anywhere.",
        "`tests/test_random_bytes.py`, `tests/hub/test_publish.py`, `tests/training/test_importing.py`",
    ),
    Attack(
        "Stores and clocks",
        "SQLite locked by another process, Redis gone and back, a clock that goes backwards.",
        "503 with `Retry-After`, nothing lost; durations are measured by the monotonic clock, and an event "
        "without a time "
        "is never put before the user's last one.",
        "`tests/serving/test_user_histories.py`",
    ),
)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def page() -> str:
    """Return the page."""
    lead = (
        "What is done to the package on purpose, what holds, and what does not. Each figure is that of the stored "
        "report, which the command beside it writes with `--output`; `python benchmarks/reliability_page.py` writes "
        "this page from the reports."
    )
    parts = [f"# Reliability\n\n{_wrapped(lead)}\n"]
    for attack in ATTACKS:
        parts.append(f"\n## {attack.title}\n\n{_wrapped(attack.done)}\n\n{_wrapped(attack.holds)}\n")
        if attack.command is None or attack.report is None:
            parts.append(f"\nTests: {attack.tests}.\n")
            continue
        path = RESULTS / f"{attack.report}.json"
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        where = f"`benchmarks/results/{attack.report}.json`"
        rows = [("not run yet", "-")] if found is None else attack.figures(found)
        parts.append(
            f"\n`{attack.command}` ({where}); tests: {attack.tests}.\n\n| measured | figure |\n| --- | --- |\n"
            + "".join(f"| {name} | {value} |\n" for name, value in rows)
        )
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
