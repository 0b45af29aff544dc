"""Reads and writes that no other writer comes between.

A transaction holds the store's gate: other writers wait, readers do not notice. What it writes stays in
memory until the block ends, and is carried out as one batch; no lock is held while user code runs.

*Iteration.* A walk shows the moment of its call. The store's keys cannot change meanwhile; of its own writes a
transaction notes in every open walk what a key was before. Keys come from three sorted places, a chunk at a time:
the store, less what has been written here, what has been written here, and what is noted. A loop that takes the
first key and deletes it meets a growing run of deleted keys in the store; where such a run ends is remembered, so
that it is passed in one step.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, MutableMapping
from itertools import count, islice
from types import TracebackType

from ..errors import BytekvError
from .batch import Writes
from .convert import Bytes, Expiry, expiry_of, key_of, to_bytes, value_of
from .ordered import OrderedMapping, Range, sorted_list

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final, Protocol, TypeVar, overload

    T = TypeVar("T")
    Write = bytes | tuple[bytes, Expiry] | None

    class Host(Protocol):
        """What a transaction needs of its store."""

        def get(self, key: Bytes) -> bytes | None: ...

        def ttl(self, key: Bytes) -> float | None: ...

        def __contains__(self, key: object) -> bool: ...

        def __len__(self) -> int: ...

        def _walk(self, range_: Range, limit: int | None) -> Iterator[bytes]: ...


__all__ = ["Transaction"]

_FIRST_CHUNK: Final = 64
_LAST_CHUNK: Final = 1024
_LONG_RUN: Final = 64  # of written keys: passing over fewer is cheaper than beginning anew behind them

_ABSENT: Final[Any] = object()


class _Walk:
    """What an open walk has to know of the moment of its call: what the keys were that have been written since."""

    __slots__ = ("__weakref__", "undo", "vanished")

    def __init__(self) -> None:
        self.undo: dict[bytes, Any] = {}  # key -> its write then, or _ABSENT
        self.vanished: Any = None  # those of them that may have been there

    def note(self, key: bytes, write: Any) -> None:
        """Remember what a key was, unless it has been written since the call before."""
        if key not in self.undo:
            if write is not None:
                if self.vanished is None:
                    self.vanished = sorted_list()
                self.vanished.add(key)
            self.undo[key] = write


class Transaction(OrderedMapping, MutableMapping[bytes, bytes]):
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
        self, store: Host, begin: Callable[[Transaction], None], end: Callable[[Transaction, Writes | None], int | None]
    ) -> None:
        self._store, self._begin, self._end = store, begin, end
        self._writes: Writes = {}
        self._puts = 0  # of them
        self._uncounted: list[bytes] = []  # keys that were written for the first time since `__len__` looked at them
        self._replaced = 0  # keys of the store among the others that do not expire
        self._mortal: list[bytes] = []  # and those that do
        self._own: Any = None  # keys that were put; None: nobody has asked for their order
        self._walks: dict[int, weakref.ref[_Walk]] = {}
        self._walk_numbers = count()
        #: By direction: a key of the store -> the last of the run of written ones that it is in, as far as is known.
        self._runs: dict[bool, dict[bytes, bytes]] = {False: {}, True: {}}
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

    def __contains__(self, key: object) -> bool:
        """Tell whether ``key`` exists as this transaction sees it; reads no file. Complexity: O(1)."""
        self._check()
        key = to_bytes("key", key)
        return self._writes[key] is not None if key in self._writes else key in self._store

    def put(self, key: Bytes, value: Bytes, *, ttl: float | None = None, expires: float | None = None) -> None:
        """Store ``value`` under ``key``; ``ttl`` counts from the commit on."""
        self._check()
        key, value = key_of(key), value_of(value)
        self._write(key, value if ttl is None and expires is None else (value, expiry_of(ttl, expires)))

    def _write(self, key: bytes, write: Write) -> None:
        writes = self._writes
        old = writes.get(key, _ABSENT)
        if self._walks:
            for reference in list(self._walks.values()):
                walk = reference()
                if walk is not None:
                    walk.note(key, old)
        if self._own is not None and (write is None) is not (old is None or old is _ABSENT):
            (self._own.discard if write is None else self._own.add)(key)
        if old is _ABSENT:
            self._uncounted.append(key)
        else:
            del writes[key]  # so that it takes its place at the end
        writes[key] = write
        self._puts += (write is not None) - (old is not None and old is not _ABSENT)

    def __setitem__(self, key: Bytes, value: Bytes) -> None:
        """Store ``value`` under ``key``; as `put`."""
        self.put(key, value)

    def __delitem__(self, key: Bytes) -> None:
        """Delete ``key``; `KeyError` if it does not exist."""
        if key not in self:
            raise KeyError(to_bytes("key", key))
        self._write(key_of(key), None)

    def popitem(self) -> tuple[bytes, bytes]:
        """Delete the last key in order and return it with its value; `KeyError` if there is none."""
        for key, value in self.scan(reverse=True, limit=1):
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

    def __len__(self) -> int:
        """Return the number of keys. Complexity: O(1), plus O(1) for each key that was written, once, and O(number of
        written keys that have an expiry in the store)."""
        self._check()
        store = self._store
        while self._uncounted:
            key = self._uncounted[-1]
            if key in store:
                try:
                    is_mortal = store.ttl(key) is not None
                except KeyError:  # it has just expired
                    is_mortal = True
                if is_mortal:
                    self._mortal.append(key)
                else:
                    self._replaced += 1
            self._uncounted.pop()
        return len(store) - self._replaced - sum(key in store for key in self._mortal) + self._puts

    def _walk(self, range_: Range, limit: int | None) -> Iterator[bytes]:
        return (key for key, _ in self._steps(self._begin_walk(), range_, limit, self._exists))

    def _pairs(self, range_: Range, limit: int | None) -> Iterator[tuple[bytes, bytes]]:
        return self._steps(self._begin_walk(), range_, limit, self._store.get)

    def _exists(self, key: bytes) -> bytes | None:
        return b"" if key in self._store else None

    def _begin_walk(self) -> _Walk:
        self._check()
        walk, number, walks = _Walk(), next(self._walk_numbers), self._walks
        walks[number] = weakref.ref(walk, lambda _: walks.pop(number, None))
        return walk

    def _steps(
        self, walk: _Walk, range_: Range, limit: int | None, find: Callable[[bytes], bytes | None]
    ) -> Iterator[tuple[bytes, bytes]]:
        """Walk through a range as it was when ``walk`` began; ``find`` looks a key up in the store."""
        undo, writes, chunk = walk.undo, self._writes, _FIRST_CHUNK
        while not range_.is_empty and limit != 0:
            wanted = chunk if limit is None else min(chunk, limit)
            keys = self._select(walk, range_, wanted)
            for key in keys:
                self._check()
                write = undo.get(key, _ABSENT) if key in undo else writes.get(key, _ABSENT)
                value = find(key) if write is _ABSENT else write[0] if isinstance(write, tuple) else write
                if value is not None:
                    yield key, value
                    if limit is not None:
                        limit -= 1
            if len(keys) < wanted:
                return
            range_ = range_.after(keys[-1])
            chunk = min(4 * chunk, _LAST_CHUNK)

    def _select(self, walk: _Walk, range_: Range, wanted: int) -> list[bytes]:
        """Return the first keys of a range that may have been there when ``walk`` began."""
        self._check()
        writes = self._writes
        found = list(islice(self._others(range_), wanted))
        if not writes:
            return found
        if self._own is None:
            own = sorted_list()
            own.update(key for key, write in writes.items() if write is not None)
            self._own = own
        for keys in filter(None, (self._own, walk.vanished)):
            bounds = range_.include_start, range_.include_stop
            found += islice(keys.irange(range_.start, range_.stop, bounds, range_.reverse), wanted)
        return sorted(set(found), reverse=range_.reverse)[:wanted]

    def _others(self, range_: Range) -> Iterator[bytes]:
        """Walk through the keys of the store that have not been written here."""
        writes, runs = self._writes, self._runs[range_.reverse]
        passed: list[bytes] = []  # of the run of written keys that the walk is in
        behind: bytes | None = None  # the last key of that run
        while not range_.is_empty:
            end = None
            for key in self._store._walk(range_, None):
                if key in writes:
                    passed.append(key)
                    behind = key
                    end = runs.get(key)
                    if end is not None and end != key:
                        behind = end
                        break
                    end = None
                elif passed:
                    self._remember(runs, passed, behind)
                    passed = []
                    yield key
                else:
                    yield key
            if end is None:
                self._remember(runs, passed, behind)
                return
            range_ = range_.after(end)

    def _remember(self, runs: dict[bytes, bytes], passed: list[bytes], behind: bytes | None) -> None:
        if behind is not None and (len(passed) >= _LONG_RUN or any(key in runs for key in passed)):
            runs.update(dict.fromkeys(passed, behind))
