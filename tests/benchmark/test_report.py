import re
import sys
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from fabricated import drawn_ranks, run, runs

from allmrec_hf.benchmark import plots
from allmrec_hf.benchmark import verdicts as verdict_rules
from allmrec_hf.benchmark.benchmark_report import markdown_text, render
from allmrec_hf.benchmark.published import PublishedValue
from allmrec_hf.benchmark.result_tables import by_scenario, chance, default_reference, make_tables
from allmrec_hf.benchmark.runs import load_run, save_run
from allmrec_hf.benchmark.views import comparisons_grid, difference, geometry_grid, results_grid
from allmrec_hf.errors import ALLMRecError, DataError

SCRIPT = "<script>alert(1)</script>"


def said(found_runs, subject, reference="a-llmrec"):
    """Return the verdicts on one subject."""
    found = verdict_rules.verdicts(found_runs, make_tables(found_runs, reference), reference)
    return [verdict for verdict in found if verdict.subject == subject]


def row(frame, **place):
    """Return the only row of a place."""
    (found,) = frame.filter(**place).iter_rows(named=True)
    return found


def test_results_by_hand():
    ranks = [1.0, 2.0, np.inf, 1.5]
    tables = make_tables([run("a-llmrec", ranks, cold=[1, 0, 0, 0], tied=[0, 0, 0, 1])], "a-llmrec")
    place = {"label": "a-llmrec", "group": "overall"}
    assert row(tables.results, metric="hit@1", **place)["mean"] == 1.5 / 4
    ndcg = (1 + 1 / np.log2(3) + 0 + (1 + 1 / np.log2(3)) / 2) / 4
    assert row(tables.results, metric="ndcg@10", **place)["mean"] == pytest.approx(ndcg)
    assert row(tables.results, metric="mrr", **place)["mean"] == pytest.approx((1 + 1 / 2 + 0 + 3 / 4) / 4)
    assert row(tables.results, metric="hit@1", label="a-llmrec", group="cold")["mean"] == 1.0


def test_one_seed_has_no_deviation_and_several_have_that_of_their_means():
    one = make_tables([run("a-llmrec", [1, 2])], None).results
    assert one["deviation"].is_null().all()
    two = make_tables([run("a-llmrec", [1, 1]), run("a-llmrec", [1, 2], seed=1)], None).results
    found = row(two, metric="hit@1", group="overall")
    assert (found["mean"], found["seeds"]) == (0.75, 2)
    assert found["deviation"] == pytest.approx(np.sqrt(0.125))


def test_groups_without_users_have_no_rows():
    tables = make_tables(runs(30), "a-llmrec")
    assert "never_seen" not in tables.results["group"].unique().to_list()
    assert "never_seen" not in tables.comparisons["group"].unique().to_list()


def test_one_method_has_no_comparisons_and_still_a_report(tmp_path):
    page = render(tmp_path, [run("a-llmrec", [1, 2, np.inf])], "Alone")
    assert page.is_file()
    assert len(pl.read_parquet(tmp_path / "tables" / "comparisons.parquet")) == 0
    assert "±0." not in page.read_text(encoding="utf-8")


def test_mcnemar_takes_the_least_favourable_seed():
    other = [2] * 8 + [1] * 4
    found = [
        run("a-llmrec", [1] * 12, seed=0),
        run("a-llmrec", [1] * 7 + [2] + [1] * 4, seed=1),
        run("sasrec", other),
    ]
    compared = row(make_tables(found, "a-llmrec").comparisons, metric="hit@1", group="overall")
    assert compared["p_mcnemar"] == pytest.approx(2 / 2**7)  # seed 1: 7 discordant users; seed 0 would give 2 / 2**8
    assert compared["difference"] == pytest.approx(7.5 / 12)


def constant(label, num_users=40, **options):
    """Return a run of one score for all of 20 candidates: the mean of the places 1 to 20, 19 tied others."""
    return run(label, [10.5] * num_users, tied=[19] * num_users, **options)


def test_a_constant_score_is_exactly_chance_in_every_row_and_test():
    found = [constant("a-llmrec"), *(constant("sasrec", seed=seed) for seed in range(3))]
    tables = make_tables(found, "a-llmrec")
    for metric in ("hit@1", "hit@10", "ndcg@10", "mrr"):
        rows = tables.results.filter(metric=metric)
        expected = [chance(found[0], metric)] * len(rows)
        for column in ("mean", "low", "high"):
            assert rows[column].to_list() == pytest.approx(expected, abs=1e-12)
        assert rows["among_best"].all()
    assert (tables.comparisons["p_randomisation"] == 1).all()  # equal but for the rounding of a mean over seeds
    assert tables.comparisons["p_mcnemar"].is_null().all()  # a hit is a share of one: not McNemar's question


def test_an_alarm_at_chance_by_ties_is_quiet():
    leak = [one for one in runs(40) if one.key.label != "leak-alarm"]
    (verdict,) = said([*leak, constant("leak-alarm", cold=np.arange(40) % 3 == 0)], verdict_rules.LEAK)
    assert verdict.status == "quiet"


def test_mcnemar_is_left_out_where_one_seed_has_shares_of_hits():
    found = [
        run("a-llmrec", [1, 1, 1]),
        run("a-llmrec", [1, 1, 1.5], tied=[0, 0, 1], seed=1),
        run("sasrec", [1, 2, 2]),
    ]
    compared = make_tables(found, "a-llmrec").comparisons.filter(group="overall")
    assert row(compared, metric="hit@1")["p_mcnemar"] is None
    assert row(compared, metric="hit@10")["p_mcnemar"] == 1  # all are hits
    assert row(compared, metric="hit@1")["difference"] == pytest.approx((2 + 0.75 - 1) / 3)


def test_a_run_without_ties_is_refused_by_name():
    old = run("a-llmrec", [1, 2])
    with pytest.raises(DataError, match=r"a-llmrec \(seed 0\): .*rank and tied are needed"):
        make_tables([replace(old, ranks=old.ranks.drop("tied"))], "a-llmrec")


@pytest.mark.parametrize("figure", ["mean", "low"])
def test_verdicts_refuse_figures_that_are_no_numbers(figure):
    found = runs(30)
    tables = make_tables(found, "a-llmrec")
    broken = pl.when(pl.col("label") == "leak-alarm").then(float("nan")).otherwise(pl.col(figure)).alias(figure)
    tables = replace(tables, results=tables.results.with_columns(broken))
    with pytest.raises(DataError, match="hit@1 of leak-alarm is no finite number"):
        verdict_rules.verdicts(found, tables, "a-llmrec")


def test_plots_refuse_points_that_are_no_numbers():
    with pytest.raises(ALLMRecError, match="'x' has no finite value"):
        plots.Point("x", plots.METHOD, 0.1, float("nan"), 0.2)


def test_holm_corrects_over_all_methods_and_groups_of_a_metric():
    comparisons = make_tables(runs(90), "a-llmrec").comparisons
    family = comparisons.filter(metric="hit@1")
    assert len(family) == 7 * 3  # seven other methods; all, warm and cold targets
    smallest = family.sort("p_randomisation").row(0, named=True)
    assert smallest["p_holm"] == pytest.approx(min(1.0, 21 * smallest["p_randomisation"]))
    assert (family["p_holm"] >= family["p_randomisation"]).all()


def test_bold_goes_to_the_best_and_to_those_not_told_apart_from_it():
    found = make_tables(runs(200, strengths={"fair-backbone": (2.3, 1.6)}), "a-llmrec").results
    overall = found.filter(group="overall", metric="hit@1")
    assert set(overall.filter("among_best")["label"]) == {"a-llmrec", "fair-backbone"}


def test_an_ablation_of_another_label_is_compared_with_that_label():
    parent, part = run("other", [1, 2, 1, 1]), run("other without x", [2, 2, 1, 1], details={"ablation_of": "other"})
    comparisons = make_tables([run("a-llmrec", [1, 1, 1, 1]), parent, part], "a-llmrec").comparisons
    found = row(comparisons, reference="other", label="other without x", metric="hit@1", group="overall")
    assert found["difference"] == 0.25


def test_users_targets_groups_and_candidates_must_be_the_same():
    first = run("a-llmrec", [1, 2, 3])
    with pytest.raises(DataError, match="same candidate file"):
        make_tables([first, run("sasrec", [1, 2, 3], sha="other")], "a-llmrec")
    other = run("sasrec", [1, 2, 3])
    with pytest.raises(DataError, match="3 are in both, but user_id, target differ"):
        make_tables([first, replace(other, ranks=other.ranks.reverse())], "a-llmrec")
    with pytest.raises(DataError, match="different groups"):
        make_tables([first, run("sasrec", [1, 2, 3], cold=[0, 0, 1])], "a-llmrec")
    with pytest.raises(DataError, match=r"sasrec \(seed 0\): 1 of 3 ranks are no counts"):
        make_tables([first, run("sasrec", [1, 2, np.nan])], "a-llmrec")
    with pytest.raises(DataError, match="run twice"):
        make_tables([first, first], "a-llmrec")
    with pytest.raises(ALLMRecError, match="no run is labelled 'absent'"):
        make_tables([first], "absent")


def test_default_reference_is_the_whole_method():
    part = run("part", [1], method="a-llmrec", details={"ablation_of": "whole"})
    assert default_reference([part, run("whole", [1], method="a-llmrec")]) == "whole"
    assert default_reference([run("sasrec", [1])]) is None


def test_chance_by_hand():
    assert chance(run("any", [1, 2]), "hit@1") == 0.05
    assert chance(run("any", [1, 2]), "hit@10", "cold") == 0.5


EVIL = f"{SCRIPT} | $x$ `a` *b*"


def render_all(runs_of, folder):
    """Render the stored runs with everything that a report may be given."""
    published = [PublishedValue("toy", "overall", "cold", "SASRec", 0.119)]
    failed = [{"dataset": "toy", "scenario": "overall", "label": EVIL, "seed": 0, "error": EVIL}]
    command = f"allmrec benchmark {EVIL}"
    stored = [load_run(path) for path in sorted((runs_of / "runs").iterdir())]
    render(folder, stored, f"Title {EVIL}", command=command, published=published, failed=failed)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Return the folder of a report with everything in it, hostile names included."""
    folder = tmp_path_factory.mktemp("report")
    made = [*runs(60, seeds=(0, 1)), *runs(60, "few-shot-8", labels=("a-llmrec", "sasrec"))]
    made += runs(60, "few-shot-16", labels=("a-llmrec", "sasrec"))
    ranks = drawn_ranks(np.full(60, 2.0), 9)
    geometry = {"items": 500.0, "item_mean_cosine": 0.91}
    details = {
        "ablation_of": "a-llmrec",
        "geometry": geometry,
        "paper": EVIL,
        "simplified": EVIL,
        "options": {EVIL: EVIL},
    }
    made.append(run(EVIL, ranks, method="a-llmrec", details=details))
    for one in made:
        save_run(folder, one)
    render_all(folder, folder)
    return folder


def test_the_page_stands_by_itself(page):
    text = (page / "report.html").read_text(encoding="utf-8")
    assert sorted(path.name for path in page.iterdir()) == ["report.html", "report.md", "runs", "tables"]
    assert text.count("<svg") >= 5
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?\s*(?:https?:|//|data:)", text)
    assert not re.search(r"@import|url\((?!#)", text)


def test_whatever_the_data_say_is_escaped(page):
    html, markdown = ((page / name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    outside_code = re.sub(r"```.*?```", "", markdown, flags=re.DOTALL)
    assert not re.search(r"(?<!\\)<", outside_code)
    assert r"\<script\>" in outside_code
    tables = re.split(r"\n(?!\|)", outside_code)
    for table in (part for part in tables if "| --- |" in part):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines() if line.startswith("|")}
        assert len(widths) == 1, table


def test_no_picture_shares_an_id_with_another(page):
    ids = re.findall(r'\sid="([^"]+)"', (page / "report.html").read_text(encoding="utf-8"))
    assert len(ids) == len(set(ids))


def test_everything_asked_for_is_in_the_page(page):
    text = (page / "report.html").read_text(encoding="utf-8")
    for part in (
        "What can be said",
        "by training users",
        "Ablations of a-llmrec",
        "Warm against cold",
        "item mean cosine",
    ):
        assert part in text
    assert "0.1190" in text
    assert "f00" in text
    assert "python 3.12" in text


def test_same_runs_give_the_same_bytes(page, tmp_path):
    render_all(page, tmp_path)
    for name in ("report.html", "report.md", "tables/results.parquet", "tables/comparisons.parquet"):
        assert (tmp_path / name).read_bytes() == (page / name).read_bytes()


def test_markdown_text_is_one_line_without_markup():
    assert markdown_text("a|b\n<c> `d`") == r"a\|b \<c\> \`d\`"


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ALLMRecError, match=r"pip install 'allmrec-hf\[benchmark\]'"):
        render(tmp_path, runs(30), "No plots")


def test_gain_that_survives_both_controls_is_credited():
    (verdict,) = said(runs(300, seeds=(0, 1)), verdict_rules.CREDIT)
    assert verdict.status == "good"
    assert re.search(r"over sasrec \(Hit@1 \+0\.\d+.*is credited to the LLM: it survives random-llm", verdict.text)


def test_credit_of_one_seed_says_so():
    (verdict,) = said(runs(300), verdict_rules.CREDIT)
    assert verdict.status == "note"
    assert verdict.text.endswith("one seed: luck of the training is not ruled out")


def test_a_gain_that_turns_with_a_seed_is_not_credited():
    """Seed 1 alone is far above all controls, seed 0 is below: over the users the mean is significant."""
    strong, weak = ({"a-llmrec": strength} for strength in ((6.0, 6.0), (1.1, 0.6)))
    made = [*runs(300, strengths=weak), *runs(300, seeds=(1,), strengths=strong)]
    (verdict,) = said(made, verdict_rules.CREDIT)
    assert verdict.status == "against"
    assert "no significant gain over sasrec" in verdict.text
    assert re.search(r"-0\.\d+ with the worst seed", verdict.text)
    compared = row(make_tables(made, "a-llmrec").comparisons, metric="hit@1", group="overall", label="sasrec")
    assert compared["difference"] > 0.05
    assert compared["p_holm"] < 0.05


def test_nothing_is_credited_while_the_leak_alarm_fires():
    loud = runs(300, strengths={"leak-alarm": (3.9, 3.9)}, seeds=(0, 1))
    (credit,) = said(loud, verdict_rules.CREDIT)
    (fairness,) = said(loud, verdict_rules.FAIRNESS)
    assert credit.status == fairness.status == "missing"
    assert "the leak alarm fires" in credit.text


def test_control_around_another_llm_does_not_count():
    made = runs(60)
    for number, found in enumerate(made):
        if found.key.label == "random-llm":
            made[number] = replace(found, key=replace(found.key, facts={"llm": "another"}))
    (verdict,) = said(made, verdict_rules.CREDIT)
    assert verdict.text == "nothing is credited to the LLM of a-llmrec: random-llm missing"


def ranked(**options):
    """Return runs whose methods of these labels, `_` for `-`, have these options."""
    named = {label.replace("_", "-"): {"options": each} for label, each in options.items()}
    return [
        replace(found, key=replace(found.key, facts=named.get(found.key.label, {})))
        if found.key.label in named
        else found
        for found in runs(300)
    ]


FUSED, RETRIEVED = {"ranker": "fusion"}, {"ranker": "retrieval"}


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({"a_llmrec": FUSED, "random_llm": FUSED}, "no-llm with the ranker fusion"),
        ({"a_llmrec": FUSED, "no_llm": FUSED}, "random-llm with the ranker fusion"),
        ({"a_llmrec": RETRIEVED}, "random-llm with the ranker retrieval"),
        ({"a_llmrec": {"ranker": "letter"}}, "random-llm with the ranker letter"),
        (
            {"a_llmrec": {**FUSED, "rank_cold_weight": 2}, "random_llm": FUSED, "no_llm": FUSED},
            "random-llm .* and no-llm",
        ),
    ],
)
def test_a_control_that_ranks_otherwise_does_not_count(options, missing):
    (verdict,) = said(ranked(**options), verdict_rules.CREDIT)
    assert re.search(f"nothing is credited to the LLM of a-llmrec: {missing}.* missing", f"{verdict.text} missing")
    assert verdict.status == "missing"


@pytest.mark.parametrize(
    "options",
    [
        {"a_llmrec": FUSED, "random_llm": FUSED, "no_llm": FUSED},
        {"a_llmrec": RETRIEVED, "random_llm": RETRIEVED},
        {"a_llmrec": {"ranker": "likelihood"}},
    ],
)
def test_controls_that_rank_alike_count(options):
    (verdict,) = said(ranked(**options), verdict_rules.CREDIT)
    assert "is credited to the LLM: it survives random-llm" in verdict.text


def test_of_two_fair_backbones_the_stronger_one_speaks():
    ranks = next(
        found for found in runs(300, strengths={"a-llmrec": (3.9, 3.9)}) if found.key.label == "a-llmrec"
    ).ranks
    stronger = run("fair on gru4rec", ranks["rank"].to_numpy(), method="fair-backbone")
    (verdict,) = said([*runs(300), stronger], verdict_rules.FAIRNESS)
    assert verdict.status == "against"
    assert "a-llmrec is BELOW fair on gru4rec" in verdict.text


def test_large_llm_of_another_method_does_not_speak_for_this_one():
    large = run("llm-only", np.ones(60), details={"llm": "large", "llm_parameters": 7_000_000_000})
    (verdict,) = said([*runs(60), large], verdict_rules.LLM_SIZE)
    assert "neither confirmed nor refuted" in verdict.text


def test_gain_that_a_random_llm_has_too_is_not_credited():
    (verdict,) = said(runs(300, strengths={"random-llm": (2.4, 1.6)}), verdict_rules.CREDIT)
    assert verdict.status == "against"
    assert "is NOT credited to the LLM: it does not beat random-llm (" in verdict.text
    assert "no-llm" not in verdict.text


def test_without_a_gain_over_the_backbone_there_is_nothing_to_credit():
    (verdict,) = said(runs(300, strengths={"sasrec": (2.6, 1.8)}), verdict_rules.CREDIT)
    assert verdict.status == "against"
    assert "no significant gain over sasrec" in verdict.text


def test_missing_controls_are_named_and_nothing_is_credited():
    made = runs(60, labels=("a-llmrec", "sasrec", "no-llm"))
    (verdict,) = said(made, verdict_rules.CREDIT)
    assert (verdict.status, verdict.text) == (
        "missing",
        "nothing is credited to the LLM of a-llmrec: random-llm and leak-alarm missing",
    )
    (missing,) = said(made, verdict_rules.MISSING_CONTROLS)
    assert missing.text.startswith(
        "not run: popularity, text-cosine, random-llm, fair-backbone, leak-alarm. Nothing can"
    )


def test_without_a_method_under_test_no_claim_is_made():
    (verdict,) = said(runs(30, labels=("sasrec", "popularity")), verdict_rules.CREDIT, None)
    assert verdict.status == "missing"


def test_leak_alarm_fires_above_chance_and_text_and_is_quiet_otherwise():
    (quiet,) = said(runs(300), verdict_rules.LEAK)
    assert quiet.status == "quiet"
    (loud,) = said(runs(300, strengths={"leak-alarm": (3.0, 3.0)}), verdict_rules.LEAK)
    assert loud.status == "alarm"
    assert loud.text.startswith("LEAK: an untrained LLM that reads text only reaches Hit@1 0.")
    text_too = runs(300, strengths={"leak-alarm": (1.0, 1.0)})
    (between,) = said(text_too, verdict_rules.LEAK)
    assert between.status == "note"
    assert "above chance, which random weights have no reason to be" in between.text
    (no_text,) = said([one for one in text_too if one.key.label != "text-cosine"], verdict_rules.LEAK)
    assert no_text.status == "alarm"
    assert "raw text cosine was not run" in no_text.text


def test_fair_backbone_that_is_not_beaten_is_said():
    assert said(runs(300), verdict_rules.FAIRNESS)[0].status == "good"
    (equal,) = said(runs(300, strengths={"fair-backbone": (2.4, 1.6)}), verdict_rules.FAIRNESS)
    assert equal.status == "against"
    assert "is not shown to be above fair-backbone" in equal.text
    (better,) = said(runs(300, strengths={"fair-backbone": (3.9, 3.9)}), verdict_rules.FAIRNESS)
    assert "a-llmrec is BELOW fair-backbone" in better.text


def test_small_llms_leave_the_papers_claim_open():
    (small,) = said(runs(30), verdict_rules.LLM_SIZE)
    assert "400 k parameters" in small.text
    assert "neither confirmed nor refuted here" in small.text
    large = [replace(one, details={**one.details, "llm": "opt", "llm_parameters": 6_700_000_000}) for one in runs(30)]
    (found,) = said(large, verdict_rules.LLM_SIZE)
    assert "6.7 B parameters" in found.text
    assert "refuted" not in found.text
    random = [replace(one, details={"llm": "big", "llm_parameters": 9e9}) for one in runs(30, labels=("random-llm",))]
    assert said([*runs(30, labels=("a-llmrec",)), *random], verdict_rules.LLM_SIZE)[0].status == "note"


def test_one_seed_is_said():
    assert said(runs(30), verdict_rules.SEEDS)[0].text.startswith("one seed")
    assert said(runs(30, seeds=(0, 1)), verdict_rules.SEEDS)[0].text.startswith("2 seeds for each method")


def test_a_sentence_that_scenarios_share_stands_once_with_their_names():
    names = ("overall", "cold-start", "few-shot-8")
    parts = [found for name in names for found in runs(60, name, labels=("a-llmrec", "sasrec"))]
    for subject in (verdict_rules.LEAK, verdict_rules.MISSING_CONTROLS, verdict_rules.CREDIT, verdict_rules.FAIRNESS):
        (verdict,) = said(parts, subject)
        assert (verdict.status, verdict.where) == ("missing", "all scenarios")
    whole = runs(60, "warm-start")
    shared, own = said([*whole, *parts[:4]], verdict_rules.LEAK)
    assert shared.where == "toy, overall; toy, cold-start"
    assert own.where == "toy, warm-start"


def test_sentences_with_other_figures_stay_apart():
    both = [*runs(300), *runs(240, "other")]
    for subject in (verdict_rules.LEAK, verdict_rules.CREDIT, verdict_rules.FAIRNESS):
        assert [verdict.where for verdict in said(both, subject)] == ["toy, overall", "toy, other"]


def test_a_method_under_test_without_an_llm_is_asked_nothing_about_one():
    made = runs(60, labels=("popularity", "sasrec", "text-cosine"))
    found = verdict_rules.verdicts(made, make_tables(made, "popularity"), "popularity")
    (note,) = said(made, verdict_rules.CREDIT, "popularity")
    assert note.status == "note"
    assert note.text.startswith("popularity, the method under test, has no LLM")
    assert {verdict.subject for verdict in found}.isdisjoint({verdict_rules.FAIRNESS, verdict_rules.LLM_SIZE})
    assert not any("credited" in verdict.text for verdict in found)
    (controls,) = said(made, verdict_rules.MISSING_CONTROLS, "popularity")
    assert controls.text == "not run: leak-alarm. What they would show is not known"


def test_a_backbone_under_test_is_no_missing_backbone():
    made = runs(60, labels=("popularity", "sasrec", "text-cosine", "leak-alarm"))
    (controls,) = said(made, verdict_rules.MISSING_CONTROLS, "sasrec")
    assert controls.status == "quiet"


def test_data_sets_and_scenarios_keep_the_order_of_the_runs(tmp_path):
    places = [("zoo", "few-shot-64"), ("zoo", "overall"), ("ape", "overall"), ("zoo", "few-shot-8")]
    made = [found for dataset, scenario in places for found in runs(30, scenario, labels=["sasrec"], dataset=dataset)]
    made += runs(30, labels=["a-llmrec"], dataset="zoo")  # first in the order of labels, lacks the first scenario
    in_order = [("zoo", "few-shot-64"), ("zoo", "overall"), ("zoo", "few-shot-8"), ("ape", "overall")]
    assert list(by_scenario(made)) == in_order
    text = (render(tmp_path, made, "Order", order=["a-llmrec", "sasrec"]).parent / "report.md").read_text()
    assert re.findall(r"\n### (\w+), (\S+)", text.replace("\\", "")) == in_order
    assert "| seconds, mean over seeds | few-shot-64 | overall | few-shot-8 |" in text


def test_zero_has_no_minus_sign():
    row = {"difference": -1e-9, "low": -1e-6, "high": 0.0, "p_holm": 1.0, "users": 50}
    assert (difference(row).text, difference(row).detail) == ("+0.0000", "+0.000 to +0.000")
    assert (difference(row, -1).text, difference(row, -1).detail) == ("+0.0000", "+0.000 to +0.000")
    assert verdict_rules.signed(-0.00006) == "-0.0001"


def test_groups_of_few_users_are_not_compared():
    made = runs(12, strengths={"a-llmrec": (9.0, 9.0)})  # 8 warm targets, 4 cold ones
    made += [run("never", [1.0] * 11 + [2.0], cold=[n % 3 == 0 for n in range(12)])]
    tables = make_tables(made, "a-llmrec")
    kinds = dict.fromkeys((found.key.label for found in made), "method")
    for grid in (
        results_grid(list(tables.results.iter_rows(named=True)), kinds, made[0]),
        comparisons_grid(list(tables.comparisons.with_columns(p_holm=pl.lit(0.01)).iter_rows(named=True))),
    ):
        whole, warm, cold = grid.sections
        assert [whole.heading, warm.heading] == ["all users (12 users)", "warm (8 users; too few users to compare)"]
        assert any(entry.strong for row in whole.rows for entry in row)
        assert not any(entry.strong for part in (warm, cold) for row in part.rows for entry in row)


def test_one_user_is_one_user(tmp_path):
    text = render(tmp_path, [run("sasrec", [1.0], cold=[1])], "One").read_text(encoding="utf-8")
    assert "1 user;" in text
    assert "1 users" not in text


def test_runs_that_are_not_there_share_a_line_of_their_scenario(tmp_path):
    place, reason = {"dataset": "toy", "scenario": "cold"}, "not computed yet"
    waiting = [{**place, "label": label, "seed": seed, "reason": reason} for label in "ab" for seed in (0, 1)]
    skipped = [
        {"dataset": "toy", "scenario": "big", "reason": "no users"},
        *waiting,
        {**place, "scenario": "overall", "label": "c", "seed": 3, "reason": reason},
    ]
    failed = [{**place, "label": "d", "seed": 0, "error": "ValueError: x"}]
    render(tmp_path, runs(30, labels=["sasrec"]), "Gaps", skipped=skipped, failed=failed)
    lines = re.findall(r"\| Not run \| \| not run \| (.*) \|", (tmp_path / "report.md").read_text(encoding="utf-8"))
    assert lines == [
        "toy, big: not made: no users",
        "toy, cold: 4 runs not computed yet: a (seeds 0 and 1), b (seeds 0 and 1)",
        "toy, overall, c, seed 3: not computed yet",
        "toy, cold, d, seed 0: failed: ValueError: x",
    ]


@pytest.mark.parametrize(("candidates", "shares"), [("f00", [0.25, 0.5, 1.0]), ("other", [0.25, 0.5])])
def test_the_curve_over_shares_ends_with_all_the_data_where_they_are_asked_the_same(
    candidates, shares, tmp_path, monkeypatch
):
    some = {"labels": ("a-llmrec", "sasrec"), "num_users": 60}
    found = [one for share in ("0.5", "0.25") for one in runs(scenario=f"share-{share}", **some)]
    found += [replace(one, report={**one.report, "candidates_sha256": candidates}) for one in runs(**some)]
    curves = {}
    monkeypatch.setattr(plots, "curves", lambda lines, x_label, *rest: curves.update({x_label: lines}) or "<svg></svg>")
    render(tmp_path, found, "shares", "a-llmrec")
    assert {label: [x for x, _ in points] for label, points in curves["share of the training data"].items()} == {
        "a-llmrec": shares,
        "sasrec": shares,
    }


def test_methods_of_one_alignment_share_a_row_of_the_geometry():
    found = [
        run(label, [1, 2], details={"geometry": {"items": items}}) for label, items in (("a", 5), ("b", 5), ("c", 6))
    ]
    (section,) = geometry_grid(found).sections
    assert [line[0].text for line in section.rows] == ["a, b", "c"]
