"""The table of commands: name, number of arguments, kind, keys, and who carries it out.

The handlers stand in `strings`, `keys`, `session` and `administration` and enter themselves. One that touches data
gets a `Work` and the arguments, the name of the command first, and returns a reply or raises `ReplyError`; it writes
only after it has looked at everything that may be wrong. Replies and errors are those of Redis 7.0, word for word;
where they are not, the page docs/reference/resp.md says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from ... import Store
from ..protocol import Reply, ReplyError

__all__ = [
    "ALL",
    "COMMANDS",
    "ONE",
    "PAIRS",
    "REFUSED",
    "TWO",
    "Command",
    "Handler",
    "command",
    "find_command",
    "wrong_arity",
]

Kind = Literal["read", "write", "session"]
Handler = Callable[[Any, list[bytes]], Reply]

#: Which arguments are keys: the first, the last, the step between them.
ONE, ALL, PAIRS, TWO = (1, 1, 1), (1, -1, 1), (1, -1, 2), (1, 2, 1)


@dataclass(frozen=True, slots=True)
class Command:
    """One line of the table.

    ``arity`` counts the name, too; negative: at least so many. ``keys``: the first argument that is a key, the last
    (negative: from the end), and the step between them. A "read" or "write" touches data; the rest belongs to the
    "session". ``alone``: a shorter way for a command that is the only one of its unit. ``before_password``: it is
    heard from clients that have not shown the password. ``at_once``: it is not queued between MULTI and EXEC.
    ``for_session``: it changes the session, too, and so never goes past it.
    """

    name: bytes
    arity: int
    kind: Kind
    keys: tuple[int, int, int]
    group: str
    syntax: str
    summary: str
    handler: Handler
    alone: Callable[[Store, list[bytes]], Reply] | None = None
    before_password: bool = False
    at_once: bool = False
    for_session: bool = False

    @property
    def may_pass(self) -> bool:
        """Tell whether an authenticated session outside of MULTI has no business with it."""
        return self.kind != "session" and not self.for_session

    def check(self, arguments: list[bytes]) -> None:
        """Raise `ReplyError` if the number of arguments is wrong."""
        given = len(arguments)
        if given != self.arity and (self.arity > 0 or given < -self.arity):
            raise wrong_arity(self.name)


#: Every command by its name in lower case.
COMMANDS: Final[dict[bytes, Command]] = {}

#: Commands of Redis that bytekv will not have, and why.
REFUSED: Final[dict[bytes, bytes]] = {}


def command(
    names: str,
    arity: int,
    kind: Kind,
    syntax: str,
    summary: str,
    *,
    keys: tuple[int, int, int] = (0, 0, 0),
    group: str = "string",
    alone: Callable[[Store, list[bytes]], Reply] | None = None,
    before_password: bool = False,
    at_once: bool = False,
    for_session: bool = False,
) -> Callable[[Handler], Handler]:
    """Enter a handler into the table under one or more names."""

    def enter(handler: Handler) -> Handler:
        for name in names.encode().split():
            COMMANDS[name] = Command(
                name,
                arity,
                kind,
                keys,
                group,
                syntax,
                summary,
                handler,
                alone,
                before_password,
                at_once,
                for_session,
            )
        return handler

    return enter


def find_command(arguments: list[bytes]) -> Command:
    """Return the command that arguments call, their number checked; raise `ReplyError` as Redis does."""
    found = COMMANDS.get(arguments[0].lower())
    if found is None:
        raise _unknown(arguments)
    found.check(arguments)
    return found


def _unknown(arguments: list[bytes]) -> ReplyError:
    name = arguments[0][:128]
    reason = REFUSED.get(arguments[0].lower())
    if reason is not None:
        return ReplyError(b"ERR unknown command '%b': bytekv has no %b" % (name, reason))
    shown = b""
    for argument in arguments[1:]:
        if len(shown) >= 128:
            break
        shown += b"'%b' " % argument[: 128 - len(shown)]
    return ReplyError(b"ERR unknown command '%b', with args beginning with: %b" % (name, shown))


def wrong_arity(name: bytes) -> ReplyError:
    """Return the error for a wrong number of arguments."""
    return ReplyError(b"ERR wrong number of arguments for '%b' command" % name)


def _refuse(reason: str, names: str) -> None:
    REFUSED.update(dict.fromkeys(names.encode().split(), reason.encode()))


_refuse(
    "lists",
    "lpush rpush lpop rpop llen lrange lindex linsert lset lrem ltrim lpos lmove lmpop lpushx rpushx rpoplpush "
    "blpop brpop blmove blmpop brpoplpush",
)
_refuse(
    "sets",
    "sadd srem smembers sismember smismember scard spop srandmember smove sinter sinterstore sintercard sunion "
    "sunionstore sdiff sdiffstore sscan",
)
_refuse(
    "sorted sets",
    "zadd zrem zcard zcount zscore zmscore zincrby zrange zrangestore zrangebyscore zrevrangebyscore zrangebylex "
    "zrevrangebylex zrevrange zrank zrevrank zlexcount zpopmin zpopmax bzpopmin bzpopmax zmpop bzmpop zrandmember "
    "zremrangebyrank zremrangebyscore zremrangebylex zunion zunionstore zinter zinterstore zintercard zdiff zdiffstore "
    "zscan geoadd geodist geohash geopos georadius georadiusbymember geosearch geosearchstore",
)
_refuse(
    "hashes",
    "hset hget hmset hmget hgetall hdel hexists hincrby hincrbyfloat hkeys hlen hsetnx hstrlen hvals hrandfield hscan",
)
_refuse(
    "streams",
    "xadd xread xreadgroup xrange xrevrange xlen xdel xtrim xack xclaim xautoclaim xgroup xinfo xpending xsetid",
)
_refuse("HyperLogLogs", "pfadd pfcount pfmerge pfdebug pfselftest")
_refuse("bit operations", "setbit getbit bitcount bitpos bitop bitfield bitfield_ro")
_refuse("scripts", "eval eval_ro evalsha evalsha_ro script fcall fcall_ro")
_refuse(
    "publish and subscribe",
    "subscribe unsubscribe psubscribe punsubscribe publish pubsub ssubscribe sunsubscribe spublish",
)
_refuse(
    "replication and no cluster",
    "replicaof slaveof sync psync replconf role wait failover cluster readonly readwrite asking migrate",
)
_refuse("sorting", "sort sort_ro")
_refuse("Redis dumps", "dump restore restore-asking")
_refuse("databases to swap or move between", "swapdb move")
_refuse("users besides the default one", "acl")
_refuse("modules", "module")
_refuse("monitor, debugging or latency reports", "monitor debug latency object lolwut")
_refuse("save that blocks; use BGSAVE", "save lastsave")
