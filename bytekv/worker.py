"""A daemon thread that calls one method when it is woken or when a delay is over.

It starts at the first `wake`, so that a short script never has one, and holds its owner weakly, so
that an owner that nobody uses any more can go. It knows nothing of what the method does.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Worker", "start_no_more"]


_at_exit = False


def start_no_more() -> None:
    """Start no thread from now on: the interpreter is about to end, and would freeze it in the middle."""
    global _at_exit
    _at_exit = True


class Worker:
    """Run ``method`` of an object in the background.

    The method returns the seconds until it wants to be called again, or None to wait for `wake`.
    An exception ends the thread and is handed to ``failed``: it must not vanish.
    """

    def __init__(self, method: Callable[[], float | None], failed: Callable[[BaseException], None], name: str) -> None:
        self._woken = threading.Event()
        self._starting = threading.Lock()
        self._stopped = False
        # One thread object for ever: an interrupted start() can then never lead to a second thread.
        self._thread = threading.Thread(
            target=_run,
            args=(weakref.WeakMethod(method), weakref.WeakMethod(failed), self._woken, weakref.ref(self)),
            name=name,
            daemon=True,
        )

    def wake(self) -> bool:
        """Have the method called soon; False if there can be no thread (the interpreter shuts down)."""
        if self._thread.ident is None:
            with self._starting:
                if self._stopped or _at_exit:
                    return False
                if self._thread.ident is None:
                    try:
                        self._thread.start()
                    except RuntimeError:
                        return False
        self._woken.set()
        return self._thread.is_alive()

    @property
    def is_stopping(self) -> bool:
        """Tell the method that it should come to an end."""
        return self._stopped

    def stop(self) -> None:
        """End the thread and wait until it has, unless it is the caller."""
        self._stopped = True
        self._woken.set()
        with self._starting:
            started = self._thread.ident is not None
        if started and self._thread is not threading.current_thread() and not sys.is_finalizing():
            self._thread.join()  # while the interpreter goes, its daemon threads stand still for ever


def _run(method: Any, failed: Any, woken: threading.Event, worker_of: Callable[[], Worker | None]) -> None:
    delay: float | None = None
    while True:
        # An owner may vanish unseen, so no wait is endless.
        woken.wait(60.0 if delay is None else delay)
        woken.clear()
        call, worker = method(), worker_of()
        if call is None or worker is None or worker.is_stopping:
            return
        del worker
        try:
            delay = call()
        except BaseException as error:
            report = failed()
            if report is not None:
                report(error)
            return
        del call
