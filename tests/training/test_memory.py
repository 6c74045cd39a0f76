"""Batches of ever other lengths do not make a process grow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from allmrec_hf.data import memory
from allmrec_hf.training.projection import ProjectionTask
from allmrec_hf.training.warm_start import WarmStartTask


def resident(directory, way, steps):
    """Return the MiB at each step beyond those at the first."""
    script = Path(__file__).with_name("varied_lengths.py")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_"))
    }
    done = subprocess.run(
        [sys.executable, str(script), str(directory), way, str(steps)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=environment | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    series = json.loads(done.stdout)
    assert len(series) == steps
    return [value - series[0] for value in series]


@pytest.mark.skipif(memory._glibc() is None, reason="only glibc keeps what was freed")
def test_memory_stays_flat_over_200_steps_of_ever_other_lengths(tmp_path):
    """The longest batch needs some 100 MiB during its step; as glibc comes, most of that stays with the process."""
    flat, torn = resident(tmp_path / "trimmed", "trimmed", 200), resident(tmp_path / "torn", "as-it-comes", 60)
    assert max(flat) < 40
    assert max(flat[100:]) - max(flat[20:100]) < 10
    assert max(torn) > 2 * max(flat)


def test_prompts_are_known_to_differ_in_length_and_histories_are_not():
    assert ProjectionTask.varied_lengths
    assert not WarmStartTask.varied_lengths


def test_the_heap_is_looked_through_when_noticeably_more_is_held(monkeypatch):
    held, trims = [1000 * 2**20], []
    monkeypatch.setattr(memory, "resident_bytes", lambda: held[0])
    monkeypatch.setattr(memory, "_glibc", lambda: object())
    monkeypatch.setattr(
        memory, "return_freed_memory", lambda: trims.append(held[0] // 2**20) or held.__setitem__(0, 1050 * 2**20)
    )
    trimmer = memory.HeapTrimmer()
    for size in (1100, 1163, 1165, 1218, 1220):  # a tenth and 64 MiB more than 1000, then than 1050
        held[0] = size * 2**20
        trimmer.tick()
    assert trims == [1165, 1220]
    memory.HeapTrimmer(wanted=False).tick()
    assert len(trims) == 2


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(memory, "_glibc", lambda: None)
    memory.return_freed_memory()
    trimmer = memory.HeapTrimmer()
    assert not trimmer.wanted
    trimmer.tick()
