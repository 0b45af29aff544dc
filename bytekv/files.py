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
"""

from __future__ import annotations

import contextlib
import errno
import io
import mmap
import os
import stat
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from .errors import NotAStoreError, StoreFailedError, StoreIOError, from_os_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

__all__ = ["Files"]

_COMMON = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE, Linux 5.14; Python's mmap has no name for it
_HELD_ELSEWHERE = {errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK}

#: File systems that write in place and preallocate natively, so that a full disk is an error of
#: posix_fallocate and never a SIGBUS. Copy-on-write ones (btrfs, zfs, bcachefs) may need new space
#: for a page that is allocated already; they get pwrite. Overlay passes on to what lies above.
_IN_PLACE = {"ext4", "xfs", "tmpfs", "overlay"}

#: `flock` may be missing, local to one host, or emulated with locks that a close() drops.
_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ncpfs", "fuse.sshfs"}


class _translated:
    """Translate errors of the operating system.

    No generator with `contextlib.contextmanager`: from Python 3.12 on its frame and the error it has seen
    hold each other, and through their frames the files of the caller, until garbage is collected.
    """

    __slots__ = ("_path",)

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError):
            raise from_os_error(error, self._path) from error


def _failed_sync(error: OSError, path: str) -> StoreFailedError:
    return StoreFailedError(f"{path}: sync failed ({error.strerror}); close the store and open it again")


class Files:
    """Do what bytekv needs of files and clocks; stateless, one instance may serve many stores."""

    # --- names ---------------------------------------------------------------------------------

    def list(self, path: str) -> list[str]:
        """List the names in a directory; `NotAStoreError` if it is something else."""
        try:
            return os.listdir(path)
        except NotADirectoryError as error:
            raise NotAStoreError(f"{path}: a file, not a directory that holds a store") from error
        except OSError as error:
            raise from_os_error(error, path) from error

    def exists(self, path: str) -> bool:
        """Tell whether there is anything of this name, a dangling link included."""
        return os.path.lexists(path)

    def is_directory(self, path: str) -> bool:
        """Tell whether this is a directory itself, not a link to one."""
        with _translated(path):
            return stat.S_ISDIR(os.lstat(path).st_mode)

    def make_directory(self, path: str) -> bool:
        """Create a directory of mode 0700 whatever the umask; False if the name is taken."""
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            return False
        except OSError as error:
            raise from_os_error(error, path) from error
        with _translated(path):
            os.chmod(path, 0o700)
        return True

    def replace(self, source: str, target: str) -> None:
        """Rename over what is there, atomically; durable only after `sync_directory`."""
        with _translated(target):
            os.replace(source, target)

    def link(self, source: str, target: str) -> bool:
        """Give a file a second name, in place of what bears it; False where the file system has no such thing."""
        self.unlink(target)
        try:
            os.link(source, target, follow_symlinks=False)
        except FileNotFoundError as error:
            raise from_os_error(error, source) from error
        except (OSError, NotImplementedError):  # another device, too many names, not supported, not allowed
            return False
        return True

    def unlink(self, path: str) -> bool:
        """Remove a name; False if there is none (an interrupted removal, repeated)."""
        try:
            os.unlink(path)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise from_os_error(error, path) from error
        return True

    def sync_directory(self, path: str) -> None:
        """Make names created, replaced or removed in this directory durable; `StoreFailedError` if not."""
        if sys.platform == "win32":
            return
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                self.close(descriptor)
        except OSError as error:
            # Not even opening it may pass for an ordinary error: the rename before it has happened.
            raise _failed_sync(error, path) from error

    # --- descriptors ---------------------------------------------------------------------------

    def open(self, path: str, *, write: bool = False, create: bool = False, exclusive: bool = False) -> int:
        """Open a regular file, of mode 0600 if it is made, and return its descriptor."""
        flags = _COMMON | (os.O_RDWR if write else os.O_RDONLY) | getattr(os, "O_NONBLOCK", 0)
        is_new = create or exclusive
        with _translated(path):
            try:
                try:
                    descriptor = os.open(path, flags | (os.O_CREAT | os.O_EXCL if is_new else 0), 0o600)
                except FileExistsError:
                    if exclusive:
                        raise
                    is_new = False
                    descriptor = os.open(path, flags)
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
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
                    with contextlib.suppress(OSError):
                        os.unlink(path)  # what we have just made, or the name stays taken
                raise
        return descriptor

    def open_new(self, path: str) -> int:
        """Make a file to be written; in place of what bears the name, which may have another name elsewhere."""
        try:
            return self.open(path, write=True, exclusive=True)
        except StoreIOError as error:
            if error.errno != errno.EEXIST:
                raise
        self.unlink(path)
        return self.open(path, write=True, exclusive=True)

    def has_other_names(self, descriptor: int, path: str) -> bool:
        """Tell whether an open file has a second name (a hard link), whose owner does not expect it to change."""
        with _translated(path):
            return os.fstat(descriptor).st_nlink > 1

    def duplicate(self, descriptor: int, path: str) -> int:
        """Return a second descriptor of the same open file."""
        with _translated(path):
            return os.dup(descriptor)

    def own(self, descriptor: int) -> io.FileIO:
        """Wrap a descriptor so that closing it twice, or interrupted, neither leaks it nor closes another's."""
        return io.FileIO(descriptor, "r+")

    def close(self, descriptor: int) -> None:
        """Close a descriptor; what it says is of no use, for every sync has been checked before."""
        with contextlib.suppress(OSError):
            os.close(descriptor)

    def size(self, descriptor: int, path: str) -> int:
        """Return a file's length in bytes."""
        with _translated(path):
            return os.fstat(descriptor).st_size

    def read(self, descriptor: int, size: int, offset: int, path: str) -> bytes:
        """Read ``size`` bytes at ``offset``, fewer only at the end of the file."""
        with _translated(path):
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
        with _translated(path):
            done = _pwrite(descriptor, piece, offset)
            while done < len(piece):
                step = _pwrite(descriptor, memoryview(piece)[done:], offset + done)
                if step == 0:
                    raise OSError(errno.EIO, "write returned 0")
                done += step

    def truncate(self, descriptor: int, size: int, path: str) -> None:
        """Cut a file to ``size`` bytes."""
        with _translated(path):
            os.ftruncate(descriptor, size)

    def sync(self, descriptor: int, path: str) -> None:
        """Make a file's bytes and length durable; `StoreFailedError` if not, and then never try again."""
        try:
            if sys.platform == "darwin":
                fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            elif hasattr(os, "fdatasync"):
                os.fdatasync(descriptor)
            else:
                os.fsync(descriptor)
        except OSError as error:
            raise _failed_sync(error, path) from error

    def forget_cache(self, descriptor: int) -> None:
        """Ask that the next read of this file come from the medium.

        After a failed sync Linux marks the pages clean though they never reached the disk; a read
        would show what a power cut takes away again. Only advice, hence no error.
        """
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    # --- mappings ------------------------------------------------------------------------------

    def reserve(self, descriptor: int, size: int, path: str) -> None:
        """Allocate disk blocks up to ``size`` bytes; `DiskFullError` if there are none."""
        if not hasattr(os, "posix_fallocate"):
            raise StoreIOError(errno.ENOSYS, "io='mmap' needs posix_fallocate, not to be had here; use io='auto'", path)
        with _translated(path):
            os.posix_fallocate(descriptor, 0, size)

    def map(self, descriptor: int, size: int, path: str, *, write: bool = False) -> mmap.mmap:
        """Map the first ``size`` bytes, which the file must have (else a later access is SIGBUS)."""
        with _translated(path):
            if os.fstat(descriptor).st_size < size:
                raise OSError(errno.EIO, f"file is shorter than {size} bytes")
            try:
                return mmap.mmap(descriptor, size, access=mmap.ACCESS_WRITE if write else mmap.ACCESS_READ)
            except ValueError:  # cut short in this very moment, by a writer that seals it
                raise OSError(errno.EIO, f"file is shorter than {size} bytes") from None

    def populate(self, mapping: mmap.mmap, start: int, stop: int) -> None:
        """Take the page faults of a range now, in one call, instead of one by one while writing.

        Measured: 90 ns for an append of 128 bytes instead of 370. Where the kernel is older than
        5.14 nothing is lost but speed.
        """
        if sys.platform == "linux":
            first = start - start % mmap.PAGESIZE
            with contextlib.suppress(OSError, ValueError):
                mapping.madvise(_POPULATE_WRITE, first, stop - first)

    def maps_safely(self, path: str) -> bool:
        """Tell whether appending through a preallocated mapping is safe on this file system."""
        return sys.platform == "linux" and self.file_system(path) in _IN_PLACE

    def is_network(self, path: str) -> bool:
        """Tell whether the file system is known to be remote, so that its locks cannot be trusted."""
        return self.file_system(path) in _NETWORK

    def file_system(self, path: str) -> str:
        """Return the type of the file system that holds ``path``, "" where unknown (proc_pid_mountinfo(5))."""
        try:
            device = os.stat(path).st_dev
            wanted = f"{os.major(device)}:{os.minor(device)}"
            with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as table:
                for line in table:
                    left, _, right = line.partition(" - ")
                    if left.split(" ", 3)[2] == wanted:
                        return right.split(" ", 1)[0]
        except (OSError, IndexError, AttributeError):
            pass  # no /proc, or not Linux: unknown is an answer, and leads to the careful choice
        return ""

    # --- the process ---------------------------------------------------------------------------

    def lock(self, descriptor: int, path: str) -> bool:
        """Take the exclusive lock of an open file without waiting; False if it is held.

        `flock` belongs to the open file: the kernel frees it when the last descriptor is closed,
        in whatever way the process dies; and unlike fcntl locks a second open of the same file in
        this process neither shares nor drops it.
        """
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                import msvcrt

                locking: Any = msvcrt
                os.lseek(descriptor, 1 << 30, os.SEEK_SET)  # far beyond the pid, which stays readable
                locking.locking(descriptor, locking.LK_NBLCK, 1)
        except OSError as error:
            if error.errno in _HELD_ELSEWHERE:
                return False
            raise from_os_error(error, path) from error
        return True

    def unlock(self, descriptor: int) -> None:
        """Give the lock back for every descriptor of the open file, also those that a fork has made."""
        if fcntl is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)

    def identity(self, path: str) -> tuple[int, int]:
        """Return what tells one directory from another, however it is spelled."""
        with _translated(path):
            found = os.stat(path)
        return found.st_dev, found.st_ino

    def free_bytes(self, path: str) -> int:
        """Return how many bytes this user may still write on the file system."""
        if not hasattr(os, "statvfs"):
            return 1 << 62
        with _translated(path):
            found = os.statvfs(path)
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
        """Return the wall clock in milliseconds since 1970."""
        return self.clock_ns() // 1_000_000

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
