"""Many keys over HTTP: pages and cursors, streamed listings, batches, writers that race."""

from __future__ import annotations

import asyncio
import json
import threading
from base64 import b64decode, b64encode
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bytekv.http import operations
from bytekv.http.conditions import Conditions
from bytekv.http.streams import in_slices
from tests.faces.http.test_http_values import quoted
from tests.support.http_client import Client

NDJSON = {"accept": "application/x-ndjson"}
JSON = {"content-type": "application/json"}


def b64(raw: bytes | str) -> str:
    return b64encode(raw.encode() if isinstance(raw, str) else raw).decode()


def keys_of(items: list[dict[str, Any]]) -> list[bytes]:
    return [b64decode(item["key_b64"]) for item in items]


def pages(http: Client, query: str) -> Iterator[list[bytes]]:
    """Yield the keys of each page until there are no more."""
    cursor = ""
    for _ in range(1000):
        answer = http("GET", f"/v1/kv?{query}{cursor}")
        assert answer.status == 200, answer
        yield keys_of(answer.json["items"])
        if answer.json["cursor"] is None:
            return
        cursor = f"&cursor={answer.json['cursor']}"
    raise AssertionError("the pages come to no end")


# --- listings ----------------------------------------------------------------------------------


def test_a_listing_shows_keys_and_if_asked_to_their_entries(door, open_store):
    db = open_store()
    db["a"] = "1"
    db.put(b"\xff", b"\x00\xff", ttl=60)
    http = door(db)
    assert http("GET", "/v1/kv").json == {
        "items": [{"key": "a", "key_b64": "YQ=="}, {"key": None, "key_b64": "/w=="}],
        "cursor": None,
    }
    first, second = http("GET", "/v1/kv?values=true").json["items"]
    assert first == {"key": "a", "key_b64": "YQ==", "value_b64": "MQ==", "etag": '"1"', "ttl": None}
    assert 59 < second.pop("ttl") <= 60
    assert second == {"key": None, "key_b64": "/w==", "value_b64": "AP8=", "etag": '"2"'}
    assert http("PUT", "/v1/kv/a", b"2", headers={"if-match": first["etag"]}).status == 204


def test_ranges_of_keys(door, open_store):
    db = open_store()
    db.update(dict.fromkeys(["a", "b1", "b2", "b3", "c", b"\xff\x00", b"\xff\x01"], ""))
    http = door(db)

    def listed(query: str) -> list[bytes]:
        return keys_of(http("GET", f"/v1/kv?{query}").json["items"])

    assert listed("prefix=b") == [b"b1", b"b2", b"b3"]
    assert listed("prefix=b&reverse=true") == [b"b3", b"b2", b"b1"]
    assert listed("start=b2&stop=c") == [b"b2", b"b3"]
    assert listed("prefix=b&start=b2&reverse=false") == [b"b2", b"b3"]
    assert listed("prefix=%FF") == [b"\xff\x00", b"\xff\x01"]
    assert listed("limit=2") == [b"a", b"b1"]
    assert listed("prefix=x") == []
    assert listed("prefix=") == list(db)


def test_keys_are_counted_and_deleted_by_ranges(door, open_store):
    db = open_store()
    db.update(dict.fromkeys(["a/1", "a/2", "a/3", "b", "c", "d", b"\xff"], "1"))
    http = door(db)
    assert http("GET", "/v1/count").json == {"count": 7}
    assert http("GET", "/v1/count?prefix=a%2F&start=a/2").json == {"count": 2}
    assert http("GET", "/v1/count?start=b&stop=d").json == {"count": 2}
    assert http("DELETE", "/v1/kv?start=b&stop=d").json == {"deleted": 2}
    assert http("DELETE", "/v1/kv?prefix=a/").json == {"deleted": 3}
    assert http("DELETE", "/v1/kv?prefix=a/").json == {"deleted": 0}
    assert dict(db) == {b"d": b"1", b"\xff": b"1"}
    for query in ("", "?prefix=", "?prefix=d&start=a", "?limit=1&prefix=d", "?prefix=d&prefix=e"):
        assert http("DELETE", "/v1/kv" + query).code == "malformed", query
    assert http("DELETE", "/v1/kv?prefix=d", headers={"if-match": "*"}).code == "malformed"
    assert http("GET", "/v1/count?limit=1").code == "malformed"
    assert http("POST", "/v1/count").status == 405
    assert http("DELETE", "/v1/kv?stop=e").json == {"deleted": 1}
    assert http("DELETE", "/v1/kv?start=").json == {"deleted": 1}
    assert dict(db) == {}


def test_stat_tells_of_a_value_that_is_not_read(door, open_store):
    db = open_store()
    seq = db.put("a/b", "12345", ttl=60)
    db["v"] = b"v" * 9000
    http = door(db)
    found = http("GET", "/v1/stat/a/b").json
    assert 59 < found.pop("ttl") <= 60
    entry = db.entry("a/b")
    assert found == {
        "key": "a/b",
        "key_b64": b64("a/b"),
        "size": 5,
        "etag": f'"{seq}"',
        "modified": entry.modified,
    }
    assert (http("GET", "/v1/stat/v").json["size"], http("GET", "/v1/stat/v").json["ttl"]) == (9000, None)
    assert http("GET", "/v1/stat/c").code == "no-such-key"
    assert http("GET", "/v1/stat/v?x=1").code == "malformed"
    assert http("DELETE", "/v1/stat/v").status == 405
    assert "v" in db


def test_a_plus_in_a_query_is_a_space_as_in_forms(door, open_store):
    http = door(db := open_store())
    db.update({"a b": "", "a+b": ""})
    assert keys_of(http("GET", "/v1/kv?prefix=a+").json["items"]) == [b"a b"]
    assert keys_of(http("GET", "/v1/kv?prefix=a%2B").json["items"]) == [b"a+b"]


@given(
    st.lists(st.binary(max_size=3), max_size=12, unique=True),
    st.integers(1, 5),
    st.booleans(),
    st.binary(max_size=1),
    st.one_of(st.none(), st.binary(max_size=2)),
    st.one_of(st.none(), st.binary(max_size=2)),
)
def test_pages_together_are_the_scan(keys, limit, reverse, prefix, start, stop):
    wanted = sorted(key for key in keys if key.startswith(prefix))
    wanted = [key for key in wanted if (start is None or key >= start) and (stop is None or key < stop)]
    listing = operations.Listing(prefix, start, stop, reverse, limit, False, None)
    snapshot = _Keys(keys)
    found: list[bytes] = []
    while len(found) <= len(keys):
        rest = list(listing.keys(snapshot))
        found += rest[:limit]
        if len(rest) <= limit:
            break
        listing = listing._replace(cursor=listing.cursor_after(rest[limit - 1]).encode())
    assert found == sorted(wanted, reverse=reverse)


class _Keys:
    """A snapshot of a set of keys, by the words of `OrderedMapping.scan_keys`."""

    def __init__(self, keys: list[bytes]) -> None:
        self._keys = keys

    def scan_keys(self, prefix, *, start, stop, include_start, reverse):
        held = [key for key in self._keys if key.startswith(prefix) and (stop is None or key < stop)]
        held = [key for key in held if start is None or key > start or (include_start and key == start)]
        return iter(sorted(held, reverse=reverse))


@pytest.mark.parametrize("reverse", ["true", "false"])
def test_a_cursor_goes_on_where_its_page_ended_whatever_was_written_meanwhile(door, open_store, reverse):
    db = open_store()
    db.update({f"k{number:02}": "" for number in range(10)})
    http = door(db)
    walk = pages(http, f"prefix=k&limit=4&reverse={reverse}")
    first = next(walk)
    db["k00a"], db["k04a"], db["k99"] = "", "", ""
    del db[first[-1]]
    rest = [key for page in walk for key in page]
    if reverse == "true":
        assert first == [b"k09", b"k08", b"k07", b"k06"]
        assert rest == [b"k05", b"k04a", b"k04", b"k03", b"k02", b"k01", b"k00a", b"k00"]
    else:
        assert first == [b"k00", b"k01", b"k02", b"k03"]
        assert rest == [b"k04", b"k04a", b"k05", b"k06", b"k07", b"k08", b"k09", b"k99"]


def test_a_cursor_belongs_to_its_listing(door, open_store):
    db = open_store()
    db.update(dict.fromkeys("abcdef", ""))
    http = door(db)
    cursor = http("GET", "/v1/kv?limit=2").json["cursor"]
    assert keys_of(http("GET", f"/v1/kv?limit=1&values=true&cursor={cursor}").json["items"]) == [b"c"]
    for query in ("prefix=a", "start=a", "stop=z", "reverse=true"):
        assert http("GET", f"/v1/kv?{query}&cursor={cursor}").code == "malformed", query
    other = "B" if cursor[0] == "A" else "A"
    for wrong in ("", "a", "!", cursor + "=", cursor[:-1], other + cursor[1:], f"%20{cursor}", "%ff", cursor[:4]):
        assert http("GET", f"/v1/kv?cursor={wrong}").code == "malformed", wrong
        assert http("GET", f"/v1/kv?cursor={wrong}", headers=NDJSON).code == "malformed", wrong


def test_a_page_ends_when_it_is_long_or_large(door, open_store, monkeypatch):
    db = open_store()
    db.update({f"k{number:04}": bytes(100) for number in range(1500)})
    http = door(db)
    assert [len(page) for page in pages(http, "limit=5000")] == [1000, 500]
    assert len(next(pages(http, ""))) == 100
    monkeypatch.setattr(operations, "_PAGE_BYTES", 1000)
    sizes = [len(page) for page in pages(http, "values=true&prefix=k00")]
    assert sum(sizes) == 100
    assert max(sizes) == 8
    monkeypatch.setattr(operations, "_PAGE_BYTES", 1)
    assert [len(page) for page in pages(http, "values=true&prefix=k000")] == [1] * 10, "each page goes on"


def test_the_last_page_knows_that_it_is_the_last(door, open_store):
    db = open_store()
    db.update(dict.fromkeys("abcd", ""))
    http = door(db)
    assert list(pages(http, "limit=2")) == [[b"a", b"b"], [b"c", b"d"]]
    assert list(pages(http, "limit=4")) == [[b"a", b"b", b"c", b"d"]]
    assert list(pages(http, "prefix=z")) == [[]]


def test_a_limit_is_a_plain_number(door):
    http = door()
    for query in ["limit=0", "limit=-1", "limit=1.5", "limit=", "limit=%201", "limit=1_0", "limit=" + "9" * 20]:
        assert http("GET", f"/v1/kv?{query}").code == "malformed", query


def test_a_query_is_understood_or_refused(door):
    http = door()
    for query in ["reverse", "reverse=1", "values=True", "x=1", "prefix=%4", "values=true&values=true"]:
        assert http("GET", f"/v1/kv?{query}").code == "malformed", query


def test_a_streamed_listing_is_one_moment(door, open_store):
    db = open_store()
    db.update({f"k{number:04}": f"old {number}" for number in range(2000)})
    http = door(db)

    async def list_while_others_write() -> bytes:
        async with http.open("GET", "/v1/kv?values=true&start=k0001", headers=NDJSON) as exchange:
            await exchange.piece()
            assert db.stats().open_views == 1
            db.clear()
            db["k0500"] = "new"
            await exchange.finished()
            assert exchange.headers["content-type"] == "application/x-ndjson"
            return exchange.answer

    lines = asyncio.run(list_while_others_write()).lines
    assert [line["key"] for line in lines] == [f"k{number:04}" for number in range(1, 2000)]
    assert [line["etag"] for line in lines] == [f'"{number}"' for number in range(2, 2001)]
    assert b64decode(lines[499]["value_b64"]) == b"old 500"
    assert db.stats().open_views == 0


def test_a_stream_stops_at_its_limit_and_goes_on_behind_a_cursor(door, open_store):
    db = open_store()
    db.update(dict.fromkeys("abcdef", ""))
    http = door(db)
    assert keys_of(http("GET", "/v1/kv?limit=2", headers=NDJSON).lines) == [b"a", b"b"]
    cursor = http("GET", "/v1/kv?limit=2").json["cursor"]
    assert keys_of(http("GET", f"/v1/kv?cursor={cursor}", headers=NDJSON).lines) == [b"c", b"d", b"e", b"f"]
    assert http("GET", "/v1/kv?prefix=x", headers=NDJSON).body == b""


def test_a_client_that_leaves_a_stream_frees_its_snapshot(door, open_store):
    db = open_store()
    db.update({f"k{number:05}": bytes(1000) for number in range(2000)})
    http = door(db)

    async def leave_early() -> int:
        async with http.open("GET", "/v1/kv?values=true", headers=NDJSON) as exchange:
            await exchange.piece()
            exchange.leave()
            await exchange.finished()
            assert not exchange.is_complete
            return len(exchange.body)

    assert asyncio.run(leave_early()) < 2_000_000
    assert db.stats().open_views == 0


def test_a_cancelled_stream_frees_its_snapshot(door, open_store):
    db = open_store()
    db.update({f"k{number:05}": bytes(1000) for number in range(2000)})
    http = door(db)

    async def cancel_early() -> None:
        async with http.open("GET", "/v1/kv?values=true", headers=NDJSON) as exchange:
            await exchange.piece()
            exchange.task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await exchange.task

    asyncio.run(cancel_early())
    assert db.stats().open_views == 0


def test_a_stream_that_is_left_closes_what_it_came_from():
    """And does not leave that to the garbage collector: somebody may still hold it, a traceback for instance."""
    ended: list[bool] = []

    def lines() -> Generator[bytes, None, None]:
        try:
            while True:
                yield bytes(1000)
        finally:
            ended.append(True)

    held = lines()

    async def leave_early() -> None:
        stream = in_slices(asyncio.to_thread, held)
        assert await anext(stream)
        await stream.aclose()

    asyncio.run(leave_early())
    assert ended


def test_a_page_is_what_comes_unless_a_stream_is_asked_for(door):
    http = door()
    for accept in ["*/*", "application/json", "application/x-ndjson;q=0", "application/x-ndjson; q=0.0", None]:
        answer = http("GET", "/v1/kv", headers={"accept": accept})
        assert (answer.headers["content-type"], answer.headers["vary"]) == ("application/json", "accept")


# --- batches -----------------------------------------------------------------------------------


def batch(http: Client, *ops: dict[str, Any], **members: Any) -> Any:
    """Send a batch; ``if_`` are its preconditions."""
    document = {"ops": list(ops)}
    if "if_" in members:
        document["if"] = members.pop("if_")
    return http("POST", "/v1/batch", json.dumps(document | members).encode(), headers=JSON)


def put(key: bytes | str, value: bytes | str, **more: Any) -> dict[str, Any]:
    return {"op": "put", "key_b64": b64(key), "value_b64": b64(value), **more}


def delete(key: bytes | str) -> dict[str, Any]:
    return {"op": "delete", "key_b64": b64(key)}


def get(key: bytes | str) -> dict[str, Any]:
    return {"op": "get", "key_b64": b64(key)}


def test_a_batch_reads_its_own_writes_and_tells_what_it_wrote(door, open_store):
    db = open_store()
    db.update({"old": "1", "gone": "2"})
    http = door(db)
    answer = batch(
        http,
        get("old"),
        put("new", "3", ttl=60),
        get("new"),
        delete("gone"),
        get("gone"),
        delete("never"),
        put("old", "4"),
    )
    assert answer.status == 200
    assert answer.json == {
        "seq": 5,
        "results": [
            {"op": "get", "key_b64": b64("old"), "value_b64": b64("1"), "etag": '"1"', "ttl": None},
            {"op": "put", "key_b64": b64("new"), "etag": '"3"'},
            {"op": "get", "key_b64": b64("new"), "value_b64": b64("3"), "etag": None, "ttl": 60},
            {"op": "delete", "key_b64": b64("gone")},
            {"op": "get", "key_b64": b64("gone"), "value_b64": None, "etag": None, "ttl": None},
            {"op": "delete", "key_b64": b64("never")},
            {"op": "put", "key_b64": b64("old"), "etag": '"5"'},
        ],
    }
    assert dict(db) == {b"new": b"3", b"old": b"4"}
    assert 59 < db.ttl("new") <= 60
    etag = answer.json["results"][-1]["etag"]
    assert http("PUT", "/v1/kv/old", b"5", headers={"if-match": etag}).status == 204


def test_a_batch_that_only_writes(door, open_store):
    http = door(db := open_store())
    answer = batch(http, put("a", "1"), put("b", "2"), put("a", "3"), delete("c"))
    assert answer.json["seq"] == 2, "the last write to a key counts"
    assert [result.get("etag") for result in answer.json["results"]] == ['"2"', '"1"', '"2"', None]
    assert dict(db) == {b"a": b"3", b"b": b"2"}
    assert batch(http, delete("never")).json == {"seq": None, "results": [{"op": "delete", "key_b64": b64("never")}]}
    assert batch(http).json == {"seq": None, "results": []}


def test_preconditions_hold_for_all_or_nothing_is_done(door, open_store):
    db = open_store()
    db.update({"a": "1", "b": "2"})
    http = door(db)
    right = [{"key_b64": b64("a"), "etag": '"1"'}, {"key_b64": b64("new"), "etag": None}]
    wrong = [
        {"key_b64": b64("b"), "etag": '"1"'},
        {"key_b64": b64("a"), "etag": None},
        {"key_b64": b64("x"), "etag": '"1"'},
    ]
    failed = batch(http, put("a", "9"), if_=right + wrong)
    assert failed.code == "precondition-failed"
    assert failed.json["failed"] == [
        {"index": 2, "key_b64": b64("b"), "etag": '"2"'},
        {"index": 3, "key_b64": b64("a"), "etag": '"1"'},
        {"index": 4, "key_b64": b64("x"), "etag": None},
    ]
    assert (db["a"], db.last_seq) == (b"1", 2)
    assert batch(http, put("a", "9"), put("new", ""), if_=right).json["seq"] == 4
    assert batch(http, put("a", "9"), if_=right).code == "precondition-failed"
    assert batch(http, get("b"), if_=right).code == "precondition-failed"
    assert batch(http, get("b"), if_=[{"key_b64": b64("b"), "etag": '"2"'}]).json["results"][0]["value_b64"] == b64("2")


def test_gets_are_of_one_moment_and_need_no_writable_store(door, open_store):
    with open_store() as db:
        db.update({"a": "1", "b": "2"})
    http = door(open_store("r"))
    assert [each["value_b64"] for each in batch(http, get("a"), get("x"), get("b")).json["results"]] == [
        "MQ==",
        None,
        "Mg==",
    ]
    assert batch(http, put("a", "x")).code == "read-only"


def test_a_batch_that_is_not_understood_changes_nothing(door, open_store):
    http = door(db := open_store())
    good = json.dumps(put("good", "1")).encode()
    for body in [
        b"",
        b"{",
        b"[]",
        b"null",
        b"7",
        b'"ops"',
        b"{}",
        b"\xff",
        b'{"ops": null}',
        b'{"ops": {}}',
        b'{"ops": [7]}',
        b'{"ops": [], "iff": []}',
        b'{"ops": [], "if": {}}',
        b'{"ops": [[]]}',
        b'{"ops": [{}]}',
        b'{"ops": [{"op": "get"}]}',
        b'{"ops": [{"op": "set", "key_b64": "YQ=="}]}',
        b'{"ops": [{"op": ["get"], "key_b64": "YQ=="}]}',
        b'{"ops": [{"op": "get", "key_b64": "YQ==", "value_b64": ""}]}',
        b'{"ops": [{"op": "put", "key_b64": "YQ=="}]}',
        b'{"ops": [{"op": "put", "key_b64": "YQ==", "value_b64": null}]}',
        b'{"ops": [{"op": "get", "key_b64": "YQ"}]}',
        b'{"ops": [{"op": "get", "key_b64": "Y Q=="}]}',
        b'{"ops": [{"op": "get", "key_b64": "_w=="}]}',
        b'{"ops": [{"op": "get", "key_b64": "\\u00ff"}]}',
        b'{"ops": [{"op": "get", "key_b64": "\\ud800"}]}',
        b'{"ops": [{"op": "get", "key_b64": 7}]}',
        b'{"ops": [{"op": "put", "key_b64": "YQ==", "value_b64": "", "ttl": 0}]}',
        b'{"ops": [{"op": "put", "key_b64": "YQ==", "value_b64": "", "ttl": -1}]}',
        b'{"ops": [{"op": "put", "key_b64": "YQ==", "value_b64": "", "ttl": true}]}',
        b'{"ops": [{"op": "put", "key_b64": "YQ==", "value_b64": "", "ttl": "5"}]}',
        b'{"ops": [{"op": "put", "key_b64": "YQ==", "value_b64": "", "ttl": NaN}]}',
        b'{"ops": [{"op": "put", "key_b64": "YQ==", "value_b64": "", "ttl": 1e999}]}',
        b'{"ops": [{"op": "put", "key_b64": "YQ==", "value_b64": "", "ttl": ' + b"9" * 5000 + b"}]}",
        b'{"ops": [], "if": [{"key_b64": "YQ=="}]}',
        b'{"ops": [], "if": [{"key_b64": "YQ==", "etag": 7}]}',
        b'{"ops": [], "if": [{"key_b64": "YQ==", "etag": "7"}]}',
        b'{"ops": [], "if": [{"key_b64": "YQ==", "etag": "\\"0\\""}]}',
        b'{"ops": [], "if": [{"key_b64": "YQ==", "etag": "*"}]}',
        b"[" * 100_000,
        b'{"ops": [{"op": "put", "key_b64": "' + b64(bytes(65_538)).encode() + b'", "value_b64": ""}]}',
    ]:
        answers = [http("POST", "/v1/batch", body, headers=JSON)]
        if body.startswith(b'{"ops": [{'):
            answers.append(http("POST", "/v1/batch", body.replace(b"[", b"[" + good + b", ", 1), headers=JSON))
        assert [answer.code for answer in answers] == ["malformed"] * len(answers)
        assert db.last_seq == 0


def test_a_member_that_is_there_twice_is_refused(door, open_store):
    """The first of two "ops" was dropped without a word, and the reply was 200."""
    http = door(db := open_store())
    one, other = json.dumps([put("a", "1")]), json.dumps([put("b", "2")])
    for body in (
        f'{{"ops": {one}, "ops": {other}}}',
        '{"ops": [], "if": 1, "if": []}',
        '{"ops": [{"op": "put", "key_b64": "YQ==", "value_b64": "MQ==", "value_b64": "Mg=="}]}',
        '{"ops": [{"op": "put", "op": "delete", "key_b64": "YQ=="}]}',
        '{"ops": [], "if": [{"key_b64": "YQ==", "etag": null, "etag": null}]}',
        '{"ops": [], "\\u006fps": []}',
    ):
        answer = http("POST", "/v1/batch", body.encode(), headers=JSON)
        assert (answer.code, db.last_seq) == ("malformed", 0), body
        assert "twice" in answer.json["detail"]


def test_a_batch_has_a_largest_size(door, open_store, monkeypatch):
    monkeypatch.setattr(operations, "MAX_BATCH_OPS", 10)
    http = door(db := open_store(), max_body_bytes=10_000)
    steps = [put(str(number), "", ttl=1) for number in range(10)]
    conditions = [{"key_b64": b64("a"), "etag": None}] * 10
    assert batch(http, *steps, if_=[{"key_b64": b64("a"), "etag": None}] * 10).status == 200
    assert batch(http, *steps, put("x", "")).code == "too-large"
    assert batch(http, *[get("x")] * 11).code == "too-large"
    assert batch(http, *[put("x", "", ttl=1)] * 10).status == 200
    assert batch(http, if_=[*conditions, conditions[0]]).code == "too-large"
    assert http("POST", "/v1/batch", b'{"ops": [' + b"{}," * 2000 + b"{}]}", headers=JSON).code == "too-large"
    assert http("POST", "/v1/batch", b'{"ops": [' + b"1," * 2000 + b"1]}", headers=JSON).code == "too-large"
    db["big"] = bytes(8_000)
    assert batch(http, get("big")).status == 200
    before = db.last_seq
    assert batch(http, put("x", "1"), get("big"), get("big")).code == "too-large"
    assert db.last_seq == before


def test_a_batch_is_json(door, open_store):
    """A page of another site can make a browser send text/plain; for application/json it has to ask first."""
    http = door(db := open_store())
    body = json.dumps({"ops": [put("a", "1")]}).encode()
    for media_type in (None, "text/plain", "application/x-www-form-urlencoded", "application/jsonp", ""):
        answer = http("POST", "/v1/batch", body, headers={"content-type": media_type})
        assert answer.code == "wrong-media-type", media_type
    assert len(db) == 0
    assert http("POST", "/v1/batch", body, headers={"content-type": "Application/JSON; charset=utf-8"}).status == 200


# --- writers that race -------------------------------------------------------------------------


@pytest.mark.parametrize("sync", ["interval", "always"])
@pytest.mark.parametrize("how", ["put", "batch"])
def test_no_increment_is_lost(door, open_store, sync, how):
    """Each writer reads, adds one, and stores only if nobody has come between; the store counts every success once."""
    db = open_store(sync=sync)
    http = door(db)
    writers, rounds = 8, 12

    async def once(etag: str, count: int) -> int:
        if how == "put":
            condition = {"if-match": etag} if count else {"if-none-match": "*"}
            return (await http.send("PUT", "/v1/kv/n", b"%d" % (count + 1), headers=condition)).status
        document = {"if": [{"key_b64": b64("n"), "etag": etag if count else None}], "ops": [put("n", str(count + 1))]}
        status = (await http.send("POST", "/v1/batch", json.dumps(document).encode(), headers=JSON)).status
        return 204 if status == 200 else status

    async def writer() -> int:
        conflicts = 0
        for _ in range(rounds):
            while True:
                found = await http.send("GET", "/v1/kv/n")
                count = int(found.body) if found.status == 200 else 0
                status = await once(found.headers.get("etag", ""), count)
                if status != 412:
                    break
                conflicts += 1
            assert status in (201, 204)
        return conflicts

    async def all_of_them() -> list[int]:
        return await asyncio.gather(*(writer() for _ in range(writers)))

    conflicts = asyncio.run(all_of_them())
    assert db["n"] == b"%d" % (writers * rounds)
    assert db.last_seq == writers * rounds, "a write that was refused left something behind"
    assert sum(conflicts), "nobody ever came between, so nothing was shown"


@pytest.mark.parametrize("sync", ["interval", "always"])
def test_only_one_creates_and_only_one_deletes(door, open_store, sync):
    db = open_store(sync=sync)
    http = door(db)

    async def at_once(method: str, **more: Any) -> list[int]:
        answers = await asyncio.gather(*(http.send(method, "/v1/kv/k", b"x", **more) for _ in range(16)))
        return sorted(answer.status for answer in answers)

    async def race() -> None:
        for _ in range(5):
            assert await at_once("PUT", headers={"if-none-match": "*"}) == [201] + [412] * 15
            assert await at_once("PUT") == [204] * 16
            etag = (await http.send("GET", "/v1/kv/k")).headers["etag"]
            assert set(await at_once("DELETE", headers={"if-match": etag})) == {204, 404}
            assert await at_once("PUT") == [201] + [204] * 15
            assert await at_once("DELETE") == [204] + [404] * 15

    asyncio.run(race())


def test_nobody_comes_between_a_delete_and_its_condition(open_store):
    """A writer of a newer value has to wait meanwhile: else the delete would take what it was not meant for."""
    db = open_store()
    seq = db.put("k", "1")
    other = threading.Thread(target=db.put, args=(b"k", b"2"))

    class Between(Conditions):
        def require(self, seq: int) -> None:
            super().require(seq)
            other.start()
            other.join(0.2)  # it cannot end yet, and so it takes as long as we like to wait

    assert operations.delete(db, b"k", Between(f'"{seq}"', None))
    other.join()
    assert db["k"] == b"2"


@pytest.mark.parametrize("key", [b"a", b"\xff"])
def test_a_writer_in_the_same_process_comes_between_too(door, open_store, key):
    db = open_store()
    http = door(db)
    etag = http("PUT", f"/v1/kv/{quoted(key)}", b"1").headers["etag"]
    db[key] = b"2"
    assert http("PUT", f"/v1/kv/{quoted(key)}", b"3", headers={"if-match": etag}).status == 412
    assert db[key] == b"2"
