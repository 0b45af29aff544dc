"""Who syncs for whom: of those who wait for a sync one leads, and the others wait, each at a gate of its own.

So a finished sync wakes exactly those it served and one to lead the next. With 32 threads that makes three times the
durable puts of waiting in line at one lock. What a sync is and when it has served a seq, the committer knows.
"""

from __future__ import annotations

import threading

__all__ = ["Group"]


class Group:
    """All who wait for the syncs of one store. Under the store's lock."""

    __slots__ = ("_leading", "waiting")

    def __init__(self) -> None:
        self._leading = False  # a thread is syncing for all
        self.waiting: list[tuple[int, threading.Lock]] = []  # who waits for which seq, at which gate

    def join(self, seq: int) -> threading.Lock | None:
        """Return the gate that is opened once ``seq`` is durable or a leader is wanted; None: the caller leads."""
        if not self._leading:
            self._leading = True
            return None
        gate = threading.Lock()
        gate.acquire()
        self.waiting.append((seq, gate))
        return gate

    def lead(self) -> None:
        """Have whoever comes wait: the caller leads, asked to or not."""
        self._leading = True

    def release(self, durable_seq: int, *, failed: bool) -> None:
        """Wake whom a sync has served and one to lead the next; everybody if it ``failed``, to be told so."""
        self._leading = False
        waiting, self.waiting = self.waiting, []
        wanted = not failed
        for waiter in waiting:
            if waiter[0] <= durable_seq or failed:
                waiter[1].release()
            elif wanted:
                wanted = False
                waiter[1].release()
            else:
                self.waiting.append(waiter)
