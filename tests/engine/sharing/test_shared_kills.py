"""Writers of one store are killed with ``kill -9`` while their neighbours go on, and nothing acknowledged is lost.

Hazards 1 and 2. Each writer tells what it was answered through a pipe; what was not told may or may not have happened.
Segments are small, so that a kill often meets a roll, a compaction or an opening.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

import bytekv
from bytekv.engine.stores import open as open_store
from tests.support.harness import Case, expect_no_violation

WRITERS = 4
KILLS_OF_A_STORE = 12
PATIENCE_S = 60.0
SYNCS = ("interval", "always", "os")

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="made of fork and kill -9")


def _write(path: str, number: int, sync: str, pipe: int) -> None:
    """Write for ever, and tell what was acknowledged: a kind, whose, and a count that only grows."""

    def tell(kind: bytes, count: int) -> None:
        os.write(pipe, b"%s %d %d\n" % (kind, number, count))

    dice = random.Random(os.getpid())
    options = {"segment_size_bytes": 4000, "compact_dead_bytes": 500, "busy_timeout_s": PATIENCE_S}
    db = open_store(path, shared=True, sync=sync, **options)  # type: ignore[arg-type]
    mine = b"of %d" % number
    count = int(db.get(mine, b"0").split()[0])
    tell(b"found", count)
    while True:
        what = dice.random()
        if what < 0.5:
            count += 1
            db[mine] = b"%d " % count + b"x" * dice.randrange(200)
            tell(b"put", count)
        elif what < 0.7:
            tell(b"incr", db.incr("sum"))
        elif what < 0.8:
            with db.transaction() as tx:
                both = int(tx.get("left", b"0")) + 1
                tx["left"] = tx["right"] = str(both)
            tell(b"both", both)
        elif what < 0.9:
            content = dict(db.items())
            assert content.get(b"left") == content.get(b"right"), "half of a transaction"
        elif what < 0.905:
            with contextlib.suppress(bytekv.StoreBusyError):
                db.compact()
        elif what < 0.91:
            db.close()
            db = open_store(path, shared=True, sync=sync, **options)  # type: ignore[arg-type]
        else:
            db.get("sum")


class _Oracle:
    """What was acknowledged, as far as it has come through the pipe."""

    def __init__(self) -> None:
        self.pipe, self.end = os.pipe()
        os.set_blocking(self.pipe, False)
        self.most: dict[tuple[bytes, bytes], int] = {}  # kind, writer -> the highest count
        self.sums: set[bytes] = set()
        self.rest = b""
        self.lines = 0

    def listen(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self.pipe, 1 << 16):
                self.rest += piece
        *lines, self.rest = self.rest.split(b"\n")
        for line in lines:
            self.lines += 1
            kind, writer, count = line.split()
            if kind == b"found":
                assert int(count) >= self.most.get((b"put", writer), 0), "an acknowledged put is lost"
                continue
            if kind == b"incr":
                assert count not in self.sums, "two calls of incr() were answered alike"
                self.sums.add(count)
                writer = b""
            if kind == b"both":
                writer = b""
            self.most[kind, writer] = max(int(count), self.most.get((kind, writer), 0))

    def judge(self, path: Path) -> None:
        with open_store(path) as db:
            for (kind, writer), count in self.most.items():
                key = {b"put": b"of " + writer, b"incr": b"sum", b"both": b"left"}[kind]
                assert int(db[key].split()[0]) >= count, f"{key!r} is at {db[key]!r}, {count} was acknowledged"
            assert db.get("left") == db.get("right")
            report = db.verify()
            assert report.ok, report

    def close(self) -> None:
        os.close(self.pipe)
        os.close(self.end)


def _fork(path: Path, number: int, sync: str, oracle: _Oracle) -> int:
    child = os.fork()
    if child:
        return child
    try:
        _write(str(path), number, sync, oracle.end)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(3)


def _kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "a writer met an error, see its traceback"


def kills(place: Path, seed: int) -> Iterator[Case]:
    """Yield a case for each kill, with a new store now and then."""
    dice = random.Random(seed)
    while True:
        for sync in SYNCS:
            home = Path(tempfile.mkdtemp(dir=place))
            oracle, children = _Oracle(), {}
            try:
                with open_store(home, shared=True, segment_size_bytes=4000):
                    pass
                children = {number: _fork(home, number, sync, oracle) for number in range(WRITERS)}
                for _ in range(KILLS_OF_A_STORE):
                    before, until = oracle.lines, time.monotonic() + PATIENCE_S
                    wanted = dice.randrange(1, 80)
                    while oracle.lines < before + wanted:
                        select.select([oracle.pipe], [], [], PATIENCE_S)
                        oracle.listen()
                        assert time.monotonic() < until, "nobody writes any more"
                    number = dice.randrange(WRITERS)
                    _kill(children.pop(number))
                    oracle.listen()
                    children[number] = _fork(home, number, sync, oracle)
                    yield Case("kills of one of several writers", detail=sync)
                while children:
                    _kill(children.popitem()[1])
                oracle.listen()
                oracle.judge(home)
            except Exception as error:
                yield Case("kills of one of several writers", error)
            finally:
                for child in children.values():
                    with contextlib.suppress(ProcessLookupError, AssertionError):
                        _kill(child)
                oracle.close()
                shutil.rmtree(home, ignore_errors=True)


def test_who_is_killed_loses_nothing_and_keeps_nobody_waiting(path: Path) -> None:
    cases = kills(path.parent, 0)
    seen = expect_no_violation(next(cases) for _ in range(len(SYNCS) * KILLS_OF_A_STORE))
    assert seen["kills of one of several writers"] == len(SYNCS) * KILLS_OF_A_STORE
    cases.close()
