"""Flattened paths: the fast twin of each plain one, with its figure.

==========================  ===========================  ====================================================
here                        the plain one                what it costs
==========================  ===========================  ====================================================
`FastCommitter.put`         `Committer.put`              1.7 µs instead of 11
`FastCommitter.put_for`     `Committer.put_for`          2.9 µs instead of 12
`FastCommitter.add`         `Committer.add`              2.3 µs instead of 11
`FastCommitter.expire`      `Committer.expire`           4.4 µs instead of 19
`FastCommitter.delete`      `Committer.delete`           1.8 µs instead of 12
`FastCommitter.put_over`    `Store.put` with ``if_seq``  2.8 µs instead of 18
`FastCommitter.write_few`   `PutRun`                     6 µs instead of 13 for one write, 16 instead of 27 for 8
`DurableCommitter.put`      `Committer.put`              without its sync 11 µs instead of 17
`DurablePut.apply`          `AtomicChange.apply`         0.5 µs instead of 2
`read_many`                 `Reader.find` of each key    0.2 to 0.7 µs an entry instead of 3
`get`                       `Store.get`                  0.5 µs instead of 3
`getitem`                   `Store.__getitem__`          the same; a call of `get` would be a tenth of it
==========================  ===========================  ====================================================

The first five were measured in one run (values of 100 bytes, processor time).

Knows how an entry looks, where it goes and where readers find it. Whatever is not the common case is left to the plain
way. tests/engine/test_fast_paths.py shows that both leave the same bytes and the same keydir, and read the same values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import update_wrapper
from itertools import pairwise
from struct import Struct
from struct import error as StructError

from .._lean import TYPE_CHECKING
from ..contract.convert import check_sizes, to_bytes
from ..contract.store import Store as AbstractStore
from ..errors import ReentryError
from .codec.checksum import CRC, RESIDUE, checksum
from .codec.entry import (
    ENTRY,
    ENTRY_EXPIRES,
    ENTRY_SIZE,
    EXPIRES,
    FIXED_SIZE,
    KIND,
    OFFSET_MASK,
    OFFSET_SHIFT,
    OVERHEAD,
    PREFIX,
    PUT,
    SEGMENT_SHIFT,
    SIZE_MASK,
    TOMBSTONE,
)
from .codec.runs import Pairs, cut_pairs, is_sound
from .state import ENTERED, REENTRY, State
from .write.change import AtomicChange, Operation, PutRun
from .write.commit import PURGED_BY_A_PUT, Committer
from .write.durability import Waiter

if TYPE_CHECKING:
    from typing import Any, Final, TypeVar

    from ..contract.batch import Writes
    from .codec.entry import StoredEntry
    from .log.segment import Writer

    G = TypeVar("G", bound=Callable[..., object])

__all__ = ["DurableCommitter", "FastCommitter", "get", "getitem", "read_many", "shortened"]

_HELD: Final = 1 << 20  # bytes of values in memory at once, or one value
_AT_ONCE: Final = 1024  # keys that are looked up together, if they are not in one run
_SAMPLE: Final = 64  # keys that tell whether their entries are of few sizes
_FEWEST: Final = 8  # keys for which it pays to look whether their entries are alike
_NOT_OPEN: Final = (b"", 0)
_ANYTHING: Final = -1  # no location

_pack_entry = ENTRY.pack
_pack_mortal = Struct(ENTRY.format + "Q").pack  # with ENTRY_EXPIRES
_prefix_of = PREFIX.unpack_from
_expiry_of = ENTRY_EXPIRES.unpack_from
_pack_crc = CRC.pack


# --- writing -----------------------------------------------------------------------------------


class FastIntent:
    """A put or a delete that is being carried out; one object for all of a store, so that none has to be made."""

    __slots__ = ("entry", "location", "tombstones")

    def __init__(self) -> None:
        self.entry = b""
        self.location = 0  # of a put; of a tombstone its offset alone
        self.tombstones = 0  # bytes in this segment after a delete

    def redo(self, state: State) -> None:
        """Write the entry and point the keydir at it."""
        entry, location, writer = self.entry, self.location, state.segments.writer
        assert writer is not None  # no other segment begins before this was redone
        flags, key_size, _, seq, _ = ENTRY.unpack_from(entry)
        fixed = FIXED_SIZE[flags]
        key = entry[fixed : fixed + key_size]
        expires_ms = ENTRY_EXPIRES.unpack_from(entry, ENTRY_SIZE)[0] if flags & EXPIRES else 0
        offset = location >> OFFSET_SHIFT & OFFSET_MASK
        writer.write(offset, [entry])
        writer.end = offset + len(entry)
        state.seq = seq
        if flags == TOMBSTONE:
            state.keydir.usage.set_tombstones(writer.header.segment_id, self.tombstones)
            state.keydir.remove(key, state.size_of)
        else:
            state.keydir.put(key, location, expires_ms, state.size_of)


class FastCommitter(Committer):
    """A committer whose puts and deletes are visible at once."""

    __slots__ = ("_clock_ns", "_intent")

    def __init__(self, state: State, wake: Callable[[], bool]) -> None:
        super().__init__(state, wake)
        self._clock_ns = state.files.clock_ns
        self._intent = FastIntent()

    def put(self, key: bytes, value: bytes) -> int:
        """Append one put and show it; return its seq.

        `Committer.put`, `AtomicChange` and `Keydir.put` for the common case: a small value, room in the mapping, no
        expiry anywhere, no other writer's turn. For everything else `State.require_slow_path` was called.
        """
        state = self.state
        if state.intent is not None:
            state.redo_interrupted()
        with state.lock:
            if state.intent is not None:
                state.redo()
            state.intent = ENTERED
            try:
                writer = state.segments.writer
                if writer is not None:
                    key_size = len(key)
                    size = key_size + len(value) + 27  # OVERHEAD
                    offset = writer.end
                    end = offset + size
                    if end <= writer.fast_end and size <= 8191:  # SIZE_MASK; a longer one has no fast place
                        seq = state.seq + 1
                        body = _pack_entry(1, key_size, len(value), seq, self._clock_ns() // 1000000) + key + value
                        entry = body + _pack_crc(checksum(body, writer.seed))
                        location = writer.base | offset << 13 | size
                        intent = self._intent
                        intent.entry = entry
                        intent.location = location
                        state.intent = intent
                        writer.map[offset:end] = entry  # type: ignore[index]
                        writer.end = end
                        state.seq = seq
                        keydir = state.keydir
                        if not keydir.is_plain and (keydir.is_behind or key in keydir.special):
                            keydir.put(key, location, 0, state.size_of)
                            if keydir.is_behind:
                                state.purge_some(PURGED_BY_A_PUT)
                        else:
                            locations = keydir.locations
                            old = locations.get(key)
                            if old is None:
                                keydir.insert(key, location)
                            else:
                                locations[key] = location
                                dead, segment = keydir.usage.dead, old >> 44
                                dead[segment] = dead.get(segment, 0) + (old & 8191 or state.size_of(old))
                        state.intent = None
                        return seq
            except StructError:  # a clock before 1970, which the plain way knows to write
                if state.intent is not ENTERED:
                    state.readers_must_wait = True
                    raise
            except BaseException:
                state.readers_must_wait = True
                raise
            state.intent = None
        check_sizes(key, value)
        return self.write([Operation(PUT, key, value)])

    def write_few(self, writes: Writes) -> int | None:
        """Carry out some writes as one change; return the last seq; as `put` does. None: it is left to `change`.

        What `PutRun` does for all of them at once, one by one, which takes less time where they are few.
        """
        state = self.state
        if state.intent is not None:
            state.redo_interrupted()
        with state.lock:
            if state.intent is not None:
                state.redo()
            state.intent = ENTERED
            try:
                writer = state.segments.writer
                run = None if writer is None else self._place_few(writes, writer)
                if run is not None:
                    state.intent = run
                    run.redo(state)
                    state.intent = None
                    return run.seq
            except StructError:  # a clock before 1970, which the plain way knows to write
                if state.intent is not ENTERED:
                    state.readers_must_wait = True
                    raise
            except BaseException:
                state.readers_must_wait = True
                raise
            state.intent = None
        return None

    def _place_few(self, writes: Writes, writer: Writer) -> PutRun | None:
        """Put writes at the end of the segment; None if nothing is left of them, or if there is no fast place."""
        state = self.state
        keydir, now_ms = state.keydir, self._clock_ns() // 1000000
        if keydir.is_behind:
            state.purge_some(PURGED_BY_A_PUT)
        if None in writes.values():
            locate = keydir.locate
            writes = {
                key: write for key, write in writes.items() if write is not None or locate(key, now_ms) is not None
            }
        offset, seq, base, seed = writer.end, state.seq, writer.base, writer.seed
        last = seq + len(writes)
        parts: list[bytes] = []
        locations: list[int] = []
        times_ms: dict[bytes, int] = {}
        gone: list[bytes] = []
        tombstones = 0
        continues = 0x20
        for key, write in writes.items():
            seq += 1
            if seq == last:
                continues = 0
            if isinstance(write, bytes):
                body = _pack_entry(1 | continues, len(key), len(write), seq, now_ms) + key + write
            elif write is None:
                body = _pack_entry(2 | continues, len(key), 0, seq, now_ms) + key
                gone.append(key)
                tombstones += len(body) + 4
            else:
                value, expiry = write
                expires_ms = expiry.at(now_ms)
                if expires_ms:
                    times_ms[key] = expires_ms
                    body = _pack_mortal(0x11 | continues, len(key), len(value), seq, now_ms, expires_ms) + key + value
                else:
                    body = _pack_entry(1 | continues, len(key), len(value), seq, now_ms) + key + value
            size = len(body) + 4
            if size > 8191:
                return None
            parts += body, _pack_crc(checksum(body, seed))
            if write is not None:
                locations.append(base | offset << 13 | size)
            offset += size
        if not parts or offset > writer.fast_end:
            return None
        run = PutRun.__new__(PutRun)
        run.writer, run.offset, run.end, run.seq = writer, writer.end, offset, last
        keys = [key for key, write in writes.items() if write is not None] if gone else list(writes)
        run.parts, run.keys, run.locations, run.gone, run.now_ms = [b"".join(parts)], keys, locations, gone, now_ms
        run.expires = [times_ms.get(key, 0) for key in keys] if times_ms else None
        run.tombstones = keydir.usage.tombstone_bytes(base >> 44) + tombstones if gone else None
        return run

    def add(self, key: bytes, value: bytes, ttl_ms: int) -> bool:
        """Append one put if the key does not exist, and tell whether it did not."""
        seq = self.put_over(key, value, ttl_ms, None)
        return seq > 0 if seq >= 0 else super().add(key, value, ttl_ms)

    def put_over(self, key: bytes, value: bytes, ttl_ms: int, over: int | None) -> int:
        """Append one put if the key's entry is where it should be; return its seq, 0 if it is not, -1 unless fast."""
        return self.put_for(key, value, ttl_ms, over=over)

    def expire(self, key: bytes, ttl_ms: int, read: Callable[[bytes, int], StoredEntry]) -> bool:
        """Append the key's value once more, so that it expires, if the key exists; tell whether it does."""
        return self.put_for(key, None, ttl_ms) > 0 or super().expire(key, ttl_ms, read)

    def put_for(self, key: bytes, value: bytes | None, ttl_ms: int, *, over: int | None = _ANYTHING) -> int:
        """Append one put that expires and show it; return its seq; as `put` does.

        For `put_over` and `expire`: 0 if the key's entry does not lie at ``over`` (None: there is none); without a
        value the one that it has; it does not expire if ``ttl_ms`` is 0. What is not the common case is left to
        them: -1.
        """
        is_asked = over != _ANYTHING or value is None
        state = self.state
        if state.intent is not None:
            state.redo_interrupted()
        with state.lock:
            if state.intent is not None:
                state.redo()
            state.intent = ENTERED
            try:
                writer, keydir = state.segments.writer, state.keydir
                now_ms = self._clock_ns() // 1000000
                if value is None:
                    value = self._value_of(key, now_ms)
                if writer is not None and value is not None:
                    key_size = len(key)
                    size = key_size + len(value) + (35 if ttl_ms else 27)
                    offset = writer.end
                    end = offset + size
                    if end <= writer.fast_end and size <= 8191:
                        if over != _ANYTHING and keydir.locate(key, now_ms) != over:
                            state.intent = None
                            return 0
                        seq = state.seq + 1
                        if ttl_ms:
                            expires_ms = now_ms + ttl_ms
                            body = _pack_mortal(0x11, key_size, len(value), seq, now_ms, expires_ms) + key + value
                        else:
                            expires_ms = 0
                            body = _pack_entry(1, key_size, len(value), seq, now_ms) + key + value
                        entry = body + _pack_crc(checksum(body, writer.seed))
                        location = writer.base | offset << 13 | size
                        intent = self._intent
                        intent.entry = entry
                        intent.location = location
                        state.intent = intent
                        writer.map[offset:end] = entry  # type: ignore[index]
                        writer.end = end
                        state.seq = seq
                        if ttl_ms:
                            keydir.put_mortal(key, location, expires_ms, now_ms, state.size_of)
                        else:
                            keydir.put(key, location, 0, state.size_of)
                        if keydir.is_behind:
                            state.purge_some(PURGED_BY_A_PUT)
                        state.intent = None
                        return seq
            except StructError:  # a clock before 1970, which the plain way knows to write
                if state.intent is not ENTERED:
                    state.readers_must_wait = True
                    raise
            except BaseException:
                state.readers_must_wait = True
                raise
            state.intent = None
        if is_asked:
            return -1
        assert value is not None
        return super().put_for(key, value, ttl_ms)

    def _value_of(self, key: bytes, now_ms: int) -> bytes | None:
        """Return the value of a key whose entry is small and sound; under the lock."""
        keydir = self.state.keydir
        location = keydir.locations.get(key)
        if location is not None and keydir.expires.get(key, now_ms + 1) > now_ms:
            view, seed = self.state.segments.open.table.get(location >> 44, _NOT_OPEN)
            offset = location >> 13 & 0x7FFFFFFF
            raw = view[offset : offset + (location & 8191)]
            if raw and checksum(raw, seed) == RESIDUE:
                flags, key_size = _prefix_of(raw)
                fixed = FIXED_SIZE[flags]
                end = fixed + key_size
                if flags & KIND == PUT and fixed and raw[fixed:end] == key:
                    return raw[end:-4]
        return None

    def delete(self, key: bytes, location: int | None = None) -> bool:
        """Append one tombstone if the key exists, and tell whether it did; as `put` does."""
        state = self.state
        if state.intent is not None:
            state.redo_interrupted()
        with state.lock:
            if state.intent is not None:
                state.redo()
            state.intent = ENTERED
            try:
                writer, keydir = state.segments.writer, state.keydir
                if writer is not None:
                    key_size = len(key)
                    size = key_size + 27
                    offset = writer.end
                    end = offset + size
                    if end <= writer.fast_end and size <= 8191:
                        now_ms = self._clock_ns() // 1000000
                        is_special = not keydir.is_plain and (keydir.is_behind or key in keydir.special)
                        old = keydir.locate(key, now_ms) if is_special else keydir.locations.get(key)
                        if old is None or (location is not None and old != location):
                            state.intent = None
                            return False
                        old_size = old & 8191 or state.size_of(old)
                        seq = state.seq + 1
                        body = _pack_entry(2, key_size, 0, seq, now_ms) + key
                        entry = body + _pack_crc(checksum(body, writer.seed))
                        segment = writer.base >> 44
                        usage = keydir.usage
                        tombstones = usage.tombstones.get(segment, 0) + size
                        intent = self._intent
                        intent.entry, intent.tombstones = entry, tombstones
                        intent.location = offset << 13
                        state.intent = intent
                        writer.map[offset:end] = entry  # type: ignore[index]
                        writer.end = end
                        state.seq = seq
                        usage.tombstones[segment] = tombstones
                        if is_special:
                            keydir.remove(key, state.size_of)
                            if keydir.is_behind:
                                state.purge_some(PURGED_BY_A_PUT)
                        else:
                            keydir.discard(key)
                            dead, segment = usage.dead, old >> 44
                            dead[segment] = dead.get(segment, 0) + old_size
                        state.intent = None
                        return True
            except StructError:  # a clock before 1970, which the plain way knows to write
                if state.intent is not ENTERED:
                    state.readers_must_wait = True
                    raise
            except BaseException:
                state.readers_must_wait = True
                raise
            state.intent = None
        return super().delete(key, location)


class DurablePut(AtomicChange):
    """One put without expiry that waits for the sync that makes it visible."""

    __slots__ = ()

    def apply(self, state: State) -> None:
        """Point the keydir at the entry."""
        uncounted, state.is_uncounted = state.is_uncounted, True
        key, location, _ = self.effects[0]
        state.keydir.put(key, location, 0, state.size_of)  # type: ignore[arg-type]
        state.is_uncounted = uncounted


class DurableCommitter(Committer):
    """A committer whose changes are visible once they are durable."""

    __slots__ = ()

    def put(self, key: bytes, value: bytes) -> int:
        """Append one put and wait until it is durable and visible; return its seq."""
        check_sizes(key, value)
        state, durability = self.state, self.durability
        if state.lock_is_owned() or state.sync_lock_is_owned():
            raise ReentryError(REENTRY)
        try:
            waiter: Waiter | None = None
            with state.lock:
                state.ready()
                if self.turn.owner is not None:
                    self.turn.wait()
                if state.keydir.is_behind:
                    state.purge_some(PURGED_BY_A_PUT)
                writer = state.segments.writer
                size = len(key) + len(value) + OVERHEAD
                if writer is None or size > SIZE_MASK or writer.end + size > writer.room_end:
                    seq = self.append([Operation(PUT, key, value)])
                else:
                    seq, offset = state.seq + 1, writer.end
                    now_ms = self._files.now_ms()
                    body = _pack_entry(PUT, len(key), len(value), seq, now_ms) + key + value
                    entry = body + _pack_crc(checksum(body, writer.seed))
                    location = writer.base | offset << OFFSET_SHIFT | size
                    queue = state.queue
                    changes = queue.changes
                    change = DurablePut.__new__(DurablePut)
                    change.writer, change.offset, change.end = writer, offset, offset + size
                    change.parts, change.effects = [entry], [(key, location, 0)]
                    change.seq, change.now_ms = seq, now_ms
                    if changes and changes[-1].writer is writer:
                        change.tombstones = changes[-1].tombstones
                    else:
                        change.tombstones = state.keydir.usage.tombstone_bytes(writer.base >> SEGMENT_SHIFT)
                    state.intent = change
                    writer.map[offset : offset + size] = entry  # type: ignore[index]
                    changes.append(change)
                    queue.overlay[key] = seq, location
                    writer.end = offset + size
                    state.seq = seq
                is_joined = not (state.deferred_events or state.wants_worker)  # a logging handler must not lead
                if is_joined:
                    waiter = durability.group.join(seq)
                state.intent = None
            if not is_joined:
                durability.finish(seq)
            elif waiter is None or durability.is_left_alone(waiter):
                durability.lead(seq)
            if state.durable_seq < seq:
                durability.sync_to(seq)
            if state.deferred_events:
                state.emit()
            return seq
        except BaseException:
            state.readers_must_wait = True
            raise


# --- reading -----------------------------------------------------------------------------------


def shortened(short: Callable[..., object]) -> Callable[[G], G]:
    """Put the short way into the place of the plain one that is decorated; no call in between tells them apart."""
    return lambda plain: update_wrapper(short, plain)  # type: ignore[return-value]


def get(self: Any, key: Any, default: object = None) -> object:
    """Do what `Store.get` does; short for an open segment, an entry of less than 8 KiB that has not expired."""
    # Only what is not found is asked for its type: no str equals a key.
    try:
        location = self._locations.get(key)
    except TypeError:  # a bytearray
        location = None
    if self._state.readers_must_wait or (location is None and type(key) is not bytes):
        key = to_bytes("key", key)
        if self._state.readers_must_wait:
            self._durability.redo_for_reader()
        location = self._locations.get(key)
    if location is None:
        return default
    reader = self._readers.get(location >> 44)
    if reader is not None:
        view, seed = reader
        offset = location >> 13 & 0x7FFFFFFF
        raw = view[offset : offset + (location & 8191)]
        if raw and (len(raw) == location & 8191 if self._trusting else checksum(raw, seed) == RESIDUE):
            flags, size = _prefix_of(raw)
            end = 23 + size
            if flags & 0xDF == PUT and raw[23:end] == key:
                return raw[end:-4]
            if (
                flags & 0xDF == 0x11  # EXPIRES
                and raw[31 : end + 8] == key
                and _expiry_of(raw, 23)[0] > self._files.clock_ns() // 1000000
            ):
                return raw[end + 8 : -4]
    found = self._reader.find(to_bytes("key", key))
    return default if found is None else found.value


def getitem(self: Any, key: Any) -> object:
    """Do what `Store.__getitem__` does; short where `get` is, for a key that does not expire."""
    if type(key) is bytes and not self._state.readers_must_wait:
        location = self._locations.get(key)
        reader = None if location is None else self._readers.get(location >> 44)
        if reader is not None:
            view, seed = reader
            offset = location >> 13 & 0x7FFFFFFF
            raw = view[offset : offset + (location & 8191)]
            if raw and (len(raw) == location & 8191 if self._trusting else checksum(raw, seed) == RESIDUE):
                flags, size = _prefix_of(raw)
                end = 23 + size
                if flags & 0xDF == PUT and raw[23:end] == key:
                    return raw[end:-4]
    return AbstractStore.__getitem__(self, key)


def read_many(
    keys: list[bytes],
    locations: Any,
    readers: Any,
    whole: Callable[[int], bool],
    find: Callable[[bytes], bytes | None],
    now_ms: Callable[[], int],
    *,
    trusting: bool,
) -> Iterator[tuple[int, Pairs]]:
    """Yield how many of ``keys`` have been looked up by now, and (key, value) of those among the latest that exist.

    Keys in order whose entries are of one size and lie next to each other, as a compaction leaves them, are cut out
    of one piece of the file and checked by one CRC: 0.2 µs an entry. Entries that lie elsewhere, but of few sizes,
    are put together by size and checked so, too: 0.4 µs. Those of many sizes cost 0.7.

    ``whole`` tells whether every entry of a segment is the newest of its key, so that keys that lie in it need not
    be looked up; `lambda _: False` where nobody notes what changes meanwhile. ``find`` reads one key with care.
    """
    at, count = 0, len(keys)
    while at < count:
        run = _run(keys, at, locations, readers, whole, now_ms, trusting=trusting)
        if run:
            at += len(run)
            yield at, run
            continue
        some = keys[at : at + _AT_ONCE]
        taken = 0
        if len(some) >= _FEWEST:
            taken, pairs = _scattered(some, locations, readers, find, now_ms, trusting=trusting)
        if taken:
            at += taken
            yield at, pairs
        else:
            yield from _one_by_one(some, at, locations, readers, find, now_ms, trusting=trusting)
            at += len(some)


def _run(
    keys: list[bytes],
    at: int,
    locations: Any,
    readers: Any,
    whole: Callable[[int], bool],
    now_ms: Callable[[], int],
    *,
    trusting: bool,
) -> Pairs | None:
    """Return the pairs of the next keys if their entries are alike and in one piece, None if they are not."""
    first = locations.get(keys[at])
    if first is None:
        return None
    size = first & SIZE_MASK
    if size < OVERHEAD + len(keys[at]):
        return None  # an entry of more than 8 KiB
    count = min(len(keys) - at, max(1, _HELD // size))
    step = size << OFFSET_SHIFT
    last = locations.get(keys[at + count - 1])
    if count < 2 or last is None or abs(last - first) != (count - 1) * step:
        return None
    wanted = keys[at : at + count] if count < len(keys) else keys
    is_reverse = last < first
    if is_reverse:
        first, wanted = last, wanted[::-1]
    segment = first >> SEGMENT_SHIFT
    reader = readers.get(segment)
    if reader is None or not (
        whole(segment) or list(map(locations.get, wanted)) == list(range(first, first + count * step, step))
    ):
        return None
    view, seed = reader
    offset = first >> OFFSET_SHIFT & OFFSET_MASK
    piece = view[offset : offset + count * size]
    pairs = cut_pairs(piece, wanted, size, now_ms)
    if pairs is None or not (trusting or is_sound(piece, seed, size, count)):
        return None
    if is_reverse:
        pairs.reverse()
    return pairs


def _scattered(
    keys: list[bytes],
    locations: Any,
    readers: Any,
    find: Callable[[bytes], bytes | None],
    now_ms: Callable[[], int],
    *,
    trusting: bool,
) -> tuple[int, Pairs]:
    """Return the pairs of the first keys, wherever their entries lie, and how many keys that are; 0 if they are not of
    few sizes."""
    taken, where = len(keys), list(map(locations.get, keys))
    if None in where:
        keys = [key for key, location in zip(keys, where, strict=True) if location is not None]
        where = [location for location in where if location is not None]
        if len(keys) < _FEWEST:
            return 0, []
    sizes = [location & 8191 for location in where]
    size = sizes[len(sizes) // 2]
    if sizes.count(size) == len(sizes):
        if size * len(keys) > _HELD:
            if taken > len(keys):
                return 0, []
            taken = _HELD // size
            keys, where = keys[:taken], where[:taken]
        pairs = _alike(keys, where, size, readers, now_ms, trusting=trusting)
        return (0, []) if pairs is None else (taken, pairs)
    if sum(sizes) > _HELD or 0 in sizes or sizes[:_SAMPLE].count(size) * 8 < len(sizes[:_SAMPLE]):
        return 0, []
    groups: dict[int, list[int]] = {}
    for at, size in enumerate(sizes):
        groups.setdefault(size, []).append(at)
    found: list[tuple[bytes, bytes] | None] = [None] * len(keys)
    rest: list[int] = []
    for size, group in groups.items():
        some = [keys[at] for at in group]
        pairs = None
        if len(group) >= _FEWEST:
            pairs = _alike(some, [where[at] for at in group], size, readers, now_ms, trusting=trusting)
        if pairs is None:
            rest += group
        else:
            for at, pair in zip(group, pairs, strict=True):
                found[at] = pair
    if rest:
        rest.sort()
        some = [keys[at] for at in rest]
        one_by_one = _one_by_one(some, 0, locations, readers, find, now_ms, trusting=trusting)
        others = {key: (key, value) for _, pairs in one_by_one for key, value in pairs}
        for at, key in zip(rest, some, strict=True):
            found[at] = others.get(key)
    return taken, [pair for pair in found if pair is not None]


def _alike(
    keys: list[bytes], where: list[int], size: int, readers: Any, now_ms: Callable[[], int], *, trusting: bool
) -> Pairs | None:
    """Return the pairs of keys whose entries are of one size, None if one has to be looked at more closely.

    Neighbours are read by one slice. All that lie in one segment are checked by one CRC.
    """
    if size < OVERHEAD + len(keys[0]):
        return None
    is_reverse = where[-1] < where[0]
    if is_reverse:
        keys, where = keys[::-1], where[::-1]
    parts = _neighbours(where, size, readers, trusting=trusting)
    if parts is None:
        by_segment: dict[int, tuple[int, list[bytes]]] = {}  # the seed with them: a compaction may close it meanwhile
        parts = []
        current = -1
        for location in where:
            segment = location >> 44
            if segment != current:
                view, seed = readers.get(segment, _NOT_OPEN)
                same = by_segment.setdefault(segment, (seed, []))[1]
                current = segment
            offset = location >> 13 & 0x7FFFFFFF
            part = view[offset : offset + size]
            parts.append(part)
            same.append(part)
        view = None
        if not trusting:
            for seed, same in by_segment.values():
                piece = b"".join(same)
                if len(piece) != size * len(same) or not is_sound(piece, seed, size, len(same)):
                    return None
    pairs = cut_pairs(b"".join(parts), keys, size, now_ms)
    if pairs is not None and is_reverse:
        pairs.reverse()
    return pairs


def _neighbours(where: list[int], size: int, readers: Any, *, trusting: bool) -> list[bytes] | None:
    """Return the bytes of entries of one size, each stretch of neighbours in one piece; None if there are few such."""
    count, step = len(where), size << OFFSET_SHIFT
    middle = count // 2
    if (where[1] - where[0], where[middle] - where[middle - 1], where[-1] - where[-2]).count(step) < 2:
        return None  # it is not worth a look at each
    breaks = [at for at, (one, next_one) in enumerate(pairwise(where), 1) if next_one - one != step]
    if len(breaks) > count // 4:
        return None
    parts = []
    for begin, end in pairwise([0, *breaks, count]):
        view, seed = readers.get(where[begin] >> SEGMENT_SHIFT, _NOT_OPEN)
        offset = where[begin] >> OFFSET_SHIFT & OFFSET_MASK
        part = view[offset : offset + (end - begin) * size]
        if not (trusting or is_sound(part, seed, size, end - begin)):
            return None
        parts.append(part)
    return parts


def _one_by_one(
    keys: list[bytes],
    at: int,
    locations: Any,
    readers: Any,
    find: Callable[[bytes], bytes | None],
    now_ms: Callable[[], int],
    *,
    trusting: bool,
) -> Iterator[tuple[int, Pairs]]:
    """Yield as `read_many` does, for keys of which the first is number ``at``; `Store.get` written out, less what is
    common."""
    pairs: Pairs = []
    held = 0
    current = -1
    view: Any = None
    seed = now = 0
    prefix_of = PREFIX.unpack_from
    for key, location in zip(keys, map(locations.get, keys), strict=True):
        at += 1
        if location is None:
            continue
        segment = location >> SEGMENT_SHIFT
        if segment != current:
            view, seed = readers.get(segment, (b"", 0))
            current = segment if view else -1
        offset = location >> OFFSET_SHIFT & OFFSET_MASK
        size = location & SIZE_MASK
        raw = view[offset : offset + size]
        # Unchecked it may be cut short: the file has grown beyond the mapping since that was looked up.
        if raw and (len(raw) == size if trusting else checksum(raw, seed) == RESIDUE):
            flags, key_size = prefix_of(raw)
            fixed = FIXED_SIZE[flags]
            end = fixed + key_size
            is_there = flags & 0x0F == PUT and raw[fixed:end] == key
            if is_there and flags & 0x10:
                if not now:
                    now = now_ms()
                is_there = _expiry_of(raw, 23)[0] > now
            if is_there:
                pairs.append((key, raw[end:-4]))
                held += size
                if held > _HELD:
                    view, current = None, -1  # a generator that is left here must not keep the file open
                    yield at, pairs
                    pairs, held = [], 0
                    now = 0
                continue
        value = find(key)
        if value is not None:
            pairs.append((key, value))
            held += len(value)
            if held > _HELD:
                view, current = None, -1
                yield at, pairs
                pairs, held = [], 0
    view = None
    yield at, pairs
