"""LLMs in GGUF files: which file a name means, and whether transformers can read it."""

import math
import struct
from importlib.util import find_spec
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

from .errors import CheckpointError

SUFFIX = ".gguf"
REQUIREMENT = "reading a GGUF file needs the package gguf and transformers >= 5.23: pip install 'allmrec-hf[gguf]'"
_NO_HEADER = (IndexError, KeyError, OverflowError, MemoryError, UnicodeDecodeError, struct.error)


class GGUFFacts(NamedTuple):
    """What the header of a GGUF file says.

    Attributes:
        architecture: Its architecture in llama.cpp's words, such as `llama` or `gemma3`.
        parameters: Numbers in all tensors.
        file_bytes: Size of the file.
        has_tokenizer: Whether the vocabulary is in it.
    """

    architecture: str
    parameters: int
    file_bytes: int
    has_tokenizer: bool


def is_gguf(name: str) -> bool:
    """Tell whether a name ends like a GGUF file's and is no folder."""
    return name.lower().endswith(SUFFIX) and not Path(name).expanduser().is_dir()


def split_gguf(name: str, gguf_file: str | None = None) -> tuple[str, str | None]:
    """Return the folder or Hub id, and the GGUF file in it, of an LLM's name; None for one that is no GGUF file's.

    Args:
        name: A folder, a Hub id, the path of a `.gguf` file, or `ORG/NAME/FILE.gguf` on the Hub.
        gguf_file: The file's name inside the folder or repository, where `name` does not end in it.

    Raises:
        CheckpointError: when both name a file, or the file's name is none.

    Example:
        >>> split_gguf("org/model-GGUF/model-Q4_K_M.gguf")
        ('org/model-GGUF', 'model-Q4_K_M.gguf')
        >>> split_gguf("org/model")
        ('org/model', None)
    """
    if gguf_file is not None:
        windows = PureWindowsPath(gguf_file)
        if not gguf_file.lower().endswith(SUFFIX) or windows.is_absolute() or gguf_file.startswith(("/", "~")):
            raise CheckpointError(
                f"a GGUF file's name inside a folder or repository ends in {SUFFIX} and starts at no root, unlike "
                f"{gguf_file!r}; give the path of a file as the LLM itself"
            )
        if is_gguf(name):
            raise CheckpointError(f"the LLM {name!r} is a GGUF file, and gguf_file names {gguf_file!r}; give one")
        return name, gguf_file
    if not is_gguf(name):
        return name, None
    path = Path(name).expanduser()
    parts = name.split("/")
    if len(parts) > 2 and parts[0] not in ("", ".", "..", "~") and not path.is_file() and not path.parent.is_dir():
        return "/".join(parts[:2]), "/".join(parts[2:])
    return str(path.parent), path.name


def gguf_path(folder: str, gguf_file: str) -> str:
    """Return the absolute path of a GGUF file in a folder.

    transformers looks for a relative name where the process runs first, and would take another file of that name.

    Raises:
        FileNotFoundError: when the folder has no such file; the message lists those it has.
    """
    path = Path(folder) / gguf_file
    if path.is_file():
        return str(path.absolute())
    found = sorted(other.name for other in Path(folder).glob("*") if is_gguf(other.name))
    raise FileNotFoundError(f"the folder {folder} has no file {gguf_file}; {_those(found)}")


def _those(found: list[str]) -> str:
    return f"it has {', '.join(found[:8])}" if found else f"it has no {SUFFIX} file"


def no_such_gguf(repo: str, gguf_file: str, files: list[str]) -> str:
    """Return the message about a repository without a GGUF file, given the names of its files."""
    return f"the repository {repo} has no file {gguf_file}; {_those(sorted(filter(is_gguf, files)))}"


def gguf_facts(path: str) -> GGUFFacts:
    """Read the header of a GGUF file, and check that all of the file is there.

    Raises:
        CheckpointError: when a package is missing, or the file is damaged, cut off, one part of several, or no LLM.
    """
    if find_spec("gguf") is None:
        raise CheckpointError(REQUIREMENT)
    try:  # no requirement of exported code
        import gguf
        from transformers.integrations.gguf.reader import GgufHeader, read_gguf_metadata
    except ImportError as error:
        raise CheckpointError(f"{REQUIREMENT} ({error})") from error
    size = Path(path).stat().st_size
    with open(path, "rb") as file:
        start = file.read(24)
    if start[:4] != b"GGUF":
        what = "a pointer of Git LFS, not the file itself" if start.startswith(b"version https://git") else "no GGUF"
        raise CheckpointError(f"{path} ({size:,} bytes) is {what}: download it again")
    try:
        metadata, _ = read_gguf_metadata(path)
    except _NO_HEADER as error:
        raise _cut_off(path, size) from error
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read as a GGUF file: {' '.join(str(error).split())}") from error
    architecture = str(metadata["general.architecture"])
    kind, parts = metadata.get("general.type", "model"), metadata.get("split.count", 1)
    if isinstance(parts, int) and parts > 1:
        raise CheckpointError(
            f"{path} is one of {parts} parts of an LLM; join them first (llama.cpp: `llama-gguf-split --merge`)"
        )
    if kind != "model":
        raise CheckpointError(f"{path} holds no whole LLM but a part of the kind {kind!r}; give the LLM's own file")
    try:
        header = GgufHeader.from_file(path)
        end = header.data_start + max((info.offset + info.nbytes for info in header.tensors), default=0)
        parameters = sum(math.prod(info.shape) for info in header.tensors)
    except _NO_HEADER as error:
        raise _cut_off(path, size) from error
    except ValueError:  # a tensor type that the package gguf may know all the same
        try:
            tensors = gguf.GGUFReader(path).tensors
        except (ValueError, *_NO_HEADER) as error:
            raise CheckpointError(
                f"{path} cannot be read as a GGUF file, being damaged or newer than the package gguf: "
                f"{' '.join(str(error).split())}"
            ) from error
        end = max((int(tensor.data_offset + tensor.n_bytes) for tensor in tensors), default=0)
        parameters = sum(int(tensor.n_elements) for tensor in tensors)
    if not parameters:
        raise CheckpointError(f"{path} holds no weights; give the file of a whole LLM")
    if size < end:
        raise _cut_off(path, size, end)
    tokens = metadata.get("tokenizer.ggml.tokens")
    named = metadata.get("tokenizer.ggml.model") not in (None, "no_vocab", "none")
    return GGUFFacts(architecture, parameters, size, named and bool(tokens))


def _cut_off(path: str, size: int, end: int | None = None) -> CheckpointError:
    whole = "its header ends before all is said" if end is None else f"its header says {end:,}"
    return CheckpointError(f"{path} is cut off or damaged: it has {size:,} bytes, and {whole}; download it again")
