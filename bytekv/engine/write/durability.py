"""Who syncs for whom: of those who wait for a sync one leads, and the others wait, each at a gate of its own.

So a finished sync wakes exactly those it served and one to lead the next. It opens the gate of the first only, who
opens that of the second, and so on: who opens all of them at once has them fight for the GIL. With 32 threads that
makes three times the durable puts of waiting in line at one lock, and a tenth more than all gates at once. What a sync
is and when it has served a seq, the committer knows.
"""

from __future__ import annotations

import threading
from itertools import pairwise

__all__ = ["Group", "Waiter"]


class Waiter:
    """One who waits for ``seq``."""

    __slots__ = ("_gate", "_next", "has_left", "seq")

    def __init__(self, seq: int) -> None:
        self.seq = seq
        self._gate = threading.Lock()
        self._gate.acquire()
        self.has_left = False
        self._next: Waiter | None = None

    def wait(self, timeout_s: float) -> bool:
        """Wait to be woken, and wake the next; False if nobody came."""
        if not self._gate.acquire(timeout=timeout_s):
            return False
        if self._next is not None:
            self._next.wake()
        return True

    def wake(self) -> None:
        """End the waiting; of one that has left, that of the next."""
        waiter: Waiter | None = self
        while waiter is not None:  # a thousand may have left: no recursion
            try:
                waiter._gate.release()
            except RuntimeError:
                return  # who wakes was interrupted, and somebody does it once more
            if not waiter.has_left or not waiter._gate.acquire(blocking=False):
                return
            waiter = waiter._next

    def leave(self) -> None:
        """Wait no longer, and keep the next from waiting in vain."""
        self.has_left = True
        self.wait(0)

    def is_followed_by(self, other: Waiter) -> None:
        """Have ``other`` woken after this one."""
        self._next = other


class Group:
    """All who wait for the syncs of one store. Under the store's lock."""

    __slots__ = ("_leading", "waiting")

    def __init__(self) -> None:
        self._leading = False  # a thread is syncing for all
        self.waiting: list[Waiter] = []

    def join(self, seq: int) -> Waiter | None:
        """Return who is woken once ``seq`` is durable or a leader is wanted; None: the caller leads."""
        if not self._leading:
            self._leading = True
            return None
        waiter = Waiter(seq)
        self.waiting.append(waiter)
        return waiter

    def lead(self) -> None:
        """Have whoever comes wait: the caller leads, asked to or not."""
        self._leading = True

    def release(self, durable_seq: int, *, failed: bool) -> None:
        """Wake one to lead the next sync and whom this one has served; everybody if it ``failed``, to be told so."""
        self._leading = False
        waiting = [waiter for waiter in self.waiting if not waiter.has_left]
        served = [waiter for waiter in waiting if waiter.seq <= durable_seq or failed]
        self.waiting = [waiter for waiter in waiting if waiter.seq > durable_seq and not failed]
        line = [*self.waiting[:1], *served]
        del self.waiting[:1]
        for waiter, following in pairwise(line):
            waiter.is_followed_by(following)
        if line:
            line[0].wake()
