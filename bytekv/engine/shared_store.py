"""The shared store: one directory as a store that other processes write to as well.

Each call catches up with what they had been told was done before it began; a write does so in its turn. Everything else
is the local store's.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator

from .._lean import TYPE_CHECKING
from ..contract.convert import Bytes, Entry, EntryStat
from ..contract.ordered import Range
from ..errors import StoreIOError
from ..options import Options
from .codec.entry import Head, StoredEntry
from .index.read_view import ReadView
from .log.control_page import APPENDED, ControlPage
from .log.files import Files
from .open import Opened, open_shared
from .reader import Reader
from .sharing.maintenance import SharedMaintenance
from .store import Store
from .tuning import TUNING, Tuning
from .write.commit import Committer

if TYPE_CHECKING:
    from typing import Any, Final, NoReturn, SupportsIndex

    from ..contract.reports import BackupReport, Change, Progress, Report, Stats
    from ..contract.snapshot import Snapshot
    from ..options import Flag
    from .replication.follower import Follower
    from .sharing.neighbours import Neighbours
    from .space.maintenance import Maintenance

__all__ = ["SharedStore"]

_get, _getitem = Store.get, Store.__getitem__
_DEFAULTS: Final = {name: getattr(Options(), name) for name in Options.names()}
_OPENED: Final = (  # what a store is made of once it is open
    "_state",
    "_durability",
    "_directory",
    "_segments",
    "_keydir",
    "_locations",
    "_readers",
    "_maintenance",
    "_reader",
    "_commit",
    "_page",
    "_neighbours",
)
_FEW: Final = 4096  # writes of a batch that are not shown at once where there is something to be read before them
_opening = threading.RLock()


class _SharedReader(Reader):
    """Read a store in which another process may have compacted away what is looked for."""

    neighbours: Neighbours
    page: ControlPage

    def read(self, key: bytes, location: int) -> StoredEntry:
        """Return the entry at a location, checked; KeyError if it was removed, so that it is looked for again."""
        try:
            return super().read(key, location)
        except StoreIOError:
            self._look_again(location)
            raise

    def read_head(self, key: bytes, location: int) -> Head:
        """Return what the entry at a location says before its value; KeyError likewise."""
        try:
            return super().read_head(key, location)
        except StoreIOError:
            self._look_again(location)
            raise

    def _look_again(self, location: int) -> None:
        generation = self._segments.manifest.generation
        self.neighbours.catch_up_with_set()
        if self._segments.manifest.generation != generation:
            raise KeyError(location)

    def open_view(self, owner: object) -> ReadView:
        """Return the keydir as it is now; no process removes what it needs."""
        pin = self.page.pin(self.neighbours.generation)  # first: then either it is seen, or what was removed is known
        self.neighbours.catch_up_with_set()
        return super().open_view((owner, pin))

    def close_view(self, view: ReadView) -> None:
        """End a moment."""
        super().close_view(view)
        view.owner = None


class SharedStore(Store):
    """A store that several processes write to by turns; made by `bytekv.open` with ``shared=True``.

    What a method promises holds among all processes: a call takes effect at one moment between its beginning and its
    end, in all of them. A call that has to wait for another process raises `StoreBusyError` after ``busy_timeout_s``.
    """

    _page: ControlPage
    _neighbours: Neighbours
    _is_last = False

    def __init__(self, path: str, flag: Flag, options: Options, files: Files, tuning: Tuning = TUNING) -> None:
        super().__init__(path, flag, options, files, tuning)
        self._asked = path, flag, options, files, tuning
        self._few = _FEW
        self._worker.wake()  # which sees to what a neighbour leaves that dies

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:  # type: ignore[override]
        """Pickle the path and the options: where it is unpickled, the store is opened, as one more process's."""
        given = {name: getattr(self._asked[2], name) for name in Options.names()}
        return _opened_anew, (self._path, {name: value for name, value in given.items() if value != _DEFAULTS[name]})

    def __copy__(self) -> NoReturn:
        raise TypeError("a shared Store cannot be copied; use the object itself, or open the path once more")

    def __deepcopy__(self, memo: object) -> NoReturn:
        self.__copy__()

    def _open(self, path: str, flag: Flag, options: Options, files: Files, tuning: Tuning) -> Opened:
        opened, self._page = open_shared(path, flag, options, files, tuning, self._worker.wake)
        self._neighbours = opened.committer.neighbours  # type: ignore[attr-defined]
        self._options = opened.committer.state.options  # as all have agreed
        return opened

    def _maintenance_of(self, commit: Committer, follower: Follower | None) -> Maintenance:
        maintenance = SharedMaintenance(commit, self._options, self._worker, follower)
        maintenance.share(commit, self._page)  # type: ignore[arg-type]
        return maintenance

    def _reader_of(self, commit: Committer) -> Reader:
        reader = _SharedReader(commit.state, commit.durability, self._options)
        reader.neighbours, reader.page = self._neighbours, self._page
        return reader

    def _follow(self) -> None:
        """See what other processes have done before this call began."""
        state = self._state
        if self._page.words[APPENDED] != state.seq or state.always:
            self._neighbours.catch_up()

    @contextlib.contextmanager
    def _keeping_files(self) -> Iterator[None]:
        """Know which segments there are, and have no process remove their files for a while."""
        pin = self._page.pin(self._neighbours.generation)  # first: what has been removed by then is known to be gone
        try:
            self._neighbours.catch_up_with_set()
            yield
        finally:
            pin.release()

    # --- reading -------------------------------------------------------------------------------

    def get(self, key: Bytes, default: Any = None) -> Any:  # noqa: D102
        # `_follow` is written out, and `super` is not asked: 1.1 of an exclusive get instead of 1.3.
        if self._page.words[APPENDED] != self._state.seq or self._state.always:
            self._neighbours.catch_up()
        return _get(self, key, default)

    def __getitem__(self, key: Bytes) -> bytes:
        if self._page.words[APPENDED] != self._state.seq or self._state.always:
            self._neighbours.catch_up()
        return _getitem(self, key)

    def __contains__(self, key: object) -> bool:
        self._follow()
        return super().__contains__(key)

    def __len__(self) -> int:
        self._follow()
        return super().__len__()

    def entry(self, key: Bytes) -> Entry:  # noqa: D102
        self._follow()
        return super().entry(key)

    def stat(self, key: Bytes) -> EntryStat:  # noqa: D102
        self._follow()
        return super().stat(key)

    def ttl(self, key: Bytes) -> float | None:  # noqa: D102
        self._follow()
        return super().ttl(key)

    def get_many(self, keys: Iterable[Bytes]) -> dict[bytes, bytes]:  # noqa: D102
        wanted = list(keys)
        self._follow()
        return super().get_many(wanted)

    def _stats(self, range_: Range, limit: int | None) -> Iterator[EntryStat]:
        self._follow()
        return super()._stats(range_, limit)

    def _count(self, range_: Range) -> int:
        self._follow()
        return super()._count(range_)

    def _walk(self, range_: Range, limit: int | None) -> Iterator[bytes]:
        self._follow()
        return super()._walk(range_, limit)

    def _walker(self) -> Callable[[Range, int | None], Iterator[bytes]]:
        self._follow()
        return super()._walker()

    def _pairs(self, range_: Range, limit: int | None) -> Iterator[tuple[bytes, bytes]]:
        self._follow()
        return super()._pairs(range_, limit)

    def _end_key(self, *, reverse: bool) -> bytes | None:
        self._follow()
        return super()._end_key(reverse=reverse)

    def snapshot(self) -> Snapshot:  # noqa: D102
        self._follow()
        return super().snapshot()

    def changes(self, since_seq: int = 0) -> Iterator[Change]:  # noqa: D102
        self._check_open()
        with self._keeping_files():  # until the iterator does so by itself
            return super().changes(since_seq)

    # --- writing -------------------------------------------------------------------------------

    def _delete_in(self, range_: Range) -> int:
        self._follow()
        return super()._delete_in(range_)

    def clear(self) -> None:  # noqa: D102
        self._follow()
        super().clear()

    # --- durability and space ------------------------------------------------------------------

    def sync(self) -> None:  # noqa: D102
        self._check_open()
        self._follow()
        super().sync()

    def verify(self, *, progress: Callable[[Progress], object] | None = None) -> Report:  # noqa: D102
        self._check_open()
        with self._keeping_files():
            return super().verify(progress=progress)

    def backup(  # noqa: D102
        self, dest: str | os.PathLike[str], *, progress: Callable[[Progress], object] | None = None
    ) -> BackupReport:
        self._check_open()
        with self._keeping_files():
            return super().backup(dest, progress=progress)

    def stats(self) -> Stats:  # noqa: D102
        self._check_open()
        self._neighbours.catch_up_with_set()
        return super().stats()

    @property
    def last_seq(self) -> int:
        """Return the sequence number of the newest visible operation of all processes."""
        if not self._is_closed:
            self._follow()
        return super().last_seq

    @property
    def durable_seq(self) -> int:
        """Return the sequence number up to which every operation survives a power cut."""
        return max(self._page.durable_seq, self._state.durable_seq)

    # --- lifecycle -----------------------------------------------------------------------------

    def close(self) -> None:
        """Make everything durable and leave the store to the other processes; the last one writes a clean end.

        As `Store.close`; `StoreBusyError` if another process takes too long to open or close the store: this one is not
        closed then.
        """
        super().close()
        if self._is_closed:
            self._page.close()  # already, unless that was interrupted

    def _end(self) -> None:
        """Make everything durable and leave the store to the others; the last one writes a clean end."""
        state = self._state
        try:
            if not self._is_shut and state.failure is None and state.refusal is None:
                self._durability.sync()
        finally:
            self._page.door.run(self._leave, self._options.busy_timeout_s)

    def _leave(self) -> None:
        state = self._state
        turn: Any = self._commit.turn
        with state.compacting, turn.gate:  # no thread of this process writes any more once the lock is given up
            self._is_last = not self._is_shut and self._directory.try_alone()
            try:
                if self._is_last and state.failure is None:
                    turn.end_all()
                    with turn:
                        pass
            finally:
                try:
                    super()._end()
                finally:
                    if self._is_closed:  # else it was interrupted, and is called again
                        self._page.close()

    def _write_clean_end(self) -> None:
        if self._is_last:
            super()._write_clean_end()

    def _after_fork(self) -> None:
        """In a child process: give up what was inherited, without unlocking, and open the store anew at the next call.

        Snapshots, scans and transactions of the parent stay its own: here they raise `ForkedStoreError`.
        """
        self._page.abandon()
        super()._after_fork()
        if not self._is_closed:
            for name in _OPENED:
                setattr(self, name, _Inherited(self, name))

    def _open_anew(self) -> None:
        """Open the store in this process, which has inherited the object."""
        with _opening:
            inherited = [name for name in _OPENED if isinstance(getattr(self, name), _Inherited)]
            if not inherited:
                return  # another thread has
            for name in inherited:
                delattr(self, name)
            path, _, *rest = self._asked
            try:
                self.__init__(path, "w", *rest)  # type: ignore[misc]
            except BaseException:
                for name in _OPENED:
                    setattr(self, name, _Inherited(self, name))
                raise


class _Inherited:
    """Stand in for a part of a store that was opened before a fork: the first use opens the store in the child."""

    def __init__(self, store: SharedStore, name: str) -> None:
        self._store, self._name = store, name

    def __getattr__(self, attribute: str) -> Any:
        store, name = self._store, self._name
        store._open_anew()
        return getattr(getattr(store, name), attribute)

    def __len__(self) -> int:
        self._store._open_anew()
        return len(getattr(self._store, self._name))


def _opened_anew(path: str, options: dict[str, Any]) -> SharedStore:
    return SharedStore(path, "w", Options(**options), Files())
