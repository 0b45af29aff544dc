"""Entries of other libraries' databases, read as the bytes they are: what `bytekv import --from` understands.

Nothing is unpickled, so that a database of unknown origin can do nothing but be wrong: a value that its library has
pickled arrives pickled, and the program that reads it goes on unpickling. Sources are opened for reading only.

================  ==========================================================================================
shelve, dbm       whatever `dbm.whichdb` knows on this Python, and SQLite files as `dbm.sqlite3` writes them
sqlitedict        one table (``unnamed``, or the one asked for): key, value
diskcache         the directory of a Cache, FanoutCache, Index: values in the database or in files, and their expiry
sqlite            any table: its first two columns, or the two that are asked for
================  ==========================================================================================

SQLite's TEXT arrives as UTF-8, INTEGER and REAL in decimal, a BLOB as it is; `sqlite_source` says how such files are
read. What a database says is not believed: a file of diskcache's must be a regular file inside its directory, no link
and not the file of another row, and the entries of a `dbm.dumb` may not overlap, for a few bytes could pass for
terabytes otherwise. The libraries under `dbm.gnu` and `dbm.ndbm` are C and may crash on a damaged file.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator

from .._lean import TYPE_CHECKING
from ..contract.convert import MAX_EXPIRES_MS, MAX_KEY_SIZE, MAX_VALUE_SIZE, check_sizes
from ..errors import LimitError
from .json_lines import Row
from .sqlite_source import RowError, SourceError, as_bytes, check_regular, is_sqlite, select

if TYPE_CHECKING:
    from typing import Any, Final

__all__ = ["SOURCES", "SourceError", "read_source"]

SOURCES: Final = ("shelve", "dbm", "sqlitedict", "diskcache", "sqlite")

_DISKCACHE: Final = ("key", "expire_time", "mode", "filename", "value")
_IN_COLUMN, _AS_BYTES, _AS_TEXT, _PICKLED = 1, 2, 3, 4  # diskcache's modes; only the first never has a file
_SUB_CACHES: Final = ("cache", "deque", "index")  # directories in which a FanoutCache keeps caches of their own
_LONGEST_DUMB_LINE: Final = 4 * MAX_KEY_SIZE + 100  # \xNN for each byte of a key, and two numbers
_DBM_SUFFIXES: Final = (".dat", ".dir", ".bak", ".db", ".pag")


def read_source(
    kind: str,
    path: str,
    table: str | None = None,
    columns: tuple[str, str] | None = None,
    left_out: Callable[[str], object] = lambda _: None,
) -> Iterator[Row]:
    """Yield the entries of another library's database; raises `SourceError`.

    ``kind`` is one of `SOURCES`; ``table`` and ``columns`` (key, value) say where to look in an SQLite database.
    ``left_out`` is told what belongs to the source and is not among its entries.
    """
    if table is not None and kind not in ("sqlite", "sqlitedict"):
        raise SourceError(f"{kind} has no table to choose")
    if columns is not None and kind != "sqlite":
        raise SourceError(f"{kind} has no columns to choose")
    if kind == "sqlite":
        yield from _numbered(path, _read_table(path, table, columns))
    elif kind == "sqlitedict":
        yield from _numbered(path, _read_table(path, table or "unnamed", ("key", "value")))
    elif kind == "diskcache":
        for directory in _caches(path, left_out):
            yield from _numbered(os.path.join(directory, "cache.db"), _read_cache(directory))
    else:
        yield from _numbered(path, _read_dbm(path))


def _numbered(path: str, rows: Iterator[Row]) -> Iterator[Row]:
    """Say of a row that is no entry which one it is."""
    number = 0
    try:
        for key, value, expires in rows:
            check_sizes(key, value)
            number += 1
            yield key, value, expires
    except (LimitError, RowError) as error:
        raise SourceError(f"{path}: row {number + 1}: {error}") from error


# --- dbm ---------------------------------------------------------------------------------------


def _read_dbm(path: str) -> Iterator[Row]:
    path, kind = _which_dbm(path)
    if kind == "dbm.dumb":
        yield from _read_dumb(path)
    elif kind in ("", "dbm.sqlite3"):  # Pythons before 3.13 do not know it
        if not is_sqlite(path):
            raise SourceError(f"{path}: no kind of database that dbm knows")
        yield from _read_table(path, "Dict", ("key", "value"))
    else:
        yield from _read_with_dbm(path, kind)


def _which_dbm(path: str) -> tuple[str, str]:
    """Return the name that `dbm.open` would be given, and the module; one of the files may have been named instead."""
    import dbm

    stem, suffix = os.path.splitext(path)
    for name in (path, stem) if suffix in _DBM_SUFFIXES else (path,):
        if os.path.isdir(name):
            raise SourceError(f"{name}: a directory, not a database of dbm; diskcache has directories")
        there = [file for file in (name, *(name + end for end in _DBM_SUFFIXES)) if check_regular(file)]
        try:
            kind = dbm.whichdb(name)
        except dbm.error as error:
            raise SourceError(f"{name}: {error}") from error
        if kind or (kind == "" and name == path and suffix not in _DBM_SUFFIXES):
            return name, kind
        if name == path:
            found, first = there, kind
    if first == "":
        return path, ""
    if found:
        raise SourceError(
            f"{path}: {', '.join(found)} is there, but no module of this Python reads it; "
            "use a Python with dbm.ndbm or dbm.gnu, whichever wrote it"
        )
    raise SourceError(f"{path}: not there; name what dbm.open was given, without {', '.join(_DBM_SUFFIXES)}")


def _read_with_dbm(path: str, kind: str) -> Iterator[Row]:
    import dbm

    files = [path, *(path + suffix for suffix in _DBM_SUFFIXES)]
    room = sum(os.path.getsize(file) for file in files if check_regular(file))
    try:
        with dbm.open(path, "r") as database:
            for key in _keys(database):
                found = key if isinstance(key, bytes) else key.encode()
                value = database[key]
                room -= len(found) + len(value)
                if room < 0:
                    raise SourceError(f"{path}: has longer keys and values than its files can hold: it is damaged")
                yield found, value, None
    except (*dbm.error, KeyError) as error:
        raise SourceError(f"{path}: {kind} cannot read it: {error}") from error
    except ImportError as error:
        raise SourceError(f"{path}: this Python was built without {kind}; use one that has it") from error


def _keys(database: Any) -> Iterator[Any]:
    if not hasattr(database, "firstkey"):
        yield from database.keys()
        return
    key = database.firstkey()  # dbm.gnu: one by one, for a damaged file's list of keys may have no end
    while key is not None:
        yield key
        key = database.nextkey(key)


def _read_dumb(path: str) -> Iterator[Row]:
    """Read dbm.dumb's two files: the module itself evaluates any literal and takes short values for whole ones."""
    from ast import literal_eval

    character = r"""[^\\'"]|\\(?:[\\'nrt]|x[0-9a-f]{2})"""  # as repr() writes them
    key = f"""'(?:{character}|")*'|"(?:{character}|')*\""""
    line_form = re.compile(rf"(?P<key>{key}), \((?P<at>[0-9]{{1,18}}), (?P<size>[0-9]{{1,18}})\)", re.DOTALL)
    try:
        with open(path + ".dir", encoding="latin-1") as index, open(path + ".dat", "rb") as data:
            length = room = os.fstat(data.fileno()).st_size
            number = 0
            while line := index.readline(_LONGEST_DUMB_LINE):
                number += 1
                found = line_form.fullmatch(line.rstrip())
                if found is None:
                    raise SourceError(f"{path}.dir: line {number} is no entry")
                at, size = int(found["at"]), int(found["size"])
                if at + size > length:
                    raise SourceError(f"{path}.dir: line {number} points beyond the end of {path}.dat")
                if size > MAX_VALUE_SIZE:
                    raise SourceError(f"{path}.dir: line {number} has a value of {size} bytes")
                room -= size
                if room < 0:
                    raise SourceError(
                        f"{path}.dir: the values up to line {number} are longer than {path}.dat: some overlap"
                    )
                data.seek(at)
                yield literal_eval(found["key"]).encode("latin-1"), data.read(size), None
    except (OSError, ValueError, SyntaxError) as error:
        raise SourceError(f"{path}: {error}") from error


# --- SQLite ------------------------------------------------------------------------------------


def _read_table(path: str, table: str | None, columns: tuple[str, str] | None) -> Iterator[Row]:
    for key, value in select(path, table, columns):
        yield as_bytes(key, "key"), as_bytes(value, "value"), None


# --- diskcache ---------------------------------------------------------------------------------


def _caches(path: str, left_out: Callable[[str], object]) -> list[str]:
    """Return the directories of a cache that have a database each."""
    if os.path.exists(os.path.join(path, "cache.db")):
        return [path]
    names = _names(path)
    shards = [name for name in names if re.fullmatch("[0-9]{3,}", name, re.ASCII)]  # of a FanoutCache: 000, 001, …
    if not shards:
        raise SourceError(f"{path}: a directory without diskcache's cache.db; name the one that the cache was given")
    for name in set(names).intersection(_SUB_CACHES):
        for sub_cache in _names(os.path.join(path, name)):
            left_out(f"{os.path.join(path, name, sub_cache)} is a separate cache and was left out; import it, too")
    return [os.path.join(path, name) for name in shards]


def _names(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from error


def _read_cache(directory: str) -> Iterator[Row]:
    database = os.path.join(directory, "cache.db")
    read: set[tuple[int, int]] = set()
    for key, expires, mode, name, value in select(database, "Cache", _DISKCACHE):
        if mode not in (_IN_COLUMN, _AS_BYTES, _AS_TEXT, _PICKLED):
            raise RowError(f"its value is in mode {mode!r}, which is unknown")
        if expires is not None and not isinstance(expires, (int, float)):
            raise RowError("it has a time of expiry that is no number")
        if expires is not None and not expires < MAX_EXPIRES_MS / 2000:
            expires = None  # expire=math.inf
        if mode == _IN_COLUMN or name is None:
            found = as_bytes(value, "value")
        else:
            found = _read_inside(directory, as_bytes(name, "file name"), read)
        yield as_bytes(key, "key"), found, expires


def _read_inside(directory: str, name: bytes, read: set[tuple[int, int]]) -> bytes:
    """Read a file that a database names, one step at a time and through no link, so that it lies where it should.

    ``read``: the files that were read before, for each belongs to one row.
    """
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
        if os.name == "posix" and (found.st_dev, found.st_ino) in read:
            raise SourceError(f"{path}: is the value of two rows; the cache is damaged")
        read.add((found.st_dev, found.st_ino))
        with open(opened.pop(), "rb") as file:
            return file.read(MAX_VALUE_SIZE + 1)
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from error
    finally:
        for descriptor in opened:
            os.close(descriptor)
