"""Put the stored reports of docs/results into the pages that show them, between their markers.

python scripts/render_results.py
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl

from allmrec_hf.benchmark.published_full_ranking import full_ranking_values
from allmrec_hf.evaluation.evaluation_report import format_markdown
from allmrec_hf.evaluation.evaluator import REPORT_FORMAT

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
PAGES = (
    ROOT / "README.md",
    ROOT / "docs" / "explaining.md",
    ROOT / "docs" / "speed.md",
    *(RESULTS / f"{name}.md" for name in ("README", "quick", "beauty", "real_llm")),
)

METRICS = ("hit@1", "ndcg@10")
GROUPS = ("overall", "warm", "cold", "never_seen")


def suite_table(rows: pl.DataFrame, column: str) -> str:
    """Return Hit@1 / NDCG@10 of a suite's methods as Markdown, one column for each value of `column`.

    Args:
        rows: Of a report's `results.parquet`, one for each method, value and metric.
        column: `"dataset"`, `"scenario"` or `"group"`.
    """
    cells: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in rows.iter_rows(named=True):
        cells.setdefault((row["label"], row[column]), {})[row["metric"]] = row
    labels, columns = (list(dict.fromkeys(key[place] for key in cells)) for place in (0, 1))
    heads = [f"{name.replace('_', ' ')}, {cells[labels[0], name][METRICS[0]]['users']:,} users" for name in columns]
    lines = ["| method | " + " | ".join(heads) + " |", "| --- |" + " ---: |" * len(columns)]
    for label in labels:
        texts = [_figures(cells.get((label, name))) for name in columns]
        lines.append(f"| {label} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def _figures(found: dict[str, dict[str, Any]] | None) -> str:
    if found is None:
        return "-"
    values = [found[metric] for metric in METRICS]
    return " / ".join(
        f"{row['mean']:.3f}" + ("" if row["deviation"] is None else f" ± {row['deviation']:.3f}") for row in values
    )


def suite_tables(path: Path) -> dict[str, str]:
    """Return by marker name the tables of a stored suite: all methods under `overall`, and its other scenarios."""
    rows = pl.read_parquet(path).filter(pl.col("metric").is_in(METRICS) & pl.col("group").is_in(GROUPS))
    over_all = rows.filter(pl.col("group") == "overall")
    name, several = path.parent.name, rows["dataset"].n_unique() > 1
    place = pl.format("{}, {}", "dataset", "scenario") if several else pl.col("scenario")
    elsewhere = over_all.filter(pl.col("scenario") != "overall").with_columns(place.alias("scenario"))
    at_large = rows.filter(pl.col("scenario") == "overall")
    main = (at_large.filter(pl.col("group") == "overall"), "dataset") if several else (at_large, "group")
    found = {name: main, f"{name}-scenarios": (elsewhere, "scenario")}
    return {marker: suite_table(*table) for marker, table in found.items() if len(table[0])}


SHOWN, HELD = ("backbone", "text", "words", "fusion"), ("overall", "cold")


def real_rankers(report: dict[str, Any]) -> str:
    """Return NDCG@10 among the stored candidates of the main rankers and controls, over all and over cold targets.

    Markdown, a row for each method, a column for each data set.
    """
    found = {
        stored["title"]: {
            method: protocols["candidates"]
            for method, protocols in stored["methods"].items()
            if method.split(",")[0].split(" ")[0] in SHOWN
        }
        for stored in report["datasets"].values()
    }
    seeds = {
        title: max(len(rows["overall"]["ndcg@10"]["seeds"]) for rows in methods.values())
        for title, methods in found.items()
    }
    heads = [f"{title}, {count} seed{'s' * (count > 1)}" for title, count in seeds.items()]
    lines = ["| overall / cold | " + " | ".join(heads) + " |", "| --- |" + " ---: |" * len(heads)]
    for method in dict.fromkeys(method for methods in found.values() for method in methods):
        cells = []
        for title, methods in found.items():
            rows = methods.get(method)
            own = [] if rows is None else [rows[group]["ndcg@10"]["seeds"] if group in rows else [] for group in HELD]
            fewer = f" ({len(own[0])} seed{'s' * (len(own[0]) > 1)})" if own and len(own[0]) < seeds[title] else ""
            cells.append(" / ".join(_over_seeds(values) if values else "-" for values in own) + fewer if own else "-")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def order(paths: Iterable[Path]) -> str:
    """Return NDCG@10 after histories as they are and in random order, of reports of the shuffle test, as Markdown.

    Reports of one data set are those of its seeds; figures are means over them.
    """
    found: dict[tuple[str, int, str], list[tuple[float, float]]] = {}
    for path in paths:
        report = json.loads(path.read_text(encoding="utf-8"))
        for method, groups in report["shuffled"].items():
            if method != "popularity":
                both = (report["methods"][method]["overall"]["ndcg@10"], groups["overall"]["ndcg@10"])
                found.setdefault((report["dataset"], report["users"], method), []).append(both)
    heads = ("data set", "users", "seeds", "method", "NDCG@10", "in random order", "loss", "of each seed")
    lines = ["| " + " | ".join(heads) + " |", "| --- | ---: | ---: | --- |" + " ---: |" * 4]
    for (dataset, users, method), values in found.items():
        kept, shuffled = (statistics.mean(each) for each in zip(*values, strict=True))
        each = ", ".join(f"{before - after:.3f}" for before, after in values)
        figures = f"{kept:.3f} | {shuffled:.3f} | {kept - shuffled:.3f} | {each}"
        lines.append(f"| {dataset} | {users:,} | {len(values)} | {method} | {figures} |")
    return "\n".join(lines)


def ranker_speed(report: dict[str, Any]) -> str:
    """Return users a second of each ranker as Markdown."""
    lines = ["| ranker | tokens of a user | users a second | of likelihood's |", "| --- |" + " ---: |" * 3]
    for name, way in report["ways"].items():
        figures = f"{way['tokens_of_a_user']:,.0f} | {way['users_per_s']:.3g} | {way['times_likelihood']:.3g}"
        lines.append(f"| {name} | {figures} |")
    return "\n".join(lines)


def beauty_gap(report: dict[str, Any]) -> str:
    """Return NDCG@10 / Hit@10 of `benchmarks/beauty_gap.py` as Markdown."""
    methods = ("item-knn", "sasrec", "bsarec")
    shown = {"recipe": "the published run's recipe", "descending": "days in descending order"}
    lines = ["| seed 0 | " + " | ".join(methods) + " |", "| --- |" + " ---: |" * len(methods)]
    for way, found in report["ways"].items():
        values = [found.get(name) for name in methods]
        cells = ["-" if one is None else f"{one['ndcg@10']:.4f} / {one['hit@10']:.4f}" for one in values]
        lines.append(f"| {shown.get(way, f'days in random order {way}')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _over_seeds(means: list[float]) -> str:
    spread = f" ± {statistics.stdev(means):.3f}" if len(means) > 1 else ""
    return f"{statistics.mean(means):.3f}{spread}"


def beside_published(path: Path, dataset: str) -> str:
    """Return NDCG@10 / Hit@10 over all users of a suite's methods beside published ones, as Markdown.

    Args:
        path: The report's `results.parquet`.
        dataset: Its name among the published figures.
    """
    rows = pl.read_parquet(path).filter((pl.col("group") == "overall") & pl.col("metric").is_in(["ndcg@10", "hit@10"]))
    ours: dict[str, dict[str, str]] = {}
    for row in rows.iter_rows(named=True):
        spread = "" if row["deviation"] is None else f" ± {row['deviation']:.4f}"
        ours.setdefault(row["label"], {})[row["metric"]] = f"{row['mean']:.4f}{spread}"
    published: dict[tuple[str, str], dict[str, str]] = {}
    for value in full_ranking_values():
        if value.dataset == dataset:
            published.setdefault((value.label, value.source), {})[value.metric] = f"{value.value:.4f}"
    lines = ["| model | NDCG@10 | Hit@10 | whose |", "| --- | ---: | ---: | --- |"]
    lines += [f"| {label} | {found['ndcg@10']} | {found['hit@10']} | here |" for label, found in ours.items()]
    lines += [
        f"| {label} | {found['ndcg@10']} | {found.get('hit@10', '-')} | published: {source} |"
        for (label, source), found in published.items()
    ]
    return "\n".join(lines)


def tables() -> dict[str, str]:
    """Return Markdown by marker name."""
    seeds = (RESULTS / "demo_seeds.md").read_text(encoding="utf-8")
    found = {"demo_seeds": seeds.split("\n\n", 1)[1].strip()}
    for name in ("explanation_agreement", "free_text"):
        found[name] = (RESULTS / f"{name}.md").read_text(encoding="utf-8").strip()
    found["real_rankers"] = real_rankers(json.loads((RESULTS / "real_rankers.json").read_text(encoding="utf-8")))
    for path in sorted(RESULTS.glob("*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        if "methods" in report:
            found[path.stem] = format_markdown(report).strip()
    for path in sorted(RESULTS.glob("*/results.parquet")):
        found |= suite_tables(path)
    stored = ROOT / "benchmarks" / "results" / "ranker_speed.json"
    found["ranker_speed"] = ranker_speed(json.loads(stored.read_text(encoding="utf-8")))
    found["order"] = order(sorted((RESULTS / "order").glob("*.json")))
    gap = RESULTS / "beauty" / "gap.json"
    found["beauty_gap"] = beauty_gap(json.loads(gap.read_text(encoding="utf-8")))
    found["beauty"] = beside_published(RESULTS / "beauty" / "results.parquet", "beauty")
    return found


def rendered(page: Path) -> str:
    """Return a page with the tables of today between its markers `<!-- NAME -->` and `<!-- /NAME -->`."""
    text = page.read_text(encoding="utf-8")
    for name, table in tables().items():
        pattern = rf"<!-- {name} -->.*?<!-- /{name} -->"
        text = re.sub(pattern, f"<!-- {name} -->\n{table}\n<!-- /{name} -->".replace("\\", r"\\"), text, flags=re.S)
    return text


def main() -> None:
    """Write the pages."""
    for path in sorted(RESULTS.glob("*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        if "methods" in report and report["format"] < REPORT_FORMAT:
            print(f"{path.name} was computed before ties were averaged (format {report['format']}): evaluate again")
    for page in PAGES:
        page.write_text(rendered(page), encoding="utf-8")


if __name__ == "__main__":
    main()
