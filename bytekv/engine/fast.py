"""Read the values of many keys at once, with what C does for a whole list instead of what Python does for each.

Knows how an entry looks and where readers find it; the rest, what is missing, expires, fails its check or is
larger than a location can say, is left to the one-by-one way of the store, which knows what to answer.

Keys in order whose entries are of one size and lie next to each other, as a compaction leaves them, are cut out
of one piece of the file and checked by one CRC: 0.2 µs an entry. Others cost 0.7 µs; `Store.get` costs 1.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .codec.checksum import RESIDUE, checksum
from .codec.entry import OFFSET_MASK, OFFSET_SHIFT, OVERHEAD, PREFIX, PUT, SEGMENT_SHIFT, SIZE_MASK
from .codec.runs import Pairs, cut_pairs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

__all__ = ["read_many"]

_HELD: Final = 1 << 20  # bytes of values in memory at once, or one value


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
            at = yield from _one_by_one(keys, at, locations, readers, find, trusting=trusting)


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
    pairs = cut_pairs(view[offset : offset + count * size], wanted, size, seed, trusting=trusting)
    if pairs is not None and is_reverse:
        pairs.reverse()
    return pairs


def _one_by_one(
    keys: list[bytes],
    at: int,
    locations: Any,
    readers: Any,
    find: Callable[[bytes], bytes | None],
    *,
    trusting: bool,
) -> Any:
    """Yield as `read_many` does, and return where to go on; `Store.get` written out, less what is common."""
    pairs: Pairs = []
    held = 0
    current = -1
    view: Any = None
    seed = 0
    prefix_of = PREFIX.unpack_from
    rest = keys[at:] if at else keys
    for key, location in zip(rest, map(locations.get, rest), strict=True):
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
    return at
