"""Give random and mutated bytes to everything that reads a file or a request, and count what comes of it.

Each reader gets valid files first; then one of them is replaced by random bytes, random text, a truncation, flipped
bits, a spliced block or, of JSON and YAML, the same with a value of another kind. A success counts, and one of the
project's own errors (HTTP: a status below 500; a command: exit code 2). An error of another library, a crash, a case of
more than `--limit` seconds and memory that grows are told with the case, which `--reader NAME --case N` repeats.

Run: python benchmarks/random_bytes.py [--cases 10000] [--seed 0] [--reader NAME] [--output FILE]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from byte_readers import Reader, readers

import allmrec_hf
from allmrec_hf.errors import ALLMRecError

LONGEST_MESSAGE = 2_000


# -- mutations


def _random_bytes(whole: bytes, draws: random.Random) -> bytes:
    return draws.randbytes(int(draws.expovariate(1 / 300)))


def _random_text(whole: bytes, draws: random.Random) -> bytes:
    pieces = [
        "{",
        "}",
        "[",
        "]",
        '"',
        ":",
        ",",
        "\n",
        "\t",
        "- ",
        "null",
        "NaN",
        "1e999",
        "-0",
        "\\ud800",
        "é",
        "\x00",
        "a",
    ]
    pieces += [
        "!!python/object:os.system",
        "&a",
        "*a",
        "9" * 400,
        "[" * 3000,
        '{"a":' * 3000,
        "2001-99-99",
        "\ufeff",
        "::",
    ]
    return "".join(draws.choice(pieces) for _ in range(draws.randint(0, 40))).encode()


def _truncated(whole: bytes, draws: random.Random) -> bytes:
    return whole[: draws.randrange(len(whole) + 1)]


def _flipped(whole: bytes, draws: random.Random) -> bytes:
    changed = bytearray(whole)
    near_the_ends = draws.random() < 0.5  # where headers and footers lie
    for _ in range(draws.randint(1, 8) if changed else 0):
        at = draws.randrange(len(changed))
        if near_the_ends:
            at = draws.randrange(min(200, len(changed)))
            at = at if draws.random() < 0.5 else len(changed) - 1 - at
        changed[at] ^= 1 << draws.randrange(8)
    return bytes(changed)


def _spliced(whole: bytes, draws: random.Random) -> bytes:
    at, length = draws.randrange(len(whole) + 1), draws.randrange(64)
    block = draws.randbytes(length) if draws.random() < 0.7 else whole[at : at + length] * 2
    return whole[:at] + block + whole[at + (length if draws.random() < 0.5 else 0) :]


_STRANGE: list[Any] = [
    None,
    True,
    -1,
    0,
    2**70,
    1.5,
    float("nan"),
    "",
    "x",
    "\ud800",
    [],
    {},
    [[]],
    {"a": 1},
    "a" * 5000,
]


def _restructured(whole: bytes, draws: random.Random) -> bytes:
    """Return JSON, a line of it, or YAML, with a value of another kind, a key less or one more; else flipped bits."""
    import yaml

    lines = whole.split(b"\n")
    place = draws.randrange(len(lines))
    for text, put in ((whole, None), (lines[place], place)):
        try:
            value = json.loads(text)
        except ValueError:
            continue
        changed = json.dumps(_changed(value, draws)).encode()
        return changed if put is None else b"\n".join([*lines[:put], changed, *lines[put + 1 :]])
    try:
        value = yaml.safe_load(whole)
    except (ValueError, yaml.YAMLError):
        value = None
    if isinstance(value, (dict, list)) and b"\x00" not in whole:
        return yaml.safe_dump(_changed(value, draws)).encode("utf-8", "surrogatepass")
    return _flipped(whole, draws)


def _changed(value: Any, draws: random.Random) -> Any:
    if isinstance(value, dict) and value and draws.random() < 0.85:
        name = draws.choice(sorted(value, key=str))
        kept = {key: entry for key, entry in value.items() if key != name}
        kind = draws.random()
        if kind < 0.1:
            return kept
        if kind < 0.15:
            return {**value, "surprise": draws.choice(_STRANGE)}
        return {**kept, name: _changed(value[name], draws)}
    if isinstance(value, list) and value and draws.random() < 0.8:
        place = draws.randrange(len(value))
        return [*value[:place], _changed(value[place], draws), *value[place + 1 :]]
    return draws.choice(_STRANGE)


KINDS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "random_bytes": _random_bytes,
    "random_text": _random_text,
    "truncated": _truncated,
    "flipped_bits": _flipped,
    "spliced": _spliced,
    "restructured": _restructured,
}


# -- running


def mutated(reader: Reader, whole: Mapping[str, bytes], name: str, number: int, seed: int) -> tuple[str, str, bytes]:
    """Return the file that a case replaces, the kind of mutation, and the bytes."""
    draws = random.Random(f"{seed} {name} {number}")
    file = draws.choice(sorted(whole))
    kind = list(KINDS)[number % len(KINDS)]
    return file, kind, KINDS[kind](whole[file], draws)


def valid_files(reader: Reader, folder: Path) -> dict[str, bytes]:
    """Write the valid files of a reader, check that they can be read, and return those that are replaced."""
    reader.make(folder)
    reader.read(folder)
    names = reader.files or tuple(
        str(path.relative_to(folder))
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".json", ".parquet", ".safetensors")
    )
    return {name: (folder / name).read_bytes() for name in names}


def outcome(reader: Reader, folder: Path, file: str, content: bytes, whole: bytes) -> tuple[str, str]:
    """Return `read`, `refused`, `unclear` or `escaped`, and the message or where an error of others came from."""
    path = folder / file
    path.unlink(missing_ok=True)  # a new file: the old one may be mapped into memory
    path.write_bytes(content)
    try:
        reader.read(folder)
        return "read", ""
    except ALLMRecError as error:
        text = str(error)
        clear = bool(text.strip()) and len(text) <= LONGEST_MESSAGE and "Traceback" not in text
        return ("refused" if clear else "unclear"), text[:300]
    except BaseException as error:  # also what is no Exception, such as a panic of Rust
        if isinstance(error, KeyboardInterrupt):
            raise
        frames = traceback.extract_tb(error.__traceback__)
        own = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames if "allmrec_hf" in frame.filename]
        return "escaped", f"{type(error).__name__}: {str(error)[:200]} (last of ours {own[-1] if own else 'none'})"
    finally:
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(whole)


def _memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _child(name: str, numbers: list[int], seed: int, told: Any) -> None:
    """Run cases of a reader and tell of each."""
    import logging
    import warnings

    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - progress bars and the panics of Rust
    os.dup2(sys.stderr.fileno(), 2)
    reader = readers()[name]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        whole = valid_files(reader, folder)
        before = _memory_mb()
        for number in numbers:
            file, kind, content = mutated(reader, whole, name, number, seed)
            told.send(("begins", number))
            started = time.monotonic()
            found, text = outcome(reader, folder, file, content, whole[file])
            told.send(("ended", number, file, kind, found, text, time.monotonic() - started, _memory_mb() - before))
    told.send(("finished",))


def try_reader(name: str, count: int, seed: int, limit: float, first: int = 0) -> dict[str, Any]:
    """Return what came of the cases of one reader, run in a process of its own."""
    context = multiprocessing.get_context("spawn")
    result: dict[str, Any] = {"cases": 0, "outcomes": Counter(), "kinds": Counter(), "wrong": [], "slowest_s": 0.0}
    result["memory_growth_mb"] = 0.0
    left = list(range(first, first + count))
    while left:
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(name, left, seed, theirs))
        child.start()
        theirs.close()
        current, finished = None, False
        try:
            while not finished:
                if not ours.poll(limit if current is not None else 120):
                    break
                message = ours.recv()
                if message[0] == "begins":
                    current = message[1]
                elif message[0] == "finished":
                    finished = True
                else:
                    _, number, file, kind, found, text, seconds, memory = message
                    left.remove(number)
                    result["cases"] += 1
                    result["outcomes"][found] += 1
                    result["kinds"][kind] += 1
                    result["slowest_s"] = max(result["slowest_s"], round(seconds, 2))
                    result["memory_growth_mb"] = max(result["memory_growth_mb"], round(memory, 1))
                    if found in ("escaped", "unclear"):
                        result["wrong"].append({"case": number, "file": file, "kind": kind, "what": text})
                    current = None
        except EOFError:
            pass
        if not finished:
            hangs = child.is_alive()
            child.kill()
            child.join()
            if current is None:
                raise SystemExit(f"{name}: the valid files cannot be read (exit code {child.exitcode})")
            left.remove(current)
            result["cases"] += 1
            result["outcomes"]["hung" if hangs else "crashed"] += 1
            what = f"no answer in {limit:g} s" if hangs else f"the process ended with {child.exitcode}"
            result["wrong"].append({"case": current, "what": what})
        child.join()
    return {**result, "outcomes": dict(result["outcomes"]), "kinds": dict(result["kinds"])}


def measure(cases: int, seed: int, limit: float, only: list[str], progress: bool = True) -> dict[str, Any]:
    """Return the counts of all readers."""
    known = readers()
    chosen = {name: known[name] for name in (only or known)}
    weights = sum(reader.weight for reader in chosen.values())
    found = {}
    for name, reader in chosen.items():
        found[name] = try_reader(name, -(-int(cases * reader.weight) // max(1, int(weights))), seed, limit)
        if progress:
            print(name, found[name]["outcomes"], file=sys.stderr, flush=True)
    total: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for one in found.values():
        total.update(one["outcomes"])
        kinds.update(one["kinds"])
    return {
        "version": allmrec_hf.__version__,
        "seed": seed,
        "limit_s": limit,
        "cases": sum(one["cases"] for one in found.values()),
        "outcomes": dict(total),
        "kinds": dict(kinds),
        "slowest_s": max(one["slowest_s"] for one in found.values()),
        "most_memory_growth_mb": max(one["memory_growth_mb"] for one in found.values()),
        "readers": found,
    }


def main() -> None:
    """Measure, print, and write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=30.0, help="seconds of a case")
    parser.add_argument("--reader", action="append", default=[], help="only this one; can be given again")
    parser.add_argument(
        "--case", type=int, help="only this case of --reader, whose bytes are written to standard output"
    )
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.case is not None:
        name = options.reader[0]
        with tempfile.TemporaryDirectory() as place:
            reader = readers()[name]
            whole = valid_files(reader, Path(place))
            file, kind, content = mutated(reader, whole, name, options.case, options.seed)
            print(file, kind, *outcome(reader, Path(place), file, content, whole[file]), file=sys.stderr)
            sys.stdout.buffer.write(content)
        return
    text = json.dumps(measure(options.cases, options.seed, options.limit, options.reader), indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
