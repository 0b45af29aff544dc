"""Damage is found, named and cut out; everything undamaged stays (D9)."""

from __future__ import annotations

import errno
import itertools
import shutil
from pathlib import Path

import pytest

import bytekv
from bytekv.engine.codec.checksum import seed_of
from bytekv.engine.codec.manifest import OUTPUT, SEGMENT_HEADER_SIZE
from bytekv.engine.integrity.repair import repair_directory
from bytekv.engine.log.directory import Directory
from bytekv.engine.log.scan import Scan
from bytekv.errors import StoreIOError
from tests.support import harness
from tests.support.forge import Entry, Segment, write_store
from tests.support.harness import QuickFiles, crash, damage, open_store, patched, segment_files, snapshot_of


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


def test_a_segment_of_another_store_does_not_mix_with_a_rebuilt_one(path: Path):
    """Its entries have higher seqs, and won."""
    content = build(path)
    other = path.with_name("other")
    with open_store(other, segment_size_bytes=300) as db:
        for number in range(200):
            db[f"key-{number % 24:02}"] = "of another store"
    stray = path / "0000000020.seg"
    assert not stray.exists()
    shutil.copy(other / stray.name, stray)
    (path / "MANIFEST").unlink()
    report = bytekv.repair(path)
    assert (str(stray), "belongs to another store") in [(found.path, found.reason) for found in report.damage]
    assert str(path / "quarantine" / "0000000020.damaged") in report.quarantined
    with open_store(path) as db:
        assert dict(db) == content
        assert db.verify().ok


class Stop(BaseException):
    """The process ends here."""


def test_what_was_deleted_stays_so_if_the_manifest_is_lost_while_victims_go(path: Path):
    """Victims are removed oldest first: a put never outlives the tombstone that a compaction has dropped with it."""

    class Mortal(QuickFiles):
        left = 1 << 30

        def unlink(self, path: str) -> bool:
            self.left -= path.endswith(".seg")
            if self.left < 0:
                raise Stop
            return super().unlink(path)

    for removed in itertools.count():
        shutil.rmtree(path, ignore_errors=True)
        files = Mortal()
        db = open_store(path, files=files, segment_size_bytes=300, io="pread")
        for number in range(4):
            db[f"deleted {number}"] = "x" * 100
        for number in range(4):
            del db[f"deleted {number}"]
        db["kept"] = "y" * 200
        content = dict(db)
        files.left = removed
        try:
            db.compact()
        except Stop:
            crash(db)
        else:
            db.close()
            break
        (path / "MANIFEST").unlink()
        bytekv.repair(path)
        with open_store(path) as db:
            assert dict(db) == content
    assert removed > 3


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


@pytest.mark.parametrize("cut", [1, 40, 300])
def test_a_segment_that_was_cut_short_keeps_what_is_left(path: Path, cut: int):
    content = build(path)
    short = segment_files(path)[1]
    kept = short.stat().st_size - cut
    keys = {key for offset, key, size in entries(short) if offset + size > kept}
    short.write_bytes(short.read_bytes()[:kept])
    with pytest.raises(bytekv.CorruptionError, match="cut short"):
        open_store(path)
    report = bytekv.repair(path)
    assert (report.damage[0].path, report.damage[0].offset) == (str(short), kept)
    assert "cut short" in report.damage[0].reason
    with open_store(path) as db:
        found = dict(db)
        assert {key: value for key, value in found.items() if key not in keys} == {
            key: value for key, value in content.items() if key not in keys
        }
        assert db.verify().ok


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


@pytest.mark.parametrize("io", ["mmap", "pread"])
@pytest.mark.parametrize("flag", ["r", "w"])
def test_verify_names_the_damage_of_an_open_store(path: Path, flag: str, io: str):
    build(path)
    with open_store(path, flag, io=io) as db:
        file = segment_files(path)[1]
        offset, key, size = entries(file)[2]
        damage(file, offset + size - 5)
        report = db.verify()
        assert [(found.path, found.offset, found.key) for found in report.damage] == [(str(file), offset, key)]
        assert str(key) in str(report)


# --- how they go about it ----------------------------------------------------------------------


@pytest.mark.parametrize("io", ["mmap", "pread"])
def test_verify_reads_with_pread_and_survives_a_disk_that_does_not(path: Path, io: str):
    """Through a mapping, a sector that cannot be read kills the process."""
    content = build(path)
    unreadable = segment_files(path)[1].name

    class Worn(QuickFiles):
        is_worn = False
        reads = 0

        def read(self, descriptor: int, size: int, offset: int, path: str) -> bytes:
            self.reads += size
            if self.is_worn and path.endswith(unreadable):
                raise StoreIOError(errno.EIO, "Input/output error", path)
            return super().read(descriptor, size, offset, path)

    files = Worn()
    with open_store(path, files=files, io=io) as db:
        files.reads = 0
        assert db.verify().ok
        assert files.reads >= sum(file.stat().st_size for file in segment_files(path)), "not all of it was read"
        files.is_worn = True
        report = db.verify()
        assert [(Path(found.path).name, "Input/output error" in found.reason) for found in report.damage] == [
            (unreadable, True)
        ]
        files.is_worn = False
        assert db.verify().ok
        assert dict(db) == content


def test_verify_and_repair_tell_how_far_they_are(path: Path):
    build(path)
    told: list[bytekv.Progress] = []
    with open_store(path) as db:
        report = db.verify(progress=told.append)
        total = report.checked_bytes
        assert [step.total_bytes for step in told] == [total] * report.segments
    assert [step.done_bytes for step in told] == sorted({step.done_bytes for step in told})
    assert told[-1].done_bytes == total == sum(file.stat().st_size for file in segment_files(path))
    damage(segment_files(path)[1], 90)
    told.clear()
    report = bytekv.repair(path, progress=told.append)
    assert len(told) == report.segments
    assert told[-1].done_bytes == told[-1].total_bytes == total
    total = sum(file.stat().st_size for file in segment_files(path))
    (path / "MANIFEST").unlink()
    told.clear()
    report = bytekv.repair(path, progress=told.append)
    assert len(told) == report.segments
    assert [step.total_bytes for step in told] == [total] * report.segments
    assert told[-1].done_bytes == total


@pytest.mark.parametrize("damaged", [0, 1, 2])
@pytest.mark.parametrize("io", ["mmap", "pread"])
def test_a_compaction_neither_copies_nor_drops_what_is_damaged(path: Path, io: str, damaged: int):
    """It stops, says where, and has changed nothing; the store goes on, and the worker does not try again."""
    build(path)
    with open_store(path, io=io, segment_size_bytes=700, compact_dead_bytes=1, compact_dead_ratio=0.01) as db:
        for number in range(0, 24, 2):
            db[f"key-{number:02}"] = "overwritten, so that there is something to win"
        db._commit.seal()
        file = segment_files(path)[damaged]
        offset, key, size = entries(file)[1]
        damage(file, offset + size - 5)
        before, content = snapshot_of(path), {name: db[name] for name in db if name != key}
        with pytest.raises(bytekv.CorruptionError) as caught:
            db.compact()
        assert (caught.value.path, caught.value.offset) == (str(file), offset)
        left = snapshot_of(path)
        assert {name: left[name] for name in before if name.endswith(".seg")} == {
            name: content for name, content in before.items() if name.endswith(".seg")
        }
        assert left["MANIFEST"] == before["MANIFEST"]
        db._maintenance.may_compact = True
        db._work()
        assert str(file) in (db.stats().background_error or "")
        assert not db._maintenance.may_compact
        assert {name: db[name] for name in content} == content
        db["goes on"] = "1"
        assert [found.offset for found in db.verify().damage] == [offset]
        del db["goes on"]
    report = bytekv.repair(path)
    assert [(found.path, found.offset, found.key) for found in report.damage] == [(str(file), offset, key)]
    with open_store(path) as db:
        found = dict(db)
        found.pop(key, None)
        assert found == {name: value for name, value in content.items() if name != key}
        db.compact()
        assert db.verify().ok


@pytest.mark.parametrize("where", ["flags", "key length", "key", "value"])
def test_an_entry_that_is_damaged_after_it_was_checked_is_not_copied(path: Path, where: str):
    """Copying in the order of keys reads each entry twice, and the disk may answer otherwise the second time."""
    build(path)
    with open_store(path, segment_size_bytes=700) as db:
        db["key-00"] = "overwritten"
        db._commit.seal()
        file = segment_files(path)[1]
        offset, _, size = entries(file)[1]
        at = offset + {"flags": 0, "key length": 1, "key": 25, "value": size - 5}[where]
        before = snapshot_of(path)

        checked: list[int] = []

        def advance(size: int) -> None:
            checked.append(size)
            if len(checked) == len(victims):
                damage(file, at)

        victims = [row.segment_id for row in db._segments.sealed()]
        with pytest.raises(bytekv.CorruptionError, match="changed nothing") as caught:
            db._maintenance.compactor.run(victims, lambda: None, advance, in_order=True)
        assert (caught.value.path, caught.value.offset) == (str(file), offset)
        damage(file, at)
        assert snapshot_of(path) == before
        assert db.verify().ok
        db.compact()
        assert db.verify().ok


def test_damage_in_many_places_costs_what_is_damaged_and_nothing_else(path: Path):
    content = build(path)
    lost = set()
    for file in segment_files(path):
        for offset, key, size in entries(file)[::3]:
            damage(file, offset + size - 5)
            lost.add(key)
    damaged = {file.name: file.read_bytes() for file in segment_files(path)}
    report = bytekv.repair(path)
    assert {found.key for found in report.damage} == lost
    assert {Path(kept).name.removesuffix(".damaged"): Path(kept).read_bytes() for kept in report.quarantined} == {
        name.removesuffix(".seg"): raw for name, raw in damaged.items()
    }
    with open_store(path) as db:
        found = {key: value for key, value in db.items() if key not in lost}
        assert found == {key: value for key, value in content.items() if key not in lost}
    before = snapshot_of(path)
    assert bytekv.repair(path).ok
    assert snapshot_of(path) == before, "once more is the same as once"


# --- what was durable, and what may be torn -------------------------------------------------------


def tear(file: Path, key: bytes) -> None:
    """Take away the last entry of a key and all that follows, as a kill in the middle of a write does."""
    offset = [place for place, name, _ in all_entries(file) if name == key][-1]
    raw = file.read_bytes()
    file.write_bytes(raw[:offset] + bytes(len(raw) - offset))


def all_entries(file: Path) -> list[tuple[int, bytes, int]]:
    """List (offset, key, size) of every whole entry, those of an unfinished batch included."""
    raw = file.read_bytes()
    scan = Scan(lambda size, at: raw[at : at + size], SEGMENT_HEADER_SIZE, len(raw), seed_of(salt_of(raw)), None)
    return [(offset, key, len(bytes_)) for _, key, _, _, offset, bytes_ in [*scan, *scan.unfinished]]


def salt_of(raw: bytes) -> int:
    return int.from_bytes(raw[48:56], "little")


def flip(file: Path, key: bytes) -> int:
    """Damage the last entry of a key; return its offset."""
    offset, size = [(place, size) for place, name, size in all_entries(file) if name == key][-1]
    damage(file, offset + size - 5)
    return offset


def test_a_batch_torn_by_a_kill_beside_a_damaged_byte_is_not_counted(path: Path):
    """Its seqs got into the manifest, and the store could not be opened any more, nor repaired."""
    db = open_store(path, segment_size_bytes=512)
    for number in range(30):
        db[f"k{number:02}"] = "v" * 20
    db.update({"acct0": "1", "acct1": "1", "acct2": "1"})
    crash(db)
    tear(segment_files(path)[-1], b"acct2")
    offset = flip(segment_files(path)[0], b"k02")
    report = bytekv.repair(path)
    assert [(found.offset, found.key) for found in report.damage] == [(offset, b"k02")]
    assert bytekv.repair(path).ok
    with open_store(path) as db:
        assert sorted(db) == [b"k%02d" % number for number in range(30) if number != 2]
        assert db.last_seq == 30
        assert db.verify().ok


def test_damage_below_the_published_length_is_no_torn_tail(path: Path):
    """Closed, opened again, killed: repair said ok, and open failed for ever."""
    with open_store(path) as db:
        for number in range(10):
            db[f"{number}"] = "closed"
    db = open_store(path)
    db.put("later", "1")
    crash(db)
    (file,) = segment_files(path)
    offset = flip(file, b"9")
    with pytest.raises(bytekv.CorruptionError, match="durable"):
        open_store(path)
    report = bytekv.repair(path)
    assert report.damage[0][1:] == (offset, "entry fails its CRC32C", b"9")
    with open_store(path) as db:
        assert sorted(db) == [*(b"%d" % number for number in range(9)), b"later"]
        assert db.last_seq == 11


def test_a_damaged_sync_mark_below_the_published_length_is_no_torn_tail(path: Path):
    """No operation is missing; opening refuses it all the same, and repair has to mend it."""
    with open_store(path) as db:
        db["closed"] = "1"
        db.sync()
    db = open_store(path)
    db["later"] = "2"
    crash(db)
    (file,) = segment_files(path)
    (offset, _, size) = all_entries(file)[0]
    damage(file, offset + size + 20)
    with pytest.raises(bytekv.CorruptionError, match="durable"):
        open_store(path)
    assert [found.offset for found in bytekv.repair(path).damage][:1] == [offset + size]
    with open_store(path) as db:
        assert db["closed"] == b"1"


def test_a_torn_tail_is_told_where_its_segment_has_to_be_replaced(path: Path):
    db = open_store(path)
    for number in range(5):
        db[f"{number}"] = "1"
    db.sync()
    db.update({"a": "1", "b": "2"})
    crash(db)
    (file,) = segment_files(path)
    tear(file, b"b")
    offset = flip(file, b"3")
    report = bytekv.repair(path)
    assert [(found.offset, found.key) for found in report.damage[:-1]] == [(offset, b"3")]
    assert "unfinished write" in report.damage[-1].reason
    with open_store(path) as db:
        assert sorted(db) == [b"0", b"1", b"2", b"4"]
        assert db.last_seq == 5


def test_without_a_manifest_only_the_newest_log_can_be_torn(path: Path):
    """Behind the first damage in each log everything was dropped, unreported; what was deleted came back."""
    with open_store(path, segment_size_bytes=2048) as db:
        for number in range(30):
            db[f"k{number:03}"] = "v" * 20
        db["gone"] = "1"
        del db["gone"]
        for number in range(30, 100):
            db[f"k{number:03}"] = "v" * 20
    (path / "MANIFEST").unlink()
    first, second = segment_files(path)[:2]
    offset = flip(first, b"k003")
    (lost,) = [place for place, name, _ in all_entries(second) if name == b"k050"]
    raw = bytearray(second.read_bytes())
    raw[lost : lost + 40] = bytes(40)
    second.write_bytes(raw)
    report = bytekv.repair(path)
    assert [(found.offset, found.key) for found in report.damage[1:]] == [(offset, b"k003"), (lost, None)]
    with open_store(path) as db:
        assert sorted(db) == [b"k%03d" % number for number in range(100) if number not in (3, 50)]


@pytest.mark.parametrize("lost", ["its head", "its value"])
def test_without_a_manifest_the_rest_of_an_unfinished_batch_is_not_shown(path: Path, lost: str):
    """A power cut may take the first half of a batch and leave the second; what follows is kept."""
    db = open_store(path)
    db["before"] = "1"
    db.update({"first": "1" * 50, "second": "2"})
    db["after"] = "3"
    crash(db)
    (path / "MANIFEST").unlink()
    (file,) = segment_files(path)
    (offset,) = [place for place, name, _ in all_entries(file) if name == b"first"]
    raw = bytearray(file.read_bytes())
    start = offset if lost == "its head" else offset + 40
    raw[start : offset + 60] = bytes(offset + 60 - start)
    file.write_bytes(raw)
    report = bytekv.repair(path)
    assert any(found.key == b"second" for found in report.damage)
    with open_store(path) as db:
        assert dict(db) == {b"before": b"1", b"after": b"3"}
        assert db.last_seq == 4


def test_without_a_manifest_an_unfinished_batch_is_neither_shown_nor_counted(path: Path):
    db = open_store(path)
    db["before"] = "1"
    db.update({"first": "1", "second": "2", "third": "3"})
    crash(db)
    (path / "MANIFEST").unlink()
    tear(segment_files(path)[0], b"third")
    assert "unfinished write" in bytekv.repair(path).damage[-1].reason
    with open_store(path) as db:
        assert dict(db) == {b"before": b"1"}
        assert db.last_seq == 1


def test_without_a_manifest_what_a_recovery_has_cut_off_stays_away(path: Path):
    """A segment with a second name is not cut; only the manifest, and quarantine/, know where it ends."""
    db = open_store(path, io="pread")
    for key in ("a", "b", "c", "d"):
        db[key] = key
    crash(db)
    (file,) = segment_files(path)
    flip(file, b"b")
    path.with_name("link").hardlink_to(file)
    with open_store(path) as db:
        assert list(db) == [b"a"]
    (path / "MANIFEST").unlink()
    bytekv.repair(path)
    with open_store(path) as db:
        assert dict(db) == {b"a": b"a"}


def test_a_damaged_header_costs_no_entry(path: Path):
    """All of the segment was given up."""
    content = build(path)
    for number, file in enumerate(segment_files(path)):
        damage(file, 8 * number)
    report = bytekv.repair(path)
    assert {found.offset for found in report.damage} == {0}
    with open_store(path) as db:
        assert dict(db) == content
        assert db.verify().ok


@pytest.mark.parametrize("has_header", [True, False])
def test_outputs_of_one_compaction_share_its_seqs(path: Path, has_header: bool):
    """Those of the second were looked for above the last seq of the first, so behind damage nothing of it was found."""
    first = Segment(1, (Entry(1, b"a"), Entry(4, b"b")), kind=OUTPUT, last_seq=6)
    second = Segment(2, (Entry(2, b"c"), Entry(3, b"d"), Entry(5, b"e")), kind=OUTPUT, last_seq=6)
    write_store(path, [first, second], last_seq=6)
    left = [b"a", b"b", b"c", b"d", b"e"]
    for lost in (b"c", b"d"):  # what a repair has made is repaired in the same way
        file = segment_files(path)[-1]
        flip(file, lost)
        if not has_header:
            damage(file, 30)
        assert lost in [found.key for found in bytekv.repair(path).damage]
        left.remove(lost)
        with open_store(path, "r") as db:
            assert list(db) == left


def test_nothing_left_of_the_last_segment_leaves_no_gap(path: Path):
    """The next log began after seqs that no segment had, and the open after the next failed."""
    with open_store(path, segment_size_bytes=300) as db:
        for number in range(8):
            db[f"{number}"] = "v" * 40
    file = segment_files(path)[-1]
    file.write_bytes(b"")
    assert not bytekv.repair(path).ok
    with open_store(path) as db:
        last_seq = db.last_seq
        db["next"] = "1"
        assert last_seq == 8
    with open_store(path) as db:
        assert db["next"] == b"1"
        assert db.last_seq == 9


# --- errors --------------------------------------------------------------------------------------


class Unlucky(QuickFiles):
    """The first so many writes, links and syncs succeed; then there is an error."""

    def __init__(self, left: int, error: BaseException) -> None:
        super().__init__()
        self.left, self.error = left, error

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise self.error

    def write(self, descriptor: int, piece: bytes | memoryview, offset: int, path: str) -> None:
        if not path.endswith("LOCK"):
            if self.left == 0:
                super().write(descriptor, bytes(piece)[:10], offset, path)
            self._count()
        super().write(descriptor, piece, offset, path)

    def link(self, source: str, target: str) -> bool:
        self._count()
        return super().link(source, target)

    def sync(self, descriptor: int, path: str) -> None:
        self._count()
        super().sync(descriptor, path)


def names_and_bytes(path: Path) -> dict[str, bytes | None]:
    return {
        str(file.relative_to(path)): file.read_bytes() if file.is_file() else None
        for file in path.rglob("*")
        if file.name != "LOCK"
    }


@pytest.mark.parametrize("error", [bytekv.DiskFullError, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("has_manifest", [True, False])
def test_a_repair_that_fails_leaves_everything_as_it_was(path: Path, error: type[BaseException], has_manifest: bool):
    """Each try left its copies: after four of them the store was five times as large, on a disk that was full."""
    content = build(path)
    flip(segment_files(path)[0], b"key-01")
    flip(segment_files(path)[1], b"key-13")
    if not has_manifest:
        (path / "MANIFEST").unlink()
    before = names_and_bytes(path)
    for number in itertools.count():
        directory = Directory(str(path), Unlucky(number, error(errno.ENOSPC, "full")))
        directory.acquire()
        try:
            repair_directory(directory, 400)
            break
        except error:
            assert names_and_bytes(path) == before
        finally:
            directory.release()
    assert number > 6
    with open_store(path) as db:
        assert {**content, **dict(db)} == content
        assert len(db) == len(content) - 2


def test_what_was_kept_before_is_not_written_over(path: Path):
    build(path)
    lost = []
    for _ in range(2):
        damage(path / "MANIFEST", 40)
        lost.append((path / "MANIFEST").read_bytes())
        bytekv.repair(path)
    kept = sorted(file.read_bytes() for file in (path / "quarantine").glob("MANIFEST*"))
    assert kept == sorted(lost)


def test_opening_to_salvage_needs_no_manifest(path: Path):
    content = build(path)
    (path / "MANIFEST").unlink()
    with open_store(path, "w", recover="salvage") as db:
        assert dict(db) == content
        assert not db.recovery.salvaged.ok


@pytest.mark.parametrize("with_manifest", [True, False])
def test_a_repair_writes_segments_of_the_size_that_suits_the_store(path: Path, with_manifest: bool):
    """It filled each up to ``segment_size_bytes``, 64 MiB, though the store was one of 4 MiB: its disk was too large
    until the last of that had been overwritten."""
    with open_store(path, segment_size_bytes=1 << 20) as db:
        for number in range(40):
            db[b"%02d" % number] = b"v" * 200
        content = dict(db)
    (file,) = segment_files(path)
    damage(file, SEGMENT_HEADER_SIZE + 100)
    if not with_manifest:
        damage(path / "MANIFEST", 40)
    with patched(harness.tuned(smallest_segment=2000)):
        harness.repair(path)
    with open_store(path, "r") as db:
        assert dict(db) == {key: value for key, value in content.items() if key != b"00"}
        assert len(db.stats().segments) > 4
        assert max(row.length_bytes for row in db.stats().segments) <= 2000
