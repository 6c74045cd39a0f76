"""Data are recognised by their content: what was trained on some is never gone on with, or judged, on others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from toy_task import LONG, ToyTask

from allmrec_hf.catalog import ItemCatalog
from allmrec_hf.cli.evaluate import load_rankers
from allmrec_hf.data.digests import digest_of, other_items
from allmrec_hf.data.prepare import prepare
from allmrec_hf.data.prepared import PreparedData
from allmrec_hf.data.subsets import with_users
from allmrec_hf.data.synthetic import SyntheticWorld
from allmrec_hf.errors import ALLMRecError, CheckpointError, DataError
from allmrec_hf.evaluation.evaluator import evaluate
from allmrec_hf.evaluation.rankers import PopularityRanker
from allmrec_hf.methods import ctrl
from allmrec_hf.methods.method import Setting
from allmrec_hf.methods.shared import run_arguments, run_until
from allmrec_hf.training.alignment import text_embedding_table
from allmrec_hf.training.cf_batches import SequenceBatches
from allmrec_hf.training.fair import fair_backbone
from allmrec_hf.training.loop import run_stage
from allmrec_hf.training.run_record import RUN_FILE
from allmrec_hf.training.samples import drawn, last_of_training
from allmrec_hf.training.text_encoders import load_text_encoder
from allmrec_hf.training.trainer import ALLMRecTrainer
from tests import small_run
from tests.small_run import NUM_CANDIDATES, arguments, settings, train


class Stopped(Exception):
    pass


def prepared(directory, items=lambda frame: frame, interactions=lambda frame: frame, **changes):
    """Prepare the small world again, from files that were changed."""
    world = SyntheticWorld(num_items=120, num_users=200)
    choices = {"filter": "none", "keep_items": "all", "name": "small", "domain": "movie"}
    choices |= {"num_candidates": NUM_CANDIDATES, **changes}
    return prepare(interactions(world.interactions()), items(world.items()), output=directory, **choices)


@pytest.fixture(scope="module")
def reordered(tmp_path_factory):
    """Return the small data, prepared from a catalogue that was exported in another order."""
    return prepared(tmp_path_factory.mktemp("reordered") / "data", items=pl.DataFrame.reverse)


@pytest.fixture(scope="module")
def aligned(small_parts, small_data, tmp_path_factory):
    """Return the folder of a run of stages 0 and 1."""
    output = tmp_path_factory.mktemp("runs") / "aligned"
    return train(small_data, output, settings(small_parts, llm_name=None), ("backbone", "align"), arguments())


@pytest.fixture
def copied(aligned, tmp_path):
    return Path(shutil.copytree(aligned, tmp_path / "copied"))


# -- what is recognised


def test_the_same_files_again_are_the_same_data(small_data, tmp_path):
    assert prepared(tmp_path / "data").digests == small_data.digests
    assert PreparedData.load(small_data.directory).digests == small_data.digests


def test_another_order_of_the_catalogue_is_seen_although_every_count_agrees(small_data, reordered):
    assert reordered.info["counts"] == small_data.info["counts"]
    assert {name for name in small_data.digests if small_data.digests[name] != reordered.digests[name]} >= {
        "items",
        "texts",
    }


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"items": lambda frame: frame.with_columns(pl.col("title") + "!")}, {"texts"}),
        ({"interactions": lambda frame: frame.with_columns(-pl.col("timestamp"))}, {"interactions", "candidates"}),
        ({"seed": 7}, {"candidates"}),
    ],
)
def test_each_part_has_a_digest_of_its_own(small_data, tmp_path, changes, parts):
    again = prepared(tmp_path / "data", **changes)
    assert {name for name in again.digests if again.digests[name] != small_data.digests[name]} == parts


def test_as_many_other_users_are_other_data(small_data):
    first, second = (with_users(small_data, small_data.user_ids[start : start + 50]) for start in (0, 50))
    assert first.digests["interactions"] != second.digests["interactions"]
    assert first.digests["items"] == second.digests["items"] == small_data.digests["items"]


def test_digests_tell_apart_what_joined_texts_do_not():
    columns = [["a", "bc"], ["ab", "c"], ["abc"], ["abc", ""], ["abc", None], ["", "abc"], [None, "abc"]]
    assert len({digest_of([pl.Series(values, dtype=pl.String)]) for values in columns}) == len(columns)


def test_items_at_other_numbers_are_counted():
    assert other_items(["a", "b", "c"], ["a", "b"]) is None
    assert other_items(["a", "b", "c"], ["a", "c", "b"]) == "2 of 3 items stand at another number"
    assert other_items(["a", "b"], ["a", "x"]) == "1 items of the data are not in it, first ['x']"


# -- training


@pytest.mark.parametrize("stages", [("backbone", "align", "project"), ("align",), ("project",)])
@pytest.mark.parametrize("resume", [True, False])
def test_a_later_stage_on_data_of_another_numbering_is_refused(copied, small_parts, reordered, stages, resume):
    if stages[0] == "align":
        shutil.rmtree(copied / "align")
        shutil.rmtree(copied / "checkpoints" / "align")
    if stages[0] == "backbone" and not resume:
        pytest.skip("a folder that is not empty is refused anyway")
    before = (copied / RUN_FILE).read_text()
    with pytest.raises(ALLMRecError, match=r"items \(as many, but others or in another order|stand at another number"):
        train(reordered, copied, settings(small_parts), stages, arguments(), resume=resume)
    assert (copied / RUN_FILE).read_text() == before


def test_a_run_that_stopped_within_a_stage_is_not_gone_on_with(
    small_parts, small_data, reordered, tmp_path, monkeypatch
):
    collate, calls = SequenceBatches.collate, []

    def stopping(self, examples, generator):
        calls.append(1)
        if len(calls) > 5:
            raise Stopped
        return collate(self, examples, generator)

    monkeypatch.setattr(SequenceBatches, "collate", stopping)
    with pytest.raises(Stopped):
        train(small_data, tmp_path / "run", settings(small_parts, llm_name=None), ("backbone",), arguments())
    monkeypatch.setattr(SequenceBatches, "collate", collate)
    chosen = settings(small_parts, llm_name=None)
    with pytest.raises(ALLMRecError, match=r"was trained on \(stage backbone\), which these tell apart: items"):
        train(reordered, tmp_path / "run", chosen, ("backbone",), arguments(), resume=True)
    alone = Path(shutil.copytree(tmp_path / "run", tmp_path / "alone"))
    (alone / RUN_FILE).unlink()  # the checkpoint knows it too
    with pytest.raises(CheckpointError, match="was trained on other data, which these tell apart: items"):
        train(reordered, alone, chosen, ("backbone",), arguments(), resume=True)
    train(small_data, tmp_path / "run", chosen, ("backbone",), arguments(), resume=True)


def test_a_checkpoint_within_a_stage_knows_its_data(tmp_path):
    task, calls = ToyTask(size=120, dropout=0.3), []
    task.content, collate = {"items": "1", "interactions": "2"}, task.collate

    def stopping(examples, generator):
        calls.append(1)
        if len(calls) > 20:
            raise Stopped
        return collate(examples, generator)

    task.collate = stopping
    with pytest.raises(Stopped):
        run_stage(task, LONG, tmp_path)
    other = ToyTask(size=120, dropout=0.3)
    other.content = {"items": "3", "interactions": "2"}
    with pytest.raises(CheckpointError, match=r"trained on other data, which these tell apart: items \(as many"):
        run_stage(other, LONG, tmp_path, resume=True)
    other.content = {"items": "1", "interactions": "2"}
    assert run_stage(other, LONG, tmp_path, resume=True).epochs == LONG.num_train_epochs


def test_other_interactions_over_the_same_catalogue_are_refused(copied, small_parts, tmp_path):
    turned = prepared(tmp_path / "data", interactions=lambda frame: frame.with_columns(-pl.col("timestamp")))
    with pytest.raises(ALLMRecError, match=r"which these tell apart: interactions, candidates; give the data"):
        train(turned, copied, settings(small_parts), ("project",), arguments())


def test_a_fusion_fitted_on_other_data_is_neither_gone_on_with_nor_judged(
    finished_run, small_parts, small_data, reordered, tmp_path
):
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    rank = {"num_candidates": 20, "max_validation_users": 60}
    args = small_run.run_arguments(run, settings(small_parts)).replaced(rank=rank)
    ALLMRecTrainer(args=args, data=small_data).train(("rank",))
    fitted = (run / "config.json").read_text()
    assert "fusion" in json.loads(fitted)["rankers"]
    turned = prepared(tmp_path / "data", interactions=lambda frame: frame.with_columns(-pl.col("timestamp")))
    changed = r"\(stage .*rank\), which these tell apart: interactions, candidates"
    for other, message in ((turned, changed), (reordered, "trained on another catalogue than that of small")):
        with pytest.raises(ALLMRecError, match=message):
            ALLMRecTrainer(args=args, data=other).train(("rank",), resume_from_checkpoint=True)
    assert (run / "config.json").read_text() == fitted
    with pytest.raises(ALLMRecError, match="stand at another number"):
        load_rankers(str(run), reordered, batch_size=8, num_permutations=1, names=("fusion",))


def test_titles_may_be_corrected_as_long_as_no_stage_has_read_them(copied, small_parts, tmp_path):
    corrected = prepared(tmp_path / "data", items=lambda frame: frame.with_columns(pl.col("title") + "!"))
    with pytest.raises(ALLMRecError, match=r"\(stage backbone, align\), which these tell apart: texts"):
        train(corrected, copied, settings(small_parts), loops=arguments(), resume=True)
    for place in (copied / "align", copied / "checkpoints" / "align"):
        shutil.rmtree(place)
    train(corrected, copied, settings(small_parts, llm_name=None), ("align",), arguments(), resume=True)


def test_a_run_without_a_record_of_its_data_knows_its_items_all_the_same(copied, small_parts, small_data, reordered):
    for place in (copied / "align", copied / "checkpoints" / "align"):
        shutil.rmtree(place)
    chosen, record = settings(small_parts, llm_name=None), json.loads((copied / RUN_FILE).read_text())
    del record["data"]["digests"], record["data"]["domain"]
    (copied / RUN_FILE).write_text(json.dumps(record))
    with pytest.raises(ALLMRecError, match=r"holds other data than .* which these tell apart: items"):
        train(reordered, copied, chosen, loops=arguments(), resume=True)
    (copied / RUN_FILE).unlink()
    with pytest.raises(ALLMRecError, match=r"another catalogue than that of small: .* stand at another number"):
        train(reordered, copied, chosen, ("align",), arguments())
    train(small_data, copied, chosen, ("align",), arguments())


def test_a_text_table_of_another_numbering_is_refused(copied, small_parts, small_data, reordered):
    for place in (copied / "align", copied / "checkpoints" / "align"):
        shutil.rmtree(place)
    chosen = settings(small_parts, llm_name=None, fine_tune_text_encoder=False)
    encoder = load_text_encoder(chosen["text_encoder"])
    own, other = (text_embedding_table(encoder, data.catalog.texts()) for data in (small_data, reordered))
    broken = own.clone()
    broken[3, 0] = float("nan")
    for table, message in (
        (other, r"not what the text encoder makes of these texts: \d+ of 16 rows"),
        (own[:, :5], "text_table is 5 wide"),
        (broken, "text_table holds values that are not finite"),
    ):
        with pytest.raises(ALLMRecError, match=message):
            train(small_data, copied, chosen, ("align",), arguments(), text_table=table)
    train(small_data, copied, chosen, ("align",), arguments(), text_table=own)


def test_the_fair_backbone_is_that_of_the_data(copied, small_data, reordered):
    fair_backbone(copied, small_data)
    with pytest.raises(ALLMRecError, match=r"other data than .* was trained on \(stage backbone\)"):
        fair_backbone(copied, reordered)


def test_shared_parts_of_methods_belong_to_their_data(small_parts, small_data, reordered, tmp_path):
    budget = {"backbone": {"num_train_epochs": 1, "max_steps": 2}}
    setting = Setting(
        tmp_path / "own", tmp_path / "parts", text_encoder=str(small_parts / "text_encoder"), budget=budget
    )
    chosen = run_arguments(setting)
    run_until(small_data, setting, chosen, "backbone")
    with pytest.raises(ALLMRecError, match=r"other data than .* was trained on \(stage backbone\)"):
        run_until(reordered, setting, chosen, "backbone")


def test_kept_prompt_embeddings_are_those_of_the_prompts(small_parts, small_data, reordered, tmp_path):
    setting = Setting(tmp_path, tmp_path, text_encoder=str(small_parts / "text_encoder"))
    first, other = (
        ctrl.CTRL()._prompt_embeddings(data, drawn(last_of_training(data), 20, 0), setting)
        for data in (small_data, with_users(small_data, small_data.user_ids[100:]))
    )
    assert first.shape == other.shape
    assert not np.array_equal(first.numpy(), other.numpy())


# -- evaluation


def test_a_model_is_not_evaluated_on_data_of_another_numbering(finished_run, small_data, reordered):
    with pytest.raises(CheckpointError, match=r"is not that of small .* stand at another number; evaluate on the data"):
        load_rankers(str(finished_run), reordered, batch_size=8, num_permutations=1)
    with pytest.raises(CheckpointError, match="stand at another number"):
        load_rankers(str(finished_run / "backbone"), reordered, batch_size=8, num_permutations=1)
    rankers = load_rankers(str(finished_run), small_data, batch_size=8, num_permutations=1)
    with pytest.raises(DataError, match=r"ranker 'a-llmrec' numbers the items otherwise than small: .* another number"):
        evaluate(rankers, reordered, max_users=5)


def test_a_folder_whose_stages_number_the_items_otherwise_is_refused(finished_run, small_data, tmp_path):
    mixed = Path(shutil.copytree(finished_run, tmp_path / "mixed", ignore=shutil.ignore_patterns("checkpoints")))
    ItemCatalog(small_data.catalog.frame.reverse()).save(mixed / "backbone")
    with pytest.raises(CheckpointError, match=r"mixes two catalogues: of its backbone \(backbone/\) and of the model"):
        load_rankers(str(mixed), small_data, batch_size=8, num_permutations=1)


def test_training_data_of_another_numbering_do_not_say_which_items_are_warm(small_data, reordered):
    ranker = PopularityRanker(small_data.item_counts("train"))
    with pytest.raises(DataError, match=r"must share one catalogue: .* stand at another number"):
        evaluate([ranker], small_data, max_users=5, known=reordered)
