"""Everything of the package that reads a file or a request, with valid files for each: for `random_bytes.py`."""

from __future__ import annotations

import gzip
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import allmrec_hf
from allmrec_hf.errors import ALLMRecError

DEMO = Path(allmrec_hf.DEMO_CHECKPOINT)


@dataclass(frozen=True)
class Reader:
    """Something that reads files.

    Attributes:
        make: Writes valid files into an empty folder.
        files: Those that are replaced, one at a time.
        read: Reads the folder.
        weight: Its share of the cases, beside 1 of the others.
    """

    make: Callable[[Path], None]
    files: tuple[str, ...]
    read: Callable[[Path], Any]
    weight: float = 1.0


# -- readers of data


def _world() -> Any:
    from allmrec_hf.data.synthetic import SyntheticWorld

    return SyntheticWorld(num_items=40, num_users=30)


def _rows() -> list[dict[str, Any]]:
    return _world().interactions().head(60).select("user_id", "item_id", "timestamp").to_dicts()


def _table(ending: str) -> Reader:
    import polars as pl

    def make(folder: Path) -> None:
        frame, path = pl.DataFrame(_rows()), folder / f"log.{ending.removesuffix('.gz')}"
        if "json" in ending:
            frame.write_ndjson(path)
        elif ending == "parquet":
            frame.write_parquet(path, compression="snappy")
        else:
            frame.write_csv(path, separator="\t" if "tsv" in ending else ",")
        if ending.endswith(".gz"):
            path.rename(f"{path}.gz").write_bytes(gzip.compress((folder / f"{path.name}.gz").read_bytes()))

    def read(folder: Path) -> Any:
        from allmrec_hf.data.readers import read_tables

        return read_tables(folder / f"log.{ending}", None, {}, 0.01)

    return Reader(make, (f"log.{ending}",), read)


def _items(ending: str) -> Reader:
    def make(folder: Path) -> None:
        _table("csv").make(folder)
        frame = _world().items().head(20)
        path = folder / f"items.{ending}"
        frame.write_parquet(path) if ending == "parquet" else frame.write_ndjson(path)

    def read(folder: Path) -> Any:
        from allmrec_hf.data.readers import read_tables

        return read_tables(folder / "log.csv", folder / f"items.{ending}", {}, 0.01)

    return Reader(make, (f"items.{ending}",), read)


def _amazon(year: int) -> Reader:
    reviews, metadata = "reviews.jsonl", "meta.jsonl"

    def make(folder: Path) -> None:
        user, item = ("reviewerID", "asin") if year == 2018 else ("user_id", "parent_asin")
        when = "unixReviewTime" if year == 2018 else "timestamp"
        lines = [{user: r["user_id"], item: r["item_id"], when: 10**9, "overall": 5.0, "rating": 5.0} for r in _rows()]
        (folder / reviews).write_text("\n".join(map(json.dumps, lines)))
        about = [{item: r["item_id"], "title": "Saddle", "description": ["a", "b"]} for r in _rows()]
        (folder / metadata).write_text("\n".join(map(json.dumps, about)))

    def read(folder: Path) -> Any:
        from allmrec_hf.data.readers import READERS

        return READERS[f"amazon-{year}"](folder / reviews, folder / metadata, {}, 0.01)

    return Reader(make, (reviews, metadata), read)


def _movielens(ratings: str, movies: str, separator: str) -> Reader:
    def make(folder: Path) -> None:
        rows = _rows()
        lines = [separator.join([str(n % 9), str(n % 7), "4", "978300760"]) for n in range(len(rows))]
        head = ["userId,movieId,rating,timestamp"] if separator == "," else []
        (folder / ratings).write_text("\n".join([*head, *lines]) + "\n")
        between = "|" if movies == "u.item" else separator
        about = [f"{n}{between}Saddle ({n}){between}" + ("|" * 21 if movies == "u.item" else "Drama") for n in range(7)]
        head = ["movieId,title,genres"] if separator == "," else []
        (folder / movies).write_text("\n".join([*head, *about]) + "\n")

    def read(folder: Path) -> Any:
        from allmrec_hf.data.readers import read_movielens

        return read_movielens(folder, None, {}, 0.01)

    return Reader(make, (ratings, movies), read, 0.5)


def _make_prepared(folder: Path) -> None:
    from allmrec_hf.data.prepare import prepare

    prepare(_world().interactions(), _world().items(), output=folder / "data", filter="none", num_candidates=5)


def _read_prepared(folder: Path) -> Any:
    from allmrec_hf.data.prepared import PreparedData

    data = PreparedData.load(folder / "data")
    return data.candidates("test"), data.sequences(), data.domain


def _make_layout(folder: Path) -> None:
    from allmrec_hf.data.hub_layout import write_layout
    from allmrec_hf.data.prepared import PreparedData

    _make_prepared(folder)
    write_layout(PreparedData.load(folder / "data"), folder / "hub", "somebody/data", None)


def _read_layout(folder: Path) -> Any:
    from allmrec_hf.data.hub_layout import read_layout

    return read_layout(folder / "hub").candidates("test")


def _make_users(folder: Path) -> None:
    import polars as pl

    frame = pl.DataFrame({"user_id": ["a", "b"], "history": [["M0001", "M0002"], ["M0003"]], "top_k": [3, 4]})
    frame.write_parquet(folder / "users.parquet")


def _read_users(folder: Path) -> Any:
    from allmrec_hf.batch_inference.users_file import UsersFile

    users = UsersFile(folder / "users.parquet")
    return users.read(0, users.rows), users.digest


def _command(*arguments: str) -> Any:
    """Run a command; exit code 2 is one of our errors, and an exception one of another's."""
    from typer.testing import CliRunner

    from allmrec_hf.cli.main import app

    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    if result.exit_code == 2:
        raise ALLMRecError(result.stderr.strip().splitlines()[-1] if result.stderr.strip() else "")
    return result.exit_code


def _requests() -> Reader:
    def make(folder: Path) -> None:
        lines = [{"user_id": n, "history": ["M0001", "M0002"], "top_k": 2} for n in range(3)]
        (folder / "requests.jsonl").write_text("\n".join(map(json.dumps, lines)))

    def read(folder: Path) -> Any:
        path = str(folder / "requests.jsonl")
        return _command("recommend", "--requests", path, "--ranker", "cf", "--on-error", "return")

    return Reader(make, ("requests.jsonl",), read, 0.5)


# -- readers of checkpoints


def _make_checkpoint(folder: Path) -> None:
    shutil.copytree(DEMO, folder / "model", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(DEMO.parent / "text_encoder", folder / "model" / "text_encoder", dirs_exist_ok=True)


def _read_model(folder: Path) -> Any:
    from allmrec_hf import ALLMRecModel

    return ALLMRecModel.from_pretrained(folder / "model", language_model=None)


def _read_processor(folder: Path) -> Any:
    from allmrec_hf import ALLMRecProcessor

    processor = ALLMRecProcessor.from_pretrained(folder / "model")
    return processor.encode_prompt([1, 2], [3, 4])


def _read_encoder(folder: Path) -> Any:
    from allmrec_hf import ALLMRecModel

    model = ALLMRecModel.from_pretrained(folder / "model", language_model=None)
    return model.text_encoder.encode(["a film"])


def _read_pipeline(folder: Path) -> Any:
    from allmrec_hf.cli.loading import load_pipeline

    return load_pipeline(str(folder / "model"))({"history": ["M0001", "M0002"]}, ranker="cf", top_k=2)


def _make_llm(folder: Path) -> None:
    shutil.copytree(DEMO.parent / "language_model", folder / "llm")


def _read_llm(folder: Path) -> Any:
    from allmrec_hf.training.llms import load_llm

    return load_llm(str(folder / "llm"), None, {})


def _make_adapter(folder: Path) -> None:
    config = {"peft_type": "LORA", "base_model_name_or_path": str(DEMO.parent / "language_model"), "r": 2}
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"")


def _read_adapter(folder: Path) -> Any:
    from allmrec_hf.errors import ALLMRecError
    from allmrec_hf.training.llms import llm_source

    try:
        return llm_source(str(folder / "adapter"))
    except FileNotFoundError as error:  # documented: the base that it names is not there
        raise ALLMRecError(str(error)) from error


def _make_backbone(folder: Path) -> None:
    from allmrec_hf import SASRecConfig, SASRecModel

    SASRecModel(SASRecConfig(num_items=20, hidden_size=8, num_layers=1)).save_pretrained(folder / "backbone")


def _read_backbone(folder: Path) -> Any:
    from allmrec_hf.training.pretrained_backbone import load_backbone_alone

    return load_backbone_alone(str(folder / "backbone"))


def _make_stage(folder: Path) -> None:
    import torch

    from allmrec_hf.training.checkpoint import save_checkpoint

    save_checkpoint(folder / "stage", {"a": torch.ones(4)}, {"step": 3, "epoch": 1}, keep=2)


def _read_stage(folder: Path) -> Any:
    from allmrec_hf.training.checkpoint import checkpoints, load_checkpoint

    return load_checkpoint(checkpoints(folder / "stage")[0])


def _make_catalogue(folder: Path) -> None:
    shutil.copy(DEMO / "items.parquet", folder)


def _read_catalogue(folder: Path) -> Any:
    from allmrec_hf import ItemCatalog

    catalog = ItemCatalog.load(folder)
    return catalog.texts()[:3], catalog.find_title("x")


def _make_targets(folder: Path) -> None:
    shutil.copy(DEMO / "targets.parquet", folder)


def _read_targets(folder: Path) -> Any:
    from allmrec_hf import ItemCatalog
    from allmrec_hf.training.trained import load_target_counts

    return load_target_counts(str(folder), ItemCatalog.load(DEMO))


def _make_gguf(folder: Path) -> None:
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(str(folder / "llm.gguf"), "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([b"a", b"b", b"c"])
    writer.add_tensor("token_embd.weight", np.ones((3, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _read_gguf(folder: Path) -> Any:
    from allmrec_hf.gguf_files import gguf_facts

    return gguf_facts(str(folder / "llm.gguf"))


def _make_torch(folder: Path) -> None:
    import torch

    torch.save({"state_dict": {"item_embedding.weight": torch.ones(5, 4)}, "config": {"n": 3}}, folder / "model.pth")


def _read_torch(folder: Path) -> Any:
    from allmrec_hf.training.torch_archive import TorchArchive, as_mapping

    archive = TorchArchive(folder / "model.pth")
    return archive.tensors((as_mapping(archive.content) or {}).get("state_dict"))


def _make_ids(folder: Path) -> None:
    import polars as pl

    ids = [f"I{n}" for n in range(1, 6)]
    (folder / "ids.json").write_text(json.dumps({name: n for n, name in enumerate(ids, 1)}))
    (folder / "ids.txt").write_text("\n".join(ids))
    pl.DataFrame({"item_id": ids}).write_parquet(folder / "ids.parquet")


def _read_ids(folder: Path) -> Any:
    from allmrec_hf.training.importing import read_item_ids

    # All are read, so that what is wrong with the one that was replaced comes out, whichever it is.
    return [read_item_ids(folder / f"ids.{ending}", 5) for ending in ("json", "txt", "parquet")]


# -- records, settings, reports, cards


def _yaml(name: str, text: str, read: Callable[[Path], Any]) -> Reader:
    return Reader(lambda folder: (folder / name).write_text(text) and None, (name,), lambda folder: read(folder / name))


def _read_arguments(path: Path) -> Any:
    from allmrec_hf.training.arguments import ALLMRecTrainingArguments

    return ALLMRecTrainingArguments.from_yaml(path, output_dir=Path("unused")).to_dict()


def _read_suite(path: Path) -> Any:
    from allmrec_hf.benchmark.suite_parser import load_suite

    return load_suite(path)


def _read_card_options(path: Path) -> Any:
    return _command("recommend", "--config", str(path), "--history", "M0001", "--ranker", "cf")


def _read_task(path: Path) -> Any:
    from allmrec_hf.explaining.tasks import find_task

    return find_task(str(path))


def _read_tokens(path: Path) -> Any:
    from allmrec_hf.serving.bearer_tokens import read_tokens

    path.chmod(0o600)
    return read_tokens(path)


_RUN = {
    "data": {"name": "a"},
    "processes": 1,
    "arguments": {"backbone": {"num_train_epochs": 2, "learning_rate": 0.1}, "align": {"joint_dim": 8}},
}


def _read_run(path: Path) -> Any:
    from allmrec_hf.training.run_record import read_run

    return read_run(path)


def _make_result(folder: Path) -> None:
    import polars as pl

    from allmrec_hf.benchmark.runs import BenchmarkRun, RunKey, save_run

    report = {"candidates_sha256": "a", "users": 2, "methods": {}}
    ranks = pl.DataFrame({"user_id": ["a", "b"], "target": ["x", "y"], "rank": [1.0, 2.0], "tied": [0, 0]})
    save_run(folder, BenchmarkRun(RunKey("d", "overall", "m", "m", 0, {}), report, ranks, 1.0, {}))
    next(folder.rglob("result.json")).parent.rename(folder / "run")


def _read_result(folder: Path) -> Any:
    from allmrec_hf.benchmark.runs import load_run

    return load_run(folder / "run")


def _make_card(folder: Path) -> None:
    for name in ("README.md", "model_card.json", "evaluation.json", "config.json"):
        shutil.copy(DEMO / name, folder)
    shutil.copytree(DEMO / ".eval_results", folder / ".eval_results")


def _read_card(folder: Path) -> Any:
    return _command("card", str(folder), "--check")


def _read_card_data(folder: Path) -> Any:
    from allmrec_hf.hub.card import card_files, read_card

    return card_files(read_card(folder))


def _read_report(folder: Path) -> Any:
    from allmrec_hf.hub.stored_reports import read_reports

    return read_reports(folder / "evaluation.json")


def _read_data_card(folder: Path) -> Any:
    return _command("card", str(folder / "data"), "--check")


def _make_data_card(folder: Path) -> None:
    _make_prepared(folder)
    _command("card", str(folder / "data"))


# -- the service


def _make_journal(folder: Path) -> None:
    from allmrec_hf.serving.item_journal import ItemJournal

    journal = ItemJournal(folder / "items.jsonl")
    for number in range(5):
        journal.append([{"item_id": f"I{number}", "title": "Saddle"}])
    journal.close()


def _read_journal(folder: Path) -> Any:
    from allmrec_hf.serving.item_journal import ItemJournal

    journal = ItemJournal(folder / "items.jsonl")
    try:
        journal.append([{"item_id": "N1", "title": "New"}])
        return journal.additions
    finally:
        journal.close()
        for aside in folder.glob("*.damaged-*"):
            aside.unlink()


def _make_sqlite(folder: Path) -> None:
    from allmrec_hf.serving.user_histories import SQLiteHistories, UserEvent

    store = SQLiteHistories(folder / "users.sqlite")
    store.append([UserEvent("u", f"I{n}") for n in range(50)])
    store.close()


def _read_sqlite(folder: Path) -> Any:
    from allmrec_hf.serving.service_errors import ServiceError
    from allmrec_hf.serving.user_histories import SQLiteHistories, UserEvent

    for name in ("users.sqlite-wal", "users.sqlite-shm"):
        (folder / name).unlink(missing_ok=True)
    store = SQLiteHistories(folder / "users.sqlite")
    try:
        store.append([UserEvent("u", "I1")])
        return store.history("u")
    except ServiceError as error:
        raise ALLMRecError(str(error)) from error
    finally:
        store.close()


_BODIES = {
    "recommend": {"history": ["M0001", "M0002"], "top_k": 2, "ranker": "cf"},
    "rank": {"history": ["M0001"], "candidates": ["M0005", "M0006"], "ranker": "cf"},
    "similar": {"item": "M0001", "top_k": 3},
    "events": {"events": [{"user_id": "u", "item_id": "M0001", "timestamp": 5}]},
    "items": {"items": [{"item_id": "N1", "title": "New"}]},
    "explain": {"history": ["M0001"], "item": "M0005"},
}
_CLIENT: list[Any] = []


def _client() -> Any:
    if not _CLIENT:
        from starlette.testclient import TestClient

        from allmrec_hf.cli.loading import load_pipeline
        from allmrec_hf.serving.http_app import create_app
        from allmrec_hf.serving.http_server import ModelSource, ServiceSettings, build_service

        state = Path(tempfile.mkdtemp(prefix="random-bytes-"))
        source = ModelSource(str(DEMO), lambda: load_pipeline("demo"))
        client = TestClient(create_app(build_service({"demo": source}, ServiceSettings(state=state))))
        client.__enter__()
        _CLIENT.append(client)
    return _CLIENT[0]


def _route(name: str) -> Reader:
    def read(folder: Path) -> Any:
        headers = {"content-type": "application/json"}
        response = _client().post(f"/v1/{name}", content=(folder / "body.json").read_bytes(), headers=headers)
        if response.status_code >= 500:
            raise RuntimeError(f"status {response.status_code}: {response.text[:200]}")
        if response.status_code >= 400:
            raise ALLMRecError(response.json()["error"]["message"])
        return response.status_code

    text = json.dumps(_BODIES[name])
    return Reader(lambda folder: (folder / "body.json").write_text(text) and None, ("body.json",), read)


_SETTINGS = (
    "backbone:\n  num_train_epochs: 2\n  learning_rate: 0.01\nalign:\n  joint_dim: 8\nproject:\n  max_steps: 3\n"
)
_SUITE = """title: Small
datasets:
  - {name: toy, synthetic: {num_items: 120, num_users: 60}}
scenarios: [overall]
methods: [popularity, {method: a-llmrec, label: ours}]
seeds: [0, 1]
"""


def readers() -> dict[str, Reader]:
    """Return everything that is tried, by name."""
    model = tuple(f"model/{name}" for name in ("config.json", "model.safetensors"))
    processor = ("processor_config.json", "tokenizer.json", "tokenizer_config.json", "items.parquet")
    encoder = ("config_sentence_transformers.json", "modules.json", "tokenizer.json", "model.safetensors")
    prepared = ("dataset.json", "interactions.parquet", "items.parquet", "candidates.parquet")
    layout = tuple(f"hub/{name}" for name in ("dataset.json", "items.parquet"))
    layout += tuple(f"hub/interactions/{split}.parquet" for split in ("train", "validation", "test"))
    layout += tuple(f"hub/candidates/{split}.parquet" for split in ("validation", "test"))
    return {
        **{f"table.{ending}": _table(ending) for ending in ("csv", "tsv", "jsonl", "parquet", "csv.gz", "json.gz")},
        **{f"items.{ending}": _items(ending) for ending in ("jsonl", "parquet")},
        **{f"amazon-{year}": _amazon(year) for year in (2018, 2023)},
        "movielens-100k": _movielens("u.data", "u.item", "\t"),
        "movielens-1m": _movielens("ratings.dat", "movies.dat", "::"),
        "movielens-csv": _movielens("ratings.csv", "movies.csv", ","),
        "prepared": Reader(_make_prepared, tuple(f"data/{name}" for name in prepared), _read_prepared, 2),
        "hub-layout": Reader(_make_layout, layout, _read_layout),
        "users": Reader(_make_users, ("users.parquet",), _read_users),
        "requests": _requests(),
        "model": Reader(_make_checkpoint, model, _read_model, 1.5),
        "processor": Reader(_make_checkpoint, tuple(f"model/{name}" for name in processor), _read_processor, 1.5),
        "text-encoder": Reader(
            _make_checkpoint, tuple(f"model/text_encoder/{name}" for name in encoder), _read_encoder
        ),
        "pipeline": Reader(_make_checkpoint, (*model, *(f"model/{name}" for name in processor)), _read_pipeline, 0.5),
        "llm": Reader(_make_llm, ("llm/config.json", "llm/model.safetensors", "llm/tokenizer.json"), _read_llm),
        "adapter": Reader(_make_adapter, ("adapter/adapter_config.json",), _read_adapter, 0.5),
        "backbone": Reader(_make_backbone, ("backbone/config.json", "backbone/model.safetensors"), _read_backbone),
        "catalogue": Reader(_make_catalogue, ("items.parquet",), _read_catalogue),
        "targets": Reader(_make_targets, ("targets.parquet",), _read_targets, 0.5),
        "gguf": Reader(_make_gguf, ("llm.gguf",), _read_gguf),
        "torch-archive": Reader(_make_torch, ("model.pth",), _read_torch),
        "item-ids": Reader(_make_ids, ("ids.json", "ids.txt", "ids.parquet"), _read_ids),
        "stage-checkpoint": Reader(_make_stage, (), _read_stage),
        "run-record": _yaml("run.json", json.dumps(_RUN), _read_run),
        "settings": _yaml("settings.yaml", _SETTINGS, _read_arguments),
        "command-settings": _yaml("options.yaml", "top-k: 2\nranker: cf\n", _read_card_options),
        "suite": _yaml("suite.yaml", _SUITE, _read_suite),
        "benchmark-run": Reader(_make_result, ("run/result.json", "run/per_user.parquet"), _read_result),
        "task": _yaml("task.json", json.dumps({"prompt": "{user} has watched {history}, and "}), _read_task),
        "tokens": _yaml("tokens", "0123456789abcdef0123\n", _read_tokens),
        "card-check": Reader(_make_card, ("README.md", "model_card.json", "evaluation.json"), _read_card),
        "card-data": Reader(_make_card, ("model_card.json",), _read_card_data),
        "report": Reader(_make_card, ("evaluation.json",), _read_report),
        "data-card": Reader(
            _make_data_card, ("data/README.md", "data/eval.yaml", "data/dataset.json"), _read_data_card
        ),
        "journal": Reader(_make_journal, ("items.jsonl",), _read_journal),
        "histories": Reader(_make_sqlite, ("users.sqlite",), _read_sqlite, 0.5),
        **{f"http-{name}": _route(name) for name in _BODIES},
    }
