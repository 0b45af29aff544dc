"""Snapshot: a store as it was at one moment, for reading.

What was where at that moment, and how it is read, is the store's secret: a snapshot hands back the view that it was
made with, and closes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType

from .._lean import TYPE_CHECKING
from ..errors import StoreClosedError
from .convert import Bytes, Entry, EntryStat, limit_of, to_bytes
from .ordered import OrderedMapping, Range, range_of

if TYPE_CHECKING:
    from typing import Any, Protocol

    Pieces = Iterator[tuple[list[tuple[bytes, bytes]], dict[bytes, float]]]

    class MomentReader(Protocol):
        """What a snapshot needs of its store; a view is one moment, whatever the store uses for that, with its seq."""

        def entry_in(self, view: Any, key: bytes, /) -> Entry | None: ...

        def value_in(self, view: Any, key: bytes, /) -> bytes | None: ...

        def values_in(self, view: Any, keys: list[bytes], /) -> dict[bytes, bytes]: ...

        def stat_in(self, view: Any, key: bytes, /) -> EntryStat | None: ...

        def stats_in(self, view: Any, range_: Range, limit: int | None, /) -> Iterator[EntryStat]: ...

        def count_in(self, view: Any, range_: Range | None = None, /) -> int: ...

        def now_ms(self) -> int: ...

        def walk_in(self, view: Any, range_: Range, limit: int | None, /) -> Iterator[bytes]: ...

        def pairs_in(self, view: Any, range_: Range, limit: int | None, /) -> Iterator[tuple[bytes, bytes]]: ...

        def rows_in(self, view: Any, range_: Range, /) -> Pieces: ...

        def close_view(self, view: Any, /) -> None: ...


__all__ = ["Snapshot"]


class Snapshot(OrderedMapping):
    """A read-only mapping of what a store held at one seq; made by `Store.snapshot`.

    Later writes and compactions do not change it; a key that expires goes here, too. Close it, or use
    it in a ``with`` block: until then it keeps, in memory, a location for each key that is changed meanwhile,
    and the files in which these lie. Not to be used after the store was closed.

    >>> import bytekv, tempfile
    >>> with bytekv.open(tempfile.mkdtemp()) as db:
    ...     db["a"] = "old"
    ...     with db.snapshot() as snap:
    ...         db["a"] = "new"
    ...         snap["a"], db["a"]
    (b'old', b'new')
    """

    _instead = "threads may share the object itself, dict(snapshot) holds the same"

    def __init__(self, reader: MomentReader, view: Any) -> None:
        self._reader = reader
        self._view = view  # None once closed
        #: The sequence number of the newest operation that this snapshot shows.
        self.seq: int = view.seq

    def _open_view(self) -> Any:
        if self._view is None:
            raise StoreClosedError("this snapshot was closed")
        return self._view

    def __getitem__(self, key: Bytes) -> bytes:
        """Return the value that ``key`` had; `KeyError` if it did not exist. Complexity: O(1)."""
        key = to_bytes("key", key)
        value = self._reader.value_in(self._open_view(), key)
        if value is None:
            raise KeyError(key)
        return value

    def entry(self, key: Bytes) -> Entry:
        """Return the value that ``key`` had with its seq and times; `KeyError` if it did not exist. Complexity: O(1).

        >>> import bytekv, tempfile
        >>> with bytekv.open(tempfile.mkdtemp()) as db:
        ...     seq = db.put("a", "old")
        ...     with db.snapshot() as snap:
        ...         db["a"] = "new"
        ...         snap.entry("a").seq == seq
        True
        """
        key = to_bytes("key", key)
        entry = self._reader.entry_in(self._open_view(), key)
        if entry is None:
            raise KeyError(key)
        return entry

    def stat(self, key: Bytes) -> EntryStat:
        """Return what was known of the entry of ``key`` besides its value; as `Store.stat`."""
        key = to_bytes("key", key)
        found = self._reader.stat_in(self._open_view(), key)
        if found is None:
            raise KeyError(key)
        return found

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
        """Iterate over what `stat` tells of each key that `scan` would iterate over."""
        return self._stats(range_of(prefix, start, stop, include_start, include_stop, reverse), limit_of(limit))

    def _stats(self, range_: Range, limit: int | None) -> Iterator[EntryStat]:
        return self._reader.stats_in(self._open_view(), range_, limit)

    def ttl(self, key: Bytes) -> float | None:
        """Return the seconds that ``key`` has left now, None if it does not expire; `KeyError` if it did not exist."""
        expires = self.stat(key).expires
        return None if expires is None else max(0, round(expires * 1000) - self._reader.now_ms()) / 1000

    def get_many(self, keys: Iterable[Bytes]) -> dict[bytes, bytes]:
        """Return the values of those of ``keys`` that existed. Complexity: O(number of keys), about 0.8 µs each."""
        wanted = [to_bytes("key", key) for key in keys]
        return self._reader.values_in(self._open_view(), wanted)

    def __contains__(self, key: object) -> bool:
        """Tell whether ``key`` existed. Complexity: O(1), one read."""
        return self._reader.value_in(self._open_view(), to_bytes("key", key)) is not None

    def __len__(self) -> int:
        """Return the number of keys. Complexity: O(number of keys with an expiry changed since)."""
        return self._reader.count_in(self._open_view())

    def _count(self, range_: Range) -> int:
        return self._reader.count_in(self._open_view(), range_)

    def _walk(self, range_: Range, limit: int | None) -> Iterator[bytes]:
        return self._reader.walk_in(self._open_view(), range_, limit)

    def _pairs(self, range_: Range, limit: int | None) -> Iterator[tuple[bytes, bytes]]:
        return self._reader.pairs_in(self._open_view(), range_, limit)

    def _rows(self, prefix: Bytes = b"") -> Pieces:
        """Yield (key, value) in order, in pieces of about a megabyte, each with the expiries of its keys that have one.

        Complexity: as that of `scan`.
        """
        return self._reader.rows_in(self._open_view(), range_of(prefix, None, None, True, False, False))

    def close(self) -> None:
        """Release the moment; again does nothing."""
        view, self._view = self._view, None
        if view is not None:
            self._reader.close_view(view)

    def __enter__(self) -> Snapshot:
        self._open_view()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<bytekv.Snapshot at seq {self.seq}{', closed' if self._view is None else ''}>"
