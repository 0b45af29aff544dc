"""macOS and Windows as their documents describe them: Linux without what they lack, with doubles of what they have.

A store runs its whole life on each. What the real systems do beside what is documented, only they can tell.
"""

from __future__ import annotations

import errno
import fcntl
import importlib.util
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import bytekv.engine.log.files
from bytekv.engine.log.files import Files
from bytekv.engine.store import Store
from bytekv.errors import StoreFailedError, StoreIOError, StoreLockedError
from bytekv.options import Options


class System:
    """A `Files` of another system, and what was asked of that system."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.asked: list[str] = []

    def open(self, path: Path, flag: Any = "c", **options: Any) -> Store:
        return Store(str(path), flag, Options(auto_compact=False, **options), self.files)


def loaded_anew() -> Any:
    """Return another copy of the module, which sees the system as it is now."""
    source = bytekv.engine.log.files.__file__
    spec = importlib.util.spec_from_file_location("bytekv.engine.log.files_elsewhere", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def macos(monkeypatch: pytest.MonkeyPatch) -> System:
    """No fallocate, no fadvise, no fdatasync; a sync that reaches the medium is a request to fcntl."""
    system = System(Files())

    def request(descriptor: int, command: int, *arguments: Any) -> int:
        assert command == fcntl.F_FULLFSYNC
        system.asked.append("F_FULLFSYNC")
        os.fsync(descriptor)
        return 0

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", request)
    for name in ("posix_fallocate", "posix_fadvise", "fdatasync"):
        monkeypatch.delattr(os, name)
    return system


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> System:
    """No fcntl, no resource, no pread; a byte far beyond the end of the file is the lock."""
    msvcrt: Any = types.ModuleType("msvcrt")
    msvcrt.LK_NBLCK = 2

    def locking(descriptor: int, mode: int, count: int) -> None:
        assert (mode, count) == (msvcrt.LK_NBLCK, 1)
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == 1 << 30
        system.asked.append("locking")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OSError(errno.EDEADLK, "Resource deadlock avoided") from error

    def fsync(descriptor: int) -> None:
        system.asked.append("fsync")
        real(descriptor)

    msvcrt.locking, real = locking, os.fsync
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "fsync", fsync)
    for name, module in (("msvcrt", msvcrt), ("fcntl", None), ("resource", None)):
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("pread", "pwrite", "posix_fallocate", "posix_fadvise", "fdatasync", "statvfs", "fchmod"):
        monkeypatch.delattr(os, name)
    system = System(loaded_anew().Files())
    return system


@pytest.fixture(params=["macos", "windows"])
def system(request: pytest.FixtureRequest) -> System:
    found: System = request.getfixturevalue(request.param)
    return found


def test_a_store_lives_there(system: System, path: Path) -> None:
    with system.open(path, segment_size_bytes=2000) as db:
        for number in range(200):
            db[f"{number % 40:02}"] = f"value {number}"
        del db["07"]
        db.compact()
        expected = dict(db.items())
        assert len(expected) == 39
        assert db.verify().ok
        assert db.backup(path.with_name("backup")).seq == db.last_seq
    with system.open(path) as db:
        assert db.recovery.clean
        assert dict(db.items()) == expected
    with system.open(path.with_name("backup"), "r") as db:
        assert dict(db.items()) == expected
        assert db.verify().ok


def test_a_torn_tail_is_set_aside_there(system: System, path: Path) -> None:
    with system.open(path) as db:
        db["a"] = "1"
        image = {name: (path / name).read_bytes() for name in os.listdir(path)}
        end = db._segments.writer.end  # type: ignore[union-attr]
        db["b"] = "2"
    for name in os.listdir(path):
        (path / name).unlink()
    for name, content in image.items():
        (path / name).write_bytes(content[:end] + b"\x01torn" if name.endswith(".seg") else content)
    with system.open(path) as db:
        assert dict(db.items()) == {b"a": b"1"}
        assert not db.recovery.clean
        assert db.recovery.torn_bytes


def test_there_is_one_writer_there(system: System, path: Path) -> None:
    with system.open(path) as db:
        db["a"] = "1"
        with pytest.raises(StoreLockedError) as raised:
            system.open(path)
        assert raised.value.pid == os.getpid()
        with system.open(path, "r") as reader:
            assert reader["a"] == b"1"
    system.open(path).close()


def test_a_mapping_that_is_demanded_is_refused_there(system: System, path: Path) -> None:
    """With ``io="mmap"`` the first write was an AttributeError: there is no posix_fallocate in their `os`."""
    with system.open(path, io="mmap") as db:
        with pytest.raises(StoreIOError, match="use io='auto'"):
            db["a"] = "1"
        assert not db
    with system.open(path) as db:
        db["a"] = "1"
    with system.open(path, "r") as db:
        assert dict(db.items()) == {b"a": b"1"}


def test_a_sync_reaches_the_medium_of_a_mac(macos: System, path: Path) -> None:
    with macos.open(path, sync="always") as db:
        db["first"] = "makes the segment, which takes syncs of its own"
        macos.asked.clear()
        db["a"] = "1"
        assert macos.asked == ["F_FULLFSYNC"]


def test_a_sync_that_fails_on_a_mac_is_not_tried_again(
    macos: System, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> int:
        macos.asked.append("failed")
        raise OSError(errno.EIO, "Input/output error")

    db = macos.open(path, sync="always")
    with monkeypatch.context() as broken:
        broken.setattr(fcntl, "fcntl", fail)
        with pytest.raises(StoreFailedError):
            db["a"] = "1"
        with pytest.raises(StoreFailedError):
            db["b"] = "2"
    assert macos.asked.count("failed") == 1
    with pytest.raises(StoreFailedError):
        db.close()


def test_a_sync_on_windows_is_a_commit_and_directories_have_none(windows: System, path: Path) -> None:
    with windows.open(path, sync="always") as db:
        db["first"] = "makes the segment, which takes syncs of its own"
        windows.asked.clear()
        db["a"] = "1"
        assert windows.asked == ["fsync"]
        windows.files.sync_directory(str(path))
        assert windows.asked == ["fsync"]


def test_advice_that_is_only_for_linux_is_not_given(system: System) -> None:
    """The same number may mean something else to another kernel."""

    class Mapping:
        def madvise(self, *arguments: int) -> None:
            raise AssertionError(arguments)

    system.files.populate(Mapping(), 0, 4096)  # type: ignore[arg-type]


def test_what_windows_cannot_tell(windows: System, path: Path) -> None:
    path.mkdir()
    assert windows.files.open_file_limit() == 512
    assert windows.files.free_bytes(str(path)) == 1 << 62
    assert not windows.files.maps_safely(str(path))
    assert not windows.files.is_network(str(path))
