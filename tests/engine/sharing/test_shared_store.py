"""A store that several processes write to, from the outside.

Two openings in one process are two processes for the locks of the kernel; where more than that matters, it is two.
"""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import bytekv
from bytekv.engine.log.control_page import WANT
from bytekv.engine.log.files import Files
from bytekv.engine.shared_store import SharedStore
from bytekv.engine.sharing.commit import SharedCommitter
from bytekv.engine.sharing.fast import FastSharedCommitter
from bytekv.errors import (
    ForkedStoreError,
    ReentryError,
    StoreBusyError,
    StoreClosedError,
    StoreFailedError,
    StoreLockedError,
    UnsupportedError,
)
from bytekv.options import Options
from tests.support.harness import QuickFiles

MODES = ["interval", "always", "os"]

Share = Callable[..., SharedStore]


@pytest.fixture
def share(path: Path) -> Iterator[Share]:
    """Open the test's store shared, as often as wanted; closed at the end, when it must be sound."""
    opened: list[SharedStore] = []

    def open_it(files: Files | None = None, **options: object) -> SharedStore:
        options = {"auto_compact": False, **options}
        store = SharedStore(str(path), "c", Options(shared=True, **options), files or QuickFiles())  # type: ignore[arg-type]
        opened.append(store)
        return store

    yield open_it
    for store in opened:
        if not store.closed and store.failure is None:
            report = store.verify()
            assert report.ok, report
            with store._state.lock:
                assert store._segments.check() == []
                assert store._keydir.check() == []
        with suppress(StoreFailedError):
            store.close()


@pytest.mark.parametrize("sync", ["interval", "os"])
@pytest.mark.parametrize("sizes", [(5, 5), (5, 9)], ids=["alike", "of two sizes"])
def test_puts_are_not_kept_waiting_by_what_the_other_has_done(share: Share, sync: str, sizes: tuple[int, int]) -> None:
    one, two = share(sync=sync), share(sync=sync)
    two.update({"a": "0", "z": "0"})
    one["a"] = "0"  # which makes room
    two["z"] = "0"
    assert one["z"] == b"0"
    batch = {"a": b"1" * sizes[0], "b": b"2" * sizes[1]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one._neighbours, "catch_up_with_set", lambda: None)  # by the worker
        patch.setattr(one._neighbours, "catch_up_in_turn", lambda: pytest.fail("it has caught up"))
        two["c"] = "3"
        one.update(batch)
        two["c"] = "3"
        one[b"d"] = b"4"
    wanted = {"a": batch["a"], "b": batch["b"], "c": b"3", "d": b"4", "z": b"0"}
    assert {key: one[key] for key in wanted} == wanted
    assert dict(two.scan()) == {key.encode(): value for key, value in wanted.items()}
    with share(sync=sync).snapshot() as snapshot:
        assert dict(snapshot.scan()) == dict(one.scan())
    two["c"] = "5"
    with one.batch() as both:
        both["a"] = "6"
        del both["c"]
    assert ("c" in one, "c" in two, one["a"], two["a"]) == (False, False, b"6", b"6"), "a delete looks first"
    two["c"] = "7"
    one.update({"a": b"8" * 300_000})
    assert (one["c"], one["a"], two["a"]) == (b"7", b"8" * 300_000, b"8" * 300_000)


@pytest.mark.parametrize("sync", MODES)
def test_a_put_waits_for_anothers_turn_and_is_refused_in_the_end(share: Share, sync: str) -> None:
    one, two = share(sync=sync, busy_timeout_s=0.01), share(sync=sync)
    one["a"] = "1"
    with two.transaction() as transaction:
        transaction["a"] = "2"
        for write in (lambda: one.put("a", "3"), lambda: one.update({"a": "3"})):
            with pytest.raises(StoreBusyError):
                write()
    one["b"] = "4"
    assert (one["a"], two["b"]) == (b"2", b"4")


@pytest.mark.parametrize("sync", MODES)
def test_each_sees_what_the_other_has_done(share: Share, sync: str) -> None:
    one, two = share(sync=sync), share(sync=sync)
    one["a"] = "1"
    assert two["a"] == b"1"
    assert two.incr("n") == 1
    assert one.incr("n") == 2
    two.update({f"k{number}": "v" for number in range(100)})
    assert len(one) == 102
    assert [key for key, _ in one.scan("k9")] == [b"k9", *(b"k9%d" % digit for digit in range(10))]
    assert one.delete("a")
    assert "a" not in two
    assert not two.delete("a")
    one.put("brief", "1", ttl=60)
    assert two.ttl("brief") == 60
    assert two.pop("k0") == b"v"
    assert one.get("k0") is None
    one.clear()
    assert not two
    assert two.last_seq == one.last_seq == 107


@pytest.mark.parametrize("sync", MODES)
def test_a_write_does_not_wait_for_what_others_wrote_to_be_read(share: Share, sync: str) -> None:
    """The put is there for its own process, too, and in its place among the others' (hazard 15b)."""
    one, two = share(sync=sync), share(sync=sync)
    one["a"] = two["b"] = "0"
    view = one.snapshot()
    for number in range(50):
        two[f"b{number}"] = "1"
        seq = one.put("a", str(number))
        assert one.last_seq == seq == two.last_seq
        assert one.entry("a").seq == seq
        assert one["a"] == two["a"] == b"%d" % number
    assert dict(view) == {b"a": b"0", b"b": b"0"}
    assert len(one) == len(two) == 52
    assert [change.key for change in one.changes(one.last_seq - 2)] == [b"b49", b"a"]


def test_the_flattened_put_leaves_what_the_plain_one_does(tmp_path: Path) -> None:
    class Fixed(QuickFiles):
        def random(self, size: int) -> bytes:
            return b"7" * size

    left = []
    for put in (FastSharedCommitter.put, SharedCommitter.put):
        home = tmp_path / put.__qualname__
        options = Options(shared=True, sync="os", auto_compact=False, segment_size_bytes=1000)
        with (
            SharedStore(str(home), "c", options, Fixed()) as db,
            SharedStore(str(home), "c", options, Fixed()) as other,
        ):
            for number in range(60):
                key, value = b"k%d" % (number % 7), b"%d" % number + b"x" * (number * 37 % 90)
                put(db._commit, key, value)  # type: ignore[arg-type]
                if number % 9 == 8:
                    other.put(b"other", value)
                if number % 13 == 12:
                    db.put(b"brief", value, ttl=60)
            files = {file.name: file.read_bytes() for file in home.glob("*.seg")}
            left.append((files, dict(db._keydir.locations), db._keydir.usage.dead, db.stats().dead_bytes))
    assert left[0] == left[1]


def test_a_condition_is_judged_by_what_all_have_written(share: Share) -> None:
    one, two = share(), share()
    seq = one.put("page", "draft")
    two.put("page", "final")
    with pytest.raises(bytekv.ConflictError, match="expected seq 1, found 2"):
        one.put("page", "other", if_seq=seq)
    assert not one.add("page", "new")
    assert two.setdefault("title", "t") == one.setdefault("title", "u") == b"t"


def test_nobody_comes_between_the_reads_and_writes_of_a_transaction(share: Share) -> None:
    one, two = share(), share(busy_timeout_s=0.0)
    one["n"] = "1"
    with one.transaction() as tx:
        tx["n"] = str(int(tx["n"]) + 1)
        with pytest.raises(StoreBusyError) as caught:
            two["n"] = "7"
        assert caught.value.pid == os.getpid()
        assert two["n"] == b"1", "a read waits for nobody"
        with pytest.raises(ReentryError):
            one["n"] = "8"
    assert two["n"] == b"2"
    two["n"] = "7"
    assert one["n"] == b"7"


def test_a_transaction_that_is_dropped_lets_the_others_in(share: Share) -> None:
    """Hazard 21."""
    one, two = share(), share(busy_timeout_s=0.0)
    one["n"] = "1"
    tx = one.transaction()
    tx.__enter__()
    tx["n"] = "2"
    with pytest.raises(StoreBusyError):
        two["n"] = "3"
    del tx
    two["n"] = "3"
    assert one["n"] == b"3"


def test_threads_and_openings_count_together(share: Share) -> None:
    stores = [share(), share()]

    def count(store: SharedStore) -> None:
        for _ in range(100):
            store.incr("n")
            store.put(threading.current_thread().name, "x")

    threads = [threading.Thread(target=count, args=(stores[number % 2],)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stores[0]["n"] == stores[1]["n"] == b"400"


def test_segments_are_sealed_and_compacted_beside_the_others(share: Share) -> None:
    """Hazard 11: each publishes a manifest, and none forgets what the other has published."""
    stores = [share(segment_size_bytes=400, compact_dead_bytes=0) for _ in range(3)]
    content: dict[bytes, bytes] = {}
    for number in range(120):
        store = stores[number % 3]
        key = b"k%d" % (number % 7)
        store[key] = content[key] = b"%d" % number + b"x" * (number % 90)
        if number % 10 == 9:
            stores[number % 2].compact()
        assert dict(stores[(number + 1) % 3]) == content
    assert len({tuple(store._segments.lengths()) for store in stores}) <= 3
    for store in stores:
        assert store.stats().keys == 7


def test_what_a_snapshot_needs_is_not_removed_by_another_process(share: Share) -> None:
    """Hazard 12: also where it has never opened the files."""
    one, two = share(segment_size_bytes=400, max_open_segments=2), share(segment_size_bytes=400, compact_dead_bytes=0)
    for number in range(60):
        two[f"k{number}"] = "old" + "x" * 40
    with one.snapshot() as view:
        for number in range(60):
            two[f"k{number}"] = "new"
        two.compact()
        two.compact()
        assert all(value.startswith(b"old") for _, value in view.items())
    two.compact()
    assert len(list(Path(one.path).glob("*.seg"))) == len(two._segments.manifest.segments), "now they may go"
    assert one["k59"] == b"new"


def test_the_last_one_leaves_a_clean_store(share: Share, path: Path) -> None:
    one, two = share(), share()
    one["a"] = "1"
    one.close()
    two["b"] = "2"
    two.close()
    with bytekv.open(path, "w") as db:
        assert db.recovery.clean
        assert dict(db) == {b"a": b"1", b"b": b"2"}


NEEDS_NO_LOCK = r" \(opening with flag 'r' needs no lock\)"
SHARES, ALONE = (
    "shares it; open both with shared=True",
    "shares it; flag 'n', .* and repair need the store for themselves",
)


def refusal(do: Callable[[], object]) -> StoreLockedError:
    with pytest.raises(StoreLockedError) as raised:
        do()
    return raised.value


def test_who_is_refused_is_told_to_open_both_in_the_same_way(share: Share, path: Path) -> None:
    def shared() -> object:
        return bytekv.open(path, shared=True)

    with bytekv.open(path):
        error = refusal(shared)
        assert (error.pid, error.shared, error.wanted) == (os.getpid(), False, "shared")
        assert re.search(
            f"by this process, which does not {SHARES.replace('shares', 'share')}{NEEDS_NO_LOCK}$", str(error)
        )
    share()
    error = refusal(lambda: bytekv.open(path))
    assert (error.pid, error.shared, error.wanted) == (os.getpid(), True, "exclusive")
    assert re.search(f"by this process, which {SHARES}{NEEDS_NO_LOCK}$", str(error))
    for alone in (
        lambda: bytekv.open(path, "n", shared=True),
        lambda: bytekv.open(path, shared=True, recover="salvage"),
        lambda: bytekv.repair(path),
    ):
        error = refusal(alone)
        assert (error.pid, error.shared, error.wanted) == (os.getpid(), True, "alone")
        assert re.search(f"by this process, which {ALONE}{NEEDS_NO_LOCK}$", str(error))


def _try_each(path: str, answers: Any) -> None:
    for ask in (
        lambda: bytekv.open(path),
        lambda: bytekv.open(path, shared=True),
        lambda: bytekv.open(path, "n", shared=True),
        lambda: bytekv.repair(path),
    ):
        try:
            found = ask()
        except StoreLockedError as error:
            answers.put((error.pid, error.shared, str(error)))
        else:
            found.close()
            answers.put(None)


def test_another_process_is_told_so_too_and_no_pid_that_is_long_gone(share: Share, path: Path) -> None:
    """``LOCK`` of a store that several share names none of them, and so the error must not."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()

    def ask() -> list[Any]:
        child = context.Process(target=_try_each, args=(str(path), answers))
        child.start()
        found = [answers.get(timeout=60) for _ in range(4)]
        child.join()
        return found

    with bytekv.open(path):
        exclusive, shared, emptied, repaired = ask()
        assert exclusive[:2] == shared[:2] == emptied[:2] == repaired[:2] == (os.getpid(), False)
        assert (
            exclusive[2] == repaired[2] == f"{path}: locked by process {os.getpid()}{NEEDS_NO_LOCK}".replace("\\", "")
        )
        for text in (shared[2], emptied[2]):
            assert f"by process {os.getpid()}, which does not share it; open both with shared=True (" in text
    share()
    exclusive, shared, emptied, repaired = ask()
    assert shared is None
    assert exclusive[:2] == emptied[:2] == repaired[:2] == (None, True)
    assert re.search(f"by another process, which {SHARES}{NEEDS_NO_LOCK}$", exclusive[2])
    assert re.search(f"by another process, which {ALONE}{NEEDS_NO_LOCK}$", emptied[2])
    assert emptied[2] == repaired[2]
    answers.close()
    answers.join_thread()


def test_one_that_shares_and_one_that_does_not(share: Share, path: Path) -> None:
    one = share()
    one["a"] = "1"
    with pytest.raises(StoreLockedError):
        bytekv.open(path)
    with pytest.raises(StoreLockedError):
        bytekv.open(path, "n", shared=True)
    with pytest.raises(StoreLockedError):
        bytekv.repair(path)
    with bytekv.open(path, "r") as reader:
        assert reader["a"] == b"1"
        one["a"] = "2"
        assert reader.refresh()
        assert reader["a"] == b"2"
    one.close()
    with bytekv.open(path), pytest.raises(StoreLockedError):
        share()


def test_where_it_is_not_possible_it_is_said(path: Path) -> None:
    with pytest.raises(UnsupportedError, match="io='pread'"):
        bytekv.open(path, shared=True, io="pread")

    class Elsewhere(Files):
        def file_system(self, path: str) -> str:
            return "btrfs"

    with pytest.raises(UnsupportedError, match="btrfs"):
        SharedStore(str(path), "c", Options(shared=True), Elsewhere())


def test_what_concerns_all_is_as_the_first_has_chosen_it(share: Share) -> None:
    share(segment_size_bytes=4096, expiry_grace_s=1.5, keep_changes_bytes=77)
    two = share(segment_size_bytes=8192, sync="os")
    assert two.options.segment_size_bytes == 4096
    assert (two.options.expiry_grace_s, two.options.keep_changes_bytes, two.options.sync) == (1.5, 77, "os")


def test_after_a_failed_sync_nobody_writes(share: Share) -> None:
    """Hazard 13."""

    class Failing(QuickFiles):
        fails = False

        def sync(self, descriptor: int, path: str) -> None:
            if self.fails:
                raise StoreFailedError(f"{path}: the disk says no")
            super().sync(descriptor, path)

    files = Failing()
    one, two = share(files), share()
    one["a"] = "1"
    files.fails = True
    with pytest.raises(StoreFailedError):
        one.sync()
    files.fails = False
    with pytest.raises(StoreFailedError):
        two["b"] = "2"
    with pytest.raises(StoreFailedError):
        two.incr("n")
    assert two["a"] == b"1", "reading goes on"


@pytest.mark.parametrize("waited_us", [4_000, 6_000])
@pytest.mark.parametrize("write", [lambda db: db.put(b"a", b"1"), lambda db: db.incr("n")])
def test_who_has_waited_for_long_is_let_in(
    share: Share, write: Callable[[SharedStore], object], waited_us: int
) -> None:
    """Hazard 16: the kernel gives a lock to the process that asks first, and one that never pauses always does."""

    class Pausing(QuickFiles):
        now_s = 1000.0
        paused_s = 0.0

        def monotonic(self) -> float:
            return self.now_s

        def pause(self, seconds: float) -> None:
            self.paused_s += seconds

    files = Pausing()
    db = share(files, sync="os")
    db[b"a"] = b"0"
    files.paused_s = 0.0
    db._page.words[WANT] = int(files.now_s * 1e6) - waited_us
    write(db)
    is_long = waited_us > 5_000
    assert (files.paused_s > 0, db._page.words[WANT] == 0) == (is_long, is_long)
    db._page.words[WANT] = 0


def test_a_segment_is_left_while_it_is_synced(share: Share) -> None:
    """One thread syncs, another finds that a neighbour has begun the next segment. The descriptor was closed under the
    sync, which failed (EBADF) and stopped all writers, or might have synced what had got its number since."""

    class Slow(QuickFiles):
        meanwhile: Callable[[], object] | None = None

        def sync(self, descriptor: int, path: str) -> None:
            call, self.meanwhile = self.meanwhile, None
            if call is not None:
                before = os.fstat(descriptor).st_ino
                call()
                assert os.fstat(descriptor).st_ino == before, "the number means another file by now"
            super().sync(descriptor, path)

    files = Slow()
    one, two = share(files, segment_size_bytes=400), share(segment_size_bytes=400)
    one["a"] = "1"

    def read_elsewhere() -> None:
        for number in range(5):
            two[f"b{number}"] = "x" * 200
        reader = threading.Thread(target=lambda: one.get("b4"))
        reader.start()
        reader.join()
        gc.collect()

    files.meanwhile = read_elsewhere
    one.sync()
    assert one.failure is None
    one["c"] = "1"


def test_a_closed_one_refuses_and_the_other_goes_on(share: Share) -> None:
    one, two = share(), share()
    one["a"] = "1"
    one.close()
    one.close()
    for call in (lambda: one["a"], lambda: one.put("a", "2"), lambda: len(one), lambda: list(one), one.compact):
        with pytest.raises(StoreClosedError):
            call()
    assert two["a"] == b"1"


def test_a_handle_is_pickled_as_its_path_and_options(share: Share) -> None:
    one = share(sync="os", busy_timeout_s=7.0)
    one["a"] = "1"
    two = pickle.loads(pickle.dumps(one))
    assert two["a"] == b"1"
    assert (two.options.sync, two.options.busy_timeout_s) == ("os", 7.0)
    two["a"] = "2"
    assert one["a"] == b"2"
    two.close()
    for refused in (copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="open the path once more"):
            refused(one)


def test_waiting_for_what_another_writes(share: Share) -> None:
    one, two = share(), share()
    seen = one.put("a", "1")
    assert two.wait(seen - 1) == seen
    writer = threading.Thread(target=two.put, args=("b", "2"))
    writer.start()
    assert one.wait(seen, timeout=30) == seen + 1
    writer.join()
    with pytest.raises(TimeoutError, match=f"after seq {seen + 1} within 0.0 s"):
        one.wait(timeout=0.0)
    with pytest.raises(TypeError):
        one.wait("1")  # type: ignore[arg-type]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_goes_on_with_what_it_has_inherited(share: Share) -> None:
    db = share()
    db["n"] = "1"
    view = db.snapshot()
    children = []
    for number in range(3):
        child = os.fork()
        if not child:
            status = 1
            try:
                with pytest.raises(ForkedStoreError):
                    view["n"]
                for _ in range(50):
                    db.incr("n")
                with db.transaction() as tx:
                    tx[f"child {number}"] = tx["n"]
                db.close()
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    for _ in range(50):
        db.incr("n")
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert db["n"] == b"201"
    assert db.count("child") == 3
    assert view["n"] == b"1"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_sleeping_child_does_not_keep_a_dead_parents_turn(share: Share, path: Path) -> None:
    """Hazard 4: a child that was forked in the middle of a transaction of another thread."""
    program = """
import os, signal, sys, bytekv
db = bytekv.open(sys.argv[1], shared=True)
tx = db.transaction()
tx.__enter__()
if os.fork() == 0:
    print(os.getpid(), flush=True)
    signal.pause()
print(flush=True)
signal.pause()
"""
    db = share(busy_timeout_s=20.0)
    db["a"] = "1"
    parent = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    lines = [parent.stdout.readline(), parent.stdout.readline()]
    parent.kill()
    parent.wait()
    parent.stdout.close()
    try:
        db["a"] = "2"
    finally:
        os.kill(int("".join(lines)), signal.SIGKILL)
    assert db["a"] == b"2"


@pytest.mark.skipif(sys.platform == "win32", reason="made of signals")
def test_a_stopped_process_is_named(share: Share, path: Path) -> None:
    """Hazard 5: its transaction keeps writers out; readers do not notice."""
    program = """
import signal, sys, bytekv
db = bytekv.open(sys.argv[1], shared=True)
with db.transaction() as tx:
    print(flush=True)
    signal.pause()
"""
    db = share(busy_timeout_s=0.05)
    db["a"] = "1"
    holder = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    try:
        holder.stdout.readline()
        holder.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, holder.pid, os.WSTOPPED)
        with pytest.raises(StoreBusyError) as caught:
            db["a"] = "2"
        assert (caught.value.pid, caught.value.doing) == (holder.pid, "stopped")
        assert db["a"] == b"1"
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    db["a"] = "2"
    assert db["a"] == b"2"


def test_a_backup_that_is_shared_stays_one_until_it_is_written_to(share: Share, path: Path, tmp_path: Path) -> None:
    with bytekv.open(tmp_path / "origin") as origin:
        origin["a"] = "1"
        origin.backup(path)
        one, two = share(), share()
        assert one["a"] == two["a"] == b"1"
        one.close()
        two.close()
        origin["a"] = "2"
        origin.backup(path)
        one, two = share(), share()
        one["b"] = "3"
        two["a"] = "4"
        assert dict(one) == dict(two) == {b"a": b"4", b"b": b"3"}
        one.close()
        two.close()
        with pytest.raises(bytekv.NotAStoreError):
            origin.backup(path)
