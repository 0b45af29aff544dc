"""The command line: its arguments, its exit statuses and its messages.

Exit statuses: 0 done · 1 no such key · 2 wrong use, of the arguments or of a file given as input · 3 the store, its
disk or the output failed · 130 interrupted · 141 nothing reads the output any more. No user error ends in
a traceback; each is one line.

A one-shot command is mostly the start of Python, so of the parser only the part that is needed is built; see
docs/decisions/0012-the-command-line.md.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence

from .._lean import TYPE_CHECKING
from ..errors import BytekvError, CorruptionError, LimitError, StoreBusyError, StoreLockedError, StoreNotFoundError
from . import commands

if TYPE_CHECKING:
    from typing import Any, Final, NoReturn

__all__ = ["CLI_COMMANDS", "main", "parser"]

DONE, FAILED = commands.DONE, commands.FAILED
NO_SUCH_KEY, WRONG_USE, INTERRUPTED, UNREAD = 1, 2, 130, 141
_BUG: Final = 70  # EX_SOFTWARE of sysexits.h

DEFAULT_DIRECTORY: Final = "bytekv-data"
_WAIT_S: Final = 10.0  # thirty shells that set keys in loops find their turn within two


# --- the parser --------------------------------------------------------------------------------


class _Help(argparse.HelpFormatter):
    def __init__(self, prog: str, *rest: Any, **named: Any) -> None:
        # Told the width, argparse need not import shutil, and with it three compressions, to find it out.
        if "width" not in named and not rest:
            try:
                named["width"] = int(os.environ.get("COLUMNS", "0")) or os.get_terminal_size(1).columns
            except (OSError, ValueError):
                named["width"] = 100
            named["width"] = min(named["width"], 100)
        super().__init__(prog, *rest, **named)


class _Parser(argparse.ArgumentParser):
    def __init__(self, **named: Any) -> None:
        super().__init__(formatter_class=_Help, **named)

    def error(self, message: str) -> NoReturn:
        raise commands.UsageError(f"{message} ({self.prog} --help says more)")


def _everywhere(command: argparse.ArgumentParser, *, default: Any) -> None:
    command.add_argument(
        "-d",
        "--dir",
        metavar="DIR",
        default=default or os.environ.get("BYTEKV_DIR") or DEFAULT_DIRECTORY,
        help=f"the store's directory; otherwise $BYTEKV_DIR, or {DEFAULT_DIRECTORY} in the current directory",
    )
    command.add_argument(
        "-v",
        "--verbose",
        action="count",
        default=default or 0,
        help="say what happens; given twice, also why a segment was rolled or compacted",
    )


def _takes_keys(command: argparse.ArgumentParser) -> None:
    form = command.add_mutually_exclusive_group()
    form.add_argument("--hex", action="store_true", help="keys are given, and shown, in hexadecimal")
    form.add_argument("--base64", action="store_true", help="keys are given, and shown, in base64")


def _takes_json(command: argparse.ArgumentParser, help_: str = "print the result as JSON") -> None:
    command.add_argument("--json", action="store_true", help=help_)


def _waits(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--wait",
        metavar="SECONDS",
        type=_seconds,
        default=_WAIT_S,
        help=f"how long to wait while another process has the store to itself, {_WAIT_S:.0f} if not given",
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"not a number of seconds from 0 to 86400: {text!r}")
    return seconds


def _parse_set(command: argparse.ArgumentParser) -> None:
    command.add_argument("key", metavar="KEY")
    command.add_argument("value", metavar="VALUE", help="the value, or - to read it from standard input")
    command.add_argument("--ttl", type=float, metavar="S", help="expire the key after this many seconds")
    _takes_keys(command)
    _waits(command)


def _parse_get(command: argparse.ArgumentParser) -> None:
    command.add_argument("key", metavar="KEY")
    _takes_keys(command)
    _takes_json(command, "print the whole entry as one line of JSON, with its seq and times")


def _parse_delete(command: argparse.ArgumentParser) -> None:
    command.add_argument("key", metavar="KEY", nargs="*")
    command.add_argument("--prefix", metavar="PREFIX", help="delete every key with this prefix, as one operation")
    _takes_keys(command)
    _waits(command)


def _parse_maintenance(command: argparse.ArgumentParser) -> None:
    _takes_json(command)
    _waits(command)


def _parse_count(command: argparse.ArgumentParser) -> None:
    command.add_argument("prefix", metavar="PREFIX", nargs="?", default="", help="only keys with this prefix")
    command.add_argument("--start", metavar="KEY", help="the key to start at, included")
    command.add_argument("--stop", metavar="KEY", help="the key to stop at, not included")
    _takes_keys(command)


def _parse_scan(command: argparse.ArgumentParser) -> None:
    command.add_argument("prefix", metavar="PREFIX", nargs="?", default="", help="only keys with this prefix")
    command.add_argument("--keys-only", action="store_true", help="without the values")
    command.add_argument("--start", metavar="KEY", help="the key to start at, included")
    command.add_argument("--stop", metavar="KEY", help="the key to stop at, not included")
    command.add_argument("--reverse", action="store_true", help="from the last key to the first")
    command.add_argument("--limit", metavar="N", type=_count, help="how many entries to list at most")
    command.add_argument("-0", "--null", action="store_true", help="end each entry with a zero byte, not a newline")
    _takes_keys(command)
    _takes_json(command, "print each entry as a line of JSON, as export does")


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > 18:
        raise argparse.ArgumentTypeError(f"not a number from 0 on: {text!r}")
    return int(text)


def _parse_export(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "file", metavar="FILE", nargs="?", default="-", help="the file to write; - or nothing for standard output"
    )
    command.add_argument("--prefix", metavar="PREFIX", default="", help="only keys with this prefix")
    _takes_keys(command)


def _parse_import(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "file", metavar="FILE", nargs="?", default="-", help="the file to read; - or nothing for standard input"
    )
    command.add_argument(
        "--from",
        dest="source",
        choices=("shelve", "dbm", "sqlitedict", "diskcache", "sqlite"),
        help="FILE is a database of this library; what it has pickled stays pickled",
    )
    command.add_argument("--table", metavar="NAME", help="the table, for sqlite and sqlitedict")
    command.add_argument("--columns", metavar="KEY,VALUE", help="the columns, for sqlite; otherwise the first two")
    command.add_argument(
        "--duplicates",
        choices=("refuse", "first", "last"),
        help="which entry to keep if a key has several; if not given, last for JSON Lines and refuse for a database",
    )
    _waits(command)


def _parse_serve(command: argparse.ArgumentParser) -> None:
    command.add_argument("--resp", metavar="HOST:PORT", help="serve Redis clients there")
    command.add_argument("--http", metavar="HOST:PORT", help="serve HTTP there; needs bytekv[http]")
    password = command.add_mutually_exclusive_group()
    password.add_argument(
        "--password",
        metavar="TEXT",
        help="the password of Redis clients, and the HTTP token if none is given; visible to others in ps",
    )
    password.add_argument("--password-file", metavar="FILE", help="its first line is the password")
    password.add_argument(
        "--no-password", action="store_true", help="let Redis clients in without one, although HTTP needs a token"
    )
    token = command.add_mutually_exclusive_group()
    token.add_argument(
        "--token",
        metavar="TEXT",
        help="the bearer token for HTTP, and the Redis password if none is given; visible to others in ps",
    )
    token.add_argument("--token-file", metavar="FILE", help="lines of a token and its scopes: read, write, admin")
    token.add_argument(
        "--no-token", action="store_true", help="let everyone in over HTTP, although Redis clients need a password"
    )
    command.add_argument(
        "--allowed-host", metavar="NAME", action="append", default=[], help="a name that HTTP answers to; repeatable"
    )
    command.add_argument("--backup-dir", metavar="DIR", help="an existing directory where BGSAVE puts backups")
    command.add_argument(
        "--sync",
        choices=("interval", "always", "os"),
        default="interval",
        help="when a write survives a power cut: after a second, before its reply, or when the system decides",
    )
    command.add_argument(
        "--shared", action="store_true", help="let other processes that share the store write to it at the same time"
    )


def _parse_backup(command: argparse.ArgumentParser) -> None:
    command.add_argument("dest", metavar="DEST", help="a new or empty directory, or an earlier backup of this store")
    _takes_json(command)


def _parse_inspect(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "segment", metavar="SEGMENT", help="a file, or the number of a segment in the store's directory"
    )
    _takes_json(command, "print each item as a line of JSON")


def _serve(arguments: argparse.Namespace) -> int:
    from .serve import serve  # which no other command needs, nor what it imports

    return serve(arguments)


def _inspect(arguments: argparse.Namespace) -> int:
    from .inspect import inspect_segment

    return inspect_segment(arguments)


class CliCommand:
    """One command: its names, its help, its arguments, and the function that carries it out; short: one key."""

    def __init__(
        self,
        names: str,
        help_: str,
        run: Callable[[argparse.Namespace], int],
        parse: Callable[[argparse.ArgumentParser], None],
        *,
        is_short: bool = False,
    ) -> None:
        self.name, *self.aliases = names.split()
        self.help, self.run, self.parse = help_, run, parse
        self.is_short = is_short


CLI_COMMANDS: Final = (
    CliCommand("set put", "store a value under a key", commands.set_value, _parse_set, is_short=True),
    CliCommand(
        "get", "write a key's value to standard output, byte for byte", commands.get_value, _parse_get, is_short=True
    ),
    CliCommand(
        "delete del rm", "delete keys, or all with a prefix", commands.delete_keys, _parse_delete, is_short=True
    ),
    CliCommand("scan", "list keys and values in key order, separated by tabs", commands.scan_entries, _parse_scan),
    CliCommand("count", "count keys", commands.count_keys, _parse_count),
    CliCommand("compact", "reclaim the space of deleted and overwritten entries", commands.compact, _parse_maintenance),
    CliCommand("stats", "count keys and bytes", commands.show_stats, _takes_json),
    CliCommand("verify", "read and check every byte; changes nothing", commands.verify, _takes_json),
    CliCommand("repair", "recover the undamaged entries of a damaged store", commands.repair_store, _parse_maintenance),
    CliCommand(
        "backup",
        "copy the store into another directory, even while another process writes",
        commands.back_up,
        _parse_backup,
    ),
    CliCommand("export", "write all entries as JSON Lines", commands.export_entries, _parse_export),
    CliCommand(
        "import",
        "store the entries of JSON Lines, or of another library's database",
        commands.import_entries,
        _parse_import,
    ),
    CliCommand("serve", "serve the store to Redis clients and over HTTP until told to stop", _serve, _parse_serve),
    CliCommand("inspect", "show the entries of a segment file", _inspect, _parse_inspect),
)


def parser(names: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Return the parser, with those of the commands only that are among ``names``, if any is."""
    whole = _Parser(prog="bytekv", description="A key-value store in a directory.", allow_abbrev=False)
    _everywhere(whole, default=None)
    whole.add_argument("--version", action="version", version=_version())
    parts = whole.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    wanted = [
        command for command in CLI_COMMANDS if command.name in names or not set(names).isdisjoint(command.aliases)
    ]
    for command in wanted or CLI_COMMANDS:
        part = parts.add_parser(
            command.name, aliases=command.aliases, help=command.help, description=command.help, allow_abbrev=False
        )
        command.parse(part)
        _everywhere(part, default=argparse.SUPPRESS)
        part.set_defaults(command=command)
    return whole


def _version() -> str:
    from .. import __version__

    return f"bytekv {__version__}"


# --- main --------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None, *, before_long_work: Callable[[], object] = lambda: None) -> int:
    """Carry out one command line (without the program's name) and return its exit status.

    ``before_long_work`` is called before a command that is about more than one key.
    """
    given = sys.argv[1:] if argv is None else list(argv)
    if sys.stdout is None or sys.stderr is None:
        return FAILED  # closed by the caller: nowhere to say anything, and their numbers may be a segment's by now
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path need not be text; standard error does so already
    try:
        status = _run(given, before_long_work)
        sys.stdout.flush()
        return status
    except BaseException as error:
        _discard_output()
        return _told(error)


def _told(error: BaseException) -> int:
    """Report an exception and return the exit status."""
    if isinstance(error, BrokenPipeError):
        return UNREAD
    if isinstance(error, KeyboardInterrupt):
        text, status = "interrupted", INTERRUPTED
    elif isinstance(error, commands.NoSuchKeyError):
        missing = ", ".join(repr(key.decode(errors="backslashreplace")) for key in error.args)
        text, status = f"no such key: {missing}", NO_SUCH_KEY
    elif isinstance(error, (commands.UsageError, LimitError)):
        text, status = str(error), WRONG_USE
    elif isinstance(error, BytekvError):
        text, status = _described(error), FAILED
    elif isinstance(error, OSError):
        text, status = f"{error.filename or 'output'}: {error.strerror or error}", FAILED
    elif isinstance(error, MemoryError):
        text, status = "out of memory", FAILED
    else:
        import traceback

        traceback.print_exception(error)
        text, status = "this is a bug in bytekv; please report it with the lines above", _BUG
    commands.say(text)
    return status


def _run(given: list[str], before_long_work: Callable[[], object]) -> int:
    try:
        arguments = parser(() if "-h" in given or "--help" in given else given).parse_args(given)
    except commands.UsageError:
        # The partial parser would list only some of the commands.
        try:
            arguments = parser().parse_args(given)
        except SystemExit as end:
            return int(end.code or 0)
    except SystemExit as end:  # --help, --version
        return int(end.code or 0)
    for what in ("dir", "file", "dest", "segment"):
        if getattr(arguments, what, None) == "":  # and not the current directory
            name = "the store's directory" if what == "dir" else what.upper()
            raise commands.UsageError(f"the name of {name} is empty; is a variable not set?")
    if arguments.verbose:
        import logging

        class Harmless(logging.Formatter):
            def format(self, record: logging.LogRecord) -> str:
                return commands.harmless(super().format(record), keep="\n\t")

        level = logging.INFO if arguments.verbose == 1 else logging.DEBUG
        logging.basicConfig(level=level, stream=sys.stderr, force=True)
        logging.getLogger().handlers[0].setFormatter(Harmless("bytekv: %(message)s"))
    command: CliCommand = arguments.command
    if not command.is_short:
        before_long_work()
    return command.run(arguments)


def _described(error: BytekvError) -> str:
    if isinstance(error, StoreLockedError):
        more = ""
        if error.wanted == "alone":
            more = " and shares it; only repair cannot do so"
        elif error.shared:
            more = " and shares it; do so with --shared"
        elif error.wanted == "shared":
            more = " and does not share it"
        return f"{error.path}: locked by {_holder(error.pid)}, which writes to it{more}"
    if isinstance(error, StoreBusyError):
        doing = "" if error.doing is None else f" ({error.doing})"
        return (
            f"{error.path}: {_holder(error.pid)}{doing} has not given the store back;"
            " let it go on or end it, look for a transaction that it keeps open, or --wait longer"
        )
    if isinstance(error, StoreNotFoundError) and error.strerror == os.strerror(errno.ENOENT):
        return f"{error.filename}: no store there"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, CorruptionError) and "repair" not in error.reason:
        return f"{error}; bytekv repair recovers the undamaged entries"
    return str(error)


def _holder(pid: int | None) -> str:
    return "another process" if pid is None else "this process" if pid == os.getpid() else f"process {pid}"


def _discard_output() -> None:
    """Suppress complaints about output that nobody reads, now and when Python ends."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
