"""`allmrec benchmark`: compute the benchmark runs of a suite that are missing, and report all of them."""

from __future__ import annotations

import logging
import shlex
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..training.stage_arguments import LARGEST_SEED
from .loading import GgufFileOption, TrustOption, named_llm
from .options import ConfigOption, JsonOption, emit, say, setup_process, stderr, user_errors

if TYPE_CHECKING:
    from ..benchmark.plan import PlannedRun
    from ..benchmark.runner import Outcome, Place
    from ..benchmark.suite import Suite

FAILED = 1
Preset = Literal["default", "paper", "quick"]


def benchmark(
    output: Annotated[Path | None, typer.Option(help="Folder of the runs and the report; resumed if there.")] = None,
    suite: Annotated[
        str | None,
        typer.Option(help="YAML file, or smoke, real, published, paper-movies, paper-games, paper-beauty, paper-toys."),
    ] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder of the raw files that the suite names.")] = None,
    data: Annotated[Path | None, typer.Option(help="Prepared data in place of the suite's.")] = None,
    methods: Annotated[
        list[str] | None, typer.Option(help="Only these methods: names or labels, with commas or repeated.")
    ] = None,
    datasets: Annotated[
        list[str] | None, typer.Option(help="Only these data sets of the suite, with commas or repeated.")
    ] = None,
    llm: Annotated[
        str | None, typer.Option(help="Hub id or folder of the LLM, or a .gguf file; `demo` is a tiny one.")
    ] = None,
    gguf_file: GgufFileOption = None,
    text_encoder: Annotated[str | None, typer.Option(help="sentence-transformers id or folder; `demo`.")] = None,
    preset: Annotated[
        Preset | None,
        typer.Option(
            help="Of the stages' loops; the suite's, or default. On a CPU quick with --ranker retrieval or fusion."
        ),
    ] = None,
    ranker: Annotated[
        str | None,
        typer.Option(
            help="By what a-llmrec, random-llm and no-llm rank, as far as they can: likelihood, its forms, letter, "
            "retrieval or fusion. The suite's, or likelihood."
        ),
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds of the methods, such as 0,1,2.")] = None,
    max_users: Annotated[int | None, typer.Option(min=1, help="A seeded sample of test users.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes that share out seeds and scenarios.")] = 1,
    allow_other_counts: Annotated[
        bool, typer.Option("--allow-other-counts", help="Go on where data are not the published ones.")
    ] = False,
    keep_parts: Annotated[bool, typer.Option("--keep-parts", help="Keep trained backbones and alignments.")] = False,
    trust_remote_code: TrustOption = False,
    only_report: Annotated[bool, typer.Option("--only-report", help="Compute nothing; report what is there.")] = False,
    list_runs: Annotated[bool, typer.Option("--list", help="Show suites, or the runs of one, and stop.")] = False,
    json_output: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Compute the missing runs of a suite and write its report: one HTML page, Markdown tables and parquet.

    **Examples**

    `allmrec benchmark --suite smoke --output runs/smoke`

    `allmrec benchmark --suite real --data-root raw --llm facebook/opt-1.3b --output runs/real`

    `allmrec benchmark --data data/shop --methods popularity,sasrec,a-llmrec --llm facebook/opt-125m --output runs/shop`

    `allmrec benchmark --data data/shop --ranker fusion --preset quick --methods sasrec,a-llmrec --llm demo --output x`

    `allmrec benchmark --suite paper-beauty --list`

    `allmrec benchmark --suite published --data-root raw --output runs/published`

    `torchrun --nproc-per-node 4 -m allmrec_hf.cli.main benchmark --suite real --data-root raw --output runs/real`
    """
    with user_errors():
        from ..benchmark.launched import launched_rank
        from ..benchmark.runner import Place
        from ..benchmark.sources import why_absent
        from ..benchmark.suite import suite_names
        from ..errors import ALLMRecError

        if launched_rank() and (list_runs or only_report):
            return
        if list_runs and suite is None and data is None:
            emit({"suites": suite_names()}) if json_output else say("\n".join(suite_names()))
            return
        chosen = _suite(
            suite,
            data,
            methods,
            datasets,
            seeds,
            max_users,
            {"llm": named_llm(llm, gguf_file), "text_encoder": text_encoder, "preset": preset},
        )
        chosen = chosen if ranker is None else chosen.ranked_by(ranker)
        if list_runs:
            _list(chosen, output, json_output)
            return
        if chosen.published and len(chosen.datasets) > 1 and not chosen.only_datasets:
            absent = {spec.name: why_absent(spec, data_root, output) for spec in chosen.datasets}
            there = [name for name, reason in absent.items() if not reason]
            if not there and data_root is None:
                _tell_published(chosen, None, json_output)
                return
            for reason in filter(None, absent.values() if there else ()):
                stderr.print(f"left out: {reason}", markup=False, soft_wrap=True)
            chosen = chosen.with_datasets(there) if there else chosen
        if output is None:
            raise ALLMRecError("give the folder of the benchmark: --output DIR")
        place = Place(output, data_root, allow_other_counts, trust_remote_code)
        outcome = _run(chosen, place, jobs, keep_parts, only_report)
        if outcome.rank:  # of several processes, all compute and one tells
            return
        if json_output:
            emit(_summary(outcome))
        else:
            _tell(outcome)
            _tell_published(chosen, output)
        if outcome.failed:
            raise typer.Exit(FAILED)


def _suite(
    name: str | None,
    data: Path | None,
    methods: list[str] | None,
    datasets: list[str] | None,
    seeds: str | None,
    max_users: int | None,
    parts: dict[str, str | None],
) -> Suite:
    """Return the suite with what the command line changes; without one, the methods on the data."""
    from ..benchmark.suite_parser import load_suite, parse_suite
    from ..errors import ALLMRecError

    names = _names(methods)
    if name is not None:
        suite = load_suite(name)
    elif data is not None and names:
        content = {
            "title": f"Benchmark of {data.resolve().name}",
            "datasets": [{"name": "data", "prepared": str(data)}],
            "scenarios": ["overall"],
            "methods": list(dict.fromkeys(names)),
        }
        suite = parse_suite(content, "the command line")
    else:
        raise ALLMRecError("give --suite FILE_OR_NAME, or --data DIR with --methods NAME,NAME")
    suite = suite if data is None else suite.with_data(data)
    suite = suite.with_methods(names) if names else suite
    suite = suite.with_datasets(_names(datasets)) if datasets else suite
    changes: dict[str, Any] = {part: value for part, value in parts.items() if value is not None}
    if seeds is not None:
        changes["seeds"] = _seeds(seeds)
    if max_users is not None:
        changes["evaluation"] = replace(suite.evaluation, max_users=max_users)
    return replace(suite, **changes)


def _names(given: list[str] | None) -> list[str]:
    return [name.strip() for part in given or [] for name in part.split(",") if name.strip()]


def _seeds(text: str) -> tuple[int, ...]:
    from ..errors import ALLMRecError

    parts = text.replace(",", " ").split()
    if not parts or not all(part.isdecimal() for part in parts) or len(set(parts)) < len(parts):
        raise ALLMRecError(f"--seeds takes different whole numbers, such as 0,1,2; got {text!r}")
    found = tuple(int(part) for part in parts)
    if max(found) > LARGEST_SEED:
        raise ALLMRecError(f"--seeds takes whole numbers up to {LARGEST_SEED}; got {max(found)}")
    return found


def _list(suite: Suite, output: Path | None, json_output: bool) -> None:
    from ..benchmark.plan import plan
    from ..benchmark.runs import is_done

    found: list[tuple[PlannedRun, bool]] = [
        (planned, output is not None and is_done(output, planned.key)) for planned in plan(suite)
    ]
    if json_output:
        names = ("dataset", "scenario", "label", "method", "seed")
        emit(
            {"runs": [{name: getattr(planned.key, name) for name in names} | {"done": done} for planned, done in found]}
        )
        return
    for planned, done in found:
        say(f"{'done' if done else 'to do':<6} {planned}")
    say(f"{len(found)} runs, {sum(done for _, done in found)} done")


def _run(suite: Suite, place: Place, jobs: int, keep_parts: bool, only_report: bool) -> Outcome:
    from ..benchmark.plan import plan
    from ..benchmark.runner import Outcome, run_suite, write_report
    from ..benchmark.runs import is_done
    from ..errors import ALLMRecError

    told = partial(_setup_process, logging.getLogger("allmrec_hf").level <= logging.INFO)
    told()
    planned = plan(suite)
    try:
        outcome = Outcome(planned) if only_report else run_suite(suite, place, jobs, keep_parts, told)
    except KeyboardInterrupt:
        done = sum(is_done(place.output, planned.key) for planned in planned)
        stderr.print(f"interrupted; {done} of {len(planned)} runs are done; the same command resumes", markup=False)
        raise
    if outcome.rank:
        return outcome
    try:
        outcome.report = write_report(suite, outcome, place.output, _command())
    except ALLMRecError:
        if not outcome.failed:
            raise
    return outcome


def _setup_process(verbose: bool) -> None:
    """Set up a process whose log has a line for every run, and more only with `--verbose`."""
    setup_process(verbose)
    logging.getLogger("allmrec_hf.benchmark.runner").setLevel(logging.INFO)


def _command() -> str:
    """Return the command as it was typed, without the folders that the program lies in."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _summary(outcome: Outcome) -> dict[str, Any]:
    return {
        "runs": len(outcome.planned_runs),
        "done": outcome.done,
        "computed": outcome.computed,
        "skipped": outcome.skipped,
        "failed": outcome.failed,
        "report": None if outcome.report is None else str(outcome.report),
    }


def _tell(outcome: Outcome) -> None:
    say(f"{outcome.done} of {len(outcome.planned_runs)} runs are done, {outcome.computed} of them computed now.")
    for entry in outcome.skipped:
        say(f"Left out: {entry['dataset']}, {entry['scenario']}: {entry['reason']}")
    for entry in outcome.failed:
        names = ", ".join(str(entry[name]) for name in ("dataset", "scenario", "label"))
        stderr.print(f"failed: {names}, seed {entry['seed']}: {entry['error']}", markup=False, soft_wrap=True)
    if outcome.report is not None:
        say(f"The report is in {outcome.report}.")


def _tell_published(suite: Suite, output: Path | None, json_output: bool = False) -> None:
    """Print the published figures of a suite's data sets, beside ours where `output` has finished runs."""
    from ..benchmark.plan import plan
    from ..benchmark.published_full_ranking import published_figures
    from ..benchmark.result_tables import make_tables
    from ..benchmark.runner import finished_runs
    from ..benchmark.views import grid_lines, published_grid

    names = [spec.name for spec in suite.datasets]
    figures = [value for value in published_figures(suite.published) if value.dataset in names]
    if json_output:
        emit({"published": [asdict(value) for value in figures]})
        return
    runs = [] if output is None or not figures else finished_runs(plan(suite), output)
    tables = make_tables(runs, None) if runs else None
    for dataset in names:
        grid = published_grid(dataset, figures, tables)
        if grid is not None:
            say("\n".join(["", f"{dataset}, published figures", *grid_lines(grid)]))
    if output is None and figures:
        say(
            "\nOurs stand beside them where the data are: --data-root DIR with the files that the suite names (see "
            "docs/benchmark.md), or --data DIR with prepared data of the same counts; and --output DIR."
        )
