"""Several stores of one directory against one dict: whichever of them a call goes to, there is one truth.

The kernel's locks take each opening for a process of its own, so what shares a store here needs no processes. The
machine is that of a store which nobody shares; but each call goes to one of two or three openings, chosen anew even
between the calls of one step. Some are slower than others to hear of what was written, some die in the middle of it.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from bytekv import ChangesLostError, StoreBusyError, StoreLockedError
from bytekv.engine.shared_store import SharedStore
from bytekv.engine.store import Store
from tests.model.test_state_machine import LIVES, Interruption, MachineFiles, StoreMachine, keys, run, values
from tests.support import harness
from tests.support.harness import WRONG, Case
from tests.support.sharing import PIECES, die_writing, kill, share

shared_with = st.fixed_dictionaries(
    {
        "sync": st.sampled_from(["interval", "always", "os"]),
        "segment_size_bytes": st.sampled_from([400, 256, 1_000, 4_096]),
        "max_open_segments": st.sampled_from([None, 1, 3]),
        "verify_reads": st.sampled_from([True, False]),
        "expiry_grace_s": st.sampled_from([0.0, 10.0]),
        "auto_compact": st.booleans(),
        "compact_dead_bytes": st.sampled_from([0, 300]),
        "compact_dead_ratio": st.sampled_from([0.5, 0.1]),
        "compact_small_files": st.sampled_from([8, 3, 2]),
        "keep_changes_bytes": st.sampled_from([None, 0, 2_000]),
    }
)


class NeighboursFiles(MachineFiles):
    """The clock goes on while one waits for another, who will not come in the meantime."""

    waited_s = 0.0

    def pause(self, seconds: float) -> None:
        self.waited_s += seconds + 0.1

    def monotonic(self) -> float:
        return super().monotonic() + self.waited_s


class SharedMachine(StoreMachine):
    """Lead the life of a store in two or three openings at once."""

    def __init__(self) -> None:
        super().__init__()
        self.files = NeighboursFiles()
        self.stores: list[SharedStore] = []
        self.fixed: SharedStore | None = None

    # --- whose turn it is ------------------------------------------------------------------------

    @property
    def db(self) -> Store:  # type: ignore[override]
        """Return any of them: what the one has done, the other must know."""
        if self.fixed is not None:
            return self.fixed
        if not self.stores:
            raise AttributeError("db")
        return self.random.choice(self.stores)

    @contextlib.contextmanager
    def one(self, which: int | None = None) -> Iterator[SharedStore]:
        """Let the calls of a step go to the same store."""
        if self.fixed is not None:
            yield self.fixed
            return
        self.fixed = self.stores[which % len(self.stores)] if which is not None else self.random.choice(self.stores)
        try:
            yield self.fixed
        finally:
            self.fixed = None

    def open(self, options: dict[str, Any], flag: str = "c") -> None:
        options.pop("io", None)
        options.pop("recover", None)
        self.options = options
        self.stores = []
        for number in range(self.random.choice([2, 2, 3])):
            self.open_one(flag if not number else "c")

    def open_one(self, flag: str = "c") -> None:
        store = share(self.path, flag, files=self.files, **self.options)
        self.stores.append(store)
        assert store.last_seq == self.seq
        if self.options["sync"] == "always":
            assert store.durable_seq == self.seq

    def forget(self, store: Store) -> None:
        """Let go of the snapshots and scans of a store that is closed."""
        for snapshot, _ in self.snapshots:
            if snapshot._reader is store._reader:  # type: ignore[attr-defined]
                snapshot.close()
        self.snapshots = [pair for pair in self.snapshots if pair[0]._reader is not store._reader]  # type: ignore[attr-defined]
        self.scans.clear()

    def teardown(self) -> None:
        self.snapshots.clear()
        self.scans.clear()
        for store in self.stores:
            store.close()
        self.stores = []
        super().teardown()

    # --- what differs ----------------------------------------------------------------------------

    @rule(which=st.integers(0, 2))
    def leave_and_come_back(self, which: int) -> None:
        store = self.stores.pop(which % len(self.stores))
        self.forget(store)
        store.close()
        self.open_one("w")

    @rule(which=st.integers(0, 2), key=keys, value=values, piece=st.sampled_from(list(PIECES)))
    def die_while_writing(self, which: int, key: bytes, value: bytes, piece: str) -> None:
        store = self.stores.pop(which % len(self.stores))
        self.forget(store)
        if die_writing(store, key, value, piece):
            self.wrote(key, value)
        self.open_one("w")

    @rule()
    def others_are_kept_out(self) -> None:
        """Who needs the store alone does not get it."""
        for arguments in ({}, {"shared": True, "recover": "salvage"}):
            with pytest.raises(StoreLockedError):
                kind = share if arguments else harness.open_store
                kind(self.path, "w", files=self.files, **arguments)
        with pytest.raises(StoreLockedError):
            share(self.path, "n", files=self.files)
        with pytest.raises(StoreLockedError):
            harness.repair(self.path)

    @rule(key=keys, value=values, other_key=keys)
    def transaction_keeps_others_out(self, key: bytes, value: bytes, other_key: bytes) -> None:
        with self.one() as mine:
            others = [store for store in self.stores if store is not mine]
            try:
                with mine.transaction() as tx:
                    tx[key] = value
                    for other in others:
                        record = self.model.get(key)
                        assert other.get(key) == (record.value if record else None)
                        with pytest.raises(StoreBusyError):
                            other.put(other_key, b"never")
                    assert tx[key] == value
                    if len(value) % 3 == 1:
                        raise Interruption
            except Interruption:
                return
            self.wrote(key, value)

    @rule()
    def compact(self) -> None:
        with self.one() as store:
            store.compact()

    @rule(first=st.floats(0, 0.999), length=st.floats(0, 1))
    def compact_a_part(self, first: float, length: float) -> None:
        self.compact_run(first, length, lambda: None)

    @rule(first=st.floats(0, 0.999), length=st.floats(0, 1), after=st.integers(0, 20))
    def compact_until_interrupted(self, first: float, length: float, after: int) -> None:
        left = after

        def pause() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Interruption

        with contextlib.suppress(Interruption):
            self.compact_run(first, length, pause)

    @rule(
        first=st.floats(0, 0.999),
        length=st.floats(0, 1),
        script=st.lists(
            st.tuples(keys, st.none() | values)
            | st.sampled_from(["clear", "sync", "look_on", "take_snapshot", "close_snapshot", "fill_some", "leave"]),
            max_size=12,
        ),
    )
    def compact_while_others_write(self, first: float, length: float, script: list[Any]) -> None:
        steps = iter(script)

        def pause() -> None:
            compacting, self.fixed = self.fixed, None
            step = next(steps, None)
            try:
                if step == "close_snapshot":
                    if self.snapshots:
                        self.close_snapshot(which=0)
                elif step == "fill_some":
                    self.fill(first=3, count=5, value=b"x" * 50)
                elif step == "leave":
                    where = [store is compacting for store in self.stores].index(True)
                    self.leave_and_come_back(which=1 + where)
                elif isinstance(step, str):
                    getattr(self, step)()
                elif step is not None:
                    key, value = step
                    if value is None:
                        self.delete(key)
                    else:
                        self.put(key, value)
            finally:
                self.fixed = compacting

        self.compact_run(first, length, pause)

    def compact_run(self, first: float, length: float, pause: Callable[[], None]) -> None:
        with self.one() as store:

            def work() -> None:
                if victims := self.run_of_segments(first, length):
                    store._maintenance.compactor.run(victims, pause, lambda _: None)

            store._page.upkeep.run(lambda: store._maintenance._with_upkeep(work), 0)  # type: ignore[attr-defined]

    @rule()
    def choose_and_compact(self) -> None:
        with self.one() as store:
            store.refresh()
            super().choose_and_compact()

    @rule()
    def work(self) -> None:
        with self.one() as store:
            store._work()
            assert store.stats().background_error is None

    @precondition(lambda self: len(self.model) > 12)
    @rule()
    def clear(self) -> None:
        self.db.clear()
        self.seq += bool(self.model)
        self.model.clear()

    @rule()
    def sync(self) -> None:
        with self.one() as store:
            store.sync()
            assert store.durable_seq == self.seq

    @rule(since=st.integers(0, 30))
    def changes(self, since: int) -> None:
        """What has changed lately, or that this is no longer known."""
        with contextlib.suppress(ChangesLostError):
            found = list(self.db.changes(max(0, self.seq - since)))
            newest: dict[bytes, Any] = {}
            for change in found:
                if change.op == "clear":
                    newest.clear()
                else:
                    newest[change.key] = change
            for key, change in newest.items():
                record = self.model.get(key)
                if change.op == "put" and record is not None:
                    assert (change.value, change.seq) == (record.value, record.seq)

    @rule(options=shared_with, keep_hints=st.sampled_from([1.0, 0.5, 0.0]))
    def close_and_reopen(self, options: dict[str, Any], keep_hints: float) -> None:
        self.leave_all(lambda store: store.close())
        with harness.open_store(self.path, "r", files=self.files) as reader:
            assert reader.recovery.clean
        self.disturb_hints(keep_hints)
        self.open(options)

    @rule(options=shared_with, keep_hints=st.sampled_from([1.0, 0.5, 0.0]))
    def crash_and_reopen(self, options: dict[str, Any], keep_hints: float) -> None:
        self.leave_all(kill)
        self.disturb_hints(keep_hints)
        self.open(options)

    @rule(options=shared_with, crashes=st.booleans())
    def repair_what_is_whole(self, options: dict[str, Any], crashes: bool) -> None:
        self.leave_all(kill if crashes else lambda store: store.close())
        report = harness.repair(self.path)
        assert report.ok, report
        self.open(options)

    @precondition(lambda self: len(self.model) > 12)
    @rule(options=shared_with)
    def begin_anew(self, options: dict[str, Any]) -> None:
        self.leave_all(lambda store: store.close())
        self.model.clear()
        self.seq = 0
        self.open(options, "n")

    def leave_all(self, leave: Callable[[SharedStore], object]) -> None:
        stores, self.stores = self.stores, []
        self.random.shuffle(stores)
        for store in stores:
            self.forget(store)
            leave(store)

    # --- the comparison --------------------------------------------------------------------------

    def check_invariants(self, *arguments: Any, **more: Any) -> None:
        """Compare one of them with the model; the others stay behind for a while."""
        if not self.stores or self.fixed is not None:
            return
        self.steps += 1
        if self.random.random() < 0.3:
            return  # two steps in a row that nobody has looked at
        with self.one() as store:
            self.compare(store, self.model)
            assert store.last_seq == self.seq
            assert store.durable_seq <= self.seq
            if self.options["sync"] == "always":
                assert store.durable_seq == self.seq
            for reader, model in self.readers:
                assert dict(reader.items()) == self.left_of(model)
            for snapshot, model in self.snapshots:
                seen = self.left_of(model)
                assert dict(snapshot.items()) == seen
                assert len(snapshot) == len(seen)
                self.compare_scans(snapshot, seen)
            with store._state.lock:
                assert store._segments.check() == []
                assert store._keydir.check() == []
            if self.steps % 4 == 0:
                report = store.verify()
                assert report.ok, report


def test_shared_stores_are_one_dict_whatever_happens() -> None:
    run(SharedMachine, 12, 50, derandomize=True)


def shared_lives(place: Path, seed: int) -> Iterator[Case]:
    """Lead lives without end; a case is one life."""
    for number in itertools.count():
        machine = hypothesis.seed(seed * 1_000_003 + number)(type("AnotherSharedMachine", (SharedMachine,), {}))
        try:
            run(machine, LIVES, 60, derandomize=False)
        except WRONG as error:
            yield Case("lives of a shared store", error)
        else:
            yield Case("lives of a shared store", count=LIVES)
