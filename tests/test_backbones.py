"""Every backbone of the package under A-LLMRec, by name alone."""

import subprocess
import sys

import pytest
import torch
from transformers import AutoModel

from allmrec_hf import ALLMRecConfig, ALLMRecModel
from allmrec_hf.cf_encoder import BUILT_IN, build_cf_encoder
from allmrec_hf.histories import pad_histories

EXPORTED = """
import sys
sys.modules["allmrec_hf"] = None  # the package is not there
import torch
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
items = model.retrieve(torch.tensor([[0, 3, 5, 7]]), torch.tensor([[False, True, True, True]]), top_k=4).item_indices
print(items.tolist())
"""


def model_of(model_type):
    torch.manual_seed(0)
    backbone = build_cf_encoder({"model_type": model_type, "num_items": 30, "hidden_size": 8, "max_history_length": 6})
    for parameter in backbone.parameters():
        parameter.data.mul_(5)  # fresh weights are so small that scores would be equal but for rounding
    config = ALLMRecConfig(cf_config=backbone.config, joint_dim=4, text_dim=6)
    model = ALLMRecModel(config)
    model.cf_encoder.load_state_dict(backbone.state_dict())
    return model.eval()


@pytest.mark.parametrize("model_type", BUILT_IN)
def test_a_model_on_any_backbone_survives_saving_and_takes_new_items(model_type, tmp_path):
    model = model_of(model_type)
    item_ids, mask = pad_histories([[3, 5, 7], [9]], 6)
    before = model.retrieve(item_ids, mask, top_k=5)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded.cf_encoder) is type(model.cf_encoder)
    after = loaded.retrieve(item_ids, mask, top_k=5)
    assert after.item_indices.equal(before.item_indices)
    loaded.cf_encoder.append_items(torch.randn(2, 8))
    users = loaded.cf_encoder.encode_users(*pad_histories([[31, 32]], 6))  # a history of new items alone
    assert users.isfinite().all()
    assert loaded.cf_encoder.score(users).shape == (1, 33)


@pytest.mark.parametrize("model_type", ["allmrec-lightgcn", "allmrec-ncf", "allmrec-ligr"])
def test_exported_code_of_a_backbone_works_without_the_package(model_type, tmp_path):
    model = model_of(model_type)
    model.save_pretrained(tmp_path / "model", export_code=True)
    expected = model.retrieve(torch.tensor([[0, 3, 5, 7]]), torch.tensor([[False, True, True, True]]), top_k=4)
    result = subprocess.run(
        [sys.executable, "-c", EXPORTED, str(tmp_path / "model")],
        capture_output=True,
        text=True,
        env={"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "PATH": ""},
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.strip().splitlines()[-1] == str(expected.item_indices.tolist())
