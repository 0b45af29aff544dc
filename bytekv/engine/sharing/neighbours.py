"""Neighbours: what the other processes that share a store have written, and how this one catches up with it.

The control page says how far the log goes. What lies between there and where this process has read to is read from the
mapping of the active segment and applied to the keydir, as if it had been written here. Where another segment has
become active, or a compaction has replaced some, a follower reads what the manifest says.

No operation is shown before the page announces it: another process might show its reader the time before.
"""

from __future__ import annotations

import threading
from itertools import takewhile

from ..._lean import TYPE_CHECKING, log
from ...errors import BytekvError, StoreIOError
from ..codec.entry import CONTINUES, is_zero
from ..codec.manifest import SEALED, SEGMENT_HEADER_SIZE, Manifest, SegmentHeader, SegmentRow
from ..log import summary
from ..log.control_page import (
    ALLOCATED,
    APPENDED,
    END,
    FAILED,
    GENERATION,
    NEXT_ID,
    SEGMENT,
    ControlPage,
)
from ..log.scan import Scan, scan_segment
from ..log.segment import Writer
from ..replication.follower import Follower
from ..state import State, owned
from ..write.change import ForeignChange, ForeignEntries
from .durability import SharedDurability

if TYPE_CHECKING:
    from typing import Any, Final, Protocol

    from ..log.scan import Scanned
    from ..replication.follower import _News, _Plan

    class Turn(Protocol):
        """What is told while a dead process's turn is taken over."""

        def publish(self) -> None:
            """Write down where the log ends and which segments there are."""

        def sealed(self) -> None:
            """Note that everything is durable."""


__all__ = ["Neighbours"]

_AT_ONCE: Final = 1024  # entries that are applied under the lock, or one operation
_PIECE: Final = 1 << 20
_TRIES: Final = 1000  # segments that were sealed in the time that it took to read one


class _Follower(Follower):
    """A follower that sees no more than is announced, and says what the manifest itself says."""

    def __init__(self, state: State, page: ControlPage, published: Manifest, durability: SharedDurability) -> None:
        super().__init__(state)
        self._page, self._durability = page, durability
        self.is_bounded = True
        self.published = published

    def _read(self, manifest: Manifest) -> _Plan:
        mine = self._segments.manifest
        if mine.compat_flags != manifest.compat_flags:  # it was a backup until one of us wrote to it
            self._segments.manifest = mine._replace(compat_flags=manifest.compat_flags)
        plan = super()._read(manifest)
        if self._state.always:  # what is shown is durable, and known to be so in all processes
            self._durability.tell_durable(plan.durable_seq)
        self.published = manifest
        return plan

    def is_newest(self) -> bool:
        """Tell whether the manifest is still the one that was read last."""
        return self._directory.load(for_writing=False).generation == self.published.generation

    def _apply(self, plan: _Plan) -> bool:
        self._segments.obsolete.foreign.update(plan.gone)
        return super()._apply(plan)

    def _read_active(
        self, news: _News, descriptor: int, header: SegmentHeader, start: int, seq: int, size: int, plan: _Plan
    ) -> SegmentRow:
        words = self._page.words
        if not self.is_bounded:
            row = super()._read_active(news, descriptor, header, start, seq, size, plan)
        else:
            announced: int = words[APPENDED]
            if words[FAILED] and self._state.always:  # what waited for the failed sync is shown to nobody
                announced = self._page.durable_seq
            row, path = news.row, self._directory.segment_path(news.row.segment_id)
            scan = scan_segment(self._directory, descriptor, header, start, size, seq)
            entries = list(takewhile(lambda entry: entry[2] <= announced, scan)) if seq < announced else []
            end = entries[-1][4] + len(entries[-1][5]) if entries else start
            if end < row.length:
                raise scan.corruption(path, " in data that was durable")
            if entries:
                news.later = summary.hint_of(scan, entries=entries)._replace(length=end, last_seq=entries[-1][2])
                seq = entries[-1][2]
            plan.last_seq = max(plan.last_seq, seq)
            row = row._replace(length=end, last_seq=seq, state=SEALED)
        if self._state.always and not words[FAILED]:
            self._durability.sync_file(descriptor, self._directory.segment_path(row.segment_id), row.last_seq)
            plan.durable_seq = max(plan.durable_seq, row.last_seq)
        return row


class Neighbours:
    """Catch up with the processes that share a store."""

    def __init__(self, state: State, page: ControlPage, published: Manifest, durability: SharedDurability) -> None:
        self._state, self._segments, self._page = state, state.segments, page
        self._durability = durability
        self._follower = _Follower(state, page, published, durability)
        #: Taken before the store's locks: one thread at a time reads what others have written, and none while another
        #: thread of this process has the turn and has caught up.
        self.following: Any = threading.RLock()
        self._is_following = owned(self.following)

    @property
    def _words(self) -> memoryview:
        return self._page.words

    def begin(self) -> None:
        """Go on with the segment that was active when the store was read, beside the others."""
        state, words = self._state, self._words
        self._attach()
        state.durable_seq = state.synced_seq = min(state.seq, self._page.durable_seq)
        if words[APPENDED] < state.seq:  # an append was read that its writer was just about to announce, or died before
            with state.turn.gate, state.turn:
                pass
        if state.always:
            self._durability.sync_to(state.seq)

    # --- for a reader -------------------------------------------------------------------------

    @property
    def is_behind(self) -> bool:
        """Tell whether another process has announced what is not known here."""
        return self._words[APPENDED] > self._state.seq

    def catch_up(self) -> None:
        """Apply everything that had been announced when this was called.

        A handler in the middle of its own thread's call is left with what was known before.
        """
        state, announced = self._state, self._words[APPENDED]
        if state.is_entered or self._is_following():
            return
        if state.seq < announced:
            with self.following:
                self._redo()
                self._follow_to(announced)
        if state.always:
            durable_seq = self._page.durable_seq
            if durable_seq > state.durable_seq:
                with state.lock, state:
                    state.became_durable(min(durable_seq, state.seq))

    def _redo(self) -> None:
        """Apply what an interrupted call was just applying."""
        state = self._state
        if isinstance(state.intent, (ForeignEntries, ForeignChange)):
            with state.lock, state:
                if isinstance(state.intent, (ForeignEntries, ForeignChange)):
                    state.redo()

    def _follow_to(self, announced: int) -> None:
        for _ in range(_TRIES):
            if self._state.seq >= announced or self._read_tail():
                return
            self._refresh()
        raise StoreIOError(None, "other processes write faster than this one can read", self._segments.directory.path)

    @property
    def generation(self) -> int:
        """Return that of the newest manifest."""
        return self._words[GENERATION]

    def catch_up_with_set(self) -> None:
        """Do the same, and know which segments there are: some may be gone to which keys still point."""
        if self._state.is_entered or self._is_following():
            return
        with self.following:
            if self._words[GENERATION] > self._segments.manifest.generation:
                self._refresh()
        self.catch_up()

    def _read_tail(self) -> bool:
        """Apply what was appended to the active segment; False if that is not the one that is known here."""
        state, words = self._state, self._words
        writer, announced = self._segments.writer, words[APPENDED]
        if writer is None or words[SEGMENT] != self._segments.active_id:
            return state.seq >= announced
        end = words[END]
        if words[SEGMENT] != self._segments.active_id:
            return False
        if (writer.map is None or end > len(writer.map)) and not self._show(writer):
            return False
        mapping = writer.map
        assert mapping is not None
        end = min(end, len(mapping))

        def read(size: int, offset: int) -> bytes:
            return mapping[offset : offset + size]

        scan = Scan(read, writer.end, end, writer.seed, state.seq)
        some = []
        for entry in scan:
            if entry[2] > announced:
                break
            some.append(entry)
            if len(some) >= _AT_ONCE and scan.last_seq == entry[2]:
                self._apply(writer, some)
                some = []
        if some:
            self._apply(writer, some)
        return state.seq >= announced

    def _show(self, writer: Writer) -> bool:
        """Have readers see all of the active segment's file; False if it was sealed, and cut off, meanwhile."""
        size = writer.measure()
        try:
            with self._state.lock, self._state:
                writer.see(writer.end, size)
                self._segments.show_writer()
        except StoreIOError:
            if writer.measure() == size:
                raise
            return False
        return True

    def _apply(self, writer: Writer, entries: list[Scanned]) -> None:
        state = self._state
        pieces = _operations(entries) if state.always else [entries]  # each is shown once it is durable
        now_ms = state.files.now_ms()
        with state.lock, state:
            for piece in pieces:
                applied = state.keydir.usage.tombstone_bytes(writer.header.segment_id)
                change = ForeignEntries(writer, piece, state.queue.tombstones(writer, applied), now_ms)
                state.intent = change
                change.redo(state)

    def _refresh(self, *, is_in_turn: bool = False) -> None:
        """Read what the manifest says, and go on with the segment that is active now."""
        state, segments = self._state, self._segments
        if state.always and state.queue.changes:
            self._durability.sync_to(state.seq)
        with state.lock, state:
            segments.detach(state.seq)
        self._follower.refresh()
        self._attach(is_in_turn=is_in_turn)

    def _attach(self, *, is_in_turn: bool = False) -> None:
        state, segments, published = self._state, self._segments, self._follower.published
        rows = segments.manifest.segments
        end = SEGMENT_HEADER_SIZE
        active = published.segments[-1] if published.segments else None
        if active is not None and rows and rows[-1].segment_id == active.segment_id:
            end = rows[-1].length
        with state.lock, state:
            try:
                segments.attach(published, end)
            except BytekvError:
                if is_in_turn or self._follower.is_newest():
                    raise
                return  # sealed meanwhile, and cut off or gone; the next look finds another active segment
            if segments.writer is not None:
                state.keydir.usage.open_segment(segments.writer.header.segment_id)

    # --- who has the turn ----------------------------------------------------------------------

    def catch_up_in_turn(self) -> bool:
        """Be where the log ends, ready to append. In the turn, and with `following`.

        The log says where that is. False if the page says something else: somebody has changed it.
        """
        segments, words = self._segments, self._words
        self._redo()
        if words[GENERATION] != segments.manifest.generation or words[SEGMENT] != segments.active_id:
            self._refresh(is_in_turn=True)
        if self._state.seq < words[APPENDED]:
            self._read_tail()
        if segments.writer is not None:
            self._see_room(segments.writer)
        self._pass_ids()
        return self._agrees()

    def _agrees(self) -> bool:
        """Tell whether the page says of the log what is known of it here; pass what only marks a sync."""
        segments, words, writer = self._segments, self._words, self._segments.writer
        if (
            words[APPENDED] != self._state.seq
            or words[SEGMENT] != segments.active_id
            or words[GENERATION] != segments.manifest.generation
        ):
            return False
        if writer is None:
            return True
        end = words[END]
        mapping = writer.map
        if mapping is None or end > len(mapping) or (end < len(mapping) and mapping[end]):
            return False  # an entry lies where the next one would
        if writer.end == end:
            return True
        scan = Scan(lambda size, offset: writer.read(offset, size), writer.end, end, writer.seed, words[APPENDED])
        if any(True for _ in scan) or scan.end != end:
            return False
        with self._state.lock, self._state:
            self._pass_marks(writer)
        return True

    def _pass_ids(self) -> None:
        """Give no id to a segment that another process has reserved. In the turn."""
        segments, next_id = self._segments, self._words[NEXT_ID]
        if segments.manifest.next_id < next_id:
            segments.manifest = segments.manifest._replace(next_id=next_id)

    def _pass_marks(self, writer: Writer) -> None:
        state, size = self._state, self._words[END] - writer.end
        uncounted, state.is_uncounted = state.is_uncounted, True
        state.keydir.usage.count_dead(writer.header.segment_id, size)
        writer.end += size
        state.is_uncounted = uncounted

    def _see_room(self, writer: Writer) -> None:
        if self._words[ALLOCATED] != writer.allocated or writer.map is None:
            allocated = writer.measure()
            with self._state.lock, self._state:
                writer.see(writer.end, allocated)
                self._segments.show_writer()

    def take_over(self, turn: Turn) -> None:
        """Find out what a process has left that died in its turn. In the turn, and with `following`.

        Whole operations have happened. If anything but zeros follows, nothing is ever appended to that segment: what is
        there is kept in quarantine, and the segment is sealed before it.
        """
        state, segments = self._state, self._segments
        follower = self._follower
        follower.is_bounded = False
        try:
            self._refresh(is_in_turn=True)
        finally:
            follower.is_bounded = True
        self._pass_ids()
        writer = segments.writer
        if writer is None:
            return
        torn = self._torn_bytes(writer)
        if torn:
            path = segments.directory.quarantine(f"{writer.header.segment_id:010d}-{writer.end}.torn", [torn])
            state.defer(
                log.warning, "a process died while it wrote to %s; its unfinished write is in %s", writer.path, path
            )
        turn.publish()  # before a manifest that lists them: others may not see what is not announced
        if torn:
            with state.lock, state:
                segments.seal(state.seq)
                turn.sealed()
                state.became_durable(state.seq)

    def _torn_bytes(self, writer: Writer) -> bytes:
        size = writer.measure()
        last = writer.end
        for offset in range(writer.end, size, _PIECE):
            piece = writer.read(offset, min(_PIECE, size - offset))
            if not is_zero(piece):
                last = offset + len(piece.rstrip(b"\0"))
        return writer.read(writer.end, last - writer.end)


def _operations(entries: list[Scanned]) -> list[list[Scanned]]:
    """Divide entries into whole operations."""
    found: list[list[Scanned]] = [[]]
    for entry in entries:
        found[-1].append(entry)
        if not entry[0] & CONTINUES:
            found.append([])
    return found[:-1]
