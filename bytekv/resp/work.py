"""Units of work: what commands read and write in one transaction.

Commands see a `UnitOfWork`, never the store. It keeps what they write in memory, with times of expiry, and answers
from there first, so that the commands of MULTI see each other's writes; `Executor` decides how many commands
share one unit, and that the unit is one crash-atomic batch of the store. Knows no connection and no bytes of
the protocol but replies.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from threading import Lock
from typing import Any, Final, NamedTuple, NoReturn

from .. import Store, Transaction
from ..contract.convert import MAX_BATCH_SIZE, MAX_KEY_SIZE, Bytes
from ..contract.ordered import Range
from ..contract.overlay import ABSENT, Overlay
from .protocol import Reply, ReplyError

__all__ = ["Block", "Cursors", "Item", "Slow", "StoredValue", "TooLargeError", "UnitOfWork"]

_MAX_REPLY_BYTES: Final = 512 * 1024 * 1024  # of one command, or of a whole block: it answers from memory
_MAX_WRITE_BYTES: Final = MAX_BATCH_SIZE  # of one command; the log takes no more at once
_MAX_BLOCK_WRITE_BYTES: Final = 128 * 1024 * 1024  # of a block: a few short SETRANGE would make gigabytes otherwise
_MAX_MOVED_BYTES: Final = 4 * 1024 * 1024 * 1024  # read and copied by one block, during which others wait
_ITEM_COST: Final = 16  # bytes of an item of a reply, beside its own
_WRITE_COST: Final = 27 + 8  # bytes of an entry with an expiry, beside key and value
_MAX_CURSORS: Final = 10_000
_MAX_CURSOR_BYTES: Final = 16 * 1024 * 1024


class TooLargeError(ReplyError):
    """Raised when a unit of work becomes too large: none of it is carried out."""


class StoredValue(NamedTuple):
    """A value, when it expires in milliseconds since 1970 (0: never), and its seq (-1: not committed)."""

    value: bytes
    expires_ms: int = 0
    seq: int = -1


@dataclass(frozen=True, slots=True)
class Block:
    """The commands between MULTI and EXEC, and the seqs that watched keys had; 0: no entry."""

    commands: list[list[bytes]]
    watched: dict[bytes, int]


Item = list[bytes] | Block


class Slow(NamedTuple):
    """A line of SLOWLOG."""

    number: int
    at: int
    duration_us: int
    arguments: list[bytes]


class Cursors:
    """What the cursors of SCAN mean: after which key to go on.

    A cursor is a number that any connection may use, and more than once, as clients with a pool do. The table
    forgets those that have not been used for longest; one that it has forgotten is an error and never the
    beginning or the end.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._keys: OrderedDict[int, bytes] = OrderedDict()
        self._bytes = 0
        self._last = 0

    def add(self, key: bytes) -> int:
        """Return a cursor for what follows a key."""
        with self._lock:
            self._last += 1
            self._keys[self._last] = key
            self._bytes += len(key)
            self._forget_some()  # a loop here might leave the lock behind: tests/engine/test_locks.py
            return self._last

    def _forget_some(self) -> None:
        while len(self._keys) > _MAX_CURSORS or self._bytes > _MAX_CURSOR_BYTES:
            self._bytes -= len(self._keys.popitem(last=False)[1])

    def key(self, cursor: int) -> bytes | None:
        """Return the key of a cursor, None if the cursor is unknown or forgotten."""
        with self._lock:
            key = self._keys.get(cursor)
            if key is not None:
                self._keys.move_to_end(cursor)
            return key


class _Nothing(dict[bytes, bytes]):
    """What is left of a store once all its keys are deleted."""

    def ttl(self, key: Bytes) -> NoReturn:
        raise KeyError(key)

    entry = ttl

    def _walk(self, range_: Range, limit: int | None) -> Iterator[bytes]:
        return iter(())


class UnitOfWork:
    """Reads and writes of one unit over a store."""

    __slots__ = (
        "_below",
        "_changes",
        "_max_write_bytes",
        "_moved_bytes",
        "_reply_bytes",
        "cursors",
        "now_ms",
        "store",
        "written_bytes",
    )

    def __init__(self, store: Store, cursors: Cursors, *, is_block: bool = False) -> None:
        """Begin a unit for one command, or for a block of commands."""
        self.store = store
        self.cursors = cursors
        self._max_write_bytes = _MAX_BLOCK_WRITE_BYTES if is_block else _MAX_WRITE_BYTES
        self._below: Any = store
        self._changes = Overlay(store)  # each a `StoredValue`, or None
        #: Bytes that what was written will take in the log.
        self.written_bytes = 0
        self.begin_command()

    def begin_command(self) -> None:
        """Look at the clock once for a command, or for all commands of MULTI."""
        #: The store's time, in milliseconds since 1970.
        self.now_ms = self.store._now_ms()
        self._reply_bytes = self._moved_bytes = 0

    # --- reading ---------------------------------------------------------------------------------

    def value(self, key: bytes) -> bytes | None:
        """Return the value of a key, None if there is none."""
        found = self._written(key)
        if found is not ABSENT:
            return None if found is None else found.value
        value: bytes | None = self._below.get(key)
        if value is not None:
            self._count_moved(len(value))
        return value

    def find(self, key: bytes) -> StoredValue | None:
        """Return the value of a key with the time of its expiry, None if there is none."""
        found: StoredValue | None = self._written(key)
        if found is not ABSENT:
            return found
        try:
            entry = self._below.entry(key)
        except KeyError:
            return None
        self._count_moved(len(entry.value))
        return StoredValue(entry.value, 0 if entry.expires is None else round(entry.expires * 1000), entry.seq)

    def exists(self, key: bytes) -> bool:
        """Tell whether a key exists, without reading its value."""
        found = self._written(key)
        return key in self._below if found is ABSENT else found is not None

    def ttl_ms(self, key: bytes) -> int:
        """Return how long a key has left, -1 if for ever, -2 if it does not exist; without reading its value."""
        found = self._written(key)
        if found is not ABSENT:
            return -2 if found is None else found.expires_ms - self.now_ms if found.expires_ms else -1
        try:
            ttl = self._below.ttl(key)
        except KeyError:
            return -2
        return -1 if ttl is None else round(ttl * 1000)

    def seq(self, key: bytes) -> int:
        """Return the seq of a key's entry, 0 if there is none, -1 if it is not what was committed last."""
        if self._changes._written(key) is not ABSENT:
            return -1
        try:
            return int(self._below.entry(key).seq)
        except KeyError:
            return -1 if self._below is not self.store and key in self.store else 0

    def keys(
        self,
        prefix: bytes = b"",
        start: bytes | None = None,
        stop: bytes | None = None,
        *,
        include_start: bool = True,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[bytes]:
        """Iterate over the keys of a range in order, as `Store.scan_keys` does."""
        is_changed = self.written_bytes or self._below is not self.store
        keys = (self._changes if is_changed else self.store).scan_keys(
            prefix, start=start, stop=stop, include_start=include_start, reverse=reverse
        )
        return islice((key for key in keys if self._written(key) is not None) if is_changed else keys, limit)

    def __len__(self) -> int:
        """Return the number of keys. Complexity: O(number of keys written in this unit)."""
        expired = sum(self._written(key) is None for key, write in self._changes._writes.items() if write)
        return len(self._changes) - expired

    def _written(self, key: bytes) -> Any:
        """Return what has been written under a key, None if that has expired, or `ABSENT`."""
        found = self._changes._written(key)
        return None if isinstance(found, StoredValue) and 0 < found.expires_ms <= self.now_ms else found

    def _count_moved(self, size: int) -> None:
        self._moved_bytes += size
        if self._moved_bytes > _MAX_MOVED_BYTES:
            raise TooLargeError(b"ERR more than %d bytes would be read and copied" % _MAX_MOVED_BYTES)

    # --- replies ---------------------------------------------------------------------------------

    def gather(self, items: Iterable[bytes | None]) -> list[Reply]:
        """Return the items of a reply, or raise `TooLargeError` as soon as they are too much for one."""
        left, found = _MAX_REPLY_BYTES - self._reply_bytes, list[Reply]()
        for item in items:
            left -= _ITEM_COST + (0 if item is None else len(item))
            if left < 0:
                raise _too_large_a_reply()
            found.append(item)
        return found

    def count_reply(self, size: int) -> None:
        """Count the bytes of a reply; raise `TooLargeError` if those of the unit are too many."""
        self._reply_bytes += size
        if self._reply_bytes > _MAX_REPLY_BYTES:
            raise _too_large_a_reply()

    # --- writing ---------------------------------------------------------------------------------

    def put(self, key: bytes, value: bytes, expires_ms: int = 0) -> None:
        """Store a value; 0: it does not expire. One that has expired already is deleted."""
        self.check_key(key)
        gone = expires_ms < 0 or 0 < expires_ms <= self.now_ms
        self._write(key, None if gone else StoredValue(value, expires_ms))

    def make_room(self, key: bytes, size: int) -> None:
        """Raise `TooLargeError` if a value of this size, which is still to be made, would be too much for the unit."""
        self.check_key(key)
        self._count_moved(size)
        self._check_room(self._growth(key, size))

    def check_key(self, key: bytes) -> None:
        """Raise `ReplyError` if nothing can be stored under a key."""
        if len(key) > MAX_KEY_SIZE:
            raise ReplyError(b"ERR a key of %d bytes; the limit is %d" % (len(key), MAX_KEY_SIZE))

    def delete(self, key: bytes) -> bool:
        """Delete a key; tell whether it existed."""
        if not self.exists(key):
            return False
        self._write(key, None)
        return True

    def clear(self) -> None:
        """Delete every key."""
        self._below = _Nothing()
        self._changes = Overlay(self._below)
        self.written_bytes = 0

    def _write(self, key: bytes, found: StoredValue | None) -> None:
        growth = self._growth(key, 0 if found is None else len(found.value))
        self._check_room(growth)
        self._changes._write(key, found)  # type: ignore[arg-type]  # an overlay needs the value only, which is first
        self.written_bytes += growth

    def _growth(self, key: bytes, size: int) -> int:
        """Return by how much the unit grows with a value of this size under a key."""
        before: Any = self._changes._written(key)
        if before is ABSENT:
            return _WRITE_COST + len(key) + size
        return size - (0 if before is None else len(before.value))

    def _check_room(self, growth: int) -> None:
        if self.written_bytes + growth > self._max_write_bytes:
            raise TooLargeError(b"ERR more than %d bytes would be written at once" % self._max_write_bytes)

    def commit(self, transaction: Transaction) -> None:
        """Hand over what was written to the transaction of the store in which it was."""
        if self._below is not self.store:
            transaction.clear()
        self._changes._check()
        writes: Any = self._changes._writes
        for key, found in writes.items():
            if found is None:
                with suppress(KeyError):
                    del transaction[key]
            else:
                transaction.put(key, found.value, expires=found.expires_ms / 1000 if found.expires_ms else None)


def _too_large_a_reply() -> TooLargeError:
    return TooLargeError(b"ERR the reply would have more than %d bytes; ask for less at a time" % _MAX_REPLY_BYTES)
