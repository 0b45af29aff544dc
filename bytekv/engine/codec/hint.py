"""The hint file: the newest location of each key of a segment, in columns. No I/O.

Opening loads the columns in bulk instead of scanning the segment. Numbers in this module are frozen: changing one
is a new format version.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain, pairwise
from operator import or_
from struct import Struct

from ..._lean import TYPE_CHECKING, NamedTuple
from ...contract.convert import MAX_KEY_SIZE
from ...errors import CorruptionError
from .checksum import CRC, CRC_SIZE, FORMAT_VERSION, check_file, check_version, checksum
from .entry import SEGMENT_SHIFT
from .manifest import SegmentHeader

if TYPE_CHECKING:
    from typing import Any, Final, TypeVar

    T = TypeVar("T")

HINT_MAGIC: Final = b"BKVHNT\r\n"
# magic, version, flags, key size if all are equal else 0xFFFFFFFF, uuid, segment id, salt, length,
# last seq, live bytes, tombstone bytes, puts, expiring puts, tombstones
HINT_HEADER: Final = Struct("<8sHHI16sQQQQQQIII")  # 8+2+2+4+16+8*6+4*3 = 92
HINT_CLEARS: Final = 1
_MIXED: Final = 0xFFFFFFFF
_LOW_HALVES: Final = bytes(range(16))  # what a byte may be whose upper four bits lie beyond a place

_LOW_FIVE_BITS: Final = bytes(range(32)) * 8  # what of the second byte of a position belongs to the size


class Hint(NamedTuple):
    """What opening needs to know of one segment: the newest entry of each key in it.

    Comes from a scan of the segment or from its hint file; both say the same. Keys that only a
    compaction or a tombstone concerns are kept apart, so that the rest is loaded in bulk.
    """

    length: int  # the bytes of the segment that this speaks of
    last_seq: int
    clears: bool  # a CLEAR came first: nothing of older segments remains
    keys: Sequence[bytes]
    positions: Sequence[int]  # pack_position() of each key's put
    tombstones: Sequence[bytes]
    expires: dict[bytes, int]  # ms, of those keys that expire
    live_bytes: int
    tombstone_bytes: int


def positions_of(segment_id: int, locations: list[int]) -> array[int]:
    """Return the positions of entries in the segment in which all of these locations lie."""
    base = segment_id << SEGMENT_SHIFT
    try:
        column = array("Q", locations)
    except OverflowError:  # in a segment beyond the millionth
        return array("Q", map(base.__xor__, locations))
    bases = array("Q", (base,)) * len(column)
    size = len(column) * column.itemsize
    # One integer of them all: 3 ns for each instead of 40.
    changed = int.from_bytes(column.tobytes(), sys.byteorder) ^ int.from_bytes(bases.tobytes(), sys.byteorder)
    column = array("Q")
    column.frombytes(changed.to_bytes(size, sys.byteorder))
    return column


def sum_of_sizes(positions: array[int]) -> int | None:
    """Return the bytes of all entries at some positions, None if one of them may be too large to say how large."""
    raw = _little_endian(positions[:]).tobytes()
    low, high = raw[::8], raw[1::8].translate(_LOW_FIVE_BITS)
    return None if 0 in low and not all(map(or_, low, high)) else sum(low) + 256 * sum(high)


def _little_endian(column: array[int]) -> array[int]:
    if sys.byteorder == "big":
        column.byteswap()
    return column


_HINT_PIECE: Final = 4096  # entries; encoding that many takes less than a millisecond


class Pieces(Sequence[Any] if TYPE_CHECKING else object):  # type: ignore[misc]
    """A column that came in pieces, to be encoded; it has no items."""

    def __init__(self, pieces: Sequence[Sequence[Any]]) -> None:
        self.pieces = pieces

    def __len__(self) -> int:
        return sum(map(len, self.pieces))

    if TYPE_CHECKING:

        def __getitem__(self, at: Any) -> Any: ...


def _slices(column: Sequence[T]) -> Iterable[Sequence[T]]:
    if isinstance(column, Pieces):
        return chain.from_iterable(map(_slices, column.pieces))
    return (column[at : at + _HINT_PIECE] for at in range(0, len(column), _HINT_PIECE))


def encode_hint(hint: Hint, header: SegmentHeader) -> Iterator[bytes]:
    """Encode a hint file for the segment with this header, in pieces that take less than a millisecond."""
    crc = 0
    for piece in _hint_columns(hint, header):
        crc = checksum(piece, crc)
        yield piece
    yield CRC.pack(crc)


def _hint_columns(hint: Hint, header: SegmentHeader) -> Iterator[bytes]:
    sizes: set[int] = set()
    for some in _slices(hint.keys):
        sizes.update(map(len, some))
        if len(sizes) > 1:
            break
        yield b""
    put_size = sizes.pop() if len(sizes) == 1 else _MIXED
    order: dict[bytes, int] = {}
    if hint.expires:
        for some in _slices(hint.keys):
            order.update(zip(some, range(len(order), len(order) + len(some)), strict=True))
            yield b""
    expiring, expires_ms = list(hint.expires), list(hint.expires.values())
    yield HINT_HEADER.pack(
        HINT_MAGIC,
        FORMAT_VERSION,
        HINT_CLEARS if hint.clears else 0,
        put_size,
        header.store_uuid,
        header.segment_id,
        header.salt,
        hint.length,
        hint.last_seq,
        hint.live_bytes,
        hint.tombstone_bytes,
        len(hint.keys),
        len(hint.expires),
        len(hint.tombstones),
    )
    yield from (_little_endian(array("Q", some)).tobytes() for some in _slices(hint.positions))
    yield from (_little_endian(array("I", map(order.__getitem__, some))).tobytes() for some in _slices(expiring))
    yield from (_little_endian(array("Q", some)).tobytes() for some in _slices(expires_ms))
    yield from (_little_endian(array("H", map(len, some))).tobytes() for some in _slices(hint.tombstones))
    yield from map(b"".join, _slices(hint.tombstones))
    if put_size == _MIXED:
        yield from (_little_endian(array("H", map(len, some))).tobytes() for some in _slices(hint.keys))
    yield from map(b"".join, _slices(hint.keys))


class _Columns:
    """Take columns off a buffer, never past its end."""

    def __init__(self, data: bytes, at: int, path: str) -> None:
        self.data, self.at, self.path = data, at, path

    def take(self, size: int) -> bytes:
        end = self.at + size
        if size < 0 or end > len(self.data) - CRC_SIZE:
            raise CorruptionError(self.path, self.at, "hint column reaches past the end")
        piece = self.data[self.at : end]
        self.at = end
        return piece

    def integers(self, code: str, count: int) -> array[int]:
        column = array(code)
        column.frombytes(self.take(count * column.itemsize))
        return _little_endian(column)

    def positions(self, count: int) -> array[int]:
        """Take a column of `pack_position`; more than its 44 bits would name another segment."""
        at = self.at
        raw = self.take(8 * count)
        # Three passes over single bytes take 4 ns a key, one over the integers 16.
        if raw[7::8].strip(b"\0") or raw[6::8].strip(b"\0") or raw[5::8].translate(None, _LOW_HALVES):
            raise CorruptionError(self.path, at, "hint places reach beyond a segment")
        self.at = at
        return self.integers("Q", count)

    def keys(self, sizes: Iterable[int]) -> list[bytes]:
        bounds = list(accumulate(sizes, initial=0))
        blob = self.take(bounds[-1])
        return [blob[start:stop] for start, stop in pairwise(bounds)]


def decode_hint(data: bytes, header: SegmentHeader, path: str) -> Hint:
    """Decode a hint file and check that it belongs to the segment with this header.

    Raises ``CorruptionError`` or ``UnsupportedFormatError`` for whatever is wrong; the caller then
    scans the segment instead.
    """
    check_file("hint", data, HINT_MAGIC, HINT_HEADER.size + CRC_SIZE, path)
    (_, version, flags, put_size, uuid, segment_id, salt, length, last_seq, live, dead, puts, expiring, tombstones) = (
        HINT_HEADER.unpack_from(data)
    )
    check_version("hint", version, 0, flags & ~HINT_CLEARS, path, for_writing=False)
    if (uuid, segment_id, salt) != (header.store_uuid, header.segment_id, header.salt):
        raise CorruptionError(path, 0, "hint belongs to another segment")
    columns = _Columns(data, HINT_HEADER.size, path)
    positions = columns.positions(puts)
    expiring_at = columns.integers("I", expiring)
    expires_ms = columns.integers("Q", expiring)
    gone = columns.keys(columns.integers("H", tombstones))
    if put_size == _MIXED:
        keys = columns.keys(columns.integers("H", puts))
    elif put_size == 0:
        keys = [b""] * puts
    elif put_size > MAX_KEY_SIZE:
        raise CorruptionError(path, 12, f"hint of keys of {put_size} bytes")
    else:
        blob = columns.take(puts * put_size)
        # Equal sizes, the common case: one call of struct cuts all keys at 20 ns each, a slice takes 60.
        keys = [key for (key,) in Struct(f"{put_size}s").iter_unpack(blob)]
    if columns.at != len(data) - CRC_SIZE or any(at >= puts for at in expiring_at):
        raise CorruptionError(path, columns.at, "hint columns contradict each other")
    return Hint(
        length,
        last_seq,
        bool(flags & HINT_CLEARS),
        keys,
        positions,
        gone,
        {keys[at]: when for at, when in zip(expiring_at, expires_ms, strict=True)},
        live,
        dead,
    )
