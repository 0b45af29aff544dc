"""``sync="always"``: a caller that waits for a sync is told what has become of its own write, and of nothing else.

Its put has been appended by then. "closed" or "the disk is full", out of another's call, would tell it that nothing has
happened, although the put was durable already or became so at the next moment.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import bytekv
from bytekv.engine.log.segment_manager import SegmentManager
from bytekv.engine.state import ENTERED, State
from bytekv.engine.store import Store
from bytekv.errors import BytekvError, DiskFullError, StoreFailedError, StoreIOError
from tests.engine.write.test_slow_syncs import SlowDisk
from tests.support.fault_files import SystemCalls
from tests.support.harness import NO_WORKER, QuickFiles, open_store, patched


def _put(store: Store, told: list[BytekvError | None]) -> None:
    try:
        store["a"] = "1"
    except BytekvError as error:
        told.append(error)
    else:
        told.append(None)


@contextmanager
def _a_put_that_waits(store: Store) -> Iterator[list[BytekvError | None]]:
    """Have a put wait until the block ends, which holds the locks of a close, and then have it say what it was told."""
    told: list[BytekvError | None] = []
    state, group = store._commit.state, store._commit.durability.group
    writer = threading.Thread(target=_put, args=(store, told), daemon=True)
    with state.compacting, state.sync_lock:
        writer.start()
        while not group._leading:
            os.sched_yield()
        with state.lock, state:
            yield told
    writer.join(20)
    assert not writer.is_alive()
    assert not group._leading, "the next may lead"


def _a_failure(store: Store) -> StoreFailedError:
    return StoreFailedError(f"{store.path}: a sync has failed")


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with patched(NO_WORKER):
        store = open_store(path, files=QuickFiles(), sync="always")
        store["first"] = ""
        yield store
        with suppress(StoreFailedError):
            store.close()


def _value(path: Path) -> bytes | None:
    with open_store(path, files=QuickFiles()) as store:
        return store.get("a")


def test_a_put_that_a_close_has_made_durable_has_happened(path: Path, store: Store) -> None:
    """It was told that the store was closed."""
    with _a_put_that_waits(store) as told:
        store._shut()
    assert told == [None]
    store.close()
    assert _value(path) == b"1"


def test_a_put_that_another_sync_has_made_durable_has_happened(path: Path, store: Store) -> None:
    """It was told of the sync after that, which had failed."""
    with _a_put_that_waits(store) as told:
        store._durability.sync_what_waits()
        store._state.fail(_a_failure(store))
    assert (told, store["a"]) == ([None], b"1")
    with suppress(StoreFailedError):
        store.close()
    assert _value(path) == b"1"


def test_a_put_whose_clean_end_could_not_be_written_has_happened(
    path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes were durable, and a disk without room for the manifest made that unknown."""

    def refuse(*_: object, **__: object) -> None:
        raise DiskFullError(errno.ENOSPC, "no room", f"{store.path}/MANIFEST")

    with _a_put_that_waits(store) as told, monkeypatch.context() as patch, suppress(DiskFullError):
        patch.setattr(SegmentManager, "publish", refuse)
        store._shut()
    assert told == [None]
    store.close()
    assert _value(path) == b"1"


def test_a_put_of_which_nobody_knows_is_told_that_the_next_open_decides(path: Path, store: Store) -> None:
    """After a failed sync and a close it was told that the store was closed: as if it had not happened."""
    with _a_put_that_waits(store) as told, suppress(StoreFailedError):
        store._state.fail(_a_failure(store))
        store._shut()
    (error,) = told
    assert type(error) is StoreFailedError
    assert "the next open decides whether this write has happened" in str(error)
    assert "a sync has failed" in str(error)
    with pytest.raises(bytekv.StoreClosedError):
        store["later"] = "1"
    store.close()
    assert _value(path) == b"1"


def test_a_put_is_not_told_of_the_full_disk_of_another(path: Path, store: Store) -> None:
    """A call that was interrupted is carried out by the next one; that this cannot be done is none of its business."""

    class NoRoom:
        def redo(self, state: State) -> None:
            state.intent = ENTERED
            raise DiskFullError(errno.ENOSPC, "no room", f"{store.path}/0000000001.seg")

    with _a_put_that_waits(store) as told:
        store._state.intent = NoRoom()
    assert (told, store["a"]) == ([None], b"1")
    store.close()
    assert _value(path) == b"1"


def test_a_put_is_not_told_of_a_roll_that_cannot_be_finished(
    path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an interrupted roll has left matters to the next write only; the put's own file can be synced."""

    def refuse(_: SegmentManager) -> None:
        raise StoreIOError(errno.EMFILE, "too many open files", f"{store.path}/MANIFEST")

    segments = store._segments
    with monkeypatch.context() as patch:
        patch.setattr(SegmentManager, "settle", refuse)
        with _a_put_that_waits(store) as told:
            segments.publishing = segments.manifest
            end = segments.writer.end  # type: ignore[union-attr]
        assert told == [None]
        assert segments.writer is not None
        assert segments.writer.end == end, "no mark, for the segment may be sealed"
    assert store["a"] == b"1"
    store["later"] = "2"
    store.close()
    assert _value(path) == b"1"


def test_a_put_that_a_seal_made_durable_during_its_sync_has_happened(path: Path) -> None:
    """A write by another thread failed after that, while the put's own sync was still under way."""
    disk = SlowDisk()
    with patched(NO_WORKER):
        store = open_store(path, files=disk, sync="always")
        store["first"] = ""
        leads = threading.current_thread()

        def seal_and_fail() -> bool:
            if threading.current_thread() is leads and store._state.failure is None:
                other = threading.Thread(target=store._commit.seal)
                other.start()
                other.join()
                with store._state.lock, store._state:
                    store._state.fail(_a_failure(store))
            return True

        disk.may_end = seal_and_fail
        store["a"] = "1"
        assert store._state.failure is not None
        assert store["a"] == b"1"
        with pytest.raises(StoreFailedError, match="writes have been refused"):
            store["b"] = "1"
        with suppress(StoreFailedError):
            store.close()
    assert _value(path) == b"1"


class LetsOthersIn:
    """The lock of syncs, before which another thread does something, once."""

    def __init__(self, lock: Any, others: Callable[[], None]) -> None:
        self._lock, self._others = lock, others

    def __enter__(self) -> None:
        others, self._others = self._others, lambda: None
        raised: list[BaseException] = []

        def run() -> None:
            try:
                others()
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
        if raised:
            raise raised[0]
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def _before_the_sync(store: Store, others: Callable[[], None]) -> None:
    """Have another thread do something after the next write was appended and before its sync."""
    state = store._commit.state
    state.sync_lock = LetsOthersIn(state.sync_lock, others)


@pytest.mark.parametrize("sync", ["always", "interval"])
@pytest.mark.parametrize("io", ["mmap", "pread"])
def test_a_sync_needs_no_more_descriptors(path: Path, sync: str, io: str) -> None:
    """Another writer was to begin a segment, and the process was at its limit of open files: nobody could find out
    which segments there are, and those that waited for a sync were told so."""
    with patched(NO_WORKER), SystemCalls() as calls:
        with open_store(path, files=QuickFiles(), sync=sync, io=io, segment_size_bytes=4096) as store:
            store["first"] = ""

            def roll() -> None:
                calls.fail("open", 2, errno.EMFILE, for_ever=True)  # the new segment can still be made
                with pytest.raises(StoreIOError):
                    store["large"] = bytes(5000)
                assert store._segments.is_unsettled

            _before_the_sync(store, roll)
            store["a"] = "1"
            store._durability.sync_to(store._state.seq)
            assert (store["a"], store.durable_seq) == (b"1", 2)
            with pytest.raises(StoreIOError):
                store["later"] = "2"
            calls.lift()
            store["later"] = "2"
            assert store.verify().ok
        with open_store(path) as store:
            assert dict(store) == {b"a": b"1", b"first": b"", b"later": b"2"}


def test_what_a_handler_raises_passes_through(path: Path) -> None:
    """It strikes while an interrupted write is carried out, and looks like what the disk says of that; it is about
    another store."""

    def handle(number: int, frame: object) -> None:
        raise StoreIOError(errno.EIO, "Input/output error", "another store")

    class Disk(QuickFiles):
        strikes = 0

        def write(self, descriptor: int, data: Any, offset: int, path: str) -> None:
            self.strikes -= 1
            if self.strikes == 1:
                raise KeyboardInterrupt
            if self.strikes == 0:
                signal.raise_signal(signal.SIGINT)
            super().write(descriptor, data, offset, path)

    disk = Disk()
    with patched(NO_WORKER), open_store(path, files=disk, sync="always", io="pread") as store:
        store["first"] = ""

        def interrupted() -> None:
            disk.strikes = 2
            with pytest.raises(KeyboardInterrupt):
                store["theirs"] = ""

        _before_the_sync(store, interrupted)
        before = signal.signal(signal.SIGINT, handle)
        try:
            with pytest.raises(StoreIOError, match="another store"):
                store["a"] = "1"
        finally:
            signal.signal(signal.SIGINT, before)
        assert store["a"] == b"1"
        assert store.durable_seq == store.last_seq
