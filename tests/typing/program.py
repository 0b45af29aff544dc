# pyright: strict
"""A user's program that touches everything public: mypy --strict and pyright read it, test_exports.py runs it.

`assert_type` says what a checker must find; where a checker would find less, a user's editor would, too.
"""

from __future__ import annotations

import pathlib
import shelve
import sys
from collections.abc import ItemsView, Iterator, KeysView, Mapping, MutableMapping, ValuesView
from typing import TYPE_CHECKING, Literal, assert_type

import bytekv
import bytekv.dbm
import bytekv.events
import bytekv.http
import bytekv.resp
from bytekv import (
    AccessDeniedError,
    BackupReport,
    Batch,
    BytekvError,
    Change,
    ChangesLostError,
    Compaction,
    ConflictError,
    CorruptionError,
    Damage,
    DiskFullError,
    Entry,
    EntryStat,
    ForkedStoreError,
    LimitError,
    NotAStoreError,
    Options,
    Progress,
    ReadOnlyError,
    Recovery,
    ReentryError,
    Report,
    SegmentStats,
    Snapshot,
    Stats,
    Store,
    StoreBusyError,
    StoreClosedError,
    StoreFailedError,
    StoreIOError,
    StoreLockedError,
    StoreNotFoundError,
    Transaction,
    UnsupportedError,
    UnsupportedFormatError,
)

if TYPE_CHECKING:
    # Each of these ignores is needed, or the checkers complain: a wrong option is found before the program runs.
    bytekv.open("store", sync="maybe")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    bytekv.open("store", sinc="os")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    bytekv.open("store", segment_size_bytes="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    bytekv.open("store", "x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    bytekv.dbm.open("store", sync="maybe")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

#: What a user catches, and what each also is.
ALSO: list[tuple[type[BytekvError], type[Exception]]] = [
    (AccessDeniedError, PermissionError),
    (ChangesLostError, BytekvError),
    (ConflictError, BytekvError),
    (CorruptionError, BytekvError),
    (DiskFullError, OSError),
    (ForkedStoreError, BytekvError),
    (LimitError, ValueError),
    (NotAStoreError, BytekvError),
    (ReadOnlyError, BytekvError),
    (ReentryError, RuntimeError),
    (StoreBusyError, BytekvError),
    (StoreClosedError, BytekvError),
    (StoreFailedError, BytekvError),
    (StoreIOError, OSError),
    (StoreLockedError, BytekvError),
    (StoreNotFoundError, FileNotFoundError),
    (UnsupportedError, BytekvError),
    (UnsupportedFormatError, BytekvError),
]


def reads_and_writes(db: Store) -> None:
    """Use the store as a dict, and beyond."""
    mapping: MutableMapping[bytes, bytes] = db
    assert len(mapping) == 0
    db["text"] = "str in"
    db[b"bytes"] = bytearray(b"bytes in")
    assert_type(db["text"], bytes)
    assert_type(db.get("text"), bytes | None)
    assert_type(db.get("none", 7), bytes | int)
    assert_type(b"text" in db, bool)  # mypy --strict takes no str here, although bytekv does
    assert_type(db.put("n", "1", ttl=60.0), int)
    seq = db.put("n", "1", expires=4e9)
    assert_type(db.put("n", "2", if_seq=seq), int)
    assert_type(db.add("once", "1", ttl=1), bool)
    assert_type(db.delete("once"), bool)
    assert_type(db.incr("n", 3), int)
    assert_type(db.incr("n", default=None), int)
    assert_type(db.modify("n", lambda value: value.decode(), "1"), bytes)
    assert_type(db.expire("n", 60), bool)
    assert_type(db.ttl("n"), float | None)
    assert_type(db.persist("n"), bool)
    assert_type(db.setdefault("text", "never"), bytes)
    assert_type(db.get_many(["text", b"n"]), dict[bytes, bytes])
    assert_type(db.read("text", 4, 2), bytes)
    assert_type(db.would_wait("text", write_bytes=100), bool)
    assert_type(db.wait(0, timeout=1), int)
    assert_type(db.pop("n"), bytes)
    assert_type(db.pop("n", None), bytes | None)
    assert_type(db.popitem(), tuple[bytes, bytes])
    db.update({"a": "1", b"b": b"2"}, c="3")
    db |= {b"d": b"4"}
    entry = db.entry("a")
    assert_type(entry, Entry)
    assert_type((entry.key, entry.value, entry.seq), tuple[bytes, bytes, int])
    assert_type((entry.modified, entry.expires), tuple[float, float | None])


def scans(db: Store) -> None:
    """Walk through it in order."""
    assert_type(db.scan("a", reverse=True, limit=1), Iterator[tuple[bytes, bytes]])
    assert_type(db.scan_keys(start=b"a", stop="z", include_start=False, include_stop=True), Iterator[bytes])
    assert_type(db.count("a", start="a1"), int)
    assert_type(db.children("a/", "/"), Iterator[bytes])
    assert_type(db.scan_stats("a", limit=1), Iterator[EntryStat])
    stat = db.stat("a")
    assert_type((stat.key, stat.size, stat.seq), tuple[bytes, int, int])
    assert_type((stat.modified, stat.expires), tuple[float, float | None])
    assert_type((db.delete_prefix("none/"), db.delete_range("y", b"z")), tuple[int, int])
    assert_type(db.keys(), KeysView[bytes])
    assert_type(db.items(), ItemsView[bytes, bytes])
    assert_type(db.values(), ValuesView[bytes])
    assert_type(iter(db), Iterator[bytes])
    assert_type(reversed(db), Iterator[bytes])
    assert_type(db | {b"x": b"y"}, dict[bytes, bytes])


def several_as_one(db: Store) -> None:
    """Change several keys at once, and look at one moment."""
    with db.batch() as batch:
        assert_type(batch, Batch)
        batch["e"] = "5"
        batch.put("f", "6", ttl=60)
        batch.put_all([("g", "7"), (b"h", b"8")])
        batch.delete("a")
        del batch["b"]
        assert_type(len(batch), int)
    assert_type(batch.seq, int | None)
    other = db.batch()
    other.put("i", "9")
    assert_type(other.commit(), int | None)
    with db.transaction() as tx:
        assert_type(tx, Transaction)
        tx["e"] = tx["e"] + tx.get("f", b"")
        tx.put("j", "10", ttl=60)
        del tx["c"]
        tx.update({"k": "11"})
        assert_type(tx.pop("k"), bytes)
        assert_type(tx.setdefault("l", "12"), bytes)
        assert_type(tx.scan("e"), Iterator[tuple[bytes, bytes]])
        assert_type((tx.add("m", "1", ttl=60), tx.delete("m")), tuple[bool, bool])
        assert_type((tx.expire("m", 60), tx.persist("m")), tuple[bool, bool])
        assert_type((tx.incr("o"), tx.modify("o", bytes.upper), tx.ttl("o")), tuple[int, bytes, float | None])
        assert_type((tx.get_many(["o"]), tx.count("o")), tuple[dict[bytes, bytes], int])
        assert_type((tx.delete_prefix("o"), tx.delete_range("o", "p")), tuple[int, int])
    assert_type(tx.seq, int | None)
    snap = db.snapshot()
    assert_type(snap, Snapshot)
    frozen: Mapping[bytes, bytes] = snap
    assert_type(snap.entry("e"), Entry)
    assert_type((snap.stat("e"), snap.ttl("e"), snap.count("e")), tuple[EntryStat, float | None, int])
    assert_type((snap.get_many("e"), snap.scan_stats("e")), tuple[dict[bytes, bytes], Iterator[EntryStat]])
    assert_type(snap.seq, int)
    assert frozen[b"e"] == snap["e"] == b"56"
    assert_type(snap.get("e"), bytes | None)
    snap.close()


def show(progress: Progress) -> None:
    """Take what is told on the way."""
    assert_type((progress.done_bytes, progress.total_bytes), tuple[int, int])


def maintenance(db: Store, folder: pathlib.Path) -> None:
    """Look after it."""
    db.sync()
    assert_type((db.path, db.closed, db.readonly), tuple[str, bool, bool])
    assert_type((db.last_seq, db.durable_seq), tuple[int, int])
    assert_type(db.failure, BaseException | None)
    assert_type(db.options, Options)
    assert_type(db.recovery, Recovery)
    assert_type((db.recovery.clean, db.recovery.torn_bytes), tuple[bool, int])
    assert_type(db.refresh(), bool)
    compaction = db.compact(progress=show)
    assert_type(compaction, Compaction)
    assert_type(compaction.reclaimed_bytes, int)
    report = db.verify(progress=show)
    assert_type(report, Report)
    assert_type(report.ok, bool)
    assert_type(report.damage, list[Damage])
    backup = db.backup(folder / "backup", progress=show)
    assert_type(backup, BackupReport)
    assert_type(backup.copied_bytes, int)
    stats = db.stats()
    assert_type(stats, Stats)
    assert_type(stats.pinned_bytes, int)
    assert_type(stats.expired_keys, int)
    assert_type((stats.throttled, stats.throttled_s), tuple[str | None, float])
    assert_type(stats.segments, tuple[SegmentStats, ...])
    for change in db.changes(since_seq=db.last_seq):
        assert_type(change, Change)
        assert_type(change.op, Literal["put", "delete", "clear"])
    db.clear()
    db.close()


def listen(event: bytekv.events.Event) -> None:
    """Tell the events apart."""
    assert_type(event.path, str)
    match event:
        case bytekv.events.SegmentSealed():
            assert_type((event.segment_id, event.length_bytes, event.last_seq), tuple[int, int, int])
        case bytekv.events.CompactionBegan():
            assert_type(event.segment_ids, tuple[int, ...])
        case bytekv.events.CompactionEnded():
            assert_type(event.error, str | None)
        case bytekv.events.ThrottleBegan():
            assert_type((event.dead_bytes, event.live_bytes, event.free_bytes), tuple[int, int, int])
        case bytekv.events.ThrottleEnded():
            assert_type(event.throttled_s, float)
        case bytekv.events.SyncSlow():
            assert_type(event.duration_s, float)
        case bytekv.events.Recovered():
            assert_type((event.torn_bytes, event.is_repaired), tuple[int, bool])
        case bytekv.events.Quarantined():
            assert_type(event.file, str)


def options() -> None:
    """Choose how."""
    chosen = Options(sync="always", segment_size_bytes=1 << 20, compact_rate_bytes_s=None)
    assert_type(chosen.sync_interval_s, float)
    assert_type(Options.names(), list[str])
    assert callable(Options(listener=listen).listener)


def dbm(folder: pathlib.Path) -> None:
    """Use it as a dbm."""
    with bytekv.dbm.open(folder / "dbm", "c") as file:
        file["a"] = "1"
        assert_type(file["a"], bytes)
        assert_type(file.firstkey(), bytes | None)
    shelf: shelve.Shelf[list[int]] = shelve.Shelf(bytekv.dbm.open(str(folder / "shelf"), "c"))
    shelf["numbers"] = [1, 2]
    shelf.close()
    assert issubclass(bytekv.dbm.error, OSError)


async def doors(db: Store) -> None:
    """Serve it; not run, for it would not end."""
    application = bytekv.http.app(db, tokens={"s3cret": ["read", "write"]})
    assert_type(application, bytekv.http.Application)
    application.close()
    with bytekv.http.running(db) as url:
        assert_type(url, str)
    await bytekv.http.serve(db, "127.0.0.1", 0, started=print)
    with bytekv.resp.Server(db, port=0) as server:
        assert_type(server, bytekv.resp.Server)
    await bytekv.resp.serve(db, port=0, started=print)


def main(folder: pathlib.Path) -> None:
    """Run all that ends."""
    with bytekv.open(folder / "store", "n", sync="os") as db:
        assert_type(db, Store)
        reads_and_writes(db)
        scans(db)
        several_as_one(db)
        maintenance(db, folder)
    options()
    dbm(folder)
    assert_type(bytekv.repair(folder / "store", progress=show), Report)
    assert all(issubclass(kind, also) for kind, also in ALSO)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
