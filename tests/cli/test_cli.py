"""The command line: every verb, its help, its JSON, its YAML file and its exit codes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import polars as pl
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from typer.main import get_command

from allmrec_hf import DEMO_CHECKPOINT, ItemCatalog, __version__
from allmrec_hf.cli.main import app
from allmrec_hf.cli.recommend import as_titles
from allmrec_hf.training.section_arguments import SECTIONS
from allmrec_hf.training.stage_arguments import RUN_WIDE
from tests.command_line import each_stage, in_own_process, refused, run, succeeded
from tests.small_run import write_data

COMMANDS = ("prepare", "train", "evaluate", "benchmark", "recommend", "explain", "add-items", "push", "demo")


@pytest.fixture
def copied(finished_run, tmp_path):
    return Path(shutil.copytree(finished_run, tmp_path / "copied"))


@pytest.fixture(scope="module")
def tables(small_data, tmp_path_factory):
    """Return a folder with the small world as raw tables."""
    folder = tmp_path_factory.mktemp("tables")
    small_data.interactions.drop("split").write_csv(folder / "log.csv")
    small_data.catalog.frame.write_csv(folder / "films.csv")
    return folder


def train_options(parts, **changes):
    options = {
        "--llm": parts / "llm",
        "--text-encoder": parts / "text_encoder",
        "--project.warm-start-steps": 2,
        "--align.joint-dim": 8,
        **changes,
    }
    loop = [*each_stage("max-steps", 3), *each_stage("per-device-train-batch-size", 16)]
    return [*loop, *(text for name, value in options.items() for text in (name, value))]


# -- help, version, exit codes


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example(command):
    text = succeeded(command, "--help").stdout
    assert re.search(r"Examples?", text)
    assert f"allmrec {command}" in text


def test_help_lists_every_command_and_version_is_printed():
    text = succeeded("--help").stdout
    assert all(command in text for command in COMMANDS)
    assert succeeded("--version").stdout == f"{__version__}\n"


def test_unknown_commands_and_options_end_with_two(small_parts):
    assert "No such command" in refused("recomend")
    assert "No such option" in refused("train", "--data", small_parts / "data", "--epoch", 3)
    assert "Missing option" in refused("train")
    assert "'slow' is not one of" in refused("train", "--preset", "slow")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "--learning-rate",
            "belongs to a stage: --backbone.learning-rate, --align.learning-rate, --project.learning-rate",
        ),
        ("--joint-dim", "belongs to a stage: --align.joint-dim"),
        ("--dtype", "belongs to a section: --llm.dtype"),
        ("--align.projector", "No such option: --align.projector"),
    ],
)
def test_an_option_without_its_stage_names_the_stages_that_have_it(option, message):
    assert message in refused("train", "--data", "x", "--output", "y", option, 1)


def test_every_option_can_be_given_on_the_command_line_and_in_yaml():
    """Every field of every section has a parameter, and every shown flag is one of the documented sections."""
    parameters = {option.name for option in get_command(app).commands["train"].params}
    for section, kind in SECTIONS.items():
        for name in kind.names():
            assert f"{section}__{name}" in parameters or (name in RUN_WIDE and name in parameters), (section, name)


# -- the whole path


def test_prepare_train_evaluate_recommend_add_items_evaluate(tables, small_parts, tmp_path):
    data, output = tmp_path / "data", tmp_path / "run"
    raw = ["--interactions", tables / "log.csv", "--items", tables / "films.csv", "--domain", "movie"]
    info = json.loads(
        succeeded("prepare", *raw, "--output", data, "--k-core", 2, "--num-candidates", 5, "--json").stdout
    )
    assert info["num_candidates"] == 5
    options = train_options(small_parts)
    done = json.loads(succeeded("train", "--data", data, "--output", output, *options, "--json").stdout)
    assert done == {"output": str(output), "stages": ["backbone", "align", "project"]}
    again = succeeded("train", "--data", data, "--output", output, *options, "--resume")
    assert "Trained backbone, align, project" in again.stdout
    evaluation = ["evaluate", "--data", data, "--max-users", 10, "--json"]
    first = json.loads(succeeded(*evaluation, "--model", output).stdout)
    assert list(first["methods"]) == ["a-llmrec", "sasrec", "popularity"]
    history = pl.read_csv(tables / "films.csv")["item_id"].to_list()[:2]
    (tmp_path / "new.csv").write_text("item_id,title,description\nN1,Silent River II,a quiet film\n")
    grown = tmp_path / "grown"
    added = json.loads(
        succeeded("add-items", "--model", output, "--items", tmp_path / "new.csv", "--output", grown, "--json").stdout
    )
    assert added == {"added": ["N1"], "items": info["counts"]["items"] + 1, "output": str(grown)}
    ranked = json.loads(
        succeeded(
            "recommend", "--model", grown, "--history", ",".join(history), "--candidates", f"N1,{history[0]}", "--json"
        ).stdout
    )
    assert {item["item_id"] for item in ranked["recommendations"]} == {"N1", history[0]}
    second = json.loads(succeeded(*evaluation, "--model", grown).stdout)
    for method in ("a-llmrec", "popularity"):
        assert second["methods"][method] == first["methods"][method]  # old items keep their scores
    told = refused(*evaluation, "--model", grown, "--protocol", "full")
    assert "has 1 items that log lacks, so the whole catalogue is not the same" in told


def test_the_word_demo_stands_for_the_tiny_parts_of_the_package(small_parts, tmp_path):
    options = train_options(small_parts, **{"--llm": "demo", "--text-encoder": "demo", "--output": tmp_path / "run"})
    succeeded("train", "--data", small_parts / "data", *options)
    used = json.loads((tmp_path / "run" / "run.json").read_text())["arguments"]
    assert used["llm"]["name"] == "demo"
    assert used["align"]["text_encoder"] == "demo"
    succeeded("recommend", "--model", tmp_path / "run", "--history", "M0001")


def test_a_share_of_the_users_is_trained_on_with_the_whole_catalogue(small_parts, tmp_path):
    given = ("train", "--data", small_parts / "data", "--stage", "backbone", "--backbone.max-steps", 2, "--train-share")
    succeeded(*given, 0.25, "--output", tmp_path / "run")
    counts = json.loads((tmp_path / "run" / "run.json").read_text())["data"]["counts"]
    assert (counts["users"], counts["items"]) == (50, 120)
    told = refused(*given, 0.5, "--output", tmp_path / "run", "--resume")
    assert "was trained on (stage backbone), which these tell apart: interactions, candidates; give the data" in told
    assert "share is 2.0; it has to be a number above 0 and at most 1" in refused(
        *given, 2, "--output", tmp_path / "other"
    )


def test_backbone_alone_is_trained_evaluated_and_refused_where_an_llm_is_needed(small_parts, tmp_path):
    output = tmp_path / "run"
    succeeded(
        "train", "--data", small_parts / "data", "--stage", "backbone", "--backbone.max-steps", 3, "--output", output
    )
    report = json.loads(succeeded("evaluate", "--model", output, "--data", small_parts / "data", "--json").stdout)
    assert list(report["methods"]) == ["sasrec", "popularity"]
    told = "is an allmrec-sasrec model; only an A-LLMRec model can recommend, explain and take new items"
    assert told in refused("recommend", "--model", output, "--history", "M0001")
    assert told in refused("explain", "--model", output, "--history", "M0001", "--item", "M0002")


def test_stage_one_alone_is_named_where_an_llm_is_needed(finished_run, small_parts):
    evaluation = ("evaluate", "--model", finished_run / "align", "--data", small_parts / "data")
    assert "trained to stage 1 only" in refused(*evaluation)
    assert "trained to stage 1 only" in refused("recommend", "--model", finished_run / "align", "--history", "M0001")


@pytest.mark.parametrize("protocol", ["candidates", "full", "paper"])
def test_evaluation_json_has_the_promised_shape(finished_run, small_parts, protocol):
    found = run(
        *("evaluate", "--model", finished_run, "--data", small_parts / "data"),
        *("--protocol", protocol, "--max-users", 12, "--json"),
    )
    report = json.loads(found.stdout)
    assert list(report["methods"]) == ["a-llmrec", "sasrec", "popularity"]
    for groups in report["methods"].values():
        assert {"overall", "warm", "cold"} <= set(groups)
        assert groups["overall"]["users"] == 12
        assert 0 <= groups["overall"]["hit@1"] <= 1
        if protocol != "paper":
            assert 0 <= groups["overall"]["ndcg@5"] <= 1
    assert report["protocol"] == protocol


def test_evaluation_is_written_to_table_files_and_card(copied, small_parts, tmp_path):
    report, ranks = tmp_path / "report.json", tmp_path / "ranks.parquet"
    found = succeeded(
        *("evaluate", "--model", copied, "--data", small_parts / "data", "--max-users", 10),
        *("--output", report, "--per-user", ranks, "--update-card"),
    )
    stored = json.loads(report.read_text())
    hit = stored["methods"]["a-llmrec"]["overall"]["hit@1"]
    assert f"{hit:.4f}" in found.stdout
    assert pl.read_parquet(ranks).height == 30
    assert f"{hit:.4f}" in (copied / "README.md").read_text()


def test_recommend_prints_ranks_titles_and_reports_unknown_items(finished_run, small_data):
    history = "M0001, Nowhere,M0002"
    found = succeeded("recommend", "--model", finished_run, "--history", history, "--top-k", 3)
    lines = found.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["rank", "1", "2", "3"]
    assert "not in the catalogue, left out: Nowhere" in found.stderr
    report = json.loads(succeeded("recommend", "--model", finished_run, "--history", history, "--json").stdout)
    assert report["unknown_history"] == ["Nowhere"]
    assert len(report["recommendations"]) == 10
    assert set(report["recommendations"][0]) == {"item_id", "title", "score", "rank", "parts"}


def test_items_are_named_by_id_or_by_title_and_never_one_for_the_other(finished_run, small_data):
    titles = [small_data.catalog.title(number) for number in (1, 2, 3)]
    command = ("recommend", "--model", finished_run, "--json", "--top-k", 3)
    expected = json.loads(succeeded(*command, "--history", "M0001,M0002", "--candidates", "M0003").stdout)
    by_title = ("--titles", titles[0].upper(), "--titles", titles[1], "--candidate-titles", titles[2])
    assert json.loads(succeeded(*command, *by_title).stdout) == expected
    with_commas = ("--titles", ", ".join(titles[:2]), "--candidates", "M0003")
    assert json.loads(succeeded(*command, *with_commas).stdout) == expected
    told = refused("recommend", "--model", finished_run, "--history", titles[0])
    assert "is the title of item M0001; what is meant by title goes into titles" in told
    assert "--titles" in told
    told = refused("recommend", "--model", finished_run, "--titles", "M0001")
    assert "is the id of an item; what is meant by id goes into history" in told
    told = refused("explain", "--model", finished_run, "--history", titles[0], "--item", "M0002")
    assert "is the title of item M0001" in told
    assert "both" in refused("recommend", "--model", finished_run, "--history", "M0001", "--titles", titles[1])


def test_a_title_with_commas_is_one_title():
    catalog = ItemCatalog.from_records({"item_id": str(n), "title": t} for n, t in enumerate(["Heat, The", "Heat"]))
    assert as_titles(catalog, ["heat, the", "Heat,Heat, The ,x"]) == ["heat, the", "Heat", "Heat", "The", "x"]
    assert as_titles(catalog, []) is None


def test_a_file_of_requests_is_served_line_by_line(finished_run, tmp_path):
    lines = [
        '{"user_id": "a", "history": ["M0001", "M0002"]}',
        "",
        '{"user_id": "b", "history": ["Nowhere"]}',
        '{"user_id": "c", ',
        '{"user_id": "d", "history": ["M0003"], "candidates": ["M0007", "M0009"]}',
    ]
    (tmp_path / "users.jsonl").write_text("\n".join(lines))
    command = ("recommend", "--model", finished_run, "--requests", tmp_path / "users.jsonl", "--top-k", 3)
    output = tmp_path / "found.jsonl"
    told = refused(*command, "--output", output)
    assert "none of the 1 history items" in told
    assert not output.exists()
    done = succeeded(*command, "--output", output, "--on-error", "return", "--batch-size", 2)
    assert "4 requests, 2 of them with an error. Written to" in done.stderr
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [set(row) for row in found] == [
        {"user_id", "recommendations"},
        {"user_id", "error"},
        {"error"},
        {"user_id", "recommendations"},
    ]
    assert "line 4, which is no JSON" in found[2]["error"]
    alone = json.loads(succeeded("recommend", "--model", finished_run, "--history", "M0001,M0002", "--json").stdout)
    ids = [[item["item_id"] for item in rows["recommendations"]] for rows in (found[0], alone)]
    assert ids[0] == ids[1][:3]
    assert {item["item_id"] for item in found[3]["recommendations"]} == {"M0007", "M0009"}
    printed = [json.loads(line) for line in succeeded(*command, "--on-error", "return").stdout.splitlines()]
    assert [set(row) for row in printed] == [set(row) for row in found]
    assert printed[2] == found[2]
    one = succeeded("recommend", "--model", finished_run, "--history", "X1", "--on-error", "return", "--json")
    assert "none of the 1 history items" in json.loads(one.stdout)["error"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the history is empty; give --history"),
        (["--requests", "nothing.jsonl"], "nothing.jsonl is no file"),
        (["--requests", "nothing.jsonl", "--history", "M0001"], "leave the others out"),
        (["--history", "M0001", "--output", "x"], "--output is for the results of --requests"),
        (["--history", "M0001", "--on-error", "ignore"], "ignore"),
    ],
)
def test_options_of_requests_are_checked_before_a_model_is_loaded(arguments, message):
    assert message in refused("recommend", "--model", "nothing", *arguments)


def test_new_items_with_columns_of_other_types_are_taken_or_refused_in_one_line(copied, tmp_path):
    new = tmp_path / "new.jsonl"
    given = ("add-items", "--model", copied, "--items", new)
    new.write_text('{"item_id": "N0", "title": "New", "genre": ["a", "b"]}\n')
    told = refused(*given)
    assert "the column 'genre' of the new items is List(String), first ['a', 'b'], but String in the catalogue" in told
    assert len(told.strip().splitlines()) == 1
    new.write_text('{"item_id": 7, "title": "New", "genre": 5, "shelf": 3}\n')
    succeeded(*given)
    grown = ItemCatalog.load(copied)
    assert grown.frame.select("item_id", "genre", "shelf").row(-1) == ("7", "5", "3")
    assert grown.frame["shelf"].null_count() == 120


def test_items_are_added_in_place(copied, tmp_path):
    (tmp_path / "new.jsonl").write_text('{"item_id": "N1", "title": "Silent River II"}\n')
    told = succeeded("add-items", "--model", copied, "--items", tmp_path / "new.jsonl").stdout
    assert "Added 1 items; the catalogue has 121 now" in told
    succeeded("recommend", "--model", copied, "--history", "N1,M0001")
    assert "1 item ids are in the catalogue already" in refused(
        "add-items", "--model", copied, "--items", tmp_path / "new.jsonl"
    )


def test_items_are_added_under_columns_of_other_names_and_those_without_title_are_named(copied, tmp_path):
    (tmp_path / "new.csv").write_text("sku,name\nN1,Silent River II\n" + "".join(f"N{n},\n" for n in range(2, 8)))
    given = ("add-items", "--model", copied, "--items", tmp_path / "new.csv")
    told = refused(*given)
    assert "new.csv lacks the columns ['item_id']; it has ['sku', 'name']" in told
    assert "where the column map asks for item_id = id; it has ['sku', 'name']" in refused(
        *given, "--column", "item_id=id"
    )
    assert "--column takes OURS=THEIRS" in refused(*given, "--column", "sku")
    done = succeeded(*given, "--column", "item_id=sku", "--column", "title=name", "--json")
    assert json.loads(done.stdout)["added"] == [f"N{number}" for number in range(1, 8)]
    assert "6 of 7 added items have no title" in done.stderr
    assert "first ['N2', 'N3', 'N4', 'N5', 'N6'];" in done.stderr


def test_new_items_are_read_from_text_files_as_they_are_said_to_be_written(copied, tmp_path):
    new = tmp_path / "new.list"
    new.write_bytes("N1::Café of Rain\nN2::Harbor\n".encode("latin-1"))
    given = ("add-items", "--model", copied, "--items", new, "--output", tmp_path / "grown")
    assert "its delimiter is given (--delimiter)" in refused(*given)
    told = ("--delimiter", "::", "--no-header", "--column", "item_id=0", "--column", "title=1")
    assert "--encoding latin-1" in refused(*given, *told)
    succeeded(*given, *told, "--encoding", "latin-1")
    catalog = ItemCatalog.load(tmp_path / "grown")
    assert [catalog.title(catalog.index(item)) for item in ("N1", "N2")] == ["Café of Rain", "Harbor"]


# -- standard output and standard error


def test_json_stands_alone_on_standard_output_of_a_real_process(finished_run, small_parts, tmp_path):
    stage = ("train", "--data", small_parts / "data", "--stage", "backbone", "--backbone.max-steps", 3)
    done = in_own_process("--verbose", *stage, "--output", tmp_path / "run", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["stages"] == ["backbone"]
    assert "INFO stage backbone" in done.stderr
    assert "Traceback" not in done.stderr


# -- the YAML file


def test_yaml_gives_options_and_flags_win(small_parts, tmp_path):
    config = tmp_path / "train.yaml"
    config.write_text(
        f"data: {{folder: {small_parts / 'data'}}}\nstage: backbone\nseed: 5\njson: true\n"
        "backbone:\n  name: sasrec\n  max_steps: 3\n  learning-rate: 1e-3\n  num_train_epochs:\n"
        "  options: {hidden_size: 16, num_layers: 1}\nllm: demo\n"
    )
    found = succeeded("train", "--config", config, "--seed", 9, "--output", tmp_path / "run")
    assert json.loads(found.stdout)["stages"] == ["backbone"]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    used = record["arguments"]["backbone"]
    assert (used["seed"], used["max_steps"], used["learning_rate"]) == (9, 3, 1e-3)
    assert used["options"] == {"hidden_size": 16, "num_layers": 1}


def test_one_value_stands_for_a_list_of_one(small_parts, tmp_path):
    config = tmp_path / "train.yaml"
    config.write_text(
        f"data: {small_parts / 'data'}\nstage: backbone\nbackbone.max-steps: 1\nbackbone.options: hidden_size=16\n"
    )
    succeeded("train", "--config", config, "--output", tmp_path / "run")
    assert json.loads((tmp_path / "run" / "backbone" / "config.json").read_text())["hidden_size"] == 16


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("outptu: x", r"unknown options \['outptu'\]; did you mean output.* known are .*stage"),
        ("align: {epohcs: 3}", r"unknown options \['align.epohcs'\]"),
        ("align: {batch_size: 3}", "did you mean align.per_device_train_batch_size"),
        ("align: {num_train_epochs: many}", "Invalid value for '--align.num-train-epochs': .*valid integer"),
        ("align: {num_train_epochs: [1, 2]}", r"align.num_train_epochs takes one value, got \[1, 2\]"),
        ("stage: everything", "'everything' is not one of"),
        ("- epochs", "must be a mapping"),
        ("epochs: [", "cannot be read as YAML"),
        ("", "must be a mapping"),
    ],
)
def test_bad_yaml_is_named(small_parts, tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    output = tmp_path / "run"
    told = refused("train", "--config", tmp_path / "bad.yaml", "--data", small_parts / "data", "--output", output)
    assert re.search(message, told), told
    assert not output.exists()


def test_recommend_and_evaluate_take_yaml_too(finished_run, small_parts, tmp_path):
    (tmp_path / "recommend.yaml").write_text(f"model: {finished_run}\ntop-k: 2\nhistory: M0001,M0002\n")
    assert len(succeeded("recommend", "--config", tmp_path / "recommend.yaml").stdout.splitlines()) == 3
    (tmp_path / "evaluate.yaml").write_text(f"model: {finished_run}\ndata: {small_parts / 'data'}\nmax_users: 5\n")
    assert "a sample of 5 of 200 users" in succeeded("evaluate", "--config", tmp_path / "evaluate.yaml").stdout


# -- user errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--backbone.options", "hidden_size"], "--backbone.options takes NAME=VALUE"),
        (["--backbone.options", "width=3"], r"has no options \['width'\]"),
        (["--backbone", "unheard"], "unknown backbone 'unheard'"),
        (["--align.num-train-epochs", "0"], "--align.num-train-epochs.: Input should be greater than or equal to 1"),
        (["--align.learning-rate", "nan"], "learning_rate must be a finite number"),
        (["--llm", "/no/such/folder"], "the LLM '/no/such/folder' cannot be loaded: there is no such folder"),
        (["--text-encoder", "./no"], r"the text encoder './no' cannot be loaded: there is no such folder"),
        (["--stage", "align"], "stage align builds on stage backbone"),
        (["--project.num-candidates", "500"], "lists 500 candidates"),
        (["--data", "/no/such/data"], "/no/such/data does not exist"),
    ],
)
def test_wrong_training_options_end_with_two_and_leave_nothing(small_parts, tmp_path, changes, message):
    output = tmp_path / "run"
    given = [*train_options(small_parts), "--data", small_parts / "data", "--output", output, *changes]
    assert re.search(message, refused("train", *given))
    assert not output.exists()


def test_an_llm_is_asked_for_where_none_is_given(small_parts, tmp_path):
    told = refused("train", "--data", small_parts / "data", "--output", tmp_path / "run")
    assert "stage project needs an LLM: --llm" in told


def test_output_folders_that_are_not_empty_are_refused_by_every_command(tables, finished_run, small_parts, tmp_path):
    (tmp_path / "kept.txt").write_text("mine")
    raw = ("--interactions", tables / "log.csv", "--items", tables / "films.csv")
    (tmp_path.parent / "new.csv").write_text("item_id,title\nN1,New\n")
    for command in (
        ("prepare", *raw),
        ("train", "--data", small_parts / "data", *train_options(small_parts)),
        ("add-items", "--model", finished_run, "--items", tmp_path.parent / "new.csv"),
        ("demo",),
    ):
        assert "is not empty" in refused(*command, "--output", tmp_path), command
        assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_a_demo_removes_no_run_that_is_not_its_own(copied, tmp_path):
    before = sorted(copied.rglob("*"))
    assert "holds no earlier demo" in refused("demo", "--output", copied, "--overwrite")
    assert sorted(copied.rglob("*")) == before
    (tmp_path / "file").write_text("mine")
    assert "is a file; give a folder" in refused("demo", "--output", tmp_path / "file")


def test_validation_numbers_of_a_model_that_learnt_from_them_carry_a_warning(finished_run, small_parts):
    command = ("evaluate", "--model", finished_run, "--data", small_parts / "data", "--max-users", 5)
    assert "was trained on validation targets" in run(*command, "--split", "validation").stderr
    assert "was trained on validation targets" not in run(*command).stderr


def test_data_of_another_catalogue_are_refused(finished_run, small_data, tmp_path):
    write_data(tmp_path / "data", keep_items="interacted")
    told = refused("evaluate", "--model", finished_run, "--data", tmp_path / "data")
    assert re.search("catalogue .* is not that of small", told)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--history", ""], "the history is empty"),
        (["--history", "X1,X2"], "none of the 2 history items"),
        (["--history", "M0001", "--candidates", "X1"], "1 of 1 candidates are not in the catalogue"),
    ],
)
def test_requests_that_cannot_be_answered_end_with_two(finished_run, arguments, message):
    assert message in refused("recommend", "--model", finished_run, *arguments)


def test_models_that_are_not_there_end_with_two(small_parts, tmp_path):
    assert "nothing" in refused("evaluate", "--model", tmp_path / "nothing", "--data", small_parts / "data")
    assert "nothing" in refused("recommend", "--model", tmp_path / "nothing", "--history", "M0001")
    assert "nothing" in refused("push", "--model", tmp_path / "nothing", "--repo", "org/name")


def test_demo_is_a_word_for_the_model(tmp_path):
    item = ItemCatalog.load(DEMO_CHECKPOINT).item_id(1)
    shown = json.loads(succeeded("recommend", "--model", "demo", "--history", item, "--json").stdout)
    assert shown["recommendations"]
    new = tmp_path / "new.csv"
    new.write_text("item_id,title\nN1,The Lost Harbor\n")
    assert "could be changed in place; give --output" in refused("add-items", "--model", "demo", "--items", new)


@pytest.mark.parametrize("name", ["./no/run", "/no/such/run", "no/such/run/at/all"])
def test_a_model_that_is_a_path_to_nowhere_is_told_on_one_line(name):
    assert "there is no such folder" in refused("recommend", "--model", name, "--history", "M0001")


def test_a_missing_llm_is_told_on_one_line_and_can_be_given_again(copied, small_parts, tmp_path):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(tmp_path / "gone")}))
    told = refused("recommend", "--model", copied, "--history", "M0001")
    assert told.count("there is no such folder") == 1
    assert "--llm" in told
    assert "Traceback" not in told
    again = ("--llm", small_parts / "llm", "--json")
    assert succeeded("recommend", "--model", copied, "--history", "M0001", *again).stdout


def test_another_llm_is_refused_and_taken_where_it_is_allowed(finished_run, small_parts, tmp_path):
    torch.manual_seed(7)
    other = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(small_parts / "llm"))
    other.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(small_parts / "llm").save_pretrained(tmp_path / "other")
    given = ("--model", finished_run, "--llm", tmp_path / "other")
    commands = {
        "recommend": ("--history", "M0001", "--json"),
        "explain": ("--history", "M0001", "--item", "M0002", "--json"),
        "evaluate": ("--data", small_parts / "data", "--max-users", 3, "--json"),
    }
    for command, more in commands.items():
        assert "--allow-other-llm" in refused(command, *given, *more)
        assert json.loads(succeeded(command, *given, *more, "--allow-other-llm").stdout)


def test_an_llm_option_that_cannot_work_is_refused_before_anything_is_trained(small_parts, tmp_path):
    given = [*train_options(small_parts), "--data", small_parts / "data", "--output", tmp_path / "run"]
    for option, value in (("--llm.dtype", "int8"), ("--llm.device-map", "nonsense"), ("--llm.device-map", "cuda:99")):
        assert value in refused("train", *given, option, value)
        assert not (tmp_path / "run").exists()


# -- many users


def test_recommend_takes_a_parquet_file_of_users(finished_run, tmp_path):
    users = pl.DataFrame({"user_id": [1, 2, 3], "history": [["M0001", "M0002"], ["X1"], ["M0003", "X2"]]})
    users.write_parquet(tmp_path / "users.parquet")
    command = ("recommend", "--model", finished_run, "--users", tmp_path / "users.parquet", "--top-k", 3)
    assert "--users needs --output" in refused(*command)
    shown = succeeded(*command, "--output", tmp_path / "found.parquet", "--rows-per-part", 2)
    assert shown.stdout.startswith("3 users, 1 without recommendations")
    found = pl.read_parquet(tmp_path / "found.parquet")
    alone = json.loads(succeeded(*command[:3], "--history", "M0001,M0002", "--top-k", 3, "--json").stdout)
    for row, one in zip(found["recommendations"][0], alone["recommendations"], strict=True):
        assert (row["item_id"], row["title"], row["rank"]) == (one["item_id"], one["title"], one["rank"])
        assert row["score"] == pytest.approx(one["score"], abs=1e-3)
    assert found["unknown_history"].to_list() == [[], [], ["X2"]]
    assert "none of the 1 history items" in found["reason"][1]
    assert "is there already" in refused(*command, "--output", tmp_path / "found.parquet")
    report = succeeded(*command, "--output", tmp_path / "found.parquet", "--overwrite", "--json").stdout
    assert json.loads(report)["without_recommendations"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--users", "u.parquet", "--requests", "r.jsonl"), "give one of them"),
        (("--users", "u.parquet", "--history", "M0001"), "--users holds the histories"),
        (("--history", "M0001", "--engine", "ray"), "are for --users"),
        (("--users", "u.parquet", "--output", "o.parquet", "--workers", 2), "--workers is for --engine ray"),
        (("--users", "u.parquet", "--output", "o.parquet"), "u.parquet is no file"),
    ],
)
def test_options_of_many_users_that_do_not_fit_are_refused(arguments, message):
    assert message in refused("recommend", "--model", "nothing", *arguments)
