"""Decode text of any encoding block by block; bytes outside the encoding are reported with their position."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ...errors import DataError

MARKS = {  # UTF-32 before UTF-16, whose mark begins it
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
UTF8 = "utf-8"
SAMPLE_BYTES = 4096
AROUND = 12
HOW_TO_TELL = "--encoding {0} on the command line, encoding={0!r} in Python"


class UnreadableText(DataError):
    """A byte that the encoding does not have."""


def check_encoding(encoding: str | None) -> None:
    """Check that Python knows an encoding of text.

    Raises:
        DataError: when it does not.
    """
    if encoding is None:
        return
    try:
        known = codecs.lookup(encoding)
        "".encode(encoding)
        known.incrementaldecoder()  # type: ignore[misc]  # None for codecs that cannot decode step by step
    except (LookupError, TypeError, ValueError) as error:
        raise DataError(
            f"there is no encoding {encoding!r}; expected a name such as utf-8, latin-1, cp1252 or utf-16"
        ) from error


def utf8_blocks(handle: BinaryIO, path: Path, block_bytes: int, encoding: str | None, strict: bool) -> Iterator[bytes]:
    """Yield what a file holds in UTF-8, without its byte order mark.

    Args:
        handle: The opened file.
        path: What it is called in an error.
        block_bytes: How many bytes are read at a time.
        encoding: The file's encoding; None for what its byte order mark says, else UTF-8.
        strict: Whether bytes that are no UTF-8 are refused where the file is UTF-8; else they are handed on.

    Raises:
        DataError: when a byte is none of the encoding's; the message holds its place.
    """
    block = handle.read(block_bytes)
    mark = next((mark for mark in MARKS if block.startswith(mark)), b"")
    plain = codecs.lookup(encoding).name.removesuffix("-sig") if encoding else MARKS.get(mark, UTF8)
    if mark and MARKS[mark].startswith(plain):  # utf-16 without an end names the mark's end
        plain, skipped = MARKS[mark], len(mark)
        block = block[skipped:]
    else:
        skipped = 0
    if strict and plain == UTF8 and b"\x00" in block[:SAMPLE_BYTES]:
        _check_no_nul(block, path, skipped)
    place = _Place(path, plain, given=encoding is not None, read=skipped)
    decoder = codecs.getincrementaldecoder(plain)("strict")
    as_it_is = plain == UTF8
    while block:
        if as_it_is and not strict:
            yield block
        else:
            text = place.decode(decoder, block, final=False)
            yield block if as_it_is else text.encode(UTF8, "replace")
        block = handle.read(block_bytes)
    if strict or not as_it_is:
        place.decode(decoder, b"", final=True)


class _Place:
    """The position of a decoder in a file, for the error that names a wrong byte."""

    def __init__(self, path: Path, encoding: str, given: bool, read: int) -> None:
        self.path, self.encoding, self.given = path, encoding, given
        self.read, self.line, self.column = read, 1, 1

    def decode(self, decoder: codecs.IncrementalDecoder, block: bytes, final: bool) -> str:
        """Decode the next bytes.

        Raises:
            DataError: when one is none of the encoding's.
        """
        waiting = len(decoder.getstate()[0])
        try:
            text = decoder.decode(block, final)
        except UnicodeDecodeError as error:
            raise self._error(error, waiting) from error
        self.read += len(block)
        self._advance(text)
        return text

    def _advance(self, text: str) -> None:
        """Count the lines and columns of text."""
        breaks = text.count("\n")
        self.line += breaks
        self.column = len(text) - text.rfind("\n") if breaks else self.column + len(text)

    def _error(self, error: UnicodeDecodeError, waiting: int) -> UnreadableText:
        """Return the error that names the byte, its place and what to do."""
        content, start = error.object, error.start
        self._advance(content[:start].decode(self.encoding, "replace"))
        found = f"byte 0x{content[start]:02X}" if start < len(content) else "the end of the file"
        place = self.read - waiting + start
        told = f"{self.path}: {found} at byte {place + 1} (line {self.line}, column {self.column}) is no "
        told += self.encoding.upper() if self.encoding != UTF8 else "UTF-8"
        if self.given:
            return UnreadableText(f"{told}, the encoding that was given; give the right one, or leave it out for UTF-8")
        around = content[max(0, start - AROUND) : start + AROUND].decode("latin-1")
        around = around.replace("\n", " ").replace("\r", " ")
        return UnreadableText(
            f"{told}. Write the file as UTF-8, or name its encoding: {HOW_TO_TELL.format('latin-1')} (Latin-1 would "
            f"read {around!r} here)"
        )


def _check_no_nul(block: bytes, path: Path, skipped: int) -> None:
    """Check that UTF-8 text holds no NUL bytes; with them it is UTF-16, or no text.

    Raises:
        DataError: always.
    """
    sample = block[:SAMPLE_BYTES]
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    for count, other, name in ((odd, even, "utf-16-le"), (even, odd, "utf-16-be")):
        if count > len(sample) // 5 and not other:
            raise DataError(
                f"{path} is no UTF-8 text: every second byte is NUL, as in UTF-16. Name the encoding: "
                + HOW_TO_TELL.format(name)
            )
    place = sample.index(0)
    raise DataError(
        f"{path}: byte {skipped + place + 1} (line {sample.count(10, 0, place) + 1}) is NUL, so this is no text file; "
        "is it of another format, or damaged?"
    )
