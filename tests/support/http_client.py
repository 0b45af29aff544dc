"""Call an ASGI application without a server: what a server would send is given, what it would receive is returned."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

TIMEOUT_S = 30


class Answer(NamedTuple):
    """A whole reply."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of a problem, which must be a whole and sound problem document."""
        assert self.headers["content-type"] == "application/problem+json"
        document = self.json
        assert document["status"] == self.status
        assert document["type"] == "about:blank"
        assert document["title"]
        assert document["detail"]
        return document["code"]

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.body.splitlines()]


class Client:
    """Send requests to an application, with the same headers each time."""

    def __init__(self, application: Any, headers: dict[str, str] | None = None, root_path: str = "") -> None:
        self.application = application
        self.headers = {"host": "localhost:8080", **(headers or {})}
        self.root_path = root_path

    def __call__(self, method: str, target: str, body: bytes | Iterable[bytes] = b"", **more: Any) -> Answer:
        """Send one request and return the whole answer."""
        return asyncio.run(self.send(method, target, body, **more))

    async def send(self, method: str, target: str, body: bytes | Iterable[bytes] = b"", **more: Any) -> Answer:
        """The same, in an event loop."""
        async with self.open(method, target, body, **more) as exchange:
            await exchange.finished()
            return exchange.answer

    @asynccontextmanager
    async def open(
        self,
        method: str,
        target: str,
        body: bytes | Iterable[bytes] = b"",
        *,
        headers: dict[str, str | None] | list[tuple[str, str]] | None = None,
        ends: bool = True,
        **scope: Any,
    ) -> AsyncIterator[Exchange]:
        """Begin a request; ``body`` comes in its pieces, and ``ends=False`` lets its end never come."""
        path, _, query = target.partition("?")
        if isinstance(headers, list):
            sent = [*self.headers.items(), *headers]
        else:
            sent = [(name, value) for name, value in {**self.headers, **(headers or {})}.items() if value is not None]
        whole = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode("latin-1"),
            "query_string": query.encode("latin-1"),
            "root_path": self.root_path,
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in sent],
            **scope,
        }
        exchange = Exchange([body] if isinstance(body, bytes) else list(body), ends)
        task = asyncio.ensure_future(self.application(whole, exchange.receive, exchange.send))
        exchange.task = task
        try:
            yield exchange
        finally:
            exchange.leave()
            done, _ = await asyncio.wait([task], timeout=TIMEOUT_S)
            assert done, "the application does not end, although the client has left"


class Exchange:
    """The two ends that a server gives to an application for one request."""

    task: asyncio.Task[None]

    def __init__(self, pieces: list[bytes], ends: bool) -> None:
        self._pieces, self._ends = pieces, ends
        self._has_left = asyncio.Event()
        self._sent: asyncio.Queue[bytes] = asyncio.Queue()
        self.received_bytes = 0
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.is_complete = False

    async def receive(self) -> dict[str, Any]:
        if self._pieces:
            piece = self._pieces.pop(0)
            self.received_bytes += len(piece)
            return {"type": "http.request", "body": piece, "more_body": bool(self._pieces) or not self._ends}
        await self._has_left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            assert not self.status
            self.status = message["status"]
            for name, value in message["headers"]:
                assert name == name.lower()
                assert name.decode() not in self.headers, f"{name} twice"
                self.headers[name.decode()] = value.decode("latin-1")
        else:
            assert self.status
            assert not self.is_complete
            self.body += message["body"]
            self._sent.put_nowait(message["body"])
            self.is_complete = not message.get("more_body")

    async def piece(self) -> bytes:
        """Wait for the next piece of the reply."""
        async with asyncio.timeout(TIMEOUT_S):
            return await self._sent.get()

    def leave(self) -> None:
        """Close the connection."""
        self._has_left.set()

    async def finished(self) -> None:
        """Wait until the application has returned."""
        async with asyncio.timeout(TIMEOUT_S):
            await self.task

    @property
    def answer(self) -> Answer:
        assert self.is_complete, "the reply has no end"
        length = self.headers.get("content-length")
        assert length is None or not self.body or int(length) == len(self.body)
        return Answer(self.status, self.headers, self.body)
