import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from allmrec_hf.errors import ALLMRecError
from allmrec_hf.methods import shared
from allmrec_hf.methods.registry import method
from allmrec_hf.methods.shared import (
    backbone_run,
    check_same_settings,
    run_arguments,
    run_until,
    text_embeddings,
    trained_backbone,
)
from tests.methods.world import small_setting, small_world

SHORT = {"backbone": {"max_steps": 2}, "align": {"max_steps": 2}}


def test_backbones_with_one_recipe_are_trained_apart(tmp_path):
    data, setting = small_world(tmp_path), small_setting(tmp_path, budget=SHORT)
    runs = {name: backbone_run(data, replace(setting, backbone=name)) for name in ("sasrec", "ligr", "nextitnet")}
    assert len(set(runs.values())) == 3
    kinds = {name: trained_backbone(data, replace(setting, backbone=name)).config.model_type for name in runs}
    assert kinds == {name: f"allmrec-{name}" for name in runs}


def test_what_decides_a_part_decides_its_folder_and_nothing_else_does(tmp_path):
    data, setting = small_world(tmp_path), small_setting(tmp_path, budget=SHORT)
    args = run_arguments(setting)
    first = run_until(data, setting, args, "align")
    assert run_until(data, setting, args.with_flat(projector="linear", llm_name=None), "align") == first
    assert run_until(data, setting, args.with_flat(matching_weight=0.0), "align") != first
    other = replace(setting, seed=setting.seed + 1)
    assert run_until(data, other, run_arguments(other), "align") != first
    assert run_until(data, setting, args.with_flat(matching_weight=0.0), "backbone") == backbone_run(data, setting)


def test_texts_are_encoded_once_for_all_alignments_and_seeds(tmp_path, monkeypatch):
    data, setting = small_world(tmp_path), small_setting(tmp_path, budget=SHORT, common=tmp_path / "common")
    encode, read = shared.text_embedding_table, []
    monkeypatch.setattr(shared, "text_embedding_table", lambda *parts: read.append(1) or encode(*parts))
    for own in (setting, replace(setting, seed=1, parts=tmp_path / "others")):
        run_until(data, own, run_arguments(own).with_flat(fine_tune_text_encoder=False), "align")
    text_embeddings(data, setting)
    assert len(read) == 1


def test_a_catalogue_that_somebody_else_is_encoding_is_waited_for(tmp_path, monkeypatch):
    data, setting = small_world(tmp_path), small_setting(tmp_path)
    encode, read = shared.text_embedding_table, []

    def slowly(*parts):
        read.append(1)
        time.sleep(0.3)
        return encode(*parts)

    monkeypatch.setattr(shared, "text_embedding_table", slowly)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: text_embeddings(data, setting), range(2))
    assert len(read) == 1
    assert torch.equal(first, second)


def test_folder_of_other_options_is_refused(tmp_path):
    chosen, folder = method("ctrl"), small_setting(tmp_path).folder
    check_same_settings(chosen, small_setting(tmp_path, options={"temperature": 0.1}))
    check_same_settings(chosen, small_setting(tmp_path, options={"temperature": 0.1}))
    with pytest.raises(ALLMRecError, match=r"method\.json has other settings: temperature 0.1 -> None; train into"):
        check_same_settings(chosen, small_setting(tmp_path))
    (folder / "method.json").write_text("[")
    with pytest.raises(ALLMRecError, match=r"method\.json is damaged"):
        check_same_settings(chosen, small_setting(tmp_path))
