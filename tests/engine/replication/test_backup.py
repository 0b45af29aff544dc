"""Backups: whole, of one moment, cheap when repeated, and never over anything that is not one."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bytekv
from bytekv.contract.reports import Progress
from bytekv.engine.log.directory import Directory
from bytekv.engine.store import Store
from bytekv.errors import (
    BytekvError,
    CorruptionError,
    NotAStoreError,
    StoreClosedError,
    StoreFailedError,
    StoreIOError,
    StoreLockedError,
    StoreNotFoundError,
)
from tests.support.crash_files import CrashFiles
from tests.support.fault_files import KINDS, SystemCalls
from tests.support.harness import (
    NO_WORKER,
    FakeFiles,
    QuickFiles,
    crash,
    damage,
    fresh,
    open_store,
    patched,
    segment_files,
    snapshot_of,
)

SMALL: dict[str, Any] = {"segment_size_bytes": 2000}


@pytest.fixture
def dest(path: Path) -> Path:
    return path.parent / "backup"


def fill(db: Store, count: int = 40) -> None:
    for number in range(count):
        db[b"%d" % number] = b"x" * (number * 7 % 200)


def expect(dest: Path, content: dict[bytes, bytes]) -> None:
    """Open the backup as a reader, and see that it holds exactly this and is whole."""
    with open_store(dest, "r") as copy:
        assert dict(copy) == content
        report = copy.verify()
        assert report.ok, report


@pytest.mark.parametrize("sync", ["interval", "always", "os"])
@pytest.mark.parametrize("io", ["mmap", "pread"])
def test_it_holds_everything(path: Path, dest: Path, sync: str, io: str) -> None:
    with open_store(path, segment_size_bytes=1000, sync=sync, io=io) as db:
        fill(db)
        report = db.backup(dest)
        assert report.seq == db.last_seq
        assert report.segments == len(db.stats().segments) == report.linked + 1
        assert report.kept == 0
        assert report.copied_bytes == db.stats().segments[-1].length_bytes
        content = dict(db)
        db["later"] = "1"
        assert db.verify().ok
    expect(dest, content)
    with open_store(dest, "w") as copy:
        assert copy.last_seq == report.seq
        assert copy.recovery.clean


def test_an_empty_store(path: Path, dest: Path) -> None:
    with open_store(path) as db:
        assert db.backup(dest).segments == 0
        db["a"] = "1"
        del db["a"]
        db.compact()
        assert db.backup(dest).seq == 2
    expect(dest, {})
    with open_store(dest, "w") as copy:
        assert copy.put("b", "2") == 3


def test_repeated_it_takes_what_is_new(path: Path, dest: Path) -> None:
    with open_store(path, segment_size_bytes=1000) as db:
        fill(db)
        first = db.backup(dest)
        again = db.backup(dest)
        assert (again.kept, again.linked, again.copied_bytes) == (first.segments, 0, 0)
        fill(db)
        second = db.backup(dest)
        assert second.kept == first.linked
        assert second.linked > 0
        expect(dest, dict(db))
        db.compact()
        third = db.backup(dest)
        assert (third.kept + third.linked, third.copied_bytes) == (third.segments, 0)
        expect(dest, dict(db))
        names = {file.name for file in segment_files(dest)}
        assert names == {file.name for file in segment_files(path)}


def test_files_are_shared_only_where_nothing_is_appended(path: Path, dest: Path) -> None:
    db = open_store(path, segment_size_bytes=1000)
    fill(db)
    db.backup(dest)
    shared = [file.name for file in segment_files(dest) if file.stat().st_nlink == 2]
    assert shared == [file.name for file in segment_files(path)][:-1]
    before = snapshot_of(path)
    with open_store(dest, "w", segment_size_bytes=1000) as copy:
        fill(copy)
        copy.compact()
        copy.clear()
        copy.compact()
    assert snapshot_of(path) == before
    db.close()


def test_on_another_file_system_it_copies(path: Path, tmp_path: Path) -> None:
    if path.parent.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("both directories lie on one file system")
    with open_store(path, segment_size_bytes=1000) as db:
        fill(db)
        report = db.backup(tmp_path / "backup")
        assert report.linked == 0
        assert report.copied_bytes == db.stats().total_bytes
        content = dict(db)
    expect(tmp_path / "backup", content)


class Copying(FakeFiles):
    """A file system that knows no hard links."""

    def link(self, source: str, target: str) -> bool:
        return False


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def _spoil_header(file: Path) -> None:
    damage(file, 20)


@pytest.mark.parametrize("loss", [Path.unlink, _cut, _spoil_header], ids=["missing", "cut short", "header damaged"])
def test_what_an_earlier_backup_has_lost_is_made_anew(path: Path, dest: Path, loss: Callable[[Path], object]) -> None:
    with open_store(path, segment_size_bytes=1000, files=Copying()) as db:
        fill(db)
        count = db.backup(dest).segments
        lost = segment_files(dest)[1]
        loss(lost)
        report = db.backup(dest)
        assert (report.kept, report.copied_bytes) == (count - 1, lost.stat().st_size)
        expect(dest, dict(db))


@pytest.mark.parametrize("links", [False, True])
def test_what_is_cut_short_is_not_copied(path: Path, dest: Path, links: bool) -> None:
    """Somebody has shortened a segment behind the store's back: the backup says so, and does not wait for bytes."""
    with open_store(path, segment_size_bytes=1000, files=QuickFiles() if links else Copying(), io="pread") as db:
        fill(db)
        before = dict(db)
        db.backup(dest)
        fill(db, 60)
        sealed = segment_files(path)[-2]
        whole = sealed.read_bytes()
        _cut(sealed)
        with pytest.raises(CorruptionError, match=f"{sealed.name}: offset .* cut short"):
            db.backup(dest)
        expect(dest, before)
        sealed.write_bytes(whole)
        db.backup(dest)
        expect(dest, dict(db))


def test_a_torn_tail_stays_behind(path: Path, dest: Path) -> None:
    """A recovery does not cut it off a file with two names. Linked, it came along, but not what says that it is one: a
    repair of a backup that had lost its manifest kept what had been reported lost."""
    db = open_store(path)
    db["a"] = "1"
    db.update({"torn": "1", "too": "2"})
    db["whole"] = "3"
    crash(db)
    (file,) = segment_files(path)
    damage(file, file.read_bytes().index(b"torn"))
    os.link(file, path.parent / "second name")
    with open_store(path) as db:
        assert dict(db) == {b"a": b"1"}
        assert db.backup(dest).linked == 0
    (dest / "MANIFEST").unlink()
    bytekv.repair(dest)
    expect(dest, {b"a": b"1"})


def test_hints_come_along(path: Path, dest: Path) -> None:
    with open_store(path) as db:
        for number in range(100):
            db[b"%d" % number] = bytes(1000)
        del db[b"0"]
        db.compact()
        assert db.backup(dest).linked == 1
        assert [hint.name for hint in dest.glob("*.hint")] == [hint.name for hint in path.glob("*.hint")] != []
        with open_store(dest, "r") as copy:
            assert copy.recovery.hints_used == 1
        expect(dest, dict(db))


def test_what_an_interrupted_one_has_left_goes_first(path: Path, dest: Path) -> None:
    """On a disk that is full of it the next attempt would have no room."""

    def interrupt(progress: Progress) -> None:
        if progress.done_bytes == progress.total_bytes:
            raise KeyboardInterrupt

    def look(_: Progress) -> None:
        there.append({file.name for file in segment_files(dest)})

    there: list[set[str]] = []
    with open_store(path, segment_size_bytes=1000, files=Copying()) as db:
        fill(db)
        with pytest.raises(KeyboardInterrupt):
            db.backup(dest, progress=interrupt)
        left = {file.name for file in segment_files(dest)}
        assert len(left) > 1
        db.backup(dest, progress=look)
        assert there[0] == set()
        assert set(os.listdir(dest)) == {"LOCK", "MANIFEST"} | {file.name for file in segment_files(path)}
        expect(dest, dict(db))


def test_files_are_private(path: Path, dest: Path) -> None:
    before = os.umask(0)
    try:
        with open_store(path) as db:
            fill(db)
            db.backup(dest)
    finally:
        os.umask(before)
    assert dest.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in dest.iterdir()} == {0o600}


def test_what_expires_expires_there(path: Path, dest: Path) -> None:
    files = FakeFiles()
    with open_store(path, files=files) as db:
        db.put("short", "1", ttl=10)
        db["long"] = "2"
        db.backup(dest)
    files.sleep(20)
    with open_store(dest, "r", files=files) as copy:
        assert list(copy) == [b"long"]


def test_progress_is_told(path: Path, dest: Path) -> None:
    told: list[Progress] = []
    with open_store(path, segment_size_bytes=1000) as db:
        fill(db)
        db.backup(dest, progress=told.append)
        assert [item.done_bytes for item in told] == sorted(item.done_bytes for item in told)
        assert told[-1] == (db.stats().total_bytes, db.stats().total_bytes)


def test_an_error_in_the_callback_leaves_the_earlier_backup(path: Path, dest: Path) -> None:
    with open_store(path, segment_size_bytes=1000) as db:
        fill(db)
        db.backup(dest)
        content = dict(db)
        fill(db, 10)
        db["new"] = "1"

        def tell(progress: Progress) -> None:
            db["written by the callback"] = "1"
            if progress.done_bytes == progress.total_bytes:
                raise ValueError("enough")

        with pytest.raises(ValueError, match="enough"):
            db.backup(dest, progress=tell)
        expect(dest, content)
        db.backup(dest)
        expect(dest, dict(db))


# --- what is never overwritten ---------------------------------------------------------------------


def test_another_directory_of_files(path: Path, dest: Path) -> None:
    dest.mkdir()
    (dest / "diary.txt").write_text("dear diary")
    with open_store(path) as db:
        before = snapshot_of(dest)
        with pytest.raises(NotAStoreError, match=r"diary\.txt"):
            db.backup(dest)
        assert snapshot_of(dest) == before


def test_another_store(path: Path, dest: Path) -> None:
    with open_store(dest) as other:
        other["precious"] = "1"
    with open_store(path) as db:
        db["a"] = "1"
        with pytest.raises(NotAStoreError, match="another store"):
            db.backup(dest)
    expect(dest, {b"precious": b"1"})


def test_a_backup_that_was_written_to(path: Path, dest: Path) -> None:
    with open_store(path) as db:
        db["a"] = "1"
        db.backup(dest)
        open_store(dest, "w").close()  # opened, and left as it was
        db.backup(dest)
        with open_store(dest, "w") as copy:
            copy["precious"] = "1"
        with pytest.raises(NotAStoreError, match="written to since"):
            db.backup(dest)
    expect(dest, {b"a": b"1", b"precious": b"1"})


def test_a_backup_that_is_newer(path: Path, dest: Path) -> None:
    with open_store(path) as db:
        db["a"] = "1"
        db.backup(path.parent / "older")
        db["b"] = "2"
        db.backup(dest)
    with open_store(path.parent / "older", "w") as restored, pytest.raises(NotAStoreError, match="up to seq 2"):
        restored.backup(dest)
    expect(dest, {b"a": b"1", b"b": b"2"})


def test_a_backup_that_is_opened_stays_one_whatever_lies_beside_it(path: Path, dest: Path) -> None:
    """What an interrupted backup had left made the opening publish a new manifest: no backup any more, and refused."""
    with open_store(path, **SMALL) as db:
        fill(db, 30)
        db.backup(dest)
        fill(db, 60)
        with pytest.raises(RuntimeError, match="killed"):
            db.backup(dest, progress=_interrupt_at_the_end)
        with open_store(dest, "w") as copy:
            assert copy.recovery.swept
        db.backup(dest)
        expect(dest, dict(db))


def _interrupt_at_the_end(progress: Progress) -> None:
    if progress.done_bytes == progress.total_bytes:
        raise RuntimeError("killed")


@pytest.mark.parametrize("parted", ["the target was repaired", "the store was repaired", "a copy was written to"])
def test_a_backup_of_another_history(parted: str, path: Path, dest: Path) -> None:
    """It was brought up to date: what only it held was gone. Killed before its end, it did not open, for both had
    given the same numbers to different segments."""
    db = open_store(path, **SMALL)
    fill(db, 30)
    if parted == "the target was repaired":
        db.backup(dest)
        _damage(dest)
    elif parted == "the store was repaired":
        db.backup(dest)
        db.close()
        _damage(path)
        db = open_store(path, "w", **SMALL)
    else:
        db.backup(path.parent / "copy")
        with open_store(path.parent / "copy", "w", **SMALL) as copy:
            copy["precious"] = "1"
            fill(copy, 30)
            copy.backup(dest)
    content = snapshot_of(dest)
    fill(db, 100)
    with db, pytest.raises(NotAStoreError, match="another history"):
        db.backup(dest, progress=_interrupt_at_the_end)
    assert snapshot_of(dest) == content


def _damage(path: Path) -> None:
    file, *_ = segment_files(path)
    content = file.read_bytes()
    file.unlink()  # it may be the store's and the backup's
    file.write_bytes(content)
    damage(file, 100)
    assert not bytekv.repair(path).ok


def test_a_backup_that_has_another_file_of_the_same_number(path: Path, dest: Path) -> None:
    """Made of a copy by a bytekv that knows of no history."""
    with open_store(path, **SMALL) as db:
        fill(db, 30)
        db.backup(path.parent / "copy")
        with (
            patched({"bytekv.engine.log.segment_manager.another_history": lambda flags, _: flags}),
            open_store(path.parent / "copy", "w", **SMALL) as copy,
        ):
            fill(copy, 30)
            copy.backup(dest)
        content = snapshot_of(dest)
        fill(db, 100)
        with pytest.raises(NotAStoreError, match="another history"):
            db.backup(dest)
    assert snapshot_of(dest) == content


@pytest.mark.parametrize("name", [".", "inside", "inside/deeper", "../store"])
def test_the_store_itself(path: Path, name: str) -> None:
    with open_store(path) as db:
        before = snapshot_of(path)
        with pytest.raises(ValueError, match="cannot lie inside the store"):
            db.backup(path / name)
        assert snapshot_of(path) == before
        assert not (path / "inside").exists()


def test_the_store_itself_by_a_link(path: Path) -> None:
    with open_store(path) as db:
        (path.parent / "link").symlink_to(path)
        with pytest.raises(ValueError, match="cannot lie inside the store"):
            db.backup(path.parent / "link")


def test_somebody_else_is_at_it(path: Path, dest: Path) -> None:
    with open_store(path) as db:
        db.backup(dest)
        with open_store(dest, "w"), pytest.raises(StoreLockedError):
            db.backup(dest)


def test_no_parent(path: Path) -> None:
    with open_store(path) as db, pytest.raises(StoreNotFoundError):
        db.backup(path.parent / "missing" / "backup")


def test_closed(path: Path, dest: Path) -> None:
    db = open_store(path)
    db.close()
    with pytest.raises(StoreClosedError):
        db.backup(dest)
    assert not dest.exists()


def test_a_failed_store_makes_none(path: Path, dest: Path) -> None:
    db = open_store(path)
    db["a"] = "1"
    db._commit.state.fail(OSError(errno.EIO, "as if"))
    with pytest.raises(StoreFailedError):
        db.backup(dest)
    assert not dest.exists()
    with pytest.raises(StoreFailedError):
        db.close()


# --- unfinished ones -------------------------------------------------------------------------------


def test_an_unfinished_first_one_is_no_store(path: Path, dest: Path) -> None:
    with open_store(path, segment_size_bytes=1000) as db:
        fill(db)

        def tell(progress: Progress) -> None:
            if progress.done_bytes > 2000:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            db.backup(dest, progress=tell)
        for flag in "rwc":
            with pytest.raises(NotAStoreError, match="unfinished backup"):
                open_store(dest, flag)
        assert db.backup(dest).segments
        expect(dest, dict(db))


@pytest.mark.parametrize("earlier", [False, True], ids=["first", "repeated"])
@pytest.mark.parametrize("kind", ["any", *sorted(KINDS)])
@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "for ever"])
def test_every_call_fails(path: Path, dest: Path, kind: str, earlier: bool, for_ever: bool) -> None:
    """Whatever fails: the earlier backup or the new one is there, the store is well, and the next attempt succeeds."""
    number = struck = 0
    with SystemCalls() as calls:
        while True:
            number += 1
            calls.lift()
            store, copy = path.parent / f"store {number}", path.parent / f"backup {number}"
            db = open_store(store, segment_size_bytes=400, files=FakeFiles())
            fill(db, 8)
            before = dict(db)
            if earlier:
                db.backup(copy)
            fill(db, 6)
            db["new"] = "1"
            db.sync()
            content = dict(db)
            calls.fail(kind, number, errno.EIO, for_ever=for_ever)
            try:
                db.backup(copy)
                failed = False
            except BytekvError:
                failed = True
            calls.lift()
            struck += calls.struck
            if not failed:
                expect(copy, content)
            elif earlier:
                with open_store(copy, "r") as there:
                    assert dict(there) in (before, content)
                    assert there.verify().ok
            assert dict(db) == content
            if db.failure is None:
                db.backup(copy)
                expect(copy, content)
                assert db.verify().ok
                db.close()
            else:
                with pytest.raises(StoreFailedError):
                    db.close()
            if not calls.struck:
                break
    assert struck or kind in ("allocate", "chmod", "duplicate", "link", "lock", "map", "mkdir", "truncate", "unlink")


class _Cut:
    """Cut the power at every boundary, and expect one of ``moments`` in the backup, or none while None is one."""

    def __init__(self, files: CrashFiles, place: Path) -> None:
        self.files, self.place = files, place
        self.moments: list[dict[bytes, bytes] | None] = [None]
        self.seen: set[bytes] = set()
        self.found: list[dict[bytes, bytes] | None] = []

    def __call__(self, _: str = "") -> None:
        for image in self.files.images(24):
            if image.digest() in self.seen:
                continue
            self.seen.add(image.digest())
            left = fresh(self.place)
            image.put_into(left)
            found = self.content(left / "backup")
            assert found in self.moments, (left, found)
            self.found.append(found)
            shutil.rmtree(left)
            left.mkdir()

    def content(self, copy: Path) -> dict[bytes, bytes] | None:
        try:
            with open_store(copy, "r", files=QuickFiles()) as there:
                assert there.verify().ok
                return dict(there)
        except (NotAStoreError, StoreNotFoundError):  # no store, and known for none
            return None

    def expect_only(self, *moments: dict[bytes, bytes] | None) -> None:
        """From now on, a power cut leaves one of these."""
        self.seen.clear()
        self.moments = [*moments]


@pytest.mark.parametrize("linked", [True, False], ids=["linked", "copied"])
def test_a_power_cut_leaves_the_earlier_backup_or_the_new_one(path: Path, tmp_path: Path, linked: bool) -> None:
    """On return the new one is durable, whatever a power cut takes of what was not synced, names included."""
    root = path.parent / "disk"
    root.mkdir()
    files = CrashFiles(root, seed=linked)
    if not linked:
        files.link = lambda source, target: False  # type: ignore[method-assign]
    cut = _Cut(files, tmp_path)
    dest = root / "backup"
    with patched(NO_WORKER), open_store(root / "store", segment_size_bytes=400, files=files) as db:
        fill(db, 6)
        db.sync()
        earlier = dict(db)
        files.at_boundary = cut
        cut.expect_only(None, earlier)
        db.backup(dest)
        cut.expect_only(earlier)
        cut()
        files.at_boundary = lambda _: None
        fill(db, 9)
        del db[b"1"]
        db.compact()
        new = dict(db)
        files.at_boundary = cut
        cut.expect_only(earlier, new)
        db.backup(dest)
        cut.expect_only(new)
        cut()
        files.at_boundary = lambda _: None
        assert all(moment in cut.found for moment in (None, earlier, new))


def test_a_target_that_cannot_be_synced_does_not_poison_the_store(path: Path, dest: Path) -> None:
    with SystemCalls() as calls, open_store(path) as db:
        db["a"] = "1"
        db.sync()
        calls.fail("sync", 3, errno.EIO)
        with pytest.raises(StoreIOError, match="not durable"):
            db.backup(dest)
        calls.lift()
        db["b"] = "2"


# --- while others go on ----------------------------------------------------------------------------


def under_load(path: Path, dest: Path, backups: int, new_every: int) -> int:
    """Back up while a thread overwrites, deletes and compacts; each must equal the moment that its seq names."""
    moments: dict[int, dict[bytes, bytes]] = {}
    stop = threading.Event()
    failed: list[BaseException] = []
    db = open_store(path, segment_size_bytes=4096, compact_dead_bytes=1024, auto_compact=True)

    def write() -> None:
        content: dict[bytes, bytes] = {}
        number = 0
        try:
            while not stop.is_set():
                number += 1
                key = b"%d" % (number * 7919 % 61)
                new = dict(content)
                with db.batch() as batch:
                    if number % 5 == 4:
                        batch.delete(key)
                        new.pop(key, None)
                    else:
                        batch[key] = new[key] = b"%d" % number * (number % 40)
                    batch["count"] = new[b"count"] = b"%d" % number
                content = new
                moments[batch.seq or 0] = content
                if number % 3000 == 0:
                    db.compact()
                while len(moments) > 20_000 and not stop.is_set():
                    moments.pop(next(iter(moments)))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    kept = 0
    try:
        for number in range(backups):
            target = dest.parent / f"{dest.name} {number // new_every}"
            report = db.backup(target)
            kept += report.kept
            with open_store(target, "r") as copy:
                found = dict(copy)
                assert copy.verify().ok
                assert copy.last_seq == report.seq
            while report.seq and report.seq not in moments and thread.is_alive():
                stop.wait(0.001)  # the writer has written it, and not yet told the model
            assert report.seq == 0 or found == moments[report.seq]
    finally:
        stop.set()
        thread.join()
    assert not failed, failed
    assert db.verify().ok
    db.close()
    return kept


def test_under_load(path: Path, dest: Path) -> None:
    under_load(path, dest, 20, 7)


@pytest.mark.deep
def test_a_thousand_under_load(path: Path, dest: Path) -> None:
    kept = under_load(path, dest, 1000, 50)
    print(f"\n1,000 backups under load, {kept} segments kept from earlier ones, each equal to the moment of its seq")


def test_beside_a_writer(path: Path, dest: Path) -> None:
    """The reader's files are compacted away before it makes its backup: it takes a newer moment."""
    writer = open_store(path, segment_size_bytes=1000)
    fill(writer)
    reader = open_store(path, "r")
    report = reader.backup(dest)
    assert report.linked == report.segments - 1, "the active segment must not be shared"
    expect(dest, dict(writer))
    fill(writer, 10)
    writer["new"] = "1"
    writer.compact()
    reader.backup(path.parent / "second")
    expect(path.parent / "second", dict(writer))
    assert reader.last_seq == writer.last_seq
    fill(writer, 3)
    reader.refresh()
    reader.backup(dest)
    expect(dest, dict(reader))
    writer.close()
    reader.close()


def test_a_closed_store_lends_its_files(path: Path, dest: Path) -> None:
    """A read-only store and no writer: the last segment is complete, but may be continued by the next writer."""
    with open_store(path, segment_size_bytes=1000) as db:
        fill(db)
        content = dict(db)
    with open_store(path, "r") as reader:
        reader.backup(dest)
    with open_store(path, "w", segment_size_bytes=1000) as db:
        db["more"] = "1"
    expect(dest, content)


def test_the_public_name() -> None:
    assert bytekv.BackupReport._fields == ("seq", "segments", "kept", "linked", "copied_bytes")


def test_nothing_is_pinned_afterwards(open_store: Callable[..., Any], path: Path, dest: Path) -> None:
    db = open_store(segment_size_bytes=1000)
    fill(db)
    db.backup(dest)
    db.compact()
    assert db.stats().pinned_bytes == 0


@pytest.mark.parametrize("same", [True, False])
def test_two_first_backups_into_one_place(path: Path, monkeypatch: pytest.MonkeyPatch, same: bool) -> None:
    """The second has looked and found nothing; before it has the lock, the first begins and ends. It is no first one
    any more then, and what the first has made is not in its way to be swept."""
    place, acquire = path.with_name("backup"), Directory.acquire
    with open_store(path) as db, open_store(path.with_name("other")) as other:
        db["a"], other["a"] = "1", "other"
        late = db if same else other

        def overtaken(directory: Directory, **arguments: Any) -> None:
            monkeypatch.setattr(Directory, "acquire", acquire)
            db.backup(place)
            acquire(directory, **arguments)

        monkeypatch.setattr(Directory, "acquire", overtaken)
        if same:
            assert late.backup(place).kept == 1
        else:
            with pytest.raises(NotAStoreError, match="another store"):
                late.backup(place)
    with open_store(place, "r") as copy:
        assert dict(copy) == {b"a": b"1"}
