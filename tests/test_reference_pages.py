"""docs/reference says of options, errors and limits what the code says; the map of modules is that of the layers."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise

import pytest

import bytekv
from bytekv import errors
from tests import reference_pages
from tests.reference_pages import PARTS, REFERENCE, between
from tests.test_layers import LAYERS

DESIGN = (REFERENCE.parent / "explanation" / "design.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("page", "name", "make"), PARTS, ids=[f"{page}: {name}" for page, name, _ in PARTS])
def test_the_page_says_what_the_code_says(page: str, name: str, make: Callable[[], str]) -> None:
    _, part, _ = between((REFERENCE / page).read_text(encoding="utf-8"), name)
    assert part == make(), "run python -m tests.reference_pages"


def test_every_option_has_its_range_or_its_choices() -> None:
    limits = reference_pages.limit_table()
    for name in bytekv.Options.names():
        value = getattr(bytekv.Options(), name)
        if isinstance(value, (bool, str)):
            continue
        assert f"| `{name}` |" in limits, name


def test_what_to_do_is_said_of_errors_that_exist() -> None:
    page = (REFERENCE / "errors.md").read_text(encoding="utf-8")
    advised = re.findall(r"^\| `(\w+)` \|", page.partition("## What to do")[2], re.MULTILINE)
    assert len(advised) > 5
    assert set(advised) <= set(errors.__all__)


def test_the_map_shows_every_module_above_what_it_imports() -> None:
    drawn = DESIGN.partition("<!-- map")[2].partition("<!-- end of map -->")[0]
    bands = [re.findall(r"bytekv/([\w/]+)(?:\.py|/)", band) for band in re.split(r"─{20,}", drawn)]
    bands = [[module.replace("/", ".") for module in band] for band in bands]
    shown = [module for band in bands for module in band]
    layers = [layer.partition(".")[0] if layer.startswith(("http", "resp")) else layer for layer in LAYERS]
    assert sorted(shown) == sorted({*layers} - {""})
    rank = {layer: number for number, layer in enumerate(layers)}
    for upper, lower in pairwise(bands):
        assert min(rank[module] for module in upper) > max(rank[module] for module in lower), (upper, lower)
