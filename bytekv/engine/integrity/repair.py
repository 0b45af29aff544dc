"""Repair: recover the undamaged entries of a damaged store.

Everything is read with ``pread``, so that a failing disk raises instead of killing the process.

A repair keeps every whole entry of what was durable: of a damaged segment it writes a new one with the newest
entry of each key and moves the damaged file into quarantine/; a segment that is whole is not touched. Without a
manifest nothing says in which order segments count, but every entry has its seq: the newest of each key, whatever
file it is in, goes into new segments. docs/how-to/recover.md promises what is kept and what cannot be; `Walk`
decides it.
"""

from __future__ import annotations

from collections.abc import Callable

from ..._lean import NamedTuple, suppress
from ...contract.reports import Damage, Progress, Report
from ...errors import BytekvError, CorruptionError, LimitError, StoreNotFoundError
from ..codec.checksum import seed_of
from ..codec.entry import (
    CLEAR,
    KIND,
    decode_entry,
    is_zero,
)
from ..codec.manifest import (
    ACTIVE,
    LOG,
    MAX_NUMBER,
    MAX_SEGMENT_SIZE,
    MAX_SEGMENTS,
    OUTPUT,
    SEGMENT_HEADER_SIZE,
    Manifest,
    SegmentHeader,
    SegmentRow,
    another_history,
    read_damaged_segment_header,
)
from ..log.builder import SegmentBuilder
from ..log.directory import Directory
from ..log.resync import Resync
from ..log.scan import Scanned, header_of, open_segment
from ..log.sizes import segment_size
from .walk import Known, Walk, all_durable, pieces

__all__ = ["repair_directory"]


# --- repair ------------------------------------------------------------------------------------


def repair_directory(
    directory: Directory, segment_size_bytes: int, progress: Callable[[Progress], object] | None = None
) -> Report:
    """Make a damaged store whole again, keeping every undamaged entry. Under the store's file lock.

    Order: (1) the replacements durable; (2) everything that goes in quarantine/, durable; (3) the manifest;
    (4) what it no longer lists is removed. Killed, it starts again from the same files; an error before (3)
    removes what was made. Raises `UnsupportedFormatError` for a newer format and `DiskFullError`.
    """
    report = Report(is_repair=True)
    new = _Replacements(directory, segment_size_bytes, report)
    try:
        try:
            manifest = directory.load(for_writing=True)
        except CorruptionError as error:  # and nothing else: what cannot be read for a moment is not lost
            report.damage.append(Damage(error.path, error.offset, error.reason))
            _repair_without_manifest(new, progress)
        else:
            _repair_listed(new, manifest, progress)
    except BaseException:
        new.undo()
        raise
    return report


class _Place(NamedTuple):
    """Where an entry to be copied lies."""

    seq: int
    segment_id: int
    offset: int
    size: int


class _NewestWhole:
    """The newest entry of each key, and the newest clear, whatever the order in which they are found."""

    def __init__(self) -> None:
        self._of: dict[bytes, _Place] = {}
        self._clear: _Place | None = None
        self.last_seq = 0

    def add(self, entry: Scanned, segment_id: int) -> None:
        flags, key, seq, _, offset, raw = entry
        place = _Place(seq, segment_id, offset, len(raw))
        self.last_seq = max(self.last_seq, seq)
        if flags & KIND == CLEAR:
            self._clear = max(self._clear or place, place)
        elif key not in self._of or self._of[key].seq <= seq:
            self._of[key] = place

    def in_order(self) -> list[_Place]:
        """Return what counts, by seq: a clear comes first, for what is older does not."""
        clear = [] if self._clear is None else [self._clear]
        since = self._clear.seq if self._clear is not None else 0
        return clear + sorted(place for place in self._of.values() if place.seq > since)


class _Replacements:
    """What a repair makes before it publishes: replacements of damaged segments, and files in quarantine."""

    def __init__(self, directory: Directory, limit: int, report: Report) -> None:
        self.directory, self.report = directory, report
        self._limit = limit
        self._made: list[int] = []
        self._kept: list[str] = []
        self._manifest: Manifest | None = None
        self.uuid = bytes(16)
        self.next_id = 1
        self._listed_bytes = 0

    def begin(self, uuid: bytes, next_id: int, listed_bytes: int = 0) -> None:
        """Say of which store they are, how large it is, and from which id on there may be free ones."""
        self.uuid, self.next_id = uuid, self.directory.unused_id(next_id)
        self._listed_bytes = listed_bytes

    def copy(
        self, places: list[_Place], salts: dict[int, int], last_seq: int, previous: tuple[int, int] = (0, 0)
    ) -> list[SegmentRow]:
        """Write segments with copies of entries; return their rows, once they are durable.

        One at least: a log that begins later follows on what was written, though nothing of it be left.
        """
        files, rows = self.directory.files, list[SegmentRow]()
        live = max(self._listed_bytes, sum(place.size for place in places))
        limit = segment_size(live, self._limit, self.directory.tuning)
        output: SegmentBuilder | None = None
        source, descriptor, path = 0, -1, ""
        try:
            for place in places:
                if place.segment_id != source:
                    if source:
                        files.close(descriptor)
                    source, path = 0, self.directory.segment_path(place.segment_id)
                    descriptor = files.open(path)
                    source = place.segment_id
                raw = files.read(descriptor, place.size, place.offset, path)
                entry = decode_entry(raw, seed_of(salts[source]), path, place.offset)
                if output is not None and output.end + len(raw) > limit:
                    rows.append(output.finish(last_seq))
                    output = None
                output = output or self._output(previous)
                output.append(entry.flags, entry.key, entry.expires_ms, raw)
            if output is not None or not rows:
                output = output or self._output(previous)
                rows.append(output.finish(last_seq))
        finally:
            if source:
                files.close(descriptor)
            if output is not None:
                output.close()
        return rows

    def _output(self, previous: tuple[int, int]) -> SegmentBuilder:
        segment_id = self.next_id
        self.next_id += 1
        self._made.append(segment_id)
        return SegmentBuilder(self.directory, self.uuid, segment_id, previous)

    def publish(self, manifest: Manifest, removed: list[int]) -> None:
        """Let a manifest with the new segments count, and remove those that it has no more."""
        directory = self.directory
        if len(manifest.segments) > MAX_SEGMENTS:
            raise LimitError(f"{directory.path}: more than {MAX_SEGMENTS} segments; use a larger segment_size_bytes")
        directory.sync()
        for segment_id in removed:
            self.keep(directory.segment_path(segment_id), f"{segment_id:010d}.damaged")
        # What a reader has seen may be gone, and what it has overwritten may be back.
        flags = another_history(manifest.compat_flags, directory.files.random(4))
        self._manifest = manifest = manifest._replace(compat_flags=flags)
        directory.save(manifest)
        directory.remove_segments(removed)
        directory.sync()

    def keep(self, path: str, name: str) -> None:
        """Put a file into quarantine, too, if it is there."""
        files = self.directory.files
        try:
            descriptor = files.open(path)
        except StoreNotFoundError:
            return  # nothing to keep; any other error, and it must not be removed
        try:
            size = min(files.size(descriptor, path), MAX_SEGMENT_SIZE)
            kept = self.directory.quarantine_file(descriptor, path, name, size, self._kept)
            self.report.quarantined.append(kept)
        finally:
            files.close(descriptor)

    def undo(self) -> None:
        """Remove what was made, unless the manifest that needs it is there."""
        if self._manifest is not None and self._is_published(self._manifest):
            return
        directory = self.directory
        for segment_id in self._made:
            with suppress(BytekvError):  # listed nowhere: the next open sweeps what is left
                directory.remove_segments([segment_id])
        directory.forget_quarantine(self._kept)
        if self._manifest is not None:
            directory.forget_new_manifest()

    def _is_published(self, manifest: Manifest) -> bool:
        try:
            return self.directory.load(for_writing=True) == manifest
        except CorruptionError:
            return False  # the one that was lost before; ours is whole
        except BytekvError:
            return True  # perhaps; the next open knows what to sweep


def _repair_listed(new: _Replacements, manifest: Manifest, progress: Callable[[Progress], object] | None) -> None:
    directory, report = new.directory, new.report
    total = sum(row.length for row in manifest.segments)
    new.begin(manifest.store_uuid, manifest.next_id, total)
    rows: list[SegmentRow] = []
    removed: list[int] = []
    last_seq = manifest.last_seq
    for number, row in enumerate(manifest.segments):
        before = len(report.damage)
        newest = _NewestWhole()
        durable_seq = _read_listed(directory, manifest, number, newest, report)
        report.segments += 1
        report.checked_bytes += row.length
        if progress is not None:
            progress(Progress(report.checked_bytes, total))
        if len(report.damage) == before:
            rows.append(row)
            continue
        removed.append(row.segment_id)
        highest = max(
            row.last_seq, newest.last_seq, durable_seq, manifest.last_seq if row is manifest.segments[-1] else 0
        )
        last_seq = max(last_seq, highest)
        previous = (rows[-1].segment_id, rows[-1].last_seq) if rows else (0, 0)
        rows += new.copy(newest.in_order(), {row.segment_id: row.salt}, highest, previous)
    if removed:
        new.publish(
            manifest._replace(
                segments=tuple(rows),
                next_id=new.next_id,
                last_seq=last_seq,
                generation=manifest.generation + 1,
            ),
            removed,
        )


def _read_listed(directory: Directory, manifest: Manifest, number: int, newest: _NewestWhole, report: Report) -> int:
    """Gather what counts of a segment that the manifest lists; return up to which seq it is known to be durable."""
    row = manifest.segments[number]
    path, files = directory.segment_path(row.segment_id), directory.files
    header: SegmentHeader | None = None
    try:
        descriptor, header = header_of(directory, row, manifest.store_uuid, for_writing=True)
    except CorruptionError as error:
        report.damage.append(Damage(error.path, error.offset, error.reason))
        try:
            descriptor = files.open(path)  # the salt of its entries is in the manifest, too
        except StoreNotFoundError:
            return row.last_seq
    try:
        size = files.size(descriptor, path)
        if size < row.length:
            report.damage.append(Damage(path, size, f"cut short: {size} bytes of {row.length}"))
        elif row.state == ACTIVE:
            size = _possible_size(path, size, report)
        if header is not None and header.kind == LOG and number:
            _check_order(manifest.segments[number - 1], header, path, report)
        known = _known_of_listed(manifest, number, header, size)
        walk = Walk(directory, descriptor, path, row.salt, known, report)
        for entry in walk:
            newest.add(entry, row.segment_id)
        return walk.last_durable()
    finally:
        files.close(descriptor)


def _known_of_listed(manifest: Manifest, number: int, header: SegmentHeader | None, size: int) -> Known:
    """Return what manifest and header, which may be damaged, say of a segment whose file has this size."""
    row = manifest.segments[number]
    is_active = row.state == ACTIVE
    lowest = manifest.segments[number - 1].last_seq if number and is_active else 0
    if header is not None and header.kind == LOG:
        lowest = header.previous_seq
    is_log = is_active or (header is not None and header.kind == LOG)
    # With an active segment, opening wants the log to reach the manifest's last seq.
    reached = max(row.last_seq, manifest.last_seq if is_active else 0) if is_log else 0
    is_torn = is_active and size > row.length
    return Known(
        is_log=is_log,
        stop=size if is_torn else min(size, row.length),
        lowest=lowest,
        highest=MAX_NUMBER if is_torn else row.last_seq,
        durable_end=row.length,
        durable_seq=max(row.last_seq, reached),
        reached_seq=reached,
        begins=header is not None,
    )


def _check_order(before: SegmentRow, header: SegmentHeader, path: str, report: Report) -> None:
    """Report a log that does not follow on the segment before it, as opening does."""
    gap = header.previous_seq - before.last_seq
    if gap < 0 or (gap and header.previous_id == before.segment_id):
        reason = f"begins after seq {header.previous_seq}, but the segment before ends at {before.last_seq}"
        report.damage.append(Damage(path, 0, reason))


def _possible_size(path: str, size: int, report: Report) -> int:
    """Return how much of a file may be a segment; the rest, as in a file that seems terabytes long, is damage."""
    if size > MAX_SEGMENT_SIZE:
        report.damage.append(Damage(path, MAX_SEGMENT_SIZE, f"{size} bytes are too many for a segment"))
    return min(size, MAX_SEGMENT_SIZE)


# --- without a manifest ------------------------------------------------------------------------


class _File(NamedTuple):
    """A segment file that no manifest describes."""

    segment_id: int
    size: int
    header: SegmentHeader
    is_sound: bool  # the header passes its checks
    is_empty: bool  # nothing but zeros follows it, or nothing whole where it was made beforehand
    is_cut: bool = False  # a recovery has found its end, which is ``size``

    @property
    def is_log(self) -> bool:
        return self.header.kind != OUTPUT


def _repair_without_manifest(new: _Replacements, progress: Callable[[Progress], object] | None) -> None:
    """Rebuild a store whose manifest is lost: the newest entry of each key, by seq, goes into new segments."""
    directory, report, files = new.directory, new.report, new.directory.files
    ids = directory.segments_on_disk()
    uuid = _prevailing_uuid(directory, ids) or files.random(16)
    new.begin(uuid, 1)
    found = {segment_id: _file_of(directory, segment_id, uuid, report) for segment_id in ids}
    total = sum(file.size for file in found.values() if file is not None)
    logs = [file for file in found.values() if file is not None and file.is_log]
    newest = _NewestWhole()
    last_seq = 0
    for segment_id, file in found.items():
        if file is not None:
            path = directory.segment_path(segment_id)
            known = _known_of_file(file, logs)
            descriptor = files.open(path)
            try:
                walk = Walk(directory, descriptor, path, file.header.salt, known, report)
                for entry in walk:
                    newest.add(entry, segment_id)
            finally:
                files.close(descriptor)
            last_seq = max(last_seq, walk.last_durable(), file.header.previous_seq if file.is_sound else 0)
            report.segments += 1
            report.checked_bytes += file.size
        if progress is not None:
            progress(Progress(report.checked_bytes, total))
    last_seq = max(last_seq, newest.last_seq)
    salts = {file.segment_id: file.header.salt for file in found.values() if file is not None}
    rows = new.copy(newest.in_order(), salts, last_seq)
    new.keep(directory.manifest_path, "MANIFEST.damaged")
    new.publish(Manifest(uuid, new.next_id, last_seq, 1, tuple(rows)), ids)


def _prevailing_uuid(directory: Directory, ids: list[int]) -> bytes | None:
    """Return the uuid that most segments carry: a stray one of another store must not mix with them."""
    counts: dict[bytes, int] = {}
    for segment_id in ids:
        with suppress(CorruptionError):
            descriptor, header = open_segment(directory, segment_id)
            directory.files.close(descriptor)
            counts[header.store_uuid] = counts.get(header.store_uuid, 0) + 1
    return max(counts, key=lambda uuid: counts[uuid], default=None)


def _file_of(directory: Directory, segment_id: int, uuid: bytes, report: Report) -> _File | None:
    """Look at a segment; None, and a place in the report, if nothing of it can be the store's."""
    path, files = directory.segment_path(segment_id), directory.files
    is_sound = True
    try:
        descriptor, header = open_segment(directory, segment_id)
    except CorruptionError as error:
        report.damage.append(Damage(error.path, error.offset, error.reason))
        is_sound = False
        descriptor = files.open(path)
    try:
        if not is_sound:
            head = files.read(descriptor, SEGMENT_HEADER_SIZE, 0, path)
            if len(head) < SEGMENT_HEADER_SIZE:
                return None
            header = read_damaged_segment_header(head, segment_id)
            if header.store_uuid != uuid:
                return None
        if header.store_uuid != uuid:
            report.damage.append(Damage(path, 0, "belongs to another store"))
            return None
        size = _possible_size(path, files.size(descriptor, path), report)

        def read(count: int, at: int) -> bytes:
            return files.read(descriptor, count, at, path)

        is_empty = all(map(is_zero, pieces(read, SEGMENT_HEADER_SIZE, size)))
        if is_sound and not header.previous_id and not is_empty:
            resync = Resync(read, SEGMENT_HEADER_SIZE, size, seed_of(header.salt))
            is_empty = resync.find_entry(SEGMENT_HEADER_SIZE, range(1, MAX_NUMBER + 1)) is None
        for offset, torn in directory.torn_tails(segment_id):
            if offset < size and _is_alike(files.read(descriptor, len(torn), offset, path), torn):
                return _File(segment_id, offset, header, is_sound, is_empty, is_cut=True)
        return _File(segment_id, size, header, is_sound, is_empty)
    finally:
        files.close(descriptor)


def _is_alike(ours: bytes, theirs: bytes) -> bool:
    """Tell whether what was set aside of a segment is still there, as in one with a second name, damaged or not."""
    return 2 * sum(1 for one, other in zip(ours, theirs, strict=False) if one == other) > len(theirs)


def _known_of_file(file: _File, logs: list[_File]) -> Known:
    """Return what the headers of a segment and of the logs, by id, say of it.

    A log is sealed, and all of it durable, before the next one gets its first entry. So only the newest with entries
    can be torn. And where the next begins says where this one ended, though more may follow there that a recovery has
    cut off. One without entries says nothing of that: it may have been made long before it was to be begun.
    """
    header, size = file.header, file.size
    if file.is_sound and not file.is_log:
        return all_durable(header, size, MAX_NUMBER)
    later = [log.header for log in logs if log.segment_id > file.segment_id and log.is_sound and not log.is_empty]
    bound = min((log.previous_seq for log in later), default=MAX_NUMBER)
    is_next = bool(later) and later[0].previous_id == file.segment_id
    is_last = not file.is_cut and all(log.is_empty or log.segment_id <= file.segment_id for log in logs)
    return Known(
        is_log=file.is_log and file.is_sound,
        stop=size,
        lowest=header.previous_seq if file.is_sound else 0,
        highest=bound,
        durable_end=size if file.is_cut else SEGMENT_HEADER_SIZE,
        durable_seq=0 if is_last else bound,
        reached_seq=bound if is_next and file.is_sound and not is_last else 0,
        is_last=is_last,
    )
