"""The table of commands, and what each one that touches data does.

A handler gets a `Work` and the arguments, the name of the command first, and returns a reply or raises `ReplyError`;
it writes only after it has looked at everything that may be wrong. The commands about connections and the server
enter the same table from `session`. Replies and errors are those of Redis 7.0, word for word; where they are not, the
page docs/reference/resp.md says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from random import randbytes
from typing import Any, Final, Literal

from .. import Store
from .arguments import Pattern, add_floats, integer_of, milliseconds_of, word
from .protocol import OK, Limits, Reply, ReplyError, Simple, integer
from .work import Found, Work

__all__ = ["COMMANDS", "REFUSED", "Command", "Handler", "command", "find_command"]

Kind = Literal["read", "write", "session"]
Handler = Callable[[Any, list[bytes]], Reply]

_MAX_VALUE_BYTES: Final = Limits().bulk_bytes
_MAX_INTEGER: Final = (1 << 63) - 1

# --- the table ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Command:
    """One line of the table.

    ``arity`` counts the name, too; negative: at least so many. ``keys``: the first argument that is a key, the last
    (negative: from the end), and the step between them. A "read" or "write" touches data; the rest belongs to the
    "session". ``alone``: a shorter way for a command that is the only one of its unit.
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
) -> Callable[[Handler], Handler]:
    """Enter a handler into the table under one or more names."""

    def enter(handler: Handler) -> Handler:
        for name in names.encode().split():
            COMMANDS[name] = Command(name, arity, kind, keys, group, syntax, summary, handler, alone)
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


def syntax_error() -> ReplyError:
    """Return the error for options that do not go together, or do not exist."""
    return ReplyError(b"ERR syntax error")


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


# --- strings -----------------------------------------------------------------------------------

_ONE = (1, 1, 1)
_ALL = (1, -1, 1)
_PAIRS = (1, -1, 2)
_TWO = (1, 2, 1)

_TIMES: Final = {b"EX": (1000, True), b"PX": (1, True), b"EXAT": (1000, False), b"PXAT": (1, False)}


class _Options:
    """The options of SET and GETEX: a time, or one of the flags that stand for none."""

    def __init__(self, arguments: list[bytes], allowed: frozenset[bytes], name: bytes) -> None:
        self.flags: set[bytes] = set()
        self.equals: bytes | None = None
        self._time: tuple[bytes, bytes] | None = None
        self._name = name
        rest = iter(arguments)
        for argument in rest:
            option = word(argument)
            if option in _TIMES or (option == b"IFEQ" and option in allowed):
                value = next(rest, None)
                if value is None:
                    raise syntax_error()
                if option == b"IFEQ":
                    self.equals = value
                elif self._time is not None and self._time[0] != option:
                    raise syntax_error()
                else:
                    self._time = option, value
            elif option in allowed:
                self.flags.add(option)
            else:
                raise syntax_error()
        conditions = len(self.flags & {b"NX", b"XX"}) + (self.equals is not None)
        expiries = len(self.flags & {b"KEEPTTL", b"PERSIST"}) + (self._time is not None)
        if conditions > 1 or expiries > 1:
            raise syntax_error()

    def expires_ms(self, work: Work) -> int:
        """Return the time that was given, 0 if there was none."""
        if self._time is None:
            return 0
        option, value = self._time
        unit_ms, relative = _TIMES[option]
        return milliseconds_of(value, unit_ms, work.now_ms if relative else 0, self._name)


@command("get", 2, "read", "key", "Return a value.", keys=_ONE)
def _get(work: Work, arguments: list[bytes]) -> Reply:
    return work.value(arguments[1])


_SET_OPTIONS: Final = frozenset((b"NX", b"XX", b"GET", b"KEEPTTL", b"IFEQ"))


@command(
    "set",
    -3,
    "write",
    "key value [NX | XX | IFEQ value] [GET] [EX seconds | PX milliseconds | EXAT time | PXAT time | KEEPTTL]",
    "Store a value, if it does not exist (NX), exists (XX) or has a certain value (IFEQ).",
    keys=_ONE,
)
def _set(work: Work, arguments: list[bytes]) -> Reply:
    _, key, value, *rest = arguments
    options = _Options(rest, _SET_OPTIONS, b"set")
    expires_ms = options.expires_ms(work)
    found = work.find(key) if options.flags or options.equals is not None else None
    old: Reply = None if found is None else found.value
    wanted = found is None if b"NX" in options.flags else found is not None or b"XX" not in options.flags
    if options.equals is not None:
        wanted = old == options.equals
    if wanted:
        if b"KEEPTTL" in options.flags and found is not None:
            expires_ms = found.expires_ms
        work.put(key, value, expires_ms)
    return old if b"GET" in options.flags else OK if wanted else None


@command("setnx", 3, "write", "key value", "Store a value if the key does not exist.", keys=_ONE)
def _setnx(work: Work, arguments: list[bytes]) -> Reply:
    if work.exists(arguments[1]):
        return 0
    work.put(arguments[1], arguments[2])
    return 1


@command("setex", 4, "write", "key seconds value", "Store a value for some seconds.", keys=_ONE)
@command("psetex", 4, "write", "key milliseconds value", "Store a value for some milliseconds.", keys=_ONE)
def _setex(work: Work, arguments: list[bytes]) -> Reply:
    name, key, given, value = arguments
    name = name.lower()
    work.put(key, value, milliseconds_of(given, 1 if name == b"psetex" else 1000, work.now_ms, name))
    return OK


@command("getset", 3, "write", "key value", "Store a value and return the one before.", keys=_ONE)
def _getset(work: Work, arguments: list[bytes]) -> Reply:
    old = work.value(arguments[1])
    work.put(arguments[1], arguments[2])
    return old


@command("getdel", 2, "write", "key", "Return a value and delete the key.", keys=_ONE)
def _getdel(work: Work, arguments: list[bytes]) -> Reply:
    old = work.value(arguments[1])
    if old is not None:
        work.delete(arguments[1])
    return old


@command(
    "getex",
    -2,
    "write",
    "key [EX seconds | PX milliseconds | EXAT time | PXAT time | PERSIST]",
    "Return a value and change when it expires.",
    keys=_ONE,
)
def _getex(work: Work, arguments: list[bytes]) -> Reply:
    _, key, *rest = arguments
    options = _Options(rest, frozenset((b"PERSIST",)), b"getex")
    found = work.find(key)
    if found is None:
        return None
    expires_ms = options.expires_ms(work)
    if expires_ms or (b"PERSIST" in options.flags and found.expires_ms):
        work.put(key, found.value, expires_ms)
    return found.value


@command("mget", -2, "read", "key [key ...]", "Return several values.", keys=_ALL)
def _mget(work: Work, arguments: list[bytes]) -> Reply:
    return [work.value(key) for key in arguments[1:]]


@command("mset", -3, "write", "key value [key value ...]", "Store several values, all or nothing.", keys=_PAIRS)
@command(
    "msetnx",
    -3,
    "write",
    "key value [key value ...]",
    "Store several values if none of the keys exists.",
    keys=_PAIRS,
)
def _mset(work: Work, arguments: list[bytes]) -> Reply:
    name = arguments[0].lower()
    if len(arguments) % 2 == 0:
        raise wrong_arity(name)
    keys = arguments[1::2]
    if name == b"msetnx" and any(work.exists(key) for key in keys):
        return 0
    for key in keys:
        work.check_key(key)
    for key, value in zip(keys, arguments[2::2], strict=True):
        work.put(key, value)
    return 1 if name == b"msetnx" else OK


@command("strlen", 2, "read", "key", "Return the length of a value.", keys=_ONE)
def _strlen(work: Work, arguments: list[bytes]) -> Reply:
    return len(work.value(arguments[1]) or b"")


@command("append", 3, "write", "key value", "Append to a value and return its length.", keys=_ONE)
def _append(work: Work, arguments: list[bytes]) -> Reply:
    found = work.find(arguments[1])
    old, expires_ms, _ = found or Found(b"")
    return _put_long(work, arguments[1], len(old) + len(arguments[2]), lambda: old + arguments[2], expires_ms)


@command("getrange substr", 4, "read", "key start end", "Return a part of a value, both ends included.", keys=_ONE)
def _getrange(work: Work, arguments: list[bytes]) -> Reply:
    start, end = integer_of(arguments[2]), integer_of(arguments[3])
    value = work.value(arguments[1]) or b""
    if start < 0 and end < 0 and start > end:
        return b""
    start = max(0, start + len(value) if start < 0 else start)
    end = max(0, end + len(value) if end < 0 else end)
    return value[start : end + 1]


@command("setrange", 4, "write", "key offset value", "Overwrite a part of a value and return its length.", keys=_ONE)
def _setrange(work: Work, arguments: list[bytes]) -> Reply:
    _, key, given, part = arguments
    offset = integer_of(given)
    if offset < 0:
        raise ReplyError(b"ERR offset is out of range")
    old, expires_ms, _ = work.find(key) or Found(b"")
    if not part:
        return len(old)
    length = max(len(old), offset + len(part))
    make = lambda: old[:offset].ljust(offset, b"\0") + part + old[offset + len(part) :]  # noqa: E731
    return _put_long(work, key, length, make, expires_ms)


def _put_long(work: Work, key: bytes, length: int, make: Callable[[], bytes], expires_ms: int) -> int:
    if length > _MAX_VALUE_BYTES:
        raise ReplyError(b"ERR string exceeds maximum allowed size (proto-max-bulk-len)")
    work.put(key, make(), expires_ms)
    return length


@command("incr", 2, "write", "key", "Add 1 to a number.", keys=_ONE)
@command("decr", 2, "write", "key", "Subtract 1 from a number.", keys=_ONE)
def _incr(work: Work, arguments: list[bytes]) -> Reply:
    return _add(work, arguments[1], 1 if arguments[0].lower() == b"incr" else -1)


@command("incrby", 3, "write", "key amount", "Add to a number.", keys=_ONE)
@command("decrby", 3, "write", "key amount", "Subtract from a number.", keys=_ONE)
def _incrby(work: Work, arguments: list[bytes]) -> Reply:
    amount = integer_of(arguments[2])
    if arguments[0].lower() == b"incrby":
        return _add(work, arguments[1], amount)
    if amount == -_MAX_INTEGER - 1:
        raise ReplyError(b"ERR decrement would overflow")
    return _add(work, arguments[1], -amount)


def _add(work: Work, key: bytes, amount: int) -> int:
    old, expires_ms, _ = work.find(key) or Found(b"0")
    total = integer_of(old) + amount
    if not -_MAX_INTEGER - 1 <= total <= _MAX_INTEGER:
        raise ReplyError(b"ERR increment or decrement would overflow")
    work.put(key, b"%d" % total, expires_ms)
    return total


@command("incrbyfloat", 3, "write", "key amount", "Add to a number with a fraction.", keys=_ONE)
def _incrbyfloat(work: Work, arguments: list[bytes]) -> Reply:
    old, expires_ms, _ = work.find(arguments[1]) or Found(b"0")
    total = add_floats(old, arguments[2])
    work.put(arguments[1], total, expires_ms)
    return total


@command(
    "delex",
    -2,
    "write",
    "key [IFEQ value | IFNE value]",
    "Delete a key if it has, or has not, a certain value: how a lock is released.",
    keys=_ONE,
    group="generic",
)
def _delex(work: Work, arguments: list[bytes]) -> Reply:
    if len(arguments) == 2:
        return int(work.delete(arguments[1]))
    if len(arguments) != 4 or word(arguments[2]) not in (b"IFEQ", b"IFNE"):
        raise syntax_error()
    value = work.value(arguments[1])
    if value is None or (value == arguments[3]) != (word(arguments[2]) == b"IFEQ"):
        return 0
    return int(work.delete(arguments[1]))


# --- keys --------------------------------------------------------------------------------------


@command("del unlink delete", -2, "write", "key [key ...]", "Delete keys and count them.", keys=_ALL, group="generic")
def _del(work: Work, arguments: list[bytes]) -> Reply:
    return sum(work.delete(key) for key in arguments[1:])


@command("exists touch", -2, "read", "key [key ...]", "Count those that exist.", keys=_ALL, group="generic")
def _exists(work: Work, arguments: list[bytes]) -> Reply:
    return sum(work.exists(key) for key in arguments[1:])


@command("type", 2, "read", "key", "Say string, or none.", keys=_ONE, group="generic")
def _type(work: Work, arguments: list[bytes]) -> Reply:
    return Simple(b"string" if work.exists(arguments[1]) else b"none")


@command("rename", 3, "write", "key newkey", "Give a value another key.", keys=_TWO, group="generic")
@command("renamenx", 3, "write", "key newkey", "The same, if the other key is free.", keys=_TWO, group="generic")
def _rename(work: Work, arguments: list[bytes]) -> Reply:
    name, key, other = arguments
    careful = name.lower() == b"renamenx"
    found = work.find(key)
    if found is None:
        raise ReplyError(b"ERR no such key")
    if careful and work.exists(other):
        return 0
    if key != other:
        work.put(other, found.value, found.expires_ms)
        work.delete(key)
    return 1 if careful else OK


@command("copy", -3, "write", "source destination [DB 0] [REPLACE]", "Copy a value.", keys=_TWO, group="generic")
def _copy(work: Work, arguments: list[bytes]) -> Reply:
    _, source, destination, *rest = arguments
    replace = False
    options = iter(rest)
    for option in options:
        if word(option) == b"REPLACE":
            replace = True
        elif word(option) == b"DB" and (database := next(options, None)) is not None:
            if integer_of(database) != 0:
                raise ReplyError(b"ERR DB index is out of range")
        else:
            raise syntax_error()
    if source == destination:
        raise ReplyError(b"ERR source and destination objects are the same")
    found = work.find(source)
    if found is None or (work.exists(destination) and not replace):
        return 0
    work.put(destination, found.value, found.expires_ms)
    return 1


@command("randomkey", 1, "read", "", "Return some key.", group="generic")
def _randomkey(work: Work, arguments: list[bytes]) -> Reply:
    first, last = next(work.keys(limit=1), None), next(work.keys(limit=1, reverse=True), None)
    if first is None or last is None:
        return None
    # The first key after a random place between both ends: cheap, and not all keys are equally likely.
    common = 0
    while common < min(len(first), len(last)) and first[common] == last[common]:
        common += 1
    place = first[:common] + randbytes(4)
    return next(work.keys(start=place, limit=1), None) or next(work.keys(stop=place, reverse=True, limit=1), first)


@command("keys", 2, "read", "pattern", "List the keys that match a pattern.", group="generic")
def _keys(work: Work, arguments: list[bytes]) -> Reply:
    pattern = Pattern(arguments[1])
    return [key for key in work.keys(pattern.prefix) if pattern.matches(key)]


@command(
    "scan",
    -2,
    "read",
    "cursor [MATCH pattern] [COUNT count] [TYPE type]",
    "List keys bit by bit: in order, beginning with cursor 0, until the cursor that comes back is 0.",
    group="generic",
)
def _scan(work: Work, arguments: list[bytes]) -> Reply:
    cursor = integer(arguments[1]) if len(arguments[1]) < 20 else None
    if cursor is None or cursor < 0:
        raise ReplyError(b"ERR invalid cursor")
    pattern, count, wanted = Pattern(b"*"), 10, True
    options = iter(arguments[2:])
    for option in options:
        value = next(options, None)
        if value is None or word(option) not in (b"MATCH", b"COUNT", b"TYPE"):
            raise syntax_error()
        if word(option) == b"MATCH":
            pattern = Pattern(value)
        elif word(option) == b"COUNT":
            count = integer_of(value)
            if count < 1:
                raise syntax_error()
        else:
            wanted = value.lower() == b"string"
    after = None
    if cursor and (after := work.cursors.key(cursor)) is None:
        raise ReplyError(b"ERR unknown cursor; too many scans are under way, or the server was restarted")
    keys = list(work.keys(pattern.prefix, after, include_start=False, limit=count))
    following = work.cursors.add(keys[-1]) if len(keys) == count else 0
    return [b"%d" % following, [key for key in keys if pattern.matches(key)] if wanted else []]


@command("dbsize", 1, "read", "", "Count the keys.", group="server")
def _dbsize(work: Work, arguments: list[bytes]) -> Reply:
    return len(work)


def _flush_store(store: Store, arguments: list[bytes]) -> Reply:
    _check_flush(arguments)
    store.clear()
    return OK


@command("flushdb flushall", -1, "write", "[ASYNC | SYNC]", "Delete every key.", group="server", alone=_flush_store)
def _flush(work: Work, arguments: list[bytes]) -> Reply:
    _check_flush(arguments)
    work.clear()
    return OK


def _check_flush(arguments: list[bytes]) -> None:
    if len(arguments) > 2 or (len(arguments) == 2 and word(arguments[1]) not in (b"ASYNC", b"SYNC")):
        raise syntax_error()


# --- expiry ------------------------------------------------------------------------------------

_EXPIRE: Final = {
    b"expire": (1000, True),
    b"pexpire": (1, True),
    b"expireat": (1000, False),
    b"pexpireat": (1, False),
}


@command(
    "expire",
    -3,
    "write",
    "key seconds [NX | XX | GT | LT]",
    "Let a key go in so many seconds.",
    keys=_ONE,
    group="generic",
)
@command(
    "pexpire",
    -3,
    "write",
    "key milliseconds [NX | XX | GT | LT]",
    "The same in milliseconds.",
    keys=_ONE,
    group="generic",
)
@command(
    "expireat",
    -3,
    "write",
    "key time [NX | XX | GT | LT]",
    "Let a key go at a time, in seconds since 1970.",
    keys=_ONE,
    group="generic",
)
@command(
    "pexpireat",
    -3,
    "write",
    "key time [NX | XX | GT | LT]",
    "The same in milliseconds since 1970.",
    keys=_ONE,
    group="generic",
)
def _expire(work: Work, arguments: list[bytes]) -> Reply:
    name, key, given, *rest = arguments
    name = name.lower()
    conditions = _conditions(rest)
    unit_ms, relative = _EXPIRE[name]
    expires_ms = milliseconds_of(given, unit_ms, work.now_ms if relative else 0, name, past=True)
    found = work.find(key)
    if found is None:
        return 0
    now = found.expires_ms
    if (
        (b"NX" in conditions and now)
        or (b"XX" in conditions and not now)
        or (b"GT" in conditions and (not now or expires_ms <= now))
        or (b"LT" in conditions and now and expires_ms >= now)
    ):
        return 0
    work.put(key, found.value, expires_ms or -1)
    return 1


def _conditions(options: list[bytes]) -> set[bytes]:
    conditions = {word(option) for option in options}
    for option in options:
        if word(option) not in (b"NX", b"XX", b"GT", b"LT"):
            raise ReplyError(b"ERR Unsupported option %b" % option)
    if b"NX" in conditions and len(conditions) > 1:
        raise ReplyError(b"ERR NX and XX, GT or LT options at the same time are not compatible")
    if {b"GT", b"LT"} <= conditions:
        raise ReplyError(b"ERR GT and LT options at the same time are not compatible")
    return conditions


@command(
    "ttl",
    2,
    "read",
    "key",
    "Return the seconds a key has left: -1 for ever, -2 no such key.",
    keys=_ONE,
    group="generic",
)
@command("pttl", 2, "read", "key", "The same in milliseconds.", keys=_ONE, group="generic")
def _ttl(work: Work, arguments: list[bytes]) -> Reply:
    ttl_ms = work.ttl_ms(arguments[1])
    return ttl_ms if ttl_ms < 0 or arguments[0].lower() == b"pttl" else (ttl_ms + 500) // 1000


@command(
    "expiretime",
    2,
    "read",
    "key",
    "Return when a key goes, in seconds since 1970; -1 never, -2 no such key.",
    keys=_ONE,
    group="generic",
)
@command("pexpiretime", 2, "read", "key", "The same in milliseconds.", keys=_ONE, group="generic")
def _expiretime(work: Work, arguments: list[bytes]) -> Reply:
    found = work.find(arguments[1])
    if found is None:
        return -2
    if not found.expires_ms:
        return -1
    return found.expires_ms if arguments[0].lower() == b"pexpiretime" else (found.expires_ms + 500) // 1000


@command("persist", 2, "write", "key", "Let a key stay.", keys=_ONE, group="generic")
def _persist(work: Work, arguments: list[bytes]) -> Reply:
    found = work.find(arguments[1])
    if found is None or not found.expires_ms:
        return 0
    work.put(arguments[1], found.value)
    return 1


# --- bytekv's own ------------------------------------------------------------------------------


def _range(
    arguments: list[bytes], allowed: tuple[bytes, ...]
) -> tuple[bytes | None, bytes | None, set[bytes], int | None]:
    _, start, stop, *rest = arguments
    flags: set[bytes] = set()
    limit = None
    options = iter(rest)
    for option in options:
        if word(option) not in allowed:
            raise syntax_error()
        if word(option) == b"LIMIT":
            value = next(options, None)
            if value is None:
                raise syntax_error()
            limit = integer_of(value)
            if limit < 0:
                raise syntax_error()
        flags.add(word(option))
    return start or None, stop or None, flags, limit


@command(
    "bkv.range",
    -3,
    "read",
    "start stop [REV] [LIMIT n] [WITHVALUES]",
    "List keys in order from start up to, not including, stop; an empty start or stop is none.",
    group="bytekv",
)
def _bkv_range(work: Work, arguments: list[bytes]) -> Reply:
    start, stop, flags, limit = _range(arguments, (b"REV", b"LIMIT", b"WITHVALUES"))
    found: list[Reply] = []
    for key in work.keys(start=start, stop=stop, reverse=b"REV" in flags, limit=limit):
        if b"WITHVALUES" not in flags:
            found.append(key)
        elif (value := work.value(key)) is not None:
            found += (key, value)
    return found


@command(
    "bkv.delrange",
    -3,
    "write",
    "start stop [LIMIT n]",
    "Delete the keys from start up to, not including, stop, all or nothing; count them.",
    group="bytekv",
)
def _bkv_delrange(work: Work, arguments: list[bytes]) -> Reply:
    start, stop, _, limit = _range(arguments, (b"LIMIT",))
    keys = list(islice(work.keys(start=start, stop=stop), limit))
    return sum(work.delete(key) for key in keys)


@command(
    "bkv.cas",
    -4,
    "write",
    "key seq value [EX seconds | PX milliseconds | EXAT time | PXAT time | KEEPTTL]",
    "Store a value if the key's entry has this seq (0: if there is none); answer 1, or 0 if it has another.",
    keys=_ONE,
    group="bytekv",
)
def _bkv_cas(work: Work, arguments: list[bytes]) -> Reply:
    _, key, given, value, *rest = arguments
    options = _Options(rest, frozenset((b"KEEPTTL",)), b"bkv.cas")
    seq, expires_ms = integer_of(given), options.expires_ms(work)
    if seq < 0:
        raise ReplyError(b"ERR seq is out of range")
    found = work.find(key)
    if seq != (0 if found is None else found.seq):
        return 0
    work.put(key, value, found.expires_ms if found is not None and options.flags else expires_ms)
    return 1


@command(
    "bkv.entry",
    2,
    "read",
    "key",
    "Return value, seq and time of expiry in milliseconds of a key.",
    keys=_ONE,
    group="bytekv",
)
def _bkv_entry(work: Work, arguments: list[bytes]) -> Reply:
    found = work.find(arguments[1])
    if found is None:
        return None
    seq = None if found.seq < 0 else found.seq  # it gets one when it is committed
    return {b"value": found.value, b"seq": seq, b"expires": found.expires_ms or None}


@command("bkv.stats", 1, "read", "", "Return what is known of the store: keys, seqs, bytes.", group="bytekv")
def _bkv_stats(work: Work, arguments: list[bytes]) -> Reply:
    stats = work.store.stats()
    names = ("keys", "last_seq", "durable_seq", "total_bytes", "live_bytes", "dead_bytes", "compactions", "open_views")
    found: dict[bytes, Reply] = {name.encode(): getattr(stats, name) for name in names}
    found[b"segments"] = len(stats.segments)
    return found
