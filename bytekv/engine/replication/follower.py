"""Follower: how a read-only store catches up with the writer beside it.

A follower has applied operations 1 … R. `refresh` reads what the writer has published since and moves on to
some R' >= R in one step: whole batches, nothing torn, never backwards. It leaves no trace and asks the writer
for nothing; all it relies on is that bytes once appended stay, and that the manifest is replaced whole.

Two things may have happened since. *The log grew*: the active segment has more entries, others were begun.
They come in order, after everything known. *A compaction replaced a run of segments*: an output holds the
newest entry of each key of its run. What it says of operations up to R is no news: a key that still points
into the run has moved to the output, a key that is absent was deleted since and stays so. What it says of
later ones is news: what lies after the run is later still, so none of that is known either. A key that
points into a segment which is gone, and that nobody has named since, was deleted, and the tombstone went with
the compaction.

Reading comes first, with `pread`, and changes nothing: whatever fails there is tried again with the manifest
of that moment, because files vanish under a follower. Applying is in memory, under the lock, and repeatable.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial

from ..._lean import TYPE_CHECKING, NamedTuple
from ...errors import BytekvError, CorruptionError, StoreIOError, translated
from ..codec.checksum import seed_of
from ..codec.entry import SEGMENT_SHIFT, measure_entry, unpack_location
from ..codec.hint import Hint
from ..codec.manifest import LOG, OUTPUT, SEALED, SEGMENT_HEADER_SIZE, Manifest, SegmentHeader, SegmentRow
from ..log import summary
from ..log.open_segments import SegmentFile, reaches
from ..log.scan import file_size_of, header_of, scan_segment
from ..state import State
from ..write.change import apply_foreign

if TYPE_CHECKING:
    from typing import Final, TypeVar

    T = TypeVar("T")

__all__ = ["Follower", "try_again"]

_END: Final = 32  # bytes, the CRC of the last entry among them, by which the end of a log is known again
_LOST: Final = "operations that were seen here did not survive on disk"


def try_again(attempt: Callable[[], T], pause: Callable[[], None], generation: Callable[[], int], tries: int) -> T:
    """Call ``attempt`` until it meets neither a file that has vanished nor an entry that is being written.

    Both look like damage at first sight; real damage is still there after the last try, and is raised. What was met
    beside a manifest whose ``generation`` went on meanwhile need not be any: that is `StoreIOError` (EAGAIN).
    """
    for _ in range(tries - 1):
        try:
            return attempt()
        except CorruptionError:
            pass
        except StoreIOError as error:
            if error.errno != errno.ENOENT:
                raise
        pause()
    before = generation()
    try:
        return attempt()
    except (CorruptionError, StoreIOError) as error:
        if isinstance(error, StoreIOError) and error.errno != errno.ENOENT:
            raise
        if generation() != before:
            raise StoreIOError(
                errno.EAGAIN,
                f"the writer replaced its files faster than they could be read, {tries} times; try again ({error})",
            ) from error
        raise


class _News:
    """What has been read of one segment, to be applied."""

    __slots__ = ("entry_bytes", "later", "moved", "row", "tombstone_bytes")

    def __init__(self, row: SegmentRow, tombstone_bytes: int) -> None:
        self.row = row
        self.entry_bytes = 0  # that have been read
        self.tombstone_bytes = tombstone_bytes  # in the whole segment
        self.moved: Hint | None = None  # operations that are known, in a new place
        self.later: Hint | None = None  # operations that are not known yet

    @property
    def is_empty(self) -> bool:
        return self.moved is None and self.later is None

    @property
    def dead_bytes(self) -> int:
        """Return how many bytes of what has been read no key was pointed at, not even for a moment."""
        found = [hint for hint in (self.moved, self.later) if hint is not None]
        return self.entry_bytes - sum(hint.live_bytes + hint.tombstone_bytes for hint in found)


class _End(NamedTuple):
    """Where the active segment ended when it was last read, and its bytes up to there."""

    segment_id: int
    offset: int
    content: bytes


class _Plan:
    __slots__ = ("durable_seq", "end", "gone", "last_seq", "manifest", "news", "published", "views")

    def __init__(self, manifest: Manifest, durable_seq: int, last_seq: int) -> None:
        self.published = manifest
        self.manifest = manifest  # as this process sees it: the active segment ends where it has been read to
        self.durable_seq = durable_seq
        self.last_seq = last_seq
        self.end: _End | None = None
        self.news: list[_News] = []
        self.gone: set[int] = set()
        self.views: dict[int, tuple[SegmentFile, int]] = {}


class Follower:
    """Bring the keydir of a read-only store up to date; one call at a time, the caller sees to that."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._segments = state.segments
        self._keydir = state.keydir
        self._directory = state.segments.directory
        self._end: _End | None = None
        for row in self._segments.manifest.segments[-1:]:
            reader = self._segments.open.table.get(row.segment_id)
            if reader is not None and reader[0].size() >= row.length:
                content = reader[0][max(0, row.length - _END) : row.length]
                self._end = _End(row.segment_id, row.length, content)

    def refresh(self) -> bool:
        """Apply what the writer has done since; tell whether there was anything new.

        Raises `StoreIOError` (ESTALE) if the directory holds another store now, or if operations that were
        seen here did not survive a power cut or a failed sync of the writer; `CorruptionError` if what is
        new is damaged. Nothing has changed then.
        """
        directory, tries = self._directory, self._state.tuning.tries
        pause = directory.files.yield_cpu
        return try_again(self._refresh, pause, lambda: directory.load(for_writing=False).generation, tries)

    def _refresh(self) -> bool:
        state = self._state
        state.redo_interrupted()
        plan = self._read(self._directory.load(for_writing=False))
        changed = bool(plan.news) or plan.manifest.generation != self._segments.manifest.generation
        if changed:
            apply_foreign(state, partial(self._apply, plan))
        state.durable_seq = max(state.durable_seq, plan.durable_seq)
        return changed

    # --- reading: nothing is changed ---------------------------------------------------------------

    def _read(self, manifest: Manifest) -> _Plan:
        mine_all = self._segments.manifest.segments
        known = {row.segment_id: row for row in mine_all}
        if manifest.store_uuid != self._segments.manifest.store_uuid:
            raise self._stale("another store has taken this one's place")
        mine = self._segments.manifest
        if manifest.compat_flags != mine.compat_flags or manifest.generation < mine.generation:
            raise self._stale("the store was repaired, or a copy of it was put in its place or written to")
        listed = {row.segment_id for row in manifest.segments}
        last = mine_all[-1].segment_id if mine_all else 0
        # Compacted away, it may be; but perhaps only what had been left of it when its end was lost.
        is_gone = last and last not in listed
        if is_gone and (manifest.last_seq < self._state.seq or self._has_lost_its_end(last)):
            raise self._stale(_LOST)
        plan = _Plan(manifest, manifest.last_seq, max(self._state.seq, manifest.last_seq))
        rows: list[SegmentRow] = []
        for row in manifest.segments:
            seen = known.get(row.segment_id)
            if seen is not None and row.state == SEALED and (row.salt, row.length) == (seen.salt, seen.length):
                rows.append(row)
                continue
            found = self._read_segment(row, seen, plan)
            if found.length > SEGMENT_HEADER_SIZE:
                rows.append(found)
        # Whatever took its place: the log of a store never ends before what was seen of it.
        if max([manifest.last_seq, *(row.last_seq for row in rows)]) < self._state.seq:
            raise self._stale(_LOST)
        plan.manifest = manifest._replace(segments=tuple(rows))
        plan.gone = known.keys() - {row.segment_id for row in rows}
        return plan

    def _has_lost_its_end(self, segment_id: int) -> bool:
        """Tell whether a segment that was active when it was last read is shorter now, or another one; False if it is
        not open any more, for then nobody knows."""
        end, reader = self._end, self._segments.open.table.get(segment_id)
        if end is None or end.segment_id != segment_id or reader is None:
            return False
        view, start = reader[0], end.offset - len(end.content)  # `adopt` keeps none that does not reach so far
        return view.size() < end.offset or view[start : end.offset] != end.content

    def _stale(self, reason: str) -> StoreIOError:
        return StoreIOError(errno.ESTALE, f"{reason}; close this reader and open the store again", self._directory.path)

    def _read_segment(self, row: SegmentRow, mine: SegmentRow | None, plan: _Plan) -> SegmentRow:
        """Put what is new in one segment into the plan and return its row as this process sees it."""
        directory, files = self._directory, self._directory.files
        if mine is not None and (row.salt != mine.salt or (row.state == SEALED and row.length < mine.length)):
            raise self._stale(_LOST)
        descriptor, header = header_of(directory, row, plan.manifest.store_uuid, for_writing=False)
        try:
            size = file_size_of(directory, descriptor, row)
            if mine is not None:
                start, seq = mine.length, mine.last_seq
                news = _News(row, self._keydir.usage.tombstone_bytes(row.segment_id))
            else:
                start, seq = SEGMENT_HEADER_SIZE, header.previous_seq
                news = _News(row, 0)
                if header.kind == LOG and seq < self._state.seq:
                    raise self._stale(_LOST)
            if row.state == SEALED:
                self._read_sealed(news, descriptor, header, start, seq)
                news.entry_bytes = row.length - start
            else:
                row = self._read_active(news, descriptor, header, start, seq, size, plan)
                news.entry_bytes = row.length - start
            if not news.is_empty:
                news.tombstone_bytes += sum(found.tombstone_bytes for found in (news.moved, news.later) if found)
                plan.news.append(news)
                self._show(row, descriptor, size, plan)
            return row
        finally:
            files.close(descriptor)

    def _read_sealed(self, news: _News, descriptor: int, header: SegmentHeader, start: int, seq: int) -> None:
        directory, row, known_seq = self._directory, news.row, self._state.seq
        is_known = header.kind == OUTPUT and row.last_seq <= known_seq
        if header.kind == LOG or is_known:
            if start == SEGMENT_HEADER_SIZE:
                (hint,) = summary.of(directory, descriptor, header, row, in_one=True).hints
            else:
                hint = summary.scanned(directory, descriptor, header, start, row.length, seq)
            if is_known:
                news.moved = hint
            else:
                news.later = hint
            return
        # An operation that is known already, and its key gone, was deleted since.
        scan = scan_segment(directory, descriptor, header, start, row.length, seq)
        entries = list(scan)
        news.moved = summary.hint_of(scan, entries=[entry for entry in entries if entry[2] <= known_seq])
        news.later = summary.hint_of(scan, entries=[entry for entry in entries if entry[2] > known_seq])
        if scan.end != row.length:
            raise scan.corruption(directory.segment_path(row.segment_id), " in data that was durable")

    def _read_active(
        self, news: _News, descriptor: int, header: SegmentHeader, start: int, seq: int, size: int, plan: _Plan
    ) -> SegmentRow:
        row, path = news.row, self._directory.segment_path(news.row.segment_id)
        scan = scan_segment(self._directory, descriptor, header, start, size, seq)
        hint = summary.hint_of(scan)
        if scan.end < row.length:
            raise scan.corruption(path, " in data that was durable")
        if scan.damage is not None:
            with translated("bytekv.engine.log.resync"):
                from ..log.resync import check_torn

            check_torn(scan, path)  # else an entry that is being written
        if scan.end > start:
            news.later = hint
        begin = max(0, scan.end - _END)
        plan.end = _End(row.segment_id, scan.end, self._directory.files.read(descriptor, scan.end - begin, begin, path))
        plan.last_seq = max(plan.last_seq, scan.last_seq)
        plan.durable_seq = max(plan.durable_seq, scan.durable_seq)
        return row._replace(length=scan.end, last_seq=max(scan.last_seq, seq), state=SEALED)

    def _show(self, row: SegmentRow, descriptor: int, size: int, plan: _Plan) -> None:
        """Open a segment for reading now, so that a compaction of the writer cannot take it away later."""
        segments = self._segments
        mine = segments.open.table.get(row.segment_id)
        if mine is not None and reaches(mine[0], row.length):
            return
        if len(plan.views) < segments.open.most:
            try:
                view = segments.open.file_of(descriptor, row.segment_id, size)  # with room for what will be appended
            except StoreIOError:
                view = segments.open.file_of(descriptor, row.segment_id, row.length)  # sealed and trimmed just now
            plan.views[row.segment_id] = view, seed_of(row.salt)

    # --- applying: in memory, under the lock, repeatable ---------------------------------------------

    def _apply(self, plan: _Plan) -> bool:
        keydir, segments, state = self._keydir, self._segments, self._state
        is_counted = True

        def size_of(location: int) -> int:
            nonlocal is_counted
            size = self._size_of(location)
            is_counted = is_counted and size > 0
            return size

        rank = {row.segment_id: number for number, row in enumerate(plan.manifest.segments)}
        segments.adopt(plan.manifest, plan.views, plan.gone)
        for news in plan.news:
            segment, here = news.row.segment_id, rank[news.row.segment_id]

            def is_older(location: int, here: int = here) -> bool:
                return rank.get(location >> SEGMENT_SHIFT, -1) <= here

            keydir.usage.set_tombstones(segment, news.tombstone_bytes)
            keydir.usage.open_segment(segment)
            keydir.usage.count_dead(segment, news.dead_bytes)
            if news.moved is not None:
                keydir.relocate(segment, news.moved, is_older, size_of)
            if news.later is not None:
                keydir.merge(segment, news.later, size_of)
        if plan.gone:
            keydir.forget_segments(plan.gone)
            keydir.usage.drop_segments(list(plan.gone))
            segments.obsolete.replace(sorted(plan.gone))
            segments.obsolete.remove(segments.reap(keydir.noted_segments()))
        self._end = plan.end
        state.seq = plan.last_seq
        return is_counted

    def _size_of(self, location: int) -> int:
        """Return the bytes that an entry takes, 0 if that is not known: opening its segment might close one that is
        gone and still needed."""
        segment_id, offset, size = unpack_location(location)
        reader = self._segments.open.table.get(segment_id)
        if size or reader is None:
            return size
        try:
            return measure_entry(reader[0][offset : offset + 7])
        except BytekvError:
            return 0  # only a count
