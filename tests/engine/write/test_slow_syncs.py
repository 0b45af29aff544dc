"""``sync="always"`` on a slow disk: one thread leads, the others wait however long it takes, and each sync serves all.

Waiters whose patience had ended used to queue up to lead, although a leader lived: on a disk that needed longer than
that for two syncs, they synced again what was durable by then, one after the other, and all others starved.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bytekv.engine.codec.entry import OVERHEAD
from bytekv.engine.codec.manifest import SEGMENT_HEADER_SIZE
from bytekv.engine.store import Store
from tests.support.harness import NO_WORKER, QuickFiles, open_store, patched, tuned

_NO_PATIENCE = NO_WORKER | tuned(patience_s=1e-6)


class SlowDisk(QuickFiles):
    """A disk whose syncs of segments take until the test says that one may end."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = self.syncs = 0
        self.may_end: Callable[[], bool] = lambda: True

    def sync(self, descriptor: int, path: str) -> None:
        if path.endswith(".seg"):
            self.begun += 1
            while not self.may_end():
                os.sched_yield()
        super().sync(descriptor, path)
        self.syncs += path.endswith(".seg")


def _run(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.daemon = True
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


@pytest.mark.parametrize(("count", "syncs"), [(2, 50), (32, 20), (1000, 4)])
def test_each_sync_serves_all_who_wait(tmp_path: Path, count: int, syncs: int) -> None:
    """No sync ends before each writer waits for one: so two syncs serve all of them, and nobody waits for a third."""
    disk = SlowDisk()
    with patched(_NO_PATIENCE), open_store(tmp_path, files=disk, sync="always") as store:
        commit = store._commit
        waits: list[int] = []  # syncs that ended during a put
        impatient: list[int] = []  # writers that wait no longer to be woken
        store["first"] = ""  # begins a segment, which takes a sync of its own
        before = disk.syncs

        def all_wait_or_it_is_enough() -> bool:
            impatient.append(sum(waiter.has_left for waiter in list(commit.durability.group.waiting)))
            return disk.syncs - before >= syncs or commit.state.seq - commit.state.durable_seq == count

        def write(number: int) -> None:
            while disk.syncs - before < syncs:
                began = disk.syncs
                store[b"%d" % number] = b""
                waits.append(min(disk.syncs, before + syncs) - began)  # the syncs after those wait for nobody

        disk.may_end = all_wait_or_it_is_enough
        try:
            _run([threading.Thread(target=write, args=(number,)) for number in range(count)])
        finally:
            disk.may_end = lambda: True
        assert len(store) == 1 + count
        assert len(waits) >= count * syncs // 2
        assert max(waits) <= 2
        assert max(impatient) <= 1, "only one that leads itself"


def _join_and_vanish(store: Store) -> None:
    """Be a leader that is interrupted before it begins."""
    with store._commit.state.lock:
        assert store._commit.durability.group.join(store._commit.state.seq + 1) is None


def test_a_leader_that_never_began_is_replaced(tmp_path: Path) -> None:
    disk = SlowDisk()
    with patched(_NO_PATIENCE), open_store(tmp_path, files=disk, sync="always") as store:
        _join_and_vanish(store)
        before = disk.syncs
        _run([threading.Thread(target=store.put, args=(b"%d" % number, b"")) for number in range(8)])
        assert len(store) == 8
        assert 1 <= disk.syncs - before <= 8
        assert not store._commit.state.sync_lock_is_owned()


def test_a_waiter_that_replaces_a_leader_gives_the_lock_back(tmp_path: Path) -> None:
    with patched(_NO_PATIENCE), open_store(tmp_path, files=SlowDisk(), sync="always") as store:
        _join_and_vanish(store)
        store["a"] = ""
        assert not store._commit.state.sync_lock_is_owned()
        _run([threading.Thread(target=store.put, args=("b", ""))])


def test_a_leader_that_dies_is_followed_by_the_next(tmp_path: Path) -> None:
    disk = SlowDisk()
    with patched(_NO_PATIENCE), open_store(tmp_path, files=disk, sync="always") as store:
        store["first"] = ""
        first = store.last_seq
        dead: list[threading.Thread] = []

        def die_once_all_wait() -> bool:
            if dead or store._commit.state.seq - first < 8:
                return bool(dead)
            dead.append(threading.current_thread())
            raise KeyboardInterrupt

        disk.may_end = die_once_all_wait

        def put(number: int) -> None:
            try:
                store[b"%d" % number] = b""
            except KeyboardInterrupt:
                assert dead == [threading.current_thread()]

        _run([threading.Thread(target=put, args=(number,)) for number in range(8)])
        assert len(store) == 9


def test_a_leader_syncs_nothing_that_is_durable_already(tmp_path: Path) -> None:
    """`verify` syncs for all who wait, too; a leader that has waited for it finds its write durable."""
    disk = SlowDisk()
    with patched(NO_WORKER), open_store(tmp_path, files=disk, sync="always") as store:
        store["first"] = ""
        commit = store._commit
        writer = threading.Thread(target=store.put, args=("a", ""))
        with commit.state.sync_lock:
            writer.start()
            while not commit.durability.group._leading:
                os.sched_yield()
            before = disk.syncs
            with commit.state.lock:
                commit.durability.sync_what_waits()
        writer.join(20)
        assert not writer.is_alive()
        assert disk.syncs - before == 1
        assert not commit.durability.group._leading, "the next may lead"


def test_a_lock_tells_whether_it_is_held(tmp_path: Path) -> None:
    """A waiter looks at the lock of syncs without taking it; that it can be seen is no promise of Python's."""
    with open_store(tmp_path) as store:
        store._at_exit()
        for lock in (threading.RLock(), store._commit.state.sync_lock):
            assert not repr(lock).startswith("<locked")
            with lock:
                assert repr(lock).startswith("<locked")


def test_what_was_shown_by_half_is_shown_before_anybody_reads(tmp_path: Path) -> None:
    """An interrupt struck while a durable batch was being shown. The first reader declared all well and then waited for
    a sync of its own; for as long, all others saw half of the batch."""
    disk = SlowDisk()
    with patched(NO_WORKER), open_store(tmp_path, files=disk, sync="always") as store:
        store["first"] = ""
        keydir, put = store._keydir, store._keydir.put

        def interrupted(key: bytes, *more: Any) -> None:
            if key == b"b":
                raise KeyboardInterrupt
            put(key, *more)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(keydir), "put", lambda _, *arguments: interrupted(*arguments))
            with pytest.raises(KeyboardInterrupt):
                store.update({"a": "1", "b": "2"})
        before = disk.syncs
        found = store.get_many(["a", "b"])
        assert (found, disk.syncs) == ({b"a": b"1", b"b": b"2"}, before)


def test_what_a_clear_has_made_dead_is_counted_though_others_wait(tmp_path: Path) -> None:
    """Counting was put off until nobody waited for a sync: until then `stats` told of what had gone as if it lived."""
    disk = SlowDisk()
    with patched(NO_WORKER), open_store(tmp_path, files=disk, sync="always") as store:
        store.update({b"%d" % number: bytes(100) for number in range(100)})
        commit, seq, before = store._commit, store.last_seq, disk.syncs
        # The clear's sync ends once the put has been appended; that of the put does not end.
        disk.may_end = lambda: disk.syncs == before and commit.state.seq == seq + 2
        clear = threading.Thread(target=store.clear, daemon=True)
        put = threading.Thread(target=store.put, args=("a", bytes(100)), daemon=True)
        try:
            begun = disk.begun
            clear.start()
            while disk.begun == begun:
                os.sched_yield()
            put.start()
            clear.join(20)
            assert (commit.state.durable_seq, commit.durability.has_waiting) == (seq + 1, True)
            waiting = OVERHEAD + 1 + 100
            assert (store.stats().keys, store.stats().live_bytes) == (0, SEGMENT_HEADER_SIZE + waiting)
        finally:
            disk.may_end = lambda: True
        put.join(20)
        assert (store.stats().keys, store.stats().live_bytes) == (1, SEGMENT_HEADER_SIZE + waiting)
