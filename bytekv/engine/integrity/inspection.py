"""Inspection: what lies in the bytes of one segment file, whatever they are, for a person to see.

Unlike a scan this goes on after damage and takes nothing for granted: not the header, not a length, not that the
file was written by bytekv. It knows the format from `codec` and reads no other file. Without the manifest it cannot say
whether a segment is sealed, so what is missing at the end is called a tail and not damage.

A hostile file costs time in proportion to its size, and memory for one entry that fits into it: lengths are compared
with what is there before anything is read, checksums are computed piece by piece, and the search after damage,
which a file could make try a long stretch at every byte, has a budget.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..._lean import TYPE_CHECKING, NamedTuple
from ...contract.convert import MAX_VALUE_SIZE
from ...errors import BytekvError
from ..codec.checksum import CRC_SIZE, FORMAT_VERSION, RESIDUE, checksum, seed_of
from ..codec.entry import (
    CLEAR,
    CONTINUES,
    ENTRY,
    ENTRY_EXPIRES,
    ENTRY_SIZE,
    EXPIRES,
    FIXED_SIZE,
    KIND,
    MIN_ENTRY_SIZE,
    PUT,
    SYNC_MARK,
    TOMBSTONE,
)
from ..codec.manifest import LOG, SEGMENT_HEADER, SEGMENT_HEADER_SIZE, SEGMENT_MAGIC, decode_segment_header
from ..log.files import Files
from ..log.resync import Resync

if TYPE_CHECKING:
    from typing import Final

__all__ = ["Found", "Header", "Inspection"]

_KINDS: Final = {PUT: "put", TOMBSTONE: "delete", CLEAR: "clear", SYNC_MARK: "sync mark"}
_PIECE: Final = 1 << 20
_BUDGET: Final = 16  # times the size of the file, for the search after damage


class Header(NamedTuple):
    """What a segment's header says, and what is wrong with it."""

    path: str
    size_bytes: int
    version: int
    kind: str
    store_uuid: str
    segment_id: int
    salt: int
    previous_id: int
    previous_seq: int
    wrong: str | None


class Found(NamedTuple):
    """One thing in a segment, from ``offset`` on.

    ``kind``: "put", "delete", "clear" and "sync mark" are entries; "zeros" is room that was reserved and not
    written; "damage" holds no entry though one follows; "tail" is what is left after the last whole entry.
    """

    offset: int
    size: int
    kind: str
    seq: int = 0
    key: bytes = b""
    value_size: int = 0
    modified_ms: int = 0
    expires_ms: int = 0
    continues: bool = False
    note: str | None = None


class _GaveUpError(Exception):
    pass


class Inspection:
    """Read one segment file; `header` is there at once, iterating yields what follows it."""

    def __init__(self, path: str) -> None:
        self._files = Files()
        self._path = path
        self._descriptor = self._files.open(path)
        try:
            self._size = self._files.size(self._descriptor, path)
            self.header = self._read_header()
        except BaseException:
            self.close()
            raise
        self._seed = seed_of(self.header.salt)
        self._budget = _BUDGET * self._size + _PIECE

    def _read_header(self) -> Header:
        raw = self._read(SEGMENT_HEADER_SIZE, 0)
        wrong = None
        try:
            decode_segment_header(raw, self._path)
        except BytekvError as error:
            wrong = str(error).removeprefix(f"{self._path}: ").removeprefix("offset 0: ")
        magic, version, kind, _, _, _, uuid, segment_id, salt, previous_id, previous_seq, _ = SEGMENT_HEADER.unpack(
            raw[: SEGMENT_HEADER.size].ljust(SEGMENT_HEADER.size, b"\0")
        )
        if magic != SEGMENT_MAGIC or version != FORMAT_VERSION:
            kind_name = "unknown"
        else:
            kind_name = "log" if kind == LOG else "output"
        return Header(
            self._path,
            self._size,
            version,
            kind_name,
            uuid.hex(),
            segment_id,
            salt,
            previous_id,
            previous_seq,
            wrong,
        )

    def _read(self, size: int, offset: int) -> bytes:
        return self._files.read(self._descriptor, size, offset, self._path)

    def __iter__(self) -> Iterator[Found]:
        at, stop = SEGMENT_HEADER_SIZE, self._size
        expected = self.header.previous_seq + 1 if self.header.kind == "log" else None
        unfinished = False
        while at < stop:
            found = self._entry(at, stop)
            if found.kind in ("damage", "tail"):
                if found.kind == "tail" and unfinished:
                    found = found._replace(note=f"{found.note}; the batch before it has no last entry")
                yield found
                at += found.size
                expected, unfinished = None, False
                continue
            if found.kind == "zeros":
                note = "the batch before has no last entry" if unfinished else None
                yield found._replace(note=note)
                return
            at += found.size
            if found.kind == "sync mark":
                yield found
                continue
            if expected is not None and found.seq != expected:
                found = found._replace(note=f"seq {expected} was expected")
            expected = found.seq + 1 if self.header.kind == "log" else None
            unfinished = found.continues
            yield found

    def _entry(self, at: int, stop: int) -> Found:
        head = self._read(min(ENTRY_SIZE + ENTRY_EXPIRES.size, stop - at), at)
        if not head:
            return Found(at, stop - at, "tail", note="the file became shorter meanwhile")
        if not head[0] and self._is_zeros(at, stop):
            return Found(at, stop - at, "zeros")
        if len(head) < MIN_ENTRY_SIZE:
            return self._skip(at, stop, f"{len(head)} bytes are too few for an entry")
        flags, key_size, value_size, seq, modified_ms = ENTRY.unpack_from(head)
        fixed = FIXED_SIZE[flags]
        size = fixed + key_size + value_size + CRC_SIZE
        if not fixed:
            return self._skip(at, stop, f"no entry begins with {flags:#04x}")
        if value_size > MAX_VALUE_SIZE:
            return self._skip(at, stop, f"a value of {value_size} bytes is over the limit")
        if size > stop - at:
            return self._skip(at, stop, f"an entry of {size} bytes where {stop - at} are left")
        crc, done = self._seed, 0
        while done < size:
            piece = self._read(min(_PIECE, size - done), at + done)
            if not piece:
                return self._skip(at, stop, "the file became shorter")
            crc = checksum(piece, crc)
            done += len(piece)
        if crc != RESIDUE:
            return self._skip(at, stop, f"{_KINDS[flags & KIND]} of {size} bytes, seq {seq}: fails its CRC32C")
        return Found(
            at,
            size,
            _KINDS[flags & KIND],
            seq,
            self._read(key_size, at + fixed),
            value_size,
            modified_ms,
            ENTRY_EXPIRES.unpack_from(head, ENTRY_SIZE)[0] if flags & EXPIRES else 0,
            bool(flags & CONTINUES),
        )

    def _is_zeros(self, at: int, stop: int) -> bool:
        while at < stop:
            piece = self._read(min(_PIECE, stop - at), at)
            if not piece or piece.strip(b"\0"):
                return not piece
            at += len(piece)
        return True

    def _skip(self, at: int, stop: int, reason: str) -> Found:
        """Return what reaches from ``at`` to the next whole entry, or to the end if there is none."""
        try:
            following = Resync(self._counted_read, at + 1, stop, self._seed).find_entry(at + 1, range(1 << 64))
        except _GaveUpError:
            return Found(at, stop - at, "damage", note=f"{reason}; too much looks like an entry and is none, gave up")
        if following is None:
            return Found(at, stop - at, "tail", note=reason)
        return Found(at, following - at, "damage", note=reason)

    def _counted_read(self, size: int, offset: int) -> bytes:
        self._budget -= size
        if self._budget < 0:
            raise _GaveUpError
        return self._read(size, offset)

    def close(self) -> None:
        """Close the file."""
        self._files.close(self._descriptor)

    def __enter__(self) -> Inspection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
