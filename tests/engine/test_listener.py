"""The listener: which events come, in which order, and that nothing it does harms the store."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import bytekv
from bytekv import events
from bytekv.errors import DiskFullError, ReentryError
from tests.support.harness import damage, open_store, segment_files


def named(seen: list[Any]) -> list[str]:
    return [type(event).__name__ for event in seen]


def overwrite(db: bytekv.Store, rounds: int) -> None:
    for number in range(rounds):
        db[b"%d" % (number % 10)] = b"." * 100


def test_a_roll_and_a_compaction_are_told_in_order(path: Path) -> None:
    seen: list[Any] = []
    with open_store(path, listener=seen.append, segment_size_bytes=2000) as db:
        overwrite(db, 30)
        sealed = [event.segment_id for event in seen]
        assert named(seen) == ["SegmentSealed"] * len(sealed)
        assert sealed == [row.segment_id for row in db._segments.sealed()]
        assert [event.last_seq for event in seen] == sorted(event.last_seq for event in seen)
        seen.clear()
        result = db.compact()
    assert named(seen) == ["SegmentSealed", "CompactionBegan", "CompactionEnded"]
    _, began, ended = seen
    assert {event.path for event in seen} == {str(path)}
    assert began.segment_ids == ended.segment_ids == (*sealed, seen[0].segment_id)
    assert (ended.bytes_before, ended.bytes_after) == (began.length_bytes, result.bytes_after)
    assert ended.error is None


def test_a_compaction_that_fails_says_why(path: Path) -> None:
    seen: list[Any] = []
    with open_store(path, listener=seen.append, segment_size_bytes=2000) as db:
        overwrite(db, 30)
        db._segments.directory.files.free_bytes = lambda _folder: 1  # type: ignore[method-assign]
        seen.clear()
        with pytest.raises(DiskFullError):
            db.compact()
        failed = [event for event in seen if isinstance(event, events.CompactionEnded) and event.error is not None]
        assert named(seen).count("CompactionBegan") == named(seen).count("CompactionEnded")
        assert "are free" in failed[0].error
        assert failed[0].bytes_before == failed[0].bytes_after
        assert db.verify().ok


def test_what_opening_found_is_told(path: Path) -> None:
    with open_store(path) as db:
        db["a"] = "1"
    (segment,) = segment_files(path)
    with segment.open("ab") as file:
        file.write(b"\x01 torn by a crash")
    seen: list[Any] = []
    with open_store(path, listener=seen.append) as db:
        assert named(seen) == ["Recovered", "Quarantined"]
        recovered, quarantined = seen
        assert (recovered.torn_bytes, recovered.is_repaired) == (db.recovery.torn_bytes, False)
        assert [quarantined.file] == db.recovery.quarantined


def test_a_repair_on_opening_is_told(path: Path) -> None:
    with open_store(path, segment_size_bytes=2000) as db:
        overwrite(db, 30)
    damage(segment_files(path)[0], 100)
    seen: list[Any] = []
    with open_store(path, listener=seen.append, recover="salvage"):
        assert named(seen) == ["Recovered", "Quarantined"]
        assert seen[0].is_repaired
        assert Path(seen[1].file).exists()


def test_a_store_that_was_closed_tells_nothing(path: Path) -> None:
    open_store(path).close()
    seen: list[Any] = []
    open_store(path, listener=seen.append).close()
    assert seen == []


def test_a_slow_sync_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    with open_store(path, listener=seen.append) as db:
        now_s = [0.0]
        sync = db._segments.directory.files.sync

        def slowly(*arguments: Any) -> None:
            sync(*arguments)
            now_s[0] += 1.5

        monkeypatch.setattr(db._files, "monotonic", lambda: now_s[0])
        monkeypatch.setattr(db._files, "sync", slowly)
        db["a"] = "1"
        db.sync()
        monkeypatch.undo()
    (slow,) = (event for event in seen if isinstance(event, events.SyncSlow))
    assert slow.duration_s >= 1.5


def test_writers_that_are_slowed_down_are_told_of(path: Path) -> None:
    seen: list[Any] = []
    with open_store(path, listener=seen.append, segment_size_bytes=4096) as db:
        state, throttle = db._state, db._commit.throttle
        before, throttle.why = throttle.why, (300, 200, 100)
        assert before is None
        with state.lock, state:
            throttle._tell(state, before)
        with state.lock, state:
            throttle.lift(state)
            throttle.lift(state)
        state.emit()
    assert seen == [events.ThrottleBegan(str(path), 300, 200, 100), events.ThrottleEnded(str(path), 0.0)]


def test_an_event_that_is_noted_while_others_are_told_is_told_next(path: Path) -> None:
    """What a thread was about to append was lost: telling took the list of events and left an empty one."""
    seen: list[Any] = []
    with open_store(path) as db:
        note = db._state.deferred_events.append  # another thread is as far as this
        db._state.defer(seen.append, "first")
        db._state.emit()
        note((seen.append, "second", ()))
        assert seen == ["first"]
        db._state.emit()
    assert seen == ["first", "second"]


def test_an_event_whose_teller_is_interrupted_does_not_take_the_others_with_it(path: Path) -> None:
    seen: list[Any] = []

    def strike(_: str) -> None:
        raise KeyboardInterrupt

    with open_store(path) as db:
        db._state.defer(strike, "first")
        db._state.defer(seen.append, "second")
        with pytest.raises(KeyboardInterrupt):
            db._state.emit()
        db._state.emit()
    assert seen == ["second"]


# --- what it does harms nothing ------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ValueError, bytekv.StoreFailedError, MemoryError])
def test_what_it_raises_is_logged_and_changes_nothing(
    path: Path, caplog: pytest.LogCaptureFixture, kind: type[Exception]
) -> None:
    def fail(_: events.Event) -> None:
        raise kind("mine")

    with caplog.at_level(logging.ERROR, "bytekv"), open_store(path, listener=fail, segment_size_bytes=2000) as db:
        overwrite(db, 30)
        assert db.compact().reclaimed_bytes > 0
        assert len(db) == 10
        assert db.verify().ok
    told = {record.getMessage() for record in caplog.records}
    assert told == {
        f"the listener of {path} failed on {name}: {kind('mine')!r}"
        for name in ("SegmentSealed", "CompactionBegan", "CompactionEnded")
    }


def test_an_interrupt_in_it_goes_on_and_what_was_done_is_done(path: Path) -> None:
    def interrupt(_: events.Event) -> None:
        raise KeyboardInterrupt

    with open_store(path, listener=interrupt, segment_size_bytes=2000) as db:
        count = 0
        with pytest.raises(KeyboardInterrupt):
            for count in range(100):
                db[b"%d" % count] = b"." * 100
        assert list(db) == sorted(b"%d" % number for number in range(count + 1))
        db[b"more"] = b"written"
        assert db.verify().ok


def test_it_may_read_and_no_lock_that_others_need_is_held(path: Path) -> None:
    seen: list[tuple[str, int]] = []

    def look(event: events.Event) -> None:
        assert not db._commit.state.lock._is_owned()
        assert not db._commit.state.sync_lock._is_owned()
        writer = threading.Thread(target=db.put, args=(b"beside", b"it"))
        writer.start()
        writer.join()
        seen.append((type(event).__name__, len(db)))

    with open_store(path, segment_size_bytes=2000) as db:
        overwrite(db, 30)
        with listening(db, look):
            db.compact()
    assert [name for name, _ in seen] == ["SegmentSealed", "CompactionBegan", "CompactionEnded"]


@pytest.mark.parametrize("call", ["compact", "verify", "close"])
def test_in_the_events_of_a_compaction_there_is_no_other(path: Path, call: str) -> None:
    refused: list[BaseException] = []

    def call_again(event: events.Event) -> None:
        if isinstance(event, (events.CompactionBegan, events.CompactionEnded)):
            try:
                getattr(db, call)()
            except ReentryError as error:
                refused.append(error)

    with open_store(path, segment_size_bytes=2000) as db:
        overwrite(db, 30)
        with listening(db, call_again):
            db.compact()
        assert len(refused) == 2
        assert db.verify().ok


@contextmanager
def listening(db: bytekv.Store, listener: events.Listener) -> Iterator[None]:
    """Have a store that is open already tell a listener."""
    db._options.__dict__["listener"] = listener
    db._maintenance.compactor._listener = listener
    try:
        yield
    finally:
        db._options.__dict__["listener"] = db._maintenance.compactor._listener = None


def test_only_what_can_be_called_listens() -> None:
    with pytest.raises(TypeError, match="listener must be callable, not int"):
        bytekv.Options(listener=1)  # type: ignore[arg-type]
