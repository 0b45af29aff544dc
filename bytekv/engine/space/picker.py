"""Compaction picker: which run of neighbouring segments is worth its copies.

Only what will really go counts, so that no compaction is chosen twice for the same bytes and an idle store comes to
rest. Nothing here reads a file or changes anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..._lean import TYPE_CHECKING, NamedTuple
from ..index.keydir import Keydir
from ..log.segment_manager import SegmentManager
from ..log.sizes import Sizes

if TYPE_CHECKING:
    from typing import Final

__all__ = ["SegmentUsage", "pick", "pick_all", "pick_small", "usage_of"]

_LONGEST_RUN: Final = 4  # victims of a compaction in the background: what it needs besides, until they can go


class SegmentUsage(NamedTuple):
    """What is known of one sealed segment."""

    segment_id: int
    length: int
    dead: int  # bytes that go whatever else is compacted
    dead_if_oldest: int  # bytes that go as well if nothing older remains: tombstones, and what becomes one


def usage_of(segments: SegmentManager, keydir: Keydir) -> list[SegmentUsage]:
    """Return the usage of every sealed segment in logical order. Under the lock. Complexity: O(segments)."""
    return [
        SegmentUsage(
            row.segment_id,
            row.length,
            keydir.usage.dead_bytes(row.segment_id),
            keydir.usage.hiding_bytes(row.segment_id),
        )
        for row in segments.sealed()
    ]


def pick(uses: list[SegmentUsage], sizes: Sizes, active_bytes: int = 0) -> list[int]:
    """Return the run that an automatic compaction should take next; empty if nothing is worth it.

    Only what will really go counts, so that a compaction is never chosen twice for the same bytes.
    First the dead: the run with most to reclaim whose every segment passes both thresholds. Then, if the
    oldest segments together are worth it, all of these: only there do tombstones go, which a queue leaves by
    the million. Then the small: neighbours that are many and all small become one.

    ``active_bytes``: what the active segment holds of the end of the log that is kept.
    """
    uses = _without_newest(uses, sizes.kept - active_bytes)
    best: list[SegmentUsage] = []
    most = 0
    for run in _runs(uses, lambda use, oldest: _is_worth(use, oldest, sizes)):
        is_oldest = run[0] is uses[0]
        some = _first_of(run, is_oldest, sizes)
        gain = sum(_gain(use, is_oldest) for use in some)
        if gain > most:
            best, most = some, gain
    found = [use.segment_id for use in best]
    return found or _oldest_together(uses, sizes) or pick_small(uses, sizes, sizes.small_files)


def _gain(use: SegmentUsage, oldest: bool) -> int:
    return use.dead + (use.dead_if_oldest if oldest else 0)


def _first_of(run: list[SegmentUsage], oldest: bool, sizes: Sizes) -> list[SegmentUsage]:
    """Return as much of the beginning of a run as can be copied beside it: no more than fills a segment.

    The victims stay until every key points at its copy, and writers go on meanwhile. In a store that is smaller than
    they are, that is most of what it takes on the disk, so there they are fewer.
    """
    copies = length = count = 0
    for use in run[:_LONGEST_RUN]:
        copies += use.length - _gain(use, oldest)
        length += use.length
        if count and (copies > sizes.segment or length > max(sizes.live, 2 * sizes.segment)):
            break
        count += 1
    return run[:count]


def _oldest_together(uses: list[SegmentUsage], sizes: Sizes) -> list[int]:
    """Return the longest run from the oldest segment on that passes the thresholds as a whole."""
    gain = length = count = 0
    for number, use in enumerate(uses):
        gain, length = gain + _gain(use, oldest=True), length + use.length
        if gain >= sizes.worth and gain >= sizes.ratio * length:
            count = number + 1
    return [use.segment_id for use in uses[:count]]


def _without_newest(uses: list[SegmentUsage], keep_bytes: int) -> list[SegmentUsage]:
    """Leave out the newest segments that together hold the last ``keep_bytes`` of the log."""
    count = len(uses)
    while count and keep_bytes > 0:
        count -= 1
        keep_bytes -= uses[count].length
    return uses[:count]


def pick_small(uses: list[SegmentUsage], sizes: Sizes, at_least: int) -> list[int]:
    """Return the first neighbours that are small: at least ``at_least``, and as many as fill a segment."""
    for run in _runs(uses, lambda use, _: use.length < sizes.small):
        if len(run) >= at_least:
            length = count = 0
            while count < len(run) and (count < at_least or length < sizes.segment):
                length += run[count].length
                count += 1
            return [use.segment_id for use in run[:count]]
    return []


def _is_worth(use: SegmentUsage, oldest: bool, sizes: Sizes) -> bool:
    gain = _gain(use, oldest)
    return gain >= sizes.worth and gain >= sizes.ratio * use.length


def _runs(uses: list[SegmentUsage], wanted: Callable[[SegmentUsage, bool], bool]) -> Iterator[list[SegmentUsage]]:
    run: list[SegmentUsage] = []
    for number, use in enumerate(uses):
        if wanted(use, number == len(run)):  # still contiguous from the oldest on
            run.append(use)
        elif run:
            yield run
            run = []
    if run:
        yield run


def pick_all(uses: list[SegmentUsage]) -> list[list[int]]:
    """Return the runs after which no dead byte is left: from the oldest on if anything needs that.

    Segments without a dead byte are left alone where that is possible.
    """
    last = max((number for number, use in enumerate(uses) if use.dead_if_oldest), default=-1)
    whole = [use.segment_id for use in uses[: last + 1]]
    rest = _runs(uses[last + 1 :], lambda use, _: use.dead > 0)
    return [*([whole] if whole else []), *([use.segment_id for use in run] for run in rest)]
