"""The store watched and hurt from outside, with strace: killed at each system call, refused a sync, counted.

Nothing inside the process is replaced here, so this is what tells whether the doubles of the other tests are right.
strace is attached to a process that stands ready: what Python does while it starts is neither counted nor hurt.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import bytekv
from tests.support.harness import damage, open_store, segment_files

TIMEOUT_S = 60.0

#: What an open or a create changes something with; names with "?" are not known on every processor. A kill strikes on
#: entering the call, before it does anything.
CALLS = (
    "?mkdir,?mkdirat,openat,flock,ftruncate,fallocate,pwrite64,fsync,fdatasync,"
    "?rename,?renameat,?renameat2,?unlink,?unlinkat"
)

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="strace is for Linux"),
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed"),
]

# One job a line: "name path"; once the child has said its pid and was told to go, a line for each thing acknowledged.
# A job runs in a child of its own; forking one that has everything imported saves starting Python hundreds of times.
_SERVER = """
    import ctypes, os, sys
    import bytekv
    from bytekv.errors import BytekvError

    def say(*words):
        os.write(1, (" ".join(map(str, words)) + "\\n").encode())

    def attempt(name, call):
        try:
            say(name, call())
        except BytekvError as error:
            say(name, "refused", type(error).__name__)

    def writes(path, **options):
        db = bytekv.open(path, segment_size_bytes=1000, auto_compact=False, **options)
        for number in range(8):
            attempt("put", lambda: db.put(b"k-%d" % number, b"v" * 150))
        attempt("delete", lambda: db.delete(b"k-1"))
        attempt("sync", db.sync)
        attempt("compact", lambda: bool(db.compact()))
        attempt("put", lambda: db.put(b"last", b"v"))
        say("reads", len(dict(db.items())))
        attempt("close", db.close)

    def short(path, **options):
        db = bytekv.open(path, **options)
        attempt("put", lambda: db.put(b"short", b"v"))
        attempt("close", db.close)

    def many(path, count, **options):
        db = bytekv.open(path, sync="interval", **options)
        put = db.put
        put(b"first", b"")
        say("begin")
        for number in range(count):
            put(b"key-%012d" % number, b"v" * 100)
        say("end")
        os._exit(0)

    def repair(path):
        say("repaired", len(bytekv.repair(path).damage))

    jobs = {
        "repair": repair,
        "writes-always": lambda path: writes(path, sync="always"),
        "writes-os": lambda path: writes(path, sync="os"),
        "writes-pread": lambda path: writes(path, sync="always", io="pread"),
        "short-always": lambda path: short(path, sync="always"),
        "short-pread": lambda path: short(path, sync="os", io="pread"),
        "many-mmap": lambda path: many(path, 10_000, io="mmap"),
        "many-pread": lambda path: many(path, 1000, io="pread"),
    }

    def line():
        text = b""
        while not text.endswith(b"\\n"):
            piece = os.read(0, 1)
            if not piece:
                sys.exit()
            text += piece
        return text.decode().strip()

    while True:
        name, path = line().split(" ", 1)
        child = os.fork()
        if child == 0:
            try:
                # Where only ancestors may trace: PR_SET_PTRACER, PR_SET_PTRACER_ANY.
                ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)
                say("pid", os.getpid())
                line()
                jobs[name](path)
            except BytekvError as error:
                say("failed", type(error).__name__)
            finally:
                os._exit(0)
        status = os.waitpid(child, 0)[1]
        say("exit", os.waitstatus_to_exitcode(status))
"""


class Run(NamedTuple):
    """What a job said, how it ended, and the system calls that strace has seen."""

    said: list[str]
    code: int
    trace: list[str]

    def counts(self) -> Counter[str]:
        found = (re.match(r"(?:\d+ +)?(\w+)\(", line) for line in self.trace)
        return Counter(match[1] for match in found if match)


class Server:
    """A process that forks a child for each job, and strace for the child."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(_SERVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(Path(bytekv.__file__).parents[1])},
        )

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        assert line, "the server has ended"
        return line.strip()

    def run(self, job: str, path: Path, *options: str) -> Run:
        """Run a job under strace."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{job} {path}\n".encode())
        self.process.stdin.flush()
        pid = self._line().removeprefix("pid ")
        log = self.folder / "trace"
        strace = subprocess.Popen(
            ["strace", "-f", "-o", str(log), *options, "-p", pid], stderr=subprocess.PIPE, text=True
        )
        assert strace.stderr is not None
        first = strace.stderr.readline()
        self.process.stdin.write(b"go\n")
        self.process.stdin.flush()
        said = []
        while not (line := self._line()).startswith("exit "):
            said.append(line)
        rest = strace.communicate(timeout=TIMEOUT_S)[1]
        if "attached" not in first:
            pytest.skip(f"strace may not attach here: {(first + rest).strip()}")
        return Run(said, int(line.removeprefix("exit ")), log.read_text().splitlines())

    def end(self) -> None:
        self.process.communicate(timeout=TIMEOUT_S)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    one = Server(tmp_path_factory.mktemp("strace"))
    yield one
    one.end()


def _after(said: list[str]) -> list[dict[bytes, bytes]]:
    """Return the contents that a store may have of which a ``writes`` job has said this much.

    The first is the one it has acknowledged; the second what the call after that would have made of it.
    """
    states: list[dict[bytes, bytes]] = [{}]
    for number in range(8):
        states.append(states[-1] | {b"k-%d" % number: b"v" * 150})
    states.append({key: value for key, value in states[-1].items() if key != b"k-1"})
    states.append(states[-1] | {b"last": b"v"})
    done = sum(1 for line in said if re.fullmatch(r"(put \d+|delete True)", line))
    return states[done : done + 2]


def _expect(path: Path, acceptable: list[dict[bytes, bytes]], where: str) -> None:
    for _ in range(2):
        with open_store(path) as db:
            assert dict(db.items()) in acceptable, where
            acceptable = [dict(db.items())]
            report = db.verify()
            assert report.ok, (where, report)
    with open_store(path) as db:
        db[b"writable"] = b"1"


# --- kills ---------------------------------------------------------------------------------------


def _kill_everywhere(server: Server, path: Path, job: str, prepare: Any, judge: Any, step: int) -> int:
    """Kill a job at each of its system calls, one a run, and let ``judge`` look at what is left."""
    template = path.with_name("template")
    prepare(template)
    counts = server.run(job, _copy(template, path.with_name("whole")), "-e", f"trace={CALLS}").counts()
    assert counts.total() > 5
    every = [(call, k) for call in sorted(counts) for k in range(1, counts[call] + 1)]
    for call, k in every[::step]:
        here = _copy(template, path)
        run = server.run(job, here, "-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={k}")
        where = f"{job} killed at {call} {k}; said {run.said}"
        assert run.code == -signal.SIGKILL, where
        judge(here, run.said, where)
    return len(every)


def _copy(template: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    if template.exists():
        shutil.copytree(template, target)
    return target


def _nothing(path: Path) -> None:
    """Leave no store there."""


def _closed(path: Path) -> None:
    with open_store(path, segment_size_bytes=1000) as db:
        db.update({b"kept-%d" % number: b"k" * 300 for number in range(5)})


def _judge_writes(path: Path, said: list[str], where: str) -> None:
    # Nothing there at all is right, too, if it was killed before the first step.
    _expect(path, _after(said), where)


def _judge_short(path: Path, said: list[str], where: str) -> None:
    before = {b"kept-%d" % number: b"k" * 300 for number in range(5)}
    after = before | {b"short": b"v"}
    _expect(path, [after] if "put 6" in said else [before, after], where)


# A kill costs 30 ms; the sample takes every third of the longer jobs.
@pytest.mark.parametrize("job", ["writes-always", "writes-os", "writes-pread"])
def test_killed_at_a_system_call_of_a_whole_life(server: Server, path: Path, job: str) -> None:
    assert _kill_everywhere(server, path, job, _nothing, _judge_writes, 3) > 50


@pytest.mark.parametrize("job", ["short-always", "short-pread"])
def test_killed_at_every_system_call_of_open(server: Server, path: Path, job: str) -> None:
    assert _kill_everywhere(server, path, job, _closed, _judge_short, 1) > 15


@pytest.mark.parametrize("job", ["short-always", "short-pread"])
def test_killed_at_every_system_call_of_recovery(server: Server, path: Path, job: str) -> None:
    """The store that is opened was itself left by a kill: with room behind the log, half an entry and leftovers."""

    def crashed(template: Path) -> None:
        _closed(template)
        job_path = template.with_name("crashed")
        shutil.copytree(template, job_path)
        last = max(job_path.glob("*.seg"))
        with last.open("ab") as file:
            file.write(b"\x01half an entry" + bytes(500))
        (job_path / "MANIFEST.new").write_bytes(b"never published")
        (job_path / "0000000099.seg").write_bytes(b"never listed")
        shutil.rmtree(template)
        job_path.rename(template)

    assert _kill_everywhere(server, path, job, crashed, _judge_short, 1) > 20


@pytest.mark.parametrize("lost", ["an entry", "the manifest"])
def test_killed_at_every_system_call_of_a_repair(server: Server, path: Path, lost: str) -> None:
    """Half a repair is none: the next one does all of it."""

    def damaged(template: Path) -> None:
        _closed(template)
        if lost == "the manifest":
            (template / "MANIFEST").unlink()
        else:
            damage(segment_files(template)[0], 200)

    def judge(here: Path, said: list[str], where: str) -> None:
        bytekv.repair(here)
        assert bytekv.repair(here).ok, where
        _expect(here, [expected], where)

    copy = path.with_name("copy")
    damaged(copy)
    bytekv.repair(copy)
    with open_store(copy) as db:
        expected = dict(db.items())
    assert len(expected) == (5 if lost == "the manifest" else 4)
    assert _kill_everywhere(server, path, "repair", damaged, judge, 1) > 15


@pytest.mark.deep
@pytest.mark.parametrize("job", ["writes-always", "writes-os", "writes-pread"])
def test_killed_at_every_system_call_of_a_whole_life(server: Server, path: Path, job: str) -> None:
    assert _kill_everywhere(server, path, job, _nothing, _judge_writes, 1) > 50


# --- syncs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("job", ["writes-always", "writes-os", "writes-pread"])
@pytest.mark.parametrize("call", ["fdatasync", "fsync"])
def test_the_kth_sync_is_refused(server: Server, path: Path, job: str, call: str) -> None:
    """The kernel says EIO once. All that follows is refused, no sync is tried again, nothing acknowledged is lost."""
    k = 0
    while True:
        k += 1
        shutil.rmtree(path, ignore_errors=True)
        run = server.run(job, path, "-e", "trace=fdatasync,fsync,rename", "-e", f"inject={call}:error=EIO:when={k}")
        where = f"{job}, {call} {k}: {run.said}"
        assert run.code == 0, where
        struck = [number for number, line in enumerate(run.trace) if "(INJECTED)" in line]
        if not struck:
            break
        later = run.trace[struck[0] + 1 :]
        assert not any("sync(" in line for line in later), (where, run.trace)
        if run.said[0] == "failed StoreFailedError":
            _expect(path, [{}], where)  # while opening
            continue
        refusals = [number for number, line in enumerate(run.said) if "refused" in line]
        assert refusals, where
        for number, line in enumerate(run.said):
            if line.startswith("reads "):
                assert line == f"reads {len(_after(run.said[:number])[0])}", where
            elif number >= refusals[0]:
                # A compaction that finds nothing to do needs no disk.
                assert line.endswith("refused StoreFailedError") or line == "compact True", where
        _expect(path, _after(run.said), where)
    assert k > 2


# --- counting ------------------------------------------------------------------------------------


def _between(run: Run) -> Counter[str]:
    """Count the calls between "begin" and "end", those that hand the interpreter's lock around left out."""
    marks = [number for number, line in enumerate(run.trace) if re.search(r'write\(1, "(begin|end)', line)]
    counts = Run([], 0, run.trace[marks[0] + 1 : marks[1]]).counts()
    for waiting in ("futex", "clock_nanosleep", "sched_yield"):
        counts.pop(waiting, None)
    return counts


def test_a_put_through_the_mapping_makes_no_system_call(server: Server, path: Path) -> None:
    """10,000 puts of 143 bytes: the file grows six times; the worker may sync now and then."""
    counts = _between(server.run("many-mmap", path))
    assert counts.total() < 200, counts
    assert counts["pwrite64"] == 0, counts
    with open_store(path) as db:
        assert len(db) == 10_001


def test_without_a_mapping_a_put_is_one_system_call(server: Server, path: Path) -> None:
    counts = _between(server.run("many-pread", path))
    assert 1000 <= counts["pwrite64"] <= 1010, counts
    assert counts.total() < 1100, counts
    with open_store(path) as db:
        assert len(db) == 1001
