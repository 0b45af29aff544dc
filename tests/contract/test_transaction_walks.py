"""What a transaction's iteration shows while the transaction writes, and what it costs.

A walk used to fix the transaction's own writes at its call and to ask the live ones about the store's keys: a key that
was overwritten meanwhile came from neither. And whatever took the first key and deleted it, walked past all
that it had deleted before: hours for 100,000 keys, with all other writers outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytekv.contract.transaction import Transaction
from bytekv.engine.store import Store
from tests.support.harness import NO_WORKER, QuickFiles, fresh, open_store, patched

SMALL = {
    **NO_WORKER,
    "bytekv.contract.overlay._FIRST_CHUNK": 2,
    "bytekv.contract.overlay._LAST_CHUNK": 3,
    "bytekv.contract.overlay._LONG_RUN": 2,
}
KEYS = [b"%x" % number for number in range(12)]
keys = st.sampled_from(KEYS)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), keys, st.binary(max_size=2)),
        st.tuples(st.just("delete"), keys),
        st.tuples(st.just("walk"), st.booleans(), st.booleans(), st.one_of(st.none(), keys), st.integers(0, 6)),
        st.tuples(st.just("next"), st.integers(0, 3)),
        st.tuples(st.sampled_from(["popitem", "first", "clear", "sleep"])),
    ),
    max_size=40,
)


@settings(max_examples=30)
@given(before=st.dictionaries(keys, st.binary(max_size=2)), mortal=st.sets(keys), steps=steps)
def test_each_walk_shows_the_moment_of_its_call(
    tmp_path_factory: Any, before: dict[bytes, bytes], mortal: set[bytes], steps: list[tuple[Any, ...]]
) -> None:
    files = QuickFiles()
    path: Path = fresh(Path(tmp_path_factory.getbasetemp()) / "walks")
    with patched(SMALL), open_store(path, files=files) as store, store.transaction() as unused:
        assert len(unused) == 0
        unused.update(before)
        for key in mortal & before.keys():
            unused.put(key, before[key], ttl=10)
        del unused
    with patched(SMALL), open_store(path, files=files) as store:
        with store.transaction() as tx:
            _play(tx, dict(before), {key for key in mortal if key in before}, steps, files)
            expected = dict(tx)
        assert dict(store) == expected


def _play(
    tx: Transaction, model: dict[bytes, bytes], mortal: set[bytes], steps: list[tuple[Any, ...]], files: QuickFiles
) -> None:
    walks: list[tuple[Iterator[Any], list[Any], set[bytes]]] = []  # what each is still to give; of that may expire
    written: set[bytes] = set()
    for step in steps:
        match step:
            case ["put", key, value]:
                tx[key] = model[key] = value
                written.add(key)
            case ["delete", key]:
                if key in model:
                    del tx[key], model[key]
                    written.add(key)
                else:
                    with pytest.raises(KeyError):
                        del tx[key]
            case ["popitem"]:
                if model:
                    last = max(model)
                    assert tx.popitem() == (last, model.pop(last))
                    written.add(last)
                else:
                    with pytest.raises(KeyError):
                        tx.popitem()
            case ["first"]:
                first = next(iter(tx), None)
                assert first == min(model, default=None)
                if first is not None:
                    del tx[first], model[first]
                    written.add(first)
            case ["clear"]:
                tx.clear()
                written |= model.keys()
                model.clear()
            case ["sleep"]:
                files.sleep(11)
                for key in mortal - written:
                    model.pop(key, None)
                for position, (walk, rest, perishable) in enumerate(walks):
                    walks[position] = walk, [item for item in rest if item[0] not in perishable], set()
                mortal -= mortal - written
            case ["walk", reverse, with_values, start, limit]:
                bound = limit or None
                items = sorted((item for item in model.items() if start is None or item[0] >= start), reverse=reverse)
                if with_values:
                    walk: Iterator[Any] = tx.scan(start=start, reverse=reverse, limit=bound)
                else:
                    found = tx.scan_keys(start=start, reverse=reverse, limit=bound)
                    walk = map(lambda key, values=dict(items): (key, values.get(key)), found)
                perishable = mortal - written
                if not (perishable and bound):
                    walks.append((walk, items[:bound], perishable))
            case ["next", number]:
                if number < len(walks):
                    walk, rest, _ = walks[number]
                    assert next(walk, None) == (rest.pop(0) if rest else None)
        assert len(tx) == len(model)
        assert [key for key in KEYS if key in tx] == sorted(model)
    for walk, rest, _ in walks:
        assert list(walk) == rest
    assert dict(tx) == model


def _first(tx: Transaction) -> bytes | None:
    return next(tx.scan_keys("job", limit=1), None)


def _first_of_all(tx: Transaction) -> bytes | None:
    return next(iter(tx), None)


def _last(tx: Transaction) -> bytes | None:
    return next(reversed(tx), None)


class Counted:
    """A store, as a transaction sees it, that counts the keys that it is asked for."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.walked = 0

    def _walk(self, *arguments: Any) -> Iterator[bytes]:
        for key in self._store._walk(*arguments):
            self.walked += 1
            yield key

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def __contains__(self, key: object) -> bool:
        return key in self._store

    def __len__(self) -> int:
        return len(self._store)


def _begin(store: Store) -> tuple[Transaction, Counted]:
    tx = store.transaction()
    counted = Counted(store)
    tx._store = counted  # type: ignore[assignment]
    return tx, counted


@pytest.mark.parametrize("take", [_first, _first_of_all, _last])
def test_taking_one_after_the_other_is_linear(open_store: Callable[..., Store], take: Any) -> None:
    count = 1200
    db = open_store()
    db.update({f"job{number:05}": "" for number in range(count)})
    tx, counted = _begin(db)
    with tx:
        taken = 0
        while (key := take(tx)) is not None:
            tx[key] = "again"
            del tx[key]
            taken += 1
            assert len(tx) == count - taken
        assert taken == count
    assert counted.walked < 100 * count, "a run of fewer than 64 keys is passed key by key"
    assert len(db) == 0


def test_popitem_takes_the_same_end_of_a_store_and_a_transaction_and_is_linear(
    open_store: Callable[..., Store],
) -> None:
    db = open_store()
    db.update({f"{number:05}": str(number) for number in range(1000)})
    assert db.popitem() == (b"00999", b"999")
    tx, counted = _begin(db)
    with tx:
        tx["99999"] = "own"
        assert tx.popitem() == (b"99999", b"own")
        assert [tx.popitem()[0] for _ in range(999)] == [b"%05d" % number for number in reversed(range(999))]
        with pytest.raises(KeyError, match="no key"):
            tx.popitem()
    assert counted.walked < 100 * 1000
    with pytest.raises(KeyError):
        db.popitem()


def test_neither_len_nor_in_walks_and_clear_walks_once(open_store: Callable[..., Store]) -> None:
    db = open_store()
    db.update({f"{number:05}": "" for number in range(1000)})
    tx, counted = _begin(db)
    with tx:
        for number in range(1000):
            tx[str(number)] = ""
            assert len(tx) == 1001 + number
            assert f"{number:05}" in tx
        assert counted.walked == 0
        tx.clear()
        assert counted.walked <= 1010, "and a chunk looks where the one before ended"
        assert (len(tx), list(tx)) == (0, [])
    assert len(db) == 0


def test_a_walk_of_a_transaction_ends_with_it(open_store: Callable[..., Store]) -> None:
    db = open_store()
    db.update({"a": "1", "b": "2"})
    with db.transaction() as tx:
        walk = iter(tx)
        next(walk)
    with pytest.raises(Exception, match="over"):
        next(walk)
