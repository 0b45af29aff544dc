"""How long a writer waits beside another thread that does something with all keys: one workload.

A thread puts at a fixed rate. What counts is how late each put has come back after the moment at which it was *meant*
to begin. So it counts as well when the thread had to wait for the GIL before it could begin, and when puts queue up
behind one that waited. Beside it the main thread does one thing after the other with a million keys: sorts them, from
nothing and after an eighth of them has changed; overwrites all under a snapshot and reads the first key of that; puts
them all by one `update`; deletes them all in one batch; clears the store with and without an open view. For each is
told the longest pause, and how long it took itself. The same beside a thread that sleeps and beside one that only
counts tells what the machine and the interpreter do of their own accord: a thread that computes keeps the GIL for 5 ms
whenever another wants it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import islice

from .dataset import DataSet, WrongAnswerError
from .engines import Bytekv
from .workloads import Figures, Session, workload

_INTERVAL_S = 0.002
_KEYS_BESIDE = 10_000


class _Putting:
    """A thread that puts at a fixed rate; it is made, watches operations, and is ended."""

    def __init__(self, engine: Bytekv, others: DataSet) -> None:
        self._engine, self._others = engine, others
        self._late = 0.0  # of the latest put, since `watch` asked; only ever grows in between
        self._count = 0
        self._ends = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._put_until_told()
        except BaseException as error:
            self._error = error

    def _put_until_told(self) -> None:
        put, clock, others = self._engine.put, time.perf_counter, self._others
        meant = clock()
        while not self._ends:
            ((key, value),) = others.renew([self._count % others.count])
            meant += _INTERVAL_S
            wait_s = meant - clock()
            if wait_s > 0:
                time.sleep(wait_s)
            put(key, value)
            self._late = max(self._late, clock() - meant)
            self._count += 1

    def _wait_for_a_few(self) -> None:
        """Return once puts that were meant for later than now have come back."""
        target = self._count + 5
        while self._count < target and self._thread.is_alive():
            time.sleep(_INTERVAL_S)

    def watch(self, name: str, operation: Callable[[], object]) -> Figures:
        """Return how late a put was at most beside an operation, and how long that took."""
        self._wait_for_a_few()
        self._late = 0.0
        began = time.perf_counter()
        operation()
        took = time.perf_counter() - began
        self._wait_for_a_few()  # the one that was kept waiting the longest may come back only now
        return {f"{name}_pause": self._late * 1e6, f"{name}_s": took}

    def end(self) -> None:
        self._ends = True
        self._thread.join()
        if self._error is not None:
            raise self._error


def _count_for(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def _expect(found: object, expected: object) -> None:
    if found != expected:
        raise WrongAnswerError(f"{found!r} was found where {expected!r} was expected")


@workload("pauses")
def pauses(session: Session) -> Figures:
    data = session.scratch_data()
    others = DataSet(_KEYS_BESIDE, session.data.value_size, session.data.seed + 1)
    figures: Figures = {}
    with session.scratch() as engine:
        assert isinstance(engine, Bytekv)
        db = engine.db
        putting = _Putting(engine, others)

        def watch(name: str, operation: Callable[[], object]) -> None:
            figures.update(putting.watch(name, operation))

        def load() -> None:
            for chunk in session.chunks(data.absent()):
                engine.put_batch(data.renew(chunk))

        try:
            watch("idle", lambda: time.sleep(session.seconds))
            watch("busy", lambda: _count_for(session.seconds))
            load()
            watch("order", lambda: list(islice(db, 1)))
            eighth = range(0, data.count, 8)
            with db.batch() as batch:
                for number in eighth:
                    batch.delete(data.keys[number])
            data.forget(eighth)
            watch("order_again", lambda: list(islice(db, 1)))
            load()

            snapshot = db.snapshot()
            pairs = data.renew(range(data.count))
            watch("overwrite", partial(engine.put_each, pairs))
            watch("first_scan", lambda: list(islice(snapshot, 1)))
            _expect(sorted(set(snapshot).intersection(data.keys)), sorted(data.keys))
            snapshot.close()
            pairs = data.renew(range(data.count))
            watch("update", partial(db.update, pairs))
            data.check_values(range(data.count), engine.get_each(data.keys))

            batch = db.batch()
            for key in data.keys:
                batch.delete(key)
            watch("delete", batch.commit)
            _expect(engine.get_each(data.keys), [None] * data.count)

            for name in ("clear", "clear_viewed"):
                data.forget(range(data.count))
                load()
                view = db.snapshot()
                if name == "clear":
                    view.close()
                watch(name, db.clear)
                view.close()
                _expect(engine.get_each(data.keys), [None] * data.count)
        finally:
            putting.end()
    return figures
