"""Lock: one writer for a directory, or several that share it.

Two walls keep a second writer out. The lock on ``LOCK`` is what every bytekv looks at; since that file may be removed
by a cleaner of old files, the directory itself is locked, too. Writers that share a store hold both as shared locks,
beside which no exclusive one is to be had; how they take turns is in `control_page`.
"""

from __future__ import annotations

import errno
import io
import os
import threading
import weakref

from ..._lean import suppress
from ...errors import AccessDeniedError, BytekvError, StoreIOError, StoreLockedError
from .files import Files, Folder

__all__ = ["LOCK", "SHARED", "Lock", "forget_locks_after_fork", "go_on_after_fork", "hold_locks_before_fork"]

LOCK = "LOCK"
SHARED = "SHARED"  # the control page; here because `directory` has to know the name of what few stores have
_SHARED_TEXT = b"shared\n"  # for the id of a process, as there may be several
_TRIES = 100

# flock already keeps a second open of the same process out; this table also does where flock is
# emulated with fcntl locks, which one process may take twice and any close() drops.
# What could not be given back, because there was no memory, goes with its `Lock`, as the lock's file does.
# By directory and, as several may share one, by object.
_held: weakref.WeakValueDictionary[tuple[int, int, int], Lock] = weakref.WeakValueDictionary()
_held_guard = threading.RLock()  # re-entered if a finaliser closes another store meanwhile
_FORK_PATIENCE_S = 5.0  # a slow disk, or what a finaliser in that thread waits for, must not keep a fork for ever


def hold_locks_before_fork() -> bool:
    """Wait until no other thread is just taking or giving back a lock, whose descriptor nobody would know of."""
    return _held_guard.acquire(timeout=_FORK_PATIENCE_S)


def go_on_after_fork() -> None:
    """Let the other threads go on in the process that has forked."""
    with suppress(RuntimeError):  # it was not to be had in time
        _held_guard.release()


def forget_locks_after_fork() -> None:
    """Forget, in a child process, what its parent holds; the parent's locks are untouched.

    Of stores that another thread was just opening, too: nobody in the child will ever close those.
    """
    global _held_guard
    _held_guard = threading.RLock()  # another thread of the parent may have held it
    for lock in list(_held.values()):
        lock.abandon()
    _held.clear()


class Lock:
    """The right to write to one directory."""

    def __init__(self, path: str, files: Files, folder: Folder) -> None:
        self._path, self._files, self._folder = path, files, folder
        self._file: io.FileIO | None = None
        self._identity: tuple[int, int, int] | None = None
        self.is_shared = False

    def acquire(self, *, network_allowed: bool = False, shared: bool = False) -> bool:
        """Become the writer, or one of several; `StoreLockedError` names the process that is.

        Tell whether nobody else is: also with ``shared`` the lock is exclusive then, until `share`.
        """
        files, folder = self._files, self._folder
        if not network_allowed and files.is_network(folder):
            raise StoreIOError(
                None, f"on a network file system ({files.file_system(folder)}), whose locks fail", self._path
            )
        if not files.may_change(folder):
            raise AccessDeniedError(
                errno.EACCES, "no files can be made in this directory, which a writer has to", folder
            )
        identity = files.identity(folder)
        path = folder.place(LOCK)
        with _held_guard:
            self._refuse_beside_others_here(identity, shared=shared)
            try:
                self._identity = (*identity, id(self))
                self.is_shared = shared
                _held[self._identity] = self  # first: a child that is forked from here on lets go of what there is
                is_alone = files.lock_directory(folder)
                if not is_alone and not (shared and files.lock_directory(folder, shared=True, again=True)):
                    raise self._locked(path)
                return self._take_file(path, is_alone=is_alone)
            except BaseException:
                self._give_up()
                raise

    def not_alone(self) -> StoreLockedError:
        """Return the error for one that shares the store, but had to be the first."""
        identity, own = self._identity, None
        with _held_guard:
            if any(other is not self and key[:2] == (identity or ())[:2] for key, other in list(_held.items())):
                own = os.getpid()
        return StoreLockedError(self._path, own, shared=True, wanted="alone")

    def _refuse_beside_others_here(self, identity: tuple[int, int], *, shared: bool) -> None:
        # A function of its own: a loop directly inside a ``with`` might leave the lock behind.
        for key, other in list(_held.items()):
            if key[:2] == identity and not (shared and other.is_shared):
                raise StoreLockedError(self._path, os.getpid(), other.is_shared, "shared" if shared else "exclusive")

    def share(self) -> None:
        """Let others share the store, after `acquire` has told that there are none.

        No single step: `StoreLockedError` if a writer that does not share it came between; nothing is held then.
        """
        if not self._convert(shared=True):
            raise self._locked(self._folder.place(LOCK))

    def try_alone(self) -> bool:
        """Become the only one who has the store; False if others have it, and then **nothing is held any more**.

        The system takes the shared lock away before it refuses the exclusive one, so this is only for a `close`.
        """
        return self._convert(shared=False)

    def _convert(self, *, shared: bool) -> bool:
        files, file = self._files, self._file
        with _held_guard:
            try:
                if (
                    file is not None
                    and files.lock_directory(self._folder, shared=shared, again=True)
                    and files.lock(file.fileno(), self._folder.place(LOCK), shared=shared)
                ):
                    return True
            except BaseException:
                self._give_up()
                raise
            self._give_up()
        return False

    def _take_file(self, path: str, *, is_alone: bool) -> bool:
        """Take the lock of the file that bears the name ``LOCK``; it may be removed while it is taken.

        Tell whether it is taken alone, as the directory was.
        """
        files = self._files
        is_network = files.is_network(self._folder)  # for a backup only; there the number of a file may change
        for _ in range(_TRIES):
            descriptor = files.open(path, write=True, create=True)
            self._file = lock = files.own(descriptor)
            if is_alone and not files.lock(descriptor, path):
                is_alone = False
                if not (self.is_shared and files.lock_directory(self._folder, shared=True, again=True)):
                    raise self._locked(path)
            if not is_alone and not files.lock(descriptor, path, shared=True):
                raise self._locked(path)
            if is_network or files.has_name(descriptor, path):
                break
            files.disown(lock)
        else:
            raise StoreIOError(errno.EBUSY, "somebody removes this file again and again; let it be", path)
        if not is_network:
            self._folder.sign(lock)
        with suppress(BytekvError):  # the pid is a courtesy; a full disk must not keep us out
            if not files.has_other_names(descriptor, path):
                holder = _SHARED_TEXT if self.is_shared else b"%d\n" % os.getpid()
                files.write(descriptor, holder.ljust(20), 0, path)
        return is_alone

    def _locked(self, path: str) -> StoreLockedError:
        """Return the error that says who has the store, as far as ``LOCK`` tells."""
        try:
            descriptor = self._files.open(path)
            try:
                text = self._files.read(descriptor, 20, 0, path).strip()
            finally:
                self._files.close(descriptor)
        except BytekvError:
            text = b""  # that the store is locked is known, and is what matters
        holder = int(text) if text.isdigit() else None
        if self.is_shared:  # beside others that share it there would be no error, whatever they wrote before
            return StoreLockedError(self._path, holder, wanted="shared")
        return StoreLockedError(self._path, holder, text == _SHARED_TEXT.strip())

    def release(self) -> None:
        """Give the lock back; the second call does nothing."""
        try:
            with _held_guard:
                self._give_up()
        except MemoryError:  # a ``with`` takes some, what follows none; the guard is for forks
            self._give_up()

    def _give_up(self) -> None:
        if self._identity is not None:
            # Not only by closing: a child forked a moment ago may still hold the same open files.
            if self._file is not None and not self._file.closed:
                self._files.unlock(self._file.fileno())
            self._files.unlock_directory(self._folder)
        self._forget()

    def _forget(self) -> None:
        # Each step may be done again: by a handler in the middle of it, or because it was interrupted.
        identity = self._identity
        if identity is not None and _held.get(identity) is self:
            _held.pop(identity, None)
        self._identity = None
        if self._file is not None:
            self._files.disown(self._file)

    def abandon(self) -> None:
        """Close what is held without unlocking it: in a child process that would free the parent's lock."""
        self._forget()
        self._folder.abandon()
