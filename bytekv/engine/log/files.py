"""The only module that touches the operating system; tests replace its one object.

Everything below `Files` sees descriptors, byte offsets and bytekv's own errors. What differs
between platforms lives here and nowhere else:

========  =========================================  ==============================================
platform  an append                                  a sync
========  =========================================  ==============================================
Linux     preallocated mapping where that is safe    ``fdatasync``: flushes pages dirtied through a
                                                     mapping too, and releases the GIL
macOS     ``pwrite`` (no ``posix_fallocate``)        ``F_FULLFSYNC``: ``fsync`` stops at the drive's
                                                     cache, see fsync(2) there
Windows   ``lseek`` + ``write``                      ``_commit`` through ``os.fsync``; a directory
                                                     cannot be synced, NTFS journals its names
========  =========================================  ==============================================

Only Linux is tested. A file is opened by descriptor, without following a symbolic link, and must be
a regular file: a FIFO in its place must not hang us, nor a device be written.

A store's directory is held open, too (`Folder`), and its names (`Place`) are looked up in that very directory:
whatever its path leads to by then, a flipped link or a store that was made anew, is another's. Windows, which has no
such look-up, keeps the real path; there nobody can move a directory in which files are open.

An error is taken for the system's word only if the system said it. A signal handler may raise an `OSError` of its
own in the middle of a call (`TimeoutError`, usually), which is an interrupt like any other; see `is_interrupt`.
"""

from __future__ import annotations

import errno
import io
import mmap
import os
import stat
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from struct import Struct
from types import TracebackType

from ..._lean import TYPE_CHECKING
from ...errors import (
    BytekvError,
    NotAStoreError,
    StoreClosedError,
    StoreFailedError,
    StoreIOError,
    from_os_error,
    is_interrupt,
    translated,
)

if TYPE_CHECKING:
    from typing import Any, NoReturn

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

__all__ = ["Files", "Folder", "Place"]

_COMMON = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_DIRECTORY = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_DIRECTORY", 0)
_BY_DESCRIPTOR = sys.platform != "win32" and os.open in os.supports_dir_fd
_EFFECTIVE_IDS = os.access in os.supports_effective_ids
_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE, Linux 5.14; Python's mmap has no name for it
_POPULATED_AT_ONCE = 4 * 1024 * 1024
_HELD_ELSEWHERE = {errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK}
_RANGE = Struct("hhqqi0q")  # struct flock of 64-bit Linux: type, whence, start, length, pid
_SYSTEMS = {"darwin": "macOS", "win32": "Windows"}
_DOES = {"D": "waiting for a disk", "R": "running", "S": "sleeping", "T": "stopped", "t": "traced", "Z": "ended"}

#: File systems that write in place and preallocate natively, so that a full disk is an error of
#: posix_fallocate and never a SIGBUS. Copy-on-write ones (btrfs, zfs, bcachefs) may need new space
#: for a page that is allocated already; they get pwrite. Overlay passes on to what lies above.
_IN_PLACE = {"ext4", "xfs", "tmpfs", "overlay"}

#: `flock` may be missing, local to one host, or emulated with locks that a close() drops.
_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ncpfs", "fuse.sshfs"}

#: Why a store on these cannot be shared; on any other that is not in `_IN_PLACE` it is merely not known that it can.
_UNSHARED = {
    **dict.fromkeys(_NETWORK, "it is remote, and what one host maps another does not see"),
    **dict.fromkeys(("virtiofs", "vboxsf", "fuse.vmhgfs-fuse", "prl_fs"), "it is the host's, of which this is a guest"),
    **dict.fromkeys(("btrfs", "zfs", "bcachefs"), "a write to a mapped page may find the disk full"),
}


class _at(translated):
    """Say where a path leads, for the length of one call: a name, and the descriptor of the directory that has it.

    A descriptor in place of the name is the directory itself. It stays open until the call is over, even if the
    folder is closed meanwhile: its number might be given to another directory, whose files are none of ours.
    """

    __slots__ = ("_held",)

    def __init__(self, path: str) -> None:
        self._path = path
        self._held: _Held | None = None

    def __enter__(self) -> tuple[Any, int | None]:
        path = self._path
        if isinstance(path, Place):
            self._held = held = path.folder._held or path.folder.hold()
            return (path.name, held.number) if _BY_DESCRIPTOR else (os.path.join(held.real, path.name), None)
        if isinstance(path, Folder):
            self._held = held = path.hold()
            return (held.number if _BY_DESCRIPTOR else held.real), None
        return path, None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._held = None  # or the error that is raised here would hold it
        if error is not None:
            super().__exit__(kind, error, trace)


class _changing(_at):
    """The same for a call that makes, replaces or removes a name: only while the store is still this one."""

    __slots__ = ()

    def __enter__(self) -> tuple[Any, int | None]:
        if isinstance(self._path, Place):
            self._path.folder.prove()
        return super().__enter__()


class _unheeded:
    """Go on whatever the system says, where that is of no use; what a signal handler raises passes through."""

    __slots__ = ("_kinds",)

    def __init__(self, *kinds: type[Exception]) -> None:
        self._kinds = kinds or (OSError,)

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return isinstance(error, self._kinds) and not is_interrupt(error)


def _close(descriptor: int) -> None:
    try:  # what `_unheeded` does, but without memory, which may be why this is closed
        os.close(descriptor)
    except OSError as error:
        if is_interrupt(error):
            raise


class _Held:
    """A directory that is held open, until nobody uses it any more."""

    __slots__ = ("number", "real")

    def __init__(self, number: int, real: str = "") -> None:
        self.number = number  # -1 where the system has no such descriptors
        self.real = real

    def close(self) -> None:
        """Close it now, even if somebody still uses it."""
        number, self.number = self.number, -1
        if number >= 0:
            _close(number)

    def __del__(self) -> None:
        if hasattr(self, "number"):  # else __init__ was interrupted
            self.close()


class Folder(str):
    """The path of a directory that is opened once, at its first use, and held; a plain string but for `Files`."""

    __slots__ = ("_held", "_is_closed", "_lock", "_origin", "_prefix", "_sign", "file_system")

    def __init__(self, path: str) -> None:
        self._prefix = os.path.join(path, "")
        self._origin = path  # a link may lead to a store's directory, but not to one in it
        self.file_system: str | None = None  # its type, once `Files` has found it
        self._held: _Held | None = None
        self._is_closed = False
        self._lock: io.FileIO | None = None
        self._sign: tuple[int, int] | None = None

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)

    def place(self, name: str) -> Place:
        """Return the path of a name in this directory."""
        return Place(self, self._prefix + name, name)

    @property
    def parent(self) -> Place:
        """Return the directory that has this one's name, wherever it is by now."""
        return Place(self, os.path.dirname(os.path.abspath(self)), os.pardir)

    def hold(self) -> _Held:
        """Return the directory, opened if it never was; `NotAStoreError` if it is something else."""
        held = self._held
        if held is not None:
            return held
        if self._is_closed:
            raise StoreClosedError(f"{self}: this store was closed")
        origin = self._origin
        with _at(origin) as (name, dir_fd):
            if _BY_DESCRIPTOR:
                flags = _DIRECTORY | (os.O_NOFOLLOW if isinstance(origin, Place) else 0)
                try:
                    held = _Held(os.open(name, flags, dir_fd=dir_fd))
                except NotADirectoryError as error:
                    if is_interrupt(error):
                        raise
                    self._refuse()
            else:
                if isinstance(origin, Place) and not stat.S_ISDIR(os.lstat(name).st_mode):
                    self._refuse()
                held = _Held(-1, os.path.realpath(name))
        self._held = held
        return held

    def renew(self) -> None:
        """Hold the directory by a descriptor that nobody else has; a child that was forked before has the old one.

        A lock belongs to what was opened: together with such a child it would be held on after this process has died.
        """
        with _at(self) as (where, _):
            self._held = _Held(os.open(os.curdir, _DIRECTORY, dir_fd=where))

    def _refuse(self) -> NoReturn:
        if isinstance(self._origin, Place):
            raise StoreIOError(errno.ENOTDIR, "not a directory of the store's own", self)
        raise NotAStoreError(f"{self}: a file, not a directory that holds a store")

    def sign(self, lock: io.FileIO) -> None:
        """Name the lock file by which this directory is known as the store's own, for `prove`."""
        with translated(self):
            found = os.fstat(lock.fileno())
        self._sign = found.st_dev, found.st_ino
        self._lock = lock

    def prove(self) -> None:
        """Raise `StoreFailedError` if the store was removed or replaced: its lock file has lost its name then.

        There may be another store here by then, or another writer.
        """
        if isinstance(self._origin, Place):
            self._origin.folder.prove()
        lock = self._lock
        if lock is None:
            return
        try:
            found = os.fstat(lock.fileno())
            is_there = found.st_nlink > 0 and (found.st_dev, found.st_ino) == self._sign
        except ValueError:
            is_there = False  # its file was closed meanwhile
        except OSError as error:
            if is_interrupt(error):
                raise
            if error.errno != errno.EBADF:
                raise from_os_error(error, self) from error
            is_there = False  # its descriptor was closed by somebody else: there is no lock either
        if not is_there:
            raise StoreFailedError(
                f"{self}: the store was replaced, or its LOCK removed, while it was open; nothing more is written to "
                "it; close it and open what is there now"
            )

    @property
    def is_closed(self) -> bool:
        """Tell whether this was closed: what is done in it raises `StoreClosedError`."""
        return self._is_closed

    def close(self) -> None:
        """Close the directory once the calls that are under way have ended; later ones are refused."""
        self._is_closed = True
        self._held = self._lock = None

    def abandon(self) -> None:
        """Close it in a child process, where the threads whose calls were under way do not exist."""
        held = self._held
        self.close()
        if held is not None:
            held.close()

    def share(self) -> Folder:
        """Return the same directory, held open by itself, for a reader that goes on after this one was closed."""
        shared = Folder(self._origin)
        shared._held = self.hold()
        return shared


class Place(str):
    """The path of a name in a `Folder`; a plain string but for `Files`."""

    __slots__ = ("folder", "name")

    def __new__(cls, folder: Folder, path: str, name: str) -> Place:  # noqa: D102
        return super().__new__(cls, path)

    def __init__(self, folder: Folder, path: str, name: str) -> None:
        self.folder = folder
        self.name = name

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)


def _failed_sync(error: OSError, path: str) -> StoreFailedError:
    return StoreFailedError(f"{path}: sync failed ({error.strerror}); close the store and open it again")


class Files:
    """Do what bytekv needs of files and clocks; stateless, one instance may serve many stores."""

    # --- names ---------------------------------------------------------------------------------

    def folder(self, path: str) -> Folder:
        """Return a directory as what is opened at its first use and held from then on."""
        return Folder(path)

    def list(self, path: str) -> list[str]:
        """List the names in a directory; `NotAStoreError` if it is something else."""
        with _at(path) as (where, _):
            try:
                return os.listdir(where)
            except NotADirectoryError as error:
                if is_interrupt(error):
                    raise
                raise NotAStoreError(f"{path}: a file, not a directory that holds a store") from error

    def exists(self, path: str) -> bool:
        """Tell whether there is anything of this name, a dangling link included."""
        with _unheeded(), _at(path) as (name, dir_fd):
            os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
            return True
        return False

    def make_directory(self, path: str) -> bool:
        """Create a directory of mode 0700 whatever the umask; False if the name is taken."""
        with _changing(path) as (name, dir_fd):
            try:
                os.mkdir(name, 0o700, dir_fd=dir_fd)
            except FileExistsError as error:
                if is_interrupt(error):
                    raise
                return False
            os.chmod(name, 0o700, dir_fd=dir_fd)
        return True

    def replace(self, source: str, target: str) -> None:
        """Rename over what is there, atomically; durable only after `sync_directory`."""
        with _changing(target) as (new, new_fd), _at(source) as (old, old_fd):
            os.replace(old, new, src_dir_fd=old_fd, dst_dir_fd=new_fd)

    def link(self, source: str, target: str) -> bool:
        """Give a file a second name, in place of what has it; False where the file system has no such thing."""
        self.unlink(target)
        with _changing(target) as (new, new_fd), _at(source) as (old, old_fd):
            try:
                os.link(old, new, src_dir_fd=old_fd, dst_dir_fd=new_fd, follow_symlinks=False)
            except (OSError, NotImplementedError) as error:
                if is_interrupt(error):
                    raise
                if isinstance(error, FileNotFoundError):
                    raise from_os_error(error, source) from error
                return False  # another device, too many names, not supported, not allowed
        return True

    def unlink(self, path: str) -> bool:
        """Remove a name; False if there is none (an interrupted removal, repeated)."""
        with _changing(path) as (name, dir_fd):
            try:
                os.unlink(name, dir_fd=dir_fd)
            except FileNotFoundError as error:
                if is_interrupt(error):
                    raise
                return False
        return True

    def remove_directory(self, path: str) -> None:
        """Remove an empty directory."""
        with _changing(path) as (name, dir_fd):
            os.rmdir(name, dir_fd=dir_fd)

    def sync_directory(self, path: str) -> None:
        """Make names created, replaced or removed in this directory durable; `StoreFailedError` if not.

        That it cannot be opened is no failed sync: a `Folder` is open.
        """
        if sys.platform == "win32":
            return
        with _at(path) as (where, dir_fd):
            if isinstance(where, int):
                self._sync_names(where, path)
                return
            descriptor = os.open(where, _DIRECTORY, dir_fd=dir_fd)
            try:
                self._sync_names(descriptor, path)
            finally:
                self.close(descriptor)

    def _sync_names(self, descriptor: int, path: str) -> None:
        try:
            os.fsync(descriptor)
        except OSError as error:
            if is_interrupt(error):
                raise
            raise _failed_sync(error, path) from error

    # --- descriptors ---------------------------------------------------------------------------

    def open(self, path: str, *, write: bool = False, create: bool = False, exclusive: bool = False) -> int:
        """Open a regular file, of mode 0600 if it is made, and return its descriptor."""
        flags = _COMMON | (os.O_RDWR if write else os.O_RDONLY) | getattr(os, "O_NONBLOCK", 0)
        is_new = create or exclusive
        with (_changing if is_new else _at)(path) as (name, dir_fd):
            try:
                try:
                    descriptor = os.open(name, flags | (os.O_CREAT | os.O_EXCL if is_new else 0), 0o600, dir_fd=dir_fd)
                except FileExistsError as error:
                    if exclusive or is_interrupt(error):
                        raise
                    is_new = False
                    descriptor = os.open(name, flags, dir_fd=dir_fd)
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR) and not is_interrupt(error):
                    raise StoreIOError(error.errno, "not a regular file", path) from error
                raise
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise StoreIOError(errno.EINVAL, "not a regular file", path)
                if is_new and hasattr(os, "fchmod"):
                    os.fchmod(descriptor, 0o600)  # the umask may have taken even the owner's bits
            except BaseException:
                self.close(descriptor)
                if is_new:
                    with _unheeded():
                        os.unlink(name, dir_fd=dir_fd)  # what we have just made, or the name stays taken
                raise
        return descriptor

    def open_new(self, path: str) -> int:
        """Make a file to be written; in place of what has the name, which may have another name elsewhere."""
        try:
            return self.open(path, write=True, exclusive=True)
        except StoreIOError as error:
            if error.errno != errno.EEXIST or is_interrupt(error):
                raise
        self.unlink(path)
        return self.open(path, write=True, exclusive=True)

    def has_other_names(self, descriptor: int, path: str) -> bool:
        """Tell whether an open file has a second name (a hard link), whose owner does not expect it to change."""
        with translated(path):
            return os.fstat(descriptor).st_nlink > 1

    def has_name(self, descriptor: int, path: str) -> bool:
        """Tell whether it is this open file that has the name now."""
        with _at(path) as (name, dir_fd):
            try:
                named = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
            except FileNotFoundError as error:
                if is_interrupt(error):
                    raise
                return False
            opened = os.fstat(descriptor)
        return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)

    def make_private(self, descriptor: int, path: str) -> None:
        """Let nobody but the owner read or write an open file."""
        with translated(path):
            if hasattr(os, "fchmod"):
                os.fchmod(descriptor, stat.S_IRUSR | stat.S_IWUSR)

    def duplicate(self, descriptor: int, path: str) -> int:
        """Return a second descriptor of the same open file."""
        with translated(path):
            return os.dup(descriptor)

    def own(self, descriptor: int) -> io.FileIO:
        """Wrap a descriptor so that closing it twice, or interrupted, neither leaks it nor closes another's."""
        return io.FileIO(descriptor, "r+")

    def close(self, descriptor: int) -> None:
        """Close a descriptor; what it says is of no use, for every sync has been checked before."""
        _close(descriptor)

    def disown(self, file: io.FileIO) -> None:
        """Close a descriptor that was wrapped, as `close` does."""
        try:  # as in `_close`
            file.close()
        except OSError as error:
            if is_interrupt(error):
                raise

    def size(self, descriptor: int, path: str) -> int:
        """Return a file's length in bytes."""
        with translated(path):
            return os.fstat(descriptor).st_size

    def read(self, descriptor: int, size: int, offset: int, path: str) -> bytes:
        """Read ``size`` bytes at ``offset``, fewer only at the end of the file."""
        with translated(path):
            piece = _pread(descriptor, size, offset)
            if len(piece) == size or not piece:
                return piece
            pieces = [piece]
            have = len(piece)
            while have < size and (piece := _pread(descriptor, size - have, offset + have)):
                pieces.append(piece)
                have += len(piece)
            return b"".join(pieces)

    def write(self, descriptor: int, piece: bytes | memoryview, offset: int, path: str) -> None:
        """Write all of ``piece`` at ``offset``; on an error a part of it may have been written."""
        with translated(path):
            done = _pwrite(descriptor, piece, offset)
            while done < len(piece):
                step = _pwrite(descriptor, memoryview(piece)[done:], offset + done)
                if step == 0:
                    raise OSError(errno.EIO, "write returned 0")
                done += step

    def truncate(self, descriptor: int, size: int, path: str) -> None:
        """Cut a file to ``size`` bytes."""
        with translated(path):
            os.ftruncate(descriptor, size)

    def sync(self, descriptor: int, path: str) -> None:
        """Make a file's bytes and length durable; `StoreFailedError` if not, and then never try again.

        Bytes that nobody will find any more, because the store was replaced, are not durable either.
        """
        if isinstance(path, Place):
            with _unheeded():
                path.folder.prove()
        try:
            if sys.platform == "darwin":
                fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            elif hasattr(os, "fdatasync"):
                os.fdatasync(descriptor)
            else:
                os.fsync(descriptor)
        except OSError as error:
            if is_interrupt(error):
                raise
            raise _failed_sync(error, path) from error

    def forget_cache(self, descriptor: int) -> None:
        """Ask that the next read of this file come from the medium.

        After a failed sync Linux marks the pages clean though they never reached the disk; a read
        would show what a power cut takes away again. Only advice, hence no error.
        """
        if hasattr(os, "posix_fadvise"):
            with _unheeded():
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    # --- mappings ------------------------------------------------------------------------------

    def reserve(self, descriptor: int, size: int, path: str) -> None:
        """Allocate disk blocks up to ``size`` bytes; `DiskFullError` if there are none."""
        if not hasattr(os, "posix_fallocate"):
            raise StoreIOError(errno.ENOSYS, "io='mmap' needs posix_fallocate, not to be had here; use io='auto'", path)
        with translated(path):
            os.posix_fallocate(descriptor, 0, size)

    def map(self, descriptor: int, size: int, path: str, *, write: bool = False) -> mmap.mmap:
        """Map the first ``size`` bytes, which the file must have (else a later access is SIGBUS)."""
        with translated(path):
            if os.fstat(descriptor).st_size < size:
                raise OSError(errno.EIO, f"file is shorter than {size} bytes")
            try:
                return mmap.mmap(descriptor, size, access=mmap.ACCESS_WRITE if write else mmap.ACCESS_READ)
            except ValueError as error:  # cut short in this very moment, by a writer that seals it
                if is_interrupt(error):
                    raise
                raise OSError(errno.EIO, f"file is shorter than {size} bytes") from None

    def populate(self, mapping: mmap.mmap, start: int, stop: int) -> None:
        """Take the page faults of a range now, in few calls, instead of one by one while writing.

        Measured: 90 ns for an append of 128 bytes instead of 370. Where the kernel is older than
        5.14 nothing is lost but speed. Python keeps the GIL during each call: 2 ms for 4 MiB.
        """
        if sys.platform == "linux":
            first = start - start % mmap.PAGESIZE
            with _unheeded(OSError, ValueError):
                for at in range(first, stop, _POPULATED_AT_ONCE):
                    mapping.madvise(_POPULATE_WRITE, at, min(_POPULATED_AT_ONCE, stop - at))

    def maps_safely(self, path: str) -> bool:
        """Tell whether appending through a preallocated mapping is safe on this file system."""
        return sys.platform == "linux" and self.file_system(path) in _IN_PLACE

    def is_network(self, path: str) -> bool:
        """Tell whether the file system is known to be remote, so that its locks cannot be trusted."""
        return self.file_system(path) in _NETWORK

    def file_system(self, path: str) -> str:
        """Return the type of the file system that holds ``path``, "" where unknown (proc_pid_mountinfo(5))."""
        if isinstance(path, Folder):  # asked three times at each opening, and dear
            if path.file_system is None:
                path.file_system = self._file_system(path)
            return path.file_system
        return self._file_system(path)

    def _file_system(self, path: str) -> str:
        with _unheeded(OSError, BytekvError, IndexError, AttributeError), _at(path) as (where, _):
            device = os.stat(where).st_dev
            wanted = f"{os.major(device)}:{os.minor(device)}"
            with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as table:
                for line in table:
                    left, _, right = line.partition(" - ")
                    if left.split(" ", 3)[2] == wanted:
                        return right.split(" ", 1)[0]
        return ""  # no /proc, or not Linux: unknown is an answer, and leads to the careful choice

    # --- the process ---------------------------------------------------------------------------

    def lock(self, descriptor: int, path: str, *, shared: bool = False) -> bool:
        """Take the lock of an open file without waiting, alone or as one of several; False if it is held otherwise.

        Where it is held already it is converted, which is no single step: another process may come between, and if this
        is refused, what was held is lost.

        `flock` belongs to the open file: the kernel frees it when the last descriptor is closed,
        in whatever way the process dies; and unlike fcntl locks a second open of the same file in
        this process neither shares nor drops it.
        """
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            else:  # where no store is shared, see `sharing_refused`
                import msvcrt

                locking: Any = msvcrt
                os.lseek(descriptor, 1 << 30, os.SEEK_SET)  # far beyond the pid, which stays readable
                locking.locking(descriptor, locking.LK_NBLCK, 1)
        except OSError as error:
            if is_interrupt(error):
                raise
            if error.errno in _HELD_ELSEWHERE:
                return False
            raise from_os_error(error, path) from error
        return True

    def lock_directory(self, path: Folder, *, shared: bool = False, again: bool = False) -> bool:
        """Take the lock of a directory itself without waiting, as `lock` does; False if it is held otherwise.

        A second wall, which holds even if somebody has removed the file of the first. Where a file system
        has no such thing, there is none. ``again``: this converts the lock that was taken before.
        """
        if fcntl is None or not _BY_DESCRIPTOR:
            return True
        if not again:
            path.renew()
        with _at(path) as (where, _):
            try:
                fcntl.flock(where, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except OSError as error:
                if is_interrupt(error):
                    raise
                return error.errno != errno.EWOULDBLOCK
        return True

    def unlock(self, descriptor: int) -> None:
        """Give the lock back for every descriptor of the open file, also those that a fork has made."""
        if fcntl is not None:
            try:  # as in `_close`
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            except OSError as error:
                if is_interrupt(error):
                    raise

    def unlock_directory(self, path: Folder) -> None:
        """Give the lock of a directory back."""
        held = path._held
        if held is not None and held.number >= 0:
            self.unlock(held.number)

    def turn_of(self, file: io.FileIO) -> tuple[Callable[[], object], Callable[[], object]]:
        """Return what takes an open file's lock without waiting, or raises `BlockingIOError`, and what gives it back.

        For where each microsecond counts, and for a ``finally``: both are calls of C, which no signal handler can
        interrupt before they have done their work, as it can a function of Python. They raise what the system says, and
        `ValueError` once the file is closed, never touching another that has its number by then.
        """
        return (
            partial(fcntl.flock, file, fcntl.LOCK_EX | fcntl.LOCK_NB),
            partial(fcntl.flock, file, fcntl.LOCK_UN),
        )

    def lock_range(self, descriptor: int, start: int, size: int, path: str, *, shared: bool = False) -> bool:
        """Take the lock of some bytes of an open file without waiting; False if it is held elsewhere.

        The bytes need not exist. As that of `lock` it belongs to the open file (F_OFD_SETLK in fcntl_locking(2)), and
        not to the process, whose every close() would drop it; neither kind knows of the other.
        """
        kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _RANGE.pack(kind, os.SEEK_SET, start, size, 0))
        except OSError as error:
            if is_interrupt(error):
                raise
            if error.errno in _HELD_ELSEWHERE:
                return False
            raise from_os_error(error, path) from error
        return True

    def is_range_locked(self, descriptor: int, start: int, size: int, path: str) -> bool:
        """Tell whether some bytes, or a part of them, are locked by way of another open file."""
        wanted = _RANGE.pack(fcntl.F_WRLCK, os.SEEK_SET, start, size, 0)
        try:
            found = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, wanted)
        except OSError as error:
            if is_interrupt(error):
                raise
            raise from_os_error(error, path) from error
        return bool(_RANGE.unpack(found)[0] != fcntl.F_UNLCK)

    def range_giver(self, file: io.FileIO, start: int, size: int) -> Callable[[], object]:
        """Return what gives the lock of some bytes back, if it is held; a call of C, see `turn_of`. Size 0: all."""
        unlock = _RANGE.pack(fcntl.F_UNLCK, os.SEEK_SET, start, size, 0)
        return partial(fcntl.fcntl, file, fcntl.F_OFD_SETLK, unlock)

    def sharing_refused(self, path: Folder) -> str | None:
        """Say why several processes cannot write to a store here at once; None where they can.

        They can where appending through a mapping is safe, because all of them map one page that tells each what the
        others have done. An overlay is one of these though nothing says what lies above it: the page is opened for
        writing, so it lies there, and appends are mapped on an overlay as it is.
        """
        if sys.platform != "linux" or not hasattr(fcntl, "F_OFD_SETLK"):
            return f"on {_SYSTEMS.get(sys.platform, sys.platform)} there are no locks that fit"
        if sys.maxsize < 1 << 32:
            return "a 32-bit process reads a 64-bit number in two steps"
        if self.boot_id() is None:
            return "/proc, which tells one start of the system from another, is not to be had"
        kind = self.file_system(path)
        if kind in _IN_PLACE:
            return None
        why = _UNSHARED.get(kind) or ("it runs in a process of its own" if kind.startswith("fuse") else "")
        return f"on the file system {kind or 'of an unknown type'}: {why or 'it is not known to map pages coherently'}"

    def boot_id(self) -> bytes | None:
        """Return 16 bytes that change whenever the system starts; None where it does not tell."""
        with (
            _unheeded(OSError, ValueError),
            open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file,
        ):
            found = bytes.fromhex(file.read(64).replace("-", ""))
            return found if len(found) == 16 else None
        return None

    def what_does(self, pid: int) -> str | None:
        """Say in words what a process is at, None if it cannot be seen (proc_pid_stat(5))."""
        with (
            _unheeded(OSError, IndexError),
            open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file,
        ):
            return _DOES.get(file.read(4096).rpartition(")")[2].split()[0])
        return None

    def identity(self, path: str) -> tuple[int, int]:
        """Return what tells one directory from another, however it is spelled."""
        with _at(path) as (where, _):
            found = os.stat(where)
        return found.st_dev, found.st_ino

    def is_gone(self, path: Folder) -> bool:
        """Tell whether a directory has been removed since it was opened."""
        with _at(path) as (where, _):
            return isinstance(where, int) and os.fstat(where).st_nlink == 0

    def may_change(self, path: str) -> bool:
        """Tell whether names may be made and removed in a directory; asked of the system, not tried."""
        with _at(path) as (where, _):
            if not isinstance(where, int):
                return os.access(where, os.W_OK | os.X_OK)
            # There are containers that refuse the question for the effective user, even whether there is a ".".
            effective = _EFFECTIVE_IDS and os.access(os.curdir, os.F_OK, dir_fd=where, effective_ids=True)
            return os.access(os.curdir, os.W_OK | os.X_OK, dir_fd=where, effective_ids=effective)

    def free_bytes(self, path: str) -> int:
        """Return how many bytes this user may still write on the file system."""
        if not hasattr(os, "statvfs"):
            return 1 << 62
        with _at(path) as (where, _):
            found = os.statvfs(where)
        return found.f_bavail * found.f_frsize

    def open_file_limit(self) -> int:
        """Return how many descriptors the process may have."""
        if resource is None:
            return 512  # the C run-time's default on Windows
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return 1 << 20 if soft == resource.RLIM_INFINITY else soft

    def random(self, size: int) -> bytes:
        """Return random bytes for a salt or a uuid."""
        return os.urandom(size)

    #: The wall clock in nanoseconds since 1970; may jump. For expiry and `modified` only.
    clock_ns: Callable[[], int] = staticmethod(time.time_ns)

    def now_ms(self) -> int:
        """Return the wall clock in milliseconds since 1970; one that is set to before counts as 1970."""
        return max(0, self.clock_ns() // 1_000_000)

    def monotonic(self) -> float:
        """Return seconds of a clock that never jumps, for intervals."""
        return time.monotonic()

    def pause(self, seconds: float) -> None:
        """Let other threads run for a moment."""
        time.sleep(seconds)

    def yield_cpu(self) -> None:
        """Let another thread have the GIL."""
        time.sleep(0)


if hasattr(os, "pread"):
    _pread = os.pread
    _pwrite = os.pwrite
else:  # Windows: a seek and a read as one step
    _seeking = threading.Lock()

    def _pread(descriptor: int, size: int, offset: int, /) -> bytes:
        with _seeking:
            os.lseek(descriptor, offset, os.SEEK_SET)
            return os.read(descriptor, size)

    def _pwrite(descriptor: int, piece: Any, offset: int, /) -> int:
        with _seeking:
            os.lseek(descriptor, offset, os.SEEK_SET)
            return os.write(descriptor, piece)
