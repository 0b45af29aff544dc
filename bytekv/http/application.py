"""The ASGI application: from a request to a reply.

Every request takes the same path: its head is checked, then its Host, its row in the table of routes, and the rights of
its sender; then the operation runs, and the reply leaves. Any error becomes a problem document.

A get, put or delete of a small value runs on the event loop, unless it would wait (`Store.would_wait`). All else runs
in threads, reads and writes in two pools, so that writers that wait for a sync or a transaction hold up no reader (see
docs/decisions/0166-the-loop-asks-first.md).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import perf_counter
from typing import Any, Final, TypedDict, TypeVar
from urllib.parse import quote

from .. import Store
from ..contract.convert import Entry
from ..contract.reports import Compaction, Progress
from ..errors import BytekvError
from ..server.sockets import Seldom
from . import operations
from .access import Access, Tokens
from .conditions import Conditions, etag_of, part_of
from .console import PAGE, PAGE_POLICY
from .message import (
    Budget,
    ClientGone,
    Receive,
    Reply,
    Request,
    Scope,
    Send,
    Stream,
    in_time,
    json_reply,
    problem_reply,
    text_reply,
)
from .metrics import Metrics
from .openapi import DOCUMENT
from .operations import KeyRange, Listing
from .problem import Header, Problem, changes_lost, problem_of
from .routes import route_of
from .streams import ChangeStream, in_slices

__all__ = ["KNOWN", "AppOptions", "Application"]

T = TypeVar("T")
logger = logging.getLogger("bytekv.http")

_NDJSON: Final = "application/x-ndjson"
_EVENTS: Final = "text/event-stream"
_READERS: Final = 8
_WRITERS: Final = 32  # with sync="always" all who wait share the next sync
#: In the state of a scope: what to call once a request has shown a token, if its server wants to know.
KNOWN: Final = "bytekv.known"
_SMALL_BODY_BYTES: Final = 64 * 1024  # written on the event loop; copying and checking take some 20 µs
_BODIES_AT_ONCE: Final = 4  # bodies of the largest size that fit into the budget


class AppOptions(TypedDict, total=False):
    """The options of an `Application` besides its tokens, for type checkers; `bytekv.http.app` says what they mean."""

    allowed_hosts: Iterable[str]
    max_body_bytes: int
    max_requests: int
    body_timeout_s: float
    send_timeout_s: float
    poll_interval_s: float


class Application:
    """An ASGI 3 application on one open store; made by `bytekv.http.app`."""

    def __init__(
        self,
        store: Store,
        *,
        tokens: Tokens | None = None,
        allowed_hosts: Iterable[str] = (),
        max_body_bytes: int = 16 * 1024 * 1024,
        max_requests: int = 256,
        body_timeout_s: float = 60.0,
        send_timeout_s: float = 60.0,
        poll_interval_s: float = 0.1,
    ) -> None:
        self.access = Access(tokens, allowed_hosts)
        self._store = store
        self._max_body_bytes = max_body_bytes
        self._max_requests = max_requests
        self._body_timeout_s = body_timeout_s
        self._poll_interval_s = poll_interval_s
        #: Seconds for a client to take a piece of its reply.
        self.send_timeout_s = send_timeout_s
        #: Warnings that clients cause.
        self.seldom = Seldom(logger)
        # Of requests under way that have shown what they have to. Those that only read leave room for the others, and
        # those that may go on for ever, or as long as the client likes, leave room for short ones.
        self._requests = Budget(max_requests, "requests")
        self._reads = Budget(max_requests - max_requests // 4, "requests that read")
        self._streams = Budget(max_requests - max_requests // 2, "streams")
        self._bodies = Budget(_BODIES_AT_ONCE * max_body_bytes, "bodies")
        self._bodies_of_readers = Budget(max_body_bytes, "bodies of clients that may only read")
        self._metrics = Metrics()
        self._readers = ThreadPoolExecutor(_READERS, "bytekv-http-read")
        self._writers = ThreadPoolExecutor(_WRITERS, "bytekv-http-write")
        self._compaction: Progress | None = None
        self._is_ending = self._is_closed = False

    def end_streams(self) -> None:
        """End the streams that have no end of their own, and a compaction. Call it before stopping the server."""
        self._is_ending = True

    def close(self) -> None:
        """Release the threads and refuse later requests. The store stays open, and running calls finish.

        An ASGI server calls it at the end of its lifespan. Nobody calls it for a mounted application: its threads end
        when it is no longer referred to.
        """
        self._is_ending = self._is_closed = True
        self._readers.shutdown(wait=False)
        self._writers.shutdown(wait=False)

    # --- a request, step by step ------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one ASGI connection."""
        if scope["type"] == "http":
            await self._answer(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await receive()
            await send({"type": "websocket.close", "code": 1000})

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            else:
                self.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, operation, status = perf_counter(), "none", 0
        request: Request | None = None
        self._metrics.in_flight += 1
        try:
            try:
                request = Request(scope, receive)
                self.access.check_host(request.headers(b"host"), request.http_version)
                route, key = route_of(request.method, request.path)
                operation = route.operation
                request.allowed = self._admit(request, route.scopes)
                reply = await _OPERATIONS[operation](self, request, key)
            except ClientGone:
                return
            except Exception as error:
                reply = problem_reply(problem_of(error))
            status = reply.status
            try:
                await reply.send(request, self._in_time(send))
            except TimeoutError:
                self.seldom.warn("an HTTP client did not take its reply in time")
            except Exception as error:
                if isinstance(error, OSError) and not isinstance(error, BytekvError):
                    return  # the client has left; so newer servers say it
                # Half of the reply is out. The server cuts the connection, so the client knows that it lacks the rest.
                self.seldom.warn(f"{operation} was cut off", problem_of(error).detail)
                raise
        finally:
            self._metrics.in_flight -= 1
            if request is not None:
                request.done()
            if status:
                self._metrics.count(operation, status, perf_counter() - began)

    def _admit(self, request: Request, scopes: tuple[str, ...]) -> frozenset[str]:
        host = (request.headers(b"host") or [""])[0]
        allowed = self.access.check_token(scopes, request.headers(b"authorization"))
        if scopes and self.access.asks_for_token and (note := request.state.get(KNOWN)) is not None:
            note()
        self.access.check_origin(request.method, host, request.header(b"origin"), request.header(b"sec-fetch-site"))
        if self._is_closed:
            raise Problem("unavailable", "the server is coming to its end")
        if scopes:
            self._count(request, self._requests)
            if request.method in ("GET", "HEAD") or allowed == {"read"}:
                self._count(request, self._reads)
        return allowed

    def _count(self, request: Request, among: Budget) -> None:
        try:
            request.take(among)
        except Problem as problem:
            self.seldom.warn("a request was refused", problem.detail)
            raise

    def _in_time(self, send: Send) -> Send:
        """Return a ``send`` that raises `TimeoutError` if the client does not take what it is sent."""
        return lambda message: in_time(self.send_timeout_s, send(message))

    async def _read(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, partial(function, *arguments))

    async def _write(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._writers, partial(function, *arguments))

    async def _read_key(self, key: bytes, function: Callable[[Store, bytes], T]) -> T:
        if self._store.would_wait(key):
            return await self._read(function, self._store, key)
        return function(self._store, key)

    def _must_wait(self, key: bytes, value: bytes) -> bool:
        """Tell whether a write would hold up the event loop."""
        size = len(key) + len(value)
        return size > _SMALL_BODY_BYTES or self._store.would_wait(key, write_bytes=size)

    async def _body(self, request: Request) -> bytes:
        budget = self._bodies if "write" in request.allowed else self._bodies_of_readers
        return await request.body(self._max_body_bytes, self._body_timeout_s, budget)

    # --- one key -------------------------------------------------------------------------------

    async def _get_value(self, request: Request, key: bytes) -> Reply:
        request.query()
        entry = await self._read_key(key, operations.find)
        return _value_reply(self._store, request, entry, b"application/octet-stream")

    async def _get_text(self, request: Request, key: bytes) -> Reply:
        request.query()
        entry, media_type = await self._read_key(key, operations.find_text)
        reply = _value_reply(self._store, request, entry, media_type)
        # Whatever a value contains, a browser must not run it as a page of this server.
        reply.headers.append((b"content-security-policy", b"default-src 'none'; sandbox"))
        return reply

    async def _put_value(self, request: Request, key: bytes) -> Reply:
        created, seq = await self._put(request, key)
        return Reply(201 if created else 204, [(b"etag", etag_of(seq).encode())])

    async def _put_text(self, request: Request, key: bytes) -> Reply:
        _, seq = await self._put(request, key)
        reply = text_reply(200, "OK\n")
        reply.headers.append((b"etag", etag_of(seq).encode()))
        return reply

    async def _put(self, request: Request, key: bytes) -> tuple[bool, int]:
        ttl = operations.ttl_of(request.query("ttl").get("ttl"))
        conditions = _conditions(request)
        if request.headers(b"content-range"):
            raise Problem("malformed", "a part of a value cannot be stored")
        body = await self._body(request)
        if self._must_wait(key, body):
            return await self._write(operations.put, self._store, key, body, ttl, conditions)
        return operations.put(self._store, key, body, ttl, conditions)

    async def _delete_value(self, request: Request, key: bytes) -> Reply:
        if not await self._delete(request, key):
            raise operations.no_such_key(key)
        return Reply(204)

    async def _delete_text(self, request: Request, key: bytes) -> Reply:
        await self._delete(request, key)
        return text_reply(202, "OK\n")

    async def _delete(self, request: Request, key: bytes) -> bool:
        request.query()
        conditions = _conditions(request)
        if conditions.are_given or self._must_wait(key, b""):
            return await self._write(operations.delete, self._store, key, conditions)
        return operations.delete(self._store, key, conditions)

    async def _get_stat(self, request: Request, key: bytes) -> Reply:
        request.query()
        return json_reply(200, await self._read(operations.stat, self._store, key))

    # --- many keys -----------------------------------------------------------------------------

    async def _list_keys(self, request: Request, key: bytes) -> Reply:
        listing = _listing(request)
        if not request.accepts(_NDJSON):
            seq, page = await self._read(operations.page, self._store, listing)
            return json_reply(200, page, [(b"vary", b"accept"), (b"bytekv-seq", b"%d" % seq)])
        self._count(request, self._streams)
        seq, lines = await self._read(operations.open_listing, self._store, listing)
        reply = _stream_reply(_NDJSON, await Stream.begin(in_slices(self._read, lines)))
        reply.headers.append((b"bytekv-seq", b"%d" % seq))
        return reply

    async def _count_keys(self, request: Request, key: bytes) -> Reply:
        keys = _key_range(request)
        return json_reply(200, {"count": await self._read(operations.count, self._store, keys)})

    async def _delete_range(self, request: Request, key: bytes) -> Reply:
        keys = _key_range(request)
        if _conditions(request).are_given:
            raise Problem("malformed", "conditions are for one key; several are compared in a batch")
        return json_reply(200, {"deleted": await self._write(operations.delete_range, self._store, keys)})

    async def _run_batch(self, request: Request, key: bytes) -> Reply:
        request.query()
        media_type = (request.header(b"content-type") or "").partition(";")[0].strip(" \t").lower()
        if media_type != "application/json":
            # Not for the type's sake: a page of another site may send text/plain without being asked who it is.
            raise Problem("wrong-media-type", "a batch is sent as application/json")
        body = await self._body(request)
        limit_bytes = 2 * self._max_body_bytes
        done = await self._write(operations.run_batch, self._store, body, limit_bytes, request.allowed)
        return json_reply(200, done)

    async def _get_changes(self, request: Request, key: bytes) -> Reply:
        query = request.query("since", "follow")
        events = request.accepts(_EVENTS)
        since = _number("since", query.get("since", b"0"), 0)
        last = request.header(b"last-event-id")
        if last:
            since = _number("Last-Event-ID", last.encode("latin-1"), 0)
        follow = _flag("follow", query.get("follow"), default=events)
        self._count(request, self._streams)
        # From a store that was restored or lost its end: this one's history is another.
        if since > self._store.last_seq:
            raise changes_lost("the store has not come so far", last_seq=self._store.last_seq)
        feed = ChangeStream(self._store, since, follow=follow, events=events, poll_s=self._poll_interval_s)
        pieces = feed.pieces(self._read, lambda: self._is_ending)
        return _stream_reply(_EVENTS if events else _NDJSON, await Stream.begin(pieces))

    # --- the store -----------------------------------------------------------------------------

    async def _get_stats(self, request: Request, key: bytes) -> Reply:
        request.query()
        stats = await self._read(self._store.stats)
        running = self._compaction
        document = {
            **stats._asdict(),
            "segments": [row._asdict() for row in stats.segments],
            "compaction": None if running is None else running._asdict(),
            "requests": self._metrics.requests(),
        }
        return json_reply(200, document)

    async def _compact(self, request: Request, key: bytes) -> Reply:
        request.query()
        if self._compaction is not None:
            raise Problem("already-running", "wait until the compaction that is running has ended")
        self._compaction = Progress(0, 0)
        done = await self._write(self._compact_now)
        return json_reply(200, {**done._asdict(), "reclaimed_bytes": done.reclaimed_bytes})

    def _compact_now(self) -> Compaction:
        def note(progress: Progress) -> None:
            if self._is_ending:  # `Store.close` would wait for the rest; what is done stays done
                raise Problem("unavailable", "the server is coming to its end; the compaction was given up")
            self._compaction = progress

        try:
            return self._store.compact(progress=note)
        finally:
            self._compaction = None

    async def _sync(self, request: Request, key: bytes) -> Reply:
        request.query()
        await self._write(self._store.sync)
        return json_reply(200, {"durable_seq": self._store.durable_seq})

    # --- the server ----------------------------------------------------------------------------

    async def _get_metrics(self, request: Request, key: bytes) -> Reply:
        request.query()
        stats = await self._read(self._store.stats)
        return text_reply(200, self._metrics.text(stats), "text/plain; version=0.0.4; charset=utf-8")

    async def _get_health(self, request: Request, key: bytes) -> Reply:
        return json_reply(200, {"status": "ok"})

    async def _get_readiness(self, request: Request, key: bytes) -> Reply:
        if self._store.closed:
            raise Problem("unavailable", "the store is closed")
        if self._store.failure is not None:
            raise Problem("unavailable", "a sync or a write has failed; reading goes on, writes are refused")
        return json_reply(200, {"status": "ok", "readonly": self._store.readonly})

    async def _get_openapi(self, request: Request, key: bytes) -> Reply:
        return json_reply(200, DOCUMENT)

    async def _get_console(self, request: Request, key: bytes) -> Reply:
        policy = (b"content-security-policy", PAGE_POLICY.encode())
        reply = text_reply(200, PAGE, "text/html; charset=utf-8")
        reply.headers += [policy, (b"referrer-policy", b"no-referrer"), (b"cross-origin-opener-policy", b"same-origin")]
        return reply

    async def _get_root(self, request: Request, key: bytes) -> Reply:
        return Reply(307, [(b"location", f"{quote(request.root)}/-/console".encode())])


#: Which method carries out the operation of a row in `ROUTES`.
_OPERATIONS: Final[Mapping[str, Callable[[Application, Request, bytes], Awaitable[Reply]]]] = {
    "get_text": Application._get_text,
    "put_text": Application._put_text,
    "delete_text": Application._delete_text,
    "get_value": Application._get_value,
    "put_value": Application._put_value,
    "delete_value": Application._delete_value,
    "list_keys": Application._list_keys,
    "delete_range": Application._delete_range,
    "get_stat": Application._get_stat,
    "count_keys": Application._count_keys,
    "run_batch": Application._run_batch,
    "get_changes": Application._get_changes,
    "get_stats": Application._get_stats,
    "compact": Application._compact,
    "sync": Application._sync,
    "get_openapi": Application._get_openapi,
    "get_metrics": Application._get_metrics,
    "get_health": Application._get_health,
    "get_readiness": Application._get_readiness,
    "get_console": Application._get_console,
    "get_root": Application._get_root,
}


def _value_reply(store: Store, request: Request, entry: Entry, media_type: bytes) -> Reply:
    """Return a value, a part of it, or the news that the client has it already."""
    conditions = _conditions(request)
    if not conditions.match(entry.seq):
        conditions.require(entry.seq)
    etag = etag_of(entry.seq)
    headers: list[Header] = [(b"etag", etag.encode()), (b"cache-control", b"no-cache"), (b"accept-ranges", b"bytes")]
    left = operations.ttl_left(store, entry)
    if left is not None:
        headers.append((b"bytekv-ttl", b"%.3f" % left))
    if not conditions.none_match(entry.seq):
        return Reply(304, headers)
    headers.append((b"content-type", media_type))
    asked = request.header(b"range") if request.method == "GET" else None
    part = part_of(asked, request.header(b"if-range"), entry.seq, len(entry.value))
    if part is None:
        return Reply(200, headers, entry.value)
    headers.append((b"content-range", b"bytes %d-%d/%d" % (part.start, part.stop - 1, len(entry.value))))
    return Reply(206, headers, entry.value[part.start : part.stop])


def _conditions(request: Request) -> Conditions:
    return Conditions(request.header(b"if-match"), request.header(b"if-none-match"))


def _stream_reply(media_type: str, pieces: Stream) -> Reply:
    headers = [(b"content-type", media_type.encode()), (b"cache-control", b"no-store"), (b"vary", b"accept")]
    return Reply(200, headers, pieces)


def _listing(request: Request) -> Listing:
    query = request.query("prefix", "start", "stop", "limit", "reverse", "values", "cursor")
    limit = query.get("limit")
    return Listing(
        prefix=query.get("prefix", b""),
        start=query.get("start"),
        stop=query.get("stop"),
        reverse=_flag("reverse", query.get("reverse")),
        limit=None if limit is None else _number("limit", limit, 1),
        values=_flag("values", query.get("values")),
        cursor=query.get("cursor"),
    )


def _key_range(request: Request) -> KeyRange:
    query = request.query("prefix", "start", "stop")
    return KeyRange(query.get("prefix", b""), query.get("start"), query.get("stop"))


def _number(name: str, text: bytes, low: int) -> int:
    # int() would take "+5", " 5 " and "1_000", too.
    if not text.isdigit() or len(text) > 18 or int(text) < low:
        raise Problem(
            "malformed", f"{name} must be a decimal number, {low} or more, of at most 18 digits", parameter=name
        )
    return int(text)


def _flag(name: str, text: bytes | None, *, default: bool = False) -> bool:
    if text not in (None, b"true", b"false"):
        raise Problem("malformed", f"{name} must be true or false", parameter=name)
    return default if text is None else text == b"true"
