"""FAISS, usearch and pgvector: the files find the same ten items as this package, under the same ids."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from allmrec_hf import ALLMRecError, DataError, ItemCatalog
from allmrec_hf.exporting.export_checkpoint import ExportOptions, export_model
from allmrec_hf.exporting.export_record import RECORD_FILE
from allmrec_hf.exporting.item_vectors import VectorTable, ranked_users
from allmrec_hf.exporting.pgvector_files import read_vectors, vector_texts, write_pgvector
from allmrec_hf.exporting.vector_indexes import ExportedIndex
from tests.tiny import tiny_model, tiny_processor

RANKERS = ("cf", "retrieval")
INDEXES = ("faiss", "usearch")


@pytest.fixture(scope="module")
def exports(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    for format in (*INDEXES, "pgvector"):
        if format != "pgvector":
            pytest.importorskip(format, reason="pip install 'allmrec-hf[vectors]' brings the indexes")
        export_model(world.model, world.processor, format, folder / format, world.users)
    return folder


@pytest.mark.parametrize("ranker", RANKERS)
@pytest.mark.parametrize("format", INDEXES)
def test_a_query_gives_the_same_ten_items_scores_and_titles(world, exports, format, ranker):
    compared = ranked_users(ranker, world.model, world.processor, world.histories)
    ids = world.processor.catalog.item_ids
    seen = [[ids[item - 1] for item in history] for history in world.histories]
    found = ExportedIndex(exports / format, ranker).recommend(compared.vectors, top_k=10, exclude=seen)
    ours = compared.ranker.retrieve(compared.users, 10)
    for row, items, scores in zip(found, ours.item_indices.tolist(), ours.scores.tolist(), strict=True):
        assert [one["item_id"] for one in row] == [ids[item - 1] for item in items]
        assert [one["title"] for one in row] == [world.processor.catalog.title(item) for item in items]
        assert [one["score"] for one in row] == pytest.approx(scores, abs=1e-5)  # usearch stores 1 - the product
        assert [one["rank"] for one in row] == list(range(1, 11))


def test_a_query_needs_users_of_the_right_width_and_an_index_that_there_is(world, exports):
    index = ExportedIndex(exports / "faiss", "retrieval")
    with pytest.raises(DataError, match=r"needs users \(B, 8\), got \(1, 5\)"):
        index.recommend(torch.zeros(1, 5))
    with pytest.raises(DataError, match="2 users but 1 lists"):
        index.recommend(torch.zeros(2, 8), exclude=[[]])
    with pytest.raises(ALLMRecError, match="no index of the ranker 'fusion'; it has cf, retrieval"):
        ExportedIndex(exports / "faiss", "fusion")
    with pytest.raises(ALLMRecError, match="is an export for pgvector"):
        ExportedIndex(exports / "pgvector")
    with pytest.raises(ALLMRecError, match=RECORD_FILE):
        ExportedIndex(exports)


def test_a_file_that_was_changed_or_is_not_of_the_export_is_not_read(exports, tmp_path):
    for format in INDEXES:
        folder = tmp_path / format
        shutil.copytree(exports / format, folder)
        index, record = folder / f"cf.{format}", json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
        index.write_bytes(index.read_bytes()[:-1] + b"x")
        with pytest.raises(ALLMRecError, match="is not the file that was exported"):
            ExportedIndex(folder, "cf")
        index.unlink()
        with pytest.raises(ALLMRecError, match="cannot be read"):
            ExportedIndex(folder, "cf")
        for change in ({"file": "../../cf"}, {"file": None}, {"width": "wide"}):
            parts = [{**record["parts"][0], **change}]
            (folder / RECORD_FILE).write_text(json.dumps({**record, "parts": parts}), encoding="utf-8")
            with pytest.raises(ALLMRecError, match="export it again"):
                ExportedIndex(folder, "cf")
        for text in ("{", "[]", json.dumps({**record, "parts": 3}), json.dumps({**record, "export_version": "x"})):
            (folder / RECORD_FILE).write_text(text, encoding="utf-8")
            with pytest.raises(ALLMRecError, match="is damaged"):
                ExportedIndex(folder, "cf")
        (folder / RECORD_FILE).write_text(json.dumps({**record, "export_version": 2}), encoding="utf-8")
        with pytest.raises(ALLMRecError, match="newer version"):
            ExportedIndex(folder, "cf")


def test_where_all_items_are_excluded_nothing_is_found(world, exports):
    everything = [world.processor.catalog.item_ids]
    for format in INDEXES:
        assert ExportedIndex(exports / format, "cf").recommend(torch.ones(1, 16), exclude=everything) == [[]]


def test_the_record_names_files_digests_and_the_gate(exports):
    record = json.loads((exports / "faiss" / RECORD_FILE).read_text(encoding="utf-8"))
    assert [part["name"] for part in record["parts"]] == list(RANKERS)
    assert all(part["gate"]["overlap"] == 1 and part["gate"]["users"] == 30 for part in record["parts"])
    assert set(record["files"]) == {"cf.faiss", "retrieval.faiss", "items.parquet"}
    assert record["versions"]["faiss-cpu"]


def test_the_same_model_gives_the_same_bytes(world, exports, tmp_path):
    for format in (*INDEXES, "pgvector"):
        export_model(world.model, world.processor, format, tmp_path / format, world.users)
        for path in sorted((exports / format).iterdir()):
            assert path.read_bytes() == (tmp_path / format / path.name).read_bytes(), path.name


def test_vectors_written_as_text_come_back_to_the_last_bit(tmp_path):
    table = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    table[0] = [0.1, 1e-30, -1e30, 3.4028235e38, 1.1754944e-38, 1e-45, -0.0]
    path = tmp_path / "rows"
    path.write_text("".join(f"1\ta\tb\t{text}\n" for text in vector_texts(table)), encoding="utf-8")
    assert read_vectors(path).tobytes() == table.tobytes()


def test_a_backbone_without_dot_products_is_refused(tmp_path):
    from allmrec_hf import ALLMRecConfig, ALLMRecModel, NCFConfig
    from allmrec_hf.exporting.export_users import ExportUser

    config = ALLMRecConfig(cf_config=NCFConfig(num_items=40, hidden_size=8), joint_dim=8, text_dim=12)
    with pytest.raises(ALLMRecError, match="NCFModel does not score by dot product"):
        export_model(ALLMRecModel(config).eval(), tiny_processor(), "pgvector", tmp_path / "out", [ExportUser([1])])
    assert list(tmp_path.iterdir()) == []


def test_a_table_that_is_not_finite_is_refused_by_its_item(tmp_path):
    from allmrec_hf.exporting.export_users import ExportUser

    model = tiny_model(None)
    with torch.no_grad():
        model.cf_encoder.item_embedding.weight[7, 3] = float("inf")
    with pytest.raises(DataError, match="vector of item 7 of the ranker cf"):
        export_model(model, tiny_processor(), "pgvector", tmp_path / "out", [ExportUser([1])])


def test_a_gate_that_is_not_passed_leaves_no_file(world, tmp_path, monkeypatch):
    right = VectorTable.of

    def reversed_rows(ranker):
        table = right(ranker)
        return VectorTable(table.name, np.ascontiguousarray(table.vectors[::-1]))

    monkeypatch.setattr(VectorTable, "of", reversed_rows)
    with pytest.raises(ALLMRecError, match=r"refused, and nothing was written: .*top-10 overlap 0\.\d{4} on 30 users"):
        export_model(world.model, world.processor, "pgvector", tmp_path / "out", world.users)
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_export_is_replaced_only_when_asked_and_other_folders_never(world, exports, tmp_path):
    shutil.copytree(exports / "pgvector", tmp_path / "out")
    with pytest.raises(DataError, match="is not empty"):
        export_model(world.model, world.processor, "pgvector", tmp_path / "out", world.users)
    export_model(world.model, world.processor, "pgvector", tmp_path / "out", world.users, True, ExportOptions(("cf",)))
    assert not (tmp_path / "out" / "retrieval.copy").exists()
    (tmp_path / "out" / RECORD_FILE).unlink()
    with pytest.raises(DataError, match="no earlier result"):
        export_model(world.model, world.processor, "pgvector", tmp_path / "out", world.users, overwrite=True)


def test_ids_and_titles_stay_on_their_line_whatever_they_hold(tmp_path):
    records = [{"item_id": f"I{i}", "title": f"Film {i}"} for i in range(1, 41)]
    records[0] = {"item_id": "a\\b'c\"", "title": "x\ty\nz\r\\.\\N"}
    processor = tiny_processor(ItemCatalog(records))
    compared = ranked_users("cf", tiny_model(None), processor, [[1, 2], [3]])
    write_pgvector(tmp_path, VectorTable.of(compared.ranker), processor.catalog, compared)
    lines = Path(tmp_path / "cf.copy").read_text(encoding="utf-8").split("\n")
    assert len(lines) == 41
    assert lines[0].split("\t")[:2] == ["1", "a\\\\b'c\""]
    assert len(lines[0].split("\t")) == 4


def test_what_postgresql_cannot_hold_is_refused(tmp_path):
    records = [{"item_id": f"I\x00{i}" if i == 3 else f"I{i}", "title": f"Film {i}"} for i in range(1, 41)]
    processor = tiny_processor(ItemCatalog(records))
    compared = ranked_users("cf", tiny_model(None), processor, [[1, 2]])
    with pytest.raises(DataError, match="NUL"):
        write_pgvector(tmp_path, VectorTable.of(compared.ranker), processor.catalog, compared)
    wide = VectorTable("cf", np.zeros((40, 16_001), dtype=np.float32))
    with pytest.raises(DataError, match="up to 16000 numbers; those of cf have 16001"):
        write_pgvector(tmp_path, wide, processor.catalog, compared)
