"""A run of a fusion alone: backbone, texts and words are trained, loaded, ranked by and shared without any LLM."""

from __future__ import annotations

import json
import shutil

import pytest
from transformers import AutoModel, AutoProcessor, pipeline

from allmrec_hf import ALLMRecError, ALLMRecProcessor, ALLMRecTrainer, CheckpointError
from allmrec_hf.ranker_built_in import can_rank, rankers_of
from allmrec_hf.training.arguments import ALLMRecTrainingArguments
from allmrec_hf.training.fusion_fitting import WITHOUT_LLM
from tests import small_run
from tests.command_line import refused, succeeded

RANK = {"rankers": "fusion", "num_candidates": 20, "max_validation_users": 60}
OWN = ["fusion", "fusion_sum", "fusion_ranks", "text", "words", "cf"]


def arguments(parts, output, **changes):
    return small_run.run_arguments(output, small_run.settings(parts, llm_name=None)).replaced(rank={**RANK, **changes})


@pytest.fixture(scope="module")
def run(small_parts, small_data, tmp_path_factory):
    output = tmp_path_factory.mktemp("without") / "run"
    ALLMRecTrainer(args=arguments(small_parts, output), data=small_data).train()
    return output


@pytest.fixture
def recommend(run):
    return pipeline("recommendation", model=str(run))


def scores(recommend, request):
    return {item["item_id"]: item["score"] for item in recommend(request, top_k=5)}


def test_stages_and_checkpoint_of_a_run_without_an_llm(run):
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["align", "backbone"]
    model, processor = AutoModel.from_pretrained(run), AutoProcessor.from_pretrained(run)
    assert model.language_model is None
    assert model.user_projector is None
    assert model.config.llm_dim is None
    assert model.config.rankers["fusion"]["parts"] == list(WITHOUT_LLM)
    assert rankers_of(model.config) == OWN
    assert model.config.ranker in OWN
    assert isinstance(processor, ALLMRecProcessor)
    assert processor.tokenizer is None
    assert processor.fingerprint is None
    assert not list(run.glob("tokenizer*"))


def test_an_llm_may_come_later_and_leaves_a_fusion_of_the_same_parts_as_it_is(run, small_parts, small_data, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    args = arguments(small_parts, folder, rankers="zero_shot,fusion", fusion_parts="cf,text,words")
    ALLMRecTrainer(llm=small_parts / "llm", args=args, data=small_data).train("rank")
    found, own = AutoModel.from_pretrained(folder), AutoModel.from_pretrained(run)
    assert found.language_model is not None
    assert ALLMRecProcessor.from_pretrained(folder).tokenizer is not None
    assert found.config.rankers["fusion"] == own.config.rankers["fusion"]


def test_it_recommends_in_batches_takes_new_items_and_is_the_same_once_saved(recommend, tmp_path):
    ids = recommend.processor.catalog.item_ids
    requests = [{"history": ids[:3]}, {"history": ids[4:5], "candidates": ids[20:30]}, {"history": ids[7:9]}]
    together = recommend(requests, top_k=5, batch_size=3)
    for found, request in zip(together, requests, strict=True):
        alone = scores(recommend, request)
        assert {item["item_id"]: item["score"] for item in found} == pytest.approx(alone, abs=1e-5)
        assert set(found[0]["parts"]) <= {*WITHOUT_LLM, "popularity"}
    recommend.add_items([{"item_id": "NEW", "title": "The Lost Harbor", "description": "A crime film."}])
    request = {"history": [ids[3], "NEW"], "candidates": ["NEW", *ids[40:44]]}
    before = scores(recommend, request)
    recommend.save_pretrained(tmp_path / "saved")
    again = pipeline("recommendation", model=str(tmp_path / "saved"))
    assert again.processor.tokenizer is None
    assert scores(again, request) == pytest.approx(before)


def test_what_needs_an_llm_is_refused_with_the_reason(run, recommend):
    ids = recommend.processor.catalog.item_ids
    with pytest.raises(CheckpointError, match=r"no ranker 'likelihood' .*; it has fusion, fusion_sum"):
        recommend({"history": ids[:2]}, ranker="likelihood")
    with pytest.raises(CheckpointError, match=r"has no tokenizer, so it makes no prompts: .* without an LLM"):
        recommend.processor([[1, 2]], [[3, 4]])
    with pytest.raises(CheckpointError, match="no part that was trained for an LLM, so it does not take some/llm"):
        AutoModel.from_pretrained(run, language_model="some/llm")
    told = refused("recommend", "--model", run, "--history", ids[0], "--llm", "some/llm")
    assert "no part that was trained for an LLM" in told
    assert "no LLM" in refused("explain", "--model", run, "--history", ids[0], "--item", ids[5])


def test_an_llm_that_nothing_asks_is_refused(small_parts, small_data, tmp_path):
    for given in ({"name": str(small_parts / "llm")}, {"include_llm": True}, {"dtype": "float32"}):
        args = arguments(small_parts, tmp_path / "run").replaced(llm=given)
        with pytest.raises(ALLMRecError, match=r"a fusion without an LLM, on which .* have no effect \(llm\."):
            ALLMRecTrainer(args=args, data=small_data).train()
    assert not (tmp_path / "run").exists()


def test_parts_and_rankers_of_an_llm_are_refused_before_anything_is_trained(small_parts, small_data, tmp_path):
    for wrong in ({"fusion_parts": "cf,text,retrieval"}, {"ranker": "likelihood"}):
        with pytest.raises(ALLMRecError, match=r"alone has no (retrieval|likelihood): it is made of cf, text, words"):
            ALLMRecTrainer(args=arguments(small_parts, tmp_path / "run", **wrong), data=small_data).train()
    assert not (tmp_path / "run").exists()


def test_what_a_preset_says_of_an_llm_is_left_out(small_parts, small_data, tmp_path):
    folder = tmp_path / "run"
    loops = {**small_run.arguments(), "rank": RANK, "align": {"text_encoder": str(small_parts / "text_encoder")}}
    chosen = {name: {**small_run.arguments(max_steps=4)[name], **loops.get(name, {})} for name in ("backbone", "align")}
    args = ALLMRecTrainingArguments(folder, preset="demo", **chosen, rank=RANK)
    assert args.llm.include_llm
    ALLMRecTrainer(args=args, data=small_data).train()
    assert not json.loads((folder / "config.json").read_text())["language_model_included"]


def test_an_llm_may_come_later_for_retrieval_and_go_again(run, small_parts, small_data, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    loop = {**small_run.arguments(max_steps=4)["project"], "dim": 8, "num_negatives": 8, "eval_strategy": "no"}
    args = arguments(small_parts, folder, rankers="retrieval,fusion").replaced(retrieve=loop)
    ALLMRecTrainer(llm=small_parts / "llm", args=args, data=small_data).train("retrieve")
    assert json.loads((folder / "run.json").read_text())["arguments"]["llm"]["name"].endswith("llm")
    again = ALLMRecTrainer(llm=small_parts / "llm", args=args, data=small_data)
    again.train(("retrieve", "rank"), resume_from_checkpoint=True)
    ALLMRecTrainer(args=args, data=small_data).train("rank")  # the record names the LLM
    assert AutoModel.from_pretrained(folder).config.rankers["fusion"]["parts"] == [*WITHOUT_LLM, "retrieval"]


def test_a_fusion_without_the_llm_of_before_has_none(run, small_parts, small_data, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    read = arguments(small_parts, folder, rankers="zero_shot,fusion", fusion_parts="cf,text,words")
    ALLMRecTrainer(llm=small_parts / "llm", args=read, data=small_data).train("rank")
    ALLMRecTrainer(args=arguments(small_parts, folder), data=small_data).train("rank")
    model, processor = AutoModel.from_pretrained(folder), ALLMRecProcessor.from_pretrained(folder)
    assert (model.language_model, model.config.llm_dim, processor.tokenizer) == (None, None, None)
    assert json.loads((folder / "run.json").read_text())["arguments"]["llm"]["name"] is None


def test_a_processor_without_a_tokenizer_counts_and_decodes_no_tokens(recommend):
    for call in (recommend.processor.decode, recommend.processor.batch_decode):
        with pytest.raises(CheckpointError, match="has no tokenizer"):
            call([1, 2])
    with pytest.raises(CheckpointError, match="no tokenizer to count with"):
        ALLMRecProcessor(None, max_title_tokens=5)


def test_stage_1_alone_cannot_rank_until_a_fusion_is_fitted(small_parts, small_data, tmp_path):
    folder = tmp_path / "run"
    likelihood = arguments(small_parts, folder, rankers="likelihood")
    ALLMRecTrainer(args=likelihood, data=small_data).train(("backbone", "align"))
    assert not can_rank(AutoModel.from_pretrained(folder).config)
    history = small_data.catalog.item_id(1)
    told = refused("recommend", "--model", folder, "--history", history)
    assert "--stage rank --rankers fusion" in told
    with pytest.raises(ALLMRecError, match="or fusion alone, which needs no LLM"):
        ALLMRecTrainer(args=likelihood, data=small_data).train("rank")
    ALLMRecTrainer(args=arguments(small_parts, folder), data=small_data).train("rank")
    assert can_rank(AutoModel.from_pretrained(folder).config)
    assert "rank" in succeeded("recommend", "--model", folder, "--history", history).stdout


def test_it_is_evaluated_refitted_and_its_card_says_that_there_is_no_llm(run, small_data, small_parts, tmp_path):
    folder, report = tmp_path / "run", tmp_path / "report.json"
    shutil.copytree(run, folder)
    succeeded("evaluate", "--model", folder, "--data", small_parts / "data", "--output", report, "--update-card")
    methods = json.loads(report.read_text())["methods"]
    assert {"a-llmrec fusion", "a-llmrec text", "a-llmrec words", "a-llmrec cf", "popularity"} <= set(methods)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "that has no large language model" in card
    assert "of the scores of backbone, texts and words." in card
    assert "language model, frozen" not in card
    assert "No language model is needed" in card
    succeeded("card", folder, "--check")
    trainer = ALLMRecTrainer(args=ALLMRecTrainingArguments(folder), data=small_data)
    again = trainer.refit(tmp_path / "again")
    config = again.model.config
    assert config.rankers["fusion"] == trainer.model.config.rankers["fusion"]
    assert config.ranker == trainer.model.config.ranker
    assert again.processor.tokenizer is None


def test_a_fusion_alone_is_trained_from_the_command_line(small_parts, tmp_path):
    folder = tmp_path / "run"
    steps = [part for stage in ("backbone", "align") for part in (f"--{stage}.max-steps", 5)]
    backbone = ["--backbone.options", "hidden_size=16", "--align.joint-dim", 8, "--rank.num-candidates", 20]
    parts = ["--data", small_parts / "data", "--text-encoder", small_parts / "text_encoder", "--output", folder]
    succeeded("train", *parts, "--rankers", "fusion", *steps, *backbone)
    assert json.loads((folder / "config.json").read_text())["llm_dim"] is None
