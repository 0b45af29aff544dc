"""The application on uvicorn: listening sockets, deadlines, an end without lost replies.

uvicorn is imported when a server starts, so that mounting the application elsewhere needs nothing. What it is
told: no sockets (connections are accepted here), no signal handlers and no logging of its own (both are the
process's), no trust in forwarded headers, and h11 as its parser, whose buffers are bounded. What it lacks is in a
subclass of its protocol: deadlines for the head of a request and for taking a reply, a bound for connections, which
favours clients that have shown a token, and a log that strangers cannot fill.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, Final, Unpack

from .. import Store
from ..server.sockets import Pace, Places, Seldom, accepting, listen
from .access import Tokens
from .application import KNOWN, Application, AppOptions

__all__ = ["running", "serve"]

_MAX_CONNECTIONS: Final = 1000
_GRACE_S: Final = 10
_SWEEP_S: Final = 1.0
_MAX_HELD_BYTES: Final = 64 * 1024
_LINGER_S: Final = 5.0  # for a client to take what it is still sent when its connection is closed
_MAX_UNWANTED_BYTES: Final = 1024 * 1024  # that a client without a token sends after its reply
_MAX_HEAD_BYTES: Final = 64 * 1024
_STRANGER_READ_BYTES: Final = 8 * 1024  # in one go: one-byte chunks take 8 µs each
_STRANGER_SEND_S: Final = 10.0  # for a client without a token to take the rest of its replies


class ServeOptions(AppOptions, total=False):
    """The options of `serve`, for type checkers."""

    tokens: Tokens | None
    head_timeout_s: float


async def serve(
    store: Store,
    host: str = "127.0.0.1",
    port: int = 8080,
    *,
    tokens: Tokens | None = None,
    started: Callable[[str], object] | None = None,
    head_timeout_s: float = 10.0,
    **options: Unpack[AppOptions],
) -> None:
    """Serve an open store over HTTP until cancelled; the store is not closed.

    ``host``: a name or an address; only a loopback address may be served without ``tokens``. ``port``: 0 for a
    free one. ``started`` is called with the URL once connections are accepted. ``head_timeout_s``: seconds within
    which the head of a request must have arrived. ``options``: as for `app`. There are 1,000 connections at most, or
    as many as the process has descriptors for beside the store's files.

    When it is cancelled it takes no new connections, ends streams and answers what has begun, for ten seconds at
    most. Raises `ValueError` if the address is not loopback and there is no token, `OSError` if it cannot listen,
    `ModuleNotFoundError` if uvicorn is not installed.
    """
    application = Application(store, tokens=tokens, **options)
    uvicorn = _uvicorn()
    sockets = listen(host, port, secret="a token", is_set=application.access.asks_for_token)
    places = Places(_MAX_CONNECTIONS, guarded=application.access.asks_for_token)
    try:
        config = uvicorn.Config(
            application,
            http=_protocol(head_timeout_s, application.send_timeout_s, places, application.seldom),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            h11_max_incomplete_event_size=_MAX_HEAD_BYTES,
            timeout_graceful_shutdown=_GRACE_S,
        )
        server = uvicorn.Server(config)
        server.capture_signals = contextlib.nullcontext
        places.open()
        serving = asyncio.ensure_future(server.serve(sockets=[]))
        beside: list[asyncio.Future[None]] = []
        try:
            while not (server.started or serving.done()):
                await asyncio.sleep(0)
            protocol = lambda: config.http_protocol_class(  # noqa: E731
                config=config, server_state=server.server_state, app_state=server.lifespan.state
            )
            beside.append(asyncio.ensure_future(_sweep(server)))
            beside += [asyncio.ensure_future(accepting(each, protocol, places, application.seldom)) for each in sockets]
            if started is not None:
                started(_url(sockets[0]))
            await asyncio.shield(serving)
        except BaseException:
            application.end_streams()
            for task in beside[1:]:  # no new connections; the deadlines of the others hold on
                task.cancel()
            server.should_exit = True
            await serving
            raise
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
    finally:
        places.close()
        application.close()
        for listener in sockets:
            listener.close()


@contextlib.contextmanager
def running(store: Store, host: str = "127.0.0.1", port: int = 0, **options: Unpack[ServeOptions]) -> Iterator[str]:
    """Serve an open store from a thread while the block runs; gives the URL.

    For programs without an event loop. ``options``: as for `serve`, which says what is raised.
    """
    url: Future[str] = Future()
    cancel: Callable[[], object] = lambda: None  # noqa: E731 - until there is something to cancel

    async def work() -> None:
        nonlocal cancel
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        cancel = lambda: loop.call_soon_threadsafe(task.cancel)  # noqa: E731
        with contextlib.suppress(asyncio.CancelledError):
            await serve(store, host, port, started=url.set_result, **options)

    def run() -> None:
        try:
            asyncio.run(work())
        except BaseException as error:
            if url.done():
                raise
            url.set_exception(error)

    thread = threading.Thread(target=run, name="bytekv-http")
    thread.start()
    try:
        yield url.result()
    finally:
        with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended by itself
            cancel()
        thread.join()


# --- sockets -----------------------------------------------------------------------------------


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


# --- uvicorn -----------------------------------------------------------------------------------


def _uvicorn() -> Any:
    try:
        import uvicorn
    except ModuleNotFoundError:
        raise ModuleNotFoundError("serving needs uvicorn: pip install 'bytekv[http]'", name="uvicorn") from None
    return uvicorn


async def _sweep(server: Any) -> None:
    """Look at all connections now and then, for as long as the server runs."""
    clock = asyncio.get_running_loop().time
    while True:
        await asyncio.sleep(_SWEEP_S)
        for connection in list(server.server_state.connections):
            connection.check(clock())


class _SeldomLog:
    """What uvicorn is given as its logger: of each kind of warning a line a second."""

    level = logging.INFO

    def __init__(self, seldom: Seldom) -> None:
        self._seldom = seldom

    def log(self, level: int, message: str, *values: object, exc_info: object = None) -> None:
        """Take a message."""
        if level >= logging.WARNING:
            self._seldom.warn(message.strip(), " ".join(map(str, values)), exc_info)

    def warning(self, message: str, *values: object, exc_info: object = None) -> None:
        """Take a warning."""
        self.log(logging.WARNING, message, *values, exc_info=exc_info)

    error = warning

    def info(self, message: str, *values: object) -> None:
        """Drop a message that is for developers of servers."""

    debug = info


class _Gathering:
    """A transport that sends what is written in one turn of the loop together, as the head of a reply and its body.

    The server writes them one after the other. A system call less makes a tenth more requests per second.
    """

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.beneath = transport
        self._loop = loop
        self._held = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.beneath, name)

    def write(self, data: bytes) -> None:
        """Send bytes soon."""
        if data and not self._held:
            self._loop.call_soon(self.flush)
        self._held += data
        if len(self._held) > _MAX_HELD_BYTES:
            self.flush()  # the transport knows when it is enough

    def flush(self) -> None:
        """Send what is held."""
        held, self._held = self._held, b""
        if held:
            self.beneath.write(held)

    def close(self) -> None:
        """Close the connection; what has been written is still sent."""
        self.flush()
        self.beneath.close()


_REFUSAL: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\nretry-after: 1\r\n\r\n"
)


def _protocol(head_timeout_s: float, send_timeout_s: float, places: Places, seldom: Seldom) -> Any:
    """Return uvicorn's h11 protocol with what it lacks."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    pace = Pace()

    class Protocol(H11Protocol):  # type: ignore[misc]
        app_state: Any
        _deadline: asyncio.TimerHandle | None = None
        _is_known = not places.guarded  # has shown a token, or need not
        _untaken_since: float | None = None  # when there began to be bytes that the client does not take
        _closing_since: float | None = None
        _unwanted_bytes = 0

        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self.logger = _SeldomLog(seldom)
            self.app_state = {**self.app_state, KNOWN: self._note_known}  # the application finds it in the scope

        def _note_known(self) -> None:
            if not self._is_known:
                self._is_known = True
                places.note(self, known=True)
                self.transport.beneath.max_size = self._usual_size
                self.flow.resume_reading()

        def connection_made(self, transport: Any) -> None:
            super().connection_made(_Gathering(transport, self.loop))
            self._usual_size = getattr(transport, "max_size", 0)
            if not self._is_known:
                transport.max_size = _STRANGER_READ_BYTES  # asyncio's; where it means nothing it does no harm
            if not places.admit(self):
                seldom.warn("an HTTP client was refused: there are too many")
                self.transport.write(_REFUSAL)
                self.transport.close()
            self._watch()

        def evict(self) -> None:
            self.transport.abort()

        def on_response_complete(self) -> None:
            if self._is_known:
                super().on_response_complete()
            else:
                pace.do(self, super().on_response_complete)  # and the next request, if it has arrived

        def resume_writing(self) -> None:
            super().resume_writing()
            self._untaken_since = None

        def check(self, now: float) -> None:
            """Close the connection if the client takes too long for its replies."""
            if self.transport.is_closing():
                self._closing_since = self._closing_since or now
                if now - self._closing_since > _LINGER_S:
                    self.transport.abort()
            elif not self.transport.get_write_buffer_size():
                self._untaken_since = None
            else:
                self._untaken_since = self._untaken_since or now
                if now - self._untaken_since > (send_timeout_s if self._is_known else _STRANGER_SEND_S):
                    seldom.warn("an HTTP client that does not take its replies was disconnected")
                    self.transport.abort()

        def data_received(self, data: bytes) -> None:
            if self._is_known:
                super().data_received(data)
            else:
                began = time.thread_time()
                super().data_received(data)
                places.charge(time.thread_time() - began)
                if (debt_s := places.debt_s) > 0:
                    self.flow.pause_reading()  # what was read is taken in, in case it shows a token
                    self.loop.call_later(min(debt_s, 1.0), self.flow.resume_reading)
                if self.cycle is not None and self.cycle.response_complete:
                    self._unwanted_bytes += len(data)  # of a body whose request is answered, or of the next requests
                    if self._unwanted_bytes > _MAX_UNWANTED_BYTES:
                        self.transport.close()
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            places.leave(self)
            pace.leave(self)
            self._unwatch()
            super().connection_lost(exc)

        def _watch(self) -> None:
            if self.cycle is not None and not self.cycle.response_complete:
                self._unwatch()  # a request is under way; its body has a deadline of its own
            elif self._deadline is None:
                self._deadline = self.loop.call_later(head_timeout_s, self.transport.close)

        def _unwatch(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

    return Protocol
