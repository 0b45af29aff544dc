"""What each command does: arguments in, output and an exit status out.

Values go to standard output byte for byte, messages to standard error. What only reads opens the store with flag "r"
and therefore works beside a process that writes. What a command needs beyond the store is imported by the command.
How arguments are written on a command line, and what an exception becomes, is not known here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from ..contract.convert import MAX_VALUE_SIZE, check_sizes, expiry_of
from ..engine.store import Store, repair
from ..engine.store import open as open_store
from ..errors import StoreLockedError, StoreNotFoundError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any, BinaryIO, Final, TypeVar, Unpack

    from ..engine.open import Flag
    from ..options import OpenOptions
    from ..transfer.json_lines import Duplicates, Row

    T = TypeVar("T")

DONE: Final = 0
FAILED: Final = 3  # verify and inspect, where damage is what was asked for and no exception


class UsageError(Exception):
    """Raised for what the person at the keyboard has to change."""


class NoSuchKeyError(Exception):
    """Raised with a key that does not exist."""


# --- what comes in and goes out ----------------------------------------------------------------


@contextmanager
def _store(arguments: Namespace, flag: Flag, **options: Unpack[OpenOptions]) -> Iterator[Store]:
    with _waiting(arguments, lambda: open_store(arguments.dir, flag, **options)) as store:
        yield store


def _waiting(arguments: Namespace, attempt: Callable[[], T]) -> T:
    """Try again while another process has the store, for as long as --wait says; commands in a row take turns."""
    deadline = None
    while True:
        try:
            return attempt()
        except StoreLockedError as error:
            import random
            import time

            now = time.monotonic()
            if deadline is None:
                deadline = now + getattr(arguments, "wait", 0.0)
            if error.pid == os.getpid() or now >= deadline:
                raise
            # Some milliseconds, each time others, lest those who wait together come together again.
            time.sleep(min(random.uniform(0.002, 0.03), deadline - now))


def _given(arguments: Namespace, text: str) -> bytes:
    """Return the bytes of a key on the command line, in the form that --hex and --base64 say."""
    if arguments.hex:
        try:
            return bytes.fromhex(text)
        except ValueError:
            raise UsageError(f"{text!r} is not hexadecimal") from None
    if arguments.base64:
        import binascii

        try:
            return binascii.a2b_base64(os.fsencode(text), strict_mode=True)
        except binascii.Error as error:
            raise UsageError(f"{text!r} is not base64: {error}") from None
    return os.fsencode(text)


def _shown(arguments: Namespace, key: bytes) -> bytes:
    if arguments.hex:
        return key.hex().encode()
    if arguments.base64:
        import binascii

        return binascii.b2a_base64(key, newline=False)
    return key


def _input() -> BinaryIO:
    if sys.stdin is None:
        raise UsageError("standard input is closed")
    return sys.stdin.buffer


def _output() -> Callable[[bytes], object]:
    return sys.stdout.buffer.write


def _shows() -> bool:
    """Tell whether output is shown to a person, whose terminal is not to be steered by what somebody has stored."""
    return sys.stdout.isatty()


def harmless(text: str, *, keep: str = "") -> str:
    """Write characters out that do something to a terminal instead of being shown, but those to ``keep``.

    >>> harmless("a\\x1b]0;title\\x07b")
    'a\\\\x1b]0;title\\\\x07b'
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in keep else ascii(character)[1:-1] for character in text
    )


def _legible(given: bytes, *, keep: str = "") -> bytes:
    """Return bytes as they are shown on a terminal."""
    return harmless(given.decode(errors="backslashreplace"), keep=keep).encode(errors="backslashreplace")


def _legible_line(line: bytes) -> bytes:
    """Return a line of JSON that says the same and does nothing to a terminal."""
    import json

    return "".join(
        character if character.isprintable() or character == "\n" else json.dumps(character)[1:-1]
        for character in line.decode()
    ).encode()


def _print(text: str) -> None:
    sys.stdout.write((harmless(text, keep="\n") if _shows() else text) + "\n")


def _print_json(fields: object) -> None:
    import json

    _print(json.dumps(fields))


def say(text: str) -> None:
    """Tell the person at the keyboard; control characters of names and keys do nothing to the terminal."""
    sys.stderr.write(f"bytekv: {harmless(text)}\n")
    sys.stderr.flush()


# --- keys and values ---------------------------------------------------------------------------


def set_value(arguments: Namespace) -> int:
    """Store a value."""
    key = _given(arguments, arguments.key)
    # One byte more than a value may have is enough to be told so.
    value = _input().read(MAX_VALUE_SIZE + 1) if arguments.value == "-" else os.fsencode(arguments.value)
    check_sizes(key, value)  # before a store is made for what it cannot take
    expiry_of(arguments.ttl, None)
    # close() makes it durable, so "os" is as safe here and starts no thread that would sync as well.
    with _store(arguments, "c", sync="os", auto_compact=False) as store:
        store.put(key, value, ttl=arguments.ttl)
    return DONE


def get_value(arguments: Namespace) -> int:
    """Write out a value, or the whole entry as JSON."""
    key = _given(arguments, arguments.key)
    with _store(arguments, "r") as store:
        if arguments.json:
            from ..transfer.json_lines import encode_line

            try:
                entry = store.entry(key)
            except KeyError:
                raise NoSuchKeyError(key) from None
            found = encode_line(entry.key, entry.value, entry.expires, seq=entry.seq, modified=entry.modified)
        else:
            value = store.get(key)
            if value is None:
                raise NoSuchKeyError(key)
            found = value
    if _shows():
        found = _legible_line(found) if arguments.json else _legible(found, keep="\n\t")
    _output()(found)
    if not arguments.json and sys.stdout.isatty() and sys.stderr.isatty():
        sys.stdout.flush()
        sys.stderr.write("\n")  # so that the prompt stands on a line of its own
    return DONE


def delete_key(arguments: Namespace) -> int:
    """Delete a key."""
    key = _given(arguments, arguments.key)
    with _store(arguments, "w", sync="os", auto_compact=False) as store:
        if not store.delete(key):
            raise NoSuchKeyError(key)
    return DONE


def scan_entries(arguments: Namespace) -> int:
    """Write out the entries of a range."""
    range_: dict[str, Any] = {
        "prefix": _given(arguments, arguments.prefix),
        "start": None if arguments.start is None else _given(arguments, arguments.start),
        "stop": None if arguments.stop is None else _given(arguments, arguments.stop),
        "reverse": arguments.reverse,
        "limit": arguments.limit,
    }
    write, end = _output(), b"\0" if arguments.null else b"\n"
    line = _legible_line if _shows() else _as_it_is
    shown = _legible if _shows() else _as_it_is
    with _store(arguments, "r") as store:
        if arguments.json:
            from ..transfer.json_lines import encode_line

            with store.snapshot() as snapshot:
                for key in snapshot.scan_keys(**range_):
                    if arguments.keys_only:
                        write(line(encode_line(key, None)))
                    elif (entry := _entry(snapshot, key)) is not None:
                        write(line(encode_line(key, entry.value, entry.expires)))
        elif arguments.keys_only:
            for key in store.scan_keys(**range_):
                write(shown(_shown(arguments, key)) + end)
        else:
            for key, value in store.scan(**range_):
                write(shown(_shown(arguments, key)) + b"\t" + shown(value) + end)
    return DONE


def _as_it_is(given: bytes) -> bytes:
    return given


def _entry(snapshot: Any, key: bytes) -> Any:
    try:
        return snapshot.entry(key)
    except KeyError:
        return None  # expired since the scan met it


# --- the store as a whole ----------------------------------------------------------------------


def compact(arguments: Namespace) -> int:
    """Give space back."""
    from .terminal import Bar, quantity

    with _store(arguments, "w") as store, Bar("compacting") as bar:
        result = store.compact(progress=bar.callback)
    if arguments.json:
        _print_json({**result._asdict(), "reclaimed_bytes": result.reclaimed_bytes})
    else:
        say(
            f"{quantity(result.reclaimed_bytes)} given back: {quantity(result.bytes_before)} in"
            f" {result.segments_before} segments became {quantity(result.bytes_after)} in {result.segments_after}"
        )
    return DONE


def show_stats(arguments: Namespace) -> int:
    """Write out counts."""
    with _store(arguments, "r") as store:
        stats = store.stats()
    fields = stats._asdict()
    if arguments.json:
        _print_json({**fields, "segments": [row._asdict() for row in stats.segments]})
        return DONE
    from .terminal import table

    del fields["segments"]
    for name, value in fields.items():
        if value is not None:
            _print(f"{name:16} {value}")
    if stats.segments:
        _print("")
        table(stats.segments[0]._fields, stats.segments)
    return DONE


def _report(arguments: Namespace, report: Any) -> None:
    if not arguments.json:
        _print(str(report))
        return
    from ..transfer.json_lines import text_of

    _print_json(
        {
            "ok": report.ok,
            "segments": report.segments,
            "entries": report.entries,
            "keys": report.keys,
            "checked_bytes": report.checked_bytes,
            "damage": [
                {"path": damage.path, "offset": damage.offset, "reason": damage.reason}
                | ({} if damage.key is None else text_of("key", damage.key))
                for damage in report.damage
            ],
            "quarantined": report.quarantined,
        }
    )


def verify(arguments: Namespace) -> int:
    """Check every byte; `FAILED` if one is wrong."""
    from .terminal import Bar

    with _store(arguments, "r") as store, Bar("verifying") as bar:
        report = store.verify(progress=bar.callback)
    _report(arguments, report)
    if report.ok:
        return DONE
    say(f"{arguments.dir}: damaged; bytekv repair saves what is whole")
    return FAILED


def repair_store(arguments: Namespace) -> int:
    """Save what is whole."""
    from .terminal import Bar

    with Bar("repairing") as bar:
        report = _waiting(arguments, lambda: repair(arguments.dir, progress=bar.callback))
    _report(arguments, report)
    return DONE


def back_up(arguments: Namespace) -> int:
    """Copy the store."""
    from .terminal import Bar, quantity

    with _store(arguments, "r") as store, Bar("backing up") as bar:
        try:
            report = store.backup(arguments.dest, progress=bar.callback)
        except ValueError as error:
            raise UsageError(str(error)) from None
        except StoreNotFoundError as error:
            if error.filename != os.path.abspath(arguments.dest):
                raise
            advice = "cannot be made: its parent directory does not exist; create that first"
            raise StoreNotFoundError(error.errno, advice, error.filename) from None
    if arguments.json:
        _print_json(report._asdict())
    else:
        say(
            f"{arguments.dest}: operations up to {report.seq} in {report.segments} segments, {report.kept} of them from"
            f" before, {report.linked} linked, {quantity(report.copied_bytes)} copied"
        )
    return DONE


# --- export, import ----------------------------------------------------------------------------


def export_entries(arguments: Namespace) -> int:
    """Write all entries as JSON Lines."""
    from ..engine.space.compactor import Progress
    from ..transfer.json_lines import encode_line
    from .terminal import Bar

    with _store(arguments, "r") as store, store.snapshot() as snapshot:
        total, done = len(snapshot), 0
        mixed = arguments.file == "-" and _shows()  # a bar among the lines helps nobody
        with _written(arguments.file) as write, Bar("exporting", is_hidden=mixed) as bar:
            for key in snapshot.scan_keys(_given(arguments, arguments.prefix)):
                entry = _entry(snapshot, key)
                if entry is not None:
                    write(encode_line(key, entry.value, entry.expires))
                done += 1
                if bar.callback is not None and done % 1000 == 0:
                    bar.callback(Progress(done, total))
    return DONE


@contextmanager
def _written(path: str) -> Iterator[Callable[[bytes], object]]:
    """Give a function that writes to a file, which is there under its name only once it is whole; "-": to stdout.

    A new file is its owner's alone, as the store's are; one that is replaced keeps its owner and mode.
    """
    if path == "-":
        write, line = _output(), _legible_line if _shows() else _as_it_is
        yield lambda piece: write(line(piece))
        return
    path = os.path.realpath(path)  # a link stays one
    whole = not os.path.exists(path) or os.path.isfile(path)
    # Random, as well: in a container the number of a process is that of the one that was killed.
    target = f"{path}.{os.getpid()}-{os.urandom(4).hex()}.part" if whole else path
    try:
        file = _new_file(target, path) if whole else open(path, "wb")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    try:
        with file:
            yield file.write
            if whole:
                file.flush()
                os.fsync(file.fileno())  # else a power cut could leave an empty file in the place of the old one
        if whole:
            os.replace(target, path)
    except BaseException:
        if whole:
            with suppress(OSError):  # what failed before says more
                os.unlink(target)
        raise


def _new_file(target: str, path: str) -> BinaryIO:
    """Make the file that will take the place of ``path``, with the rights of what is there."""
    try:
        old = os.stat(path)
    except FileNotFoundError:
        old = None
    file = open(target, "xb", opener=lambda name, flags: os.open(name, flags, 0o600))
    try:
        if old is not None and hasattr(os, "fchown"):
            mode, new = old.st_mode & 0o777, os.fstat(file.fileno())
            if old.st_uid != new.st_uid:
                try:
                    os.fchown(file.fileno(), old.st_uid, -1)
                except OSError:
                    raise UsageError(
                        f"{path}: belongs to another user, as a new file would not; remove it, or choose another name"
                    ) from None
            if old.st_gid != new.st_gid:
                try:
                    os.fchown(file.fileno(), -1, old.st_gid)
                except OSError:
                    mode &= ~0o070  # those were the rights of another group
            os.fchmod(file.fileno(), mode)
    except BaseException:
        file.close()
        os.unlink(target)
        raise
    return file


def import_entries(arguments: Namespace) -> int:
    """Store entries of JSON Lines or of another library's database."""
    from ..transfer.foreign import SourceError, read_source
    from ..transfer.json_lines import DuplicateError, LineError, load, read_lines
    from .terminal import Bar

    if arguments.source is None and (arguments.table is not None or arguments.columns is not None):
        raise UsageError("--table and --columns are for --from sqlite and --from sqlitedict")
    if arguments.source is not None and arguments.file == "-":
        raise UsageError(f"say which database: --from {arguments.source} PATH; it cannot come from standard input")
    duplicates: Duplicates = arguments.duplicates or ("last" if arguments.source is None else "refuse")
    done = 0

    def loaded(count: int) -> None:
        nonlocal done
        done = count

    with Bar("importing") as bar:
        try:
            if arguments.source is not None:
                columns = None if arguments.columns is None else _columns(arguments.columns)
                rows = _begun(read_source(arguments.source, arguments.file, arguments.table, columns, say))
                with _store(arguments, "c") as store:
                    result = load(store, rows, loaded, duplicates=duplicates)
            else:
                with _read(arguments.file) as stream:
                    rows = _begun(read_lines(stream, _advance(stream, bar)))
                    with _store(arguments, "c") as store:
                        result = load(store, rows, loaded, duplicates=duplicates)
        except (DuplicateError, LineError, SourceError) as error:
            name = "" if isinstance(error, SourceError) or arguments.file == "-" else f"{arguments.file}: "
            advice = ""
            if isinstance(error, DuplicateError):
                advice = (
                    "; text, numbers and bytes that look alike become one key: --duplicates first or last keeps one"
                )
            so_far = f"{done} entries before it were imported" if done else "nothing was imported"
            raise UsageError(f"{name}{error}{advice}; {so_far}") from None
    say(f"{result.stored} entries imported" + (f", {result.expired} had expired" if result.expired else ""))
    return DONE


def _begun(rows: Iterator[Row]) -> Iterator[Row]:
    """Read the first of the entries, so that no store is made for a source that is wrong altogether."""
    from itertools import chain

    return chain([row for row in [next(rows, None)] if row is not None], rows)


def _columns(text: str) -> tuple[str, str]:
    key, comma, value = text.partition(",")
    if not (key and comma and value) or "," in value:
        raise UsageError(f"--columns takes two names, KEY,VALUE, not {text!r}")
    return key, value


@contextmanager
def _read(path: str) -> Iterator[BinaryIO]:
    if path == "-":
        yield _input()
        return
    try:
        file = open(path, "rb")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    with file:
        yield file


def _advance(stream: BinaryIO, bar: Any) -> Callable[[int], object]:
    """Return what counts the bytes that have been read, for the bar."""
    import stat

    from ..engine.space.compactor import Progress

    found = os.fstat(stream.fileno()) if bar.callback is not None else None
    if found is None or not stat.S_ISREG(found.st_mode):
        return lambda size: None
    read = 0

    def advance(size: int) -> None:
        nonlocal read
        read += size
        bar.callback(Progress(read, found.st_size))

    return advance


# --- inspect -----------------------------------------------------------------------------------


def inspect_segment(arguments: Namespace) -> int:
    """Write out what lies in a segment; `FAILED` if it is damaged."""
    from ..engine.integrity.inspection import Inspection

    path = arguments.segment
    if path.isdecimal() and path.isascii() and len(path) < 20 and not os.path.exists(path):
        path = os.path.join(arguments.dir, f"{int(path):010d}.seg")
    try:
        inspection = Inspection(path)
    except StoreNotFoundError:
        raise UsageError(f"{path}: no such segment; ls shows which there are, NUMBER.seg") from None
    with inspection:
        is_damaged = _show_header(arguments, inspection.header)
        for found in inspection:
            is_damaged |= found.kind == "damage"
            _show_found(arguments, found)
    return FAILED if is_damaged else DONE


def _show_header(arguments: Namespace, header: Any) -> bool:
    if arguments.json:
        _print_json({**header._asdict(), "kind": "header", "segment_kind": header.kind})
        return header.wrong is not None
    _print(f"{ascii(header.path)[1:-1]}: {header.size_bytes} bytes, format version {header.version}, {header.kind}")
    _print(f"segment {header.segment_id} of store {header.store_uuid}, salt {header.salt:#018x}")
    _print(f"after segment {header.previous_id} and seq {header.previous_seq}")
    if header.wrong is not None:
        _print(f"the header is damaged: {header.wrong}")
    _print("")
    _print(f"{'offset':>10} {'size':>10} {'seq':>10}  what")
    return header.wrong is not None


_SHOWN_KEY_SIZE: Final = 60


def _show_found(arguments: Namespace, found: Any) -> None:
    if arguments.json:
        from ..transfer.json_lines import text_of

        fields = {name: value for name, value in found._asdict().items() if value or name in ("offset", "size", "kind")}
        if found.kind in ("put", "delete"):
            fields.pop("key", None)
            fields |= text_of("key", found.key)
        _print_json(fields)
        return
    text = found.kind
    if found.kind in ("put", "delete"):
        key = repr(found.key[:_SHOWN_KEY_SIZE])
        text += f" {key}" + ("…" if len(found.key) > _SHOWN_KEY_SIZE else "")
    if found.kind == "put":
        text += f", {found.value_size} bytes"
    if found.expires_ms:
        text += f", expires at {found.expires_ms / 1000:.3f}"
    if found.continues:
        text += ", more of the batch follows"
    if found.note:
        text += f": {found.note}"
    _print(f"{found.offset:10} {found.size:10} {found.seq or '':>10}  {text}")


# --- serve -------------------------------------------------------------------------------------

_MAX_SECRETS_SIZE: Final = 1 << 20


def serve(arguments: Namespace) -> int:
    """Serve the store at one or two doors until told to stop."""
    import asyncio

    from ..server.lifecycle import Door, DoorError, Stopped, ending_on_sigterm, serve_doors
    from ..server.sockets import raise_descriptor_limit

    doors: list[Door] = []
    with ending_on_sigterm() as check_stopped:
        try:
            password, tokens = _secrets(arguments)
            if arguments.resp is not None:
                from ..resp import serve as serve_resp

                host, port = _address(arguments.resp, 6379)
                at_resp = {"password": password, "backup_dir": arguments.backup_dir}
                doors.append(lambda started: serve_resp(store, host, port, started=started, **at_resp))
            if arguments.http is not None:
                from ..http import serve as serve_http

                http_host, http_port = _address(arguments.http, 8080)
                at_http = {"tokens": tokens, "allowed_hosts": arguments.allowed_host}
                doors.append(lambda started: serve_http(store, http_host, http_port, started=started, **at_http))
            if not doors:
                raise UsageError("say where to serve: --resp HOST:PORT, --http HOST:PORT, or both")
            raise_descriptor_limit()
            with _store(arguments, "c", sync=arguments.sync) as store:
                check_stopped()
                ready = lambda where: say(f"serving {store.path} at {' and '.join(where)}")  # noqa: E731
                asyncio.run(serve_doors(store, doors, ready))
        except DoorError as error:
            raise UsageError(f"cannot serve there: {error}") from None
        except Stopped:
            pass
    return DONE


def _address(text: str, default_port: int) -> tuple[str, int]:
    from ..server.lifecycle import address_of

    try:
        return address_of(text, default_port)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _secrets(arguments: Namespace) -> tuple[bytes | None, str | dict[str, str] | None]:
    """Return the password of Redis clients and the tokens of HTTP; a secret that is given guards both doors.

    Neither is ever missing without a word: where one door would stay open beside one that is guarded, or where a secret
    or its file is empty, too long or cut, that is an error.
    """
    for option in ("resp", "http", "password", "password_file", "token", "token_file", "backup_dir"):
        if getattr(arguments, option) == "":
            raise UsageError(f"--{option.replace('_', '-')} is empty; is a variable not set?")
    if "" in arguments.allowed_host:
        raise UsageError("--allowed-host is empty; is a variable not set?")
    where, password = "--password", None if arguments.password is None else os.fsencode(arguments.password)
    if arguments.password_file is not None:
        where, password = _first_line(arguments.password_file)
    tokens = arguments.token if arguments.token_file is None else _tokens(arguments.token_file)
    if tokens is not None and arguments.resp is not None and password is None and not arguments.no_password:
        if not isinstance(tokens, str):
            raise UsageError(
                f"everybody who can connect to {arguments.resp} could do everything as a Redis client, without a token:"
                " give --password-file, too, or --no-password if that is meant"
            )
        where, password = "--token", tokens.encode()
    if password is not None:
        from ..resp.protocol import UNTRUSTED

        if len(password) > UNTRUSTED.bulk_bytes:
            raise UsageError(f"{where}: a password of {len(password)} bytes; clients can show {UNTRUSTED.bulk_bytes:,}")
        if arguments.http is not None and tokens is None and not arguments.no_token:
            tokens = password.decode(errors="replace")
            if wrong := _wrong_token(tokens):
                raise UsageError(
                    f"everybody who can connect to {arguments.http} could do everything over HTTP, because the password"
                    f" cannot be its token: {wrong}; give --token-file, too, or --no-token if that is meant"
                )
    return password, tokens


def _first_line(path: str) -> tuple[str, bytes]:
    line = _lines(path)[0]
    if not line:
        raise UsageError(f"{path}: the first line is empty, and no password")
    return f"{path}, line 1", line.encode()


def _tokens(path: str) -> dict[str, str]:
    """Return tokens with their scopes from lines like ``TOKEN read write``; a token alone may do everything."""
    tokens: dict[str, str] = {}
    for number, line in enumerate(_lines(path), 1):
        token, *scopes = line.split() or ["#"]
        if token.startswith("#"):
            continue
        if token in tokens:
            raise UsageError(f"{path}: the token of line {number} is there twice")
        tokens[token] = " ".join(scopes) or "read write admin"
        if wrong := _wrong_token(token, tokens[token]):
            raise UsageError(f"{path}, line {number}: {wrong}")
    if not tokens:
        raise UsageError(f"{path}: has no token")
    return tokens


def _wrong_token(token: str, scopes: str = "read") -> str:
    """Return what is wrong with a token, nothing if it can be used."""
    from ..http.access import Access

    try:
        Access({token: scopes}, ())
    except ValueError as error:
        return str(error)
    return ""


def _lines(path: str) -> list[str]:
    """Return the lines of a file of secrets as they are; only a line break ends one."""
    try:
        with _read(path) as file:
            raw = file.read(_MAX_SECRETS_SIZE + 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    if len(raw) > _MAX_SECRETS_SIZE:
        raise UsageError(f"{path}: more than {_MAX_SECRETS_SIZE:,} bytes, and no file of secrets")
    try:
        return [line.removesuffix("\r") for line in raw.decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not UTF-8") from None
