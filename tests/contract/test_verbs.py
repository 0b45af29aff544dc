"""Verbs that save a loop, on stores, snapshots and transactions, against what the loop would have done."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

import bytekv
from bytekv.contract import convert
from bytekv.contract.store import Store as AbstractStore
from bytekv.engine.codec.entry import ENTRY_SIZE
from bytekv.engine.store import Store
from tests.contract.test_contract_store import InDict
from tests.support import harness
from tests.support.harness import QuickFiles, damage, segment_files

KEYS = [
    b"", b"/", b"a", b"a/", b"a/1", b"a/2", b"a/b/", b"a/b/1", b"a/b/2", b"a/c//d", b"aa", b"b/x", b"b/x/y", b"c",
    b"\xff", b"\xff/", b"\xff/1", b"\xff\xff", b"\xff\xff/\xff", b"deep/" * 9,
]  # fmt: skip
BOUNDS = [None, b"", b"a", b"a/", b"a/b/1", b"b", b"b/x", b"\xff", b"\xff\xff"]
PREFIXES = [b"", b"a", b"a/", b"a/b", b"a/b/", b"b/x", b"missing", b"\xff", b"\xff/", b"\xff\xff"]
CASES = [{"sync": sync, "io": io} for sync in ("interval", "always") for io in ("mmap", "pread")]


def children_of(keys: list[bytes], prefix: bytes, delimiter: bytes) -> list[bytes]:
    """Return what `children` promises, by walking."""
    found = []
    for key in keys:
        if key.startswith(prefix):
            rest, mark, _ = key[len(prefix) :].partition(delimiter)
            found.append(prefix + rest + mark)
    return sorted(set(found))


def inside(key: bytes, start: bytes | None, stop: bytes | None, first: bool, last: bool) -> bool:
    above = start is None or key > start or (first and key == start)
    return above and (stop is None or key < stop or (last and key == stop))


def check_reads(mapping: Any, model: dict[bytes, bytes], chance: random.Random) -> None:
    """Compare what is read by ranges with what a walk over the model finds."""
    keys = sorted(model)
    assert mapping.count() == len(mapping) == len(keys)
    for prefix in PREFIXES:
        assert mapping.count(prefix) == sum(key.startswith(prefix) for key in keys), prefix
        assert list(mapping.children(prefix)) == children_of(keys, prefix, b"/"), prefix
        assert list(mapping.children(prefix, "//")) == children_of(keys, prefix, b"//"), prefix
    for _ in range(20):
        bounds = chance.choice(BOUNDS), chance.choice(BOUNDS), chance.random() < 0.5, chance.random() < 0.5
        start, stop, first, last = bounds
        wanted = [key for key in keys if inside(key, *bounds)]
        found = mapping.count(start=start, stop=stop, include_start=first, include_stop=last)
        assert found == len(wanted), bounds
        found = mapping.count("a", start=start, stop=stop, include_start=first, include_stop=last)
        assert found == sum(key.startswith(b"a") for key in wanted), bounds
    some = chance.sample(KEYS, 8) + [b"missing"] + chance.sample(keys, min(3, len(keys)))
    assert mapping.get_many(some) == {key: model[key] for key in some if key in model}
    assert mapping.get_many(key.decode("latin-1") for key in some if key.isascii()) == {
        key: model[key] for key in some if key in model and key.isascii()
    }


def fill(mapping: Any, model: dict[bytes, bytes], chance: random.Random, count: int = 12) -> None:
    for _ in range(count):
        key, value = chance.choice(KEYS), chance.choice([b"", b"1", b"v" * 60, b"w" * 9000])
        if chance.random() < 0.3:
            mapping.delete(key)
            model.pop(key, None)
        else:
            mapping[key] = model[key] = value


@pytest.mark.parametrize("options", CASES, ids=lambda case: "-".join(case.values()))
@pytest.mark.parametrize("expiring", [False, True], ids=["plain", "expiring"])
def test_ranges_are_read_and_deleted_as_by_a_loop(
    open_store: Callable[..., Store], options: dict[str, str], expiring: bool
) -> None:
    files = QuickFiles()
    db, chance = open_store(files=files, segment_size_bytes=4096, **options), random.Random(1)
    model: dict[bytes, bytes] = {}
    for turn in range(12):
        fill(db, model, chance)
        if expiring:
            db.put(b"a/gone", b"1", ttl=1)
            db.put(b"a/stays", b"1", ttl=1000)
            files.sleep(2)
            model[b"a/stays"] = b"1"
        check_reads(db, model, chance)
        with db.snapshot() as snap:
            moment = dict(model)
            fill(db, model, chance)
            check_reads(snap, moment, chance)
            with db.transaction() as tx:
                fill(tx, model, chance)
                check_reads(tx, model, chance)
                delete(tx, model, chance)
                check_reads(tx, model, chance)
            delete(db, model, chance)
            check_reads(db, model, chance)
            check_reads(snap, moment, chance)
        if turn % 4 == 3:
            db.compact()
        assert dict(db) == model


def delete(mapping: Any, model: dict[bytes, bytes], chance: random.Random) -> None:
    """Delete a range, and what it holds from the model."""
    bounds = chance.choice(BOUNDS[2:]), chance.choice(BOUNDS), chance.random() < 0.5, chance.random() < 0.5
    gone = [key for key in model if inside(key, *bounds)]
    assert mapping.delete_range(*bounds[:2], include_start=bounds[2], include_stop=bounds[3]) == len(gone), bounds
    for key in gone:
        del model[key]
    prefix = chance.choice(PREFIXES[2:])
    gone = [key for key in model if key.startswith(prefix)]
    assert mapping.delete_prefix(prefix) == len(gone), prefix
    for key in gone:
        del model[key]


def test_a_range_without_limits_and_the_empty_prefix_are_everything(open_store: Callable[..., Store]) -> None:
    db = open_store()
    db.update(dict.fromkeys(KEYS, b"1"))
    with db.transaction() as tx:
        assert tx.delete_prefix("") == len(KEYS)
        assert (tx.delete_prefix(b""), len(tx)) == (0, 0)
        tx["again"] = "1"
    assert (db.delete_range(), db.delete_range(), db.delete_prefix("")) == (1, 0, 0)
    seq = db.last_seq
    assert db.delete_range("b", "a") == db.delete_prefix("none") == 0
    assert db.last_seq == seq  # nothing is written where there is nothing to delete
    assert db.count(start="b", stop="a") == 0


def test_a_range_is_deleted_as_one_batch(open_store: Callable[..., Store], path: Path) -> None:
    db = open_store()
    db.update({f"a{number}": "1" for number in range(300)})
    before = db.last_seq
    assert db.delete_prefix("a") == 300
    more = [change.more for change in db.changes(before)]
    assert more == [True] * 299 + [False]


def test_what_is_too_much_for_a_batch_goes_in_several(
    open_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    db = open_store()
    for sync in ("interval", "always"):
        db.close()
        db = open_store(sync=sync)
        db.update({f"a{number:02}": "1" for number in range(25)})
        before = db.last_seq
        monkeypatch.setattr(convert, "MAX_BATCH_SIZE", 300)  # ten keys
        assert db.delete_prefix("a") == 25
        ends = [change.seq - before for change in db.changes(before) if not change.more]
        assert ends == [10, 20, 25]
        monkeypatch.undo()


@pytest.mark.parametrize("others", [1, 3, 100])
def test_writers_that_come_in_between(
    open_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    """What is deleted is what the range holds at one moment: keys that come meanwhile are deleted, or written after."""
    db = open_store()
    db.update({f"a{number}": "1" for number in range(30)})
    keys_between, calls = db._reader.keys_between, itertools.count(1)

    def disturbed(range_: Any) -> list[bytes]:
        found = keys_between(range_)
        number = next(calls)
        if number <= others:
            db[f"a-{number}"] = "1"
            db.delete(f"a{number}")
        return found

    monkeypatch.setattr(db._reader, "keys_between", disturbed)
    assert db.delete_prefix("a") == 30
    assert next(calls) == min(others + 2, 9)  # then a transaction has kept the others out
    assert dict(db) == {}


def test_nobody_sees_half_of_a_deleted_range(open_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that comes while the keys are taken out waits until all of them are."""
    db = open_store()
    db.update({f"a{number}": "1" for number in range(30)})
    seen: list[bool] = []
    count_removed = db._keydir.usage.count_removed

    def look(*given: Any) -> None:
        seen.append(db._state.readers_must_wait)
        count_removed(*given)

    monkeypatch.setattr(type(db._keydir.usage), "count_removed", lambda _, *given: look(*given))
    assert db.delete_prefix("a") == 30
    assert seen == [True]
    assert not db._state.readers_must_wait


def test_a_range_that_expires_meanwhile_is_not_counted(
    open_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = QuickFiles()
    db = open_store(files=files)
    db.put("a1", "1", ttl=1)
    db["a2"] = "1"
    keys_between = db._reader.keys_between

    def slowly(range_: Any) -> list[bytes]:
        found = keys_between(range_)
        files.sleep(1)
        return found

    monkeypatch.setattr(db._reader, "keys_between", slowly)
    seq = db.last_seq
    assert (db.delete_prefix("a"), db.last_seq) == (1, seq + 1)


@pytest.mark.parametrize("io", ["mmap", "pread"])
def test_a_range_of_all_sizes_leaves_what_single_deletes_leave(open_store: Callable[..., Store], io: str) -> None:
    db = open_store(io=io, segment_size_bytes=1 << 16)
    model = {bytes([number % 251]) * (number % 700): b"v" * (number * 29 % 9000) for number in range(600)}
    db.update(model)
    db.put(b"\x05due", "1", ttl=1000)
    for key in list(model)[::3]:
        db[key] = model[key] = b"again"
    snap = db.snapshot()
    gone = [key for key in model if b"\x05" <= key < b"\xa0"]
    assert db.delete_range(b"\x05", b"\xa0") == len(gone) + 1
    assert len(snap) == len(model) + 1
    assert {key: snap[key] for key in model} == model
    for key in gone:
        del model[key]
    assert dict(db) == model
    assert db._state.keydir.locations.keys() == model.keys()
    with db._state.lock:
        assert db._keydir.check() == []
        counted = dict(db._keydir.usage.dead)
        db._state.recount()
        assert counted == db._keydir.usage.dead
    db.compact()
    assert dict(db) == model


def test_children_are_found_by_seeks(open_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch) -> None:
    db = open_store()
    db.update({f"{number // 1000}/{number}": "" for number in range(5000)})
    asked: list[int] = []
    walk_in = db._reader.walk_in

    def counted(view: Any, range_: Any, limit: int) -> Iterator[bytes]:
        asked.append(limit)
        return walk_in(view, range_, limit)

    monkeypatch.setattr(db._reader, "walk_in", counted)
    assert list(db.children()) == [b"%d/" % number for number in range(5)]
    assert sum(asked) < 40
    asked.clear()
    assert len(list(db.children("3/"))) == 1000
    assert len(asked) < 10  # keys that are children of their own are read by the chunk


@pytest.mark.parametrize("kind", ["store", "snapshot", "transaction"])
def test_children_are_those_of_the_moment_of_the_call(open_store: Callable[..., Store], kind: str) -> None:
    db = open_store()
    db.update(dict.fromkeys(["a/1", "b/1", "c/1", "d"], "1"))
    with db.transaction() as tx:
        seen: Any = {"store": db, "snapshot": db.snapshot(), "transaction": tx}[kind]
        found = seen.children()
        assert next(found) == b"a/"
        tx["e"] = "1"
        del tx["c/1"]
        tx.delete("d")
        if kind == "transaction":
            assert list(found) == [b"b/", b"c/", b"d"]
    if kind != "transaction":
        assert list(found) == [b"b/", b"c/", b"d"]
    assert list(db.children()) == [b"a/", b"b/", b"e"]


def test_a_snapshot_counts_by_walking_once_much_has_changed(
    open_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    for few_noted in 10_000, 0:
        harness.tune(monkeypatch, few_noted=few_noted)
        with open_store(flag="n") as db:
            db.update(dict.fromkeys(KEYS, b"1"))
            snap = db.snapshot()
            db.delete_prefix("a")
            if not few_noted:
                monkeypatch.setattr(type(db._keydir), "count_between", never)
            counts.append([snap.count("a"), snap.count(stop="b")])
    assert counts == [[9, 11], [9, 11]]


def never(*_: object) -> NoReturn:
    raise AssertionError


# --- stat ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("io", ["mmap", "pread"])
def test_stat_tells_what_the_entry_tells(open_store: Callable[..., Store], io: str) -> None:
    db = open_store(io=io, files=QuickFiles())
    db.update({"empty": "", "small": "12345", "large": b"v" * 9000, "": "x"})
    db.put("due", "", ttl=60)
    db.put("large and due", b"v" * 9000, ttl=60)
    snap = db.snapshot()
    for seen in (db, snap):
        stats = list(seen.scan_stats())
        assert [stat.key for stat in stats] == sorted(db)
        for stat in stats:
            entry = db.entry(stat.key)
            assert stat == (entry.key, len(entry.value), entry.seq, entry.modified, entry.expires)
            assert seen.stat(stat.key) == seen.stat(stat.key.decode()) == stat
        assert list(seen.scan_stats(reverse=True, limit=2)) == stats[:-3:-1]
        assert list(seen.scan_stats("large", stop="large and")) == [seen.stat("large")]
        with pytest.raises(KeyError):
            seen.stat("missing")
    was = snap.stat("small")
    db["small"] = "1"
    del db["empty"]
    assert (snap.stat("small"), snap.stat("empty").size, db.stat("small").size) == (was, 0, 1)
    assert len(list(snap.scan_stats())) == 6


def test_stat_of_what_has_expired(open_store: Callable[..., Store]) -> None:
    files = QuickFiles()
    db = open_store(files=files)
    db.put("due", "1", ttl=10)
    snap, found = db.snapshot(), db.scan_stats()
    assert (snap.ttl("due"), db.stat("due").expires) == (10, (db._now_ms() + 10_000) / 1000)
    files.sleep(10)
    assert db.count("d") == 0  # the first to look
    for seen in (db, snap):
        with pytest.raises(KeyError):
            seen.stat("due")
        assert (list(seen.scan_stats()), seen.count("d"), seen.get_many(["due"])) == ([], 0, {})
    assert list(found) == []
    with pytest.raises(KeyError):
        snap.ttl("due")


@pytest.mark.parametrize("byte", [0, 1, 2, 3, 6, 23], ids=["flags", "key length", "key length", "size", "size", "key"])
@pytest.mark.parametrize("io", ["mmap", "pread"])
def test_stat_says_what_it_sees_of_damage(open_store: Callable[..., Store], path: Path, byte: int, io: str) -> None:
    db = open_store(io=io)
    db["key"] = "value" * 10
    file = segment_files(path)[0]
    damage(file, file.read_bytes().index(b"keyvalue") - ENTRY_SIZE + byte, 0x40)
    try:
        with pytest.raises(bytekv.CorruptionError):
            db.stat("key")
        with pytest.raises(bytekv.CorruptionError):
            list(db.scan_stats())
    finally:
        db.close()


def test_stat_reads_no_value(open_store: Callable[..., Store], path: Path) -> None:
    """So it does not see that one is damaged, which the page says."""
    db = open_store()
    db["key"] = "value" * 10
    file = segment_files(path)[0]
    damage(file, file.read_bytes().index(b"keyvalue") + 10)
    assert db.stat("key").size == 50
    with pytest.raises(bytekv.CorruptionError):
        db.entry("key")
    db.close()


# --- modify, incr, and the verbs of a transaction --------------------------------------------------


def test_modify_keeps_the_expiry_and_what_it_is_given(open_store: Callable[..., Store]) -> None:
    files = QuickFiles()
    db = open_store(files=files)
    db.put("a", "1", ttl=100)
    expires = db.entry("a").expires
    files.sleep(1.0005)
    assert db.modify("a", lambda value: value + b"2") == b"12"
    assert (db["a"], db.entry("a").expires) == (b"12", expires)
    assert (db.modify("new", bytes.upper, "x"), db["new"], db.ttl("new")) == (b"X", b"X", None)
    with pytest.raises(KeyError):
        db.modify("missing", bytes.upper)
    files.sleep(100)
    with pytest.raises(KeyError):
        db.modify("a", bytes.upper)
    seq = db.last_seq

    def fail(value: bytes) -> bytes:
        raise LookupError("no")

    for function, default in ((fail, None), (lambda value: 1, None), (bytes.upper, 1), (None, None)):
        with pytest.raises((LookupError, TypeError)):
            db.modify("new", function, default)  # type: ignore[arg-type]
    with pytest.raises(bytekv.LimitError):
        db.modify(b"k" * 65_536, bytes.upper, "")
    assert (db.last_seq, db["new"]) == (seq, b"X")


@pytest.mark.parametrize("conflicts", [0, 1, 7, 8, 100])
def test_modify_ends_in_a_transaction(open_store: Callable[..., Store], conflicts: int) -> None:
    """Another thread's write between look and write is a conflict; after eight of them nobody comes in between."""
    db = open_store()
    db["n"] = "0"
    calls = 0

    def race() -> None:
        if not db.would_wait(write_bytes=1):
            db.incr("n")

    def function(value: bytes) -> bytes:
        nonlocal calls
        calls += 1
        if calls <= conflicts:
            other = threading.Thread(target=race)
            other.start()
            other.join()
        return b"%d" % (int(value) + 1000)

    done = min(conflicts, 8)
    assert db.modify("n", function) == b"%d" % (1000 + done) == db["n"]
    assert calls == done + 1


def test_modify_that_writes_the_key_itself_is_told_so(open_store: Callable[..., Store]) -> None:
    db = open_store()
    db["a"] = "1"

    def function(value: bytes) -> bytes:
        db["a"] = value + b"1"
        return value

    with pytest.raises(bytekv.ReentryError):
        db.modify("a", function)
    assert db["a"] == b"1" * 9
    db["a"] = "the turn is free again"


def check_incr(counted: Any) -> None:
    with pytest.raises(KeyError):
        counted.incr("a", default=None)
    assert "a" not in counted
    assert counted.incr("a", 5, default=10) == 15
    assert counted.incr("a", -20, default=None) == -5
    assert counted.incr("a", default=10) == -4
    for amount, default in (("1", 0), (True, 0), (1, "1"), (1, 1.0), (1, False)):
        with pytest.raises(TypeError):
            counted.incr("b", amount, default=default)
    counted["text"] = "x"
    with pytest.raises(ValueError, match="decimal"):
        counted.incr("text")
    assert dict(counted) == {b"a": b"-4", b"text": b"x"}


def test_incr_of_a_missing_key(open_store: Callable[..., Store]) -> None:
    db = open_store()
    with db.transaction() as tx:
        check_incr(tx)
    db.clear()
    check_incr(db)


def test_the_verbs_of_a_transaction(open_store: Callable[..., Store]) -> None:
    files = QuickFiles()
    db = open_store(files=files)
    db.update({"n": "1", "a": "1"})
    db.put("due", "5", ttl=100)
    with db.transaction() as tx:
        assert (tx.add("n", "2"), tx.add("new", "1", ttl=10), tx.add("new", "2")) == (False, True, False)
        assert (tx.ttl("n"), tx.ttl("new"), tx.ttl("due")) == (None, 10, 100)
        files.sleep(1)
        assert (tx.incr("due"), tx.incr("new", 5), tx.incr("n")) == (6, 6, 2)
        assert (tx.ttl("due"), tx.ttl("new")) == (99, 10)  # what is written here counts from the commit on
        assert (tx.expire("a", 50), tx.expire("missing", 50), tx.ttl("a")) == (True, False, 50)
        assert (tx.persist("new"), tx.persist("new"), tx.persist("missing"), tx.ttl("new")) == (
            True,
            False,
            False,
            None,
        )
        assert (tx.delete("n"), tx.delete("n"), tx.delete("missing")) == (True, False, False)
        for use in (tx.ttl, lambda key: tx.modify(key, bytes.upper), lambda key: tx.incr(key, default=None)):
            with pytest.raises(KeyError):
                use("n")
        assert tx.modify("due", lambda value: value * 2) == b"66"
        assert (tx.add("n", "again"), tx["n"]) == (True, b"again")
        tx.put("past", "1", expires=1)
        assert tx.ttl("past") == 0
        with pytest.raises(ZeroDivisionError):
            tx.modify("n", lambda value: b"%d" % (1 // 0))
        for ttl in (0, "1", True, float("nan")):
            for wrong in (lambda ttl: tx.add("n", "1", ttl=ttl), lambda ttl: tx.expire("n", ttl)):
                with pytest.raises((TypeError, bytekv.LimitError)):
                    wrong(ttl)
        assert tx["n"] == b"again"
        files.sleep(1)
    assert dict(db) == {b"a": b"1", b"due": b"66", b"n": b"again", b"new": b"6"}
    assert (db.ttl("a"), db.ttl("due"), db.ttl("new"), db.ttl("n")) == (50, 98, None, None)
    for use in (tx.count, tx.children, lambda: tx.get_many([]), lambda: tx.ttl("a"), lambda: tx.delete_prefix("a")):
        with pytest.raises(bytekv.BytekvError, match="over"):
            use()


def test_wrong_types_change_nothing(open_store: Callable[..., Store]) -> None:
    db = open_store()
    db["a"] = "1"
    snap, seq = db.snapshot(), db.last_seq
    with db.transaction() as tx:
        for seen in (db, snap, tx):
            for use in ("count", "children", "delete_prefix", "delete_range", "get_many", "stat", "scan_stats", "ttl"):
                if hasattr(seen, use):
                    for wrong in (1, None, ("a",)):
                        if (use, wrong) in (("delete_range", None), ("get_many", ("a",))):
                            continue
                        with pytest.raises(TypeError):
                            getattr(seen, use)(wrong)
            with pytest.raises(bytekv.LimitError, match="empty"):
                seen.children("a", "")
            with pytest.raises(TypeError):
                seen.count(start=1)
        for wrong in (-1, True, "1"):
            with pytest.raises((TypeError, bytekv.LimitError)):
                db.scan_stats(limit=wrong)
            with pytest.raises((TypeError, bytekv.LimitError)):
                snap.scan_stats(limit=wrong)
    assert (dict(db), db.last_seq) == ({b"a": b"1"}, seq)


# --- what a store inherits -------------------------------------------------------------------------


class Kept(InDict):  # type: ignore[misc,valid-type]
    """A store in a dict that compares seqs, as a modify needs it."""

    def __init__(self) -> None:
        super().__init__()
        self.seqs: dict[bytes, int] = {}

    incr, modify = AbstractStore.incr, AbstractStore.modify

    def _now_ms(self) -> int:
        return 0

    def entry(self, key: Any) -> bytekv.Entry:
        key = convert.to_bytes("key", key)
        return bytekv.Entry(key, self._values[key], self.seqs.get(key, 1), 5.0, None)

    def get_many(self, keys: Any) -> dict[bytes, bytes]:
        wanted = [convert.to_bytes("key", key) for key in keys]
        return {key: self._values[key] for key in wanted if key in self._values}

    def put(self, key: Any, value: Any, *, expires: float | None = None, if_seq: int | None = None, **_: Any) -> int:
        key = convert.key_of(key)
        actual = self.seqs.get(key, 1) if key in self._values else 0
        if if_seq is not None and if_seq != actual:
            raise bytekv.ConflictError(key, if_seq, actual)
        self.seqs[key] = actual + 1
        return super().put(key, value)

    def snapshot(self) -> Any:
        return self

    def _stats(self, range_: Any, limit: Any) -> Iterator[bytekv.EntryStat]:
        return iter([self.stat(key) for key in self._walk(range_, limit)])


def test_another_store_inherits_the_verbs() -> None:
    db, model, chance = Kept(), dict.fromkeys(KEYS, b"1"), random.Random(2)
    db.update(model)
    check_reads(db, model, chance)
    assert db.stat("a") == (b"a", 1, 1, 5.0, None)
    assert [stat.key for stat in db.scan_stats("b")] == [b"b/x", b"b/x/y"]
    delete(db, model, chance)
    check_reads(db, model, chance)
    assert (db.incr("n", 2, default=3), db.incr("n")) == (5, 6)
    with pytest.raises(KeyError):
        db.incr("none", default=None)
    assert db.modify("m", bytes.upper, "x") == db["m"] == b"X"
    with db.transaction() as tx:
        assert (tx.incr("n"), tx.count("n"), tx.get_many(["n"])) == (7, 1, {b"n": b"7"})


# --- open makes parents ----------------------------------------------------------------------------


class Watched(QuickFiles):
    """The real files, which note what is made and what is synced."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[tuple[str, str]] = []

    def make_directory(self, path: str) -> bool:
        made = super().make_directory(path)
        if made:
            self.noted.append(("make", str(path)))
        return made

    def sync_directory(self, path: str) -> None:
        super().sync_directory(path)
        self.noted.append(("sync", str(path)))


@pytest.mark.parametrize("flag", ["c", "n"])
def test_missing_parents_are_made_and_each_name_is_durable(
    path: Path, open_store: Callable[..., Store], flag: str
) -> None:
    files = Watched()
    db = open_store(flag, at=path / "a" / "b" / "store", files=files)
    db["a"] = "1"
    made = [path, path / "a", path / "a" / "b", path / "a" / "b" / "store"]
    wanted = [[("make", str(name)), ("sync", str(name.parent))] for name in made]
    assert files.noted[:8] == [each for pair in wanted for each in pair]
    assert [name.stat().st_mode & 0o777 for name in made] == [0o700] * 4


@pytest.mark.parametrize("flag", ["r", "w"])
def test_opening_an_existing_store_makes_nothing(path: Path, open_store: Callable[..., Store], flag: str) -> None:
    with pytest.raises(bytekv.StoreNotFoundError):
        open_store(flag, at=path / "a" / "store")
    assert not path.exists()


def test_parents_that_cannot_be_made(path: Path, open_store: Callable[..., Store]) -> None:
    path.write_text("a file")
    with pytest.raises(bytekv.BytekvError):
        open_store(at=path / "a" / "store")
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))
    with pytest.raises(bytekv.StoreNotFoundError):
        open_store(at=path / "a" / "store")
    assert list(path.parent.iterdir()) == [path]
