"""Iterators, snapshots and feeds that nobody closes: what they hold on to, what `stats` says, when it comes back."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from bytekv.contract.reports import Change, Progress
from bytekv.engine.store import Store
from bytekv.errors import ChangesLostError, StoreClosedError
from tests.support import harness
from tests.support.harness import segment_files

COUNT = 10_000


def use(db: Store, number: int) -> object:
    """Begin to look at the store in one of the ways there are, and stop in the middle."""
    kinds: list[Callable[[], Any]] = [
        db.snapshot,
        db.scan,
        db.scan_keys,
        db.items,
        lambda: feed_of(db),
        lambda: iter(db),
        lambda: reversed(db),
        lambda: db.scan(b"k", reverse=True, limit=3),
    ]
    begun = kinds[number % len(kinds)]()
    if number % 3 and isinstance(begun, Iterator):
        next(begun, None)
    return begun


def feed_of(db: Store) -> Iterator[Change]:
    """Return the changes as far back as there are any."""
    try:
        return db.changes()
    except ChangesLostError as error:
        return db.changes(error.first_seq)


def change(db: Store, rest: random.Random) -> None:
    """Overwrite a few keys and compact, so that a reader needs files that nobody else does."""
    for _ in range(10):
        db[b"k%03d" % rest.randrange(100)] = rest.randbytes(40)
    victims = [row.segment_id for row in db._segments.sealed()][-4:]
    if victims:
        db._maintenance.compactor.run(victims, lambda: None, lambda _: None)


def descriptors_of(path: Path) -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return [target for target in found if target.startswith(str(path))]


def mappings_of(path: Path) -> int:
    with open("/proc/self/maps") as maps:
        return sum(str(path) in line for line in maps)


def unlisted(db: Store, path: Path) -> list[Path]:
    """Return the segments that lie on the disk only because somebody may look at them."""
    listed = {f"{row.segment_id:010}.seg" for row in db.stats().segments}
    return [file for file in segment_files(path) if file.name not in listed]


@pytest.fixture
def filled(open_store: Callable[..., Store]) -> Store:
    db = open_store(segment_size_bytes=1500)
    for number in range(100):
        db[b"k%03d" % number] = b"." * 40
    return db


def leak(db: Store, keep: Callable[[object], object], count: int = COUNT) -> None:
    rest = random.Random(1)
    for number in range(count):
        keep(use(db, number))
        if number % (count // 10) == count // 10 - 1:
            change(db, rest)


def test_ten_thousand_that_are_kept_end_with_the_store(filled: Store, path: Path) -> None:
    """Somebody holds on to them, and closes the store all the same."""
    kept: list[Any] = []
    leak(filled, kept.append)
    stats = filled.stats()
    assert stats.open_views > COUNT / 2
    pinned = unlisted(filled, path)
    assert len(pinned) > 20
    assert stats.pinned_bytes == sum(file.stat().st_size for file in pinned)
    assert len(descriptors_of(path)) <= filled._segments.open.most + 3
    filled.close()
    assert descriptors_of(path) == []
    assert mappings_of(path) == 0
    with harness.open_store(path, "r") as again:
        assert unlisted(again, path) == []
    for view in kept:
        if isinstance(view, Iterator):
            with pytest.raises((StoreClosedError, StopIteration)):
                for _ in range(200):
                    next(view)
        else:
            with pytest.raises(StoreClosedError):
                dict(view)


def test_ten_thousand_that_are_forgotten_let_go_by_themselves(filled: Store, path: Path) -> None:
    leak(filled, lambda view: None)
    gc.collect()
    stats = filled.stats()
    assert (stats.open_views, stats.pinned_bytes) == (0, 0)
    assert unlisted(filled, path) == []
    assert len(filled._keydir._views) == len(filled._segments.obsolete._pins) == 0


def test_those_in_cycles_let_go_when_they_are_collected(filled: Store, path: Path) -> None:
    """Reference counts do not free what refers to itself: it waits for the garbage collector, and counts until then."""

    class Holder:
        pass

    def keep(view: object) -> None:
        holder: Any = Holder()
        holder.itself, holder.view = holder, view

    gc.disable()
    try:
        leak(filled, keep, 2000)
        stats = filled.stats()
        assert stats.open_views > 1000
        assert stats.pinned_bytes > 0
    finally:
        gc.enable()
    gc.collect()
    filled[b"next"] = b"write"
    stats = filled.stats()
    assert (stats.open_views, stats.pinned_bytes) == (0, 0)
    assert unlisted(filled, path) == []


def test_what_is_pinned_by_whom(filled: Store, path: Path) -> None:
    """`open_views` counts snapshots and iterators that are under way, `pinned_bytes` what any of them, or a feed of
    changes, keeps on the disk though the store itself is done with it."""
    rest = random.Random(2)
    assert (filled.stats().open_views, filled.stats().pinned_bytes) == (0, 0)
    snap = filled.snapshot()
    assert (filled.stats().open_views, filled.stats().pinned_bytes) == (1, 0)
    change(filled, rest)
    first = filled.stats().pinned_bytes
    assert first > 0
    scan = filled.scan()
    next(scan)
    change(filled, rest)
    both = filled.stats().pinned_bytes
    assert both > first
    assert filled.stats().open_views == 2
    snap.close()
    assert filled.stats().pinned_bytes < both  # what only the snapshot needed has gone
    assert filled.stats().open_views == 1
    list(scan)
    assert (filled.stats().open_views, filled.stats().pinned_bytes) == (0, 0)
    last = filled.last_seq
    filled[b"a"] = filled[b"b"] = b"new"
    feed = filled.changes(last)
    filled._commit.seal()
    change(filled, rest)
    assert filled.stats().open_views == 0
    assert filled.stats().pinned_bytes > 0
    assert len(list(feed)) == 2
    assert filled.stats().pinned_bytes == 0
    assert unlisted(filled, path) == []


def test_a_backup_that_is_under_way_outlives_its_store(filled: Store, path: Path) -> None:
    """It has pinned its moment, and unlike an iterator it ends by itself."""
    content, dest = dict(filled), path.with_name("backup")
    for number in range(100):
        filled[b"k%03d" % number] = content[b"k%03d" % number] = b"%d" % number
    closed_at: list[int] = []

    def close(done: Progress) -> None:
        if not filled.closed:
            filled.compact()
            filled.close()
            closed_at.append(done.done_bytes)

    assert filled.backup(dest, progress=close).segments > 4
    assert len(closed_at) == 1
    with harness.open_store(dest) as copy:
        assert dict(copy) == content
        assert copy.verify().ok
    with harness.open_store(path) as again:
        assert dict(again) == content
        assert unlisted(again, path) == []


@pytest.mark.parametrize(
    "begin",
    [
        iter,
        lambda db: db.items(),
        lambda db: db.scan(limit=900),
        lambda db: db.scan_keys(reverse=True),
        lambda db: iter(db.snapshot()),
        lambda db: db.snapshot().items(),
        lambda db: db.changes(),
    ],
    ids=["iter", "items", "scan", "scan_keys", "snapshot", "snapshot_items", "changes"],
)
def test_an_iterator_keeps_the_store_open(path: Path, begin: Callable[[Store], Any]) -> None:
    """Nobody but the iterator has the store, as in ``for key in bytekv.open(path)``; with it the store goes."""
    with harness.open_store(path) as db:
        db.update({b"%04d" % number: b"%d" % number for number in range(1000)})
    walk = iter(begin(harness.open_store(path, "w")))
    gc.collect()
    assert len(list(walk)) in (900, 1000)
    del walk
    gc.collect()
    with harness.open_store(path, "w") as db:
        assert len(db) == 1000
