"""Reads and writes that no other writer comes between.

A transaction holds the store's gate: other writers wait, readers do not notice. What it writes stays in
memory until the block ends, and is carried out as one batch; no lock is held while user code runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, MutableMapping
from heapq import merge
from types import TracebackType

from .batch import Writes
from .errors import BytekvError
from .mapping import Bytes, OrderedMapping, Range, expiry_of, key_of, to_bytes, value_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol, TypeVar, overload

    T = TypeVar("T")

    class Host(Protocol):
        """What a transaction needs of its store."""

        def get(self, key: Bytes) -> bytes | None: ...

        def _walk(self, range_: Range, limit: int | None) -> Iterator[bytes]: ...


__all__ = ["Transaction"]


class Transaction(OrderedMapping, MutableMapping[bytes, bytes]):
    """A mapping that sees its own writes, while no other writer changes anything; made by `Store.transaction`.

    At the end of the ``with`` block all writes become visible and durable together; after an exception
    none does. It belongs to one thread. Writing to the store itself inside the block is an error.

    >>> import bytekv, tempfile
    >>> with bytekv.open(tempfile.mkdtemp()) as db:
    ...     db["from"], db["to"] = "90", "110"
    ...     with db.transaction() as tx:
    ...         amount = int(tx["from"])
    ...         tx["from"] = "0"
    ...         tx["to"] = str(int(tx["to"]) + amount)
    ...     dict(db)
    {b'from': b'0', b'to': b'200'}
    """

    def __init__(
        self, store: Host, begin: Callable[[Transaction], None], end: Callable[[Transaction, Writes | None], int | None]
    ) -> None:
        self._store, self._begin, self._end = store, begin, end
        self._writes: Writes = {}
        self._thread: int | None = None
        self.has_given_up = False  # its gate is open, even if there was no memory to open it
        #: seq of the last operation once committed; None before, or if there was nothing to do.
        self.seq: int | None = None

    def __enter__(self) -> Transaction:
        if self._thread is not None:
            raise BytekvError("a transaction is entered once; begin a new one")
        self._thread = threading.get_ident()
        try:
            self._begin(self)
            return self
        except BaseException:
            # Struck behind the gate, and no __exit__ follows that would open it.
            self.has_given_up = True  # opening the gate takes memory, this does not
            self._end(self, None)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # In the try from the first instruction on: whatever strikes in here must not leave the gate shut.
        try:
            self._thread = 0
            self.seq = self._end(self, self._writes if kind is None else None)
        except BaseException:
            self.has_given_up = True
            self._end(self, None)
            raise

    def _check(self) -> None:
        if self._thread != threading.get_ident():
            raise BytekvError(
                "this transaction is over, or was not entered with 'with'"
                if not self._thread
                else "a transaction belongs to the thread that began it"
            )

    def __getitem__(self, key: Bytes) -> bytes:
        """Return the value of ``key`` as this transaction sees it; `KeyError` if there is none."""
        self._check()
        key = to_bytes("key", key)
        if key in self._writes:
            write = self._writes[key]
            value = write[0] if isinstance(write, tuple) else write
        else:
            value = self._store.get(key)
        if value is None:
            raise KeyError(key)
        return value

    def put(self, key: Bytes, value: Bytes, *, ttl: float | None = None, expires: float | None = None) -> None:
        """Store ``value`` under ``key``; ``ttl`` counts from the commit on."""
        self._check()
        key, value = key_of(key), value_of(value)
        self._writes.pop(key, None)
        self._writes[key] = value if ttl is None and expires is None else (value, expiry_of(ttl, expires))

    def __setitem__(self, key: Bytes, value: Bytes) -> None:
        """Store ``value`` under ``key``; as `put`."""
        self.put(key, value)

    def __delitem__(self, key: Bytes) -> None:
        """Delete ``key``; `KeyError` if it does not exist."""
        self[key]  # raises if it is not there
        key = to_bytes("key", key)
        self._writes.pop(key, None)
        self._writes[key] = None

    if TYPE_CHECKING:  # inherited ones, which take keys and values as `put` does

        @overload
        def pop(self, key: Bytes) -> bytes: ...
        @overload
        def pop(self, key: Bytes, default: T) -> bytes | T: ...
        def pop(self, key: Bytes, default: object = None) -> object:
            """Delete ``key`` and return its value; ``default`` or `KeyError` if it does not exist."""

        def setdefault(self, key: Bytes, default: Bytes) -> bytes:
            """Return the value of ``key``; if it does not exist, store ``default`` first."""

        def update(self, other: Any = (), /, **more: Bytes) -> None:
            """Store all pairs of a mapping or an iterable, and keyword arguments."""

    def __len__(self) -> int:
        """Return the number of keys. Complexity: O(n)."""
        return sum(1 for _ in self)

    def _walk(self, range_: Range, limit: int | None) -> Iterator[bytes]:
        return (key for key, _ in self._pairs(range_, limit))

    def _pairs(self, range_: Range, limit: int | None) -> Iterator[tuple[bytes, bytes]]:
        self._check()
        own = sorted(filter(range_.holds, self._writes), reverse=range_.reverse)
        theirs = (key for key in self._store._walk(range_, None) if key not in self._writes)
        return self._merge(merge(own, theirs, reverse=range_.reverse), limit)

    def _merge(self, keys: Iterator[bytes], limit: int | None) -> Iterator[tuple[bytes, bytes]]:
        if limit == 0:
            return
        count = 0
        for key in keys:
            value = self.get(key)
            if value is not None:
                yield key, value
                count += 1
                if count == limit:
                    return
