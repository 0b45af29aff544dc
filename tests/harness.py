"""What the tests build with: a store on injected files, a clock that is set by hand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bytekv.files import Files
from bytekv.options import Options
from bytekv.store import Store


class FakeFiles(Files):
    """The real files with a wall clock that moves only when told to."""

    def __init__(self, now_s: float = 1_700_000_000.0) -> None:
        self.time_ns = int(now_s * 1e9)
        self.clock_ns = lambda: self.time_ns  # type: ignore[method-assign]

    def sleep(self, seconds: float) -> None:
        """Let time pass (or, if negative, jump back)."""
        self.time_ns += int(seconds * 1e9)


class QuickFiles(FakeFiles):
    """Do without the question which file system this is: asked at every opening, and dear."""

    def file_system(self, path: str) -> str:
        return "tmpfs"


def open_store(path: str | os.PathLike[str], flag: Any = "c", *, files: Files | None = None, **options: Any) -> Store:
    """Open a store on the given files; no background compaction unless asked for, so that tests decide."""
    options.setdefault("auto_compact", False)
    return Store(os.path.abspath(os.fsdecode(path)), flag, Options(**options), files or Files())


def crash(store: Store) -> None:
    """Leave a store as a killed process does: nothing flushed, nothing said, the lock gone with the process."""
    store._after_fork()  # gives up every descriptor and mapping without a word to the disk
    from bytekv.directory import forget_locks_after_fork
    from bytekv.store import _unregister

    store._worker.stop()
    forget_locks_after_fork()
    _unregister(store)
    store._is_closed = True


def segment_files(path: Path) -> list[Path]:
    """List the segments of a store, oldest id first."""
    return sorted(path.glob("*.seg"))


def damage(file: Path, offset: int, mask: int = 0x01) -> None:
    """Flip bits of one byte."""
    content = bytearray(file.read_bytes())
    content[offset] ^= mask
    file.write_bytes(content)


def snapshot_of(path: Path) -> dict[str, bytes]:
    """Return every file of a directory with its bytes, to show that nothing was changed."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}
