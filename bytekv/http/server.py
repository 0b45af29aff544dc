"""The application on uvicorn: listening sockets, deadlines, an end without lost replies.

uvicorn is imported when a server starts, so that mounting the application elsewhere needs nothing. What it is
told: no signal handlers and no logging of its own (both are the process's), no trust in forwarded headers, and
h11 as its parser, whose buffers are bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, Final

from ..listening import listen
from ..store import Store
from .access import Tokens
from .application import Application

__all__ = ["running", "serve"]

_MAX_CONNECTIONS: Final = 1000
_GRACE_S: Final = 10


async def serve(
    store: Store,
    host: str = "127.0.0.1",
    port: int = 8080,
    *,
    tokens: Tokens | None = None,
    started: Callable[[str], object] | None = None,
    head_timeout_s: float = 10.0,
    **settings: Any,
) -> None:
    """Serve an open store over HTTP until cancelled; the store is not closed.

    ``host``: a name or an address; only a loopback address may be served without ``tokens``. ``port``: 0 for a
    free one. ``started`` is called with the URL once connections are accepted. ``head_timeout_s``: seconds within
    which the head of a request must have arrived. ``settings``: as for `app`.

    When it is cancelled it takes no new connections, ends streams and answers what has begun, for ten seconds at
    most. Raises `ValueError` if the address is not loopback and there is no token, `OSError` if it cannot listen,
    `ModuleNotFoundError` if uvicorn is not installed.
    """
    application = Application(store, tokens=tokens, **settings)
    uvicorn = _uvicorn()
    sockets = listen(host, port, secret="a token", is_set=application.access.asks_for_token)
    try:
        config = uvicorn.Config(
            application,
            http=_protocol(head_timeout_s),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=_MAX_CONNECTIONS,
            timeout_graceful_shutdown=_GRACE_S,
        )
        server = uvicorn.Server(config)
        server.capture_signals = contextlib.nullcontext
        serving = asyncio.ensure_future(server.serve(sockets=sockets))
        try:
            if started is not None:
                started(_url(sockets[0]))
            await asyncio.shield(serving)
        except BaseException:
            application.end_streams()
            server.should_exit = True
            await serving
            raise
    finally:
        application.close()
        for listener in sockets:
            listener.close()


@contextlib.contextmanager
def running(store: Store, host: str = "127.0.0.1", port: int = 0, **settings: Any) -> Iterator[str]:
    """Serve an open store from a thread while the block runs; gives the URL.

    For programs without an event loop. ``settings``: as for `serve`, which says what is raised.
    """
    url: Future[str] = Future()
    cancel: Callable[[], object] = lambda: None  # noqa: E731 - until there is something to cancel

    async def work() -> None:
        nonlocal cancel
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        cancel = lambda: loop.call_soon_threadsafe(task.cancel)  # noqa: E731
        with contextlib.suppress(asyncio.CancelledError):
            await serve(store, host, port, started=url.set_result, **settings)

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


def _protocol(head_timeout_s: float) -> Any:
    """Return uvicorn's h11 protocol with a deadline for the head of a request, which it has not."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Protocol(H11Protocol):  # type: ignore[misc]
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
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
