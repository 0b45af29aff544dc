"""Commands: parsed arguments in, output and an exit status out.

Values go to standard output byte for byte, messages to standard error. What only reads opens the store with flag "r"
and therefore works beside a process that writes. What a command needs beyond the store is imported by the command.
How arguments are written on a command line, and what an exception becomes, is not known here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator

from .. import Store, repair
from .. import open as open_store
from .._lean import TYPE_CHECKING, suppress
from ..contract.convert import MAX_VALUE_SIZE, check_sizes, expiry_of
from ..errors import StoreLockedError, StoreNotFoundError

if TYPE_CHECKING:
    from argparse import Namespace
    from contextlib import AbstractContextManager
    from typing import Any, BinaryIO, Final, TypeVar, Unpack

    from ..options import Flag, OpenOptions
    from ..transfer.json_lines import Duplicates, Row

    T = TypeVar("T")

DONE: Final = 0
FAILED: Final = 3  # verify and inspect, where damage is what was asked for and no exception


class UsageError(Exception):
    """Raised for what the user has to change."""


class NoSuchKeyError(Exception):
    """Raised with a key that does not exist."""


# --- what comes in and goes out ----------------------------------------------------------------


def opened(arguments: Namespace, flag: Flag, **options: Unpack[OpenOptions]) -> Store:
    """Open the store, and wait for it as long as --wait says; where others share it, be one of them."""

    def attempt() -> Store:
        try:
            return open_store(arguments.dir, flag, **options)
        except StoreLockedError as error:
            if not error.shared or "wait" not in arguments:  # as serve has none: it shares only if told to
                raise
        beside_others: OpenOptions = {**options, "shared": True, "busy_timeout_s": arguments.wait}
        return open_store(arguments.dir, flag, **beside_others)

    return _waiting(arguments, attempt)


def _waiting(arguments: Namespace, attempt: Callable[[], T]) -> T:
    """Retry while another process has the store, for as long as --wait says; waiting commands take turns."""
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
            # A different pause each time, so that processes that wait together do not all try again together.
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
    """Tell whether output goes to a terminal, which stored bytes must not control."""
    return sys.stdout.isatty()


def harmless(text: str, *, keep: str = "") -> str:
    """Escape characters that control a terminal instead of being shown, except those to ``keep``.

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
    """Return a line of JSON that says the same and cannot affect a terminal."""
    import json

    return "".join(
        character if character.isprintable() or character == "\n" else json.dumps(character)[1:-1]
        for character in line.decode()
    ).encode()


def write_line(text: str) -> None:
    """Write a line of text to standard output."""
    sys.stdout.write((harmless(text, keep="\n") if _shows() else text) + "\n")


def write_json(fields: object) -> None:
    """Write a JSON document to standard output, as one line."""
    import json

    write_line(json.dumps(fields))


def say(text: str) -> None:
    """Tell the user; control characters in names and keys cannot affect the terminal."""
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
    with opened(arguments, "c", sync="os", auto_compact=False) as store:
        store.put(key, value, ttl=arguments.ttl)
    return DONE


def get_value(arguments: Namespace) -> int:
    """Write out a value, or the whole entry as JSON."""
    key = _given(arguments, arguments.key)
    with opened(arguments, "r") as store:
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
        sys.stderr.write("\n")  # so that the prompt is on a line of its own
    return DONE


def delete_keys(arguments: Namespace) -> int:
    """Delete keys; those that exist, even if others do not."""
    keys = [_given(arguments, key) for key in arguments.key]
    if bool(keys) == (arguments.prefix is not None):
        raise UsageError("delete takes either keys or --prefix (bytekv delete --help says more)")
    if arguments.prefix == "":
        raise UsageError("an empty prefix matches every key; for an empty store, delete its directory")
    with opened(arguments, "w", sync="os", auto_compact=False) as store:
        if arguments.prefix is not None:
            from ..contract.convert import counted

            say(f"{counted(store.delete_prefix(_given(arguments, arguments.prefix)), 'key')} deleted")
            return DONE
        missing = [key for key in keys if not store.delete(key)]
    if missing:
        raise NoSuchKeyError(*missing)
    return DONE


def count_keys(arguments: Namespace) -> int:
    """Write out how many keys a range has."""
    prefix = _given(arguments, arguments.prefix)
    start = None if arguments.start is None else _given(arguments, arguments.start)
    stop = None if arguments.stop is None else _given(arguments, arguments.stop)
    with opened(arguments, "r") as store:
        count = store.count(prefix, start=start, stop=stop)
    write_line(str(count))
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
    with opened(arguments, "r") as store:
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
    """Reclaim space."""
    from ..contract.convert import counted
    from .terminal import Bar, quantity

    with opened(arguments, "w") as store, Bar("compacting") as bar:
        result = store.compact(progress=bar.callback)
    if arguments.json:
        write_json({**result._asdict(), "reclaimed_bytes": result.reclaimed_bytes})
    else:
        say(
            f"{quantity(result.reclaimed_bytes)} reclaimed: {quantity(result.bytes_before)} in"
            f" {counted(result.segments_before, 'segment')} became {quantity(result.bytes_after)}"
            f" in {result.segments_after}"
        )
    return DONE


def show_stats(arguments: Namespace) -> int:
    """Write out counts."""
    with opened(arguments, "r") as store:
        stats = store.stats()
    fields = stats._asdict()
    if arguments.json:
        write_json({**fields, "segments": [row._asdict() for row in stats.segments]})
        return DONE
    from .terminal import table

    del fields["segments"]
    for name, value in fields.items():
        if value is not None:
            write_line(f"{name:16} {value}")
    if stats.segments:
        write_line("")
        table(stats.segments[0]._fields, stats.segments)
    return DONE


def _report(arguments: Namespace, report: Any) -> None:
    if not arguments.json:
        write_line(str(report))
        return
    from ..transfer.json_lines import text_of

    write_json(
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

    with opened(arguments, "r") as store, Bar("verifying") as bar:
        report = store.verify(progress=bar.callback)
    _report(arguments, report)
    if report.ok:
        return DONE
    say(f"{arguments.dir}: damaged; bytekv repair recovers the undamaged entries")
    return FAILED


def repair_store(arguments: Namespace) -> int:
    """Recover the undamaged entries."""
    from .terminal import Bar

    with Bar("repairing") as bar:
        report = _waiting(arguments, lambda: repair(arguments.dir, progress=bar.callback))
    _report(arguments, report)
    return DONE


def back_up(arguments: Namespace) -> int:
    """Copy the store."""
    from ..contract.convert import counted
    from .terminal import Bar, quantity

    with opened(arguments, "r") as store, Bar("backing up") as bar:
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
        write_json(report._asdict())
    else:
        say(
            f"{arguments.dest}: operations up to {report.seq} in {counted(report.segments, 'segment')},"
            f" {report.kept} of them from before, {report.linked} linked, {quantity(report.copied_bytes)} copied"
        )
    return DONE


# --- export, import ----------------------------------------------------------------------------


def export_entries(arguments: Namespace) -> int:
    """Write all entries as JSON Lines."""
    from ..contract.reports import Progress
    from ..transfer.json_lines import encode_lines
    from .terminal import Bar

    with opened(arguments, "r") as store, store.snapshot() as snapshot:
        total, done = len(snapshot), 0
        mixed = arguments.file == "-" and _shows()  # a bar would mix with the lines
        with _written(arguments.file) as write, Bar("exporting", is_hidden=mixed) as bar:
            for pairs, expires in snapshot._rows(_given(arguments, arguments.prefix)):
                write(encode_lines(pairs, expires))
                done += len(pairs)
                if bar.callback is not None:
                    bar.callback(Progress(done, total))
    return DONE


def _written(path: str) -> AbstractContextManager[Callable[[bytes], object]]:
    """Give a function that writes to a file, which is there under its name only once it is whole; "-": to stdout.

    A new file is its owner's alone, as the store's are; one that is replaced keeps its owner and mode.
    """
    from contextlib import contextmanager

    return contextmanager(_write_whole)(path)


def _write_whole(path: str) -> Iterator[Callable[[bytes], object]]:
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
                        f"{path}: belongs to another user, and a new file would not; remove it, or choose another name"
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
    from ..contract.convert import counted
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
                with opened(arguments, "c") as store:
                    result = load(store, rows, loaded, duplicates=duplicates)
            else:
                with reading(arguments.file) as stream:
                    rows = _begun(read_lines(stream, _advance(stream, bar)))
                    with opened(arguments, "c") as store:
                        result = load(store, rows, loaded, duplicates=duplicates)
        except (DuplicateError, LineError, SourceError) as error:
            name = "" if isinstance(error, SourceError) or arguments.file == "-" else f"{arguments.file}: "
            advice = ""
            if isinstance(error, DuplicateError):
                advice = (
                    "; text, numbers and bytes that look alike become one key: --duplicates first or last keeps one"
                )
            so_far = (
                f"{counted(done, 'entry', 'entries')} before it {'was' if done == 1 else 'were'} imported"
                if done
                else "nothing was imported"
            )
            raise UsageError(f"{name}{error}{advice}; {so_far}") from None
    say(
        f"{counted(result.stored, 'entry', 'entries')} imported"
        + (f", {result.expired} had expired" if result.expired else "")
    )
    return DONE


def _begun(rows: Iterator[Row]) -> Iterator[Row]:
    """Read the first entry, so that no store is created for a source that cannot be read at all."""
    from itertools import chain

    return chain([row for row in [next(rows, None)] if row is not None], rows)


def _columns(text: str) -> tuple[str, str]:
    key, comma, value = text.partition(",")
    if not (key and comma and value) or "," in value:
        raise UsageError(f"--columns takes two names, KEY,VALUE, not {text!r}")
    return key, value


def reading(path: str) -> AbstractContextManager[BinaryIO]:
    """Open a file for a block; "-": standard input."""
    if path == "-":
        from contextlib import nullcontext

        return nullcontext(_input())
    try:
        return open(path, "rb")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


def _advance(stream: BinaryIO, bar: Any) -> Callable[[int], object]:
    """Return what counts the bytes that have been read, for the bar."""
    import stat

    from ..contract.reports import Progress

    found = os.fstat(stream.fileno()) if bar.callback is not None else None
    if found is None or not stat.S_ISREG(found.st_mode):
        return lambda size: None
    read = 0

    def advance(size: int) -> None:
        nonlocal read
        read += size
        bar.callback(Progress(read, found.st_size))

    return advance
