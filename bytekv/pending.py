"""A change before it is carried out: what is asked for, and the absolute facts that it comes to.

Operations are what a caller wants. What is pending says where in which file which bytes go, where that file and the
seqs end then, and what the keydir is to be told: carried out once more it is the same as once. In between entries get
their seqs, bytes and places; that is computed here, and nothing is changed by it.

A batch is a run of entries each of which but the last says that it continues.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain, repeat
from operator import add

from .codec import (
    CLEAR,
    CONTINUES,
    CRC,
    ENTRY,
    OVERHEAD,
    PUT,
    checksum,
    encode_entry,
    entry_size,
    pack_place,
)
from .record import NamedTuple
from .segment import Writer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

__all__ = ["Operation", "Pending", "PendingPuts", "Puts", "pending_of", "pending_puts_of", "size_of"]

_JOIN_BELOW: Final = 64 * 1024

_pack_entry = ENTRY.pack
_pack_crc = CRC.pack


class Operation(NamedTuple):
    """One put, delete or clear before it has a seq."""

    kind: int
    key: bytes
    value: bytes = b""
    expires_ms: int = 0


class Puts(NamedTuple):
    """Many puts without expiry before they have seqs; no key comes twice."""

    keys: list[bytes]
    values: list[bytes]

    def operations(self) -> list[Operation]:
        """Return them one by one."""
        return [Operation(PUT, key, value) for key, value in zip(self.keys, self.values, strict=True)]


class Pending(NamedTuple):
    """A change that is being carried out."""

    writer: Writer
    offset: int
    parts: list[bytes]
    effects: list[tuple[bytes | None, int | None, int]]  # key (None: every), location (None: gone), expires_ms
    seq: int
    end: int
    tombstones: int  # bytes in this segment afterwards


class PendingPuts(NamedTuple):
    """Many puts that are being carried out."""

    writer: Writer
    offset: int
    parts: list[bytes]
    keys: list[bytes]
    locations: list[int]
    seq: int
    end: int


def size_of(operations: Sequence[Operation] | Puts) -> int:
    """Return the bytes that operations take in a segment."""
    if isinstance(operations, Puts):
        keys, values = operations
        return sum(map(len, keys)) + sum(map(len, values)) + OVERHEAD * len(keys)
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
            effects.append((key, writer.base | pack_place(offset, size), expires_ms))
        else:
            tombstones += size
            effects.append((None if kind == CLEAR else key, None, 0))
        offset += size
    if offset - writer.end < _JOIN_BELOW:
        parts = [b"".join(parts)]
    return Pending(writer, writer.end, parts, effects, seq, offset, tombstones)


def pending_puts_of(puts: Puts, writer: Writer, seq: int, now_ms: int) -> PendingPuts:
    """Do what `pending_of` does with what C does for a whole list: 0.5 µs a put instead of 1.9."""
    keys, values = puts
    count = len(keys)
    flags = chain(repeat(PUT | CONTINUES, count - 1), (PUT,))
    seqs = range(seq + 1, seq + count + 1)
    heads = map(_pack_entry, flags, map(len, keys), map(len, values), seqs, repeat(now_ms))
    bodies = list(map(b"".join, zip(heads, keys, values, strict=True)))
    crcs = map(_pack_crc, map(checksum, bodies, repeat(writer.seed)))
    entries = list(map(add, bodies, crcs))
    sizes = list(map(len, entries))
    offsets = list(accumulate(sizes, initial=writer.end))
    base = writer.base
    locations = [
        base | offset << 13 | (size if size <= 8191 else 0)
        for offset, size in zip(offsets, sizes, strict=False)  # one offset more: the end
    ]
    return PendingPuts(writer, writer.end, [b"".join(entries)], keys, locations, seq + count, offsets[-1])
