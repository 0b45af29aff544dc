"""Undo copier: gather what open views need of replaced segments, so that these can be removed.

A segment that a compaction has replaced stays as long as an open view remembers a location in it. Where that is little
of the segment, the entries are copied into a *side file*, the views are pointed there, and the segment is removed. So
the files that views keep are at least half full of what they need, and as small ones are gathered together, there are
few of them.

A side file is read as an obsolete segment is. No manifest lists it, so the next open removes what a crash leaves; it
need not be durable. In the place of a segment's header it has zeros, so that a repair without a manifest, which reads
whatever looks like a segment, cannot bring back what was deleted.

In this order: (1) the file is written; (2) it is an obsolete segment, which the views need; (3) their undo maps are
pointed at the copies, some keys at a time: a reader finds the old place or the new one, and both are there; (4) the
views need the old segments no more. Interrupted before (2), the file is removed; after it, both stay until the views
are closed or the next turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from ..._lean import TYPE_CHECKING, suppress
from ...errors import CorruptionError, SystemErrors, is_interrupt
from ..codec.checksum import CRC, CRC_SIZE, RESIDUE, checksum, seed_of
from ..codec.entry import SEGMENT_SHIFT, SIZE_MASK, pack_position
from ..codec.manifest import SEALED, SEGMENT_HEADER_SIZE, SegmentRow
from ..index.read_view import ReadView
from ..state import State

if TYPE_CHECKING:
    from typing import Any, TypeVar

    T = TypeVar("T")

__all__ = ["copy_undo"]

Pause = Callable[[], None]
Undo = list[tuple[ReadView, dict[bytes, int | None]]]

_pack_crc = CRC.pack


def copy_undo(state: State, pause: Pause) -> None:
    """Gather what views need of replaced segments, until each of these is needed for half of its bytes at least.

    A disk that refuses leaves everything as it is. Complexity: O(keys that the views remember), in slices.
    """
    while True:
        with state.lock, state:
            state.ready()
            rows = state.segments.obsolete.kept_for(state.keydir.noted_segments())
            undo = state.keydir.undo_of({row.segment_id for row in rows})
        if not undo or not _Turn(state, rows, undo, pause).run():
            return


class _Turn:
    """Some of the segments, gathered in one file."""

    def __init__(self, state: State, rows: list[SegmentRow], undo: Undo, pause: Pause) -> None:
        self._state, self._segments, self._pause = state, state.segments, pause
        self._rows, self._undo = rows, undo
        self._tuning = state.tuning
        self._copies: dict[int, int] = {}  # where an entry was -> where it is
        self._file: tuple[int, str] | None = None  # id and path of what is written

    def run(self) -> bool:
        """Do it; False if there is nothing to do."""
        try:
            return self._gather()
        except BaseException:
            self._discard()
            raise

    def _gather(self) -> bool:
        wanted = self._wanted()
        try:
            gathered = self._choose(wanted)
            locations = [location for segment_id in gathered for location in wanted[segment_id]]
            if locations:
                self._point(self._write(locations))
        except (*SystemErrors, CorruptionError) as error:
            if is_interrupt(error):
                raise  # a signal handler's
            self._discard()
            return False  # what cannot be read or written now stays where it is
        if not gathered:
            return False
        with self._state.lock, self._state:
            self._release(gathered)
            free = self._segments.reap(self._state.keydir.noted_segments())
        self._segments.obsolete.remove(free)
        return True

    def _wanted(self) -> dict[int, list[int]]:
        """Return the locations that the views remember, by segment."""
        wanted: dict[int, set[int]] = {row.segment_id: set() for row in self._rows}
        for _, undo in self._undo:
            for some in _slices(undo.values(), self._tuning.undo_keys):
                for location in some:
                    if location is not None and location >> SEGMENT_SHIFT in wanted:
                        wanted[location >> SEGMENT_SHIFT].add(location)
                self._pause()
        return {segment_id: sorted(locations) for segment_id, locations in wanted.items()}

    def _size_of(self, location: int) -> int:
        try:
            return location & SIZE_MASK or self._segments.open.entry_size(location)
        except KeyError:
            return 0  # the only view that needed it was closed meanwhile

    def _choose(self, wanted: dict[int, list[int]]) -> set[int]:
        """Return the segments to gather: those of which less than half is wanted, and then the small ones.

        One that is no larger than what is gathered already joins it: so each entry is copied as often as what it lies
        in doubles, and there are few files. No more than fills a segment, for the copies are kept in memory meanwhile.
        """
        limit = self._segments.sizes.segment
        sized = [(sum(map(self._size_of, wanted[row.segment_id])), row) for row in self._rows]
        sparse = [(size, row) for size, row in sized if 2 * size < row.length - SEGMENT_HEADER_SIZE]
        full = sorted((each for each in sized if each not in sparse), key=lambda each: each[0])
        gathered: set[int] = set()
        total = 0
        for size, row in sparse:
            if not gathered or total + size <= limit:
                gathered.add(row.segment_id)
                total += size
        for size, row in full if sparse else ():
            if size <= total <= limit - size:
                gathered.add(row.segment_id)
                total += size
        return gathered

    def _write(self, locations: list[int]) -> SegmentRow:
        """Copy entries into a new file, under its own seed."""
        segments, files = self._segments, self._segments.directory.files
        with self._state.turn.gate, self._state.turn, self._state.lock, self._state:
            self._state.ready()
            segment_id = segments.reserve_ids(1)
        salt = int.from_bytes(files.random(8), "little")
        seed, base, end = seed_of(salt), segment_id << SEGMENT_SHIFT, SEGMENT_HEADER_SIZE
        path = segments.directory.segment_path(segment_id)
        self._file = segment_id, path
        descriptor = files.open_new(path)
        try:
            for some in _pieces(locations, self._size_of, self._tuning.flushed_bytes):
                parts: list[bytes] = []
                at = end
                for location in some:
                    try:
                        raw, old_seed, old_id, offset = segments.open.raw(location)
                    except KeyError:
                        continue  # the only view that needed it was closed meanwhile
                    if checksum(raw, old_seed) != RESIDUE:
                        raise CorruptionError(segments.directory.segment_path(old_id), offset, "fails its check")
                    body = raw[:-CRC_SIZE]
                    parts += body, _pack_crc(checksum(body, seed))
                    self._copies[location] = base | pack_position(end, len(raw))
                    end += len(raw)
                files.write(descriptor, b"".join(parts), at, path)
                self._pause()
        finally:
            files.close(descriptor)
        return SegmentRow(segment_id, salt, end, 0, SEALED)

    def _discard(self) -> None:
        """Remove the file if nothing knows of it: what was interrupted often would fill the disk otherwise."""
        if self._file is not None:
            segment_id, path = self._file
            if segment_id not in self._segments.obsolete.replaced:
                with suppress(*SystemErrors):  # listed nowhere: the next open sweeps it
                    self._segments.directory.files.unlink(path)

    def _point(self, row: SegmentRow) -> None:
        """Point the views at the copies."""
        state, copies = self._state, self._copies
        with state.lock, state:
            self._add(row)
        for view, undo in self._undo:
            for some in _slices(undo.items(), self._tuning.undo_keys):
                moved = [(key, old, copies[old]) for key, old in some if old in copies]
                if moved:
                    with state.lock, state:
                        view.repoint(moved)
                self._pause()

    # Functions of their own, as in `Compactor`: no loop lies directly inside a ``with`` that holds the lock.

    def _add(self, row: SegmentRow) -> None:
        self._segments.obsolete.add(row)  # first: interrupted, the file goes as one that no view needs
        for view, _ in self._undo:
            view.segments.add(row.segment_id)

    def _release(self, gathered: set[int]) -> None:
        for view, _ in self._undo:
            view.segments -= gathered


def _slices(items: Any, count: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while some := list(islice(iterator, count)):
        yield some


def _pieces(locations: list[int], size_of: Callable[[int], int], enough: int) -> Iterator[list[int]]:
    some: list[int] = []
    size = 0
    for location in locations:
        some.append(location)
        size += size_of(location)
        if size >= enough:
            yield some
            some, size = [], 0
    if some:
        yield some
