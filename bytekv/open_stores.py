"""The open stores of this process: what its end and its forks mean for them.

At the end they are closed, because many a script never does it. In a child they refuse everything, for the parent goes
on writing, and has the lock and the threads. A store is held weakly: one that nobody uses any more closes itself.
"""

from __future__ import annotations

import atexit
import os
import weakref

from . import log
from .directory import forget_locks_after_fork, go_on_after_fork, settle_locks_before_fork
from .errors import BytekvError
from .worker import start_no_more

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class OpenStore(Protocol):
        """What has to be closed or, in a child, given up."""

        @property
        def path(self) -> str: ...

        def close(self) -> None: ...

        def _after_fork(self) -> None: ...


__all__ = ["register", "unregister"]

_open_stores: dict[int, weakref.ref[OpenStore]] = {}


def register(store: OpenStore) -> None:
    """Note that a store has been opened."""
    _open_stores[id(store)] = weakref.ref(store)


def unregister(store: OpenStore) -> None:
    """Note that a store has been closed."""
    _open_stores.pop(id(store), None)


def _close_all() -> None:
    start_no_more()
    for reference in list(_open_stores.values()):
        store = reference()
        if store is not None:
            try:
                store.close()
            except BytekvError as error:
                log.error("%s could not be closed at exit: %s", store.path, str(error))


def _forked() -> None:
    forget_locks_after_fork()
    for reference in list(_open_stores.values()):
        store = reference()
        if store is not None:
            store._after_fork()
    _open_stores.clear()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=settle_locks_before_fork, after_in_parent=go_on_after_fork, after_in_child=_forked)
