"""The interface of Python's `dbm` modules on a bytekv store: change an import, keep the program.

>>> import tempfile
>>> from bytekv import dbm
>>> with dbm.open(tempfile.mkdtemp(), "c") as db:
...     db["colour"] = "blue"
...     db[b"colour"], db.keys()
(b'blue', [b'colour'])

Serves wherever a module with `open` and `error` is asked for: ``HTTPCACHE_DBM_MODULE = "bytekv.dbm"`` in Scrapy,
``shelve.Shelf(bytekv.dbm.open(path, "c"))``. Differences from `dbm`: the name is that of a directory, files
are for their owner only whatever ``mode`` says, keys come in order, several threads may use one database, and one
that was killed is whole when it is opened again. Whatever bytekv raises arrives here as `error`, an `OSError`,
which ``except dbm.error`` catches; a missing key is `KeyError`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from types import TracebackType

from . import Store
from . import open as open_store
from ._lean import TYPE_CHECKING
from .contract.convert import Bytes, to_bytes
from .contract.ordered import Handle, joined, refusing
from .errors import BytekvError

if TYPE_CHECKING:
    from typing import Any, TypeVar, Unpack

    from .options import Flag, OpenOptions

    T = TypeVar("T")

__all__ = ["error", "open"]


class error(OSError):
    """Raised for every error except a missing key; ``__cause__`` is bytekv's own error."""


def _translated(call: Callable[[], T]) -> T:
    try:
        return call()
    except BytekvError as cause:
        if isinstance(cause, OSError) and cause.errno is not None:
            raise error(cause.errno, cause.strerror, cause.filename) from cause
        raise error(str(cause)) from cause


class _Database(Handle, MutableMapping[bytes, bytes]):
    """A store with the methods that the modules of `dbm`, and bsddb before them, have in common."""

    _instead = "threads may share the object itself, another process opens the path with flag 'r'"

    def __init__(self, store: Store) -> None:
        self._store = store
        self._at: bytes | None = None  # the key that `next` and `previous` go from

    def __getitem__(self, key: Bytes) -> bytes:
        return _translated(lambda: self._store[key])

    def __setitem__(self, key: Bytes, value: Bytes) -> None:
        _translated(lambda: self._store.put(key, value))

    def __delitem__(self, key: Bytes) -> None:
        _translated(lambda: self._store.__delitem__(key))

    def __contains__(self, key: object) -> bool:
        return _translated(lambda: key in self._store)

    def __len__(self) -> int:
        return _translated(lambda: len(self._store))

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.keys())

    def keys(self) -> list[bytes]:  # type: ignore[override]
        """Return a list of all keys, in order."""
        return _translated(lambda: list(self._store))

    def get(self, key: Bytes, default: Any = None) -> Any:
        """Return the value of ``key``, ``default`` if there is none."""
        return _translated(lambda: self._store.get(key, default))

    def setdefault(self, key: Bytes, default: Bytes | None = b"") -> bytes:
        """Return the value of ``key``; if there is none, store ``default`` first."""
        return _translated(lambda: self._store.setdefault(key, default))

    def pop(self, key: Bytes, *default: Any) -> Any:
        """Delete ``key`` and return its value, in one step."""
        return _translated(lambda: self._store.pop(key, *default))

    def popitem(self) -> tuple[bytes, bytes]:
        """Delete the last key in order and return it with its value, in one step; `KeyError` if there is none."""
        return _translated(self._store.popitem)

    def update(self, other: Any = (), /, **more: Bytes) -> None:
        """Store all pairs of a mapping or an iterable, and keyword arguments, as one."""
        # As one mapping: among the store's keyword arguments there is one that is no key.
        _translated(lambda: self._store.update({**dict(other), **more} if more else other))

    def __or__(self, other: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
        return _translated(lambda: joined(self, other))

    def __ror__(self, other: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
        return _translated(lambda: joined(other, self))

    def __ior__(self, other: Any) -> _Database:  # type: ignore[misc]
        self.update(other)
        return self

    if not TYPE_CHECKING:
        __iand__, __isub__, __ixor__ = refusing("&="), refusing("-="), refusing("^=")

    def clear(self) -> None:
        """Delete every key."""
        _translated(self._store.clear)

    def sync(self) -> None:
        """Make everything written so far survive a power cut."""
        _translated(self._store.sync)

    def reorganize(self) -> None:
        """Give the space of what was deleted and overwritten back, as `dbm.gnu` does."""
        _translated(self._store.compact)

    def close(self) -> None:
        """Close the store; again does nothing."""
        _translated(self._store.close)

    def __enter__(self) -> _Database:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- in order, as dbm.gnu has it -----------------------------------------------------------

    def firstkey(self) -> bytes | None:
        """Return the first key, None if there is none."""
        return _translated(lambda: next(self._store.scan_keys(limit=1), None))

    def nextkey(self, key: Bytes) -> bytes | None:
        """Return the key that follows ``key``, None if there is none."""
        return _translated(lambda: next(self._store.scan_keys(start=key, include_start=False, limit=1), None))

    # --- and with a cursor, as shelve.BsdDbShelf asks for ---------------------------------------

    def _move(self, **range_: Any) -> tuple[bytes, bytes]:
        found = _translated(lambda: next(self._store.scan(limit=1, **range_), None))
        if found is None:
            raise KeyError("no key there")
        self._at = found[0]
        return found

    def first(self) -> tuple[bytes, bytes]:
        """Go to the first key and return it with its value; `KeyError` if there is none."""
        return self._move()

    def last(self) -> tuple[bytes, bytes]:
        """Go to the last key and return it with its value; `KeyError` if there is none."""
        return self._move(reverse=True)

    def set_location(self, key: Bytes) -> tuple[bytes, bytes]:
        """Go to ``key``, or to the first key after it, and return it with its value; `KeyError` if there is none."""
        return self._move(start=to_bytes("key", key))

    def next(self) -> tuple[bytes, bytes]:
        """Go on to the next key, the first at the beginning; `KeyError` after the last."""
        return self._move(start=self._at, include_start=self._at is None)

    __next__ = next

    def previous(self) -> tuple[bytes, bytes]:
        """Go back to the key before, the last at the beginning; `KeyError` before the first."""
        return self._move(stop=self._at, reverse=True)


def open(
    file: str | os.PathLike[str], flag: Flag = "r", mode: int = 0o666, **options: Unpack[OpenOptions]
) -> _Database:
    """Open a database in the directory ``file``, as `dbm.open` does with a file.

    ``flag``: "r" an existing one for reading, beside a writer, too · "w" for reading and writing · "c" likewise,
    created if missing · "n" a new and empty one. ``mode`` is there for compatibility: files are for their owner
    only. ``options`` are those of `bytekv.open`. Raises `error`.
    """
    return _Database(_translated(lambda: open_store(file, flag, **options)))
