"""The store seen from outside: statistics, metrics, compaction, sync, health, the document that describes it all."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bytekv.http import application
from bytekv.http.application import Application
from bytekv.http.openapi import DOCUMENT
from bytekv.http.problem import PROBLEMS
from bytekv.http.routes import ROUTES
from tests.faces.http.test_http_many import b64, batch, get, put
from tests.support.harness import open_store as open_at

PAGE = (Path(__file__).parents[3] / "docs/reference/http.md").read_text(encoding="utf-8")

# --- statistics and administration -------------------------------------------------------------


def test_statistics(door, open_store):
    db = open_store(segment_size_bytes=400)
    db.update({f"k{number}": bytes(50) for number in range(20)})
    db["k1"] = "new"
    http = door(db)
    http("GET", "/k1")
    found = http("GET", "/v1/stats").json
    stats = db.stats()
    assert {name: found[name] for name in ("keys", "last_seq", "total_bytes", "live_bytes", "dead_bytes")} == {
        "keys": 20,
        "last_seq": 21,
        "total_bytes": stats.total_bytes,
        "live_bytes": stats.live_bytes,
        "dead_bytes": stats.dead_bytes,
    }
    assert found["segments"] == [row._asdict() for row in stats.segments]
    assert len(found["segments"]) == 2
    assert found["compaction"] is None
    assert found["requests"] == {"get_text": 1}


def test_compaction_tells_what_it_won(door, open_store):
    db = open_store(segment_size_bytes=4000)
    for number in range(100):
        db["k"] = bytes(100) + b"%d" % number
    http = door(db)
    before = db.stats().total_bytes
    done = http("POST", "/v1/admin/compact").json
    assert done["bytes_before"] == before
    assert done["bytes_after"] == db.stats().total_bytes
    assert done["reclaimed_bytes"] == done["bytes_before"] - done["bytes_after"] > 10_000
    assert http("GET", "/v1/stats").json["compactions"] == 1


def test_a_compaction_shows_its_progress_and_holds_nobody_up(door, open_store, monkeypatch):
    db = open_store(segment_size_bytes=4000)
    for number in range(100):
        db[f"k{number % 10}"] = bytes(100) + b"%d" % number
    http = door(db)
    reached, go = threading.Event(), threading.Event()
    compact = type(db).compact

    def compact_slowly(self: Any, *, progress: Any) -> Any:
        def pause(state: Any) -> None:
            progress(state)
            reached.set()
            assert go.wait(60)

        return compact(self, progress=pause)

    monkeypatch.setattr(type(db), "compact", compact_slowly)

    async def look_on() -> tuple[Any, Any]:
        async with http.open("POST", "/v1/admin/compact") as exchange:
            await asyncio.to_thread(reached.wait, 60)
            running = (await http.send("GET", "/v1/stats")).json["compaction"]
            assert (await http.send("POST", "/v1/admin/compact")).code == "already-running"
            assert (await http.send("GET", "/k1")).status == 200
            assert (await http.send("PUT", "/new", b"1")).status == 200
            go.set()
            await exchange.finished()
            return running, exchange.answer.json

    running, done = asyncio.run(look_on())
    assert 0 < running["done_bytes"] <= running["total_bytes"]
    assert done["reclaimed_bytes"] > 0
    assert http("GET", "/v1/stats").json["compaction"] is None
    assert http("POST", "/v1/admin/compact").status == 200


def test_a_compaction_does_not_hold_up_the_end(door, open_store):
    db = open_store(segment_size_bytes=4000)
    for number in range(400):
        db[f"k{number % 100}"] = bytes(100) + b"%d" % number
    http = door(db)
    content = dict(db)
    http.application.end_streams()
    answer = http("POST", "/v1/admin/compact")
    assert (answer.code, dict(db), db.stats().compactions) == ("unavailable", content, 0)
    assert db.verify().ok


def test_sync(door, open_store):
    db = open_store(sync="os")
    http = door(db)
    http("PUT", "/k", b"1")
    assert db.durable_seq == 0
    assert http("POST", "/v1/admin/sync").json == {"durable_seq": 1}
    assert db.durable_seq == 1


def test_writers_who_wait_hold_up_neither_the_loop_nor_the_readers(door, open_store):
    """An application has a transaction open; those who write over HTTP wait for it, and nobody else does."""
    db = open_store()
    db["k"] = "1"
    http = door(db)

    async def read_beside_waiting_writers() -> None:
        async with asyncio.TaskGroup() as group:
            with db.transaction() as tx:
                writers = [group.create_task(http.send("PUT", f"/w{number}", b"x")) for number in range(50)]
                for _ in range(20):
                    assert (await http.send("GET", "/k")).body == b"1"
                assert not any(writer.done() for writer in writers)
                tx["k"] = "2"
            assert {(await writer).status for writer in writers} == {200}

    asyncio.run(read_beside_waiting_writers())
    assert (db["k"], len(db)) == (b"2", 51)


# --- metrics -----------------------------------------------------------------------------------

_SAMPLE = re.compile(r'([a-z_]+)(?:\{((?:[a-z_]+="[^"\\\n]*",?)*)\})? ([0-9.e+-]+|\+Inf)')


def samples(text: str) -> dict[str, float]:
    """Read the text format strictly: a HELP and a TYPE before each family, every sample once, a newline at the end."""
    found: dict[str, float] = {}
    family, kinds = "", {}
    assert text.endswith("\n")
    for line in text.removesuffix("\n").split("\n"):
        if line.startswith("# HELP "):
            family = line.split(" ")[2]
            assert family not in kinds
        elif line.startswith("# TYPE "):
            _, _, name, kinds[name] = line.split(" ")
            assert name == family
        else:
            match = _SAMPLE.fullmatch(line)
            assert match, line
            suffix = match[1].removeprefix(family)
            assert suffix in (("_bucket", "_sum", "_count") if kinds[family] == "histogram" else ("",)), line
            assert line.rpartition(" ")[0] not in found
            found[line.rpartition(" ")[0]] = float(match[3])
    return found


def test_metrics(door, open_store):
    db = open_store()
    db.update({"a": "1", "b": "2"})
    http = door(db)
    for url in ("/a", "/b", "/none", "/%zz", "/v1/nothing"):
        http("GET", url)
    answer = http("GET", "/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = samples(answer.body.decode())
    assert (found["bytekv_keys"], found["bytekv_last_seq"], found["bytekv_segments"]) == (2, 2, 1)
    assert found['bytekv_bytes{state="live"}'] == db.stats().live_bytes
    assert found["bytekv_http_requests_in_flight"] == 1
    assert found['bytekv_http_requests_total{operation="get_text",status="200"}'] == 2
    assert found['bytekv_http_requests_total{operation="get_text",status="404"}'] == 1
    assert found['bytekv_http_requests_total{operation="none",status="400"}'] == 1
    assert found['bytekv_http_requests_total{operation="none",status="404"}'] == 1
    assert found['bytekv_http_request_seconds_count{operation="get_text"}'] == 3
    assert found['bytekv_http_request_seconds_bucket{operation="get_text",le="+Inf"}'] == 3
    buckets = [
        value for name, value in found.items() if name.startswith('bytekv_http_request_seconds_bucket{operation="get_t')
    ]
    assert buckets == sorted(buckets)
    assert samples(http("GET", "/metrics").body.decode())["bytekv_http_requests_in_flight"] == 1


def test_health(door):
    http = door()
    assert http("GET", "/-/healthy").json == {"status": "ok"}
    assert http("GET", "/-/ready").json == {"status": "ok", "readonly": False}


# --- the document ------------------------------------------------------------------------------


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in DOCUMENT["paths"].items():
        for method, operation in item.items():
            if method != "parameters":
                yield method.upper(), path, operation


def test_the_document_has_the_rows_of_the_table():
    described = {
        (
            method,
            path,
            tuple(allowed["bearer"][0] for allowed in operation["security"]),
            operation["operationId"],
        )
        for method, path, operation in operations()
    }
    assert described == {tuple(route) for route in ROUTES}


def test_every_row_has_its_method():
    assert application._OPERATIONS.keys() == {route.operation for route in ROUTES}


def test_every_reference_leads_somewhere():
    text = json.dumps(DOCUMENT)
    references = set(re.findall(r'"\$ref": "#/components/(\w+)/(\w+)"', text))
    for kind, name in references:
        assert name in DOCUMENT["components"][kind]
    named = {(kind, name) for kind in ("schemas", "responses") for name in DOCUMENT["components"][kind]}
    assert named - references <= {("responses", "Problem409"), ("responses", "Problem410")}


def test_every_problem_of_the_list_is_described():
    assert DOCUMENT["components"]["schemas"]["Problem"]["properties"]["code"]["enum"] == [*PROBLEMS]
    described = set(DOCUMENT["components"]["responses"])
    assert described == {f"Problem{status}" for status, _ in PROBLEMS.values()}


def test_the_document_is_served(door):
    assert door()("GET", "/v1/openapi.json").json == json.loads(json.dumps(DOCUMENT))


def test_what_comes_back_is_what_the_document_says(door, open_store):
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    db = open_store()
    db.put("a", "1", ttl=60)
    db[b"\xff"] = "2"
    http = door(db)
    cases = [
        ("Page", http("GET", "/v1/kv?values=true")),
        ("Page", http("GET", "/v1/kv?limit=1")),
        ("Stats", http("GET", "/v1/stats")),
        ("BatchResult", batch(http, put("x", "1"), get("x"), get("a"), {"op": "delete", "key_b64": b64("x")})),
        ("Compaction", http("POST", "/v1/admin/compact")),
        ("Problem", http("GET", "/none")),
        ("Problem", http("POST", "/x")),
        ("Problem", batch(http, {"op": "x"})),
    ]
    for name, answer in cases:
        schema = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
        jsonschema.Draft202012Validator(schema).validate(answer.json)


# --- the reference page ------------------------------------------------------------------------


def rows(title: str) -> list[list[str]]:
    """Return the rows of the table of the page whose first column has a title."""
    found = re.search(rf"^\| {title} \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert found, title
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))] for line in found[1].splitlines()
    ]


def test_the_page_has_the_rows_of_the_table():
    written = {(cells[0].strip("`"), cells[1]) for cells in rows("request")}
    assert written == {(f"{route.method} {route.path}", " or ".join(route.scopes) or "—") for route in ROUTES}


def test_the_page_has_every_problem():
    written = {cells[1].strip("`"): int(cells[0]) for cells in rows("status")}
    assert written == {code: status for code, (status, _) in PROBLEMS.items()}


def test_the_page_has_the_parameters_of_each_request():
    queries = {cells[0].strip("`"): set(re.findall(r"`([a-z]+)`", cells[2])) for cells in rows("request")}
    for method, path, operation in operations():
        named = {each["name"] for each in operation.get("parameters", []) if each["in"] == "query"}
        assert queries[f"{method} {path}"] == named, path


def test_the_curl_lines_of_the_page_are_the_ones_of_the_issue():
    assert "curl http://127.0.0.1:8080/greeting\n" in PAGE


def test_the_scopes_and_defaults_of_the_page(path):
    with open_at(path) as db:
        application = Application(db)
        assert f"{application._max_body_bytes // 2**20} MiB" in PAGE
        assert f"{application._max_requests} requests" in PAGE
        application.close()
