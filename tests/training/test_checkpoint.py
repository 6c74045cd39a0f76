import errno
import json

import pytest
import torch
from torch import nn

import allmrec_hf.training.checkpoint as ckpt
from allmrec_hf.errors import ALLMRecError, CheckpointError

PROGRESS = {"step": 3, "epoch": 1, "best_file": None}


@pytest.fixture
def tensors():
    return {"module|weight": torch.arange(6.0).reshape(2, 3), "random0|torch": torch.get_rng_state()}


def save(directory, tensors, step=3, keep=2, best=None):
    return ckpt.save_checkpoint(directory, tensors, {"step": step, "epoch": 1, "best_file": best}, keep)


def test_a_checkpoint_comes_back_as_it_was_written(tmp_path, tensors):
    path = ckpt.save_checkpoint(tmp_path, tensors, {**PROGRESS, "best": 0.1 + 0.2}, keep=2)
    assert ckpt.latest(tmp_path) == path
    loaded, progress = ckpt.load_checkpoint(path)
    assert all(loaded[name].equal(tensors[name]) for name in tensors)
    assert progress["best"] == 0.1 + 0.2
    assert progress["step"] == 3


def test_a_checkpoint_holds_no_pickle(tmp_path, tensors):
    path = save(tmp_path, tensors)
    assert sorted(file.name for file in path.iterdir()) == ["progress.json", "tensors.safetensors"]
    content = (path / "tensors.safetensors").read_bytes()
    assert not content.startswith((b"PK", b"\x80"))
    assert json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


def test_only_the_latest_checkpoints_and_their_best_weights_stay(tmp_path, tensors):
    for step in (1, 2, 3, 4):
        best = ckpt.save_best(tmp_path, step, tensors)
        save(tmp_path, tensors, step, keep=2, best=best)
    assert [path.name for path in ckpt.checkpoints(tmp_path)] == [
        "step-00000003-epoch-00001",
        "step-00000004-epoch-00001",
    ]
    assert sorted(path.name for path in tmp_path.glob("best-*")) == [
        "best-00000003.safetensors",
        "best-00000004.safetensors",
    ]


def test_a_half_written_checkpoint_is_not_seen_and_is_removed_by_the_next_one(tmp_path, tensors):
    half = tmp_path / ".tmp-step-00000009-epoch-00001"
    half.mkdir(parents=True)
    (half / "tensors.safetensors").write_bytes(b"half")
    assert ckpt.latest(tmp_path) is None
    save(tmp_path, tensors)
    assert not half.exists()


def test_no_folder_has_no_checkpoint(tmp_path):
    assert ckpt.latest(tmp_path / "missing") is None


def _truncate(path):
    content = (path / "tensors.safetensors").read_bytes()
    (path / "tensors.safetensors").write_bytes(content[:-7])


def _flip(path):
    content = bytearray((path / "tensors.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "tensors.safetensors").write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, "tensors.safetensors is damaged"),
        (_flip, "tensors.safetensors is damaged"),
        (lambda path: (path / "tensors.safetensors").unlink(), r"damaged \(0 of"),
        (lambda path: (path / "progress.json").unlink(), "progress.json is missing or damaged"),
        (lambda path: (path / "progress.json").write_text('{"format": 1'), "progress.json is missing or damaged"),
        (lambda path: (path / "progress.json").write_text("[]"), "progress.json is missing or damaged"),
    ],
)
def test_a_damaged_checkpoint_is_refused_with_advice(tmp_path, tensors, damage, message):
    path = save(tmp_path, tensors)
    damage(path)
    with pytest.raises(CheckpointError, match=f"{message}.*delete this folder"):
        ckpt.load_checkpoint(path)


def test_a_full_disk_is_named_and_leaves_the_earlier_checkpoint_alone(tmp_path, tensors, monkeypatch):
    path = save(tmp_path, tensors)

    def full(values, target):
        target.write_bytes(b"some of it")
        raise ckpt.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(ckpt, "save_file", full)
    with pytest.raises(ALLMRecError, match="no space left on the disk"):
        save(tmp_path, tensors, step=4)
    with pytest.raises(ALLMRecError, match="no space left on the disk"):
        ckpt.save_best(tmp_path, 4, tensors)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert ckpt.load_checkpoint(path)[1]["step"] == 3


def test_a_file_size_limit_is_reported_and_nothing_half_written_stays(tmp_path, tensors, monkeypatch):
    def broken(*_):
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr(ckpt, "_checksum", broken)
    with pytest.raises(ALLMRecError, match=r"cannot write .*File too large"):
        save(tmp_path, tensors)
    assert not list(tmp_path.iterdir())


def test_only_what_training_changes_is_saved():
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    module[2:].requires_grad_(False)
    assert set(ckpt.module_state(module)) == {
        "0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked",
    }  # fmt: skip


def test_module_states_of_another_model_are_refused_with_counts():
    module = nn.Linear(3, 2)
    with pytest.raises(CheckpointError, match=r"1 of 2 trained tensors are missing \['bias'\].*1 have another shape"):
        ckpt.load_module_state(module, {"weight": torch.zeros(3, 3)}, "the checkpoint")


def test_optimizer_state_comes_back_by_name():
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    names = [name for name, _ in module.named_parameters()]
    optimizers = [torch.optim.AdamW(module.parameters(), fused=True) for _ in range(2)]
    module(torch.randn(4, 3)).sum().backward()
    optimizers[0].step()
    saved = ckpt.optimizer_tensors(optimizers[0], names)
    assert set(saved) == {f"{name}|{entry}" for name in names for entry in ("step", "exp_avg", "exp_avg_sq")}
    ckpt.load_optimizer_tensors(optimizers[1], names, saved)
    again = ckpt.optimizer_tensors(optimizers[1], names)
    assert all(saved[name].equal(again[name]) for name in saved)
    assert all(saved[name].dtype == again[name].dtype for name in saved)


def test_random_states_come_back():
    tensors, values = ckpt.random_state(torch.device("cpu"))
    values = json.loads(json.dumps(values))
    drawn = torch.rand(3)
    ckpt.restore_random_state(tensors, values, torch.device("cpu"))
    assert torch.rand(3).equal(drawn)
