"""What is said of an LLM is read in the right place, and what is claimed of it is tested when it is attached."""

import logging

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from allmrec_hf import ALLMRecError, CheckpointError, scoring
from allmrec_hf.language_model import (
    base_language_model,
    config_width,
    context_length,
    input_device,
    input_width,
    local_limits,
    special_layers,
    text_config,
    token_table,
)
from allmrec_hf.language_model_checks import difference, examine, fingerprint, require_decoder
from allmrec_hf.training.devices import place
from allmrec_hf.training.warm_start import MatchingModule, start_near_words
from tests.tiny import SHAPE, VOCABULARY, tiny_llm, tiny_model, tiny_processor

HISTORIES = [[1, 2, 3], [4], [7, 8, 9, 10, 11, 12, 13]]
CANDIDATES = [[20, 21, 22, 23], [24, 25], [30, 31, 32, 33]]
TEXT = {name: value for name, value in SHAPE.items() if not name.endswith("token_id")} | {"head_dim": 8}
VISION = {
    **{"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"image_size": 28, "patch_size": 14},
}
GEMMA3 = {**TEXT, "sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"]}
BART = {
    **{"vocab_size": VOCABULARY, "d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4},
    **{"decoder_ffn_dim": 48, "encoder_layers": 2, "encoder_ffn_dim": 16, "max_position_embeddings": 1024},
}
CONFIGS = {
    "gemma3": {"text_config": GEMMA3, "vision_config": VISION, "mm_tokens_per_image": 4},
    "gemma3_text": GEMMA3,
    "llama": TEXT,
    "mistral": {**TEXT, "sliding_window": 40},
    "starcoder2": {**SHAPE, "residual_dropout": 0.3, "attention_dropout": 0.3, "embedding_dropout": 0.3},
    "gpt_neo": {
        **{"vocab_size": VOCABULARY, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 48},
        **{"attention_types": [[["global", "local"], 1]], "window_size": 24, "max_position_embeddings": 1024},
    },
    "gemma2": GEMMA3,
    "qwen2": {**TEXT, "sliding_window": 32},
    "cohere2": GEMMA3,
    "gpt_oss": {**GEMMA3, "num_local_experts": 2, "num_experts_per_tok": 1},
    "rwkv": {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "context_length": 1024},
    "bart": BART,
    "bert": {**SHAPE},
    "roberta": {**SHAPE, "max_position_embeddings": 514},
    "xlnet": {"vocab_size": VOCABULARY, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48},
}


def build(kind: str, **changes) -> nn.Module:
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**CONFIGS[kind], **changes}))
    with torch.no_grad():
        for parameter in llm.parameters():
            parameter.mul_(3)
    return llm.eval()


def attached(llm: nn.Module, **settings):
    model = tiny_model(None, **settings)
    torch.manual_seed(2)
    model.attach_language_model(llm)
    return model.eval()


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


# -- what a config says


def test_settings_of_a_nested_config_are_found():
    config = AutoConfig.for_model("gemma3", **CONFIGS["gemma3"])
    assert text_config(config).model_type == "gemma3_text"
    assert context_length(config) == 1024
    assert config_width(config) == 32
    assert local_limits(config) == {"sliding_window": 32}
    assert special_layers(config) == ["sliding_attention"]


def test_context_of_a_model_with_images_is_that_of_its_text():
    assert context_length(build("gemma3")) == 1024  # its table of 4 image places is no limit


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        ("opt", {"max_position_embeddings": 300}, 300),
        ("gpt2", {"n_positions": 301}, 301),
        ("mpt", {"max_seq_len": 302}, 302),
        ("rwkv", {"context_length": 303}, 303),
        ("bloom", {}, 2048),
        ("phi3", {"max_position_embeddings": 131072, "original_max_position_embeddings": 4096}, 4096),
    ],
)
def test_context_has_many_names(kind, changes, expected):
    if kind == "phi3":
        factors = [1.0] * 48
        changes = {**changes, "rope_scaling": {"type": "longrope", "short_factor": factors, "long_factor": factors}}
    assert context_length(AutoConfig.for_model(kind, **changes)) == expected


def test_places_reserved_for_padding_are_no_context():
    llm = build("roberta", is_decoder=True)
    assert context_length(llm) == 512
    assert context_length(tiny_llm("opt")) == 1024  # its table has two rows more


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        ("qwen2", {"use_sliding_window": False, "sliding_window": 32, "max_position_embeddings": 99}, {}),
        ("gpt_neo", {"window_size": 24}, {"window_size": 24}),
        ("recurrent_gemma", {"attention_window_size": 64}, {"attention_window_size": 64}),
        ("mistral", {"sliding_window": 4096, "max_position_embeddings": 4096}, {}),
        ("llama", {}, {}),
        ("gpt_oss", {"sliding_window": 17}, {"sliding_window": 17}),
    ],
)
def test_windows_have_many_names(kind, changes, expected):
    assert local_limits(AutoConfig.for_model(kind, **changes)) == expected


def test_chunked_attention_of_a_nested_config_is_found():
    assert local_limits(AutoConfig.for_model("llama4", text_config={"attention_chunk_size": 128})) == {
        "attention_chunk_size": 128
    }


# -- scoring beyond a window


@pytest.mark.parametrize("kind", ["gemma3", "gemma3_text", "mistral", "gpt_neo"])
def test_rankings_beyond_a_window_equal_the_naive_ones(kind, processor):
    model = attached(build(kind))
    batch = processor(HISTORIES, CANDIDATES)
    assert int(batch["attention_mask"].sum(dim=1).max()) > 64
    assert model.scoring_method == ("prefix_cache" if kind == "gpt_neo" else "tree")
    found, right = model.score(**batch), model.score(**batch, method="naive")
    torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(model.score(**batch, method="prefix_cache"), right, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ["gemma3", "gemma3_text", "mistral", "gemma2", "qwen2", "cohere2", "gpt_oss"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("window", [2, 5, 9, 12])
def test_the_packed_pass_keeps_windows_shorter_than_prompt_title_or_both(kind, attention, window):
    """A title's token sees the prompt's last tokens and its own title's, as many as the window has."""
    if kind in ("gemma2", "gpt_oss") and attention == "sdpa":
        pytest.skip("it has eager attention only")
    changes = {"sliding_window": window, "use_sliding_window": True, "max_window_layers": 1}
    if kind == "gemma3":
        changes = {"text_config": {**GEMMA3, "sliding_window": window}}
    llm = build(kind, **changes)
    llm.set_attn_implementation(attention)
    lengths = ((14, 8), (6, 1, 7, 3))  # two users' prompts, and the titles of each
    trial = scoring._trial(llm, *lengths)
    with torch.no_grad():
        found = scoring.score_tree(llm, *trial.inputs)
        plain = scoring.score_prefix_cache(llm, *trial.inputs)
    torch.testing.assert_close(found, trial.expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(plain, trial.expected, rtol=1e-4, atol=1e-4)
    assert scoring.verified_method(llm) == "tree"
    wide = build(kind, **{"text_config": GEMMA3} if kind == "gemma3" else {"sliding_window": 1000})
    assert float((scoring._trial(wide, *lengths).expected - trial.expected).abs().max()) > 1e-3  # it does matter


def test_gradients_through_the_packed_pass_of_a_windowed_llm_are_the_naive_ones():
    llm = build("gemma3_text", sliding_window=6).requires_grad_(False)
    embeds, mask, answers, answer_mask = scoring._trial(llm, (14, 8), (6, 1, 7, 3)).inputs
    gradients = []
    for method in ("tree", "naive"):
        own = embeds.detach().clone().requires_grad_(True)
        scoring.METHODS[method](llm, own, mask, answers, answer_mask).sum().backward()
        gradients.append(own.grad)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["gemma3", "mistral"])
def test_self_check_reaches_past_the_window(kind, monkeypatch):
    llm = build(kind)
    monkeypatch.setattr(scoring, "WINDOW", "unheard")  # the mask of the packed row has no window
    monkeypatch.setattr(scoring, "_refused_beforehand", lambda language_model, method: None)
    assert "behind prompts of" in scoring.check_method(llm, "tree")
    assert scoring.check_method(llm, "prefix_cache") is None
    assert scoring.deviation_from_naive(llm, "tree") < 1e-4  # nine tokens show nothing


def test_window_out_of_reach_is_checked_on_the_first_prompt_beyond_it(processor, monkeypatch, caplog):
    monkeypatch.setattr(scoring, "REACH_BUDGET", {"cpu": 0})
    model = attached(build("mistral"))
    batch = processor(HISTORIES, CANDIDATES)
    right = model.score(**batch, method="naive")
    assert (model.scoring_method, model._unreached_limit) == ("tree", 40)
    torch.testing.assert_close(model.score(**batch), right, rtol=1e-5, atol=1e-4)
    assert (model.scoring_method, model._unreached_limit) == ("tree", None)
    model._unreached_limit = 40
    with monkeypatch.context() as patch:
        patch.setitem(scoring.METHODS, "tree", lambda *args: scoring.score_naive(*args) + 1)
        torch.testing.assert_close(model.score(**batch), right)
    assert model.scoring_method == "naive"
    assert "off for this LLM from here on" in caplog.text


def test_packed_row_beyond_the_context_goes_by_the_prefix_cache(monkeypatch):
    llm = build("gpt_neo", attention_types=[[["global"], 2]], window_size=2048, max_position_embeddings=256)
    model, processor = attached(llm), tiny_processor(max_length=256)
    assert model.scoring_method == "tree"
    batch = processor([[1, 2, 3]], [list(range(4, 19))])
    assert not scoring.fits_packed(batch["attention_mask"], batch["answer_ids"], batch["answer_mask"], 256)
    torch.testing.assert_close(model.score(**batch), model.score(**batch, method="naive"), rtol=1e-5, atol=1e-4)


# -- half precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
def test_half_precision_never_loses_the_fast_path(family, dtype):
    llm = tiny_llm(family).to(dtype)
    for seed in range(3):
        trial = scoring._trial(llm, seed=seed)
        assert scoring._judged(llm, "tree", trial) is None
        assert scoring._judged(llm, "prefix_cache", trial) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_leak_is_seen_in_every_precision(dtype):
    llm = tiny_llm("lfm2").to(dtype)
    for seed in range(3):
        assert "stray" in scoring._judged(llm, "tree", scoring._trial(llm, seed=seed))


def test_the_check_gives_the_same_answer_every_time():
    llm = tiny_llm("llama").bfloat16()
    trial = scoring._trial(llm)
    assert scoring._own_rounding(llm, trial) == scoring._own_rounding(llm, scoring._trial(llm)) > 0
    assert not any(module._forward_hooks for module in llm.modules())


# -- the key-value cache


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_prefix_cache_in_chunks_equals_the_whole(family, processor, monkeypatch):
    model = tiny_model(family)
    batch = processor(HISTORIES, CANDIDATES)
    whole = model.score(**batch, method="prefix_cache")
    for budget in (0, 400_000, 700_000):
        monkeypatch.setattr(scoring, "CACHE_BUDGET", budget)
        torch.testing.assert_close(model.score(**batch, method="prefix_cache"), whole, rtol=1e-5, atol=1e-5)


def test_copies_of_the_cache_stay_within_their_budget(processor, monkeypatch):
    model = tiny_model("llama")
    batch = processor([[1, 2, 3]] * 2, [list(range(10, 30))] * 2)
    model.score(**batch, method="prefix_cache")  # its check is over
    rows, prefix_bytes = [], []

    def watch(cache, count, plain=scoring._copies):
        prefix_bytes.append(scoring._cache_bytes(cache))
        rows.append(count)
        return plain(cache, count)

    monkeypatch.setattr(scoring, "_copies", watch)
    model.score(**batch, method="prefix_cache")
    assert rows == [20]
    length = batch["answer_ids"].shape[-1]
    each = prefix_bytes[0] + 2 * (length - 1) * VOCABULARY * (4 + 8)
    rows.clear()
    monkeypatch.setattr(scoring, "CACHE_BUDGET", 3 * each)
    model.score(**batch, method="prefix_cache")
    assert rows == [3] * 6 + [2]
    assert len(set(prefix_bytes)) == 1  # the cache itself is never changed


def test_gradients_through_chunks_equal_those_through_the_whole(monkeypatch):
    llm = tiny_llm("llama").requires_grad_(False)
    prompt = torch.randn(2, 6, 32, requires_grad=True)
    answers, mask = torch.randint(VOCABULARY, (2, 5, 3)), torch.ones(2, 5, 3).bool()
    gradients = []
    for budget in (2**30, 0):
        monkeypatch.setattr(scoring, "CACHE_BUDGET", budget)
        prompt.grad = None
        scoring.score_prefix_cache(llm, prompt, torch.ones(2, 6).bool(), answers, mask).sum().backward()
        gradients.append(prompt.grad.clone())
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


# -- causal, or not


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlnet"])
def test_an_llm_that_is_not_causal_is_refused(kind):
    with pytest.raises(CheckpointError, match="this LLM is not causal"):
        tiny_model(None).attach_language_model(build(kind))


def test_an_encoder_is_told_by_its_behaviour_too(monkeypatch):
    monkeypatch.setattr("allmrec_hf.language_model_checks.require_decoder", lambda config: None)
    with pytest.raises(CheckpointError, match="changing the last 3 of 12 tokens changes what it says at earlier ones"):
        examine(build("bert"))


def test_an_encoder_is_refused_by_its_config_alone():
    with pytest.raises(CheckpointError, match=r"\(bert\) has is_decoder = False"):
        require_decoder(AutoConfig.for_model("bert", **CONFIGS["bert"]))
    require_decoder(AutoConfig.for_model("bert", **CONFIGS["bert"], is_decoder=True))
    require_decoder(AutoConfig.for_model("bart", **BART))


def test_an_encoder_made_a_decoder_is_causal():
    assert examine(build("bert", is_decoder=True)).width == 32


def test_an_llm_that_takes_no_vectors_is_refused():
    llm = tiny_llm("llama")
    llm.forward = lambda input_ids, attention_mask=None: None
    with pytest.raises(CheckpointError, match="takes no vectors in place of tokens"):
        examine(llm)


def test_an_llm_that_answers_with_nan_is_refused():
    llm = tiny_llm("llama")
    llm.lm_head.weight.data[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match="answers with NaN or infinity"):
        examine(llm)


# -- padding


@pytest.mark.parametrize("kind", ["rwkv", "bart"])
def test_batch_mates_do_not_change_a_loss_a_score_or_a_text(kind, processor):
    """RWKV ignores the attention mask, BART counts places without it: padding in front would be read."""
    model = attached(build(kind))
    assert not model.pads_left
    targets = [20, 25, 33]
    together = model(**processor.training_batch(HISTORIES, CANDIDATES, targets))
    batch = processor(HISTORIES, CANDIDATES)
    scores, texts = model.score(**batch), model.generate(**batch, max_new_tokens=3)
    total, tokens = 0.0, 0
    for user in range(len(HISTORIES)):
        own = (HISTORIES[user : user + 1], CANDIDATES[user : user + 1])
        alone = processor.training_batch(*own, targets[user : user + 1])
        count = int((alone["labels"] != -100).sum())
        total, tokens = total + float(model(**alone).loss) * count, tokens + count
        mate = model.score(**processor(*own))[0]
        torch.testing.assert_close(scores[user, : len(mate)], mate, rtol=1e-5, atol=1e-4)
        assert torch.equal(texts[user], model.generate(**processor(*own), max_new_tokens=3)[0])
    assert float(together.loss) == pytest.approx(total / tokens, rel=1e-5)


def test_what_is_trained_is_what_is_scored_without_left_padding(processor):
    model = attached(build("rwkv"))
    batch = processor([[1, 2, 3]], [[20]])
    loss = model(**processor.training_batch([[1, 2, 3]], [[20]], [20])).loss
    torch.testing.assert_close(-loss * batch["answer_mask"].sum(), model.score(**batch)[0, 0])


@pytest.mark.parametrize("family", ["llama", "opt", "qwen3", "gpt2", "lfm2"])
def test_llms_that_read_the_mask_pad_on_the_left(family):
    assert examine(tiny_llm(family)).pads_left


# -- scaled embeddings


@pytest.mark.parametrize(("kind", "factor"), [("llama", 1.0), ("gemma3_text", 32**0.5)])
def test_token_vectors_are_what_prompts_hold(kind, factor):
    llm = build(kind)
    table = token_table(llm)
    assert input_width(llm) == table.shape[1] == 32
    torch.testing.assert_close(table, llm.get_input_embeddings().weight * factor, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(table[[5, 7]], llm.get_input_embeddings()(torch.tensor([5, 7])))


def test_the_warm_start_aims_at_scaled_vectors():
    """Projected vectors stand among words as prompts hold them: Gemma's are the table's rows times the root of 32."""
    model = attached(build("gemma3_text"))
    table = model.language_model.get_input_embeddings().weight.detach() * 32**0.5
    assert MatchingModule(model).word_norm == pytest.approx(float(table.norm(dim=-1).mean()), rel=1e-3)
    with torch.no_grad():
        start_near_words(model.user_projector, token_table(model.language_model), torch.Generator().manual_seed(0))
        torch.testing.assert_close(model.user_projector.last.bias, table.mean(dim=0), rtol=1e-3, atol=1e-5)
        users = torch.randn(256, model.user_projector.last.in_features, generator=torch.Generator().manual_seed(1))
        spread = model.user_projector.last(users).std(dim=0).mean()
    assert float(spread) == pytest.approx(float(table.std(dim=0).mean()), rel=0.2)


# -- which LLM


def reloaded(tmp_path, model):
    model.save_pretrained(tmp_path / "light")
    return lambda llm, **options: AutoModel.from_pretrained(tmp_path / "light", language_model=llm, **options)


def test_another_llm_of_the_same_width_is_refused(tmp_path, caplog):
    load = reloaded(tmp_path, attached(build("llama")))
    torch.manual_seed(9)
    other = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **TEXT)).eval()
    with pytest.raises(CheckpointError, match=r"not the LLM of the training.*correlate.*allow_other_llm=True"):
        load(other)
    for kind, reason in (("mistral", "model_type is 'mistral', not 'llama'"), ("starcoder2", "model_type")):
        with pytest.raises(CheckpointError, match=reason):
            load(build(kind))
    with pytest.raises(CheckpointError, match="num_layers is 3, not 2"):
        load(build("llama", num_hidden_layers=3))
    with caplog.at_level(logging.WARNING):
        assert load(other, allow_other_llm=True).language_model is other
    assert "The LLM is not the one of the training" in caplog.text


@pytest.mark.parametrize("family", ["llama", "opt", "qwen3", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_same_llm_in_another_precision_is_accepted(family, dtype, caplog):
    known = fingerprint(tiny_llm(family))
    assert difference(known, tiny_llm(family, "eager").to(dtype)) is None
    assert "differs" not in caplog.text


def test_the_same_llm_with_weights_rounded_to_eight_bits_is_accepted():
    known, llm = fingerprint(tiny_llm("llama")), tiny_llm("llama")
    with torch.no_grad():
        for parameter in llm.parameters():
            step = parameter.abs().amax(dim=-1, keepdim=True) / 127
            parameter.copy_((parameter / step).round() * step)
    assert difference(known, llm) is None


def test_a_fine_tuned_llm_is_accepted_with_a_warning(caplog):
    known, llm = fingerprint(tiny_llm("llama")), tiny_llm("llama")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in llm.parameters():
            parameter.add_(parameter.std() * 0.04 * torch.randn(parameter.shape, generator=generator))
    assert difference(known, llm) is None
    assert "differs a little from the one of the training" in caplog.text


def test_checkpoint_without_a_fingerprint_takes_any_llm_of_its_width(tmp_path):
    model = attached(build("llama"))
    model.config.language_model_fingerprint = None
    assert reloaded(tmp_path, model)(build("mistral")).language_model is not None


# -- offloaded


@pytest.mark.parametrize("how", ["cpu", "disk", "map"])
def test_offloaded_llm_scores_as_it_does_in_memory(how, tmp_path, processor):
    batch = processor(HISTORIES, CANDIDATES)
    expected = attached(build("llama")).score(**batch)
    llm = build("llama")
    if how == "cpu":
        cpu_offload(llm, execution_device=torch.device("cpu"))
    elif how == "disk":
        disk_offload(llm, str(tmp_path / "weights"), execution_device=torch.device("cpu"))
    else:
        places = {"model.embed_tokens": "disk", "model.layers": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
        llm = dispatch_model(
            llm,
            {**places, "lm_head": "cpu"},
            main_device="cpu",
            offload_dir=str(tmp_path / "weights"),
            force_hooks=True,
        )
    assert llm.get_input_embeddings().weight.device.type == "meta"
    assert input_device(llm) == torch.device("cpu")
    model = attached(llm)
    assert not any(p.device.type == "meta" for n, p in model.named_parameters() if not n.startswith("language_model."))
    torch.testing.assert_close(model.score(**batch), expected)
    place(model, torch.device("cpu"))  # as training and evaluation do
    torch.testing.assert_close(model.score(**batch), expected)
    model.save_pretrained(tmp_path / "light")
    again = AutoModel.from_pretrained(tmp_path / "light", language_model=build("llama"))
    torch.testing.assert_close(again.score(**batch), expected)


def test_an_llm_without_weights_is_refused():
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **TEXT))
    with pytest.raises(CheckpointError, match="has no weights"):
        tiny_model(None).attach_language_model(llm)


# -- embeddings of our model


def test_resizing_is_refused_and_cuts_no_table():
    for model in (tiny_model(), tiny_model(None)):
        before = model.cf_encoder.item_embeddings.clone()
        with pytest.raises(ALLMRecError, match=r"not resized.*add items by model.add_items"):
            model.resize_token_embeddings(10)
        with pytest.raises(ALLMRecError, match="not exchanged"):
            model.set_input_embeddings(nn.Embedding(3, 4))
        assert torch.equal(model.cf_encoder.item_embeddings, before)


def test_input_embeddings_are_those_of_the_input_ids():
    model = tiny_model()
    assert model.get_input_embeddings() is model.language_model.get_input_embeddings()
    assert tiny_model(None).get_input_embeddings().weight.shape[0] == 41


# -- activation checkpointing


@pytest.mark.parametrize("kind", ["starcoder2", "gemma3", "rwkv", "bart"])
def test_checkpointing_activations_leaves_every_dropout_off(kind, processor):
    batch = processor.training_batch(HISTORIES, CANDIDATES, [20, 25, 33])
    gradients = []
    for checkpointing in (False, True):
        llm = build(kind)
        model = attached(llm)
        if checkpointing:
            model.checkpoint_activations()
        model.train()
        model(**batch).loss.backward()
        gradients.append(model.item_projector.layers[0].weight.grad)
        model.eval()
        assert not any(module.training for module in llm.modules())
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
    assert gradients[0].abs().max() > 1e-4


def test_checkpointing_activations_runs_layers_twice(processor):
    batch = processor.training_batch(HISTORIES, CANDIDATES, [20, 25, 33])
    model = attached(build("starcoder2"))
    model.checkpoint_activations()
    model.train()
    count = []
    model.language_model.model.layers[0].self_attn.register_forward_hook(lambda *_: count.append(1))
    model(**batch).loss.backward()
    assert len(count) == 2


def test_an_llm_that_drops_out_all_the_same_is_refused_checkpointing():
    model = attached(build("llama"))
    layer = model.language_model.model.layers[0]
    plain = layer.mlp.forward
    layer.mlp.forward = lambda x: torch.nn.functional.dropout(plain(x), 0.5, layer.training)
    with pytest.raises(ALLMRecError, match="computes something else while it recomputes its activations"):
        model.checkpoint_activations()
    assert not model._checkpoints_activations


# -- compiled layers


def scores_loss_and_gradient(model, processor):
    with torch.no_grad():
        scores = [model.score(**processor(HISTORIES[:users], CANDIDATES[:users])) for users in (1, 3)]
    model.train()
    loss = model(**processor.training_batch(HISTORIES, CANDIDATES, [20, 25, 33])).loss
    loss.backward()
    return (*scores, loss.detach(), model.item_projector.layers[0].weight.grad)


def test_the_layers_alone_are_compiled_and_for_inputs_of_any_length(processor, monkeypatch):
    """The compiler itself takes minutes on two cores: here it gives back what it gets."""
    expected = scores_loss_and_gradient(attached(build("llama")), processor)
    asked, used = [], []

    def compiler(function, **options):
        asked.append((type(function.__self__).__name__, options))
        return lambda *args, **kwargs: used.append(function.__self__) or function(*args, **kwargs)

    model = attached(build("llama"))
    monkeypatch.setattr(torch, "compile", compiler)
    model.compile_language_model(mode="reduce-overhead")
    torch.testing.assert_close(scores_loss_and_gradient(model, processor), expected)
    assert asked == [("LlamaDecoderLayer", {"dynamic": True, "mode": "reduce-overhead"})] * 2
    assert used == list(model.language_model.model.layers) * 3


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_compiled_layers_compute_what_they_do_without(processor):
    from torch._dynamo.testing import CompileCounter

    expected, counter = scores_loss_and_gradient(attached(build("llama")), processor), CompileCounter()
    model = attached(build("llama"))
    model.compile_language_model(backend=counter)
    torch.testing.assert_close(scores_loss_and_gradient(model, processor), expected, rtol=1e-4, atol=1e-4)
    assert 1 <= counter.frame_count <= 8  # not one for each layer, length and batch


def test_an_llm_whose_layers_cannot_be_told_is_not_compiled():
    model = attached(build("llama"))
    model.language_model.config.num_hidden_layers = 7
    with pytest.raises(CheckpointError, match=r"layers of this LLM \(LlamaForCausalLM\) cannot be told"):
        model.compile_language_model()


@pytest.mark.parametrize("attention", ["flash_attention_2", "flash_attention_3", "flex_attention"])
def test_attention_that_takes_no_mask_of_our_own_scores_by_the_prefix_cache(attention):
    llm = build("llama")
    llm.config._attn_implementation_internal = attention
    assert scoring._refused_beforehand(llm, "tree") == f"{attention} takes no mask of our own"
    assert scoring._refused_beforehand(llm, "prefix_cache") is None


# -- PEFT


def test_an_llm_in_pefts_wrapper_is_read_through_it(processor):
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(build("gemma3"), peft.LoraConfig(r=2, target_modules=["q_proj"])).eval()
    assert base_language_model(wrapped) is wrapped.get_base_model()
    assert context_length(wrapped) == 1024
    assert local_limits(wrapped) == {"sliding_window": 32}
    batch = processor(HISTORIES, CANDIDATES)
    model, plain = attached(wrapped), attached(build("gemma3"))
    assert model.scoring_method == "tree"
    torch.testing.assert_close(model.score(**batch), plain.score(**batch))  # a fresh adapter changes nothing
    assert difference(plain.config.language_model_fingerprint, wrapped) is None
    model.checkpoint_activations()
    model.train()
    model(**processor.training_batch(HISTORIES, CANDIDATES, [20, 25, 33])).loss.backward()
    assert all(p.grad is None for p in model.language_model.parameters())


@pytest.mark.parametrize(
    ("has", "asked", "room", "dtype", "told"),
    [
        (False, {}, None, torch.float32, "loaded in float32"),
        (False, {"dtype": "auto"}, None, torch.float32, "loaded in float32"),
        (False, {}, 1_000, torch.bfloat16, "float32 (--llm.dtype float32"),
        (False, {"dtype": torch.bfloat16}, None, torch.bfloat16, "float32 (--llm.dtype float32"),
        (False, {"dtype": torch.float32}, None, torch.float32, None),
        (True, {}, None, torch.bfloat16, None),
    ],
)
def test_bfloat16_on_a_processor_without_its_instructions(has, asked, room, dtype, told, tmp_path, monkeypatch, caplog):
    from allmrec_hf import llm_files

    tiny_llm("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    known = {"architecture": "x86_64", "avx512_bf16": has}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    monkeypatch.setattr(llm_files, "free_main_memory", lambda: room)
    llm = llm_files.load_llm_files(llm_files.find_llm(str(tmp_path)), check_memory=False, **asked)
    assert {parameter.dtype for parameter in llm.parameters()} == {dtype}
    assert [told in record.message for record in caplog.records] == ([] if told is None else [True])
