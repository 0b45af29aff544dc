"""The gate of transactions: while one is open, the other writers stay outside.

A transaction may be dropped without an end, or fail to say that it has ended for want of memory. So the gate holds its
owner weakly, and whoever waits looks now and then whether there still is one that has not given up.
"""

from __future__ import annotations

import sys
import threading
import weakref

from ..._lean import TYPE_CHECKING
from ...errors import ReentryError

if TYPE_CHECKING:
    from typing import Any

__all__ = ["Gate"]


class Gate:
    """Keep the writers of one store apart from its transactions. Under the store's lock, which `wait` gives away."""

    __slots__ = ("_opened", "_thread", "owner")

    def __init__(self, lock: Any) -> None:
        self._opened = threading.Condition(lock)
        self.owner: weakref.ref[Any] | None = None  # the transaction that keeps other writers out
        self._thread = 0

    def shut(self, owner: object) -> None:
        """Let nobody else in until ``owner`` opens the gate, has given up or is gone."""
        self.owner, self._thread = weakref.ref(owner), threading.get_ident()

    def open(self, owner: object) -> bool:
        """Let the others in again; False, and nothing, if ``owner`` does not hold the gate."""
        if self.owner is None or self.owner() is not owner:
            return False
        self.owner = None
        self._opened.notify_all()
        return True

    def is_shut(self) -> bool:
        """Tell whether the caller has to wait; `ReentryError` if that were for a transaction of its own thread."""
        if self.owner is None:
            return False
        owner = self.owner()
        is_own = self._thread == threading.get_ident()
        if owner is None or owner.has_given_up or (sys.is_finalizing() and not is_own):
            self.owner = None  # dropped without an end, with one that failed, or with its thread: rolled back
            return False
        if is_own:
            raise ReentryError("this thread has a transaction open; write to the transaction, not to the store")
        return True

    def wait(self) -> None:
        """Give the lock away until the gate may have been opened."""
        self._opened.wait(timeout=1.0)
