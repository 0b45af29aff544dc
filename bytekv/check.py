"""Prove that a store is what it claims to be, reading every byte and changing none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from .codec import SEGMENT_HEADER_SIZE
from .compactor import Progress
from .errors import BytekvError, CorruptionError
from .keydir import Keydir
from .segment import scan_segment, summarise
from .segment_manager import SegmentManager, header_of

__all__ = ["Report", "verify"]


@dataclass(slots=True)
class Report:
    """What `Store.verify` found. ``ok`` if there is no damage."""

    segments: int = 0
    entries: int = 0
    keys: int = 0
    checked_bytes: int = 0
    damage: list[CorruptionError] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Tell whether nothing was found."""
        return not self.damage

    def __str__(self) -> str:
        text = f"{self.segments} segments, {self.entries} entries, {self.keys} keys, {self.checked_bytes} bytes checked"
        return text + (": ok" if self.ok else "".join(f"\n{error}" for error in self.damage))


def verify(segments: SegmentManager, keydir: Keydir, progress: Callable[[Progress], object] | None) -> Report:
    """Read every segment from the medium and compare it with what is in memory. No writer may be at work.

    Besides each entry's CRC it checks the invariants: a second keydir made from the files alone holds
    the same keys at the same places, and the count of dead bytes is right.
    """
    report = Report()
    lengths = segments.lengths()
    total = sum(lengths.values())
    rows = segments.manifest.segments
    fresh = Keydir()
    for row in rows:
        length = lengths[row.segment_id]
        path = segments.directory.segment_path(row.segment_id)
        try:
            descriptor, header = header_of(segments.directory, row, segments.manifest.store_uuid, for_writing=False)
            try:
                scan = scan_segment(
                    segments.directory, descriptor, header, SEGMENT_HEADER_SIZE, length, header.previous_seq
                )
                summary = summarise(scan)
                if scan.end != length:
                    report.damage.append(CorruptionError(path, scan.end, scan.damage or "zeros in the log"))
                fresh.load(row.segment_id, summary, length - SEGMENT_HEADER_SIZE, segments.entry_size)
            finally:
                segments.directory.files.close(descriptor)
            report.entries += scan.entries
        except CorruptionError as error:
            report.damage.append(error)
        except BytekvError as error:
            report.damage.append(CorruptionError(path, 0, str(error)))
        report.segments += 1
        report.checked_bytes += length
        if progress is not None:
            progress(Progress(report.checked_bytes, total))
    report.keys = len(keydir)
    if not report.damage:
        _compare(fresh, segments, keydir, report)
    return report


def _compare(fresh: Keydir, segments: SegmentManager, keydir: Keydir, report: Report) -> None:
    path = segments.directory.path
    in_memory = {**keydir.expired, **keydir.locations}
    if fresh.locations != in_memory:
        different = [
            key for key in fresh.locations.keys() | in_memory.keys() if fresh.locations.get(key) != in_memory.get(key)
        ]
        report.damage.append(
            CorruptionError(path, 0, f"{len(different)} keys differ between memory and disk, {min(different)!r} first")
        )
    for segment, size in segments.lengths_of_entries().items():
        counted = keydir.dead.get(segment, 0) + keydir.tombstones.get(segment, 0)
        found = fresh.dead.get(segment, 0) + fresh.tombstones.get(segment, 0)
        if counted != found or not 0 <= counted <= size:
            report.damage.append(
                CorruptionError(
                    segments.directory.segment_path(segment), 0, f"{counted} bytes counted as dead, {found} are"
                )
            )
