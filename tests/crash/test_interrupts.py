"""A call that is interrupted has happened or has not: the same answer now and after reopening (D8).

An exception is raised at every single opcode of a call, one opcode a case, as a signal handler would raise it.
What is judged, and how, is in `interrupted_calls`.

Struck are the opcodes of bytekv and of those Python functions below it that keep state of ours: `sortedcontainers`
(the index) and `threading`. The other functions of the standard library that are called (paths, `dataclasses.replace`,
`contextlib.suppress`) change nothing: to strike in one is to strike at the call. Left out are the few opcodes
with which a ``with`` statement itself enters and leaves: CPython runs signal handlers only at function entry, after a
call and at a backward jump, so none can strike there, and a lock taken by ``with`` cannot leak. And an opcode that
only loads or compares leaves the same state before as after it: one of the two is enough.

One gap is known and left out, too: the first instruction of `Transaction.__exit__`, of which Python cannot make one
step with the end of the block. Struck there, the gate stays shut until the transaction is dropped.
"""

from __future__ import annotations

import _thread
import contextlib
import dis
import functools
import itertools
import math
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import pytest
import sortedcontainers

import bytekv
from bytekv.engine.codec.entry import PUT
from bytekv.engine.space.compactor import Compactor
from bytekv.engine.space.worker import Worker
from bytekv.engine.store import Store
from bytekv.engine.write.change import Operation
from bytekv.engine.write.commit import Committer
from tests.support.harness import FakeFiles, open_store
from tests.support.interrupted_calls import ANY_SYNC, CALLS, OPENINGS, Bench, Mode, Tally, a_bench

#: What only computes: modules, and functions of other modules, that change nothing but their own variables.
_COMPUTES = {
    *(
        str(Path(bytekv.__file__).parent / name)
        for name in ("contract/convert.py", "contract/ordered.py", "errors.py", "options.py")
    ),
    *map(str, (Path(bytekv.__file__).parent / "engine/codec").glob("*.py")),
    "Directory.hint_path",
    "Directory.manifest_path",
    "Directory.segment_path",
    "Files.file_system",
    "Scan.__init__",
    "Scan.__iter__",
    "SegmentManager.lengths",
    "SegmentManager.lengths.<locals>.<dictcomp>",
    "SegmentManager.lengths_of_entries.<locals>.<dictcomp>",
    "SegmentManager.sealed.<locals>.<listcomp>",
    "parse_name",
    "hint_of",
    "usage_of",
    "usage_of.<locals>.<listcomp>",
}
SCOPE = tuple(str(Path(module.__file__).parent) for module in (bytekv, sortedcontainers)) + (threading.__file__,)


#: Opcodes that only put references on their frame's own stack, or look at what lies there.
_LOOKS = re.compile(
    r"(BUILD|COMPARE|CONTAINS|COPY|EXTENDED_ARG|FORMAT|IS_OP|KW_NAMES|LOAD|NOP|POP_JUMP|PRECALL|PUSH_NULL|SWAP|UNPACK)"
)


@functools.cache
def _left_out(code: CodeType) -> frozenset[int] | None:
    """Return the offsets in a function at which nothing strikes; None: nowhere in it."""
    if not code.co_filename.startswith(SCOPE) or code.co_filename in _COMPUTES or code.co_qualname in _COMPUTES:
        return None
    instructions = list(dis.get_instructions(code))
    found = {*_with_protocol(instructions), *same_as_before(code, instructions)}
    # They cannot fail, so Python has no handlers for them: not where a ``try`` begins, nor where an ``except`` ends.
    found.update(instruction.offset for instruction in instructions if instruction.opname in ("NOP", "POP_EXCEPT"))
    if code.co_qualname == "Transaction.__exit__":
        first = min(entry.start for entry in _handlers(code))
        found.update(instruction.offset for instruction in instructions if instruction.offset < first)
    return frozenset(found)


def _with_protocol(instructions: list[dis.Instruction]) -> Iterator[int]:
    """Yield the offsets at which a ``with`` block is being entered or left."""
    for number, instruction in enumerate(instructions):
        if instruction.opname == "BEFORE_WITH":
            yield instructions[number + 1].offset
        triple = instructions[number : number + 3]
        if len(triple) == 3 and all(part.opname == "LOAD_CONST" and part.argval is None for part in triple):
            rest = instructions[number + 3 : number + 5]
            if any(part.opname in ("CALL", "PRECALL") and part.arg == 2 for part in rest):
                if number and instructions[number - 1].opname == "SWAP":
                    yield instructions[number - 1].offset
                yield from (part.offset for part in (*triple, *rest))


def same_as_before(code: CodeType, instructions: list[dis.Instruction]) -> Iterator[int]:
    """Yield the offsets at which striking leaves what striking at the opcode before leaves.

    Nothing that outlives the frame has changed in between, and the same handler is reached; or none can be, for
    a loaded value is returned next.
    """
    handlers = _handlers(code)

    def handler(instruction: dis.Instruction) -> int | None:
        offset = instruction.offset
        return next((entry.target for entry in handlers if entry.start <= offset < entry.end), None)

    for before, instruction in itertools.pairwise(instructions):
        same = handler(before) == handler(instruction) or instruction.opname.startswith("RETURN")
        if same and not instruction.is_jump_target and _LOOKS.match(before.opname):
            yield instruction.offset


def _handlers(code: CodeType) -> list[Any]:
    return dis._parse_exception_table(code)  # type: ignore[attr-defined,no-any-return]


def _in_finaliser(frame: FrameType | None) -> bool:
    """Tell whether this runs below ``__del__``: what is raised there goes nowhere, in Python as in this test."""
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


class InterruptAt:
    """Let KeyboardInterrupt strike at the ``number``-th opcode; count them."""

    left_out = staticmethod(_left_out)

    def __init__(self, number: int) -> None:
        self.number, self.count, self.struck, self.lost = number, 0, False, False
        self.where = ""
        self._thread = threading.get_ident()  # signal handlers run in one only

    def carry_out(self, act: Callable[[], object]) -> bool:
        """Call ``act``; tell whether the exception has struck."""
        raised = False
        hook, sys.unraisablehook = sys.unraisablehook, self._lose
        self._watch()
        try:
            act()
        except KeyboardInterrupt:
            raised = True
        finally:
            self._look_away()
            sys.unraisablehook = hook
        assert raised or self.lost or not self.struck, "the interrupt was swallowed"
        return self.struck

    def _lose(self, unraisable: object) -> None:
        self.lost = True  # in a generator that is being closed, say; it goes nowhere, in Python as here

    def _pass(self, frame: FrameType) -> None:
        """Count one opcode; raise if it is the one."""
        self.count += 1
        if self.count == self.number:
            self.struck = True
            self.where = f"{frame.f_code.co_qualname}, line {frame.f_lineno}, offset {frame.f_lasti}"
            if _in_finaliser(frame):
                self.lost = True
            else:
                raise KeyboardInterrupt

    if sys.version_info < (3, 12):

        def _watch(self) -> None:
            self._tracer = sys.gettrace()  # that of a coverage measurement
            sys.settrace(self._trace)

        def _look_away(self) -> None:
            sys.settrace(self._tracer)

        def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
            left_out = self.left_out(frame.f_code)
            if left_out is None:
                return None

            def trace(frame: FrameType, event: str, argument: Any) -> Any:
                if event == "opcode" and frame.f_lasti not in left_out:
                    self._pass(frame)
                return trace

            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            return trace

    else:

        def _watch(self) -> None:
            monitoring = sys.monitoring
            monitoring.use_tool_id(monitoring.DEBUGGER_ID, "interrupts")
            monitoring.register_callback(monitoring.DEBUGGER_ID, monitoring.events.INSTRUCTION, self._see)
            monitoring.set_events(monitoring.DEBUGGER_ID, monitoring.events.INSTRUCTION)

        def _look_away(self) -> None:
            sys.monitoring.set_events(sys.monitoring.DEBUGGER_ID, 0)
            sys.monitoring.free_tool_id(sys.monitoring.DEBUGGER_ID)

        def _see(self, code: CodeType, offset: int) -> Any:
            left_out = self.left_out(code)
            if left_out is None or offset in left_out:
                return sys.monitoring.DISABLE
            if threading.get_ident() == self._thread:
                self._pass(sys._getframe(1))
            return None


@pytest.fixture
def bench(path: Path) -> Iterator[Bench]:
    bench = Bench(path.parent)
    yield bench
    bench.close_strays()


# --- all cases -----------------------------------------------------------------------------------


class Case(NamedTuple):
    """A call, or an opening, in one mode."""

    name: str
    mode: Mode

    def __str__(self) -> str:
        return f"{self.name}, {self.mode}"

    def run(self, bench: Bench, carry_out: Callable[[Callable[[], object]], bool]) -> bool:
        return (bench.run_opening if self.name in OPENINGS else bench.run)(self.name, self.mode, carry_out)

    def strike(self, bench: Bench, number: int) -> None:
        """Strike at one opcode and judge."""
        interrupt = InterruptAt(number)
        try:
            assert self.run(bench, interrupt.carry_out), "there are fewer opcodes than were counted"
        except Exception as error:
            error.add_note(f"{self}, opcode {number}: {interrupt.where}")
            raise

    def count(self, bench: Bench) -> int:
        """Return how many opcodes there are to strike at."""
        interrupt = InterruptAt(0)
        self.run(bench, interrupt.carry_out)
        return interrupt.count


NAMES = [*CALLS, *OPENINGS]


def _cases(names: Iterable[str]) -> Iterator[Case]:
    for name in names:
        for mode in CALLS[name].modes if name in CALLS else ANY_SYNC:
            yield Case(name, mode)


def count_interrupts(budget_s: float, seed: int, names: Iterable[str] = NAMES) -> Tally:
    """Strike at every opcode of every call in every mode, in random order, for as long as the budget lasts."""
    until = time.monotonic() + budget_s
    cases, violations = 0, []
    with a_bench(Bench) as bench:
        places = [(case, number) for case in _cases(names) for number in range(1, case.count(bench) + 1)]
        random.Random(seed).shuffle(places)
        for case, number in places:
            if time.monotonic() > until:
                break
            cases += 1
            try:
                case.strike(bench, number)
            except Exception as error:
                violations.append(f"{error!r} {error.__notes__}")
    return Tally(cases, violations, seed)


@pytest.mark.parametrize("name", NAMES)
def test_keyboard_interrupt_at_some_opcodes(bench: Bench, name: str) -> None:
    for case in _cases([name]):
        count = case.count(bench)
        assert count > 10
        for number in random.Random(0).sample(range(1, count + 1), 4):
            case.strike(bench, number)


@pytest.mark.deep
@pytest.mark.parametrize("name", NAMES)
def test_keyboard_interrupt_at_every_opcode(name: str) -> None:
    cases, violations, _ = count_interrupts(math.inf, 0, [name])
    print(f"{cases} cases")
    assert not violations, violations[:10]
    assert cases > 100


def test_keys_whose_move_was_interrupted_anywhere(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has been moved is forgotten in three lists. Struck between two of them, every compaction that followed ended
    in a `ValueError`, the one in the background for good, and writes were refused."""
    move_some = Compactor._move_some
    number = 0
    is_struck = True
    while is_struck:
        number += 1
        interrupt = InterruptAt(number)

        def move(compactor: Compactor, job: Any, interrupt: InterruptAt = interrupt) -> None:
            interrupt.carry_out(lambda: move_some(compactor, job))
            if interrupt.struck:
                monkeypatch.undo()
                raise KeyboardInterrupt

        home = path.with_name(f"moved-{number}")
        with open_store(home, files=FakeFiles(), sync="os") as store:
            content = {b"%d" % key: b"1" for key in range(3)}
            store.update(content | {b"gone": b"1"})
            del store["gone"]
            monkeypatch.setattr(Compactor, "_move_some", move)
            with contextlib.suppress(KeyboardInterrupt):
                store.compact()
            monkeypatch.undo()
            is_struck = interrupt.struck
            store.compact()
            assert dict(store) == content
            with store._commit.state.lock:
                assert store._keydir.check() == store._segments.check() == []
            assert len(store._segments.lengths()) == 1
    assert number > 30


@pytest.mark.parametrize("way", ["seal", "roll"])
def test_what_another_thread_is_about_to_sync_outlives_an_interrupted_seal(
    open_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """It was in a sealed segment by then and not shown yet. So a compaction took it for dead, and removed the segment;
    then its sync came to its end, and it was acknowledged."""
    db = open_store(sync="always", segment_size_bytes=400, auto_compact=False)
    db.update({"dead": "1" * 50, "kept": "1"})
    db["dead"] = "2"
    commit, state = db._commit, db._commit.state
    with state.lock, state:
        state.ready()
        seq = commit.append([Operation(PUT, b"waits", b"value")])
    with monkeypatch.context() as patch:

        def strike(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(Committer, "_sealed", strike)
        with pytest.raises(KeyboardInterrupt):
            commit.seal() if way == "seal" else db.put("rolls", bytes(300))
    victim = min(db._segments.lengths())
    db._maintenance.compactor.run([victim], lambda: None, lambda _: None)
    commit.durability.finish(seq)
    assert db["waits"] == b"value"
    assert db["dead"] == b"2"
    db.close()
    with open_store() as again:
        assert again["waits"] == b"value"


def _strike_twice(bench: Bench, case: Case, chance: random.Random, count: int) -> bool:
    second = InterruptAt(int(chance.expovariate(1 / 100)) + 1)
    first = InterruptAt(chance.randint(1, count))
    try:
        return bench.run(case.name, case.mode, first.carry_out, second.carry_out)
    except Exception as error:
        error.add_note(f"{case}: {first.where}, then {second.where}")
        raise


@pytest.mark.parametrize("name", [name for name in CALLS if not name.startswith(("close", "refresh"))])
def test_interrupted_twice(bench: Bench, name: str) -> None:
    """The next call, which carries out what was left, is interrupted as well."""
    chance = random.Random(1)
    for case in _cases([name]):
        count = case.count(bench)
        for _ in range(2):
            assert _strike_twice(bench, case, chance, count)


@pytest.mark.deep
@pytest.mark.parametrize("name", [name for name in CALLS if not name.startswith(("close", "refresh"))])
def test_interrupted_twice_in_many_places(bench: Bench, name: str) -> None:
    chance = random.Random(2)
    for case in _cases([name]):
        count = case.count(bench)
        for _ in range(100):
            assert _strike_twice(bench, case, chance, count)


# --- threads and real signals --------------------------------------------------------------------


class Employer:
    """Have a worker, and note that it has come."""

    def __init__(self) -> None:
        self.came = threading.Semaphore(0)
        self.worker = Worker(self.work, self.failed, "bytekv interrupted")

    def work(self) -> None:
        self.came.release()

    def failed(self, error: BaseException) -> bool:
        raise error


def test_a_worker_works_and_ends_whatever_was_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt inside `threading.Event.set` left its lock held: the next write, or close(), waited for ever."""
    # Inside of Thread.start() the interpreter leaves things undone; the next test is about that.
    monkeypatch.setattr(threading.Thread, "start", _start_at_once)
    ended = 0
    for calls in ("wake", "wake wake", "wake stop", "stop"):
        number = 0
        while True:
            number += 1
            employer = Employer()
            *before, struck = (getattr(employer.worker, name) for name in calls.split())
            for call in before:
                call()
            interrupt = InterruptAt(number)
            if not interrupt.carry_out(struck):
                break
            ended += 1
            if "stop" not in calls:
                assert employer.worker.wake()
                assert employer.came.acquire(timeout=60)
            employer.worker.stop()
    assert ended > 50


def _start_at_once(thread: threading.Thread) -> None:
    _thread.start_new_thread(thread.run, ())


@pytest.mark.parametrize("is_alive", [False, True])
def test_a_thread_that_was_interrupted_while_it_started(monkeypatch: pytest.MonkeyPatch, is_alive: bool) -> None:
    """Nobody can tell whether it runs: there is one that works in the end, and one only."""
    start = threading.Thread.start

    def interrupted_start(thread: threading.Thread) -> None:
        if is_alive:
            start(thread)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted_start)
    employer = Employer()
    with pytest.raises(KeyboardInterrupt):
        employer.worker.wake()
    for _ in range(3):
        assert employer.worker.wake()
        assert employer.came.acquire(timeout=60)
    employer.worker.stop()
    assert not employer.worker.wake()


class _Signal:
    """Send this thread a real SIGINT as soon as it waits."""

    def __init__(self, is_waiting: Callable[[], bool]) -> None:
        self._is_waiting = is_waiting
        self._thread = threading.Thread(target=self._run, args=(threading.get_ident(),))

    def _run(self, ident: int) -> None:
        while not self._is_waiting():
            time.sleep(0)
        signal.pthread_kill(ident, signal.SIGINT)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join()


def test_interrupted_while_a_transaction_keeps_it_waiting(open_store: Callable[..., Store]) -> None:
    db = open_store()
    begun, end = threading.Event(), threading.Event()

    def transact() -> None:
        with db.transaction() as tx:
            tx["theirs"] = b"1"
            begun.set()
            end.wait(60)

    thread = threading.Thread(target=transact)
    thread.start()
    assert begun.wait(60)
    with _Signal(lambda: bool(db._commit.turn._given._waiters)), pytest.raises(KeyboardInterrupt):
        db["mine"] = b"1"
    end.set()
    thread.join()
    assert dict(db) == {b"theirs": b"1"}
    db["mine"] = b"2"
    assert dict(db) == {b"mine": b"2", b"theirs": b"1"}


class _SlowSyncs(FakeFiles):
    """Syncs that end when they are told to."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def sync(self, descriptor: int, path: str) -> None:
        self.begun.set()
        assert self.go_on.wait(60)
        super().sync(descriptor, path)


def test_interrupted_while_somebody_else_syncs_for_it(open_store: Callable[..., Store]) -> None:
    """It is in the file, so it has happened, and is seen once it is durable."""
    files = _SlowSyncs()
    db = open_store(files=files, sync="always")
    db["first"] = b"1"
    files.begun.clear()
    files.go_on.clear()
    thread = threading.Thread(target=db.__setitem__, args=(b"theirs", b"1"))
    thread.start()
    assert files.begun.wait(60)
    with _Signal(lambda: bool(db._commit.durability.group.waiting)), pytest.raises(KeyboardInterrupt):
        db["mine"] = b"1"
    files.go_on.set()
    thread.join()
    assert dict(db) == {b"first": b"1", b"mine": b"1", b"theirs": b"1"}
    assert db.durable_seq == db.last_seq == 3
