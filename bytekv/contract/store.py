"""The abstract store: what every store gives, whatever keeps the bytes.

A store gives the abstract methods. What can be written through them is written here, once; a store overrides what it
can do better or in one step. The local store's docstrings say what each method promises.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType

from .._lean import TYPE_CHECKING
from ..errors import ConflictError, LimitError
from .convert import (
    Bytes,
    Entry,
    EntryStat,
    fitting,
    increased,
    key_of,
    limit_of,
    number_of,
    to_bytes,
    value_of,
)
from .ordered import MutableOrderedMapping, Range, range_of

if TYPE_CHECKING:
    from typing import Any, Final, Protocol, Self, TypeVar, overload

    from .batch import Batch
    from .reports import BackupReport, Change, Compaction, Progress, Report, Stats
    from .snapshot import Snapshot
    from .transaction import Transaction

    T = TypeVar("T")

    class PathLike(Protocol):
        """What `os.fspath` takes."""

        def __fspath__(self) -> str: ...


__all__ = ["Store"]

_TRIES: Final = 8  # of a compare-and-set, before other writers are kept out


class Store(MutableOrderedMapping):
    """A mapping of bytes to bytes, in key order, that outlives the process.

    *Time.* What is built on a store asks the store what time it is, with `_now_ms`, and keeps no clock of its own: what
    has expired for one has expired for the other, also in a test that turns the store's clock.
    """

    @abstractmethod
    def _now_ms(self) -> int:
        """Return the time with which expiries are compared, in milliseconds since 1970."""

    @abstractmethod
    def _check_open(self) -> None:
        """Raise what every call raises once the store is closed."""

    # --- reading -------------------------------------------------------------------------------

    if TYPE_CHECKING:

        @overload
        def get(self, key: Bytes) -> bytes | None: ...
        @overload
        def get(self, key: Bytes, default: T) -> bytes | T: ...

    @abstractmethod
    def get(self, key: Bytes, default: object = None) -> object:
        """Return the value of ``key``, ``default`` if there is none."""

    def __getitem__(self, key: Bytes) -> bytes:
        """Return the value of ``key``; `KeyError` if there is none.

        Raises `CorruptionError` rather than return wrong bytes. Complexity: as `get`.
        """
        value = self.get(key)
        if value is None:
            raise KeyError(to_bytes("key", key))
        return value

    @abstractmethod
    def entry(self, key: Bytes) -> Entry:
        """Return the value of ``key`` with its seq and times; `KeyError` if there is none."""

    def stat(self, key: Bytes) -> EntryStat:
        """Return what is known of the entry of ``key`` besides its value; `KeyError` if there is none."""
        return _stat_of(self.entry(key))

    def scan_stats(
        self,
        prefix: Bytes = b"",
        *,
        start: Bytes | None = None,
        stop: Bytes | None = None,
        include_start: bool = True,
        include_stop: bool = False,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[EntryStat]:
        """Iterate over what `stat` tells of each key that `scan` would iterate over, as of one moment."""
        return self._stats(range_of(prefix, start, stop, include_start, include_stop, reverse), limit_of(limit))

    def _stats(self, range_: Range, limit: int | None) -> Iterator[EntryStat]:
        return self.snapshot()._stats(range_, limit)

    @abstractmethod
    def ttl(self, key: Bytes) -> float | None:
        """Return the seconds that ``key`` has left, None if it does not expire; `KeyError` if it does not exist."""

    @abstractmethod
    def get_many(self, keys: Iterable[Bytes]) -> dict[bytes, bytes]:
        """Return the values of those of ``keys`` that exist, each as of its own moment."""

    def read(self, key: Bytes, offset: int = 0, length: int | None = None) -> bytes:
        """Return ``length`` bytes of a value from ``offset`` on, fewer at its end; `KeyError` if there is no key.

        The whole entry is read and checked. Complexity: O(size of the value).
        """
        key = to_bytes("key", key)
        if offset < 0 or (length is not None and length < 0):
            raise LimitError(f"offset and length must not be negative: {offset}, {length}")
        value = self.get(key)
        if value is None:
            raise KeyError(key)
        return value[offset:] if length is None else value[offset : offset + length]

    def would_wait(self, key: Bytes | None = None, *, write_bytes: int | None = None) -> bool:
        """Tell whether a call would have to wait now, so that an event loop hands it to a thread, and only then.

        ``key``: the call reads the value of this key. ``write_bytes``: the call writes this many bytes of keys and
        values. A store that cannot tell says that it would.
        """
        return True

    # --- writing -------------------------------------------------------------------------------

    @abstractmethod
    def put(
        self,
        key: Bytes,
        value: Bytes,
        *,
        ttl: float | None = None,
        expires: float | None = None,
        if_seq: int | None = None,
    ) -> int:
        """Store ``value`` under ``key`` and return the seq of this write."""

    def __setitem__(self, key: Bytes, value: Bytes) -> None:
        """Store ``value`` under ``key``; as `put`."""
        self.put(key, value)

    @abstractmethod
    def add(self, key: Bytes, value: Bytes, *, ttl: float | None = None) -> bool:
        """Store ``value`` only if ``key`` does not exist; tell whether it was stored."""

    @abstractmethod
    def delete(self, key: Bytes) -> bool:
        """Delete ``key``; tell whether it existed."""

    def __delitem__(self, key: Bytes) -> None:
        """Delete ``key``; `KeyError` if it does not exist."""
        if not self.delete(key):
            raise KeyError(key_of(key))

    def incr(self, key: Bytes, amount: int = 1, *, default: int | None = 0) -> int:
        """Add ``amount`` to the decimal integer stored under ``key``, or to ``default``, and return the sum."""
        key, amount = key_of(key), number_of("amount", amount)
        first = None if default is None else b"%d" % number_of("default", default)
        return int(self.modify(key, lambda value: b"%d" % increased(key, value, amount), first))

    def modify(self, key: Bytes, function: Callable[[bytes], Bytes], default: Bytes | None = None) -> bytes:
        """Store what ``function`` makes of the value of ``key``, in one step, and return it.

        A missing key's value is ``default``; None: `KeyError`. The key keeps its expiry. ``function`` is
        called without any lock, and again if the key was written to meanwhile: it must do nothing but compute. After
        eight such conflicts it is called in a transaction, which other writers wait for. If it raises, nothing
        changes.

        >>> import bytekv, tempfile
        >>> with bytekv.open(tempfile.mkdtemp()) as db:
        ...     db["colours"] = "red"
        ...     db.modify("colours", lambda value: value + b",blue"), db.modify("new", bytes.upper, "a")
        (b'red,blue', b'A')
        """
        key, first = key_of(key), None if default is None else value_of(default)
        for _ in range(_TRIES):
            try:
                found = self.entry(key)
            except KeyError:
                if first is None:
                    raise
                value, seq, expires = first, 0, None
            else:
                value, seq, expires = found.value, found.seq, found.expires
            new = value_of(function(value))
            try:
                self.put(key, new, expires=expires, if_seq=seq)
            except ConflictError:
                continue
            return new
        with self.transaction() as tx:
            return tx.modify(key, function, first)

    @abstractmethod
    def expire(self, key: Bytes, ttl: float) -> bool:
        """Expire ``key`` after ``ttl`` seconds from now; False if it does not exist."""

    @abstractmethod
    def persist(self, key: Bytes) -> bool:
        """Take away the expiry of ``key``; False if it has none or does not exist."""

    if TYPE_CHECKING:

        @overload
        def pop(self, key: Bytes) -> bytes: ...
        @overload
        def pop(self, key: Bytes, default: T) -> bytes | T: ...

    @abstractmethod
    def pop(self, key: Bytes, default: object = None) -> object:
        """Delete ``key`` and return its value, in one step; ``default`` or `KeyError` if it does not exist."""

    def popitem(self, last: bool = True) -> tuple[bytes, bytes]:
        """Delete the last key in order, the first unless ``last``, and return it with its value, in one step.

        Raises `KeyError` if there is none. A store whose keys grow is a queue with ``last=False``, a stack without.

        >>> import bytekv, tempfile
        >>> with bytekv.open(tempfile.mkdtemp()) as db:
        ...     db.update({"1": "first", "2": "second", "3": "third"})
        ...     db.popitem(last=False), db.popitem()
        ((b'1', b'first'), (b'3', b'third'))
        """
        while True:
            key = self._end_key(reverse=last)
            value = None if key is None else self.pop(key, None)
            if key is not None and value is not None:
                return key, value
            if not len(self):
                raise KeyError("popitem(): the store is empty")

    def _end_key(self, *, reverse: bool) -> bytes | None:
        """Return the first key, the last if ``reverse``, which may have gone by now; None if there is none."""
        return next(self.scan_keys(reverse=reverse, limit=1), None)

    @abstractmethod
    def setdefault(self, key: Bytes, default: Bytes | None = None) -> bytes:
        """Return the value of ``key``; if it does not exist, store ``default`` first, in one step."""

    def update(  # type: ignore[override]
        self, other: Any = (), /, *, ttl: float | None = None, **more: Bytes
    ) -> None:
        """Store all pairs of a mapping or an iterable, and keyword arguments, as one atomic batch.

        ``ttl``: seconds after which these keys are gone; None: they stay. A key of that name goes in a mapping.

        Raises `LimitError` above 1 GiB; nothing has happened then. Complexity: O(n), about 0.8 µs a pair, and
        memory for all of it.
        """
        batch = self.batch()
        if isinstance(other, (dict, Mapping)):  # the first is found at once
            pairs: Iterable[tuple[Any, Any]] = other.items()
        elif hasattr(other, "keys"):
            pairs = ((key, other[key]) for key in other.keys())  # noqa: SIM118 - the protocol of dict.update
        else:
            pairs = other
        batch.put_all(pairs, ttl=ttl)
        if more:
            batch.put_all(more.items(), ttl=ttl)
        batch.commit()

    def __ior__(self, other: Any) -> Self:  # type: ignore[misc,override]
        self.update(other)
        return self

    @abstractmethod
    def clear(self) -> None:
        """Delete every key as one operation."""

    def _walker(self) -> Callable[[Range, int | None], Iterator[bytes]]:
        return self.snapshot()._walk

    def _delete_in(self, range_: Range) -> int:
        deleted = 0
        while True:
            with self.transaction() as tx:
                keys = list(tx._walk(range_, None))
                count = fitting(keys)
                for key in keys[:count]:
                    tx.delete(key)
            deleted += count
            if count == len(keys):
                return deleted

    @abstractmethod
    def batch(self) -> Batch:
        """Return a batch: writes that become visible and durable together. See `Batch`."""

    @abstractmethod
    def transaction(self) -> Transaction:
        """Return a transaction: reads and writes that no other writer comes between. See `Transaction`."""

    # --- one moment, and what came after it ----------------------------------------------------

    @abstractmethod
    def snapshot(self) -> Snapshot:
        """Return the store as it is now, for reading, whatever is written later. See `Snapshot`."""

    @abstractmethod
    def changes(self, since_seq: int = 0) -> Iterator[Change]:
        """Iterate over the operations above ``since_seq`` in their order, up to those of the moment of the call."""

    # --- durability and space ------------------------------------------------------------------

    @abstractmethod
    def sync(self) -> None:
        """Make everything written so far durable."""

    @abstractmethod
    def refresh(self) -> bool:
        """Catch up with the writer, if the store was opened for reading; tell whether there was anything new."""

    @abstractmethod
    def compact(self, *, progress: Callable[[Progress], object] | None = None) -> Compaction:
        """Rewrite what lives and give everything else back, now."""

    @abstractmethod
    def verify(self, *, progress: Callable[[Progress], object] | None = None) -> Report:
        """Read every byte of the store and check it; change nothing."""

    @abstractmethod
    def backup(self, dest: str | PathLike, *, progress: Callable[[Progress], object] | None = None) -> BackupReport:
        """Copy the store as it is now into the directory ``dest``, while others go on reading and writing."""

    @abstractmethod
    def stats(self) -> Stats:
        """Return counts of keys and bytes."""

    # --- lifecycle -----------------------------------------------------------------------------

    @property
    @abstractmethod
    def path(self) -> str:
        """Return where the store is."""

    @property
    @abstractmethod
    def readonly(self) -> bool:
        """Tell whether the store was opened for reading only."""

    @property
    @abstractmethod
    def closed(self) -> bool:
        """Tell whether `close` has been called."""

    @property
    @abstractmethod
    def failure(self) -> BaseException | None:
        """Return the failure since which writes are refused, None if they are not for that reason."""

    @property
    @abstractmethod
    def last_seq(self) -> int:
        """Return the sequence number of the newest visible operation."""

    @property
    @abstractmethod
    def durable_seq(self) -> int:
        """Return the sequence number up to which every operation survives a power cut."""

    @abstractmethod
    def close(self) -> None:
        """Make everything durable and release what the store holds; again does nothing."""

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _stat_of(entry: Entry) -> EntryStat:
    return EntryStat(entry.key, len(entry.value), entry.seq, entry.modified, entry.expires)
