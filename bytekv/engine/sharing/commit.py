"""Commit of a shared store: a change in its turn, and syncs that serve every process.

Nothing is written here twice: in the turn, and caught up, a process is a writer as any other. What is appended is
announced before it is shown, so no process shows it while another one's reader might still be shown the time before.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..._lean import TYPE_CHECKING
from ...errors import StoreFailedError, StoreNotFoundError
from ..log.control_page import APPENDED, DURABLE_SYNC, FAILED, SEGMENT, WANT, ControlPage
from ..log.segment import Writer
from ..state import State
from ..write.commit import Committer
from ..write.durability import Durability
from ..write.throttle import Throttle
from .neighbours import Neighbours
from .turn import SharedTurn

if TYPE_CHECKING:
    from typing import Any

    from ..codec.manifest import Manifest
    from ..write.change import AtomicChange, DeleteRun, PutRun
    from ..write.commit import Decision

__all__ = ["SharedCommitter"]


def _is_synced() -> None:
    """Sync nothing."""


class SharedDurability(Durability):
    """Make the changes of all processes durable by the syncs of one."""

    __slots__ = ("_marked_seq", "_page", "_timeout_s", "_turn")

    def __init__(
        self, state: State, throttle: Throttle, wake: Callable[[], bool], page: ControlPage, turn: SharedTurn
    ) -> None:
        super().__init__(state, throttle, wake)
        self._page, self._turn = page, turn
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
        if self._turn.durable_seq < seq:
            announced = words[APPENDED]  # first: then everything up to it lies in the active segment, or was sealed
            self._sync_and_tell(lambda: self._sync_segment(words[SEGMENT]), announced)
        self._tell_if_slow(began)
        with state.lock, state:
            if state.failure is not None and self._is_decided(seq):
                return
            state.became_durable(min(self._turn.durable_seq, state.seq), began)
            self.group.release(state.durable_seq, failed=False)

    def _sync_and_tell(self, sync: Callable[[], object], seq: int) -> None:
        """Tell all processes what a sync has made durable, or that it has failed. Under SYNC."""
        words = self._page.words
        if words[FAILED]:  # in another process: one more sync would be told that all is well
            raise self._turn.failed_elsewhere()
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
        if self._turn.durable_seq < seq:
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
        self._turn.redo()
        super().redo_for_reader()


class SharedCommitter(Committer):
    """Serialise the changes of one process with those of all others."""

    def __init__(self, state: State, wake: Callable[[], bool], page: ControlPage, published: Manifest) -> None:
        super().__init__(state, wake)
        timeout_s = state.options.busy_timeout_s
        self._page = page
        self.neighbours = Neighbours(state, page, published)
        self.turn: Any = SharedTurn(state, page, self.neighbours, timeout_s)
        self.durability: Any = SharedDurability(state, self.throttle, wake, page, self.turn)
        self.neighbours.make_durable = self.durability.sync_to  # type: ignore[method-assign]
        follower = self.neighbours.follower
        follower.sync = self.durability.sync_file  # type: ignore[method-assign]
        follower.tell_durable = self.durability.tell_durable  # type: ignore[method-assign]
        state.turn = self.turn

    def _carry_out(self, decide: Callable[[int], Decision], turn_owner: object) -> tuple[int, Exception | None]:
        turn = self.turn
        turn.check_reentry()
        self.neighbours.catch_up()  # most of it before the others have to wait
        with turn.gate:
            try:
                turn.start(turn_owner)
                done = super()._carry_out(decide, turn_owner)
            finally:
                try:
                    turn.stop_surely()
                except BaseException:  # it was interrupted before it began
                    turn.stop_surely()
                    raise
        if self._page.words[WANT]:
            self._page.let_waiters_in()
        return done

    def _append(self, change: AtomicChange | DeleteRun | PutRun, now_ms: int) -> int:
        state = self.state
        self.durability.mark()
        waited, state.readers_must_wait = state.readers_must_wait, True  # what is announced must be seen here, too
        seq = super()._append(change, now_ms)
        state.readers_must_wait = waited
        return seq

    def prepare_next(self) -> None:
        """Prepare nothing: another process may be the one that rolls."""
        self.state.wants_next = False

    def _sealed(self, old: Writer) -> None:
        self.turn.sealed()
        super()._sealed(old)

    def would_wait(self, size: int | None) -> bool:
        """Tell whether a call would wait: a write may, always, for another process."""
        return size is not None or self.neighbours.is_behind or super().would_wait(size)
