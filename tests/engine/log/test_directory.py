"""The directory of a store: names, lock, manifest, leftovers; what is not bytekv's stays as it is."""

from __future__ import annotations

import errno
import multiprocessing
import os
import stat
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from bytekv.engine.codec.checksum import checksum
from bytekv.engine.codec.manifest import ACTIVE, SEALED, Manifest, SegmentRow, encode_manifest
from bytekv.engine.log.directory import Directory, parse_name
from bytekv.engine.log.files import Files
from bytekv.errors import (
    CorruptionError,
    DiskFullError,
    NotAStoreError,
    StoreFailedError,
    StoreIOError,
    StoreLockedError,
    StoreNotFoundError,
    UnsupportedFormatError,
)
from tests.support.harness import FakeFiles, open_store, patched, snapshot_of

ROWS = (SegmentRow(2, 22, 80, 0, SEALED), SegmentRow(5, 55, 100, 1, ACTIVE))
MANIFEST = Manifest(bytes(range(16)), 6, 1, 4, ROWS)


@pytest.fixture
def directory(path: Path) -> Iterator[Directory]:
    path.mkdir()
    made = Directory(str(path), FakeFiles())
    yield made
    made.release()


# --- names -------------------------------------------------------------------------------------

NAMES = [
    ("0000000001.seg", (1, "seg")),
    ("0000000001.hint", (1, "hint")),
    ("0000000042.seg", (42, "seg")),
    ("4294967296.seg", (2**32, "seg")),
    ("9999999999.hint", (9_999_999_999, "hint")),
    ("10000000000.seg", (10_000_000_000, "seg")),
    ("9223372036854775806.seg", (2**63 - 2, "seg")),
]

STRANGERS = [
    "",
    "LOCK",
    "MANIFEST",
    "MANIFEST.new",
    "quarantine",
    "0000000000.seg",
    "00000000000.seg",
    "1.seg",
    "000000001.seg",
    "00000000001.seg",
    "0000000001.SEG",
    "0000000001.seg~",
    "0000000001.seg\n",
    "0000000001.segment",
    "0000000001",
    ".seg",
    "0000000001.log",
    "-000000001.seg",
    "+000000001.seg",
    " 000000001.seg",
    "0_00000001.seg",
    "000000000a.seg",
    "٠٠٠٠٠٠٠٠٠١.seg",
    "x0000000001.seg",
    "0000000001.seg.torn",
    "0000000001-80.torn",
    "../0000000001.seg",
    "9223372036854775807.seg",
    "18446744073709551615.seg",
    "123456789012345678901.seg",
]


def test_names_are_made_and_parsed_back():
    directory = Directory("here", Files())
    for name, (segment_id, kind) in NAMES:
        made = directory.segment_path(segment_id) if kind == "seg" else directory.hint_path(segment_id)
        assert made == os.path.join("here", name)
        assert parse_name(name) == (segment_id, kind)


def test_other_names_are_not_bytekvs():
    assert [name for name in STRANGERS if parse_name(name)] == []


# --- finding and making ------------------------------------------------------------------------


def test_a_store_is_found_by_its_manifest(directory, path):
    directory.save(MANIFEST)
    directory.find()
    assert directory.find_or_make() is False


def test_nothing_there(path):
    with pytest.raises(StoreNotFoundError):
        Directory(str(path), Files()).find()
    assert not path.exists()


def test_a_file_is_no_store(path):
    path.write_bytes(b"text")
    for call in (Directory(str(path), Files()).find, Directory(str(path), Files()).find_or_make):
        with pytest.raises(NotAStoreError):
            call()
    assert path.read_bytes() == b"text"


def test_an_empty_directory_is_made_a_store_but_only_when_asked(directory, path):
    with pytest.raises(NotAStoreError):
        directory.find()
    assert directory.find_or_make() is True
    assert list(path.iterdir()) == [], "asking changes nothing"


def test_a_missing_directory_is_made_with_its_parents(path):
    assert Directory(str(path), Files()).find_or_make() is True
    assert path.is_dir()
    assert Directory(str(path / "a" / "b"), Files()).find_or_make() is True
    assert (path / "a" / "b").is_dir()
    with pytest.raises(StoreNotFoundError):
        Directory(str(path / "c" / "d"), Files()).find()
    assert [each.name for each in path.iterdir()] == ["a"]


def test_what_a_killed_create_leaves_is_no_obstacle(directory, path):
    (path / "LOCK").write_bytes(b"4711\n")
    (path / "MANIFEST.new").write_bytes(b"half a manif")
    assert directory.find_or_make() is True
    with open_store(path) as db:
        db["a"] = "1"
    with open_store(path) as db:
        assert dict(db) == {b"a": b"1"}


@pytest.mark.parametrize("flag", ["r", "w", "c", "n"])
@pytest.mark.parametrize("stranger", ["notes.txt", ".hidden", "data.db", "quarantine", "LOCK.old"])
def test_a_directory_with_other_things_is_left_exactly_as_it_is(stranger, flag, path):
    path.mkdir()
    (path / stranger).write_bytes(b"precious")
    (path / "sub").mkdir()
    before = snapshot_of(path), sorted(path.iterdir()), os.stat(path).st_mode
    with pytest.raises(NotAStoreError):
        open_store(path, flag)
    assert (snapshot_of(path), sorted(path.iterdir()), os.stat(path).st_mode) == before


@pytest.mark.parametrize("flag", ["r", "w", "c", "n"])
@pytest.mark.parametrize("name", ["0000000001.seg", "0000000007.hint"])
def test_segments_without_a_manifest_are_never_taken_for_an_empty_store(name, flag, path):
    path.mkdir()
    (path / name).write_bytes(b"entries")
    before = snapshot_of(path)
    with pytest.raises(CorruptionError) as raised:
        open_store(path, flag)
    assert raised.value.path == str(path / "MANIFEST")
    assert snapshot_of(path) == before


def test_a_stores_directory_may_be_a_link(path):
    with open_store(path) as db:
        db["a"] = "1"
    link = path.with_name("link")
    link.symlink_to(path)
    with open_store(link) as db:
        assert db["a"] == b"1"


# --- the lock ----------------------------------------------------------------------------------


def test_the_second_writer_is_told_who_is_the_first(directory, path):
    directory.acquire()
    again = Directory(str(path), FakeFiles())
    with pytest.raises(StoreLockedError) as raised:
        again.acquire()
    assert raised.value.pid == os.getpid()
    assert "by this process" in str(raised.value)
    assert int((path / "LOCK").read_bytes()) == os.getpid()
    with pytest.raises(StoreLockedError):
        again.acquire()
    directory.release()
    again.acquire()
    again.release()


@pytest.mark.parametrize("other", ["link", "link to the parent", "dots", "slash"])
def test_another_spelling_is_the_same_store(other, directory, path):
    spellings = {
        "link": path.with_name("link"),
        "link to the parent": path.with_name("parent") / path.name,
        "dots": path / ".." / path.name,
        "slash": f"{path}/",
    }
    path.with_name("link").symlink_to(path)
    path.with_name("parent").symlink_to(path.parent)
    directory.acquire()
    with pytest.raises(StoreLockedError):
        Directory(str(spellings[other]), FakeFiles()).acquire()


def test_the_table_of_this_process_holds_where_the_file_system_does_not(directory, path):
    """As with flock emulated by fcntl locks, which one process may take twice."""

    class Permissive(FakeFiles):
        def lock(self, descriptor, path):
            return True

    directory.files = Permissive()
    directory.acquire()
    with pytest.raises(StoreLockedError):
        Directory(str(path), Permissive()).acquire()


@pytest.mark.filterwarnings("ignore:unclosed file")
def test_a_lock_that_could_not_be_given_back_goes_with_its_directory(directory, path, monkeypatch):
    """There was no memory for it when an opening failed, and this process could never open the store again."""

    def no_memory(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as shortage:
        shortage.setattr(Directory, "load", no_memory)
        shortage.setattr(Directory, "release", no_memory)
        with pytest.raises(MemoryError):
            open_store(path)
    open_store(path).close()


@pytest.mark.parametrize("place", ["store.Maintenance", "store.Reader", "store.register", "store.log.info"])
def test_an_opening_that_is_interrupted_late_gives_the_lock_back_though_its_error_is_kept(place, path):
    """As an interactive session keeps the last one: the error has the frame, the frame has the store, and the store
    had the lock."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with patched({f"bytekv.engine.{place}": interrupted}), pytest.raises(KeyboardInterrupt) as kept:
        open_store(path)
    with open_store(path) as db:
        db["a"] = "1"
    assert kept.value.__traceback__ is not None
    assert dict(open_store(path, "r")) == {b"a": b"1"}


def _fail_without_memory(*_: object) -> None:
    raise MemoryError


def test_the_lock_is_given_back_without_memory(path, monkeypatch):
    """There was none for the ``with`` of the guard, or for what passed over an error of the system."""

    class NoMemory:
        __enter__ = __exit__ = _fail_without_memory

    directory = Directory(str(path), Files())
    path.mkdir()
    directory.acquire()
    with monkeypatch.context() as shortage:
        shortage.setattr("bytekv.engine.log.lock._held_guard", NoMemory())
        shortage.setattr("bytekv.engine.log.files._unheeded", _fail_without_memory)
        shortage.setattr("bytekv.engine.log.files._at", _fail_without_memory)
        directory.release()
    again = Directory(str(path), Files())
    again.acquire()
    again.release()


def test_a_directory_that_is_dropped_without_memory_is_closed(path, monkeypatch):
    """Its descriptor stayed open, and the lock of the directory with it."""
    path.mkdir()
    directory = Directory(str(path), Files())
    directory.acquire()
    number = directory.folder.hold().number
    with monkeypatch.context() as shortage:
        shortage.setattr("bytekv.engine.log.files._unheeded", _fail_without_memory)
        directory.folder.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    directory.release()


def _try_to_open(path: str, answers) -> None:
    try:
        open_store(path, "w").close()
        answers.put("opened")
    except StoreLockedError as error:
        answers.put((error.pid, str(error)))


def test_another_process_is_told_the_pid(path):
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    with open_store(path):
        child = context.Process(target=_try_to_open, args=(str(path), answers))
        child.start()
        pid, text = answers.get(timeout=60)
        child.join()
        assert pid == os.getpid()
        assert f"locked by process {os.getpid()} (opening with flag 'r' needs no lock)" in text
    answers.close()
    answers.join_thread()


@pytest.mark.parametrize("text", [b"", b"garbage", b"-5", b"1_000", b"\xff" * 20, b"9" * 19])
def test_whatever_stands_in_the_lock_file_is_only_a_courtesy(text, directory, path):
    class Held(FakeFiles):
        def lock(self, descriptor, path):
            return False

    (path / "LOCK").write_bytes(text)
    with pytest.raises(StoreLockedError) as raised:
        Directory(str(path), Held()).acquire()
    assert raised.value.pid == (int(text) if text.isdigit() else None)
    assert (path / "LOCK").read_bytes() == text, "the holder's pid is not overwritten"


def test_a_lock_file_that_cannot_be_read_names_nobody(directory, path):
    class Held(FakeFiles):
        def lock(self, descriptor, path):
            return False

        def read(self, descriptor, size, offset, path):
            raise StoreIOError(errno.EIO, "Input/output error", path)

    with pytest.raises(StoreLockedError, match="by another process") as raised:
        Directory(str(path), Held()).acquire()
    assert raised.value.pid is None


def test_a_pid_that_cannot_be_written_keeps_nobody_out(directory, path):
    class Full(FakeFiles):
        def write(self, descriptor, piece, offset, path):
            raise DiskFullError(errno.ENOSPC, "No space left on device", path)

    directory.files = Full()
    directory.acquire()
    directory.release()


def test_a_lock_is_not_followed_to_another_file(directory, path):
    target = path.with_name("target")
    target.write_bytes(b"precious")
    (path / "LOCK").symlink_to(target)
    with pytest.raises(StoreIOError, match="not a regular file"):
        directory.acquire()
    assert target.read_bytes() == b"precious"
    (path / "LOCK").unlink()
    directory.acquire()


def test_the_lock_file_stays(directory, path):
    """Were it unlinked, two writers could each hold a lock on a file called LOCK."""
    directory.acquire()
    directory.release()
    directory.release()
    assert (path / "LOCK").exists()


def test_a_network_file_system_is_refused_unless_allowed(path):
    class Network(FakeFiles):
        def file_system(self, path):
            return "nfs4"

    path.mkdir()
    directory = Directory(str(path), Network())
    with pytest.raises(StoreIOError, match="nfs4"):
        directory.acquire()
    assert list(path.iterdir()) == []
    directory.acquire(network_allowed=True)
    directory.release()


def test_a_reader_makes_no_lock_file(path):
    open_store(path).close()
    (path / "LOCK").unlink()
    open_store(path, "r").close()
    assert not (path / "LOCK").exists()


# --- the manifest ------------------------------------------------------------------------------


def test_a_manifest_comes_back(directory, path):
    directory.save(MANIFEST)
    assert directory.load(for_writing=True) == MANIFEST
    assert os.listdir(path) == ["MANIFEST"]


def test_a_larger_leftover_does_not_shine_through(directory, path):
    (path / "MANIFEST.new").write_bytes(b"x" * 5000)
    directory.save(MANIFEST)
    assert (path / "MANIFEST").read_bytes() == encode_manifest(MANIFEST)


class Failing(FakeFiles):
    """Files whose one method fails, and which note the order of what was called."""

    def __init__(self, method: str = "", error: Exception | None = None) -> None:
        super().__init__()
        self.calls: list[str] = []
        for name in ("open", "truncate", "write", "sync", "replace", "sync_directory", "unlink", "make_directory"):
            setattr(self, name, self._noting(name, getattr(self, name), error if name == method else None))

    def _noting(self, name, call, error):
        def noted(*arguments, **options):
            self.calls.append(name)
            if error is not None:
                raise error
            return call(*arguments, **options)

        return noted


def test_the_order_of_a_replacement(path):
    path.mkdir()
    files = Failing()
    Directory(str(path), files).save(MANIFEST)
    assert files.calls == ["open", "write", "sync", "replace", "sync_directory"]


def test_creating_syncs_the_name_of_the_directory_too(path):
    path.mkdir()
    files = Failing()
    Directory(str(path), files).create(MANIFEST)
    assert files.calls[-2:] == ["sync_directory", "sync_directory"]


@pytest.mark.parametrize("method", ["open", "write", "sync", "replace"])
def test_a_replacement_that_fails_leaves_the_old_manifest(method, path):
    path.mkdir()
    Directory(str(path), Files()).save(MANIFEST)
    error = StoreFailedError("sync") if method == "sync" else DiskFullError(errno.ENOSPC, "full", "")
    with pytest.raises(type(error)):
        Directory(str(path), Failing(method, error)).save(Manifest(bytes(16), 1, 0, 5))
    assert Directory(str(path), Files()).load(for_writing=True) == MANIFEST
    assert os.listdir(path) == ["MANIFEST"]


def test_a_manifest_that_is_no_file_or_too_large_is_refused(directory, path):
    (path / "MANIFEST").mkdir()
    with pytest.raises(StoreIOError, match="not a regular file"):
        directory.load(for_writing=False)
    (path / "MANIFEST").rmdir()
    with (path / "MANIFEST").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CorruptionError, match="too many"):
        directory.load(for_writing=False)
    (path / "MANIFEST").unlink()
    with pytest.raises(CorruptionError, match="vanished"):
        directory.load(for_writing=False)


def test_an_empty_manifest_is_corruption_and_not_an_empty_store(directory, path):
    (path / "MANIFEST").write_bytes(b"")
    for flag in ("r", "w", "c"):
        with pytest.raises(CorruptionError):
            open_store(path, flag)
    assert (path / "MANIFEST").read_bytes() == b""


def test_a_manifest_of_a_newer_version_is_refused_as_such(directory, path):
    raw = bytearray(encode_manifest(MANIFEST)[:-4])
    raw[8] = 2
    (path / "MANIFEST").write_bytes(bytes(raw) + checksum(bytes(raw)).to_bytes(4, "little"))
    with pytest.raises(UnsupportedFormatError):
        directory.load(for_writing=False)


# --- leftovers ---------------------------------------------------------------------------------


def test_the_sweep_takes_only_what_bytekv_made_and_no_manifest_lists(directory, path):
    directory.save(MANIFEST)
    ours = ["0000000001.seg", "0000000003.hint", "0000000009.seg", "MANIFEST.new"]
    theirs = ["notes.txt", "0000000001.seg.bak", "1.seg", "0000000003.log", "LOCK", "x.hint"]
    listed = ["0000000002.seg", "0000000002.hint", "0000000005.seg"]
    for name in [*ours, *theirs, *listed]:
        (path / name).write_bytes(name.encode())
    highest = max(directory.segments_on_disk())
    removed = directory.sweep(MANIFEST)
    assert removed == sorted(ours)
    assert highest == 9, "ids are never used twice, not even those of leftovers"
    assert sorted(os.listdir(path)) == sorted(["MANIFEST", *theirs, *listed])
    assert directory.sweep(MANIFEST) == []


def test_the_sweep_syncs_the_directory_only_if_it_removed_something(path):
    path.mkdir()
    files = Failing()
    directory = Directory(str(path), files)
    assert directory.sweep(MANIFEST) == []
    assert files.calls == []
    (path / "0000000001.seg").write_bytes(b"")
    directory.sweep(MANIFEST)
    assert files.calls == ["unlink", "sync_directory"]


def test_a_directory_in_the_place_of_a_leftover_is_left(directory, path):
    (path / "0000000007.seg").mkdir()
    (path / "0000000007.seg" / "precious").write_bytes(b"1")
    assert directory.sweep(MANIFEST) == []
    assert (path / "0000000007.seg" / "precious").exists()


def test_a_leftover_that_is_a_link_is_removed_and_not_its_target(directory, path):
    target = path.with_name("target")
    target.write_bytes(b"precious")
    (path / "0000000007.seg").symlink_to(target)
    assert directory.sweep(MANIFEST) == ["0000000007.seg"]
    assert target.read_bytes() == b"precious"


def test_foreign_files_in_a_store_survive_everything(open_store, path):
    db = open_store(segment_size_bytes=300)
    strangers = {"notes.txt": b"mine", "1.seg": b"mine, too", "quarantine.txt": b"and this"}
    for name, content in strangers.items():
        (path / name).write_bytes(content)
    for number in range(50):
        db[f"key {number % 5}"] = bytes(20)
    db.compact()
    db.close()
    open_store(segment_size_bytes=300).close()
    open_store("n").close()
    assert {name: (path / name).read_bytes() for name in strangers} == strangers


# --- quarantine --------------------------------------------------------------------------------


def test_what_is_set_aside_is_durable_and_complete(path):
    path.mkdir()
    files = Failing()
    directory = Directory(str(path), files)
    target = directory.quarantine("0000000001-80.torn", [b"first ", b"", b"second"])
    assert target == str(path / "quarantine" / "0000000001-80.torn")
    assert Path(target).read_bytes() == b"first second"
    assert os.listdir(path / "quarantine") == ["0000000001-80.torn"]
    assert files.calls == [
        "make_directory",
        "sync_directory",
        "open",
        "write",
        "write",
        "truncate",
        "sync",
        "replace",
        "sync_directory",
    ]


def test_setting_aside_once_more_is_harmless(directory, path):
    directory.quarantine("a.torn", [b"longer than the second"])
    directory.quarantine("a.torn", [b"second"])
    assert (path / "quarantine" / "a.torn").read_bytes() == b"second"


@pytest.mark.parametrize("what", ["file", "link"])
def test_a_quarantine_that_is_not_the_stores_own_is_refused(what, directory, path):
    elsewhere = path.with_name("elsewhere")
    elsewhere.mkdir()
    if what == "file":
        (path / "quarantine").write_bytes(b"")
    else:
        (path / "quarantine").symlink_to(elsewhere)
    with pytest.raises(StoreIOError, match="not a directory"):
        directory.quarantine("a.torn", [b"bytes"])
    assert list(elsewhere.iterdir()) == []


def test_a_lock_that_was_given_back_in_two_tries_can_be_taken(path):
    """Interrupted at the wrong moment, `close` forgot what it had locked and had given back only half of it: the store
    could not be opened again for as long as somebody had the closed one."""

    class Interrupting(weakref.WeakValueDictionary):
        strikes = ["get", "pop"]

        def get(self, *arguments):
            found = super().get(*arguments)
            self.strike("get")
            return found

        def pop(self, *arguments):
            self.strike("pop")
            return super().pop(*arguments)

        def strike(self, where):
            if where in self.strikes:
                self.strikes.remove(where)
                raise KeyboardInterrupt

    held = Interrupting()
    with patched({"bytekv.engine.log.lock._held": held}):
        db = open_store(path)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                db.close()
        db.close()
        assert held.strikes == []
        open_store(path).close()


# --- permissions -------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o777], ids=oct)
def test_files_are_0600_and_directories_0700_whatever_the_umask(mask, path):
    previous = os.umask(mask)
    try:
        with open_store(path, segment_size_bytes=70_000) as db:
            for number in range(4):
                db[str(number)] = bytes(66_000)
        (path / "0000000009.seg").write_bytes(b"")
        os.chmod(path / "0000000009.seg", 0o600)
        db = open_store(path, segment_size_bytes=70_000)
        db._directory.quarantine("a.torn", [b"bytes"])
        db.compact()
        db.close()
    finally:
        os.umask(previous)
    modes = {file: stat.S_IMODE(os.lstat(file).st_mode) for file in [path, *path.rglob("*")]}
    assert {file.suffix for file in modes} >= {".seg", ".hint", ".torn", ""}
    for file, mode in modes.items():
        assert mode == (0o700 if file.is_dir() else 0o600), (file.name, oct(mode))
