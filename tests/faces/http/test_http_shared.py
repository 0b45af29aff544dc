"""Several workers of a web server: applications on one store that is shared, each with a handle of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import bytekv
from bytekv.http import Application
from tests.faces.http.test_http_changes import lines_until
from tests.support.http_client import Client


@pytest.fixture
def workers(path: Path) -> Iterator[list[Client]]:
    """Two applications; for the locks of the kernel their handles are two processes."""
    with ExitStack() as stack:
        clients = []
        for _ in range(2):
            db = stack.enter_context(bytekv.open(path, shared=True))
            application = Application(db, poll_interval_s=0.001)
            stack.callback(application.close)
            clients.append(Client(application))
        yield clients


def test_each_worker_answers_with_what_the_other_has_stored(workers: list[Client]) -> None:
    one, two = workers
    for number in range(20):
        one("PUT", f"/v1/kv/k{number:02}", b"%d" % number)
        assert two("GET", f"/v1/kv/k{number:02}").body == b"%d" % number
        assert two("DELETE", f"/v1/kv/k{number:02}").status == 204
        assert one("GET", f"/v1/kv/k{number:02}").status == 404


def test_an_entity_tag_holds_in_all_workers(workers: list[Client]) -> None:
    one, two = workers
    tag = one("PUT", "/v1/kv/n", b"1").headers["etag"]
    assert two("GET", "/v1/kv/n", headers={"if-none-match": tag}).status == 304
    assert two("PUT", "/v1/kv/n", b"2", headers={"if-match": tag}).status == 204
    assert one("PUT", "/v1/kv/n", b"3", headers={"if-match": tag}).status == 412
    assert one("PUT", "/v1/kv/n", b"3", headers={"if-none-match": "*"}).status == 412
    assert one("GET", "/v1/kv/n").body == b"2"


def test_a_listing_is_continued_by_any_worker(workers: list[Client]) -> None:
    """Its cursor holds all that the next request needs."""
    one, two = workers
    for number in range(10):
        workers[number % 2]("PUT", f"/v1/kv/{number}", b"x")
    page = one("GET", "/v1/kv?limit=6").json
    rest = two("GET", f"/v1/kv?limit=6&cursor={page['cursor']}").json
    keys = [item if isinstance(item, str) else item["key"] for item in [*page["items"], *rest["items"]]]
    assert keys == [str(number) for number in range(10)]


def test_a_worker_waits_in_its_threads_for_the_transaction_of_another(workers: list[Client], path: Path) -> None:
    """Its event loop goes on answering meanwhile."""
    one, _ = workers
    one("PUT", "/v1/kv/a", b"1")

    async def write_beside_a_transaction() -> None:
        with bytekv.open(path, shared=True) as db:
            with db.transaction() as tx:
                tx["a"] = "2"
                put = asyncio.create_task(one.send("PUT", "/v1/kv/b", b"1"))
                for _ in range(10):
                    assert (await one.send("GET", "/v1/kv/a")).body == b"1"
                assert not put.done()
            assert (await put).status == 201
            assert (await one.send("GET", "/v1/kv/a")).body == b"2"
            assert db["b"] == b"1"

    asyncio.run(write_beside_a_transaction())


def test_a_store_that_another_process_keeps_is_not_available_for_a_while(path: Path) -> None:
    """It was an error of the server, status 500."""
    with bytekv.open(path, shared=True, busy_timeout_s=0.01) as db, bytekv.open(path, shared=True) as other:
        one = Client(Application(db))
        try:
            db["a"] = "1"
            with other.transaction():
                for method, body in (("PUT", b"2"), ("DELETE", b"")):
                    answer = one(method, "/v1/kv/a", body)
                    assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "unavailable", "1")
                    assert str(path) not in answer.json["detail"]
                assert one("GET", "/v1/kv/a").body == b"1"
            assert one("PUT", "/v1/kv/a", b"2").status == 204
        finally:
            one.application.close()


def test_the_feed_of_one_worker_tells_what_comes_at_another(workers: list[Client]) -> None:
    one, two = workers

    async def follow() -> None:
        async with one.open("GET", "/v1/changes?follow=true") as exchange:
            for number in range(1, 6):
                await two.send("PUT", f"/v1/kv/{number}", b"x")
                lines = await lines_until(exchange, number)
                assert [line["key"] for line in lines] == [str(seen) for seen in range(1, number + 1)], json.dumps(
                    lines
                )
            exchange.leave()
            await exchange.finished()

    asyncio.run(follow())
