"""Files that load item vectors into PostgreSQL with pgvector, and the query that finds the best items there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from ..catalog import ItemCatalog
from ..errors import DataError
from .item_vectors import USERS_AT_ONCE, RankedUsers, VectorTable
from .rank_parity import best_items

WIDEST = 16_000  # of pgvector's type vector
WIDEST_INDEXED = 2_000  # of its index
_LOAD = """\
-- Items and their vectors of the ranker {name}, for PostgreSQL with pgvector. In this folder:
--   psql --no-psqlrc --set ON_ERROR_STOP=1 --file {name}.load.sql DATABASE
BEGIN;
CREATE EXTENSION IF NOT EXISTS vector;
CREATE TABLE {table} (
    item_index bigint PRIMARY KEY,  -- its place in the catalogue, by which equal scores are ordered
    item_id text NOT NULL UNIQUE,
    title text NOT NULL,
    embedding vector({width}) NOT NULL
);
\\copy {table} (item_index, item_id, title, embedding) FROM '{name}.copy' WITH (FORMAT text, ENCODING 'UTF8')
COMMIT;
ANALYZE {table};
"""
_QUERY = """\
-- The best items of a user: $1 the user's vector, $2 ids never to return (what was seen), $3 how many.
-- The operator <#> is the negative inner product, so the smallest is the best and its negative is the score.
PREPARE {table}_best (vector({width}), text[], int) AS
SELECT item_id, title, -(embedding <#> $1) AS score
FROM {table}
WHERE item_id <> ALL ($2)
ORDER BY embedding <#> $1, item_index
LIMIT $3;
-- EXECUTE {table}_best ('[0.1,0.2,...]', ARRAY['B0001', 'B0002'], 10);
"""
_INDEX = """\
-- Faster and approximate: without this index every query is exact. The overlap of `export.json` is that of the exact
-- query; measure your own with the index. hnsw.ef_search bounds what a query finds, seen items included.
CREATE INDEX {table}_embedding ON {table} USING hnsw (embedding vector_ip_ops);
"""


def copy_text(texts: pl.Expr) -> pl.Expr:
    """Return texts as COPY's text format holds them: one line each, tabs, line breaks and backslashes escaped."""
    for plain, escaped in (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r"), ("\b", "\\b")):
        texts = texts.str.replace_all(plain, escaped, literal=True)
    return texts


def vector_texts(vectors: np.ndarray) -> pl.Series:
    """Return vectors `(N, d)` as pgvector reads them, `[0.1,0.2]`; every float32 comes back as it was."""
    frame = pl.DataFrame(vectors, schema=[str(column) for column in range(vectors.shape[1])])
    joined = pl.concat_str(pl.all().cast(pl.String), separator=",")
    return frame.select(pl.concat_str(pl.lit("["), joined, pl.lit("]")).alias("embedding"))["embedding"]


def write_pgvector(folder: Path, table: VectorTable, catalog: ItemCatalog, users: RankedUsers) -> dict[str, Any]:
    """Write the rows, the statements that load and query them, and return their part of the record.

    The gate reads the file of rows again and takes the exact query's arithmetic over it.

    Raises:
        DataError: when the vectors are wider than pgvector's, or an id holds a NUL character.
        ALLMRecError: when the rows do not give our best items.
    """
    if table.width > WIDEST:
        raise DataError(f"pgvector holds vectors of up to {WIDEST} numbers; those of {table.name} have {table.width}")
    spoilt = [item_id for item_id in catalog.item_ids if "\x00" in item_id]
    if spoilt:
        raise DataError(f"PostgreSQL holds no NUL character, and {len(spoilt)} item ids have one, first {spoilt[0]!r}")
    titles = [catalog.title(index).replace("\x00", "\ufffd") for index in range(1, len(catalog) + 1)]
    rows = pl.DataFrame(
        {
            "item_index": pl.Series(range(1, len(catalog) + 1), dtype=pl.Int64),
            "item_id": catalog.item_ids,
            "title": titles,
            "embedding": vector_texts(table.vectors),
        }
    ).with_columns(copy_text(pl.col("item_id")), copy_text(pl.col("title")))
    rows.write_csv(folder / f"{table.name}.copy", include_header=False, separator="\t", quote_style="never")
    words = {"name": table.name, "table": f"allmrec_{table.name}_items", "width": table.width}
    texts = {"load": _LOAD, "query": _QUERY, **({"index": _INDEX} if table.width <= WIDEST_INDEXED else {})}
    for name, text in texts.items():
        (folder / f"{table.name}.{name}.sql").write_text(text.format(**words), encoding="utf-8")
    vectors = torch.from_numpy(read_vectors(folder / f"{table.name}.copy"))
    found = [
        best_items(torch.cat([torch.zeros(len(part), 1), part @ vectors.T], dim=1), seen.cpu())
        for part, seen in zip(
            users.vectors.split(USERS_AT_ONCE), users.users.seen_ids.split(USERS_AT_ONCE), strict=True
        )
    ]
    return {
        **{"name": table.name, "table": words["table"], "width": table.width, "metric": "inner product"},
        "files": [f"{table.name}.copy", *(f"{table.name}.{name}.sql" for name in texts)],
        "gate": users.parity(torch.cat(found)).require(f"rows for pgvector of the ranker {table.name}"),
        "gate_reads": "the file of rows, in place of a database",
    }


def read_vectors(path: Path) -> np.ndarray:
    """Return the vectors `(N, d)` of a file of rows, float32."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return np.stack([np.array(line.rsplit("\t", 1)[1][1:-1].split(","), dtype=np.float32) for line in lines])
