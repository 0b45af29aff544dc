"""System calls that fail when told to, one layer below `Files`: its loops and translations are tested, too.

The fault model:

- A call of a chosen kind fails, the N-th one only or every one from the N-th on, with a chosen errno. The kind
  ``any`` counts all of them: from some call on a dying disk refuses everything.
- A failing write has written half of its bytes, a failing allocation holds half of its blocks: a full disk does that.
- A failing close has closed the descriptor all the same, as on Linux.
- A failing sync has synced nothing, and what it was asked to make durable may be gone: see `LosingFiles`.
- A short read or write does half of what it was asked for, one byte at least, and says so.

`SystemCalls` replaces what ``bytekv.engine.log.files`` knows as ``os``, ``mmap`` and ``fcntl``, for as long as it is
entered; other modules, and the tests themselves, go on with the real ones.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import threading
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any

from bytekv.engine.log import files
from bytekv.errors import StoreFailedError
from tests.support.harness import FakeFiles

#: Which calls are of which kind; each is a function that `bytekv.engine.log.files` calls.
KINDS: dict[str, tuple[str, ...]] = {
    "allocate": ("posix_fallocate",),
    "chmod": ("chmod", "fchmod"),
    "close": ("close",),
    "duplicate": ("dup",),
    "link": ("link",),
    "list": ("listdir",),
    "lock": ("flock", "fcntl"),
    "map": ("mmap",),
    "mkdir": ("mkdir",),
    "open": ("open",),
    "read": ("pread",),
    "rename": ("replace",),
    "stat": ("fstat", "lstat", "stat", "statvfs"),
    "sync": ("fdatasync", "fsync"),
    "truncate": ("ftruncate",),
    "unlink": ("unlink",),
    "write": ("pwrite",),
}
_KIND_OF = {name: kind for kind, names in KINDS.items() for name in names}

#: Kinds whose failure must not keep anybody from reading what was open before.
HARMLESS_TO_READERS = {"allocate", "chmod", "close", "lock", "mkdir", "rename", "sync", "truncate", "unlink", "write"}

ERRNOS = {name: getattr(errno, name) for name in ("ENOSPC", "EIO", "EINTR", "EMFILE", "EDQUOT", "EROFS")}


class _Module:
    """A module with some of its functions replaced."""

    def __init__(self, module: Any, **replaced: Any) -> None:
        self._module = module
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class SystemCalls:
    """Count the calls that `bytekv.engine.log.files` makes, and fail those that a test has chosen.

    ::

        with SystemCalls() as calls:
            calls.fail("write", 3, errno.ENOSPC)   # the third write from now on
            ...
            calls.lift()
    """

    def __init__(self) -> None:
        self.log: list[str] = []  # every call since the last `fail`, for the message of a failed test
        self.counts: Counter[str] = Counter()
        self.struck = False
        self.failed_syncs = 0
        self.syncs_after_failure = 0  # must stay 0: a failed sync is never tried again (D7)
        self.unknown_writes = 0  # that failed, and could then neither be cut off nor read
        self._guard = threading.RLock()
        self._kind = ""
        self._number = 0
        self._code = 0
        self._for_ever = False
        self._short = False
        self._kept: dict[str, Any] = {}

    # --- what a test says ----------------------------------------------------------------------

    def fail(self, kind: str, number: int, code: int, *, for_ever: bool = False) -> None:
        """Fail the ``number``-th call of a kind from now on, and every later one if ``for_ever``."""
        with self._guard:
            self._kind, self._number, self._code, self._for_ever = kind, number, code, for_ever
            self._short = False
            self._reset()

    def shorten(self, kind: str, number: int, *, for_ever: bool = False) -> None:
        """Do only half of the ``number``-th read or write."""
        with self._guard:
            self._kind, self._number, self._code, self._for_ever = kind, number, 0, for_ever
            self._short = True
            self._reset()

    def count(self) -> None:
        """Only count from now on."""
        self.fail("", 0, 0)

    def lift(self) -> None:
        """Let everything succeed again; what was counted stays."""
        with self._guard:
            self._kind = ""

    def _reset(self) -> None:
        self.log, self.counts, self.struck = [], Counter(), False
        self.failed_syncs = self.syncs_after_failure = self.unknown_writes = 0

    # --- what bytekv.engine.log.files calls ---------------------------------------------------------------

    def _strikes(self, name: str) -> bool:
        kind = _KIND_OF[name]
        with self._guard:
            self.counts[kind] += 1
            self.counts["any"] += 1
            if kind == "sync" and self.failed_syncs:
                self.syncs_after_failure += 1
            chosen = self._kind == "any" or self._kind == kind
            count = self.counts[self._kind]
            strikes = chosen and (count == self._number or (self._for_ever and count > self._number))
            if strikes:
                self.struck = True
                if kind == "sync":
                    self.failed_syncs += 1
            self.log.append(f"{name}{' (struck)' if strikes else ''}")
            if self.log[-3:] == ["pwrite (struck)", "ftruncate (struck)", "pread (struck)"]:
                self.unknown_writes += 1
        return strikes

    def _error(self) -> OSError:
        return OSError(self._code, os.strerror(self._code))

    def _wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if self._strikes(name):
                raise self._error()
            return real(*arguments, **named)

        return call

    def _open(self, path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if self._strikes("open"):
            raise self._error()
        return os.open(path, flags, mode, dir_fd=dir_fd)

    def _close(self, descriptor: int) -> None:
        strikes = self._strikes("close")
        os.close(descriptor)
        if strikes:
            raise self._error()

    def _pread(self, descriptor: int, size: int, offset: int) -> bytes:
        if self._strikes("pread"):
            if not self._short:
                raise self._error()
            size = min(size, max(1, size // 2))
        return os.pread(descriptor, size, offset)

    def _pwrite(self, descriptor: int, piece: Any, offset: int) -> int:
        if self._strikes("pwrite"):
            half = max(1, len(piece) // 2) if self._short else len(piece) // 2
            done = os.pwrite(descriptor, memoryview(piece)[:half], offset) if half else 0
            if not self._short:
                raise self._error()
            return done
        return os.pwrite(descriptor, piece, offset)

    def _allocate(self, descriptor: int, offset: int, size: int) -> None:
        if self._strikes("posix_fallocate"):
            have = os.fstat(descriptor).st_size
            if have < offset + size:
                os.posix_fallocate(descriptor, 0, have + max(1, (offset + size - have) // 2))
            raise self._error()
        os.posix_fallocate(descriptor, offset, size)

    # --- in place of the real ones -------------------------------------------------------------

    def __enter__(self) -> SystemCalls:
        special = {
            "open": self._open,
            "close": self._close,
            "pread": self._pread,
            "pwrite": self._pwrite,
            "posix_fallocate": self._allocate,
        }
        system = {name: self._wrap(name, getattr(os, name)) for name in _KIND_OF if hasattr(os, name)} | special
        replaced: dict[str, Any] = {
            "os": _Module(os, **system),
            "mmap": _Module(mmap, mmap=self._wrap("mmap", mmap.mmap)),
            "fcntl": _Module(fcntl, **{name: self._wrap(name, getattr(fcntl, name)) for name in KINDS["lock"]}),
            "_pread": self._pread,
            "_pwrite": self._pwrite,
        }
        for name, substitute in replaced.items():
            self._kept[name] = getattr(files, name)
            setattr(files, name, substitute)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, original in self._kept.items():
            setattr(files, name, original)


class FailingSyncs(FakeFiles):
    """Files whose ``number``-th sync (of a file or a directory) fails once armed; those before succeed.

    Once one has failed, every further one would succeed, as on Linux. That is the trap: a second try
    reports success for bytes that are gone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.syncs = 0  # since armed
        self.after_failure = 0
        self.has_failed = threading.Event()
        self._guard = threading.Lock()
        self._number = 0
        self._only: Callable[[str], bool] | None = None

    def fail_sync(self, number: int, *, of: Callable[[str], bool] | None = None) -> None:
        """Fail the ``number``-th sync from now on; ``of`` tells of which paths, else of any."""
        with self._guard:
            self.syncs = self.after_failure = 0
            self.has_failed.clear()
            self._number, self._only = number, of

    def _fails(self, path: str) -> bool:
        with self._guard:
            if self.has_failed.is_set():
                self.after_failure += 1
            if self._only is not None and not self._only(path):
                return False
            self.syncs += 1
            if self.syncs != self._number:
                return False
            self.has_failed.set()
            return True

    def _failed(self, path: str) -> StoreFailedError:
        return StoreFailedError(f"{path}: sync failed (Input/output error); close the store and open it again")

    def sync(self, descriptor: int, path: str) -> None:
        if self._fails(path):
            raise self._failed(path)
        super().sync(descriptor, path)

    def sync_directory(self, path: str) -> None:
        if self._fails(path):
            raise self._failed(path)
        super().sync_directory(path)


class LosingFiles(FailingSyncs):
    """Files on a disk that loses what a failed sync was asked to write, in the way Linux does.

    The pages are marked clean, so reads go on showing what was written, and the next sync succeeds. Only when the
    cache is given up (`forget_cache`, memory pressure, a power cut) does the medium's older state come to light.
    """

    def __init__(self) -> None:
        super().__init__()
        self.medium: dict[str, bytes] = {}  # path -> what its last successful sync has brought to the disk
        self.lost: dict[str, bytes] = {}  # path -> what the medium holds, where the page cache says otherwise
        self.forgotten: list[str] = []

    def sync(self, descriptor: int, path: str) -> None:
        try:
            super().sync(descriptor, path)
        except StoreFailedError:
            self.lost[path] = self.medium.get(path, b"")
            raise
        if path not in self.lost:  # pages that are marked clean already are not written again
            self.medium[path] = _whole(descriptor)

    def replace(self, source: str, target: str) -> None:
        super().replace(source, target)
        for table in (self.medium, self.lost):
            if source in table:
                table[target] = table.pop(source)

    def forget_cache(self, descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        self.forgotten.append(path)
        self.drop_pages(path, descriptor)
        super().forget_cache(descriptor)

    def drop_pages(self, path: str, descriptor: int) -> None:
        """Let a file's clean pages go; the next read comes from the medium. Its length is metadata, and stays."""
        if path in self.lost:
            size = os.fstat(descriptor).st_size
            os.pwrite(descriptor, self.lost.pop(path)[:size].ljust(size, b"\0"), 0)


def _whole(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
