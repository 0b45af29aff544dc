"""A call that runs out of memory has happened or has not: the same answer now and after reopening (D8).

At every single allocation of a call there is no memory: for this one, or from then on, one failure a case.
What is judged, and how, is in `interrupted_calls`.

``_testcapi`` of CPython does that, in a process of its own: an interpreter without memory may end, and some versions do
(`crashes_by_itself`). "From then on" are `LASTING` allocations, for CPython 3.11 itself asks for memory in an endless
loop before it runs a ``finally``. And it takes a tuple of three to leave a ``with lock``; Python nearly always has some
in stock, and has them here: without one, and without memory for one, the lock would stay taken, whatever we do.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from operator import length_hint
from pathlib import Path
from types import FunctionType
from typing import NamedTuple

import pytest

from bytekv.engine import open as opening
from bytekv.engine.log.directory import Directory
from bytekv.engine.space.maintenance import Maintenance
from bytekv.engine.store import Store
from tests.support.interrupted_calls import ANY_SYNC, BACKGROUND, CALLS, OPENINGS, Bench, Mode, Tally, a_bench

ROOT = Path(__file__).parents[2]
LASTING = 1000
_MORE_THAN_ANY = 10_000  # allocations in one call
_ALSO_SAID = {"can't allocate lock", "error return without exception set"}  # by CPython, instead of MemoryError
NAMES = [*CALLS, *BACKGROUND, *OPENINGS]

_CRASHER = """
import _testcapi, gc
class Caller:
    def close_over(self, argument):
        return lambda: argument
    def call(self):
        return self.close_over([1, 2, 3])
for turn in range(50):
    for number in range(1, 40):
        call = Caller().call
        _testcapi.set_nomemory(number, number + 1)
        try:
            call()
        except MemoryError:
            pass
        finally:
            _testcapi.remove_mem_hooks()
gc.collect()
"""


@functools.cache
def crashes_by_itself() -> str:
    """Tell why this cannot be tested here; empty if it can."""
    try:
        import _testcapi  # noqa: F401
    except ImportError:
        return "this Python was built without _testcapi, which lets allocations fail"
    if subprocess.run([sys.executable, "-c", _CRASHER], capture_output=True).returncode:
        return "this Python crashes by itself when memory runs out in a function whose argument a closure uses"
    return ""


class NoMemoryAt:
    """Let the ``number``-th allocation from now on fail, and ``width`` in all."""

    def __init__(self, number: int, width: int) -> None:
        self.number, self.width = number, width
        self.before = 0  # allocations of a call that was not struck

    def carry_out(self, act: Callable[[], object]) -> bool:
        """Call ``act``; tell whether it was struck."""
        import _testcapi

        fail, succeed, allocate = _testcapi.set_nomemory, _testcapi.remove_mem_hooks, bytes
        rest = repeat(None, self.number + 1)
        for _ in [tuple([number, number, number]) for number in range(100)]:  # noqa: C409 - a stock of tuples
            pass
        fail(self.number, self.number + self.width)
        try:
            act()
            for _ in rest:  # if it was not struck, this will be
                allocate(100)
        except (MemoryError, RuntimeError, SystemError) as error:
            succeed()
            if not isinstance(error, MemoryError) and str(error) not in _ALSO_SAID:
                raise
        finally:
            succeed()
        used = self.number + 1 - length_hint(rest)
        self.before = self.number - used
        # The first of all fails, too, if it is still the same shortage; none does if that has passed unnoticed.
        return used <= 1 or used > self.number


class Case(NamedTuple):
    """A call, or an opening, in one mode."""

    name: str
    mode: Mode

    def run(self, bench: Bench, shortage: NoMemoryAt) -> bool:
        """Carry it out and judge; tell whether it was struck."""
        return (bench.run_opening if self.name in OPENINGS else bench.run)(self.name, self.mode, shortage.carry_out)

    def count(self, bench: Bench) -> int:
        """Return how many allocations it makes, give or take a few."""
        shortage = NoMemoryAt(_MORE_THAN_ANY, 1)
        assert not self.run(bench, shortage)
        return shortage.before


def _cases(names: Iterable[str]) -> Iterator[Case]:
    calls = CALLS | BACKGROUND
    for name in names:
        for mode in calls[name].modes if name in calls else ANY_SYNC:
            yield Case(name, mode)


def sweep(budget_s: float, seed: int, names: Iterable[str], limit: int) -> Tally:
    """Strike at allocations in random order, in this process; at all if the budget and the limit allow."""
    until = time.monotonic() + budget_s
    cases, violations = 0, []
    with a_bench(Bench) as bench:
        places = [
            (case, number, width)
            for case in _cases(names)
            for number in range(1, case.count(bench) + 3)
            for width in (1, LASTING)
        ]
        random.Random(seed).shuffle(places)
        for case, number, width in places[:limit]:
            if time.monotonic() > until:
                break
            try:
                cases += case.run(bench, NoMemoryAt(number, width))
            except Exception as error:
                violations.append(f"{case.name}, {case.mode}, allocation {number}, {width} fail: {error!r}")
    return Tally(cases, violations, seed)


def count_memory_errors(budget_s: float, seed: int, names: Iterable[str] = NAMES, limit: int = sys.maxsize) -> Tally:
    """Strike at every allocation of every call in every mode, in random order, for as long as the budget lasts.

    If this Python cannot do that, it says so on standard error, and there is no case.
    """
    if reason := crashes_by_itself():
        print(f"no MemoryErrors: {reason}", file=sys.stderr)
        return Tally(0, [], seed)
    arguments = json.dumps([None if budget_s == math.inf else budget_s, seed, [*names], limit])
    done = subprocess.run([sys.executable, "-m", __name__, arguments], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        return Tally(0, [f"the process ended with {done.returncode}: {done.stderr[-2000:]}"], seed)
    cases, violations = json.loads(done.stdout.splitlines()[-1])
    return Tally(cases, violations, seed)


def _main(argument: str) -> None:
    import logging

    logging.disable()
    sys.unraisablehook = lambda unraisable: None  # a generator that is dropped without memory, say
    budget_s, seed, names, limit = json.loads(argument)
    tally = sweep(math.inf if budget_s is None else budget_s, seed, names, limit)
    print(json.dumps([tally.cases, tally.violations]))


#: What runs when an opening fails, or a store is closed or dropped.
_GIVING_BACK = [
    *(getattr(Store, name) for name in ("__init__", "close", "_shut", "__del__", "_commit_batch")),
    Maintenance.build_hints,
    Maintenance.__init__,
    *(function for part in (opening, Directory) for function in vars(part).values() if inspect.isfunction(function)),
]


@pytest.mark.parametrize("function", _GIVING_BACK, ids=lambda function: function.__qualname__)
def test_nothing_that_gives_the_lock_back_has_a_closure(function: FunctionType) -> None:
    """If there was no memory for a variable that a closure shares, CPython 3.11 loses an argument: it is never freed.

    A store that close() had not closed, and that nobody had any more, kept its lock for as long as the process lived.
    """
    assert function.__code__.co_cellvars == ()


@pytest.fixture
def _possible() -> None:
    if reason := crashes_by_itself():
        pytest.skip(reason)


@pytest.mark.usefixtures("_possible")
def test_no_memory_at_some_allocations() -> None:
    cases, violations, _ = count_memory_errors(math.inf, 0, limit=300)
    assert not violations, violations[:10]
    assert cases > 280


@pytest.mark.usefixtures("_possible")
def test_no_memory_at_any_allocation_of_creating_a_store() -> None:
    """The lock stayed with this process, which could never open the store again.

    Giving it back took memory; closing the directory's descriptor took some; and a closure, another one in
    `weakref.WeakMethod`, had CPython lose an argument that had the directory.
    """
    cases, violations, _ = count_memory_errors(math.inf, 0, ["create"])
    assert not violations, violations[:10]
    assert cases > 1000


@pytest.mark.deep
@pytest.mark.usefixtures("_possible")
@pytest.mark.parametrize("name", NAMES)
def test_no_memory_at_every_allocation(name: str) -> None:
    cases, violations, _ = count_memory_errors(math.inf, 0, [name])
    print(f"{cases} cases")
    assert not violations, violations[:10]
    assert cases > 20


if __name__ == "__main__":
    _main(sys.argv[1])
