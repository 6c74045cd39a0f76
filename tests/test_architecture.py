"""The rules of the package, checked on the syntax tree: imports go to lower layers, and the model modules stay flat."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "allmrec_hf"
LAYERS = [
    {
        "errors",
        "endpoint_handler",
        "durations",
        "ranking",
        "files",
        "stored_values",
        "caches",
        "indices",
        "histories",
        "values",
        "item_rows",
        "growing_table",
        "text_space",
        "catalog",
        "outputs",
        "prompt",
        "language_model",
        "cf_built_in",
    },
    {"part_sources", "gguf_files", "llm_memory", "rows_at_once", "item_words", "language_model_passes"}
    | {"item_titles"},
    {"sharing", "llm_files", "hub_upload"},
    {"cf_losses", "cf_texts", "aligner", "projector", "losses", "scoring", "retrieval", "checkpoint_code", "item_table"}
    | {"language_model_checks", "slot_text", "activations"},
    {"retrieval_head"},
    {"cf_encoder"},
    {"cf_user_vectors", "cf_sequential"},
    {"configuration_allmrec"},  # and every backbone
    {"modeling_pretrained", "processing_allmrec", "item_lookup"},
    {"modeling_allmrec"},
    {"ranker"},
    {"ranker_retrieval", "ranker_likelihood", "ranker_letter", "ranker_zero_shot", "ranker_words"},
    {"ranker_fusion"},
    {"ranker_built_in"},
    {"pipeline_recommendation"},
]
WITHIN_LAYER = {
    ("catalog", "errors"),
    ("files", "errors"),
    ("prompt", "errors"),
    ("catalog", "files"),
    ("values", "errors"),
    ("catalog", "values"),
    ("indices", "errors"),
    ("histories", "errors"),
    ("histories", "indices"),
    ("catalog", "indices"),
    ("item_rows", "errors"),
    ("catalog", "item_rows"),
    ("language_model", "errors"),
}
UPPER_PACKAGES = {"methods", "explaining", "benchmark", "serving", "space", "batch_inference", "exporting"}
PACKAGES = {"data", "training", "evaluation", "hub", "cli", *UPPER_PACKAGES}
FORBIDDEN = {
    "data": {"training", "evaluation", "hub", "cli", *UPPER_PACKAGES},
    "training": {"cli", *UPPER_PACKAGES},  # its trainer evaluates, and shares on the Hub
    "evaluation": {"training", "hub", "cli", *UPPER_PACKAGES},
    "hub": {"data", "training", "cli", *UPPER_PACKAGES},
    "methods": {"hub", "explaining", "benchmark", "serving", "space", "batch_inference", "cli", "exporting"},
    "explaining": {
        "training",
        "hub",
        "methods",
        "benchmark",
        "serving",
        "space",
        "batch_inference",
        "cli",
        "exporting",
    },
    "benchmark": {"hub", "explaining", "serving", "space", "batch_inference", "cli", "exporting"},
    "serving": {
        "data",
        "training",
        "evaluation",
        "hub",
        "methods",
        "benchmark",
        "space",
        "batch_inference",
        "cli",
        "exporting",
    },
    "space": {
        "data",
        "training",
        "evaluation",
        "hub",
        "methods",
        "benchmark",
        "serving",
        "batch_inference",
        "cli",
        "exporting",
    },
    "batch_inference": {
        "training",
        "evaluation",
        "hub",
        "methods",
        "explaining",
        "benchmark",
        "serving",
        "space",
        "exporting",
        "cli",
    },
    "exporting": {"training", "evaluation", "hub", "methods", "explaining", "benchmark", "serving", "space", "cli"},
    "cli": set(),
}
MODEL_MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("_"))
BACKBONES = next(number for number, names in enumerate(LAYERS) if "configuration_allmrec" in names)
LAYERS[BACKBONES] |= {
    name for name in MODEL_MODULES if name.startswith("cf_") and not any(name in names for names in LAYERS)
}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "demo" not in path.relative_to(PACKAGE).parts[:-1])


def imports(path: Path) -> list[ast.ImportFrom | ast.Import]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]


def layer_of(module: str) -> int:
    return next(number for number, names in enumerate(LAYERS) if module in names)


def test_every_model_module_has_a_layer():
    assert set(MODEL_MODULES) == set().union(*LAYERS)


@pytest.mark.parametrize("module", MODEL_MODULES)
def test_model_modules_import_single_dot_modules_of_lower_layers_only(module):
    for node in imports(PACKAGE / f"{module}.py"):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1, f"{module}: line {node.lineno} leaves the model modules"
            assert node.module, (
                f"{module}: line {node.lineno} is `from . import x`, which the Hub's copier cannot follow"
            )
            assert "." not in node.module, f"{module}: line {node.lineno} imports from a sub-package"
            lower = layer_of(node.module) < layer_of(module)
            assert lower or (module, node.module) in WITHIN_LAYER, f"{module} must not import {node.module}"


def test_every_module_name_stands_once():
    names = [path.stem for path in MODULES if path.stem != "__init__"]
    assert not {name for name in names if names.count(name) > 1}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_imports_the_package_root(path):
    for node in imports(path):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        assert not any(name.split(".")[0] == "allmrec_hf" for name in names), f"line {node.lineno}"


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_packages_import_only_allowed_packages(package):
    for path in (PACKAGE / package).rglob("*.py"):
        depth = len(path.relative_to(PACKAGE).parts) - 1
        for node in imports(path):
            if isinstance(node, ast.ImportFrom) and node.level == depth + 1 and node.module:
                other = node.module.split(".")[0]
                assert other not in FORBIDDEN[package], (
                    f"{path.relative_to(PACKAGE)}: line {node.lineno} imports {other}"
                )


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_unpickles_or_asserts_or_prints(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not isinstance(node, ast.Assert), f"line {node.lineno}: an assert is no error message"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"print", "eval", "exec", "yaml.load", "torch.load", "pickle.load"}, (
                f"line {node.lineno}"
            )


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_is_long(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 600, f"{lines} lines: is there a second topic inside?"
