"""Every system call fails once, and every one for ever (D1, D11): an error of bytekv's own, no effect, no leak.

One run: build a store, let the N-th call of one kind fail during one scenario, then ask

- that nothing but a `BytekvError` was raised, and for a lack of space a `DiskFullError`;
- that what failed has not happened, and readers never notice; after a failed sync, and where a write said that its
  outcome is unknown because the system had refused to tell, that it has happened or has not;
- that the store takes writes again once the fault is over, or refuses all after one of those two (D7, D11);
- that `close` gives back the lock and every descriptor, whatever it has to say;
- that the directory, opened with nothing failing, holds what was acknowledged and verifies.

The default run takes a sample that changes the errno from call to call; `failed_calls` is for the deep run.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import io
import itertools
import os
import random
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import pytest

import bytekv
from bytekv.engine.index.keydir import Keydir
from bytekv.engine.store import Store
from bytekv.errors import BytekvError, CorruptionError, DiskFullError, StoreFailedError, StoreIOError
from tests.support.fault_files import ERRNOS, HARMLESS_TO_READERS, KINDS, FailingSyncs, SystemCalls
from tests.support.harness import WRONG, Case, QuickFiles, crash, damage, open_store, segment_files

Content = dict[bytes, bytes]

SYNCS = ("interval", "always", "os")
IOS = ("mmap", "pread")


class Fault(NamedTuple):
    """One way to fail."""

    kind: str
    number: int
    name: str  # of an errno, or "short"
    for_ever: bool
    stays: bool  # until after close()
    sync: str
    io: str

    def arm(self, calls: SystemCalls) -> None:
        if self.name == "short":
            calls.shorten(self.kind, self.number, for_ever=self.for_ever)
        else:
            calls.fail(self.kind, self.number, ERRNOS[self.name], for_ever=self.for_ever)


class Log:
    """One store under faults: what was acknowledged, and what it may therefore hold."""

    def __init__(self, path: Path, calls: SystemCalls, fault: Fault) -> None:
        self.path, self.calls, self.fault = path, calls, fault
        self.store: Store | None = None
        self.acceptable: list[Content] = [{}]
        self.refused: list[BytekvError] = []
        self.failed_syncs = 0  # before the store was opened
        self.has_unknown_write = False  # since the store was opened: a write has said so

    @property
    def options(self) -> dict[str, Any]:
        # The hour: which call is the N-th must not depend on time.
        fault = self.fault
        return {
            "sync": fault.sync,
            "io": fault.io,
            "sync_interval_s": 3600,
            "segment_size_bytes": 600,
            "compact_dead_bytes": 1,
            "compact_dead_ratio": 0.1,
        }

    def open(self, flag: str = "c", **more: Any) -> Store:
        """Open the store; an error leaves the book without one."""
        self.store = None
        self.attempt(lambda: setattr(self, "store", open_store(self.path, flag, **self.options, **more)))
        if self.store is not None:
            # Which call is the N-th must not depend on a thread either: the worker has tests of its own.
            self.store._commit.durability._wake = lambda: True
            self.failed_syncs = self.calls.failed_syncs
            self.has_unknown_write = False
        return self.store  # type: ignore[return-value]

    @property
    def is_poisoned(self) -> bool:
        """Tell whether a sync has failed, or a write is of unknown outcome, since the store was opened."""
        return self.has_unknown_write or self.calls.failed_syncs > self.failed_syncs

    def attempt(self, call: Callable[[], object], change: Callable[[Content], Content] | None = None) -> bool:
        """Make a call that may fail; ``change`` is what it does to the content if it does not."""
        before, unknown = self.calls.failed_syncs, self.calls.unknown_writes
        changed = [change(content) for content in self.acceptable] if change else []
        try:
            call()
        except BytekvError as error:
            self.refused.append(error)
            is_unknown = isinstance(error, StoreFailedError) and self.calls.unknown_writes > unknown
            self.has_unknown_write |= is_unknown
            self._check_kind(error)
            if self.calls.failed_syncs > before or is_unknown:
                self.acceptable += changed  # undecided
            _forget_frames(error)
            return False
        assert self.calls.failed_syncs == before, "a sync failed and nobody was told"
        if change:
            assert not self.is_poisoned, "a write was accepted after a failed sync or an unknown write"
            self.acceptable = changed
        return True

    def _check_kind(self, error: BytekvError) -> None:
        assert not isinstance(error, CorruptionError), f"an error of the disk taken for damage: {error}"
        fault = self.fault
        if self.calls.failed_syncs or (self.has_unknown_write and isinstance(error, StoreFailedError)):
            return
        assert isinstance(error, OSError), f"{error!r} for {fault}"
        if fault.kind in ("allocate", "write") and fault.name in ("ENOSPC", "EDQUOT"):
            assert isinstance(error, DiskFullError), f"{error!r} for {fault}"

    # --- verbs ---------------------------------------------------------------------------------

    def put(self, key: bytes, value: bytes) -> None:
        if self.store is not None:
            self.attempt(lambda: self.store.put(key, value), lambda content: content | {key: value})

    def delete(self, key: bytes) -> None:
        if self.store is not None:
            self.attempt(lambda: self.store.delete(key), lambda content: {k: v for k, v in content.items() if k != key})

    def batch(self, puts: Content, deletes: list[bytes]) -> None:
        if self.store is None:
            return
        batch = self.store.batch()
        for key, value in puts.items():
            batch[key] = value
        for key in deletes:
            del batch[key]
        self.attempt(batch.commit, lambda content: {k: v for k, v in (content | puts).items() if k not in deletes})

    def call(self, name: str) -> None:
        """Call a method that changes nothing that a user sees."""
        if self.store is not None:
            self.attempt(getattr(self.store, name))

    # --- checks --------------------------------------------------------------------------------

    def expect_readable(self) -> None:
        assert self.store is not None
        found = dict(self.store.items())
        assert found in self.acceptable, f"found {found}, acceptable {self.acceptable}"
        for key, value in found.items():
            assert self.store[key] == value


def _kept() -> Content:
    content = {b"kept-%d" % number: b"v%d" % number * 20 for number in range(8)}
    content[b"large"] = b"L" * 9000  # its location does not know its size
    content[b"gone"] = b"g"
    return content


def _build(store: Store) -> None:
    """Leave a few sealed segments, dead bytes in each, a tombstone, and an active one with room."""
    for round_ in range(3):
        for key, value in _kept().items():
            if key != b"large" or round_ == 2:
                store[key] = b"old" if round_ < 2 else value
    store[b"dropped"] = b"d"
    store.put(b"fleeting", b"f", ttl=3600)
    del store[b"dropped"]
    del store[b"fleeting"]


# --- scenarios: what happens while calls fail ----------------------------------------------------


def puts(log: Log) -> None:
    log.put(b"new", b"1")
    log.put(b"kept-1", b"2" * 50)
    log.put(b"huge", b"h" * 70_000)


def deletes(log: Log) -> None:
    log.delete(b"kept-1")
    log.delete(b"gone")
    log.delete(b"never")


def batches(log: Log) -> None:
    log.batch({b"new": b"1", b"kept-2": b"2"}, [b"kept-1", b"never"])
    log.batch({b"b-%d" % number: b"b" * 100 for number in range(9)}, [])


def transactions(log: Log) -> None:
    def transact() -> None:
        assert log.store is not None
        with log.store.transaction() as tx:
            tx[b"new"] = tx[b"kept-1"]
            tx[b"kept-2"] = b"2" * 300
            del tx[b"gone"]

    def change(content: Content) -> Content:
        changed = content | {b"new": content[b"kept-1"], b"kept-2": b"2" * 300}
        del changed[b"gone"]
        return changed

    if log.attempt(transact, change):
        log.delete(b"new")
    log.put(b"newer", b"1")  # nobody is left at the gate


def snapshots(log: Log) -> None:
    store = log.store
    assert store is not None
    snapshot = store.snapshot()
    log.put(b"kept-1", b"changed")
    log.delete(b"kept-2")
    log.call("compact")
    log.put(b"kept-3", b"changed")
    before = _kept()
    log.attempt(lambda: _expect_equal(dict(snapshot.items()), before))
    log.attempt(lambda: _expect_equal(snapshot[b"kept-2"], before[b"kept-2"]))
    log.attempt(snapshot.close)
    log.call("compact")


def _expect_equal(found: object, wanted: object) -> None:
    assert found == wanted


def syncs(log: Log) -> None:
    log.put(b"new", b"1")
    log.call("sync")
    log.put(b"newer", b"2")
    log.call("sync")
    log.call("sync")


def rolls(log: Log) -> None:
    for number in range(12):
        log.put(b"r-%d" % number, b"r" * 150)


def compacts(log: Log) -> None:
    log.call("compact")
    log.put(b"kept-1", b"after")
    log.call("compact")


def works_in_the_background(log: Log) -> None:
    log.put(b"huge", b"h" * 70_000)  # so that a hint is due
    log.put(b"new", b"1")
    store = log.store
    assert store is not None
    store._maintenance.may_compact = True
    for _ in range(2):
        try:
            store._work()
        except Exception as error:  # as the worker's thread does
            store._work_failed(error)


def closes(log: Log) -> None:
    log.put(b"huge", b"h" * 70_000)  # so that a hint is due
    log.put(b"new", b"1")
    _close(log)


def reopens_after_a_crash(log: Log) -> None:
    log.put(b"new", b"1")
    if log.store is not None:
        crash(log.store)
    log.open()
    log.put(b"newer", b"2")


def reopens(log: Log) -> None:
    _close(log)
    log.open("w")
    log.put(b"newer", b"2")


def creates(log: Log) -> None:
    log.open("c")
    log.put(b"new", b"1")


def empties(log: Log) -> None:
    _close(log)
    held = log.acceptable
    log.open("n")
    log.acceptable = [{}] if log.store is not None else [*held, {}]
    log.put(b"new", b"1")


def reads_beside_a_writer(log: Log) -> None:
    writer = log.store
    assert writer is not None
    log.open("r")
    if log.store is not None:
        log.attempt(log.expect_readable)
        log.call("close")
    log.store = writer


def reads(log: Log) -> None:
    store = log.store
    assert store is not None
    log.attempt(lambda: log.expect_readable())
    log.attempt(lambda: store.get_many(_kept()))
    log.attempt(lambda: store.stats())
    log.attempt(lambda: store.verify())


def repairs(log: Log) -> None:
    log.attempt(lambda: bytekv.repair(log.path))


def opens_to_salvage(log: Log) -> None:
    log.open("w", recover="salvage")
    log.put(b"new", b"1")


def _close(log: Log) -> None:
    store, log.store = log.store, None
    if store is not None:
        log.attempt(store.close)
        assert store.closed
        store.close()  # the second does nothing
        expect_nothing_open(log.path)


DAMAGED = ("repairs", "opens_to_salvage")  # begin with a store that is closed, and damaged

SCENARIOS: dict[str, Callable[[Log], None]] = {
    function.__name__: function
    for function in (
        puts,
        deletes,
        batches,
        transactions,
        snapshots,
        syncs,
        rolls,
        compacts,
        works_in_the_background,
        closes,
        reopens_after_a_crash,
        reopens,
        creates,
        empties,
        reads_beside_a_writer,
        reads,
        repairs,
        opens_to_salvage,
    )
}


def _damage(path: Path) -> None:
    """Flip a bit in an entry that lives, in the middle of a sealed segment."""
    for file in segment_files(path):
        offset = file.read_bytes().find(b"v3v3v3")
        if offset > 0:
            damage(file, offset)
            return
    raise AssertionError("no such entry")


def _forget_frames(error: BaseException | None) -> None:
    """Let go of the frames of an error and of those before it: they keep half-made objects alive."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


# --- one run -------------------------------------------------------------------------------------


def _open_files(path: Path) -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that lists the directory
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return [target for target in found if target.startswith(str(path))]


def expect_nothing_open(path: Path) -> None:
    assert not _open_files(path), f"left open: {_open_files(path)}"


@contextlib.contextmanager
def watching_for_circles() -> Iterator[None]:
    """Collect no garbage but what `expect_no_circles` asks for, and of that only what is new."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def expect_no_circles(what: object) -> None:
    """No error, store or file may wait for the garbage collector: it keeps descriptors and disk blocks meanwhile."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        kept = [
            repr(thing)
            for thing in gc.garbage
            if isinstance(thing, (BaseException, FrameType, io.IOBase)) or type(thing).__module__.startswith("bytekv.")
        ]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.collect()
    assert not kept, f"only the garbage collector frees this after {what}: {kept}"


class Bench:
    """Template directories, built once for each sync mode and way of writing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._templates: dict[tuple[str, str], Path] = {}
        self._repaired: Content = {}

    def prepare(self, scenario: str, fault: Fault, log: Log) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if scenario == "creates":
            return
        key = fault.sync, fault.io
        template = self.path.with_name(f"template-{fault.sync}-{fault.io}")
        if key not in self._templates:
            with open_store(template, **log.options) as store:
                _build(store)
            self._templates[key] = template
        shutil.copytree(template, self.path)
        log.acceptable = [_kept()]
        if scenario in DAMAGED:
            _damage(self.path)
            if not self._repaired:
                copy = self.path.with_name("repaired")
                shutil.copytree(self.path, copy)
                bytekv.repair(copy)
                with open_store(copy) as store:
                    self._repaired = dict(store.items())
                lost = dict(_kept().items() - self._repaired.items())
                assert list(lost) == [b"kept-3"]
            log.acceptable = [self._repaired]
        else:
            log.open("w")

    def run(self, scenario: str, fault: Fault, calls: SystemCalls) -> None:
        """Carry out one scenario with one fault; what it was shows in the failed assertion."""
        calls.lift()
        log = Log(self.path, calls, fault)
        self.prepare(scenario, fault, log)
        fault.arm(calls)
        log.failed_syncs = 0
        try:
            SCENARIOS[scenario](log)
            if log.store is not None and fault.kind in HARMLESS_TO_READERS:
                log.expect_readable()
            if not fault.stays:
                calls.lift()
            self._aftermath(scenario, log, fault, calls)
        except BaseException as error:
            error.add_note(f"{scenario} with {fault}; calls: {' '.join(calls.log[-60:])}; refused: {log.refused}")
            calls.lift()
            if log.store is not None:
                crash(log.store)
            raise

    def _aftermath(self, scenario: str, log: Log, fault: Fault, calls: SystemCalls) -> None:
        failed, opened = log.is_poisoned, log.store is not None
        if fault.name == "short":
            assert not log.refused, f"short reads and writes are nobody's business: {log.refused}"
        if opened and not fault.stays:
            log.expect_readable()
            if failed:
                _expect_refusal(log.store)
            else:
                log.put(b"after", b"a" * 10)
                log.delete(b"kept-3")
                assert log.acceptable[0].get(b"after"), f"not writable again: {log.refused[-1]}"
                log.expect_readable()
                report = log.store.verify()
                assert report.ok, report
        if opened:
            refused = len(log.refused)
            _close(log)
            if failed:
                assert isinstance(log.refused[-1], StoreFailedError), "close() was silent about what had failed"
            elif not fault.stays:
                assert len(log.refused) == refused, f"close() failed with nothing in its way: {log.refused[-1]}"
        assert calls.syncs_after_failure == 0 or not failed or not opened, "a failed sync was tried again"
        calls.lift()
        expect_nothing_open(log.path)
        if scenario in DAMAGED:
            bytekv.repair(log.path)  # after an interrupted one, or a second time
        with open_store(log.path, "c") as store:
            log.store = store
            log.expect_readable()
            report = store.verify()
            assert report.ok, report
            store[b"again"] = b"1"
            log.acceptable = [dict(store.items())]
        with open_store(log.path, "r") as store:
            log.store = store
            log.expect_readable()
            assert store.recovery.clean
        log.store = None


def _expect_refusal(store: Store | None) -> None:
    assert store is not None
    for name, call in {
        "put": lambda: store.put(b"after", b"a"),
        "delete": lambda: store.delete(b"kept-3"),
        "sync": store.sync,
    }.items():
        with pytest.raises(StoreFailedError):
            call()
            pytest.fail(f"{name}() was accepted after a failure")


# --- which runs ----------------------------------------------------------------------------------


def _counts(bench: Bench, scenario: str, sync: str, io: str, calls: SystemCalls) -> dict[str, int]:
    fault = Fault("", 0, "EIO", False, False, sync, io)
    calls.lift()
    log = Log(bench.path, calls, fault)
    bench.prepare(scenario, fault, log)
    calls.count()
    SCENARIOS[scenario](log)
    assert not log.refused
    counts = dict(calls.counts)
    _close(log)
    return counts


def _ways(kind: str, number: int, sync: str, io: str) -> list[Fault]:
    """List every way in which one call can fail."""
    names = [*ERRNOS, "short"] if kind in ("read", "write") else [*ERRNOS]
    how_long = [(False, False), (True, False), (True, True)]
    return [Fault(kind, number, name, *how, sync, io) for name in names for how in how_long]


def _calls(counts: dict[str, int]) -> Iterator[tuple[str, int]]:
    for kind in (*KINDS, "any"):
        yield from ((kind, number) for number in range(1, counts.get(kind, 0) + 1))


def _run(bench: Bench, scenario: str, fault: Fault, calls: SystemCalls) -> None:
    bench.run(scenario, fault, calls)
    assert calls.struck, f"{fault} never happened"
    expect_no_circles(fault)


def _run_some(path: Path, scenario: str, sync: str, io: str, step: int) -> int:
    bench, runs = Bench(path), 0
    with SystemCalls() as calls, watching_for_circles():
        counts = _counts(bench, scenario, sync, io, calls)
        faults = (fault for kind, number in _calls(counts) for fault in _ways(kind, number, sync, io))
        for fault in itertools.islice(faults, len(scenario) % step, None, step):
            _run(bench, scenario, fault, calls)
            runs += 1
    return runs


def failed_calls(place: Path, seed: int) -> Iterator[Case]:
    """Fail every call of every scenario in every mode once, in one of its ways; then all of them in another, and so on.

    The order is the seed's. There are 18 or 21 ways, so it takes 21 rounds until everything has failed in every way.
    """
    bench = Bench(place / "store")
    with SystemCalls() as calls, watching_for_circles():
        modes = [(scenario, sync, io) for scenario in SCENARIOS for sync in SYNCS for io in IOS]
        places = [(mode, call) for mode in modes for call in _calls(_counts(bench, *mode, calls))]
        random.Random(seed).shuffle(places)
        for turn in range(21):
            kind = "system calls, each failed once" if turn == 0 else "system calls, failed in other ways"
            for (scenario, sync, io), (name, number) in places:
                ways = _ways(name, number, sync, io)
                if turn >= len(ways):
                    continue
                fault = ways[(seed + number + turn) % len(ways)]
                try:
                    _run(bench, scenario, fault, calls)
                except WRONG as error:
                    yield Case(kind, error)
                else:
                    yield Case(kind)
            if turn == 0:
                yield Case(kind, count=0, is_last=True)


# 151 has no factor in common with the 18 or 21 ways to fail that one call has: the sample walks through them all.
@pytest.mark.parametrize("io", IOS)
@pytest.mark.parametrize("sync", SYNCS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_some_calls_fail(path: Path, scenario: str, sync: str, io: str) -> None:
    assert _run_some(path, scenario, sync, io, 151) > 0


# --- what a caught error keeps -------------------------------------------------------------------


@pytest.mark.parametrize("io", IOS)
def test_a_caught_error_keeps_no_replaced_file_open(path: Path, io: str) -> None:
    """From Python 3.12 on, an error and the generator that had translated it held each other.

    With them went the frames of the failed call and the segment in their hands: it was replaced by a compaction
    and unlinked, yet its blocks came back to the disk only when garbage happened to be collected.
    """
    with SystemCalls() as calls, watching_for_circles():
        store = open_store(path, io=io, segment_size_bytes=600, max_open_segments=4)
        _build(store)
        for kind in ("read", "write", "allocate", "map"):
            for number in range(1, 6):
                calls.fail(kind, number, ERRNOS["EIO"])
                for call in (
                    lambda: store.put(b"huge", b"h" * 70_000),
                    lambda: dict(store.items()),
                    lambda: [store[key] for key in _kept()],
                    store.compact,
                ):
                    with contextlib.suppress(bytekv.BytekvError):
                        call()
                calls.lift()
                store.put(b"kept-1", b"%d" % number)
                store.compact()
                replaced = [name for name in _open_files(path) if name.endswith("(deleted)")]
                assert not replaced, f"{kind} {number}"
        store.close()
        expect_nothing_open(path)
        expect_no_circles("a few failed calls")


@pytest.mark.parametrize("io", IOS)
@pytest.mark.parametrize("sync", SYNCS)
def test_a_failed_sync_keeps_nothing_alive(path: Path, sync: str, io: str) -> None:
    """The error that had poisoned a store stayed in it, with the frames of the call, and these with the store."""
    with watching_for_circles():
        for number in range(1, 9):
            files = FailingSyncs()
            store = open_store(path, "n", files=files, sync=sync, io=io, segment_size_bytes=600)
            _build(store)
            files.fail_sync(number)
            with contextlib.suppress(StoreFailedError):
                for turn in range(4):
                    store.put(b"new", b"%d" % turn * 400)
                    store.compact()
            assert files.has_failed.is_set()
            refused = 0
            for name in ("sync", "close"):
                try:
                    getattr(store, name)()
                except StoreFailedError:
                    refused += 1
            assert refused == 2
            expect_nothing_open(path)
            gone = weakref.ref(store)
            del store
            assert gone() is None, f"sync {number}"
            expect_no_circles(f"sync {number}")


# --- what a failed write has left, and nobody can tell ---------------------------------------------


class HalfGone(QuickFiles):
    """A disk that once armed fails each write after some of it, cuts nothing off, and may not read it back either."""

    def __init__(self) -> None:
        super().__init__()
        self.share: float | None = None  # of the next write; None: nothing fails
        self.reads, self.cuts = True, False

    def write(self, descriptor: int, piece: bytes | memoryview, offset: int, path: str) -> None:
        if self.share is None:
            super().write(descriptor, piece, offset, path)
            return
        super().write(descriptor, memoryview(piece)[: int(len(piece) * self.share)], offset, path)
        raise DiskFullError(errno.ENOSPC, "No space left on device", path)

    def truncate(self, descriptor: int, size: int, path: str) -> None:
        if self.share is not None and not self.cuts:
            raise StoreIOError(errno.EIO, "Input/output error", path)
        super().truncate(descriptor, size, path)

    def read(self, descriptor: int, size: int, offset: int, path: str) -> bytes:
        if self.share is not None and not self.reads:
            raise StoreIOError(errno.EIO, "Input/output error", path)
        return super().read(descriptor, size, offset, path)


_CHANGES: dict[str, Callable[[Store], object]] = {
    "put": lambda store: store.put(b"new", b"1" * 20),
    "batch": lambda store: store.update({b"new": b"1" * 20, b"newer": b"2" * 20}),
    "delete": lambda store: store.delete(b"kept"),
}


@pytest.mark.parametrize("change", _CHANGES)
@pytest.mark.parametrize("reads", [True, False], ids=["it can be read back", "it cannot be read back"])
@pytest.mark.parametrize("share", [0, 0.5, 1])
@pytest.mark.parametrize("sync", SYNCS)
def test_a_write_is_refused_only_if_it_is_known_not_to_be_there(
    path: Path, sync: str, share: float, reads: bool, change: str
) -> None:
    """A put was refused with `DiskFullError`, "nothing was changed", and the next call carried it out.

    `pwrite` had failed, and so did the attempts to cut off what it had left and to read it back. Nobody can know then
    what the file holds, yet the caller heard the error of a read, and the put stayed to be redone.
    """
    files = HalfGone()
    store = open_store(path, files=files, sync=sync, sync_interval_s=3600, io="pread")
    before = {b"kept": b"k"}
    store.update(before)
    files.share, files.reads = share, reads
    is_known = reads and share < 1
    with pytest.raises(DiskFullError if is_known else StoreFailedError) as caught:
        _CHANGES[change](store)
    assert is_known or isinstance(caught.value.__cause__, DiskFullError)
    files.share = None
    assert dict(store.items()) == before
    if is_known:
        store[b"after"] = b"1"
        before[b"after"] = b"1"
    else:
        _expect_refusal(store)
    assert dict(store.items()) == before
    if is_known:
        store.close()
    else:
        with pytest.raises(StoreFailedError):
            store.close()
    with open_store(path, files=files) as store:
        if share == 1:
            with open_store(path.with_name("wanted"), files=files) as wanted:
                wanted.update(before)
                _CHANGES[change](wanted)
                before = dict(wanted.items())
        assert dict(store.items()) == before
        store[b"again"] = b"1"
    with open_store(path, files=files) as store:
        assert dict(store.items()) == before | {b"again": b"1"}


@pytest.mark.parametrize("cuts", [True, False], ids=["it can be cut off", "it cannot be cut off"])
@pytest.mark.parametrize("change", _CHANGES)
def test_what_an_interrupted_call_has_written_is_not_taken_back(
    path: Path, monkeypatch: pytest.MonkeyPatch, change: str, cuts: bool
) -> None:
    """An interrupted put that readers saw was written once more; that failed, and the entry was cut off.

    Its key pointed beyond the end of the file, the next entries followed a hole, and opening took them for a torn tail.
    """
    files = HalfGone()
    store = open_store(path, files=files, io="pread")
    store[b"kept"] = b"k"
    for name in ("apply", "write_all"):
        whole = getattr(Keydir, name)

        def interrupted(*arguments: Any, whole: Callable[..., Any] = whole) -> None:
            whole(*arguments)
            raise KeyboardInterrupt

        monkeypatch.setattr(Keydir, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        _CHANGES[change](store)
    monkeypatch.undo()
    files.share, files.cuts = 0.5, cuts
    with pytest.raises(DiskFullError):
        store[b"refused"] = b"1"
    files.share = None
    with open_store(path.with_name("wanted"), files=files) as wanted:
        wanted[b"kept"] = b"k"
        _CHANGES[change](wanted)
        wanted[b"after"] = b"2"
        content = dict(wanted.items())
    store[b"after"] = b"2"
    assert dict(store.items()) == content
    crash(store)
    with open_store(path, files=files) as store:
        assert dict(store.items()) == content
