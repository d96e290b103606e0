"""The architecture, checked on the source itself."""

import ast
from pathlib import Path

import fusion_jax

ROOT = Path(fusion_jax.__file__).parent
# From the lowest to the highest; a module may import from its own layer and those before it.
LAYERS = [
    {"types", "rng", "precision", "axes", "errors", "compiler", "reduction"},
    {
        "frequency",
        "blocks",
        "gate",
        "cells",
        "metrics",
        "sources",
        "prepared",
        "calibration",
        "robustness",
    },
    {"signals"},
    {"encoders", "fusion", "schedulers", "balancing", "corruptions", "preprocess", "data"},
    {"models", "objectives", "tasks", "optimizers", "suites"},
    {"config"},
    {"training", "evaluation"},
    {"report.results"},
    {"report.reading", "report.words", "report.drawing"},
    {"report"},
    {"report.page"},
    {"runs", "training.seeds", "shown_examples", "evaluator"},
    {"training.loop", "evaluate", "predictor"},
    {"cli"},
    {"experiment_definition"},
    {"experiment_results"},
    {"experiment_collect"},
    {"experiment_primary"},
    {"experiments"},
]
FORBIDDEN = {"tensorflow", "torch", "clu"}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] != "__init__":
            found[".".join(parts)] = path
    return found


def layer(module: str) -> int:
    for number, names in enumerate(LAYERS):
        if module in names:
            return number
    return next(number for number, names in enumerate(LAYERS) if module.split(".")[0] in names)


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def internal(path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of the package that a file imports."""
    found = set()
    for name in imports(path):
        if name.startswith("fusion_jax."):
            inner = name.removeprefix("fusion_jax.")
            found |= {m for m in (inner, inner.rpartition(".")[0]) if m in known}
    return found


def test_every_module_has_a_layer():
    assert len(modules()) > 40
    for module in modules():
        assert layer(module) >= 0


def test_no_layer_imports_a_higher_one():
    known = modules()
    wrong = [
        f"{module} imports {other}"
        for module, path in known.items()
        for other in internal(path, known)
        if layer(other) > layer(module)
    ]
    assert not wrong, wrong


def test_siblings_in_a_folder_do_not_import_each_other():
    known = modules()
    wrong = []
    for module, path in known.items():
        folder = module.rpartition(".")[0]
        for other in internal(path, known):
            same_folder = folder and other.rpartition(".")[0] == folder
            if same_folder and layer(other) == layer(module):
                wrong.append(f"{module} imports {other}")
    assert not wrong, wrong


def test_the_library_imports_neither_tensorflow_nor_pytorch():
    wrong = [
        f"{module}: {name}"
        for module, path in modules().items()
        for name in imports(path)
        if name.split(".")[0] in FORBIDDEN
    ]
    assert not wrong, wrong


def test_functions_are_short():
    # Code lines: the docstring says what, and may be as long as it needs to be.
    long = []
    for module, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                first = node.body[0]
                documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
                start = first.end_lineno if documented else node.lineno
                if node.end_lineno - start > 50:
                    long.append(f"{module}.{node.name}: {node.end_lineno - start} lines")
    assert not long, long


def test_no_module_changes_the_global_configuration_of_jax():
    # Programs may (cli.py); importing the library may not.
    for module, path in modules().items():
        for node in ast.parse(path.read_text()).body:
            assert "config.update" not in ast.unparse(node) or isinstance(node, ast.FunctionDef), (
                module
            )


def test_the_programs_are_thin():
    for name in ("train.py", "eval.py"):
        assert len((ROOT.parent / name).read_text().splitlines()) < 60
