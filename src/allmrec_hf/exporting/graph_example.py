"""The program beside exported graphs that calls them with the runtime alone."""

from __future__ import annotations

from pathlib import Path

EXAMPLE_FILE = "example.py"
_RUN = {
    "onnx": (
        "ONNX Runtime",
        "import onnxruntime",
        """\
    session = onnxruntime.InferenceSession(FOLDER / f"{graph}.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs)))""",
    ),
    "openvino": (
        "OpenVINO",
        """\
import openvino

CORE = openvino.Core()  # one for the process: with two that come and go, a signal ends it (OpenVINO 2026.4)""",
        """\
    compiled = CORE.compile_model(FOLDER / f"{graph}.xml", "CPU")
    found = compiled(inputs)
    return {output.any_name: found[output] for output in compiled.outputs}""",
    ),
}
_PROGRAM = '''\
"""Call the graphs of this folder with __NAME__ and NumPy alone.

python example.py ITEM_ID [ITEM_ID ...]    # a history, oldest first: ids and scores of the best items
python example.py --new TEXT ITEM_ID ...   # the score of a new item, "Title, Description", for that user
"""

import json
import sys
from pathlib import Path

import numpy as np
__IMPORT__

FOLDER = Path(__file__).resolve().parent
RECORD = json.loads((FOLDER / "export.json").read_text(encoding="utf-8"))
PARTS = {part["name"]: part for part in RECORD["parts"]}
ITEMS = json.loads((FOLDER / "items.json").read_text(encoding="utf-8"))  # [id, title] of item 1, 2, ...
ROWS = {item_id: row for row, (item_id, _) in enumerate(ITEMS, 1)}


def run(graph, inputs):
    """Return the named outputs of a graph; a service keeps the opened graph instead of opening it for every call."""
__RUN__


def user_of(history):
    """Return the backbone's outputs for item ids, oldest first: the user representation and the scores of all items."""
    length = PARTS["backbone"]["max_history_length"]
    rows = [ROWS[item_id] for item_id in history][-length:]
    item_ids = np.zeros((1, length), dtype=np.int64)  # left-padded with 0
    item_ids[0, length - len(rows) :] = rows
    return run("backbone", {"item_ids": item_ids})


def recommend(history, top_k=10):
    """Return (item id, score) of the best items, without those of the history."""
    scores = np.array(user_of(history)["scores"][0])
    scores[[0] + [ROWS[item_id] for item_id in history]] = -np.inf
    best = np.argsort(-scores, kind="stable")[:top_k]
    return [(ITEMS[row - 1][0], float(scores[row])) for row in best if scores[row] > -np.inf]


def score_of_new_item(text, history):
    """Return the score of an item that the table does not hold, by its text, for the user of a history."""
    from tokenizers import Tokenizer

    part = PARTS["text_encoder"]
    tokenizer = Tokenizer.from_file(str(FOLDER / part["tokenizer"]))
    ids = tokenizer.encode(part["prompt"] + text, add_special_tokens=part["add_special_tokens"]).ids or [0]
    input_ids = np.array([ids], dtype=np.int64)
    embedding = run("text_encoder", {"input_ids": input_ids, "attention_mask": np.ones_like(input_ids)})
    item = run("new_item", {"text_embedding": np.array(embedding["text_embedding"])})["item_embedding"]
    return float(user_of(history)["user_representation"][0] @ item[0])  # of backbones that score by dot product


if __name__ == "__main__":
    if sys.argv[1:2] == ["--new"]:
        sys.stdout.write(f"{score_of_new_item(sys.argv[2], sys.argv[3:]):.4f}\\n")
    else:
        for found, score in recommend(sys.argv[1:]):
            sys.stdout.write(f"{found}\\t{score:.4f}\\n")
'''


def write_example(folder: Path, format: str) -> None:
    """Write the program for `onnx` or `openvino`."""
    name, imported, run = _RUN[format]
    text = _PROGRAM.replace("__NAME__", name).replace("__IMPORT__", imported).replace("__RUN__", run)
    (folder / EXAMPLE_FILE).write_text(text, encoding="utf-8")
