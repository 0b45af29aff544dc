"""Verification: prove that files and memory agree, entry by entry.

Everything is read with ``pread``, so that a failing disk raises instead of killing the process.
"""

from __future__ import annotations

from collections.abc import Callable

from ...contract.reports import Damage, Progress, Report
from ...errors import BytekvError, CorruptionError
from ..codec.hint import Hint
from ..codec.manifest import (
    MAX_NUMBER,
    SEGMENT_HEADER_SIZE,
    SegmentRow,
)
from ..index.keydir import Keydir
from ..log.scan import Scan, header_of, scan_segment
from ..log.segment_manager import SegmentManager
from ..log.summary import hint_of
from .walk import Walk, all_durable

__all__ = ["verify"]


def verify(segments: SegmentManager, keydir: Keydir, progress: Callable[[Progress], object] | None) -> Report:
    """Read every segment from the medium and compare it with what is in memory. No writer may be at work.

    Besides each entry's CRC it checks the invariants: a second keydir made from the files alone holds
    the same keys at the same places, and the count of dead bytes is right.
    """
    report = Report()
    directory, uuid = segments.directory, segments.manifest.store_uuid
    lengths = segments.lengths()
    total = sum(lengths.values())
    found: list[tuple[int, int, Hint]] = []
    for row in segments.manifest.segments:
        length = lengths[row.segment_id]
        path = directory.segment_path(row.segment_id)
        try:
            descriptor, header = header_of(directory, row, uuid, for_writing=False)
            try:
                scan = scan_segment(directory, descriptor, header, SEGMENT_HEADER_SIZE, length, header.previous_seq)
                hint = hint_of(scan)
                if scan.end == length:
                    report.entries += scan.entries
                    found.append((row.segment_id, length - SEGMENT_HEADER_SIZE, hint))
                else:
                    known = all_durable(header, length, MAX_NUMBER)
                    for _ in Walk(directory, descriptor, path, header.salt, known, report):
                        pass  # once more, past the damage, for the report
            finally:
                directory.files.close(descriptor)
        except CorruptionError as error:
            if directory.files.exists(path) or not _verify_open_view(segments, row, found, report):
                report.damage.append(Damage(error.path, error.offset, error.reason))
        except BytekvError as error:
            report.damage.append(Damage(path, 0, str(error)))
        report.segments += 1
        report.checked_bytes += length
        if progress is not None:
            progress(Progress(report.checked_bytes, total))
    report.keys = len(keydir)
    if report.ok:
        fresh = Keydir()
        fresh.load(found, segments.open.entry_size)
        _compare(fresh, segments, keydir, report)
    return report


def _verify_open_view(
    segments: SegmentManager, row: SegmentRow, found: list[tuple[int, int, Hint]], report: Report
) -> bool:
    """Check a segment that the writer has compacted away beside this reader, through the reader's open view."""
    reader = segments.open.table.get(row.segment_id)
    if reader is None:
        return False
    view, seed = reader
    scan = Scan(lambda size, at: view[at : at + size], SEGMENT_HEADER_SIZE, row.length, seed, None)
    found.append((row.segment_id, row.length - SEGMENT_HEADER_SIZE, hint_of(scan)))
    report.entries += scan.entries
    return scan.end == row.length


def _compare(fresh: Keydir, segments: SegmentManager, keydir: Keydir, report: Report) -> None:
    path = segments.directory.path
    in_memory = keydir.newest_of_all()
    for key, when_ms in fresh.expiries().items():
        if key not in in_memory and when_ms + keydir.grace_ms <= keydir.latest_ms:  # so long ago that it was forgotten
            fresh.remove(key, segments.open.entry_size)
    on_disk = fresh.newest_of_all()
    if on_disk != in_memory:
        different = [key for key in on_disk.keys() | in_memory.keys() if on_disk.get(key) != in_memory.get(key)]
        report.damage.append(
            Damage(path, 0, f"{len(different)} keys differ between memory and disk, {min(different)!r} first")
        )
    for segment, size in segments.lengths_of_entries().items():
        counted, found = keydir.usage.gone_bytes(segment), fresh.usage.gone_bytes(segment)
        if counted != found or not 0 <= counted <= size:
            report.damage.append(
                Damage(segments.directory.segment_path(segment), 0, f"{counted} bytes counted as dead, {found} are")
            )
