"""What waits for its sync: found by writers, in the order of the changes, until readers see it."""

from __future__ import annotations

from typing import Any

from bytekv.engine.codec.entry import CLEAR, PUT, TOMBSTONE
from bytekv.engine.write.change import Operation, Pending, pending_of
from bytekv.engine.write.unseen import Unseen

NOT_HERE = False, None
GONE = True, None


class Log:
    """As much of a segment as it takes to give operations a place."""

    base, seed = 7 << 44, 0

    def __init__(self) -> None:
        self.end, self.seq = 64, 0

    def change(self, *operations: tuple[Any, ...]) -> Pending:
        change = pending_of([Operation(*each) for each in operations], self, self.seq, 0, 0)  # type: ignore[arg-type]
        self.end, self.seq = change.end, change.seq
        return change


def place_of(change: Pending, number: int = 0) -> int | None:
    return change.effects[number][1]


def test_a_writer_finds_the_newest() -> None:
    unseen, log = Unseen(), Log()
    for operations in [((PUT, b"a", b"1"), (PUT, b"b", b"1")), ((PUT, b"a", b"2"),), ((TOMBSTONE, b"b"),)]:
        unseen.add(log.change(*operations))
    assert unseen.find(b"a") == (True, place_of(unseen.queue[1]))
    assert unseen.find(b"b") == GONE
    assert unseen.find(b"c") == NOT_HERE


def test_what_readers_see_is_forgotten_but_not_what_came_after_it() -> None:
    unseen, log = Unseen(), Log()
    unseen.add(log.change((PUT, b"a", b"1"), (PUT, b"b", b"1")))
    unseen.add(later := log.change((PUT, b"a", b"2")))
    unseen.remove_first()
    assert unseen.find(b"a") == (True, place_of(later))
    assert unseen.find(b"b") == NOT_HERE
    unseen.remove_first()
    assert unseen.find(b"a") == NOT_HERE
    assert not unseen.queue


def test_a_clear_hides_all_that_is_not_newer() -> None:
    unseen, log = Unseen(), Log()
    unseen.add(log.change((PUT, b"a", b"1")))
    unseen.add(log.change((CLEAR, b"")))
    unseen.add(newer := log.change((PUT, b"b", b"1")))
    assert unseen.find(b"a") == unseen.find(b"never seen") == GONE
    assert unseen.find(b"b") == (True, place_of(newer))
    unseen.remove_first()
    assert unseen.find(b"a") == GONE, "the clear still waits"
    unseen.remove_first()
    assert unseen.find(b"a") == NOT_HERE, "readers see the clear, and so does whoever looks where they look"
    assert unseen.find(b"b") == (True, place_of(newer))


def test_a_change_that_is_added_again_is_there_once() -> None:
    unseen, log = Unseen(), Log()
    change = log.change((PUT, b"a", b"1"), (TOMBSTONE, b"b"))
    unseen.add(change)
    unseen.add(change)
    assert [each.seq for each in unseen.queue] == [2]
    assert not unseen.queue[0].parts, "the bytes are on disk, and need not be held"


def test_a_failed_sync_forgets_everything() -> None:
    unseen, log = Unseen(), Log()
    unseen.add(log.change((CLEAR, b"")))
    unseen.add(log.change((PUT, b"a", b"1")))
    unseen.forget_all()
    assert not unseen.queue
    assert unseen.find(b"a") == unseen.find(b"b") == NOT_HERE
