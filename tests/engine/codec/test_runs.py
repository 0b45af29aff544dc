"""Runs: one CRC for many entries says what one for each says, and the entries are cut where each begins and ends."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytekv.engine.codec.checksum import CRC_SIZE, RESIDUE, checksum
from bytekv.engine.codec.entry import (
    CONTINUES,
    ENTRY_SIZE,
    EXPIRES,
    OVERHEAD,
    PUT,
    SYNC_MARK,
    TOMBSTONE,
    decode_entry,
    encode_entry,
)
from bytekv.engine.codec.runs import (
    Pairs,
    Segments,
    Tombstones,
    alike,
    column_of,
    copy_alike,
    copy_run,
    crc_of_run,
    cut_pairs,
    is_sound,
    pack_run,
)
from bytekv.engine.fast import read_many
from bytekv.engine.log.scan import Scan
from bytekv.engine.store import Store
from bytekv.errors import CorruptionError
from tests.support.harness import damage, open_store, segment_files

SEED, OTHER_SEED, NOW_MS = 0x12345678, 0x9ABCDEF0, 1_700_000_000_000
COUNT, KEY_SIZE, VALUE_SIZE = 8, 5, 9
SIZE = OVERHEAD + KEY_SIZE + VALUE_SIZE
KEYS = [b"key%02d" % number for number in range(COUNT)]
VALUES = [b"value %03d" % number for number in range(COUNT)]
RUN = pack_run([PUT] * COUNT, KEYS, VALUES, 1, NOW_MS, SEED)


def entries_of(piece: bytes) -> list[bytes]:
    return [piece[at : at + SIZE] for at in range(0, len(piece), SIZE)]


def agree(piece: bytes) -> bool:
    """Check a piece entry by entry and at once; return what both say."""
    each = all(checksum(entry, SEED) == RESIDUE for entry in entries_of(piece))
    assert (checksum(piece, SEED) == crc_of_run(SEED, SIZE, len(piece) // SIZE)) is each
    return each


def flipped(piece: bytes, *bits: int) -> bytes:
    changed = bytearray(piece)
    for bit in bits:
        changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


# --- tombstones ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 16, 300, 65_535])
@pytest.mark.parametrize("seq", [1, 255, 256, 0xFFF0, (1 << 40) - 3, (1 << 63) - 700])
def test_tombstones_that_are_packed_late_are_those_that_are_encoded_one_by_one(size: int, seq: int) -> None:
    count = 3 if size > 1000 else 600
    dice = random.Random(size)
    keys = [dice.randbytes(size) for _ in range(count)]
    prepared = Tombstones(keys, NOW_MS)
    for seed, ends in ((SEED, True), (OTHER_SEED, False), (0, True)):
        last = TOMBSTONE if ends else TOMBSTONE | CONTINUES
        flags = [TOMBSTONE | CONTINUES] * (count - 1) + [last]
        wanted = [
            b"".join(encode_entry(kind, key, b"", seq + number, NOW_MS, 0, seed))
            for number, (kind, key) in enumerate(zip(flags, keys, strict=True))
        ]
        assert prepared.pack(seq, seed, ends_batch=ends) == b"".join(wanted)


# --- the CRC of a run ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, SEED, 0xFFFFFFFF, RESIDUE])
@pytest.mark.parametrize(("key_size", "value_size"), [(0, 0), (1, 0), (16, 100), (300, 7864)])
def test_it_is_that_of_any_entries_of_that_size(seed: int, key_size: int, value_size: int) -> None:
    """Also of more than the zeros that it is computed with: 300 entries of 8,191 bytes are two megabytes."""
    chance = random.Random(seed)
    for count in (1, 2, 3, 4, 7, 64, 99, 100, 101, 300):
        keys = [chance.randbytes(key_size) for _ in range(count)]
        values = [chance.randbytes(value_size) for _ in range(count)]
        run = pack_run([PUT] * count, keys, values, chance.getrandbits(40), NOW_MS, seed)
        assert checksum(run, seed) == crc_of_run(seed, OVERHEAD + key_size + value_size, count)


def test_few_of_them_are_kept() -> None:
    """There is one for each segment, size and number of entries, without an end."""
    for number in range(3000):
        crc_of_run(number, 100, 1 + number % 50)
    assert crc_of_run.cache_info().currsize <= 1024


def test_every_flipped_bit_shows() -> None:
    assert agree(RUN)
    for bit in range(8 * len(RUN)):
        assert not agree(flipped(RUN, bit))


def test_two_and_three_flipped_bits_show_wherever_they_lie() -> None:
    """CRC32C finds up to three in any message of less than 2**28 bytes; more than that is for luck, 2**-32."""
    chance = random.Random(1)
    for _ in range(2000):
        assert not agree(flipped(RUN, *chance.sample(range(8 * len(RUN)), chance.choice([2, 3]))))


def test_the_same_bit_in_each_of_several_entries_shows() -> None:
    chance = random.Random(2)
    for _ in range(500):
        bit = chance.randrange(8 * SIZE)
        some = chance.sample(range(COUNT), chance.randrange(1, COUNT + 1))
        assert not agree(flipped(RUN, *(8 * SIZE * number + bit for number in some)))


def others() -> Iterator[tuple[str, bytes, bool]]:
    """Yield pieces that are not what they should be, and whether each of their entries is sound all the same."""
    own = entries_of(RUN)
    foreign = entries_of(pack_run([PUT] * COUNT, KEYS, VALUES, 1, NOW_MS, OTHER_SEED))
    for count in range(1, COUNT + 1):
        yield f"the first {count} of another segment", b"".join(foreign[:count] + own[count:]), False
        yield f"nothing but {count} of another segment", b"".join(foreign[:count]), False
        yield f"zeros for {count}", bytes(count * SIZE) + b"".join(own[count:]), False
        yield f"the first {count}", b"".join(own[:count]), True
    for first in range(COUNT):
        for second in range(first):
            swapped = own[:]
            swapped[first], swapped[second] = own[second], own[first]
            yield f"{second} and {first} swapped", b"".join(swapped), True
            twice = own[:]
            twice[first] = own[second]
            yield f"{second} in the place of {first}, too", b"".join(twice), True
            parts = bytearray(RUN)  # half an entry, as a torn write would leave it
            parts[first * SIZE : first * SIZE + 20] = own[second][:20]
            yield f"{first} begins as {second}", bytes(parts), False
    for shift in range(1, SIZE):
        yield f"shifted by {shift}", RUN[shift:] + RUN[:shift], False
    chance = random.Random(3)
    for number in range(50):
        shuffled = own[:]
        chance.shuffle(shuffled)
        yield f"shuffled {number}", b"".join(shuffled), True
        at, size = chance.randrange(len(RUN) - 100), chance.randrange(1, 100)
        yield f"noise of {size} at {at}", RUN[:at] + chance.randbytes(size) + RUN[at + size :], False


def test_pieces_that_are_damaged_shuffled_or_swapped_are_judged_alike() -> None:
    for name, piece, expected in others():
        assert agree(piece) is expected, name


def read(piece: bytes, keys: list[bytes]) -> Pairs | None:
    """Read a piece as a scan does."""
    return cut_pairs(piece, keys, SIZE, lambda: NOW_MS) if is_sound(piece, SEED, SIZE, len(keys)) else None


def test_what_is_cut_is_what_was_asked_for() -> None:
    pairs = list(zip(KEYS, VALUES, strict=True))
    assert read(RUN, KEYS) == pairs
    for name, piece, _ in others():
        count = len(piece) // SIZE
        found = read(piece, KEYS[:count])
        assert found == (pairs[:count] if piece == RUN[: len(piece)] else None), name
    for bit in range(8 * len(RUN)):
        assert read(flipped(RUN, bit), KEYS) is None


def test_two_damages_can_be_made_to_cancel_and_each_entry_still_tells() -> None:
    """What docs/decisions/0161 gives away: by chance this happens once in 2**32, to two entries of one piece."""
    first = flipped(RUN[:SIZE], 8 * (SIZE - 8))
    body = RUN[SIZE : 2 * SIZE - CRC_SIZE]
    # The CRC that the second entry would have, had the first been sound, and what it must be for both to cancel.
    change = checksum(body, checksum(first, SEED)) ^ checksum(body, checksum(RUN[:SIZE], SEED))
    crc = int.from_bytes(RUN[2 * SIZE - CRC_SIZE : 2 * SIZE], "little") ^ change
    piece = first + body + crc.to_bytes(CRC_SIZE, "little") + RUN[2 * SIZE :]
    assert checksum(piece, SEED) == crc_of_run(SEED, SIZE, COUNT)
    assert [checksum(entry, SEED) == RESIDUE for entry in entries_of(piece)] == [False, False] + [True] * (COUNT - 2)


# --- in a store ----------------------------------------------------------------------------------


def laid_out(path: Path, layout: str, **options: Any) -> Store:
    """Return a store of 300 entries of one size that lie as the layout says."""
    db = open_store(path, sync="os", **options)
    numbers = list(range(300))
    chance = random.Random(4)
    if layout == "backwards":
        numbers.reverse()
    elif layout == "scattered":
        chance.shuffle(numbers)
    elif layout == "stretches":
        numbers += chance.sample(numbers, 12)
    for number in numbers:
        db[b"%06d" % number] = b"x" * 20
    return db


_WAYS: dict[str, Any] = {
    "scan": lambda db: list(db.scan()),
    "reverse": lambda db: list(db.scan(reverse=True)),
    "prefix": lambda db: list(db.scan("000")),
    "get_many": lambda db: list(db.get_many([b"%06d" % each for each in range(300)]).items()),
    "snapshot": lambda db: list(db.snapshot().items()),
}


@pytest.mark.parametrize("layout", ["in order", "backwards", "scattered", "stretches"])
@pytest.mark.parametrize("how", _WAYS)
@pytest.mark.parametrize("number", [0, 1, 63, 150, 299])
def test_a_damaged_entry_is_named_however_it_is_reached(path: Path, layout: str, how: str, number: int) -> None:
    db = laid_out(path, layout)
    whole = _WAYS[how](db)
    expected = [(b"%06d" % each, b"x" * 20) for each in range(300)]
    assert whole == (expected[::-1] if how == "reverse" else expected)
    (segment,) = segment_files(path)
    at = segment.read_bytes().rindex(b"%06d" % number) - ENTRY_SIZE
    damage(segment, at + 40)
    with pytest.raises(CorruptionError) as raised:
        _WAYS[how](db)
    assert (raised.value.path, raised.value.offset) == (str(segment), at)
    damage(segment, at + 40)
    assert _WAYS[how](db) == whole
    db.close()


@pytest.mark.parametrize("layout", ["in order", "scattered", "stretches"])
@pytest.mark.parametrize("how", _WAYS)
def test_an_entry_that_is_sound_but_that_of_another_key_is_not_given_out(path: Path, layout: str, how: str) -> None:
    """Two entries have changed places in the file: no CRC can see that."""
    db = laid_out(path, layout)
    (segment,) = segment_files(path)
    content = bytearray(segment.read_bytes())
    size = OVERHEAD + 6 + 20
    first, second = (content.rindex(b"%06d" % number) - ENTRY_SIZE for number in (100, 101))
    content[first : first + size], content[second : second + size] = (
        content[second : second + size],
        content[first : first + size],
    )
    with segment.open("r+b") as file:
        file.write(content)
    with pytest.raises(CorruptionError, match=r"holds key b'00010.' where b'00010.' was"):
        _WAYS[how](db)
    db.close()


@pytest.mark.parametrize("layout", ["in order", "backwards", "scattered", "stretches"])
def test_entries_of_one_size_are_not_read_one_by_one(path: Path, layout: str) -> None:
    """However they lie, in one segment or in two: what is read slowly is right, too, so nothing else would tell."""
    db = laid_out(path, layout, segment_size_bytes=1 << 20)
    db._commit.seal()
    db["000007"] = b"y" * 20
    whole = list(db.items())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bytekv.engine.fast._one_by_one", None)  # a call of it would be a TypeError
        assert list(db.items()) == whole
        assert list(db.scan(reverse=True)) == whole[::-1]
        assert list(db.get_many([key for key, _ in whole]).items()) == whole
    db.close()


def test_many_large_entries_are_held_a_megabyte_at_once(path: Path) -> None:
    db = open_store(path, sync="os")
    content = {b"%04d" % number: bytes(8000) for number in range(1500)}
    keys = list(content)
    random.Random(5).shuffle(keys)
    for key in keys:
        db[key] = content[key]
    reader = db._reader
    found: Pairs = []
    for stop, pairs in read_many(
        list(content),
        reader._locations,
        reader._readers,
        lambda _: False,
        reader._value,
        reader._now_ms,
        trusting=False,
    ):
        assert 0 < len(pairs) * 8000 <= 1 << 20
        found += pairs
        assert stop == len(found)
    assert found == list(content.items())
    db.close()


def test_runs_that_lie_backwards_are_cut_too(path: Path) -> None:
    """Keys put in descending order are a run for a reverse scan, and for a forward one if the run is turned round."""
    db = open_store(path, sync="os")
    content = {b"%06d" % number: b"%020d" % number for number in range(500)}
    for key in reversed(content):
        db[key] = content[key]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bytekv.engine.fast._alike", None)  # what is no run would be a TypeError
        assert list(db.scan()) == list(content.items())
        assert list(db.scan(reverse=True)) == list(content.items())[::-1]
        assert list(db.get_many(list(content)).items()) == list(content.items())
    db.close()


# --- copies under another seed -------------------------------------------------------------------


def entries(seed: int, chance: random.Random, is_alike: bool) -> tuple[list[bytes], list[bytes], dict[bytes, int]]:
    """Return keys, entries and expiries of puts of every shape, or of one size and without expiry."""
    keys = [b"%02d" % number + chance.randbytes(0 if is_alike else number % 5) for number in range(40)]
    expires = {} if is_alike else {key: chance.getrandbits(41) for key in keys[::3]}
    raws = [
        b"".join(
            encode_entry(
                PUT | (CONTINUES if number % 4 else 0),
                key,
                chance.randbytes(9 if is_alike else chance.choice([0, 1, 9, 9, 300])),
                number + 1,
                NOW_MS,
                expires.get(key, 0),
                seed,
            )
        )
        for number, key in enumerate(keys)
    ]
    return keys, raws, expires


def copied_of(
    raws: list[bytes], keys: list[bytes], seeds: list[int], seed: int, is_alike: bool
) -> tuple[bytes, dict[bytes, int]] | None:
    """Copy entries the one way or the other; return them with their expiries."""
    if not is_alike:
        copied = copy_run(raws, keys, seeds, seed)
        return None if copied is None else (b"".join(copied[0]), copied[1])
    numbers = {each: 7 * number for number, each in enumerate(dict.fromkeys(seeds))}
    piece = bytearray().join(raws)
    segments = bytes(map(numbers.__getitem__, seeds))
    copies = copy_alike(piece, len(raws[0]), keys, segments, {number: old for old, number in numbers.items()}, seed)
    return None if copies is None else (bytes(copies), {})


@pytest.mark.parametrize("is_alike", [False, True])
def test_copies_are_entries_of_their_own_under_the_new_seed(is_alike: bool) -> None:
    chance = random.Random(1)
    keys, raws, expires = entries(SEED, chance, is_alike)
    copied = copied_of(raws, keys, [SEED] * len(keys), OTHER_SEED, is_alike)
    assert copied is not None
    assert copied[1] == expires
    piece = copied[0]
    at = 0
    for key, raw in zip(keys, raws, strict=True):
        was, now = decode_entry(raw, SEED, "", 0), decode_entry(piece[at : at + len(raw)], OTHER_SEED, "", 0)
        assert now == was._replace(flags=was.flags & ~CONTINUES)
        assert now.key == key
        at += len(raw)
    assert at == len(piece)


@pytest.mark.parametrize("is_alike", [False, True])
def test_copies_of_entries_of_several_segments(is_alike: bool) -> None:
    keys, raws, _ = entries(SEED, random.Random(2), is_alike)
    others = entries(OTHER_SEED, random.Random(2), is_alike)[1]
    seeds = [SEED if number % 2 else OTHER_SEED for number in range(len(keys))]
    both = [raw if number % 2 else other for number, (raw, other) in enumerate(zip(raws, others, strict=True))]
    copied = copied_of(both, keys, seeds, 7, is_alike)
    assert copied is not None
    for way in {is_alike, False}:
        assert copied == copied_of(raws, keys, [SEED] * len(keys), 7, way)


@pytest.mark.parametrize("is_alike", [False, True])
@pytest.mark.parametrize("number", [0, 3, 39])
def test_one_damaged_entry_is_not_copied_whichever_bit_it_is(number: int, is_alike: bool) -> None:
    keys, raws, _ = entries(SEED, random.Random(3), is_alike)
    seeds = [SEED] * len(keys)
    for bit in range(8 * len(raws[number])):
        damaged = [*raws[:number], flipped(raws[number], bit), *raws[number + 1 :]]
        assert copied_of(damaged, keys, seeds, OTHER_SEED, is_alike) is None
    for short in (b"", raws[number][:20], raws[number][:-1], raws[number] + b"\0"):
        assert copied_of([*raws[:number], short, *raws[number + 1 :]], keys, seeds, OTHER_SEED, is_alike) is None


@pytest.mark.parametrize("is_alike", [False, True])
def test_what_is_no_put_of_that_key_is_not_copied(is_alike: bool) -> None:
    keys, raws, _ = entries(SEED, random.Random(4), is_alike)
    seeds = [SEED] * len(keys)
    assert copied_of([raws[1], raws[0], *raws[2:]], keys, seeds, OTHER_SEED, is_alike) is None
    for kind, value in ((TOMBSTONE, b""), (TOMBSTONE, bytes(9)), (PUT | EXPIRES, b"v")):
        other = b"".join(encode_entry(kind, keys[5], value, 1, NOW_MS, 5 if kind & EXPIRES else 0, SEED))
        if not is_alike or len(other) == len(raws[5]):
            found = copied_of([*raws[:5], other, *raws[6:]], keys, seeds, OTHER_SEED, is_alike)
            assert (found is None) == (is_alike or kind == TOMBSTONE)


# --- where entries lie, in columns ---------------------------------------------------------------

ids = st.integers(1, 255) | st.integers(1, (1 << 20) - 1)
offsets = st.integers(80, (1 << 31) - 1)


@settings(derandomize=True, max_examples=200)
@given(st.data())
def test_columns_say_what_locations_say(data: st.DataObject) -> None:
    """With ids that share any of their bytes with others, and some that are not among those looked for."""
    among = data.draw(st.lists(ids, min_size=1, max_size=6, unique=True))
    others = [segment ^ 1 << data.draw(st.integers(0, 19)) for segment in among]
    sizes = data.draw(st.sampled_from([[31], [8191], [256], [31, 8191], [0]]))
    places = [
        (data.draw(st.sampled_from([*among, *among, *others])), data.draw(offsets), data.draw(st.sampled_from(sizes)))
        for _ in range(data.draw(st.integers(1, 20)))
    ]
    locations = array("Q", [segment << 44 | offset << 13 | size for segment, offset, size in places])
    segments = Segments(among)
    if len({segment & 0xFF for segment in among}) == len(among):
        assert segments.hold(locations) == bytes(segment in among for segment, _, _ in places)
        assert set(segments.by_byte.values()) == set(among)
    else:
        assert segments.by_byte == {}
    found = alike(locations)
    if len({size for _, _, size in places}) > 1 or not places[0][2]:
        assert found is None
    else:
        assert found is not None
        assert found.size == places[0][2]
        assert list(found.offsets) == [offset for _, offset, _ in places]
        assert list(found.segments) == [segment & 0xFF for segment, _, _ in places]
        part = found.part(1, 3)
        assert (list(part.locations), list(part.offsets)) == (list(locations[1:3]), list(found.offsets[1:3]))


def test_what_has_no_column() -> None:
    assert column_of([1 << 44 | 80 << 13 | 31, None]) is None
    assert column_of([1 << 64 | 80 << 13 | 31]) is None
    assert column_of([1, 2]) == array("Q", [1, 2])
    assert Segments([1 << 20]).by_byte == {}, "beyond the millionth"
    assert alike(array("Q")) is None


# --- checked, not cut ----------------------------------------------------------------------------


def log_of(chance: random.Random) -> bytes:
    """Return a log of runs, of puts of other sizes, deletes, batches and sync marks."""
    made, seq = bytearray(), 0
    for _ in range(30):
        kind = chance.choice(["run", "run", "mixed", "delete", "batch", "mark"])
        if kind == "mark":
            made += b"".join(encode_entry(SYNC_MARK, b"", b"", seq, NOW_MS, 0, SEED))
            continue
        for left in reversed(range(chance.choice([1, 9, 70, 300]) if kind == "run" else chance.randrange(1, 12))):
            seq += 1
            value = chance.randbytes(40 if kind == "run" else chance.randrange(60))
            flags = TOMBSTONE if kind == "delete" else PUT | (CONTINUES if kind == "batch" and left else 0)
            parts = encode_entry(
                flags, b"%04d" % (seq % 1000), b"" if kind == "delete" else value, seq, NOW_MS, 0, SEED
            )
            made += b"".join(parts)
    return bytes(made)


def told(scan: Scan) -> tuple[object, ...]:
    return scan.end, scan.last_seq, scan.durable_seq, scan.entries, scan.damage


@pytest.mark.parametrize("number", range(20))
def test_what_is_checked_stops_where_what_is_read_stops(number: int) -> None:
    """Whole, cut short, damaged, followed by zeros, with an entry of another seq; the first window is a small one."""
    chance = random.Random(number)
    whole = log_of(chance)
    logs = [whole, whole[: chance.randrange(len(whole))], whole + bytes(500), flipped(whole, 3)]
    logs += [flipped(whole, chance.randrange(8 * len(whole))) for _ in range(20)]
    at = chance.randrange(len(whole) // 2)
    logs.append(whole[:at] + whole[at + 71 * chance.randrange(1, 9) :])
    for log in logs:
        for seq in (0, None):
            one, other = (Scan(lambda size, at, log=log: log[at : at + size], 0, len(log), SEED, seq) for _ in range(2))  # type: ignore[misc]
            count = sum(1 for _ in one)
            assert sum(other.check()) == count
            assert told(one) == told(other)


@pytest.mark.parametrize("is_alike", [True, False])
@pytest.mark.parametrize("times", [None, [5000], [5000, 1 << 40], [0, 5000]])
@pytest.mark.parametrize("seq", [1, 250, 65_530, (1 << 32) - 3])
def test_a_run_is_packed_as_its_entries_are(is_alike: bool, times: list[int] | None, seq: int) -> None:
    """Of one size or of many, with expiries and without, and where seqs carry into their upper bytes."""
    count = 12
    keys = [b"%04d" % number for number in range(count)]
    values = [b"value %02d" % (number if is_alike else number**5) for number in range(count)]
    expires = None if times is None else (times * count)[:count]
    kinds = [TOMBSTONE if number % 5 == 0 and expires is None else PUT for number in range(count)]
    flags = [kind | (EXPIRES if expires and expires[number] else 0) for number, kind in enumerate(kinds)]
    flags[0] |= CONTINUES
    single = [
        encode_entry(*each[:3], seq + number, NOW_MS, expires[number] if expires else 0, SEED)
        for number, each in enumerate(zip(flags, keys, values, strict=True))
    ]
    assert pack_run(flags, keys, values, seq, NOW_MS, SEED, expires) == b"".join(map(b"".join, single))
