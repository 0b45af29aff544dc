"""Reader: get, scan and count without a lock, now or as of one moment.

Where a key's entry lies is one look-up, the entry one slice of a mapping; in between a compaction may have removed the
segment, then the key is looked up again, for it has been moved before. A follower's segment may have been compacted
away by the writer; then that is said, for a follower moves only when it is told. A read that meets an expired key takes
it out of the keydir, and some others with it.

One moment is a view of the keydir. It is walked through in chunks, under the lock only for as long as it takes to
select their keys. Nothing here refers to the store, which could not be dropped otherwise; an open view does, so an
iterator keeps the store open.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from itertools import chain, islice

from .._lean import TYPE_CHECKING
from ..contract.convert import Entry, EntryStat
from ..contract.ordered import EVERYTHING, Range
from ..errors import BytekvError, CorruptionError
from ..options import Options
from .codec.entry import (
    EXPIRING_ENTRY_SIZE,
    KIND,
    PUT,
    SIZE_MASK,
    Head,
    StoredEntry,
    decode_entry,
    decode_head,
    unpack_location,
)
from .codec.runs import Pairs
from .fast import read_many
from .index.order import Ordered
from .index.read_view import ReadView
from .pacer import Pacer
from .state import State
from .write.durability import Durability

if TYPE_CHECKING:
    from typing import Any, NoReturn, TypeVar

    T = TypeVar("T")
    E = TypeVar("E")
    F = TypeVar("F", StoredEntry, Head)

__all__ = ["Reader", "entry_of", "stat_of"]


def entry_of(stored: StoredEntry) -> Entry:
    """Return an entry as users see it."""
    expires = stored.expires_ms / 1000 if stored.expires_ms else None
    return Entry(stored.key, stored.value, stored.seq, stored.modified_ms / 1000, expires)


def stat_of(head: Head) -> EntryStat:
    """Return what an entry says before its value as users see it."""
    expires = head.expires_ms / 1000 if head.expires_ms else None
    return EntryStat(head.key, head.value_size, head.seq, head.modified_ms / 1000, expires)


class _Gone:
    """Stand in for the keydir's dict once the store is closed: whatever is asked of it raises."""

    def __init__(self, refuse: Callable[[], BytekvError]) -> None:
        self._refuse = refuse

    def get(self, key: bytes, default: object = None) -> NoReturn:
        raise self._refuse()

    def __contains__(self, key: object) -> NoReturn:
        raise self._refuse()

    def __len__(self) -> NoReturn:
        raise self._refuse()


class Reader:
    """Read one store. Without the lock."""

    def __init__(self, state: State, durability: Durability, options: Options) -> None:
        self._state, self._durability = state, durability
        self._segments = state.segments
        self._keydir = state.keydir
        self._tuning = state.tuning
        self._now_ms = state.keydir.now_ms
        self.ordering: Any = threading.RLock()  # taken before the store's lock, never inside of it
        self._trusting = not options.verify_reads
        self._locations: Any = state.keydir.locations
        self._readers: Any = state.segments.open.table

    def shut(self, refuse: Callable[[], BytekvError]) -> Any:
        """Have every read raise from now on, those that are under way included; return what does so."""
        self._locations = _Gone(refuse)
        self._keydir.drop_views()
        return self._locations

    def check_open(self) -> None:
        """Raise what `shut` was given, if it was."""
        self._locations.get(b"")

    def _get_ready(self) -> None:
        """Check that the store is open, and have shown first what an interrupted call left."""
        self.check_open()
        if self._state.readers_must_wait:
            self._durability.redo_for_reader()

    # --- the newest ----------------------------------------------------------------------------

    def find(self, key: bytes) -> StoredEntry | None:
        """Return the checked entry of a key, None if there is none or it has expired."""
        return self._find(key, self.read)

    def stat(self, key: bytes) -> Head | None:
        """Return what the entry of a key says before its value, None if there is none or it has expired."""
        return self._find(key, self.read_head)

    def _find(self, key: bytes, read: Callable[[bytes, int], F]) -> F | None:
        now_ms = self._now_ms()
        gone: int | None = None
        while True:
            self.check_open()
            location = self._keydir.locate(key, now_ms)
            if location is None and key in self._locations:
                self.purge()
                location = self._locations.get(key)  # one that is still there is a put's that was under way
            if location is None:
                return None
            try:
                found = read(key, location)
                return None if 0 < found.expires_ms <= now_ms else found
            except KeyError:
                gone = self._moved(location, gone)

    def find_many(self, keys: list[bytes]) -> dict[bytes, bytes]:
        """Return the values of those keys that exist, each as of its own moment."""
        if self._state.readers_must_wait:
            self._durability.redo_for_reader()
        found: dict[bytes, bytes] = {}
        for _, pairs in read_many(
            keys, self._locations, self._readers, lambda _: False, self._value, self._now_ms, trusting=self._trusting
        ):
            found.update(pairs)
        return found

    def _value(self, key: bytes) -> bytes | None:
        if self._state.readers_must_wait:
            self._durability.redo_for_reader()
        found = self.find(key)
        return None if found is None else found.value

    def read(self, key: bytes, location: int) -> StoredEntry:
        """Return the entry at a location, checked, and checked to be the key's; KeyError if it was removed."""
        raw, seed, segment_id, offset = self._segments.open.raw(location)
        path = self._segments.directory.segment_path(segment_id)
        found = decode_entry(raw, seed, path, offset)
        if found.key != key:
            raise CorruptionError(path, offset, f"holds key {found.key!r} where {key!r} was expected")
        return found

    def read_head(self, key: bytes, location: int) -> Head:
        """Return what the entry at a location says before its value; KeyError if it was removed.

        Checked is that it is a put of this key, of the size that the location tells. If not, the whole entry says what
        is wrong.
        """
        segment_id, offset, size = unpack_location(location)
        wanted = EXPIRING_ENTRY_SIZE + len(key)
        file, _ = self._segments.open.get(segment_id)
        found = decode_head(file[offset : offset + (min(size, wanted) if size else wanted)])
        if found is None or found.key != key or found.flags & KIND != PUT or (size and found.size != size):
            whole = self.read(key, location)
            return Head(whole.flags, key, len(whole.value), whole.seq, whole.modified_ms, whole.expires_ms)
        return found

    def _moved(self, location: int, gone: int | None) -> int:
        """Return a location whose segment was removed, for another look; `CorruptionError` if it is the ``gone`` one.

        A compaction moves every key and every view's memory before it removes a segment, so only a store that is
        being closed may leave one behind.
        """
        if location == gone:
            self._state.check_reentry()
            with self._state.lock, self._state:
                self.check_open()
            segment_id, offset, _ = unpack_location(location)
            path = self._segments.directory.segment_path(segment_id)
            raise CorruptionError(path, offset, "was removed while it was needed; close the store and open it again")
        return location

    def purge(self) -> None:
        """Take some expired keys out of the keydir; not in the middle of this thread's own write."""
        if not self._state.is_entered:
            with self._state.lock, self._state:
                self._state.purge_some()

    def has(self, key: bytes) -> bool:
        """Tell whether a key is there that seems to have expired: a put of it may have been under way."""
        if self._state.is_entered:  # a handler, perhaps in the middle of that put: the entry itself tells
            return self.find(key) is not None
        with self._state.lock, self._state:
            self._state.purge_some()
            self.check_open()
            return self._keydir.locate(key, self._now_ms()) is not None

    def count_between(self, range_: Range) -> int:
        """Return how many keys lie in a range, expired ones not counted."""
        if range_ == EVERYTHING:
            return self.count()
        bounds = range_.start, range_.stop, range_.include_start, range_.include_stop
        return self._after_purge(lambda: self._keydir.count_between(*bounds))

    def keys_between(self, range_: Range) -> list[bytes]:
        """Return the keys of a range, expired ones excepted."""
        bounds = range_.start, range_.stop, range_.include_start, range_.include_stop
        return self._after_purge(lambda: self._keydir.keys_between(*bounds))

    def _after_purge(self, ask: Callable[[], T]) -> T:
        """Ask under the lock, with nothing in the keydir that has expired and with the order made before."""
        self._get_ready()
        self._state.check_reentry()
        pacer = Pacer(self._segments.directory.files)
        while True:
            self._order(self._keydir)
            with self._state.lock, self._state:
                self.check_open()
                if not (self._keydir.is_due(self._now_ms()) and self._state.purge_some()):
                    return ask()
            pacer.rest(0)

    def _order(self, *needed: Ordered) -> None:
        for kept in needed:
            if kept.is_order_due:
                with self.ordering:  # others need the same order
                    self._state.order(kept)

    def count(self) -> int:
        """Return how many keys there are, expired ones not counted."""
        self._get_ready()
        if self._keydir.is_due(self._now_ms()) and not self._state.is_entered:
            pacer = Pacer(self._segments.directory.files)
            while True:
                with self._state.lock, self._state:
                    if not self._state.purge_some():
                        return len(self._locations)
                pacer.rest(0)
        return len(self._locations)

    # --- one moment ----------------------------------------------------------------------------

    def open_view(self, owner: object) -> ReadView:
        """Return the keydir as it is now; it keeps ``owner``."""
        self._get_ready()
        self._state.check_reentry()
        if self._keydir.is_due(self._now_ms()):
            self.purge()  # not all of it: a view need not be rid of what has expired
        with self._state.lock, self._state:
            return self._keydir.open_view(self._state.visible_seq, owner)

    def close_view(self, view: ReadView) -> None:
        """End a moment, and remove the files that only it needed."""
        self._keydir.close_view(view)
        self.remove_obsolete()

    def remove_obsolete(self) -> None:
        """Remove the files that nobody can need any more."""
        # From a finaliser in the middle of this thread's own write it is left to the next call.
        if not self._state.is_entered and self._segments.obsolete.has_replaced:
            with self._state.lock, self._state:
                free = self._segments.reap(self._keydir.noted_segments())
            self._segments.obsolete.remove(free)

    def find_in(self, view: ReadView, key: bytes) -> StoredEntry | None:
        """Return the checked entry that a key had at the moment of a view, None if there was none."""
        return self._find_in(view, key, self.read)

    def _find_in(self, view: ReadView, key: bytes, read: Callable[[bytes, int], F]) -> F | None:
        now_ms = self._now_ms()
        gone: int | None = None
        while True:
            self.check_open()
            location = view.locate(key, now_ms)
            if location is None:
                return None
            try:
                return read(key, location)
            except KeyError:
                gone = self._moved(location, gone)

    def entry_in(self, view: ReadView, key: bytes) -> Entry | None:
        """Return the same as users see it."""
        found = self.find_in(view, key)
        return None if found is None else entry_of(found)

    def value_in(self, view: ReadView, key: bytes) -> bytes | None:
        """Return its value."""
        found = self.find_in(view, key)
        return None if found is None else found.value

    def values_in(self, view: ReadView, keys: list[bytes]) -> dict[bytes, bytes]:
        """Return the values of those keys that existed."""
        self._get_ready()
        found: dict[bytes, bytes] = {}
        for pairs in self._read_at(view, keys):
            found.update(pairs)
        view.check_open()
        return found

    def stat_in(self, view: ReadView, key: bytes) -> EntryStat | None:
        """Return what the entry that a key had says before its value, None if there was none."""
        found = self._find_in(view, key, self.read_head)
        return None if found is None else stat_of(found)

    def stats_in(self, view: ReadView, range_: Range, limit: int | None) -> Iterator[EntryStat]:
        """Walk through a range at the moment of a view, with what each entry says before its value."""
        found = (self.stat_in(view, key) for key in self.walk_in(view, range_, None))
        return islice((stat for stat in found if stat is not None), limit)

    def now_ms(self) -> int:
        """Return the time with which expiries are compared."""
        return self._now_ms()

    def count_in(self, view: ReadView, range_: Range | None = None) -> int:
        """Return how many keys there were at the moment of a view, those not counted that expired since."""
        if range_ is not None and range_ != EVERYTHING:
            if view.noted_count > self._tuning.few_noted:
                return sum(map(len, self._keys_in(view, range_, None)))
            return self._after_purge(lambda: view.count_in(range_))
        self.count()  # takes out what has expired
        self._state.check_reentry()
        with self._state.lock, self._state:
            return len(view)

    def _select(self, view: ReadView, range_: Range, count: int) -> list[bytes]:
        return self._select_mortal(view, range_, count)[0]

    def _select_mortal(self, view: ReadView, range_: Range, count: int) -> tuple[list[bytes], set[bytes]]:
        """Return the next keys of a range, and some that expire now, all of those among them."""
        self._state.check_reentry()
        self._order(self._keydir, view)
        with self._state.lock, self._state:
            keys = view.select(*range_, count)
            return keys, self._keydir.expiring_among(keys)

    def walk_in(self, view: ReadView, range_: Range, limit: int | None) -> Iterator[bytes]:
        """Walk through the keys of a range at the moment of a view."""
        return chain.from_iterable(self._keys_in(view, range_, limit))

    def _keys_in(self, view: ReadView, range_: Range, limit: int | None) -> Iterator[list[bytes]]:
        scan = object()
        count = self._tuning.first_chunk if limit is None else min(limit, self._tuning.first_chunk)
        try:
            while not range_.is_empty and limit != 0:
                self.check_open()
                keys, mortal = self._select_mortal(view, range_, count)
                limit = yield from self._give(view, scan, self._there(view, keys, mortal), limit)
                if len(keys) < count:
                    return
                range_ = range_.after(keys[-1])
                # With a limit, too: many of those that follow may have expired.
                count = min(2 * count, self._tuning.last_chunk)
        finally:
            view.end_read_ahead(scan)

    def _give(
        self, view: ReadView, scan: object, pieces: Iterator[list[E]], limit: int | None
    ) -> Generator[list[E], None, int | None]:
        """Yield pieces of what a scan has found, up to the limit; return what is left of that."""
        for piece in pieces:
            if limit is not None:
                piece = piece[:limit]
                limit -= len(piece)
            view.read_ahead(scan, piece)
            self.check_open()  # in this order, the reverse of that in which a store is closed
            yield piece
            self.check_open()
            if not piece:
                view.check_open()
            if limit == 0:
                break
        return limit

    def _there(self, view: ReadView, selected: list[bytes], mortal: set[bytes]) -> Iterator[list[bytes]]:
        """Yield those of the selected keys that were there at the moment of a view, in pieces that cannot expire."""
        # Who changes a key notes it first. So what was selected is of the moment unless it is noted by now.
        if view.undo:
            mortal |= view.undo.keys() & selected
        if not mortal:
            yield selected
            return
        some: list[bytes] = []
        for key in selected:
            if key not in mortal:
                some.append(key)
                continue
            if some:
                yield some
                some = []
            if view.locate(key, self._now_ms()) is not None:
                yield [key]
        if some:
            yield some

    def pairs_in(self, view: ReadView, range_: Range, limit: int | None) -> Iterator[tuple[bytes, bytes]]:
        """Walk through keys and values of a range at the moment of a view."""
        return chain.from_iterable(self._chunks_in(view, range_, limit))

    def _chunks_in(self, view: ReadView, range_: Range, limit: int | None) -> Iterator[list[tuple[bytes, bytes]]]:
        scan = object()
        chunk = self._tuning.first_chunk if limit is None else 1
        try:
            while not range_.is_empty and limit != 0:
                # More than is wanted, once all there was had expired: so may many of those that follow.
                count = min(chunk if limit is None else max(limit, chunk), self._tuning.last_chunk)
                self._get_ready()
                keys = self._select(view, range_, count)
                limit = yield from self._give(view, scan, self._read_at(view, keys), limit)
                if len(keys) < count:
                    return
                range_ = range_.after(keys[-1])
                chunk *= 8
        finally:
            view.end_read_ahead(scan)

    def rows_in(self, view: ReadView, range_: Range) -> Iterator[tuple[list[tuple[bytes, bytes]], dict[bytes, float]]]:
        """Yield keys and values of a range at the moment of a view, in pieces, with when those expire that do."""
        for pairs in self._chunks_in(view, range_, None):
            expires: dict[bytes, float] = {}
            # Before anything else is done: of a key that has expired since, nobody knows for ever when it did.
            if self._keydir.can_expire or view.undo:
                times = ((key, view.expiry_of(key)) for key, _ in pairs)
                expires = {key: expires_ms / 1000 for key, expires_ms in times if expires_ms}
            yield pairs, expires

    def _read_at(self, view: ReadView, keys: list[bytes]) -> Iterator[Pairs]:
        """Yield the pairs of keys at the moment of a view, some at a time."""
        done = 0
        for stop, pairs in read_many(
            keys, self._locations, self._readers, self._is_whole, self._value, self._now_ms, trusting=self._trusting
        ):
            # Who changes a key notes it first. So what was read is of the moment unless it is noted by now.
            if view.undo and not view.undo.keys().isdisjoint(some := keys[done:stop]):
                pairs = self._pairs_at(view, some)
            done = stop
            yield pairs

    def _is_whole(self, segment: int) -> bool:
        # In this order: what is counted by now counts for all that was changed before the view was opened.
        return not self._state.is_uncounted and self._keydir.usage.is_whole(segment)

    def _pairs_at(self, view: ReadView, keys: list[bytes]) -> Pairs:
        found = ((key, self.value_in(view, key)) for key in keys)
        return [(key, value) for key, value in found if value is not None]

    # --- the first and the last ----------------------------------------------------------------

    def end_key(self, *, reverse: bool) -> bytes | None:
        """Return the first key, the last if ``reverse``; None if there is none. It may have expired."""
        self._prepare_to_select()
        with self._state.lock, self._state:
            return self._keydir.end_key(reverse=reverse)

    def _prepare_to_select(self) -> None:
        self._get_ready()
        self._state.check_reentry()
        self._order(self._keydir)

    def first(self, range_: Range, get: Callable[[bytes], bytes | None]) -> Iterator[tuple[bytes, bytes]] | None:
        """Return what a walk gives that ends after the first pair of a range; None if that takes more than a look.

        Without a view: both are read under the lock, 4 µs instead of 12.
        """
        if range_.is_empty:
            return None
        self._prepare_to_select()
        state, keydir = self._state, self._keydir
        with state.lock, state:
            if state.readers_must_wait or keydir.can_expire:
                return None
            if range_.start is None and range_.stop is None:
                key = keydir.end_key(reverse=range_.reverse)
            else:
                key = next(iter(keydir.select(*range_, 1)), None)
            location = None if key is None else keydir.newest(key)
            if key is None or location is None or not location & SIZE_MASK:
                return None  # not there, or large: others do not wait for that
            value = get(key)
        return None if value is None else self._only((key, value))

    def _only(self, pair: tuple[bytes, bytes]) -> Iterator[tuple[bytes, bytes]]:
        self.check_open()
        yield pair

    # --- now -----------------------------------------------------------------------------------

    def walk(self, owner: object, range_: Range, limit: int | None) -> Iterator[bytes]:
        """Walk through the keys of a range as they are now."""
        view = self.open_view(owner)
        return chain.from_iterable(self._closing(self._keys_in(view, range_, limit), view))

    def pairs(self, owner: object, range_: Range, limit: int | None) -> Iterator[tuple[bytes, bytes]]:
        """Walk through keys and values of a range as they are now."""
        view = self.open_view(owner)
        return chain.from_iterable(self._closing(self._chunks_in(view, range_, limit), view))

    def stats(self, owner: object, range_: Range, limit: int | None) -> Iterator[EntryStat]:
        """Walk through a range as it is now, with what each entry says before its value."""
        view = self.open_view(owner)
        return self._closing(self.stats_in(view, range_, limit), view)

    def walker(self, owner: object) -> Callable[[Range, int | None], Iterator[bytes]]:
        """Return what walks through ranges as they are now."""
        view = self.open_view(owner)
        return lambda range_, limit: self.walk_in(view, range_, limit)

    def _closing(self, walk: Iterator[T], view: ReadView) -> Iterator[T]:
        try:
            yield from walk
        finally:
            self.close_view(view)
