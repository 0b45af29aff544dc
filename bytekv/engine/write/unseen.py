"""What has been appended and is not to be seen yet, because it is not durable: with ``sync="always"`` only.

Readers see nothing of it. Writers must see each other's changes: whether a key exists, and where, they look up here
first. A clear that waits hides all that is visible.
"""

from __future__ import annotations

from collections import deque

from .change import Pending

__all__ = ["Unseen"]


class Unseen:
    """The changes of one store that wait for a sync, in their order. Under the store's lock."""

    __slots__ = ("_clear_seq", "overlay", "queue")

    def __init__(self) -> None:
        self.queue: deque[Pending] = deque()
        self.overlay: dict[bytes, tuple[int, int | None]] = {}  # key -> (seq, location) of its newest change here
        self._clear_seq = 0  # of the newest clear that waits

    def find(self, key: bytes) -> tuple[bool, int | None]:
        """Tell whether what a writer finds of a key is decided here, and where its entry is, None if it is gone."""
        found = self.overlay.get(key)
        return (True, found[1]) if found is not None else (self._clear_seq > 0, None)

    def add(self, change: Pending) -> None:
        """Keep a change back; once more is the same as once."""
        if not self.queue or self.queue[-1].seq < change.seq:
            self.queue.append(change._replace(parts=[]))
        for key, location, _ in change.effects:
            if key is None:
                self.overlay.clear()
                self._clear_seq = change.seq
            else:
                self.overlay[key] = change.seq, location

    def remove_first(self) -> None:
        """Forget the oldest change, which readers see now."""
        change = self.queue[0]
        for key, _, _ in change.effects:
            if key is not None and self.overlay.get(key, (0, None))[0] == change.seq:
                del self.overlay[key]
        if change.seq >= self._clear_seq:
            self._clear_seq = 0
        self.queue.popleft()

    def forget_all(self) -> None:
        """Forget everything; nobody will see it here."""
        self.queue.clear()
        self.overlay.clear()
        self._clear_seq = 0
