"""SQLite files of unknown origin: their rows, read without writing anything beside them and without believing them.

*Nothing is written.* In WAL mode even a reader makes files beside a database. So one that nobody has open and that has
no log is opened as immutable; one with a log but without the log's index, and one whose last transaction was cut off,
is copied into a private directory first and recovered there. Neither takes SQLite's locks, so that the files have not
changed meanwhile is looked at. All others are opened with ``mode=ro``.

*Nothing is believed.* Pages may be shared, so that a file of 5 KB has 10¹⁴ rows, and the chain of a long value may be a
circle. The rows and values of a sound file take little more than its own size; counting them, and the steps that
SQLite takes, comes to an end when the file does. A table must be a table: a view or a virtual table could compute for
ever. A journal may name a file that SQLite would delete when it rolls back: one that does is refused. FIFOs and devices
in place of any of its files are refused before anything is opened.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

from .._lean import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3
    from typing import Final

__all__ = ["RowError", "SourceError", "as_bytes", "check_regular", "is_sqlite", "select"]

_MAGIC: Final = b"SQLite format 3\0"
_SIDECARS: Final = ("-journal", "-wal", "-shm")
_END_OF_SUPER_JOURNALS_NAME: Final = bytes.fromhex("d9d505f920a163d7")  # the last bytes of a journal that has one
_READ_VERSION: Final = slice(19, 20)  # of a database's header: which byte says how it may be read
_WAL: Final = b"\2"
_VALUE_COST: Final = 8  # bytes that a value counts beside its own
_GROWTH: Final = 8  # of bytes in a file: even an empty row takes four, and a default is not stored at all
_SPARE_BYTES: Final = 1 << 16
_HIDDEN, _COMPUTED = 1, 2  # kinds of columns
_STEPS_AT_ONCE: Final = 1000
_STEPS_PER_BYTE: Final = 16  # a row takes four bytes at least, and SQLite some ten steps
_SPARE_STEPS: Final = 1_000_000


class SourceError(Exception):
    """Raised when a source is missing, is something else than was said, or is damaged."""


class RowError(Exception):
    """Raised for a row that is no entry; says neither where nor which."""


def check_regular(path: str) -> bool:
    """Tell whether there is a file of this name; `SourceError` if it is a FIFO, a device or a directory."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(mode):
        raise SourceError(f"{path}: {'a directory' if stat.S_ISDIR(mode) else 'a device or a pipe'}, not a file")
    return True


def is_sqlite(path: str) -> bool:
    """Tell whether a file begins as SQLite's do."""
    return _head(path)[: len(_MAGIC)] == _MAGIC


def _head(path: str) -> bytes:
    if not check_regular(path):
        return b""
    try:
        with open(path, "rb") as file:
            return file.read(20)
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from error


def select(path: str, table: str | None, columns: tuple[str, ...] | None) -> Iterator[tuple[object, ...]]:
    """Yield columns of a table's rows: bytes for TEXT and BLOB, int, float, None; raises `SourceError`.

    ``table`` None: the only one; ``columns`` None: the first two.
    """
    import sqlite3

    try:
        size, is_over = _size(path), False
        steps = _SPARE_STEPS + _STEPS_PER_BYTE * size

        def is_endless() -> bool:
            nonlocal steps, is_over
            steps -= _STEPS_AT_ONCE
            is_over = steps < 0
            return is_over

        room = _GROWTH * size + _SPARE_BYTES
        with ExitStack() as cleanup:
            connection = _connect(path, cleanup)
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, min(size + _SPARE_BYTES, (1 << 31) - 1))
            connection.set_progress_handler(is_endless, _STEPS_AT_ONCE)
            table, columns = _find(connection, path, table, columns)
            names = ", ".join(map(_quoted, columns))
            for row in connection.execute(f"SELECT {names} FROM {_quoted(table)}"):
                room -= sum(_VALUE_COST + (len(value) if isinstance(value, bytes) else 0) for value in row)
                if room < 0:
                    raise SourceError(_more_than(path, size))
                yield row
    except (sqlite3.Error, UnicodeError, OSError) as error:
        raise SourceError(_more_than(path, size) if is_over else f"{path}: {error}") from error
    except MemoryError as error:  # SQLite's answer to lengths that cannot be
        raise SourceError(
            f"{path}: asks for more memory than there is; it is damaged, or has a very long row"
        ) from error


def _more_than(path: str, size: int) -> str:
    return (
        f"{path}: has more rows or longer values than its {size} bytes can hold, so its pages overlap, or a column has"
        " a long default; if the database is sound, import a copy made with CREATE TABLE … AS SELECT"
    )


@contextmanager
def _unchanged(path: str, sidecars: tuple[str, ...] = ()) -> Iterator[None]:
    """Raise `SourceError` if a database changes in the block, in which nobody is kept from changing it."""
    files = [path, *(path + sidecar for sidecar in sidecars)]
    before = list(map(_state, files))
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    if list(map(_state, files)) != before:
        raise SourceError(f"{path}: was changed while it was read; close the program that writes to it") from error
    if error is not None:
        raise error


def _state(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _size(path: str) -> int:
    size = os.path.getsize(path) if check_regular(path) else 0
    for sidecar in _SIDECARS:
        if check_regular(path + sidecar) and sidecar != "-shm":
            size += os.path.getsize(path + sidecar)
    return size


def _connect(path: str, cleanup: ExitStack) -> sqlite3.Connection:
    import sqlite3

    head = _head(path)
    if not head:
        raise SourceError(f"{path}: {'empty, no database' if os.path.exists(path) else 'not there'}")
    if not head.startswith(_MAGIC):
        raise SourceError(f"{path}: not an SQLite database")
    log_size = os.path.getsize(path + "-wal") if os.path.exists(path + "-wal") else None
    if log_size is not None and os.path.exists(path + "-shm"):
        ways = ["mode=ro", "copy"]  # a log and its index, as long as somebody has it open
    elif log_size:
        ways = ["copy"]
    elif head[_READ_VERSION] == _WAL:
        ways = ["mode=ro&immutable=1"]
    else:
        ways = ["mode=ro", "copy"]  # of others' files it takes locks only
    for way in ways:
        try:
            connection = cleanup.enter_context(closing(_open(path, way, cleanup)))
            connection.execute("PRAGMA schema_version")  # which recovers, or cannot
        except sqlite3.OperationalError as error:
            # Cut off in the middle of a transaction, or a log that cannot be shared: nothing may be mended in place.
            if way == ways[-1] or error.sqlite_errorname not in ("SQLITE_READONLY_ROLLBACK", "SQLITE_CANTOPEN"):
                raise
        else:
            break
    connection.text_factory = bytes
    # A table's schema may call functions and its pages may lie; neither is to do more than fail.
    for pragma in ("trusted_schema = OFF", "query_only = ON", "cell_size_check = ON"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def _open(path: str, way: str, cleanup: ExitStack) -> sqlite3.Connection:
    import sqlite3
    from urllib.parse import quote

    if way == "copy":
        path, way = _copied(path, cleanup), "mode=rw"
    elif "immutable" in way:
        cleanup.enter_context(_unchanged(path))
    return sqlite3.connect(f"file:{quote(os.fsencode(os.path.abspath(path)))}?{way}", uri=True)


def _copied(path: str, cleanup: ExitStack) -> str:
    """Return the path of a copy of a database with its log or journal; it is removed with ``cleanup``."""
    import shutil
    import tempfile

    folder = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="bytekv-import-"))
    target = os.path.join(folder, "copy")
    with _unchanged(path, ("-wal", "-journal")):
        for sidecar in ("-wal", "-journal", ""):
            if os.path.exists(path + sidecar):
                try:
                    shutil.copyfile(path + sidecar, target + sidecar)
                except OSError as error:
                    raise SourceError(
                        f"{path}{sidecar}: cannot be copied into {folder}: {error.strerror}; where there is more room"
                        " for temporary files, say so with TMPDIR"
                    ) from error
    if os.path.exists(target + "-journal"):
        with open(target + "-journal", "rb") as journal:
            journal.seek(max(0, os.path.getsize(target + "-journal") - len(_END_OF_SUPER_JOURNALS_NAME)))
            if journal.read() == _END_OF_SUPER_JOURNALS_NAME:
                raise SourceError(
                    f"{path}-journal: names another file, which would be deleted when the transaction is rolled back;"
                    " if the database is yours, open it once with sqlite3, where the others of that transaction are"
                )
    return target


def _find(
    connection: sqlite3.Connection, path: str, table: str | None, columns: tuple[str, ...] | None
) -> tuple[str, tuple[str, ...]]:
    """Return the table and its columns once it is known that they are what they are called."""
    kinds = _kinds(connection)
    tables = sorted(name for name, kind in kinds.items() if kind == "table")
    if table is None:
        if len(tables) != 1:
            raise SourceError(f"{path}: say which table with --table, there are {', '.join(tables) or 'none'}")
        (table,) = tables
    kind = kinds.get(table)
    if kind is None:
        raise SourceError(f"{path}: has no table {table!r}, there are {', '.join(tables) or 'none'}")
    if kind not in ("table", "shadow"):
        raise SourceError(f"{path}: {table!r} is a {kind}{'' if kind == 'view' else ' table'}; name a table with rows")
    described = connection.execute(f"PRAGMA table_xinfo({_quoted(table)})")
    kind_of = {name.decode(): hidden for _, name, _, _, _, _, hidden in described if hidden != _HIDDEN}
    if columns is None:
        if len(kind_of) < 2:
            raise SourceError(f"{path}: {table!r} has fewer than two columns, so no keys and values")
        columns = tuple(kind_of)[:2]
    for name in columns:
        if name not in kind_of:  # SQLite takes a quoted name that is no column for a string
            raise SourceError(f"{path}: {table!r} has no column {name!r}, there are {', '.join(kind_of)}")
        if kind_of[name] == _COMPUTED:
            raise SourceError(
                f"{path}: column {name!r} of {table!r} is computed and not stored; choose others with --columns, or"
                " import a copy made with CREATE TABLE … AS SELECT"
            )
    return table, columns


def _kinds(connection: sqlite3.Connection) -> dict[str, str]:
    """Return what each name is: table, shadow (of a virtual table), view, virtual."""
    import sqlite3

    if sqlite3.sqlite_version_info >= (3, 37):
        listed = connection.execute("PRAGMA main.table_list")
        return {name.decode(): kind.decode() for _, name, kind, *_ in listed if not name.startswith(b"sqlite_")}
    found: dict[str, str] = {}
    for name, kind, sql in connection.execute("SELECT name, type, sql FROM sqlite_master"):
        if kind in (b"table", b"view") and not name.startswith(b"sqlite_"):
            words = re.sub(rb"--[^\n]*|/\*.*?\*/|\s", b" ", sql or b"", flags=re.DOTALL).lower().split()
            found[name.decode()] = "view" if kind == b"view" else "table" if words[1:2] == [b"table"] else "virtual"
    return found


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def as_bytes(given: object, what: str) -> bytes:
    """Return a column's value as the bytes that it becomes in a store; `RowError` if it is NULL, naming ``what``."""
    if isinstance(given, bytes):
        return given
    if given is None:
        raise RowError(f"its {what} is NULL; import a copy of the table without such rows")
    return repr(given).encode()
