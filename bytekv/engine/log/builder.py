"""Segment builder: write a whole segment of copied entries, then seal it.

What a compaction and a repair write. Until a manifest names it nobody reads it; `discard` removes it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate

from ..._lean import TYPE_CHECKING, NamedTuple, suppress
from ...errors import SystemErrors
from ..codec.checksum import CRC, CRC_SIZE, checksum, seed_of
from ..codec.entry import CONTINUES, KIND, OFFSET_SHIFT, PUT, SEGMENT_SHIFT, SIZE_MASK, TOMBSTONE
from ..codec.hint import Hint, Pieces
from ..codec.manifest import OUTPUT, SEALED, SEGMENT_HEADER_SIZE, SegmentRow, encode_segment_header
from ..codec.runs import locate_run
from .directory import Directory
from .segment import header_for
from .summary import save_hint

if TYPE_CHECKING:
    from typing import Any

__all__ = ["Copied", "SegmentBuilder"]

_pack_crc = CRC.pack


class _Keys(Sequence):  # type: ignore[type-arg]  # which is not there at run time
    """A list of keys, packed: an object for each takes 33 bytes more."""

    def __init__(self, keys: list[bytes]) -> None:
        self._bytes, self._sizes = b"".join(keys), array("H", map(len, keys))

    def __len__(self) -> int:
        return len(self._sizes)

    def __iter__(self) -> Iterator[bytes]:
        packed = self._bytes
        return iter([packed[end - size : end] for size, end in zip(self._sizes, accumulate(self._sizes), strict=True)])

    def __getitem__(self, at: Any) -> Any:
        return list(self)[at]


class Copied(NamedTuple):
    """Of puts, in the order in which they were copied: key, where it was, where in the output it is.

    As many as were written at once, packed: lists take four times the memory, growing a long one holds the GIL for
    milliseconds, and so does the garbage collector, which looks through them all.
    """

    keys: Sequence[bytes]
    originals: Sequence[int]
    positions: Sequence[int]


def _packed(numbers: list[int]) -> Sequence[int]:
    try:
        return array("Q", numbers)
    except OverflowError:
        return numbers  # locations in a segment beyond the millionth


class SegmentBuilder:
    """One segment that a compaction or a repair writes: copies of entries, then sealed."""

    def __init__(self, directory: Directory, uuid: bytes, segment_id: int, previous: tuple[int, int]) -> None:
        self._directory = directory
        self._files = directory.files
        self._tuning = directory.tuning
        self.header = header = header_for(directory, uuid, segment_id, OUTPUT, previous)
        self.path = self._directory.segment_path(header.segment_id)
        self._descriptor: int | None = self._files.open_new(self.path)
        self.seed = seed_of(header.salt)
        self.base = header.segment_id << SEGMENT_SHIFT
        self._parts: list[bytes | bytearray] = [encode_segment_header(header)]
        self._flushed = 0
        self.end = SEGMENT_HEADER_SIZE
        self.copied: list[Copied] = []
        self._latest: tuple[list[bytes], list[int], list[int]] = [], [], []
        self.told = Copied((), (), ())  # of which the keydir is being told...
        self.untold = 0  # ...but for so many, the first ones
        self._tombstones: list[bytes] = []
        self._expires: dict[bytes, int] = {}
        self._clears = False
        self._live_bytes = 0

    def put(self, flags: int, key: bytes, expires_ms: int, raw: bytes, original: int = 0) -> None:
        """Copy one put under this file's seed."""
        size = len(raw)
        keys, originals, positions = self._latest
        keys.append(key)
        originals.append(original)
        positions.append(self.end << OFFSET_SHIFT | (size if size <= SIZE_MASK else 0))
        self._live_bytes += size
        if expires_ms:
            self._expires[key] = expires_ms
        self._append(flags, raw)

    def put_run(
        self, keys: list[bytes], sizes: list[int], originals: list[int], parts: list[bytes], expires: dict[bytes, int]
    ) -> None:
        """Append puts that are under this file's seed already, see `copy_run`, none larger than a location can say."""
        ends = list(accumulate(sizes, initial=self.end))
        latest_keys, latest_originals, positions = self._latest
        latest_keys += keys
        latest_originals += originals
        positions += locate_run(0, ends, sizes)
        self._live_bytes += ends[-1] - self.end
        self._expires.update(expires)
        self._parts += parts
        self.end = ends[-1]
        if self.end - self._flushed >= self._tuning.flushed_bytes:
            self._flush()

    def put_alike(self, keys: list[bytes], size: int, originals: array[int], piece: bytearray) -> None:
        """Append puts of one size and without expiry that are under this file's seed already, see `copy_alike`.

        The keys are kept as they are: the keydir has these objects, too.
        """
        self._pack_latest()
        begin, step = self.end << OFFSET_SHIFT | size, size << OFFSET_SHIFT
        positions = array("Q", range(begin, begin + step * len(keys), step))
        self.copied.append(Copied(tuple(keys), originals, positions))
        self._live_bytes += len(piece)
        self._parts.append(piece)
        self.end += len(piece)
        if self.end - self._flushed >= self._tuning.flushed_bytes:
            self._flush()

    def append(self, flags: int, key: bytes, expires_ms: int, raw: bytes) -> None:
        """Copy one entry of any kind."""
        kind = flags & KIND
        if kind == PUT:
            self.put(flags, key, expires_ms, raw)
            return
        if kind == TOMBSTONE:
            self._tombstones.append(key)
        else:
            self._clears = True
        self._append(flags, raw)

    def _append(self, flags: int, raw: bytes) -> None:
        body = bytes((flags & ~CONTINUES,)) + raw[1:-CRC_SIZE] if flags & CONTINUES else raw[:-CRC_SIZE]
        self._parts.append(body)
        self._parts.append(_pack_crc(checksum(body, self.seed)))
        self.end += len(raw)
        if self.end - self._flushed >= self._tuning.flushed_bytes:
            self._flush()

    def _flush(self) -> None:
        assert self._descriptor is not None
        self._files.write(self._descriptor, b"".join(self._parts), self._flushed, self.path)
        self._flushed = self.end
        self._parts.clear()
        self._pack_latest()

    def _pack_latest(self) -> None:
        keys, originals, positions = self._latest
        if keys:
            self.copied.append(Copied(_Keys(keys), _packed(originals), _packed(positions)))
            self._latest = [], [], []

    def keys_in_pieces(self) -> Iterator[Iterable[bytes]]:
        """Yield the keys of all puts that have been copied, as many at a time as were written at once."""
        yield from (piece.keys for piece in self.copied)
        yield self._latest[0]

    def finish(self, last_seq: int, pause: Callable[[], None] = lambda: None) -> SegmentRow:
        """Make the file durable and return its row."""
        self._flush()
        assert self._descriptor is not None
        self._files.sync(self._descriptor, self.path)
        self.close()
        if self.end >= self._tuning.hint_from:
            hint = Hint(
                self.end,
                last_seq,
                self._clears,
                Pieces([copied.keys for copied in self.copied]),
                Pieces([copied.positions for copied in self.copied]),
                self._tombstones,
                self._expires,
                self._live_bytes,
                self.tombstone_bytes,
            )
            with suppress(*SystemErrors):  # only a cache
                save_hint(self._directory, self.header, hint, pause)
        return SegmentRow(self.header.segment_id, self.header.salt, self.end, last_seq, SEALED)

    @property
    def tombstone_bytes(self) -> int:
        """Return the bytes that are neither header nor put."""
        return self.end - SEGMENT_HEADER_SIZE - self._live_bytes

    def close(self) -> None:
        """Close the file."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            self._files.close(descriptor)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):  # else __init__ was interrupted
            self.close()

    def discard(self) -> None:
        """Remove the file."""
        self.close()
        with suppress(*SystemErrors):  # listed nowhere: the next open sweeps what is left
            self._files.unlink(self.path)
            self._files.unlink(self._directory.hint_path(self.header.segment_id))
