"""`recommend_users`: the rows of one-by-one requests, whatever happens to the process on the way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from transformers import pipeline

from allmrec_hf.batch_inference import parts_folder
from allmrec_hf.batch_inference.recommend_users import recommend_users
from allmrec_hf.batch_inference.results import BatchSettings
from allmrec_hf.errors import ALLMRecError, DataError
from tests.tiny import tiny_model, tiny_processor

PART = 7
USERS = 40


def users_table() -> pl.DataFrame:
    """Return users with short and long, empty and missing histories, and with unknown items."""
    histories: list[list[str | None] | None] = [
        [f"I{1 + (user * 7 + place) % 40}" for place in range(user % 9)] + ["X1"] * (user % 5 == 0)
        for user in range(USERS)
    ]
    histories[4] = None
    return pl.DataFrame({"user_id": [f"u{user}" for user in range(USERS)], "history": histories})


@pytest.fixture(scope="module")
def pipe():
    return pipeline("recommendation", model=tiny_model(), processor=tiny_processor())


@pytest.fixture
def users(tmp_path):
    users_table().write_parquet(tmp_path / "users.parquet")
    return tmp_path / "users.parquet"


def made(pipe, users, output, settings=None, **options):
    return recommend_users(
        users,
        output,
        lambda: pipe,
        lambda: (pipe.model, pipe.processor),
        settings or BatchSettings(top_k=3),
        **{"rows_per_part": PART, "tell": lambda line: None, **options},
    )


def assert_same(table: pl.DataFrame, other: pl.DataFrame) -> None:
    """Assert equal rows; scores may differ by the rounding of other batches."""
    scores = pl.col("recommendations").list.eval(pl.element().struct.field("score"))
    rounded = pl.col("recommendations").list.eval(pl.element().struct.with_fields(pl.lit(0.0).alias("score")))
    assert table.with_columns(rounded).equals(other.with_columns(rounded))
    both = zip(
        table.select(scores).explode("recommendations").to_series(),
        other.select(scores).explode("recommendations").to_series(),
        strict=True,
    )
    for mine, theirs in both:
        assert mine == pytest.approx(theirs, abs=1e-3)


# -- the rows


def test_every_row_has_what_a_request_alone_gets(pipe, users, tmp_path):
    found = made(pipe, users, tmp_path / "out.parquet")
    table = pl.read_parquet(tmp_path / "out.parquet")
    assert table.columns == ["user_id", "recommendations", "unknown_history", "reason"]
    assert table["user_id"].to_list() == [f"u{user}" for user in range(USERS)]
    for request, row in zip(users_table().to_dicts(), table.to_dicts(), strict=True):
        alone = pipe({"history": request["history"]}, top_k=3, on_error="return")
        if isinstance(alone, dict):
            assert row["recommendations"] is None
            assert row["reason"] == alone["error"]
            continue
        assert [item["item_id"] for item in row["recommendations"]] == [item["item_id"] for item in alone]
        assert [item["title"] for item in row["recommendations"]] == [item["title"] for item in alone]
        assert [item["score"] for item in row["recommendations"]] == pytest.approx(
            [item["score"] for item in alone], abs=1e-3
        )
        assert [item["rank"] for item in row["recommendations"]] == [1, 2, 3]
        assert row["unknown_history"] == alone[0].get("unknown_history", [])
        assert (row["reason"] is None) == (not row["unknown_history"])
    assert (found.users, found.without) == (USERS, table["recommendations"].null_count())
    assert found.without == 6  # users 0, 9, 18, 27, 36 without known items, and the one without a list


def test_no_history_and_unknown_items_say_why(pipe, users, tmp_path):
    made(pipe, users, tmp_path / "out.parquet")
    reasons = pl.read_parquet(tmp_path / "out.parquet")["reason"]
    assert "none of the 1 history items" in reasons[0]
    assert reasons[4].startswith("the history is empty")
    assert reasons[5] == "left out of the history, not in the catalogue: X1"
    assert reasons[1] is None


def test_candidates_titles_and_columns_of_any_type_are_kept(pipe, tmp_path):
    rows = pl.DataFrame(
        {
            "titles": [["Lonely 4"], ["Nowhere"]],
            "candidates": [["I7", "I8"], None],
            "top_k": [1, 2],
            "day": pl.Series(["2024-01-01", "2024-01-02"]).str.to_date(),
            "group": pl.Series(["a", "b"], dtype=pl.Categorical),
        }
    )
    rows.write_parquet(tmp_path / "users.parquet")
    made(pipe, tmp_path / "users.parquet", tmp_path / "out.parquet", rows_per_part=1)
    table = pl.read_parquet(tmp_path / "out.parquet")
    assert table.select("day", "group").equals(rows.select("day", "group"))
    assert table.columns[:2] == ["day", "group"]
    assert len(table["recommendations"][0]) == 1
    assert table["recommendations"][0][0]["item_id"] in {"I7", "I8"}
    assert "none of the 1 history items" in table["reason"][1]


def test_number_ids_no_rows_and_folders_of_files(pipe, tmp_path):
    (tmp_path / "users").mkdir()
    users_table().head(3).write_parquet(tmp_path / "users" / "b.parquet")
    users_table().tail(3).write_parquet(tmp_path / "users" / "a.parquet")
    made(pipe, tmp_path / "users", tmp_path / "out.parquet", rows_per_part=2)
    assert pl.read_parquet(tmp_path / "out.parquet")["user_id"].to_list() == ["u37", "u38", "u39", "u0", "u1", "u2"]

    users_table().head(0).write_parquet(tmp_path / "none.parquet")
    assert made(pipe, tmp_path / "none.parquet", tmp_path / "none_out.parquet").users == 0
    empty = pl.read_parquet(tmp_path / "none_out.parquet")
    assert (empty.height, empty.columns[0]) == (0, "user_id")

    pl.DataFrame({"history": [[1, 2], [3]]}).write_parquet(tmp_path / "numbers.parquet")
    made(pipe, tmp_path / "numbers.parquet", tmp_path / "numbers_out.parquet")
    assert "['1', '2']" in pl.read_parquet(tmp_path / "numbers_out.parquet")["reason"][0]


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        (BatchSettings(top_k=3, batch_size=1), {}),
        (BatchSettings(top_k=3, batch_size=40), {"rows_per_part": 40}),
        (BatchSettings(top_k=3, batch_size=40, max_tokens_per_batch=1500), {"rows_per_part": 17}),
    ],
)
def test_batches_and_parts_of_other_sizes_change_nothing(pipe, users, tmp_path, settings, options):
    made(pipe, users, tmp_path / "out.parquet")
    made(pipe, users, tmp_path / "other.parquet", settings, **options)
    assert_same(pl.read_parquet(tmp_path / "out.parquet"), pl.read_parquet(tmp_path / "other.parquet"))


def test_another_ranker_ranks(pipe, users, tmp_path):
    made(pipe, users, tmp_path / "out.parquet", BatchSettings(top_k=2, ranker="cf"))
    row = pl.read_parquet(tmp_path / "out.parquet").row(3, named=True)
    alone = pipe({"history": users_table()["history"][3].to_list()}, top_k=2, ranker="cf")
    assert [item["item_id"] for item in row["recommendations"]] == [item["item_id"] for item in alone]


# -- a run that ends early


def stop_after(monkeypatch, parts: int, error: BaseException) -> None:
    """Let the writing of parts fail after some of them."""
    left = [parts]
    write = parts_folder.PartsFolder.write

    def failing(self, number, table):
        if not left[0]:
            raise error
        left[0] -= 1
        write(self, number, table)

    monkeypatch.setattr(parts_folder.PartsFolder, "write", failing)


def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(pipe, users, tmp_path, monkeypatch):
    made(pipe, users, tmp_path / "whole.parquet")
    with monkeypatch.context() as patch:
        stop_after(patch, 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            made(pipe, users, tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()
    told: list[str] = []
    found = made(pipe, users, tmp_path / "out.parquet", tell=told.append)
    assert found.parts == 4  # of 6
    assert told == [f"going on after {2 * PART} of {USERS} users"]
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet", "users.parquet", "whole.parquet"]


def test_a_killed_process_goes_on_and_ends_with_the_same_bytes(pipe, users, tmp_path):
    script = f"""
import os, signal
from pathlib import Path
import tests.batch_inference.test_recommend_users as here
write = here.parts_folder.PartsFolder.write
def killed(self, number, table):
    if number == 3:
        (self.folder / f".part-00000003.parquet.{{os.getpid()}}.tmp").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, number, table)
here.parts_folder.PartsFolder.write = killed
pipe = here.pipeline("recommendation", model=here.tiny_model(), processor=here.tiny_processor())
here.made(pipe, Path({str(users)!r}), Path({str(tmp_path / "out.parquet")!r}))
"""
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), *sys.path])
    run = [sys.executable, "-c", script]
    assert subprocess.run(run, cwd=root, env={**os.environ, "PYTHONPATH": path}, timeout=200).returncode == -9
    assert len(list((tmp_path / "out.parquet.parts").glob("part-*.parquet"))) == 3
    assert made(pipe, users, tmp_path / "out.parquet").parts == 3
    made(pipe, users, tmp_path / "whole.parquet")
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet", "users.parquet", "whole.parquet"]


def test_a_damaged_part_is_made_again(pipe, users, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 3, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            made(pipe, users, tmp_path / "out.parquet")
    (tmp_path / "out.parquet.parts" / "part-00000001.parquet").write_bytes(b"PAR1 no more PAR1")
    assert made(pipe, users, tmp_path / "out.parquet").parts == 4
    assert pl.read_parquet(tmp_path / "out.parquet")["user_id"].to_list() == [f"u{user}" for user in range(USERS)]


def test_a_full_disk_is_told_and_what_is_done_stays(pipe, users, tmp_path, monkeypatch):
    written = [0]
    write = pl.DataFrame.write_parquet

    def full(self, path, **options):
        written[0] += 1
        if written[0] > 2:
            raise OSError(28, "No space left on device")
        write(self, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(pl.DataFrame, "write_parquet", full)
        with pytest.raises(ALLMRecError, match=r"no space left on the disk.*the same command continues there"):
            made(pipe, users, tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()
    assert made(pipe, users, tmp_path / "out.parquet").parts == 4


def test_a_full_disk_while_joining_keeps_the_parts(pipe, users, tmp_path, monkeypatch):
    sink = pl.LazyFrame.sink_parquet

    def full(self, path, **options):
        if Path(path).name.startswith(".out.parquet"):
            raise OSError(28, "No space left on device")
        return sink(self, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(pl.LazyFrame, "sink_parquet", full)
        with pytest.raises(ALLMRecError, match=r"no space left on the disk.*the same command continues there"):
            made(pipe, users, tmp_path / "out.parquet")
    assert made(pipe, users, tmp_path / "out.parquet").parts == 0


@pytest.mark.parametrize("changed", ["settings", "model", "input"])
def test_a_run_with_other_settings_model_or_input_is_not_continued(pipe, users, tmp_path, monkeypatch, changed):
    with monkeypatch.context() as patch:
        stop_after(patch, 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            made(pipe, users, tmp_path / "out.parquet")
    settings, other = BatchSettings(top_k=4 if changed == "settings" else 3), pipe
    if changed == "model":
        model = tiny_model()
        model.item_table.interaction_counts[3] += 1
        other = pipeline("recommendation", model=model, processor=pipe.processor)
    if changed == "input":
        users_table().reverse().write_parquet(users)
    name = {"settings": "top_k was 3, is 4", "model": "checkpoint was", "input": "input was"}[changed]
    with pytest.raises(ALLMRecError, match=f"parts of another run .*{name}.*--overwrite"):
        made(other, users, tmp_path / "out.parquet", settings)
    assert len(list((tmp_path / "out.parquet.parts").glob("part-*.parquet"))) == 2
    assert made(other, users, tmp_path / "out.parquet", settings, overwrite=True).parts == 6


def test_a_finished_output_is_not_replaced_unasked(pipe, users, tmp_path):
    made(pipe, users, tmp_path / "out.parquet")
    before = (tmp_path / "out.parquet").read_bytes()
    with pytest.raises(ALLMRecError, match="is there already"):
        made(pipe, users, tmp_path / "out.parquet")
    made(pipe, users, tmp_path / "out.parquet", BatchSettings(top_k=1), overwrite=True)
    assert (tmp_path / "out.parquet").read_bytes() != before


def test_two_processes_do_not_write_one_output(pipe, users, tmp_path):
    parts = parts_folder.PartsFolder(tmp_path / "out.parquet", USERS, PART)
    with parts.held({}), pytest.raises(ALLMRecError, match="another process is writing"):
        made(pipe, users, tmp_path / "out.parquet")


# -- input that cannot be used


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user_id": ["a"]}, 'a request is a mapping with "history"'),
        ({"history": [["I1"]], "candidate": [["I1"]]}, "is 'candidates' meant"),
        ({"history": ["I1,I2"]}, "'history' is String, not a list"),
        ({"history": [["I1"]], "reason": ["x"]}, "has the column 'reason'"),
        ({"history": [["I1"]], "score": [1.0]}, "which its result has"),
    ],
)
def test_columns_that_are_no_requests_are_refused_before_the_model_is_loaded(columns, message, tmp_path):
    pl.DataFrame(columns).write_parquet(tmp_path / "users.parquet")
    with pytest.raises(DataError, match=message):
        recommend_users(tmp_path / "users.parquet", tmp_path / "out.parquet", pytest.fail, pytest.fail, BatchSettings())
    assert [path.name for path in tmp_path.iterdir()] == ["users.parquet"]


def test_files_that_are_no_parquet_are_refused(tmp_path):
    (tmp_path / "users.jsonl").write_text('{"history": ["I1"]}\n')
    for path, message in ((tmp_path / "users.jsonl", "JSON lines are for --requests"), (tmp_path / "x", "is no file")):
        with pytest.raises(DataError, match=message):
            recommend_users(path, tmp_path / "out.parquet", pytest.fail, pytest.fail, BatchSettings())
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no parquet files"):
        recommend_users(tmp_path / "empty", tmp_path / "out.parquet", pytest.fail, pytest.fail, BatchSettings())


def test_a_budget_smaller_than_one_prompt_is_told_and_nothing_is_left(pipe, users, tmp_path):
    with pytest.raises(ALLMRecError, match=r"more than the 50 that are to be read at once; give at least \d+"):
        made(pipe, users, tmp_path / "out.parquet", BatchSettings(max_tokens_per_batch=50))
    assert [path.name for path in tmp_path.iterdir()] == ["users.parquet"]


def test_too_many_candidates_for_the_ranker_are_refused_at_once(pipe, users, tmp_path):
    with pytest.raises(ALLMRecError, match="takes 26 candidates"):
        made(pipe, users, tmp_path / "out.parquet", BatchSettings(top_k=30, ranker="letter"))


def test_progress_tells_the_pace_and_the_time_left(pipe, users, tmp_path, monkeypatch):
    from allmrec_hf.batch_inference import recommend_users as station

    monkeypatch.setattr(station, "EVERY_S", 0.0)
    told: list[str] = []
    made(pipe, users, tmp_path / "out.parquet", tell=told.append)
    assert told[0].startswith("7 of 40 users, ")
    assert all(line.endswith(" left") and "users/s" in line for line in told)


def test_the_users_are_never_replaced_by_the_output(pipe, users, tmp_path):
    before, same = users.read_bytes(), tmp_path / "x" / ".." / users.name
    for place, output in ((users, users), (users, same), (tmp_path, tmp_path / "out.parquet")):
        with pytest.raises(ALLMRecError, match="would be among the users"):
            made(pipe, place, output, overwrite=True)
    assert users.read_bytes() == before
