"""D10 among openings of one store in one process, where threads change places between any two lines of a turn.

tests/engine/sharing/test_shared_linearizable.py does the same with processes, which change places where they like.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.engine.test_linearizable import (
    KEYS,
    Recorder,
    at_once,
    expect_linearizable,
    switching_often,
)
from tests.support.harness import QuickFiles
from tests.support.linearizability import Call
from tests.support.sharing import share

SYNCS = ("interval", "always", "os")
Histories = dict[bytes, list[Call]]

#: Without those that need a clock which all processes could be told of.
VERBS = [
    *("get", "get", "get", "in", "entry", "entry"),
    *("put", "put", "put", "put_if", "put_if", "add", "delete", "pop", "incr", "incr"),
]


class _Clock:
    """Moments by the machine's clock, each another one."""

    def __next__(self) -> int:
        return time.monotonic_ns()


class SharedRecorder(Recorder):
    """Note the calls of one process."""

    def __init__(self, db: Any, process: int) -> None:
        super().__init__(db, QuickFiles())
        self.moments = _Clock()  # type: ignore[assignment]
        self.values = itertools.count(process * 1_000_000)

    def call(self, thread: int, rest: random.Random, key: bytes) -> None:
        verb = rest.choice(VERBS)
        number = next(self.values)
        value = b"%d" % number if number % 3 else b"value %d" % number + b"." * rest.choice((0, 50, 500))
        seq = self.last_seqs.get(key, 0) if rest.random() < 0.8 else 0
        given: tuple[Any, ...] = {
            "put": (value, 0),
            "add": (value, 0),
            "put_if": (value, seq),
            "incr": (rest.choice((1, -1, 5)),),
        }.get(verb, ())
        began = next(self.moments)
        result = getattr(self, verb if verb != "in" else "contains")(key, *given)
        ended = next(self.moments)
        self.calls.setdefault(key, []).append(Call(began, ended, thread, verb, given, result))
        if verb in ("put", "put_if", "entry") and result is not None:
            self.last_seqs[key] = result if verb == "put" else result[1]


@pytest.mark.parametrize("sync", SYNCS)
def test_calls_of_several_openings_happen_one_after_the_other(path: Path, sync: str) -> None:
    """In one process the switches come where they hurt: between two lines of a turn."""
    merged: Histories = {key: [] for key in KEYS}
    guard = threading.Lock()

    def work(process: int) -> None:
        rest = random.Random(process)
        with share(path, sync=sync, files=QuickFiles(), segment_size_bytes=1000) as db:
            recorder = SharedRecorder(db, process)
            for number in range(60):
                recorder.call(process, rest, rest.choice(KEYS))
                if number == 30:
                    db.compact()
        with guard:
            for key, found in recorder.calls.items():
                merged[key] += found

    with switching_often():
        at_once(*(lambda process=process: work(process) for process in range(1, 4)))
    expect_linearizable(merged)
