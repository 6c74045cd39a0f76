"""Bearer tokens: one for reading, one for writing, kept in files that only their owner's group can read."""

from __future__ import annotations

import hmac
import os
import stat
from hashlib import sha256
from pathlib import Path

from ..errors import ALLMRecError
from .service_errors import ServiceError

SHORTEST = 16


def read_tokens(path: str | os.PathLike[str]) -> list[str]:
    """Return the tokens of a file, one on each line; several are valid at once while they are exchanged.

    Raises:
        ALLMRecError: when the file cannot be read, others than its owner and group may read or write it, or a token is
            missing, short or of other characters than a header takes.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ALLMRecError(f"the token file {path} cannot be read: {error}") from error
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise ALLMRecError(f"the token file {path} can be read or written by every user of this machine; chmod 600 it")
    tokens = [line.strip() for line in text.splitlines() if line.strip()]
    if not tokens:
        raise ALLMRecError(f"the token file {path} is empty; write one token on a line")
    for number, token in enumerate(tokens, start=1):
        if len(token) < SHORTEST or not token.isascii() or not token.isprintable() or " " in token:
            raise ALLMRecError(
                f"the token file {path}: token {number} must be at least {SHORTEST} visible ASCII characters without "
                "a space; `openssl rand -hex 32` makes one"
            )
    return tokens


class BearerTokens:
    """Decides which requests may read and which may write.

    Args:
        read: Tokens for reading; empty: everybody may read.
        write: Tokens for writing, which may read as well; empty: nobody may write, or everybody where there are no
            tokens for reading either.
    """

    def __init__(self, read: list[str] | None = None, write: list[str] | None = None) -> None:
        self._read = [_digest(token) for token in read or []]
        self._write = [_digest(token) for token in write or []]

    @property
    def open(self) -> bool:
        """Whether everybody may read."""
        return not self._read

    def check(self, authorization: str | None, writes: bool) -> None:
        """Check the `Authorization` header of a request; the time it takes does not depend on a token's characters.

        Raises:
            ServiceError: 401 without a valid token, 403 with one that may not write.
        """
        scheme, _, token = (authorization or "").partition(" ")
        given = _digest(token.strip() if scheme.lower() == "bearer" else "")
        may_read, may_write = _among(given, self._read), _among(given, self._write)
        if not writes:
            if may_read or may_write or not self._read:
                return
            raise _unauthorized()
        if may_write or not (self._read or self._write):
            return
        if not self._write:
            raise ServiceError(403, "forbidden", "this service takes no writes: it was started without a write token")
        if may_read:
            raise ServiceError(403, "forbidden", "this token may only read; writing needs the write token")
        raise _unauthorized()


def _unauthorized() -> ServiceError:
    return ServiceError(401, "unauthorized", "give a valid token in the header `Authorization: Bearer TOKEN`")


def _digest(token: str) -> bytes:
    return sha256(token.encode("utf-8", "surrogatepass")).digest()


def _among(given: bytes, known: list[bytes]) -> bool:
    found = False
    for one in known:  # all of them, whichever it is
        found |= hmac.compare_digest(given, one)
    return found
