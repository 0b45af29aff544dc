"""What a power cut may leave is what bytekv promises, at every moment, and after a second one, too (D1 to D6).

Each crash image must hold exactly the operations 1 … R for some R (whole batches, D1; no holes, D2), R being
at least what was promised to be durable at that moment (D4, and D6: what was deleted stays so). It must
verify, and opening it again must find the same and change nothing (D5).

Single crashes find little in a log: it takes a second one to bring back what the first one buried. So from
many images the story goes on: the store is recovered there, what was lost is written again, the very same
call, and power is cut once more, inside the recovery or after it.
"""

from __future__ import annotations

import itertools
import random
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from bytekv.contract.reports import Report
from bytekv.engine.integrity.repair import repair_directory
from bytekv.engine.log.directory import Directory
from bytekv.engine.log.files import Files
from tests.support import harness
from tests.support.crash_files import CrashFiles, Image
from tests.support.crash_stories import (
    CLOSE,
    COMPACT,
    COMPACT_NEWER,
    KEYS,
    MODES,
    OPEN,
    RENEW,
    SEAL,
    SHAPES,
    SYNC,
    History,
    Judge,
    Session,
    Setting,
    Step,
    Violation,
    beginnings,
    carry_out,
    put,
    random_step,
    short_steps,
    short_stories,
)
from tests.support.harness import Case

pytestmark = pytest.mark.once


@pytest.fixture
def place(path: Path) -> Path:
    return path.parent


#: What is rare with large segments is common with small ones.
OFTEN = {
    **harness.NO_WORKER,
    **harness.tuned(copied_entries=1, moved_keys=1, hint_from=120, flushed_bytes=200, first_step=256, reserve=64),
}


@pytest.fixture
def often() -> Iterator[None]:
    with harness.patched(OFTEN):
        yield


@pytest.mark.usefixtures("often")
def test_the_stale_entry_behind_a_lost_one_never_returns(place: Path) -> None:
    """Three writes, the page of the second is lost; written again in the same place, the third would follow it.

    Every image of every boundary, and from each the story goes on; up to 16 images of each boundary there.
    """
    judge = Judge(place)
    for io in ("mmap", "pread"):
        steps = [put(key, key * 480) for key in KEYS]
        judge.tell(steps, Setting("os", io, 512, 480, 6000), at_most=4096, share=1.0, again=16, only_again=True)
    assert judge.counts["images"] > 60, judge
    assert judge.counts["images after a second crash"] > 2500, judge


def all_short_stories(length: int) -> Iterator[tuple[list[Step], int, Setting]]:
    """Yield the stories of so many steps after each beginning, the number of their last step, and every setting."""
    for beginning in beginnings(SHAPES[0]):
        tables = [short_stories(length, shape, beginning) for shape in SHAPES]
        for number, stories in enumerate(zip(*tables, strict=True)):
            for turn in range(len(MODES)):
                mode, shape = (number + turn) % len(MODES), (number // len(MODES) + turn) % len(SHAPES)
                yield stories[shape], len(stories[shape]), Setting(*MODES[mode], *SHAPES[shape])


@pytest.mark.usefixtures("often")
def test_every_short_story(place: Path) -> None:
    """Every step from each beginning, from nothing also every two steps and every other three; each in some modes."""
    judge = Judge(place)
    for length, every in (1, 2), (2, len(MODES)), (3, 2 * len(MODES)):
        for steps, last, setting in itertools.islice(all_short_stories(length), 0, None, every):
            if last <= 3 or length == 1:
                judge.tell(steps, setting, at_most=3, share=0.02, begin=last)
    assert judge.counts["images"] > 4000, judge
    assert judge.counts["images after a second crash"] > 2000, judge


def stories_to_be_killed(every: int) -> Iterator[tuple[list[Step], int, Setting]]:
    """Yield stories, the number of the step to be killed, and settings: of the six modes each ``every``-th."""
    turns = itertools.count()
    for beginning, shape in zip(beginnings(SHAPES[0]), itertools.cycle(SHAPES), strict=False):
        begin, write = beginnings(shape)[beginning], short_steps(shape)[0]
        after = [put(b"c", b"after".ljust(shape[1])), SYNC]
        for step in [write, SEAL, COMPACT, COMPACT_NEWER, CLOSE, RENEW] if begin else [OPEN, write]:
            for mode in MODES:
                if next(turns) % every == 0:
                    story = [*begin, step, *after] if step is not OPEN else after
                    yield story, len(story) - len(after), Setting(*mode, *shape)


def tellings_with_kills(judge: Judge, every: int) -> Iterator[Callable[[], object]]:
    """Yield tellings of the same stories, each killed a boundary later than the one before."""
    died: list[bool] = []
    for story, number, setting in stories_to_be_killed(every):
        for boundary in itertools.count():
            how = {"at_most": 4, "share": 0.02, "begin": number + 1, "deaths": {number: boundary}}
            yield lambda story=story, setting=setting, how=how: died.append(judge.tell(story, setting, **how))  # type: ignore[misc]
            if not died[-1]:
                break


@pytest.mark.usefixtures("often")
def test_a_kill_at_every_boundary_of_a_step_and_then_a_power_cut(place: Path) -> None:
    """What a killed process left unsynced is still in the kernel's memory, and the next one builds on it."""
    judge = Judge(place)
    for tell in tellings_with_kills(judge, every=23):
        tell()
    assert judge.counts["stories"] > 75, judge


@pytest.mark.usefixtures("often")
def test_the_id_of_a_file_that_was_swept_is_not_used_again(place: Path) -> None:
    """A compaction is killed at each boundary; what it leaves is swept, and the next segment has an id of its own."""
    for boundary in itertools.count():
        session = Session(Path(tempfile.mkdtemp(dir=place)), Setting("os", "pread", *SHAPES[0]), History(), 0)
        seen: set[str] = set()

        def watch(call: str, session: Session = session, seen: set[str] = seen) -> None:
            seen.update(session.files.names)
            session.boundary(call)

        session.files.at_boundary = watch
        for step in [OPEN, *beginnings(SHAPES[0])["overwritten and deleted"]]:
            session.take(step)
        session.take(COMPACT_NEWER, boundary)
        before, left = set(seen), set(session.files.names)
        if session.deaths:
            session.take(put(b"a", b"in a segment of its own"))
            (new,) = {name for name in session.files.names if name.endswith(".seg")} - left
            assert new not in before
        session.end()
        if not session.deaths:
            break
    assert boundary > 10


def repair(path: Path, files: Files) -> Report:
    """Do what `bytekv.repair` does, on these files and with small segments."""
    directory = Directory(str(path), files, tuning=harness.TUNING)
    directory.acquire()
    try:
        return repair_directory(directory, SHAPES[0][2])
    finally:
        directory.release()


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("damaged", ["0000000001.seg", "0000000002.seg", "MANIFEST"])
@pytest.mark.parametrize("beginning", ["overwritten and deleted", "cleared"])
def test_a_power_cut_in_the_middle_of_a_repair(place: Path, beginning: str, damaged: str) -> None:
    """Whatever it leaves, one more repair ends as the first would have, and then the store opens."""
    options = Setting("os", "pread", *SHAPES[0]).options
    with harness.open_store(place / "store", files=harness.QuickFiles(), **options) as db:
        for step in beginnings(SHAPES[0])[beginning]:
            carry_out(db, step)
    harness.damage(place / "store" / damaged, 90 if damaged.endswith("seg") else 30)
    images: dict[bytes, Image] = {}
    files = CrashFiles(place)
    files.at_boundary = lambda call: images.update({image.digest(): image for image in files.images(64)})
    assert not repair(place / "store", files).ok
    repaired = None
    for image in reversed(images.values()):
        image.put_into(again := Path(tempfile.mkdtemp(dir=place)))
        repair(again / "store", harness.QuickFiles())
        with harness.open_store(again / "store", "w", files=harness.QuickFiles(), **options) as db:
            assert db.verify().ok
            content, repaired = dict(db.items()), repaired or dict(db.items())
            assert content == repaired
    assert repaired
    assert len(images) > 12


def test_stories_on_files_of_the_usual_size(place: Path) -> None:
    """With 64 KiB of preallocation and 32 KiB of reserve, nothing patched but the worker."""
    judge = Judge(place)
    with harness.patched(harness.NO_WORKER):
        for number in range(4):
            steps, setting, deaths = random_story(f"usual {number}")
            judge.tell(steps, setting, at_most=5, share=0.1, deaths=deaths)
    assert judge.counts["images"] > 200, judge


def random_story(seed: str) -> tuple[list[Step], Setting, dict[int, int]]:
    """Return steps, setting and, in every other story, the deaths of the process in the middle of steps."""
    dice = random.Random(seed)
    setting = Setting(*dice.choice(MODES), *dice.choice(SHAPES))
    steps = [random_step(dice, setting) for _ in range(dice.randint(4, 16))]
    likely = dice.choice([0.0, 0.7])
    deaths = {number: int(dice.expovariate(0.2)) for number in range(len(steps) + 1) if dice.random() < likely}
    return steps, setting, deaths


def tellings_in_turn(judge: Judge) -> Iterator[Callable[[], object]]:
    """Yield short stories, of one and two steps after each beginning and of three from nothing, and longer ones.

    Of the short ones every one in every mode, if there is time; of those of four to six steps a sample.
    """
    dice = random.Random(judge.seed)
    short = [
        (steps, setting, {"at_most": 16, "share": 0.05, "begin": last})
        for length in (1, 2, 3)
        for steps, last, setting in all_short_stories(length)
        if last <= 3 or length < 3
    ]
    dice.shuffle(short)
    for length in itertools.cycle((4, 5, 6)):
        if short:
            steps, setting, how = short.pop()
            yield partial(judge.tell, steps, setting, **how)
        shape = dice.choice(SHAPES)
        steps = [*dice.choice([*beginnings(shape).values()])]
        steps += [dice.choice(short_steps(shape, len(steps) + number)) for number in range(length)]
        yield partial(judge.tell, steps, Setting(*dice.choice(MODES), *shape), at_most=32, share=0.05)


def tellings_at_random(judge: Judge) -> Iterator[Callable[[], object]]:
    for number in itertools.count():
        steps, setting, deaths = random_story(f"{judge.seed} {number}")
        how = {"at_most": 12, "share": 0.3, "again": 4 if number % 4 else 32, "deaths": deaths}
        yield partial(judge.tell, steps, setting, **how)


def crash_images(place: Path, seed: int) -> Iterator[Case]:
    """Tell stories without end, of each kind in turn; the cases are the images of a first and of a second crash."""
    judge = Judge(place, seed)
    kinds = [tellings_in_turn(judge), tellings_at_random(judge), tellings_with_kills(judge, every=1)]
    with harness.patched(OFTEN):
        while kinds:
            before, error = judge.counts.copy(), None
            try:
                if (tell := next(kinds[0], None)) is None:
                    kinds.pop(0)
                    continue
                tell()
            except Violation as violation:
                error = violation
            kinds.append(kinds.pop(0))
            new = judge.counts - before
            yield Case("crash images", error, count=new["images"])
            yield Case("crash images, second crash", count=new["images after a second crash"])


@pytest.mark.usefixtures("often")
def test_random_stories(place: Path) -> None:
    judge = Judge(place)
    for number in range(10):
        steps, setting, deaths = random_story(f"0 {number}")
        judge.tell(steps, setting, at_most=5, share=0.1, deaths=deaths)
    assert judge.counts["images"] > 500, judge
    assert judge.counts["images after a second crash"] > 1500, judge
