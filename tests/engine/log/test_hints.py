"""A hint file says the same as its segment, or it is ignored: with it and without it a store opens the same."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytekv.engine.codec.hint import Hint
from bytekv.engine.codec.manifest import LOG, SEGMENT_HEADER_SIZE, SegmentHeader, SegmentRow
from bytekv.engine.log.directory import Directory
from bytekv.engine.log.files import Files
from bytekv.engine.log.scan import open_segment, scan_segment
from bytekv.engine.log.segment_manager import SegmentManager
from bytekv.engine.log.summary import hint_of, load_hint, save_hint
from bytekv.engine.space.worker import StopWork
from bytekv.engine.store import Store
from bytekv.errors import CorruptionError, DiskFullError
from bytekv.options import Options
from tests.support import harness
from tests.support.harness import FakeFiles, crash, damage, open_store, segment_files

bounded = settings(derandomize=True, max_examples=100)


@pytest.fixture
def hints_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have segments of every size get a hint file, not only those where it pays."""
    harness.tune(monkeypatch, hint_from=0)


# --- looking -----------------------------------------------------------------------------------


def segments_of(path: Path) -> Iterator[tuple[Directory, SegmentHeader, SegmentRow, Hint]]:
    """Yield each listed segment with what a scan of it says."""
    directory = Directory(str(path), Files())
    for row in directory.load(for_writing=False).segments:
        descriptor, header = open_segment(directory, row.segment_id)
        try:
            start, seq = SEGMENT_HEADER_SIZE, header.previous_seq
            yield directory, header, row, hint_of(scan_segment(directory, descriptor, header, start, row.length, seq))
        finally:
            directory.files.close(descriptor)


def facts(hint: Hint, header: SegmentHeader) -> dict[str, Any]:
    """Return what two hints must agree on; in an output the last entry's seq means nothing."""
    return {
        "length": hint.length,
        "last_seq": hint.last_seq if header.kind == LOG else None,
        "clears": hint.clears,
        "puts": dict(zip(hint.keys, hint.positions, strict=True)),
        "tombstones": set(hint.tombstones),
        "expires": hint.expires,
        "live_bytes": hint.live_bytes,
        "tombstone_bytes": hint.tombstone_bytes,
    }


def content_of(db: Store) -> dict[bytes, bytes | str]:
    """Return every value, or in its place the error that reading it raises."""
    found: dict[bytes, bytes | str] = {}
    for key in db:
        try:
            found[key] = db[key]
        except CorruptionError as error:
            found[key] = str(error)
    return found


def state_of(db: Store) -> dict[str, Any]:
    """Return all that opening derives from the files."""
    keydir = db._keydir
    lengths = db._segments.lengths()
    return {
        "content": content_of(db),
        "locations": dict(keydir.locations),
        "expires": dict(keydir.expires),
        "gone": {
            segment: keydir.usage.dead.get(segment, 0) + keydir.usage.tombstones.get(segment, 0) for segment in lengths
        },
        "last_seq": db.last_seq,
        "verify": db.verify().damage,
    }


def hint_files(path: Path) -> list[Path]:
    return sorted(path.glob("*.hint"))


def without_hints(path: Path) -> Path:
    """Return a copy of a store that has lost its hints."""
    copy = Path(f"{path}-without")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(path, copy, ignore=shutil.ignore_patterns("*.hint"))
    return copy


def expect_the_same_without_hints(path: Path, *, hints_used: int) -> None:
    with open_store(path, "r") as db, open_store(without_hints(path), "r") as other:
        assert db.recovery.hints_used == hints_used
        assert other.recovery.hints_used == 0
        assert state_of(db) == state_of(other)
        assert state_of(db)["verify"] == []


# --- it says the same --------------------------------------------------------------------------

keys = st.sampled_from([b"", b"a", b"b", b"c", b"dd", b"ee", b"ff"])
sizes = st.sampled_from([0, 1, 60, 8191 - 30, 8200])  # of values; the last two are large for a location, or nearly
puts = st.tuples(st.just("put"), keys, sizes, st.sampled_from([None, None, 3600.0]))
steps = st.one_of(
    puts,
    puts,
    st.tuples(st.just("delete"), keys),
    st.tuples(st.just("batch"), st.lists(st.tuples(keys, st.none() | sizes), max_size=4)),
    st.tuples(st.sampled_from(["clear", "sync", "reopen", "compact all", "compact some", "crash"])),
)


def do(db: Store, step: str, *arguments: Any) -> None:
    """Carry out one step that is not about opening or closing."""
    if step == "put":
        key, size, ttl = arguments
        db.put(key, bytes(size), ttl=ttl)
    elif step == "delete":
        db.delete(*arguments)
    elif step == "batch":
        with db.batch() as batch:
            for key, size in arguments[0]:
                if size is None:
                    batch.delete(key)
                else:
                    batch.put(key, bytes(size))
    elif step == "clear":
        db.clear()
    elif step == "sync":
        db.sync()
    elif step == "compact all":
        db.compact()
    elif rows := db._segments.sealed()[1:3]:
        with db._state.compacting:
            db._maintenance.compactor.run([row.segment_id for row in rows], lambda: None, lambda _: None)


def live(path: Path, workload: list[tuple[Any, ...]], **options: Any) -> None:
    """Carry out a workload on a store and close it."""
    files = FakeFiles()
    db = open_store(path, files=files, sync="os", **options)
    for step, *arguments in workload:
        files.sleep(0.01)
        if step in ("reopen", "crash"):
            db.close() if step == "reopen" else crash(db)
            db = open_store(path, files=files, sync="os", **options)
        else:
            do(db, step, *arguments)
    db.close()


@bounded
@given(st.lists(steps, max_size=25), st.sampled_from([300, 9000, 20_000]), st.sampled_from(["mmap", "pread"]))
def test_after_any_life_every_hint_says_what_a_scan_says(hints_for_all, path, workload, segment_size_bytes, io):
    shutil.rmtree(path, ignore_errors=True)
    live(path, workload, segment_size_bytes=segment_size_bytes, io=io)
    for directory, header, row, scanned in segments_of(path):
        hint = load_hint(directory, header, row.length)
        if hint is not None and hint.length == row.length:
            assert facts(hint, header) == facts(scanned, header)
    expect_the_same_without_hints(path, hints_used=len(hint_files(path)))


def test_a_key_deleted_while_its_segment_is_compacted(hints_for_all, path):
    """Its copied put and an older tombstone of it must not both be in the output: the hint would count it twice."""
    db = open_store(path, segment_size_bytes=8000, io="pread", sync="os")
    db["key"] = b"first"
    db["fill 1"] = bytes(7990)
    db.delete("key")
    db["key"] = b"second"
    for number in range(200):
        db[f"{number:04d}"] = b"1"
    db["fill 2"] = bytes(7990)
    moments = itertools.count()

    def pause() -> None:
        if next(moments) == 0:
            assert db.delete("key")

    victims = [row.segment_id for row in db._segments.sealed()][2:3]
    with db._state.compacting:
        db._maintenance.compactor.run(victims, pause, lambda _: None)
    assert next(moments) > 0, "the delete came in the middle of the copying"
    db.close()
    expect_the_same_without_hints(path, hints_used=len(hint_files(path)))


def test_one_that_was_given_up_is_built_at_the_end(hints_for_all, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """The store was closed while its worker, whose work ends at the next pause, was about to write a hint that counted
    as written by then: the next open had to scan that segment."""
    monkeypatch.setattr("bytekv.engine.space.worker.Worker.wake", lambda self: True)  # the test does the worker's work
    pauses = 0

    def pause() -> None:
        nonlocal pauses
        pauses -= 1
        if pauses < 0:
            raise StopWork

    for at in itertools.count():
        pauses, ended = at, False
        store = path / f"{at}"
        path.mkdir(exist_ok=True)
        with open_store(store, segment_size_bytes=400, auto_compact=False) as db:
            for number in range(20):
                db[b"%d" % number] = b"v" * number
            with contextlib.suppress(StopWork):
                db._segments.build_hint(db._segments.sealed()[0], pause)
                ended = True
        assert len(hint_files(store)) == len(segment_files(store)), f"stopped at pause {at}"
        if ended:
            break
    assert at > 2


# --- at the end of a store the keydir says it ---------------------------------------------------


@pytest.fixture
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bytekv.engine.space.worker.Worker.wake", lambda self: True)


def close_and_count_scans(db: Store, monkeypatch: pytest.MonkeyPatch) -> int:
    """Close a store; return how many segments had to be read for their hints."""
    scans = 0

    def counted(*arguments: Any) -> Hint:
        nonlocal scans
        scans += 1
        return hint_of(*arguments)

    monkeypatch.setattr("bytekv.engine.log.summary.hint_of", counted)
    db.close()
    monkeypatch.setattr("bytekv.engine.log.summary.hint_of", hint_of)
    return scans


def expect_hints_as_scanned(path: Path) -> None:
    for directory, header, row, scanned in segments_of(path):
        hint = load_hint(directory, header, row.length)
        assert hint is not None
        assert facts(hint, header) == facts(scanned, header)


@pytest.mark.parametrize("sync", ["os", "always"])
@pytest.mark.parametrize("value_size", [1, 300, 9000])
def test_after_a_bulk_load_nothing_is_read_for_it(
    hints_for_all: None, no_worker: None, monkeypatch: pytest.MonkeyPatch, path: Path, value_size: int, sync: Any
) -> None:
    """Closing a store of a million new keys took four seconds: each entry was read, though each was known."""
    db = open_store(path, segment_size_bytes=20 * (value_size + 40), sync=sync, io="pread")
    for number in range(70):
        db[f"{number}"] = bytes(value_size)
    db.put("69", "expires", ttl=1e9)
    assert close_and_count_scans(db, monkeypatch) == 0
    assert len(hint_files(path)) == len(segment_files(path)) > 2
    expect_hints_as_scanned(path)


@pytest.mark.parametrize("what", ["overwritten", "overwritten, large", "deleted", "cleared", "expired", "tombstone"])
def test_what_the_keydir_does_not_know_is_read(
    hints_for_all: None, no_worker: None, monkeypatch: pytest.MonkeyPatch, path: Path, what: str
) -> None:
    """A hint says what is newest in its segment, even if a later one says otherwise: that one may be of a later backup,
    or may have been damaged and taken out by a repair."""
    files = FakeFiles()
    db = open_store(path, files=files, segment_size_bytes=1000, sync="os", io="pread", expiry_grace_s=1.0)
    db.put("expires", "1", ttl=10.0)
    for number in range(60):
        db[f"{number}"] = bytes(9000 if number == 30 and what == "overwritten, large" else 10)
    if what == "overwritten":
        db["5"] = b"again"
    elif what == "overwritten, large":
        db["30"] = b"again"
    elif what == "deleted":
        db.delete("5")
    elif what == "cleared":
        db.clear()
        db["5"] = b"again"
    elif what == "expired":
        files.sleep(100)
        db["new"] = b"1"
        db._maintenance._purge()
    else:
        db.delete("59")
    assert close_and_count_scans(db, monkeypatch) > 0
    expect_hints_as_scanned(path)


def test_a_few_keys_of_many_are_not_looked_for_in_all(
    hints_for_all: None, no_worker: None, monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    """To look at a million keys for the ten that were written since takes longer than to read ten entries."""
    with open_store(path, sync="os", io="pread", segment_size_bytes=4000) as db:
        for number in range(200):
            db[f"{number}"] = b"1"
        db._commit.seal()
    for keys, scans in ((["new 1", "new 2"], 0), (["3", "new 3"], 1)):
        db = open_store(path, sync="os", io="pread")
        for key in keys:
            db[key] = b"2"
        db._commit.seal()
        assert close_and_count_scans(db, monkeypatch) == scans
        expect_hints_as_scanned(path)


# --- or it is ignored --------------------------------------------------------------------------


@pytest.fixture
def hinted(hints_for_all, path: Path) -> Path:
    """A store of three segments, each with a hint; keys of equal sizes in one, of mixed ones in the others."""
    files = FakeFiles()
    with open_store(path, files=files, segment_size_bytes=400, sync="os", io="pread") as db:
        for number in range(10):
            db[f"{number:02d}"] = b"v"
        db.delete("03")
        db.put("expires", "1", ttl=1e9)
        db["a longer key"] = bytes(100)
        db.delete("04")
        db["04"] = b"again"
        db["last"] = bytes(120)
    assert len(hint_files(path)) == len(segment_files(path)) == 3
    return path


def test_hints_are_used(hinted):
    expect_the_same_without_hints(hinted, hints_used=3)
    with open_store(hinted, "r") as db:
        assert db.recovery.bytes_scanned == 0


@pytest.mark.parametrize("number", [0, 1, 2])
def test_with_any_byte_flipped_it_is_ignored(number, hinted):
    file = hint_files(hinted)[number]
    content = file.read_bytes()
    with open_store(without_hints(hinted), "r") as db:
        expected = state_of(db)
    for offset in range(len(content)):
        damage(file, offset, 0x01 << offset % 8)
        with open_store(hinted, "r") as db:
            assert db.recovery.hints_used == 2, offset
            assert state_of(db) == expected
        file.write_bytes(content)


def test_wherever_it_is_cut_or_if_it_is_too_long_it_is_ignored(hinted):
    file = hint_files(hinted)[1]
    content = file.read_bytes()
    with open_store(without_hints(hinted), "r") as db:
        expected = state_of(db)
    longer = [content + surplus for surplus in (b"\0", content, bytes(4096))]
    for other in [content[:size] for size in range(len(content))] + longer + [bytes(len(content))]:
        file.write_bytes(other)
        with open_store(hinted, "r") as db:
            assert db.recovery.hints_used == 2, len(other)
            assert state_of(db) == expected


def test_hints_that_changed_places_are_ignored(hinted):
    contents = [file.read_bytes() for file in hint_files(hinted)]
    for order in itertools.permutations(range(3)):
        for file, number in zip(hint_files(hinted), order, strict=True):
            file.write_bytes(contents[number])
        expect_the_same_without_hints(hinted, hints_used=sum(number == at for at, number in enumerate(order)))


def test_hints_of_another_store_are_ignored(hinted):
    """As left behind when somebody copies a store over an older one."""
    other = Path(f"{hinted}-other")
    with open_store(other, segment_size_bytes=400, sync="os", io="pread") as db:
        for number in range(30):
            db[f"{number % 10:02d}"] = b"another value"
    for file in hint_files(other):
        if (hinted / file.name).exists():
            shutil.copy(file, hinted)
    expect_the_same_without_hints(hinted, hints_used=0)


@pytest.mark.parametrize("what", ["fifo", "link", "directory", "unreadable"])
def test_something_else_in_its_place_is_ignored(what, hinted):
    file = hint_files(hinted)[0]
    content = file.read_bytes()
    file.unlink()
    if what == "fifo":
        os.mkfifo(file)
    elif what == "link":
        hinted.with_name("target").write_bytes(content)
        file.symlink_to(hinted.with_name("target"))
    elif what == "directory":
        file.mkdir()
    else:
        file.write_bytes(b"")
    with open_store(hinted, "w") as db:
        assert db.recovery.hints_used == 2
        assert db.verify().ok


def test_one_that_speaks_of_more_than_the_segment_holds_is_ignored(hinted):
    for directory, header, row, hint in list(segments_of(hinted)):
        save_hint(directory, header, hint._replace(length=row.length + 1))
        assert load_hint(directory, header, row.length) is None
        assert load_hint(directory, header, row.length + 1) is not None
        save_hint(directory, header, hint._replace(length=SEGMENT_HEADER_SIZE - 1))
        assert load_hint(directory, header, row.length) is None


def test_one_that_knows_later_operations_than_the_manifest_is_ignored(hinted):
    (directory, header, row, hint), *_ = segments_of(hinted)
    save_hint(directory, header, hint._replace(last_seq=row.last_seq + 1))
    expect_the_same_without_hints(hinted, hints_used=2)


def test_a_hint_hides_no_missing_or_shortened_segment(hinted):
    for file in segment_files(hinted):
        content = file.read_bytes()
        file.write_bytes(content[:-1])
        with pytest.raises(CorruptionError, match="cut short"):
            open_store(hinted, "r")
        file.unlink()
        with pytest.raises(CorruptionError, match="missing"):
            open_store(hinted, "r")
        file.write_bytes(content)


# --- it speaks of a beginning ------------------------------------------------------------------

writes = steps.filter(lambda step: step[0] in ("put", "delete", "batch", "clear", "sync"))


@bounded
@given(
    st.lists(writes, min_size=1, max_size=8),
    st.lists(writes, max_size=8),
    st.booleans(),
    st.sampled_from(["mmap", "pread"]),
)
def test_a_segment_that_was_continued_is_read_from_where_its_hint_ends(path, before, after, crashes, io):
    shutil.rmtree(path, ignore_errors=True)
    with pytest.MonkeyPatch.context() as patch:
        harness.tune(patch, hint_from=0)
        live(path, before, io=io)
    files = FakeFiles()
    db = open_store(path, files=files, io=io, sync="os")
    hints_used = db.recovery.hints_used
    for step in after:
        do(db, *step)
    expected = content_of(db)
    crash(db) if crashes else db.close()
    expect_the_same_without_hints(path, hints_used=hints_used)
    for at in (path, without_hints(path)):
        with open_store(at, "w", files=files, io=io) as db:
            assert content_of(db) == expected
            assert db.verify().ok


@pytest.mark.parametrize("io", ["mmap", "pread"])
@pytest.mark.parametrize("flag", ["r", "w"])
def test_what_follows_a_hint_can_be_read_after_a_crash(flag, io, path):
    """The hint knows a value of more than 8 KiB, which the torn tail replaces: its size is looked up while opening."""
    with open_store(path, io=io, sync="os") as db:
        db["large"] = bytes(70_000)
    assert len(hint_files(path)) == 1
    db = open_store(path, io=io, sync="os")
    db["large"] = b"now small"
    db["new"] = b"1"
    crash(db)
    with open_store(path, flag, io=io) as db:
        assert db.recovery.hints_used == 1
        assert content_of(db) == {b"large": b"now small", b"new": b"1"}


def test_only_what_a_hint_does_not_say_is_scanned(path):
    with open_store(path, io="pread", sync="os") as db:
        db["large"] = bytes(70_000)
    with open_store(path, io="pread", sync="os") as db:
        before = segment_files(path)[0].stat().st_size
        db["small"] = b"1"
    with open_store(path, "r") as db:
        assert db.recovery.hints_used == 1
        assert db.recovery.bytes_scanned == segment_files(path)[0].stat().st_size - before


def test_a_hint_is_written_anew_once_it_lacks_a_quarter(path):
    lengths = []
    for _ in range(6):
        with open_store(path, io="pread", sync="os") as db:
            db[f"k{len(lengths)}"] = bytes(30_000)
        (directory, header, row, _), *_ = segments_of(path)
        hint = load_hint(directory, header, row.length)
        lengths.append((row.length, hint.length if hint else 0))
    assert [hint for _, hint in lengths[:2]] == [0, 0], "less than 64 KiB is scanned as fast"
    assert all(length < 64 * 1024 or hint >= length * 3 // 4 for length, hint in lengths)
    assert any(hint < length for length, hint in lengths[2:]), "and not at every close"


# --- it cannot be written ----------------------------------------------------------------------


def test_a_hint_that_cannot_be_written_leaves_no_half_one(path):
    class Full(FakeFiles):
        def write(self, descriptor, piece, offset, path):
            if path.endswith(".hint"):
                super().write(descriptor, piece[:20], offset, path)
                raise DiskFullError(errno.ENOSPC, "No space left on device", path)
            super().write(descriptor, piece, offset, path)

    with open_store(path, files=Full(), sync="os") as db:
        db["large"] = bytes(70_000)
    assert hint_files(path) == []
    with open_store(path) as db:
        assert db.recovery.clean
        assert db["large"] == bytes(70_000)


def test_a_shorter_hint_replaces_a_longer_file_whole(hints_for_all, path):
    with open_store(path, sync="os", io="pread") as db:
        db["a"] = b"1"
    (file,) = hint_files(path)
    file.write_bytes(file.read_bytes() * 2)
    with open_store(path, io="pread") as db:
        assert db.recovery.hints_used == 0
    expect_the_same_without_hints(path, hints_used=1)


def test_no_hint_is_made_for_a_damaged_segment(path):
    """It would hide the damage from the next open."""
    with open_store(path, segment_size_bytes=70_000, io="pread", sync="os") as db:
        db["a"] = bytes(66_000)
        db["b"] = bytes(66_000)
    for file in hint_files(path):
        file.unlink()
    damage(segment_files(path)[0], 5000)
    directory = Directory(str(path), Files())
    manifest = directory.load(for_writing=False)
    segments = SegmentManager(directory, manifest, Options(), mapped=False)
    for row in manifest.segments:
        segments.build_hint(row, lambda: None)
    assert [file.name for file in hint_files(path)] == ["0000000002.hint"]
