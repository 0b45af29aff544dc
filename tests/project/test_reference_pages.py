"""The pages say of options, errors, limits and modules what the code says."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import bytekv
from bytekv import errors
from tests import reference_pages
from tests.reference_pages import PARTS, REFERENCE, between


@pytest.mark.parametrize(("page", "name", "make"), PARTS, ids=[f"{page.name}: {name}" for page, name, _ in PARTS])
def test_the_page_says_what_the_code_says(page: Path, name: str, make: Callable[[], str]) -> None:
    _, part, _ = between(page.read_text(encoding="utf-8"), name)
    assert part == make(), "run python -m tests.reference_pages"


def test_every_option_has_its_range_or_its_choices() -> None:
    limits = reference_pages.limit_table()
    for name in bytekv.Options.names():
        value = getattr(bytekv.Options(), name)
        if isinstance(value, (bool, str)) or name == "listener":  # which can be called, or not
            continue
        assert f"| `{name}` |" in limits, name


def test_what_to_do_is_said_of_errors_that_exist() -> None:
    page = (REFERENCE / "errors.md").read_text(encoding="utf-8")
    advised = re.findall(r"^\| `(\w+)` \|", page.partition("## What to do")[2], re.MULTILINE)
    assert len(advised) > 5
    assert set(advised) <= set(errors.__all__)
