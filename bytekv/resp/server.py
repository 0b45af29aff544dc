"""The door itself: listening, connections, back-pressure, deadlines, a graceful stop.

Knows asyncio, and of commands only that a `Session` says what becomes of one.

*Theory of operation.* What has arrived is parsed at once and carried out in order, on the thread of the event loop;
the replies to all that one turn of the loop has brought leave at its end. A connection stops reading as long as
something is in its way: a client that does not read its replies, a batch or a slow command that it waits for. So it
holds at most what one read brought (`_READ_BYTES`), one request that is not all there, and replies of about
`_WRITE_BYTES`.

With ``group_commit`` a command that writes, with what follows it, waits for a batch: all that waits when a batch begins
is carried out by one thread in one transaction, which is one sync, and then the replies leave. Meanwhile the loop goes
on, and what arrives gathers for the next batch.

The server never closes the store: whoever opened it does.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Final, cast

from .. import BytekvError, Store
from ..listening import listen
from . import administration  # noqa: F401 - enters its commands into the table
from .commands import COMMANDS
from .executor import Executor, Item, Straight, error_of
from .protocol import UNTRUSTED, Limits, Parser, Reply, ReplyError, encode, encode_error
from .session import Later, Run, Session, digest_of

__all__ = ["Server", "serve"]

logger = logging.getLogger("bytekv")

_READ_BYTES: Final = 64 * 1024
_WRITE_BYTES: Final = 256 * 1024  # replies that wait for a client; above, it is read from no more
_SMALL_REPLY_BYTES: Final = 512  # not counted: as many as fit into a read are a few megabytes
_MAX_SHARE: Final = 1024  # commands that one client has in a batch
_MIN_BYTES_PER_S: Final = 1024  # of a request that takes longer than `request_timeout_s`
_AUTHENTICATION_S: Final = 10.0
_SWEEP_S: Final = 1.0
_GRACE_S: Final = 5.0
_KEEPALIVE_S: Final = 300
_LIMITS: Final = Limits()


class _Stopping(Exception):
    """Ends a compaction or a backup because the server stops."""


class _Connection(asyncio.BufferedProtocol):
    """One client."""

    __slots__ = (
        "_backlog",
        "_is_at_eof",
        "_is_cautious",
        "_is_choked",
        "_is_waiting",
        "_left",
        "_parser",
        "_server",
        "_transport",
        "_unsent",
        "_view",
        "_ways",
        "active_at",
        "closing_since",
        "connected_at",
        "request_since",
        "session",
    )

    session: Session
    _transport: asyncio.Transport
    _parser: Parser

    def __init__(self, server: Server) -> None:
        self._server = server
        self._ways: dict[bytes, Straight] = {}  # the shorter ways that are open now
        self._backlog: list[list[bytes]] = []  # parsed, not carried out
        self._left: list[Item] = []  # were too many for a batch
        self._unsent = b""  # leaves at the end of this turn of the loop
        self._is_cautious = False  # the parser returns one command at a time
        self._is_at_eof = False  # the client sends nothing more
        self._is_choked = False  # the client does not read
        self._is_waiting = False  # for a batch, or for something slow
        self.active_at = self.connected_at = server.now
        self.closing_since: float | None = None
        self.request_since: float | None = None  # when the request that is not all there began

    # --- what the transport says -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._view = self._server.buffer_for_reading()
        refusal = self._server.admit(self, _address(transport, "peername"), _address(transport, "sockname"))
        if refusal is not None:
            self._transport.write(refusal)
            self._transport.close()
            return
        self._parser = Parser(self.session.limits)
        self._is_cautious = self._parser.limits is UNTRUSTED
        self._transport.set_write_buffer_limits(high=_WRITE_BYTES)
        _keep_alive(transport.get_extra_info("socket"))
        self._adapt()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        self.active_at = self._server.now
        commands = self._parser.feed(self._view[:nbytes].tobytes())
        if self._is_waiting or self._is_choked:
            self._backlog += commands
            self._transport.pause_reading()
        else:
            self._run(commands)
        if not self._parser.is_partial:
            self.request_since = None
        elif self.request_since is None:
            self.request_since = self.active_at

    def eof_received(self) -> bool:
        self._is_at_eof = True
        self.flush()
        return self._is_waiting or self._is_choked  # who only closed his half still gets what he waits for

    def connection_lost(self, error: Exception | None) -> None:
        self._backlog.clear()
        self._server.forget(self)

    def pause_writing(self) -> None:
        self._is_choked = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._is_choked = False
        self._server.loop.call_soon(self._go_on)

    # --- commands ----------------------------------------------------------------------------------

    def _run(self, commands: list[list[bytes]]) -> None:
        """Carry out commands until something is in the way; what is left goes into the backlog."""
        while True:
            if commands:
                commands = self._carry_out(commands)
            if self._is_waiting or self._is_choked:
                self._backlog = commands
                if commands:
                    self._transport.pause_reading()
                return
            if self.session.is_closing:
                self.close()
                return
            if not commands:
                if not self._is_cautious:
                    break
                self._is_cautious = self._parser.limits is UNTRUSTED
                commands = self._parser.feed(b"")
                if not commands:
                    break
        if self._parser.error is not None:
            self._send(encode_error(self._parser.error))
            self.close()
        elif self._is_at_eof:
            self.close()

    def _carry_out(self, commands: list[list[bytes]]) -> list[list[bytes]]:
        """Carry out commands and send the replies; return those that have to wait."""
        server, session = self._server, self.session
        replies: list[bytes] = []
        add, ways, large, done = replies.append, self._ways, 0, 0
        waits: Run | Later | None = None
        for arguments in commands:
            done += 1
            way = ways.get(arguments[0])
            try:
                reply = None if way is None else way(arguments)
            except Exception as error:
                reply = encode(error_of(error), False)
            if reply is None:
                answer = session.handle(arguments)
                if isinstance(answer, bytes):
                    reply = answer
                elif isinstance(answer, Later) or (answer.writes and server.group_commit):
                    waits = answer
                    break
                else:
                    reply = server.executor.alone(answer.item, session.resp3)
                    reply = b"" if session.is_silent else reply
                ways = self._adapt()
                if session.is_closing:
                    add(reply)
                    if session.is_foreign:
                        replies.clear()
                    commands = []
                    break
            add(reply)
            if len(reply) > _SMALL_REPLY_BYTES:
                large += len(reply)
                if large > _WRITE_BYTES:
                    break
        server.commands_processed += done
        if replies:
            self._send(b"".join(replies))
            if large > _WRITE_BYTES:
                self.flush()  # to know whether the client takes it
        rest = commands[done:]
        return rest if waits is None else self._wait_for(waits, rest)

    def _adapt(self) -> dict[bytes, Straight]:
        """Take account of what the session has become; return the shorter ways that are open now."""
        session, parser = self.session, self._parser
        if (parser.limits is UNTRUSTED) == session.is_authenticated:
            parser.limits = session.limits
            self._is_cautious = True
        self._ways = self._server.ways[session.resp3] if session.is_plain else {}
        return self._ways

    # --- replies -----------------------------------------------------------------------------------

    def _send(self, data: bytes) -> None:
        """Have bytes sent at the end of this turn of the loop."""
        if not self._unsent:
            self._server.flush_soon(self)
        self._unsent += data

    def flush(self) -> None:
        """Send what there is to send."""
        data, self._unsent = self._unsent, b""
        if data and not self._transport.is_closing():
            self._transport.write(data)

    # --- waiting -----------------------------------------------------------------------------------

    def _wait_for(self, answer: Run | Later, following: list[list[bytes]]) -> list[list[bytes]]:
        """Have something done elsewhere, and with it what follows it, as far as it can; return the rest."""
        self._is_waiting = True
        if isinstance(answer, Later):
            self._server.do_later(self, answer)
            return following
        items: list[Item] = [answer.item]
        if self._adapt():
            for arguments in following[: _MAX_SHARE - 1]:
                found = COMMANDS.get(arguments[0].lower())
                if found is None or found.kind == "session":
                    break
                items.append(arguments)
        self._server.commands_processed += len(items) - 1
        self._server.add_to_batch(self, items)
        return following[len(items) - 1 :]

    def answered(self, replies: list[bytes], left: list[Item]) -> None:
        """Go on after a wait; ``left`` was too much for one batch."""
        self._left = [] if self.session.is_closing else left
        self._is_waiting = bool(self._left)
        if self._transport.is_closing():
            return
        if not self.session.is_silent:
            self._send(b"".join(replies))
            if self._left:
                self.flush()
        self._go_on()

    def _go_on(self) -> None:
        """Go on where something was in the way, if nothing is any more."""
        if self._is_choked or self._transport.is_closing():
            return
        if self._left:
            left, self._left = self._left, []
            self._server.add_to_batch(self, left)
        elif not self._is_waiting:
            commands, self._backlog = self._backlog, []
            self._run(commands)
            if not self._is_choked and not self._is_waiting and not self._is_at_eof:
                self._transport.resume_reading()

    # --- what the server says ----------------------------------------------------------------------

    def check_deadlines(self, now: float) -> None:
        """Close the connection if the client takes too long: for the password, a request, its replies, or at all."""
        server = self._server
        if self._transport.is_closing():
            self.closing_since = self.closing_since or now
            if now - self.closing_since > _GRACE_S:
                self._transport.abort()
        elif not self.session.is_authenticated and now - self.connected_at > _AUTHENTICATION_S:
            self.close()
        elif self.request_since is not None and not self._backlog:
            patience_s = server.request_timeout_s + self._parser.partial_bytes / _MIN_BYTES_PER_S
            if now - self.request_since > patience_s:
                self.close()
        elif server.idle_timeout_s and now - self.active_at > server.idle_timeout_s and not self._is_waiting:
            self.close()

    def stop(self) -> None:
        """Carry out nothing more than what is waited for, then close."""
        self._backlog.clear()
        self.session.is_closing = True
        if not self._transport.is_closing():
            self._transport.pause_reading()
            if not self._is_waiting:
                self.close()

    def close(self) -> None:
        """Close the connection; what has been answered is still sent."""
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        """Close the connection at once."""
        self._transport.abort()


def _address(transport: asyncio.BaseTransport, which: str) -> str:
    found = transport.get_extra_info(which)
    if not isinstance(found, tuple):
        return ""
    return f"[{found[0]}]:{found[1]}" if ":" in found[0] else f"{found[0]}:{found[1]}"


def _keep_alive(connected: socket.socket) -> None:
    """Have the operating system find out that a client is gone that did not say so."""
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_S)


_Batch = list[tuple[_Connection, list[Item]]]  # who waits for what


# --- the server --------------------------------------------------------------------------------


class Server:
    r"""Serve an open store to Redis clients: from a thread of its own (`start`, `stop`) or on an event loop.

    On an event loop it is `listen` and `close`, or ``async with``. It does not close the store.

    ``port``: 0 for a free one; `address` tells which. ``password``: what clients have to show, needed for an address
    that is not loopback. ``max_connections`` are served at once. ``request_timeout_s``: seconds for a request to
    arrive, plus one for each KiB. ``idle_timeout_s``: seconds after which a client that sends nothing is disconnected;
    0: never. ``backup_dir``: where BGSAVE puts backups, each in a directory of its own; None: it is refused.
    ``group_commit``: let the writes that arrive together share one sync, beside the event loop; choose it if the store
    was opened with ``sync="always"``. ``limits``: what one request may ask for.

    Starting raises `ValueError` for an address that is not loopback without a password, and `OSError` if it cannot be
    had. Durability: a reply means what the return of `Store.put` means. Transactions of the application should be
    short: clients that write wait for them.

    >>> import bytekv, socket, tempfile
    >>> with bytekv.open(tempfile.mkdtemp()) as db, Server(db, port=0) as server:
    ...     with socket.create_connection(server.address) as client:
    ...         client.sendall(b"SET colour blue\r\n")
    ...         client.recv(100)
    b'+OK\r\n'
    """

    def __init__(
        self,
        store: Store,
        host: str = "127.0.0.1",
        port: int = 6379,
        *,
        password: str | bytes | None = None,
        max_connections: int = 10_000,
        request_timeout_s: float = 60.0,
        idle_timeout_s: float = 0.0,
        backup_dir: str | os.PathLike[str] | None = None,
        group_commit: bool = False,
        limits: Limits = _LIMITS,
    ) -> None:
        if password is not None and not password:
            raise ValueError("the password must not be empty")
        #: Host and port of the first address that is listened on.
        self.address: tuple[str, int] = (host, port)
        self.executor = Executor(store)
        self.group_commit = group_commit
        self.idle_timeout_s = idle_timeout_s
        self.request_timeout_s = request_timeout_s
        self.limits = limits
        self.password_digest = (
            None if password is None else digest_of(password.encode() if isinstance(password, str) else password)
        )
        self.sessions: dict[int, Session] = {}
        self.commands_processed = self.connections_received = self.connections_refused = 0
        self.started_at = time.time()
        self.is_compacting = self.is_backing_up = False
        self.now = time.monotonic()  # looked at once a second: only deadlines need it
        self.ways = [self.executor.straight(resp3, writes=not group_commit) for resp3 in (False, True)]
        self._store = store
        self._host, self._port = host, port
        self._max_connections = max_connections
        self._backup_dir = None if backup_dir is None else os.fspath(backup_dir)
        self._connections: dict[int, _Connection] = {}
        self._open: set[_Connection] = set()  # with those that are refused
        self._number = 0
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self._unflushed: list[_Connection] = []
        self._batch: _Batch = []
        self._is_batching = False
        self._writer: ThreadPoolExecutor | None = None
        self._under_way: set[asyncio.Future[Any]] = set()
        self._is_stopping = False
        self._closing: asyncio.Task[None] | None = None
        self._thread: threading.Thread | None = None

    # --- on an event loop ----------------------------------------------------------------------------

    async def listen(self) -> None:
        """Begin to serve on the running event loop; `ValueError` or `OSError` if the address cannot be had."""
        self.loop = asyncio.get_running_loop()
        self._shares_buffer = not type(self.loop).__name__.startswith("Proactor")
        self._closed = asyncio.Event()
        sockets = listen(self._host, self._port, secret="a password", is_set=self.password_digest is not None)
        self.address = sockets[0].getsockname()[:2]
        self._listeners = [await self.loop.create_server(lambda: _Connection(self), sock=each) for each in sockets]
        self._sweeping = self.loop.call_later(_SWEEP_S, self._sweep)
        logger.info("serving %s at %s", self._store.path, self.url)

    @property
    def url(self) -> str:
        """Return the address as clients take it."""
        host, port = self.address
        return f"redis://[{host}]:{port}" if ":" in host else f"redis://{host}:{port}"

    @property
    def settings(self) -> dict[bytes, bytes]:
        """Return what CONFIG GET tells."""
        return {
            b"appendfsync": b"always" if self.group_commit else b"everysec",
            b"appendonly": b"yes",
            b"bind": self._host.encode(),
            b"databases": b"1",
            b"maxclients": b"%d" % self._max_connections,
            b"maxmemory": b"0",
            b"maxmemory-policy": b"noeviction",
            b"port": b"%d" % self.address[1],
            b"proto-max-bulk-len": b"%d" % self.limits.bulk_bytes,
            b"save": b"",
            b"timeout": b"%d" % self.idle_timeout_s,
        }

    async def close(self) -> None:
        """Stop: listen no more, answer what has been carried out, make it durable; again does nothing.

        A command that has arrived and was not begun is not carried out; its client sees the connection close.
        """
        self.shut_down()
        assert self._closing is not None
        await asyncio.shield(self._closing)

    async def wait_closed(self) -> None:
        """Wait until the server has stopped: by `close`, or because a client sent SHUTDOWN."""
        await self._closed.wait()

    async def __aenter__(self) -> Server:
        await self.listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def shut_down(self) -> None:
        """Begin to stop."""
        if self._closing is None:
            self._closing = self.loop.create_task(self._close())

    async def _close(self) -> None:
        self._is_stopping = True
        self._sweeping.cancel()
        for listener in self._listeners:
            listener.close()
        for connection in list(self._connections.values()):
            connection.stop()
        # 1. what is being carried out is finished and answered, 2. the answers leave, 3. nothing runs any more
        while self._under_way:
            await asyncio.wait(self._under_way)
        patience = self.loop.time() + _GRACE_S
        while self._open and self.loop.time() < patience:
            await asyncio.sleep(0.01)
        for connection in self._open:
            connection.abort()
        if self._writer is not None:
            self._writer.shutdown()
        try:
            if not self._store.closed:
                await self.loop.run_in_executor(None, self._store.sync)
        except BytekvError as error:
            logger.error("the last sync failed: %s", error)
        finally:
            self._closed.set()

    # --- in a thread of its own ----------------------------------------------------------------------

    def start(self) -> None:
        """Begin to serve in a thread; return when clients can connect. Raises what `listen` raises."""
        if self._thread is not None:
            raise RuntimeError("this server was started already")
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run_loop, args=(started,), name="bytekv resp", daemon=True)
        self._thread.start()
        started.result()

    def _run_loop(self, started: Future[None]) -> None:
        async def run() -> None:
            try:
                await self.listen()
            except BaseException as error:
                started.set_exception(error)
                return
            started.set_result(None)
            await self.wait_closed()

        asyncio.run(run())

    def stop(self) -> None:
        """Stop what `start` began, as `close` does, and wait for it; again does nothing."""
        if self._thread is not None:
            with suppress(RuntimeError):  # the loop is closed: a client sent SHUTDOWN
                self.loop.call_soon_threadsafe(self.shut_down)
            self._thread.join()

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --- connections -----------------------------------------------------------------------------------

    def admit(self, connection: _Connection, address: str, local_address: str) -> bytes | None:
        """Give a new connection its session; return what to tell it if there are too many."""
        self.connections_received += 1
        self._open.add(connection)
        if len(self._connections) >= self._max_connections or self._is_stopping:
            self.connections_refused += 1
            return b"-ERR max number of clients reached\r\n"
        self._number += 1
        connection.session = self.sessions[self._number] = Session(self, self._number, address, local_address)
        self._connections[self._number] = connection
        return None

    def forget(self, connection: _Connection) -> None:
        """Take a connection that is gone out of the tables."""
        self._open.discard(connection)
        session = getattr(connection, "session", None)
        if session is not None:
            self.sessions.pop(session.number, None)
            self._connections.pop(session.number, None)

    def flush_soon(self, connection: _Connection) -> None:
        """Send a connection's replies at the end of this turn of the loop.

        As Redis does: what a turn brought is answered together. A client that serves many connections, such as
        redis-benchmark, is woken once for all of them, which made a quarter more operations per second than sending
        each reply at once.
        """
        if not self._unflushed:
            self.loop.call_soon(self._flush)
        self._unflushed.append(connection)

    def _flush(self) -> None:
        connections, self._unflushed = self._unflushed, []
        for connection in connections:
            connection.flush()

    def disconnect(self, session: Session) -> None:
        """Close the connection of a session."""
        self._connections[session.number].close()

    def buffer_for_reading(self) -> memoryview:
        """Return where a connection's bytes go until it has looked at them."""
        # A proactor holds the buffer while it waits; anywhere else it is filled and looked at in one go.
        return self._buffer if self._shares_buffer else memoryview(bytearray(_READ_BYTES))

    def _sweep(self) -> None:
        self.check_deadlines(time.monotonic())
        self._sweeping = self.loop.call_later(_SWEEP_S, self._sweep)

    def check_deadlines(self, now: float) -> None:
        """Close the connections whose clients take too long."""
        self.now = now
        for connection in list(self._connections.values()):
            connection.check_deadlines(now)

    # --- what is done beside the loop ----------------------------------------------------------------

    def add_to_batch(self, connection: _Connection, items: list[Item]) -> None:
        """Have items carried out with the next batch."""
        self._batch.append((connection, items))
        if not self._is_batching:
            self._is_batching = True
            # After what else has arrived in this turn of the loop.
            self._watch(self.loop.create_task(self._carry_out_batches()))

    async def _carry_out_batches(self) -> None:
        running = self._begin_batch()
        while running is not None:
            batch, carried_out = running
            answers = await carried_out
            running = self._begin_batch()  # first, so that the disk works while the answers leave
            for (connection, items), replies in zip(batch, answers, strict=True):
                connection.answered(replies, items[len(replies) :])
            running = running or self._begin_batch()
        self._is_batching = False

    def _begin_batch(self) -> tuple[_Batch, asyncio.Future[list[list[bytes]]]] | None:
        if not self._batch:
            return None
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, "bytekv resp")
        batch, self._batch = self._batch, []
        shares = [(items, connection.session.resp3) for connection, items in batch]
        return batch, self.loop.run_in_executor(self._writer, self.executor.together, shares)

    def do_later(self, connection: _Connection, later: Later) -> None:
        """Make an answer in another thread."""
        self._watch(self.loop.create_task(self._answer_later(connection, later)))

    async def _answer_later(self, connection: _Connection, later: Later) -> None:
        reply: Reply
        try:
            reply = await self.loop.run_in_executor(None, later.make)
        except Exception as error:
            reply = error_of(error)
        connection.answered([encode(reply, connection.session.resp3)], [])

    def compact(self) -> bool:
        """Begin a compaction in the background; False if one is under way."""
        if self.is_compacting:
            return False
        self.is_compacting = True
        work = partial(self._store.compact, progress=self._check_stopping)
        self._in_background("compaction", work, lambda: setattr(self, "is_compacting", False))
        return True

    def backup(self) -> bool:
        """Begin a backup in the background; False if one is under way."""
        if self._backup_dir is None:
            raise ReplyError(b"ERR the server was started without a directory for backups")
        if self.is_backing_up:
            return False
        self.is_backing_up = True
        destination = os.path.join(self._backup_dir, time.strftime("%Y%m%dT%H%M%S", time.gmtime()))
        work = partial(self._store.backup, destination, progress=self._check_stopping)
        self._in_background(f"backup to {destination}", work, lambda: setattr(self, "is_backing_up", False))
        return True

    def _in_background(self, what: str, work: Callable[[], object], end: Callable[[], None]) -> None:
        async def run() -> None:
            try:
                logger.info("%s: %s", what, await self.loop.run_in_executor(None, work))
            except _Stopping:
                logger.info("%s: given up, the server stops", what)
            except BytekvError as error:
                logger.error("%s failed: %s", what, error)
            finally:
                end()

        self._watch(self.loop.create_task(run()))

    def _check_stopping(self, progress: object) -> None:
        if self._is_stopping:
            raise _Stopping

    def _watch(self, task: asyncio.Task[None]) -> None:
        """Keep a task until it is done; `close` waits for it."""
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)


async def serve(
    store: Store,
    host: str = "127.0.0.1",
    port: int = 6379,
    *,
    started: Callable[[str], object] | None = None,
    **options: Any,
) -> None:
    """Serve an open store until a client sends SHUTDOWN or the task is cancelled; then stop as `Server.close` does.

    ``started`` is called with the URL once clients can connect. ``options``: those of `Server`, which also says what is
    raised.
    """
    server = Server(store, host, port, **options)
    await server.listen()
    try:
        if started is not None:
            started(server.url)
        await server.wait_closed()
    finally:
        await server.close()
