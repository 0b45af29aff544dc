"""Change: what a call is about to do, as facts that can be carried out twice.

Operations are what a caller wants. A change says where in which file which bytes go, where that file and the seqs end
then, and where the keydir points. Carried out twice it is the same as once: so an interrupted call is finished by the
next one. `State.intent` says what a thread is about to do::

                take the lock                      `of`, `place`, then intent = change
        None  ────────────────────▶  ENTERED  ──────────────────────────────────────────▶  a change
         ▲                           │     ▲                                               │      │
         └───────────────────────────┘     └───────────────────────────────────────────────┘      │
                leave the lock                written and applied, or known not to be there       │ interrupt
                                                                                                  ▼
        ENTERED  ◀──────────────────────────────────────────────────────────────  the change, nobody inside
                    `State.redo`, before the next call does anything of its own

=============  ===================================  =================================================================
intent         what sets it                         what may be trusted
=============  ===================================  =================================================================
None           a call that leaves the lock          everything
ENTERED        a call that takes the lock; `redo`   by this thread everything; others wait, or read without the lock
a change       a call about to write: the           only the change. Its bytes may be in the file or not, `end`, `seq`
               committer, a follower                and the keydir may be before it or after it, and so may the counts
                                                    of dead bytes: `is_uncounted` has them made anew
the same,      nothing: an exception has gone       the same; `readers_must_wait` makes readers redo it first, because
interrupted    through the call                     what is in the file has happened
=============  ===================================  =================================================================

A batch is a run of entries each of which but the last says that it continues.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate, compress, repeat

from ..._lean import TYPE_CHECKING, NamedTuple
from ...errors import BytekvError, StoreFailedError
from ..codec.entry import (
    CLEAR,
    CONTINUES,
    EXPIRES,
    KIND,
    OFFSET_SHIFT,
    OVERHEAD,
    PUT,
    SEGMENT_SHIFT,
    SIZE_MASK,
    TOMBSTONE,
    encode_entry,
    entry_size,
)
from ..codec.runs import Tombstones, locate_alike, locate_run, pack_run, sizes_of_run
from ..log.segment import Writer
from ..state import ENTERED, State

if TYPE_CHECKING:
    from typing import Final

    from ..log.scan import Scanned

    Effect = tuple[bytes | None, int | None, int]  # key (None: every), location (None: gone), expires_ms

__all__ = [
    "AtomicChange",
    "Bulk",
    "DeleteRun",
    "ForeignChange",
    "ForeignEntries",
    "Operation",
    "PutRun",
    "apply_foreign",
    "write_bytes",
]

_JOIN_BELOW: Final = 64 * 1024
_PREPARED: Final = 16_384  # tombstones that are encoded together
_PART_SIZE: Final = 1024 * 1024  # of a large batch; what is larger is not copied


class Operation(NamedTuple):
    """One put, delete or clear before it has a seq."""

    kind: int
    key: bytes
    value: bytes = b""
    expires_ms: int = 0


class Bulk(NamedTuple):
    """Many puts and deletes before they have seqs; no key comes twice."""

    keys: list[bytes]
    values: list[bytes | None]  # None: delete the key
    expires: list[int] | None = None  # ms; 0: never; None: none ever

    def operations(self) -> list[Operation]:
        """Return them one by one."""
        return [
            Operation(TOMBSTONE, key) if value is None else Operation(PUT, key, value, expires_ms)
            for key, value, expires_ms in zip(self.keys, self.values, self.expires or repeat(0), strict=False)
        ]

    @property
    def kinds(self) -> set[type]:
        """Return the types of all values: `bytes` if there is a put among them, that of None if there is a delete."""
        return set(map(type, self.values))  # three times as fast as to look for None


def write_bytes(change: AtomicChange | _Run, state: State) -> None:
    """Write a change's bytes, or know that they are not there; whose error it was says nothing.

    `StoreFailedError` if neither is known: the next open decides, and until then nothing may be written after them.
    """
    if state.seq == change.seq:
        state.turn.announce()
        return  # an interrupted call has come this far, and readers may have seen it
    writer = change.writer
    try:
        writer.write(change.offset, change.parts)
    except BytekvError as error:
        if writer.take_back(change.offset, change.parts):
            writer.end = change.offset  # an interrupted call may have moved it
            state.intent = ENTERED  # it has not happened
        elif writer.map is None:  # else it was an interrupt: through a mapping a write cannot fail
            text = (
                f"{writer.path}: a write has failed, {error}, and all of it may be in the file; the next open decides "
                "whether it has happened: close the store and open it again"
            )
            state.fail(StoreFailedError(text))
            state.intent = ENTERED  # else the next call would carry it out
            raise StoreFailedError(text) from error
        raise
    writer.end = change.end
    state.seq = change.seq
    state.turn.announce()


class AtomicChange:
    """Operations as one atomic change. Made by `of`, then `place` finds out the facts."""

    __slots__ = (
        "_operations",
        "_sizes",
        "effects",
        "end",
        "now_ms",
        "offset",
        "parts",
        "seq",
        "size",
        "tombstones",
        "writer",
    )

    writer: Writer
    offset: int
    end: int
    parts: list[bytes]
    effects: list[Effect]
    seq: int  # of the last operation
    now_ms: int
    tombstones: int | None  # bytes in this segment afterwards; None: as before

    def __init__(self, operations: Sequence[Operation], sizes: list[int]) -> None:
        self._operations, self._sizes = operations, sizes
        self.size = sum(sizes)  # bytes in a segment

    @classmethod
    def of(cls, operations: Sequence[Operation]) -> AtomicChange:
        """Return a change that has no place yet."""
        return cls(
            operations, [entry_size(len(key), len(value), expires_ms) for _, key, value, expires_ms in operations]
        )

    @property
    def only_deletes(self) -> bool:
        """Tell whether nothing is put, so that what a full disk keeps back may be used."""
        return all(operation.kind != PUT for operation in self._operations)

    @property
    def has_deletes(self) -> bool:
        """Tell whether there is a delete or a clear."""
        return any(operation.kind != PUT for operation in self._operations)

    def place(self, writer: Writer, seq: int, now_ms: int, tombstones: int | None) -> None:
        """Put the entries at the end of a segment that has room for them. Nothing else changes.

        ``seq``: the last that was given; ``tombstones``: the bytes of them in the segment so far, None if no matter.
        """
        parts: list[bytes] = []
        effects: list[Effect] = []
        offsets = list(accumulate(self._sizes, initial=writer.end))
        locations = locate_run(writer.base, offsets, self._sizes)
        last = seq + len(locations)
        for operation, location, size in zip(self._operations, locations, self._sizes, strict=True):
            kind, key, value, expires_ms = operation
            seq += 1
            flags = kind if seq == last else kind | CONTINUES
            parts += encode_entry(flags, key, value, seq, now_ms, expires_ms, writer.seed)
            if kind == PUT:
                effects.append((key, location, expires_ms))
            else:
                assert tombstones is not None
                tombstones += size
                effects.append((None if kind == CLEAR else key, None, 0))
        self.parts = [b"".join(parts)] if self.size < _JOIN_BELOW else parts
        self.writer, self.offset, self.end = writer, writer.end, offsets[-1]
        self.effects, self.seq, self.now_ms, self.tombstones = effects, seq, now_ms, tombstones
        self._operations = ()

    def redo(self, state: State) -> None:
        """Write the bytes and apply the change, or have it wait for the sync that makes it visible."""
        write_bytes(self, state)
        if state.always:
            state.queue.add(self)
        else:
            self.apply(state)
        state.intent = ENTERED
        self.parts = []  # only now: while it is the intent, it may have to be written again

    def apply(self, state: State) -> None:
        """Point the keydir at the entries, so that readers see them."""
        uncounted, state.is_uncounted = state.is_uncounted, True
        waited = state.readers_must_wait
        if len(self.effects) > 1:
            state.readers_must_wait = True  # nobody may see half of a batch
        if state.mode == "interval" and state.dirty_since is None:
            state.dirty_since = state.files.monotonic()
        if state.keydir.apply(self, state.size_of, state.segments.with_keys):
            uncounted = True  # nearly everything is dead now: count what is not
        state.readers_must_wait = waited
        state.is_uncounted = uncounted
        if uncounted and not state.always:
            state.recount()


class _Run:
    """Many operations as one atomic change, where nothing waits for a sync."""

    __slots__ = ("end", "gone", "offset", "parts", "seq", "size", "tombstones", "writer")

    writer: Writer
    offset: int
    end: int
    parts: list[bytes]
    gone: list[bytes]  # the keys of the deletes
    seq: int  # of the last entry
    tombstones: int | None  # bytes in this segment afterwards; None: as before

    def redo(self, state: State) -> None:
        """Write the bytes and apply them to the keydir."""
        write_bytes(self, state)
        uncounted, state.is_uncounted = state.is_uncounted, True
        waited, state.readers_must_wait = state.readers_must_wait, True  # nobody may see half of a batch
        if state.mode == "interval" and state.dirty_since is None:
            state.dirty_since = state.files.monotonic()
        if self.tombstones is not None:
            state.keydir.usage.set_tombstones(self.writer.header.segment_id, self.tombstones)
        self._apply(state)
        state.readers_must_wait = waited
        state.is_uncounted = uncounted
        if uncounted:
            state.recount()
        state.intent = ENTERED

    def _apply(self, state: State) -> None:
        """Point the keydir at the entries; repeatable, but for the count."""
        raise NotImplementedError


class PutRun(_Run):
    """Many puts and deletes as one atomic change, where nothing waits for a sync.

    What `AtomicChange` does, by calls of C for the whole list: 0.5 µs an entry instead of 1.9.
    """

    __slots__ = (
        "_bulk",
        "_entry_size",
        "_sizes",
        "_values",
        "expires",
        "has_deletes",
        "keys",
        "locations",
        "now_ms",
        "only_deletes",
    )

    keys: list[bytes]  # of the puts
    locations: list[int]
    expires: list[int] | None  # when these keys do
    now_ms: int

    def __init__(self, bulk: Bulk) -> None:
        self._bulk = bulk
        kinds = bulk.kinds
        self.has_deletes = kinds != {bytes}
        self.only_deletes = bytes not in kinds  # what a full disk keeps back may be used
        keys, given, expires = bulk
        values: list[bytes] = given  # type: ignore[assignment]
        if self.has_deletes:
            values = [value or b"" for value in given]
        self._values = values
        size, self._sizes = sizes_of_run(keys, values, expires)
        self._entry_size = 0 if self.has_deletes else size  # of each, if they are alike
        self.size = sum(self._sizes)

    def place(self, writer: Writer, seq: int, now_ms: int, tombstones: int | None) -> None:
        """Put the entries at the end of a segment that has room for them, as `AtomicChange.place` does.

        Encoded in parts, so that what is made on the way takes little memory beside the entries themselves.
        """
        keys, given, expires = self._bulk
        values, size, end = self._values, self._entry_size, writer.end + self.size
        count = len(keys)
        gone: list[bytes] = []
        flags = [PUT | CONTINUES] * count
        if self.has_deletes:
            gone = [key for key, value in zip(keys, given, strict=True) if value is None]
            flags = [(TOMBSTONE if value is None else PUT) | CONTINUES for value in given]
            assert tombstones is not None
            tombstones += OVERHEAD * len(gone) + sum(map(len, gone))
        flags[-1] ^= CONTINUES
        if expires is not None:
            flags = [kind | EXPIRES if expires_ms else kind for kind, expires_ms in zip(flags, expires, strict=True)]
        offsets: Sequence[int]
        if size:
            offsets = range(writer.end, end + size, size)
            locations = locate_alike(writer.base, writer.end, size, count)
        else:
            offsets = list(accumulate(self._sizes, initial=writer.end))
            locations = locate_run(writer.base, offsets, self._sizes)
        parts: list[bytes] = []
        at = 0
        while at < count:
            stop = max(at + 1, bisect_right(offsets, offsets[at] + _PART_SIZE, at) - 1)
            if stop == at + 1:  # perhaps a large one
                expires_ms = expires[at] if expires is not None else 0
                parts += encode_entry(flags[at], keys[at], values[at], seq + stop, now_ms, expires_ms, writer.seed)
            else:
                run = slice(at, stop)
                times = expires[run] if expires is not None else None
                what = flags[run], keys[run], values[run], seq + at + 1, now_ms, writer.seed, times
                parts.append(pack_run(*what, is_alike=size > 0))
            at = stop
        if gone:
            is_put = [value is not None for value in given]
            keys, locations = list(compress(keys, is_put)), list(compress(locations, is_put))
            expires = None if expires is None else list(compress(expires, is_put))
        self.parts, self.keys, self.locations, self.gone = parts, keys, locations, gone
        self.writer, self.offset, self.end = writer, writer.end, end
        self.expires, self.now_ms = expires, now_ms
        self.seq, self.tombstones = seq + count, tombstones

    def _apply(self, state: State) -> None:
        state.keydir.write_all(self.keys, self.locations, self.expires, self.gone, self.now_ms, state.size_of)


class DeleteRun(_Run):
    """Many deletes as one atomic change, of keys that are there, where nothing waits for a sync.

    What `PutRun` does, with nearly all of it done before the lock is taken; what is left takes less than 0.5 µs a key.
    Their time is that of the preparation.
    """

    __slots__ = ("_prepared",)

    only_deletes = has_deletes = True

    def __init__(self, keys: list[bytes], now_ms: int) -> None:
        self.gone = keys
        self.size = sum(map(len, keys)) + OVERHEAD * len(keys)
        by_size: dict[int, list[bytes]] = {}
        for key in keys:
            by_size.setdefault(len(key), []).append(key)
        self._prepared = [
            Tombstones(alike[at : at + _PREPARED], now_ms)
            for alike in by_size.values()
            for at in range(0, len(alike), _PREPARED)
        ]

    def place(self, writer: Writer, seq: int, now_ms: int, tombstones: int | None) -> None:
        """Put the entries at the end of a segment that has room for them, as `AtomicChange.place` does."""
        assert tombstones is not None
        self.parts = []
        for prepared in self._prepared:
            ends = prepared is self._prepared[-1]
            self.parts.append(prepared.pack(seq + 1, writer.seed, ends_batch=ends))
            seq += len(prepared)
        self.writer, self.offset, self.end = writer, writer.end, writer.end + self.size
        self.seq, self.tombstones = seq, tombstones + self.size

    def _apply(self, state: State) -> None:
        state.keydir.remove_all(self.gone, state.size_of)


class ForeignEntries(AtomicChange):
    """What another process has appended to the active segment, as it lies there."""

    __slots__ = ()

    def __init__(self, writer: Writer, entries: Sequence[Scanned], tombstones: int, now_ms: int) -> None:
        self.size = sum(len(entry[5]) for entry in entries)
        self._operations, self._sizes, self.parts = (), [], []
        self.effects = []
        for flags, key, _, expires_ms, offset, raw in entries:
            size = len(raw)
            if flags & KIND == PUT:
                location = writer.base | offset << OFFSET_SHIFT | (size if size <= SIZE_MASK else 0)
                self.effects.append((key, location, expires_ms))
            else:
                tombstones += size
                self.effects.append((None if flags & KIND == CLEAR else key, None, 0))
        _, _, self.seq, _, offset, raw = entries[-1]
        self.writer, self.offset, self.end = writer, entries[0][4], offset + len(raw)
        self.now_ms, self.tombstones = now_ms, tombstones

    def redo(self, state: State) -> None:
        """Apply it, or have it wait for the sync that makes it visible."""
        uncounted, state.is_uncounted = state.is_uncounted, True
        waited = state.readers_must_wait
        if state.always:
            state.queue.add(self)
        else:
            state.readers_must_wait = True  # nobody may see half of a batch
            if state.keydir.apply(self, state.size_of, state.segments.with_keys):
                uncounted = True
            if state.dirty_since is None and state.mode == "interval":
                state.dirty_since = state.files.monotonic()
        marks = self.end - self.writer.end - self.size  # bytes of sync marks, which are dead
        if marks > 0:
            state.keydir.usage.count_dead(self.writer.base >> SEGMENT_SHIFT, marks)
        self.writer.end = self.end
        state.seq = self.seq
        state.readers_must_wait = waited
        state.intent = ENTERED
        state.is_uncounted = uncounted
        if uncounted:
            state.recount()


class ForeignChange:
    """What another process has written, as a call that changes memory only and is repeatable."""

    __slots__ = ("_change",)

    def __init__(self, change: Callable[[], bool]) -> None:
        self._change = change

    def redo(self, state: State) -> None:
        """Do it once more; the dead bytes are counted anew."""
        self._change()


def apply_foreign(state: State, change: Callable[[], bool]) -> None:
    """Let readers see what another process has written: ``change`` alters memory only and is repeatable, but for
    the count of dead bytes; it tells whether that is right."""
    state.check_reentry()
    with state.lock, state:
        state.intent = ForeignChange(change)
        state.readers_must_wait = True  # readers see all of it or nothing
        uncounted, state.is_uncounted = state.is_uncounted, True
        state.is_uncounted = not change() or uncounted
        state.intent = ENTERED
        state.readers_must_wait = False
