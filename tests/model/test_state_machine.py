"""A store against a dict: any sequence of writes, compactions, crashes and reopenings, one truth.

Segments are so small that everything happens every few steps, every segment gets a hint file, and a
compaction lets others write after every entry. Nothing runs in the background: what the worker would do
is a step like any other (`work`), and time passes only when a step says so.

A step that fails shrinks to a short story. Such stories are kept in `test_regressions.py`.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from bytekv import ConflictError, StoreClosedError, repair
from bytekv.contract.snapshot import Snapshot
from bytekv.engine.store import Store
from tests.engine.test_scan import expected
from tests.support import harness
from tests.support.harness import WRONG, Case, FakeFiles

#: About fifty; the first few come most often. Awkward ones: empty, at the ends of the order, long, longest.
KEYS = [
    *(b"a", b"b", b"c", b"", b"a\xff", b"\xff"),
    *(b"k%02d" % number for number in range(36)),
    *(b"\x00", b"\x00\x00", b"\xff\xff", b"a\xff\xff", b"a\xff\xff\x00", b"\xfe\xff"),
    b"long" * 50,
    b"longer than a segment" * 60,
    b"longest".ljust(65_535, b"."),
]
VALUES = [
    *(b"", b"1", b"-7", b"value", b"\x00" * 30, b"v" * 100),
    b"w" * 1_000,
    b"no room in a location" * 400,  # 8,400 bytes: over the 8,191 that a location can tell
    b"larger than every segment" * 400,
]


def one_of(table: list[bytes]) -> st.SearchStrategy[bytes]:
    """Pick from a table, mostly of its first six rows; hypothesis sees numbers, for it prints what it picks from."""
    return (st.integers(0, 5) | st.integers(0, len(table) - 1)).map(lambda row: table[row])


keys = one_of(KEYS)
values = one_of(VALUES) | st.binary(max_size=60)
ttls = st.sampled_from([0.001, 1, 1.5, 5, 60, 1000])
#: What a batch or a bystander does: (key, value or None for a delete, ttl).
writes = st.tuples(keys, st.none() | values, st.none() | ttls)
opened_with = st.fixed_dictionaries(
    {
        "sync": st.sampled_from(["interval", "always", "os"]),
        "io": st.sampled_from(["mmap", "pread"]),
        "segment_size_bytes": st.sampled_from([400, 256, 1_000, 4_096]),
        "expiry_grace_s": st.sampled_from([0.0, 10.0]),
        "max_open_segments": st.sampled_from([None, 1, 3]),
        "verify_reads": st.sampled_from([True, False]),
        "recover": st.sampled_from(["strict", "salvage"]),
        "auto_compact": st.booleans(),
        "compact_dead_bytes": st.sampled_from([0, 300]),
        "compact_dead_ratio": st.sampled_from([0.5, 0.1]),
        "compact_small_files": st.sampled_from([8, 3, 2]),
    }
)


class Record(NamedTuple):
    """What the model knows of one key."""

    value: bytes
    seq: int
    modified_ms: int
    expires_ms: int  # 0: never


class Interruption(Exception):
    """Strike in the middle of a compaction."""


class MachineFiles(FakeFiles):
    """All clocks are the one that is set by hand."""

    def monotonic(self) -> float:
        """Return what the wall clock says: here it never jumps."""
        return self.time_ns / 1e9


class StoreMachine(RuleBasedStateMachine):
    """Do to a store and to a dict the same, and compare them after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.parent = Path(
            tempfile.mkdtemp(prefix="bytekv-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
        )
        self.path = self.parent / "store"
        self.files = MachineFiles()
        self.random = random.Random(0)  # for the scans of each comparison; the steps are hypothesis's
        self.model: dict[bytes, Record] = {}
        self.seq = 0
        self.steps = 0
        self.readers: list[tuple[Store, dict[bytes, Record]]] = []
        self.snapshots: list[tuple[Snapshot, dict[bytes, Record]]] = []
        self.scans: list[tuple[Iterator[tuple[bytes, bytes]], list[tuple[bytes, Record]]]] = []

    @initialize(options=opened_with)
    def begin(self, options: dict[str, Any]) -> None:
        self.open(options)

    def open(self, options: dict[str, Any], flag: str = "c") -> None:
        self.options = options
        self.db = harness.open_store(self.path, flag, files=self.files, **options)
        assert self.db.last_seq == self.db.durable_seq == self.db.recovery.last_seq == self.seq
        assert not self.db.recovery.torn_bytes
        assert not self.db.recovery.quarantined

    def teardown(self) -> None:
        for reader, _ in self.readers:
            reader.close()
        self.snapshots.clear()
        self.scans.clear()
        if hasattr(self, "db") and not self.db.closed:
            self.db.close()
        shutil.rmtree(self.parent)

    # --- the model -------------------------------------------------------------------------------

    @property
    def now_ms(self) -> int:
        return self.files.now_ms()

    def is_over(self, record: Record) -> bool:
        return 0 < record.expires_ms <= self.now_ms

    def left_of(self, model: dict[bytes, Record]) -> dict[bytes, bytes]:
        """Return what is left, in key order, of what was once there, now that time has passed."""
        return {key: model[key].value for key in sorted(model) if not self.is_over(model[key])}

    def wrote(self, key: bytes, value: bytes, ttl: float | None = None, expires_ms: int = 0) -> int:
        """Note one put."""
        self.seq += 1
        if ttl is not None:
            expires_ms = self.now_ms + math.ceil(ttl * 1000)
        self.model[key] = Record(value, self.seq, self.now_ms, expires_ms)
        return self.seq

    def removed(self, key: bytes) -> bool:
        """Note one delete; of what is not there it takes no seq."""
        if self.model.pop(key, None) is None:
            return False
        self.seq += 1
        return True

    # --- single keys -----------------------------------------------------------------------------

    @rule(key=keys, value=values)
    def put(self, key: bytes, value: bytes) -> None:
        assert self.db.put(key, value) == self.wrote(key, value)

    @rule(key=keys, value=values)
    def set_item(self, key: bytes, value: bytes) -> None:
        self.db[key] = value
        self.wrote(key, value)

    @rule(key=keys, value=values, ttl=ttls)
    def put_with_ttl(self, key: bytes, value: bytes, ttl: float) -> None:
        assert self.db.put(key, value, ttl=ttl) == self.wrote(key, value, ttl)

    @rule(key=keys, value=values, ttl=st.none() | ttls)
    def add(self, key: bytes, value: bytes, ttl: float | None) -> None:
        is_new = key not in self.model
        assert self.db.add(key, value, ttl=ttl) == is_new
        if is_new:
            self.wrote(key, value, ttl)

    @rule(key=keys, value=values, ttl=st.none() | ttls, off_by=st.sampled_from([0, 1, -1, 100]))
    def compare_and_set(self, key: bytes, value: bytes, ttl: float | None, off_by: int) -> None:
        record = self.model.get(key)
        actual = record.seq if record else 0
        if off_by:
            with pytest.raises(ConflictError) as caught:
                self.db.put(key, value, ttl=ttl, if_seq=actual + off_by)
            assert (caught.value.key, caught.value.expected, caught.value.seq) == (key, actual + off_by, actual)
        else:
            assert self.db.put(key, value, ttl=ttl, if_seq=actual) == self.wrote(key, value, ttl)

    @rule(key=keys)
    def delete(self, key: bytes) -> None:
        assert self.db.delete(key) == self.removed(key)

    @rule(key=keys)
    def del_item(self, key: bytes) -> None:
        if self.removed(key):
            del self.db[key]
        else:
            with pytest.raises(KeyError):
                del self.db[key]

    @rule(key=keys, amount=st.integers(-5, 5))
    def incr(self, key: bytes, amount: int) -> None:
        record = self.model.get(key)
        if record is not None and not record.value.lstrip(b"-").isdigit():
            with pytest.raises(ValueError, match="integer"):
                self.db.incr(key, amount)
            return
        total = amount + (int(record.value) if record else 0)
        assert self.db.incr(key, amount) == total
        self.wrote(key, b"%d" % total, expires_ms=record.expires_ms if record else 0)

    @rule(key=keys, ttl=ttls)
    def expire(self, key: bytes, ttl: float) -> None:
        record = self.model.get(key)
        assert self.db.expire(key, ttl) == (record is not None)
        if record is not None:
            self.wrote(key, record.value, ttl)

    @rule(key=keys)
    def persist(self, key: bytes) -> None:
        record = self.model.get(key)
        expires = record is not None and record.expires_ms != 0
        assert self.db.persist(key) == expires
        if record is not None and expires:
            self.wrote(key, record.value)

    @rule(key=keys, value=values)
    def setdefault(self, key: bytes, value: bytes) -> None:
        record = self.model.get(key)
        assert self.db.setdefault(key, value) == (record.value if record else value)
        if record is None:
            self.wrote(key, value)

    @rule(key=keys, default=st.none() | values)
    def pop(self, key: bytes, default: bytes | None) -> None:
        record = self.model.get(key)
        assert self.db.pop(key, default) == (record.value if record else default)
        self.removed(key)

    @rule()
    def popitem(self) -> None:
        if self.model:
            last = max(self.model)
            assert self.db.popitem() == (last, self.model[last].value)
            self.removed(last)
        else:
            with pytest.raises(KeyError):
                self.db.popitem()

    # --- several at once -------------------------------------------------------------------------

    @rule(pairs=st.dictionaries(keys, values, max_size=6))
    def update(self, pairs: dict[bytes, bytes]) -> None:
        self.db.update(pairs)
        for key, value in pairs.items():
            self.wrote(key, value)

    @rule(first=st.integers(0, 35), count=st.integers(1, 36), value=one_of(VALUES[:6]))
    def fill(self, first: int, count: int, value: bytes) -> None:
        """Put many keys one by one, so that there is something to roll, copy and leave behind."""
        for key in KEYS[6 + first :][:count]:
            self.put(key, value)

    @rule(first=st.integers(0, 35), step=st.integers(1, 5))
    def thin_out(self, first: int, step: int) -> None:
        """Delete many keys one by one."""
        for key in KEYS[6 + first : 42 : step]:
            self.delete(key)

    @rule(start=st.none() | keys, stop=st.none() | keys, include_start=st.booleans(), include_stop=st.booleans())
    def delete_range(self, start: bytes | None, stop: bytes | None, include_start: bool, include_stop: bool) -> None:
        bounds = {"start": start, "stop": stop, "include_start": include_start, "include_stop": include_stop}
        gone = [key for key, _ in expected(self.left_of(self.model), **bounds)]
        assert self.db.count(**bounds) == len(gone)
        assert self.db.delete_range(**bounds) == len(gone)
        for key in gone:
            self.removed(key)

    @rule(key=keys)
    def stat(self, key: bytes) -> None:
        record = self.left_of(self.model).get(key)
        if record is None:
            with pytest.raises(KeyError):
                self.db.stat(key)
        else:
            found = self.db.stat(key)
            assert (found.size, found.seq) == (len(record), self.model[key].seq)

    @rule(key=keys, addition=values)
    def modify(self, key: bytes, addition: bytes) -> None:
        record = self.model.get(key)
        made = (record.value if record else b"-")[:50] + addition
        assert self.db.modify(key, lambda value: value[:50] + addition, b"-") == made
        self.wrote(key, made, expires_ms=record.expires_ms if record else 0)

    @rule(batch=st.lists(writes, max_size=8))
    def batch(self, batch: list[tuple[bytes, bytes | None, float | None]]) -> None:
        before = self.seq
        with self.db.batch() as writer:
            for key, value, ttl in batch:
                if value is None:
                    del writer[key]
                else:
                    writer.put(key, value, ttl=ttl)
        last: dict[bytes, tuple[bytes | None, float | None]] = {}
        for key, value, ttl in batch:  # the last write to a key counts, in the place of the last
            last.pop(key, None)
            last[key] = value, ttl
        for key, (value, ttl) in last.items():
            if value is None:
                self.removed(key)
            else:
                self.wrote(key, value, ttl)
        assert writer.seq == (self.seq if self.seq > before else None)

    @rule(script=st.lists(st.tuples(st.sampled_from(["put", "delete", "read"]), keys, values), max_size=8))
    def transaction(self, script: list[tuple[str, bytes, bytes]]) -> None:
        seen = {key: record.value for key, record in self.model.items()}
        last: dict[bytes, bytes | None] = {}
        with self.db.transaction() as tx:
            for verb, key, value in script:
                if verb == "read":
                    assert tx.get(key) == seen.get(key)
                    assert list(tx.scan(start=key)) == expected(seen, start=key)
                    continue
                if verb == "delete":
                    if key not in seen:
                        assert key not in tx
                        continue
                    del tx[key], seen[key]
                else:
                    tx[key] = seen[key] = value
                last.pop(key, None)
                last[key] = seen.get(key)
        for key, written in last.items():
            if written is None:
                self.removed(key)
            else:
                self.wrote(key, written)

    @rule(batch=st.lists(writes, max_size=4))
    def batch_that_fails(self, batch: list[tuple[bytes, bytes | None, float | None]]) -> None:
        with contextlib.suppress(Interruption), self.db.batch() as writer:
            for key, value, ttl in batch:
                if value is None:
                    writer.delete(key)
                else:
                    writer.put(key, value, ttl=ttl)
            raise Interruption

    @precondition(lambda self: len(self.model) > 12)
    @rule()
    def clear(self) -> None:
        self.db.clear()
        self.seq += bool(self.model)
        self.model.clear()

    # --- durability, time, space -----------------------------------------------------------------

    @rule()
    def sync(self) -> None:
        self.db.sync()
        assert self.db.durable_seq == self.db.last_seq

    @rule(seconds=st.sampled_from([0.001, 1, 5, 20, 100, 2000]))
    def let_time_pass(self, seconds: float) -> None:
        self.files.sleep(seconds)
        for key, record in list(self.model.items()):
            if self.is_over(record):
                del self.model[key]

    @rule()
    def compact(self) -> None:
        self.db.compact()
        # What died of old age may have to stay a while and is not counted. Beside that only the mark of the
        # sync that a compaction needs may be left, in the segment that is being written.
        writer = self.db._segments.writer
        active = writer.header.segment_id if writer else None
        for row in self.db.stats().segments:
            assert row.tombstone_bytes == 0
            assert row.dead_bytes <= (27 if row.segment_id == active else 0)

    def run_of_segments(self, first: float, length: float) -> list[int]:
        """Pick some sealed segments in a row."""
        sealed = [row.segment_id for row in self.db._segments.sealed()]
        start = int(first * len(sealed))
        return sealed[start : start + 1 + int(length * (len(sealed) - start))]

    @rule(first=st.floats(0, 0.999), length=st.floats(0, 1))
    def compact_a_part(self, first: float, length: float) -> None:
        if victims := self.run_of_segments(first, length):
            self.db._maintenance.compactor.run(victims, lambda: None, lambda _: None)
            left = {row.segment_id for row in self.db._segments.sealed()}
            assert left.isdisjoint(victims)

    @rule(
        first=st.floats(0, 0.999),
        length=st.floats(0, 1),
        script=st.lists(
            writes | st.sampled_from(["clear", "sync", "look_on", "take_snapshot", "close_snapshot", "pass"]),
            max_size=12,
        ),
    )
    def compact_while_others_write(self, first: float, length: float, script: list[Any]) -> None:
        steps = iter(script)

        def pause() -> None:
            step = next(steps, None)
            if step == "close_snapshot":
                if self.snapshots:
                    self.close_snapshot(which=0)
            elif step == "pass":
                self.let_time_pass(seconds=5)
            elif isinstance(step, str):
                getattr(self, step)()
            elif step is not None:
                key, value, ttl = step
                if value is None:
                    self.delete(key)
                elif ttl is None:
                    self.put(key, value)
                else:
                    self.put_with_ttl(key, value, ttl)

        if victims := self.run_of_segments(first, length):
            self.db._maintenance.compactor.run(victims, pause, lambda _: None)

    @rule(first=st.floats(0, 0.999), length=st.floats(0, 1), after=st.integers(0, 20))
    def compact_until_interrupted(self, first: float, length: float, after: int) -> None:
        """Stop at a pause: before publication nothing has happened, after it the next compaction goes on."""
        left = after

        def pause() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Interruption

        if victims := self.run_of_segments(first, length):
            with contextlib.suppress(Interruption):
                self.db._maintenance.compactor.run(victims, pause, lambda _: None)

    @rule()
    def choose_and_compact(self) -> None:
        """Compact as long as it seems worth it: every round must leave less to do."""
        for _ in range(10 + len(self.db._segments.sealed())):
            victims = self.db._maintenance.pick()
            if not victims:
                return
            self.db._maintenance.compactor.run(victims, lambda: None, lambda _: None)
        pytest.fail(f"compacting has no end, now it is the turn of {victims}")

    @rule()
    def work(self) -> None:
        """Do what the worker would do by now."""
        self.db._work()
        if self.db._maintenance.may_compact:
            assert not self.db._maintenance.pick()
        assert self.db.stats().background_error is None

    # --- one moment, kept ------------------------------------------------------------------------

    @precondition(lambda self: len(self.snapshots) < 3)
    @rule()
    def take_snapshot(self) -> None:
        self.snapshots.append((self.db.snapshot(), dict(self.model)))

    @precondition(lambda self: self.snapshots)
    @rule(which=st.integers(0, 2))
    def close_snapshot(self, which: int) -> None:
        snapshot, _ = self.snapshots.pop(which % len(self.snapshots))
        snapshot.close()

    @precondition(lambda self: len(self.scans) < 3)
    @rule(start=st.none() | keys, reverse=st.booleans())
    def begin_scan(self, start: bytes | None, reverse: bool) -> None:
        scan = self.db.scan(start=start, reverse=reverse)
        pairs = [(key, self.model[key]) for key in sorted(self.model, reverse=reverse) if key >= (start or b"")]
        self.scans.append((scan, pairs))

    @precondition(lambda self: self.scans)
    @rule(which=st.integers(0, 2), count=st.sampled_from([1, 3, 100]))
    def go_on_with_scan(self, which: int, count: int) -> None:
        """What comes next is what came next when the scan began, except what has expired since."""
        scan, pairs = self.scans[which % len(self.scans)]
        for key, value in itertools.islice(scan, count):
            while pairs and self.is_over(pairs[0][1]):
                pairs.pop(0)
            assert (key, value) == (pairs[0][0], pairs[0][1].value)
            pairs.pop(0)
        if count == 100:
            assert all(self.is_over(record) for _, record in pairs)
            self.scans.remove((scan, pairs))

    def let_go(self) -> None:
        """Forget snapshots and scans: the store that they belong to is closed."""
        for snapshot, _ in self.snapshots:
            with pytest.raises(StoreClosedError):
                snapshot.get(b"a")
            snapshot.close()
        for scan, _ in self.scans:
            with pytest.raises((StoreClosedError, StopIteration)):
                next(scan)
        self.snapshots.clear()
        self.scans.clear()

    # --- leaving and coming back -----------------------------------------------------------------

    def disturb_hints(self, keep: float) -> None:
        """Take hint files away, or cut them short: they may be lost without harm."""
        for number, hint in enumerate(sorted(self.path.glob("*.hint"))):
            if self.random.random() >= keep:
                if number % 2:
                    hint.unlink()
                else:
                    os.truncate(hint, self.random.randrange(hint.stat().st_size + 1))

    @rule(options=opened_with, keep_hints=st.sampled_from([1.0, 0.5, 0.0]))
    def close_and_reopen(self, options: dict[str, Any], keep_hints: float) -> None:
        self.db.close()
        self.let_go()
        self.disturb_hints(keep_hints)
        self.open(options)
        assert self.db.recovery.clean
        assert self.db.recovery.segments == len(list(self.path.glob("*.seg")))

    @rule(options=opened_with, keep_hints=st.sampled_from([1.0, 0.5, 0.0]))
    def crash_and_reopen(self, options: dict[str, Any], keep_hints: float) -> None:
        harness.crash(self.db)
        self.snapshots.clear()
        self.scans.clear()
        self.disturb_hints(keep_hints)
        self.open(options)  # which asserts that every operation is there

    @rule(options=opened_with, crashes=st.booleans())
    def repair_what_is_whole(self, options: dict[str, Any], crashes: bool) -> None:
        """Nothing is damaged, so nothing is repaired; not after a crash either."""
        if crashes:
            harness.crash(self.db)
            self.snapshots.clear()
            self.scans.clear()
        else:
            self.db.close()
            self.let_go()
        before = harness.snapshot_of(self.path)
        report = repair(self.path)
        assert report.ok, report
        assert harness.snapshot_of(self.path) == before
        self.open(options)
        assert self.db.recovery.salvaged is None

    @precondition(lambda self: len(self.model) > 12)
    @rule(options=opened_with)
    def begin_anew(self, options: dict[str, Any]) -> None:
        """Empty the store; who reads the old one goes on reading it."""
        self.db.close()
        self.let_go()
        self.model.clear()
        self.seq = 0
        self.open(options, "n")

    @rule()
    def look_on(self) -> None:
        """Open for reading beside the writer."""
        with harness.open_store(self.path, "r", files=self.files) as reader:
            self.compare(reader, self.model)
            assert reader.last_seq == self.seq
            report = reader.verify()
            assert report.ok, report

    @precondition(lambda self: len(self.readers) < 2)
    @rule()
    def look_on_for_long(self) -> None:
        """A reader sees one moment for as long as it is open, whatever the writer does meanwhile."""
        self.readers.append((harness.open_store(self.path, "r", files=self.files), dict(self.model)))

    @precondition(lambda self: self.readers)
    @rule()
    def look_away(self) -> None:
        reader, _ = self.readers.pop(0)
        reader.close()

    # --- the comparison --------------------------------------------------------------------------

    def compare(self, db: Store, model: dict[bytes, Record]) -> None:
        now_ms = self.now_ms
        content = {key: model[key].value for key in sorted(model)}
        assert list(db.items()) == list(content.items())
        assert len(db) == len(content)
        assert bool(db) == bool(content)
        assert db.get_many(KEYS) == {key: content[key] for key in KEYS if key in content}
        for key in KEYS:
            record = model.get(key)
            assert (key in db) == (record is not None)
            if record is None:
                assert db.get(key) is None
                continue
            found = db.entry(key)
            assert found[:3] == (key, record.value, record.seq)
            assert found.modified == record.modified_ms / 1000
            assert found.expires == (record.expires_ms / 1000 if record.expires_ms else None)
            assert db.read(key, 2, 5) == record.value[2:7]
            assert db.ttl(key) == ((record.expires_ms - now_ms) / 1000 if record.expires_ms else None)
        self.compare_scans(db, content)

    def compare_scans(self, db: Store | Snapshot, content: dict[bytes, bytes]) -> None:
        choose = self.random.choice
        for _ in range(3):
            prefix = choose([b"", b"", b"k", b"k1", b"a", b"a\xff", b"\xff", b"\x00"])
            bounds: dict[str, Any] = {
                "start": choose([None, *KEYS]),
                "stop": choose([None, *KEYS]),
                "include_start": choose([False, True]),
                "include_stop": choose([False, True]),
                "reverse": choose([False, True]),
                "limit": choose([None, 0, 1, 5]),
            }
            wanted = expected(content, prefix, **bounds)
            assert list(db.scan(prefix, **bounds)) == wanted
            assert list(db.scan_keys(prefix, **bounds)) == [key for key, _ in wanted]

    def check_invariants(self, *arguments: Any, **more: Any) -> None:
        """Compare after every step; hypothesis's own hook for that, so that a step inside a step is none."""
        super().check_invariants(*arguments, **more)
        if not hasattr(self, "db"):
            return
        self.steps += 1
        self.compare(self.db, self.model)
        assert self.db.last_seq == self.seq
        assert self.db.durable_seq <= self.seq
        if self.options["sync"] == "always":
            assert self.db.durable_seq == self.seq
        for reader, model in self.readers:
            assert dict(reader.items()) == self.left_of(model)
        for snapshot, model in self.snapshots:
            seen = self.left_of(model)
            assert dict(snapshot.items()) == seen
            assert len(snapshot) == len(seen)
            self.compare_scans(snapshot, seen)
            assert [snapshot.get(key) for key in KEYS] == [seen.get(key) for key in KEYS]
        # A scan that has come to its end needs none.
        assert 0 <= self.db.stats().open_views - len(self.snapshots) <= len(self.scans)
        if self.steps % 4 == 0:
            report = self.db.verify()
            assert report.ok, report


#: What is rare with large segments is common with small ones.
ALONE = {
    **harness.NO_WORKER,
    **harness.tuned(copied_entries=1, moved_keys=1, hint_from=120, flushed_bytes=200),
}


def run(machine: type[StoreMachine], examples: int, steps: int, *, derandomize: bool) -> None:
    with harness.patched(ALONE):
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                derandomize=derandomize,
                database=None,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


LIVES = 4  # between two looks at the clock


def lives(place: Path, seed: int) -> Iterator[Case]:
    """Lead lives without end, each in a place of its own; a case is one life."""
    for number in itertools.count():
        machine = hypothesis.seed(seed * 1_000_003 + number)(type("AnotherStoreMachine", (StoreMachine,), {}))
        try:
            run(machine, LIVES, 80, derandomize=False)
        except WRONG as error:
            yield Case("state machine lives", error)
        else:
            yield Case("state machine lives", count=LIVES)


def test_a_store_is_a_dict_whatever_happens() -> None:
    run(StoreMachine, 70, 50, derandomize=True)
