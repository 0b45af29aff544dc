"""The commands on a connection: HELLO, AUTH, MULTI, WATCH and their like."""

from __future__ import annotations

import time
from typing import Final

from ..arguments import integer_of, syntax_error, word
from ..protocol import OK, Reply, ReplyError, Simple, integer
from ..session import REDIS_VERSION, AtOnceError, Execute, Session
from ..work import UnitOfWork
from .command import wrong_arity


def hello(session: Session, arguments: list[bytes]) -> Reply:
    resp3, name, user = session.resp3, None, None
    rest = iter(arguments[1:])
    version = next(rest, None)
    if version is not None:
        number = integer(version)
        if number is None:
            raise ReplyError(b"ERR Protocol version is not an integer or out of range")
        if number not in (2, 3):
            raise ReplyError(b"NOPROTO unsupported protocol version")
        resp3 = number == 3
    for option in rest:
        values = [next(rest, None) for _ in range(_HELLO_OPTIONS.get(word(option), 0))]
        if not values or None in values:
            raise ReplyError(b"ERR Syntax error in HELLO option '%b'" % option)
        if word(option) == b"AUTH":
            user = values
        else:
            name = values[0]
    if user is not None:
        session.authenticate(user[0] or b"", user[1] or b"")
    if not session.is_authenticated:
        raise ReplyError(
            b"NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH "
            b"<user> <pass> option can be used to authenticate the client and select the RESP protocol version at the "
            b"same time"
        )
    if name is not None:
        session.rename(name)
    session.resp3 = resp3
    return {
        b"server": b"redis",
        b"version": REDIS_VERSION.encode(),
        b"proto": 3 if resp3 else 2,
        b"id": session.number,
        b"mode": b"standalone",
        b"role": b"master",
        b"modules": [],
    }


_HELLO_OPTIONS: Final = {b"AUTH": 2, b"SETNAME": 1}


def auth(session: Session, arguments: list[bytes]) -> Reply:
    if len(arguments) > 3:
        raise syntax_error()
    if len(arguments) == 2 and session.server.password_digest is None:
        raise ReplyError(
            b"ERR AUTH <password> called without any password configured for the default user. Are you sure your "
            b"configuration is correct?"
        )
    session.authenticate(arguments[1] if len(arguments) == 3 else b"default", arguments[-1])
    return OK


def quit(session: Session, arguments: list[bytes]) -> Reply:
    session.is_closing = True
    return OK


def reset(session: Session, arguments: list[bytes]) -> Reply:
    session.reset()
    return Simple(b"RESET")


def ping(work: UnitOfWork, arguments: list[bytes]) -> Reply:
    if len(arguments) > 2:
        raise wrong_arity(b"ping")
    return arguments[1] if len(arguments) == 2 else Simple(b"PONG")


def echo(work: UnitOfWork, arguments: list[bytes]) -> Reply:
    return arguments[1]


def select(work: UnitOfWork, arguments: list[bytes]) -> Reply:
    if integer_of(arguments[1]) != 0:
        raise ReplyError(b"ERR DB index is out of range")
    return OK


def time_(work: UnitOfWork, arguments: list[bytes]) -> Reply:
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    return [b"%d" % seconds, b"%d" % (nanoseconds // 1000)]


# --- MULTI -------------------------------------------------------------------------------------


def multi(session: Session, arguments: list[bytes]) -> Reply:
    if session.queue is not None:
        raise AtOnceError(b"ERR MULTI calls can not be nested")
    session.queue = []
    return OK


def exec_(session: Session, arguments: list[bytes]) -> Reply | Execute:
    if session.queue is None:
        raise ReplyError(b"ERR EXEC without MULTI")
    is_spoiled, block = session.is_spoiled, session.end_queue()
    if is_spoiled:
        raise ReplyError(b"EXECABORT Transaction discarded because of previous errors.")
    return Execute(block, writes=True)


def discard(session: Session, arguments: list[bytes]) -> Reply:
    if session.queue is None:
        raise ReplyError(b"ERR DISCARD without MULTI")
    session.end_queue()
    return OK


def watch(session: Session, arguments: list[bytes]) -> Reply:
    if session.queue is not None:
        raise AtOnceError(b"ERR WATCH inside MULTI is not allowed")
    session.watch(arguments[1:])
    return OK


def unwatch(work: UnitOfWork, arguments: list[bytes]) -> Reply:
    return OK  # what there is to forget is the session's
