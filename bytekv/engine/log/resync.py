"""Resync: find what is whole after a damaged place.

A damaged entry has no length that can be trusted, so the next one is searched for byte by byte. A sync mark found on
the way tells more: everything before it was durable once.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..._lean import TYPE_CHECKING
from ...contract.convert import MAX_VALUE_SIZE
from ..codec.checksum import CRC_SIZE, RESIDUE, checksum
from ..codec.entry import (
    ENTRY,
    ENTRY_SIZE,
    FIXED_SIZE,
    MIN_ENTRY_SIZE,
    SYNC_MARK,
    SYNC_MARK_HEAD,
    is_zero,
    measure_entry,
)
from .scan import Read, Scan, is_whole

if TYPE_CHECKING:
    from typing import Final

__all__ = ["Resync", "check_torn", "find_sync_mark"]

_WINDOW: Final = 1024 * 1024  # what is read at once

_SMALL: Final = 4096


def _sync_marks(read: Read, start: int, stop: int, seed: int) -> Iterator[tuple[int, int]]:
    """Yield offset and seq of every sync mark. Complexity: a byte search at memory speed."""
    overlap = MIN_ENTRY_SIZE - 1
    at = start
    while at < stop:
        window = read(min(_WINDOW, stop - at), at)
        found = window.find(SYNC_MARK_HEAD)
        while found >= 0:
            raw = window[found : found + MIN_ENTRY_SIZE]
            if len(raw) == MIN_ENTRY_SIZE and checksum(raw, seed) == RESIDUE:
                yield at + found, ENTRY.unpack_from(raw)[3]
            found = window.find(SYNC_MARK_HEAD, found + 1)
        if len(window) <= overlap:
            break
        at += len(window) - overlap


def find_sync_mark(read: Read, start: int, stop: int, seed: int, above: int) -> int | None:
    """Return the offset of a sync mark after ``start`` that vouches for a seq above ``above``, or None."""
    return next((offset for offset, seq in _sync_marks(read, start, stop, seed) if seq > above), None)


class Resync:
    """Look for what is whole after damage, from the front of a segment to its end.

    Altogether it takes time in proportion to the segment, however many damaged places there are and whatever
    they look like: sync marks are gone through once; and once the CRCs of places that only looked like entries
    have cost as much as reading the segment some times over, none of more than 4 KiB is tried any more.
    """

    def __init__(self, read: Read, start: int, stop: int, seed: int) -> None:
        self._read, self._start, self._stop, self._seed = read, start, stop, seed
        self._allowance = 16 * (stop - start)

    def highest_mark(self) -> int:
        """Return the highest seq that a sync mark vouches for, 0 if there is none."""
        return max((seq for _, seq in _sync_marks(self._read, self._start, self._stop, self._seed)), default=0)

    def is_whole(self, offset: int) -> bool:
        """Tell whether what begins here is an entry, or a sync mark, that passes its CRC."""
        size = measure_entry(self._read(ENTRY_SIZE, offset))
        return 0 < size <= self._stop - offset and is_whole(self._read, offset, size, self._seed)

    def find_entry(self, start: int, seqs: range, *, marks: bool = True) -> int | None:
        """Return the offset of the next whole entry from ``start`` on whose seq lies in ``seqs``, or None.

        A sync mark is one of them, unless ``marks`` is false; it may also name the seq before them.

        A first byte is cheap to find, and the seq, eight bytes that must lie in a small range, rejects all but
        a few places before their CRC, which may reach over a gigabyte, is taken.
        """
        import re  # 3 ms that only a damaged store has to wait for

        first_bytes = re.compile(b"[" + b"".join(b"\\x%02x" % byte for byte in range(256) if FIXED_SIZE[byte]) + b"]")
        at, stop = start, self._stop
        while at < stop:
            window = self._read(min(_WINDOW, stop - at), at)
            for found in first_bytes.finditer(window) if not is_zero(window) else ():
                here = found.start()
                if here + ENTRY_SIZE > len(window):
                    break
                flags, key_size, value_size, seq, _ = ENTRY.unpack_from(window, here)
                size = FIXED_SIZE[flags] + key_size + value_size + CRC_SIZE
                is_mark = flags == SYNC_MARK
                if (is_mark and not marks) or (seq not in seqs and not (is_mark and seq + 1 in seqs)):
                    continue
                if value_size > MAX_VALUE_SIZE or size > stop - at - here:
                    continue
                if self._allowance < 0 and size > _SMALL:
                    continue
                if is_whole(self._read, at + here, size, self._seed):
                    return at + here
                self._allowance -= size
            if len(window) < _WINDOW:
                break
            at += len(window) - ENTRY_SIZE + 1
        return None


def check_torn(scan: Scan, path: str) -> None:
    """Raise `CorruptionError` if a sync mark vouches for what a scan misses: its end is no torn tail then.

    The mark was written after a completed sync, so that had reached the disk, and its loss is no consequence
    of a crash.
    """
    mark = find_sync_mark(scan.read, scan.end, scan.stop, scan.seed, scan.last_seq)
    if mark is not None:
        raise scan.corruption(path, f"; a sync mark at offset {mark} says it was durable")
