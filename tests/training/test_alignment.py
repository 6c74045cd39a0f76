"""Stage 1: what the loss is, what it trains, and what is encoded how often."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from allmrec_hf import SASRecConfig
from allmrec_hf.aligner import ItemTextAligner
from allmrec_hf.cf_encoder import build_cf_encoder
from allmrec_hf.errors import ALLMRecError
from allmrec_hf.part_sources import DEMO_PARTS
from allmrec_hf.training.alignment import AlignmentModule, AlignmentTask, encode_texts, text_embedding_table
from allmrec_hf.training.cold_items import fill_item_table
from allmrec_hf.training.stage_arguments import StageArguments
from tests.small_run import text_encoder
from tests.tiny import tiny_model

ALPHA, BETA, LENGTH = 0.5, 0.2, 12


def module_of(data, fine_tune=True, encoder=None):
    torch.manual_seed(0)
    cf_encoder = build_cf_encoder(SASRecConfig(num_items=data.num_items, hidden_size=16, max_history_length=LENGTH))
    aligner = ItemTextAligner(16, 12, 8)
    encoder = encoder or text_encoder()
    return AlignmentModule(cf_encoder, aligner, data.catalog.texts(), encoder, fine_tune, ALPHA, BETA)


def task_of(data, positions="last", fine_tune=True, **changes):
    return AlignmentTask(
        module_of(data, fine_tune), data, positions, StageArguments(per_device_train_batch_size=8, **changes)
    )


def batch_of(task, rows=(0, 1), seed=0):
    return task.collate(np.array(rows), np.random.default_rng(seed))


def softplus(value):
    return math.log1p(math.exp(-abs(value))) + max(value, 0.0)


def by_hand(module, batch):
    """Redo the loss of the last positions with loops over plain numbers."""
    aligner = module.aligner
    states = module.cf_encoder.sequence_states(batch["item_ids"], batch["attention_mask"])
    embeddings = module.cf_encoder.item_embeddings
    total, users = 0.0, len(states)
    for user in range(users):
        for item, is_target in ((batch["targets"][user, -1], True), (batch["negatives"][user, -1], False)):
            original = embeddings[item]
            text = module.text_encoder.encode([module.texts[int(item) - 1]], convert_to_tensor=True)[0]
            joint = 1 / (1 + torch.exp(-aligner.item_autoencoder.encoder(original)))
            text_joint = 1 / (1 + torch.exp(-aligner.text_autoencoder.encoder(text)))
            decoded, text_decoded = aligner.decode_items(joint), aligner.decode_texts(text_joint)
            logit = sum(float(a) * float(b) for a, b in zip(states[user, -1], decoded, strict=True)) / len(decoded)
            total += float(((joint - text_joint) ** 2).mean()) / users
            total += ALPHA * float(((decoded - original) ** 2).mean()) / users
            total += BETA * float(((text_decoded - text) ** 2).mean()) / users
            total += softplus(-logit if is_target else logit) / users
    return total


def test_loss_equals_the_sum_of_its_terms_redone_by_hand(small_data):
    task = task_of(small_data)
    batch = batch_of(task)
    with torch.no_grad():
        terms = task.module.eval()(batch)
        assert float(terms["loss"]) == pytest.approx(by_hand(task.module, batch), rel=1e-5)  # fp32 against doubles
    parts = {name: float(value) for name, value in terms.items() if name != "loss"}
    weights = {"item_reconstruction": ALPHA, "text_reconstruction": BETA}
    weighted = sum(weights.get(name.rpartition("_")[0], 1.0) * value for name, value in parts.items())
    assert float(terms["loss"]) == pytest.approx(weighted, rel=1e-6)
    assert len(parts) == 8


@pytest.mark.parametrize("fine_tune", [False, True])
def test_targets_are_found_among_items_of_which_half_are_decoded_from_texts(small_data, fine_tune):
    task = task_of(small_data, fine_tune=fine_tune)
    module, batch = task.module.eval(), batch_of(task, range(6))
    plain = module(batch)["loss"]
    module.text_recommendation = 2.0
    terms = module(batch)
    assert terms["text_recommendation"].isfinite()
    assert torch.allclose(terms["loss"], plain + 2.0 * terms["text_recommendation"])
    assert torch.equal(module(batch)["text_recommendation"], terms["text_recommendation"])  # validation draws alike
    trained = {n.split(".")[0] for n, p in module.named_parameters() if _gradient(terms["loss"], p) is not None}
    assert trained == ({"aligner", "text_encoder"} if fine_tune else {"aligner"})


def _gradient(loss, parameter):
    if not parameter.requires_grad:
        return None
    return torch.autograd.grad(loss, parameter, retain_graph=True, allow_unused=True)[0]


def test_where_texts_decode_to_the_backbones_own_vectors_the_softmax_is_the_catalogues(small_data, monkeypatch):
    task = task_of(small_data, fine_tune=False)
    module, batch = task.module, batch_of(task, range(6))
    own, number = module.cf_encoder.item_embeddings, torch.arange(small_data.num_items + 1.0)
    monkeypatch.setattr(module, "text_embeddings", lambda items: number[items].unsqueeze(1))
    monkeypatch.setattr(module.aligner, "encode_texts", lambda texts: texts)
    monkeypatch.setattr(module.aligner, "decode_items", lambda joint: own[joint.flatten().long()])
    wanted = batch["targets"] > 0
    users = module.cf_encoder.states_at(batch["item_ids"], batch["attention_mask"], wanted)
    targets, compared = batch["targets"][wanted], module.compared.nonzero().flatten()
    scores = users @ own[compared].T
    expected = torch.nn.functional.cross_entropy(scores, torch.searchsorted(compared, targets))
    for mode in (True, False):
        module.train(mode)
        assert torch.allclose(module._text_recommendation(users, targets, targets), expected)


def test_fine_tuning_gives_gradients_to_aligner_and_text_encoder_only(small_data):
    task = task_of(small_data)
    task.module.train()
    task.module(batch_of(task))["loss"].backward()
    reached = {name for name, p in task.module.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    wanted = {name for name, _ in task.module.named_parameters() if not name.startswith("cf_encoder.")}
    assert reached == wanted
    assert any(name.startswith("text_encoder.") for name in wanted)
    assert not task.module.cf_encoder.training


def test_frozen_text_encoder_is_no_part_of_what_is_trained(small_data):
    task = task_of(small_data, fine_tune=False)
    task.module(batch_of(task))["loss"].backward()
    trained = {name for name, p in task.module.named_parameters() if p.requires_grad}
    assert all(name.startswith("aligner.") for name in trained)
    assert all(p.grad is not None for p in task.module.aligner.parameters())


def test_frozen_and_fine_tuned_text_encoder_start_with_the_same_loss(small_data):
    losses = []
    for fine_tune in (True, False):
        task = task_of(small_data, fine_tune=fine_tune)
        losses.append(float(task.module.eval()(batch_of(task))["loss"].detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_frozen_text_encoder_reads_every_text_once_for_the_whole_stage(small_data, monkeypatch):
    encoder, read = text_encoder(), Counter()
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda texts, **kw: (read.update(texts), encode(texts, **kw))[1])
    module = module_of(small_data, fine_tune=False, encoder=encoder)
    monkeypatch.setattr(encoder, "forward", None)  # any further use would fail
    task = AlignmentTask(module, small_data, "all", StageArguments(per_device_train_batch_size=8))
    for rows in task.batches(0)[:3]:
        module(task.collate(rows, np.random.default_rng(0)))
    assert read == Counter(small_data.catalog.texts())


def test_known_text_embeddings_are_taken_as_they_are_by_a_frozen_encoder_alone(small_data, monkeypatch):
    torch.manual_seed(0)
    cf_encoder = build_cf_encoder(SASRecConfig(num_items=small_data.num_items, hidden_size=16))
    encoder, texts = text_encoder(), small_data.catalog.texts()
    table = text_embedding_table(encoder, texts)
    monkeypatch.setattr(encoder, "encode", lambda *arguments, **options: pytest.fail("encoded again"))
    parts = cf_encoder, ItemTextAligner(16, 12, 8), texts, encoder
    module = AlignmentModule(*parts, False, ALPHA, BETA, text_table=table)
    assert module.embedding_table() is table
    assert AlignmentModule(*parts, True, ALPHA, BETA, text_table=table).text_table is None
    with pytest.raises(ALLMRecError, match=f"has {len(texts)} rows, {len(texts)} texts need {len(texts) + 1}"):
        AlignmentModule(*parts, False, ALPHA, BETA, text_table=table[1:])


def test_fine_tuned_text_encoder_reads_each_item_of_a_step_once(small_data, monkeypatch):
    task, read = task_of(small_data, positions="all"), Counter()
    encoder = task.module.text_encoder
    name = "preprocess" if hasattr(encoder, "preprocess") else "tokenize"
    original = getattr(encoder, name)
    monkeypatch.setattr(encoder, name, lambda texts, **kw: (read.update(texts), original(texts, **kw))[1])
    batch = batch_of(task, rows=range(8))
    task.module(batch)
    items = set(batch["targets"].unique().tolist()) | set(batch["negatives"].unique().tolist())
    assert read == Counter(small_data.catalog.text(item) for item in items - {0})
    assert batch["targets"].count_nonzero() * 2 > len(items)  # there was something to save


def test_last_position_trains_one_target_for_each_user(small_data):
    batch = batch_of(task_of(small_data), rows=range(5))
    assert batch["targets"].count_nonzero(dim=1).tolist() == [1] * 5
    for user in range(5):
        sequence = small_data.sequences("train")[user]
        assert batch["targets"][user, -1] == sequence[-1]
        assert batch["item_ids"][user][batch["attention_mask"][user]].tolist() == sequence[:-1][-LENGTH:].tolist()


def test_all_positions_train_on_what_follows_every_real_item_and_at_no_padding(small_data):
    module = module_of(small_data)
    module.cf_encoder.config.max_history_length = 4
    task = AlignmentTask(module, small_data, "all", StageArguments(per_device_train_batch_size=8))
    sequences, found = small_data.sequences("train"), []
    assert max(map(len, sequences)) > 2 * 4 + 1
    for rows in task.batches(0):
        batch = batch_of(task, rows=rows)
        assert torch.equal(batch["targets"] > 0, batch["attention_mask"])
        assert torch.equal(batch["negatives"] > 0, batch["attention_mask"])
        for row, targets, real in zip(rows, batch["targets"], batch["attention_mask"], strict=True):
            found += [(int(task.samples.users[row]), item) for item in targets[real].tolist()]
    expected = [(user, item) for user, sequence in enumerate(sequences) for item in sequence[1:].tolist()]
    assert sorted(found) == sorted(expected)


def test_loss_of_all_positions_is_the_mean_over_them_whatever_the_padding(small_data):
    task = task_of(small_data, positions="all")
    batch = batch_of(task, rows=range(6))
    with torch.no_grad():
        together = float(task.module.eval()(batch)["loss"])
        alone = [
            (float(task.module({name: value[user : user + 1] for name, value in batch.items()})["loss"]), count)
            for user, count in enumerate(batch["attention_mask"].sum(dim=1).tolist())
        ]
    assert together == pytest.approx(sum(loss * n for loss, n in alone) / sum(n for _, n in alone), rel=1e-5)
    assert task.loss_weight(batch) == sum(n for _, n in alone)


def test_negatives_are_items_that_the_backbone_was_trained_on_and_the_user_did_not_touch_in_training(small_data):
    task = task_of(small_data, positions="all")
    sequences, drawn = small_data.sequences("train"), set()
    for seed in range(10):
        batch = batch_of(task, rows=range(40), seed=seed)
        for row, negatives in enumerate(batch["negatives"]):
            own = set(negatives.tolist()) - {0}
            assert not own & set(sequences[task.samples.users[row]].tolist())
            drawn |= own
    targets = {item for sequence in sequences for item in sequence[1:].tolist()}
    assert drawn <= targets
    held_out = small_data.candidates("validation")
    assert any(target in drawn for target in held_out.targets.tolist())  # it is not spared: that would give it away
    assert set(task.validation.targets.tolist()) <= targets  # another item's row in the backbone means nothing


def test_what_the_backbone_says_of_its_training_decides_over_the_data(small_data):
    module = module_of(small_data)
    counts = torch.zeros(small_data.num_items + 1, dtype=torch.long)
    counts[1:21] = 1
    module.cf_encoder.target_counts = counts
    task = AlignmentTask(module, small_data, "last", StageArguments(per_device_train_batch_size=8))
    own = set(range(1, 21)) | set(task.samples.targets.tolist())
    drawn = {int(i) for seed in range(5) for i in batch_of(task, range(100), seed)["negatives"].flatten()} - {0}
    assert drawn <= own


def test_batches_cover_every_user_once_and_follow_seed_and_epoch(small_data):
    task = task_of(small_data, seed=5)
    first, again, second = task.batches(0), task.batches(0), task.batches(1)
    assert sorted(np.concatenate(first).tolist()) == list(range(len(task.samples)))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_validation_gives_every_term_for_every_user_twice_the_same(small_data):
    task = task_of(small_data, max_validation_users=10)
    task.module.eval()
    found, again = (task.validate(np.arange(10), torch.device("cpu")) for _ in range(2))
    assert task.num_validation_examples == 10
    assert {name: values.shape for name, values in found.items()} == dict.fromkeys(found, (10,))
    assert all(np.array_equal(found[name], again[name]) for name in found)
    assert task.metric in found


def test_item_table_holds_text_embeddings_and_counts_and_decodes_cold_items(small_data):
    model = tiny_model(None, num_items=small_data.num_items)
    before = model.cf_encoder.item_embeddings.detach().clone()
    embeddings = text_embedding_table(text_encoder(), small_data.catalog.texts())
    fill_item_table(model, small_data, embeddings)
    targets = np.concatenate([sequence[1:] for sequence in small_data.sequences("train")])
    counts = np.bincount(targets, minlength=small_data.num_items + 1)
    cold = np.flatnonzero(counts == 0)[1:]
    warm = np.flatnonzero(counts)
    assert len(cold) > 10
    with torch.no_grad():
        joint = model.aligner.encode_texts(embeddings)
        decoded = model.aligner.decode_items(joint)
    table = model.item_table.text_joint_embeddings
    assert torch.equal(table[1:], joint[1:])
    assert not table[0].any()
    assert model.item_table.interaction_counts.tolist() == counts.tolist()
    after = model.cf_encoder.item_embeddings
    assert torch.equal(after[warm], before[warm])
    assert torch.equal(after[cold], decoded[cold])
    assert not after[0].any()


def test_text_table_has_zeros_for_padding_and_rows_in_catalogue_order(small_data):
    encoder, texts = text_encoder(), small_data.catalog.texts()
    table = text_embedding_table(encoder, texts)
    assert table.shape == (len(texts) + 1, 12)
    assert not table[0].any()
    assert torch.allclose(table[7], encoder.encode([texts[6]], convert_to_tensor=True)[0], atol=1e-6)


def test_an_encoder_default_prompt_goes_in_on_every_side(tmp_path):
    encoder = demo_encoder(tmp_path, prompt="a romance film: ")
    texts = ["The Lost Harbor, a crime film about sailors", "Iron Sea"]
    trained = encode_texts(encoder, texts).detach()
    by_hand = encoder.encode([f"a romance film: {text}" for text in texts], prompt="", convert_to_tensor=True)
    torch.testing.assert_close(trained, by_hand, rtol=0, atol=1e-5)
    torch.testing.assert_close(text_embedding_table(encoder, texts)[1:], by_hand, rtol=0, atol=1e-5)
    assert (trained - encoder.encode(texts, prompt="", convert_to_tensor=True)).abs().max() > 1e-3


def test_an_encoder_that_keeps_fewer_dimensions_gives_as_many_on_every_side(tmp_path):
    encoder = demo_encoder(tmp_path)
    encoder.truncate_dim = 5
    texts = ["Iron Sea", "The Lost Harbor"]
    assert encode_texts(encoder, texts).shape == (2, 5)
    torch.testing.assert_close(encode_texts(encoder, texts).detach(), text_embedding_table(encoder, texts)[1:])


def demo_encoder(folder, prompt=None):
    encoder = SentenceTransformer(str(DEMO_PARTS / "text_encoder"), device="cpu")
    if prompt is not None:
        encoder.prompts, encoder.default_prompt_name = {"document": prompt}, "document"
    encoder.save_pretrained(str(folder))
    return SentenceTransformer(str(folder), device="cpu")
