"""Directories made to do harm: only bytekv's own errors, in bounded memory, and nothing outside is touched.

The first part lets every operation loose on every way to spoil a store that `tests.support.hostile` knows: a sample
here, all of it in `tests.deep`. The rest are stories of their own, most of them of what that has found.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import stat
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

import bytekv
from bytekv import BytekvError, CorruptionError, LimitError, NotAStoreError, StoreFailedError, StoreIOError
from bytekv.engine.codec.entry import CONTINUES, PUT, SYNC_MARK
from bytekv.engine.codec.manifest import ACTIVE, MAX_NUMBER, MAX_SEGMENT_SIZE
from tests.support import forge
from tests.support.fault_files import SystemCalls
from tests.support.forge import Entry, Segment
from tests.support.harness import crash, expect_no_violation, open_store, segment_files, snapshot_of
from tests.support.hostile import hostile_directories, small_things_count, tree_of

pytestmark = [pytest.mark.once, pytest.mark.skipif(os.name == "nt", reason="made of links, pipes and modes")]

Content = dict[bytes, bytes]


def test_every_operation_on_spoilt_stores(path: Path) -> None:
    cases = expect_no_violation(hostile_directories(path.parent, 0, every=151))
    assert cases["hostile directories"] > 160


# --- a hundred thousand files ------------------------------------------------------------------


def _crowd(path: Path, names: Iterator[str]) -> None:
    folder = os.open(path, os.O_RDONLY)
    for name in names:
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=folder))
    os.close(folder)


@contextlib.contextmanager
def measured(memory_bytes: int) -> Iterator[SystemCalls]:
    """Count system calls, and see that memory stays within a bound."""
    tracemalloc.start()
    try:
        with SystemCalls() as calls:
            calls.count()
            yield calls
        assert tracemalloc.get_traced_memory()[1] < memory_bytes
    finally:
        tracemalloc.stop()


def test_a_hundred_thousand_stray_files_cost_a_listing_each_time(path: Path) -> None:
    """As many as one likes of other people's files: they are listed, and not looked at one by one."""
    with open_store(path) as db:
        db["a"] = "1"
    _crowd(path, (f"stranger {number}" for number in range(100_000)))
    for use in (
        lambda: open_store(path, "r").close(),
        lambda: open_store(path, "w").close(),
        lambda: open_store(path, "c").close(),
        lambda: bytekv.repair(path),
        lambda: open_store(path, "n").close(),
    ):
        with measured(64 << 20) as calls:
            use()
        assert calls.counts["list"] <= 4
        assert calls.counts["any"] < 120
    (path / "MANIFEST").unlink()
    before = sum(1 for _ in os.scandir(path))
    for flag in "rwcn":
        with measured(64 << 20) as calls, pytest.raises(NotAStoreError) as caught:
            open_store(path, flag)
        assert len(str(caught.value)) < 300
        assert calls.counts["any"] < 20
    assert sum(1 for _ in os.scandir(path)) == before


def test_thousands_of_leftovers_are_swept_in_one_go(path: Path) -> None:
    with open_store(path) as db:
        db["a"] = "1"
    _crowd(path, (f"{number:010d}.{'hint' if number % 2 else 'seg'}" for number in range(10, 20_010)))
    with measured(64 << 20) as calls:
        db = open_store(path)
    assert len(db.recovery.swept) == 20_000
    assert calls.counts["unlink"] == 20_000
    assert calls.counts["any"] < 2 * 20_000 + 200  # before each removal: is the store still this one?
    assert len(str(db.recovery)) < 1000
    assert calls.counts["list"] <= 4
    db.close()


# --- numbers at the end of what a file can say -------------------------------------------------


@pytest.mark.parametrize("name", ["9223372036854775806.seg", "9223372036854775806.hint"])
def test_a_stray_file_with_a_huge_id_does_not_use_up_the_ids(name: str, path: Path) -> None:
    """The next id was set above it: past the end of the field, or so near that no segment could be made any more."""
    with open_store(path) as db:
        db["a"] = "1"
    (path / name).write_bytes(b"")
    with open_store(path, segment_size_bytes=256) as db:
        for number in range(20):
            db[f"{number}"] = bytes(50)
        assert len(db.stats().segments) > 3
    assert max(int(file.stem) for file in segment_files(path)) < 1000


def test_ids_that_are_used_up_are_a_limit(path: Path) -> None:
    one = Segment(1, (Entry(1), Entry(2, b"damaged")))
    forge.write_store(path, [one], next_id=MAX_NUMBER)
    with open_store(path) as db:
        for call in (lambda: db.put("a", "1"), lambda: db.update(a="1", b="2"), lambda: db.incr("n")):
            with pytest.raises(LimitError):
                call()
        assert dict(db) == {b"key": b"value", b"damaged": b"value"}
        assert db.last_seq == 2
    (path / "0000000001.seg").write_bytes(one.encode()[:-1] + b"!")
    with pytest.raises(LimitError):
        bytekv.repair(path)


@pytest.mark.parametrize("state", [forge.SEALED, ACTIVE])
def test_seqs_that_are_used_up_are_a_limit(state: int, path: Path) -> None:
    """The next put could not be encoded, and the error was one of `struct`."""
    first = MAX_NUMBER - MAX_SEGMENT_SIZE
    segment = Segment(1, (Entry(first + 1), Entry(first + 2)), previous=(0, first), state=state)
    forge.write_store(path, [segment])
    with open_store(path, segment_size_bytes=256, io="pread") as db:
        assert dict(db) == {b"key": b"value"}
        with pytest.raises(LimitError):
            for _ in range(10):
                db[b"key"] = b"v" * 40
        found, seq = dict(db), db.last_seq
        assert db.verify().ok
    assert (seq > first + 2) == (state == ACTIVE)
    with open_store(path, "w") as db:
        assert (dict(db), db.last_seq) == (found, seq)


def test_a_seq_beyond_the_limit_is_damage(path: Path) -> None:
    for kind in (forge.LOG, forge.OUTPUT):
        forge.write_store(path, [Segment(1, (Entry(MAX_NUMBER + 1),), kind, (0, MAX_NUMBER), last_seq=MAX_NUMBER)])
        with pytest.raises(CorruptionError):
            open_store(path, "w")
    (path / "MANIFEST").unlink()
    assert not bytekv.repair(path).ok
    with open_store(path, "w") as db:
        assert (len(db), db.last_seq) == (0, 0)


def test_a_manifest_that_knows_of_more_than_the_log_holds(path: Path) -> None:
    """The next put went on from there, and left a gap in the log that the next opening took for damage."""
    forge.write_store(path, [Segment(1, (Entry(1), Entry(2)), state=ACTIVE)], last_seq=7)
    before = snapshot_of(path)
    for flag in "rwc":
        with pytest.raises(CorruptionError, match="seq 7"):
            open_store(path, flag)
    assert {**before, "LOCK": b""} == {**snapshot_of(path), "LOCK": b""}


# --- hints that lie ----------------------------------------------------------------------------


def _with_hint(path: Path) -> Path:
    with small_things_count():
        with open_store(path, "n", io="pread") as db:
            db["a"], db["b"] = "1", "2"
        (hint,) = path.glob("*.hint")
    return hint


@pytest.mark.parametrize("bit", range(44, 64))
def test_a_place_that_names_another_segment_is_no_place(bit: int, path: Path) -> None:
    """A hint whose CRC fits could point at a segment that does not exist; a read of the key never came back."""
    hint = _with_hint(path)
    raw = bytearray(hint.read_bytes())
    place = forge.Field("place", 92, 8)
    hint.write_bytes(forge.with_crc(place.set(bytes(raw), place.get(raw) | 1 << bit)))
    for flag in "rw":
        with open_store(path, flag) as db:
            assert db.recovery.hints_used == 0
            assert dict(db) == {b"a": b"1", b"b": b"2"}


def test_a_hint_larger_than_its_segment_is_not_read(path: Path) -> None:
    hint = _with_hint(path)
    os.truncate(hint, 1 << 31)
    with measured(16 << 20), open_store(path, "r") as db:
        assert db.recovery.hints_used == 0
        assert dict(db) == {b"a": b"1", b"b": b"2"}


def test_no_honest_hint_is_larger_than_its_segment(path: Path) -> None:
    """What the bound relies on, for the entries that have least besides what a hint repeats."""
    with small_things_count():
        with open_store(path, "n", io="pread", sync="os") as db:
            for number in range(50):
                db.put(b"%d" % number, b"", ttl=1000)
            db.put(b"", b"", ttl=1000)
            for number in range(20):
                del db[b"%d" % number]
        (hint,) = path.glob("*.hint")
        with open_store(path, "r") as db:
            assert db.recovery.hints_used == 1
        (segment,) = segment_files(path)
    assert hint.stat().st_size <= segment.stat().st_size + 96


# --- files that seem to be large ---------------------------------------------------------------


@pytest.mark.parametrize("state", [forge.SEALED, ACTIVE])
def test_a_length_that_lies_costs_no_memory(state: int, path: Path) -> None:
    """An entry of a gigabyte, in a file of two that takes no space: it was read whole before its CRC was compared."""
    forge.write_store(
        path, [Segment(1, (Entry(1),), state=state, length=MAX_SEGMENT_SIZE, file_length=MAX_SEGMENT_SIZE)]
    )
    with open(path / "0000000001.seg", "r+b") as file:
        file.seek(80 + 35)
        file.write(forge.ENTRY.pack(PUT, 5, 1 << 30, 2, 0))
    for use in (lambda: open_store(path, "r"), lambda: open_store(path, "w"), lambda: bytekv.repair(path)):
        with small_things_count(), measured(16 << 20), contextlib.suppress(CorruptionError):
            use()
    with open_store(path, "w") as db:
        assert dict(db) == {b"key": b"value"}


def test_a_terabyte_of_nothing_is_read_no_further_than_a_segment_can_reach(path: Path) -> None:
    """Opening looked for sync marks in all of it, and a repair wanted it in one piece."""
    segment = Segment(1, (Entry(1), Entry(2)), state=ACTIVE, file_length=1 << 40)
    forge.write_store(path, [segment])
    for flag in "rw":
        with measured(16 << 20) as calls, pytest.raises(CorruptionError, match="too many for a segment"):
            open_store(path, flag)
        assert calls.counts["any"] < 1000
    with measured(16 << 20) as calls:
        report = bytekv.repair(path)
    assert calls.counts["any"] < 8000
    assert [damage.offset for damage in report.damage] == [MAX_SEGMENT_SIZE]
    with open_store(path, "w") as db:
        assert dict(db) == {b"key": b"value"}
    (kept,) = report.quarantined
    assert os.stat(kept).st_size == MAX_SEGMENT_SIZE
    assert os.stat(kept).st_blocks * 512 < 2 << 20, "what was empty takes no space in quarantine"


def test_a_torn_tail_is_set_aside_piece_by_piece(path: Path) -> None:
    """All of it was held in memory at once."""
    segment = Segment(1, (Entry(1), Entry(2)), state=ACTIVE, length=80, last_seq=0)
    forge.write_store(path, [segment], last_seq=0)
    with open(path / "0000000001.seg", "r+b") as file:
        file.truncate(100 << 20)
        file.seek(100 << 20)
        file.write(b"!")
    with measured(16 << 20):
        db = open_store(path, "w")
    with db:
        assert len(db) == 1
        assert db.recovery.torn_bytes == (100 << 20) + 1 - len(segment.encode())
        assert os.stat(db.recovery.quarantined[0]).st_blocks * 512 < 2 << 20


def _reads_of_a_repair(path: Path, segment: bytes) -> int:
    shutil.rmtree(path, ignore_errors=True)
    forge.write_store(path, [Segment(1, length=len(segment), last_seq=100_000)])
    (path / "0000000001.seg").write_bytes(segment)
    with measured(64 << 20) as calls:
        bytekv.repair(path)
    return calls.counts["read"]


def test_what_only_looks_like_entries_is_not_tried_for_ever(path: Path) -> None:
    """Each place that looked like an entry had its CRC taken over all the megabytes that it claimed to have."""
    head = Segment(1).encode()
    reads = []
    for count in (1000, 4000):
        lies = b"".join(forge.ENTRY.pack(PUT, 5, 4 << 20, 1 + number, 0) for number in range(count))
        reads.append(_reads_of_a_repair(path, head + lies + bytes(5 << 20)))
    assert reads[1] < 2 * reads[0] < 3000


def test_a_log_full_of_damage_is_searched_once_for_sync_marks(path: Path) -> None:
    """Behind every damaged entry all of the rest was searched again for the one mark at its end."""
    reads = []
    for count in (500, 2000):
        entries = [*(Entry(seq, value=b"v" * 3000) for seq in range(1, count + 1)), Entry(count, b"", b"", SYNC_MARK)]
        segment = Segment(1, tuple(entries), state=ACTIVE, length=80, last_seq=0)
        forge.write_store(path, [segment], last_seq=0)
        raw = bytearray(segment.encode())
        for offset, size in [*forge.places_of(bytes(raw))][::2]:
            raw[offset + size - 5] ^= 1
        (path / "0000000001.seg").write_bytes(raw)
        with measured(64 << 20) as calls:
            report = bytekv.repair(path)
        assert len(report.damage) == count // 2
        reads.append(calls.counts["read"])
        with open_store(path, "w") as db:
            assert db[b"key"] == b"v" * 3000
        shutil.rmtree(path)
    assert reads[1] < 4.2 * reads[0]


# --- second names ------------------------------------------------------------------------------


@pytest.fixture
def outside(path: Path) -> Path:
    """A file of somebody else's."""
    file = path.with_name("outside")
    file.write_bytes(b"precious" * 1000)
    os.chmod(file, 0o644)
    return file


@pytest.mark.parametrize(
    ("when", "name"),
    [
        *(("before it is opened", name) for name in ("LOCK", "MANIFEST.new", "0000000002.hint", "0000000003.seg")),
        *(("while it is open", name) for name in ("MANIFEST.new", "0000000002.hint", "0000000003.seg")),
    ],
)
def test_a_second_name_of_somebody_elses_file_is_not_written_through(
    when: str, name: str, path: Path, outside: Path
) -> None:
    """Hints and manifests were written into what was there, the lock's file got a pid and another mode."""
    with small_things_count():
        open_store(path).close()
        db = open_store(path, io="pread", segment_size_bytes=600) if when == "while it is open" else None
        (path / name).unlink(missing_ok=True)
        os.link(outside, path / name)
        before = tree_of(outside)
        with open_store(path, io="pread", segment_size_bytes=600) if db is None else db as db:
            for number in range(40):
                db[f"{number % 9}"] = b"v" * 60
            db._work()
            db.compact()
            content = dict(db)
        assert bytekv.repair(path).ok
        assert tree_of(outside) == before
        with open_store(path, "w") as db:
            assert dict(db) == content


def test_a_second_name_that_takes_the_lock_files_place_ends_the_writing(path: Path, outside: Path) -> None:
    before = tree_of(outside)
    db = open_store(path, io="pread", segment_size_bytes=600)
    db["a"] = "1"
    (path / "LOCK").unlink()
    os.link(outside, path / "LOCK")
    with pytest.raises(StoreFailedError, match="replaced"):
        db.update({f"{number}": b"v" * 60 for number in range(40)})
    with pytest.raises(StoreFailedError, match="replaced"):
        db.close()
    with open_store(path, "w") as again:
        assert dict(again) == {b"a": b"1"}
    assert tree_of(outside) == before


def test_a_second_name_in_quarantine_is_not_written_through(path: Path, outside: Path) -> None:
    segment = Segment(1, (Entry(1),), state=ACTIVE, length=80, last_seq=0)
    forge.write_store(path, [segment], last_seq=0)
    end = len(segment.encode())
    with open(path / "0000000001.seg", "ab") as torn:
        torn.write(b"half an entry")
    (path / "quarantine").mkdir()
    names = [f"0000000001-{end}.torn", f"0000000001-{end}.torn.new"]
    for name in names:
        os.link(outside, path / "quarantine" / name)
    before = tree_of(outside)
    with open_store(path) as db:
        assert dict(db) == {b"key": b"value"}
        assert db.recovery.torn_bytes == 13
    assert (path / "quarantine" / names[0]).read_bytes() == b"half an entry"
    assert tree_of(outside) == before


@pytest.mark.parametrize("ends", ["closed", "crashed"])
def test_a_copy_by_hard_links_stays_as_it_was(ends: str, path: Path) -> None:
    """``cp -al``: the copy's active segment grew along with the store's, and was cut when that was recovered."""
    db = open_store(path, io="pread")
    db["a"] = "1"
    if ends == "closed":
        db.close()
    else:
        db["b"] = "2"
        crash(db)
        with open(segment_files(path)[0], "ab") as torn:
            torn.write(b"half an entry")
    copy = path.with_name("copy")
    copy.mkdir()
    for file in path.iterdir():
        os.link(file, copy / file.name)
    before = tree_of(copy)
    with open_store(path) as db:
        content = dict(db)
        db["after"] = "1"
        db.sync()
    with open_store(path) as db:
        assert dict(db) == {**content, b"after": b"1"}
        assert db.verify().ok
    assert tree_of(copy) == before
    with open_store(copy, "r") as db:
        assert dict(db) == content


# --- what may not be read ----------------------------------------------------------------------


NOBODY = 65534


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Be a user for whom modes count: root may read everything."""
    if os.geteuid():
        yield
        return
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.mark.parametrize("mode", [0o000, 0o444, 0o555, 0o111], ids=oct)
@pytest.mark.parametrize("name", [".", "MANIFEST", "LOCK", "0000000001.seg", "0000000001.hint", "quarantine"])
def test_what_may_not_be_read_or_written(name: str, mode: int, path: Path) -> None:
    """Only errors of bytekv's own; and once it may be read again, everything is there."""
    _with_hint(path)
    (path / "quarantine").mkdir()
    if os.geteuid() == 0:
        for file in [path.parent, path, *path.iterdir()]:
            os.chown(file, NOBODY, NOBODY)
    content: Content = {b"a": b"1", b"b": b"2"}
    (path / name).chmod(mode)
    for flag, options in itertools.product("rwc", ({}, {"recover": "salvage"})):
        before = tree_of(path)
        with as_nobody():
            try:
                with open_store(path, flag, io="pread", **options) as db:
                    assert dict(db) == content
                    if flag != "r":
                        db["n"] = "1"
                        db.compact()
                        del db["n"]
            except CorruptionError:
                pytest.fail("what may not be read is not damaged")
            except BytekvError:
                pass
        assert flag != "r" or tree_of(path) == before
    with as_nobody(), contextlib.suppress(BytekvError):
        bytekv.repair(path)
    if (path / name).exists():
        (path / name).chmod(0o700)
    with open_store(path, "w") as db:
        assert {key: db[key] for key in content} == content
        assert db.recovery.salvaged is None


# --- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [b"caf\xe9", b"\xff\xfe", "кот".encode(), b"new\nline", b"%s", b"-r", b"a" * 255])
def test_a_directory_of_any_name(name: bytes, path: Path) -> None:
    place = os.path.join(os.fsencode(path.parent), name)
    content = {b"a": b"1"}
    with bytekv.open(place) as db:
        db["a"] = "1"
        assert os.fsencode(db.path) == place
        assert db.verify().ok
        with pytest.raises(BytekvError):
            bytekv.open(place, "w")
    assert bytekv.repair(place).ok
    with bytekv.open(place, "r") as db:
        assert dict(db) == content


def test_names_that_the_system_does_not_take(path: Path) -> None:
    for flag in "rwcn":
        with pytest.raises(BytekvError):
            bytekv.open(os.path.join(path, "x" * 300), flag)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="null"):
            bytekv.open(f"{path}\0", flag)  # type: ignore[arg-type]
        if flag in "rw":  # the others make missing parents
            with pytest.raises(BytekvError):
                bytekv.open(path / "a" / "b", flag)  # type: ignore[arg-type]
    assert not path.exists()


def test_a_pipe_in_any_place_never_blocks(path: Path) -> None:
    """With nobody at the other end, opening it would wait for ever."""
    for name in ["MANIFEST", "LOCK", "0000000001.seg", "MANIFEST.new", "0000000001.hint", "quarantine"]:
        shutil.rmtree(path, ignore_errors=True)
        with open_store(path) as db:
            db["a"] = "1"
        (path / name).unlink(missing_ok=True)
        os.mkfifo(path / name)
        for use in (lambda: open_store(path, "r"), lambda: open_store(path, "w"), lambda: bytekv.repair(path)):
            try:
                found = use()
            except (StoreIOError, CorruptionError):
                continue
            if isinstance(found, bytekv.Store):
                assert dict(found) == {b"a": b"1"}
                found.close()
        if (path / name).exists():
            assert stat.S_ISFIFO(os.lstat(path / name).st_mode) or name in ("MANIFEST.new", "0000000001.hint")


def test_what_a_batch_without_end_may_ask_for(path: Path) -> None:
    """A batch is held until its last entry has been seen; one that never ends is held no longer than it is."""
    entries = tuple(Entry(seq, flags=PUT | CONTINUES) for seq in range(1, 20_000))
    forge.write_store(path, [Segment(1, entries, state=ACTIVE, length=80, last_seq=0)], last_seq=0)
    with measured(32 << 20), open_store(path, "w") as db:
        assert len(db) == 0
        assert db.recovery.torn_bytes == len(entries) * 35
