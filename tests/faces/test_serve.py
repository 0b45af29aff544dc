"""Several doors on one store: how a process that serves begins, and that it ends without losing anything."""

from __future__ import annotations

import asyncio
import importlib
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import bytekv
from bytekv.cli import serve as serve_module
from bytekv.server.lifecycle import StartError, address_of, serve_all
from tests.faces.cli.test_cli import command, environment
from tests.support.harness import open_store

needs_http = pytest.mark.skipif(not importlib.util.find_spec("uvicorn"), reason="uvicorn is not installed")

# --- addresses ---------------------------------------------------------------------------------

ADDRESSES = {
    "127.0.0.1:6380": ("127.0.0.1", 6380),
    "localhost": ("localhost", 6379),
    "": ("127.0.0.1", 6379),
    ":0": ("127.0.0.1", 0),
    ":65535": ("127.0.0.1", 65535),
    "[::1]:1": ("::1", 1),
    "[::]": ("::", 6379),
    "0.0.0.0": ("0.0.0.0", 6379),
}


@pytest.mark.parametrize(("text", "address"), ADDRESSES.items())
def test_addresses(text, address):
    assert address_of(text, 6379) == address


NO_ADDRESSES = [
    "host:",
    "host:x",
    ":65536",
    "host:-1",
    "host:+1",
    "host:1_0",
    "host:１",
    "host:" + "9" * 5000,
    "::1",
    "::1:6379",
]


@pytest.mark.parametrize("text", NO_ADDRESSES)
def test_what_is_no_address(text):
    with pytest.raises(ValueError, match=r"HOST:PORT|brackets"):
        address_of(text, 6379)


# --- doors -------------------------------------------------------------------------------------


class FakeDoor:
    """A door that notes what happens to it; what a real one does is tested with it."""

    def __init__(self, store: bytekv.Store, log: list[str], name: str, *, then: Callable[[], object] = lambda: None):
        self.store, self.log, self.name, self.then = store, log, name, then

    async def __call__(self, started: Callable[[str], object]) -> None:
        started(f"{self.name}://")
        try:
            self.then()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            self.store[self.name] = "finished what was acknowledged"
            self.log.append(self.name)


def serve(store: bytekv.Store, *doors: Callable[..., object]) -> list[str]:
    """Serve at fake doors until they say stop; return the addresses that were open."""
    open_at: list[str] = []
    asyncio.run(serve_all(store, doors, open_at.extend))
    return open_at


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_doors_and_then_the_store(path, number):
    store, log = open_store(path, sync="os"), []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    second = FakeDoor(store, log, "two", then=lambda: os.kill(os.getpid(), number))
    assert serve(store, FakeDoor(store, log, "one"), second) == ["one://", "two://"]
    assert log == ["one", "two"]
    assert store.closed
    assert {number: signal.getsignal(number) for number in before} == before
    with open_store(path, "r") as db:
        assert db.recovery.clean
        assert set(db) == {b"one", b"two"}


def test_a_door_that_ends_ends_the_others(path):
    async def ends(started: Callable[[str], object]) -> None:
        started("ends://")

    store, log = open_store(path), []
    serve(store, FakeDoor(store, log, "one"), ends)
    assert log == ["one"]
    assert store.closed


def test_a_second_signal_ends_it_at_once(path):
    program = f"""
import asyncio, os, signal
import bytekv
from bytekv.server.lifecycle import serve_all

store = bytekv.open({str(path)!r})

async def stuck(started):
    started("stuck://")
    store["acknowledged"] = "1"
    os.kill(os.getpid(), signal.SIGTERM)
    try:
        await asyncio.Event().wait()
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        while True:
            await asyncio.sleep(0)

asyncio.run(serve_all(store, [stuck], print))
"""
    found = subprocess.run([sys.executable, "-c", program], env=environment(path), capture_output=True, timeout=60)
    assert found.returncode == -signal.SIGTERM
    with open_store(path, "r") as db:
        assert dict(db) == {b"acknowledged": b"1"}


@pytest.mark.parametrize("error", [OSError(98, "Address already in use"), ValueError("set a password")])
def test_a_door_that_cannot_be_opened(path, error):
    async def fails(started: Callable[[str], object]) -> None:
        raise error

    store, log = open_store(path), []
    never = FakeDoor(store, log, "never")
    with pytest.raises(StartError, match=r"Address already in use|set a password"):
        serve(store, FakeDoor(store, log, "one"), fails, never)
    assert log == ["one"]
    assert store.closed


def test_a_door_that_fails_later(path):
    async def fails(started: Callable[[str], object]) -> None:
        started("fails://")
        await asyncio.sleep(0)
        raise OSError("lost its network")

    store, log = open_store(path), []
    with pytest.raises(OSError, match="lost its network"):
        serve(store, FakeDoor(store, log, "one"), fails)
    assert log == ["one"]
    assert store.closed


def test_the_service_manager_is_told(path, monkeypatch):
    path.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path / "notify"))
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path / "notify"))
        store, told = open_store(path / "store"), []
        told_when_stopped = lambda: (told.append(manager.recv(100)), os.kill(os.getpid(), signal.SIGTERM))  # noqa: E731

        async def door(started: Callable[[str], object]) -> None:
            started("door://")
            asyncio.get_running_loop().call_soon(lambda: asyncio.get_running_loop().call_soon(told_when_stopped))
            await asyncio.Event().wait()

        serve(store, door)
        told.append(manager.recv(100))
    assert told == [b"READY=1", b"STOPPING=1"]


def test_a_service_manager_that_is_not_there_is_no_reason_to_stop(path, monkeypatch, caplog):
    monkeypatch.setenv("NOTIFY_SOCKET", str(path / "nothing"))
    store = open_store(path)
    serve(store, FakeDoor(store, [], "one", then=lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert "cannot be told READY=1" in caplog.text


# --- the command -------------------------------------------------------------------------------


@pytest.fixture
def served(path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], list[str]]]]:
    """Start `bytekv serve` and wait until its doors are open; return the process and the addresses."""
    children: list[subprocess.Popen[str]] = []

    def start(*arguments: str, directory: str | None = None) -> tuple[subprocess.Popen[str], list[str]]:
        at = path if directory is None else path.with_name(directory)
        child = subprocess.Popen(
            [sys.executable, "-m", "bytekv", "-d", str(at), "serve", *arguments],
            env=environment(path),
            stderr=subprocess.PIPE,
            text=True,
        )
        children.append(child)
        line = child.stderr.readline()
        found = re.fullmatch(rf"bytekv: serving {at} at (.*)\n", line)
        assert found, line + child.stderr.read()
        return child, found[1].split(" and ")

    yield start
    for child in children:
        child.kill()
        child.communicate()


def ask(url: str, *lines: str) -> bytes:
    """Send inline commands to a door for Redis clients, and read until the replies are complete."""
    host, _, port = url.removeprefix("redis://").rstrip("/").rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=30) as client:
        client.sendall("".join(f"{line}\r\n" for line in [*lines, "QUIT"]).encode())
        return b"".join(iter(lambda: client.recv(65536), b""))


def put(url: str, key: str, value: bytes, token: str | None = None) -> int:
    request = urllib.request.Request(f"{url}/v1/kv/{key}", value, method="PUT")
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=30) as reply:
        return reply.status


@needs_http
def test_two_doors_on_one_store(served, path):
    child, (resp, http) = served("--resp", ":0", "--http", "127.0.0.1:0")
    assert (resp.partition(":")[0], http.partition(":")[0]) == ("redis", "http")
    assert put(http, "a", b"over HTTP") == 201
    assert ask(resp, "GET a", "SET b 2") == b"$9\r\nover HTTP\r\n+OK\r\n+OK\r\n"
    with urllib.request.urlopen(f"{http}/b", timeout=30) as reply:
        assert reply.read() == b"2"
    assert command(path, "get", "b").out == b"2"  # and a reader beside them
    child.send_signal(signal.SIGTERM)
    assert child.wait(60) == 0
    with open_store(path, "r") as db:
        assert db.recovery.clean
        assert dict(db) == {b"a": b"over HTTP", b"b": b"2"}


@needs_http
def test_two_processes_serve_one_store_and_a_program_writes_to_it(served, path):
    (one, (resp, http)), (two, (resp_2, http_2)) = [
        served("--shared", "--resp", ":0", "--http", "127.0.0.1:0") for _ in range(2)
    ]
    with bytekv.open(path, shared=True) as db:
        assert put(http, "a", b"over HTTP") == 201
        assert ask(resp_2, "GET a", "INCR n") == b"$9\r\nover HTTP\r\n:1\r\n+OK\r\n"
        assert ask(resp, "INCR n", "SET b 2") == b":2\r\n+OK\r\n+OK\r\n"
        assert db.incr("n") == 3
        for url in (http, http_2):
            with urllib.request.urlopen(f"{url}/v1/kv/n", timeout=30) as reply:
                assert reply.read() == b"3"
        assert command(path, "set", "b", "3") == (0, b"", "")
        assert ask(resp, "GET b") == ask(resp_2, "GET b") == b"$1\r\n3\r\n+OK\r\n"
    two.kill()
    two.wait()
    assert ask(resp, "INCR n") == b":4\r\n+OK\r\n"
    one.send_signal(signal.SIGTERM)
    assert one.wait(60) == 0
    with open_store(path, "r") as db:
        assert db.recovery.clean
        assert dict(db) == {b"a": b"over HTTP", b"b": b"3", b"n": b"4"}


@pytest.mark.parametrize("sync", ["interval", "always", "os"])
def test_what_was_acknowledged_survives_a_kill(served, path, sync):
    child, (resp,) = served("--resp", ":0", "--sync", sync)
    assert ask(resp, *(f"SET {number} x" for number in range(50))).count(b"+OK") == 51
    child.kill()
    child.wait()
    with open_store(path, "r") as db:
        assert len(db) == 50


def test_shutdown_ends_it(served, path):
    child, (resp,) = served("--resp", ":0")
    ask(resp, "SET a 1", "SHUTDOWN")
    assert child.wait(60) == 0
    with open_store(path, "r") as db:
        assert db.recovery.clean


@needs_http
def test_secrets_from_files(served, path):
    (path.parent / "password").write_text("s3cret\nnot this\n")
    (path.parent / "tokens").write_text("# who may what\nmay-read read\n\nmay-do-all\n")
    files = "--password-file", str(path.parent / "password"), "--token-file", str(path.parent / "tokens")
    _, (resp, http) = served("--resp", ":0", "--http", ":0", *files)
    assert ask(resp, "GET a").startswith(b"-NOAUTH")
    assert ask(resp, "AUTH s3cret", "GET a") == b"+OK\r\n$-1\r\n+OK\r\n"
    assert put(http, "a", b"1", "may-do-all") == 201
    for token, status in (("may-read", 403), ("nobody", 401)):
        with pytest.raises(urllib.error.HTTPError) as refused:
            put(http, "a", b"1", token)
        assert refused.value.code == status
        refused.value.close()


def refused(url: str, token: str | None) -> int:
    with pytest.raises(urllib.error.HTTPError) as error:
        put(url, "a", b"1", token)
    error.value.close()
    return error.value.code


@needs_http
@pytest.mark.parametrize("option", ["password", "password-file", "token"])
def test_one_secret_guards_both_doors(served, path, option):
    """A password beside HTTP without a token left everything open to every user of the machine."""
    (path.parent / "secret").write_bytes("\ufeffs3cret\r\n".encode())  # as some editors write it
    secret = str(path.parent / "secret") if option.endswith("file") else "s3cret"
    _, (resp, http) = served("--resp", ":0", "--http", ":0", f"--{option}={secret}")
    assert ask(resp, "GET a").startswith(b"-NOAUTH")
    assert ask(resp, "AUTH s3cret", "GET a") == b"+OK\r\n$-1\r\n+OK\r\n"
    assert (refused(http, None), refused(http, "other")) == (401, 401)
    assert put(http, "a", b"1", "s3cret") == 201


@needs_http
def test_a_door_is_left_open_only_if_that_is_said(served, path):
    (path.parent / "tokens").write_text("t read\n")
    _, (resp, http) = served("--resp", ":0", "--http", ":0", f"--token-file={path.parent / 'tokens'}", "--no-password")
    assert ask(resp, "GET a") == b"$-1\r\n+OK\r\n"
    assert refused(http, None) == 401
    _, (resp, http) = served("--resp", ":0", "--http", ":0", "--password=s3cret", "--no-token", directory="other")
    assert ask(resp, "GET a").startswith(b"-NOAUTH")
    assert put(http, "a", b"1") == 201


def test_only_a_line_break_ends_a_password(path):
    """Python's splitlines takes other characters for line breaks, too, and what follows them was cut off."""
    path.mkdir()
    (path / "password").write_bytes("one\x0btwo\x85\u2028three\r\nnot this".encode())
    assert serve_module._first_line(str(path / "password"))[1] == "one\x0btwo\x85\u2028three".encode()


# --- SIGTERM -----------------------------------------------------------------------------------

_OPENING = """
import signal, sys
from bytekv.cli import commands, main

def opens(*_, **__):
    print("opening", flush=True)
    {then}

commands.open_store = opens
sys.exit(main.main(["-d", sys.argv[1], "serve", "--resp", ":0"]))
"""


@pytest.mark.parametrize(
    "then",
    [
        "while True: signal.pause()",
        # An exception that is raised while Python runs a finaliser gets lost.
        "class Lost:\n        def __del__(self): signal.raise_signal(15)\n    Lost(); return open(0)",
    ],
)
def test_sigterm_while_the_store_is_being_opened_ends_it(path, then):
    """As the first process of a container it ignored the signal until the store was open: docker stop killed it."""
    program = [sys.executable, "-c", _OPENING.replace("{then}", then), str(path)]
    with subprocess.Popen(program, env=environment(path), stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"opening\n"
        if "pause" in then:  # the other one sends it itself
            child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 0


def test_a_second_signal_ends_the_first_process_of_a_container(path):
    """To which a signal without a handler does nothing."""
    program = """
import asyncio, os, signal, sys
import bytekv, bytekv.server.lifecycle

bytekv.server.lifecycle._is_first_process = lambda: True
store = bytekv.open(sys.argv[1])

async def stuck(started):
    started("stuck://")
    os.kill(os.getpid(), signal.SIGTERM)
    try:
        await asyncio.Event().wait()
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        while True:
            await asyncio.sleep(0)

asyncio.run(bytekv.server.lifecycle.serve_all(store, [stuck], print))
"""
    found = subprocess.run([sys.executable, "-c", program, path], env=environment(path), timeout=60, check=False)
    assert found.returncode == 128 + signal.SIGTERM


STATUSES = {
    "serve": (2, "say where to serve"),
    "serve --resp": (2, "expected one argument"),
    "serve --resp host:x": (2, "'host:x' is not HOST:PORT"),
    "serve --http ::1": (2, "put an IPv6 address in brackets"),
    "serve --resp 0.0.0.0:0": (2, "cannot serve at 0.0.0.0:0: .*password"),
    "serve --resp 127.0.0.1:{taken}": (2, r"cannot serve at 127\.0\.0\.1:\d+: .*address already in use"),
    "serve --resp :0 --password-file nothing": (2, "nothing: No such file"),
    "serve --resp :0 --password-file empty": (2, "empty: the first line is empty"),
    "serve --resp= --password-file=f": (2, "--resp is empty; is a variable not set"),
    "serve --resp :0 --password-file=": (2, "--password-file is empty; is a variable not set"),
    "serve --resp :0 --password=": (2, "--password is empty"),
    "serve --http :0 --token-file=": (2, "--token-file is empty"),
    "serve --http :0 --token=": (2, "--token is empty"),
    "serve --resp :0 --backup-dir=": (2, "--backup-dir is empty"),
    "serve --resp :0 --backup-dir=not/there": (2, "--backup-dir not/there: no such directory; create it first"),
    "serve --http :0 --allowed-host=": (2, "--allowed-host is empty"),
    "serve --resp :0 --password-file .": (2, r"\.: .*is a directory"),
    "serve --resp 127.0.0.1:{taken} --password-file long": (2, "long: more than 1,048,576 bytes"),
    "serve --http 127.0.0.1:{taken} --token-file long": (2, "long: more than 1,048,576 bytes"),
    "serve --resp :0 --password-file longer-than-said": (2, "longer-than-said, line 1: a password of 16385 bytes"),
    "serve --http :0 --token-file no-token": (2, "no-token, line 3: a token consists of"),
    "serve --http :0 --token-file no-scope": (2, "no-scope, line 2: unknown scope 'reed'"),
    "serve --http :0 --token-file cut": (2, "cut, line 1: a token consists of"),
    "serve --resp :0 --http :0 --token-file twice-once": (2, "everybody who can connect to :0 .* as a Redis client"),
    "serve --resp :0 --token-file twice-once": (2, "everybody who can connect to :0 .* as a Redis client"),
    "serve --resp :0 --http :0 --password-file two-words": (2, "everybody who can connect to :0 .* over HTTP"),
    "serve --http :0 --password-file two-words": (2, "everybody who can connect to :0 .* over HTTP"),
    "serve --resp :0 --password-file binary": (2, "binary: not UTF-8"),
    "serve --resp :0 --password": (2, "expected one argument"),
    "serve --resp :0 --password a --password-file b": (2, "not allowed with"),
    "serve --resp :0 --sync never": (2, "invalid choice: 'never'"),
    "serve --http :0 --token-file empty": (2, "empty: has no token"),
    "serve --http :0 --token-file twice": (2, "twice: the token of line 2 is there twice"),
    "-d empty serve --resp :0": (3, "a file, not a directory"),
}


@pytest.mark.parametrize("line", STATUSES)
def test_exit_statuses(path, monkeypatch, line):
    status, message = STATUSES[line]
    monkeypatch.chdir(path.parent)
    Path("empty").touch()
    Path("binary").write_bytes(b"\xff\n")
    Path("twice").write_text("a read\na write\n")
    Path("long").write_text("s3cret\n" + "x" * (1 << 20))
    Path("longer-than-said").write_text("x" * 16385)
    Path("no-token").write_text("a read\n\nb\u00e9 read\n")
    Path("no-scope").write_text("a read\nb read reed\n")
    Path("cut").write_text("t" * 8193)
    Path("twice-once").write_text("a read\n")
    Path("two-words").write_text("two words\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        found = command(path, *line.format(taken=taken.getsockname()[1]).split())
    assert found.status == status
    assert re.fullmatch(f"bytekv: .*{message}.*\n", found.err, re.IGNORECASE), found.err
    if "cannot serve at" not in found.err:
        assert not path.exists(), "no store is made for what cannot be served"


def test_a_locked_store_is_not_served(path):
    refused = f"bytekv: {path}: locked by this process, which writes to it"
    with open_store(path):
        assert command(path, "serve", "--resp", ":0") == (3, b"", f"{refused}\n")
        assert command(path, "serve", "--resp", ":0", "--shared") == (3, b"", f"{refused} and does not share it\n")
    with bytekv.open(path, shared=True):
        found = command(path, "serve", "--resp", ":0")
        assert found == (3, b"", f"{refused} and shares it; do so with --shared\n")
