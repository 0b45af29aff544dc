"""Runs: pack, cut and locate neighbouring entries together, at the speed of C. No I/O.

A run whose entries are not alike, not in order or not sound is not cut: the answer is None. The caller then reads the
entries one by one, so that the error names the damaged one.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import repeat, starmap
from operator import add, itemgetter
from struct import Struct

from ..._lean import TYPE_CHECKING, NamedTuple
from .checksum import CRC, CRC_SIZE, RESIDUE, checksum
from .entry import (
    CONTINUES,
    ENTRY,
    ENTRY_EXPIRES,
    ENTRY_SIZE,
    EXPIRES,
    EXPIRING_ENTRY_SIZE,
    FIXED_SIZE,
    KIND,
    MIN_ENTRY_SIZE,
    OFFSET_MASK,
    OFFSET_SHIFT,
    OVERHEAD,
    PREFIX,
    PUT,
    SEGMENT_SHIFT,
    SIZE_MASK,
    TOMBSTONE,
    ZEROS,
    encode_entry,
    measure_entry,
)

if TYPE_CHECKING:
    from typing import Any, Final

__all__ = [
    "Alike",
    "Pairs",
    "Segments",
    "Tombstones",
    "alike",
    "check_entries",
    "column_of",
    "copy_alike",
    "copy_run",
    "crc_of_run",
    "cut_entries",
    "cut_keys",
    "cut_pairs",
    "locate_alike",
    "locate_run",
    "pack_run",
    "sizes_of_run",
]

Pairs = list[tuple[bytes, bytes]]

_ENTRIES: Final = 64  # that `cut_entries` checks together, in 20 µs
_CHECKED: Final = 256  # that `check_entries` checks together, in 70 µs
_CHECKED_BYTES: Final = 256 * 1024
_FEW: Final = 8  # that are read one by one as fast
_FEW_ALIKE: Final = 20  # that are packed one by one as fast
_HEAD: Final = 7  # bytes of flags and lengths, equal in entries that are alike
_FIRST_BYTES: Final = {PUT, PUT | CONTINUES}
_FIRST_MORTAL: Final = {PUT | EXPIRES, PUT | EXPIRES | CONTINUES}
_LARGEST_ID: Final = (1 << 64 - SEGMENT_SHIFT) - 1  # of a segment whose locations take 64 bits
_LOW_FIVE_BITS: Final = bytes(range(32)) * 8  # what of the second byte of a location belongs to the size
_IS_ZERO: Final = b"\1" + bytes(255)
_LOW_FOUR_BITS: Final = bytes(range(16)) * 16  # what of a byte of several locations belongs to this one

_first = itemgetter(0)
_pack_entry = ENTRY.pack
_pack_crc = CRC.pack
_pack_expiry = ENTRY_EXPIRES.pack


# --- writing -----------------------------------------------------------------------------------


def sizes_of_run(keys: list[bytes], values: list[bytes], expires: list[int] | None = None) -> tuple[int, list[int]]:
    """Return the bytes that each entry of a run takes on disk, before them the size if all are of one, else 0."""
    key_sizes, value_sizes = list(map(len, keys)), list(map(len, values))
    count = len(keys)
    if (
        key_sizes.count(key_sizes[0]) == count
        and value_sizes.count(value_sizes[0]) == count
        and (expires is None or 0 not in expires)
    ):
        size = OVERHEAD + key_sizes[0] + value_sizes[0] + (0 if expires is None else ENTRY_EXPIRES.size)
        return size, [size] * count
    sizes = list(map(add, map(add, key_sizes, value_sizes), repeat(OVERHEAD)))
    if expires is not None:
        sizes = [size + 8 if expires_ms else size for size, expires_ms in zip(sizes, expires, strict=True)]
    return 0, sizes


def locate_run(base: int, offsets: Iterable[int], sizes: Iterable[int]) -> list[int]:
    """Return the location of each entry of a run in the segment whose locations begin at ``base``."""
    return [
        base | offset << 13 | (size if size <= 8191 else 0)  # OFFSET_SHIFT, SIZE_MASK
        for offset, size in zip(offsets, sizes, strict=False)  # the offsets may end with that of the next entry
    ]


def locate_alike(base: int, offset: int, size: int, count: int) -> list[int]:
    """Do what `locate_run` does for entries of one size, of which the first lies at ``offset``."""
    first = base | offset << OFFSET_SHIFT | (size if size <= SIZE_MASK else 0)
    return list(range(first, first + (count * size << OFFSET_SHIFT), size << OFFSET_SHIFT))


def pack_run(
    flags: list[int],
    keys: list[bytes],
    values: list[bytes],
    seq: int,
    now_ms: int,
    seed: int,
    expires: list[int] | None = None,
    *,
    is_alike: bool = False,
) -> bytes:
    """Encode a run of entries whose first has the seq ``seq``: 0.3 to 0.5 µs an entry instead of 0.65.

    ``flags`` say which of them expire; ``expires`` is when, in ms, 0 for the others. ``is_alike``: they are puts of one
    size, by `sizes_of_run`, that expire all or never.
    """
    if is_alike and len(keys) >= _FEW_ALIKE:
        return _pack_alike(flags, keys, values, expires, seq, now_ms, seed)
    seqs = range(seq, seq + len(keys))
    heads = map(_pack_entry, flags, map(len, keys), map(len, values), seqs, repeat(now_ms))
    if expires is None:
        bodies = list(map(b"".join, zip(heads, keys, values, strict=True)))
    else:
        times = [_pack_expiry(expires_ms) if expires_ms else b"" for expires_ms in expires]
        bodies = list(map(b"".join, zip(heads, times, keys, values, strict=True)))
    parts = bodies * 2
    parts[::2], parts[1::2] = bodies, map(_pack_crc, map(checksum, bodies, repeat(seed)))
    return b"".join(parts)


def _pack_alike(
    flags: list[int],
    keys: list[bytes],
    values: list[bytes],
    expires: list[int] | None,
    seq: int,
    now_ms: int,
    seed: int,
) -> bytes:
    """Do what `pack_run` does for puts of one size: what differs is written a byte of all of them at a time.

    The CRCs start from zero, for that takes no second argument, and are then changed to start from the seed.
    """
    count = len(keys)
    head = _pack_entry(flags[0], len(keys[0]), len(values[0]), seq, now_ms)
    if expires is not None:
        head += _pack_expiry(expires[0])
    parts = [bytes(CRC_SIZE) + head] * (3 * count)
    parts[1::3], parts[2::3] = keys, values
    piece = bytearray().join(parts)
    del piece[:CRC_SIZE]
    piece += bytes(CRC_SIZE)
    size = len(piece) // count
    piece[::size] = bytes(flags)
    last = seq + count - 1
    seqs = _seqs(count).pack(*range(seq, last + 1))
    for byte in range((seq ^ last).bit_length() + 7 >> 3):  # the upper bytes are those of the first
        piece[_HEAD + byte :: size] = seqs[byte::8]
    if expires is not None and expires.count(expires[0]) != count:
        times = _seqs(count).pack(*expires)
        for byte in range(8):
            piece[ENTRY_SIZE + byte :: size] = times[byte::8]
    crcs = _crcs(count).pack(*starmap(checksum, _bodies(size).iter_unpack(piece)))
    zeros = ZEROS[: size - CRC_SIZE]
    change = _pack_crc(checksum(zeros, seed) ^ checksum(zeros)) * count
    crcs = (int.from_bytes(crcs, "little") ^ int.from_bytes(change, "little")).to_bytes(CRC_SIZE * count, "little")
    for byte in range(CRC_SIZE):
        piece[size - CRC_SIZE + byte :: size] = crcs[byte::CRC_SIZE]
    return bytes(piece)


class Tombstones:
    """Tombstones of keys of one length, encoded but for what is known late: their seqs and the segment's seed.

    Seqs change a CRC by what they make of the zeros that follow, whatever else the entry holds, and so does the seed.
    So what takes long is done before, and the CRCs are made right by one long exclusive or: 0.1 µs an entry.
    """

    __slots__ = ("_crcs", "_keys", "_modified_ms", "_piece", "_size")

    def __init__(self, keys: list[bytes], modified_ms: int) -> None:
        head = ENTRY.pack(TOMBSTONE | CONTINUES, len(keys[0]), 0, 0, modified_ms)
        bodies = list(map(head.__add__, keys))
        parts = bodies * 2
        parts[::2], parts[1::2] = bodies, list(map(_pack_crc, map(checksum, bodies)))
        self._keys, self._modified_ms, self._size = keys, modified_ms, len(bodies[0]) + CRC_SIZE
        self._piece = b"".join(parts)
        self._crcs = int.from_bytes(b"".join(parts[1::2]), "little")

    def __len__(self) -> int:
        return len(self._keys)

    def pack(self, seq: int, seed: int, *, ends_batch: bool) -> bytes:
        """Return the entries, the first of which has the seq ``seq``; the last ends the batch or does not."""
        size, count, piece = self._size, len(self._keys), bytearray(self._piece)
        seqs = _seqs(count).pack(*range(seq, seq + count))
        for byte in range(8):
            piece[_HEAD + byte :: size] = seqs[byte::8]
        difference = int.from_bytes(_crc_differences(size - CRC_SIZE, seq, count, seed), "little")
        crcs = (self._crcs ^ difference).to_bytes(CRC_SIZE * count, "little")
        for byte in range(CRC_SIZE):
            piece[size - CRC_SIZE + byte :: size] = crcs[byte::CRC_SIZE]
        if ends_batch:
            last = encode_entry(TOMBSTONE, self._keys[-1], b"", seq + count - 1, self._modified_ms, 0, seed)
            piece[-size:] = b"".join(last)
        return bytes(piece)


def _crc_differences(size: int, seq: int, count: int, seed: int) -> bytes:
    """Return by what the CRCs of ``count`` bodies differ that get seqs from ``seq`` on, instead of 0, and a seed."""
    low = _crc_differences_of_low_bytes(size)
    of_seed = checksum(ZEROS[:size], seed) ^ checksum(ZEROS[:size])
    parts = []
    end = seq + count
    while seq < end:
        stop = min(end, (seq | 0xFF) + 1)  # up to there only the lowest byte changes
        given = _pack_crc(_crc_difference(size, seq & ~0xFF) ^ of_seed) * (stop - seq)
        first = int.from_bytes(low[CRC_SIZE * (seq & 0xFF) :][: len(given)], "little")
        parts.append((first ^ int.from_bytes(given, "little")).to_bytes(len(given), "little"))
        seq = stop
    return b"".join(parts)


def _crc_difference(size: int, seq: int) -> int:
    rest = size - _HEAD - 8
    return checksum(ZEROS[:rest], checksum(seq.to_bytes(8, "little"))) ^ checksum(ZEROS[: rest + 8])


@lru_cache(maxsize=64)
def _crc_differences_of_low_bytes(size: int) -> bytes:
    return b"".join(_pack_crc(_crc_difference(size, low)) for low in range(256))


# --- copying -----------------------------------------------------------------------------------


class Segments:
    """Some segments, told apart by the lowest byte of their ids, so that a column of bytes says where entries lie."""

    __slots__ = ("_is_one", "_others", "_second", "_third", "by_byte")

    def __init__(self, segment_ids: Iterable[int]) -> None:
        ids = list(segment_ids)
        #: The id of each; none if two have the same lowest byte.
        self.by_byte = {segment_id & 0xFF: segment_id for segment_id in ids}
        if len(self.by_byte) < len(ids) or max(ids, default=0) > _LARGEST_ID:
            self.by_byte = {}
        self._others = bytes(self.by_byte)
        self._is_one = bytes(low in self.by_byte for low in range(256))
        self._second = bytes(self.by_byte.get(low, 0) >> 8 & 0xFF for low in range(256))
        self._third = bytes(self.by_byte.get(low, 0) >> 16 for low in range(256))

    def hold(self, locations: array[int]) -> bytes:
        """Return for each location 1 if it lies in one of the segments, else 0."""
        count = len(locations)
        raw = (_as_number(locations) >> SEGMENT_SHIFT).to_bytes(8 * count, "little")
        first, second, third = raw[::8], raw[1::8], raw[2::8].translate(_LOW_FOUR_BITS)
        there, wanted = second + third, first.translate(self._second) + first.translate(self._third)
        if there == wanted and not first.translate(None, self._others):
            return b"\1" * count
        wrong = _xor(there, wanted).translate(_IS_ZERO)
        right = int.from_bytes(wrong[:count], "little") & int.from_bytes(wrong[count:], "little")
        return (right & int.from_bytes(first.translate(self._is_one), "little")).to_bytes(count, "little")


class Alike(NamedTuple):
    """Where entries of one size lie: columns of their segments, see `Segments.by_byte`, and of their offsets."""

    size: int
    segments: bytes
    offsets: array[int]
    locations: array[int]

    def part(self, begin: int, end: int) -> Alike:
        """Return where some of them lie."""
        part = slice(begin, end)
        return Alike(self.size, self.segments[part], self.offsets[part], self.locations[part])


def column_of(locations: list[int | None]) -> array[int] | None:
    """Return locations as a column, None if one is missing or lies in a segment beyond the millionth."""
    try:
        return array("Q", locations)  # type: ignore[arg-type]
    except (TypeError, OverflowError):
        return None


def alike(locations: array[int]) -> Alike | None:
    """Return where entries lie if all are of one size, which their locations say.

    All locations are one long integer: 0.05 µs each instead of 0.3.
    """
    count = len(locations)
    raw = _little_endian(locations[:]).tobytes()
    low, high = raw[::8], raw[1::8].translate(_LOW_FIVE_BITS)
    if not count or low != low[:1] * count or high != high[:1] * count or not low[0] | high[0]:
        return None
    number = int.from_bytes(raw, "little")
    offsets = array("Q")
    offsets.frombytes((number >> OFFSET_SHIFT & _offset_masks(count)).to_bytes(8 * count, "little"))
    first = (number >> SEGMENT_SHIFT).to_bytes(8 * count, "little")[::8]
    return Alike(low[0] | high[0] << 8, first, _little_endian(offsets), locations)


def _as_number(locations: array[int]) -> int:
    return int.from_bytes(_little_endian(locations[:]).tobytes(), "little")


def _little_endian(column: array[int]) -> array[int]:
    if sys.byteorder == "big":
        column.byteswap()
    return column


@lru_cache(maxsize=64)
def _offset_masks(count: int) -> int:
    return int.from_bytes(OFFSET_MASK.to_bytes(8, "little") * count, "little")


def copy_alike(
    piece: bytearray, size: int, keys: list[bytes], segments: bytes, seeds: dict[int, int], seed: int
) -> bytearray | None:
    """Change ``piece``, puts of one size and without expiry, to be under another seed and each a batch of its own.

    ``segments``: the number of each one's segment; ``seeds``: the seed of each segment. None if not every entry is a
    sound put of its key.

    A CRC is not computed anew: from one seed to another it changes by what the two make of as many zeros, and so it
    does for a bit that is taken out. So the copy of a damaged entry would be as damaged, and one CRC of all copies
    tells.
    """
    count, key_size = len(keys), len(keys[0])
    if len(piece) != size * count or size < OVERHEAD + key_size:
        return None
    flags = piece[::size]
    if not _are_puts(piece, size, count, key_size) or cut_keys(piece, 0, size, count) != keys:
        return None
    at, zeros = size - CRC_SIZE, ZEROS[: size - CRC_SIZE]
    becomes = checksum(zeros, seed)
    change = _columns(segments, {number: checksum(zeros, old) ^ becomes for number, old in seeds.items()})
    if CONTINUES & max(flags):
        piece[::size] = bytes((PUT,)) * count
        bit = checksum(zeros[1:], checksum(bytes((CONTINUES,)))) ^ checksum(zeros)
        change = _xor(change, _columns(flags, {PUT: 0, PUT | CONTINUES: bit}))
    crcs = bytearray(CRC_SIZE * count)
    for byte in range(CRC_SIZE):
        crcs[byte::CRC_SIZE] = piece[at + byte :: size]
    crcs[:] = _xor(crcs, change)
    for byte in range(CRC_SIZE):
        piece[at + byte :: size] = crcs[byte::CRC_SIZE]
    return piece if is_sound(piece, seed, size, count) else None


def _columns(numbers: bytes | bytearray, crcs: dict[int, int]) -> bytes:
    """Return the CRC that goes with each number, one after the other."""
    found = bytearray(CRC_SIZE * len(numbers))
    for byte in range(CRC_SIZE):
        table = bytearray(256)
        for number, crc in crcs.items():
            table[number] = crc >> 8 * byte & 0xFF
        found[byte::CRC_SIZE] = numbers.translate(table)
    return bytes(found)


def _xor(some: bytes | bytearray, others: bytes) -> bytes:
    return (int.from_bytes(some, "little") ^ int.from_bytes(others, "little")).to_bytes(len(others), "little")


def copy_run(
    raws: list[bytes], keys: list[bytes], seeds: list[int], seed: int
) -> tuple[list[bytes], dict[bytes, int]] | None:
    """Return puts under another seed, in parts to be joined, and when those that expire do; each is a batch of its own.

    None if not every entry is a sound put of its key under its own seed.
    """
    if min(map(len, raws)) < MIN_ENTRY_SIZE:
        return None
    flags, key_sizes = zip(*map(PREFIX.unpack_from, raws), strict=True)
    fixed = list(map(FIXED_SIZE.__getitem__, flags))
    if (
        {kind & KIND for kind in set(flags)} != {PUT}
        or not all(fixed)
        or [raw[at : at + size] for raw, at, size in zip(raws, fixed, key_sizes, strict=True)] != keys
        or set(map(checksum, raws, seeds)) != {RESIDUE}
    ):
        return None
    bodies = [raw[:-CRC_SIZE] for raw in raws]
    expires: dict[bytes, int] = {}
    if set(flags) != {PUT}:
        bodies = [
            bytes((kind & ~CONTINUES,)) + body[1:] if kind & CONTINUES else body
            for kind, body in zip(flags, bodies, strict=True)
        ]
        expires = {
            key: ENTRY_EXPIRES.unpack_from(raw, ENTRY_SIZE)[0]
            for kind, key, raw in zip(flags, keys, raws, strict=True)
            if kind & EXPIRES
        }
    parts = bodies * 2
    parts[::2], parts[1::2] = bodies, list(map(_pack_crc, map(checksum, bodies, repeat(seed))))
    return parts, expires


# --- reading -----------------------------------------------------------------------------------


def check_entries(window: bytes, here: int, seq: int, seed: int) -> int:
    """Return how many of the next entries are puts of one size, follow each other from ``seq`` on and pass their check.

    0 if they are few, or if something is different or wrong. `cut_entries` in half the time, for nothing is cut.
    """
    head = window[here : here + _HEAD]
    size = measure_entry(head)
    if not size or head[0] != PUT:
        return 0
    count = min(_CHECKED, (len(window) - here) // size, _CHECKED_BYTES // size)
    end = here + count * size
    if (
        count < _FEW
        or window[end - size : end - size + _HEAD] != head
        or any(window[here + byte : end : size] != head[byte : byte + 1] * count for byte in range(_HEAD))
    ):
        return 0
    seqs = _seqs(count).pack(*range(seq, seq + count))
    if any(window[here + _HEAD + byte : end : size] != seqs[byte::8] for byte in range(8)):
        return 0
    raws = _raws(size, count).unpack_from(window, here)
    return count if set(map(checksum, raws, repeat(seed))) == {RESIDUE} else 0


def cut_keys(window: bytes | bytearray, here: int, size: int, count: int) -> list[bytes]:
    """Return the keys of ``count`` puts without expiry of one size and with keys of one, which are known to be such."""
    _, key_size = PREFIX.unpack_from(window, here)
    cut = Struct(f"{ENTRY_SIZE}x{key_size}s{size - ENTRY_SIZE - key_size}x")
    return [key for (key,) in cut.iter_unpack(memoryview(window)[here : here + count * size])]


def cut_entries(
    window: bytes, here: int, size: int, key_size: int, seq: int, seed: int
) -> tuple[Any, list[bytes]] | None:
    """Return keys and raw bytes of the next entries of one size, each checked, that follow each other from ``seq`` on.

    None if they are not alike, not in turn, or if one fails its check. One call of C for each column: 0.68 µs an
    entry, its position in a hint included, instead of 0.89.
    """
    count = min(_ENTRIES, (len(window) - here) // size)
    end = here + count * size
    # A look at the last of them keeps the price down where sizes change now and then.
    if count < _FEW or window[end - size : end - size + _HEAD] != window[here : here + _HEAD]:
        return None
    heads, seqs, keys = zip(*_heads_and_keys(key_size, size).iter_unpack(memoryview(window)[here:end]), strict=True)
    if heads.count(heads[0]) != count or seqs != tuple(range(seq, seq + count)):
        return None
    raws = [window[at : at + size] for at in range(here, end, size)]
    return (keys, raws) if set(map(checksum, raws, repeat(seed))) == {RESIDUE} else None


def cut_pairs(piece: bytes, wanted: list[bytes], size: int, now_ms: Callable[[], int]) -> Pairs | None:
    """Return keys and values of puts of one size, all without expiry or all not yet due; None if something else is
    among them.

    ``wanted``: the keys that they must have, in this order, all of one length. `is_sound` checks the bytes.
    """
    count, key_size = len(wanted), len(wanted[0])
    if len(piece) != count * size:
        return None
    fixed, kinds = (EXPIRING_ENTRY_SIZE, _FIRST_MORTAL) if piece[0] & EXPIRES else (ENTRY_SIZE, _FIRST_BYTES)
    if size < fixed + key_size + CRC_SIZE or not _are_puts(piece, size, count, key_size, kinds):
        return None
    pairs: Pairs = list(_keys_and_values(fixed, key_size, size).iter_unpack(piece))
    if list(map(_first, pairs)) != wanted:
        return None
    if fixed != ENTRY_SIZE and min(_times(size).iter_unpack(piece))[0] <= now_ms():
        return None
    return pairs


def _are_puts(piece: bytes | bytearray, size: int, count: int, key_size: int, kinds: set[int] = _FIRST_BYTES) -> bool:
    """Tell whether entries of one size say that they are puts without expiry, of keys of one length."""
    return (
        kinds.issuperset(piece[::size])
        and piece[1::size] == bytes((key_size & 0xFF,)) * count
        and piece[2::size] == bytes((key_size >> 8,)) * count
    )


def is_sound(piece: bytes | bytearray, seed: int, size: int, count: int) -> bool:
    """Tell whether ``count`` entries of one size pass their checks, by one call for all of them."""
    return checksum(piece, seed) == crc_of_run(seed, size, count)


@lru_cache(maxsize=1024)
def crc_of_run(seed: int, size: int, count: int) -> int:
    """Return the CRC, from ``seed`` on, of any ``count`` sound entries of one size, whatever they hold.

    Two CRCs of the same bytes that start from different values differ by what those values make of as many zeros. A
    sound entry takes the seed to the residue; so it takes another start to the residue and that difference, and so do
    several of them together. Hence the CRC of a run follows from those of its halves.

    One damaged entry changes the CRC of the run exactly if it changes its own, because what comes after it can be
    undone. docs/decisions/0161-one-crc-for-a-run.md says what it means for several.

    Complexity: O(size · count) at the speed of the CRC, 30 µs for 1,024 entries of 143 bytes; then one look-up.
    """
    if count == 1:
        return RESIDUE
    second = min(count // 2, len(ZEROS) // size)
    zeros = memoryview(ZEROS)[: second * size]
    difference = checksum(zeros, crc_of_run(seed, size, count - second)) ^ checksum(zeros, seed)
    return crc_of_run(seed, size, second) ^ difference


@lru_cache(maxsize=256)
def _seqs(count: int) -> Struct:
    return Struct(f"<{count}Q")


@lru_cache(maxsize=64)
def _raws(size: int, count: int) -> Struct:
    return Struct(f"{size}s" * count)  # a slice for each takes six times as long


@lru_cache(maxsize=256)
def _crcs(count: int) -> Struct:
    return Struct(f"<{count}I")


@lru_cache(maxsize=256)
def _bodies(size: int) -> Struct:
    return Struct(f"{size - CRC_SIZE}s{CRC_SIZE}x")


@lru_cache(maxsize=256)
def _heads_and_keys(key_size: int, size: int) -> Struct:
    return Struct(f"<{_HEAD}sQ8x{key_size}s{size - ENTRY_SIZE - key_size}x")  # flags and lengths, seq, key


@lru_cache(maxsize=256)
def _keys_and_values(fixed: int, key_size: int, size: int) -> Struct:
    return Struct(f"{fixed}x{key_size}s{size - fixed - key_size - CRC_SIZE}s{CRC_SIZE}x")


@lru_cache(maxsize=256)
def _times(size: int) -> Struct:
    return Struct(f"<{ENTRY_SIZE}xQ{size - ENTRY_SIZE - 8}x")
