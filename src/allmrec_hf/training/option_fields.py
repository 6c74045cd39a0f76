"""How an option is declared once: a dataclass field whose metadata holds its help, its limits and its flag.

The command line, the YAML file, the Python signature and the table in the docs are made from these fields.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..errors import ALLMRecError


def option(
    default: Any,
    help: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    flag: str | None = None,
    free_on_resume: bool = False,
    loop: bool = False,
) -> Any:
    """Declare a field of an arguments dataclass.

    Args:
        default: Its default.
        help: What it does, with the paper's letter where there is one.
        at_least: Smallest value.
        above: Bound that the value must exceed.
        below: Bound that the value must stay under.
        at_most: Largest value.
        flag: Its flag on the command line where that names no stage, such as `--prompt`.
        free_on_resume: Whether a resumed run may have another value, since it changes nothing that is trained.
        loop: Whether it belongs to the training loop that every stage has.
    """
    names = ("help", "at_least", "above", "below", "at_most", "flag", "free_on_resume", "loop")
    values = (help, at_least, above, below, at_most, flag, free_on_resume, loop)
    return dataclasses.field(default=default, metadata=dict(zip(names, values, strict=True)))


def unknown_options(names: Iterable[str], known: Iterable[str], what: str) -> ALLMRecError:
    """Return the error about options that do not exist, with the nearest names that do."""
    known = sorted(known)
    wrong = sorted(names)
    near = [match for name in wrong for match in nearest(name, known)]
    hint = f"did you mean {', '.join(dict.fromkeys(near))}? " if near else ""
    return ALLMRecError(f"{what} has no options {wrong}; {hint}it has {', '.join(known)}")


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return the names that are like a name, or hold it.

    Example:
        >>> nearest("batch_size", ["per_device_train_batch_size", "bf16"])
        ['per_device_train_batch_size']
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3)
    return close + [other for other in known if other not in close and name in other]


def choices_of(hint: Any) -> tuple[Any, ...]:
    """Return the values of a `Literal` type, or of one that may be None; of any other type none."""
    for part in (hint, *get_args(hint)):
        if get_origin(part) is Literal:
            return get_args(part)
    return ()


class Checked:
    """A base of dataclasses whose fields are made with `option`: it converts and checks their values."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = _converted(field.name, getattr(self, field.name), hints[field.name])
            _check_limits(field.name, value, field.metadata)
            object.__setattr__(self, field.name, value)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of all options."""
        return tuple(field.name for field in dataclasses.fields(cls))  # type: ignore[arg-type]

    @classmethod
    def loop_names(cls) -> tuple[str, ...]:
        """Return the names of the options of the training loop."""
        return tuple(field.name for field in dataclasses.fields(cls) if field.metadata["loop"])  # type: ignore[arg-type]

    @classmethod
    def own_names(cls) -> tuple[str, ...]:
        """Return the names of the options that are not those of the training loop."""
        return tuple(name for name in cls.names() if name not in cls.loop_names())

    @classmethod
    def check_names(cls, values: Iterable[str], what: str) -> None:
        """Raise where a name is none of the options.

        Raises:
            ALLMRecError: with the nearest names.
        """
        unknown = set(values) - set(cls.names())
        if unknown:
            raise unknown_options(unknown, cls.names(), what)

    def to_dict(self) -> dict[str, Any]:
        """Return the values as JSON can hold them."""
        return {name: _plain(getattr(self, name)) for name in self.names()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _converted(name: str, value: Any, hint: Any) -> Any:
    """Return a value as its field's type, or raise; YAML reads 1e-4 as text, which is accepted for a number."""
    kinds = get_args(hint) if type(None) in get_args(hint) else (hint,)
    if value is None and type(None) in kinds:
        return None
    kind = next(kind for kind in kinds if kind is not type(None))
    known = choices_of(kind)
    if known:
        if value not in known:
            raise ALLMRecError(f"{name} must be one of {', '.join(map(str, known))}; got {value!r}")
        return value
    if get_origin(kind) is dict:
        if not isinstance(value, Mapping):
            raise ALLMRecError(f"{name} must be a mapping of names to values, got {value!r}")
        return dict(value)
    if kind is bool:
        if not isinstance(value, bool):
            raise ALLMRecError(f"{name} must be true or false, got {value!r}")
        return value
    if kind is str:
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise ALLMRecError(f"{name} must be text, got {value!r}")
        return str(value)
    if isinstance(value, bool) or value is None:
        raise ALLMRecError(f"{name} must be of type {kind.__name__}, got {value!r}")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ALLMRecError(f"{name} must be a number, got {value!r}") from error
    if not math.isfinite(number) or (kind is int and number != int(number)):
        raise ALLMRecError(f"{name} must be a {'whole' if kind is int else 'finite'} number, got {value!r}")
    if kind is not int:
        return number
    return int(number) if isinstance(value, (str, float)) else int(value)


def _check_limits(name: str, value: Any, limits: Mapping[str, Any]) -> None:
    if value is None or isinstance(value, (str, bool, Mapping)):
        return
    for bound, fits, words in (
        (limits["at_least"], lambda bound: value >= bound, "at least"),
        (limits["above"], lambda bound: value > bound, "above"),
        (limits["below"], lambda bound: value < bound, "below"),
        (limits["at_most"], lambda bound: value <= bound, "at most"),
    ):
        if bound is not None and not fits(bound):
            raise ALLMRecError(f"{name} must be {words} {bound}, got {value}")
