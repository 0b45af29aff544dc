"""Walk: every entry of a segment that counts, whatever damage lies between them."""

from __future__ import annotations

from collections.abc import Iterator

from ..._lean import NamedTuple
from ...contract.reports import Damage, Report
from ..codec.checksum import CRC_SIZE, seed_of
from ..codec.entry import (
    CONTINUES,
    ENTRY,
    FIXED_SIZE,
    MIN_ENTRY_SIZE,
    SYNC_MARK,
    is_zero,
    measure_entry,
)
from ..codec.manifest import (
    LOG,
    MAX_NUMBER,
    SEGMENT_HEADER_SIZE,
    SegmentHeader,
)
from ..log.directory import Directory
from ..log.resync import Resync
from ..log.scan import Read, Scan, Scanned

__all__ = ["Known", "Walk", "all_durable", "pieces"]

_SEQS_AHEAD = 1 << 40  # how far a seq may lie above what is known, where nothing bounds it
_COPY = 1 << 20


class Known(NamedTuple):
    """What is known of a segment beside its entries."""

    is_log: bool  # seqs follow each other without a gap
    stop: int  # no entry goes beyond this offset
    lowest: int  # every seq is above this,
    highest: int  # and none above that
    durable_end: int  # what lies before this offset was durable,
    durable_seq: int  # and so was every operation up to this one
    reached_seq: int = 0  # the operation up to which a log goes at least
    begins: bool = True  # the first operation of a log is the one after ``lowest``
    is_last: bool = False  # nothing says where this log ends but its own entries


def all_durable(header: SegmentHeader, length: int, highest: int, reached: int = 0) -> Known:
    """Return what is known of a segment in which everything up to its length counts."""
    is_log = header.kind == LOG
    # The outputs of one compaction, or of one repair, divide its seqs among them.
    lowest = header.previous_seq if is_log else 0
    return Known(is_log, length, lowest, highest, length, MAX_NUMBER, reached if is_log else 0)


class Walk:
    """Every entry of a segment that counts, read past damage; iterating adds to the report what does not count.

    An operation that is known to have been durable counts wherever in the segment it is found, and so does each entry
    of such a batch. Any other counts as a whole or not at all, and only if no crash can have torn it: an unfinished
    write is no damage, and what comes after it does not count.
    """

    def __init__(self, directory: Directory, descriptor: int, path: str, salt: int, known: Known, report: Report):
        files = directory.files

        def read(size: int, offset: int) -> bytes:
            return files.read(descriptor, size, offset, path)

        self._read, self._path, self._known, self._report = read, path, known, report
        self._seed = seed_of(salt)
        self._resync = Resync(read, SEGMENT_HEADER_SIZE, known.stop, self._seed)
        self._nothing_durable_follows = False
        self._damaged = 0
        self._highest = known.lowest  # seq found so far
        #: What is known to have been durable: by the manifest or the order of segments, or by a sync mark.
        self.durable_seq = known.durable_seq
        if known.durable_end < known.stop:
            self.durable_seq = max(self.durable_seq, self._resync.highest_mark())

    def _tell(self, offset: int, reason: str, key: bytes | None = None) -> None:
        self._damaged += 1
        self._report.damage.append(Damage(self._path, offset, reason, key))

    def __iter__(self) -> Iterator[Scanned]:
        known, durable = self._known, self.durable_seq
        at, before = SEGMENT_HEADER_SIZE, known.lowest
        doubtful = False  # whether the next operation may be the rest of a batch whose beginning is lost
        if not known.begins:
            at, before, doubtful = self._next_run(SEGMENT_HEADER_SIZE, SEGMENT_HEADER_SIZE)
        last = known.lowest
        while True:
            scan = Scan(self._read, at, known.stop, self._seed, before if known.is_log else None)
            told = False
            for entry in scan:
                flags, whose, seq, _, offset, _ = entry
                if seq > known.highest:
                    if known.durable_end >= known.stop or known.is_last:
                        self._tell(offset, f"entry has seq {seq}, no more than {known.highest} was written", whose)
                    continue
                if doubtful and seq > durable:
                    if not told:
                        self._tell(offset, "may be the rest of a batch whose beginning is lost", whose)
                    told = True
                else:
                    self._report.entries += 1
                    self._highest = max(self._highest, seq)
                    yield entry
                doubtful = doubtful and bool(flags & CONTINUES)
            end = scan.end
            for entry in scan.unfinished:
                end = entry[4] + len(entry[5])
                if entry[2] <= min(durable, known.highest):
                    self._report.entries += 1
                    yield entry
            if scan.entries:
                last = scan.last_seq
            if scan.end >= known.stop:
                if last < known.reached_seq and not self._damaged and known.stop >= known.durable_end:
                    self._tell(scan.end, f"ends at seq {last}, but was written up to {known.reached_seq}")
                return
            if self._is_legal_end(scan, last):
                is_over = not known.is_last or self._following(end) is None
                if is_over:
                    if (self._damaged or known.is_last) and not self._is_zero(scan.end):
                        self._tell(scan.end, "an unfinished write at the end of the log")
                    return
            following = self._following(end)
            key = _key_at(self._read, end, known.stop, following)
            self._tell(end, scan.damage or "zeros in data that was durable", key)
            if scan.unfinished and scan.unfinished[0][2] > durable:
                self._tell(scan.end, "batch of which an entry is lost", scan.unfinished[0][1])
            if following is None:
                return
            at, before, doubtful = self._next_run(end, following)

    def _is_legal_end(self, scan: Scan, last: int) -> bool:
        """Tell whether a crash alone may have ended the log here."""
        if scan.end < self._known.durable_end or last < self.durable_seq:
            return False
        if self._damaged and not self._nothing_durable_follows:  # blocks may have changed places
            seqs = range(self._known.lowest + 1, self.durable_seq + 1)
            self._nothing_durable_follows = self._resync.find_entry(scan.end, seqs, marks=False) is None
            return self._nothing_durable_follows
        return True

    def _following(self, start: int) -> int | None:
        """Return the offset of the next whole entry or sync mark."""
        known = self._known
        high = min(known.highest, max(self._highest, known.lowest) + _SEQS_AHEAD)
        return self._resync.find_entry(start, range(known.lowest + 1, high + 1))

    def _next_run(self, damaged: int, following: int) -> tuple[int, int, bool]:
        """Return where to go on after a damaged place, the seq before, and whether the next operation is in doubt."""
        head = self._read(ENTRY.size, damaged)
        # A crash tears an entry but does not alter what it has written of it.
        size = measure_entry(head)
        doubtful = not size or size != following - damaged or bool(head[0] & CONTINUES)
        while True:
            head = self._read(ENTRY.size, following)
            if len(head) < ENTRY.size or head[0] != SYNC_MARK or not self._resync.is_whole(following):
                break
            following, doubtful = following + MIN_ENTRY_SIZE, False  # a mark lies between operations
        seq = ENTRY.unpack(head)[3] if len(head) == ENTRY.size else 0
        return following, max(seq - 1, 0), doubtful and seq > self.durable_seq + 1

    def last_durable(self) -> int:
        """Return the seq up to which everything was durable, if that can be believed."""
        return self.durable_seq if self.durable_seq <= self._highest + _SEQS_AHEAD else 0

    def _is_zero(self, offset: int) -> bool:
        return all(map(is_zero, pieces(self._read, offset, self._known.stop)))


def _key_at(read: Read, offset: int, stop: int, following: int | None) -> bytes | None:
    """Return the key of a damaged entry if its lengths lead exactly to the next whole one, so that they hold."""
    head = read(min(ENTRY.size, stop - offset), offset)
    size = measure_entry(head)
    if not size or offset + size != (stop if following is None else following):
        return None
    fixed, key_size = FIXED_SIZE[head[0]], int.from_bytes(head[1:3], "little")
    return read(key_size, offset + fixed) if fixed + CRC_SIZE < size else None


def pieces(read: Read, start: int, stop: int) -> Iterator[bytes]:
    """Read a part of a file, a mebibyte at a time."""
    return (read(min(_COPY, stop - offset), offset) for offset in range(start, stop, _COPY))
