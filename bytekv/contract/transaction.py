"""Transactions: reads and writes that no other writer comes between.

A transaction holds the store's gate: other writers wait, readers do not notice. What it writes stays in
memory until the block ends, and is carried out as one batch; no lock is held while user code runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, MutableMapping
from types import TracebackType

from .._lean import TYPE_CHECKING
from ..errors import BytekvError
from .batch import Writes
from .convert import Bytes, expiry_of, key_of, to_bytes, value_of
from .overlay import Overlay

if TYPE_CHECKING:
    from typing import Any, TypeVar, overload

    from .overlay import Below

    T = TypeVar("T")

__all__ = ["Transaction"]


class Transaction(Overlay, MutableMapping[bytes, bytes]):
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

    def __delitem__(self, key: Bytes) -> None:
        """Delete ``key``; `KeyError` if it does not exist."""
        if key not in self:
            raise KeyError(to_bytes("key", key))
        self._write(key_of(key), None)

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
        for key in list(self):
            self._write(key, None)

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
