"""Connections: bytes in, replies out, and a pause while a command has to wait.

Knows asyncio's transports, and of commands only that a `Session` says what becomes of one. What is common to all
connections is the server's, seen from here as `ConnectionHost`.

*Theory of operation.* What has arrived is parsed at once and carried out in order, on the thread of the event loop;
the replies to all that one turn of the loop has brought leave at its end. A pipeline of one command, GET or SET, is a
`CommandRun`, carried out and answered as a whole. A connection stops reading as long as something is in its way: a
client that does not read its replies, a batch or a slow command that it waits for. So it holds at most what one read
brought (`READ_BYTES`), one request that is not all there, and replies of about `WRITE_BYTES`.
"""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Final, Protocol, cast

from .. import Store
from ..server.sockets import Seldom
from .commands.table import COMMANDS
from .errors import error_of
from .executor import Executor, FastPath
from .protocol import UNTRUSTED, CommandRun, Parser, encode, encode_error, parse_run
from .session import Execute, Later, Session
from .work import Item

__all__ = ["AUTHENTICATION_S", "GRACE_S", "READ_BYTES", "WRITE_BYTES", "Connection", "ConnectionHost"]

READ_BYTES: Final = 64 * 1024
WRITE_BYTES: Final = 256 * 1024  # replies that wait for a client; above, it is read from no more
AUTHENTICATION_S: Final = 10.0
GRACE_S: Final = 5.0  # for a client to take what it is still sent when its connection is closed
_STRANGER_COMMANDS: Final = 32  # that a client may send before it has shown the password
_SMALL_REPLY_BYTES: Final = 512  # not counted: as many as fit into a read are a few megabytes
_MAX_SHARE: Final = 1024  # commands that one client has in a batch
_MIN_BYTES_PER_S: Final = 1024  # of a request that takes longer than `request_timeout_s`
_KEEPALIVE_S: Final = 300


class ConnectionHost(Protocol):
    """What a connection needs of its server."""

    loop: asyncio.AbstractEventLoop
    executor: Executor
    store: Store
    fast_paths: list[dict[bytes, FastPath]]  # of commands, in RESP2 and RESP3
    fast_reads: list[dict[bytes, FastPath]]  # those of them that write nothing
    fast_pings: list[dict[bytes, FastPath]]  # those of them that do not touch the store
    now: float
    group_commit: bool
    commands_processed: int
    request_timeout_s: float
    idle_timeout_s: float
    seldom: Seldom

    def note(self, connection: Connection, *, known: bool) -> None:
        """Note whether a client has shown the password."""

    def charge(self, seconds: float) -> None:
        """Charge clients that have not shown the password with time of the processor."""

    def admit(self, connection: Connection, address: str, local_address: str) -> bytes | None:
        """Give a new connection its session; return what to tell it if there are too many."""

    def forget(self, connection: Connection) -> None:
        """Take a connection that is gone out of the tables."""

    def buffer_for_reading(self) -> memoryview:
        """Return where a connection's bytes go until it has looked at them."""

    def flush_soon(self, connection: Connection) -> None:
        """Call `Connection.flush` at the end of this turn of the loop."""

    def add_to_batch(self, connection: Connection, items: list[Item]) -> None:
        """Have items carried out with the next batch, then call `Connection.answered`."""

    def do_later(self, connection: Connection, later: Later) -> None:
        """Make an answer in another thread, then call `Connection.answered`."""


class Connection(asyncio.BufferedProtocol):
    """One client."""

    __slots__ = (
        "_backlog",
        "_fast_paths",
        "_given_bytes",
        "_is_at_eof",
        "_is_cautious",
        "_is_choked",
        "_is_waiting",
        "_left",
        "_parser",
        "_read_bytes",
        "_reads_wait",
        "_server",
        "_strange_commands",
        "_taken_bytes",
        "_transport",
        "_unsent",
        "_untaken_since",
        "_view",
        "_writes_wait",
        "active_at",
        "closing_since",
        "request_since",
        "session",
        "stranger_since",
    )

    session: Session
    _transport: asyncio.Transport
    _parser: Parser

    def __init__(self, server: ConnectionHost) -> None:
        self._server = server
        self._fast_paths: dict[bytes, FastPath] = {}  # that are open now
        self._backlog: list[list[bytes]] = []  # parsed, not carried out
        self._left: list[Item] = []  # were too many for a batch
        self._unsent = b""  # leaves at the end of this turn of the loop
        self._is_cautious = False  # the parser returns one command at a time
        self._is_at_eof = False  # the client sends nothing more
        self._is_choked = False  # the client does not read
        self._is_waiting = False  # for a batch, or for something slow
        self._reads_wait = self._writes_wait = False  # what would hold up the event loop, and goes to a thread
        self._read_bytes = 0  # that arrived last: about what its commands write
        self._given_bytes = self._taken_bytes = 0  # to the transport; by the client when `_untaken_since` began
        self._untaken_since: float | None = None  # when there began to be bytes that the client does not take
        self._strange_commands = 0  # before the password
        self.active_at = self.stranger_since = server.now
        self.closing_since: float | None = None
        self.request_since: float | None = None  # when the request that is not all there began

    # --- what the transport says -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, or refuse."""
        self._transport = cast(asyncio.Transport, transport)
        self._view = self._server.buffer_for_reading()
        refusal = self._server.admit(self, _address(transport, "peername"), _address(transport, "sockname"))
        if refusal is not None:
            self._transport.write(refusal)
            self._transport.close()
            return
        self._parser = Parser(self.session.limits)
        self._is_cautious = self._parser.limits is UNTRUSTED
        self._transport.set_write_buffer_limits(high=WRITE_BYTES)
        _keep_alive(transport.get_extra_info("socket"))
        self._adapt()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Say where to put what arrives."""
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        """Look at what has arrived."""
        if self._is_cautious:
            began = time.thread_time()
            self._look_at(nbytes)
            if not self.session.is_authenticated:
                self._server.charge(time.thread_time() - began)
        else:
            self._look_at(nbytes)

    def _look_at(self, nbytes: int) -> None:
        self.active_at = self._server.now
        self._read_bytes = nbytes
        data = self._view[:nbytes].tobytes()
        run = parse_run(data) if self._takes_runs() else None
        commands = self._parser.feed(data) if run is None else self._carry_out_run(run)
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
        """Note that the client sends nothing more; tell whether the connection stays open for now."""
        self._is_at_eof = True
        self.flush()
        return self._is_waiting or self._is_choked  # who only closed his half still gets what he waits for

    def connection_lost(self, error: Exception | None) -> None:
        """End."""
        self._backlog.clear()
        self._server.forget(self)

    def pause_writing(self) -> None:
        """Stop reading from a client that does not read."""
        self._is_choked = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on: the client has read."""
        self._is_choked = False
        self._server.loop.call_soon(self._go_on)

    # --- commands ----------------------------------------------------------------------------------

    def _run(self, commands: list[list[bytes]]) -> None:
        """Carry out commands until one has to wait; what is left goes into the backlog."""
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
        self._look_at_store()
        add, ways, large, done, takes_long = replies.append, self._fast_paths, 0, 0, False
        waits: Execute | Later | None = None
        for arguments in commands:
            done += 1
            if self._is_cautious and self._is_one_too_many():
                add(encode_error(b"NOAUTH too many commands without the password"))
                session.is_closing, commands = True, []
                break
            way = ways.get(arguments[0])
            try:
                reply = None if way is None else way(arguments)
            except Exception as error:
                reply = encode(error_of(error), False)
            if reply is None:
                answer = session.handle(arguments)
                if isinstance(answer, bytes):
                    reply = answer
                elif isinstance(answer, Later) or self._reads_wait or (answer.writes and self._writes_wait):
                    waits = answer
                    break
                else:
                    reply = server.executor.run_one(answer.item, session.resp3)
                    reply = b"" if session.is_silent else reply
                    takes_long = server.executor.was_slow
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
                if large > WRITE_BYTES:
                    break
            if takes_long:
                break
        server.commands_processed += done
        if replies:
            self._send(b"".join(replies))
            if large > WRITE_BYTES:
                self.flush()  # to know whether the client takes it
        rest = commands[done:]
        if takes_long and not session.is_closing:
            # Others first: a pipeline of slow commands must not keep them waiting for all of it.
            self._is_waiting = True
            server.loop.call_soon(self.answered, [], [])
        return rest if waits is None else self._wait_for(waits, rest)

    def _takes_runs(self) -> bool:
        """Tell whether commands that arrive now may pass by the session: nothing is under way, agreed on or queued."""
        parser = self._parser
        return not (
            parser.is_partial
            or self._is_cautious
            or self._is_waiting
            or self._is_choked
            or parser.error is not None
            or not self.session.is_plain
        )

    def _carry_out_run(self, run: CommandRun) -> list[list[bytes]]:
        """Carry out a run as far as nothing is in the way, and send the replies; return the rest, to be looked at one
        by one."""
        server, store = self._server, self._server.store
        if run.values:
            waits = server.group_commit or store.would_wait(write_bytes=self._read_bytes)
        else:
            waits = store.would_wait()
        if waits:
            return run.commands(0)
        replies, done = server.executor.carry_out_run(run, self.session.resp3, WRITE_BYTES)
        server.commands_processed += done
        if done:
            self._send(b"".join(replies))
            if done < len(run.keys):
                self.flush()  # to know whether the client takes it
        return run.commands(done) if done < len(run.keys) else []

    def _adapt(self) -> dict[bytes, FastPath]:
        """Take account of what the session has become; return the fast paths that are open now."""
        session, parser = self.session, self._parser
        if (parser.limits is UNTRUSTED) == session.is_authenticated:
            parser.limits = session.limits
            self._is_cautious = True
            self._strange_commands = 0
            self.stranger_since = self._server.now
            self._server.note(self, known=session.is_authenticated)
        if not session.is_plain:
            self._fast_paths = {}
        elif self._reads_wait:
            self._fast_paths = self._server.fast_pings[session.resp3]
        elif self._writes_wait:
            self._fast_paths = self._server.fast_reads[session.resp3]
        else:
            self._fast_paths = self._server.fast_paths[session.resp3]
        return self._fast_paths

    def _look_at_store(self) -> None:
        """See whether commands on the store would hold up the event loop now; those that would go to a thread."""
        server = self._server
        writes_wait = server.group_commit or server.store.would_wait(write_bytes=self._read_bytes)
        reads_wait = writes_wait and server.store.would_wait()  # where a write would not wait, nothing does
        if (reads_wait, writes_wait) != (self._reads_wait, self._writes_wait):
            self._reads_wait, self._writes_wait = reads_wait, writes_wait
            self._adapt()

    def _is_one_too_many(self) -> bool:
        """Tell whether a client that has not shown the password has sent more than it needs for that."""
        self._strange_commands += not self.session.is_authenticated
        return self._strange_commands > _STRANGER_COMMANDS

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
            self._given_bytes += len(data)
            self._transport.write(data)

    # --- waiting -----------------------------------------------------------------------------------

    def _wait_for(self, answer: Execute | Later, following: list[list[bytes]]) -> list[list[bytes]]:
        """Have a command carried out elsewhere, and with it those after it that can be; return the rest."""
        self._is_waiting = True
        if isinstance(answer, Later):
            self._server.do_later(self, answer)
            return following
        items: list[Item] = [answer.item]
        if self._adapt() and not self.session.is_silent:  # CLIENT REPLY SKIP is about this one only
            for arguments in following[: _MAX_SHARE - 1]:
                found = COMMANDS.get(arguments[0].lower())
                if found is None or not found.may_pass:
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
        """Go on after a wait, if it is over."""
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
                if self.request_since is not None:
                    self.request_since = self._server.now  # it was not the client who kept the rest

    # --- what the server says ----------------------------------------------------------------------

    def check_deadlines(self, now: float) -> None:
        """Close the connection if the client takes too long: for the password, a request, its replies, or at all."""
        server = self._server
        if self._transport.is_closing():
            self.closing_since = self.closing_since or now
            if now - self.closing_since > GRACE_S:
                self._transport.abort()
        elif self._is_stuck(now):
            server.seldom.warn("a Redis client that does not take its replies was disconnected", self.session.address)
            self._transport.abort()
        elif not self.session.is_authenticated and now - self.stranger_since > AUTHENTICATION_S:
            self.close()
        elif self.request_since is not None and not self._is_choked and not self._is_waiting:
            patience_s = server.request_timeout_s + self._parser.partial_bytes / _MIN_BYTES_PER_S
            if now - self.request_since > patience_s:
                self.close()
        elif server.idle_timeout_s and now - self.active_at > server.idle_timeout_s and not self._is_waiting:
            self.close()

    def _is_stuck(self, now: float) -> bool:
        """Tell whether the client takes its replies too slowly: for too long fewer than some bytes a second."""
        untaken = self._transport.get_write_buffer_size()
        if not untaken:
            self._untaken_since = None
            return False
        taken = self._given_bytes - untaken
        if self._untaken_since is None:
            self._untaken_since, self._taken_bytes = now, taken
        patience_s = self._server.request_timeout_s + (taken - self._taken_bytes) / _MIN_BYTES_PER_S
        return now - self._untaken_since > patience_s

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

    evict = abort


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
