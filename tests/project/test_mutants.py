"""Tests of the tests: each known way to break bytekv is noticed by the run that is to notice it."""

from __future__ import annotations

import pytest

from tests.mutants import MUTANTS, Mutant, changed, run

pytestmark = pytest.mark.once

#: Two that are found within seconds; the others take minutes together.
_QUICK = (
    "the directory is not synced after the manifest was renamed",
    "an entry with a wrong seq is taken for the next",
)


_TESTS = ("tests/engine/test_locks.py",)


def _expect_caught(mutant: Mutant) -> None:
    result = run(mutant)
    print(f"{mutant.story}: caught by {result.by} in {result.seconds:.1f} s")
    assert result.caught, f"nothing notices that {mutant.story}"


def test_the_passages_that_mutants_replace_are_there():
    for mutant in MUTANTS:
        assert changed(mutant)
    assert len({mutant.story for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("story", _QUICK)
def test_it_is_noticed_that(story: str) -> None:
    _expect_caught(next(mutant for mutant in MUTANTS if mutant.story == story))


def test_a_mutant_that_breaks_everything_proves_nothing() -> None:
    """One of them called a method that did not exist, and was caught by whatever test came first."""
    broken = Mutant(
        "nothing works", (("engine/store", "        self._path = path\n", "        self._path = nowhere\n"),), _TESTS
    )
    with pytest.raises(RuntimeError, match="nobody would overlook"):
        run(broken)


@pytest.mark.deep
def test_what_catches_them_passes_on_the_code_as_it_is() -> None:
    """Else being caught would mean nothing."""
    result = run(
        Mutant("nothing is wrong", (), tuple(dict.fromkeys(test for mutant in MUTANTS for test in mutant.tests)))
    )
    assert not result.caught, result.by
