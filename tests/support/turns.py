"""A writer and the background worker in lockstep, on a clock that only work moves.

One interpreter serves both, as in CPython: a busy thread keeps it. The writer (the test's thread) gives it up when
it sleeps, or, as long as it is busy, when the worker has waited for `SWITCH_S`; the worker gives it up when it sleeps.
Computing costs what was measured: a put `PUT_S`, a byte that a compaction reads `READ_S`. So the same writes meet the
same compactions at the same bytes in every run, however slow the machine is.

``scale`` makes everything as many times dearer: an entry stands for as many, and a segment of 256 KiB at a scale of 256
for one of 64 MiB.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bytekv.engine.store import Store
from bytekv.options import Options
from tests.support import harness
from tests.support.harness import QuickFiles

PUT_S = 2e-6
READ_S = 2.6e-6 / 128  # 2.6 µs an entry of 128 bytes
SWITCH_S = 0.005  # sys.getswitchinterval()


class _Killed(BaseException):
    """End the worker's thread as the end of the process does."""


class Turns(QuickFiles):
    """Files for one store, and the clock and the turns of its two threads."""

    def __init__(self, scale: float = 1.0, read_s: float = READ_S) -> None:
        super().__init__()
        self.now_s = 0.0
        self.dragged_s = 0.0  # for which the writer has slept
        self.slices: list[tuple[float, float]] = []  # when the worker had the interpreter
        self._put_s, self._read_s = scale * PUT_S, scale * read_s
        self._charged_bytes = 0
        self.read_bytes: Callable[[], int] = lambda: 0
        self._busy_since_s = 0.0
        self._due_s = 0.0
        self._changed = threading.Condition()
        self._is_workers_turn = False
        self._is_free = self._is_killed = False
        self._worker: threading.Thread | None = None
        self._state = "idle"  # "coming": woken, not here yet; "here": in the middle of its work

    # --- what the store asks ---------------------------------------------------------------------

    def monotonic(self) -> float:
        if threading.current_thread() is self._worker:
            read_bytes = self.read_bytes()
            self.now_s += 1e-7 + (read_bytes - self._charged_bytes) * self._read_s
            self._charged_bytes = read_bytes
        return self.now_s

    def pause(self, seconds: float) -> None:
        if self._is_free:
            self.now_s += seconds
        elif threading.current_thread() is self._worker:
            self._due_s = self.now_s + seconds
            self._wait_for_turn()
        else:
            self.dragged_s += seconds
            end_s = self.now_s + seconds
            while self._worker_wants(end_s):
                self.now_s = max(self.now_s, self._due_s)
                self._let_work()
            self.now_s = self._busy_since_s = max(self.now_s, end_s)

    def yield_cpu(self) -> None:
        pass

    def unlink(self, path: str) -> bool:
        return not self._is_killed and super().unlink(path)  # the dead do not tidy up

    # --- what the writer does --------------------------------------------------------------------

    def spend(self, seconds: float | None = None) -> None:
        """Compute for the time of one put, or longer; the worker comes in when it has waited long enough."""
        self.now_s += self._put_s if seconds is None else seconds
        if self.now_s - self._busy_since_s >= SWITCH_S and self._worker_wants(self.now_s):
            self._let_work()
            self._busy_since_s = self.now_s

    def let_worker_finish(self) -> None:
        """Have nothing to do until the worker has nothing to do."""
        while self._worker_wants(float("inf")):
            self.now_s = max(self.now_s, self._due_s)
            self._let_work()
        self._busy_since_s = self.now_s

    def expected(self) -> None:
        """Note that the worker has been woken."""
        if self._state == "idle":
            self._state = "coming"

    def free(self) -> None:
        """End the lockstep: from now on the worker runs as it likes."""
        with self._changed:
            self._is_free = True
            self._changed.notify_all()

    def kill(self) -> None:
        """End the worker where it stands."""
        self._is_killed = True
        self.free()

    def _worker_wants(self, until_s: float) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._state != "coming")
        return self._state == "here" and self._due_s <= until_s

    def _let_work(self) -> None:
        began_s = self.now_s
        with self._changed:
            self._is_workers_turn = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._is_workers_turn)
        self.slices.append((began_s, self.now_s))

    # --- what the worker does --------------------------------------------------------------------

    @contextmanager
    def work(self, comes_again: Callable[[], bool]) -> Iterator[None]:
        """Be the worker for as long as the block takes."""
        self._worker = threading.current_thread()
        self._due_s = self.now_s
        try:
            self._wait_for_turn()
            yield
        finally:
            with self._changed:
                self._state = "coming" if comes_again() else "idle"
                self._is_workers_turn = False
                self._changed.notify_all()

    def _wait_for_turn(self) -> None:
        with self._changed:
            self._state = "here"
            self._is_workers_turn = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._is_workers_turn or self._is_free)
        if self._is_killed:
            raise _Killed


class TurnsStore(Store):
    """A store whose worker takes turns with the test's thread."""

    def __init__(self, path: Path, files: Turns | None = None, **options: Any) -> None:
        self.turns = files or Turns()
        super().__init__(os.fspath(path), "c", Options(**{"sync": "os", **options}), self.turns, harness.TUNING)
        self.turns.read_bytes = lambda: self._maintenance.compactor.read_bytes
        wake, stop = self._worker.wake, self._worker.stop

        def wake_and_tell() -> bool:
            is_there = wake()
            self.turns.expected()
            return is_there

        def stop_and_let_go() -> None:
            self._worker._stopped = True
            self.turns.free()
            stop()

        self._commit.durability._wake = wake_and_tell
        self._worker.stop = stop_and_let_go  # type: ignore[method-assign]

    def _work(self) -> float | None:
        with suppress(_Killed), self.turns.work(lambda: not self._worker._life.wanted.locked()):
            return super()._work()
        return None

    def crash(self) -> None:
        """Leave everything as a killed process does, in the middle of whatever the worker was at."""
        self.turns.kill()
        self._worker.stop()
        harness.crash(self)

    def put_in_turn(self, key: bytes, value: bytes) -> None:
        """Put, in the time that a put takes."""
        self[key] = value
        self.turns.spend()

    def delete_in_turn(self, key: bytes) -> None:
        """Delete, in the time that a put takes."""
        del self[key]
        self.turns.spend()


def bytes_on_disk(path: str | os.PathLike[str]) -> int:
    """Return the length of all files of a store together."""
    with os.scandir(path) as entries:
        return sum(entry.stat().st_size for entry in entries if entry.is_file())
