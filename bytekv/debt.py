"""What writers owe to the compaction beside them: bytes in, seconds out.

A store is to stay at about twice its live bytes, and Python's threads share one processor: where writers leave more
dead bytes than a worker gets done beside them, they have to give it time. Next to nothing is owed until that bound
is near; beyond it, steeply more, so that wherever the two are even the store stays as large as it is. What a store had
too much of when it was opened is not the writers' doing: until that is gone they owe only for what they add to it.

Counting what is dead takes a while, so it is done every so many bytes of the log only: seldom far from the bound, often
near it. It knows neither what a segment is nor who pays.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

__all__ = ["Debt"]

_LOOK_SELDOM: Final = 1024 * 1024  # bytes between two looks at what is dead, less where a segment is small
_LOOK_OFTEN: Final = 32 * 1024
_DRAG_S: Final = 0.001  # at the bound; a half, a quarter of the way there a 16th of it, a 256th
_SHORTEST_DRAG_S: Final = 0.0006  # whoever lets the worker in, waits for a slice of its work
_LONGEST_DRAG_S: Final = 0.1


class Debt:
    """What all writers of one store owe together. Under the store's lock, but for `take`."""

    __slots__ = ("_least_dead", "_look_often", "_look_seldom", "_owed_s", "_slack_bytes", "due_s", "next_look")

    def __init__(self, segment_size_bytes: int) -> None:
        self._slack_bytes = 2 * segment_size_bytes  # one that is being written, one that is being compacted
        self._look_seldom = min(_LOOK_SELDOM, segment_size_bytes // 4)
        self._look_often = min(_LOOK_OFTEN, segment_size_bytes // 32)
        self._least_dead = 1 << 63  # bytes, at any look so far
        self._owed_s = 0.0
        self.next_look = 0  # offset in the active segment
        self.due_s = 0.0  # what the writer that has looked is to pay

    def is_to_look(self, end: int) -> bool:
        """Tell whether what is dead is to be counted now that the active segment has so many bytes."""
        return not end < self.next_look <= end + self._look_seldom  # in a new segment it is too far away

    def look(self, end: int, dead: int, live: int) -> None:
        """Owe for so many dead bytes beside so many live ones, and say when to look again."""
        self._least_dead = min(self._least_dead, dead)
        allowed = max(0.6 * live, self._least_dead) + self._slack_bytes
        debt = (dead - allowed) / (0.3 * live + self._slack_bytes)
        self.next_look = end + (self._look_seldom if debt < 0 else self._look_often)
        if debt < 0:
            self._owed_s = 0.0
            return
        self._owed_s += min(_DRAG_S * debt**4, _LONGEST_DRAG_S)
        if self._owed_s >= _SHORTEST_DRAG_S:
            self.due_s, self._owed_s = self._owed_s, 0.0

    def take(self) -> float:
        """Return for how many seconds the caller is to let others work; then nothing is due."""
        due_s, self.due_s = self.due_s, 0.0
        return due_s
