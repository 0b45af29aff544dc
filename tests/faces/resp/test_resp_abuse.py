"""Clients that would make a careless server large: its memory stays small, and others are served."""

from __future__ import annotations

import random
import resource
import selectors
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.resp_harness import Client, request
from tests.support.resp_process import Process

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")

LIMIT_BYTES = 100 * 1024 * 1024


@pytest.fixture
def server(path: Path) -> Iterator[Process]:
    with Process(path) as process:
        yield process


def send_until_full(client: socket.socket, data: bytes, is_full: Callable[[], bool]) -> int:
    """Send until nothing more is taken; return how many bytes were."""
    client.setblocking(False)
    sent = 0
    with selectors.DefaultSelector() as selector:
        selector.register(client, selectors.EVENT_WRITE)
        while sent < len(data):
            if not selector.select(0.2) and is_full():
                return sent
            try:
                sent += client.send(memoryview(data)[sent : sent + (1 << 20)])
            except BlockingIOError:
                continue
    return sent


def answers(server: Process) -> bool:
    with Client(server.address) as other:
        return other("PING") == b"+PONG\r\n"


@pytest.mark.parametrize(
    "commands",
    [
        pytest.param(100_000, id="some"),
        pytest.param(1_000_000, id="a million", marks=pytest.mark.deep),
    ],
)
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(request("GET", "k"), id="large replies"),
        pytest.param(request("SET", "k", "v"), id="writes"),
        pytest.param(b"PING\r\n", id="inline"),
        pytest.param(b"*1\r\n$0\r\n\r\n", id="errors"),
    ],
)
def test_a_pipeline_whose_replies_nobody_reads(server, command, commands):
    with Client(server.address) as setting:
        setting("SET", "k", "v" * 10_000)
    with socket.create_connection(server.address) as client:
        sent = send_until_full(client, command * commands, lambda: answers(server))
        assert sent == len(command) * commands or answers(server)
        assert server.memory_bytes() < LIMIT_BYTES
    assert answers(server)


@pytest.mark.parametrize("commands", [100_000, pytest.param(1_000_000, marks=pytest.mark.deep)])
def test_a_transaction_that_is_never_carried_out(server, commands):
    """Without a limit, what is queued would take all memory."""
    with Client(server.address) as client:
        client("MULTI")
        for _ in range(commands // 1000):
            client.send(request("SET", "k", "v") * 1000)
            assert {client.reply() for _ in range(1000)} <= {b"+QUEUED\r\n", TOO_BIG}
        assert server.memory_bytes() < LIMIT_BYTES


TOO_BIG = b"-ERR transaction too big: more than 67108864 bytes are queued\r\n"


@pytest.mark.parametrize("connections", [100, pytest.param(1000, marks=pytest.mark.deep)])
def test_many_connections_that_send_a_byte_now_and_then(server, connections):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < connections + 100:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, connections + 200), hard))
    data = request("SET", "key", "value" * 10)
    clients = [socket.create_connection(server.address) for _ in range(connections)]
    try:
        for byte in range(len(data) - 1):
            for client in clients:
                client.sendall(data[byte : byte + 1])
            if byte % 10 == 0:
                assert answers(server)
        assert server.memory_bytes() < LIMIT_BYTES
        for client in clients:
            client.sendall(data[-1:])
        assert [client.recv(100) for client in clients] == [b"+OK\r\n"] * connections
        assert server.memory_bytes() < LIMIT_BYTES
    finally:
        for client in clients:
            client.close()


def test_requests_that_announce_much_and_send_little(server):
    clients = [Client(server.address) for _ in range(50)]
    try:
        for client in clients:
            client.send(b"*1048576\r\n$536870912\r\n" + b"x" * 1000)
        assert answers(server)
        assert server.memory_bytes() < LIMIT_BYTES
    finally:
        for client in clients:
            client.close()


def test_random_bytes_end_no_more_than_their_connection(server):
    chance = random.Random(5)
    for _ in range(200):
        # Reset, if the server closed before it had read everything; the error may be lost then.
        with Client(server.address) as client, suppress(ConnectionResetError):
            client.send(chance.randbytes(2000) + b"\r\n*x\r\n")
            assert client.rest().startswith(b"-ERR ")
    assert answers(server)
    assert server.stop() == 0
