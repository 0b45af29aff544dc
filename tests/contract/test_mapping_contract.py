"""A store is a mapping: the contract, run on stores of every kind and on a mapping that is not ours."""

from __future__ import annotations

import itertools
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any

import pytest
from sortedcontainers import SortedDict

from bytekv import ReadOnlyError, StoreClosedError
from bytekv.engine.store import Store
from tests.support.mapping_contract import PAIRS, PARTS, check_mapping, filled

KINDS = [
    {"sync": sync, "io": io, "segment_size_bytes": size}
    for sync, io, size in itertools.product(("interval", "always", "os"), ("mmap", "pread"), (400, 1 << 20))
]


@pytest.fixture
def make(path: Path, open_store: Callable[..., Store]) -> Callable[..., Callable[[], Store]]:
    """Turn options into what `check_mapping` wants: a maker of empty stores, each in a directory of its own."""
    numbers = itertools.count()

    def maker(**options: Any) -> Callable[[], Store]:
        return lambda: open_store(at=path.with_name(f"store-{next(numbers)}"), **options)

    return maker


@pytest.mark.parametrize("options", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def test_a_store_is_a_mapping(make: Callable[..., Callable[[], Store]], options: dict[str, Any]) -> None:
    check_mapping(make(**options))


def test_the_contract_is_that_of_another_ordered_mapping() -> None:
    check_mapping(SortedDict)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__.strip("_"))
def test_a_store_stays_a_mapping_after_reopening(
    path: Path, open_store: Callable[..., Store], part: Callable[[MutableMapping[bytes, bytes]], None]
) -> None:
    """Each part on a store that was full once: what is deleted on disk must not show."""
    filled(db := open_store(segment_size_bytes=400)).clear()
    db.close()
    part(db := open_store(segment_size_bytes=400))
    content = dict(db.items())
    db.close()
    assert open_store() == content


def test_what_differs_from_a_dict(open_store: Callable[..., Store]) -> None:
    db = open_store()
    filled(db)
    assert db.popitem() == PAIRS[-1]  # the last in order, whatever was stored last
    for nothing in ((), (None,)):
        with pytest.raises(TypeError, match="default"):
            db.setdefault(b"missing", *nothing)
    assert b"missing" not in db
    assert db.setdefault(b"a") == b"1"  # it is there: no default is needed
    # A dict would say "not there" to a key of another type; here it is a mistake, and said so.
    before, seq = dict(db), db.last_seq
    for stranger in (1, 1.5, None, object(), ("a",)):
        for use in (
            lambda key: db[key],
            lambda key: key in db,
            lambda key: db.get(key),
            lambda key: db.pop(key, None),
            lambda key: db.setdefault(key, b""),
            lambda key: db.put(key, b""),
            lambda key: db.add(key, b""),
            lambda key: db.delete(key),
            lambda key: db.incr(key),
            lambda key: db.modify(key, bytes.upper, b""),
            lambda key: db.stat(key),
            lambda key: db.expire(key, 1),
            lambda key: db.persist(key),
            lambda key: db.ttl(key),
            lambda key: db.entry(key),
            lambda key: db.read(key),
            lambda key: db.get_many([key]),
            lambda key: db.update({b"new": b"", key: b""}),
            lambda key: db.__setitem__(key, b""),
            lambda key: db.__delitem__(key),
            lambda value: db.__setitem__(b"k", value),
            lambda value: db.put(b"k", value),
            lambda value: db.add(b"k", value),
            lambda value: db.update({b"new": b"", b"k": value}),
        ):
            with pytest.raises(TypeError):
                use(stranger)
    assert (dict(db), db.last_seq) == (before, seq)


def test_keys_and_values_may_be_text_or_any_bytes(open_store: Callable[..., Store]) -> None:
    db = open_store()
    db["ä"] = "ö"
    assert db["ä".encode()] == "ö".encode()
    assert "ä" in db
    assert db.get("ä") == "ö".encode()
    assert db.pop("ä") == "ö".encode()
    buffer = bytearray(b"key")
    db[buffer] = memoryview(b"-value-")[1:-1]
    buffer[:] = b"was"  # the store has its own copy
    assert dict(db) == {b"key": b"value"}
    assert db[memoryview(b"key")] == b"value"
    assert all(type(part) is bytes for pair in db.items() for part in pair)
    with pytest.raises(UnicodeEncodeError):
        db["\ud800"] = b""
    assert dict(db) == {b"key": b"value"}


def test_an_update_is_one_batch(open_store: Callable[..., Store]) -> None:
    db = open_store()
    db[b"a"] = b"old"

    def pairs() -> Any:
        yield b"a", b"new"
        assert db[b"a"] == b"old"  # nothing shows before all is there
        yield b"b", b"new"
        raise LookupError

    with pytest.raises(LookupError):
        db.update(pairs())
    assert dict(db) == {b"a": b"old"}
    assert db.last_seq == 1


def test_a_closed_store_refuses_everything(open_store: Callable[..., Store]) -> None:
    db = open_store()
    filled(db)
    keys, values, items = db.keys(), db.values(), db.items()
    db.close()
    db.close()
    for use in (
        lambda: db[b"a"],
        lambda: db.__setitem__(b"a", b""),
        lambda: db.__delitem__(b"a"),
        lambda: b"a" in db,
        lambda: len(db),
        lambda: bool(db),
        lambda: iter(db),
        lambda: reversed(db),
        lambda: list(keys),
        lambda: list(values),
        lambda: list(items),
        lambda: b"a" in keys,
        lambda: b"1" in values,
        lambda: (b"a", b"1") in items,
        lambda: len(keys),
        lambda: db.get(b"a"),
        lambda: db.pop(b"a", None),
        lambda: db.popitem(),
        lambda: db.setdefault(b"a", b""),
        lambda: db.update({b"a": b""}),
        lambda: db.clear(),
        lambda: db == {},
        lambda: db | {},
        lambda: db.put(b"a", b""),
        lambda: db.add(b"a", b""),
        lambda: db.delete(b"a"),
        lambda: db.incr(b"a"),
        lambda: db.modify(b"a", bytes.upper, b""),
        lambda: db.stat(b"a"),
        lambda: db.scan_stats(),
        lambda: db.count(),
        lambda: db.count(b"a"),
        lambda: db.children(),
        lambda: db.delete_prefix(b"a"),
        lambda: db.delete_range(b"a"),
        lambda: db.expire(b"a", 1),
        lambda: db.persist(b"a"),
        lambda: db.ttl(b"a"),
        lambda: db.entry(b"a"),
        lambda: db.read(b"a"),
        lambda: db.get_many([b"a"]),
        lambda: db.scan(),
        lambda: db.scan_keys(),
        lambda: db.batch(),
        lambda: db.sync(),
        lambda: db.compact(),
        lambda: db.verify(),
        lambda: db.stats(),
        lambda: db.__enter__(),
    ):
        with pytest.raises(StoreClosedError):
            use()


def test_a_reader_sees_the_mapping_and_changes_nothing(open_store: Callable[..., Store]) -> None:
    filled(db := open_store())
    db.close()
    db = open_store("r")
    assert list(db.items()) == PAIRS
    assert list(reversed(db.items())) == PAIRS[::-1]
    for use in (
        lambda: db.__setitem__(b"a", b""),
        lambda: db.__delitem__(b"a"),
        lambda: db.pop(b"a"),
        lambda: db.pop(b"missing", None),
        lambda: db.popitem(),
        lambda: db.setdefault(b"new", b""),
        lambda: db.update({b"new": b""}),
        lambda: db.clear(),
        lambda: db.put(b"a", b""),
        lambda: db.add(b"new", b""),
        lambda: db.incr(b"new"),
        lambda: db.modify(b"a", bytes.upper),
        lambda: db.delete_prefix(b"a"),
        lambda: db.delete_range(b"a", b"b"),
        lambda: db.expire(b"a", 1),
        lambda: db.persist(b"a"),
        lambda: db.compact(),
        lambda: db.batch(),
    ):
        with pytest.raises(ReadOnlyError):
            use()
    assert list(db.items()) == PAIRS


def test_any_name_may_be_a_key_of_update(open_store: Callable[..., Store]) -> None:
    db = open_store()
    db.update(self=b"1", other=b"2", more=b"3", key=b"4")
    assert dict(db) == {b"key": b"4", b"more": b"3", b"other": b"2", b"self": b"1"}
