"""What is written out for speed does what the plain way does: same bytes on disk, same keydir, same answers."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytekv.engine.fast import DurableCommitter, FastCommitter, read_many
from bytekv.engine.index.keydir import Keydir
from bytekv.engine.log.segment import Writer
from bytekv.engine.store import Store
from bytekv.engine.write.change import AtomicChange, Bulk, PutRun
from bytekv.engine.write.commit import Committer
from bytekv.errors import ConflictError
from tests.support.harness import FakeFiles, open_store, patched, segment_files, tuned

KEYS = [b"", b"a", b"b" * 20, b"c" * 300, b"d" * 9000, *(b"%d" % number for number in range(6)), b"00", b"11"]
VALUES = [b"", b"v", b"x" * 100, b"y" * 8100, b"z" * 9000]

keys, values = st.sampled_from(KEYS), st.sampled_from(VALUES)
ttls = st.sampled_from([0.001, 1, 30, 1000.0, 10**6])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), keys, values),
        st.tuples(st.just("set"), keys, values),
        st.tuples(st.just("delete"), keys),
        st.tuples(st.just("update"), st.lists(st.tuples(keys, values), max_size=8), st.none() | ttls),
        st.tuples(st.just("alike"), st.sampled_from([b"", b"v", b"x" * 100]), st.none() | ttls, st.integers(0, 3)),
        st.tuples(st.just("batch"), st.lists(st.tuples(keys, st.none() | values, st.none() | ttls), max_size=8)),
        st.tuples(st.just("snapshot")),
        st.tuples(st.just("order")),
        st.tuples(st.just("expire"), keys, ttls),
        st.tuples(st.just("put for"), keys, values, ttls),
        st.tuples(st.just("add"), keys, values, st.none() | ttls),
        st.tuples(st.just("compare"), keys, values, st.none() | ttls, st.sampled_from(["right", "wrong", "new"])),
        st.tuples(st.just("persist"), keys),
        st.tuples(st.just("read"), keys),
        st.tuples(st.just("wait"), st.sampled_from([0.001, 0.999, 1.0, 30.0, 2000.0, -5.0])),
        st.tuples(st.just("reopen")),
        st.tuples(st.just("compact")),
    ),
    max_size=25,
)


class SameFiles(FakeFiles):
    """Salts that two stores share, so that the same entries are the same bytes."""

    def __init__(self) -> None:
        super().__init__()
        self._random = random.Random(3)

    def random(self, size: int) -> bytes:
        return self._random.randbytes(size)


@contextmanager
def plain_ways_only() -> Iterator[None]:
    open_room = Writer.open_room

    def without_fast_end(self: Writer, *, fast: bool) -> None:
        open_room(self, fast=False)

    def one_by_one(self: Committer, bulk: Bulk) -> AtomicChange:
        return AtomicChange.of(bulk.operations())

    def asked_one_by_one(self: Committer, bulk: Bulk, now_ms: int) -> Bulk:
        given = zip(bulk.keys, bulk.values, bulk.expires or [0] * len(bulk.keys), strict=True)
        due = [each for each in given if each[1] is not None or self.newest(each[0], now_ms) is not None]
        return Bulk([key for key, _, _ in due], [value for _, value, _ in due], [when_ms for _, _, when_ms in due])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Writer, "open_room", without_fast_end)
        patch.setattr("bytekv.engine.open.FastCommitter", Committer)
        patch.setattr("bytekv.engine.open.DurableCommitter", Committer)
        patch.setattr(Committer, "_bulk_change", one_by_one)
        patch.setattr(Committer, "without_idle_deletes", asked_one_by_one)
        yield


def live(path: Path, story: list[tuple[Any, ...]], *, sync: str = "os", **options: Any) -> tuple[Any, ...]:
    """Run a story and return all that can be told of the store afterwards."""
    files = SameFiles()
    db = open_store(path, files=files, sync=sync, **options)
    said: list[Any] = []
    snapshots: list[Any] = []

    def look_back() -> None:
        for snapshot in snapshots:
            said.append((len(snapshot), dict(snapshot), list(snapshot), snapshot._view.segments))
            snapshot.close()
        snapshots.clear()

    for what, *given_ in story:
        if what == "put":
            said.append(db.put(*given_))
        elif what == "set":
            db[given_[0]] = given_[1]
        elif what == "delete":
            said.append(db.delete(*given_))
        elif what == "update":
            db.update(given_[0], ttl=given_[1])
        elif what == "alike":
            value, ttl, gone = given_
            pairs = [(b"%02d" % number, value) for number in range(24)]
            with db.batch() as batch:
                batch.put_all(pairs, ttl=ttl)
                for key, _ in pairs[: gone * gone * 8 // 3]:
                    batch.delete(key)
            said.append(batch.seq)
        elif what == "batch":
            with db.batch() as batch:
                for key, value, ttl in given_[0]:
                    if value is None:
                        batch.delete(key)
                    else:
                        batch.put(key, value, ttl=ttl)
            said.append(batch.seq)
        elif what == "snapshot":
            snapshots.append(db.snapshot())
        elif what == "order":
            said.append(list(db))
        elif what == "expire":
            said.append(db.expire(*given_))
        elif what == "put for":
            said.append(db.put(*given_[:2], ttl=given_[2]))
        elif what == "add":
            said.append(db.add(*given_[:2], ttl=given_[2]))
        elif what == "compare":
            key, value, ttl, guess = given_
            seq = db.entry(key).seq if guess == "right" and key in db else int(guess == "wrong")
            try:
                said.append(db.put(key, value, ttl=ttl, if_seq=seq))
            except ConflictError as error:
                said.append(error.seq)
        elif what == "persist":
            said.append(db.persist(*given_))
        elif what == "read":
            said.append((given_[0] in db, db.get(*given_), db.get_many(given_)))
            with suppress(KeyError):
                said.append(db[given_[0]])
        elif what == "wait":
            files.sleep(*given_)
        elif what == "compact":
            said.append(len(db))  # takes out what is due, and not in the same order
            db._keydir._expired = dict(sorted(db._keydir._expired.items()))
            db.compact()
        else:
            look_back()
            db.close()
            db = open_store(path, files=files, sync=sync, **options)
    look_back()
    said.append(len(db))  # takes out what is due: the one way has, perhaps, done so before the other
    keydir = db._keydir
    state = (
        said,
        dict(db),
        db.last_seq,
        dict(keydir.locations),
        dict(keydir.expires),
        sorted((number, sorted(bucket)) for number, bucket in keydir._due._buckets.items()),
        {segment: count for segment, count in keydir.usage.dead.items() if count},
        {segment: count for segment, count in keydir.usage.tombstones.items() if count},
    )
    assert db.verify().ok
    db.close()
    return (*state, {file.name: file.read_bytes() for file in segment_files(path)})


@settings(max_examples=100)
@given(
    story=steps,
    io=st.sampled_from(["mmap", "pread"]),
    sync=st.sampled_from(["os", "always"]),
    few=st.sampled_from([0, 3, 64]),
)
def test_writes_leave_the_same_bytes(story: list[tuple[Any, ...]], io: str, sync: str, few: int) -> None:
    """A batch that deletes a million keys held the lock for three times as long as one that puts them, and so did an
    `update` of more than 64 MiB, or one under a snapshot: they were encoded and shown entry by entry."""
    parent = Path(tempfile.mkdtemp(prefix="bytekv-"))
    try:
        with patched({"bytekv.engine.write.change._PART_SIZE": 500, **tuned(few_writes=few)}):
            fast = live(parent / "fast", story, io=io, sync=sync, segment_size_bytes=60_000)
        with plain_ways_only():
            plain = live(parent / "plain", story, io=io, sync=sync, segment_size_bytes=60_000)
        assert fast == plain
    finally:
        shutil.rmtree(parent)


def test_a_put_with_a_seq_loses_to_one_that_comes_in_between(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The seq is looked at without the lock. That it is still the newest is seen under it, by its place."""
    find = Store._location_of

    def overtaken(db: Store, key: bytes, seq: int) -> int | None:
        location = find(db, key, seq)
        assert (location is None) is (seq == 0)
        db.put(key, b"theirs")
        return location

    with open_store(path) as db:
        seq = db.put(b"k", b"mine")
        monkeypatch.setattr(Store, "_location_of", overtaken)
        for key, wanted in ((b"k", seq), (b"new", 0)):
            with pytest.raises(ConflictError) as caught:
                db.put(key, b"mine", if_seq=wanted)
            assert (caught.value.seq, db[key]) == (db.last_seq, b"theirs")


@pytest.mark.parametrize("few", [0, 3, 64])
def test_batches_of_every_kind_leave_the_same_bytes(path: Path, few: int) -> None:
    """A batch of one took 20 µs where it once took 12: what serves thousands was done for one."""
    some = [(b"%d" % number, b"v" * number) for number in range(5)]
    story: list[tuple[Any, ...]] = [
        ("put", b"a", b"1"),
        ("order",),
        ("update", some, None),
        ("update", [(b"one", b"1")], None),
        ("alike", b"x" * 30, None, 0),
        ("order",),
        ("update", some[::-1], 1000.0),
        ("wait", 0.5),
        ("update", [(b"later", b""), *some[2:]], None),
        ("batch", [(b"0", None, None), (b"not there", None, None), (b"new", b"1", None), (b"1", b"1", 30)]),
        ("batch", [(b"new", None, None), (b"1", None, None), (b"new too", None, None)]),
        ("batch", [(b"not there", None, None)]),
        ("alike", b"y" * 30, 30, 2),
        ("snapshot",),
        ("update", [(b"%d" % number, b"w") for number in range(30)], None),
        ("batch", [(b"%d" % number, None, None) for number in range(0, 30, 2)]),
        ("wait", 2000.0),
        ("update", [*some, (b"large", b"z" * 9000)], None),
        ("alike", b"z" * 9000, None, 1),
        ("batch", [(b"0", b"1", 30), (b"3", None, None), (b"4", b"", None)]),
        ("order",),
    ]
    path.mkdir()
    with patched(tuned(few_writes=few)):
        fast = live(path / "fast", story)
    with plain_ways_only():
        plain = live(path / "plain", story)
    assert fast == plain


def test_the_plain_way_is_plain(path: Path) -> None:
    """Else the comparison above compares the fast way with itself."""
    with plain_ways_only(), open_store(path, sync="os") as db:
        assert type(db._commit) is Committer
        db["a"] = "1"
        assert db._segments.writer is not None
        assert db._segments.writer.fast_end == 0
    with open_store(path, sync="os") as db:
        assert type(db._commit) is FastCommitter
        db["b"] = "1"
        assert db._segments.writer is not None
        assert db._segments.writer.fast_end > 0
    with open_store(path, sync="always") as db:
        assert type(db._commit) is DurableCommitter


@pytest.mark.parametrize("part_size", [1, 100, 1 << 20])
def test_a_batch_is_encoded_in_parts(path: Path, part_size: int) -> None:
    """In bulk, and in memory twice and not four times; what is larger than a part is not copied."""
    path.mkdir()
    with open_store(path / "store", sync="os") as db:
        db["a"] = "1"
        writer = db._segments.writer
        assert writer is not None
        large = bytes(2 * part_size)
        bulk = Bulk([b"k%d" % n for n in range(20)], [*[b"v", None, b"", large] * 5], [*[0, 0, 5000, 6000] * 5])
        plain = AtomicChange.of(bulk.operations())
        plain.place(writer, 7, 1000, 50)
        found = PutRun(bulk)
        with patched({"bytekv.engine.write.change._PART_SIZE": part_size}):
            found.place(writer, 7, 1000, 50)
        assert b"".join(found.parts) == b"".join(plain.parts)
        assert (found.seq, found.end, found.tombstones) == (plain.seq, plain.end, plain.tombstones)
        assert found.expires is not None
        shown = [*zip(found.keys, found.locations, found.expires, strict=True), *((key, None, 0) for key in found.gone)]
        assert sorted(shown) == sorted(plain.effects)
        assert found.size == plain.size == found.end - found.offset
        if len(large) > 30:
            assert sum(part is large for part in found.parts) == 5
            assert max(len(part) for part in found.parts if part is not large) <= max(part_size, 50)


@pytest.mark.parametrize("is_viewed", [False, True])
@pytest.mark.parametrize("where", ["write", "write_all", "after"])
@pytest.mark.parametrize("few", [0, 64])
def test_a_batch_that_is_interrupted_is_carried_out_once_more(
    path: Path, where: str, is_viewed: bool, few: int
) -> None:
    """Deletes and puts, the counts and what a view has noted included."""
    with patched(tuned(few_writes=few)), open_store(path, sync="os") as db:
        db.update({b"%d" % number: b"v" * number for number in range(10)})
        before = dict(db)
        snapshot = db.snapshot() if is_viewed else None
        db["1"] = "noted before"
        write_all, write = Keydir.write_all, Writer.write

        def interrupted(original: Any, is_done: bool) -> Any:
            def call(*arguments: Any) -> None:
                if is_done:
                    original(*arguments)
                raise KeyboardInterrupt

            return call

        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt), db.batch() as batch:
            for number in range(5):
                batch.delete(b"%d" % number)
            batch.delete("not there")
            batch.put("5", "new")
            batch.put("x", "new")
            if where == "write":
                patch.setattr(Writer, "write", interrupted(write, False))
            else:
                patch.setattr(Keydir, "write_all", interrupted(write_all, where == "after"))
            batch.commit()
        assert dict(db) == {b"5": b"new", **{b"%d" % n: b"v" * n for n in range(6, 10)}, b"x": b"new"}
        assert list(db._keydir.index()) == sorted(db._keydir.locations)
        db["y"] = ""
        assert db.last_seq == 10 + 1 + 7 + 1
        rows = db.stats().segments
        dead = dict(db._keydir.usage.dead), dict(db._keydir.usage.tombstones)
        assert dead == (
            {row.segment_id: sum(28 + n for n in range(6)) + 28 + len("noted before") for row in rows},
            {row.segment_id: 5 * 28 for row in rows},
        )
        if snapshot is not None:
            assert dict(snapshot) == before
            snapshot.close()
        assert db.verify().ok


# --- reading in chunks -----------------------------------------------------------------------------


SIZES = {
    "alike": [20],
    "few": [0, 1, 20, 21, 28, 300],
    "odd": [20] * 40 + [8100, 9000],
    "many": [0, 1, 20, 21, 300, 8100, 9000, *range(30, 300)],
}


def filled(path: Path, seed: int, *, sizes: str, mortal: float = 0, **options: Any) -> Store:
    """``mortal``: the share of keys that expire."""
    rest = random.Random(seed)
    db = open_store(path, **options)
    for number in rest.sample(range(1500), 1500):
        ttl = 1000 + number if rest.random() < mortal else None
        db.put(b"%06d" % number, rest.randbytes(rest.choice(SIZES[sizes])), ttl=ttl)
    return db


@pytest.mark.parametrize("io", ["mmap", "pread"])
@pytest.mark.parametrize(("sizes", "mortal"), [("alike", 0), ("alike", 1), ("few", 0.3), ("odd", 0), ("many", 0.3)])
@pytest.mark.parametrize("compacted", [False, True])
def test_chunks_hold_what_single_reads_give(path: Path, io: str, sizes: str, mortal: float, compacted: bool) -> None:
    """A scan of a store in which every key expires took 17 times as long as of one in which none does: each was read by
    itself, with care."""
    db = filled(path, 1, sizes=sizes, mortal=mortal, io=io, segment_size_bytes=200_000, sync="os")
    for number in range(0, 1500, 7):
        del db[b"%06d" % number]
    if compacted:
        db.compact()
    single = [(key, db[key]) for key in db]
    assert list(db.items()) == single
    assert list(db.scan(reverse=True)) == single[::-1]
    assert list(db.scan(start=b"000500", limit=500)) == [pair for pair in single if pair[0] >= b"000500"][:500]
    assert db.get_many([key for key, _ in single]) == dict(single)
    assert list(db.get_many([key for key, _ in single[::-3]]).items()) == single[::-3]
    with db.snapshot() as snapshot:
        for number in range(0, 1500, 5):
            db[b"%06d" % number] = b"changed"
        db.compact()
        assert list(snapshot.items()) == single
    assert list(db.items()) == [(key, db[key]) for key in db]
    db.close()


class _ClosedOnceSeen(dict[int, Any]):
    """Segments each of which a compaction closes as soon as somebody has it."""

    def get(self, segment: int, default: Any = None) -> Any:
        return self.pop(segment, default)


def test_a_segment_may_be_closed_while_entries_of_it_are_checked(path: Path) -> None:
    """What was found of it is whole, and with it the seed; a look for that later on raised KeyError."""
    db = open_store(path, sync="os")
    keys = [b"%02d" % number for number in range(40)]
    for key in keys[::3] + keys[1::3] + keys[2::3]:
        db[key] = b"x"
    segments, reader = _ClosedOnceSeen(db._segments.open.table), db._reader
    found = read_many(
        keys, db._keydir.locations, segments, lambda _: False, reader._value, reader._now_ms, trusting=False
    )
    assert [pair for _, pairs in found for pair in pairs] == [(key, b"x") for key in keys]
    assert not segments
    db.close()


@pytest.mark.parametrize("is_alike", [False, True])
@pytest.mark.parametrize("is_in_order", [False, True])
def test_what_has_expired_is_not_read_with_what_has_not(path: Path, is_alike: bool, is_in_order: bool) -> None:
    """Nobody has taken it out of the keydir yet, so that the entry alone tells: it is gone at its millisecond."""
    files = FakeFiles()
    db = open_store(path, files=files, sync="os")
    keys = [b"%02d" % number for number in range(40)]
    for number, key in enumerate(keys if is_in_order else keys[::3] + keys[1::3] + keys[2::3]):
        db.put(key, b"x" * (10 if is_alike else number), ttl=10 if key == b"07" else 20)
    wanted = {key: db[key] for key in keys}
    assert db.get_many(keys) == wanted
    assert dict(db.items()) == wanted
    files.sleep(9.999)
    assert db.get_many(keys) == wanted
    files.sleep(0.001)
    del wanted[b"07"]
    assert db.get_many(keys) == wanted
    assert dict(db.items()) == wanted
    db.close()


@pytest.mark.parametrize("where", [0, 25, 40, 60])
def test_damage_in_a_run_is_told_as_ever(path: Path, where: int) -> None:
    """A run is checked as a whole; which entry fails, and where, must be said all the same."""
    from bytekv.errors import CorruptionError
    from tests.support.harness import damage

    db = open_store(path, sync="os")
    for number in range(500):
        db[b"%06d" % number] = b"x" * 20
    (segment,) = segment_files(path)
    entry = 6 + 20 + 27
    at = 80 + 300 * entry + where % entry
    damage(segment, at)
    scan = db.scan()
    with pytest.raises(CorruptionError) as raised:
        for number, (key, value) in enumerate(scan):
            assert (key, value) == (b"%06d" % number, b"x" * 20)
    assert raised.value.offset == 80 + 300 * entry
    damage(segment, at)
    assert len(list(db.items())) == 500
    db.close()


def _read_at_once(db: Store, keys: list[bytes]) -> list[dict[bytes, bytes]]:
    """Read the same keys in each way that looks for runs."""
    with db.snapshot() as snapshot:
        return [db.get_many(keys), dict(db.scan(start=keys[0])), dict(snapshot.scan(start=keys[0]))]


@pytest.mark.parametrize("change", ["overwritten", "deleted"])
def test_what_has_changed_in_the_middle_of_a_run_is_looked_up(path: Path, change: str) -> None:
    """Its first and its last entry lie where they would in a run, and the old entry between them is whole."""
    db = open_store(path, sync="os")
    keys = [b"%02d" % number for number in range(10)]
    for key in keys:
        db[key] = b"old"
    db._commit.seal()
    content = dict.fromkeys(keys, b"old")
    if change == "overwritten":
        db[b"05"] = content[b"05"] = b"new"
    else:
        del db[b"05"], content[b"05"]
    assert _read_at_once(db, keys) == [content] * 3
    db.close()


_EXPIRES_S = 4_000_000_000
_EXPIRY = (_EXPIRES_S * 1000).to_bytes(8, "little")
_STEM = b"ab"


@pytest.mark.parametrize(
    ("run", "value", "between", "expires"),
    [
        ((b"aa", b"ab", b"ac"), b"xyz", (b"a", b"bxyz"), None),
        (tuple(_STEM + last * 256 for last in (b"a", b"b", b"c")), b"xyz", (_STEM, b"b" * 256 + b"xyz"), None),
        ((bytes(7) + b"a", _EXPIRY, b"\xff" * 8), b"12345678v", (bytes(8), b"v"), _EXPIRES_S),
    ],
    ids=["key length", "its upper byte", "expiry"],
)
def test_an_entry_whose_bytes_look_like_another_is_no_part_of_a_run(
    path: Path, run: tuple[bytes, ...], value: bytes, between: tuple[bytes, bytes], expires: float | None
) -> None:
    """Nothing in the segment is dead, so only the ends of a run are looked up, and what lies between must say itself
    whose it is. Where the key is looked for stands that of an entry which lies in another segment."""
    first, elsewhere, last = run
    db = open_store(path, sync="os")
    db[elsewhere] = "right"
    db._commit.seal()
    db[first] = value
    db.put(*between, expires=expires)
    db[last] = value
    wanted = {first: value, elsewhere: b"right", last: value}
    assert db.get_many(run) == wanted
    with db.snapshot() as snapshot:
        for mapping in (db, snapshot):
            found = dict(mapping.scan(start=first, stop=last, include_stop=True))
            assert {key: found[key] for key in run} == wanted
    db.close()


@pytest.mark.parametrize("cut", [1, 30, 53 * 2, 53 * 3 - 1])
def test_a_run_that_is_cut_short_is_told_as_ever(path: Path, cut: int) -> None:
    """The file ends in the middle of entries that lie behind each other: what is left of them is given."""
    from bytekv.errors import CorruptionError

    db = open_store(path, sync="os", io="pread")
    for number in range(500):
        db[b"%06d" % number] = b"x" * 20
    db.sync()
    keys = list(db)
    (segment,) = segment_files(path)
    whole = segment.read_bytes()
    end = whole.rindex(b"000499") + 6 + 20 + 4
    segment.write_bytes(whole[: end - cut])
    left = 500 - (cut + 52) // 53
    with pytest.raises(CorruptionError, match=r"entry (cut short|fails its CRC32C)"):
        db.get_many(keys)
    assert list(db.get_many(keys[:left])) == keys[:left]
    segment.write_bytes(whole)
    assert list(db.get_many(keys)) == keys
    db.close()


def test_a_scan_does_not_hold_much(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large values come one at a time, not a thousand together."""
    import tracemalloc

    monkeypatch.setattr("bytekv.engine.space.worker.Worker.wake", lambda self: True)  # which holds something of its own
    db = open_store(path, sync="os")
    for number in range(40):
        db[b"%d" % number] = bytes(1 << 20)
    tracemalloc.start()
    assert sum(len(value) for value in db.values()) == 40 << 20
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6 << 20
    db.close()
