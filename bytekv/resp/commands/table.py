"""The table of commands: every command that a client may send.

This is the one place where a name of a command and its function meet. `REFUSED` are the commands of Redis that bytekv
will not have, and why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from ... import Store
from ..protocol import Reply
from ..session import Execute, Later, Session, SessionCommand, Subcommand
from ..work import UnitOfWork
from . import connection, keys, server, strings
from .command import ALL, NONE, ONE, PAIRS, TWO, CommandTable, DataCommand, KeyPositions

__all__ = ["COMMANDS", "REFUSED"]

_DataHandler = Callable[[UnitOfWork, list[bytes]], Reply]
_SessionHandler = Callable[[Session, list[bytes]], "Reply | Later | Execute"]


def _read(
    name: str,
    arity: int,
    syntax: str,
    summary: str,
    handler: _DataHandler,
    *,
    keys: KeyPositions = NONE,
    group: str = "string",
    on_store: Callable[[Store, list[bytes]], Reply] | None = None,
    for_session: bool = False,
) -> DataCommand:
    return DataCommand(name.encode(), arity, "read", keys, group, syntax, summary, handler, on_store, for_session)


def _write(
    name: str,
    arity: int,
    syntax: str,
    summary: str,
    handler: _DataHandler,
    *,
    keys: KeyPositions = NONE,
    group: str = "string",
    on_store: Callable[[Store, list[bytes]], Reply] | None = None,
) -> DataCommand:
    return DataCommand(name.encode(), arity, "write", keys, group, syntax, summary, handler, on_store)


def _session(
    name: str,
    arity: int,
    syntax: str,
    summary: str,
    handler: _SessionHandler,
    *,
    keys: KeyPositions = NONE,
    group: str = "connection",
    subcommands: Mapping[bytes, Subcommand] | None = None,
    before_password: bool = False,
    at_once: bool = False,
) -> SessionCommand:
    return SessionCommand(
        name.encode(),
        arity,
        "session",
        keys,
        group,
        syntax,
        summary,
        handler,
        subcommands or {},
        before_password=before_password,
        at_once=at_once,
    )


# --- subcommands -------------------------------------------------------------------------------

_CLIENT: Final = {
    b"id": Subcommand(2, "", "Return the ID of this connection.", server.client_id),
    b"info": Subcommand(2, "", "Describe this connection.", server.client_info),
    b"list": Subcommand(
        -2, "[ID number ...]", "Describe all connections, or those with these IDs.", server.client_list
    ),
    b"getname": Subcommand(2, "", "Return the name of this connection.", server.client_getname),
    b"setname": Subcommand(3, "name", "Give this connection a name.", server.client_setname),
    b"setinfo": Subcommand(
        4, "LIB-NAME | LIB-VER value", "Say which client library is calling.", server.client_setinfo
    ),
    b"reply": Subcommand(
        3,
        "ON | OFF | SKIP",
        "Send replies (ON), none from now on (OFF), or none to the next command (SKIP).",
        server.client_reply,
    ),
    b"no-evict": Subcommand(
        3, "ON | OFF", "Accepted: bytekv neither evicts nor counts accesses.", server.client_no_evict
    ),
    b"no-touch": Subcommand(
        3, "ON | OFF", "Accepted: bytekv neither evicts nor counts accesses.", server.client_no_evict
    ),
    b"kill": Subcommand(-3, "address | [ID number] [ADDR address]", "Close connections.", server.client_kill),
}
_CONFIG: Final = {
    b"get": Subcommand(
        -3, "pattern [pattern ...]", "Return settings, named as in Redis; most are fixed.", server.config_get
    ),
    b"set": Subcommand(
        -4, "name value [name value ...]", "Refused: settings are given when the server starts.", server.config_set
    ),
    b"resetstat": Subcommand(2, "", "Reset the counters.", server.config_resetstat),
    b"rewrite": Subcommand(2, "", "Refused: there is no configuration file.", server.config_rewrite),
}
_COMMAND_SUBCOMMANDS: Final = {
    b"count": Subcommand(2, "", "Count the commands.", server.command_count),
    b"list": Subcommand(2, "", "List the names of the commands.", server.command_list),
    b"info": Subcommand(-2, "[name ...]", "Describe commands: arity, flags, keys.", server.command_info),
    b"docs": Subcommand(-2, "[name ...]", "Document commands.", server.command_docs),
    b"getkeys": Subcommand(-4, "command [argument ...]", "Return the arguments that are keys.", server.command_getkeys),
}
_MEMORY: Final = {
    b"usage": Subcommand(
        -3,
        "key [SAMPLES count]",
        "Return about how many bytes a key and its value take, on disk and in memory.",
        server.memory_usage,
    ),
}
_SLOWLOG: Final = {
    b"get": Subcommand(
        -2, "[count]", "Return recent slow commands. The fastest commands are not timed.", server.slowlog_get
    ),
    b"len": Subcommand(2, "", "Return how many there are.", server.slowlog_len),
    b"reset": Subcommand(2, "", "Clear the list.", server.slowlog_reset),
}
_FUNCTION: Final = {
    b"flush": Subcommand(-2, "[ASYNC | SYNC]", "Accepted: there are no functions.", server.function_flush),
}

# --- commands ----------------------------------------------------------------------------------

_COMMANDS: Final = (
    _write(
        "del", -2, "key [key ...]", "Delete keys and return how many existed.", keys.delete, keys=ALL, group="generic"
    ),
    _write("unlink", -2, "key [key ...]", "The same.", keys.delete, keys=ALL, group="generic"),
    _write("delete", -2, "key [key ...]", "The same.", keys.delete, keys=ALL, group="generic"),
    _write(
        "delex",
        -2,
        "key [IFEQ value | IFNE value]",
        "Delete a key if its value is, or is not, a given one. Releases a lock.",
        keys.delex,
        keys=ONE,
        group="generic",
    ),
    _read("exists", -2, "key [key ...]", "Return how many of the keys exist.", keys.exists, keys=ALL, group="generic"),
    _read("touch", -2, "key [key ...]", "The same.", keys.exists, keys=ALL, group="generic"),
    _read(
        "type", 2, "key", "Return `string`, or `none` if the key does not exist.", keys.type_, keys=ONE, group="generic"
    ),
    _write("rename", 3, "key newkey", "Rename a key.", keys.rename, keys=TWO, group="generic"),
    _write(
        "renamenx", 3, "key newkey", "Rename a key if the new name is free.", keys.rename, keys=TWO, group="generic"
    ),
    _write(
        "copy",
        -3,
        "source destination [DB 0] [REPLACE]",
        "Copy a value to another key.",
        keys.copy,
        keys=TWO,
        group="generic",
    ),
    _read("randomkey", 1, "", "Return a random key; not all are equally likely.", keys.randomkey, group="generic"),
    _read("keys", 2, "pattern", "List the keys that match a pattern.", keys.list_keys, group="generic"),
    _read(
        "scan",
        -2,
        "cursor [MATCH pattern] [COUNT count] [TYPE type]",
        "Iterate over the keys, in order: begin with cursor 0 and go on until the returned cursor is 0.",
        keys.scan,
        group="generic",
    ),
    _read("dbsize", 1, "", "Return the number of keys.", keys.dbsize, group="server"),
    _write("flushdb", -1, "[ASYNC | SYNC]", "Delete every key.", keys.flush, group="server", on_store=keys.flush_store),
    _write(
        "flushall", -1, "[ASYNC | SYNC]", "Delete every key.", keys.flush, group="server", on_store=keys.flush_store
    ),
    _write(
        "expire",
        -3,
        "key seconds [NX | XX | GT | LT]",
        "Expire a key after this many seconds.",
        keys.expire,
        keys=ONE,
        group="generic",
    ),
    _write(
        "pexpire",
        -3,
        "key milliseconds [NX | XX | GT | LT]",
        "Expire a key after this many milliseconds.",
        keys.expire,
        keys=ONE,
        group="generic",
    ),
    _write(
        "expireat",
        -3,
        "key time [NX | XX | GT | LT]",
        "Expire a key at a time, in seconds since 1970.",
        keys.expire,
        keys=ONE,
        group="generic",
    ),
    _write(
        "pexpireat",
        -3,
        "key time [NX | XX | GT | LT]",
        "Expire a key at a time, in milliseconds since 1970.",
        keys.expire,
        keys=ONE,
        group="generic",
    ),
    _read(
        "ttl",
        2,
        "key",
        "Return the seconds until a key expires: -1 if it never does, -2 if it does not exist.",
        keys.ttl,
        keys=ONE,
        group="generic",
    ),
    _read("pttl", 2, "key", "The same in milliseconds.", keys.ttl, keys=ONE, group="generic"),
    _read(
        "expiretime",
        2,
        "key",
        "Return when a key expires, in seconds since 1970: -1 if never, -2 if it does not exist.",
        keys.expiretime,
        keys=ONE,
        group="generic",
    ),
    _read("pexpiretime", 2, "key", "The same in milliseconds.", keys.expiretime, keys=ONE, group="generic"),
    _write("persist", 2, "key", "Remove the expiry of a key.", keys.persist, keys=ONE, group="generic"),
    _read(
        "bkv.range",
        -3,
        "start stop [REV] [LIMIT n] [WITHVALUES]",
        "List keys in order, from start to stop, stop excluded. An empty start or stop sets no bound.",
        keys.bkv_range,
        group="bytekv",
    ),
    _write(
        "bkv.delrange",
        -3,
        "start stop [LIMIT n]",
        "Delete the keys from start to stop, stop excluded, all or none, and return how many.",
        keys.bkv_delrange,
        group="bytekv",
    ),
    _write(
        "bkv.cas",
        -4,
        "key seq value [EX seconds | PX milliseconds | EXAT time | PXAT time | KEEPTTL]",
        "Store a value if the key's entry has this seq, 0 for a missing key. Return 1 if stored, 0 otherwise.",
        keys.bkv_cas,
        keys=ONE,
        group="bytekv",
    ),
    _read(
        "bkv.entry",
        2,
        "key",
        "Return the value of a key, its seq, and when it expires, in milliseconds since 1970.",
        keys.bkv_entry,
        keys=ONE,
        group="bytekv",
        on_store=keys.entry_of,
    ),
    _read("bkv.stats", 1, "", "Return the counts of the store: keys, seqs, bytes.", keys.bkv_stats, group="bytekv"),
    _read("get", 2, "key", "Return a value.", strings.get, keys=ONE),
    _write(
        "set",
        -3,
        "key value [NX | XX | IFEQ value] [GET] [EX seconds | PX milliseconds | EXAT time | PXAT time | KEEPTTL]",
        "Store a value: only if the key is missing (NX), exists (XX) or has a given value (IFEQ).",
        strings.set_,
        keys=ONE,
    ),
    _write("setnx", 3, "key value", "Store a value if the key does not exist.", strings.setnx, keys=ONE),
    _write(
        "setex", 4, "key seconds value", "Store a value that expires after this many seconds.", strings.setex, keys=ONE
    ),
    _write(
        "psetex",
        4,
        "key milliseconds value",
        "Store a value that expires after this many milliseconds.",
        strings.setex,
        keys=ONE,
    ),
    _write("getset", 3, "key value", "Store a value and return the previous one.", strings.getset, keys=ONE),
    _write("getdel", 2, "key", "Return a value and delete its key.", strings.getdel, keys=ONE),
    _write(
        "getex",
        -2,
        "key [EX seconds | PX milliseconds | EXAT time | PXAT time | PERSIST]",
        "Return a value and change its expiry.",
        strings.getex,
        keys=ONE,
    ),
    _read("mget", -2, "key [key ...]", "Return several values.", strings.mget, keys=ALL),
    _write("mset", -3, "key value [key value ...]", "Store several values, all or none.", strings.mset, keys=PAIRS),
    _write(
        "msetnx",
        -3,
        "key value [key value ...]",
        "Store several values if none of the keys exists.",
        strings.mset,
        keys=PAIRS,
    ),
    _read("strlen", 2, "key", "Return the length of a value.", strings.strlen, keys=ONE),
    _write("append", 3, "key value", "Append to a value and return its length.", strings.append, keys=ONE),
    _read("getrange", 4, "key start end", "Return a part of a value, both ends included.", strings.getrange, keys=ONE),
    _read("substr", 4, "key start end", "The same.", strings.getrange, keys=ONE),
    _write(
        "setrange",
        4,
        "key offset value",
        "Overwrite a part of a value and return its length.",
        strings.setrange,
        keys=ONE,
    ),
    _write("incr", 2, "key", "Add 1 to a number.", strings.incr, keys=ONE),
    _write("decr", 2, "key", "Subtract 1 from a number.", strings.incr, keys=ONE),
    _write("incrby", 3, "key amount", "Add to a number.", strings.incrby, keys=ONE),
    _write("decrby", 3, "key amount", "Subtract from a number.", strings.incrby, keys=ONE),
    _write("incrbyfloat", 3, "key amount", "Add to a decimal fraction.", strings.incrbyfloat, keys=ONE),
    _session(
        "hello",
        -1,
        "[2 | 3 [AUTH user password] [SETNAME name]]",
        "Choose RESP2 or RESP3, and authenticate.",
        connection.hello,
        before_password=True,
    ),
    _session(
        "auth", -2, "[user] password", "Authenticate; the user is `default`.", connection.auth, before_password=True
    ),
    _session("quit", -1, "", "Close the connection.", connection.quit, before_password=True, at_once=True),
    _session(
        "reset",
        1,
        "",
        "Reset the connection to its initial state.",
        connection.reset,
        before_password=True,
        at_once=True,
    ),
    _read("ping", -1, "[message]", "Return PONG, or the message.", connection.ping, group="connection"),
    _read("echo", 2, "message", "Return the message.", connection.echo, group="connection"),
    _read("select", 2, "0", "Select a database; there is only 0.", connection.select, group="connection"),
    _read("time", 1, "", "Return the time: seconds since 1970, and microseconds.", connection.time_, group="server"),
    _session("multi", 1, "", "Begin to queue commands for EXEC.", connection.multi, group="transactions", at_once=True),
    _session(
        "exec",
        1,
        "",
        "Execute the queued commands, all or none; none if a watched key has changed.",
        connection.exec_,
        group="transactions",
        at_once=True,
    ),
    _session("discard", 1, "", "Discard the queued commands.", connection.discard, group="transactions", at_once=True),
    _session(
        "watch",
        -2,
        "key [key ...]",
        "Have EXEC do nothing if one of these keys changes first.",
        connection.watch,
        keys=ALL,
        group="transactions",
        at_once=True,
    ),
    _read("unwatch", 1, "", "Forget the watched keys.", connection.unwatch, group="transactions", for_session=True),
    _session("client", -2, "subcommand [argument ...]", "Manage connections.", server.subcommand, subcommands=_CLIENT),
    _session(
        "config",
        -2,
        "subcommand [argument ...]",
        "Show settings.",
        server.subcommand,
        group="server",
        subcommands=_CONFIG,
    ),
    _session(
        "command",
        -1,
        "[subcommand [argument ...]]",
        "Describe the commands.",
        server.subcommand,
        group="server",
        subcommands=_COMMAND_SUBCOMMANDS,
    ),
    _session(
        "memory",
        -2,
        "subcommand [argument ...]",
        "Show how much memory a key takes.",
        server.subcommand,
        group="server",
        subcommands=_MEMORY,
    ),
    _session(
        "slowlog",
        -2,
        "subcommand [argument ...]",
        "Show slow commands.",
        server.subcommand,
        group="server",
        subcommands=_SLOWLOG,
    ),
    _session(
        "function",
        -2,
        "subcommand [argument ...]",
        "Accepted: there are no functions.",
        server.subcommand,
        group="server",
        subcommands=_FUNCTION,
    ),
    _session("bgrewriteaof", 1, "", "Compact the store in the background.", server.bgrewriteaof, group="server"),
    _session(
        "bgsave",
        -1,
        "[SCHEDULE]",
        "Back up the store in the background, to the directory that the server was started with.",
        server.bgsave,
        group="server",
    ),
    _session(
        "waitaof",
        4,
        "numlocal numreplicas timeout",
        "Wait until all earlier writes are durable.",
        server.waitaof,
        group="server",
    ),
    _session(
        "shutdown",
        -1,
        "[NOSAVE | SAVE] [NOW] [FORCE]",
        "Stop the server: finish what is under way, sync, close.",
        server.shutdown,
        group="server",
    ),
    _session(
        "info", -1, "[section ...]", "Return figures about the server, named as in Redis.", server.info, group="server"
    ),
)

_REFUSED_BY_REASON: Final = {
    "lists": (
        "lpush rpush lpop rpop llen lrange lindex linsert lset lrem ltrim lpos lmove lmpop lpushx rpushx "
        "rpoplpush blpop brpop blmove blmpop brpoplpush"
    ),
    "sets": (
        "sadd srem smembers sismember smismember scard spop srandmember smove sinter sinterstore sintercard "
        "sunion sunionstore sdiff sdiffstore sscan"
    ),
    "sorted sets": (
        "zadd zrem zcard zcount zscore zmscore zincrby zrange zrangestore zrangebyscore zrevrangebyscore "
        "zrangebylex zrevrangebylex zrevrange zrank zrevrank zlexcount zpopmin zpopmax bzpopmin bzpopmax zmpop "
        "bzmpop zrandmember zremrangebyrank zremrangebyscore zremrangebylex zunion zunionstore zinter zinterstore "
        "zintercard zdiff zdiffstore zscan geoadd geodist geohash geopos georadius georadiusbymember geosearch "
        "geosearchstore"
    ),
    "hashes": (
        "hset hget hmset hmget hgetall hdel hexists hincrby hincrbyfloat hkeys hlen hsetnx hstrlen hvals "
        "hrandfield hscan"
    ),
    "streams": (
        "xadd xread xreadgroup xrange xrevrange xlen xdel xtrim xack xclaim xautoclaim xgroup xinfo xpending xsetid"
    ),
    "HyperLogLogs": "pfadd pfcount pfmerge pfdebug pfselftest",
    "bit operations": "setbit getbit bitcount bitpos bitop bitfield bitfield_ro",
    "scripts": "eval eval_ro evalsha evalsha_ro script fcall fcall_ro",
    "publish and subscribe": (
        "subscribe unsubscribe psubscribe punsubscribe publish pubsub ssubscribe sunsubscribe spublish"
    ),
    "replication and no cluster": (
        "replicaof slaveof sync psync replconf role wait failover cluster readonly readwrite asking migrate"
    ),
    "sorting": "sort sort_ro",
    "Redis dumps": "dump restore restore-asking",
    "databases to swap or move between": "swapdb move",
    "users besides the default one": "acl",
    "modules": "module",
    "monitor, debugging or latency reports": "monitor debug latency object lolwut",
    "save that blocks; use BGSAVE": "save lastsave",
}

#: Commands of Redis that bytekv will not have, and why.
REFUSED: Final[dict[bytes, bytes]] = {
    name: reason.encode() for reason, names in _REFUSED_BY_REASON.items() for name in names.encode().split()
}

#: Every command by its name in lower case.
COMMANDS: Final = CommandTable(_COMMANDS, REFUSED)
