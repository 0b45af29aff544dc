"""Compaction that nobody asks for: what it keeps disk use to, what it may cost, when it stops.

Where the worker's thread matters it is the real one, in turns with the test's thread (`tests/support/turns.py`):
figures are bytes, on a clock that only work moves, and the same in every run. Elsewhere the test does the worker's
work itself.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from bytekv.engine.codec.manifest import SEGMENT_HEADER_SIZE
from bytekv.engine.log.sizes import sizes_of
from bytekv.engine.pacer import Pacer
from bytekv.engine.space.picker import SegmentUsage, pick
from bytekv.engine.space.worker import Worker
from bytekv.engine.store import Store
from bytekv.errors import CorruptionError, StoreFailedError
from bytekv.options import Options
from tests.support import harness
from tests.support.harness import QuickFiles, damage, segment_files
from tests.support.turns import PUT_S, READ_S, Turns, TurnsStore, bytes_on_disk

KIB = 1024
SEGMENT = 256 * KIB
SCALE = 64  # an entry stands for 64: this is a store with segments of 16 MiB
DEFAULTS = Options()


@pytest.fixture
def in_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make what is counted in bytes or entries, and is no option, smaller by the scale, too."""
    sizes = {"seldom_looked": 1024, "paid": 32, "reserve": 48, "manifest_room": 16, "first_step": 64}
    small = {name: size * KIB // SCALE for name, size in sizes.items()}
    harness.tune(monkeypatch, copied_entries=1, moved_keys=1, **small)


@pytest.fixture
def begin(path: Path) -> Iterator[Callable[..., TurnsStore]]:
    """Open a store with the default thresholds, to scale, beside a worker that is so many times slower."""
    opened: list[TurnsStore] = []

    def begin_it(*, at: Path = path, slower: int = 1, **options: Any) -> TurnsStore:
        options = {"segment_size_bytes": SEGMENT, "compact_dead_bytes": DEFAULTS.compact_dead_bytes // SCALE, **options}
        opened.append(TurnsStore(at, Turns(SCALE, slower * READ_S), **options))
        return opened[-1]

    yield begin_it
    for db in opened:
        if not db.closed:
            db.turns.free()
            report = db.verify()
            db.close()
            assert report.ok, report


# --- how much disk ------------------------------------------------------------------------------


@pytest.mark.usefixtures("in_small")
@pytest.mark.parametrize(
    ("live_segments", "slower", "share"),
    [(0.1, 1, 0.45), (3, 1, 0.45), (3, 4, 0.18), (16, 1, 0.41)],
    ids=["tiny", "usual", "a worker of a quarter the speed", "large"],
)
def test_overwriting_for_ever_takes_twice_the_live_bytes(
    begin, path, live_segments: float, slower: int, share: float
) -> None:
    """And four segments: the one being written, the victims of one compaction until their copies are whole. A store
    of sixteen segments took ten more than that: a compaction had eight victims, and writers paid too little. What
    writers can have at most is 0.43: what lives is copied once for each time that as much dies, and a copy takes 1.3
    times as long as a put here."""
    rest = random.Random(1)
    db = begin(slower=slower)
    keys = [b"%08d" % number for number in range(int(live_segments * SEGMENT / 128))]
    for key in keys:
        db.put_in_turn(key, b"." * 93)
    live = db.stats().live_bytes
    peak = 0
    for number in range(max(20_000, 6 * len(keys))):
        db.put_in_turn(rest.choice(keys), b"%093d" % number)
        if number % 16 == 0:
            peak = max(peak, bytes_on_disk(path))
    stats = db.stats()
    assert stats.background_error is None
    assert stats.compactions > 1
    assert peak <= 2 * live + 4 * SEGMENT
    puts = len(keys) + max(20_000, 6 * len(keys))
    assert puts * SCALE * PUT_S > share * db.turns.now_s  # the writer's
    db.turns.let_worker_finish()
    assert db.stats().total_bytes <= 2 * live + 2 * SEGMENT


@pytest.mark.usefixtures("in_small")
def test_without_the_drag_it_would_take_more(begin, path) -> None:
    """The bound is the drag's doing: beside writers who never wait, a slow worker is left behind."""
    db = begin(slower=4)
    keys = [b"%08d" % number for number in range(3 * SEGMENT // 128)]
    peak = 0
    for number in range(8 * len(keys)):
        db._commit.state.throttles = False
        db.put_in_turn(keys[number * 7 % len(keys)], b"%093d" % number)
        if number % 16 == 0:
            peak = max(peak, bytes_on_disk(path))
    assert db.turns.dragged_s == 0
    assert peak > 2 * 3 * SEGMENT + 8 * SEGMENT


@pytest.mark.usefixtures("in_small")
@pytest.mark.parametrize("cold_segments", [0, 2])
def test_a_queue_takes_no_more_room_the_longer_it_runs(begin, path, cold_segments: int) -> None:
    """Every put is followed by its delete. What is left of a queue is tombstones, and they can go only together with
    everything that is older: at the oldest end of the log, though cold entries lie there that have no dead beside
    them."""
    size = 64 * KIB
    db = begin(segment_size_bytes=size, compact_dead_bytes=KIB)
    for number in range(cold_segments * size // 1024):
        db.put_in_turn(b"cold-%d" % number, b"." * 1000)
    waiting: deque[bytes] = deque()
    live = db.stats().live_bytes
    peaks = []
    for part in range(4):
        peak = 0
        for number in range(6000):
            key = b"job-%d-%05d" % (part, number)
            db.put_in_turn(key, b"." * 10)
            waiting.append(key)
            if len(waiting) > 50:
                db.delete_in_turn(waiting.popleft())
            if number % 16 == 0:
                peak = max(peak, bytes_on_disk(path))
        peaks.append(peak)
    assert max(peaks) <= 2 * live + 7 * size, peaks
    db.turns.let_worker_finish()
    assert db.stats().total_bytes <= 2 * live + 3 * size
    assert [key for key in db if key.startswith(b"job")] == sorted(waiting)


@pytest.mark.usefixtures("in_small")
def test_the_same_writes_meet_the_same_compactions(begin, path) -> None:
    """What the other tests rely on: nothing in them depends on how fast this machine is."""

    def live_once(name: str) -> tuple[Any, ...]:
        db = begin(at=path / name)
        for number in range(24_000):
            db.put_in_turn(b"%d" % (number * 7 % 900), b"%093d" % number)
        result = db.stats(), db.turns.now_s, db.turns.dragged_s, db.turns.slices
        db.close()
        return result

    path.mkdir()
    first = live_once("first")
    assert first == live_once("second")
    assert first[0].compactions > 1


# --- who gets how much of the interpreter ---------------------------------------------------------


def test_the_worker_has_the_interpreter_for_less_than_a_millisecond_at_a_time(begin) -> None:
    """On the clock of the model: here entries are not to scale, and a slice of work is what it is in earnest."""
    db = TurnsStore(begin().path + "-2", Turns(), segment_size_bytes=SEGMENT, compact_dead_bytes=KIB)
    try:
        for number in range(40_000):
            db.put_in_turn(b"%d" % (number % 2500), b"%093d" % number)
        db.turns.let_worker_finish()
        assert db.stats().compactions > 2
        lengths = [end - start for start, end in db.turns.slices]
        assert max(lengths) < 0.001
        assert sum(length > 0.0005 for length in lengths) > 10, "slices so short that they are all overhead"
    finally:
        db.close()


class Clock(QuickFiles):
    """A clock that only pauses move, and a list of them."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1000.0
        self.pauses: list[float] = []
        self.meanwhile: Callable[[], object] = lambda: None

    def monotonic(self) -> float:
        return self.now_s

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now_s += seconds
        self.meanwhile()

    def yield_cpu(self) -> None:
        pass


@given(
    rate=st.integers(1, 10**9),
    work=st.lists(st.tuples(st.integers(0, 10**6), st.floats(0, 0.002)), max_size=60),
)
def test_a_rate_is_never_exceeded(rate: int, work: list[tuple[int, float]]) -> None:
    clock, done, began = Clock(), 0, 1000.0
    pacer = Pacer(clock, rate)
    for size, took_s in work:
        assume(size / rate < 100)
        clock.now_s += took_s
        done += size
        while pacer.rest(size):
            size = 0
        assert done <= rate * (clock.now_s - began + 0.1) * (1 + 1e-9) + 1
    assert all(0 < seconds <= 0.05 for seconds in clock.pauses)
    # And it is made use of: beyond what the rate asks for there is a break of 50 µs for each slice.
    computed_s = sum(took_s for _, took_s in work)
    assert clock.now_s - began <= max(computed_s, done / rate) + computed_s + 0.05 + len(work) * 0.00005


def test_what_was_not_used_of_a_rate_does_not_pile_up() -> None:
    clock = Clock()
    pacer = Pacer(clock, 1000)
    clock.now_s += 3600
    began, size = clock.now_s, 1000
    while pacer.rest(size):
        size = 0
    assert clock.now_s - began == pytest.approx(0.9, abs=0.001)


def test_without_a_rate_a_slice_ends_in_a_short_sleep() -> None:
    clock = Clock()
    pacer = Pacer(clock)
    rests = 0
    for _ in range(1000):
        clock.now_s += 0.0001
        while pacer.rest(10**9):
            rests += 1
    assert 100 <= rests <= 160
    assert set(clock.pauses) == {0.00005}


def test_in_the_foreground_it_does_not_sleep() -> None:
    clock = Clock()
    pacer = Pacer(clock)
    for _ in range(100):
        clock.now_s += 0.0001
        pacer.go_on()
    assert clock.pauses == []


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch, open_store: Callable[..., Store]) -> Callable[..., Store]:
    """Open a store with background compaction whose work the test does itself, by `_work`."""
    monkeypatch.setattr("bytekv.engine.space.worker.Worker.wake", lambda self: True)

    def open_it(**options: Any) -> Store:
        return open_store(**{"auto_compact": True, "segment_size_bytes": 4096, "compact_dead_bytes": 64, **options})

    return open_it


def overwrite(db: Store, times: int, keys: int = 10) -> None:
    for number in range(times):
        db[b"%d" % (number % keys)] = b"%093d" % number


def test_a_store_keeps_to_its_rate_and_syncs_in_between(by_hand) -> None:
    """A compaction at 2,000 bytes a second takes a minute, in which writes must become durable all the same."""
    clock = Clock()
    db = by_hand(files=clock, sync_interval_s=1.0, compact_rate_bytes_s=2000)
    overwrite(db, 1000)
    began, oldest = clock.now_s, [(clock.now_s, db.last_seq)]
    lags: list[float] = []

    def look_and_write() -> None:
        while oldest and oldest[0][1] <= db.durable_seq:
            oldest.pop(0)
        if oldest:
            lags.append(clock.now_s - oldest[0][0])
        if len(clock.pauses) % 10 == 0:
            oldest.append((clock.now_s, db.put(b"more", b"%d" % len(clock.pauses))))

    clock.meanwhile = look_and_write
    read_before = db._maintenance.compactor.read_bytes
    db._work()
    clock.meanwhile = lambda: None
    read = db._maintenance.compactor.read_bytes - read_before
    assert read > 100_000
    assert read <= 2000 * (clock.now_s - began + 0.1) + 4096  # what has been read since it was last counted
    assert max(lags) <= 1.0 + 0.05
    assert db.stats().compactions > 0
    assert clock.now_s - began > 40


def test_while_somebody_waits_a_rate_does_not_count(by_hand) -> None:
    """verify() and compact() waited for a compaction in the background that slept for its rate: for a minute here."""
    clock = Clock()
    db = by_hand(files=clock, sync="os", compact_rate_bytes_s=2000)
    overwrite(db, 1000)
    began, waiters = clock.now_s, []

    def begin_to_wait() -> None:
        if clock.now_s > began + 5 and not waiters:
            waiters.append(db._maintenance.hurry())

    clock.meanwhile = begin_to_wait
    db._work()
    assert db.stats().compactions > 0
    assert 5 < clock.now_s - began < 5.2
    waiters.clear()
    began = clock.now_s
    overwrite(db, 1000)
    clock.meanwhile = lambda: None
    db._work()
    assert clock.now_s - began > 20, "nobody waits any more"


@pytest.mark.parametrize("call", ["verify", "compact"])
def test_a_call_that_waits_for_a_compaction_says_so(by_hand, call: str) -> None:
    db = by_hand(files=Clock(), compact_rate_bytes_s=2000)
    overwrite(db, 100)
    seen: list[bool] = []

    class Watched:
        """The lock, and whether the worker hurries for who takes it, and afterwards."""

        def __init__(self, lock: Any) -> None:
            self.lock = lock
            self._is_owned = lock._is_owned

        def __enter__(self) -> None:
            seen.append(bool(db._maintenance._waiting))
            self.lock.acquire()

        def __exit__(self, *error: object) -> None:
            seen.append(bool(db._maintenance._waiting))
            self.lock.release()

    lock = db._state.compacting
    db._state.compacting = Watched(lock)
    getattr(db, call)()
    db._state.compacting = lock
    assert seen == [True, False]


@pytest.mark.usefixtures("in_small")
def test_close_does_not_wait_for_a_compaction(begin, path) -> None:
    db = begin(compact_rate_bytes_s=1000, compact_dead_bytes=64, segment_size_bytes=4096)
    db.put_in_turn(b"kept", b"." * 500)
    for number in range(200):
        db.put_in_turn(b"%d" % (number % 10), b"%093d" % number)
    content = dict(db)
    while len(segment_files(path)) == len(db.stats().segments):
        db.turns.spend(0.05)  # until an output is begun
    assert db.stats().compactions == 0
    work_s, slices = db.turns.now_s, len(db.turns.slices)
    db.close()
    assert len(db.turns.slices) == slices
    assert db.turns.now_s - work_s <= 0.06, "it went on after the close"
    with harness.open_store(path, "w") as again:
        assert dict(again) == content
        assert again.recovery.clean
        assert {file.name for file in segment_files(path)} == {
            f"{row.segment_id:010}.seg" for row in again.stats().segments
        }, "an output that was given up is left"
        assert again.verify().ok


# --- writers that outrun the worker ----------------------------------------------------------------


def waits_of(db: Store, clock: Clock, puts: int, keys: int) -> list[float]:
    """Overwrite the same keys for some time, with nobody to compact; return what the writer had to wait."""
    clock.pauses.clear()
    overwrite(db, puts, keys)
    return list(clock.pauses)


def test_writers_wait_longer_the_more_is_left_to_compact(by_hand) -> None:
    clock = Clock()
    held: list[bool] = []
    db = by_hand(files=clock, segment_size_bytes=16 * KIB, compact_dead_bytes=1 << 30)
    clock.meanwhile = lambda: held.append(db._commit.state.lock_is_owned())
    overwrite(db, 300, 300)
    live = db.stats().live_bytes
    bound = live + db._segments.sizes.free_dead  # the bytes in all at which the drag begins
    while db.stats().total_bytes < bound - KIB:
        assert waits_of(db, clock, 1, 300) == []
    waits: list[float] = []
    paid: list[float] = []  # for each further time the live bytes
    while db.stats().total_bytes < 20 * live:
        first, goal = len(waits), db.stats().total_bytes + live
        while db.stats().total_bytes < goal:
            waits += waits_of(db, clock, 10, 300)
        paid.append(sum(waits[first:]))
    assert all(later >= 0.95 * earlier for earlier, later in pairwise(paid))  # a wait counts where it ends
    assert 0 < paid[0] < 1 < paid[-1]
    assert min(waits) >= 0.0006, "for less the worker takes as long"
    assert max(waits) == 0.1
    assert len(waits) > 100
    assert not any(held), "a writer waited with the lock in its hands"


def test_what_was_left_by_others_is_not_owed_for(by_hand, path: Path) -> None:
    """A store that was filled with its compaction off and opened with it on slowed its writers down to a third until
    the garbage of years was gone, though they did not add to it."""
    clock = Clock()
    with harness.open_store(path, "c", segment_size_bytes=16 * KIB, auto_compact=False) as db:
        overwrite(db, 9000, 300)
        left = db.stats().total_bytes
    db = by_hand(files=clock, segment_size_bytes=16 * KIB, compact_dead_bytes=1 << 30)
    while db.stats().total_bytes < left + db._segments.sizes.slack - KIB:
        assert waits_of(db, clock, 1, 300) == []
    waits_of(db, clock, 600, 300)
    assert clock.pauses
    db.compact()
    assert waits_of(db, clock, 1, 300) == []
    overwrite(db, 5000, 300)
    assert clock.pauses, "the old measure still holds"


@pytest.mark.parametrize("how", ["batch", "transaction", "incr"])
def test_every_kind_of_write_pays(by_hand, how: str) -> None:
    clock = Clock()
    db = by_hand(files=clock, segment_size_bytes=16 * KIB, compact_dead_bytes=1 << 30)
    overwrite(db, 2000)
    clock.pauses.clear()
    for number in range(200):
        if how == "batch":
            db.update({b"0": b"%0500d" % number})
        elif how == "transaction":
            with db.transaction() as tx:
                tx[b"0"] = b"%0500d" % number
        else:
            db.incr(b"many digits", 10**500)
    assert len(clock.pauses) > 20


@pytest.mark.parametrize(
    "options",
    [
        {"auto_compact": False},
        {"compact_rate_bytes_s": 10**6},
        {"sync": "always"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_a_writer_does_not_wait_where_nothing_is_compacted(by_hand, options: dict[str, Any]) -> None:
    """A rate limit says what compaction may take, so the writers are not made to make room for it; and with
    ``sync="always"`` they wait for the disk, in which time the worker works."""
    clock = Clock()
    db = by_hand(files=clock, compact_dead_bytes=1 << 30, **options)
    assert waits_of(db, clock, 2000, 10) == []


@pytest.mark.parametrize("segment_size_bytes", [4096, 64 * KIB, 1024 * KIB])
def test_small_segments_are_looked_at_too(by_hand, segment_size_bytes: int) -> None:
    """Whether writers outrun the worker was looked at when so many bytes of a segment had been written as a segment of
    less than 1 MiB never has: in such a store they were not slowed down, and it grew without bound."""
    clock = Clock()
    db = by_hand(files=clock, segment_size_bytes=segment_size_bytes, compact_dead_bytes=1 << 30)
    for _ in range(max(12, 300 * KIB // (segment_size_bytes // 3))):
        db[b"key"] = b"." * (segment_size_bytes // 3)
    for _ in range(30):
        db[b"key"] = b"." * (segment_size_bytes // 16)
    assert len(clock.pauses) >= 10


# --- a worker that fails -------------------------------------------------------------------------


def test_damage_stops_compaction_and_is_told(by_hand, path, caplog: pytest.LogCaptureFixture) -> None:
    db = by_hand(files=Clock())
    db[b"kept"] = b"." * 500
    overwrite(db, 200)
    damage(segment_files(path)[0], 300)
    db._work()
    assert "CRC" in (db.stats().background_error or "")
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    files = db._files
    files.pauses.clear()
    before = segment_files(path)
    overwrite(db, 2000)
    db._work()
    assert set(before) <= set(segment_files(path)), "it tried again"
    assert files.pauses == [], "writers waited for a worker that does nothing"
    assert len(caplog.records) == 1
    with pytest.raises(CorruptionError):
        db.compact()
    damage(segment_files(path)[0], 300)
    db.compact()


def test_a_full_disk_puts_it_off(by_hand) -> None:
    class FullDisk(Clock):
        free = 1 << 40

        def free_bytes(self, path: str) -> int:
            return self.free

    disk = FullDisk()
    db = by_hand(files=disk)
    db[b"kept"] = b"." * 500
    overwrite(db, 500)
    disk.free = 0
    db._work()
    assert "free" in (db.stats().background_error or "")
    disk.pauses.clear()
    overwrite(db, 500)
    assert disk.pauses == [], "writers waited for a worker that cannot do anything"
    disk.free = 1 << 40
    db._work()
    assert db.stats().background_error is None
    assert db.stats().total_bytes < 10_000
    assert db._commit.state.throttles


def test_where_no_thread_can_be_had_writers_sync_themselves(path, monkeypatch) -> None:
    """A limit on threads, or an interpreter that shuts down: what the worker would do in time, nobody else does."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with harness.open_store(path, sync="interval", sync_interval_s=3600) as db:
        with monkeypatch.context() as limit:
            limit.setattr(threading.Thread, "start", start)
            for number in range(3):
                db[b"%d" % number] = b"x"
                assert db.durable_seq == db.last_seq == number + 1
        db[b"3"] = b"x"
        db[b"4"] = b"x"
        assert db.durable_seq == 3


def test_a_worker_that_dies_is_told_by_the_next_write(path, monkeypatch, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody expects such an error; all the more it must not vanish with its thread."""

    def pick_wrongly(*arguments: object) -> list[int]:
        raise ZeroDivisionError("nobody expected this")

    db = harness.open_store(path, auto_compact=True, sync="os", segment_size_bytes=4096)
    monkeypatch.setattr("bytekv.engine.space.picker.pick", pick_wrongly)
    with contextlib.suppress(StoreFailedError):  # who comes late enough is told already
        overwrite(db, 100)
    with db._worker._life.done:
        pass
    assert "nobody expected this" in (db.stats().background_error or "")
    assert any("nobody expected this" in record.getMessage() for record in caplog.records)
    with pytest.raises(StoreFailedError, match="nobody expected this"):
        db[b"next"] = b"x"
    assert db[b"9"]
    with pytest.raises(StoreFailedError):
        db.close()
    with harness.open_store(path) as again:
        assert len(again) == 10


def test_work_that_there_is_no_memory_for_is_tried_again_and_told(
    path, monkeypatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its thread ended for good and writes were refused, for a shortage that had long been over."""
    is_short = True
    tries = threading.Semaphore(0)

    def pick_with_effort(*arguments: Any) -> list[int]:
        tries.release()
        if is_short:
            raise MemoryError
        return pick(*arguments)

    harness.tune(monkeypatch, retry_s=0.0)
    with harness.open_store(path, auto_compact=True, sync="os", segment_size_bytes=4096, compact_dead_bytes=64) as db:
        monkeypatch.setattr("bytekv.engine.space.picker.pick", pick_with_effort)
        overwrite(db, 100)
        for _ in range(3):  # one that was begun, and two for which nobody has called
            assert tries.acquire(timeout=60)
        assert db.stats().background_error == "no memory for the work in the background"
        assert not db._commit.state.throttles, "a writer would wait in vain"
        overwrite(db, 100)
        is_short = False
        while db.stats().background_error is not None:
            db._worker.wake()
            assert tries.acquire(timeout=60)
        assert db.stats().compactions
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told == [f"{path}: no memory for the work in the background; it is tried again and again"]


def test_work_is_tried_again_even_if_there_was_no_memory_to_tell() -> None:
    class Employer:
        def __init__(self) -> None:
            self.calls = [MemoryError(), ZeroDivisionError("work"), ZeroDivisionError("work")]
            self.reports = [MemoryError(), MemoryError()]
            self.told: list[BaseException] = []
            self.worker = Worker(self.work, self.failed, "bytekv in want", 0.0)

        def work(self) -> float | None:
            raise self.calls.pop(0)

        def failed(self, error: BaseException) -> bool:
            if self.reports:
                raise self.reports.pop(0)
            self.told.append(error)
            return False

    employer = Employer()
    assert employer.worker.wake()
    with employer.worker._life.done:
        pass
    assert [str(error) for error in employer.told] == ["work"]
    assert not employer.worker.wake()


# --- what is chosen ------------------------------------------------------------------------------

CHOICES = Options(segment_size_bytes=4096, compact_dead_bytes=100, compact_small_files=3)
KEEPING = Options(segment_size_bytes=4096, compact_dead_bytes=100, compact_small_files=3, keep_changes_bytes=6000)
FULL, DEAD, HALF, GRAVES = (4000, 0, 0), (4000, 3000, 0), (4000, 1999, 0), (4000, 0, 3900)
SMALL, TINY = (1000, 0, 0), (60, 0, 0)


@pytest.mark.parametrize(
    ("log", "chosen", "options"),
    [
        ([], [], CHOICES),
        ([FULL, FULL], [], CHOICES),
        ([FULL, DEAD, FULL], [1], CHOICES),
        ([HALF, HALF], [], CHOICES),  # a byte too little
        ([FULL, DEAD, DEAD, FULL, DEAD], [1, 2], CHOICES),  # most to win
        ([DEAD, FULL, (4000, 3500, 0)], [2], CHOICES),
        ([DEAD] * 20, list(range(4)), CHOICES),
        ([(4000, 2100, 0)] * 20, [0, 1], CHOICES),  # their copies fill a segment
        ([FULL, *[DEAD] * 20], list(range(1, 5)), CHOICES),
        ([GRAVES, FULL], [0], CHOICES),  # nothing older that they hide
        ([FULL, GRAVES], [], CHOICES),
        ([FULL, GRAVES, GRAVES], [0, 1, 2], CHOICES),  # together with the full one it is worth it
        ([FULL, GRAVES, GRAVES, FULL], [0, 1, 2], CHOICES),
        ([FULL, FULL, GRAVES, GRAVES, FULL, FULL, FULL], [], CHOICES),
        ([GRAVES, DEAD, FULL], [0, 1], CHOICES),
        ([SMALL] * 2, [], CHOICES),
        ([SMALL] * 3, [0, 1, 2], CHOICES),
        ([FULL, SMALL, SMALL, FULL, SMALL, SMALL, SMALL], [4, 5, 6], CHOICES),
        ([SMALL] * 100, list(range(5)), CHOICES),  # as many as fill a segment
        ([TINY] * 60, list(range(60)), CHOICES),
        ([DEAD, DEAD, DEAD], [0], KEEPING),
        ([DEAD, DEAD], [], KEEPING),
        ([SMALL, *[TINY] * 99], [], KEEPING),
    ],
)
def test_a_choice(log: list[tuple[int, int, int]], chosen: list[int], options: Options) -> None:
    assert pick([SegmentUsage(number, *use) for number, use in enumerate(log)], sizes_of(16_384, options)) == chosen


@pytest.mark.parametrize(("live", "count"), [(0, 2), (8_000, 2), (12_000, 3), (15_999, 3), (16_000, 4), (1 << 30, 4)])
def test_where_little_lives_few_victims_wait_for_their_copies(live: int, count: int) -> None:
    """Four victims of a store of 10 MiB were 16 MiB, and stayed until the last key pointed at its copy: meanwhile the
    writer went on, and 40 MiB were on the disk where 36 are promised."""
    log = [SegmentUsage(number, *DEAD) for number in range(20)]
    assert pick(log, sizes_of(live, CHOICES)) == list(range(count))


@st.composite
def uses_of_a_log(draw: st.DrawFn) -> list[SegmentUsage]:
    """Segments with some dead bytes and some that are dead once nothing older is left; ids in no order."""
    lengths = draw(st.lists(st.integers(SEGMENT_HEADER_SIZE, 1100), max_size=24))
    ids = draw(st.permutations(range(len(lengths))))
    uses = []
    for segment_id, length in zip(ids, lengths, strict=True):
        entries = length - SEGMENT_HEADER_SIZE
        dead = draw(st.integers(0, entries) | st.just(0) | st.just(entries))
        uses.append(SegmentUsage(segment_id, length, dead, draw(st.integers(0, entries - dead) | st.just(0))))
    return uses


options_to_pick_with = st.builds(
    Options,
    segment_size_bytes=st.just(1000),
    compact_dead_bytes=st.sampled_from([0, 16, 200]),
    compact_dead_ratio=st.sampled_from([0.5, 0.1, 1.0]),
    compact_small_files=st.sampled_from([2, 3, 8]),
    keep_changes_bytes=st.sampled_from([0, 0, 1, 1500, 10_000]),
)


@settings(max_examples=300)
@given(uses=uses_of_a_log(), options=options_to_pick_with)
def test_every_choice_has_a_reason(uses: list[SegmentUsage], options: Options) -> None:
    chosen = pick(uses, sizes_of(0, options))
    if not chosen:
        return
    order = [use.segment_id for use in uses]
    first = order.index(chosen[0])
    run = uses[first : first + len(chosen)]
    assert chosen == [use.segment_id for use in run], "no contiguous run"
    assert sum(use.length for use in uses[first + len(chosen) :]) >= options.keep_changes_bytes

    def gain(use: SegmentUsage) -> int:
        return use.dead + (0 if first else use.dead_if_oldest)

    def is_worth(gained: int, length: int) -> bool:
        return gained >= options.compact_dead_bytes and gained >= options.compact_dead_ratio * length

    each_is_worth = all(is_worth(gain(use), use.length) for use in run) and sum(map(gain, run)) > 0
    together = first == 0 and is_worth(sum(map(gain, run)), sum(use.length for use in run))
    small = options.segment_size_bytes // 4
    all_small = all(use.length < small for use in run) and len(run) >= options.compact_small_files
    assert each_is_worth or together or all_small
    if each_is_worth and not together:
        assert len(run) <= 8
    if all_small and not (each_is_worth or together):
        assert sum(use.length for use in run) <= max(
            options.segment_size_bytes + small, options.compact_small_files * small
        )


def compacted(uses: list[SegmentUsage], chosen: list[int], options: Options) -> list[SegmentUsage]:
    """Return the log after a compaction of this run: what is live in as few segments as it needs."""
    first = [use.segment_id for use in uses].index(chosen[0])
    run = uses[first : first + len(chosen)]
    live = sum(use.length - SEGMENT_HEADER_SIZE - use.dead - use.dead_if_oldest for use in run)
    tombstones = sum(use.dead_if_oldest for use in run) if first else 0
    next_id, room = max(use.segment_id for use in uses) + 1, options.segment_size_bytes - SEGMENT_HEADER_SIZE
    outputs = []
    while live or tombstones:  # tombstones come last
        part = min(live, room)
        dead_if_oldest = min(tombstones, room - part)
        outputs.append(SegmentUsage(next_id, SEGMENT_HEADER_SIZE + part + dead_if_oldest, 0, dead_if_oldest))
        live, tombstones, next_id = live - part, tombstones - dead_if_oldest, next_id + 1
    return [*uses[:first], *outputs, *uses[first + len(run) :]]


@settings(max_examples=300)
@given(uses=uses_of_a_log(), options=options_to_pick_with)
def test_every_compaction_leaves_less_to_do(uses: list[SegmentUsage], options: Options) -> None:
    """Bytes or files become fewer by each, so none is chosen twice for the same bytes, and it comes to an end."""
    while chosen := pick(uses, sizes_of(0, options)):
        after = compacted(uses, chosen, options)
        assert (sum(use.length for use in after), len(after)) < (sum(use.length for use in uses), len(uses))
        uses = after
    for use in uses[1:] if not options.keep_changes_bytes else []:
        assert use.dead < max(options.compact_dead_bytes, options.compact_dead_ratio * use.length, 1)


# --- a queue's life ------------------------------------------------------------------------------


class QueueMachine(RuleBasedStateMachine):
    """A queue against a deque, beside the worker: which of the two comes when is hypothesis's choice, too."""

    def __init__(self) -> None:
        super().__init__()
        self.parent = Path(
            tempfile.mkdtemp(prefix="bytekv-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
        )
        self.path = self.parent / "store"
        self.model: deque[tuple[bytes, bytes]] = deque()
        self.cold: dict[bytes, bytes] = {}
        self.number = 0
        self.views: list[tuple[Any, dict[bytes, bytes]]] = []

    @initialize(cold=st.sampled_from([0, 2, 20]), size=st.sampled_from([256, 512, 2000]))
    def begin(self, cold: int, size: int) -> None:
        self.size = size
        self.open()
        for number in range(cold):
            self.db[b"cold-%d" % number] = self.cold[b"cold-%d" % number] = b"." * 80

    def open(self) -> None:
        self.db = TurnsStore(
            self.path, segment_size_bytes=self.size, compact_dead_bytes=50, sync="os", expiry_grace_s=0.0
        )
        self.db.turns.expected()  # opening wakes the worker if there is something to do
        if not self.db._worker._started:
            self.db._worker.wake()

    def teardown(self) -> None:
        if hasattr(self, "db") and not self.db.closed:
            self.db.close()
        shutil.rmtree(self.parent)

    @property
    def content(self) -> dict[bytes, bytes]:
        return {**self.cold, **dict(self.model)}

    @rule(count=st.integers(1, 20), size=st.integers(0, 60), rest_s=st.sampled_from([0, 0.003, 1]))
    def push(self, count: int, size: int, rest_s: float) -> None:
        for _ in range(count):
            self.number += 1
            item = b"job-%08d" % self.number, b"%d" % self.number + b"." * size
            self.db[item[0]] = item[1]
            self.model.append(item)
            self.db.turns.spend(rest_s)

    @rule(count=st.integers(1, 30), rest_s=st.sampled_from([0, 0.003, 1]))
    def pop(self, count: int, rest_s: float) -> None:
        for _ in range(min(count, len(self.model))):
            key, value = self.model.popleft()
            assert next(self.db.scan(b"job-", limit=1)) == (key, value)
            assert self.db.pop(key) == value
            self.db.turns.spend(rest_s)

    @rule(count=st.integers(1, 30))
    def push_and_pop_in_one(self, count: int) -> None:
        for _ in range(count):
            self.push(count=1, size=20, rest_s=0.003)
            with self.db.transaction() as tx:
                key, value = self.model.popleft()
                assert tx.pop(key) == value
            self.db.turns.spend()

    @precondition(lambda self: len(self.views) < 2)
    @rule()
    def look(self) -> None:
        self.views.append((self.db.snapshot(), self.content))

    @precondition(lambda self: self.views)
    @rule()
    def look_away(self) -> None:
        view, content = self.views.pop(0)
        assert dict(view) == content
        view.close()

    @rule(seconds=st.sampled_from([0.003, 0.1]))
    def let_work(self, seconds: float) -> None:
        self.db.turns.spend(seconds)

    @rule()
    def let_finish(self) -> None:
        """What is left is not worth a compaction: less than half of all, or of a segment."""
        self.db._commit.durability._wake()  # a full segment does; here is one more
        self.db.turns.let_worker_finish()
        assert not self.db._maintenance.pick()
        stats = self.db.stats()
        assert stats.background_error is None
        allowed = 2 * stats.live_bytes + 2 * self.size + 100
        assert stats.total_bytes - stats.pinned_bytes <= allowed, stats

    @rule(crashes=st.booleans())
    def reopen(self, crashes: bool) -> None:
        self.views.clear()
        if crashes:
            self.db.crash()
        else:
            self.db.close()
        self.open()

    def check_invariants(self, *arguments: Any, **more: Any) -> None:
        super().check_invariants(*arguments, **more)
        if hasattr(self, "db"):
            assert dict(self.db) == self.content
            for view, content in self.views:
                assert dict(view) == content


def live_as_a_queue(examples: int, steps: int, *, derandomize: bool) -> None:
    run_state_machine_as_test(
        QueueMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            derandomize=derandomize,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.fixture
def every_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let others in after each entry that a compaction reads, and give every segment a hint."""
    harness.tune(monkeypatch, copied_entries=1, moved_keys=1, hint_from=120)


@pytest.mark.usefixtures("every_entry")
def test_a_queue_is_a_deque_whatever_the_worker_does() -> None:
    live_as_a_queue(25, 40, derandomize=True)


@pytest.mark.deep
@pytest.mark.usefixtures("every_entry")
def test_a_queue_is_a_deque_at_length() -> None:
    live_as_a_queue(1500, 80, derandomize=False)
