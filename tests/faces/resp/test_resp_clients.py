"""The clients and libraries that people use, out of the box; each is skipped where it is not installed.

The Python ones are in the extra ``test-resp``. Those of Node.js are looked for where NODE_PATH says:
``npm install redis ioredis``.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bytekv.resp import Server
from tests.support.resp_harness import Client, request

SECONDS = 60
SCRIPTS = Path(__file__).parents[2] / "clients"

pytestmark = pytest.mark.filterwarnings("ignore")  # what other people's libraries warn of is theirs


@pytest.fixture
def server(open_store) -> Iterator[Server]:
    with Server(open_store(), port=0) as server:
        yield server


def library(name: str) -> Any:
    """Import a client, or skip the test."""
    return pytest.importorskip(name, reason=f"{name} is not installed")


def run(*command: str, given: bytes = b"", **environment: str) -> str:
    """Run a program to its end and return what it prints."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, input=given, capture_output=True, timeout=SECONDS, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


# --- programs ----------------------------------------------------------------------------------


def test_redis_cli(server):
    def cli(*arguments: str, given: bytes = b"") -> str:
        return run("redis-cli", "-p", str(server.address[1]), *arguments, given=given)

    assert cli("SET", "colour", "blue") == "OK\n"
    assert cli("GET", "colour") == "blue\n"
    assert cli("-3", "GET", "none") == "\n"
    assert cli("--no-raw", "MGET", "colour", "none") == '1) "blue"\n2) (nil)\n'
    assert cli("-x", "SET", "binary", given=bytes(range(256))) == "OK\n"
    assert cli("STRLEN", "binary") == "256\n"
    assert cli(given=b"SET a 1\nINCR a\nNOSUCH\n").split("\n")[:2] == ["OK", "2"]
    assert sorted(cli("--scan", "--pattern", "[ab]*").split()) == ["a", "binary"]
    assert "errors: 0, replies: 1000" in cli("--pipe", given=b"".join(request("SET", f"n:{n}", n) for n in range(1000)))
    assert "errors: 0, replies: 3" in cli("--pipe", given=b"SET i 1\r\n\r\nSET j 2\r\nSET k 3\r\n")
    assert "1006 strings with 3154 bytes" in cli("--bigkeys")
    assert "1006 strings" in cli("--memkeys")
    assert cli("INFO", "server").startswith("# Server")
    assert cli("SHUTDOWN") == ""


def test_redis_cli_for_a_person(server):
    """On a terminal it asks COMMAND DOCS for its hints."""
    if shutil.which("redis-cli") is None:
        pytest.skip("redis-cli is not installed")
    ours, theirs = pty.openpty()
    command = ["redis-cli", "-p", str(server.address[1])]
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "dumb"}
    ) as shell:
        os.close(theirs)
        said = b""
        for line in (b"SET colour blue\n", b"GET colour\n", b"HELP GET\n", b"QUIT\n"):
            os.write(ours, line)
        while select.select([ours], [], [], SECONDS)[0]:
            try:
                piece = os.read(ours, 4096)
            except OSError:
                break  # how a terminal says that the other side is gone
            said += piece
        os.close(ours)
        assert shell.wait(SECONDS) == 0
    assert b'"blue"' in said
    assert b"Return a value." in said


@pytest.mark.parametrize("pipeline", [1, 16])
def test_redis_benchmark(server, pipeline):
    tests = "ping_inline,ping_mbulk,set,get,incr,mset"
    options = ["-t", tests, "-n", "2000", "-c", "10", "-P", str(pipeline), "-r", "100", "--csv"]
    lines = run("redis-benchmark", "-p", str(server.address[1]), *options).splitlines()
    assert len(lines) == 7
    assert all(float(line.split(",")[1].strip('"')) > 0 for line in lines[1:])


@pytest.mark.parametrize("package", ["redis", "ioredis"])
def test_node(server, package):
    run("node", "--version")
    found = subprocess.run(["node", "-e", f"require.resolve('{package}')"], capture_output=True, timeout=SECONDS)
    if found.returncode:
        pytest.skip(f"{package} is not installed where NODE_PATH says")
    script = SCRIPTS / ("node_redis.cjs" if package == "redis" else "ioredis.cjs")
    assert run("node", str(script), server.url) == "ok\n"


# --- Python ------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("name", ["redis", "valkey"])
def test_redis_py_and_valkey_py(server, name, protocol):
    module = library(name)
    client_class = module.Redis if name == "redis" else module.Valkey
    with client_class(port=server.address[1], protocol=protocol) as client:
        assert client.ping()
        assert client.set("colour", "blue", ex=100)
        assert client.get("colour") == b"blue"
        assert client.ttl("colour") == 100
        assert client.get("none") is None
        assert client.set("colour", "red", nx=True) is None
        assert client.set("colour", "red", xx=True, get=True) == b"blue"
        assert client.mset({"a": 1, "b": 2})
        assert client.mget("a", "none", "b") == [b"1", None, b"2"]
        assert client.incrbyfloat("a", 0.5) == 1.5
        assert client.exists("a", "b", "none") == 2
        assert client.getex("b", persist=True) == b"2"
        assert client.expire("a", 10, nx=True)
        assert client.type("a") == b"string"
        assert sorted(client.keys("[ab]")) == [b"a", b"b"]
        client.mset({f"n:{number}": number for number in range(100)})
        assert sorted(client.scan_iter("n:*", count=7)) == sorted(b"n:%d" % number for number in range(100))
        assert client.delete("a", "b", "none") == 2
        assert client.info()["server_name"] == "bytekv"
        assert client.info("keyspace")["db0"]["keys"] == client.dbsize() == 101
        assert client.config_get("save") == {"save": ""}
        assert client.client_list()[0]["db"] in ("0", 0)
        assert client.execute_command("BKV.RANGE", "n:98", "", "WITHVALUES")[:2] == [b"n:98", b"98"]
        with pytest.raises(module.ResponseError, match="bytekv has no lists"):
            client.lpush("list", 1)

        with client.pipeline() as pipe:
            assert pipe.set("a", 1).incr("a").get("a").execute() == [True, 2, b"2"]
        with client.pipeline(transaction=False) as pipe:
            assert pipe.set("a", 1).incr("a").get("none").execute() == [True, 2, None]
        with client.pipeline() as pipe:
            pipe.watch("a")
            client.set("a", "changed")
            with pytest.raises(module.WatchError):
                pipe.multi()
                pipe.set("a", "lost").execute()
        assert client.transaction(lambda pipe: (pipe.multi(), pipe.set("a", 1)), "a")

        lock = client.lock("lock", timeout=10)
        assert lock.acquire(blocking=False)
        assert not client.lock("lock").acquire(blocking=False)
        token = lock.local.token
        with pytest.raises(module.ResponseError, match="scripts"):
            lock.release()  # it runs a script; this does the same:
        assert client.execute_command("DELEX", "lock", "IFEQ", token) == 1
        assert client.flushall()
        assert client.dbsize() == 0


@pytest.mark.parametrize("name", ["redis", "valkey"])
def test_asyncio_clients(server, name):
    library(name)
    module = importlib.import_module(f"{name}.asyncio")

    async def main() -> None:
        async with getattr(module, name.capitalize())(port=server.address[1], decode_responses=True) as client:
            await client.set("n", 0)
            await asyncio.gather(*(client.incr("n") for _ in range(50)))
            assert await client.get("n") == "50"
            async with client.pipeline() as pipe:
                assert await pipe.get("n").incr("n").execute() == ["50", 51]
            assert [key async for key in client.scan_iter()] == ["n"]

    asyncio.run(main())


def test_redis_py_with_a_password(open_store):
    redis = library("redis")
    with Server(open_store(), port=0, password="secret") as server:
        with redis.Redis.from_url(f"redis://:secret@127.0.0.1:{server.address[1]}") as client:
            assert client.set("k", "v")
        never = importlib.import_module("redis.retry").Retry(importlib.import_module("redis.backoff").NoBackoff(), 0)
        for options in ({"password": "wrong"}, {}):
            with redis.Redis(port=server.address[1], retry=never, **options) as client:
                with pytest.raises(redis.AuthenticationError):
                    client.get("k")


def test_redis_py_from_many_threads(server):
    redis = library("redis")
    with redis.Redis(port=server.address[1]) as client:

        def count() -> None:
            for _ in range(100):
                client.incr("n")

        threads = [threading.Thread(target=count) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert client.get("n") == b"800"


def test_coredis(server):
    coredis = library("coredis")

    async def main() -> None:
        client = coredis.Redis(port=server.address[1])
        async with client:
            assert await client.set("colour", "blue", ex=100)
            assert await client.get("colour") == b"blue"
            assert await client.mget(["colour", "none"]) == (b"blue", None)
            assert await client.incrby("n", 5) == 5
            async with client.pipeline(transaction=True) as pipe:
                results = [pipe.set("a", "1"), pipe.incr("a")]
            assert [await each for each in results] == [True, 2]
            assert sorted([key async for key in client.scan_iter()]) == [b"a", b"colour", b"n"]

    asyncio.run(main())


# --- libraries on top --------------------------------------------------------------------------


def test_djangos_cache(server):
    library("redis")
    library("django")
    from django.core.cache.backends.redis import RedisCache

    cache = RedisCache(server.url, {"KEY_PREFIX": "site", "VERSION": 2})
    try:
        cache.set("page", {"title": "Hello"}, timeout=100)
        assert cache.get("page") == {"title": "Hello"}
        assert cache.get("none", "default") == "default"
        assert cache.add("page", 1) is False
        assert cache.add("count", 1)
        assert cache.incr("count", 5) == 6
        assert cache.decr("count") == 5
        cache.set_many({"a": 1, "b": [2]}, timeout=None)
        assert cache.get_many(["a", "b", "none"]) == {"a": 1, "b": [2]}
        assert cache.touch("a", 10)
        assert cache.has_key("a")
        assert cache.delete("a")
        cache.delete_many(["b", "page"])
        cache.set("gone", 1, timeout=0)
        assert cache.get("gone") is None
        assert cache.get_or_set("made", lambda: 7) == 7
        with Client(server.address) as client:
            assert client("TTL", "site:2:made") == b":300\r\n"
        cache.clear()
        assert cache.get("count") is None
    finally:
        cache.close()
        cache._cache.get_client().connection_pool.disconnect()


def test_cachelib(server):
    redis = library("redis")
    library("cachelib")
    from cachelib import RedisCache

    with redis.Redis(port=server.address[1]) as client:
        cache = RedisCache(client, default_timeout=100, key_prefix="site:")
        assert cache.set("page", {"title": "Hello"})
        assert cache.get("page") == {"title": "Hello"}
        assert not cache.add("page", 1)
        assert cache.add("other", 1)
        assert cache.set_many({"a": 1, "b": [2]})
        assert cache.get_many("a", "none", "b") == [1, None, [2]]
        assert cache.get_dict("a") == {"a": 1}
        assert cache.has("a")
        assert cache.inc("n", 5) == 5
        assert cache.dec("n") == 4
        assert cache.delete_many("a", "b")
        assert cache.set("for ever", 1, timeout=0)
        assert client.ttl("site:for ever") == -1
        assert client.ttl("site:page") == 100
        client.set("unrelated", 1)
        assert cache.clear()
        assert client.keys() == [b"unrelated"]


def test_aiocache(server):
    library("redis")
    library("aiocache")
    try:
        from aiocache import RedisCache
    except ImportError as error:
        pytest.skip(f"aiocache without its Redis backend: {error}")

    async def main() -> None:
        async with RedisCache(endpoint="127.0.0.1", port=server.address[1], namespace="site") as cache:
            assert await cache.set("page", "Hello", ttl=100)
            assert await cache.get("page") == "Hello"
            assert await cache.get("none", "default") == "default"
            with pytest.raises(ValueError, match="exists"):
                await cache.add("page", "other")
            assert await cache.multi_set([("a", 1), ("b", "2")], ttl=100)
            assert await cache.multi_get(["a", "none", "b"]) == [1, None, "2"]
            assert await cache.increment("n", 5) == 5
            assert await cache.exists("n")
            assert await cache.expire("n", 10)
            assert await cache.delete("n") == 1
            assert await cache.clear(namespace="site")
            assert not await cache.exists("page")

    asyncio.run(main())


# --- the example -------------------------------------------------------------------------------


def test_the_example_counts_on_where_it_stopped(path):
    library("redis")
    example = Path(__file__).parents[3] / "examples" / "redis_drop_in.py"
    assert len(example.read_text().splitlines()) <= 80
    root = str(example.parent.parent)
    printed = [run(sys.executable, str(example), str(path), PYTHONPATH=root) for _ in range(2)]
    assert "visit 1 by Ann\nvisit 2 by Bob\n" in printed[0]
    assert "visit 3 by Ann\nvisit 4 by Bob\n" in printed[1]
    for each in printed:
        assert "... cleaning up\ncleaned up: True\n" in each
        assert re.search(r"kept for another \d+ seconds", each)
    assert "visits:front = 4, last Bob" in printed[1]
