"""What is measured: each workload named and explained, then the code.

Knows what each workload does to an engine, when the clock runs, and how to check what the engine answered. Knows
nothing of processes, rounds or tables.

One `Session` belongs to one engine, one set of keys and one size of values. It keeps a main store, which the
workloads leave loaded with every key, and makes scratch stores for those that need an empty one. Everything a
timed loop needs is made before the clock starts, in chunks of at most 1,024 operations or 1 MiB of values; what
the chunk read is compared with what was stored once the clock has stopped. A wrong answer ends the run.

Each workload returns figures by name. "wall" and "cpu" are microseconds for one operation, elapsed and used by
the whole process, threads included; with "ops", how often it was done. The machine may be shared: CPU time
suffers less from that than elapsed time, and tells what an engine does in threads of its own as well.
"""

from __future__ import annotations

import gc
import itertools
import os
import shutil
import subprocess
import sys
import threading
import time
import tracemalloc
from array import array
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from .dataset import GROUP, DataSet, WrongAnswerError
from .engines import Engine

Figures = dict[str, float]


class About(NamedTuple):
    """What a workload is: the unit in which it is shown, its title, and what it does."""

    unit: str
    title: str
    text: str


#: In the order in which they run: what leaves the main store as it found it comes before what changes it.
WORKLOADS: Final[dict[str, About]] = {
    "put_sequential": About("µs", "put, ascending keys", "ascending 16-byte keys into an empty store, one at a time"),
    "batch_put": About("µs", "batch put", "random keys into an empty store, atomic batches of 1,000; per key"),
    "put": About("µs", "put", "random 16-byte keys into an empty store, one at a time"),
    "get": About("µs", "get", "every key once, in random order"),
    "get_missing": About("µs", "get, missing key", "keys that lie between those that exist"),
    "get_many": About("µs", "get_many", "every key once, in random order, 100 at a time; per key"),
    "get_latency": About("spread", "get, latency", "up to 100,000 gets in random order, each timed"),
    "ttl_put": About("µs", "put with a ttl", "random keys into an empty store, each with an hour to live"),
    "ttl_get": About("µs", "get of a key with a ttl", "every such key once, in random order"),
    "ttl_add": About("µs", "add with a ttl", "the same as puts, if the key does not exist; none does"),
    "ttl_expire": About("µs", "expire", "another hour for each of these keys, in random order, one at a time"),
    "ttl_batch": About("µs", "batch put with a ttl", "the same keys in atomic batches of 1,000; per key"),
    "open": About(
        "keys/s",
        "open",
        "a store that was closed, up to the first get; bytekv with its hint files; many peers leave keys on disk",
    ),
    "open_no_hints": About("keys/s", "open without hints", "the same with bytekv's hint files deleted"),
    "overwrite": About("µs", "overwrite", "a new value for every key, in random order, one at a time"),
    "put_latency": About("spread", "put, latency", "up to 100,000 overwrites in random order, each timed"),
    "scan_before": About(
        "µs", "scan, before compaction", "all entries in key order, as the writes left them; per entry"
    ),
    "compact": About("µs", "compact", "a store of which each key was overwritten, in the foreground; per live entry"),
    "scan": About("µs", "scan, after compaction", "all entries in key order; per entry"),
    "prefix_scan": About(
        "µs", "prefix scan of 100", "the hundred entries that share a prefix, prefixes at random; per entry"
    ),
    "ycsb_c": About("µs", "YCSB C", "100 % get; up to 100,000 operations, keys by Zipf's law"),
    "ycsb_b": About("µs", "YCSB B", "95 % get, 5 % overwrite; up to 100,000 operations, keys by Zipf's law"),
    "ycsb_a": About("µs", "YCSB A", "50 % get, 50 % overwrite; up to 100,000 operations, keys by Zipf's law"),
    "ycsb_e": About("µs", "YCSB E", "95 % scans of 1 to 100 entries, 5 % puts of new keys; up to 10,000 operations"),
    "open_crash": About("keys/s", "open after a crash", "a store whose process was killed after the last put"),
    "durable_put_1": About("ops/s", "durable put, 1 thread", "each put survives a power cut before it returns"),
    "durable_put_8": About("ops/s", "durable put, 8 threads", "the same from 8 threads"),
    "durable_put_32": About("ops/s", "durable put, 32 threads", "the same from 32 threads"),
    "delete": About("µs", "delete", "every key, in random order, one at a time"),
    "heap": About(
        "bytes",
        "heap",
        "bytes of Python's heap for a key besides the key object; also after opening, and with the order of keys",
    ),
    "memory": About(
        "bytes",
        "memory",
        "growth of a process (anonymous memory) by opening the store; bytes for a key, the key included",
    ),
    "disk": About("×", "disk", "bytes on disk for a live byte: once loaded, with each key overwritten once, compacted"),
    "put_while_compacting": About(
        "stall",
        "put while compacting",
        "puts beside a background compaction that copies as many entries as there are keys",
    ),
    "gil_while_compacting": About(
        "stall", "GIL while compacting", "how long the compaction thread holds the GIL in one go"
    ),
    "put_while_expiring": About(
        "stall",
        "put while expiring",
        "puts beside as many keys that expire together, and what of those stays in memory",
    ),
    "steady_space": About(
        "×",
        "steady overwriting",
        "bytes on disk for a live byte while every key is overwritten again and again, at most",
    ),
    "snapshot_space": About(
        "×",
        "overwriting under a snapshot",
        "bytes on disk for a live byte while a snapshot is open and most keys change often, the others once, at most",
    ),
    "pauses": About(
        "stall",
        "pauses of a writer",
        "how late a put comes back, at most, beside another thread that does something with all keys",
    ),
    "processes_put": About("processes", "put", "1, 2, 4 and 8 processes put as fast as they can into one store"),
    "processes_batch": About("processes", "batches of 100", "the same in atomic batches of 100; per key"),
    "processes_get_put": About("processes", "1 get : 1 put", "they read everybody's keys and put their own, by turns"),
    "processes_gets_put": About("processes", "9 gets : 1 put", "the same with nine gets before each put"),
    "processes_paced": About("processes", "put every 2 ms", "one process beside another that puts as fast as it can"),
    "processes_durable": About("processes", "durable put", "8 processes; each put survives a power cut"),
    "processes_alone": About(
        "processes", "shared, alone", "a shared store that nobody else has open beside one that is not shared"
    ),
    "processes_follow": About(
        "processes", "catching up", "the first get after one put of another process, and after very many"
    ),
    "segments_1": About(
        "µs", "1 segment", "random gets from a store of so many segments; also puts into it, and opening it"
    ),
    "segments_10": About("µs", "10 segments", "the same"),
    "segments_100": About("µs", "100 segments", "the same"),
    "segments_1000": About("µs", "1,000 segments", "the same"),
}

_CHUNK_OPERATIONS = 1024
_CHUNK_BYTES = 1 << 20
_BATCH = 1000
_HOUR = 3600
_MOST_TIMED_ONE_BY_ONE = 100_000


class Stopwatch:
    """Add up elapsed and CPU time over many short stretches."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def __enter__(self) -> None:
        self._cpu = time.process_time()
        self._wall = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.wall += time.perf_counter() - self._wall
        self.cpu += time.process_time() - self._cpu

    def per(self, operations: int) -> Figures:
        return {"wall": self.wall / operations * 1e6, "cpu": self.cpu / operations * 1e6, "ops": operations}


class Session:
    """One engine with its stores, and the data that belongs in them."""

    def __init__(
        self,
        engine: type[Engine],
        data: DataSet,
        folder: str,
        *,
        seconds: float = 2.0,
        budget_s: float = 60.0,
        settles: bool = True,
    ) -> None:
        self.engine_type, self.data, self.folder = engine, data, folder
        self.seconds = seconds  # how long workloads run that run for a time
        self.budget_s = budget_s  # after which reading and deleting is cut short
        self.settles = settles  # whether to wait for background work between workloads
        self.main: Engine | None = None
        self.main_path = os.path.join(folder, "main")
        self.is_compacted = False
        self._scratches = itertools.count(1)

    def run(self, workload: str) -> Figures:
        """Run one workload; raise `WrongAnswerError` if the engine answered anything wrong."""
        gc.collect()
        gc.freeze()  # the collector need not look through keys and values while the clock runs
        try:
            figures = _RUN[workload](self)
        finally:
            gc.unfreeze()
        self.settle()
        return figures

    def settle(self) -> None:
        """Wait until the engine's background work is done and dirty pages are written."""
        if not self.settles:
            return
        for file in Path(self.folder).rglob("*"):
            with suppress(FileNotFoundError, IsADirectoryError):  # removed meanwhile by a compaction
                descriptor = os.open(file, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)
        deadline = time.monotonic() + 60
        used = time.process_time()
        while time.monotonic() < deadline:
            time.sleep(0.02)
            before, used = used, time.process_time()
            if used - before < 0.001:
                break

    # --- stores --------------------------------------------------------------------------------

    def open(self, path: str, *, durable: bool = False) -> Engine:
        return self.engine_type(path, self.data.value_size, durable=durable)

    def loaded(self) -> Engine:
        """Return the main store with every key in it."""
        if self.main is None:
            self.main = self.open(self.main_path)
        absent = self.data.absent()
        if absent:
            self.is_compacted = False
            for chunk in self.chunks(absent):
                self.main.put_each(self.data.renew(chunk))
            self.settle()
        return self.main

    def emptied(self) -> Engine:
        """Return a new main store without any key."""
        self.close()
        shutil.rmtree(self.main_path, ignore_errors=True)
        self.data.forget(range(self.data.count))
        self.is_compacted = False
        self.main = self.open(self.main_path)
        return self.main

    def compacted(self) -> Engine:
        """Return the main store with every key in it and nothing else."""
        engine = self.loaded()
        if not self.is_compacted:
            engine.compact()
            self.is_compacted = True
            self.settle()
        return engine

    @contextmanager
    def scratch(self, *, durable: bool = False) -> Iterator[Engine]:
        """Make an empty store and remove it afterwards."""
        path = self.scratch_path()
        engine = self.open(path, durable=durable)
        try:
            yield engine
        finally:
            engine.close()
            shutil.rmtree(path, ignore_errors=True)

    def scratch_path(self) -> str:
        return os.path.join(self.folder, f"scratch{next(self._scratches)}")

    def scratch_data(self) -> DataSet:
        return DataSet(self.data.count, self.data.value_size, self.data.seed)

    def close(self) -> None:
        if self.main is not None:
            self.main.close()
            self.main = None

    # --- loops ---------------------------------------------------------------------------------

    def chunks(self, numbers: Sequence[int], watch: Stopwatch | None = None) -> Iterator[Sequence[int]]:
        """Cut into chunks that grow; end early once ``watch`` has used up the budget."""
        most = max(1, min(_CHUNK_OPERATIONS, _CHUNK_BYTES // self.data.value_size))
        done, size = 0, min(16, most)
        while done < len(numbers) and (watch is None or watch.wall < self.budget_s):
            yield numbers[done : done + size]
            done += size
            size = min(2 * size, most)


# --- the code ----------------------------------------------------------------------------------

Run = Callable[[Session], Figures]
_RUN: dict[str, Run] = {}


def workload(name: str) -> Callable[[Run], Run]:
    """Register a function under a name that `WORKLOADS` explains."""
    assert name in WORKLOADS, name

    def register(function: Run) -> Run:
        _RUN[name] = function
        return function

    return register


def _write(
    session: Session, data: DataSet, numbers: Sequence[int], write: Callable[[list[tuple[bytes, bytes]]], None]
) -> Figures:
    watch = Stopwatch()
    for chunk in session.chunks(numbers):
        pairs = data.renew(chunk)
        with watch:
            write(pairs)
    return watch.per(len(numbers))


def _check_some(engine: Engine, data: DataSet, numbers: Sequence[int]) -> None:
    """Read back up to a thousand keys of what was written."""
    some = numbers[:: len(numbers) // 1000 + 1]
    data.check_values(some, engine.get_each([data.keys[number] for number in some]))


@workload("put_sequential")
def put_ascending_keys(session: Session) -> Figures:
    data = session.scratch_data()
    data.keys = [b"%016d" % number for number in range(data.count)]
    numbers = range(data.count)
    with session.scratch() as engine:
        figures = _write(session, data, numbers, engine.put_each)
        _check_some(engine, data, numbers)
    return figures


@workload("batch_put")
def put_batches(session: Session) -> Figures:
    data = session.scratch_data()
    watch = Stopwatch()
    size = max(1, min(_BATCH, (16 << 20) // data.value_size))
    with session.scratch() as engine:
        for start in range(0, data.count, size):
            pairs = data.renew(range(start, min(start + size, data.count)))
            with watch:
                engine.put_batch(pairs)
        _check_some(engine, data, range(data.count))
    return watch.per(data.count)


@workload("put")
def put_random_keys(session: Session) -> Figures:
    engine, numbers = session.emptied(), range(session.data.count)
    figures = _write(session, session.data, numbers, engine.put_each)
    _check_some(engine, session.data, numbers)
    return figures


@workload("overwrite")
def overwrite_all(session: Session) -> Figures:
    engine, numbers = session.loaded(), session.data.shuffled()
    session.is_compacted = False
    figures = _write(session, session.data, numbers, engine.put_each)
    _check_some(engine, session.data, numbers)
    return figures


@workload("get")
def get_all(session: Session) -> Figures:
    engine, data = session.loaded(), session.data
    watch, done = Stopwatch(), 0
    for chunk in session.chunks(data.shuffled(), watch):
        keys = [data.keys[number] for number in chunk]
        with watch:
            found = engine.get_each(keys)
        data.check_values(chunk, found)
        done += len(chunk)
    return watch.per(done)


def _mortal(session: Session, what: str) -> Figures:
    data, size = session.scratch_data(), max(1, min(_BATCH, (16 << 20) // session.data.value_size))
    numbers, watches = range(data.count), {name: Stopwatch() for name in ("put", "get", "add", "expire", "batch")}
    with session.scratch() as engine:
        for start in range(0, data.count, size):
            chunk = range(start, min(start + size, data.count))
            pairs = data.renew(chunk)
            write = {"add": engine.add_each_for, "batch": engine.put_batch_for}.get(what, engine.put_each_for)
            with watches[what if what in ("add", "batch") else "put"]:
                write(pairs, _HOUR)
        shuffled = data.shuffled()
        for start in range(0, len(shuffled) if what in ("get", "expire") else 0, size):
            chunk = shuffled[start : start + size]
            keys = [data.keys[number] for number in chunk]
            with watches[what]:
                if what == "expire":
                    engine.expire_each(keys, _HOUR)
                else:
                    found = engine.get_each(keys)
            if what == "get":
                data.check_values(chunk, found)
        _check_some(engine, data, numbers)
    return watches[what].per(data.count)


for _what in ("put", "get", "add", "expire", "batch"):
    workload(f"ttl_{_what}")(partial(_mortal, what=_what))


@workload("get_missing")
def get_missing_keys(session: Session) -> Figures:
    engine, data = session.loaded(), session.data
    keys = data.missing(data.count)
    watch, done = Stopwatch(), 0
    for chunk in session.chunks(range(len(keys)), watch):
        wanted = keys[chunk[0] : chunk[-1] + 1]
        with watch:
            found = engine.get_missing_each(wanted)
        if found != [None] * len(wanted):
            raise WrongAnswerError("a key was found that does not exist")
        done += len(wanted)
    return watch.per(done)


@workload("get_many")
def get_hundreds(session: Session) -> Figures:
    engine, data = session.loaded(), session.data
    watch, done = Stopwatch(), 0
    numbers = data.shuffled()
    for start in range(0, len(numbers), GROUP):
        chunk = numbers[start : start + GROUP]
        keys = [data.keys[number] for number in chunk]
        with watch:
            found = engine.get_many(keys)
        answers = dict(engine.pairs_of(keys, found))
        if len(answers) != len(keys):
            raise WrongAnswerError(f"{len(answers)} keys of {len(keys)} were found")
        data.check_values(chunk, [answers.get(key) for key in keys])
        done += len(chunk)
        if watch.wall > session.budget_s:
            break
    return watch.per(done)


def spread(nanoseconds: Sequence[int]) -> Figures:
    """Return percentiles in microseconds."""
    ordered = sorted(nanoseconds)
    last = len(ordered) - 1
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "p9999": 0.9999, "max": 1.0}
    return {name: ordered[round(share * last)] / 1000 for name, share in shares.items()} | {"ops": len(ordered)}


@workload("get_latency")
def time_each_get(session: Session) -> Figures:
    engine, data = session.loaded(), session.data
    times, clock, get = array("Q"), time.perf_counter_ns, engine.get
    for chunk in session.chunks(data.some(_MOST_TIMED_ONE_BY_ONE)):
        found = []
        for key in [data.keys[number] for number in chunk]:
            began = clock()
            value = get(key)
            ended = clock()
            times.append(ended - began)
            found.append(value)
        data.check_values(chunk, found)
    return spread(times)


def timed_puts(engine: Engine, pairs: Iterable[tuple[bytes, bytes]], times: array[int]) -> None:
    """Put one by one and append how long each took, in nanoseconds."""
    clock, put, append = time.perf_counter_ns, engine.put, times.append
    for key, value in pairs:
        began = clock()
        put(key, value)
        append(clock() - began)


@workload("put_latency")
def time_each_put(session: Session) -> Figures:
    engine, data = session.loaded(), session.data
    session.is_compacted = False
    times, numbers = array("Q"), data.some(_MOST_TIMED_ONE_BY_ONE)
    for chunk in session.chunks(numbers):
        timed_puts(engine, data.renew(chunk), times)
    _check_some(engine, data, numbers)
    return spread(times)


def _scan(session: Session, engine: Engine) -> Figures:
    data, watch = session.data, Stopwatch()
    most = max(1, min(_CHUNK_OPERATIONS, _CHUNK_BYTES // data.value_size))
    done, last = 0, None
    with watch:
        entries = engine.scan()
        iterator = entries.__enter__()
    try:
        while True:
            with watch:
                found = list(itertools.islice(iterator, most))
            if not found:
                break
            last = data.check_pairs(found, last)
            done += len(found)
    finally:
        entries.__exit__(None, None, None)
    if done != data.count:
        raise WrongAnswerError(f"a scan found {done} entries of {data.count}")
    return watch.per(done)


@workload("scan_before")
def scan_as_written(session: Session) -> Figures:
    engine = session.loaded()
    if session.is_compacted:
        overwrite_all(session)
    return _scan(session, engine)


@workload("scan")
def scan_compacted(session: Session) -> Figures:
    return _scan(session, session.compacted())


@workload("compact")
def compact_in_foreground(session: Session) -> Figures:
    engine = session.loaded()
    if session.is_compacted:
        overwrite_all(session)
    watch = Stopwatch()
    with watch:
        engine.compact()
    session.is_compacted = True
    _check_some(engine, session.data, range(session.data.count))
    return watch.per(session.data.count)


@workload("prefix_scan")
def scan_prefixes(session: Session) -> Figures:
    engine, data = session.compacted(), session.data
    watch, done = Stopwatch(), 0
    prefixes = data.prefixes[:1000]
    for prefix in prefixes:
        with watch:
            found = engine.scan_prefix(prefix)
        last = data.check_pairs(found)
        wanted = min(GROUP, data.count - done) if len(data.prefixes) == len(prefixes) else GROUP
        if len(found) != wanted or not found[0][0].startswith(prefix) or not (last or b"").startswith(prefix):
            raise WrongAnswerError(f"prefix {prefix.hex()}: {len(found)} entries of {wanted}")
        done += len(found)
    return watch.per(done)


def _mix_gets_and_puts(session: Session, share_of_gets: float) -> Figures:
    engine, data = session.loaded(), session.data
    count = min(data.count, _MOST_TIMED_ONE_BY_ONE)
    numbers, coins = data.zipfian(count), data.coin(share_of_gets, count)
    watch, get, put, done = Stopwatch(), engine.get, engine.put, 0
    session.is_compacted = session.is_compacted and share_of_gets == 1.0
    for chunk in session.chunks(numbers, watch):
        steps: list[tuple[bytes, bytes | None]] = []
        expected: list[bytes | None] = []  # by the gets
        for number in chunk:
            if next(coins):
                steps.append((data.keys[number], None))
                expected.append(data.expected(number))
            else:
                steps += data.renew([number])
        with watch:
            answers = [get(key) if value is None else put(key, value) for key, value in steps]
        found = [answer for answer, (_, value) in zip(answers, steps, strict=True) if value is None]
        if found != expected:
            raise WrongAnswerError("a get did not return the newest value")
        done += len(chunk)
    return watch.per(done)


_RUN["ycsb_a"] = partial(_mix_gets_and_puts, share_of_gets=0.5)
_RUN["ycsb_b"] = partial(_mix_gets_and_puts, share_of_gets=0.95)
_RUN["ycsb_c"] = partial(_mix_gets_and_puts, share_of_gets=1.0)


@workload("ycsb_e")
def mix_scans_and_puts(session: Session) -> Figures:
    engine, data = session.loaded(), session.data
    count = min(data.count, 10_000)
    numbers, coins, lengths = data.zipfian(count), data.coin(0.95, count), data.lengths(count)
    fresh = iter(data.missing(count))
    ordered = list(data.sorted_keys())
    watch, scan_from, put, done = Stopwatch(), engine.scan_from, engine.put, 0
    session.is_compacted = False
    for chunk in session.chunks(numbers, watch):
        steps: list[tuple[bytes, bytes | int]] = []
        expected: list[list[bytes] | None] = []
        for number in chunk:
            if next(coins):
                key, length = data.keys[number], next(lengths)
                steps.append((key, length))
                first = bisect_left(ordered, key)
                expected.append(ordered[first : first + length])
            else:
                data.keys.append(next(fresh))
                data.versions.append(0)
                steps += data.renew([len(data.keys) - 1])
                insort(ordered, steps[-1][0])
                expected.append(None)
        with watch:
            answers = [
                scan_from(key, what) if type(what) is int else put(key, what)  # type: ignore[arg-type]
                for key, what in steps
            ]
        for answer, wanted in zip(answers, expected, strict=True):
            if wanted is not None:
                data.check_pairs(answer)
                if [key for key, _ in answer] != wanted:
                    raise WrongAnswerError("a scan did not return the entries that follow its start")
        done += len(chunk)
    engine.delete_each(data.keys[data.count :])
    del data.keys[data.count :], data.versions[data.count :]
    return watch.per(done)


def _time_open(session: Session, path: str, rounds: int, prepare: Callable[[], None] = lambda: None) -> Figures:
    data, watch = session.data, Stopwatch()
    first = data.keys[data.count // 2]
    for _ in range(rounds):
        prepare()
        gc.collect()
        with watch:
            engine = session.open(path)
            value = engine.get(first)
        data.check_values([data.count // 2], [value])
        _check_some(engine, data, range(data.count))
        engine.close()
    return watch.per(rounds * data.count)


@workload("open")
def open_closed_store(session: Session) -> Figures:
    session.loaded()
    session.close()
    return _time_open(session, session.main_path, 3)


@workload("open_no_hints")
def open_without_hints(session: Session) -> Figures:
    session.loaded()
    session.close()

    def forget_hints() -> None:
        for hint in Path(session.main_path).glob("*.hint"):
            hint.unlink()

    return _time_open(session, session.main_path, 3, forget_hints)


@workload("open_crash")
def open_after_a_crash(session: Session) -> Figures:
    """A child process puts every key and is killed in the middle of its life."""
    path, data = session.scratch_path(), session.data
    command = [sys.executable, "-m", "tests.benchmarks.worker", "--fill-and-die", session.engine_type.name, path]
    command += [str(data.count), str(data.value_size), str(data.seed)]
    try:
        ended = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
        if "filled" not in ended.stdout:
            raise RuntimeError(f"the process that should be killed after filling a store failed:\n{ended.stderr}")
        watch = Stopwatch()
        with watch:
            engine = session.open(path)
            missing_key_read = engine.get_missing_each(data.keys[:1])
        fresh = session.scratch_data()
        fresh.renew(range(fresh.count))
        found = missing_key_read + engine.get_missing_each(data.keys[1:])
        lost = sum(value is None for value in found)
        kept = [number for number, value in enumerate(found) if value is not None]
        fresh.check_values(kept, [found[number] for number in kept])
        engine.close()
        return watch.per(data.count) | {"lost": lost}
    finally:
        shutil.rmtree(path, ignore_errors=True)


def fill_and_die(engine: type[Engine], path: str, count: int, value_size: int, seed: int) -> None:
    """Put every key, tell so, and be killed."""
    data = DataSet(count, value_size, seed)
    store = engine(path, value_size)
    for start in range(0, count, _CHUNK_OPERATIONS):
        store.put_each(data.renew(range(start, min(start + _CHUNK_OPERATIONS, count))))
    print("filled", flush=True)
    os.kill(os.getpid(), 9)


def _durable_put(session: Session, threads: int) -> Figures:
    data = session.data
    value = data.value(0, 1)
    done = [0] * threads
    failed: list[BaseException] = []
    start, stop = threading.Barrier(threads + 1), threading.Event()

    with session.scratch(durable=True) as engine:

        def work(index: int) -> None:
            try:
                with engine.putter() as put:
                    start.wait()
                    while True:  # once at least, however slow the disk is
                        put(b"%04d-%011d" % (index, done[index]), value)
                        done[index] += 1
                        if stop.is_set():
                            break
            except BaseException as error:
                failed.append(error)
                start.abort()

        workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
        for worker in workers:
            worker.start()
        watch = Stopwatch()
        try:
            start.wait()
            with watch:
                stop.wait(session.seconds)
                stop.set()
                for worker in workers:
                    worker.join()
        except threading.BrokenBarrierError:
            pass
        for worker in workers:
            worker.join()
        if failed:
            raise failed[0]
        for index, count in enumerate(done):
            step = count // 100 + 1
            found = engine.get_each([b"%04d-%011d" % (index, number) for number in range(0, count, step)])
            if any(each != value for each in found):
                raise WrongAnswerError("a durable put was lost")
    return watch.per(sum(done))


for _threads in (1, 8, 32):
    _RUN[f"durable_put_{_threads}"] = partial(_durable_put, threads=_threads)


@workload("delete")
def delete_all(session: Session) -> Figures:
    engine, data = session.loaded(), session.data
    session.is_compacted = False
    watch, done = Stopwatch(), 0
    numbers = data.shuffled()
    for chunk in session.chunks(numbers, watch):
        keys = [data.keys[number] for number in chunk]
        with watch:
            engine.delete_each(keys)
        data.forget(chunk)
        done += len(chunk)
    gone = numbers[:done][:: done // 1000 + 1]
    data.check_values(gone, engine.get_missing_each([data.keys[number] for number in gone]))
    return watch.per(done)


@workload("heap")
def measure_heap(session: Session) -> Figures:
    """Python's own count of its heap; keys made by the benchmark before are not in it, those an open makes are."""
    with session.scratch() as engine:  # so that the code is loaded
        engine.put_each([(b"key", bytes(session.data.value_size))])
    data, path = session.scratch_data(), session.scratch_path()
    key_bytes = sys.getsizeof(data.keys[0])

    def in_use() -> float:
        gc.collect()
        return tracemalloc.get_traced_memory()[0] / data.count

    tracemalloc.start()
    try:
        before = in_use()
        engine = session.open(path)
        for chunk in session.chunks(range(data.count)):
            engine.put_each(data.renew(chunk))
        session.settle()
        values = data.count * (33 + data.value_size) if session.engine_type.name == "dict" else 0
        figures = {"written": in_use() - before - values / data.count}
        _check_some(engine, data, range(data.count))
        engine.close()
        del engine
        if "open" not in session.engine_type.lacks:
            before = in_use()
            engine = session.open(path)
            figures["opened"] = in_use() - before - key_bytes
            with engine.scan() as entries:
                next(iter(entries))
            figures["ordered"] = in_use() - before - key_bytes
            engine.close()
        return figures
    finally:
        tracemalloc.stop()
        shutil.rmtree(path, ignore_errors=True)


@workload("memory")
def measure_memory(session: Session) -> Figures:
    """In a process of its own, so that no memory can be reused that something else has freed."""
    session.loaded()
    session.close()
    command = [sys.executable, "-m", "tests.benchmarks.worker", "--memory", session.engine_type.name, session.main_path]
    command += [str(session.data.value_size), session.data.keys[0].hex()]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    opened, ordered = (int(field) / session.data.count for field in ended.stdout.split())
    return {"opened": opened, "ordered": ordered}


def print_memory(engine: type[Engine], path: str, value_size: int, key: bytes) -> None:
    """Print how many bytes of anonymous memory opening takes, and how many with the first entry in key order."""

    def anonymous() -> int:
        gc.collect()
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("this kernel does not tell RssAnon")

    scratch = path + ".first"  # so that the code is loaded and the engine's fixed costs are not counted as a key's
    engine(scratch, value_size).close()
    shutil.rmtree(scratch, ignore_errors=True)
    before = anonymous()
    store = engine(path, value_size)
    assert store.get(key) is not None
    opened = anonymous()
    with store.scan() as entries:
        next(iter(entries))
    print(opened - before, anonymous() - before)
    store.close()


def _on_disk(path: str) -> int:
    return sum(file.stat().st_blocks * 512 for file in Path(path).rglob("*") if file.is_file())


@workload("disk")
def measure_disk(session: Session) -> Figures:
    data, path = session.scratch_data(), session.scratch_path()
    live = data.count * (16 + data.value_size)
    figures: Figures = {}
    try:
        for state in ("loaded", "overwritten", "compacted"):
            if state == "compacted" and "compact" in session.engine_type.lacks:
                break
            engine = session.open(path)
            if state == "compacted":
                engine.compact()
            else:
                for chunk in session.chunks(data.shuffled()):
                    engine.put_each(data.renew(chunk))
            session.settle()
            _check_some(engine, data, range(data.count))
            engine.close()
            session.open(path).close()  # some engines remove obsolete files only then
            figures[state] = _on_disk(path) / live
        return figures
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _segments(session: Session, count: int) -> Figures:
    """Only bytekv has these; the background compaction, which would merge small segments, is off."""
    data, path = session.scratch_data(), session.scratch_path()
    # The size of one entry: 23 bytes before the key, 4 after the value; a segment begins with a header.
    size = max(256, data.count * (27 + 16 + data.value_size) // count + 300)
    try:
        engine = session.engine_type(path, data.value_size, segment_size_bytes=size, auto_compact=False)  # type: ignore[call-arg]
        for chunk in session.chunks(data.shuffled()):
            engine.put_each(data.renew(chunk))
        engine.close()
        watch = Stopwatch()
        with watch:
            engine = session.engine_type(path, data.value_size, auto_compact=False)  # type: ignore[call-arg]
        opening = watch.per(data.count)
        actual = len(engine.db.stats().segments)  # type: ignore[attr-defined]
        watch = Stopwatch()
        for chunk in session.chunks(data.shuffled()):
            keys = [data.keys[number] for number in chunk]
            with watch:
                found = engine.get_each(keys)
            data.check_values(chunk, found)
        reading = watch.per(data.count)
        writing = _write(session, data, data.shuffled(), engine.put_each)
        _check_some(engine, data, range(data.count))
        engine.close()
    finally:
        shutil.rmtree(path, ignore_errors=True)
    figures = {**reading, "segments": actual, "put_wall": writing["wall"], "put_cpu": writing["cpu"]}
    return figures | {"open_wall": opening["wall"], "open_cpu": opening["cpu"]}


for _count in (1, 10, 100, 1000):
    _RUN[f"segments_{_count}"] = partial(_segments, count=_count)
