"""Stories of a store, told on a disk that knows what it would lose, and a judge of what it lost.

A story is a few steps: writes, syncs, rolls, compactions, reopenings, kills. A `Session` tells it on the
double of `crash_files`, which at every boundary (before each sync and each change of a name, and after each
step) says what a power cut would leave: the crash images. A `Judge` opens them with the real library and
compares what it finds with the `History`: the operations 1 … R for some R, at least what was promised to be
durable there and then. From many images it lets the story go on, in a session of its own.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import shutil
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from bytekv.contract.snapshot import Snapshot
from bytekv.engine.store import Store
from tests.support import harness
from tests.support.crash_files import CrashFiles, Image

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
    write: Write = None  # with a verb that writes nothing itself: what another thread writes meanwhile,
    boundary: int = 0  # at this one of the boundaries that come without a lock held
    seconds: float = 0.0


def put(key: bytes, value: bytes, ttl: float | None = None) -> Step:
    return Step("write", ((key, value, ttl),))


def delete(key: bytes) -> Step:
    return Step("write", ((key, None, None),))


def delete_range(*keys: bytes) -> Step:
    """Delete from the first of these keys to the last; those that are there are deleted in their order."""
    return Step("delete range", tuple((key, None, None) for key in keys))


def batch(*writes: tuple[bytes, bytes | None]) -> Step:
    return Step("write", tuple((key, value, None) for key, value in writes))


OPEN, SYNC, SEAL, WORK, KILL, SNAPSHOT = map(Step, ("open", "sync", "seal", "work", "kill", "snapshot"))
CLEAR = Step("write")
PREPARE = Step("prepare")  # what the worker does when the active segment is soon full
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
    elif step.verb == "delete range":
        keys = [key for key, _, _ in step.write or ()]
        db.delete_range(keys[0], keys[-1], include_stop=True)
    elif step.verb == "sync":
        before = db.last_seq
        db.sync()
        assert db.durable_seq >= before
    elif step.verb == "seal":
        db._commit.seal()
    elif step.verb == "work":
        db._work()
    elif step.verb == "prepare":
        db._commit.prepare_next()
    elif step.verb == "compact":
        db.compact()
    else:
        sealed = [row.segment_id for row in db._segments.sealed()]
        victims = sealed[:1] if step.verb == "compact oldest" else sealed[1:]
        if victims:
            db._maintenance.compactor.run(victims, lambda: None, lambda size: None)


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
        self,
        root: Path,
        setting: Setting,
        history: History,
        at_most: int,
        seed: int = 0,
        now_ns: int | None = None,
        life: int = 0,
    ) -> None:
        self.setting, self.history = setting, history
        self.files = MortalFiles(root, unit=setting.unit, seed=seed, life=life)
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
            durable = self.db._commit.state.durable_seq
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
        locked = db._commit.state.lock._is_owned()
        return not locked and not (self.setting.sync == "always" and db._commit.state.sync_lock._is_owned())

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
            if step.verb not in ("write", "transaction", "delete range"):
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
        self._outcomes: dict[tuple[bytes, Setting, int], Outcome] = {}  # of an image
        self._settled: dict[tuple[bytes, Setting, int], Outcome] = {}  # of what an opening left
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
        if not only_again:
            setting = Setting(*dice.choice(MODES), *setting[2:])  # nobody has to come back in the same mode
        lost = [Step("write", write) for write in history.lost(outcome.seq)]
        seed, now_ns = dice.getrandbits(32), before.files.time_ns
        session = Session(place, setting, history.until(outcome.seq), at_most, seed, now_ns, life=1)
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
        """Open an image twice, for once more must be the same as once (D5); some for reading before that.

        What the first opening leaves is often what that of another image has left, and need not be opened again.
        """
        place = self._place()
        image.put_into(place)
        is_store = any(name.endswith("MANIFEST") for name, _, _ in image.files)
        outcomes = [
            _look(place, flag, setting, now_ns) for flag in ("rc" if is_store and image.digest()[1] < 64 else "c")
        ]
        left = _files_of(place)
        key = hashlib.blake2b(repr(sorted(left.items())).encode(), digest_size=16).digest(), setting, now_ns
        if key not in self._settled:
            self.counts["openings of what an opening left"] += 1
            self._settled[key] = _look(place, "c", setting, now_ns)
            if left != (changed := _files_of(place)):
                raise Violation(f"opened again: before {left}, after {changed}")
        outcomes.append(self._settled[key])
        if outcomes[1:] != outcomes[:-1]:
            raise Violation(f"opened again: {outcomes}, of {left}")
        _check_quarantine(image, left, setting.unit)
        shutil.rmtree(place)
        return outcomes[0]

    def __str__(self) -> str:
        return f"seed {self.seed}: " + ", ".join(f"{count:,} {what}" for what, count in sorted(self.counts.items()))


def _look(place: Path, flag: str, setting: Setting, now_ns: int) -> Outcome:
    """Open the store, look at all of it, and leave it as a killed process does."""
    db = harness.open_store(place / "store", flag, files=harness.QuickFiles(now_ns / 1e9), **setting.options)
    try:
        # A reader has synced nothing, and calls durable what somebody else is known to have.
        if db.durable_seq > db.last_seq or (flag == "c" and db.durable_seq < db.last_seq):
            raise Violation(f"opened at seq {db.last_seq}, durable up to {db.durable_seq}")
        if flag == "c" and not (report := db.verify()).ok:
            raise Violation(str(report))
        return Outcome(db.last_seq, dict(db.items()))
    finally:
        harness.crash(db)


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
    deletes = [delete(b"a"), delete_range(b"a", b"b")]
    others = [SYNC, SEAL, COMPACT, COMPACT_OLDEST, COMPACT_NEWER, *beside, CLOSE, KILL]
    return [*writes, *([*deletes, *others] if number else [])]


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
            *[SNAPSHOT, SNAPSHOT, delete_range(*KEYS), delete_range(*KEYS[1:])],
            *[Step("transaction", ((key, value(), None), (other, None, None)))],
            *[WORK, CLOSE, CLOSE, KILL, KILL, RENEW],
        ]
    )
