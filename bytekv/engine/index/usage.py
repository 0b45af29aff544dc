"""Segment usage: how many bytes of each segment are live, dead, or only hide older entries.

A superseded put is dead. A tombstone goes once nothing older remains that it hides; so does what is left of a put that
has expired and was forgotten, for a compaction makes a tombstone of it: that much of it is counted as `lapsed`, the
rest as dead. All of it can be counted anew from the locations of the keys.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import repeat
from operator import and_

from ..._lean import TYPE_CHECKING
from ..codec.entry import OFFSET_MASK, OFFSET_SHIFT, SEGMENT_SHIFT, SIZE_MASK

if TYPE_CHECKING:
    from typing import Final

__all__ = ["SizeOf", "Usage"]

SizeOf = Callable[[int], int]

_FEW: Final = 16  # that are counted one by one as fast
_SEGMENT_AND_SIZE = ~(OFFSET_MASK << OFFSET_SHIFT)  # of a location


class Usage:
    """The dead bytes of every segment. Under the store's lock, but for `is_whole`.

    Two of the tables are public for the flattened put and delete alone: a call is 3 % of what these take.
    """

    __slots__ = ("_lapsed", "_sealed", "dead", "tombstones")

    def __init__(self) -> None:
        self.dead: dict[int, int] = {}  # segment -> bytes of superseded puts; see `is_whole`
        self.tombstones: dict[int, int] = {}  # segment -> bytes of tombstones
        self._sealed: dict[int, int] = {}  # segment -> what of it was dead when it was sealed
        self._lapsed: dict[int, int] = {}  # segment -> bytes of the tombstones that forgotten entries will become

    def count_dead(self, segment: int, size: int) -> None:
        """Count bytes of a segment as dead."""
        self.dead[segment] = self.dead.get(segment, 0) + size

    def count_replaced(self, locations: Iterable[int], sizes_of: SizeOf) -> None:
        """Count the entries at these locations as dead."""
        dead = self.dead
        for old in locations:
            segment = old >> SEGMENT_SHIFT
            dead[segment] = dead.get(segment, 0) + (old & SIZE_MASK or sizes_of(old))

    def count_removed(self, locations: list[int], sizes_of: SizeOf) -> None:
        """Do what `count_replaced` does, in a third of the time where entries of few sizes lie in few segments."""
        dead = self.dead
        if len(locations) < _FEW:
            self.count_replaced(locations, sizes_of)
            return
        for each, count in Counter(map(and_, locations, repeat(_SEGMENT_AND_SIZE))).items():
            segment, size = each >> SEGMENT_SHIFT, each & SIZE_MASK
            if size:
                dead[segment] = dead.get(segment, 0) + count * size
            else:
                self.count_replaced(
                    [old for old in locations if old >> SEGMENT_SHIFT == segment and not old & SIZE_MASK], sizes_of
                )

    def count_lapsed(self, segment: int, size: int, rest: int) -> None:
        """Count an entry that has expired and was forgotten; ``rest`` is the size of its tombstone."""
        self._lapsed[segment] = self._lapsed.get(segment, 0) + rest
        self.dead[segment] = self.dead.get(segment, 0) + size - rest

    def set_tombstones(self, segment: int, size: int) -> None:
        """Say how many bytes of tombstones a segment has. Repeatable, for a change that is carried out once more."""
        self.tombstones[segment] = size

    def load_segment(self, segment: int, dead: int, tombstones: int) -> None:
        """Add what opening has found in a segment."""
        self.count_dead(segment, dead)
        if tombstones:
            self.tombstones[segment] = self.tombstones.get(segment, 0) + tombstones

    # --- what is asked -------------------------------------------------------------------------

    def dead_bytes(self, segment: int) -> int:
        """Return the bytes of a segment's superseded puts."""
        return self.dead.get(segment, 0)

    def tombstone_bytes(self, segment: int) -> int:
        """Return the bytes of a segment's tombstones."""
        return self.tombstones.get(segment, 0)

    def hiding_bytes(self, segment: int) -> int:
        """Return the bytes of a segment that go only once nothing older remains: tombstones, and what becomes one."""
        return self.tombstones.get(segment, 0) + self._lapsed.get(segment, 0)

    def gone_bytes(self, segment: int) -> int:
        """Return the bytes of a segment that are neither live nor its header."""
        return self.dead.get(segment, 0) + self.hiding_bytes(segment)

    def total_gone(self) -> int:
        """Return the bytes of all segments that are neither live nor headers. Complexity: O(segments)."""
        return sum(map(sum, (self.dead.values(), self.tombstones.values(), self._lapsed.values())))

    def is_whole(self, segment: int) -> bool:
        """Tell whether every put in a segment is the newest of its key, but for what open views remember. Without
        the lock.

        That is a zero in the count of dead bytes, which no count is not: `open_segment` puts it there, for a segment
        that is empty yet or at whose copies all keys point; `drop_segments` takes it away before the first key is
        pointed elsewhere. It is one look-up, so the answer was true when it was asked, and what was read before is
        right if no view has had to remember anything since.
        """
        return self.dead.get(segment, 1) == 0

    # --- segments come and go ------------------------------------------------------------------

    def open_segment(self, segment: int) -> None:
        """Count what of a segment is dead from now on: every put in it is the newest of its key, or counted already."""
        self.dead.setdefault(segment, 0)

    def note_sealed(self, segment: int) -> None:
        """Note what of a segment is dead as it is sealed; see `tells_all`."""
        self._sealed[segment] = self.dead.get(segment, 0)

    def tells_all(self, segment: int, active: int) -> bool:
        """Tell whether the keys that point into a segment are all that a hint of it says.

        What is newest in the active segment is newest in the log, and so it was in each segment when that was sealed:
        no put in it has died since. What hides older entries, a hint has to say, and the keydir does not know it.
        """
        is_latest = segment == active or self._sealed.get(segment) == self.dead.get(segment, 0)
        return is_latest and not self.hiding_bytes(segment)

    def drop_segments(self, segments: Iterable[int]) -> None:
        """Forget the counts of segments that a compaction has replaced, or that are gone."""
        for segment in segments:
            self.dead.pop(segment, None)
            self.tombstones.pop(segment, None)
            self._lapsed.pop(segment, None)
            self._sealed.pop(segment, None)

    def recount(self, entry_bytes: dict[int, int], live: Iterable[Iterable[int]], sizes_of: SizeOf) -> None:
        """Count the dead bytes anew from the locations that are live.

        ``entry_bytes`` are each segment's without its header. Complexity: O(n).
        """
        self._lapsed = {segment: size for segment, size in self._lapsed.items() if segment in entry_bytes}
        dead = {segment: size - self.hiding_bytes(segment) for segment, size in entry_bytes.items()}
        for locations in live:
            for location in locations:
                segment = location >> SEGMENT_SHIFT
                dead[segment] = dead.get(segment, 0) - (location & SIZE_MASK or sizes_of(location))
        for segment in dead.keys() - entry_bytes.keys():
            del dead[segment]  # replaced, and its keys are being pointed at the copies
        self.dead = dead

    # --- invariants ----------------------------------------------------------------------------

    def check(self) -> list[str]:
        """Return what is wrong with the counts, in words. Under the lock. For tests."""
        return [
            f"segment {segment}: {size} bytes are counted"
            for table in (self.dead, self.tombstones, self._lapsed)
            for segment, size in table.items()
            if size < 0
        ]
