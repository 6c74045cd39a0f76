"""`allmrec card`: write the card of a run, a checkpoint or prepared data from stored reports, or check it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .loading import located_checkpoint
from .options import ConfigOption, JsonOption, emit, say, user_errors

WRONG = 1  # the exit code of a card that --check finds fault with
DEMO = "demo"
PART_LICENSES = {"language model": "llm_license", "text encoder": "text_encoder_license", "data": "data_license"}


def card(
    source: Annotated[
        str, typer.Argument(help="Run folder, checkpoint, prepared data, a card written by --output, or `demo`.")
    ],
    report: Annotated[
        list[Path] | None,
        typer.Option(
            help="A stored report of `allmrec evaluate --output`, or a folder of them; repeat. NAME.parquet of "
            "`--per-user` beside NAME.json gives intervals. Those of the run folder are read anyway."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Write here: a folder, or NAME.md with its data in NAME.json. The source's folder by default."
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing: list placeholders and numbers that no report holds; exit 1.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="The model's name.")] = None,
    repo: Annotated[str | None, typer.Option(help="The checkpoint's id on the Hub, for the example.")] = None,
    dataset_id: Annotated[
        str | None, typer.Option(help="The data's id on the Hub; results are listed under it.")
    ] = None,
    llm_id: Annotated[str | None, typer.Option(help="The LLM's id on the Hub.")] = None,
    text_encoder_id: Annotated[str | None, typer.Option(help="The text encoder's id on the Hub.")] = None,
    license: Annotated[str | None, typer.Option(help="Licence of what was trained, or of the data.")] = None,
    llm_license: Annotated[str | None, typer.Option(help="Licence of the LLM.")] = None,
    text_encoder_license: Annotated[str | None, typer.Option(help="Licence of the text encoder.")] = None,
    data_license: Annotated[str | None, typer.Option(help="Licence of the data that it was trained on.")] = None,
    data_source: Annotated[str | None, typer.Option(help="Where the data came from, in words.")] = None,
    method: Annotated[str | None, typer.Option(help="What the checkpoint is called in the reports.")] = None,
    backbone_method: Annotated[str | None, typer.Option(help="What its backbone is called in the reports.")] = None,
    language: Annotated[list[str] | None, typer.Option(help="Language code of the titles; repeat.")] = None,
    warning: Annotated[list[str] | None, typer.Option(help="A sentence that stands first; repeat.")] = None,
    not_for: Annotated[list[str] | None, typer.Option(help="What it must not be used for; repeat.")] = None,
    json_output: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Write a card from stored reports alone: README.md, its data and `.eval_results/`; or check one.

    What is not stored and not said here stands in the card as unknown.

    **Examples**

    `allmrec card runs/games --license apache-2.0 --data-license other`

    `allmrec card runs/games --report reports/games.json --output cards/games.md`

    `allmrec card runs/games --check`

    `allmrec card data/games --license cc-by-4.0`
    """
    with user_errors():
        from ..data.prepared import INFO_FILE
        from ..hub.card_making import CardFacts

        path = Path(located_checkpoint(source)) if source == DEMO else Path(source)
        reports = report or []
        if path.is_dir() and (path / INFO_FILE).is_file():
            files, findings = _of_data(path, repo or dataset_id, license, check)
            target = output or path
        else:
            given = (llm_license, text_encoder_license, data_license)
            parts = {part: value for part, value in zip(PART_LICENSES, given, strict=True) if value is not None}
            facts = CardFacts(
                name=name,
                repo_id=repo,
                dataset_id=dataset_id,
                llm_id=llm_id,
                text_encoder_id=text_encoder_id,
                license=license,
                part_licenses=parts,
                dataset_source=data_source,
                method=method,
                backbone_method=backbone_method,
                language=language or (),
                warnings=warning or (),
                not_for=not_for or (),
            )
            files, findings = _of_model(path, reports, facts, check)
            target = output or (path if path.is_dir() else path.with_suffix(".md"))
        if check:
            _tell(findings, source, json_output)
            return
        written = _write(files, target)
        emit({"files": written}) if json_output else say("\n".join(written))


def _of_model(source: Path, reports: list[Path], facts: Any, check: bool) -> tuple[dict[str, str], list[Any]]:
    from ..hub.card import card_files
    from ..hub.card_check import check_card
    from ..hub.card_data import read_card
    from ..hub.card_making import check_source, make_card
    from ..hub.stored_reports import folder_reports, read_reports

    data = source if source.suffix != ".md" else source.with_suffix(".json")
    check_source(data)
    if not check:
        return card_files(make_card(data, reports, facts)), []
    stored = folder_reports(source) if source.is_dir() else []
    stored += [one for path in reports for one in read_reports(path)]
    return {}, check_card(_texts(source), facts.put_into(read_card(data)), stored)


def _texts(source: Path) -> dict[str, str]:
    """Return the files of a card: of a folder, or of NAME.md and the results beside it."""
    from ..checkpoint_code import EVAL_RESULTS_FILE
    from ..errors import CheckpointError
    from ..hub.card import CARD_FILE

    page = source / CARD_FILE if source.is_dir() else source.with_suffix(".md")
    results = page.parent / EVAL_RESULTS_FILE if source.is_dir() else page.with_suffix(".yaml")
    if not page.is_file():
        raise CheckpointError(f"there is no {page} to check; `allmrec card {source}` writes it")
    found = {CARD_FILE: page.read_text(encoding="utf-8", errors="replace")}
    if results.is_file():
        found[EVAL_RESULTS_FILE] = results.read_text(encoding="utf-8", errors="replace")
    return found


def _of_data(source: Path, repo_id: str | None, license: str | None, check: bool) -> tuple[dict[str, str], list[Any]]:
    from ..data.dataset_card import dataset_card_files
    from ..data.prepared import INFO_FILE, read_info
    from ..hub.card_check import check_dataset_card

    info = read_info(source / INFO_FILE)
    files = dataset_card_files(info, repo_id, license)
    if not check:
        return files, []
    texts = {
        name: (source / name).read_text(encoding="utf-8", errors="replace")
        for name in files
        if (source / name).is_file()
    }
    return {}, check_dataset_card(texts, files, info)


def _write(files: dict[str, str], target: Path) -> list[str]:
    """Write the files into a folder, or beside `NAME.md` under its name, and return their paths."""
    from ..files import written_whole

    written = []
    for name, text in files.items():
        path = target / name
        if target.suffix == ".md":
            path = target.with_suffix(Path(name).suffix)
        with written_whole(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        written.append(str(path))
    return written


def _tell(findings: list[Any], source: str, json_output: bool) -> None:
    if json_output:
        emit({"findings": [{"file": one.file, "line": one.line, "told": one.told} for one in findings]})
    elif findings:
        say("\n".join(map(str, findings)))
    else:
        say(f"{source}: no placeholder is left, and every number of its tables and results is in a stored report")
    if findings:
        raise typer.Exit(WRONG)
