"""Suites: what YAML says becomes runs, and every mistake is named with its place before anything is computed."""

from __future__ import annotations

import pytest
import yaml

from allmrec_hf.benchmark.plan import plan
from allmrec_hf.benchmark.suite import suite_names
from allmrec_hf.benchmark.suite_parser import load_suite, parse_suite
from allmrec_hf.errors import ALLMRecError
from allmrec_hf.part_sources import part_name
from allmrec_hf.training import presets
from tests.benchmark.stub_method import content


def parsed(**changes):
    return parse_suite(
        content(**{"methods": ["popularity", "item-knn"], "reference": "popularity", **changes}), "s.yaml"
    )


def method_entry(**changes):
    return {"methods": ["popularity", {"label": "other", "method": "item-knn", **changes}]}


def dataset_entry(**changes):
    return {"datasets": [{"name": "world", "synthetic": {}, **changes}]}


@pytest.mark.parametrize("name", ["smoke", "real", "paper-movies", "paper-games", "paper-beauty", "paper-toys"])
def test_every_suite_of_the_package_can_be_read(name):
    assert name in suite_names()
    suite = load_suite(name)
    assert suite.reference == "a-llmrec"
    assert {"popularity", "text-cosine", "no-llm", "random-llm", "fair-backbone", "leak-alarm"} <= {
        spec.method for spec in suite.methods
    }


def test_suite_becomes_runs_of_each_dataset_scenario_method_and_seed():
    keys = [planned.key for planned in plan(parsed())]
    assert len(keys) == 3 * (2 + 1)  # popularity draws nothing, so it has one seed
    assert len({key.digest for key in keys}) == len(keys)
    assert {key.scenario for key in keys} == {"overall", "few-shot-20", "few-shot-30"}


def test_list_of_few_shot_sizes_evaluates_the_same_users():
    shots = [spec.scenario for spec in parsed().scenarios if spec.label.startswith("few-shot")]
    assert [shot.largest for shot in shots] == [30, 30]


def test_runs_that_share_parts_stand_together():
    groups = [planned.group for planned in plan(parsed())]
    assert sorted(range(len(groups)), key=lambda row: groups.index(groups[row])) == list(range(len(groups)))


def test_method_restricted_to_a_scenario_runs_there_alone():
    planned_runs = plan(parsed(**method_entry(only_scenarios=["few-shot-20"])))
    assert {planned.key.scenario for planned in planned_runs if planned.key.label == "other"} == {"few-shot-20"}


def test_data_made_otherwise_are_other_runs():
    one, other = plan(parsed()), plan(parsed(**dataset_entry(synthetic={"seed": 1})))
    assert not {planned.key.digest for planned in one} & {planned.key.digest for planned in other}


def test_a_preset_with_other_settings_makes_other_runs(monkeypatch):
    """Its name is the same: a folder from before a change must not be mixed with runs from after it."""
    before = {planned.key.digest for planned in plan(parsed())}
    assert {planned.key.digest for planned in plan(parsed())} == before
    name = parsed().preset
    sections = dict(presets._VALUES[name])
    monkeypatch.setitem(presets._VALUES, name, sections | {"align": {**sections["align"], "learning_rate": 0.5}})
    assert not {planned.key.digest for planned in plan(parsed())} & before


def test_demo_names_the_parts_of_the_package_and_no_path_enters_the_run():
    planned = plan(parsed(llm="demo"))[0]
    assert planned.setting.llm.endswith("language_model")
    assert planned.key.facts["llm"].startswith("demo (")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["popular"]}, r"s\.yaml: methods\[0\]\.method: unknown method 'popular'; known ones: popularity"),
        ({"scenarios": ["warm"]}, r"s\.yaml: scenarios\[0\]: unknown scenario 'warm'; known ones: overall"),
        ({"scenarios": [{"name": "few-shot"}]}, r"scenarios\[0\]: scenario few-shot needs the parameters \['num_users"),
        ({"scenarios": [{"name": "few-shot", "num_users": ["a", 2]}]}, r"scenarios\[0\]: .*num_users"),
        ({"scenarios": ["overall", "overall"]}, "each label may stand there once; more than once: overall"),
        ({"speed": 1}, r"s\.yaml has unknown keys \['speed'\]; known ones: title, seeds"),
        ({"methods": []}, "methods must be a list with at least one entry"),
        ({"methods": ["popularity", "popularity"]}, "each label may stand there once; more than once: popularity"),
        (method_entry(ablation_of="nothing"), "unknown label 'nothing'; known ones: popularity, other"),
        (method_entry(only_scenarios=["cold-users"]), "unknown scenario 'cold-users'; known ones: overall, few-shot"),
        (method_entry(only_datasets="moon"), "unknown data set 'moon'; known ones: world"),
        (method_entry(backbone="transformer"), "unknown backbone 'transformer'"),
        (method_entry(backbone="popularity"), "unknown backbone 'popularity'"),
        ({"published": "beautty"}, "unknown data set 'beautty'; known ones: movies"),
        ({"budget": {"backbone": {"seed": 7}}}, r"budget\.backbone sets the seed, which would make all seeds one run"),
        ({"evaluation": {"history_buckets": [12, 9]}}, r"history_buckets must be growing numbers, got \[12, 9\]"),
        (
            {"scenarios": ["overall", {"name": "overall", "only_datasets": ["world"]}]},
            "scenarios of world: each label may stand there once; more than once: overall",
        ),
        (method_entry(llms="x"), r"methods\[1\] has unknown keys \['llms'\]"),
        ({"reference": "best"}, "reference: unknown label 'best'"),
        ({"seeds": [0, 0]}, "each seed may stand there once"),
        ({"seeds": [0.5]}, "seeds must be whole numbers of at least 0"),
        ({"preset": "fast"}, "unknown preset 'fast'; known ones: default, paper"),
        ({"budget": {"backbone": {"epoch": 3}}}, r"budget\.backbone: .* no options \['epoch'\]; did you mean"),
        ({"budget": {"stage0": {}}}, "budget has unknown keys"),
        ({"evaluation": {"cutoffs": [1, 50]}}, "cutoffs names 50, but world has sets of 10 candidates"),
        (dataset_entry(table={"interactions": "x"}), "must have exactly one source"),
        (dataset_entry(synthetic={"users": 3}), r"synthetic has unknown keys \['users'\]; known ones: seed, num_items"),
        (dataset_entry(prepare={"core": 3}), r"prepare has unknown keys \['core'\]"),
        (dataset_entry(name="../x"), "letters, digits, dot, dash and underscore only"),
        ({"scenarios": [{"name": "cross-domain", "train": "moon", "test": "world"}]}, "unknown data set 'moon'"),
        (
            {"scenarios": [{"name": "cross-domain", "train": "world", "test": "world"}]},
            "train and test are both 'world'",
        ),
    ],
)
def test_mistake_is_named_with_its_place_and_the_known_names(changes, message):
    with pytest.raises(ALLMRecError, match=message):
        parsed(**changes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"projector": "conv"}, "other: .* a-llmrec .* projector must be one of mlp, linear, resampler; got 'conv'"),
        ({"matching_weight": "lots"}, "method a-llmrec .* matching_weight must be a number, got 'lots'"),
        ({"matching_weight": -1}, "method a-llmrec .* matching_weight must be at least 0"),
        ({"warm_start_steps": 1.5}, "method a-llmrec .* warm_start_steps must be a whole number, got 1.5"),
    ],
)
def test_option_of_a_wrong_value_is_refused_before_anything_runs(options, message):
    with pytest.raises(ALLMRecError, match=message):
        plan(parsed(methods=["popularity", {"label": "other", "method": "a-llmrec", "options": options}]))


def test_option_of_a_wrong_value_of_a_backbone_is_refused_before_anything_runs():
    entry = {"label": "fast", "method": "sasrec", "options": {"learning_rate": -1}}
    with pytest.raises(ALLMRecError, match="fast: an option of the method sasrec cannot be used: learning_rate must"):
        plan(parsed(methods=["popularity", entry]))


def test_option_that_the_method_does_not_have_is_refused_before_anything_runs():
    with pytest.raises(ALLMRecError, match=r"other: the method item-knn has no options \['k'\]; it has neighbors"):
        plan(parsed(**method_entry(options={"k": 3})))


def test_file_that_is_no_yaml_and_name_that_is_no_suite_are_refused(tmp_path):
    with pytest.raises(ALLMRecError, match="there is no suite 'quick': give a YAML file, or one of paper-beauty"):
        load_suite("quick")
    (tmp_path / "broken.yaml").write_text("title: [")
    with pytest.raises(ALLMRecError, match="cannot be read as YAML"):
        load_suite(tmp_path / "broken.yaml")
    (tmp_path / "tag.yaml").write_text("!!python/object/apply:os.system [ls]")
    with pytest.raises(ALLMRecError, match="cannot be read as YAML"):
        load_suite(tmp_path / "tag.yaml")


def test_suite_is_read_from_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content(methods=["popularity"], reference="popularity")))
    assert load_suite(path).title == "mini"


def test_without_a_reference_a_llmrec_is_the_one_under_test():
    assert parsed().with_methods(["sasrec"]).reference == "sasrec"
    assert parsed().with_methods(["item-knn", "a-llmrec"]).reference == "a-llmrec"


def test_a_backbone_alone_is_recorded_under_its_own_name():
    facts = {
        planned.key.label: planned.key.facts["backbone"] for planned in plan(parsed(methods=["gru4rec", "popularity"]))
    }
    assert facts == {"gru4rec": "gru4rec", "popularity": "sasrec"}


def test_other_weights_in_the_same_folder_are_another_part(tmp_path):
    (tmp_path / "llm" / "inner").mkdir(parents=True)
    (tmp_path / "llm" / "inner" / "weights").write_bytes(b"0" * 100)
    before = part_name(str(tmp_path / "llm"))
    part_name.cache_clear()
    (tmp_path / "llm" / "inner" / "weights").write_bytes(b"0" * 99 + b"1")
    assert part_name(str(tmp_path / "llm")) != before


def test_methods_rank_by_what_the_command_line_says_as_far_as_they_can():
    own = {"label": "letters", "method": "a-llmrec", "options": {"ranker": "letter"}}
    suite = parsed(methods=["popularity", "a-llmrec", "random-llm", "no-llm", own], reference="a-llmrec")
    chosen = {spec.label: dict(spec.options) for spec in suite.ranked_by("fusion").methods}
    fused = {label: {"ranker": "fusion"} for label in ("a-llmrec", "random-llm", "no-llm")}
    assert chosen == {"popularity": {}, **fused, "letters": {"ranker": "letter"}}
    chosen = {spec.label: dict(spec.options) for spec in suite.ranked_by("retrieval").methods}
    assert chosen["random-llm"] == {"ranker": "retrieval"}
    assert chosen["no-llm"] == {}
    with pytest.raises(ALLMRecError, match=r"--ranker luck: no method .* known are likelihood, .*fusion, cosine"):
        suite.ranked_by("luck")
    with pytest.raises(ALLMRecError, match="known are none"):
        parsed().ranked_by("fusion")


def test_methods_can_be_chosen_by_label_or_name():
    chosen = parsed().with_methods(["item-knn", "sasrec"])
    assert [spec.label for spec in chosen.methods] == ["item-knn", "sasrec"]
    with pytest.raises(ALLMRecError, match=r"unknown methods \['x'\]; known ones: popularity, item-knn"):
        parsed().with_methods(["x"])


def test_datasets_can_be_chosen_and_rows_that_are_for_others_do_not_matter():
    two = {"datasets": [{"name": name, "synthetic": {"seed": seed}} for seed, name in enumerate(("one", "two"))]}
    suite = parsed(**two, **method_entry(only_datasets=["one"]))
    assert {planned.key.dataset for planned in plan(suite)} == {"one", "two"}
    assert {planned.key.dataset for planned in plan(suite.with_datasets(["two"]))} == {"two"}
    with pytest.raises(ALLMRecError, match=r"unknown data sets \['x'\]; known ones: one, two"):
        suite.with_datasets(["x"])
