"""The store as a user meets it: opening, single keys, time, batches, space, and what is refused."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import bytekv
from tests.support.harness import FakeFiles, crash, segment_files, snapshot_of
from tests.support.harness import open_store as plain_open

# --- opening -----------------------------------------------------------------------------------


def test_what_was_written_is_there_after_a_crash(open_store):
    db = open_store()
    db["a"] = b"1"
    crash(db)
    db = open_store()
    assert dict(db) == {b"a": b"1"}
    assert not db.recovery.clean


def test_the_flags(path: Path, open_store):
    for flag in "rw":
        with pytest.raises(bytekv.StoreNotFoundError):
            open_store(flag)
        assert not path.exists()
    with open_store("c") as db:
        db["a"] = "1"
    with open_store("w") as db:
        assert db["a"] == b"1"
        db["b"] = "2"
    with open_store("r") as db:
        assert (db.readonly, sorted(db)) == (True, [b"a", b"b"])
    with open_store("n") as db:
        assert (len(db), db.last_seq) == (0, 0)
        assert segment_files(path) == []
        db["c"] = "3"
    with open_store("c") as db:
        assert dict(db) == {b"c": b"3"}
    with pytest.raises(ValueError, match="flag"):
        bytekv.open(path, "x")


def test_a_read_only_store_refuses_every_write_and_changes_no_byte(path: Path, open_store):
    with open_store() as db:
        db["a"] = "1"
        db["n"] = "1"
    before = snapshot_of(path)
    with open_store("r") as db:
        for write in (
            lambda: db.__setitem__("a", "2"),
            lambda: db.__setitem__(b"a", b"2"),
            lambda: db.put("a", "2", ttl=1),
            lambda: db.add("z", "2"),
            lambda: db.delete("a"),
            lambda: db.__delitem__("a"),
            lambda: db.incr("n"),
            lambda: db.expire("a", 1),
            lambda: db.pop("a"),
            lambda: db.popitem(),
            lambda: db.setdefault("z", "1"),
            lambda: db.update({"z": "1"}),
            lambda: db.clear(),
            lambda: db.batch(),
            lambda: db.compact(),
        ):
            with pytest.raises(bytekv.ReadOnlyError):
                write()
        db.sync()
        assert dict(db) == {b"a": b"1", b"n": b"1"}
        assert db.verify().ok
    assert snapshot_of(path) == before


def test_a_reader_beside_the_writer_sees_what_was_there_when_it_opened(open_store):
    db = open_store(segment_size_bytes=400)
    for number in range(30):
        db[f"{number:02}"] = b"x" * 30
    reader = open_store("r")
    db.clear()
    db["new"] = b"1"
    db.compact()
    assert len(reader) == 30
    assert all(value == b"x" * 30 for value in reader.values())
    reader.close()


@pytest.mark.parametrize("sync", ["interval", "always", "os"])
@pytest.mark.parametrize("io", ["mmap", "pread"])
def test_every_mode_keeps_what_was_written(open_store, sync: str, io: str):
    options = {"sync": sync, "io": io, "segment_size_bytes": 600}
    expected = {}
    for generation in range(4):
        db = open_store(**options)
        assert dict(db) == expected
        for number in range(20):
            key, value = f"{number % 7}".encode(), f"{generation} {number}".encode()
            db[key] = expected[key] = value
        del db["3"], expected[b"3"]
        (crash if generation % 2 else type(db).close)(db)
    assert dict(open_store(**options)) == expected


def test_a_clean_close_continues_the_same_segment(path: Path, open_store):
    for number in range(20):
        with open_store() as db:
            db[f"{number}"] = "x"
            assert db.recovery.clean
    assert [file.name for file in sorted(path.iterdir())] == ["0000000001.seg", "LOCK", "MANIFEST"]
    assert sum(file.stat().st_size for file in path.iterdir()) < 2000


def test_an_empty_store_is_small(path: Path, open_store):
    db = open_store()
    assert sum(file.stat().st_blocks * 512 for file in path.iterdir()) < 100 * 1024
    db["a"] = "1"
    assert sum(file.stat().st_blocks * 512 for file in path.iterdir()) < 200 * 1024


def test_modes_do_not_depend_on_the_umask(path: Path, open_store):
    for umask in (0, 0o777):
        old = os.umask(umask)
        try:
            db = open_store("n", segment_size_bytes=300)
            for number in range(20):
                db[f"{number}"] = "x" * 20
            crash(db)
            open_store().close()
        finally:
            os.umask(old)
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        for file in path.rglob("*"):
            assert stat.S_IMODE(file.stat().st_mode) == (0o700 if file.is_dir() else 0o600), file


# --- single keys -------------------------------------------------------------------------------


def test_bytes_like_and_str_in_bytes_out(open_store):
    db = open_store()
    db["ü"] = bytearray(b"1")
    db[bytearray(b"b")] = memoryview(b"xyz")[1:]
    db[memoryview(b"abcdef")[::2]] = "ö"
    assert dict(db) == {b"ace": "ö".encode(), b"b": b"yz", "ü".encode(): b"1"}
    assert db["ü".encode()] == db["ü"] == db[bytearray("ü".encode())] == b"1"
    assert type(db["ü"]) is bytes
    assert all(type(key) is bytes for key in db)
    mutable = bytearray(b"before")
    db["m"] = mutable
    mutable[:] = b"after!"
    assert db["m"] == b"before"


def test_empty_keys_and_values_are_values(open_store):
    db = open_store()
    db[""] = "nothing"
    db["x"] = ""
    assert (db[b""], db["x"], "" in db, len(db)) == (b"nothing", b"", True, 2)
    assert list(db) == [b"", b"x"]
    del db[b""]
    assert "" not in db
    assert db.get("", b"gone") == b"gone"


@pytest.mark.parametrize("bad", [1, 1.5, None, ["a"], object(), ("a",)])
def test_other_types_are_refused_by_name(open_store, bad: object):
    db = open_store()
    name = type(bad).__name__
    for call in (
        lambda: db.__setitem__(bad, b""),
        lambda: db.__setitem__(b"k", bad),
        lambda: db.__getitem__(bad),
        lambda: db.get(bad),
        lambda: bad in db,
        lambda: db.delete(bad),
        lambda: db.put("k", bad),
        lambda: db.update({"k": bad}),
        lambda: db.update([("j", "good"), ("k", bad)]),
        lambda: db.entry(bad),
    ):
        with pytest.raises(TypeError, match=name):
            call()
    assert (len(db), db.last_seq) == (0, 0)


def test_too_long_is_refused_with_length_and_limit(open_store, monkeypatch: pytest.MonkeyPatch):
    db = open_store()
    for key in (b"k" * 65_536, "k" * 65_536):
        for call in (db.__setitem__, db.put, db.add):
            with pytest.raises(bytekv.LimitError, match=r"65536 bytes; the limit is 65535"):
                call(key, b"")
        assert key not in db
        assert db.get(key) is None
    monkeypatch.setattr("bytekv.contract.convert.MAX_VALUE_SIZE", 1000)  # a real gigabyte says nothing more
    for value in (b"v" * 1001, "v" * 1001):
        with pytest.raises(bytekv.LimitError, match="1001 bytes; the limit is 1000"):
            db["k"] = value
    assert (len(db), db.last_seq) == (0, 0)
    db[b"k" * 65_535] = b"v" * 1000
    assert db["k" * 65_535] == b"v" * 1000


def test_values_of_every_size_around_the_borders(open_store):
    db = open_store(segment_size_bytes=20_000)
    sizes = [0, 1, 99, 8191 - 27 - 4, 8191 - 27 - 3, 8191, 8192, 19_893, 19_894, 65_536, 1 << 20, (1 << 20) + 1]
    for size in sizes:
        db[f"{size:08}"] = b"%d" % (size % 10) * size
    for attempt in range(2):
        for size in sizes:
            assert db[f"{size:08}"] == b"%d" % (size % 10) * size
            assert db.read(f"{size:08}", max(0, size - 3)) == b"%d" % (size % 10) * min(size, 3)
        if not attempt:
            crash(db)
            db = open_store(segment_size_bytes=20_000)


def test_compare_and_set(open_store):
    db = open_store()
    first = db.put("k", "1", if_seq=0)
    with pytest.raises(bytekv.ConflictError) as caught:
        db.put("k", "2", if_seq=0)
    assert (caught.value.key, caught.value.expected, caught.value.seq) == (b"k", 0, first)
    second = db.put("k", "2", if_seq=first)
    assert second == first + 1 == db.last_seq
    with pytest.raises(bytekv.ConflictError):
        db.put("k", "3", if_seq=first)
    del db["k"]
    with pytest.raises(bytekv.ConflictError):
        db.put("k", "3", if_seq=second)
    assert db.put("k", "4", if_seq=0) == second + 2


def test_incr_takes_only_strict_decimal_integers(open_store):
    db = open_store()
    assert [db.incr("n"), db.incr("n", 41), db.incr("n", -50)] == [1, 42, -8]
    db["big"] = str(10**40)
    assert db.incr("big") == 10**40 + 1
    for bad in (b"", b" 1", b"1 ", b"+1", b"1_000", b"1.0", b"0x10", "١"):
        db["n"] = bad
        seq = db.last_seq
        with pytest.raises(ValueError, match="not a decimal integer"):
            db.incr("n")
        assert db.last_seq == seq
    with pytest.raises(TypeError):
        db.incr("n", 1.5)


def test_deleting_what_is_not_there_consumes_no_seq(open_store):
    db = open_store()
    assert not db.delete("a")
    with pytest.raises(KeyError):
        del db["a"]
    with db.batch() as batch:
        batch.delete("a")
    assert (batch.seq, db.last_seq) == (None, 0)
    db.clear()
    assert db.last_seq == 0


def test_entry_tells_what_is_known(open_store):
    clock = FakeFiles(now_s=1000.0)
    db = open_store(files=clock)
    seq = db.put("k", "v", ttl=60)
    assert db.entry("k") == bytekv.Entry(b"k", b"v", seq, 1000.0, 1060.0)
    db.persist("k")
    assert db.entry("k").expires is None
    with pytest.raises(KeyError):
        db.entry("nothing")


# --- time --------------------------------------------------------------------------------------


def test_an_expired_key_is_gone_from_everywhere(open_store):
    clock = FakeFiles()
    db = open_store(files=clock)
    db["stays"] = "1"
    db.put("goes", "2", ttl=10)
    assert (db.ttl("goes"), db.ttl("stays")) == (10.0, None)
    clock.sleep(9.999)
    assert db["goes"] == b"2"
    assert len(db) == 2
    clock.sleep(0.001)
    for absent in (
        lambda: "goes" not in db,
        lambda: db.get("goes") is None,
        lambda: len(db) == 1,
        lambda: list(db) == [b"stays"],
        lambda: list(db.scan()) == [(b"stays", b"1")],
        lambda: list(reversed(db)) == [b"stays"],
        lambda: db.get_many(["goes", "stays"]) == {b"stays": b"1"},
        lambda: not db.delete("goes"),
        lambda: not db.expire("goes", 10),
        lambda: not db.persist("goes"),
        lambda: db.pop("goes", None) is None,
    ):
        assert absent()
    with pytest.raises(KeyError):
        db.ttl("goes")
    assert db.add("goes", "3")
    assert db["goes"] == b"3"


@pytest.mark.parametrize("look", [lambda db: db.get("k"), lambda db: "k" in db, len, list])
def test_an_expired_key_that_was_seen_gone_does_not_come_back_with_the_clock(open_store, look):
    clock = FakeFiles()
    db = open_store(files=clock)
    db.put("k", "v", ttl=10)
    clock.sleep(10)
    look(db)
    clock.sleep(-10)
    assert "k" not in db
    assert db.get("k") is None
    assert len(db) == 0
    assert list(db) == []
    clock.sleep(10)  # a reopened store knows only the clock


def test_an_expired_entry_hides_older_ones_through_every_compaction(open_store):
    clock = FakeFiles()
    db = open_store(files=clock, segment_size_bytes=300, expiry_grace_s=60)
    db["k"] = "old"
    db["filler"] = "x" * 200
    db.put("k", "new", ttl=10)
    db["filler"] = "y" * 200
    db["tail"] = "z"
    clock.sleep(11)
    middle = [row.segment_id for row in db._segments.sealed()][1:]
    db._maintenance.compactor.run(middle, lambda: None, lambda _: None)
    for _ in range(2):
        assert "k" not in db
        crash(db)
        db = open_store(files=clock, segment_size_bytes=300, expiry_grace_s=60)
    clock.sleep(60)
    db.compact()
    assert "k" not in db
    assert all(
        b"new" not in file.read_bytes() and b"old" not in file.read_bytes() for file in segment_files(Path(db.path))
    )


def test_a_plain_write_takes_the_expiry_away_and_incr_keeps_it(open_store):
    clock = FakeFiles()
    db = open_store(files=clock)
    for key in ("a", "b"):
        db.put(key, "1", ttl=10)
    db["a"] = "2"
    db.incr("b")
    assert (db.ttl("a"), db.ttl("b")) == (None, 10.0)
    clock.sleep(10)
    assert list(db) == [b"a"]


def test_a_time_of_expiry_is_kept_to_the_millisecond(open_store):
    """Copying a store, and EXPIREAT, need the very time: a ttl computed before drifts."""
    clock = FakeFiles(now_s=1000.0)
    db = open_store(files=clock)
    db.put("put", "1", expires=1010.123)
    with db.batch() as batch:
        batch.put("batch", "2", expires=1010.123)
        clock.sleep(5)
    with db.transaction() as tx:
        tx.put("transaction", "3", expires=1010.123)
        clock.sleep(5)
    assert {key: db.entry(key).expires for key in db} == dict.fromkeys((b"put", b"batch", b"transaction"), 1010.123)
    clock.sleep(0.123)
    assert dict(db) == {}


def test_a_time_of_expiry_that_has_passed_takes_the_key_away_for_good(open_store):
    clock = FakeFiles(now_s=1000.0)
    db = open_store(files=clock)
    db["k"] = "old"
    with db.snapshot() as before:
        assert db.put("k", "new", expires=0.0001) == 2
        assert (db.get("k"), len(db), list(db), "k" in db) == (None, 0, [], False)
        assert dict(before) == {b"k": b"old"}
    crash(db)
    db = open_store(files=clock)
    assert dict(db) == {}


@pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf"), 1e300, "5", True])
def test_a_time_of_expiry_must_be_a_time(open_store, bad: object):
    db = open_store()
    for put in (db.put, db.batch().put):
        with pytest.raises((bytekv.LimitError, TypeError)):
            put("k", "1", expires=bad)
        with pytest.raises(TypeError, match="either"):
            put("k", "1", ttl=1, expires=2e9)
    assert dict(db) == {}


@pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf"), 1e300, "5", True, None])
def test_a_ttl_must_be_a_positive_finite_number(open_store, bad: object):
    db = open_store()
    db["k"] = "1"
    with pytest.raises((bytekv.LimitError, TypeError)):
        db.expire("k", bad)
    if bad is not None:
        with pytest.raises((bytekv.LimitError, TypeError)):
            db.put("k", "2", ttl=bad)
        with pytest.raises((bytekv.LimitError, TypeError)):
            with db.batch() as batch:
                batch.put("j", "1")
                batch.put("k", "2", ttl=bad)
    assert dict(db) == {b"k": b"1"}


# --- batches -----------------------------------------------------------------------------------


def test_a_batch_is_all_or_nothing(open_store):
    db = open_store()
    db["a"] = "old"
    with db.batch() as batch:
        batch["a"] = "new"
        batch["b"] = "1"
        del batch["a"]
        batch["c"] = "2"
        del batch["never"]
        assert dict(db) == {b"a": b"old"}
    assert dict(db) == {b"b": b"1", b"c": b"2"}
    assert batch.seq == db.last_seq == 4
    with pytest.raises(RuntimeError, match="stop"):
        with db.batch() as batch:
            batch["d"] = "3"
            raise RuntimeError("stop")
    assert "d" not in db
    with pytest.raises(bytekv.BytekvError, match="discarded"):
        batch["d"] = "3"


def test_a_batch_larger_than_a_segment_gets_one_of_its_own(open_store):
    db = open_store(segment_size_bytes=1000)
    db["before"] = "x" * 300
    many = {f"{number:04}".encode(): b"y" * 50 for number in range(400)}
    db.update(many)
    db["after"] = "z" * 300
    expected = {**many, b"before": b"x" * 300, b"after": b"z" * 300}
    assert dict(db) == expected
    crash(db)
    assert dict(open_store(segment_size_bytes=1000)) == expected


# --- space -------------------------------------------------------------------------------------


def test_after_a_compaction_deleted_bytes_are_gone_from_the_disk(path: Path, open_store):
    db = open_store(segment_size_bytes=4096)
    for number in range(200):
        db[f"{number}"] = b"secret-%03d" % number * 5
    for number in range(200):
        if number % 10:
            del db[f"{number}"]
    seen = []
    result = db.compact(progress=seen.append)
    assert result.reclaimed_bytes > 10_000
    assert seen
    assert seen[-1].done_bytes == seen[-1].total_bytes
    left = b"".join(file.read_bytes() for file in segment_files(path))
    assert all((b"secret-%03d" % number in left) == (number % 10 == 0) for number in range(200))
    assert db.stats().dead_bytes == 0
    assert db.verify().ok
    assert db.compact().reclaimed_bytes == 0


def test_space_is_reclaimed_without_being_asked(path: Path):
    with plain_open(path, auto_compact=True, segment_size_bytes=8192, compact_dead_bytes=1024, sync="os") as db:
        for number in range(5000):
            db[f"{number % 20}"] = b"x" * 100
        db._worker.wake()
        deadline = db._files.monotonic() + 30
        while db.stats().total_bytes > 300_000:
            assert db._files.monotonic() < deadline, "the worker did not compact"
            db["again"] = b"x"
            db._files.yield_cpu()
        assert len(db) in (20, 21)
        assert db.stats().compactions > 0
        assert db.verify().ok


def test_small_files_are_merged(path: Path, open_store):
    for number in range(12):
        db = open_store()
        db[f"{number}"] = "x"
        crash(db)
    assert len(segment_files(path)) == 12
    db = open_store()
    db.compact()
    assert len(segment_files(path)) == 1
    assert len(db) == 12


def test_two_hundred_segments_with_few_descriptors(path: Path):
    program = """
import resource, sys, bytekv, random
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
with bytekv.open(sys.argv[1], segment_size_bytes=4096, auto_compact=False) as db:
    for number in range(6100):
        db[f"{number:05}"] = b"x" * 100
    assert len(db.stats().segments) >= 200
    keys = list(db)
    random.Random(1).shuffle(keys)
    assert all(db[key] == b"x" * 100 for key in keys)
    assert db.verify().ok
with bytekv.open(sys.argv[1]) as db:
    assert len(db) == 6100
"""
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- what is refused ---------------------------------------------------------------------------


def test_a_closed_store_says_so_in_every_call(open_store):
    db = open_store()
    db["a"] = "1"
    db.close()
    db.close()
    assert db.closed
    for call in (
        lambda: db["a"],
        lambda: db[b"a"],
        lambda: db.get("a"),
        lambda: "a" in db,
        lambda: len(db),
        lambda: list(db),
        lambda: list(db.scan()),
        lambda: db.scan_keys(),
        lambda: db.__setitem__(b"a", b"1"),
        lambda: db.__setitem__("a", "1"),
        lambda: db.delete("a"),
        lambda: db.clear(),
        lambda: db.update({"a": "1"}),
        lambda: db.update({}),
        lambda: db.entry("a"),
        lambda: db.ttl("a"),
        lambda: db.get_many(["a"]),
        lambda: db.sync(),
        lambda: db.compact(),
        lambda: db.verify(),
        lambda: db.stats(),
        lambda: db.batch(),
        lambda: db.__enter__(),
    ):
        with pytest.raises(bytekv.StoreClosedError):
            call()
    assert "closed" in repr(db)


def test_what_is_no_store_is_refused_and_left_alone(path: Path, open_store):
    path.parent.joinpath("file").write_text("not a directory")
    for flag in "rwcn":
        with pytest.raises(bytekv.NotAStoreError, match="a file"):
            open_store(flag, at=path.parent / "file")
    path.mkdir()
    (path / "notes.txt").write_text("mine")
    before = snapshot_of(path)
    for flag in "rwcn":
        with pytest.raises(bytekv.NotAStoreError):
            open_store(flag)
    assert snapshot_of(path) == before
    for flag in "rw":
        with pytest.raises(bytekv.StoreNotFoundError):
            open_store(flag, at=path.parent / "missing" / "store")
    assert not (path.parent / "missing").exists()


def test_a_lost_manifest_is_an_error_and_never_an_empty_store(path: Path, open_store):
    with open_store() as db:
        db["a"] = "1"
    (path / "MANIFEST").unlink()
    before = snapshot_of(path)
    for flag in "rwcn":
        with pytest.raises(bytekv.CorruptionError, match="MANIFEST"):
            open_store(flag)
    assert snapshot_of(path) == before


def test_a_newer_format_is_refused(path: Path, open_store):
    from bytekv.engine.codec.checksum import CRC, checksum

    with open_store() as db:
        db["a"] = "1"
    content = bytearray((path / "MANIFEST").read_bytes())
    content[8] = 2
    content[-4:] = CRC.pack(checksum(bytes(content[:-4])))
    (path / "MANIFEST").write_bytes(content)
    before = snapshot_of(path)
    for flag in "rwc":
        with pytest.raises(bytekv.UnsupportedFormatError, match="version 2"):
            open_store(flag)
    assert snapshot_of(path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(path: Path, open_store):
    open_store().close()
    (path / "MANIFEST").chmod(0)
    with pytest.raises(bytekv.AccessDeniedError):
        open_store()


def test_options_are_checked(path: Path):
    for options, error in (
        ({"sync": "never"}, ValueError),
        ({"segment_size_bytes": 10}, bytekv.LimitError),
        ({"segment_size_bytes": 1e6}, TypeError),
        ({"sync_interval_s": -1}, bytekv.LimitError),
        ({"verify": True}, TypeError),
        ({"compact_dead_ratio": True}, TypeError),
    ):
        with pytest.raises(error):
            bytekv.open(path, **options)
    assert not path.exists()


def test_errors_survive_pickling():
    import pickle

    for error in (
        bytekv.CorruptionError("/x", 5, "bad"),
        bytekv.ConflictError(b"k", 1, 2),
        bytekv.StoreLockedError("/x", 5),
        bytekv.StoreLockedError("/x", None, shared=True, wanted="alone"),
        bytekv.StoreLockedError("/x", 5, wanted="shared"),
        bytekv.DiskFullError(28, "full", "/x"),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_a_damaged_entry_is_an_error_and_its_neighbours_stay_readable(path: Path, open_store):
    db = open_store(io="pread")
    for number in range(10):
        db[f"{number}"] = b"value %d" % number
    db.sync()
    file = segment_files(path)[0]
    place = file.read_bytes().index(b"value 5")
    with file.open("r+b") as handle:
        handle.seek(place)
        handle.write(b"V")
    with pytest.raises(bytekv.CorruptionError) as caught:
        db["5"]
    assert caught.value.path == str(file)
    assert caught.value.offset < place
    assert db["4"] == b"value 4"
    assert db["6"] == b"value 6"
    report = db.verify()
    assert not report.ok
    with pytest.raises(bytekv.CorruptionError):
        db.delete("6")
        db.compact()
    db.close()


def test_the_two_ways_to_read_agree(open_store):
    db = open_store(segment_size_bytes=2000)
    for number in range(300):
        db.put(f"{number % 90}", b"x" * (number * 37 % 500), ttl=1000 if number % 5 == 0 else None)
    for key in [*db, b"missing", b""]:
        found = db._reader.find(key)
        assert db.get(key) == (None if found is None else found.value)


def test_many_writers_share_syncs(open_store):
    import threading

    db = open_store(sync="always")
    syncs = 0
    sync = db._files.sync

    class Counting(type(db._files)):
        def sync(self, descriptor: int, path: str) -> None:
            nonlocal syncs
            syncs += 1
            sync(descriptor, path)

    db._files.__class__ = Counting

    def write(thread: int) -> None:
        for number in range(50):
            seq = db.put(f"{thread}-{number}", "x")
            assert db.durable_seq >= seq
            assert db[f"{thread}-{number}"] == b"x"

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(db) == 400
    assert db.durable_seq == db.last_seq == 400
    assert syncs <= 400 + 10
