"""Snapshots: one moment, whatever is written, compacted or expires afterwards."""

from __future__ import annotations

import errno
import gc
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bytekv
from bytekv.engine.codec.entry import SEGMENT_SHIFT
from bytekv.engine.space import undo_copier
from bytekv.engine.space.compactor import Compactor
from bytekv.errors import DiskFullError
from tests.support import harness
from tests.support.harness import FakeFiles, segment_files


def test_a_snapshot_does_not_change(open_store):
    db = open_store(segment_size_bytes=400)
    db.update({f"{number:02}": f"old {number}" for number in range(30)})
    before, entry = dict(db), db.entry("00")
    with db.snapshot() as snap:
        db["00"] = "new"
        del db["01"]
        db["99"] = "new"
        db.update({"02": "new", "03": "new"})
        assert dict(snap) == before
        db.compact()
        db.clear()
        db["04"] = "after the clear"
        db.compact()
        assert dict(snap) == before
        assert (len(snap), list(snap), snap["01"], "99" in snap) == (30, sorted(before), b"old 1", False)
        assert list(reversed(snap)) == sorted(before, reverse=True)
        assert list(snap.scan("0", limit=2)) == [(b"00", b"old 0"), (b"01", b"old 1")]
        assert snap == before
        assert snap.seq == 30
        assert [snap.entry(key).seq for key in ("00", "29")] == [1, 30]
        assert snap.entry("00") == entry
        with pytest.raises(KeyError):
            snap.entry("99")
        assert snap.get("99") is None
        with pytest.raises(KeyError):
            snap["99"]
        with pytest.raises(TypeError):
            snap["00"] = "x"
    assert dict(db) == {b"04": b"after the clear"}
    with pytest.raises(bytekv.StoreClosedError, match="snapshot"):
        snap["00"]
    snap.close()


def test_files_stay_until_the_last_snapshot_is_closed(open_store):
    db = open_store(segment_size_bytes=400)
    for number in range(30):
        db[f"{number:02}"] = "x" * 30
    first, second = db.snapshot(), db.snapshot()
    db.clear()
    db.compact()
    files = segment_files(Path(db.path))
    assert len(files) > 5
    stats = db.stats()
    assert (stats.open_views, stats.pinned_bytes > 2000) == (2, True)
    first.close()
    assert len(second) == 30
    assert db.stats().pinned_bytes == stats.pinned_bytes
    second.close()
    assert (db.stats().open_views, db.stats().pinned_bytes) == (0, 0)
    assert segment_files(Path(db.path)) == []


def test_a_snapshot_keeps_the_files_that_it_can_need_and_no_others(open_store):
    """Those in which it has noted where a key was: be they older than the snapshot, or a compaction's of long after."""
    db = open_store()
    db.update({"a": "1" * 300, "b": "1" * 10})  # a is more than half of what there is, and so it stays where it is
    with db.snapshot() as snap:
        db["c"] = "1"
        db.compact()
        assert db.stats().pinned_bytes == 0, "nothing has changed: all keys are where the keydir says"
        (copies,) = segment_files(Path(db.path))
        db["a"] = "2" * 100
        db.compact()
        assert copies in segment_files(Path(db.path)), "made after the snapshot, and the only place of its a"
        pinned = db.stats().pinned_bytes
        assert pinned == copies.stat().st_size
        for number in range(20):
            db["a"] = db["c"] = b"%d" % number
            db.compact()
            assert db.stats().pinned_bytes == pinned
            assert len(segment_files(Path(db.path))) == 2
        del db["b"]
        db.compact()
        assert len(segment_files(Path(db.path))) == 3, "b was noted in what was its newest place then"
        db["a"] = db["b"] = "3"
        db.compact()
        assert dict(snap) == {b"a": b"1" * 300, b"b": b"1" * 10}
        assert (snap["a"], snap["b"], snap.get("c")) == (b"1" * 300, b"1" * 10, None)
    assert db.stats().pinned_bytes == 0
    assert len(segment_files(Path(db.path))) == 1


def test_each_of_two_snapshots_keeps_its_own(open_store):
    db = open_store()
    snaps = []
    for number in range(4):
        db["a"] = b"%d" % number
        snaps.append(db.snapshot())
        db["b"] = b"%d" % number
        db.compact()
    db["a"] = "new"
    db.compact()
    for left in range(4, 0, -1):
        assert [snap["a"] for snap in snaps] == [b"%d" % number for number in range(4 - left, 4)]
        # A snapshot shows the b of the round before, which lies beside the a of the snapshot before it.
        assert len(segment_files(Path(db.path))) == 1 + min(left + 1, 4)
        snaps.pop(0).close()
    assert len(segment_files(Path(db.path))) == 1


def test_the_disk_stays_bounded_beside_an_open_snapshot(open_store):
    """Every key of a snapshot is noted once, at its first change; what comes after that costs nothing more."""
    db = open_store(segment_size_bytes=4096)
    content = {b"%02d" % number: b"x" * 100 for number in range(40)}
    db.update(content)
    db.compact()
    live = db.stats().total_bytes
    with db.snapshot() as snap:
        for number in range(100):
            db.update(dict.fromkeys(content, b"%0100d" % number))
            db.compact()
            assert sum(file.stat().st_size for file in segment_files(Path(db.path))) <= 3 * live
        assert dict(snap) == content


def test_a_feed_keeps_its_files_beside_a_snapshot(open_store):
    """What a pin lists stays until it is closed, whether a snapshot has noted anything there or not."""
    db = open_store()
    db.update({"a": "1", "b": "1"})
    db._commit.seal()
    feed = db.changes()
    with db.snapshot():
        db["a"] = "2"
        db.compact()
        files = segment_files(Path(db.path))
    assert db.stats().pinned_bytes > 0
    assert segment_files(Path(db.path)) == files
    assert [(change.seq, change.key) for change in feed] == [(1, b"a"), (2, b"b")]
    assert db.stats().pinned_bytes == 0


@pytest.mark.parametrize("overwritten", ["before", "meanwhile"])
def test_a_snapshot_whose_segment_goes_between_the_look_and_the_read(open_store, monkeypatch, overwritten):
    """It has looked where the entry is and not read it yet: it looks again, and finds it, copied or noted."""
    db = open_store(max_open_segments=1)
    db.update({"a": "1", "b": "1"})
    db._commit.seal()
    with db.snapshot() as snap:
        read, acts = db._reader.read, []

        def compact():
            if overwritten == "meanwhile":
                db["a"] = "3"
            db["c"] = "1"
            db.compact()
            db.compact()

        def struck(key, location):
            if not acts:
                acts.append(location)
                thread = threading.Thread(target=compact)
                thread.start()
                thread.join()
            return read(key, location)

        if overwritten == "before":
            db["a"] = "2"
        monkeypatch.setattr(db._reader, "read", struck)
        assert (snap["a"], snap["b"]) == (b"1", b"1")
        assert acts


@pytest.mark.parametrize("read", ["items", "keys", "get"])
def test_a_snapshot_that_is_closed_while_it_is_read_says_so(open_store, monkeypatch, read):
    """In another thread, say: nobody notes for it any more, so what it would show is no moment; and a key whose file is
    gone is not looked for for ever."""
    harness.tune(monkeypatch, first_chunk=2)
    db = open_store()
    db.update({f"{number}": "old" for number in range(9)})
    snap = db.snapshot()
    if read == "get":
        db["1"] = "new"
        db.compact()
        locate = snap._view.locate

        class View:
            """Close the snapshot, and let the file go, between the look and the read."""

            def locate(self, key, now_ms):
                found = locate(key, now_ms)
                snap.close()
                return found

        with pytest.raises(bytekv.StoreClosedError, match="snapshot"):
            db._reader.find_in(View(), b"1")
    else:
        walk = iter(getattr(snap, read)())
        next(walk)
        snap.close()
        db.update({f"{number}": "new" for number in range(9)})
        with pytest.raises(bytekv.StoreClosedError, match="snapshot"):
            list(walk)


def test_leaked_iterators_and_snapshots_let_go(open_store):
    db = open_store(segment_size_bytes=400)
    db.update({f"{number:02}": "x" * 30 for number in range(20)})
    for number in range(1000):
        scan = db.scan() if number % 2 else db.snapshot()
        if number % 4 == 1:
            next(scan)
    kept = [db.snapshot() for _ in range(10)]
    del scan
    gc.collect()
    assert db.stats().open_views == 10
    db.clear()
    db.compact()
    del kept
    gc.collect()
    db["a"] = "1"
    db.compact()
    db.close()
    assert sum(file.stat().st_size for file in segment_files(Path(db.path))) < 300


def test_rows_of_a_snapshot_have_the_expiries_of_its_moment(open_store):
    clock = FakeFiles(now_s=1)
    db = open_store(files=clock)
    before = {b"a": 10.0, b"b": 20.5, b"c": None, b"d": 30.0, b"e": None, b"f": 5.0}
    for key, expires in before.items():
        db.put(key, b"old", expires=expires)
    with db.snapshot() as snapshot:
        db["b"] = "new"  # which stays
        db.put("c", "new", expires=40)
        db.put("d", "new", expires=50)
        del db["e"]
        clock.sleep(6)
        rows = {key: (value, when.get(key)) for pairs, when in snapshot._rows() for key, value in pairs}
        assert rows == {key: (b"old", expires) for key, expires in before.items() if key != b"f"}
        assert [key for pairs, _ in snapshot._rows("b") for key, _ in pairs] == [b"b"]


def test_expired_keys_leave_a_snapshot_too(open_store):
    clock = FakeFiles()
    db = open_store(files=clock)
    db["stays"] = "1"
    db.put("goes", "2", ttl=10)
    db.put("changes", "3", ttl=10)
    with db.snapshot() as snap:
        db["changes"] = "4"
        assert len(snap) == 3
        clock.sleep(10)
        assert list(snap) == [b"stays"]
        assert (len(snap), snap.get("goes"), snap.get("changes")) == (1, None, None)
        assert (len(db), db["changes"]) == (2, b"4")


_steps = st.lists(
    st.tuples(
        st.sampled_from(["put", "delete", "clear", "compact", "sleep", "ttl", "snap", "close"]), st.integers(0, 9)
    ),
    max_size=40,
)


@settings(max_examples=150)
@given(steps=_steps)
def test_any_number_of_snapshots_each_keeps_its_moment(path, steps):
    clock = FakeFiles()
    with harness.open_store(path, "n", files=clock, segment_size_bytes=300) as db:
        model: dict[bytes, tuple[bytes, float]] = {}
        snaps = []
        for number, (verb, which) in enumerate(steps):
            key = b"%d" % which
            if verb == "put":
                db[key] = b"%d" % number
                model[key] = b"%d" % number, float("inf")
            elif verb == "ttl":
                db.put(key, b"%d" % number, ttl=which + 1)
                model[key] = b"%d" % number, clock.time_ns / 1e9 + which + 1
            elif verb == "delete":
                db.delete(key)
                model.pop(key, None)
            elif verb == "clear":
                db.clear()
                model.clear()
            elif verb == "compact":
                db.compact()
            elif verb == "sleep":
                clock.sleep(which)
            elif verb == "snap":
                snaps.append((db.snapshot(), dict(model)))
            elif snaps:
                snaps.pop(which % len(snaps))[0].close()
            now = clock.time_ns / 1e9
            for snap, content in [*snaps, (db, model)]:
                expected = {name: value for name, (value, until) in content.items() if until > now}
                assert dict(snap.items()) == expected
                assert (len(snap), list(snap)) == (len(expected), sorted(expected))
        for snap, _ in snaps:
            snap.close()
        assert db.verify().ok


def test_readers_never_see_half_a_batch(open_store):
    """Reads take no lock, yet two gets around a batch must not see it half done."""
    import sys

    db = open_store()
    names = [b"%d" % number for number in range(50)]
    db.update(dict.fromkeys(names, b"0"))
    wrong: list[tuple[int, int]] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            first, last = int(db[names[0]]), int(db[names[-1]])
            if last < first:  # the batch changes the first name first
                wrong.append((first, last))
            values = set(db.values())
            if len(values) != 1:
                wrong.append((0, len(values)))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        readers = [threading.Thread(target=read) for _ in range(2)]
        for reader in readers:
            reader.start()
        for number in range(1, 300):
            db.update(dict.fromkeys(names, b"%d" % number))
        done.set()
        for reader in readers:
            reader.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong


@pytest.mark.parametrize("moved", [0, 1, 5, 10])
def test_a_clear_in_the_middle_of_a_compaction_leaves_a_snapshot_its_files(open_store, monkeypatch, moved):
    """A clear does not ask a million keys where they are. So what it keeps for a view are all files into which a key
    may point: the victims of a compaction as well that has not moved all of their keys yet."""
    harness.tune(monkeypatch, copied_entries=1, moved_keys=1)
    db = open_store(sync="os")
    db.update({f"{number}": b"v" * number for number in range(10)})
    db.update({f"{number}": b"w" * number for number in range(5)})
    content = dict(db)
    snapshot = db.snapshot()
    move_all = Compactor._move_all

    def move_and_clear(self, job, pause):
        for _ in range(moved):
            with db._commit.state.lock, db._commit.state:
                self._move_some(job)
        pointed = {location >> SEGMENT_SHIFT for location in db._locations.values()}
        db.clear()
        assert pointed <= snapshot._view.segments
        db["later"] = "1"
        move_all(self, job, pause)

    monkeypatch.setattr(Compactor, "_move_all", move_and_clear)
    db.compact()
    monkeypatch.setattr(Compactor, "_move_all", move_all)
    db.compact()
    assert dict(db) == {b"later": b"1"}
    assert dict(snapshot) == content
    snapshot.close()
    db.compact()
    assert len(segment_files(Path(db.path))) <= 2, "nothing is kept for ever"
    assert db.verify().ok


def _overwrite_some(db: Any, rounds: int, content: dict[bytes, bytes]) -> int:
    """Overwrite one key that seldom changes and many that often do, and compact, again and again."""
    most = 0
    for number in range(rounds):
        db[b"%03d" % number] = b"new"
        for hot in range(50):
            db[b"hot %d" % hot] = b"%05d" % number * 20
        db.compact()
        assert db._keydir.check() == []
        most = max(most, db.stats().pinned_bytes)
    assert most < sum(map(len, content.values())), "less than what lives"
    return most


def test_keys_that_change_seldom_do_not_keep_one_file_each(open_store, path):
    """Each compaction left a segment, dead but for one entry that a snapshot remembered, on the disk: 38 MiB beside
    15 that lived, after 480 such keys. Now what the snapshot remembers in them is gathered in few files."""
    content = {b"%03d" % number: b"old %03d " % number * 30 for number in range(100)}
    db = open_store(segment_size_bytes=1 << 16, compact_dead_bytes=1024)
    db.update(content)
    db.compact()
    with db.snapshot() as snapshot:
        _overwrite_some(db, 60, content)
        assert len(db._segments.obsolete.replaced) <= 7, "as often as doubling leads from one entry to sixty"
        assert dict(snapshot.items()) == content
        assert {key: snapshot[key] for key in content} == content
        assert list(snapshot) == sorted(content)
        assert db.verify().ok
    assert db.stats().pinned_bytes == 0
    assert {int(file.stem) for file in path.glob("*.seg")} == {row.segment_id for row in db._segments.manifest.segments}


def test_what_a_dropped_snapshot_needed_is_removed_by_the_next_compaction(open_store, path):
    """Nobody closed it, and where nothing was left to compact its files stayed until the store was closed."""
    db = open_store(auto_compact=False)
    db.update({b"%d" % number: b"1" * 100 for number in range(10)})
    snapshot = db.snapshot()
    db.update(dict.fromkeys(snapshot, b"2"))
    db.compact()
    assert db.stats().pinned_bytes > 1000
    del snapshot
    gc.collect()
    db.compact()
    assert db.stats().pinned_bytes == 0
    assert {int(file.stem) for file in path.glob("*.seg")} == {row.segment_id for row in db._segments.manifest.segments}


def test_views_of_different_moments_share_what_is_gathered(open_store):
    db = open_store(segment_size_bytes=1 << 16)
    content = {b"%03d" % number: b"old %03d " % number * 30 for number in range(40)}
    db.update(content)
    db.compact()
    moments = []
    for number in range(0, 40, 8):
        moments.append((db.snapshot(), dict(db.items())))
        for key in range(number, number + 8):
            db[b"%03d" % key] = b"new"
        db.compact()
        for snapshot, shown in moments:
            assert dict(snapshot.items()) == shown
    for snapshot, _ in moments[::2]:
        snapshot.close()
    db["000"] = b"newer"
    db.compact()
    for snapshot, shown in moments[1::2]:
        assert {key: snapshot[key] for key in shown} == shown
        snapshot.close()
    assert db.stats().pinned_bytes == 0


@pytest.mark.parametrize("strikes", ["open_new", "write"])
def test_what_cannot_be_gathered_stays_where_it_is(open_store, monkeypatch, strikes):
    db = open_store(segment_size_bytes=1 << 16)
    content = {b"%03d" % number: b"old %03d " % number * 30 for number in range(40)}
    db.update(content)
    db.compact()
    with db.snapshot() as snapshot:
        db["000"] = b"new"
        gather = undo_copier._Turn._write

        def refused(turn: Any, locations: list[int]) -> Any:
            def refuse(*_: object, **__: object) -> None:
                raise DiskFullError(errno.ENOSPC, "no room", f"{db.path}/side file")

            with monkeypatch.context() as patch:
                patch.setattr(db._files, strikes, refuse)
                return gather(turn, locations)

        with monkeypatch.context() as patch:
            patch.setattr(undo_copier._Turn, "_write", refused)
            db.compact()
        assert db.stats().pinned_bytes > 40 * 200
        assert dict(snapshot.items()) == content
        db["001"] = b"new"
        db.compact()
        assert db.stats().pinned_bytes < 1000
        assert dict(snapshot.items()) == content


def test_what_points_into_a_segment_that_is_gone_is_an_error(open_store):
    """Nothing does so unless something is broken; then a reader looked again, for ever."""
    db = open_store()
    db["a"] = "1"
    with db.snapshot() as snapshot:
        db["a"] = "2"
        newest, view = db._keydir.locations[b"a"], snapshot._view
        noted, lost = view._noted[b"a"], 77 << SEGMENT_SHIFT | newest & (1 << SEGMENT_SHIFT) - 1
        view._noted[b"a"] = db._keydir.locations[b"a"] = lost
        for read in (lambda: snapshot["a"], lambda: dict(snapshot), lambda: db["a"], lambda: dict(db)):
            with pytest.raises(bytekv.CorruptionError, match=r"77\.seg: .*was removed while it was needed"):
                read()
        view._noted[b"a"], db._keydir.locations[b"a"] = noted, newest


@pytest.mark.parametrize("is_of_this_thread", [True, False])
def test_a_snapshot_that_is_read_while_the_store_is_closed(open_store, monkeypatch, is_of_this_thread):
    """Between the removal of the files that only it needs and the end of the store; in a handler it looked for ever."""
    db = open_store(auto_compact=False)
    db.update({b"%d" % number: b"1" * 100 for number in range(10)})
    snapshot = db.snapshot()
    db.update(dict.fromkeys(snapshot, b"2"))
    db.compact()
    told: list[type[BaseException]] = []

    def read() -> None:
        try:
            snapshot["1"]
        except bytekv.BytekvError as error:
            told.append(type(error))

    drop, remove = db._reader.shut, db._segments.obsolete.remove
    reader = threading.Thread(target=read)

    def remove_and_read(free: list[int]) -> None:
        remove(free)
        if is_of_this_thread:
            read()
        else:
            reader.start()

    def shut(refuse: Any) -> Any:
        if not is_of_this_thread:
            assert looked_again.wait(60)
        return drop(refuse)

    looked_again = threading.Event()
    moved = type(db._reader)._moved

    def look_again(self: Any, location: int, gone: int | None) -> int:
        if location == gone:
            looked_again.set()
        return moved(self, location, gone)

    monkeypatch.setattr(type(db._reader), "_moved", look_again)
    monkeypatch.setattr(db._segments.obsolete, "remove", remove_and_read)
    monkeypatch.setattr(db._reader, "shut", shut)
    db.close()
    if not is_of_this_thread:
        reader.join()
    assert told == [bytekv.ReentryError if is_of_this_thread else bytekv.StoreClosedError]


def test_a_reader_of_a_snapshot_that_meets_the_gathering_looks_again(open_store, monkeypatch):
    """It has found where an entry was, and the segment goes before it reads."""
    db = open_store(segment_size_bytes=1 << 16)
    db.update({b"%03d" % number: b"old %03d " % number * 30 for number in range(40)})
    db.compact()
    with db.snapshot() as snapshot:
        db["000"] = b"new"
        raw, struck = db._segments.open.raw, []

        def late(location: int) -> Any:
            if not struck:
                struck.append(location)
                db.compact()
            return raw(location)

        monkeypatch.setattr(db._segments.open, "raw", late)
        assert snapshot["000"] == b"old 000 " * 30
        assert struck
