"""Read views: the index as it was at one moment, by an undo map of what has changed since.

Nothing is copied. Before a key is changed, every open view remembers what the key was. A reader looks into the keydir
first and into the undo map second; a writer fills the undo map first and changes the keydir second; so neither needs a
lock. Memory: in proportion to what is written while a view is open.
"""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from operator import rshift

from ..._lean import TYPE_CHECKING
from ...contract.ordered import Range
from ...errors import StoreClosedError
from ..codec.entry import SEGMENT_SHIFT
from .order import Ordered

if TYPE_CHECKING:
    from typing import Any, Final, NoReturn, Protocol

    from ..tuning import Tuning

    class Newest(Protocol):
        """What a view asks of the keydir that it shows a moment of."""

        tuning: Tuning

        def now_ms(self) -> int: ...
        def __len__(self) -> int: ...
        def __contains__(self, key: object) -> bool: ...
        def locate(self, key: bytes, now_ms: int) -> int | None: ...
        def expiry_of(self, key: bytes) -> int | None: ...
        def select(
            self,
            start: bytes | None,
            stop: bytes | None,
            include_start: bool,
            include_stop: bool,
            reverse: bool,
            count: int,
        ) -> list[bytes]: ...
        def count_between(
            self, start: bytes | None, stop: bytes | None, include_start: bool, include_stop: bool
        ) -> int: ...
        def finish_purge(self) -> None: ...


__all__ = ["ReadView", "ReadViews"]

_UNCHANGED: Final = object()


class _Ended:
    """Stand in for the undo map of a view that was closed: it is not kept up any more, so it shows no moment."""

    def get(self, key: bytes, default: object = None) -> NoReturn:
        raise StoreClosedError("this snapshot was closed")

    def keys(self) -> NoReturn:
        raise StoreClosedError("this snapshot was closed")


class ReadView(Ordered):
    """The keydir as it was at one moment.

    What is not in the undo map lies where the keydir says, which a compaction keeps right. So of the segments that
    one has replaced, a view needs only those into which its undo map points: `segments`. None is added to these once
    no key points into it any more.
    """

    __slots__ = (
        "__weakref__",
        "_keydir",
        "_mortal",
        "_noted",
        "_read_ahead",
        "count",
        "number",
        "owner",
        "segments",
        "seq",
        "undo",
    )

    def __init__(self, keydir: Newest, number: int, seq: int, owner: object) -> None:
        self._keydir = keydir
        self.tuning = keydir.tuning
        self.owner = owner  # lives as long as this does
        self.number = number
        self.seq = seq
        self.count = len(keydir)
        self._noted: dict[bytes, int | None] = {}  # key -> location; None: was not there
        self.undo: Any = self._noted  # for readers; it ends with `close`, while a writer may be noting something
        self.segments: set[int] = set()  # into which undo points
        self._read_ahead: dict[object, list[Any]] = {}  # what each scan has read and perhaps not yet given out
        self._mortal: dict[bytes, int] = {}  # those of undo that were to expire
        self._drop_index()

    def remember(self, key: bytes, location: int | None, expires_ms: int) -> None:
        """Remember what a key was, unless it has changed before. Under the lock."""
        if key not in self._noted:
            if location is not None:
                if self._changed is not None:
                    self._changed.add(key)  # to be sorted in by who reads: writers do not wait
                if expires_ms:
                    self._mortal[key] = expires_ms
                # First: a reader that finds the location may need the file.
                self.segments.add(location >> SEGMENT_SHIFT)
            self._noted[key] = location

    def remember_some(self, keys: list[bytes], locations: list[int | None]) -> None:
        """Do what `remember` does for keys that do not expire. Under the lock; repeatable."""
        noted = self._noted
        missing = {key: old for key, old in zip(keys, locations, strict=True) if key not in noted}
        if self._changed is not None:
            self._changed.update(key for key, old in missing.items() if old is not None)
        self.segments.update(map(rshift, filter(None, missing.values()), itertools.repeat(SEGMENT_SHIFT)))
        noted.update(missing)

    def remember_all(
        self, locations: dict[bytes, int], expires: dict[bytes, int], segments: set[int], index: Any
    ) -> None:
        """Do what `remember` does for all keys. Under the lock; repeatable.

        ``segments``: into which ``locations`` may point; ``index``: a sorted list of all keys that nobody else needs.
        """
        noted = self._noted
        missing = locations
        if noted:  # a copy and a few less, in calls of C
            missing = locations.copy()
            deque(map(missing.pop, noted, itertools.repeat(None)), maxlen=0)
        if missing:
            self._drop_index()  # so many are sorted anew
        if index is not None:
            self._index, self._changed = index, set(noted)
        if expires:
            self._mortal.update({key: when for key, when in expires.items() if key in missing})
        self.segments |= segments
        noted.update(missing)

    def copy_undo(self) -> dict[bytes, int | None]:
        """Return the undo map as it is now. Under the lock."""
        return self._noted.copy()

    def repoint(self, moved: list[tuple[bytes, int, int]]) -> None:
        """Point keys from where their entries were to copies of them. Under the lock; readers find either."""
        for key, old, new in moved:
            if self._noted.get(key) == old:
                self._noted[key] = new

    def count_out(self, key: bytes) -> None:
        """Do not count a key any more that has expired; one that has changed before counts by what it was."""
        self.count -= key not in self._noted

    def count_anew(self) -> None:
        """Count what is left of what was there. Complexity: O(number of noted keys)."""
        noted, newest = self._noted, self._keydir
        changed = sum(key in newest for key in noted)
        self.count = len(newest) - changed + sum(location is not None for location in noted.values())

    def close(self) -> None:
        """Have readers raise `StoreClosedError`, those that are under way included."""
        self.undo = _Ended()
        self.drop_read_ahead()

    def check_open(self) -> None:
        """Raise `StoreClosedError` once `close` was called."""
        self.undo.get(b"")

    def read_ahead(self, scan: object, some: list[Any]) -> None:
        """Note what a scan gives out next, in place of what it gave out before; it is emptied by `drop_read_ahead`."""
        self._read_ahead[scan] = some
        self.check_open()  # in this order, for `close` does it the other way round

    def end_read_ahead(self, scan: object) -> None:
        """Forget a scan."""
        self._read_ahead.pop(scan, None)

    def drop_read_ahead(self) -> None:
        """Take from every scan what it has read and not yet given out, so that its next step says what has ended."""
        for some in list(self._read_ahead.values()):
            some.clear()

    def locate(self, key: bytes, now_ms: int) -> int | None:
        """Return where the key's entry was, None if it was not there or has expired since. Without the lock."""
        location = self._keydir.locate(key, now_ms)
        found: Any = self.undo.get(key, _UNCHANGED)
        if found is _UNCHANGED:
            return location
        if found is None or 0 < self._mortal.get(key, 0) <= now_ms:
            return None
        return found  # type: ignore[no-any-return]

    def expiry_of(self, key: bytes) -> int | None:
        """Return when a key that was there was to expire, in ms, None if never. Without the lock."""
        expires_ms = self._keydir.expiry_of(key)  # first, as in `locate`
        return expires_ms if self.undo.get(key, _UNCHANGED) is _UNCHANGED else self._mortal.get(key)

    def select(
        self,
        start: bytes | None,
        stop: bytes | None,
        include_start: bool,
        include_stop: bool,
        reverse: bool,
        count: int,
    ) -> list[bytes]:
        """Return the first ``count`` keys of a range that may have been there; `locate` knows. Under the lock."""
        keys = self._keydir.select(start, stop, include_start, include_stop, reverse, count)
        if self._noted:
            gone = super().select(start, stop, include_start, include_stop, reverse, count)
            keys = sorted({*keys, *gone}, reverse=reverse)[:count]
        return keys

    @property
    def noted_count(self) -> int:
        """Return how many keys have changed since."""
        return len(self._noted)

    def count_in(self, range_: Range) -> int:
        """Return how many keys of a range there were, those not counted that have expired since. Under the lock, after
        a purge. Complexity: O(log n + number of noted keys)."""
        newest, now_ms = self._keydir, self._keydir.now_ms()
        newest.finish_purge()
        count = newest.count_between(range_.start, range_.stop, range_.include_start, range_.include_stop)
        for key, location in self._noted.items():
            if range_.holds(key):
                is_over = location is None or 0 < self._mortal.get(key, 0) <= now_ms
                count += (not is_over) - (key in newest)
        return count

    def check(self) -> list[str]:
        """Return what is wrong with the view, in words. Under the lock. For tests. Complexity: O(remembered keys)."""
        wrong = super().check()
        needed = {location >> SEGMENT_SHIFT for location in self._noted.values() if location is not None}
        wrong += [f"segment {segment} is needed and not kept" for segment in needed - self.segments]
        return wrong + [f"{key!r} expires and is not remembered" for key in self._mortal.keys() - self._noted.keys()]

    def _members(self) -> dict[bytes, Any]:
        return self._noted

    def _listed(self) -> set[bytes]:
        return {key for key, location in self._noted.items() if location is not None}

    def __len__(self) -> int:
        """Return how many keys there were, those not counted that have expired since. Under the lock."""
        now_ms = self._keydir.now_ms()
        self._keydir.finish_purge()
        return self.count - sum(1 for expires_ms in self._mortal.values() if expires_ms <= now_ms)


class ReadViews(dict[int, "weakref.ref[ReadView]"]):
    """The open views by number; true while there is one. One that is dropped closes itself."""

    __slots__ = ("_numbers",)

    def __init__(self) -> None:
        super().__init__()
        self._numbers = itertools.count(1)

    def open(self, keydir: Newest, seq: int, owner: object) -> ReadView:
        """Return a view of the keydir as of now. Under the lock."""
        view = ReadView(keydir, next(self._numbers), seq, owner)
        number = view.number
        self[number] = weakref.ref(view, lambda _: self.pop(number, None))
        return view

    def close(self, view: ReadView) -> None:
        """Stop keeping a view up; its user is told so. Without the lock."""
        view.close()  # first: what is not remembered any more must not be taken for unchanged
        self.pop(view.number, None)

    def alive(self) -> list[ReadView]:
        """Return the open views."""
        return [view for reference in list(self.values()) if (view := reference()) is not None]
