"""`handler.py` of a checkpoint, loaded and called as Inference Endpoints do: by its path, with values of JSON."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import pipeline

import allmrec_hf
from allmrec_hf.checkpoint_code import _CLASSES, needed_modules
from allmrec_hf.endpoint_handler import HANDLER, OF_EXPORTED_CODE, PACKAGE

REQUESTS = [{"history": ["I1", "I2"], "user_id": "u1"}, {"history": ["I3"], "candidates": ["I9", "I4"], "top_k": 1}]
BODIES = [
    {"inputs": REQUESTS[0]},
    {"inputs": REQUESTS[0], "parameters": {"top_k": 2, "ranker": "cf"}},
    {"inputs": REQUESTS, "parameters": {"ranker": "cf"}},
    {"inputs": [REQUESTS[0], {"history": ["nowhere"], "user_id": "u2"}], "parameters": {"ranker": "cf"}},
    {"inputs": {"history": ["nowhere"]}},
    {"inputs": REQUESTS[0], "parameters": {"top_q": 2}},
    {"inputs": REQUESTS[0], "parameters": [2]},
    {"inputs": "I1"},
    {**REQUESTS[1], "parameters": None},
]
# The steps of the service's toolkit: the module by its path, one handler for the folder, bodies and answers as JSON, an
# exception as the text of an error. `Hidden` leaves the package out.
SERVICE = """
import importlib.util, json, sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "allmrec_hf":
            raise ModuleNotFoundError(name)
folder, bodies, installed = json.loads(sys.argv[1])
if not installed:
    find = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *rest: None if name == "allmrec_hf" else find(name, *rest)
    sys.meta_path.insert(0, Hidden())
spec = importlib.util.spec_from_file_location("handler", folder + "/handler.py")
handler = importlib.util.module_from_spec(spec)
sys.modules["handler"] = handler
spec.loader.exec_module(handler)
endpoint = handler.EndpointHandler(folder)
def answer(body):
    try:
        return json.loads(json.dumps(endpoint(body), allow_nan=False))
    except Exception as error:
        return {"error": str(error)}
print(json.dumps([answer(body) for body in bodies]))
"""


@pytest.fixture(scope="module")
def parts():
    from tests.tiny import tiny_model, tiny_processor

    processor = tiny_processor()
    return tiny_model(tokenizer_fingerprint=processor.fingerprint), processor


def asked(folder, installed):
    done = subprocess.run(
        [sys.executable, "-c", SERVICE, json.dumps([str(folder), BODIES, installed])],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder.parent / "modules")},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("exported", [False, True], ids=["package", "exported code"])
def test_the_handler_answers_as_respond_does(parts, exported, tmp_path):
    folder = tmp_path / "repository"
    model, processor = parts
    model.save_pretrained(folder, include_llm=True, export_code=exported)
    processor.save_pretrained(folder)
    assert (folder / "requirements.txt").read_text().split() == [*(OF_EXPORTED_CODE if exported else PACKAGE)]
    one, by_cf, both, mixed, unknown, misspelt, wrong, no_request, flat = asked(folder, installed=not exported)
    recommend = pipeline("recommendation", model=str(folder), trust_remote_code=True)
    near = [
        {**row, "score": pytest.approx(row["score"], abs=1e-4), "parts": None}
        for row in recommend.respond(REQUESTS[0])["recommendations"]
    ]
    assert [{**row, "parts": None} for row in one["recommendations"]] == near
    assert one["user_id"] == "u1"
    assert by_cf == recommend.respond(REQUESTS[0], top_k=2, ranker="cf")
    assert both == recommend.respond(REQUESTS, ranker="cf")
    assert len(both[1]["recommendations"]) == 1
    assert mixed == [both[0], {"user_id": "u2", "error": mixed[1]["error"]}]
    for told, words in (
        (unknown, "none of the 1 history items is in the catalogue"),
        (mixed[1], "none of the 1 history items"),
        (misspelt, "unknown arguments ['top_q']"),
        (wrong, "parameters are an object"),
        (no_request, "a request is a mapping"),
    ):
        assert words in told["error"]
    assert [row["item_id"] for row in flat["recommendations"]] == [
        row["item_id"] for row in recommend.respond(REQUESTS[1])["recommendations"]
    ]


def test_what_exported_code_imports_is_required():
    known = {"accelerate", "polars", "psutil", "sentence_transformers", "transformers"}
    assert {name.partition(">")[0].replace("-", "_") for name in OF_EXPORTED_CODE} == known
    brought = {"torch", "numpy", "huggingface_hub", "regex", "safetensors", "yaml"}  # by what is known
    optional = {"faiss", "gguf", "peft"}
    source = Path(allmrec_hf.__file__).parent
    found = set()
    for name in needed_modules(_CLASSES):
        for node in ast.walk(ast.parse((source / f"{name}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(str(node.module).split(".")[0])
            elif isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
    assert found - set(sys.stdlib_module_names) <= known | brought | optional


def test_the_demo_checkpoint_carries_the_handler():
    demo = Path(allmrec_hf.DEMO_CHECKPOINT)
    assert (demo / "handler.py").read_text() == HANDLER
    assert (demo / "requirements.txt").read_text() == "allmrec-hf\n"
