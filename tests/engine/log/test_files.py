"""The one module that touches the operating system, against an operating system that misbehaves.

Here, and only here, the functions of `os` are replaced; everybody else replaces `Files`.
"""

from __future__ import annotations

import errno
import io
import mmap
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytekv.engine.log import files as module
from bytekv.engine.log.files import Files
from bytekv.errors import (
    AccessDeniedError,
    DiskFullError,
    NotAStoreError,
    StoreFailedError,
    StoreIOError,
    StoreNotFoundError,
)
from tests.support.harness import open_store

bounded = settings(derandomize=True, max_examples=100)


@pytest.fixture
def files() -> Files:
    return Files()


@pytest.fixture
def folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.fixture
def descriptor(files: Files, folder: Path) -> Iterator[int]:
    """An open file of 1,000 bytes."""
    (folder / "file").write_bytes(CONTENT)
    opened = files.open(str(folder / "file"), write=True)
    yield opened
    files.close(opened)


CONTENT = bytes(range(250)) * 4


def failing(number: int):
    def fail(*arguments, **options):
        raise OSError(number, os.strerror(number))

    return fail


# --- short reads and writes --------------------------------------------------------------------


@bounded
@given(st.integers(0, 1100), st.integers(0, 1100), st.integers(1, 300))
def test_a_read_that_comes_in_pieces_is_put_together(files, descriptor, size, offset, most):
    """POSIX lets pread return less than asked for; Linux does so above 2 GiB, and file systems at will."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_pread", lambda fd, count, at: os.pread(fd, min(count, most), at))
        assert files.read(descriptor, size, offset, "file") == CONTENT[offset : offset + size]


@bounded
@given(st.binary(max_size=300), st.integers(0, 1100), st.integers(1, 50))
def test_a_write_that_goes_in_pieces_is_completed(files, descriptor, piece, offset, most):
    for given_ in (piece, memoryview(piece)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_pwrite", lambda fd, rest, at: os.pwrite(fd, memoryview(rest)[:most], at))
            files.write(descriptor, given_, offset, "file")
        assert os.pread(descriptor, len(piece), offset) == piece


def test_a_write_that_makes_no_progress_is_an_error_and_no_endless_loop(files, descriptor, monkeypatch):
    answers = iter([3, 0])
    monkeypatch.setattr(module, "_pwrite", lambda fd, rest, at: next(answers))
    with pytest.raises(StoreIOError) as raised:
        files.write(descriptor, b"abcdef", 0, "file")
    assert raised.value.errno == errno.EIO


def test_a_disk_that_fills_up_in_the_middle_of_a_write_is_a_full_disk(files, descriptor, monkeypatch):
    def write(fd, rest, at):
        if at >= 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return os.pwrite(fd, bytes(rest)[:2], at)

    monkeypatch.setattr(module, "_pwrite", write)
    with pytest.raises(DiskFullError) as raised:
        files.write(descriptor, b"abcdef", 0, "the/file")
    assert raised.value.filename == "the/file"
    assert os.pread(descriptor, 6, 0) == b"abcd" + CONTENT[4:6]


def test_nothing_is_written_by_an_empty_write(files, descriptor):
    files.write(descriptor, b"", 5000, "file")
    assert files.size(descriptor, "file") == 1000


def test_reading_behind_the_end_is_empty(files, descriptor):
    assert files.read(descriptor, 10, 1000, "file") == b""
    assert files.read(descriptor, 10, 995, "file") == CONTENT[-5:]
    assert files.read(descriptor, 0, 0, "file") == b""


# --- errors ------------------------------------------------------------------------------------

ERRORS = [
    (errno.ENOSPC, DiskFullError),
    (errno.EDQUOT, DiskFullError),
    (errno.EFBIG, DiskFullError),
    (errno.EACCES, AccessDeniedError),
    (errno.EPERM, AccessDeniedError),
    (errno.EROFS, AccessDeniedError),
    (errno.ENOENT, StoreNotFoundError),
    (errno.EIO, StoreIOError),
    (errno.EMFILE, StoreIOError),
    (errno.EINVAL, StoreIOError),
]

CALLS = {
    "listdir": lambda files, path: files.list(path),
    "mkdir": lambda files, path: files.make_directory(path),
    "replace": lambda files, path: files.replace(path, path),
    "unlink": lambda files, path: files.unlink(path),
    "open": lambda files, path: files.open(path),
    "dup": lambda files, path: files.duplicate(0, path),
    "fstat": lambda files, path: files.size(0, path),
    "ftruncate": lambda files, path: files.truncate(0, 1, path),
    "posix_fallocate": lambda files, path: files.reserve(0, 1, path),
    "stat": lambda files, path: files.identity(path),
    "statvfs": lambda files, path: files.free_bytes(path),
}


@pytest.mark.parametrize("call", CALLS)
def test_every_error_is_translated_and_keeps_number_and_name(call, files, monkeypatch):
    for number, error in ERRORS:
        with monkeypatch.context() as patch:  # not longer: the test runner uses `os` as well
            patch.setattr(os, call, failing(number))
            if (call, number) == ("unlink", errno.ENOENT):
                assert files.unlink("the/file") is False
                continue
            with pytest.raises(error) as raised:
                CALLS[call](files, "the/file")
        assert type(raised.value) is error
        assert isinstance(raised.value.__cause__, OSError)
        assert (raised.value.errno, raised.value.filename) == (number, "the/file")


@pytest.mark.parametrize("call", ["fdatasync", "fsync"])
def test_a_failed_sync_is_an_error_of_its_own(call, files, folder, descriptor, monkeypatch):
    monkeypatch.setattr(os, call, failing(errno.EIO))
    with pytest.raises(StoreFailedError) as raised:
        if call == "fdatasync":
            files.sync(descriptor, str(folder / "file"))
        else:
            files.sync_directory(str(folder))
    assert isinstance(raised.value.__cause__, OSError)
    assert str(folder) in str(raised.value)


def test_closing_never_fails(files, descriptor, monkeypatch):
    """What close reports (EIO of an earlier write, say) was reported by the sync already."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "close", failing(errno.EIO))
        files.close(descriptor)


def test_advice_never_fails(files, descriptor, monkeypatch):
    monkeypatch.setattr(os, "posix_fadvise", failing(errno.EINVAL))
    files.forget_cache(descriptor)

    class OldKernel:
        def madvise(self, *arguments):
            raise OSError(errno.EINVAL, "Invalid argument")

    files.populate(OldKernel(), 0, 4096)


# --- what may be opened ------------------------------------------------------------------------


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize(
    "what", ["fifo", "directory", "link", "dangling link", "link to a directory", "socket", "device"]
)
def test_only_regular_files_are_opened(what, write, files, folder):
    """A FIFO would hang us, a link lead elsewhere, a device act on it."""
    name, target = folder / "name", folder / "target"
    target.write_bytes(b"precious")
    if what == "fifo":
        os.mkfifo(name)
    elif what == "directory":
        name.mkdir()
    elif what == "link":
        name.symlink_to(target)
    elif what == "dangling link":
        name.symlink_to(folder / "nowhere")
    elif what == "link to a directory":
        name.symlink_to(folder)
    elif what == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            short = os.path.relpath(name)  # a socket's name holds 107 bytes
            listening.bind(min(str(name), short, key=len))
    else:
        name = Path("/dev/null")
    before = set(os.listdir("/proc/self/fd"))
    for create in (False, True) if write and what != "device" else (False,):
        with pytest.raises(StoreIOError, match="not a regular file"):
            files.open(str(name), write=write, create=create)
    assert set(os.listdir("/proc/self/fd")) == before, "a refused file is closed again"
    assert target.read_bytes() == b"precious"
    assert not (folder / "nowhere").exists()


@pytest.mark.parametrize("name", ["MANIFEST", "0000000001.seg"])
@pytest.mark.parametrize("what", ["fifo", "link", "directory"])
@pytest.mark.parametrize("flag", ["r", "w"])
def test_a_store_with_something_else_in_the_place_of_a_file_is_refused(flag, what, name, path):
    with open_store(path) as db:
        db["a"] = "1"
    (path / name).rename(path / "aside")
    if what == "fifo":
        os.mkfifo(path / name)
    elif what == "link":
        (path / name).symlink_to(path / "aside")
    else:
        (path / name).mkdir()
    with pytest.raises(StoreIOError, match="not a regular file"):
        open_store(path, flag)


def test_a_new_file_must_be_new(files, folder):
    (folder / "file").write_bytes(b"somebody's")
    with pytest.raises(StoreIOError) as raised:
        files.open(str(folder / "file"), write=True, exclusive=True)
    assert raised.value.errno == errno.EEXIST
    files.close(files.open(str(folder / "new"), write=True, exclusive=True))


def test_a_descriptor_is_not_inherited(files, descriptor):
    copy = files.duplicate(descriptor, "file")
    assert not os.get_inheritable(descriptor)
    assert not os.get_inheritable(copy)
    files.close(copy)


@pytest.mark.parametrize("mask", [0o000, 0o777], ids=oct)
def test_modes_do_not_depend_on_the_umask(mask, files, folder):
    previous = os.umask(mask)
    try:
        files.close(files.open(str(folder / "file"), write=True, create=True))
        assert files.make_directory(str(folder / "directory")) is True
    finally:
        os.umask(previous)
    assert stat.S_IMODE(os.stat(folder / "file").st_mode) == 0o600
    assert stat.S_IMODE(os.stat(folder / "directory").st_mode) == 0o700
    os.chmod(folder / "directory", 0o755)
    assert files.make_directory(str(folder / "directory")) is False
    assert stat.S_IMODE(os.stat(folder / "directory").st_mode) == 0o755, "somebody else's is left as it is"


def test_an_owned_descriptor_is_closed_once(files, folder):
    """A second close could hit a file that another thread has opened meanwhile under the same number."""
    (folder / "file").write_bytes(CONTENT)
    owned = files.own(files.open(str(folder / "file"), write=True))
    number = owned.fileno()
    owned.close()
    again = os.open(folder / "file", os.O_RDONLY)
    try:
        assert again == number
        owned.close()
        os.fstat(again)
    finally:
        os.close(again)


# --- names -------------------------------------------------------------------------------------


def test_names(files, folder):
    (folder / "a").write_bytes(b"1")
    (folder / "dangling").symlink_to("nowhere")
    assert sorted(files.list(str(folder))) == ["a", "dangling"]
    assert files.exists(str(folder / "a"))
    assert files.exists(str(folder / "dangling"))
    assert not files.exists(str(folder / "b"))
    files.replace(str(folder / "a"), str(folder / "b"))
    assert files.unlink(str(folder / "b")) is True
    assert files.unlink(str(folder / "b")) is False
    with pytest.raises(NotAStoreError):
        files.list(__file__)
    with pytest.raises(StoreNotFoundError):
        files.list(str(folder / "b"))


def test_identity_sees_through_spellings(files, folder):
    link = folder.with_name("link")
    link.symlink_to(folder)
    assert files.identity(str(link)) == files.identity(f"{folder}/../{folder.name}/") == files.identity(str(folder))
    assert files.identity(str(folder)) != files.identity(str(folder.parent))


# --- mappings ----------------------------------------------------------------------------------


def test_a_mapping_never_reaches_beyond_its_file(files, descriptor):
    with pytest.raises(StoreIOError):
        files.map(descriptor, 1001, "file")
    with files.map(descriptor, 1000, "file") as mapping:
        assert mapping[:] == CONTENT
        with pytest.raises(TypeError):
            mapping[0] = 1


def test_a_file_that_is_cut_while_it_is_being_mapped_is_an_error(files, descriptor, monkeypatch):
    """A writer that seals a segment trims it; a reader that has just asked for its size comes too late."""
    monkeypatch.setattr(os, "fstat", lambda _: SimpleNamespace(st_size=1001))
    with pytest.raises(StoreIOError, match="shorter than 1001 bytes"):
        files.map(descriptor, 1001, "file")


def test_what_is_written_through_a_mapping_is_in_the_file(files, descriptor):
    files.reserve(descriptor, 10_000, "file")
    assert files.size(descriptor, "file") == 10_000
    with files.map(descriptor, 10_000, "file", write=True) as mapping:
        mapping[5000:5003] = b"abc"
        files.populate(mapping, 4100, 9000)
        assert files.read(descriptor, 5, 4999, "file") == b"\0abc\0"
        assert files.read(descriptor, 1000, 0, "file") == CONTENT
    assert mmap.PAGESIZE >= 4096


# --- the kind of file system -------------------------------------------------------------------

MOUNTS = """\
22 28 0:20 / /sys rw,nosuid shared:7 - sysfs sysfs rw
28 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro
30 28 0:26 / /dev/shm rw,nosuid,nodev - tmpfs tmpfs rw,size=10g
31 28 0:27 / /home/with\\040space rw master:1 propagate_from:2 unbindable - nfs4 server:/home rw,vers=4.2
32 28 253:3 /sub /mnt/x rw,relatime - xfs /dev/mapper/x rw
33 28 0:44 / /mnt/btrfs rw - btrfs /dev/sdc rw
34 28 0:45 / /mnt/ssh rw - fuse.sshfs user@host: rw
35 28 0:46 / /merged rw,relatime - overlay overlay rw,lowerdir=/a,upperdir=/b
"""


@pytest.fixture
def mounts(monkeypatch):
    """Pretend that a path lies on a device, with the table above."""

    def lies_on(device: tuple[int, int], table: str = MOUNTS) -> None:
        monkeypatch.setattr(os, "stat", lambda path: SimpleNamespace(st_dev=os.makedev(*device)))
        monkeypatch.setattr(module, "open", lambda *_, **__: io.StringIO(table), raising=False)

    return lies_on


@pytest.mark.parametrize(
    ("device", "kind", "maps", "network"),
    [
        ((8, 1), "ext4", True, False),
        ((0, 26), "tmpfs", True, False),
        ((253, 3), "xfs", True, False),
        ((0, 46), "overlay", True, False),
        ((0, 44), "btrfs", False, False),
        ((0, 27), "nfs4", False, True),
        ((0, 45), "fuse.sshfs", False, True),
        ((9, 9), "", False, False),
        ((8, 10), "", False, False),
    ],
)
def test_the_table_of_mounts(device, kind, maps, network, files, mounts):
    mounts(device)
    assert files.file_system("/x") == kind
    assert files.maps_safely("/x") is maps
    assert files.is_network("/x") is network


def test_what_is_known_to_be_remote_or_to_write_in_place(files, monkeypatch):
    remote = ["nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ncpfs", "fuse.sshfs"]
    for kind in [*remote, "ext4", "xfs", "tmpfs", "overlay", "btrfs", "zfs", "ext3", ""]:
        monkeypatch.setattr(files, "file_system", lambda path, kind=kind: kind)
        assert files.is_network("/x") is (kind in remote)
        assert files.maps_safely("/x") is (kind in ("ext4", "xfs", "tmpfs", "overlay"))


@pytest.mark.parametrize("table", ["", "\n", "garbage\n", "1 2\n", "22 28 8:1\n"])
def test_a_table_that_cannot_be_read_means_unknown(table, files, mounts):
    mounts((8, 1), table)
    assert files.file_system("/x") == ""


def test_no_table_means_unknown_and_the_careful_choice(files, monkeypatch):
    monkeypatch.setattr(module, "open", failing(errno.ENOENT), raising=False)
    assert files.file_system("/") == ""
    assert not files.maps_safely("/")
    assert not files.is_network("/")


def test_a_path_that_does_not_exist_is_unknown(files, folder):
    assert files.file_system(str(folder / "nowhere")) == ""


# --- the process -------------------------------------------------------------------------------


def test_a_lock_belongs_to_the_open_file(files, folder):
    path = str(folder / "file")
    first, second = (files.open(path, write=True, create=True) for _ in range(2))
    third = files.open(path)
    assert files.lock(first, path)
    assert not files.lock(second, path)
    files.close(third)
    assert not files.lock(second, path), "closing another descriptor of the file frees nothing"
    files.close(first)
    assert files.lock(second, path)
    files.close(second)


def test_a_lock_that_cannot_be_had_for_other_reasons_is_an_error(files, descriptor, monkeypatch):
    monkeypatch.setattr(module.fcntl, "flock", failing(errno.ENOLCK))
    with pytest.raises(StoreIOError) as raised:
        files.lock(descriptor, "file")
    assert raised.value.errno == errno.ENOLCK
    for number in (errno.EWOULDBLOCK, errno.EACCES):
        monkeypatch.setattr(module.fcntl, "flock", failing(number))
        assert not files.lock(descriptor, "file")


def test_free_space_and_descriptors_are_sensible(files, folder, monkeypatch):
    assert 0 < files.free_bytes(str(folder)) < 1 << 60
    assert files.open_file_limit() >= 16
    monkeypatch.setattr(module.resource, "getrlimit", lambda _: (module.resource.RLIM_INFINITY, 0))
    assert files.open_file_limit() == 1 << 20


def test_clocks_and_chance(files):
    assert abs(files.now_ms() - files.clock_ns() // 1_000_000) < 10_000
    assert files.monotonic() <= files.monotonic()
    assert len(files.random(16)) == 16
    assert files.random(8) != files.random(8)
