"""Store files as an attacker would write them: any value in any field, and CRCs that fit all the same.

Knows the layouts of `bytekv.engine.codec` and nothing of who reads the files.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from bytekv.engine.codec.checksum import CRC, FORMAT_VERSION, checksum, seed_of
from bytekv.engine.codec.entry import ENTRY, PUT
from bytekv.engine.codec.hint import HINT_HEADER
from bytekv.engine.codec.manifest import (
    LOG,
    MANIFEST_HEADER,
    MANIFEST_MAGIC,
    MANIFEST_ROW,
    OUTPUT,
    SEALED,
    SEGMENT_HEADER,
    SEGMENT_HEADER_SIZE,
    SegmentHeader,
    encode_segment_header,
)
from bytekv.engine.log.scan import Scan

UUID = bytes(range(16))


class Field(NamedTuple):
    """An integer within a file."""

    name: str
    offset: int
    size: int

    def set(self, raw: bytes, value: int) -> bytes:
        return raw[: self.offset] + value.to_bytes(self.size, "little") + raw[self.offset + self.size :]

    def get(self, raw: bytes) -> int:
        return int.from_bytes(raw[self.offset : self.offset + self.size], "little")


def fields_of(layout: struct.Struct, names: str, base: int = 0) -> list[Field]:
    """Return the integers of a layout; ``names`` stand for all of its fields, "-" for one that is left out."""
    found, offset = [], base
    for (count, code), name in zip(re.findall(r"(\d*)([a-zA-Z])", layout.format), names.split(), strict=True):
        size = struct.calcsize(f"<{count}{code}")
        if name != "-":
            found.append(Field(name, offset, size))
        offset += size
    return found


MANIFEST_FIELDS = fields_of(
    MANIFEST_HEADER, "- version reserved compat readonly incompat - next_id last_seq generation rows"
)
SEGMENT_FIELDS = fields_of(
    SEGMENT_HEADER, "- version kind compat readonly incompat - segment_id salt previous_id previous_seq reserved"
)
HINT_FIELDS = fields_of(
    HINT_HEADER,
    "- version flags key_size - segment_id salt length last_seq live tombstone_bytes puts expiring tombstones",
)


def row_fields(number: int) -> list[Field]:
    names = " ".join(f"{name}_of_row_{number}" for name in ("id", "salt", "length", "last_seq", "state"))
    return fields_of(MANIFEST_ROW, names, MANIFEST_HEADER.size + number * MANIFEST_ROW.size)


def entry_fields(offset: int) -> list[Field]:
    return fields_of(ENTRY, f"flags_at_{offset} key_size value_size seq modified", offset)


def values_for(size: int, now: int) -> list[int]:
    """Return what is worth trying in a field of so many bytes that holds ``now``."""
    limits = [0, 1, 80, 1 << 16, (1 << 30) + 1, (1 << 31) - 1, 1 << 31, (1 << 63) - 1, 1 << 63]
    top = (1 << 8 * size) - 1
    wanted = [now - 1, now + 1, top, top - 1, *limits]
    return sorted({value for value in wanted if 0 <= value <= top and value != now})


# --- CRCs that fit -----------------------------------------------------------------------------


def with_crc(raw: bytes) -> bytes:
    """Return a manifest or a hint with the CRC of what it says now."""
    return raw[:-4] + CRC.pack(checksum(raw[:-4]))


def with_header_crc(raw: bytes) -> bytes:
    """Return a segment with the CRC of what its header says now."""
    return with_crc(raw[:SEGMENT_HEADER_SIZE]) + raw[SEGMENT_HEADER_SIZE:]


def with_entry_crc(raw: bytes, offset: int, size: int) -> bytes:
    """Return a segment with the CRC of what an entry of this size says now."""
    end = offset + size - 4
    crc = CRC.pack(checksum(raw[offset:end], _seed(raw)))
    return raw[:end] + crc + raw[end + 4 :]


def _seed(segment: bytes) -> int:
    return seed_of(int.from_bytes(segment[48:56], "little"))


def places_of(segment: bytes) -> Iterator[tuple[int, int]]:
    """Yield offset and size of each entry of a segment."""
    scan = Scan(lambda size, at: segment[at : at + size], SEGMENT_HEADER_SIZE, len(segment), _seed(segment), None)
    for *_, offset, raw in scan:
        yield offset, len(raw)


# --- whole stores ------------------------------------------------------------------------------


class Entry(NamedTuple):
    seq: int
    key: bytes = b"key"
    value: bytes = b"value"
    flags: int = PUT
    expires_ms: int | None = None


class Segment(NamedTuple):
    """A segment with its row, of which everything may be a lie."""

    segment_id: int
    entries: tuple[Entry, ...] = ()
    kind: int = LOG
    previous: tuple[int, int] = (0, 0)
    last_seq: int | None = None
    state: int = SEALED
    salt: int = 7
    uuid: bytes = UUID
    length: int | None = None  # as the row says it
    file_length: int | None = None

    def encode(self) -> bytes:
        header = SegmentHeader(self.uuid, self.segment_id, self.salt, self.kind, *self.previous)
        parts = [encode_segment_header(header)]
        for seq, key, value, flags, expires_ms in self.entries:
            body = ENTRY.pack(flags, len(key), len(value), seq, 0)
            body += b"" if expires_ms is None else struct.pack("<Q", expires_ms)
            body += key + value
            parts += [body, CRC.pack(checksum(body, seed_of(self.salt)))]
        return b"".join(parts)


def manifest(
    segments: Iterable[Segment], *, next_id: int | None = None, last_seq: int | None = None, uuid: bytes = UUID
) -> bytes:
    rows = []
    for segment in segments:
        seqs = [entry.seq for entry in segment.entries]
        last = segment.last_seq if segment.last_seq is not None else max(seqs, default=segment.previous[1])
        length = segment.length if segment.length is not None else len(segment.encode())
        rows.append((segment.segment_id, segment.salt, length, last, segment.state))
    top = (1 << 64) - 1
    body = MANIFEST_HEADER.pack(
        *(MANIFEST_MAGIC, FORMAT_VERSION, 0, 0, 0, 0, uuid),
        min(top, max((row[0] for row in rows), default=0) + 1) if next_id is None else next_id,
        max((row[3] for row in rows), default=0) if last_seq is None else last_seq,
        1,
        len(rows),
    ) + b"".join(MANIFEST_ROW.pack(*row) for row in rows)
    return body + CRC.pack(checksum(body))


def write_store(path: Path, segments: Iterable[Segment], **lies: int) -> None:
    """Make the directory of a store; what lay there goes first."""
    segments = list(segments)
    path.mkdir(mode=0o700, exist_ok=True)
    for segment in segments:
        with open(path / f"{segment.segment_id:010d}.seg", "wb") as file:
            file.write(segment.encode())
            if segment.file_length is not None:
                file.truncate(segment.file_length)
    (path / "MANIFEST").write_bytes(manifest(segments, **lies))


__all__ = [
    "HINT_FIELDS",
    "MANIFEST_FIELDS",
    "OUTPUT",
    "SEGMENT_FIELDS",
    "Entry",
    "Field",
    "Segment",
    "entry_fields",
    "manifest",
    "places_of",
    "row_fields",
    "values_for",
    "with_crc",
    "with_entry_crc",
    "with_header_crc",
    "write_store",
]
