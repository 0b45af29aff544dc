"""What writers owe to the compaction beside them: bytes in, seconds out.

A store is to stay at about twice its live bytes, and Python's threads share one processor: where writers leave more
dead bytes than a worker gets done beside them, they have to give it time. How much may be dead, `Sizes` says, which
also says what is worth a compaction. Next to nothing is owed until that bound is near; beyond it, steeply more, so that
wherever the two are even the store stays as large as it is. What a store had too much of when it was opened is not the
writers' doing: until that is gone they owe only for what they add to it. And nothing is owed while no compaction is due
that would give anything back: waiting would be in vain.

Counting what is dead takes a while, so it is done every so many bytes of the log only: seldom far from the bound, often
near it. It knows neither what a segment is nor who pays.
"""

from __future__ import annotations

from ..._lean import TYPE_CHECKING
from ..log.sizes import Sizes

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

__all__ = ["Debt"]

_LOOK_SELDOM: Final = 1024 * 1024  # bytes between two looks at what is dead, less where a segment is small
_PAY: Final = 32 * 1024  # bytes between two payments, less where a segment is small
_DRAG_S: Final = 0.001  # for so many bytes at the bound; half, a quarter of the way there a 16th of it, a 256th
_SHORTEST_DRAG_S: Final = 0.0006  # whoever lets the worker in, waits for a slice of its work
_LONGEST_DRAG_S: Final = 0.1


class Debt:
    """What all writers of one store owe together. Under the store's lock, but for `take`."""

    __slots__ = ("_end", "_least_dead", "_next_count", "_owed_s", "_price_s", "due_s", "next_look", "paid_s", "why")

    def __init__(self) -> None:
        self._least_dead = 1 << 63  # bytes, at any look so far
        self._owed_s = 0.0
        self._price_s = 0.0  # of `_PAY` bytes
        self._end = self._next_count = 0  # offsets in the active segment: of the last payment, of the next count
        self.next_look = 0  # offset in the active segment
        self.due_s = 0.0  # what the writer that has looked is to pay
        self.paid_s = 0.0  # ever
        self.why: tuple[int, int, int] | None = None  # dead, live and free bytes at the last look, if they are too many

    def is_to_look(self, end: int) -> bool:
        """Tell whether there is something to do now that the active segment has so many bytes."""
        return not end < self.next_look <= end + _LOOK_SELDOM  # in a new segment it is too far away

    def is_to_count(self, end: int) -> bool:
        """Tell whether what is dead is to be counted anew."""
        return not end < self._next_count <= end + _LOOK_SELDOM or end < self._end

    def look(self, end: int, dead: int, sizes: Sizes, is_due: Callable[[], bool]) -> None:
        """Set the price for so many dead bytes, owe for what was written, and say when to look again.

        ``is_due``: whether a compaction is under way or due that gives something back; asked if it matters.
        """
        self._least_dead = min(self._least_dead, dead)
        free = max(sizes.free_dead, self._least_dead + sizes.slack)
        debt = (dead - free) / (sizes.dear_dead - sizes.free_dead)
        if debt < 0 or not is_due():
            self._next_count = self.next_look = end + min(_LOOK_SELDOM, sizes.segment // 4)
            self._end, self._owed_s, self._price_s, self.why = end, 0.0, 0.0, None
            return
        self._charge(end, sizes)  # at the price that was right until now
        self._price_s = min(_DRAG_S * debt**4, _LONGEST_DRAG_S)
        self.why = dead, sizes.live, round(free)
        piece = _piece(sizes)
        self._next_count = end + max(piece, sizes.segment // 128)
        self.next_look = end + piece

    def pay(self, end: int, sizes: Sizes) -> None:
        """Owe for what was written since the last look, at the price that was right then."""
        self._charge(end, sizes)
        self.next_look = min(end + _piece(sizes), self._next_count)

    def _charge(self, end: int, sizes: Sizes) -> None:
        written = end - self._end if end >= self._end else end
        self._end = end
        self._owed_s += self._price_s * written / _piece(sizes)
        if self._owed_s >= _SHORTEST_DRAG_S:
            self.due_s, self._owed_s = min(self._owed_s, _LONGEST_DRAG_S), 0.0

    def take(self) -> float:
        """Return for how many seconds the caller is to let others work; then nothing is due."""
        due_s, self.due_s = self.due_s, 0.0
        self.paid_s += due_s
        return due_s

    def forgive(self) -> None:
        """Owe nothing until the next look: nobody compacts."""
        self._owed_s = self._price_s = self.due_s = 0.0
        self.why = None


def _piece(sizes: Sizes) -> int:
    return max(1, min(_PAY, sizes.segment // 32))
