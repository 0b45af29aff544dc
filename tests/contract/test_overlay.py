"""Writes that have not been carried out: a signal handler's exception in the middle of one loses none.

A key that is written again takes its place at the end: it was taken out first and stored afterwards. KeyboardInterrupt
in between, caught inside the block, lost both writes, and the block's end carried out the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import pytest

import bytekv
from tests.crash.test_interrupts import InterruptAt

BEFORE = {b"a": b"1", b"b": b"2", b"c": b"3"}


class _Over(Exception):
    pass


def _strike_everywhere(attempt: Callable[[InterruptAt], bool]) -> None:
    number = 1
    while attempt(InterruptAt(number)):
        number += 1
    assert number > 10


@pytest.mark.parametrize("again", ["put", "put_all", "delete"])
def test_an_interrupt_that_is_caught_in_a_batch_loses_no_write(
    open_store: Callable[..., bytekv.Store], again: str
) -> None:
    db = open_store()

    def attempt(interrupt: InterruptAt) -> bool:
        db.update(dict.fromkeys(BEFORE, b"0"))
        with db.batch() as batch:
            batch.put_all(BEFORE.items())
            if again == "put":
                struck = interrupt.carry_out(lambda: batch.put(b"a", b"new"))
            elif again == "put_all":
                struck = interrupt.carry_out(lambda: batch.put_all([(b"a", b"new")]))
            else:
                struck = interrupt.carry_out(lambda: batch.delete(b"a"))
            batch[b"b"] = b"last"
            assert len(batch) == 3
        after = {b"a": b"new", b"b": b"last", b"c": b"3"}
        if again == "delete":
            del after[b"a"]
        assert dict(db) in ([{**after, b"a": b"1"}, after] if struck else [after]), interrupt.where
        return struck

    _strike_everywhere(attempt)


def _put(tx: bytekv.Transaction) -> None:
    tx[b"a"] = b"new"


def _put_mortal(tx: bytekv.Transaction) -> None:
    tx.put(b"a", b"new", ttl=60)


def _put_first(tx: bytekv.Transaction) -> None:
    tx[b"stored"] = b"new"


def _delete(tx: bytekv.Transaction) -> None:
    del tx[b"a"]


def _put_deleted(tx: bytekv.Transaction) -> None:
    tx[b"gone"] = b"new"


def _count(tx: bytekv.Transaction) -> None:
    len(tx)


ACTS: dict[str, tuple[Callable[[bytekv.Transaction], None], dict[bytes, bytes | None]]] = {
    "put": (_put, {b"a": b"new"}),
    "put with a ttl": (_put_mortal, {b"a": b"new"}),
    "put of a key of the store": (_put_first, {b"stored": b"new"}),
    "delete": (_delete, {b"a": None}),
    "put of a deleted key": (_put_deleted, {b"gone": b"new"}),
    "len": (_count, {}),
}


@pytest.mark.parametrize("name", ACTS)
@pytest.mark.parametrize("counted", [False, True])
def test_an_interrupt_that_is_caught_in_a_transaction_loses_no_write(
    open_store: Callable[..., bytekv.Store], name: str, counted: bool
) -> None:
    act, changed = ACTS[name]
    db = open_store()
    db.update({"stored": "s", "gone": "g", "other": "o"})
    db.put("a", "mortal", ttl=60)
    before = {b"stored": b"s", b"other": b"o", **BEFORE}
    after: dict[bytes, Any] = {key: value for key, value in {**before, **changed}.items() if value is not None}

    def attempt(interrupt: InterruptAt) -> bool:
        struck = False
        with pytest.raises(_Over), db.transaction() as tx:
            tx.update(BEFORE)
            del tx[b"gone"]
            if counted:
                assert len(tx) == len(before)
            walk = tx.scan()
            assert next(walk) == (b"a", b"1")
            started = tx.scan()
            struck = interrupt.carry_out(lambda: act(tx))
            content = dict(tx)
            assert content in ([before, after] if struck else [after]), interrupt.where
            assert len(tx) == len(content), interrupt.where
            assert [*walk] == [*sorted(before.items())][1:], interrupt.where
            assert [*started] == sorted(before.items()), interrupt.where
            tx[b"more"] = b"m"
            assert dict(tx) == {**content, b"more": b"m"}, interrupt.where
            assert len(tx) == len(content) + 1, interrupt.where
            raise _Over
        return struck

    _strike_everywhere(attempt)


def test_what_an_interrupt_has_struck_last_is_carried_out_with_the_rest(
    open_store: Callable[..., bytekv.Store],
) -> None:
    """Nothing is called between the interrupt and the end of the block."""
    db = open_store()

    def attempt(interrupt: InterruptAt) -> bool:
        db.update({"a": "0", "b": "0"})
        with db.transaction() as tx:
            tx["a"] = "1"
            tx["b"] = "2"
            struck = interrupt.carry_out(lambda: tx.put("a", "3"))
        assert db["a"] in ((b"1", b"3") if struck else (b"3",)), interrupt.where
        assert db["b"] == b"2"
        return struck

    _strike_everywhere(attempt)


def test_a_write_that_fails_has_not_happened(
    open_store: Callable[..., bytekv.Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A walk is open, and no descriptor is left to read the module with that sorts what it notes."""
    db = open_store()

    def fail() -> NoReturn:
        raise bytekv.StoreIOError(24, "Too many open files", "sortedcontainers")

    with db.transaction() as tx:
        tx["a"] = "1"
        walk = tx.scan()
        with monkeypatch.context() as patch:
            patch.setattr("bytekv.contract.overlay.sorted_list", fail)
            with pytest.raises(bytekv.StoreIOError):
                tx["a"] = "2"
            assert (tx["a"], len(tx)) == (b"1", 1)
        assert [*walk] == [(b"a", b"1")]
    assert dict(db) == {b"a": b"1"}
