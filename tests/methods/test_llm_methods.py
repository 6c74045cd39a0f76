"""The methods around an LLM: they learn, what they call frozen stays as it was, and the controls stay controls."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from allmrec_hf.data.prepare import prepare
from allmrec_hf.data.prepared import PreparedData
from allmrec_hf.data.synthetic import SyntheticWorld
from allmrec_hf.errors import ALLMRecError
from allmrec_hf.evaluation.evaluation_cost import tell_evaluation_cost
from allmrec_hf.evaluation.protocol import Ranker
from allmrec_hf.evaluation.rankers import PopularityRanker
from allmrec_hf.methods.a_llmrec import facts
from allmrec_hf.methods.llm_srec import uniformity
from allmrec_hf.methods.method import Method, Setting
from allmrec_hf.methods.registry import method
from allmrec_hf.methods.tallrec import answer_tokens, with_lora
from allmrec_hf.part_sources import DEMO_PARTS
from allmrec_hf.ranker_likelihood import LIKELIHOOD_FORMS
from allmrec_hf.ranking import ndcg_at_k, target_ranks
from tests import small_run
from tests.methods.world import CHANCE, small_setting, small_world
from tests.tiny import OPT_TINY, tiny_llm

USERS = 100
TRAINED = ("a-llmrec", "mlp-llm", "tallrec", "llm-srec", "no-llm")
STEPS: dict[str, Any] = {
    "num_train_epochs": 2,
    "max_steps": 2,
    "per_device_train_batch_size": 8,
    "max_validation_users": 10,
}
FEW_STEPS = {"backbone": STEPS, "align": STEPS, "project": STEPS}
# A minute of training would show more; these show that something is learnt.
LEARNING: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a-llmrec": ({"warm_start_steps": 120}, {"max_steps": 8}),
    "mlp-llm": ({"warm_start_steps": 120}, {"max_steps": 24}),
    "llm-srec": ({"num_candidates": 6}, {"max_steps": 32, "num_train_epochs": 2}),
    "no-llm": ({"steps": 60}, {}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llm_methods")


@pytest.fixture(scope="module")
def world(folder: Path) -> PreparedData:
    return small_world(folder)


@pytest.fixture(scope="module")
def tiny(folder: Path) -> PreparedData:
    return small_run.write_data(folder / "tiny")


def tiny_setting(folder: Path, name: str, **changes: Any) -> Setting:
    values: dict[str, Any] = {"folder": folder / name, "parts": folder / "tiny-parts", "budget": FEW_STEPS}
    own = {"steps": 2} if name.startswith("no-llm") else {}
    if name.startswith(("a-llmrec", "mlp-llm", "random-llm")):
        own = {"warm_start_steps": 2}
    if not name.startswith(("llm-only", "leak-alarm", "without")):
        own["num_candidates"] = small_run.NUM_CANDIDATES
    return small_setting(folder, **{**values, "options": own, **changes})


@pytest.fixture(scope="module")
def fitted(folder: Path, tiny: PreparedData) -> dict[str, Ranker]:
    return {name: method(name).fit(tiny, tiny_setting(folder, name)) for name in (*TRAINED, "llm-only")}


def ndcg(ranker: Ranker, data: PreparedData) -> float:
    candidates = data.candidates("test").take(np.arange(USERS))
    histories = [data.history(int(user), "test") for user in candidates.users]
    scores = ranker.score(histories, candidates.items)
    return float(ndcg_at_k(target_ranks(scores, candidates.target_columns), 10).mean())


@pytest.mark.parametrize("name", list(LEARNING))
def test_method_learns_more_than_popularity_or_at_least_than_a_random_order(name, folder, world):
    options, project = LEARNING[name]
    setting = small_setting(folder, folder=folder / f"learns-{name}", options=options)
    few = {"max_validation_users": 10, **project}
    setting = replace(setting, budget={**setting.budget, "project": {**setting.budget["project"], **few}})
    found = ndcg(method(name).fit(world, setting), world)
    if name == "mlp-llm":  # near popularity with so few steps: that it learns shows above a random order
        candidates = world.candidates("test").take(np.arange(USERS))
        constant = target_ranks(np.zeros(candidates.items.shape), candidates.target_columns)
        assert found > float(ndcg_at_k(constant, 10).mean()) + 0.05
    else:
        assert found > ndcg(PopularityRanker(world.item_counts("train")), world)


def loyal_users(folder: Path) -> PreparedData:
    """Return 400 users of the invented world who never leave their topic, one of four.

    The demo's LM has never met a yes or a no, so in seconds it learns to tell four topics apart, and no more.
    """
    world, generator = SyntheticWorld(num_items=120, num_users=1, num_topics=4), np.random.default_rng(0)
    items = world.items()
    films = [items.filter(pl.col("topic") == topic)["item_id"].to_list() for topic in world.topic_names]
    rows = [
        (f"U{user:03d}", str(film), time)
        for user in range(400)
        for time, film in enumerate(generator.permutation(films[user % 4])[:5])
    ]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    choices: dict[str, Any] = {"filter": "none", "keep_items": "all", "name": "loyal users", "domain": "movie"}
    return prepare(frame, items, output=folder / "loyal", **choices)


def test_tallrec_learns_more_than_popularity(folder):
    data = loyal_users(folder)
    prompt = "This user has watched {history} in the previous. The movie is {candidates}. This is "
    options = {"target_modules": "all-linear", "rank": 16, "history_in_prompt": 3, "prompt": {"prompt": prompt}}
    loop = {"num_train_epochs": 5, "max_steps": 64, "learning_rate": 5e-3, "warmup_steps": 5, "eval_epochs": 5}
    budget = {"project": {**loop, "max_validation_users": 10}}
    setting = small_setting(folder, folder=folder / "learns-tallrec", options=options, budget=budget)
    found = ndcg(method("tallrec").fit(data, setting), data)
    assert found > ndcg(PopularityRanker(data.item_counts("train")), data)
    assert found > CHANCE["ndcg@10"] + 0.05  # popularity is below chance where users take each film of a topic once


@pytest.mark.parametrize("name", [*TRAINED, "llm-only"])
def test_score_depends_neither_on_the_order_of_candidates_nor_on_the_batch(name, fitted, tiny):
    candidates = tiny.candidates("test").take(np.arange(9))
    histories = [tiny.history(int(user), "test") for user in candidates.users]
    ranker = fitted[name]
    scores = ranker.score(histories, candidates.items)
    np.testing.assert_allclose(ranker.score(histories, candidates.items[:, ::-1])[:, ::-1], scores, atol=1e-4)
    np.testing.assert_allclose(ranker.score(histories[4:5], candidates.items[4:5]), scores[4:5], atol=1e-4)


@pytest.mark.parametrize("name", [*TRAINED, "llm-only"])
def test_retrieval_leaves_out_the_history_and_repeats_nothing(name, fitted, tiny):
    histories = [tiny.history(user, "test") for user in range(3)]
    items, scores = fitted[name].retrieve(histories, 8)
    assert items.shape == scores.shape == (3, 8)
    assert (np.diff(scores, axis=1) <= 0).all()
    for row, history in zip(items, histories, strict=True):
        assert len(set(row.tolist())) == 8
        assert not set(row.tolist()) & {0, *history.tolist()}


@pytest.mark.parametrize("name", [*TRAINED, "llm-only"])
def test_training_leaves_the_weights_of_the_llm_as_they_were(name, fitted):
    language_model = getattr(fitted[name].model, "language_model", None)  # type: ignore[attr-defined]
    if name == "no-llm":
        assert language_model is None
        return
    before = AutoModelForCausalLM.from_pretrained(DEMO_PARTS / "language_model").state_dict()
    after = {key.replace(".base_layer", ""): value for key, value in language_model.state_dict().items()}
    assert not language_model.training
    for key, value in before.items():
        torch.testing.assert_close(after[key].cpu(), value, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["tallrec", "llm-srec"])
def test_the_config_of_the_llm_stays_its_own(name, fitted):
    model = fitted[name].model  # type: ignore[attr-defined]
    assert Path(model.config.base_model_name_or_path) == DEMO_PARTS / "language_model"
    assert "base_model_name_or_path" not in model.language_model.config.to_dict()


@pytest.mark.parametrize("name", ["tallrec", "llm-srec", "llm-only"])
def test_what_ranking_by_an_llm_will_cost_is_told_for_every_method(name, fitted, tiny, caplog):
    with caplog.at_level("INFO"):
        seconds = tell_evaluation_cost(fitted[name], tiny, max_users=4)
    assert seconds > 0
    told = r"4 prompts of \d+ tokens" if name == "llm-only" else r"4 users to rank for, .* users/s: about"
    assert re.search(rf"{fitted[name].name}: {told}", caplog.text)


def test_tallrec_trains_lora_weights_alone(fitted):
    trained = [name for name, value in fitted["tallrec"].model.named_parameters() if value.requires_grad]  # type: ignore[attr-defined]
    assert trained
    assert all("lora_" in name and ("q_proj" in name or "v_proj" in name) for name in trained)


@pytest.mark.parametrize("name", TRAINED)
def test_finished_method_is_loaded_and_the_same_seed_gives_the_same_scores(name, folder, fitted, tiny, monkeypatch):
    candidates = tiny.candidates("test").take(np.arange(4))
    histories = [tiny.history(int(user), "test") for user in candidates.users]
    expected = fitted[name].score(histories, candidates.items)
    anew = method(name).fit(tiny, tiny_setting(folder, f"{name}-again", parts=folder / "other-parts"))
    np.testing.assert_array_equal(anew.score(histories, candidates.items), expected)
    monkeypatch.setattr("allmrec_hf.training.loop._StageRun._step", None)  # nothing may be trained
    loaded = method(name).fit(tiny, tiny_setting(folder, name))
    np.testing.assert_array_equal(loaded.score(histories, candidates.items), expected)


@pytest.mark.parametrize("name", ["mlp-llm", "tallrec", "llm-srec", "no-llm"])
def test_folder_of_other_settings_is_refused(name, folder, fitted, tiny):
    setting = tiny_setting(folder, name)
    with pytest.raises(ALLMRecError, match="targets"):
        method(name).fit(tiny, replace(setting, options={**setting.options, "targets": "train"}))


def test_variants_of_a_llmrec_share_their_first_stages_and_keep_no_llm(folder, fitted, tiny):
    setting = tiny_setting(folder, "a-llmrec-variant")
    of_align, of_project = (set(setting.parts.glob(f"{stage}-*")) for stage in ("align", "project"))
    method("a-llmrec").fit(tiny, replace(setting, options={**setting.options, "projection_loss": "listwise"}))
    assert len(of_align) == 1
    assert set(setting.parts.glob("align-*")) == of_align
    (trained,) = set(setting.parts.glob("project-*")) - of_project
    assert (trained / "project" / "done").exists()
    assert not (trained / "language_model").exists()
    assert not list((trained / "checkpoints" / "align").rglob("step-*"))


@pytest.mark.parametrize("kind", LIKELIHOOD_FORMS)
def test_one_stage_2_ranks_by_every_form_of_the_likelihood(kind, folder, fitted, tiny, monkeypatch):
    monkeypatch.setattr("allmrec_hf.training.loop._StageRun._step", None)  # nothing may be trained
    setting = tiny_setting(folder, f"a-llmrec-{kind}")
    ranker: Any = method("a-llmrec").fit(tiny, replace(setting, options={**setting.options, "ranker": kind}))
    assert ranker.ranker.kind == kind
    rows = tiny.candidates("test").take(np.arange(1)).items
    same = np.array_equal(*(each.score([tiny.history(0, "test")], rows) for each in (ranker, fitted["a-llmrec"])))
    assert same == (kind == "likelihood_sum")


def test_a_ranker_that_no_run_gives_is_refused_before_training(folder, fitted, tiny, tmp_path):
    setting = tiny_setting(folder, "a-llmrec-other", parts=tmp_path)
    for name in ("a-llmrec", "random-llm"):
        with pytest.raises(ALLMRecError, match=r"likelihood_mean.*retrieval, fusion; got 'words'"):
            method(name).fit(tiny, replace(setting, options={"ranker": "words"}))
    with pytest.raises(ALLMRecError, match="the option ranker of no-llm is one of cosine, fusion; got 'retrieval'"):
        method("no-llm").fit(tiny, replace(setting, options={"ranker": "retrieval"}))
    with pytest.raises(ALLMRecError, match="no options"):
        method("a-llmrec").fit(tiny, replace(setting, options={"rank_rankers": "letter"}))
    assert not list(tmp_path.iterdir())


FUSION = {"ranker": "fusion", "retrieve_dim": 8, "rank_num_candidates": 20, "rank_max_validation_users": 40}
RETRIEVED = {**FEW_STEPS, "retrieve": STEPS}


def test_a_fusion_trains_no_stage_2_and_shares_its_retrieval(folder, tiny, tmp_path, monkeypatch):
    setting = tiny_setting(folder, "a-llmrec-fusion", parts=tmp_path, budget=RETRIEVED, options=FUSION)
    fusion: Any = method("a-llmrec").fit(tiny, setting)
    assert fusion.ranker.kind == "fusion"
    assert fusion.ranks_catalogue
    assert fusion.model.config.rankers["fusion"]["parts"] == ["cf", "text", "words", "retrieval"]
    assert facts(fusion)["llm_parameters"] > 0
    assert not list(tmp_path.glob("project-*"))
    assert len(list(tmp_path.glob("retrieve-*"))) == len(list(tmp_path.glob("rank-*"))) == 1
    assert not list(tmp_path.glob("r*/checkpoints/retrieve"))
    monkeypatch.setattr("allmrec_hf.training.loop._StageRun._step", None)  # nothing may be trained again
    again: Any = method("a-llmrec").fit(tiny, replace(setting, options={"ranker": "retrieval", "retrieve_dim": 8}))
    assert again.ranker.kind == "retrieval"
    heavier: Any = method("a-llmrec").fit(tiny, replace(setting, options={**FUSION, "rank_cold_weight": 3.0}))
    assert heavier.model.config.rankers["fusion"]["cold_weight"] == 3.0
    without: Any = method("no-llm").fit(tiny, replace(setting, options={k: FUSION[k] for k in ("ranker",)}))
    assert without.name == "no-llm"
    assert without.model.language_model is None
    assert without.model.config.rankers["fusion"]["parts"] == ["cf", "text", "words"]
    assert "llm" not in facts(without)


def test_runs_of_other_item_embeddings_are_trained_apart_and_untrained_projectors_not_counted(folder, tiny, tmp_path):
    setting = tiny_setting(folder, "a-llmrec-apart", parts=tmp_path, budget=RETRIEVED)
    own = {"ranker": "retrieval", "retrieve_dim": 8}
    first, second = (
        method("a-llmrec").fit(tiny, replace(setting, options=options))
        for options in (own, {**own, "item_embedding": "random", "max_title_tokens": 3})
    )
    assert (first.model.config.item_embedding, second.model.config.item_embedding) == ("auto", "random")  # type: ignore[attr-defined]
    model = first.model  # type: ignore[attr-defined]
    counted = sum(p.numel() for part in (model.aligner, model.retrieval_head) for p in part.parameters())
    assert facts(first)["trained_parameters"] == counted


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a-llmrec", {"rank_cold_weight": 2.0}),
        ("random-llm", {"retrieve_dim": 4, "ranker": "letter"}),
        ("a-llmrec", {"ranker": "fusion", "warm_start_steps": 2}),
        ("a-llmrec", {"ranker": "retrieval", "rank_cold_weight": 2.0}),
        ("no-llm", {"rank_cold_weight": 2.0}),
        ("no-llm", {"ranker": "fusion", "steps": 9}),
    ],
)
def test_options_that_change_nothing_are_refused(name, options, folder, tiny, tmp_path):
    with pytest.raises(ALLMRecError, match="have no effect where it ranks by"):
        method(name).fit(tiny, tiny_setting(folder, "idle", parts=tmp_path, options=options))
    assert not list(tmp_path.iterdir())


def test_an_interrupted_fusion_goes_on_behind_its_retrieval(folder, tiny, tmp_path, monkeypatch):
    setting = tiny_setting(folder, "random-llm-fusion", parts=tmp_path, budget=RETRIEVED, options=FUSION)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("allmrec_hf.training.stages.fit_rankers", killed)
        with pytest.raises(KeyboardInterrupt):
            method("random-llm").fit(tiny, setting)
    monkeypatch.setattr("allmrec_hf.training.loop._StageRun._step", None)
    ranker: Any = method("random-llm").fit(tiny, setting)
    assert ranker.ranker.kind == "fusion"
    assert "random" in str(facts(ranker)["llm"])


def test_what_vectors_add_is_no_score_of_a_prompt_in_words(folder, tiny):
    setting = tiny_setting(folder, "llm-only-gain", options={"score_normalization": "vector_gain"})
    with pytest.raises(ALLMRecError, match="no vectors"):
        method("llm-only").fit(tiny, setting)


def test_interrupted_stage_2_goes_on(folder, fitted, tiny, monkeypatch):
    setting = tiny_setting(folder, "a-llmrec-killed")
    setting = replace(setting, options={**setting.options, "listwise_temperature": 2.0})  # of no effect: a stage 2 anew

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("allmrec_hf.training.run.write_card", killed)  # after stage 2's last checkpoint
        with pytest.raises(KeyboardInterrupt):
            method("a-llmrec").fit(tiny, setting)
    (trained,) = (path for path in setting.parts.glob("project-*") if not (path / "project" / "done").exists())
    with monkeypatch.context() as patched:
        patched.setattr("allmrec_hf.training.loop._StageRun._step", None)  # nothing may be trained again
        ranker = method("a-llmrec").fit(tiny, setting)
    assert (trained / "project" / "done").exists()
    assert not (trained / "checkpoints" / "project").exists()
    histories = [tiny.history(0, "test")]
    rows = tiny.candidates("test").take(np.arange(1)).items
    np.testing.assert_array_equal(ranker.score(histories, rows), fitted["a-llmrec"].score(histories, rows))


def test_mlp_llm_shows_the_llm_the_cf_vectors_themselves(fitted):
    model = fitted["mlp-llm"].model  # type: ignore[attr-defined]
    items = torch.tensor([1, 5])
    torch.testing.assert_close(model.item_vectors(items), model.cf_encoder.item_embeddings[items])


def test_random_llm_has_the_architecture_and_not_the_weights(folder, tiny):
    setting = tiny_setting(folder, "random-llm")
    ranker: Any = method("random-llm").fit(tiny, setting)
    found = ranker.model.language_model
    original = AutoModelForCausalLM.from_pretrained(DEMO_PARTS / "language_model")
    assert {k: v.shape for k, v in found.state_dict().items()} == {k: v.shape for k, v in original.state_dict().items()}
    name = "model.embed_tokens.weight"
    assert not torch.allclose(found.state_dict()[name].cpu(), original.state_dict()[name], atol=0.1)
    assert ranker.name == "random-llm"


def test_leak_alarm_is_silent_where_nothing_leaks(folder, world):
    ranker = method("leak-alarm").fit(world, small_setting(folder, folder=folder / "leak-alarm"))
    assert ndcg(ranker, world) == pytest.approx(CHANCE["ndcg@10"], abs=0.09)  # 100 users: two standard errors are 0.05


def test_fair_backbone_is_the_backbone_of_more_data(folder, tiny):
    setting = tiny_setting(folder, "fair-backbone", options={})
    assert method("fair-backbone").fit(tiny, setting).name == "sasrec, data of stage 2"


@pytest.mark.parametrize("name", [*TRAINED, "llm-only", "random-llm", "fair-backbone", "leak-alarm"])
def test_unknown_option_is_refused(name, folder, tiny):
    with pytest.raises(ALLMRecError, match=r"no options \['wings'\]"):
        method(name).fit(tiny, tiny_setting(folder, "unknown", options={"wings": 2}))


@pytest.mark.parametrize("name", ["a-llmrec", "mlp-llm", "tallrec", "llm-srec", "llm-only", "random-llm", "leak-alarm"])
def test_method_without_its_llm_is_refused(name, folder, tiny):
    with pytest.raises(ALLMRecError, match=f"{name} needs an LLM"):
        method(name).fit(tiny, tiny_setting(folder, "without", llm=None))


def test_value_that_no_setting_knows_is_refused(folder, tiny):
    setting = tiny_setting(folder, "value", options={"targets": "test"})
    with pytest.raises(
        ALLMRecError, match=r"of the method a-llmrec .* targets must be one of validation, train; got 'test'"
    ):
        method("a-llmrec").fit(tiny, setting)


@pytest.mark.parametrize("name", [*TRAINED, "llm-only"])
def test_method_says_where_it_comes_from(name):
    found: Method = method(name)
    assert found.name == name
    assert bool(found.paper) == (name != "no-llm")
    assert found.simplified


def test_facts_count_what_is_frozen_and_what_is_trained(fitted):
    assert facts(fitted["llm-only"]) == {
        "llm": "language_model",
        "llm_parameters": 404_256,
        "d_llm": 112,
        "trained_parameters": 0,
    }
    assert facts(fitted["tallrec"])["llm_parameters"] == 404_256
    for name in TRAINED:
        assert facts(fitted[name])["trained_parameters"] > 0
    assert "llm" not in facts(fitted["no-llm"])
    assert facts(PopularityRanker([0, 1, 2])) == {}


@pytest.mark.parametrize("family", ["opt", "gpt2", "llama"])
def test_lora_finds_its_place_in_every_family(family, folder):
    language_model = with_lora(tiny_llm(family), small_setting(folder))
    trained = [name for name, value in language_model.named_parameters() if value.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    assert any("q_proj" in name for name in trained) == (family != "gpt2")


def test_lora_trains_in_float32_whatever_the_llm_is(folder):
    language_model = with_lora(tiny_llm("opt").to(torch.bfloat16), small_setting(folder))
    kinds = {name: value.dtype for name, value in language_model.named_parameters()}
    assert {kind for name, kind in kinds.items() if "lora_" in name} == {torch.float32}
    assert {kind for name, kind in kinds.items() if "lora_" not in name} == {torch.bfloat16}
    logits = language_model(torch.tensor([[1, 2, 3]])).logits
    logits.float().sum().backward()
    assert logits.dtype == torch.bfloat16


def test_answers_are_told_apart_by_their_first_different_token():
    tokenizer = AutoTokenizer.from_pretrained(OPT_TINY)
    same, yes, no = answer_tokens(tokenizer, ("Yes", "No"))
    expected = [tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in ("Yes", "No")]
    assert yes != no
    assert [tokens[: len(same) + 1] for tokens in expected] == [[*same, yes], [*same, no]]


def test_uniformity_is_lowest_where_vectors_point_everywhere():
    same = torch.nn.functional.normalize(torch.ones(4, 2), dim=-1)
    spread = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert float(uniformity(same)) == pytest.approx(0.0, abs=1e-6)
    assert float(uniformity(spread)) == pytest.approx(-8.0, abs=1e-6)  # log exp(-2 * 2 ** 2)


def test_folder_notes_what_it_was_trained_with(folder, fitted):
    noted = json.loads((folder / "tallrec" / "method.json").read_text(encoding="utf-8"))
    assert noted["method"] == "tallrec"
