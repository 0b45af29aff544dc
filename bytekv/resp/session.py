"""Sessions: the state of one connection, from its password to its transaction.

A `Session` decides what becomes of a command: an answer at once, a place in the queue of MULTI, or an item for the
executor. It holds the state that makes the difference (password shown or not, RESP2 or RESP3, MULTI, WATCH, CLIENT
REPLY) and moves no byte itself. What it has to know of the server around it is the protocol `ServerState`.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from .. import Store
from ..server.sockets import Seldom
from .commands.command import Command, CommandTable
from .errors import error_of
from .protocol import UNTRUSTED, Limits, Reply, ReplyError, encode
from .work import Block, Cursors, Item, Slow, UnitOfWork

__all__ = [
    "REDIS_VERSION",
    "Answer",
    "AtOnceError",
    "Execute",
    "Later",
    "ServerState",
    "Session",
    "SessionCommand",
    "Subcommand",
    "check_name",
    "digest_of",
]

#: The version of Redis whose commands bytekv has; clients choose by it what they send.
REDIS_VERSION: Final = "7.2.0"

_MAX_QUEUE_BYTES: Final = 64 * 1024 * 1024  # of MULTI, with what the commands cost in memory
_MAX_WATCHED_BYTES: Final = 1024 * 1024
_MAX_NAME_BYTES: Final = 1024
_ARGUMENT_COST: Final = 96


class ServerState(Protocol):
    """What a session needs of its server."""

    store: Store
    commands: CommandTable
    cursors: Cursors
    slow: deque[Slow]
    password_digest: bytes | None
    commands_processed: int
    connections_received: int
    connections_refused: int
    started_at: float
    limits: Limits
    seldom: Seldom
    is_compacting: bool
    is_backing_up: bool

    @property
    def sessions(self) -> Mapping[int, Session]:
        """Return the sessions by their numbers."""

    @property
    def settings(self) -> Mapping[bytes, bytes]:
        """Return what CONFIG GET tells."""

    def compact(self) -> bool:
        """Begin a compaction in the background; False if one is under way."""

    def backup(self) -> bool:
        """Begin a backup in the background; False if one is under way."""

    def shut_down(self) -> None:
        """Stop serving soon."""

    def disconnect(self, session: Session) -> None:
        """Close another connection."""


def digest_of(password: bytes) -> bytes:
    """Return what a password is compared by: of one length, so that the comparison tells nothing of it."""
    return hashlib.sha256(password).digest()


@dataclass(frozen=True, slots=True)
class Execute:
    """An item for the executor."""

    item: Item
    writes: bool


@dataclass(frozen=True, slots=True)
class Later:
    """An answer that takes a while and is not to be waited for by others."""

    make: Callable[[], Reply]


#: What becomes of a command: bytes to send (none, if the client wants to hear nothing), or work to be done first.
Answer = bytes | Execute | Later

_NOT_REDIS: Final = frozenset((b"post", b"host:"))


class Session:
    """The state of one connection."""

    def __init__(self, server: ServerState, number: int, address: str, local_address: str) -> None:
        self.server = server
        self.number = number
        self.address = address
        self.local_address = local_address
        self.connected_at = time.time()
        self.library = {b"lib-name": b"", b"lib-ver": b""}
        self.last_command = b""
        #: Set once the connection will be closed, after its last reply.
        self.is_closing = False
        #: Set when it turns out to be no client of Redis: it is not told another word.
        self.is_foreign = False
        #: Whether the answer to the command handled last is not to be sent.
        self.is_silent = False
        self.reset()

    def reset(self) -> None:
        """Forget all that was agreed on."""
        self.is_authenticated = self.server.password_digest is None
        self.resp3 = False
        self.name = b""
        self.watched: dict[bytes, int] = {}  # and the seqs that these keys had
        self._off = False  # CLIENT REPLY OFF
        self._skip_this = self._skip_next = False  # CLIENT REPLY SKIP
        self.end_queue()

    def end_queue(self) -> Block:
        """End what MULTI began, WATCH included; return it."""
        block = Block(getattr(self, "queue", None) or [], self.watched)
        self.queue: list[list[bytes]] | None = None  # since MULTI
        self.is_spoiled = False  # something that was to be queued was wrong
        self.watched = {}
        self._queue_bytes = 0
        return block

    @property
    def is_plain(self) -> bool:
        """Tell whether a command may be carried out without asking `handle` what becomes of it."""
        return self.is_authenticated and self.queue is None and not self._off and not self._skip_next

    @property
    def limits(self) -> Limits:
        """Return what a request may ask for now."""
        return self.server.limits if self.is_authenticated else UNTRUSTED

    # --- what becomes of a command -----------------------------------------------------------------

    def handle(self, arguments: list[bytes]) -> Answer:
        """Decide what becomes of a command."""
        self._skip_this, self._skip_next = self._skip_next, False
        try:
            answer = self._decide(arguments)
        except Exception as error:
            if self.queue is not None and not isinstance(error, AtOnceError):
                self.is_spoiled = True
            answer = encode(error_of(error), self.resp3)
        self.is_silent = self._off or self._skip_this or self._skip_next
        return b"" if self.is_silent and isinstance(answer, bytes) else answer

    def _decide(self, arguments: list[bytes]) -> Answer:
        name = arguments[0].lower()
        self.last_command = name[:64]
        if name in _NOT_REDIS:
            # A browser, or a server that was talked into sending a request here.
            self.close_silently()
            self.is_foreign = True
            return b""
        try:
            found = self.server.commands.find(arguments)
            if not self.is_authenticated and not found.before_password:
                raise ReplyError(b"NOAUTH Authentication required.")
        except ReplyError as error:
            if name != b"exec":
                raise
            self.end_queue()
            reason = error.text.removeprefix(b"ERR ")
            raise ReplyError(b"EXECABORT Transaction discarded because of: %b" % reason) from None
        if self.queue is not None and not found.at_once:
            if found.kind == "session":
                raise ReplyError(b"ERR Command not allowed inside a transaction")
            return self._enqueue(arguments)
        if isinstance(found, SessionCommand):
            reply = found.handler(self, arguments)
            return reply if isinstance(reply, (Execute, Later)) else encode(reply, self.resp3)
        if not found.may_pass:  # UNWATCH, which is a command of its own within a block, too
            self.watched.clear()
        return Execute(arguments, found.kind == "write")

    def _enqueue(self, arguments: list[bytes]) -> bytes:
        assert self.queue is not None
        self._queue_bytes += sum(map(len, arguments)) + _ARGUMENT_COST * (len(arguments) + 1)
        if self._queue_bytes > _MAX_QUEUE_BYTES:
            self.queue.clear()
            raise ReplyError(b"ERR transaction too big: more than %d bytes are queued" % _MAX_QUEUE_BYTES)
        self.queue.append(arguments)
        return b"+QUEUED\r\n"

    def watch(self, keys: list[bytes]) -> None:
        """Remember the seqs that keys have now."""
        work = UnitOfWork(self.server.store, self.server.cursors)
        for key in keys:
            if key not in self.watched:
                self.watched[key] = work.seq(key)
        if sum(map(len, self.watched)) + _ARGUMENT_COST * len(self.watched) > _MAX_WATCHED_BYTES:
            self.watched.clear()
            raise AtOnceError(b"ERR too many keys are watched")

    def set_replies(self, mode: bytes) -> None:
        """Send answers (ON), none from now on (OFF), or none to this command and the next (SKIP)."""
        if mode == b"ON":
            self._off = self._skip_this = False
        elif mode == b"OFF":
            self._off = True
        else:
            self._skip_next = not self._off

    def close_silently(self) -> None:
        """Close the connection without another word."""
        self.is_closing = True
        self.set_replies(b"OFF")

    def authenticate(self, user: bytes, password: bytes) -> None:
        """Let the client in; raise `ReplyError` if the password is wrong."""
        wanted = self.server.password_digest
        right = wanted is None or hmac.compare_digest(digest_of(password), wanted)
        if user != b"default" or not right:
            self.server.seldom.warn("a Redis client has shown a wrong password", self.address)
            raise ReplyError(b"WRONGPASS invalid username-password pair or user is disabled.")
        self.is_authenticated = True

    def rename(self, name: bytes) -> None:
        """Take a name for CLIENT LIST."""
        self.name = check_name(name, b"Client names")

    def describe(self) -> bytes:
        """Return a line of CLIENT LIST."""
        now = time.time()
        return (
            b"id=%d addr=%b laddr=%b name=%b age=%d flags=%b db=0 sub=0 psub=0 ssub=0 multi=%d watch=%d cmd=%b "
            b"user=default resp=%d lib-name=%b lib-ver=%b"
            % (
                self.number,
                self.address.encode(),
                self.local_address.encode(),
                self.name,
                now - self.connected_at,
                b"x" if self.queue is not None else b"N",
                -1 if self.queue is None else len(self.queue),
                len(self.watched),
                self.last_command if self.last_command in self.server.commands else b"NULL",
                3 if self.resp3 else 2,
                self.library[b"lib-name"],
                self.library[b"lib-ver"],
            )
        )


def check_name(name: bytes, what: bytes) -> bytes:
    """Return a name that a client gives; raise `ReplyError` if it would break a line of CLIENT LIST."""
    if len(name) > _MAX_NAME_BYTES or any(not 33 <= char <= 126 for char in name):
        raise ReplyError(b"ERR %b cannot contain spaces, newlines or special characters." % what)
    return name


class AtOnceError(ReplyError):
    """An error of a command that is carried out at once even after MULTI, and does not spoil what is queued."""


# --- commands on a session ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Subcommand:
    """One row below a command; ``arity`` counts both names."""

    arity: int
    syntax: str
    summary: str
    handler: Callable[[Session, list[bytes]], Reply | Later]


@dataclass(frozen=True, slots=True)
class SessionCommand(Command):
    """A command on the connection or the server; ``subcommands`` by their names in lower case."""

    handler: Callable[[Session, list[bytes]], Reply | Later | Execute]
    subcommands: Mapping[bytes, Subcommand] = field(default_factory=dict)
