"""Item embeddings that are in part their texts': fixed in training, alone where an item was never a target."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel

from allmrec_hf.cf_bprmf import BPRMFConfig, BPRMFModel
from allmrec_hf.cf_sasrec import SASRecConfig, SASRecModel
from allmrec_hf.cf_texts import TEXT_DEVIATION
from allmrec_hf.errors import ALLMRecError
from allmrec_hf.training.backbone_training import train_backbone
from allmrec_hf.training.fair import fair_backbone
from allmrec_hf.training.pretrained_backbone import load_backbone
from allmrec_hf.training.stage_arguments import StageArguments
from tests import small_run

WIDTH, COUNT = 16, 6


def config(data, **fields):
    fields = {"hidden_size": WIDTH, "max_history_length": 12, "num_layers": 1, "text_components": COUNT, **fields}
    return SASRecConfig(num_items=data.num_items, **fields)


def texts_of(data, width=12):
    table = torch.randn(data.num_items + 1, width, generator=torch.Generator().manual_seed(0)) + 3
    table[0] = 0
    return table


def test_components_are_uncorrelated_of_one_deviation_and_a_function_of_the_text(small_data):
    encoder, texts = SASRecModel(config(small_data)), texts_of(small_data)
    encoder.start_from_texts(texts)
    rows = encoder.item_embeddings[1:, :COUNT]
    expected = TEXT_DEVIATION**2 * torch.eye(COUNT)
    torch.testing.assert_close(rows.T @ rows / len(rows), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(rows.mean(dim=0), torch.zeros(COUNT), atol=1e-4, rtol=0)
    assert encoder.item_embeddings[0].abs().sum() == 0
    found = encoder.new_items(texts[[5, 9]], torch.ones(2, WIDTH))
    torch.testing.assert_close(found[:, :COUNT], encoder.item_embeddings[[5, 9], :COUNT])
    assert found[:, COUNT:].abs().sum() == 0
    plain = SASRecModel(config(small_data, text_components=0))
    assert plain.new_items(texts[[5]], torch.ones(1, WIDTH)).tolist() == [[1.0] * WIDTH]


def test_training_leaves_the_components_alone_and_an_item_that_was_no_target_has_nothing_else(small_data, tmp_path):
    texts = texts_of(small_data)
    trained = train_backbone(
        small_data, config(small_data), StageArguments(num_train_epochs=2), tmp_path, texts=texts, progress=False
    )
    fresh = SASRecModel(config(small_data))
    fresh.start_from_texts(texts)
    assert torch.equal(trained.item_embeddings[:, :COUNT], fresh.item_embeddings[:, :COUNT])
    untrained = trained.target_counts == 0
    assert 1 < untrained.sum() < len(untrained)
    assert trained.item_embeddings[untrained, COUNT:].abs().sum() == 0
    assert (trained.item_embeddings[~untrained, COUNT:].abs().sum(dim=1) > 0).all()


@pytest.fixture(scope="module")
def run(small_parts, small_data, tmp_path_factory):
    settings = small_run.settings(small_parts)
    settings["backbone_options"] = {**settings["backbone_options"], "text_components": COUNT}
    settings["fine_tune_text_encoder"] = False
    return small_run.train(
        small_data, tmp_path_factory.mktemp("runs") / "texts", settings, stages=("backbone", "align")
    )


def test_an_added_item_has_the_components_of_its_text_and_a_saved_model_the_same(run, small_data, tmp_path):
    model = AutoModel.from_pretrained(run, language_model=None)
    known = small_data.catalog.texts()
    embeddings = torch.from_numpy(model.text_encoder.encode([known[0], "A new film about the sea."]))
    added = model.add_items(embeddings)
    rows = model.cf_encoder.item_embeddings
    torch.testing.assert_close(rows[added[0], :COUNT], rows[1, :COUNT])
    assert rows[added, COUNT:].abs().sum() == 0
    model.save_pretrained(tmp_path / "saved")
    again = AutoModel.from_pretrained(tmp_path / "saved", language_model=None)
    assert torch.equal(again.cf_encoder.item_embeddings, rows)
    assert torch.equal(again.cf_encoder.text_layer.weight, model.cf_encoder.text_layer.weight)


def test_the_backbone_of_the_same_data_has_the_same_components(run, small_data):
    first, second = load_backbone(run / "backbone"), fair_backbone(run, small_data)
    assert torch.equal(first.item_embeddings[:, :COUNT], second.item_embeddings[:, :COUNT])
    assert torch.equal(first.text_layer.bias, second.text_layer.bias)
    assert not torch.equal(first.item_embeddings[:, COUNT:], second.item_embeddings[:, COUNT:])


@pytest.mark.parametrize("change", ["trained", "another", "of another width"])
def test_stage_align_refuses_a_text_encoder_that_the_components_are_not_of(
    run, small_parts, small_data, tmp_path, change
):
    settings = small_run.settings(small_parts, backbone_name=str(run / "backbone"), backbone_options=None)
    settings["fine_tune_text_encoder"] = change == "trained"
    if change != "trained":
        encoder = small_run.text_encoder(width=12 if change == "another" else 10)
        with torch.no_grad():
            next(encoder.parameters()).mul_(-1)
        encoder.save_pretrained(str(tmp_path / "encoder"))
        settings["text_encoder"] = str(tmp_path / "encoder")
    with pytest.raises(ALLMRecError, match="6 text_components of another text encoder"):
        small_run.train(small_data, tmp_path / "run", settings, stages=("backbone", "align"))


@pytest.mark.parametrize(
    ("fields", "loop", "told"),
    [
        ({"text_components": 12}, {}, None),
        ({"text_components": 13}, {}, "differ in that many directions"),
        ({}, {"weight_decay": 0.1}, "weight decay 0.1 would shrink the 6 text_components"),
    ],
)
def test_what_cannot_be_is_refused(small_data, tmp_path, fields, loop, told):
    arguments = StageArguments(num_train_epochs=1, max_steps=1, **loop)
    given = (small_data, config(small_data, **fields), arguments, tmp_path)
    if told is None:
        train_backbone(*given, texts=texts_of(small_data), progress=False)
        return
    with pytest.raises(ALLMRecError, match=told):
        train_backbone(*given, texts=texts_of(small_data), progress=False)


def test_a_backbone_without_sequences_without_texts_or_with_all_components_is_refused(small_data, tmp_path):
    with pytest.raises(ALLMRecError, match="no text embeddings were given"):
        train_backbone(small_data, config(small_data), StageArguments(num_train_epochs=1), tmp_path)
    with pytest.raises(ALLMRecError, match="train on sequences"):
        BPRMFModel(BPRMFConfig(num_items=small_data.num_items, text_components=2)).start_from_texts(
            texts_of(small_data)
        )
    with pytest.raises(ALLMRecError, match=r"below hidden_size \(16\)"):
        config(small_data, text_components=16)


def test_a_text_encoder_that_is_trained_cannot_give_components(small_parts, small_data, tmp_path):
    settings = small_run.settings(small_parts)
    settings["backbone_options"] = {**settings["backbone_options"], "text_components": COUNT}
    with pytest.raises(ALLMRecError, match="give --align"):
        small_run.train(small_data, tmp_path / "run", settings, stages=("backbone", "align"))
