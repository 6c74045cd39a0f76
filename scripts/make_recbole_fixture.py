"""Write tests/parity/recbole_sasrec.*: a checkpoint as RecBole saves it, and what RecBole computes from it.

Needs RecBole 1.2.1 (`pip install recbole`) in an environment of its own; the tests only read the files.

python scripts/make_recbole_fixture.py
"""

import json
import os
import tempfile
from pathlib import Path

import torch
from recbole.config import Config
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import Trainer

FOLDER = Path(__file__).resolve().parents[1] / "tests" / "parity"
NUM_ITEMS, LENGTH = 30, 8
HISTORIES = [[5, 9, 2, 7, 30], [3], [1, 2, 3, 4, 5, 6, 7, 8], [4, 4, 11]]
CHANGES = {"hidden_size": 16, "inner_size": 24, "MAX_ITEM_LIST_LENGTH": LENGTH, "use_gpu": False, "gpu_id": ""}


class Items:
    """What the model asks its dataset for."""

    def num(self, field: str) -> int:
        """Return the number of rows of the item table, padding included."""
        return NUM_ITEMS + 1


os.chdir(tempfile.mkdtemp())  # where RecBole leaves its logs
config = Config(model="SASRec", dataset="invented", config_dict={**CHANGES, "train_neg_sample_args": None})
torch.manual_seed(0)
model = SASRec(config, Items()).eval()
for parameter in model.parameters():  # fresh biases are zeros and fresh norms ones, which would hide them
    parameter.data += 0.3 * torch.randn_like(parameter)
trainer = Trainer(config, model)
trainer._save_checkpoint(0, verbose=False, saved_model_file=FOLDER / "recbole_sasrec.pth")

lengths = torch.tensor([len(history) for history in HISTORIES])
padded = torch.tensor([history + [0] * (LENGTH - len(history)) for history in HISTORIES])
with torch.no_grad():
    users = model(padded, lengths)
    scores = model.full_sort_predict({"item_id_list": padded, "item_length": lengths})
tokens = ["[PAD]", *(f"M{number:04d}" for number in range(NUM_ITEMS, 0, -1))]
outcome = {"tokens": tokens, "histories": HISTORIES, "users": users.tolist(), "scores": scores.tolist()}
(FOLDER / "recbole_sasrec.json").write_text(json.dumps(outcome) + "\n")
