"""Group commit: callers share one sync, and what waits for it is in the commit queue.

Of the callers that wait for a sync one leads, and the others wait, each for a baton of its own. So a finished sync
wakes exactly those that it served, and one to lead the next. It hands over the first baton only, whose owner hands over
the second, and so on: all of them woken at once would fight for the GIL. With 32 threads that makes three times the
durable puts of waiting in line at one lock, and a tenth more than all batons at once.

``interval`` and ``os`` show a change at once; a worker, or the operating system, makes it durable later. ``always``
shows it only after the sync: until then it waits in the queue.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from itertools import pairwise

from ..._lean import TYPE_CHECKING, suppress
from ...errors import StoreFailedError, SystemErrors, is_interrupt
from ..codec.checksum import CRC, checksum
from ..codec.entry import ENTRY, OVERHEAD, SEGMENT_SHIFT, SYNC_MARK
from ..log.segment import Writer
from ..state import ENTERED, State
from .throttle import Throttle

if TYPE_CHECKING:
    from typing import Any, Final

    from ...errors import BytekvError

__all__ = ["CommitQueue", "Durability", "GroupCommit", "Waiter"]

_LONGEST_PATIENCE_S: Final = 1.0
_SLOW_SYNC_S: Final = 1.0  # an operator wants to know

_pack_entry = ENTRY.pack
_pack_crc = CRC.pack


class Waiter:
    """A caller that waits for ``seq``."""

    __slots__ = ("_baton", "_next", "has_left", "seq")

    def __init__(self, seq: int) -> None:
        self.seq = seq
        self._baton = threading.Lock()
        self._baton.acquire()
        self.has_left = False
        self._next: Waiter | None = None

    def wait(self, timeout_s: float) -> bool:
        """Wait to be woken, and wake the next; False if the time has passed."""
        if not self._baton.acquire(timeout=timeout_s):
            return False
        if self._next is not None:
            self._next.wake()
        return True

    def wake(self) -> None:
        """End the waiting; of one that has left, that of the next."""
        waiter: Waiter | None = self
        while waiter is not None:  # a thousand may have left: no recursion
            try:
                waiter._baton.release()
            except RuntimeError:
                return  # the waker was interrupted, and another does it once more
            if not waiter.has_left or not waiter._baton.acquire(blocking=False):
                return
            waiter = waiter._next

    def leave(self) -> None:
        """Wait no longer, and keep the next from waiting in vain."""
        self.has_left = True
        self.wait(0)

    def is_followed_by(self, other: Waiter) -> None:
        """Have ``other`` woken after this one."""
        self._next = other


class GroupCommit:
    """The callers that wait for the syncs of one store. Under the store's lock."""

    __slots__ = ("_leading", "waiting")

    def __init__(self) -> None:
        self._leading = False  # a thread is syncing for all
        self.waiting: list[Waiter] = []

    def join(self, seq: int) -> Waiter | None:
        """Return what is woken once ``seq`` is durable or a leader is wanted; None: the caller leads."""
        if not self._leading:
            self._leading = True
            return None
        waiter = Waiter(seq)
        self.waiting.append(waiter)
        return waiter

    def lead(self) -> None:
        """Have later callers wait: this one leads, asked to or not."""
        self._leading = True

    def release(self, durable_seq: int, *, failed: bool) -> None:
        """Wake one to lead the next sync and those that this one has served; all if it ``failed``, to be told so."""
        self._leading = False
        waiting = [waiter for waiter in self.waiting if not waiter.has_left]
        served = [waiter for waiter in waiting if waiter.seq <= durable_seq or failed]
        self.waiting = [waiter for waiter in waiting if waiter.seq > durable_seq and not failed]
        line = [*self.waiting[:1], *served]
        del self.waiting[:1]
        for waiter, following in pairwise(line):
            waiter.is_followed_by(following)
        if line:
            line[0].wake()


class CommitQueue:
    """The changes of one store that wait for the sync that makes them visible, in their order. Under the lock.

    With ``sync="always"`` only. Readers see nothing of them. Writers must see each other's changes: whether a key
    exists, and where, they look up here first. A clear that waits hides all that is visible.
    """

    __slots__ = ("_clear_seq", "changes", "overlay")

    def __init__(self) -> None:
        self.changes: deque[Any] = deque()  # each with seq, writer, effects, tombstones, and `apply`
        self.overlay: dict[bytes, tuple[int, int | None]] = {}  # key -> (seq, location) of its newest change here
        self._clear_seq = 0  # of the newest clear that waits

    def find(self, key: bytes) -> tuple[bool, int | None]:
        """Tell whether what a writer finds of a key is decided here, and where its entry is, None if it is gone."""
        found = self.overlay.get(key)
        return (True, found[1]) if found is not None else (self._clear_seq > 0, None)

    def tombstones(self, writer: Writer, applied: int) -> int:
        """Return the bytes of tombstones in the active segment, of which ``applied`` are of visible changes."""
        changes = self.changes
        return changes[-1].tombstones if changes and changes[-1].writer is writer else applied

    def add(self, change: Any) -> None:
        """Keep a change back; once more is the same as once."""
        if not self.changes or self.changes[-1].seq < change.seq:
            self.changes.append(change)
        for key, location, _ in change.effects:
            if key is None:
                self.overlay.clear()
                self._clear_seq = change.seq
            else:
                self.overlay[key] = change.seq, location

    def show(self, seq: int, state: State) -> None:
        """Show the changes up to ``seq``, oldest first, and forget each."""
        changes = self.changes
        is_all = bool(changes) and changes[-1].seq <= seq
        while changes and changes[0].seq <= seq:
            changes[0].apply(state)
            if len(changes) == 1:
                self.forget_all()
            elif is_all:
                changes.popleft()  # what writers find of it goes with the last
            else:
                self.remove_first()

    def remove_first(self) -> None:
        """Forget the oldest change, which readers see now."""
        change = self.changes[0]
        for key, _, _ in change.effects:
            if key is not None and self.overlay.get(key, (0, None))[0] == change.seq:
                del self.overlay[key]
        if change.seq >= self._clear_seq:
            self._clear_seq = 0
        self.changes.popleft()

    def forget_all(self) -> None:
        """Forget everything: readers see it, or never will."""
        # In this order: interrupted, each leaves writers to find either what they found here or what readers see.
        self._clear_seq = 0
        self.overlay.clear()
        self.changes.clear()


class Durability:
    """Make one store's changes durable, and visible where that comes after."""

    __slots__ = ("_known_since", "_throttle", "_wake", "group", "state")

    def __init__(self, state: State, throttle: Throttle, wake: Callable[[], bool]) -> None:
        self.state = state
        state.queue = CommitQueue()
        self.group = GroupCommit()
        self._throttle = throttle
        self._wake = wake  # the worker; False if there can be none
        self._known_since: float | None = None  # the `State.dirty_since` that it was woken for last

    def finish(self, seq: int) -> None:
        """Do what the sync mode asks for before the caller may hear that ``seq`` is done. Without the lock."""
        state = self.state
        if state.deferred_events:
            state.emit()
        if state.wants_worker:
            state.wants_worker = False
            if not self._wake():
                state.throttles = False  # nobody compacts
                self._throttle.lift(state)
        if self._throttle.due_s:
            state.files.pause(self._throttle.take())
        if state.always:
            self.sync_to(seq)
            return
        since = state.dirty_since
        if since is None:
            return
        # Slower disk than promised: the writer waits, the loss after a power cut stays bounded.
        # And where no worker can be had (the interpreter is shutting down), nobody else would sync.
        is_late = state.files.monotonic() - since > 2 * state.options.sync_interval_s
        # Else the worker knows already, and to wake it would take 50 µs. Not `!=`: a clock may stand still.
        if since is not self._known_since:
            if self._wake():
                self._known_since = since
            else:
                is_late = True
        if is_late and not state.sync_lock_is_owned():  # a handler's write in its own thread's sync is left to the next
            self.sync_to(seq)

    def sync(self) -> None:
        """Make everything appended so far durable; `StoreFailedError` also if an earlier sync failed."""
        state = self.state
        state.check_idle()
        with state.lock, state:
            state.ready()
            seq = state.seq
        self.sync_to(seq)

    def sync_to(self, seq: int) -> None:
        """Return once every operation up to ``seq`` is durable and visible; many callers share one sync.

        One thread leads and syncs for all who had appended before it began.
        """
        state = self.state
        state.check_idle()
        while state.durable_seq < seq:
            with state.lock, state:
                waiter = self.group.join(seq)
            if waiter is None or self.is_left_alone(waiter):
                self.lead(seq)
        if state.deferred_events:
            state.emit()

    def is_left_alone(self, waiter: Waiter) -> bool:
        """Return once ``waiter`` was woken or has nothing left to wait for; True: nobody leads, and somebody has to."""
        patience_s = self.state.tuning.patience_s
        try:
            while not waiter.wait(patience_s):
                is_durable = self.state.durable_seq >= waiter.seq
                # A leader on a slow disk holds this lock. One that was interrupted before it could begin does not.
                # It is only looked at: of a lock that is taken to try, an interrupt can keep the way back.
                if is_durable or not repr(self.state.sync_lock).startswith("<locked"):
                    waiter.leave()
                    return not is_durable
                patience_s = min(2 * patience_s, _LONGEST_PATIENCE_S)
        except BaseException:
            waiter.leave()
            raise
        return False

    def lead(self, seq: int) -> None:
        """Sync what has been appended and show it, unless another makes ``seq`` durable first; wake who waits."""
        state = self.state
        try:
            with state.sync_lock:
                try:
                    self._sync_unless_durable(seq)
                except StoreFailedError as error:  # before the next may sync: the kernel tells an error once
                    with state.lock, state:
                        if state.refusal is None:
                            state.fail(error)
                    raise
        except BaseException:
            with state.lock, state:
                self.group.release(state.durable_seq, failed=state.failure is not None)
            raise

    def _sync_unless_durable(self, seq: int) -> None:
        """Sync and show what was appended if that includes ``seq``, and wake who waits. Under the lock of syncs."""
        state = self.state
        with state.lock, state:
            if self._is_decided(seq):
                return
            self.group.lead()
            writer, target, began = state.segments.writer, state.seq, state.files.monotonic()
        if writer is not None:
            writer.sync()  # an append from now on joins the next sync: target was read before
        self._tell_if_slow(began)
        with state.lock, state:
            # The kernel tells each write error once, and a roll's sync of the same file may have got it.
            if state.failure is not None and self._is_decided(seq):
                return
            state.became_durable(target, began)
            self._mark(target)
            self.group.release(state.durable_seq, failed=False)

    def _is_decided(self, seq: int) -> bool:
        """Tell whether ``seq`` is durable, and wake who waits if it is; `StoreFailedError` if that stays unknown.

        The caller's operation has been appended. So what has become of the store since, or of another's call, says
        nothing about it: "closed", or "the disk is full", would mean that it has not happened. Under both locks.
        """
        state = self.state
        if seq <= state.durable_seq:
            self.group.release(state.durable_seq, failed=state.failure is not None)
            return True
        if state.failure is None and state.refusal is None:
            try:
                if state.intent is not ENTERED or state.is_uncounted:
                    state.redo()  # part of what is synced; what a roll has left does not matter for that
            except SystemErrors as error:
                if is_interrupt(error):
                    raise  # a signal handler's; else it has not happened, of which its own caller was told
        cause: BytekvError | None = state.failure
        if cause is None:
            if state.refusal is None:
                return False
            cause = state.refusal()
        raise StoreFailedError(
            f"{state.segments.directory.path}: the next open decides whether this write has happened, for before it "
            f"was known to be durable came this: {cause}"
        ) from cause

    def _tell_if_slow(self, began: float) -> None:
        state = self.state
        if state.options.listener is None:
            return
        took_s = state.files.monotonic() - began
        if took_s >= _SLOW_SYNC_S:
            from ...events import SyncSlow

            state.tell_later(SyncSlow(state.segments.directory.path, took_s))

    def _mark(self, seq: int) -> None:
        """Write a sync mark: what tells later damage from a torn tail."""
        state = self.state
        writer = state.segments.writer
        if writer is None or state.failure is not None or not writer.reserve_holds(OVERHEAD):
            return  # no room here; the segment's seal vouches for it instead
        if state.segments.is_unsettled:
            return  # perhaps the segment is sealed, at a length without the mark
        body = _pack_entry(SYNC_MARK, 0, 0, seq, state.files.now_ms())
        mark = [body + _pack_crc(checksum(body, writer.seed))]
        try:
            writer.write(writer.end, mark)
        except SystemErrors:
            writer.take_back(writer.end, mark)  # if that fails, too, the next append goes over what is left
            return  # a full disk: without the mark damage is merely reported as a torn tail
        uncounted, state.is_uncounted = state.is_uncounted, True
        state.keydir.usage.count_dead(writer.base >> SEGMENT_SHIFT, OVERHEAD)
        writer.end += OVERHEAD
        state.is_uncounted = uncounted

    def sync_what_waits(self) -> None:
        """Make everything durable and visible while no other writer comes in. Under both locks."""
        state = self.state
        state.ready()
        try:
            if state.segments.writer is not None:
                state.segments.writer.sync()
        except StoreFailedError as error:
            state.fail(error)
            raise
        state.became_durable(state.seq)

    @property
    def has_waiting(self) -> bool:
        """Tell whether operations wait for a sync to become visible."""
        return bool(self.state.queue.changes)

    def redo_for_reader(self) -> None:
        """Carry out what an interrupted call left and show it: it is on disk, so it has happened."""
        state = self.state
        if state.is_entered or state.sync_lock_is_owned():
            return  # within this thread's own write, or in the handler that interrupts it
        with state.lock, state:
            if not state.readers_must_wait:
                return  # a batch was being shown, and has been
            if state.intent is not ENTERED:
                state.redo()
            if state.synced_seq > state.durable_seq:
                state.became_durable(state.synced_seq)  # the first of them may be shown by half
            state.readers_must_wait = False
            waiting = bool(state.queue.changes)
        if waiting:
            with suppress(StoreFailedError):  # then it stays undecided, and invisible
                self.sync_to(state.seq)

    def close(self) -> None:
        """Make everything durable and write a clean end. Under both locks; raises what went wrong."""
        state = self.state
        if state.segments.is_unsettled and state.failure is None:
            state.segments.settle()
        if state.intent is not None:
            state.redo()
        if state.failure is not None:
            state.refuse_after_failure()
        if self.has_waiting:
            self.sync_what_waits()  # should the clean end fail, who waits for this is not told of that
        state.segments.close(state.seq)
        state.became_durable(state.seq)
