"""The assembled model: freezing, round trips, batches, new items, bad checkpoints."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

from allmrec_hf import ALLMRecConfig, ALLMRecError, ALLMRecModel, CheckpointError, SASRecConfig
from tests.tiny import FAMILIES, tiny_llm, tiny_model, tiny_processor

HISTORIES = [[1, 2, 3], [4], [7, 8, 9, 10, 11, 12, 13]]
CANDIDATES = [[20, 21, 22, 23], [24, 25], [30, 31, 32, 33]]


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture(scope="module")
def saved_llm(tmp_path_factory):
    path = tmp_path_factory.mktemp("llm")
    tiny_llm("llama").save_pretrained(path)
    return path


@pytest.fixture
def checkpoint(tmp_path, saved_llm):
    model = tiny_model(base_model_name_or_path=str(saved_llm))
    model.save_pretrained(tmp_path / "light")
    return tmp_path / "light"


# -- freezing


def test_stage_two_gradients_reach_the_projectors_alone(processor):
    model = tiny_model().train()
    batch = processor.training_batch(HISTORIES, CANDIDATES, [20, 25, 33])
    model(**batch).loss.backward()
    trained = {
        name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0
    }
    assert trained == {"user_projector", "item_projector"}


def test_frozen_parts_stay_in_eval_mode_when_the_model_trains():
    model = tiny_model().train()
    assert model.training
    assert model.user_projector.training
    assert not any(module.training for module in [*model.cf_encoder.modules(), *model.language_model.modules()])


def test_frozen_llm_requires_no_gradient():
    assert not any(p.requires_grad for p in tiny_model().language_model.parameters())


def test_checkpointing_activations_changes_no_gradient(processor):
    batch = processor.training_batch(HISTORIES, CANDIDATES, [20, 25, 33])
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model().train()
        if checkpointing:
            model.checkpoint_activations()
            model.train()
            assert all(layer.training for layer in model.language_model.model.layers)
            assert not any(part.training for layer in model.language_model.model.layers for part in layer.children())
        model(**batch).loss.backward()
        gradients.append(model.item_projector.layers[0].weight.grad)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


# -- equivalence


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "lfm2"])
def test_batch_equals_one_by_one_and_fast_equals_naive(processor, family):
    model = tiny_model(family)
    together = model.score(**processor(HISTORIES, CANDIDATES))
    naive = model.score(**processor(HISTORIES, CANDIDATES), method="naive")
    torch.testing.assert_close(together, naive, rtol=1e-5, atol=1e-4)
    for user in range(len(HISTORIES)):
        alone = model.score(**processor(HISTORIES[user : user + 1], CANDIDATES[user : user + 1]))[0]
        torch.testing.assert_close(together[user, : len(alone)], alone, rtol=1e-5, atol=1e-4)


def test_order_of_the_given_candidates_does_not_change_a_score(processor):
    model = tiny_model()
    scores = model.score(**processor([[1, 2]], [[20, 21, 22]]))
    turned = model.score(**processor([[1, 2]], [[22, 20, 21]]))
    torch.testing.assert_close(turned, scores[:, [2, 0, 1]])


def test_padded_candidates_score_minus_infinity(processor):
    scores = tiny_model().score(**processor(HISTORIES, CANDIDATES))
    assert torch.isinf(scores[1, 2:]).all()
    assert torch.isfinite(scores[0]).all()


def test_mean_normalisation_divides_by_the_tokens_of_the_title(processor):
    batch = processor(HISTORIES, CANDIDATES)
    total = tiny_model().score(**batch)
    mean = tiny_model(score_normalization="mean").score(**batch)
    torch.testing.assert_close(mean, total / batch["answer_mask"].sum(-1).clamp(min=1))


def test_loss_is_the_negative_log_likelihood_of_the_answer(processor):
    model = tiny_model()
    batch = processor([[1, 2, 3]], [[20]])
    log_likelihood = model.score(**batch)
    loss = model(**processor.training_batch([[1, 2, 3]], [[20]], [20])).loss
    torch.testing.assert_close(-loss * batch["answer_mask"].sum(), log_likelihood[0, 0])


def test_user_and_item_vectors_change_the_scores(processor):
    batch = processor(HISTORIES, CANDIDATES)
    before = tiny_model().score(**batch)
    for part in ("user_projector", "item_projector"):
        model = tiny_model()
        getattr(model, part).layers[3].bias.data += 1.0
        assert not torch.allclose(model.score(**batch)[0], before[0])


def test_generate_returns_new_tokens_only(processor):
    model = tiny_model()
    tokens = model.generate(**processor(HISTORIES, CANDIDATES), max_new_tokens=5)
    assert tokens.shape[0] == 3
    assert tokens.shape[1] <= 5


def test_greedy_generation_follows_the_scored_distribution(processor):
    model = tiny_model()
    batch = processor(HISTORIES[:1], CANDIDATES[:1])
    first = model.generate(**batch, max_new_tokens=1)[0, 0]
    forward = {k: v for k, v in batch.items() if k not in ("candidate_ids", "answer_ids", "answer_mask")}
    assert first == model(**forward).logits[0, -1].argmax()


# -- item vectors, retrieval, new items


@pytest.mark.parametrize(("rule", "text_rows"), [("text", [1, 2, 3]), ("cf", []), ("auto", [1])])
def test_item_embedding_rule_picks_text_or_cf_vectors(rule, text_rows):
    model = tiny_model(item_embedding=rule)  # item 1 has 0 interactions, item 2 one, item 3 two
    vectors = model.item_vectors(torch.tensor([1, 2, 3]))
    expected = model.aligner.encode_items(model.cf_encoder.item_embeddings[1:4])
    for index in text_rows:
        expected[index - 1] = model.item_table.text_joint_embeddings[index]
    torch.testing.assert_close(vectors, expected)


def test_retrieval_leaves_the_history_out_and_is_sorted(processor):
    model = tiny_model(None)
    found = model.retrieve(**processor.history_tensors(HISTORIES), top_k=5)
    assert found.item_indices.shape == (3, 5)
    for history, row in zip(HISTORIES, found.item_indices.tolist(), strict=True):
        assert not set(history) & set(row)
    assert (found.scores.diff(dim=1) <= 0).all()


def test_added_items_survive_a_round_trip_and_change_no_old_score(tmp_path, processor, saved_llm):
    model = tiny_model(base_model_name_or_path=str(saved_llm))
    before = model.score(**processor(HISTORIES, CANDIDATES))
    new = model.add_items(torch.randn(2, 12))
    assert new == [41, 42]
    torch.testing.assert_close(model.score(**processor(HISTORIES, CANDIDATES)), before)
    joint = model.item_vectors(torch.tensor(new))
    torch.testing.assert_close(joint, model.item_table.text_joint_embeddings[new])
    torch.testing.assert_close(model.cf_encoder.item_embeddings[new], model.aligner.decode_items(joint))
    model.save_pretrained(tmp_path / "grown")
    again = AutoModel.from_pretrained(tmp_path / "grown")
    assert again.config.cf_config.num_items == 42
    assert torch.equal(again.item_vectors(torch.arange(43)), model.item_vectors(torch.arange(43)))


def test_texts_of_another_width_are_refused():
    with pytest.raises(ALLMRecError, match=r"\(k, d_text\) with d_text = 12, got \(2, 7\)"):
        tiny_model(None).add_items(torch.zeros(2, 7))


# -- round trips


def test_light_checkpoint_holds_no_llm_weight(checkpoint):
    assert not any("language_model" in name for name in load_file(checkpoint / "model.safetensors"))
    assert {path.name for path in checkpoint.iterdir()} == {
        "README.md",
        "allmrec_remote.py",
        "config.json",
        "handler.py",
        "model.safetensors",
        "requirements.txt",
    }


def test_round_trip_gives_bit_equal_scores(checkpoint, processor, saved_llm):
    batch = processor(HISTORIES, CANDIDATES)
    expected = tiny_model(base_model_name_or_path=str(saved_llm)).score(**batch)
    once = AutoModel.from_pretrained(checkpoint)
    assert torch.equal(once.score(**batch), expected)
    once.save_pretrained(checkpoint.parent / "again")
    twice = AutoModel.from_pretrained(checkpoint.parent / "again")
    assert torch.equal(twice.score(**batch), expected)


def test_self_contained_checkpoint_needs_nothing_else(tmp_path, processor):
    model = tiny_model()
    model.save_pretrained(tmp_path / "whole", include_llm=True)
    shutil.move(tmp_path / "whole", tmp_path / "moved")
    again = AutoModel.from_pretrained(tmp_path / "moved")
    batch = processor(HISTORIES, CANDIDATES)
    assert torch.equal(again.score(**batch), model.score(**batch))
    again.save_pretrained(tmp_path / "third")  # stays self-contained
    assert (tmp_path / "third" / "language_model" / "model.safetensors").exists()


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.3), ("float16", 0.05)])
def test_dtype_goes_to_the_llm_and_the_light_part_stays_fp32(checkpoint, processor, dtype, tolerance):
    half = AutoModel.from_pretrained(checkpoint, dtype=dtype)
    full = AutoModel.from_pretrained(checkpoint)
    assert half.dtype == torch.float32
    assert half.language_model.dtype == getattr(torch, dtype)
    batch = processor(HISTORIES[:1], CANDIDATES[:1])
    torch.testing.assert_close(half.score(**batch), full.score(**batch), rtol=0.02, atol=tolerance)  # 8 or 11 bits


def test_llm_arguments_reach_the_llm_and_not_the_light_part(checkpoint, monkeypatch):
    given = {"device_map": "auto", "quantization_config": object(), "max_memory": {"cpu": "1GiB"}, "dtype": "bfloat16"}
    seen = {}

    def load(name, **kwargs):
        seen.update(kwargs, name=name)
        return tiny_llm("llama"), {"missing_keys": set()}

    monkeypatch.setattr("allmrec_hf.llm_files.AutoModelForCausalLM.from_pretrained", load)
    model = ALLMRecModel.from_pretrained(checkpoint, attn_implementation="eager", **given)
    expected = {"attn_implementation": "eager", "name": model.config.base_model_name_or_path}
    assert seen == {**given, **expected, "trust_remote_code": False, "output_loading_info": True}


def test_attention_implementation_reaches_the_llm_through_the_auto_class(checkpoint):
    model = AutoModel.from_pretrained(checkpoint, attn_implementation="eager", device_map="cpu")
    assert model.language_model.config._attn_implementation == "eager"


def test_model_loads_without_its_llm_and_says_what_is_missing(checkpoint, processor):
    model = AutoModel.from_pretrained(checkpoint, language_model=None)
    assert model.retrieve(**processor.history_tensors([[1]])).item_indices.shape == (1, 20)
    with pytest.raises(CheckpointError, match="without its LLM: use from_pretrained, or attach_language_model"):
        model.score(**processor([[1]], [[2]]))


def test_attaching_an_llm_leaves_its_config_alone(saved_llm):
    llm = tiny_llm("llama", "eager")
    model = tiny_model(None)
    model.attach_language_model(llm)
    assert llm.config._attn_implementation == "eager"
    assert model.config.text_config is not llm.config


# -- bad input


def test_missing_base_llm_is_named_with_a_way_out(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    config["base_model_name_or_path"] = str(checkpoint / "nowhere")
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"nowhere' of this checkpoint cannot be loaded.*pass language_model="):
        AutoModel.from_pretrained(checkpoint)


def test_llm_of_another_width_is_refused(checkpoint):
    with pytest.raises(CheckpointError, match=r"trained for an LLM of width d_llm = 32 .* this one has 16"):
        AutoModel.from_pretrained(checkpoint, language_model=tiny_llm("opt"))


def test_truncated_weights_are_refused(checkpoint):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged"):
        AutoModel.from_pretrained(checkpoint)


def test_missing_weights_are_refused(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"cannot load the checkpoint .*model.safetensors"):
        AutoModel.from_pretrained(checkpoint)


def test_weights_of_another_model_are_refused(checkpoint):
    save_file({"something.else": torch.zeros(2)}, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"not those of its config.json: \d+ missing keys, first .*; 1 unexpected"
    ):
        AutoModel.from_pretrained(checkpoint)


def test_weights_of_another_size_are_refused(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    config["joint_dim"] = 9
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"do not fit its config.json|mismatched"):
        AutoModel.from_pretrained(checkpoint)


def test_failed_save_leaves_the_old_checkpoint_whole(checkpoint, monkeypatch):
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    model = AutoModel.from_pretrained(checkpoint)

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("allmrec_hf.modeling_pretrained.write_checkpoint_code", full_disk)
    with pytest.raises(ALLMRecError, match="no space left on the disk"):
        model.save_pretrained(checkpoint)
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == before
    assert list(checkpoint.parent.iterdir()) == [checkpoint]


# -- configuration


def test_config_round_trip_keeps_sub_configs(tmp_path):
    config = ALLMRecConfig(cf_config=SASRecConfig(num_items=7), text_config=FAMILIES["qwen3"], joint_dim=3)
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(again.cf_config, SASRecConfig)
    assert again.cf_config.num_items == 7
    assert again.text_config.model_type == "qwen3"


@pytest.mark.parametrize("wrong", [{"joint_dim": "wide"}, {"item_embedding": "both"}, {"min_interactions": 1.5}])
def test_config_refuses_wrong_types(wrong):
    with pytest.raises(Exception, match=next(iter(wrong))):
        ALLMRecConfig(**wrong)


def test_constructor_builds_no_llm():
    config = ALLMRecConfig(cf_config=SASRecConfig(num_items=7), text_config=FAMILIES["llama"], llm_dim=32)
    assert ALLMRecModel(config).language_model is None


def test_gradients_of_stage_two_are_the_same_in_every_run(processor):
    """Many prompts that share items, enough for several threads to sum one gradient."""
    histories = [list(range(1 + i % 20, 12 + i % 20)) for i in range(24)]
    candidates = [sorted({(i * 7 + j) % 40 + 1 for j in range(20)}) for i in range(24)]
    batch = processor.training_batch(histories, candidates, [row[0] for row in candidates])
    gradients = []
    for _ in range(3):
        model = tiny_model().train()
        model(**batch).loss.backward()
        gradients.append(model.item_projector.layers[0].weight.grad)
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])


def test_a_normalization_of_no_kind_is_refused():
    model, processor = tiny_model(), tiny_processor()
    batch = processor([[1, 2]], [[3, 4]])
    with pytest.raises(ALLMRecError, match=r"normalization must be one of .*, got 'meen'"):
        model.score(**batch, normalization="meen")


def test_labels_at_the_first_token_are_never_asked_and_none_at_all_are_refused():
    model, processor = tiny_model(), tiny_processor()
    batch = processor.training_batch([[1, 2]], [[3, 4]], [3])
    whole = model(**{**batch, "labels": batch["input_ids"]})
    ignored = batch["input_ids"].clone()
    ignored[:, 0] = -100
    assert torch.equal(whole.loss, model(**{**batch, "labels": ignored}).loss)
    assert whole.loss.isfinite()
    with pytest.raises(ALLMRecError, match="labels are all -100"):
        model(**{**batch, "labels": torch.full_like(batch["labels"], -100)})
