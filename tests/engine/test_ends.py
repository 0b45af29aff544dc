"""Queues: the first and the last key are taken without a view, and are what the ordinary way finds."""

from __future__ import annotations

from collections import OrderedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytekv.engine.reader import Reader
from bytekv.errors import ReadOnlyError, StoreClosedError
from tests.support import harness
from tests.support.harness import FakeFiles

KEYS = [b"", b"a", b"a1", b"a2", b"b", b"c", b"\xff"]


@pytest.mark.parametrize("sync", ["os", "interval", "always"])
@pytest.mark.parametrize("beside", ["nothing", "a snapshot", "a key that expires"])
def test_popitem_takes_either_end_as_an_ordered_dict_does(open_store, sync, beside):
    db = open_store(sync=sync)
    model = OrderedDict((b"%02d" % number, b"%d" % number * (9000 if number == 5 else 1)) for number in range(20))
    db.update(model)
    snapshot = db.snapshot() if beside == "a snapshot" else None
    if beside == "a key that expires":
        db.put(b"07", b"7", ttl=1000)
    for number in range(20):
        last = bool(number % 3)
        assert db.popitem(last) == model.popitem(last)
        assert dict(db.items()) == model
    for last in (True, False):
        with pytest.raises(KeyError):
            db.popitem(last=last)
    if snapshot is not None:
        assert len(snapshot) == 20
        snapshot.close()


def test_a_transaction_takes_either_end(open_store):
    db = open_store()
    db.update({"a": "1", "b": "2", "d": "4"})
    with db.transaction() as tx:
        tx["c"] = "3"
        del tx["d"]
        tx["0"] = "0"
        taken = [tx.popitem(last=False), tx.popitem(), tx.popitem(last=False), tx.popitem()]
        assert taken == [(b"0", b"0"), (b"c", b"3"), (b"a", b"1"), (b"b", b"2")]
        with pytest.raises(KeyError):
            tx.popitem(last=False)
    assert len(db) == 0


def test_what_has_expired_at_an_end_is_passed_over(path):
    files = FakeFiles()
    with harness.open_store(path, files=files) as db:
        db.put("a", "old", ttl=1)
        db.put("z", "old", ttl=1)
        db.update({"m": "1", "n": "2"})
        files.sleep(2)
        assert next(db.scan(limit=1)) == (b"m", b"1")
        assert db.popitem(last=False) == (b"m", b"1")
        assert db.popitem() == (b"n", b"2")
        with pytest.raises(KeyError):
            db.popitem()


def test_pop_deletes_what_it_returns(open_store, monkeypatch):
    """Somebody writes between its look at the value and its delete: the value that was never returned would be gone."""
    db = open_store()
    db["a"] = "first"
    get = db.get

    def late(key: bytes) -> object:
        value = get(key)
        db.put(key, b"second")
        return value

    monkeypatch.setattr(db, "get", late, raising=False)
    assert db.pop("a") == b"second"
    assert "a" not in db
    db["b"] = "first"
    assert db.popitem() == (b"b", b"second")


def test_a_compaction_between_the_look_and_the_delete(open_store, monkeypatch):
    db = open_store()
    db.update({"a": "1", "b": "2"})
    db["b"] = "3"
    get = db.get

    def late(key: bytes) -> object:
        value = get(key)
        db.compact()
        return value

    monkeypatch.setattr(db, "get", late, raising=False)
    assert db.pop("a") == b"1"
    assert dict(db.items()) == {b"b": b"3"}


def test_a_reader_may_not_take_anything(open_store):
    db = open_store()
    db["a"] = "1"
    with harness.open_store(db.path, "r") as reader:
        for take in (lambda: reader.pop("a"), lambda: reader.pop("b", None), reader.popitem):
            with pytest.raises(ReadOnlyError):
                take()
        assert next(reader.scan(limit=1)) == (b"a", b"1")


def test_the_first_is_that_of_the_moment_of_the_call(open_store):
    db = open_store()
    db["b"] = "1"
    found = db.scan(limit=1)
    db["a"] = "2"
    db["b"] = "3"
    assert list(found) == [(b"b", b"1")]
    late = db.scan(limit=1)
    db.close()
    with pytest.raises(StoreClosedError):
        next(late)


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(st.sampled_from(KEYS), st.binary(max_size=20) | st.just(bytes(9000))),
    st.sampled_from([b"", b"a", b"x"]),
    st.sampled_from([None, *KEYS]),
    st.sampled_from([None, *KEYS]),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_one_of_a_range_is_the_first_of_all(path, content, prefix, start, stop, how):
    include_start, include_stop, reverse = how
    with harness.open_store(harness.fresh(path)) as db:
        db.update(content)
        limits = {"start": start, "stop": stop, "include_start": include_start, "include_stop": include_stop}
        everything = list(db.scan(prefix, **limits, reverse=reverse))
        assert list(db.scan(prefix, **limits, reverse=reverse, limit=1)) == everything[:1]


def test_the_ends_are_found_without_a_view(open_store, monkeypatch):
    db = open_store()
    db.update({b"%02d" % number: b"v" for number in range(10)})
    list(db)
    monkeypatch.setattr(Reader, "open_view", None)
    assert next(db.scan(limit=1)) == (b"00", b"v")
    assert next(db.scan("0", reverse=True, limit=1)) == (b"09", b"v")
    assert db.popitem() == (b"09", b"v")
    assert db.popitem(last=False) == (b"00", b"v")
