"""Stage 1's choices beyond the paper: a learned temperature, the text encoder's own rate, being judged by ranking."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from allmrec_hf import ALLMRecTrainer, ALLMRecTrainingArguments, NCFConfig, SASRecConfig
from allmrec_hf.aligner import ItemTextAligner
from allmrec_hf.cf_encoder import build_cf_encoder
from allmrec_hf.cf_texts import text_layer
from allmrec_hf.errors import ALLMRecError
from allmrec_hf.training import alignment
from allmrec_hf.training.alignment import AlignmentModule, AlignmentTask, text_embedding_table
from allmrec_hf.training.loop import run_stage
from allmrec_hf.training.optimizer import adamw, trained_parameters
from allmrec_hf.training.run_record import read_run
from allmrec_hf.training.section_arguments import LEAST_TEMPERATURE
from allmrec_hf.training.stage_arguments import StageArguments
from tests.small_run import arguments, settings, text_encoder, train, write_data
from tests.training.test_callbacks import Breaks

LENGTH, CPU = 12, torch.device("cpu")
LEARNED = {"matching_loss": "infonce", "matching_temperature": 0.5, "learn_matching_temperature": True}


def module_of(data, fine_tune=False, components=0, backbone=SASRecConfig, **loss):
    torch.manual_seed(0)
    of_texts = {"text_components": components, "text_dim": 12} if components else {}
    config = backbone(num_items=data.num_items, hidden_size=16, max_history_length=LENGTH, **of_texts)
    cf_encoder, encoder, texts = build_cf_encoder(config), text_encoder(), data.catalog.texts()
    if components:
        cf_encoder.text_layer = text_layer(text_embedding_table(encoder, texts), components, 1.0)
    return AlignmentModule(cf_encoder, ItemTextAligner(16, 12, 8), texts, encoder, fine_tune, 0.5, 0.2, **loss)


def task_of(data, module, metric="loss", rate=None, **changes):
    few = {"per_device_train_batch_size": 8, "max_validation_users": 20, **changes}
    return AlignmentTask(module, data, "last", StageArguments(**few), metric, rate)


def batch_of(task, rows=range(8), seed=0):
    return task.collate(np.array(rows), np.random.default_rng(seed))


def test_a_temperature_is_learned_where_that_is_asked_for(small_data):
    learned, fixed = (
        module_of(small_data, **LEARNED),
        module_of(small_data, **{**LEARNED, "learn_matching_temperature": False}),
    )
    batch = batch_of(task_of(small_data, learned))
    terms, other = learned(batch), fixed(batch)
    assert float(terms["loss"].detach()) == pytest.approx(float(other["loss"].detach()), rel=1e-6)
    assert float(terms["matching_temperature"].detach()) == pytest.approx(0.5)
    assert "matching_temperature" not in other
    terms["loss"].backward()
    assert float(learned.log_temperature.grad) != 0
    assert "log_temperature" in trained_parameters(learned)
    assert "log_temperature" not in trained_parameters(fixed)


def test_the_slope_of_the_temperature_is_that_of_the_loss(small_data):
    module = module_of(small_data, **LEARNED).double()
    batch, step = batch_of(task_of(small_data, module)), 1e-5
    module(batch)["loss"].backward()
    found, values = float(module.log_temperature.grad), []
    for change in (step, -step):
        with torch.no_grad():
            module.log_temperature.fill_(math.log(0.5) + change)
            values.append(float(module(batch)["loss"]))
    assert found == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4)


def test_a_learned_temperature_stays_above_the_least(small_data):
    module = module_of(small_data, **LEARNED)
    with torch.no_grad():
        module.log_temperature.fill_(math.log(LEAST_TEMPERATURE) - 3)
    terms = module(batch_of(task_of(small_data, module)))
    assert float(terms["matching_temperature"].detach()) == pytest.approx(LEAST_TEMPERATURE)
    terms["loss"].backward()
    assert float(module.log_temperature.grad) != 0  # it can go up again


@pytest.mark.parametrize("rate", [None, 1e-5])
def test_the_first_step_of_the_text_encoder_is_as_long_as_its_learning_rate(small_data, tmp_path, rate):
    module = module_of(small_data, fine_tune=True)
    task = task_of(small_data, module, rate=rate)
    before = {name: value.detach().clone() for name, value in trained_parameters(module).items()}
    loop = StageArguments(
        num_train_epochs=1, max_steps=1, learning_rate=1e-3, eval_strategy="no", per_device_train_batch_size=8
    )
    run_stage(task, loop, tmp_path)
    longest = {"aligner.": 0.0, "text_encoder.": 0.0}
    for name, value in trained_parameters(module).items():
        start = name.split(".")[0] + "."
        longest[start] = max(longest[start], float((value.detach() - before[name]).abs().max()))
    assert longest["aligner."] == pytest.approx(1e-3, rel=0.01)  # AdamW's first step, whatever the gradient
    assert longest["text_encoder."] == pytest.approx(rate or 1e-3, rel=0.01)


def test_groups_of_the_optimizer_keep_the_order_of_the_parameters(small_data):
    parameters = trained_parameters(module_of(small_data, fine_tune=True, **LEARNED))
    own = StageArguments(learning_rate=1e-3, weight_decay=0.1)
    groups = adamw(parameters, own, {"text_encoder.": 1e-4}).param_groups
    in_order = [value for group in groups for value in group["params"]]
    assert all(a is b for a, b in zip(in_order, parameters.values(), strict=True))
    names = {id(value): name for name, value in parameters.items()}
    for group in groups:
        for value in group["params"]:
            assert group["weight_decay"] == (0.1 if value.ndim > 1 else 0.0)
            assert group["scale"] == pytest.approx(0.1 if names[id(value)].startswith("text_encoder.") else 1.0)


@pytest.fixture(scope="module")
def wide_data(tmp_path_factory):
    """Return data with more candidates than the 10 that NDCG@10 looks at."""
    return write_data(tmp_path_factory.mktemp("wide"), num_candidates=25)


@pytest.mark.parametrize(("backbone", "fine_tune"), [(SASRecConfig, False), (SASRecConfig, True), (NCFConfig, False)])
def test_ranking_by_text_is_that_of_each_users_candidates_one_by_one(wide_data, monkeypatch, backbone, fine_tune):
    monkeypatch.setattr(alignment, "USERS_AT_ONCE", 7)
    module = module_of(wide_data, fine_tune=fine_tune, backbone=backbone)
    task = task_of(wide_data, module, "ndcg@10", max_validation_users=None)
    candidates = wide_data.candidates("validation")
    assert task.num_validation_examples == len(candidates)  # targets that the backbone does not know count too
    examples = np.concatenate([[3, 0, 17], np.arange(20, 50)])
    found, hits = task.validate(examples, CPU), []
    table = module.embedding_table()
    for place, row in enumerate(examples):
        history = torch.tensor(wide_data.history(int(candidates.users[row]), "validation"))[-LENGTH:].unsqueeze(0)
        with torch.no_grad():
            user = module.cf_encoder.encode_users(history, torch.ones_like(history, dtype=torch.bool))[0]
            scores = {}
            for item in candidates.items[row].tolist():
                decoded = module.aligner.decode_items(module.aligner.encode_texts(table[item]))
                scores[item] = float(module.cf_encoder.score_vectors(user, decoded))
        target = scores[int(candidates.targets[row])]
        rank = sum(score > target for score in scores.values())
        hits.append(rank < 10)
        assert found["ndcg@10"][place] == pytest.approx(1 / math.log2(rank + 2) if rank < 10 else 0.0)
    assert found["hit@10"].tolist() == hits
    assert 0 < sum(hits) < len(hits)


def test_a_backbone_of_text_components_is_not_judged_by_what_stage_one_does_not_decode(small_data):
    module = module_of(small_data, components=4)
    assert task_of(small_data, module).metric == "loss"
    with pytest.raises(ALLMRecError, match="metric_for_best_model ndcg@10 says nothing of stage 1"):
        task_of(small_data, module, "ndcg@10")


def test_a_learning_rate_of_no_parameter_is_refused(small_data, tmp_path):
    task = task_of(small_data, module_of(small_data), rate=1e-4)  # the text encoder is frozen
    with pytest.raises(ALLMRecError, match=r"no trained parameter's name begins with \['text_encoder.'\]"):
        run_stage(task, StageArguments(max_steps=1), tmp_path)


CHOSEN = {
    "matching_loss": "infonce",
    "learn_matching_temperature": True,
    "text_encoder_learning_rate": 1e-4,
    "metric_for_best_model": "ndcg@10",
}


def test_a_run_keeps_the_weights_that_rank_best_and_its_model_has_no_temperature(small_data, small_parts, tmp_path):
    folders = []
    for name, cut in (("whole", False), ("resumed", True)):
        folder, few = tmp_path / name, arguments()
        train(small_data, folder, settings(small_parts), ("backbone",))
        few["align"] |= {"num_train_epochs": 3, "max_steps": None}
        if cut:
            with pytest.raises(ALLMRecError, match="a callback raised"):
                train(small_data, folder, settings(small_parts, **CHOSEN), ("align",), few, callbacks=[Breaks(10)])
        train(small_data, folder, settings(small_parts, **CHOSEN), ("align",), few, resume=True)
        folders.append(folder)
    whole, resumed = (load_file(folder / "align" / "model.safetensors") for folder in folders)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not [name for name in whole if "temperature" in name]
    result = json.loads(next(folders[0].rglob("align/training.json")).read_text())["result"]
    history = [row["validation/ndcg@10"] for row in result["history"]]
    assert result["metric"] == "ndcg@10"
    assert result["best"] == max(history)
    assert result["best_epoch"] == history.index(max(history)) + 1
    temperatures = [row["train/matching_temperature"] for row in result["history"]]
    assert len({0.07, *temperatures}) == 4  # a mean of each epoch, none the first value
    again = ALLMRecTrainer(args=ALLMRecTrainingArguments(folders[0]), data=small_data).refit(tmp_path / "refit")
    refitted = read_run(again.output_dir / "run.json")["arguments"]["align"]
    assert {name: refitted[name] for name in CHOSEN} == {**CHOSEN, "metric_for_best_model": "loss"}
