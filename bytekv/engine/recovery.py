"""Recovery: what opening finds, decides and does, from a directory to a keydir.

The rules (design: a torn tail is legal, damage to what was durable is not):

1. A sealed segment has exactly the length and the last seq that the manifest says, and every entry
   in it validates. Anything else is corruption.
2. The active segment of a clean close has exactly the published length. Then (1) holds, too, and the
   segment is continued.
3. Otherwise the process or the machine died. The segment is scanned up to the first place that is no
   entry with the next seq. Below the published length, or with a sync mark after it that vouches for
   what is missing, that place is corruption. Else it is the torn tail: legal, and over.
4. After (3) nothing is ever appended to that segment. What follows its valid end is kept in
   quarantine/, the segment is sealed at that end, and the next write begins a new one. An append in the
   same place could be followed, after a second crash, by an entry of before the first.
5. What was recovered is durable before `open` returns, and opening twice finds the same.
"""

from __future__ import annotations

import time

from .._lean import suppress
from ..contract.convert import counted
from ..errors import CorruptionError, DiskFullError, translated
from .codec.entry import is_zero
from .codec.hint import Hint
from .codec.manifest import ACTIVE, BACKUP, LOG, SEALED, SEGMENT_HEADER_SIZE, SegmentHeader, SegmentRow
from .index.keydir import Keydir
from .log import summary
from .log.directory import Directory
from .log.scan import Read, file_size_of, header_of, scan_segment
from .log.segment_manager import SegmentManager

__all__ = ["Recovery", "recover"]

_WINDOW = 1 << 20


class Recovery:
    """What opening found and did; `Store.recovery`.

    ``clean`` is False after a crash. ``torn_bytes`` is what followed the last whole operation in the
    newest segment, now in one of the files ``quarantined``. ``swept`` are files of interrupted work.
    ``hints_missing`` counts the segments that were scanned because no hint file spoke for them.
    """

    __slots__ = (
        "bytes_scanned",
        "clean",
        "durable_seq",
        "duration_s",
        "hints_missing",
        "hints_used",
        "keys",
        "last_seq",
        "quarantined",
        "salvaged",
        "segments",
        "swept",
        "torn_bytes",
        "torn_reason",
    )

    def __init__(self, segments: int) -> None:
        self.clean: bool = True
        self.segments: int = segments
        self.keys: int = 0
        self.last_seq: int = 0
        self.durable_seq: int = 0
        self.bytes_scanned: int = 0
        self.hints_used: int = 0
        self.hints_missing: int = 0
        self.torn_bytes: int = 0
        self.torn_reason: str | None = None
        self.quarantined: list[str] = []
        self.swept: list[str] = []
        self.duration_s: float = 0.0
        #: The `Report` of the repair, if opening with recover="salvage" had to do one.
        self.salvaged: object = None

    def __str__(self) -> str:
        text = f"{counted(self.keys, 'key')} in {counted(self.segments, 'segment')}"
        text += f", last seq {self.last_seq}, {self.duration_s * 1e3:.1f} ms"
        if not self.clean:
            text += "; the last process did not close the store"
        if self.torn_bytes:
            torn = counted(self.torn_bytes, "byte")
            text += f"; {torn} of an unfinished write set aside in {', '.join(self.quarantined)}"
        if self.hints_missing:
            text += f"; {counted(self.hints_missing, 'segment')} without a hint file scanned"
        if self.swept:
            more = f" and {len(self.swept) - 8} more" if len(self.swept) > 8 else ""
            text += f"; leftovers removed: {', '.join(self.swept[:8])}{more}"
        return text


Kept = dict[SegmentRow, "tuple[list[Hint], _Torn | None, bool]"]


def recover(segments: SegmentManager, keydir: Keydir, *, readonly: bool, kept: Kept | None = None) -> Recovery:
    """Fill an empty keydir from the manifest's segments; return what was found and done.

    ``kept``: what was read of sealed segments is kept there, and not read again.

    Raises `CorruptionError` if anything that was durable is missing or damaged; nothing is changed then.
    """
    began = time.perf_counter()
    directory, manifest = segments.directory, segments.manifest
    report = Recovery(len(manifest.segments))
    if not readonly:
        directory.sync_names(manifest)
    last_seq = 0
    torn: _Torn | None = None
    too_long: list[SegmentRow] = []
    loads: list[tuple[int, int, Hint]] = []
    for number, row in enumerate(manifest.segments):
        descriptor, header = header_of(directory, row, manifest.store_uuid, for_writing=not readonly)
        hints_used = report.hints_used
        try:
            neighbours = number and header.previous_id == manifest.segments[number - 1].segment_id
            gap = header.previous_seq < last_seq or (neighbours and header.previous_seq > last_seq)
            if header.kind == LOG and gap:
                path = directory.segment_path(row.segment_id)
                raise CorruptionError(
                    path, 0, f"begins after seq {header.previous_seq}, but the segment before ends at {last_seq}"
                )
            found = kept.get(row) if kept is not None else None
            if found is None:
                found = _read_segment(directory, descriptor, header, row, manifest.last_seq, report, readonly=readonly)
                if kept is not None and row.state == SEALED:
                    kept[row] = found
            hints, torn, surplus = found
            if surplus:
                too_long.append(row)
            segments.hinted[row.segment_id] = hints[0].length if report.hints_used > hints_used else 0
        finally:
            directory.files.close(descriptor)
        start = SEGMENT_HEADER_SIZE
        for hint in hints:
            loads.append((row.segment_id, hint.length - start, hint))
            start = hint.length
        last_seq = row.last_seq if row.state == SEALED else hints[-1].last_seq
    if manifest.segments and manifest.segments[-1].state == ACTIVE and last_seq < manifest.last_seq:
        raise CorruptionError(
            directory.manifest_path, 0, f"says that seq {manifest.last_seq} was written, the log ends at {last_seq}"
        )
    last_seq = max(last_seq, manifest.last_seq)
    keydir.load(loads, segments.open.entry_size)
    if not readonly:
        for row in too_long:  # a roll or a recovery was killed before its trim
            _trim(directory, row)
    if torn is not None:
        _seal(segments, torn, last_seq, readonly=readonly)
    if not readonly:
        next_id = directory.unused_id(segments.manifest.next_id)
        if segments.manifest.compat_flags & BACKUP:  # opened, it is a backup still; its leftovers were never listed
            segments.manifest = segments.manifest._replace(next_id=next_id)
        elif next_id != segments.manifest.next_id:
            with suppress(DiskFullError):  # ids are never used twice, or on a full disk only after another crash
                segments.publish(segments.manifest.segments, next_id=next_id)
        report.swept = directory.sweep(segments.manifest)
        if segments.manifest.segments and segments.manifest.segments[-1].state == ACTIVE:
            segments.resume()
    report.keys = len(keydir)
    report.last_seq = last_seq
    # A writer has synced what it recovered; a reader knows only what the writer vouches for.
    report.durable_seq = last_seq if not readonly or torn is None else max(manifest.last_seq, torn.durable_seq)
    report.duration_s = time.perf_counter() - began
    return report


def _read_segment(
    directory: Directory,
    descriptor: int,
    header: SegmentHeader,
    row: SegmentRow,
    written_seq: int,
    report: Recovery,
    *,
    readonly: bool,
) -> tuple[list[Hint], _Torn | None, bool]:
    """Return what one segment says: from its hint up to where that ends, then by a scan.

    The second result says that it was torn, the third that it is longer than the manifest says.
    """
    path, files = directory.segment_path(row.segment_id), directory.files
    size = file_size_of(directory, descriptor, row)
    whole = row.state == SEALED or size == row.length
    if not whole and not readonly:
        # The page cache may hold what a failed sync never wrote; see Files.forget_cache.
        files.sync(descriptor, path)
        files.forget_cache(descriptor)
    if not whole:
        report.clean = False
        hint = summary.from_file(directory, header, row)
        start, seq = (hint.length, hint.last_seq) if hint is not None else (SEGMENT_HEADER_SIZE, header.previous_seq)
        torn = _Torn(directory, descriptor, header, row, size, start, seq, written_seq)
        if not readonly:
            torn.set_aside(report)
        report.bytes_scanned += torn.hint.length - start
        report.hints_used += hint is not None
        return [torn.hint] if hint is None else [hint, torn.hint], torn, False
    found = summary.of(directory, descriptor, header, row)
    report.hints_used += found.by_file > 0
    report.bytes_scanned += found.scanned
    report.hints_missing += found.scanned >= max(1, directory.tuning.hint_from)
    seq = found.hints[-1].last_seq
    if header.kind == LOG and seq != row.last_seq:
        raise CorruptionError(path, row.length, f"ends at seq {seq}, the manifest says {row.last_seq}")
    return found.hints, None, size > row.length


class _Torn:
    """The active segment after an unclean stop."""

    def __init__(
        self,
        directory: Directory,
        descriptor: int,
        header: SegmentHeader,
        row: SegmentRow,
        size: int,
        start: int,
        seq: int,
        written_seq: int,
    ) -> None:
        self._directory, self._descriptor, self._size = directory, descriptor, size
        self.row = row
        self.path = path = directory.segment_path(row.segment_id)
        self._read: Read = lambda count, offset: directory.files.read(descriptor, count, offset, path)
        scan = scan_segment(directory, descriptor, header, start, size, seq)
        self.hint = summary.hint_of(scan)
        self.reason = scan.damage
        self.durable_seq = scan.durable_seq
        if scan.end < row.length or scan.last_seq < max(row.last_seq, written_seq):
            raise scan.corruption(path, " in data that was durable")
        with translated("bytekv.engine.log.resync"):  # needed after a crash only
            from .log.resync import check_torn

        check_torn(scan, path)

    def set_aside(self, report: Recovery) -> None:
        """Copy what follows the valid end, up to its last byte that is not zero, into quarantine."""
        end = self.hint.length
        last = end
        for offset in range(end, self._size, _WINDOW):
            window = self._read(min(_WINDOW, self._size - offset), offset)
            if not is_zero(window):
                last = offset + len(window.rstrip(b"\0"))
        if last == end:
            return
        try:
            kept = self._keep(end, last)
        except DiskFullError:  # the blocks after it, which hold nothing, are enough for a few bytes
            files = self._directory.files
            if files.has_other_names(self._descriptor, self.path):
                raise
            files.truncate(self._descriptor, last, self.path)
            kept = self._keep(end, last)
        report.quarantined.append(kept)
        report.torn_bytes = last - end
        report.torn_reason = self.reason or "zeros before later entries"

    def _keep(self, end: int, last: int) -> str:
        pieces = (self._read(min(_WINDOW, last - offset), offset) for offset in range(end, last, _WINDOW))
        return self._directory.quarantine(f"{self.row.segment_id:010d}-{end}.torn", pieces)


def _seal(segments: SegmentManager, torn: _Torn, last_seq: int, *, readonly: bool) -> None:
    """Make the recovered segment a sealed one, in memory and, for a writer, on disk."""
    manifest = segments.manifest
    segments.open.table.pop(torn.row.segment_id, None)  # loading may have opened it as long as the old row says
    row = torn.row._replace(length=torn.hint.length, last_seq=last_seq, state=SEALED)
    empty = row.length == SEGMENT_HEADER_SIZE
    rows = manifest.segments[:-1] if empty else (*manifest.segments[:-1], row)
    if readonly:
        segments.manifest = manifest._replace(segments=tuple(rows))
        return
    try:
        segments.publish(rows, last_seq=last_seq)
    except DiskFullError:
        _trim(segments.directory, row)  # the blocks after its end are enough for a manifest
        segments.publish(rows, last_seq=last_seq)
    if not empty:
        _trim(segments.directory, row)


def _trim(directory: Directory, row: SegmentRow) -> None:
    path, files = directory.segment_path(row.segment_id), directory.files
    descriptor = files.open(path, write=True)
    try:
        if not files.has_other_names(descriptor, path):  # what is too long harms nobody
            files.truncate(descriptor, row.length, path)
    finally:
        files.close(descriptor)
