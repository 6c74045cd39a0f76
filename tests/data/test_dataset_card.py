"""The card of prepared data says what `dataset.json` says, and `eval.yaml` lists the tasks that results refer to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import DatasetCard

from allmrec_hf.data.dataset_card import dataset_card_files
from allmrec_hf.data.eval_tasks import benchmark_tasks
from allmrec_hf.data.hub_layout import write_layout
from allmrec_hf.data.prepared import PreparedData
from tests.command_line import run as command


def files(data: PreparedData, **changes: Any) -> dict[str, str]:
    return dataset_card_files({**data.info, **changes}, "org/toy")


def test_every_count_step_and_setting_is_on_the_page(small_data: PreparedData) -> None:
    text = files(small_data)["README.md"]
    for name, value in small_data.info["counts"].items():
        assert f"| {name.replace('_', ' ')} | {value:,} |" in text
    for step in small_data.info["report"]:
        assert f"| {step['step']} | {step['users']:,} | {step['items']:,} | {step['interactions']:,} |" in text
    assert 'load_from_hub("org/toy")' in text


def test_an_unknown_licence_is_called_unknown(small_data: PreparedData) -> None:
    text = files(small_data)["README.md"]
    assert DatasetCard(text).data.license == "unknown"
    assert "The licence of these data is unknown" in text
    for told in (files(small_data, license="cc-by-4.0"), dataset_card_files(small_data.info, None, "cc-by-4.0")):
        assert DatasetCard(told["README.md"]).data.license == "cc-by-4.0"
        assert "unknown" not in told["README.md"].split("## Licence")[1]


def test_the_benchmark_file_has_what_the_hub_asks_for(small_data: PreparedData) -> None:
    content = yaml.safe_load(files(small_data)["eval.yaml"])
    assert set(content) == {"name", "description", "evaluation_framework", "tasks"}
    ids = [task["id"] for task in content["tasks"]]
    assert len(set(ids)) == len(ids)
    assert {"candidates_hit_at_1_overall", "full_ndcg_at_10_never_seen"} <= set(ids)
    configs = {entry["config_name"]: entry for entry in DatasetCard(files(small_data)["README.md"]).data.configs}
    for task in content["tasks"]:
        assert set(task) == {"id", "config", "split"}
        assert task["split"] in {one["split"] for one in configs[task["config"]]["data_files"]}


def test_a_cut_off_above_the_candidates_is_no_task() -> None:
    ids = [task["id"] for task in benchmark_tasks(5)]
    assert "candidates_hit_at_1_cold" in ids
    assert "candidates_ndcg_at_10_cold" not in ids
    assert "full_ndcg_at_10_cold" in ids


def test_names_from_outside_cannot_change_the_page(small_data: PreparedData) -> None:
    nasty = "<script>x</script> | [a](http://evil.example)\n---\nlicense: mit\n# H"
    told = files(small_data, name=nasty, source=nasty)
    body = told["README.md"].split("\n---\n", 1)[1]
    assert "<script>" not in body
    assert "\n# H" not in body
    assert DatasetCard(told["README.md"]).data.license == "unknown"
    assert yaml.safe_load(told["eval.yaml"])["tasks"] == benchmark_tasks(small_data.info["num_candidates"])


def test_the_repository_has_card_and_tasks(small_data: PreparedData, tmp_path: Path) -> None:
    write_layout(small_data, tmp_path, "org/toy", "mit")
    for name, text in dataset_card_files(small_data.info, "org/toy", "mit").items():
        assert (tmp_path / name).read_text() == text


@pytest.mark.parametrize(
    ("name", "old", "new", "told"),
    [
        ("README.md", "| users | 2", "| users | 9", "differs from the stored data"),
        ("README.md", "## Licence", "## Licence\n\nTODO", "the placeholder 'TODO' is left"),
        ("eval.yaml", "split: test", "split: train", "its tasks are not those of the prepared data"),
    ],
)
def test_the_command_writes_the_card_and_finds_what_was_changed(
    small_parts: Path, tmp_path: Path, name: str, old: str, new: str, told: str
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(small_parts / "data", folder)
    done = command("card", folder, "--check")
    assert (done.exit_code, "is missing" in done.stdout) == (1, True)
    assert command("card", folder).exit_code == 0
    assert command("card", folder, "--check").exit_code == 0
    users = json.loads((folder / "dataset.json").read_text())["counts"]["users"]
    old = old.replace("| 2", f"| {users:,}")
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new.replace("| 9", "| 9,999,999"), 1))
    done = command("card", folder, "--check")
    assert done.exit_code == 1
    assert told in done.stdout
    PreparedData.load(folder)
