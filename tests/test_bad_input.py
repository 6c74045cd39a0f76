"""Bad input, end to end: each ends with one clear error (exit code 2 of the command line) and nothing half-written.

What concerns raw data alone is tested in `tests/data`.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
import unicodedata
from pathlib import Path

import polars as pl
import pytest
from transformers import AutoModel, AutoTokenizer, LlamaConfig, LlamaForCausalLM, pipeline

from allmrec_hf.data.prepared import PreparedData
from allmrec_hf.errors import ALLMRecError, CheckpointError
from allmrec_hf.training.llms import load_llm
from tests.command_line import each_stage, in_own_process, refused, run
from tests.small_run import write_data
from tests.tiny import tiny_llm

HOSTILE = [
    '"<U> is a user representation.{history}{candidates}{title}{vector}',
    'Ten "quotes" and \\"backslashes\\"</s><s>',
    "Line\nbreak\r\nand\ttab",
    "Red \x1b[31malert\x1b[0m \x07\x00\x9b31m",
    "Turned \u202egnirts\u2028 around",
    "word " * 2000,
    "🎬🍿🎥",
    "| pipe | <script>alert(1)</script> [link](javascript:x) `code` *star*",
    "---\nlicense: mit\n---",
]


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def copied(finished_run, tmp_path):
    return Path(shutil.copytree(finished_run, tmp_path / "copied", ignore=shutil.ignore_patterns("checkpoints")))


# -- histories


def test_a_history_longer_than_the_models_is_read_from_its_end(finished_run, small_data):
    recommend = pipeline("recommendation", model=str(finished_run))
    long = list(range(1, 61))
    assert recommend.model.cf_encoder.config.max_history_length == 12
    assert recommend.processor.history_tensors([long])["history_ids"].tolist() == [long[-12:]]
    found = recommend({"history": small_data.catalog.item_ids[:60]}, top_k=60)
    assert {item["item_id"] for item in found} == set(small_data.catalog.item_ids[60:])  # the rest counts as seen


@pytest.mark.parametrize("history", ["", " , ,"])
def test_an_empty_history_ends_with_two(finished_run, history):
    assert "the history is empty" in refused("recommend", "--model", finished_run, "--history", history)


# -- checkpoints


NEEDED = {
    "model.safetensors": r"model\.safetensors|weights",
    "config.json": r"config\.json",
    "items.parquet": r"items\.parquet",
    "tokenizer.json": r"tokenizer",
    "processor_config.json": r"processor",
}


@pytest.mark.parametrize("name", list(NEEDED))
@pytest.mark.parametrize("damage", ["missing", "truncated"])
@pytest.mark.parametrize("command", ["evaluate", "recommend"])
def test_a_missing_or_truncated_file_of_a_checkpoint_ends_with_two(copied, small_parts, name, damage, command):
    path = copied / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    rest = {"evaluate": ("--data", small_parts / "data"), "recommend": ("--history", "M0001")}[command]
    told = refused(command, "--model", copied, *rest)
    assert re.search(NEEDED[name], told), told
    assert str(copied) in told


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "[]"),
        ("config.json", {"joint_dim": "wide"}),
        ("config.json", {"item_embedding": "both"}),
        ("config.json", {"cf_config": "sasrec"}),
        ("processor_config.json", "[]"),
        ("processor_config.json", {"max_length": "long"}),
        ("processor_config.json", {"prompt": {"prompt": "no slots"}}),
        ("tokenizer.json", "{}"),
    ],
)
def test_json_of_another_shape_ends_with_two(copied, name, content):
    path = copied / name
    if not isinstance(content, str):
        content = json.dumps(json.loads(path.read_text()) | content)
    path.write_text(content)
    assert str(copied) in refused("recommend", "--model", copied, "--history", "M0001")


def test_a_foreign_weights_file_ends_with_two(copied, small_parts):
    shutil.copy(small_parts / "llm" / "model.safetensors", copied / "model.safetensors")
    told = refused("recommend", "--model", copied, "--history", "M0001")
    assert re.search(r"the weights of .* are not those of its config.json: \d+ missing", told)


@pytest.mark.parametrize("command", ["evaluate", "recommend"])
def test_a_foreign_checkpoint_ends_with_two(small_parts, command):
    rest = {"evaluate": ("--data", small_parts / "data"), "recommend": ("--history", "M0001")}[command]
    assert "is a llama model" in refused(command, "--model", small_parts / "llm", *rest)


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_backbone_ends_with_two(copied, small_parts, damage):
    path = copied / "backbone" / "model.safetensors"
    path.unlink() if damage == "missing" else path.write_bytes(path.read_bytes()[:-40])
    told = refused("evaluate", "--model", copied / "backbone", "--data", small_parts / "data")
    assert str(copied / "backbone") in told


def test_a_missing_text_encoder_is_named_when_items_are_added(copied, tmp_path):
    shutil.rmtree(copied / "text_encoder")
    (tmp_path / "new.csv").write_text("item_id,title\nN1,New\n")
    before = contents(copied)
    told = refused("add-items", "--model", copied, "--items", tmp_path / "new.csv")
    assert "text_encoder" in told
    assert contents(copied) == before


# -- the base LLM and its tokenizer


def test_a_base_llm_that_is_gone_ends_with_two(copied, small_parts):
    config = copied / "config.json"
    config.write_text(config.read_text().replace(str(small_parts / "llm"), "/gone/llm"))
    told = refused("recommend", "--model", copied, "--history", "M0001")
    assert "the base LLM '/gone/llm' of this checkpoint cannot be loaded" in told
    assert AutoModel.from_pretrained(copied, language_model=None).language_model is None


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_truncated_llm_is_refused_for_training(small_parts, tmp_path, name):
    llm = Path(shutil.copytree(small_parts / "llm", tmp_path / "llm"))
    path = llm / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"the LLM .* cannot be loaded"):
        load_llm(str(llm), None, {})


def test_an_llm_of_another_width_ends_with_two(copied, small_parts, tmp_path):
    config = LlamaConfig(**{**tiny_llm().config.to_dict(), "hidden_size": 16, "num_attention_heads": 2, "head_dim": 8})
    LlamaForCausalLM(config).save_pretrained(tmp_path / "narrow")
    path = copied / "config.json"
    path.write_text(path.read_text().replace(str(small_parts / "llm"), str(tmp_path / "narrow")))
    told = refused("recommend", "--model", copied, "--history", "M0001")
    assert "the projectors were trained for an LLM of width d_llm = 32" in told


@pytest.mark.parametrize("command", ["evaluate", "recommend"])
def test_a_tokenizer_of_another_llm_ends_with_two(copied, small_parts, command):
    tokenizer = AutoTokenizer.from_pretrained(copied)
    tokenizer.add_tokens(["foreign"])
    tokenizer.save_pretrained(copied)
    rest = {"evaluate": ("--data", small_parts / "data"), "recommend": ("--history", "M0001")}[command]
    assert "the tokenizer is not the one this model was trained with" in refused(command, "--model", copied, *rest)


# -- the prompt


def test_a_prompt_longer_than_the_context_is_shortened_and_says_so(finished_run, small_data, caplog):
    recommend = pipeline("recommendation", model=str(finished_run))
    request = {"history": small_data.catalog.item_ids[:10]}
    longest = recommend.processor.max_length
    assert longest == 1024  # the LLM's own
    recommend.processor.max_length = 330
    with caplog.at_level("WARNING", "allmrec_hf"):
        found = recommend(request, num_candidates=8, top_k=8)
    assert len(found) == 8
    assert re.search(
        r"prompt shortened to \d+ of 10 history items.* to fit the LLM's context of 330 tokens", caplog.text
    )
    recommend.processor.max_length = 60
    with pytest.raises(ALLMRecError, match=r"the prompt needs \d+ tokens with one history item"):
        recommend(request)


# -- hostile titles


@pytest.fixture(scope="module")
def hostile_data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile") / "data"
    data = write_data(folder)
    titles = data.catalog.frame["title"].to_list()
    titles[: len(HOSTILE)] = HOSTILE
    frame = data.catalog.frame.with_columns(pl.Series("title", titles), pl.Series("description", titles[::-1]))
    frame.write_parquet(folder / "items.parquet")
    return folder


def no_control_characters(text):
    return not [c for c in text if unicodedata.category(c) in ("Cc", "Zl", "Zp") and c not in "\n\t"]


def test_hostile_titles_pass_the_whole_path_and_command_no_terminal(hostile_data, small_parts, tmp_path):
    output = tmp_path / "run"
    parts = ("--llm", small_parts / "llm", "--text-encoder", small_parts / "text_encoder")
    steps = (*each_stage("max-steps", 2), *each_stage("per-device-train-batch-size", 4))
    steps = (*steps, "--align.joint-dim", 8, "--project.warm-start-steps", 0)
    trained = run("train", "--data", hostile_data, "--output", output, *parts, *steps)
    assert trained.exit_code == 0, trained.output
    evaluated = run("evaluate", "--model", output, "--data", hostile_data, "--max-users", 5, "--protocol", "paper")
    ids = PreparedData.load(hostile_data).catalog.item_ids
    ask = ("recommend", "--model", output, "--history", ids[20], "--candidates", ",".join(ids[: len(HOSTILE)]))
    asked, as_json = run(*ask), run(*ask, "--json")
    unknown = run("recommend", "--model", output, "--history", f"{ids[20]},\x1b[31mred\u202e")
    refusal = run("recommend", "--model", output, "--history", "\x1b[31mred[bold]")
    assert refusal.exit_code == 2
    for result in (trained, evaluated, asked, as_json, unknown, refusal):
        assert no_control_characters(result.stdout + result.stderr), result.output
    assert [evaluated.exit_code, asked.exit_code, as_json.exit_code, unknown.exit_code] == [0, 0, 0, 0]
    assert len(asked.stdout.splitlines()) == len(HOSTILE) + 1  # no title breaks its line
    assert "[bold]" in refusal.stderr  # markup is text
    card = (output / "README.md").read_text()
    assert "<script>" not in card
    assert card.count("\n---\n") == 1


def test_hostile_item_ids_command_no_terminal_either(copied, tmp_path):
    frame = pl.DataFrame({"item_id": ["N\x1b[31m1"], "title": ["New"]})
    frame.write_parquet(tmp_path / "new.parquet")
    assert run("add-items", "--model", copied, "--items", tmp_path / "new.parquet").exit_code == 0
    found = run("recommend", "--model", copied, "--history", "M0001", "--candidates", "N\x1b[31m1,M0002")
    assert found.exit_code == 0
    assert no_control_characters(found.stdout)
    assert "N\\u001b[31m1" in found.stdout


# -- a full disk


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["safetensors", "items", "sync"])
def test_a_disk_that_fills_while_items_are_added_changes_nothing(copied, tmp_path, monkeypatch, where):
    (tmp_path / "new.csv").write_text("item_id,title\nN1,New\n")
    before = contents(copied)
    target = {
        "safetensors": "allmrec_hf.modeling_pretrained.write_checkpoint_code",
        "items": "allmrec_hf.catalog.ItemCatalog.save",
        "sync": "allmrec_hf.files.sync",
    }[where]
    monkeypatch.setattr(target, full)
    told = refused("add-items", "--model", copied, "--items", tmp_path / "new.csv")
    assert "no space left on the disk while writing" in told
    assert contents(copied) == before
    assert [path.name for path in copied.parent.iterdir() if path.name.startswith(".")] == []


def test_a_real_limit_on_file_size_while_items_are_added_changes_nothing(copied, tmp_path):
    (tmp_path / "new.csv").write_text("item_id,title\nN1,New\n")
    before = contents(copied)
    limit = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))"
    )
    done = in_own_process("add-items", "--model", copied, "--items", tmp_path / "new.csv", before=limit)
    assert done.returncode == 2, done.stderr
    assert "error: cannot write" in done.stderr
    assert contents(copied) == before


def test_a_disk_that_fills_while_training_says_so_and_can_be_resumed(small_parts, tmp_path, monkeypatch):
    stage = ("--stage", "backbone", "--backbone.max-steps", 3)
    command = ("train", "--data", small_parts / "data", *stage, "--output", tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr("allmrec_hf.training.checkpoint.save_file", full)
        assert "no space left on the disk while writing" in refused(*command)
    assert not (tmp_path / "run" / "config.json").exists()
    assert "is not empty" in refused(*command)
    assert run(*command, "--resume").exit_code == 0


def test_a_real_limit_on_file_size_leaves_no_half_checkpoint(small_parts, tmp_path):
    limit = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))"
    )
    stage = ("train", "--data", small_parts / "data", "--stage", "backbone", "--backbone.max-steps", 2)
    done = in_own_process(*stage, "--output", tmp_path / "run", before=limit)
    assert done.returncode == 2, done.stderr
    assert "error: cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "run").rglob("*.safetensors"))
    assert not (tmp_path / "run" / "config.json").exists()
