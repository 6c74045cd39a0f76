"""Ablations by flag: each reaches what it should, and nothing else changes."""

from __future__ import annotations

import inspect
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from allmrec_hf import ALLMRecConfig, PromptTemplate
from allmrec_hf.aligner import ItemTextAligner
from allmrec_hf.errors import ALLMRecError
from allmrec_hf.item_table import random_joint_embeddings
from allmrec_hf.losses import Contrast, alignment_losses, contrastive_loss
from allmrec_hf.projector import build_projector
from allmrec_hf.prompt import NO_SLOT, USER_SLOT, Title
from allmrec_hf.training.alignment import AlignmentModule
from allmrec_hf.training.arguments import ALLMRecTrainingArguments
from allmrec_hf.training.run_record import SECTIONS_OF_STAGE
from allmrec_hf.training.section_arguments import ALIGNMENT_WEIGHTS, AlignArguments, ProjectArguments
from allmrec_hf.training.trainer import ALLMRecTrainer
from allmrec_hf.training.warm_start import centre_inputs, start_near_words
from tests.command_line import refused, succeeded
from tests.small_run import arguments, settings, train
from tests.tiny import tiny_llm, tiny_model, tiny_processor

HISTORIES = [[1, 2, 3], [4, 5, 6, 7], [8]]
CANDIDATES = [[20, 21, 22], [23, 24, 25], [33, 34, 35]]
KINDS = ("mlp", "linear", "resampler")


def close(value: float, **tolerance: float):
    return pytest.approx(value, **(tolerance or {"rel": 1e-5}))  # fp32 against doubles


# -- stage 1: weights


def stage_1(**weights):
    """Return an aligner and the terms of its loss for four users with random parts."""
    torch.manual_seed(0)
    aligner = ItemTextAligner(5, 6, 4)
    positives, negatives = [(torch.randn(4, 5), torch.randn(4, 6)) for _ in range(2)]
    weights = {"alpha": 0.5, "beta": 0.2, **weights}
    return aligner, alignment_losses(
        torch.randn(4, 5), aligner(*positives), aligner(*negatives), positives, negatives, **weights
    )


def gradients(aligner, loss):
    aligner.zero_grad()
    loss.backward()
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in aligner.named_parameters()
    }


def named(terms, kind):
    return terms[f"{kind}_positive"] + terms[f"{kind}_negative"]


def test_weights_not_given_change_no_bit_of_the_loss_and_its_gradients():
    terms = stage_1()[1]
    total = torch.zeros(())
    for name in ("positive", "negative"):
        total = total + terms[f"matching_{name}"] + terms[f"recommendation_{name}"]
        total = total + 0.5 * terms[f"item_reconstruction_{name}"] + 0.2 * terms[f"text_reconstruction_{name}"]
    assert torch.equal(terms["loss"], total)
    one, two = stage_1(), stage_1()
    found = gradients(one[0], one[1]["loss"])
    parts = two[1]
    plain = sum(
        parts[f"matching_{n}"]
        + parts[f"recommendation_{n}"]
        + (0.5 * parts[f"item_reconstruction_{n}"] + 0.2 * parts[f"text_reconstruction_{n}"])
        for n in ("positive", "negative")
    )
    for name, gradient in gradients(two[0], plain).items():
        torch.testing.assert_close(found[name], gradient)


@pytest.mark.parametrize(
    ("weights", "left"),
    [
        ({"matching": 0.0}, {"recommendation": 1.0, "item_reconstruction": 0.5, "text_reconstruction": 0.2}),
        ({"recommendation": 0.0}, {"matching": 1.0, "item_reconstruction": 0.5, "text_reconstruction": 0.2}),
        ({"alpha": 0.0, "beta": 0.0}, {"matching": 1.0, "recommendation": 1.0}),
    ],
    ids=["no matching", "no recommendation", "no reconstruction"],
)
def test_a_term_of_weight_zero_gives_no_gradient(weights, left):
    aligner, terms = stage_1(**weights)
    found = gradients(aligner, terms["loss"])
    aligner, terms = stage_1()
    wanted = gradients(aligner, sum(weight * named(terms, name) for name, weight in left.items()))
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient)


def test_without_matching_and_text_reconstruction_the_text_side_learns_nothing():
    aligner, terms = stage_1(matching=0.0, beta=0.0)
    found = gradients(aligner, terms["loss"])
    assert not any(gradient.any() for name, gradient in found.items() if name.startswith("text_autoencoder."))
    assert found["item_autoencoder.encoder.weight"].any()


# -- stage 1: InfoNCE


def test_infonce_of_three_items_equals_hand_calculation():
    angles = (0.0, 0.5, 2.0), (0.3, 0.1, 1.0)
    items, texts = (0.5 + torch.tensor([[math.cos(a), math.sin(a)] for a in side]) / 4 for side in angles)
    logits = [[math.cos(a - b) / 0.2 for b in angles[1]] for a in angles[0]]
    by_rows = [math.log(sum(map(math.exp, row))) - row[i] for i, row in enumerate(logits)]
    columns = list(zip(*logits, strict=True))
    by_columns = [math.log(sum(map(math.exp, column))) - column[i] for i, column in enumerate(columns)]
    found = contrastive_loss(items, texts, torch.tensor([4, 9, 2]), temperature=0.2)
    assert float(found) == close((sum(by_rows) + sum(by_columns)) / 6)


def test_infonce_of_vectors_that_are_all_alike_is_log_b():
    same = torch.full((7, 3), 0.6)
    assert float(contrastive_loss(same, same, torch.arange(7), 0.07)) == close(math.log(7))


def test_an_item_that_occurs_twice_is_no_negative_of_itself():
    generator = torch.Generator().manual_seed(0)
    items, texts = (torch.rand(2, 4, generator=generator) for _ in range(2))
    rows = torch.tensor([0, 1, 0])
    found = contrastive_loss(items[rows], texts[rows], torch.tensor([3, 8, 3]), 0.3)
    logits = torch.nn.functional.cosine_similarity(items[:, None] - 0.5, texts[None] - 0.5, dim=-1) / 0.3
    logits = logits.tolist()

    def entropy(own, *others):
        return math.log(sum(math.exp(value) for value in (own, *others))) - own

    first = entropy(logits[0][0], logits[0][1]) + entropy(logits[0][0], logits[1][0])
    second = entropy(logits[1][1], logits[1][0], logits[1][0]) + entropy(logits[1][1], logits[0][1], logits[0][1])
    assert float(found) == close((2 * first + second) / 6)


def test_infonce_takes_the_place_of_the_matching_alone():
    contrast = Contrast(torch.tensor([1, 2, 1, 3]), torch.tensor([4, 4, 5, 6]), 0.1)
    _, paper = stage_1()
    aligner, terms = stage_1(contrast=contrast)
    changed = {name for name in terms if not torch.equal(terms[name], paper[name])}
    assert changed == {"matching_positive", "matching_negative", "loss"}
    assert all(gradient.isfinite().all() for gradient in gradients(aligner, terms["loss"]).values())


# -- stage 2: the prompt


def shown(template):
    return template.render([Title(1, "A"), Title(2, "B")], [Title(3, "C")])


def test_prompt_without_user_representation_has_no_sentence_about_it():
    with_user = PromptTemplate.for_domain("movie")
    without = PromptTemplate.for_domain("movie", user_representation=False)
    assert with_user.prompt == "{user} is a user representation." + without.prompt
    assert [segment.slot for segment in shown(without)] == [1, 2, 3, NO_SLOT]
    assert (with_user.has_user_slot, without.has_user_slot) == (True, False)


def test_prompt_without_joint_embeddings_keeps_every_word():
    template = PromptTemplate.for_domain("movie", joint_embedding=False)
    assert [segment.slot for segment in shown(template)] == [USER_SLOT, NO_SLOT]
    words = "".join(segment.text for segment in shown(PromptTemplate.for_domain("movie")))
    assert "".join(segment.text for segment in shown(template)) == words
    assert not template.has_item_slots


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"no_user_representation": True, "prompt": {"prompt": "{user}{history}{candidates}"}}, r"has \{user\}"),
        ({"no_joint_embedding": True, "prompt": {"prompt": "{user}{history}{candidates}"}}, r"has \{vector\}"),
        ({"no_user_representation": True, "no_joint_embedding": True}, "nothing to train"),
        ({"prompt": {"prompt": "{history}{candidates}", "item": "{title}"}}, "nothing to train"),
    ],
)
def test_prompts_that_contradict_the_settings_are_refused(changes, message):
    with pytest.raises(ALLMRecError, match=message):
        ProjectArguments(**changes).template("movie")


def test_a_template_of_ones_own_stays_possible_without_user_representation():
    own = {"prompt": "{history} then {candidates}: "}
    arguments = ProjectArguments(no_user_representation=True, prompt=own)
    assert arguments.template("game") == PromptTemplate.from_dict(own)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"matching_weight": -1.0}, "section align: matching_weight must be at least 0, got -1.0"),
        ({"recommendation_weight": float("nan")}, "recommendation_weight must be a finite number"),
        ({"cross_reconstruction_weight": float("inf")}, "cross_reconstruction_weight must be a finite number"),
        (dict.fromkeys(ALIGNMENT_WEIGHTS, 0), "nothing is trained"),
        ({"matching_temperature": 0.0}, "matching_temperature must be above 0"),
        ({"learn_matching_temperature": True}, "learn_matching_temperature is for matching_loss infonce"),
        (
            {"matching_loss": "infonce", "learn_matching_temperature": True, "matching_weight": 0.0},
            "infonce with a matching_weight above 0",
        ),
        (
            {"matching_loss": "infonce", "learn_matching_temperature": True, "matching_temperature": 0.005},
            "matching_temperature is 0.005, but one that is learned stays at 0.01 or above",
        ),
        (
            {"fine_tune_text_encoder": False, "text_encoder_learning_rate": 1e-5},
            "text_encoder_learning_rate is for a text encoder that is trained",
        ),
        ({"metric_for_best_model": "hit@1"}, "metric_for_best_model must be one of loss, ndcg@10; got 'hit@1'"),
        ({"listwise_temperature": 0.0}, "section project: listwise_temperature must be above 0"),
        ({"matching_loss": "cosine"}, "matching_loss must be one of mse, infonce; got 'cosine'"),
        ({"projector": "cnn"}, "projector must be one of mlp, linear, resampler; got 'cnn'"),
        ({"item_embedding": "none"}, "must be one of auto, cf, text, random"),
        ({"projector_tokens": 0}, "projector_tokens must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ALLMRecError, match=message):
        ALLMRecTrainingArguments("run").with_flat(**changes)


def test_stage_one_is_not_judged_by_a_ranking_without_validations():
    with pytest.raises(ALLMRecError, match="metric_for_best_model ndcg@10 is of validations, but eval_strategy is no"):
        AlignArguments(metric_for_best_model="ndcg@10", eval_strategy="no")


# -- stage 2: random joint embeddings


def random_model(**changes):
    return tiny_model(None, item_embedding="random", **changes)


def test_random_vectors_are_the_same_after_reload_and_no_weights(tmp_path):
    model, everything = random_model(item_embedding_seed=3), torch.arange(41)
    before = model.item_vectors(everything)
    model.save_pretrained(tmp_path)
    assert not [name for name in load_file(tmp_path / "model.safetensors") if "random" in name]
    assert torch.equal(AutoModel.from_pretrained(tmp_path).item_vectors(everything), before)
    assert before.shape == (41, 8)
    assert not before[0].any()
    model.config.item_embedding_seed = 4
    assert not torch.equal(model.item_vectors(everything), before)


def test_an_added_item_gets_a_random_vector_and_changes_no_other(tmp_path):
    model = random_model()
    before = model.item_vectors(torch.arange(41))
    model.add_items(torch.randn(2, 12))
    after = model.item_vectors(torch.arange(43))
    assert torch.equal(after[:41], before)
    assert len({tuple(row) for row in after[1:].tolist()}) == 42
    model.save_pretrained(tmp_path)
    assert torch.equal(AutoModel.from_pretrained(tmp_path).item_vectors(torch.arange(43)), after)


def test_random_vectors_have_the_scale_of_the_known_items_and_nothing_else_of_them():
    real = 0.5 + torch.randn(3001, 4) * torch.tensor([0.01, 0.02, 0.05, 0.1])
    known = torch.arange(3001) % 3 > 0
    table = random_joint_embeddings(real, known, seed=0)
    torch.testing.assert_close(table[1:].mean(dim=0), real[known].mean(dim=0), rtol=0.02, atol=0.0)  # 3,000 draws
    torch.testing.assert_close(table[1:].std(dim=0), real[known].std(dim=0), rtol=0.05, atol=0.0)
    both = torch.corrcoef(torch.cat([table, real], dim=1)[1:].T)[:4, 4:]
    assert both.abs().max() < 0.1


def test_loaded_weights_give_a_random_table_of_their_own_scale():
    model, other = random_model(), random_model()
    with torch.no_grad():
        other.aligner.item_autoencoder.encoder.weight.mul_(5)
    before = model.item_vectors(torch.arange(41))
    model.load_state_dict(other.state_dict())
    assert torch.equal(model.item_vectors(torch.arange(41)), other.item_vectors(torch.arange(41)))
    assert not torch.equal(model.item_vectors(torch.arange(41)), before)


# -- stage 2: projectors


def test_paper_projector_is_the_default_and_keeps_its_names():
    weights = [name for name in tiny_model().state_dict() if name.startswith("user_projector")]
    assert weights == [f"user_projector.layers.{i}.{part}" for i in (0, 1, 3) for part in ("weight", "bias")]


def test_configs_from_before_the_ablations_mean_the_papers_parts():
    old = ALLMRecConfig().to_dict()
    for name in ("projector", "projector_tokens", "item_embedding_seed"):
        del old[name]
    assert ALLMRecConfig.from_dict(old).to_dict() == ALLMRecConfig().to_dict()
    assert ALLMRecConfig().projector == "mlp"


@pytest.mark.parametrize("kind", KINDS)
def test_a_projector_gives_each_vector_one_token_whatever_stands_beside_it(kind):
    torch.manual_seed(0)
    projector = build_projector(kind, 6, 10, "gelu", num_tokens=3)
    vectors = torch.randn(4, 5, 6)
    together = projector(vectors)
    assert together.shape == (4, 5, 10)
    torch.testing.assert_close(projector(vectors[2, 3]), together[2, 3])
    assert not torch.allclose(together[0, 0], together[0, 1])


def test_resampler_equals_attention_written_out():
    torch.manual_seed(0)
    resampler = build_projector("resampler", 6, 10, "gelu", num_tokens=3)
    vector = torch.randn(6)
    tokens = resampler.token_norm(resampler.spread(vector).view(3, 10))
    keys, values = resampler.keys_and_values(tokens).split(10, dim=-1)
    shares = torch.softmax(resampler.queries @ keys.T / 10**0.5, dim=-1)
    found = shares @ values
    pooled = resampler.pooled_norm((found + resampler.feed_forward(found)).mean(dim=0))
    torch.testing.assert_close(resampler(vector), resampler.output(pooled))


@pytest.mark.parametrize("kind", ["linear", "resampler"])
def test_a_projector_trains_alone_and_survives_a_round_trip(kind, tmp_path):
    processor = tiny_processor()
    model = tiny_model(projector=kind, projector_tokens=2).train()
    projectors = [*model.user_projector.parameters(), *model.item_projector.parameters()]
    optimizer = torch.optim.Adam(projectors, lr=1e-3)
    batch = processor.training_batch(HISTORIES, CANDIDATES, [20, 25, 33])
    losses = []
    for _ in range(6):
        losses.append(model(**batch).loss)
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert all(parameter.grad.any() for parameter in projectors if parameter.ndim > 1)
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None} == {
        "user_projector", "item_projector"
    }  # fmt: skip
    scores = model.eval().score(**processor(HISTORIES, CANDIDATES))
    model.save_pretrained(tmp_path, include_llm=True, export_code=True)
    again = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(again.score(**processor(HISTORIES, CANDIDATES)), scores)
    assert again.config.projector == kind


@pytest.mark.parametrize("kind", KINDS)
def test_warm_start_centres_inputs_and_ends_near_words_with_every_projector(kind):
    torch.manual_seed(0)
    projector = build_projector(kind, 6, 10, "gelu", num_tokens=3)
    inputs, words = 0.5 + 0.01 * torch.rand(50, 6), 3 + torch.randn(200, 10)
    start_near_words(projector, words, torch.Generator().manual_seed(0))
    bias, before = projector.first.bias.clone(), projector.first.weight.clone()
    centre_inputs(projector, inputs)
    standardised = (inputs - inputs.mean(dim=0)) / inputs.std(dim=0)
    torch.testing.assert_close(projector.first(inputs), standardised @ before.T + bias, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        outputs = projector(inputs)
    assert 0.2 < float((outputs - words.mean(dim=0)).std() / words.std()) < 5


def test_checkpoint_of_another_projector_is_refused(tmp_path):
    tiny_model(projector="linear").save_pretrained(tmp_path, include_llm=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "projector": "mlp"}))
    with pytest.raises(ALLMRecError, match=r"not those of its config.json"):
        AutoModel.from_pretrained(tmp_path)


# -- whole runs


@pytest.fixture
def aligned(finished_run, tmp_path):
    """Return a run folder that holds the stages up to the alignment."""
    later = shutil.ignore_patterns("project", "warm-start")
    return Path(shutil.copytree(finished_run, tmp_path / "run", ignore=later))


def trained_in(folder):
    """Return which parts of the model the checkpoints of stage 2 hold."""
    names: set[str] = set()
    for path in (folder / "checkpoints" / "project").rglob("*.safetensors"):
        names |= {part for name in load_file(path) for part in name.split(".") if part.endswith("_projector")}
    return names


@pytest.mark.parametrize(
    ("changes", "trained", "slots"),
    [
        ({"no_user_representation": True, "item_embedding": "random"}, {"item_projector"}, (False, True)),
        ({"no_joint_embedding": True, "projector": "resampler"}, {"user_projector"}, (True, False)),
    ],
    ids=["no user representation, random joint embedding", "no joint embedding"],
)
def test_stage_two_runs_under_every_ablation(aligned, small_data, small_parts, changes, trained, slots):
    few = arguments(max_validation_users=10, per_device_train_batch_size=8)
    few["project"]["max_steps"] = 3
    train(small_data, aligned, settings(small_parts, **changes), ("project",), few)
    assert trained_in(aligned) == trained
    template = PromptTemplate.from_dict(json.loads((aligned / "processor_config.json").read_text())["prompt"])
    assert (template.has_user_slot, template.has_item_slots) == slots
    model = AutoModel.from_pretrained(aligned)
    assert model.config.item_embedding == changes.get("item_embedding", "auto")
    assert model.config.item_embedding_seed == 3
    assert model.config.projector == changes.get("projector", "mlp")


def test_alignment_by_infonce_runs_and_differs(finished_run, small_data, small_parts, tmp_path):
    later = shutil.ignore_patterns("project", "warm-start", "align")
    folder = Path(shutil.copytree(finished_run, tmp_path / "run", ignore=later))
    wanted = settings(small_parts, matching_loss="infonce", matching_temperature=0.2, fine_tune_text_encoder=False)
    train(small_data, folder, wanted, ("align",), arguments())
    old, new = (load_file(path / "align" / "model.safetensors") for path in (finished_run, folder))
    name = "aligner.text_autoencoder.encoder.weight"
    assert np.isfinite(new[name].numpy()).all()
    assert not torch.equal(old[name], new[name])
    assert json.loads((folder / "run.json").read_text())["arguments"]["align"]["matching_temperature"] == 0.2


def test_what_stage_one_is_made_of_is_taken_over_by_stage_two():
    assert SECTIONS_OF_STAGE["align"] == ("align",)
    assert {*ALIGNMENT_WEIGHTS, "matching_loss", "matching_temperature"} <= set(AlignArguments.own_names())
    parameters = inspect.signature(AlignmentModule).parameters
    odd = dict(zip(ALIGNMENT_WEIGHTS, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), strict=True))
    infonce = {"matching_loss": "infonce", "matching_temperature": 0.6, "learn_matching_temperature": True}
    loss = AlignArguments(**odd, **infonce).loss()
    assert set(loss) <= set(parameters)
    assert loss == {
        "alpha": odd["item_reconstruction_weight"],
        "beta": odd["text_reconstruction_weight"],
        "matching": odd["matching_weight"],
        "recommendation": odd["recommendation_weight"],
        "cross_reconstruction": odd["cross_reconstruction_weight"],
        "text_recommendation": odd["text_recommendation_weight"],
        **infonce,
    }
    assert AlignArguments() == AlignArguments(matching_weight=1.0, recommendation_weight=1.0, matching_loss="mse")


FLAGS = {
    ("align", "matching_weight"): 0.25,
    ("align", "recommendation_weight"): 0.5,
    ("align", "matching_loss"): "infonce",
    ("align", "matching_temperature"): 0.1,
    ("align", "text_encoder_learning_rate"): 1e-5,
    ("align", "metric_for_best_model"): "ndcg@10",
    ("project", "item_embedding"): "random",
    ("project", "projector"): "resampler",
    ("project", "projector_tokens"): 4,
}


def flag(section, name):
    return f"--{section}.{name.replace('_', '-')}"


def test_flags_of_the_command_line_reach_the_run(small_parts, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(ALLMRecTrainer, "train", lambda self, *others, **options: given.append(self.args))
    options = [part for (section, name), value in FLAGS.items() for part in (flag(section, name), value)]
    stage = ("train", "--data", small_parts / "data", "--stage", "backbone", "--backbone.max-steps", 1)
    left_out = (flag("project", "no_user_representation"), "--backbone.options", "hidden_size=4")
    left_out += (flag("align", "learn_matching_temperature"),)
    succeeded(*stage, *left_out, "--output", tmp_path / "run", *options)
    assert {(section, name): getattr(getattr(given[0], section), name) for section, name in FLAGS} == FLAGS
    assert (given[0].project.no_user_representation, given[0].project.no_joint_embedding) == (True, False)
    assert given[0].align.learn_matching_temperature
    assert (given[0].backbone.max_steps, given[0].backbone.options) == (1, {"hidden_size": 4})


def test_command_line_refuses_a_prompt_without_any_slot(small_parts, tmp_path):
    both = (flag("project", "no_user_representation"), flag("project", "no_joint_embedding"))
    both += ("--llm", small_parts / "llm")
    text_encoder = ("--text-encoder", small_parts / "text_encoder")
    message = refused("train", "--data", small_parts / "data", *text_encoder, "--output", tmp_path / "run", *both)
    assert "nothing to train" in message
    assert not (tmp_path / "run").exists()


def test_an_llm_without_words_of_their_own_length_is_no_concern_of_the_resampler():
    model = tiny_model(None, projector="resampler", projector_tokens=1)
    model.attach_language_model(tiny_llm("opt"))  # embeddings narrower than the layers
    assert model.item_projector(torch.zeros(2, 8)).shape == (2, 16)


# -- short prompts


def test_prompt_options_reach_the_template_of_stage_2():
    short = ProjectArguments(candidates_in_prompt=False, answer_boundary="natural").template("movie")
    assert not short.lists_candidates
    assert (short.prompt[-3:], short.answer) == (" is", ' "{title}"')
    assert ProjectArguments().template("movie") == PromptTemplate.for_domain("movie")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"candidates_in_prompt": False, "prompt": {"prompt": "{user}{history}{candidates}"}}, "take out one"),
        ({"prompt": {"prompt": "{user}{history}"}}, r"no \{candidates\}.*set candidates_in_prompt to no"),
    ],
)
def test_a_template_of_ones_own_and_candidates_in_prompt_must_agree(changes, problem):
    with pytest.raises(ALLMRecError, match=problem):
        ProjectArguments(**changes).template("movie")


@pytest.mark.parametrize(("name", "boundary"), [("default", "natural"), ("quick", "natural"), ("paper", "paper")])
def test_presets_choose_the_boundary(name, boundary):
    assert ALLMRecTrainingArguments("runs/x", preset=name).project.answer_boundary == boundary
