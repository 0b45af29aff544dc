"""The engines that are compared: bytekv and its peers behind five calls.

All are asked for the same durability: a write survives the death of the process, not a power cut
(no sync for single writes). Where an engine cannot do that, its line in `DURABILITY` says so.
"""

from __future__ import annotations

import importlib.util
import os
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any, Protocol

DURABILITY = {
    "bytekv": "sync='interval' (1 s in the background)",
    "lmdb": "sync=False, one transaction a write",
    "lmdb-writemap": "writemap, sync=False, one transaction a write",
    "leveldb": "sync=False",
    "rocksdb": "write-ahead log, no sync",
    "sqlite": "WAL, synchronous=OFF, one transaction a write",
    "semidbm": "no sync",
    "dict": "none: a dict in memory, the limit",
}


class Engine(Protocol):
    """What every engine can do; `get` raises or returns None for a missing key."""

    put: Callable[[bytes, bytes], Any]
    get: Callable[[bytes], Any]
    delete: Callable[[bytes], Any]

    def scan(self) -> Iterator[tuple[bytes, bytes]]: ...

    def close(self) -> None: ...


class Bytekv:
    def __init__(self, path: str) -> None:
        import bytekv

        self.db = bytekv.open(path)
        self.put, self.get, self.delete = self.db.__setitem__, self.db.__getitem__, self.db.__delitem__

    def scan(self) -> Iterator[tuple[bytes, bytes]]:
        return self.db.scan()

    def close(self) -> None:
        self.db.close()


class Lmdb:
    writemap = False

    def __init__(self, path: str) -> None:
        import lmdb

        self.env = lmdb.open(path, map_size=1 << 36, sync=False, metasync=False, writemap=self.writemap)

    def put(self, key: bytes, value: bytes) -> None:
        with self.env.begin(write=True) as transaction:
            transaction.put(key, value)

    def get(self, key: bytes) -> Any:
        with self.env.begin() as transaction:
            return transaction.get(key)

    def delete(self, key: bytes) -> None:
        with self.env.begin(write=True) as transaction:
            transaction.delete(key)

    def scan(self) -> Iterator[tuple[bytes, bytes]]:
        with self.env.begin() as transaction:
            yield from transaction.cursor()

    def close(self) -> None:
        self.env.close()


class LmdbWritemap(Lmdb):
    writemap = True


class Leveldb:
    def __init__(self, path: str) -> None:
        import plyvel

        self.db = plyvel.DB(path, create_if_missing=True)
        self.put, self.get, self.delete = self.db.put, self.db.get, self.db.delete

    def scan(self) -> Iterator[tuple[bytes, bytes]]:
        return iter(self.db)

    def close(self) -> None:
        self.db.close()


class Rocksdb:
    def __init__(self, path: str) -> None:
        import rocksdict

        self.db = rocksdict.Rdict(path, rocksdict.Options(raw_mode=True))
        self.put, self.get, self.delete = self.db.__setitem__, self.db.__getitem__, self.db.__delitem__

    def scan(self) -> Iterator[tuple[bytes, bytes]]:
        return self.db.items()

    def close(self) -> None:
        self.db.close()


class Sqlite:
    def __init__(self, path: str) -> None:
        os.makedirs(path, exist_ok=True)
        self.db = sqlite3.connect(os.path.join(path, "db"), isolation_level=None)
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.execute("PRAGMA synchronous=OFF")
        self.db.execute("CREATE TABLE IF NOT EXISTS kv (k BLOB PRIMARY KEY, v BLOB) WITHOUT ROWID")

    def put(self, key: bytes, value: bytes) -> None:
        self.db.execute("INSERT OR REPLACE INTO kv VALUES (?, ?)", (key, value))

    def get(self, key: bytes) -> Any:
        return self.db.execute("SELECT v FROM kv WHERE k = ?", (key,)).fetchone()

    def delete(self, key: bytes) -> None:
        self.db.execute("DELETE FROM kv WHERE k = ?", (key,))

    def scan(self) -> Iterator[tuple[bytes, bytes]]:
        yield from self.db.execute("SELECT k, v FROM kv ORDER BY k")

    def close(self) -> None:
        self.db.close()


class Semidbm:
    def __init__(self, path: str) -> None:
        import semidbm

        self.db = semidbm.open(path, "c")
        self.put, self.get, self.delete = self.db.__setitem__, self.db.__getitem__, self.db.__delitem__

    def scan(self) -> Iterator[tuple[bytes, bytes]]:
        return ((key, self.db[key]) for key in sorted(self.db.keys()))

    def close(self) -> None:
        self.db.close()


class Dict:
    def __init__(self, path: str) -> None:
        self.db: dict[bytes, bytes] = {}
        self.put, self.get, self.delete = self.db.__setitem__, self.db.__getitem__, self.db.__delitem__

    def scan(self) -> Iterator[tuple[bytes, bytes]]:
        return iter(sorted(self.db.items()))

    def close(self) -> None: ...


ENGINES: dict[str, tuple[Callable[[str], Engine], str | None]] = {
    "bytekv": (Bytekv, None),
    "lmdb": (Lmdb, "lmdb"),
    "lmdb-writemap": (LmdbWritemap, "lmdb"),
    "leveldb": (Leveldb, "plyvel"),
    "rocksdb": (Rocksdb, "rocksdict"),
    "sqlite": (Sqlite, None),
    "semidbm": (Semidbm, "semidbm"),
    "dict": (Dict, None),
}


def installed(name: str) -> bool:
    """Tell whether an engine's package is there."""
    package = ENGINES[name][1]
    return package is None or importlib.util.find_spec(package) is not None
