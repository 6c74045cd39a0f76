"""The house rules, checked on the syntax tree: imports go downward, and the machine stays flat."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "allmrec_hf"
FLOORS = [
    {
        "errors",
        "ranking",
        "files",
        "caches",
        "indices",
        "histories",
        "values",
        "item_rows",
        "catalog",
        "outputs",
        "prompt",
        "language_model",
    },
    {"part_sources"},
    {"sharing", "llm_files"},
    {"cf_losses", "aligner", "projector", "losses", "scoring", "retrieval", "checkpoint_code", "item_table"}
    | {"language_model_checks", "slot_text"},
    {"cf_encoder"},
    {"cf_user_vectors"},
    {"configuration_allmrec"},  # and every CF backbone
    {"modeling_pretrained", "processing_allmrec", "item_lookup"},
    {"modeling_allmrec"},
    {"pipeline_recommendation"},
]
SAME_FLOOR = {
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
WORKSHOP = {"data", "training", "evaluation", "hub", "methods", "explaining", "benchmark", "cli"}
LABORATORY = {"methods", "explaining", "benchmark"}
FORBIDDEN = {
    "data": {"training", "evaluation", "hub", "cli", *LABORATORY},
    "training": {"evaluation", "cli", *LABORATORY},
    "evaluation": {"training", "hub", "cli", *LABORATORY},
    "hub": {"data", "training", "cli", *LABORATORY},
    "methods": {"hub", "explaining", "benchmark", "cli"},
    "explaining": {"training", "hub", "methods", "benchmark", "cli"},
    "benchmark": {"hub", "explaining", "cli"},
    "cli": set(),
}
MACHINE = sorted(path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("_"))
BACKBONES = next(number for number, names in enumerate(FLOORS) if "configuration_allmrec" in names)
FLOORS[BACKBONES] |= {name for name in MACHINE if name.startswith("cf_") and not any(name in names for names in FLOORS)}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "demo" not in path.relative_to(PACKAGE).parts[:-1])


def imports(path: Path) -> list[ast.ImportFrom | ast.Import]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]


def floor_of(module: str) -> int:
    return next(number for number, names in enumerate(FLOORS) if module in names)


def test_every_machine_module_has_a_floor():
    assert set(MACHINE) == set().union(*FLOORS)


@pytest.mark.parametrize("module", MACHINE)
def test_machine_imports_single_dot_modules_of_lower_floors_only(module):
    for node in imports(PACKAGE / f"{module}.py"):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1, f"{module}: line {node.lineno} leaves the flat core"
            assert node.module, (
                f"{module}: line {node.lineno} is `from . import x`, which the Hub's copier cannot follow"
            )
            assert "." not in node.module, f"{module}: line {node.lineno} imports from a sub-package"
            lower = floor_of(node.module) < floor_of(module)
            assert lower or (module, node.module) in SAME_FLOOR, f"{module} must not import {node.module}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nobody_inside_imports_the_package_root(path):
    for node in imports(path):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        assert not any(name.split(".")[0] == "allmrec_hf" for name in names), f"line {node.lineno}"


@pytest.mark.parametrize("room", sorted(WORKSHOP))
def test_workshop_rooms_keep_apart(room):
    for path in (PACKAGE / room).rglob("*.py"):
        depth = len(path.relative_to(PACKAGE).parts) - 1
        for node in imports(path):
            if isinstance(node, ast.ImportFrom) and node.level == depth + 1 and node.module:
                other = node.module.split(".")[0]
                assert other not in FORBIDDEN[room], f"{path.relative_to(PACKAGE)}: line {node.lineno} imports {other}"


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
def test_no_room_is_crowded(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 600, f"{lines} lines: is there a second topic inside?"
