"""Commit: the plain way of every write; engine/fast.py has its short cuts.

A change is a list of operations. Under the store's lock a caller decides on them, they are encoded with the next seqs,
written at the end of the active segment by one write, and shown to readers by pointing the keydir at them; with
``sync="always"`` only once they are durable. The module `change` tells how one survives an interrupt, `durability` who
syncs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import compress

from ..._lean import TYPE_CHECKING, log
from ...contract.convert import MAX_BATCH_SIZE, check_sizes
from ...errors import BytekvError, LimitError, ReentryError, StoreFailedError
from ..codec.entry import PUT, TOMBSTONE
from ..log.segment import Writer
from ..state import ENTERED, REENTRY, State
from .change import AtomicChange, Bulk, DeleteRun, Operation, PutRun
from .durability import Durability
from .throttle import Throttle
from .turn import WriteTurn

if TYPE_CHECKING:
    from typing import Final

    from ...contract.batch import Writes
    from ..codec.entry import StoredEntry

    Bounds = tuple[bytes | None, bytes | None, bool, bool]
    Decision = Sequence[Operation] | Bulk | DeleteRun

__all__ = ["PURGED_BY_A_PUT", "Committer"]

PURGED_BY_A_PUT: Final = 2  # expired keys, 4 µs


class Committer:
    """Serialise all changes to one store."""

    __slots__ = ("_asked_for", "_files", "durability", "state", "throttle", "turn")

    def __init__(self, state: State, wake: Callable[[], bool]) -> None:
        self.state = state
        self._files = state.files
        self.throttle = Throttle(state.tuning)
        self.durability = Durability(state, self.throttle, wake)
        self.turn = WriteTurn(state, self.durability)
        self._asked_for = 0  # the base of the segment whose next was asked for; once, for it may be refused

    # --- changes -------------------------------------------------------------------------------

    def put(self, key: bytes, value: bytes) -> int:
        """Append one put and show it; return its seq."""
        check_sizes(key, value)
        return self.write([Operation(PUT, key, value)])

    def put_for(self, key: bytes, value: bytes, ttl_ms: int) -> int:
        """Append one put that expires and show it; return its seq."""
        check_sizes(key, value)
        return self.change(lambda now_ms: [Operation(PUT, key, value, now_ms + ttl_ms)])

    def write_few(self, writes: Writes) -> int | None:
        """Carry out some writes as one change; return the last seq. None: it is left to `change`."""
        return None

    def add(self, key: bytes, value: bytes, ttl_ms: int) -> bool:
        """Append one put, which expires unless ``ttl_ms`` is 0, if the key does not exist; tell whether it did not."""
        check_sizes(key, value)
        existed = False

        def decide(now_ms: int) -> Decision:
            nonlocal existed
            existed = self.newest(key, now_ms) is not None
            return [] if existed else [Operation(PUT, key, value, now_ms + ttl_ms if ttl_ms else 0)]

        self.change(decide)
        return not existed

    def put_over(self, key: bytes, value: bytes, ttl_ms: int, over: int | None) -> int:
        """Append one put if the key's entry lies at ``over`` (None: there is none); return its seq, 0 if it does not.

        -1: there is no short way for it, and nothing has happened.
        """
        return -1

    def expire(self, key: bytes, ttl_ms: int, read: Callable[[bytes, int], StoredEntry]) -> bool:
        """Append the key's value once more, so that it expires, if the key exists; tell whether it does.

        ``read`` returns the entry of a key at a location.
        """
        check_sizes(key)
        exists = False

        def decide(now_ms: int) -> Decision:
            nonlocal exists
            location = self.newest(key, now_ms)
            exists = location is not None
            return [] if location is None else [Operation(PUT, key, read(key, location).value, now_ms + ttl_ms)]

        self.change(decide)
        return exists

    def delete(self, key: bytes, location: int | None = None) -> bool:
        """Append one tombstone if the key exists, and tell whether it did; only one at ``location``, if given."""
        check_sizes(key)
        existed = False

        def decide(now_ms: int) -> Decision:
            nonlocal existed
            found = self.newest(key, now_ms)
            existed = found is not None and location in (None, found)
            return [Operation(TOMBSTONE, key)] if existed else []

        self.change(decide)
        return existed

    def write(self, operations: list[Operation]) -> int:
        """Carry out operations as one atomic change; return the seq of the last."""
        return self.change(lambda _: operations)

    def change(self, decide: Callable[[int], Decision], turn_owner: object = None) -> int:
        """Ask what to do, under the lock, and do it as one atomic change; return the last seq.

        ``decide`` is given the time in ms. What it answers may depend on an entry that is not durable yet, so with
        ``sync="always"`` even a change that changes nothing or is refused waits for that. ``turn_owner`` has taken the
        turn, and gives it back by this.
        """
        state = self.state
        if state.lock_is_owned() or (state.always and state.sync_lock_is_owned()):
            raise ReentryError(REENTRY)
        refusal: Exception | None = None
        try:
            seq, refusal = self._carry_out(decide, turn_owner)
            self.durability.finish(seq)
            if state.keydir.dropped is not None:
                state.keydir.free_dropped()
        except BaseException:
            state.readers_must_wait = True
            state.require_slow_path()  # so that the next put comes here, too, and wakes the worker
            raise
        try:
            if refusal is not None:
                raise refusal
        finally:
            refusal = None  # else the error and this frame would keep each other alive
        return seq

    def _carry_out(self, decide: Callable[[int], Decision], turn_owner: object) -> tuple[int, Exception | None]:
        """Take the lock, decide and append; return the last seq, and why nothing was appended if ``decide`` says so."""
        state = self.state
        refusal: Exception | None = None
        with state.lock:
            try:
                state.ready()
                if turn_owner is None:
                    if self.turn.owner is not None:
                        self.turn.wait()
                elif not self.turn.end(turn_owner):  # no other writer can come in between
                    raise BytekvError("this transaction has lost its place; nothing was written")
                now_ms, seq = self._files.now_ms(), state.seq
                operations: Decision = ()
                try:
                    operations = decide(now_ms)
                except (BytekvError, TypeError, ValueError) as error:  # a conflict, or a value that does not fit
                    refusal = error
                if isinstance(operations, Bulk):
                    seq = self._append(self._bulk_change(operations), now_ms)
                elif isinstance(operations, DeleteRun):
                    seq = self._append(operations, now_ms)
                elif operations:
                    seq = self._append(AtomicChange.of(operations), now_ms)
            finally:
                if state.intent is ENTERED:  # `State.__exit__`
                    state.intent = None
        return seq, refusal

    def _bulk_change(self, bulk: Bulk) -> AtomicChange | PutRun:
        state = self.state
        if state.always:
            return AtomicChange.of(bulk.operations())
        return PutRun(bulk)

    def append(self, operations: Sequence[Operation]) -> int:
        """Append operations as one atomic change; return the last one's seq. Under the lock, after `State.ready`."""
        return self._append(AtomicChange.of(operations), self._files.now_ms())

    def _append(self, change: AtomicChange | DeleteRun | PutRun, now_ms: int) -> int:
        """Write a change; `LimitError` and `DiskFullError` change nothing."""
        state = self.state
        writer = self._room_for(change)
        if state.keydir.is_behind:  # so that what expires does not pile up where nothing else looks
            state.purge_some(PURGED_BY_A_PUT)
        applied = None  # a change without deletes leaves the count as it is
        if state.always or change.has_deletes:
            applied = state.queue.tombstones(writer, state.keydir.usage.tombstone_bytes(writer.header.segment_id))
        change.place(writer, state.seq, now_ms, applied)
        state.intent = change
        change.redo(state)
        return change.seq

    def would_wait(self, size: int | None) -> bool:
        """Tell whether a write of ``size`` bytes, or a read (None), would wait now for another call, a sync or a disk.

        Takes no lock that another thread has. What it says may be over by the next moment.
        """
        state = self.state
        if state.readers_must_wait:
            return True  # a batch is being shown, or an interrupted call has to be carried out once more
        if size is None or state.refusal is not None or state.failure is not None:
            return False  # a write that is refused is refused at once
        if state.always or self.turn.owner is not None or state.segments.is_unsettled:
            return True
        writer = state.segments.writer
        if writer is not None:  # else the call makes the first segment, which happens once
            end = writer.end + size
            if end > writer.limit or (state.throttles and self.throttle.would_delay(end, state.segments.sizes)):
                return True
        if not state.lock.acquire(blocking=False):
            return True
        state.lock.release()
        return False

    # --- what a writer finds -------------------------------------------------------------------

    def newest(self, key: bytes, now_ms: int) -> int | None:
        """Return where a writer finds the key's entry, None if it does not exist for it. Under the lock."""
        state = self.state
        if state.queue.changes:
            is_here, location = state.queue.find(key)
            if is_here:
                return None if location is None or self._is_over(location, now_ms) else location
        return state.keydir.locate(key, now_ms)

    def _is_over(self, location: int, now_ms: int) -> bool:
        expires_ms = self.state.segments.open.read(location).expires_ms
        return 0 < expires_ms <= now_ms

    def holds_exactly(self, bounds: Bounds, keys: list[bytes], *, ends: bool, now_ms: int) -> bool:
        """Tell whether the first keys of a range, and all of them if it ``ends``, are still these, and in order: what
        takes long is not done here. Under the lock, where nothing waits for a sync."""
        state = self.state
        keydir = state.keydir
        if keydir.is_order_due or (keydir.is_due(now_ms) and state.purge_some()):
            return False
        found = keydir.keys_between(*bounds)
        return found == keys if ends else found[: len(keys)] == keys

    @property
    def is_empty(self) -> bool:
        """Tell whether a writer finds no key. Under the lock."""
        if self.state.queue.changes:
            return False  # not worth finding out: a clear too many does no harm
        return not self.state.keydir

    def without_idle_deletes(self, bulk: Bulk, now_ms: int) -> Bulk:
        """Leave out the deletes of keys that no writer finds. Under the lock."""
        keys, values, expires = bulk
        if bulk.kinds == {bytes}:
            return bulk
        state = self.state
        if state.queue.changes:
            is_due = [
                value is not None or self.newest(key, now_ms) is not None
                for key, value in zip(keys, values, strict=True)
            ]
        else:
            exists, over = state.keydir.locations.__contains__, now_ms + 1
            until = state.keydir.expires.get
            is_due = [
                value is not None or (exists(key) and until(key, over) > now_ms)
                for key, value in zip(keys, values, strict=True)
            ]
        if all(is_due):
            return bulk
        rest = None if expires is None else list(compress(expires, is_due))
        return Bulk(list(compress(keys, is_due)), list(compress(values, is_due)), rest)

    # --- room ----------------------------------------------------------------------------------

    def _room_for(self, change: AtomicChange | DeleteRun | PutRun) -> Writer:
        size = change.size
        if size > MAX_BATCH_SIZE:
            raise LimitError(f"a batch of {size} bytes; the limit is {MAX_BATCH_SIZE}")
        state = self.state
        writer = state.segments.room_for(size, self._roll, only_deletes=change.only_deletes, fast=not state.always)
        is_soon_full = writer.end >= writer.limit * 5 // 8 and writer.base != self._asked_for
        if is_soon_full and writer.limit >= state.tuning.prepare_from:
            self._asked_for = writer.base
            state.wants_next = state.wants_worker = True
        if state.throttles and not state.always:
            self.throttle.slow_down(state, writer)
        return writer

    def prepare_next(self) -> None:
        """Make the next segment's file, and durable what this one holds, so that the roll has little to wait for.

        For the worker. What goes wrong here is met again, and told, by the roll.
        """
        state = self.state
        segments = state.segments
        try:
            with state.lock, state:
                state.wants_next = False
                state.ready()
                old = segments.writer
                if old is None or segments.prepared is not None:
                    return
                segment_id, seq = segments.reserve_ids(1), state.seq
            new = segments.create_writer(segment_id, (0, seq))
        except BytekvError:
            return
        with state.lock, state:
            is_next = segments.prepare(new, old)
        if is_next and not state.always:
            for _ in range(2):  # the second is short, and leaves next to nothing
                self.durability.sync_to(state.seq)

    def _roll(self) -> Writer:
        state = self.state
        old = state.segments.writer
        state.measure()
        try:
            state.segments.roll(state.seq)
        except StoreFailedError as error:
            state.fail(error)
            raise
        new = state.segments.writer
        assert new is not None
        state.keydir.usage.open_segment(new.header.segment_id)
        if old is not None:
            state.wants_worker = True
            self._sealed(old)
        return new

    def seal(self) -> None:
        """Seal the active segment, for a compaction of everything; the next write begins a new one."""
        state = self.state
        state.check_reentry()
        with state.turn.gate, state.turn, state.lock, state:
            state.ready()
            old = state.segments.writer
            if old is not None:
                try:
                    state.segments.seal(state.seq)
                except StoreFailedError as error:
                    state.fail(error)
                    raise
                self._sealed(old)
        state.emit()

    def _sealed(self, old: Writer) -> None:
        state = self.state
        where = old.header.segment_id, old.end, state.seq
        state.defer(log.debug, "sealed segment %d at %d bytes, seq %d", *where)
        if state.options.listener is not None:
            from ...events import SegmentSealed

            state.tell_later(SegmentSealed(state.segments.directory.path, *where))
        state.became_durable(state.seq)
        if not state.is_uncounted:
            state.keydir.usage.note_sealed(old.header.segment_id)
