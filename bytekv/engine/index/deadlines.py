"""Which keys come due next: a timing wheel that is worked off in pieces.

A key lies in a bucket that covers a stretch of time: a quarter of an hour while that is far away, then a second, and
finally a millisecond. When the stretch of a bucket has begun, its keys that are not due are moved to smaller ones,
some at a time. So a key is added and removed in constant time, none is kept that nobody waits for, and of millions that
come due together the caller takes as many as it has time for.

Why a key is due is the caller's business, and so is when: this is an index of that, and a key that it holds in vain
does no harm. An interrupted call is made good by repeating it.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Collection
from itertools import islice

from ..._lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final

__all__ = ["BITS", "Deadlines"]

_FAR: Final = 20  # a bucket covers 2**20 ms, 17 minutes
_NEAR: Final = 10  # 2**10 ms, a second
BITS: Final = 5  # of a bucket's number: how wide it is; above them its first millisecond


class Deadlines:
    """Keys, each with the time in milliseconds at which it is due. Under the store's lock."""

    __slots__ = ("_buckets", "_furthest", "_reached", "order")

    def __init__(self) -> None:
        self._buckets: dict[int, dict[bytes, None]] = {}
        self.order: list[int] = []  # their numbers, ascending; some have been emptied since; changed here alone
        self._reached = 0  # no bucket begins before this but those that are being worked off
        self._furthest = 0  # that it has ever been: the clock may be set back

    def add(self, key: bytes, when_ms: int) -> None:
        """Note when a key is due. Complexity: O(1)."""
        reached = self._reached
        if when_ms >> _FAR << _FAR > reached:
            number = when_ms >> _FAR << _FAR + BITS | _FAR
        elif when_ms >> _NEAR << _NEAR > reached:
            number = when_ms >> _NEAR << _NEAR + BITS | _NEAR
        else:
            number = when_ms << BITS
        bucket = self._buckets.get(number)
        if bucket is not None:
            bucket[key] = None
            return
        if len(self.order) > 2 * len(self._buckets) + 64:  # a few thousand at most
            self.order = sorted(self._buckets)
        insort(self.order, number)  # first: a bucket whose number is lost would never come due
        self._buckets[number] = {key: None}

    def add_all(self, times_ms: dict[bytes, int]) -> None:
        """Note when several keys are due, each for the first time."""
        if times_ms and self._share_a_bucket(times_ms.values()):
            key, when_ms = next(iter(times_ms.items()))
            self.add(key, when_ms)
            self._buckets[when_ms >> _FAR << _FAR + BITS | _FAR].update(dict.fromkeys(times_ms))
        else:
            for key, when_ms in times_ms.items():
                self.add(key, when_ms)

    def move_all(self, before_ms: dict[bytes, int], times_ms: dict[bytes, int]) -> None:
        """Do what `move` does for those of several keys that are due at a time now."""
        if before_ms and not self._share_a_bucket([*before_ms.values(), *times_ms.values()]):
            for key, before in before_ms.items():
                when_ms = times_ms.get(key)
                if when_ms:
                    self.move(key, before, when_ms)

    def _share_a_bucket(self, times_ms: Collection[int]) -> bool:
        """Tell whether keys that are due then are all in one bucket of the widest, which has never been worked off."""
        first, last = min(times_ms) >> _FAR, max(times_ms) >> _FAR
        return first == last and first << _FAR > self._furthest

    def move(self, key: bytes, before_ms: int, when_ms: int) -> None:
        """Note that a key is due at another time than before. Complexity: O(1)."""
        # As a rule it is in the right bucket: what is written again and again lives about as long as before.
        if before_ms >> _FAR != when_ms >> _FAR or when_ms >> _FAR << _FAR <= self._furthest:
            self.discard(key, before_ms)
            self.add(key, when_ms)

    def discard(self, key: bytes, when_ms: int) -> None:
        """Forget a key that was due at ``when_ms``. Complexity: O(1)."""
        for width in (_FAR, _NEAR, 0):
            number = when_ms >> width << width + BITS | width
            bucket = self._buckets.get(number)
            if bucket is not None and key in bucket:
                if len(bucket) > 1:
                    del bucket[key]
                else:
                    del self._buckets[number]  # with the memory of all that it has held

    def is_due(self, now_ms: int) -> bool:
        """Tell whether `advance` has anything to do."""
        return bool(self.order) and self.order[0] >> BITS <= now_ms

    def advance(
        self, now_ms: int, when_of: Callable[[bytes], int | None], act: Callable[[bytes], object], count: int
    ) -> int:
        """Look at ``count`` keys at most; call ``act`` with each that is due and may be; return how many there were.

        ``when_of``: when a key is due now, None if it is not any more. ``act`` is called once more with the same
        keys if it was interrupted. To be called only if `is_due`. Complexity: each key is looked at three times
        at most, 0.3 µs.
        """
        self._reached = now_ms
        self._furthest = max(self._furthest, now_ms)
        number = self.order[0]
        bucket = self._buckets.get(number)
        if bucket is None:
            self.order.pop(0)
            return 0
        start, width = number >> BITS, number & (1 << BITS) - 1
        keys = list(islice(reversed(bucket), count))
        for key in keys:
            when_ms = when_of(key)
            if when_ms is None or when_ms >> width << width != start:
                continue
            if when_ms <= now_ms:
                act(key)
            else:
                self.add(key, when_ms)  # to a smaller one: this one has been reached
        if len(keys) == len(bucket):
            del self._buckets[number]
        else:
            for _ in keys:
                bucket.popitem()  # from the end, so that what is left is found at once
        return len(keys)

    def keys(self) -> set[bytes]:
        """Return every key that is held. Complexity: O(n)."""
        return set().union(*self._buckets.values())

    def clear(self) -> None:
        """Forget every key."""
        self._buckets.clear()
        self.order.clear()
