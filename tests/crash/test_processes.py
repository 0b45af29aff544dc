"""The store and the processes that use it: killed, two at a time, forked, and at their end.

Scripts run in processes of their own and say on their standard output, with `os.write`, what was acknowledged: that is
the oracle. Nobody sleeps: processes wait for each other at pipes.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import bytekv
from bytekv.errors import StoreLockedError
from tests.support.harness import expect_no_violation, open_store, patched, snapshot_of
from tests.support.kills import KILLS_OF_A_STORE, SYNCS, kills

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="made of kill -9, fork and pipes")

TIMEOUT_S = 60.0

_PRELUDE = """
    import os, sys
    import bytekv
    from bytekv import BytekvError, ForkedStoreError, StoreClosedError, StoreLockedError

    path, arguments = sys.argv[1], sys.argv[2:]

    def say(*words):
        os.write(1, (" ".join(map(str, words)) + "\\n").encode())

    def put(db, key, value=b"v"):
        db[key] = value
        say(key)
"""


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(bytekv.__file__).parents[1])}


def _command(source: str, path: object, *arguments: object, prelude: str = _PRELUDE) -> list[str]:
    code = textwrap.dedent(prelude) + textwrap.dedent(source)
    # Python 3.12 and later warn of a fork beside threads; that is what some of these tests are about.
    return [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, str(path), *map(str, arguments)]


class Script:
    """A process to talk with: it says lines, and goes on when told to."""

    def __init__(self, source: str, path: object, *arguments: object) -> None:
        self.process = subprocess.Popen(
            _command(source, path, *arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(),
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def expect(self, line: str) -> None:
        said = self.line()
        if said != line:
            self.process.kill()
            raise AssertionError(f"said {said!r}, not {line!r}; {self.process.communicate()[1].decode()}")

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"go\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=TIMEOUT_S)  # which closes the pipes, too

    def end(self, code: int = 0) -> list[str]:
        """Wait for the end, which has to be a quiet one; return the rest of what it said."""
        out, err = self.process.communicate(timeout=TIMEOUT_S)
        assert (self.process.returncode, err.decode()) == (code, ""), out.decode()
        return out.decode().splitlines()


@pytest.fixture
def talk() -> Iterator[Callable[..., Script]]:
    """Start scripts; none outlives the test."""
    scripts: list[Script] = []

    def start(source: str, path: object, *arguments: object) -> Script:
        scripts.append(Script(source, path, *arguments))
        return scripts[-1]

    yield start
    for script in scripts:
        if script.process.poll() is None:
            script.kill()


def _run(source: str, path: object, *arguments: object, code: int = 0) -> list[str]:
    return Script(source, path, *arguments).end(code)


# --- killed --------------------------------------------------------------------------------------


def test_killed_at_any_moment(path: Path) -> None:
    """D1, D2, D3: whole operations 1 … R, R at least the last one acknowledged; in every mode, again and again."""
    seen = expect_no_violation(itertools.islice(kills(path.parent, 0), 6 * KILLS_OF_A_STORE))
    assert seen["kills"] == 6 * KILLS_OF_A_STORE


# --- two at a time -------------------------------------------------------------------------------

_HOLDER = """
    db = bytekv.open(path, sync="os")
    db[b"held"] = b"1"
    db.sync()
    say("open")
    sys.stdin.readline()
    db[b"more"] = b"2"
    db.close()
    say("closed")
    sys.stdin.readline()
"""


@pytest.fixture
def holder(path: Path, talk: Callable[..., Script]) -> Script:
    script = talk(_HOLDER, path)
    script.expect("open")
    return script


def _spellings(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    link = path.with_name("link")
    link.symlink_to(path, target_is_directory=True)
    monkeypatch.chdir(path.parent)
    return [path, link, Path("store"), Path(".") / "link" / ".." / "store", path / ".", Path("link")]


def test_a_second_writer_in_the_same_process(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(path) as db:
        db[b"a"] = b"1"
        for spelling in _spellings(path, monkeypatch):
            for flag in "wcn":
                with pytest.raises(StoreLockedError) as caught:
                    open_store(spelling, flag)
                assert caught.value.pid == os.getpid()
                assert "by this process" in str(caught.value)
        db[b"b"] = b"2"
        assert dict(db.items()) == {b"a": b"1", b"b": b"2"}
        assert db.verify().ok
    with open_store(path, "w") as db:  # and the refused ones have not taken the lock along
        assert len(db) == 2


def test_a_second_writer_in_another_process(path: Path, holder: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    for spelling in _spellings(path, monkeypatch):
        for flag in "wcn":
            with pytest.raises(StoreLockedError) as caught:
                open_store(spelling, flag)
            assert caught.value.pid == holder.pid
            assert str(holder.pid) in str(caught.value)
    holder.go()
    holder.expect("closed")
    with open_store(path, "w") as db:  # while the other process lives on
        assert db.recovery.clean
        assert dict(db.items()) == {b"held": b"1", b"more": b"2"}


_RACERS = """
    rounds, racers, fresh = int(arguments[0]), int(arguments[1]), arguments[2] != "w"

    def race(start, tried, trying, number):
        os.read(start, 1)  # until all are there
        try:
            db = bytekv.open(path, arguments[2])
        except StoreLockedError as error:
            assert error.pid is None or error.pid > 0
            os.write(trying, b"x")
            os._exit(1)
        for _ in range(racers - 1):
            os.read(tried, 1)  # until all the others have tried
        db[b"%d" % number] = b"won"
        db.close()
        os._exit(0)

    for number in range(rounds):
        if fresh and os.path.exists(path):
            import shutil
            shutil.rmtree(path)
        start, go = os.pipe()
        tried, trying = os.pipe()
        children = []
        for _ in range(racers):
            child = os.fork()
            if child == 0:
                try:
                    os.close(go)
                    race(start, tried, trying, number)
                finally:
                    os._exit(2)
            children.append(child)
        os.close(go)
        codes = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
        for pipe in start, tried, trying:
            os.close(pipe)
        assert codes == [0] + [1] * (racers - 1), codes
        with bytekv.open(path, "r") as db:
            assert b"%d" % number in db
            assert len(db) == (1 if fresh else number + 2), dict(db)
    say("one each time")
"""


@pytest.mark.parametrize("flag", ["w", "c", "n"])
def test_of_many_who_open_at_the_same_moment_one_is_the_writer(path: Path, flag: str) -> None:
    """Of a store that is there, of one that is not there yet, and of one that all want to empty."""
    if flag == "w":
        with open_store(path) as db:
            db[b"first"] = b"1"
    assert _run(_RACERS, path, 15, 5, flag) == ["one each time"]
    with open_store(path, "w") as db:
        assert db.recovery.clean
        assert db.verify().ok


def test_of_many_threads_that_open_at_the_same_moment_one_is_the_writer(path: Path) -> None:
    for _ in range(20):
        barrier = threading.Barrier(5)
        outcomes: list[object] = []

        def race(barrier: threading.Barrier = barrier, outcomes: list[object] = outcomes) -> None:
            barrier.wait()
            try:
                outcomes.append(open_store(path))
            except StoreLockedError as error:
                outcomes.append(error)

        threads = [threading.Thread(target=race) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (winner,) = [outcome for outcome in outcomes if not isinstance(outcome, StoreLockedError)]
        assert len(outcomes) == 5
        winner.close()  # type: ignore[attr-defined]


def test_a_second_writer_by_another_mount_of_the_same_directory(path: Path, holder: Script) -> None:
    """Neither a link nor another spelling: the path shows nothing of it, only device and inode do."""
    mounted = path.with_name("mounted")
    mounted.mkdir()
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "--bind", path, mounted], capture_output=True, check=False).returncode:
        pytest.skip("mounting is not possible here")
    try:
        with pytest.raises(StoreLockedError) as caught:
            open_store(mounted)
        assert caught.value.pid == holder.pid
        with open_store(mounted, "r") as reader:
            assert dict(reader) == {b"held": b"1"}
        holder.go()
        holder.expect("closed")
        with open_store(path), pytest.raises(StoreLockedError):
            open_store(mounted)
    finally:
        subprocess.run(["umount", mounted], check=True)


def test_a_program_that_is_started_meanwhile_inherits_nothing(path: Path) -> None:
    """Not even if the application hands down all its descriptors: the lock ends with the store."""
    with open_store(path) as db:
        db[b"a"] = b"1"
        db.sync()
        command = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False)
        assert child.stdout is not None
        child.stdout.readline()
        names = f"/proc/{child.pid}/fd"
        if os.path.isdir(names):
            held = [os.readlink(f"{names}/{name}") for name in os.listdir(names)]
            assert not [target for target in held if str(path) in target]
    with open_store(path, "w") as db:
        assert dict(db) == {b"a": b"1"}
    child.communicate(timeout=TIMEOUT_S)


def test_the_lock_is_free_once_its_holder_is_killed(path: Path, holder: Script) -> None:
    holder.kill()
    with open_store(path, "w") as db:
        assert not db.recovery.clean
        assert dict(db.items()) == {b"held": b"1"}


def test_a_refused_writer_changes_nothing(path: Path, holder: Script) -> None:
    before = snapshot_of(path)
    for flag in "wcn":
        with pytest.raises(StoreLockedError):
            open_store(path, flag)
    assert snapshot_of(path) == before


def test_a_reader_beside_a_writer_changes_nothing(path: Path, holder: Script) -> None:
    before = snapshot_of(path)
    with open_store(path, "r") as reader:
        assert dict(reader.items()) == {b"held": b"1"}
        assert reader.verify().ok
        with open_store(path, "r") as another:
            assert dict(another.items()) == dict(reader.items())
        assert snapshot_of(path) == before
        holder.go()
        holder.expect("closed")
        assert reader[b"held"] == b"1"
    after = snapshot_of(path)
    with open_store(path, "r") as reader:
        assert dict(reader.items()) == {b"held": b"1", b"more": b"2"}
    assert snapshot_of(path) == after


def test_a_reader_after_a_killed_writer_changes_nothing(path: Path, holder: Script) -> None:
    holder.kill()
    before = snapshot_of(path)
    with open_store(path, "r") as reader:
        assert dict(reader.items()) == {b"held": b"1"}
    assert snapshot_of(path) == before


# --- forked --------------------------------------------------------------------------------------

_FORK = """
    def fork(work):
        '''Run ``work`` in a child; it ends as a script does, with atexit handlers and finalisers.'''
        child = os.fork()
        if child == 0:
            try:
                work()
            except BaseException as error:
                say("child failed:", type(error).__name__, error)
                os._exit(1)
            sys.exit(0)
        return child

    def join(child):
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status == 0, status

    def expect_refusals(db):
        calls = {
            "get": lambda: db.get(b"a"),
            "[]": lambda: db[b"a"],
            "in": lambda: b"a" in db,
            "len": lambda: len(db),
            "bool": lambda: bool(db),
            "iter": lambda: list(db),
            "reversed": lambda: list(reversed(db)),
            "items": lambda: list(db.items()),
            "values": lambda: list(db.values()),
            "==": lambda: db == {},
            "scan": lambda: list(db.scan()),
            "scan_keys": lambda: list(db.scan_keys()),
            "get_many": lambda: db.get_many([b"a"]),
            "read": lambda: db.read(b"a"),
            "entry": lambda: db.entry(b"a"),
            "ttl": lambda: db.ttl(b"a"),
            "put": lambda: db.put(b"a", b"2"),
            "put with a ttl": lambda: db.put(b"a", b"2", ttl=60),
            "[] =": lambda: db.__setitem__(b"a", b"2"),
            "str": lambda: db.__setitem__("a", "2"),
            "add": lambda: db.add(b"b", b"2"),
            "incr": lambda: db.incr(b"n"),
            "delete": lambda: db.delete(b"a"),
            "pop": lambda: db.pop(b"a"),
            "popitem": lambda: db.popitem(),
            "clear": lambda: db.clear(),
            "update": lambda: db.update({b"a": b"2"}),
            "batch": lambda: db.batch(),
            "expire": lambda: db.expire(b"a", 60),
            "sync": lambda: db.sync(),
            "compact": lambda: db.compact(),
            "verify": lambda: db.verify(),
            "stats": lambda: db.stats(),
            "with": lambda: db.__enter__(),
        }
        for name, call in calls.items():
            try:
                call()
            except ForkedStoreError:
                continue
            except BaseException as error:
                raise AssertionError(f"{name}: {error!r}")
            raise AssertionError(f"{name} was answered")
        repr(db)
        db.close()
        db.close()
"""


def _fork_script(source: str, path: object, *arguments: object) -> list[str]:
    return _run(textwrap.dedent(_FORK) + textwrap.dedent(source), path, *arguments)


@pytest.mark.parametrize("io", ["mmap", "pread"])
@pytest.mark.parametrize("sync", SYNCS)
def test_a_child_is_refused_and_leaves_the_parent_alone(path: Path, sync: str, io: str) -> None:
    said = _fork_script(
        """
        options = dict(sync=arguments[0], io=arguments[1], sync_interval_s=0.01, segment_size_bytes=2000)
        db = bytekv.open(path, **options)
        reader = bytekv.open(path, "r")
        for number in range(30):
            db[b"k-%d" % number] = b"v" * 100
        scan = db.scan()
        next(scan)
        batch = db.batch()
        batch[b"from a child"] = b"1"
        seq, content = db.last_seq, dict(db.items())

        def work():
            expect_refusals(db)
            for inherited in (lambda: next(scan), batch.commit, lambda: len(reader), lambda: list(reader)):
                try:
                    inherited()
                except ForkedStoreError:
                    continue
                raise AssertionError("answered")

        for _ in range(3):
            join(fork(work))
            assert (db.last_seq, dict(db.items())) == (seq, content)
            assert db.verify().ok
        list(scan)
        batch.commit()
        del db[b"from a child"]
        for number in range(30):
            db[b"k-%d" % number] = b"w" * 100
        db.compact()
        reader.close()
        db.close()
        with bytekv.open(path, "w", **options) as db:
            assert dict(db.items()) == {b"k-%d" % number: b"w" * 100 for number in range(30)}
            assert db.recovery.clean
            assert db.verify().ok
        say("whole")
        """,
        path,
        sync,
        io,
    )
    assert said == ["whole"]


def test_a_child_neither_frees_nor_keeps_the_lock(path: Path, talk: Callable[..., Script]) -> None:
    """One descriptor of the lock's file is inherited: closing it must not unlock, keeping it would lock for ever."""
    script = talk(
        textwrap.dedent(_FORK)
        + textwrap.dedent(
            """
            db = bytekv.open(path)
            db[b"a"] = b"1"
            join(fork(lambda: None))
            join(fork(db.close))
            again, end = os.pipe()
            child = fork(lambda: (os.close(end), os.read(again, 1)))
            os.close(again)
            say("children have gone, one lives")
            sys.stdin.readline()
            db.close()
            say("closed")
            sys.stdin.readline()
            os.close(end)
            join(child)
            """
        ),
        path,
    )
    script.expect("children have gone, one lives")
    for wall in ("lock", "lock_directory"):  # each stands by itself
        with (
            patched({f"bytekv.engine.log.files.Files.{wall}": lambda *_: True}),
            pytest.raises(StoreLockedError) as caught,
        ):
            open_store(path)
        assert caught.value.pid == script.pid
    script.go()
    script.expect("closed")
    with open_store(path) as db:  # the child of the one that had it open lives on
        assert dict(db.items()) == {b"a": b"1"}
    script.go()
    script.end()


def test_a_child_may_open_the_store_once_its_parent_has_closed_it(path: Path) -> None:
    _fork_script(
        """
        db = bytekv.open(path)
        db[b"a"] = b"1"
        again, end = os.pipe()
        tried, trying = os.pipe()

        def work():
            os.close(end)
            try:
                bytekv.open(path)
            except StoreLockedError as error:
                assert error.pid == os.getppid(), error
            else:
                raise AssertionError("two writers")
            with bytekv.open(path, "r") as reader:
                assert reader[b"a"] == b"1"
            os.close(trying)
            os.read(again, 1)
            with bytekv.open(path) as mine:
                mine[b"b"] = b"2"
                expect_refusals(db)
                assert dict(mine.items()) == {b"a": b"1", b"b": b"2"}

        child = fork(work)
        os.close(trying)
        os.read(tried, 1)
        db.close()
        os.close(end)
        join(child)
        with bytekv.open(path) as db:
            assert dict(db.items()) == {b"a": b"1", b"b": b"2"}
        """,
        path,
    )


@pytest.mark.parametrize("sync", SYNCS)
def test_forks_while_threads_write(path: Path, sync: str) -> None:
    """A fork may strike between any two steps of a put in another thread, its locks held, half of it done."""
    _fork_script(
        """
        import threading
        sys.setswitchinterval(1e-6)
        compacting = dict(segment_size_bytes=8000, compact_dead_bytes=1000, compact_dead_ratio=0.2)
        db = bytekv.open(path, sync=arguments[0], sync_interval_s=0.005, **compacting)
        over = False
        written = [0, 0, 0]

        def write(thread):
            while not over:
                number = written[thread]
                db[b"%d-%d" % (thread, number % 50)] = b"%d" % number
                if number % 20 == 0:
                    db.update({b"%d-b%d" % (thread, part): b"%d" % number for part in range(3)})
                written[thread] = number + 1

        threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for turn in range(25):
            join(fork(lambda: expect_refusals(db)))
        over = True
        for thread in threads:
            thread.join()
        assert min(written) > 0
        assert db.stats().compactions > 0, "no fork can have struck in the middle of one"
        content = dict(db.items())
        assert db.verify().ok
        db.close()
        with bytekv.open(path) as db:
            assert dict(db.items()) == content
            for thread in range(3):
                last = (written[thread] - 1) // 20 * 20
                assert [db[b"%d-b%d" % (thread, part)] for part in range(3)] == [b"%d" % last] * 3
                for number in range(max(0, written[thread] - 50), written[thread]):
                    assert db[b"%d-%d" % (thread, number % 50)] == b"%d" % number
        """,
        path,
        sync,
    )


# --- the end of a process ------------------------------------------------------------------------


def _expect_all(path: Path, said: list[str], at_least: int = 1) -> None:
    """Open what a script has left: everything that it said must be there."""
    keys = [line[2:-1].encode() for line in said if line.startswith("b'")]
    assert len(keys) >= at_least
    with open_store(path) as db:
        assert not [key for key in keys if key not in db]
        report = db.verify()
        assert report.ok, report


ENDS = {
    "the end of the script": "put(db, b'a')",
    "sys.exit": "put(db, b'a'); sys.exit(0)",
    "os._exit": "put(db, b'a'); os._exit(0)",
    "a store that nobody holds": "put(db, b'a'); del db",
    "a store in a cycle": "db.me = db; put(db, b'a'); del db",
    "a store in a cycle, never collected": "import gc; gc.disable(); db.me = db; put(db, b'a'); del db",
    "a store in a module": "sys.modules['keeper'] = type(sys)('keeper'); sys.modules['keeper'].db = db; put(db, b'a')",
    "a scan that is not over": "put(db, b'a'); scan = db.scan(); next(scan)",
    "a batch that is not committed": "put(db, b'a'); batch = db.batch(); batch[b'b'] = b'2'",
    "inside a with block": "db.__enter__(); put(db, b'a'); sys.exit(0)",
    "a reader beside it": "put(db, b'a'); reader = bytekv.open(path, 'r'); list(reader)",
    "a thread that ends later": """
        import threading
        again = threading.Event()

        def late():
            again.wait()
            for number in range(100):
                put(db, b"late-%d" % number)

        thread = threading.Thread(target=late)
        thread.start()
        put(db, b"a")
        again.set()
    """,
    "a daemon thread that writes": """
        import threading
        begun = threading.Event()

        def write():
            number = 0
            try:
                while True:
                    number += 1
                    put(db, b"k-%d" % number)
                    if number == 100:
                        begun.set()
            except StoreClosedError:
                pass

        threading.Thread(target=write, daemon=True).start()
        begun.wait()
        put(db, b"a")
    """,
    "daemon threads that write, in the middle of compactions": """
        import threading
        begun = threading.Semaphore(0)

        def write(thread):
            number = 0
            try:
                while True:
                    number += 1
                    db[b"%d" % (number % 10)] = b"v" * 200
                    put(db, b"%d-%d" % (thread, number))
                    if number == 100:
                        begun.release()
            except StoreClosedError:
                pass

        for thread in range(3):
            threading.Thread(target=write, args=(thread,), daemon=True).start()
        for _ in range(3):
            begun.acquire()
    """,
    "a write in an atexit handler": """
        import atexit
        atexit.register(lambda: put(db, b"at exit"))
        put(db, b"a")
    """,
    "a close in an atexit handler": "import atexit; atexit.register(db.close); put(db, b'a')",
    "a store opened in an atexit handler": """
        import atexit
        put(db, b"a")
        db.close()

        def late():
            global again
            again = bytekv.open(path, sync=arguments[0], sync_interval_s=0.01)
            put(again, b"late")

        atexit.register(late)
    """,
    "a finaliser that writes while the interpreter ends": """
        class Late:
            def __init__(self, db):
                self.db = db

            def __del__(self):
                put(self.db, b"finalised")

        late = Late(db)
        put(db, b"a")
    """,
    "a finaliser that writes, before": """
        class Late:
            def __init__(self, db):
                self.db = db

            def __del__(self):
                put(self.db, b"finalised")

        Late(db)
        late = Late(db)
        late.me = late
        del late
        import gc
        gc.collect()
        put(db, b"a")
    """,
}


# Each with the worker that "interval" has, and with one of the modes that have none.
@pytest.mark.parametrize(
    ("end", "sync"),
    [(end, sync) for number, end in enumerate(ENDS) for sync in ("interval", ("always", "os")[number % 2])],
)
def test_an_end_without_close(path: Path, end: str, sync: str) -> None:
    """No hang, nothing on stderr, and everything that was acknowledged is there."""
    opening = "db = bytekv.open(path, sync=arguments[0], sync_interval_s=0.01, segment_size_bytes=4000)\n"
    _expect_all(path, _run(opening + textwrap.dedent(ENDS[end]), path, sync))


@pytest.mark.parametrize("sync", SYNCS)
def test_an_end_whose_garbage_nobody_collects(path: Path, sync: str) -> None:
    """`gc.freeze`, as before a fork, has the store outlive its module's names: its finaliser said "catching classes
    that do not inherit from BaseException is not allowed"."""
    script = f"import bytekv, gc\ndb = bytekv.open({str(path)!r}, sync={sync!r})\ndb['a'] = '1'\ngc.freeze()\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    with open_store(path) as db:
        assert dict(db) == {b"a": b"1"}


@pytest.mark.parametrize("sync", SYNCS)
def test_what_is_saved_after_bytekvs_own_exit_handler(path: Path, sync: str) -> None:
    """Handlers run in reverse order: one that was registered before bytekv was imported met a closed store, and so did
    objects of the main module that save something when they are finalised. What they had to save was lost."""
    source = """
        import atexit, os, sys

        def said(key):
            os.write(1, b"%r\\n" % key)

        def last():
            for number in range(5):
                db[b"late-%d" % number] = b"1"
                said(b"late-%d" % number)
            assert sys.argv[2] == "os" or db.durable_seq == db.last_seq, "nobody is left to sync it"
            assert db[b"late-0"] == b"1" and len(db) == 6
            with db.batch() as batch:
                batch[b"batch"] = b"1"
            said(b"batch")
            try:
                bytekv.open(sys.argv[1])
            except bytekv.StoreLockedError:
                said(b"locked")
            try:
                child = os.fork()
            except RuntimeError:  # Python 3.12.1 forks no more by now
                os.write(1, b"forked\\n")
                return
            if child == 0:
                try:
                    db[b"child"] = b"1"
                except bytekv.ForkedStoreError:
                    os.write(1, b"forked\\n")
                os._exit(0)
            os.wait()

        atexit.register(last)
        import bytekv

        class Application:
            def __init__(self, store):
                self.store = store

            def __del__(self):
                self.store[b"finalised"] = b"1"
                said(b"finalised")

        db = bytekv.open(sys.argv[1], sync=sys.argv[2], sync_interval_s=0.01)
        db[b"a"] = b"1"
        said(b"a")
        application = Application(db)
    """
    done = subprocess.run(
        _command(source, path, sync, prelude=""), capture_output=True, timeout=TIMEOUT_S, env=_environment()
    )
    assert (done.returncode, done.stderr.decode()) == (0, "")
    said = done.stdout.decode().splitlines()
    assert "forked" in said
    said.remove("b'locked'")
    with open_store(path) as db:
        assert db.recovery.clean
        assert {repr(key) for key in db} | {"forked"} == set(said)
        assert len(db) == 8


def test_what_is_saved_once_a_daemon_thread_was_stopped_inside_the_store(path: Path) -> None:
    """Its lock is never given back: a thread that waited for it would keep the process from ending."""
    source = """
        import threading

        class Application:
            def __del__(self):
                try:
                    db[b"finalised"] = b"1"
                except StoreClosedError:
                    os.write(1, b"refused\\n")

        held = threading.RLock()
        thread = threading.Thread(target=held.acquire)
        thread.start()
        thread.join()
        elsewhere = {"held": held, "real": bytekv.engine.store.Store._at_exit}  # else nothing of this module would go
        exec('''if True:
            def at_exit(store):
                real(store)
                store._commit.state.lock = held
                store._commit.state.replace_locks(type(store._commit.state.sync_lock))
        ''', elsewhere)
        bytekv.engine.store.Store._at_exit = elsewhere.pop("at_exit")
        db = bytekv.open(path)
        put(db, b"a")
        application = Application()
    """
    said = _run(source, path)
    assert "refused" in said
    _expect_all(path, said)


def test_a_directory_that_has_gone_is_told_in_one_line(path: Path) -> None:
    source = """
        import shutil
        db = bytekv.open(path)
        put(db, b"a")
        shutil.rmtree(path)
    """
    done = subprocess.run(_command(source, path), capture_output=True, timeout=TIMEOUT_S, env=_environment())
    assert done.returncode == 0
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith(f"{path} could not be closed at exit: ")


@pytest.mark.parametrize("sync", SYNCS)
def test_an_end_by_an_exception(path: Path, sync: str) -> None:
    source = """
        db = bytekv.open(path, sync=arguments[0])
        put(db, b"a")
        with db.batch() as batch:
            batch[b"b"] = b"2"
            raise RuntimeError("of the application")
    """
    done = subprocess.run(_command(source, path, sync), capture_output=True, timeout=TIMEOUT_S, env=_environment())
    assert done.returncode == 1
    assert done.stderr.decode().splitlines()[-1] == "RuntimeError: of the application"
    assert "Exception ignored" not in done.stderr.decode()
    _expect_all(path, done.stdout.decode().splitlines())
    with open_store(path) as db:
        assert list(db) == [b"a"]
        assert db.recovery.clean


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda one: one.name)
def test_an_end_by_a_signal(path: Path, number: signal.Signals, talk: Callable[..., Script]) -> None:
    """SIGINT raises KeyboardInterrupt, and the store is closed on the way out; the others end the process at once."""
    script = talk(
        """
        db = bytekv.open(path)
        number = 0
        while True:
            number += 1
            put(db, b"k-%d" % number)
        """,
        path,
    )
    said = [script.line() for _ in range(200)]
    script.process.send_signal(number)
    out, err = script.process.communicate(timeout=TIMEOUT_S)
    said += out[: out.rfind(b"\n") + 1].decode().splitlines()
    assert script.process.returncode == -number
    if number == signal.SIGINT:
        assert err.decode().splitlines()[-1] == "KeyboardInterrupt"
        assert "Exception ignored" not in err.decode()
    else:
        assert err == b""
    _expect_all(path, said, at_least=200)
