"""Syncs of a shared store, each of which serves all processes.

The leader of one process takes SYNC, so that the leaders of the others wait, and looks at what they have made durable
by then. A failed sync is told to all before another may try: the kernel tells an error once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ...errors import StoreFailedError, StoreNotFoundError
from ..log.control_page import APPENDED, DURABLE_SYNC, FAILED, SEGMENT, ControlPage
from ..state import State
from ..write.durability import Durability
from ..write.throttle import Throttle

__all__ = ["SharedDurability"]


def _is_synced() -> None:
    """Sync nothing."""


class SharedDurability(Durability):
    """Make the changes of all processes durable by the syncs of one."""

    __slots__ = ("_marked_seq", "_page", "_timeout_s")

    def __init__(self, state: State, throttle: Throttle, wake: Callable[[], bool], page: ControlPage) -> None:
        super().__init__(state, throttle, wake)
        self._page = page
        self._marked_seq = state.durable_seq  # the newest sync that the log has a mark of, as far as is known here
        self._timeout_s = state.options.busy_timeout_s

    def _sync_unless_durable(self, seq: int) -> None:
        self._page.sync.run(lambda: self._sync_for_all(seq), self._timeout_s)

    def _sync_for_all(self, seq: int) -> None:
        """Sync what all have announced, unless another process has. Under SYNC and the lock of syncs."""
        state, words = self.state, self._page.words
        with state.lock, state:
            if self._is_decided(seq):
                return
            self.group.lead()
        began = state.files.monotonic()
        if self._page.durable_seq < seq:
            announced = words[APPENDED]  # first: then everything up to it lies in the active segment, or was sealed
            self._sync_and_tell(lambda: self._sync_segment(words[SEGMENT]), announced)
        self._tell_if_slow(began)
        with state.lock, state:
            if state.failure is not None and self._is_decided(seq):
                return
            state.became_durable(min(self._page.durable_seq, state.seq), began)
            self.group.release(state.durable_seq, failed=False)

    def _sync_and_tell(self, sync: Callable[[], object], seq: int) -> None:
        """Tell all processes what a sync has made durable, or that it has failed. Under SYNC."""
        words = self._page.words
        if words[FAILED]:  # in another process: one more sync would be told that all is well
            raise self._page.failed_elsewhere()
        try:
            sync()
        except StoreFailedError:
            words[FAILED] = 1  # before SYNC is given back: the kernel may tell the next one that all is well
            raise
        words[DURABLE_SYNC] = max(words[DURABLE_SYNC], seq)

    def sync_file(self, descriptor: int, path: str, seq: int) -> None:
        """Sync a segment that holds everything up to ``seq``, for all processes."""
        sync = partial(self.state.files.sync, descriptor, path)
        self._page.sync.run(lambda: self._sync_and_tell(sync, seq), self._timeout_s)

    def tell_durable(self, seq: int) -> None:
        """Tell all processes that everything up to ``seq`` is durable: a manifest says so."""
        if self._page.durable_seq < seq:
            self._page.sync.run(lambda: self._sync_and_tell(_is_synced, seq), self._timeout_s)

    def _sync_segment(self, segment_id: int) -> None:
        segments = self.state.segments
        writer = segments.writer
        if writer is not None and writer.header.segment_id == segment_id:
            writer.sync()
        elif segment_id:
            directory = segments.directory
            path = directory.segment_path(segment_id)
            try:
                descriptor = directory.files.open(path)
            except StoreNotFoundError:
                return  # sealed, and so synced, and compacted away
            try:
                directory.files.sync(descriptor, path)
            finally:
                directory.files.close(descriptor)

    def _mark(self, seq: int) -> None:
        """Leave the sync mark to the next change: it needs the turn."""

    def mark(self) -> None:
        """Write a sync mark if there was a sync since the last. In the turn, under the lock."""
        durable_seq = self.state.durable_seq
        if durable_seq > self._marked_seq and self.state.mode != "os":
            self._marked_seq = durable_seq
            super()._mark(durable_seq)

    def redo_for_reader(self) -> None:
        """Carry out what an interrupted call left and show it; in the turn, which it may have lost."""
        state = self.state
        if state.is_entered or state.sync_lock_is_owned():
            return
        state.turn.redo()
        super().redo_for_reader()
