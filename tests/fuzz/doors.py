"""Both doors of one store without sockets: any bytes may arrive, cut up anywhere; what is answered is never an error of
ours, and nothing takes long.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import bytekv
from bytekv.http import Application
from bytekv.resp import Server
from bytekv.resp.commands import strings
from bytekv.resp.connection import READ_BYTES, Connection
from tests.support import harness
from tests.support.harness import QuickFiles
from tests.support.resp_harness import Argument, Commands, request

SECONDS = 5.0  # that no input may take

_HTTP = [
    b"GET /v1/kv/a\nhost: localhost\n\n",
    b'PUT /v1/kv/a?ttl=60\nhost: localhost\nif-match: "7", W/"8"\nif-none-match: *\ncontent-length: 5\n\nhello',
    b'GET /b\nhost: [::1]:80\nrange: bytes=0-5\nif-range: "7"\n\n',
    b"DELETE /v1/kv/%00%ff\nhost: 127.0.0.1\n\n",
    b"GET /v1/kv?prefix=a&start=b&stop=c&limit=10&reverse=true&values=true&cursor=AAAA\nhost: localhost\n\n",
    b"GET /v1/kv\nhost: localhost\naccept: application/x-ndjson\n\n",
    b"POST /v1/batch\nhost: localhost\ncontent-type: application/json\n\n"
    b'{"if": [{"key_b64": "YQ==", "etag": "\\"7\\""}],'
    b'"ops": [{"op": "put", "key_b64": "Yg==", "value_b64": "MQ==", "ttl": 60}, {"op": "get", "key_b64": "Yg=="}]}',
    b"GET /v1/changes?since=0&follow=false\nhost: localhost\naccept: text/event-stream\nlast-event-id: 1\n\n",
    b"GET /v1/stats\nhost: localhost\nauthorization: Bearer t\n\n",
    b"POST /v1/admin/compact\nhost: localhost\norigin: http://localhost\n\n",
    b"GET /metrics\nhost: localhost\n\n",
    b"GET /-/ready\nhost: localhost\n\n",
]


def corpus(target: str) -> list[bytes]:
    """Return what a fuzzer begins with."""
    if target == "http":
        return _HTTP
    first: list[list[Argument]] = [["HELLO", 3], ["CLIENT", "LIST"], ["AUTH", "x"], ["BKV.RANGE", "", "", "WITHVALUES"]]
    made = [b"\x00SET a 'b'\r\nINFO\r\nBKV.ENTRY a\r\nSCAN 0 COUNT 5 MATCH *a*\r\nMEMORY USAGE a\r\nCONFIG GET *\r\n"]
    for seed in range(20):
        commands = Commands(seed)
        requests = [request(*each) for each in [first[seed % 4], *(commands.one() for _ in range(8))]]
        made.append(bytes([seed]) + b"".join(requests))
    return made


@contextmanager
def _empty_store() -> Iterator[bytekv.Store]:
    with (
        tempfile.TemporaryDirectory(prefix="bytekv-doors-") as place,
        harness.open_store(Path(place) / "store", files=QuickFiles(), sync="os", auto_compact=False) as store,
    ):
        yield store


# --- Redis ---------------------------------------------------------------------------------------


class _Loop:
    """As much of an event loop as a connection uses."""

    def __init__(self) -> None:
        self.calls: deque[Callable[[], object]] = deque()

    def call_soon(self, call: Callable[..., object], *arguments: object) -> None:
        self.calls.append(lambda: call(*arguments))

    def create_task(self, task: Coroutine[Any, Any, None]) -> _Never:
        task.close()  # a compaction, a sync, an end: not here
        return _Never()

    def turn(self) -> None:
        while self.calls:
            self.calls.popleft()()


class _Never:
    def add_done_callback(self, call: object) -> None: ...


class _Transport:
    """A client that takes everything at once."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.is_closed = False

    def get_extra_info(self, name: str, default: object = None) -> object:
        return _Socket() if name == "socket" else ("127.0.0.1", 1)

    def write(self, data: bytes) -> None:
        self.sent += data

    def close(self) -> None:
        self.is_closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.is_closed

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class _Socket:
    def setsockopt(self, *_: object) -> None: ...


def resp(data: bytes) -> None:
    """Let bytes arrive at the door of Redis clients; the first says whether it has a password, and how they are cut."""
    how, data = (data[0], data[1:]) if data else (0, b"")
    began = time.monotonic()
    with _empty_store() as store, mock.patch.object(strings, "_MAX_VALUE_BYTES", 1 << 20):  # more zeros find nothing
        server = Server(store, password="x" if how & 1 else None)
        loop, transport = _Loop(), _Transport()
        server.loop = loop  # type: ignore[assignment]
        server._shares_buffer = True
        server.address = ("127.0.0.1", 1)
        server._places.open()
        try:
            _arrive(Connection(server), transport, loop, data, min(READ_BYTES, 1 + (how >> 1) * 97))
        finally:
            server._places.close()
    assert b"internal error" not in transport.sent, bytes(transport.sent[-300:])
    assert time.monotonic() - began < SECONDS


def _arrive(connection: Connection, transport: _Transport, loop: _Loop, data: bytes, size: int) -> None:
    connection.connection_made(transport)  # type: ignore[arg-type]
    for at in range(0, len(data), size):
        if transport.is_closed or connection._is_waiting:
            break
        piece = data[at : at + size]
        connection.get_buffer(len(piece))[: len(piece)] = piece
        connection.buffer_updated(len(piece))
        loop.turn()
    connection.eof_received()
    loop.turn()
    connection.connection_lost(None)


# --- HTTP ----------------------------------------------------------------------------------------


def http(data: bytes) -> None:
    """Answer a request: a line of method and target, headers, an empty line, a body."""
    head, _, body = data.partition(b"\n\n")
    first, *lines = head.split(b"\n")
    method, _, target = first.partition(b" ")
    path, _, query = target.partition(b"?")
    headers = [
        (name.lower(), value.strip()) for name, colon, value in (line.partition(b":") for line in lines) if colon
    ]
    tokens = {"t": "read"} if b"Bearer" in head else None
    began = time.monotonic()
    with _empty_store() as store:
        application = Application(store, tokens=tokens, max_body_bytes=1 << 16)
        try:
            status = asyncio.run(_ask(application, method, path, query, headers, body))
        finally:
            application.close()
    assert status not in (500, 503), status
    assert time.monotonic() - began < SECONDS


async def _ask(
    application: Application, method: bytes, path: bytes, query: bytes, headers: list[tuple[bytes, bytes]], body: bytes
) -> int:
    pieces = [body[at : at + 100] for at in range(0, len(body), 100)] or [b""]
    statuses = [0]

    async def receive() -> dict[str, Any]:
        if not pieces:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def send(message: dict[str, Any]) -> None:
        statuses.append(message.get("status", statuses[-1]))

    scope = {
        "type": "http",
        "method": method.decode("latin-1"),
        "http_version": "1.1",
        "path": path.decode("latin-1"),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": headers,
    }
    await application(scope, receive, send)
    return statuses[-1]
