"""Every decoder takes any bytes: mutated golden stores, by hypothesis; `tests.fuzz` does it at length with atheris."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, corpus, pack, unpack
from tests.support.harness import WRONG, Case

EXAMPLES = {"directory": 150, "resp": 60, "http": 60}
CHUNK = 100


@st.composite
def mutated(draw: Callable[..., Any], seeds: list[bytes]) -> bytes:
    """Draw an input to begin with, and replace, insert, remove and repeat a few pieces of it."""
    data = draw(st.sampled_from(seeds) | st.binary(max_size=200))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        gone = draw(st.sampled_from([0, 1, 2, 4, 8, 40]))
        piece = draw(
            st.binary(max_size=8)
            | st.sampled_from([b"\0" * 8, b"\xff" * 8, b"\xff\xff\xff\x7f", b"\x01" + bytes(7)])
            | st.just(data[at : at + 64])
        )
        data = data[:at] + piece + data[at + gone :]
    return data


def _search(target: str, examples: int, **how: Any) -> Callable[[], None]:
    @settings(max_examples=examples, deadline=None, database=None, **how)
    @given(mutated(corpus(target)))
    def run(data: bytes) -> None:
        TARGETS[target](data)

    return run


def fuzz_cases(place: Path, seed: int) -> Iterator[Case]:
    """Try all targets in turn, without end, with other mutations each time."""
    for number, target in enumerate(itertools.cycle(TARGETS)):
        try:
            hypothesis.seed(seed * 1_000_003 + number)(_search(target, CHUNK))()
        except WRONG as error:
            yield Case("fuzz cases", error)
        else:
            yield Case("fuzz cases", count=CHUNK, detail=target)


@pytest.mark.parametrize("target", TARGETS)
def test_any_bytes(target: str) -> None:
    _search(target, EXAMPLES.get(target, 300), derandomize=True)()


@pytest.mark.parametrize("target", TARGETS)
def test_what_a_target_begins_with_is_good(target: str) -> None:
    pieces = corpus(target)
    assert pieces
    for piece in pieces:
        TARGETS[target](piece)


def test_a_directory_comes_back_from_one_piece() -> None:
    files = {"MANIFEST": b"1", "0000000003.seg": b"", "0000000012.hint": b"22"}
    assert unpack(pack(files)) == files


def test_the_script_says_what_it_needs() -> None:
    """Either atheris is there and runs a moment, or the message says how to get it."""
    command = [sys.executable, "-m", "tests.fuzz", "entry", "--seconds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode == 2:
        assert "pip install -e '.[fuzz]'" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert "Done" in done.stderr
