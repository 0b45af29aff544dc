"""A change before it is carried out: what is asked for, and the absolute facts that it comes to.

Operations are what a caller wants. What is pending says where in which file which bytes go, where that file and the
seqs end then, and what the keydir is to be told: carried out once more it is the same as once. In between entries get
their seqs, bytes and places; that is computed here, and nothing is changed by it.

A batch is a run of entries each of which but the last says that it continues.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, compress

from ..._lean import TYPE_CHECKING, NamedTuple
from ..codec.entry import CLEAR, CONTINUES, OVERHEAD, PUT, TOMBSTONE, encode_entry, entry_size, pack_position
from ..codec.runs import locate_run, pack_run, sizes_of_run
from ..log.segment import Writer

if TYPE_CHECKING:
    from typing import Final

__all__ = ["Bulk", "Operation", "Pending", "PendingBulk", "pending_bulk_of", "pending_of", "size_of"]

_JOIN_BELOW: Final = 64 * 1024
_PART_SIZE: Final = 1024 * 1024  # of a large batch; what is larger is not copied


class Operation(NamedTuple):
    """One put, delete or clear before it has a seq."""

    kind: int
    key: bytes
    value: bytes = b""
    expires_ms: int = 0


class Bulk(NamedTuple):
    """Many puts without expiry, and deletes, before they have seqs; no key comes twice."""

    keys: list[bytes]
    values: list[bytes | None]  # None: is to be deleted

    def operations(self) -> list[Operation]:
        """Return them one by one."""
        return [
            Operation(TOMBSTONE, key) if value is None else Operation(PUT, key, value)
            for key, value in zip(self.keys, self.values, strict=True)
        ]

    @property
    def kinds(self) -> set[type]:
        """Return the types of all values: `bytes` if there is a put among them, that of None if there is a delete."""
        return set(map(type, self.values))  # three times as fast as to look for None


class Pending(NamedTuple):
    """A change that is being carried out."""

    writer: Writer
    offset: int
    parts: list[bytes]
    effects: list[tuple[bytes | None, int | None, int]]  # key (None: every), location (None: gone), expires_ms
    seq: int
    end: int
    tombstones: int  # bytes in this segment afterwards


class PendingBulk(NamedTuple):
    """Many puts and deletes that are being carried out."""

    writer: Writer
    offset: int
    parts: list[bytes]
    keys: list[bytes]  # of the puts
    locations: list[int]
    gone: list[bytes]  # the keys of the deletes
    seq: int
    end: int
    tombstones: int  # bytes in this segment afterwards


def size_of(operations: Sequence[Operation] | Bulk) -> int:
    """Return the bytes that operations take in a segment."""
    if isinstance(operations, Bulk):
        keys, values = operations
        return sum(map(len, keys)) + sum(map(len, filter(None, values))) + OVERHEAD * len(keys)
    return sum(entry_size(len(key), len(value), expires_ms) for _, key, value, expires_ms in operations)


def pending_of(operations: Sequence[Operation], writer: Writer, seq: int, now_ms: int, tombstones: int) -> Pending:
    """Put operations at the end of a segment that has room for them.

    ``seq``: the last that was given; ``tombstones``: the bytes of them in the segment so far.
    """
    offset = writer.end
    parts: list[bytes] = []
    effects: list[tuple[bytes | None, int | None, int]] = []
    last = seq + len(operations)
    for kind, key, value, expires_ms in operations:
        seq += 1
        flags = kind if seq == last else kind | CONTINUES
        parts += encode_entry(flags, key, value, seq, now_ms, expires_ms, writer.seed)
        size = entry_size(len(key), len(value), expires_ms)
        if kind == PUT:
            effects.append((key, writer.base | pack_position(offset, size), expires_ms))
        else:
            tombstones += size
            effects.append((None if kind == CLEAR else key, None, 0))
        offset += size
    if offset - writer.end < _JOIN_BELOW:
        parts = [b"".join(parts)]
    return Pending(writer, writer.end, parts, effects, seq, offset, tombstones)


def pending_bulk_of(bulk: Bulk, writer: Writer, seq: int, now_ms: int, tombstones: int) -> PendingBulk:
    """Do what `pending_of` does with what C does for a whole list: 0.5 µs an entry instead of 1.9.

    Encoded in parts, so that what is made on the way takes little memory beside the entries themselves.
    """
    keys, given = bulk
    count = len(keys)
    gone: list[bytes] = []
    flags = [PUT | CONTINUES] * count
    values: list[bytes] = given  # type: ignore[assignment]
    if bulk.kinds != {bytes}:
        values = [value or b"" for value in given]
        gone = [key for key, value in zip(keys, given, strict=True) if value is None]
        flags = [(TOMBSTONE if value is None else PUT) | CONTINUES for value in given]
        tombstones += OVERHEAD * len(gone) + sum(map(len, gone))
    flags[-1] ^= CONTINUES
    sizes = sizes_of_run(keys, values)
    offsets = list(accumulate(sizes, initial=writer.end))
    parts: list[bytes] = []
    at = 0
    while at < count:
        stop = max(at + 1, bisect_right(offsets, offsets[at] + _PART_SIZE, at) - 1)
        if stop == at + 1:  # perhaps a large one
            parts += encode_entry(flags[at], keys[at], values[at], seq + stop, now_ms, 0, writer.seed)
        else:
            parts.append(pack_run(flags[at:stop], keys[at:stop], values[at:stop], seq + at + 1, now_ms, writer.seed))
        at = stop
    locations = locate_run(writer.base, offsets, sizes)
    if gone:
        is_put = [value is not None for value in given]
        keys, locations = list(compress(keys, is_put)), list(compress(locations, is_put))
    return PendingBulk(writer, writer.end, parts, keys, locations, gone, seq + count, offsets[-1], tombstones)
