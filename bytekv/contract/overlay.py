"""Overlay: writes that have not been carried out yet, over what a store holds.

It reads as the store would after them. The store's own keys must not change while there are writes: a transaction
keeps other writers out.

*Iteration.* A walk shows the moment of its call. Of its own writes an overlay notes in every open walk what a key was
before. Keys come from three sorted places, a chunk at a time: the store, less what has been written here, what has
been written here, and what is noted. A loop that takes the first key and deletes it meets a growing run of deleted
keys in the store; where such a run ends is remembered, so that it is passed in one step.

*Interrupts.* A write changes several things, one after the other. What was there is noted first: if an exception
strikes in between and is caught, the next call takes back what had been done.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from itertools import count, islice

from .._lean import TYPE_CHECKING
from .batch import Write, Writes
from .convert import NEVER, Bytes, Entry, to_bytes
from .ordered import OrderedMapping, Range, sorted_list

if TYPE_CHECKING:
    from typing import Any, Final, Protocol

    class Below(Protocol):
        """What an overlay needs of its store."""

        def get(self, key: Bytes) -> bytes | None: ...

        def get_many(self, keys: Iterable[Bytes]) -> dict[bytes, bytes]: ...

        def ttl(self, key: Bytes) -> float | None: ...

        def entry(self, key: Bytes) -> Entry: ...

        def _now_ms(self) -> int: ...

        def __contains__(self, key: object) -> bool: ...

        def __len__(self) -> int: ...

        def _walk(self, range_: Range, limit: int | None) -> Iterator[bytes]: ...

        def _count(self, range_: Range) -> int: ...


__all__ = ["ABSENT", "Overlay"]

_FIRST_CHUNK: Final = 64
_LAST_CHUNK: Final = 1024
_LONG_RUN: Final = 64  # of written keys: passing over fewer is cheaper than beginning anew after them

#: Instead of a write: nothing has been written under this key.
ABSENT: Final[Any] = object()


class _Walk:
    """An open walk: what the keys were, at the moment of its call, that have been written since."""

    __slots__ = ("__weakref__", "undo", "vanished")

    def __init__(self) -> None:
        self.undo: dict[bytes, Any] = {}  # key -> its write then, or ABSENT
        self.vanished: Any = None  # those of them that may have been there

    def note(self, key: bytes, write: Any) -> None:
        """Remember what a key was, unless it has been written since the call before."""
        if key not in self.undo:
            if write is not None:
                if self.vanished is None:
                    self.vanished = sorted_list()
                self.vanished.add(key)
            self.undo[key] = write

    def sort_again(self) -> None:
        """Make the sorted list anew, after an interrupt that may have struck in the middle of changing it."""
        self.vanished = sorted_list()
        self.vanished.update(key for key, write in self.undo.items() if write is not None)


class Overlay(OrderedMapping):
    """What a store would hold after some writes, which stay in memory. Not for several threads at once.

    For a subclass: `_write` is the only way in, `_written` tells what has been written under a key, and ``_writes`` are
    all of them in the order of the last write to each key, as a batch commits them.
    """

    def __init__(self, store: Below) -> None:
        self._store = store
        self._writes: Writes = {}
        self._puts = 0  # of them
        #: Keys written for the first time since `__len__` looked at them; of the others those that the store has,
        #: how many without an expiry, and which with one.
        self._counts: tuple[list[bytes], int, list[bytes]] = [], 0, []
        self._own: Any = None  # keys that were put; None: nobody has asked for their order
        self._walks: dict[int, weakref.ref[_Walk]] = {}
        self._walk_numbers = count()
        #: By direction: a key of the store -> the last of the run of written ones that it is in, as far as is known.
        self._runs: dict[bool, dict[bytes, bytes]] = {False: {}, True: {}}
        self._undo: tuple[bytes, Any] | None = None  # a key that is being written, and its write before

    def _check(self) -> None:
        """Raise unless this may be used now; every call and every step of a walk begins here."""
        if self._undo is not None:
            self._take_back()

    # --- writing -------------------------------------------------------------------------------

    def _write(self, key: bytes, write: Write) -> None:
        """Write under a key, which takes its place at the end; None deletes it. Complexity: O(1) for each open walk."""
        writes = self._writes
        old = writes.get(key, ABSENT)
        undo = self._undo = key, old
        if self._walks:
            for reference in list(self._walks.values()):
                walk = reference()
                if walk is not None:
                    walk.note(key, old)
        if self._own is not None and (write is None) is not (old is None or old is ABSENT):
            (self._own.discard if write is None else self._own.add)(key)
        if old is ABSENT:
            self._counts[0].append(key)
        else:
            del writes[key]
        writes[key] = write
        self._puts += (write is not None) - (old is not None and old is not ABSENT)
        if self._undo is not undo:  # a signal handler has written meanwhile, and took this one back before
            self._derive()
        self._undo = None

    def _take_back(self) -> None:
        """Undo a write that was not finished, again and again if need be. What walks have noted stays true."""
        assert self._undo is not None
        key, old = self._undo
        if old is ABSENT:
            self._writes.pop(key, None)
        else:
            self._writes[key] = old
        for reference in list(self._walks.values()):
            walk = reference()
            if walk is not None and walk.vanished is not None:
                walk.sort_again()
        self._derive()
        self._undo = None

    def _derive(self) -> None:
        """Make anew what follows from the writes."""
        self._own = None
        self._counts = list(self._writes), 0, []
        self._puts = sum(write is not None for write in self._writes.values())

    # --- reading -------------------------------------------------------------------------------

    def _written(self, key: bytes) -> Write:
        """Return what has been written under a key: a value, perhaps with an expiry, None if it was deleted; `ABSENT`
        if nothing."""
        self._check()
        return self._writes.get(key, ABSENT)

    def __getitem__(self, key: Bytes) -> bytes:
        """Return the value of ``key`` after the writes; `KeyError` if there is none."""
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
        """Tell whether ``key`` exists after the writes; reads no file. Complexity: O(1)."""
        self._check()
        key = to_bytes("key", key)
        return self._writes[key] is not None if key in self._writes else key in self._store

    def __len__(self) -> int:
        """Return the number of keys. Complexity: O(1), plus O(1) for each key that was written, once, and O(number of
        written keys that have an expiry in the store)."""
        self._check()
        store = self._store
        fresh, replaced, mortal = self._counts
        if fresh:
            mortal = mortal.copy()
            for key in fresh:
                if key in store:
                    try:
                        is_mortal = store.ttl(key) is not None
                    except KeyError:  # it has just expired
                        is_mortal = True
                    if is_mortal:
                        mortal.append(key)
                    else:
                        replaced += 1
            self._counts = [], replaced, mortal  # at once, so that an interrupt counts none of them twice
        return len(store) - replaced - sum(key in store for key in mortal) + self._puts

    def get_many(self, keys: Iterable[Bytes]) -> dict[bytes, bytes]:
        """Return the values of those of ``keys`` that exist after the writes. Complexity: O(number of keys)."""
        self._check()
        wanted = [to_bytes("key", key) for key in keys]
        self._check()
        writes = self._writes
        below = self._store.get_many([key for key in wanted if key not in writes])
        found: dict[bytes, bytes] = {}
        for key in wanted:
            write = writes[key] if key in writes else below.get(key)
            if write is not None:
                found[key] = write[0] if isinstance(write, tuple) else write
        return found

    def ttl(self, key: Bytes) -> float | None:
        """Return the seconds that ``key`` has left after the writes, None if it does not expire; `KeyError` if it does
        not exist. What was written here with a ``ttl`` still has all of it: that counts from the commit on."""
        key = to_bytes("key", key)
        write = self._written(key)
        if write is ABSENT:
            return self._store.ttl(key)
        if write is None:
            raise KeyError(key)
        expiry = write[1] if isinstance(write, tuple) else None
        if expiry is None or expiry == NEVER:
            return None
        return max(0, expiry.ttl_ms or expiry.expires_ms - self._store._now_ms()) / 1000

    def _count(self, range_: Range) -> int:
        self._check()
        count = self._store._count(range_)
        for key, write in self._writes.items():
            if range_.holds(key):
                count += (write is not None) - (key in self._store)
        return count

    def _walker(self) -> Callable[[Range, int | None], Iterator[bytes]]:
        walk = self._begin_walk()
        return lambda range_, limit: (key for key, _ in self._steps(walk, range_, limit, self._exists))

    def _walk(self, range_: Range, limit: int | None) -> Iterator[bytes]:
        return self._walker()(range_, limit)

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
                write = undo.get(key, ABSENT) if key in undo else writes.get(key, ABSENT)
                value = find(key) if write is ABSENT else write[0] if isinstance(write, tuple) else write
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
        last: bytes | None = None  # the last key of that run
        while not range_.is_empty:
            end = None
            for key in self._store._walk(range_, None):
                if key in writes:
                    passed.append(key)
                    last = key
                    end = runs.get(key)
                    if end is not None and end != key:
                        last = end
                        break
                    end = None
                elif passed:
                    self._remember(runs, passed, last)
                    passed = []
                    yield key
                else:
                    yield key
            if end is None:
                self._remember(runs, passed, last)
                return
            range_ = range_.after(end)

    def _remember(self, runs: dict[bytes, bytes], passed: list[bytes], last: bytes | None) -> None:
        if last is not None and (len(passed) >= _LONG_RUN or any(key in runs for key in passed)):
            runs.update(dict.fromkeys(passed, last))
