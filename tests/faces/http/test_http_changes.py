"""The change feed over HTTP: lines and events, to the end of the log or along with it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.faces.http.test_http_many import NDJSON
from tests.support.http_client import Client, Exchange

EVENTS = {"accept": "text/event-stream"}


async def lines_until(exchange: Exchange, count: int) -> list[Any]:
    """Wait until so many lines have come; return all of them."""
    while exchange.body.count(b"\n") < count:
        await exchange.piece()
    return [json.loads(line) for line in exchange.body.splitlines() if line]


async def events_until(exchange: Exchange, count: int) -> list[dict[str, str]]:
    """Wait until so many events have come; return all of them, comments and settings left out."""
    while True:
        events = []
        for block in exchange.body.decode().split("\n\n")[:-1]:
            fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
            if "data" in fields:
                events.append(fields)
        if len(events) >= count:
            return events
        await exchange.piece()


def test_the_feed_tells_every_operation_once_and_in_order(door, open_store):
    db = open_store()
    db["a"] = "1"
    db.update({"b": "2", b"\xff": b"\x00"})
    del db["a"]
    db.put("c", "3", expires=4_000_000_000)
    db.clear()
    http = door(db)
    answer = http("GET", "/v1/changes")
    assert answer.headers["content-type"] == "application/x-ndjson"
    a, b = {"key": "a", "key_b64": "YQ=="}, {"key": "b", "key_b64": "Yg=="}
    assert answer.lines == [
        {"seq": 1, "op": "put", **a, "value_b64": "MQ==", "expires": None, "more": False},
        {"seq": 2, "op": "put", **b, "value_b64": "Mg==", "expires": None, "more": True},
        {"seq": 3, "op": "put", "key": None, "key_b64": "/w==", "value_b64": "AA==", "expires": None, "more": False},
        {"seq": 4, "op": "delete", **a, "more": False},
        {"seq": 5, "op": "put", "key": "c", "key_b64": "Yw==", "value_b64": "Mw==", "expires": 4e9, "more": False},
        {"seq": 6, "op": "clear", "more": False},
    ]
    assert [line["seq"] for line in http("GET", "/v1/changes?since=4").lines] == [5, 6]
    assert http("GET", "/v1/changes?since=6").body == b""


def test_a_listing_says_where_the_changes_go_on(door, open_store):
    """A copy elsewhere: first what is there, then what comes; nothing is missing and nothing comes twice."""
    db = open_store()
    http = door(db)
    db.update({"a": "1", "b": "2"})
    for headers in ({}, NDJSON):
        listing = http("GET", "/v1/kv?values=true", headers=headers)
        since = listing.headers["bytekv-seq"]
        assert since == str(db.last_seq)
        db["c"] = "3"
        assert [line["key"] for line in http("GET", f"/v1/changes?since={since}").lines] == ["c"]


def test_changes_that_have_been_compacted_away(door, open_store):
    db = open_store(keep_changes_bytes=0)
    http = door(db)
    for number in range(10):
        db["k"] = str(number)
    db.compact()
    for headers in ({}, EVENTS):
        lost = http("GET", "/v1/changes?since=3", headers=headers)
        assert (lost.status, lost.code, lost.json["first_seq"]) == (410, "changes-lost", 10)
    assert http("GET", "/v1/changes?since=10").body == b""
    future = http("GET", "/v1/changes?since=11")
    assert (future.code, future.json["last_seq"]) == ("changes-lost", 10), "of another history"


def test_a_seq_is_a_plain_number(door):
    http = door()
    for query in ["since=-1", "since=x", "since=", "follow=1", "since=" + "9" * 20, "from=1"]:
        for headers in [{}, EVENTS]:
            assert http("GET", f"/v1/changes?{query}", headers=headers).code == "malformed", query


@pytest.mark.parametrize("headers", [{}, EVENTS], ids=["lines", "events"])
def test_a_follower_is_told_what_comes(door, open_store, headers):
    db = open_store()
    db["a"] = "1"
    http = door(db, poll_interval_s=0.001)

    async def follow() -> None:
        async with http.open("GET", "/v1/changes?follow=true", headers=headers) as exchange:
            wait = events_until if headers else lines_until
            assert len(await wait(exchange, 1)) == 1
            db.update({"b": "2", "c": "3"})
            assert len(await wait(exchange, 3)) == 3
            await http.send("DELETE", "/a")
            found = await wait(exchange, 4)
            if headers:
                assert [(event["id"], event["event"]) for event in found][2:] == [("3", "put"), ("4", "delete")]
                found = [json.loads(event["data"]) for event in found]
            assert [line["seq"] for line in found] == [1, 2, 3, 4]
            assert not exchange.is_complete
            exchange.leave()
            await exchange.finished()

    asyncio.run(follow())
    assert db.stats().pinned_bytes == 0


def test_what_is_written_while_the_feed_looks_comes_once(door, open_store, monkeypatch):
    """The feed notes how far the store has come, and then asks for the changes: one more may have come between."""
    db = open_store()
    http = door(db, poll_interval_s=0.001)
    changes = type(db).changes
    to_come = [b"1", b"2", b"3"]

    def one_more(self: Any, since: int) -> Any:
        if to_come:
            self[b"k"] = to_come.pop(0)
        return changes(self, since)

    monkeypatch.setattr(type(db), "changes", one_more)

    async def follow() -> list[int]:
        async with http.open("GET", "/v1/changes?follow=true") as exchange:
            db["a"] = "1"
            while to_come:
                await lines_until(exchange, 1)
                db["a"] = "2"
                await asyncio.sleep(0.001)
            db["end"] = ""
            while b'"end"' not in exchange.body:
                await exchange.piece()
            return [line["seq"] for line in await lines_until(exchange, 1)]

    seqs = asyncio.run(follow())
    assert seqs == list(range(1, db.last_seq + 1))


def test_events_follow_unless_told_not_to_and_go_on_where_a_client_was(door, open_store):
    db = open_store()
    db.update({"a": "1", "b": "2", "c": "3"})
    http = door(db)
    answer = http("GET", "/v1/changes?follow=false&since=1", headers=EVENTS)
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.body.startswith(b"retry: 2000\n\nid: 2\nevent: put\ndata: {")
    again = http("GET", "/v1/changes?follow=false&since=1", headers=EVENTS | {"last-event-id": "2"})
    assert again.body.count(b"id:") == 1
    assert http("GET", "/v1/changes", headers={"last-event-id": "2"}).body.count(b"\n") == 1
    assert http("GET", "/v1/changes", headers=EVENTS | {"last-event-id": "x"}).code == "malformed"

    async def begins_to_follow(client: Client) -> bool:
        async with client.open("GET", "/v1/changes?since=3", headers=EVENTS) as exchange:
            assert await exchange.piece() == b"retry: 2000\n\n"
            return exchange.is_complete

    assert not asyncio.run(begins_to_follow(http))


def test_a_quiet_feed_shows_now_and_then_that_it_is_there(door, open_store, monkeypatch):
    monkeypatch.setattr("bytekv.http.streams._HEARTBEAT_S", 0.0)
    http = door(open_store(), poll_interval_s=0.001)

    async def listen(headers: dict[str, str]) -> bytes:
        async with http.open("GET", "/v1/changes?follow=true", headers=headers) as exchange:
            while exchange.body.count(b"\n") < 6:
                await exchange.piece()
            return exchange.body

    assert asyncio.run(listen(EVENTS)).startswith(b"retry: 2000\n\n:\n\n:\n\n")
    assert asyncio.run(listen({})).startswith(b"\n\n\n")


@pytest.mark.parametrize("what", ["server", "store"])
def test_a_feed_ends_with_the_server_and_with_the_store(door, open_store, what):
    db = open_store()
    http = door(db, poll_interval_s=0.001)

    async def follow() -> None:
        async with http.open("GET", "/v1/changes", headers=EVENTS) as exchange:
            await exchange.piece()
            http.application.end_streams() if what == "server" else db.close()
            await exchange.finished()
            assert exchange.is_complete

    asyncio.run(follow())


def test_a_slow_reader_holds_back_the_feed_and_nobody_else(door, open_store):
    """The feed is read a slice at a time; what is not asked for stays on disk."""
    db = open_store()
    db.update({f"k{number:04}": bytes(1000) for number in range(3000)})
    http = door(db)

    async def look() -> int:
        async with http.open("GET", "/v1/changes") as exchange:
            await exchange.piece()
            size = len(exchange.body)
            exchange.leave()
            await exchange.finished()
            return size

    assert asyncio.run(look()) < 300_000
