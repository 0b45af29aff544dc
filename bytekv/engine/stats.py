"""What the counts of an open store mean, and how they add up; see `Store.stats`.

Every byte of a segment is live or gone. The header counts as live. Gone are dead entries, which any compaction
of their segment gives back, and tombstones, which go only with all that is older. An expired entry is live until its
grace is over; then a compaction leaves a tombstone of it, and so much of it counts as one already.
"""

from __future__ import annotations

from ..contract.reports import SegmentStats, Stats
from .space.maintenance import Maintenance
from .write.commit import Committer

__all__ = ["stats_of"]


def stats_of(keys: int, committer: Committer, maintenance: Maintenance) -> Stats:
    """Gather the counts of a store that has so many keys."""
    segments, keydir = committer.segments, committer.keydir
    committer.check_reentry()
    with committer.lock, committer:
        committer.count_if_due()
        lengths, usage = segments.lengths(), keydir.usage
        rows = tuple(
            SegmentStats(segment, length, usage.dead_bytes(segment), usage.hiding_bytes(segment))
            for segment, length in lengths.items()
        )
        pinned_bytes = segments.obsolete.pinned_bytes
    total = sum(row.length_bytes for row in rows)
    gone = sum(row.dead_bytes + row.tombstone_bytes for row in rows)
    return Stats(
        keys,
        committer.visible_seq,
        committer.durable_seq,
        total,
        total - gone,
        gone,
        len(segments.open.table),
        maintenance.compactions,
        maintenance.background_error,
        keydir.view_count,
        pinned_bytes,
        keydir.expired_count,
        committer.throttled,
        committer.throttled_s,
        rows,
    )
