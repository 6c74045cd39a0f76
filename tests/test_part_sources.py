"""Where LLMs and text encoders come from: paths, ids, `demo`, adapters, code of their own; and what reaches others."""

from __future__ import annotations

import builtins
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor, AutoTokenizer, pipeline

import allmrec_hf
from allmrec_hf import ALLMRecError, ALLMRecModel, ALLMRecProcessor, CheckpointError
from allmrec_hf.llm_files import check_llm_options
from allmrec_hf.part_sources import (
    CHECKPOINT_PART,
    DEMO_PARTS,
    LANGUAGE_MODEL_PART,
    located,
    public_name,
    recorded,
    require_found,
    same_source,
    stored,
)
from allmrec_hf.sharing import machine_paths
from allmrec_hf.training.llms import check_llm, load_llm
from tests.small_run import write_llm
from tests.tiny import OPT_TINY, tiny_model, tiny_processor

HISTORIES, CANDIDATES = [[1, 2, 3]], [[20, 21, 22]]


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return write_llm(tmp_path_factory.mktemp("parts") / "lm" / "tiny")


@pytest.fixture(scope="module")
def adapter(llm):
    """Return a folder with a LoRA adapter whose base is named by a path relative to it."""
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(llm),
        LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    folder = llm.parent / "adapter"
    model.save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "../tiny"}))
    return folder


@pytest.fixture(scope="module")
def own_code(llm):
    """Return the folder of an LLM whose classes come with it."""
    folder = llm.parent / "own"
    shutil.copytree(llm, folder)
    (folder / "modeling_mine.py").write_text(
        "from transformers import LlamaForCausalLM, LlamaConfig\n"
        "class MineConfig(LlamaConfig):\n    model_type = 'mine'\n"
        "class MineForCausalLM(LlamaForCausalLM):\n    config_class = MineConfig\n"
    )
    config = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "modeling_mine.MineConfig", "AutoModelForCausalLM": "modeling_mine.MineForCausalLM"}
    config.update(model_type="mine", architectures=["MineForCausalLM"], auto_map=auto_map)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def saved(folder, base, **options):
    """Write a light checkpoint around the LLM of a folder or id."""
    model = tiny_model(base_model_name_or_path=str(base), **options)
    model.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return model


def config_of(folder):
    return json.loads((Path(folder) / "config.json").read_text())


def scores(model):
    return model.score(**tiny_processor()(HISTORIES, CANDIDATES))


# -- names


def test_a_folder_has_one_spelling_and_an_id_stays_an_id(tmp_path, monkeypatch):
    (tmp_path / "lm" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert recorded("lm/tiny", LANGUAGE_MODEL_PART) == str(tmp_path / "lm" / "tiny")
    assert recorded("facebook/opt-125m", LANGUAGE_MODEL_PART) == "facebook/opt-125m"
    assert recorded(str(DEMO_PARTS / "language_model"), LANGUAGE_MODEL_PART) == "demo"
    assert located("lm/tiny", LANGUAGE_MODEL_PART) == str(tmp_path / "lm" / "tiny")
    assert located("demo", CHECKPOINT_PART) == allmrec_hf.DEMO_CHECKPOINT
    assert same_source("lm/tiny", str(tmp_path / "lm" / "tiny"), LANGUAGE_MODEL_PART)
    assert not same_source("lm/tiny", "lm/other", LANGUAGE_MODEL_PART)


def test_a_path_inside_the_checkpoint_is_relative_to_it_and_a_carried_part_has_no_path(tmp_path):
    inside, outside = tmp_path / "run" / "llm", tmp_path / "llm"
    inside.mkdir(parents=True)
    outside.mkdir()
    assert stored(str(inside), LANGUAGE_MODEL_PART, tmp_path / "run", False) == "./llm"
    assert stored(str(outside), LANGUAGE_MODEL_PART, tmp_path / "run", False) == str(outside)
    assert stored(str(outside), LANGUAGE_MODEL_PART, tmp_path / "run", True) == "./llm"
    assert located("./llm", LANGUAGE_MODEL_PART, tmp_path / "run") == str(inside)


@pytest.mark.parametrize("name", ["./llm", "../llm", "/gone/llm", "~/gone/llm", "C:\\gone\\llm", "a/b/c"])
def test_a_path_that_leads_nowhere_is_never_an_id(name):
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        located(name, LANGUAGE_MODEL_PART)


def test_only_the_last_part_of_a_path_is_public():
    assert public_name("facebook/opt-125m") == "facebook/opt-125m"
    assert public_name("/home/somebody/llm") == public_name("C:\\Users\\somebody\\llm") == "./llm"
    assert public_name("demo") == "./demo"


def test_a_name_the_hub_does_not_know_is_asked_for_once(monkeypatch):
    asked = []

    def refuse(url, **kwargs):
        asked.append(url)
        raise ConnectionError("nobody there")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("allmrec_hf.part_sources.get_hf_file_metadata", refuse)
    with pytest.raises(FileNotFoundError, match=r"no folder no/such, and .* cannot be reached"):
        require_found("no/such")
    assert len(asked) == 1


# -- local LLMs


def test_a_relative_llm_loads_from_every_folder(llm, tmp_path, monkeypatch):
    monkeypatch.chdir(llm.parents[1])
    before = scores(saved(tmp_path / "run", "lm/tiny"))
    assert config_of(tmp_path / "run")["base_model_name_or_path"] == str(llm)
    monkeypatch.chdir(tmp_path)
    torch.testing.assert_close(scores(ALLMRecModel.from_pretrained("run")), before)


def test_a_checkpoint_and_the_llm_inside_it_can_be_moved(llm, tmp_path):
    shutil.copytree(llm, tmp_path / "run" / "llm")
    before = scores(saved(tmp_path / "run", tmp_path / "run" / "llm"))
    assert config_of(tmp_path / "run")["base_model_name_or_path"] == "./llm"
    shutil.move(tmp_path / "run", tmp_path / "moved")
    torch.testing.assert_close(scores(ALLMRecModel.from_pretrained(tmp_path / "moved")), before)


def test_an_llm_that_is_gone_is_named_on_one_line_and_another_place_can_be_given(llm, tmp_path, monkeypatch):
    monkeypatch.setattr("allmrec_hf.part_sources.get_hf_file_metadata", lambda *a, **k: pytest.fail("asked the Hub"))
    shutil.copytree(llm, tmp_path / "llm")
    before = scores(saved(tmp_path / "run", tmp_path / "llm"))
    shutil.move(tmp_path / "llm", tmp_path / "elsewhere")
    for load in (ALLMRecModel.from_pretrained, AutoModel.from_pretrained):
        with pytest.raises(CheckpointError, match=r"no such folder: .*llm.*language_model=.*--llm") as told:
            load(tmp_path / "run")
        assert "\n" not in str(told.value)
    with pytest.raises(CheckpointError, match="no such folder") as told:
        pipeline("recommendation", model=str(tmp_path / "run"))
    assert "\n" not in str(told.value)
    again = ALLMRecModel.from_pretrained(tmp_path / "run", language_model=str(tmp_path / "elsewhere"))
    torch.testing.assert_close(scores(again), before)
    again.save_pretrained(tmp_path / "again")
    assert config_of(tmp_path / "again")["base_model_name_or_path"] == str(tmp_path / "elsewhere")


def test_demo_names_the_checkpoint_of_the_package():
    assert len(ALLMRecProcessor.from_pretrained("demo").catalog) == 1000
    assert ALLMRecModel.from_pretrained("demo", language_model=None).cf_encoder.num_items == 1000


def test_subfolder_reaches_model_processor_and_text_encoder(tmp_path):
    shutil.copytree(allmrec_hf.DEMO_CHECKPOINT, tmp_path / "v1")
    model = AutoModel.from_pretrained(tmp_path, subfolder="v1")
    assert model.language_model is not None
    assert len(AutoProcessor.from_pretrained(tmp_path, subfolder="v1").catalog) == 1000
    assert model.text_encoder.encode("a film").shape == (model.config.text_dim,)


# -- adapters


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_adapter_trains_loads_and_is_saved_with_its_base(adapter, tmp_path, monkeypatch, wrapped):
    monkeypatch.chdir(tmp_path)
    check_llm(str(adapter), None, {})
    language_model, tokenizer = load_llm(str(adapter), None, {})
    assert len(tokenizer) == len(AutoTokenizer.from_pretrained(OPT_TINY))
    if wrapped:
        from peft import PeftModel

        base = AutoModelForCausalLM.from_pretrained(adapter.parent / "tiny")
        language_model = PeftModel.from_pretrained(base, str(adapter))
    model = tiny_model(None)
    model.attach_language_model(language_model)
    before = scores(model)
    plain = tiny_model("llama")
    assert (scores(plain) - before).abs().max() > 1e-3
    model.config.base_model_name_or_path = str(adapter)
    model.save_pretrained(tmp_path / "light")
    model.save_pretrained(tmp_path / "whole", include_llm=True)
    whole = tmp_path / "whole" / "language_model"
    assert {"model.safetensors", "adapter"} <= {path.name for path in whole.iterdir()}
    assert json.loads((whole / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == ".."
    assert (
        machine_paths(
            tmp_path / "whole",
            [p.relative_to(tmp_path / "whole").as_posix() for p in (tmp_path / "whole").rglob("*") if p.is_file()],
        )
        == []
    )
    for folder in ("light", "whole"):
        torch.testing.assert_close(scores(ALLMRecModel.from_pretrained(tmp_path / folder)), before, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        load_llm_logits(whole), load_llm_logits(adapter), rtol=0, atol=1e-5
    )  # the saved LLM alone is an LLM too


def load_llm_logits(folder):
    from allmrec_hf.llm_files import find_llm, load_llm_files

    with torch.no_grad():
        return load_llm_files(find_llm(str(folder))).eval()(torch.tensor([[3, 4, 5]])).logits


def test_the_base_that_is_saved_is_the_base_without_its_adapter(adapter, tmp_path):
    language_model, _ = load_llm(str(adapter), None, {})
    from allmrec_hf.llm_files import save_llm_files

    save_llm_files(language_model, tmp_path)
    base = AutoModelForCausalLM.from_pretrained(adapter.parent / "tiny").state_dict()
    again = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert base.keys() == again.keys()
    assert all(torch.equal(base[name], again[name]) for name in base)


# -- code of its own


def test_code_of_an_llm_runs_only_where_it_is_allowed_and_nobody_is_asked(own_code, tmp_path, monkeypatch):
    monkeypatch.setattr(builtins, "input", lambda *a: pytest.fail("asked on the terminal"))
    with pytest.raises(CheckpointError, match=r"code of its own.*--trust-remote-code") as told:
        check_llm(str(own_code), None, {})
    assert "\n" not in str(told.value)
    check_llm(str(own_code), None, {}, trust_remote_code=True)
    language_model, _ = load_llm(str(own_code), None, {"trust_remote_code": True})
    assert type(language_model).__name__ == "MineForCausalLM"
    model = tiny_model(None)
    model.attach_language_model(language_model)
    model.config.base_model_name_or_path = str(own_code)
    before = scores(model)
    model.save_pretrained(tmp_path / "run")
    tiny_processor().save_pretrained(tmp_path / "run")
    assert "trust" not in (tmp_path / "run" / "config.json").read_text()
    with pytest.raises(CheckpointError, match="code of its own"):
        AutoModel.from_pretrained(tmp_path / "run")
    again = AutoModel.from_pretrained(tmp_path / "run", trust_remote_code=True)
    torch.testing.assert_close(scores(again), before)
    recommend = pipeline("recommendation", model=str(tmp_path / "run"), trust_remote_code=True)
    assert recommend({"history": ["I1"], "candidates": ["I2", "I3"]})[0]["rank"] == 1


# -- the tokenizer


def with_added_token(llm, folder, **special):
    shutil.copytree(llm, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight.shape[0]
    tokenizer.add_tokens([f"<unused{number}>" for number in range(max(0, rows - len(tokenizer)) + 1)])
    if special:
        tokenizer.add_special_tokens(special)
    tokenizer.save_pretrained(folder)
    assert len(tokenizer) > rows
    return folder


def test_an_added_token_that_no_prompt_holds_does_not_matter(llm, tmp_path):
    folder = with_added_token(llm, tmp_path / "llm", pad_token="<new pad>")
    check_llm(str(folder), None, {}, words=["films {history}"])
    _, tokenizer = load_llm(str(folder), None, {})
    assert tokenizer.pad_token == "<new pad>"


def test_an_added_token_that_every_prompt_holds_is_named(llm, tmp_path):
    folder = with_added_token(llm, tmp_path / "llm", eos_token="<new end>")
    with pytest.raises(CheckpointError, match=r"every prompt holds \['<new end>'\].*the LLM embeds"):
        check_llm(str(folder), None, {})


def test_a_token_that_the_llm_does_not_embed_is_told_at_the_prompt():
    model, batch = tiny_model(), tiny_processor()(HISTORIES, CANDIDATES)
    batch["input_ids"][0, -1] = 440
    with pytest.raises(CheckpointError, match="holds the token 440, but the LLM embeds the tokens 0 to 439 only"):
        model.score(**batch)


# -- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "cannot compute in the dtype 'int8'; .*quantize"),
        ({"dtype": torch.int8}, "cannot compute in the dtype 'int8'"),
        ({"dtype": "banana"}, "no dtype 'banana'"),
        ({"device_map": "nonsense"}, "device_map 'nonsense' is no device"),
        ({"device_map": "cuda:99"}, "has .* devices of the type 'cuda'"),
        ({"device_map": {"": "nonsense"}}, "device_map 'nonsense' is no device"),
        ({"device_map": "meta"}, "has 0 devices of the type 'meta'"),
        ({"device_mpa": "auto"}, r"unknown options of the LLM \['device_mpa'\]"),
        ({"attn_implementation": "nonsense"}, "cannot be loaded"),
    ],
)
def test_options_that_cannot_work_are_refused_before_any_weight_is_read(llm, options, message):
    with pytest.raises(CheckpointError, match=message) as told:
        check_llm(str(llm), None, options)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "options", [{"dtype": "bfloat16"}, {"dtype": torch.float16}, {"device_map": "auto"}, {"device_map": "cpu"}]
)
def test_options_that_work_are_taken(options):
    check_llm_options(options)


# -- what reaches others


def test_paths_of_this_machine_are_found_and_what_only_looks_like_one_is_not(tmp_path):
    texts = {
        "config.json": json.dumps({"base": str(tmp_path / "llm")}),
        "evaluation.json": json.dumps({"x": ["C:\\Users\\somebody\\llm"]}),
        "README.md": "see /home/somebody/secret/llm for more",
        "fine.json": json.dumps({"ratio": "and/or", "id": "facebook/opt-125m", "page": "https://huggingface.co/a/b"}),
        "tokenizer.json": json.dumps({"vocab": {"/usr/bin": 1, "/home": 2, "/home/user": 3}}),
        "NOTES.md": "hit@1/hit@10, see https://arxiv.org/abs/2404.11343 and docs/training.md, 1/2/3",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    assert [name for name, _ in machine_paths(tmp_path, texts)] == ["config.json", "evaluation.json", "README.md"]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"name_or_path": str(tmp_path / "llm")}))
    assert machine_paths(tmp_path, ["tokenizer.json"], [str(tmp_path / "llm")])


def test_a_model_with_a_local_llm_is_not_pushed(llm, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda *a, **k: pytest.fail("asked the Hub"))
    model = tiny_model(base_model_name_or_path=str(llm))
    with pytest.raises(ALLMRecError, match=r"nobody else could load.*include_llm=True.*Nothing was uploaded"):
        model.push_to_hub("me/model")
