"""The commands on connections and the server: CLIENT, CONFIG, COMMAND, INFO and their like.

They answer from the `ServerState` of a session and change nothing but names, counters and connections.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from ... import __version__
from ..arguments import Pattern, integer_of, syntax_error, word
from ..protocol import OK, Reply, ReplyError, Simple, Verbatim, integer
from ..session import REDIS_VERSION, Later, ServerState, Session, SessionCommand, Subcommand, check_name
from .command import Command, wrong_arity

# --- commands with subcommands -----------------------------------------------------------------


def subcommand(session: Session, arguments: list[bytes]) -> Reply | Later:
    name = arguments[0].lower()
    if name == b"command" and len(arguments) == 1:
        return [_command_line(each) for each in session.server.commands.values()]
    container = session.server.commands[name]
    below = arguments[1].lower()
    if below == b"help":
        return _help(container)
    found = _subcommands_of(container).get(below)
    if found is None:
        raise ReplyError(b"ERR unknown subcommand '%b'. Try %b HELP." % (arguments[1][:128], name.upper()))
    if len(arguments) != found.arity and (found.arity > 0 or len(arguments) < -found.arity):
        raise wrong_arity(name + b"|" + below)
    return found.handler(session, arguments)


def _subcommands_of(command: Command) -> Mapping[bytes, Subcommand]:
    return command.subcommands if isinstance(command, SessionCommand) else {}


def _help(container: Command) -> Reply:
    first = b"%b <subcommand> [<arg> [value] [opt] ...]. Subcommands are:" % container.name.upper()
    lines: list[Reply] = [Simple(first)]
    for name, each in _subcommands_of(container).items():
        lines.append(Simple(b" ".join((name.upper(), each.syntax.encode())).rstrip()))
        lines.append(Simple(b"    " + each.summary.encode()))
    return [*lines, Simple(b"HELP"), Simple(b"    Print this help.")]


# --- CLIENT ------------------------------------------------------------------------------------


def client_id(session: Session, arguments: list[bytes]) -> Reply:
    return session.number


def client_info(session: Session, arguments: list[bytes]) -> Reply:
    return Verbatim(session.describe() + b"\n")


def client_list(session: Session, arguments: list[bytes]) -> Reply:
    sessions: Iterable[Session] = list(session.server.sessions.values())
    if len(arguments) > 2:
        if word(arguments[2]) != b"ID" or len(arguments) == 3:
            raise syntax_error()
        numbers = {integer_of(number) for number in arguments[3:]}
        sessions = [each for each in sessions if each.number in numbers]
    return Verbatim(b"".join(each.describe() + b"\n" for each in sessions))


def client_getname(session: Session, arguments: list[bytes]) -> Reply:
    return session.name or None


def client_setname(session: Session, arguments: list[bytes]) -> Reply:
    session.rename(arguments[2])
    return OK


def client_setinfo(session: Session, arguments: list[bytes]) -> Reply:
    option, value = arguments[2].lower(), arguments[3]
    if option not in session.library:
        raise ReplyError(b"ERR Unrecognized option '%b'" % arguments[2])
    session.library[option] = check_name(value, option)
    return OK


def client_reply(session: Session, arguments: list[bytes]) -> Reply:
    mode = word(arguments[2])
    if mode not in (b"ON", b"OFF", b"SKIP"):
        raise syntax_error()
    session.set_replies(mode)
    return OK


def client_no_evict(session: Session, arguments: list[bytes]) -> Reply:
    if word(arguments[2]) not in (b"ON", b"OFF"):
        raise syntax_error()
    return OK


def client_kill(session: Session, arguments: list[bytes]) -> Reply:
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
        for each in session.server.sessions.values()
        if number in (None, each.number) and address in (None, each.address.encode())
    ]
    for victim in victims:
        if victim is session:
            victim.is_closing = True
        else:
            session.server.disconnect(victim)
    if len(arguments) > 3:
        return len(victims)
    if not victims:
        raise ReplyError(b"ERR No such client")
    return OK


# --- CONFIG, COMMAND ---------------------------------------------------------------------------


def config_get(session: Session, arguments: list[bytes]) -> Reply:
    patterns = [Pattern(argument.lower()) for argument in arguments[2:]]
    return {
        name: value
        for name, value in session.server.settings.items()
        if any(pattern.matches(name) for pattern in patterns)
    }


def config_set(session: Session, arguments: list[bytes]) -> Reply:
    name = arguments[2].lower()
    if name not in session.server.settings:
        raise ReplyError(b"ERR Unknown option or number of arguments for CONFIG SET - '%b'" % name)
    raise ReplyError(b"ERR CONFIG SET failed (possibly related to argument '%b') - can't set immutable config" % name)


def config_resetstat(session: Session, arguments: list[bytes]) -> Reply:
    server = session.server
    server.commands_processed = server.connections_received = server.connections_refused = 0
    return OK


def config_rewrite(session: Session, arguments: list[bytes]) -> Reply:
    raise ReplyError(b"ERR The server is running without a config file")


def _command_line(each: Command) -> Reply:
    flags = {"read": b"readonly", "write": b"write", "session": b"noscript"}[each.kind]
    return [
        each.name,
        each.arity,
        [Simple(flags)],
        *each.keys,
        [Simple(b"@" + each.group.encode())],
        [],
        [],
        [[each.name + b"|" + name, below.arity] for name, below in _subcommands_of(each).items()],
    ]


def _document(each: Command) -> Reply:
    found: dict[bytes, Reply] = {
        b"summary": each.summary.encode(),
        b"since": b"bytekv " + __version__.encode() if each.group == "bytekv" else b"1.0.0",
        b"group": each.group.encode(),
        b"syntax": each.syntax.encode(),
    }
    if below := _subcommands_of(each):
        found[b"subcommands"] = {
            each.name + b"|" + name: {b"summary": sub.summary.encode(), b"group": each.group.encode()}
            for name, sub in below.items()
        }
    return found


def command_count(session: Session, arguments: list[bytes]) -> Reply:
    return len(session.server.commands)


def command_list(session: Session, arguments: list[bytes]) -> Reply:
    return list(session.server.commands)


def command_info(session: Session, arguments: list[bytes]) -> Reply:
    commands = session.server.commands
    wanted = [name.lower() for name in arguments[2:]] or list(commands)
    return [_command_line(commands[name]) if name in commands else None for name in wanted]


def command_docs(session: Session, arguments: list[bytes]) -> Reply:
    commands = session.server.commands
    wanted = [name.lower() for name in arguments[2:]] or list(commands)
    return {name: _document(commands[name]) for name in wanted if name in commands}


def command_getkeys(session: Session, arguments: list[bytes]) -> Reply:
    given = arguments[2:]
    found = session.server.commands.get(given[0].lower())
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


def memory_usage(session: Session, arguments: list[bytes]) -> Reply:
    if len(arguments) not in (3, 5) or (len(arguments) == 5 and word(arguments[3]) != b"SAMPLES"):
        raise syntax_error()
    value = session.server.store.get(arguments[2])
    return None if value is None else 2 * len(arguments[2]) + len(value) + _KEY_COST


_KEY_COST: Final = 27 + 100 + 33  # of an entry on disk; of a key in memory, and its bytes object


def slowlog_get(session: Session, arguments: list[bytes]) -> Reply:
    if len(arguments) > 3:
        raise syntax_error()
    count = integer(arguments[2]) if len(arguments) == 3 else 10
    if count is None or count < -1:
        raise ReplyError(b"ERR count should be greater than or equal to -1")
    slow = list(session.server.slow)
    return [
        [each.number, each.at, each.duration_us, list(each.arguments), b"", b""]
        for each in (slow if count == -1 else slow[:count])
    ]


def slowlog_len(session: Session, arguments: list[bytes]) -> Reply:
    return len(session.server.slow)


def slowlog_reset(session: Session, arguments: list[bytes]) -> Reply:
    session.server.slow.clear()
    return OK


def function_flush(session: Session, arguments: list[bytes]) -> Reply:
    return OK


def bgrewriteaof(session: Session, arguments: list[bytes]) -> Reply:
    if not session.server.compact():
        raise ReplyError(b"ERR Background append only file rewriting already in progress")
    return Simple(b"Background append only file rewriting started")


def bgsave(session: Session, arguments: list[bytes]) -> Reply:
    if len(arguments) > 2 or (len(arguments) == 2 and word(arguments[1]) != b"SCHEDULE"):
        raise syntax_error()
    if not session.server.backup():
        raise ReplyError(b"ERR Background save already in progress")
    return Simple(b"Background saving started")


def waitaof(session: Session, arguments: list[bytes]) -> Reply | Later:
    local, replicas, timeout = (integer_of(argument) for argument in arguments[1:])
    if not 0 <= local <= 1:
        raise ReplyError(b"ERR value is out of range, must be between 0 and 1")
    if replicas < 0 or timeout < 0:
        raise ReplyError(b"ERR value is out of range, must be positive")
    store = session.server.store

    def wait() -> Reply:
        store.sync()
        return [1, 0]

    return Later(wait)


def shutdown(session: Session, arguments: list[bytes]) -> Reply:
    if not {word(option) for option in arguments[1:]} <= {b"NOSAVE", b"SAVE", b"NOW", b"FORCE"}:
        raise syntax_error()
    session.set_replies(b"OFF")
    session.server.shut_down()
    return OK


Section = dict[bytes, object]


def _server(server: ServerState) -> Section:
    uptime = int(time.time() - server.started_at)
    return {
        b"redis_version": REDIS_VERSION,
        b"server_name": "bytekv",
        b"bytekv_version": __version__,
        b"redis_mode": "standalone",
        b"os": f"{platform.system()} {platform.machine()}",
        b"arch_bits": 64 if sys.maxsize > 1 << 32 else 32,
        b"process_id": os.getpid(),
        b"tcp_port": server.settings[b"port"].decode(),
        b"uptime_in_seconds": uptime,
        b"uptime_in_days": uptime // 86400,
    }


def _clients(server: ServerState) -> Section:
    return {
        b"connected_clients": len(server.sessions),
        b"cluster_connections": 0,
        b"maxclients": server.settings[b"maxclients"].decode(),
        b"blocked_clients": 0,
    }


def _memory(server: ServerState) -> Section:
    used = _resident_bytes()
    return {b"used_memory": used, b"used_memory_human": f"{used / 2**20:.2f}M", b"maxmemory": 0}


def _resident_bytes() -> int:
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0  # not Linux


def _persistence(server: ServerState) -> Section:
    stats = server.store.stats()
    return {
        b"loading": 0,
        b"async_loading": 0,
        b"rdb_bgsave_in_progress": int(server.is_backing_up),
        b"aof_enabled": 1,
        b"aof_rewrite_in_progress": int(server.is_compacting),
        b"aof_current_size": stats.total_bytes,
        b"aof_last_write_status": "ok" if server.store.failure is None else "err",
        b"bytekv_last_seq": stats.last_seq,
        b"bytekv_durable_seq": stats.durable_seq,
        b"bytekv_live_bytes": stats.live_bytes,
        b"bytekv_dead_bytes": stats.dead_bytes,
        b"bytekv_segments": len(stats.segments),
        b"bytekv_compactions": stats.compactions,
    }


def _stats(server: ServerState) -> Section:
    return {
        b"total_connections_received": server.connections_received,
        b"total_commands_processed": server.commands_processed,
        b"rejected_connections": server.connections_refused,
    }


def _replication(server: ServerState) -> Section:
    return {b"role": "master", b"connected_slaves": 0}


def _keyspace(server: ServerState) -> Section:
    keys = len(server.store)
    return {b"db0": f"keys={keys},expires=0,avg_ttl=0"} if keys else {}


_SECTIONS: Final[dict[bytes, Callable[[ServerState], Section]]] = {
    b"Server": _server,
    b"Clients": _clients,
    b"Memory": _memory,
    b"Persistence": _persistence,
    b"Stats": _stats,
    b"Replication": _replication,
    b"Cluster": lambda server: {b"cluster_enabled": 0},
    b"Keyspace": _keyspace,
}


def info(session: Session, arguments: list[bytes]) -> Reply:
    wanted = {section.lower() for section in arguments[1:]} or {b"default"}
    everything = bool(wanted & {b"default", b"all", b"everything"})
    parts = []
    for title, section in _SECTIONS.items():
        if everything or title.lower() in wanted:
            lines = [b"%b:%b\r\n" % (name, str(given).encode()) for name, given in section(session.server).items()]
            parts.append(b"# %b\r\n%b" % (title, b"".join(lines)))
    return Verbatim(b"\r\n".join(parts))
