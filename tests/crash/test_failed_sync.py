"""A sync fails, and the disk says so only once (D7).

Each caller that waits for it is told. Nothing is tried again: the kernel has marked the pages clean, so a second sync
would succeed without them. Reads go on; the next write, ``sync()`` and ``close()`` raise; what the failed calls wrote
is decided when the store is opened again, and opening asks the medium, not the page cache.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import bytekv
from bytekv.engine.store import Store
from bytekv.errors import StoreFailedError
from tests.support.fault_files import FailingSyncs, LosingFiles
from tests.support.harness import WRONG, Case, crash, open_store

Content = dict[bytes, bytes]
TIMEOUT_S = 20.0

modes = pytest.mark.parametrize("sync", ["interval", "always", "os"])
ios = pytest.mark.parametrize("io", ["mmap", "pread"])


class Diary:
    """A store and everything that it was told, so that every outcome can be judged by its seq."""

    def __init__(self, path: Path, files: FailingSyncs, **options: Any) -> None:
        self.path, self.files = path, files
        self.options: dict[str, Any] = {"sync_interval_s": 3600, "segment_size_bytes": 500, **options}
        self.store = open_store(path, files=files, **self.options)
        self.states: list[Content] = [{}]  # what the store holds after operation 1, 2, …
        self.acknowledged = 0
        self.errors: list[StoreFailedError] = []

    def _do(self, call: Callable[[], object], *steps: Content) -> None:
        """Make a call that consists of so many operations; it may fail, but only because of a sync."""
        if self.errors:
            return
        try:
            call()
        except StoreFailedError as error:
            assert self.files.has_failed.is_set()
            self.errors.append(error)
        else:
            assert not self.files.has_failed.is_set(), "a sync failed and nobody was told"
            self.acknowledged += len(steps)
        self.states += steps

    def put(self, key: bytes, value: bytes) -> None:
        self._do(lambda: self.store.put(key, value), self.states[-1] | {key: value})

    def delete(self, key: bytes) -> None:
        self._do(lambda: self.store.delete(key), {k: v for k, v in self.states[-1].items() if k != key})

    def batch(self, puts: Content) -> None:
        # All or nothing: the states between are none that may be seen.
        after = self.states[-1] | puts
        self._do(lambda: self.store.update(puts), *([{b"half": b"of a batch"}] * (len(puts) - 1)), after)

    def sync(self) -> None:
        self._do(self.store.sync)

    def compact(self) -> None:
        self._do(self.store.compact)

    def close(self) -> None:
        self._do(self.store.close)
        if not self.store.closed:  # an earlier error kept the call from being made
            with pytest.raises(StoreFailedError):
                self.store.close()
        assert self.store.closed

    # --- expectations --------------------------------------------------------------------------

    def expect_refusal(self) -> None:
        """After the failure: reads go on, everything else raises and changes nothing, the disk is left alone."""
        store = self.store
        before = dict(store.items())
        assert before in self.states[store.durable_seq :]
        refused: dict[str, Callable[[], object]] = {
            "put": lambda: store.put(b"late", b"1"),
            "put over": lambda: store.put(b"k-1", b"1"),
            "put with a ttl": lambda: store.put(b"late", b"1", ttl=60),
            "delete": lambda: store.delete(b"k-1"),
            "batch": lambda: store.update({b"late": b"1", b"later": b"2"}),
            "clear": store.clear,
            "sync": store.sync,
        }
        for name, call in refused.items():
            with pytest.raises(StoreFailedError) as caught:
                call()
                pytest.fail(f"{name} was accepted")
            assert caught.value.__cause__ is not None, f"{name} does not say what failed"
        with contextlib.suppress(StoreFailedError):  # no error if there is nothing to compact
            store.compact()
        assert dict(store.items()) == before
        assert all(store[key] == value for key, value in before.items())
        assert store.stats().keys == len(before)
        assert list(store.scan(b"k-")) == sorted((k, v) for k, v in before.items() if k.startswith(b"k-"))

    def expect_after_reopening(self, *, at_least: int) -> None:
        """Whole operations 1 … R, R no smaller than what is certain; the same again at the next opening."""
        found = None
        for _ in range(2):
            with open_store(self.path, files=self.files, **self.options) as store:
                content = dict(store.items())
                assert content in self.states[at_least:], f"{content} is none of {self.states[at_least:]}"
                assert found is None or content == found, "opening again found something else"
                found = content
                report = store.verify()
                assert report.ok, report
                store[b"writable"] = b"again"
                del store[b"writable"]
                store.sync()


def _begin(path: Path, files: FailingSyncs, **options: Any) -> Diary:
    diary = Diary(path, files, **options)
    for number in range(8):
        diary.put(b"k-%d" % (number % 5), b"v-%d" % number * 10)
    diary.delete(b"k-2")
    diary.sync()
    diary.put(b"pending", b"p")
    return diary


def _puts(diary: Diary) -> None:
    diary.put(b"new", b"1")
    diary.put(b"k-0", b"2")


def _batches(diary: Diary) -> None:
    diary.batch({b"b-1": b"1", b"b-2": b"2", b"k-0": b"3"})
    diary.batch({b"b-%d" % number: b"b" * 200 for number in range(3)})  # begins a segment


def _deletes(diary: Diary) -> None:
    diary.delete(b"k-1")
    diary.delete(b"k-3")


def _syncs(diary: Diary) -> None:
    diary.put(b"new", b"1")
    diary.sync()


def _rolls(diary: Diary) -> None:
    for number in range(7):
        diary.put(b"r-%d" % number, b"r" * 180)


def _compacts(diary: Diary) -> None:
    diary.compact()
    diary.put(b"new", b"1")
    diary.compact()


def _closes(diary: Diary) -> None:
    diary.put(b"new", b"1")
    diary.close()


ACTIONS = {
    function.__name__[1:]: function for function in (_puts, _batches, _deletes, _syncs, _rolls, _compacts, _closes)
}


def _fail_each_sync(path: Path, files_class: type[FailingSyncs], action: str, **options: Any) -> Iterator[Diary]:
    """Yield a diary for k = 1, 2, …, the k-th sync of the action having failed, until none fails any more."""
    k = 0
    while True:
        k += 1
        files = files_class()
        diary = _begin(path.with_name(f"store-{k}"), files, **options)
        files.fail_sync(k)
        ACTIONS[action](diary)
        if not files.has_failed.is_set():
            files.fail_sync(0)
            diary.store.close()
            assert k > 1 or (action in ("puts", "deletes") and options["sync"] != "always")
            return
        yield diary


def _judge(diary: Diary) -> None:
    """See that the failure is known to everybody, and look at what it has left."""
    assert len(diary.errors) == 1
    # If the process lived on, nothing that was acknowledged is lost (D3); the failed call is undecided.
    at_least = diary.store.durable_seq if isinstance(diary.files, LosingFiles) else diary.acknowledged
    if not diary.store.closed:
        diary.expect_refusal()
        diary.close()
    assert diary.files.after_failure == 0, "a failed sync was tried again"
    diary.expect_after_reopening(at_least=at_least)


@ios
@modes
@pytest.mark.parametrize("action", ACTIONS)
def test_the_kth_sync_fails(path: Path, action: str, sync: str, io: str) -> None:
    for diary in _fail_each_sync(path, FailingSyncs, action, sync=sync, io=io):
        _judge(diary)


@ios
@modes
@pytest.mark.parametrize("action", ACTIONS)
def test_a_disk_that_drops_what_it_could_not_write(path: Path, action: str, sync: str, io: str) -> None:
    """The cache still shows what the medium never got. Opening must not build on it: a power cut would take it away."""
    for diary in _fail_each_sync(path, LosingFiles, action, sync=sync, io=io):
        _judge(diary)


def failed_syncs(place: Path, seed: int) -> Iterator[Case]:
    """Fail each sync of each action, on both disks, with segments of several sizes; a case is a failure."""
    modes = itertools.product(("interval", "always", "os"), ("mmap", "pread"))
    all_ways = [
        (size, files_class, action, *mode)
        for size, files_class, action, mode in itertools.product(
            (500, 300), (FailingSyncs, LosingFiles), ACTIONS, modes
        )
    ]
    for number, (size, files_class, action, sync, io) in enumerate(random.Random(seed).sample(all_ways, len(all_ways))):
        folder = place / f"failed-{number}"
        folder.mkdir()
        how = {"sync": sync, "io": io, "segment_size_bytes": size}
        for k, diary in enumerate(_fail_each_sync(folder / "store", files_class, action, **how), 1):
            try:
                _judge(diary)
            except WRONG as error:
                error.add_note(f"sync {k} of {action}, {files_class.__name__}, {how}")
                yield Case("failed syncs", error)
            else:
                yield Case("failed syncs")
        shutil.rmtree(folder)


@ios
def test_opening_reads_the_medium_and_not_the_cache(path: Path, io: str) -> None:
    files = LosingFiles()
    db = open_store(path, files=files, io=io, sync="always")
    db[b"kept"] = b"1"
    files.fail_sync(1)
    with pytest.raises(StoreFailedError):
        db[b"lost"] = b"2"
    assert b"lost" not in db
    assert db[b"kept"] == b"1"
    crash(db)
    segment = str(path / "0000000001.seg")
    assert b"lost" in Path(segment).read_bytes(), "the cache shows it still"
    assert list(files.lost) == [segment]

    db = open_store(path, files=files, io=io, sync="always")
    assert files.forgotten == [segment], "the cache was not given up before the scan"
    assert dict(db) == {b"kept": b"1"}
    db[b"next"] = b"3"
    assert db.last_seq == 2
    crash(db)
    assert dict(open_store(path, "r", files=files)) == {b"kept": b"1", b"next": b"3"}


def _wait_for_the_worker(store: Store, files: FailingSyncs) -> None:
    assert files.has_failed.wait(TIMEOUT_S), "the worker never synced"
    store._worker.stop()  # and now it has said so


@ios
@pytest.mark.parametrize("k", [1, 2])
def test_a_failure_in_the_background_is_told_by_the_next_call(path: Path, io: str, k: int) -> None:
    files = FailingSyncs()
    diary = Diary(path, files, sync="interval", sync_interval_s=0.001, io=io, segment_size_bytes=1 << 20)
    store = diary.store
    diary.put(b"k-1", b"1")  # its own segment's syncs are over before the first one of the worker
    files.fail_sync(k, of=lambda path: path.endswith(".seg"))
    number = 1
    while not files.has_failed.wait(0.002):
        number += 1
        try:
            store.put(b"k-%d" % number, b"x")
        except StoreFailedError:
            number -= 1  # it came before this put or after, which is in the store then
            break
        diary.states.append(diary.states[-1] | {b"k-%d" % number: b"x"})
        diary.acknowledged += 1
        assert number < 10_000, "the worker never synced"
    _wait_for_the_worker(store, files)
    diary.states.append(diary.states[-1] | {b"k-%d" % (number + 1): b"x"})
    diary.expect_refusal()
    with pytest.raises(StoreFailedError):
        store.close()
    assert files.after_failure == 0
    diary.expect_after_reopening(at_least=diary.acknowledged)


@pytest.mark.parametrize("call", ["put", "sync", "close"])
def test_each_first_call_after_a_failure_in_the_background_raises(path: Path, call: str) -> None:
    files = FailingSyncs()
    store = open_store(path, files=files, sync="interval", sync_interval_s=0.001)
    store[b"warm"] = b"up"
    store.sync()
    assert store.failure is None
    files.fail_sync(1)
    with contextlib.suppress(StoreFailedError):  # the disk was so slow that the writer synced himself
        store[b"a"] = b"1"
    _wait_for_the_worker(store, files)
    assert store.failure is not None
    calls = {"put": lambda: store.put(b"b", b"2"), "sync": store.sync, "close": store.close}
    with pytest.raises(StoreFailedError, match="sync failed"):
        calls[call]()
    assert store.closed or store[b"a"] == b"1"
    if not store.closed:
        with pytest.raises(StoreFailedError):
            store.close()
    assert files.after_failure == 0


class _HungSyncs(FailingSyncs):
    """The disk hangs, somebody presses Ctrl-C, and then the sync fails: the interrupt is raised where that is met."""

    def sync(self, descriptor: int, path: str) -> None:
        try:
            super().sync(descriptor, path)
        except StoreFailedError:
            raise KeyboardInterrupt from None


@modes
@pytest.mark.parametrize("call", ["sync", "close", "compact", "roll"])
def test_a_failure_that_an_interrupt_hides_is_told_by_the_next_sync(path: Path, call: str, sync: str) -> None:
    """Nobody was told, and the next sync succeeded without what was lost: it was acknowledged, with a clean end."""
    files = _HungSyncs()
    store = open_store(path, files=files, sync=sync, sync_interval_s=3600, segment_size_bytes=500)
    store[b"a"] = b"1"
    calls = {
        "sync": store.sync,
        "close": store.close,
        "compact": store.compact,
        "roll": lambda: store.update({b"large": bytes(450)}),
    }
    store[b"a"] = b"2"  # something to compact
    files.fail_sync(1, of=lambda path: path.endswith("1.seg"))
    if sync == "always":
        with pytest.raises(KeyboardInterrupt):
            store[b"b"] = b"2"
    else:
        store[b"b"] = b"2"
        with pytest.raises(KeyboardInterrupt):
            calls[call]()
    assert files.has_failed.is_set()
    if call != "close" or sync == "always":
        with pytest.raises(StoreFailedError):
            store.sync()
        with pytest.raises(StoreFailedError):
            store[b"c"] = b"3"
        with pytest.raises(StoreFailedError):
            store.close()
    assert store.closed
    assert files.after_failure == 0, "a failed sync was tried again"


def test_an_interrupt_between_the_systems_error_and_ours(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = bytekv.open(path, sync="os")
    store["a"] = "1"

    def hang(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    def interrupted(error: BaseException) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        for name in ("fdatasync", "fsync"):
            patch.setattr(os, name, hang, raising=False)
        patch.setattr("bytekv.engine.log.files.is_interrupt", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.sync()
    with pytest.raises(StoreFailedError):
        store.sync()
    with pytest.raises(StoreFailedError):
        store.close()


@pytest.mark.parametrize("met", [BrokenPipeError(errno.EPIPE, "Broken pipe"), StoreFailedError("another store")])
def test_what_a_handler_meets_of_its_own_is_no_failed_sync(path: Path, met: Exception) -> None:
    """It writes to a pipe that nobody reads any more, or to another store that has failed, and ends the program."""
    files = FailingSyncs()
    store = open_store(path, files=files, sync="os")
    store["a"] = "1"

    def handle() -> None:
        try:
            raise met
        except (OSError, StoreFailedError):
            raise SystemExit from None

    sync = files.sync

    def interrupted_sync(descriptor: int, path: str) -> None:
        sync(descriptor, path)
        handle()

    files.sync = interrupted_sync  # type: ignore[method-assign]
    with pytest.raises(SystemExit):
        store.sync()
    files.sync = sync  # type: ignore[method-assign]
    store["b"] = "2"
    store.sync()
    store.close()


@pytest.mark.parametrize("sync", ["os", "always"])
@pytest.mark.parametrize("call", ["sync", "compact", "progress"])
def test_the_failure_of_another_store_is_not_this_ones(path: Path, sync: str, call: str) -> None:
    """A signal handler, or what is told the progress of a compaction, writes to a store that has failed: what that
    says comes out of the call of this one, which refused all writes from then on."""
    files = FailingSyncs()
    store = open_store(path, files=files, sync=sync, segment_size_bytes=500)
    disk = FailingSyncs()
    other = open_store(path.with_name(path.name + "-2"), files=disk, sync="always")
    disk.fail_sync(1)
    with pytest.raises(StoreFailedError):
        other["a"] = "1"
    for number in range(20):
        store[b"%d" % (number % 5)] = bytes(100)
    expected = dict(store) | {b"0": b"new"}
    own_sync = files.sync

    def interrupted_sync(descriptor: int, path: str) -> None:
        own_sync(descriptor, path)
        other["b"] = "2"

    if call != "progress":
        files.sync = interrupted_sync  # type: ignore[method-assign]
    with pytest.raises(StoreFailedError, match="-2: writes"):
        if call == "sync":
            store["0"] = "new"
            store.sync()
        else:
            store.compact(progress=lambda progress: other.put("b", "2"))
    files.sync = own_sync  # type: ignore[method-assign]
    assert store.failure is None
    store["0"] = "new"
    store.compact()
    assert dict(store) == expected
    store.close()
    with pytest.raises(StoreFailedError):
        other.close()
    with open_store(path) as again:
        assert dict(again) == expected
        assert again.verify().ok


class _HeldSyncs(FailingSyncs):
    """Syncs of segments that wait until a number of operations has been appended behind the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = threading.Event()
        self.go = threading.Event()
        self.appended = threading.Semaphore(0)
        self.holds = False
        clock = self.clock_ns

        def counted() -> int:
            self.appended.release()  # each put asks for the time once, while it is appended
            return clock()

        self.clock_ns = counted  # type: ignore[method-assign]

    def sync(self, descriptor: int, path: str) -> None:
        if self.holds and path.endswith(".seg"):
            self.inside.set()
            assert self.go.wait(TIMEOUT_S)
        super().sync(descriptor, path)


@ios
@pytest.mark.parametrize("k", [1, 2])
def test_all_who_wait_for_the_sync_are_told(path: Path, io: str, k: int) -> None:
    """Eight threads put. One leads a sync that covers its own put; seven wait for the next one.

    If the first fails, all eight are told after one sync; if the second, seven are, and one put is durable.
    """
    files = _HeldSyncs()
    store = open_store(path, files=files, sync="always", io=io)
    store[b"warm"] = b"up"
    files.holds = True
    files.fail_sync(k)
    outcomes: dict[bytes, object] = {}

    def put(key: bytes) -> None:
        try:
            outcomes[key] = store.put(key, b"v")
        except Exception as error:
            outcomes[key] = error

    keys = [b"t-%d" % number for number in range(8)]
    threads = [threading.Thread(target=put, args=(key,)) for key in keys]
    while files.appended.acquire(blocking=False):
        pass
    threads[0].start()
    assert files.inside.wait(TIMEOUT_S)
    for thread in threads[1:]:
        thread.start()
    for _ in keys:
        assert files.appended.acquire(timeout=TIMEOUT_S), "not all have appended"
    with store._commit.state.lock:  # and now the last of them is done with that
        assert len(store._commit.state.queue.changes) == 8
    files.go.set()
    for thread in threads:
        thread.join(TIMEOUT_S)
        assert not thread.is_alive(), "left waiting"

    told = [key for key in keys if isinstance(outcomes[key], StoreFailedError)]
    done = [key for key in keys if isinstance(outcomes[key], int)]
    assert (len(told), len(done)) == ((8, 0) if k == 1 else (7, 1)), outcomes
    assert files.after_failure == 0, "a failed sync was tried again"
    assert files.syncs == k
    assert sorted(store) == sorted([b"warm", *done]), "what is not durable must not be visible"
    assert store.durable_seq == store.last_seq == 1 + len(done)
    with pytest.raises(StoreFailedError):
        store.close()
    files.holds = False
    with open_store(path, files=files) as store:
        seqs = sorted(store.entry(key).seq for key in store)
        assert seqs == list(range(1, len(seqs) + 1)), "a hole"
        assert {b"warm", *done} <= set(store)


@ios
def test_one_error_for_two_syncs_of_the_same_file(path: Path, io: str) -> None:
    """The kernel tells a write error once for each open file: to a roll's sync, or to the waiting writer's.

    The roll got it. The writer's own sync then returned 0, and its put was acknowledged though nobody could say that
    its bytes had reached the disk.
    """
    files = _HeldSyncs()
    store = open_store(path, files=files, sync="always", io=io, segment_size_bytes=500)
    store[b"warm"] = b"up"
    files.holds = True
    outcome: list[object] = []

    def put() -> None:
        try:
            outcome.append(store.put(b"a", b"1"))
        except StoreFailedError as error:
            outcome.append(error)

    writer = threading.Thread(target=put)
    writer.start()
    assert files.inside.wait(TIMEOUT_S)
    files.holds = False
    files.fail_sync(1, of=lambda path: path.endswith("1.seg"))
    with pytest.raises(StoreFailedError):
        store[b"b"] = b"v" * 400  # the roll syncs the old segment
    files.go.set()
    writer.join(TIMEOUT_S)
    assert isinstance(outcome[0], StoreFailedError)
    assert (store.durable_seq, dict(store)) == (1, {b"warm": b"up"})
    with pytest.raises(StoreFailedError):
        store.close()


def test_a_failed_sync_while_an_interrupted_compaction_is_finished(path: Path) -> None:
    """What the next compaction finds to do first fails like its own work does: the store takes no more writes."""
    files = FailingSyncs()
    store = open_store(path, files=files, segment_size_bytes=500)
    for number in range(20):
        store[b"%d" % (number % 7)] = b"v" * 100
    content = dict(store)

    def interrupt() -> None:
        if store._segments.obsolete.zombies:  # it is published, and keys are being pointed at the copies
            raise KeyboardInterrupt

    victims = [row.segment_id for row in store._segments.sealed()]
    with pytest.raises(KeyboardInterrupt):
        store._maintenance.compactor.run(victims, interrupt, lambda _: None)
    files.fail_sync(1, of=lambda where: where == str(path))
    with pytest.raises(StoreFailedError):
        store.compact()
    assert store.failure is not None
    with pytest.raises(StoreFailedError):
        store[b"a"] = b"1"
    assert dict(store) == content
    with pytest.raises(StoreFailedError):
        store.close()
    with open_store(path) as store:
        assert dict(store) == content
        assert store.verify().ok


@modes
def test_a_failed_sync_while_opening_fails_the_opening_and_gives_the_lock_back(path: Path, sync: str) -> None:
    files = FailingSyncs()
    db = open_store(path, files=files, sync=sync)
    for number in range(5):
        db[b"k-%d" % number] = b"v"
    content = dict(db)
    crash(db)
    k = 0
    while True:
        k += 1
        files.fail_sync(k)
        try:
            db = open_store(path, files=files, sync=sync)
        except StoreFailedError:
            assert files.after_failure == 0
            continue
        break
    assert k >= 4  # names, the segment, the manifest, its name
    assert dict(db) == content
    db.close()


def test_a_change_that_was_shown_by_half_is_shown_before_a_later_sync_fails(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was durable, and an interrupt had struck while it was being shown. When the next sync failed, all that waited
    was forgotten, and half of the batch stayed visible for as long as the store was open."""
    files = FailingSyncs()
    db = open_store(path, files=files, sync="always")
    put, puts = db._keydir.put, itertools.count()

    def put_and_be_struck(*arguments: Any) -> None:
        put(*arguments)
        if next(puts) == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(db._keydir, "put", put_and_be_struck)
    with pytest.raises(KeyboardInterrupt):
        db.update({b"a": b"1", b"b": b"2"})
    files.fail_sync(1)
    with pytest.raises(StoreFailedError):
        db[b"other"] = b"1"
    assert dict(db) == {b"a": b"1", b"b": b"2"}
    with pytest.raises(StoreFailedError):
        db.close()
    with open_store(path) as db:
        assert db.keys() >= {b"a", b"b"}
