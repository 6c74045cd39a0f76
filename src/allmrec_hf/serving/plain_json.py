"""JSON that can be shown anywhere: what would command a terminal or turn a line around stands in it as an escape."""

from __future__ import annotations

import json
import re
from typing import Any

from starlette.responses import JSONResponse

# JSON itself escapes the control characters below a blank. These are DEL and the upper ones, line separators, marks and
# changes of direction, and lone surrogates, which are no text.
_COMMANDING = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def plain_json(value: Any) -> str:
    r"""Return a value as JSON on one line.

    Example:
        >>> plain_json({"title": "Caf\u00e9 \u202e"})
        '{"title": "Café \\u202e"}'
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
    return _COMMANDING.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


class PlainJSONResponse(JSONResponse):
    """A response of `plain_json`."""

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return plain_json(content).encode()
