"""Bytes on disk: what was encoded comes back, and whatever else is an error and never another value."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bytekv.contract.convert import MAX_BATCH_SIZE, MAX_EXPIRES_MS, MAX_KEY_SIZE, MAX_VALUE_SIZE
from bytekv.engine.codec import entry as codec
from bytekv.engine.codec.checksum import CRC_SIZE, RESIDUE, checksum, seed_of
from bytekv.engine.codec.entry import (
    CLEAR,
    CONTINUES,
    EXPIRES,
    PUT,
    SYNC_MARK,
    TOMBSTONE,
    StoredEntry,
    decode_entry,
    encode_entry,
    entry_size,
    measure_entry,
    pack_position,
    unpack_location,
)
from bytekv.engine.codec.hint import HINT_HEADER, Hint, decode_hint, encode_hint
from bytekv.engine.codec.manifest import (
    ACTIVE,
    LOG,
    MANIFEST_HEADER,
    MANIFEST_ROW,
    MAX_NUMBER,
    MAX_SEQ_TO_BEGIN_AFTER,
    OUTPUT,
    SEALED,
    SEGMENT_HEADER_SIZE,
    Manifest,
    SegmentHeader,
    SegmentRow,
    decode_manifest,
    decode_segment_header,
    encode_manifest,
    encode_segment_header,
)
from bytekv.errors import CorruptionError, UnsupportedFormatError

SEED = seed_of(0x1122334455667788)
HEADER = SegmentHeader(bytes(range(16)), 7, 0x1122334455667788, LOG, 6, 41)
ROWS = (
    SegmentRow(3, 33, 4096, 10, SEALED),
    SegmentRow(9, 99, 80, 10, SEALED),
    SegmentRow(5, 55, 2_000_000, 40, ACTIVE),
)
MANIFEST = Manifest(bytes(range(16)), 12, 40, 3, ROWS)
SUMMARY = Hint(
    9000,
    50,
    True,
    [b"aa", b"bb", b"cc"],
    [pack_position(80, 40), pack_position(120, 9000), pack_position(300, 8191)],
    [b"gone", b""],
    {b"bb": 1_700_000_000_000},
    17_231,
    58,
)

bounded = settings(derandomize=True, max_examples=200)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
numbers = st.integers(0, MAX_NUMBER)
keys = st.binary(max_size=40) | st.sampled_from([b"", bytes(MAX_KEY_SIZE), b"\xff" * 256])
values = st.binary(max_size=80) | st.just(bytes(100_000))


def encoded_hint(hint, header):
    return b"".join(encode_hint(hint, header))


def entry(flags: int = PUT, key: bytes = b"key", value: bytes = b"value", seq: int = 42, expires_ms: int = 0) -> bytes:
    return b"".join(encode_entry(flags, key, value, seq, 1_700_000_000_000, expires_ms, SEED))


def sealed_with_crc(body: bytes, seed: int = 0) -> bytes:
    """Return ``body`` with a CRC that fits: damage that no checksum shows."""
    return body + checksum(body, seed).to_bytes(4, "little")


# --- round trips -------------------------------------------------------------------------------


@bounded
@given(
    st.sampled_from([PUT, TOMBSTONE, CLEAR, SYNC_MARK, PUT | CONTINUES, TOMBSTONE | CONTINUES, CLEAR | CONTINUES]),
    keys,
    values,
    u64,
    u64,
    st.just(0) | st.integers(1, MAX_EXPIRES_MS),
    u64,
)
def test_entries_come_back(flags, key, value, seq, modified_ms, expires_ms, salt):
    assume(not expires_ms or flags & codec.KIND == PUT)
    seed = seed_of(salt)
    raw = b"".join(encode_entry(flags, key, value, seq, modified_ms, expires_ms, seed))
    stored_flags = flags | EXPIRES if expires_ms else flags
    assert decode_entry(raw, seed, "p", 0) == StoredEntry(stored_flags, key, value, seq, modified_ms, expires_ms)
    assert len(raw) == entry_size(len(key), len(value), expires_ms) == measure_entry(raw[:7]) == measure_entry(raw)
    assert checksum(raw, seed) == RESIDUE


@bounded
@given(
    *(st.binary(min_size=16, max_size=16), u64, u64, st.sampled_from([LOG, OUTPUT]), u64),
    st.integers(0, MAX_SEQ_TO_BEGIN_AFTER),
)
def test_segment_headers_come_back(uuid, segment_id, salt, kind, previous_id, previous_seq):
    header = SegmentHeader(uuid, segment_id, salt, kind, previous_id, previous_seq)
    raw = encode_segment_header(header)
    assert len(raw) == SEGMENT_HEADER_SIZE
    assert decode_segment_header(raw, "p") == decode_segment_header(raw + b"entries", "p") == header


@st.composite
def manifests(draw: Callable[..., Any]) -> Manifest:
    ids = draw(st.lists(st.integers(1, MAX_NUMBER - 1), unique=True, max_size=20))
    seqs = sorted(draw(st.lists(numbers, min_size=len(ids), max_size=len(ids))))
    rows = [
        SegmentRow(segment_id, draw(u64), draw(st.integers(80, codec.OFFSET_MASK)), seq, SEALED)
        for segment_id, seq in zip(ids, seqs, strict=True)
    ]
    if rows and draw(st.booleans()):
        rows[-1] = rows[-1]._replace(state=ACTIVE)
    next_id = draw(st.integers(max(ids, default=0) + 1, MAX_NUMBER))
    return Manifest(draw(st.binary(min_size=16, max_size=16)), next_id, draw(numbers), draw(numbers), tuple(rows))


@bounded
@given(manifests())
def test_manifests_come_back(manifest):
    assert decode_manifest(encode_manifest(manifest), "p") == manifest


@st.composite
def hints(draw: Callable[..., Any]) -> Hint:
    lengths = {"max_size": 9} if draw(st.booleans()) else {"min_size": 5, "max_size": 5}
    everything = draw(st.lists(st.binary(**lengths), unique=True, max_size=30))
    cut = draw(st.integers(0, len(everything)))
    put = everything[:cut]
    positions = [pack_position(draw(st.integers(80, codec.OFFSET_MASK)), draw(st.integers(27, 10_000))) for _ in put]
    expiring = draw(st.lists(st.sampled_from(put), unique=True)) if put else []
    expires = {key: draw(st.integers(1, 2**63)) for key in expiring}
    return Hint(
        draw(u64), draw(u64), draw(st.booleans()), put, positions, everything[cut:], expires, draw(u64), draw(u64)
    )


def same(left: Hint, right: Hint) -> bool:
    """Compare two hints whose columns may be lists or arrays."""
    return all(
        list(one) == list(other) if name in ("keys", "positions", "tombstones") else one == other
        for name in Hint._fields
        for one, other in [(getattr(left, name), getattr(right, name))]
    )


@bounded
@given(hints())
def test_hints_come_back(hint):
    assert same(decode_hint(encoded_hint(hint, HEADER), HEADER, "p"), hint)


@bounded
@given(st.integers(1, 2**48), st.integers(0, codec.OFFSET_MASK), st.integers(27, 20_000))
def test_locations_come_back(segment_id, offset, size):
    location = segment_id << codec.SEGMENT_SHIFT | pack_position(offset, size)
    assert unpack_location(location) == (segment_id, offset, size if size < 8192 else 0)


@bounded
@given(st.lists(st.tuples(st.integers(1, 100), st.integers(0, codec.OFFSET_MASK), st.integers(27, 20_000)), min_size=2))
def test_different_places_have_different_locations(places):
    locations = {segment << codec.SEGMENT_SHIFT | pack_position(offset, size): 0 for segment, offset, size in places}
    assert len(locations) == len({(segment, offset, size if size < 8192 else 0) for segment, offset, size in places})


def test_a_location_of_the_first_65535_segments_takes_two_digits_of_an_int():
    """60 bits; three digits would cost each key 4 bytes more (sys.getsizeof of an int)."""
    assert (0xFFFF << codec.SEGMENT_SHIFT | pack_position(codec.OFFSET_MASK, 8191)).bit_length() == 60


def test_keys_and_values_of_any_bytes_like_length_are_counted_in_bytes():
    raw = entry(key="größe".encode(), value="é".encode())
    assert decode_entry(raw, SEED, "p", 0).key.decode() == "größe"


# --- zeros and other nothings ------------------------------------------------------------------

DECODERS: dict[str, Callable[[bytes], object]] = {
    "entry": lambda raw: decode_entry(raw, SEED, "p", 0),
    "segment header": lambda raw: decode_segment_header(raw, "p"),
    "manifest": lambda raw: decode_manifest(raw, "p"),
    "hint": lambda raw: decode_hint(raw, HEADER, "p"),
}


@pytest.mark.parametrize("what", DECODERS)
def test_zeros_are_nothing(what):
    """`crc32(b"") == 0`, and in many formats a page of zeros is a valid, empty entry; here never."""
    sizes = [*range(300), *range(300, 65_537, 1009), 4096, 8192, 65_535, 65_536]
    for size in sizes:
        with pytest.raises(CorruptionError):
            DECODERS[what](bytes(size))


def test_zeros_are_no_entry_under_any_seed():
    for size in (27, 31, 35, 80, 4096):
        for salt in range(200):
            with pytest.raises(CorruptionError):
                decode_entry(bytes(size), seed_of(salt), "p", 0)
        with pytest.raises(CorruptionError):
            decode_entry(bytes(size), 0, "p", 0)
    assert measure_entry(bytes(100)) == 0


@bounded
@given(st.binary(max_size=200))
def test_noise_is_nothing(noise):
    for decode in DECODERS.values():
        with pytest.raises(CorruptionError):
            decode(noise)


# --- flips and cuts ----------------------------------------------------------------------------


class Sample(NamedTuple):
    raw: bytes
    what: str


SAMPLES = {
    "put": Sample(entry(), "entry"),
    "expiring put in a batch": Sample(entry(PUT | CONTINUES, expires_ms=2**41), "entry"),
    "tombstone": Sample(entry(TOMBSTONE, value=b""), "entry"),
    "empty key and value": Sample(entry(key=b"", value=b""), "entry"),
    "segment header": Sample(encode_segment_header(HEADER), "segment header"),
    "manifest": Sample(encode_manifest(MANIFEST), "manifest"),
    "hint, equal keys": Sample(encoded_hint(SUMMARY, HEADER), "hint"),
    "hint, mixed keys": Sample(
        encoded_hint(
            Hint(200, 9, False, [b"a", b"bcd"], [pack_position(80, 40), pack_position(120, 40)], [], {}, 80, 0), HEADER
        ),
        "hint",
    ),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_every_flipped_bit_and_every_other_byte_is_an_error(name):
    raw, what = SAMPLES[name]
    DECODERS[what](raw)
    for offset in range(len(raw)):
        for mask in (1, 2, 4, 8, 16, 32, 64, 128, 0xFF):
            damaged = bytearray(raw)
            damaged[offset] ^= mask
            with pytest.raises((CorruptionError, UnsupportedFormatError)):
                DECODERS[what](bytes(damaged))


@pytest.mark.parametrize("name", SAMPLES)
def test_every_cut_and_every_surplus_is_an_error(name):
    raw, what = SAMPLES[name]
    for size in range(len(raw)):
        with pytest.raises(CorruptionError):
            DECODERS[what](raw[:size])
        if size:
            with pytest.raises(CorruptionError):
                DECODERS[what](raw[size:])
    if what != "segment header":  # which begins a longer file
        for surplus in (b"\0", raw[:1], raw):
            with pytest.raises(CorruptionError):
                DECODERS[what](raw + surplus)


def test_an_entry_validates_in_its_own_segment_only():
    raw = entry()
    for seed in (0, seed_of(0), seed_of(HEADER.salt + 1)):
        with pytest.raises(CorruptionError):
            decode_entry(raw, seed, "p", 0)


def test_an_error_says_where():
    with pytest.raises(CorruptionError) as raised:
        decode_entry(entry()[:-1], SEED, "some/file", 1234)
    assert (raised.value.path, raised.value.offset) == ("some/file", 1234)
    assert str(raised.value) == "some/file: offset 1234: entry fails its CRC32C"


# --- damage that no checksum shows -------------------------------------------------------------


def lengths_to_try(maximum: int, remaining: int) -> list[int]:
    tried = {0, 1, maximum - 1, maximum, maximum + 1, remaining - 1, remaining + 1, 2**31, 2**32 - 1}
    return sorted(length for length in tried if 0 <= length < 2**32)


@pytest.mark.parametrize("fits", [False, True], ids=["crc left alone", "crc made to fit"])
@pytest.mark.parametrize("expires_ms", [0, 2**41])
def test_no_other_length_of_an_entry_is_believed(expires_ms, fits):
    raw = entry(expires_ms=expires_ms)
    body = raw[:-CRC_SIZE]
    fields = [(1, "<H", MAX_KEY_SIZE, 3), (3, "<I", MAX_VALUE_SIZE, 5)]
    tracemalloc.start()
    try:
        for offset, kind, maximum, right in fields:
            for length in lengths_to_try(maximum, len(raw)):
                if length == right or length >= 1 << 8 * struct.calcsize(kind):
                    continue
                damaged = bytearray(body)
                struct.pack_into(kind, damaged, offset, length)
                whole = sealed_with_crc(bytes(damaged), SEED) if fits else bytes(damaged) + raw[-CRC_SIZE:]
                with pytest.raises(CorruptionError):
                    decode_entry(whole, SEED, "p", 0)
                size = measure_entry(whole[:7])
                assert size != len(raw)
                assert size <= entry_size(MAX_KEY_SIZE, MAX_VALUE_SIZE, 1)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20, "a length from disk was allocated before it was checked"
    finally:
        tracemalloc.stop()


def test_every_illegal_first_byte_is_refused_even_with_a_crc_that_fits():
    body = entry()[:-CRC_SIZE]
    for flags in range(256):
        whole = sealed_with_crc(bytes([flags]) + body[1:], SEED)
        if flags in (PUT, PUT | CONTINUES, TOMBSTONE, TOMBSTONE | CONTINUES, CLEAR, CLEAR | CONTINUES, SYNC_MARK):
            assert decode_entry(whole, SEED, "p", 0).flags == flags
        else:
            with pytest.raises(CorruptionError):
                decode_entry(whole, SEED, "p", 0)
            assert measure_entry(whole) != len(whole)


@pytest.mark.parametrize("count", [0, 1, 2, 4, 2**20, 2**20 + 1, 2**31, 2**32 - 1])
def test_no_other_number_of_rows_is_believed(count):
    body = bytearray(encode_manifest(MANIFEST)[:-CRC_SIZE])
    struct.pack_into("<I", body, 64, count)
    with pytest.raises(CorruptionError):
        decode_manifest(sealed_with_crc(bytes(body)), "p")


@pytest.mark.parametrize(
    "rows",
    [
        [ROWS[0], ROWS[0]],
        [ROWS[0]._replace(segment_id=0)],
        [ROWS[0]._replace(segment_id=12)],
        [ROWS[0]._replace(state=2)],
        [ROWS[0]._replace(length=79)],
        [ROWS[0]._replace(length=0)],
        [ROWS[0]._replace(length=codec.OFFSET_MASK + 1)],
        [ROWS[0]._replace(state=ACTIVE), ROWS[1]],
        [ROWS[0], ROWS[1]._replace(last_seq=9)],
    ],
    ids=["id twice", "id 0", "id not below next", "state", "short", "empty", "long", "active in front", "seq falls"],
)
def test_a_manifest_that_contradicts_itself_is_refused(rows):
    raw = encode_manifest(Manifest(MANIFEST.store_uuid, 12, 40, 3, tuple(rows)))
    with pytest.raises(CorruptionError, match="contradict"):
        decode_manifest(raw, "p")


HINT_COUNTS = {"key size": 12, "puts": 80, "expiring puts": 84, "tombstones": 88}


@pytest.mark.parametrize("column", HINT_COUNTS)
def test_no_other_count_of_a_hint_is_believed(column):
    raw = encoded_hint(SUMMARY, HEADER)
    offset = HINT_COUNTS[column]
    (right,) = struct.unpack_from("<I", raw, offset)
    tracemalloc.start()
    try:
        for count in [*lengths_to_try(MAX_KEY_SIZE, len(raw)), right + 1, right - 1]:
            if count == right:
                continue
            body = bytearray(raw[:-CRC_SIZE])
            struct.pack_into("<I", body, offset, count)
            with pytest.raises(CorruptionError):
                decode_hint(sealed_with_crc(bytes(body)), HEADER, "p")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("number", [3, 4, 2**31, 2**32 - 1])
def test_a_hint_cannot_say_when_a_put_expires_that_it_does_not_have(number):
    body = bytearray(encoded_hint(SUMMARY, HEADER)[:-CRC_SIZE])
    struct.pack_into("<I", body, HINT_HEADER.size + 3 * 8, number)
    with pytest.raises(CorruptionError, match="contradict"):
        decode_hint(sealed_with_crc(bytes(body)), HEADER, "p")


@bounded
@given(st.binary(max_size=120), st.tuples(u32, u32, u32, u32), st.integers(0, 3))
def test_hints_of_any_content_decode_or_are_refused(noise, counts, bits):
    """A hint with a CRC that fits and nonsense in it: an error of bytekv's own, or a hint that hangs together."""
    small = [count >> bits * 8 for count in counts]
    body = bytearray(encoded_hint(SUMMARY, HEADER)[: HINT_HEADER.size])
    for offset, count in zip(HINT_COUNTS.values(), small, strict=True):
        struct.pack_into("<I", body, offset, count)
    try:
        hint = decode_hint(sealed_with_crc(bytes(body) + noise), HEADER, "p")
    except CorruptionError:
        return
    assert len(hint.keys) == len(hint.positions)
    assert set(hint.expires) <= set(hint.keys)


@pytest.mark.parametrize(
    "other", [{"store_uuid": bytes(16)}, {"segment_id": 8}, {"salt": 1}], ids=lambda one: next(iter(one))
)
def test_a_hint_of_another_segment_is_refused(other):
    raw = encoded_hint(SUMMARY, HEADER)
    with pytest.raises(CorruptionError, match="another segment"):
        decode_hint(raw, HEADER._replace(**other), "p")


# --- versions ----------------------------------------------------------------------------------

WORDS = {"compat": 12, "read-only compat": 16, "incompat": 20}
VERSIONED: dict[str, tuple[bytes, Callable[..., object]]] = {
    "segment header": (encode_segment_header(HEADER), decode_segment_header),
    "manifest": (encode_manifest(MANIFEST), decode_manifest),
}


def changed(raw: bytes, offset: int, value: int) -> bytes:
    body = bytearray(raw[:-CRC_SIZE])
    body[offset] = value
    return sealed_with_crc(bytes(body))


@pytest.mark.parametrize("what", VERSIONED)
@pytest.mark.parametrize("word", WORDS)
def test_unknown_features(word, what):
    raw, decode = VERSIONED[what]
    for byte in range(4):
        newer = changed(raw, WORDS[word] + byte, 0x40)
        if word == "incompat":
            with pytest.raises(UnsupportedFormatError, match="newer bytekv"):
                decode(newer, "p")
        else:
            found = decode(newer, "p")
            if (word, what) == ("compat", "manifest"):  # from the second byte on the number of a history
                assert found.compat_flags == (0x40 << 8 * byte if byte else 0)
                found = found._replace(compat_flags=0)
            assert found == decode(raw, "p")
        if word == "compat":
            decode(newer, "p", for_writing=True)
        else:
            with pytest.raises(UnsupportedFormatError):
                decode(newer, "p", for_writing=True)


@pytest.mark.parametrize("what", VERSIONED)
@pytest.mark.parametrize("version", [0, 2, 255])
def test_other_versions_are_refused_as_such(version, what):
    raw, decode = VERSIONED[what]
    with pytest.raises(UnsupportedFormatError, match=f"version {version}"):
        decode(changed(raw, 8, version), "p")


def test_a_hint_of_another_version_or_with_unknown_flags_is_refused():
    raw = encoded_hint(SUMMARY, HEADER)
    for offset, value in ((8, 2), (10, 3), (11, 0x80)):
        with pytest.raises(UnsupportedFormatError):
            decode_hint(changed(raw, offset, value), HEADER, "p")


def test_a_file_that_went_through_text_mode_is_refused():
    for raw, decode in VERSIONED.values():
        with pytest.raises(CorruptionError, match="magic"):
            decode(raw.replace(b"\r\n", b"\n"), "p")


# --- limits ------------------------------------------------------------------------------------


def test_sizes_show_their_arithmetic():
    assert codec.ENTRY_SIZE == 1 + 2 + 4 + 8 + 8
    assert codec.OVERHEAD == entry_size(0, 0) == 27
    assert entry_size(0, 0, 1) == 35
    assert entry_size(16, 100) == 143
    assert SEGMENT_HEADER_SIZE == 80
    assert MANIFEST_HEADER.size == 68
    assert MANIFEST_ROW.size == 36
    assert HINT_HEADER.size == 92


def test_the_largest_key_fits_and_the_next_does_not():
    raw = entry(key=bytes(MAX_KEY_SIZE), value=b"v")
    assert decode_entry(raw, SEED, "p", 0).value == b"v"
    with pytest.raises(struct.error):
        entry(key=bytes(MAX_KEY_SIZE + 1))


def test_a_batch_of_the_largest_size_stays_below_the_last_offset():
    largest = entry_size(MAX_KEY_SIZE, MAX_VALUE_SIZE, 1)
    assert largest <= MAX_BATCH_SIZE
    segment_limit = 1 << 30  # the largest segment_size_bytes: whatever is larger stands alone
    assert max(segment_limit, SEGMENT_HEADER_SIZE + MAX_BATCH_SIZE) < codec.OFFSET_MASK


def test_a_value_above_the_limit_is_no_entry():
    head = codec.ENTRY.pack(PUT, 1, MAX_VALUE_SIZE, 1, 1)
    assert measure_entry(head) == entry_size(1, MAX_VALUE_SIZE)
    assert measure_entry(codec.ENTRY.pack(PUT, 1, MAX_VALUE_SIZE + 1, 1, 1)) == 0
    assert measure_entry(head[:6]) == 0


# --- the CRC -----------------------------------------------------------------------------------


@bounded
@given(st.binary(max_size=100), u32)
def test_the_residue_is_constant_for_every_message_and_seed(message, seed):
    assert checksum(sealed_with_crc(message, seed), seed) == RESIDUE


def test_the_seed_is_the_crc_of_the_salt_as_it_stands_on_disk():
    raw = encode_segment_header(HEADER)
    assert seed_of(HEADER.salt) == checksum(raw[48:56])


def test_an_entry_in_parts_has_the_crc_of_the_whole():
    parts = encode_entry(PUT, b"k", b"a large value, not copied", 1, 2, 0, SEED)
    assert parts[1] == b"a large value, not copied"
    assert checksum(b"".join(parts), SEED) == RESIDUE
