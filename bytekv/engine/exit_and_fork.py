"""Exit and fork: what the end or a fork of the process means for its open stores.

At exit each store gets a clean end, because many scripts never close theirs, and stays open: an exit handler that was
registered before bytekv was imported, or a finaliser of the main module, may be about to save something. In a forked
child every store refuses everything, because the parent goes on writing, and has the lock and the threads. Stores are
held weakly: one that nobody uses any more closes itself.
"""

from __future__ import annotations

import atexit
import os
import sys
import weakref

from .._lean import TYPE_CHECKING, log
from ..errors import BytekvError, StoreClosedError
from .log.lock import forget_locks_after_fork, go_on_after_fork, hold_locks_before_fork
from .space.worker import start_no_more

if TYPE_CHECKING:
    from typing import Protocol

    class OpenStore(Protocol):
        """What is closed at exit and given up in a child."""

        @property
        def path(self) -> str: ...

        def _at_exit(self) -> None: ...

        def _after_fork(self) -> None: ...


__all__ = ["register", "unregister"]

_open_stores: dict[int, weakref.ref[OpenStore]] = {}
_kept: list[OpenStore] = []  # filled at exit, so that nothing is finalised early


def register(store: OpenStore) -> None:
    """Note that a store has been opened."""
    _open_stores[id(store)] = weakref.ref(store)


def unregister(store: OpenStore) -> None:
    """Note that a store has been closed."""
    _open_stores.pop(id(store), None)


class _Last:
    """What is finalised after the main module's objects: the youngest of all that goes with the modules."""

    def __init__(self) -> None:
        self._itself = self  # so that the collector finalises it, and not the last reference to it

    def __del__(self) -> None:
        _end_all()
        _kept.clear()


def _end_all() -> None:
    start_no_more()
    for reference in list(_open_stores.values()):
        store = reference()
        if store is not None:
            try:
                store._at_exit()
            except StoreClosedError:
                pass  # a thread was stopped inside it; the next open recovers what there is
            except BytekvError as error:
                log.error("%s could not be closed at exit: %s", store.path, str(error))
            else:
                # What belongs to an open store would otherwise be finalised in no order with what still writes to it.
                _kept.append(store)


def _at_exit() -> None:
    _end_all()
    sys.modules[__package__]._last = _Last()  # type: ignore[attr-defined]


def _forked() -> None:
    forget_locks_after_fork()
    for reference in list(_open_stores.values()):
        store = reference()
        if store is not None:
            store._after_fork()
    _open_stores.clear()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=hold_locks_before_fork, after_in_parent=go_on_after_fork, after_in_child=_forked)
