"""Reads the tensors of a file that `torch.save` wrote, without running anything that the file says.

Such a file is a zip archive: `data.pkl` is a pickle, a small program that builds the saved object, and `data/0`,
`data/1`, ... are the bytes of its tensors. A program calls what it names, so unpickling a stranger's file runs a
stranger's code. `torch.load(weights_only=True)` refuses every name that it does not know; files of other recommender
libraries always hold such names, because they store a settings object beside the weights.

Here the pickle is read as data. `pickletools.genops` splits it into instructions, and `_Reading` follows those that
build plain values. Where the program names a class or a function, an inert `Name` is put down; where it would call
one, a `Call` that says what would have been called. No name is ever imported and nothing is ever called, so there is
no list of trusted functions that could be too long. A tensor is a `Call` of torch's rebuilding function, whose numbers
are checked against the bytes that are there.
"""

from __future__ import annotations

import pickletools
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError

_NO_ARCHIVE = (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError, ValueError, EOFError, struct.error)
MAX_INSTRUCTIONS = 20_000_000  # of the pickle; one that a library writes has thousands
_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


@dataclass(frozen=True)
class Name:
    """A class or function that the file names; it is not imported."""

    module: str
    name: str


@dataclass(eq=False)
class Call:
    """An object that the file would make by calling something; nothing was called.

    Attributes:
        function: What would be called, mostly a `Name`.
        arguments: The arguments.
        state: The attributes that the object would be given.
        entries: Its items, where it is a mapping such as `OrderedDict`.
        elements: Its elements, where it is a list of its own kind.
    """

    function: Any
    arguments: Any
    state: Any = None
    entries: dict[Any, Any] = field(default_factory=dict)
    elements: list[Any] = field(default_factory=list)


@dataclass(eq=False)
class Storage:
    """Bytes of the archive that one or several tensors share."""

    dtype: Name
    key: str


class TorchArchive:
    """A file written by `torch.save`, opened for reading.

    Args:
        path: The file, in torch's format since version 1.6.

    Attributes:
        content: The saved object, made of plain values, `Name` and `Call`; tensors are calls still.

    Raises:
        CheckpointError: when it is missing, of another format or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._bytes: dict[str, bytearray] = {}
        if not path.is_file():
            raise CheckpointError(
                f"{path} is a folder; give the file that torch.save wrote"
                if path.is_dir()
                else f"there is no file {path}; check the path"
            )
        try:
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
                if len(names) != 1:
                    raise CheckpointError(f"{path} is a zip archive without data.pkl, so torch.save did not write it")
                self._prefix = names[0].removesuffix("data.pkl")
                program = _stored(archive, names[0], path)
                order = f"{self._prefix}byteorder"
                if order in archive.namelist() and _stored(archive, order, path) != b"little":
                    raise CheckpointError(f"{path} was written on a big-endian machine; save it again on another")
        except _NO_ARCHIVE as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(
                f"{path} cannot be read as a file of torch.save ({error}); one of torch before 1.6 must be loaded and "
                "saved again by a newer one"
            ) from error
        self.content = _read(program, path)

    def tensors(self, value: Any) -> dict[str, Tensor]:
        """Return the tensors of a state dict that is part of `content`.

        Raises:
            CheckpointError: when it is no state dict, or a tensor does not fit its bytes.
        """
        entries = as_mapping(value)
        if entries is None or not entries or not all(isinstance(name, str) for name in entries):
            raise CheckpointError(f"{self.path} holds no state dict where one was expected")
        return {name: self._tensor(name, entry) for name, entry in entries.items()}

    def _tensor(self, name: str, value: Any) -> Tensor:
        arguments = value.arguments if isinstance(value, Call) else None
        called = value.function if isinstance(value, Call) else None
        if called == Name("torch._utils", "_rebuild_parameter") and isinstance(arguments, tuple) and arguments:
            return self._tensor(name, arguments[0])
        known = called == Name("torch._utils", "_rebuild_tensor_v2") and isinstance(arguments, tuple)
        if not known or len(arguments or ()) < 4 or not isinstance(arguments[0], Storage):  # type: ignore[index]
            raise CheckpointError(f"{self.path}: the entry {name!r} is no plain dense tensor, so this is no state dict")
        storage, offset, size, stride = arguments[:4]  # type: ignore[index]
        numbers = (offset, *size, *stride) if isinstance(size, tuple) and isinstance(stride, tuple) else (None,)
        whole = all(type(number) is int and number >= 0 for number in numbers)
        dtype = _DTYPES.get(storage.dtype.name) if storage.dtype.module == "torch" else None
        if not whole or len(size) != len(stride) or dtype is None:
            raise CheckpointError(f"{self.path}: the tensor {name!r} has an impossible shape or an unknown type")
        raw = self._raw(storage.key)
        available, last = len(raw) // dtype.itemsize, offset
        count = 1
        for extent, step in zip(size, stride, strict=True):
            count, last = count * extent, last + max(extent - 1, 0) * step
        if count > available or (count and last >= available):
            raise CheckpointError(f"{self.path}: the tensor {name!r} needs more numbers than the {available} it has")
        if not count:
            return torch.empty(size, dtype=dtype)
        return torch.frombuffer(raw, dtype=dtype).as_strided(size, stride, offset).clone()

    def _raw(self, key: str) -> bytearray:
        if key not in self._bytes:
            try:
                with zipfile.ZipFile(self.path) as archive:
                    self._bytes[key] = bytearray(_stored(archive, f"{self._prefix}data/{key}", self.path))
            except (*_NO_ARCHIVE, KeyError) as error:
                if isinstance(error, CheckpointError):
                    raise
                raise CheckpointError(f"{self.path} is damaged: {error}") from error
        return self._bytes[key]


def as_mapping(value: Any) -> dict[Any, Any] | None:
    """Return a read dict, `OrderedDict` or attribute holder as a dict; None where it is something else."""
    if isinstance(value, dict):
        return value
    if isinstance(value, Call):
        if value.function == Name("collections", "OrderedDict"):
            return value.entries
        return value.state if isinstance(value.state, dict) else value.entries
    return None


def _stored(archive: zipfile.ZipFile, name: str, path: Path) -> bytes:
    """Return a member's bytes; torch compresses nothing, so a small file cannot unfold to a huge one."""
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise CheckpointError(f"{path} holds compressed parts, which torch.save never writes")
    return archive.read(name)


def _read(program: bytes, path: Path) -> Any:
    reading = _Reading()
    try:
        for number, (instruction, argument, _) in enumerate(pickletools.genops(program)):
            if number > MAX_INSTRUCTIONS:
                raise CheckpointError(f"{path}: its data.pkl has over {MAX_INSTRUCTIONS} instructions")
            reading.follow(instruction.name, argument)
        return reading.stack[-1]
    except CheckpointError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged or no file of torch.save: its data.pkl stops at {error!r}") from error


_MARK = object()
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
    "MARK": lambda: _MARK,
}
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_NOTHING = {"PROTO", "FRAME", "STOP"}


class _Reading:
    """The stack and the memo of a pickle that is read as data."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def follow(self, instruction: str, argument: Any) -> None:
        """Follow one instruction.

        Raises:
            CheckpointError: when it is one that no file of torch.save needs.
        """
        stack = self.stack
        if instruction in _NOTHING:
            return
        if instruction in _CONSTANTS:
            stack.append(_CONSTANTS[instruction]())
        elif instruction in _LITERALS:
            stack.append(argument)
        elif instruction in _TUPLES:
            values = [self._pop() for _ in range(_TUPLES[instruction])]
            stack.append(tuple(reversed(values)))
        elif instruction in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self.memo[int(argument)])
        elif instruction in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[int(argument)] = stack[-1]
        elif instruction == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif instruction == "GLOBAL":
            stack.append(Name(*argument.split(" ", 1)))
        else:
            self._compose(instruction)

    def _compose(self, instruction: str) -> None:
        step = getattr(self, f"_on_{instruction.lower()}", None)
        if step is None:
            raise CheckpointError(f"its data.pkl holds the instruction {instruction}, which torch.save does not write")
        step()

    def _pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("a mark in place of a value")
        return value

    def _pop_to_mark(self) -> list[Any]:
        values: list[Any] = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def _on_tuple(self) -> None:
        self.stack.append(tuple(self._pop_to_mark()))

    def _on_list(self) -> None:
        self.stack.append(self._pop_to_mark())

    def _on_dict(self) -> None:
        values = self._pop_to_mark()
        self.stack.append(dict(zip(values[::2], values[1::2], strict=True)))

    def _on_frozenset(self) -> None:
        self.stack.append(frozenset(self._pop_to_mark()))

    def _on_append(self) -> None:
        self._extend([self._pop()])

    def _on_appends(self) -> None:
        self._extend(self._pop_to_mark())

    def _extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        (target.elements if isinstance(target, Call) else target).extend(values)

    def _on_additems(self) -> None:
        values = self._pop_to_mark()
        self.stack[-1].update(values)

    def _on_setitem(self) -> None:
        value, key = self._pop(), self._pop()
        self._set([key, value])

    def _on_setitems(self) -> None:
        self._set(self._pop_to_mark())

    def _set(self, values: list[Any]) -> None:
        target = self.stack[-1]
        entries = target.entries if isinstance(target, Call) else target
        entries.update(zip(values[::2], values[1::2], strict=True))

    def _on_pop(self) -> None:
        self.stack.pop()

    def _on_pop_mark(self) -> None:
        self._pop_to_mark()

    def _on_dup(self) -> None:
        self.stack.append(self.stack[-1])

    def _on_stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("a name that is no text")
        self.stack.append(Name(module, name))

    def _on_reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        self.stack.append(Call(function, arguments))

    _on_newobj = _on_reduce

    def _on_newobj_ex(self) -> None:
        named, arguments, kind = self._pop(), self._pop(), self._pop()
        self.stack.append(Call(kind, (arguments, named)))

    def _on_build(self) -> None:
        state = self._pop()
        target = self.stack[-1]
        if isinstance(target, Call):
            target.state = state

    def _on_binpersid(self) -> None:
        kind, dtype, key, *_ = self._pop()
        if kind != "storage" or not isinstance(dtype, Name) or not isinstance(key, str):
            raise ValueError("a reference that is no storage of torch")
        self.stack.append(Storage(dtype, key))
