"""RecBole's SASRec computes what RecBole computes."""

import json
from pathlib import Path

import torch

from allmrec_hf.catalog import ItemCatalog
from allmrec_hf.histories import pad_histories
from allmrec_hf.training.importing import import_backbone

PARITY = Path(__file__).parent / "parity"


@torch.no_grad()
def test_users_and_scores_equal_those_of_recbole(tmp_path):
    """The checkpoint and the numbers are RecBole 1.2.1's own; see scripts/make_recbole_fixture.py."""
    computed = json.loads((PARITY / "recbole_sasrec.json").read_text())
    (tmp_path / "ids.json").write_text(json.dumps(computed["tokens"]))
    catalog = ItemCatalog.from_records([{"item_id": token} for token in computed["tokens"][1:]])
    model = import_backbone("recbole", PARITY / "recbole_sasrec.pth", catalog, tmp_path / "ids.json").cf_encoder
    users = model.encode_users(*pad_histories(computed["histories"], 8))
    torch.testing.assert_close(users, torch.tensor(computed["users"]), rtol=1e-5, atol=1e-5)
    expected = torch.tensor(computed["scores"])[:, 1:]  # row 0 is padding, which RecBole scores too
    torch.testing.assert_close(model.score(users)[:, 1:], expected, rtol=1e-5, atol=1e-5)
