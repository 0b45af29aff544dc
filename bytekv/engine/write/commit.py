"""The one way in: how a change gets on disk, becomes visible and becomes durable, in which order.

A change is a list of operations. Under the store's lock they are encoded with the next seqs, put at
the end of the active segment by one write, and shown to readers by pointing the keydir at them.

*Interrupted calls.* KeyboardInterrupt and MemoryError may strike between any two bytecodes. So what is
about to be done is written into `pending` first, as absolute facts (these bytes at this offset, that
end, that seq), and the next call carries it out once more before doing anything else.

*Handlers.* A signal handler or a finaliser runs in the middle of whatever its thread is doing, and the
lock lets its own thread in once more. So each taker of the lock says so, ``with lock, committer:`` instead of
``with lock:``: then `pending` is set for as long, and a write in between is refused before it begins. Whoever takes the
lock, the sync lock or `compacting` for a call of the user's asks first: `check_reentry`, `check_write`, `check_idle`.

*Durability.* ``interval`` and ``os`` show a change at once; a worker, or the operating system, makes it
durable later. ``always`` shows it only after the sync: until then it waits in `Unseen`, where writers, who
must see each other's changes, look first. All who wait share the next sync.

Locks, in this order: `sync_lock` (one sync at a time), then `lock` (all state). No user code, logging
included, runs under either.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import compress
from struct import error as StructError

from ..._lean import TYPE_CHECKING, log
from ...contract.convert import MAX_BATCH_SIZE, check_sizes
from ...errors import (
    BytekvError,
    CorruptionError,
    DiskFullError,
    LimitError,
    ReentryError,
    StoreFailedError,
    StoreIOError,
    SystemErrors,
    is_about,
)
from ...options import Options
from ..codec.checksum import CRC, checksum
from ..codec.entry import ENTRY, OVERHEAD, PUT, SEGMENT_SHIFT, SIZE_MASK, SYNC_MARK, TOMBSTONE
from ..index.keydir import PURGED_AT_ONCE, Keydir
from ..index.order import Ordered, ordered
from ..listener import tell
from ..log.segment import Writer
from ..log.segment_manager import SegmentManager
from ..log.sizes import sizes_of
from .change import Bulk, Operation, Pending, PendingBulk, pending_bulk_of, pending_of, size_of
from .durability import Group, Waiter
from .throttle import Debt
from .turn import Gate
from .unseen import Unseen

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, Final, NoReturn

    from ...events import Event

__all__ = ["Committer"]


def _owned(lock: Any) -> Callable[[], bool]:
    # What threading.Condition uses to ask the same question; there is no public name for it.
    return lock._is_owned  # type: ignore[no-any-return]


_ENTERED: Final = ()  # a thread is inside the lock, and nothing is to be carried out once more
_REENTRY: Final = "a signal handler, a finaliser or a callback called a store in the middle of its own thread's call"
_PATIENCE_S: Final = 0.1  # after this long a waiter looks whether there still is a leader, then less and less often
_LONGEST_PATIENCE_S: Final = 1.0
_SLOW_SYNC_S: Final = 1.0  # an operator wants to know
_PURGED_BY_A_PUT: Final = 2  # expired keys, 4 µs
_PREPARE_FROM: Final = 1024 * 1024  # bytes of a segment that is worth preparing the next for
_BREATH_S: Final = 0.001
_MOST_SLICES: Final = 1000  # of changed keys, after which an index is brought up to date at once: writers are faster

_pack_entry = ENTRY.pack
_pack_crc = CRC.pack


class Committer:
    """Serialise all changes to one store."""

    __slots__ = (
        "_always",
        "_asked_for",
        "_clock_ns",
        "_debt",
        "_files",
        "_gate",
        "_group",
        "_interval_s",
        "_lock_is_owned",
        "_mode",
        "_options",
        "_sync_lock_is_owned",
        "_synced_seq",
        "_synced_seq",
        "_uncounted",
        "_unseen",
        "_wake",
        "dirty_since",
        "drags",
        "durable_seq",
        "failure",
        "interrupted",
        "is_due",
        "keydir",
        "lock",
        "notes",
        "pending",
        "refusal",
        "segments",
        "seq",
        "sync_lock",
        "wants_next",
        "wants_worker",
    )

    def __init__(
        self, segments: SegmentManager, keydir: Keydir, options: Options, last_seq: int, wake: Callable[[], bool]
    ) -> None:
        self.lock: Any = threading.RLock()
        self.sync_lock: Any = threading.RLock()
        self._lock_is_owned = _owned(self.lock)
        self._sync_lock_is_owned = _owned(self.sync_lock)
        self._gate = Gate(self.lock)
        self._files = segments.directory.files
        self._clock_ns = self._files.clock_ns
        self._mode = options.sync
        self._always = options.sync == "always"
        self._interval_s = options.sync_interval_s
        self._wake = wake
        self._options = options

        # --- guarded by lock
        self.segments = segments
        self.keydir = keydir
        self.pending: Any = None  # None · _ENTERED · Pending · the fast path's tuple · a callable
        self.interrupted = False  # a call ended in the middle: readers look, and settle it
        self.seq = last_seq  # of the last operation appended
        self.durable_seq = last_seq
        self._synced_seq = last_seq  # the same, but while what a sync has made durable is being shown
        self.failure: StoreFailedError | None = None
        self.refusal: Callable[[], BytekvError] | None = None  # closed, read-only, forked
        self.dirty_since: float | None = None  # when the oldest operation that is not durable was appended
        self._asked_for = 0  # the base of the segment whose next was asked for; once, for it may be refused
        self.wants_next = False  # the next segment is to be made, for this one is soon full
        self.wants_worker = False  # a segment was sealed: hints and a compaction may be due
        self.drags = False  # a worker compacts, and writers that outrun it are slowed down
        self.is_due: Callable[[], bool] = lambda: False  # tells whether a compaction is, that gives something back
        self._debt = Debt()
        self.notes: list[tuple[Callable[..., None], Any, tuple[object, ...]]] = []  # to be said once the lock is free
        self._unseen = Unseen()
        self._synced_seq = last_seq  # durable, though perhaps not all of it is shown yet
        self._uncounted = False  # a call was interrupted between a location and the count of dead bytes
        self._group = Group()
        self.measure()

    # --- the fast path -------------------------------------------------------------------------

    def put(self, key: bytes, value: bytes) -> int:
        """Append one put and show it; return its seq.

        This is `append` and `Keydir.put` flattened for the common case: a small value, room in the
        mapping, no expiry anywhere, nobody waiting for a sync. 1.3 µs instead of 5. Everything else
        (`fast_end` is 0 in every mode but the plain one) goes the long way.
        """
        if self._always:
            check_sizes(key, value)
            return self._put_durably(key, value)
        if self.pending is not None:
            self.settle()
        with self.lock:
            if self.pending is not None:
                self._roll_forward()
            self.pending = _ENTERED
            try:
                writer = self.segments.writer
                if writer is not None:
                    key_size = len(key)
                    size = key_size + len(value) + 27  # OVERHEAD
                    offset = writer.end
                    end = offset + size
                    if end <= writer.fast_end and size <= 8191:  # SIZE_MASK; a longer one has no fast place
                        seq = self.seq + 1
                        body = _pack_entry(1, key_size, len(value), seq, self._clock_ns() // 1000000) + key + value
                        entry = body + _pack_crc(checksum(body, writer.seed))
                        location = writer.base | offset << 13 | size
                        self.pending = writer, offset, entry, key, location, seq, 0
                        writer.map[offset:end] = entry  # type: ignore[index]
                        writer.end = end
                        self.seq = seq
                        keydir = self.keydir
                        if not keydir.is_plain:
                            keydir.put(key, location, 0, self.size_of)
                            if keydir.is_behind:
                                self.purge_some(_PURGED_BY_A_PUT)
                        else:
                            locations = keydir.locations
                            old = locations.get(key)
                            if old is None:
                                keydir.insert(key, location)
                            else:
                                locations[key] = location
                                dead, segment = keydir.usage.dead, old >> 44
                                dead[segment] = dead.get(segment, 0) + (old & 8191 or self.size_of(old))
                        self.pending = None
                        return seq
            except StructError:  # a clock before 1970, which the long way knows to write
                if self.pending is not _ENTERED:
                    self.interrupted = True
                    raise
            except BaseException:
                self.interrupted = True
                raise
            self.pending = None
        check_sizes(key, value)
        return self.apply([Operation(PUT, key, value)])

    def _put_durably(self, key: bytes, value: bytes) -> int:
        """Append one put and wait until it is durable and visible; `append` flattened: half of a durable put's time."""
        if self._lock_is_owned() or self._sync_lock_is_owned():
            raise ReentryError(_REENTRY)
        try:
            waiter: Waiter | None = None
            with self.lock:
                self.enter()
                writer = self.segments.writer
                size = len(key) + len(value) + OVERHEAD
                if writer is None or size > SIZE_MASK or writer.end + size > writer.room_end:
                    seq = self.append([Operation(PUT, key, value)])
                else:
                    seq, offset = self.seq + 1, writer.end
                    end = offset + size
                    body = _pack_entry(1, len(key), len(value), seq, self._clock_ns() // 1000000) + key + value
                    entry = body + _pack_crc(checksum(body, writer.seed))
                    location = writer.base | offset << 13 | size
                    queue = self._unseen.queue
                    if queue and queue[-1].writer is writer:
                        tombstones = queue[-1].tombstones
                    else:
                        tombstones = self.keydir.usage.tombstone_bytes(writer.base >> 44)
                    change = Pending(writer, offset, [entry], [(key, location, 0)], seq, end, tombstones)
                    self.pending = change
                    writer.map[offset:end] = entry  # type: ignore[index]
                    queue.append(change)
                    self._unseen.overlay[key] = seq, location
                    writer.end = end
                    self.seq = seq
                is_joined = not (self.notes or self.wants_worker)  # a logging handler must not keep a leader
                if is_joined:
                    waiter = self._group.join(seq)
                self.pending = None
            if not is_joined:
                self.acknowledge(seq)
            elif waiter is None or self._is_left_alone(waiter):
                self._lead(seq)
            if self.durable_seq < seq:
                self.make_durable(seq)
            return seq
        except BaseException:
            self.interrupted = True
            raise

    def delete(self, key: bytes) -> bool:
        """Append one tombstone if the key exists, and tell whether it did.

        Flattened as `put` is: 1.4 µs instead of 5.5.
        """
        if self.pending is not None:
            self.settle()
        with self.lock:
            if self.pending is not None:
                self._roll_forward()
            self.pending = _ENTERED
            try:
                writer, keydir = self.segments.writer, self.keydir
                if writer is not None and keydir.is_plain:
                    key_size = len(key)
                    size = key_size + 27
                    offset = writer.end
                    end = offset + size
                    if end <= writer.fast_end and size <= 8191:
                        old = keydir.locations.get(key)
                        if old is None:
                            self.pending = None
                            return False
                        old_size = old & 8191 or self.size_of(old)
                        seq = self.seq + 1
                        body = _pack_entry(2, key_size, 0, seq, self._clock_ns() // 1000000) + key
                        entry = body + _pack_crc(checksum(body, writer.seed))
                        segment = writer.base >> 44
                        usage = keydir.usage
                        tombstones = usage.tombstones.get(segment, 0) + size
                        self.pending = writer, offset, entry, key, None, seq, tombstones
                        writer.map[offset:end] = entry  # type: ignore[index]
                        writer.end = end
                        self.seq = seq
                        usage.tombstones[segment] = tombstones
                        keydir.discard(key)
                        dead, segment = usage.dead, old >> 44
                        dead[segment] = dead.get(segment, 0) + old_size
                        self.pending = None
                        return True
            except StructError:  # a clock before 1970, which the long way knows to write
                if self.pending is not _ENTERED:
                    self.interrupted = True
                    raise
            except BaseException:
                self.interrupted = True
                raise
            self.pending = None
        check_sizes(key)
        existed = False

        def decide() -> Sequence[Operation]:
            nonlocal existed
            existed = self.newest(key, self._files.now_ms()) is not None
            return [Operation(TOMBSTONE, key)] if existed else []

        self.change(decide)
        return existed

    # --- the long way --------------------------------------------------------------------------

    def apply(self, operations: list[Operation]) -> int:
        """Carry out operations as one atomic change; return the seq of the last."""
        return self.change(lambda: operations)

    def change(self, decide: Callable[[], Sequence[Operation] | Bulk], gate_owner: object = None) -> int:
        """Ask what is to be done, under the lock, and do it as one atomic change; return the last seq.

        What ``decide`` answers may depend on an entry that is not durable yet, so with ``sync="always"``
        even a change that changes nothing or is refused waits for that. ``gate_owner`` passes the gate that
        it has shut and leaves it open.
        """
        self.check_write()
        refusal: Exception | None = None
        try:
            with self.lock, self:
                self.ready()
                if gate_owner is None:
                    self._pass_gate()
                elif not self._gate.open(gate_owner):  # nobody can come in between
                    raise BytekvError("this transaction has lost its place; nothing was written")
                operations: Sequence[Operation] | Bulk = ()
                try:
                    operations = decide()
                except (BytekvError, TypeError, ValueError) as error:  # a conflict, or a value that does not fit
                    refusal = error
                if isinstance(operations, Bulk):
                    seq = self._append_bulk(operations)
                elif operations:
                    seq = self.append(operations)
                else:
                    seq = self.seq
            self.acknowledge(seq)
        except BaseException:
            self.interrupted = True
            if self.segments.writer is not None:
                self.segments.writer.fast_end = 0  # so that the next put comes here, too, and wakes the worker
            raise
        try:
            if refusal is not None:
                raise refusal
        finally:
            refusal = None  # else the error and this frame would keep each other alive
        return seq

    # --- who is inside -------------------------------------------------------------------------

    def __enter__(self) -> None:
        """Say, once the lock has been taken, that this thread is in the middle of something."""
        if self.pending is None:
            self.pending = _ENTERED

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.pending:  # else an interrupted change, for the next call
            self.pending = None

    def check_reentry(self) -> None:
        """Raise `ReentryError` if this thread holds the lock; the first thing of whatever takes it."""
        if self._lock_is_owned():
            raise ReentryError(_REENTRY)

    def check_write(self) -> None:
        """Raise `ReentryError` if this thread may not write, be it that it would have to wait for its own sync."""
        if self._lock_is_owned() or (self._always and self._sync_lock_is_owned()):
            raise ReentryError(_REENTRY)

    def check_idle(self) -> None:
        """Raise `ReentryError` if this thread holds the lock or syncs; the first thing of whatever has to wait."""
        if self._lock_is_owned() or self._sync_lock_is_owned():
            raise ReentryError(_REENTRY)

    def enter(self) -> None:
        """Check that writing is possible and wait for a turn; the first thing a change does under the lock."""
        self.ready()
        if self._gate.owner is not None:
            self._pass_gate()

    def ready(self) -> None:
        """Check that the store is usable and finish what was interrupted. Under the lock, which is said to be held."""
        if self.refusal is not None:
            raise self.refusal()
        if self.pending is None:
            self.pending = _ENTERED
        if self.segments.is_unsettled and self.failure is None:
            self.segments.settle()
        if self.pending or self._uncounted:
            self._roll_forward()
        if self.failure is not None:
            self._refuse_after_failure()

    # --- transactions --------------------------------------------------------------------------

    def shut_gate(self, owner: object) -> None:
        """Let no other writer in until `open_gate`, or until ``owner`` is gone; wait for a turn."""
        self.check_write()
        with self.lock, self:
            self.enter()
            self._gate.shut(owner)
            if self.segments.writer is not None:
                self.segments.writer.fast_end = 0  # so that a put goes the long way, which ends at the gate
        if self._unseen.queue:
            self.make_durable(self.seq)  # what is not durable is not visible, and the owner reads as all do

    def open_gate(self, owner: object) -> None:
        """Let the other writers in again; nothing if ``owner`` does not hold the gate."""
        with self.lock, self:
            self._gate.open(owner)

    def would_wait(self, size: int | None) -> bool:
        """Tell whether a write of ``size`` bytes, or a read (None), would wait now for another call, a sync or a disk.

        Takes no lock that another thread has. What it says may be over by the next moment.
        """
        if self.interrupted:
            return True  # a batch is being shown, or an interrupted call has to be carried out once more
        if size is None or self.refusal is not None or self.failure is not None:
            return False  # a write that is refused is refused at once
        if self._always or self._gate.owner is not None or self.segments.is_unsettled:
            return True
        writer = self.segments.writer
        if writer is not None:  # else the call makes the first segment, which happens once
            end = writer.end + size
            if end > writer.limit or (self.drags and self._debt.is_to_look(end)):
                return True
        if not self.lock.acquire(blocking=False):
            return True
        self.lock.release()
        return False

    def _pass_gate(self) -> None:
        while self._gate.is_shut():
            self.pending = None
            self._gate.wait()
            self.ready()

    def _refuse_after_failure(self) -> NoReturn:
        raise StoreFailedError(
            f"{self.segments.directory.path}: writes have been refused since this: {self.failure}; reading goes on, "
            "for writing close the store and open it again"
        ) from self.failure

    def settle(self) -> None:
        """Carry out what an interrupted call left; waits for a call that is under way in another thread."""
        self.check_reentry()
        with self.lock, self:
            if self.pending or self._uncounted:
                self._roll_forward()

    def settle_for_reader(self) -> None:
        """Carry out what an interrupted call left and show it: it is on disk, so it has happened."""
        if self._lock_is_owned() or self._sync_lock_is_owned():
            return  # within this thread's own write, or in the handler that interrupts it
        with self.lock, self:
            if not self.interrupted:
                return  # a batch was being shown, and has been
            if self.pending:
                self._roll_forward()
            if self._synced_seq > self.durable_seq:
                self._became_durable(self._synced_seq)  # the first of them may be shown by half
            self.interrupted = False
            waiting = bool(self._unseen.queue)
        if waiting:
            with suppress(StoreFailedError):  # then it stays undecided, and invisible
                self.make_durable(self.seq)

    def newest(self, key: bytes, now_ms: int) -> int | None:
        """Return where a writer finds the key's entry, None if it does not exist for him. Under the lock."""
        if self._unseen.queue:
            is_here, location = self._unseen.find(key)
            if is_here:
                return None if location is None or self._is_over(location, now_ms) else location
        return self.keydir.locate(key, now_ms)

    def _is_over(self, location: int, now_ms: int) -> bool:
        expires_ms = self.segments.open.read(location).expires_ms
        return 0 < expires_ms <= now_ms

    def append(self, operations: Sequence[Operation]) -> int:
        """Append operations as one atomic change; return the last one's seq. Under the lock, after `enter`.

        `LimitError` and `DiskFullError` change nothing.
        """
        writer = self._make_room(
            size_of(operations), only_deletes=all(operation.kind != PUT for operation in operations)
        )
        tombstones = self.keydir.usage.tombstone_bytes(writer.header.segment_id)
        queue = self._unseen.queue
        if queue and queue[-1].writer is writer:
            tombstones = queue[-1].tombstones
        now_ms = self._files.now_ms()
        if self.keydir.is_due(now_ms):  # so that what expires does not pile up where nothing else looks
            self.purge_some(_PURGED_BY_A_PUT)
        change = pending_of(operations, writer, self.seq, now_ms, tombstones)
        self.pending = change
        self._carry_out(change)
        return change.seq

    def _show_put(self, change: Pending) -> bool:
        """Do what `_show` does for one put that no expiry or view concerns; False, and nothing, for others."""
        keydir = self.keydir
        key, location, expires_ms = change.effects[0]
        if len(change.effects) > 1 or key is None or location is None or expires_ms:
            return False
        uncounted, self._uncounted = self._uncounted, True
        keydir.put(key, location, 0, self.size_of)
        self._uncounted = uncounted
        return True

    def without_idle_deletes(self, bulk: Bulk) -> Bulk:
        """Leave out the deletes of keys that no writer finds. Under the lock."""
        keys, values = bulk
        if bulk.kinds == {bytes}:
            return bulk
        if self._unseen.queue or self.keydir.can_expire:
            now_ms = self._files.now_ms()
            is_due = [
                value is not None or self.newest(key, now_ms) is not None
                for key, value in zip(keys, values, strict=True)
            ]
        else:
            exists = self.keydir.locations.__contains__
            is_due = [value is not None or exists(key) for key, value in zip(keys, values, strict=True)]
        return bulk if all(is_due) else Bulk(list(compress(keys, is_due)), list(compress(values, is_due)))

    def _append_bulk(self, bulk: Bulk) -> int:
        keydir = self.keydir
        if self._always or keydir.can_expire:
            return self.append(bulk.operations())
        writer = self._make_room(size_of(bulk), only_deletes=bytes not in bulk.kinds)
        tombstones = keydir.usage.tombstone_bytes(writer.header.segment_id)
        change = pending_bulk_of(bulk, writer, self.seq, self._files.now_ms(), tombstones)
        self.pending = change
        self._carry_out_bulk(change)
        return change.seq

    def _write(self, pending: Pending | PendingBulk) -> None:
        """Put what is pending into the file, or know that it is not there: whose error it was says nothing."""
        writer = pending.writer
        try:
            writer.write(pending.offset, pending.parts)
        except BytekvError:
            if writer.take_back(pending.offset, pending.parts):
                self.pending = _ENTERED  # it has not happened
            raise
        writer.end = pending.end
        self.seq = pending.seq

    def _carry_out_bulk(self, pending: PendingBulk) -> None:
        """Do what `pending` says; once more is the same as once."""
        self._write(pending)
        uncounted, self._uncounted = self._uncounted, True
        unsettled, self.interrupted = self.interrupted, True  # readers come and wait, see `_show`
        if self._mode == "interval" and self.dirty_since is None:
            self.dirty_since = self._files.monotonic()
        if pending.gone:
            self.keydir.usage.set_tombstones(pending.writer.header.segment_id, pending.tombstones)
        self.keydir.write_all(pending.keys, pending.locations, pending.gone, self.size_of)
        self.interrupted = unsettled
        self._uncounted = uncounted
        if uncounted:
            self._recount()
        self.pending = _ENTERED

    def _carry_out(self, pending: Pending) -> None:
        """Do what `pending` says; once more is the same as once."""
        self._write(pending)
        if self._always:
            self._unseen.add(pending)
        else:
            self._show(pending)
        self.pending = _ENTERED

    def _show(self, change: Pending) -> None:
        """Point the keydir at a change, so that readers see it."""
        keydir = self.keydir
        uncounted, self._uncounted = self._uncounted, True
        # Readers take no lock, yet must not see half of a batch: while this is set they come and wait.
        unsettled, self.interrupted = self.interrupted, len(change.effects) > 1 or self.interrupted
        keydir.usage.set_tombstones(change.writer.header.segment_id, change.tombstones)
        if self._mode == "interval" and self.dirty_since is None:
            self.dirty_since = self._files.monotonic()
        for key, location, expires_ms in change.effects:
            if key is None:
                keydir.clear(self.segments.with_keys)
                uncounted = True  # nearly everything is dead now: count what is not
            elif location is None:
                keydir.remove(key, self.size_of)
            else:
                keydir.put(key, location, expires_ms, self.size_of)
        self.interrupted = unsettled
        self._uncounted = uncounted
        if uncounted and not self._always:
            self._recount()

    def show_foreign(self, change: Callable[[], bool]) -> None:
        """Let readers see what another process has written: ``change`` alters memory only and is repeatable, but for
        the count of dead bytes; it tells whether that is right."""
        self.check_reentry()
        with self.lock, self:
            self.pending = change
            self.interrupted = True  # readers come and wait, and see all of it or nothing
            uncounted, self._uncounted = self._uncounted, True
            self._uncounted = not change() or uncounted
            self.pending = _ENTERED
            self.interrupted = False

    def _roll_forward(self) -> None:
        """Carry out what is pending, if anything is, and count what an interrupted call has not counted."""
        pending = self.pending
        if callable(pending):
            pending()
        elif isinstance(pending, PendingBulk):
            self._uncounted = True
            self._carry_out_bulk(pending)
        elif isinstance(pending, Pending):
            self._uncounted = True
            self._carry_out(pending)
        elif pending:
            writer, offset, entry, key, location, seq, tombstones = pending
            self._uncounted = True
            writer.write(offset, [entry])
            writer.end = offset + len(entry)
            self.seq = seq
            if location is None:
                self.keydir.usage.set_tombstones(writer.header.segment_id, tombstones)
                self.keydir.remove(key, self.size_of)
            else:
                self.keydir.put(key, location, 0, self.size_of)
        self.pending = _ENTERED
        if self._uncounted:
            self._recount()

    def purge(self, pause: Callable[[], object]) -> None:
        """Take every key out of the keydir whose time has come, some at a time, with a ``pause`` between them."""
        while self.purge_slice(PURGED_AT_ONCE):
            pause()

    def purge_slice(self, count: int) -> bool:
        """Take the lock and do what `purge_some` does."""
        self.check_reentry()
        with self.lock, self:
            return self.purge_some(count)

    def purge_some(self, count: int = PURGED_AT_ONCE) -> bool:
        """Take ``count`` keys at most out of the keydir whose time has come; tell whether there may be more.

        Under the lock, which is said to be held. Complexity: about 1.5 µs a key.
        """
        uncounted, self._uncounted = self._uncounted, True
        is_more = self.keydir.purge_some(self._files.now_ms(), self.size_of, count)
        self._uncounted = uncounted
        return is_more

    def order(self, kept: Ordered) -> None:
        """Bring an index up to date as far as that takes long, and let writers in meanwhile. Without the lock."""
        self.check_reentry()
        if not kept.is_order_due:
            return
        with self.lock, self:
            new = kept.begin_order()
        if new is not None:
            order, keys = new
            index = ordered(keys)
            with self.lock, self:
                kept.end_order(order, index)
        for _ in range(_MOST_SLICES):
            if not kept.is_order_due:
                return
            with self.lock, self:
                kept.order_some()
            self._files.pause(_BREATH_S)  # else this thread has the lock again before anybody wakes

    def count_again(self) -> None:
        """Have the dead bytes counted anew before the next write: the caller was interrupted while counting."""
        self._uncounted = True

    @property
    def is_uncounted(self) -> bool:
        """Tell whether fewer bytes may be counted as dead than are: a key was pointed elsewhere and not yet counted."""
        return self._uncounted

    def count_if_due(self) -> None:
        """Count the dead bytes anew if `count_again` asked for it. Under the lock."""
        if self._uncounted:
            self._recount()

    def _recount(self) -> None:
        if not self._unseen.queue:  # the first there may have been shown by half; `_became_durable` comes back
            self._recount_what_is_shown()

    def _recount_what_is_shown(self) -> None:
        entry_bytes = self.segments.lengths_of_entries()
        for change in self._unseen.queue:  # nothing of which has been shown: it is neither dead nor live
            entry_bytes[change.writer.header.segment_id] -= change.end - change.offset
        self.keydir.recount(entry_bytes, self.size_of)
        self._uncounted = False

    def size_of(self, location: int | None) -> int:
        """Return the bytes that an entry takes, 0 for None and for one that cannot be read."""
        if location is None:
            return 0
        if size := location & SIZE_MASK:
            return size
        try:
            return self.segments.open.entry_size(location)
        except (*SystemErrors, CorruptionError, KeyError):
            return 0  # only a count, and the entry itself says what is wrong when it is read

    # --- room ----------------------------------------------------------------------------------

    def _make_room(self, size: int, *, only_deletes: bool) -> Writer:
        if size > MAX_BATCH_SIZE:
            raise LimitError(f"a batch of {size} bytes; the limit is {MAX_BATCH_SIZE}")
        self.keydir.forget_index()
        while True:
            try:
                writer = self._room_for(size, only_deletes=only_deletes)
                break
            except StoreIOError as error:
                if not self.segments.give_back_for(error):  # what is open for reading, so that there is room to write
                    raise
        writer.open_room(fast=not self._always)
        if writer.end >= writer.limit * 5 // 8 and writer.base != self._asked_for and writer.limit >= _PREPARE_FROM:
            self._asked_for = writer.base
            self.wants_next = self.wants_worker = True
        if self.drags and not self._always:
            self._look_at_debt(writer)
        return writer

    def prepare_next(self) -> None:
        """Make the next segment's file, and durable what this one holds, so that the roll has little to wait for.

        For the worker. What goes wrong here is met again, and told, by the roll.
        """
        segments = self.segments
        try:
            with self.lock, self:
                self.wants_next = False
                self.ready()
                old = segments.writer
                if old is None or segments.prepared is not None:
                    return
                segment_id, seq = segments.reserve_ids(1), self.seq
            new = segments.create_writer(segment_id, (0, seq))
        except BytekvError:
            return
        with self.lock, self:
            is_next = segments.prepare(new, old)
        if is_next and not self._always:
            for _ in range(2):  # the second is short, and leaves next to nothing
                self.make_durable(self.seq)

    def _room_for(self, size: int, *, only_deletes: bool) -> Writer:
        try:
            writer = self.segments.writer
            if writer is None or not writer.fits(size):
                writer = self._roll()
            writer.make_room(size)
        except DiskFullError:
            # What is kept back lets a full store be emptied, beyond the segment's limit if need be.
            writer = self.segments.writer
            if writer is None or not only_deletes:
                raise
            writer.make_room(size, use_reserve=True)
        # First, then `open_room`: who writes without coming here must be sure that readers see the mapping.
        self.segments.show_writer()
        return writer

    def measure(self) -> int:
        """Let everything be as large as suits what lives now; return the dead bytes. Under the lock.

        Complexity: O(number of segments).
        """
        dead = self.keydir.usage.total_gone()
        self.segments.resize(sizes_of(sum(self.segments.lengths().values()) - dead, self._options))
        return dead

    @property
    def throttled(self) -> str | None:
        """Say why writers are slowed down, None while they are not."""
        why = self._debt.why
        if why is None or not self.drags:
            return None
        dead, live, free = why
        return f"{dead} bytes are dead beside {live} live ones, more than {free}, and a compaction is under way"

    @property
    def throttled_s(self) -> float:
        """Return for how long writers have slept so that a compaction comes forward."""
        return self._debt.paid_s

    def forgive(self) -> None:
        """Let writers go at full speed: there is no compaction that they would wait for. Under the lock."""
        before = self._debt.why
        self._debt.forgive()
        self._tell_of_throttle(before)

    def _look_at_debt(self, writer: Writer) -> None:
        debt, end, before = self._debt, writer.end, self._debt.why
        if debt.is_to_count(end):
            dead = self.measure()
            debt.look(end, dead, self.segments.sizes, self.is_due)
        elif debt.is_to_look(end):
            debt.pay(end, self.segments.sizes)
        writer.fast_end = min(writer.fast_end, debt.next_look)
        self._tell_of_throttle(before)

    def _tell_of_throttle(self, before: tuple[int, int, int] | None) -> None:
        why = self._debt.why
        if self._options.listener is None or (why is None) is (before is None):
            return
        from ...events import ThrottleBegan, ThrottleEnded

        path = self.segments.directory.path
        self._tell_later(ThrottleEnded(path, self._debt.paid_s) if why is None else ThrottleBegan(path, *why))

    def _roll(self) -> Writer:
        old = self.segments.writer
        self.measure()
        try:
            self.segments.roll(self.seq)
        except StoreFailedError as error:
            self.fail(error)
            raise
        new = self.segments.writer
        assert new is not None
        self.keydir.usage.open_segment(new.header.segment_id)
        if old is not None:
            self.wants_worker = True
            self._note_seal(old)
            self._became_durable(self.seq)
        return new

    def seal(self) -> None:
        """Seal the active segment, for a compaction of everything; the next write begins a new one."""
        self.check_reentry()
        with self.lock, self:
            self.ready()
            old = self.segments.writer
            if old is not None:
                try:
                    self.segments.seal(self.seq)
                except StoreFailedError as error:
                    self.fail(error)
                    raise
                self._note_seal(old)
                self._became_durable(self.seq)
        self.flush_notes()

    # --- durability ----------------------------------------------------------------------------

    def acknowledge(self, seq: int) -> None:
        """Do what the sync mode asks for before the caller may hear that ``seq`` is done. Without the lock."""
        if self.notes:
            self.flush_notes()
        if self.wants_worker:
            self.wants_worker = False
            if not self._wake():
                self.drags = False  # nobody compacts
                self.forgive()
        if self._debt.due_s:
            self._files.pause(self._debt.take())
        if self._always:
            self.make_durable(seq)
            return
        since = self.dirty_since
        if since is None:
            return
        # Slower disk than promised: the writer waits, the loss after a power cut stays bounded.
        # And where no worker can be had (the interpreter is shutting down), nobody else would sync.
        is_late = not self._wake() or self._files.monotonic() - since > 2 * self._interval_s
        if is_late and not self._sync_lock_is_owned():  # a handler's write in its own thread's sync is left to the next
            self.make_durable(seq)

    def sync(self) -> None:
        """Make everything appended so far durable; `StoreFailedError` also if an earlier sync failed."""
        self.check_idle()
        with self.lock, self:
            self.ready()
            seq = self.seq
        self.make_durable(seq)

    def make_durable(self, seq: int) -> None:
        """Return once every operation up to ``seq`` is durable and visible; many callers share one sync.

        One thread leads and syncs for all who had appended before it began.
        """
        self.check_idle()
        while self.durable_seq < seq:
            with self.lock, self:
                waiter = self._group.join(seq)
            if waiter is None or self._is_left_alone(waiter):
                self._lead(seq)
        if self.notes:
            self.flush_notes()

    def _is_left_alone(self, waiter: Waiter) -> bool:
        """Return once ``waiter`` was woken or has nothing left to wait for; True: nobody leads, and somebody has to."""
        patience_s = _PATIENCE_S
        try:
            while not waiter.wait(patience_s):
                is_durable = self.durable_seq >= waiter.seq
                # A leader on a slow disk holds this lock. One that was interrupted before it could begin does not.
                # It is only looked at: of a lock that is taken to try, an interrupt can keep the way back.
                if is_durable or not repr(self.sync_lock).startswith("<locked"):
                    waiter.leave()
                    return not is_durable
                patience_s = min(2 * patience_s, _LONGEST_PATIENCE_S)
        except BaseException:
            waiter.leave()
            raise
        return False

    def _lead(self, seq: int) -> None:
        """Sync what has been appended and show it, unless another makes ``seq`` durable first; wake who waits."""
        try:
            with self.sync_lock:
                try:
                    self._sync_unless_durable(seq)
                except StoreFailedError as error:  # before the next may sync: the kernel tells an error once
                    with self.lock, self:
                        self.fail(error)
                    raise
        except BaseException:
            with self.lock, self:
                self._group.release(self.durable_seq, failed=self.failure is not None)
            raise

    def _sync_unless_durable(self, seq: int) -> None:
        """Sync and show what was appended if that includes ``seq``, and wake who waits. Under the lock of syncs."""
        with self.lock, self:
            self.ready()
            if seq <= self.durable_seq:
                self._group.release(self.durable_seq, failed=False)
                return
            self._group.lead()
            writer, target, began = self.segments.writer, self.seq, self._files.monotonic()
        if writer is not None:
            writer.sync()  # an append from now on joins the next sync: target was read before
        took_s = self._files.monotonic() - began if self._options.listener is not None else 0.0
        with self.lock, self:
            if took_s >= _SLOW_SYNC_S:
                from ...events import SyncSlow

                self._tell_later(SyncSlow(self.segments.directory.path, took_s))
            if self.failure is not None:
                # The kernel tells each write error once, and a roll's sync of the same file got it.
                self._refuse_after_failure()
            self._became_durable(target, began)
            self._mark(target)
            self._group.release(self.durable_seq, failed=False)

    def _became_durable(self, seq: int, began: float | None = None) -> None:
        """Note that everything up to ``seq`` is durable and show what waited for that. Under the lock.

        ``began``: when the sync began; what was appended since is that old at most.
        """
        unseen = self._unseen
        self._synced_seq = max(self._synced_seq, seq)
        queue = unseen.queue
        is_all = bool(queue) and queue[-1].seq <= seq
        while queue and queue[0].seq <= seq:
            change = queue[0]
            if not self._show_put(change):
                self._show(change)
            if is_all:
                queue.popleft()  # what writers find of it goes with all the rest
            else:
                unseen.remove_first()
        if not queue:
            unseen.forget_all()
        if self._uncounted:
            self._recount_what_is_shown()
        self.durable_seq = max(self.durable_seq, seq)
        if self.durable_seq == self.seq:
            self.dirty_since = None
            if self._mode == "interval" and self.segments.writer is not None:
                self.segments.writer.fast_end = 0  # so that the next put goes the long way and wakes the worker
        elif self._mode == "interval":
            self.dirty_since = began

    def _mark(self, seq: int) -> None:
        """Write a sync mark: what tells later damage from a torn tail."""
        writer = self.segments.writer
        if writer is None or self.failure is not None or not writer.reserve_holds(OVERHEAD):
            return  # no room here; the segment's seal vouches for it instead
        body = _pack_entry(SYNC_MARK, 0, 0, seq, self._files.now_ms())
        mark = [body + _pack_crc(checksum(body, writer.seed))]
        try:
            writer.write(writer.end, mark)
        except SystemErrors:
            with suppress(*SystemErrors):  # a disk that refuses everything: the next append goes over what is left
                writer.take_back(writer.end, mark)
            return  # a full disk: without the mark damage is merely reported as a torn tail
        uncounted, self._uncounted = self._uncounted, True
        self.keydir.usage.count_dead(writer.base >> SEGMENT_SHIFT, OVERHEAD)
        writer.end += OVERHEAD
        self._uncounted = uncounted

    def fail(self, error: BaseException) -> None:
        """Refuse writes from now on. What waited for the failed sync stays invisible; the next open decides.

        What another store says, in a signal handler or a callback, is an interrupt like any other.
        """
        if isinstance(error, StoreFailedError) and not is_about(error, self.segments.directory.path):
            return
        if self.failure is None:
            # A copy: the error itself keeps the frames it went through, and with them files and the store.
            self.failure = StoreFailedError(str(error) if isinstance(error, BytekvError) else repr(error))
            self.notes.append((log.info, "%s; no more writes until then", (str(self.failure),)))
        if self._unseen.queue:
            self._became_durable(self._synced_seq)  # an earlier sync's: half of a change may have been shown
        self._unseen.forget_all()
        if self.segments.writer is not None:
            self.segments.writer.fast_end = 0

    def _note_seal(self, old: Writer) -> None:
        where = old.header.segment_id, old.end, self.seq
        self.notes.append((log.debug, "sealed segment %d at %d bytes, seq %d", where))
        if self._options.listener is not None:
            from ...events import SegmentSealed

            self._tell_later(SegmentSealed(self.segments.directory.path, *where))

    def _tell_later(self, event: Event) -> None:
        """Have the listener told of an event once the lock is free."""
        self.notes.append((tell, self._options.listener, (event,)))

    def flush_notes(self) -> None:
        """Log what happened under the lock, and tell the listener. Without the lock: both are user code."""
        notes, self.notes = self.notes, []
        for say, text, values in notes:
            say(text, *values)

    def replace_locks(self, replacement: Callable[[Any], Any]) -> None:
        """Have both locks, which the caller holds, taken by way of their replacements from now on."""
        self.lock, self.sync_lock = replacement(self.lock), replacement(self.sync_lock)
        self._lock_is_owned, self._sync_lock_is_owned = _owned(self.lock), _owned(self.sync_lock)

    def forget_after_fork(self) -> None:
        """In a child process: the thread that held a lock does not exist, what it was at is the parent's to finish."""
        self.lock, self.sync_lock = threading.RLock(), threading.RLock()
        self.pending, self.interrupted = None, False
        self._lock_is_owned, self._sync_lock_is_owned = _owned(self.lock), _owned(self.sync_lock)

    @property
    def is_entered(self) -> bool:
        """Tell whether this thread is in the middle of a write."""
        return self._lock_is_owned()

    def sync_what_waits(self) -> None:
        """Make everything durable and visible while no other writer comes in. Under both locks."""
        self.ready()
        try:
            if self.segments.writer is not None:
                self.segments.writer.sync()
        except StoreFailedError as error:
            self.fail(error)
            raise
        self._became_durable(self.seq)

    @property
    def has_waiting(self) -> bool:
        """Tell whether operations wait for a sync to become visible."""
        return bool(self._unseen.queue)

    @property
    def is_empty(self) -> bool:
        """Tell whether a writer finds no key. Under the lock."""
        if self._unseen.queue:
            return False  # not worth finding out: a clear too many does no harm
        return not self.keydir

    def only_read(self, durable_seq: int, refusal: Callable[[], BytekvError]) -> None:
        """Refuse writes; what was read is visible in every mode, whether it is known to be durable or not."""
        self.durable_seq, self.refusal = durable_seq, refusal
        self._always = False

    @property
    def visible_seq(self) -> int:
        """Return the seq of the newest operation that readers see."""
        return self.durable_seq if self._always else self.seq

    def close(self) -> None:
        """Make everything durable and write a clean end. Under both locks; raises what went wrong."""
        if self.segments.is_unsettled and self.failure is None:
            self.segments.settle()
        if self.pending is not None:
            self._roll_forward()
        if self.failure is not None:
            self._refuse_after_failure()
        self.segments.close(self.seq)
        self._became_durable(self.seq)
