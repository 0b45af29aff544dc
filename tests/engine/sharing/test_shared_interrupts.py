"""KeyboardInterrupt at the opcodes of calls of a shared store (D8, hazard 3): both processes answer alike afterwards.

The call has happened or has not, as a whole. The other process can write at once: no lock stays taken, and what was
begun is finished by the next turn.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bytekv.engine.shared_store import SharedStore
from bytekv.options import Options
from tests.crash.test_interrupts import InterruptAt
from tests.support.harness import NO_WORKER, QuickFiles, expect_no_violation, patched
from tests.support.harness import Case as Found

Content = dict[bytes, bytes]

SEGMENT_SIZE = 600
BEFORE: Content = {b"a": b"1", b"b": b"1", b"n": b"1"}


def _transaction(db: SharedStore) -> None:
    with db.transaction() as tx:
        tx[b"a"] = b"new"
        tx[b"c"] = tx[b"b"]


#: What is called, and what it makes of `BEFORE`; None: nothing.
CALLS: dict[str, tuple[Callable[[SharedStore], object], Callable[[Content], Content] | None]] = {
    "put": (lambda db: db.put(b"a", b"new"), lambda old: old | {b"a": b"new"}),
    "put with a ttl": (lambda db: db.put(b"a", b"new", ttl=50), lambda old: old | {b"a": b"new"}),
    "put that begins a segment": (lambda db: db.put(b"a", b"new" * 200), lambda old: old | {b"a": b"new" * 200}),
    "incr": (lambda db: db.incr(b"n"), lambda old: old | {b"n": b"2"}),
    "delete": (lambda db: db.delete(b"a"), lambda old: {key: old[key] for key in old if key != b"a"}),
    "batch": (lambda db: db.update({b"a": b"new", b"c": b"1"}), lambda old: old | {b"a": b"new", b"c": b"1"}),
    "clear": (lambda db: db.clear(), lambda _: {}),
    "transaction": (_transaction, lambda old: old | {b"a": b"new", b"c": old[b"b"]}),
    "get": (lambda db: db.get(b"b"), None),
    "snapshot": (lambda db: db.snapshot().close(), None),
    "sync": (lambda db: db.sync(), None),
    "compact": (lambda db: db.compact(), None),
    "close": (lambda db: db.close(), None),
}

#: What the other process has done before, and this one has not seen.
BEHIND: dict[str, Callable[[SharedStore], object]] = {
    "": lambda other: None,
    "behind": lambda other: other.update({b"b": b"2", b"x": b"2"}),
    "segments behind": lambda other: [other.put(b"b", b"%d" % number + b"x" * 300) for number in range(4)],
}


def strike(path: Path, name: str, behind: str, sync: str, number: int) -> bool:
    """Interrupt one call at one opcode; tell whether it came so far. Raises what was wrong."""
    files, call, made = QuickFiles(), *CALLS[name]
    options = Options(
        shared=True,
        sync=sync,  # type: ignore[arg-type]
        segment_size_bytes=SEGMENT_SIZE,
        auto_compact=False,
        compact_dead_bytes=0,
        busy_timeout_s=5.0,
    )
    one = SharedStore(str(path), "c", options, files)
    two = SharedStore(str(path), "c", options, files)
    interrupt = InterruptAt(number)
    try:
        one.update(BEFORE)
        assert dict(two.items()) == BEFORE
        BEHIND[behind](two)
        old = dict(two.items())
        gc.disable()
        try:
            is_struck = interrupt.carry_out(lambda: call(one))
        finally:
            gc.enable()
        if name == "close":
            one.close()  # what was interrupted goes on
        if not one.closed:
            one._commit.turn.tidy()  # as the worker does within a second, where maintenance was struck as it ended
        two.put(b"z", b"z")
        found = dict(two.items())
        new = old if made is None else made(old)
        allowed = [content | {b"z": b"z"} for content in ([old, new] if is_struck else [new])]
        assert found in allowed
        if not one.closed:
            assert dict(one.items()) == found
            one.put(b"z", b"y")
            assert two[b"z"] == b"y"
            assert one.verify().ok
        assert two.verify().ok
        found = dict(two.items())
    except Exception as error:
        error.add_note(f"{name} {behind}, {sync}, interrupted at {number}: {interrupt.where}")
        raise
    finally:
        one.close()
        two.close()
    with SharedStore(str(path), "w", options, files) as again:
        assert again.recovery.clean
        assert dict(again.items()) == found
    return is_struck


@contextlib.contextmanager
def _descriptors_of(home: str) -> Iterator[None]:
    """Close what an exception between ``os.open`` and its owner leaks, which no Python code can prevent."""
    yield
    gc.collect()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith(home):
                os.close(int(name))


def interrupts(place: Path, seed: int, every: int = 1) -> Iterator[Found]:
    """Yield all cases, in any order of calls; ``every``: only one of so many opcodes."""
    dice = random.Random(seed)
    calls = [(name, behind, sync) for name in CALLS for behind in BEHIND for sync in ("interval", "always")]
    dice.shuffle(calls)
    with patched(NO_WORKER):
        for name, behind, sync in calls:
            number = dice.randrange(1, every + 1)
            is_struck = True
            while is_struck:
                with tempfile.TemporaryDirectory(dir=place) as home, _descriptors_of(home):
                    try:
                        is_struck = strike(Path(home), name, behind, sync, number)
                        yield Found(name)
                    except Exception as error:
                        yield Found(name, error)
                number += every


def test_keyboard_interrupt_at_some_opcodes(path: Path) -> None:
    expect_no_violation(itertools.islice(interrupts(path.parent, 1, every=211), 60))


@pytest.mark.deep
def test_keyboard_interrupt_at_every_opcode(path: Path) -> None:
    expect_no_violation(interrupts(path.parent, 2))
