"""Sizes: how large segments and pieces of work are, given a store's live bytes.

The measure is the *current segment size*: a sixteenth of what lives, but never less than 4 MiB nor more than the option
``segment_size_bytes``. From it follow when the active segment is sealed, how large the outputs of a compaction become,
which segments are small, from how many dead bytes on one is worth a compaction, and what writers may leave dead before
they are slowed down. The aim is that all files together take at most

    2 × live bytes + 4 current segments

with ``compact_dead_ratio`` at one half; with another share of dead bytes, `Sizes.dead_per_live` in place of the second
"live". Pure arithmetic: it knows no segment, no file and no clock.
"""

from __future__ import annotations

from ..._lean import TYPE_CHECKING, NamedTuple
from ...options import Options
from ..tuning import TUNING, Tuning

if TYPE_CHECKING:
    from typing import Final

__all__ = ["Sizes", "segment_size", "sizes_of"]

_SEGMENTS: Final = 16  # of live bytes; fewer make the slack more than a quarter of what lives, more are only files
_LEAST_SLACK: Final = 256 * 1024  # for less nobody need wait, however small the segments are
_MOST_DEAD_PER_LIVE: Final = 100.0  # however lazy the options are


class Sizes(NamedTuple):
    """What follows from the live bytes and the options; all but the ratios in bytes."""

    live: int
    segment: int  # at which a segment is full
    small: int  # below which neighbours are merged
    small_files: int  # from this many on
    worth: int  # dead bytes of a segment that is worth a compaction...
    ratio: float  # ...and their share of it
    kept: int  # at the end of the log, where compaction in the background does not go
    dead_per_live: float  # at rest, at most
    usually_kept: int  # of the log

    @property
    def free_dead(self) -> float:
        """Return how much may be dead before a writer owes anything for it."""
        return 0.55 * self.dead_per_live * self.live + self.slack

    @property
    def dear_dead(self) -> float:
        """Return how much is dead when writers are to be slowed down by as much as a compaction needs."""
        return 0.8 * self.dead_per_live * self.live + self.slack + self.segment // 4

    @property
    def slack(self) -> int:
        """Return the dead bytes that a store may have, however little lives in it.

        Two and a half segments while a copy is next to nothing; what copies take until their originals can go is taken
        off, down to one segment.
        What is kept of the log beyond the usual cannot be given back, so it comes on top.
        """
        copies = min(2 * self.segment, self.live // 3)
        return max(5 * self.segment // 2 - copies, self.segment, _LEAST_SLACK) + max(0, self.kept - self.usually_kept)


def segment_size(live: int, limit: int, tuning: Tuning = TUNING) -> int:
    """Return the current segment size of a store with this many live bytes; ``limit`` is what the options allow."""
    return min(limit, max(tuning.smallest_segment, live // _SEGMENTS))


def sizes_of(live: int, options: Options, tuning: Tuning = TUNING) -> Sizes:
    """Return the sizes of a store with this many live bytes.

    >>> [sizes_of(mib << 20, Options()).segment >> 20 for mib in (0, 64, 500, 1024, 100_000)]
    [4, 4, 31, 64, 64]
    """
    limit = options.segment_size_bytes
    segment = segment_size(live, limit, tuning)
    kept = options.keep_changes_bytes
    if kept is None:
        kept = tuning.kept_changes if limit >= tuning.smallest_segment else 0
    ratio = options.compact_dead_ratio
    dead_per_live = min(ratio / (1 - ratio), _MOST_DEAD_PER_LIVE) if ratio < 1 else _MOST_DEAD_PER_LIVE
    return Sizes(
        live,
        segment,
        segment // 4,
        options.compact_small_files,
        min(options.compact_dead_bytes, segment // 4),
        ratio,
        kept,
        dead_per_live,
        tuning.kept_changes,
    )
