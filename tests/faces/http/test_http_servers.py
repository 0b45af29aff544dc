"""Real servers: keys that are bytes, bodies that end early, the door that bytekv opens itself, mounted applications."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bytekv.http import Application, running, serve
from bytekv.http import server as server_module
from bytekv.server.sockets import Pace, listen
from tests.faces.http.test_http_values import KEYS, quoted

ROOT = Path(__file__).resolve().parents[3]
TIMEOUT_S = 30

APPLICATION = """
import os
import bytekv, bytekv.http
db = bytekv.open(os.environ["BYTEKV_TEST_STORE"])
application = bytekv.http.app(db)
"""

SERVERS = {
    "uvicorn": ("uvicorn", ["-m", "uvicorn", "kv:application", "--http", "h11", "--port"]),
    "uvicorn, httptools": ("httptools", ["-m", "uvicorn", "kv:application", "--http", "httptools", "--port"]),
    "hypercorn": ("hypercorn", ["-m", "hypercorn", "kv:application", "--bind"]),
    "granian": ("granian", ["-m", "granian", "--interface", "asgi", "--workers", "1", "kv:application", "--port"]),
}

needs_uvicorn = pytest.mark.skipif(importlib.util.find_spec("uvicorn") is None, reason="uvicorn is not installed")


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture(scope="module", params=SERVERS)
def port(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a server of each kind, in a process of its own."""
    module, command = SERVERS[request.param]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    folder = tmp_path_factory.mktemp("server")
    (folder / "kv.py").write_text(APPLICATION)
    port = free_port()
    where = f"127.0.0.1:{port}" if command[-1] == "--bind" else str(port)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    environment["BYTEKV_TEST_STORE"] = str(folder / "store")
    log = folder / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, *command, where], cwd=folder, env=environment, stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while not answers(port):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        yield port
    finally:
        server.terminate()
        server.wait(TIMEOUT_S)


def answers(port: int) -> bool:
    try:
        return ask(port, "GET", "/-/ready").status == 200
    except OSError:
        return False


def ask(port: int, method: str, target: str, body: Any = None, headers: Any = None) -> http.client.HTTPResponse:
    """Send one request on a connection of its own; the reply has been read and is in its attribute ``content``."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)) as connection:
        connection.request(method, target, body, headers or {}, encode_chunked=isinstance(body, list))
        answer = connection.getresponse()
        answer.content = answer.read()  # type: ignore[attr-defined]
        return answer


def raw(port: int, sent: bytes) -> bytes:
    """Send bytes as they are, and nothing more; return all that comes back."""
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := connection.recv(65536):
                received += piece
        return received


# --- each kind of server -----------------------------------------------------------------------


def test_keys_are_bytes_on_every_server(port):
    for number, key in enumerate([*KEYS, bytes(range(256)), b"k" * 20_000]):
        value = b"%d" % number
        assert ask(port, "PUT", f"/v1/kv/{quoted(key)}", value).status == 201, key
        assert ask(port, "GET", f"/v1/kv/{quoted(key)}").content == value, key
        listed = json.loads(ask(port, "GET", f"/v1/kv?start={quoted(key)}&limit=1&values=true").content)
        assert listed["items"][0]["value_b64"], key
        assert ask(port, "DELETE", f"/v1/kv/{quoted(key)}").status == 204, key
    assert json.loads(ask(port, "GET", "/v1/kv").content)["items"] == []


def test_a_slash_and_its_escape_are_the_same_key_and_a_double_escape_is_not(port):
    assert ask(port, "PUT", "/v1/kv/x/y", b"1").status == 201
    assert ask(port, "PUT", "/v1/kv/x%2Fy", b"2").status == 204
    assert ask(port, "PUT", "/v1/kv/x%252Fy", b"3").status == 201
    assert ask(port, "PUT", "/x%2fy", b"4").status == 200
    assert ask(port, "GET", "/v1/kv/x/y").content == b"4"
    for key in ("x/y", "x%252Fy"):
        ask(port, "DELETE", f"/v1/kv/{key}")


@pytest.mark.parametrize("size", [0, 1, 65_536, 3_000_000])
def test_bodies_of_every_size_and_kind(port, size):
    value = os.urandom(size)
    assert ask(port, "PUT", "/v1/kv/body", value).status == 201
    assert ask(port, "GET", "/v1/kv/body").content == value
    pieces = [value[at : at + 10_000] for at in range(0, size, 10_000)]
    headers = {"transfer-encoding": "chunked"}
    assert ask(port, "PUT", "/v1/kv/body", pieces, headers).status == 204
    answer = ask(port, "GET", "/v1/kv/body")
    assert answer.content == value
    assert answer.headers["content-length"] == str(size)
    etag = answer.headers["etag"]
    assert ask(port, "GET", "/v1/kv/body", headers={"if-none-match": etag}).status == 304
    head = ask(port, "HEAD", "/v1/kv/body")
    assert (head.status, head.content, head.headers["content-length"]) == (200, b"", str(size))
    if size:
        part = ask(port, "GET", "/v1/kv/body", headers={"range": "bytes=-10"})
        assert (part.status, part.content) == (206, value[-10:])
    assert ask(port, "PUT", "/v1/kv/body", b"x", {"if-match": '"1"'}).status == 412
    assert ask(port, "DELETE", "/v1/kv/body", headers={"if-match": etag}).status == 204


def test_a_body_that_is_too_large(port):
    answer = raw(port, b"PUT /v1/kv/big HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert ask(port, "GET", "/v1/kv/big").status == 404


def test_half_a_body_is_never_stored(port):
    half = b"PUT /v1/kv/half HTTP/1.1\r\nHost: localhost\r\n%b\r\n\r\n"
    raw(port, half % b"Content-Length: 10" + b"12345")
    raw(port, half % b"Transfer-Encoding: chunked" + b"5\r\n12345\r\n")
    raw(port, half % b"Transfer-Encoding: chunked" + b"5\r\n123")
    assert ask(port, "GET", "/v1/kv/half").status == 404


@pytest.mark.parametrize(
    "headers",
    [b"Content-Length: 1\r\nContent-Length: 2", b"Content-Length: +1", b"Content-Length: 1\r\nTransfer-Encoding: gzip"],
)
def test_a_body_whose_end_is_in_doubt(port, headers):
    answer = raw(port, b"PUT /v1/kv/doubt HTTP/1.1\r\nHost: localhost\r\n%b\r\n\r\nx" % headers)
    assert re.match(rb"HTTP/1\.1 (400|501) |$", answer), answer
    assert ask(port, "GET", "/v1/kv/doubt").status == 404


def test_errors_have_their_documents(port):
    answer = ask(port, "GET", "/v1/kv/none")
    assert (answer.status, answer.headers["content-type"]) == (404, "application/problem+json")
    assert json.loads(answer.content)["code"] == "no-such-key"
    assert ask(port, "GET", "/v1/kv/%zz").status == 400
    assert ask(port, "PATCH", "/v1/kv/x").status == 405
    assert ask(port, "GET", "/-/healthy", headers={"host": "evil.example"}).status == 400


def test_streams(port):
    for number in range(300):
        ask(port, "PUT", f"/v1/kv/s{number:03}", bytes(1000))
    answer = ask(port, "GET", "/v1/kv?prefix=s&values=true", headers={"accept": "application/x-ndjson"})
    assert len(answer.content.splitlines()) == 300
    seq = json.loads(ask(port, "GET", "/v1/stats").content)["last_seq"]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    with contextlib.closing(connection):
        connection.request("GET", f"/v1/changes?since={seq}", headers={"accept": "text/event-stream"})
        events = connection.getresponse()
        assert events.fp.readline() if events.chunked is False else events.readline() == b"retry: 2000\n"
        ask(port, "PUT", "/v1/kv/s000", b"new")
        seen = b""
        while b"data: " not in seen:
            seen += events.readline()
        assert f"id: {seq + 1}\n".encode() in seen
        events.close()
    deadline = time.monotonic() + TIMEOUT_S
    while json.loads(ask(port, "GET", "/v1/stats").content)["pinned_bytes"]:
        assert time.monotonic() < deadline


# --- the door that bytekv opens itself ---------------------------------------------------------


@needs_uvicorn
def test_the_curl_examples_word_for_word(open_store):
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    page = (ROOT / "docs/reference/http.md").read_text(encoding="utf-8")
    block = re.search(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert block
    lines = block[1].splitlines()
    assert lines == [
        """curl -X PUT http://127.0.0.1:8080/greeting -H "Content-Type: text/plain" -d 'Hello, World!'""",
        "curl http://127.0.0.1:8080/greeting",
        "curl -X DELETE http://127.0.0.1:8080/greeting",
    ]
    db = open_store()
    with running(db) as url:

        def curl(line: str) -> tuple[str, str]:
            command = line.replace("http://127.0.0.1:8080", url).replace("curl ", "curl -s -w '\\n%{http_code}' ", 1)
            done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=TIMEOUT_S)
            assert (done.returncode, done.stderr) == (0, "")
            body, _, status = done.stdout.rpartition("\n")
            return status, body

        assert curl(lines[1])[0] == "404"
        assert curl(lines[0]) == ("200", "OK\n")
        assert db["greeting"] == b"Hello, World!"
        assert curl(lines[1]) == ("200", "Hello, World!")
        assert curl(lines[2]) == ("202", "OK\n")
        assert curl(lines[1])[0] == "404"


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


@needs_uvicorn
def test_a_program_without_an_event_loop_serves_from_a_thread(open_store):
    db = open_store()
    with running(db) as url:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
        assert ask(port_of(url), "PUT", "/k", b"1").status == 200
        db["mine"] = "2"
        assert ask(port_of(url), "GET", "/mine").content == b"2"
    with pytest.raises(ConnectionRefusedError):
        ask(port_of(url), "GET", "/k")
    assert not db.closed
    with running(db, tokens="s3cret", host="localhost") as url:
        assert ask(port_of(url), "GET", "/k").status == 401
        assert ask(port_of(url), "GET", "/k", headers={"authorization": "Bearer s3cret"}).content == b"1"


async def with_server(store: Any, inside: Callable[[str], Any], **settings: Any) -> None:
    """Serve in this event loop while ``inside`` runs in a thread."""
    url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve(store, port=0, started=url.set_result, **settings))
    try:
        await asyncio.to_thread(inside, await url)
    finally:
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving


@needs_uvicorn
def test_what_has_begun_is_answered_before_the_end(open_store):
    """The server is told to stop while a body is on its way: the value is stored and the client hears of it."""
    db = open_store()

    async def stop_in_the_middle() -> bytes:
        loop = asyncio.get_running_loop()
        url = loop.create_future()
        serving = asyncio.create_task(serve(db, port=0, started=url.set_result))
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(await url))
        writer.write(b"PUT /k HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 100 ")
        idle_reader, idle_writer = await asyncio.open_connection("127.0.0.1", port_of(await url))
        feed_reader, feed_writer = await asyncio.open_connection("127.0.0.1", port_of(await url))
        feed_writer.write(b"GET /v1/changes?follow=true HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert await feed_reader.readline() == b"HTTP/1.1 200 OK\r\n"
        serving.cancel()
        assert await idle_reader.read() == b"", "idle connections are closed"
        assert (await feed_reader.read()).endswith(b"0\r\n\r\n"), "streams come to a proper end"
        writer.write(b"0123456789")
        answer = await reader.read()
        with pytest.raises(asyncio.CancelledError):
            await serving
        for each in (writer, idle_writer, feed_writer):
            each.close()
        return answer

    answer = asyncio.run(stop_in_the_middle())
    assert b"HTTP/1.1 200 OK" in answer
    assert db["k"] == b"0123456789"


@needs_uvicorn
def test_the_head_of_a_request_has_a_deadline(open_store):
    def be_slow(url: str) -> None:
        for requests in ([], [b"GET / HT"], [b"GET /-/healthy HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET / HT"]):
            with socket.create_connection(("127.0.0.1", port_of(url)), timeout=TIMEOUT_S) as connection:
                for sent in requests:
                    connection.sendall(sent)
                    if sent.endswith(b"\r\n\r\n"):
                        assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK")
                while connection.recv(65536):
                    pass

    asyncio.run(with_server(open_store(), be_slow, head_timeout_s=0.05))


GET_CONSOLE = b"GET /-/console HTTP/1.1\r\nHost: localhost\r\n\r\n"
GET_STATS = b"GET /v1/stats HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer s3cret\r\n\r\n"


def status_of(connection: socket.socket, request: bytes) -> int:
    """Send a request and read the whole reply."""
    connection.sendall(request)
    reply = http.client.HTTPResponse(connection)
    reply.begin()
    reply.read()
    return reply.status


@needs_uvicorn
def test_strangers_make_room_for_each_other_and_for_nobody_else(open_store, monkeypatch):
    monkeypatch.setattr(server_module, "_MAX_CONNECTIONS", 8)

    def come(url: str) -> None:
        connect = lambda: socket.create_connection(("127.0.0.1", port_of(url)), timeout=TIMEOUT_S)  # noqa: E731
        with contextlib.ExitStack() as stack:
            client = stack.enter_context(connect())
            assert status_of(client, GET_STATS) == 200
            strangers = [stack.enter_context(connect()) for _ in range(20)]
            for stranger in strangers[:-2]:
                with contextlib.suppress(ConnectionResetError):
                    assert stranger.recv(1) == b""
            assert status_of(strangers[-1], GET_CONSOLE) == 200
            late = stack.enter_context(connect())
            assert [status_of(connection, GET_STATS) for connection in (client, late, client)] == [200] * 3

    asyncio.run(with_server(open_store(), come, tokens="s3cret"))


@needs_uvicorn
def test_strangers_that_have_left_are_forgotten(open_store, monkeypatch):
    """Each that asked once and left waited for its turn to ask again, which came more slowly than others left."""
    paces: list[Pace] = []

    def slow() -> Pace:
        paces.append(Pace(3600))
        return paces[0]

    monkeypatch.setattr(server_module, "Pace", slow)

    def come_and_go(url: str) -> None:
        connect = lambda: socket.create_connection(("127.0.0.1", port_of(url)), timeout=TIMEOUT_S)  # noqa: E731
        with connect() as client:
            assert status_of(client, GET_STATS) == 200
            with contextlib.ExitStack() as stack:
                for _ in range(5):
                    assert status_of(stack.enter_context(connect()), GET_CONSOLE) == 200
                assert len(paces[0]) >= 3, "the first need not wait, the last may not have come so far"
            for _ in range(200):
                assert status_of(client, GET_STATS) == 200
            assert len(paces[0]) == 0

    asyncio.run(with_server(open_store(), come_and_go, tokens="s3cret"))


@needs_uvicorn
def test_without_a_token_one_connection_too_many_is_told_so(open_store, monkeypatch, caplog):
    monkeypatch.setattr(server_module, "_MAX_CONNECTIONS", 1)

    def come(url: str) -> None:
        with socket.create_connection(("127.0.0.1", port_of(url)), timeout=TIMEOUT_S) as client:
            assert status_of(client, GET_CONSOLE) == 200
            for _ in range(50):
                with socket.create_connection(("127.0.0.1", port_of(url)), timeout=TIMEOUT_S) as other:
                    assert other.recv(65536).startswith(b"HTTP/1.1 503 ")

    asyncio.run(with_server(open_store(), come))
    assert 1 <= len(caplog.records) < 10


@needs_uvicorn
def test_a_client_that_does_not_take_replies_is_disconnected(open_store, monkeypatch, caplog):
    """Also when the connection is to be closed, which would otherwise wait for the client for ever."""
    monkeypatch.setattr(server_module, "_SWEEP_S", 0.01)
    monkeypatch.setattr(server_module, "_STRANGER_SEND_S", 0.05)

    def ask_and_do_not_take(url: str) -> None:
        for last in (GET_CONSOLE, b"nonsense\r\n\r\n"):
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.settimeout(TIMEOUT_S)
                client.connect(("127.0.0.1", port_of(url)))
                client.sendall(GET_CONSOLE * 300 + last)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
                with pytest.raises((ConnectionResetError, BrokenPipeError)):
                    while True:  # until the server has gone; what it does not read fills the buffers
                        client.sendall(b"x" * 65536)

    asyncio.run(with_server(open_store(), ask_and_do_not_take, tokens="s3cret"))
    assert "does not take its replies" in caplog.text


@needs_uvicorn
@pytest.mark.parametrize("token", ["s3cret", "wrong"])
def test_a_long_head_is_understood_however_it_is_cut(open_store, token):
    """One of more than 16 KiB was, if it came in one piece."""

    def ask_in_pieces(url: str) -> None:
        head = b"GET /v1/kv/%b HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\n\r\n"
        whole = head % (b"k" * 60_000, token.encode())
        with socket.create_connection(("127.0.0.1", port_of(url)), timeout=TIMEOUT_S) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for at in range(0, len(whole), 7000):
                client.sendall(whole[at : at + 7000])
            assert status_of(client, b"") == (404 if token == "s3cret" else 401)
            assert status_of(client, GET_STATS) == 200

    asyncio.run(with_server(open_store(), ask_in_pieces, tokens="s3cret"))


@needs_uvicorn
def test_a_client_that_goes_on_sending_after_a_refusal_is_cut_off(open_store, monkeypatch):
    monkeypatch.setattr(server_module, "_MAX_UNWANTED_BYTES", 100_000)

    def send_without_end(url: str) -> None:
        with socket.create_connection(("127.0.0.1", port_of(url)), timeout=TIMEOUT_S) as client:
            head = b"PUT /v1/kv/k HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            assert status_of(client, head) == 401
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                while True:
                    client.sendall(b"1000\r\n" + bytes(4096) + b"\r\n")

    asyncio.run(with_server(open_store(), send_without_end, tokens="s3cret"))


@needs_uvicorn
def test_nonsense_does_not_fill_the_log(open_store, caplog):
    def send_nonsense(url: str) -> None:
        for _ in range(50):
            with socket.create_connection(("127.0.0.1", port_of(url)), timeout=TIMEOUT_S) as client:
                client.sendall(b"nonsense\r\n\r\n")
                assert client.recv(65536).startswith(b"HTTP/1.1 400 ")

    asyncio.run(with_server(open_store(), send_nonsense))
    assert 1 <= len(caplog.records) < 10


@needs_uvicorn
@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_only_loopback_is_served_without_a_token(open_store, host):
    db = open_store()
    with pytest.raises(ValueError, match="token"):
        asyncio.run(serve(db, host, 0))
    with pytest.raises(ValueError, match="token"), running(db, host):
        pass
    with running(db, "0.0.0.0", tokens="s3cret") as url:
        assert ask(port_of(url), "GET", "/k").status == 401


@needs_uvicorn
def test_a_port_that_is_taken(open_store):
    db = open_store()
    with running(db) as url, pytest.raises(OSError, match="in use"), running(db, port=port_of(url)):
        pass


def test_without_uvicorn_the_error_says_what_to_install(open_store, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'bytekv\[http\]'"):
        asyncio.run(serve(open_store(), port=0))


@needs_uvicorn
def test_an_error_while_starting_reaches_the_caller(open_store):
    with pytest.raises(TypeError), running(open_store(), max_boddy_bytes=1):
        pass


def test_small_replies_are_sent_at_once():
    """A reply of two small pieces took 45 ms: the second waited until the client's delayed ACK of the first. asyncio
    sets TCP_NODELAY only where a socket says that its protocol is TCP, and the listening ones said 0."""

    async def look() -> set[int]:
        found: asyncio.Queue[int] = asyncio.Queue()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            accepted = writer.get_extra_info("socket")
            found.put_nowait(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        set_options = set()
        for listener in listen("localhost", 0, secret="nothing", is_set=True):
            async with await asyncio.start_server(connected, sock=listener):
                _, writer = await asyncio.open_connection(*listener.getsockname()[:2])
                set_options.add(bool(await found.get()))
                writer.close()
        return set_options

    assert asyncio.run(look()) == {True}


# --- mounted -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["starlette", "fastapi"])
def test_mounted_below_a_path(door, open_store, kind):
    framework = pytest.importorskip(f"{kind}.applications", reason=f"{kind} is not installed")
    db = open_store()
    http_client = door(db)
    outer = framework.Starlette() if kind == "starlette" else framework.FastAPI()
    outer.mount("/deep/kv", http_client.application)
    http_client.application, inner = outer, http_client.application
    assert isinstance(inner, Application)
    assert http_client("PUT", "/deep/kv/v1/kv/a%2Fb%FF", b"1").status == 201
    assert dict(db) == {b"a/b\xff": b"1"}
    assert http_client("GET", "/deep/kv/a/b%FF").body == b"1"
    assert http_client("GET", "/deep/kv/").headers["location"] == "/deep/kv/-/console"
    assert http_client("GET", "/deep/kv/-/healthy").status == 200


def test_threads_end_with_the_application(open_store):
    """Where it is mounted nobody tells it of the end; it must not keep threads for ever."""
    from tests.support.http_client import Client

    before = threading.active_count()
    client = Client(Application(open_store()))
    assert client("PUT", "/k", b"1").status == 200
    assert threading.active_count() > before
    del client  # and the fixture that watches over threads sees the rest
