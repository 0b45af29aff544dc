"""Reads of many keys at once, by calls of C for all of them, not by bytecode for each.

Knows how an entry looks and where readers find it. The rest is left to the store, which reads one key with care: what
is missing, expires, fails its check or is larger than a location can say.

Keys in order whose entries are of one size and lie next to each other, as a compaction leaves them, are cut out
of one piece of the file and checked by one CRC: 0.2 µs an entry. Entries of one size that lie elsewhere cost 0.5 µs,
those of many sizes 0.7; `Store.get` costs 1.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

from .._lean import TYPE_CHECKING
from .codec.checksum import RESIDUE, checksum
from .codec.entry import OFFSET_MASK, OFFSET_SHIFT, OVERHEAD, PREFIX, PUT, SEGMENT_SHIFT, SIZE_MASK
from .codec.runs import Pairs, cut_pairs, is_sound

if TYPE_CHECKING:
    from typing import Any, Final

__all__ = ["read_many"]

_HELD: Final = 1 << 20  # bytes of values in memory at once, or one value
_AT_ONCE: Final = 1024  # keys that are looked up together, if they are not in one run
_FEWEST: Final = 8  # keys for which it pays to look whether their entries are alike
_NOT_OPEN: Final = (b"", 0)


def read_many(
    keys: list[bytes],
    locations: Any,
    readers: Any,
    whole: Callable[[int], bool],
    find: Callable[[bytes], bytes | None],
    *,
    trusting: bool,
) -> Iterator[tuple[int, Pairs]]:
    """Yield how many of ``keys`` have been looked up by now, and (key, value) of those among the latest that exist.

    ``whole`` tells whether every entry of a segment is the newest of its key, so that keys that lie in it need not
    be looked up; `lambda _: False` where nobody notes what changes meanwhile. ``find`` reads one key with care.
    """
    at, count = 0, len(keys)
    while at < count:
        run = _run(keys, at, locations, readers, whole, trusting=trusting)
        if run:
            at += len(run)
            yield at, run
        else:
            some = keys[at : at + _AT_ONCE]
            pairs = _alike(some, locations, readers, trusting=trusting)
            if pairs is None:
                yield from _one_by_one(some, at, locations, readers, find, trusting=trusting)
                at += len(some)
            else:
                at += len(pairs)
                yield at, pairs


def _run(
    keys: list[bytes], at: int, locations: Any, readers: Any, whole: Callable[[int], bool], *, trusting: bool
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
    pairs = cut_pairs(piece, wanted, size)
    if pairs is None or not (trusting or is_sound(piece, seed, size, count)):
        return None
    if is_reverse:
        pairs.reverse()
    return pairs


def _alike(keys: list[bytes], locations: Any, readers: Any, *, trusting: bool) -> Pairs | None:
    """Return the pairs of the first keys if their entries are of one size, wherever they lie, None if they are not.

    Neighbours are read by one slice and checked by one CRC. Where there are none it still takes four fifths of the
    time of `_one_by_one`.
    """
    count = len(keys)
    if count < _FEWEST:
        return None
    sample = list(map(locations.get, (keys[0], keys[count // 2], keys[-1])))
    if None in sample:
        return None
    size = sample[0] & SIZE_MASK
    if sample[1] & SIZE_MASK != size or sample[2] & SIZE_MASK != size or size < OVERHEAD + len(keys[0]):
        return None
    keys = keys[: _HELD // size]
    count = len(keys)
    where = list(map(locations.get, keys))
    if None in where or [location & 8191 for location in where].count(size) != count:
        return None
    is_reverse = where[-1] < where[0]
    if is_reverse:
        keys, where = keys[::-1], where[::-1]
    parts = _neighbours(where, size, readers, trusting=trusting)
    if parts is None:
        parts, seeds = [], []
        for location in where:
            view, seed = readers.get(location >> 44, _NOT_OPEN)
            offset = location >> 13 & 0x7FFFFFFF
            parts.append(view[offset : offset + size])
            seeds.append(seed)
        if not (trusting or set(map(checksum, parts, seeds)) == {RESIDUE}):
            return None
    pairs = cut_pairs(b"".join(parts), keys, size)
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
    *,
    trusting: bool,
) -> Iterator[tuple[int, Pairs]]:
    """Yield as `read_many` does, for keys of which the first is number ``at``; `Store.get` written out, less what is
    common."""
    pairs: Pairs = []
    held = 0
    current = -1
    view: Any = None
    seed = 0
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
            end = 23 + key_size
            if flags & 0xDF == PUT and raw[23:end] == key:
                pairs.append((key, raw[end:-4]))
                held += size
                if held > _HELD:
                    view, current = None, -1  # a generator that is left here must not keep the file open
                    yield at, pairs
                    pairs, held = [], 0
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
