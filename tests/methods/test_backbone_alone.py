"""A backbone alone takes the options of its section, on top of the preset and the suite's budget."""

import json

import pytest

from allmrec_hf.errors import ALLMRecError
from allmrec_hf.methods.registry import method
from tests.methods.world import small_setting, small_world

BUDGET = {"backbone": {"num_train_epochs": 3, "max_steps": 2, "options": {"hidden_size": 8}}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_world(tmp_path_factory.mktemp("backbones"))


def trained(data, folder, options):
    ranker = method("sasrec").fit(data, small_setting(folder, budget=BUDGET, options=options))
    (told,) = folder.rglob("training.json")
    return ranker, json.loads(told.read_text())["arguments"]


def test_options_of_the_section_win_over_the_budget_and_what_they_leave_out_stays(data, tmp_path):
    options = {"max_steps": 1, "learning_rate": 0.5, "lr_scheduler_type": "cosine"}
    _, told = trained(data, tmp_path / "own", options)
    assert {name: told[name] for name in options} == options
    assert told["num_train_epochs"] == 3


def test_fields_of_the_config_are_options_too(data, tmp_path):
    ranker, _ = trained(data, tmp_path / "own", {"options": {"hidden_size": 16, "dropout": 0.5}})
    assert (ranker.cf_encoder.config.hidden_size, ranker.cf_encoder.config.dropout) == (16, 0.5)


@pytest.mark.parametrize("options", [{"seed": 1}, {"name": "ligr"}, {"dropout": 0.5}])
def test_seed_name_and_unknown_options_are_refused(data, tmp_path, options):
    with pytest.raises(ALLMRecError, match=f"has no options {sorted(options)}".replace("[", r"\[")):
        method("sasrec").fit(data, small_setting(tmp_path, options=options))
