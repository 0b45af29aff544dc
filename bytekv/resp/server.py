"""The RESP server: listening sockets, connections, batches, deadlines, a graceful stop.

With ``group_commit`` a command that writes, with what follows it, waits for a batch: all that waits when a batch begins
is carried out by one thread in one transaction, which is one sync, and then the replies leave. Meanwhile the loop goes
on, and what arrives gathers for the next batch.

The server never closes the store; its caller does.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Final, TypedDict, Unpack

from .. import BytekvError, Store
from ..server.sockets import Places, Seldom, accepting, listen
from .commands.table import COMMANDS
from .connection import GRACE_S, READ_BYTES, Connection
from .errors import error_of
from .executor import Executor
from .protocol import Limits, Reply, ReplyError, encode
from .session import Later, Session, digest_of
from .work import Item

__all__ = ["Server", "serve"]

logger = logging.getLogger("bytekv")

_SWEEP_S: Final = 1.0
_LIMITS: Final = Limits()


class _Stopping(Exception):
    """Ends a compaction or a backup because the server stops."""


_Waiting = list[tuple[Connection, list[Item]]]  # connections, and what they wait for


class ServerOptions(TypedDict, total=False):
    """The options of a `Server`, for type checkers; its docstring says what they mean."""

    password: str | bytes | None
    max_connections: int
    request_timeout_s: float
    idle_timeout_s: float
    backup_dir: str | os.PathLike[str] | None
    group_commit: bool | None
    limits: Limits


class Server:
    r"""Serve an open store to Redis clients: from a thread of its own (`start`, `stop`) or on an event loop.

    On an event loop it is `listen` and `close`, or ``async with``. It does not close the store.

    ``port``: 0 for a free one; `address` tells which. ``password``: what clients have to show, needed for an address
    that is not loopback. ``max_connections`` are served at once, or as many as the process has descriptors for beside
    the store's files. ``request_timeout_s``: seconds for a request to arrive, and for a client to take its replies,
    plus one for each KiB. ``idle_timeout_s``: seconds after which a client that sends nothing is disconnected;
    0: never. ``backup_dir``: where BGSAVE puts backups, each in a directory of its own; None: it is refused.
    ``group_commit``: let the writes that arrive together share one sync, beside the event loop; None: if the store was
    opened with ``sync="always"``. ``limits``: what one request may ask for.

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
        group_commit: bool | None = None,
        limits: Limits = _LIMITS,
    ) -> None:
        if password is not None and not password:
            raise ValueError("the password must not be empty")
        #: ConnectionHost and port of the first address that is listened on.
        self.address: tuple[str, int] = (host, port)
        self.executor = Executor(store)
        self.store, self.commands = store, COMMANDS
        self.cursors, self.slow = self.executor.cursors, self.executor.slow
        self.group_commit = store.options.sync == "always" if group_commit is None else group_commit
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
        self.fast_reads = [self.executor.fast_paths(resp3, writes=False) for resp3 in (False, True)]
        self.fast_pings = [{name: each[name] for name in (b"PING", b"ping")} for each in self.fast_reads]
        self.fast_paths = [self.executor.fast_paths(resp3, writes=not self.group_commit) for resp3 in (False, True)]
        self._host, self._port = host, port
        #: Warnings that clients cause.
        self.seldom = Seldom(logger)
        self._places = Places(max_connections, guarded=self.password_digest is not None)
        self._backup_dir = None if backup_dir is None else os.fspath(backup_dir)
        self._connections: dict[int, Connection] = {}
        self._open: set[Connection] = set()  # with those that are refused
        self._number = 0
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._unflushed: list[Connection] = []
        self._batch: _Waiting = []
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
        self._places.open()
        self._listeners = sockets
        self._accepting = [
            self.loop.create_task(accepting(each, lambda: Connection(self), self._places, self.seldom))
            for each in sockets
        ]
        self._sweeping = self.loop.call_later(_SWEEP_S, self._sweep)
        logger.info("serving %s at %s", self.store.path, self.url)

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
            b"maxclients": b"%d" % self._places.most,
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
        for accepting_ in self._accepting:
            accepting_.cancel()
        for connection in list(self._connections.values()):
            connection.stop()
        await asyncio.gather(*self._accepting, return_exceptions=True)  # after the others, who must begin nothing more
        for listener in self._listeners:
            listener.close()
        self._places.close()
        # 1. what is being carried out is finished and answered, 2. the answers leave, 3. nothing runs any more
        while self._under_way:
            await asyncio.wait(self._under_way)
        patience = self.loop.time() + GRACE_S
        while self._open and self.loop.time() < patience:
            await asyncio.sleep(0.01)
        for connection in self._open:
            connection.abort()
        if self._writer is not None:
            self._writer.shutdown()
        try:
            if not self.store.closed:
                await self.loop.run_in_executor(None, self.store.sync)
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

    def admit(self, connection: Connection, address: str, local_address: str) -> bytes | None:
        """Give a new connection its session; return what to tell it if there are too many."""
        self.connections_received += 1
        self._open.add(connection)
        if self._is_stopping or not self._places.admit(connection):
            self.connections_refused += 1
            self.seldom.warn("a Redis client was refused: there are too many", address)
            return b"-ERR max number of clients reached\r\n"
        self._number += 1
        connection.session = self.sessions[self._number] = Session(self, self._number, address, local_address)
        self._connections[self._number] = connection
        return None

    def forget(self, connection: Connection) -> None:
        """Take a connection that is gone out of the tables."""
        self._open.discard(connection)
        self._places.leave(connection)
        session = getattr(connection, "session", None)
        if session is not None:
            self.sessions.pop(session.number, None)
            self._connections.pop(session.number, None)

    def note(self, connection: Connection, *, known: bool) -> None:
        """Note whether a client has shown the password."""
        self._places.note(connection, known=known)

    def charge(self, seconds: float) -> None:
        """Charge clients that have not shown the password with time of the processor."""
        self._places.charge(seconds)

    def flush_soon(self, connection: Connection) -> None:
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
        return self._buffer if self._shares_buffer else memoryview(bytearray(READ_BYTES))

    def _sweep(self) -> None:
        self.check_deadlines(time.monotonic())
        self._sweeping = self.loop.call_later(_SWEEP_S, self._sweep)

    def check_deadlines(self, now: float) -> None:
        """Close the connections whose clients take too long."""
        self.now = now
        for connection in list(self._connections.values()):
            connection.check_deadlines(now)

    # --- what is done beside the loop ----------------------------------------------------------------

    def add_to_batch(self, connection: Connection, items: list[Item]) -> None:
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

    def _begin_batch(self) -> tuple[_Waiting, asyncio.Future[list[list[bytes]]]] | None:
        if not self._batch:
            return None
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, "bytekv resp")
        batch, self._batch = self._batch, []
        shares = [(items, connection.session.resp3) for connection, items in batch]
        return batch, self.loop.run_in_executor(self._writer, self.executor.run_many, shares)

    def do_later(self, connection: Connection, later: Later) -> None:
        """Make an answer in another thread."""
        self._watch(self.loop.create_task(self._answer_later(connection, later)))

    async def _answer_later(self, connection: Connection, later: Later) -> None:
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
        work = partial(self.store.compact, progress=self._check_stopping)
        self._in_background("compaction", work, lambda: setattr(self, "is_compacting", False))
        return True

    def backup(self) -> bool:
        """Begin a backup in the background; False if one is under way."""
        if self._backup_dir is None:
            raise ReplyError(b"ERR the server was started without a directory for backups (backup_dir, --backup-dir)")
        if self.is_backing_up:
            return False
        self.is_backing_up = True
        destination = os.path.join(self._backup_dir, time.strftime("%Y%m%dT%H%M%S", time.gmtime()))
        work = partial(self.store.backup, destination, progress=self._check_stopping)
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
    **options: Unpack[ServerOptions],
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
