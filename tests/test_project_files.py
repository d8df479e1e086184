"""The files about the project agree with each other and with the code: version, licence, packages,
commands of CONTRIBUTING.md, Dockerfile, forms for issues."""

from __future__ import annotations

import ast
import fnmatch
import importlib.metadata
import importlib.util
import json
import pathlib
import re
import shlex
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import bridge_jax

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGES = ("bridge_jax", "configs", "experiments")
# imported where it is installed, in a function that says what to do without it; not required
OPTIONAL = {"torch", "tensorboardx", "wandb"}
# imported although another requirement brings them, since the two go together
BROUGHT = {"mpmath": "sympy", "latex2sympy2-extended": "math-verify", "pyarrow": "datasets"}
# what a run leaves behind: neither code nor data
CACHES = ("__pycache__", ".ipynb_checkpoints")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def pyproject() -> dict:
    return tomllib.loads(read("pyproject.toml"))


def citation() -> dict:
    return yaml.safe_load(read("CITATION.cff"))


def lines(name: str) -> list[str]:
    """The lines of a requirements file without comments."""
    stripped = (line.split("#")[0].strip() for line in read(name).splitlines())
    return [line for line in stripped if line]


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in requirements}


def files_of(package: str) -> list[pathlib.Path]:
    """The files of a package, relative to its folder."""
    folder = ROOT / package
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return [path for path in found if not set(path.parts) & set(CACHES)]


def test_one_version():
    """bridge_jax.__version__ is the only source; citation and changelog repeat it."""
    project = pyproject()
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "bridge_jax.__version__"}
    assert str(citation()["version"]) == bridge_jax.__version__
    newest = re.search(r"^## (\S+)", read("CHANGELOG.md"), re.MULTILINE)[1]
    assert newest == bridge_jax.__version__


def test_one_licence():
    """Apache-2.0 in LICENSE, in the package and in the citation, by the same authors."""
    text, project, cited = read("LICENSE"), pyproject()["project"], citation()
    (author,) = project["authors"]
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text
    assert re.search(rf"Copyright \d{{4}} {author['name']}\n", text)
    assert project["license"] == cited["license"] == "Apache-2.0"
    assert project["license-files"] == ["LICENSE"]
    assert cited["authors"] == [author]
    assert cited["title"] == "bridge_jax"


def test_the_paper_that_is_cited():
    """The one whose figures stand in experiments/paper/published.json."""
    (paper,) = citation()["references"]
    number = re.search(
        r"arXiv (\S+)", json.loads(read("experiments/paper/published.json"))["source"]
    )[1]
    assert paper["identifiers"][0]["value"] == f"arXiv:{number}"
    assert number in paper["url"] and number in paper["notes"] and number in bridge_jax.__doc__
    assert paper["title"] and all(author["family-names"] for author in paper["authors"])


def test_requirements_agree():
    """Dependencies are read from requirements-run.txt; requirements.txt is that and the extra
    dev.
    """
    project = pyproject()
    assert "dependencies" in project["project"]["dynamic"]
    dependencies = project["tool"]["setuptools"]["dynamic"]["dependencies"]
    assert dependencies == {"file": ["requirements-run.txt"]}
    first, *tools = lines("requirements.txt")
    assert first == "-r requirements-run.txt"
    assert tools == project["project"]["optional-dependencies"]["dev"]
    assert not names(tools) & names(lines("requirements-run.txt"))


def test_make_installs_anew_when_requirements_change():
    """The files that decide the environment are its prerequisites; the checkout is installed
    too.
    """
    (needed,) = re.findall(r"^\$\(VENV\)/installed:(.*)$", read("Makefile"), re.MULTILINE)
    assert needed.split() == ["requirements.txt", "requirements-run.txt", "pyproject.toml"]
    assert "--no-deps -e ." in read("Makefile")


def test_the_environment_has_what_is_required():
    """Each line is satisfied here, where the tests run."""
    tools = pyproject()["project"]["optional-dependencies"]["dev"]
    for line in lines("requirements-run.txt") + tools:
        needed = Requirement(line)
        assert importlib.metadata.version(needed.name) in needed.specifier, line


def imported(path: pathlib.Path) -> set[str]:
    """Top-level names of the modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module)
    return {name.split(".")[0] for name in found}


def test_what_is_imported_is_required():
    """A package that the code imports is a requirement of its own, or named in BROUGHT."""
    found = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            found |= imported(path)
    found -= set(PACKAGES) | set(sys.stdlib_module_names)
    owners = importlib.metadata.packages_distributions()
    found = {canonicalize_name(owner) for name in found for owner in owners.get(name, [name])}
    required = names(lines("requirements-run.txt"))
    assert found - required - OPTIONAL == set(BROUGHT)
    for package, owner in BROUGHT.items():
        assert owner in required
        assert package in names(importlib.metadata.requires(owner))


def test_extras():
    """jax's extras by jax's names, the mirrors of log.mirrors, the tools."""
    extras = pyproject()["project"]["optional-dependencies"]
    assert set(extras) == {"cuda12", "cuda13", "tpu", "logs", "dev"}
    known = importlib.metadata.metadata("jax").get_all("Provides-Extra")
    for name in ("cuda12", "cuda13", "tpu"):
        assert extras[name] == [f"jax[{name}]"]
        assert name in known
    mirrors = imported(ROOT / "bridge_jax" / "rundir" / "mirrors.py")
    assert names(extras["logs"]) == OPTIONAL - {"torch"}
    assert set(extras["logs"]) <= mirrors


@pytest.mark.parametrize("package", PACKAGES)
def test_an_install_has_every_file(package):
    """Each folder with code is a package, and every other file is named as data of one."""
    setuptools = pyproject()["tool"]["setuptools"]
    assert f"{package}*" in setuptools["packages"]["find"]["include"]
    patterns = setuptools["package-data"].get(package, [])
    for path in files_of(package):
        if path.suffix == ".py":
            assert (ROOT / package / path.parent / "__init__.py").is_file(), path
        elif path.suffix != ".pyc":
            assert any(fnmatch.fnmatch(path.as_posix(), pattern) for pattern in patterns), path
    for pattern in patterns:
        assert list((ROOT / package).glob(pattern)), f"no file is called {pattern}"


def commands(page: str) -> list[list[str]]:
    """The words of each command in the indented blocks of a Markdown page, at && one by one."""
    found = []
    for line in read(page).splitlines():
        if line.startswith("    "):
            for command in line.split("&&"):
                found.append(shlex.split(command, comments=True))
    return [words for words in found if words]


def named(text: str) -> pathlib.Path:
    """The file or folder of a path in which NAME stands for a name of the reader's own: its
    folder.
    """
    path = ROOT / text
    return path.parent if "NAME" in path.name else path


def check_module(words: list[str]) -> None:
    """`python -m MODULE ...`: the module, the config file and the flags exist."""
    module, *arguments = words
    assert importlib.util.find_spec(module), module
    code = pathlib.Path(importlib.util.find_spec(module).origin).read_text(encoding="utf-8")
    for argument in arguments:
        if argument.startswith("--"):
            flag, _, value = argument[2:].partition("=")
            assert f'"{flag}"' in code, argument
            if flag == "config":
                assert (ROOT / value.split(":")[0]).is_file(), argument
        elif argument.startswith("tests/"):
            assert (ROOT / argument).exists(), argument


def test_commands_of_contributing():
    """Each names targets of make, modules, flags and files that exist."""
    targets = set(re.findall(r"^([\w-]+):", read("Makefile"), re.MULTILINE))
    found = commands("CONTRIBUTING.md")
    for words in found:
        if words[0] == "make":
            assert set(words[1:]) <= targets, words
        elif words[0] == "python":
            assert words[1] == "-m", words
            check_module(words[2:])
        else:
            assert words[0] in ("git", "cd", "."), words
    assert len(found) > 10
    # in the running text
    for extra in re.findall(r'pip install -e "\.\[(\w+)\]"', read("CONTRIBUTING.md")):
        assert extra in pyproject()["project"]["optional-dependencies"]


def test_files_named_by_contributing():
    """A word in backticks with a slash or a known ending is a path of this repository."""
    texts = re.findall(r"`([\w./-]+)`", read("CONTRIBUTING.md"))
    paths = [text for text in texts if "/" in text or text.endswith((".txt", ".md", ".py"))]
    assert len(paths) > 10
    for path in paths:
        assert named(path).exists(), path


def instructions(name: str) -> list[tuple[str, str]]:
    """(instruction, rest of the line) of a Dockerfile, continued lines joined."""
    code = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", read(name), flags=re.MULTILINE))
    return [tuple(line.split(maxsplit=1)) for line in code.splitlines() if line.strip()]


def image_of(name: str) -> str:
    """The version of Python in the base image."""
    return re.match(r"python:([\d.]+)", dict(instructions(name))["FROM"])[1]


def test_python_version():
    """The oldest Python is the same for package, formatter and make; the image has one that will
    do.
    """
    project = pyproject()
    oldest = project["project"]["requires-python"].removeprefix(">=")
    assert project["tool"]["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"
    assert f"sys.version_info >= ({oldest.replace('.', ', ')})" in read("Makefile")
    assert Requirement(f"python>={oldest}").specifier.contains(image_of("Dockerfile"))


def test_dockerfile_copies_what_exists():
    """Sources of COPY, and requirement files once they were copied."""
    copied = set()
    for instruction, rest in instructions("Dockerfile"):
        if instruction == "COPY":
            *sources, _ = rest.split()
            for source in sources:
                assert (ROOT / source).exists(), source
            copied |= set(sources)
        elif instruction == "RUN":
            for needed in re.findall(r"-r (\S+)", rest):
                assert copied & {needed, "."}, rest
            if re.search(r"-e ", rest):
                assert "." in copied
    assert copied == {"requirements-run.txt", "."}


def test_dockerfile_installs_an_extra():
    """The default of CUDA is an extra, and the first layer installs what that extra says."""
    extras = pyproject()["project"]["optional-dependencies"]
    name, default = dict(instructions("Dockerfile"))["ARG"].split("=")
    assert default in extras
    layers = [rest for instruction, rest in instructions("Dockerfile") if instruction == "RUN"]
    packages, code = [shlex.split(layer.replace(f"${{{name}}}", default)) for layer in layers]
    assert packages[:2] == code[:2] == ["pip", "install"]
    assert packages[-3:] == ["-r", "requirements-run.txt", *extras[default]]
    assert code[-2:] == ["-e", f".[{default}]"]
    for other in re.findall(rf"--build-arg {name}=(\w+)", read("Dockerfile")):
        assert extras[other] == [f"jax[{other}]"]


def test_commands_of_the_dockerfile():
    """The command of the image, and the one of the comment."""
    start = json.loads(dict(instructions("Dockerfile"))["CMD"])
    example = re.search(r"#\s+(python -m experiments\.\S+ .*)", read("Dockerfile"))[1]
    for python, module_flag, *words in (shlex.split(example), start[:3]):
        assert (python, module_flag) == ("python", "-m")
        check_module(words)
    assert start[3:] == ["--version"]


def test_an_image_leaves_out_what_git_leaves_out():
    """.dockerignore has .git and each line of .gitignore."""
    ignored = set(read(".dockerignore").split())
    assert ".git" in ignored and "LICENSE" not in ignored
    for line in read(".gitignore").split():
        plain = line.rstrip("/")
        assert {plain, f"**/{plain}"} & ignored, line


def forms() -> list[str]:
    return [f".github/ISSUE_TEMPLATE/{kind}.yml" for kind in ("bug", "feature")]


@pytest.mark.parametrize("form", forms())
def test_issue_forms(form):
    """The keys that a form needs; ids are unique; something is required."""
    content = yaml.safe_load(read(form))
    assert content["name"] and content["description"]
    ids = [field["id"] for field in content["body"]]
    assert len(ids) == len(set(ids))
    for field in content["body"]:
        assert field["type"] in ("input", "textarea")
        assert field["attributes"]["label"] and field["attributes"]["description"]
    assert any(field.get("validations", {}).get("required") for field in content["body"])


def test_a_bug_is_reported_with_its_run():
    """Version, command, config.json and the last lines of the output."""
    body = yaml.safe_load(read(".github/ISSUE_TEMPLATE/bug.yml"))["body"]
    fields = {field["id"]: field["attributes"] for field in body}
    assert {"version", "command", "config", "output"} <= set(fields)
    command = re.search(r"`(python -m \S+ --version)`", fields["version"]["description"])[1]
    assert importlib.util.find_spec(shlex.split(command)[2])
    assert fields["version"]["placeholder"].startswith(f"bridge_jax {bridge_jax.__version__}, jax ")
    assert isinstance(yaml.safe_load(read(".github/ISSUE_TEMPLATE/config.yml")), dict)
