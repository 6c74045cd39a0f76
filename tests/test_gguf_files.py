"""LLMs in GGUF files: what a name means, a round trip through every door, and files that cannot be read."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from allmrec_hf import ALLMRecError, ALLMRecModel, ALLMRecProcessor, CheckpointError, gguf_files
from allmrec_hf.cli.loading import named_llm
from allmrec_hf.gguf_files import gguf_facts, split_gguf
from allmrec_hf.training.arguments import ALLMRecTrainingArguments
from allmrec_hf.training.llms import check_llm, load_llm
from allmrec_hf.training.run_record import with_absolute_paths
from tests.command_line import refused
from tests.gguf_llm import tiny_llama, write_gguf
from tests.small_run import settings, train
from tests.tiny import OPT_TINY, tiny_model

pytest.importorskip("gguf", reason="GGUF files need the extra: pip install 'allmrec-hf[gguf]'")


@pytest.fixture(scope="module")
def llama():
    return tiny_llama()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, llama):
    """A folder with two GGUF files and no config.json."""
    folder = tmp_path_factory.mktemp("gguf")
    write_gguf(folder / "tiny.gguf", llama)
    write_gguf(folder / "tiny-Q8_0.gguf", llama, quantized=True)
    return folder


# -- names


@pytest.mark.parametrize(
    ("name", "gguf_file", "found"),
    [
        ("org/model", None, ("org/model", None)),
        ("org/model", "x.gguf", ("org/model", "x.gguf")),
        ("org/model", "sub/x.gguf", ("org/model", "sub/x.gguf")),
        ("org/model/sub/x.GGUF", None, ("org/model", "sub/x.GGUF")),
        ("/models/llm/x.gguf", None, ("/models/llm", "x.gguf")),
        ("./models/llm/x.gguf", None, ("models/llm", "x.gguf")),
        ("x.gguf", None, (".", "x.gguf")),
    ],
)
def test_a_name_is_split_into_folder_or_repository_and_file(name, gguf_file, found):
    assert split_gguf(name, gguf_file) == found


def test_a_file_that_is_there_and_a_folder_that_is_called_like_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "model" / "deep").mkdir(parents=True)
    (tmp_path / "org" / "model" / "deep" / "x.gguf").touch()
    assert split_gguf("org/model/deep/x.gguf") == ("org/model/deep", "x.gguf")
    (tmp_path / "folder.gguf").mkdir()
    assert split_gguf("folder.gguf") == ("folder.gguf", None)


@pytest.mark.parametrize("file", ["/abs/x.gguf", "~/x.gguf", "C:\\x.gguf", "model.bin"])
def test_a_gguf_file_is_named_inside_its_folder(file):
    with pytest.raises(CheckpointError, match=r"inside a folder or repository ends in \.gguf and starts at no root"):
        split_gguf("org/model", file)


def test_two_files_are_one_too_many():
    with pytest.raises(CheckpointError, match="give one"):
        split_gguf("a/x.gguf", "y.gguf")
    with pytest.raises(ALLMRecError, match="give that as --llm"):
        named_llm(None, "y.gguf")
    assert named_llm("org/model", "y.gguf") == "org/model/y.gguf"
    assert named_llm("org/model", None) == "org/model"


def test_every_spelling_gives_the_same_options(folder):
    ways = [
        {"name": str(folder / "tiny.gguf")},
        {"name": str(folder), "gguf_file": "tiny.gguf"},
        str(folder / "tiny.gguf"),
    ]
    found = [ALLMRecTrainingArguments("runs/x", llm=way).llm for way in ways]
    assert {(llm.name, llm.gguf_file, llm.source) for llm in found} == {
        (str(folder), "tiny.gguf", str(folder / "tiny.gguf"))
    }
    replaced = ALLMRecTrainingArguments("runs/x", llm="org/a/x.gguf").replaced(llm={"name": "org/b/y.gguf"}).llm
    assert (replaced.name, replaced.gguf_file) == ("org/b", "y.gguf")
    assert found[0].loading_options() == {"gguf_file": "tiny.gguf"}


def test_a_run_names_the_folder_of_the_file_from_everywhere(folder, monkeypatch):
    monkeypatch.chdir(folder)
    llm = with_absolute_paths(ALLMRecTrainingArguments("runs/x", llm="tiny.gguf")).llm
    assert (llm.name, llm.gguf_file) == (str(folder), "tiny.gguf")


# -- the file


def test_the_header_tells_size_and_tokenizer(folder, llama):
    facts = gguf_facts(str(folder / "tiny.gguf"))
    assert facts.architecture == "llama"
    assert facts.parameters == sum(parameter.numel() for parameter in llama.parameters())
    assert facts.has_tokenizer
    assert facts.file_bytes == (folder / "tiny.gguf").stat().st_size


def test_an_llm_comes_back_as_it_was_written(folder, llama):
    llm, tokenizer = load_llm(str(folder / "tiny.gguf"), None, {})
    assert llm.dtype == torch.float32
    known = AutoTokenizer.from_pretrained(OPT_TINY)
    text = 'This user has watched "Lonely River 3".'
    assert known.get_vocab().items() <= tokenizer.get_vocab().items()  # which adds GPT-2's unknown token
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    assert ids.tolist() == known(text, add_special_tokens=False, return_tensors="pt")["input_ids"].tolist()
    with torch.no_grad():
        torch.testing.assert_close(llm(ids).logits, llama(ids).logits, rtol=1e-4, atol=1e-4)


def test_unpacked_weights_take_gradients_to_the_prompts_vectors(folder, llama):
    llm, _ = load_llm(str(folder), None, {"gguf_file": "tiny-Q8_0.gguf"})
    vectors = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    mine, exact = vectors.clone().requires_grad_(), vectors.clone().requires_grad_()
    llm(inputs_embeds=mine).logits.square().mean().backward()
    llama(inputs_embeds=exact).logits.square().mean().backward()
    cosine = torch.nn.functional.cosine_similarity(mine.grad.flatten(), exact.grad.flatten(), dim=0)
    assert float(cosine) > 0.99  # 8 bits


def test_a_file_of_the_same_name_where_the_process_runs_is_not_taken(folder, tmp_path, monkeypatch):
    (tmp_path / "tiny.gguf").write_bytes(b"another file")
    monkeypatch.chdir(tmp_path)
    llm, _ = load_llm(str(folder), None, {"gguf_file": "tiny.gguf"})
    assert llm.config.hidden_size == 32


def test_it_is_said_how_the_weights_are_kept(folder, caplog):
    with caplog.at_level("INFO", logger="allmrec_hf.llm_files"):
        load_llm(str(folder / "tiny-Q8_0.gguf"), None, {"dtype": "bfloat16"})
    assert "llama: the weights of" in caplog.text
    assert "are unpacked to bfloat16 (0.00 GB)" in caplog.text


# -- checkpoints


def test_a_light_checkpoint_remembers_file_and_packing(folder, tmp_path):
    llm, _ = load_llm(str(folder / "tiny.gguf"), None, {})
    model = tiny_model(None)
    model.attach_language_model(llm)
    model.config.base_model_name_or_path, model.config.base_model_gguf_file = str(folder), "tiny.gguf"
    model.config.base_model_gguf_packed = True
    model.save_pretrained(tmp_path / "light")
    saved = json.loads((tmp_path / "light" / "config.json").read_text())
    assert (saved["base_model_gguf_file"], saved["base_model_gguf_packed"]) == ("tiny.gguf", True)
    assert not (tmp_path / "light" / "language_model").exists()
    again = AutoModel.from_pretrained(tmp_path / "light")
    tokens = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        torch.testing.assert_close(again.language_model(tokens).logits, llm(tokens).logits)
    assert again.config.base_model_gguf_packed

    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    for given in (
        {"language_model": str(moved / "tiny.gguf")},
        {"language_model": str(moved), "gguf_file": "tiny.gguf", "gguf_packed": False},
    ):
        other = ALLMRecModel.from_pretrained(tmp_path / "light", **given)
        assert (other.config.base_model_name_or_path, other.config.base_model_gguf_file) == (str(moved), "tiny.gguf")

    other.save_pretrained(tmp_path / "whole", include_llm=True)  # unpacked, hence a plain folder
    shutil.rmtree(moved)
    carried = ALLMRecModel.from_pretrained(tmp_path / "whole")
    carried.save_pretrained(tmp_path / "light again", include_llm=False)
    saved = json.loads((tmp_path / "light again" / "config.json").read_text())
    assert saved["base_model_name_or_path"] == str(tmp_path / "whole" / "language_model")
    assert saved["base_model_gguf_file"] is None
    assert ALLMRecModel.from_pretrained(tmp_path / "light again").language_model is not None


def test_training_takes_a_gguf_file_and_leaves_a_checkpoint_that_loads(folder, tmp_path, small_parts, small_data):
    train(small_data, tmp_path / "run", settings(small_parts, llm_name=str(folder / "tiny.gguf")))
    record = json.loads((tmp_path / "run" / "run.json").read_text())["arguments"]["llm"]
    assert (record["name"], record["gguf_file"]) == (str(folder), "tiny.gguf")
    model = ALLMRecModel.from_pretrained(tmp_path / "run")
    assert (model.config.base_model_name_or_path, model.config.base_model_gguf_file) == (str(folder), "tiny.gguf")
    processor = ALLMRecProcessor.from_pretrained(tmp_path / "run")
    assert processor.fingerprint == model.config.tokenizer_fingerprint
    assert "tiny.gguf" in (tmp_path / "run" / "README.md").read_text()


# -- files that cannot be read


def problem_of(name, **options) -> str:
    with pytest.raises(CheckpointError) as told:
        check_llm(str(name), None, options)
    with pytest.raises(CheckpointError) as again:
        load_llm(str(name), None, options)
    assert str(again.value) == str(told.value)
    return str(told.value)


@pytest.mark.parametrize("share", [0.0005, 0.05, 0.3, 0.9, 0.9999])
def test_a_file_that_is_cut_off_is_refused(folder, tmp_path, share):
    whole = (folder / "tiny.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[: max(1, int(len(whole) * share))])
    message = problem_of(cut)
    assert str(cut) in message
    assert "download it again" in message


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is no GGUF"),
        (b"\x00" * 64, "is no GGUF"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b"GGUF" + b"\x63\x00\x00\x00" + b"\x00" * 32, "cannot be read as a GGUF file"),
    ],
)
def test_what_is_no_gguf_file_is_refused(tmp_path, content, what):
    (tmp_path / "x.gguf").write_bytes(content)
    assert what in problem_of(tmp_path / "x.gguf")


def test_an_architecture_that_transformers_does_not_read_is_named(tmp_path, llama):
    write_gguf(tmp_path / "x.gguf", llama, architecture="hyena9")
    message = problem_of(tmp_path / "x.gguf")
    assert "of the architecture 'hyena9'" in message
    assert "give the LLM's folder or Hub id with safetensors" in message


def test_a_file_without_a_tokenizer_takes_the_one_beside_it_or_says_so(tmp_path, llama):
    file = write_gguf(tmp_path / "x.gguf", llama, tokenizer=False)
    assert "has no tokenizer, and none lies beside it" in problem_of(file)
    AutoTokenizer.from_pretrained(OPT_TINY).save_pretrained(tmp_path)
    _, tokenizer = load_llm(str(file), None, {})
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(OPT_TINY).get_vocab()


def test_one_part_of_several_is_refused(tmp_path, llama):
    assert "one of 3 parts" in problem_of(write_gguf(tmp_path / "x-00001-of-00003.gguf", llama, parts=3))


def test_weights_that_are_missing_are_not_drawn_at_random(tmp_path, llama):
    file = write_gguf(tmp_path / "x.gguf", llama, left_out=("blk.1.ffn_up.weight",))
    with pytest.raises(CheckpointError, match=r"1 weights of .*x\.gguf are missing, such as model.*up_proj"):
        load_llm(str(file), None, {})


def test_a_folder_or_file_that_is_not_there_is_said_with_those_that_are(folder, tmp_path):
    assert "it has tiny-Q8_0.gguf, tiny.gguf" in problem_of(folder / "huge.gguf")
    assert "there is no such folder" in problem_of(tmp_path / "nowhere" / "x.gguf")
    assert "it has no .gguf file" in problem_of(tmp_path, gguf_file="x.gguf")


def test_a_gguf_file_is_not_quantized_again(folder):
    with pytest.raises(CheckpointError, match="quantized as they are; leave out quantization_config"):
        load_llm(str(folder / "tiny.gguf"), None, {"quantization_config": object()})


def test_packed_weights_are_not_written(folder, tmp_path):
    from allmrec_hf.llm_files import save_llm_files

    llm, _ = load_llm(str(folder / "tiny.gguf"), None, {})
    llm.hf_quantizer = type("GgufHfQuantizer", (), {})()
    llm.packed = torch.nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(CheckpointError, match="load it unpacked"):
        save_llm_files(llm, tmp_path)


def test_the_missing_package_is_named(folder, monkeypatch):
    monkeypatch.setattr(gguf_files, "find_spec", lambda name: None)
    assert "pip install 'allmrec-hf[gguf]'" in problem_of(folder / "tiny.gguf")


def test_the_command_line_refuses_in_one_line(tmp_path, small_data, folder):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes((folder / "tiny.gguf").read_bytes()[:4000])
    parts = ("--llm", cut, "--text-encoder", "demo")
    told = refused("train", "--data", small_data.directory, *parts, "--output", tmp_path / "run")
    assert "is cut off or damaged: it has 4,000 bytes" in told
    assert not (tmp_path / "run").exists()
    told = refused("recommend", "--history", "a", "--gguf-file", "x.gguf")
    assert "--gguf-file names a file in a folder or repository" in told
