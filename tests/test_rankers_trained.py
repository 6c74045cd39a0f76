"""Rankers that are trained or fitted: retrieval by the LLM's states, and fusions; their checkpoint and added items."""

import copy
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModel, pipeline

from allmrec_hf import ALLMRecProcessor, CheckpointError
from allmrec_hf.data.prepare import prepare
from allmrec_hf.errors import ALLMRecError
from allmrec_hf.evaluation.warmth import WarmthGroups
from allmrec_hf.hub import card_page
from allmrec_hf.language_model import first_layers, num_layers
from allmrec_hf.language_model_passes import last_states
from allmrec_hf.losses import catalogue_contrast
from allmrec_hf.ranker import CFScore, TextSimilarity, UserBatch
from allmrec_hf.ranker_built_in import RANKERS, build_ranker, compared_rankers, rankers_of
from allmrec_hf.ranker_fusion import gates, standardized
from allmrec_hf.ranker_likelihood import LIKELIHOOD_FORMS
from allmrec_hf.ranker_retrieval import RetrievalRanker
from allmrec_hf.ranker_words import SharedWords
from allmrec_hf.ranking import ndcg_at_k, target_ranks
from allmrec_hf.space import page_html
from allmrec_hf.training import fusion_fitting
from allmrec_hf.training.conditional_logit import FOLDS, fitted_weights, held_out_logits, held_out_loss
from allmrec_hf.training.fusion_fitting import (
    FusionSamples,
    fit_fusion,
    fusion_candidates,
    fusion_samples,
    held_out_users,
    weights_of_users,
)
from allmrec_hf.training.llms import load_llm
from allmrec_hf.training.retrieval_training import RetrievalModule, RetrievalTask
from allmrec_hf.training.samples import validation_targets
from allmrec_hf.training.section_arguments import RANKER_STAGES, RetrieveArguments
from allmrec_hf.training.stages import _first_ranker
from allmrec_hf.training.trainer import ALLMRecTrainer
from tests import command_line, small_run
from tests.tiny import FAMILIES, tiny_llm

RETRIEVE = {
    "dim": 8,
    "num_llm_layers": 1,
    "num_train_epochs": 1,
    "max_steps": 8,
    "per_device_train_batch_size": 16,
    "num_negatives": 8,
    "positions": 2,
    "max_validation_users": 40,
}
HISTORY = [3, 1, 7]


@pytest.fixture(scope="module")
def run(finished_run, small_parts, small_data, tmp_path_factory):
    """Return the folder of a run that carries every ranker."""
    folder = tmp_path_factory.mktemp("rankers") / "run"
    shutil.copytree(finished_run, folder)
    trainer_of(folder, small_parts, small_data).train(("retrieve", "rank"))
    return folder


def trainer_of(folder, parts, data, **sections):
    args = small_run.run_arguments(folder, small_run.settings(parts)).replaced(
        retrieve=RETRIEVE, rank={"num_candidates": 20, "max_validation_users": 60}, **sections
    )
    return ALLMRecTrainer(args=args, data=data)


@pytest.fixture(scope="module")
def loaded(run):
    return AutoModel.from_pretrained(run), ALLMRecProcessor.from_pretrained(run)


def test_one_checkpoint_carries_every_ranker_and_loads_them_again(loaded):
    model, processor = loaded
    names = rankers_of(model.config)
    assert names == ["likelihood", "letter", "retrieval", "fusion", "fusion_sum", "fusion_ranks", "text", "words", "cf"]
    users = UserBatch.encode(model, processor, [HISTORY])
    for name in names:
        found = build_ranker(name, model, processor).score(users, [[4, 11, 30]])
        assert found.scores.shape == (1, 3)
        assert found.scores.isfinite().all()
        assert found.parts
    assert model.config.ranker in names


def test_a_checkpoint_ranks_as_the_model_that_was_trained(run, loaded, small_parts, small_data):
    trainer = trainer_of(run, small_parts, small_data)
    model, processor = trainer.model, trainer.processor
    for name in ("retrieval", "fusion"):
        scores = [
            build_ranker(name, *parts).score(UserBatch.encode(*parts, [HISTORY]), [[4, 11]]).scores
            for parts in ((model, processor), loaded)
        ]
        assert torch.equal(*scores)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "lfm2"])
def test_the_llm_at_full_depth_is_the_llm_and_cut_it_is_its_first_layers(family):
    llm = tiny_llm(family)
    inputs = {"inputs_embeds": llm.get_input_embeddings()(torch.arange(1, 9).unsqueeze(0))}
    whole = llm(**inputs, output_hidden_states=True)
    with torch.no_grad():
        full = last_states(first_layers(llm), 8, **inputs)
        assert torch.allclose(full, last_states(first_layers(llm, num_layers(llm)), 8, **inputs))
        logits = llm.get_output_embeddings()(full)
        assert torch.allclose(logits, whole.logits, atol=1e-4)
        cut = first_layers(llm, 1)
        assert not torch.allclose(last_states(cut, 8, **inputs), full, atol=1e-3)
        assert next(cut.parameters()) is next(first_layers(llm).parameters())
    assert num_layers(llm) == 2  # the LLM itself is as it was


def test_the_first_layer_alone_by_hand():
    llm = tiny_llm("llama")
    embeds = llm.get_input_embeddings()(torch.arange(1, 9).unsqueeze(0))
    with torch.no_grad():
        states = llm(inputs_embeds=embeds, output_hidden_states=True).hidden_states[1]
        assert torch.allclose(
            last_states(first_layers(llm, 1), 8, inputs_embeds=embeds), llm.model.norm(states), atol=1e-5
        )


def test_the_depth_that_ranks_validation_users_best_stays(run, small_parts, small_data, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    sections = {"retrieve": {**RETRIEVE, "num_llm_layers": None, "llm_depths": "1,2"}}
    args = small_run.run_arguments(folder, small_run.settings(small_parts)).replaced(**sections)
    shutil.rmtree(folder / "checkpoints" / "retrieve")
    trainer = ALLMRecTrainer(args=args, data=small_data)
    trainer.train("retrieve")
    found = {
        layers: json.loads((folder / "checkpoints" / "retrieve" / f"layers-{layers}" / "training.json").read_text())
        for layers in (1, 2)
    }
    best = {layers: told["result"]["best"] for layers, told in found.items()}
    model = trainer.model
    assert model.config.rankers["retrieval"]["num_llm_layers"] == max(best, key=best.get)
    ranker = build_ranker("retrieval", model, trainer.processor)
    task = RetrievalTask(RetrievalModule(model, trainer.processor), small_data, args.retrieve.loop(), 2, 8)
    assert len(ranker.decoder.layers) == max(best, key=best.get)
    metrics = task.validate(np.arange(task.num_validation_examples), torch.device("cpu"))
    assert metrics["ndcg@10"].mean() == pytest.approx(max(best.values()))


def test_a_share_of_the_layers_is_rounded_up():
    assert RetrieveArguments(num_llm_layers=0.15).layers_of(30) == [5]
    assert RetrieveArguments(num_llm_layers=0.15).layers_of(2) == [1]
    assert RetrieveArguments(num_llm_layers=6).layers_of(30) == [6]
    assert RetrieveArguments(llm_depths="2, .5,6").layers_of(12) == [2, 6]
    assert RetrieveArguments().layers_of(12) == [None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_llm_layers": 2.5}, "num_llm_layers must be a whole number of layers, or a share"),
        ({"llm_depths": "2,many"}, "llm_depths must be a whole number of layers, or a share .* got 'many'"),
        ({"llm_depths": "0"}, "llm_depths must be"),
        ({"llm_depths": "2", "num_llm_layers": 2}, "both given"),
        ({"llm_depths": "2,4", "eval_strategy": "no"}, "eval_strategy is no"),
    ],
)
def test_an_impossible_depth_is_refused(options, message):
    with pytest.raises(ALLMRecError, match=message):
        RetrieveArguments(**options)


def test_more_layers_than_the_llm_has_are_refused():
    with pytest.raises(CheckpointError, match="between 1 and the 2 layers"):
        first_layers(tiny_llm(), 3)


@pytest.mark.parametrize("depths", [{"num_llm_layers": 3}, {"num_llm_layers": None, "llm_depths": "1,3"}])
@pytest.mark.parametrize("loaded_before", [True, False])
def test_more_layers_than_the_llm_has_are_refused_before_anything_is_trained(
    small_parts, small_data, tmp_path, depths, loaded_before
):
    flat = small_run.settings(small_parts)
    args = small_run.run_arguments(tmp_path / "run", flat).replaced(retrieve={**RETRIEVE, **depths})
    llm, tokenizer = load_llm(flat["llm_name"], None, {}) if loaded_before else (None, None)
    trainer = ALLMRecTrainer(args=args, data=small_data, llm=llm, tokenizer=tokenizer)
    with pytest.raises(CheckpointError, match="must be between 1 and the 2 layers of this LLM, got 3"):
        trainer.train(("backbone", "align", "retrieve", "rank"))
    assert not (tmp_path / "run").exists()


def test_the_item_side_is_made_once(loaded, monkeypatch):
    model, processor = loaded
    ranker = RetrievalRanker(model, processor)
    made = []
    monkeypatch.setattr(RetrievalRanker, "vectors_of_items", lambda self, items: made.append(items))
    for _ in range(2):
        ranker.retrieve(UserBatch.encode(model, processor, [HISTORY]), 5)
    assert made == []


def test_a_user_is_read_once_whatever_ranks_and_again_with_another_head(loaded, monkeypatch):
    model, processor = copy.deepcopy(loaded[0]), loaded[1]
    read = []
    states = RetrievalRanker.states
    monkeypatch.setattr(
        RetrievalRanker,
        "states",
        lambda self, rows, *rest: read.append(len(rows["input_ids"])) or states(self, rows, *rest),
    )
    users = UserBatch.encode(model, processor, [HISTORY, [5]])
    first = build_ranker("retrieval", model, processor).score(users, [[4], [11]]).scores
    for name in ("fusion", "retrieval", "fusion_sum"):
        build_ranker(name, model, processor).score(users, [[4], [11]])
    assert sum(read) == 2
    build_ranker("retrieval", model, processor).score(UserBatch.encode(model, processor, [[7], [5]]), [[4], [11]])
    assert sum(read) == 3
    with torch.no_grad():
        model.retrieval_head.user_output.weight.mul_(-1)
    again = build_ranker("retrieval", model, processor).score(users, [[4], [11]]).scores
    assert sum(read) == 5
    assert not torch.allclose(first, again)


def test_retrieval_ranks_the_catalogue_as_it_scores_candidates(loaded):
    model, processor = loaded
    for name in ("retrieval", "fusion", "text", "words"):
        ranker, users = build_ranker(name, model, processor), UserBatch.encode(model, processor, [HISTORY, [5]])
        found = ranker.retrieve(users, 10)
        again = ranker.score(users, found.item_indices.tolist()).scores
        assert torch.allclose(found.scores, again, atol=1e-5)
        assert not set(HISTORY) & set(found.item_indices[0].tolist())


def test_added_items_are_ranked_at_once_by_every_ranker(run):
    recommend = pipeline("recommendation", model=str(run))
    before = recommend.model.cf_encoder.num_items
    added = recommend.add_items([{"item_id": "new", "title": "A Brand New River", "description": "silent and lonely"}])
    history = recommend.processor.catalog.item_ids[:3]
    for name in rankers_of(recommend.model.config):
        row = recommend(
            {"history": history, "candidates": [*added, recommend.processor.catalog.item_ids[9]]}, ranker=name
        )
        assert {item["item_id"] for item in row} >= set(added)
        assert all(np.isfinite(item["score"]) for item in row)
    assert recommend.model.retrieval_head.item_vectors.shape[0] == before + 2
    assert recommend.model.retrieval_head.item_vectors.isfinite().all()


def test_the_parts_of_a_fusion_add_up_to_its_score(loaded):
    model, processor = loaded
    found = build_ranker("fusion", model, processor).score(UserBatch.encode(model, processor, [HISTORY]), [[4, 11, 30]])
    assert list(found.parts) == ["cf", "text", "words", "retrieval", "popularity"]
    assert torch.allclose(torch.stack(list(found.parts.values())).sum(0), found.scores, atol=1e-5)


def test_the_gate_is_closed_at_popularity_0_and_open_at_infinity():
    assert gates(torch.tensor([0.0, 5.0, 1e12]), 5.0).tolist() == pytest.approx([0.0, 0.5, 1.0])


def test_the_score_of_a_fusion_by_hand_with_the_gate_closed_half_open_and_open(loaded):
    model, processor = copy.deepcopy(loaded[0]), loaded[1]
    weights = {"parts": {"cf": [0.5, 2.0], "text": [1.0, 0.25]}, "popularity": 0.3}
    fusion = {"parts": ["cf", "text"], "pivot": 2.0, "gated": weights, "sum": weights}
    model.config.rankers = {**model.config.rankers, "fusion": fusion}
    model.item_table.interaction_counts[[4, 11, 30]] = torch.tensor([0, 2, 10**12])
    users, everything = UserBatch.encode(model, processor, [HISTORY]), [list(range(1, model.cf_encoder.num_items + 1))]
    z = {}
    for name in ("cf", "text"):
        raw = build_ranker(name, model, processor).score(users, everything).scores[0]
        z[name] = ((raw - raw.mean()) / raw.std(correction=0))[[3, 10, 29]]
    cold = 0.5 * z["cf"] + z["text"]
    warm = 2.0 * z["cf"] + 0.25 * z["text"] + 0.3
    by_hand = torch.stack([cold[0], (cold[1] + warm[1]) / 2, warm[2]])
    found = build_ranker("fusion", model, processor).score(users, [[4, 11, 30]]).scores[0]
    assert torch.allclose(found, by_hand, atol=1e-4)


@pytest.mark.parametrize("part", [CFScore, TextSimilarity, SharedWords, RetrievalRanker])
def test_a_fusion_does_not_change_when_a_part_is_shifted_and_scaled(loaded, monkeypatch, part):
    model, processor = loaded
    users = UserBatch.encode(model, processor, [HISTORY])
    before = build_ranker("fusion", model, processor).score(users, [[4, 11, 30]]).scores
    listed, shared = part.score_items, part.score_shared
    if part is not CFScore:  # whose items for all go through the lists
        monkeypatch.setattr(part, "score_shared", lambda self, vectors, items: 3 * shared(self, vectors, items) + 7)
    monkeypatch.setattr(part, "score_items", lambda self, vectors, items: 3 * listed(self, vectors, items) + 7)
    after = build_ranker("fusion", model, processor).score(users, [[4, 11, 30]]).scores
    assert torch.allclose(before, after, atol=1e-4)


def test_standardized_scores_by_hand():
    found = standardized(
        torch.tensor([[1.0, 3.0, 99.0], [2.0, 2.0, 2.0]]), torch.tensor([[True, True, False], [True] * 3])
    )
    assert found.tolist() == [[-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


def test_fitting_finds_the_part_that_tells_the_target():
    generator = torch.Generator().manual_seed(0)
    good, noise = torch.randn(2, 200, 10, generator=generator)
    columns = good.argmax(dim=1)
    samples = FusionSamples(torch.stack([good, noise]), torch.ones(200, 10), columns)
    fitted = fit_fusion(samples, ["good", "noise"])
    assert fitted["sum"]["parts"]["good"][0] > 5 * abs(fitted["sum"]["parts"]["noise"][0])
    assert fitted["users"] == 200


def test_fitted_weights_are_those_of_the_convex_optimum():
    features = torch.tensor([[[1.0], [0.0]]] * 3 + [[[0.0], [1.0]]])
    columns = torch.zeros(4, dtype=torch.long)
    weight = fitted_weights(features, columns).item()
    assert weight == pytest.approx(np.log(3), abs=0.05)  # three of four: odds of 3


def test_held_out_logits_are_by_the_weights_of_the_other_folds():
    generator = torch.Generator().manual_seed(0)
    features, shown = torch.randn(23, 6, 2, generator=generator), torch.randn(23, 4, 2, generator=generator)
    columns = torch.randint(6, (23,), generator=generator)
    folds = np.random.default_rng(5).permutation(23) % FOLDS
    found = held_out_logits(features, columns, 5, shown)
    for user in (0, 11, 22):
        others = torch.from_numpy(folds != folds[user])
        by_hand = shown[user].double() @ fitted_weights(features[others], columns[others])
        assert torch.allclose(found[user], by_hand)
    loss = torch.nn.functional.cross_entropy(held_out_logits(features, columns, 5), columns)
    assert held_out_loss(features, columns, 5) == pytest.approx(loss.item())


def test_a_user_of_weight_two_counts_as_two_users():
    generator = torch.Generator().manual_seed(0)
    features, columns = torch.randn(12, 5, 2, generator=generator), torch.arange(12) % 5
    weights = torch.ones(12)
    weights[:3] = 2.0
    twice = torch.cat([torch.arange(12), torch.arange(3)])
    found = fitted_weights(features, columns, weights)
    assert torch.allclose(found, fitted_weights(features[twice], columns[twice]), atol=1e-5)
    assert not torch.allclose(found, fitted_weights(features, columns), atol=1e-3)
    losses = torch.nn.functional.cross_entropy(
        held_out_logits(features, columns, 5, user_weights=weights), columns, reduction="none"
    )
    by_hand = (2 * losses[:3].sum() + losses[3:].sum()) / 15
    assert held_out_loss(features, columns, 5, weights) == pytest.approx(by_hand.item())


def test_users_of_cold_targets_are_those_of_the_reports(small_data):
    targets = small_data.candidates("validation").targets
    cold = WarmthGroups.from_counts(small_data.item_counts("train")).members(targets)["cold"]
    assert 0 < cold.sum() < len(cold)
    assert weights_of_users(small_data, targets, 3.0).tolist() == [3.0 if each else 1.0 for each in cold]
    assert weights_of_users(small_data, targets, 1.0) is None


def test_the_contrast_in_chunks_is_the_contrast_and_over_the_whole_catalogue_the_softmax():
    torch.manual_seed(0)
    users, items, columns = torch.randn(4, 6), torch.randn(9, 6), torch.tensor([0, 3, 8, 3])
    none = torch.zeros(4, 9, dtype=torch.bool)
    full = catalogue_contrast(users, items, columns, torch.zeros(9), none)
    assert torch.allclose(full, torch.nn.functional.cross_entropy(users @ items.T, columns))
    rates, seen = torch.randn(9), torch.rand(4, 9) < 0.3
    whole = catalogue_contrast(users, items, columns, rates, seen)
    assert torch.allclose(whole, catalogue_contrast(users, items, columns, rates, seen, chunk=2), atol=1e-6)


def test_a_ranker_that_is_not_trained_is_refused_with_what_to_do(finished_run):
    model, processor = AutoModel.from_pretrained(finished_run), ALLMRecProcessor.from_pretrained(finished_run)
    for name, stage in (("retrieval", "retrieve"), ("fusion", "rank"), ("text", "rank")):
        with pytest.raises(CheckpointError, match=f"--stage {stage}.*it has likelihood, letter, cf"):
            build_ranker(name, model, processor)


def test_retrieval_can_be_trained_without_stage_2(finished_run, small_parts, small_data, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    shutil.rmtree(folder / "project")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / "align" / name, folder / name)
    trainer_of(folder, small_parts, small_data).train(("retrieve", "rank"))
    config = AutoModel.from_pretrained(folder).config
    assert "likelihood" not in rankers_of(config)
    assert {"retrieval", "fusion"} <= set(rankers_of(config))
    assert config.ranker in ("retrieval", "fusion", "text", "cf")


def test_a_rank_stage_with_nothing_to_put_together_is_refused(small_parts, small_data, tmp_path):
    trainer = trainer_of(tmp_path / "run", small_parts, small_data)
    trainer.train(("backbone", "align"))
    with pytest.raises(ALLMRecError, match="holds neither"):
        trainer.train("rank")


def test_a_fusion_of_a_part_that_the_checkpoint_lacks_is_refused(finished_run, small_parts, small_data, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    trainer = trainer_of(folder, small_parts, small_data)
    args = trainer.args.replaced(rank={"fusion_parts": "cf,retrieval"})
    with pytest.raises(ALLMRecError, match=r"\['retrieval'\], but this checkpoint has"):
        ALLMRecTrainer(args=args, data=small_data).train("rank")


def test_the_order_in_which_parts_are_named_changes_no_weight(run, small_parts, small_data, tmp_path):
    found = []
    for number, names in enumerate(("text,likelihood,cf", "cf, text,likelihood", "likelihood,likelihood,cf,text")):
        folder = shutil.copytree(run, tmp_path / str(number))
        trainer = trainer_of(folder, small_parts, small_data)
        rank = {"fusion_parts": names, "num_candidates": 20, "max_validation_users": 30}
        ALLMRecTrainer(args=trainer.args.replaced(rank=rank), data=small_data).train("rank")
        found.append(json.loads((folder / "config.json").read_text())["rankers"]["fusion"])
    assert found[0]["parts"] == ["cf", "text", "likelihood"]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("cold_weight", [1.0, 4.0])
def test_what_the_stage_tells_of_each_ranker_is_what_it_scores(
    run, small_parts, small_data, tmp_path, monkeypatch, cold_weight
):
    folder, messages = shutil.copytree(run, tmp_path / "run"), []
    trainer = trainer_of(folder, small_parts, small_data)
    trainer.args = trainer.args.replaced(rank={"cold_weight": cold_weight})
    monkeypatch.setattr(fusion_fitting.logger, "info", lambda text, *values: messages.append(text % values))
    trainer.train("rank")
    told = dict(re.findall(r"(\w+) (\d\.\d{4})", messages[-1].split("validation users: ")[-1]))
    rows = held_out_users(small_data, trainer.args.project, trainer.args.rank)
    samples = validation_targets(small_data).take(rows)
    stored = small_data.candidates("validation").take(rows).items
    users = UserBatch.encode(trainer.model, trainer.processor, [list(history) for history in samples.histories])
    columns = (stored == samples.targets[:, None]).argmax(axis=1)
    fusion = trainer.model.config.rankers["fusion"]
    drawn = fusion_candidates(small_data, samples, trainer.args.rank.num_candidates, trainer.args.rank.seed)
    own, shown = (
        fusion_samples(trainer.model, trainer.processor, fusion["parts"], samples, items) for items in (drawn, stored)
    )
    user_weights = weights_of_users(small_data, samples.targets, cold_weight)
    assert fusion == fit_fusion(own, fusion["parts"], 0, user_weights) | {"cold_weight": cold_weight}
    features = own.features(fusion["pivot"]), shown.features(fusion["pivot"])
    logits = held_out_logits(features[0], own.columns, 0, features[1], user_weights)
    assert float(told["fusion"]) == pytest.approx(ndcg_at_k(target_ranks(logits.numpy(), columns), 10).mean(), abs=1e-4)
    for name in ("cf", "text", "retrieval", "likelihood"):
        scores = build_ranker(name, trainer.model, trainer.processor).score(users, stored.tolist()).scores
        ndcg = ndcg_at_k(target_ranks(scores.numpy(), columns), 10).mean()
        assert float(told[name]) == pytest.approx(ndcg, abs=1e-4)


def test_an_evaluation_shows_every_ranker_side_by_side(run, small_parts, small_data):
    trainer = trainer_of(run, small_parts, small_data)
    methods = list(trainer.evaluate(max_users=20).ranks)
    first = trainer.model.config.ranker
    assert methods[0] == f"a-llmrec {first}"
    assert {f"a-llmrec {name}" for name in compared_rankers(trainer.model.config)} < set(methods)
    assert "a-llmrec letter" not in methods  # which nobody asked training for
    assert methods[-2:] == ["sasrec", "popularity"]


def test_the_command_line_chooses_a_ranker(run, small_parts):
    history = ",".join(ALLMRecProcessor.from_pretrained(run).catalog.item_ids[:3])
    found = command_line.succeeded("recommend", "--model", str(run), "--history", history, "--ranker", "cf", "--json")
    assert list(json.loads(found.stdout)["recommendations"][0]["parts"]) == ["cf"]
    report = command_line.succeeded(
        *("evaluate", "--model", str(run), "--data", str(small_parts / "data"), "--max-users", "10", "--json"),
        *("--ranker", "fusion", "--ranker", "text"),
    )
    assert list(json.loads(report.stdout)["methods"])[:2] == ["a-llmrec fusion", "a-llmrec text"]


def test_forms_of_the_likelihood_are_kept_as_asked_and_shown_beside_it(run, small_parts, small_data, tmp_path):
    folder, form = tmp_path / "run", "likelihood_calibrated"
    shutil.copytree(run, folder)
    for rankers, kept in ((f"likelihood,{form},fusion", True), ("likelihood,fusion", False)):
        own = {"rankers": rankers, "fusion_parts": f"cf,{form}" if kept else "cf,text"}
        own |= {"num_candidates": 20, "max_validation_users": 60}
        trainer = trainer_of(folder, small_parts, small_data)
        trainer = ALLMRecTrainer(args=trainer.args.replaced(rank=own), data=small_data)
        trainer.train("rank")
        config = AutoModel.from_pretrained(folder).config
        assert (form in rankers_of(config)) == kept
        if kept:
            assert config.rankers["fusion"]["parts"] == ["cf", form]
            methods = trainer.evaluate(max_users=5).to_dict()["methods"]
            assert {"a-llmrec likelihood", f"a-llmrec {form}", "a-llmrec fusion"} < set(methods)


@pytest.mark.parametrize(
    ("rankers", "first"),
    [("likelihood_mean", "likelihood_mean"), ("letter,likelihood_mean,likelihood", "likelihood"), ("letter", "letter")],
)
def test_a_run_without_the_stage_rank_ranks_by_what_it_names(rankers, first):
    from allmrec_hf import ALLMRecTrainingArguments

    args = ALLMRecTrainingArguments("runs/x", rank=rankers)
    assert args.rank.steps() == ("backbone", "align", "project")
    assert _first_ranker(SimpleNamespace(args=args)) == first


def test_every_ranker_has_its_words_and_those_that_are_asked_for_a_stage():
    optional = set(LIKELIHOOD_FORMS) | {"likelihood", "letter", "retrieval", "zero_shot", "fusion"}
    assert set(RANKER_STAGES) == optional
    assert set(RANKERS) == set(card_page.RANKERS)
    assert set(RANKERS) <= set(page_html.WORDS)


def test_a_head_trained_later_leaves_a_default_that_it_has(finished_run, small_parts, small_data, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    trainer = trainer_of(folder, small_parts, small_data)
    args = trainer.args.replaced(rank={"rankers": "likelihood_mean,retrieval"}, retrieve={"max_steps": 2})
    ALLMRecTrainer(args=args, data=small_data).train("retrieve")
    config = AutoModel.from_pretrained(folder).config
    assert config.ranker == "likelihood_mean"
    assert config.ranker in rankers_of(config)


def test_rankers_and_their_steps():
    from allmrec_hf import ALLMRecTrainingArguments

    args = ALLMRecTrainingArguments("runs/x", rank="retrieval,fusion")
    assert args.rank.steps() == ("backbone", "align", "retrieve", "rank")
    assert ALLMRecTrainingArguments("runs/x", rank="zero_shot,fusion").rank.steps() == ("backbone", "align", "rank")
    assert ALLMRecTrainingArguments("runs/x", rank="fusion").rank.steps() == ("backbone", "align", "rank")
    for wrong in ("", "luck"):
        with pytest.raises(ALLMRecError, match=r"rankers are of likelihood, .*, letter, retrieval, zero_shot, fusion"):
            ALLMRecTrainingArguments("runs/x", rank=wrong)


def test_a_fusion_of_parts_that_rank_lists_alone_retrieves_by_the_backbone(loaded):
    model, processor = copy.deepcopy(loaded[0]), loaded[1]
    fusion = {**model.config.rankers["fusion"], "parts": ["likelihood"]}
    fusion["gated"] = fusion["sum"] = {"parts": {"likelihood": [1.0, 1.0]}, "popularity": 0.0}
    model.config.rankers = {**model.config.rankers, "fusion": fusion}
    recommend = pipeline("recommendation", model=model, processor=processor)
    request = {"history": processor.catalog.item_ids[:3]}
    for name in ("fusion", "fusion_sum", "fusion_ranks"):
        found = recommend(request, ranker=name, num_candidates=6, top_k=6)
        backbone = recommend(request, ranker="cf", num_candidates=6, top_k=6)
        assert {item["item_id"] for item in found} == {item["item_id"] for item in backbone}


def test_a_user_who_repeats_items_takes_no_candidates_from_the_others(tmp_path):
    rows = [(f"u{user}", f"i{(user + place) % 30}", place) for user in range(20) for place in range(5)]
    rows += [("again", f"i{place % 4}", place) for place in range(40)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    data = prepare(frame, output=tmp_path / "d", filter="none", num_candidates=5)
    samples = validation_targets(data)
    assert fusion_candidates(data, samples, 500, 0).shape == (len(samples), data.num_items - 4)
