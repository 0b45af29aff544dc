"""A call that is interrupted has happened or has not: the same answer now and after reopening (D8).

An exception is raised at every single opcode that bytekv executes in a call, one opcode a run, as a
signal handler would; then memory and a copy of the disk are compared. Left out are the few opcodes with
which a ``with`` statement itself enters and leaves: CPython runs signal handlers only at function entry,
after a call and at a backward jump, so none can strike there, and a lock taken by ``with`` cannot leak.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import gc
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

import bytekv
from bytekv.store import Store
from tests import harness

# What strikes while a generator is being closed goes nowhere, in Python as in this test.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

PACKAGE = str(Path(bytekv.__file__).parent)


@functools.cache
def _with_protocol(code: CodeType) -> frozenset[int]:
    """Return the offsets at which a ``with`` block is being entered or left."""
    found = set()
    instructions = list(dis.get_instructions(code))
    for number, instruction in enumerate(instructions):
        if instruction.opname == "NOP":  # where a ``try`` begins; does nothing, not even fail
            found.add(instruction.offset)
        if instruction.opname == "BEFORE_WITH":
            found.add(instructions[number + 1].offset)
        triple = instructions[number : number + 3]
        if len(triple) == 3 and all(part.opname == "LOAD_CONST" and part.argval is None for part in triple):
            rest = instructions[number + 3 : number + 5]
            if any(part.opname in ("CALL", "PRECALL") and part.arg == 2 for part in rest):
                if number and instructions[number - 1].opname == "SWAP":
                    found.add(instructions[number - 1].offset)
                found.update(part.offset for part in (*triple, *rest))
    return frozenset(found)


def _in_finaliser(frame: FrameType | None) -> bool:
    """Tell whether this runs below ``__del__``: what is raised there goes nowhere, in Python as in this test."""
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


@pytest.fixture(autouse=True)
def stray_descriptors(path: Path) -> Iterator[None]:
    """Close what an interrupt left between os.open() and its owner: no Python code can protect that instant."""
    yield
    gc.collect()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if str(path.parent) in os.readlink(f"/proc/self/fd/{name}"):
                os.close(int(name))


class InterruptAt:
    """Raise ``error`` at the ``number``-th opcode executed inside bytekv; count them."""

    def __init__(self, number: int, error: type[BaseException]) -> None:
        self.number, self.error, self.count, self.struck = number, error, 0, False

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE) or (event == "call" and _in_finaliser(frame)):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and frame.f_lasti not in _with_protocol(frame.f_code):
            self.count += 1
            if self.count == self.number:
                self.struck = True
                raise self.error
        return self._trace

    def __enter__(self) -> InterruptAt:
        sys._getframe().f_trace_opcodes = True  # else Python 3.12 sends no opcode events to the first frames
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)


def fill(store: Store) -> None:
    store["kept"] = b"old"
    store["gone"] = b"old"
    store["n"] = b"41"
    store.put("due", b"old", ttl=3600)
    store.update({f"more-{number}": b"x" * 40 for number in range(6)})


ACTIONS: dict[str, Callable[[Store], object]] = {
    "put a new key": lambda db: db.__setitem__(b"new", b"value"),
    "put over an old key": lambda db: db.__setitem__(b"kept", b"value"),
    "put over an expiring key": lambda db: db.__setitem__(b"due", b"value"),
    "put with a ttl": lambda db: db.put("new", "value", ttl=60),
    "put a large value": lambda db: db.__setitem__(b"new", b"v" * 9000),
    "put that rolls": lambda db: db.__setitem__(b"new", b"v" * 700),
    "delete": lambda db: db.__delitem__(b"gone"),
    "delete nothing": lambda db: db.delete(b"never"),
    "add": lambda db: db.add("new", "value"),
    "incr": lambda db: db.incr("n"),
    "batch": lambda db: db.update({"new": "1", "kept": "2", "n": "3"}),
    "clear": lambda db: db.clear(),
    "pop": lambda db: db.pop("gone"),
    "expire": lambda db: db.expire("kept", 60),
    "sync": lambda db: db.sync(),
    "compact": lambda db: db.compact(),
    "get": lambda db: db["kept"],
    "scan": lambda db: list(db.scan()),
}


def _visible(store: Store) -> dict[bytes, tuple[bytes, bool]]:
    return {key: (value, store.ttl(key) is not None) for key, value in store.items()}


def _on_disk(store: Store, copy: Path) -> dict[bytes, tuple[bytes, bool]]:
    """Show what would be there if the process were killed now."""
    shutil.copytree(store.path, copy)
    with harness.open_store(copy) as other:
        report = other.verify()
        assert report.ok, report
        found = _visible(other)
    shutil.rmtree(copy)
    return found


def _interrupt_everywhere(
    path: Path, action: Callable[[Store], object], step: int, error: type[BaseException], **options: Any
) -> int:
    expected: list[Any] = []
    number = cases = 0
    while True:
        number += step
        store = harness.open_store(path, "n", segment_size_bytes=2000, **options)
        fill(store)
        before = _visible(store)
        with InterruptAt(number, error) as interrupt:
            try:
                action(store)
            except error:
                assert interrupt.struck
        now = _visible(store)
        if not interrupt.struck:
            assert cases > 0
            store.close()
            return cases
        cases += 1
        where = f"opcode {number} of {action}"
        if not expected:
            twin = harness.open_store(path.with_name("twin"), "n", segment_size_bytes=2000, **options)
            fill(twin)
            action(twin)
            expected = [before, _visible(twin)]
            twin.close()
        assert now in expected, where
        assert _on_disk(store, path.with_name("copy")) == now, where
        store["after"] = b"1"
        assert store["after"] == b"1", where
        action_again = dict(_visible(store))
        report = store.verify()
        assert report.ok, (where, report)
        store.close()
        with harness.open_store(path) as store:
            assert _visible(store) == action_again, where
            assert store.verify().ok, where


@pytest.mark.parametrize("sync", ["interval", "always"])
@pytest.mark.parametrize("name", ACTIONS)
def test_keyboard_interrupt_at_opcodes(path: Path, name: str, sync: str) -> None:
    # A sample; the deep run takes every one.
    step = 61 if name in ("compact", "put that rolls", "put a large value") else 13 if sync == "always" else 7
    _interrupt_everywhere(path, ACTIONS[name], step, KeyboardInterrupt, sync=sync)


@pytest.mark.deep
@pytest.mark.parametrize("io", ["mmap", "pread"])
@pytest.mark.parametrize("sync", ["interval", "always", "os"])
@pytest.mark.parametrize("name", ACTIONS)
def test_keyboard_interrupt_at_every_opcode(path: Path, name: str, sync: str, io: str) -> None:
    _interrupt_everywhere(path, ACTIONS[name], 1, KeyboardInterrupt, sync=sync, io=io)


def test_close_interrupted_at_every_opcode_gives_the_lock_back(path: Path) -> None:
    number = 0
    while True:
        number += 1
        store = harness.open_store(path, "n")
        fill(store)
        before = _visible(store)
        with InterruptAt(number, KeyboardInterrupt) as interrupt:
            with contextlib.suppress(KeyboardInterrupt):
                store.close()
        store.close()
        assert store.closed
        with harness.open_store(path) as store:
            assert _visible(store) == before, f"opcode {number}"
        if not interrupt.struck:
            break
    assert number > 50
