"""Control page: what the processes that share a store tell each other, and the locks that order them.

``SHARED`` is one page, which all of them map. Its words say how far the log goes. The log itself proves it, for a word
that is read without TURN may be early, late or wrong. When the last process has gone the page is worthless, and the
next one to open the store makes it anew. It is never unlinked, because the locks are on it.

========  =====================  ================================================================================
lock      on                     held
========  =====================  ================================================================================
TURN      all of it (flock)      for one append, batch, roll or change of the manifest; by a transaction until its end
DOOR      byte 2**30             while a process opens or closes the store
SYNC      byte 2**30 + 1         for one sync
UPKEEP    byte 2**30 + 2         by the one process that compacts and sweeps
pins      from byte 2**31 on     by a view of what a manifest listed, as one of several, on the byte of its generation
========  =====================  ================================================================================

The kernel frees the lock of a process that dies, however it dies. But it gives a lock to an open file, so the threads
of one process do not exclude each other: each lock has a half in the process, taken first. TURN's is not here.

The page is mapped from an opening of its own: Python's mapping keeps a second descriptor, and one of the opening that
has the locks would keep them in a forked child after its parent's death.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable

from ..._lean import TYPE_CHECKING, NamedTuple, suppress
from ...errors import (
    ReentryError,
    StoreBusyError,
    StoreClosedError,
    StoreFailedError,
    StoreIOError,
    UnsupportedError,
    from_os_error,
    is_interrupt,
)
from ...options import Options
from .lock import SHARED

if TYPE_CHECKING:
    from typing import Any, Final, TypeVar

    from .directory import Directory

    T = TypeVar("T")

__all__ = ["ControlPage", "GenerationPin", "RangeLock", "Where"]

SIZE: Final = 4096
LAYOUT: Final = 1

# Indices into `ControlPage.words`, each group in 64 bytes of its own, which processors fetch as one. The first group is
# the magic number, the layout, the store's uuid and the boot id.
HOLDER: Final = 0x40 // 8  # pid of the process that has TURN. Not 0 although TURN is free: it died, or failed, inside
APPENDED: Final = 0x80 // 8  # seq of the last whole operation
SEGMENT: Final = 0xC0 // 8  # id of the active segment
END: Final = 0xC8 // 8  # where its next entry begins
ALLOCATED: Final = 0xD0 // 8  # how far the disk has room for it
CHANGES: Final = 0xD8 // 8  # odd while words that belong together are being changed
DURABLE_SYNC: Final = 0x100 // 8  # durable up to this seq, by syncs; written under SYNC
DURABLE_ROLL: Final = 0x108 // 8  # the same, by rolls and take-overs; written under TURN
GENERATION: Final = 0x140 // 8  # of the manifest
FAILED: Final = 0x180 // 8  # not 0: a sync has failed, and nobody writes any more
NEXT_ID: Final = 0x1C0 // 8  # of the next segment
SEAL_AT: Final = 0x1C8 // 8  # size at which a segment is sealed
OWED: Final = 0x1D0 // 8  # dead bytes beyond what is tolerated
UPKEEPER: Final = 0x1D8 // 8  # pid of the process that has UPKEEP. Not 0 although UPKEEP is free: it died inside
WANT: Final = 0x200 // 8  # since when a process waits for TURN, in microseconds of the monotonic clock; 0: none does
SEGMENT_SIZE: Final = 0x240 // 8  # the options that concern all, as the first process has chosen them
KEEP_CHANGES: Final = 0x248 // 8
EXPIRY_GRACE_MS: Final = 0x250 // 8
_PROBE: Final = 0x280 // 8  # under DOOR

_MAGIC: Final = b"bytekvSH"
_DOOR: Final = 1 << 30
_SYNC: Final = _DOOR + 1
_UPKEEP: Final = _DOOR + 2
_PINS: Final = 1 << 31

_SHORTEST_PAUSE_S: Final = 20e-6
_LONGEST_PAUSE_S: Final = 0.001
_LARGEST: Final = (1 << 64) - 1
_UNFAIR_US: Final = 5000  # a process that has waited longer for TURN has precedence
_LOOKS: Final = 50
_DONE: Final = memoryview(bytes(SIZE)).cast("Q")  # in place of the words of a page that was closed


class Where(NamedTuple):
    """How far the log goes, by words that belong together.

    ``end`` may be that of operations after ``appended``: an append sets it first, and does not set the two as one.
    """

    generation: int
    segment: int
    end: int
    allocated: int
    appended: int


def _nothing() -> None:
    """Give nothing back: the page was closed."""


class RangeLock:
    """One of the locks on a byte: the kernel's for the processes, with ``guard`` around it for the threads of this one.

    `run` is the whole of it. Written out, for where a call is too dear::

        with lock.guard:
            try:
                lock.take(timeout_s)
                ...
            finally:
                try:
                    lock.give_back()
                except BaseException:
                    lock.give_back()
                    raise

    To give back what is not held does nothing, so it does not matter where an interrupt strikes.
    """

    __slots__ = ("_held_for", "_page", "_start", "give_back", "guard", "is_mine")

    def __init__(self, page: ControlPage, start: int, held_for: str) -> None:
        self._page, self._start, self._held_for = page, start, held_for
        guard: Any = threading.RLock()  # not to let a thread in twice, but to tell it
        self.guard = guard
        self.is_mine: Callable[[], bool] = guard._is_owned  # decision 0163
        self.give_back = page._files.range_giver(page._file, start, 1)

    def try_take(self) -> bool:
        """Take it from the other processes without waiting; False if one of them has it. Inside ``guard``."""
        return self._page._lock_range(self._start, 1, shared=False)

    def take(self, timeout_s: float) -> None:
        """Take it, wait while another process has it; `StoreBusyError` after ``timeout_s``. Inside ``guard``."""
        page = self._page
        page._wait(self.try_take, timeout_s, lambda: StoreBusyError(page._directory.path, None, self._held_for))

    def run(self, work: Callable[[], T], timeout_s: float) -> T:
        """Call ``work`` while nobody else has the lock, and return what it returns; `StoreBusyError` as with `take`."""
        self._page._check_reentry(self.is_mine())
        with self.guard:
            try:
                self.take(timeout_s)
                return work()
            finally:
                try:
                    self.give_back()
                except BaseException:
                    self.give_back()
                    raise

    def try_run(self, work: Callable[[], object]) -> bool:
        """Call ``work`` unless another process has the lock; tell whether it was called. Threads of this one wait."""
        was_called = False

        def noted() -> None:
            nonlocal was_called
            was_called = True
            work()

        try:
            self.run(noted, 0.0)
        except StoreBusyError:
            if was_called:
                raise  # the work itself says so
        return was_called


class GenerationPin:
    """A view of what the manifest of one generation listed, of which no file is unlinked until this is dropped."""

    __slots__ = ("__weakref__", "_page", "generation")

    def __init__(self, page: ControlPage, generation: int) -> None:
        self._page, self.generation = page, generation

    def release(self) -> None:
        """End it; once more is harmless."""
        self._page._unpin(self.generation, id(self))

    def __del__(self) -> None:
        if hasattr(self, "generation"):  # else __init__ was interrupted
            with suppress(OSError):  # it ends with the store
                self.release()


class ControlPage:
    """The page of one store, as one process has it.

    Made by opening ``SHARED``, which changes nothing in it; so that `door` is there before the store's `Lock` is
    taken. Then, still within `door`, `make` or `join`.
    """

    __slots__ = (
        "_directory",
        "_file",
        "_files",
        "_mapping",
        "_path",
        "_pinning",
        "_pins",
        "_unpinned",
        "door",
        "give_turn_back",
        "sync",
        "try_turn",
        "upkeep",
        "words",
    )

    def __init__(self, directory: Directory) -> None:
        """Open ``SHARED``, made if it is missing; `UnsupportedError` where processes cannot share a store."""
        self._directory, self._files = directory, directory.files
        if reason := self._files.sharing_refused(directory.folder):
            raise UnsupportedError(
                f"{directory.path}: processes cannot share a store here: {reason}; open it without shared=True"
            )
        files, self._path = self._files, directory.folder.place(SHARED)
        #: The page as 512 numbers; all zero before `make` or `join` and after `close`.
        self.words: memoryview = _DONE
        self._mapping: Any = None
        self._file = file = files.own(files.open(self._path, write=True, create=True))
        self.try_turn, give = files.turn_of(file)
        #: Give TURN back, a call of C; does nothing if it is not held. See `take_turn`.
        self.give_turn_back: Callable[[], object] = give
        self.door = RangeLock(self, _DOOR, "opening or closing it")
        self.sync = RangeLock(self, _SYNC, "syncing")
        self.upkeep = RangeLock(self, _UPKEEP, "compacting")
        self._pinning: Any = threading.RLock()
        self._pins: dict[int, set[int]] = {}  # generation -> the pins of this process on it
        self._unpinned: list[tuple[int, int]] = []  # by finalisers in the middle of another pin's business

    # --- the page ------------------------------------------------------------------------------

    def make(self, uuid: bytes) -> None:
        """Fill the page: the caller has the store's lock alone. All words are 0 but those that say whose page it is.

        A file that is not bytekv's is left as it is: `StoreIOError`.
        """
        files, path, descriptor = self._files, self._path, self._descriptor()
        found = files.read(descriptor, SIZE + 1, 0, path)
        if len(found) > SIZE or found[:8].ljust(8, b"\0") not in (_MAGIC, bytes(8)):
            raise self._wrong(errno.EEXIST, "a file that bytekv has not made; give it another name")
        self._expect_one_name()
        files.make_private(descriptor, path)
        files.write(descriptor, bytes(SIZE), 0, path)  # and no hole, in which a mapping would need a block later
        self._map()
        self._expect_coherence()
        self._mapping[8:48] = self._identity(uuid)
        self._mapping[:8] = _MAGIC  # last: without it the rest says nothing

    def join(self, uuid: bytes) -> None:
        """Map the page that others are using: the caller has the store's lock as one of several.

        `StoreIOError` or `UnsupportedError` if it is not theirs; nothing is written to it then.
        """
        self._expect_one_name()
        if self._files.size(self._descriptor(), self._path) != SIZE:
            raise self._wrong(errno.EINVAL, "damaged, it has another size; close the store in all processes")
        self._map()
        try:
            self._expect_identity(uuid)
            self._expect_coherence()
        except BaseException:
            self.words = _DONE
            self._mapping = None
            raise

    def _map(self) -> None:
        files, path = self._files, self._path
        descriptor = files.open(path, write=True)
        try:
            if not files.has_name(self._descriptor(), path):
                raise self._wrong(errno.ESTALE, "the file was replaced just now; open the store again")
            self._mapping = files.map(descriptor, SIZE, path, write=True)
        finally:
            files.close(descriptor)  # the mapping has its own
        files.populate(self._mapping, 0, SIZE)
        self.words = memoryview(self._mapping).cast("Q")

    def _identity(self, uuid: bytes) -> bytes:
        boot_id = self._files.boot_id()
        if boot_id is None:
            raise self._wrong(errno.ENOENT, "cannot tell whether this page is of today: no boot id in /proc")
        return LAYOUT.to_bytes(8, "little") + uuid + boot_id

    def _expect_identity(self, uuid: bytes) -> None:
        found, wanted = bytes(self._mapping[:48]), self._identity(uuid)
        if found[:8] != _MAGIC:
            raise self._wrong(errno.EINVAL, "damaged, or not bytekv's; close the store in all processes")
        if found[8:16] != wanted[:8]:
            raise UnsupportedError(
                f"{self._path}: another version of bytekv shares this store, and its page has layout "
                f"{int.from_bytes(found[8:16], 'little')}, not {LAYOUT}; use one version in all processes"
            )
        if found[16:32] != wanted[8:24]:
            raise self._wrong(errno.EINVAL, "that of another store; close this store in all processes")
        if found[32:48] != wanted[24:]:
            raise UnsupportedError(
                f"{self._path}: processes of another machine, or of one that sees this directory otherwise, share this "
                "store; only those of one system can"
            )

    def _expect_one_name(self) -> None:
        if self._files.has_other_names(self._descriptor(), self._path):
            raise self._wrong(errno.EMLINK, "the file has a second name (a hard link); remove that, or this file")

    def _expect_coherence(self) -> None:
        """Show by a number that what one opening maps and what another reads is the same page. Within `door`."""
        place = slice(8 * _PROBE, 8 * _PROBE + 8)
        self._mapping[place] = number = self._files.random(8)
        if self._files.read(self._descriptor(), 8, place.start, self._path) != number:
            raise UnsupportedError(
                f"{self._path}: the file system does not show a reader what was written to a mapping; open the "
                "store without shared=True"
            )

    def _wrong(self, code: int, text: str) -> StoreIOError:
        return StoreIOError(code, text, self._path)

    # --- its words -----------------------------------------------------------------------------

    def move(
        self,
        *,
        generation: int | None = None,
        segment: int | None = None,
        end: int | None = None,
        allocated: int | None = None,
        appended: int | None = None,
    ) -> None:
        """Change words that belong together. Under TURN.

        A process that dies in the middle leaves `CHANGES` odd, so that nobody believes the others until they have been
        changed again; to do it twice is the same as once.
        """
        words = self.words
        words[CHANGES] |= 1
        if generation is not None:
            words[GENERATION] = generation
        if segment is not None:
            words[SEGMENT] = segment
        if end is not None:
            words[END] = end
        if allocated is not None:
            words[ALLOCATED] = allocated
        if appended is not None:
            words[APPENDED] = appended
        words[CHANGES] = (words[CHANGES] | 1) + 1 & _LARGEST

    def agree(self, options: Options) -> None:
        """Write down what concerns all processes as the first one has chosen it."""
        words = self.words
        words[SEGMENT_SIZE] = options.segment_size_bytes
        words[KEEP_CHANGES] = 0 if options.keep_changes_bytes is None else options.keep_changes_bytes + 1
        words[EXPIRY_GRACE_MS] = round(options.expiry_grace_s * 1000)

    def agreed(self, options: Options) -> Options:
        """Return the options with what concerns all processes as the first one has chosen it."""
        words = self.words
        given = {name: getattr(options, name) for name in options.names()}
        given["segment_size_bytes"] = words[SEGMENT_SIZE]
        given["keep_changes_bytes"] = words[KEEP_CHANGES] - 1 if words[KEEP_CHANGES] else None
        given["expiry_grace_s"] = words[EXPIRY_GRACE_MS] / 1000
        return Options(**given)

    def where(self) -> Where | None:
        """Return how far the log goes; None if a process is changing that, or died while it did: ask the manifest.

        Without TURN, and only a hint: the log proves it.
        """
        words, pause = self.words, self._files.yield_cpu
        for _ in range(_LOOKS):
            changes = words[CHANGES]
            if not changes & 1:
                appended = words[APPENDED]  # before `END`, which goes ahead
                found = words[GENERATION], words[SEGMENT], words[END], words[ALLOCATED], appended
                if words[CHANGES] == changes:
                    return Where(*found)
            pause()
        return None

    @property
    def durable_seq(self) -> int:
        """Return up to which seq the operations of all processes are durable."""
        return max(self.words[DURABLE_SYNC], self.words[DURABLE_ROLL])

    def failed_elsewhere(self) -> StoreFailedError:
        """Return the error for what has failed in another process."""
        return StoreFailedError(
            f"{self._directory.path}: a sync or a write of another process that shares the store has failed; close the "
            "store in all processes"
        )

    def who_holds(self) -> tuple[int | None, str | None]:
        """Return the process that has the turn, or had it when it died, and what it is doing, where that is known."""
        pid = self.words[HOLDER] & 0xFFFFFFFF  # above it the number of the store in that process
        return (pid, self._files.what_does(pid)) if pid else (None, None)

    # --- TURN ----------------------------------------------------------------------------------

    def take_turn(self, timeout_s: float) -> None:
        """Let no other process append; wait while one does, `StoreBusyError` after ``timeout_s``.

        The caller has what keeps the other threads of this process out, before this and until the turn is given back;
        they would share it, and each give back the other's. And it calls this within the ``try`` whose ``finally``
        calls `give_turn_back`: an interrupt may strike as soon as the turn is taken::

            try:
                page.take_turn(timeout_s)
                ...
            finally:
                try:
                    page.give_turn_back()
                except BaseException:  # there was no memory for the call
                    page.give_turn_back()
                    raise
        """
        try:
            self.try_turn()
        except BlockingIOError as error:
            if is_interrupt(error):
                raise
        except OSError as error:
            if is_interrupt(error):
                raise
            raise from_os_error(error, self._path) from error
        except ValueError as error:  # the descriptor was closed
            if is_interrupt(error):
                raise
            raise StoreClosedError(f"{self._path}: this store was closed") from error
        else:
            return
        self._wait_for_turn(timeout_s)

    def _wait_for_turn(self, timeout_s: float) -> None:
        files, words, path = self._files, self.words, self._path
        since = int(files.monotonic() * 1e6) or 1

        def take() -> bool:
            if words[WANT] == 0 or words[WANT] > since:
                words[WANT] = since
            return files.lock(self._descriptor(), path)

        try:
            self._wait(take, timeout_s, lambda: StoreBusyError(self._directory.path, *self.who_holds()))
        finally:
            if words[WANT] == since:
                words[WANT] = 0  # others who wait say so again

    def let_waiters_in(self) -> None:
        """Pause if another process has waited for long; after TURN was given back.

        The kernel gives it to the process that asks first, and one that writes without a pause always does.
        """
        since = self.words[WANT]
        if since and int(self._files.monotonic() * 1e6) - since > _UNFAIR_US:
            self.words[WANT] = 0  # those that still live say it again
            self._files.pause(2 * _LONGEST_PAUSE_S)

    # --- pins ----------------------------------------------------------------------------------

    def pin(self, generation: int) -> GenerationPin:
        """Keep the files that the manifest of this generation lists from being unlinked, until the pin is released.

        Another process may be unlinking them just now, so look afterwards whether the generation still is the newest.
        """
        self._check_reentry(self._pinning._is_owned())
        pin = GenerationPin(self, generation)
        with self._pinning:
            self._forget_unpinned()
            self._pins.setdefault(generation, set()).add(id(pin))  # first: what is interrupted is released all the same
            self._lock_range(_PINS + generation, 1, shared=True)  # not refused: no process takes one alone
        return pin

    def _unpin(self, generation: int, number: int) -> None:
        if self._pinning._is_owned():  # a finaliser
            self._unpinned.append((generation, number))
            return
        with self._pinning:
            self._forget_pin(generation, number)
            self._forget_unpinned()

    def _forget_unpinned(self) -> None:
        while self._unpinned:
            self._forget_pin(*self._unpinned[-1])
            self._unpinned.pop()

    def _forget_pin(self, generation: int, number: int) -> None:
        pins = self._pins.get(generation)
        if pins is None:
            return
        pins.discard(number)
        if not pins:
            if not self._file.closed:
                self._files.range_giver(self._file, _PINS + generation, 1)()
            self._pins.pop(generation, None)

    def is_pinned_elsewhere(self, generation: int) -> bool:
        """Tell whether another process has pinned this generation or one before it.

        Once the manifest of a later one is published nobody can who does not look at that afterwards.
        """
        return self._files.is_range_locked(self._descriptor(), _PINS, generation + 1, self._path)

    # --- what the locks have in common ---------------------------------------------------------

    def _check_reentry(self, is_mine: bool) -> None:
        if is_mine:
            raise ReentryError(f"{self._path}: a call was interrupted by another that needs the same lock")

    def _descriptor(self) -> int:
        if self._file.closed:
            raise StoreClosedError(f"{self._path}: this store was closed")
        return self._file.fileno()

    def _lock_range(self, start: int, size: int, *, shared: bool) -> bool:
        return self._files.lock_range(self._descriptor(), start, size, self._path, shared=shared)

    def _wait(self, take: Callable[[], bool], timeout_s: float, busy: Callable[[], StoreBusyError]) -> None:
        """Take a lock, or raise what ``busy`` returns once the time is over. The pauses let other threads run."""
        files = self._files
        until = files.monotonic() + timeout_s
        pause_s = _SHORTEST_PAUSE_S
        while not take():
            left_s = until - files.monotonic()
            if left_s <= 0:
                raise busy()
            files.pause(min(pause_s, left_s))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    # --- the end -------------------------------------------------------------------------------

    def close(self) -> None:
        """Give every lock of this process back and let the page go; once more is harmless."""
        if not self._file.closed:
            # Not only by closing: a child forked a moment ago may still hold the same open file.
            self._files.unlock(self._file.fileno())
            self._files.range_giver(self._file, 0, 0)()
        self.abandon()

    def abandon(self) -> None:
        """Close what is held without unlocking it: in a child process that would free the parent's locks.

        The page stays mapped for those that still have `words`.
        """
        self.give_turn_back = _nothing
        for lock in (self.door, self.sync, self.upkeep):
            lock.give_back = _nothing
        self._files.disown(self._file)
        self.words = _DONE
        self._mapping = None
        self._pinning = threading.RLock()  # the thread that had it may be the parent's
