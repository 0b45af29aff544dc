"""The abstract store: another one, which keeps its bytes in a dict, is a mapping by what it inherits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest

import bytekv
from bytekv.contract.batch import Batch, Writes
from bytekv.contract.convert import Bytes, key_of, to_bytes, value_of
from bytekv.contract.ordered import Range
from bytekv.contract.store import Store
from bytekv.contract.transaction import Transaction
from tests.support.harness import QuickFiles
from tests.support.mapping_contract import check_mapping


def _not_asked_for(*_: object, **__: object) -> NoReturn:
    raise NotImplementedError


class _InDict(Store):
    """What `check_mapping` and a transaction need of a store, and nothing of bytekv's engine."""

    def __init__(self) -> None:
        self._values: dict[bytes, bytes] = {}

    def _walk(self, range_: Range, limit: int | None) -> Iterator[bytes]:
        keys = sorted(filter(range_.holds, self._values), reverse=range_.reverse)
        return iter(keys[:limit])

    def _pairs(self, range_: Range, limit: int | None) -> Iterator[tuple[bytes, bytes]]:
        return iter([(key, self._values[key]) for key in self._walk(range_, limit)])

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: object) -> bool:
        return to_bytes("key", key) in self._values

    def get(self, key: Bytes, default: object = None) -> Any:
        return self._values.get(to_bytes("key", key), default)

    def ttl(self, key: Bytes) -> float | None:
        self._values[to_bytes("key", key)]
        return None

    def put(self, key: Bytes, value: Bytes, **_: object) -> int:
        self._values[key_of(key)] = value_of(value)
        return 0

    def delete(self, key: Bytes) -> bool:
        return self._values.pop(to_bytes("key", key), None) is not None

    def pop(self, key: Bytes, *default: object) -> Any:
        return self._values.pop(to_bytes("key", key), *default)

    def setdefault(self, key: Bytes, default: Bytes | None = None) -> bytes:
        return self._values.setdefault(key_of(key), value_of(b"" if default is None else default))

    def clear(self) -> None:
        self._values.clear()

    def batch(self) -> Batch:
        return Batch(self._carry_out)

    def transaction(self) -> Transaction:
        return Transaction(self, lambda _: None, lambda _, writes: self._carry_out(writes) if writes else None)

    def _carry_out(self, writes: Writes) -> int:
        for key, write in writes.items():
            if write is None:
                self._values.pop(key, None)
            else:
                self._values[key] = write if isinstance(write, bytes) else write[0]
        return 0

    def _check_open(self) -> None:
        assert not self.was_closed

    def close(self) -> None:
        self.was_closed = True

    was_closed = False


InDict: Any = type("InDict", (_InDict,), dict.fromkeys(_InDict.__abstractmethods__, _not_asked_for))


def test_what_a_store_inherits_makes_it_a_mapping() -> None:
    check_mapping(InDict)


def test_what_a_store_inherits_reads_and_closes() -> None:
    with InDict() as db:
        db |= {"a": "12345"}
        assert db.read("a", 1, 3) == b"234"
        assert db.read("a", 3) == b"45"
        with pytest.raises(KeyError):
            db.read("b")
        with pytest.raises(bytekv.LimitError):
            db.read("a", -1)
    assert db.was_closed


def test_a_transaction_needs_no_engine() -> None:
    db = InDict()
    db.update({"a": "1", "b": "2", "c": "3"})
    with db.transaction() as tx:
        tx["b"] = "new"
        del tx["a"]
        assert (dict(tx), len(tx)) == ({b"b": b"new", b"c": b"3"}, 2)
        assert dict(db) == {b"a": b"1", b"b": b"2", b"c": b"3"}
        assert tx.popitem() == (b"c", b"3")
    assert dict(db) == {b"b": b"new"}


def test_an_incomplete_store_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="abstract"):
        _InDict()  # type: ignore[abstract]


def test_the_time_is_that_of_the_store_s_clock(open_store: Callable[..., bytekv.Store]) -> None:
    files = QuickFiles()
    db = open_store(files=files)
    db.put("a", "1", ttl=10)
    before = db._now_ms()
    files.sleep(9)
    assert db._now_ms() == before + 9000
    assert db.ttl("a") == 1
