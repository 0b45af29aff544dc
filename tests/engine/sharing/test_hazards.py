"""The hazards of processes that share a store, each with what it would have cost."""

from __future__ import annotations

import errno
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bytekv import ReentryError, StoreBusyError, StoreFailedError, StoreLockedError
from bytekv.engine.codec.entry import CONTINUES, PUT, encode_entry
from bytekv.engine.log import control_page as words_of
from bytekv.engine.log.control_page import (
    ALLOCATED,
    APPENDED,
    CHANGES,
    DURABLE_ROLL,
    DURABLE_SYNC,
    END,
    GENERATION,
    HOLDER,
    NEXT_ID,
    SEGMENT,
)
from bytekv.engine.shared_store import SharedStore
from bytekv.errors import DiskFullError
from tests.engine.sharing.test_machine import NeighboursFiles
from tests.support import harness
from tests.support.fault_files import SystemCalls
from tests.support.sharing import PIECES, die_writing, hold, kill, share

SYNCS = ("interval", "always", "os")
Share = Callable[..., SharedStore]


@pytest.fixture
def opened(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Share]:
    """Open the test's store once more; what is left open must agree, verify, and close."""
    for name, value in harness.NO_WORKER.items():
        monkeypatch.setattr(name, value)
    files = NeighboursFiles()
    stores: list[SharedStore] = []

    def open_it(**options: Any) -> SharedStore:
        options = {"files": files, "segment_size_bytes": 4096, "busy_timeout_s": 1.0} | options
        stores.append(share(path, **options))
        return stores[-1]

    yield open_it
    left = [store for store in stores if not store.closed]
    contents = []
    for store in left:
        if store._state.failure is None:
            store.sync()
            contents.append(dict(store.items()))
            report = store.verify()
            assert report.ok, report
    assert all(content == contents[0] for content in contents)
    for store in left:
        if store._state.failure is None:
            store.close()
        else:
            kill(store)
    if contents:
        with harness.open_store(path, "r", files=files) as reader:
            assert dict(reader.items()) == contents[0]
            assert reader.verify().ok


# --- 1: killed in the middle of an append ----------------------------------------------------------


@pytest.mark.parametrize("sync", SYNCS)
@pytest.mark.parametrize("piece", PIECES)
def test_01_a_put_of_one_that_was_killed_has_happened_or_not(opened: Share, sync: str, piece: str) -> None:
    """A copy has no order that could be relied on: the end of an entry may be there, and not its beginning."""
    dying, living = opened(sync=sync), opened(sync=sync)
    living[b"a"] = b"1"
    happened = die_writing(dying, b"dead", b"value", piece)
    living[b"b"] = b"2"
    assert living.last_seq == 2 + happened
    assert living.get("dead") == (b"value" if happened else None)
    assert opened(sync=sync).get("dead") == living.get("dead")


@pytest.mark.parametrize("there", list(itertools.product([True, False], repeat=3)))
@pytest.mark.parametrize("sync", SYNCS)
def test_01_a_batch_of_one_that_was_killed_has_happened_as_a_whole(
    opened: Share, sync: str, there: tuple[bool, ...]
) -> None:
    dying, living = opened(sync=sync), opened(sync=sync)
    dying[b"a"] = b"1"
    dying.sync()
    dying[b"a"] = b"2"
    writer, words = dying._segments.writer, dying._page.words
    assert writer is not None
    assert writer.map is not None
    hold(dying)
    offset, seq = words[END], words[APPENDED]
    for number, is_there in enumerate(there, 1):
        flags = PUT | (CONTINUES if number < 3 else 0)
        entry = b"".join(encode_entry(flags, b"%d" % number, b"v" * 20, seq + number, 1000, 0, writer.seed))
        if is_there:
            writer.map[offset : offset + len(entry)] = entry
        offset += len(entry)
    kill(dying)
    living[b"b"] = b"w" * 20  # as large as the first: what lies behind it would fit
    assert len(living) == (5 if all(there) else 2)
    assert living.last_seq == (6 if all(there) else 3)


def test_01_what_a_dead_process_has_written_is_shown_to_all_once_it_is_durable(opened: Share) -> None:
    """One that opened the store synced the dead one's last put, showed it, and told nobody that it was durable: its
    neighbour went on to answer as of before."""
    dying, living = opened(sync="always"), opened(sync="always")
    living[b"a"] = b"1"
    assert die_writing(dying, b"dead", b"value", "all")
    newcomer = opened(sync="always")
    assert newcomer["dead"] == b"value"
    assert living["dead"] == b"value"
    assert living.durable_seq == 2


def test_01_what_a_reader_reads_of_a_manifest_is_shown_to_all(opened: Share) -> None:
    """A roll makes everything durable. One that died right after it told nobody; who read its manifest knew."""
    dying, first, second = (opened(sync="always", segment_size_bytes=400) for _ in range(3))
    first[b"a"] = b"1"
    first.update({"b": b"2"})
    with dying._commit.turn.gate:
        dying._commit.turn.start(for_maintenance=True)
        state = dying._state
        with state.lock, state:
            dying._segments.roll(state.seq)
    kill(dying)
    first._neighbours._refresh()
    assert first["b"] == second["b"] == b"2"
    assert second.durable_seq == first.durable_seq == 2


class _Spied:
    """A mapping that calls before it is written to."""

    def __init__(self, mapping: Any, look: Callable[[], object]) -> None:
        self._mapping, self._look = mapping, look

    def __len__(self) -> int:
        return len(self._mapping)

    def __getitem__(self, place: Any) -> Any:
        return self._mapping[place]

    def __setitem__(self, place: Any, content: bytes) -> None:
        self._look()
        self._mapping[place] = content


@pytest.mark.parametrize("sync", SYNCS)
@pytest.mark.parametrize("call", ["put", "batch", "delete"])
def test_01_holder_then_bytes_then_words_then_what_is_shown(
    opened: Share, sync: str, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between any two of them, a process has promised nothing that is not in the file, and shown nothing that
    the others will not see."""
    mine = opened(sync=sync)
    mine.update({"k": b"0", "l": b"0"})
    mine[b"k"] = b"1"
    writer, words, seq = mine._segments.writer, mine._page.words, mine.last_seq
    assert writer is not None
    seen = []

    def look() -> None:
        assert words[HOLDER] == mine._commit.turn.name
        assert words[APPENDED] == seq
        seen.append("bytes")

    def show(method: Callable[..., Any]) -> Callable[..., Any]:
        def shown(*arguments: Any, **named: Any) -> Any:
            assert words[APPENDED] > seq
            seen.append("shown")
            return method(*arguments, **named)

        return shown

    with monkeypatch.context() as patch:
        patch.setattr(writer, "map", _Spied(writer.map, look))
        for name in ("apply", "write_all", "remove_all"):
            patch.setattr(type(mine._keydir), name, show(getattr(type(mine._keydir), name)))
        patch.setattr(type(mine._commit), "_show", show(getattr(type(mine._commit), "_show", None)), raising=False)
        if call == "put":
            mine[b"k"] = b"2"
        elif call == "batch":
            mine.update({"k": b"2", "l": b"3"})
        else:
            del mine["k"]
    assert seen[:1] == ["bytes"]
    assert "shown" in seen
    assert words[HOLDER] == 0


# --- 22: a sync while another process rolls ----------------------------------------------------------


class _Moved:
    """Words between the first and the second reading of which something happens."""

    def __init__(self, words: memoryview, read: tuple[int, ...], happen: Callable[[], object]) -> None:
        self._words, self._read, self._happen, self._left = words, read, happen, True

    def __getitem__(self, word: int) -> int:
        value = self._words[word]
        if word in self._read and self._left:
            self._left = False
            self._happen()
        return value

    def __setitem__(self, word: int, value: int) -> None:
        self._words[word] = value


@pytest.mark.parametrize("sync", ["interval", "os"])
def test_22_another_process_rolls_while_one_looks_at_what_to_sync(opened: Share, sync: str) -> None:
    """It would sync the old segment and call durable what has been appended to the new one."""
    mine, other = (opened(sync=sync, segment_size_bytes=400) for _ in range(2))
    mine[b"a"] = b"1"
    assert other["a"] == b"1"
    seq = mine.last_seq

    def roll() -> None:
        other._commit.seal()
        other[b"b"] = b"2" * 100

    page = mine._page
    page.words = words = _Moved(page.words, (APPENDED, SEGMENT), roll)  # type: ignore[assignment]
    mine._durability.sync_to(seq)
    page.words = words._words
    assert page.words[APPENDED] == seq + 1
    assert max(page.words[DURABLE_SYNC], page.words[DURABLE_ROLL]) == seq


# --- 5, 6, 21: one that has the turn and does not give it back ---------------------------------------


@pytest.mark.parametrize("sync", SYNCS)
def test_05_a_holder_that_stands_still(opened: Share, sync: str) -> None:
    """Reads are answered, writes fail at the deadline with the pid of the process to look at."""
    stopped, living = opened(sync=sync), opened(sync=sync)
    living[b"a"] = b"1"
    hold(stopped)
    assert living["a"] == b"1"
    assert list(living) == [b"a"]
    with living.snapshot() as snapshot:
        assert snapshot["a"] == b"1"
    for write in (
        lambda: living.put(b"a", b"2"),
        lambda: living.delete("a"),
        lambda: living.incr("n"),
        lambda: living.update({"a": "2"}),
        living.clear,
        lambda: living.transaction().__enter__(),
    ):
        with pytest.raises(StoreBusyError) as caught:
            write()
        assert caught.value.pid == os.getpid()
    third = opened(sync=sync)
    assert third["a"] == b"1"
    third.close()
    stopped._page.words[HOLDER] = 0
    stopped._page.give_turn_back()
    living[b"a"] = b"2"
    assert stopped["a"] == b"2"


def test_06_two_transactions_that_wait_for_each_other_end(opened: Share, path: Path) -> None:
    """Two stores, two processes, opposite order: one of them is told so."""
    mine = opened()
    other = share(path.parent / "other", files=mine._files, busy_timeout_s=1.0)
    theirs = share(path.parent / "other", files=mine._files, busy_timeout_s=1.0)
    again = opened()
    with mine.transaction() as tx:
        tx[b"a"] = b"1"
        with theirs.transaction() as ty:
            ty[b"a"] = b"1"
            with pytest.raises(StoreBusyError):
                other[b"b"] = b"2"
            with pytest.raises(StoreBusyError):
                again[b"b"] = b"2"
    assert again["a"] == other["a"] == b"1"
    other.close()
    theirs.close()


def test_06_a_write_beside_the_own_transaction_is_refused(opened: Share) -> None:
    mine = opened()
    with mine.transaction() as tx:
        with pytest.raises(ReentryError):
            mine[b"a"] = b"1"
        tx[b"a"] = b"2"
    assert mine["a"] == b"2"


def test_21_a_transaction_that_is_dropped_lets_the_others_in(opened: Share) -> None:
    mine, other = opened(), opened()
    transaction = mine.transaction()
    transaction.__enter__()
    transaction[b"a"] = b"never"
    with pytest.raises(StoreBusyError):
        other[b"b"] = b"1"
    del transaction
    other[b"b"] = b"1"
    assert dict(mine) == {b"b": b"1"}


def test_21_a_transaction_whose_thread_has_died_lets_the_others_in_once_it_is_dropped(opened: Share) -> None:
    mine, other = opened(), opened()

    def begin() -> None:
        mine.transaction().__enter__()[b"a"] = b"never"

    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    other[b"b"] = b"1"
    assert dict(mine) == {b"b": b"1"}


# --- 7: words that are wrong -------------------------------------------------------------------------


def _fuzzed() -> Iterator[tuple[str, Callable[[memoryview], None]]]:
    numbers = {
        "segment": SEGMENT,
        "allocated": ALLOCATED,
        "changes": CHANGES,
        "generation": GENERATION,
        "next id": NEXT_ID,
        "durable": DURABLE_SYNC,
        "rolled": DURABLE_ROLL,
        "holder": HOLDER,
    }
    for name, word in numbers.items():
        for change in (0, 1, -1, 1 << 20, "most"):
            if word in (DURABLE_SYNC, DURABLE_ROLL) and change not in (0, -1):
                continue  # it says that something is durable: nobody can know better
            if word == NEXT_ID and change == "most":
                continue

            def change_it(words: memoryview, word: int = word, change: Any = change) -> None:
                new = (1 << 64) - 1 if change == "most" else words[word] + change if change else 0
                words[word] = max(0, new)

            yield f"{name} {change}", change_it


def _zero(words: memoryview) -> None:
    words[8:] = memoryview(bytes(words_of.SIZE - 64)).cast("Q")


@pytest.mark.parametrize("sync", ["interval", "always"])
@pytest.mark.parametrize("change", [pytest.param(change, id=name) for name, change in _fuzzed()] + [_zero])
def test_07_a_wrong_word_is_an_error_or_does_not_matter(
    opened: Share, path: Path, sync: str, change: Callable[[memoryview], None]
) -> None:
    """The log proves what the page says. A page of zeros had the next slow write go over the segment's header."""
    stores = opened(sync=sync), opened(sync=sync)
    content = {b"k%d" % number: b"1" * 10 for number in range(8)}
    for number, (key, value) in enumerate(content.items()):
        stores[number % 2][key] = value
    change(stores[0]._page.words)
    for number, store in enumerate(stores * 3):
        store[b"n%d" % number] = content[b"n%d" % number] = b"2" * 10
        assert store.delete(b"k%d" % number)
        del content[b"k%d" % number]
        assert dict(stores[number % 2 - 1].items()) == content
    for store in stores:
        kill(store)
    with harness.open_store(path, files=stores[0]._files) as after:
        assert dict(after.items()) == content
        assert after.verify().ok


@pytest.mark.parametrize("sync", SYNCS)
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("between", [3, 100])
def test_07_a_page_of_an_earlier_moment_has_nothing_overwritten(
    opened: Share, path: Path, sync: str, first: int, between: int
) -> None:
    """Where the page says that the log ends lies an entry. None of the two had replayed it: it was written over."""
    stores = opened(sync=sync), opened(sync=sync)
    content: dict[bytes, bytes] = {}
    for number in range(5):
        stores[number % 2][b"k%d" % number] = content[b"k%d" % number] = b"1" * 10
    words = stores[0]._page.words
    earlier = bytes(words)
    for number in range(between):
        stores[0][b"r%d" % number] = content[b"r%d" % number] = b"2" * 40
    words[8:] = memoryview(earlier).cast("Q")[8:]
    for number in range(4):
        store = stores[(first + number) % 2]
        store[b"n%d" % number] = content[b"n%d" % number] = b"3" * 10
        assert dict(stores[number % 2].items()) == content
    for store in stores:
        kill(store)
    with harness.open_store(path, files=stores[0]._files) as after:
        assert dict(after.items()) == content


# --- 9, 10: a file that another process has made shorter or longer -----------------------------------


@pytest.mark.parametrize("sync", SYNCS)
def test_09_a_segment_is_sealed_and_cut_off_under_a_longer_mapping(opened: Share, sync: str) -> None:
    """To touch what was cut off would be a SIGBUS."""
    mine, other = (opened(sync=sync, segment_size_bytes=20_000) for _ in range(2))
    for number in range(40):
        mine[b"m%d" % number] = b"1" * 100
        assert other[f"m{number}"] == b"1" * 100
        other._commit.seal()
        other[b"o%d" % number] = b"2" * 3000
        assert mine[f"m{number}"] == b"1" * 100
        assert len(mine) == 2 * number + 2
    assert other.verify().ok


def test_09_a_segment_is_cut_off_between_the_look_at_its_size_and_the_mapping_of_it(
    opened: Share, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A get raised `StoreIOError`: the file was shorter than what it was about to map."""
    mine, other = (opened(segment_size_bytes=8_000_000) for _ in range(2))
    mine[b"a"] = b"1"
    assert other["a"] == b"1"
    for number in range(100):
        mine[b"k%d" % number] = b"2" * 20_000  # so that the other's mapping is too short
    writer = other._segments.writer
    assert writer is not None
    measure, sealed = type(writer).measure, []

    def measure_and_seal(self: Any) -> int:
        size = measure(self)
        if self is writer and not sealed:
            sealed.append(True)
            mine._commit.seal()
            mine[b"last"] = b"3"
        return size

    monkeypatch.setattr(type(writer), "measure", measure_and_seal)
    assert other["k99"] == b"2" * 20_000
    assert other["last"] == b"3"


def test_10_a_full_disk_that_only_one_of_them_sees(opened: Share) -> None:
    """What one has allocated the other uses, and no more: beyond it a store into a mapping is a SIGBUS."""
    mine, other = (opened(segment_size_bytes=8_000_000) for _ in range(2))
    mine[b"a"] = b"1" * 1000

    written = 0
    with SystemCalls() as calls:
        calls.fail("allocate", 1, errno.ENOSPC, for_ever=True)
        with pytest.raises(DiskFullError):
            for number in range(5000):
                (mine, other)[number % 2][b"k%d" % number] = b"2" * 5000
                written += 1
        with pytest.raises(DiskFullError):
            other[b"again"] = b"2" * 5000
        assert other.delete("a")
    assert "a" not in mine
    assert len(other) == len(mine) == written


# --- 11, 12, 20: compactions beside rolls, snapshots, backlogs ---------------------------------------


def _compact(store: SharedStore, pause: Callable[[], None]) -> None:
    def work() -> None:
        victims = [row.segment_id for row in store._segments.sealed()]
        store._maintenance.compactor.run(victims, pause, lambda _: None)

    store._page.upkeep.run(lambda: store._maintenance._with_upkeep(work), 0)  # type: ignore[attr-defined]


@pytest.mark.parametrize("sync", SYNCS)
@pytest.mark.parametrize("at", range(8))
def test_11_a_roll_while_another_process_compacts(
    opened: Share, sync: str, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who publishes reads the manifest first: from memory alone the other's new segment would be struck off."""
    harness.tune(monkeypatch, copied_entries=1, moved_keys=1)
    mine, other = (opened(sync=sync, segment_size_bytes=400) for _ in range(2))
    content = {b"k%d" % number: b"%d" % number * 40 for number in range(12)}
    for key, value in content.items():
        mine[key] = b"old" * 20
        mine[key] = value
    steps = itertools.count()

    def roll() -> None:
        if next(steps) == at:
            for number in range(12):
                other[b"o%d" % number] = content[b"o%d" % number] = b"o" * 90
            del other["k3"], content[b"k3"]

    _compact(mine, roll)
    assert next(steps) > at
    assert dict(mine.items()) == dict(other.items()) == content
    assert mine.verify().ok
    assert dict(opened(sync=sync).items()) == content


def test_11_a_roll_at_the_last_moment_before_a_compaction_publishes(
    opened: Share, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To give its copies numbers a compaction had the turn before, and knew the set of that moment."""
    mine, other = (opened(sync="os", segment_size_bytes=400) for _ in range(2))
    content = {b"k%d" % number: b"%d" % number * 40 for number in range(12)}
    for key, value in content.items():
        mine[key] = b"old" * 20
        mine[key] = value
    sync_to = type(mine._durability).sync_to

    def sync_and_roll(self: Any, seq: int) -> None:
        sync_to(self, seq)
        if self is mine._durability:
            monkeypatch.setattr(type(self), "sync_to", sync_to)
            for number in range(12):
                other[b"o%d" % number] = content[b"o%d" % number] = b"o" * 90

    monkeypatch.setattr(type(mine._durability), "sync_to", sync_and_roll)
    _compact(mine, lambda: None)
    assert len(content) == 24
    assert dict(mine.items()) == dict(other.items()) == content


@pytest.mark.parametrize("sync", SYNCS)
def test_12_a_compaction_keeps_what_another_ones_snapshot_has_never_opened(opened: Share, sync: str) -> None:
    mine, other = (opened(sync=sync, segment_size_bytes=400, max_open_segments=2) for _ in range(2))
    content = {b"k%02d" % number: b"%d" % number * 60 for number in range(40)}
    for key, value in content.items():
        mine[key] = value
    snapshot, scan = other.snapshot(), other.scan()
    first = next(scan)
    for key in content:
        mine[key] = b"new"
    mine.compact()
    mine.compact()
    assert dict(snapshot.items()) == content
    assert [first, *scan] == list(content.items())
    assert set(other.values()) == {b"new"}
    snapshot.close()
    mine.compact()
    assert len(harness.segment_files(Path(mine.path))) < 10


@pytest.mark.parametrize("call", ["backup", "verify", "changes"])
def test_12_what_a_long_call_reads_is_not_removed(opened: Share, path: Path, call: str) -> None:
    """A backup looked for the files that its process knew of, and a verification, while another process compacted,
    called those damaged that were gone."""
    mine, other = (opened(segment_size_bytes=400, max_open_segments=2) for _ in range(2))
    content = {b"k%02d" % number: b"%d" % number * 60 for number in range(20)}
    for key, value in content.items():
        mine[key] = b"old"
        mine[key] = value
    mine.sync()
    assert dict(other.items()) == content
    other.compact()
    calls = itertools.count()

    def compact(_: object = None) -> None:
        if next(calls) == 1:
            for key in content:
                other[key] = b"new" * 20
            other.compact()

    if call == "backup":
        mine.backup(path.parent / "copy", progress=compact)
        with harness.open_store(path.parent / "copy", "r") as copy:
            assert dict(copy.items()) == content
    elif call == "verify":
        assert mine.verify(progress=compact).ok
    else:
        seq = mine.last_seq
        mine[b"x"] = b"1"
        for change in mine.changes(seq):
            compact()
            assert change.key == b"x"
    assert mine.verify().ok
    assert dict(mine.items()) == dict(other.items())


def test_12_a_sweep_leaves_the_file_that_another_process_is_about_to_list(opened: Share) -> None:
    """It is listed nowhere for a moment; the sweeper waits for the turn."""
    mine, other = opened(segment_size_bytes=400), opened(segment_size_bytes=400)
    mine[b"a"] = b"1"
    with mine._commit.turn.gate, mine._commit.turn:
        made = mine._segments.create_writer(mine._segments.manifest.next_id, (1, 1))
        other._page.words[words_of.UPKEEPER] = 12345  # one that has died
        with pytest.raises(StoreBusyError):
            other.compact()
        assert os.path.exists(made.path)
    made.close()
    other.compact()
    assert not os.path.exists(made.path)


def test_20_one_that_only_writes_compacts(opened: Share, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has replayed nothing, so to it everything in the segments of others would look dead, tombstones too."""
    mine, other = (opened(segment_size_bytes=400) for _ in range(2))
    for number in range(10):
        other[b"k%d" % number] = b"1" * 100
    for number in range(10):
        mine[b"m%d" % number] = b"2"
        other[b"k%d" % number] = b"3" * 90
    del other["k1"]
    mine.compact()
    assert mine.get_many([f"k{number}" for number in range(10)]) == {
        b"k%d" % number: b"3" * 90 for number in range(10) if number != 1
    }
    assert dict(opened().items()) == dict(mine.items())


def test_20_one_that_has_not_heard_of_a_compaction_compacts(opened: Share) -> None:
    """Its victims are gone, and what may be compacted now are their outputs."""
    mine, other = (opened(segment_size_bytes=400) for _ in range(2))
    content = {b"k%d" % number: b"1" * 90 for number in range(12)}
    for key, value in content.items():
        mine[key] = b"0" * 90
        mine[key] = value
    assert dict(other.items()) == content
    mine.compact()
    other._maintenance.compact(None)
    assert dict(other.items()) == dict(mine.items()) == content

    for key in content:
        mine[key] = content[key] = b"2" * 90
    assert dict(other.items()) == content
    mine.compact()
    _compact(other, lambda: None)
    assert dict(other.items()) == dict(mine.items()) == content


# --- 15b: a put that is not replayed yet -------------------------------------------------------------


@pytest.mark.parametrize(
    "look",
    [
        lambda db: db["k"] == b"mine",
        lambda db: (b"k", b"mine") in list(db.items()),
        lambda db: db.snapshot()["k"] == b"mine",
        lambda db: len(db) == 3,
        lambda db: db.put(b"k", b"again", if_seq=db.last_seq) == 5,
        lambda db: db.put(b"k", b"again", if_seq=4) == 5,
        lambda db: [change.value for change in db.changes()][-1] == b"mine",
        lambda db: db.entry("k").seq == 4,
        lambda db: db.count("k") == 1,
        lambda db: db.last_seq == 4,
        lambda db: db.pop("k") == b"mine",
        lambda db: db.add("k", "never") is False,
        lambda db: db.setdefault("k", "never") == b"mine",
        lambda db: db.get_many(["k"]) == {b"k": b"mine"},
        lambda db: db.stat("k").seq == 4,
        lambda db: db.ttl("k") is None,
        lambda db: "k" in db,
        lambda db: db.popitem() == (b"o", b"2"),
        lambda db: next(iter(db.scan(reverse=True)))[0] == b"o",
        lambda db: db.delete_range("k", "l") == 1,
        lambda db: db.verify().ok and db.stats().keys == 3,
    ],
)
@pytest.mark.parametrize("sync", SYNCS)
def test_15b_an_own_put_right_after_anothers(opened: Share, sync: str, look: Callable[[Any], bool]) -> None:
    mine, other = opened(sync=sync), opened(sync=sync)
    mine[b"k"] = b"old"
    other[b"a"] = b"1"
    other[b"o"] = b"2"
    mine[b"k"] = b"mine"
    assert look(mine)
    assert look.__code__ is not None


@pytest.mark.parametrize("sync", SYNCS)
def test_15b_a_view_does_not_see_what_was_put_after_it_and_replayed_later(opened: Share, sync: str) -> None:
    mine, other = opened(sync=sync), opened(sync=sync)
    mine[b"k"] = b"old"
    with mine.snapshot() as snapshot:
        other[b"a"] = b"1"
        mine[b"k"] = b"new"
        assert dict(snapshot) == {b"k": b"old"}
        assert mine["k"] == b"new"
        assert dict(snapshot) == {b"k": b"old"}
        assert snapshot.seq == 1


# --- 13: a sync that fails ---------------------------------------------------------------------------


@pytest.mark.parametrize("sync", SYNCS)
def test_13_a_sync_that_fails_in_one_stops_all(opened: Share, sync: str) -> None:
    """The kernel says it once: the next one to sync would be told that all is well."""
    mine, other = opened(sync=sync), opened(sync=sync)
    mine[b"a"] = b"1"
    mine.sync()
    if sync != "always":
        mine[b"a"] = b"2"

    with SystemCalls() as calls:
        calls.fail("sync", 1, errno.EIO)
        with pytest.raises(StoreFailedError):
            mine.put(b"a", b"3") if sync == "always" else mine.sync()
    third = opened(sync="os")
    with pytest.raises(StoreFailedError):
        opened(sync="always")
    for write in (
        lambda: other.put(b"a", b"4"),
        other.sync,
        lambda: other.delete("a"),
        lambda: mine.put(b"a", b"5"),
        third.sync,
        lambda: third.put(b"a", b"5"),
    ):
        with pytest.raises(StoreFailedError):
            write()
    assert other["a"] in ((b"1",) if sync == "always" else (b"1", b"2"))


# --- 18, 19, 23 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sync", SYNCS)
def test_18_the_last_one_leaves_a_clean_store_whichever_it_is(opened: Share, path: Path, sync: str) -> None:
    for order in itertools.permutations(range(3)):
        stores = [opened(sync=sync) for _ in range(3)]
        for number, store in enumerate(stores):
            store[b"k%d" % number] = b"%d" % order[0]
        for number in order:
            stores[number].close()
        with harness.open_store(path, "r") as reader:
            assert reader.recovery.clean
            assert set(reader.values()) == {b"%d" % order[0]}


def test_19_who_needs_the_store_alone_is_refused(opened: Share, path: Path) -> None:
    mine = opened()
    mine[b"a"] = b"1"
    with pytest.raises(StoreLockedError):
        harness.open_store(path)
    with pytest.raises(StoreLockedError):
        harness.repair(path)
    mine.close()
    with harness.open_store(path) as alone:
        with pytest.raises(StoreLockedError):
            opened()
        assert alone["a"] == b"1"


class _Stop(Exception):
    """A process stops here."""


class _Stopping:
    """Words that stop the process before the store into one of them."""

    def __init__(self, words: memoryview, at: int) -> None:
        self._words, self._left = words, at

    def __getitem__(self, word: int) -> int:
        return self._words[word]

    def __setitem__(self, word: int, value: int) -> None:
        if not self._left:
            raise _Stop
        self._left -= 1
        self._words[word] = value


@pytest.mark.parametrize("sync", SYNCS)
@pytest.mark.parametrize("is_dead", [False, True])
@pytest.mark.parametrize("call", ["put", "roll", "batch", "compact"])
def test_23_a_process_stops_between_any_two_words(opened: Share, sync: str, is_dead: bool, call: str) -> None:
    """Who opens or reads then sees everything that was acknowledged before, and all see the same."""
    for at in itertools.count():
        stopped, living = (opened(sync=sync, segment_size_bytes=400) for _ in range(2))
        living[b"k"] = b"%d" % at + b"1" * 150
        before = dict(living.items())
        stopped.last_seq
        page = stopped._page
        page.words = _Stopping(page.words, at)  # type: ignore[assignment]
        page.give_turn_back, kept = (lambda: None), page.give_turn_back
        stopped._commit.turn.give_back = page.give_turn_back
        try:
            if call == "put":
                stopped[b"n"] = b"2"
            elif call == "roll":
                stopped[b"n"] = b"2" * 300
            elif call == "batch":
                stopped.update({"n": b"2", "m": b"3"})
            else:
                stopped.compact()
        except _Stop:
            pass
        else:
            page.words = page.words._words  # type: ignore[attr-defined]
            kept()
            return
        page.words = page.words._words  # type: ignore[attr-defined]
        if is_dead:
            kill(stopped)
        seen = dict(living.items())
        assert seen in (before, before | ({b"n": seen.get(b"n")} if call != "batch" else {b"n": b"2", b"m": b"3"}))
        newcomer = None
        if is_dead:
            newcomer = opened(sync=sync, segment_size_bytes=400)
            assert dict(newcomer.items()) == dict(living.items())
            living[b"after"] = b"%d" % at
            assert newcomer["after"] == b"%d" % at
            assert before.items() <= dict(newcomer.items()).items() | {(b"after", before.get(b"after"))}
            newcomer.close()
        else:
            kill(stopped)
        living.clear()
        living.close()


# --- threads of one process, beside another process --------------------------------------------------


@pytest.mark.parametrize("moment", ["before", "between"])
def test_05b_a_reader_goes_on_with_the_next_segment_in_the_middle_of_a_put(opened: Share, moment: str) -> None:
    """A put that takes the short way does not keep the readers of its own process from following the others. An
    `AssertionError` came out of it: the segment that it was about to append to was none any more."""
    mine, other = opened(sync="os"), opened(sync="os")
    mine[b"a"] = b"1"
    other[b"b"] = b"2"
    mine[b"c"] = b"3"
    assert mine["c"] == b"3"  # nothing is left to replay
    committer = mine._commit
    reader = threading.Thread(target=lambda: mine._neighbours._refresh())

    patch = pytest.MonkeyPatch()

    def refresh() -> None:
        patch.undo()
        reader.start()
        reader.join()

    turn, clock_ns = committer.turn, committer._clock_ns  # type: ignore[attr-defined]
    if moment == "before":
        take = turn.try_take
        patch.setattr(turn, "try_take", lambda: (refresh(), take()))
    else:
        patch.setattr(committer, "_clock_ns", lambda: (refresh(), clock_ns())[1])
    mine[b"d"] = b"4"
    other[b"e"] = b"5"
    assert dict(mine) == dict(other) == {b"a": b"1", b"b": b"2", b"c": b"3", b"d": b"4", b"e": b"5"}
    assert mine.last_seq == 5
