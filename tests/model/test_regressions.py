"""Bugs that were found once, each with its story. Shrunk by a machine or by hand; kept for ever."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bytekv import ConflictError, CorruptionError, LimitError, StoreClosedError
from bytekv.engine.store import Store
from tests.support import harness
from tests.support.harness import FakeFiles, crash


@pytest.fixture
def hints_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every segment, however small, get a hint file, and nobody at work in the background."""
    harness.tune(monkeypatch, hint_from=1)
    monkeypatch.setattr("bytekv.engine.space.worker.Worker.wake", lambda self: True)


def sealed_ids(db: Store) -> list[int]:
    return [row.segment_id for row in db._segments.sealed()]


def compact_run(db: Store, victims: list[int], pause: Callable[[], None] = lambda: None) -> None:
    db._maintenance.compactor.run(victims, pause, lambda _: None)


class PausingFiles(FakeFiles):
    """Do something once, at the next chance that is given to other threads."""

    meanwhile: Callable[[], object] | None = None

    def yield_cpu(self) -> None:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()


# --- background work beside a compaction ---------------------------------------------------------


@pytest.mark.usefixtures("hints_for_all")
def test_a_segment_retired_while_it_waits_for_its_hint(
    open_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker went through a list of sealed segments, building hints; a `compact()` meanwhile took the rest of
    them away. The file that was not found ended the worker, and with it every further write: a failed worker
    poisons the store."""
    harness.tune(monkeypatch, copied_entries=1, moved_keys=1)
    files = PausingFiles()
    db = open_store(files=files, segment_size_bytes=400)
    for number in range(40):
        db.put(b"k%d" % (number % 4), b"v%d" % number)
    content = dict(db)
    for segment_id in sealed_ids(db):
        db._segments.hinted.pop(segment_id, None)
    files.meanwhile = db.compact
    db._work()
    db.put(b"k0", b"still writable")
    assert dict(db) == {**content, b"k0": b"still writable"}


@pytest.mark.usefixtures("hints_for_all")
def test_victims_chosen_before_another_compaction_took_them(open_store: Callable[..., Store]) -> None:
    """The worker chose its victims, then waited for a `compact()` in another thread, which took the same ones.
    The worker did not find them any more, and died of a StopIteration."""
    db = open_store(segment_size_bytes=400, compact_dead_bytes=0)
    for number in range(40):
        db.put(b"k%d" % (number % 4), b"v%d" % number)
    content = dict(db)
    victims = db._maintenance.pick()
    assert victims
    lock = db._state.compacting

    class LateLock:
        """The other thread had the lock, and has just let go of it."""

        def __enter__(self) -> object:
            db._state.compacting = lock
            db.compact()
            return lock.__enter__()

        def __exit__(self, *error: Any) -> None:
            lock.__exit__(*error)

        def __getattr__(self, name: str) -> Any:
            return getattr(lock, name)

    db._state.compacting = LateLock()
    db._maintenance.may_compact = True
    db._work()
    db._maintenance.may_compact = False
    assert db._state.compacting is lock
    db.put(b"k0", b"still writable")
    assert dict(db) == {**content, b"k0": b"still writable"}


def test_two_small_neighbours_are_merged_once(path: Path, open_store: Callable[..., Store]) -> None:
    """One holds a tombstone that has to stay, the other a put. Their outputs were a file with the tombstone and a
    file with the put, both small, neighbours: to be merged. With three syncs a round, for ever."""
    options: dict[str, Any] = {"segment_size_bytes": 2000, "compact_small_files": 2, "compact_dead_ratio": 1.0}
    db = open_store(**options)
    for number in range(3):
        db[b"k%d" % number] = b"x" * 1900
    crash(db)
    db = open_store(**options)
    del db[b"k1"]
    crash(db)
    db = open_store(**options)
    db[b"j"] = b""
    crash(db)
    db = open_store(**options)
    rounds = 0
    while victims := db._maintenance.pick():
        compact_run(db, victims)
        rounds += 1
        assert rounds < 3
    assert rounds == 1
    assert sorted(db) == [b"j", b"k0", b"k2"]


def test_compact_finishes_what_was_interrupted(
    path: Path, open_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted after it was published, a compaction goes on with the next one. `compact()` found nothing worth
    compacting, so there was no next one: the old files stayed, with all that had been deleted."""
    harness.tune(monkeypatch, copied_entries=1, moved_keys=1)
    db = open_store(segment_size_bytes=400)
    for key in (b"a", b"b", b"b", b"c"):
        db[key] = b""
    db.compact()
    (victim,) = sealed_ids(db)
    pauses = 0

    def pause() -> None:
        nonlocal pauses
        pauses += 1
        if pauses == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compact_run(db, [victim], pause)
    assert len(harness.segment_files(path)) == 2
    db.compact()
    assert len(harness.segment_files(path)) == 1
    assert [row.dead_bytes for row in db.stats().segments] == [0]


# --- counting the dead ---------------------------------------------------------------------------


def test_clear_in_the_middle_of_moving_keys(open_store: Callable[..., Store]) -> None:
    """`clear` counts the dead bytes anew. Half way between two sets of files it counted the outputs' tombstones and
    what was not moved yet as dead, and at the end of the compaction they were counted once more."""
    for at in range(1, 4):
        db = open_store("n", segment_size_bytes=400)
        for number in range(6):
            db[b"a%d" % number] = b"x" * 20
        for number in range(6):
            del db[b"a%d" % number]
        for number in range(20):
            db[b"b%d" % number] = b"x" * 20
        pauses = 0

        def pause() -> None:
            nonlocal pauses
            pauses += 1
            if pauses == at:  # noqa: B023 - used up within this round
                db.clear()  # noqa: B023

        compact_run(db, sealed_ids(db)[1:], pause)
        report = db.verify()
        assert report.ok, report
        db.close()


@pytest.mark.usefixtures("hints_for_all")
def test_a_key_deleted_after_its_put_was_copied(
    open_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleted, put again, copied, deleted again: behind the copy of the put stood the tombstone from before it, and
    the output's hint file spoke of both. Opening by the hint counted the bytes of what they replace twice."""
    harness.tune(monkeypatch, copied_entries=1, moved_keys=1)
    db = open_store()
    db[b"k"] = b"1"
    crash(db)
    db = open_store()
    del db[b"k"]
    db[b"k"] = b"2"
    db[b"other"] = b""
    crash(db)
    db = open_store()
    pauses = 0

    def pause() -> None:
        nonlocal pauses
        pauses += 1
        if pauses == 3:
            del db[b"k"]

    compact_run(db, sealed_ids(db)[1:], pause)
    crash(db)
    db = open_store()
    assert db.recovery.hints_used == 1
    report = db.verify()
    assert report.ok, report
    assert dict(db) == {b"other": b""}


# --- sync="always" -------------------------------------------------------------------------------


class GatedFiles(FakeFiles):
    """Do something in the middle of the next syncs, one thing for each."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: list[Callable[[], None]] = []

    def sync(self, descriptor: int, path: str) -> None:
        if self.meanwhile:
            self.meanwhile.pop(0)()
        super().sync(descriptor, path)


def test_a_key_put_after_a_clear_exists_for_writers(open_store: Callable[..., Store]) -> None:
    """A clear, a put of k and a put of j came one after the other, each before the sync of the one before was
    over. Once k was durable, writers no longer looked for it among what waits; but as j still waited and the
    clear had not been forgotten, they took it that k was not there: `add` overwrote it, `delete` did nothing."""
    files = GatedFiles()
    db = open_store(files=files, sync="always")
    db[b"x"] = b"old"
    threads: list[threading.Thread] = []
    found: dict[str, bool] = {}

    def beside(call: Callable[[], object]) -> None:
        """Have another thread write; go on as soon as its operation is appended and waits for a sync."""
        appended = db._commit.state.seq
        thread = threading.Thread(target=call)
        threads.append(thread)
        thread.start()
        while db._commit.state.seq == appended and thread.is_alive():
            files.yield_cpu()

    def ask() -> None:
        """Have another thread write what changes nothing if all is well, and give it the time to go wrong."""
        thread = threading.Thread(target=lambda: found.update(added=db.add(b"k", b"wrong")))
        threads.append(thread)
        thread.start()
        for _ in range(1000):
            files.yield_cpu()
            if db._commit.durability.group.waiting or found:
                break

    files.meanwhile = [
        lambda: beside(lambda: db.put(b"k", b"1")),  # during the sync of the clear
        lambda: beside(lambda: db.put(b"j", b"1")),  # during the sync of k
        ask,  # during the sync of j
    ]
    db.clear()
    for thread in threads:
        thread.join()
    assert found == {"added": False}
    assert dict(db) == {b"j": b"1", b"k": b"1"}


def test_verify_while_another_thread_waits_for_its_sync(open_store: Callable[..., Store]) -> None:
    """What is appended but not yet durable is in the file and not yet in the keydir: `verify` took the difference
    for damage."""
    files = GatedFiles()
    db = open_store(files=files, sync="always")
    db[b"a"] = b"1"
    for write in (
        lambda: db.put(b"b", b"new"),
        lambda: db.put(b"a", b"overwritten"),
        lambda: db.delete(b"b"),
        lambda: db.clear(),
    ):
        reports: list[Any] = []
        thread = threading.Thread(target=lambda: reports.append(db.verify()))  # noqa: B023 - used up within this round

        def start() -> None:
            thread.start()  # noqa: B023
            # It has to wait for the sync that we are in the middle of, or else be done; give it the time to be wrong.
            for _ in range(1000):
                files.yield_cpu()
                if reports:  # noqa: B023
                    break

        files.meanwhile = [start]
        write()
        thread.join()
        assert reports[0].ok, reports[0]


# --- opening -------------------------------------------------------------------------------------


def test_opening_for_reading_while_the_writer_compacts(path: Path, open_store: Callable[..., Store]) -> None:
    """Between a reader's look at the manifest and at the segments, a compaction took one of them away. The reader
    said that there was no store."""
    writer = open_store(segment_size_bytes=400)
    for number in range(40):
        writer.put(b"k%d" % (number % 4), b"v%d" % number)

    class LateFiles(FakeFiles):
        compactions = 0

        def open(self, path: str, **flags: Any) -> int:
            if path.endswith(".seg") and self.compactions < 3:
                self.compactions += 1
                writer.put(b"k0", b"%d" % self.compactions)
                writer.compact()
            return super().open(path, **flags)

    reader = open_store("r", files=LateFiles())
    assert dict(reader) == dict(writer)
    reader.close()


@pytest.mark.parametrize("flag", ["r", "w", "c"])
def test_a_missing_segment_is_damage(path: Path, open_store: Callable[..., Store], flag: str) -> None:
    """It was reported as `StoreNotFoundError`, and a program that then makes a new store would have made one, in
    the place of one that had lost a single file."""
    db = open_store(segment_size_bytes=400)
    for number in range(40):
        db.put(b"k%d" % number, b"v%d" % number)
    db.close()
    before = harness.snapshot_of(path)
    for file in harness.segment_files(path):
        content = file.read_bytes()
        file.unlink()
        with pytest.raises(CorruptionError) as caught:
            open_store(flag)
        assert (caught.value.path, caught.value.offset) == (str(file), 0)
        file.write_bytes(content)
    assert harness.snapshot_of(path) == before
    open_store(flag)


def test_an_open_that_fails_late_has_changed_nothing(path: Path, open_store: Callable[..., Store]) -> None:
    """A kill in the middle of a roll leaves a sealed segment untrimmed; the next open trims it. It did so before it
    had looked at the segments that follow, one of which was damaged: the open failed, with a change made."""
    db = open_store(segment_size_bytes=400)
    for number in range(40):
        db.put(b"k%d" % number, b"v%d" % number)
    content = dict(db)
    db.close()
    first, _, third, *_ = harness.segment_files(path)
    with open(first, "ab") as file:
        file.write(bytes(100))
    harness.damage(third, 150)
    before = harness.snapshot_of(path)
    with pytest.raises(CorruptionError):
        open_store()
    assert harness.snapshot_of(path) == before
    harness.damage(third, 150)
    assert dict(open_store()) == content


# --- reading -------------------------------------------------------------------------------------


def test_looking_for_a_value_while_keys_go_away(open_store: Callable[..., Store]) -> None:
    """`value in db.values()` first took a key and then read it; in between it expired, or another thread deleted
    it. The KeyError came out of an operator that has none."""

    class TickingFiles(FakeFiles):
        ticks = False

        def now_ms(self) -> int:
            if self.ticks:
                self.sleep(1)
            return super().now_ms()

    files = TickingFiles()
    db = open_store(files=files)
    for number in range(10):
        db.put(b"%d" % number, b"a", ttl=5)
    db[b"last"] = b"b"
    files.ticks = True
    assert b"b" in db.values()
    assert b"c" not in db.values()
    assert (b"9", b"c") not in db.items()
    files.ticks = False


def test_a_scan_of_keys_ends_with_the_store(open_store: Callable[..., Store]) -> None:
    """Keys come in chunks; those of a chunk that was in hand went on coming after `close`."""
    db = open_store()
    db.update({b"%d" % number: b"" for number in range(10)})
    scans: list[Iterator[Any]] = [db.scan_keys(), iter(db), iter(db.keys()), reversed(db)]
    for scan in scans:
        next(scan)
    db.close()
    for scan in scans:
        with pytest.raises(StoreClosedError):
            next(scan)


def test_clearing_what_has_expired_takes_no_seq(open_store: Callable[..., Store]) -> None:
    """Whether `clear` of a store whose keys had all expired wrote anything depended on whether somebody had looked."""
    for look in (True, False):
        files = FakeFiles()
        db = open_store("n", files=files)
        db.put(b"a", b"1", ttl=1)
        files.sleep(5)
        if look:
            assert len(db) == 0
        db.clear()
        assert db.last_seq == 1
        db.close()


# --- limits --------------------------------------------------------------------------------------


def test_keys_up_to_the_limit_and_no_longer(open_store: Callable[..., Store]) -> None:
    """A key of one byte too many, if it was bytes and not text, passed the check and failed in `struct`."""
    db = open_store(segment_size_bytes=400)
    longest = b"k" * 65_535
    db[longest] = b"1"
    db[longest[:-1]] = b"2"
    too_long = longest + b"k"
    for use in (
        lambda: db.__setitem__(too_long, b""),
        lambda: db.put(too_long, b""),
        lambda: db.put(too_long, b"", ttl=1),
        lambda: db.put(too_long, b"", if_seq=0),
        lambda: db.add(too_long, b""),
        lambda: db.incr(too_long),
        lambda: db.setdefault(too_long, b""),
        lambda: db.update({b"new": b"", too_long: b""}),
    ):
        with pytest.raises(LimitError):
            use()
    assert list(db) == [longest[:-1], longest]
    assert db.last_seq == 2
    db.close()
    db = open_store()
    assert db.popitem() == (longest, b"1")
    assert dict(db) == {longest[:-1]: b"2"}


# --- readers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sync", ["interval", "always", "os"])
def test_a_readers_last_seq_is_that_of_what_it_shows(sync: str, path: Path) -> None:
    """Opened with sync="always", a reader named the seq that it knew to be durable and showed what came after it."""
    with harness.open_store(path, io="pread", sync="os") as db:
        db[b"a"] = b"1"
        db.sync()
        db[b"b"] = b"2"
        with harness.open_store(path, "r", sync=sync) as reader:
            assert (dict(reader), reader.last_seq) == ({b"a": b"1", b"b": b"2"}, 2)
            db[b"c"] = b"3"
            assert reader.refresh()
            assert (len(reader), reader.last_seq) == (3, 3)
            with reader.snapshot() as snapshot:
                assert snapshot.seq == 3


# --- the end -------------------------------------------------------------------------------------


def test_a_store_that_nobody_has_any_more_is_closed_at_once(path: Path) -> None:
    """The feed of changes held the store that held it: dropped, it kept the lock until garbage was collected.

    Without a worker: one that is at work when its store is dropped has it until it is done.
    """
    gc.disable()
    try:
        with harness.patched(harness.NO_WORKER):
            for turn in range(3):
                db = harness.open_store(path, segment_size_bytes=400)
                for number in range(9):
                    db[b"k-%d" % number] = b"%d" % turn * 50
                with db.transaction() as tx, db.snapshot():
                    tx[b"tx"] = b"1"
                next(db.scan())
                next(db.changes(db.last_seq - 1))
                db.compact()
                reader = harness.open_store(path, "r")
                next(reader.changes(db.last_seq - 1), None)
                reader.refresh()
                del db, tx, reader
    finally:
        gc.enable()
    with harness.open_store(path) as db:
        assert db.recovery.clean


# --- what is told before it is durable -----------------------------------------------------------


class HeldSyncs(FakeFiles):
    """Files whose syncs of segments wait once they are to."""

    def __init__(self) -> None:
        super().__init__()
        self.holds, self.inside, self.go = False, threading.Event(), threading.Event()

    def sync(self, descriptor: int, path: str) -> None:
        if self.holds and path.endswith(".seg"):
            self.inside.set()
            assert self.go.wait(60)
        super().sync(descriptor, path)


@pytest.mark.parametrize("call", ["put", "incr"])
def test_a_refused_change_waits_for_the_entry_that_refuses_it(open_store: Callable[..., Store], call: str) -> None:
    """With sync="always", one thread's put waited for its sync when another's compare-and-set met it. The second was
    told at once "found 2": the seq of an entry that a power cut could still have taken back, and a retry spun until
    the sync was over, as reading went on to show the old entry. An `incr` told of the value in the same way."""
    files = HeldSyncs()
    db = open_store(files=files, sync="always")
    db["k"] = "1"
    files.holds = True
    told: list[tuple[Exception, int]] = []

    def refused() -> None:
        try:
            db.put("k", "mine", if_seq=1) if call == "put" else db.incr("k")
        except (ConflictError, ValueError) as error:
            told.append((error, db.durable_seq))

    first = threading.Thread(target=db.put, args=(b"k", b"no number"))
    second = threading.Thread(target=refused)
    first.start()
    assert files.inside.wait(60)
    second.start()
    while second.is_alive() and not db._commit.durability.group.waiting:
        second.join(0.001)
    files.go.set()
    first.join()
    second.join()
    assert [durable for _, durable in told] == [2]
    assert db["k"] == b"no number"


def test_a_signal_handler_reads_while_its_thread_opens_a_segment(open_store: Callable[..., Store]) -> None:
    """The lock around the opening of segments was not re-entrant: a handler that struck inside it waited for ever."""

    class Interrupted(FakeFiles):
        handler: Callable[[], object] = staticmethod(lambda: None)

        def open(self, path: str, **named: bool) -> int:
            handler, self.handler = self.handler, lambda: None
            handler()
            return super().open(path, **named)

    files = Interrupted()
    db = open_store(files=files, segment_size_bytes=400, max_open_segments=1)
    for number in range(4):
        db[b"%d" % number] = b"x" * 300
    files.handler = lambda: db[b"0"]
    assert db[b"1"] == b"x" * 300


def test_segments_beyond_the_millionth_are_compacted(path: Path) -> None:
    """What a compaction remembered of its copies was packed into 64 bits, and their locations take more."""
    with harness.open_store(path, auto_compact=False) as db:
        db._segments.manifest = db._segments.manifest._replace(next_id=(1 << 20) + 7)
        for number in range(100):
            db[b"%d" % (number % 50)] = b"%d" % number
        content = dict(db)
        assert max(db._locations.values()) >= 1 << 64
        assert db.compact().reclaimed_bytes > 0
        assert dict(db) == content
        assert db.verify().ok
    with harness.open_store(path) as db:
        assert dict(db) == content
