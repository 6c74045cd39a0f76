"""Parse JSON and YAML that somebody else wrote: whatever is wrong with it is one kind of error."""

import json
from typing import Any


def json_value(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: when it is no JSON, or nested too deeply to be read.

    Example:
        >>> json_value("[" * 100_000)
        Traceback (most recent call last):
        ...
        ValueError: it is nested too deeply
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def yaml_value(text: str) -> Any:
    """Return the value of a YAML text; nothing in it is run.

    Raises:
        ValueError: when it is no YAML, holds a value that cannot be, such as the 99th of a month, or is nested too
            deeply.

    Example:
        >>> yaml_value("day: 2001-99-99")
        Traceback (most recent call last):
        ...
        ValueError: month must be in 1..12
    """
    import yaml

    try:
        return yaml.safe_load(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except (TypeError, AttributeError, KeyError, IndexError) as error:  # of its constructors, e.g. of an empty `!!int`
        raise ValueError(f"it holds a value that is none ({error})") from error
