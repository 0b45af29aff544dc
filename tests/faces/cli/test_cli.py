"""The command line: what comes out where, with which exit status, and that a person never sees a traceback."""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bytekv
from bytekv.cli import commands
from bytekv.cli import main as cli
from tests.support.harness import crash, fresh, open_store

ROOT = Path(__file__).parents[3]


class Result(NamedTuple):
    status: int
    out: bytes
    err: str


Run = Callable[..., Result]


def command(path: Path | str, *argv: str | bytes, stdin: bytes = b"") -> Result:
    """Run a command line in this process, on a directory."""
    out, err = io.BytesIO(), io.BytesIO()
    streams = {
        "stdin": io.TextIOWrapper(io.BytesIO(stdin)),
        "stdout": io.TextIOWrapper(out),
        "stderr": io.TextIOWrapper(err, errors="backslashreplace"),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BYTEKV_DIR", str(path))  # "": as if it were not set
        patch.setenv("COLUMNS", "100")
        for name, stream in streams.items():
            patch.setattr(sys, name, stream)
        before = [*logging.getLogger().handlers]
        try:
            status = cli.main([os.fsdecode(argument) for argument in argv])
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            logging.getLogger().handlers[:] = before
            logging.getLogger().setLevel(logging.WARNING)
    return Result(status, out.getvalue(), err.getvalue().decode())


@pytest.fixture
def run(path: Path) -> Run:
    """Run command lines on the test's directory."""
    return partial(command, path)


def environment(path: Path) -> dict[str, str]:
    """Return the environment of a program: output is buffered, as it is for most people."""
    own = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return {**own, "BYTEKV_DIR": str(path), "PYTHONPATH": str(ROOT)}


def process(*argv: str | bytes, path: Path, **more: Any) -> subprocess.CompletedProcess[bytes]:
    """Run a command line as a program."""
    return subprocess.run(
        [sys.executable, "-m", "bytekv", *argv],
        env=environment(path),
        timeout=60,
        **{"stdin": subprocess.DEVNULL, "capture_output": True, **more},
    )


def content(path: Path) -> dict[bytes, bytes]:
    with open_store(path, "r") as db:
        return dict(db)


# --- keys and values ---------------------------------------------------------------------------


def test_set_get_and_delete(run, path):
    assert run("set", "colour", "blue") == (0, b"", "")
    assert run("get", "colour") == (0, b"blue", "")
    assert run("put", "colour", "größe") == (0, b"", "")
    assert run("get", "colour") == (0, "größe".encode(), "")
    for name in ("delete", "del", "rm"):
        run("set", name, "x")
        assert run(name, name) == (0, b"", "")
        assert run(name, name) == (1, b"", f"bytekv: no such key: '{name}'\n")
    assert content(path) == {b"colour": "größe".encode()}
    assert stat_of_threads() == 0


def stat_of_threads() -> int:
    return sum(thread.name.startswith("bytekv") for thread in threading.enumerate())


@given(st.binary(max_size=30).filter(lambda key: b"\0" not in key), st.binary(max_size=50))
@settings(max_examples=30)
def test_any_key_and_any_value(path, key, value):
    """What the kernel can hand over as an argument is a key; a value comes through standard input byte for byte."""
    run = partial(command, fresh(path) / "store")
    assert run("set", "--", key, "-", stdin=value) == (0, b"", "")
    assert run("get", "--", key) == (0, value, "")
    assert run("get", "--hex", key.hex()) == (0, value, "")
    assert json.loads(run("get", "--json", "--", key).out)["seq"] == 1
    assert run("scan", "--hex", "--keys-only").out == key.hex().encode() + b"\n"
    assert run("delete", "--", key) == (0, b"", "")


def test_keys_in_hexadecimal_and_base64(run, path):
    assert run("set", "--hex", "00ff", "a").status == 0
    assert run("set", "--base64", "/w==", "b").status == 0
    assert content(path) == {b"\0\xff": b"a", b"\xff": b"b"}
    assert run("scan", "--hex").out == b"00ff\ta\nff\tb\n"
    assert run("scan", "--base64", "/w==").out == b"/w==\tb\n"
    assert run("delete", "--base64", "AP8=").status == 0
    assert run("get", "--hex", "0").err == "bytekv: '0' is not hexadecimal\n"
    assert "not base64" in run("get", "--base64", "/w").err
    assert run("get", "--hex", "--base64", "00").status == 2


def test_a_ttl(run, path):
    assert run("set", "k", "v", "--ttl", "1000").status == 0
    with open_store(path, "r") as db:
        assert 990 < db.ttl("k") <= 1000
    fields = json.loads(run("get", "k", "--json").out)
    assert fields.keys() == {"key", "value", "expires", "seq", "modified"}
    assert fields["expires"] == pytest.approx(fields["modified"] + 1000)


def test_a_value_that_looks_like_an_option(run):
    assert run("set", "k", "-5").status == 0
    assert run("get", "k").out == b"-5"
    assert run("set", "--", "-k", "--json").status == 0
    assert run("get", "--", "-k").out == b"--json"


def test_options_stand_before_or_behind_the_command(run, path):
    other = path.parent / "other"
    assert run("-d", str(other), "set", "k", "1").status == 0
    assert run("set", "k", "2", "--dir", str(other)).status == 0
    assert run("get", "k", "-d", str(other)).out == b"2"
    assert not path.exists()


def test_the_directory_is_one_of_the_current_one_unless_told(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    assert command("", "set", "k", "v").status == 0
    assert content(path.parent / "bytekv-data") == {b"k": b"v"}


# --- scan --------------------------------------------------------------------------------------

SCANS = {
    (): b"a\t1\nb\xff\t\x00\nba\t2\nc\t3\n",
    ("b",): b"ba\t2\nb\xff\t\x00\n",
    ("--keys-only",): b"a\nba\nb\xff\nc\n",
    ("--keys-only", "-0", "b"): b"ba\0b\xff\0",
    ("--null", "--limit", "1"): b"a\t1\0",
    ("--start", "ba", "--stop", "c"): b"ba\t2\nb\xff\t\x00\n",
    ("--reverse", "--keys-only", "--limit", "2"): b"c\nb\xff\n",
    ("--limit", "0"): b"",
    ("nothing",): b"",
    ("--json",): b'{"key": "a", "value": "1"}\n{"key": "ba", "value": "2"}\n{"key_b64": "Yv8=", "value": "\\u0000"}\n'
    b'{"key": "c", "value": "3"}\n',
    ("--json", "--keys-only", "c"): b'{"key": "c"}\n',
}


@pytest.mark.parametrize("arguments", SCANS)
def test_scans(run, path, arguments):
    with open_store(path) as db:
        db.update({"a": "1", b"ba": "2", b"b\xff": b"\0", "c": "3"})
    wanted = SCANS[arguments] if arguments else b"a\t1\nba\t2\nb\xff\t\x00\nc\t3\n"
    assert run("scan", *arguments) == (0, wanted, "")


def test_several_keys_and_prefixes_are_deleted(run, path):
    with open_store(path) as db:
        db.update(dict.fromkeys(["a", "b", "c", "d", "x1", "x2", "y", b"\xff"], "1"))
    assert run("count") == (0, b"8\n", "")
    assert run("count", "x") == (0, b"2\n", "")
    assert run("count", "--start", "b", "--stop", "x2") == (0, b"4\n", "")
    assert run("count", "--hex", "ff") == (0, b"1\n", "")
    assert run("rm", "a", "b") == (0, b"", "")
    assert run("rm", "no", "c", "none", "d") == (1, b"", "bytekv: no such key: 'no', 'none'\n")  # the others are gone
    assert run("delete", "--prefix", "x") == (0, b"", "bytekv: 2 keys deleted\n")
    assert run("delete", "--hex", "--prefix", "ff") == (0, b"", "bytekv: 1 key deleted\n")
    assert run("delete", "--prefix", "x") == (0, b"", "bytekv: 0 keys deleted\n")
    assert content(path) == {b"y": b"1"}


def test_a_store_is_made_with_its_parents(run, path):
    where = str(path / "a" / "b")
    assert run("-d", where, "count")[0] == 3
    assert not path.exists()
    assert run("-d", where, "set", "a", "1") == (0, b"", "")
    assert content(path / "a" / "b") == {b"a": b"1"}


# --- exit statuses -----------------------------------------------------------------------------


def as_it_is(path: Path) -> None:
    with open_store(path) as db:
        db.update({"a": "1", "b": "2"})


def missing(path: Path) -> None:
    pass


def a_file(path: Path) -> None:
    path.write_text("x")


def other_files(path: Path) -> None:
    path.mkdir()
    (path / "x").write_text("x")


def damaged(path: Path) -> None:
    as_it_is(path)
    file = path / "0000000001.seg"
    raw = bytearray(file.read_bytes())
    raw[100] ^= 1
    file.write_bytes(raw)


def of_a_newer_format(path: Path) -> None:
    as_it_is(path)
    raw = bytearray((path / "MANIFEST").read_bytes()[:-4])
    raw[8] = 2
    from bytekv.engine.codec.checksum import CRC, checksum

    (path / "MANIFEST").write_bytes(raw + CRC.pack(checksum(bytes(raw))))


#: what lies there, the command line, standard input, the exit status, what standard error says
STATUSES: list[tuple[Callable[[Path], None], str, bytes, int, str]] = [
    (as_it_is, "get a", b"", 0, ""),
    (missing, "set a 1", b"", 0, ""),
    (as_it_is, "delete a", b"", 0, ""),
    (as_it_is, "scan x", b"", 0, ""),
    (as_it_is, "stats", b"", 0, ""),
    (as_it_is, "verify", b"", 0, ""),
    (as_it_is, "repair", b"", 0, ""),
    (as_it_is, "compact", b"", 0, "reclaimed"),
    (as_it_is, "export", b"", 0, ""),
    (as_it_is, "inspect 1", b"", 0, ""),
    (missing, "import", b'{"key": "a", "value": "1"}\n', 0, "1 entry imported"),
    (missing, "import", b"", 0, "0 entries imported"),
    (missing, "--help", b"", 0, ""),
    (missing, "get --help", b"", 0, ""),
    (missing, "--version", b"", 0, ""),
    # no such key
    (as_it_is, "get x", b"", 1, "no such key: 'x'"),
    (as_it_is, "get --json x", b"", 1, "no such key: 'x'"),
    (as_it_is, "delete x", b"", 1, "no such key: 'x'"),
    # wrong use
    (missing, "", b"", 2, "required: COMMAND"),
    (missing, "frob", b"", 2, "invalid choice: 'frob'.*'set'.*'scan'"),
    (missing, "frob get a", b"", 2, "invalid choice: 'frob'.*'set'.*'scan'"),
    (missing, "get", b"", 2, "bytekv get --help"),
    (missing, "get a b", b"", 2, "unrecognized arguments: b"),
    (missing, "get --frob a", b"", 2, "unrecognized arguments: --frob"),
    (missing, "get --jso a", b"", 2, "unrecognized arguments: --jso"),
    (missing, "set a", b"", 2, "VALUE"),
    (missing, "set a 1 --ttl soon", b"", 2, "invalid float value: 'soon'"),
    (missing, "set a 1 --ttl 0", b"", 2, "ttl must be more than 0"),
    (missing, "set a 1 --ttl nan", b"", 2, "ttl must be more than 0"),
    (missing, "set a 1 --ttl", b"", 2, "expected one argument"),
    (missing, "set --hex xy 1", b"", 2, "'xy' is not hexadecimal"),
    (missing, "scan --limit -1", b"", 2, "--limit"),
    (missing, "scan --limit 1_0", b"", 2, "not a number from 0 on: '1_0'"),
    (missing, "-d", b"", 2, "expected one argument"),
    (missing, "--dir= get a", b"", 2, "directory is empty"),
    (missing, f"set {'k' * 65536} 1", b"", 2, "a key of 65536 bytes; the limit is 65535"),
    (missing, "import nothing.jsonl", b"", 2, "nothing.jsonl: No such file or directory"),
    (missing, "import /", b"", 2, "/: Is a directory"),
    (missing, "import", b"\n{}\n", 2, "line 2: needs either key or key_b64; nothing was imported"),
    (missing, "import --from dbm nothing", b"", 2, "nothing: not there"),
    (missing, "import --from pickle x", b"", 2, "invalid choice: 'pickle'"),
    (missing, "import --table t", b"", 2, "--table and --columns are for"),
    (missing, "import --from sqlite --columns a x", b"", 2, "takes two names, KEY,VALUE, not 'a'"),
    (missing, "import --from dbm --table t x", b"", 2, "dbm has no table to choose"),
    (as_it_is, "export nowhere/there", b"", 2, "nowhere/there: No such file or directory"),
    (as_it_is, "backup .", b"", 3, "other"),
    # the store
    (missing, "get a", b"", 3, "store: no store there"),
    (missing, "delete a", b"", 3, "no store there"),
    (missing, "scan", b"", 3, "no store there"),
    (missing, "compact", b"", 3, "no store there"),
    (missing, "stats", b"", 3, "no store there"),
    (missing, "verify", b"", 3, "no store there"),
    (missing, "repair", b"", 3, "no store there"),
    (missing, "backup x", b"", 3, "no store there"),
    (missing, "export", b"", 3, "no store there"),
    (missing, "inspect 1", b"", 2, "0000000001.seg: no such segment"),
    (missing, "count", b"", 3, "no store there"),
    (missing, "delete --prefix a", b"", 3, "no store there"),
    (as_it_is, "delete", b"", 2, "either keys or --prefix"),
    (as_it_is, "delete a --prefix b", b"", 2, "either keys or --prefix"),
    (as_it_is, "delete --prefix=", b"", 2, "an empty prefix matches every key"),
    (as_it_is, "count --hex x", b"", 2, "not hexadecimal"),
    (a_file, "get a", b"", 3, "a file, not a directory"),
    (a_file, "set a 1", b"", 3, "a file|not a directory"),
    (other_files, "set a 1", b"", 3, "other files"),
    (other_files, "get a", b"", 3, "without a store"),
    (damaged, "get a", b"", 3, "0000000001.seg: offset 80: entry fails its CRC32C"),
    (damaged, "set a 1", b"", 3, "fails its CRC32C"),
    (damaged, "inspect 1", b"", 3, ""),
    (damaged, "repair", b"", 0, ""),
    (of_a_newer_format, "get a", b"", 3, "use a newer bytekv"),
]


@pytest.mark.parametrize(
    ("there", "line", "stdin", "status", "message"),
    STATUSES,
    ids=[f"{there.__name__} {line[:40]}" for there, line, *_ in STATUSES],
)
def test_exit_statuses(run, path, monkeypatch, there, line, stdin, status, message):
    there(path)
    monkeypatch.chdir(path.parent)
    (path.parent / "other").touch()
    before = sorted(path.parent.rglob("*"))
    found = run(*line.split(), stdin=stdin)
    assert found.status == status, found
    assert re.search(message, found.err), found.err
    if status in (1, 2) or message:
        assert re.fullmatch("bytekv: [^\n]+\n", found.err), "one clear line"
    else:
        assert found.err == ""
    if status and not line.startswith("inspect"):
        assert found.out == b""
    if status == 2:
        assert sorted(path.parent.rglob("*")) == before, "wrong use changes nothing"


@pytest.mark.parametrize("line", ["backup", "export", "import", "import --from=dbm", "inspect"])
def test_an_empty_name_is_not_the_current_directory(run, path, monkeypatch, line):
    """A backup to a variable that is not set filled the current directory, if that was empty."""
    as_it_is(path)
    monkeypatch.chdir(path.parent)
    found = run(*line.split(), "")
    assert (found.status, found.out) == (2, b"")
    assert re.search("the name of (DEST|FILE|SEGMENT) is empty; is a variable not set", found.err)
    assert os.listdir(path.parent) == ["store"]


def test_every_status_is_in_the_table():
    assert {row[3] for row in STATUSES} == {cli.DONE, cli.NO_SUCH_KEY, cli.WRONG_USE, cli.FAILED}
    commands = {word for _, line, *_ in STATUSES for word in line.split()}
    assert {command.name for command in cli.CLI_COMMANDS} - commands <= {"serve"}, "of those, tests/faces/test_serve.py"


def test_a_locked_store(run, path):
    with open_store(path) as db:
        db["a"] = "1"
        for line in ("set a 2", "delete a", "compact", "import", "repair"):
            found = run(*line.split())
            assert found.status == 3
            assert "locked by this process" in found.err
            assert "flag" not in found.err, "that is Python's way to say it"
        for line in ("get a", "scan", "stats", "verify", "export", "inspect 1", f"backup {path.parent / 'copy'}"):
            assert run(*line.split()).status == 0
        assert db["a"] == b"1"


def holder(path: Path, *, shared: bool = False, then: str = "pass") -> subprocess.Popen[bytes]:
    """Return a process that has the store open until its standard input ends."""
    script = (
        f"import bytekv, sys\nwith bytekv.open(sys.argv[1], shared={shared}) as db:\n"
        f"    {then}\n    print(flush=True)\n    sys.stdin.read()"
    )
    found = subprocess.Popen(
        [sys.executable, "-c", script, str(path)],
        env=environment(path),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert found.stdout is not None
    found.stdout.readline()
    return found


def test_writing_waits_for_another_process_and_not_for_ever(run, path, monkeypatch):
    """Two shells that set keys in a loop refused each other's writes, for a lock that lasts milliseconds."""
    other, pauses = holder(path), 0
    try:
        for line in ("set a 2", "delete a", "compact", "import", "repair"):
            found = run(*line.split(), "--wait", "0")
            assert found == (3, b"", f"bytekv: {path}: locked by process {other.pid}, which writes to it\n")
        assert run("set", "a", "2", "--wait", "0.01").status == 3

        def pause(seconds: float) -> None:
            nonlocal pauses
            pauses += 1
            assert 0 < seconds < 0.1
            if pauses == 5:
                other.communicate(b"")

        monkeypatch.setattr("time.sleep", pause)
        assert run("set", "a", "3").status == 0
    finally:
        other.kill()
        other.wait()
    assert pauses >= 5
    assert content(path)[b"a"] == b"3"


def test_writing_beside_a_program_that_shares_the_store(run, path):
    """A person sets a key, or makes room, while the service runs; it sees that at once."""
    with bytekv.open(path, shared=True, auto_compact=False, sync="os") as db:
        assert run("set", "a", "1", "--wait", "0") == (0, b"", "")
        assert db["a"] == b"1"
        assert db.durable_seq == db.last_seq == 1, "what the command line has written survives a power cut"
        db["b"] = "2"
        assert run("delete", "a", "missing", "--wait", "0").status == 1
        assert dict(db) == {b"b": b"2"}
        assert run("import", "--wait", "0", stdin=b'{"key": "c", "value": "3"}\n').status == 0
        assert run("delete", "--prefix", "b").err == "bytekv: 1 key deleted\n"
        assert dict(db) == {b"c": b"3"}
        assert db.durable_seq == db.last_seq
        for number in range(100):
            db["c"] = f"{number}"
        found = run("compact", "--json", "--wait", "0")
        assert found.status == 0
        assert json.loads(found.out)["reclaimed_bytes"] > 0
        assert dict(db) == {b"c": b"99"}
        assert db.verify().ok
        found = run("repair", "--wait", "0")
        assert found.status == 3
        assert found.err.endswith("by this process, which writes to it and shares it; only repair cannot do so\n")


def test_writing_beside_another_process_that_shares_the_store(run, path):
    other = holder(path, shared=True)
    try:
        for line in ("set a 1", "set b 2", "delete a", "compact"):
            assert run(*line.split(), "--wait", "0").status == 0
        assert run("scan").out == b"b\t2\n"
        found = run("repair", "--wait", "0")
        shares = "by another process, which writes to it and shares it; only repair cannot do so"
        assert found == (3, b"", f"bytekv: {path}: locked {shares}\n"), "no process id: there may be several"
    finally:
        other.communicate(b"")
    assert run("set", "a", "1") == (0, b"", "")
    assert (path / "LOCK").read_bytes().strip() == b"%d" % os.getpid(), "alone again"
    assert content(path) == {b"a": b"1", b"b": b"2"}


def test_a_neighbour_that_keeps_the_store_busy_is_named(run, path):
    other = holder(path, shared=True, then="tx = db.transaction(); tx.__enter__(); tx['a'] = '1'")
    try:
        for line in ("set a 2", "delete a", "import"):
            found = run(*line.split(), "--wait", "0.05", stdin=b'{"key": "c", "value": "3"}\n')
            assert found.status == 3
            assert re.fullmatch(
                rf"bytekv: {path}: process {other.pid}( \(\w+\))? has not given the store back; let it go on or end it,"
                " look for a transaction that it keeps open, or --wait longer\n",
                found.err,
            )
    finally:
        other.kill()
        other.communicate()
    assert run("set", "a", "2") == (0, b"", "")
    assert content(path) == {b"a": b"2"}


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf", "1e4300", "x", "9" * 5000, "86401"])
def test_how_long_to_wait_is_a_number_of_seconds(run, seconds):
    found = run("set", "a", "2", f"--wait={seconds}")
    assert found.status == 2
    assert "not a number of seconds" in found.err


@pytest.mark.parametrize(
    "line", ["set a b --ttl=DIGITS", "scan --limit=DIGITS", "inspect DIGITS", "serve --resp 127.0.0.1:DIGITS"]
)
def test_thousands_of_digits_are_no_fault_of_ours(run, path, line):
    """Python refuses to read more than 4,300 digits, with an exception of its own."""
    as_it_is(path)
    assert run(*line.replace("DIGITS", "9" * 5000).split()).status in (2, 3)


def test_a_name_does_nothing_to_the_terminal(run, path):
    found = run("-d", str(path) + "\x1b[31m\n\u202e", "get", "a")
    assert found.status == 3
    assert "\\x1b[31m\\n\\u202e: no store there\n" in found.err
    assert run("set", "a", "1").status == 0
    assert run("get", b"\x1b\xff\n").err == "bytekv: no such key: '\\x1b\\\\xff\\n'\n"
    assert run("-d", os.fsencode(path) + b"\xff", "get", "a").err.endswith("\\udcff: no store there\n")


def test_a_fault_of_ours_is_told_from_a_persons(run, monkeypatch):
    monkeypatch.setattr(commands, "open_store", lambda *_, **__: 1 / 0)
    found = run("get", "a")
    assert found.status == 70
    assert "ZeroDivisionError" in found.err
    assert found.err.endswith("please report it with the lines above\n")


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 3, "out of memory"),
        (bytekv.DiskFullError(28, "No space left on device", "/x"), 3, "/x: No space left on device"),
        (bytekv.StoreFailedError("x: sync failed"), 3, "x: sync failed"),
    ],
)
def test_what_ends_a_command_from_outside(run, monkeypatch, error, status, message):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(commands, "open_store", fail)
    assert run("set", "a", "1") == (status, b"", f"bytekv: {message}\n")


# --- the store as a whole ----------------------------------------------------------------------


def test_compact(run, path):
    with open_store(path) as db:
        db["a"] = b"x" * 5000
        db["a"] = "y"
    found = run("compact")
    assert (found.status, found.out) == (0, b"")
    assert found.err == "bytekv: 4.9 KiB reclaimed: 5.0 KiB in 1 segment became 109 B in 1\n"
    fields = json.loads(run("compact", "--json").out)
    assert fields.keys() == {"segments_before", "segments_after", "bytes_before", "bytes_after", "reclaimed_bytes"}


def test_stats(run, path):
    as_it_is(path)
    text = run("stats").out.decode()
    fields = dict(line.split(maxsplit=1) for line in text.splitlines() if re.match(r"[a-z_]+ +\d+$", line))
    assert (fields["keys"], fields["last_seq"], fields["dead_bytes"]) == ("2", "2", "0")
    assert text.splitlines()[-1].split() == ["1", fields["total_bytes"], "0", "0"]
    as_json = json.loads(run("stats", "--json").out)
    assert as_json.keys() == set(bytekv.Stats._fields)
    assert {name: as_json[name] for name in ("keys", "last_seq")} == {"keys": 2, "last_seq": 2}
    (segment,) = as_json["segments"]
    assert segment.keys() == set(bytekv.SegmentStats._fields)


def test_verify_and_repair(run, path):
    as_it_is(path)
    assert run("verify").out == b"1 segment, 2 entries, 2 keys, 138 bytes checked: ok\n"
    with open_store(path, "r") as db:  # keeps reading what is damaged now, behind its back
        raw = bytearray((path / "0000000001.seg").read_bytes())
        raw[105] ^= 1
        (path / "0000000001.seg").write_bytes(raw)
        assert not db.verify().ok
    found = run("repair", "--json")
    report = json.loads(found.out)
    assert (found.status, report["ok"], len(report["damage"]), len(report["quarantined"])) == (0, False, 1, 1)
    assert (report["damage"][0]["offset"], report["damage"][0]["key"]) == (80, "a")
    assert content(path) == {b"b": b"2"}
    assert json.loads(run("verify", "--json").out)["ok"] is True


def test_verify_tells_of_damage(run, path):
    """Damage that opening does not see: a hint file speaks for the segment, which nobody reads until asked."""
    with open_store(path, segment_size_bytes=100_000) as db:
        for number in range(200):
            db[f"{number:03}"] = "x" * 1000
    files = sorted(path.glob("*.seg"))
    assert len(files) > 1
    raw = bytearray(files[0].read_bytes())
    raw[5000] ^= 1
    files[0].write_bytes(raw)
    found = run("verify")
    assert found.status == 3
    assert b"1 damaged place\n" in found.out
    assert found.err == f"bytekv: {path}: damaged; bytekv repair recovers the undamaged entries\n"
    assert json.loads(run("verify", "--json").out)["damage"][0]["path"] == str(files[0])


def test_backup(run, path):
    as_it_is(path)
    copy = path.parent / "copy"
    found = run("backup", str(copy))
    assert (found.status, found.out) == (0, b"")
    assert found.err.startswith(f"bytekv: {copy}: operations up to 2 in 1 segment, 0 of them from before")
    assert content(copy) == {b"a": b"1", b"b": b"2"}
    assert json.loads(run("backup", str(copy), "--json").out)["kept"] == 1
    assert run("backup", str(path / "inside")).status == 2


# --- export and import -------------------------------------------------------------------------

entries = st.dictionaries(
    st.one_of(st.binary(max_size=12), st.text(max_size=8).map(str.encode)),
    st.tuples(st.binary(max_size=40), st.one_of(st.none(), st.integers(2**41, 2**43).map(lambda ms: ms / 1000))),
    max_size=12,
)


@given(entries)
@settings(max_examples=25)
def test_a_store_comes_back_from_its_export(path, stored):
    folder = fresh(path)
    with open_store(folder / "one") as db:
        for key, (value, expires) in stored.items():
            db.put(key, value, expires=expires)
    assert command(folder / "one", "export", str(folder / "lines")).status == 0
    assert command(folder / "two", "import", str(folder / "lines")).status == 0
    with open_store(folder / "two", "r") as db:
        assert {key: (db[key], db.entry(key).expires) for key in db} == stored
    assert sorted(os.listdir(folder)) == ["lines", "one", "two"]


def test_export_writes_a_whole_file_or_none(run, path, monkeypatch):
    as_it_is(path)
    monkeypatch.chdir(path.parent)
    target = path.parent / "out"
    target.write_text("before")
    assert run("export", "out", "--prefix", "b").status == 0
    assert target.read_bytes() == b'{"key": "b", "value": "2"}\n'
    monkeypatch.setattr("bytekv.transfer.json_lines.encode_lines", lambda *_: 1 / 0)
    assert run("export", "out").status == 70
    assert target.read_bytes() == b'{"key": "b", "value": "2"}\n'
    assert sorted(os.listdir(path.parent)) == ["out", "store"]


def test_what_a_killed_export_left_is_not_in_the_way(run, path, monkeypatch):
    """In a container the next process has the same number: the file of the one that was killed was there for ever."""
    as_it_is(path)
    monkeypatch.chdir(path.parent)

    def be_killed(source: str, target: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", be_killed)
        patch.setattr(os, "unlink", lambda file: None)
        assert run("export", "out").status == 130
    assert len(list(path.parent.glob("out.*.part"))) == 1
    assert run("export", "out").status == 0


def mode(file: Path) -> int:
    return file.stat().st_mode & 0o777


def test_an_export_is_as_private_as_the_store(run, path):
    """An export over a file of mode 0600 left one of mode 0644: what the store kept to its owner was everybody's."""
    as_it_is(path)
    file, before = path.parent / "dump", os.umask(0o022)
    try:
        assert run("export", str(file)).status == 0
        assert mode(file) == 0o600
        for wanted in (0o644, 0o400, 0o640):
            file.chmod(wanted)
            assert run("export", str(file)).status == 0
            assert mode(file) == wanted
    finally:
        os.umask(before)


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give a file away")
def test_an_export_leaves_a_file_to_its_owner(run, path, monkeypatch):
    as_it_is(path)
    file = path.parent / "dump"
    file.write_text("of before")
    os.chown(file, 12345, 12346)
    file.chmod(0o660)
    assert run("export", str(file)).status == 0
    assert (file.stat().st_uid, file.stat().st_gid, mode(file)) == (12345, 12346, 0o660)
    exported, chown = file.read_bytes(), os.fchown

    def of_others(descriptor: int, user: int, group: int, refused: str) -> None:
        if (user if refused == "user" else group) != -1:
            raise PermissionError(1, "Operation not permitted")
        chown(descriptor, user, group)

    monkeypatch.setattr(os, "fchown", partial(of_others, refused="group"))
    assert run("export", str(file)).status == 0
    assert (file.stat().st_uid, mode(file)) == (12345, 0o600), "what a group might, another one may not"
    file.write_bytes(exported)
    monkeypatch.setattr(os, "fchown", partial(of_others, refused="user"))
    found = run("export", str(file))
    assert found.status == 2
    assert "belongs to another user" in found.err
    assert file.read_bytes() == exported
    assert not list(path.parent.glob("*.part"))


def test_export_through_a_link_leaves_the_link(run, path):
    as_it_is(path)
    (path.parent / "link").symlink_to("file")
    (path.parent / "file").write_text("before")
    assert run("export", str(path.parent / "link")).status == 0
    assert (path.parent / "link").is_symlink()
    assert (path.parent / "file").read_bytes().count(b"\n") == 2


def test_export_to_what_is_no_file(run, path):
    as_it_is(path)
    fifo = path.parent / "fifo"
    os.mkfifo(fifo)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(fifo.read_bytes()))
    reader.start()
    assert run("export", str(fifo)).status == 0
    reader.join()
    assert got[0].count(b"\n") == 2
    assert run("export", "/dev/full") == (3, b"", "bytekv: output: No space left on device\n")


def test_export_through_a_pipe_into_import(run, path):
    as_it_is(path)
    other = path.parent / "other"
    assert run("-d", str(other), "import", "-", stdin=run("export").out).err == "bytekv: 2 entries imported\n"
    assert content(other) == content(path)


def test_what_was_imported_before_an_error_is_told(run, path, monkeypatch):
    monkeypatch.setattr("bytekv.transfer.json_lines.BATCH_ENTRIES", 2)
    lines = b"".join(b'{"key": "%d", "value": ""}\n' % number for number in range(5)) + b"!\n"
    found = run("import", stdin=lines)
    assert found.status == 2
    assert found.err.startswith("bytekv: line 6: not JSON")
    assert found.err.endswith("4 entries before it were imported\n")
    assert len(content(path)) == 4


def test_import_from_another_library(run, path):
    import dbm.dumb

    with dbm.dumb.open(str(path.parent / "old"), "c") as db:
        db[b"k\xff"] = b"v"
    assert run("import", "--from", "dbm", str(path.parent / "old")).err == "bytekv: 1 entry imported\n"
    assert content(path) == {b"k\xff": b"v"}
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(path.parent / "table.db")) as connection:
        connection.execute("CREATE TABLE t (a, b, c)")
        connection.execute("INSERT INTO t VALUES (1, 2, 3)")
        connection.commit()
    line = ("import", "--from", "sqlite", "--table", "t", "--columns", "c,a", str(path.parent / "table.db"))
    assert run(*line).status == 0
    assert content(path) == {b"k\xff": b"v", b"3": b"1"}


def test_entries_that_would_become_one_key_are_refused_by_name(run, path):
    """diskcache keeps 7 and "7" apart; both were written to the key 7, and both counted."""
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(path.parent / "table.db")) as connection:
        connection.execute("CREATE TABLE t (k, v)")
        connection.executemany("INSERT INTO t VALUES (?, ?)", [(7, "number"), ("7", "text"), (8, "x")])
        connection.commit()
    line = ("import", "--from", "sqlite", str(path.parent / "table.db"))
    found = run(*line)
    assert found.status == 2
    assert "table.db: entry 2: an entry before it has the same key b'7'; text, numbers and bytes" in found.err
    assert run(*line, "--duplicates", "first").err == "bytekv: 2 entries imported\n"
    assert content(path) == {b"7": b"number", b"8": b"x"}
    assert run(*line, "--duplicates", "last").err == "bytekv: 2 entries imported\n"
    assert content(path) == {b"7": b"text", b"8": b"x"}


def test_import_tells_what_had_expired(run, path):
    lines = b'{"key": "a", "value": "", "expires": 1.0}\n{"key": "b", "value": ""}\n'
    assert run("import", stdin=lines).err == "bytekv: 1 entry imported, 1 had expired\n"
    assert content(path) == {b"b": b""}


def test_sources_are_those_that_can_be_read():
    from bytekv.transfer.foreign import SOURCES

    (choices,) = [action.choices for action in actions("import") if action.dest == "source"]
    assert tuple(choices) == SOURCES


# --- inspect -----------------------------------------------------------------------------------


def test_inspect(run, path):
    with open_store(path) as db:
        db["a"] = "1"
        db.put(b"\x1b\xff" + b"k" * 100, "22", expires=5e9)
        with db.batch() as batch:
            batch["c"] = "3"
            batch.delete("a")
        db.clear()
    file = path / "0000000001.seg"
    found = run("inspect", str(file))
    assert found == run("inspect", "1") == run("inspect", "0000000001")
    lines = found.out.decode().splitlines()
    assert lines[0] == f"{file}: {file.stat().st_size} bytes, format version 1, log"
    assert lines[4].split() == ["offset", "size", "seq", "what"]
    assert [line.split(maxsplit=3)[-1] for line in lines[5:]] == [
        "put b'a', 1 bytes",
        f"put b'\\x1b\\xff{'k' * 58}'…, 2 bytes, expires at 5000000000.000",
        "put b'c', 1 bytes, more of the batch follows",
        "delete b'a'",
        "clear",
    ]
    header, *rest = map(json.loads, run("inspect", "--json", "1").out.splitlines())
    assert (header["kind"], header["segment_kind"], header["segment_id"], header["wrong"]) == ("header", "log", 1, None)
    assert [each["kind"] for each in rest] == ["put", "put", "put", "delete", "clear"]
    assert rest[1]["key_b64"].startswith("G/9r")
    assert rest[2]["continues"] is True


def test_inspect_tells_damage_from_a_tail(run, path):
    db = open_store(path, io="mmap")
    db.update({"a": "1", "b": "2"})
    crash(db)
    found = run("inspect", "1")
    assert found.status == 0
    assert b"zeros\n" in found.out
    file = path / "0000000001.seg"
    raw = bytearray(file.read_bytes())
    raw[85] ^= 1
    file.write_bytes(raw)
    found = run("inspect", "1")
    assert found.status == 3
    assert b"damage: " in found.out
    file.write_bytes(b"no segment")
    found = run("inspect", "1")
    assert (found.status, found.err) == (3, "")
    assert b"the header is damaged: not a bytekv segment header" in found.out


# --- messages ----------------------------------------------------------------------------------


def test_verbose(run, path):
    as_it_is(path)
    assert run("get", "a").err == ""
    assert run("-v", "get", "a").err.startswith(f"bytekv: opened {path}: 2 keys in 1 segment")
    with open_store(path) as db:
        db["a"] = "x" * 3000
        db["a"] = "y"
    told = run("compact", "-vv").err
    assert "bytekv: sealed segment 1 at" in told
    assert re.search(r"bytekv: compacting segments \[1\]: 30\d\d of their 3\d\d\d bytes are dead\n", told)
    assert re.search(r"bytekv: compacted segments \[1\]: 3\d\d\d bytes became 138\n", told)
    assert "bytekv: compacting" not in run("compact", "-v").err


@pytest.fixture
def terminal() -> Callable[..., tuple[int, str, str]]:
    """Run a program with a terminal for standard error, and for standard output if asked."""

    def on_terminal(*argv: str, path: Path, out: bool = False, without: str = "") -> tuple[int, str, str]:
        master, slave = pty.openpty()
        hide = f"import sys; sys.modules[{without!r}] = None; " if without else ""
        program = f"{hide}from bytekv.cli.main import main; import sys; sys.exit(main({list(argv)!r}))"
        got: list[bytes] = []

        def collect() -> None:
            while True:
                try:
                    piece = os.read(master, 4096)
                except OSError:
                    return
                if not piece:
                    return
                got.append(piece)

        reader = threading.Thread(target=collect)
        reader.start()
        done = subprocess.run(
            [sys.executable, "-c", program],
            stdin=subprocess.DEVNULL,
            stdout=slave if out else subprocess.PIPE,
            stderr=slave,
            env={**environment(path), "TERM": "xterm", "COLUMNS": "100"},
            timeout=60,
        )
        os.close(slave)
        reader.join()
        os.close(master)
        return done.returncode, (done.stdout or b"").decode(), b"".join(got).decode()

    return on_terminal


def has_rich() -> bool:
    try:
        import rich  # noqa: F401
    except ImportError:
        return False
    return True


@pytest.mark.parametrize("without", ["rich", ""])
def test_progress_on_a_terminal(terminal, path, without):
    with open_store(path, segment_size_bytes=4096) as db:
        for number in range(100):
            db[str(number)] = "x" * 300
    status, out, err = terminal("verify", path=path, without=without)
    assert status == 0
    assert out.endswith(": ok\n")
    assert "verifying" in err
    assert "100" in err
    if without or not has_rich():
        assert "\rverifying 100 %" in err
        assert err.endswith("\r")


@pytest.mark.parametrize("without", ["rich", ""])
def test_tables_on_a_terminal(terminal, path, without):
    as_it_is(path)
    status, _, out = terminal("stats", path=path, without=without, out=True)
    assert status == 0
    assert "segment_id" in out
    assert "138" in out


def test_a_value_on_a_terminal_leaves_the_prompt_a_line_of_its_own(terminal, path):
    as_it_is(path)
    assert terminal("get", "a", path=path, out=True) == (0, "", "1\r\n")
    assert terminal("get", "a", path=path) == (0, "1", "")


NASTY = "a\x1b]0;pwned\x07\x9b2J\u202eb\nnot-a-key\tfake\r\x7fé"


def test_what_is_stored_does_nothing_to_a_terminal(terminal, path):
    """A value of a stranger's could set the title, clear the screen, or pretend to be another line."""
    with open_store(path) as db:
        db["k\x1b[2J"] = NASTY
    dangerous = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")
    for line in (
        "scan",
        "scan --keys-only",
        "scan --json",
        "get k\x1b[2J",
        "get --json k\x1b[2J",
        "export",
        "get -v none\x1b",
    ):
        status, _, shown = terminal(*line.split(" "), path=path, out=True)
        assert status == (1 if "none" in line else 0)
        assert not dangerous.search(shown.replace("\r\n", "\n")), line
        if line == "scan":
            assert shown == ("k\\x1b[2J\ta\\x1b]0;pwned\\x07\\x9b2J\\u202eb\\nnot-a-key\\tfake\\r\\x7fé\r\n"), (
                "one line, and what can be shown is"
            )
        if "json" in line or line == "export":
            fields = json.loads(shown)
            assert fields["key"] == "k\x1b[2J"
            assert fields.get("value", NASTY) == NASTY
    assert terminal("get", "k\x1b[2J", path=path) == (0, NASTY, ""), "a pipe gets the bytes"
    with open_store(path) as db:
        db["k\x1b[2J"] = b"\xff\x1b"
    assert terminal("get", "k\x1b[2J", path=path, out=True) == (0, "", "\\xff\\x1b\r\n")


# --- as a program ------------------------------------------------------------------------------


def test_the_program(path):
    assert process("set", b"\xff", "-", path=path, input=b"\x00\r\n\xff", stdin=None).returncode == 0
    found = process("get", b"\xff", path=path)
    assert (found.returncode, found.stdout, found.stderr) == (0, b"\x00\r\n\xff", b"")
    assert process("get", "x", path=path).returncode == 1
    assert process("get", path=path).returncode == 2
    assert process("-d", "", "get", "x", path=path).returncode == 2


def test_output_that_nobody_reads(path):
    with open_store(path) as db:
        db.update({f"{number:05}": "x" * 100 for number in range(3000)})
    for command in ("scan", "export", "inspect 1", "scan --json"):
        reader, writer = os.pipe()
        os.close(reader)
        found = process(*command.split(), path=path, stdout=writer, stderr=subprocess.PIPE, capture_output=False)
        os.close(writer)
        assert (found.returncode, found.stderr) == (141, b""), command


def test_a_small_output_that_nobody_reads(path):
    as_it_is(path)
    reader, writer = os.pipe()
    os.close(reader)
    found = process("get", "a", path=path, stdout=writer, stderr=subprocess.PIPE, capture_output=False)
    os.close(writer)
    assert (found.returncode, found.stderr) == (141, b"")


def test_output_that_does_not_fit(path):
    as_it_is(path)
    for command in ("get a", "scan", "stats", "export"):
        with open("/dev/full", "wb") as full:
            found = process(*command.split(), path=path, stdout=full, stderr=subprocess.PIPE, capture_output=False)
        assert (found.returncode, found.stderr) == (3, b"bytekv: output: No space left on device\n"), command


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_closed_streams(path, closed):
    as_it_is(path)
    command = (
        f"import os, sys; os.close({closed}); run = sys.executable; os.execv(run, [run, '-m', 'bytekv', *sys.argv[1:]])"
    )
    for arguments, status in ((["get", "a"], 3 if closed else 0), (["set", "a", "-"], 3 if closed else 2)):
        found = subprocess.run(
            [sys.executable, "-c", command, *arguments], env=environment(path), capture_output=True, timeout=60
        )
        assert found.returncode == status
        assert b"Traceback" not in found.stderr
    assert content(path) == {b"a": b"1", b"b": b"2"}


def test_an_interrupt(path):
    """Ctrl-C while import waits for more: 130, one line, what was imported stays."""
    child = subprocess.Popen(
        [sys.executable, "-m", "bytekv", "import"],
        env=environment(path),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    line = b'{"key": "%d", "value": "v"}\n'
    child.stdin.write(b"".join(line % number for number in range(1000)))
    child.stdin.flush()
    with open_store_when_there(path) as reader:
        while len(reader) < 1000:
            reader.refresh()
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out, err) == (130, b"", b"bytekv: interrupted\n")
    assert len(content(path)) == 1000


def open_store_when_there(path: Path) -> bytekv.Store:
    while True:
        try:
            return open_store(path, "r")
        except (bytekv.StoreNotFoundError, bytekv.NotAStoreError):
            continue


def test_a_one_shot_command_brings_little(path):
    """Time depends on the machine, modules do not: see tests/project/test_imports.py."""
    for arguments in (["set", "a", "1"], ["get", "a"], ["delete", "a"]):
        script = f"import sys; from bytekv.cli.main import main; main({arguments!r}); print('\\n', *sys.modules)"
        found = subprocess.run([sys.executable, "-c", script], env=environment(path), capture_output=True, timeout=60)
        loaded = set(found.stdout.decode().splitlines()[-1].split())
        assert "argparse" in loaded
        heavy = {
            "asyncio",
            "dataclasses",
            "inspect",
            "json",
            "logging",
            "shutil",
            "sortedcontainers",
            "sqlite3",
            "typing",
        }
        assert not loaded & (
            heavy
            | {
                "crc32c",
                "tempfile",
                "traceback",
                "bytekv.engine.integrity.repair",
                "bytekv.engine.integrity.verify",
                "bytekv.transfer.json_lines",
                "rich",
            }
        )


# --- the page ----------------------------------------------------------------------------------


def actions(name: str) -> list[argparse.Action]:
    """Return the arguments of a command, those that every command has left out."""
    command = next(command for command in cli.CLI_COMMANDS if command.name == name)
    part = argparse.ArgumentParser(add_help=False)
    command.parse(part)
    return part._actions


def page() -> str:
    """Write the part of docs/reference/cli.md that the parser knows."""
    lines: list[str] = []
    for command in cli.CLI_COMMANDS:
        aliases = "".join(f", `{alias}`" for alias in command.aliases)
        lines += [f"### `{command.name}`{aliases}", "", command.help[0].upper() + command.help[1:] + ".", ""]
        rows = []
        for action in actions(command.name):
            name = ", ".join(action.option_strings) or str(action.metavar)
            takes = ""
            if action.option_strings and action.nargs != 0:
                takes = " " + (action.metavar or "|".join(action.choices)).replace("|", "\\|")
            optional = " (optional)" if action.nargs == "?" else ""
            rows.append(f"| `{name}{takes}`{optional} | {action.help or ''} |")
        if rows:
            lines += ["| argument | |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def test_the_page_says_what_the_parser_knows():
    """Write it anew with ``python -m tests.faces.cli.test_cli``."""
    text = (ROOT / "docs/reference/cli.md").read_text(encoding="utf-8")
    _, start, rest = text.partition("<!-- commands -->\n\n")
    documented, end, _ = rest.partition("<!-- end of commands -->")
    assert start
    assert end
    assert documented == page()


def test_the_page_says_the_exit_statuses():
    text = (ROOT / "docs/reference/cli.md").read_text(encoding="utf-8")
    documented = [int(status) for status in re.findall(r"^\| (\d+) \| ", text, re.MULTILINE)]
    assert documented == [cli.DONE, cli.NO_SUCH_KEY, cli.WRONG_USE, cli.FAILED, 70, cli.INTERRUPTED, cli.UNREAD]


def test_part_of_the_parser_is_as_good_as_the_whole():
    for name in ("set", "put", "get", "delete", "rm", "scan", "export", "import", "inspect", "backup", "verify"):
        (part,) = [action.choices[name] for action in cli.parser([name])._actions if action.dest == "==SUPPRESS=="]
        (whole,) = [action.choices[name] for action in cli.parser()._actions if action.dest == "==SUPPRESS=="]
        assert part.format_help() == whole.format_help()


if __name__ == "__main__":
    target = ROOT / "docs/reference/cli.md"
    before, _, rest = target.read_text(encoding="utf-8").partition("<!-- commands -->\n\n")
    _, _, after = rest.partition("<!-- end of commands -->")
    target.write_text(f"{before}<!-- commands -->\n\n{page()}<!-- end of commands -->{after}", encoding="utf-8")
