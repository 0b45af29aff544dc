"""What waits for its sync: found by writers, in the order of the changes, until readers see it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from bytekv.engine.codec.entry import CLEAR, PUT, TOMBSTONE
from bytekv.engine.state import ALONE
from bytekv.engine.write.change import AtomicChange, Operation
from bytekv.engine.write.durability import CommitQueue
from tests.crash.test_interrupts import InterruptAt

NOT_HERE = False, None
GONE = True, None


class Log:
    """As much of a segment as it takes to give operations a place."""

    base, seed = 7 << 44, 0

    def __init__(self) -> None:
        self.end, self.seq = 64, 0

    def write(self, offset: int, parts: list[bytes]) -> None:
        """Do nothing."""

    def change(self, *operations: tuple[Any, ...]) -> AtomicChange:
        change = AtomicChange.of([Operation(*each) for each in operations])
        change.place(self, self.seq, 0, 0)  # type: ignore[arg-type]
        self.end, self.seq = change.end, change.seq
        return change


def _a_state(keydir_apply: Callable[..., bool]) -> Any:
    return SimpleNamespace(
        is_uncounted=False,
        readers_must_wait=False,
        always=True,
        mode="always",
        keydir=SimpleNamespace(apply=keydir_apply),
        size_of=None,
        segments=SimpleNamespace(with_keys=None),
    )


def place_of(change: AtomicChange, number: int = 0) -> int | None:
    return change.effects[number][1]


def test_a_writer_finds_the_newest() -> None:
    queue, log = CommitQueue(), Log()
    for operations in [((PUT, b"a", b"1"), (PUT, b"b", b"1")), ((PUT, b"a", b"2"),), ((TOMBSTONE, b"b"),)]:
        queue.add(log.change(*operations))
    assert queue.find(b"a") == (True, place_of(queue.changes[1]))
    assert queue.find(b"b") == GONE
    assert queue.find(b"c") == NOT_HERE


def test_what_readers_see_is_forgotten_but_not_what_came_after_it() -> None:
    queue, log = CommitQueue(), Log()
    queue.add(log.change((PUT, b"a", b"1"), (PUT, b"b", b"1")))
    queue.add(later := log.change((PUT, b"a", b"2")))
    queue.remove_first()
    assert queue.find(b"a") == (True, place_of(later))
    assert queue.find(b"b") == NOT_HERE
    queue.remove_first()
    assert queue.find(b"a") == NOT_HERE
    assert not queue.changes


def test_a_clear_hides_all_that_is_not_newer() -> None:
    queue, log = CommitQueue(), Log()
    queue.add(log.change((PUT, b"a", b"1")))
    queue.add(log.change((CLEAR, b"")))
    queue.add(newer := log.change((PUT, b"b", b"1")))
    assert queue.find(b"a") == queue.find(b"never seen") == GONE
    assert queue.find(b"b") == (True, place_of(newer))
    queue.remove_first()
    assert queue.find(b"a") == GONE, "the clear still waits"
    queue.remove_first()
    assert queue.find(b"a") == NOT_HERE, "readers see the clear, and so do writers that look where readers look"
    assert queue.find(b"b") == (True, place_of(newer))


def test_what_is_shown_is_forgotten_and_what_waits_on_is_found() -> None:
    """A sync covers some of what waits, or all of it, which is forgotten in one piece."""
    queue, log = CommitQueue(), Log()
    shown: list[int] = []

    def keydir_apply(change: AtomicChange, *_: object) -> bool:
        shown.append(change.seq)
        return False

    state = _a_state(keydir_apply)
    queue.add(log.change((PUT, b"a", b"1")))
    queue.add(log.change((PUT, b"b", b"1")))
    queue.add(waiting := log.change((PUT, b"c", b"1")))
    queue.show(2, state)
    assert (shown, list(queue.changes)) == ([1, 2], [waiting])
    assert queue.find(b"a") == queue.find(b"b") == NOT_HERE, "the keydir has newer words on it"
    assert queue.find(b"c") == (True, place_of(waiting))
    queue.show(3, state)
    assert (shown, list(queue.changes)) == ([1, 2, 3], [])
    assert queue.find(b"c") == NOT_HERE


def test_a_writer_finds_what_is_there_though_showing_it_was_interrupted() -> None:
    """Between two steps of forgetting, the queue said that a clear still waits, and that what came after it does not:
    writers did not find keys that readers saw, until the next sync."""
    for number in itertools.count(1):
        queue, log = CommitQueue(), Log()
        locations: dict[bytes, int] = {b"a": 1}

        def keydir_apply(change: AtomicChange, *_: object, locations: dict[bytes, int] = locations) -> bool:
            for key, location, _ in change.effects:
                if key is None:
                    locations.clear()
                else:
                    assert location is not None
                    locations[key] = location
            return False

        def found(key: bytes, queue: CommitQueue = queue, locations: dict[bytes, int] = locations) -> bool:
            is_here, location = queue.find(key) if queue.changes else (False, None)
            return location is not None if is_here else key in locations

        queue.add(log.change((CLEAR, b"")))
        queue.add(log.change((PUT, b"b", b"1")))
        queue.add(log.change((PUT, b"c", b"1")))
        state = _a_state(keydir_apply)
        if not InterruptAt(number).carry_out(lambda: queue.show(3, state)):  # noqa: B023
            break
        assert [found(key) for key in (b"a", b"b", b"c")] == [False, True, True], number
        queue.add(log.change((PUT, b"d", b"1")))
        assert [found(key) for key in (b"a", b"b", b"c", b"d")] == [False, True, True, True], number
    assert number > 50


def test_a_change_that_is_added_again_is_there_once() -> None:
    queue, log = CommitQueue(), Log()
    change = log.change((PUT, b"a", b"1"), (TOMBSTONE, b"b"))
    queue.add(change)
    change.redo(SimpleNamespace(always=True, queue=queue, seq=0, intent=change, turn=ALONE))  # type: ignore[arg-type]
    assert [each.seq for each in queue.changes] == [2]
    assert not queue.changes[0].parts, "the bytes are on disk, and need not be held"


def test_a_failed_sync_forgets_everything() -> None:
    queue, log = CommitQueue(), Log()
    queue.add(log.change((CLEAR, b"")))
    queue.add(log.change((PUT, b"a", b"1")))
    queue.forget_all()
    assert not queue.changes
    assert queue.find(b"a") == queue.find(b"b") == NOT_HERE
