"""The manifest and the segment header: which segments make up a store, and which store a segment is of. No I/O.

Numbers in this module are frozen: changing one is a new format version.
"""

from __future__ import annotations

from struct import Struct

from ..._lean import TYPE_CHECKING, NamedTuple
from ...errors import CorruptionError
from .checksum import CRC, CRC_SIZE, FORMAT_VERSION, check_file, check_version, checksum

if TYPE_CHECKING:
    from typing import Final

# --- limits ------------------------------------------------------------------------------------

MAX_SEGMENTS: Final = 1 << 20  # rows a manifest may list; bounds what a hostile one can ask for
MAX_SEGMENT_SIZE: Final = (1 << 31) - 1  # an offset has 31 bits in a location
MAX_NUMBER: Final = (1 << 63) - 1  # of seqs, segment ids, generations: no store gets that far, but a forged one may
MAX_SEQ_TO_BEGIN_AFTER: Final = MAX_NUMBER - MAX_SEGMENT_SIZE  # so that no entry of a segment goes beyond it

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
    return body + CRC.pack(checksum(body))


def decode_segment_header(data: bytes, path: str, *, for_writing: bool = False) -> SegmentHeader:
    """Decode a segment header; raise ``CorruptionError`` or ``UnsupportedFormatError``."""
    data = data[:SEGMENT_HEADER_SIZE]
    check_file("segment header", data, SEGMENT_MAGIC, SEGMENT_HEADER_SIZE, path)
    _, version, kind, _, readonly, incompatible, uuid, segment_id, salt, previous_id, previous_seq, _ = (
        SEGMENT_HEADER.unpack_from(data)
    )
    check_version("segment", version, readonly, incompatible, path, for_writing=for_writing)
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
    return body + CRC.pack(checksum(body))


def decode_manifest(data: bytes, path: str, *, for_writing: bool = False) -> Manifest:
    """Decode a manifest; raise ``CorruptionError`` or ``UnsupportedFormatError``."""
    check_file("manifest", data, MANIFEST_MAGIC, MANIFEST_HEADER.size + CRC_SIZE, path)
    _, version, _, flags, readonly, incompatible, uuid, next_id, last_seq, generation, count = (
        MANIFEST_HEADER.unpack_from(data)
    )
    check_version("manifest", version, readonly, incompatible, path, for_writing=for_writing)
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
