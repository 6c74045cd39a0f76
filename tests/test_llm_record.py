"""What the checks of an LLM found is kept in the checkpoint: loaded again, the same LLM is not checked anew."""

from __future__ import annotations

import functools
import logging

import pytest
import torch
from torch.nn.utils import parametrize
from transformers import AutoModelForCausalLM, LlamaForCausalLM, Qwen2ForCausalLM

from allmrec_hf import ALLMRecModel, CheckpointError
from allmrec_hf.language_model_checks import circumstances
from tests.tiny import tiny_llm, tiny_model


@pytest.fixture
def passes(monkeypatch):
    """Count the passes of every Llama and Qwen2."""
    counted = []
    for kind in (LlamaForCausalLM, Qwen2ForCausalLM):
        forward = kind.forward

        def counting(self, *args, forward=forward, **kwargs):
            counted.append(type(self).__name__)
            return forward(self, *args, **kwargs)

        monkeypatch.setattr(kind, "forward", functools.wraps(forward)(counting))
    return counted


@pytest.fixture
def saved(tmp_path):
    llm = tiny_llm()
    llm.save_pretrained(tmp_path / "llm")
    model = tiny_model(base_model_name_or_path=str(tmp_path / "llm"))
    model.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def altered(folder, change):
    """Change the weights of a saved LLM."""
    llm = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        change(llm)
    llm.save_pretrained(folder)


def test_the_llm_of_the_training_loaded_again_costs_one_pass(saved, passes):
    first = tiny_model()
    checked = len(passes)
    passes.clear()
    again = ALLMRecModel.from_pretrained(saved)
    assert len(passes) == 1 < 10 < checked
    assert (again.scoring_method, again.pads_left) == (first.scoring_method, first.pads_left) == ("tree", True)
    again.save_pretrained(saved)
    passes.clear()
    assert ALLMRecModel.from_pretrained(saved).scoring_method == "tree"
    assert len(passes) == 1


@pytest.mark.parametrize("options", [{"dtype": torch.float64}, {"attn_implementation": "eager"}])
def test_under_other_circumstances_it_is_checked(saved, passes, options):
    ALLMRecModel.from_pretrained(saved, **options)
    assert len(passes) > 10


def test_an_llm_that_was_not_loaded_here_is_checked(saved, passes):
    ALLMRecModel.from_pretrained(saved, language_model=tiny_llm())
    assert len(passes) > 10


def test_a_checkpoint_without_a_record_is_checked(saved, passes):
    model = tiny_model(base_model_name_or_path=str(saved.parent / "llm"))
    model.config.language_model_record = None
    model.save_pretrained(saved)
    assert ALLMRecModel.from_pretrained(saved).scoring_method == "tree"
    assert len(passes) > 10


def test_no_error_is_lost(saved, caplog):
    altered(saved.parent / "llm", lambda llm: [value.add_(0.04 * value.std()) for value in llm.parameters()])
    with caplog.at_level(logging.WARNING):
        ALLMRecModel.from_pretrained(saved)
    assert "differs a little from the one of the training" in caplog.text
    altered(saved.parent / "llm", lambda llm: [torch.nn.init.normal_(value) for value in llm.parameters()])
    with pytest.raises(CheckpointError, match="not the LLM of the training"):
        ALLMRecModel.from_pretrained(saved)
    altered(saved.parent / "llm", lambda llm: llm.lm_head.weight.fill_(float("nan")))
    with pytest.raises(CheckpointError, match="answers with NaN or infinity"):
        ALLMRecModel.from_pretrained(saved)


def test_another_llm_that_the_command_line_names_is_checked(saved, tmp_path):
    tiny_llm("qwen2").save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match="model_type is 'qwen2', not 'llama'"):
        ALLMRecModel.from_pretrained(saved, language_model=str(tmp_path / "other"))


def test_what_is_off_is_told_again(tmp_path, caplog):
    tiny_llm("lfm2").save_pretrained(tmp_path / "llm")
    model = tiny_model("lfm2", base_model_name_or_path=str(tmp_path / "llm"))
    model.save_pretrained(tmp_path / "checkpoint")
    told = [record.getMessage() for record in caplog.records if "is off for this LLM" in record.getMessage()]
    caplog.clear()
    again = ALLMRecModel.from_pretrained(tmp_path / "checkpoint")
    assert [record.getMessage() for record in caplog.records] == told != []
    assert again.scoring_method == model.scoring_method != "tree"


class Doubled(torch.nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_changed_modules_have_no_circumstances():
    plain = circumstances(tiny_llm())
    assert plain is not None
    assert plain == circumstances(tiny_llm()) != circumstances(tiny_llm("qwen2"))
    hooked, replaced, wrapped = tiny_llm(), tiny_llm(), tiny_llm()
    hooked.model.layers[0].register_forward_hook(lambda *args: None)
    replaced.forward = replaced.forward
    assert circumstances(hooked) is None
    assert circumstances(replaced) is None
    parametrize.register_parametrization(wrapped.lm_head, "weight", Doubled())
    assert circumstances(wrapped) != plain
