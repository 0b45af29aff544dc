"""Prove that a store is what it claims to be (`verify`), and save what can be saved if it is not (`salvage`).

Both read everything with ``pread``, so that a failing disk raises instead of killing the process.

Salvage keeps every entry that validates: of a damaged segment it writes a new one with the newest entry
of each key and moves the damaged file into quarantine/; a segment that is whole is not touched. Without
a manifest nothing says in which order segments count, but every entry has its seq: the newest of each
key, whatever file it is in, goes into new segments. What cannot be kept: an entry that is damaged
itself, and the promise that a batch is whole. If the damaged entry was a tombstone, its key may be back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import accumulate

from .codec import (
    CLEAR,
    CRC_SIZE,
    ENTRY,
    FIXED_SIZE,
    KIND,
    LOG,
    MAX_KEY_SIZE,
    MAX_SEGMENT_SIZE,
    OUTPUT,
    SEALED,
    SEGMENT_HEADER_SIZE,
    SEGMENT_SHIFT,
    Manifest,
    SegmentHeader,
    SegmentRow,
    decode_entry,
    is_zero,
    measure_entry,
    pack_place,
    seed_of,
)
from .compactor import Progress
from .directory import Directory
from .errors import BytekvError, CorruptionError
from .keydir import Keydir
from .output import Output
from .record import NamedTuple
from .segment import Read, Scan, Scanned, Search, open_segment, scan_segment, summarise
from .segment_manager import SegmentManager, header_of

__all__ = ["Damage", "Report", "salvage", "verify"]

_SEQS_AHEAD = 1 << 40  # how far a seq may lie above what is known, where nothing bounds it
_COPY = 1 << 20


class Damage(NamedTuple):
    """One place that fails its check; ``key`` where it is known whose entry it was."""

    path: str
    offset: int
    reason: str
    key: bytes | None = None

    def __str__(self) -> str:
        return f"{self.path}: offset {self.offset}: {self.reason}" + ("" if self.key is None else f", key {self.key!r}")


class Report:
    """What `Store.verify` or `bytekv.repair` found. ``ok`` if there is no damage."""

    __slots__ = ("checked_bytes", "damage", "entries", "keys", "quarantined", "segments")

    def __init__(self) -> None:
        self.segments: int = 0
        self.entries: int = 0
        self.keys: int = 0
        self.checked_bytes: int = 0
        self.damage: list[Damage] = []
        #: Files that a repair moved or copied into quarantine/.
        self.quarantined: list[str] = []

    @property
    def ok(self) -> bool:
        """Tell whether nothing was found."""
        return not self.damage

    def __str__(self) -> str:
        text = f"{self.segments} segments, {self.entries} entries, {self.keys} keys, {self.checked_bytes} bytes checked"
        lines = [text + (": ok" if self.ok else f": {len(self.damage)} damaged places"), *map(str, self.damage)]
        return "\n".join([*lines, *(f"kept in {path}" for path in self.quarantined)])


# --- reading past damage -----------------------------------------------------------------------


def _walk(
    directory: Directory,
    descriptor: int,
    header: SegmentHeader,
    stop: int,
    highest_seq: int | None,
    report: Report,
    *,
    is_log_end: bool,
) -> Iterator[Scanned]:
    """Yield every whole entry up to ``stop``, over damaged places, which go into the report.

    ``is_log_end``: zeros at the end, and an unfinished write before them, are no damage.
    """
    path, files = directory.segment_path(header.segment_id), directory.files
    seed = seed_of(header.salt)

    def read(size: int, offset: int) -> bytes:
        return files.read(descriptor, size, offset, path)

    scan = scan_segment(directory, descriptor, header, SEGMENT_HEADER_SIZE, stop, header.previous_seq)
    search = Search(read, SEGMENT_HEADER_SIZE, stop, seed)
    while True:
        yield from scan
        yield from scan.unfinished
        # Behind the last whole entry, be it of an unfinished batch.
        end = scan.end
        if scan.unfinished:
            end = scan.unfinished[-1][4] + len(scan.unfinished[-1][5])
        report.entries += scan.entries + len(scan.unfinished)
        if scan.end >= stop:
            return
        low = header.previous_seq if header.kind == OUTPUT else max(scan.last_seq, header.previous_seq)
        high = max(low, highest_seq) if highest_seq is not None else low + _SEQS_AHEAD
        # A sync mark vouches for the seq before the next entry, hence not low + 1.
        following = search.find_entry(max(end, scan.end + 1), range(low, high + 1))
        torn = is_log_end and not search.is_vouched_for(scan.end, scan.last_seq)
        if torn or (following is None and is_log_end and all(map(is_zero, _pieces(read, end, stop)))):
            return
        key = _key_at(read, end, stop, following)
        report.damage.append(Damage(path, end, scan.damage or "zeros in data that was durable", key))
        if following is None:
            return
        scan = Scan(read, following, stop, seed, None)
        scan.last_seq = low


def _key_at(read: Read, offset: int, stop: int, following: int | None) -> bytes | None:
    """Return the key of a damaged entry if its lengths lead exactly to the next whole one, so that they hold."""
    head = read(min(ENTRY.size, stop - offset), offset)
    size = measure_entry(head)
    if not size or offset + size != (stop if following is None else following):
        return None
    fixed, key_size = FIXED_SIZE[head[0]], int.from_bytes(head[1:3], "little")
    return read(key_size, offset + fixed) if fixed + CRC_SIZE < size else None


def _pieces(read: Read, start: int, stop: int) -> Iterator[bytes]:
    return (read(min(_COPY, stop - offset), offset) for offset in range(start, stop, _COPY))


# --- verify ------------------------------------------------------------------------------------


def verify(segments: SegmentManager, keydir: Keydir, progress: Callable[[Progress], object] | None) -> Report:
    """Read every segment from the medium and compare it with what is in memory. No writer may be at work.

    Besides each entry's CRC it checks the invariants: a second keydir made from the files alone holds
    the same keys at the same places, and the count of dead bytes is right.
    """
    report = Report()
    directory, uuid = segments.directory, segments.manifest.store_uuid
    lengths = segments.lengths()
    total = sum(lengths.values())
    fresh = Keydir()
    for row in segments.manifest.segments:
        length = lengths[row.segment_id]
        path = directory.segment_path(row.segment_id)
        try:
            descriptor, header = header_of(directory, row, uuid, for_writing=False)
            try:
                scan = scan_segment(directory, descriptor, header, SEGMENT_HEADER_SIZE, length, header.previous_seq)
                summary = summarise(scan)
                if scan.end == length:
                    report.entries += scan.entries
                    fresh.load(row.segment_id, summary, length - SEGMENT_HEADER_SIZE, segments.entry_size)
                else:
                    for _ in _walk(directory, descriptor, header, length, None, report, is_log_end=False):
                        pass  # once more, past the damage, for the report
            finally:
                directory.files.close(descriptor)
        except CorruptionError as error:
            if directory.files.exists(path) or not _verify_open_view(segments, row, fresh, report):
                report.damage.append(Damage(error.path, error.offset, error.reason))
        except BytekvError as error:
            report.damage.append(Damage(path, 0, str(error)))
        report.segments += 1
        report.checked_bytes += length
        if progress is not None:
            progress(Progress(report.checked_bytes, total))
    report.keys = len(keydir)
    if report.ok:
        _compare(fresh, segments, keydir, report)
    return report


def _verify_open_view(segments: SegmentManager, row: SegmentRow, fresh: Keydir, report: Report) -> bool:
    """Check a segment that the writer has compacted away beside this reader, through the reader's open view."""
    reader = segments.readers.get(row.segment_id)
    if reader is None:
        return False
    view, seed = reader
    scan = Scan(lambda size, at: view[at : at + size], SEGMENT_HEADER_SIZE, row.length, seed, None)
    fresh.load(row.segment_id, summarise(scan), row.length - SEGMENT_HEADER_SIZE, segments.entry_size)
    report.entries += scan.entries
    return scan.end == row.length


def _compare(fresh: Keydir, segments: SegmentManager, keydir: Keydir, report: Report) -> None:
    path = segments.directory.path
    in_memory = {**keydir.expired, **keydir.locations}
    if fresh.locations != in_memory:
        different = [
            key for key in fresh.locations.keys() | in_memory.keys() if fresh.locations.get(key) != in_memory.get(key)
        ]
        report.damage.append(
            Damage(path, 0, f"{len(different)} keys differ between memory and disk, {min(different)!r} first")
        )
    for segment, size in segments.lengths_of_entries().items():
        counted = keydir.dead.get(segment, 0) + keydir.tombstones.get(segment, 0)
        found = fresh.dead.get(segment, 0) + fresh.tombstones.get(segment, 0)
        if counted != found or not 0 <= counted <= size:
            report.damage.append(
                Damage(segments.directory.segment_path(segment), 0, f"{counted} bytes counted as dead, {found} are")
            )


# --- salvage -----------------------------------------------------------------------------------


def salvage(
    directory: Directory, segment_size_bytes: int, progress: Callable[[Progress], object] | None = None
) -> Report:
    """Make a damaged store whole again, keeping every undamaged entry. Under the lock.

    Order: (1) the replacements durable; (2) a copy of everything that goes in quarantine/, durable;
    (3) the manifest; (4) what it no longer lists is removed. Interrupted, it starts again from the same
    files. Raises `UnsupportedFormatError` for a newer format and `DiskFullError`; nothing changed then.
    """
    report = Report()
    try:
        manifest = directory.load(for_writing=True)
    except CorruptionError as error:  # and nothing else: what cannot be read for a moment is not lost
        report.damage.append(Damage(directory.manifest_path, 0, str(error)))
        return _salvage_without_manifest(directory, segment_size_bytes, report, progress)
    writer = _Replacements(directory, manifest.store_uuid, manifest.next_id, segment_size_bytes)
    rows: list[SegmentRow] = []
    removed: list[int] = []
    last_seq = manifest.last_seq
    total = sum(row.length for row in manifest.segments)
    for number, row in enumerate(manifest.segments):
        before = len(report.damage)
        newest: dict[bytes, Scanned] = {}
        highest = row.last_seq
        previous = (rows[-1].segment_id, rows[-1].last_seq) if rows else (0, 0)
        try:
            for entry in _entries_of(directory, row, manifest, number, report):
                highest = max(highest, entry[2])
                _keep_newest(newest, entry)
        except CorruptionError as error:
            report.damage.append(Damage(error.path, error.offset, error.reason))
        last_seq = max(last_seq, highest)
        report.segments += 1
        report.checked_bytes += row.length
        if progress is not None:
            progress(Progress(report.checked_bytes, total))
        if len(report.damage) == before:
            rows.append(row)
            continue
        removed.append(row.segment_id)
        for entry in newest.values():
            writer.append(entry, previous)
        rows += writer.finish(highest)
    if not removed:
        return report
    directory.sync()
    for segment_id in removed:
        _copy_into_quarantine(directory, directory.segment_path(segment_id), f"{segment_id:010d}.damaged", report)
    directory.save(
        manifest._replace(
            segments=tuple(rows),
            next_id=writer.next_id,
            last_seq=last_seq,
            generation=manifest.generation + 1,
        )
    )
    directory.remove_segments(removed)
    directory.sync()
    return report


def _entries_of(
    directory: Directory, row: SegmentRow, manifest: Manifest, number: int, report: Report
) -> Iterator[Scanned]:
    descriptor, header = header_of(directory, row, manifest.store_uuid, for_writing=True)
    try:
        path = directory.segment_path(row.segment_id)
        size = directory.files.size(descriptor, path)
        if size < row.length:
            report.damage.append(Damage(path, size, f"cut short: {size} bytes of {row.length}"))
        unclean = row.state != SEALED and size != row.length
        stop = _possible_size(path, size, report) if unclean else min(size, row.length)
        bound = row.last_seq if row.state == SEALED else None
        yield from _walk(directory, descriptor, header, stop, bound, report, is_log_end=unclean)
    finally:
        directory.files.close(descriptor)


def _possible_size(path: str, size: int, report: Report) -> int:
    """Return how much of a file may be a segment; the rest, as in a file that seems terabytes long, is damage."""
    if size > MAX_SEGMENT_SIZE:
        report.damage.append(Damage(path, MAX_SEGMENT_SIZE, f"{size} bytes are too many for a segment"))
    return min(size, MAX_SEGMENT_SIZE)


def _keep_newest(newest: dict[bytes, Scanned], entry: Scanned) -> None:
    """Note an entry, in the order of the log, as the newest of its key; a clear stands under no key of its own."""
    if entry[0] & KIND == CLEAR:
        newest.clear()
        newest[_CLEARED] = entry
        return
    newest.pop(entry[1], None)
    newest[entry[1]] = entry


_CLEARED = b"\0" * (MAX_KEY_SIZE + 1)  # longer than any key can be


class _Replacements:
    """Write segments that take the place of damaged ones."""

    def __init__(self, directory: Directory, uuid: bytes, next_id: int, limit: int) -> None:
        self._directory, self._uuid, self._limit = directory, uuid, limit
        self._output: Output | None = None
        self._rows: list[SegmentRow] = []
        self.next_id = directory.unused_id(next_id)

    def append(self, entry: Scanned, previous: tuple[int, int]) -> None:
        """Copy one entry; ``previous`` is what the first new segment names as the one before it."""
        flags, key, seq, expires_ms, _, raw = entry
        if self._output is None or self._output.end + len(raw) > self._limit:
            self._close_output(seq)
            self._output = Output(self._directory, self._uuid, self.next_id, previous)
            self.next_id += 1
        self._output.append(flags, key, expires_ms, raw)

    def _close_output(self, last_seq: int) -> None:
        if self._output is not None:
            self._rows.append(self._output.finish(last_seq))
            self._output = None

    def finish(self, last_seq: int) -> list[SegmentRow]:
        """Make the new segments durable and return their rows."""
        self._close_output(last_seq)
        rows, self._rows = self._rows, []
        return [row._replace(last_seq=last_seq) for row in rows]


def _copy_into_quarantine(directory: Directory, path: str, name: str, report: Report) -> None:
    files = directory.files
    try:
        descriptor = files.open(path)
    except BytekvError:
        return  # missing: nothing to keep

    def read(size: int, offset: int) -> bytes:
        return files.read(descriptor, size, offset, path)

    try:
        size = min(files.size(descriptor, path), MAX_SEGMENT_SIZE)
        report.quarantined.append(directory.quarantine(name, _pieces(read, 0, size)))
    finally:
        files.close(descriptor)


def _prevailing_uuid(directory: Directory, ids: list[int]) -> bytes | None:
    """Return the uuid that most segments carry: a stray one of another store must not mix with them."""
    counts: dict[bytes, int] = {}
    for segment_id in ids:
        with suppress(CorruptionError):
            descriptor, header = open_segment(directory, segment_id)
            directory.files.close(descriptor)
            counts[header.store_uuid] = counts.get(header.store_uuid, 0) + 1
    return max(counts, key=lambda uuid: counts[uuid], default=None)


def _size_on_disk(directory: Directory, segment_id: int) -> int:
    path, files = directory.segment_path(segment_id), directory.files
    descriptor = files.open(path)
    try:
        return min(files.size(descriptor, path), MAX_SEGMENT_SIZE)
    finally:
        files.close(descriptor)


def _open_if_ours(
    directory: Directory, segment_id: int, uuid: bytes, report: Report
) -> tuple[int, SegmentHeader] | None:
    try:
        descriptor, header = open_segment(directory, segment_id)
    except CorruptionError as error:
        report.damage.append(Damage(error.path, error.offset, error.reason))
        return None
    if header.store_uuid != uuid:
        directory.files.close(descriptor)
        report.damage.append(Damage(directory.segment_path(segment_id), 0, "belongs to another store"))
        return None
    return descriptor, header


def _salvage_without_manifest(
    directory: Directory, segment_size_bytes: int, report: Report, progress: Callable[[Progress], object] | None
) -> Report:
    """Rebuild a store whose manifest is lost: the newest entry of each key, by seq, goes into new segments."""
    ids = directory.segments_on_disk()
    files = directory.files
    uuid = _prevailing_uuid(directory, ids) or files.random(16)
    newest: dict[bytes, tuple[int, int, int, int]] = {}  # key -> seq, location, offset, size
    cleared = (0, 0)  # seq and location of the newest clear
    last_seq = 0
    salts: dict[int, int] = {}
    sizes = [_size_on_disk(directory, segment_id) for segment_id in ids]
    for segment_id, done in zip(ids, accumulate(sizes), strict=True):
        opened = _open_if_ours(directory, segment_id, uuid, report)
        if opened is not None:
            descriptor, header = opened
            try:
                path = directory.segment_path(segment_id)
                salts[segment_id] = header.salt
                size = _possible_size(path, files.size(descriptor, path), report)
                last_seq = max(last_seq, header.previous_seq)
                for flags, key, seq, _, offset, raw in _walk(
                    directory, descriptor, header, size, None, report, is_log_end=header.kind == LOG
                ):
                    location = segment_id << SEGMENT_SHIFT | pack_place(offset, len(raw))
                    last_seq = max(last_seq, seq)
                    if flags & KIND == CLEAR:
                        cleared = max(cleared, (seq, location))
                    elif key not in newest or newest[key][0] <= seq:
                        newest[key] = seq, location, offset, len(raw)
                report.segments += 1
                report.checked_bytes += size
            finally:
                files.close(descriptor)
        if progress is not None:
            progress(Progress(done, sum(sizes)))
    kept = sorted((found for found in newest.values() if found[0] > cleared[0]), key=lambda found: found[0])
    writer = _Replacements(directory, uuid, 1, segment_size_bytes)
    for seq, location, offset, size in kept:
        path = directory.segment_path(location >> SEGMENT_SHIFT)
        descriptor = files.open(path)
        try:
            raw = files.read(descriptor, size, offset, path)
        finally:
            files.close(descriptor)
        found = decode_entry(raw, seed_of(salts[location >> SEGMENT_SHIFT]), path, offset)
        writer.append((found.flags, found.key, seq, found.expires_ms, offset, raw), (0, 0))
    rows = writer.finish(last_seq)
    directory.sync()
    _copy_into_quarantine(directory, directory.manifest_path, "MANIFEST.damaged", report)
    for segment_id in ids:
        _copy_into_quarantine(directory, directory.segment_path(segment_id), f"{segment_id:010d}.damaged", report)
    directory.save(Manifest(uuid, writer.next_id, last_seq, 1, tuple(rows)))
    directory.remove_segments(ids)
    directory.sync()
    return report
