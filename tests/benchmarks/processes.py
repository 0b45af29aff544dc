"""Several processes that write to one store: how much they do together, how evenly, and how late one of them is.

Each workload starts a process of its own, which has no threads and so may fork; that one fills a store and forks the
processes that share it. They open it one after the other, begin together, and each writes keys of its own and reads
everybody's. What they read is checked, and afterwards every process's last values are looked for.

What bytekv pays for sharing alone is compared with a store that it has to itself, in one process, by turns.
"""

from __future__ import annotations

import gc
import itertools
import json
import multiprocessing
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .dataset import WrongAnswerError
from .engines import Bytekv, Engine
from .results import PROCESSES
from .workloads import Figures, Session, spread, timed_puts, workload

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

_KEYS: Final = 1000  # of each process
_BATCH: Final = 100
_LOTS: Final = 4  # of new values for all of these
_CHUNK: Final = 18  # operations between two looks at the clock
_PACE_S: Final = 0.002
_START_S: Final = 0.05  # from the last one's word that it is ready
_ROUNDS: Final = 20  # of what is compared by turns

Pair = tuple[bytes, bytes]


class _Part:
    """What one of several processes does with the store. Keys and values are made before the clock starts."""

    def __init__(self, engine: Engine, me: int, count: int, value_size: int) -> None:
        self.engine, self.me = engine, me
        numbers, padding = random.Random(me), bytes(max(0, value_size - 24))
        self.own = [_key(me, number) for number in range(_KEYS)]
        self.written: dict[bytes, bytes] = {}
        self.times = array("Q")
        versions = itertools.count(1)
        self._lots: list[list[Pair]] = []
        for _ in range(_LOTS):
            numbers.shuffle(self.own)
            self._lots.append([(key, key + b"%08d" % next(versions) + padding) for key in self.own])
        self._pairs: dict[int, Iterator[list[Pair]]] = {}
        keys = [_key(numbers.randrange(count), numbers.randrange(_KEYS)) for _ in range(_LOTS * _KEYS)]
        self._keys = itertools.cycle(_cut(keys, _CHUNK))

    def pairs(self, count: int) -> list[Pair]:
        """Return what to put next; no key comes twice in it."""
        if count not in self._pairs:
            self._pairs[count] = itertools.cycle([pairs for lot in self._lots for pairs in _cut(lot, count)])
        pairs = next(self._pairs[count])
        self.written.update(pairs)
        return pairs

    def keys(self) -> list[bytes]:
        """Return what to get next."""
        return next(self._keys)

    def check(self, keys: Sequence[bytes], found: Sequence[bytes | None], own: Sequence[bytes | None]) -> None:
        """Compare with what this process had put, and with what others may have."""
        for key, value, expected in zip(keys, found, own, strict=True):
            if value is None or value[:16] != key or value != (expected or value):
                raise WrongAnswerError(f"process {self.me} read {value!r} for {key!r}")


def _key(process: int, number: int) -> bytes:
    return b"%04d-%011d" % (process, number)


def _cut(what: list[Any], size: int) -> list[list[Any]]:
    return [what[at : at + size] for at in range(0, len(what) - size + 1, size)]


def _put(part: _Part) -> int:
    part.engine.put_each(part.pairs(_CHUNK))
    return _CHUNK


def _put_batch(part: _Part) -> int:
    part.engine.put_batch(part.pairs(_BATCH))
    return _BATCH


def _put_durably(part: _Part) -> int:
    part.engine.put_each(part.pairs(1))
    return 1


def _get_and_put(part: _Part, gets: int) -> int:
    get, put, written = part.engine.get, part.engine.put, part.written
    keys, found, own = part.keys(), [], []
    for key in keys:
        own.append(written.get(key))
        found.append(get(key))
        if len(found) % gets == 0:
            [pair] = part.pairs(1)
            put(*pair)
    part.check(keys, found, own)
    return _CHUNK + _CHUNK // gets


def _put_seldom(part: _Part) -> int:
    if part.me:
        return _put(part)
    timed_puts(part.engine, part.pairs(1), part.times)
    time.sleep(_PACE_S)
    return 1


_PARTS: Final[dict[str, tuple[Callable[[_Part], int], tuple[int, ...], bool]]] = {
    "processes_put": (_put, PROCESSES, False),
    "processes_batch": (_put_batch, PROCESSES, False),
    "processes_get_put": (partial(_get_and_put, gets=1), PROCESSES, False),
    "processes_gets_put": (partial(_get_and_put, gets=9), PROCESSES, False),
    "processes_paced": (_put_seldom, (2,), False),
    "processes_durable": (_put_durably, (8,), True),
}


# --- in the process that forks -----------------------------------------------------------------


def print_figures(name: str, engine: type[Engine], path: str, value_size: int, seconds: float) -> None:
    """Run a workload with each number of processes and print its figures."""
    step, counts, durable = _PARTS[name]
    figures: Figures = {}
    gc.collect()
    gc.freeze()
    for count in counts:
        done, took, times = _together(step, engine, f"{path}-{count}", count, value_size, seconds, durable=durable)
        figures |= {f"wall_{count}": took / max(1, sum(done)) * 1e6, f"share_{count}": min(done) / max(1, *done)}
        if times:
            figures |= spread(times)
    print(json.dumps(figures))


def _together(
    step: Callable[[_Part], int],
    engine: type[Engine],
    path: str,
    count: int,
    value_size: int,
    seconds: float,
    *,
    durable: bool,
) -> tuple[list[int], float, list[int]]:
    """Return how much each process did, how long they took, and what each timed operation took."""
    try:
        store = engine.shared(path, value_size)
        for process in range(count):
            store.put_batch([(key, key) for key in _Part(store, process, count, value_size).own])
        store.close()
        context = multiprocessing.get_context("fork")
        pipes, children = [], []
        for process in range(count):
            mine, theirs = context.Pipe()
            what = (step, engine, path, process, count, value_size, durable, theirs)
            children.append(context.Process(target=_take_part, args=what))
            children[-1].start()
            theirs.close()
            pipes.append(mine)
            _answer(mine)  # one opens after the other: some fail if many do so together
        begin = time.monotonic() + _START_S
        for pipe in pipes:
            pipe.send((begin, begin + seconds))
        answers = [_answer(pipe) for pipe in pipes]
        for pipe in pipes:
            pipe.send(None)
        for child in children:
            child.join()
        store = engine.shared(path, value_size)
        for _, _, _, written in answers:
            keys = list(written)[:: len(written) // 100 + 1]
            if [store.get(key) for key in keys] != [written[key] for key in keys]:
                raise WrongAnswerError("what a process had put was lost")
        store.close()
        took = max(ended for _, ended, _, _ in answers) - begin
        return [done for done, *_ in answers], took, [each for _, _, times, _ in answers for each in times]
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _answer(pipe: Connection) -> Any:
    answer = pipe.recv()
    if isinstance(answer, Exception):
        raise answer
    return answer


def _take_part(
    step: Callable[[_Part], int],
    engine: type[Engine],
    path: str,
    me: int,
    count: int,
    value_size: int,
    durable: bool,
    pipe: Connection,
) -> None:
    try:
        store = engine.shared(path, value_size, durable=durable)
        part = _Part(store, me, count, value_size)
        pipe.send("ready")
        begin, end = pipe.recv()
        time.sleep(max(0.0, begin - time.monotonic()))
        done = 0
        while time.monotonic() < end:
            done += step(part)
        pipe.send((done, time.monotonic(), part.times.tolist(), part.written))
        pipe.recv()  # nobody closes before all are done
        store.close()
    except Exception as error:
        pipe.send(error)


# --- in the worker -----------------------------------------------------------------------------


def _run(session: Session, name: str) -> Figures:
    path = session.scratch_path()
    command = [sys.executable, "-m", "tests.benchmarks.worker", "--processes", name, session.engine_type.name, path]
    seconds = session.seconds if name == "processes_paced" else session.seconds / 5
    command += [str(session.data.value_size), str(seconds)]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    if ended.returncode:
        raise WrongAnswerError(ended.stderr)
    return json.loads(ended.stdout)  # type: ignore[no-any-return]


for _name in _PARTS:
    workload(_name)(partial(_run, name=_name))


def _by_turns(
    session: Session, engines: Sequence[Engine], work: Callable[[Engine, list[Pair]], object]
) -> Iterator[list[float]]:
    """Yield the processor time in microseconds that an operation takes with each engine, again and again."""
    data = session.scratch_data()
    numbers = range(min(data.count, 1000))
    for _ in range(_ROUNDS):
        took = []
        pairs = data.renew(numbers)
        for engine in engines:
            began = time.process_time()
            work(engine, pairs)
            took.append((time.process_time() - began) / len(numbers) * 1e6)
        yield took


@workload("processes_alone")
def compare_with_exclusive(session: Session) -> Figures:
    paths, size = [session.scratch_path(), session.scratch_path()], session.data.value_size
    engines = [Bytekv(paths[0], size), Bytekv.shared(paths[1], size)]
    works: dict[str, Callable[[Engine, list[Pair]], object]] = {
        "put": lambda engine, pairs: engine.put_each(pairs),
        "get": lambda engine, pairs: engine.get_each([key for key, _ in pairs]),
        "batch": lambda engine, pairs: [
            engine.put_batch(pairs[at : at + _BATCH]) for at in range(0, len(pairs), _BATCH)
        ],
    }
    figures: Figures = {}
    try:
        for name, work in works.items():
            rounds = list(_by_turns(session, engines, work))
            figures[name] = statistics.median(exclusive for exclusive, _ in rounds)
            figures[f"shared_{name}"] = statistics.median(shared for _, shared in rounds)
            figures[f"{name}_ratio"] = statistics.median(shared / exclusive for exclusive, shared in rounds)
    finally:
        for engine, path in zip(engines, paths, strict=True):
            engine.close()
            shutil.rmtree(path)
    return figures


@workload("processes_follow")
def read_what_another_has_put(session: Session) -> Figures:
    """The other process puts when it is told how many; the reader does not sleep meanwhile, so that it stays warm."""
    paths, size = [session.scratch_path(), session.scratch_path()], session.data.value_size
    command = [sys.executable, "-m", "tests.benchmarks.worker", "--puts", "bytekv", paths[1], str(size)]
    exclusive, engine = Bytekv(paths[0], size), Bytekv.shared(paths[1], size)
    child = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    many = 2 * _KEYS  # few enough that it does not catch up by itself before
    part = _Part(exclusive, 0, 1, size)
    after, again, puts, replays = array("Q"), array("Q"), array("Q"), []
    clock = time.perf_counter_ns
    try:

        def ask(count: int) -> bytes:
            child.stdin.write(b"%d\n" % count)  # type: ignore[union-attr]
            child.stdin.flush()  # type: ignore[union-attr]
            os.set_blocking(child.stdout.fileno(), False)  # type: ignore[union-attr]
            line = b""
            while not line.endswith(b"\n"):
                if not (some := child.stdout.readline()) and child.poll() is not None:  # type: ignore[union-attr]
                    raise WrongAnswerError("the other process has ended")
                line += some
            return line.rstrip()

        for _ in range(min(session.data.count, 1000)):
            newest = ask(1)
            for times in (after, again):
                began = clock()
                value = engine.get(newest[:16])
                times.append(clock() - began)
                if value is None or value[:24] != newest:
                    raise WrongAnswerError(f"a get read {value!r}, but another process had put {newest!r} before")
            timed_puts(exclusive, part.pairs(1), puts)
        for _ in range(_ROUNDS):
            newest = ask(many)
            began_s = time.process_time()
            engine.get(newest[:16])
            took_s = time.process_time() - began_s
            pairs = [part.pairs(_KEYS) for _ in range(many // _KEYS)]
            began_s = time.process_time()
            for each in pairs:
                exclusive.put_each(each)
            replays.append(took_s / many / ((time.process_time() - began_s) / len(pairs) / _KEYS))
    finally:
        child.stdin.close()
        child.wait()
        child.stdout.close()
        for store, path in ((exclusive, paths[0]), (engine, paths[1])):
            store.close()
            shutil.rmtree(path)
    first, put = statistics.median(after) / 1000, statistics.median(puts) / 1000
    figures = {"first": first, "again": statistics.median(again) / 1000, "put": put}
    return figures | {"first_ratio": first / put, "replay_ratio": statistics.median(replays)}


def put_when_told(engine: type[Engine], path: str, value_size: int) -> None:
    """Put as often as each line of standard input says, and answer with the newest version of the first key."""
    store = engine.shared(path, value_size)
    part = _Part(store, 0, 1, value_size)
    for line in sys.stdin:
        for _ in range(int(line) // _KEYS):
            store.put_each(part.pairs(_KEYS))
        [(key, value)] = part.pairs(1)
        store.put(key, value)
        print(value[:24].decode(), flush=True)
    store.close()
