"""Transactions: nobody comes between, all or nothing, and no deadlock."""

from __future__ import annotations

import threading

import pytest

import bytekv
from tests.support.harness import crash


def test_a_transaction_sees_its_own_writes_and_nobody_else_does(open_store):
    db = open_store()
    db.update({"a": "1", "b": "2", "c": "3"})
    with db.transaction() as tx:
        tx["b"] = "new"
        del tx["a"]
        tx.put("d", "4", ttl=60)
        assert dict(tx) == {b"b": b"new", b"c": b"3", b"d": b"4"}
        assert (list(tx), len(tx), "a" in tx, tx.get("a")) == ([b"b", b"c", b"d"], 3, False, None)
        assert list(tx.scan(start="c", reverse=True)) == [(b"d", b"4"), (b"c", b"3")]
        assert list(tx.scan_keys("b", limit=1)) == [b"b"]
        assert dict(db) == {b"a": b"1", b"b": b"2", b"c": b"3"}
        with pytest.raises(KeyError):
            del tx["a"]
        assert tx.pop("c") == b"3"
        assert tx.setdefault("e", b"5") == b"5"
        assert tx.seq is None
    assert tx.seq == db.last_seq == db.entry("e").seq == 8
    assert dict(db) == {b"b": b"new", b"d": b"4", b"e": b"5"}
    assert db.ttl("d") is not None
    with db.transaction() as tx:
        tx["a"] = tx["b"]
        del tx["a"]
    assert tx.seq is None, "there was nothing to do"
    crash(db)
    assert len(open_store()) == 3


def test_an_exception_rolls_back(open_store):
    db = open_store()
    db["a"] = "1"
    with pytest.raises(RuntimeError, match="stop"):
        with db.transaction() as tx:
            tx["a"] = "2"
            raise RuntimeError("stop")
    assert (dict(db), db.last_seq, tx.seq) == ({b"a": b"1"}, 1, None)
    db["a"] = "3"


@pytest.mark.parametrize("sync", ["interval", "always"])
def test_transactions_of_many_threads_lose_no_update(open_store, sync: str):
    db = open_store(sync=sync)
    db["n"] = "0"

    def add() -> None:
        for number in range(25):
            if number % 2:
                with db.transaction() as tx:
                    tx["n"] = str(int(tx["n"]) + 1)
            else:
                db.incr("n")

    threads = [threading.Thread(target=add) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert db["n"] == b"150"


def test_other_writers_wait_and_readers_do_not(open_store):
    db = open_store()
    db["a"] = "1"
    written = threading.Event()

    def write() -> None:
        db[b"a"] = b"from outside"
        written.set()

    with db.transaction() as tx:
        thread = threading.Thread(target=write)
        thread.start()
        tx["a"] = "from inside"
        assert db["a"] == b"1"
        assert list(db.scan()) == [(b"a", b"1")]
        db.sync()
        assert not written.wait(0.05)
    thread.join()
    assert db["a"] == b"from outside"


def test_writing_past_the_transaction_is_an_error_and_no_deadlock(open_store):
    db = open_store()
    with db.transaction() as tx:
        for write in (
            lambda: db.__setitem__("a", "1"),
            lambda: db.__setitem__(b"a", b"1"),
            lambda: db.delete("a"),
            lambda: db.update({"a": "1"}),
            lambda: db.clear(),
            lambda: db.transaction().__enter__(),
        ):
            with pytest.raises(bytekv.ReentryError, match="transaction"):
                write()
        tx["a"] = "1"
    assert dict(db) == {b"a": b"1"}


def test_a_transaction_belongs_to_its_thread_and_its_block(open_store):
    db = open_store()
    caught: list[BaseException] = []

    def use() -> None:
        try:
            tx["a"] = "1"
        except bytekv.BytekvError as error:
            caught.append(error)

    with db.transaction() as tx:
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
    assert "thread" in str(caught[0])
    for call in (lambda: tx["a"], lambda: tx.__setitem__("a", "1"), lambda: tx.__enter__()):
        with pytest.raises(bytekv.BytekvError):
            call()
    with pytest.raises(bytekv.BytekvError, match="with"):
        db.transaction()["a"] = "1"


def test_a_limit_counts_own_and_others_keys_together(open_store):
    db = open_store()
    db.update({"a": "1", "c": "3", "e": "5"})
    with db.transaction() as tx:
        tx["b"] = "2"
        del tx["c"]
        everything = [(b"a", b"1"), (b"b", b"2"), (b"e", b"5")]
        for limit in range(5):
            assert list(tx.scan(limit=limit)) == everything[:limit]
            assert list(tx.scan_keys(limit=limit, reverse=True)) == [key for key, _ in everything[::-1]][:limit]


@pytest.mark.parametrize("how", ["batch", "transaction"])
def test_the_last_write_to_a_key_takes_its_place_in_the_log(open_store, how):
    db = open_store()
    db["c"] = "0"
    with getattr(db, how)() as writes:
        writes["a"] = "1"
        writes["b"] = "1"
        writes["c"] = "1"
        writes["a"] = "2"
        del writes["c"]
    assert [(change.key, change.value) for change in db.changes(1)] == [(b"b", b"1"), (b"a", b"2"), (b"c", b"")]
    with getattr(db, how)() as writes:
        writes["a"] = "3"
        writes["b"] = "3"
        del writes["a"]
    assert [(change.key, change.value) for change in db.changes(4)] == [(b"b", b"3"), (b"a", b"")]


def test_a_transaction_that_is_dropped_keeps_nobody_out(open_store):
    db = open_store()
    tx = db.transaction()
    tx.__enter__()
    tx["a"] = "1"
    del tx
    db["b"] = "2"
    assert dict(db) == {b"b": b"2"}


def test_a_transaction_without_memory_to_open_its_gate_keeps_nobody_out(open_store, monkeypatch):
    """It is rolled back. Other writers waited for as long as somebody still had the object."""
    db = open_store()

    def no_memory(*_: object) -> None:
        raise MemoryError

    began, ended = db.transaction(), db.transaction()
    with monkeypatch.context() as shortage:
        shortage.setattr(type(db._commit.turn), "give", no_memory)
        with monkeypatch.context() as shut, pytest.raises(MemoryError):
            shut.setattr(type(db._state), "__exit__", no_memory)  # the gate is shut by then
            began.__enter__()
    db["a"] = "1"
    ended.__enter__()
    ended["a"] = "2"
    with monkeypatch.context() as shortage:
        shortage.setattr(type(db._commit.turn), "give", no_memory)
        shortage.setattr(db, "_commit_batch", no_memory)
        with pytest.raises(MemoryError):
            ended.__exit__(None, None, None)
    assert dict(db) == {b"a": b"1"}
    with db.transaction() as after:
        after["a"] = "3"
    assert dict(db) == {b"a": b"3"}


def test_closing_ends_a_transaction_without_its_writes(open_store):
    db = open_store()
    tx = db.transaction()
    tx.__enter__()
    tx["a"] = "1"
    db.close()
    with pytest.raises(bytekv.StoreClosedError):
        tx.__exit__(None, None, None)
    assert dict(open_store()) == {}
