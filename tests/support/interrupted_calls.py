"""Calls that are struck in the middle by an exception, and the judge of what they leave (D8).

A *case* is one call of one store in one mode, and one place in it at which an exception strikes. The judge asks

- that the call has happened or has not, as a whole: what readers see now is what was there before, or what a
  call that nobody interrupts leaves;
- that a kill at this moment leaves the same, and so does closing and opening again;
- that no lock stays taken, that snapshots still show their moment, that the store takes writes and verifies.

All cases begin with copies of one prepared directory, on a clock and random numbers that stand still. So many of them
end in the very same state, object for object in memory and byte for byte on disk: `fingerprint` tells, and one of them
is judged for all. Nothing else decides how a store goes on, but for the descriptors that an exception between
``os.open`` and its owner leaks, which no Python code can prevent; they are closed here.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import gc
import io
import os
import shutil
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from mmap import mmap
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sortedcontainers import SortedList

from bytekv.contract.snapshot import Snapshot
from bytekv.engine.log import lock as lock_module
from bytekv.engine.log.open_segments import PreadFile
from bytekv.engine.store import Store
from bytekv.errors import BytekvError
from tests.support.harness import FakeFiles, open_store

Content = dict[bytes, tuple[bytes, bool]]  # key -> value, and whether it expires
Files = dict[str, bytes]  # of a directory


class Mode(NamedTuple):
    """How a store is opened."""

    sync: str
    io: str

    def __str__(self) -> str:
        return f"{self.sync}-{self.io}"


MODES = [Mode(sync, io) for sync in ("interval", "always", "os") for io in ("mmap", "pread")]

#: For what goes the same way in each sync mode: reading and opening.
ANY_SYNC = [mode for mode in MODES if mode.sync == "interval"]

_SEGMENT_SIZE = 400
_HOUR = 3600


class Tally(NamedTuple):
    """What a method has shown: cases tried, what went wrong in them, and where the random numbers began."""

    cases: int
    violations: list[str]
    seed: int


# --- the calls -----------------------------------------------------------------------------------


#: What a caller holds on to beyond the call.
_kept: list[object] = []


def fill(store: Store) -> None:
    """Leave sealed segments with dead entries, a tombstone, an expiry and a large value in them."""
    store["large"] = b"L" * 8300  # its location does not know its size
    for turn in (b"older", b"old"):
        store["kept"] = turn * 20
        store["gone"] = turn
        store.put("due", turn, ttl=_HOUR)
    store.update({"n": b"41", "more-1": b"1", "more-2": b"2"})
    store["fleeting"] = b"f"
    del store["fleeting"]
    store["last"] = b"l" * 100  # begins a segment, and leaves room in it


def _warm(store: Store) -> None:
    store["warm"] = b"1"  # so that the next put may take the fast path


def _synced(store: Store) -> None:
    _warm(store)
    store.sync()
    _wake_of(store).called = False  # the worker would have gone to sleep by now


def _watched(store: Store) -> None:
    _warm(store)
    assert list(store)  # the index exists
    _kept.append(store.snapshot())


def _needed_little(store: Store) -> None:
    _watched(store)
    for key in ("n", "more-1", "last", "warm"):
        store[key] = store[key]  # the snapshot remembers where it was, in segments of which it needs less than half
        _kept.append(store.snapshot())


def _undying(store: Store) -> None:
    del store["due"]  # nothing expires, so that a batch is written in bulk
    _watched(store)


def _unsorted(store: Store) -> None:
    assert list(store)
    store["new-er"] = store["new-est"] = b"1"
    del store["gone"]


def _expired(store: Store) -> None:
    _warm(store)
    files: Any = store._files
    files.sleep(2 * _HOUR)


def _rolling(store: Store) -> None:
    _warm(store)
    writer = store._commit.state.segments.writer
    assert writer is not None
    # Too little room for the call, enough for the write that follows it.
    store["padding"] = bytes(_SEGMENT_SIZE - writer.end - 80 - len("padding"))


def _prepared(store: Store) -> None:
    _rolling(store)
    store._commit.prepare_next()


def _behind(store: Store) -> Store:
    reader = open_store(store.path, "r", files=store._files)
    _kept.append(store)
    store.update({"new": "1", "kept": "2" * 300})
    del store["gone"]
    return reader


def _behind_a_compaction(store: Store) -> Store:
    reader = _behind(store)
    store.compact()
    store["newer"] = b"1"
    return reader


class Call(NamedTuple):
    """What is called; what is done before, which may return another store for it; in which modes."""

    act: Callable[[Store], object]
    arrange: Callable[[Store], Store | None] = _warm
    modes: Sequence[Mode] = MODES


def _bulk(store: Store) -> None:
    with store.batch() as batch:
        batch["new"] = b"1"
        batch["kept"] = "2"
        del batch["gone"]
        del batch["never"]


def _many(store: Store) -> None:
    del store["due"]  # nothing expires
    store.update({f"more-{number}": "1" * 30 for number in range(3, 9)})  # so that it begins a segment


def _batch(store: Store) -> None:
    with store.batch() as batch:
        batch["new"] = b"1"
        batch.put("kept", "2", ttl=60)
        del batch["gone"]
        del batch["never"]


def _transact(store: Store) -> None:
    with store.transaction() as tx:
        tx["new"] = tx["kept"]
        tx["n"] = b"42"
        del tx["gone"]


def _transact_kept(store: Store) -> None:
    transaction = store.transaction()
    _kept.append(transaction)  # so that only its end opens the gate, not that nobody has it any more
    with transaction:
        transaction["new"] = b"1"


def _roll_back(store: Store) -> None:
    with contextlib.suppress(ZeroDivisionError), store.transaction() as tx:
        tx["new"] = b"1"
        raise ZeroDivisionError


def _incr_in_a_transaction(store: Store) -> None:
    with store.transaction() as tx:
        tx.incr("n")
        tx.delete_range("gone", "l")


def _look_back(store: Store) -> None:
    with store.snapshot() as snapshot:
        store["kept"] = b"new"
        assert snapshot["kept"] == b"old" * 20
        assert len(list(snapshot.scan("more-"))) == 2


def _back_up(store: Store) -> None:
    store.backup(store.path + "-backup")


def _scan_a_little(store: Store) -> None:
    scan = store.scan()
    next(scan)
    del scan


CALLS: dict[str, Call] = {
    "put a new key": Call(lambda db: db.__setitem__(b"new", b"value")),
    "put over an old key": Call(lambda db: db.__setitem__(b"kept", b"value")),
    "put over a young key": Call(lambda db: db.__setitem__(b"warm", b"value")),
    "put over an expiring key": Call(lambda db: db.__setitem__(b"due", b"value")),
    "put over an expired key": Call(lambda db: db.__setitem__(b"due", b"value"), _expired),
    "put with a ttl": Call(lambda db: db.put("new", "value", ttl=60)),
    "put if unchanged": Call(lambda db: db.put("kept", "value", if_seq=db.entry("kept").seq)),
    "put a large value": Call(lambda db: db.__setitem__(b"new", b"v" * 9000)),
    "put over a large value": Call(lambda db: db.__setitem__(b"large", b"v")),
    "put that rolls": Call(lambda db: db.__setitem__(b"new", b"v" * 100), _rolling),
    "put that begins what was prepared": Call(lambda db: db.__setitem__(b"new", b"v" * 100), _prepared),
    "put after opening": Call(lambda db: db.__setitem__(b"new", b"value"), lambda db: None),
    "put after a sync": Call(lambda db: db.__setitem__(b"new", b"value"), _synced),
    "put beside a snapshot": Call(lambda db: db.__setitem__(b"kept", b"value"), _watched),
    "put new beside a snapshot": Call(lambda db: db.__setitem__(b"new", b"value"), _watched),
    "delete": Call(lambda db: db.__delitem__(b"gone")),
    "delete beside a snapshot": Call(lambda db: db.__delitem__(b"gone"), _watched),
    "delete nothing": Call(lambda db: db.delete(b"never")),
    "delete an expired key": Call(lambda db: db.delete(b"due"), _expired),
    "add": Call(lambda db: db.add("new", "value")),
    "add an old key": Call(lambda db: db.add("kept", "value")),
    "incr": Call(lambda db: db.incr("n")),
    "batch": Call(_batch),
    "batch beside a snapshot": Call(_batch, _watched),
    "batch in bulk beside a snapshot": Call(_bulk, _undying),
    "batch that rolls": Call(lambda db: db.update({"new": "1", "kept": "2" * 100}), _rolling),
    "delete a range": Call(lambda db: db.delete_range("gone", "l")),
    "delete a range beside a snapshot": Call(lambda db: db.delete_prefix("more-"), _undying),
    "delete a range that expires beside a snapshot": Call(lambda db: db.delete_range("due", "l"), _watched),
    "delete a range that rolls": Call(lambda db: db.delete_prefix("more-"), _many),
    "delete an empty range": Call(lambda db: db.delete_prefix("never"), modes=ANY_SYNC),
    "modify": Call(lambda db: db.modify("due", bytes.upper)),
    "incr in a transaction": Call(_incr_in_a_transaction),
    "clear": Call(lambda db: db.clear()),
    "clear beside a snapshot": Call(lambda db: db.clear(), _watched),
    "pop": Call(lambda db: db.pop("gone")),
    "popitem": Call(lambda db: db.popitem()),
    "setdefault": Call(lambda db: db.setdefault("new", "value")),
    "expire": Call(lambda db: db.expire("kept", 60)),
    "persist": Call(lambda db: db.persist("due")),
    "transaction": Call(_transact),
    "transaction kept in a variable": Call(_transact_kept),
    "transaction rolled back": Call(_roll_back),
    "snapshot": Call(_look_back),
    "sync": Call(lambda db: db.sync()),
    "compact": Call(lambda db: db.compact()),
    "compact beside a snapshot": Call(lambda db: db.compact(), _watched),
    "compact beside snapshots that need little": Call(lambda db: db.compact(), _needed_little),
    "compact with expired keys": Call(lambda db: db.compact(), _expired),
    "verify": Call(lambda db: db.verify(), modes=ANY_SYNC),
    "stats": Call(lambda db: db.stats(), modes=ANY_SYNC),
    "get": Call(lambda db: db["kept"], modes=ANY_SYNC),
    "get a large value": Call(lambda db: db["large"], lambda db: None, modes=ANY_SYNC),
    "get an expired key": Call(lambda db: db.get("due"), _expired, modes=ANY_SYNC),
    "scan": Call(lambda db: list(db.scan()), modes=ANY_SYNC),
    "scan what is new": Call(lambda db: list(db.scan()), _unsorted, modes=ANY_SYNC),
    "scan a little": Call(_scan_a_little, _watched, modes=ANY_SYNC),
    "count": Call(lambda db: (db.count("more-"), db.snapshot().count("k")), _unsorted, modes=ANY_SYNC),
    "children": Call(lambda db: list(db.children("", "-")), _unsorted, modes=ANY_SYNC),
    "stat": Call(lambda db: (db.stat("large"), list(db.scan_stats("k"))), modes=ANY_SYNC),
    "changes": Call(lambda db: list(db.changes()), modes=ANY_SYNC),
    "backup": Call(_back_up, modes=ANY_SYNC),
    "refresh": Call(lambda db: db.refresh(), _behind, modes=ANY_SYNC),
    "refresh after a compaction": Call(lambda db: db.refresh(), _behind_a_compaction, modes=ANY_SYNC),
    "close": Call(lambda db: db.close()),
    "close after opening": Call(lambda db: db.close(), lambda db: None),
    "close beside a snapshot": Call(lambda db: db.close(), _watched),
    "close with a segment prepared": Call(lambda db: db.close(), _prepared),
}


def _work(store: Store) -> None:
    store._maintenance.may_compact = True
    with contextlib.suppress(MemoryError):  # as the worker's thread does: it tries again later
        store._work()


#: What the worker's thread does, where signal handlers never run.
BACKGROUND: dict[str, Call] = {
    "work in the background": Call(_work),
    "prepare the next segment": Call(lambda db: db._commit.prepare_next(), _rolling),
}
EVERY_CALL = CALLS | BACKGROUND


class Opening(NamedTuple):
    """How a store is opened, and what is in the directory before."""

    flag: str
    found: str  # one of the prepared directories


OPENINGS: dict[str, Opening] = {
    "open": Opening("w", "closed"),
    "open after a kill": Opening("w", "killed"),
    "open to read": Opening("r", "closed"),
    "open to read after a kill": Opening("r", "killed"),
    "create": Opening("c", "nothing"),
    "empty": Opening("n", "killed"),
}


# --- the state of a store ------------------------------------------------------------------------


class StillFiles(FakeFiles):
    """The real files, with clocks and random numbers that are the same in every case."""

    def __init__(self) -> None:
        super().__init__()
        self.randoms = 0

    def monotonic(self) -> float:
        return float("1000")  # another object each time, as of a real clock: by that a store tells two times apart

    def file_system(self, path: str) -> str:
        return _file_system(os.path.dirname(path))

    def random(self, size: int) -> bytes:
        self.randoms += 1
        return self.randoms.to_bytes(size, "big")


@functools.cache
def _file_system(path: str) -> str:
    return FakeFiles().file_system(path)


class Wake:
    """In place of the worker's thread: whether it would have been woken."""

    def __init__(self) -> None:
        self.called = False

    def __call__(self) -> bool:
        self.called = True
        return True


def _wake_of(store: Store) -> Wake:
    wake = store._commit.durability._wake
    assert isinstance(wake, Wake)
    return wake


#: Attributes of which only counts whether they are None: what they hold differs from case to case by chance.
_CHANCE = {"_descriptor", "_identity", "duration_s"}
_ATOMS = (int, float, str, bytes, bool, type(None))
_LOCK, _RLOCK = type(threading.Lock()), type(threading.RLock())


def fingerprint(store: Store) -> int:
    """Return a number that stands for the whole state of a store, in memory and on disk."""
    found: list[object] = [_is_held(store.path), *_disk(store.path)]
    _describe(store, found, {})
    return hash(tuple(found))


def _disk(path: str) -> Iterator[object]:
    for folder, _, names in os.walk(path):
        for name in sorted(names):
            with open(os.path.join(folder, name), "rb", buffering=0) as file:
                yield from (folder, name, hash(file.read()))


def _is_held(path: str) -> bool:
    if not os.path.exists(path):
        return False
    status = os.stat(path)
    return any(key[:2] == (status.st_dev, status.st_ino) for key in lock_module._held)


def _is_locked(path: str) -> bool:
    """Ask the system, and not the table of this process."""
    for name in ("", "LOCK"):
        try:
            descriptor = os.open(os.path.join(path, name), os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
    return False


def _describe(thing: Any, found: list[object], seen: dict[int, int]) -> None:
    kind = type(thing)
    if kind in _ATOMS:
        found.append(thing)
        return
    number = seen.get(id(thing))
    if number is not None:
        found.append(number)
        return
    seen[id(thing)] = len(seen)
    found.append(kind.__name__)
    if issubclass(kind, (tuple, list, deque)):
        found.append(len(thing))
        for item in thing:
            _describe(item, found, seen)
    elif kind is dict:
        found.append(len(thing))
        for key, value in thing.items():
            _describe(key, found, seen)
            _describe(value, found, seen)
    elif kind is set:
        found.append(repr(sorted(thing)))
    elif kind is SortedList:
        found.append(repr((thing._lists, thing._maxes, thing._len)))
    elif kind is PreadFile:
        found.append(thing._path)
    elif isinstance(thing, io.FileIO):
        found.append(thing.closed)
    elif kind is mmap:
        found.append(len(thing))
    elif kind is _RLOCK:
        found.append(thing._is_owned())
    elif kind is _LOCK:
        found.append(thing.locked())
    elif isinstance(thing, weakref.ref):
        found.append(thing() is None)
    elif isinstance(thing, (threading.Thread, threading.Event)):
        found.append(repr(thing))
    elif callable(thing) and not isinstance(thing, Wake):
        found.append(getattr(thing, "__qualname__", ""))
    elif kind.__module__.startswith(("bytekv.", "tests.")):
        for name in _attributes(kind, thing):
            value = getattr(thing, name, None)
            if name not in _CHANCE:
                _describe(value, found, seen)
            elif value is None:
                found.append(name)
    else:
        # Nothing else is expected to hold state; a closed file says so in its representation.
        found.append(repr(thing).partition(" at 0x")[0])


def _attributes(kind: type, thing: Any) -> list[str]:
    names = [name for base in kind.__mro__ for name in base.__dict__.get("__slots__", ()) if name != "__weakref__"]
    return names + sorted(getattr(thing, "__dict__", ()))


# --- the judge -------------------------------------------------------------------------

CarryOut = Callable[[Callable[[], object]], bool]


def visible(store: Store) -> Content:
    """Return what readers see."""
    return {key: (value, store.ttl(key) is not None) for key, value in store.items()}


def read_all(path: str) -> Files:
    return {file.name: Path(file).read_bytes() for file in os.scandir(path) if file.is_file()}


def write_all(path: str, files: Files | None) -> None:
    """Make a directory hold exactly these files; the zeros at their ends take no time."""
    shutil.rmtree(path, ignore_errors=True)
    if files is None:
        return
    os.mkdir(path)
    for name, content in files.items():
        descriptor = os.open(os.path.join(path, name), os.O_CREAT | os.O_WRONLY, 0o600)
        os.write(descriptor, content.rstrip(b"\0"))
        os.ftruncate(descriptor, len(content))
        os.close(descriptor)


class Bench:
    """Run cases, one after the other, in one directory.

    ``carry_out`` is what makes a case: it calls what it is given, lets an exception strike in it, catches that,
    and tells whether it has struck.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path, self._copy = str(folder / "store"), str(folder / "copy")
        self._expected: dict[tuple[str, Mode], list[Content]] = {}
        self._judged: set[tuple[str, Mode, int]] = set()
        self.cases = 0
        store = self._open(MODES[0], "c")
        fill(store)
        store.close()
        self._found: dict[str, Files | None] = {"nothing": None, "closed": read_all(self._path)}
        with self._open(MODES[0]) as store:
            _warm(store)
            killed = read_all(self._path)
            newest, end = max(killed), store._segments.lengths()[max(store._segments.lengths())]
        newest = max(name for name in killed if name.endswith(".seg"))
        killed[newest] = killed[newest][:end] + b"torn" + killed[newest][end + 4 :]
        self._found["killed"] = killed

    @property
    def judged(self) -> int:
        """Return in how many different states the cases have ended."""
        return len(self._judged)

    def _open(self, mode: Mode, flag: Any = "w") -> Store:
        store = open_store(
            self._path,
            flag,
            files=StillFiles(),
            segment_size_bytes=_SEGMENT_SIZE,
            expiry_grace_s=0,
            compact_dead_bytes=1,
            compact_dead_ratio=0.1,
            **mode._asdict(),
        )
        store._commit.durability._wake = Wake()
        return store

    # --- calls of an open store ----------------------------------------------------------------

    def run(self, name: str, mode: Mode, carry_out: CarryOut, again: CarryOut | None = None) -> bool:
        """Run one case of the call ``name`` and judge it; tell whether anything has struck.

        ``again``: carries out a write that follows, and that something may strike, too.
        """
        act, arrange, _ = EVERY_CALL[name]
        if (name, mode) not in self._expected:
            self._expected[name, mode] = self._expect(name, mode)
        write_all(self._path, self._found["closed"])
        store = self._open(mode)
        try:
            store = arrange(store) or store
            struck = carry_out(lambda: act(store))
            if struck and again is not None:
                again(lambda: store.put(b"second", b"2"))
            if struck:
                self._judge(name, mode, store, may_have_second=again is not None)
        finally:
            self._tidy(store)
        return struck

    def _expect(self, name: str, mode: Mode) -> list[Content]:
        write_all(self._path, self._found["closed"])
        store = self._open(mode)
        act, arrange, _ = EVERY_CALL[name]
        store = arrange(store) or store
        found = [visible(store)]
        act(store)
        if not store.closed:
            found.append(visible(store))
        self._tidy(store)
        return found

    def _tidy(self, store: Store) -> None:
        for other in [store, *(kept for kept in _kept if isinstance(kept, Store))]:
            with contextlib.suppress(BytekvError):
                other.close()
        _kept.clear()
        shutil.rmtree(store.path + "-backup", ignore_errors=True)
        self.cases += 1
        if self.cases % 100 == 0:
            self.close_strays()

    def close_strays(self) -> None:
        """Close the descriptors that were lost between ``os.open`` and their owner."""
        gc.collect()
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/self/fd/{name}").startswith(str(self._folder)):
                    os.close(int(name))

    # --- judging -------------------------------------------------------------------------------

    def _judge(self, name: str, mode: Mode, store: Store, *, may_have_second: bool) -> None:
        state = name, mode, fingerprint(store)
        if state in self._judged:
            return
        expect_no_lock_held(store)
        expected = self._expected[name, mode]
        if may_have_second:
            expected = [*expected, *(content | {b"second": (b"2", False)} for content in expected)]
        if name.startswith("close"):
            now = expected[0]
            assert self._after_a_kill(store) == now, "a kill leaves something else"
            store.close()
            assert store.closed
        elif store.readonly:
            self._judge_reader(store, expected)
            self._judged.add(state)
            return
        else:
            now = self._judge_open(name, mode, store, expected)
        store.close()
        self._expect_on_disk([now], store._files)
        self._judged.add(state)

    def _judge_open(self, name: str, mode: Mode, store: Store, expected: list[Content]) -> Content:
        now = visible(store)
        assert now in expected, f"neither happened nor not: {now}"
        assert self._after_a_kill(store) == now, "a kill leaves something else"
        for kept in _kept:
            if isinstance(kept, Snapshot):
                assert {key: value for key, (value, _) in expected[0].items()} == dict(kept), "a snapshot has changed"
        store[b"after"] = b"1"  # bytes: by the fast path, if that is open
        now[b"after"] = (b"1", False)
        assert self._after_a_kill(store) == now, "after one more write a kill leaves something else"
        assert mode.sync != "always" or store.durable_seq == store._commit.state.seq, "acknowledged and not durable"
        if mode.sync == "interval" and store.durable_seq < store.last_seq:
            assert _wake_of(store).called, "acknowledged, and nobody is ever going to sync it (D4)"
        if name == "backup":
            _back_up(store)
            with open_store(store.path + "-backup", "r", files=store._files) as backup:
                assert visible(backup) == now
        expect_no_lock_held(store)
        report = store.verify()
        assert report.ok, report
        assert visible(store) == now
        return now

    def _judge_reader(self, store: Store, expected: list[Content]) -> None:
        assert visible(store) in expected, f"neither caught up nor not: {visible(store)}"
        store.refresh()
        assert visible(store) == expected[1]
        expect_no_lock_held(store)
        report = store.verify()
        assert report.ok, report

    def _after_a_kill(self, store: Store) -> Content:
        """Show what would be there if the process were killed now."""
        write_all(self._copy, read_all(self._path))
        with open_store(self._copy, "w", files=store._files, sync="os") as other:
            return visible(other)

    def _expect_on_disk(self, expected: list[Content], files: Any) -> None:
        assert not _is_held(self._path), "the lock of the directory was not given back"
        with open_store(self._path, "c", files=files) as again:
            assert visible(again) in expected, f"reopened, it holds {visible(again)}"
            report = again.verify()
            assert report.ok, report

    # --- opening -------------------------------------------------------------------------------

    def run_opening(self, name: str, mode: Mode, carry_out: CarryOut) -> bool:
        """Run one case of opening a store and judge it; tell whether anything has struck."""
        flag, found = OPENINGS[name]
        if (name, mode) not in self._expected:
            self._expected[name, mode] = self._expect_of_opening(name, mode)
        write_all(self._path, self._found[found])
        struck = carry_out(lambda: self._open(mode, flag).close())
        assert not _is_locked(self._path), "a lock is left that no store of this process has"
        if struck:
            state = name, mode, hash((_is_held(self._path), *_disk(self._path)))
            if state not in self._judged:
                self._expect_on_disk(self._expected[name, mode], StillFiles())
                self._judged.add(state)
        self.cases += 1
        if self.cases % 100 == 0:
            self.close_strays()
        return struck

    def _expect_of_opening(self, name: str, mode: Mode) -> list[Content]:
        flag, found = OPENINGS[name]
        expected = []
        for how in ("c", flag):
            write_all(self._path, self._found[found])
            with self._open(mode, how) as store:
                expected.append(visible(store))
        return expected


def expect_no_lock_held(store: Store) -> None:
    commit = store._commit
    locks = {
        "lock": commit.state.lock,
        "sync_lock": commit.state.sync_lock,
        "compacting": store._state.compacting,
    }
    for name, lock in locks.items():
        assert not lock._is_owned(), f"{name} was not given back"


B = TypeVar("B", bound=Bench)


@contextlib.contextmanager
def a_bench(kind: type[B]) -> Iterator[B]:
    """Make a bench in a directory of its own, in memory where the machine has such."""
    with tempfile.TemporaryDirectory(
        prefix="bytekv-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    ) as folder:
        bench = kind(Path(folder))
        try:
            yield bench
        finally:
            bench.close_strays()
