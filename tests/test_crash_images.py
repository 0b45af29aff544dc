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
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from bytekv import check
from bytekv.directory import Directory
from bytekv.files import Files
from bytekv.snapshot import Snapshot
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
    write: Write = None  # with any verb but "write" and "transaction": what another thread writes meanwhile,
    boundary: int = 0  # at this one of the boundaries that come without a lock held
    seconds: float = 0.0


def put(key: bytes, value: bytes, ttl: float | None = None) -> Step:
    return Step("write", ((key, value, ttl),))


def delete(key: bytes) -> Step:
    return Step("write", ((key, None, None),))


def batch(*writes: tuple[bytes, bytes | None]) -> Step:
    return Step("write", tuple((key, value, None) for key, value in writes))


OPEN, SYNC, SEAL, WORK, KILL, SNAPSHOT = map(Step, ("open", "sync", "seal", "work", "kill", "snapshot"))
CLEAR = Step("write")
CLOSE, RENEW = Step("close"), Step("renew")  # and open again; "renew": as a new and empty store
#: Of everything, of the oldest segment alone, of all but the oldest; the latter two as the worker does, which must
#: keep deletes for what lies outside.
COMPACT, COMPACT_OLDEST, COMPACT_NEWER = map(Step, ("compact", "compact oldest", "compact newer"))


def carry_out(db: Store, step: Step) -> None:
    """Do to an open store what a step says."""
    if step.verb == "write" and step.write is None:
        db.clear()
    elif step.verb == "write" and len(step.write or ()) == 1:
        ((key, value, ttl),) = step.write or ()
        if value is None:
            db.delete(key)
        else:
            db.put(key, value, ttl=ttl)
    elif step.verb == "write":
        with db.batch() as writes:
            for key, value, ttl in step.write or ():
                if value is None:
                    writes.delete(key)
                else:
                    writes.put(key, value, ttl=ttl)
    elif step.verb == "transaction":
        with db.transaction() as transaction:
            for key, value, ttl in step.write or ():
                if value is None:
                    transaction.pop(key, None)
                else:
                    transaction.put(key, value, ttl=ttl)
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
    else:
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

    def __init__(
        self, root: Path, setting: Setting, history: History, at_most: int, seed: int = 0, now_ns: int | None = None
    ) -> None:
        self.setting, self.history = setting, history
        self.files = MortalFiles(root, unit=setting.unit, seed=seed)
        self.files.time_ns = now_ns or self.files.time_ns
        self.files.at_boundary = self.boundary
        self.path = root / "store"
        self.floor = history.seq  # what survives a power cut
        self.acknowledged = history.seq  # what survives the process
        self.replaced: list[tuple[History, int]] = []  # what may be there instead while flag "n" is at work
        self.at_most = at_most  # images at a boundary
        self.is_watched = True  # whether images are taken
        self.taken: list[Taken] = []
        self.where = "the first open"
        self.kill_at = -1  # boundaries from now
        self.deaths = 0
        self.beside: Write = None  # what another thread is to write
        self.beside_at = 0  # boundaries without a lock from now
        self.db: Store | None = None
        self.snapshot: tuple[Snapshot, dict[bytes, tuple[bytes, int]]] | None = None

    def boundary(self, call: str) -> None:
        """Take the images of this moment; die if it is time."""
        if self.kill_at == 0:
            self.files.is_dead = self.is_watched = True
            self.deaths += 1
            raise Killed
        self.kill_at -= 1
        if self.beside is not None and self.db is not None and self._is_free(self.db):
            if self.beside_at == 0:
                self._write_beside(self.db)
            self.beside_at -= 1
        if self.db is not None:
            durable = self.db._commit.durable_seq
            self.floor = max(self.floor, durable)
            if self.setting.sync == "always":
                visible = {key: value for key in KEYS if (value := self.db.get(key)) is not None}
                if visible != self.history.content(durable, self.files.now_ms()):
                    raise Violation(f"{self.where}, {call}: visible before it is durable: {visible}")
        if self.is_watched:
            allowed = [(self.history, self.floor), *self.replaced]
            self.taken.append(Taken(f"{self.where}, {call}", allowed, list(self.files.images(self.at_most))))

    def _is_free(self, db: Store) -> bool:
        """Tell whether another thread could write now, and need not wait for this one to go on."""
        locked = db._commit.lock._is_owned()
        return not locked and not (self.setting.sync == "always" and db._commit.sync_lock._is_owned())

    def _write_beside(self, db: Store) -> None:
        write, self.beside = self.beside, None
        errors: list[BaseException] = []

        def work() -> None:
            try:
                carry_out(db, Step("write", write))
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]

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
        self.db, self.snapshot, self.beside, self.kill_at, self.files.is_dead = None, None, None, -1, False

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
        elif step.verb == "snapshot":
            self._look_back()
            self.snapshot = db.snapshot(), self.history.states[db.last_seq]
        elif step.verb == "kill":
            self.kill()
            self.open()
        elif step.verb in ("close", "renew"):
            self._look_back()
            self.db = None
            db.close()
            self.floor = self.history.seq
            self.boundary("closed")
            if step.verb == "renew":
                self.replaced = [(self.history, self.floor)]
                self.history, self.floor, self.acknowledged = History(), 0, 0
            self.open("n" if step.verb == "renew" else "c")
        else:
            if step.verb == "write" or step.write:
                self.history.add(step.write, self.files.now_ms())
            if step.verb not in ("write", "transaction"):
                self.beside, self.beside_at = step.write, step.boundary
            carry_out(db, step)
            if self.beside is not None:
                self._write_beside(db)  # there was no such boundary
            if db.last_seq != self.history.seq:
                raise Violation(f"{step}: at seq {db.last_seq}, expected {self.history.seq}")
            self.acknowledged = self.history.seq
            if self.setting.sync == "always":
                self.floor = self.history.seq
            self.boundary("returned")

    def _look_back(self) -> None:
        """Compare the snapshot that is open, if there is one, with what the store held then, and close it."""
        if self.snapshot is not None:
            (snapshot, state), self.snapshot = self.snapshot, None
            now_ms = self.files.now_ms()
            found = dict(snapshot.items())
            if found != {key: value for key, (value, expires_ms) in state.items() if not 0 < expires_ms <= now_ms}:
                raise Violation(f"{self.where}: the snapshot shows {found} of {state}")
            snapshot.close()

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
        self,
        steps: Iterable[Step],
        setting: Setting,
        *,
        at_most: int,
        share: float,
        again: int = 4,
        only_again: bool = False,
        begin: int = 0,
        deaths: Mapping[int, int] = MappingProxyType({}),
    ) -> bool:
        """Tell a story and judge it; True if the process died in it.

        ``at_most``: images of a boundary. ``share``: from how many of the new ones the story goes on, with
        ``again`` images of each boundary there; ``only_again``: with what was lost and nothing else.
        ``deaths``: at which boundary of which step the process is killed. ``begin``: from which step on, or
        from the first death on, images are taken. Step 0 is the one that opens the store.
        """
        place, steps = self._place(), [OPEN, *steps]
        session = Session(place, setting, History(), at_most)
        session.is_watched = False
        try:
            for number, step in enumerate(steps):
                session.is_watched |= number >= begin
                session.take(step, deaths.get(number, -1))
                for image, outcome, history in self._examine(session, steps[: number + 1], ""):
                    if image.digest()[0] < share * 256:
                        self._go_on(image, outcome, history, session, again, only_again=only_again)
        finally:
            session.end()
        self.counts["stories"] += 1
        shutil.rmtree(place)
        return session.deaths > 0

    def _go_on(
        self, image: Image, outcome: Outcome, history: History, before: Session, at_most: int, *, only_again: bool
    ) -> None:
        """Recover an image in a double of its own, write what was lost again or something else, crash again."""
        place, dice, setting = self._place(), random.Random(image.digest()), before.setting
        image.put_into(place)
        lost = [Step("write", write) for write in history.lost(outcome.seq)]
        seed, now_ns = dice.getrandbits(32), before.files.time_ns
        session = Session(place, setting, history.until(outcome.seq), at_most, seed, now_ns)
        fresh = [random_step(dice, setting) for _ in range(3)]
        steps = [*dice.choice([lost, lost, lost[:1], lost[-1:], []]), *fresh][: dice.randint(1, 3)]
        deaths = [-1, -1, -1, -1, 0, 1, 2, 3, 5, 8]
        if only_again:
            steps, deaths = lost, [-1]
        try:
            for step in [OPEN, *steps]:
                session.take(step, dice.choice(deaths))
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
        """Open an image twice, for once more must be the same as once (D5); some for reading before that."""
        place = self._place()
        image.put_into(place)
        is_store = any(name.endswith("MANIFEST") for name, _, _ in image.files)
        outcomes, left = [], []
        for flag in "rcc" if is_store and image.digest()[1] < 64 else "cc":
            db = harness.open_store(place / "store", flag, files=PlainFiles(now_ns / 1e9), **setting.options)
            try:
                outcomes.append(Outcome(db.last_seq, dict(db.items())))
                if db.durable_seq != db.last_seq:
                    raise Violation(f"opened at seq {db.last_seq}, durable up to {db.durable_seq}")
                if flag == "c" and not left and not (report := db.verify()).ok:
                    raise Violation(str(report))
            finally:
                harness.crash(db)
            left += [_files_of(place)] if flag == "c" else []
        if outcomes[1:] != outcomes[:-1] or left[0] != left[1]:
            raise Violation(f"opened again: {outcomes}, before {left[0]}, after {left[1]}")
        _check_quarantine(image, left[0], setting.unit)
        shutil.rmtree(place)
        return outcomes[0]

    def __str__(self) -> str:
        return f"seed {self.seed}: " + ", ".join(f"{count:,} {what}" for what, count in sorted(self.counts.items()))


def _files_of(place: Path) -> dict[str, bytes]:
    """Return every file below ``place`` with its bytes."""
    found = {}
    for folder, _, names in os.walk(place):
        for name in names:
            with open(path := os.path.join(folder, name), "rb", buffering=0) as file:
                found[path[len(str(place)) + 1 :]] = file.read()
    return found


def _check_quarantine(image: Image, left: dict[str, bytes], unit: int) -> None:
    """Look for whatever was cut off a segment; by units, since a cut that was not synced may itself be torn."""
    kept = b"".join(content for name, content in left.items() if "quarantine" in name)
    for name, content, _ in image.files:
        if name.endswith(".seg") and name in left:
            end = len(left[name])
            for at in range(end - end % unit, len(content), unit):
                if content[max(at, end) : at + unit].rstrip(b"\0") not in kept:
                    raise Violation(f"what was cut off {name} behind {max(at, end)} is not in quarantine")


class PlainFiles(harness.FakeFiles):
    """The real files, the clock set by hand."""

    def file_system(self, path: str) -> str:
        return "tmpfs"  # asked at every opening, and dear


# --- stories -----------------------------------------------------------------------------------


def beginnings(shape: tuple[int, int, int]) -> dict[str, list[Step]]:
    """Return stories that short ones go on from, so that there is something to compact, to hide and to roll."""
    first, second, third = (f"{word}.".encode().ljust(shape[1], b"v") for word in ("first", "second", "third"))
    one = [put(b"b", first), put(b"a", first), SEAL]
    return {
        "nothing": [],
        "sealed": one,
        "a full segment": [put(b"a", first), put(b"b", first), put(b"a", second)],
        "closed and continued": [put(b"a", first), CLOSE, put(b"b", second)],
        "overwritten and deleted": [*one, put(b"a", second), delete(b"b"), SEAL, put(b"c", third)],
        "cleared": [*one, CLEAR, put(b"b", second), SEAL],
        "expired": [*one, put(b"a", second, ttl=10.0), SEAL, Step("wait", seconds=20.0)],
    }


def short_steps(shape: tuple[int, int, int], number: int = 1) -> list[Step]:
    """List what the ``number``-th step of a short story may be; of a story that begins with nothing, a write."""

    def value(sign: str) -> bytes:
        return f"{number}{sign}".encode().ljust(shape[1], b"v")

    writes = [put(b"a", value("a")), put(b"b", value("b")), batch((b"a", value("A")), (b"c", value("C")))]
    write = ((b"b", value("beside"), None),)
    beside = [SYNC._replace(write=write), COMPACT_OLDEST._replace(write=write, boundary=1)]
    others = [delete(b"a"), SYNC, SEAL, COMPACT, COMPACT_OLDEST, COMPACT_NEWER, *beside, CLOSE, KILL]
    return [*writes, *(others if number else [])]


def short_stories(length: int, shape: tuple[int, int, int], beginning: str) -> Iterator[list[Step]]:
    begin = beginnings(shape)[beginning]
    for steps in itertools.product(*(short_steps(shape, number + len(begin)) for number in range(length))):
        yield [*begin, *steps]


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
            dice.choice([SYNC, COMPACT, COMPACT_OLDEST, COMPACT_NEWER, WORK])._replace(
                write=((key, value(), None),), boundary=dice.choice([0, 0, 1, 2, 3])
            ),
            *[SNAPSHOT, SNAPSHOT],
            *[Step("transaction", ((key, value(), None), (other, None, None)))],
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
        steps = [put(key, key * 480) for key in KEYS]
        judge.tell(steps, Setting("os", io, 512, 480, 6000), at_most=4096, share=1.0, again=256, only_again=True)
    assert judge.counts["images"] > 60, judge
    assert judge.counts["images after a second crash"] > 5000, judge


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
    """Every step from each beginning in three modes; from nothing also every two and three steps, each in one mode."""
    judge = Judge(place)
    for length, every in (1, 2), (2, len(MODES)), (3, len(MODES)):
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


def tell_with_kills(judge: Judge, every: int) -> None:
    for story, number, setting in stories_to_be_killed(every):
        for boundary in itertools.count():
            if not judge.tell(story, setting, at_most=4, share=0.02, begin=number + 1, deaths={number: boundary}):
                break


@pytest.mark.usefixtures("often")
def test_a_kill_at_every_boundary_of_a_step_and_then_a_power_cut(place: Path) -> None:
    """What a killed process left unsynced is still in the kernel's memory, and the next one builds on it."""
    judge = Judge(place)
    tell_with_kills(judge, every=11)
    assert judge.counts["stories"] > 150, judge


@pytest.mark.deep
@pytest.mark.usefixtures("often")
def test_a_kill_at_every_boundary_in_every_mode(place: Path) -> None:
    tell_with_kills(Judge(place), every=1)


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


def repair(path: Path, files: Files) -> check.Report:
    """Do what `bytekv.repair` does, on these files and with small segments."""
    directory = Directory(str(path), files)
    directory.acquire()
    try:
        return check.salvage(directory, SHAPES[0][2])
    finally:
        directory.release()


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("damaged", ["0000000001.seg", "0000000002.seg", "MANIFEST"])
@pytest.mark.parametrize("beginning", ["overwritten and deleted", "cleared"])
def test_a_power_cut_in_the_middle_of_a_repair(place: Path, beginning: str, damaged: str) -> None:
    """Whatever it leaves, one more repair ends as the first would have, and then the store opens."""
    options = Setting("os", "pread", *SHAPES[0]).options
    with harness.open_store(place / "store", files=PlainFiles(), **options) as db:
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
        repair(again / "store", PlainFiles())
        with harness.open_store(again / "store", "w", files=PlainFiles(), **options) as db:
            assert db.verify().ok
            content, repaired = dict(db.items()), repaired or dict(db.items())
            assert content == repaired
    assert repaired
    assert len(images) > 12


@pytest.mark.usefixtures("often")
def test_random_stories(place: Path) -> None:
    judge = Judge(place)
    for number in range(20):
        steps, setting, deaths = random_story(f"0 {number}")
        judge.tell(steps, setting, at_most=5, share=0.1, deaths=deaths)
    assert judge.counts["images"] > 1000, judge
    assert judge.counts["images after a second crash"] > 3000, judge


def test_stories_on_files_of_the_usual_size(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 64 KiB of preallocation and 32 KiB of reserve, nothing patched but the worker."""
    monkeypatch.setattr("bytekv.worker.Worker.wake", lambda self: True)
    judge = Judge(place)
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


Told = tuple[str, Sequence[Step], Setting, dict[str, Any]]


def told_in_turn(seed: int) -> Iterator[Told]:
    """Yield short stories, of one and two steps after each beginning and of three from nothing, and longer ones.

    Of the short ones every one in every mode, if there is time; of those of four to six steps a sample.
    """
    dice = random.Random(seed)
    short = [
        (f"of {length} steps", steps, setting, {"at_most": 16, "share": 0.05, "begin": last})
        for length in (1, 2, 3)
        for steps, last, setting in all_short_stories(length)
        if last <= 3 or length < 3
    ]
    dice.shuffle(short)
    for length in itertools.cycle((4, 5, 6)):
        if short:
            yield short.pop()
        shape = dice.choice(SHAPES)
        steps = [*dice.choice([*beginnings(shape).values()])]
        steps += [dice.choice(short_steps(shape, len(steps) + number)) for number in range(length)]
        yield f"of {length} steps", steps, Setting(*dice.choice(MODES), *shape), {"at_most": 32, "share": 0.05}


def told_at_random(seed: int) -> Iterator[Told]:
    for number in itertools.count():
        steps, setting, deaths = random_story(f"{seed} {number}")
        how = {"at_most": 12, "share": 0.3, "again": 4 if number % 4 else 32, "deaths": deaths}
        yield f"at random, {'with' if deaths else 'no'} deaths", steps, setting, how


@pytest.mark.deep
@pytest.mark.usefixtures("often")
def test_stories_for_as_long_as_one_likes(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seconds = float(os.environ.get("BYTEKV_DEEP_SECONDS", "300"))
    judge = Judge(place, int(os.environ.get("BYTEKV_DEEP_SEED", "0")))
    began = time.monotonic()
    kinds: Counter[str] = Counter()
    violations: list[str] = []
    for share, stories in (0.6, told_in_turn(judge.seed)), (1.0, told_at_random(judge.seed)):
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
        print("stories " + ", ".join(f"{kind}: {count:,}" for kind, count in sorted(kinds.items())))
    assert not violations, "\n\n".join(violations)
