"""A backbone of the user's own, in one file and one line: registering it needs no edit in this package."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModel

from allmrec_hf.cf_encoder import _REGISTRY, cf_encoder_types
from allmrec_hf.errors import ALLMRecError
from allmrec_hf.evaluation.evaluator import evaluate
from allmrec_hf.evaluation.rankers import BackboneRanker
from allmrec_hf.training.backbone_training import train_backbone
from allmrec_hf.training.stage_arguments import StageArguments
from tests import small_run
from tests.command_line import refused, succeeded

OWN = """
from typing import ClassVar
import torch
from torch import nn
from allmrec_hf.cf_encoder import CFEncoder, CFEncoderConfig, register_cf_encoder

class MeanConfig(CFEncoderConfig):
    model_type: ClassVar[str] = "foreign-mean"
    width_of_nothing: int = 1

class MeanModel(CFEncoder):
    config_class = MeanConfig
    training_recipe: ClassVar[dict] = {"learning_rate": 0.03}

    def __init__(self, config):
        super().__init__(config)
        self.item_embedding = nn.Embedding(config.num_items + 1, config.hidden_size, padding_idx=0)
        self.item_pairs = nn.Parameter(torch.zeros(config.num_items, config.num_items))  # follows N in both dimensions
        self.post_init()

    def sequence_states(self, item_ids, attention_mask=None):
        real = (item_ids != 0 if attention_mask is None else attention_mask).float().unsqueeze(-1)
        return self.item_embedding(item_ids).cumsum(1) / real.cumsum(1).clamp(min=1) * real

register_cf_encoder(MeanConfig, MeanModel)
"""
OPTIONS = {"hidden_size": 16, "max_history_length": 12}


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Write the user's file to a folder that Python imports from, and forget it afterwards."""
    (tmp_path / "own_mean.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "own_mean"
    sys.modules.pop("own_mean", None)
    _REGISTRY.pop("foreign-mean", None)


def test_a_foreign_class_trains_saves_loads_and_is_ranked(own, small_data, tmp_path):
    module = __import__(own)
    assert "foreign-mean" in cf_encoder_types()
    config = module.MeanConfig(num_items=small_data.num_items, **OPTIONS)
    model = train_backbone(
        small_data, config, StageArguments(**small_run.arguments()["backbone"]), tmp_path / "training"
    )
    model.save_pretrained(tmp_path / "saved")
    assert AutoConfig.from_pretrained(tmp_path / "saved").width_of_nothing == 1
    loaded = AutoModel.from_pretrained(tmp_path / "saved")
    assert type(loaded) is module.MeanModel
    torch.testing.assert_close(loaded.item_embeddings, model.item_embeddings, rtol=0, atol=0)
    report = evaluate([BackboneRanker(loaded)], small_data, max_users=20).to_dict()
    assert list(report["methods"]) == ["foreign-mean"]


def test_a_foreign_class_carries_a_run_and_its_module_is_recorded(own, small_parts, small_data, tmp_path):
    settings = small_run.settings(
        small_parts, backbone_name="foreign-mean", backbone_module=own, backbone_options=OPTIONS, llm_name=None
    )
    run = small_run.train(small_data, tmp_path / "run", settings, ("backbone",), small_run.arguments())
    again = small_run.settings(small_parts, llm_name=None)  # a later stage takes backbone and module from run.json
    small_run.train(small_data, run, again, ("align",), small_run.arguments())
    model = AutoModel.from_pretrained(run, language_model=None)
    assert model.cf_encoder.config.model_type == "foreign-mean"
    assert json.loads((run / "run.json").read_text())["arguments"]["backbone"]["module"] == own


def test_a_trained_foreign_backbone_is_put_into_another_order(own, small_parts, small_data, tmp_path):
    settings = small_run.settings(
        small_parts, backbone_name="foreign-mean", backbone_module=own, backbone_options=OPTIONS, llm_name=None
    )
    run = small_run.train(small_data, tmp_path / "run", settings, ("backbone",), small_run.arguments())
    fewer = small_run.write_data(tmp_path / "data", keep_items="interacted")
    assert fewer.num_items < small_data.num_items
    settings = small_run.settings(
        small_parts, backbone_name=str(run / "backbone"), backbone_options=None, llm_name=None
    )
    other = small_run.train(fewer, tmp_path / "other", settings, ("backbone",), small_run.arguments())
    old, new = (AutoModel.from_pretrained(folder / "backbone") for folder in (run, other))
    rows = small_data.catalog.indices(fewer.catalog.item_ids)
    torch.testing.assert_close(new.item_embeddings[1:], old.item_embeddings[rows], rtol=0, atol=0)
    assert new.item_pairs.shape == (fewer.num_items, fewer.num_items)


def test_a_module_that_cannot_be_imported_is_named(small_parts, small_data, tmp_path):
    settings = small_run.settings(small_parts, backbone_module="no_such_module", llm_name=None)
    with pytest.raises(ALLMRecError, match=r"the module 'no_such_module' .* cannot be imported"):
        small_run.train(small_data, tmp_path / "run", settings, ("backbone",), small_run.arguments())
    assert not (tmp_path / "run").exists()


def test_the_command_line_takes_a_module_of_the_working_folder(small_parts, tmp_path, monkeypatch):
    """Training names it with the command, evaluation before the command."""
    (tmp_path / "own_here.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    data = ("--data", small_parts / "data")
    given = ("--backbone", "foreign-mean", "--backbone.module", "own_here", "--stage", "backbone")
    found = succeeded("--verbose", "train", *data, *given, "--backbone.max-steps", 3, "--output", "run")
    assert "stage backbone takes what suits foreign-mean: learning_rate 0.03" in found.stderr
    sys.modules.pop("own_here")
    _REGISTRY.pop("foreign-mean")
    told = refused("train", *data, "--backbone", "run", "--stage", "backbone", "--output", "other")
    assert "the model_type 'foreign-mean', which is no known backbone" in told
    found = succeeded("--backbone-module", "own_here", "evaluate", "--model", "run", *data, "--max-users", 5)
    assert "foreign-mean" in found.stdout
    assert "the module 'nowhere' (--backbone-module, " in refused("--backbone-module", "nowhere", "evaluate", *data)
    sys.modules.pop("own_here")
    _REGISTRY.pop("foreign-mean")
    later = ("--stage", "align", "--align.max-steps", 1, "--text-encoder", small_parts / "text_encoder")
    succeeded("train", *data, *later, "--backbone", "foreign-mean", "--output", "run")  # run.json names the module
    sys.modules.pop("own_here")
    _REGISTRY.pop("foreign-mean")
