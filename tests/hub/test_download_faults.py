"""Loading from a Hub that refuses, fails and breaks connections: one error that names what could not be had."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_hub import FakeHub, FakeRepo, Fault

from allmrec_hf import ALLMRecModel, ALLMRecProcessor, CheckpointError, modeling_pretrained, processing_allmrec
from allmrec_hf.part_sources import TransportError
from tests.tiny import tiny_model, tiny_processor

FAULTS = {
    "f401": {"status": 401},
    "f403": {"status": 403},
    "f404": {"status": 404},
    "f429": {"status": 429},
    "f500": {"status": 500},
    "cut": {"when": "before"},
    "half": {"when": "middle"},
}
CODE = """
import json, time
time.sleep = lambda seconds: None
from allmrec_hf import ALLMRecModel
found = {}
for name in NAMES:
    try:
        ALLMRecModel.from_pretrained(f"me/{name}")
        found[name] = None
    except Exception as error:
        found[name] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the files of a self-contained checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_processor().save_pretrained(folder)
    tiny_model().save_pretrained(folder, include_llm=True)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def told(hub: FakeHub, checkpoint: dict[str, bytes], home: Path, file: str, times: int) -> dict[str, str | None]:
    """Return what loading says for each fault on a file."""
    for name, fault in FAULTS.items():
        repo = hub.repos["model", f"me/{name}"] = FakeRepo()
        repo.commit("main", checkpoint, "all")
        hub.faults.append(Fault(rf"(GET|HEAD) /me/{name}/resolve/[^/]+/{file}$", times=times, **fault))
    done = hub.run_python(CODE.replace("NAMES", repr(list(FAULTS))), home=home)
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_what_cannot_be_downloaded_is_one_error(fake_hub, checkpoint, tmp_path, file):
    found = told(fake_hub, checkpoint, tmp_path, file, times=1000)
    for name, words in found.items():
        assert words is not None, name
        assert words.startswith("CheckpointError: cannot load the checkpoint me/"), (name, words)
        assert "\n" not in words, (name, words)
    fake_hub.faults = []
    done = fake_hub.run_python(CODE.replace("NAMES", repr(list(FAULTS))), home=tmp_path)
    assert set(json.loads(done.stdout.strip().splitlines()[-1]).values()) == {None}  # no half of a file stayed


@pytest.mark.parametrize("file", ["config.json", "processor_config.json", "README.md"])
def test_a_connection_that_breaks_after_the_first_look_is_one_error_too(tmp_path, monkeypatch, file):
    """What the client raises then is no OSError; without the page that describes it, a model is a model."""
    folder = tmp_path / "checkpoint"
    tiny_processor().save_pretrained(folder)
    tiny_model().save_pretrained(folder, include_llm=True)
    for module in (modeling_pretrained, processing_allmrec):
        monkeypatch.setattr(module, "cached_file", breaking(module.cached_file, file))
    if file == "README.md":
        assert ALLMRecModel.from_pretrained(folder).model_card is None
        return
    kind = ALLMRecModel if file == "config.json" else ALLMRecProcessor
    with pytest.raises(CheckpointError, match="server disconnected"):
        kind.from_pretrained(folder)


def breaking(found, file):
    def cached_file(path, name, *rest, **options):
        if name == file:
            raise TransportError("server disconnected")
        return found(path, name, *rest, **options)

    return cached_file


def with_weights_outside(folder: Path) -> Path:
    """Move one of a folder's files of weights up, and name it in the index as one of the folder above."""
    index = folder / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    moved = min(set(listed["weight_map"].values()))
    (folder / moved).rename(folder.parent / moved)
    listed["weight_map"] = {key: f"../{file}" if file == moved else file for key, file in listed["weight_map"].items()}
    index.write_text(json.dumps(listed))
    return folder


@pytest.mark.parametrize("part", ["", "language_model"])
def test_an_index_that_takes_weights_from_another_folder_is_refused(tmp_path, part):
    folder = tmp_path / "models" / "checkpoint"
    tiny_model().save_pretrained(folder, include_llm=True, max_shard_size="2KB")
    tiny_model().require_language_model().save_pretrained(folder / "language_model", max_shard_size="2KB")
    with_weights_outside(folder / part)
    with pytest.raises(CheckpointError, match=r"takes weights from '\.\./model-00001.*not a file of that folder"):
        ALLMRecModel.from_pretrained(folder)


def test_a_repository_whose_index_leaves_it_is_refused_and_writes_nothing_outside(fake_hub, tmp_path):
    folder = tmp_path / "models" / "checkpoint"
    tiny_processor().save_pretrained(folder)
    tiny_model().save_pretrained(folder, include_llm=True, max_shard_size="2KB")
    with_weights_outside(folder)
    repo = fake_hub.repos["model", "me/outside"] = FakeRepo()
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    above = next(folder.parent.glob("*.safetensors"))
    repo.commit("main", files | {f"../{above.name}": above.read_bytes()}, "all")
    done = fake_hub.run_python(CODE.replace("NAMES", "['outside']"), home=tmp_path / "home")
    told = json.loads(done.stdout.strip().splitlines()[-1])["outside"]
    assert told.startswith("CheckpointError: cannot load the checkpoint me/outside"), told
    outside = [path for path in (tmp_path / "home").rglob(above.name) if "snapshots" not in path.parent.parent.name]
    assert not outside
