"""One segment: what a scan finds, what a writer leaves, on real files."""

from __future__ import annotations

import errno
import itertools
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytekv.contract.convert import MAX_VALUE_SIZE
from bytekv.engine.codec import entry as codec
from bytekv.engine.codec.checksum import seed_of
from bytekv.engine.codec.entry import (
    CLEAR,
    CONTINUES,
    KIND,
    MIN_ENTRY_SIZE,
    PUT,
    SIZE_MASK,
    SYNC_MARK,
    TOMBSTONE,
    encode_entry,
    entry_size,
    pack_position,
)
from bytekv.engine.codec.manifest import LOG, OUTPUT, SEGMENT_HEADER_SIZE, SegmentHeader, encode_segment_header
from bytekv.engine.log import resync
from bytekv.engine.log import scan as scan_module
from bytekv.engine.log.directory import Directory
from bytekv.engine.log.open_segments import PreadFile
from bytekv.engine.log.resync import find_sync_mark
from bytekv.engine.log.scan import Scan, open_segment, scan_segment
from bytekv.engine.log.segment import Writer
from bytekv.engine.log.summary import hint_of
from bytekv.engine.tuning import TUNING
from bytekv.errors import BytekvError, CorruptionError, DiskFullError, StoreIOError
from tests.support.harness import FakeFiles

UUID = bytes(range(16))
SALT = 0xA7A6A5A4A3A2A1A0
SEED = seed_of(SALT)
NOW_MS = 1_700_000_000_000
START = SEGMENT_HEADER_SIZE
KIB = 1024
MIB = 1024 * 1024

bounded = settings(derandomize=True, max_examples=150)


@pytest.fixture
def directory(path: Path) -> Iterator[Directory]:
    path.mkdir()
    made = Directory(str(path), FakeFiles())
    yield made
    made.release()


def header(kind: int = LOG, previous_seq: int = 0) -> SegmentHeader:
    return SegmentHeader(UUID, 1, SALT, kind, 0, previous_seq)


# --- building a log ----------------------------------------------------------------------------


class Log:
    """Write entries one after the other and remember where each whole operation ends."""

    def __init__(self, previous_seq: int = 0, kind: int = LOG) -> None:
        self.header = header(kind, previous_seq)
        self.bytes = bytearray(encode_segment_header(self.header))
        self.seq = previous_seq
        self.ends = [(START, previous_seq, 0)]  # (offset, last seq, number of entries) after each operation
        self.entries: list[tuple[int, bytes, int]] = []  # flags, key, seq

    def put(self, key: bytes = b"key", value: bytes = b"value", flags: int = PUT, expires_ms: int = 0) -> Log:
        self.seq += 1
        return self._append(flags, key, value, self.seq, expires_ms)

    def delete(self, key: bytes = b"key", flags: int = TOMBSTONE) -> Log:
        self.seq += 1
        return self._append(flags, key, b"", self.seq)

    def batch(self, *keys: bytes) -> Log:
        for key in keys[:-1]:
            self.put(key, flags=PUT | CONTINUES)
        return self.put(keys[-1])

    def mark(self, seq: int | None = None) -> Log:
        return self._append(SYNC_MARK, b"", b"", self.seq if seq is None else seq)

    def stale(self, seq: int, key: bytes = b"stale") -> Log:
        """Append a valid entry that does not belong here, as a lost page may uncover it."""
        self.bytes += b"".join(encode_entry(PUT, key, b"old", seq, NOW_MS, 0, SEED))
        return self

    def _append(self, flags: int, key: bytes, value: bytes, seq: int, expires_ms: int = 0) -> Log:
        parts = encode_entry(flags, key, value, seq, NOW_MS, expires_ms, SEED)
        self.bytes += b"".join(parts)
        if flags != SYNC_MARK:
            self.entries.append((parts[0][0], key, seq))
        if not flags & CONTINUES:
            self.ends.append((len(self.bytes), self.seq, len(self.entries)))
        return self

    def whole_before(self, offset: int) -> tuple[int, int, int]:
        """Return the last operation that lies entirely before an offset."""
        return max(end for end in self.ends if end[0] <= offset)


def scan_of(directory: Directory, log: Log, content: bytes | None = None, stop: int | None = None) -> tuple[Scan, list]:
    """Write a log to its file and scan it from there."""
    path = directory.segment_path(1)
    raw = bytes(log.bytes) if content is None else content
    Path(path).write_bytes(raw)
    descriptor = directory.files.open(path)
    try:
        scan = scan_segment(
            directory, descriptor, log.header, START, len(raw) if stop is None else stop, log.header.previous_seq
        )
        found = list(scan)
    finally:
        directory.files.close(descriptor)
    return scan, [(flags, key, seq) for flags, key, seq, *_ in found]


def sample() -> Log:
    log = Log().put(b"a").put(b"b", b"", expires_ms=9).mark().batch(b"c", b"d", b"e").delete(b"a")
    return log.put(b"", bytes(50)).mark().batch(b"f", b"g").put(b"last")


# --- scan --------------------------------------------------------------------------------------


def test_a_whole_log(directory):
    log = sample()
    scan, found = scan_of(directory, log)
    assert found == log.entries
    assert (scan.end, scan.last_seq, scan.entries) == log.ends[-1]
    assert scan.durable_seq == 7
    assert scan.damage is None


def test_what_is_yielded_says_where_the_entry_lies(directory):
    log = Log().put(b"a", b"1").put(b"b", b"22", expires_ms=77)
    path = Path(directory.segment_path(1))
    path.write_bytes(log.bytes)
    descriptor = directory.files.open(str(path))
    first, second = scan_segment(directory, descriptor, log.header, START, len(log.bytes), 0)
    directory.files.close(descriptor)
    size = entry_size(1, 1)
    assert first == (PUT, b"a", 1, 0, START, log.bytes[START : START + size])
    assert second == (PUT | codec.EXPIRES, b"b", 2, 77, START + size, log.bytes[START + size :])


def test_an_empty_segment(directory):
    scan, found = scan_of(directory, Log(previous_seq=41))
    assert found == []
    assert (scan.end, scan.last_seq, scan.entries, scan.damage) == (START, 41, 0, None)


@pytest.mark.parametrize("behind", [b"", bytes(5000)], ids=["the end of the file", "preallocated zeros"])
def test_wherever_it_is_cut_whole_operations_remain(behind, directory):
    log = sample()
    raw = bytes(log.bytes)
    for cut in range(START, len(raw)):
        left = raw[:cut] + behind
        scan, found = scan_of(directory, log, left)
        lost = next((at for at, (one, other) in enumerate(zip(raw, left, strict=False)) if one != other), cut)
        assert (scan.end, scan.last_seq, scan.entries) == log.whole_before(lost), cut
        assert found == log.entries[: scan.entries], cut
        rest = left[scan.end :].strip(b"\0")
        assert bool(scan.damage) <= bool(rest), "zeros behind the log are its regular end"


def test_wherever_a_bit_flips_the_scan_stops_before_that_operation(directory):
    log = sample()
    for offset in range(START, len(log.bytes)):
        raw = bytearray(log.bytes)
        raw[offset] ^= 0x04
        scan, found = scan_of(directory, log, bytes(raw))
        assert (scan.end, scan.last_seq, scan.entries) == log.whole_before(offset), offset
        assert found == log.entries[: scan.entries]
        assert scan.damage


def test_zeros_where_a_page_was_lost_end_the_log(directory):
    log = sample()
    for end, seq, count in log.ends[:-1]:
        raw = bytearray(log.bytes)
        raw[end : end + MIN_ENTRY_SIZE] = bytes(MIN_ENTRY_SIZE)
        scan, _ = scan_of(directory, log, bytes(raw))
        assert (scan.end, scan.last_seq, scan.entries) == (end, seq, count)
        assert scan.damage is None


def test_a_stale_entry_behind_the_log_is_not_taken_for_its_next(directory):
    """The second crash: what follows is whole, of this segment, and of before the first crash."""
    for seq in (1, 2, 3, 5, 6, 2**63):
        log = Log().put(b"a").put(b"b").put(b"c")
        end = len(log.bytes)
        scan, found = scan_of(directory, log.stale(seq))
        assert (scan.end, scan.last_seq, len(found)) == (end, 3, 3)
        assert scan.damage == f"entry has seq {seq}, expected 4"


def test_a_log_must_begin_with_the_seq_after_the_previous_segment(directory):
    log = Log(previous_seq=10).put()
    log.header = header(previous_seq=9)
    scan, found = scan_of(directory, log)
    assert found == []
    assert scan.damage == "entry has seq 11, expected 10"


def test_an_output_has_its_seqs_in_any_order(directory):
    log = Log(kind=OUTPUT).stale(30, b"a").stale(10, b"b").stale(20, b"c")
    scan, found = scan_of(directory, log)
    assert [seq for _, _, seq in found] == [30, 10, 20]
    assert (scan.end, scan.entries, scan.damage) == (len(log.bytes), 3, None)


def test_a_seq_missing_inside_a_batch_ends_the_log_before_the_batch(directory):
    log = Log().put(b"before")
    end = len(log.bytes)
    log.put(b"one", flags=PUT | CONTINUES)
    log.seq += 1
    log.put(b"three")
    scan, found = scan_of(directory, log)
    assert (scan.end, scan.last_seq, len(found)) == (end, 1, 1)
    assert scan.damage == "entry has seq 4, expected 3"


def test_a_batch_without_its_last_entry_has_not_happened(directory):
    log = Log().put(b"before").put(b"one", flags=PUT | CONTINUES).put(b"two", flags=PUT | CONTINUES)
    scan, found = scan_of(directory, log)
    assert [key for _, key, _ in found] == [b"before"]
    assert scan.damage == "batch without its last entry"


def test_sync_marks_move_the_end_but_are_no_operations(directory):
    log = Log(previous_seq=5).mark().put().mark().mark(4)
    scan, found = scan_of(directory, log)
    assert len(found) == scan.entries == 1
    assert (scan.end, scan.last_seq) == (len(log.bytes), 6)
    assert scan.durable_seq == 4, "of the last mark"


def test_a_sync_mark_inside_a_batch_is_damage(directory):
    log = Log().put().put(b"one", flags=PUT | CONTINUES).mark(1).put(b"two")
    scan, found = scan_of(directory, log)
    assert len(found) == 1
    assert scan.damage == "sync mark inside a batch"


@pytest.mark.parametrize("field", [(1, 2), (3, 4)], ids=["key length", "value length"])
def test_a_damaged_length_is_compared_with_what_is_left_before_anything_is_read(field, directory):
    at, size = field
    log = Log().put(b"first").put(b"second", b"x" * 100).put(b"third")
    (begin, seq, count), whole = log.ends[1], len(log.bytes)
    remaining = whole - begin
    for length in (0, 1, 99, 101, remaining - 1, remaining, remaining + 1, 0xFFFF, MAX_VALUE_SIZE - 1, MAX_VALUE_SIZE):
        for length_ in (length, MAX_VALUE_SIZE + 1, 2**31, 2**32 - 1):
            if length_ >= 1 << 8 * size:
                continue
            raw = bytearray(log.bytes)
            raw[begin + at : begin + at + size] = length_.to_bytes(size, "little")
            tracemalloc.start()
            scan, found = scan_of(directory, log, bytes(raw))
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert (scan.end, scan.last_seq, len(found)) == (begin, seq, count)
            assert scan.damage
            assert peak < MIB


def test_a_value_above_the_limit_is_not_even_asked_for():
    """Though a segment may have room for it: the answer would cost more than a gigabyte of memory."""
    head = codec.ENTRY.pack(PUT, 1, MAX_VALUE_SIZE + 1, 1, NOW_MS)
    asked: list[int] = []

    def read(size: int, offset: int) -> bytes:
        asked.append(size)
        return head.ljust(100, b"x")

    scan = Scan(read, START, codec.OFFSET_MASK, SEED, 0)
    assert list(scan) == []
    assert scan.damage
    assert asked == [scan_module._FIRST_WINDOW]


def test_nothing_is_read_beyond_the_stop(directory):
    log = sample()
    stop = log.ends[3][0]
    scan, found = scan_of(directory, log, stop=stop)
    assert (scan.end, scan.last_seq, scan.entries) == log.ends[3]
    assert scan.damage is None
    scan, found = scan_of(directory, log, stop=stop + 30)
    assert scan.entries == log.ends[3][2]
    assert scan.damage
    assert len(found) == scan.entries


# --- the borders of windows --------------------------------------------------------------------


@bounded
@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 400), st.booleans(), st.booleans()), max_size=30),
    st.integers(64, 400),
)
def test_the_size_of_the_window_makes_no_difference(shapes, window):
    log = Log()
    for key_size, value_size, continues, marked in shapes:
        log.put(bytes(key_size), bytes(value_size), flags=PUT | CONTINUES if continues else PUT)
        if marked and not continues:
            log.mark()
    raw = bytes(log.bytes)
    asked: list[tuple[int, int]] = []

    def read(size: int, offset: int) -> bytes:
        asked.append((size, offset))
        return raw[offset : offset + size]

    def answers() -> tuple[object, ...]:
        scan = Scan(read, START, len(raw), SEED, 0)
        found = [(flags, key, seq, raw_) for flags, key, seq, _, _, raw_ in scan]
        return found, scan.end, scan.last_seq, scan.durable_seq, scan.entries, scan.damage

    expected = answers()
    assert expected[1:3] == log.whole_before(len(raw))[:2]
    asked.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan_module, "_WINDOW", window)
        patch.setattr(scan_module, "_FIRST_WINDOW", window)
        assert answers() == expected
    assert all(size <= max(window, 455) and offset + size <= len(raw) for size, offset in asked)


def test_entries_across_and_larger_than_the_window(directory):
    sizes = [300 * KIB, 600 * KIB, 500 * KIB, 3 * MIB + 1, 0, MIB, MIB - MIN_ENTRY_SIZE - 1, 17, 2 * MIB, 1]
    log = Log()
    for size in sizes:
        log.put(b"k", b"\x01" * size)
    scan, found = scan_of(directory, log)
    assert len(found) == len(sizes)
    assert (scan.end, scan.damage) == (len(log.bytes), None)


def test_the_head_of_an_entry_may_be_cut_by_the_border_of_a_window(directory):
    for tail in range(MIN_ENTRY_SIZE + 10):
        log = Log()
        log.put(b"", bytes(MIB - entry_size(0, 0) - tail)).put(b"next").put(b"last")
        scan, found = scan_of(directory, log)
        assert len(found) == 3
        assert scan.damage is None


# --- searching for sync marks ------------------------------------------------------------------


def mark(seq: int, seed: int = SEED) -> bytes:
    return b"".join(encode_entry(SYNC_MARK, b"", b"", seq, NOW_MS, 0, seed))


def search(raw: bytes, above: int, start: int = 0) -> int | None:
    return find_sync_mark(lambda size, offset: raw[offset : offset + size], start, len(raw), SEED, above)


def test_a_mark_is_found_at_every_offset_and_so_across_every_border(monkeypatch):
    monkeypatch.setattr(resync, "_WINDOW", 64)
    for noise in (b"\0", b"\x03", b"\x03\0\0\0\0\0\0", b"\xff"):
        for before in range(150):
            raw = (noise * 150)[:before] + mark(7) + noise * 20
            assert search(raw, 6) == before, (noise, before)
            assert search(raw, 7) is None, "it vouches for nothing above"
            assert search(raw[: before + 26], 6) is None, "cut short"


def test_only_a_mark_of_this_segment_that_validates_counts():
    damaged = bytearray(mark(7))
    damaged[-1] ^= 1
    for raw in (mark(7, SEED ^ 1), mark(7, 0), bytes(damaged), mark(7)[:7], b"", bytes(1000)):
        assert search(bytes(50) + raw, 0) is None
    assert search(bytes(50) + bytes(damaged) + mark(7), 0) == 50 + MIN_ENTRY_SIZE


def test_the_first_mark_that_vouches_for_more_is_the_answer():
    raw = mark(3) + b"noise" + mark(5) + mark(9)
    assert search(raw, 0) == 0
    assert search(raw, 3) == MIN_ENTRY_SIZE + 5
    assert search(raw, 5) == 2 * MIN_ENTRY_SIZE + 5
    assert search(raw, 9) is None
    assert search(raw, 3, start=MIN_ENTRY_SIZE + 6) == 2 * MIN_ENTRY_SIZE + 5


def test_a_mark_far_behind_is_found_in_real_windows():
    raw = bytes(2 * MIB - 13) + mark(7) + bytes(100)
    assert search(raw, 6) == 2 * MIB - 13


# --- hints ---------------------------------------------------------------------------------

operations = st.lists(
    st.tuples(
        st.sampled_from([PUT, PUT, PUT, TOMBSTONE, CLEAR]),
        st.sampled_from([b"", b"a", b"b", b"c"]),
        st.sampled_from([0, 1, 30, 8191 - 28, 8192 - 28, 9000]),
        st.sampled_from([0, 0, 5]),
    ),
    max_size=25,
)
#: Several keys in turn, all of one size: what a scan hands out together.
alike = st.builds(
    lambda count, size: [(PUT, b"abc"[number % 3 :][:1], size, 0) for number in range(count)],
    st.sampled_from([8, 20, 70]),
    st.sampled_from([0, 30, 8192 - 28]),
)
histories = st.lists(operations | alike, max_size=4).map(lambda some: [*itertools.chain.from_iterable(some)])


@bounded
@given(histories)
def test_a_summary_says_what_replaying_the_log_says(operations):
    log = Log()
    puts: dict[bytes, tuple[int, int, int]] = {}  # key -> offset, size, expires
    tombstones: dict[bytes, int] = {}
    clears = clear_size = 0
    for kind, key, value_size, expires_ms in operations:
        offset = len(log.bytes)
        if kind == PUT:
            log.put(key, bytes(value_size), expires_ms=expires_ms)
            puts.pop(key, None)
            tombstones.pop(key, None)
            puts[key] = offset, len(log.bytes) - offset, expires_ms
        elif kind == TOMBSTONE:
            log.delete(key)
            puts.pop(key, None)
            tombstones[key] = len(log.bytes) - offset
        else:
            log.delete(b"", flags=CLEAR)
            puts.clear()
            tombstones.clear()
            clears, clear_size = 1, len(log.bytes) - offset
    raw = bytes(log.bytes)
    found = hint_of(Scan(lambda size, offset: raw[offset : offset + size], START, len(raw), SEED, 0))
    assert (found.length, found.last_seq, found.clears) == (len(raw), log.seq, bool(clears))
    assert dict(zip(found.keys, found.positions, strict=True)) == {
        key: pack_position(offset, size) for key, (offset, size, _) in puts.items()
    }
    assert list(found.positions) == sorted(found.positions), "in the order of the log"
    assert set(found.tombstones) == set(tombstones)
    assert found.expires == {key: expires for key, (_, _, expires) in puts.items() if expires}
    assert found.live_bytes == sum(size for _, size, _ in puts.values())
    assert found.tombstone_bytes == clear_size + sum(tombstones.values())


def test_making_a_hint_gives_way_now_and_then():
    log = Log()
    for _ in range(1001):
        log.put()
    raw = bytes(log.bytes)
    pauses: list[None] = []
    hint_of(
        Scan(lambda size, offset: raw[offset : offset + size], START, len(raw), SEED, 0), lambda: pauses.append(None)
    )
    assert len(pauses) > 1001 / 256  # the most that is done together takes 150 µs


# --- opening -----------------------------------------------------------------------------------


def test_opening_checks_that_the_header_is_this_files(directory):
    path = Path(directory.segment_path(1))
    path.write_bytes(encode_segment_header(header()._replace(segment_id=2)))
    with pytest.raises(CorruptionError, match="header says segment 2"):
        open_segment(directory, 1)
    path.write_bytes(encode_segment_header(header())[:-1])
    with pytest.raises(CorruptionError, match="cut short"):
        open_segment(directory, 1)
    path.write_bytes(b"")
    with pytest.raises(CorruptionError, match="magic"):
        open_segment(directory, 1)
    path.write_bytes(bytes(4096))
    with pytest.raises(CorruptionError, match="magic"):
        open_segment(directory, 1)


def test_a_listed_segment_that_is_missing_is_corruption(directory):
    with pytest.raises(CorruptionError, match="missing"):
        open_segment(directory, 1)


# --- writing -----------------------------------------------------------------------------------

MODES = pytest.mark.parametrize("mapped", [True, False], ids=["mmap", "pread"])


class Diary(FakeFiles):
    """Files that note every call which changes the disk."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def write(self, descriptor, piece, offset, path):
        self.notes.append(f"write {len(piece)} at {offset}")
        super().write(descriptor, piece, offset, path)

    def reserve(self, descriptor, size, path):
        self.notes.append(f"reserve {size}")
        super().reserve(descriptor, size, path)

    def truncate(self, descriptor, size, path):
        self.notes.append(f"truncate {size}")
        super().truncate(descriptor, size, path)

    def sync(self, descriptor, path):
        self.notes.append("sync")
        super().sync(descriptor, path)

    def sync_directory(self, path):
        self.notes.append("sync directory")
        super().sync_directory(path)

    def unlink(self, path):
        self.notes.append("unlink")
        return super().unlink(path)


class FullDisk(Diary):
    """Files on a disk with room for so many bytes; like posix_fallocate, a refused call keeps what it got."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def reserve(self, descriptor, size, path):
        if size > self.room:
            os.ftruncate(descriptor, max(self.room, os.fstat(descriptor).st_size))
            raise DiskFullError(errno.ENOSPC, "No space left on device", path)
        super().reserve(descriptor, size, path)

    def write(self, descriptor, piece, offset, path):
        super().write(descriptor, piece[: max(0, self.room - offset)], offset, path)
        if offset + len(piece) > self.room:
            raise DiskFullError(errno.ENOSPC, "No space left on device", path)


@pytest.fixture
def writers(path: Path) -> Iterator:
    """Make writers, closed at the end whatever happens."""
    path.mkdir()
    made: list[Writer] = []

    def make(files: FakeFiles | None = None, *, mapped: bool = True, limit: int = 64 * MIB) -> Writer:
        made.append(Writer.create(Directory(str(path), files or FakeFiles()), header(), limit, mapped=mapped))
        return made[-1]

    yield make
    for writer in made:
        writer.close()
    made.clear()  # each holds its directory


def append(writer: Writer, *values: bytes) -> None:
    """Append puts as the store does: room, bytes, end."""
    for value in values:
        parts = encode_entry(PUT, b"k", value, 1, NOW_MS, 0, writer.seed)
        size = sum(map(len, parts))
        writer.make_room(size)
        writer.open_room(fast=True)
        writer.write(writer.end, parts)
        writer.end += size


def size_of(writer: Writer) -> int:
    return os.stat(writer.path).st_size


@MODES
def test_a_new_segment_is_durable_with_its_name_before_it_is_used(mapped, writers):
    files = Diary()
    writer = writers(files, mapped=mapped)
    assert files.notes[0] == "write 80 at 0"
    assert files.notes[-2:] == ["sync", "sync directory"]
    assert Path(writer.path).read_bytes()[:80] == encode_segment_header(header())
    assert os.stat(writer.path).st_mode & 0o777 == 0o600
    assert (writer.end, writer.dirty) == (80, False)


@MODES
@pytest.mark.parametrize("what", ["file", "link", "hard link"])
def test_a_leftover_of_the_same_name_is_replaced_and_never_written_into(what, mapped, writers, path):
    """The manifest does not list it, or its id would not be given out."""
    name, target = path / "0000000001.seg", path / "target"
    target.write_bytes(b"of a failed attempt")
    if what == "file":
        target.rename(name)
    elif what == "link":
        name.symlink_to(target)
    else:
        os.link(target, name)
    writer = writers(mapped=mapped)
    append(writer, b"1")
    assert name.is_file()
    assert not name.is_symlink()
    assert name.read_bytes()[:80] == encode_segment_header(header())
    assert what == "file" or target.read_bytes() == b"of a failed attempt"


@MODES
def test_a_directory_of_the_same_name_is_an_error(mapped, writers, path):
    (path / "0000000001.seg").mkdir()
    with pytest.raises(BytekvError):
        writers(mapped=mapped)
    assert (path / "0000000001.seg").is_dir()


@MODES
def test_a_segment_that_cannot_be_made_leaves_nothing_behind(mapped, writers, path):
    for room in (0, 40, 79, 80):  # a mapping needs a byte beyond the header
        if not mapped and room >= 80:
            continue
        with pytest.raises(DiskFullError):
            writers(FullDisk(room), mapped=mapped)
        assert list(path.iterdir()) == []


def test_both_ways_write_the_same_bytes(writers, path):
    values = [b"", b"1", bytes(range(256)) * 300, b"x" * 70_000]
    written = []
    for mapped in (True, False):
        writer = writers(mapped=mapped)
        append(writer, *values)
        writer.trim()
        writer.close()
        written.append(Path(writer.path).read_bytes())
        Path(writer.path).unlink()
    assert written[0] == written[1]
    assert len(written[0]) == 80 + sum(entry_size(1, len(value)) for value in values)


def test_the_file_grows_in_steps_and_is_zeros_behind_the_end(writers):
    writer = writers(limit=64 * MIB)
    sizes = [size_of(writer)]
    assert sizes == [80 + 64 * KIB], "a tiny store stays tiny"
    for _ in range(40):
        append(writer, b"x" * 50_000)
        if size_of(writer) != sizes[-1]:
            sizes.append(size_of(writer))
    assert all(after == 2 * before for before, after in itertools.pairwise(sizes)), sizes
    content = Path(writer.path).read_bytes()
    assert content[writer.end :].strip(b"\0") == b""
    assert writer.end == 80 + 40 * entry_size(1, 50_000)


def test_no_step_is_larger_than_an_eighth_or_goes_beyond_the_limit(writers):
    """What is allocated ahead takes disk, too: of a segment of 4 MiB it could be half."""

    class NoDisk(FakeFiles):
        """Files that only note what would be allocated; the mapping ends where the file does."""

        def __init__(self) -> None:
            super().__init__()
            self.reserved: list[int] = []

        def reserve(self, descriptor, size, path):
            self.reserved.append(size)
            os.ftruncate(descriptor, size)

        def populate(self, mapping, start, stop):
            pass

    files = NoDisk()
    writer = writers(files, limit=200 * MIB)
    while writer.fits(MIB):
        writer.make_room(MIB)
        writer.end += MIB
    steps = [after - before for before, after in zip(files.reserved, files.reserved[1:], strict=False)]
    assert max(steps) == 200 * MIB // 8
    assert files.reserved[-1] == 200 * MIB + TUNING.reserve


def test_what_is_larger_than_a_segment_gets_the_room_it_needs(writers):
    writer = writers(limit=4096)
    assert size_of(writer) == 4096 + TUNING.reserve
    assert writer.fits(10 * MIB), "the first entry always fits"
    append(writer, b"x" * 100_000)
    assert size_of(writer) == writer.end + TUNING.reserve
    assert not writer.fits(1)


def test_the_hot_path_stays_below_what_is_populated_the_limit_and_the_reserve(writers):
    writer = writers(limit=100_000)
    assert writer.fast_end == 0, "nothing was populated yet"
    append(writer, b"")
    assert writer.fast_end == size_of(writer) - TUNING.reserve
    append(writer, b"x" * 60_000, b"x" * 39_000)
    assert writer.fast_end == 100_000
    assert size_of(writer) == 100_000 + TUNING.reserve
    writer.close()
    assert writer.fast_end == 0


def test_populating_goes_ahead_by_a_mebibyte(writers):
    asked: list[tuple[int, int]] = []

    class Noting(FakeFiles):
        def populate(self, mapping, start, stop):
            asked.append((start, stop))
            super().populate(mapping, start, stop)

    writer = writers(Noting())
    for _ in range(60):
        append(writer, b"x" * 60_000)
    assert asked[0][0] == 80
    assert all(first[1] >= second[0] for first, second in itertools.pairwise(asked)), "no gap"
    assert all(stop - start <= MIB + 60_000 + 64 * KIB for start, stop in asked)
    assert asked[-1][1] >= writer.end


def test_a_full_disk_is_a_clean_error_and_gives_back_what_was_got(writers):
    files = FullDisk(room=100_000)
    writer = writers(files)
    append(writer, b"x" * 1000)
    allocated, end = size_of(writer), writer.end
    with pytest.raises(DiskFullError):
        append(writer, b"y" * 70_000)
    assert size_of(writer) == allocated, "the file was grown to the last free block, and cut again"
    assert writer.end == end
    assert writer.map[end : end + 100] == bytes(100)
    assert bytes(writer.map[allocated - 1 : allocated]) == b"\0", "the mapping is whole: no SIGBUS"
    append(writer, b"z" * 1000)


def test_on_a_full_disk_only_deletes_may_use_the_reserve(writers):
    files = FullDisk(room=80 + 80 * KIB)
    writer = writers(files)
    append(writer, b"x" * (32 * KIB - 30))
    with pytest.raises(DiskFullError):
        writer.make_room(100)
    deletes = 0
    while writer.reserve_holds(43):
        writer.make_room(43, use_reserve=True)
        writer.write(writer.end, encode_entry(TOMBSTONE, bytes(16), b"", deletes, NOW_MS, 0, writer.seed))
        writer.end += 43
        deletes += 1
    assert deletes >= (TUNING.reserve - TUNING.manifest_room) // 43
    assert writer.end + TUNING.manifest_room <= size_of(writer) <= 80 + 80 * KIB


def test_what_a_failed_pwrite_has_left_is_cut_off_again(writers):
    files = FullDisk(room=500)
    writer = writers(files, mapped=False)
    append(writer, b"x" * 200)
    end = writer.end
    with pytest.raises(DiskFullError):
        append(writer, b"y" * 300)
    assert size_of(writer) > writer.end == end
    assert writer.take_back(end, encode_entry(PUT, b"k", b"y" * 300, 1, NOW_MS, 0, writer.seed))
    assert size_of(writer) == writer.end == end
    append(writer, b"z" * 100)


@pytest.mark.parametrize("written", ["some of it", "all of it"])
def test_what_cannot_be_cut_off_has_happened_if_all_of_it_is_there(written, writers):
    """An error says nothing about what was written before it was raised, and the next opening would find it."""

    class Refusing(FakeFiles):
        def truncate(self, descriptor: int, size: int, path: str) -> None:
            raise StoreIOError(errno.EIO, "broken", path)

    writer = writers(Refusing(), mapped=False)
    parts = encode_entry(PUT, b"k", b"v" * 100, 1, NOW_MS, 0, writer.seed)
    writer.write(writer.end, [b"".join(parts)[:50]] if written == "some of it" else parts)
    assert writer.take_back(writer.end, parts) == (written == "some of it")


@MODES
def test_writing_the_same_once_more_is_harmless(mapped, writers):
    writer = writers(mapped=mapped)
    append(writer, b"before")
    parts = encode_entry(PUT, b"k", b"v", 1, NOW_MS, 0, writer.seed)
    size = sum(map(len, parts))
    writer.make_room(size)
    writer.write(writer.end, parts)
    once = Path(writer.path).read_bytes()
    writer.write(writer.end, parts)
    assert Path(writer.path).read_bytes() == once
    assert writer.dirty


@MODES
def test_trim_cuts_behind_the_last_entry(mapped, writers):
    writer = writers(mapped=mapped)
    append(writer, b"1", b"2")
    writer.trim()
    assert size_of(writer) == writer.end
    assert writer.fast_end == 0
    writer.trim()
    assert size_of(writer) == writer.end


@MODES
def test_a_segment_is_continued_where_it_ended(mapped, writers, path):
    writer = writers(mapped=mapped)
    append(writer, b"1")
    end = writer.end
    writer.trim()
    writer.close()
    directory = Directory(str(path), FakeFiles())
    again = Writer.resume(directory, 1, end, 64 * MIB, mapped=mapped)
    assert (again.end, again.seed, again.header, again.dirty) == (end, SEED, header(), False)
    assert size_of(again) == end, "nothing is allocated before something is written"
    append(again, b"2")
    again.trim()
    again.close()
    log = Log().put(b"k", b"1")
    log.seq -= 1  # both were written as seq 1
    log.put(b"k", b"2")
    assert Path(again.path).read_bytes() == log.bytes


@MODES
def test_a_view_shows_what_was_appended_and_outlives_the_writer(mapped, writers):
    writer = writers(mapped=mapped)
    append(writer, b"value")
    view = writer.readable()
    raw = view[80 : writer.end]
    writer.close()
    writer.close()
    assert view[80 : writer.end] == raw
    assert codec.decode_entry(raw, SEED, "", 0).value == b"value"
    assert isinstance(view, PreadFile) != mapped
    if mapped:
        view.close()


def test_a_dropped_writer_closes_its_file(writers, path):
    directory = Directory(str(path), FakeFiles())
    writer = Writer.create(directory, header(), MIB, mapped=False)
    descriptor = writer._descriptor
    del writer
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_every_scan_of_what_a_writer_wrote_finds_it(writers, path):
    for mapped in (True, False):
        writer = writers(mapped=mapped)
        for seq in range(1, 50):
            parts = encode_entry(PUT, b"%d" % seq, bytes(seq * 97), seq, NOW_MS, 0, writer.seed)
            size = sum(map(len, parts))
            writer.make_room(size)
            writer.write(writer.end, parts)
            writer.end += size
        directory = Directory(str(path), FakeFiles())
        descriptor, found = open_segment(directory, 1)
        scan = scan_segment(directory, descriptor, found, START, size_of(writer), 0)
        assert [seq for _, _, seq, *_ in scan] == list(range(1, 50))
        assert (scan.end, scan.damage) == (writer.end, None)
        directory.files.close(descriptor)
        writer.close()
        Path(writer.path).unlink()


def test_the_kinds_of_entries_are_told_by_the_low_bits():
    assert {(PUT | CONTINUES) & KIND, (PUT | codec.EXPIRES) & KIND} == {PUT}
    assert SIZE_MASK == 8191
