"""One request and one reply over ASGI: raw path, query, headers, a body with a limit, sending.

The ASGI specification (https://asgi.readthedocs.io/en/latest/specs/www.html) is the only thing below. This
module knows nothing of stores. What is peculiar about it:

- Keys are bytes, so paths are: ``scope["path"]`` has been decoded as text and has lost which bytes and which
  slashes were meant. Only ``raw_path`` is used, and it is percent-decoded exactly once.
- A body is limited while it arrives, by size and by time, and the bodies of all requests together are, too.
- A body that ends too early (the client is gone, or sent less than it said) is never handed on.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Generator,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
)
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar
from urllib.parse import unquote_to_bytes

from .problem import Header, Problem

__all__ = [
    "Budget",
    "ClientGone",
    "Message",
    "Receive",
    "Reply",
    "Request",
    "Scope",
    "Send",
    "Stream",
    "in_time",
    "json_reply",
    "problem_reply",
    "text_reply",
    "unquote",
]

T = TypeVar("T")
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

#: Bytes handed to the server at once, so that a slow client holds back the rest.
_PIECE_BYTES: Final = 64 * 1024
_BAD_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")
_MAX_PARAMETERS: Final = 20


class ClientGone(Exception):
    """Raised when the client has left in the middle of its request, so that there is nobody to reply to."""


def unquote(quoted: bytes) -> bytes:
    """Return percent-decoded bytes; raise the problem for a ``%`` without two hexadecimal digits."""
    if _BAD_ESCAPE.search(quoted):
        raise Problem("malformed", "a % in a URL must be followed by two hexadecimal digits")
    return unquote_to_bytes(quoted)


# --- waiting -----------------------------------------------------------------------------------


class _Rest:
    """What is left of something awaited, which waits for ``future`` now."""

    def __init__(self, steps: Iterator[Any], future: Any) -> None:
        self._steps, self._future = steps, future

    def __await__(self) -> Generator[Any, Any, Any]:
        steps: Any = self._steps
        try:
            while True:
                try:
                    yield self._future
                except BaseException as error:
                    if not hasattr(steps, "throw"):  # what a server wrote in another language
                        raise
                    self._future = steps.throw(error)
                else:
                    self._future = next(steps)
        except StopIteration as done:
            return done.value


async def in_time(timeout_s: float, awaited: Awaitable[T]) -> T:
    """Await something; `TimeoutError` if it takes too long. What need not wait gets no timer, which takes 5 µs."""
    steps = awaited.__await__()
    try:
        future = next(steps)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    async with asyncio.timeout(timeout_s):
        return await _Rest(steps, future)  # type: ignore[no-any-return]


# --- requests ----------------------------------------------------------------------------------


class Budget:
    """How many requests, or bytes of their bodies, there may be at once; ``what`` names them."""

    def __init__(self, size: int, what: str) -> None:
        self.left = size
        self.what = what


class Request:
    """A request as it comes in; raises the problem if its head is malformed."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.method: str = scope["method"]
        self.http_version: str = scope.get("http_version", "1.1")
        #: What its sender may do; nothing until that is known.
        self.allowed: frozenset[str] = frozenset()
        #: What the server has to say of the connection.
        self.state: Mapping[str, Any] = scope.get("state") or {}
        self._receive = receive
        self._taken: dict[Budget, int] = {}
        self._headers: dict[bytes, list[str]] = {}
        for name, value in scope["headers"]:
            self._headers.setdefault(bytes(name).lower(), []).append(bytes(value).decode("latin-1").strip(" \t"))
        self.length = self._declared_length()
        #: The path under which the application is mounted, decoded; empty at the top.
        self.root = "/".join(["", *filter(None, scope.get("root_path", "").split("/"))])
        self.path = _path_below(self.root, scope)
        self._query = bytes(scope.get("query_string", b""))

    def _declared_length(self) -> int | None:
        """Return Content-Length, checked: a request whose end is in doubt is how requests are smuggled."""
        lengths = self.headers(b"content-length")
        close = [(b"connection", b"close")] if self.http_version.startswith("1") else []
        if len(lengths) > 1 or (lengths and self.headers(b"transfer-encoding")):
            raise Problem("malformed", "more than one header says how long the body is", headers=close)
        if not lengths:
            return None
        if not _LENGTH.fullmatch(lengths[0].encode("latin-1")):
            raise Problem("malformed", "Content-Length must be a decimal number", headers=close)
        return int(lengths[0])

    def headers(self, name: bytes) -> list[str]:
        """Return the values of a header, one for each time that it was sent."""
        return self._headers.get(name, [])

    def header(self, name: bytes) -> str | None:
        """Return a header, several of the same name as the list that they mean; None if it was not sent."""
        values = self._headers.get(name)
        return None if values is None else ", ".join(values)

    def accepts(self, media_type: str) -> bool:
        """Tell whether Accept names a media type, and does not rule it out; wildcards do not count."""
        for member in (self.header(b"accept") or "").split(","):
            name, *parameters = (part.strip(" \t").lower() for part in member.split(";"))
            if name == media_type:
                return not any(re.fullmatch(r"q=0(\.0*)?", parameter) for parameter in parameters)
        return False

    def query(self, *allowed: str) -> dict[str, bytes]:
        """Return the parameters of the query, percent-decoded to bytes, ``+`` being a space as in HTML forms.

        Raises the problem for a parameter that is not among ``allowed`` or comes twice: a misspelt ``ttl`` must not
        store something for ever.
        """
        found: dict[str, bytes] = {}
        pairs = self._query.split(b"&", _MAX_PARAMETERS) if self._query else []
        for pair in pairs:
            name_bytes, _, value = pair.partition(b"=")
            name = unquote(name_bytes).decode("latin-1")
            if name not in allowed:
                known = ", ".join(allowed) or "none"
                raise Problem("malformed", f"unknown parameter; this path knows: {known}", parameter=name)
            if name in found:
                raise Problem("malformed", f"{name} was given twice", parameter=name)
            found[name] = unquote(value.replace(b"+", b" "))
        return found

    def take(self, budget: Budget, size: int = 1) -> None:
        """Take from a budget until `done`; raise the problem if there is not as much left."""
        if size > budget.left:
            raise Problem("too-many-requests", f"too many {budget.what} at once", headers=[(b"retry-after", b"1")])
        budget.left -= size
        self._taken[budget] = self._taken.get(budget, 0) + size

    async def body(self, limit: int, timeout_s: float, budget: Budget) -> bytes:
        """Return the whole body; raise the problem as soon as it is too large or takes too long.

        Its bytes count against ``budget`` until `done`.
        """
        coding = self.header(b"content-encoding")
        if coding is not None and coding.lower() != "identity":
            raise Problem("wrong-media-type", "send the body without Content-Encoding")
        if self.length is not None and self.length > limit:
            raise Problem("too-large", f"a body may have {limit} bytes")
        try:
            body = await in_time(timeout_s, self._whole_body(limit, budget))
        except TimeoutError:
            raise Problem("too-slow", f"a body must arrive within {timeout_s:g} seconds") from None
        if self.length is not None and len(body) != self.length:
            raise ClientGone  # it said how much it would send; some servers do not tell that it left
        return body

    async def _whole_body(self, limit: int, budget: Budget) -> bytes:
        body, more = bytearray(), True
        while more:
            message = await self._receive()
            if message["type"] != "http.request":
                raise ClientGone
            piece = message.get("body", b"")
            if len(body) + len(piece) > limit:
                raise Problem("too-large", f"a body may have {limit} bytes")
            self.take(budget, len(piece))
            more = message.get("more_body", False)
            if not (body or more):
                return bytes(piece)  # all of it at once, as a small one comes
            body += piece
        return bytes(body)

    def done(self) -> None:
        """Give back what was taken from budgets; again does nothing."""
        while self._taken:
            budget, size = self._taken.popitem()
            budget.left += size

    async def gone(self) -> None:
        """Return once the client has left."""
        while (await self._receive())["type"] != "http.disconnect":
            pass


def _path_below(root: str, scope: Scope) -> bytes:
    """Return the raw path without the prefix under which the application is mounted."""
    raw = scope.get("raw_path")
    if raw is None:
        raise Problem("internal", "this ASGI server does not pass on raw_path, without which keys cannot be told apart")
    path = bytes(raw).partition(b"?")[0]
    if not path.startswith(b"/"):
        raise Problem("malformed", "the request target must be a path")
    depth = root.count("/")
    segments = path.split(b"/", depth + 1)
    # Some servers have the prefix in raw_path, as the specification says; some of those that run behind a proxy do not.
    if depth and unquote_to_bytes(b"/".join(segments[: depth + 1])) == root.encode():
        return b"/" + b"".join(segments[depth + 1 :])
    return path


# --- replies -----------------------------------------------------------------------------------


class Stream:
    """A body in pieces, the first of which is there already: what goes wrong before it can still become a reply.

    An asynchronous generator that has not begun does nothing when it is closed, and one that has begun cleans up;
    this one always has.
    """

    def __init__(self, first: bytes, pieces: AsyncGenerator[bytes, None]) -> None:
        self._first: bytes | None = first
        self._pieces = pieces

    @classmethod
    async def begin(cls, pieces: AsyncGenerator[bytes, None]) -> Stream:
        """Wait for the first piece."""
        try:
            return cls(await anext(pieces, b""), pieces)
        except BaseException:
            await pieces.aclose()
            raise

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> bytes:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return await anext(self._pieces)

    async def aclose(self) -> None:
        """Give up the rest."""
        await self._pieces.aclose()


@dataclass(slots=True)
class Reply:
    """What is sent back: bytes, or pieces as they come."""

    status: int
    headers: list[Header] = field(default_factory=list)
    body: bytes | Stream = b""

    async def send(self, request: Request | None, send: Send) -> None:
        """Send it; without the body if the request is a HEAD."""
        headers = [*self.headers, (b"x-content-type-options", b"nosniff")]
        if isinstance(self.body, bytes) and self.status not in (204, 304):
            headers.append((b"content-length", b"%d" % len(self.body)))
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        if (request is not None and request.method == "HEAD") or self.status in (204, 304):
            await self.close()
            await send({"type": "http.response.body", "body": b""})
        elif isinstance(self.body, bytes):
            await _send_whole(send, self.body)
        else:
            assert request is not None
            await _send_pieces(send, request, self.body)

    async def close(self) -> None:
        """Release a body that will not be sent."""
        if not isinstance(self.body, bytes):
            await self.body.aclose()


async def _send_whole(send: Send, body: bytes) -> None:
    at = 0
    while len(body) - at > _PIECE_BYTES:
        await send({"type": "http.response.body", "body": body[at : at + _PIECE_BYTES], "more_body": True})
        at += _PIECE_BYTES
    await send({"type": "http.response.body", "body": body[at:] if at else body})


async def _send_pieces(send: Send, request: Request, pieces: Stream) -> None:
    gone = asyncio.ensure_future(request.gone())
    try:
        async with aclosing(pieces):
            async for piece in pieces:
                if gone.done():
                    return
                if piece:  # an empty one only asks whether anybody is there
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    finally:
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)


def json_reply(status: int, document: object, headers: Sequence[Header] = ()) -> Reply:
    """Return a reply that is a JSON document."""
    body = json.dumps(document, separators=(",", ":")).encode() + b"\n"
    return Reply(status, [(b"content-type", b"application/json"), (b"cache-control", b"no-store"), *headers], body)


def text_reply(status: int, text: str, media_type: str = "text/plain; charset=utf-8") -> Reply:
    """Return a reply that is a text."""
    return Reply(status, [(b"content-type", media_type.encode()), (b"cache-control", b"no-store")], text.encode())


def problem_reply(problem: Problem) -> Reply:
    """Return the reply that tells of a problem."""
    reply = json_reply(problem.status, problem.document(), problem.headers)
    reply.headers[0] = (b"content-type", b"application/problem+json")
    return reply
