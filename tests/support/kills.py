"""A writer is killed with ``kill -9``, again and again on one store, and loses nothing that it had acknowledged.

The writer is a fork of this process, so that a kill costs milliseconds. What its operation n does is a matter of
arithmetic, which both sides know; how far it has come stands in a page of memory that both share, the oracle. The
page also says which phase the writer is in (an opening, a roll, a compaction, a close), for the killer picks a phase
and a moment after its beginning. Who opens the store next, a writer that goes on or an observer, compares all of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import mmap
import os
import random
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bytekv.engine.log.segment import Writer
from bytekv.engine.log.segment_manager import SegmentManager
from bytekv.engine.space.compactor import Compactor
from bytekv.engine.store import Store
from tests.support.harness import WRONG, Case, QuickFiles, open_store

SYNCS = ("interval", "always", "os")
MODES = tuple(itertools.product(SYNCS, ("mmap", "pread")))
PHASES = ("opening", "writing", "a batch", "rolling", "compacting", "closing")
TIMEOUT_S = 60.0
KILLS_OF_A_STORE = 12


# --- what is written ---------------------------------------------------------------------------


class Operation(NamedTuple):
    """What one call writes: values, or None for a delete. No keys: a clear."""

    writes: list[tuple[bytes, bytes | None]]
    is_batch: bool


def operation(seed: int, number: int) -> Operation:
    """Return operation ``number`` of a writer."""
    dice = hashlib.blake2b(b"%d %d" % (seed, number), digest_size=16).digest()
    keys = [b"k-%d" % (byte % 60) for byte in dice[4:]]
    value = b"%d " % number * (1 + dice[1] % 40)
    if dice[0] < 140:
        return Operation([(keys[0], value)], False)
    if dice[0] < 148:
        return Operation([(keys[0], value * 60)], False)  # beyond 8 KiB, or a segment of its own
    if dice[0] < 200:
        return Operation([(keys[0], None)], False)
    if dice[0] < 255:
        size = 2 + dice[1] % 7
        if dice[0] >= 250:
            value *= 120  # so large a batch is written in parts
        return Operation([(key, None if at % 3 == 2 else value) for at, key in enumerate(keys[:size])], True)
    return Operation([], False)


def carry_out(db: Store, what: Operation) -> None:
    if what.is_batch:
        with db.batch() as batch:
            for key, value in what.writes:
                if value is None:
                    batch.delete(key)
                else:
                    batch[key] = value
    elif not what.writes:
        db.clear()
    else:
        ((key, value),) = what.writes
        if value is None:
            db.delete(key)
        else:
            db[key] = value


class Model:
    """What a store holds after a number of operations, and its seq."""

    def __init__(self, seed: int) -> None:
        self.seed, self.number, self.seq = seed, 0, 0
        self.content: dict[bytes, bytes] = {}

    def step(self) -> None:
        self.number += 1
        what = operation(self.seed, self.number)
        if not what.writes:
            self.seq += bool(self.content)
            self.content.clear()
        before = set(self.content)
        for key, value in dict(what.writes).items():  # of a batch the last write to a key counts
            if value is not None:
                self.content[key] = value
                self.seq += 1
            elif key in before:  # deleting what is not there is nothing
                del self.content[key]
                self.seq += 1

    def expect(self, db: Store, acknowledged: int) -> None:
        """Go on to what the store holds: whole operations 1 … R, R at least the last one acknowledged (D1, D2, D3)."""
        while self.number < acknowledged or self.seq < db.last_seq:
            self.step()
        where = f"seed {self.seed}, acknowledged {acknowledged}, compared with {self.number}"
        assert self.seq == db.last_seq, f"half a batch, or a lost operation: seq {db.last_seq} of {self.seq}; {where}"
        assert dict(db.items()) == self.content, where


# --- the writer that is killed -----------------------------------------------------------------


class Page:
    """Memory that the writer and its killer share: what was acknowledged, how often each phase began and ended.

    Cells of 8 bytes, each written by one machine instruction: no kill leaves half of a number.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self.cells = memoryview(self._memory).cast("Q")

    @property
    def acknowledged(self) -> int:
        return self.cells[0]

    def acknowledge(self, number: int) -> None:
        self.cells[0] = number

    def begun(self, phase: str) -> int:
        return self.cells[1 + PHASES.index(phase)]

    @contextlib.contextmanager
    def during(self, phase: str) -> Iterator[None]:
        cell = 1 + PHASES.index(phase)
        self.cells[cell] += 1
        yield
        self.cells[cell + len(PHASES)] += 1

    def begin(self) -> None:
        """Forget the phases of the writer before."""
        self.cells[1:] = memoryview(bytes(mmap.PAGESIZE - 8)).cast("Q")

    def interrupted(self) -> list[str]:
        """List the phases that were under way."""
        return [phase for at, phase in enumerate(PHASES, 1) if self.cells[at] > self.cells[at + len(PHASES)]]

    def close(self) -> None:
        self.cells.release()
        self._memory.close()


def _announce(page: Page) -> None:
    """Have rolls, compactions and batches in many parts say in the page that they are under way; in this process."""

    def announced(phase: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            with page.during(phase):
                return method(*arguments, **named)

        return call

    write = Writer.write
    in_parts = announced("a batch", write)
    Writer.write = lambda *how: (in_parts if len(how[2]) > 1 else write)(*how)  # type: ignore[method-assign]
    SegmentManager.roll = announced("rolling", SegmentManager.roll)  # type: ignore[method-assign]
    Compactor.run = announced("compacting", Compactor.run)  # type: ignore[method-assign]


def _write_for_ever(path: Path, model: Model, page: Page, sync: str, io: str) -> None:
    """Open, compare, write, compact, close, and again, until killed, or until nobody is left to do so."""
    _announce(page)
    killer = os.getppid()
    options = {"sync": sync, "io": io, "sync_interval_s": 0.002, "segment_size_bytes": 4096}
    options |= {"auto_compact": True, "compact_dead_bytes": 1000, "compact_dead_ratio": 0.2}
    while os.getppid() == killer:
        with page.during("opening"):
            db = open_store(path, files=QuickFiles(), **options)
        model.expect(db, page.acknowledged)
        with page.during("writing"):
            for number in itertools.count(model.number + 1):
                carry_out(db, operation(model.seed, number))
                page.acknowledge(number)
                if number % 83 == 0:
                    db.compact()
                if number % 250 == 0:
                    break
        with page.during("closing"):
            db.close()


def _start_writer(path: Path, model: Model, page: Page, sync: str, io: str) -> tuple[int, int]:
    """Return the writer's process id, and a pipe on which it says what went wrong."""
    told, tells = os.pipe()
    writer = os.fork()
    if writer == 0:
        try:
            _write_for_ever(path, model, page, sync, io)
        except BaseException:
            os.write(tells, traceback.format_exc().encode()[-60_000:])
        os._exit(1)
    os.close(tells)
    return writer, told


# --- the killer --------------------------------------------------------------------------------


def _kill_in(phase: str, writer: int, page: Page, dice: random.Random) -> None:
    """Kill the writer some time after a phase has begun; where it never does, after long enough."""
    which = dice.choice([1, 1, 1, 2, 5]) if phase != "opening" else 1
    until = time.monotonic() + 1.0
    while page.begun(phase) < which and time.monotonic() < until and not _has_ended(writer):
        os.sched_yield()
    moment = time.monotonic() + 10 ** dice.uniform(-6, -3.5 if phase != "writing" else -2)
    while time.monotonic() < moment:
        pass
    os.kill(writer, signal.SIGKILL)


def _has_ended(writer: int) -> bool:
    return os.waitid(os.P_PID, writer, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def kill_one(path: Path, model: Model, page: Page, sync: str, io: str, phase: str, dice: random.Random) -> list[str]:
    """Let a writer go on where the model is, and kill it; return the phases that were under way."""
    page.begin()
    writer, told = _start_writer(path, model, page, sync, io)
    try:
        _kill_in(phase, writer, page, dice)
    finally:
        _, status = os.waitpid(writer, 0)
        with open(told, "rb") as pipe:
            said = pipe.read().decode()
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, f"the writer ended by itself: {said}"
    return page.interrupted()


def observe(path: Path, model: Model, acknowledged: int, sync: str, io: str) -> None:
    """Open what a killed writer has left, in some mode, and compare; then read it as anybody may."""
    with open_store(path, files=QuickFiles(), sync=sync, io=io) as db:
        report = db.verify()
        assert report.ok, report
        model.expect(db, acknowledged)
    with open_store(path, "r", files=QuickFiles(), io=io) as db:
        assert (db.recovery.clean, db.last_seq) == (True, model.seq)
        assert dict(db.items()) == model.content


def kills(place: Path, seed: int, modes: tuple[tuple[str, str], ...] = MODES) -> Iterator[Case]:
    """Kill writers without end, some on one store before the next begins; each case is a kill.

    Not after each one is the store observed: the next writer may be killed while it recovers from the one before.
    """
    for number in itertools.count():
        dice = random.Random(f"{seed} {number}")
        path, model, page = place / f"killed-{number}", Model(dice.getrandbits(32)), Page()
        try:
            for turn in range(KILLS_OF_A_STORE):
                sync, io = modes[(number + turn) % len(modes)]
                phase = PHASES[dice.randrange(len(PHASES))]
                try:
                    struck = kill_one(path, model, page, sync, io, phase, dice)
                    if dice.random() < 0.5 or turn == KILLS_OF_A_STORE - 1:
                        observe(path, model, page.acknowledged, *dice.choice(MODES))
                except WRONG as error:
                    error.add_note(f"kill {turn} of store {number}, in {phase}; sync {sync}, io {io}")
                    yield Case("kills", error)
                    break
                yield Case("kills", detail=", ".join(struck) or "between")
        finally:
            page.close()
            shutil.rmtree(path, ignore_errors=True)
