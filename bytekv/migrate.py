"""Entries of other libraries' databases, read as the bytes they are: what `bytekv import --from` understands.

Nothing is unpickled, so that a database of unknown origin can do nothing but be wrong: a value that its library has
pickled arrives pickled, and the program that reads it goes on unpickling. Sources are opened for reading only.

================  ==========================================================================================
shelve, dbm       whatever `dbm.whichdb` knows on this Python, and SQLite files as `dbm.sqlite3` writes them
sqlitedict        one table (``unnamed``, or the one asked for): key, value
diskcache         the directory of a Cache, FanoutCache, Index: values in the database or in files, and their expiry
sqlite            any table: its first two columns, or the two that are asked for
================  ==========================================================================================

SQLite's TEXT arrives as UTF-8, INTEGER and REAL in decimal, a BLOB as it is. What a database says is not believed:
a table must be a table (a view could compute for ever), a file of diskcache's must be a regular file inside its
directory and no link, no length reaches further than its file. The libraries behind `dbm.gnu` and `dbm.ndbm` are C
and may crash on a damaged file.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator

from .codec import MAX_EXPIRES_MS, MAX_KEY_SIZE, MAX_VALUE_SIZE, check_sizes
from .errors import LimitError
from .exchange import Row

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from typing import Final

__all__ = ["SOURCES", "SourceError", "read_source"]

SOURCES: Final = ("shelve", "dbm", "sqlitedict", "diskcache", "sqlite")

_SQLITE_MAGIC: Final = b"SQLite format 3\0"
_DISKCACHE: Final = ("key", "expire_time", "mode", "filename", "value")
_IN_COLUMN, _AS_BYTES, _AS_TEXT, _PICKLED = 1, 2, 3, 4  # diskcache's modes; only the first never has a file
_LONGEST_DUMB_LINE: Final = 4 * MAX_KEY_SIZE + 100  # \xNN for each byte of a key, and two numbers


class SourceError(Exception):
    """Raised when a source is missing, is something else than was said, or is damaged."""


def read_source(
    kind: str, path: str, table: str | None = None, columns: tuple[str, str] | None = None
) -> Iterator[Row]:
    """Yield the entries of another library's database; raises `SourceError`.

    ``kind`` is one of `SOURCES`; ``table`` and ``columns`` (key, value) say where to look in an SQLite database.
    """
    if table is not None and kind not in ("sqlite", "sqlitedict"):
        raise SourceError(f"{kind} has no table to choose")
    if columns is not None and kind != "sqlite":
        raise SourceError(f"{kind} has no columns to choose")
    if kind == "sqlite":
        rows = _read_table(path, table, columns)
    elif kind == "sqlitedict":
        rows = _read_table(path, table or "unnamed", ("key", "value"))
    elif kind == "diskcache":
        rows = _read_diskcache(path)
    else:
        rows = _read_dbm(path)
    for key, value, expires in rows:
        try:
            check_sizes(key, value)
        except LimitError as error:
            raise SourceError(f"{path}: {error}") from error
        yield key, value, expires


# --- dbm ---------------------------------------------------------------------------------------


def _read_dbm(path: str) -> Iterator[Row]:
    import dbm

    try:
        kind = dbm.whichdb(path)
    except dbm.error as error:
        raise SourceError(f"{path}: {error}") from error
    if kind is None:
        raise SourceError(f"{path}: not there, or not to be read")
    if kind == "dbm.dumb":
        yield from _read_dumb(path)
    elif kind in ("", "dbm.sqlite3"):  # Pythons before 3.13 do not know it
        if not _is_sqlite(path):
            raise SourceError(f"{path}: no kind of database that dbm knows")
        yield from _read_table(path, "Dict", ("key", "value"))
    else:
        yield from _read_with_dbm(path, kind)


def _read_with_dbm(path: str, kind: str) -> Iterator[Row]:
    import dbm

    try:
        with dbm.open(path, "r") as database:
            for key in database.keys():  # noqa: SIM118 - not every dbm module iterates
                found = key if isinstance(key, bytes) else key.encode()
                yield found, database[key], None
    except (*dbm.error, KeyError) as error:
        raise SourceError(f"{path}: {kind} cannot read it: {error}") from error
    except ImportError as error:
        raise SourceError(f"{path}: this Python was built without {kind}") from error


def _read_dumb(path: str) -> Iterator[Row]:
    """Read dbm.dumb's two files: the module itself evaluates any literal and takes short values for whole ones."""
    from ast import literal_eval

    character = r"""[^\\'"]|\\(?:[\\'nrt]|x[0-9a-f]{2})"""  # as repr() writes them
    key = f"""'(?:{character}|")*'|"(?:{character}|')*\""""
    line_form = re.compile(rf"(?P<key>{key}), \((?P<at>[0-9]{{1,18}}), (?P<size>[0-9]{{1,18}})\)", re.DOTALL)
    try:
        with open(path + ".dir", encoding="latin-1") as index, open(path + ".dat", "rb") as data:
            length = os.fstat(data.fileno()).st_size
            number = 0
            while line := index.readline(_LONGEST_DUMB_LINE):
                number += 1
                found = line_form.fullmatch(line.rstrip())
                if found is None:
                    raise SourceError(f"{path}.dir: line {number} is no entry")
                at, size = int(found["at"]), int(found["size"])
                if at + size > length:
                    raise SourceError(f"{path}.dir: line {number} points behind the end of {path}.dat")
                if size > MAX_VALUE_SIZE:
                    raise SourceError(f"{path}.dir: line {number} has a value of {size} bytes")
                data.seek(at)
                yield literal_eval(found["key"]).encode("latin-1"), data.read(size), None
    except (OSError, ValueError, SyntaxError) as error:
        raise SourceError(f"{path}: {error}") from error


# --- SQLite ------------------------------------------------------------------------------------


def _is_sqlite(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(_SQLITE_MAGIC)) == _SQLITE_MAGIC
    except OSError:
        return False


def _connect(path: str) -> sqlite3.Connection:
    import sqlite3
    from urllib.parse import quote

    if not os.path.exists(path):
        raise SourceError(f"{path}: not there")
    if not _is_sqlite(path):
        raise SourceError(f"{path}: not an SQLite database")
    connection = sqlite3.connect(f"file:{quote(os.fsencode(os.path.abspath(path)))}?mode=ro", uri=True)
    connection.text_factory = bytes
    # A table's schema may call functions and its pages may lie; neither is to do more than fail.
    for pragma in ("trusted_schema = OFF", "query_only = ON", "cell_size_check = ON"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def _read_table(path: str, table: str | None, columns: tuple[str, str] | None) -> Iterator[Row]:
    for key, value in _select(path, table, columns):
        yield _as_bytes(key, path), _as_bytes(value, path), None


def _select(path: str, table: str | None, columns: tuple[str, ...] | None) -> Iterator[tuple[object, ...]]:
    import sqlite3

    try:
        connection = _connect(path)
        try:
            table, columns = _find(connection, path, table, columns)
            names = ", ".join(map(_quoted, columns))
            yield from connection.execute(f"SELECT {names} FROM {_quoted(table)}")
        finally:
            connection.close()
    except (sqlite3.Error, UnicodeError) as error:
        raise SourceError(f"{path}: {error}") from error


def _find(
    connection: sqlite3.Connection, path: str, table: str | None, columns: tuple[str, ...] | None
) -> tuple[str, tuple[str, ...]]:
    """Return the table and its columns once it is known that they are what they are called."""
    listed = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'")
    tables = {name.decode(): sql.decode() for name, sql in listed if not name.startswith(b"sqlite_")}
    if table is None:
        if len(tables) != 1:
            raise SourceError(f"{path}: say which table, there are {', '.join(sorted(tables)) or 'none'}")
        (table,) = tables
    if table not in tables:
        raise SourceError(f"{path}: has no table {table!r}, there are {', '.join(sorted(tables)) or 'none'}")
    if re.match(r"\s*create\s+virtual", tables[table], re.IGNORECASE):
        raise SourceError(f"{path}: {table!r} is a virtual table")
    described = connection.execute(f"PRAGMA table_xinfo({_quoted(table)})")
    stored = [name.decode() for _, name, _, _, _, _, hidden in described if not hidden]
    if columns is None:
        if len(stored) < 2:
            raise SourceError(f"{path}: {table!r} has less than two columns")
        columns = stored[0], stored[1]
    # SQLite takes a quoted name that is no column for a string.
    if missing := [name for name in columns if name not in stored]:
        raise SourceError(f"{path}: {table!r} has no column {missing[0]!r}, there are {', '.join(stored)}")
    return table, columns


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _as_bytes(given: object, path: str) -> bytes:
    if isinstance(given, bytes):
        return given
    if given is None:
        raise SourceError(f"{path}: a key or a value is NULL")
    return repr(given).encode()


# --- diskcache ---------------------------------------------------------------------------------


def _read_diskcache(path: str) -> Iterator[Row]:
    directories = [path]
    if not os.path.exists(os.path.join(path, "cache.db")):  # a FanoutCache has directories 000, 001, …
        try:
            names = sorted(name for name in os.listdir(path) if re.fullmatch("[0-9]{3,}", name, re.ASCII))
        except OSError as error:
            raise SourceError(f"{path}: {error.strerror}") from error
        directories = [os.path.join(path, name) for name in names]
        if not directories:
            raise SourceError(f"{path}: a directory without diskcache's cache.db")
    for directory in directories:
        database = os.path.join(directory, "cache.db")
        for key, expires, mode, name, value in _select(database, "Cache", _DISKCACHE):
            if mode not in (_IN_COLUMN, _AS_BYTES, _AS_TEXT, _PICKLED):
                raise SourceError(f"{database}: a value in mode {mode!r}, which is unknown")
            if expires is not None and not isinstance(expires, (int, float)):
                raise SourceError(f"{database}: a time of expiry that is no number")
            if expires is not None and expires <= 0:
                continue  # was never there for anybody
            if expires is not None and expires >= MAX_EXPIRES_MS / 2000:
                expires = None  # expire=math.inf
            if mode == _IN_COLUMN or name is None:
                found = _as_bytes(value, database)
            else:
                found = _read_inside(directory, _as_bytes(name, database))
            yield _as_bytes(key, database), found, expires


def _read_inside(directory: str, name: bytes) -> bytes:
    """Read a file that a database names, one step at a time and through no link, so that it lies where it should."""
    steps = os.fsdecode(name).replace("\\", "/").split("/")
    path = os.path.join(directory, *steps) if steps[0] else os.fsdecode(name)
    if any(step in ("", ".", "..") or "\0" in step or ":" in step for step in steps):
        raise SourceError(f"{directory}: names a file {os.fsdecode(name)!r}, which is not inside")
    walks = os.open in os.supports_dir_fd
    plain = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    opened: list[int] = []
    try:
        if walks:
            opened.append(os.open(directory, plain & ~os.O_NOFOLLOW | os.O_DIRECTORY))
            for step in steps[:-1]:
                opened.append(os.open(step, plain | os.O_DIRECTORY, dir_fd=opened[-1]))
            opened.append(os.open(steps[-1], plain | os.O_NONBLOCK, dir_fd=opened[-1]))
        else:
            if not os.path.realpath(path).startswith(os.path.realpath(directory) + os.sep):
                raise SourceError(f"{path}: a link that leads out of {directory}")
            opened.append(os.open(path, plain))
        found = os.fstat(opened[-1])
        if not stat.S_ISREG(found.st_mode):
            raise SourceError(f"{path}: not a regular file")
        if found.st_size > MAX_VALUE_SIZE:
            raise SourceError(f"{path}: {found.st_size} bytes are too many for a value")
        with open(opened.pop(), "rb") as file:
            return file.read(MAX_VALUE_SIZE + 1)
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from error
    finally:
        for descriptor in opened:
            os.close(descriptor)
