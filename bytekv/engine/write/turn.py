"""Write turn: while a transaction has it, the other writers wait.

A transaction may be dropped without an end, or fail to say that it has ended because there is no memory. So the turn
holds its owner weakly, and those who wait look now and then whether there still is one that has not given up.
"""

from __future__ import annotations

import sys
import threading
import weakref

from ..._lean import TYPE_CHECKING
from ...errors import ReentryError
from ..state import State
from .durability import Durability

if TYPE_CHECKING:
    from typing import Any

__all__ = ["WriteTurn"]


class WriteTurn:
    """Keep the writers of one store apart from its transactions."""

    __slots__ = ("_durability", "_given", "_state", "_thread", "owner")

    def __init__(self, state: State, durability: Durability) -> None:
        self._state, self._durability = state, durability
        self._given = threading.Condition(state.lock)
        self.owner: weakref.ref[Any] | None = None  # the transaction that keeps other writers out; under the lock
        self._thread = 0

    def take(self, owner: object) -> None:
        """Let no other writer in until ``owner`` gives the turn back, has given up or is gone; wait for it."""
        state = self._state
        state.check_write()
        with state.lock, state:
            state.ready()
            self.wait()
            self.owner, self._thread = weakref.ref(owner), threading.get_ident()
            state.require_slow_path()  # which waits for the turn
        if state.queue.changes:
            self._durability.sync_to(state.seq)  # what is not durable is not visible, and the owner reads as all do

    def give(self, owner: object) -> None:
        """Let the other writers in again; nothing if ``owner`` does not have the turn."""
        state = self._state
        with state.lock, state:
            self.end(owner)

    def end(self, owner: object) -> bool:
        """Do what `give` does, under the lock; False if ``owner`` does not have the turn."""
        if self.owner is None or self.owner() is not owner:
            return False
        self.owner = None
        self._given.notify_all()
        return True

    def wait(self) -> None:
        """Return once no other has the turn; gives the lock away meanwhile. Under the lock, after `State.ready`."""
        while self.owner is not None and self._is_taken():
            self._state.intent = None
            self._given.wait(timeout=1.0)
            self._state.ready()

    def _is_taken(self) -> bool:
        """Tell whether the caller has to wait; `ReentryError` if that were for a transaction of its own thread."""
        owner = None if self.owner is None else self.owner()
        is_own = self._thread == threading.get_ident()
        if owner is None or owner.has_given_up or (sys.is_finalizing() and not is_own):
            self.owner = None  # dropped without an end, with one that failed, or with its thread: rolled back
            return False
        if is_own:
            raise ReentryError("this thread has a transaction open; write to the transaction, not to the store")
        return True
