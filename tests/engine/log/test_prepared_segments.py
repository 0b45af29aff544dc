"""The next segment's file is made beforehand, by the worker: a roll costs a writer less, and a crash nothing."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bytekv
from bytekv.engine.log.segment import Writer
from bytekv.engine.log.segment_manager import SegmentManager
from bytekv.errors import DiskFullError
from tests.crash.test_crash_images import OFTEN
from tests.support.crash_stories import (
    COMPACT,
    MODES,
    PREPARE,
    SEAL,
    SHAPES,
    SYNC,
    WORK,
    Judge,
    Setting,
    put,
)
from tests.support.harness import NO_WORKER, FakeFiles, crash, damage, open_store, patched, segment_files, tuned

MIB = 1024 * 1024


@pytest.fixture
def by_hand() -> Iterator[None]:
    """Do the worker's work in the test, and prepare also for small segments."""
    with patched(NO_WORKER | tuned(prepare_from=1)):
        yield


def ids(path: Path) -> list[int]:
    return [int(file.stem) for file in segment_files(path)]


def fill(db: Any, until: int) -> None:
    """Put until so many bytes are in the active segment."""
    number = 0
    while db._segments.writer is None or db._segments.writer.end < until:
        number += 1
        db.put(b"%d" % number, bytes(2000))


@pytest.mark.usefixtures("by_hand")
@pytest.mark.parametrize("io", ["mmap", "pread"])
def test_the_worker_prepares_what_a_roll_begins(path: Path, io: str) -> None:
    with open_store(path, io=io, sync="os", segment_size_bytes=100_000) as db:
        fill(db, 50_000)
        db._work()
        assert ids(path) == [1], "it is too early"
        fill(db, 90_000)
        db._work()
        assert ids(path) == [1, 2]
        assert [row.segment_id for row in db.stats().segments] == [1]
        prepared = db._segments.prepared
        db._work()
        assert db._segments.prepared is prepared, "one is enough"
        last = db.last_seq
        fill(db, 100_000 - 2000)
        db[b"next"] = bytes(5000)
        assert db._segments.writer is prepared
        assert db._segments.prepared is None
        assert prepared.header.previous_id == 1
        assert prepared.header.previous_seq >= last
        assert sum(1 for _ in db.changes(0)) == db.last_seq, "the feed goes on through it"
        fill(db, 90_000)
        db._work()
        content = dict(db)
        assert db.verify().ok
    assert ids(path) == [1, 2], "a clean end leaves nothing behind"
    with open_store(path) as db:
        assert db.recovery.clean
        assert not db.recovery.swept
        assert dict(db) == content


@pytest.mark.usefixtures("by_hand")
def test_what_was_prepared_is_swept_after_a_crash_and_its_number_is_not_used_again(path: Path) -> None:
    db = open_store(path, sync="os", segment_size_bytes=100_000)
    fill(db, 90_000)
    db._work()
    content = dict(db)
    crash(db)
    assert ids(path) == [1, 2]
    with open_store(path, segment_size_bytes=100_000) as db:
        assert db.recovery.swept == ["0000000002.seg"]
        assert dict(db) == content
        db[b"k"] = b"v"
        assert ids(path) == [1, 3]


@pytest.mark.usefixtures("by_hand")
def test_one_that_is_damaged_does_not_pass_for_the_newest_log(path: Path) -> None:
    """Half of a batch that a crash had torn, in the segment before it, was taken for durable."""
    db = open_store(path, sync="os", segment_size_bytes=100_000)
    fill(db, 90_000)
    db._work()
    db[b"late"] = b"v"
    content = dict(db)
    db.update({b"torn/%d" % number: b"v" for number in range(10)})
    end = db._segments.writer.end
    crash(db)
    first, second = segment_files(path)
    damage(first, end - 1)  # in the last entry of the batch
    damage(second, 5000)
    (path / "MANIFEST").unlink()
    bytekv.repair(path)
    with open_store(path) as db:
        assert dict(db) == content


@pytest.mark.usefixtures("by_hand")
def test_a_full_disk_has_the_prepared_file_back(path: Path) -> None:
    class Full(FakeFiles):
        is_full = False

        def reserve(self, descriptor: int, size: int, path: str) -> None:
            if self.is_full and len(ids(Path(db.path))) > 1:
                raise DiskFullError(errno.ENOSPC, "No space left on device", path)
            super().reserve(descriptor, size, path)

    files = Full()
    with open_store(path, files=files, io="mmap", sync="os", segment_size_bytes=400_000) as db:
        fill(db, 330_000)
        db._work()
        assert ids(path) == [1, 2]
        files.is_full = True
        fill(db, 390_000)
        assert ids(path) == [1]
        assert db._segments.prepared is None
        files.is_full = False


@pytest.mark.usefixtures("by_hand")
def test_where_it_cannot_be_prepared_the_roll_makes_it(path: Path) -> None:
    class NoRoom(FakeFiles):
        makes_none = False

        def open_new(self, *arguments: Any, **named: Any) -> int:
            if self.makes_none:
                raise DiskFullError(errno.ENOSPC, "No space left on device", "")
            return super().open_new(*arguments, **named)

    files = NoRoom()
    with open_store(path, files=files, io="pread", sync="os", segment_size_bytes=100_000) as db:
        fill(db, 90_000)
        files.makes_none = True
        db._work()
        assert db._segments.prepared is None
        assert db.stats().background_error is None
        for number in range(3):
            db[b"few"] = b"%d" % number
            assert not db._commit.state.wants_next, "once is enough, or each put would have the worker try again"
        files.makes_none = False
        db[b"more"] = bytes(20_000)
        assert len(db.stats().segments) == 2


class Interrupting(FakeFiles):
    """The next manifest is there, and nobody has heard of it."""

    strikes = False

    def replace(self, source: str, target: str) -> None:
        super().replace(source, target)
        if self.strikes:
            self.strikes = False
            raise KeyboardInterrupt


@pytest.mark.usefixtures("by_hand")
def test_an_interrupted_roll_keeps_its_number(path: Path) -> None:
    """The worker was given the number of the segment that had just been published, made its own file in place of that,
    and what was acknowledged from then on went into a file without a name."""
    files = Interrupting()
    db = open_store(path, files=files, sync="os", segment_size_bytes=100_000)
    fill(db, 97_000)
    files.strikes = True
    with pytest.raises(KeyboardInterrupt):
        db[b"rolls"] = bytes(5000)
    db._work()
    db[b"more"] = b"1"
    content = dict(db)
    assert ids(path) == [1, 2, 3]
    assert db.verify().ok
    crash(db)
    with open_store(path) as db:
        assert dict(db) == content


@pytest.mark.usefixtures("by_hand")
def test_an_interrupted_roll_keeps_its_number_beside_a_compaction(path: Path) -> None:
    """The same with the number of a compaction's output."""
    files = Interrupting()
    db = open_store(path, files=files, sync="os", segment_size_bytes=100_000)
    for _ in range(35):  # dead, so that the interrupt comes before the copy has its number
        db[b"kept"] = bytes(2000)
    db._commit.seal()
    (victim,) = ids(path)
    fill(db, 97_000)
    was_struck = False

    def pause() -> None:
        nonlocal was_struck
        if not was_struck:
            files.strikes = was_struck = True
            with pytest.raises(KeyboardInterrupt):
                db[b"rolls"] = bytes(5000)

    db._maintenance.compactor.run([victim], pause, lambda _: None)
    assert was_struck
    db[b"more"] = b"1"
    content = dict(db)
    assert db.verify().ok
    crash(db)
    with open_store(path) as db:
        assert dict(db) == content


@pytest.mark.usefixtures("by_hand")
@pytest.mark.parametrize("ends", ["rolled", "sealed", "closed"])
def test_a_segment_that_comes_too_late_is_not_begun(path: Path, ends: str) -> None:
    """A roll need not wait for the worker. Its segment had the higher number then, and the prepared one was begun after
    it: a repair without a manifest, which goes by the numbers, took two thirds of the store for what never was.
    Or the store was closed by a finaliser in the worker's own thread."""
    db = open_store(path, sync="os", segment_size_bytes=100_000)
    fill(db, 97_000)
    real, made = SegmentManager.create_writer, []

    def create(*arguments: Any) -> Writer:
        new = real(*arguments)
        made.append(new)
        if len(made) == 1:
            if ends == "closed":
                db.close()
            else:
                db[b"rolls"] = bytes(5000)
            if ends == "sealed":
                db._commit.seal()
        return new

    with patched({"bytekv.engine.log.segment_manager.SegmentManager.create_writer": create}):
        db._work()
    assert db._segments.prepared is None
    assert made[0]._descriptor is None, "closed"
    if ends == "closed":
        db = open_store(path, sync="os", segment_size_bytes=100_000)
    for _ in range(2):
        fill(db, 97_000)
        db[b"rolls"] = bytes(5000)
    numbers = [row.segment_id for row in db._segments.manifest.segments]
    assert numbers == sorted(numbers)
    content = dict(db)
    db.close()
    (path / "MANIFEST").unlink()
    assert len(bytekv.repair(path).damage) == 1, "the manifest"
    with open_store(path) as db:
        assert dict(db) == content


@pytest.mark.usefixtures("by_hand")
def test_what_was_prepared_says_nothing_of_the_segment_before(path: Path) -> None:
    """It was made when five eighths were full. A repair without a manifest took what followed for what never was."""
    db = open_store(path, sync="os", segment_size_bytes=100_000)
    fill(db, 90_000)
    db._work()
    assert ids(path) == [1, 2]
    fill(db, 97_000)
    db.sync()
    content = dict(db)
    crash(db)
    (path / "MANIFEST").unlink()
    assert len(bytekv.repair(path).damage) == 1, "the manifest"
    with open_store(path) as db:
        assert dict(db) == content


def test_tiny_segments_are_not_worth_it(path: Path) -> None:
    with patched(NO_WORKER), open_store(path, sync="os", segment_size_bytes=100_000) as db:
        fill(db, 90_000)
        db._work()
        assert ids(path) == [1]


@pytest.mark.parametrize("shape", [SHAPES[0], *(pytest.param(shape, marks=pytest.mark.deep) for shape in SHAPES[1:])])
def test_a_crash_around_a_prepared_roll_loses_nothing(path: Path, shape: tuple[int, ...]) -> None:
    """Power cuts at every boundary, and kills of each step, in every mode; with a compaction whose output comes
    between, so that numbers are in no order."""
    value = b"x" * shape[1]
    story = [put(b"a", value), PREPARE, put(b"b", value), put(b"c", value), WORK, PREPARE, COMPACT, put(b"a", value)]
    path.mkdir()
    with patched(OFTEN):
        judge = Judge(path)
        for mode in MODES:
            judge.tell(story, Setting(*mode, *shape), at_most=6, share=0.02)
        for number, mode in zip(range(2, len(story) + 1), itertools.cycle(MODES), strict=False):
            for boundary in range(30):
                how: dict[str, Any] = {"at_most": 3, "share": 0.01, "begin": number, "deaths": {number: boundary}}
                if not judge.tell([*story, SEAL, SYNC], Setting(*mode, *shape), **how):
                    break
    assert judge.counts["images"] > 200, judge
