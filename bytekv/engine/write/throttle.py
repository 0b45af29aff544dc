"""Write throttle: how long writers sleep when they outrun the compaction.

A store should stay at about twice its live bytes, and Python's threads share one processor: where writers leave more
dead bytes than a worker can reclaim beside them, they have to give it time. `Sizes` says how many may be dead, and
what is worth a compaction. Next to nothing is owed until that bound is near, steeply more beyond it; where writers and
worker are even, the store stays as large as it is. What was dead already when the store was opened is not the writers'
doing: until that is gone they owe only for what they add to it. Nothing is owed while no compaction is due that would
give anything back: waiting would not help.

Counting the dead bytes takes a while, so it is done seldom far from the bound and often near it.
"""

from __future__ import annotations

from ..._lean import TYPE_CHECKING
from ..log.segment import Writer
from ..log.sizes import Sizes
from ..state import State
from ..tuning import TUNING, Tuning

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

__all__ = ["Throttle"]

_DELAY_S: Final = 0.001  # for `Tuning.paid` bytes at the bound; half, a quarter of the way there a 16th of it, a 256th
_SHORTEST_DELAY_S: Final = 0.0006  # a writer that lets the worker in waits for a slice of its work
_LONGEST_DELAY_S: Final = 0.1


class Throttle:
    """What all writers of one store owe together. Under the store's lock, but for `take`."""

    __slots__ = (
        "_end",
        "_least_dead",
        "_next_count",
        "_owed_s",
        "_price_s",
        "_tuning",
        "due_s",
        "is_due",
        "next_look",
        "paid_s",
        "why",
    )

    def __init__(self, tuning: Tuning = TUNING) -> None:
        self._tuning = tuning
        self._least_dead = 1 << 63  # bytes, at any look so far
        self._owed_s = 0.0
        self._price_s = 0.0  # of `Tuning.paid` bytes
        self._end = self._next_count = 0  # offsets in the active segment: of the last payment, of the next count
        self.next_look = 0  # offset in the active segment
        #: Tells whether a compaction is under way or due that gives something back; set by Maintenance.
        self.is_due: Callable[[], bool] = lambda: False
        self.due_s = 0.0  # what the writer that has looked is to pay
        self.paid_s = 0.0  # ever
        self.why: tuple[int, int, int] | None = None  # dead, live and free bytes at the last look, if they are too many

    def slow_down(self, state: State, writer: Writer) -> None:
        """Find out what is owed now, and have the next put that has to find out come here."""
        end, before = writer.end, self.why
        if self.is_to_count(end):
            dead = state.measure()
            self.look(end, dead, state.segments.sizes, self.is_due)
        elif self.is_to_look(end):
            self.pay(end, state.segments.sizes)
        writer.fast_end = min(writer.fast_end, self.next_look)
        self._tell(state, before)

    def lift(self, state: State) -> None:
        """Let writers go at full speed: there is no compaction that they would wait for. Under the lock."""
        before = self.why
        self.forgive()
        self._tell(state, before)

    def _tell(self, state: State, before: tuple[int, int, int] | None) -> None:
        why = self.why
        if state.options.listener is None or (why is None) is (before is None):
            return
        from ...events import ThrottleBegan, ThrottleEnded

        path = state.segments.directory.path
        state.tell_later(ThrottleEnded(path, self.paid_s) if why is None else ThrottleBegan(path, *why))

    def reason(self, state: State) -> str | None:
        """Say why writers are slowed down, None while they are not."""
        if self.why is None or not state.throttles:
            return None
        dead, live, free = self.why
        return f"{dead} bytes are dead beside {live} live ones, more than {free}, and a compaction is under way"

    def is_to_look(self, end: int) -> bool:
        """Tell whether there is something to do now that the active segment has ``end`` bytes."""
        return not end < self.next_look <= end + self._tuning.seldom_looked  # in a new segment it is too far away

    def would_delay(self, end: int, sizes: Sizes) -> bool:
        """Tell whether a writer would have to sleep that brings the active segment to ``end`` bytes.

        To count the dead bytes is no reason: what is owed is charged at the price that was right until then.
        """
        return self._price_s > 0.0 and self.is_to_look(end) and self._owed_at(end, sizes) >= _SHORTEST_DELAY_S

    def is_to_count(self, end: int) -> bool:
        """Tell whether it is time to count the dead bytes."""
        return not end < self._next_count <= end + self._tuning.seldom_looked or end < self._end

    def look(self, end: int, dead: int, sizes: Sizes, is_due: Callable[[], bool]) -> None:
        """Set the price for ``dead`` bytes, owe for what was written, and say when to look again.

        ``is_due``: whether a compaction is under way or due that gives something back; asked if it matters.
        """
        self._least_dead = min(self._least_dead, dead)
        free = max(sizes.free_dead, self._least_dead + sizes.slack)
        debt = (dead - free) / (sizes.dear_dead - sizes.free_dead)
        if debt < 0 or not is_due():
            self._next_count = self.next_look = end + min(self._tuning.seldom_looked, sizes.segment // 4)
            self._end, self._owed_s, self._price_s, self.why = end, 0.0, 0.0, None
            return
        self._charge(end, sizes)  # at the price that was right until now
        self._price_s = min(_DELAY_S * debt**4, _LONGEST_DELAY_S)
        self.why = dead, sizes.live, round(free)
        piece = self._piece(sizes)
        self._next_count = end + max(piece, sizes.segment // 128)
        self.next_look = end + piece

    def pay(self, end: int, sizes: Sizes) -> None:
        """Owe for what was written since the last look, at the price that was right then."""
        self._charge(end, sizes)
        self.next_look = min(end + self._piece(sizes), self._next_count)

    def _owed_at(self, end: int, sizes: Sizes) -> float:
        written = end - self._end if end >= self._end else end
        return self._owed_s + self._price_s * written / self._piece(sizes)

    def _charge(self, end: int, sizes: Sizes) -> None:
        self._end, self._owed_s = end, self._owed_at(end, sizes)
        if self._owed_s >= _SHORTEST_DELAY_S:
            self.due_s, self._owed_s = min(self._owed_s, _LONGEST_DELAY_S), 0.0

    def take(self) -> float:
        """Return for how many seconds the caller is to let others work; then nothing is due."""
        due_s, self.due_s = self.due_s, 0.0
        self.paid_s += due_s
        return due_s

    def forgive(self) -> None:
        """Owe nothing until the next look."""
        self._owed_s = self._price_s = self.due_s = 0.0
        self.why = None

    def _piece(self, sizes: Sizes) -> int:
        return max(1, min(self._tuning.paid, sizes.segment // 32))
