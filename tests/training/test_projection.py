"""Stage 2: what is trained, on which candidates, and by which losses."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from allmrec_hf.errors import ALLMRecError, DataError
from allmrec_hf.ranker import TitleLikelihood, UserBatch
from allmrec_hf.ranking import ndcg_at_k, target_ranks
from allmrec_hf.training import projection
from allmrec_hf.training.loop import run_stage
from allmrec_hf.training.projection import ProjectionModule, ProjectionTask, candidate_items
from allmrec_hf.training.samples import Samples
from allmrec_hf.training.stage_arguments import StageArguments
from tests.tiny import tiny_model, tiny_processor

C = 4
ARGUMENTS = StageArguments(per_device_train_batch_size=6, max_validation_users=12, seed=7)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def processor(small_data):
    return tiny_processor(small_data.catalog, history_in_prompt=3)


@pytest.fixture(scope="module")
def fresh(small_data):
    return tiny_model("llama", num_items=small_data.num_items)


def task_of(model, processor, data, targets="train", loss="lm", arguments=ARGUMENTS, num_candidates=C):
    module = ProjectionModule(model, loss)
    return ProjectionTask(module, processor, data, targets, num_candidates, arguments)


def candidates_of(batch, row):
    """Return the items whose vectors the prompt of one row shows behind the history's."""
    slots = batch["slot_ids"][row]
    return slots[slots > 0].tolist()[-C:]


def test_candidates_of_a_prompt_hold_the_target_once_and_nothing_touched(fresh, processor, small_data):
    task = task_of(fresh, processor, small_data)
    known = small_data.sequences("train")
    for seed in range(5):
        rows = np.arange(30)
        batch = task.collate(rows, np.random.default_rng(seed))
        for row in rows:
            user, target = task.samples.users[row], task.samples.targets[row]
            shown = candidates_of(batch, row)
            assert shown.count(target) == 1
            assert not (set(shown) - {target}) & set(known[user].tolist())


@pytest.mark.parametrize("targets", ["train", "validation"])
def test_candidates_are_items_that_are_targets_in_training(fresh, processor, small_data, targets):
    task = task_of(fresh, processor, small_data, targets)
    trained = {item for sequence in small_data.sequences("train") for item in sequence[1:].tolist()}
    right = trained | set(task.samples.targets.tolist())
    known = small_data.sequences("train" if targets == "train" else "train+validation")
    shown = set()
    for seed in range(20):
        candidates = task.sampler.candidates(task.samples, C, np.random.default_rng(seed))
        shown |= set(candidates.flatten().tolist())
        for user, row, target in zip(task.samples.users, candidates, task.samples.targets, strict=True):
            assert not (set(row.tolist()) - {target}) & set(known[user].tolist())
    assert shown <= right
    touched = set(small_data.item_counts("train+validation").nonzero()[0].tolist())
    assert touched - right or targets == "validation"  # what was touched, but is never right
    first = candidate_items(small_data, task.samples.take(np.arange(0)))
    assert set(first.tolist()) == trained
    assert {3, *trained} == set(candidate_items(small_data, Samples(np.zeros(1), [], np.array([3]))).tolist())


def test_prompts_are_bucketed_without_tokenising_a_title(fresh, processor, small_data, monkeypatch):
    read = []
    answer_tokens = processor.answer_tokens
    monkeypatch.setattr(processor, "answer_tokens", lambda *a, **k: (read.append(a), answer_tokens(*a, **k))[1])
    task = task_of(fresh, processor, small_data)
    batches = task.batches(0)
    assert not read
    titles = [small_data.catalog.title(index) for index in range(1, small_data.num_items + 1)]
    lengths = [sum(len(titles[i - 1]) for i in history[-3:]) for history in task.samples.histories]
    spread = [np.ptp([lengths[row] for row in batch]) for batch in batches]
    assert np.mean(spread) < np.ptp(lengths) / 4
    task.collate(batches[0], np.random.default_rng(0))
    assert len(read) <= 2 * len(batches[0]) * (C + 3)


def test_a_target_stands_at_every_place_equally_often(fresh, processor, small_data):
    task = task_of(fresh, processor, small_data)
    rows = np.arange(len(task.samples))
    places = np.zeros(C)
    for seed in range(5):
        batch = task.collate(rows, np.random.default_rng(seed))
        for row in rows:
            places[candidates_of(batch, row).index(task.samples.targets[row])] += 1
    expected = 5 * len(rows) / C
    assert np.abs(places - expected).max() < 5 * (expected * (1 - 1 / C)) ** 0.5


@pytest.mark.parametrize("loss", ["lm", "listwise"])
def test_a_batch_is_a_function_of_its_generator(fresh, processor, small_data, loss):
    task = task_of(fresh, processor, small_data, loss=loss)
    first, again, other = (task.collate(np.arange(6), np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert first["input_ids"].shape != other["input_ids"].shape or not first["slot_ids"].equal(other["slot_ids"])


def test_order_of_users_follows_seed_and_epoch(fresh, processor, small_data):
    task = task_of(fresh, processor, small_data)
    flat = [np.concatenate(task.batches(epoch)).tolist() for epoch in (0, 0, 1)]
    assert flat[0] == flat[1] != flat[2]
    assert sorted(flat[0]) == list(range(len(task.samples)))


def test_training_targets_are_the_last_training_items(fresh, processor, small_data):
    task = task_of(fresh, processor, small_data, targets="train")
    assert task.samples.targets.tolist() == [sequence[-1] for sequence in small_data.sequences("train")]
    assert task.num_validation_examples == 12


def test_with_validation_targets_no_user_both_trains_and_validates(fresh, processor, small_data):
    for limit in (12, None):
        task = task_of(
            fresh, processor, small_data, "validation", arguments=ARGUMENTS.replaced(max_validation_users=limit)
        )
        trains, validates = set(task.samples.users.tolist()), set(task.validation.users.tolist())
        assert not trains & validates
        assert len(trains | validates) == len(small_data.candidates("validation").users)
        assert len(validates) == (12 if limit else 20)
        assert task.validation_candidates.users.tolist() == task.validation.users.tolist()
    assert all(len(task.samples.histories[row]) for row in range(len(task.samples)))
    target = {
        int(u): t
        for u, t in zip(*[getattr(small_data.candidates("validation"), n) for n in ("users", "targets")], strict=True)
    }
    assert [target[int(user)] for user in task.samples.users] == task.samples.targets.tolist()


@pytest.mark.parametrize("loss", ["lm", "listwise"])
def test_training_lowers_the_loss_and_changes_the_projectors_alone(fresh, processor, small_data, tmp_path, loss):
    model = copy.deepcopy(fresh)
    before = {name: value.clone() for name, value in [*model.named_parameters(), *model.named_buffers()]}
    task = task_of(model, processor, small_data, loss=loss)
    arguments = ARGUMENTS.replaced(
        num_train_epochs=4, max_steps=40, per_device_train_batch_size=6, learning_rate=3e-3, max_validation_users=4
    )
    task.samples = task.samples.take(np.arange(12))  # so few that they can be learned by heart
    fixed = [task.collate(np.arange(12), np.random.default_rng(seed)) for seed in range(3)]

    def mean_loss():
        with torch.no_grad():
            return float(np.mean([float(task.module(batch)["loss"]) for batch in fixed]))

    start = mean_loss()
    task.validation = task.validation.take(np.arange(0))  # the last weights count, not the best of four other users
    run_stage(task, arguments.replaced(num_train_epochs=20), tmp_path)
    assert mean_loss() < start - 0.1
    after = dict([*model.named_parameters(), *model.named_buffers()])
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    projectors = {name for name in before if "_projector." in name}
    assert changed == projectors


def test_weight_of_a_batch_is_its_answer_tokens_or_its_users(fresh, processor, small_data):
    task = task_of(fresh, processor, small_data)
    batch = task.collate(np.arange(5), np.random.default_rng(0))
    assert task.loss_weight(batch) == sum(len(processor.answer_tokens(int(t))) for t in task.samples.targets[:5])
    listwise = task_of(fresh, processor, small_data, loss="listwise")
    assert listwise.loss_weight(listwise.collate(np.arange(5), np.random.default_rng(0))) == 5


@pytest.mark.parametrize("loss", ["lm", "listwise"])
def test_loss_of_a_batch_is_the_weighted_mean_of_its_users(fresh, processor, small_data, loss):
    task = task_of(fresh, processor, small_data, loss=loss)
    batch = task.collate(np.arange(4), np.random.default_rng(0))
    with torch.no_grad():
        together = float(task.module(batch)["loss"])
        total = weight = 0.0
        for row in range(4):
            alone = {name: value[row : row + 1] for name, value in batch.items()}
            total += float(task.module(alone)["loss"]) * task.loss_weight(alone)
            weight += task.loss_weight(alone)
    assert together == pytest.approx(total / weight, rel=1e-4)  # fp32 through two layers, other padding


def test_listwise_loss_is_the_softmax_of_mean_log_likelihoods(fresh, processor, small_data):
    task = task_of(fresh, processor, small_data, loss="listwise")
    batch = task.collate(np.arange(3), np.random.default_rng(0))
    with torch.no_grad():
        found = float(task.module(batch)["loss"])
        rest = {name: value for name, value in batch.items() if name != "target_columns"}
        sums = fresh.score(**rest, method="naive")
        expected = 0.0
        for row in range(3):
            lengths = [len(processor.answer_tokens(int(item))) for item in batch["candidate_ids"][row]]
            means = [float(value) / length for value, length in zip(sums[row], lengths, strict=True)]
            column = int(batch["target_columns"][row])
            assert int(batch["candidate_ids"][row, column]) == task.samples.targets[row]
            expected += (np.log(np.exp(means).sum()) - means[column]) / 3
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("loss", "family"), [("lm", "llama"), ("listwise", "llama"), ("listwise", "mistral")])
def test_checkpointing_activations_changes_neither_loss_nor_gradient(processor, small_data, loss, family):
    fresh = tiny_model(family, num_items=small_data.num_items)
    assert fresh.scoring_method == "tree"
    fresh.scoring_method = {"llama": "tree", "mistral": "prefix_cache"}[family]
    results = []
    for checkpointing in (False, True):
        model = copy.deepcopy(fresh)
        if checkpointing:
            model.checkpoint_activations()
        task = task_of(model, processor, small_data, loss=loss)
        task.module.train()
        value = task.module(task.collate(np.arange(3), np.random.default_rng(0)))["loss"]
        value.backward()
        results.append((value.detach(), model.user_projector.layers[0].weight.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


def test_validation_ranks_the_seeded_candidates(fresh, processor, small_data):
    task = task_of(fresh, processor, small_data, "validation")
    rows = np.arange(task.num_validation_examples)
    found = task.validate(rows, CPU)
    halves = [task.validate(part, CPU) for part in np.array_split(rows, 2)]
    assert task.metric in found
    for name, values in found.items():
        assert values.shape == rows.shape
        np.testing.assert_allclose(values, np.concatenate([half[name] for half in halves]))
    assert set(found["hit@1"].tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("normalization", ["mean", "calibrated", "vector_gain"])
def test_validation_ranks_by_the_form_that_the_checkpoint_has(processor, small_data, normalization):
    model = tiny_model("llama", num_items=small_data.num_items, score_normalization=normalization)
    task = task_of(model, processor, small_data, "validation")
    rows = np.arange(6)
    histories = [task.validation.histories[row].tolist() for row in rows]
    items = task.validation_candidates.take(rows)
    by_hand = TitleLikelihood(model, processor).score(
        UserBatch.encode(model, processor, histories), items.items.tolist()
    )
    ranks = target_ranks(by_hand.scores.numpy(), items.target_columns)
    np.testing.assert_allclose(task.validate(rows, CPU)["ndcg@10"], ndcg_at_k(ranks, 10))


def test_validation_never_gives_the_llm_more_users_than_a_batch(fresh, processor, small_data, monkeypatch):
    task = task_of(fresh, processor, small_data, "validation")
    sizes = []
    score = fresh.score
    monkeypatch.setattr(fresh, "score", lambda **batch: sizes.append(len(batch["input_ids"])) or score(**batch))
    task.batch_size = 3
    task.validate(np.arange(task.num_validation_examples), CPU)
    assert max(sizes) == 3
    assert sum(sizes) == task.num_validation_examples


def test_more_candidates_than_items_are_refused(fresh, processor, small_data):
    task = task_of(fresh, processor, small_data, num_candidates=200)
    with pytest.raises(DataError, match="has 96 items, but a candidate set needs 200"):
        task.collate(np.arange(2), np.random.default_rng(0))


# -- a budget of tokens


def budgeted(model, processor, data, max_tokens, loss="lm", arguments=ARGUMENTS):
    return ProjectionTask(ProjectionModule(model, loss), processor, data, "train", C, arguments, max_tokens)


@pytest.mark.parametrize("loss", ["lm", "listwise"])
def test_parts_of_a_batch_keep_the_budget_and_sum_to_its_gradient(fresh, processor, small_data, loss):
    task = budgeted(copy.deepcopy(fresh), processor, small_data, 700, loss)
    batch = task.collate(np.arange(6), np.random.default_rng(0))
    read = batch["attention_mask"].sum(dim=1)
    if loss == "listwise":
        read = read + batch["answer_mask"].flatten(1).sum(dim=1)
    parts = task.parts(batch)
    assert len(parts) > 1
    assert sum(len(part["input_ids"]) for part in parts) == 6
    for part in parts:
        assert part["attention_mask"].any(dim=0)[0]  # no column is padding alone
        longest = part["attention_mask"].sum(dim=1)
        if loss == "listwise":
            longest = longest + part["answer_mask"].flatten(1).sum(dim=1)
        assert len(longest) * int(longest.max()) <= 700 < int(read.sum())

    def gradient(some):
        task.module.zero_grad()
        total = sum(task.loss_weight(part) for part in some)
        for part in some:
            (task.module(part)["loss"] * task.loss_weight(part) / total).backward()
        return torch.cat([p.grad.flatten() for p in task.module.parameters() if p.grad is not None])

    torch.testing.assert_close(gradient(parts), gradient([batch]), rtol=1e-3, atol=1e-6)


def test_a_budget_of_tokens_trains_the_same_and_the_llm_never_reads_more(fresh, processor, small_data, tmp_path):
    arguments = StageArguments(per_device_train_batch_size=6, max_steps=3, max_validation_users=6, seed=7)
    weights, most = [], []
    for budget in (None, 500):
        model = copy.deepcopy(fresh)
        task = budgeted(model, processor, small_data, budget, arguments=arguments)
        read = []
        model.language_model.register_forward_pre_hook(
            lambda module, args, inputs, read=read: read.append(inputs["inputs_embeds"].shape[:2].numel()),
            with_kwargs=True,
        )
        run_stage(task, arguments, tmp_path / str(budget), progress=None)
        weights.append(torch.cat([p.detach().flatten() for p in model.user_projector.parameters()]))
        most.append(max(read))
    assert most[1] <= 500 < most[0]
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=1e-5)


def test_without_a_budget_a_cpu_reads_a_batch_in_parts_and_an_accelerator_whole(
    fresh, processor, small_data, monkeypatch
):
    task = budgeted(fresh, processor, small_data, None)
    batch = task.collate(np.arange(6), np.random.default_rng(0))
    longest = int(batch["attention_mask"].sum(dim=1).max())
    sizes = []
    for tokens in (6 * longest, 3 * longest, 1):  # less than one prompt: then the longest one is the budget
        monkeypatch.setattr(projection, "TOKENS_ON_CPU", tokens)
        parts = task.parts(batch)
        assert all(part["input_ids"].numel() <= max(tokens, longest) for part in parts)
        sizes.append(sum(len(part["input_ids"]) for part in parts) / len(parts))
    assert sizes[0] == 6 > sizes[1] > sizes[2] >= 1
    monkeypatch.setattr(type(fresh), "device", torch.device("cuda"))
    assert task.parts(batch) == [batch]


def test_a_budget_below_one_prompt_is_an_error_with_the_budget_it_takes(fresh, processor, small_data):
    task = budgeted(fresh, processor, small_data, 20)
    with pytest.raises(ALLMRecError, match=r"more than the 20 that are to be read at once; give at least \d+"):
        task.parts(task.collate(np.arange(3), np.random.default_rng(0)))
