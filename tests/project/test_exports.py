"""What is public: each module's `__all__`, the page of the API and the program for type checkers name the same."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import bytekv
from bytekv import errors

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "tests" / "typing" / "program.py"
API = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
PUBLIC = ["bytekv", "bytekv.dbm", "bytekv.events", "bytekv.http", "bytekv.resp"]
MODULES = ["bytekv", *(module.name for module in pkgutil.walk_packages(bytekv.__path__, "bytekv."))]


def public_methods(kind: type) -> set[str]:
    """Return the names that a user may call on an object of this class, whichever of our classes has them."""
    ours = [each for each in kind.__mro__ if each.__module__.startswith("bytekv")]
    return {name for each in ours for name in vars(each) if not name.startswith("_")} - set(
        getattr(kind, "_fields", ())
    )


@pytest.mark.parametrize("name", MODULES)
def test_everything_in_all_is_there_once(name: str) -> None:
    module = importlib.import_module(name)
    names = getattr(module, "__all__", [])
    assert len(names) == len(set(names))
    assert not [each for each in names if not hasattr(module, each)]


@pytest.mark.parametrize("name", ["bytekv", "bytekv.resp", "bytekv.http"])
def test_a_package_shows_nothing_but_what_is_public(name: str) -> None:
    package = importlib.import_module(name)
    assert package.__all__ == sorted(package.__all__)
    shown = {each for each, value in vars(package).items() if not isinstance(value, ModuleType)} - {"annotations"}
    needed = {"bytekv": {"TYPE_CHECKING"}, "bytekv.http": {"Iterable", "Store", "Tokens"}}.get(name, set())
    assert {each for each in shown if not each.startswith("_")} - set(package.__all__) == needed


def test_every_error_is_public() -> None:
    assert set(errors.__all__) <= set(bytekv.__all__)


def test_everything_public_is_on_a_page() -> None:
    documented = set(re.findall(r"^::: (\S+)", API, re.MULTILINE))
    wanted = {f"bytekv.{name}" for name in bytekv.__all__ if name not in errors.__all__}
    for name in ("bytekv.events", "bytekv.http", "bytekv.resp"):
        wanted |= {f"{name}.{each}" for each in importlib.import_module(name).__all__}
    wanted.discard("bytekv.events.Event")  # one of all these
    assert documented - {"bytekv.dbm"} == wanted
    dbm = API.partition("::: bytekv.dbm\n")[2].partition(":::")[0]
    assert "members: [open, error]" in dbm
    assert set(importlib.import_module("bytekv.dbm").__all__) == {"open", "error"}


def test_everything_public_has_a_docstring() -> None:
    for module in map(importlib.import_module, PUBLIC):
        for name in module.__all__:
            value = getattr(module, name)
            assert inspect.getdoc(value), name
            if isinstance(value, type) and issubclass(value, (bytekv.Store, bytekv.Batch, bytekv.Snapshot)):
                assert all(inspect.getdoc(getattr(value, each)) for each in public_methods(value)), name


def test_the_program_for_type_checkers_uses_everything() -> None:
    source = PROGRAM.read_text(encoding="utf-8")
    unused = [name for name in bytekv.__all__ if not re.search(rf"\b{name}\b", source)]
    for name in PUBLIC[1:]:
        unused += [each for each in importlib.import_module(name).__all__ if f"{name}.{each}" not in source]
    for kind in (bytekv.Store, bytekv.Batch, bytekv.Transaction, bytekv.Snapshot):
        unused += [f"{kind.__name__}.{each}" for each in public_methods(kind) if not re.search(rf"\.{each}\b", source)]
    assert not unused


def test_the_program_runs(path: Path) -> None:
    path.mkdir()
    environment = {"PYTHONPATH": str(Path(bytekv.__file__).parents[1]), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-W", "error", PROGRAM, path], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(bytekv.__file__).parent / "py.typed").read_text() == ""


def test_type_checkers_know_every_option() -> None:
    """`OpenOptions` is for them alone, and says the same as `Options`."""
    tree = ast.parse((Path(bytekv.__file__).parent / "options.py").read_text(encoding="utf-8"))
    fields = {
        node.name: {
            each.target.id: ast.unparse(each.annotation)
            for each in node.body
            if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
        }
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    assert fields["OpenOptions"] == fields["Options"]
