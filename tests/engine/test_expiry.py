"""Keys that expire by the million, and what becomes of their entries in every order of events.

An expired key is forgotten once its grace is over, and its entry, if it lies above older segments, becomes a
tombstone at the next compaction. Nothing older may show through: not after any other compaction, nor a crash, nor a
clock that was set back.
"""

from __future__ import annotations

import itertools
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bytekv.engine.codec.entry import EXPIRES, KIND, PUT, TOMBSTONE
from bytekv.engine.index.deadlines import Deadlines
from bytekv.engine.log.scan import header_of, scan_segment
from bytekv.engine.store import Store
from bytekv.errors import ChangesLostError
from tests.support import harness
from tests.support.harness import NO_WORKER, WRONG, Case, FakeFiles, QuickFiles, crash, expect_no_violation, patched

pytestmark = pytest.mark.once


@pytest.fixture(autouse=True)
def nobody_else() -> Iterator[None]:
    """The worker would take out what has expired, too, whenever it came."""
    with patched(NO_WORKER):
        yield


def entries_of(db: Store) -> list[list[tuple[int, bytes, int]]]:
    """Return kind and flag of expiry, key and seq of every entry, segment by segment."""
    segments, found = db._segments, []
    lengths = segments.lengths()
    for row in segments.manifest.segments:
        descriptor, header = header_of(segments.directory, row, segments.manifest.store_uuid, for_writing=False)
        scan = scan_segment(segments.directory, descriptor, header, 80, lengths[row.segment_id], header.previous_seq)
        found.append([(flags & (KIND | EXPIRES), key, seq) for flags, key, seq, *_ in scan])
        segments.directory.files.close(descriptor)
    return found


def compact_run(db: Store, first: int, last: int | None = None, *, in_order: bool = False, pause: Any = None) -> None:
    """Compact some of the sealed segments, by their places in the log."""
    victims = [row.segment_id for row in db._segments.sealed()][first:last]
    if not victims:
        return  # nothing is left of them
    db._maintenance.compactor.run(victims, pause or (lambda: None), lambda _: None, in_order=in_order)


def waiting(db: Store) -> int:
    """Return how many keys are known somewhere because they expire, or did."""
    keydir = db._keydir
    queues = sum(len(bucket) for queue in (keydir._due, keydir._leaving) for bucket in queue._buckets.values())
    return len(keydir.expires) + len(keydir._expired) + queues


# --- in memory ---------------------------------------------------------------------------------


def test_deadlines_against_a_dict() -> None:
    """Times near and far, a clock that jumps, few keys at a time: whatever is due comes, and nothing else stays."""
    dice = random.Random(7)
    for _ in range(200):
        queue, model, now_ms = Deadlines(), dict[bytes, int](), 1_700_000_000_000
        for _ in range(200):
            key = b"%d" % dice.randrange(30)
            action = dice.randrange(8)
            if action < 4:
                when_ms = now_ms + dice.choice([-5, 0, 1, 3, 700, 1024, 5_000, 2_000_000, 3 * 10**9])
                if key not in model:
                    queue.add(key, when_ms)
                elif dice.randrange(3):
                    queue.move(key, model[key], when_ms)
                else:
                    queue.discard(key, model[key])
                    queue.add(key, when_ms)
                model[key] = when_ms
            elif action < 5 and key in model:
                queue.discard(key, model.pop(key))
            else:
                now_ms += dice.choice([1, 1, 500, 1_100_000, 10**9, -400, -2_000_000])
                due = {key for key, when_ms in model.items() if when_ms <= now_ms}
                came: list[bytes] = []
                while queue.is_due(now_ms):
                    before, limit = len(came), dice.choice([1, 2, 50])
                    looked_at = queue.advance(now_ms, model.get, came.append, limit)
                    assert len(came) - before <= looked_at <= limit
                assert sorted(came) == sorted(due)
                for key in came:
                    del model[key]
            held = sorted(key for bucket in queue._buckets.values() for key in bucket)
            assert held == sorted(model), "each once, and none for nothing"
            assert len(queue.order) <= 2 * len(queue._buckets) + 65


@pytest.mark.parametrize("io", ["mmap", "pread"])
@pytest.mark.parametrize("how", ["put", "add", "expire", "batch"])
def test_a_key_is_there_until_its_millisecond(path: Path, how: str, io: str) -> None:
    """However it was written, and however it is looked for; also when the clock has been set back meanwhile."""
    files = QuickFiles()
    with harness.open_store(path, files=files, io=io, sync="os") as db:
        db.update({b"%d" % number: b"stays" for number in range(20)})
        files.sleep(0.0005)
        if how == "put":
            db.put("5x", "v", ttl=1.5)
        elif how == "add":
            assert db.add("5x", "v", ttl=1.5)
            assert not db.add("5x", "w")
        elif how == "expire":
            db["5x"] = "v"
            assert db.expire("5x", 1.5)
        else:
            with db.batch() as batch:
                batch.put("5x", "v", ttl=1.5)
                batch["5y"] = "stays"
        assert db.ttl("5x") == 1.5

        def is_there() -> bool:
            said = {
                db.get("5x") is not None,
                "5x" in db,
                b"5x" in db.get_many([b"%d" % number for number in range(20)] + [b"5x"]),
                b"5x" in dict(db.scan("5")),
                b"5x" in list(db.scan_keys("5")),
                not db.delete("5x") if "5x" not in db else True,
            }
            assert len(said - {True}) <= 1
            return db.get("5x") == b"v"

        with patched({"bytekv.engine.index.keydir.Keydir.purge_some": lambda self, *_: False}):
            files.sleep(1.4985)
            assert is_there()
            files.sleep(-100)
            assert is_there()
            files.sleep(100.0005)
            assert is_there(), "half a millisecond before its time"
            files.sleep(0.0005)
            assert db.get("5x") is None
            assert "5x" not in db
            assert b"5x" not in db.get_many([b"%d" % number for number in range(20)] + [b"5x"])
            assert b"5x" not in dict(db.scan("5"))
            assert b"5x" not in list(db.scan_keys("5"))
            assert not db.expire("5x", 10)
            assert not db.delete("5x")
            files.sleep(-0.001)
            assert is_there(), "nobody has taken it out"
            files.sleep(0.001)
        assert db.add("5x", "again")
        files.sleep(10)
        assert db["5x"] == b"again"
        assert waiting(db) == 0


def test_keys_of_one_moment_are_taken_out_some_at_a_time(path: Path) -> None:
    """All that was due came out under the lock in one go: 200,000 keys of one second kept every writer waiting for
    more than a second, and each look of the worker counted all of them once more."""

    class Beside(QuickFiles):
        """Another thread writes whenever this one pauses."""

        puts = 0

        def pause(self, seconds: float) -> None:
            writer = threading.Thread(target=db.put, args=(b"beside", b"%d" % self.puts))
            writer.start()
            writer.join()
            self.puts += 1

    files = Beside()
    with harness.open_store(path, files=files) as db:
        when = files.now_ms() / 1000 + 10
        with db.batch() as batch:
            for number in range(2000):
                batch.put(b"%04d" % number, b"v", expires=when)
        files.sleep(20)
        locations = db._keydir.locations
        assert b"0000" not in db
        assert len(locations) >= 1900, "who meets one takes some others out, and leaves the rest"
        assert db.get(b"0001") is None
        assert list(db.scan_keys(limit=1)) == []
        before = len(locations)
        db.put(b"one", b"1", ttl=100)
        assert before - 3 < len(locations) < before, "a put takes out a few"
        before = len(locations)
        for _ in range(10):
            db[b"one"] = b"2"
        assert before - 20 <= len(locations) < before, "a plain one, too"
        del db[b"one"]
        most = [0]
        purge_some = db._keydir.purge_some

        def watched(*arguments: Any) -> bool:
            before = len(locations)
            is_more = purge_some(*arguments)
            most[0] = max(most[0], before - len(locations))
            return is_more

        db._keydir.purge_some = watched  # type: ignore[method-assign]
        assert len(db) in (0, 1), "with or without what was written beside"
        assert most[0] <= 100
        assert files.puts >= 1, "a writer came in between"
        assert set(db) == {b"beside"}
        assert len(db) == 1
        assert db.stats().expired_keys == 2000, "their grace is not over"
        files.sleep(100)
        assert db.stats().expired_keys == 0
        assert waiting(db) == 0


def test_a_durable_put_takes_out_a_few_too(path: Path) -> None:
    """With ``sync="always"`` it alone took none, so that under puts without an end expired keys piled up beside them:
    the worker goes in slices and leaves it to the puts when they keep it waiting."""
    files = QuickFiles()
    with patched(NO_WORKER), harness.open_store(path, files=files, sync="always") as db:
        with db.batch() as batch:
            for number in range(100):
                batch.put(b"%04d" % number, b"v", ttl=10)
        files.sleep(20)
        db._commit.state.purge_slice(1)
        locations = db._keydir.locations
        for number in range(10):
            before = len(locations)
            db[b"one"] = b"%d" % number
            assert before - 3 <= len(locations) - (number == 0) < before
        assert db[b"one"] == b"9"
        assert len(db) == 1


@pytest.mark.parametrize("how", ["delete", "put", "batch"])
def test_what_is_written_beside_keys_that_expire(path: Path, how: str) -> None:
    """It expires no more, and a view that is open shows what was there before."""
    with harness.open_store(path, files=QuickFiles(), sync="os") as db:
        db.put("beside", "v", ttl=10**5)
        db[b"old"] = b"v"
        db.put("k", "v", ttl=10**5)
        with db.snapshot() as snapshot:
            db[b"old"] = b"new"
            assert snapshot["old"] == b"v"
        db[b"old"] = b"newer"
        if how == "delete":
            assert db.delete("k")
        elif how == "put":
            db["k"] = "w"
        else:
            db.update({"k": "w"})
        assert set(db._keydir.expires) == {b"beside"}


def test_batches_take_part_in_taking_out_what_is_due(path: Path) -> None:
    """A writer of nothing but batches would leave it to the worker."""
    files = QuickFiles()
    with harness.open_store(path, files=files, sync="os") as db:
        db.update({b"%d" % number: b"v" for number in range(20)}, ttl=10)
        files.sleep(5000)
        locations = db._keydir.locations
        for number in range(4):
            db.update({b"x%d" % number: b"v" for number in range(5)})
        assert len(locations) < 20 + 5
        files.sleep(5000)
        db.update({b"%d" % number: b"again" for number in range(20)}, ttl=3)
        assert len(db) == 25
        db.update({b"3": b"stays"})
        files.sleep(3)
        assert dict(db) == {b"3": b"stays", **{b"x%d" % number: b"v" for number in range(5)}}
        files.sleep(1000)
        assert len(db) == 6
        assert waiting(db) == 0


@pytest.mark.parametrize("look", ["scan", "pairs", "pop", "len", "snapshot", "values", "clear"])
def test_what_is_due_and_not_yet_taken_out_is_not_there(path: Path, look: str) -> None:
    """Three thousand expired keys lie before, between and behind two that live; no call meets any of them."""
    files = QuickFiles()
    with harness.open_store(path, files=files) as db:
        with db.batch() as batch:
            for number in range(3000):
                batch.put(b"%04d" % number, b"v", ttl=10)
        db[b"1500a"], db[b"2800a"] = b"1", b"2"
        moment = db.snapshot()
        files.sleep(20)
        if look == "scan":
            assert list(db.scan_keys(limit=1)) == [b"1500a"]
            assert list(db.scan_keys(limit=1, reverse=True)) == [b"2800a"]
            assert list(db.scan_keys(limit=2)) == [b"1500a", b"2800a"]
            assert list(db.scan_keys()) == [b"1500a", b"2800a"]
        elif look == "pairs":
            assert list(db.scan(limit=1)) == [(b"1500a", b"1")]
            assert list(db.scan(limit=3)) == [(b"1500a", b"1"), (b"2800a", b"2")]
            assert list(db.items()) == [(b"1500a", b"1"), (b"2800a", b"2")]
        elif look == "pop":
            assert [db.popitem(), db.popitem()] == [(b"2800a", b"2"), (b"1500a", b"1")]
            with pytest.raises(KeyError):
                db.popitem()
        elif look == "len":
            assert len(db) == db.stats().keys == 2
        elif look == "snapshot":
            with db.snapshot() as later:
                db[b"0000"] = b"new"
                db[b"2999"] = b"new"
                for one in (moment, later):
                    assert len(one) == 2
                    assert list(one) == [b"1500a", b"2800a"]
            assert len(db) == 4
        elif look == "values":
            assert list(db.values()) == [b"1", b"2"]
            assert db.get_many([b"0000", b"1500a"]) == {b"1500a": b"1"}
            assert b"0000" not in db
            assert not db.delete(b"0001")
            assert db.add(b"0002", b"new")
        else:
            del db[b"1500a"], db[b"2800a"]
            before = db.last_seq
            db.clear()
            assert db.last_seq == before, "there was nothing"
        moment.close()
        report = db.verify()
        assert report.ok, report


def test_what_was_deleted_or_overwritten_is_not_kept_for_its_expiry(path: Path) -> None:
    """Keys with a ttl that were deleted, popped or overwritten stayed in the heap of expiries until their time came:
    500,000 deleted keys kept 165 of 176 MiB."""
    with harness.open_store(path, files=QuickFiles()) as db:
        for number in range(400):
            db.put(b"%d" % number, b"v", ttl=3600 * (1 + number % 50))
        for number in range(0, 400, 4):
            del db[b"%d" % number]
            db.pop(b"%d" % (number + 1), None)
            db[b"%d" % (number + 2)] = b"for ever"
            db.persist(b"%d" % (number + 3))
        assert waiting(db) == 0
        for number in range(400):
            db.put(b"again", b"v", ttl=10 + number * 1000)
        assert waiting(db) == 2
        db.clear()
        assert waiting(db) == 0


def test_a_key_that_expired_comes_again(path: Path) -> None:
    """Within its grace, and after."""
    files = QuickFiles()
    with harness.open_store(path, files=files, expiry_grace_s=100.0) as db:
        for waited in (20, 200):
            db.put(b"k", b"1", ttl=10)
            files.sleep(waited)
            assert b"k" not in db
            assert db.stats().expired_keys == (waited < 100)
            db[b"k"] = b"2"
            assert waiting(db) == 0
            files.sleep(1000)
            assert db[b"k"] == b"2"
            assert db.verify().ok


# --- on disk -----------------------------------------------------------------------------------


@pytest.mark.parametrize("in_order", [False, True])
def test_an_expired_put_above_older_data_becomes_a_tombstone(path: Path, in_order: bool) -> None:
    """Expired keys stayed in memory, and their values on disk, until a compaction took everything below them, too:
    above a hundred gigabytes of cold data that is never."""
    files = FakeFiles()
    options: dict[str, Any] = {"files": files, "expiry_grace_s": 60.0}
    db = harness.open_store(path, **options)
    db[b"cold"], db[b"key"] = b"1", b"old, for ever"
    db._commit.seal()
    db.put(b"key", b"secret" * 50, ttl=10)
    db.put(b"again", b"secret" * 50, ttl=10)
    db.put(b"again", b"secret" * 50, ttl=11)
    db.put(b"deleted", b"secret" * 50, ttl=10)
    db[b"other"] = b"2"
    del db[b"deleted"]
    db._commit.seal()
    files.sleep(30)
    compact_run(db, 1, in_order=in_order)
    assert entries_of(db)[1].count((PUT | EXPIRES, b"key", 3)) == 1, "its grace is not over"
    files.sleep(60)
    assert db.stats().expired_keys == 0
    before = db.stats()
    compact_run(db, 1, in_order=in_order)
    after = db.stats()
    assert sorted(entries_of(db)[1]) == [
        (PUT, b"other", 7),
        (TOMBSTONE, b"again", 5),
        (TOMBSTONE, b"deleted", 8),
        (TOMBSTONE, b"key", 3),
    ]
    assert before.total_bytes - after.total_bytes == sum(row.dead_bytes for row in before.segments[1:])
    assert [row.dead_bytes for row in after.segments[1:]] == [0]
    assert sum(row.tombstone_bytes for row in after.segments) == 3 * 27 + len(b"againdeletedkey")
    assert not any(b"secret" in file.read_bytes() for file in harness.segment_files(path))
    for _ in range(2):
        assert dict(db) == {b"cold": b"1", b"other": b"2"}
        assert db.verify().ok
        crash(db)
        db = harness.open_store(path, **options)
    compact_run(db, 0)
    assert entries_of(db) == [[(PUT, b"cold", 1), (PUT, b"other", 7)]]
    assert db.verify().ok
    db.close()


@pytest.mark.parametrize("grace_s", [0.0, 60.0])
@pytest.mark.parametrize("is_oldest", [False, True])
@pytest.mark.parametrize("at", range(12))
def test_a_key_that_expires_while_it_is_compacted_in_order(
    path: Path, at: int, is_oldest: bool, grace_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copied among the others first and among the expired at last, it had two copies, and `verify` spoke of damage in
    a sound store. And one that is forgotten before its turn comes would not be copied at all."""
    harness.tune(monkeypatch, copied_entries=1, copied_keys=1, moved_keys=1)
    files = FakeFiles()
    db = harness.open_store(path, files=files, expiry_grace_s=grace_s)
    keys = [b"%d" % number for number in range(4)]
    for key in keys:
        db[key] = b"old, for ever"
    db._commit.seal()
    for key in keys:
        db.put(key, b"new", ttl=10)
    db._commit.seal()
    pauses = itertools.count()

    def pause() -> None:
        if next(pauses) == at:
            files.sleep(20)
            assert not any(key in db for key in keys)
            assert len(db) == 0

    compact_run(db, 0 if is_oldest else 1, in_order=True, pause=pause)
    assert next(pauses) > 12, "there are so many moments"
    for _ in range(3):
        report = db.verify()
        assert report.ok, report
        assert report.entries <= (4 if is_oldest else 8)
        files.sleep(1000)
        assert dict(db) == {}
        compact_run(db, 0 if is_oldest else 1)
        crash(db)
        db = harness.open_store(path, files=files, expiry_grace_s=grace_s)
    db.close()


class _Telling:
    """A lock that tells when one thread wants it."""

    def __init__(self, lock: Any, wanted: Callable[[], object]) -> None:
        self.lock, self.wanted, self.thread = lock, wanted, threading.get_ident()
        self._is_owned = lock._is_owned

    def __enter__(self) -> None:
        if threading.get_ident() == self.thread:
            self.wanted()
        self.lock.__enter__()

    def __exit__(self, *error: object) -> None:
        self.lock.__exit__(*error)

    def acquire(self, *arguments: Any, **options: Any) -> bool:
        return bool(self.lock.acquire(*arguments, **options))

    def release(self) -> None:
        self.lock.release()


def test_somebody_is_forgetting_keys_when_a_compaction_in_order_begins(path: Path) -> None:
    """That nothing is to be forgotten was said without the lock: who was at it went on, and a key that had been found
    among the expired was gone when they were copied. What it had hidden was there again."""
    go, began = threading.Event(), threading.Event()

    class Files(FakeFiles):
        def free_bytes(self, path: Any) -> int:
            self.sleep(20)
            go.clear()
            forgetting.start()
            began.wait(20)
            return super().free_bytes(path)

    def forget_slowly(*arguments: Any) -> None:
        began.set()
        go.wait(20)
        forget(*arguments)

    files = Files()
    options: dict[str, Any] = {"files": files, "expiry_grace_s": 0.0}
    db = harness.open_store(path, **options)
    forgetting = threading.Thread(target=db._commit.state.purge_slice, args=(100,))
    forget, db._keydir._forget = db._keydir._forget, forget_slowly  # type: ignore[method-assign]
    db[b"key"] = b"old, for ever"
    db._commit.seal()
    db.put(b"key", b"new", ttl=10)
    db._commit.seal()
    db._commit.state.replace_locks(lambda lock: _Telling(lock, go.set))
    compact_run(db, 1, in_order=True)
    forgetting.join()
    assert entries_of(db)[1] == [(TOMBSTONE, b"key", 2)]
    crash(db)
    with harness.open_store(path, **options) as db:
        assert b"key" not in db


def test_a_tombstone_of_an_expired_put_is_no_change(path: Path) -> None:
    """That a key expires is not in the feed, and does not get there because a compaction makes a tombstone of it."""
    files = FakeFiles()
    with harness.open_store(path, files=files, expiry_grace_s=0.0) as db:
        db[b"key"] = b"old"
        db._commit.seal()
        db.put(b"key", b"new", ttl=10)
        db._commit.seal()
        since = db.last_seq
        db[b"other"] = b"1"
        files.sleep(20)
        compact_run(db, 1, 2)
        assert entries_of(db)[1] == [(TOMBSTONE, b"key", 2)]
        assert [(change.op, change.key) for change in db.changes(since)] == [("put", b"other")]
        for earlier in range(since):
            with pytest.raises(ChangesLostError):
                list(db.changes(earlier))


def test_a_clock_that_is_set_back(path: Path) -> None:
    """Gone while the store is open; back if it is opened anew, but only until its entry has been compacted."""
    files = FakeFiles()
    options: dict[str, Any] = {"files": files, "expiry_grace_s": 0.0}
    db = harness.open_store(path, **options)
    db[b"key"] = b"old, for ever"
    db._commit.seal()
    db.put(b"key", b"new", ttl=10)
    db._commit.seal()
    files.sleep(20)
    assert b"key" not in db
    files.sleep(-15)
    assert b"key" not in db
    db.close()
    db = harness.open_store(path, **options)
    assert db[b"key"] == b"new"
    files.sleep(15)
    assert len(db) == 0
    files.sleep(-15)
    compact_run(db, 1)
    for _ in range(2):
        assert b"key" not in db
        assert db.verify().ok
        db.close()
        db = harness.open_store(path, **options)
    db.close()


# --- every story -------------------------------------------------------------------------------


Event = str | tuple[int, int, bool]  # or a run of sealed segments to compact, in the order of the keys or not


class Tale:
    """A key, each of its writes in a segment of its own, and what may be seen of it after some events."""

    def __init__(self, path: Path, writes: tuple[str, ...], events: tuple[Event, ...], grace_s: float) -> None:
        shutil.rmtree(path, ignore_errors=True)
        self.path, self.files = path, QuickFiles()
        self.options: dict[str, Any] = {"files": self.files, "io": "pread", "expiry_grace_s": grace_s}
        self.db = harness.open_store(path, **self.options)
        self.newest: bytes | None = None
        self.expires_s = 1e12
        self.was_over = False
        self.number = 0
        for write in writes:
            self.take(write)
        self.reader = harness.open_store(path, "r", **self.options)
        for event in events:
            self.take(event)

    @property
    def now_s(self) -> float:
        return self.files.time_ns / 1e9

    def take(self, event: Event) -> None:
        db = self.db
        self.number += 1
        if isinstance(event, tuple):
            first, last, in_order = event
            compact_run(db, first, last, in_order=in_order)
        elif event in ("put", "expire"):
            self.newest, self.was_over = b"%d" % self.number, False
            self.expires_s = self.now_s + 10 if event == "expire" else 1e12
            db.put(b"a", self.newest, ttl=10 if event == "expire" else None)
            db.put(b"b", self.newest)
            db._commit.seal()
        elif event == "delete":
            if db.delete(b"a"):  # else it has expired, and nothing is written
                self.newest = None
            db.put(b"b", b"%d" % self.number)
            db._commit.seal()
        elif event == "wait":
            self.files.sleep(12)
        elif event == "clock back":
            self.files.sleep(-12)
        elif event == "look":
            db._commit.state.purge(lambda: None)
        else:
            crash(db)
            self.db = harness.open_store(self.path, **self.options)
        self.was_over |= self.now_s >= self.expires_s

    def events(self) -> Iterator[Event]:
        yield from ("put", "expire", "delete", "wait", "clock back", "look", "crash")
        sealed = len(self.db._segments.sealed())
        for first, last in itertools.combinations(range(sealed + 1), 2):
            yield from ((first, last, False), (first, last, True))

    def check(self) -> None:
        """The newest put, or nothing: once its time was over either, if by the clock of now it is not."""
        self.reader.refresh()
        for db in (self.db, self.reader):
            found = db.get(b"a")
            if self.newest is None or self.now_s >= self.expires_s:
                assert found is None
            elif found is None:
                assert self.was_over
            else:
                assert found == self.newest
            assert (b"a" in db, len(db)) == (found is not None, 1 + (found is not None))
        report = self.db.verify()
        assert report.ok, report

    def state(self) -> object:
        """Say what lies where and what is known of it: what happens next depends on nothing else."""
        keydir, found = self.db._keydir, entries_of(self.db)
        rank = {seq: number for number, seq in enumerate(sorted({seq for part in found for _, _, seq in part}))}
        parts = tuple(tuple((kind, key, rank[seq]) for kind, key, seq in part) for part in found)
        expires_in = round(self.expires_s - self.now_s) if self.newest is not None and self.expires_s < 1e12 else None
        memory = b"a" in keydir.locations, b"a" in keydir._expired, b"a" in self.reader._keydir.locations
        return parts, memory, expires_in, self.was_over, self.newest is None

    def close(self) -> None:
        self.reader.close()
        self.db.close()


_WRITES = (
    ("put", "expire"),
    ("put", "delete", "expire"),
    ("put", "expire", "delete"),
    ("expire", "put", "expire"),
    ("put", "expire", "expire"),
)


def expiry_stories(
    place: Path, seed: int, depth: int | None = None, beginnings: int = 2 * len(_WRITES)
) -> Iterator[Case]:
    """Go through all stories of up to ``depth`` events, once for each state that they lead to; a case is an event."""
    path = place / f"expiry-{seed}"
    known: set[object] = set()
    stories: list[tuple[tuple[str, ...], float, tuple[Event, ...]]] = [
        (writes, grace_s, ()) for grace_s in (0.0, 15.0) for writes in _WRITES
    ][:beginnings]
    for _ in itertools.count() if depth is None else range(depth):
        longer = []
        for writes, grace_s, story in stories:
            tale = Tale(path, writes, story, grace_s)
            choices = list(tale.events())
            tale.close()
            for event in choices:
                tale = Tale(path, writes, story, grace_s)
                error: BaseException | None = None
                try:
                    tale.take(event)
                    tale.check()
                    if (state := (grace_s, tale.state())) not in known:
                        known.add(state)
                        longer.append((writes, grace_s, (*story, event)))
                        for last in ("crash", (0, 1, False), "clock back", "crash", (0, None, False), "crash"):
                            tale.take(last)  # type: ignore[arg-type]
                            tale.check()
                except WRONG as found:
                    found.add_note(f"the story: {writes}, {(*story, event)}, grace {grace_s}")
                    error = found
                finally:
                    tale.close()
                yield Case("expiry stories", error)
        stories = longer


def test_every_story_of_a_few_events(path: Path) -> None:
    assert expect_no_violation(expiry_stories(path.parent, 0, 2, 2))["expiry stories"] > 200
