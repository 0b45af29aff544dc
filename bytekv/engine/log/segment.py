"""One segment: append to it, read from it, scan it, summarise it.

This module knows what lies in one file and in its hint file. It does not know of other segments,
of keys that are live, or of who asks.

A segment is *active* while a `Writer` appends to it and *sealed* for ever after. The writer has two
ways to the same bytes. With a mapping, the file is preallocated in steps and an append is one copy
into memory that the kernel owns, so it survives the process without a system call; what lies behind
the last entry is zeros, and 0 is no entry's first byte. Without one, an append is a ``pwrite``.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from itertools import repeat
from struct import Struct

from ...contract.convert import MAX_VALUE_SIZE
from ...errors import (
    BytekvError,
    CorruptionError,
    DiskFullError,
    LimitError,
    StoreFailedError,
    StoreNotFoundError,
    is_about,
)
from ..codec.entry import (
    CONTINUES,
    CRC_SIZE,
    ENTRY,
    ENTRY_EXPIRES,
    ENTRY_SIZE,
    EXPIRES,
    FIXED_SIZE,
    HINT_HEADER,
    KIND,
    LOG,
    MAX_NUMBER,
    MAX_SEQ_TO_BEGIN_AFTER,
    MIN_ENTRY_SIZE,
    OFFSET_SHIFT,
    PUT,
    RESIDUE,
    SEGMENT_HEADER_SIZE,
    SEGMENT_SHIFT,
    SIZE_MASK,
    SYNC_MARK,
    SYNC_MARK_HEAD,
    TOMBSTONE,
    SegmentHeader,
    Summary,
    checksum,
    decode_hint,
    decode_segment_header,
    encode_hint,
    encode_segment_header,
    is_zero,
    measure_entry,
    seed_of,
)
from .directory import Directory
from .files import Files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

__all__ = ["FileView", "Scan", "Search", "Writer", "load_hint", "open_segment", "save_hint", "summarise"]

#: Bytes kept back in the active segment so that a full disk can be emptied (D11). Deletes may use all but
#: the last: (48 - 16) KiB / (27 + 16) = 762 deletes of 16-byte keys. Those are for the next manifest, of up
#: to 400 segments: sealing gives them back to the disk, and without a manifest nothing can be freed.
RESERVE: Final = 48 * 1024
MANIFEST_ROOM: Final = 16 * 1024
_FIRST_STEP: Final = 64 * 1024  # a store killed while tiny stays tiny
_LAST_STEP: Final = 32 * 1024 * 1024
_POPULATE: Final = 1024 * 1024
_WINDOW: Final = 1024 * 1024  # what a scan reads at once
_FIRST_WINDOW: Final = 16 * 1024  # and at first: a reader process that follows looks again and again
_RUN: Final = 64  # entries that are checked together, in 20 µs
_SPARE: Final = 1024 * 1024
_SMALL: Final = 4096

Read = Callable[[int, int], bytes]  # (size, offset) -> bytes
Scanned = tuple[int, bytes, int, int, int, bytes]  # flags, key, seq, expires_ms, offset, raw


class FileView:
    """Look like a mapping, read with ``pread``: a failing disk raises instead of killing the process."""

    __slots__ = ("_descriptor", "_files", "_path")

    def __init__(self, descriptor: int, path: str, files: Files) -> None:
        self._descriptor, self._path, self._files = descriptor, path, files

    def __getitem__(self, part: slice) -> bytes:
        start: int = part.start
        return self._files.read(self._descriptor, part.stop - start, start, self._path)

    def size(self) -> int:
        """Return the length of the file, as a mapping does."""
        return self._files.size(self._descriptor, self._path)

    def __del__(self) -> None:
        if hasattr(self, "_files"):  # else __init__ was interrupted
            self._files.close(self._descriptor)


View = mmap.mmap | FileView


def open_segment(directory: Directory, segment_id: int, *, for_writing: bool = False) -> tuple[int, SegmentHeader]:
    """Open a segment and check its header; return descriptor and header."""
    path = directory.segment_path(segment_id)
    files = directory.files
    try:
        descriptor = files.open(path, write=for_writing)
    except StoreNotFoundError as error:
        directory.check_there()
        raise CorruptionError(path, 0, "missing, though the manifest lists it") from error
    try:
        head = files.read(descriptor, SEGMENT_HEADER_SIZE, 0, path)
        header = decode_segment_header(head, path, for_writing=for_writing)
        if header.segment_id != segment_id:
            raise CorruptionError(path, 0, f"header says segment {header.segment_id}")
    except BaseException:
        files.close(descriptor)
        raise
    return descriptor, header


class Scan:
    """Walk through the entries of one segment in file order, checking every one.

    Iterating yields ``(flags, key, seq, expires_ms, offset, raw)`` for each entry, ``raw`` being its
    checked bytes, and stops at the first place that is no valid entry, or at ``stop``. Entries of a
    batch come only once the whole batch has been seen. Then these say what was found:

    - ``end``: offset behind the last whole operation
    - ``last_seq``: seq of the last whole operation (or ``seq`` as given)
    - ``durable_seq``: the highest sync mark
    - ``entries``: how many there were, sync marks not counted
    - ``damage``: why it stopped before ``stop``; None at ``stop`` and at the zeros behind the log

    ``seq``: the seq before the first entry; entries must then be numbered without a gap, which shows a
    stale entry behind a lost one. None: any order, as a compaction writes them.

    Complexity: one pass, about 0.5 µs an entry, 0.4 where many of one size follow each other; memory: 1 MiB or
    the largest entry.
    """

    def __init__(self, read: Read, start: int, stop: int, seed: int, seq: int | None) -> None:
        self._read, self._stop, self._seed, self._seq = read, stop, seed, seq
        self.end = start
        self.last_seq = seq or 0
        self.durable_seq = 0
        self.entries = 0
        self.damage: str | None = None
        self.unfinished: list[Scanned] = []  # whole entries of a batch that has not been seen to its end

    def __iter__(self) -> Iterator[Scanned]:
        stop, seed, contiguous = self._stop, self._seed, self._seq is not None
        unpack, window, base = ENTRY.unpack_from, b"", self.end
        ahead = _FIRST_WINDOW
        at, expected = self.end, self.last_seq + 1
        batch = self.unfinished
        alike = 0  # the size of the entry before
        while at < stop:
            here = at - base
            # A put alone, whole in the window, the next in turn: what comes below, with less to ask. 0.6 µs
            # an entry instead of 0.9; whatever is different, or wrong, is left to the long way.
            window_size = len(window)
            while here + MIN_ENTRY_SIZE <= window_size and not batch:
                flags, key_size, value_size, seq, _ = unpack(window, here)
                end = here + key_size + value_size + 27  # OVERHEAD
                if flags != PUT or end > window_size or seq != expected:
                    break
                if end - here == alike:
                    run = _run(window, here, alike, key_size, seq, seed)
                    if run is not None:
                        keys, raws = run
                        seqs = range(seq, seq + len(keys))
                        end = here + len(keys) * alike
                        yield from zip(repeat(PUT), keys, seqs, repeat(0), range(base + here, base + end, alike), raws)
                        here, at, expected = end, base + end, seqs.stop
                        self.end, self.last_seq = at, expected - 1
                        self.entries += len(keys)
                        continue
                alike = end - here
                raw = window[here:end]
                if checksum(raw, seed) != RESIDUE:
                    break
                expected = seq + 1
                at = base + end
                self.end, self.last_seq = at, seq
                self.entries += 1
                yield PUT, raw[23 : 23 + key_size], seq, 0, base + here, raw
                here = end
            if at >= stop:
                break
            if here + MIN_ENTRY_SIZE > window_size:
                window, base, here = self._read(min(ahead, stop - at), at), at, 0
                ahead = _WINDOW
                if len(window) < MIN_ENTRY_SIZE:
                    self._stopped("cut short", window)
                    return
            flags, key_size, value_size, seq, _ = unpack(window, here)
            fixed = FIXED_SIZE[flags]
            size = fixed + key_size + value_size + CRC_SIZE
            # The lengths are not to be trusted before the CRC: compare with what is there first.
            if not fixed or value_size > MAX_VALUE_SIZE or size > stop - at:
                self._stopped("no entry" if not fixed else "entry reaches past the end", window[here:])
                return
            if here + size > len(window):
                if size > _WINDOW and not _is_whole(self._read, at, size, seed):
                    self.damage = "entry fails its CRC32C"
                    return  # before a length that is a lie has cost a gigabyte
                window, base, here = self._read(max(size, min(ahead, stop - at)), at), at, 0
                ahead = _WINDOW
            raw = window[here : here + size]
            if checksum(raw, seed) != RESIDUE:
                self.damage = "entry fails its CRC32C"
                return
            at += size
            if flags == SYNC_MARK:
                if batch:
                    self.damage = "sync mark inside a batch"
                    return
                self.durable_seq = seq
                self.end = at
                continue
            if seq != expected and (contiguous or seq > MAX_NUMBER):
                self.damage = f"entry has seq {seq}, expected {expected}" if contiguous else f"entry has seq {seq}"
                return
            expected = seq + 1
            expires = ENTRY_EXPIRES.unpack_from(raw, ENTRY_SIZE)[0] if flags & EXPIRES else 0
            entry = flags, raw[fixed : fixed + key_size], seq, expires, at - size, raw
            if flags & CONTINUES:
                batch.append(entry)
                continue
            self.end, self.last_seq = at, seq
            self.entries += 1 + len(batch)
            if batch:
                yield from batch
                batch.clear()
            yield entry
        if batch:
            self.damage = "batch without its last entry"

    def _stopped(self, reason: str, rest: bytes) -> None:
        # Zeros are what preallocation leaves behind the log, the regular end of an active segment.
        self.damage = reason if rest[:MIN_ENTRY_SIZE].strip(b"\0") else None
        if self.damage is None and self.unfinished:
            self.damage = "batch without its last entry"

    def corruption(self, path: str, remark: str) -> CorruptionError:
        """Return the error for a scan that stopped where it should not have; the remark says why not there."""
        return CorruptionError(path, self.end, f"{self.damage or 'zeros'}{remark}")

    def check_torn(self, path: str) -> None:
        """Raise `CorruptionError` if a sync mark vouches for what is missing: the end is no torn tail then.

        The mark was written after a completed sync, so that had reached the disk, and its loss is no consequence
        of a crash.
        """
        mark = find_sync_mark(self._read, self.end, self._stop, self._seed, self.last_seq)
        if mark is not None:
            raise self.corruption(path, f"; a sync mark at offset {mark} says it was durable")


def _run(window: bytes, here: int, size: int, key_size: int, seq: int, seed: int) -> tuple[Any, list[bytes]] | None:
    """Return keys and raw bytes of the next entries if they are alike, in turn and pass their checks, else None.

    One call of C for each column: 0.68 µs an entry, its place in a summary included, instead of 0.89.
    """
    count = min(_RUN, (len(window) - here) // size)
    end = here + count * size
    # A look at the last of them keeps the price down where sizes change now and then.
    if count < 8 or window[end - size : end - size + 7] != window[here : here + 7]:
        return None
    heads, seqs, keys = zip(*_layout(key_size, size).iter_unpack(memoryview(window)[here:end]), strict=True)
    if heads.count(heads[0]) != count or seqs != tuple(range(seq, seq + count)):
        return None
    raws = [window[at : at + size] for at in range(here, end, size)]
    return (keys, raws) if set(map(checksum, raws, repeat(seed))) == {RESIDUE} else None


@lru_cache(maxsize=256)
def _layout(key_size: int, size: int) -> Struct:
    return Struct(f"<7sQ8x{key_size}s{size - 23 - key_size}x")  # flags and sizes, seq, key


def _is_whole(read: Read, offset: int, size: int, seed: int) -> bool:
    """Tell whether an entry of this size passes its CRC, without ever holding all of it."""
    crc, stop = seed, offset + size
    while offset < stop:
        piece = read(min(_WINDOW, stop - offset), offset)
        if not piece:
            return False
        crc = checksum(piece, crc)
        offset += len(piece)
    return crc == RESIDUE


def _sync_marks(read: Read, start: int, stop: int, seed: int) -> Iterator[tuple[int, int]]:
    """Yield offset and seq of every sync mark. Complexity: a byte search at memory speed."""
    overlap = MIN_ENTRY_SIZE - 1
    at = start
    while at < stop:
        window = read(min(_WINDOW, stop - at), at)
        found = window.find(SYNC_MARK_HEAD)
        while found >= 0:
            raw = window[found : found + MIN_ENTRY_SIZE]
            if len(raw) == MIN_ENTRY_SIZE and checksum(raw, seed) == RESIDUE:
                yield at + found, ENTRY.unpack_from(raw)[3]
            found = window.find(SYNC_MARK_HEAD, found + 1)
        if len(window) <= overlap:
            break
        at += len(window) - overlap


def find_sync_mark(read: Read, start: int, stop: int, seed: int, above: int) -> int | None:
    """Return the offset of a sync mark behind ``start`` that vouches for a seq above ``above``, or None."""
    return next((offset for offset, seq in _sync_marks(read, start, stop, seed) if seq > above), None)


class Search:
    """Look for what is whole behind damage, from the front of a segment to its end.

    Altogether it takes time in proportion to the segment, however many damaged places there are and whatever
    they look like: sync marks are gone through once; and once the CRCs of places that only looked like entries
    have cost as much as reading the segment some times over, none of more than 4 KiB is tried any more.
    """

    def __init__(self, read: Read, start: int, stop: int, seed: int) -> None:
        self._read, self._start, self._stop, self._seed = read, start, stop, seed
        self._allowance = 16 * (stop - start)

    def highest_mark(self) -> int:
        """Return the highest seq that a sync mark vouches for, 0 if there is none."""
        return max((seq for _, seq in _sync_marks(self._read, self._start, self._stop, self._seed)), default=0)

    def is_whole(self, offset: int) -> bool:
        """Tell whether what begins here is an entry, or a sync mark, that passes its CRC."""
        size = measure_entry(self._read(ENTRY_SIZE, offset))
        return 0 < size <= self._stop - offset and _is_whole(self._read, offset, size, self._seed)

    def find_entry(self, start: int, seqs: range, *, marks: bool = True) -> int | None:
        """Return the offset of the next whole entry from ``start`` on whose seq lies in ``seqs``, or None.

        A sync mark is one of them, unless ``marks`` is false; it may also name the seq before them.

        A first byte is cheap to find, and the seq, eight bytes that must lie in a small range, rejects all but
        a few places before their CRC, which may reach over a gigabyte, is taken.
        """
        import re  # 3 ms that only a damaged store has to wait for

        first_bytes = re.compile(b"[" + b"".join(b"\\x%02x" % byte for byte in range(256) if FIXED_SIZE[byte]) + b"]")
        at, stop = start, self._stop
        while at < stop:
            window = self._read(min(_WINDOW, stop - at), at)
            for found in first_bytes.finditer(window) if not is_zero(window) else ():
                here = found.start()
                if here + ENTRY_SIZE > len(window):
                    break
                flags, key_size, value_size, seq, _ = ENTRY.unpack_from(window, here)
                size = FIXED_SIZE[flags] + key_size + value_size + CRC_SIZE
                is_mark = flags == SYNC_MARK
                if (is_mark and not marks) or (seq not in seqs and not (is_mark and seq + 1 in seqs)):
                    continue
                if value_size > MAX_VALUE_SIZE or size > stop - at - here:
                    continue
                if self._allowance < 0 and size > _SMALL:
                    continue
                if _is_whole(self._read, at + here, size, self._seed):
                    return at + here
                self._allowance -= size
            if len(window) < _WINDOW:
                break
            at += len(window) - ENTRY_SIZE + 1
        return None


def _with_pauses(entries: Iterable[Scanned], pause: Callable[[], None]) -> Iterator[Scanned]:
    for number, entry in enumerate(entries):
        if number % 32 == 0:
            pause()
        yield entry


def summarise(scan: Scan, pause: Callable[[], None] | None = None, entries: Iterable[Scanned] | None = None) -> Summary:
    """Exhaust a scan and return the newest entry of each key; ``pause`` is called every 32 entries.

    ``entries``: what of an exhausted scan counts, if not everything.
    """
    places: dict[bytes, int] = {}
    place_once = places.setdefault
    sizes: dict[bytes, int] = {}  # only of entries too large for their place to know
    tombstones: dict[bytes, int] = {}
    expires: dict[bytes, int] = {}
    clears = False
    live = clear_size = 0
    source: Iterable[Scanned] = scan if entries is None else entries
    if pause is not None:
        source = _with_pauses(source, pause)
    for flags, key, _, expires_ms, offset, raw in source:
        size = len(raw)
        kind = flags & KIND
        if kind == PUT:
            place = offset << OFFSET_SHIFT | (size if size <= SIZE_MASK else 0)
            old = place_once(key, place)
            if old is not place:
                del places[key]  # so that it takes its place at the end
                places[key] = place
                live -= old & SIZE_MASK or sizes.pop(key)
                expires.pop(key, 0)
            elif tombstones:
                tombstones.pop(key, 0)
            live += size
            if size > SIZE_MASK:
                sizes[key] = size
            if expires_ms:
                expires[key] = expires_ms
        elif kind == TOMBSTONE:
            if (gone := places.pop(key, None)) is not None:
                live -= gone & SIZE_MASK or sizes.pop(key)
                expires.pop(key, 0)
            tombstones[key] = size
        else:  # CLEAR
            places.clear()
            sizes.clear()
            tombstones.clear()
            expires.clear()
            clears, live, clear_size = True, 0, size
    return Summary(
        scan.end,
        scan.last_seq,
        clears,
        list(places),
        list(places.values()),
        list(tombstones),
        expires,
        live,
        clear_size + sum(tombstones.values()),
    )


# --- hint files --------------------------------------------------------------------------------


def load_hint(directory: Directory, header: SegmentHeader, length: int) -> Summary | None:
    """Return the hint file's summary if it speaks of the segment's first ``length`` bytes or fewer, else None.

    Fewer: the segment was continued since. What it says of the beginning stays true, for nothing is
    ever written there again.
    """
    path = directory.hint_path(header.segment_id)
    files = directory.files
    try:
        descriptor = files.open(path)
    except BytekvError:
        return None
    try:
        size = files.size(descriptor, path)
        if size > length + HINT_HEADER.size + CRC_SIZE:
            return None  # each column takes fewer bytes than the entries that it speaks of
        summary = decode_hint(files.read(descriptor, size, 0, path), header, path)
    except BytekvError:
        return None  # damaged, foreign or newer: a hint is a cache, the segment knows everything
    finally:
        files.close(descriptor)
    return summary if SEGMENT_HEADER_SIZE <= summary.length <= length else None


def save_hint(
    directory: Directory, header: SegmentHeader, summary: Summary, pause: Callable[[], None] = lambda: None
) -> None:
    """Write a segment's hint file. Not synced: a half-written one fails its CRC and is ignored.

    ``pause`` is called between pieces that take less than a millisecond.
    """
    path = directory.hint_path(header.segment_id)
    files = directory.files
    pieces = []
    for piece in encode_hint(summary, header):
        pieces.append(piece)
        pause()
    if files.free_bytes(directory.folder) < sum(map(len, pieces)) + _SPARE:
        return  # the last blocks of a disk are for deletes and manifests
    try:
        descriptor = files.open_new(path)
        try:
            offset = 0
            for piece in pieces:
                files.write(descriptor, piece, offset, path)
                offset += len(piece)
        finally:
            files.close(descriptor)
    except BytekvError:
        with suppress(BytekvError):
            files.unlink(path)
        raise


# --- appending ---------------------------------------------------------------------------------


class Writer:
    """Append to one segment. Not thread-safe: the caller holds the store's lock.

    ``limit`` is the size at which it is full, which may change; ``end`` is where the next entry goes; ``room_end``
    is how far `map` may be written without asking (allocated, populated, and below the limit); ``fast_end`` is the
    same, or less where the committer wants to be asked all the same. The hot paths in `Committer` use them.
    """

    __slots__ = (
        "_allocated",
        "_descriptor",
        "_files",
        "_largest_step",
        "_mapped",
        "_populated",
        "_reserves",
        "_sync_failed",
        "base",
        "dirty",
        "end",
        "fast_end",
        "header",
        "limit",
        "map",
        "path",
        "room_end",
        "seed",
    )

    def __init__(
        self,
        descriptor: int,
        header: SegmentHeader,
        end: int,
        limit: int,
        directory: Directory,
        *,
        mapped: bool,
        reserves: bool = False,
    ) -> None:
        self._files = directory.files
        self._descriptor: int | None = descriptor
        self.limit = limit
        self._mapped = mapped
        self._reserves = reserves or mapped
        self._allocated = end
        self._largest_step = _LAST_STEP
        self._populated = end
        self.path = directory.segment_path(header.segment_id)
        self.header = header
        self.seed = seed_of(header.salt)
        self.base = header.segment_id << SEGMENT_SHIFT
        self.map: mmap.mmap | None = None
        self.end = end
        self.fast_end = self.room_end = 0
        self._sync_failed = False
        self.dirty = False  # whether bytes were appended since the segment was opened

    @classmethod
    def create(
        cls, directory: Directory, header: SegmentHeader, limit: int, *, mapped: bool, reserves: bool = False
    ) -> Writer:
        """Create a segment whose header and name are durable; `DiskFullError` leaves nothing behind."""
        path = directory.segment_path(header.segment_id)
        files = directory.files
        descriptor = files.open_new(path)
        writer = cls(descriptor, header, SEGMENT_HEADER_SIZE, limit, directory, mapped=mapped, reserves=reserves)
        try:
            files.write(descriptor, encode_segment_header(header), 0, path)
            if writer._reserves:
                writer._grow(SEGMENT_HEADER_SIZE + 1, use_reserve=True)
            files.sync(descriptor, path)
            directory.sync()
        except BaseException:
            # A failed posix_fallocate keeps what it got, perhaps the last free blocks of the disk.
            writer.close()
            with suppress(BytekvError):  # else it is a leftover; `Files.open_new` removes it
                files.unlink(path)
            raise
        return writer

    def begin(self, previous: tuple[int, int], limit: int) -> None:
        """Let a segment that was made beforehand, and is listed nowhere yet, follow this one; durable on return."""
        assert self._descriptor is not None
        self.limit = limit
        self.header = self.header._replace(previous_id=previous[0], previous_seq=previous[1])
        self._files.write(self._descriptor, encode_segment_header(self.header), 0, self.path)
        self._files.sync(self._descriptor, self.path)

    @classmethod
    def resume(
        cls, directory: Directory, segment_id: int, end: int, limit: int, *, mapped: bool, reserves: bool = False
    ) -> Writer:
        """Continue a segment that was closed cleanly at ``end``."""
        descriptor, header = open_segment(directory, segment_id, for_writing=True)
        return cls(descriptor, header, end, limit, directory, mapped=mapped, reserves=reserves)

    @property
    def has_other_names(self) -> bool:
        """Tell whether the file has a second name elsewhere."""
        assert self._descriptor is not None
        return self._files.has_other_names(self._descriptor, self.path)

    # --- room ----------------------------------------------------------------------------------

    def fits(self, size: int) -> bool:
        """Tell whether ``size`` bytes more stay within the segment's limit, or it is still empty."""
        return self.end + size <= self.limit or self.end == SEGMENT_HEADER_SIZE

    def make_room(self, size: int, *, use_reserve: bool = False) -> None:
        """Allocate and populate so that ``size`` bytes can be appended; `DiskFullError` changes nothing.

        Only `open_room` lets anybody use more than that.
        """
        if not self._reserves:
            return
        stop = self.end + size
        if stop + (MANIFEST_ROOM if use_reserve else RESERVE) > self._allocated:
            self._grow(stop, use_reserve=use_reserve)
        if self.map is None:
            return
        if stop > self._populated:
            ahead = min(max(stop, self._populated + _POPULATE), self._allocated)
            self._files.populate(self.map, self._populated, ahead)
            self._populated = ahead

    def open_room(self, *, fast: bool) -> None:
        """Say how far may be written from now on without asking, on the hot path, too, if ``fast``."""
        if self.map is not None:
            self.room_end = min(self._populated, self.limit, self._allocated - RESERVE)
            self.fast_end = self.room_end if fast else 0

    def reserve_holds(self, size: int) -> bool:
        """Tell whether ``size`` bytes fit into what is kept back for deletes."""
        return not self._reserves or self.end + size + MANIFEST_ROOM <= self._allocated

    def _grow(self, stop: int, *, use_reserve: bool) -> None:
        """Allocate generously; where the disk is nearly full, less, down to what is needed."""
        assert self._descriptor is not None
        targets = list(dict.fromkeys(self._targets(stop, use_reserve=use_reserve)))
        while True:
            target = targets.pop(0)
            try:
                self._files.reserve(self._descriptor, target, self.path)
                break
            except BytekvError as error:
                with suppress(BytekvError):  # the error that matters is the first
                    self._files.truncate(self._descriptor, self._allocated, self.path)
                if not isinstance(error, DiskFullError) or not targets:
                    raise
                self._largest_step = max(_FIRST_STEP, (target - self._allocated) // 2)  # a refusal costs a millisecond
        if self._mapped:
            self.map = self._files.map(self._descriptor, target, self.path, write=True)
        self._allocated = target
        self._populated = min(self._populated, self.end)

    def _targets(self, stop: int, *, use_reserve: bool) -> Iterator[int]:
        whole = max(self.limit, stop) + RESERVE
        at_most = max(_FIRST_STEP, min(self._largest_step, self.limit // 8))  # what is allocated ahead takes space, too
        step = min(max(_FIRST_STEP, self._allocated), at_most)
        while step >= _FIRST_STEP:
            yield min(max(self._allocated + step, stop + RESERVE), whole)
            step //= 2
        yield stop + RESERVE
        if use_reserve:
            yield stop + MANIFEST_ROOM

    # --- bytes ---------------------------------------------------------------------------------

    def write(self, offset: int, parts: list[bytes]) -> None:
        """Put ``parts`` at ``offset``; room must have been made. Repeating it is harmless.

        Through a mapping this cannot fail. With ``pwrite`` a part may be there when it raises; see `take_back`.
        """
        self.dirty = True
        if self.map is not None:
            for part in parts:
                stop = offset + len(part)
                self.map[offset:stop] = part
                offset = stop
            return
        assert self._descriptor is not None
        self._files.write(self._descriptor, b"".join(parts), offset, self.path)

    def take_back(self, offset: int, parts: list[bytes]) -> bool:
        """Cut off what a `write` that raised has left; False if the file may hold all of it nevertheless.

        Less than all lies behind ``end``, fails its check, and the next append goes over it.
        """
        if self.map is not None:
            return False
        assert self._descriptor is not None
        try:
            self._files.truncate(self._descriptor, offset, self.path)
            self._allocated = offset
        except BytekvError:
            piece = b"".join(parts)
            return self._files.read(self._descriptor, len(piece), offset, self.path) != piece
        return True

    def view(self) -> View:
        """Return what readers slice: the mapping, or a reader of the file."""
        if self.map is not None:
            return self.map
        assert self._descriptor is not None
        return FileView(self._files.duplicate(self._descriptor, self.path), self.path, self._files)

    def sync(self) -> None:
        """Make everything appended durable. Blocks; the GIL is free meanwhile.

        The kernel tells an error once, and a call that was interrupted as it was told has told nobody: once one has
        failed, all do.
        """
        assert self._descriptor is not None
        if self._sync_failed:
            raise StoreFailedError(f"{self.path}: an earlier sync has failed; close the store and open it again")
        try:
            self._files.sync(self._descriptor, self.path)
        except StoreFailedError as error:
            self._sync_failed = True  # first, for an interrupt may follow
            self._sync_failed = is_about(error, self.path)
            raise
        except BaseException as interrupt:
            # A signal waits while the system syncs, and its handler runs where the error is met.
            met = interrupt.__context__
            while met is not None:
                trace = met.__traceback__
                is_told_here = trace is not None and trace.tb_frame.f_back is sys._getframe()  # not in the handler
                if is_told_here and isinstance(met, (OSError, StoreFailedError)):
                    self._sync_failed = True
                met = met.__context__
            raise

    def shrink_to_fit(self) -> None:
        """Give back what was allocated and is not needed yet, so that a manifest finds a block."""
        if self._descriptor is not None and self._allocated > self.end:
            self._files.truncate(self._descriptor, self.end, self.path)
            self._allocated = self._populated = self.end
            self.fast_end = self.room_end = 0
            self.map = None

    def trim(self) -> None:
        """Give back what was allocated behind the last entry. Only once nothing will be appended."""
        if self._descriptor is not None and self._allocated != self.end:
            self._files.truncate(self._descriptor, self.end, self.path)
            self._allocated = self.end
            self.fast_end = self.room_end = 0

    def close(self) -> None:
        """Close the descriptor; a mapping in a reader's hands stays valid."""
        descriptor, self._descriptor = self._descriptor, None
        self.fast_end = self.room_end = 0
        self.map = None
        if descriptor is not None:
            self._files.close(descriptor)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):  # else __init__ was interrupted
            self.close()


def header_for(
    directory: Directory, uuid: bytes, segment_id: int, kind: int, previous: tuple[int, int]
) -> SegmentHeader:
    """Return the header of a new segment, with a salt of its own; `LimitError` if ids or seqs are used up."""
    if segment_id >= MAX_NUMBER or previous[1] > MAX_SEQ_TO_BEGIN_AFTER:
        raise LimitError(f"{directory.path}: no segment {segment_id} can begin after seq {previous[1]}")
    salt = int.from_bytes(directory.files.random(8), "little")
    return SegmentHeader(uuid, segment_id, salt, kind, *previous)


def scan_segment(directory: Directory, descriptor: int, header: SegmentHeader, start: int, stop: int, seq: int) -> Scan:
    """Return a scan of an open segment from ``start``, where everything up to ``seq`` lies before."""
    path, files = directory.segment_path(header.segment_id), directory.files

    def read(size: int, offset: int) -> bytes:
        return files.read(descriptor, size, offset, path)

    return Scan(read, start, stop, seed_of(header.salt), seq if header.kind == LOG else None)
