"""A store that is called from a signal handler or a finaliser, in the middle of a call of its own thread.

It is refused with `ReentryError`, or it does what it always does; nothing that was acknowledged is lost, nothing
waits for itself, and the store opens afterwards.
"""

from __future__ import annotations

import dis
import functools
import math
import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import pytest

from bytekv.errors import ReentryError
from bytekv.store import Store
from tests.handled_calls import HANDLERS, HandlerBench
from tests.harness import FakeFiles, open_store
from tests.interrupted_calls import BACKGROUND, CALLS, EVERY_CALL, Mode, Tally, a_bench
from tests.test_interrupts import SCOPE, InterruptAt, same_as_before


class Struck(FakeFiles):
    """Files that call a handler once, when the ``number``-th call of the method ``name`` returns."""

    def __init__(self) -> None:
        super().__init__()
        self.handler: Callable[[], object] = lambda: None
        self.name, self.number = "", 1

    def __getattribute__(self, attribute: str) -> Any:
        found = super().__getattribute__(attribute)
        if attribute != super().__getattribute__("name"):
            return found

        def call(*arguments: Any, **more: Any) -> Any:
            result = found(*arguments, **more)
            self.number -= 1
            if self.number == 0:
                self.name = ""
                self.handler()
            return result

        return call


def _filled(path: Path, files: FakeFiles, **options: Any) -> Store:
    store = open_store(path, files=files, segment_size_bytes=4096, auto_compact=False, **options)
    for number in range(200):
        store[_key(number)] = b"x" * 50
    return store


def _key(number: int) -> bytes:
    return b"k%d" % (number if number % 4 else number % 50)  # so that each segment holds some that live


KEYS = {_key(number) for number in range(200)}


def _overwrite(store: Store, home: Path) -> None:
    for turn in range(50):
        store.put(_key(turn), b"y" * 50)


ACTS: dict[str, Callable[[Store, Path], object]] = {
    "compact": lambda store, home: store.compact(),
    "sync": lambda store, home: store.sync(),
    "verify": lambda store, home: store.verify(),
    "backup": lambda store, home: store.backup(home.with_name(f"{home.name}-backup")),
    "close": lambda store, home: store.close(),
    "put": _overwrite,
}


@pytest.mark.parametrize("name", ["sync", "replace"])
@pytest.mark.parametrize("call", ACTS)
@pytest.mark.parametrize("sync", ["interval", "always"])
def test_a_write_of_a_handler_is_refused_or_kept(path: Path, call: str, name: str, sync: str) -> None:
    """A put while a segment was being sealed was acknowledged, and the store did not open after a clean close."""
    for number in range(1, 30):
        files = Struck()
        home = path.parent / f"store-{number}"
        store = _filled(home, files, sync=sync)
        told: list[str] = []

        def stop(store: Store = store, told: list[str] = told) -> None:
            try:
                store["stopped"] = b"yes"
                told.append("kept")
            except ReentryError:
                told.append("refused")

        files.handler, files.name, files.number = stop, name, number
        ACTS[call](store, home)
        files.name = ""
        store.close()
        with open_store(home) as again:
            assert again.keys() == KEYS | ({b"stopped"} if told == ["kept"] else set())
            assert again.verify().ok
        if not told:
            break
    else:
        assert call in ("compact", "backup", "put", "verify"), f"{name} was called more often than expected"


@pytest.mark.parametrize("name", ["replace", "sync_directory"])
@pytest.mark.parametrize("call", ["compact", "put"])
def test_an_error_out_of_a_handler_is_not_taken_for_the_systems(path: Path, call: str, name: str) -> None:
    """Right behind the rename of the manifest it was read as "nothing has happened", and listed files were removed."""
    for number in range(1, 10):
        files = Struck()
        home = path.parent / f"store-{number}"
        store = _filled(home, files)
        files.handler, files.name, files.number = lambda store=store: store.put("mine", "1"), name, number  # type: ignore[misc]
        try:
            if call == "compact":
                store.compact()
            else:
                for turn in range(200):
                    store[_key(turn)] = b"y" * 50
        except ReentryError:
            files.name = ""
            killed = home.with_name(f"{number}-killed")
            os.system(f"cp -r {home} {killed}")
            with open_store(killed) as again:
                assert again.keys() >= KEYS
                assert again.verify().ok
        files.name = ""
        store["after"] = b"1"
        assert store.verify().ok
        store.compact()
        store.close()
        with open_store(home) as again:
            assert again.keys() - {b"mine"} == KEYS | {b"after"}
            assert again.verify().ok
            assert sorted(again._directory.segments_on_disk()) == sorted(again._segments.lengths())


# --- at every opcode -----------------------------------------------------------------------------


@functools.cache
def _left_out(code: CodeType) -> frozenset[int] | None:
    """Return the offsets in a function at which a handler would find what it finds one opcode before; None: all."""
    if not code.co_filename.startswith(SCOPE):
        return None
    instructions = list(dis.get_instructions(code))
    found = {*same_as_before(code, instructions)}
    return frozenset(found)


class _Dropped:
    """Call a handler when it is dropped."""

    def __init__(self, handler: Callable[[], object]) -> None:
        self._handler = handler

    def __del__(self) -> None:
        self._handler()


class HandlerAt(InterruptAt):
    """Call a handler at the ``number``-th opcode, as a signal's or as a finaliser's; count the opcodes."""

    left_out = staticmethod(_left_out)

    def __init__(self, number: int, *, in_finaliser: bool = False) -> None:
        super().__init__(number)
        self._in_finaliser = in_finaliser
        self.handler: Callable[[], object] = lambda: None

    def strike(self, act: Callable[[], object], handler: Callable[[], object]) -> bool:
        """Call ``act``, and ``handler`` in the middle of it; tell whether it has come to that."""
        self.handler = handler
        return self.carry_out(act)

    def _pass(self, frame: FrameType) -> None:
        self.count += 1
        if self.count == self.number:
            self.struck = self.lost = True
            self.where = f"{frame.f_code.co_qualname}, line {frame.f_lineno}, offset {frame.f_lasti}"
            if self._in_finaliser:
                _Dropped(self.handler)
            else:
                self.handler()


class Case(NamedTuple):
    """A call in one mode, and what is called in the middle of it."""

    name: str
    mode: Mode
    handler: str

    def __str__(self) -> str:
        return f"{self.handler} in {self.name}, {self.mode}"

    def strike(self, bench: HandlerBench, number: int, *, in_finaliser: bool = False) -> bool:
        """Strike at one opcode and judge; False if there are fewer, as at times once something is cached."""
        at = HandlerAt(number, in_finaliser=in_finaliser)
        try:
            return bench.handle(*self, at.strike)
        except Exception as error:
            error.add_note(f"{self}, opcode {number}: {at.where}")
            raise

    def count(self, bench: HandlerBench) -> int:
        """Return how many opcodes there are to strike at."""
        at = HandlerAt(0)
        bench.handle(*self, at.strike)
        return at.count


def _strikes(case: Case, bench: HandlerBench, chance: random.Random) -> Iterator[tuple[Case, int]]:
    """Yield every handler at every opcode of a call, in random order, without a list of them all."""
    count = case.count(bench) * len(HANDLERS)
    step = next(step for step in iter(lambda: chance.randrange(1, count), 0) if math.gcd(step, count) == 1)
    at = chance.randrange(count)
    for _ in range(count):
        number, handler = divmod(at, len(HANDLERS))
        yield case._replace(handler=[*HANDLERS][handler]), number + 1
        at = (at + step) % count


def _count(budget_s: float, seed: int, names: Iterable[str], *, in_finaliser: bool) -> Tally:
    until = time.monotonic() + budget_s
    cases, violations = 0, []
    chance = random.Random(seed)
    with a_bench(HandlerBench) as bench:
        calls = [Case(name, mode, "get") for name in names for mode in EVERY_CALL[name].modes]
        chance.shuffle(calls)
        waiting = deque(_strikes(case, bench, chance) for case in calls)
        while waiting and time.monotonic() < until:
            strikes = waiting.popleft()
            some = list(islice(strikes, 10))
            for case, number in some:
                cases += 1
                try:
                    case.strike(bench, number, in_finaliser=in_finaliser)
                except Exception as error:
                    violations.append(f"{error!r} {error.__notes__}")
            if some:
                waiting.append(strikes)
    return Tally(cases, violations, seed)


def count_signals(budget_s: float, seed: int, names: Iterable[str] = tuple(CALLS)) -> Tally:
    """Call every handler at every opcode of every call, in random order, for as long as the budget lasts."""
    return _count(budget_s, seed, names, in_finaliser=False)


def count_finalisers(budget_s: float, seed: int, names: Iterable[str] = tuple(EVERY_CALL)) -> Tally:
    """Do the same from finalisers, which run in the worker's thread, too."""
    return _count(budget_s, seed, names, in_finaliser=True)


@pytest.fixture
def bench(path: Path) -> Iterator[HandlerBench]:
    bench = HandlerBench(path.parent)
    yield bench
    bench.close_strays()


@pytest.mark.parametrize("name", EVERY_CALL)
def test_a_handler_at_some_opcodes(bench: HandlerBench, name: str) -> None:
    chance = random.Random(name)
    modes = EVERY_CALL[name].modes
    case = Case(name, chance.choice(modes), "get")
    count = case.count(bench)
    assert count > 10
    for handler in ("put", *chance.sample([*HANDLERS], 2)):
        at = chance.randint(1, count)
        case._replace(handler=handler).strike(bench, at, in_finaliser=name in BACKGROUND or chance.random() < 0.5)


@pytest.mark.deep
@pytest.mark.parametrize("name", EVERY_CALL)
def test_a_handler_at_every_opcode(name: str) -> None:
    cases, violations, _ = _count(math.inf, 0, [name], in_finaliser=name in BACKGROUND)
    print(f"{cases} cases")
    assert not violations, violations[:10]
    assert cases > 100
