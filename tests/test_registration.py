"""The registration: nothing of ours is loaded before it is asked for, and then everything is there, in any order."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import allmrec_hf
from allmrec_hf._registration import DeferredEntries, Once
from allmrec_hf.cf_built_in import BUILT_IN
from allmrec_hf.cf_encoder import build_cf_encoder

HEAVY = ("torch", "polars", "datasets", "sentence_transformers", "pandas", "scipy", "sklearn", "faiss")
LIGHT = {"allmrec_hf", "allmrec_hf._registration", "allmrec_hf._version", "allmrec_hf.cf_built_in"}
CHECK = """
import json, sys
config, model, processor = (
    AutoConfig.from_pretrained(path), AutoModel.from_pretrained(path), AutoProcessor.from_pretrained(path)
)
recommend = pipeline("recommendation", model=path)
history = processor.catalog.item_ids[:3]
same = pipeline("recommendation")({"history": history}) == recommend({"history": history})
print(json.dumps([type(part).__name__ for part in (config, model, processor, recommend)] + [same]))
"""
NAMES = ["ALLMRecConfig", "ALLMRecModel", "ALLMRecProcessor", "RecommendationPipeline", True]
AUTO = "from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline"


def run(code: str) -> str:
    """Run code in a fresh process and return its last line."""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with every backbone saved alone, by its `model_type`."""
    folder = tmp_path_factory.mktemp("backbones")
    for model_type in BUILT_IN:
        config = {"model_type": model_type, "num_items": 5, "hidden_size": 8, "max_history_length": 4}
        build_cf_encoder(config).save_pretrained(folder / model_type)
    return folder


@pytest.mark.parametrize("before", ["pass", "import transformers"])
def test_the_import_loads_nothing_heavy(before: str) -> None:
    code = (
        f"import json, sys; {before}; known = set(sys.modules); import allmrec_hf; from allmrec_hf import ALLMRecError"
    )
    code = code.replace("; from allmrec_hf import ALLMRecError", "")
    loaded = set(json.loads(run(f"{code}; print(json.dumps(sorted(set(sys.modules) - known)))")))
    assert {name for name in loaded if name.split(".")[0] == "allmrec_hf"} == LIGHT
    assert not {name for name in loaded if name.split(".")[0] in (*HEAVY, "transformers")}


def test_models_of_others_load_nothing_of_ours(tmp_path: Path) -> None:
    code = f"""
import allmrec_hf, json, sys, transformers
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, AutoProcessor, pipeline
config = AutoConfig.for_model("bert", hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
config.save_pretrained({str(tmp_path)!r})
AutoModel.from_config(AutoConfig.from_pretrained({str(tmp_path)!r}))
assert "recommendation" in transformers.pipelines.PIPELINE_REGISTRY.supported_tasks
assert "a-llmrec-of-another-kind" not in CONFIG_MAPPING
print(json.dumps([name for name in sys.modules if name.startswith("allmrec_hf.")]))
"""
    assert {"allmrec_hf", *json.loads(run(code))} == LIGHT


@pytest.mark.parametrize(
    "imports",
    [
        f"import allmrec_hf; {AUTO}",
        f"{AUTO}; import allmrec_hf",
        f"import importlib.util, allmrec_hf; importlib.util.find_spec('transformers.pipelines'); {AUTO}",
    ],
)
def test_any_order_of_imports_gives_the_same_classes(imports: str) -> None:
    assert json.loads(run(f"{imports}\npath = {allmrec_hf.DEMO_CHECKPOINT!r}\n{CHECK}")) == NAMES


DOORS = [
    "AutoModel.from_config(importlib.import_module('allmrec_hf.configuration_allmrec').ALLMRecConfig())",
    "AutoModel.from_config(AutoConfig.for_model('a-llmrec'))",
    "AutoModel.from_pretrained(path)",
    "AutoProcessor.from_pretrained(path)",
    "pipeline('recommendation')",
    "transformers.MODEL_MAPPING[allmrec_hf.ALLMRecConfig]",
    "CONFIG_MAPPING['allmrec-ncf']",
    "dict(CONFIG_MAPPING.items())['allmrec-ligr']",
    "[name for name in CONFIG_MAPPING if name == 'a-llmrec'][0]",
    "PIPELINE_REGISTRY.supported_tasks['recommendation']['impl']",
    "[impl for task, impl in PIPELINE_REGISTRY.to_dict().items() if task == 'recommendation'][0]['pt'][0]",
    "PIPELINE_REGISTRY.supported_tasks['recommendation'].get('default')['model']",
    "AutoModel.from_pretrained(backbones / 'allmrec-lightgcn')",
    "AutoConfig.from_pretrained(backbones / 'allmrec-sasrec')",
    "[AutoModel.from_pretrained(folder) for folder in backbones.iterdir()]",
]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="every door is opened in a forked process")
def test_each_door_opens_first(backbones: Path) -> None:
    code = f"""
import allmrec_hf, importlib, os, sys, traceback, transformers
from pathlib import Path
{AUTO}
from transformers import CONFIG_MAPPING
from transformers.pipelines import PIPELINE_REGISTRY
path, backbones = {allmrec_hf.DEMO_CHECKPOINT!r}, Path({str(backbones)!r})
failed = []
for door in {DOORS!r}:
    child = os.fork()
    if child == 0:
        try:
            assert "allmrec_hf.cf_encoder" not in sys.modules
            assert eval(door)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    if os.waitpid(child, 0)[1]:
        failed.append(door)
sys.exit(f"these failed: {{failed}}" if failed else 0)
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280, check=False)
    assert process.returncode == 0, process.stderr


def test_a_task_that_somebody_registered_is_kept() -> None:
    code = """
import allmrec_hf
from transformers import AutoModel, AutoConfig, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY
class Mine(Pipeline):
    pass
PIPELINE_REGISTRY.register_pipeline("recommendation", pipeline_class=Mine, pt_model=AutoModel)
AutoConfig.for_model("a-llmrec")
print(PIPELINE_REGISTRY.supported_tasks["recommendation"]["impl"].__name__)
"""
    assert run(code) == "Mine"


def entries() -> tuple[DeferredEntries, list[int]]:
    calls: list[int] = []

    def complete() -> None:
        calls.append(1)
        deferred["ours"] = 2

    deferred = DeferredEntries({"theirs": 1}, lambda key: key == "ours", Once(complete))
    return deferred, calls


def test_entries_of_others_do_not_complete_the_dictionary() -> None:
    deferred, calls = entries()
    assert deferred["theirs"] == 1
    assert "theirs" in deferred
    assert "unknown" not in deferred
    assert deferred.get("unknown", 3) == 3
    with pytest.raises(KeyError):
        deferred["unknown"]
    assert not calls


@pytest.mark.parametrize(
    "look",
    [
        lambda deferred: deferred["ours"] == 2,
        lambda deferred: "ours" in deferred,
        lambda deferred: deferred.get("ours") == 2,
        lambda deferred: len(deferred) == 2,
        lambda deferred: list(deferred) == ["theirs", "ours"],
        lambda deferred: list(deferred.keys()) == ["theirs", "ours"],
        lambda deferred: list(deferred.values()) == [1, 2],
        lambda deferred: list(deferred.items()) == [("theirs", 1), ("ours", 2)],
        lambda deferred: dict(deferred) == {"theirs": 1, "ours": 2},
        lambda deferred: {**deferred} == {"theirs": 1, "ours": 2},
    ],
)
def test_one_of_ours_or_all_complete_it_once(look) -> None:  # type: ignore[no-untyped-def]
    deferred, calls = entries()
    assert look(deferred)
    assert look(deferred)
    assert calls == [1]


def test_once_repeats_a_call_that_failed_and_keeps_other_threads_waiting() -> None:
    started, go_on, calls = threading.Event(), threading.Event(), []

    def work() -> None:
        calls.append(len(calls))
        once()  # from inside: nothing
        if len(calls) == 1:
            raise ImportError("missing")
        started.set()
        assert go_on.wait(20)
        calls.append(-1)

    once = Once(work)
    with pytest.raises(ImportError):
        once()
    threads = [threading.Thread(target=once) for _ in range(2)]
    threads[0].start()
    assert started.wait(20)
    threads[1].start()
    assert threads[1].is_alive()
    go_on.set()
    for thread in threads:
        thread.join(20)
    once()
    assert calls == [0, 1, -1]


def test_the_public_names_are_there() -> None:
    for name in allmrec_hf.__all__:
        assert getattr(allmrec_hf, name) is not None
    assert importlib.import_module("allmrec_hf").__version__ == allmrec_hf.__version__
