"""A store whose directory is replaced while it is open: by a deployment that flips a link, by mv, by rm, by a cleaner.

Paths were resolved anew for each operation. The writer that had been left behind then unlinked the segments of the
store that lay there now and renamed its own manifest over the new one: whole stores were gone, cleanly closed ones of
other processes. A cleaner of old files took LOCK away, a second writer came in, and both wrote.
"""

from __future__ import annotations

import errno
import gc
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import bytekv
from bytekv import dbm
from bytekv.engine import recovery
from bytekv.engine.integrity.repair import repair_directory
from bytekv.engine.log import directory, files
from bytekv.engine.log.directory import Directory
from bytekv.engine.log.files import Files
from bytekv.engine.store import Store
from bytekv.errors import (
    AccessDeniedError,
    BytekvError,
    StoreClosedError,
    StoreFailedError,
    StoreIOError,
    StoreLockedError,
)
from tests.support.fault_files import SystemCalls
from tests.support.harness import (
    NO_WORKER,
    FakeFiles,
    damage,
    open_store,
    patched,
    segment_files,
    snapshot_of,
    tuned,
)

SMALL: dict[str, Any] = {"segment_size_bytes": 2000}
NEW = {b"order/%d" % number: b"paid" * 20 for number in range(60)}
OLD = {b"old/%d" % number: b"v" * 100 for number in range(30)}


class Place(NamedTuple):
    """Where the new store is, and where the old one is, if it is anywhere."""

    here: Path
    left: Path | None


def _fill(db: Store, content: dict[bytes, bytes]) -> None:
    """Put one by one: a batch lies in one segment, however small they are."""
    for key, value in content.items():
        db[key] = value


def _another(path: Path) -> None:
    with open_store(path, **SMALL) as db:
        _fill(db, NEW | {b"unpaid": b"1"})
        del db["unpaid"]


def _flip(path: Path) -> Place:
    top = path.parent.parent
    os.unlink(top / "current")
    (top / "current").symlink_to("release-2")
    return Place(top / "release-2" / "data", top / "release-1" / "data")


def _move(path: Path) -> Place:
    os.rename(path, path.with_name("moved"))
    return Place(path, path.with_name("moved"))


def _move_parent(path: Path) -> Place:
    os.rename(path.parent, path.parent.with_name("moved"))
    path.parent.mkdir()
    return Place(path, path.parent.with_name("moved") / path.name)


def _remove(path: Path) -> Place:
    shutil.rmtree(path)
    return Place(path, None)


def _empty(path: Path) -> Place:
    """As ``rm -f store/*`` does; and a backup is copied back by hand, which no lock can keep out."""
    prepared = path.with_name("prepared")
    _another(prepared)
    for file in path.iterdir():
        file.unlink()
    for file in prepared.iterdir():
        shutil.copyfile(file, path / file.name)
    return Place(path, None)


WAYS: dict[str, Callable[[Path], Place]] = {
    "the link is flipped": _flip,
    "mv": _move,
    "mv of the parent": _move_parent,
    "rm -rf": _remove,
    "rm of the files": _empty,
}


class Old:
    """A path for a store that will be replaced."""

    def __init__(self, path: Path, way: str) -> None:
        self.way = way
        top = path.with_name("top")
        for release in ("release-1", "release-2"):
            (top / release).mkdir(parents=True)
        (top / "current").symlink_to("release-1")
        self.path = top / ("current" if way == "the link is flipped" else "release-1") / "data"

    def replace(self) -> Place:
        """Put another store in its place, one that is closed cleanly."""
        place = WAYS[self.way](self.path)
        if self.way != "rm of the files":
            _another(place.here)
        return place


@pytest.fixture(params=WAYS)
def old(request: pytest.FixtureRequest, path: Path) -> Old:
    return Old(path, request.param)


def _puts(db: Store) -> None:
    for number in range(40):
        db[b"late/%d" % number] = b"x" * 150


def _compacts(db: Store) -> None:
    db.compact()


def _works(db: Store) -> None:
    db._maintenance.may_compact = True
    db._work()


def _clears(db: Store) -> None:
    db.clear()
    db.compact()


def _commits(db: Store) -> None:
    with db.transaction() as tx:
        tx["late"] = b"x" * 3000


def _syncs(db: Store) -> None:
    db["late"] = "1"
    db.sync()


ACTIONS: dict[str, Callable[[Store], None]] = {
    "puts": _puts,
    "compacts": _compacts,
    "works in the background": _works,
    "clears": _clears,
    "commits": _commits,
    "syncs": _syncs,
    "closes": lambda db: None,
}


@pytest.mark.parametrize("ending", ["close", "drop"])
@pytest.mark.parametrize("action", ACTIONS)
def test_a_writer_that_is_left_behind_changes_nothing_there(action: str, ending: str, old: Old) -> None:
    with patched(NO_WORKER | tuned(hint_from=100)):
        db = open_store(old.path, **SMALL)
        _fill(db, OLD)
        for key in list(OLD)[:10]:
            del db[key]
        snapshot = db.snapshot() if action == "compacts" else None
        _fill(db, OLD)
        db.sync()
        assert dict(db) == OLD  # whatever has been read stays readable
        place = old.replace()
        before = snapshot_of(place.here)
        errors = []
        try:
            ACTIONS[action](db)
            if snapshot is not None:
                assert dict(snapshot)
                snapshot.close()  # lets the victims' files go
        except StoreFailedError as error:
            errors.append(error)
        try:
            expected = dict(db)
        except StoreFailedError as error:  # of a file that was not open, and is gone
            errors.append(error)
            expected = OLD
        assert OLD.items() <= expected.items() or action == "clears"
        if ending == "close":
            try:
                db.close()
            except StoreFailedError as error:
                errors.append(error)
        del db, snapshot
        gc.collect()
        assert snapshot_of(place.here) == before
        with open_store(place.here, "r") as new:
            assert dict(new) == NEW
            assert new.verify().ok
        if place.left is None:
            assert all("replaced" in str(error) for error in errors)
            assert errors or action == "closes" or ending == "drop"
        else:
            assert not errors
            with open_store(place.left) as kept:
                assert dict(kept) == expected
                assert kept.verify().ok


@pytest.mark.parametrize("way", ["rm -rf", "rm of the files"])
@pytest.mark.parametrize("sync", ["os", "interval", "always"])
def test_what_nobody_will_find_is_not_acknowledged_as_durable(sync: str, way: str, path: Path) -> None:
    """A put into a file that has no name any more is gone at the next opening: a sync of it would be a lie."""
    with patched(NO_WORKER):
        old = Old(path, way)
        db = open_store(old.path, sync=sync)
        db["a"] = "1"
        db.sync()
        old.replace()
        with pytest.raises(StoreFailedError, match="replaced"):
            db["b"] = "2"
            db.sync()
        assert db["a"] == b"1"
        assert "replaced" in str(db.failure)
        with pytest.raises(StoreFailedError, match="replaced"):
            db["c"] = "3"
        with pytest.raises(StoreFailedError, match="replaced"):
            db.close()
        assert db.closed


def test_a_reader_goes_on_in_its_own_directory(old: Old) -> None:
    with patched(NO_WORKER):
        with open_store(old.path, **SMALL) as writer:
            _fill(writer, OLD)
        with open_store(old.path, "r", max_open_segments=4) as reader:
            snapshot = reader.snapshot()
            place = old.replace()
            before = snapshot_of(place.here)
            if place.left is not None:
                with open_store(place.left, "w", **SMALL) as writer:
                    writer["new"] = "1"
                assert reader.refresh()
                assert reader["new"] == b"1"
                assert dict(reader) == OLD | {b"new": b"1"}
                assert dict(snapshot) == OLD
            else:
                with pytest.raises((StoreIOError, BytekvError)) as raised:
                    reader.refresh()
                if old.way == "rm -rf":
                    assert "the directory was removed" in str(raised.value)
            snapshot.close()
        assert snapshot_of(place.here) == before


@pytest.mark.parametrize("when", [1, 3, 6])
def test_a_backup_goes_where_it_began(when: int, old: Old, path: Path) -> None:
    """Its place is replaced after some segments of the copy: what lies there by then stays as it is."""
    with open_store(path, **SMALL) as db, patched({"bytekv.engine.log.files.Files.link": lambda *_: False}):
        _fill(db, OLD)
        db.backup(old.path)
        _fill(db, {b"more/%d" % number: b"m" * 200 for number in range(60)})
        done: list[Any] = []
        places: list[Place] = []

        def progress(step: object) -> None:
            done.append(step)
            if len(done) == when:
                places.append(old.replace())
                done.append(snapshot_of(places[0].here))

        try:
            db.backup(old.path, progress=progress)
            error = None
        except BytekvError as found:
            error = found
        (place,) = places
        assert snapshot_of(place.here) == next(step for step in done if isinstance(step, dict))
        if place.left is None:
            assert error is not None
        else:
            assert error is None
            with open_store(place.left, "r") as copy:
                assert dict(copy) == dict(db)
                assert copy.verify().ok


def test_a_backup_reads_where_its_store_is(path: Path) -> None:
    with patched(NO_WORKER), open_store(path, **SMALL) as db:
        _fill(db, OLD)
        os.rename(path, path.with_name("moved"))
        _another(path)
        db.backup(path.with_name("copy"))
        with open_store(path.with_name("copy"), "r") as copy:
            assert dict(copy) == OLD


def test_a_repair_goes_on_where_it_began(old: Old) -> None:
    with open_store(old.path, **SMALL) as db:
        _fill(db, OLD)
    damage(segment_files(old.path)[1], 100)
    places = []

    def progress(_: object) -> None:
        if not places:
            places.append(old.replace())
            before.update(snapshot_of(places[0].here))

    before: dict[str, bytes] = {}
    try:
        bytekv.repair(old.path, progress=progress)
        error = None
    except BytekvError as found:
        error = found
    (place,) = places
    assert snapshot_of(place.here) == before
    if place.left is None:
        assert error is not None
    else:
        assert error is None
        with open_store(place.left, "r") as kept:
            assert len(kept) == len(OLD) - 1


def test_a_dbm_goes_on_in_its_own_directory(old: Old) -> None:
    db = dbm.open(str(old.path), "c", **SMALL)
    for key, value in OLD.items():
        db[key] = value
    place = old.replace()
    before = snapshot_of(place.here)
    said = ""
    try:
        for number in range(40):
            db[b"late/%d" % number] = b"x" * 150
        db.close()
    except dbm.error as error:
        said = str(error)
    assert ("replaced" in said) == (place.left is None)
    del db
    gc.collect()
    assert snapshot_of(place.here) == before


def test_a_call_that_comes_after_the_close_is_refused(path: Path) -> None:
    """The descriptor's number may be that of another directory by then, and the path may lead to another store."""
    db = open_store(path)
    db["a"] = "1"
    home, place = db._directory, db._directory.segment_path(1)
    db.close()
    _another(path.with_name("other"))
    with open_store(path.with_name("other")):
        for call in (
            lambda: home.files.unlink(place),
            lambda: home.files.open(place),
            lambda: home.remove_segments([1]),
            lambda: home.load(for_writing=True),
            home.sync,
        ):
            with pytest.raises(StoreClosedError):
                call()
    assert segment_files(path)


def test_a_directory_is_held_until_the_call_that_uses_it_has_ended(path: Path) -> None:
    """Its number, given to another directory meanwhile, would have been the other's: a file there was unlinked."""
    (path.parent / "other").mkdir()
    (path.parent / "other" / "file").write_bytes(b"precious")
    path.mkdir()
    folder = Files().folder(str(path))
    with files._at(folder.place("file")) as (name, number):
        assert number is not None
        folder.close()
        other = os.open(path.parent / "other", os.O_RDONLY)
        assert other != number
        with pytest.raises(FileNotFoundError):
            os.unlink(name, dir_fd=number)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    os.close(other)


# --- the lock ----------------------------------------------------------------------------------


def test_a_writer_whose_lock_file_was_removed_keeps_the_others_out_and_writes_no_more(path: Path) -> None:
    """LOCK's time never changes again, so a cleaner of old files takes it; two writers then wrote to one store."""
    first = open_store(path)
    first["a"] = "1"
    first.sync()
    (path / "LOCK").unlink()
    with (
        patched({"bytekv.engine.log.lock._held": {}}),
        pytest.raises(StoreLockedError) as raised,
    ):  # as in another process
        open_store(path, "w")
    assert raised.value.pid is None
    assert not (path / "LOCK").exists(), "a refused writer leaves nothing"
    with pytest.raises(StoreFailedError, match="LOCK"):
        first.sync()
        first["b"] = "2"
        first.sync()
    with pytest.raises(StoreFailedError):
        first.close()
    with open_store(path, "w") as second:
        assert second["a"] == b"1"


def test_a_bytekv_that_knows_only_of_the_lock_file_is_kept_out(path: Path) -> None:
    with open_store(path) as db, patched({"bytekv.engine.log.lock._held": {}}):
        db["a"] = "1"
        old = Files()
        with (
            patched({"bytekv.engine.log.files.Files.lock_directory": lambda *_: True}),
            pytest.raises(StoreLockedError),
        ):
            open_store(path, files=old)


class Vanishing(FakeFiles):
    """A cleaner takes the lock file away right after it was locked, so often."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def lock(self, descriptor: int, path: str) -> bool:
        locked = super().lock(descriptor, path)
        if self.times:
            self.times -= 1
            os.unlink(path)
        return locked


def test_the_file_that_is_locked_is_the_one_that_has_the_name(path: Path) -> None:
    with open_store(path, files=Vanishing(3)) as db:
        db["a"] = "1"
        file = db._directory._lock._file
        assert file
        assert os.fstat(file.fileno()).st_ino == (path / "LOCK").stat().st_ino
    with pytest.raises(StoreIOError, match="again and again"):
        open_store(path, files=Vanishing(10_000))
    with open_store(path) as db:
        assert db["a"] == b"1"


def _open_locks() -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if target.endswith(("/LOCK", "/store")):
            found.add(target)
    return found


def _child_holds() -> set[str]:
    """Fork, and tell what of a lock the child has open."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, "\n".join(_open_locks()).encode() or b"-")
        os._exit(0)
    os.waitpid(child, 0)
    said = os.read(reading, 10_000).decode()
    os.close(reading)
    os.close(writing)
    return set(said.split("\n")) - {"-"}


needs_fork = pytest.mark.skipif(
    not hasattr(os, "fork") or not os.path.isdir("/proc/self/fd"), reason="needs fork, /proc"
)


@needs_fork
def test_a_child_that_is_forked_while_another_thread_opens_a_store_has_no_part_in_its_lock(path: Path) -> None:
    """Only stores that were open were given up: the child kept a killed parent's lock as long as it lived."""
    inside, go_on, real = threading.Event(), threading.Event(), recovery.recover

    def slow(*arguments: Any, **named: Any) -> Any:
        inside.set()
        go_on.wait(60)
        return real(*arguments, **named)

    stores: list[Store] = []
    with patched({"bytekv.engine.recovery.recover": slow}):
        opening = threading.Thread(target=lambda: stores.append(open_store(path)))
        opening.start()
        assert inside.wait(60)
        assert len(_open_locks()) == 2
        assert _child_holds() == set()
        go_on.set()
        opening.join()
    stores[0]["a"] = "1"
    with pytest.raises(StoreLockedError):
        open_store(path)
    stores[0].close()


@needs_fork
def test_a_child_that_was_forked_before_the_lock_is_taken_has_no_part_in_it(path: Path) -> None:
    """The directory is opened some time before it is locked. A child that was forked in between had the same
    description of it, and kept the second wall for as long as it lived when its parent was killed."""
    open_store(path).close()
    again, end = os.pipe()
    parent = os.fork()
    if not parent:
        real = Directory.acquire

        def acquire(*arguments: Any, **named: Any) -> None:
            if not os.fork():
                os.close(end)
                os.read(again, 1)
                os._exit(0)
            real(*arguments, **named)

        with patched({"bytekv.engine.log.directory.Directory.acquire": acquire}):
            db = open_store(path)
            db["a"] = "1"
            os._exit(7)  # nothing is unlocked, as after a kill
    try:
        assert os.waitstatus_to_exitcode(os.waitpid(parent, 0)[1]) == 7
        with open_store(path) as db:
            assert db["a"] == b"1"
    finally:
        os.close(end)  # lets the child's child go
        os.close(again)


@needs_fork
def test_a_fork_waits_for_a_lock_that_is_just_taken(path: Path) -> None:
    """Between the opening of LOCK and the moment when anybody knows of it a child would have it for ever."""
    inside, go_on = threading.Event(), threading.Event()

    class Slow(FakeFiles):
        def own(self, descriptor: int) -> Any:
            inside.set()
            go_on.wait(60)
            return super().own(descriptor)

    class Guard:
        """A guard that tells when somebody waits for it in vain."""

        def __init__(self) -> None:
            self.real: Any = threading.RLock()

        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
            if not self.real.acquire(blocking=False):
                go_on.set()
                return bool(self.real.acquire(blocking, timeout))
            return True

        def release(self) -> None:
            self.real.release()

        def __enter__(self) -> bool:
            return self.acquire()

        def __exit__(self, *_: object) -> None:
            self.release()

    stores: list[Store] = []
    with patched({"bytekv.engine.log.lock._held_guard": Guard()}):
        opening = threading.Thread(target=lambda: stores.append(open_store(path, files=Slow())))
        opening.start()
        assert inside.wait(60)
        assert _child_holds() == set()
        opening.join()
    stores[0].close()


@needs_fork
def test_a_call_that_was_under_way_in_another_thread_keeps_no_directory_open_in_a_child(path: Path) -> None:
    """The directory bears a lock, too, and the frames of a thread that does not exist let nothing go."""
    inside, go_on = threading.Event(), threading.Event()
    db = open_store(path)
    db["a"] = "1"

    def use() -> None:
        with files._at(db._directory.folder):
            inside.set()
            go_on.wait(60)

    thread = threading.Thread(target=use)
    thread.start()
    assert inside.wait(60)
    assert _child_holds() == set()
    go_on.set()
    thread.join()
    db["b"] = "2"
    db.close()


@needs_fork
def test_a_child_that_a_signal_handler_forks_in_the_middle_of_an_opening_cannot_use_the_store(path: Path) -> None:
    children = []
    with open_store(path) as db:
        db["a"] = "1"  # in a segment that is continued: the next put needs no name

    def fork(*_: object, **__: object) -> None:
        children.append(os.fork())

    with patched(NO_WORKER | {"bytekv.engine.store.register": fork}):
        try:
            db = open_store(path)
            said = 1 if 0 in children and not _refuses(db) else 0
        except BytekvError:
            said = 0
    if 0 in children:
        os._exit(said)
    for child in children:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    db.close()


def _refuses(db: Store) -> bool:
    try:
        db["child"] = "1"
    except BytekvError:
        return True
    return False


# --- what is found out at the first call ---------------------------------------------------------


@pytest.fixture
def unprivileged(path: Path) -> Iterator[None]:
    """Be a user whom permissions concern."""
    if not hasattr(os, "geteuid"):
        pytest.skip("needs users")
    if os.geteuid() != 0:
        yield
        return
    os.chown(path.parent, 65534, 65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("flag", ["w", "c", "n"])
def test_a_directory_that_cannot_be_changed_is_refused_when_it_is_opened(
    flag: str, path: Path, unprivileged: None
) -> None:
    """It opened, took puts, and said so at the first full segment, or at its end."""
    with open_store(path) as db:
        db["a"] = "1"
    before = snapshot_of(path)
    path.chmod(0o500)
    with pytest.raises(AccessDeniedError, match="no files can be made"):
        open_store(path, flag)
    with pytest.raises(AccessDeniedError, match="no files can be made"):
        bytekv.repair(path)
    with open_store(path, "r") as db:
        assert dict(db) == {b"a": b"1"}
    path.chmod(0o700)
    assert snapshot_of(path) == before


def test_a_path_of_any_length_serves_for_all_that_is_done_in_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was long enough for segments and too long for quarantine, after a crash."""
    long = str(path)
    while len(long) < 4000:
        long += "/" + "n" * min(200, 4050 - len(long))
    os.makedirs(os.path.dirname(long))
    long += "m" * (4090 - len(long))
    with open_store(long) as db:
        db["a"] = "1"
        name = f"{long}/0000000001.seg"
        with pytest.raises(OSError, match="too long"):
            os.stat(name)
        folder = os.open(long, os.O_RDONLY)
        image = os.open("0000000001.seg", os.O_RDWR, dir_fd=folder)
        end = db._segments.writer.end  # type: ignore[union-attr]
        content = os.pread(image, end, 0)
    os.ftruncate(image, 0)
    os.pwrite(image, content + b"torn", 0)
    os.close(image)
    with open_store(long) as db:
        assert db.recovery.torn_bytes == 4
        assert dict(db) == {b"a": b"1"}
        db.compact()
        assert db.verify().ok
    assert stat.S_ISDIR(os.stat("quarantine", dir_fd=folder).st_mode)
    os.close(folder)


@pytest.mark.parametrize("sync", ["os", "interval", "always"])
def test_a_clock_before_1970_counts_as_1970(sync: str, path: Path) -> None:
    """Every write was a struct.error: the format knows no time before."""
    clock = FakeFiles(-86_400.0)
    with patched(NO_WORKER):
        with open_store(path, files=clock, sync=sync) as db:
            for number in range(1, 4):  # the first goes the long way, the others the flat one
                db[b"a%d" % number] = b"1"
                assert db.last_seq == number
            assert db.delete("a1")
            assert db.delete("a2")
            assert db["a3"] == b"1"
            assert db.put("b", "2", ttl=5) == 6
            assert db.delete("a3")
            db.update({"c": "3", "d": "4"})
            with db.batch() as batch:
                batch["e"] = "5"
            assert db.entry("c").modified == 0
            assert db.ttl("b") == 5
            db.sync()
        with open_store(path, files=clock, sync=sync) as db:
            assert dict(db) == {b"b": b"2", b"c": b"3", b"d": b"4", b"e": b"5"}
            clock.sleep(86_400.0 + 6)
            assert "b" not in db
            clock.sleep(-86_400.0)
            db["f"] = "6"
            assert db["f"] == b"6"
            db.compact()
            assert db.verify().ok


def test_without_a_thread_every_write_is_a_sync(path: Path) -> None:
    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with patched({"threading.Thread.start": refuse}):
        with bytekv.open(path, sync="interval") as db:
            for number in range(5):
                db[f"{number}"] = "v"
                assert db.durable_seq == db.last_seq
        with bytekv.open(path, "r", follow=0.1) as reader:
            assert "no thread" in str(reader.stats().background_error)


# --- descriptors ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["open", "duplicate"])
@pytest.mark.parametrize("sync", ["os", "always"])
def test_a_process_that_has_no_descriptor_left_is_told_so_and_goes_on_later(kind: str, sync: str, path: Path) -> None:
    """That a directory could not be opened to be synced passed for a failed sync, which is for good."""
    with patched(NO_WORKER), SystemCalls() as calls:
        db = open_store(path, sync=sync, **SMALL)
        _fill(db, OLD)
        written = dict(OLD)
        for call in (lambda: _puts(db), db.compact, lambda: db.backup(path.with_name("copy")), lambda: db.verify()):
            calls.fail(kind, 1, errno.EMFILE, for_ever=True)
            try:
                call()
            except StoreIOError as error:
                assert error.errno == errno.EMFILE  # noqa: PT017
            calls.lift()
            assert db.failure is None
            db[b"more/%d" % len(written)] = b"1"
            written[b"more/%d" % len(written)] = b"1"
        assert written.items() <= dict(db).items()
        assert db.verify().ok
        db.close()
        with open_store(path, "r") as again:
            assert written.items() <= dict(again).items()


@pytest.mark.parametrize("flag", ["r", "w", "c", "n"])
def test_an_opening_without_descriptors_says_so_and_leaves_nothing_behind(flag: str, path: Path) -> None:
    with patched(NO_WORKER), SystemCalls() as calls:
        with open_store(path, **SMALL) as db:
            _fill(db, OLD)
        number = refused = 0
        while True:
            number += 1
            calls.fail("open", number, errno.EMFILE, for_ever=True)
            try:
                open_store(path, flag, **SMALL).close()
            except StoreIOError as error:
                assert error.errno == errno.EMFILE  # noqa: PT017
                refused += 1
            calls.lift()
            if not calls.struck:
                break
        assert refused > 3
        with open_store(path) as db:
            assert dict(db) == OLD or flag == "n"


def test_the_names_are_looked_up_in_the_directory_and_nowhere_else(path: Path) -> None:
    """Every path within a store that reaches `Files` says in which directory it is."""
    seen = []

    class Strict(FakeFiles):
        def __getattribute__(self, name: str) -> Any:
            found = super().__getattribute__(name)
            if name not in ("open", "open_new", "unlink", "replace", "link", "list", "sync_directory", "exists"):
                return found

            def call(*arguments: Any, **named: Any) -> Any:
                for given in arguments:
                    if isinstance(given, str):
                        seen.append((name, given))
                        assert isinstance(given, (files.Place, files.Folder)), (name, given)
                return found(*arguments, **named)

            return call

    strict = Strict()
    with patched(NO_WORKER | tuned(hint_from=100)):
        with open_store(path, files=strict, **SMALL) as db:
            _fill(db, OLD)
            _fill(db, OLD)
            with open_store(path, "r", files=strict) as reader, db.snapshot():
                db.clear()
                db["a"] = "1"
                db.compact()
                reader.refresh()
            db._work()
            db.backup(path.with_name("copy"))
            db["b"] = "2"
            db.backup(path.with_name("copy"))
        damage(segment_files(path)[0], 90)
        home = Directory(str(path), strict)
        home.acquire()
        assert repair_directory(home, 2000).quarantined
        home.release()
        for name in os.listdir(path):
            if name == "MANIFEST":
                (path / name).unlink()
        home = Directory(str(path), strict)
        home.acquire()
        repair_directory(home, 2000)
        home.release()
        open_store(path, files=strict).close()
    assert {name for name, _ in seen} >= {"open", "open_new", "unlink", "replace", "link", "list", "sync_directory"}


def test_a_path_of_a_store_is_a_plain_string_outside_of_files(path: Path) -> None:
    import pickle

    with open_store(path) as db:
        place = db._directory.segment_path(1)
        assert place == f"{path}/0000000001.seg"
        for given in (place, db._directory.folder):
            again = pickle.loads(pickle.dumps(given))
            assert type(again) is str
            assert again == given
    assert directory.parse_name(os.path.basename(place)) == (1, "seg")
