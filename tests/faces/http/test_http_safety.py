"""What the HTTP door does not do: for strangers, for other sites, for too much, for half a request."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable
from contextlib import AsyncExitStack
from itertools import chain, combinations
from typing import Any

import pytest

from bytekv.http import app
from bytekv.http.access import SCOPES
from bytekv.http.routes import ROUTES
from tests.crash.test_disk_full import SmallDisk
from tests.faces.http.test_http_many import JSON, NDJSON, b64, batch, delete, get, put
from tests.support import harness
from tests.support.fault_files import FailingSyncs
from tests.support.harness import damage, segment_files

EVERYTHING = [(route.method, route.path.replace("{key}", "k"), route.scopes) for route in ROUTES]
SECRET = b"of others"
STEPS: dict[str, dict[str, Any]] = {"get": get("secret"), "put": put("n", "1"), "delete": delete("n")}


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


# --- tokens ------------------------------------------------------------------------------------


def test_every_operation_asks_for_its_scope(door, open_store):
    db = open_store()
    http = door(db, tokens={"r": "read", "w": ["write"], "a": "admin", "all": "read write admin", "none": ""})
    allowed = {"r": "read", "w": "write", "a": "admin"}
    for method, url, scopes in EVERYTHING:
        for token in ("r", "w", "a", "all", "none"):
            answer = http(method, url, headers=bearer(token))
            if not scopes or token == "all" or allowed.get(token) in scopes:
                assert answer.status not in (401, 403), token
            else:
                assert answer.code == "forbidden"
                assert answer.headers["www-authenticate"] == (
                    f'Bearer realm="bytekv", error="insufficient_scope", scope="{" ".join(scopes)}"'
                )
        last_seq = db.last_seq
        for headers in ({}, bearer("x"), bearer(""), bearer("all "), bearer("all x"), {"authorization": "Basic all"}):
            answer = http(method, url, headers=headers)
            if not scopes or headers == bearer("all "):
                assert answer.status not in (401, 403)
            else:
                assert answer.code == "unauthorized"
                assert answer.headers["www-authenticate"] == 'Bearer realm="bytekv"'
                assert answer.status == 401
        twice = http(method, url, headers=[("authorization", "Bearer all"), ("authorization", "Bearer all")])
        assert not scopes or twice.code == "unauthorized"
        assert not scopes or db.last_seq == last_seq or method == "PUT"


def subsets(words: Iterable[str]) -> list[tuple[str, ...]]:
    words = tuple(words)
    return list(chain.from_iterable(combinations(words, count) for count in range(len(words) + 1)))


@pytest.mark.parametrize(
    "scopes", [None, *subsets(SCOPES)], ids=lambda scopes: "stranger" if scopes is None else " ".join(scopes)
)
def test_what_a_token_may_do_with_every_method_at_every_path(door, open_store, scopes):
    """A token for writing read every value with a batch of a get; this looks at what happens, not at the table."""
    db = open_store()
    http = door(db, tokens={"s3cret": "read write admin", "t": " ".join(scopes or ())})
    headers = {} if scopes is None else bearer("t")
    may = frozenset(scopes or ())
    paths = dict.fromkeys(route.path.replace("{key}", "secret") for route in ROUTES)
    methods = ("GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS")
    requests: list[tuple[str, str, bytes]] = [(method, path, b"") for path in paths for method in methods]
    for names in subsets(STEPS):
        for wanted in ([], [{"key_b64": b64("secret"), "etag": None}], [{"key_b64": b64("none"), "etag": None}]):
            document = {"if": wanted, "ops": [STEPS[name] for name in names]}
            requests.append(("POST", "/v1/batch", json.dumps(document).encode()))
    for method, path, body in requests:
        db["secret"] = SECRET
        before = db.last_seq
        answer = http(method, path + "?values=true" * (path == "/v1/kv"), body, headers={**headers, **JSON})
        what = f"{method} {path} {body!r}: {answer.status}"
        if answer.status in (401, 403):
            assert db.last_seq == before, what
        if "write" not in may:
            assert db.last_seq == before, what
        if "read" not in may:
            assert SECRET not in answer.body, what
            assert b64(SECRET).encode() not in answer.body, what
        if body:
            needed = {"read" if "get" in step else "write" for step in map(str, json.loads(body)["ops"])} or {"read"}
            assert (answer.status not in (401, 403)) == (needed <= may), what
        elif answer.status == 200 and not path.startswith(("/-/", "/v1/openapi")):
            assert may, what
    assert http("GET", "/v1/kv/secret", headers=bearer("s3cret")).body == SECRET


def test_one_token_for_everything(door):
    http = door(tokens="s3cret")
    assert http("GET", "/v1/stats").status == 401
    assert http("GET", "/v1/stats", headers={"authorization": "bearer s3cret"}).status == 200
    for wrong in ("s3cre", "s3cret2", "S3cret", "s3cr\xe9t"):
        assert http("GET", "/v1/stats", headers=bearer(wrong)).code == "unauthorized", wrong


def test_without_a_token_nothing_is_read_from_the_body(door):
    http = door(tokens="s3cret")

    async def put_much() -> int:
        async with http.open("PUT", "/k", [bytes(1000)] * 10) as exchange:
            await exchange.finished()
            assert exchange.answer.status == 401
            return exchange.received_bytes

    assert asyncio.run(put_much()) == 0


def test_tokens_that_could_not_be_sent_and_scopes_that_do_not_exist(open_store):
    db = open_store()
    for tokens in ["", "a b", "\n", "é", {}, {"a": "reed"}, {"": "read"}, {"a": ["read", "x"]}]:
        with pytest.raises(ValueError):
            app(db, tokens=tokens)


def test_scopes_of_the_table_exist():
    assert {scope for route in ROUTES for scope in route.scopes} == set(SCOPES)


# --- hosts and other sites ---------------------------------------------------------------------


def test_hosts_that_are_this_server(door):
    http = door(allowed_hosts=["kv.Example"])
    for host in [
        "localhost",
        "LocalHost:8080",
        "localhost.",
        "127.0.0.1:1",
        "[::1]:80",
        "[::1]",
        "10.1.2.3",
        "kv.example",
        "KV.example.:80",
    ]:
        assert http("GET", "/-/healthy", headers={"host": host}).status == 200


def test_a_name_that_was_rebound_to_this_address_is_refused(door, open_store):
    http = door(db := open_store(), allowed_hosts=["kv.example"])
    for host in ["evil.example", "localhost.evil.example", "kv.example.evil", "127.0.0.1.evil.example", "x"]:
        assert http("PUT", "/k", b"x", headers={"host": host}).code == "unknown-host", host
        assert http("GET", "/-/healthy", headers={"host": host}).code == "unknown-host", host
        assert len(db) == 0
        assert door(db, allowed_hosts=["*"])("GET", "/-/healthy", headers={"host": host}).status == 200


def test_hosts_that_are_none(door):
    http = door(allowed_hosts=["*"])
    for host in ["", "localhost:x", "a b", "localhost/x", "user@localhost", "[::1", "localhost,evil", "é"]:
        assert http("GET", "/-/healthy", headers={"host": host}).code == "malformed", host


def test_no_host_and_two_hosts(door):
    http = door()
    assert http("GET", "/-/healthy", headers={"host": None}).code == "malformed"
    assert http("GET", "/-/healthy", headers=[("host", "localhost")]).code == "malformed"
    assert http("GET", "/-/healthy", headers={"host": None}, http_version="1.0").status == 200


def test_pages_of_other_sites_change_nothing(door, open_store):
    http = door(db := open_store())
    for headers in [
        {"sec-fetch-site": "cross-site", "origin": "https://evil.example"},
        {"sec-fetch-site": "same-site", "origin": "http://localhost:8080"},
        {"sec-fetch-site": "cross-site"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:8081"},
        {"origin": "http://localhost:8080.evil.example"},
    ]:
        assert http("PUT", "/k", b"x", headers=headers).code == "cross-origin"
        assert http("DELETE", "/v1/kv/k", headers=headers).code == "cross-origin"
        assert http("POST", "/v1/admin/compact", headers=headers).code == "cross-origin"
        assert http("POST", "/v1/batch", b'{"ops":[]}', headers=headers | JSON).code == "cross-origin"
        assert (db.last_seq, db.stats().compactions) == (0, 0)
        answer = http("GET", "/-/healthy", headers=headers)
        assert answer.status == 200
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_pages_of_the_server_itself_may(door):
    http = door()
    for headers in [
        {"sec-fetch-site": "same-origin", "origin": "http://localhost:8080"},
        {"sec-fetch-site": "none"},
        {"origin": "http://localhost:8080"},
        {"origin": "https://LOCALHOST:8080"},
        {},
    ]:
        assert http("PUT", "/k", b"x", headers=headers).status == 200


# --- bodies ------------------------------------------------------------------------------------


def test_a_body_whose_end_is_in_doubt_is_refused_and_the_connection_closed(door, open_store):
    http = door(db := open_store())
    for headers in [
        [("content-length", "1"), ("content-length", "1")],
        [("content-length", "1"), ("content-length", "2")],
        [("content-length", "1"), ("transfer-encoding", "chunked")],
        [("content-length", "+1")],
        [("content-length", "1_0")],
        [("content-length", "-1")],
        [("content-length", "0x1")],
        [("content-length", "1,1")],
        [("content-length", "")],
        [("content-length", "9" * 30)],
    ]:
        answer = http("PUT", "/k", b"x", headers=headers)
        assert (answer.code, answer.headers["connection"]) == ("malformed", "close")
        assert "connection" not in http("PUT", "/k", b"x", headers=headers, http_version="2").headers
        assert len(db) == 0


def test_a_body_is_limited_while_it_arrives(door, open_store):
    http = door(db := open_store(), max_body_bytes=1000)

    async def put_pieces(**more: object) -> tuple[str, int]:
        async with http.open("PUT", "/v1/kv/k", [bytes(100)] * 1000, **more) as exchange:
            await exchange.finished()
            return exchange.answer.code, exchange.received_bytes

    assert asyncio.run(put_pieces()) == ("too-large", 1100), "the rest was not even read"
    assert asyncio.run(put_pieces(headers={"content-length": "1001"})) == ("too-large", 0)
    assert http("PUT", "/v1/kv/k", bytes(1000)).status == 201
    assert http("PUT", "/v1/kv/k", [bytes(10)] * 100).status == 204
    assert http("PUT", "/v1/kv/k", bytes(1001)).status == 413
    assert (len(db["k"]), db.last_seq) == (1000, 2)


def test_all_bodies_together_are_limited_too(door, open_store):
    http = door(open_store(), max_body_bytes=1000)

    async def many_at_once() -> None:
        async with (
            http.open("PUT", "/a", bytes(1000), ends=False) as a,
            http.open("PUT", "/b", bytes(1000), ends=False) as b,
            http.open("PUT", "/c", bytes(1000), ends=False) as c,
            http.open("PUT", "/d", bytes(999), ends=False) as d,
        ):
            while {a.received_bytes, b.received_bytes, c.received_bytes, d.received_bytes} != {999, 1000}:
                await asyncio.sleep(0)
            refused = await http.send("PUT", "/e", bytes(2))
            assert (refused.code, refused.headers["retry-after"]) == ("too-many-requests", "1")
            assert (await http.send("PUT", "/e", bytes(1))).status == 200
            assert (await http.send("GET", "/e")).status == 200
            a.leave()
            await a.finished()
            assert (await http.send("PUT", "/e", bytes(1000))).status == 200

    asyncio.run(many_at_once())
    assert http("PUT", "/e", bytes(1000)).status == 200, "everything was given back"


def test_a_body_that_does_not_come(door, open_store):
    http = door(db := open_store(), body_timeout_s=0.01)

    async def wait_for_it() -> str:
        async with http.open("PUT", "/k", b"half", ends=False) as exchange:
            await exchange.finished()
            return exchange.answer.code

    assert asyncio.run(wait_for_it()) == "too-slow"
    assert len(db) == 0


@pytest.mark.parametrize("headers", [{}, {"content-length": "8"}])
def test_half_a_body_is_never_stored(door, open_store, headers):
    """The client, or the network between, goes away in the middle of a value."""
    http = door(db := open_store())

    async def leave() -> None:
        async with http.open("PUT", "/k", b"half", ends=False, headers=headers) as exchange:
            exchange.leave()
            await exchange.finished()
            assert exchange.status == 0

    asyncio.run(leave())
    assert len(db) == 0


def test_a_body_shorter_than_was_said_is_never_stored(door, open_store):
    """Not every server says that the client has left; the length says it, too."""
    http = door(db := open_store())

    async def end_early() -> None:
        async with http.open("PUT", "/k", b"half", headers={"content-length": "8"}) as exchange:
            await exchange.finished()
            assert exchange.status == 0

    asyncio.run(end_early())
    assert len(db) == 0
    assert http("PUT", "/k", b"whole!!!", headers={"content-length": "8"}).status == 200


def test_too_many_requests_at_once(door, open_store):
    db = open_store()
    http = door(db, max_requests=2)

    async def three() -> None:
        async with http.open("PUT", "/a", b"1", ends=False), http.open("PUT", "/b", b"1", ends=False):
            await asyncio.sleep(0)
            refused = await http.send("GET", "/a")
            assert (refused.code, refused.status, refused.headers["retry-after"]) == ("too-many-requests", 429, "1")
            assert (await http.send("GET", "/-/healthy")).status == 200
        assert (await http.send("GET", "/a")).status == 404

    asyncio.run(three())


def test_readers_and_followers_leave_room(door, open_store):
    """A token for reading could take all places, with streams of changes that go on for ever, and so stop writes."""
    tokens = {"reader": "read", "writer": "write"}
    http = door(db := open_store(), max_requests=8, tokens=tokens, poll_interval_s=0.001)
    db["there"] = b"something to follow"

    async def follow(stack: AsyncExitStack) -> int:
        stream = http.open("GET", "/v1/changes?since=0&follow=true", headers=bearer("reader"))
        exchange = await stack.enter_async_context(stream)
        await exchange.piece()
        return int(exchange.status)

    async def wait(stack: AsyncExitStack) -> None:
        headers = {**bearer("reader"), "content-type": "application/json"}
        await stack.enter_async_context(http.open("POST", "/v1/batch", b"{", ends=False, headers=headers))
        await asyncio.sleep(0)

    async def many() -> None:
        async with AsyncExitStack() as stack:
            assert [await follow(stack) for _ in range(5)] == [200] * 4 + [429]
            assert (await http.send("GET", "/k", headers=bearer("reader"))).status == 404
            for _ in range(2):
                await wait(stack)
            assert (await http.send("GET", "/k", headers=bearer("reader"))).status == 429
            assert (await http.send("PUT", "/k", b"v", headers=bearer("writer"))).status == 200
        assert (await http.send("GET", "/k", headers=bearer("reader"))).status == 200

    asyncio.run(many())


def test_bodies_of_readers_do_not_hold_up_writers(door, open_store):
    """Four batches that arrive slowly were enough for nobody to store anything for a minute."""
    http = door(open_store(), max_body_bytes=8, tokens={"reader": "read", "writer": "write"})
    headers = {**bearer("reader"), "content-type": "application/json"}

    async def many() -> None:
        async with AsyncExitStack() as stack:
            for _ in range(5):
                batch = http.open("POST", "/v1/batch", b"7 bytes", ends=False, headers=headers)
                await stack.enter_async_context(batch)
                await asyncio.sleep(0)
            assert (await http.send("POST", "/v1/batch", b"{}", headers=headers)).status == 429
            assert (await http.send("PUT", "/k", b"8 bytes!", headers=bearer("writer"))).status == 200

    asyncio.run(many())


def call_and_never_take(application: Any, path: str, headers: list[tuple[bytes, bytes]]) -> asyncio.Task[None]:
    """Send a request whose client does not take the reply."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: object) -> None:
        await asyncio.Event().wait()

    scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b""}
    scope |= {"http_version": "1.1", "root_path": "", "headers": [(b"host", b"localhost"), *headers]}
    return asyncio.ensure_future(application(scope, receive, send))


def test_strangers_that_do_not_take_their_replies_hold_up_nobody(door, open_store):
    """270 that asked for the public console made everybody else wait, with 429, as long as they stayed."""
    http = door(open_store(), max_requests=2, tokens="s3cret")

    async def many() -> None:
        tasks = [call_and_never_take(http.application, "/-/console", []) for _ in range(10)]
        tasks += [call_and_never_take(http.application, "/v1/stats", []) for _ in range(10)]
        await asyncio.sleep(0)
        assert (await http.send("GET", "/v1/stats", headers=bearer("s3cret"))).status == 200
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(many())


def test_a_client_that_does_not_take_a_reply_in_time_is_given_up(door, open_store, caplog):
    http = door(open_store(), max_requests=1, send_timeout_s=0.01, tokens="s3cret")

    async def one() -> None:
        await asyncio.wait_for(
            call_and_never_take(http.application, "/v1/stats", [(b"authorization", b"Bearer s3cret")]), 30
        )
        assert (await http.send("GET", "/v1/stats", headers=bearer("s3cret"))).status == 200

    asyncio.run(one())
    assert "did not take its reply in time" in caplog.text


# --- a store that cannot -----------------------------------------------------------------------


def test_a_closed_store(door, open_store):
    db = open_store()
    http = door(db)
    http("PUT", "/k", b"1")
    db.close()
    assert http("GET", "/-/healthy").status == 200
    for method, url in (("GET", "/-/ready"), ("GET", "/k"), ("PUT", "/k"), ("GET", "/v1/kv"), ("GET", "/v1/stats")):
        answer = http(method, url)
        assert (answer.code, answer.status) == ("unavailable", 503), url
    assert http("GET", "/v1/kv", headers=NDJSON).status == 503


def test_a_closed_application(door, open_store):
    db = open_store()
    http = door(db)
    http.application.close()
    http.application.close()
    assert http("PUT", "/k", b"1").code == "unavailable"
    db["still"] = "open"


def test_a_store_that_may_only_be_read(door, open_store):
    with open_store() as db:
        db["k"] = "1"
    http = door(open_store("r"))
    assert http("GET", "/-/ready").json == {"status": "ok", "readonly": True}
    assert http("GET", "/k").body == b"1"
    assert len(http("GET", "/v1/kv?values=true").json["items"]) == 1
    for method, url in (("PUT", "/k"), ("DELETE", "/k"), ("PUT", "/v1/kv/k"), ("POST", "/v1/admin/compact")):
        answer = http(method, url)
        assert (answer.code, answer.status) == ("read-only", 409)
    assert http("DELETE", "/v1/kv/k", headers={"if-match": "*"}).code == "read-only"


def test_a_failed_sync_is_told_until_the_store_is_opened_again(door, path):
    files = FailingSyncs()
    db = harness.open_store(path, files=files, sync="always")
    http = door(db)
    assert http("PUT", "/k", b"1").status == 200
    assert http("GET", "/-/ready").status == 200
    files.fail_sync(1)
    assert http("PUT", "/k", b"2").code == "unavailable"
    assert http("PUT", "/k", b"3").code == "unavailable"
    assert http("GET", "/k").body == b"1"
    assert http("GET", "/-/ready").code == "unavailable"
    harness.crash(db)


@pytest.mark.parametrize("io", ["mmap", "pread"])
def test_a_full_disk(door, path, io):
    disk = SmallDisk(path.parent, 1 << 20)
    with harness.open_store(path, files=disk, io=io, segment_size_bytes=1 << 16) as db:
        http = door(db)
        assert http("PUT", "/k", b"1").status == 200
        disk.fill_up()
        big = bytes(100_000)
        for answer in (http("PUT", "/big", big), batch(http, put("k", "2"), put("big", big))):
            assert (answer.code, answer.status) == ("disk-full", 507)
        assert http("GET", "/k").body == b"1"
        assert http("DELETE", "/k").status == 202
        assert len(db) == 0


def test_a_damaged_entry_is_an_error_and_the_client_is_not_told_where_it_lies(door, open_store, path, caplog):
    db = open_store(io="pread")
    db["k"] = "value"
    http = door(db)
    (segment,) = segment_files(path)
    offset = segment.read_bytes().index(b"value")
    damage(segment, offset)
    with caplog.at_level(logging.ERROR):
        answers = [http("GET", "/k"), http("GET", "/v1/kv/k"), http("GET", "/v1/kv?values=true")]
        answers.append(http("GET", "/v1/kv?values=true", headers=NDJSON))
        answers.append(batch(http, put("k", "x"), if_=[{"key_b64": "aw==", "etag": '"1"'}]))
    for answer in answers:
        assert (answer.code, answer.status) == ("damaged", 500)
        assert str(path).encode() not in answer.body
    assert str(path) in caplog.text
    damage(segment, offset)


def test_damage_in_the_middle_of_a_stream_cuts_it_off(door, open_store, path, caplog):
    """A stream that ended as if it were whole would be a lie."""
    db = open_store(io="pread")
    db.update({f"k{number:04}": bytes(1000) + b"%d" % number for number in range(300)})
    http = door(db)
    (segment,) = segment_files(path)
    offset = segment.read_bytes().index(b"k0299")
    damage(segment, offset + 5)

    async def stream() -> None:
        async with http.open("GET", "/v1/kv?values=true", headers=NDJSON) as exchange:
            await asyncio.wait([exchange.task])
            assert exchange.status == 200
            assert not exchange.is_complete
            assert exchange.task.exception() is not None

    asyncio.run(stream())
    assert "cut off" in caplog.text
    assert db.stats().open_views == 0
    damage(segment, offset + 5)


def test_an_unexpected_error_is_logged_and_not_shown(door, open_store, monkeypatch, caplog):
    db = open_store()
    http = door(db)
    monkeypatch.setattr(type(db), "stats", lambda self: 1 // 0)
    answer = http("GET", "/v1/stats")
    monkeypatch.undo()
    assert (answer.code, b"division" in answer.body) == ("internal", False)
    assert "ZeroDivisionError" in caplog.text


def test_nothing_that_a_client_sends_gets_into_a_header(door, open_store):
    http = door(open_store())
    marks = {"x-mark": "MARK", "accept": "MARK/MARK", "if-range": "MARK", "content-type": "MARK"}
    for method, url, _ in EVERYTHING:
        for target in (url + "MARK", f"{url}%0d%0aMARK", f"{url}?MARK=MARK"):
            answer = http(method, target, b"MARK", headers=marks)
            assert "MARK" not in json.dumps(answer.headers)


def test_other_protocols(door):
    http = door()

    async def websocket() -> list[dict[str, object]]:
        sent: list[dict[str, object]] = []

        async def receive() -> dict[str, object]:
            return {"type": "websocket.connect"}

        async def send(message: dict[str, object]) -> None:
            sent.append(message)

        await http.application({"type": "websocket"}, receive, send)
        return sent

    assert asyncio.run(websocket()) == [{"type": "websocket.close", "code": 1000}]


def test_lifespan(door, open_store):
    db = open_store()
    http = door(db)

    async def live() -> list[str]:
        messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
        sent: list[str] = []

        async def receive() -> dict[str, str]:
            return messages.pop(0)

        async def send(message: dict[str, str]) -> None:
            sent.append(message["type"])

        await http.application({"type": "lifespan"}, receive, send)
        return sent

    assert asyncio.run(live()) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert not db.closed
    assert http("GET", "/v1/stats").code == "unavailable"
