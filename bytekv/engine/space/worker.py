"""Background worker: a thread that calls one method when woken or after a delay.

The thread starts at the first `wake`, so that a short script never has one. It holds its owner weakly, so that an
owner that nobody uses any more can be collected. It knows nothing of what the method does, only how to do it in
slices that nobody notices. While the interpreter shuts down no thread can be started, and existing ones are frozen;
a caller that still writes then does all the work itself.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable

from ..._lean import TYPE_CHECKING, suppress
from ...errors import StoreClosedError
from ..tuning import TUNING

if TYPE_CHECKING:
    from typing import Any

__all__ = ["LastLock", "StopWork", "Worker", "start_no_more"]

_at_exit = False


def start_no_more() -> None:
    """Start no thread from now on: the interpreter is about to end, and would freeze it in the middle."""
    global _at_exit
    _at_exit = True


class LastLock:
    """A lock that nobody waits for while the interpreter shuts down: other threads are frozen, one perhaps inside."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self.release = lock.release
        self._is_owned = lock._is_owned

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Do what `threading.RLock.acquire` does; `StoreClosedError` where it would wait for ever."""
        if not sys.is_finalizing():
            return self._lock.acquire(blocking, timeout)  # type: ignore[no-any-return]
        if not self._lock.acquire(blocking=False):
            raise StoreClosedError("the interpreter ends, and has stopped a thread inside a call of this store")
        return True

    __enter__ = acquire

    def __exit__(self, *_: object) -> None:
        self.release()

    def __repr__(self) -> str:
        return repr(self._lock)  # which tells whether it is held


class _Life:
    """What the thread and its owner tell each other.

    Plain locks that serve as flags, for these are taken and given in one step. An interrupt inside the methods
    of `threading.Event` or of a thread that starts, which are written in Python, leaves a lock held for ever.
    """

    __slots__ = ("done", "ended", "idents", "retry_s", "taken", "wanted")

    def __init__(self, retry_s: float) -> None:
        self.retry_s = retry_s  # before work that went wrong is tried again
        self.wanted = threading.Lock()  # free: the method is to be called
        self.wanted.acquire()
        self.taken = threading.Lock()  # held: a thread does the work
        self.done = threading.Lock()  # free: it does no more
        self.done.acquire()
        self.ended = False
        self.idents: set[int] = set()  # of the threads that were started, one of which has the work


class Worker:
    """Run ``method`` of an object in the background.

    The method returns the seconds until it wants to be called again, or None to wait for `wake`.
    An exception must not vanish: it is handed to ``failed``, which tells whether another try is worth it.
    If not, the thread ends.
    """

    def __init__(
        self,
        method: Callable[[], float | None],
        failed: Callable[[BaseException], bool],
        name: str,
        retry_s: float = TUNING.retry_s,
    ) -> None:
        self._life = _Life(retry_s)
        self._starting = threading.RLock()  # a handler that wakes it, too, may interrupt its start
        self._started = False
        self._stopped = False
        self._name = name
        self._arguments = weakref.WeakMethod(method), weakref.WeakMethod(failed), weakref.ref(self), self._life

    def wake(self) -> bool:
        """Have the method called soon; False if there can be no thread (the interpreter shuts down)."""
        life = self._life
        if not self._started:
            if self._stopped or _at_exit:
                return False
            with self._starting:
                if not self._started:
                    try:
                        # An interrupted start() may have led to a thread or not; the next call starts another,
                        # and the first that gets so far does the work.
                        threading.Thread(target=_run, args=self._arguments, name=self._name, daemon=True).start()
                    except RuntimeError:
                        return False
                    self._started = True
        if life.wanted.locked():
            with suppress(RuntimeError):  # another caller has said so meanwhile
                life.wanted.release()
        return not (life.ended or self._stopped)

    @property
    def is_stopping(self) -> bool:
        """Tell the method that it should come to an end."""
        return self._stopped

    def stop(self) -> None:
        """End the thread and wait until it has, unless it is the caller."""
        self._stopped = True
        life = self._life
        if life.wanted.locked():
            with suppress(RuntimeError):
                life.wanted.release()
        # A thread that has not taken the work yet looks whether it is wanted before it does anything.
        is_working = life.taken.locked() and threading.get_ident() not in life.idents
        if is_working and not sys.is_finalizing():
            with life.done:  # while the interpreter shuts down, its daemon threads are frozen for ever
                pass


class StopWork(Exception):
    """End background work because its owner is being closed."""


def _run(method: Any, failed: Any, worker_of: Callable[[], Worker | None], life: _Life) -> None:
    life.idents.add(threading.get_ident())  # first: a finaliser in here must not wait for its own thread
    if not life.taken.acquire(blocking=False):
        return
    try:
        _work(method, failed, worker_of, life)
    finally:
        life.ended = True
        life.done.release()


def _work(method: Any, failed: Any, worker_of: Callable[[], Worker | None], life: _Life) -> None:
    delay: float | None = None
    while True:
        try:
            # An owner may vanish unseen, so no wait is endless.
            life.wanted.acquire(timeout=60.0 if delay is None else delay)
            call, worker = method(), worker_of()
            if call is None or worker is None or worker.is_stopping:
                return
            delay = call()
        except BaseException as error:
            delay = life.retry_s
            try:
                call = failed()
                if call is None or not call(error):
                    return
            except MemoryError:
                pass  # what went wrong will be told when it does so again
        call = worker = None
