"""What a checkpoint holds beside weights: exported code, cards, nothing stale; and light Accelerate states."""

import ast
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from transformers import AutoModel

import allmrec_hf
from allmrec_hf import ALLMRecModel, CheckpointError, SASRecConfig, SASRecModel, register_cf_encoder
from allmrec_hf.checkpoint_code import generated_card, leftovers, needed_modules
from allmrec_hf.hub.card import ALLMRecCard, read_card, write_card
from tests.tiny import tiny_llm, tiny_model, tiny_processor

PACKAGE = Path(allmrec_hf.__file__).parent
BATCH = ([[1, 2, 3]], [[20, 21, 22]])


class OutsideConfig(SASRecConfig):
    model_type = "outside"


class OutsideModel(SASRecModel):
    config_class = OutsideConfig


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture(scope="module")
def saved_llm(tmp_path_factory):
    path = tmp_path_factory.mktemp("llm")
    tiny_llm("llama").save_pretrained(path)
    return path


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def same_weights(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# -- exported code


def test_exported_code_is_closed_and_holds_nothing_more_than_needed(tmp_path):
    tiny_model().save_pretrained(tmp_path, include_llm=True, export_code=True)
    modules = {path.stem for path in tmp_path.glob("*.py")}
    imported = {"allmrec_remote", "handler"}
    for path in tmp_path.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1
                imported.add(node.module)
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                assert "allmrec_hf" not in ast.unparse(node)
    assert modules == imported
    assert "cf_sasrec" in modules
    assert not modules & {"ranking", "losses"}
    for name in modules - {"allmrec_remote", "handler"}:
        assert (tmp_path / f"{name}.py").read_bytes() == (PACKAGE / f"{name}.py").read_bytes()


def test_needed_modules_follow_imports():
    assert needed_modules(["files"]) == ["errors", "files"]


def test_code_of_a_backbone_from_elsewhere_cannot_be_exported(tmp_path):
    register_cf_encoder(OutsideConfig, OutsideModel)
    model = ALLMRecModel(allmrec_hf.ALLMRecConfig(cf_config=OutsideConfig(num_items=3), joint_dim=2, text_dim=2))
    with pytest.raises(CheckpointError, match=r"OutsideModel is defined in .*save with export_code=False"):
        model.save_pretrained(tmp_path / "model", export_code=True)
    assert not (tmp_path / "model").exists()
    model.save_pretrained(tmp_path / "model", export_code=False)
    assert type(AutoModel.from_pretrained(tmp_path / "model").cf_encoder) is OutsideModel


def test_a_loaded_checkpoint_keeps_its_kind_of_code(tmp_path):
    tiny_model(None).save_pretrained(tmp_path / "one", export_code=True)
    (tmp_path / "one" / "aligner.py").write_text("stale = True\n")
    again = AutoModel.from_pretrained(tmp_path / "one")
    again.save_pretrained(tmp_path / "two")
    assert names(tmp_path / "two") == names(tmp_path / "one")
    assert (tmp_path / "two" / "aligner.py").read_bytes() == (PACKAGE / "aligner.py").read_bytes()


@pytest.mark.parametrize("cls", [allmrec_hf.ALLMRecConfig, ALLMRecModel, allmrec_hf.ALLMRecProcessor, SASRecModel])
def test_registering_for_auto_classes_changes_nothing(cls):
    before = cls._auto_class
    cls.register_for_auto_class("AutoModel")
    assert cls._auto_class is before is None


# -- what an earlier checkpoint left


def test_sharded_and_whole_weights_replace_each_other(tmp_path, saved_llm):
    model = tiny_model(base_model_name_or_path=str(saved_llm))
    with torch.no_grad():
        model.user_projector.layers[0].weight.add_(1.0)
    old = tiny_model(base_model_name_or_path=str(saved_llm))
    for first, second in (("2KB", "1GB"), ("1GB", "2KB"), ("2KB", "3KB")):
        folder = tmp_path / f"{first}-{second}"
        old.save_pretrained(folder, max_shard_size=first)
        model.save_pretrained(folder, max_shard_size=second)
        assert same_weights(AutoModel.from_pretrained(folder), model)
        model.save_pretrained(tmp_path / f"fresh-{second}", max_shard_size=second)
        assert names(folder) == names(tmp_path / f"fresh-{second}")


def test_light_save_removes_what_the_checkpoint_carried_before_and_nothing_else(tmp_path, saved_llm):
    folder = tmp_path / "model"
    tiny_model().save_pretrained(folder, include_llm=True, export_code=True)
    (folder / "notes.py").write_text("")
    (folder / "run.json").write_text("{}")
    (folder / "model_card.json").write_text(json.dumps({"name": "Another model"}))
    stranger = tiny_model(base_model_name_or_path=str(saved_llm))
    stranger.save_pretrained(folder)
    assert names(folder) == {
        "README.md", "allmrec_remote.py", "config.json", "handler.py", "model.safetensors", "notes.py",
        "requirements.txt", "run.json"
    }  # fmt: skip
    assert not (folder / "language_model").exists()
    assert AutoModel.from_pretrained(folder).language_model is not None


def test_a_base_llm_inside_the_folder_is_never_removed(tmp_path):
    folder = tmp_path / "model"
    tiny_llm("llama").save_pretrained(folder / "language_model")
    model = tiny_model(base_model_name_or_path=str(folder / "language_model"))
    model.save_pretrained(folder)
    model.save_pretrained(folder, include_llm=True)
    model.save_pretrained(folder, include_llm=False)
    assert AutoModel.from_pretrained(folder).language_model is not None


def test_a_folder_that_is_no_checkpoint_has_no_leftovers_but_weights(tmp_path):
    for name in ("language_model/model.safetensors", "aligner.py", "model-00001-of-00002.safetensors", "config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("[]")
    assert leftovers(tmp_path, set()) == [tmp_path / "model-00001-of-00002.safetensors"]
    assert leftovers(tmp_path / "nowhere", set()) == []


def test_saving_a_light_model_of_unknown_origin_warns(tmp_path, caplog):
    tiny_model().save_pretrained(tmp_path)
    assert "will not find its LLM again" in caplog.text


def test_other_processes_write_nothing(tmp_path):
    tiny_model(None).save_pretrained(tmp_path / "model", is_main_process=False)
    assert not (tmp_path / "model").exists()


def test_weights_of_a_foreign_checkpoint_are_refused_by_their_type(saved_llm, tmp_path):
    with pytest.raises(CheckpointError, match="of the model type 'llama', not 'a-llmrec'"):
        ALLMRecModel.from_pretrained(saved_llm)
    tiny_model(None).cf_encoder.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="of the model type 'allmrec-sasrec', not 'a-llmrec'; load it with AutoM"):
        ALLMRecModel.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"cannot load the checkpoint .*nowhere"):
        ALLMRecModel.from_pretrained(tmp_path / "nowhere")


# -- cards


def test_a_model_without_a_card_gets_one_that_claims_nothing(tmp_path):
    tiny_model(base_model_name_or_path="facebook/opt-125m").save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    metadata = yaml.safe_load(text.split("---")[1])
    assert metadata["library_name"] == "allmrec-hf"
    assert metadata["pipeline_tag"] == "recommendation"
    assert metadata["base_model"] == "facebook/opt-125m"
    for words in ("sasrec", "40 items", "No evaluation is stored with this checkpoint", 'pipeline("recommendation"'):
        assert words in text
    assert not (tmp_path / "model_card.json").exists()


def test_a_generated_card_follows_the_model_and_a_written_one_stays(tmp_path):
    tiny_model(None).save_pretrained(tmp_path / "one")
    model = AutoModel.from_pretrained(tmp_path / "one")
    assert model.model_card is None
    model.add_items(torch.rand(2, 12))
    model.save_pretrained(tmp_path / "two")
    assert "42 items" in (tmp_path / "two" / "README.md").read_text()
    (tmp_path / "two" / "README.md").write_text("# Mine\n")
    AutoModel.from_pretrained(tmp_path / "two").save_pretrained(tmp_path / "three")
    assert (tmp_path / "three" / "README.md").read_text() == "# Mine\n"


def test_card_data_survives_a_round_trip_with_added_items(tmp_path):
    evaluation = {"methods": {}, "note": "kept as it is"}
    tiny_model(None).save_pretrained(tmp_path / "one")
    write_card(ALLMRecCard(name="Films"), tmp_path / "one")
    stored = json.loads((tmp_path / "one" / "model_card.json").read_text())
    (tmp_path / "one" / "model_card.json").write_text(json.dumps({**stored, "evaluation": evaluation}))
    model = AutoModel.from_pretrained(tmp_path / "one")
    model.add_items(torch.rand(2, 12))
    model.save_pretrained(tmp_path / "two")
    shutil.rmtree(tmp_path / "one")
    card = read_card(tmp_path / "two")
    assert card.name == "Films"
    assert card.evaluation == evaluation
    assert "Films" in (tmp_path / "two" / "README.md").read_text()


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "a\n---\nlicense: mit\n# Owned", "C:\\models\\[x](http://y)"]
)
def test_untrusted_names_cannot_change_the_card(name):
    text = generated_card(name, name, 3)
    _, metadata, body = text.split("---\n", 2)
    assert "license" not in yaml.safe_load(metadata)
    assert "base_model" not in yaml.safe_load(metadata)
    assert "<script>" not in text
    assert "\n# Owned" not in text
    assert "[x](http:" not in text
    assert body.count("\n# ") == 1


def test_a_card_shows_no_folder_of_the_machine(tmp_path):
    text = generated_card(str(tmp_path / "llm"), "allmrec-sasrec", 3)
    assert "(llm, a local folder)" in text
    assert str(tmp_path) not in text


# -- Accelerate


def test_accelerate_state_is_light_and_loads_strictly(tmp_path, processor):
    AcceleratorState._reset_state(True)
    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare(tiny_model())
    accelerator.save_state(str(tmp_path))
    saved = load_file(tmp_path / "model.safetensors")
    assert not any("language_model" in name for name in saved)
    assert {name.split(".")[0] for name in saved} == {
        "aligner", "cf_encoder", "item_projector", "item_table", "user_projector"
    }  # fmt: skip
    before = model.score(**processor(*BATCH))
    with torch.no_grad():
        model.item_projector.layers[0].weight.zero_()
    accelerator.load_state(str(tmp_path), strict=True)
    assert torch.equal(model.score(**processor(*BATCH)), before)
    state = accelerator.get_state_dict(model)
    accelerator.unwrap_model(model).save_pretrained(
        tmp_path / "model", is_main_process=True, save_function=accelerator.save, state_dict=state, include_llm=True
    )
    assert same_weights(AutoModel.from_pretrained(tmp_path / "model"), model)
    AcceleratorState._reset_state(True)
