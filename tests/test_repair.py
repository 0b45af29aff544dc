"""Damage is found, named and cut out; everything undamaged stays (D9)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import bytekv
from bytekv.codec import SEGMENT_HEADER_SIZE, seed_of
from bytekv.segment import Scan
from tests.harness import crash, damage, open_store, segment_files, snapshot_of


def build(path: Path) -> dict[bytes, bytes]:
    """A store of several sealed segments: overwrites, deletes, a batch, synced."""
    db = open_store(path, segment_size_bytes=700)
    for number in range(24):
        db[f"key-{number:02}"] = f"value {number} ".encode() * 3
    db.update({"batch-1": "one", "batch-2": "two", "batch-3": "three"})
    del db["key-03"]
    db["key-04"] = "new"
    db.sync()
    content = dict(db)
    db.close()
    return content


def entries(file: Path) -> list[tuple[int, bytes, int]]:
    """List (offset, key, size) of the entries in a segment."""
    raw = file.read_bytes()
    salt = int.from_bytes(raw[48:56], "little")
    scan = Scan(lambda size, at: raw[at : at + size], SEGMENT_HEADER_SIZE, len(raw), seed_of(salt), None)
    return [(offset, key, len(bytes_)) for _, key, _, _, offset, bytes_ in scan]


def test_every_single_damaged_entry_is_named_and_only_it_is_lost(path: Path):
    content = build(path)
    cases = 0
    for file in segment_files(path):
        for offset, key, size in entries(file):
            copy = path.with_name("copy")
            shutil.copytree(path, copy)
            damage(copy / file.name, offset + size - 2, 0x10)
            with pytest.raises(bytekv.CorruptionError) as caught:
                open_store(copy)
            assert Path(caught.value.path).name == file.name
            assert caught.value.offset <= offset
            report = bytekv.repair(copy)
            assert [(Path(found.path).name, found.offset) for found in report.damage] == [(file.name, offset)]
            assert report.damage[0].key == key
            assert report.quarantined
            with open_store(copy) as db:
                assert db.verify().ok
                found = dict(db)
            # The key's older value may be back, or with a lost tombstone the key itself: that is what the report says.
            found.pop(key, None)
            assert found == {name: value for name, value in content.items() if name != key}
            assert bytekv.repair(copy).ok
            shutil.rmtree(copy)
            cases += 1
    assert cases > 25


def test_what_was_cut_out_is_kept(path: Path):
    build(path)
    file = segment_files(path)[1]
    offset, _, _ = entries(file)[1]
    damage(file, offset + 5)
    damaged = file.read_bytes()
    report = bytekv.repair(path)
    assert not file.exists()
    assert [Path(kept).read_bytes() for kept in report.quarantined] == [damaged]
    assert str(file) in str(report)


def test_open_with_salvage(path: Path):
    content = build(path)
    file = segment_files(path)[0]
    offset, key, _ = entries(file)[2]
    damage(file, offset + 30)
    with pytest.raises(bytekv.CorruptionError):
        open_store(path)
    with open_store(path, recover="salvage") as db:
        assert [found.offset for found in db.recovery.salvaged.damage] == [offset]
        assert {**dict(db), key: content[key]} == content
    with open_store(path, recover="salvage") as db:
        assert db.recovery.salvaged is None


@pytest.mark.parametrize("loss", ["missing", "empty", "damaged"])
def test_a_lost_manifest_is_rebuilt_from_the_segments(path: Path, loss: str):
    content = build(path)
    with open_store(path, segment_size_bytes=700) as db:
        db["key-00"] = "after a reopening"
        del db["key-01"]
        db.compact()
        db["key-02"] = "after a compaction"
        content = dict(db)
        last_seq = db.last_seq
        crash(db)
    manifest = path / "MANIFEST"
    if loss == "missing":
        manifest.unlink()
    elif loss == "empty":
        manifest.write_bytes(b"")
    else:
        damage(manifest, 40)
    before = snapshot_of(path)
    with pytest.raises(bytekv.CorruptionError, match="MANIFEST"):
        open_store(path)
    assert snapshot_of(path) == before
    report = bytekv.repair(path)
    assert not report.ok
    with open_store(path) as db:
        assert dict(db) == content
        assert db.last_seq == last_seq
        assert db.verify().ok
        db["more"] = "1"


def test_clear_holds_through_a_rebuild(path: Path):
    with open_store(path, segment_size_bytes=300) as db:
        for number in range(10):
            db[f"{number}"] = "x" * 50
        db.clear()
        db["kept"] = "1"
    (path / "MANIFEST").unlink()
    bytekv.repair(path)
    with open_store(path) as db:
        assert dict(db) == {b"kept": b"1"}


def test_a_missing_segment_is_reported_and_the_rest_kept(path: Path):
    content = build(path)
    lost = segment_files(path)[1]
    keys = {key for _, key, _ in entries(lost)}
    lost.unlink()
    with pytest.raises(bytekv.CorruptionError, match="missing"):
        open_store(path)
    report = bytekv.repair(path)
    assert [Path(found.path).name for found in report.damage] == [lost.name]
    with open_store(path) as db:
        found = dict(db)
        assert {key: value for key, value in found.items() if key not in keys} == {
            key: value for key, value in content.items() if key not in keys
        }


def test_a_damaged_active_segment_after_a_crash(path: Path):
    db = open_store(path)
    for number in range(10):
        db[f"{number}"] = f"value {number}"
    db.sync()
    db["unsynced"] = "1"
    crash(db)
    file = segment_files(path)[0]
    offset = entries(file)[4][0]
    damage(file, offset + 24)
    with pytest.raises(bytekv.CorruptionError, match="sync mark"):
        open_store(path)
    report = bytekv.repair(path)
    assert [found.offset for found in report.damage] == [offset]
    with open_store(path) as db:
        assert sorted(db) == sorted([b"unsynced", *(b"%d" % number for number in range(10) if number != 4)])


def test_a_torn_tail_is_no_damage_for_repair(path: Path):
    db = open_store(path, io="pread")
    db["a"] = "1"
    db["b"] = "2"
    crash(db)
    file = segment_files(path)[0]
    offset, _, size = entries(file)[-1]
    file.write_bytes(file.read_bytes()[: offset + size - 3])
    assert bytekv.repair(path).ok
    with open_store(path) as db:
        assert dict(db) == {b"a": b"1"}
        assert db.recovery.torn_bytes > 0


def test_repair_is_refused_while_a_writer_is_at_work(path: Path, open_store):
    open_store()
    with pytest.raises(bytekv.StoreLockedError):
        bytekv.repair(path)


def test_verify_names_every_damaged_entry_with_its_key(path: Path):
    build(path)
    places = []
    for file in segment_files(path)[:2]:
        for offset, key, size in entries(file)[1:4:2]:
            places.append((file.name, offset, key))
            damage(file, offset + size - 5)
    with open_store(path, recover="salvage") as db:
        report = db.recovery.salvaged
        assert [(Path(found.path).name, found.offset, found.key) for found in report.damage] == places
        assert db.verify().ok


def test_verify_names_the_damage_of_an_open_store(path: Path):
    build(path)
    with open_store(path, io="pread") as db:
        file = segment_files(path)[1]
        offset, key, size = entries(file)[2]
        damage(file, offset + size - 5)
        report = db.verify()
        assert [(found.path, found.offset, found.key) for found in report.damage] == [(str(file), offset, key)]
        assert str(key) in str(report)
