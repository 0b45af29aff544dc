"""A store that is called from a signal handler or a finaliser, in the middle of a call of its own thread.

It is refused with `ReentryError`, or it does what it always does; nothing that was acknowledged is lost, nothing
waits for itself, and the store opens afterwards.
"""

from __future__ import annotations

import dis
import functools
import itertools
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import pytest

import bytekv
from bytekv.engine.store import Store
from bytekv.errors import ReentryError
from tests.crash.test_interrupts import SCOPE, InterruptAt, same_as_before
from tests.support.handled_calls import HANDLERS, HandlerBench
from tests.support.harness import FakeFiles, open_store
from tests.support.interrupted_calls import BACKGROUND, CALLS, EVERY_CALL, Mode, Tally, a_bench


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


@pytest.mark.parametrize("name", ["replace", "sync_directory", "truncate"])
@pytest.mark.parametrize("call", ["compact", "put"])
def test_an_error_out_of_a_handler_is_not_taken_for_the_systems(path: Path, call: str, name: str) -> None:
    """Right behind the rename of the manifest it was read as "nothing has happened", and listed files were removed."""
    for number in range(1, 10):
        files = Struck()
        home = path.parent / f"store-{number}"
        store = _filled(home, files)
        refused: list[ReentryError] = []

        def write(store: Store = store, refused: list[ReentryError] = refused) -> None:
            try:
                store["mine"] = b"1"
            except ReentryError as error:
                refused.append(error)
                raise

        files.handler, files.name, files.number = write, name, number
        try:
            if call == "compact":
                store.compact()
            else:
                for turn in range(200):
                    store[_key(turn)] = b"y" * 50
            assert not refused, "the error of the handler was swallowed"
        except ReentryError:
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


def test_get_and_in_agree_in_a_handler_in_the_middle_of_a_put_over_an_expired_key(bench: HandlerBench) -> None:
    """The key's new location was there and its old time, too: `get` found the value, ``in`` said that it is gone."""
    name = "put over an expired key"
    case = Case(name, next(mode for mode in EVERY_CALL[name].modes if mode.io == "mmap" and mode.sync == "os"), "get")
    for number in range(1, case.count(bench) + 1):
        case.strike(bench, number, in_finaliser=False)


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


# --- real signals --------------------------------------------------------------------------------

#: A process that does one thing again and again; its handler of SIGTERM writes, and says whether it was refused.
_PROGRAM = """
import os, shutil, signal, sys
import bytekv

path, sync, does = sys.argv[1:]
handled = 0
is_over = False

def say(what):
    os.write(1, b"%s %d\\n" % (what, handled))

def stop(*_):
    global handled
    handled += 1
    try:
        db[b"stopped-%d" % handled] = b"1"
    except (bytekv.ReentryError, bytekv.StoreClosedError):
        say(b"refused")
    else:
        say(b"kept")

def end(*_):
    global is_over
    is_over = True

def open_it():
    return bytekv.open(path, sync=sync, sync_interval_s=0.01, segment_size_bytes=8192)

db = open_it()
db.update({b"k%d" % number: b"v" * 40 for number in range(300)})
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGUSR1, end)
say(b"begun")
turn = 0
while not is_over:
    turn += 1
    try:
        for number in range(0, 300, 7):
            db[b"k%d" % number] = b"%d" % turn * 10
        if does == "compact":
            db.compact()
        elif does == "sync":
            db.sync()
        elif does == "verify":
            assert db.verify().ok
        elif does == "backup":
            db.backup(path + "-backup")
        else:
            db.close()
            db = open_it()
    except bytekv.StoreClosedError:
        raise SystemExit("closed under its owner")
db.close()
"""


def _terminate(path: Path, sync: str, does: str, signals: int, chance: random.Random, *, is_killed: bool) -> int:
    """Send a process so many SIGTERMs at random moments and end it; return how many writes of its handler were kept."""
    command = [sys.executable, "-c", _PROGRAM, str(path), sync, does]
    environment = {**os.environ, "PYTHONPATH": str(Path(bytekv.__file__).parent.parent)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"begun 0\n"
        kept = []
        for number in range(1, signals + 1):
            time.sleep(chance.random() * 0.02)
            process.send_signal(signal.SIGTERM)
            said, _, which = process.stdout.readline().decode().partition(" ")
            assert said in ("kept", "refused"), process.communicate()[1].decode()
            assert int(which) == number
            if said == "kept":
                kept.append(b"stopped-%d" % number)
        process.send_signal(signal.SIGKILL if is_killed else signal.SIGUSR1)
        err = process.communicate(timeout=60)[1].decode()
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == (-signal.SIGKILL if is_killed else 0), err
    with open_store(path) as db:
        assert {key for key in db if key.startswith(b"stopped-")} == set(kept), (
            "acknowledged and lost, or refused and kept"
        )
        assert len(db) == 300 + len(kept)
        assert db.verify().ok
    return len(kept)


_DOES = ["compact", "sync", "verify", "backup", "close"]


@pytest.mark.skipif(sys.platform == "win32", reason="made of signals")
@pytest.mark.parametrize("does", _DOES)
def test_real_signals(path: Path, does: str) -> None:
    _terminate(path, "interval", does, 5, random.Random(does), is_killed=True)


@pytest.mark.deep
@pytest.mark.skipif(sys.platform == "win32", reason="made of signals")
def test_a_thousand_real_signals(path: Path) -> None:
    chance = random.Random(0)
    launches = list(itertools.product(_DOES, ("interval", "always"), (False, True)))
    kept = 0
    for number, (does, sync, is_killed) in enumerate(launches):
        kept += _terminate(path.with_name(f"store-{number}"), sync, does, 50, chance, is_killed=is_killed)
    print(f"\n{50 * len(launches)} SIGTERMs: {kept} writes kept, the others refused, none lost, every store opens")
