"""Scans: every combination of bounds against brute force, and what a scan sees while others write."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytekv import LimitError, StoreClosedError
from bytekv.engine.store import Store
from tests.support import harness
from tests.support.harness import FakeFiles

#: Three bytes are all it takes: one at each end of the order and one between.
LETTERS = (b"\x00", b"a", b"\xff")
WORDS = [b"".join(word) for length in range(3) for word in itertools.product(LETTERS, repeat=length)]


def expected(
    content: dict[bytes, bytes],
    prefix: bytes = b"",
    *,
    start: bytes | None = None,
    stop: bytes | None = None,
    include_start: bool = True,
    include_stop: bool = False,
    reverse: bool = False,
    limit: int | None = None,
) -> list[tuple[bytes, bytes]]:
    """Say by brute force what `Store.scan` has to give."""
    found = [
        (key, value)
        for key, value in sorted(content.items(), reverse=reverse)
        if key.startswith(prefix)
        and (start is None or key > start or (include_start and key == start))
        and (stop is None or key < stop or (include_stop and key == stop))
    ]
    return found if limit is None else found[:limit]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a scan look for its next keys after every two, then four: what 128 and 1,024 hide shows at once."""
    harness.tune(monkeypatch, first_chunk=2, last_chunk=4)


# --- which keys ----------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 2, 64])
def test_every_combination_of_bounds(
    open_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    harness.tune(monkeypatch, first_chunk=chunk)
    db = open_store()
    content = {word: b"value of " + word for word in WORDS}
    db.update(content)
    bounds = [None, *WORDS]
    prefixes = [b"", b"\x00", b"a", b"\xff", b"a\xff", b"\xff\xff", b"\xff\xff\xff"]
    booleans = (False, True)
    limits = itertools.cycle([None, 0, 1, 3, 100])  # each limit with each range would only take longer
    for prefix, start, stop, include_start, include_stop, reverse in itertools.product(
        prefixes, bounds, bounds, booleans, booleans, booleans
    ):
        arguments: dict[str, Any] = {
            "start": start,
            "stop": stop,
            "include_start": include_start,
            "include_stop": include_stop,
            "reverse": reverse,
            "limit": next(limits),
        }
        found = list(db.scan_keys(prefix, **arguments))
        assert found == [key for key, _ in expected(content, prefix, **arguments)], (prefix, arguments)


_keys = st.binary(max_size=3) | st.text("a\xff", max_size=4).map(lambda text: text.encode("latin-1"))


@settings(max_examples=400)
@given(
    content=st.dictionaries(_keys, st.binary(max_size=3), max_size=20),
    prefix=_keys,
    start=st.none() | _keys,
    stop=st.none() | _keys,
    include_start=st.booleans(),
    include_stop=st.booleans(),
    reverse=st.booleans(),
    limit=st.none() | st.integers(0, 8),
)
def test_any_bounds_on_any_content(
    path: Path, small_chunks: None, content: dict[bytes, bytes], prefix: bytes, **bounds: Any
) -> None:
    with harness.open_store(path, "n", io="pread") as db:
        db.update(content)
        wanted = expected(content, prefix, **bounds)
        assert list(db.scan(prefix, **bounds)) == wanted
        assert list(db.scan_keys(prefix, **bounds)) == [key for key, _ in wanted]


@pytest.mark.parametrize("prefix", [b"", b"\xff", b"\xff\xff", b"a\xff\xff", b"a\xff\xffb", b"\xfe\xff", b"\x00"])
def test_prefixes_that_end_in_the_last_byte(open_store: Callable[..., Store], prefix: bytes) -> None:
    """The smallest key above all with such a prefix is not found by counting its last byte up."""
    db = open_store()
    content = dict.fromkeys(
        [
            b"",
            b"\x00",
            b"\x00\xff",
            b"a",
            b"a\xff",
            b"a\xff\xfe",
            b"a\xff\xff",
            b"a\xff\xff\x00",
            b"a\xff\xffb",
            b"a\xff\xff\xff",
            b"b",
            b"\xfe\xff\xff",
            b"\xff",
            b"\xff\x00",
            b"\xff\xff",
            b"\xff\xff\xff\xff",
        ],
        b"",
    )
    db.update(content)
    for reverse in (False, True):
        assert list(db.scan(prefix, reverse=reverse)) == expected(content, prefix, reverse=reverse)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("count", [0, 1, 127, 128, 129, 384, 1151, 1152, 1153, 3000])
def test_as_many_keys_as_a_chunk_holds(open_store: Callable[..., Store], count: int, reverse: bool) -> None:
    db = open_store()
    content = {b"%05d" % number: b"%d" % number for number in range(count)}
    db.update(content)
    assert list(db.scan(reverse=reverse)) == expected(content, reverse=reverse)
    for limit in (0, 1, 127, 128, 129, 384, 1152, 1153, count, count + 1):
        wanted = expected(content, reverse=reverse, limit=limit)
        assert list(db.scan(limit=limit, reverse=reverse)) == wanted
        assert list(db.scan_keys(limit=limit, reverse=reverse)) == [key for key, _ in wanted]


def test_the_order_is_kept_through_changes(open_store: Callable[..., Store]) -> None:
    """The index is built once and then kept up: with few changes one by one, with many by sorting again."""
    db = open_store()
    content: dict[bytes, bytes] = {}
    for round_ in range(12):
        for number in range(1, 200 if round_ % 3 == 0 else 6):
            key = b"%d" % (number * 7919 * (round_ + 1) % 1009)
            if key in content and number % 3:
                del content[key], db[key]
            else:
                content[key] = db[key] = b"%d" % round_
        assert list(db.scan()) == expected(content)
        assert list(db.scan(b"1", reverse=True, limit=9)) == expected(content, b"1", reverse=True, limit=9)
    db.clear()
    assert list(db) == []
    db[b"1"] = b""
    assert list(db) == [b"1"]


def test_text_is_utf_8_in_bounds_too(open_store: Callable[..., Store]) -> None:
    db = open_store()
    db.update({"ä:1": "1", "ä:2": "2", "ö:1": "3"})
    assert [value for _, value in db.scan("ä")] == [b"1", b"2"]
    assert [value for _, value in db.scan(start="ä:2", stop=bytearray("ö:1".encode()), include_stop=True)] == [
        b"2",
        b"3",
    ]
    assert list(db.scan_keys(memoryview("ö".encode()))) == ["ö:1".encode()]


# --- what is no range ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["scan", "scan_keys"])
def test_bad_arguments_are_refused_by_the_call(open_store: Callable[..., Store], method: str) -> None:
    """By the call itself, not by the first `next`, which may be far away from the mistake."""
    db = open_store()
    scan = getattr(db, method)
    for limit in ("1", 1.0, True, b"1"):
        with pytest.raises(TypeError, match="limit"):
            scan(limit=limit)
    with pytest.raises(LimitError, match="limit"):
        scan(limit=-1)
    for name in ("prefix", "start", "stop"):
        for bound in (1, 1.5, ("a",)):
            with pytest.raises(TypeError, match=name):
                scan(**{name: bound})
    with pytest.raises(TypeError, match="prefix"):
        scan(None)
    with pytest.raises(TypeError):
        scan(b"", b"a")  # bounds are named


# --- time ----------------------------------------------------------------------------------------


def test_what_has_expired_is_in_no_scan(open_store: Callable[..., Store], small_chunks: None) -> None:
    files = FakeFiles()
    db = open_store(files=files)
    for number in range(10):
        db.put(b"%d" % number, b"", ttl=None if number % 2 else number + 1)
    assert list(db) == [b"%d" % number for number in range(10)]
    scan = db.scan()
    assert next(scan) == (b"0", b"")
    files.sleep(5)  # 0, 2 and 4 go while the scan is on
    assert [key for key, _ in scan] == [b"1", b"3", b"5", b"6", b"7", b"8", b"9"]
    assert list(db.scan_keys(reverse=True, limit=5)) == [b"9", b"8", b"7", b"6", b"5"]
    files.sleep(100)
    assert list(db) == [b"1", b"3", b"5", b"7", b"9"]
    db.close()
    assert list(open_store(files=files)) == [b"1", b"3", b"5", b"7", b"9"]


# --- while others write --------------------------------------------------------------------------


def test_writes_around_the_cursor(open_store: Callable[..., Store], small_chunks: None) -> None:
    db = open_store()
    db.update({b"%d" % number: b"old" for number in range(0, 20, 2)} | {b"98": b"old", b"99": b"old"})
    keys = sorted(db)
    scan = db.scan()
    assert next(scan)[0] == keys[0]
    assert next(scan)[0] == keys[1]
    db[b"00"] = b"before the cursor"
    db[keys[0]] = b"new"
    del db[keys[1]]
    db[b"97"] = b"after the cursor, beyond what was looked up"
    db[b"99"] = b"new"
    del db[b"98"]
    assert list(scan) == [(key, b"old") for key in keys[2:]]
    assert dict(db.scan("9")) == {b"97": b"after the cursor, beyond what was looked up", b"99": b"new"}


def test_a_key_deleted_ahead_of_the_cursor_is_still_seen(open_store: Callable[..., Store]) -> None:
    db = open_store()
    db.update({b"a": b"1", b"b": b"2", b"c": b"3", b"d": b"4"})
    for scan, whole in ((db.scan(), True), (db.scan_keys(), False)):
        next(scan)
        del db[b"c"]
        rest = list(scan)
        assert rest == ([(b"b", b"2"), (b"c", b"3"), (b"d", b"4")] if whole else [b"b", b"c", b"d"])
        db[b"c"] = b"3"
    scan = db.scan()
    next(scan)
    del db[b"c"]
    db[b"c"] = b"other"  # gone and back again
    assert list(scan) == [(b"b", b"2"), (b"c", b"3"), (b"d", b"4")]


def test_a_limit_counts_what_is_given_not_what_is_gone(open_store: Callable[..., Store], small_chunks: None) -> None:
    db = open_store()
    db.update({b"%d" % number: b"" for number in range(10)})
    for scan in (db.scan(limit=5), db.scan_keys(limit=5)):
        next(scan)
        db.update({b"1": b"", b"2": b"", b"3": b""})
        for key in (b"1", b"2", b"3"):
            del db[key]
        assert len(list(scan)) == 4
        db.update({b"1": b"", b"2": b"", b"3": b""})


def test_a_scan_goes_on_after_clear(open_store: Callable[..., Store], small_chunks: None) -> None:
    db = open_store()
    db.update({b"%d" % number: b"" for number in range(10)})
    scans: list[Iterator[Any]] = [db.scan(), db.scan_keys(), db.scan(reverse=True), iter(db.values())]
    for scan in scans:
        next(scan)
    db.clear()
    db[b"5"] = b"back"
    assert [len(list(scan)) for scan in scans] == [9, 9, 9, 9]
    assert list(db.scan()) == [(b"5", b"back")]


@pytest.mark.parametrize("io", ["mmap", "pread"])
@pytest.mark.parametrize("open_segments", [None, 1])
def test_compaction_does_not_disturb_a_scan(
    open_store: Callable[..., Store], small_chunks: None, io: str, open_segments: int | None
) -> None:
    db = open_store(segment_size_bytes=400, io=io, max_open_segments=open_segments)
    for round_ in range(3):
        for number in range(20):
            db[b"%02d" % number] = b"round %d" % round_
    forward, backward = db.scan(), db.scan(reverse=True)
    seen = [next(forward)[0], next(backward)[0]]
    for _ in range(9):
        before = db.stats().total_bytes
        db.compact()
        assert db.stats().total_bytes <= before
        seen += [next(forward)[0], next(backward)[0]]
        db[b"00"] = b"again"  # so that the next compaction has something to do
    assert seen[::2] == [b"%02d" % number for number in range(10)]
    assert seen[1::2] == [b"%02d" % number for number in range(19, 9, -1)]


def test_a_scan_of_a_closed_store_raises(open_store: Callable[..., Store], small_chunks: None) -> None:
    db = open_store()
    db.update({b"%d" % number: b"" for number in range(10)})
    scans: list[Iterator[Any]] = [db.scan(), db.scan(limit=3), db.scan(), iter(db.items()), iter(db.values())]
    for scan in scans[:-1]:
        next(scan)
    db.close()
    for scan in scans:
        with pytest.raises(StoreClosedError):
            next(scan)


def test_scans_inside_scans_and_scans_left_alone(open_store: Callable[..., Store], small_chunks: None) -> None:
    db = open_store()
    db.update({b"%d" % number: b"%d" % number for number in range(6)})
    pairs = [(outer, inner) for outer in db for inner in db.scan_keys(reverse=True)]
    assert pairs == [(b"%d" % outer, b"%d" % inner) for outer in range(6) for inner in range(5, -1, -1)]
    left = db.scan()  # begun and never finished: it holds nothing that others need
    next(left)
    db[b"6"] = b"6"
    db.compact()
    for key in db:
        del db[key]
    db.compact()
    assert list(db) == []
    assert list(left) == [(b"%d" % number, b"%d" % number) for number in range(1, 6)]


def test_writing_the_keys_that_a_scan_gives_ends(open_store: Callable[..., Store], small_chunks: None) -> None:
    """Each key at most once: a loop that rewrites what it reads does not chase its own tail."""
    db = open_store(segment_size_bytes=400)
    db.update({b"%02d" % number: b"" for number in range(30)})
    for key, value in db.scan():
        db[key] = value + b"!"
    assert set(db.values()) == {b"!"}
    assert len(db) == 30


_key = st.binary(min_size=1, max_size=1).map(lambda byte: bytes((byte[0] % 12,)))
_steps = st.lists(
    st.one_of(
        st.just(("next",)),
        st.just(("next",)),
        st.tuples(st.just("put"), _key),
        st.tuples(st.just("delete"), _key),
        st.just(("clear",)),
        st.just(("compact",)),
        st.just(("other scan",)),
    ),
    max_size=40,
)


@settings(max_examples=400)
@given(steps=_steps, at_first=st.sets(_key, max_size=12), reverse=st.booleans(), start=st.none() | _key)
def test_any_writes_during_a_scan(
    path: Path, small_chunks: None, steps: list[tuple[Any, ...]], at_first: set[bytes], reverse: bool, start: Any
) -> None:
    """What comes is what was there when the scan began, in order, whatever happens meanwhile."""
    with harness.open_store(path, "n", io="pread", segment_size_bytes=400) as db:
        db.update(dict.fromkeys(at_first, b"first"))
        scans = [(db.scan(start=start, reverse=reverse), dict(db))]
        taken: list[list[tuple[bytes, bytes]]] = [[]]
        for number, (verb, *key) in enumerate(steps):
            if verb == "next":
                for (scan, _), pairs in zip(scans, taken, strict=True):
                    pairs += itertools.islice(scan, 1)
            elif verb == "put":
                db[key[0]] = b"%d" % number
            elif verb == "delete":
                db.delete(key[0])
            elif verb == "clear":
                db.clear()
            elif verb == "compact":
                db.compact()
            else:
                scans.append((db.scan(start=start, reverse=reverse), dict(db)))
                taken.append([])
        for (scan, content), pairs in zip(scans, taken, strict=True):
            pairs += scan
            expected = sorted((item for item in content.items() if start is None or item[0] >= start), reverse=reverse)
            assert pairs == expected
        assert db.stats().open_views == 0


def test_writers_come_in_while_keys_are_sorted(open_store, monkeypatch):
    """The first ordered use of two million keys sorted them in one call, under the lock: nobody else got in for 3 s."""
    from bytekv.engine import state

    harness.tune(monkeypatch, sorted_keys=10, few_changes=5)
    db = open_store(sync="os")
    db.update({f"{number * 37 % 200:03}": "" for number in range(200)})
    ordered, threads = state.ordered, []

    def ordered_beside_a_writer(keys, count):
        writer = threading.Thread(target=lambda: (db.put("new", "1"), db.delete("050"), db.put("000", "2")))
        writer.start()
        writer.join(20)
        threads.append(writer)
        return ordered(keys, count)

    monkeypatch.setattr(state, "ordered", ordered_beside_a_writer)
    with db.snapshot() as snap:
        assert list(snap) == [b"%03d" % number for number in range(200)]
    (writer,) = threads
    assert not writer.is_alive()
    assert list(db) == sorted([*(b"%03d" % number for number in range(200) if number != 50), b"new"])
    db.update({f"y{number}": "" for number in range(12)})
    assert list(db) == sorted(db._locations)
    assert len(threads) == 1, "12 of 200: the index is kept up, a few at a time"


def test_writers_come_in_while_what_a_snapshot_has_noted_is_sorted(open_store, monkeypatch):
    """The first scan of a snapshot under which 300,000 keys had been overwritten held the lock for 1.6 s."""
    from bytekv.engine import state

    harness.tune(monkeypatch, sorted_keys=10, few_changes=5)
    db = open_store(sync="os")
    names = [f"{number * 37 % 200:03}" for number in range(200)]
    db.update(dict.fromkeys(names, ""))
    assert len(list(db)) == 200
    ordered, threads = state.ordered, []

    def ordered_beside_a_writer(keys, count):
        writer = threading.Thread(target=lambda: (db.put("new", "1"), db.delete("150"), db.put("151", "2")))
        writer.start()
        writer.join(20)
        threads.append(writer)
        return ordered(keys, count)

    monkeypatch.setattr(state, "ordered", ordered_beside_a_writer)
    with db.snapshot() as snap:
        for name in names[:100]:
            db[name] = "1"
        db.clear()
        assert dict(snap) == {name.encode(): b"" for name in names}
        assert list(snap) == sorted(name.encode() for name in names)
    assert threads
    assert not any(writer.is_alive() for writer in threads)
    assert dict(db) == {b"new": b"1", b"151": b"2"}


def test_writers_come_in_while_a_compaction_sorts_keys(open_store, monkeypatch):
    """It lays values in the order of keys, and sorted a million of them under the lock to begin with: half a second."""
    from bytekv.engine import state

    harness.tune(monkeypatch, sorted_keys=10)
    db = open_store(sync="os")
    for value in ("old", "new"):
        db.update({f"{number * 37 % 200:03}": value for number in range(200)})
    ordered, threads = state.ordered, []

    def ordered_beside_a_writer(keys, count):
        writer = threading.Thread(target=lambda: db.put("beside", ""))
        writer.start()
        writer.join(20)
        threads.append(writer)
        return ordered(keys, count)

    monkeypatch.setattr(state, "ordered", ordered_beside_a_writer)
    db.compact()
    assert [writer.is_alive() for writer in threads] == [False]


@pytest.mark.parametrize("ends", ["store", "snapshot"])
@pytest.mark.parametrize("given", [1, 127, 128, 129, 400])
def test_every_scan_of_what_is_closed_says_so_at_its_next_step(
    open_store: Callable[..., Store], ends: str, given: int
) -> None:
    """Keys and values are read ahead, a thousand at once, and none of them is given out once the moment has ended."""
    db = open_store()
    db.update({b"%05d" % number: b"" for number in range(3000)})
    snapshot = db.snapshot()
    scans: list[Iterator[Any]] = [iter(snapshot), snapshot.scan(), snapshot.scan_keys(reverse=True), iter(snapshot)]
    for scan in scans:
        assert len(list(itertools.islice(scan, given))) == given
    (snapshot if ends == "snapshot" else db).close()
    for scan in scans:
        with pytest.raises(StoreClosedError):
            next(scan)


def test_a_scan_that_has_given_out_everything_has_ended_and_nothing_is_kept_of_it(
    open_store: Callable[..., Store],
) -> None:
    db = open_store()
    db.update({b"%05d" % number: b"" for number in range(500)})
    with db.snapshot() as snapshot:
        for whole in (snapshot.scan_keys(), snapshot.scan(limit=500)):
            assert len(list(whole)) == 500
        unfinished = snapshot.scan_keys()
        next(unfinished)
        assert len(snapshot._view._read_ahead) == 1
        del unfinished
        assert not snapshot._view._read_ahead
