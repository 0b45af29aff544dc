"""Key → location, in memory; the order of the keys; what is dead on disk.

Knows nothing of files. All changes happen under the store's lock. `locations` is read without it:
a dict look-up is atomic, and what it returns is a location that was right at that moment.

Theory of operation. `locations` holds exactly the keys that exist, except those whose time has come
since the last purge; readers ask `expires` as well. A purged key moves to `expired`: gone for
every reader and for good, but its entry stays on disk as it is. Once its grace is over, it is forgotten. Then
only its entry is left, which still hides older ones of the same key: a compaction makes a tombstone of it, and
so it is counted as what that will take, `lapsed`, and the rest of it is dead. The sorted index exists from the
first ordered use on; it is kept up lazily, `changed` remembers the keys that came or went since it was last right.

Everything here but `locations` is derived and can be rebuilt from it.
"""

from __future__ import annotations

import itertools
import weakref
from abc import abstractmethod
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Container, Iterator
from itertools import islice
from operator import rshift

from ...contract.ordered import sorted_list
from ...errors import StoreClosedError
from ..codec.entry import OVERHEAD, SEGMENT_SHIFT, SIZE_MASK
from ..codec.hint import Hint
from .deadlines import Deadlines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final, NoReturn

    from ...contract.ordered import SortedList

__all__ = ["PURGED_AT_ONCE", "Keydir", "Ordered", "ReadView", "ordered"]

SizeOf = Callable[[int], int]

#: Above this share of changed keys a fresh sort (timsort finds the sorted runs) beats single insertions.
_RESORT = 0.1

_FEW_CHANGES: Final = 1000  # that an index is brought up to date with at once
_SLICE: Final = 10_000  # keys that are sorted at once while others wait

PURGED_AT_ONCE: Final = 100  # expired keys, less than a quarter of a millisecond


_UNCHANGED: Final = object()


def _sorted_in_slices(keys: list[bytes]) -> Iterator[list[bytes]]:
    """Yield keys in order, in pieces, without a call of C that keeps other threads out for longer than some 5 ms.

    Slices are sorted, then cut at the same keys, and what lies between two cuts is sorted once more, from runs.
    """
    runs = [sorted(keys[at : at + _SLICE]) for at in range(0, len(keys), _SLICE)]
    sample = sorted(key for run in runs for key in run[:: max(1, _SLICE // 32)])
    cuts: list[bytes | None] = [*sample[:: max(1, len(sample) // len(runs))][1:], None] if runs else []
    begins = [0] * len(runs)
    for cut in cuts:
        piece: list[bytes] = []
        for number, run in enumerate(runs):
            end = len(run) if cut is None else bisect_left(run, cut, begins[number])
            piece += run[begins[number] : end]
            begins[number] = end
        piece.sort()
        yield piece


def ordered(keys: list[bytes]) -> SortedList:
    """Return keys in order. Without the lock, and other threads are let in between."""
    index = sorted_list()
    add = index.add  # `update` would sort all of them again, in one call
    for piece in _sorted_in_slices(keys):
        for key in piece:
            add(key)
    return index


class _Ended:
    """Stand in for the undo map of a view that was closed: nobody notes for it any more, so it shows no moment."""

    def get(self, key: bytes, default: object = None) -> NoReturn:
        raise StoreClosedError("this snapshot was closed")

    def keys(self) -> NoReturn:
        raise StoreClosedError("this snapshot was closed")


class Ordered:
    """The keys of a dict that come and go, sorted when somebody asks for that. Under the lock unless said otherwise.

    `changed` remembers the keys that came or went since the index was last right. While the index is being changed
    there is no `changed`, so one that an interrupt has left half done is made anew from the dict.
    """

    __slots__ = ("_index", "_sorting", "changed")

    changed: set[bytes] | None  # None: there is no index yet
    _index: SortedList | None  # None beside changed: it is being made
    _sorting: object  # who makes it

    @abstractmethod
    def _members(self) -> dict[bytes, Any]:
        """Return the dict."""

    def _drop_index(self) -> None:
        self.changed = self._sorting = None
        self._index = None

    def index(self) -> SortedList:
        """Return all keys in bytewise order.

        Complexity: O(n log n) at the first call (0.4 µs a key), then O(log n) for each key that came
        or went since the last call.
        """
        changed, index = self.changed, self._index
        if index is None:
            self._drop_index()
            changed, index = None, sorted_list()
            self._index = index
        if changed is None or len(changed) > _RESORT * len(index) + 16:
            self.changed = None  # until it is whole: an interrupt in the middle must not leave half of it
            index.clear()
            index.update(self._members())
            self.changed = set()
        elif changed:
            self._apply(set(changed))
        return index

    @property
    def is_order_due(self) -> bool:
        """Tell whether `index` would keep others waiting, so that the order is to be made before. Without the lock."""
        changed, index = self.changed, self._index
        if changed is None or index is None:
            return len(self._members()) > _SLICE
        return len(changed) > _FEW_CHANGES

    def begin_order(self) -> tuple[object, list[bytes]] | None:
        """Return what `ordered` makes a new index of, None if the old one is worth keeping up. Under the lock.

        What changes from here on is in `changed` and left to `order_some` and `index`.
        """
        changed, index = self.changed, self._index
        if index is not None and changed is not None and len(changed) <= _RESORT * len(index):
            return None
        keys = list(self._members())
        # What is replaced lives on in there until the lock is free again: to let it go takes as long as a slice.
        self._index, self._sorting = None, [index, changed]
        self.changed = set()
        return self._sorting, keys

    def end_order(self, order: object, index: SortedList) -> None:
        """Take a new index over, unless it was needed, and made, before. Under the lock."""
        if self._sorting is order:
            self._index, self._sorting = index, None

    def order_some(self) -> None:
        """Bring the index up to date as far as some of the changed keys are concerned. Under the lock."""
        if self.changed and self._index is not None:
            self._apply(set(islice(self.changed, _FEW_CHANGES)))

    def _apply(self, some: set[bytes]) -> None:
        """Bring the index up to date as far as ``some`` of the changed keys are concerned."""
        changed, index, keys = self.changed, self._index, self._members()
        assert changed is not None
        assert index is not None
        self.changed = None  # until it is whole: an interrupt in the middle must not leave half of it
        for key in some:
            if key not in keys:
                index.discard(key)
            elif key not in index:
                index.add(key)
        changed -= some
        self.changed = changed

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
        return [key for key, _ in zip(found, range(count), strict=False)]


class ReadView(Ordered):
    """The keydir as it was at one moment.

    Nothing is copied: whoever changes a key first notes in `undo` of every open view what the key was. A
    reader looks into `locations` first and into `undo` second; a writer fills `undo` first and changes
    `locations` second; so nobody needs a lock. Memory: in proportion to what is written while it is open.

    What is not noted lies where the keydir says, which a compaction keeps right. So of the segments that one has
    replaced, a view needs those alone that it has noted a location in: `segments`. Nothing is added to these once
    no key points there any more.
    """

    __slots__ = (
        "__weakref__",
        "_keydir",
        "_mortal",
        "_noted",
        "count",
        "number",
        "owner",
        "read_ahead",
        "segments",
        "seq",
        "undo",
    )

    def __init__(self, keydir: Keydir, number: int, seq: int, owner: object) -> None:
        self._keydir = keydir
        self.owner = owner  # lives as long as this does
        self.number = number
        self.seq = seq
        self.count = len(keydir.locations)
        self._noted: dict[bytes, int | None] = {}  # key -> location; None: was not there
        self.undo: Any = self._noted  # for readers; it ends with `close`, while a writer may be noting something
        self.segments: set[int] = set()  # into which undo points
        self.read_ahead: list[tuple[bytes, bytes]] = []  # what a scan has read and perhaps not yet given out
        self._mortal: dict[bytes, int] = {}  # those of undo that were to expire
        self._drop_index()

    def remember(self, key: bytes, location: int | None, expires_ms: int) -> None:
        """Remember what a key was, unless it has changed before. Under the lock."""
        if key not in self._noted:
            if location is not None:
                if self.changed is not None:
                    self.changed.add(key)  # to be sorted in by who reads: writers do not wait
                if expires_ms:
                    self._mortal[key] = expires_ms
                self.segments.add(location >> SEGMENT_SHIFT)  # first: who finds the location may need the file
            self._noted[key] = location

    def remember_some(self, keys: list[bytes], locations: list[int | None]) -> None:
        """Do what `remember` does for keys that do not expire. Under the lock; repeatable."""
        noted = self._noted
        missing = {key: old for key, old in zip(keys, locations, strict=True) if key not in noted}
        if self.changed is not None:
            self.changed.update(key for key, old in missing.items() if old is not None)
        self.segments.update(map(rshift, filter(None, missing.values()), itertools.repeat(SEGMENT_SHIFT)))
        noted.update(missing)

    def remember_all(
        self, locations: dict[bytes, int], expires: dict[bytes, int], segments: set[int], index: SortedList | None
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
            self._index, self.changed = index, set(noted)
        if expires:
            self._mortal.update({key: when for key, when in expires.items() if key in missing})
        self.segments |= segments
        noted.update(missing)

    def count_out(self, key: bytes) -> None:
        """Do not count a key any more that has expired; one that has changed before counts by what it was."""
        self.count -= key not in self._noted

    def count_anew(self) -> None:
        """Count what is left of what was there. Complexity: O(number of noted keys)."""
        noted, locations = self._noted, self._keydir.locations
        changed = sum(key in locations for key in noted)
        self.count = len(locations) - changed + sum(location is not None for location in noted.values())

    def close(self) -> None:
        """Have readers raise `StoreClosedError`, those that are under way included."""
        self.undo = _Ended()

    def locate(self, key: bytes, now_ms: int) -> int | None:
        """Return where the key's entry was, None if it was not there or has expired since. Without the lock."""
        location = self._keydir.locate(key, now_ms)
        found: Any = self.undo.get(key, _UNCHANGED)
        if found is _UNCHANGED:
            return location
        if found is None or 0 < self._mortal.get(key, 0) <= now_ms:
            return None
        return found  # type: ignore[no-any-return]

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

    def _members(self) -> dict[bytes, Any]:
        return self._noted

    def __len__(self) -> int:
        """Return how many keys there were, those not counted that have expired since. Under the lock."""
        now_ms = self._keydir.now_ms()
        self._keydir.finish_purge()
        return self.count - sum(1 for expires_ms in self._mortal.values() if expires_ms <= now_ms)


class Keydir(Ordered):
    """Map keys to locations, in key order, and keep count of dead bytes per segment."""

    def __init__(self, grace_ms: int = 0, now_ms: Callable[[], int] = lambda: 0) -> None:
        self.now_ms = now_ms
        self.views: dict[int, weakref.ref[ReadView]] = {}
        self._view_numbers = itertools.count(1)
        self.locations: dict[bytes, int] = {}
        self.expires: dict[bytes, int] = {}  # ms; every key in locations or expired whose entry has an expiry
        self.expired: dict[bytes, int] = {}  # key -> location of those that were seen to be past it
        self.dead: dict[int, int] = {}  # segment -> bytes of superseded puts; see `is_whole`
        self.tombstones: dict[int, int] = {}  # segment -> bytes of tombstones
        self.lapsed: dict[int, int] = {}  # segment -> bytes of the tombstones that forgotten entries will become
        self._drop_index()
        self._due = Deadlines()  # of keys in locations: when they expire
        self._leaving = Deadlines()  # of keys in expired: when their grace is over
        self.grace_ms = grace_ms
        self.latest_ms = 0  # no key whose grace was over by then needs to be here
        self.is_held = False  # nothing is forgotten for now
        self.is_behind = False  # the last purge has left something to do
        self._is_purging = False  # or was interrupted
        self.recounts = 0

    def __len__(self) -> int:
        return len(self.locations)

    # --- single keys ---------------------------------------------------------------------------

    def put(self, key: bytes, location: int, expires_ms: int, old_size: int) -> None:
        """Point a key at a new location; ``old_size`` is the size of the entry it replaces, 0 if none.

        Repeating the call with the same location changes nothing.
        """
        old = self.locations.get(key)
        if self.views and old != location:
            self._remember(key)
        if old is None and self.changed is not None:
            self.changed.add(key)
        if self.expired and key in self.expired:
            old = self._revive(key)
        if expires_ms:
            before = self.expires.get(key)
            if before is None:
                self.expires[key] = expires_ms  # first: it may have passed, and then nobody is to see the key
            else:
                self._due.discard(key, before)
            self._due.add(key, expires_ms)
            self.locations[key] = location
            self.expires[key] = expires_ms
        else:
            self.locations[key] = location
            if key in self.expires:
                self._expire_never(key)
        if old is not None and old != location:
            self.count_dead(old >> SEGMENT_SHIFT, old_size)

    def write_all(self, keys: list[bytes], locations: list[int], gone: list[bytes], sizes_of: SizeOf) -> None:
        """Point keys at new locations and forget others, where nothing expires; repeatable, but for the count."""
        get = self.locations.get
        replaced, lost = list(map(get, keys)), list(map(get, gone))
        for view in self._open_views() if self.views else ():
            view.remember_some(keys, replaced)
            view.remember_some(gone, lost)
        if self.changed is not None:
            self.changed.update(key for key, old in zip(keys, replaced, strict=True) if old is None)
            self.changed.update(gone)
        self.locations.update(zip(keys, locations, strict=True))
        deque(map(self.locations.pop, gone, itertools.repeat(None)), maxlen=0)
        dead = self.dead
        for old in filter(None, itertools.chain(replaced, lost)):
            segment = old >> SEGMENT_SHIFT
            dead[segment] = dead.get(segment, 0) + (old & SIZE_MASK or sizes_of(old))

    def remove(self, key: bytes, old_size: int) -> None:
        """Forget a key, live or expired; its entry is dead from now on."""
        if self.views:
            self._remember(key)
        old = self.locations.pop(key, None)
        if old is not None and self.changed is not None:
            self.changed.add(key)
        if self.expired and key in self.expired:
            old = self._revive(key)
        if self.expires:
            self._expire_never(key)
        if old is not None:
            self.count_dead(old >> SEGMENT_SHIFT, old_size)

    def _revive(self, key: bytes) -> int:
        """Take a key out of `expired`."""
        self._leaving.discard(key, self.expires[key] + self.grace_ms)
        return self.expired.pop(key)

    def _expire_never(self, key: bytes) -> None:
        when_ms = self.expires.get(key)
        if when_ms is not None:
            self._due.discard(key, when_ms)
            self.expires.pop(key, None)

    def move(self, key: bytes, old: int, new: int) -> bool:
        """Point a key at the copy of its entry, if it still points at the original; a compare-and-set."""
        for table in (self.locations, self.expired):
            if table.get(key) == old:
                table[key] = new
                return True
        return False

    def merge(self, segment: int, hint: Hint, size_of: Callable[[int | None], int]) -> None:
        """Apply what a segment says, all of which is newer than what is known.

        For a follower; repeatable, in the same order, but for the count. ``size_of`` tells how large the newest
        entry of a key is, 0 for None.
        """
        base = segment << SEGMENT_SHIFT
        if hint.clears:
            dead = self.dead
            for location in itertools.chain(self.locations.values(), self.expired.values()):
                number = location >> SEGMENT_SHIFT
                dead[number] = dead.get(number, 0) + (location & SIZE_MASK or size_of(location))
            self.clear()
        for key in hint.tombstones:
            old = self.newest(key)
            if old is not None:
                self.remove(key, size_of(old))
        expires = hint.expires
        for key, position in zip(hint.keys, hint.positions, strict=True):
            self.put(key, base | position, expires.get(key, 0) if expires else 0, size_of(self.newest(key)))

    def relocate(
        self, segment: int, hint: Hint, is_older: Callable[[int], bool], size_of: Callable[[int | None], int]
    ) -> None:
        """Point keys at the copies that a compaction has made; a key that is gone stays so. For a follower.

        A view may as well read the copies, and perhaps has to: the originals have been removed.
        """
        base = segment << SEGMENT_SHIFT
        for key, position in zip(hint.keys, hint.positions, strict=True):
            old, new = self.newest(key), base | position
            if old is not None and old != new and is_older(old):
                self.move(key, old, new)
                self.count_dead(old >> SEGMENT_SHIFT, size_of(old))
            elif old != new:
                self.count_dead(segment, size_of(new))

    def forget_segments(self, gone: Container[int]) -> None:
        """Remove every key that still points into one of these segments. For a follower. Complexity: O(n)."""
        for table in (self.locations, self.expired):
            for key in [key for key, location in table.items() if location >> SEGMENT_SHIFT in gone]:
                self.remove(key, 0)

    def clear(self, segments: Callable[[], set[int]] | None = None) -> None:
        """Forget every key; `recount` is due afterwards.

        ``segments`` answers into which segments keys may point, where that is known without asking each of them.
        """
        if self.views:
            self._remember_all(segments)
        self.locations.clear()
        self.expires.clear()
        self.expired.clear()
        self._due.clear()
        self._leaving.clear()
        self._drop_index()

    def locate(self, key: bytes, now_ms: int) -> int | None:
        """Return a key's location, None if it does not exist or has expired. Safe without the lock."""
        location = self.locations.get(key)
        if location is not None and self.expires and self.expires.get(key, now_ms + 1) <= now_ms:
            return None
        return location

    def newest(self, key: bytes) -> int | None:
        """Return the location of a key's newest put, expired or not; None after a delete."""
        location = self.locations.get(key)
        return self.expired.get(key) if location is None else location

    # --- moments -------------------------------------------------------------------------------

    def open_view(self, seq: int, owner: object = None) -> ReadView:
        """Return the keydir as of now. Under the lock. Complexity: O(1)."""
        view = ReadView(self, next(self._view_numbers), seq, owner)
        views, number = self.views, view.number
        views[number] = weakref.ref(view, lambda _: views.pop(number, None))  # one that leaks closes itself
        return view

    def close_view(self, view: ReadView) -> None:
        """Stop keeping a view up; its user is told so. Without the lock."""
        view.close()  # first: what is not noted any more must not be taken for unchanged
        self.views.pop(view.number, None)

    def noted_segments(self) -> set[int]:
        """Return the segments into which the undo maps of open views point. Under the lock."""
        return {segment for view in self._open_views() for segment in view.segments}

    def drop_views(self) -> None:
        """Take from every open view what it has read ahead: the store is closed, and its scans are to say so."""
        for view in self._open_views():
            view.read_ahead.clear()

    def _open_views(self) -> list[ReadView]:
        return [view for reference in list(self.views.values()) if (view := reference()) is not None]

    def _remember(self, key: bytes) -> None:
        location = self.locations.get(key)
        for view in self._open_views():
            view.remember(key, location, self.expires.get(key, 0) if location is not None else 0)

    def _remember_all(self, known: Callable[[], set[int]] | None = None) -> None:
        if known is not None:
            segments = known() if self.locations else set()
        else:
            segments = set(map(rshift, self.locations.values(), itertools.repeat(SEGMENT_SHIFT)))
        # The index is of no use any more here. Views that cannot have it sort what they need when they are read.
        is_right = self.changed is not None and self._index is not None and len(self.changed) < _FEW_CHANGES
        index = self.index() if is_right else None
        self._drop_index()  # first: it has one owner, and a call that is repeated must not hand it on once more
        for view in self._open_views():
            view.remember_all(self.locations, self.expires, segments, index)
            index = None

    # --- time ----------------------------------------------------------------------------------

    def is_due(self, now_ms: int) -> bool:
        """Tell whether `purge_some` has anything to do."""
        return self._due.is_due(now_ms) or (self._leaving.is_due(now_ms) and not self.is_held)

    def purge_some(self, now_ms: int, sizes_of: SizeOf, count: int = PURGED_AT_ONCE) -> bool:
        """Take out some of the keys whose time has come, ``count`` at most; tell whether there may be more.

        Under the lock. Interrupted, it is to be repeated, and the dead bytes are to be counted anew. Complexity:
        O(1) a key, about 1.5 µs; more when a dict has to grow, 60 ms at 700,000 expired keys.
        """
        self.finish_purge()
        self._is_purging = True
        self.latest_ms = max(self.latest_ms, now_ms)

        def grace_of(key: bytes) -> int | None:
            when_ms = self.expires.get(key)
            return None if when_ms is None else when_ms + self.grace_ms

        while self._due.is_due(now_ms) and count > 0:
            count -= 1 + self._due.advance(
                now_ms, self.expires.get, lambda key: self._expire(key, now_ms, sizes_of), count
            )
        while self._leaving.is_due(now_ms) and count > 0 and not self.is_held:
            count -= 1 + self._leaving.advance(now_ms, grace_of, lambda key: self._forget(key, sizes_of), count)
        if not self.expires:
            self.expires.clear()  # with the memory of all that have been in it
        if not self.expired:
            self.expired.clear()
        self._is_purging = False
        self.is_behind = self.is_due(now_ms)
        return self.is_behind

    def finish_purge(self) -> None:
        """Make good what an interrupted `purge_some` has left: a key in two places, or counted out twice by views."""
        if self._is_purging:
            for key in self.expired.keys() & self.locations.keys():
                del self.locations[key]
            for view in self._open_views():
                view.count_anew()
            self._is_purging = False

    def _expire(self, key: bytes, now_ms: int, sizes_of: SizeOf) -> None:
        when_ms, location = self.expires[key], self.locations.get(key)
        if location is not None:
            if self.changed is not None:
                self.changed.add(key)
            for view in self._open_views():
                view.count_out(key)
            # In this order: a compaction, which looks without the lock, must find it in one of the two.
            self.expired[key] = location
            del self.locations[key]
        if when_ms + self.grace_ms > now_ms or self.is_held:
            self._leaving.add(key, when_ms + self.grace_ms)
        else:
            self._forget(key, sizes_of)

    def _forget(self, key: bytes, sizes_of: SizeOf) -> None:
        if key in self.locations:
            return  # it is there again
        location = self.expired.pop(key, None)
        del self.expires[key]
        if location is not None:
            segment, size = location >> SEGMENT_SHIFT, location & SIZE_MASK or sizes_of(location)
            rest = min(size, OVERHEAD + len(key))
            self.lapsed[segment] = self.lapsed.get(segment, 0) + rest
            self.dead[segment] = self.dead.get(segment, 0) + size - rest

    # --- order ---------------------------------------------------------------------------------

    def _members(self) -> dict[bytes, int]:
        return self.locations

    def is_ordered(self, worth: int) -> bool:
        """Tell whether there is an index, or so few keys, at most ``worth``, that it is soon made."""
        return (self.changed is not None and self._index is not None) or len(self.locations) <= worth

    def forget_index(self) -> None:
        """Drop the index if keeping it up has become dearer than sorting anew; called now and then."""
        if self.changed is not None and len(self.changed) > len(self.locations) + 1000:
            self._drop_index()

    # --- bytes ---------------------------------------------------------------------------------

    def count_dead(self, segment: int, size: int) -> None:
        """Count bytes of a segment as dead."""
        self.dead[segment] = self.dead.get(segment, 0) + size

    def has_dead(self, segment: int) -> bool:
        """Tell whether anything of a segment is dead, or will be once nothing older remains."""
        return bool(self.gone_bytes(segment))

    def gone_bytes(self, segment: int) -> int:
        """Return the bytes of a segment that are neither live nor its header."""
        return self.dead.get(segment, 0) + self.hiding_bytes(segment)

    def hiding_bytes(self, segment: int) -> int:
        """Return the bytes of a segment that go only once nothing older remains: tombstones, and what becomes one."""
        return self.tombstones.get(segment, 0) + self.lapsed.get(segment, 0)

    def is_whole(self, segment: int) -> bool:
        """Tell whether every put in a segment is the newest of its key, but for what open views have noted. Without
        the lock.

        That is a zero in `dead`, where nothing says nothing: `open_segment` puts it there, for a segment that is
        empty yet or whose copies all keys have been pointed at; `drop_segments` takes it away before the first key
        is pointed elsewhere. One look-up, so what it answers was true when it was asked, and what was read before
        is right if nothing was noted since.
        """
        return self.dead.get(segment, 1) == 0

    def open_segment(self, segment: int) -> None:
        """Count what of a segment is dead from now on: every put in it is the newest of its key, or counted already."""
        self.dead.setdefault(segment, 0)

    def drop_segments(self, segments: list[int]) -> None:
        """Forget the counts of segments that a compaction has replaced, or that are retired."""
        for segment in segments:
            self.dead.pop(segment, None)
            self.tombstones.pop(segment, None)
            self.lapsed.pop(segment, None)

    def recount(self, entry_bytes: dict[int, int], sizes_of: SizeOf) -> None:
        """Count the dead bytes anew from what lives; ``entry_bytes`` are each segment's without its header.

        Complexity: O(n). Needed after a call was interrupted between a location and its count.
        """
        self.finish_purge()
        self.lapsed = {segment: size for segment, size in self.lapsed.items() if segment in entry_bytes}
        dead = {segment: size - self.hiding_bytes(segment) for segment, size in entry_bytes.items()}
        for table in (self.locations, self.expired):
            for location in table.values():
                segment = location >> SEGMENT_SHIFT
                dead[segment] = dead.get(segment, 0) - (location & SIZE_MASK or sizes_of(location))
        for segment in dead.keys() - entry_bytes.keys():
            del dead[segment]  # replaced, and its keys are being pointed at the copies
        self.dead = dead
        self.recounts += 1

    # --- opening -------------------------------------------------------------------------------

    def load(self, segment: int, hint: Hint, entry_bytes: int, sizes_of: SizeOf) -> None:
        """Add what one segment says, on top of what the older ones said.

        ``entry_bytes`` is the segment's length without its header. Complexity: bulk operations, 0.3 µs
        a key into an empty keydir; ``sizes_of`` is asked only for what the segment replaces.
        """
        locations = self.locations
        if hint.clears:
            replaced = dict(self.dead)
            for old in locations.values():
                replaced[old >> SEGMENT_SHIFT] = replaced.get(old >> SEGMENT_SHIFT, 0) + sizes_of(old)
            self.dead = replaced
            locations.clear()
            self.expires.clear()
        base = segment << SEGMENT_SHIFT
        if locations:
            replaced_keys = [*filter(locations.__contains__, hint.keys), *hint.tombstones]
            for key in replaced_keys:
                old_location = locations.get(key)
                if old_location is not None:
                    self.count_dead(old_location >> SEGMENT_SHIFT, old_location & SIZE_MASK or sizes_of(old_location))
                    self.expires.pop(key, None)
            for key in hint.tombstones:
                locations.pop(key, None)
        locations.update(zip(hint.keys, map(base.__or__, hint.positions), strict=True))
        self.expires.update(hint.expires)
        self.dead[segment] = self.dead.get(segment, 0) + entry_bytes - hint.live_bytes - hint.tombstone_bytes
        if hint.tombstone_bytes:
            self.tombstones[segment] = self.tombstones.get(segment, 0) + hint.tombstone_bytes

    def finish_loading(self) -> None:
        """Build what `load` leaves for the end."""
        self._due.clear()
        for key, when_ms in self.expires.items():
            self._due.add(key, when_ms)
