"""The commands about connections and the server: CLIENT, CONFIG, COMMAND, INFO and their like.

They answer from the `Door` of a session and change nothing but names, counters and connections.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from ... import __version__
from ..arguments import Pattern, integer_of, syntax_error, word
from ..protocol import OK, Reply, ReplyError, Simple, Verbatim, integer
from ..session import REDIS_VERSION, Door, Later, Session, check_name, session_command
from .table import COMMANDS, Command, wrong_arity

__all__ = ["SUBCOMMANDS", "Subcommand"]

# --- commands with subcommands -----------------------------------------------------------------

Subhandler = Callable[[Session, list[bytes]], "Reply | Later"]


@dataclass(frozen=True, slots=True)
class Subcommand:
    """One line of the table below a command: ``arity`` counts both names."""

    arity: int
    syntax: str
    summary: str
    handler: Subhandler


#: Command → its subcommands, both in lower case.
SUBCOMMANDS: Final[dict[bytes, dict[bytes, Subcommand]]] = {}


def _below(names: str, arity: int, syntax: str, summary: str) -> Callable[[Subhandler], Subhandler]:
    """Enter a handler under one or more names such as "client id"."""

    def enter(handler: Subhandler) -> Subhandler:
        for name in names.split(","):
            container, _, own = name.strip().encode().partition(b" ")
            SUBCOMMANDS.setdefault(container, {})[own] = Subcommand(arity, syntax, summary, handler)
        return handler

    return enter


@session_command("client", -2, "subcommand [argument ...]", "Ask and say what there is about connections.")
@session_command("config", -2, "subcommand [argument ...]", "Ask for settings.", "server")
@session_command("command", -1, "[subcommand [argument ...]]", "Ask for this table.", "server")
@session_command("memory", -2, "subcommand [argument ...]", "Ask for the size of a value.", "server")
@session_command("slowlog", -2, "subcommand [argument ...]", "Ask for commands that took long.", "server")
@session_command("function", -2, "subcommand [argument ...]", "There are no functions.", "server")
def _container(session: Session, arguments: list[bytes]) -> Reply | Later:
    container = arguments[0].lower()
    if container == b"command" and len(arguments) == 1:
        return [_command_line(each) for each in COMMANDS.values()]
    name = arguments[1].lower()
    if name == b"help":
        return _help(container)
    found = SUBCOMMANDS[container].get(name)
    if found is None:
        raise ReplyError(b"ERR unknown subcommand '%b'. Try %b HELP." % (arguments[1][:128], container.upper()))
    if len(arguments) != found.arity and (found.arity > 0 or len(arguments) < -found.arity):
        raise wrong_arity(container + b"|" + name)
    return found.handler(session, arguments)


def _help(container: bytes) -> Reply:
    lines: list[Reply] = [Simple(b"%b <subcommand> [<arg> [value] [opt] ...]. Subcommands are:" % container.upper())]
    for name, each in SUBCOMMANDS[container].items():
        lines.append(Simple(b" ".join((name.upper(), each.syntax.encode())).rstrip()))
        lines.append(Simple(b"    " + each.summary.encode()))
    return [*lines, Simple(b"HELP"), Simple(b"    Print this help.")]


# --- CLIENT ------------------------------------------------------------------------------------


@_below("client id", 2, "", "Return the number of this connection.")
def _client_id(session: Session, arguments: list[bytes]) -> Reply:
    return session.number


@_below("client info", 2, "", "Return what is known of this connection.")
def _client_info(session: Session, arguments: list[bytes]) -> Reply:
    return Verbatim(session.describe() + b"\n")


@_below("client list", -2, "[ID number ...]", "Return what is known of all connections.")
def _client_list(session: Session, arguments: list[bytes]) -> Reply:
    sessions: Iterable[Session] = list(session.door.sessions.values())
    if len(arguments) > 2:
        if word(arguments[2]) != b"ID" or len(arguments) == 3:
            raise syntax_error()
        numbers = {integer_of(number) for number in arguments[3:]}
        sessions = [each for each in sessions if each.number in numbers]
    return Verbatim(b"".join(each.describe() + b"\n" for each in sessions))


@_below("client getname", 2, "", "Return the name of this connection.")
def _client_getname(session: Session, arguments: list[bytes]) -> Reply:
    return session.name or None


@_below("client setname", 3, "name", "Give this connection a name.")
def _client_setname(session: Session, arguments: list[bytes]) -> Reply:
    session.rename(arguments[2])
    return OK


@_below("client setinfo", 4, "LIB-NAME | LIB-VER value", "Say which library is calling.")
def _client_setinfo(session: Session, arguments: list[bytes]) -> Reply:
    option, value = arguments[2].lower(), arguments[3]
    if option not in session.library:
        raise ReplyError(b"ERR Unrecognized option '%b'" % arguments[2])
    session.library[option] = check_name(value, option)
    return OK


@_below("client reply", 3, "ON | OFF | SKIP", "Send answers, none any more, or not to the next command.")
def _client_reply(session: Session, arguments: list[bytes]) -> Reply:
    mode = word(arguments[2])
    if mode not in (b"ON", b"OFF", b"SKIP"):
        raise syntax_error()
    session.set_replies(mode)
    return OK


@_below("client no-evict, client no-touch", 3, "ON | OFF", "Accepted: bytekv neither evicts nor counts accesses.")
def _client_no_evict(session: Session, arguments: list[bytes]) -> Reply:
    if word(arguments[2]) not in (b"ON", b"OFF"):
        raise syntax_error()
    return OK


@_below("client kill", -3, "address | [ID number] [ADDR address]", "Close connections.")
def _client_kill(session: Session, arguments: list[bytes]) -> Reply:
    if len(arguments) == 3:
        conditions = {b"ADDR": arguments[2]}
    elif len(arguments) % 2 or not {word(option) for option in arguments[2::2]} <= {b"ID", b"ADDR"}:
        raise syntax_error()
    else:
        conditions = dict(zip(map(word, arguments[2::2]), arguments[3::2], strict=True))
    number = integer_of(conditions[b"ID"]) if b"ID" in conditions else None
    address = conditions.get(b"ADDR")
    victims = [
        each
        for each in session.door.sessions.values()
        if number in (None, each.number) and address in (None, each.address.encode())
    ]
    for victim in victims:
        if victim is session:
            victim.is_closing = True
        else:
            session.door.disconnect(victim)
    if len(arguments) > 3:
        return len(victims)
    if not victims:
        raise ReplyError(b"ERR No such client")
    return OK


# --- CONFIG, COMMAND ---------------------------------------------------------------------------


@_below("config get", -3, "pattern [pattern ...]", "Return settings, most of them fixed, as Redis names them.")
def _config_get(session: Session, arguments: list[bytes]) -> Reply:
    patterns = [Pattern(argument.lower()) for argument in arguments[2:]]
    return {
        name: value
        for name, value in session.door.settings.items()
        if any(pattern.matches(name) for pattern in patterns)
    }


@_below("config set", -4, "name value [name value ...]", "Refused: settings are given when the server starts.")
def _config_set(session: Session, arguments: list[bytes]) -> Reply:
    name = arguments[2].lower()
    if name not in session.door.settings:
        raise ReplyError(b"ERR Unknown option or number of arguments for CONFIG SET - '%b'" % name)
    raise ReplyError(b"ERR CONFIG SET failed (possibly related to argument '%b') - can't set immutable config" % name)


@_below("config resetstat", 2, "", "Begin to count anew.")
def _config_resetstat(session: Session, arguments: list[bytes]) -> Reply:
    door = session.door
    door.commands_processed = door.connections_received = door.connections_refused = 0
    return OK


@_below("config rewrite", 2, "", "Refused: there is no file of settings.")
def _config_rewrite(session: Session, arguments: list[bytes]) -> Reply:
    raise ReplyError(b"ERR The server is running without a config file")


def _command_line(each: Command) -> Reply:
    flags = {"read": b"readonly", "write": b"write", "session": b"noscript"}[each.kind]
    subcommands = list(SUBCOMMANDS.get(each.name, ()))
    return [
        each.name,
        each.arity,
        [Simple(flags)],
        *each.keys,
        [Simple(b"@" + each.group.encode())],
        [],
        [],
        [[each.name + b"|" + name, SUBCOMMANDS[each.name][name].arity] for name in subcommands],
    ]


def _document(each: Command) -> Reply:
    found: dict[bytes, Reply] = {
        b"summary": each.summary.encode(),
        b"since": b"bytekv " + __version__.encode() if each.group == "bytekv" else b"1.0.0",
        b"group": each.group.encode(),
        b"syntax": each.syntax.encode(),
    }
    if below := SUBCOMMANDS.get(each.name):
        found[b"subcommands"] = {
            each.name + b"|" + name: {b"summary": sub.summary.encode(), b"group": each.group.encode()}
            for name, sub in below.items()
        }
    return found


@_below("command count", 2, "", "Count the commands.")
def _command_count(session: Session, arguments: list[bytes]) -> Reply:
    return len(COMMANDS)


@_below("command list", 2, "", "List the names of the commands.")
def _command_list(session: Session, arguments: list[bytes]) -> Reply:
    return list(COMMANDS)


@_below("command info", -2, "[name ...]", "Return lines of the table.")
def _command_info(session: Session, arguments: list[bytes]) -> Reply:
    wanted = [name.lower() for name in arguments[2:]] or list(COMMANDS)
    return [_command_line(COMMANDS[name]) if name in COMMANDS else None for name in wanted]


@_below("command docs", -2, "[name ...]", "Say what commands do.")
def _command_docs(session: Session, arguments: list[bytes]) -> Reply:
    wanted = [name.lower() for name in arguments[2:]] or list(COMMANDS)
    return {name: _document(COMMANDS[name]) for name in wanted if name in COMMANDS}


@_below("command getkeys", -4, "command [argument ...]", "Return which arguments are keys.")
def _command_getkeys(session: Session, arguments: list[bytes]) -> Reply:
    given = arguments[2:]
    found = COMMANDS.get(given[0].lower())
    if found is None:
        raise ReplyError(b"ERR Invalid command specified")
    first, last, step = found.keys
    if not first:
        raise ReplyError(b"ERR The command has no key arguments")
    try:
        found.check(given)
    except ReplyError:
        raise ReplyError(b"ERR Invalid number of arguments specified for command") from None
    return list(given[first : last + 1 if last >= 0 else len(given) + last + 1 : step])


# --- the server --------------------------------------------------------------------------------


@_below(
    "memory usage",
    -3,
    "key [SAMPLES count]",
    "Return about how many bytes a key and its value take, on disk and in memory.",
)
def _memory_usage(session: Session, arguments: list[bytes]) -> Reply:
    if len(arguments) not in (3, 5) or (len(arguments) == 5 and word(arguments[3]) != b"SAMPLES"):
        raise syntax_error()
    value = session.door.executor.store.get(arguments[2])
    return None if value is None else 2 * len(arguments[2]) + len(value) + _KEY_COST


_KEY_COST: Final = 27 + 100 + 33  # of an entry on disk; of a key in memory, and its bytes object


@_below(
    "slowlog get",
    -2,
    "[count]",
    "Return the commands that took longest lately; the shortest are not timed.",
)
def _slowlog_get(session: Session, arguments: list[bytes]) -> Reply:
    if len(arguments) > 3:
        raise syntax_error()
    count = integer(arguments[2]) if len(arguments) == 3 else 10
    if count is None or count < -1:
        raise ReplyError(b"ERR count should be greater than or equal to -1")
    slow = list(session.door.executor.slow)
    return [
        [each.number, each.at, each.duration_us, list(each.arguments), b"", b""]
        for each in (slow if count == -1 else slow[:count])
    ]


@_below("slowlog len", 2, "", "Count them.")
def _slowlog_len(session: Session, arguments: list[bytes]) -> Reply:
    return len(session.door.executor.slow)


@_below("slowlog reset", 2, "", "Forget them.")
def _slowlog_reset(session: Session, arguments: list[bytes]) -> Reply:
    session.door.executor.slow.clear()
    return OK


@_below("function flush", -2, "[ASYNC | SYNC]", "Do nothing: there are none.")
def _function_flush(session: Session, arguments: list[bytes]) -> Reply:
    return OK


@session_command("bgrewriteaof", 1, "", "Compact the store in the background.", "server")
def _bgrewriteaof(session: Session, arguments: list[bytes]) -> Reply:
    if not session.door.compact():
        raise ReplyError(b"ERR Background append only file rewriting already in progress")
    return Simple(b"Background append only file rewriting started")


@session_command(
    "bgsave", -1, "[SCHEDULE]", "Back the store up in the background, into the directory given at the start.", "server"
)
def _bgsave(session: Session, arguments: list[bytes]) -> Reply:
    if len(arguments) > 2 or (len(arguments) == 2 and word(arguments[1]) != b"SCHEDULE"):
        raise syntax_error()
    if not session.door.backup():
        raise ReplyError(b"ERR Background save already in progress")
    return Simple(b"Background saving started")


@session_command(
    "waitaof", 4, "numlocal numreplicas timeout", "Wait until all that was written before is durable.", "server"
)
def _waitaof(session: Session, arguments: list[bytes]) -> Reply | Later:
    local, replicas, timeout = (integer_of(argument) for argument in arguments[1:])
    if not 0 <= local <= 1:
        raise ReplyError(b"ERR value is out of range, must be between 0 and 1")
    if replicas < 0 or timeout < 0:
        raise ReplyError(b"ERR value is out of range, must be positive")
    store = session.door.executor.store

    def wait() -> Reply:
        store.sync()
        return [1, 0]

    return Later(wait)


@session_command(
    "shutdown",
    -1,
    "[NOSAVE | SAVE] [NOW] [FORCE]",
    "Stop serving: finish what is under way, make it durable, close.",
    "server",
)
def _shutdown(session: Session, arguments: list[bytes]) -> Reply:
    if not {word(option) for option in arguments[1:]} <= {b"NOSAVE", b"SAVE", b"NOW", b"FORCE"}:
        raise syntax_error()
    session.set_replies(b"OFF")
    session.door.shut_down()
    return OK


Section = dict[bytes, object]


def _server(door: Door) -> Section:
    uptime = int(time.time() - door.started_at)
    return {
        b"redis_version": REDIS_VERSION,
        b"server_name": "bytekv",
        b"bytekv_version": __version__,
        b"redis_mode": "standalone",
        b"os": f"{platform.system()} {platform.machine()}",
        b"arch_bits": 64 if sys.maxsize > 1 << 32 else 32,
        b"process_id": os.getpid(),
        b"tcp_port": door.settings[b"port"].decode(),
        b"uptime_in_seconds": uptime,
        b"uptime_in_days": uptime // 86400,
    }


def _clients(door: Door) -> Section:
    return {
        b"connected_clients": len(door.sessions),
        b"cluster_connections": 0,
        b"maxclients": door.settings[b"maxclients"].decode(),
        b"blocked_clients": 0,
    }


def _memory(door: Door) -> Section:
    used = _resident_bytes()
    return {b"used_memory": used, b"used_memory_human": f"{used / 2**20:.2f}M", b"maxmemory": 0}


def _resident_bytes() -> int:
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0  # not Linux


def _persistence(door: Door) -> Section:
    stats = door.executor.store.stats()
    return {
        b"loading": 0,
        b"async_loading": 0,
        b"rdb_bgsave_in_progress": int(door.is_backing_up),
        b"aof_enabled": 1,
        b"aof_rewrite_in_progress": int(door.is_compacting),
        b"aof_current_size": stats.total_bytes,
        b"aof_last_write_status": "ok" if door.executor.store.failure is None else "err",
        b"bytekv_last_seq": stats.last_seq,
        b"bytekv_durable_seq": stats.durable_seq,
        b"bytekv_live_bytes": stats.live_bytes,
        b"bytekv_dead_bytes": stats.dead_bytes,
        b"bytekv_segments": len(stats.segments),
        b"bytekv_compactions": stats.compactions,
    }


def _stats(door: Door) -> Section:
    return {
        b"total_connections_received": door.connections_received,
        b"total_commands_processed": door.commands_processed,
        b"rejected_connections": door.connections_refused,
    }


def _replication(door: Door) -> Section:
    return {b"role": "master", b"connected_slaves": 0}


def _keyspace(door: Door) -> Section:
    keys = len(door.executor.store)
    return {b"db0": f"keys={keys},expires=0,avg_ttl=0"} if keys else {}


_SECTIONS: Final[dict[bytes, Callable[[Door], Section]]] = {
    b"Server": _server,
    b"Clients": _clients,
    b"Memory": _memory,
    b"Persistence": _persistence,
    b"Stats": _stats,
    b"Replication": _replication,
    b"Cluster": lambda door: {b"cluster_enabled": 0},
    b"Keyspace": _keyspace,
}


@session_command("info", -1, "[section ...]", "Return figures about the server, as Redis names them.", "server")
def _info(session: Session, arguments: list[bytes]) -> Reply:
    wanted = {section.lower() for section in arguments[1:]} or {b"default"}
    everything = bool(wanted & {b"default", b"all", b"everything"})
    parts = []
    for title, section in _SECTIONS.items():
        if everything or title.lower() in wanted:
            lines = [b"%b:%b\r\n" % (name, str(given).encode()) for name, given in section(session.door).items()]
            parts.append(b"# %b\r\n%b" % (title, b"".join(lines)))
    return Verbatim(b"\r\n".join(parts))
