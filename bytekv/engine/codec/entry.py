"""The entry codec: what each byte of an entry means, how it is packed, how it is checked. No I/O.

All integers are little-endian and of fixed width. ``docs/reference/file-format.md`` describes the
same bytes for people who write a reader in another language; a test compares its tables with the
structs of this folder. Their numbers are frozen: changing one is a new format version.

An entry::

    flags u8 | key length u16 | value length u32 | seq u64 | modified ms u64 | [expires ms u64] | key | value | crc u32

The CRC32C covers everything before it and starts from the segment's *seed*, itself the CRC32C of the
segment's random salt. So neither zeros nor an entry of another segment ever validates. A message
followed by its own little-endian CRC has a constant CRC (the residue), whatever the seed: a whole
entry is checked by one call and one comparison.
"""

from __future__ import annotations

from struct import Struct

from ..._lean import TYPE_CHECKING, NamedTuple
from ...contract.convert import MAX_VALUE_SIZE
from ...errors import CorruptionError
from .checksum import CRC, CRC_SIZE, RESIDUE, checksum

if TYPE_CHECKING:
    from typing import Final

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
PREFIX: Final = Struct("<BH")  # flags and key length, for the check at every read

ENTRY_SIZE: Final = ENTRY.size  # 1 + 2 + 4 + 8 + 8 = 23
SEQ_OFFSET: Final = 7  # in an entry
EXPIRING_ENTRY_SIZE: Final = ENTRY_SIZE + ENTRY_EXPIRES.size  # 23 + 8 = 31
OVERHEAD: Final = ENTRY_SIZE + CRC_SIZE  # 27 bytes beside key and value; 35 with an expiry
MIN_ENTRY_SIZE: Final = OVERHEAD

#: Which first bytes are legal, indexed by the byte: the size of the fixed part, 0 for illegal.
FIXED_SIZE: Final = bytes(
    EXPIRING_ENTRY_SIZE
    if flags & ~CONTINUES == PUT | EXPIRES
    else ENTRY_SIZE
    if flags & ~CONTINUES in (PUT, TOMBSTONE, CLEAR) or flags == SYNC_MARK
    else 0
    for flags in range(256)
)


class StoredEntry(NamedTuple):
    """One entry as written, decoded and checked."""

    flags: int
    key: bytes
    value: bytes
    seq: int
    modified_ms: int
    expires_ms: int  # 0: never


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
    return [head, value, CRC.pack(checksum(value, checksum(head, seed)))]


def decode_entry(raw: bytes, seed: int, path: str, offset: int) -> StoredEntry:
    """Decode one whole entry; raise ``CorruptionError`` naming ``path`` and ``offset`` if a check fails."""
    if len(raw) < MIN_ENTRY_SIZE:
        raise CorruptionError(path, offset, f"entry cut short at {len(raw)} bytes")
    if checksum(raw, seed) != RESIDUE:
        raise CorruptionError(path, offset, "entry fails its CRC32C")
    flags, key_size, value_size, seq, modified_ms = ENTRY.unpack_from(raw)
    fixed = FIXED_SIZE[flags]
    if not fixed or fixed + key_size + value_size + CRC_SIZE != len(raw):
        raise CorruptionError(path, offset, f"entry has flags {flags:#04x} and lengths that do not fit")
    expires_ms = ENTRY_EXPIRES.unpack_from(raw, ENTRY_SIZE)[0] if flags & EXPIRES else 0
    end = fixed + key_size
    return StoredEntry(flags, raw[fixed:end], raw[end:-CRC_SIZE], seq, modified_ms, expires_ms)


class Head(NamedTuple):
    """What an entry says before its value; nothing of it is checked by a CRC."""

    flags: int
    key: bytes
    value_size: int
    seq: int
    modified_ms: int
    expires_ms: int  # 0: never

    @property
    def size(self) -> int:
        """Return the bytes that the whole entry takes."""
        return entry_size(len(self.key), self.value_size, self.expires_ms)


def decode_head(head: bytes) -> Head | None:
    """Decode the fixed part and the key of an entry, None if that is no such thing."""
    if len(head) < ENTRY_SIZE or not FIXED_SIZE[head[0]]:
        return None
    flags, key_size, value_size, seq, modified_ms = ENTRY.unpack_from(head)
    fixed = FIXED_SIZE[flags]
    if len(head) < fixed + key_size:
        return None
    expires_ms = ENTRY_EXPIRES.unpack_from(head, ENTRY_SIZE)[0] if flags & EXPIRES else 0
    return Head(flags, head[fixed : fixed + key_size], value_size, seq, modified_ms, expires_ms)


def measure_entry(head: bytes) -> int:
    """Return the size of the entry that begins with ``head`` (at least 7 bytes), 0 if it is no entry."""
    if len(head) < 7 or not FIXED_SIZE[head[0]]:
        return 0
    key_size = int.from_bytes(head[1:3], "little")
    value_size = int.from_bytes(head[3:7], "little")
    if value_size > MAX_VALUE_SIZE:
        return 0
    return FIXED_SIZE[head[0]] + key_size + value_size + CRC_SIZE


ZEROS: Final = bytes(1 << 20)


def is_zero(piece: bytes) -> bool:
    """Tell whether there is nothing but zeros in at most 1 MiB; at memory speed, forty times that of `bytes.strip`."""
    return piece == ZEROS[: len(piece)]


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


def pack_position(offset: int, size: int) -> int:
    """Return the part of a location that says where within its segment."""
    return offset << OFFSET_SHIFT | (size if size <= SIZE_MASK else 0)


def unpack_location(location: int) -> tuple[int, int, int]:
    """Return segment id, offset and size; the size is 0 for an entry of more than 8,191 bytes."""
    return location >> SEGMENT_SHIFT, location >> OFFSET_SHIFT & OFFSET_MASK, location & SIZE_MASK
