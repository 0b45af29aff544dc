"""A process that may have only so much address space (``ulimit -v``): what is read makes room for what is written."""

from __future__ import annotations

import errno
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from bytekv.errors import StoreIOError
from tests.support.harness import FakeFiles, open_store

MIB = 1024 * 1024

_PROGRAM = """
import resource, sys
import bytekv

path, room = sys.argv[1], int(sys.argv[2])
value = bytes(64 * 1024)
with bytekv.open(path, sync="os", auto_compact=False, segment_size_bytes=4 << 20) as db:
    for number in range(1024):
        db[b"%d" % number] = value
with bytekv.open(path, sync="os", auto_compact=False, segment_size_bytes=4 << 20) as db:
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + room, used + room))
    for turn in range(3):
        for number in range(1024):
            assert db[b"%d" % number] == value
        least = db.stats().open_segments
        for number in range(turn, 1024, 5):
            db[b"%d" % number] = value
    print(least)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc how much address space is in use")
def test_a_store_writes_within_its_limit_of_address_space(path: Path) -> None:
    """Reads had taken all of it for mappings of sealed segments, and a write found no room for the active one."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_PROGRAM), str(path), str(40 * MIB)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert 0 < int(done.stdout) < 12


class Tight(FakeFiles):
    """Files of a process that may have only so many mappings."""

    most = 1 << 30

    def __init__(self) -> None:
        super().__init__()
        self.store: Any = None

    def map(self, descriptor: int, size: int, path: str, *, write: bool = False) -> Any:
        if self.store is not None and len(self.store._segments.open.table) >= self.most:
            raise StoreIOError(errno.ENOMEM, "Cannot allocate memory", path)
        return super().map(descriptor, size, path, write=write)


@pytest.mark.parametrize("how", ["put", "batch", "large"])
def test_a_write_lets_sealed_segments_go(path: Path, how: str) -> None:
    files = Tight()
    with open_store(path, files=files, io="mmap", sync="os", segment_size_bytes=100_000) as db:
        for number in range(100):
            db[b"%d" % number] = bytes(10_000)
        assert len(dict(db)) == 100
        files.store, files.most = db, len(db._segments.open.table) - 2
        if how == "put":
            for number in range(20):
                db[b"%d" % number] = bytes(10_000)
        elif how == "batch":
            db.update({b"%d" % number: bytes(10_000) for number in range(20)})
        else:
            db[b"large"] = bytes(300_000)
        assert len(db._segments.open.table) < files.most + 2
        files.most = 0
        with pytest.raises(StoreIOError) as caught:  # nothing that could be let go would help
            db[b"too large"] = bytes(3 * MIB)
        assert caught.value.errno == errno.ENOMEM
        files.most = 1 << 30
        assert b"too large" not in db
        db[b"after"] = b"all is well"
        assert db.verify().ok
