"""examples/notes_asgi.py: an application of its own, and the door mounted below it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType

import pytest

import bytekv
from tests.support.http_client import Client

FILE = Path(__file__).resolve().parents[3] / "examples" / "notes_asgi.py"


@pytest.fixture
def notes_asgi() -> ModuleType:
    spec = importlib.util.spec_from_file_location("notes_asgi", FILE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.asynccontextmanager
async def lifespan(application: object) -> AsyncIterator[None]:
    """Start and end an application as a server does."""
    told: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    heard: asyncio.Queue[str] = asyncio.Queue()

    async def send(message: dict[str, str]) -> None:
        heard.put_nowait(message["type"])

    task = asyncio.ensure_future(application({"type": "lifespan"}, told.get, send))  # type: ignore[operator]
    told.put_nowait({"type": "lifespan.startup"})
    assert await heard.get() == "lifespan.startup.complete"
    yield
    told.put_nowait({"type": "lifespan.shutdown"})
    assert await heard.get() == "lifespan.shutdown.complete"
    await task


def test_the_notes(notes_asgi, path):
    application = notes_asgi.Notes(str(path))
    http = Client(application)

    async def use() -> None:
        async with lifespan(application):
            added = await asyncio.gather(*(http.send("POST", "/", b"note %d" % number) for number in range(10)))
            assert sorted(int(answer.body) for answer in added) == list(range(1, 11)), "no number is given twice"
            assert (await http.send("GET", "/")).body.count(b"\n") == 10
            listed = await http.send("GET", "/kv/v1/kv?prefix=note:")
            assert [item["key"] for item in listed.json["items"]] == [f"note:{number:08}" for number in range(1, 11)]
            assert (await http.send("PUT", "/kv/note:00000001", [b"changed ", b"through the door"])).status == 200
            assert (await http.send("GET", "/")).body.endswith(b"\nchanged through the door\n")
            assert (await http.send("GET", "/kv/")).headers["location"] == "/kv/-/console"
            assert (await http.send("GET", "/other")).status == 404
            assert (await http.send("POST", "/", [bytes(40_000)] * 3)).status == 413
            async with http.open("POST", "/", [b"half a no"], ends=False) as exchange:
                exchange.leave()
                await exchange.finished()

    asyncio.run(use())
    with bytekv.open(path, "r") as db:
        assert db["notes"] == b"10"
        assert len(db) == 11


def test_the_example_is_short():
    assert len(FILE.read_text(encoding="utf-8").splitlines()) <= 80
