"""Key order: a sorted index of a dict's keys, made when it is first asked for.

It is kept up lazily: a set remembers the keys that came or went since the index was last right. While the index is
being changed there is no such set, so an index that an interrupt has left half done is made anew from the dict.
"""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Iterator
from itertools import islice
from operator import ge, sub

from ..._lean import TYPE_CHECKING
from ...contract.ordered import append_in_order, sorted_list

if TYPE_CHECKING:
    from typing import Any

    from ..tuning import Tuning


__all__ = ["Ordered", "dismantle", "ordered"]

#: Above this share of changed keys a fresh sort (timsort finds the sorted runs) beats single insertions.
_RESORT = 0.1

_SAMPLED = 32  # keys of a slice, to know where to cut: so the largest piece is seldom of twice as many


def _sorted_in_slices(keys: list[bytes], count: int) -> Iterator[list[bytes]]:
    """Yield keys in order, in pieces, without a call of C that keeps other threads out for longer than some 5 ms.

    A sample says where to cut; slices are sorted and cut there, and what lies between two cuts is sorted once more,
    from runs. ``keys`` is emptied. Python's garbage collector looks through every young list, for 30 ms where they hold
    a million keys, so the slices wait as dicts: it leaves those alone that hold nothing but bytes.
    """
    sample = sorted(keys[:: max(1, count // _SAMPLED)])
    cuts = sample[_SAMPLED::_SAMPLED]
    runs: list[tuple[Iterator[bytes], Iterator[int]]] = []
    while keys:
        some = sorted(keys[-count:])
        del keys[-count:]
        ends = [bisect_left(some, cut) for cut in cuts]
        runs.append((iter(dict.fromkeys(some)), map(sub, ends, [0, *ends])))
    for _ in range(len(cuts) + 1):
        piece: list[bytes] = []
        for run, counts in runs:
            piece += islice(run, next(counts, None))  # beyond the last cut: to the end, which frees the dict
        piece.sort()
        yield piece


def ordered(keys: list[bytes], count: int) -> Any:
    """Return keys in order, and empty ``keys``. Without the lock; others are let in after each ``count`` keys."""
    index = sorted_list()
    for piece in _sorted_in_slices(keys, count):
        append_in_order(index, piece)
    return index


def dismantle(index: Any) -> None:
    """Free an index that nobody uses any more, some keys at a time. Without the lock.

    To free all of a million keys' index in one call of C keeps other threads out for 10 ms, and for more where nothing
    else holds the keys.
    """
    for some in getattr(index, "_lists", ()):
        some.clear()


class Ordered:
    """The keys of a dict that come and go, sorted when somebody asks for that. Under the lock unless said otherwise."""

    __slots__ = ("_changed", "_index", "_sorting", "tuning")

    _changed: set[bytes] | None  # None: there is no index yet
    _index: Any  # None beside changed: it is being made
    _sorting: list[Any] | None  # what the call that makes it replaces
    tuning: Tuning

    @abstractmethod
    def _members(self) -> dict[bytes, Any]:
        """Return the dict."""

    def _listed(self) -> set[bytes]:
        """Return the keys of the dict that must be in the index."""
        return {*self._members()}

    def _drop_index(self) -> None:
        self._changed = self._sorting = None
        self._index = None

    def index(self) -> Any:
        """Return all keys in bytewise order.

        Complexity: O(n log n) at the first call (0.4 µs a key), then O(log n) for each key that came
        or went since the last call.
        """
        changed, index = self._changed, self._index
        if index is None:
            self._drop_index()
            changed, index = None, sorted_list()
            self._index = index
        if changed is None or (len(changed) > 16 and len(changed) > _RESORT * len(index) + 16):
            self._changed = None  # until it is whole: an interrupt in the middle must not leave half of it
            index.clear()
            index.update(self._members())
            self._changed = set()
        elif changed:
            self._apply(set(changed))
        return index

    @property
    def is_order_due(self) -> bool:
        """Tell whether `index` would keep others waiting, so that the order should be made first. Without the lock."""
        changed, index = self._changed, self._index
        if changed is None or index is None:
            return len(self._members()) > self.tuning.sorted_keys
        return len(changed) > self.tuning.few_changes

    def begin_order(self) -> tuple[list[Any], list[bytes]] | None:
        """Return what `ordered` makes a new index of, None if the old one is worth keeping up. Under the lock.

        What changes from here on is in `changed` and left to `order_some` and `index`. The first of what is returned
        holds what is replaced, to be freed without the lock.
        """
        changed, index = self._changed, self._index
        if index is not None and changed is not None and len(changed) <= _RESORT * len(index):
            return None
        keys = list(self._members())
        self._index, self._sorting = None, [index, changed]
        self._changed = set()
        return self._sorting, keys

    def end_order(self, order: list[Any], index: Any) -> None:
        """Take a new index over, unless it was needed, and made, before. Under the lock."""
        if self._sorting is order:
            self._index, self._sorting = index, None

    def order_some(self) -> None:
        """Bring the index up to date with some of the changed keys. Under the lock."""
        if self._changed and self._index is not None:
            self._apply(set(islice(self._changed, self.tuning.few_changes)))

    def check(self) -> list[str]:
        """Return what is wrong with the index, in words. Under the lock. For tests. Complexity: O(n)."""
        changed, index = self._changed, self._index
        if changed is None or index is None:
            return []  # it is made, or is to be made anew
        keys = list(index)
        wrong = ["keys are not in order"] if any(map(ge, keys, keys[1:])) else []
        forgotten = ({*keys} - self._members().keys() | self._listed() - {*keys}) - changed
        return wrong + [f"{key!r} came or went and is not noted" for key in forgotten]

    def _apply(self, some: set[bytes]) -> None:
        """Bring the index up to date with ``some`` of the changed keys."""
        changed, index, keys = self._changed, self._index, self._members()
        assert changed is not None
        assert index is not None
        self._changed = None  # until it is whole: an interrupt in the middle must not leave half of it
        for key in some:
            if key not in keys:
                index.discard(key)
            elif key not in index:
                index.add(key)
        changed -= some
        self._changed = changed

    def count_between(self, start: bytes | None, stop: bytes | None, include_start: bool, include_stop: bool) -> int:
        """Return how many keys lie in a range. Complexity: O(log n), once the index is right."""
        low, high = self._places(start, stop, include_start, include_stop)
        return high - low

    def keys_between(
        self, start: bytes | None, stop: bytes | None, include_start: bool, include_stop: bool
    ) -> list[bytes]:
        """Return the keys of a range. Complexity: O(log n), once the index is right, and 0.01 µs a key."""
        low, high = self._places(start, stop, include_start, include_stop)
        return list(self.index().islice(low, high))

    def _places(
        self, start: bytes | None, stop: bytes | None, include_start: bool, include_stop: bool
    ) -> tuple[int, int]:
        index = self.index()
        low = 0 if start is None else index.bisect_left(start) if include_start else index.bisect_right(start)
        high = len(index) if stop is None else index.bisect_right(stop) if include_stop else index.bisect_left(stop)
        return low, max(low, high)

    def select(
        self,
        start: bytes | None,
        stop: bytes | None,
        include_start: bool,
        include_stop: bool,
        reverse: bool,
        count: int,
    ) -> list[bytes]:
        """Return the first ``count`` keys of a range, from its end if ``reverse``."""
        index = self.index()
        found: Iterator[bytes] = index.irange(start, stop, (include_start, include_stop), reverse)
        return list(islice(found, count))
