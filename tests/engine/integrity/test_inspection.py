"""What lies in a segment's bytes: everything is found, whatever was done to the file, and nothing is believed."""

from __future__ import annotations

import os
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytekv.engine.codec.checksum import CRC, checksum, seed_of
from bytekv.engine.codec.manifest import SEGMENT_HEADER_SIZE
from bytekv.engine.integrity import inspection
from bytekv.engine.integrity.inspection import Inspection
from bytekv.errors import BytekvError
from tests.support.harness import FakeFiles, crash, fresh, open_store


@pytest.fixture
def segment(path):
    """A segment with one of everything: puts, an expiry, a batch, a delete, a clear, sync marks."""
    clock = FakeFiles(now_s=1000.0)
    with open_store(path, files=clock) as db:
        db["a"] = "1"
        db.put("b", "22", expires=2000.5)
        db.sync()
        with db.batch() as batch:
            batch["c"] = "3"
            batch["d"] = b"\xff" * 1000
        del db["a"]
        db.clear()
        db["e"] = ""
    return path / "0000000001.seg"


def inspect(file):
    """Return the header and a list of everything else."""
    with Inspection(str(file)) as found:
        return found.header, list(found)


def told(found):
    return [(each.kind, each.seq, each.key) for each in found]


WHOLE = [
    ("put", 1, b"a"),
    ("put", 2, b"b"),
    ("sync mark", 2, b""),
    ("put", 3, b"c"),
    ("put", 4, b"d"),
    ("delete", 5, b"a"),
    ("clear", 6, b""),
    ("put", 7, b"e"),
]


def test_a_whole_segment(segment):
    header, found = inspect(segment)
    assert (header.wrong, header.kind, header.version, header.segment_id, header.previous_seq) == (None, "log", 1, 1, 0)
    assert header.size_bytes == segment.stat().st_size
    assert told(found) == WHOLE
    assert not any(each.note for each in found)
    assert [each.offset for each in found] == [80, *(each.offset + each.size for each in found[:-1])]
    assert found[-1].offset + found[-1].size == header.size_bytes
    assert [each.continues for each in found] == [False, False, False, True, False, False, False, False]
    assert [each.value_size for each in found] == [1, 2, 0, 1, 1000, 0, 0, 0]
    assert [each.expires_ms for each in found] == [0, 2_000_500, 0, 0, 0, 0, 0, 0]
    assert {each.modified_ms for each in found} == {1_000_000}


def test_room_that_is_not_written_yet(path):
    db = open_store(path, io="mmap")
    db["a"] = "1"
    crash(db)
    header, found = inspect(path / "0000000001.seg")
    assert told(found) == [("put", 1, b"a"), ("zeros", 0, b"")]
    assert sum(each.size for each in found) + SEGMENT_HEADER_SIZE == header.size_bytes > 60_000


def test_an_output_of_a_compaction_has_seqs_in_any_order(path):
    with open_store(path) as db:
        for key in "abcab":
            db[key] = "x"
        db.compact()
        (file,) = path.glob("*.seg")
        header, found = inspect(file)
    assert header.kind == "output"
    assert sorted(each.seq for each in found) == [3, 4, 5]
    assert not any(each.note for each in found)


def test_what_follows_damage_is_found(segment):
    raw = bytearray(segment.read_bytes())
    _, found = inspect(segment)
    raw[found[1].offset + 30] ^= 1
    segment.write_bytes(raw)
    _, after = inspect(segment)
    assert told(after) == [WHOLE[0], ("damage", 0, b""), *WHOLE[2:]]
    assert (after[1].offset, after[1].size) == (found[1].offset, found[1].size)
    assert "put of 38 bytes, seq 2: fails its CRC32C" in after[1].note


def test_an_end_that_is_cut_off_is_a_tail(segment):
    raw = segment.read_bytes()
    segment.write_bytes(raw[:-3])
    _, found = inspect(segment)
    assert told(found) == [*WHOLE[:-1], ("tail", 0, b"")]
    assert found[-1].note == "25 bytes are too few for an entry"
    _, whole = inspect(segment)
    segment.write_bytes(raw[: whole[4].offset + 100])
    _, found = inspect(segment)
    assert told(found)[-2:] == [("put", 3, b"c"), ("tail", 0, b"")]
    assert found[-1].note == "an entry of 1028 bytes where 100 are left; the batch before it has no last entry"


def test_a_batch_without_its_last_entry_before_zeros(segment):
    raw = segment.read_bytes()
    _, found = inspect(segment)
    segment.write_bytes(raw[: found[4].offset] + bytes(100))
    _, found = inspect(segment)
    assert (found[-1].kind, found[-1].size, found[-1].note) == ("zeros", 100, "the batch before has no last entry")


def test_a_gap_in_the_seqs_is_noted(segment):
    raw = segment.read_bytes()
    _, found = inspect(segment)
    segment.write_bytes(raw[:80] + raw[found[1].offset :])
    _, found = inspect(segment)
    assert [each.note for each in found] == ["seq 1 was expected", *[None] * 6]


@pytest.mark.parametrize(
    ("damage", "wrong"),
    [
        (lambda raw: raw[:50], "cut short at 50 bytes"),
        (lambda raw: b"", "magic bytes missing"),
        (lambda raw: b"XXX" + raw[3:], "magic bytes missing"),
        (lambda raw: raw[:9] + b"\x07" + raw[10:], "fails its CRC32C"),
    ],
)
def test_a_damaged_header_is_told_and_not_the_end(segment, damage, wrong):
    segment.write_bytes(damage(segment.read_bytes()))
    header, found = inspect(segment)
    assert wrong in header.wrong
    if header.size_bytes > 80:  # the salt is whole, so the entries are
        assert told(found) == WHOLE


def test_a_newer_format_is_told(segment):
    raw = bytearray(segment.read_bytes())
    raw[8:10] = struct.pack("<H", 2)
    raw[76:80] = CRC.pack(checksum(bytes(raw[:76])))
    segment.write_bytes(raw)
    header, _ = inspect(segment)
    assert header.kind == "unknown"
    assert "format version 2" in header.wrong


def test_what_is_no_regular_file_is_refused(path):
    path.mkdir()
    os.mkfifo(path / "fifo")
    (path / "link").symlink_to("/dev/zero")
    for name in ("fifo", "link", "nothing", ""):
        with pytest.raises(BytekvError):
            Inspection(str(path / name))


def test_the_search_behind_damage_gives_up(segment, monkeypatch):
    """A file can make every byte of a long stretch look like an entry as long as the rest: quadratic work."""
    raw = segment.read_bytes()
    heads = b"".join(struct.pack("<BHIQQ", 1, 0, 2_000_000, 5, 0) for _ in range(5_000))
    segment.write_bytes(raw[:80] + b"\xff" + heads + bytes(2_100_000))
    _, found = inspect(segment)
    assert [each.kind for each in found] == ["damage"]
    assert "gave up" in found[0].note
    monkeypatch.setattr(inspection, "_BUDGET", 1)
    assert inspect(segment)[1] == found


@settings(max_examples=60)
@given(st.randoms(use_true_random=False), st.sampled_from(["flip", "cut", "insert", "random"]))
def test_any_file_is_told_to_its_end(path, chance: random.Random, how):
    file = fresh(path) / "1.seg"
    salt = 7
    header = open_segment_header(salt)
    raw = bytearray(header)
    for seq in range(1, 6):
        body = struct.pack("<BHIQQ", 1, 1, 3, seq, 0) + b"kabc"
        raw += body + CRC.pack(checksum(body, seed_of(salt)))
    if how == "flip":
        for _ in range(3):
            raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
    elif how == "cut":
        del raw[chance.randrange(len(raw)) :]
    elif how == "insert":
        at = chance.randrange(len(raw))
        raw[at:at] = chance.randbytes(chance.randrange(50))
    else:
        raw = bytearray(chance.randbytes(chance.randrange(300)))
    file.write_bytes(raw)
    header_, found = inspect(file)
    at = SEGMENT_HEADER_SIZE
    for each in found:
        assert (each.offset, each.size > 0) == (at, True)
        at += each.size
    assert at == max(len(raw), SEGMENT_HEADER_SIZE)
    assert header_.size_bytes == len(raw)


def open_segment_header(salt):
    from bytekv.engine.codec.manifest import LOG, SegmentHeader, encode_segment_header

    return encode_segment_header(SegmentHeader(bytes(16), 1, salt, LOG, 0, 0))
