"""The log as a feed: complete and in order, or a clear word that it does not reach back."""

from __future__ import annotations

import errno
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import bytekv
from bytekv.contract.reports import Change
from bytekv.engine.log.sizes import sizes_of
from bytekv.engine.replication.feed import ChangeFeed
from bytekv.engine.store import Store
from bytekv.errors import (
    ChangesLostError,
    CorruptionError,
    LimitError,
    StoreClosedError,
    StoreIOError,
    StoreNotFoundError,
)
from tests.support.harness import FakeFiles, damage, open_store, segment_files


def apply(content: dict[bytes, bytes], change: Change) -> None:
    if change.op == "put":
        content[change.key] = change.value
    elif change.op == "delete":
        del content[change.key]  # a deletion of what is not there is no operation
    else:
        content.clear()


def test_every_kind_of_operation(open_store: Callable[..., Store]) -> None:
    files = FakeFiles(now_s=1000.0)
    db = open_store(files=files)
    db["a"] = "1"
    db.put("b", "2", ttl=10)
    with db.batch() as batch:
        batch["c"] = "3"
        del batch["a"]
    db.delete("missing")
    db.expire("c", 5)
    db.clear()
    assert list(db.changes()) == [
        Change(1, "put", b"a", b"1", None, False),
        Change(2, "put", b"b", b"2", 1010.0, False),
        Change(3, "put", b"c", b"3", None, True),
        Change(4, "delete", b"a", b"", None, False),
        Change(5, "put", b"c", b"3", 1005.0, False),
        Change(6, "clear", b"", b"", None, False),
    ]


def test_from_each_seq_on(open_store: Callable[..., Store]) -> None:
    db = open_store(segment_size_bytes=400)
    for number in range(40):
        db[b"%d" % (number % 7)] = b"x" * number
    whole = list(db.changes())
    assert [change.seq for change in whole] == list(range(1, 41))
    for _ in range(2):  # the second time from remembered places
        for since in range(41):
            assert list(db.changes(since)) == whole[since:]


def test_it_ends_at_the_moment_of_the_call(open_store: Callable[..., Store]) -> None:
    db = open_store()
    db["a"] = "1"
    feed = db.changes()
    db["b"] = "2"
    assert [change.key for change in feed] == [b"a"]
    assert [change.key for change in db.changes(1)] == [b"b"]


def test_always_shows_only_what_is_durable(open_store: Callable[..., Store]) -> None:
    db = open_store(sync="always")
    db["a"] = "1"
    db["b"] = "2"
    assert [change.seq for change in db.changes()] == [1, 2]


def test_what_waits_for_its_sync_is_in_no_feed(path: Path) -> None:
    """It is in the segment already, and a power cut may take it out again."""
    seen: list[list[int]] = []

    class Looking(FakeFiles):
        def sync(self, descriptor: int, path: str) -> None:
            if seen:
                seen.append([change.seq for change in db.changes()])
            super().sync(descriptor, path)

    db = open_store(path, sync="always", files=Looking())
    db["a"] = "1"
    seen.append([1])
    db["b"] = "2"
    db["c"] = "3"
    assert seen == [[1], [1], [1, 2]]
    seen.clear()
    db.close()


def test_asking_again_reads_only_what_came_since(path: Path) -> None:
    """And where it stopped is remembered of few feeds only, however many there are."""
    reads: list[int] = []

    class Noting(FakeFiles):
        def read(self, descriptor: int, size: int, offset: int, path: str) -> bytes:
            if size > 80:  # not the header
                reads.append(offset)
            return super().read(descriptor, size, offset, path)

    db = open_store(path, sync="os", io="pread", files=Noting())
    seq = end = 0
    for number in range(200):
        db[b"%d" % number] = b"x" * 300
        reads.clear()
        (change,) = db.changes(seq)
        assert change.key == b"%d" % number
        assert min(reads) >= end
        seq, end = change.seq, db._segments.writer.end  # type: ignore[union-attr]
    assert db._changes is not None
    assert len(db._changes._positions) <= 64
    reads.clear()
    assert next(db.changes(0)).seq == 1
    assert min(reads) == 80
    db.close()


def test_what_a_repair_could_not_save_is_missed(path: Path) -> None:
    """The newest segment is lost as a whole: the feed would end before it as if nothing had followed."""
    with open_store(path) as db:
        for number in range(20):
            db[b"%d" % number] = b"x"
            if number == 9:
                db._commit.seal()
        db._commit.seal()
    segment_files(path)[1].write_bytes(b"")
    bytekv.repair(path)
    with open_store(path) as db:
        assert db.last_seq == 20
        with pytest.raises(ChangesLostError) as raised:
            db.changes(5)
        assert raised.value.first_seq == 20
        db["more"] = "1"
        assert [change.key for change in db.changes(20)] == [b"more"]


@pytest.mark.parametrize("io", ["mmap", "pread"])
def test_after_reopening(path: Path, io: str) -> None:
    for number in range(5):
        with open_store(path, io=io) as db:
            db[b"%d" % number] = b"v"
            assert [change.seq for change in db.changes()] == list(range(1, number + 2))


def test_compacted_away_is_said(open_store: Callable[..., Store]) -> None:
    db = open_store(segment_size_bytes=400)
    for number in range(20):
        db["k"] = b"x" * 100 + b"%d" % number
    db.compact()
    with pytest.raises(ChangesLostError) as raised:
        db.changes(3)
    assert raised.value.first_seq == 20
    assert raised.value.since_seq == 3
    assert list(db.changes(20)) == []
    db["k"] = "new"
    assert [change.seq for change in db.changes(raised.value.first_seq)] == [21]
    with pytest.raises(ChangesLostError):
        db.changes(19)


def test_a_run_that_left_nothing_is_said(open_store: Callable[..., Store]) -> None:
    """Every entry of the last segments was dead, so there is no output that could say what is missing."""
    db = open_store(segment_size_bytes=400)
    db["stays"] = b"x" * 300
    db["k"] = b"x" * 300
    db["k"] = b"y" * 300
    db["k"] = b"z" * 300
    for use in db._maintenance.usage():
        if use.dead:
            db._maintenance.compactor.run([use.segment_id], lambda: None, lambda _: None)
    with pytest.raises(ChangesLostError) as raised:
        db.changes(0)
    assert [change.value[:1] for change in db.changes(raised.value.first_seq)] == [b"z"]
    db.delete("k")
    db._commit.seal()
    newest = db._maintenance.usage()[-2:]
    db._maintenance.compactor.run([use.segment_id for use in newest], lambda: None, lambda _: None)
    with pytest.raises(ChangesLostError):
        db.changes(raised.value.first_seq)


def test_an_iterator_keeps_what_it_reads(open_store: Callable[..., Store], path: Path) -> None:
    db = open_store(segment_size_bytes=400)
    for number in range(20):
        db["k"] = b"x" * 100 + b"%d" % number
    feed = db.changes()
    assert next(feed).seq == 1
    db.compact()
    assert db.stats().pinned_bytes > 0
    assert [change.seq for change in feed] == list(range(2, 21))
    assert db.stats().pinned_bytes == 0
    assert len(segment_files(path)) == len(db.stats().segments)


def test_feeds_may_end_in_the_middle_of_the_end_of_another(open_store: Callable[..., Store]) -> None:
    """Two threads whose feeds ended at the same time: "dictionary changed size during iteration", now and then."""
    db = open_store()
    for number in range(300):
        db[b"%d" % number] = b"x" * (number % 7)
    feeds = [db.changes() for _ in range(280)]
    for number, feed in enumerate(feeds):
        for _ in range(number + 1):
            next(feed)
    for feed in feeds[:70]:
        feed.close()  # as many as are remembered, and more
    at, passed, others = 0, 0, feeds[70::2]

    def look(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal passed
        if frame.f_code is not ChangeFeed._remember.__code__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            passed += 1
            if passed == at:
                others[at].close()
        return look

    before = sys.gettrace()
    try:
        for feed in feeds[71::2]:
            at, passed = at + 1, 0
            sys.settrace(look)
            feed.close()
            sys.settrace(before)
    finally:
        sys.settrace(before)
    assert 0 < passed < at, "it was not interrupted everywhere"
    assert [change.seq for change in db.changes(290)] == list(range(291, 301))


@pytest.mark.parametrize("begun", [False, True])
def test_a_dropped_iterator_lets_go(open_store: Callable[..., Store], path: Path, begun: bool) -> None:
    db = open_store(segment_size_bytes=400)
    for number in range(20):
        db["k"] = b"x" * 100 + b"%d" % number
    feed: Iterator[Change] | None = db.changes()
    if begun and feed is not None:
        next(feed)
    db.compact()
    assert db.stats().pinned_bytes > 0
    feed = None
    assert db.stats().pinned_bytes == 0
    assert len(segment_files(path)) == len(db.stats().segments)


def test_the_end_of_the_log_can_be_kept(path: Path) -> None:
    def lost(keep_changes_bytes: int) -> int:
        with open_store(path, "n", segment_size_bytes=1000, keep_changes_bytes=keep_changes_bytes) as db:
            for number in range(200):
                db["k"] = b"x" * 100 + b"%d" % number
            options = bytekv.Options(
                segment_size_bytes=1000, compact_dead_bytes=0, keep_changes_bytes=keep_changes_bytes
            )
            while victims := bytekv.engine.space.picker.pick(db._maintenance.usage(), sizes_of(0, options)):
                db._maintenance.compactor.run(victims, lambda: None, lambda _: None)
            try:
                db.changes(0)
            except ChangesLostError as error:
                return error.first_seq
            return 0

    assert lost(0) > 180
    assert 100 < lost(8000) < 150
    assert lost(10**6) == 0


def test_beside_a_writer(path: Path) -> None:
    writer = open_store(path, segment_size_bytes=1000)
    reader = open_store(path, "r")
    copy: dict[bytes, bytes] = {}
    rest = random.Random(5)
    seq = 0
    for _ in range(60):
        for _ in range(rest.randrange(12)):
            key = b"%d" % rest.randrange(9)
            if rest.random() < 0.7:
                writer[key] = rest.randbytes(rest.randrange(60))
            else:
                writer.delete(key)
        reader.refresh()
        for change in reader.changes(seq):
            assert change.seq == seq + 1
            apply(copy, change)
            seq = change.seq
        assert copy == dict(reader)
    writer.compact()
    reader.refresh()
    assert list(reader.changes(seq)) == []
    with pytest.raises(ChangesLostError):
        reader.changes(0)
    reader.close()
    writer.close()


def test_a_reader_whose_segment_was_compacted_away_is_told(path: Path) -> None:
    """It moves only when it is told, and says then from where on there still is a feed."""
    writer = open_store(path, segment_size_bytes=400)
    for number in range(20):
        writer["k"] = b"x" * 100 + b"%d" % number
    reader = open_store(path, "r", max_open_segments=1)
    writer.compact()
    writer["k"] = "newest"
    with pytest.raises(StoreIOError, match="compacted away") as caught:
        reader.changes(0)
    assert (caught.value.errno, reader.last_seq) == (errno.ENOENT, 20)
    assert reader.refresh()
    with pytest.raises(ChangesLostError) as lost:
        reader.changes(0)
    assert lost.value.first_seq == 20
    assert [change.seq for change in reader.changes(20)] == [21]
    reader.close()
    writer.close()


@pytest.mark.parametrize("since", [-1, 2, 10**20])
def test_a_seq_that_is_not_there(open_store: Callable[..., Store], since: int) -> None:
    db = open_store()
    db["a"] = "1"
    with pytest.raises(LimitError):
        db.changes(since)


@pytest.mark.parametrize("since", ["1", None, 1.0, True])
def test_no_seq(open_store: Callable[..., Store], since: Any) -> None:
    with pytest.raises(TypeError):
        open_store().changes(since)


def test_closed(open_store: Callable[..., Store]) -> None:
    db = open_store()
    db["a"] = "1"
    db["b"] = "2"
    feed = db.changes()
    next(feed)
    db.close()
    with pytest.raises(StoreClosedError):
        next(feed)
    with pytest.raises(StoreClosedError):
        db.changes()


def test_damage_is_said(path: Path) -> None:
    db = open_store(path)
    db["a"] = "1"
    offset = db._segments.writer.end  # type: ignore[union-attr]
    db["b"] = "2"
    db["c"] = "3"
    (segment,) = segment_files(path)
    damage(segment, offset + 24)
    feed = db.changes()
    assert next(feed).key == b"a"
    with pytest.raises(CorruptionError):
        list(feed)
    damage(segment, offset + 24)
    assert len(list(db.changes())) == 3
    db.close()


class _Vanishing(FakeFiles):
    """Files of which one is not there the first times that it is opened; somebody writes meanwhile."""

    missing, times = "", 0

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        super().__init__()
        self._meanwhile = meanwhile

    def open(self, path: str, *, write: bool = False, create: bool = False, exclusive: bool = False) -> int:
        if self.times and path == self.missing:
            self.times -= 1
            self._meanwhile()
            raise StoreNotFoundError(errno.ENOENT, "is not there", path)
        return super().open(path, write=write, create=create, exclusive=exclusive)


def test_a_feed_that_begins_anew_keeps_its_segments(path: Path) -> None:
    """When a segment has vanished a feed does not begin, and a later one has a pin of its own. One that went on with
    the pin of the try before, which had been closed, lost its segments to the next compaction that the reader learnt
    of."""
    with open_store(path, segment_size_bytes=400) as writer:
        for number in range(30):
            writer[b"%d" % (number % 7)] = b"x" * 100
        files = _Vanishing(lambda: writer.put("more", "y" * 100))
        with open_store(path, "r", files=files) as reader:
            reader._segments.open.table.clear()  # as if too many had been open
            files.missing, files.times = str(segment_files(path)[0]), 1
            with pytest.raises(StoreIOError):
                reader.changes()
            assert reader.last_seq == 30, "a reader moves only when it is told"
            feed = reader.changes()
            seqs = [next(feed).seq]
            writer.compact()
            assert reader.refresh()
            seqs += [change.seq for change in feed]
            assert seqs == list(range(1, 31))
