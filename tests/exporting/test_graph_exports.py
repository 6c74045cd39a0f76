"""ONNX and OpenVINO: the graphs rank as this package does, for any number of users, and what is no graph is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from allmrec_hf import ALLMRecConfig, ALLMRecError, ALLMRecModel
from allmrec_hf.cf_encoder import build_cf_encoder
from allmrec_hf.exporting.export_checkpoint import ExportOptions, export_model
from allmrec_hf.exporting.export_users import ExportUser
from allmrec_hf.exporting.graph_export import item_inputs
from allmrec_hf.exporting.graph_parts import BackboneGraph, RetrievalItemGraph, TextEncoderGraph
from allmrec_hf.exporting.graph_runtimes import RUNTIMES, OnnxGraphs
from allmrec_hf.histories import pad_histories
from allmrec_hf.ranker_retrieval import RetrievalRanker
from tests.tiny import tiny_processor

FORMATS = {"onnx": "onnxruntime", "openvino": "openvino"}
EXTRA = "pip install 'allmrec-hf[{}]' brings the runtime"
TOLERANCE = 1e-5  # of float32, summed in another order


@pytest.fixture(scope="module", params=FORMATS)
def exported(request, world, tmp_path_factory):
    """Return the format, the folder and what runs a graph of it."""
    for package in (*(("onnx", "onnxscript") if request.param == "onnx" else ()), FORMATS[request.param]):
        pytest.importorskip(package, reason=EXTRA.format(request.param))
    pytest.importorskip("transformers.exporters", reason=EXTRA.format(request.param))
    folder = tmp_path_factory.mktemp("graphs") / request.param
    export_model(world.model, world.processor, request.param, folder, world.users)
    runtime = RUNTIMES[request.param]
    return request.param, folder, lambda name: runtime.open(folder / f"{name}{runtime.suffix}")


def padded(histories, length):
    item_ids = np.zeros((len(histories), length), dtype=np.int64)
    found = pad_histories(histories, length)[0].numpy()
    item_ids[:, length - found.shape[1] :] = found
    return item_ids


def test_the_backbone_gives_users_and_scores_for_any_number_of_them(world, exported):
    run, encoder = exported[2]("backbone"), world.model.cf_encoder
    item_ids, mask = pad_histories(world.histories, 12)
    users = encoder.encode_users(item_ids, mask)
    for count in (1, 2, 7, 30):
        found = run({"item_ids": padded(world.histories, 12)[:count]})
        np.testing.assert_allclose(found["user_representation"], users[:count].detach(), atol=TOLERANCE)
        assert np.isneginf(found["scores"][:, 0]).all()
        scores = encoder.score(users[:count])[:, 1:].detach()
        np.testing.assert_allclose(found["scores"][:, 1:], scores, atol=TOLERANCE)


def test_a_new_items_text_comes_to_the_vector_that_add_items_gives_it(world, exported):
    from tokenizers import Tokenizer

    _, folder, run = exported
    text = "Lonely Harbor, a quiet film of the sea"
    tokenizer = Tokenizer.from_file(str(folder / "text_tokenizer.json"))
    ids = np.array([tokenizer.encode(text, add_special_tokens=False).ids], dtype=np.int64)
    embedding = run("text_encoder")({"input_ids": ids, "attention_mask": np.ones_like(ids)})["text_embedding"]
    ours = world.model.text_encoder.encode([text], convert_to_tensor=True).clone()
    np.testing.assert_allclose(embedding, ours, atol=TOLERANCE)
    found = run("new_item")({"text_embedding": embedding})
    joint = world.model.aligner.encode_texts(ours)
    np.testing.assert_allclose(found["joint_embedding"], joint.detach(), atol=TOLERANCE)
    np.testing.assert_allclose(
        found["item_embedding"], world.model.aligner.decode_items(joint).detach(), atol=TOLERANCE
    )


def test_padding_of_texts_changes_no_embedding(exported):
    run = exported[2]("text_encoder")
    alone = run({"input_ids": np.array([[5, 6]]), "attention_mask": np.array([[1, 1]])})["text_embedding"]
    both = run(
        {"input_ids": np.array([[5, 6, 0, 0], [7, 8, 9, 4]]), "attention_mask": np.array([[1, 1, 0, 0], [1] * 4])}
    )
    np.testing.assert_allclose(both["text_embedding"][:1], alone, atol=TOLERANCE)


def test_the_item_side_of_the_ranker_retrieval_makes_its_vectors(world, exported):
    ranker = RetrievalRanker(world.model, world.processor)
    run, table = exported[2]("retrieval_item"), ranker.item_table()
    for items in ([3], [1, 2, 3, 4, 40]):
        found = run(item_inputs(ranker, items))["item_vector"]
        np.testing.assert_allclose(found, table[items], atol=TOLERANCE)


def test_the_tables_are_those_of_the_model(world, exported):
    tables = load_file(exported[1] / "item_tables.safetensors")
    every = torch.arange(41)
    expected = {
        "cf_item_embeddings": world.model.cf_encoder.item_embeddings,
        "joint_embeddings": world.model.item_vectors(every),
        "retrieval_item_vectors": world.model.retrieval_head.item_vectors,
    }
    assert set(tables) == set(expected)
    for name, table in expected.items():
        np.testing.assert_array_equal(tables[name], table.detach())
    items = json.loads((exported[1] / "items.json").read_text(encoding="utf-8"))
    assert items == [[f"I{i}", world.processor.catalog.title(i)] for i in range(1, 41)]


def test_the_record_says_how_graphs_are_called_and_how_they_were_checked(exported):
    record = json.loads((exported[1] / "export.json").read_text(encoding="utf-8"))
    parts = {part["name"]: part for part in record["parts"]}
    assert set(parts) == {"backbone", "text_encoder", "new_item", "retrieval_item"}
    assert parts["backbone"]["inputs"] == [{"name": "item_ids", "shape": ["batch", 12], "dtype": "int64"}]
    assert parts["backbone"]["outputs"] == [
        {"name": "user_representation", "shape": ["batch", 16], "dtype": "float32"},
        {"name": "scores", "shape": ["batch", 41], "dtype": "float32"},
    ]
    assert parts["text_encoder"]["inputs"][0]["shape"] == ["batch", "tokens"]
    assert parts["retrieval_item"]["outputs"] == [{"name": "item_vector", "shape": ["batch", 8], "dtype": "float32"}]
    assert all(part["gate"]["overlap"] == 1 and part["gate"]["users"] == 30 for part in parts.values())
    assert all(Path(part["file"]).name in record["files"] for part in parts.values())


def test_the_example_needs_nothing_but_its_runtime(world, exported):
    folder = exported[1]
    history, text = [1, 2, 3], "Lonely Harbor, a quiet film of the sea"
    code = (
        "import json, runpy, sys; found = runpy.run_path(sys.argv[1]);"
        "print(json.dumps([found['recommend'](sys.argv[3:], 10), found['score_of_new_item'](sys.argv[2], sys.argv[3:]),"
        "sorted({'torch', 'transformers', 'allmrec_hf', 'sentence_transformers'} & set(sys.modules))]))"
    )
    ids = [f"I{item}" for item in history]
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder / "example.py"), text, *ids],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found, score, loaded = json.loads(done.stdout)
    assert loaded == []
    tensors = world.processor.history_tensors([history])
    ours = world.model.retrieve(**tensors, top_k=10)
    assert [item_id for item_id, _ in found] == [f"I{item}" for item in ours.item_indices[0].tolist()]
    assert [value for _, value in found] == pytest.approx(ours.scores[0].tolist(), abs=TOLERANCE)
    joint = world.model.aligner.encode_texts(world.model.text_encoder.encode([text], convert_to_tensor=True).clone())
    user = world.model.encode_users(tensors["history_ids"], tensors["history_mask"])
    assert score == pytest.approx(float((user @ world.model.aligner.decode_items(joint).T).detach()), abs=TOLERANCE)
    printed = subprocess.run(
        [sys.executable, str(folder / "example.py"), *ids], capture_output=True, text=True, check=True
    )
    assert [line.split("\t")[0] for line in printed.stdout.splitlines()] == [item_id for item_id, _ in found]


SIGNALLED = """
import gc, os, pathlib, signal, sys
from allmrec_hf.exporting.graph_runtimes import RUNTIMES

first, second = (RUNTIMES[sys.argv[1]].open(pathlib.Path(sys.argv[2])) for _ in range(2))
del first
gc.collect()
del second
gc.collect()
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_signal_reaches_its_handler_after_graphs_have_gone(exported):
    name, folder, _ = exported
    file = folder / f"backbone{RUNTIMES[name].suffix}"
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED, name, str(file)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_graphs_that_rank_otherwise_are_refused_with_the_number_and_leave_nothing(
    world, exported, tmp_path, monkeypatch
):
    format, folder, open_graph = exported
    record = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    run = open_graph("backbone")

    def another(*_):
        return lambda inputs: {"scores": np.roll(run(inputs)["scores"], 1, axis=1)}

    monkeypatch.setattr(type(RUNTIMES[format]), "write", lambda *_: record["parts"][0])  # it takes seconds
    monkeypatch.setattr(type(RUNTIMES[format]), "open", another)
    with pytest.raises(ALLMRecError, match=rf"the graph backbone in {format}: top-10 overlap 0\.\d{{4}} on 30"):
        export_model(
            world.model, world.processor, format, tmp_path / "out", world.users, options=ExportOptions(("cf",))
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("backbone", ["sasrec", "ligr", "bsarec", "hstu", "gru4rec", "nextitnet", "recbole-sasrec"])
def test_sequential_backbones_are_traced_for_any_number_of_users(backbone):
    torch.manual_seed(0)
    encoder = build_cf_encoder({"model_type": backbone, "num_items": 30, "hidden_size": 8, "max_history_length": 6})
    graph = BackboneGraph(encoder.eval()).eval()
    item_ids = torch.tensor([[0, 0, 0, 4, 5, 6], [1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 9]])
    batch = {"item_ids": {0: torch.export.Dim("batch", min=1)}}
    with torch.no_grad():
        traced = torch.export.export(graph, (), {"item_ids": item_ids}, dynamic_shapes=batch).module()
        for rows in ([0], [2, 1], [0, 1, 2, 0, 1]):
            found, expected = traced(item_ids=item_ids[rows]), graph(item_ids[rows])
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value)


@pytest.mark.parametrize("backbone", ["bprmf", "lightgcn", "ncf"])
def test_a_backbone_that_solves_for_its_users_is_refused(tmp_path, backbone):
    pytest.importorskip("onnxruntime", reason=EXTRA.format("onnx"))
    config = ALLMRecConfig(
        cf_config={"model_type": f"allmrec-{backbone}", "num_items": 40, "hidden_size": 8}, joint_dim=8, text_dim=12
    )
    with pytest.raises(
        ALLMRecError, match=r"by solving for it \(fold-in\), which is no graph of onnx; export its item"
    ):
        export_model(ALLMRecModel(config).eval(), tiny_processor(), "onnx", tmp_path / "out", [ExportUser([1])])
    assert list(tmp_path.iterdir()) == []


class DecidesByValues(nn.Module):
    """Stands for a backbone of somebody else's that no tracer can follow."""

    def forward(self, item_ids):
        return {"scores": item_ids.float() if int(item_ids.sum()) > 3 else item_ids.float() + 1}


class KnowsOneLength(nn.Module):
    """Stands for one that was written for the number of users at hand."""

    def forward(self, item_ids):
        return {"scores": item_ids.float() + torch.ones(len(item_ids), 1)}


@pytest.mark.parametrize("module", [DecidesByValues(), KnowsOneLength()])
def test_what_cannot_be_traced_for_any_batch_is_refused(tmp_path, module):
    pytest.importorskip("onnxscript", reason=EXTRA.format("onnx"))
    item_ids = {"item_ids": torch.ones(3, 4, dtype=torch.long)}
    with pytest.raises(ALLMRecError, match=r"backbone (cannot be|was) exported to onnx"):
        OnnxGraphs().write(module, item_ids, {"item_ids": {0: "batch"}}, tmp_path / "backbone")


def test_an_llm_of_another_dtype_or_that_reads_padding_is_refused(world):
    import copy

    model = copy.deepcopy(world.model)
    ranker = RetrievalRanker(model, world.processor)
    model.language_model.half()
    with pytest.raises(ALLMRecError, match=r"must be in float32 to be exported, and holds \['torch.float16'\]"):
        RetrievalItemGraph(ranker)
    model.pads_left = False
    with pytest.raises(ALLMRecError, match="does not read left-padded prompts"):
        RetrievalItemGraph(ranker)


def test_a_transformer_as_text_encoder_is_one_graph_with_its_pooling(tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=12, max_position_embeddings=32, **sizes)).save_pretrained(tmp_path / "bert")
    words = Tokenizer(WordLevel({"[UNK]": 0, "[PAD]": 1, **{w: i for i, w in enumerate("abcdefgh", 2)}}, "[UNK]"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(
        tmp_path / "bert"
    )
    transformer = Transformer(str(tmp_path / "bert"))
    encoder = SentenceTransformer(modules=[transformer, Pooling(16), Normalize()], device="cpu").eval()
    texts = ["a b c d e", "f g", "h"]
    features = encoder.preprocess(texts)
    inputs = {name: features[name] for name in ("input_ids", "attention_mask")}
    free = {name: {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO} for name in inputs}
    graph = TextEncoderGraph(encoder).eval()
    with torch.no_grad():
        traced = torch.export.export(graph, (), inputs, dynamic_shapes=free).module()
        found = traced(**inputs)["text_embedding"]
        alone = traced(**{name: value[1:2, :2] for name, value in inputs.items()})["text_embedding"]
    np.testing.assert_allclose(found, encoder.encode(texts), atol=TOLERANCE)
    np.testing.assert_allclose(alone, found[1:2], atol=TOLERANCE)
