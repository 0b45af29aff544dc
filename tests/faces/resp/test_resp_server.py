"""The door itself: connections, passwords, limits, waiting, deadlines, and how it begins and ends."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import bytekv
from bytekv.engine.store import Store
from bytekv.resp import Server, serve
from bytekv.resp import connection as connection_module
from bytekv.resp import executor as executor_module
from bytekv.resp import server as server_module
from bytekv.resp import session as session_module
from bytekv.resp.commands.table import COMMANDS
from tests.support.fault_files import SystemCalls
from tests.support.harness import open_store as open_at
from tests.support.resp_harness import Argument, Client, items, parts, request

OK = b"+OK\r\n"
ROOT = Path(__file__).resolve().parents[3]


class House:
    """A store, a door, and clients that go through it."""

    def __init__(self, store: Store, stack: ExitStack, **options: Any) -> None:
        self.store = store
        self.server = Server(store, port=0, **options)
        self._stack = stack
        stack.enter_context(self.server)

    def client(self, **options: Any) -> Client:
        return self._stack.enter_context(Client(self.server.address, **options))

    def on_loop(self, call: Callable[[], Any]) -> Any:
        """Call something on the server's thread and return what it returns."""
        done: Future[Any] = Future()

        def run() -> None:
            try:
                done.set_result(call())
            except BaseException as error:
                done.set_exception(error)

        self.server.loop.call_soon_threadsafe(run)
        return done.result(30)

    def wait(self, seconds: float) -> None:
        """Let the server believe that so much time has passed since it looked last."""
        self.on_loop(lambda: self.server.check_deadlines(self.server.now + seconds))

    def connections(self) -> list[Any]:
        return list(self.server._connections.values())


@pytest.fixture
def house(open_store) -> Iterator[Callable[..., House]]:
    """Open a store and a door; close the door, clients first, at the end."""
    with ExitStack() as stack:

        def build(store: Store | None = None, **options: Any) -> House:
            return House(open_store() if store is None else store, stack, **options)

        yield build


# --- who may come in ---------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_another_address_than_loopback_needs_a_password(open_store, host):
    store = open_store()
    with pytest.raises(ValueError, match="set a password"):
        Server(store, host, 0).start()
    with pytest.raises(ValueError, match="empty"):
        Server(store, host, 0, password="")
    with Server(store, "0.0.0.0", 0, password="secret") as server, Client(("127.0.0.1", server.address[1])) as client:
        assert client("PING") == b"-NOAUTH Authentication required.\r\n"


def test_localhost_is_loopback(open_store):
    with Server(open_store(), "localhost", 0) as server, Client(("127.0.0.1", server.address[1])) as client:
        assert client("PING") == b"+PONG\r\n"


@pytest.mark.parametrize(
    "way",
    [
        ["AUTH", "secret"],
        ["AUTH", "default", "secret"],
        ["HELLO", 3, "AUTH", "default", "secret"],
        ["HELLO", 2, "SETNAME", "me", "AUTH", "default", "secret"],
    ],
)
def test_the_password_opens(house, way):
    client = house(password="secret").client()
    for closed in (["GET", "k"], ["SET", "k", "v"], ["INFO"], ["MULTI"], ["CLIENT", "ID"], ["SHUTDOWN"], ["FLUSHALL"]):
        assert client(*closed) == b"-NOAUTH Authentication required.\r\n"
    assert client("HELLO", 3).startswith(b"-NOAUTH HELLO must be called")
    assert client(*[each if each != "secret" else "Secret" for each in way]).startswith(b"-WRONGPASS ")
    assert client(*[each if each != "default" else "admin" for each in way])[:5] == (
        b"+OK\r\n" if "default" not in way else b"-WRON"
    )
    assert client(*way)[:1] in b"+*%"
    assert client("SET", "k", "v") == OK
    assert client("RESET") == b"+RESET\r\n"
    assert client("GET", "k") == b"-NOAUTH Authentication required.\r\n"


def test_what_follows_the_password_in_the_same_packet_is_bound_by_no_small_limit(house):
    client = house(password=b"secret").client()
    assert client.pipeline([["AUTH", "secret"], ["SET", "k", "v" * 20_000], ["STRLEN", "k"]])[1:] == [OK, b":20000\r\n"]


OPEN = ("AUTH", "HELLO", "QUIT", "RESET")
AT_ONCE = ("MULTI", "EXEC", "DISCARD", "WATCH", "QUIT", "RESET")


def test_every_command_before_and_after_the_password_and_within_a_block(house):
    """What the table says of each, and what happens."""
    door = house(password="s3cret")
    door.store.put("1", "1")
    client = door.client()
    for each in COMMANDS.values():
        name = each.name.decode().upper()
        command = [name, *["1"] * (abs(each.arity) - 1)]
        assert each.before_password == (name in OPEN)
        assert each.at_once == (name in AT_ONCE)
        if name in ("QUIT", "RESET"):
            continue
        is_shut = name != "AUTH"  # nor has HELLO anything to say to those who do not say AUTH within it
        for _ in range(2):
            assert (b"NOAUTH" in client(*command)) == is_shut, name
            assert client("RESET") == b"+RESET\r\n"
        assert door.store.last_seq == 1
        assert client("AUTH", "s3cret") == OK
        client("MULTI")
        reply = client(*command)
        if name not in AT_ONCE:
            is_refused = each.kind == "session"
            expected = b"-ERR Command not allowed inside a transaction" if is_refused else b"+QUEUED"
            assert reply.startswith(expected), name
        assert b"NOAUTH" not in reply
        client("RESET")
        assert door.store.last_seq == 1
    for command in (["QUIT"], ["RESET"], ["AUTH", "s3cret"], ["HELLO", 2, "AUTH", "default", "s3cret"]):
        assert door.client()(*command)[:1] in b"+*"


def test_limits_before_the_password(house):
    door = house(password="secret")
    for data, complaint in (
        (request(*["x"] * 11), b"unauthenticated multibulk length"),
        (b"*2\r\n$4\r\nAUTH\r\n$16385\r\n", b"unauthenticated bulk length"),
        (b"x" * 70_000, b"too big inline request"),
    ):
        client = door.client()
        client.send(data)
        assert client.rest() == b"-ERR Protocol error: " + complaint + b"\r\n"
    client = door.client()
    client.send(request("PING") * 33)  # each is looked at by itself
    assert [client.reply() for _ in range(32)] == [b"-NOAUTH Authentication required.\r\n"] * 32
    assert client.rest() == b"-NOAUTH too many commands without the password\r\n"


@pytest.mark.parametrize("words", [b"POST / HTTP/1.1\r\n", b"host: here\r\n", request("Host:", "x")])
def test_a_browser_is_told_nothing(house, words):
    door = house()
    client = door.client()
    client.send(request("SET", "k", "v") + words + request("SET", "k", "evil"))
    assert client.rest() == b""
    assert door.client()("GET", "k") == b"$1\r\nv\r\n"


def test_one_connection_too_many_is_told_so(house):
    door = house(max_connections=2)
    first, second = door.client(), door.client()
    assert (first("PING"), second("PING")) == (b"+PONG\r\n",) * 2
    assert door.client().rest() == b"-ERR max number of clients reached\r\n"
    second("QUIT")
    assert second.rest() == b""
    assert door.client()("PING") == b"+PONG\r\n"
    assert b"rejected_connections:1" in first("INFO")


def test_strangers_make_room_for_each_other_and_for_nobody_else(house, caplog):
    """330 of them took every descriptor of the process, and writes of clients with the password were refused."""
    door = house(password="s3cret", max_connections=8)
    clients = []
    for _ in range(3):
        clients.append(door.client())
        assert clients[-1]("AUTH", "s3cret") == OK
    strangers = [door.client() for _ in range(20)]
    for stranger in strangers[:-2]:
        assert stranger.rest() == b""
    assert strangers[-1]("PING").startswith(b"-NOAUTH")
    late = door.client()
    assert late("AUTH", "s3cret") == OK
    assert [client("PING") for client in [*clients, late]] == [b"+PONG\r\n"] * 4
    late("RESET")
    for _ in range(2):
        door.client()("PING")
    assert late.rest() == b"", "who has forgotten the password is one of them"
    assert clients[0]("CONFIG", "GET", "maxclients") == b"*2\r\n$10\r\nmaxclients\r\n$1\r\n8\r\n"


def test_refusals_do_not_fill_the_log(house, caplog):
    door = house(max_connections=1)
    door.client()("PING")
    for _ in range(50):
        assert door.client().rest().startswith(b"-ERR max number")
    assert 1 <= len(caplog.records) < 10


def test_a_wrong_password_is_told_in_the_log(house, caplog):
    door = house(password="s3cret")
    for _ in range(50):
        assert door.client()("AUTH", "guess").startswith(b"-WRONGPASS")
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0].startswith("a Redis client has shown a wrong password: 127.0.0.1:")
    assert len(messages) < 10
    assert "guess" not in "".join(messages)


def test_requests_of_nothing_end_the_connection_of_a_stranger(house):
    """64 KiB of line breaks took 50 ms, for each of which others waited, as often as a stranger liked."""
    door = house(password="s3cret")
    for nothing in (b"\r\n", b"*0\r\n", b"*-1\r\n"):
        client = door.client()
        client.send(nothing * 32 + request("AUTH", "s3cret") + nothing * 100 + request("PING"))
        assert [client.reply(), client.reply()] == [OK, b"+PONG\r\n"]
        client = door.client()
        client.send(nothing * 33)
        assert client.rest() == b"-ERR Protocol error: unauthenticated empty requests\r\n"


def test_a_pipeline_of_slow_commands_lets_others_in_between(house, monkeypatch):
    """A thousand KEYS over a large store in one packet kept everybody waiting until the last was done."""
    monkeypatch.setattr(executor_module, "_SLOW_S", 0.0)
    door = house()
    client, other = door.client(), door.client()
    order: list[bytes] = []
    alone = door.server.executor.run_one

    def note(item: Any, resp3: bool) -> bytes:
        order.append(item[1])
        return alone(item, resp3)

    monkeypatch.setattr(door.server.executor, "run_one", note)
    other.send(request("ECHO", "first"))
    assert other.reply() == b"$5\r\nfirst\r\n"
    door.on_loop(lambda: [client.send(request("ECHO", "slow") * 50), other.send(request("ECHO", "between"))])
    assert other.reply() == b"$7\r\nbetween\r\n"
    assert [client.reply() for _ in range(50)] == [b"$4\r\nslow\r\n"] * 50
    assert order.index(b"between") < 50


# --- deadlines ---------------------------------------------------------------------------------


def test_a_client_that_does_not_take_replies_is_disconnected_and_a_slow_one_is_not(house, caplog):
    door = house(request_timeout_s=60)
    client = door.client(receive_bytes=4096)
    client("SET", "k", b"v" * (8 << 20))
    client.send(request("GET", "k"))
    door.client()("PING")
    (connection, _) = door.connections()
    door.wait(30)
    client.file.read(1 << 20)  # more than 1 KiB for each second that passes below
    door.client()("PING")
    now = door.server.now
    door.on_loop(lambda: door.server.check_deadlines(now + 900))
    assert not connection._transport.is_closing()
    door.on_loop(lambda: door.server.check_deadlines(now + 60 + 8 * 1024))
    assert connection._transport.is_closing()
    assert "does not take its replies" in caplog.text


def test_a_client_that_does_not_show_the_password_in_time_is_disconnected(house):
    door = house(password="secret")
    silent, known = door.client(), door.client()
    assert known("AUTH", "secret") == OK
    assert silent("PING")[:7] == b"-NOAUTH"
    door.wait(9)
    assert silent("PING")[:7] == b"-NOAUTH"
    door.wait(2)
    assert silent.rest() == b""
    assert known("RESET") == b"+RESET\r\n"
    door.wait(9)
    assert known("AUTH", "secret") == OK
    door.wait(100)
    assert known("PING") == b"+PONG\r\n"


def test_a_client_that_does_not_finish_its_request_is_disconnected(house):
    door = house(request_timeout_s=60)
    slow, idle = door.client(), door.client()
    slow.send(b"*2\r\n$4\r\nECHO\r\n$5\r\nhe")
    assert idle("PING") == b"+PONG\r\n"
    door.wait(59)
    slow.send(b"l")
    assert idle("PING") == b"+PONG\r\n"
    door.wait(2)
    assert slow.rest() == b"", "a byte now and then does not help"
    assert idle("PING") == b"+PONG\r\n"


def test_a_request_whose_rest_the_server_did_not_read_has_its_time_afterwards(house):
    door = house(request_timeout_s=60)
    client, other = door.client(receive_bytes=4096), door.client()
    client("SET", "k", "v" * 100_000)
    client.send(request("GET", "k") * 100 + b"*1\r\n$4\r\nPI")
    everything_has_arrived(door)
    assert door.connections()[0]._is_choked
    assert door.connections()[0].request_since is not None
    door.wait(1000)
    assert other("PING") == b"+PONG\r\n"
    for _ in range(100):
        assert len(client.reply()) > 100_000
    door.wait(50)
    client.send(b"NG\r\n")
    assert client.reply() == b"+PONG\r\n"


def test_a_large_request_has_time_for_its_size(house):
    door = house(request_timeout_s=60)
    client, other = door.client(), door.client()
    client.send(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$200000\r\n" + b"x" * 100_000)
    assert other("PING") == b"+PONG\r\n"
    door.wait(100)
    client.send(b"x" * 100_000 + b"\r\n")
    assert client.reply() == OK


def test_idle_connections_are_closed_only_if_wanted(house, path):
    patient, strict = house(), house(open_at(path.with_name("other")), idle_timeout_s=100)
    clients = [door.client() for door in (patient, strict)]
    for door, client in zip((patient, strict), clients, strict=True):
        client("PING")
        door.wait(99)
        assert client("PING") == b"+PONG\r\n"
        door.wait(99)
        assert client("PING") == b"+PONG\r\n"
        door.wait(101)
    assert clients[0]("PING") == b"+PONG\r\n"
    assert clients[1].rest() == b""
    strict.server.stop()
    strict.store.close()


def test_a_connection_that_is_closed_and_not_read_is_cut(house):
    door = house()
    client = door.client(receive_bytes=4096)
    client("SET", "k", "v" * 100_000)
    client.send(request("GET", "k") * 200 + request("QUIT"))
    other = door.client()
    other("PING")
    assert len(door.connections()) == 2
    door.on_loop(door.connections()[0].close)
    door.wait(1)
    door.wait(100)
    other("PING")
    assert len(door.connections()) == 1
    with pytest.raises((ConnectionError, AssertionError)):
        assert len(client.rest()) >= 200 * 100_000


# --- pipelines ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sync", ["interval", "always"])
def test_replies_come_in_the_order_of_the_commands(house, open_store, sync):
    client = house(open_store(sync=sync), group_commit=sync == "always").client()
    commands: list[list[Argument]] = []
    wanted: list[bytes] = []
    for number in range(300):
        commands += [
            ["SET", "k", number],
            ["GET", "k"],
            ["PING", number],
            ["MULTI"],
            ["INCR", "n"],
            ["EXEC"],
            ["CLIENT", "GETNAME"],
        ]
        text = str(number).encode()
        size = b"$%d\r\n%b\r\n" % (len(text), text)
        wanted += [OK, size, size, OK, b"+QUEUED\r\n", b"*1\r\n:%d\r\n" % (number + 1), b"$-1\r\n"]
    commands += [
        ["WAITAOF", 1, 0, 0],
        ["GET", "n"],
        ["FLUSHALL"],
        ["DBSIZE"],
        ["NOSUCH"],
        ["SET", "k", "v"],
        ["LPUSH", "a", "b"],
    ]
    wanted += [b"*2\r\n:1\r\n:0\r\n", b"$3\r\n300\r\n", OK, b":0\r\n"]
    replies = client.pipeline(commands)
    assert replies[: len(wanted)] == wanted
    assert [reply[:4] for reply in replies[len(wanted) :]] == [b"-ERR", b"+OK\r", b"-ERR"]


def test_a_client_that_does_not_read_is_not_read_from(house):
    """Its replies wait up to a limit, its commands wait in its own memory and the operating system's."""
    door = house()
    client = door.client(receive_bytes=4096)
    value = b"v" * 2000
    client("SET", "k", value)
    sender = threading.Thread(target=client.send, args=(request("GET", "k") * 20_000,))
    sender.start()
    other = door.client()
    for _ in range(20):  # each goes once around the loop
        other("PING")
    connection = door.connections()[0]
    held = door.on_loop(connection._transport.get_write_buffer_size)
    assert connection._is_choked
    assert 0 < held < 2 * connection_module.WRITE_BYTES + 2 * len(value)
    assert len(connection._backlog) * len(request("GET", "k")) < connection_module.READ_BYTES + 1000
    reply = b"$2000\r\n" + value + b"\r\n"
    for number in range(20_000):
        assert client.reply() == reply, number
    sender.join()
    assert client("PING") == b"+PONG\r\n"
    assert not connection._is_choked


def test_large_replies_go_out_whole(house):
    door = house()
    client = door.client()
    values = [bytes([65 + number]) * (1 << 20) for number in range(8)]
    assert client("MSET", *(part for number, value in enumerate(values) for part in (number, value))) == OK
    assert items(client("MGET", *range(8))) == values
    replies = client.pipeline([["GET", number] for number in range(8)])
    assert [items(b"*1\r\n" + reply)[0] for reply in replies] == values


def test_a_client_that_closes_its_half_gets_what_it_asked_for(house, open_store):
    door = house(open_store(sync="always"))
    client = door.client()
    client.send(request("SET", "k", "v") + request("WAITAOF", 1, 0, 0) + request("GET", "k") + request("INCR", "n"))
    client.socket.shutdown(socket.SHUT_WR)
    assert client.rest() == OK + b"*2\r\n:1\r\n:0\r\n$1\r\nv\r\n:1\r\n"


def test_a_batch_that_is_too_large_for_one_client_goes_on_with_the_next(house, open_store, monkeypatch):
    monkeypatch.setattr("bytekv.resp.executor._MAX_REPLIES_BYTES", 1000)
    client = house(open_store(sync="always"), group_commit=True).client()
    commands: list[list[Argument]] = []
    for number in range(50):
        commands += [["SET", "k", str(number) * 500], ["GET", "k"]]
    replies = client.pipeline(commands)
    assert [items(b"*1\r\n" + reply)[0] for reply in replies[1::2]] == [
        str(number).encode() * 500 for number in range(50)
    ]


def test_many_clients_share_batches(house, open_store):
    door = house(open_store(sync="always"), group_commit=True)
    clients = [door.client() for _ in range(20)]
    for number in range(10):
        for client in clients:
            client.send(request("INCR", "n") + request("SET", client.socket.getsockname()[1], number))
        for client in clients:
            client.reply()
            assert client.reply() == OK
    assert door.store[b"n"] == b"200"
    assert door.store.durable_seq == door.store.last_seq


def test_writes_that_wait_share_a_sync(house, open_store):
    """While one batch is held up, the writes of all clients gather; then they are one batch, and one sync."""
    door = house(open_store(sync="always"), group_commit=True)
    clients = [door.client() for _ in range(30)]
    door.store.put("first", "")  # makes the segment
    with SystemCalls() as calls:
        with door.store.transaction():
            for client in clients:
                client.send(request("INCR", "n") * 5)
            everything_has_arrived(door)
            calls.count()
        for client in clients:
            assert all(client.reply()[:1] == b":" for _ in range(5))
        assert 1 <= calls.counts["sync"] <= 2
    assert door.store[b"n"] == b"150"


def everything_has_arrived(door: House) -> None:
    """Return when the server has looked at all that was sent before."""
    with Client(door.server.address) as other:
        for _ in range(3):  # the first may be looked at in the same turn of the loop
            other("PING")


def test_inline_commands_and_blank_lines(house):
    client = house().client()
    client.send(b'\r\n\r\nSET k "a b"\r\nGET k\nPING\r\n')
    assert [client.reply() for _ in range(3)] == [OK, b"$3\r\na b\r\n", b"+PONG\r\n"]


# --- transactions ------------------------------------------------------------------------------


@pytest.mark.parametrize("sync", ["interval", "always"])
def test_watch_sees_other_clients_and_the_application(house, open_store, sync):
    door = house(open_store(sync=sync), group_commit=sync == "always")
    client, other = door.client(), door.client()
    for change in (
        lambda: other("SET", "k", "x"),
        lambda: other("DEL", "k"),
        lambda: other("FLUSHALL"),
        lambda: other("EXPIRE", "k", 100),
        lambda: door.store.put("k", "y"),
        lambda: client("SET", "k", "z"),
        lambda: client.pipeline([["MULTI"], ["APPEND", "k", "!"], ["EXEC"], ["WATCH", "k"], ["SET", "k", "2"]]),
    ):
        door.store.put("k", "v")
        assert client("WATCH", "k", "other") == OK
        change()
        assert client.pipeline([["MULTI"], ["SET", "k", "w"], ["EXEC"]]) == [OK, b"+QUEUED\r\n", b"*-1\r\n"]
        assert client.pipeline([["MULTI"], ["SET", "k", "w"], ["EXEC"]])[-1] == b"*1\r\n+OK\r\n", "EXEC ends WATCH"
    client("WATCH", "k")
    other("SET", "k", "x")
    assert client("UNWATCH") == OK
    assert client.pipeline([["MULTI"], ["GET", "k"], ["EXEC"]])[-1] == b"*1\r\n$1\r\nx\r\n"
    client("WATCH", "k")
    other("SET", "unrelated", "x")
    assert client.pipeline([["MULTI"], ["GET", "k"], ["EXEC"]])[-1] == b"*1\r\n$1\r\nx\r\n"


@pytest.mark.parametrize("sync", ["interval", "always"])
def test_unwatch_forgets_the_watched_keys_wherever_it_comes(house, open_store, sync):
    """Behind a write in a pipeline, with sync="always", it was answered and did nothing: the next EXEC said nil."""
    client = house(open_store(sync=sync)).client()
    commands = ["WATCH k", "SET k 2", "UNWATCH", "MULTI", "UNWATCH", "SET z 1", "EXEC", "GET z"]
    replies = client.pipeline([command.split() for command in commands])
    assert replies[-2:] == [b"*2\r\n+OK\r\n+OK\r\n", b"$1\r\n1\r\n"]


def test_increments_of_many_threads_with_watch_lose_nothing(house):
    door = house()
    door.store.put("n", "0")

    def count() -> None:
        with Client(door.server.address) as client:
            for _ in range(25):
                while True:
                    client("WATCH", "n")
                    n = int(items(b"*1\r\n" + client("GET", "n"))[0])
                    if client.pipeline([["MULTI"], ["SET", "n", n + 1], ["EXEC"]])[-1] != b"*-1\r\n":
                        break

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert door.store[b"n"] == b"100"


def test_an_error_while_queueing_discards_all_and_one_while_carrying_out_nothing(house):
    client = house().client()
    replies = client.pipeline([["MULTI"], ["SET", "a", 1], ["NOSUCH"], ["SET", "b", 2], ["EXEC"]])
    assert replies[-1] == b"-EXECABORT Transaction discarded because of previous errors.\r\n"
    replies = client.pipeline([["MULTI"], ["SET", "a", "x"], ["INCR", "a"], ["GET", "a"], ["SET", "b", 2], ["EXEC"]])
    within = parts(replies[-1])
    assert within[1] == b"-ERR value is not an integer or out of range\r\n"
    assert (within[2], within[3]) == (b"$1\r\nx\r\n", OK)
    replies = client.pipeline([["MULTI"], ["SET", "a", "y"], ["CLIENT", "ID"], ["EXEC"], ["GET", "a"]])
    assert replies[2] == b"-ERR Command not allowed inside a transaction\r\n"
    assert replies[3:] == [b"-EXECABORT Transaction discarded because of previous errors.\r\n", b"$1\r\nx\r\n"]
    assert client.pipeline([["MULTI"], ["SET", "a", "y"], ["DISCARD"], ["GET", "a"]])[-1] == b"$1\r\nx\r\n"


def test_what_is_queued_and_watched_is_bounded(house, monkeypatch):
    monkeypatch.setattr(session_module, "_MAX_QUEUE_BYTES", 10_000)
    monkeypatch.setattr(session_module, "_MAX_WATCHED_BYTES", 10_000)
    client = house().client()
    client("MULTI")
    replies = client.pipeline([["SET", "k", "v" * 1000]] * 20)
    assert replies[0] == b"+QUEUED\r\n"
    assert replies[-1].startswith(b"-ERR transaction too big")
    assert client("EXEC").startswith(b"-EXECABORT")
    assert client("EXISTS", "k") == b":0\r\n"
    assert client("WATCH", *(b"%d" % number for number in range(200))) == b"-ERR too many keys are watched\r\n"


# --- the connection ----------------------------------------------------------------------------


def test_hello_chooses_the_protocol(house):
    client = house().client()
    assert client("GET", "none") == b"$-1\r\n"
    hello = client("HELLO", 3, "SETNAME", "me")
    assert hello.startswith(b"%7\r\n$6\r\nserver\r\n$5\r\nredis\r\n")
    assert client("GET", "none") == b"_\r\n"
    assert client("MGET", "none") == b"*1\r\n_\r\n"
    assert client("CLIENT", "GETNAME") == b"$2\r\nme\r\n"
    assert client("HELLO", 4) == b"-NOPROTO unsupported protocol version\r\n"
    assert client("HELLO")[:1] == b"%"
    assert client("HELLO", 2)[:1] == b"*"
    assert client("GET", "none") == b"$-1\r\n"


@pytest.mark.parametrize("sync", ["interval", "always"])
def test_client_reply(house, open_store, sync):
    client = house(open_store(sync=sync), group_commit=sync == "always").client()
    silent = request("CLIENT", "REPLY", "SKIP") + request("SET", "a", 1)
    silent += request("CLIENT", "REPLY", "OFF") + request("SET", "b", 2) + request("GET", "a") + request("NOSUCH")
    client.send(silent + request("CLIENT", "REPLY", "ON") + request("MGET", "a", "b"))
    assert client.reply() == OK
    assert items(client.reply()) == [b"1", b"2"]
    client.send(request("CLIENT", "REPLY", "SKIP") + request("GET", "a") + request("GET", "b"))
    assert client.reply() == b"$1\r\n2\r\n"
    client.send(
        request("CLIENT", "REPLY", "SKIP") + request("SET", "a", 3) + request("GET", "a") + request("SET", "a", 4)
    )
    assert (client.reply(), client.reply()) == (b"$1\r\n3\r\n", OK)


@pytest.mark.parametrize("sync", ["interval", "always"])
def test_a_pipeline_of_one_command_is_answered_one_by_one(house, open_store, sync):
    """It is carried out in one go, unless the session or what arrived before says that it is something else."""
    door = house(open_store(sync=sync), group_commit=sync == "always")
    client, other = door.client(), door.client()
    sets = [["SET", number, number * 2] for number in range(50)]
    gets = [["GET", number] for number in range(51)]
    assert client.pipeline(sets) == [OK] * 50
    replies = client.pipeline(gets)
    assert [items(b"*1\r\n" + reply)[0] for reply in replies[:50]] == [b"%d" % (2 * number) for number in range(50)]
    assert replies[50] == b"$-1\r\n"
    assert client.pipeline([["SET", "a", 1], ["SET", b"k" * 70_000, 1], ["SET", "b", 2]])[::2] == [OK, OK]
    replies = client.pipeline([["SET", "a", 2], ["SET", b"k" * 65_536, b""], ["SET", "b", 3]])
    assert (replies[0], replies[1][:4], replies[2]) == (OK, b"-ERR", OK)
    assert client("MULTI") == OK
    assert client.pipeline(sets[:2]) == client.pipeline(gets[:2]) == [b"+QUEUED\r\n"] * 2
    assert client("EXEC") == b"*4\r\n+OK\r\n+OK\r\n$1\r\n0\r\n$1\r\n2\r\n"
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else parts are held back, and arrive together
    client.send(request("CLIENT", "REPLY", "SKIP"))
    assert other("PING") == b"+PONG\r\n"
    client.send(request("GET", 3) + request("GET", 4))
    assert client.reply() == b"$1\r\n8\r\n"
    gets = request("GET", "k") * 2
    for part in (b"*2\r\n$4\r\nECHO\r\n$%d\r\n" % len(gets), gets, b"\r\n"):
        client.send(part)
        assert other("PING") == b"+PONG\r\n"
    assert client.reply() == b"$%d\r\n%b\r\n" % (len(gets), gets)


def test_clients_are_listed_and_disconnected(house):
    door = house()
    first, second = door.client(), door.client()
    assert first("CLIENT", "SETNAME", "one") == OK
    assert first("CLIENT", "SETINFO", "LIB-NAME", "tests") == OK
    assert second("CLIENT", "SETNAME", "two words").startswith(b"-ERR Client names cannot contain spaces")
    assert second("CLIENT", "MAINT_NOTIFICATIONS", "ON").startswith(b"-ERR unknown subcommand 'MAINT_NOTIFICATIONS'")
    lines = second("CLIENT", "LIST").decode().split("\n")
    one = next(line for line in lines if "name=one " in line)
    assert "lib-name=tests " in one
    number, address = re.search(r"id=(\d+)", one)[1], re.search(r" addr=(\S+)", one)[1]  # type: ignore[index]
    assert second("CLIENT", "LIST", "ID", number).count(b"id=") == 1
    assert second("CLIENT", "KILL", "1.2.3.4:5") == b"-ERR No such client\r\n"
    assert second("CLIENT", "KILL", "ID", 10**6) == b":0\r\n"
    assert second("CLIENT", "KILL", address) == OK
    assert first.rest() == b""
    assert (
        second("CLIENT", "KILL", "ID", items(b"*1\r\n" + b"$1\r\n" + second("CLIENT", "ID")[1:2] + b"\r\n")[0])
        == b":1\r\n"
    )
    assert second.rest() == b""


def test_info_tells_what_clients_look_for(house):
    door = house()
    client = door.client()
    client.pipeline([["SET", "k", "v"]] * 10)
    told = dict(re.findall(rb"^(\w+):(.*?)\r$", client("INFO"), re.MULTILINE))
    assert told[b"server_name"] == b"bytekv"
    assert told[b"redis_version"] == session_module.REDIS_VERSION.encode()
    assert told[b"loading"] == told[b"cluster_enabled"] == b"0"
    assert told[b"role"] == b"master"
    assert told[b"db0"].startswith(b"keys=1,")
    assert told[b"connected_clients"] == b"1"
    assert int(told[b"total_commands_processed"]) == 10
    assert int(told[b"used_memory"]) > 1_000_000
    assert int(told[b"bytekv_last_seq"]) == door.store.last_seq
    assert int(told[b"tcp_port"]) == door.server.address[1]
    assert client("INFO", "server", "cpu").count(b"# ") == 1
    assert client("CONFIG", "RESETSTAT") == OK
    assert b"total_commands_processed:1\r\n" in client("INFO", "stats")
    assert items(client("CONFIG", "GET", "max*s", "SAVE")) == [b"maxclients", b"10000", b"save", b""]
    assert client("CONFIG", "SET", "save", "1").startswith(b"-ERR CONFIG SET failed")
    assert b"GET" in client("CLIENT", "HELP").upper()


# --- work beside the loop ------------------------------------------------------------------------


def until(client: Client, line: bytes) -> None:
    """Ask INFO until a line is in it."""
    for _ in range(10_000):
        if line in client("INFO", "persistence"):
            return
    raise AssertionError(f"INFO never said {line!r}")


def test_a_compaction_on_request(house, open_store):
    door = house(open_store(segment_size_bytes=4096))
    client = door.client()
    client.pipeline([["SET", "k", "v" * 100]] * 200)
    before = door.store.stats().total_bytes
    assert client("BGREWRITEAOF") == b"+Background append only file rewriting started\r\n"
    until(client, b"aof_rewrite_in_progress:0")
    assert door.store.stats().total_bytes < before / 10


def test_a_backup_on_request(house, tmp_path):
    door = house(backup_dir=tmp_path)
    client = door.client()
    client("SET", "k", "v")
    assert client("BGSAVE") == b"+Background saving started\r\n"
    until(client, b"rdb_bgsave_in_progress:0")
    (backup,) = tmp_path.iterdir()
    with bytekv.open(backup, "r") as copy:
        assert dict(copy) == {b"k": b"v"}


def test_a_backup_goes_nowhere_unless_a_place_was_given(house):
    assert house().client()("BGSAVE").startswith(b"-ERR the server was started without a directory")


# --- beginning and end ---------------------------------------------------------------------------


def test_it_runs_on_an_applications_own_loop(open_store):
    store = open_store()

    async def talk(address: tuple[str, int], data: bytes, size: int) -> bytes:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(data)
        reply = await reader.readexactly(size)
        writer.close()
        await writer.wait_closed()
        return reply

    async def main() -> None:
        async with Server(store, port=0) as server:
            assert await talk(server.address, request("SET", "k", "v"), 5) == OK
            store.put("k", "w")
            assert await talk(server.address, request("GET", "k"), 7) == b"$1\r\nw\r\n"
        with pytest.raises(ConnectionError):
            await talk(server.address, b"PING\r\n", 7)

    asyncio.run(main())
    assert store[b"k"] == b"w"


def test_serve_ends_when_it_is_cancelled_and_when_a_client_says_so(open_store):
    store = open_store()
    urls: list[str] = []

    async def main(end: Callable[[Any, asyncio.StreamWriter], Any]) -> None:
        started = asyncio.Event()
        task = asyncio.create_task(serve(store, port=0, started=lambda url: (urls.append(url), started.set())))
        await started.wait()
        reader, writer = await asyncio.open_connection("127.0.0.1", int(urls[-1].rpartition(":")[2]))
        writer.write(request("INCR", "n"))
        assert (await reader.readline())[:1] == b":"
        end(task, writer)
        assert await reader.read() == b""
        writer.close()
        await asyncio.wait([task])
        assert task.cancelled() == (len(urls) == 1)
        assert store.durable_seq == store.last_seq

    asyncio.run(main(lambda task, writer: task.cancel()))
    asyncio.run(main(lambda task, writer: writer.write(request("SHUTDOWN"))))
    assert urls[0].startswith("redis://127.0.0.1:")
    assert store[b"n"] == b"2"


def test_a_program_that_does_not_stop_its_server_ends_all_the_same(path):
    script = (
        "import bytekv, socket, sys\n"
        "from bytekv.resp import Server\n"
        "server = Server(bytekv.open(sys.argv[1], sync='always'), port=0, group_commit=True)\n"
        "server.start()\n"
        "with socket.create_connection(server.address) as client:\n"
        "    client.sendall(b'SET k v\\r\\n')\n"
        "    assert client.recv(100) == b'+OK\\r\\n'\n"
    )
    command = [sys.executable, "-W", "error", "-c", script, str(path)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    with bytekv.open(path) as store:
        assert dict(store) == {b"k": b"v"}


def test_a_port_that_is_taken_is_an_error(house, path):
    door = house()
    with open_at(path.with_name("other")) as other:
        second = Server(other, port=door.server.address[1])
        with pytest.raises(OSError, match="in use"):
            second.start()
        with pytest.raises(RuntimeError, match="started already"):
            door.server.start()


@pytest.mark.parametrize("sync", ["interval", "always"])
def test_stopping_keeps_what_was_acknowledged(open_store, sync):
    """Clients write as fast as they can while the server stops; what they were told is stored, and durable."""
    store = open_store(sync=sync)
    server = Server(store, port=0, group_commit=sync == "always")
    server.start()
    acknowledged: dict[int, int] = {}
    busy = threading.Barrier(5)

    def write(number: int) -> None:
        with Client(server.address) as client:
            for count in range(10**6):
                if count == 20:
                    busy.wait()
                try:
                    replies = client.pipeline([["SET", f"{number}:{count}", "v"]] * 3)
                except ConnectionError:
                    return
                if replies != [OK] * 3:
                    return
                acknowledged[number] = count

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    busy.wait()
    server.stop()
    server.stop()
    assert store.durable_seq == store.last_seq
    for thread in threads:
        thread.join()
    assert len(acknowledged) == 4
    for number, count in acknowledged.items():
        assert all(f"{number}:{each}" in store for each in range(count + 1))


def test_stopping_finishes_and_answers_what_is_being_carried_out(house, open_store):
    door = house(open_store(sync="always"), group_commit=True)
    client = door.client()
    with door.store.transaction() as tx:
        client.send(request("SET", "k", "v") + request("CLIENT", "ID") + request("SET", "k", "not begun"))
        everything_has_arrived(door)
        stopping = threading.Thread(target=door.server.stop)
        stopping.start()
        while not door.on_loop(lambda: door.server._is_stopping):
            pass
        tx["other"] = "x"
    assert client.rest() == OK
    stopping.join()
    assert door.store[b"k"] == b"v"


def test_stopping_does_not_wait_for_clients_that_do_not_read(house, monkeypatch):
    monkeypatch.setattr(server_module, "GRACE_S", 0.05)
    door = house()
    client = door.client(receive_bytes=4096)
    client("SET", "k", "v" * 100_000)
    client.send(request("GET", "k") * 200)
    door.client()("PING")
    door.server.stop()
    assert not door.connections()


def test_a_store_that_is_closed_first_is_an_error_for_clients_and_none_for_the_server(open_store):
    store = open_store()
    with Server(store, port=0) as server, Client(server.address) as client:
        assert client("SET", "k", "v") == OK
        store.close()
        assert client("GET", "k").startswith(b"-ERR ")
        assert client("SET", "k", "v").startswith(b"-ERR ")
        assert client("PING") == b"+PONG\r\n"
