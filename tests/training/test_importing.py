"""Weights of other programs: read without running their files, renamed, and put in the catalogue's order."""

from __future__ import annotations

import argparse
import io
import json
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from allmrec_hf.catalog import ItemCatalog
from allmrec_hf.cf_encoder import BUILT_IN, build_cf_encoder
from allmrec_hf.errors import ALLMRecError, CheckpointError, DataError
from allmrec_hf.histories import pad_histories
from allmrec_hf.training.importing import import_backbone, read_item_ids
from allmrec_hf.training.pretrained_backbone import fit_to_catalog
from allmrec_hf.training.torch_archive import TorchArchive

PARITY = Path(__file__).parents[1] / "parity"
RECBOLE = PARITY / "recbole_sasrec.pth"
TOKENS = json.loads((PARITY / "recbole_sasrec.json").read_text())["tokens"]


def catalog_of(ids):
    return ItemCatalog.from_records([{"item_id": item_id} for item_id in ids])


@pytest.fixture
def ids(tmp_path):
    path = tmp_path / "ids.json"
    path.write_text(json.dumps(TOKENS))
    return path


# -- the file is read, never run


class Marks:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("place", ["config", "state_dict", "tensor"])
def test_a_file_that_runs_code_when_unpickled_runs_none_here(tmp_path, ids, place):
    marker, file = tmp_path / "marker", tmp_path / "evil.pth"
    state: OrderedDict[str, object] = OrderedDict()
    content = {"config": {"final_config_dict": {}}, "state_dict": state}
    if place == "tensor":
        state["item_embedding.weight"] = Marks(marker)
    else:
        content[place] = Marks(marker)
    torch.save(content, file)
    with pytest.raises(CheckpointError):
        import_backbone("recbole", file, catalog_of(TOKENS[1:]), ids)
    with pytest.raises(CheckpointError):
        import_backbone("authors", file, catalog_of(TOKENS[1:]), ids, num_heads=1)
    assert not marker.exists()
    torch.load(file, weights_only=False)  # what the file was made for
    assert marker.exists()


def test_code_beside_whole_weights_is_passed_over(tmp_path):
    marker, file = tmp_path / "marker", tmp_path / "evil.pth"
    torch.save({"evil": Marks(marker), "state_dict": {"weight": torch.arange(3.0)}}, file)
    archive = TorchArchive(file)
    assert archive.tensors(archive.content["state_dict"])["weight"].tolist() == [0, 1, 2]
    assert not marker.exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tensors_equal_those_of_torch(tmp_path, protocol):
    table = torch.randn(6, 4)
    state = OrderedDict(
        whole=table,
        transposed=table.T,
        part=table[2:4, 1:],
        row=table[0].expand(1, 4),
        parameter=torch.nn.Parameter(torch.randn(2, 2)),
        scalar=torch.tensor(3),
        empty=torch.zeros(0, 4),
        half=torch.randn(3).half(),
        bfloat=torch.randn(3).bfloat16(),
        mask=torch.tensor([True, False]),
    )
    torch.save(
        {"state_dict": state, "other": [None, (1, 2.5, "a"), {3}, b"x"]}, tmp_path / "x.pt", pickle_protocol=protocol
    )
    archive = TorchArchive(tmp_path / "x.pt")
    found = archive.tensors(archive.content["state_dict"])
    assert list(found) == list(state)
    for name, value in state.items():
        torch.testing.assert_close(found[name], value.detach(), rtol=0, atol=0)


class Stored:
    """The storage of a crafted tensor."""


class Rebuilt:
    """A tensor with a shape of one's choice over four numbers."""

    def __init__(self, *shape):
        self.shape = shape

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (Stored(), *self.shape, False, OrderedDict())


class Crafting(pickle.Pickler):
    def persistent_id(self, value):
        return ("storage", torch.FloatStorage, "0", "cpu", 4) if isinstance(value, Stored) else None


def crafted(path, *shape, compression=zipfile.ZIP_STORED):
    program = io.BytesIO()
    Crafting(program, protocol=2).dump({"weight": Rebuilt(*shape)})
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x/data.pkl", program.getvalue())
        archive.writestr("x/data/0", torch.arange(4.0).numpy().tobytes())
    return path


def test_a_crafted_tensor_within_its_bytes_is_read(tmp_path):
    archive = TorchArchive(crafted(tmp_path / "x.pt", 1, (3,), (1,)))
    assert archive.tensors(archive.content)["weight"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(0, (5,), (1,)), (2, (3,), (1,)), (0, (10**12,), (0,)), (0, (2, 2), (3, 1)), (-1, (2,), (1,)), (0, (2,), (1, 1))],
)
def test_a_tensor_outside_its_bytes_is_refused(tmp_path, offset, size, stride):
    archive = TorchArchive(crafted(tmp_path / "x.pt", offset, size, stride))
    with pytest.raises(CheckpointError, match="'weight'"):
        archive.tensors(archive.content)


def test_files_of_other_formats_are_refused(tmp_path):
    legacy, text, other, cut = (tmp_path / name for name in ("old.pt", "text.pt", "other.zip", "cut.pt"))
    torch.save({"a": torch.ones(2)}, legacy, _use_new_zipfile_serialization=False)
    text.write_text("item_id\n")
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("readme", "nothing")
    cut.write_bytes(RECBOLE.read_bytes()[:20_000])
    for path in (legacy, text, cut):
        with pytest.raises(CheckpointError, match=r"cannot be read as a file of torch\.save"):
            TorchArchive(path)
    with pytest.raises(CheckpointError, match=r"without data\.pkl"):
        TorchArchive(other)
    with pytest.raises(CheckpointError, match="compressed parts"):
        TorchArchive(crafted(tmp_path / "x.pt", 0, (4,), (1,), compression=zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02}",
        b"\x80\x02h\x05.",
        b"\x80\x02)R.",
        b"\x80\x02(u.",
        b"\x80\x02(i__main__\nX\n.",
        b".",
    ],
)
def test_a_damaged_program_is_refused(tmp_path, program):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", program)
    with pytest.raises(CheckpointError):
        TorchArchive(tmp_path / "x.pt")


# -- the layout of the published program


def published(tmp_path, state=None, **arguments):
    """Save the weights of the parity data as the published program does; return file, ids and numbers."""
    numbers = load_file(PARITY / "sasrec.safetensors")
    state = state or {k.removeprefix("weight."): v for k, v in numbers.items() if k.startswith("weight.")}
    values = {"hidden_units": 20, "num_blocks": 2, "num_heads": 1, "maxlen": 15, "dropout_rate": 0.5, **arguments}
    settings = {"user_num": 9, "item_num": 130, "args": argparse.Namespace(**values)}
    torch.save([settings, OrderedDict(state)], tmp_path / "authors.pth")
    (tmp_path / "rows.tsv").write_text("".join(f"A{row}\t{row}\n" for row in range(130, 0, -1)))
    return tmp_path / "authors.pth", tmp_path / "rows.tsv", numbers


@torch.no_grad()
def test_states_equal_those_of_the_published_program_whatever_the_order_of_the_catalogue(tmp_path):
    file, rows, numbers = published(tmp_path)
    order = torch.randperm(130, generator=torch.Generator().manual_seed(1)) + 1
    model = import_backbone("authors", file, catalog_of([f"A{row}" for row in order.tolist()]), rows).cf_encoder
    index_of = torch.zeros(131, dtype=torch.long)
    index_of[order] = torch.arange(1, 131)
    history = numbers["input.history"]
    states = model.sequence_states(index_of[history])
    real = history != 0
    torch.testing.assert_close(states[real], numbers["output.states"][real], rtol=1e-4, atol=1e-5)
    assert (model.config.num_layers, model.config.num_heads, model.config.max_history_length) == (2, 1, 15)


def test_a_bare_state_dict_needs_the_number_of_heads(tmp_path):
    file, rows, numbers = published(tmp_path)
    state = {k.removeprefix("weight."): v for k, v in numbers.items() if k.startswith("weight.")}
    torch.save(state, file)
    catalog = catalog_of([f"A{row}" for row in range(1, 131)])
    with pytest.raises(CheckpointError, match="pass --num-heads"):
        import_backbone("authors", file, catalog, rows)
    assert import_backbone("authors", file, catalog, rows, num_heads=2).cf_encoder.config.num_heads == 2


def test_checkpoints_of_other_models_are_refused(tmp_path, ids):
    file, rows, _ = published(tmp_path, maxlen=14)
    catalog = catalog_of([f"A{row}" for row in range(1, 131)])
    with pytest.raises(CheckpointError, match="15 positions for histories of 14 items"):
        import_backbone("authors", file, catalog, rows)
    with pytest.raises(
        CheckpointError, match=r"is no checkpoint of RecBole: .*; for the published program's, use --source authors"
    ):
        import_backbone("recbole", file, catalog, rows)
    with pytest.raises(CheckpointError, match="is a checkpoint of RecBole; use --source recbole"):
        import_backbone("authors", RECBOLE, catalog, rows)
    torch.save({"gru.weight": torch.ones(2)}, file)
    with pytest.raises(CheckpointError, match=r"holds no SASRec of the published program: .* tensors are missing"):
        import_backbone("authors", file, catalog, rows)
    torch.save({"state_dict": {}, "config": {"final_config_dict": {"model": "GRU4Rec"}}}, file)
    with pytest.raises(CheckpointError, match="holds RecBole's GRU4Rec; only its SASRec"):
        import_backbone("recbole", file, catalog, ids)
    with pytest.raises(ALLMRecError, match="unknown source 'other' of weights; known are recbole, authors"):
        import_backbone("other", file, catalog, ids)


# -- item ids


def write_ids(path, form):
    rows = list(enumerate(TOKENS))
    if form == "list.json":
        path.write_text(json.dumps(TOKENS))
    elif form == "short.json":
        path.write_text(json.dumps(TOKENS[1:]))
    elif form == "mapping.json":
        path.write_text(json.dumps({token: row for row, token in reversed(rows)}))
    elif form == "list.txt":
        path.write_text("\n".join(TOKENS) + "\n")
    elif form == "rows.tsv":
        path.write_text("\n".join(f"{token}\t{row}" for row, token in reversed(rows)))
    elif form == "list.parquet":
        pl.DataFrame({"item_id": TOKENS}).write_parquet(path)
    else:
        pl.DataFrame({"row": range(30, 0, -1), "item_id": TOKENS[:0:-1]}).write_parquet(path)


FORMS = ["list.json", "short.json", "mapping.json", "list.txt", "rows.tsv", "list.parquet", "rows.parquet"]


@pytest.mark.parametrize("form", FORMS)
def test_item_ids_come_in_several_forms(tmp_path, form):
    write_ids(tmp_path / form, form)
    assert read_item_ids(tmp_path / form, 30) == TOKENS[1:]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("ids.json", '["a", "b"]', "lists 2 item ids for an item table of 3 items"),
        ("ids.json", '{"a": 4}', r"gives the item 'a' the row 4; the item table has rows 1\.\.3"),
        ("ids.json", '{"a": 1.5}', r"the row 1\.5"),
        ("ids.json", '{"a": 1, "b": 1}', "gives the row 1 to two items, 'a' and 'b'"),
        ("ids.json", '["a", "b", "a"]', r"holds item ids more than once: \['a'\]"),
        ("ids.json", "3", "neither a list of ids nor a mapping"),
        ("ids.json", "[", "cannot be read"),
        ("ids.tsv", "a\tone\n", "cannot be read"),
        ("ids.parquet", "a", "cannot be read"),
    ],
)
def test_bad_item_ids_are_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_item_ids(tmp_path / name, 3)


@pytest.mark.parametrize(
    ("source", "told"), [("recbole", r"field2id_token\[\"item_id\"\]"), ("authors", "item_id<TAB>row")]
)
def test_without_item_ids_the_way_to_them_is_told(source, told):
    with pytest.raises(DataError, match=told):
        import_backbone(source, RECBOLE, catalog_of(TOKENS[1:]), None)


def test_a_checkpoint_that_is_not_there_is_named_before_item_ids_are_asked_for(tmp_path):
    for path, told in (
        (tmp_path / "gone.pth", "there is no file .*gone.pth"),
        (tmp_path, "is a folder; give the file"),
    ):
        with pytest.raises(CheckpointError, match=told):
            import_backbone("recbole", path, catalog_of(TOKENS[1:]), None)


def test_missing_items_are_counted_named_and_refused_unless_they_are_to_be_cold(ids, caplog):
    catalog = catalog_of([*TOKENS[10:0:-1], *(f"N{number}" for number in range(7))])
    with pytest.raises(
        DataError, match=r"has 30 items and the data's catalogue 17, of which 7 are missing there: \['N0',"
    ):
        import_backbone("recbole", RECBOLE, catalog, ids)
    model, missing, dropped = import_backbone("recbole", RECBOLE, catalog, ids, missing_items="zeros")
    assert (missing, dropped) == ([f"N{number}" for number in range(7)], 20)
    assert "has 20 items that the data's catalogue lacks" in caplog.text
    whole = import_backbone("recbole", RECBOLE, catalog_of(TOKENS[1:]), ids).cf_encoder
    table = whole.item_embeddings
    torch.testing.assert_close(model.item_embeddings[1:11], table[1:11].flip(0), rtol=0, atol=0)
    assert not model.item_embeddings[[0, *range(11, 18)]].any()
    with pytest.raises(DataError, match="of which 2 are missing"):
        import_backbone("recbole", RECBOLE, catalog_of(["N0", "N1"]), ids, missing_items="zeros")


@pytest.mark.parametrize("model_type", BUILT_IN)
@torch.no_grad()
def test_every_backbone_scores_the_same_after_its_items_changed_places(model_type):
    torch.manual_seed(0)
    model = build_cf_encoder({"model_type": model_type, "num_items": 12, "hidden_size": 8, "max_history_length": 6})
    names = [f"I{number}" for number in range(1, 13)]
    order = torch.randperm(12) + 1
    model, (fitted, missing, dropped) = model.eval(), fit_to_catalog(model, names, catalog_of([f"I{i}" for i in order]))
    assert (missing, dropped) == ([], 0)
    index_of = torch.zeros(13, dtype=torch.long)
    index_of[order] = torch.arange(1, 13)
    item_ids, mask = pad_histories([[1, 5, 12, 3], [7]], 6)
    before = model.score(model.encode_users(item_ids, mask))
    assert before[:, 1:].std() > 0
    after = fitted.score(fitted.encode_users(index_of[item_ids], mask))
    torch.testing.assert_close(after[:, index_of[1:]], before[:, 1:], rtol=1e-5, atol=1e-6)
    fewer = fit_to_catalog(model, names, catalog_of(names[:5])).cf_encoder
    assert (fewer.num_items, fewer.config.num_items) == (5, 5)
