"""The examples in the docstrings run and print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import tempfile
from pathlib import Path

import pytest

import bytekv

MODULES = ["bytekv", *(module.name for module in pkgutil.walk_packages(bytekv.__path__, "bytekv."))]


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(path.parent))  # so that the stores they make are removed
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_docstrings_are_found() -> None:
    finder = doctest.DocTestFinder()
    found = {name: sum(bool(test.examples) for test in finder.find(importlib.import_module(name))) for name in MODULES}
    assert found["bytekv"]
    assert found["bytekv.engine.store"] > 5
