"""Batch: several writes that become visible and durable together, or not at all.

A batch is filled without any lock and without touching the store; the last write to a key counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import TracebackType

from .._lean import TYPE_CHECKING
from ..errors import BytekvError
from .convert import MAX_KEY_SIZE, MAX_VALUE_SIZE, Bytes, Expiry, check_sizes, expiry_of, key_of, value_of
from .ordered import Handle, refusing

__all__ = ["Batch", "Write", "Writes"]

#: What happens to a key: it gets a value, perhaps with an expiry, or None: it is deleted.
Write = bytes | tuple[bytes, Expiry] | None
Writes = dict[bytes, Write]


class Batch(Handle):
    """Collect puts and deletes; on leaving the ``with`` block they are carried out as one change.

    An exception inside the block discards it. Not for use by several threads at once.

    >>> import bytekv, tempfile
    >>> with bytekv.open(tempfile.mkdtemp()) as db:
    ...     with db.batch() as batch:
    ...         batch["from"] = "90"
    ...         batch["to"] = "110"
    ...     dict(db)
    {b'from': b'90', b'to': b'110'}
    """

    _instead = "make another with Store.batch()"

    def __init__(self, commit: Callable[[Writes], int | None]) -> None:
        self._commit = commit
        self._writes: Writes = {}
        self._moving: tuple[bytes, Write] | None = None  # a key that is being written again, and its write before
        self._done = False
        #: seq of the last operation once committed; None before, or if there was nothing to do.
        self.seq: int | None = None

    def put(self, key: Bytes, value: Bytes, *, ttl: float | None = None, expires: float | None = None) -> None:
        """Store ``value`` under ``key`` when the batch is committed; ``ttl`` counts from then on."""
        self._check_open()
        if type(key) is not bytes or type(value) is not bytes:
            key, value = key_of(key), value_of(value)
        elif len(key) > MAX_KEY_SIZE or len(value) > MAX_VALUE_SIZE:
            check_sizes(key, value)
        write = value if ttl is None and expires is None else (value, expiry_of(ttl, expires))
        if key in self._writes:
            self._write(key, write)
        else:
            self._writes[key] = write

    def put_all(
        self, pairs: Iterable[tuple[Bytes, Bytes]], *, ttl: float | None = None, expires: float | None = None
    ) -> None:
        """Store all of these when the batch is committed: the same as a `put` of each, in half the time.

        ``ttl`` and ``expires``: as for `put`, for all of them.
        """
        self._check_open()
        writes = self._writes
        expiry = None if ttl is None and expires is None else expiry_of(ttl, expires)
        for key, value in pairs:
            if type(key) is not bytes or type(value) is not bytes:
                key, value = key_of(key), value_of(value)
            elif len(key) > MAX_KEY_SIZE or len(value) > MAX_VALUE_SIZE:
                check_sizes(key, value)
            if key in writes:
                self._write(key, value if expiry is None else (value, expiry))
            elif expiry is None:
                writes[key] = value
            else:
                writes[key] = value, expiry

    def delete(self, key: Bytes) -> None:
        """Delete ``key`` when the batch is committed; no error if it is not there then."""
        self._check_open()
        self._write(key_of(key), None)

    def _write(self, key: bytes, write: Write) -> None:
        writes = self._writes
        if key in writes:  # it takes its place at the end
            self._moving = key, writes[key]
            del writes[key]
            writes[key] = write
            self._moving = None
        else:
            writes[key] = write

    def _put_back(self) -> None:
        """Put back what was taken out to be written again, if an exception has struck in between."""
        if self._moving is not None:
            key, write = self._moving
            self._writes.setdefault(key, write)
            self._moving = None

    __setitem__ = put

    def __delitem__(self, key: Bytes) -> None:
        self.delete(key)

    def __ior__(self, pairs: Mapping[Bytes, Bytes] | Iterable[tuple[Bytes, Bytes]]) -> Batch:
        """Store all pairs of a mapping or an iterable when the batch is committed."""
        self.put_all(pairs.items() if isinstance(pairs, Mapping) else pairs)
        return self

    if not TYPE_CHECKING:
        __iand__, __isub__, __ixor__ = refusing("&="), refusing("-="), refusing("^=")

    def __len__(self) -> int:
        self._put_back()
        return len(self._writes)

    def commit(self) -> int | None:
        """Carry out the batch; return the seq of its last operation, None if nothing changed.

        Raises `LimitError` above 1 GiB and `DiskFullError`; nothing has happened then.
        Durability: as a single put in the store's sync mode, for all or none of it.
        Complexity: O(n), one write and, with ``sync="always"``, one sync.
        """
        self._check_open()
        self._done = True
        self.seq = self._commit(self._writes)
        return self.seq

    def _check_open(self) -> None:
        if self._done:
            raise BytekvError("this batch was committed or discarded already; begin a new one")
        if self._moving is not None:
            self._put_back()

    def __enter__(self) -> Batch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and not self._done:
            self.commit()
        self._done = True
