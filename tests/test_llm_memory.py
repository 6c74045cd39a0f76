"""An LLM that does not fit is refused before it is loaded, with both sizes."""

from __future__ import annotations

import pytest
import torch

from allmrec_hf import ALLMRecModel, CheckpointError, llm_memory
from allmrec_hf.llm_memory import VARIABLE, _container_memory, check_memory, free_main_memory, free_memory
from allmrec_hf.training.llms import check_llm, load_llm
from allmrec_hf.training.section_arguments import LLMArguments
from tests.small_run import write_llm


@pytest.fixture
def little(monkeypatch):
    """Let 10 kB of main memory be free."""
    monkeypatch.setattr(llm_memory, "free_main_memory", lambda: 10_000)


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return write_llm(tmp_path_factory.mktemp("llm"))


def parameters(folder) -> int:
    language_model, _ = load_llm(str(folder), None, {"check_memory": False})
    return sum(parameter.numel() for parameter in language_model.parameters())


def test_the_message_tells_both_sizes_and_what_to_do(little):
    with pytest.raises(CheckpointError) as told:
        check_memory("org/large", 6_700_000_000, 2, {})
    assert "its 6,700,000,000 parameters need 13.40 GB (2 bytes each), and 0.00 GB are free (main memory)" in (
        str(told.value)
    )
    for way in ("--llm.dtype bfloat16", "--llm.load-in-8bit", "--llm.no-check-memory", f"{VARIABLE}=0"):
        assert way in str(told.value)
    check_memory("org/small", 5_000, 2, {})  # just fits


@pytest.mark.parametrize("load", [check_llm, load_llm])
def test_an_llm_that_is_too_large_is_not_loaded(llm, little, monkeypatch, load):
    def never(*args, **kwargs):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("allmrec_hf.llm_files.AutoModelForCausalLM.from_pretrained", never)
    with pytest.raises(CheckpointError, match=r"does not fit: its [\d,]+ parameters need .* \(4 bytes each\)"):
        load(str(llm), None, {})
    with pytest.raises(CheckpointError, match=r"\(2 bytes each\)"):
        load(str(llm), None, {"dtype": torch.bfloat16} if load is load_llm else {"dtype": "bfloat16"})


def test_the_dtype_decides_whether_it_fits(llm, monkeypatch):
    count = parameters(llm)
    monkeypatch.setattr(llm_memory, "free_main_memory", lambda: 3 * count)
    load_llm(str(llm), None, {"dtype": "bfloat16"})
    with pytest.raises(CheckpointError, match="does not fit"):
        load_llm(str(llm), None, {"dtype": "float32"})


def test_it_can_be_loaded_all_the_same(llm, little, monkeypatch):
    assert LLMArguments("x", check_memory=False).loading_options() == {"check_memory": False}
    load_llm(str(llm), None, {"check_memory": False})
    monkeypatch.setenv(VARIABLE, "0")
    load_llm(str(llm), None, {})


def test_a_checkpoint_says_it_of_its_llm(finished_run, little):
    with pytest.raises(CheckpointError, match="does not fit"):
        ALLMRecModel.from_pretrained(finished_run)
    assert ALLMRecModel.from_pretrained(finished_run, check_memory=False).language_model is not None


def test_a_shared_out_llm_is_left_to_its_user(little):
    for options in ({"device_map": {"": "cpu"}}, {"max_memory": {"cpu": "1GiB"}}, {"offload_folder": "x"}):
        assert free_memory(options) == (None, "")
    assert free_memory({"device_map": "auto"})[0] in (10_000, None)
    assert free_memory({"device_map": "cpu"}) == free_memory({}) == (10_000, "main memory")


def test_an_accelerator_with_less_room_than_main_memory_counts(monkeypatch):
    monkeypatch.setattr(llm_memory, "free_main_memory", lambda: 1000)
    monkeypatch.setattr(llm_memory, "free_device_memory", lambda device: 400)
    assert free_memory({}, torch.device("cuda:0")) == (400, "cuda:0")
    assert free_memory({"device_map": "cuda:0"}) == (400, "cuda:0")
    assert free_memory({}, torch.device("cpu")) == (1000, "main memory")
    monkeypatch.setattr(llm_memory, "free_device_memory", lambda device: 4000)
    assert free_memory({}, torch.device("cuda:0")) == (1000, "main memory")


def test_the_limit_of_a_container_counts(tmp_path, monkeypatch):
    for name, text in (
        ("memory.max", "1000\n"),
        ("memory.current", "700\n"),
        ("memory.stat", "anon 500\nfile 200\ninactive_file 150\n"),
    ):
        (tmp_path / name).write_text(text)
    assert _container_memory(tmp_path) == 450  # 300 not taken, and 150 of files that can be dropped
    (tmp_path / "memory.max").write_text("max\n")
    assert _container_memory(tmp_path) is None
    monkeypatch.setattr(llm_memory, "_container_memory", lambda root: 450)
    assert free_main_memory() == 450


def test_the_system_tells_its_free_memory():
    found = free_main_memory()
    assert found is None or found > 2**20
