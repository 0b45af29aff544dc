"""All ways of reading agree with `get`: scans, iteration, `get_many` and snapshots, in the writer and in readers.

A scan cuts keys that lie behind each other out of one piece of a file, and does not look each of them up where every
put in the segment is known to be the newest of its key. So the entries here are of one size and often in the order of
their keys, and what could make that knowledge wrong happens at every step, and in the middle of each.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytekv.contract.snapshot import Snapshot
from bytekv.engine.codec.entry import PUT
from bytekv.engine.store import Store
from bytekv.engine.write.change import Operation
from tests.support import harness
from tests.support.harness import open_store

KEYS = [b"%02d" % number for number in range(12)]


def expect(content: dict[bytes, bytes], found: Store | Snapshot) -> None:
    """Read everything in every way and compare it with the content."""
    pairs = sorted(content.items())
    assert {key: found[key] for key in KEYS if key in found} == content
    assert list(found.items()) == pairs
    assert list(found.values()) == [value for _, value in pairs]
    assert list(found) == [key for key, _ in pairs]
    assert list(found.scan(reverse=True)) == pairs[::-1]
    assert list(found.scan("0")) == [pair for pair in pairs if pair[0] < b"1"]
    assert list(found.scan(start="03", limit=4)) == [pair for pair in pairs if pair[0] >= b"03"][:4]
    assert len(found) == len(content)
    if isinstance(found, Store):
        assert found.get_many(KEYS) == content
        assert found.get_many(KEYS[::-1]) == content


class Model:
    """A writer, a reader beside it and snapshots of both; after every step all of them agree with themselves."""

    def __init__(self, path: Path, io: str, segment_size_bytes: int) -> None:
        self.writer = open_store(path, "n", io=io, segment_size_bytes=segment_size_bytes)
        self.reader = open_store(path, "r", io=io)
        self.content: dict[bytes, bytes] = {}
        self.read: dict[bytes, bytes] = {}
        self.snapshots: list[tuple[Snapshot, dict[bytes, bytes]]] = []
        self.numbers = itertools.count(100)

    def put(self, which: int) -> None:
        value = b"%d" % next(self.numbers)
        self.writer[KEYS[which]] = value
        self.content = {**self.content, KEYS[which]: value}

    def delete(self, which: int) -> None:
        self.writer.delete(KEYS[which])
        self.content = {key: value for key, value in self.content.items() if key != KEYS[which]}

    def batch(self, which: int) -> None:
        number = next(self.numbers)
        puts = dict.fromkeys(KEYS[which:], b"%d" % number)
        self.writer.update(puts)
        self.content = {**self.content, **puts}

    def clear(self, which: int) -> None:
        self.writer.clear()
        self.content = {}

    def compact(self, which: int) -> None:
        self.writer.compact()

    def compact_a_run(self, which: int) -> None:
        """Compact some neighbours; what is written at one of its pauses is in nobody's copy."""
        uses = self.writer._maintenance.usage()
        if uses:
            first = which % len(uses)
            victims = [use.segment_id for use in uses[first : first + 1 + which % 3]]
            pauses = itertools.count()

            def pause() -> None:
                number = next(pauses)
                if number == which:
                    self.put(which)
                if number == which + 3:
                    self.delete((which + 1) % len(KEYS))
                self.expect_all()

            self.writer._maintenance.compactor.run(victims, pause, lambda _: None, in_order=which % 2 == 0)

    def seal(self, which: int) -> None:
        self.writer._commit.seal()

    def refresh(self, which: int) -> None:
        self.reader.refresh()
        self.read = self.content

    def snapshot(self, which: int) -> None:
        self.snapshots.append((self.writer.snapshot(), self.content))

    def snapshot_of_reader(self, which: int) -> None:
        self.snapshots.append((self.reader.snapshot(), self.read))

    def close_snapshot(self, which: int) -> None:
        if self.snapshots:
            self.snapshots.pop(which % len(self.snapshots))[0].close()

    def verify(self, which: int) -> None:
        for store in (self.writer, self.reader):
            report = store.verify()
            assert report.ok, report

    def expect_all(self) -> None:
        for found, content in [(self.writer, self.content), (self.reader, self.read), *self.snapshots]:
            expect(content, found)

    def close(self) -> None:
        self.reader.close()
        self.writer.close()


_VERBS = [*["put"] * 4, *["batch"] * 4, *["compact_a_run"] * 3, *["refresh"] * 4, "delete", "clear", "compact", "seal"]
_steps = st.lists(
    st.tuples(
        st.sampled_from([*_VERBS, "snapshot", "snapshot_of_reader", "close_snapshot", "verify"]), st.integers(0, 11)
    ),
    max_size=14,
)


@pytest.mark.parametrize("io", ["mmap", "pread"])
@settings(max_examples=80)
@given(steps=_steps, segment_size_bytes=st.sampled_from([400, 4096]))
def test_all_ways_of_reading_agree_at_every_step(
    path: Path, monkeypatch: pytest.MonkeyPatch, io: str, steps: list[tuple[str, int]], segment_size_bytes: int
) -> None:
    with harness.patched(harness.tuned(copied_entries=2, copied_keys=3, moved_keys=2)):
        model = Model(path, io, segment_size_bytes)
        for verb, which in steps:
            getattr(model, verb)(which)
            model.expect_all()
        model.close()


def fill(db: Store) -> None:
    """Lay keys behind each other in a sealed segment, of which one has been overwritten since."""
    db.update(dict.fromkeys(KEYS, b"old"))
    db._commit.seal()
    db["05"] = "new"
    db["01"]  # opens the segment


class _Looks:
    """Stand in for a table of a reader's: before or after its ``number``-th look-up something happens."""

    def __init__(self, table: Any, act: Callable[[], object], number: int, *, before: bool = False) -> None:
        self.table, self.act, self.left, self.before = table, act, number, before

    def get(self, key: Any, default: Any = None) -> Any:
        self.left -= key != b""  # which only asks whether the store is open
        if self.left == 0 and self.before:
            self.act()
        found = self.table.get(key, default)
        if self.left == 0 and not self.before:
            self.act()
        return found

    def __contains__(self, key: object) -> bool:
        return key in self.table


def in_a_thread(act: Callable[[], object]) -> Callable[[], None]:
    """Return what has another thread act and waits for it."""

    def wait() -> None:
        thread = threading.Thread(target=act)
        thread.start()
        thread.join()

    return wait


@pytest.mark.parametrize("kind", ["items", "reverse", "snapshot", "get_many"])
@pytest.mark.parametrize("table", ["_locations", "_readers"])
def test_a_compaction_between_two_looks_of_a_scan(path: Path, table: str, kind: str) -> None:
    """The segment is replaced after a look at the run's keys: what was known to be dead in it is forgotten with it, and
    a scan that asked only then whether all of it lives gave a value that was overwritten before the scan began."""
    wanted = {**dict.fromkeys(KEYS, b"old"), b"05": b"new"}
    for number in range(1, 5):
        with open_store(path, "n") as db:
            fill(db)
            looks = _Looks(getattr(db._reader, table), in_a_thread(db.compact), number)
            setattr(db._reader, table, looks)
            if kind == "snapshot":
                with db.snapshot() as snapshot:
                    found = dict(snapshot.items())
            elif kind == "get_many":
                found = db.get_many(KEYS)
            else:
                found = dict(db.scan(reverse=kind == "reverse"))
            assert found == wanted, number


class _Moving(dict[bytes, int]):
    """The keydir's table; when ``left`` changes more have come from one thread, it waits in the middle of the last."""

    left = 0

    def __init__(self, table: dict[bytes, int], thread: threading.Thread) -> None:
        super().__init__(table)
        self.thread = thread
        self.here, self.go_on = threading.Event(), threading.Event()

    def __setitem__(self, key: bytes, location: int) -> None:
        super().__setitem__(key, location)
        if threading.current_thread() is self.thread:
            self.left -= 1
            if self.left == 0:
                self.here.set()
                self.go_on.wait()

    def update(self, pairs: Any) -> None:
        """Set one after the other what a dict sets in one call of C, which nobody sees half done."""
        for key, location in pairs:
            self[key] = location


@pytest.mark.parametrize("number", range(1, len(KEYS)))
def test_a_scan_while_keys_are_pointed_at_their_copies(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A run's first and last key are at their copies; one between was overwritten before the scan began, when it had
    been copied, and its copy lies there all the same and has not been counted as dead yet."""
    harness.tune(monkeypatch, copied_entries=len(KEYS) // 2, moved_keys=len(KEYS) // 2)
    with open_store(path, "n") as db:
        db.update(dict.fromkeys(KEYS, b"old"))
        db._commit.seal()
        (victim,) = (row.segment_id for row in db._segments.sealed())
        copied, begun = threading.Event(), threading.Event()

        def overwrite(_: int) -> None:
            db["05"] = "new"
            moving.left = number
            copied.set()
            begun.wait()

        thread = threading.Thread(target=db._maintenance.compactor.run, args=([victim], lambda: None, overwrite))
        moving = db._keydir.locations = _Moving(db._keydir.locations, thread)
        db._locations = moving

        def move_some() -> None:
            begun.set()
            moving.here.wait()
            for segment_id, *_ in db._segments.manifest.segments:
                db._segments.open.get(segment_id)

        db._reader._locations = _Looks(moving, move_some, 1, before=True)
        thread.start()
        copied.wait()
        found = dict(db.items())
        moving.go_on.set()
        thread.join()
        assert found == {**dict.fromkeys(KEYS, b"old"), b"05": b"new"}


def test_a_scan_after_a_call_that_was_interrupted_before_it_counted(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sync shows what waited for it: the key points at its new entry, the old one is not counted as dead."""
    with open_store(path, sync="always") as db:
        db.update(dict.fromkeys(KEYS, b"old"))
        db.compact()  # so that no sync mark lies beside them
        assert (list(db), db["01"]) == (KEYS, b"old")
        commit: Any = db._commit
        with commit.state.lock:
            commit.state.ready()
            commit.append([Operation(PUT, b"05", b"new")])

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(type(db._keydir.usage), "count_dead", interrupt)
            with pytest.raises(KeyboardInterrupt):
                db.sync()
        assert db["05"] == b"new"
        assert dict(db.items()) == {**dict.fromkeys(KEYS, b"old"), b"05": b"new"}


@pytest.mark.parametrize("knows", [True, False])
def test_a_reader_meets_a_copy_of_what_was_overwritten(path: Path, knows: bool) -> None:
    """A compaction has copied an entry that was overwritten meanwhile, before the reader looks or in between."""
    with open_store(path) as writer:
        writer.update(dict.fromkeys(KEYS, b"old"))
        writer._commit.seal()
        (victim,) = (row.segment_id for row in writer._segments.sealed())
        with open_store(path, "r") as reader:

            def overwrite(_: int) -> None:
                writer["05"] = "new"
                if knows:
                    reader.refresh()

            writer._maintenance.compactor.run([victim], lambda: None, overwrite)
            reader.refresh()
            assert dict(reader.items()) == {**dict.fromkeys(KEYS, b"old"), b"05": b"new"}
            assert reader.verify().ok


def test_a_reader_knows_what_is_dead_without_counting_anew(path: Path) -> None:
    """Its scans of what a refresh has not touched are as quick as before, and right in what it has."""
    with open_store(path) as writer:
        writer.update({b"a%d" % number: b"old" for number in range(9)})
        writer._commit.seal()
        writer.update({b"b%d" % number: b"old" for number in range(9)})
        writer._commit.seal()
        with open_store(path, "r") as reader:
            writer["a5"] = "new"
            writer["large"] = bytes(10_000)
            writer["large"] = "small"
            reader.refresh()
            recounts = reader._keydir.recounts
            assert dict(reader) == dict(writer)
            whole = [reader._reader._is_whole(row.segment_id) for row in reader._segments.manifest.segments]
            assert whole == [False, True, False]
            writer.compact()
            reader.refresh()
            assert all(reader._reader._is_whole(row.segment_id) for row in reader._segments.manifest.segments)
            assert reader.verify().ok
            assert reader._keydir.recounts == recounts


@pytest.mark.parametrize("kind", ["get", "get_many", "items", "reader"])
def test_an_entry_beyond_what_was_mapped_is_never_cut_short(path: Path, kind: str) -> None:
    """Without a checksum only its length says so: the file has grown since the mapping was looked up."""
    value = bytes(5000)
    with open_store(path, verify_reads=False) as db, open_store(path, "r", verify_reads=False) as reader:
        db[b"a"] = b"1"
        reader.refresh()
        found = reader if kind == "reader" else db
        before = dict(found._readers)  # who has looked there already, and comes late
        mapped = len(before[1][0])

        def grow() -> None:
            writer: Any = db._segments.writer
            while writer.end < mapped - 3000:
                db[b"a"] = bytes(500)
            db[b"b"] = value
            assert writer.end > mapped
            db[b"a"] = b"2"
            reader.refresh()

        class Late(dict[int, Any]):
            def get(self, segment: int, default: Any = None) -> Any:
                return before.get(segment, default)

        if kind == "get":
            grow()
            db._readers = Late()
            assert db.get(b"b") == value
        elif kind == "items":
            grow()
            db._reader._readers = Late()
            assert dict(db.items()) == {b"a": b"2", b"b": value}
        else:
            found._reader._locations = _Looks(found._locations, grow, 5, before=True)
            found._reader._readers = Late()
            assert found.get_many([b"a", b"c", b"b"]) == {b"a": b"1", b"b": value}
