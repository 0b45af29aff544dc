"""What would wait for the store does not run on the event loop of a server, and what would not, does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from bytekv.engine.store import Store
from bytekv.http.message import in_time
from bytekv.http.server import _Gathering
from bytekv.resp import Server
from tests.support.resp_harness import Client, request

OK = b"+OK\r\n"


@contextmanager
def in_another_thread(begin: Callable[[], Any]) -> Iterator[None]:
    """Hold what ``begin`` returns, a context, in another thread while the block runs."""
    begun, go = threading.Event(), threading.Event()

    def hold() -> None:
        with begin():
            begun.set()
            go.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    assert begun.wait(60)
    try:
        yield
    finally:
        go.set()
        thread.join()


# --- the store's answer --------------------------------------------------------------------------


def test_a_quiet_store_makes_nobody_wait(open_store):
    with open_store() as db:
        db["k"] = "v"
        assert not db.would_wait()
        assert not db.would_wait("k")
        assert not db.would_wait("missing", write_bytes=100)
        db.put("passing", "v", ttl=60)
        assert not db.would_wait("passing", write_bytes=100)


def test_writes_wait_for_a_transaction_and_reads_do_not(open_store):
    with open_store() as db:
        db["k"] = "v"
        with in_another_thread(db.transaction):
            assert db.would_wait(write_bytes=1)
            assert db.would_wait("k", write_bytes=1)
            assert not db.would_wait("k")
        assert not db.would_wait(write_bytes=1), "also after a transaction that has written nothing"


def test_writes_wait_for_the_lock_and_for_an_interrupted_call(open_store):
    with open_store() as db:
        db["k"] = "v"
        with in_another_thread(lambda: db._state.lock):
            assert db.would_wait(write_bytes=1)
            assert not db.would_wait("k")
        db._state.readers_must_wait = True
        assert db.would_wait()
        assert db["k"] == b"v"  # settles it
        assert not db.would_wait()


def test_writes_wait_for_the_next_segment(open_store):
    with open_store(segment_size_bytes=4000) as db:
        db["k"] = bytes(1000)
        assert not db.would_wait(write_bytes=1000)
        assert db.would_wait(write_bytes=4000)


def test_writes_wait_for_what_they_owe_and_not_for_a_count(open_store):
    """While a compaction was under way, each look at what is dead was a visit to a thread, though nothing was owed."""
    with open_store(segment_size_bytes=1 << 20) as db:
        db["k"] = bytes(100)
        state, throttle = db._state, db._commit.throttle
        state.throttles = True
        end, sizes = state.segments.writer.end, state.segments.sizes
        throttle.look(0, 0, sizes, lambda: True)
        throttle.next_look = end + 1
        assert not db.would_wait(write_bytes=1000)
        throttle.look(0, 2 * sizes.dear_dead, sizes, lambda: True)
        assert not db.would_wait(write_bytes=1), "it is not there yet"
        throttle.next_look = 0
        assert db.would_wait(write_bytes=100_000)
        state.throttles = False


def test_durable_writes_always_wait(open_store):
    with open_store(sync="always") as db:
        db["k"] = "v"
        assert db.would_wait(write_bytes=1)
        assert not db.would_wait("k")


def test_large_values_are_read_elsewhere(open_store):
    with open_store() as db:
        db["k"] = bytes(10_000)
        assert db.would_wait("k")


def test_a_refused_write_is_refused_at_once(open_store):
    open_store()["k"] = "v"
    with open_store("r") as reader:
        assert not reader.would_wait(write_bytes=1)


def test_the_worker_is_woken_once_for_what_one_sync_makes_durable(open_store):
    """Each write that took the long way woke it, which took 50 µs of both threads."""
    db = open_store(sync_interval_s=3600)
    db["begins"] = "a segment"
    db.sync()
    durability, woken = db._commit.durability, []
    durability._wake = lambda: woken.append(1) or True
    for number in range(3):
        db.put(f"{number}", "", if_seq=0)
    assert len(woken) == 1
    db.sync()
    db.put("again", "", if_seq=0)
    assert len(woken) == 2
    db.sync()
    durability._wake = lambda: False  # there can be no worker
    for number in range(3):
        db.put(f"alone {number}", "", if_seq=0)
        assert db.durable_seq == db.last_seq


# --- HTTP ----------------------------------------------------------------------------------------


def test_what_need_not_wait_gets_no_timer(monkeypatch):
    async def run() -> None:
        async def waits(seconds: float) -> int:
            await asyncio.sleep(seconds)
            await asyncio.sleep(seconds)
            return 2

        with pytest.raises(TimeoutError):
            await in_time(0.001, waits(2))

        async def spins() -> None:
            for _ in range(100_000):
                await asyncio.sleep(0)

        with pytest.raises(TimeoutError):
            await in_time(0.001, spins())
        assert await in_time(60, waits(0.001)) == 2
        canceller = asyncio.ensure_future(in_time(60, waits(2)))
        await asyncio.sleep(0)
        canceller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await canceller
        monkeypatch.setattr(asyncio, "timeout", lambda seconds: 1 / 0)

        async def returns(value: int) -> int:
            return value

        assert await in_time(1, returns(1)) == 1

    asyncio.run(run())


def test_what_is_written_in_one_turn_is_sent_together():
    async def run() -> None:
        sent: list[bytes] = []

        class Transport:
            def write(self, data: bytes) -> None:
                sent.append(data)

            def close(self) -> None:
                sent.append(b"closed")

        gathering = _Gathering(Transport(), asyncio.get_running_loop())
        for data in (b"head", b"", b"body"):
            gathering.write(data)
        assert not sent
        await asyncio.sleep(0)
        assert sent == [b"headbody"]
        gathering.write(bytes(100_000))
        assert len(sent) == 2, "a large piece leaves at once, so that the transport says when it is enough"
        gathering.write(b"last")
        gathering.close()
        await asyncio.sleep(0)
        assert sent[2:] == [b"last", b"closed"]

    asyncio.run(run())


@pytest.fixture
def no_threads(door) -> Callable[[Store], Any]:
    """Open a door whose requests find no thread to run in."""

    def build(db: Store) -> Any:
        http = door(db)
        http.application._readers.shutdown()
        http.application._writers.shutdown()
        return http

    return build


def test_small_values_visit_no_thread(no_threads, open_store):
    db = open_store()
    db["k"] = "1"
    http = no_threads(db)
    assert http("GET", "/k").body == b"1"
    assert http("GET", "/v1/kv/k").body == b"1"
    assert http("GET", "/v1/kv/missing").status == 404
    assert http("PUT", "/v1/kv/new", b"2").status == 201
    assert http("PUT", "/v1/kv/new", b"3", headers={"if-none-match": "*"}).status == 412
    assert http("PUT", "/v1/kv/new?ttl=60", b"3").status == 204
    assert http("DELETE", "/v1/kv/new").status == 204
    assert http("DELETE", "/v1/kv/new").status == 404


def test_large_values_do(no_threads, open_store):
    db = open_store()
    db["large"] = bytes(100_000)
    http = no_threads(db)
    assert http("GET", "/large").code == "internal"
    assert http("PUT", "/large", bytes(100_000)).code == "internal"


def test_a_write_that_waits_holds_up_nobody_over_http(door, open_store):
    db = open_store()
    db["k"] = "1"
    http = door(db)

    async def beside_a_transaction() -> None:
        with in_another_thread(db.transaction):
            writer = asyncio.ensure_future(http.send("PUT", "/k", b"2"))
            for _ in range(3):
                assert (await http.send("GET", "/k")).body == b"1"
            assert not writer.done()
        assert (await writer).status == 200

    asyncio.run(beside_a_transaction())
    assert db["k"] == b"2"


# --- RESP ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [["SET", "k", "2"], ["SET", "k", "2", "EX", "60"], ["GETSET", "k", "2"]])
def test_a_write_that_waits_holds_up_nobody_over_resp(open_store, write):
    """A SET during a transaction of the application kept every client waiting, with PING, too, until it had ended."""
    db = open_store()
    db["k"] = "1"
    with Server(db, port=0) as server, Client(server.address) as writer, Client(server.address) as other:
        with in_another_thread(db.transaction):
            writer.send(request(*write) + request("GET", "k"))
            for _ in range(3):
                assert other("PING") == b"+PONG\r\n"
                assert other("GET", "k") == b"$1\r\n1\r\n"
                assert other("STRLEN", "k") == b":1\r\n"
        assert writer.reply() in (OK, b"$1\r\n1\r\n")
        assert writer.reply() == b"$1\r\n2\r\n"
        assert writer(*write) in (OK, b"$1\r\n2\r\n")


def test_a_pipeline_of_writes_that_waits_holds_up_nobody_over_resp(open_store):
    db = open_store()
    db["k"] = "1"
    with Server(db, port=0) as server, Client(server.address) as writer, Client(server.address) as other:
        with in_another_thread(db.transaction):
            writer.send(request("SET", "k", "2") + request("SET", "k", "3"))
            for _ in range(3):
                assert other("PING") == b"+PONG\r\n"
                assert other.pipeline([["GET", "k"]] * 2) == [b"$1\r\n1\r\n"] * 2
        assert (writer.reply(), writer.reply()) == (OK, OK)
    assert db["k"] == b"3"


def test_a_pipeline_asks_the_store_once(open_store, monkeypatch):
    db = open_store()
    asked: list[int | None] = []
    would_wait = Store.would_wait

    def counted(store: Store, key: Any = None, *, write_bytes: int | None = None) -> bool:
        asked.append(write_bytes)
        return would_wait(store, key, write_bytes=write_bytes)

    monkeypatch.setattr(Store, "would_wait", counted)
    with Server(db, port=0) as server, Client(server.address) as client:
        asked.clear()
        assert client.pipeline([["SET", "k", "v"], ["GET", "k"]]) == [OK, b"$1\r\nv\r\n"]
        assert len(asked) == 1
        for commands in ([["SET", "k", "v"]] * 2, [["GET", "k"]] * 2):
            asked.clear()
            client.pipeline(commands)
            assert len(asked) == 1
