"""Ordered mappings: ranges, scans, and the views of a mapping.

A store, a snapshot and a transaction share these. A subclass says how to walk through a range.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping

from .._lean import TYPE_CHECKING, NamedTuple
from ..errors import LimitError, translated
from .convert import Bytes, limit_of, to_bytes

if TYPE_CHECKING:
    from collections.abc import ItemsView, KeysView, ValuesView
    from typing import Final, NoReturn, SupportsIndex, TypeVar, overload

    from sortedcontainers import SortedList as SortedList

    T = TypeVar("T")

__all__ = [
    "EVERYTHING",
    "Handle",
    "MutableOrderedMapping",
    "OrderedMapping",
    "Range",
    "append_in_order",
    "joined",
    "range_of",
    "refusing",
    "sorted_list",
]

_FIRST_LOOK: Final = 2  # keys that `children` looks at after a seek
_LONGEST_LOOK: Final = 1024


class Handle:
    """An object that owns something open: a copy would be a second owner of the same files and locks."""

    __slots__ = ()

    _instead = ""  # what to do instead of a copy

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(f"a {type(self).__name__.lstrip('_')} cannot be copied or pickled; {self._instead}")


def sorted_list() -> SortedList:
    """Return an empty sorted list; the import takes 3 ms, which a program without an ordered use need not wait for."""
    with translated("sortedcontainers"):  # no descriptor may be left to read the module with
        from sortedcontainers import SortedList
    return SortedList()


def append_in_order(index: SortedList, keys: list[bytes]) -> None:
    """Add keys that are in order to a sorted list of smaller ones.

    By hand, for `add` takes 0.4 µs a key, and `update` sorts all keys again, in one call of C; in the versions whose
    lists are known to be laid out like this.
    """
    from sortedcontainers import __version__

    if not __version__.startswith("2.4."):
        for key in keys:
            index.add(key)
        return
    lists, maxes, load, at = index._lists, index._maxes, index._load, 0
    if lists and len(lists[-1]) < load:
        at = load - len(lists[-1])
        lists[-1] += keys[:at]
        maxes[-1] = lists[-1][-1]
    more = [keys[begin : begin + load] for begin in range(at, len(keys), load)]
    lists += more
    maxes += [some[-1] for some in more]
    index._len += len(keys)
    index._index.clear()


def _successor(prefix: bytes) -> bytes | None:
    """Return the smallest key above all that begin with ``prefix``; None if there is none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes((stem[-1] + 1,)) if stem else None


class Range(NamedTuple):
    """A range of keys."""

    start: bytes | None
    stop: bytes | None
    include_start: bool
    include_stop: bool
    reverse: bool

    @property
    def is_empty(self) -> bool:
        """Tell whether no key can lie in it."""
        if self.start is None or self.stop is None:
            return False
        return self.start > self.stop or (self.start == self.stop and not (self.include_start and self.include_stop))

    def holds(self, key: bytes) -> bool:
        """Tell whether a key lies in the range."""
        if self.start is not None and (key < self.start or (key == self.start and not self.include_start)):
            return False
        return self.stop is None or key < self.stop or (key == self.stop and self.include_stop)

    def after(self, key: bytes) -> Range:
        """Return what is left once ``key`` has been passed."""
        if self.reverse:
            return self._replace(stop=key, include_stop=False)
        return self._replace(start=key, include_start=False)


EVERYTHING: Final = Range(None, None, True, False, False)


def range_of(
    prefix: Bytes,
    start: Bytes | None,
    stop: Bytes | None,
    include_start: bool,
    include_stop: bool,
    reverse: bool,
) -> Range:
    """Return the range that all conditions of a scan leave."""
    low = None if start is None else to_bytes("start", start)
    high = None if stop is None else to_bytes("stop", stop)
    first = to_bytes("prefix", prefix)
    if first:
        if low is None or low < first:
            low, include_start = first, True
        end = _successor(first)
        if end is not None and (high is None or high >= end):
            high, include_stop = end, False
    return Range(low, high, include_start, include_stop, reverse)


def _children(walk: Callable[[Range, int | None], Iterator[bytes]], prefix: bytes, delimiter: bytes) -> Iterator[bytes]:
    """Look at some keys after each seek: at more while each is a child of its own, at few while they share one."""
    range_, count = range_of(prefix, None, None, True, False, False), _FIRST_LOOK
    while not range_.is_empty:
        keys = list(walk(range_, count))
        child: bytes | None = None  # a part of keys, not a key: all that begin with it have been seen
        children = 0
        for key in keys:
            if child is not None and key.startswith(child):
                continue
            at = key.find(delimiter, len(prefix))
            child = None if at < 0 else key[: at + len(delimiter)]
            children += 1
            yield key if child is None else child
        if len(keys) < count:
            return
        end = None if child is None else _successor(child)
        if child is None:
            range_ = range_.after(keys[-1])
        elif end is None:
            return  # nothing lies above keys that begin with so many 0xff
        else:
            range_ = range_._replace(start=end, include_start=True)
        count = min(4 * count, _LONGEST_LOOK) if children == len(keys) else _FIRST_LOOK


def joined(left: object, right: object) -> dict[bytes, bytes]:
    """Return a dict of two mappings, in which the right one's values win; `NotImplemented` if one is no mapping."""
    if not isinstance(left, Mapping) or not isinstance(right, Mapping):
        return NotImplemented  # type: ignore[no-any-return]
    found: dict[bytes, bytes] = {}
    for mapping in (left, right):
        found.update((to_bytes("key", key), to_bytes("value", value)) for key, value in mapping.items())
    return found


def refusing(operator: str) -> Callable[[object, object], object]:
    """Return an operator that raises `TypeError`.

    Without it, Python would take ``a &= b`` for ``a = a & b``. The name would no longer mean the store, and every later
    write would go into a set or a dict and be silently lost.
    """

    def refuse(self: object, other: object) -> object:
        advice = "it is read-only" if operator == "|=" else "use keys() for sets of keys"
        raise TypeError(f"{operator} is not possible with a {type(self).__name__}: {advice}")

    return refuse


class OrderedMapping(Handle, Mapping[bytes, bytes]):
    """A mapping of bytes in key order, with scans."""

    @abstractmethod
    def _walk(self, range_: Range, limit: int | None) -> Iterator[bytes]:
        """Iterate over the keys of a range as they are now. Called when a scan begins, not at its first step."""

    @abstractmethod
    def _pairs(self, range_: Range, limit: int | None) -> Iterator[tuple[bytes, bytes]]:
        """Iterate over keys and values in the same way."""

    def scan(
        self,
        prefix: Bytes = b"",
        *,
        start: Bytes | None = None,
        stop: Bytes | None = None,
        include_start: bool = True,
        include_stop: bool = False,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[tuple[bytes, bytes]]:
        """Iterate over (key, value) in bytewise key order.

        Only keys that begin with ``prefix`` and lie between ``start`` and ``stop``; from the end if
        ``reverse``; at most ``limit``. What comes is what was there at the moment of the call, expired
        keys excepted, whatever is written or compacted meanwhile.

        Complexity: O(log n) to begin (the first ordered use sorts all keys, 0.4 µs each), then O(1) an
        entry, about 0.7 µs, or 0.2 where `Store.compact` has laid values in the order of keys.

        >>> import bytekv, tempfile
        >>> with bytekv.open(tempfile.mkdtemp()) as db:
        ...     db.update({"user:1": "Ann", "user:2": "Bob", "visit:1": "…"})
        ...     list(db.scan("user:"))
        [(b'user:1', b'Ann'), (b'user:2', b'Bob')]
        """
        range_ = range_of(prefix, start, stop, include_start, include_stop, reverse)
        return self._pairs(range_, limit_of(limit))

    def scan_keys(
        self,
        prefix: Bytes = b"",
        *,
        start: Bytes | None = None,
        stop: Bytes | None = None,
        include_start: bool = True,
        include_stop: bool = False,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[bytes]:
        """Iterate over keys as `scan` does, without reading a file.

        Complexity: as that of `scan`, but 0.05 µs a key; 0.5 in a store some of whose keys expire.

        >>> import bytekv, tempfile
        >>> with bytekv.open(tempfile.mkdtemp()) as db:
        ...     db.update(dict.fromkeys("abcd", ""))
        ...     list(db.scan_keys(start="b", stop="d", reverse=True))
        [b'c', b'b']
        """
        range_ = range_of(prefix, start, stop, include_start, include_stop, reverse)
        return self._walk(range_, limit_of(limit))

    def _walker(self) -> Callable[[Range, int | None], Iterator[bytes]]:
        """Return what walks through ranges as `_walk` does, all of them as they are now."""
        return self._walk

    def _count(self, range_: Range) -> int:
        """Return the number of keys in a range."""
        return sum(1 for _ in self._walk(range_, None))

    def count(
        self,
        prefix: Bytes = b"",
        *,
        start: Bytes | None = None,
        stop: Bytes | None = None,
        include_start: bool = True,
        include_stop: bool = False,
    ) -> int:
        """Return the number of keys that `scan_keys` would iterate over.

        Complexity: O(log n) in a store (the first ordered use sorts all keys, 0.4 µs each); in a snapshot, also O(keys
        changed since), or O(keys in the range) once these are more than 10,000; in a transaction, also O(its writes).

        >>> import bytekv, tempfile
        >>> with bytekv.open(tempfile.mkdtemp()) as db:
        ...     db.update({"user:1": "Ann", "user:2": "Bob", "visit:1": "…"})
        ...     db.count("user:"), db.count(start="user:2")
        (2, 2)
        """
        range_ = range_of(prefix, start, stop, include_start, include_stop, False)
        return 0 if range_.is_empty else self._count(range_)

    def children(self, prefix: Bytes = b"", delimiter: Bytes = b"/") -> Iterator[bytes]:
        """Iterate over what lies directly below ``prefix``, as in a tree of directories, in bytewise order.

        That is each key that begins with ``prefix`` and has no ``delimiter`` after it, and of the others the part up to
        and including the first delimiter after ``prefix``, each once. As of the moment of the call, as `scan` is.
        Raises `LimitError` for an empty delimiter. Complexity: O(log n) a child, however many keys lie below it.

        >>> import bytekv, tempfile
        >>> with bytekv.open(tempfile.mkdtemp()) as db:
        ...     db.update(dict.fromkeys(["a/1", "a/b/2", "a/b/3", "c"], ""))
        ...     list(db.children()), list(db.children("a/"))
        ([b'a/', b'c'], [b'a/1', b'a/b/'])
        """
        first, mark = to_bytes("prefix", prefix), to_bytes("delimiter", delimiter)
        if not mark:
            raise LimitError("a delimiter must not be empty")
        return _children(self._walker(), first, mark)

    def get_many(self, keys: Iterable[Bytes]) -> dict[bytes, bytes]:
        """Return the values of those of ``keys`` that exist. Complexity: O(number of keys)."""
        found: dict[bytes, bytes] = {}
        for each in keys:
            key = to_bytes("key", each)
            value = self.get(key)
            if value is not None:
                found[key] = value
        return found

    def __iter__(self) -> Iterator[bytes]:
        """Iterate over all keys in bytewise order; see `scan`."""
        return self.scan_keys()

    def __reversed__(self) -> Iterator[bytes]:
        """Iterate over all keys in falling order."""
        return self.scan_keys(reverse=True)

    if TYPE_CHECKING:

        @overload
        def get(self, key: Bytes) -> bytes | None: ...
        @overload
        def get(self, key: Bytes, default: T) -> bytes | T: ...

    def get(self, key: Bytes, default: object = None) -> object:
        """Return the value of ``key``, ``default`` if there is none."""
        try:
            return self[key]  # type: ignore[index]
        except KeyError:
            return default

    def keys(self) -> KeysView[bytes]:
        """Return a view of the keys, in order."""
        with translated("bytekv.contract.mapping_views"):
            from .mapping_views import Keys

        return Keys(self)

    def items(self) -> ItemsView[bytes, bytes]:
        """Return a view of the (key, value) pairs, in key order."""
        with translated("bytekv.contract.mapping_views"):
            from .mapping_views import Items

        return Items(self)

    def values(self) -> ValuesView[bytes]:
        """Return a view of the values, in key order."""
        with translated("bytekv.contract.mapping_views"):
            from .mapping_views import Values

        return Values(self)

    def __or__(self, other: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
        """Return a dict, in memory, of both; where a key is in both, the value on the right counts."""
        return joined(self, other)

    def __ror__(self, other: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
        return joined(other, self)

    if not TYPE_CHECKING:  # to a type checker there are none
        __ior__ = refusing("|=")
        __iand__, __isub__, __ixor__ = refusing("&="), refusing("-="), refusing("^=")

    def __eq__(self, other: object) -> bool:
        """Compare with any mapping; keys and values there must be bytes to be equal. Complexity: O(n)."""
        if not isinstance(other, Mapping):
            return NotImplemented
        return self is other or (len(self) == len(other) and dict(self.items()) == dict(other.items()))

    __hash__ = None  # type: ignore[assignment]


class MutableOrderedMapping(OrderedMapping, MutableMapping[bytes, bytes]):
    """A mapping of bytes in key order that is also changed by ranges."""

    @abstractmethod
    def _delete_in(self, range_: Range) -> int:
        """Delete the keys of a range; return how many there were."""

    def delete_prefix(self, prefix: Bytes) -> int:
        """Delete every key that begins with ``prefix``; return how many there were. The empty one deletes every key.

        Atomicity and complexity: as `delete_range`.

        >>> import bytekv, tempfile
        >>> with bytekv.open(tempfile.mkdtemp()) as db:
        ...     db.update({"user:1": "Ann", "user:2": "Bob", "visit:1": "…"})
        ...     db.delete_prefix("user:"), dict(db)
        (2, {b'visit:1': b'\xe2\x80\xa6'})
        """
        range_ = range_of(prefix, None, None, True, False, False)
        return self._delete_in(range_)

    def delete_range(
        self,
        start: Bytes | None = None,
        stop: Bytes | None = None,
        *,
        include_start: bool = True,
        include_stop: bool = False,
    ) -> int:
        """Delete the keys from ``start`` up to ``stop``; return how many there were. None: no limit on that side.

        Atomic, as one batch, up to the limit of a batch: 1 GiB of 27 bytes and the key for each, which is 25 million
        keys of 16 bytes. More keys are deleted in several batches. Durability: as a batch of deletes.
        Complexity: O(n), about 1 µs a key; other writers wait for half of that at most where nothing
        waits for a sync.

        >>> import bytekv, tempfile
        >>> with bytekv.open(tempfile.mkdtemp()) as db:
        ...     db.update(dict.fromkeys("abcd", ""))
        ...     db.delete_range("b", "d"), list(db)
        (2, [b'a', b'd'])
        """
        range_ = range_of(b"", start, stop, include_start, include_stop, False)
        return 0 if range_.is_empty else self._delete_in(range_)
