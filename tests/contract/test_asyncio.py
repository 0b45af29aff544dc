"""bytekv in an event loop, as docs/how-to/asyncio.md says: calls that may wait go through `asyncio.to_thread`.

What is to be shown: while a sync is under way the loop goes on, and a call that was cancelled has happened or has not.
The disk here is a gate that the test opens when it likes; nothing depends on time.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bytekv.engine.store import Store
from bytekv.errors import BytekvError, ReentryError, StoreFailedError
from tests.support.harness import QuickFiles, open_store


class GatedFiles(QuickFiles):
    """Syncs of segments wait at a gate once it is shut."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = 0
        self.fails = False

    def sync(self, descriptor: int, path: str) -> None:
        if path.endswith(".seg") and not self.gate.is_set():
            self.waiting += 1
            self.gate.wait()
            self.waiting -= 1
            if self.fails:
                self.fails = False
                raise StoreFailedError(f"{path}: sync failed")
        super().sync(descriptor, path)


@pytest.fixture
def files() -> Iterator[GatedFiles]:
    files = GatedFiles()
    yield files
    files.gate.set()


@pytest.fixture
def db(path: Path, files: GatedFiles) -> Iterator[Store]:
    with open_store(path, files=files, sync="always") as db:
        db[b"old"] = b"1"
        yield db


async def until(condition: Callable[[], object]) -> int:
    """Let the loop turn until something is so; return how many turns it took."""
    turns = 0
    while not condition():
        await asyncio.sleep(0)
        turns += 1
    return turns


async def turn(times: int) -> None:
    """Let the loop turn so many times."""
    for _ in range(times):
        await asyncio.sleep(0)


def kept(path: Path, key: bytes) -> list[bytes | None]:
    """Return the value of a key at two openings, one after the other."""
    found = []
    for _ in range(2):
        with open_store(path) as db:
            found.append(db.get(key))
    return found


# --- the loop goes on ------------------------------------------------------------------------------


def test_the_loop_turns_and_reads_while_writes_wait_for_the_disk(db: Store, files: GatedFiles) -> None:
    async def main() -> None:
        files.gate.clear()
        puts = [asyncio.create_task(asyncio.to_thread(db.put, b"%d" % number, b"new")) for number in range(4)]
        await until(lambda: files.waiting)
        for _ in range(1000):
            await asyncio.sleep(0)
            assert db[b"old"] == b"1"
            assert b"0" not in db  # nobody sees what is not durable
        assert not any(put.done() for put in puts)
        files.gate.set()
        seqs = await asyncio.gather(*puts)
        assert sorted(seqs) == [2, 3, 4, 5]
        assert db.durable_seq == 5
        assert db[b"0"] == b"new"

    asyncio.run(main())


@pytest.mark.parametrize("verb", ["batch", "transaction", "incr", "delete", "sync", "compact", "backup", "close"])
def test_whatever_syncs_leaves_the_loop_alone(files: GatedFiles, path: Path, verb: str) -> None:
    writes_wait = verb in ("batch", "transaction", "incr", "delete")
    db = open_store(path, files=files, sync="always" if writes_wait else "os")
    db.update({b"old": b"0", b"other": b"0"})
    db[b"old"] = b"1"  # something is dead, else compact() has nothing to do

    def batch() -> None:
        with db.batch() as batch:
            batch[b"a"] = b"1"
            batch[b"b"] = b"2"

    def transaction() -> None:
        with db.transaction() as tx:
            tx[b"old"] = tx[b"old"] + b"2"

    calls: dict[str, Callable[[], Any]] = {
        "batch": batch,
        "transaction": transaction,
        "incr": lambda: db.incr(b"old"),
        "delete": lambda: db.delete(b"old"),
        "sync": db.sync,
        "compact": db.compact,
        "backup": lambda: db.backup(path.with_name("backup")),
        "close": db.close,
    }

    async def main() -> None:
        files.gate.clear()
        call = asyncio.create_task(asyncio.to_thread(calls[verb]))
        await until(lambda: files.waiting or call.done())
        await turn(100)
        assert not call.done()
        files.gate.set()
        await call

    asyncio.run(main())
    db.close()


def test_many_tasks_share_a_sync(db: Store, files: GatedFiles) -> None:
    """As many as the executor has threads: the default one has few on a small machine."""
    syncs = 0

    async def main() -> None:
        nonlocal syncs
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(16))
        files.gate.clear()
        first = asyncio.create_task(asyncio.to_thread(db.put, b"first", b"1"))
        await until(lambda: files.waiting)
        puts = [asyncio.create_task(asyncio.to_thread(db.put, b"%d" % number, b"new")) for number in range(15)]
        await until(lambda: db._commit.state.seq == 17)
        sync = files.sync

        def count(descriptor: int, path: str) -> None:
            nonlocal syncs
            syncs += 1
            sync(descriptor, path)

        files.sync = count  # type: ignore[method-assign]
        files.gate.set()
        await asyncio.gather(first, *puts)

    asyncio.run(main())
    assert syncs == 1  # for fifteen


# --- cancellation ----------------------------------------------------------------------------------


def test_a_write_that_was_cancelled_in_the_middle_happens(db: Store, files: GatedFiles, path: Path) -> None:
    """The thread cannot be taken back: who is cancelled hears nothing of the write, and it is carried out."""

    async def main() -> None:
        files.gate.clear()
        put = asyncio.create_task(asyncio.to_thread(db.put, b"k", b"new"))
        await until(lambda: files.waiting)
        put.cancel()
        with pytest.raises(asyncio.CancelledError):
            await put
        assert b"k" not in db  # not durable yet
        files.gate.set()
        await until(lambda: b"k" in db)
        await asyncio.to_thread(db.put, b"next", b"1")

    asyncio.run(main())
    assert db[b"k"] == b"new"
    db.close()
    assert kept(path, b"k") == [b"new", b"new"]


def test_a_write_that_was_cancelled_before_it_began_does_not_happen(db: Store, files: GatedFiles, path: Path) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        files.gate.clear()
        first = asyncio.create_task(asyncio.to_thread(db.put, b"first", b"1"))
        await until(lambda: files.waiting)
        second = asyncio.create_task(asyncio.to_thread(db.put, b"k", b"new"))
        await turn(3)  # it stands in the executor's line
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        files.gate.set()
        await first
        await asyncio.to_thread(db.put, b"next", b"1")

    asyncio.run(main())
    assert (b"k" in db, b"first" in db, b"next" in db) == (False, True, True)
    db.close()
    assert kept(path, b"k") == [None, None]


def test_a_cancelled_write_whose_sync_fails_is_decided_by_reopening(db: Store, files: GatedFiles, path: Path) -> None:
    async def main() -> None:
        files.gate.clear()
        files.fails = True
        put = asyncio.create_task(asyncio.to_thread(db.put, b"k", b"new"))
        await until(lambda: files.waiting)
        put.cancel()
        with pytest.raises(asyncio.CancelledError):
            await put
        files.gate.set()
        await until(lambda: db.failure is not None)
        with pytest.raises(StoreFailedError):
            await asyncio.to_thread(db.put, b"next", b"1")

    asyncio.run(main())
    assert b"k" not in db
    with pytest.raises(StoreFailedError):
        db.close()
    first, second = kept(path, b"k")
    assert first == second


def test_a_shielded_write_is_over_when_its_task_is(db: Store, files: GatedFiles) -> None:
    """What the page offers to those who have to know."""

    async def decided(function: Callable[..., Any], *arguments: Any) -> Any:
        call = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
        try:
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            await asyncio.wait([call])
            raise

    async def main() -> None:
        files.gate.clear()
        put = asyncio.create_task(decided(db.put, b"k", b"new"))
        await until(lambda: files.waiting)
        put.cancel()
        await turn(100)
        assert not put.done()
        files.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await put
        assert db[b"k"] == b"new"

    asyncio.run(main())


def test_the_end_of_the_loop_waits_for_writes(db: Store, files: GatedFiles) -> None:
    """`asyncio.run` ends the executor's threads in good order, with what they are at."""

    async def main() -> None:
        files.gate.clear()
        asyncio.create_task(asyncio.to_thread(db.put, b"k", b"new"))  # noqa: RUF006 - that is the point
        await until(lambda: files.waiting)
        threading.Thread(target=files.gate.set).start()

    asyncio.run(main())
    assert db[b"k"] == b"new"
    assert db.durable_seq == 2


# --- transactions ----------------------------------------------------------------------------------


def test_a_transaction_is_one_call(db: Store) -> None:
    def move(amount: int) -> int:
        with db.transaction() as tx:
            left = int(tx.get(b"from", b"100")) - amount
            tx[b"from"] = b"%d" % left
            tx[b"to"] = b"%d" % (int(tx.get(b"to", b"0")) + amount)
            return left

    async def main() -> None:
        left = await asyncio.gather(*(asyncio.to_thread(move, 1) for _ in range(50)))
        assert sorted(left) == list(range(50, 100))

    asyncio.run(main())
    assert (db[b"from"], db[b"to"]) == (b"50", b"50")


def test_a_transaction_stays_in_its_thread(db: Store) -> None:
    async def main() -> None:
        with db.transaction() as tx:
            with pytest.raises(BytekvError, match="belongs to the thread"):
                await asyncio.to_thread(tx.put, b"k", b"1")
            tx[b"k"] = b"2"

    asyncio.run(main())
    assert db[b"k"] == b"2"


def test_a_transaction_open_over_an_await_is_told_and_no_deadlock(db: Store) -> None:
    """Another coroutine of the same thread would wait for ever for a transaction that only its own thread can end."""

    async def other() -> None:
        with pytest.raises(ReentryError, match="this thread has a transaction open"):
            db[b"k"] = b"other"

    async def main() -> None:
        with db.transaction() as tx:
            tx[b"k"] = b"mine"
            await other()
        db[b"k"] = db[b"k"] + b", later"

    asyncio.run(main())
    assert db[b"k"] == b"mine, later"
