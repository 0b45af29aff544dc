"""The local store: one directory as a store.

What this module adds to the layers below is what a user sees: conversions of keys and values, what each method decides
on the entry that it finds, and one moment of truth for `close`. What follows from that is written in the contract's
store. How a change gets onto the disk is `Committer`'s business, how an entry is read `Reader`'s, what happens without
being asked `Maintenance`'s. The short way of `get` is in `fast`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from operator import itemgetter

from .._lean import TYPE_CHECKING, log, suppress
from ..contract.batch import Batch
from ..contract.convert import (
    NEVER,
    Bytes,
    Entry,
    EntryStat,
    expiry_of,
    fitting,
    increased,
    key_of,
    number_of,
    pair_of,
    to_bytes,
    ttl_to_ms,
    value_of,
)
from ..contract.ordered import Range
from ..contract.store import Store as AbstractStore
from ..errors import (
    BytekvError,
    ConflictError,
    ForkedStoreError,
    StoreClosedError,
    StoreNotFoundError,
    translated,
)
from ..options import Options
from . import fast
from .codec.entry import (
    CLEAR,
    OFFSET_MASK,
    OFFSET_SHIFT,
    OVERHEAD,
    PUT,
    SEGMENT_SHIFT,
    SEQ_OFFSET,
    SIZE_MASK,
    TOMBSTONE,
    StoredEntry,
)
from .exit_and_fork import register, unregister
from .listener import tell
from .log.directory import Directory
from .log.files import Files
from .open import Opened, open_directory
from .reader import Reader, entry_of, stat_of
from .recovery import Recovery
from .space.maintenance import Maintenance
from .space.worker import LastLock, Worker
from .tuning import TUNING, Tuning
from .write.change import Bulk, DeleteRun, Operation
from .write.commit import Committer

if TYPE_CHECKING:
    from typing import Any, Final, TypeVar, overload

    from ..contract.batch import Batch, Writes
    from ..contract.reports import BackupReport, Change, Compaction, Progress, Report, Stats
    from ..contract.snapshot import Snapshot
    from ..contract.transaction import Transaction
    from ..events import Listener
    from ..options import Flag
    from .replication.feed import ChangeFeed
    from .replication.follower import Follower
    from .write.commit import Bounds

    T = TypeVar("T")

__all__ = ["Entry", "EntryStat", "Store"]

_first, _second = itemgetter(0), itemgetter(1)

_MISSING: Final = object()
_LOOK_S: Final = 0.001  # between two looks whether something was written
_TRIES: Final = 8  # to delete a range as it was found, before other writers are kept out
_ENTRY_COST: Final = OVERHEAD + 8  # bytes of an entry with an expiry, beside key and value


# --- the store ---------------------------------------------------------------------------------


def _decide_in_bulk(
    commit: Committer, keys: list[bytes], writes: list[Any], kinds: set[type], decided: list[Bulk], now_ms: int
) -> Sequence[Operation] | Bulk:
    values, expires = writes, None
    if tuple in kinds:
        pairs = writes
        if len(kinds) > 1:
            pairs = [write if type(write) is tuple else (write, NEVER) for write in writes]
        values, times = list(map(_first, pairs)), list(map(_second, pairs))
        if times.count(times[0]) == len(times):  # as a rule it is one object
            expires = [times[0].at(now_ms)] * len(times)
        else:
            expires = [now_ms + ttl_ms if ttl_ms else expires_ms for ttl_ms, expires_ms in times]  # `Expiry.at`
    bulk = Bulk(keys, values, expires)
    if type(None) in kinds:
        bulk = commit.without_idle_deletes(bulk, now_ms)
    decided[:] = [bulk]
    return bulk if bulk.keys else ()


def _delete_if_same(
    commit: Committer, bounds: Bounds, run: DeleteRun, ends: bool, done: list[int], now_ms: int
) -> Sequence[Operation] | DeleteRun:
    if not commit.holds_exactly(bounds, run.gone, ends=ends, now_ms=now_ms):
        return ()
    done.append(len(run.gone))
    return run if run.gone else ()


class Store(AbstractStore):
    """A persistent mapping of bytes to bytes, in key order; made by `bytekv.open`.

    Keys and values may be bytes-like or str (stored as UTF-8); what comes back is always bytes. All
    methods may be called from any thread. Every write is atomic, and once it has returned it survives
    the death of the process; when it survives a power cut is what the option ``sync`` says.

    Where a method says nothing else, a write raises what `put` raises, is as durable, and costs O(size of what it
    writes); a read raises `CorruptionError` rather than return wrong bytes; after `close` every call raises
    `StoreClosedError`.

    >>> import bytekv, tempfile
    >>> with bytekv.open(tempfile.mkdtemp()) as db:
    ...     db["colour"] = "blue"
    ...     db[b"colour"]
    b'blue'
    """

    _instead = "threads may share the object itself, another process opens the path with flag 'r'; see also backup()"

    def __init__(self, path: str, flag: Flag, options: Options, files: Files, tuning: Tuning = TUNING) -> None:
        self._path = path
        self._options = options
        self._files = files
        self._few = tuning.few_writes
        self._readonly = flag == "r"
        self._trusting = not options.verify_reads
        self._pid = os.getpid()
        self._is_shut = self._is_closed = False
        name = f"bytekv {os.path.basename(path)}"
        self._worker = Worker(self._work, self._work_failed, name, tuning.retry_s)
        opened = self._open(path, flag, options, files, tuning)
        try:
            commit = opened.committer
            self._state = state = commit.state
            self._durability = commit.durability
            #: What opening found and did.
            self.recovery: Recovery = opened.recovery
            self._directory = opened.directory
            self._segments, self._keydir = state.segments, state.keydir
            self._locations: Any = self._keydir.locations
            self._readers: Any = self._segments.open.table
            self._changes: ChangeFeed | None = None  # made when it is asked for
            follower = None
            if self._readonly:
                with translated("bytekv.engine.replication.follower"):
                    from .replication.follower import Follower

                follower = Follower(state)
            self._maintenance = self._maintenance_of(commit, follower)
            self._reader = self._reader_of(commit)
            self._commit = commit  # from now on there is something to close
            register(self)
            if os.getpid() != self._pid:  # a signal handler has forked meanwhile, and this is the child
                self._after_fork()
            log.info("opened %s: %s", path, self.recovery)
            if options.listener is not None:
                self._tell_of_recovery(options.listener)
            is_due = options.follow is not None or (
                flag != "r" and (self.recovery.hints_missing or (options.auto_compact and self._maintenance.pick()))
            )
            if is_due and not self._worker.wake():
                self._maintenance.works_alone()
        except BaseException:
            # Now, and not when this frame goes: the error may be kept, by an interactive session for one.
            if hasattr(self, "_commit"):
                with suppress(BytekvError):
                    self.close()
            else:
                opened.directory.release()
                opened.committer.state.segments.drop()
            raise

    # What a store that several processes share does in another way.

    def _open(self, path: str, flag: Flag, options: Options, files: Files, tuning: Tuning) -> Opened:
        return open_directory(path, flag, options, files, tuning, self._worker.wake)

    def _maintenance_of(self, commit: Committer, follower: Follower | None) -> Maintenance:
        return Maintenance(commit, self._options, self._worker, follower)

    def _reader_of(self, commit: Committer) -> Reader:
        return Reader(commit.state, commit.durability, self._options)

    def _tell_of_recovery(self, listener: Listener) -> None:
        from ..events import Quarantined, Recovered

        found, report = self.recovery, self.recovery.salvaged
        if not found.clean or report is not None:
            what = self._path, found.last_seq, found.torn_bytes, report is not None, found.duration_s
            tell(listener, Recovered(*what))
        for file in [*found.quarantined, *getattr(report, "quarantined", [])]:
            tell(listener, Quarantined(self._path, file))

    # --- reading -------------------------------------------------------------------------------

    def _now_ms(self) -> int:
        return self._files.now_ms()

    def _check_open(self) -> None:
        self._locations.get(b"")

    if TYPE_CHECKING:

        @overload
        def get(self, key: Bytes) -> bytes | None: ...
        @overload
        def get(self, key: Bytes, default: T) -> bytes | T: ...

    @fast.shortened(fast.get)
    def get(self, key: Bytes, default: object = None) -> object:
        """Return the value of ``key``, ``default`` if there is none.

        Complexity: O(1), no system call where the store is mapped.
        """
        found = self._reader.find(to_bytes("key", key))
        return default if found is None else found.value

    @fast.shortened(fast.getitem)
    def __getitem__(self, key: Bytes) -> bytes:
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        """Tell whether ``key`` exists and has not expired; reads no file. Complexity: O(1)."""
        if type(key) is not bytes:
            key = to_bytes("key", key)
        if self._state.readers_must_wait:
            self._durability.redo_for_reader()
        if self._locations.get(key) is None:
            return False
        if key not in self._keydir.expires or self._keydir.locate(key, self._files.now_ms()) is not None:
            return True
        return self._reader.has(key)

    def __len__(self) -> int:
        """Return the number of keys, expired ones not counted. Complexity: O(1), plus 2 µs a key expired since.

        Others come in between while a million keys that have expired together are taken out.
        """
        return self._reader.count()

    def entry(self, key: Bytes) -> Entry:
        """Return the value of ``key`` with its seq and times; `KeyError` if there is none.

        >>> import bytekv, tempfile
        >>> with bytekv.open(tempfile.mkdtemp()) as db:
        ...     seq = db.put("a", "1")
        ...     db.entry("a").seq == seq
        True
        """
        key = to_bytes("key", key)
        self._check_open()
        if self._state.readers_must_wait:
            self._durability.redo_for_reader()
        found = self._reader.find(key)
        if found is None:
            raise KeyError(key)
        return entry_of(found)

    def stat(self, key: Bytes) -> EntryStat:
        """Return what is known of the entry of ``key`` besides its value; `KeyError` if there is none.

        The value is not read. So the CRC, which covers all of an entry, is not checked either: only that the entry is
        one of this key and, up to 8 KiB, that its length is right (`CorruptionError`). Of an entry that was
        damaged elsewhere, seq and times may be wrong; `get`, `entry` and `verify` find that out. Complexity: O(1).

        >>> import bytekv, tempfile
        >>> with bytekv.open(tempfile.mkdtemp()) as db:
        ...     seq = db.put("a", "12345")
        ...     stat = db.stat("a")
        ...     stat.size, stat.seq == seq, stat.expires
        (5, True, None)
        """
        key = to_bytes("key", key)
        self._check_open()
        if self._state.readers_must_wait:
            self._durability.redo_for_reader()
        found = self._reader.stat(key)
        if found is None:
            raise KeyError(key)
        return stat_of(found)

    def _stats(self, range_: Range, limit: int | None) -> Iterator[EntryStat]:
        return self._reader.stats(self, range_, limit)

    def _count(self, range_: Range) -> int:
        return self._reader.count_between(range_)

    def ttl(self, key: Bytes) -> float | None:
        """Return the seconds that ``key`` has left, None if it does not expire; `KeyError` if it does not exist."""
        key = to_bytes("key", key)
        self._check_open()
        state = self._state
        if state.readers_must_wait:
            self._durability.redo_for_reader()
        state.check_reentry()
        with state.lock, state:  # a put changes location and expiry one after the other
            now_ms = self._files.now_ms()
            if self._keydir.locate(key, now_ms) is None:
                raise KeyError(key)
            expires_ms = self._keydir.expiry_of(key)
        return None if expires_ms is None else (expires_ms - now_ms) / 1000

    def get_many(self, keys: Iterable[Bytes]) -> dict[bytes, bytes]:
        """Return the values of those of ``keys`` that exist, each as of its own moment.

        Complexity: O(number of keys), about 0.8 µs each.

        >>> import bytekv, tempfile
        >>> with bytekv.open(tempfile.mkdtemp()) as db:
        ...     db["a"] = "1"
        ...     db.get_many(["a", "b"])
        {b'a': b'1'}
        """
        self._check_open()
        wanted = [key if type(key) is bytes else to_bytes("key", key) for key in keys]
        return self._reader.find_many(wanted)

    def would_wait(self, key: Bytes | None = None, *, write_bytes: int | None = None) -> bool:
        """Tell whether a call would have to wait now, so that an event loop hands it to a thread, and only then.

        ``write_bytes``: the call writes this many bytes of keys and values. It would wait for its turn (during another
        thread's transaction), for the next segment, for a sync (``sync="always"``) or for a compaction that writers
        outrun. ``key``: the call reads the value of this key. It would wait if the value is larger than about
        8 KiB or its segment is not open. Every call waits while a batch is being made visible.

        Nothing is reserved: another thread may begin a transaction before the call that follows. A read of pages that
        are not in memory is not foreseen. Complexity: O(1), no system call.

        >>> import bytekv, tempfile
        >>> with bytekv.open(tempfile.mkdtemp()) as db:
        ...     db["colour"] = "blue"
        ...     with db.transaction():
        ...         db.would_wait("colour"), db.would_wait(write_bytes=100)
        (False, True)
        """
        if self._commit.would_wait(None if write_bytes is None else write_bytes + _ENTRY_COST):
            return True
        if key is None:
            return False
        location = self._locations.get(to_bytes("key", key))
        return location is not None and (not location & SIZE_MASK or self._readers.get(location >> 44) is None)

    def _walk(self, range_: Range, limit: int | None) -> Iterator[bytes]:
        return self._reader.walk(self, range_, limit)

    def _walker(self) -> Callable[[Range, int | None], Iterator[bytes]]:
        return self._reader.walker(self)

    def _pairs(self, range_: Range, limit: int | None) -> Iterator[tuple[bytes, bytes]]:
        first = self._reader.first(range_, self.get) if limit == 1 else None
        return self._reader.pairs(self, range_, limit) if first is None else first

    # --- writing -------------------------------------------------------------------------------

    def __setitem__(self, key: Bytes, value: Bytes) -> None:
        """Store ``value`` under ``key``; as `put`."""
        if type(key) is bytes and type(value) is bytes:
            self._commit.put(key, value)
        else:
            self._commit.write([Operation(PUT, *pair_of(key, value))])

    def put(
        self,
        key: Bytes,
        value: Bytes,
        *,
        ttl: float | None = None,
        expires: float | None = None,
        if_seq: int | None = None,
    ) -> int:
        """Store ``value`` under ``key`` and return the seq of this write.

        ``ttl``: seconds after which the key is gone; or ``expires``: the time in seconds since 1970 at which it
        is (at once, if that has passed); None: it stays. ``if_seq``: only if the key's entry
        has this seq, 0: only if there is none (`ConflictError` otherwise; `entry` tells the seq).

        Raises `LimitError` (key over 65,535 bytes, value over 1 GiB), `DiskFullError` (nothing changed),
        `StoreFailedError`, `ReadOnlyError`, `StoreClosedError`. Durability: on return it survives the
        death of the process; with ``sync="always"`` a power cut, too. Complexity: O(size).

        >>> import bytekv, tempfile
        >>> with bytekv.open(tempfile.mkdtemp()) as db:
        ...     first = db.put("page", "draft")
        ...     second = db.put("page", "final", if_seq=first)
        ...     db.put("page", "other", if_seq=first)
        Traceback (most recent call last):
        ...
        bytekv.errors.ConflictError: key b'page': expected seq 1, found 2
        """
        if expires is None and type(key) is bytes and type(value) is bytes:
            if if_seq is None:
                if ttl is None:
                    return self._commit.put(key, value)
                return self._commit.put_for(key, value, ttl_to_ms(ttl))
            # No two entries ever have one location: if the entry of this seq is still where it was, it is the newest.
            location = self._location_of(key, if_seq) if type(if_seq) is int else None
            if location is not None or (if_seq == 0 and type(if_seq) is int):
                seq = self._commit.put_over(key, value, 0 if ttl is None else ttl_to_ms(ttl), location)
                if seq > 0:
                    return seq
        (key, value), expiry = pair_of(key, value), expiry_of(ttl, expires)
        if if_seq is not None and (isinstance(if_seq, bool) or not isinstance(if_seq, int)):
            raise TypeError(f"if_seq must be an int, not {type(if_seq).__name__}")

        def decide(found: StoredEntry | None, now_ms: int) -> Sequence[Operation]:
            actual = 0 if found is None else found.seq
            if if_seq is not None and actual != if_seq:
                raise ConflictError(key, if_seq, actual)
            return [Operation(PUT, key, value, expiry.at(now_ms))]

        return self._change(key, decide, reads=if_seq is not None)[1]

    def add(self, key: Bytes, value: Bytes, *, ttl: float | None = None) -> bool:
        """Store ``value`` only if ``key`` does not exist; tell whether it was stored."""
        if type(key) is not bytes or type(value) is not bytes:
            key, value = pair_of(key, value)
        return self._commit.add(key, value, 0 if ttl is None else ttl_to_ms(ttl))

    def delete(self, key: Bytes) -> bool:
        """Delete ``key``; tell whether it existed. If not, nothing is written. Complexity: O(1), about 1.4 µs."""
        if type(key) is not bytes:
            key = to_bytes("key", key)
        return self._commit.delete(key)

    def incr(self, key: Bytes, amount: int = 1, *, default: int | None = 0) -> int:
        """Add ``amount`` to the decimal integer stored under ``key`` and return the sum, in one step.

        A missing key counts as ``default``; None: `KeyError`. Keeps the key's expiry. Raises `ValueError` if the value
        is no decimal integer; nothing changes.

        >>> import bytekv, tempfile
        >>> with bytekv.open(tempfile.mkdtemp()) as db:
        ...     db.incr("visits"), db.incr("visits", 10), db["visits"]
        (1, 11, b'11')
        """
        key, amount = key_of(key), number_of("amount", amount)
        first = None if default is None else b"%d" % number_of("default", default)
        # What is read is what is replaced, for no two entries ever have one location: as in `pop`.
        location = self._locations.get(key)
        if location is not None and not self._state.always and key not in self._keydir.expires:
            old = self.get(key)
            if old is not None:
                new = increased(key, old, amount)
                if self._commit.put_over(key, b"%d" % new, 0, location) > 0:
                    return new
        total: int | None = 0

        def decide(found: StoredEntry | None, now_ms: int) -> Sequence[Operation]:
            nonlocal total
            value = found.value if found else first
            if value is None:
                total = None
                return []
            total = increased(key, value, amount)
            return [Operation(PUT, key, b"%d" % total, found.expires_ms if found else 0)]

        self._change(key, decide)
        if total is None:
            raise KeyError(key)
        return total

    def expire(self, key: Bytes, ttl: float) -> bool:
        """Let ``key`` be gone ``ttl`` seconds from now; False if it does not exist. Writes the value again."""
        if type(key) is not bytes:
            key = to_bytes("key", key)
        return self._commit.expire(key, ttl_to_ms(ttl), self._reader.read)

    def persist(self, key: Bytes) -> bool:
        """Take away the expiry of ``key``; False if it has none or does not exist. Writes the value again."""
        key = key_of(key)
        found, _ = self._change(
            key, lambda found, _: [Operation(PUT, key, found.value)] if found and found.expires_ms else []
        )
        return found is not None and found.expires_ms != 0

    if TYPE_CHECKING:

        @overload
        def pop(self, key: Bytes) -> bytes: ...
        @overload
        def pop(self, key: Bytes, default: T) -> bytes | T: ...

    def pop(self, key: Bytes, default: object = _MISSING) -> object:
        """Delete ``key`` and return its value, in one step; ``default`` or `KeyError` if it does not exist."""
        key = key_of(key)
        # What is read is what is deleted, for no two entries ever have one location: 2.5 µs instead of 8.
        location = self._locations.get(key)
        if location is not None:
            value = self.get(key)
            if value is not None and self._commit.delete(key, location):
                return value
        found, _ = self._change(key, lambda found, _: [Operation(TOMBSTONE, key)] if found else [])
        if found is not None:
            return found.value
        if default is _MISSING:
            raise KeyError(key)
        return default

    def _location_of(self, key: bytes, seq: int) -> int | None:
        """Return where the entry of a key lies if it says that it has this seq; None says nothing."""
        location: int | None = self._locations.get(key)
        reader = None if location is None else self._readers.get(location >> SEGMENT_SHIFT)
        if location is None or reader is None or self._state.readers_must_wait:
            return None
        at = (location >> OFFSET_SHIFT & OFFSET_MASK) + SEQ_OFFSET
        return location if int.from_bytes(reader[0][at : at + 8], "little") == seq else None

    def _end_key(self, *, reverse: bool) -> bytes | None:
        return self._reader.end_key(reverse=reverse)

    def setdefault(self, key: Bytes, default: Bytes | None = None) -> bytes:
        """Return the value of ``key``; if it does not exist, store ``default`` first, in one step.

        A default is needed then: None is no value that could be stored (`TypeError`).
        """
        key = key_of(key)
        new = None if default is None else value_of(default)

        def decide(found: StoredEntry | None, now_ms: int) -> Sequence[Operation]:
            if found is not None:
                return []
            if new is None:
                raise TypeError("setdefault() of a missing key needs a bytes-like or str default, not None")
            return [Operation(PUT, key, new)]

        found, _ = self._change(key, decide)
        return found.value if found is not None else new  # type: ignore[return-value]

    def _delete_in(self, range_: Range) -> int:
        # Tombstones are encoded before the lock is taken, for the keys of that moment. If others have come in between
        # again and again, or if what was written waits for a sync, a transaction keeps them out.
        if self._state.always:
            return super()._delete_in(range_)
        deleted = tries = 0
        bounds = range_.start, range_.stop, range_.include_start, range_.include_stop
        while tries < _TRIES:
            self._check_writable()
            keys = self._reader.keys_between(range_)
            count = fitting(keys)
            ends = count == len(keys)
            run = DeleteRun(keys[:count], self._files.now_ms())
            done: list[int] = []
            self._commit.change(partial(_delete_if_same, self._commit, bounds, run, ends, done))
            deleted += sum(done)
            if done and ends:
                return deleted
            tries = 0 if done else tries + 1
        return deleted + super()._delete_in(range_)

    def clear(self) -> None:
        """Delete every key as one operation. Complexity: O(1) on disk, O(n) in memory."""

        self._reader.count()  # takes out what has expired

        def decide(now_ms: int) -> Sequence[Operation]:
            return [] if self._commit.is_empty else [Operation(CLEAR, b"")]

        self._commit.change(decide)

    def transaction(self) -> Transaction:
        """Return a transaction: reads and writes that no other writer comes between. See `Transaction`."""
        self._check_writable()
        with translated("bytekv.transaction"):  # no descriptor may be left to read it with
            from ..contract.transaction import (
                Transaction,  # as everywhere below: a command for one key need not wait for it
            )

        return Transaction(self, self._commit.turn.take, self._end_transaction)

    def _end_transaction(self, transaction: Transaction, writes: Writes | None) -> int | None:
        try:
            return self._commit_batch(writes, gate_owner=transaction) if writes else None
        finally:
            self._commit.turn.give(transaction)

    def snapshot(self) -> Snapshot:
        """Return the store as it is now, for reading, whatever is written later. See `Snapshot`.

        Complexity: O(1).
        """
        with translated("bytekv.snapshot"):
            from ..contract.snapshot import Snapshot

        return Snapshot(self._reader, self._reader.open_view(self))

    def changes(self, since_seq: int = 0) -> Iterator[Change]:
        """Iterate over the operations above ``since_seq`` in their order, up to those of the moment of the call.

        Call it again with the last seq that came to go on from there. Beside a writer, call `refresh` first.
        What is read stays on disk until the iterator has ended or is dropped. A key's expiry is no change.

        Raises `ChangesLostError` if a compaction has rewritten some of them (the option
        ``keep_changes_bytes`` keeps it off the end of the log), `LimitError` for a seq that is not there yet.
        Complexity: O(operations), 1 µs each; to begin, O(size of one segment) at most.

        >>> import bytekv, tempfile
        >>> with bytekv.open(tempfile.mkdtemp()) as db:
        ...     db["a"] = "1"
        ...     del db["a"]
        ...     [(change.seq, change.op, change.key) for change in db.changes()]
        [(1, 'put', b'a'), (2, 'delete', b'a')]
        """
        if isinstance(since_seq, bool) or not isinstance(since_seq, int):
            raise TypeError(f"since_seq must be an int, not {type(since_seq).__name__}")
        self._check_open()
        changes = self._changes
        if changes is None:
            with translated("bytekv.engine.replication.feed"):
                from .replication.feed import ChangeFeed

            changes = self._changes = ChangeFeed(self._state)
        return changes.feed(since_seq, self._reader.remove_obsolete, self._check_open)

    def batch(self) -> Batch:
        """Return a batch: writes that become visible and durable together. See `Batch`."""
        self._check_writable()
        return Batch(self._commit_batch)

    def _commit_batch(self, writes: Writes, gate_owner: object = None) -> int | None:
        if gate_owner is None and len(writes) <= self._few:
            seq = self._commit.write_few(writes)
            if seq is not None:
                return seq
        kinds = set(map(type, writes.values()))
        decided: list[Bulk] = []
        # No closure: without memory for what it shares, CPython 3.11 never frees an argument, here the store.
        decide = partial(_decide_in_bulk, self._commit, list(writes), list(writes.values()), kinds, decided)
        seq = self._commit.change(decide, gate_owner)
        return seq if decided and decided[0].keys else None

    def _change(
        self,
        key: bytes,
        decide: Callable[[StoredEntry | None, int], Sequence[Operation]],
        *,
        reads: bool = True,
    ) -> tuple[StoredEntry | None, int]:
        """Read a key's newest entry and act on it in one step; return the entry and the seq.

        ``decide`` is ours, never the user's: it runs under the lock.
        """
        found: StoredEntry | None = None

        def decide_on_newest(now_ms: int) -> Sequence[Operation]:
            nonlocal found
            location = self._commit.newest(key, now_ms) if reads else None
            found = None if location is None else self._reader.read(key, location)
            return decide(found, now_ms)

        seq = self._commit.change(decide_on_newest)
        return found, seq

    def _check_writable(self) -> None:
        if self._state.refusal is not None:
            raise self._state.refusal()

    # --- durability and space ------------------------------------------------------------------

    def sync(self) -> None:
        """Make everything written so far durable; on return ``durable_seq`` >= ``last_seq`` at the call.

        Raises `StoreFailedError` if the disk reports an error; it is never tried again.
        """
        self._check_open()
        if not self._readonly:
            self._durability.sync()

    def compact(self, *, progress: Callable[[Progress], object] | None = None) -> Compaction:
        """Rewrite the live data and give everything else back to the file system, now.

        ``progress`` is called with a `Progress` now and then. Others may read and write meanwhile.
        Deleted and overwritten bytes are gone from the directory afterwards. What was rewritten lies in the order of
        its keys then, if an index of them exists or is quickly made, so that a scan takes a quarter of the time.
        Segments without a dead byte are left as they are: they cost nothing, and a scan of what was written in another
        order than that of the keys stays four times as slow.

        Raises `CorruptionError` if an entry is damaged and `DiskFullError` if there is no room for the
        copies; what had been rewritten by then stays so, the rest is unchanged. Complexity: O(bytes),
        1 to 3 µs an entry.
        """
        self._check_writable()
        return self._maintenance.compact(progress)

    def verify(self, *, progress: Callable[[Progress], object] | None = None) -> Report:
        """Read every byte of the store, check it against its CRC and the invariants; change nothing.

        ``progress`` is called after each segment. Writers wait meanwhile. A reader that finds something wrong
        refreshes and looks again, for the writer may have compacted it away. Complexity: O(bytes), about 1 µs an entry.
        """
        self._check_open()
        self._maintenance.check_reentry("verify")
        self._state.redo_interrupted()
        waiter: object = self._maintenance.hurry()
        with self._state.compacting:
            waiter = None  # noqa: F841
            if not self._readonly:
                self._maintenance.compactor.finish(self._files.yield_cpu)
            report = self._verify(progress)
            if not report.ok:
                with suppress(BytekvError):  # what is new may be damaged itself
                    if self._maintenance.catch_up():  # what is gone may have been compacted away by the writer
                        report = self._verify(progress)
            return report

    def _verify(self, progress: Callable[[Progress], object] | None) -> Report:
        with translated("bytekv.engine.integrity.verify"):
            from .integrity.verify import verify

        state = self._state
        with state.sync_lock, state.lock, state:
            if self._durability.has_waiting:
                self._durability.sync_what_waits()  # it is in the files and not yet in the keydir
            state.count_if_due()
            return verify(self._segments, self._keydir, progress)

    def backup(
        self, dest: str | os.PathLike[str], *, progress: Callable[[Progress], object] | None = None
    ) -> BackupReport:
        """Copy the store as it is now into the directory ``dest``, while others go on reading and writing.

        ``dest``: a new or empty directory, or an earlier backup of this store, which is brought up to date: what it
        has is not copied again. The result is a store that opens by itself. On the same file system sealed
        segments are shared as hard links, which protects from whatever happens to the store, but not to the disk.
        ``progress`` is called with a `Progress` now and then. A reader that meets a file which the writer has compacted
        away refreshes and begins again.

        Raises `NotAStoreError` if ``dest`` holds anything else, or a backup that is newer than the store or was made
        before one of them was repaired, `DiskFullError`, `StoreLockedError` while somebody writes to it; an earlier
        backup is as before then.
        Durability: the backup is durable on return. Complexity: O(bytes that are copied).

        >>> import bytekv, os, tempfile
        >>> folder = tempfile.mkdtemp()
        >>> with bytekv.open(os.path.join(folder, "store")) as db:
        ...     db["a"] = "1"
        ...     db.backup(os.path.join(folder, "copy")).seq
        1
        >>> dict(bytekv.open(os.path.join(folder, "copy"), "r"))
        {b'a': b'1'}
        """
        self._check_open()
        path = os.path.abspath(os.fsdecode(dest))
        here, there = os.path.realpath(self._path), os.path.realpath(path)
        if there == here or there.startswith(here + os.sep):
            raise ValueError(f"{path}: a backup cannot lie inside the store that it copies")
        source = self._directory.share()
        try:
            return self._back_up(source, path, progress)
        finally:
            source.release()

    def _back_up(self, source: Directory, path: str, progress: Callable[[Progress], object] | None) -> BackupReport:
        with translated("bytekv.engine.replication.backup"):
            from .replication.backup import back_up, moment_of

        while True:
            self._check_open()
            target = Directory(path, self._files, tuning=self._directory.tuning)
            pin, moment = moment_of(
                self._state, self._durability, self._reader.remove_obsolete, readonly=self._readonly
            )
            try:
                return back_up(source, moment, target, progress)
            except StoreNotFoundError:
                # Beside a writer that has compacted a file away: there is a newer moment.
                if not self._readonly or not self.refresh():
                    raise
            finally:
                pin.close()

    def stats(self) -> Stats:
        """Return counts of keys and bytes. Complexity: O(number of segments)."""
        with translated("bytekv.contract.reports"):
            from ..contract.reports import SegmentStats, Stats

        state, segments, keydir = self._state, self._segments, self._keydir
        keys = len(self)
        state.check_reentry()
        with state.lock, state:
            state.count_if_due()
            usage = keydir.usage
            rows = tuple(
                SegmentStats(segment, length, usage.dead_bytes(segment), usage.hiding_bytes(segment))
                for segment, length in segments.lengths().items()
            )
            pinned_bytes = segments.obsolete.pinned_bytes
        total = sum(row.length_bytes for row in rows)
        gone = sum(row.dead_bytes + row.tombstone_bytes for row in rows)
        return Stats(
            keys=keys,
            last_seq=state.visible_seq,
            durable_seq=state.durable_seq,
            total_bytes=total,
            live_bytes=total - gone,
            dead_bytes=gone,
            open_segments=len(segments.open.table),
            compactions=self._maintenance.compactions,
            background_error=self._maintenance.background_error,
            open_views=keydir.view_count,
            pinned_bytes=pinned_bytes,
            expired_keys=keydir.expired_count,
            throttled=self._commit.throttle.reason(state),
            throttled_s=self._commit.throttle.paid_s,
            segments=rows,
        )

    def refresh(self) -> bool:
        """Catch up with the writer, if the store was opened with flag "r"; tell whether there was anything new.

        Afterwards reads see all that the writer had done by the beginning of the call: whole batches, never
        less than before. Snapshots and scans that are under way do not change. A store that is open for
        writing is always up to date.

        Raises `StoreIOError` with errno ESTALE if the directory holds another store now, a repaired one or a backup
        that was put in its place or written to, or if operations seen here were lost in a power cut; nothing has
        changed then. Complexity: 30 µs, and O(what was
        written since); O(number of keys) after a compaction.

        >>> import bytekv, tempfile
        >>> path = tempfile.mkdtemp()
        >>> with bytekv.open(path) as db, bytekv.open(path, "r") as reader:
        ...     db["a"] = "1"
        ...     "a" in reader, reader.refresh(), "a" in reader
        (False, True, True)
        """
        self._check_open()
        return self._maintenance.refresh()

    def wait(self, seq: int | None = None, timeout: float | None = None) -> int:
        """Wait until something is written after ``seq``, here or by another process; return the newest seq.

        ``seq``: None: what this handle has seen. ``timeout``: seconds, then `TimeoutError`; None: for ever. A store
        that was opened with flag "r" catches up with its writer meanwhile. Complexity: a look every millisecond.

        >>> import bytekv, tempfile, threading
        >>> with bytekv.open(tempfile.mkdtemp()) as db:
        ...     threading.Timer(0.01, db.put, ["job", "1"]).start()
        ...     db.wait(timeout=10)
        1
        """
        if seq is not None and (isinstance(seq, bool) or not isinstance(seq, int)):
            raise TypeError(f"seq must be an int or None, not {type(seq).__name__}")
        self._check_open()
        seen = self._state.visible_seq if seq is None else seq
        files = self._files
        until = None if timeout is None else files.monotonic() + timeout
        while True:
            self._check_open()
            if self._readonly:
                self.refresh()
            newest = self.last_seq
            if newest > seen:
                return newest
            if until is not None and files.monotonic() >= until:
                raise TimeoutError(f"{self._path}: nothing was written after seq {seen} within {timeout} s")
            files.pause(_LOOK_S)

    # --- the worker ----------------------------------------------------------------------------
    # It calls the store, which therefore is not dropped, and closed, in the middle of that.

    def _work(self) -> float | None:
        return self._maintenance.work()

    def _work_failed(self, error: BaseException) -> bool:
        return self._maintenance.work_failed(error)

    # --- lifecycle -----------------------------------------------------------------------------

    @property
    def path(self) -> str:
        """Return the directory of the store."""
        return self._path

    @property
    def closed(self) -> bool:
        """Tell whether `close` has been called."""
        return self._is_closed

    @property
    def options(self) -> Options:
        """Return the options that the store was opened with, for code that is handed an open one."""
        return self._options

    @property
    def readonly(self) -> bool:
        """Tell whether the store was opened with flag "r"."""
        return self._readonly

    @property
    def failure(self) -> BaseException | None:
        """Return the failed sync or write that made the store refuse writes, None if there is none."""
        return self._state.failure

    @property
    def last_seq(self) -> int:
        """Return the sequence number of the newest visible operation."""
        return self._state.visible_seq

    @property
    def durable_seq(self) -> int:
        """Return the sequence number up to which every operation survives a power cut."""
        return self._state.durable_seq

    def close(self) -> None:
        """Make everything durable, give the lock back and close every file; a second call does nothing.

        Raises `StoreFailedError` if an earlier sync failed, `DiskFullError` or `StoreIOError` if the
        clean end could not be written. The store is closed all the same and nothing acknowledged is
        lost by that; the next `open` recovers it.
        """
        if self._is_closed or os.getpid() != self._pid:
            return
        self._maintenance.check_reentry("close")
        self._worker.stop()
        self._end()

    def _end(self) -> None:
        state = self._state
        try:
            with state.compacting, state.sync_lock, state.lock, state:
                if not self._is_shut:
                    self._shut()
        finally:
            # Without the locks: a thread that takes or returns a directory may wait for them in a signal handler.
            if self._is_shut:
                self._directory.release()
                self._is_closed = True
                unregister(self)
            state.emit()

    def _write_clean_end(self) -> None:
        if not self._readonly and self._state.refusal is None:  # else an interrupted close() has been here
            self._durability.close()
            self._maintenance.build_hints()

    def _shut(self) -> None:
        try:
            self._write_clean_end()
            self._segments.obsolete.forget_pins()  # iterators and snapshots end with the store
            self._segments.obsolete.remove(self._segments.reap(()))
        finally:
            refuse = partial(StoreClosedError, f"{self._path}: this store was closed")
            self._state.refusal = self._maintenance.refusal = refuse
            self._locations = self._reader.shut(refuse)
            self._segments.drop()
            self._is_shut = True

    def _at_exit(self) -> None:
        """Write a clean end, for the process is about to have one, and stay open for writes that come even later.

        Without the worker: each write makes itself durable where that was the worker's business. No lock is
        waited for once the interpreter has stopped all other threads.
        """
        if self._is_closed or os.getpid() != self._pid:
            return
        state, maintenance = self._state, self._maintenance
        maintenance.check_reentry("close")
        self._worker.stop()
        try:
            with state.compacting, state.sync_lock, state.lock, state:
                try:
                    self._write_clean_end()
                finally:
                    state.replace_locks(LastLock)
                    self._reader.ordering = LastLock(self._reader.ordering)
                    state.throttles = False  # nobody compacts any more
        except BaseException:
            self.close()  # which tells the same once more, or has nothing to tell
            raise
        finally:
            state.emit()

    def _after_fork(self) -> None:
        """In a child process: refuse everything and give up what was inherited, without unlocking."""
        refuse = partial(ForkedStoreError, f"{self._path}: opened by the parent process; open it again here")
        state = self._state
        state.forget_after_fork()
        state.refusal = self._maintenance.refusal = refuse
        self._locations = self._reader.shut(refuse)
        self._segments.drop()
        self._directory.abandon()

    def __del__(self) -> None:
        if getattr(self, "_commit", None) is not None and not self._is_closed:
            try:
                self.close()
            except Exception as error:
                if BytekvError is None:
                    return  # the interpreter has taken its modules apart; at exit the store had a clean end
                if not isinstance(error, BytekvError):
                    raise
                # StoreClosedError: the interpreter ends and has stopped a thread in here; the next open recovers.
                if not isinstance(error, StoreClosedError):
                    log.error("%s was dropped without close(), and closing it failed: %s", self._path, str(error))

    def __repr__(self) -> str:
        if self._is_closed or os.getpid() != self._pid:
            return f"<bytekv.Store {self._path!r}, {'closed' if self._is_closed else 'inherited by fork'}>"
        return f"<bytekv.Store {self._path!r}, {'read-only, ' if self._readonly else ''}{len(self._locations)} keys>"
