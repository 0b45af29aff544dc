"""What format version 1 was when it was frozen can still be read, to the last byte.

The stores under tests/golden are never written again (see make_v1.py). If a test here fails, the format
was changed: raise its version instead.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bytekv.engine.codec import entry as codec
from bytekv.engine.codec.hint import Hint
from bytekv.engine.codec.manifest import ACTIVE, LOG, OUTPUT, SEALED, SegmentHeader, SegmentRow
from bytekv.engine.log.directory import Directory
from bytekv.engine.log.files import Files
from bytekv.engine.log.scan import open_segment, scan_segment
from bytekv.engine.log.summary import hint_of, load_hint
from bytekv.errors import CorruptionError
from tests.golden import make_v1
from tests.support.harness import open_store, segment_files, snapshot_of

NAMES = sorted(make_v1.STORES)
OPENING = [name for name in NAMES if name != "damaged"]


@pytest.fixture
def golden(path):
    """Put a copy of a golden store where the test's store is."""

    def copy(name: str) -> dict[str, Any]:
        shutil.copytree(make_v1.HERE / name / "store", path)
        return json.loads((make_v1.HERE / name / "expected.json").read_text())

    return copy


def piece(text: str | list[Any]) -> bytes:
    """Return the bytes that expected.json means."""
    return text.encode("latin-1") if isinstance(text, str) else text[0].encode("latin-1") * text[1]


def entries_of(db) -> list[tuple[bytes, bytes, int, float, float | None]]:
    return [tuple(db.entry(key)) for key in db]


def expect(db, expected: dict[str, Any], *, readonly: bool) -> None:
    assert entries_of(db) == [
        (piece(key), piece(value), seq, modified_ms / 1000, expires_ms and expires_ms / 1000)
        for key, value, seq, modified_ms, expires_ms in expected["entries"]
    ]
    assert db.last_seq == db.recovery.last_seq == expected["last_seq"]
    facts = expected["recovery"]
    # A writer has synced what it recovered; a reader knows only what the last sync mark vouches for, seq 2.
    assert db.durable_seq == (expected["last_seq"] if facts["clean"] or not readonly else 2)
    assert db.recovery.clean == facts["clean"]
    assert db.recovery.hints_used == facts["hints_used"]
    assert db.recovery.hints_missing == 0
    assert db.recovery.swept == []
    # A reader takes nothing away, and so has nothing to set aside.
    assert db.recovery.torn_bytes == (0 if readonly else facts["torn_bytes"])
    assert [str(Path(file).relative_to(db.path)) for file in db.recovery.quarantined] == (
        [] if readonly else facts["quarantined"]
    )
    report = db.verify()
    assert report.ok, report


def test_every_golden_store_is_there():
    assert sorted(folder.name for folder in make_v1.HERE.iterdir()) == NAMES


def test_they_are_never_written_again(capsys):
    before = snapshot_of(make_v1.HERE)
    make_v1.main()
    assert capsys.readouterr().out.splitlines() == [f"{name}: exists and is kept" for name in make_v1.STORES]
    assert snapshot_of(make_v1.HERE) == before


@pytest.mark.parametrize("io", ["mmap", "pread"])
@pytest.mark.parametrize("name", OPENING)
def test_reading_finds_what_was_written_and_changes_no_byte(name, io, golden, path):
    expected = golden(name)
    before = snapshot_of(path)
    with open_store(path, "r", io=io) as db:
        expect(db, expected, readonly=True)
    assert snapshot_of(path) == before


@pytest.mark.parametrize("io", ["mmap", "pread"])
@pytest.mark.parametrize("name", OPENING)
def test_a_writer_finds_the_same_and_goes_on(name, io, golden, open_store, path):
    expected = golden(name)
    db = open_store("w", io=io)
    expect(db, expected, readonly=False)
    content = dict(db)
    db["written by a later version"] = b"1"
    assert db.last_seq == expected["last_seq"] + 1
    db.close()
    db = open_store("w", io=io)
    assert dict(db) == {**content, b"written by a later version": b"1"}
    assert db.recovery.clean
    db.compact()
    assert dict(db) == {**content, b"written by a later version": b"1"}


@pytest.mark.parametrize("flag", ["r", "w", "c"])
def test_damage_is_named_and_nothing_is_changed(flag, golden, path):
    where = golden("damaged")["error"]
    before = snapshot_of(path)
    with pytest.raises(CorruptionError) as raised:
        open_store(path, flag)
    assert raised.value.path == str(path / where["path"])
    assert raised.value.offset == where["offset"]
    after = snapshot_of(path)
    after.pop("LOCK", None)
    assert after == before


def test_the_torn_tail_is_kept_and_the_second_opening_finds_a_clean_store(golden, path):
    expected = golden("crashed")
    (file,) = segment_files(path)
    (aside,) = expected["recovery"]["quarantined"]
    end = int(aside.rpartition("-")[2].removesuffix(".torn"))
    tail = file.read_bytes()[end:].rstrip(b"\0")
    with open_store(path, "w") as db:
        assert (path / aside).read_bytes() == tail
        assert len(tail) == db.recovery.torn_bytes
        assert b"lost:1" in tail
        assert not [key for key in db if key.startswith(b"lost")]
    assert file.stat().st_size == end
    with open_store(path, "w") as db:
        assert db.recovery.clean
        assert [key.decode() for key in db] == [key for key, *_ in expected["entries"]]


# --- that they hold what they are there for ----------------------------------------------------


def segments_of(path: Path) -> list[tuple[SegmentHeader, SegmentRow, list[tuple[Any, ...]], Hint]]:
    """Return header, row, entries and hint of each segment, by the codec and a scan alone."""
    directory = Directory(str(path), Files())
    found = []
    for row in directory.load(for_writing=False).segments:
        descriptor, header = open_segment(directory, row.segment_id)
        try:
            size = directory.files.size(descriptor, "")
            stop = row.length if row.state == SEALED else size
            again = [scan_segment(directory, descriptor, header, 80, stop, header.previous_seq) for _ in range(2)]
            found.append((header, row, list(again[0]), hint_of(again[1])))
        finally:
            directory.files.close(descriptor)
    return found


def kinds_of(path: Path) -> Counter[int]:
    return Counter(flags for _, _, entries, _ in segments_of(path) for flags, *_ in entries)


def test_plain_has_every_kind_of_entry_but_clear(golden, path):
    golden("plain")
    kinds = kinds_of(path)
    assert set(kinds) == {
        codec.PUT,
        codec.PUT | codec.EXPIRES,
        codec.PUT | codec.CONTINUES,
        codec.TOMBSTONE,
    }
    assert any(codec.SYNC_MARK_HEAD in file.read_bytes() for file in segment_files(path))
    assert len(segment_files(path)) >= 5


def test_the_hints_have_mixed_and_equal_keys_and_one_speaks_for_a_prefix(golden, path):
    golden("clean-with-hints")
    directory = Directory(str(path), Files())
    (first, first_row, _, first_summary), (second, second_row, _, _) = segments_of(path)
    whole, prefix = load_hint(directory, first, first_row.length), load_hint(directory, second, second_row.length)
    assert whole is not None
    assert prefix is not None
    assert whole.length == first_row.length > 64 * 1024
    assert prefix.length < second_row.length
    assert len({len(key) for key in whole.keys}) > 1
    assert len({len(key) for key in prefix.keys}) == 1
    assert whole.clears
    assert list(whole.tombstones) == list(first_summary.tombstones) == [b"key 3"]
    assert whole.expires == first_summary.expires
    assert len(whole.expires) == 3
    assert (list(whole.keys), list(whole.positions)) == (list(first_summary.keys), list(first_summary.positions))
    assert any(not place & codec.SIZE_MASK for place in whole.positions), "an entry of more than 8,191 bytes"


def test_crashed_is_preallocated(golden, path):
    golden("crashed")
    ((_, row, _, hint),) = segments_of(path)
    (file,) = segment_files(path)
    assert row.state == ACTIVE
    assert row.length < hint.length < file.stat().st_size
    assert file.read_bytes().endswith(bytes(1000))


def test_compacted_has_outputs_in_front_of_older_ids_with_a_clear_and_tombstones(golden, path):
    golden("compacted")
    segments = segments_of(path)
    ids = [row.segment_id for _, row, _, _ in segments]
    assert ids != sorted(ids)
    outputs = [(row, entries) for header, row, entries, _ in segments if header.kind == OUTPUT]
    assert {flags for _, entries in outputs for flags, *_ in entries} == {
        codec.PUT,
        codec.PUT | codec.EXPIRES,
        codec.TOMBSTONE,
        codec.CLEAR,
    }
    for _, entries in outputs:
        keys = [key for flags, key, *_ in entries if flags != codec.CLEAR]
        assert len(keys) == len(set(keys))
        assert codec.CLEAR not in [flags for flags, *_ in entries[1:]]
    assert segments[0][0].kind == LOG, "the run did not begin at the oldest"
