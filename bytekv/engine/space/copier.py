"""Copier: copy the live entries of a run of segments into new ones.

A compaction's outputs hold the same answers as its victims, without the dead entries. What may be dropped:

- a put that the keydir does not point at: a newer entry of its key exists;
- a tombstone whose key has a newer put; any tombstone or clear if the run begins at the oldest segment,
  because then nothing older is left that it hides;
- sync marks.

A put with an expiry that the keydir does not point at may be its key's newest, too: one that has expired, and
whose grace is over. It becomes a tombstone of its seq, unless the key has another put or a newer tombstone.
For that nobody needs to know which of the two it is, nor what time it is.

Everything else is copied, seq and times unchanged. A damaged entry stops the compaction.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate, compress, islice

from ..._lean import TYPE_CHECKING, NamedTuple
from ...errors import CorruptionError
from ..codec.checksum import CRC_SIZE, RESIDUE, checksum
from ..codec.entry import (
    CLEAR,
    ENTRY,
    ENTRY_EXPIRES,
    ENTRY_SIZE,
    EXPIRES,
    FIXED_SIZE,
    KIND,
    MIN_ENTRY_SIZE,
    OFFSET_MASK,
    OFFSET_SHIFT,
    PREFIX,
    PUT,
    SEGMENT_SHIFT,
    SIZE_MASK,
    TOMBSTONE,
)
from ..codec.manifest import SEGMENT_HEADER_SIZE, SegmentRow
from ..codec.runs import Alike, Segments, alike, column_of, copy_alike, copy_run
from ..log.builder import SegmentBuilder
from ..log.scan import Scan, header_of, scan_segment
from ..state import State

if TYPE_CHECKING:
    from typing import Final

__all__ = ["Copier", "Pause", "Run"]

_IN_ORDER_BYTES: Final = 128 * 1024  # of entries, likewise
_NO_CRC: Final = bytes(CRC_SIZE)  # a copy gets one of its own

Pause = Callable[[], None]


class Run(NamedTuple):
    """Neighbouring sealed segments that are compacted together, oldest first."""

    rows: tuple[SegmentRow, ...]
    previous: tuple[int, int]  # id and last seq of the segment before them, 0 and 0 if they are the oldest

    @property
    def segment_ids(self) -> list[int]:
        """Return the ids of the segments."""
        return [row.segment_id for row in self.rows]

    @property
    def length(self) -> int:
        """Return the bytes of all of them."""
        return sum(row.length for row in self.rows)

    @property
    def is_oldest(self) -> bool:
        """Tell whether nothing older is left."""
        return self.previous == (0, 0)


class _Deletions:
    """What a run says is gone: the newest clear, and the tombstones above it. Raw."""

    __slots__ = ("clear", "tombstones")

    def __init__(self) -> None:
        self.clear: bytes | None = None
        self.tombstones: dict[bytes, bytes] = {}

    def note(self, flags: int, key: bytes, raw: bytes) -> None:
        """Note a tombstone or a clear, in the order of the log."""
        if flags & KIND == CLEAR:
            self.clear = raw
            self.tombstones.clear()
        else:
            self.tombstones[key] = raw

    def note_expired(self, key: bytes, raw: bytes) -> None:
        """Note the tombstone that takes the place of a put, likewise."""
        _, _, _, seq, modified_ms = ENTRY.unpack_from(raw)
        self.tombstones[key] = ENTRY.pack(TOMBSTONE, len(key), 0, seq, modified_ms) + key + _NO_CRC


class Copier:
    """Copy one run. ``pause`` is called between slices, ``advance`` is told the bytes of each segment that was read."""

    def __init__(self, state: State, run: Run, pause: Pause, advance: Callable[[int], None]) -> None:
        self._tuning = state.tuning
        self._state = state
        self._segments = state.segments
        self._keydir = state.keydir
        self._run, self._pause, self._advance = run, pause, advance
        self._limit = state.segments.sizes.segment
        self._deletions = _Deletions()
        self.outputs: list[SegmentBuilder] = []
        self.read_bytes = 0

    def copy_in_log_order(self) -> None:
        """Copy entry by entry, in the order of the log."""
        for row in self._run.rows:
            self._scan(row, self._copy_segment)
        self._copy_deletions()

    def copy_in_key_order(self) -> None:
        """Check each entry, then copy in the order of the keys, so that a scan reads one piece of file after the other.

        A key may be forgotten after it was found in its segment and before its turn; so nothing is forgotten meanwhile.
        """
        keydir, state = self._keydir, self._state
        try:
            with state.lock, state:  # nobody is in the middle of forgetting some
                keydir.is_held = True
            for row in self._run.rows:
                self._scan(row, self._check_segment)
            if self._deletions.clear is not None:
                self._copy_clear()
            self._copy_by_key()
            self._copy_deletions()
        finally:
            keydir.is_held = False

    def _scan(self, row: SegmentRow, take: Callable[[Scan, int], None]) -> None:
        directory = self._segments.directory
        descriptor, header = header_of(directory, row, self._segments.manifest.store_uuid, for_writing=True)
        try:
            scan = scan_segment(directory, descriptor, header, SEGMENT_HEADER_SIZE, row.length, header.previous_seq)
            take(scan, row.segment_id)
        finally:
            directory.files.close(descriptor)
        if scan.end != row.length:
            path = directory.segment_path(row.segment_id)
            raise scan.corruption(path, "; the compaction stopped and changed nothing")
        self._advance(row.length)

    def _copy_segment(self, scan: Scan, segment_id: int) -> None:
        """Copy the live puts of one segment and gather its tombstones.

        `pack_position` and the look at a full output are written out here: 1.9 µs a live entry instead of 3.7.
        """
        limit, every, pause = self._limit, self._tuning.copied_entries, self._pause
        is_oldest, deletions = self._run.is_oldest, self._deletions
        keydir = self._keydir
        locate = keydir.locations.get
        base = segment_id << SEGMENT_SHIFT
        output = self.outputs[-1] if self.outputs else None
        count = read = 0
        for flags, key, _, expires_ms, offset, raw in scan:
            size = len(raw)
            count += 1
            read += size
            if count == every:
                self.read_bytes += read
                count = read = 0
                pause()
            if flags & KIND == PUT:
                location = base | offset << OFFSET_SHIFT | (size if size <= SIZE_MASK else 0)
                if locate(key) != location and not keydir.is_newest(key, location):
                    if expires_ms and not is_oldest and keydir.newest(key) is None:
                        deletions.note_expired(key, raw)
                    continue
                if deletions.clear is not None:
                    # Whatever lives is newer than any clear, so this comes before the first copy.
                    output = self._copy_clear()
                if output is None or output.end + size > limit:
                    output = self._output(size)
                output.put(flags, key, expires_ms, raw, location)
            elif not is_oldest:
                deletions.note(flags, key, raw)  # else nothing older is left that it could hide
        self.read_bytes += read

    def _check_segment(self, scan: Scan, _segment_id: int) -> None:
        """Check one segment and gather its tombstones, as `_copy_segment` does."""
        is_oldest, deletions, pause = self._run.is_oldest, self._deletions, self._pause
        keydir = self._keydir
        if is_oldest:  # nothing older is left that a tombstone could hide
            for _ in scan.check():
                pause()
            return
        entries = iter(scan)
        while some := list(islice(entries, self._tuning.copied_entries)):
            pause()
            for flags, key, _, expires_ms, _, raw in some:
                if flags & KIND != PUT:
                    deletions.note(flags, key, raw)
                elif expires_ms and keydir.newest(key) is None:
                    deletions.note_expired(key, raw)

    def _copy_by_key(self) -> None:
        """Copy the live puts of a run in the order of their keys, then those that have expired.

        Meanwhile others write. A key that is passed over because it was not there has no live put in the run any
        more; one that expires before its turn has come is found among the expired, which are looked at last. There
        are those, too, that have expired after it: these have been copied.
        """
        keydir, pause, last = self._keydir, self._pause, None
        victims = {*self._run.segment_ids}
        among = Segments(victims)
        while True:
            self._state.order(keydir)
            with self._state.lock, self._state:
                keys = keydir.select(last, None, last is None, True, False, self._tuning.copied_keys)
            self._copy_keys(keys, list(map(keydir.locations.get, keys)), victims, among)
            pause()
            if len(keys) < self._tuning.copied_keys:
                break
            last = keys[-1]
        waiting = keydir.expired_in(victims)
        if waiting:
            for output in self.outputs:
                for copied in output.keys_in_pieces():
                    for key in copied:
                        waiting.pop(key, None)
                    pause()
        for number, (key, location) in enumerate(waiting.items()):
            self._copy_key(key, location)
            if number % self._tuning.copied_entries == 0:
                pause()

    def _copy_keys(self, keys: list[bytes], found: list[int | None], victims: set[int], among: Segments) -> None:
        """Copy the entries of keys that lie in the run, as many together as make a slice."""
        column = column_of(found) if among.by_byte else None
        if column is None:
            is_here: Sequence[int] = [
                location is not None and location >> SEGMENT_SHIFT in victims for location in found
            ]
        else:
            is_here = among.hold(column)
        if not all(is_here):
            keys, found = list(compress(keys, is_here)), list(compress(found, is_here))
            column = column_of(found) if among.by_byte else None
        locations: list[int] = found  # type: ignore[assignment]
        places = alike(column) if column else None
        if places is None:
            self._copy_any(keys, locations)
            return
        at, count, size = 0, len(keys), places.size
        while at < count:
            output = self._output(size)
            stop = at + max(1, min(self._limit - output.end, _IN_ORDER_BYTES) // size)
            if not self._copy_alike(output, keys[at:stop], places.part(at, stop), among):
                self._copy_any(keys[at:stop], locations[at:stop])
            at = stop
            if at < count:
                self._pause()

    def _copy_alike(self, output: SegmentBuilder, keys: list[bytes], places: Alike, among: Segments) -> bool:
        """Copy entries of one size that have room in an output; False, and nothing is copied, if not all are sound puts
        that never expire."""
        size, get = places.size, self._segments.open.get
        opened = {number: get(among.by_byte[number]) for number in set(places.segments)}
        files = map({number: file for number, (file, _) in opened.items()}.__getitem__, places.segments)
        piece = bytearray().join([file[at : at + size] for file, at in zip(files, places.offsets, strict=True)])
        seeds = {number: seed for number, (_, seed) in opened.items()}
        copies = copy_alike(piece, size, keys, places.segments, seeds, output.seed)
        if copies is None:
            return False
        output.put_alike(keys, size, places.locations, copies)
        return True

    def _copy_any(self, keys: list[bytes], locations: list[int]) -> None:
        """Copy entries of any sizes, as many together as make a slice."""
        sizes = list(map(SIZE_MASK.__and__, locations))
        ends = list(accumulate(sizes))
        at, count = 0, len(keys)
        while at < count:
            output = self._output(sizes[at])
            room = min(self._limit - output.end, _IN_ORDER_BYTES)
            stop = bisect_right(ends, ends[at] - sizes[at] + room, at)
            if not all(sizes[at:stop]):
                stop = sizes.index(0, at)
            if stop - at < 2 or not self._copy_together(output, keys[at:stop], locations[at:stop], sizes[at:stop]):
                stop = max(stop, at + 1)
                for key, location in zip(keys[at:stop], locations[at:stop], strict=True):
                    self._copy_key(key, location)
            at = stop
            if at < count:
                self._pause()

    def _copy_together(self, output: SegmentBuilder, keys: list[bytes], locations: list[int], sizes: list[int]) -> bool:
        """Copy entries that have room in an output; False, and nothing is copied, if one of them fails its check."""
        get = self._segments.open.get
        files = {segment_id: get(segment_id) for segment_id in {location >> SEGMENT_SHIFT for location in locations}}
        opened = [files[location >> SEGMENT_SHIFT] for location in locations]
        raws = [
            file[(at := location >> OFFSET_SHIFT & OFFSET_MASK) : at + size]
            for (file, _), location, size in zip(opened, locations, sizes, strict=True)
        ]
        copied = copy_run(raws, keys, [seed for _, seed in opened], output.seed)
        if copied is None:
            return False
        output.put_run(keys, sizes, locations, *copied)
        return True

    def _copy_key(self, key: bytes, location: int) -> None:
        raw, seed, segment_id, offset = self._segments.open.raw(location)
        flags, key_size = PREFIX.unpack_from(raw) if len(raw) >= MIN_ENTRY_SIZE else (0, 0)
        fixed = FIXED_SIZE[flags]
        if not fixed or raw[fixed : fixed + key_size] != key or checksum(raw, seed) != RESIDUE:
            path = self._segments.directory.segment_path(segment_id)
            raise CorruptionError(path, offset, "entry fails its check; the compaction stopped and changed nothing")
        expires_ms = ENTRY_EXPIRES.unpack_from(raw, ENTRY_SIZE)[0] if flags & EXPIRES else 0
        self._output(len(raw)).put(flags, key, expires_ms, raw, location)

    def _copy_clear(self) -> SegmentBuilder:
        raw = self._deletions.clear
        assert raw is not None
        output = self._output(len(raw))
        output.append(raw[0], b"", 0, raw)
        self._deletions.clear = None
        return output

    def _copy_deletions(self) -> None:
        """Copy what hides older entries. Last, for only now it is known which is a key's newest.

        A key that was copied needs no tombstone, even if it is deleted meanwhile: the copy hides as much, and so a
        key has one entry here.
        """
        if self._run.is_oldest:
            return
        if self._deletions.clear is not None:
            self._copy_clear()
        if not self._deletions.tombstones:
            return
        copied: set[bytes] = set()
        for output in self.outputs:
            for keys in output.keys_in_pieces():
                copied.update(keys)
                self._pause()
        newest = self._keydir.newest
        for number, (key, raw) in enumerate(self._deletions.tombstones.items()):
            if number % self._tuning.copied_entries == 0:
                self._pause()
            if newest(key) is None and key not in copied:
                self._output(len(raw)).append(raw[0], key, 0, raw)

    def _output(self, size: int) -> SegmentBuilder:
        """Return the file to append to, a new one if the last is full."""
        outputs = self.outputs
        if not outputs or (outputs[-1].end + size > self._limit and outputs[-1].end > SEGMENT_HEADER_SIZE):
            with self._state.turn.gate, self._state.turn, self._state.lock, self._state:
                self._state.ready()  # a roll was interrupted, perhaps
                segment_id = self._segments.reserve_ids(1)
            uuid = self._segments.manifest.store_uuid
            outputs.append(SegmentBuilder(self._segments.directory, uuid, segment_id, self._run.previous))
        return outputs[-1]
