"""Transactions: reads and writes that no other writer comes between.

A transaction holds the store's gate: other writers wait, readers do not notice. What it writes stays in
memory until the block ends, and is carried out as one batch; no lock is held while user code runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

from .._lean import TYPE_CHECKING
from ..errors import BytekvError
from .batch import Writes
from .convert import (
    NEVER,
    Bytes,
    Expiry,
    expiry_of,
    increased,
    key_of,
    number_of,
    pair_of,
    to_bytes,
    ttl_to_ms,
    value_of,
)
from .ordered import EVERYTHING, MutableOrderedMapping, Range
from .overlay import ABSENT, Overlay

if TYPE_CHECKING:
    from typing import Any, TypeVar, overload

    from .overlay import Below

    T = TypeVar("T")

__all__ = ["Transaction"]


class Transaction(Overlay, MutableOrderedMapping):
    """A mapping that sees its own writes, while no other writer changes anything; made by `Store.transaction`.

    At the end of the ``with`` block all writes become visible and durable together; after an exception
    none does. A scan or an iteration shows what the transaction saw at the moment of the call, whatever it
    writes meanwhile. It belongs to one thread. Writing to the store itself inside the block is an error.

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

    _instead = "it belongs to the thread that began it"

    def __init__(
        self,
        store: Below,
        begin: Callable[[Transaction], None],
        end: Callable[[Transaction, Writes | None], int | None],
    ) -> None:
        super().__init__(store)
        self._begin, self._end = begin, end
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
            # The gate may be shut by now, and no __exit__ follows that would open it.
            self.has_given_up = True  # opening the gate takes memory, this does not
            self._end(self, None)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # All of it is in the try: an exception that strikes here must not leave the gate shut.
        try:
            self._thread = 0
            if self._undo is not None:
                self._take_back()
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
        if self._undo is not None:
            self._take_back()

    def put(self, key: Bytes, value: Bytes, *, ttl: float | None = None, expires: float | None = None) -> None:
        """Store ``value`` under ``key``; ``ttl`` counts from the commit on."""
        self._check()
        key, value = key_of(key), value_of(value)
        self._write(key, value if ttl is None and expires is None else (value, expiry_of(ttl, expires)))

    def __setitem__(self, key: Bytes, value: Bytes) -> None:
        """Store ``value`` under ``key``; as `put`."""
        self.put(key, value)

    def _find(self, key: bytes) -> tuple[bytes, Expiry] | None:
        """Return the value of a key and when it expires."""
        write = self._written(key)
        if write is ABSENT:
            try:
                entry = self._store.entry(key)
            except KeyError:
                return None
            return entry.value, expiry_of(None, entry.expires)
        return write if write is None or isinstance(write, tuple) else (write, NEVER)

    def add(self, key: Bytes, value: Bytes, *, ttl: float | None = None) -> bool:
        """Store ``value`` only if ``key`` does not exist; tell whether it was stored."""
        key, value = pair_of(key, value)
        expiry_of(ttl, None)
        if key in self:
            return False
        self.put(key, value, ttl=ttl)
        return True

    def incr(self, key: Bytes, amount: int = 1, *, default: int | None = 0) -> int:
        """Add ``amount`` to the decimal integer stored under ``key`` and return the sum; as `Store.incr`."""
        key, amount = key_of(key), number_of("amount", amount)
        first = None if default is None else b"%d" % number_of("default", default)
        return int(self.modify(key, lambda value: b"%d" % increased(key, value, amount), first))

    def modify(self, key: Bytes, function: Callable[[bytes], Bytes], default: Bytes | None = None) -> bytes:
        """Store what ``function`` makes of the value of ``key``, and return it; ``function`` is called once.

        A missing key's value is ``default``; None: `KeyError`. The key keeps its expiry.
        """
        key, first = key_of(key), None if default is None else value_of(default)
        found = self._find(key)
        if found is None:
            if first is None:
                raise KeyError(key)
            found = first, NEVER
        value, expiry = found
        new = value_of(function(value))
        self._check()
        self._write(key, new if expiry == NEVER else (new, expiry))
        return new

    def expire(self, key: Bytes, ttl: float) -> bool:
        """Let ``key`` be gone ``ttl`` seconds from the commit on; False if it does not exist."""
        key, expiry = key_of(key), Expiry(ttl_to_ms(ttl), 0)
        found = self._find(key)
        if found is not None:
            self._write(key, (found[0], expiry))
        return found is not None

    def persist(self, key: Bytes) -> bool:
        """Take away the expiry of ``key``; False if it has none or does not exist."""
        key = key_of(key)
        found = self._find(key)
        if found is None or found[1] == NEVER:
            return False
        self._write(key, found[0])
        return True

    def delete(self, key: Bytes) -> bool:
        """Delete ``key``; tell whether it existed."""
        if key not in self:
            return False
        self._write(to_bytes("key", key), None)
        return True

    def __delitem__(self, key: Bytes) -> None:
        """Delete ``key``; `KeyError` if it does not exist."""
        if not self.delete(key):
            raise KeyError(to_bytes("key", key))

    def _delete_in(self, range_: Range) -> int:
        keys = list(self._walk(range_, None))
        for key in keys:
            self._write(key, None)
        return len(keys)

    def popitem(self, last: bool = True) -> tuple[bytes, bytes]:
        """Delete the last key in order, the first unless ``last``, and return it with its value.

        Raises `KeyError` if there is none.
        """
        for key, value in self.scan(reverse=last, limit=1):
            self._write(key, None)
            return key, value
        raise KeyError("popitem(): the transaction sees no key")

    def __ior__(self, other: Any) -> Transaction:  # type: ignore[misc,override]
        self.update(other)
        return self

    def clear(self) -> None:
        """Delete every key. Complexity: O(n), a delete for each key."""
        self._delete_in(EVERYTHING)

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
