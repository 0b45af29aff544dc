"""The keydir: where each key's newest entry lies, and when it expires.

It knows nothing of files. All changes happen under the store's lock. `locate`, `newest`, `is_newest` and `in` need no
lock: a dict look-up is atomic, and what it returns is a location that was right at that moment.

Theory of operation. `locations` holds exactly the keys that exist, except those that have expired since the last purge;
readers look at the expiry as well. A purged key moves to `_expired`: it is gone for every reader and for good, but its
entry stays on disk as it is. Once its grace is over, it is forgotten. Then only its entry is left, which still hides
older ones of the same key.

Everything here but `locations` is derived and can be rebuilt from it. Only `locations` and `expires` are tables that
others may hold: the flattened paths, and a compaction's look at each entry, where a call would cost 0.1 µs of 0.5 to 2.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Container, Sequence
from operator import indexOf, rshift

from ..._lean import TYPE_CHECKING
from ..codec.entry import OVERHEAD, SEGMENT_SHIFT, SIZE_MASK
from ..codec.hint import Hint, positions_of, sum_of_sizes
from ..codec.manifest import SEGMENT_HEADER_SIZE, SegmentRow
from ..tuning import TUNING, Tuning
from .deadlines import BITS, Deadlines
from .order import Ordered, dismantle
from .read_view import ReadView, ReadViews
from .usage import SizeOf, Usage

if TYPE_CHECKING:
    from typing import Any, Final

__all__ = ["PURGED_AT_ONCE", "Keydir"]

_DELETED: Final = 0  # while loading, the location of a key that a newer segment has deleted
PURGED_AT_ONCE: Final = 100  # expired keys, less than a quarter of a millisecond


class _Every:
    """Contains every key."""

    def __contains__(self, key: object) -> bool:
        return True


_EVERY: Final = _Every()


class Keydir(Ordered):
    """Map keys to locations, in key order, and keep count of dead bytes per segment."""

    def __init__(self, grace_ms: int = 0, now_ms: Callable[[], int] = lambda: 0, tuning: Tuning = TUNING) -> None:
        self.now_ms = now_ms
        self.tuning = tuning
        self.locations: dict[bytes, int] = {}
        self.usage = Usage()
        self._views = ReadViews()
        self.expires: dict[bytes, int] = {}  # ms; every key in locations or _expired whose entry has an expiry
        self._expired: dict[bytes, int] = {}  # key -> location of those that were seen to be past it
        self._drop_index()
        self._due = Deadlines()  # of keys in locations: when they expire
        self._leaving = Deadlines()  # of keys in expired: when their grace is over
        self.grace_ms = grace_ms
        self.latest_ms = 0  # no key whose grace was over by then needs to be here
        #: No key expires and no view is open, so that a put is an assignment and a count. False says nothing: it is
        #: set before the first of these comes, and taken back by a put or a purge after the last has gone.
        self.is_plain = True
        #: The keys for which a put is more than that although others expire: those that expire themselves, and every
        #: one while a view is open.
        self.special: Container[bytes] = self.expires
        self.is_held = False  # nothing is forgotten for now
        self.is_behind = False  # the last purge has left something to do
        self._is_purging = False  # or was interrupted
        self.recounts = 0
        self.dropped: Any = None  # the index that a clear has dropped; `free_dropped`

    def __len__(self) -> int:
        return len(self.locations)

    def __contains__(self, key: object) -> bool:
        return key in self.locations

    # --- what is asked -------------------------------------------------------------------------

    def locate(self, key: bytes, now_ms: int) -> int | None:
        """Return a key's location, None if it does not exist or has expired. Safe without the lock."""
        location = self.locations.get(key)
        if location is not None and self.expires and self.expires.get(key, now_ms + 1) <= now_ms:
            return None
        return location

    def newest(self, key: bytes) -> int | None:
        """Return the location of a key's newest put, expired or not; None after a delete."""
        location = self.locations.get(key)
        return self._expired.get(key) if location is None else location

    def is_newest(self, key: bytes, location: int) -> bool:
        """Tell whether a key's newest put, expired or not, lies at a location. Safe without the lock."""
        # In this order: a key that expires is in the second before it leaves the first.
        return self.locations.get(key) == location or self._expired.get(key) == location

    def expiry_of(self, key: bytes) -> int | None:
        """Return when a key expires, in ms, None if it does not."""
        return self.expires.get(key)

    def expiries(self) -> dict[bytes, int]:
        """Return when each key with an expiry expires, in ms. Complexity: O(number of these)."""
        return self.expires.copy()

    def expiring_among(self, keys: list[bytes]) -> set[bytes]:
        """Return those of some keys, which are in order, that have an expiry, and perhaps others. Under the lock."""
        expires = self.expires
        if not expires or not keys:
            return set()
        if len(expires) * 4 > len(keys):
            return set() if expires.keys().isdisjoint(keys) else expires.keys() & keys
        first, last = sorted((keys[0], keys[-1]))
        return {key for key in expires if first <= key <= last}

    @property
    def can_expire(self) -> bool:
        """Tell whether there is a key with an expiry."""
        return bool(self.expires)

    @property
    def expiring_count(self) -> int:
        """Return how many keys have an expiry, those that have passed it and are still held included."""
        return len(self.expires)

    @property
    def expired_count(self) -> int:
        """Return how many keys are held that have expired."""
        return len(self._expired)

    @property
    def view_count(self) -> int:
        """Return how many views are open."""
        return len(self._views)

    def newest_of_all(self) -> dict[bytes, int]:
        """Return the location of every key's newest put, expired or not. Complexity: O(n)."""
        return {**self._expired, **self.locations}

    def expired_in(self, segments: Container[int]) -> dict[bytes, int]:
        """Return the keys that have expired and whose entries lie in some segments. Without the lock."""
        expired = self._expired.copy().items()
        return {key: location for key, location in expired if location >> SEGMENT_SHIFT in segments}

    # --- single keys ---------------------------------------------------------------------------

    def apply(self, change: Any, sizes_of: SizeOf, with_keys: Callable[[], set[int]]) -> bool:
        """Point keys where a change says; True if that was a clear, after which `recount` is due.

        Of the change are used: ``effects``, a list of (key or None for every key, location or None, expires_ms);
        ``writer``, of the segment that it lies in; ``tombstones``, their bytes there if that changes; ``now_ms``, when
        it was made.
        Repeatable, but for the count. ``with_keys``: as for `clear`.
        """
        if self._changed is not None:
            self.forget_index()
        if change.tombstones is not None:
            self.usage.set_tombstones(change.writer.base >> SEGMENT_SHIFT, change.tombstones)
        is_clear = False
        for key, location, expires_ms in change.effects:
            if key is None:
                self.clear(with_keys)
                is_clear = True
            elif location is None:
                self.remove(key, sizes_of)
            else:
                self.put(key, location, expires_ms, sizes_of)
        if self.expires or self._expired:
            self.is_behind = self.is_due(change.now_ms)
        return is_clear

    def put(self, key: bytes, location: int, expires_ms: int, sizes_of: SizeOf) -> None:
        """Point a key at a new location; the entry that it replaces is dead from now on.

        Repeating the call with the same location changes nothing, but for the count if it was interrupted.
        ``sizes_of`` is asked how large an entry is whose location does not say so.
        """
        locations = self.locations
        if expires_ms or not self.is_plain:
            old = self._put_with_care(key, location, expires_ms)
        else:
            if self._changed is not None and key not in locations:
                self._changed.add(key)
            old = locations.setdefault(key, location)
            if old != location:
                locations[key] = location
        if old is not None and old != location:
            self.usage.count_dead(old >> SEGMENT_SHIFT, old & SIZE_MASK or sizes_of(old))

    def _put_with_care(self, key: bytes, location: int, expires_ms: int) -> int | None:
        """Do what `put` does where something expires or a view is open; return the location that is replaced."""
        if expires_ms and not self._views:
            self.is_plain, self.special = False, self.expires
        else:
            self._see_what_is_special()
        old = self.locations.get(key)
        if self._views and old != location:
            self._remember(key)
        if old is None and self._changed is not None:
            self._changed.add(key)
        if self._expired and key in self._expired:
            old = self._revive(key)
        if expires_ms:
            before = self.expires.get(key)
            if before is None:
                self._due.add(key, expires_ms)  # first: repeated after an interrupt, a key that expires is only moved
                self.expires[key] = expires_ms  # before the location: it may have passed, and then nobody sees the key
            else:
                self._due.move(key, before, expires_ms)
            self.locations[key] = location
            self.expires[key] = expires_ms
        else:
            self.locations[key] = location
            if key in self.expires:
                self._expire_never(key)
        return old

    def put_mortal(self, key: bytes, location: int, expires_ms: int, now_ms: int, sizes_of: SizeOf) -> None:
        """Do what `put` does for a key that expires, and see whether anything is due: `put` and `is_due` written out
        for a key that has not expired, while no view is open."""
        expires, locations = self.expires, self.locations
        if self._views or key in self._expired:
            self.put(key, location, expires_ms, sizes_of)
        else:
            self.is_plain, self.special = False, expires
            before, old = expires.get(key), locations.get(key)
            if before is None:
                if old is None and self._changed is not None:
                    self._changed.add(key)
                self._due.add(key, expires_ms)  # in this order, as in `put`
                expires[key] = expires_ms
                locations[key] = location
            else:
                self._due.move(key, before, expires_ms)
                locations[key] = location
                expires[key] = expires_ms
            if old is not None and old != location:
                dead, segment = self.usage.dead, old >> 44
                dead[segment] = dead.get(segment, 0) + (old & 8191 or sizes_of(old))
        if self._due.order[0] >> BITS <= now_ms or self._leaving.order:
            self.is_behind = self.is_due(now_ms)

    def _see_what_is_special(self) -> None:
        self.is_plain = not (self.expires or self._views)
        self.special = _EVERY if self._views else self.expires

    def write_all(
        self,
        keys: list[bytes],
        locations: list[int],
        times_ms: list[int] | None,
        gone: list[bytes],
        now_ms: int,
        sizes_of: SizeOf,
    ) -> None:
        """Point keys at new locations, with the times at which they expire (0 and None: never), and forget others.

        Repeatable, but for the count.
        """
        expires, get = self.expires, self.locations.get
        if not self.is_plain:
            self._see_what_is_special()
        if self.is_plain and times_ms is None and not gone:  # what follows, less what finds nothing to do
            old = list(map(get, keys))
            if self._changed is not None and None in old:
                self._changed.update(key for key, location in zip(keys, old, strict=True) if location is None)
            self.locations.update(zip(keys, locations, strict=True))
            self.usage.count_removed(list(filter(None, old)), sizes_of)
            return
        mortal: dict[bytes, int] = {}
        if times_ms is not None:
            mortal = dict(zip(keys, times_ms, strict=True))
            if 0 in times_ms:
                mortal = {key: when_ms for key, when_ms in mortal.items() if when_ms}
            self.is_plain, self.special = False, _EVERY if self._views else expires
        before: dict[bytes, int] = {}  # of those that expired, or were to
        if expires and not (expires.keys().isdisjoint(keys) and expires.keys().isdisjoint(gone)):
            concerned = [*keys, *gone]
            times_before = list(map(expires.get, concerned))
            before = dict(zip(concerned, times_before, strict=True))  # type: ignore[arg-type]
            if None in times_before:
                before = {key: when_ms for key, when_ms in before.items() if when_ms is not None}
            for key in before if self._views else ():
                self._remember(key)
            for key in before.keys() & self._expired.keys() if self._expired else ():
                self.usage.count_replaced((self._revive(key),), sizes_of)
        replaced, lost = list(map(get, keys)), list(map(get, gone))
        for view in self._views.alive():
            view.remember_some(keys, replaced)
            view.remember_some(gone, lost)
        if self._changed is not None:
            self._changed.update(key for key, old in zip(keys, replaced, strict=True) if old is None)
            self._changed.update(gone)
        fresh = mortal
        if before:
            fresh = (
                {}
                if len(before) == len(keys) and not gone
                else {key: when_ms for key, when_ms in mortal.items() if key not in before}
            )
        self._due.add_all(fresh)  # in this order, as in `put`
        expires.update(fresh)
        self._due.move_all(before, mortal)
        self.locations.update(zip(keys, locations, strict=True))
        deque(map(self.locations.pop, gone, itertools.repeat(None)), maxlen=0)
        expires.update(mortal)
        if len(mortal) < len(keys) or gone:
            for key in before.keys() - mortal.keys():
                self._expire_never(key)
        self.usage.count_replaced(filter(None, itertools.chain(replaced, lost)), sizes_of)
        if expires or self._expired:
            self.is_behind = self.is_due(now_ms)

    def remove_all(self, keys: list[bytes], sizes_of: SizeOf) -> None:
        """Do what `remove` does for keys that are there; repeatable, but for the count."""
        if self.expires:
            for key in filter(self.expires.__contains__, keys):
                self.remove(key, sizes_of)
        views = self._views.alive()
        if views:
            lost = list(map(self.locations.get, keys))
            for view in views:
                view.remember_some(keys, lost)
        if self._changed is not None:
            self._changed.update(keys)
        self.usage.count_removed(list(filter(None, map(self.locations.pop, keys, itertools.repeat(None)))), sizes_of)

    def insert(self, key: bytes, location: int) -> None:
        """Do what `put` does for a key that is not there and not special."""
        if self._changed is not None:
            self._changed.add(key)
        self.locations[key] = location

    def discard(self, key: bytes) -> None:
        """Do what `remove` does, but for the count, for a key that is there and not special."""
        if self._changed is not None:
            self._changed.add(key)
        del self.locations[key]

    def remove(self, key: bytes, sizes_of: SizeOf) -> None:
        """Forget a key, live or expired; its entry is dead from now on."""
        self._see_what_is_special()
        if self._views:
            self._remember(key)
        if self._changed is not None:
            self._changed.add(key)
        old = self.locations.pop(key, None)
        if self._expired and key in self._expired:
            old = self._revive(key)
        if self.expires:
            self._expire_never(key)
        if old is not None:
            self.usage.count_dead(old >> SEGMENT_SHIFT, old & SIZE_MASK or sizes_of(old))

    def _revive(self, key: bytes) -> int:
        """Take a key out of `expired`."""
        self._leaving.discard(key, self.expires[key] + self.grace_ms)
        return self._expired.pop(key)

    def _expire_never(self, key: bytes) -> None:
        when_ms = self.expires.get(key)
        if when_ms is not None:
            self._due.discard(key, when_ms)
            self.expires.pop(key, None)

    def move(self, key: bytes, old: int, new: int) -> bool:
        """Point a key at the copy of its entry, if it still points at the original; a compare-and-set."""
        for table in (self.locations, self._expired):
            if table.get(key) == old:
                table[key] = new
                return True
        return False

    def move_all(self, keys: Sequence[bytes], originals: list[int], copies: list[int], sizes_of: SizeOf) -> None:
        """Do what `move` does for several keys; a copy at which no key points now is dead."""
        self.finish_purge()  # else a key is in two places, and only one of them would be moved
        locations = self.locations
        if list(map(locations.get, keys)) == originals:  # none was written to meanwhile, which is usual
            locations.update(zip(keys, copies, strict=True))
            return
        for key, old, new in zip(keys, originals, copies, strict=True):
            if not self.move(key, old, new):
                self.usage.count_dead(new >> SEGMENT_SHIFT, new & SIZE_MASK or sizes_of(new))

    def merge(self, segment: int, hint: Hint, sizes_of: SizeOf) -> None:
        """Apply what a segment says, all of which is newer than what is known.

        For a follower; repeatable, in the same order, but for the count.
        """
        base = segment << SEGMENT_SHIFT
        if hint.clears:
            self.usage.count_replaced(itertools.chain(self.locations.values(), self._expired.values()), sizes_of)
            self.clear()
        for key in hint.tombstones:
            if self.newest(key) is not None:
                self.remove(key, sizes_of)
        expires = hint.expires
        for key, position in zip(hint.keys, hint.positions, strict=True):
            self.put(key, base | position, expires.get(key, 0) if expires else 0, sizes_of)

    def relocate(self, segment: int, hint: Hint, is_older: Callable[[int], bool], sizes_of: SizeOf) -> None:
        """Point keys at the copies that a compaction has made; a key that is gone stays so. For a follower.

        A view may as well read the copies, and perhaps has to: the originals have been removed.
        """
        base = segment << SEGMENT_SHIFT
        for key, position in zip(hint.keys, hint.positions, strict=True):
            old, new = self.newest(key), base | position
            if old is not None and old != new and is_older(old):
                self.move(key, old, new)
                self.usage.count_dead(old >> SEGMENT_SHIFT, old & SIZE_MASK or sizes_of(old))
            elif old != new:
                self.usage.count_dead(segment, new & SIZE_MASK or sizes_of(new))

    def forget_segments(self, gone: Container[int]) -> None:
        """Remove every key that still points into one of these segments. For a follower. Complexity: O(n)."""
        for table in (self.locations, self._expired):
            for key in [key for key, location in table.items() if location >> SEGMENT_SHIFT in gone]:
                self.remove(key, lambda _: 0)  # the counts of such a segment are dropped as a whole

    def clear(self, segments: Callable[[], set[int]] | None = None) -> None:
        """Forget every key; `recount` is due afterwards.

        ``segments`` answers into which segments keys may point, where that is known without asking each of them.
        """
        if self._views:
            self._remember_all(segments)
        self.locations.clear()
        self.expires.clear()
        self._expired.clear()
        self._due.clear()
        self._leaving.clear()
        if segments is not None and self._index is not None:
            self.dropped = self._index  # to be freed without the lock: it may be what holds the keys
        self._drop_index()

    def free_dropped(self) -> None:
        """Free the index that a clear has dropped, some keys at a time. Without the lock."""
        dropped, self.dropped = self.dropped, None
        dismantle(dropped)

    # --- moments -------------------------------------------------------------------------------

    def open_view(self, seq: int, owner: object = None) -> ReadView:
        """Return the keydir as of now. Under the lock. Complexity: O(1)."""
        self.is_plain, self.special = False, _EVERY
        return self._views.open(self, seq, owner)

    def close_view(self, view: ReadView) -> None:
        """Stop keeping a view up; its user is told so. Without the lock."""
        self._views.close(view)

    def noted_segments(self) -> set[int]:
        """Return the segments into which the undo maps of open views point. Under the lock."""
        return {segment for view in self._views.alive() for segment in view.segments}

    def undo_of(self, segments: set[int]) -> list[tuple[ReadView, dict[bytes, int | None]]]:
        """Return the open views that remember locations in some segments, each with its undo map as it is now.

        Under the lock. Complexity: O(keys that these views remember), 10 ns each.
        """
        return [(view, view.copy_undo()) for view in self._views.alive() if not view.segments.isdisjoint(segments)]

    def drop_views(self) -> None:
        """Take from every open view what it has read ahead: the store is closed, and its scans are to say so."""
        for view in self._views.alive():
            view.drop_read_ahead()

    def _remember(self, key: bytes) -> None:
        location = self.locations.get(key)
        for view in self._views.alive():
            view.remember(key, location, self.expires.get(key, 0) if location is not None else 0)

    def _remember_all(self, known: Callable[[], set[int]] | None = None) -> None:
        if known is not None:
            segments = known() if self.locations else set()
        else:
            segments = set(map(rshift, self.locations.values(), itertools.repeat(SEGMENT_SHIFT)))
        # The index is of no use any more here. Views that cannot have it sort what they need when they are read.
        changed = None if self._index is None else self._changed
        index = self.index() if changed is not None and len(changed) < self.tuning.few_changes else None
        self._drop_index()  # first: it has one owner, and a call that is repeated must not hand it on once more
        for view in self._views.alive():
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
            self._see_what_is_special()
        if not self._expired:
            self._expired.clear()
        self._is_purging = False
        self.is_behind = self.is_due(now_ms)
        return self.is_behind

    def finish_purge(self) -> None:
        """Make good what an interrupted `purge_some` has left: a key in two places, or counted out twice by views."""
        if self._is_purging:
            for key in self._expired.keys() & self.locations.keys():
                del self.locations[key]
            for view in self._views.alive():
                view.count_anew()
            self._is_purging = False

    def _expire(self, key: bytes, now_ms: int, sizes_of: SizeOf) -> None:
        when_ms, location = self.expires[key], self.locations.get(key)
        if location is not None:
            if self._changed is not None:
                self._changed.add(key)
            for view in self._views.alive():
                view.count_out(key)
            # In this order: a compaction, which looks without the lock, must find it in one of the two.
            self._expired[key] = location
            del self.locations[key]
        if when_ms + self.grace_ms > now_ms or self.is_held:
            self._leaving.add(key, when_ms + self.grace_ms)
        else:
            self._forget(key, sizes_of)

    def _forget(self, key: bytes, sizes_of: SizeOf) -> None:
        if key in self.locations:
            return  # it is there again
        location = self._expired.pop(key, None)
        del self.expires[key]
        if location is not None:
            segment, size = location >> SEGMENT_SHIFT, location & SIZE_MASK or sizes_of(location)
            rest = min(size, OVERHEAD + len(key))
            self.usage.count_lapsed(segment, size, rest)

    # --- order ---------------------------------------------------------------------------------

    def _members(self) -> dict[bytes, int]:
        return self.locations

    def is_ordered(self, worth: int) -> bool:
        """Tell whether there is an index, or so few keys, at most ``worth``, that it is soon made."""
        return (self._changed is not None and self._index is not None) or len(self.locations) <= worth

    def forget_index(self) -> None:
        """Drop the index if keeping it up has become dearer than sorting anew; called now and then."""
        if self._changed is not None and len(self._changed) > len(self.locations) + 1000:
            self._drop_index()

    def end_key(self, *, reverse: bool) -> bytes | None:
        """Return the first key, the last if ``reverse``; None if there is none. Under the lock."""
        index = self.index()
        try:
            return index[-1] if reverse else index[0]  # type: ignore[no-any-return]
        except IndexError:
            return None

    # --- bytes ---------------------------------------------------------------------------------

    def recount(self, entry_bytes: dict[int, int], sizes_of: SizeOf) -> None:
        """Count the dead bytes anew from what lives; ``entry_bytes`` are each segment's without its header.

        Complexity: O(n). Needed after a call was interrupted between a location and its count.
        """
        self.finish_purge()
        self.usage.recount(entry_bytes, (self.locations.values(), self._expired.values()), sizes_of)
        self.recounts += 1

    # --- invariants ----------------------------------------------------------------------------

    def check(self) -> list[str]:
        """Return what is wrong with the tables, in words; nothing while a purge is unfinished. Under the lock.

        For tests. Complexity: O(n).
        """
        if self._is_purging:
            return []
        locations, expired, expires = self.locations, self._expired, self.expires
        wrong = super().check() + self.usage.check()
        wrong += [f"{key!r} exists and has expired" for key in expired.keys() & locations.keys()]
        wrong += [f"{key!r} has expired and has no expiry" for key in expired.keys() - expires.keys()]
        wrong += [
            f"{key!r} is gone and has an expiry" for key in expires if key not in locations and key not in expired
        ]
        wrong += [f"{key!r} will not come due" for key in (expires.keys() & locations.keys()) - self._due.keys()]
        wrong += [f"{key!r} will not be forgotten" for key in expired.keys() - self._leaving.keys()]
        if self.is_plain and (expires or self._views):
            wrong.append("a put is said to be plain where something expires or a view is open")
        for view in self._views.alive():
            wrong += [f"view {view.number}: {what}" for what in view.check()]
        return wrong

    # --- closing -------------------------------------------------------------------------------

    def keys_in(self, segments: Container[int], most: int) -> dict[int, tuple[list[bytes], list[int]]]:
        """Return keys and locations of what lies in each of some segments, of the ``most`` keys that came last.

        In the order of the dict, under the lock. Complexity: 0.1 µs a key that is looked at.
        """
        found: dict[int, tuple[list[bytes], list[int]]] = {}
        begin = stop = 0  # the locations in one segment, mostly the one of the next key, too
        pairs = zip(reversed(self.locations), reversed(self.locations.values()), strict=True)
        for key, location in itertools.islice(pairs, min(most, len(self.locations))):
            if not begin <= location < stop:
                segment = location >> SEGMENT_SHIFT
                if segment not in segments:
                    continue
                begin, stop = segment << SEGMENT_SHIFT, segment + 1 << SEGMENT_SHIFT
                keys, locations = found.setdefault(segment, ([], []))
            keys.append(key)
            locations.append(location)
        for keys, locations in found.values():
            keys.reverse()
            locations.reverse()
        return found

    def hint_for(self, row: SegmentRow, keys: list[bytes], locations: list[int], sizes_of: SizeOf) -> Hint | None:
        """Return the hint of a segment of which `Usage.tells_all`, None if these are not all keys that point there.

        Complexity: 0.05 µs a key.
        """
        positions = positions_of(row.segment_id, locations)
        live_bytes = sum_of_sizes(positions)
        if live_bytes is None:
            live_bytes = sum(location & SIZE_MASK or sizes_of(location) for location in locations)
        if live_bytes != row.length - SEGMENT_HEADER_SIZE - self.usage.gone_bytes(row.segment_id):
            return None
        expires = self.expires
        expiring = {key: expires[key] for key in filter(expires.__contains__, keys)} if expires else {}
        return Hint(row.length, row.last_seq, False, keys, positions, [], expiring, live_bytes, 0)

    # --- opening -------------------------------------------------------------------------------

    def load(self, found: list[tuple[int, int, Hint]], sizes_of: SizeOf) -> None:
        """Fill an empty keydir with what segments say, oldest first: id, bytes of entries and hint of each.

        The newest comes first, so that what an older one says of a key that is known is passed over: nothing is taken
        out again, and what lives of a segment is what it has added. ``found`` is used up, so that memory is given back
        on the way. Complexity: bulk operations, 0.3 µs a key, 0.2 for one that is known; ``sizes_of`` is asked only
        for what is dead and larger than a location can say.
        """
        locations, usage = self.locations, self.usage
        deleted: list[Sequence[bytes]] = []
        is_cleared = False
        while found:
            segment, entry_bytes, hint = found.pop()
            live_bytes = 0
            if not is_cleared:
                live_bytes = self._load_older(segment, hint, sizes_of)
                deleted.append(hint.tombstones)
            usage.load_segment(segment, entry_bytes - live_bytes - hint.tombstone_bytes, hint.tombstone_bytes)
            is_cleared = is_cleared or hint.clears
        for key in itertools.chain.from_iterable(deleted):
            if locations.get(key) == _DELETED:
                del locations[key]
        self.is_plain = not self.expires
        for key, when_ms in self.expires.items():
            self._due.add(key, when_ms)

    def _load_older(self, segment: int, hint: Hint, sizes_of: SizeOf) -> int:
        """Add what a segment says of keys of which nothing is known yet; return the bytes of their entries."""
        locations = self.locations
        base, keys, positions = segment << SEGMENT_SHIFT, hint.keys, hint.positions
        for key, when_ms in hint.expires.items():
            if key not in locations:
                self.expires[key] = when_ms
        deque(map(locations.setdefault, hint.tombstones, itertools.repeat(_DELETED)), maxlen=0)
        try:
            first = indexOf(map(locations.__contains__, keys), False)  # half as dear as to offer each a location
        except ValueError:
            return 0  # all are known
        known = len(locations)
        deque(map(locations.setdefault, keys[first:], map(base.__or__, positions[first:])), maxlen=0)
        added = len(locations) - known
        if added == len(keys):
            return hint.live_bytes
        sizes = list(map(SIZE_MASK.__and__, itertools.islice(reversed(locations.values()), added)))
        if 0 not in sizes:
            return sum(sizes)
        return hint.live_bytes - sum(
            position & SIZE_MASK or sizes_of(base | position)
            for key, position in zip(keys, positions, strict=True)
            if locations[key] != base | position
        )
