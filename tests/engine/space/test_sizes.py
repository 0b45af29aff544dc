"""The one rule of sizes: what a store of so many live bytes looks like, and how much disk it takes for that.

A store small enough to be real runs in lockstep with its worker (`tests/support/turns.py`), to scale; a large one is
a list of segments with so many live and dead bytes, beside the same `pick` and the same `Throttle`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bytekv.engine.codec.manifest import SEGMENT_HEADER_SIZE
from bytekv.engine.log.sizes import sizes_of
from bytekv.engine.space.picker import SegmentUsage, pick
from bytekv.engine.write.throttle import Throttle
from bytekv.options import Options
from tests.support import harness
from tests.support.harness import QuickFiles, fresh, patched
from tests.support.turns import READ_S, Turns, TurnsStore, bytes_on_disk

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

# --- the rule -----------------------------------------------------------------------------------


def test_segments_grow_with_what_lives() -> None:
    def segment(live: int, **options: Any) -> int:
        return sizes_of(live, Options(**options)).segment

    assert segment(0) == segment(64 * MIB) == 4 * MIB
    assert segment(128 * MIB) == 8 * MIB
    assert segment(GIB) == segment(1000 * GIB) == 64 * MIB
    assert segment(0, segment_size_bytes=4096) == segment(GIB, segment_size_bytes=4096) == 4096
    assert segment(GIB, segment_size_bytes=GIB) == 64 * MIB
    assert segment(100 * GIB, segment_size_bytes=GIB) == GIB


@given(live=st.integers(0, 1 << 45), more=st.integers(0, 1 << 30), size=st.integers(256, GIB))
def test_everything_follows_from_the_current_size(live: int, more: int, size: int) -> None:
    sizes = sizes_of(live, Options(segment_size_bytes=size))
    assert min(size, 4 * MIB) <= sizes.segment <= size
    assert sizes.segment <= sizes_of(live + more, Options(segment_size_bytes=size)).segment
    assert sizes.small == sizes.segment // 4
    assert sizes.worth <= sizes.segment // 4, "no segment would ever pass that"
    assert sizes.slack >= sizes.segment
    assert sizes.slack - max(0, sizes.kept - 8 * MIB) <= max(sizes.segment * 5 // 2, 256 * KIB)
    assert sizes.free_dead < sizes.dear_dead <= live + max(4 * sizes.segment, 512 * KIB)


def test_the_throttle_begins_at_what_the_thresholds_leave() -> None:
    """With one third dead at most, a store is a half larger than what lives, not twice; writers are to see to that."""
    lazy, usual, eager = (sizes_of(GIB, Options(compact_dead_ratio=ratio)) for ratio in (0.75, 0.5, 0.25))
    assert (lazy.dead_per_live, usual.dead_per_live, round(eager.dead_per_live, 3)) == (3, 1, 0.333)
    assert lazy.free_dead > usual.free_dead > eager.free_dead
    assert sizes_of(GIB, Options(compact_dead_ratio=1.0)).dead_per_live == 100


def test_the_end_of_the_log_is_kept_unless_segments_are_tiny() -> None:
    assert sizes_of(0, Options()).kept == 8 * MIB
    assert sizes_of(0, Options(segment_size_bytes=4 * MIB)).kept == 8 * MIB
    assert sizes_of(0, Options(segment_size_bytes=4 * MIB - 1)).kept == 0
    assert sizes_of(0, Options(keep_changes_bytes=0)).kept == 0
    most = sizes_of(0, Options(keep_changes_bytes=GIB))
    assert most.kept == GIB
    assert most.free_dead > GIB, "what nobody may give back is nobody's debt"


# --- a small store, to scale ----------------------------------------------------------------------

SCALE = 16


@pytest.fixture
def to_scale() -> Iterator[None]:
    """Make everything that is counted in bytes, and is no option, smaller by the scale."""
    smaller = {
        "smallest_segment": 4 * MIB,
        "kept_changes": 8 * MIB,
        "seldom_looked": MIB,
        "paid": 32 * KIB,
        "hint_from": 64 * KIB,
        "reserve": 48 * KIB,
        "manifest_room": 16 * KIB,
        "first_step": 64 * KIB,
    }
    small = {name: size // SCALE for name, size in smaller.items()}
    with patched(harness.tuned(copied_entries=2, moved_keys=2, **small)):
        yield


@pytest.mark.usefixtures("to_scale")
@pytest.mark.parametrize(("live_mib", "slower"), [(1, 4), (8, 1), (20, 4)])
def test_a_small_store_stays_small(path: Path, live_mib: int, slower: int) -> None:
    """22 MiB that were overwritten for ever took 300 MiB: a segment had 64 MiB, and eight of them were the slack."""
    db = TurnsStore(
        path,
        Turns(SCALE, slower * READ_S),
        segment_size_bytes=64 * MIB // SCALE,
        compact_dead_bytes=MIB // SCALE,
    )
    rest = random.Random(1)
    keys = [b"%08d" % number for number in range(live_mib * MIB // SCALE // 1028)]
    for key in keys:
        db.put_in_turn(key, b"." * 993)
    live = db.stats().live_bytes
    peak = 0
    for number in range(max(8000, 4 * len(keys))):
        db.put_in_turn(rest.choice(keys), b"%0993d" % number)
        if number % 8 == 0:
            peak = max(peak, bytes_on_disk(path))
    assert db.stats().compactions > 2
    db.turns.free()
    db.close()
    assert peak <= 2 * live + 16 * MIB // SCALE
    assert bytes_on_disk(path) <= 2 * live + 16 * MIB // SCALE


@pytest.mark.usefixtures("to_scale")
def test_a_store_of_large_segments_shrinks_to_the_rule(path: Path) -> None:
    """One that an older bytekv has filled: its segments are of 64 MiB, and so are what they leave."""
    large = 64 * MIB // SCALE
    with patched(harness.tuned(smallest_segment=large)), harness.open_store(path, auto_compact=False) as db:
        for number in range(6000):
            db[b"%d" % (number % 500)] = b"%0993d" % number
        assert max(row.length_bytes for row in db.stats().segments) > large * 9 // 10
    db = TurnsStore(path, Turns(SCALE), segment_size_bytes=large, compact_dead_bytes=MIB // SCALE)
    content = dict(db)
    for number in range(2000):
        content[b"%d" % (number % 500)] = value = b"%0993d" % -number
        db.put_in_turn(b"%d" % (number % 500), value)
    db.turns.let_worker_finish()
    stats = db.stats()
    assert dict(db) == content
    assert max(row.length_bytes for row in stats.segments) <= 4 * MIB // SCALE
    assert stats.total_bytes <= 2 * stats.live_bytes + 16 * MIB // SCALE
    db.turns.free()
    db.close()


@pytest.mark.usefixtures("to_scale")
def test_the_active_segment_shrinks_with_the_store(path: Path) -> None:
    """After a clear() the next segment was as large as suited what had been there before."""
    with patched(harness.NO_WORKER), harness.open_store(path, auto_compact=True, files=Patient()) as db:
        number = 0
        while db._segments.sizes.segment < 6 * MIB // SCALE or db._segments.writer.end > 100_000:
            db[b"%d" % (number := number + 1)] = b"." * 1000
        db.clear()
        active = db._segments.writer.header.segment_id
        for number in range(1000):
            db[b"%d" % (number % 10)] = b"." * 1000
        after = [row.length_bytes for row in db.stats().segments if row.segment_id >= active]
        assert len(after) > 2
        assert max(after) <= 4 * MIB // SCALE


@pytest.mark.usefixtures("to_scale")
def test_changes_reach_back_through_what_was_compacted_before(path: Path) -> None:
    with harness.open_store(path, segment_size_bytes=64 * MIB // SCALE) as db:
        for number in range(5000):
            db[b"%d" % (number % 100)] = b"." * 993
        assert db._maintenance.pick()
        while victims := db._maintenance.pick():
            db._maintenance.compactor.run(victims, lambda: None, lambda _: None)
        kept = 8 * MIB // SCALE // 1027
        assert sum(1 for _ in db.changes(db.last_seq - kept)) == kept


# --- a large store, as a list of segments -----------------------------------------------------------


class Model:
    """A store of which only sizes are known, overwritten evenly, beside a worker of a certain speed."""

    def __init__(self, live: int, worker_share: float) -> None:
        self.live, self.worker_share = live, worker_share
        self.sizes = sizes_of(live, Options())
        segment = self.sizes.segment
        self.log: list[list[float]] = [[segment, segment] for _ in range(live // segment)]  # length, of it live
        self.active = [0.0, 0.0]
        self.throttle = Throttle()
        self.job: tuple[int, int, float] | None = None  # first victim, their number, bytes to read
        self.copied = 0.0
        self.peak = 0.0

    def write(self, size: int) -> None:
        """Overwrite so many bytes, evenly spread over what lives."""
        keeps = 1 - size / self.live
        for row in self.log:
            row[1] *= keeps
        self.active = [self.active[0] + size, self.active[1] * keeps + size]
        dead = sum(row[0] - row[1] for row in self.log) + self.active[0] - self.active[1]
        self.throttle.look(int(self.active[0]), round(dead), self.sizes, self.is_due)
        put_s, waited_s = size * 2e-6 / 128, self.throttle._price_s * size / (32 * KIB)
        self.work(put_s * self.worker_share + waited_s)
        if self.active[0] >= self.sizes.segment:
            self.log.append(self.active)
            self.active = [0.0, 0.0]
        self.peak = max(self.peak, sum(row[0] for row in self.log) + self.active[0] + self.copied)

    def is_due(self) -> bool:
        return self.job is not None or bool(self.choice())

    def choice(self) -> list[int]:
        uses = [
            SegmentUsage(number, int(length), max(0, int(length - live) - SEGMENT_HEADER_SIZE), 0)
            for number, (length, live) in enumerate(self.log)
        ]
        return pick(uses, self.sizes, int(self.active[0]))

    def work(self, seconds: float) -> None:
        budget = seconds / (2.6e-6 / 128)
        while budget > 0:
            if self.job is None:
                victims = self.choice()
                if not victims:
                    return
                run = self.log[victims[0] : victims[-1] + 1]
                self.job = victims[0], len(victims), sum(row[0] for row in run)
            first, count, left = self.job
            run = self.log[first : first + count]
            done = min(left, budget)
            budget -= done
            self.copied += done * sum(row[1] for row in run) / sum(row[0] for row in run)
            self.job = first, count, left - done
            if left - done <= 0:
                lives = sum(row[1] for row in run)
                outputs = []
                while lives >= SEGMENT_HEADER_SIZE:
                    outputs.append([min(lives, self.sizes.segment)] * 2)
                    lives -= self.sizes.segment
                self.log[first : first + count] = outputs
                self.job, self.copied = None, 0.0


def overwrite_model(live: int, rounds: float, step: int) -> Model:
    model = Model(live, 0.1)
    for _ in range(int(rounds * live / step)):
        model.write(step)
    return model


def test_four_gibibytes_take_twice_that_and_four_segments() -> None:
    model = overwrite_model(4 * GIB, 2.5, 16 * MIB)
    assert model.peak <= 2 * model.live + 4 * model.sizes.segment
    assert model.peak > 1.5 * model.live, "writers were held back for nothing"


@pytest.mark.deep
def test_a_hundred_gigabytes_take_twice_that_and_four_segments() -> None:
    model = overwrite_model(100 * 10**9, 2, 32 * MIB)
    assert model.peak <= 2 * model.live + 4 * model.sizes.segment


# --- writers wait only for what helps ---------------------------------------------------------------

any_options = st.fixed_dictionaries(
    {
        "segment_size_bytes": st.sampled_from([256, 4096, 64 * KIB, 4 * MIB, 64 * MIB, GIB]),
        "compact_dead_ratio": st.sampled_from([0.01, 0.25, 0.5, 0.9, 1.0]),
        "compact_dead_bytes": st.sampled_from([0, 64, MIB, 1 << 40]),
        "compact_small_files": st.sampled_from([2, 8, 1 << 20]),
        "keep_changes_bytes": st.sampled_from([None, 0, 3000, 1 << 50]),
        "auto_compact": st.sampled_from([True, True, False]),
        "compact_rate_bytes_s": st.sampled_from([None, None, 1 << 40]),
    }
)


class Patient(QuickFiles):
    """Tells who sleeps."""

    def __init__(self) -> None:
        super().__init__()
        self.when_paused: list[bool] = []
        self.is_helped: Any = lambda: True

    def pause(self, seconds: float) -> None:
        self.when_paused.append(self.is_helped())


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    options=any_options,
    keys=st.sampled_from([1, 10, 200]),
    size=st.sampled_from([0, 20, 300, 5000]),
    how=st.lists(st.sampled_from(["put", "put", "delete", "work", "compact"]), min_size=1, max_size=8),
)
def test_writers_are_slowed_down_only_for_a_compaction_that_is_due(
    path: Path, options: dict[str, Any], keys: int, size: int, how: list[str]
) -> None:
    """With small segments they slept up to 0.1 s each: dead bytes passed the throttle's bound, and no segment passed
    `compact_dead_bytes`. Over combinations of options, whenever a writer sleeps there are victims for the worker."""
    files = Patient()
    with patched(harness.NO_WORKER | harness.tuned(smallest_segment=8 * KIB, kept_changes=16 * KIB)):
        db = harness.open_store(fresh(path), files=files, **options)
        files.is_helped = lambda: bool(db._maintenance.pick()) and options["auto_compact"]
        with db:
            for number in range(100):
                db[b"%d" % (number % keys)] = b"." * size
            for verb in how:
                if verb == "put":
                    for number in range(150):
                        db[b"%d" % (number % keys)] = b"." * size
                elif verb == "delete":
                    for number in range(keys):
                        db.pop(b"%d" % number, None)
                elif verb == "work":
                    files.is_helped = lambda: True  # the worker's own
                    db._work()
                    files.is_helped = lambda: bool(db._maintenance.pick()) and options["auto_compact"]
                else:
                    db.compact()
            if not options["auto_compact"] or options["compact_rate_bytes_s"]:
                assert db.stats().throttled_s == 0
        assert all(files.when_paused)
