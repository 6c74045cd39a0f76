from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from datasets import Dataset, load_dataset, load_from_disk

from allmrec_hf.catalog import ItemCatalog
from allmrec_hf.data.data_report import format_report, warn_of_missing_titles
from allmrec_hf.data.prepare import prepare
from allmrec_hf.data.prepared import PreparedData
from allmrec_hf.errors import DataError


def test_every_step_is_counted(tmp_path: Path, interactions: pl.DataFrame, items: pl.DataFrame) -> None:
    few = pl.DataFrame({"user_id": ["few"] * 2, "item_id": ["i0", "i5"], "timestamp": [1, 2], "rating": [1.0, 1.0]})
    frame = pl.concat([interactions, few, interactions[:4]])
    data = prepare(frame, items, output=tmp_path / "d", k_core=3, name="toy", seed=4)
    steps = {row["step"]: (row["users"], row["items"], row["interactions"]) for row in data.info["report"]}
    assert steps == {
        "read": (31, 40, 186),
        "exact duplicates dropped": (31, 40, 182),
        "filtered": (30, 40, 180),
        "split": (30, 40, 180),
        "candidates": (30, 40, 180),
    }
    counts = data.info["counts"]
    assert (counts["train"], counts["validation"], counts["test"]) == (120, 30, 30)
    assert (counts["duplicates_dropped"], counts["items_without_title"], counts["items_without_description"]) == (
        4,
        1,
        1,
    )
    assert data.info["shares"] == {"without_title": 0.025, "without_description": 0.025}
    assert data.info["resources"]["seconds"] > 0
    assert (data.info["format"], data.info["name"], data.info["seed"], data.info["num_candidates"]) == (1, "toy", 4, 20)


def test_exact_duplicates_stay_on_request(tmp_path: Path, interactions: pl.DataFrame) -> None:
    frame = pl.concat([interactions, interactions[:4]])
    data = prepare(frame, output=tmp_path / "d", k_core=2, drop_duplicates=False)
    assert (data.interactions.height, data.info["counts"]["duplicates_dropped"]) == (184, 0)


def test_users_with_fewer_than_three_are_counted_and_have_no_candidates(
    tmp_path: Path, interactions: pl.DataFrame, items: pl.DataFrame
) -> None:
    few = pl.DataFrame({"user_id": ["few"] * 2, "item_id": ["i0", "i5"], "timestamp": [1, 2], "rating": [1.0, 1.0]})
    data = prepare(pl.concat([few, interactions]), items, output=tmp_path / "d", filter="none")
    assert data.info["counts"]["users_only_trained_on"] == 1
    assert data.user_ids[0] == "few"
    assert 0 not in data.candidates("test").users
    assert data.history(0, "test").tolist() == data.history(0, "validation").tolist() == data.sequence(0).tolist()


def test_the_same_input_gives_the_same_files(tmp_path: Path, interactions: pl.DataFrame, items: pl.DataFrame) -> None:
    folders = [prepare(interactions, items, output=tmp_path / name, k_core=2).directory for name in ("a", "b")]
    for name in ("interactions.parquet", "items.parquet", "candidates.parquet"):
        first, second = ((folder / name).read_bytes() for folder in folders)
        assert first == second, name


def test_candidates_belong_to_the_held_out_items(
    tmp_path: Path, interactions: pl.DataFrame, items: pl.DataFrame
) -> None:
    data = prepare(interactions, items, output=tmp_path / "d", k_core=2, num_candidates=10)
    for split, place in (("test", -1), ("validation", -2)):
        candidates = data.candidates(split)  # type: ignore[arg-type]
        assert candidates.items.shape == (30, 10)
        assert candidates.users.tolist() == list(range(30))
        for user, target, row in zip(candidates.users, candidates.targets, candidates.items, strict=True):
            assert data.sequence(user)[place] == target
            assert set(row.tolist()) & set(data.sequence(user).tolist()) == {target}
        assert (candidates.items[np.arange(30), candidates.target_columns] == candidates.targets).all()


def test_all_items_are_kept_only_on_request(tmp_path: Path, interactions: pl.DataFrame, items: pl.DataFrame) -> None:
    data = prepare(interactions, items, output=tmp_path / "a", k_core=2)
    assert data.num_items == 40
    data = prepare(interactions, items, output=tmp_path / "b", k_core=2, keep_items="all")
    assert data.num_items == 45
    assert data.info["counts"]["items_without_interactions"] == 5
    assert data.catalog.item_ids == items["item_id"].to_list()


def test_what_the_filter_dropped_is_no_candidate_either(tmp_path: Path) -> None:
    rows = [(f"u{user}", f"i{item}", item) for user in range(6) for item in range(3)]
    rows += [(f"u{user}", f"rare{user}", 9) for user in range(6)]  # dropped by the 2-core, kept in the catalogue
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    items = pl.DataFrame({"item_id": ["i0", "i1", "i2", *(f"rare{user}" for user in range(6))]})
    data = prepare(frame, items, output=tmp_path / "d", k_core=2, keep_items="all", num_candidates=6)
    for user, row in zip(data.candidates("test").users, data.candidates("test").items, strict=True):
        assert data.catalog.index(f"rare{user}") not in row


def test_interactions_with_unknown_items_are_kept_without_title(
    tmp_path: Path, interactions: pl.DataFrame, items: pl.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    data = prepare(interactions, items[2:], output=tmp_path / "d", k_core=2)
    assert data.info["counts"]["items_without_metadata"] == 2
    assert data.catalog.item_ids[-2:] == ["i0", "i1"]
    assert not data.catalog.has_title(data.num_items)
    assert "2 items of the interactions have no metadata, first ['i0', 'i1']" in caplog.text


def test_data_without_items_have_no_titles(tmp_path: Path, interactions: pl.DataFrame) -> None:
    data = prepare(interactions, output=tmp_path / "d", k_core=2)
    assert data.info["shares"]["without_title"] == 1.0
    assert data.num_items == 40


def test_a_catalogue_without_titles_is_warned_of_with_the_columns_that_may_hold_them(
    tmp_path: Path, interactions: pl.DataFrame, items: pl.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    interactions.write_csv(tmp_path / "log.csv")
    items.rename({"title": "name"}).write_csv(tmp_path / "items.csv")
    prepare(tmp_path / "log.csv", tmp_path / "items.csv", output=tmp_path / "d", k_core=2)
    assert "40 of 40 items have no title; columns of the items that were not used: ['name', 'category']" in caplog.text
    assert "--column title=NAME on the command line, columns={'title': 'NAME'} in Python" in caplog.text
    caplog.clear()
    prepare(interactions, items.rename({"title": "name"}), output=tmp_path / "e", k_core=2)
    assert "not used: ['name', 'category']" in caplog.text
    assert "--column" not in caplog.text  # frames are renamed by those who have them
    caplog.clear()
    columns = {"title": "name"}
    prepare(tmp_path / "log.csv", tmp_path / "items.csv", output=tmp_path / "f", k_core=2, columns=columns)
    assert "have no title" not in caplog.text


@pytest.mark.parametrize(("titles", "warned"), [(20, False), (19, True)])
def test_more_than_half_of_the_items_without_title_are_warned_of(
    titles: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    frame = pl.DataFrame(
        {"item_id": [f"i{number}" for number in range(40)], "title": ["T"] * titles + [None] * (40 - titles)}
    )
    warn_of_missing_titles(ItemCatalog(frame), frame, "table")
    assert ("have no title" in caplog.text) == warned


def test_a_column_that_a_file_lacks_is_named_with_its_own_columns(tmp_path: Path, interactions: pl.DataFrame) -> None:
    interactions.rename({"user_id": "customer", "item_id": "sku"}).write_csv(tmp_path / "log.csv")
    columns = {"user_id": "kunde", "item_id": "sku"}
    with pytest.raises(
        DataError, match=r"asks for user_id = kunde; it has \['customer', 'sku', 'timestamp', 'rating'\]"
    ):
        prepare(tmp_path / "log.csv", output=tmp_path / "d", columns=columns)


@pytest.mark.parametrize("column", ["title", "description", "rating", "genre"])
def test_a_mapped_column_that_could_be_done_without_must_be_there_too(
    column: str, tmp_path: Path, interactions: pl.DataFrame, items: pl.DataFrame
) -> None:
    interactions.write_csv(tmp_path / "log.csv")
    items.write_csv(tmp_path / "items.csv")
    where = "log" if column == "rating" else "items"
    with pytest.raises(DataError, match=rf"the column map says {column} = WRONG, but .*{where}.csv has \["):
        prepare(tmp_path / "log.csv", tmp_path / "items.csv", output=tmp_path / "d", columns={column: "WRONG"})


def test_sets_that_must_repeat_a_title_are_counted_and_reported(
    tmp_path: Path, interactions: pl.DataFrame, items: pl.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    same = items.with_columns(pl.lit("Same").alias("title"))
    data = prepare(interactions, same, output=tmp_path / "d", k_core=2)
    assert data.info["counts"]["candidate_sets_with_repeated_titles"] == 60
    assert "60 candidate sets repeat a title" in caplog.text


def test_a_repeated_test_target_is_counted(tmp_path: Path, interactions: pl.DataFrame) -> None:
    again = interactions.filter(pl.col("user_id") == "u0")[:1].with_columns(
        pl.lit(99, dtype=pl.Int64).alias("timestamp")
    )
    data = prepare(pl.concat([interactions, again]), output=tmp_path / "d", filter="none")
    assert data.info["counts"]["test_targets_seen_before"] == 1


def test_extreme_titles_survive_the_round_trip(tmp_path: Path, interactions: pl.DataFrame, items: pl.DataFrame) -> None:
    extreme = ["<H>", 'say "hi"', "two lines", "bell\x07", "x" * 10_000, "🎬🍿", "{title}"]
    titles = pl.Series("title", extreme + items["title"].to_list()[len(extreme) :])
    data = prepare(interactions, items.with_columns(titles), output=tmp_path / "d", k_core=2)
    assert [PreparedData.load(data.directory).catalog.title(place + 1) for place in range(7)] == extreme


def test_prepare_reads_files_and_names_the_data_after_them(
    tmp_path: Path, interactions: pl.DataFrame, items: pl.DataFrame
) -> None:
    interactions.write_csv(tmp_path / "films.csv")
    items.write_parquet(tmp_path / "items.parquet")
    data = prepare(tmp_path / "films.csv", tmp_path / "items.parquet", output=tmp_path / "new" / "d", k_core=2)
    assert (data.name, data.domain, data.info["source"]) == ("films", "item", "table")
    frames = prepare(interactions, items, output=tmp_path / "f", k_core=2)
    assert frames.interactions.equals(data.interactions)
    assert frames.candidate_frame.equals(data.candidate_frame)
    assert frames.info["source"] == "frames"
    noted = prepare(interactions, items, output=tmp_path / "g", k_core=2, source="export of the shop")
    assert noted.info["source"] == "export of the shop"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "lastfm"}, r"there is no source 'lastfm'; choose one of \['table'"),
        ({"num_candidates": 1}, "num_candidates is 1"),
        ({"seed": -1}, "seed is -1"),
        ({"keep_items": "some"}, "keep_items is 'some'"),
        ({"max_bad_lines": 2}, "max_bad_lines is 2"),
        ({"domain": ""}, "a domain is a noun with two verbs, .* got \\(''"),
    ],
)
def test_bad_options_are_refused_before_anything_is_read(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare(tmp_path / "absent.csv", output=tmp_path / "d", **options)


def test_failing_data_leave_nothing_behind(tmp_path: Path, interactions: pl.DataFrame) -> None:
    with pytest.raises(DataError, match="the catalogue has 40 items, but a candidate set needs 50"):
        prepare(interactions, output=tmp_path / "d", k_core=2, num_candidates=50)
    assert list(tmp_path.iterdir()) == []


def test_a_full_output_folder_is_kept(tmp_path: Path, interactions: pl.DataFrame) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="is not empty; choose another"):
        prepare(interactions, output=tmp_path / "d", k_core=2)
    with pytest.raises(DataError, match=r"holds no dataset\.json, so it is no earlier result"):
        prepare(interactions, output=tmp_path / "d", k_core=2, overwrite=True)
    assert (tmp_path / "d" / "thesis.txt").read_text() == "mine"


def test_overwrite_replaces_earlier_data(tmp_path: Path, interactions: pl.DataFrame) -> None:
    prepare(interactions, output=tmp_path / "d", k_core=2, name="old")
    with pytest.raises(DataError, match="is not empty"):
        prepare(interactions, output=tmp_path / "d", k_core=2, name="new")
    prepare(interactions, output=tmp_path / "d", k_core=2, name="new", overwrite=True)
    assert PreparedData.load(tmp_path / "d").name == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_the_report_is_an_aligned_table(tmp_path: Path, interactions: pl.DataFrame, items: pl.DataFrame) -> None:
    data = prepare(interactions, items, output=tmp_path / "d", k_core=2, name="toy", domain="movie")
    lines = format_report(data.info).splitlines()
    assert lines[0] == "toy (movie, from frames)"
    assert lines[2].split() == ["step", "users", "items", "interactions", "note"]
    assert "filtered                     30     40           180  k-core, k = 2" in lines
    assert ["share", "of", "items", "without", "title", "2.5%"] in [line.split() for line in lines]
    assert len({len(line) for line in lines[lines.index("", 3) + 1 :]}) == 1
    assert json.loads((tmp_path / "d" / "dataset.json").read_text())["report"] == data.info["report"]


def test_raw_gift_cards_are_prepared_end_to_end(tmp_path: Path, shared: Path) -> None:
    raw = shared / "amazon_gift_cards_2018" / "raw"
    data = prepare(
        raw / "Gift_Cards_5.json.gz",
        raw / "meta_Gift_Cards.json.gz",
        source="amazon-2018",
        filter="none",
        output=tmp_path / "d",
    )
    assert (data.num_users, data.num_items, data.interactions.height) == (458, 148, 2969)
    assert data.info["counts"]["duplicates_dropped"] == 3
    assert data.info["counts"]["items_without_title"] == 0
    assert data.info["shares"]["without_description"] == pytest.approx(1 - 0.9797, abs=1e-4)
    assert len(data.candidates("test")) == 458


def test_low_ratings_and_repeats_are_left_out_and_counted(
    tmp_path: Path, interactions: pl.DataFrame, items: pl.DataFrame
) -> None:
    again = interactions[:3].with_columns(timestamp=pl.lit(50, dtype=pl.Int64))
    low = interactions[5:9].with_columns(rating=pl.lit(1.0), timestamp=pl.lit(60, dtype=pl.Int64))
    data = prepare(
        pl.concat([interactions, again, low]), items, output=tmp_path / "d", k_core=2, min_rating=4, repeats="last"
    )
    steps = {row["step"]: (row["interactions"], row["note"]) for row in data.info["report"]}
    assert steps["exact duplicates dropped"][0] == 187
    assert steps["rated lower left out"] == (183, "min_rating 4")
    assert steps["repeats left out"] == (180, "the last of each user and item kept")
    assert (data.info["settings"]["min_rating"], data.info["settings"]["repeats"]) == (4, "last")
    assert data.interactions.filter(pl.col("user_id") == "u0")["timestamp"].to_list()[-3:] == [50, 50, 50]


def test_rows_in_file_order_are_split_by_it_and_said_loudly(
    tmp_path: Path, interactions: pl.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    data = prepare(interactions[::-1], output=tmp_path / "d", k_core=2, order="file")
    first = interactions.filter(pl.col("user_id") == "u29")["item_id"].to_list()
    assert data.interactions.filter(pl.col("user_id") == "u29")["item_id"].to_list() == first[::-1]
    assert "no times are read: the order of rows in the file is taken for the order of time" in caplog.text
    assert data.info["report"][-2]["note"] == "leave-one-out by the order of rows in the file"


def test_times_below_a_millisecond_decide_the_target_and_survive_the_folder(
    tmp_path: Path, interactions: pl.DataFrame
) -> None:
    backwards = interactions.with_columns(
        timestamp=(1_700_000_000_000_000_000 - pl.int_range(pl.len())).cast(pl.Datetime("ns"))
    )
    data = PreparedData.load(prepare(backwards, output=tmp_path / "d", k_core=2).directory)
    for user in range(data.num_users):
        given = interactions.filter(pl.col("user_id") == data.user_ids[user])["item_id"].to_list()
        assert [data.catalog.item_id(index) for index in data.sequence(user)] == given[::-1]


@pytest.mark.parametrize(("ours", "theirs"), [("{}.0", "{}"), ("{}", "{}.0")])
def test_ids_with_and_without_decimals_meet(
    tmp_path: Path, ours: str, theirs: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [(f"u{user}", ours.format((user + t) % 9 + 1), t) for user in range(9) for t in range(4)]
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    items = pl.DataFrame(
        {"item_id": [theirs.format(n) for n in range(1, 10)], "title": [f"T{n}" for n in range(1, 10)]}
    )
    data = prepare(log, items, output=tmp_path / "d", k_core=2, num_candidates=4)
    assert data.catalog.item_ids == [str(n) for n in range(1, 10)]
    assert data.info["counts"]["items_without_title"] == 0
    assert "9 item ids are written as numbers with .0 in one table and without in the other" in caplog.text


def test_ids_that_both_tables_have_are_never_respelt(tmp_path: Path) -> None:
    rows = [(f"u{user}", item, t) for user in range(9) for t, item in enumerate(["1", "1.0", "2.0", "2", f"x{user}"])]
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    items = pl.DataFrame({"item_id": ["1", "1.0", "2.0", "2", "7.0"]})
    data = prepare(log, items, output=tmp_path / "d", filter="none", keep_items="all", num_candidates=3)
    assert data.catalog.item_ids[:5] == ["1", "1.0", "2.0", "2", "7.0"]


def test_number_ids_of_json_do_not_depend_on_other_lines(tmp_path: Path) -> None:
    rows = [
        {"user_id": float(u), "item_id": float((u + t) % 12 + 1), "timestamp": 1000 + t}
        for u in range(1, 41)
        for t in range(6)
    ]
    good = [json.dumps(row) for row in rows]
    items = [
        json.dumps({"item_id": float(n), "title": f"Film {n}", "price": p})
        for n, p in zip(range(1, 13), [1.5] * 11 + [float("nan")], strict=True)
    ]
    (tmp_path / "items.jsonl").write_text("\n".join(items))
    found = []
    for number, lines in enumerate(
        (good, [*good[:100], '{"user_id": 7.0, "item_', *good[100:]], [*good[:-1], good[-1][:-1] + ', "x": NaN}'])
    ):
        (tmp_path / "log.jsonl").write_text("\n".join(lines))
        data = prepare(
            tmp_path / "log.jsonl",
            tmp_path / "items.jsonl",
            output=tmp_path / str(number),
            filter="none",
            num_candidates=4,
        )
        found.append((data.user_ids, data.catalog.item_ids, data.info["counts"]["items_without_title"]))
    assert found == [([str(u) for u in range(1, 41)], [str(n) for n in range(1, 13)], 0)] * 3


def test_settings_that_cannot_work_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    for options, message in (
        ({"min_rating": float("nan")}, "min_rating is nan; it must be a finite number"),
        ({"repeats": "one"}, "repeats is 'one'; choose one of"),
        ({"order": "rows"}, "order is 'rows'; choose one of"),
        ({"order": "file", "time_format": "%Y"}, "time_format belongs to order 'time'"),
        ({"time_format": "year"}, "holds no sign such as %Y"),
    ):
        with pytest.raises(DataError, match=message):
            prepare(tmp_path / "missing.csv", output=tmp_path / "d", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("part", ["interactions", "items"])
def test_a_dataset_whose_files_on_disk_are_gone_or_cut_off_is_refused(
    tmp_path: Path, interactions: pl.DataFrame, items: pl.DataFrame, part: str
) -> None:
    """A read from a memory map of a file that was cut off would end the process with a bus error."""
    given: dict[str, Any] = {"interactions": interactions, "items": items}
    Dataset.from_dict(given[part].to_dict(as_series=False)).save_to_disk(tmp_path / "saved")
    given[part] = load_from_disk(tmp_path / "saved")
    assert prepare(**given, k_core=3).num_users == 30
    (file,) = (tmp_path / "saved").glob("*.arrow")
    whole = file.read_bytes()
    for left in (b"", whole[: len(whole) // 2]):
        file.write_bytes(left)
        with pytest.raises(
            DataError, match=rf"the {part} cannot be read: its file .*{file.name} is damaged .*load them"
        ):
            prepare(**given, output=tmp_path / "prepared", k_core=3)
    file.unlink()
    with pytest.raises(DataError, match=rf"the {part} cannot be read: its file .*{file.name} is gone; load them again"):
        prepare(**given, output=tmp_path / "prepared", k_core=3)
    assert not (tmp_path / "prepared").exists()


def test_a_streamed_dataset_whose_file_is_gone_is_refused(tmp_path: Path, interactions: pl.DataFrame) -> None:
    interactions.write_csv(tmp_path / "sales.csv")
    streamed = load_dataset(
        "csv", data_files=str(tmp_path / "sales.csv"), split="train", streaming=True, cache_dir=str(tmp_path / "cache")
    )
    (tmp_path / "sales.csv").unlink()
    with pytest.raises(DataError, match=r"the interactions cannot be read: .*sales.csv"):
        prepare(streamed)
