"""D10: calls of many threads on one key happen one after the other; a read of many keys sees one moment.

Threads record what they call and what comes back, with compactions all the time and switches at nearly every line;
then `tests/support/linearizability.py` looks for an order that explains it. What spans several keys is compared with
the operations by seq.
"""

from __future__ import annotations

import itertools
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bytekv.engine.store import Store
from bytekv.errors import ChangesLostError, ConflictError
from tests.support import harness
from tests.support.harness import QuickFiles, open_store
from tests.support.linearizability import Call, explain

DEEP_S = float(os.environ.get("BYTEKV_DEEP_SECONDS", "120"))
SETTINGS = [(sync, io) for sync in ("interval", "always", "os") for io in ("mmap", "pread")]


# --- the checker ---------------------------------------------------------------------------------


def history(*lines: str) -> list[Call]:
    """Read a history as a drawing, a call a line, dots at the end of those that take long.

    ``"  put(a)=1..  "`` began at 2, ended at 12 and returned 1.
    """
    calls = []
    for thread, line in enumerate(lines):
        text = line.strip()
        began = len(line) - len(line.lstrip())
        verb, _, rest = text.rstrip(".").partition("(")
        given, _, result = rest.partition(")=")
        arguments = tuple(_read(word) for word in given.split(",") if word)
        if verb in ("put", "add"):
            arguments = (*arguments, 0)[:2]
        calls.append(Call(began, began + len(text), thread, verb, arguments, _read(result)))
    return calls


def _read(word: str) -> Any:
    constants = {"None": None, "True": True, "False": False}
    if word in constants:
        return constants[word]
    if ":" in word:
        return tuple(_read(part) for part in word.split(":"))
    return int(word) if word.lstrip("-").isdigit() else word.encode()


EXPLAINED = {
    "nothing": (),
    "one after the other": (
        "put(a)=1                                       ",
        "          get()=a                              ",
        "                    delete()=True              ",
        "                                  get()=None   ",
    ),
    "a read beside a write may come first": ("put(a)=1      ", "  get()=None"),
    "or second": ("put(a)=1      ", "  get()=a"),
    "two reads beside a write": (
        "put(a)=1                         ",
        "  get()=None                     ",
        "                 get()=a         ",
        "    put(b)=2.............        ",
        "                         get()=b ",
    ),
    "of two adds one is first": ("add(a)=False", " add(b)=True", "               get()=b"),
    "a compare-and-set that was overtaken": (
        "put(a)=1                                    ",
        "         entry()=a:1:0                      ",
        "                        put_if(b,1)=True:2  ",
        "                         put(c)=3           ",
    ),
    "a conflict with what came in between": (
        "put(a)=1                         ",
        "          put(b)=2               ",
        "           put_if(c,1)=False:2   ",
    ),
    "seqs that nobody was told": (
        "add(a)=True                                            ",
        "             incr(1)=None                              ",
        "                           entry()=a:7:0               ",
        "                                          put(b)=8     ",
    ),
    "time passes": (
        "put(a,5)=1                                             ",
        "            time(4)=None                               ",
        "                          ttl()=1                      ",
        "                                   time(5)=None        ",
        "                                         get()=None    ",
        "                                         add(b)=True   ",
    ),
}

NOT_EXPLAINED = {
    "a value that nobody wrote": ("get()=a",),
    "an old value": (
        "put(a)=1                            ",
        "          put(b)=2                  ",
        "                    get()=a         ",
    ),
    "a write that is seen and then not": (
        "put(a)=1                       ",
        " get()=a                       ",
        "          get()=None           ",
    ),
    "two readers who disagree about the order": (
        "put(a)=1                                  ",
        "put(b)=2                                  ",
        "            get()=a                       ",
        "                     get()=b              ",
        "                               get()=a    ",
    ),
    "a lost increment": ("incr(1)=1", "incr(1)=1"),
    "two adds that both were first": ("add(a)=True", "add(b)=True"),
    "two who popped the same": ("put(a)=1          ", "          pop()=a", "          pop()=a"),
    "a delete of what was not there": ("delete()=True",),
    "a seq that goes back": ("put(a)=2          ", "          put(b)=1"),
    "one seq for two": (
        "add(a)=True                                                 ",
        "             entry()=a:5:0                                  ",
        "                             entry()=a:6:0                  ",
    ),
    "a compare-and-set on what was gone": (
        "put(a)=1                           ",
        "          put(b)=2                 ",
        "                    put_if(c,1)=True:3",
    ),
    "a conflict with what was expected": ("put(a)=1          ", "          put_if(b,1)=False:1"),
    "an expiry that vanishes": (
        "put(a,50)=1                    ",
        "             ttl()=0           ",
    ),
    "a value after its time": (
        "put(a,5)=1                              ",
        "            time(9)=None                ",
        "                          get()=a       ",
    ),
    "gone before its time": (
        "put(a,50)=1                             ",
        "             time(9)=None               ",
        "                           in()=False   ",
    ),
}


@pytest.mark.parametrize("lines", EXPLAINED.values(), ids=EXPLAINED)
def test_what_can_be_explained_is(lines: tuple[str, ...]) -> None:
    calls = history(*lines)
    order = explain(calls)
    assert order is not None
    assert sorted(order) == sorted(calls)
    for earlier, later in itertools.combinations(order, 2):
        assert earlier.began < later.ended, "not in the order of time"


@pytest.mark.parametrize("lines", NOT_EXPLAINED.values(), ids=NOT_EXPLAINED)
def test_what_cannot_be_explained_is_not(lines: tuple[str, ...]) -> None:
    assert explain(history(*lines)) is None


@pytest.mark.parametrize("seed", range(30))
def test_a_history_that_was_made_in_order_can_be_explained_and_a_bent_one_not(seed: int) -> None:
    """Calls that take long around the moment at which they happen; then one answer is replaced by a false one."""
    rest = random.Random(seed)
    value, seq, calls = None, 0, []
    for at in range(10, 3000, 10):
        began, ended = at - rest.randrange(1, 30), at + rest.randrange(1, 30)
        if rest.random() < 0.5:
            seq, value = seq + 1, b"%d" % at
            calls.append(Call(began, ended, 0, "put", (value, 0), seq))
        else:
            calls.append(Call(began, ended, 0, "get", (), value))
    assert explain(calls) is not None
    number = max(number for number, call in enumerate(calls) if call.verb == "get")
    calls[number] = calls[number]._replace(result=b"10" if value != b"10" else b"20")
    if not any(call.began < calls[number].ended and call.arguments[:1] == (b"10",) for call in calls[number:]):
        assert explain(calls) is None


# --- threads on few keys -------------------------------------------------------------------------


@contextmanager
def switching_often() -> Iterator[None]:
    """Let threads change places at nearly every line.

    Still shorter, and Python 3.13 does nothing but change places: some runs take minutes instead of half a second.
    """
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def at_once(*jobs: Callable[[], object]) -> None:
    """Run jobs in threads that begin together, wait for all, and raise what went wrong in one."""
    errors: list[BaseException] = []
    line = threading.Barrier(len(jobs))

    def run(job: Callable[[], object]) -> None:
        try:
            line.wait()
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        raise error


class Recorder:
    """Do calls and note them."""

    def __init__(self, db: Any, files: QuickFiles) -> None:
        self.db, self.files = db, files
        self.moments = itertools.count()
        self.calls: dict[bytes, list[Call]] = {}
        self.ticks: list[Call] = []
        self.values = itertools.count()
        self.last_seqs: dict[bytes, int] = {}  # that anybody has been told, for compare-and-set

    def call(self, thread: int, rest: random.Random, key: bytes) -> None:
        """Do something with a key."""
        verb = rest.choice(VERBS)
        number = next(self.values)
        value = b"%d" % number if number % 3 else b"value %d" % number + b"." * rest.choice((0, 50, 9000))
        ttl_ms = rest.choice((0, 0, 1000, 3000))
        seq = self.last_seqs.get(key, 0) if rest.random() < 0.8 else 0
        arguments: dict[str, tuple[Any, ...]] = {
            "put": (value, ttl_ms),
            "add": (value, ttl_ms),
            "put_if": (value, seq),
            "incr": (rest.choice((1, -1, 5)),),
            "expire": (rest.choice((1000, 3000)),),
        }
        given = arguments.get(verb, ())
        began = next(self.moments)
        result = getattr(self, verb if verb != "in" else "contains")(key, *given)
        ended = next(self.moments)
        self.calls.setdefault(key, []).append(Call(began, ended, thread, verb, given, result))
        if verb in ("put", "put_if", "entry") and result is not None:
            self.last_seqs[key] = result if verb == "put" else result[1]

    def tick(self, ms: int) -> None:
        """Let time pass."""
        began = next(self.moments)
        self.files.time_ns += ms * 1_000_000
        now_ms = self.files.now_ms()
        self.ticks.append(Call(began, next(self.moments), -1, "time", (now_ms,), None))

    def get(self, key: bytes) -> Any:
        return self.db.get(key)

    def contains(self, key: bytes) -> bool:
        return key in self.db

    def entry(self, key: bytes) -> Any:
        try:
            found = self.db.entry(key)
        except KeyError:
            return None
        return found.value, found.seq, 0 if found.expires is None else round(found.expires * 1000)

    def ttl(self, key: bytes) -> Any:
        try:
            left = self.db.ttl(key)
        except KeyError:
            return None
        return 0 if left is None else round(left * 1000)

    def put(self, key: bytes, value: bytes, ttl_ms: int) -> int:
        return self.db.put(key, value, ttl=ttl_ms / 1000 if ttl_ms else None)

    def put_if(self, key: bytes, value: bytes, seq: int) -> tuple[bool, int]:
        try:
            return True, self.db.put(key, value, if_seq=seq)
        except ConflictError as error:
            return False, error.seq

    def add(self, key: bytes, value: bytes, ttl_ms: int) -> bool:
        return self.db.add(key, value, ttl=ttl_ms / 1000 if ttl_ms else None)

    def delete(self, key: bytes) -> bool:
        return self.db.delete(key)

    def pop(self, key: bytes) -> Any:
        return self.db.pop(key, None)

    def incr(self, key: bytes, amount: int) -> int | None:
        try:
            return self.db.incr(key, amount)
        except ValueError:
            return None

    def expire(self, key: bytes, ttl_ms: int) -> bool:
        return self.db.expire(key, ttl_ms / 1000)

    def persist(self, key: bytes) -> bool:
        return self.db.persist(key)


VERBS = [
    *("get", "get", "in", "entry", "entry", "ttl"),
    *("put", "put", "put_if", "put_if", "add", "add", "delete", "pop", "incr", "incr", "expire", "persist"),
]
KEYS = (b"a", b"b", b"c")


def record(
    path: Path, sync: str, io: str, seed: int, calls: int, wrap: Callable[[Store], Any] = lambda db: db
) -> tuple[dict[bytes, list[Call]], int]:
    """Let four threads do things with three keys while time passes and the store is compacted; return what they say."""
    files = QuickFiles()
    start_ms = files.now_ms()
    with open_store(
        path, "n", files=files, sync=sync, io=io, segment_size_bytes=1000, auto_compact=True, compact_dead_bytes=100
    ) as db:
        recorder = Recorder(wrap(db), files)
        done = threading.Event()

        def work(thread: int) -> None:
            rest = random.Random(seed * 10 + thread)
            for _ in range(calls):
                recorder.call(thread, rest, rest.choice(KEYS))

        def let_time_pass() -> None:
            rest = random.Random(seed)
            while not done.wait(0):
                for _ in range(20):
                    db._files.yield_cpu()
                recorder.tick(rest.choice((1, 500, 1000)))

        def compact() -> None:
            while not done.wait(0):
                db.compact()

        def work_all() -> None:
            try:
                at_once(*(lambda thread=thread: work(thread) for thread in range(4)))
            finally:
                done.set()

        with switching_often():
            at_once(work_all, let_time_pass, compact)
        assert db.verify().ok
        compactions = db.stats().compactions
        for key in KEYS:  # the end is part of the story
            began = next(recorder.moments)
            recorder.calls.setdefault(key, []).append(
                Call(began, next(recorder.moments), 9, "get", (), recorder.get(key))
            )
    first = Call(-2, -1, -1, "time", (start_ms,), None)
    return {key: [first, *recorder.ticks, *found] for key, found in recorder.calls.items()}, compactions


def expect_linearizable(histories: dict[bytes, list[Call]]) -> None:
    for key, calls in histories.items():
        if explain(calls, clock_first=True) is None:
            story = "\n".join(map(str, sorted(unexplained(calls))))
            pytest.fail(f"no order of the calls on {key!r} explains what they returned:\n{story}")


def unexplained(calls: list[Call]) -> list[Call]:
    """Return fewer calls that cannot be explained either, where leaving out is easy: reads, and what came last."""
    calls = sorted(calls, key=lambda call: call.ended)
    low, high = 0, len(calls)
    while high - low > 1:
        middle = (low + high) // 2
        # What had not ended by then is taken to be under way still: it may have done what it did.
        if explain(_until(calls, calls[middle - 1].ended), clock_first=True) is None:
            high = middle
        else:
            low = middle
    calls = _until(calls, calls[high - 1].ended)
    for call in [call for call in calls if call.verb in ("get", "in", "entry", "ttl")]:
        fewer = [other for other in calls if other is not call]
        if explain(fewer, clock_first=True) is None:
            calls = fewer
    return calls[-40:]


def _until(calls: list[Call], moment: int) -> list[Call]:
    reads = ("get", "in", "entry", "ttl")
    return [call for call in calls if call.ended <= moment or (call.began < moment and call.verb not in reads)]


@pytest.mark.parametrize(("sync", "io"), SETTINGS)
def test_calls_on_one_key_happen_one_after_the_other(path: Path, sync: str, io: str) -> None:
    histories, compactions = record(path, sync, io, seed=1, calls=150)
    assert sum(map(len, histories.values())) > 500
    assert compactions > 3
    expect_linearizable(histories)


def test_a_call_judges_by_a_time_since_it_began() -> None:
    """A key that a write has found, and whose life it prolongs, may be gone for readers until the write is seen, with
    sync="always" until it is durable: its time has come meanwhile."""
    calls = [
        Call(-2, -1, -1, "time", (0,), None),
        Call(0, 1, 1, "put", (b"v", 1000), 1),
        Call(2, 9, 1, "expire", (5000,), True),
        Call(3, 4, -1, "time", (1500,), None),
        Call(5, 6, 2, "get", (), None),
        Call(10, 11, 2, "ttl", (), 3500),
    ]
    assert explain(calls) is None
    assert explain(calls, clock_first=True) is not None
    assert explain([*calls[:-1], Call(10, 11, 2, "ttl", (), 4500)], clock_first=True) is None
    late = calls[2]._replace(began=7)  # after the time had passed
    assert explain([*calls[:2], late, *calls[3:]], clock_first=True) is None


@pytest.mark.deep
@pytest.mark.parametrize(("sync", "io"), SETTINGS)
def test_calls_on_one_key_happen_one_after_the_other_at_length(path: Path, sync: str, io: str) -> None:
    end = time.monotonic() + DEEP_S / len(SETTINGS)
    for seed in itertools.count(100):
        histories, _ = record(path, sync, io, seed, calls=300)
        expect_linearizable(histories)
        if time.monotonic() > end:
            break


class CarelessStore:
    """A store behind helpers as a careless user writes them: each looks first and acts then."""

    def __init__(self, db: Store) -> None:
        self._db = db

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    def __contains__(self, key: bytes) -> bool:
        return key in self._db

    def pop(self, key: bytes, default: None) -> bytes | None:
        value = self._db.get(key)
        self._db.delete(key)
        return value

    def incr(self, key: bytes, amount: int) -> int:
        total = int(self._db.get(key, b"0")) + amount
        self._db[key] = b"%d" % total
        return total


def test_calls_that_are_not_atomic_are_found_out(path: Path) -> None:
    """The whole method bites: threads, recording and search together."""
    for seed in range(50):
        histories, _ = record(path, "interval", "mmap", seed, calls=60, wrap=CarelessStore)
        broken = [calls for calls in histories.values() if explain(calls, clock_first=True) is None]
        if broken:
            assert unexplained(broken[0])
            return
    pytest.fail("nobody noticed")


# --- moments -------------------------------------------------------------------------------------


class Log:
    """Every operation by its seq, as the writers were told; what the store held at each."""

    def __init__(self) -> None:
        self.operations: dict[int, tuple[bytes, bytes | None]] = {}

    def states(self) -> list[dict[bytes, bytes]]:
        """Return the content after each seq, 0 first."""
        assert sorted(self.operations) == list(range(1, len(self.operations) + 1)), "a seq is missing"
        states: list[dict[bytes, bytes]] = [{}]
        for seq in sorted(self.operations):
            key, value = self.operations[seq]
            after = dict(states[-1])
            if value is None:
                after.pop(key, None)
            else:
                after[key] = value
            states.append(after)
        return states


class Sight(NamedTuple):
    """What somebody saw, and the seqs between which it must lie."""

    kind: str
    first_seq: int
    last_seq: int
    content: list[tuple[bytes, bytes]]


def write_and_log(db: Store, log: Log, thread: int, rest: random.Random, count: int) -> None:
    """Write keys of one's own and of all, one by one and several at once, and note the seqs."""
    for number in range(count):
        keys = rest.sample(range(24), rest.choice((1, 1, 2, 5)))
        value = b"%d/%d" % (thread, number) + b"." * rest.choice((0, 0, 60))
        if len(keys) == 1:
            key = b"%02d" % keys[0]
            log.operations[db.put(key, value)] = key, value
            continue
        if rest.random() < 0.5:
            writes: list[tuple[bytes, bytes | None]] = [(b"%02d" % key, value) for key in keys]
            with db.batch() as batch:
                for key, _ in writes:
                    batch[key] = value
            log_batch(log, batch.seq, writes)
        else:
            with db.transaction() as tx:  # only here it is known what there is to delete
                writes = [(b"%02d" % key, value if rest.random() < 0.5 else None) for key in keys]
                writes = [(key, written) for key, written in writes if written is not None or key in tx]
                for key, written in writes:
                    if written is None:
                        del tx[key]
                    else:
                        tx[key] = written
            log_batch(log, tx.seq, writes)


def log_batch(log: Log, seq: int | None, writes: list[tuple[bytes, bytes | None]]) -> None:
    if seq is not None:
        for number, (key, value) in enumerate(reversed(writes)):
            log.operations[seq - number] = key, value


def look(db: Store, rest: random.Random, sights: list[Sight]) -> None:
    """Look at the whole in one of several ways, slowly; note what was seen."""
    kind = rest.choice(("snapshot", "scan", "items", "reversed", "slow scan"))
    first = db.last_seq
    if kind == "snapshot":
        with db.snapshot() as snap:
            content = list(snap.items())
            assert len(snap) == len(content)
            again = [(key, snap[key]) for key in snap]
            assert again == content
            sights.append(Sight(kind, snap.seq, snap.seq, content))
        return
    if kind == "reversed":
        content = [(key, value) for key, value in db.scan(reverse=True)][::-1]
        last = db.last_seq
    else:
        scan = iter(db.items()) if kind == "items" else db.scan()
        content = list(itertools.islice(scan, 1))
        last = db.last_seq
        for pair in scan:
            if kind == "slow scan":
                db._files.yield_cpu()
            content.append(pair)
    sights.append(Sight(kind, first, last, content))


def watch(path: Path, sync: str, io: str, seed: int, writes: int) -> list[str]:
    """Let three threads write, two look and one compact; return the kinds of what was seen."""
    log, sights = Log(), []
    with open_store(
        path,
        "n",
        files=QuickFiles(),
        sync=sync,
        io=io,
        segment_size_bytes=1500,
        auto_compact=True,
        compact_dead_bytes=0,
    ) as db:
        done = threading.Event()

        def write() -> None:
            try:
                at_once(
                    *(
                        lambda thread=thread: write_and_log(db, log, thread, random.Random(seed + thread), writes)
                        for thread in range(3)
                    )
                )
            finally:
                done.set()

        def look_on(thread: int) -> None:
            rest = random.Random(seed + thread)
            while not done.wait(0):
                look(db, rest, sights)

        def compact() -> None:
            while not done.wait(0):
                db.compact()

        with switching_often():
            at_once(write, lambda: look_on(10), lambda: look_on(11), compact)
        look(db, random.Random(seed), sights)
        assert db.verify().ok
    states = log.states()
    for kind, first, last, content in sights:
        if not any(content == sorted(states[seq].items()) for seq in range(first, last + 1)):
            nearest = states[last]
            wrong = sorted(set(content) ^ set(nearest.items()))
            pytest.fail(f"{kind} between seq {first} and {last} saw no moment; it differs from the last in {wrong[:8]}")
    return [sight.kind for sight in sights]


@pytest.mark.parametrize(("sync", "io"), SETTINGS)
def test_a_read_of_many_keys_sees_one_moment(path: Path, sync: str, io: str) -> None:
    assert len(watch(path, sync, io, seed=3, writes=120)) > 5


@pytest.mark.deep
@pytest.mark.parametrize(("sync", "io"), SETTINGS)
def test_a_read_of_many_keys_sees_one_moment_at_length(path: Path, sync: str, io: str) -> None:
    end, kinds = time.monotonic() + DEEP_S / len(SETTINGS), []
    for seed in itertools.count(1000, 20):
        kinds += watch(path, sync, io, seed, writes=500)
        if time.monotonic() > end:
            break
    assert len(set(kinds)) == 5


# --- everything beside everything ------------------------------------------------------------------


def call_at_random(db: Store, dest: Path, thread: int, rest: random.Random, count: int) -> None:
    """Do whatever one can do with a store; nothing of it may fail because of what others are doing."""
    key = lambda: b"%02d" % rest.randrange(40)  # noqa: E731

    def change_several() -> None:
        with db.transaction() as tx:
            tx[key()] = tx.get(key(), b"") + b"."
            len(tx)

    def look_back() -> None:
        with suppress(ChangesLostError):
            for _ in itertools.islice(db.changes(max(0, db.last_seq - 20)), rest.choice((3, 100))):
                pass

    def look() -> None:
        with db.snapshot() as snap:
            content = dict(snap.items())
            assert len(snap) <= len(content)  # what expires goes here, too
            assert set(snap) <= set(content)

    def pop_last() -> None:
        with suppress(KeyError):  # it was empty
            db.popitem()

    calls: list[tuple[int, Callable[[], object]]] = [
        (9, lambda: db.put(key(), rest.randbytes(rest.choice((0, 20, 200))), ttl=rest.choice((None, None, 5)))),
        (3, lambda: db.delete(key())),
        (3, lambda: db.update({key(): b"%d" % thread for _ in range(5)})),
        (1, lambda: db.clear() if rest.random() < 0.1 else None),
        (2, change_several),
        (6, lambda: db.get(key())),
        (2, lambda: db.get_many([key() for _ in range(9)])),
        (2, lambda: list(itertools.islice(db.items(), rest.choice((1, 100))))),
        (2, lambda: list(db.scan_keys(reverse=True, limit=7))),
        (2, look),
        (2, look_back),
        (2, lambda: len(db)),
        (2, lambda: db.stats()),
        (1, pop_last),
        (1, db.sync),
        (1, lambda: db.compact() if rest.random() < 0.2 else None),
        (1, lambda: db.verify() if rest.random() < 0.2 else None),
        (1, lambda: db.backup(dest / str(thread)) if rest.random() < 0.2 else None),
    ]
    weights = [weight for weight, _ in calls]
    for _ in range(count):
        if rest.random() < 0.01:
            db._files.time_ns += 10**9  # type: ignore[attr-defined]
        rest.choices(calls, weights)[0][1]()


def crowd(path: Path, sync: str, io: str, seed: int, count: int) -> None:
    """Let five threads and the worker do everything at once, with few files open."""
    options = {"segment_size_bytes": 800, "max_open_segments": 2, "auto_compact": True, "compact_dead_bytes": 0}
    with open_store(path, "n", files=QuickFiles(), sync=sync, io=io, expiry_grace_s=0.0, **options) as db:
        dest = path.with_name("backups")
        dest.mkdir(exist_ok=True)
        with switching_often():
            at_once(
                *(
                    lambda thread=thread: call_at_random(db, dest, thread, random.Random(seed + thread), count)
                    for thread in range(5)
                )
            )
        stats = db.stats()
        assert (stats.background_error, stats.open_views, stats.pinned_bytes) == (None, 0, 0)
        assert db.verify().ok
        content = dict(db)
    with open_store(path, "r", files=db._files) as again:
        assert dict(again) == content


@pytest.mark.parametrize(("sync", "io"), SETTINGS)
def test_every_call_goes_well_beside_every_other(path: Path, sync: str, io: str) -> None:
    crowd(path, sync, io, seed=7, count=300)


@pytest.mark.deep
@pytest.mark.parametrize(("sync", "io"), SETTINGS)
def test_every_call_goes_well_beside_every_other_at_length(path: Path, sync: str, io: str) -> None:
    end = time.monotonic() + DEEP_S / len(SETTINGS)
    for seed in itertools.count(1000, 10):
        crowd(path, sync, io, seed, count=300)
        if time.monotonic() > end:
            break


# --- races that were found, each held still ---------------------------------------------------------


class MeanwhileFiles(QuickFiles):
    """Do something once, before or after the next segment is opened for reading."""

    before: Callable[[], object] | None = None
    after: Callable[[], object] | None = None

    def open(self, path: str, *, write: bool = False, create: bool = False, exclusive: bool = False) -> int:
        before, after = self.before, self.after
        if not path.endswith(".seg") or write or exclusive or (before is None and after is None):
            return super().open(path, write=write, create=create, exclusive=exclusive)
        self.before = self.after = None
        if before is not None:
            before()
        descriptor = super().open(path)
        if after is not None:
            after()
        return descriptor


class Interruption(Exception):
    """Strike in the middle of a compaction."""


@pytest.fixture
def half_moved(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Store, MeanwhileFiles, bytes]]:
    """A store in the middle of a compaction, which is published but has moved one key only; and a key that it has not.

    One segment is open at a time.
    """
    harness.tune(monkeypatch, copied_entries=1, moved_keys=1)
    files = MeanwhileFiles()
    with open_store(path, files=files, segment_size_bytes=400, max_open_segments=1) as db:
        for number in range(30):
            db[b"%02d" % (number if number % 2 else 0)] = b"%d" % number * 30

        def strike() -> None:
            if db._maintenance.compactor._job is not None:
                raise Interruption

        with pytest.raises(Interruption):
            db._maintenance.compactor.run([row.segment_id for row in db._segments.sealed()], strike, lambda _: None)
        waiting = [
            key for key, location in db._keydir.locations.items() if location >> 44 in db._segments.obsolete.zombies
        ]
        assert len(waiting) > 5
        assert db[waiting[0]]
        yield db, files, waiting[-1]


def test_a_segment_that_was_removed_before_it_was_opened(half_moved: tuple[Store, MeanwhileFiles, bytes]) -> None:
    """A reader found a segment on the list; before he opened the file, it was gone. Instead of looking the key up again
    he raised "was compacted away by the writer", in the writer's own process. Found by recorded histories."""
    db, files, key = half_moved
    files.before = lambda: db._maintenance.compactor.finish(lambda: None)
    assert db[key] == key.lstrip(b"0") * 30
    assert files.before is None


def test_a_segment_that_was_removed_while_it_was_opened(half_moved: tuple[Store, MeanwhileFiles, bytes]) -> None:
    """Its bytes were right, but the reader put it among the open segments after it had been taken from them: the file,
    removed long since, kept its disk space until the store was closed."""
    db, files, key = half_moved
    files.after = lambda: db._maintenance.compactor.finish(lambda: None)
    assert db[key] == key.lstrip(b"0") * 30
    assert files.after is None
    assert set(db._segments.open.table) <= {row.segment_id for row in db._segments.manifest.segments}


def test_a_segment_that_turned_from_listed_to_zombie_between_two_looks(path: Path) -> None:
    """It was looked for among the zombies first, among the listed ones second, and had moved from the second to
    the first meanwhile. A read tried again; a feed of changes, which has pinned its files, ended in a KeyError."""
    with open_store(path, segment_size_bytes=400, max_open_segments=1) as db:
        for number in range(30):
            db[b"%02d" % number] = b"%d" % number * 30
        segments, whole = db._segments, db._segments.manifest
        first = whole.segments[0]
        assert first.segment_id not in segments.open.table

        class Late(dict[int, Any]):
            def get(self, key: int, default: Any = None) -> Any:
                found = super().get(key, default)
                self[first.segment_id] = first  # what `replace_run` does, in its order
                segments.manifest = whole._replace(segments=whole.segments[1:])
                return found

        segments.obsolete.zombies = Late()
        try:
            view, _ = segments.open.get(first.segment_id)
            assert view[0:1]
        finally:
            segments.obsolete.zombies, segments.manifest = {}, whole


class _DuringPut(dict[bytes, int]):
    """The keydir's table of expiries, that lets another thread look before a put changes it."""

    look: Callable[[], object] = staticmethod(lambda: None)

    def __setitem__(self, key: bytes, expires_ms: int) -> None:
        self.look()
        super().__setitem__(key, expires_ms)
        self.look()

    def pop(self, *arguments: Any) -> Any:
        self.look()
        return super().pop(*arguments)


class _ToldLock:
    """The store's lock, that tells who comes to it."""

    def __init__(self, lock: Any, tell: Callable[[], object]) -> None:
        self._lock, self._tell = lock, tell

    def __enter__(self) -> Any:
        self._tell()
        return self._lock.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._lock.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lock, name)


def answers_during(db: Store, ask: Callable[[], object], put: Callable[[], object]) -> list[object]:
    """Return what another thread is told that asks at each step of a put, by the end of the step or of the put."""
    answers: list[object] = []
    askers: list[threading.Thread] = []
    table = _DuringPut(db._keydir.expires)
    db._keydir.expires = table
    lock = db._commit.state.lock

    def look() -> None:
        arrived = threading.Event()

        def run() -> None:
            with suppress(KeyError):
                answers.append(ask())
            arrived.set()

        asker = threading.Thread(target=run)
        db._commit.state.lock = _ToldLock(lock, lambda: threading.current_thread() is asker and arrived.set())
        asker.start()
        askers.append(asker)
        arrived.wait()  # it has its answer, or waits for the put to be over

    table.look = look
    put()
    table.look = lambda: None
    for asker in askers:
        asker.join()
    db._commit.state.lock = lock
    db._keydir.expires = dict(table)
    assert askers
    return answers


@pytest.fixture
def timed(path: Path) -> Iterator[tuple[Store, QuickFiles]]:
    files = QuickFiles()
    with open_store(path, files=files) as db:
        yield db, files


def test_ttl_in_the_middle_of_a_put(timed: tuple[Store, QuickFiles]) -> None:
    """A put with a ttl changes location and expiry one after the other. In between, `ttl` told that the key does not
    expire, which has never been so. Found by recorded histories."""
    db, _ = timed
    assert answers_during(db, lambda: db.ttl(b"a"), lambda: db.put(b"a", b"1", ttl=5)) == [5.0] * 4
    db[b"b"] = b"1"
    assert set(answers_during(db, lambda: db.ttl(b"b"), lambda: db.put(b"b", b"2", ttl=7))) == {7.0}


def test_a_key_is_there_again_in_the_middle_of_a_put(timed: tuple[Store, QuickFiles]) -> None:
    """A put over an expired key: once `get` has returned the new value, `in` must not say that there is none."""
    db, files = timed
    db.put(b"a", b"old", ttl=1)
    files.sleep(2)
    seen = answers_during(db, lambda: (db.get(b"a"), b"a" in db), lambda: db.put(b"a", b"new"))
    assert seen
    assert (b"new", False) not in seen


@pytest.mark.parametrize("before", [None, "plain", "to expire", "expired"])
def test_what_has_expired_before_it_is_written_is_never_seen(
    timed: tuple[Store, QuickFiles], before: str | None
) -> None:
    db, files = timed
    if before is not None:
        db.put(b"a", b"old", ttl={"plain": None, "to expire": 100, "expired": 1}[before])
        files.sleep(2)
    passed = files.now_ms() / 1000 - 1
    seen = answers_during(db, lambda: db.get(b"a"), lambda: db.put(b"a", b"late", expires=passed))
    assert b"late" not in seen
    assert before not in (None, "expired") or set(seen) == {None}
