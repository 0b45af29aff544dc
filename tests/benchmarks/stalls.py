"""What an application feels of what bytekv does in the background: five workloads.

Only bytekv has these: it compacts in a thread of Python, which competes with the application for the GIL.

A store is prepared that is as full of garbage as one with background compaction comes to be: a little more than half
of it is dead, spread evenly, so that a compaction has to rewrite all of its segments and to copy as many entries as
there are keys. Then it is opened with the background compaction on, which begins at once.

*put while compacting*: a thread puts, each put timed, until every prepared segment is gone; before that, the same
puts to a copy of the store without compaction.

*GIL while compacting*: for how long the compaction thread holds the GIL in one go, seen from two sides, both with
Python's usual switch interval of 5 ms, so that only what the thread does of its own accord is seen. From inside: the
CPU time that it uses from one sleep or system call, in which Python gives the GIL up, to the next; all of these go
through one object. From outside: another thread reads the clock as fast as it can. When it cannot for a while, and
the compaction thread used the CPU meanwhile (the lesser of the two counts, so that other processes do not), it had to
wait for that long. That is more, if the compaction has slept and come back before the other thread was woken up.

*put while expiring*: a store is loaded with keys that all expire at one moment, and a thread puts, each put timed, from
before that moment until all of them have been taken out; then the same beside as many keys that do not expire, for as
long. What the process holds is measured once they are loaded and at the end.

*steady space*: every key is overwritten in random order, eight times over; how much disk all files of the store take
meanwhile at most, and at the end, how long closing and opening it take then, and how fast the writer is beside the same
without compaction.

*snapshot space*: a snapshot is open while three quarters of the keys are overwritten again and again and the others
once each, a few at a time, so that the snapshot notes them in ever other segments; how much disk all files take at
most, and the files that only the snapshot needs.
"""

from __future__ import annotations

import gc
import os
import shutil
import threading
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from .dataset import DataSet, WrongAnswerError
from .engines import Bytekv
from .workloads import Figures, Session, spread, timed_puts, workload

_LOAD_GROUPS = 64
_PUTS_A_ROUND = 1000
_PATIENCE_S = 300.0  # after which a compaction that does not come to its end is reported as unfinished
_WORTH_COUNTING_NS = 10_000
_SYSTEM_CALLS = ("pause", "yield_cpu", "read", "write", "sync", "sync_directory", "open", "close", "unlink", "replace")


class _Prepared:
    """A store full of garbage, of which copies can be opened."""

    def __init__(self, session: Session) -> None:
        self.session, self.data = session, session.scratch_data()
        self.original = session.scratch_path()
        total = 2 * self.data.count * (43 + self.data.value_size)
        self.segment_size = max(256, min(64 << 20, total // 8))  # so that a small store, too, has something to compact
        engine = self._open(self.original, auto_compact=False)
        group = min(1000, self.data.count // _LOAD_GROUPS + 1)  # each version within each segment
        for start in range(0, self.data.count, group):
            numbers = range(start, min(start + group, self.data.count))
            for part in (numbers, numbers[::20], numbers):  # twice, and every twentieth once more
                engine.put_each(self.data.renew(part))
        self.victims = {row.segment_id for row in engine.db.stats().segments[:-1]}
        engine.close()

    def _open(self, path: str, **options: Any) -> Bytekv:
        size = self.segment_size
        return Bytekv(path, self.data.value_size, compact_dead_bytes=0, segment_size_bytes=size, **options)

    @contextmanager
    def copy(self, *, auto_compact: bool) -> Iterator[Bytekv]:
        """Open a copy; at the end check that every key has kept its value, and remove it."""
        path = self.session.scratch_path()
        shutil.copytree(self.original, path)
        engine = self._open(path, auto_compact=auto_compact)
        try:
            yield engine
            keys = self.data.keys
            for chunk in self.session.chunks(range(self.data.count)):
                self.data.check_values(chunk, engine.get_each([keys[number] for number in chunk]))
        finally:
            engine.close()
            shutil.rmtree(path)

    def is_compacted(self, engine: Bytekv) -> bool:
        stats = engine.db.stats()
        if stats.background_error is not None:
            raise WrongAnswerError(f"the compaction failed: {stats.background_error}")
        return not any(row.segment_id in self.victims for row in stats.segments)

    def remove(self) -> None:
        shutil.rmtree(self.original)


def _put_until(engine: Bytekv, others: DataSet, until: Any) -> tuple[array[int], float]:
    """Put in rounds until told to stop; return the times of all puts and how long they took together."""
    times, elapsed, number = array("Q"), 0.0, 0
    while True:
        pairs = others.renew((number + each) % others.count for each in range(_PUTS_A_ROUND))
        number += _PUTS_A_ROUND
        began = time.perf_counter()
        timed_puts(engine, pairs, times)
        elapsed += time.perf_counter() - began
        if until():
            return times, elapsed


@workload("put_while_compacting")
def put_while_compacting(session: Session) -> Figures:
    prepared = _Prepared(session)
    figures: Figures = {}
    rates = {}
    for compacting in (False, True):
        others = DataSet(10_000, session.data.value_size, session.data.seed + 1)
        with prepared.copy(auto_compact=compacting) as engine:
            began = time.perf_counter()
            end = began + (_PATIENCE_S if compacting else session.seconds)

            def until(engine: Bytekv = engine, compacting: bool = compacting, end: float = end) -> bool:
                return time.perf_counter() > end or (compacting and prepared.is_compacted(engine))

            times, elapsed = _put_until(engine, others, until)
            rates[compacting] = len(times) / elapsed
            prefix = "" if compacting else "without_"
            figures |= {prefix + name: figure for name, figure in spread(times).items()}
            if compacting:
                figures["compaction_s"] = time.perf_counter() - began
                figures["finished"] = float(prepared.is_compacted(engine))
                figures["entries"] = session.data.count
            others.check_values(range(others.count), engine.get_each(others.keys))
    prepared.remove()
    return figures | {"throughput": rates[True] / rates[False]}


def _watch_the_gil(worker: threading.Thread, until: Any) -> tuple[array[int], float]:
    """Return for how long the worker held the GIL each time, in nanoseconds, and for how long it was watched."""
    assert worker.ident is not None
    clock, cpu_of = time.perf_counter_ns, time.clock_gettime_ns
    worker_clock = time.pthread_getcpuclockid(worker.ident)
    held = array("Q")
    began = last = clock()
    last_cpu = cpu_of(worker_clock)
    next_look = began + 20_000_000
    while True:
        cpu = cpu_of(worker_clock)
        now = clock()
        if now - last > _WORTH_COUNTING_NS and cpu - last_cpu > _WORTH_COUNTING_NS:
            held.append(min(now - last, cpu - last_cpu))
        last, last_cpu = now, cpu
        if now > next_look:
            if until():
                return held, (now - began) / 1e9
            last, last_cpu = clock(), cpu_of(worker_clock)
            next_look = last + 20_000_000


def _note_turns(files: Any, worker: threading.Thread) -> array[int]:
    """Have the CPU time noted that the worker uses between two calls of the system, in nanoseconds."""
    turns = array("Q")
    cpu = time.thread_time_ns
    began: list[int] = []

    def noting(call: Any) -> Any:
        def noted(*arguments: Any, **named: Any) -> Any:
            if threading.current_thread() is not worker:
                return call(*arguments, **named)
            if began:
                turns.append(cpu() - began.pop())
            try:
                return call(*arguments, **named)
            finally:
                began[:] = [cpu()]

        return noted

    for name in _SYSTEM_CALLS:
        setattr(files, name, noting(getattr(files, name)))
    return turns


@workload("gil_while_compacting")
def gil_while_compacting(session: Session) -> Figures:
    prepared = _Prepared(session)
    figures: Figures = {}
    others = set(threading.enumerate())
    gc.collect()
    gc.freeze()  # the keys of the benchmark are no part of what a compaction makes the collector look through
    with prepared.copy(auto_compact=True) as engine:
        worker = next(thread for thread in threading.enumerate() if thread not in others)
        turns = _note_turns(engine.db._files, worker)
        end = time.perf_counter() + _PATIENCE_S

        def until() -> bool:
            return time.perf_counter() > end or prepared.is_compacted(engine)

        held, watched = _watch_the_gil(worker, until)
        for name, times in (("", turns), ("outside_", held)):
            figures |= {name + key: figure for key, figure in spread(times or [0]).items()}
            figures[name + "share_over_1ms"] = sum(each for each in times if each > 1_000_000) / max(1, sum(times))
            figures[name + "finished"] = float(prepared.is_compacted(engine))
        figures["watched_s"] = watched
    gc.unfreeze()
    prepared.remove()
    return figures


def _resident_bytes() -> int:
    """Return what the process holds in memory, 0 where nobody tells."""
    gc.collect()
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


@workload("put_while_expiring")
def put_while_expiring(session: Session) -> Figures:
    figures: Figures = {}
    rates = {}
    seconds = session.seconds
    for expiring in (True, False):
        data = session.scratch_data()
        others = DataSet(10_000, session.data.value_size, session.data.seed + 1)
        path = session.scratch_path()
        engine = Bytekv(path, data.value_size, expiry_grace_s=0.0)
        try:
            empty = _resident_bytes()
            # So many are loaded a second at least, also beside other work.
            moment = time.time() + 1 + data.count / 20_000
            for chunk in session.chunks(range(data.count)):
                with engine.db.batch() as batch:
                    for number in chunk:
                        batch.put(data.keys[number], b"", expires=moment if expiring else None)
            full = _resident_bytes()
            keydir = engine.db._keydir
            began = time.perf_counter()
            end = began + seconds if not expiring else began + _PATIENCE_S
            time.sleep(max(0.0, moment - time.time() - session.seconds) if expiring else 0)

            def until(expiring: bool = expiring, end: float = end, keydir: Any = keydir) -> bool:
                return time.perf_counter() > end or (expiring and not keydir.can_expire)

            began = time.perf_counter()
            times, seconds = _put_until(engine, others, until)[0], time.perf_counter() - began
            rates[expiring] = len(times) / seconds
            figures |= {("" if expiring else "without_") + name: figure for name, figure in spread(times).items()}
            if expiring:
                figures["finished"] = float(not keydir.can_expire and len(engine.db) <= others.count)
                figures["loaded_bytes"] = max(0, full - empty) / data.count  # with the pages of the mapped files
                figures["held_bytes"] = max(0, _resident_bytes() - empty) / data.count
            others.check_values(range(others.count), engine.get_each(others.keys))
        finally:
            engine.close()
            shutil.rmtree(path)
    return figures | {"throughput": rates[True] / rates[False]}


def _allocated(path: str) -> int:
    total = 0
    with os.scandir(path) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # compacted away meanwhile
                total += entry.stat().st_blocks * 512
    return total


_OVERWRITTEN = 8  # times


@workload("steady_space")
def steady_space(session: Session) -> Figures:
    rates: dict[bool, float] = {}
    figures: Figures = {}
    for compacting in (False, True):
        data, path = session.scratch_data(), session.scratch_path()
        engine = Bytekv(path, data.value_size, auto_compact=compacting)
        for chunk in session.chunks(data.shuffled()):
            engine.put_each(data.renew(chunk))
        live, most, written_s = engine.db.stats().live_bytes, 0, 0.0
        for _ in range(_OVERWRITTEN):
            for chunk in session.chunks(data.shuffled()):
                pairs = data.renew(chunk)
                began = time.perf_counter()
                engine.put_each(pairs)
                written_s += time.perf_counter() - began
                most = max(most, _allocated(path))
        rates[compacting] = _OVERWRITTEN * data.count / written_s
        if compacting:
            figures["throttled_s"] = engine.db.stats().throttled_s
            began = time.perf_counter()
            engine.close()
            figures["close_s"] = time.perf_counter() - began
            figures["at_end"] = _allocated(path) / live
            began = time.perf_counter()
            engine = Bytekv(path, data.value_size, auto_compact=False)
            figures["open_s"] = time.perf_counter() - began
            figures |= {"live_bytes": live, "most": most / live, "beyond_twice_bytes": most - 2 * live}
            for chunk in session.chunks(range(data.count)):
                data.check_values(chunk, engine.get_each([data.keys[number] for number in chunk]))
        engine.close()
        shutil.rmtree(path)
    return figures | {"throughput": rates[True] / rates[False]}


@workload("snapshot_space")
def snapshot_space(session: Session) -> Figures:
    data, path = session.scratch_data(), session.scratch_path()
    engine = Bytekv(path, data.value_size)
    try:
        for chunk in session.chunks(range(data.count)):
            engine.put_each(data.renew(chunk))
        live, most, pinned = engine.db.stats().live_bytes, 0, 0
        often = [number for number in range(data.count) if number % 4]
        seldom = range(0, data.count, 4)
        share = max(1, len(seldom) // _OVERWRITTEN)
        with engine.db.snapshot() as snapshot:
            first = {number: snapshot[data.keys[number]] for number in seldom[:10]}
            for start in range(0, len(seldom), share):
                for numbers in (often, seldom[start : start + share]):
                    for chunk in session.chunks(numbers):
                        engine.put_each(data.renew(chunk))
                        most = max(most, _allocated(path))
                pinned = max(pinned, engine.db.stats().pinned_bytes)
            if any(snapshot[data.keys[number]] != value for number, value in first.items()):
                raise WrongAnswerError("a snapshot has changed")
        for chunk in session.chunks(range(data.count)):
            data.check_values(chunk, engine.get_each([data.keys[number] for number in chunk]))
    finally:
        engine.close()
        shutil.rmtree(path)
    return {"live_bytes": live, "most": most / live, "pinned": pinned / live}
