"""Every byte that bytekv writes: what it means, how it is packed, how it is checked. No I/O.

All integers are little-endian and of fixed width. ``docs/reference/file-format.md`` describes the
same bytes for people who write a reader in another language; a test compares its tables with the
structs below. Numbers in this module are frozen: changing one is a new format version.

An entry::

    flags u8 | key length u16 | value length u32 | seq u64 | modified ms u64 | [expires ms u64] | key | value | crc u32

The CRC32C covers everything before it and starts from the segment's *seed*, itself the CRC32C of the
segment's random salt. So neither zeros nor an entry of another segment ever validates. A message
followed by its own little-endian CRC has a constant CRC (the residue), whatever the seed: a whole
entry is checked by one call and one comparison.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain, pairwise
from struct import Struct

from ..._lean import NamedTuple
from ...contract.convert import MAX_KEY_SIZE, MAX_VALUE_SIZE
from ...errors import CorruptionError, UnsupportedFormatError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final, TypeVar

    T = TypeVar("T")

    from crc32c import crc32c
else:

    def _load_crc32c():
        """Return `crc32c.crc32c` without what its package imports besides, a command line and importlib.metadata.

        Measured: 35 ms against 0.4. Where the extension module is not a file of its own (zipped, frozen, another
        layout), the package is imported.
        """
        if "crc32c" not in sys.modules:
            for finder in sys.meta_path:  # as an import does; importlib's own functions would be two modules more
                package = finder.find_spec("crc32c", None) if hasattr(finder, "find_spec") else None
                if package is None:
                    continue
                spec = finder.find_spec("crc32c._crc32c", package.submodule_search_locations)
                if spec is not None and type(spec.loader).__name__ == "ExtensionFileLoader":
                    module = spec.loader.create_module(spec)
                    spec.loader.exec_module(module)
                    return module.crc32c
                break
        from crc32c import crc32c

        return crc32c

    crc32c = _load_crc32c()

checksum = crc32c  # for the modules that check bytes in their hot loops

# --- limits ------------------------------------------------------------------------------------

FORMAT_VERSION: Final = 1
MAX_SEGMENTS: Final = 1 << 20  # rows a manifest may list; bounds what a hostile one can ask for
MAX_SEGMENT_SIZE: Final = (1 << 31) - 1  # an offset has 31 bits in a location
MAX_NUMBER: Final = (1 << 63) - 1  # of seqs, segment ids, generations: no store gets that far, but a forged one may
MAX_SEQ_TO_BEGIN_AFTER: Final = MAX_NUMBER - MAX_SEGMENT_SIZE  # so that no entry of a segment goes beyond it

# --- entries -----------------------------------------------------------------------------------

# The low four bits of the first byte say what the entry is; never 0, so that zeros are no entry.
KIND: Final = 0x0F
PUT: Final = 1
TOMBSTONE: Final = 2
SYNC_MARK: Final = 3  # not an operation: "everything up to my seq was durable when I was written"
CLEAR: Final = 4  # a tombstone for every key
EXPIRES: Final = 0x10  # on a put: an expiry time follows the fixed part
CONTINUES: Final = 0x20  # the next entry belongs to the same batch

ENTRY: Final = Struct("<BHIQQ")
ENTRY_EXPIRES: Final = Struct("<Q")
CRC: Final = Struct("<I")
PREFIX: Final = Struct("<BH")  # flags and key length, for the check at every read

ENTRY_SIZE: Final = ENTRY.size  # 1 + 2 + 4 + 8 + 8 = 23
EXPIRING_ENTRY_SIZE: Final = ENTRY_SIZE + ENTRY_EXPIRES.size  # 23 + 8 = 31
CRC_SIZE: Final = CRC.size
OVERHEAD: Final = ENTRY_SIZE + CRC_SIZE  # 27 bytes beside key and value; 35 with an expiry
MIN_ENTRY_SIZE: Final = OVERHEAD
RESIDUE: Final = 0x48674BC7

#: Which first bytes are legal, indexed by the byte: the size of the fixed part, 0 for illegal.
FIXED_SIZE: Final = bytes(
    EXPIRING_ENTRY_SIZE
    if flags & ~CONTINUES == PUT | EXPIRES
    else ENTRY_SIZE
    if flags & ~CONTINUES in (PUT, TOMBSTONE, CLEAR) or flags == SYNC_MARK
    else 0
    for flags in range(256)
)


class Entry(NamedTuple):
    """One entry as written, decoded and checked."""

    flags: int
    key: bytes
    value: bytes
    seq: int
    modified_ms: int
    expires_ms: int  # 0: never


def seed_of(salt: int) -> int:
    """Return the CRC's initial value for a segment with this salt."""
    return crc32c(salt.to_bytes(8, "little"))


def entry_size(key_size: int, value_size: int, expires_ms: int = 0) -> int:
    """Return the bytes that an entry takes on disk."""
    return (EXPIRING_ENTRY_SIZE if expires_ms else ENTRY_SIZE) + key_size + value_size + CRC_SIZE


def encode_entry(
    flags: int, key: bytes, value: bytes, seq: int, modified_ms: int, expires_ms: int, seed: int
) -> list[bytes]:
    """Encode one entry as parts to be written one after the other; a large value is not copied."""
    if expires_ms:
        head = ENTRY.pack(flags | EXPIRES, len(key), len(value), seq, modified_ms) + ENTRY_EXPIRES.pack(expires_ms)
    else:
        head = ENTRY.pack(flags, len(key), len(value), seq, modified_ms)
    head += key
    return [head, value, CRC.pack(crc32c(value, crc32c(head, seed)))]


def decode_entry(raw: bytes, seed: int, path: str, offset: int) -> Entry:
    """Decode one whole entry; raise ``CorruptionError`` naming ``path`` and ``offset`` if a check fails."""
    if len(raw) < MIN_ENTRY_SIZE:
        raise CorruptionError(path, offset, f"entry cut short at {len(raw)} bytes")
    if crc32c(raw, seed) != RESIDUE:
        raise CorruptionError(path, offset, "entry fails its CRC32C")
    flags, key_size, value_size, seq, modified_ms = ENTRY.unpack_from(raw)
    fixed = FIXED_SIZE[flags]
    if not fixed or fixed + key_size + value_size + CRC_SIZE != len(raw):
        raise CorruptionError(path, offset, f"entry has flags {flags:#04x} and lengths that do not fit")
    expires_ms = ENTRY_EXPIRES.unpack_from(raw, ENTRY_SIZE)[0] if flags & EXPIRES else 0
    end = fixed + key_size
    return Entry(flags, raw[fixed:end], raw[end:-CRC_SIZE], seq, modified_ms, expires_ms)


def measure_entry(head: bytes) -> int:
    """Return the size of the entry that begins with ``head`` (at least 7 bytes), 0 if it is no entry."""
    if len(head) < 7 or not FIXED_SIZE[head[0]]:
        return 0
    key_size = int.from_bytes(head[1:3], "little")
    value_size = int.from_bytes(head[3:7], "little")
    if value_size > MAX_VALUE_SIZE:
        return 0
    return FIXED_SIZE[head[0]] + key_size + value_size + CRC_SIZE


_ZEROS: Final = bytes(1 << 20)


def is_zero(piece: bytes) -> bool:
    """Tell whether there is nothing but zeros in at most 1 MiB; at memory speed, forty times that of `bytes.strip`."""
    return piece == _ZEROS[: len(piece)]


# What a sync mark begins with; the search for marks after damage looks for it.
SYNC_MARK_HEAD: Final = ENTRY.pack(SYNC_MARK, 0, 0, 0, 0)[:7]

# --- locations ---------------------------------------------------------------------------------
# In memory only. A location is one int: segment id | offset (31 bits) | size (13 bits). With up to
# 65,535 segments it fits 60 bits, two digits of a Python int, 32 bytes of heap instead of 48 (or
# more than 120 for a tuple). An entry of 8 KiB or more has size 0 here: its header knows the size,
# and looking there costs nothing beside reading such a value.

SEGMENT_SHIFT: Final = 44
OFFSET_SHIFT: Final = 13
OFFSET_MASK: Final = (1 << 31) - 1
SIZE_MASK: Final = (1 << 13) - 1


def pack_place(offset: int, size: int) -> int:
    """Return the part of a location that says where within its segment."""
    return offset << OFFSET_SHIFT | (size if size <= SIZE_MASK else 0)


def unpack_location(location: int) -> tuple[int, int, int]:
    """Return segment id, offset and size; the size is 0 for an entry of more than 8,191 bytes."""
    return location >> SEGMENT_SHIFT, location >> OFFSET_SHIFT & OFFSET_MASK, location & SIZE_MASK


# --- files: what they have in common -----------------------------------------------------------


def _check_file(what: str, data: bytes, magic: bytes, minimum: int, path: str) -> None:
    if data[: len(magic)] != magic:
        raise CorruptionError(path, 0, f"not a bytekv {what} (magic bytes missing)")
    if len(data) < minimum:
        raise CorruptionError(path, len(data), f"{what} cut short at {len(data)} bytes")
    if crc32c(data) != RESIDUE:
        raise CorruptionError(path, 0, f"{what} fails its CRC32C")


def _check_version(what: str, version: int, readonly: int, incompatible: int, path: str, *, for_writing: bool) -> None:
    """Refuse what this version cannot read, or may read but not write.

    Flag words as in ext4: an unknown *compatible* flag may be ignored, an unknown *read-only
    compatible* one forbids writing, an unknown *incompatible* one forbids reading.
    """
    if version != FORMAT_VERSION:
        raise UnsupportedFormatError(
            f"{path}: {what} has format version {version}, this bytekv knows {FORMAT_VERSION}; use a newer bytekv"
        )
    if incompatible:
        raise UnsupportedFormatError(f"{path}: {what} needs unknown features {incompatible:#x}; use a newer bytekv")
    if readonly and for_writing:
        raise UnsupportedFormatError(f"{path}: {what} has unknown features {readonly:#x}; open it with flag 'r'")


# --- the segment header ------------------------------------------------------------------------

SEGMENT_MAGIC: Final = b"BKVSEG\r\n"  # the line ending shows a transfer in text mode, as in PNG
SEGMENT_HEADER: Final = Struct("<8sHHIII16sQQQQI")
SEGMENT_HEADER_SIZE: Final = SEGMENT_HEADER.size + CRC_SIZE  # 8+2+2+4+4+4+16+8+8+8+8+4 = 76, + 4 = 80
LOG: Final = 0  # written by appending: seqs are contiguous
OUTPUT: Final = 1  # written by a compaction: at most one entry of a key, seqs in any order


class SegmentHeader(NamedTuple):
    """The first 80 bytes of a segment."""

    store_uuid: bytes
    segment_id: int
    salt: int
    kind: int
    previous_id: int  # the segment before this one in logical order when it was begun, 0: none
    previous_seq: int  # every operation up to this seq lies before this segment


def encode_segment_header(header: SegmentHeader) -> bytes:
    """Encode a segment header with its CRC."""
    body = SEGMENT_HEADER.pack(
        SEGMENT_MAGIC,
        FORMAT_VERSION,
        header.kind,
        0,
        0,
        0,
        header.store_uuid,
        header.segment_id,
        header.salt,
        header.previous_id,
        header.previous_seq,
        0,
    )
    return body + CRC.pack(crc32c(body))


def decode_segment_header(data: bytes, path: str, *, for_writing: bool = False) -> SegmentHeader:
    """Decode a segment header; raise ``CorruptionError`` or ``UnsupportedFormatError``."""
    data = data[:SEGMENT_HEADER_SIZE]
    _check_file("segment header", data, SEGMENT_MAGIC, SEGMENT_HEADER_SIZE, path)
    _, version, kind, _, readonly, incompatible, uuid, segment_id, salt, previous_id, previous_seq, _ = (
        SEGMENT_HEADER.unpack_from(data)
    )
    _check_version("segment", version, readonly, incompatible, path, for_writing=for_writing)
    if kind not in (LOG, OUTPUT) or previous_seq > MAX_SEQ_TO_BEGIN_AFTER:
        raise CorruptionError(path, 0, f"segment of kind {kind} that begins after seq {previous_seq}")
    return SegmentHeader(uuid, segment_id, salt, kind, previous_id, previous_seq)


def read_damaged_segment_header(data: bytes, segment_id: int) -> SegmentHeader:
    """Return what 80 bytes that are no sound header say, for what it is worth; the id is that of the file's name."""
    _, _, kind, _, _, _, uuid, _, salt, previous_id, previous_seq, _ = SEGMENT_HEADER.unpack_from(data)
    return SegmentHeader(uuid, segment_id, salt, kind, previous_id, previous_seq)


# --- the manifest ------------------------------------------------------------------------------

MANIFEST_MAGIC: Final = b"BKVMAN\r\n"
MANIFEST_HEADER: Final = Struct("<8sHHIII16sQQQI")  # 8+2+2+4+4+4+16+8+8+8+4 = 68
MANIFEST_ROW: Final = Struct("<QQQQI")  # 8+8+8+8+4 = 36
SEALED: Final = 0
ACTIVE: Final = 1
BACKUP: Final = 1  # a compatible flag: made by a backup, and not written to since
HISTORY_SHIFT: Final = 8  # the compatible flags above are the number of a history; see `another_history`
HISTORY: Final = 0xFFFFFF << HISTORY_SHIFT


class SegmentRow(NamedTuple):
    """What the manifest says of one segment."""

    segment_id: int
    salt: int
    length: int  # sealed: its exact length; active: the length that was durable at the last clean close
    last_seq: int  # every operation up to this one lies in this segment or before it
    state: int


class Manifest(NamedTuple):
    """Which segments make up the store, oldest first. The only truth about that."""

    store_uuid: bytes
    next_id: int
    last_seq: int  # at least; the active segment may hold more
    generation: int = 0  # +1 at each replacement
    segments: tuple[SegmentRow, ...] = ()
    compat_flags: int = 0


def encode_manifest(manifest: Manifest) -> bytes:
    """Encode a manifest with its CRC."""
    body = MANIFEST_HEADER.pack(
        MANIFEST_MAGIC,
        FORMAT_VERSION,
        0,
        manifest.compat_flags,
        0,
        0,
        manifest.store_uuid,
        manifest.next_id,
        manifest.last_seq,
        min(manifest.generation, MAX_NUMBER),
        len(manifest.segments),
    ) + b"".join(MANIFEST_ROW.pack(*row) for row in manifest.segments)
    return body + CRC.pack(crc32c(body))


def decode_manifest(data: bytes, path: str, *, for_writing: bool = False) -> Manifest:
    """Decode a manifest; raise ``CorruptionError`` or ``UnsupportedFormatError``."""
    _check_file("manifest", data, MANIFEST_MAGIC, MANIFEST_HEADER.size + CRC_SIZE, path)
    _, version, _, flags, readonly, incompatible, uuid, next_id, last_seq, generation, count = (
        MANIFEST_HEADER.unpack_from(data)
    )
    _check_version("manifest", version, readonly, incompatible, path, for_writing=for_writing)
    if len(data) != MANIFEST_HEADER.size + count * MANIFEST_ROW.size + CRC_SIZE:
        raise CorruptionError(path, len(data), f"manifest lists {count} segments but has {len(data)} bytes")
    rows = tuple(
        SegmentRow(*row) for row in MANIFEST_ROW.iter_unpack(data[MANIFEST_HEADER.size : len(data) - CRC_SIZE])
    )
    ids = {row.segment_id for row in rows}
    seqs = [row.last_seq for row in rows]
    if (
        len(ids) != len(rows)
        or len(rows) > MAX_SEGMENTS
        or any(not 0 < row.segment_id < next_id or row.state not in (SEALED, ACTIVE) for row in rows)
        or any(not SEGMENT_HEADER_SIZE <= row.length <= MAX_SEGMENT_SIZE for row in rows)
        or any(row.state == ACTIVE for row in rows[:-1])
        or seqs != sorted(seqs)
        or max(next_id, last_seq, generation, *seqs[-1:]) > MAX_NUMBER
    ):
        raise CorruptionError(path, MANIFEST_HEADER.size, "manifest rows contradict each other")
    return Manifest(uuid, next_id, last_seq, generation, rows, flags & (BACKUP | HISTORY))


def another_history(flags: int, random: bytes) -> int:
    """Return compatible flags with another number, where what follows is no continuation of what a reader has seen.

    Its 24 bits are few and enough: a number only has to differ from that of another history in the same directory.
    """
    return flags ^ (1 + int.from_bytes(random, "little") % 0xFFFFFF) << HISTORY_SHIFT


# --- the hint file -----------------------------------------------------------------------------

HINT_MAGIC: Final = b"BKVHNT\r\n"
# magic, version, flags, key size if all are equal else 0xFFFFFFFF, uuid, segment id, salt, length,
# last seq, live bytes, tombstone bytes, puts, expiring puts, tombstones
HINT_HEADER: Final = Struct("<8sHHI16sQQQQQQIII")  # 8+2+2+4+16+8*6+4*3 = 92
HINT_CLEARS: Final = 1
_MIXED: Final = 0xFFFFFFFF
_LOW_HALVES: Final = bytes(range(16))  # what a byte may be whose upper four bits lie beyond a place


class Summary(NamedTuple):
    """What opening needs to know of one segment: the newest entry of each key in it.

    Comes from a scan of the segment or from its hint file; both say the same. Keys that only a
    compaction or a tombstone concerns are kept apart, so that the rest is loaded in bulk.
    """

    length: int  # the bytes of the segment that this speaks of
    last_seq: int
    clears: bool  # a CLEAR came first: nothing of older segments remains
    keys: Sequence[bytes]
    places: Sequence[int]  # pack_place() of each key's put
    tombstones: Sequence[bytes]
    expires: dict[bytes, int]  # ms, of those keys that expire
    live_bytes: int
    tombstone_bytes: int


def _little_endian(column: array[int]) -> array[int]:
    if sys.byteorder == "big":
        column.byteswap()
    return column


_HINT_PIECE: Final = 4096  # entries; encoding so many takes less than a millisecond


class Pieces(Sequence[Any] if TYPE_CHECKING else object):  # type: ignore[misc]
    """A column that came in pieces, to be encoded: nobody asks it for an item."""

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


def encode_hint(summary: Summary, header: SegmentHeader) -> Iterator[bytes]:
    """Encode a hint file for the segment with this header, in pieces that take less than a millisecond."""
    crc = 0
    for piece in _hint_columns(summary, header):
        crc = crc32c(piece, crc)
        yield piece
    yield CRC.pack(crc)


def _hint_columns(summary: Summary, header: SegmentHeader) -> Iterator[bytes]:
    sizes: set[int] = set()
    for some in _slices(summary.keys):
        sizes.update(map(len, some))
        if len(sizes) > 1:
            break
        yield b""
    put_size = sizes.pop() if len(sizes) == 1 else _MIXED
    order: dict[bytes, int] = {}
    if summary.expires:
        for some in _slices(summary.keys):
            order.update(zip(some, range(len(order), len(order) + len(some)), strict=True))
            yield b""
    expiring, expires_ms = list(summary.expires), list(summary.expires.values())
    yield HINT_HEADER.pack(
        HINT_MAGIC,
        FORMAT_VERSION,
        HINT_CLEARS if summary.clears else 0,
        put_size,
        header.store_uuid,
        header.segment_id,
        header.salt,
        summary.length,
        summary.last_seq,
        summary.live_bytes,
        summary.tombstone_bytes,
        len(summary.keys),
        len(summary.expires),
        len(summary.tombstones),
    )
    yield from (_little_endian(array("Q", some)).tobytes() for some in _slices(summary.places))
    yield from (_little_endian(array("I", map(order.__getitem__, some))).tobytes() for some in _slices(expiring))
    yield from (_little_endian(array("Q", some)).tobytes() for some in _slices(expires_ms))
    yield from (_little_endian(array("H", map(len, some))).tobytes() for some in _slices(summary.tombstones))
    yield from map(b"".join, _slices(summary.tombstones))
    if put_size == _MIXED:
        yield from (_little_endian(array("H", map(len, some))).tobytes() for some in _slices(summary.keys))
    yield from map(b"".join, _slices(summary.keys))


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

    def places(self, count: int) -> array[int]:
        """Take a column of `pack_place`; more than its 44 bits would name another segment."""
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


def decode_hint(data: bytes, header: SegmentHeader, path: str) -> Summary:
    """Decode a hint file and check that it belongs to the segment with this header.

    Raises ``CorruptionError`` or ``UnsupportedFormatError`` for whatever is wrong; the caller then
    scans the segment instead.
    """
    _check_file("hint", data, HINT_MAGIC, HINT_HEADER.size + CRC_SIZE, path)
    (_, version, flags, put_size, uuid, segment_id, salt, length, last_seq, live, dead, puts, expiring, tombstones) = (
        HINT_HEADER.unpack_from(data)
    )
    _check_version("hint", version, 0, flags & ~HINT_CLEARS, path, for_writing=False)
    if (uuid, segment_id, salt) != (header.store_uuid, header.segment_id, header.salt):
        raise CorruptionError(path, 0, "hint belongs to another segment")
    columns = _Columns(data, HINT_HEADER.size, path)
    places = columns.places(puts)
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
    return Summary(
        length,
        last_seq,
        bool(flags & HINT_CLEARS),
        keys,
        places,
        gone,
        {keys[at]: when for at, when in zip(expiring_at, expires_ms, strict=True)},
        live,
        dead,
    )
