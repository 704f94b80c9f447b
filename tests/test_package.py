"""The package: what is imported when, and that the map of folders is whole."""

import ast
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest

import celosia

ROOT = Path(__file__).parents[1]
FOLDERS = ("hw", "sim", "host", "models")
#: Who may import whom; `models` stands alone, and only the command line and what it joins use it.
ALLOWED = {"hw": set(), "sim": {"hw"}, "models": set(), "host": {"hw", "sim", "models"}}


def _sources():
    return [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]


def _imports(file):
    """Absolute dotted names of the modules a file imports."""
    package = ["celosia", *file.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{name}.{alias.name}" for alias in node.names)


def test_every_folder_is_a_package():
    mapped = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"].values())
    found = {str(file.parent.relative_to(ROOT)) for folder in ("celosia", *FOLDERS) for file in (ROOT / folder).rglob("__init__.py")}
    assert mapped == found


@pytest.mark.parametrize("file", _sources(), ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_one_way(file):
    mine = file.relative_to(ROOT).parts[0]
    for name in _imports(file):
        top, _, rest = name.partition(".")
        assert top not in FOLDERS, f"bare import of {name}"
        if top == "celosia" and rest:
            other = rest.partition(".")[0]
            assert other == mine or other in ALLOWED[mine] or other not in FOLDERS, f"{mine} must not import {name}"


def test_hw_imports_no_torch():
    for file in (ROOT / "hw").rglob("*.py"):
        assert not any(name.partition(".")[0].startswith("torch") for name in _imports(file))


@pytest.mark.parametrize("statement", [
    "import celosia",
    "import celosia.hw.program, celosia.sim.golden, celosia.models.zoo, celosia.models.recipes",
    "import celosia.host.device, celosia.host.source, celosia.host.report",
])
def test_torch_is_not_loaded(statement):
    script = f"import sys; {statement}; print([name for name in ('torch', 'torchao', 'torchvision') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_pytest_plugin_loads_nothing():
    """It is part of every pytest run where celosia is installed."""
    script = ("import sys, pytest; before = set(sys.modules); import celosia.host.pytest_plugin; "
              "print(*sorted(name for name in set(sys.modules) - before if not name.startswith(('celosia', 'importlib', 'email'))))")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_public_names_resolve():
    assert set(dir(celosia)) == set(celosia.__all__)
    for name in celosia.__all__:
        assert getattr(celosia, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        celosia.nonsense  # noqa: B018


def test_every_dependency_is_pinned():
    pins = {line.partition("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    needed = {requirement.partition(";")[0].strip() for requirement in requires("celosia")}
    names = {"".join(char if char.isalnum() or char in "-_" else " " for char in requirement).split()[0].lower().replace("_", "-") for requirement in needed}
    assert names <= pins
