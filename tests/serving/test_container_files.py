"""Dockerfile and compose file, as far as they can be checked without Docker."""

from __future__ import annotations

import json
import re
import shlex
import socket
from pathlib import Path

import pytest
import yaml

from tests.command_line import refused

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "serving"
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))


def steps(name):
    text = (FOLDER / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    return [line.split(None, 1)[1] for line in text.splitlines() if line.startswith(f"{name} ")]


def test_what_the_image_copies_is_there():
    for step in steps("COPY"):
        for source in shlex.split(step)[:-1]:
            assert (ROOT / source).exists(), source


@pytest.mark.parametrize("command", ["image", "compose"])
def test_the_command_line_is_one_of_allmrec_serve(command, tmp_path):
    """It is read up to the port, which is in use: the options, tokens and address are right until there."""
    entry = json.loads(steps("ENTRYPOINT")[0])
    given = json.loads(steps("CMD")[-1]) if command == "image" else COMPOSE["services"]["serve"]["command"]
    assert entry[:2] == ["allmrec", "serve"]
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        places = {"8000": str(other.getsockname()[1]), "/state": str(tmp_path / "state"), "/model": "demo"}
        for name in ("read_token", "write_token"):
            (tmp_path / name).write_text(name * 4)
            (tmp_path / name).chmod(0o600)
            places[f"/run/secrets/{name}"] = str(tmp_path / name)
        told = refused(*(places.get(word, word) for word in [*entry[1:], *given]))
    assert "of 0.0.0.0 is in use" in told


def test_tokens_state_and_model_of_the_compose_file_meet_those_of_the_image():
    service = COMPOSE["services"]["serve"]
    assert set(service["secrets"]) == set(COMPOSE["secrets"])
    assert all(f"/run/secrets/{name}" in service["command"] for name in service["secrets"])
    targets = [volume.rsplit(":", 2) for volume in service["volumes"]]
    assert [part for target in targets for part in target if part.startswith("/")] == ["/model", "/state"]
    assert steps("VOLUME") == ["/state"]
    store = re.fullmatch(r"redis://(\w+):6379/0", service["command"][service["command"].index("--store") + 1])
    assert store[1] in COMPOSE["services"]
    assert "yes" in COMPOSE["services"]["redis"]["command"]
