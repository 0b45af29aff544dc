"""D10 among processes: recorded calls of threads in several processes have an order that explains them.

All processes read one clock, so a call that ended before another began comes before it in that order. Segments are
small and compactions happen all the time; threads switch at nearly every line.
"""

from __future__ import annotations

import os
import pickle
import random
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bytekv.engine.stores import open as open_store
from tests.support.harness import Case, expect_no_violation
from tests.support.linearizability import Call, explain

PROCESSES, THREADS = 3, 2
KEYS = [b"k%d" % number for number in range(3)]
CALLS = 40  # of each thread

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="made of forks")


def _call(db: Any, dice: random.Random, key: bytes, value: bytes) -> tuple[str, tuple[Any, ...], Any]:
    verb = dice.choice(
        ["get", "get", "get", "put", "put", "put", "in", "delete", "pop", "add", "incr", "batch", "scan"]
    )
    if verb == "get":
        return verb, (), db.get(key)
    if verb == "in":
        return verb, (), key in db
    if verb == "put":
        return verb, (value, 0), db.put(key, value)
    if verb == "add":
        return verb, (value, 0), db.add(key, value)
    if verb == "delete":
        return verb, (), db.delete(key)
    if verb == "pop":
        return verb, (), db.pop(key, None)
    if verb == "incr":
        try:
            return verb, (1,), db.incr(key)
        except ValueError:
            return verb, (1,), None
    if verb == "batch":
        with db.batch() as batch:
            batch[key] = value
        return "put", (value, 0), batch.seq
    return "get", (), dict(db.scan(key)).get(key)


def _record(path: str, number: int, seed: int, sync: str, go: int, pipe: int) -> None:
    sys.setswitchinterval(1e-5)
    options: dict[str, Any] = {"segment_size_bytes": 2000, "compact_dead_bytes": 200}
    db = open_store(path, shared=True, sync=sync, **options)  # type: ignore[arg-type]
    found: list[tuple[bytes, Call]] = []

    def run(thread: int) -> None:
        dice = random.Random(f"{seed} {number} {thread}")
        for count in range(CALLS):
            key = dice.choice(KEYS)
            value = b"%d-%d-%d" % (number, thread, count) if dice.random() < 0.5 else b"%d" % dice.randrange(100)
            value += b"" if dice.random() < 0.7 else b" " * dice.randrange(200)
            began = time.monotonic_ns()
            verb, arguments, result = _call(db, dice, key, value)
            call = Call(began, time.monotonic_ns(), number * THREADS + thread, verb, arguments, result)
            found.append((key, call))
            if dice.random() < 0.02:
                db.compact()

    threads = [threading.Thread(target=run, args=(thread,)) for thread in range(THREADS)]
    os.read(go, 1)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with open(pipe, "wb") as out:
        pickle.dump(found, out)
    db.close()


def _history(path: str, seed: int, sync: str) -> list[tuple[bytes, Call]]:
    go, start = os.pipe()
    pipes, children = [], []
    for number in range(PROCESSES):
        out, into = os.pipe()
        child = os.fork()
        if not child:
            status = 1
            try:
                _record(path, number, seed, sync, go, into)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(into)
        pipes.append(out)
        children.append(child)
    os.write(start, b"x" * PROCESSES)
    found: list[tuple[bytes, Call]] = []
    for out in pipes:
        with open(out, "rb") as file:
            content = file.read()
        found += pickle.loads(content) if content else []
    os.close(go)
    os.close(start)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    assert statuses == [0] * PROCESSES, "a process met an error, see its traceback"
    return found


def histories(place: Path, seed: int) -> Iterator[Case]:
    """Yield a case for each history of calls that was recorded and explained."""
    while True:
        for sync in ("interval", "os", "always"):
            seed += 1
            with tempfile.TemporaryDirectory(dir=place) as home:
                try:
                    found = _history(home, seed, sync)
                    for key in KEYS:
                        history = [call for name, call in found if name == key]
                        assert explain(history) is not None, f"seed {seed}, {sync}, {key!r}: {sorted(history)}"
                    yield Case("histories of processes", detail=sync)
                except Exception as error:
                    yield Case("histories of processes", error)


def test_some_order_explains_what_processes_have_seen(path: Path) -> None:
    cases = histories(path.parent, 0)
    expect_no_violation(next(cases) for _ in range(6))
    cases.close()  # type: ignore[attr-defined]
