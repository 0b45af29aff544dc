"""Change feed: every operation of the log above a seq, in order, as far back as compaction has kept it.

A log segment holds its operations without a gap. A compaction keeps only the newest entry of each key, so
what it has rewritten is no feed any more: a feed begins above the last seq of the newest output, or says
that it cannot. Where the last feeds ended is remembered, so that asking again for what came since does not
read the segment from its beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..._lean import TYPE_CHECKING, NamedTuple
from ...contract.reports import Change
from ...errors import BytekvError, ChangesLostError, LimitError
from ..codec.checksum import CRC_SIZE, seed_of
from ..codec.entry import CLEAR, CONTINUES, FIXED_SIZE, KIND, PUT
from ..codec.manifest import LOG, SEGMENT_HEADER_SIZE, SegmentHeader, SegmentRow, decode_segment_header
from ..log.obsolete import Pin
from ..log.open_segments import SegmentFile
from ..log.scan import Scan
from ..state import State

if TYPE_CHECKING:
    from typing import Final

__all__ = ["ChangeFeed"]

_REMEMBERED: Final = 64


class _Part(NamedTuple):
    """What a feed reads of one segment."""

    row: SegmentRow
    header: SegmentHeader
    stop: int


class ChangeFeed:
    """Read the operations of one store in order; remember where feeds ended."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._segments = state.segments
        self._positions: dict[int, tuple[int, int]] = {}  # seq -> segment and offset after its entry

    def feed(self, since_seq: int, when_closed: Callable[[], None], check_open: Callable[[], None]) -> Iterator[Change]:
        """Yield the changes above ``since_seq`` up to the last that is visible now.

        ``when_closed`` is called when it has ended and keeps no file, ``check_open`` between two changes. Raises, at
        once, `ChangesLostError` if some of them have been compacted away, `LimitError` if there is no such seq yet.
        """
        self._state.redo_interrupted()
        with self._state.lock, self._state:
            check_open()
            last_seq = self._state.visible_seq
            pin = self._segments.pin(when_closed, is_call=False)
        try:
            if not 0 <= since_seq <= last_seq:
                raise LimitError(f"since_seq must lie between 0 and {last_seq}, the last seq, not {since_seq}")
            return self._walk(pin, self._parts(pin, since_seq, last_seq, check_open), since_seq, last_seq, check_open)
        except BytekvError:
            pin.close()
            raise

    def _view(self, segment_id: int, check_open: Callable[[], None]) -> SegmentFile:
        try:
            return self._segments.open.get(segment_id)[0]
        except KeyError:
            check_open()  # it was closed meanwhile
            raise

    def _parts(self, pin: Pin, since_seq: int, last_seq: int, check_open: Callable[[], None]) -> list[_Part]:
        """Find the segments whose operations follow upon ``since_seq`` without a gap."""
        parts: list[_Part] = []
        reached = since_seq
        for row, length in zip(pin.rows, pin.lengths, strict=True):
            if row.last_seq <= since_seq and length == row.length:
                continue
            view = self._view(row.segment_id, check_open)
            path = self._segments.directory.segment_path(row.segment_id)
            header = decode_segment_header(view[0:SEGMENT_HEADER_SIZE], path)
            if header.kind != LOG or header.previous_seq > reached:
                parts.clear()
                reached = max(reached, header.previous_seq if header.kind == LOG else row.last_seq)
            if header.kind == LOG:
                parts.append(_Part(row, header, length))
                reached = max(reached, row.last_seq if length == row.length else last_seq)
        if reached < last_seq:
            parts.clear()
        oldest = parts[0].header.previous_seq if parts else last_seq
        if oldest > since_seq and last_seq > since_seq:
            raise ChangesLostError(self._segments.directory.path, since_seq, oldest)
        return parts

    def _walk(
        self, pin: Pin, parts: list[_Part], since_seq: int, last_seq: int, check_open: Callable[[], None]
    ) -> Iterator[Change]:
        seq = since_seq
        try:
            for part in parts:
                check_open()
                scan = self._scan(part, since_seq, check_open)
                try:
                    for flags, key, seq, expires_ms, _, raw in scan:
                        if seq > last_seq:
                            return
                        if seq <= since_seq:
                            continue
                        kind = flags & KIND
                        check_open()
                        yield Change(
                            seq,
                            "put" if kind == PUT else "clear" if kind == CLEAR else "delete",
                            key,
                            raw[FIXED_SIZE[flags] + len(key) : -CRC_SIZE],
                            expires_ms / 1000 if expires_ms else None,
                            bool(flags & CONTINUES),
                        )
                finally:
                    self._remember(part, scan)
                if scan.end != part.stop and scan.last_seq < last_seq:
                    raise scan.corruption(self._segments.directory.segment_path(part.row.segment_id), " in the log")
        finally:
            pin.close()

    def _scan(self, part: _Part, since_seq: int, check_open: Callable[[], None]) -> Scan:
        segment_id, start, seq = part.row.segment_id, SEGMENT_HEADER_SIZE, part.header.previous_seq
        for known, (segment, offset) in list(self._positions.items()):
            if segment == segment_id and seq < known <= since_seq and offset <= part.stop:
                start, seq = offset, known

        def read(size: int, at: int) -> bytes:
            check_open()
            view = self._view(segment_id, check_open)  # not kept: a feed that is left must not keep the file open
            return view[at : at + size]

        return Scan(read, start, part.stop, seed_of(part.row.salt), seq)

    def _remember(self, part: _Part, scan: Scan) -> None:
        # A copy: feeds end in any thread, also while another is ending here.
        positions = self._positions.copy()
        positions.pop(scan.last_seq, None)
        positions[scan.last_seq] = part.row.segment_id, scan.end
        while len(positions) > _REMEMBERED:
            del positions[next(iter(positions))]
        self._positions = positions
