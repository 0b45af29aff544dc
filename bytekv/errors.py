"""Every exception that bytekv raises on purpose.

::

    BytekvError
    ├── StoreNotFoundError (FileNotFoundError)   nothing to open there
    ├── NotAStoreError                           there is something, but not a store
    ├── AccessDeniedError (PermissionError)      the operating system forbids it
    ├── StoreLockedError                         another writer holds the store
    ├── UnsupportedError                         not possible here: this system, this file system
    ├── UnsupportedFormatError                   written by a newer bytekv
    ├── CorruptionError                          bytes on disk fail their check
    ├── StoreClosedError                         used after close()
    ├── ForkedStoreError                         used in a child process after fork()
    ├── ReadOnlyError                            a write to a store opened with "r"
    ├── ReentryError (RuntimeError)              a signal handler or finaliser interrupted a call
    ├── StoreBusyError                           another process kept a shared store for too long
    ├── StoreFailedError                         an earlier sync failed, or the store was replaced; reopen
    ├── ConflictError                            if_seq did not match
    ├── ChangesLostError                         the feed does not reach back that far
    ├── LimitError (ValueError)                  too long for the format
    └── StoreIOError (OSError)                   the operating system reported an error
        └── DiskFullError                        no space left; nothing was changed

A missing key is ``KeyError`` and a key or value of another type is ``TypeError``, as with a dict.
Errors of the operating system are translated in one place, ``files.py``.
"""

from __future__ import annotations

import errno
import os

from ._lean import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

__all__ = [
    "AccessDeniedError",
    "BytekvError",
    "ChangesLostError",
    "ConflictError",
    "CorruptionError",
    "DiskFullError",
    "ForkedStoreError",
    "LimitError",
    "NotAStoreError",
    "ReadOnlyError",
    "ReentryError",
    "StoreBusyError",
    "StoreClosedError",
    "StoreFailedError",
    "StoreIOError",
    "StoreLockedError",
    "StoreNotFoundError",
    "UnsupportedError",
    "UnsupportedFormatError",
]


class BytekvError(Exception):
    """The root of everything that bytekv raises on purpose."""


# --- opening -----------------------------------------------------------------------------------


class StoreNotFoundError(BytekvError, FileNotFoundError):
    """Raised when the directory, or with ``"c"`` its parent, does not exist."""


class NotAStoreError(BytekvError):
    """Raised when the path is a file, or a directory that holds other things than a store."""


class AccessDeniedError(BytekvError, PermissionError):
    """Raised when the operating system does not allow this user to access a file of the store."""


class StoreLockedError(BytekvError):
    """Raised when another ``Store`` object, here or in another process, is the writer.

    ``pid`` is the holder's process id, or None where it could not be read; ``shared`` says that the holder, or several,
    opened the store with ``shared=True``. ``wanted`` is what was asked for: "exclusive", "shared", or "alone" (flag
    "n", recover="salvage" and `bytekv.repair`, beside others that share it).
    """

    def __init__(self, path: str, pid: int | None, shared: bool = False, wanted: str = "exclusive") -> None:
        self.path = path
        self.pid = pid
        self.shared = shared
        self.wanted = wanted
        is_here = pid == os.getpid()
        holder = "this process" if is_here else f"process {pid}" if pid is not None else "another process"
        advice = "; close the other Store first" if is_here else ""
        if wanted == "alone":
            advice = ", which shares it; flag 'n', recover='salvage' and repair need the store for themselves"
        elif shared:
            advice = ", which shares it; open both with shared=True"
        elif wanted == "shared":
            advice = ", which does not share it; open both with shared=True"
        super().__init__(f"{path}: locked by {holder}{advice} (opening with flag 'r' needs no lock)")

    def __reduce__(self) -> tuple[type[StoreLockedError], tuple[str, int | None, bool, str]]:
        return type(self), (self.path, self.pid, self.shared, self.wanted)


class UnsupportedError(BytekvError):
    """Raised when what was asked for is not possible here: on this system, on this file system, beside this process.

    With ``shared=True``: where not all processes would see the same, or their locks would not hold.
    """


class UnsupportedFormatError(BytekvError):
    """Raised when a file carries a format version or a flag that this bytekv does not know."""


class CorruptionError(BytekvError):
    """Raised when bytes on disk fail their check; wrong bytes are never returned instead.

    ``path`` and ``offset`` say where, ``reason`` says which check failed.
    """

    def __init__(self, path: str, offset: int, reason: str) -> None:
        self.path = str(path)
        self.offset = offset
        self.reason = reason
        super().__init__(f"{path}: offset {offset}: {reason}")

    def __reduce__(self) -> tuple[type[CorruptionError], tuple[str, int, str]]:
        return type(self), (self.path, self.offset, self.reason)


# --- using -------------------------------------------------------------------------------------


class StoreClosedError(BytekvError):
    """Raised by every call on a store after ``close()``."""


class ForkedStoreError(BytekvError):
    """Raised in a child process that inherited an open store through ``fork()``; open it again there."""


class ReadOnlyError(BytekvError):
    """Raised by a write to a store that was opened with flag ``"r"``."""


class ReentryError(BytekvError, RuntimeError):
    """Raised when a signal handler, a finaliser or a callback calls a store in the middle of its own thread's call."""


class StoreBusyError(BytekvError):
    """Raised when another process has kept a store that is shared for longer than ``busy_timeout_s``; nothing changed.

    ``pid`` is that process's id, and ``doing`` says what it is at ("stopped", "running"); each is None if it is not
    known. A process that has died keeps nobody waiting.
    """

    def __init__(self, path: str, pid: int | None, doing: str | None) -> None:
        self.path = str(path)
        self.pid = pid
        self.doing = doing
        holder = "another process" if pid is None else f"process {pid}"
        state = f" ({doing})" if doing else ""
        super().__init__(
            f"{path}: waited too long for {holder}{state}, which has not given the store back; let it go on or end it, "
            "look for a transaction that it keeps open, or wait longer (busy_timeout_s)"
        )

    def __reduce__(self) -> tuple[type[StoreBusyError], tuple[str, int | None, str | None]]:
        return type(self), (self.path, self.pid, self.doing)


class StoreFailedError(BytekvError):
    """Raised by writes after a failed sync, until the store is reopened; reads go on.

    The failed sync is the ``__cause__``. What the unsynced calls wrote is decided by the next ``open``. Also raised
    if a write has failed and it is unknown what it has left, and if the store or its ``LOCK`` was replaced or removed
    while it was open: then nothing is changed in its directory.
    """


class ConflictError(BytekvError):
    """Raised when ``if_seq`` does not match; ``seq`` is the entry's actual one, 0 if there is none."""

    def __init__(self, key: bytes, expected: int, seq: int) -> None:
        self.key = key
        self.expected = expected
        self.seq = seq
        super().__init__(f"key {key!r}: expected seq {expected}, found {seq or 'no entry'}")

    def __reduce__(self) -> tuple[type[ConflictError], tuple[bytes, int, int]]:
        return type(self), (self.key, self.expected, self.seq)


class ChangesLostError(BytekvError):
    """Raised when changes that were asked for have been compacted away.

    ``first_seq`` is the smallest ``since_seq`` for which there is still a feed. To go back further, begin with a
    snapshot, whose ``seq`` is where the feed goes on.
    """

    def __init__(self, path: str, since_seq: int, first_seq: int) -> None:
        self.path = path
        self.since_seq = since_seq
        self.first_seq = first_seq
        super().__init__(
            f"{path}: the changes since seq {since_seq} have been compacted away up to seq {first_seq}; "
            "copy a snapshot and go on from its seq"
        )

    def __reduce__(self) -> tuple[type[ChangesLostError], tuple[str, int, int]]:
        return type(self), (self.path, self.since_seq, self.first_seq)


class LimitError(BytekvError, ValueError):
    """Raised when a key, a value, a batch or an option is beyond a documented limit."""


# --- the operating system ----------------------------------------------------------------------


class StoreIOError(BytekvError, OSError):
    """Raised when the operating system reports an error; ``errno`` and ``filename`` are set."""


class DiskFullError(StoreIOError):
    """Raised when there is no space for a write; the write had no effect and reading goes on."""


#: What `from_os_error` and a failed sync come to: only these are the operating system's word. Any other error that
#: comes out of a call of the system was raised by a signal handler or a callback in the middle of it.
SystemErrors = (StoreIOError, StoreNotFoundError, AccessDeniedError, NotAStoreError, StoreFailedError)

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


def is_about(error: BaseException, path: str) -> bool:
    """Tell whether bytekv says this of a path or of what is in it, and not of another store.

    A signal handler or a callback may use one, and what that says comes out in the middle of a call of this.
    """
    text = str(error)
    return text.startswith(path) and text[len(path) : len(path) + 1] in (":", "/", "\\")


def is_interrupt(error: BaseException) -> bool:
    """Tell whether an error was raised by a signal handler in the middle of a call, and not by the call itself.

    The system's errors have an errno. A handler's may have one, too, but then the handler's frame is among those that
    the error has left, and Python has given it the frame that it interrupted, as it gives to tracers. What cannot be
    told: an error with an errno out of a handler without a frame, which must be written in C, or out of one that has
    thrown its second argument away.
    """
    if isinstance(error, OSError) and error.errno is None and not isinstance(error, BytekvError):
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        interrupted, trace = trace.tb_frame, trace.tb_next
        for value in trace.tb_frame.f_locals.values():
            if value is interrupted or (type(value) is tuple and any(each is interrupted for each in value)):
                return True
    return False


def from_os_error(error: OSError, path: str) -> BytekvError:
    """Translate an error of the operating system about ``path`` into one of bytekv's."""
    if isinstance(error, BytekvError):
        return error
    path = str(path)
    text = error.strerror or str(error)
    number = error.errno or errno.EIO
    if number in _FULL:
        return DiskFullError(number, text, path)
    if number in _FORBIDDEN:
        return AccessDeniedError(number, text, path)
    if number == errno.ENOENT:
        return StoreNotFoundError(number, text, path)
    return StoreIOError(number, text, path)


class translated:
    """Translate errors of the operating system about ``path``, and leave those of signal handlers as they are.

    No generator with `contextlib.contextmanager`: from Python 3.12 on its frame and the error it has seen
    hold each other, and through their frames the files of the caller, until garbage is collected.
    """

    __slots__ = ("_path",)

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> object:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if isinstance(error, OSError) and not isinstance(error, BytekvError) and not is_interrupt(error):
            raise from_os_error(error, self._path) from error
