"""The engines that are compared, each behind the same few calls.

Knows how each engine is used well: what its documentation recommends, and the tightest loop its interface
allows. Knows nothing of clocks, workloads or results.

Every loop is written out in the engine's own class (`put_each`, `get_each`, …), so that nobody pays for a
wrapper: an engine whose put is three calls makes three calls, without a function around them.

Fairness. All engines are asked for the same durability, and `Engine.durability` says how close each gets:
*crash* — a write that has returned survives the death of the process; nobody waits for the disk; or, opened
with ``durable=True``, *durable* — a write that has returned survives a power cut. LevelDB and RocksDB get the
Bloom filter that their documentation recommends for random reads; block and page caches keep the size that
the engine or its binding chose. Nobody's checksums are switched on or off.
"""

from __future__ import annotations

import dbm.dumb
import importlib.metadata
import importlib.util
import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from itertools import islice
from typing import Any, ClassVar

Pair = tuple[bytes, bytes]
Entries = AbstractContextManager[Iterator[Pair]]

_NO_ORDER = "keeps no order"
_NO_BATCH = "has no atomic batch"
_NO_COMPACTION = "has no compaction to call"
_NO_DURABILITY = "cannot make a write durable"
_NO_THREADS = "is not made for threads"
_NO_HINTS = "has no hint files"
_NO_WORKER = "does not compact in a thread of Python"
_ONE_PROCESS = "is for one process at a time"
_C_HEAP = "keeps its keys outside of Python's heap"


def _lacking(reason: str, *workloads: str) -> dict[str, str]:
    return dict.fromkeys(workloads, reason)


_DURABLE = ("durable_put_1", "durable_put_8", "durable_put_32")
_PROCESSES = (
    "processes_put",
    "processes_batch",
    "processes_get_put",
    "processes_gets_put",
    "processes_paced",
    "processes_durable",
)
_ONLY_BYTEKV = {
    **_lacking("has one way to be opened", "processes_alone"),
    **_lacking("keeps nothing that has to be caught up with", "processes_follow"),
    **_lacking(_NO_HINTS, "open_no_hints"),
    **_lacking(
        _NO_WORKER,
        "put_while_compacting",
        "gil_while_compacting",
        "put_while_expiring",
        "steady_space",
        "snapshot_space",
        "pauses",
    ),
    **_lacking("has no segments", "segments_1", "segments_10", "segments_100", "segments_1000"),
}
_NO_TTL = _lacking("has no expiry", "ttl_put", "ttl_get", "ttl_add", "ttl_expire", "ttl_batch")
_UNORDERED = _lacking(_NO_ORDER, "prefix_scan", "ycsb_e")


class Engine:
    """One open store of one engine.

    ``put``, ``get`` and ``delete`` are set by the subclass to the callables for single operations; ``get``
    returns None for a missing key. The loops below use them unless the engine has a tighter way.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    package: ClassVar[str | None] = None
    durability: ClassVar[str]
    durable: ClassVar[str] = ""
    lacks: ClassVar[dict[str, str]] = {}  # workload → why the engine cannot run it
    is_slow: ClassVar[bool] = False  # left out above 100,000 keys unless it is named

    put: Callable[[bytes, bytes], Any]
    get: Callable[[bytes], Any]
    delete: Callable[[bytes], Any]

    def __init__(self, path: str, value_size: int, *, durable: bool = False) -> None:
        raise NotImplementedError

    @classmethod
    def shared(cls, path: str, value_size: int, *, durable: bool = False) -> Engine:
        """Open a store that other processes write to as well."""
        return cls(path, value_size, durable=durable)

    @classmethod
    def version(cls) -> str | None:
        """Return the version that is installed, None if it is not."""
        if cls.package is None:
            return ""
        if importlib.util.find_spec(cls.package) is None:
            return None
        return importlib.metadata.version(cls.package)

    # --- loops, with the clock running ---------------------------------------------------------

    def put_each(self, pairs: Iterable[Pair]) -> None:
        put = self.put
        for key, value in pairs:
            put(key, value)

    def get_each(self, keys: Iterable[bytes]) -> list[bytes | None]:
        get = self.get
        return [get(key) for key in keys]

    def get_missing_each(self, keys: Iterable[bytes]) -> list[bytes | None]:
        return self.get_each(keys)

    def delete_each(self, keys: Iterable[bytes]) -> None:
        delete = self.delete
        for key in keys:
            delete(key)

    def put_batch(self, pairs: Sequence[Pair]) -> None:
        """Store all of them or none."""
        raise NotImplementedError

    def get_many(self, keys: Sequence[bytes]) -> Any:
        """Return the values in the way that is cheapest; `pairs_of` makes pairs of it afterwards."""
        return self.get_each(keys)

    def pairs_of(self, keys: Sequence[bytes], found: Any) -> Iterable[Pair]:
        """Turn what `get_many` returned into pairs; the clock is stopped."""
        return zip(keys, found, strict=True)

    def scan(self) -> Entries:
        """Return all entries in key order."""
        raise NotImplementedError

    def scan_prefix(self, prefix: bytes) -> list[Pair]:
        raise NotImplementedError

    def scan_from(self, key: bytes, count: int) -> list[Pair]:
        raise NotImplementedError

    def compact(self) -> None:
        raise NotImplementedError

    def put_each_for(self, pairs: Iterable[Pair], ttl: int) -> None:
        """Store pairs one by one, each with so many seconds to live."""
        put = self.put
        for key, value in pairs:
            put(key, value, ttl)

    def add_each_for(self, pairs: Iterable[Pair], ttl: int) -> None:
        """Do the same for keys that do not exist, if they do not."""
        raise NotImplementedError

    def expire_each(self, keys: Iterable[bytes], ttl: int) -> None:
        """Give keys so many seconds to live from now on, one by one."""
        raise NotImplementedError

    def put_batch_for(self, pairs: Sequence[Pair], ttl: int) -> None:
        """Do what `put_batch` does, with a time to live."""
        raise NotImplementedError

    # --- without a clock -----------------------------------------------------------------------

    def putter(self) -> AbstractContextManager[Callable[[bytes, bytes], Any]]:
        """Return what a thread of its own puts with."""
        return nullcontext(self.put)

    def close(self) -> None:
        raise NotImplementedError


class Bytekv(Engine):
    name, title = "bytekv", "bytekv"
    durability = "crash; synced once a second in the background (sync='interval')"
    durable = "sync='always'"

    def __init__(self, path: str, value_size: int, *, durable: bool = False, **options: Any) -> None:
        import bytekv

        self.db = bytekv.open(path, sync="always" if durable else "interval", **options)
        self.put, self.get, self.delete = self.db.__setitem__, self.db.get, self.db.delete
        self.put_batch, self.get_many, self.compact = self.db.update, self.db.get_many, self.db.compact

    @classmethod
    def shared(cls, path: str, value_size: int, *, durable: bool = False) -> Engine:
        return cls(path, value_size, durable=durable, shared=True)

    @classmethod
    def version(cls) -> str:
        import bytekv

        return bytekv.__version__

    def put_each_for(self, pairs: Iterable[Pair], ttl: int) -> None:
        put = self.db.put
        for key, value in pairs:
            put(key, value, ttl=ttl)

    def add_each_for(self, pairs: Iterable[Pair], ttl: int) -> None:
        add = self.db.add
        for key, value in pairs:
            add(key, value, ttl=ttl)

    def expire_each(self, keys: Iterable[bytes], ttl: int) -> None:
        expire = self.db.expire
        for key in keys:
            expire(key, ttl)

    def put_batch_for(self, pairs: Sequence[Pair], ttl: int) -> None:
        self.db.update(pairs, ttl=ttl)

    def pairs_of(self, keys: Sequence[bytes], found: Any) -> Iterable[Pair]:
        return found.items()  # type: ignore[no-any-return]

    def scan(self) -> Entries:
        return nullcontext(self.db.scan())

    def scan_prefix(self, prefix: bytes) -> list[Pair]:
        return list(self.db.scan(prefix))

    def scan_from(self, key: bytes, count: int) -> list[Pair]:
        return list(self.db.scan(start=key, limit=count))

    def close(self) -> None:
        self.db.close()


class Lmdb(Engine):
    name, title, package = "lmdb", "LMDB nosync", "lmdb"
    durability = "crash; sync=False, one transaction a write; a power cut may damage the file"
    durable = "sync=True"
    lacks = {
        **_ONLY_BYTEKV,
        **_NO_TTL,
        **_lacking(_C_HEAP, "heap"),
        **_lacking("is measured with writemap", *_PROCESSES[:-1]),
    }
    writemap = False

    def __init__(self, path: str, value_size: int, *, durable: bool = False) -> None:
        self._path, self._durable = path, durable
        self._open()

    def _open(self) -> None:
        import lmdb

        self.env = lmdb.open(
            self._path, map_size=1 << 36, sync=self._durable, metasync=self._durable, writemap=self.writemap
        )

    def put(self, key: bytes, value: bytes) -> None:
        transaction = self.env.begin(write=True)
        transaction.put(key, value)
        transaction.commit()

    def get(self, key: bytes) -> Any:
        return self.env.begin().get(key)

    def delete(self, key: bytes) -> None:
        transaction = self.env.begin(write=True)
        transaction.delete(key)
        transaction.commit()

    def put_each(self, pairs: Iterable[Pair]) -> None:
        begin = self.env.begin
        for key, value in pairs:
            transaction = begin(write=True)
            transaction.put(key, value)
            transaction.commit()

    def get_each(self, keys: Iterable[bytes]) -> list[bytes | None]:
        begin = self.env.begin
        return [begin().get(key) for key in keys]

    def delete_each(self, keys: Iterable[bytes]) -> None:
        begin = self.env.begin
        for key in keys:
            transaction = begin(write=True)
            transaction.delete(key)
            transaction.commit()

    def put_batch(self, pairs: Sequence[Pair]) -> None:
        with self.env.begin(write=True) as transaction:
            transaction.cursor().putmulti(pairs)

    def get_many(self, keys: Sequence[bytes]) -> Any:
        with self.env.begin() as transaction:
            return transaction.cursor().getmulti(keys)

    def pairs_of(self, keys: Sequence[bytes], found: Any) -> Iterable[Pair]:
        return found  # type: ignore[no-any-return]

    @contextmanager
    def scan(self) -> Iterator[Iterator[Pair]]:
        with self.env.begin() as transaction:
            yield iter(transaction.cursor())

    def scan_prefix(self, prefix: bytes) -> list[Pair]:
        found: list[Pair] = []
        append, stop = found.append, _after(prefix)
        with self.env.begin() as transaction:
            cursor = transaction.cursor()
            if cursor.set_range(prefix):
                for pair in cursor:
                    if pair[0] >= stop:
                        break
                    append(pair)
        return found

    def scan_from(self, key: bytes, count: int) -> list[Pair]:
        with self.env.begin() as transaction:
            cursor = transaction.cursor()
            return list(islice(cursor, count)) if cursor.set_range(key) else []

    def compact(self) -> None:
        # The documented way: a compacted copy, which takes the place of the original.
        copy = self._path + ".compacted"
        os.mkdir(copy)
        self.env.copy(copy, compact=True)
        self.env.close()
        shutil.rmtree(self._path)
        os.rename(copy, self._path)
        self._open()

    def close(self) -> None:
        self.env.close()


class LmdbWritemap(Lmdb):
    name, title = "lmdb-writemap", "LMDB writemap nosync"
    durability = "crash; writemap, sync=False, one transaction a write; a power cut may damage the file"
    durable = "writemap, sync=True"
    lacks = {**_ONLY_BYTEKV, **_NO_TTL, **_lacking(_C_HEAP, "heap")}
    writemap = True


class Leveldb(Engine):
    name, title, package = "leveldb", "LevelDB", "plyvel"
    durability = "crash; sync=False"
    durable = "sync=True"
    lacks = {**_ONLY_BYTEKV, **_NO_TTL, **_lacking(_C_HEAP, "heap"), **_lacking(_ONE_PROCESS, *_PROCESSES)}

    def __init__(self, path: str, value_size: int, *, durable: bool = False) -> None:
        import plyvel

        self.db = plyvel.DB(path, create_if_missing=True, bloom_filter_bits=10)
        self.get, self.delete = self.db.get, self.db.delete
        if durable:
            put = self.db.put
            self.put = lambda key, value: put(key, value, sync=True)
        else:
            self.put = self.db.put

    def put_batch(self, pairs: Sequence[Pair]) -> None:
        with self.db.write_batch() as batch:
            put = batch.put
            for key, value in pairs:
                put(key, value)

    def scan(self) -> Entries:
        return self.db.iterator()  # type: ignore[no-any-return]

    def scan_prefix(self, prefix: bytes) -> list[Pair]:
        with self.db.iterator(prefix=prefix) as entries:
            return list(entries)

    def scan_from(self, key: bytes, count: int) -> list[Pair]:
        with self.db.iterator(start=key) as entries:
            return list(islice(entries, count))

    def compact(self) -> None:
        self.db.compact_range()

    def close(self) -> None:
        self.db.close()


class Rocksdb(Engine):
    name, title, package = "rocksdb", "RocksDB", "rocksdict"
    durability = "crash; write-ahead log, no sync"
    durable = "write-ahead log, sync=True"
    lacks = {**_ONLY_BYTEKV, **_NO_TTL, **_lacking(_C_HEAP, "heap"), **_lacking(_ONE_PROCESS, *_PROCESSES)}

    def __init__(self, path: str, value_size: int, *, durable: bool = False) -> None:
        import rocksdict

        options, table = rocksdict.Options(raw_mode=True), rocksdict.BlockBasedOptions()
        table.set_bloom_filter(10, False)
        options.set_block_based_table_factory(table)
        self._module = rocksdict
        self.db = rocksdict.Rdict(path, options)
        if durable:
            write = rocksdict.WriteOptions()
            write.sync = True
            self.db.set_write_options(write)
        self.put, self.get, self.delete = self.db.put, self.db.get, self.db.delete

    def put_batch(self, pairs: Sequence[Pair]) -> None:
        batch = self._module.WriteBatch(raw_mode=True)
        put = batch.put
        for key, value in pairs:
            put(key, value)
        self.db.write(batch)

    def get_many(self, keys: Sequence[bytes]) -> Any:
        return self.db.get(keys)

    def scan(self) -> Entries:
        return nullcontext(self.db.items())

    def scan_prefix(self, prefix: bytes) -> list[Pair]:
        bounds = self._module.ReadOptions()
        bounds.set_iterate_upper_bound(_after(prefix))
        return list(self.db.items(from_key=prefix, read_opt=bounds))

    def scan_from(self, key: bytes, count: int) -> list[Pair]:
        return list(islice(self.db.items(from_key=key), count))

    def compact(self) -> None:
        self.db.compact_range(None, None)

    def close(self) -> None:
        self.db.close()


class Sqlite(Engine):
    name, title = "sqlite", "SQLite WAL"
    durability = "crash; WAL, synchronous=NORMAL, one transaction a write"
    durable = "WAL, synchronous=FULL, a connection a thread"
    lacks = {**_ONLY_BYTEKV, **_lacking(_C_HEAP, "heap")}

    _SELECT = "SELECT v FROM kv WHERE k = ?"
    _SELECT_MORTAL = "SELECT v FROM mortal WHERE k = ? AND expires > unixepoch()"
    _PUT = "INSERT OR REPLACE INTO kv VALUES (?, ?)"
    _DELETE = "DELETE FROM kv WHERE k = ?"

    def __init__(self, path: str, value_size: int, *, durable: bool = False) -> None:
        os.makedirs(path, exist_ok=True)
        self._file, self._durable = os.path.join(path, "db"), durable
        self.db = self._connect()
        # SQLite's documentation: WITHOUT ROWID is for rows of less than a twentieth of a page.
        kind = " WITHOUT ROWID" if value_size <= 200 else ""
        self.db.execute("CREATE TABLE IF NOT EXISTS kv (k BLOB PRIMARY KEY, v BLOB)" + kind)
        self._execute = self.db.cursor().execute

    @classmethod
    def version(cls) -> str:
        return sqlite3.sqlite_version

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._file, timeout=60, isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={'FULL' if self._durable else 'NORMAL'}")
        return connection

    def put(self, key: bytes, value: bytes) -> None:
        self._execute(self._PUT, (key, value))

    def get(self, key: bytes) -> Any:
        row = self._execute(self._SELECT, (key,)).fetchone()
        return row and row[0]

    def delete(self, key: bytes) -> None:
        self._execute(self._DELETE, (key,))

    def put_each(self, pairs: Iterable[Pair]) -> None:
        execute, statement = self._execute, self._PUT
        for pair in pairs:
            execute(statement, pair)

    def get_each(self, keys: Iterable[bytes]) -> list[bytes | None]:
        execute, statement = self._execute, self._SELECT
        return [execute(statement, (key,)).fetchone()[0] for key in keys]

    def get_missing_each(self, keys: Iterable[bytes]) -> list[bytes | None]:
        execute, statement = self._execute, self._SELECT
        rows = [execute(statement, (key,)).fetchone() for key in keys]
        return [row and row[0] for row in rows]

    def delete_each(self, keys: Iterable[bytes]) -> None:
        execute, statement = self._execute, self._DELETE
        for key in keys:
            execute(statement, (key,))

    def put_batch(self, pairs: Sequence[Pair]) -> None:
        self._execute("BEGIN")
        self.db.executemany(self._PUT, pairs)
        self._execute("COMMIT")

    def get_many(self, keys: Sequence[bytes]) -> Any:
        marks = ",".join("?" * len(keys))
        return self._execute(f"SELECT k, v FROM kv WHERE k IN ({marks})", keys).fetchall()

    def pairs_of(self, keys: Sequence[bytes], found: Any) -> Iterable[Pair]:
        return found  # type: ignore[no-any-return]

    def scan(self) -> Entries:
        return closing(self.db.execute("SELECT k, v FROM kv ORDER BY k"))

    def scan_prefix(self, prefix: bytes) -> list[Pair]:
        query = "SELECT k, v FROM kv WHERE k >= ? AND k < ? ORDER BY k"
        return self._execute(query, (prefix, _after(prefix))).fetchall()

    def scan_from(self, key: bytes, count: int) -> list[Pair]:
        return self._execute("SELECT k, v FROM kv WHERE k >= ? ORDER BY k LIMIT ?", (key, count)).fetchall()

    def compact(self) -> None:
        self._execute("VACUUM")
        self._execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _keep_for(self, ttl: int) -> tuple[str, float]:
        """Return a statement and when a key expires that is written now; what expires has a table of its own."""
        if self._SELECT != self._SELECT_MORTAL:
            self._SELECT = self._SELECT_MORTAL
            self._execute("CREATE TABLE mortal (k BLOB PRIMARY KEY, v BLOB, expires REAL) WITHOUT ROWID")
            self._execute("CREATE INDEX due ON mortal (expires)")
        return "INSERT OR REPLACE INTO mortal VALUES (?, ?, ?)", time.time() + ttl

    def put_each_for(self, pairs: Iterable[Pair], ttl: int) -> None:
        execute, statement = self._execute, self._keep_for(ttl)[0]
        for key, value in pairs:
            execute(statement, (key, value, time.time() + ttl))

    def add_each_for(self, pairs: Iterable[Pair], ttl: int) -> None:
        self._keep_for(ttl)
        execute = self._execute
        statement = (
            "INSERT INTO mortal VALUES (?, ?, ?) ON CONFLICT (k) DO UPDATE SET v = excluded.v, expires = "
            "excluded.expires WHERE mortal.expires <= unixepoch()"
        )
        for key, value in pairs:
            execute(statement, (key, value, time.time() + ttl))

    def expire_each(self, keys: Iterable[bytes], ttl: int) -> None:
        execute = self._execute
        for key in keys:
            execute("UPDATE mortal SET expires = ? WHERE k = ? AND expires > unixepoch()", (time.time() + ttl, key))

    def put_batch_for(self, pairs: Sequence[Pair], ttl: int) -> None:
        statement, expires = self._keep_for(ttl)
        self._execute("BEGIN")
        self.db.executemany(statement, ((key, value, expires) for key, value in pairs))
        self._execute("COMMIT")

    @contextmanager
    def putter(self) -> Iterator[Callable[[bytes, bytes], Any]]:
        with closing(self._connect()) as connection:
            execute, statement = connection.cursor().execute, self._PUT
            yield lambda key, value: execute(statement, (key, value))

    def close(self) -> None:
        self.db.close()


class Diskcache(Engine):
    name, title, package = "diskcache", "diskcache", "diskcache"
    durability = "crash; SQLite, WAL, synchronous=NORMAL"
    durable = "SQLite, WAL, synchronous=FULL, a connection a thread"
    lacks = {**_ONLY_BYTEKV, **_UNORDERED, **_lacking(_C_HEAP, "heap"), **_lacking(_NO_COMPACTION, "compact")}
    is_slow = True

    def __init__(self, path: str, value_size: int, *, durable: bool = False) -> None:
        import diskcache

        # As a store, not as a cache: nothing is evicted.
        self.db = diskcache.Cache(
            path, eviction_policy="none", cull_limit=0, size_limit=1 << 50, sqlite_synchronous=2 if durable else 1
        )
        self.put, self.get, self.delete = self.db.set, self.db.get, self.db.delete

    def add_each_for(self, pairs: Iterable[Pair], ttl: int) -> None:
        add = self.db.add
        for key, value in pairs:
            add(key, value, ttl)

    def expire_each(self, keys: Iterable[bytes], ttl: int) -> None:
        touch = self.db.touch
        for key in keys:
            touch(key, ttl)

    def put_batch_for(self, pairs: Sequence[Pair], ttl: int) -> None:
        put = self.db.set
        with self.db.transact():
            for key, value in pairs:
                put(key, value, ttl)

    def put_batch(self, pairs: Sequence[Pair]) -> None:
        put = self.db.set
        with self.db.transact():
            for key, value in pairs:
                put(key, value)

    @contextmanager
    def scan(self) -> Iterator[Iterator[Pair]]:
        get = self.db.get
        yield ((key, get(key)) for key in self.db.iterkeys())

    @contextmanager
    def putter(self) -> Iterator[Callable[[bytes, bytes], Any]]:
        yield self.db.set
        self.db.close()  # this thread's connection

    def compact(self) -> None:
        """Nothing to do: its files never hold anything dead for long (auto_vacuum)."""

    def close(self) -> None:
        self.db.close()


class Redis(Engine):
    """A server of its own, reached through a Unix socket; compared where keys expire, which it is chosen for."""

    name, title, package = "redis", "Redis (a server)", "redis"
    durability = "crash; a server beside the program; append-only file, synced once a second"
    lacks = {
        **_ONLY_BYTEKV,
        **_UNORDERED,
        **_lacking(
            "is a server: compared where keys expire",
            *_DURABLE,
            *_PROCESSES,
            *("put_sequential", "get_many", "get_latency", "open", "overwrite", "put_latency", "scan_before"),
            *("compact", "scan", "ycsb_a", "ycsb_b", "ycsb_c", "open_crash", "heap", "memory", "disk"),
        ),
    }
    is_slow = True

    def __init__(self, path: str, value_size: int, *, durable: bool = False) -> None:
        import redis

        os.makedirs(path, exist_ok=True)
        address = os.path.join(path, "socket")
        options = {"dir": path, "unixsocket": address, "port": "0", "save": "", "appendonly": "yes"}
        given = [part for name, value in options.items() for part in ("--" + name, value)]
        self._server = subprocess.Popen(["redis-server", *given], stdout=subprocess.DEVNULL)
        self.db = redis.Redis(unix_socket_path=address)
        for _ in range(1000):
            with suppress(redis.ConnectionError):
                self.db.ping()
                break
            time.sleep(0.01)
        self.put, self.get, self.delete = self.db.set, self.db.get, self.db.delete

    @classmethod
    def version(cls) -> str | None:
        return super().version() if shutil.which("redis-server") else None

    def put_batch(self, pairs: Sequence[Pair]) -> None:
        self.db.mset(dict(pairs))

    def put_each_for(self, pairs: Iterable[Pair], ttl: int) -> None:
        put = self.db.set
        for key, value in pairs:
            put(key, value, ex=ttl)

    def add_each_for(self, pairs: Iterable[Pair], ttl: int) -> None:
        put = self.db.set
        for key, value in pairs:
            put(key, value, ex=ttl, nx=True)

    def expire_each(self, keys: Iterable[bytes], ttl: int) -> None:
        expire = self.db.expire
        for key in keys:
            expire(key, ttl)

    def put_batch_for(self, pairs: Sequence[Pair], ttl: int) -> None:
        with self.db.pipeline() as batch:  # in MULTI and EXEC
            for key, value in pairs:
                batch.set(key, value, ex=ttl)
            batch.execute()

    def close(self) -> None:
        self.db.close()
        self._server.terminate()
        self._server.wait()


class Semidbm(Engine):
    name, title, package = "semidbm", "semidbm", "semidbm"
    durability = "crash; one write() a put"
    lacks = {
        **_ONLY_BYTEKV,
        **_NO_TTL,
        **_UNORDERED,
        **_lacking(_NO_BATCH, "batch_put"),
        **_lacking(_NO_THREADS, *_DURABLE),
        **_lacking(_ONE_PROCESS, *_PROCESSES),
    }

    def __init__(self, path: str, value_size: int, *, durable: bool = False) -> None:
        import semidbm

        self.db = semidbm.open(path, "c")
        self.put, self.get, self.delete = self.db.__setitem__, self.db.__getitem__, self.db.__delitem__

    def get_missing_each(self, keys: Iterable[bytes]) -> list[bytes | None]:
        get = self.get
        found: list[bytes | None] = []
        append = found.append
        for key in keys:
            try:
                append(get(key))
            except KeyError:
                append(None)
        return found

    @contextmanager
    def scan(self) -> Iterator[Iterator[Pair]]:
        get = self.get
        yield ((key, get(key)) for key in sorted(self.db.keys()))

    def compact(self) -> None:
        self.db.compact()

    def close(self) -> None:
        self.db.close()


class Dumb(Semidbm):
    name, title, package = "dbm.dumb", "dbm.dumb", None
    durability = "less: a killed process may lose what was overwritten since sync() or close()"
    lacks = {**Semidbm.lacks, **_lacking(_NO_COMPACTION, "compact")}
    is_slow = True

    def __init__(self, path: str, value_size: int, *, durable: bool = False) -> None:
        os.makedirs(path, exist_ok=True)
        self.db = dbm.dumb.open(os.path.join(path, "db"), "c")
        self.put, self.get, self.delete = self.db.__setitem__, self.db.__getitem__, self.db.__delitem__

    @classmethod
    def version(cls) -> str:
        return ""

    def compact(self) -> None:
        """Nothing to do: it cannot."""


class Dict(Engine):
    name, title = "dict", "dict (the limit)"
    durability = "none: a dict in memory, the limit of what Python can do"
    lacks = {
        **_ONLY_BYTEKV,
        **_NO_TTL,
        **_UNORDERED,
        **_lacking(_NO_DURABILITY, *_DURABLE),
        **_lacking("is not on disk", "open", "open_crash", "disk", "memory"),
        **_lacking(_ONE_PROCESS, *_PROCESSES),
        **_lacking(_NO_COMPACTION, "compact"),
    }

    def __init__(self, path: str, value_size: int, *, durable: bool = False) -> None:
        self.db: dict[bytes, bytes] = {}
        self.put, self.get, self.delete = self.db.__setitem__, self.db.get, self.db.__delitem__
        self.put_batch = self.db.update

    @contextmanager
    def scan(self) -> Iterator[Iterator[Pair]]:
        get = self.db.__getitem__
        yield ((key, get(key)) for key in sorted(self.db))

    def compact(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        self.db.clear()


def _after(prefix: bytes) -> bytes:
    """Return the smallest key above all that begin with a prefix (which must not be all 0xff)."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1])


ENGINES: dict[str, type[Engine]] = {
    engine.name: engine
    for engine in (Bytekv, LmdbWritemap, Lmdb, Leveldb, Rocksdb, Sqlite, Semidbm, Diskcache, Redis, Dumb, Dict)
}
