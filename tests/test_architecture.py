"""The house rules: rooms whose imports go down, plain names, and what grading and methods may not
import.
"""

from __future__ import annotations

import ast
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "bridge_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
CODE = [
    *FILES,
    *sorted((ROOT / "experiments").rglob("*.py")),
    *sorted((ROOT / "configs").rglob("*.py")),
]
BANNED = {"utils", "util", "common", "helpers", "misc", "core"}

# From the ground up: a room imports itself and the rooms before it in this list, never a later one.
ROOMS = (
    "filesystem",
    "grading",
    "types",
    "config",
    "data",
    "distributed",
    "optim",
    "objectives",
    "models",
    "tasks",
    "rundir",
    "sampling",
    "methods",
    "evaluation",
    "training",
    "planner",
    "preflight",
)
METHODS_MAY = {"types", "config", "objectives", "optim", "methods"}


def name_of(path: pathlib.Path) -> str:
    """Dotted name within the package: methods.bridge."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__").removesuffix("__init__")


MODULES = {name_of(path) for path in FILES}


def imports(path: pathlib.Path) -> set[str]:
    """Modules of bridge_jax that a file imports, anywhere in it, without the package's name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                is_module = name.removeprefix("bridge_jax.") in MODULES
                found.add(name if is_module else node.module)
    ours = {name for name in found if name.split(".")[0] == "bridge_jax"}
    return {name.removeprefix("bridge_jax").lstrip(".") for name in ours} - {""}


def room_of(module: str) -> str:
    """The folder, or the module itself where it lies beside the folders."""
    return module.split(".")[0]


def import_graph() -> dict[str, set[str]]:
    """Module -> modules of the package that it imports."""
    return {name_of(path): imports(path) for path in FILES}


def test_every_room_has_its_place():
    """ROOMS lists every room of the package."""
    assert {room_of(module) for module in MODULES - {""}} == set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_the_package_imports_no_command(path):
    """No module of the package imports the commands or the tests."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not {name.split(".")[0] for name in names} & {"experiments", "tests"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_down(path):
    """A module imports only its own room and rooms before it in ROOMS."""
    name = name_of(path)
    if not name:
        return
    here = ROOMS.index(room_of(name))
    upward = {other for other in imports(path) if ROOMS.index(room_of(other)) > here}
    assert not upward, f"{name} imports {sorted(upward)}, which come later; rooms: {ROOMS}"


def test_no_module_imports_itself_by_way_of_others():
    """Modules of a room may import each other, but not in a circle. A package's face is left
    out.
    """
    graph = import_graph()
    faces = {name_of(path) for path in FILES if path.stem == "__init__"}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, f"a circle: {' -> '.join((*way[way.index(module) :], module))}"
        if module in done or module in faces:
            return
        for other in graph.get(module, ()):
            visit(other, (*way, module))
        done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("path", sorted((PACKAGE / "methods").glob("*.py")), ids=name_of)
def test_methods_stand_alone(path):
    """A method imports no model and no task."""
    outside = {room_of(other) for other in imports(path)} - METHODS_MAY
    assert not outside, f"{name_of(path)} imports {imports(path)}"
    assert "loss" not in path.read_text().lower(), "objectives are maximised and called J"


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_and_docstrings(path):
    """Modules have plain names, and all public things have docstrings."""
    assert path.stem not in BANNED
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "a module docstring says what it computes"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} lacks a docstring"


def test_grading_runs_without_jax():
    """Importing the grading modules imports no jax."""
    modules = sorted(name for name in MODULES if name.startswith("grading."))
    assert modules
    code = f"""
import importlib, sys
for name in {modules!r}:
    if name != "grading.worker":
        importlib.import_module(f"bridge_jax.{{name}}")
sys.exit(any(name.split(".")[0] in ("jax", "jaxlib", "flax") for name in sys.modules))
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_configs_import_nothing_of_the_package_but_settings_of_methods_and_tasks():
    """Configs import only the settings of methods and tasks."""
    may = {"base.py": {"methods"}, "tasks.py": {"tasks", "config.schema"}}
    for path in (ROOT / "configs").rglob("*.py"):
        allowed = may.get(path.name, set())
        assert imports(path) <= allowed, f"{path.name} imports {imports(path)}"


def test_the_tree_names_every_room():
    """The tree in docs/extend.md names every room, in the order of ROOMS."""
    page = (ROOT / "docs" / "extend.md").read_text()
    tree = page.partition("## The tree")[2].partition("\n## ")[0]
    named = re.findall(r"^  ([a-z]+)(?:/|\.py) ", tree, flags=re.M)
    assert tuple(named) == ROOMS
