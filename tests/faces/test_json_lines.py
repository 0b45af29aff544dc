"""Entries as JSON Lines: nothing is lost on the way out and back, and nothing half understood on the way in."""

from __future__ import annotations

import io
import json
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytekv.transfer import json_lines
from bytekv.transfer.json_lines import DuplicateError, LineError, decode_line, encode_line, load, read_lines
from tests.support.harness import FakeFiles, fresh, open_store

# Bytes of every kind: text (which stands as text), anything (which mostly does not), and what JSON has to escape.
some_bytes = st.one_of(
    st.binary(max_size=40), st.text(max_size=20).map(lambda text: text.encode(errors="surrogatepass"))
)
times = st.one_of(st.none(), st.integers(1, 4_000_000_000_000).map(lambda ms: ms / 1000))


@given(some_bytes, some_bytes, times)
def test_an_entry_comes_back_from_its_line(key, value, expires):
    line = encode_line(key, value, expires)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert decode_line(line) == (key, value, expires)
    fields = json.loads(line)
    for name, given_ in (("key", key), ("value", value)):
        try:
            text = given_.decode()
        except UnicodeDecodeError:
            text = None
        assert fields.get(name) == text


@given(st.dictionaries(some_bytes, st.tuples(some_bytes, times), max_size=5))
def test_many_lines_are_what_one_at_a_time_are(content):
    pairs = [(key, value) for key, (value, _) in content.items()]
    expires = {key: when for key, (_, when) in content.items() if when is not None}
    assert json_lines.encode_lines(pairs, expires) == b"".join(
        encode_line(*pair, expires.get(pair[0])) for pair in pairs
    )


# What a line may be made of, right and wrong, so that many of those that come out are nearly right.
_pieces = st.sampled_from(
    [b'"', b"\\", b'\\"', b"\\u0041", b"\\ud800", b"\\x", b"\\\n", b"\x00", b"\xff", "ä".encode(), b"YQ==", b"YQ", b"a"]
)
_texts = st.lists(_pieces, max_size=3).map(b"".join)
_numbers = st.sampled_from(
    [b"1.5", b"0", b"1", b"01", b"1e3", b"99999999999", b"999999999999", b"1.", b"-1", b'"1"', b"1}"]
)


@given(st.sampled_from(["", "_b64"]), _texts, st.sampled_from(["", "_b64", "s"]), _texts, st.none() | _numbers)
def test_the_usual_lines_are_taken_as_any_line_is(key_kind, key, value_kind, value, expires):
    """`decode_line` takes lines as `encode_line` writes them apart itself; what it makes of them is what JSON means."""
    line = b'{"key%b": "%b", "value%b": "%b"' % (key_kind.encode(), key, value_kind.encode(), value)
    line += b"}" if expires is None else b', "expires": %b}' % expires
    found = json_lines._usual_row(line)
    if found is not None:
        assert found == json_lines._any_row(line)


def test_what_is_written_is_usual():
    for key, value, expires in ((b"a", b"b", None), (b'\\"\n', "ä\x00".encode(), 1.5), (b"\xff", b"\xfe", 2e9)):
        assert json_lines._usual_row(encode_line(key, value, expires)) == (key, value, expires)


@settings(max_examples=30)
@given(st.dictionaries(some_bytes, st.tuples(some_bytes, times), max_size=20), st.booleans())
def test_a_store_comes_back_from_its_lines(path, content, small_batches):
    folder = fresh(path)
    clock = FakeFiles(now_s=0.0005)  # before every expiry
    lines = b""
    with open_store(folder / "one", files=clock) as one:
        for key, (value, expires) in content.items():
            one.put(key, value, expires=expires)
        with one.snapshot() as snapshot:
            for key in snapshot:
                entry = snapshot.entry(key)
                lines += encode_line(key, entry.value, entry.expires)
    with pytest.MonkeyPatch.context() as patch, open_store(folder / "two", files=clock) as two:
        if small_batches:
            patch.setattr(json_lines, "BATCH_ENTRIES", 3)
        assert load(two, read_lines(io.BytesIO(lines)), clock=lambda: 0.0005) == (len(content), 0)
        found = {key: (entry.value, entry.expires) for key in two for entry in [two.entry(key)]}
    assert found == content


WRONG = {
    b"": "not JSON",
    b"{": "not JSON",
    b'{"key": "a", "value": "b"} {}': "not JSON",
    b"[" * 100_000: "nested too deeply|not JSON",
    b'{"key": "a", "value": ' + b"1" * 5000 + b"}": "a number with too many digits",
    b"[]": "not a JSON object",
    b"null": "not a JSON object",
    b'"key"': "not a JSON object",
    b"\xff": "not UTF-8 at byte 0",
    b'{"key": "a"}': "needs either value or value_b64",
    b'{"value": "a"}': "needs either key or key_b64",
    b'{"key": "a", "key_b64": "YQ==", "value": "b"}': "needs either key or key_b64",
    b'{"key": "a", "value": null}': "needs either value",
    b'{"key": 1, "value": "b"}': "key is not a string",
    b'{"key": "a", "value_b64": []}': "value is not a string",
    b'{"key": "a", "value": "b", "Value": "c"}': "unknown field 'Value'",
    b'{"key": "a", "value": "b", "key": "c"}': "twice",
    b'{"key_b64": "YQ", "value": "b"}': "key_b64 is not base64",
    b'{"key_b64": "Y Q==", "value": "b"}': "key_b64 is not base64",
    b'{"key_b64": "\xc3\xa4", "value": "b"}': "key_b64 is not base64",
    b'{"key": "\\ud800", "value": "b"}': "half of a surrogate pair",
    b'{"key_b64": "\\ud800", "value": "b"}': "half of a surrogate pair",
    b'{"key": "a", "value": "b", "expires": "1"}': "expires is not a number",
    b'{"key": "a", "value": "b", "expires": true}': "expires is not a number",
    b'{"key": "a", "value": "b", "expires": 0}': "expires must be a time",
    b'{"key": "a", "value": "b", "expires": NaN}': "expires must be a time",
    b'{"key": "a", "value": "b", "expires": 1e999}': "expires must be a time",
    b'{"key": "' + b"k" * 65_536 + b'", "value": "b"}': "a key of 65536 bytes",
}


@pytest.mark.parametrize(("line", "complaint"), WRONG.items(), ids=range(len(WRONG)))
def test_a_line_that_is_no_entry_is_refused(line, complaint):
    with pytest.raises(LineError, match=complaint):
        decode_line(line)
    with pytest.raises(LineError, match=r"^line 3: "):
        list(read_lines(io.BytesIO(b'{"key": "a", "value": "b"}\n\n' + (line or b"x") + b"\n")))


@given(st.binary(max_size=60))
def test_no_line_raises_anything_else(line):
    with suppress(LineError):
        decode_line(line)


def test_a_line_without_an_end_is_not_read_for_ever(monkeypatch):
    monkeypatch.setattr(json_lines, "MAX_LINE_SIZE", 30)

    class Endless(io.RawIOBase):
        def readable(self):
            return True

        def readinto(self, buffer):
            buffer[:] = b" " * (len(buffer) - 1) + b"x"
            return len(buffer)

    with pytest.raises(LineError, match="line 1: too long"):
        list(read_lines(io.BufferedReader(Endless())))


def test_seq_and_time_of_another_store_are_passed_over():
    assert decode_line(b'{"key": "a", "value": "b", "seq": 7, "modified": 1.5}') == (b"a", b"b", None)


def test_what_was_loaded_before_an_error_stays_in_whole_batches(path, monkeypatch):
    monkeypatch.setattr(json_lines, "BATCH_ENTRIES", 3)
    counts: list[int] = []
    lines = b"".join(encode_line(b"%d" % number, b"v") for number in range(8)) + b"?\n"
    with open_store(path) as db:
        with pytest.raises(LineError, match="line 9"):
            load(db, read_lines(io.BytesIO(lines)), counts.append)
        assert counts == [3, 6]
        assert list(db) == [b"%d" % number for number in range(6)]


def test_batches_are_bounded_in_bytes(path, monkeypatch):
    monkeypatch.setattr(json_lines, "BATCH_BYTES", 100)
    counts: list[int] = []
    with open_store(path) as db:
        assert load(db, [(b"%d" % number, b"v" * 60, None) for number in range(5)], counts.append) == (5, 0)
        assert counts == [2, 4, 5]
        assert load(db, [], counts.append) == (0, 0)
    assert counts == [2, 4, 5]


@pytest.mark.parametrize("batch", [1, 2, 1000])
def test_what_is_counted_is_what_is_stored(path, monkeypatch, batch):
    """Two entries of one key were counted as two, and one of the values was gone without a word."""
    monkeypatch.setattr(json_lines, "BATCH_ENTRIES", batch)
    rows = [(b"a", b"1", None), (b"b", b"2", None), (b"a", b"3", None), (b"c", b"4", None)]
    with open_store(path) as db:
        db["a"] = db["c"] = "of before"
        assert load(db, rows) == (3, 0)
        assert dict(db) == {b"a": b"3", b"b": b"2", b"c": b"4"}
        assert load(db, rows, duplicates="first") == (3, 0)
        assert dict(db) == {b"a": b"1", b"b": b"2", b"c": b"4"}
        with pytest.raises(DuplicateError, match=r"entry 3: .* the same key b'a'"):
            load(db, rows, duplicates="refuse")
        assert load(db, rows[:2], duplicates="refuse") == (2, 0), "what was there before is no duplicate"


def test_a_key_that_goes_and_comes_within_a_batch_is_counted_once(path, monkeypatch):
    """The batch before had counted it, and for each of its entries in this one that was taken back."""
    monkeypatch.setattr(json_lines, "BATCH_ENTRIES", 2)
    rows = [(b"a", b"1", None), (b"b", b"2", None), (b"a", b"3", 1.0), (b"a", b"4", None)]
    with open_store(path) as db:
        assert load(db, rows) == (2, 1)
        assert dict(db) == {b"a": b"4", b"b": b"2"}


@pytest.mark.parametrize("batch", [1, 1000])
def test_an_entry_that_has_expired_is_told_and_not_stored(path, monkeypatch, batch):
    monkeypatch.setattr(json_lines, "BATCH_ENTRIES", batch)
    rows = [(b"a", b"1", 1.0), (b"b", b"2", 2e10), (b"c", b"3", -5.0), (b"d", b"4", 0.0)]
    with open_store(path) as db:
        db["a"] = "of before"
        assert load(db, rows) == (1, 3)
        assert dict(db) == {b"b": b"2"}
