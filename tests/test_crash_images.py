"""What a power cut may leave is what bytekv promises, at every moment, and after a second one, too (D1 to D6).

A story is a few steps: writes, syncs, rolls, compactions, reopenings, kills. While it is told, at every
boundary (before each sync and each change of a name, and after each step), the double in `crash_files`
says what a power cut would leave there and then: the crash images. Each is opened with the real library
and must hold exactly the operations 1 … R for some R (whole batches, D1; no holes, D2), R being at least
what was promised to be durable at that moment (D4, and D6: what was deleted stays so). It must verify, and
opening it again must find the same and change nothing (D5).

Single crashes find little in a log: it takes a second one to bring back what the first one buried. So from
many images the story goes on, in a double of its own: the store is recovered there, what was lost is
written again, the very same call, and power is cut once more, inside the recovery or after it.

The deep run takes ``BYTEKV_DEEP_SECONDS`` and ``BYTEKV_DEEP_SEED`` from the environment.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bytekv.store import Store
from tests import harness
from tests.crash_files import CrashFiles, Image

KEYS = (b"a", b"b", b"c")

#: key, value (None: delete), ttl. More than one: a batch. None: a clear.
Write = tuple[tuple[bytes, bytes | None, float | None], ...] | None


class Setting(NamedTuple):
    """How a store is opened, and what disk it lies on."""

    sync: str
    io: str
    unit: int
    value_size: int
    segment_size_bytes: int

    @property
    def options(self) -> dict[str, Any]:
        return {
            "sync": self.sync,
            "io": self.io,
            "segment_size_bytes": self.segment_size_bytes,
            "sync_interval_s": 86_400.0,  # only the steps sync
            "expiry_grace_s": 0.0,
        }


MODES = tuple(itertools.product(("always", "interval", "os"), ("mmap", "pread")))
#: unit, value size, segment size: entries reach over the ends of units; two or more of them fill a segment.
#: No disk tears at 64 bytes, but no promise depends on where it does, and it makes many images of few bytes.
SHAPES = ((64, 20, 256), (512, 200, 900), (4096, 1500, 6000))


class Violation(AssertionError):
    """A crash image that breaks a promise."""


class History:
    """What the store held after each operation: the only answers that a crash may leave."""

    def __init__(self) -> None:
        self.states: dict[int, dict[bytes, tuple[bytes, int]]] = {0: {}}  # key -> value, expires_ms
        self.writes: dict[int, Write] = {}
        self.seq = 0

    def add(self, write: Write, now_ms: int) -> None:
        """Note what is about to be written; a batch has one state, that of its last seq."""
        state, seq = self.states[self.seq], self.seq
        alive = {key for key, (_, expires_ms) in state.items() if not 0 < expires_ms <= now_ms}
        if write is None:
            state, seq = ({}, seq + 1) if alive else (state, seq)
        for key, value, ttl in write or ():
            state = dict(state)
            if value is not None:
                state[key] = value, now_ms + round(ttl * 1000) if ttl else 0
                seq += 1
            elif key in alive:
                del state[key]
                seq += 1
        if seq > self.seq:
            self.states[seq], self.writes[seq], self.seq = state, write, seq

    def content(self, seq: int, now_ms: int) -> dict[bytes, bytes]:
        return {key: value for key, (value, expires_ms) in self.states[seq].items() if not 0 < expires_ms <= now_ms}

    def until(self, seq: int) -> History:
        """Return the history of a store that lost everything after ``seq``."""
        other = History()
        other.states = {at: state for at, state in self.states.items() if at <= seq}
        other.writes = {at: write for at, write in self.writes.items() if at <= seq}
        other.seq = seq
        return other

    def lost(self, seq: int) -> list[Write]:
        return [write for at, write in self.writes.items() if at > seq]


# --- steps -------------------------------------------------------------------------------------


class Step(NamedTuple):
    verb: str
    write: Write = None
    seconds: float = 0.0


def put(key: bytes, value: bytes, ttl: float | None = None) -> Step:
    return Step("write", ((key, value, ttl),))


def delete(key: bytes) -> Step:
    return Step("write", ((key, None, None),))


def batch(*writes: tuple[bytes, bytes | None]) -> Step:
    return Step("write", tuple((key, value, None) for key, value in writes))


CLEAR, SYNC, SEAL, WORK, KILL = map(Step, ("write", "sync", "seal", "work", "kill"))
CLOSE, RENEW = map(Step, ("close", "renew"))  # and open again; "renew": as a new and empty one
COMPACT, COMPACT_OLDEST, COMPACT_NEWER = map(Step, ("compact", "compact oldest", "compact newer"))


def carry_out(db: Store, step: Step) -> None:
    """Do to an open store what a step says."""
    if step.verb == "write":
        if step.write is None:
            db.clear()
        elif len(step.write) == 1:
            ((key, value, ttl),) = step.write
            if value is None:
                db.delete(key)
            else:
                db.put(key, value, ttl=ttl)
        else:
            with db.batch() as writes:
                for key, value, ttl in step.write:
                    if value is None:
                        writes.delete(key)
                    else:
                        writes.put(key, value, ttl=ttl)
    elif step.verb == "sync":
        before = db.last_seq
        db.sync()
        assert db.durable_seq >= before
    elif step.verb == "seal":
        db._commit.seal()
    elif step.verb == "work":
        db._work()
    elif step.verb == "compact":
        db.compact()
    else:  # a part only, as the automatic compaction does; deletes must be kept for what lies outside it
        sealed = [row.segment_id for row in db._segments.sealed()]
        victims = sealed[:1] if step.verb == "compact oldest" else sealed[1:]
        if victims:
            db._compactor.run(victims, lambda: None, lambda size: None)


# --- telling a story ---------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What opening found."""

    seq: int
    content: dict[bytes, bytes]


def fitting(found: Outcome, allowed: list[tuple[History, int]], now_ms: int, promise: str) -> History:
    """Return the history that an outcome belongs to; `Violation` says why there is none."""
    wrong = []
    for history, floor in allowed:
        if found.seq not in history.states:
            wrong.append(f"seq {found.seq} is no end of an operation (D1); there are {list(history.states)}")
        elif found.content != (expected := history.content(found.seq, now_ms)):
            wrong.append(f"holds {found.content} at seq {found.seq}, expected {expected} (D2, D5, D6)")
        elif found.seq < floor:
            wrong.append(f"ends at seq {found.seq}, expected at least {floor} ({promise})")
        else:
            return history
    raise Violation("; ".join(wrong))


class Killed(BaseException):
    """The process ends at a boundary."""


class MortalFiles(CrashFiles):
    """A double whose process may die: then nothing on disk changes any more, whatever is still cleaned up."""

    is_dead = False

    def unlink(self, path: str) -> bool:
        return not self.is_dead and super().unlink(path)


class Taken(NamedTuple):
    """The images of one boundary, and what they may hold: a history from the seq on that must have survived."""

    where: str
    allowed: list[tuple[History, int]]
    images: list[Image]


class Session:
    """One life of the machine, from power on to power off: a store on a double, and what it was told."""

    def __init__(self, root: Path, setting: Setting, history: History, seed: int, now_ns: int | None = None) -> None:
        self.setting, self.history = setting, history
        self.files = MortalFiles(root, unit=setting.unit, seed=seed)
        self.files.time_ns = now_ns or self.files.time_ns
        self.files.at_boundary = self.boundary
        self.path = root / "store"
        self.floor = history.seq  # what survives a power cut
        self.acknowledged = history.seq  # what survives the process
        self.replaced: list[tuple[History, int]] = []  # what may be there instead while flag "n" is at work
        self.at_most = 0  # images at a boundary
        self.taken: list[Taken] = []
        self.where = "the first open"
        self.kill_at = -1  # boundaries from now
        self.db: Store | None = None

    def boundary(self, call: str) -> None:
        """Take the images of this moment; die if it is time."""
        if self.kill_at == 0:
            self.files.is_dead = True
            raise Killed
        self.kill_at -= 1
        if self.db is not None:
            durable = self.db._commit.durable_seq
            self.floor = max(self.floor, durable)
            if self.setting.sync == "always":
                visible = {key: value for key in KEYS if (value := self.db.get(key)) is not None}
                if visible != self.history.content(durable, self.files.now_ms()):
                    raise Violation(f"{self.where}, {call}: visible before it is durable: {visible}")
        if self.at_most:
            allowed = [(self.history, self.floor), *self.replaced]
            self.taken.append(Taken(f"{self.where}, {call}", allowed, list(self.files.images(self.at_most))))

    def open(self, flag: str = "c") -> None:
        """Open the store; what is there then is durable."""
        db = harness.open_store(self.path, flag, files=self.files, **self.setting.options)
        found = Outcome(db.last_seq, dict(db.items()))
        allowed = [(self.history, self.acknowledged), *self.replaced]
        self.history = fitting(found, allowed, self.files.now_ms(), "D3").until(found.seq)
        self.replaced = []
        self.floor = self.acknowledged = found.seq
        self.db = db
        self.boundary("opened")

    def kill(self) -> None:
        """End the process; the kernel goes on, and what was not synced is only in its memory."""
        if self.db is not None:
            harness.crash(self.db)
        self.db, self.kill_at, self.files.is_dead = None, -1, False

    def take(self, step: Step, kill_at: int = -1) -> None:
        """Carry out one step; kill the process at its ``kill_at``-th boundary, if it has so many, and open again."""
        self.where, self.kill_at = str(step), kill_at
        try:
            self._take(step)
        except Killed:
            self.where += ", killed"
            self.kill()
            self.open()
        self.kill_at = -1

    def _take(self, step: Step) -> None:
        db = self.db
        if step.verb == "open":
            self.open()
            return
        assert db is not None
        if step.verb == "wait":
            self.files.sleep(step.seconds)
        elif step.verb == "kill":
            self.kill()
            self.open()
        elif step.verb in ("close", "renew"):
            self.db = None
            db.close()
            self.floor = self.history.seq
            self.boundary("closed")
            if step.verb == "renew":
                self.replaced = [(self.history, self.floor)]
                self.history, self.floor, self.acknowledged = History(), 0, 0
            self.open("n" if step.verb == "renew" else "c")
        else:
            if step.verb == "write":
                self.history.add(step.write, self.files.now_ms())
            carry_out(db, step)
            if db.last_seq != self.history.seq:
                raise Violation(f"{step}: at seq {db.last_seq}, expected {self.history.seq}")
            self.acknowledged = self.history.seq
            if self.setting.sync == "always":
                self.floor = self.history.seq
            self.boundary("returned")

    def end(self) -> None:
        """Cut the power; nothing more is asked of this machine."""
        self.files.at_boundary = lambda call: None
        self.kill()


# --- judging what it left ----------------------------------------------------------------------


class Judge:
    """Open crash images, compare them with a history, let the story go on from some, and count."""

    def __init__(self, root: Path, seed: int = 0) -> None:
        self.root, self.seed = root, seed
        self.counts: Counter[str] = Counter()
        self._outcomes: dict[tuple[bytes, Setting, int], Outcome] = {}
        self._fresh = itertools.count()

    def _place(self) -> Path:
        place = self.root / f"{next(self._fresh)}"
        place.mkdir()
        return place

    def tell(
        self, steps: Iterable[Step], setting: Setting, *, at_most: int, share: float, whole: bool = True, kills: int = 0
    ) -> None:
        """Tell a story, judge up to ``at_most`` images of each boundary, go on from a ``share`` of the new ones.

        ``whole``: the images of every step; else of the last alone, because the others are those of a shorter
        story. ``kills``: seed of the process's deaths in the middle of steps, 0: none.
        """
        place, steps = self._place(), [Step("open"), *steps]
        deaths = random.Random(kills)
        session = Session(place, setting, History(), 0)
        try:
            for number, step in enumerate(steps, 1):
                session.at_most = at_most if whole or number == len(steps) else 0
                session.take(step, deaths.choice([-1, -1, 0, 1, 2, 3, 5, 8, 13]) if kills else -1)
                for image, outcome, history in self._examine(session, steps[:number], ""):
                    if image.digest()[0] < share * 256:
                        self._go_on(image, outcome, history, session)
        finally:
            session.end()
        self.counts["stories"] += 1
        shutil.rmtree(place)

    def _go_on(self, image: Image, outcome: Outcome, history: History, before: Session) -> None:
        """Recover an image in a double of its own, write what was lost again or something else, crash again."""
        place, dice, setting = self._place(), random.Random(image.digest()), before.setting
        image.put_into(place)
        lost = [Step("write", write) for write in history.lost(outcome.seq)]
        session = Session(place, setting, history.until(outcome.seq), dice.getrandbits(32), before.files.time_ns)
        session.at_most = 4
        fresh = [random_step(dice, setting) for _ in range(3)]
        steps = [*dice.choice([lost, lost, lost[:1], lost[-1:], []]), *fresh][: dice.randint(1, 3)]
        try:
            for step in [Step("open"), *steps]:
                session.take(step, dice.choice([-1, -1, -1, -1, 0, 1, 2, 3, 5, 8]))
                for _ in self._examine(session, ("after a crash at seq", outcome.seq, *steps), " after a second crash"):
                    pass
        finally:
            session.end()
        self.counts["stories that went on"] += 1
        shutil.rmtree(place)

    def _examine(self, session: Session, story: object, when: str) -> Iterator[tuple[Image, Outcome, History]]:
        """Judge every image that a session has taken since the last call; yield those never seen before."""
        taken, session.taken = session.taken, []
        now_ns, setting = session.files.time_ns, session.setting
        for where, allowed, images in taken:
            self.counts["boundaries" + when] += 1
            for image in images:
                self.counts["images" + when] += 1
                key = image.digest(), setting, now_ns
                is_new = key not in self._outcomes
                try:
                    if is_new:
                        self.counts["different images" + when] += 1
                        self._outcomes[key] = self._open(image, setting, now_ns)
                    history = fitting(self._outcomes[key], allowed, now_ns // 1_000_000, "D4")
                except Exception as error:
                    raise Violation(
                        f"{type(error).__name__}: {error}\nat {where}\nin {story}\n{setting}, seed {self.seed}"
                    ) from error
                if is_new:
                    yield image, self._outcomes[key], history

    def _open(self, image: Image, setting: Setting, now_ns: int) -> Outcome:
        """Open an image: for reading, for writing, and, because once more must be the same as once (D5), again."""
        place = self._place()
        image.put_into(place)
        outcomes, left = [], []
        for flag in "rcc" if any(name.endswith("MANIFEST") for name, _, _ in image.files) else "cc":
            db = harness.open_store(place / "store", flag, files=PlainFiles(now_ns / 1e9), **setting.options)
            try:
                outcomes.append(Outcome(db.last_seq, dict(db.items())))
                if not (report := db.verify()).ok or db.durable_seq != db.last_seq:
                    raise Violation(f"opened with {flag!r}: {report}, durable up to seq {db.durable_seq}")
            finally:
                harness.crash(db)
            left += [harness.snapshot_of(place)] if flag == "c" else []
        if outcomes[1:] != outcomes[:-1] or left[0] != left[1]:
            raise Violation(f"opened again: {outcomes}, before {left[0]}, after {left[1]}")
        shutil.rmtree(place)
        return outcomes[0]

    def __str__(self) -> str:
        return f"seed {self.seed}: " + ", ".join(f"{count:,} {what}" for what, count in sorted(self.counts.items()))


class PlainFiles(harness.FakeFiles):
    """The real files, the clock set by hand."""

    def is_network(self, path: str) -> bool:
        return False


# --- stories -----------------------------------------------------------------------------------


def short_steps(number: int, shape: tuple[int, int, int]) -> list[Step]:
    """List what the ``number``-th step of a short story may be; the first is a write."""

    def value(sign: str) -> bytes:
        return f"{number}{sign}".encode().ljust(shape[1], b"v")

    writes = [put(b"a", value("a")), put(b"b", value("b")), batch((b"a", value("A")), (b"c", value("C")))]
    return [*writes, *([delete(b"a"), SYNC, SEAL, COMPACT, COMPACT_NEWER, CLOSE, KILL] if number else [])]


def short_stories(length: int, shape: tuple[int, int, int]) -> Iterator[tuple[Step, ...]]:
    yield from itertools.product(*(short_steps(number, shape) for number in range(length)))


def random_step(dice: random.Random, setting: Setting) -> Step:
    def value() -> bytes:
        return (b"%x." % dice.getrandbits(32)).ljust(dice.choice([0, 1, 2, 3]) * setting.value_size // 2, b"v")

    key, other = dice.sample(KEYS, 2)
    return dice.choice(
        [
            *[put(key, value())] * 6,
            *[delete(key)] * 4,
            *[batch((key, value()), (other, value())), batch((key, value()), (other, None))] * 2,
            *[put(key, value(), ttl=10.0), Step("wait", seconds=20.0)],
            *[CLEAR, SYNC, SYNC, SEAL, SEAL, COMPACT, COMPACT_OLDEST, COMPACT_NEWER, COMPACT_NEWER],
            *[WORK, CLOSE, CLOSE, KILL, KILL, RENEW],
        ]
    )


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory, in memory where the machine has such, for the many small files."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    place = Path(tempfile.mkdtemp(prefix="bytekv-", dir=base))
    yield place
    shutil.rmtree(place)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the worker's thread from starting, and make what is rare with large segments common with small."""
    monkeypatch.setattr("bytekv.worker.Worker.wake", lambda self: True)
    for module in ("recovery", "compactor"):
        monkeypatch.setattr(f"bytekv.{module}.HINT_FROM", 120)
    monkeypatch.setattr("bytekv.compactor._SLICE", 1)
    monkeypatch.setattr("bytekv.compactor._FLUSH", 200)
    monkeypatch.setattr("bytekv.segment._FIRST_STEP", 256)
    monkeypatch.setattr("bytekv.segment.RESERVE", 64)


# --- the double bites --------------------------------------------------------------------------


def contents(files: CrashFiles, name: str, at_most: int = 4096) -> set[bytes | None]:
    """Return what the file may hold after a power cut; None: there may be no such file."""
    return {
        next((content.ljust(length, b"\0") for path, content, length in image.files if path == name), None)
        for image in files.images(at_most)
    }


def write(files: CrashFiles, path: Path, content: bytes, *, sync: bool = False) -> None:
    descriptor = files.open(str(path), write=True, create=True)
    files.write(descriptor, content, 0, str(path))
    if sync:
        files.sync(descriptor, str(path))
    files.close(descriptor)


def test_what_was_not_synced_may_be_lost_whole_or_by_halves(place: Path) -> None:
    (place / "log").write_bytes(b"a" * 1024)
    files = CrashFiles(place)
    write(files, place / "log", b"b" * 1024)
    a, b = b"a" * 512, b"b" * 512
    assert contents(files, "log") == {a + a, a + b, b + a, b + b}
    write(files, place / "log", b"c" * 512)
    assert contents(files, "log") == {one + other for one in (a, b, b"c" * 512) for other in (a, b)}
    write(files, place / "log", b"d" * 1024, sync=True)
    assert contents(files, "log") == {b"d" * 1024}


def test_a_growing_file_may_be_short_or_end_in_zeros(place: Path) -> None:
    (place / "log").write_bytes(b"a" * 100)
    files = CrashFiles(place)
    write(files, place / "log", b"a" * 100 + b"b" * 500)
    long, short = b"a" * 100 + b"b" * 412, b"a" * 100
    assert contents(files, "log") == {
        *(short, short.ljust(600, b"\0"), short.ljust(512, b"\0") + b"b" * 88),
        *(long.ljust(600, b"\0"), long + b"b" * 88),
    }


def test_a_cut_file_may_come_back_in_its_old_length(place: Path) -> None:
    (place / "log").write_bytes(b"a" * 100)
    files = CrashFiles(place)
    descriptor = files.open(str(place / "log"), write=True)
    files.truncate(descriptor, 10, str(place / "log"))
    assert contents(files, "log") >= {b"a" * 100, b"a" * 10}
    files.sync(descriptor, str(place / "log"))
    assert contents(files, "log") == {b"a" * 10}
    files.close(descriptor)


def test_a_mapped_write_is_seen_though_nothing_was_called(place: Path) -> None:
    (place / "log").write_bytes(bytes(4096))
    files = CrashFiles(place, unit=4096)
    descriptor = files.open(str(place / "log"), write=True)
    mapping = files.map(descriptor, 4096, str(place / "log"), write=True)
    mapping[:5] = b"first"
    assert contents(files, "log") == {bytes(4096), b"first".ljust(4096, b"\0")}
    mapping[:5] = b"other"
    assert len(contents(files, "log")) == 3
    files.sync(descriptor, str(place / "log"))
    assert contents(files, "log") == {b"other".ljust(4096, b"\0")}
    mapping.close()
    files.close(descriptor)


def test_a_synced_file_is_gone_if_its_name_was_not_synced(place: Path) -> None:
    files = CrashFiles(place)
    write(files, place / "new", b"new", sync=True)
    assert contents(files, "new") == {None, b"new"}
    files.sync_directory(str(place))
    assert contents(files, "new") == {b"new"}


def test_a_toy_store_that_renames_without_a_sync_of_the_directory_loses_its_file(place: Path) -> None:
    """Write a temporary file, sync it, rename it, unlink the old ones: fine on any real ext4, wrong all the same."""
    for adversarial in (False, True):
        (toy := place / f"{adversarial}").mkdir()
        (toy / "list").write_bytes(b"old")
        (toy / "old").write_bytes(b"what the old list names")
        files = CrashFiles(toy, adversarial=adversarial)
        write(files, toy / "list.new", b"new", sync=True)
        files.replace(str(toy / "list.new"), str(toy / "list"))
        assert contents(files, "list") == {b"old", b"new"}
        files.unlink(str(toy / "old"))
        left = {tuple(content for _, content, _ in image.files if content != b"new") for image in files.images(64)}
        assert (left >= {(b"old",)}) == adversarial  # its file is gone, and it is the list that stays
        files.sync_directory(str(toy))
        assert [image.files for image in files.images(64)] == [(("list", b"new", 3),)]


def test_names_survive_as_a_prefix_or_as_any_subset_that_can_be(place: Path) -> None:
    for adversarial, expected in (False, {"a", "ab", "b", "c"}), (True, {"", "a", "ab", "b", "c", "ac"}):
        (toy := place / f"{adversarial}").mkdir()
        (toy / "a").write_bytes(b"")
        files = CrashFiles(toy, adversarial=adversarial)
        write(files, toy / "b", b"")
        files.unlink(str(toy / "a"))
        files.replace(str(toy / "b"), str(toy / "c"))
        assert {"".join(name for name, _, _ in image.files) for image in files.images(64)} == expected


def test_a_directory_that_is_lost_takes_along_what_lies_in_it(place: Path) -> None:
    files = CrashFiles(place)
    files.make_directory(str(place / "store"))
    write(files, place / "store" / "new", b"new", sync=True)
    files.sync_directory(str(place / "store"))
    assert sorted((image.folders, bool(image.files)) for image in files.images(9)) == [((), False), (("store",), True)]
    files.sync_directory(str(place))
    assert contents(files, "store/new") == {b"new"}


def test_an_image_is_made_of_real_files_and_starts_a_double_of_its_own(place: Path) -> None:
    (place / "one").mkdir()
    (place / "two").mkdir()
    files = CrashFiles(place / "one")
    files.make_directory(str(place / "one" / "store"))
    write(files, place / "one" / "store" / "new", b"new".ljust(100_000, b"\0"))
    last = [*files.images(64)][-1]
    last.put_into(place / "two")
    assert harness.snapshot_of(place / "two") == harness.snapshot_of(place / "one")
    assert [image.digest() for image in CrashFiles(place / "two").images(64)] == [last.digest()]


def test_a_sample_is_as_large_as_asked_for_and_the_same_for_the_same_seed(place: Path) -> None:
    (place / "log").write_bytes(b"a" * 512 * 20)
    samples = []
    for _ in range(2):
        files = CrashFiles(place, seed=7)
        descriptor = files.open(str(place / "log"), write=True)
        files.write(descriptor, b"b" * 512 * 20, 0, str(place / "log"))
        samples.append([image.digest() for image in files.images(100)])
        files.close(descriptor)
        (place / "log").write_bytes(b"a" * 512 * 20)
    assert samples[0] == samples[1]
    assert len(samples[0]) == 100


# --- bytekv on it ------------------------------------------------------------------------------


@pytest.mark.usefixtures("often")
def test_the_stale_entry_behind_a_lost_one_never_returns(place: Path) -> None:
    """Three writes, the page of the second is lost; written again in the same place, the third would follow it.

    Every image of every boundary, and from each the story goes on.
    """
    judge = Judge(place)
    for io in ("mmap", "pread"):
        setting = Setting("os", io, 512, 480, 6000)
        steps = [put(key, key * 480) for key in KEYS]
        judge.tell(steps, setting, at_most=4096, share=1.0)
    assert judge.counts["images"] > 60, judge
    assert judge.counts["images after a second crash"] > 1000, judge


@pytest.mark.usefixtures("often")
def test_every_short_story(place: Path) -> None:
    """All sequences of up to two steps in every mode, and of three in one mode each, in turn."""
    judge = Judge(place)
    for length in (1, 2, 3):
        for number, story in enumerate(zip(*(short_stories(length, shape) for shape in SHAPES), strict=True)):
            for turn, (sync, io) in enumerate(MODES):
                if length < 3 or turn == number % len(MODES):
                    shape = (number + turn) % len(SHAPES)
                    judge.tell(story[shape], Setting(sync, io, *SHAPES[shape]), at_most=6, share=0.05, whole=False)
    assert judge.counts["images"] > 4000, judge
    assert judge.counts["images after a second crash"] > 4000, judge


def random_story(seed: str) -> tuple[list[Step], Setting, int]:
    """Return steps, setting and the seed of kills; every other story has none."""
    dice = random.Random(seed)
    setting = Setting(*dice.choice(MODES), *dice.choice(SHAPES))
    steps = [random_step(dice, setting) for _ in range(dice.randint(4, 16))]
    return steps, setting, dice.choice([0, dice.getrandbits(32)])


@pytest.mark.usefixtures("often")
def test_random_stories(place: Path) -> None:
    judge = Judge(place)
    for number in range(20):
        steps, setting, kills = random_story(f"0 {number}")
        judge.tell(steps, setting, at_most=5, share=0.1, kills=kills)
    assert judge.counts["images"] > 1000, judge
    assert judge.counts["images after a second crash"] > 3000, judge


def test_stories_on_files_of_the_usual_size(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 64 KiB of preallocation and 32 KiB of reserve, nothing patched but the worker."""
    monkeypatch.setattr("bytekv.worker.Worker.wake", lambda self: True)
    judge = Judge(place)
    for number in range(4):
        steps, setting, kills = random_story(f"usual {number}")
        judge.tell(steps, setting, at_most=5, share=0.1, kills=kills)
    assert judge.counts["images"] > 200, judge


Told = tuple[str, Sequence[Step], Setting, dict[str, Any]]


def told_in_order(seed: int) -> Iterator[Told]:
    """Yield every story of one to three steps in every mode, then for ever some of four to six."""
    for length in (1, 2, 3):
        for number, stories in enumerate(zip(*(short_stories(length, shape) for shape in SHAPES), strict=True)):
            for turn, mode in enumerate(MODES):
                shape = (number + turn) % len(SHAPES)
                how = {"at_most": 16, "share": 0.05, "whole": False}
                yield f"of {length} steps", stories[shape], Setting(*mode, *SHAPES[shape]), how
    dice = random.Random(seed)
    for length in itertools.cycle((4, 5, 6)):
        shape = dice.choice(SHAPES)
        steps = [dice.choice(short_steps(number, shape)) for number in range(length)]
        yield f"of {length} steps", steps, Setting(*dice.choice(MODES), *shape), {"at_most": 64, "share": 0.1}


def told_at_random(seed: int) -> Iterator[Told]:
    for number in itertools.count():
        steps, setting, kills = random_story(f"{seed} {number}")
        yield f"at random ({'with' if kills else 'no'} kills)", steps, setting, {
            "at_most": 12, "share": 0.3, "kills": kills
        }  # fmt: skip


@pytest.mark.deep
@pytest.mark.usefixtures("often")
def test_stories_for_as_long_as_one_likes(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seconds = float(os.environ.get("BYTEKV_DEEP_SECONDS", "300"))
    judge = Judge(place, int(os.environ.get("BYTEKV_DEEP_SEED", "0")))
    began = time.monotonic()
    kinds: Counter[str] = Counter()
    violations: list[str] = []
    for share, stories in (0.4, told_in_order(judge.seed)), (1.0, told_at_random(judge.seed)):
        for kind, steps, setting, how in stories:
            kinds[kind] += 1
            try:
                judge.tell(steps, setting, **how)
            except Violation as violation:
                violations.append(str(violation))
            if time.monotonic() - began > share * seconds or len(violations) > 10:
                break
    with capsys.disabled():
        print(f"\n{time.monotonic() - began:.0f} s, {len(violations)} violations, {judge}")
        print("stories " + ", ".join(f"{kind}: {count:,}" for kind, count in kinds.items()))
    assert not violations, "\n\n".join(violations)
