"""The house rules of the design: import levels, names, and what grading and methods may not import."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "bridge_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
CODE = FILES + sorted((ROOT / "experiments").glob("*.py")) + sorted((ROOT / "configs").glob("*.py"))
BANNED = {"utils", "util", "common", "helpers", "misc", "core"}
LEVELS = {  # a module imports modules of a lower level, or of its own where the design says so
    "streams": -2,
    "grading": -1,
    "types": 0,
    "settings": 0.5,
    "textfile": 0,
    "files": 0.5,
    "precision": 0,
    "packing": 0.5,
    "intervals": 0.5,
    "platforms": 0,
    "problems": 1,
    "results": 1,
    "transcripts": 1,
    "models.attention": 1,
    "models.layers": 1,
    "models.hf_folder": 1,
    "logprobs": 1,
    "objectives": 1,
    "optim": 1,
    "sharding": 0.5,
    "watch": 0,
    "rollcall": 0,
    "alike": 0.5,
    "hosts": 1,
    "interrupt": 2,
    "models.llama": 1.5,
    "models.qwen2": 1.5,
    "models.qwen3": 1.5,
    "models": 1,
    "models.params": 2,
    "lora": 2,
    "tasks": 2,
    "methods": 3,
    "rollout": 3,
    "data": 3,
    "evaluate": 4,
    "checkpoint": 4,
    "logbook": 4,
    "finished": 4.1,
    "policy": 4,
    "setup": 4.5,
    "programs": 4.7,
    "ledger": 4,
    "generate": 4.8,
    "cooperation": 4.9,
    "comparison": 5,
    "flight": 5,
    "train": 5,
}
METHODS_MAY = {"types", "objectives", "optim", "methods"}
MADE_OF = {
    "methods.alternate": {"methods.grpo", "methods.sft"},
    "methods.cold_start": {"methods.grpo", "methods.sft"},
    "methods.dr_grpo": {"methods.grpo"},
}  # these are nothing but other methods, in turn or with one setting


def name_of(path: pathlib.Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__").removesuffix("__init__")


def level(module: str) -> float:
    """Of the longest prefix that has one."""
    while module not in LEVELS:
        assert "." in module, f"{module} has no import level: add it to LEVELS"
        module = module.rpartition(".")[0]
    return LEVELS[module]


def imports(path: pathlib.Path) -> set[str]:
    """Modules of bridge_jax that a file imports, without the package's name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {
                ".".join(("bridge_jax", *p.relative_to(PACKAGE).with_suffix("").parts))
                for p in FILES
            }
            packages = {f"bridge_jax.{p.name}" for p in PACKAGE.iterdir() if p.is_dir()}
            found |= {name if name in modules | packages else node.module for name in inner}
    return {
        name.removeprefix("bridge_jax").lstrip(".")
        for name in found
        if name.split(".")[0] == "bridge_jax"
    } - {""}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_down(path):
    name = name_of(path)
    if not name:
        return
    for other in imports(path):
        same_folder = other.split(".")[0] == name.split(".")[0] and "." in name
        assert level(other) < level(name) or (same_folder and level(other) <= level(name)), (
            f"{name} imports {other}"
        )
    if name.startswith("methods."):
        outside = {other.split(".")[0] for other in imports(path)} - METHODS_MAY
        others = {other for other in imports(path) if other.startswith("methods.")}
        assert not outside and others <= MADE_OF.get(name, set()), (
            f"{name} imports {imports(path)}; a method imports {sorted(METHODS_MAY)} and no other method"
        )


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_and_docstrings(path):
    assert path.stem not in BANNED
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "a module docstring says what it computes"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} lacks a docstring"


def test_grading_runs_without_jax():
    code = (
        "import sys, bridge_jax.grading.extract, bridge_jax.grading.outcome; "
        "sys.exit(any(name.split('.')[0] in ('jax', 'jaxlib', 'flax') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_methods_minimise_nothing():
    for path in (PACKAGE / "methods").glob("*.py"):
        assert "loss" not in path.read_text().lower(), (
            f"{path.name}: objectives are maximised and called J"
        )


def test_configs_import_nothing_of_the_package():
    for path in (ROOT / "configs").rglob("*.py"):
        assert not imports(path), f"{path.name} imports {imports(path)}"


def test_the_readmes_tree_names_every_module():
    tree = (ROOT / "README.md").read_text().partition("## The tree")[2]
    assert [path.name for path in FILES if path.stem != "__init__" and path.name not in tree] == []
    assert [
        path.name
        for path in (ROOT / "experiments").glob("*.py")
        if path.stem != "__init__" and path.name not in tree
    ] == []
