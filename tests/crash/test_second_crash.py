"""What a single crash hides: it takes a second one, or a compaction, for old entries to come back.

Each test is a scenario that has broken a store of this design somewhere, told step by step; the last part
goes through all short stories of a few verbs, so that no scenario needs to have been thought of.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bytekv import CorruptionError
from bytekv.engine.log.scan import header_of, scan_segment
from bytekv.engine.store import Store
from tests.support import harness
from tests.support.harness import WRONG, Case, FakeFiles, QuickFiles, crash, expect_no_violation

pytestmark = pytest.mark.once

Content = dict[bytes, bytes]


@pytest.fixture(params=["mmap", "pread"])
def io(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def active_file(db: Store) -> tuple[Path, int]:
    """Return the active segment's file and where its log ends."""
    writer = db._segments.writer
    assert writer is not None
    return Path(writer.path), writer.end


def bounds(db: Store, write: Callable[[], object]) -> tuple[Path, int, int]:
    """Write something; return the file that it went to and where it begins and ends there."""
    before = active_file(db)[1] if db._segments.writer else 80
    write()
    file, end = active_file(db)
    assert end > before  # it did not roll
    return file, before, end


def overwrite(file: Path, start: int, content: bytes) -> None:
    with open(file, "r+b") as opened:
        opened.seek(start)
        opened.write(content)


def zero(file: Path, start: int, stop: int) -> None:
    """Lose what a sector held, as a power cut may that kept a later one."""
    overwrite(file, start, bytes(stop - start))


def run_of(db: Store, first: int, last: int | None = None) -> list[int]:
    """Return the ids of some sealed segments, by their places in logical order."""
    return [row.segment_id for row in db._segments.sealed()][first:last]


def compact_run(
    db: Store, victims: list[int], pause: Callable[[], None] = lambda: None, *, in_order: bool = False
) -> None:
    db._maintenance.compactor.run(victims, pause, lambda _: None, in_order=in_order)


# --- a hole in the log, and what lies behind it --------------------------------------------------


@pytest.mark.parametrize("sync", ["interval", "os"])
@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_stale_entry_behind_a_hole_does_not_come_back(
    path: Path, open_store: Callable[..., Store], io: str, sync: str, lost: int
) -> None:
    """A B C D are written, one of them is lost, and then the application does the very same again.

    Were the new log continued where the old one broke off, the repeated entry, of the same length and with
    the same seq, would close the hole, and after another crash the old ones behind it would count again.
    """
    db = open_store(sync=sync, io=io)
    names = [b"A", b"B", b"C", b"D"]
    places = [bounds(db, lambda name=name: db.put(name, b"value of " + name)) for name in names]  # type: ignore[misc]
    crash(db)
    file, start, end = places[lost]
    zero(file, start, end)

    db = open_store(sync=sync, io=io)
    kept = names[:lost]
    assert list(db) == kept
    assert db.last_seq == lost
    assert db.recovery.torn_bytes > 0
    assert len(db.recovery.quarantined) == 1
    db.put(names[lost], b"value of " + names[lost])  # word for word what was lost
    crash(db)

    for _ in range(3):
        db = open_store(sync=sync, io=io)
        assert list(db) == [*kept, names[lost]]
        assert db.last_seq == lost + 1
        assert db.recovery.torn_bytes == 0
        crash(db)


def test_a_stale_entry_does_not_come_back_though_recovery_crashes_too(path: Path, open_store: Any, io: str) -> None:
    """The crash comes after the open and before the first write: again and again the tail is gone for good."""
    db = open_store(io=io)
    db.put(b"A", b"1")
    file, start, end = bounds(db, lambda: db.put(b"B", b"2"))
    db.put(b"C", b"3")
    crash(db)
    zero(file, start, end)
    for _ in range(3):
        db = open_store(io=io)
        assert dict(db) == {b"A": b"1"}
        crash(db)
    db = open_store(io=io)
    db.put(b"B", b"2")
    db.close()
    db = open_store(io=io)
    assert dict(db) == {b"A": b"1", b"B": b"2"}


def test_old_bytes_copied_behind_the_new_log_do_not_count(path: Path, open_store: Callable[..., Store]) -> None:
    """As if a file system gave the new segment the very blocks that the lost tail lay in."""
    db = open_store(io="pread")
    db.put(b"A", b"1")
    file, start, _ = bounds(db, lambda: db.put(b"B", b"2"))
    _, _, end = bounds(db, lambda: db.put(b"C", b"3"))
    tail = file.read_bytes()[start:end]
    crash(db)
    overwrite(file, start, b"\xee" * 8)

    db = open_store(io="pread")
    assert dict(db) == {b"A": b"1"}
    db.put(b"B", b"2")
    new_file, end = active_file(db)
    crash(db)
    assert new_file != file
    overwrite(new_file, end, tail)  # B and C of the first life
    overwrite(new_file, end + len(tail), tail[len(tail) // 2 :])

    db = open_store(io="pread")
    assert dict(db) == {b"A": b"1", b"B": b"2"}
    assert db.recovery.torn_bytes > 0


@pytest.mark.parametrize("places", [(1, 2), (2, 1), (0, 1), (3, 2)], ids=lambda pair: "over".join(map(str, pair)))
def test_an_entry_in_the_place_of_another_is_none(
    path: Path, open_store: Callable[..., Store], io: str, places: tuple[int, int]
) -> None:
    """Whole, of this very segment, and yet wrong: its seq is not the next. What follows it does not count either."""
    db = open_store(io=io)
    entries = [bounds(db, lambda n=n: db.put(b"%d" % n, b"value %d" % n)) for n in range(5)]
    crash(db)
    source, target = places
    file, start, end = entries[source]
    overwrite(file, entries[target][1], file.read_bytes()[start:end])
    db = open_store(io=io)
    assert list(db) == [b"%d" % n for n in range(target)]
    assert db.last_seq == target
    assert f"expected {target + 1}" in (db.recovery.torn_reason or "")


@pytest.mark.parametrize("recovered_by", ["w", "r"])
def test_damage_below_a_sync_mark_is_no_torn_tail(path: Path, open_store: Any, io: str, recovered_by: str) -> None:
    """Ten entries, synced, then two more: a bit of each of the ten in turn. Cutting there would lose the rest."""
    db = open_store(io=io)
    places = [bounds(db, lambda n=n: db.put(b"%d" % n, b"value %d" % n)) for n in range(10)]
    db.sync()
    db.put(b"later", b"1")
    crash(db)
    pristine = harness.snapshot_of(path)
    for number, (file, start, end) in enumerate(places):
        harness.damage(file, (start + end) // 2)
        before = harness.snapshot_of(path)
        with pytest.raises(CorruptionError) as caught:
            open_store(recovered_by, io=io)
        assert (caught.value.path, caught.value.offset) == (str(file), start)
        assert "sync mark" in caught.value.reason
        assert harness.snapshot_of(path) == before, number
        harness.damage(file, (start + end) // 2)
    assert harness.snapshot_of(path) == pristine
    assert len(open_store(io=io)) == 11


def test_damage_above_the_last_sync_mark_is_a_torn_tail(path: Path, open_store: Callable[..., Store], io: str) -> None:
    db = open_store(io=io)
    db.put(b"synced", b"1")
    db.sync()
    db.put(b"A", b"1")
    file, start, end = bounds(db, lambda: db.put(b"B", b"2"))
    db.put(b"C", b"3")
    crash(db)
    harness.damage(file, end - 1)
    cut_off = file.read_bytes()[start : start + 2 * (end - start)]  # B and C are alike in size
    db = open_store(io=io)
    assert dict(db) == {b"synced": b"1", b"A": b"1"}
    cut_off = cut_off.rstrip(b"\0")  # one CRC in 256 ends in a zero, and zeros at the end are not kept
    assert db.recovery.torn_bytes == len(cut_off)
    assert [Path(kept).read_bytes() for kept in db.recovery.quarantined] == [cut_off]


def test_what_a_roll_left_behind_is_no_hole(path: Path, open_store: Callable[..., Store], io: str) -> None:
    """A rolled segment is durable before the next one holds anything: losing its end is damage, not a torn tail."""
    db = open_store(io=io, segment_size_bytes=400)
    while len(run_of(db, 0)) < 2:
        db.put(b"%d" % db.last_seq, b"v" * 40)
    crash(db)
    pristine = harness.snapshot_of(path)
    first, second, newest = harness.segment_files(path)
    for file in (first, second):
        os.truncate(file, file.stat().st_size - 1)
        with pytest.raises(CorruptionError) as caught:
            open_store(io=io)
        assert caught.value.path == str(file)
        file.write_bytes(pristine[file.name])
    # The newest one lost as a whole, or another in its place: its header tells.
    newest.unlink()
    with pytest.raises(CorruptionError) as caught:
        open_store(io=io)
    assert caught.value.path == str(newest)
    shutil.copy(first, newest)
    with pytest.raises(CorruptionError) as caught:
        open_store(io=io)
    assert caught.value.path == str(newest)
    newest.write_bytes(pristine[newest.name])
    assert len(open_store(io=io)) > 2


# --- batches -------------------------------------------------------------------------------------


def test_a_batch_cut_anywhere_is_not_there_at_all(path: Path, open_store: Callable[..., Store]) -> None:
    db = open_store(io="pread")
    db.update({b"a": b"old", b"b": b"old"})
    old = dict(db)
    with db.batch() as batch:
        batch[b"a"] = b"new"
        del batch[b"b"]
        batch[b"c"] = b""
        batch.put(b"d", b"expires", ttl=100)
    file, end = active_file(db)
    new = dict(db)
    crash(db)
    pristine = harness.snapshot_of(path)
    start = 80 + 2 * 31  # behind the header and the two entries of `update`
    for cut in range(start, end + 1):
        shutil.rmtree(path)
        path.mkdir()
        for name, content in pristine.items():
            (path / name).write_bytes(content[:cut] if name == file.name else content)
        with harness.open_store(path, io="pread") as db:
            assert dict(db) == (new if cut == end else old), cut
            assert db.last_seq == (6 if cut == end else 2)
            db.update({b"a": b"newer", b"e": b"1"})
            crash(db)
        with harness.open_store(path, io="pread") as db:
            assert dict(db) == {**(new if cut == end else old), b"a": b"newer", b"e": b"1"}


def test_a_hole_in_a_batch_takes_the_whole_batch(path: Path, open_store: Callable[..., Store], io: str) -> None:
    """Its first entry lost, its middle, its last: never a part of it, and the same batch again is a new one."""
    size = 31
    for lost in range(3):
        db = open_store("n", io=io)
        db.put(b"a", b"old")
        file, start, end = bounds(db, lambda db=db: db.update({b"a": b"new", b"b": b"new", b"c": b"new"}))  # type: ignore[misc]
        db.put(b"d", b"new")
        crash(db)
        assert end - start == 3 * size
        zero(file, start + lost * size, start + (lost + 1) * size)
        db = open_store(io=io)
        assert dict(db) == {b"a": b"old"}
        db.update({b"a": b"new", b"b": b"new", b"c": b"new"})
        crash(db)
        db = open_store(io=io)
        assert dict(db) == {b"a": b"new", b"b": b"new", b"c": b"new"}
        db.close()


@pytest.mark.parametrize("segment_size_bytes", [256, 400])
def test_a_batch_larger_than_a_segment_is_never_split(path: Path, open_store: Any, segment_size_bytes: int) -> None:
    db = open_store(segment_size_bytes=segment_size_bytes, io="pread")
    db.put(b"k00", b"old")
    pairs = {b"k%02d" % number: b"new" * 10 for number in range(40)}
    db.update(pairs)
    file, end = active_file(db)
    assert end > 40 * 60
    crash(db)
    os.truncate(file, end - 1)
    db = open_store(segment_size_bytes=segment_size_bytes, io="pread")
    assert dict(db) == {b"k00": b"old"}
    db.update(pairs)
    db.put(b"k00", b"newer")
    crash(db)
    db = open_store(segment_size_bytes=segment_size_bytes, io="pread")
    assert dict(db) == {**pairs, b"k00": b"newer"}
    db.compact()
    crash(db)
    assert dict(open_store(segment_size_bytes=segment_size_bytes)) == {**pairs, b"k00": b"newer"}


# --- what was deleted stays deleted --------------------------------------------------------------


def spread_out(db: Store, number: int = 6) -> None:
    """Fill segments of their own with one key each, so that runs of them can be picked."""
    for key in range(number):
        db.put(b"filler %d" % key, b"f" * 300)


@pytest.mark.parametrize("in_order", [False, True])
def test_a_tombstone_is_kept_while_anything_older_is_left(
    open_store: Callable[..., Store], io: str, in_order: bool
) -> None:
    """Put in the first segment, deleted in a later one; only the later one is compacted, again and again."""
    db = open_store(segment_size_bytes=400, io=io)
    db.put(b"gone", b"1")
    db.put(b"cleared", b"1")
    spread_out(db, 2)
    db.delete(b"gone")
    spread_out(db, 4)
    for _ in range(3):
        compact_run(db, run_of(db, 1), in_order=in_order)
        assert b"gone" not in db
        crash(db)
        db = open_store(segment_size_bytes=400, io=io)
        assert b"gone" not in db
        db.put(b"filler 1", b"f" * 300)
        db.put(b"filler 2", b"f" * 300)
    compact_run(db, run_of(db, 0, 1))  # now the put goes …
    crash(db)
    db = open_store(segment_size_bytes=400, io=io)
    assert b"gone" not in db
    compact_run(db, run_of(db, 0))  # … and then the tombstone may
    assert sum(row.tombstone_bytes for row in db.stats().segments) == 0
    crash(db)
    assert b"gone" not in open_store(segment_size_bytes=400, io=io)


@pytest.mark.parametrize("in_order", [False, True])
def test_a_clear_is_kept_while_anything_older_is_left(
    open_store: Callable[..., Store], io: str, in_order: bool
) -> None:
    db = open_store(segment_size_bytes=400, io=io)
    spread_out(db)
    db.clear()
    db.put(b"new", b"1")
    spread_out(db, 2)
    content = dict(db)
    for _ in range(3):
        compact_run(db, run_of(db, 2), in_order=in_order)  # what was cleared lies partly before, partly in the run
        assert dict(db) == content
        crash(db)
        db = open_store(segment_size_bytes=400, io=io)
        assert dict(db) == content
        db.put(b"filler 1", b"f" * 300)
        db.put(b"filler 0", b"f" * 300)
    db.compact()
    assert dict(db) == content
    assert len(run_of(db, 0)) <= 3
    crash(db)
    assert dict(open_store(segment_size_bytes=400, io=io)) == content


@pytest.mark.parametrize("grace", [0.0, 60.0])
@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("last", [Store.compact, lambda db: compact_run(db, run_of(db, 0))], ids=["all", "a run"])
def test_an_expired_key_uncovers_nothing_older(
    open_store: Callable[..., Store], io: str, grace: float, last: Callable[[Store], object], in_order: bool
) -> None:
    """An old value without an expiry, a new one with; dropping the new one alone would bring back the old one."""
    files = FakeFiles()
    options: dict[str, Any] = {"segment_size_bytes": 400, "io": io, "files": files, "expiry_grace_s": grace}
    db = open_store(**options)
    db.put(b"key", b"old, for ever")
    db.put(b"was deleted", b"old, for ever")
    spread_out(db, 2)
    db.delete(b"was deleted")
    db.put(b"key", b"new", ttl=10)
    db.put(b"was deleted", b"new", ttl=10)
    spread_out(db, 4)
    files.sleep(1000)
    for part in (1, 2, 1):
        compact_run(db, run_of(db, part), in_order=in_order)
        assert b"key" not in db
        assert b"was deleted" not in db
        crash(db)
        db = open_store(**options)
        assert b"key" not in db
        assert b"was deleted" not in db
        db.put(b"filler 1", b"f" * 300)
        db.put(b"filler 2", b"f" * 300)
    last(db)
    assert not db._keydir._expired
    for _ in range(2):
        assert sorted(db) == [b"filler 0", b"filler 1", b"filler 2", b"filler 3"]
        assert not any(b"for ever" in file.read_bytes() for file in harness.segment_files(Path(db.path)))
        crash(db)
        db = open_store(**options)


def test_victims_that_are_no_run_are_not_replaced(path: Path, open_store: Callable[..., Store], io: str) -> None:
    """Outputs take the place of a run; what lay between the victims would change its place among them."""
    db = open_store(segment_size_bytes=400, io=io)
    spread_out(db)
    victims, before = run_of(db, 0, 3)[::2], harness.snapshot_of(path)["MANIFEST"]
    with pytest.raises(CorruptionError, match="no contiguous run"):
        db._segments.replace_run(victims, [])
    assert harness.snapshot_of(path)["MANIFEST"] == before
    assert len(db) == 6
    db.put(b"more", b"1")


def test_victims_that_a_crash_left_behind_are_garbage(path: Path, open_store: Callable[..., Store], io: str) -> None:
    """Killed while unlinking: every subset of the victims is still there, and none of them counts."""
    files = FakeFiles()
    db = open_store(segment_size_bytes=400, io=io, files=files)
    db.put(b"deleted", b"1")
    db.put(b"overwritten", b"old")
    db.put(b"expired", b"1", ttl=10)
    db.put(b"covered", b"old, for ever")
    spread_out(db, 1)
    db.put(b"covered", b"new", ttl=10)
    db.delete(b"deleted")
    db.put(b"overwritten", b"new")
    spread_out(db, 3)
    files.sleep(1000)
    content = dict(db)
    before = harness.snapshot_of(path)
    db.compact()
    assert dict(db) == content
    crash(db)
    after = harness.snapshot_of(path)
    victims = sorted(before.keys() - after.keys())
    assert len(victims) >= 3
    for count in range(1, len(victims) + 1):
        for left in itertools.combinations(victims, count):
            for name in left:
                (path / name).write_bytes(before[name])
            db = open_store(segment_size_bytes=400, io=io, files=files)
            assert dict(db) == content
            assert sorted(db.recovery.swept) == sorted(left)
            assert not any((path / name).exists() for name in left)
            crash(db)
    db = open_store(segment_size_bytes=400, io=io, files=files)
    ids = {int(name[:10]) for name in victims}
    for number in range(5):
        db.put(b"more %d" % number, b"m" * 300)
    assert dict(db).items() >= content.items()
    assert ids.isdisjoint(run_of(db, 0))  # an id is not used twice


def test_outputs_that_a_crash_left_behind_are_garbage(path: Path, open_store: Callable[..., Store], io: str) -> None:
    """Killed before the manifest: the copies are there, but nobody lists them."""
    db = open_store(segment_size_bytes=400, io=io)
    for number in range(20):
        db.put(b"%d" % (number % 5), b"value %d" % number)
    content = dict(db)
    manifest = (path / "MANIFEST").read_bytes()
    before = harness.snapshot_of(path)
    db.compact()
    crash(db)
    outputs = harness.snapshot_of(path).keys() - before.keys()
    assert outputs
    for name, written in before.items():
        (path / name).write_bytes(written)
    assert (path / "MANIFEST").read_bytes() == manifest
    db = open_store(segment_size_bytes=400, io=io)
    assert dict(db) == content
    assert outputs <= set(db.recovery.swept)


# --- writes during a compaction ------------------------------------------------------------------


class Stop(Exception):
    """Stands for a kill in the middle of a compaction."""


def pauses_of(build: Callable[[], Store], run: Callable[[Store], list[int]]) -> int:
    """Count how often a compaction gives way to others."""
    count = 0

    def pause() -> None:
        nonlocal count
        count += 1

    db = build()
    compact_run(db, run(db), pause)
    db.close()
    return count


MEANWHILE: dict[str, Callable[[Store], object]] = {
    "put": lambda db: db.put(b"key", b"newest"),
    "put of another length": lambda db: db.put(b"key", b"newest" * 20),
    "delete": lambda db: db.delete(b"key"),
    "delete and put": lambda db: (db.delete(b"key"), db.put(b"key", b"newest")),
    "put and delete": lambda db: (db.put(b"key", b"newest"), db.delete(b"key")),
    "put what was deleted": lambda db: db.put(b"deleted", b"is back"),
    "put and delete what was deleted": lambda db: (db.put(b"deleted", b"is back"), db.delete(b"deleted")),
    "clear": lambda db: db.clear(),
    "clear and put": lambda db: (db.clear(), db.put(b"key", b"newest")),
    "let it expire": lambda db: db.put(b"key", b"newest", ttl=1),
    "batch": lambda db: db.update({b"key": b"newest", b"deleted": b"is back", b"filler 1": b"new"}),
    "roll": lambda db: db.update({b"key": b"newest", b"large": b"x" * 1000}),
}


@pytest.mark.parametrize("sync", ["interval", "always"])
@pytest.mark.parametrize("oldest", [True, False], ids=["oldest on", "a later run"])
@pytest.mark.parametrize("name", MEANWHILE)
def test_what_is_written_during_a_compaction_wins(
    path: Path, monkeypatch: pytest.MonkeyPatch, name: str, oldest: bool, sync: str
) -> None:
    """At every pause between reading, copying, publishing and moving; then a crash, and a second compaction."""
    harness.tune(monkeypatch, copied_entries=1, moved_keys=1)
    files = FakeFiles()

    def build() -> Store:
        db = harness.open_store(path, "n", files=files, segment_size_bytes=400, sync=sync, expiry_grace_s=0.0)
        db.put(b"deleted", b"before all")
        db.put(b"filler 0", b"f" * 300)
        db.put(b"key", b"old")
        db.put(b"deleted", b"old")
        spread_out(db, 2)
        db.put(b"key", b"newer")
        db.delete(b"deleted")
        spread_out(db, 3)
        return db

    def run(db: Store) -> list[int]:
        return run_of(db, 0 if oldest else 1)

    times = pauses_of(build, run)
    assert times > 6
    for at in range(times):
        db = build()
        step = 0
        content: Content = {}

        def pause() -> None:
            nonlocal step, content
            if step == at:  # noqa: B023 - used up within this round
                MEANWHILE[name](db)  # noqa: B023
                content = dict(db)  # noqa: B023
            step += 1

        compact_run(db, run(db), pause)
        for verb in ("", "crash", "compact", "crash", "let time pass", "compact", "close"):
            if verb == "crash":
                crash(db)
                db = harness.open_store(path, files=files, segment_size_bytes=400, sync=sync, expiry_grace_s=0.0)
            elif verb == "compact":
                db.compact()
            elif verb == "let time pass":
                files.sleep(10)
                if name == "let it expire":
                    del content[b"key"]
            assert dict(db) == content, (at, verb)
            report = db.verify()
            assert report.ok, (at, verb, report)
        db.close()


@pytest.mark.parametrize("oldest", [True, False], ids=["oldest on", "a later run"])
def test_a_compaction_killed_at_any_pause_has_changed_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, oldest: bool
) -> None:
    """Killed, then opened; or interrupted, then continued by the next one."""
    harness.tune(monkeypatch, copied_entries=1, moved_keys=1)

    def build() -> Store:
        db = harness.open_store(path, "n", segment_size_bytes=400)
        for number in range(24):
            db.put(b"%d" % (number % 7), b"value %d" % number)
            if number % 5 == 4:
                db.delete(b"%d" % (number % 3))
        return db

    def run(db: Store) -> list[int]:
        return run_of(db, 0 if oldest else 1)

    for at in range(pauses_of(build, run)):
        for is_killed in (True, False):
            db = build()
            content = dict(db)
            left = at

            def pause() -> None:
                nonlocal left
                left -= 1
                if left < 0:
                    raise Stop

            with pytest.raises(Stop):
                compact_run(db, run(db), pause)
            assert dict(db) == content
            if is_killed:
                crash(db)
                db = harness.open_store(path, segment_size_bytes=400)
            else:
                db.put(b"3", b"after the interruption")
                content[b"3"] = b"after the interruption"
            assert dict(db) == content
            db.compact()
            assert dict(db) == content
            report = db.verify()
            assert report.ok, report
            crash(db)
            with harness.open_store(path, segment_size_bytes=400) as db:
                assert dict(db) == content


def test_dead_bytes_are_counted_right_after_an_interruption(
    open_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has expired is not dead while its grace lasts: counting anew has to know, as counting on does."""
    harness.tune(monkeypatch, copied_entries=1, moved_keys=1)
    files = FakeFiles()
    db = open_store(files=files, segment_size_bytes=400, expiry_grace_s=1000.0)
    for number in range(12):
        db.put(b"%d" % number, b"v" * 60, ttl=10 if number % 2 else None)
    files.sleep(20)
    assert len(db) == 6
    moving = 0

    def pause() -> None:
        nonlocal moving
        moving += db._maintenance.compactor._job is not None
        if moving == 3:
            raise Stop

    with pytest.raises(Stop):
        compact_run(db, run_of(db, 0), pause)
    db.put(b"next", b"counts anew")
    report = db.verify()
    assert report.ok, report
    for grace_s, entries in ((0, 13), (2000, 7)):
        files.sleep(grace_s)
        db.compact()
        report = db.verify()
        assert report.ok, report
        assert (report.entries, len(db)) == (entries, 7)


# --- every short story ---------------------------------------------------------------------------


Step = str | tuple[int, int]  # a verb, or a run of sealed segments to compact
VERBS = ["put a", "put b", "put a for a while", "delete a", "clear", "let time pass", "crash", "close", "compact"]


class Tale:
    """A store, and what it should hold, after some steps from nothing."""

    options: dict[str, Any] = {"segment_size_bytes": 400, "io": "pread", "expiry_grace_s": 0.0}

    def __init__(self, path: Path, steps: tuple[Step, ...]) -> None:
        shutil.rmtree(path, ignore_errors=True)
        self.path, self.files = path, QuickFiles()
        self.model: dict[bytes, tuple[bytes, float]] = {}  # key -> (value, when it expires)
        self.number = 0
        self.open()
        for step in steps:
            self.take(step)

    def open(self) -> None:
        self.db = harness.open_store(self.path, files=self.files, **self.options)

    def take(self, step: Step) -> None:
        """Take a step; the values of puts are never the same twice."""
        db, model = self.db, self.model
        self.number += 1
        value = b"%d" % self.number
        if isinstance(step, tuple):
            compact_run(db, run_of(db, *step))
        elif step == "put a":
            db.put(b"a", value)
            model[b"a"] = value, 1e12
        elif step == "put b":
            db.put(b"b", value)
            model[b"b"] = value, 1e12
        elif step == "put a for a while":
            db.put(b"a", value, ttl=10)
            model[b"a"] = value, self.files.time_ns / 1e9 + 10
        elif step == "delete a":
            assert db.delete(b"a") == (model.pop(b"a", None) is not None)
        elif step == "clear":
            db.clear()
            model.clear()
        elif step == "let time pass":
            self.files.sleep(100)
            now = self.files.time_ns / 1e9
            self.model = {key: found for key, found in model.items() if found[1] > now}
        elif step == "compact":
            db.compact()
        elif step == "crash":
            crash(db)
            self.open()
        else:
            assert step == "close"
            db.close()
            self.open()

    def next_steps(self) -> Iterator[Step]:
        yield from VERBS
        sealed = len(run_of(self.db, 0))
        yield from itertools.combinations(range(sealed + 1), 2)

    def check(self) -> None:
        content = {key: value for key, (value, _) in self.model.items()}
        assert dict(self.db.items()) == content
        report = self.db.verify()
        assert report.ok, report

    def layout(self) -> tuple[Any, ...]:
        """Say what lies where, with seqs and times made relative: what happens next depends on nothing else."""
        segments, found, seqs = self.db._segments, [], set()
        now_ms = self.files.now_ms()
        for row in segments.manifest.segments:
            descriptor, header = header_of(segments.directory, row, segments.manifest.store_uuid, for_writing=False)
            length = segments.lengths()[row.segment_id]
            scan = scan_segment(segments.directory, descriptor, header, 80, length, header.previous_seq)
            entries = [(flags, key, seq, 0 < expires_ms <= now_ms) for flags, key, seq, expires_ms, _, _ in scan]
            self.files.close(descriptor)
            found.append((row.state, header.kind, entries))
            seqs |= {seq for _, _, seq, _ in entries}
        rank = {seq: number for number, seq in enumerate(sorted(seqs))}
        return tuple(
            (state, kind, tuple((flags, key, rank[seq], is_over) for flags, key, seq, is_over in entries))
            for state, kind, entries in found
        ) + (segments.writer is None,)


def short_stories(place: Path, seed: int, depth: int | None = None, last: int = 1) -> Iterator[Case]:
    """Go through all stories of up to ``depth`` steps, once for each layout that they lead to; a case is a step.

    Of those of ``depth`` steps each ``last``-th. Nothing happens in the background.
    """
    with harness.patched(harness.NO_WORKER):
        path = place / f"store-{seed}"  # the order is given: nothing here is left to chance
        known: set[tuple[Any, ...]] = set()
        stories: list[tuple[Step, ...]] = [()]
        for length in itertools.count(1) if depth is None else range(1, depth + 1):
            longer: list[tuple[Step, ...]] = []
            for number, story in enumerate(stories):
                tale = Tale(path, story)
                choices = list(tale.next_steps())
                tale.db.close()
                for step in choices[number % last :: last] if length == depth else choices:
                    yield Case("short stories", _error_of(path, story, step, known, longer))
            stories = longer


def _error_of(
    path: Path, story: tuple[Step, ...], step: Step, known: set[tuple[Any, ...]], longer: list[tuple[Step, ...]]
) -> BaseException | None:
    """Take one more step after a story; if its layout is new, look at what is left of it, too."""
    tale = Tale(path, story)
    try:
        tale.take(step)
        tale.check()
        if (layout := tale.layout()) not in known:
            known.add(layout)
            longer.append((*story, step))
            tale.take("crash")  # what is on disk says the same as memory …
            tale.check()
            tale.take("compact")  # … and goes on doing so when all that may go is gone
            tale.check()
            tale.take("crash")
            tale.check()
    except WRONG as found:
        found.add_note(f"the story: {(*story, step)}")
        return found
    finally:
        tale.db.close()
    return None


def test_every_story_of_a_few_steps(path: Path) -> None:
    """All of four steps, and of those of five every fifth; `tests.deep` has them all."""
    assert expect_no_violation(short_stories(path.parent, 0, 5, last=5))["short stories"] > 1_500


@pytest.mark.deep
def test_every_story_of_five_steps(path: Path) -> None:
    assert expect_no_violation(short_stories(path.parent, 0, 5))["short stories"] > 5_000
