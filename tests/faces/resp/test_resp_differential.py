"""Random commands, sent to bytekv and to Redis: the replies are the same, byte for byte.

What is known to differ, and therefore not sent or compared here, is listed in docs/reference/resp.md under
"Differences from Redis".
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
from collections.abc import Iterator
from itertools import pairwise

import pytest

import bytekv
from bytekv.resp import Server
from tests.support.resp_harness import (
    KEYS,
    Argument,
    Client,
    Commands,
    Reply,
    items,
    parts,
    redis_server,
    request,
    same,
)

pytestmark = pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    with redis_server(tmp_path_factory.mktemp("redis")) as address:
        yield address


def same_block(commands: list[list[Argument]], ours: Reply, theirs: Reply) -> bool:
    """Compare the replies of EXEC, those to each command on its own."""
    ours_each, theirs_each = parts(ours), parts(theirs)
    return len(ours_each) == len(theirs_each) == len(commands) and all(map(same, commands, ours_each, theirs_each))


def compare(ours: Client, theirs: Client, seed: int, count: int) -> None:
    """Send the same commands to both; complain about the first difference with what led to it."""
    commands = Commands(seed)
    told: list[str] = []
    queued: list[list[Argument]] | None = None
    for _ in range(count):
        command = commands.one()
        if str(command[0]).upper() == "WATCH" and queued is None:
            for key in command[1:]:  # bytekv does not see that a missing key came and went again
                assert ours("SETNX", key, "x") == theirs("SETNX", key, "x")
        mine, wanted = ours(*command), theirs(*command)
        told.append(f"{[repr(each)[:60] for each in command]} -> {mine[:100]!r}")
        name = str(command[0]).upper()
        right = same(command, mine, wanted)
        if queued is not None and name == "EXEC":
            right = right or same_block(queued, mine, wanted)
        assert right, f"seed {seed}: Redis said {wanted[:300]!r}\n" + "\n".join(told[-12:])
        if wanted == b"+QUEUED\r\n" and queued is not None:
            queued.append(command)
        elif name == "MULTI" and wanted == b"+OK\r\n":
            queued = []
        elif name in ("EXEC", "DISCARD") and len(command) == 1:
            queued = None
    for client in (ours, theirs):
        client("DISCARD")
    scanned = [scan(client) for client in (ours, theirs)]
    assert scanned[0] == scanned[1]
    for key in KEYS:
        assert ours("GET", key) == theirs("GET", key), f"seed {seed}: key {key!r}"


def scan(client: Client) -> set[bytes]:
    """Return all keys by SCAN."""
    found: set[bytes] = set()
    cursor = b"0"
    while True:
        reply = parts(client("SCAN", cursor, "COUNT", 2))
        found |= set(items(reply[1]))
        cursor = items(b"*1\r\n" + reply[0])[0]
        if cursor == b"0":
            return found


def run(open_store, redis, seed: int, count: int, *, resp3: bool, **options: bool) -> None:
    with Server(open_store(), port=0, **options) as server, Client(server.address) as ours, Client(redis) as theirs:
        theirs("FLUSHALL")
        if resp3:
            ours("HELLO", 3)
            theirs("HELLO", 3)
        compare(ours, theirs, seed, count)


@pytest.mark.parametrize("seed", range(6))
def test_random_commands(open_store, redis, seed):
    run(open_store, redis, seed, 2000, resp3=seed % 2 == 1)


def test_random_commands_with_group_commit(open_store, redis):
    """The same through the batches that share a sync."""
    run(lambda: open_store(sync="always"), redis, 100, 1500, resp3=True, group_commit=True)


@pytest.mark.deep
def test_random_commands_for_long(open_store, redis, path):
    for seed in range(1000, 1000 + int(os.environ.get("BYTEKV_DEEP_SECONDS", "60"))):  # each takes about one
        sync = "always" if seed % 3 == 2 else "interval"
        store = open_store(at=path.with_name(str(seed)), sync=sync)
        run(lambda store=store: store, redis, seed, 3000, resp3=seed % 2 == 1, group_commit=sync == "always")
        store.close()


@pytest.mark.parametrize("sync", ["interval", "always"])
def test_random_pipelines(open_store, redis, sync):
    """Many commands in one write, cut up anywhere, blocks and watched keys included: the same replies and effects."""
    compare_pipelines(open_store(sync=sync), redis, 7, 40)


@pytest.mark.deep
def test_random_pipelines_for_long(open_store, redis, path):
    for seed in range(1000, 1000 + int(os.environ.get("BYTEKV_DEEP_SECONDS", "60"))):  # each takes about one
        for sync in ("interval", "always"):
            store = open_store(at=path.with_name(f"{seed} {sync}"), sync=sync)
            compare_pipelines(store, redis, seed, 40)
            store.close()


def compare_pipelines(store: bytekv.Store, redis: tuple[str, int], seed: int, count: int) -> None:
    chance = random.Random(seed)
    commands = Commands(seed)
    with Server(store, port=0) as server, Client(server.address) as ours, Client(redis) as theirs:
        theirs("FLUSHALL")
        for _ in range(count):
            pipeline = [each for _ in range(40) for each in with_transactions(commands, chance)]
            data = b"".join(request(*each) for each in pipeline)
            cuts = sorted(chance.randrange(len(data)) for _ in range(chance.randrange(4)))
            for start, stop in pairwise([0, *cuts, len(data)]):
                ours.send(data[start:stop])
                asyncio.run_coroutine_threadsafe(asyncio.sleep(0), server.loop).result()  # it looks at this first
            theirs.send(data)
            queued: list[list[Argument]] | None = None
            told = f"seed {seed}\n"
            for command in pipeline:
                mine, wanted = ours.reply(), theirs.reply()
                told += f"{[repr(each)[:60] for each in command]} -> {mine[:100]!r}, Redis {wanted[:100]!r}\n"
                name = str(command[0]).upper()
                right = same(command, mine, wanted)
                if name == "EXEC" and queued is not None:
                    right = right or same_block(queued, mine, wanted)
                assert right, told
                if wanted == b"+QUEUED\r\n" and queued is not None:
                    queued.append(command)
                elif name == "MULTI" and wanted == b"+OK\r\n":
                    queued = []
                elif name in ("EXEC", "DISCARD") and len(command) == 1:
                    queued = None
        for client in (ours, theirs):
            client("DISCARD")
        for key in KEYS:
            assert ours("GET", key) == theirs("GET", key), f"seed {seed}: key {key!r}"


def with_transactions(commands: Commands, chance: random.Random) -> list[list[Argument]]:
    """Make some commands: one, or one that is about a block or about watched keys."""
    if chance.random() < 0.6:
        made = commands.one()
        while str(made[0]).upper() == "WATCH":
            made = commands.one()
        return [made]
    key = commands.key()
    # bytekv does not see that a missing key which is watched came and went again.
    return chance.choice(
        [[["MULTI"]], [["EXEC"]], [["EXEC"]], [["UNWATCH"]], [["DISCARD"]], [["SETNX", key, "x"], ["WATCH", key]]]
    )


MALFORMED = [
    b"*1\r\n$4\r\nPING\r\n*x\r\n",
    b"*+1\r\n",
    b"* 1\r\n",
    b"*01\r\n$4\r\nPING\r\n",
    b"*-5\r\n*0\r\n\r\nPING\r\n",
    b"*1_0\r\n",
    b"*1\r\n:4\r\n",
    b"*1\r\nPING\r\n",
    b"*1\r\n$x\r\n",
    b"*1\r\n$-1\r\n",
    b"*1\r\n$+4\r\nPING\r\n",
    b"*1\r\n$ 4\r\nPING\r\n",
    b"*1\r\n$536870913\r\n",
    b"*99999999999\r\n",
    b'SET a "unbalanced\r\n',
    b"SET a 'x'y\r\n",
    b"SET 'a\\'b' \"\\x41\\n\\q\"\r\nGET 'a\\'b'\n",
    b"\r\n\r\n  \r\nPING\r\nECHO  hi  \r\n",
    b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"PING\r\nQUIT\r\nPING\r\n",
]
ENDLESS = [b"*" + b"1" * 70_000, b"*1\r\n$" + b"1" * 70_000, b"A" * 70_000]


def test_malformed_requests_get_the_same_last_words(open_store, redis):
    with Server(open_store(), port=0) as server:
        for data in [*(data + b"*x\r\n" for data in MALFORMED), *ENDLESS]:  # each of them ends the connection
            replies = []
            for address in (server.address, redis):
                with Client(address) as client:
                    client("FLUSHALL")
                    client.send(data)
                    replies.append(client.rest())
            assert replies[0] == replies[1], data[:80]


def test_every_error_about_subcommands_and_arity_is_the_same(open_store, redis):
    commands: list[list[Argument]] = [
        ["CLIENT"],
        ["CLIENT", "nosuch"],
        ["CLIENT", "SETNAME"],
        ["CLIENT", "SETNAME", "a b"],
        ["CLIENT", "REPLY", "x"],
        ["CONFIG", "GET"],
        ["CONFIG", "SET", "maxclients"],
        ["CONFIG", "NOSUCH", "x"],
        ["COMMAND", "INFO", "nosuch"],
        ["COMMAND", "GETKEYS", "GET", "a"],
        ["COMMAND", "GETKEYS", "MSET", "a", 1, "b", 2],
        ["COMMAND", "GETKEYS", "nosuch"],
        ["COMMAND", "GETKEYS", "PING"],
        ["COMMAND", "GETKEYS", "GET"],
        ["MEMORY", "USAGE"],
        ["SLOWLOG", "GET", "x"],
        ["FUNCTION", "FLUSH"],
        ["HELLO", "x"],
        ["HELLO", "4"],
        ["HELLO", "3", "SETNAME"],
        ["HELLO", "3", "AUTH", "default"],
        ["HELLO", "3", "AUTH", "other", "x"],
        ["AUTH", "x"],
        ["AUTH", "default", "x"],
        ["AUTH", "other", "x"],
        ["AUTH", "a", "b", "c"],
        ["QUIT", "x"][:1],
    ]
    with Server(open_store(), port=0) as server, Client(server.address) as ours, Client(redis) as theirs:
        for command in commands:
            assert ours(*command) == theirs(*command), command


@pytest.mark.parametrize("resp", [2, 3])
def test_the_shapes_of_what_differs_in_content_are_the_same(open_store, redis, resp):
    """HELLO, CLIENT INFO and their like tell other things in the same forms."""

    def shape(reply: bytes) -> bytes:
        return re.sub(rb"\d+", b"0", reply.partition(b"\r\n")[0])

    with Server(open_store(), port=0) as server, Client(server.address) as ours, Client(redis) as theirs:
        for command in (
            ["HELLO", resp],
            ["CLIENT", "INFO"],
            ["CLIENT", "ID"],
            ["CLIENT", "GETNAME"],
            ["INFO"],
            ["TIME"],
        ):
            assert shape(ours(*command)) == shape(theirs(*command)), command
        for command in (["COMMAND"], ["COMMAND", "DOCS", "get"], ["CONFIG", "GET", "save"], ["SLOWLOG", "GET"]):
            assert ours(*command)[:1] == theirs(*command)[:1], command
