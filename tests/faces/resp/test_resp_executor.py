"""Commands on a store, without a connection: alone, between MULTI and EXEC, and with those of others in one batch."""

from __future__ import annotations

import dataclasses
import errno
import tracemalloc
from collections.abc import Sequence
from typing import Any

import pytest

import bytekv
from bytekv.engine.store import Store
from bytekv.resp import executor as executor_module
from bytekv.resp import work as work_module
from bytekv.resp.commands.table import COMMANDS
from bytekv.resp.errors import error_of
from bytekv.resp.executor import Executor
from bytekv.resp.protocol import CommandRun, ReplyError
from bytekv.resp.work import Block, Cursors, UnitOfWork
from tests.support.fault_files import FailingSyncs, SystemCalls
from tests.support.harness import FakeFiles, damage
from tests.support.resp_harness import Commands, encoded, items, parts, same


def words(command: Sequence[Any] | str) -> list[bytes]:
    return [encoded(word) for word in (command.split() if isinstance(command, str) else command)]


def block(*commands: str, **watched: int) -> Block:
    return Block([words(each) for each in commands], {key.encode(): seq for key, seq in watched.items()})


class Teller:
    """An executor that is told commands as text and answers in bytes."""

    def __init__(self, store: Store, *, resp3: bool = False) -> None:
        self.executor = Executor(store)
        self.resp3 = resp3

    def __call__(self, item: Block | Sequence[Any] | str) -> bytes:
        return self.executor.run_one(item if isinstance(item, Block) else words(item), self.resp3)


def content(store: Store) -> dict[bytes, tuple[bytes, float | None]]:
    return {key: (store.entry(key).value, store.entry(key).expires) for key in store}


# --- a unit of work ------------------------------------------------------------------------------


def test_what_expires_within_a_unit_is_gone_for_what_follows(open_store):
    clock = FakeFiles(now_s=1)
    db = open_store(files=clock)
    db["stays"] = "1"
    work = UnitOfWork(db, Cursors(), is_block=True)
    work.put(b"goes", b"2", 5000)
    assert (len(work), [*work.keys()], [*work.keys(limit=1)]) == (2, [b"goes", b"stays"], [b"goes"])
    clock.sleep(10)
    work.begin_command()
    assert (len(work), [*work.keys()], [*work.keys(limit=1)]) == (1, [b"stays"], [b"stays"])
    assert (work.value(b"goes"), work.find(b"goes"), work.exists(b"goes"), work.ttl_ms(b"goes")) == (
        None,
        None,
        False,
        -2,
    )


def test_an_interrupt_between_two_writes_of_a_key_keeps_the_first(open_store):
    """The first was taken out before the second was there, and what was committed then had neither."""

    class Interrupted(dict):
        def __delitem__(self, key: bytes) -> None:
            super().__delitem__(key)
            raise KeyboardInterrupt

    db = open_store()
    work = UnitOfWork(db, Cursors(), is_block=True)
    work.put(b"k", b"first")
    work._changes._writes = Interrupted(work._changes._writes)
    with pytest.raises(KeyboardInterrupt):
        work.put(b"k", b"second")
    with db.transaction() as transaction:
        work.commit(transaction)
    assert dict(db) == {b"k": b"first"}


# --- the same commands on different ways ---------------------------------------------------------


def data_commands(seed: int, count: int) -> list[list[bytes]]:
    """Make random commands that touch data, and none that answers by chance."""
    made = Commands(seed)
    found: list[list[bytes]] = []
    while len(found) < count:
        command = words(made.one())
        known = COMMANDS.get(command[0].lower())
        if known is not None and known.kind != "session" and known.name not in (b"randomkey", b"unwatch"):
            found.append(command)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_in_a_block_and_with_others_commands_do_what_they_do_alone(open_store, path, seed):
    """What a unit of work shows of its own writes is what a commit would have made of them."""
    alone, blocks, batches = (open_store(at=path.with_name(name)) for name in ("alone", "blocks", "batches"))
    tell_alone, tell_blocks, tell_batches = Teller(alone), Teller(blocks), Teller(batches)
    commands = data_commands(seed, 600)
    for at in range(0, len(commands), 20):
        chunk = commands[at : at + 20]
        wanted = [tell_alone(command) for command in chunk]
        within = parts(tell_blocks(Block(chunk, {})))
        shares = [([command], False) for command in chunk[:10]] + [(chunk[10:], False)]
        together = [reply for replies in tell_batches.executor.run_many(shares) for reply in replies]
        for ours in (within, together):
            assert len(ours) == len(chunk)
            wrong = [
                (command, mine, right)
                for command, mine, right in zip(chunk, ours, wanted, strict=True)
                if not same([command[0].decode()], mine, right)
            ]
            assert not wrong, f"seed {seed}, command {at}: {wrong[0]}"
    assert {key: value for key, (value, _) in content(alone).items()} == dict(blocks) == dict(batches)


@pytest.mark.parametrize("resp3", [False, True])
def test_the_straight_way_answers_what_the_plain_one_does(open_store, path, resp3):
    commands = ["SET a 1", "GET a", "GET none", "get a", "EXISTS a", "exists none", "DEL a", "del a", "SET a 1 EX 100"]
    commands += ["SET a 1 px 100000", "set a 2", "SET a 1 EX 0", "SET a 1 EX x", "SET a 1 EX 99999999999999999"]
    commands += [
        "SET a",
        "SET a 1 NX",
        "GET",
        "GET a b",
        "DEL",
        "DEL a b",
        "EXISTS a b",
        "SET a 1 QX 5",
        "SET a 1 2 3 4",
        "PING",
        "ping",
        "PING hello",
        "PING a b",
        "INCR",
        "INCR n",
        "incr n",
        "INCR n 5",
        "SET n 9223372036854775807",
        "INCR n",
        "SET n -9223372036854775808",
        "INCR n",
        "SET n 007",
        "INCR n",
        "SET n 41 EX 100",
        "INCR n",
        "DEL n",
        "SET a 2",
    ]
    tell, other = Teller(open_store(at=path.with_name("a")), resp3=resp3), Teller(open_store(at=path), resp3=resp3)
    ways = other.executor.fast_paths(resp3, writes=True)
    taken = 0
    for command in [words(each) for each in commands]:
        reply = ways[command[0]](command)
        taken += reply is not None
        assert (other(command) if reply is None else reply) == tell(command), command
    assert taken == 22
    stores = [each.executor.store for each in (tell, other)]
    assert dict(stores[0]) == dict(stores[1]) == {b"a": b"2"}
    assert set(other.executor.fast_paths(resp3, writes=False)) == {
        b"GET",
        b"get",
        b"EXISTS",
        b"exists",
        b"PING",
        b"ping",
    }


@pytest.mark.parametrize("resp3", [False, True])
def test_a_run_is_answered_as_its_commands_are(open_store, path, resp3):
    tell = Teller(open_store(at=path.with_name("a")), resp3=resp3)
    executor = Executor(open_store(at=path))
    pairs = [(b"%d" % (number % 100), b"%d" % number * (number % 30)) for number in range(200)]
    keys = [key for key, _ in pairs] + [b"missing", b""]
    for run in (
        CommandRun(b"GET", keys, []),
        CommandRun(b"SET", [key for key, _ in pairs], [value for _, value in pairs]),
        CommandRun(b"GET", keys, []),
    ):
        replies, done = executor.carry_out_run(run, resp3, 1 << 20)
        assert done == len(run.keys)
        assert b"".join(replies) == b"".join(tell([*command]) for command in run.commands(0))
    assert dict(executor.store) == dict(tell.executor.store)


def test_a_run_ends_where_a_command_fails_and_before_replies_are_too_many(open_store):
    """What is left is looked at singly, and tells its own error."""
    db = open_store()
    executor = Executor(db)
    keys = [b"a", b"k" * 65_536, b"b"]
    assert executor.carry_out_run(CommandRun(b"SET", keys, [b"1"] * 3), False, 1000) == ([b"+OK\r\n"], 1)
    assert dict(db) == {b"a": b"1"}
    keys = [b"%d" % number for number in range(500)]
    db.update(dict.fromkeys(keys, b"x" * 1000))
    replies, done = executor.carry_out_run(CommandRun(b"GET", keys, []), False, 100_000)
    assert (done, len(b"".join(replies))) == (128, 128 * 1009)


def test_a_run_ends_where_something_is_damaged(open_store, path):
    db = open_store(io="pread")
    executor = Executor(db)
    keys = [b"%d" % number for number in range(200)]
    db.update(dict.fromkeys(keys, b"good"))
    db[keys[130]] = "2222"
    segment = next(path.glob("*.seg"))
    damage(segment, segment.read_bytes().index(b"2222"))
    replies, done = executor.carry_out_run(CommandRun(b"GET", keys, []), False, 1 << 20)
    assert (b"".join(replies), done) == (b"$4\r\ngood\r\n" * 128, 128)
    damage(segment, segment.read_bytes().index(b"3222"))


# --- commands that Redis has not, or not yet -------------------------------------------------------


def test_ranges(open_store):
    tell = Teller(open_store())
    tell("MSET a 1 b 2 ba 3 c 4")
    assert items(tell("BKV.RANGE b c")) == [b"b", b"ba"]
    assert items(tell(["BKV.RANGE", "", "", "rev", "limit", "2"])) == [b"c", b"ba"]
    assert items(tell(["bkv.range", "b", "", "WITHVALUES"])) == [b"b", b"2", b"ba", b"3", b"c", b"4"]
    assert items(tell("BKV.RANGE b c LIMIT 0")) == []
    for wrong in ("BKV.RANGE a c LIMIT", "BKV.RANGE a c LIMIT -1", "BKV.RANGE a c FOO", "BKV.DELRANGE a c REV"):
        assert tell(wrong) == b"-ERR syntax error\r\n"
    assert tell("BKV.DELRANGE a c LIMIT 1") == b":1\r\n"
    assert tell("BKV.DELRANGE b c") == b":2\r\n"
    assert items(tell("KEYS *")) == [b"c"]


def test_a_range_within_a_block_shows_what_the_block_wrote(open_store):
    tell = Teller(open_store())
    tell("MSET a 1 c 3 e 5")
    replies = parts(
        tell(block("SET d 4", "DEL c", "SET b 2", "BKV.RANGE b e WITHVALUES REV", "BKV.DELRANGE a c", "DBSIZE"))
    )
    assert items(replies[3]) == [b"d", b"4", b"b", b"2"]
    assert replies[4:] == [b":2\r\n", b":2\r\n"]
    assert items(tell("KEYS *")) == [b"d", b"e"]


def test_compare_and_set(open_store):
    tell = Teller(open_store(), resp3=True)
    assert tell("BKV.CAS k 0 one") == b":1\r\n"
    assert tell("BKV.CAS k 0 two") == b":0\r\n"
    assert tell("BKV.ENTRY k") == b"%3\r\n$5\r\nvalue\r\n$3\r\none\r\n$3\r\nseq\r\n:1\r\n$7\r\nexpires\r\n_\r\n"
    assert tell("BKV.CAS k 1 two PXAT 4000000000000") == b":1\r\n"
    assert tell("BKV.CAS k 2 three KEEPTTL") == b":1\r\n"
    assert tell("PEXPIRETIME k") == b":4000000000000\r\n"
    assert tell("BKV.CAS k 3 four") == b":1\r\n"
    assert tell("TTL k") == b":-1\r\n"
    assert tell("BKV.CAS k -1 five") == b"-ERR seq is out of range\r\n"
    assert tell("BKV.CAS k x five") == b"-ERR value is not an integer or out of range\r\n"
    assert tell("BKV.ENTRY none") == b"_\r\n"


def test_of_two_who_compare_and_set_in_one_batch_one_wins(open_store):
    tell = Teller(open_store())
    replies = tell.executor.run_many([([words(f"BKV.CAS k 0 {name}")], False) for name in "abc"])
    assert replies == [[b":1\r\n"], [b":0\r\n"], [b":0\r\n"]]
    assert tell.executor.store[b"k"] == b"a"


def test_delete_if_equal_releases_a_lock(open_store):
    tell = Teller(open_store())
    assert tell("SET lock mine NX PX 100000") == b"+OK\r\n"
    assert tell("DELEX lock IFEQ yours") == b":0\r\n"
    assert tell("DELEX lock IFNE mine") == b":0\r\n"
    assert tell("DELEX lock IFEQ") == b"-ERR syntax error\r\n"
    assert tell("DELEX lock ifeq mine") == b":1\r\n"
    assert tell("DELEX lock IFNE mine") == b":0\r\n"
    assert tell("DELEX lock") == b":0\r\n"
    assert tell("SET lock a IFEQ mine") == b"$-1\r\n"
    assert tell("SET lock a") == b"+OK\r\n"
    assert tell("SET lock b IFEQ a GET") == b"$1\r\na\r\n"
    assert tell("SET lock c IFEQ a GET") == b"$1\r\nb\r\n"
    assert tell("SET lock c IFEQ b NX") == b"-ERR syntax error\r\n"
    assert tell("DELETE lock none") == b":1\r\n"


def test_random_keys_are_keys(open_store):
    tell = Teller(open_store())
    assert tell("RANDOMKEY") == b"$-1\r\n"
    names = {b"user:%d" % number for number in range(20)}
    tell.executor.store.update(dict.fromkeys(names, b""))
    found = {items(b"*1\r\n" + tell("RANDOMKEY"))[0] for _ in range(200)}
    assert found <= names
    assert len(found) > 3


# --- patterns and cursors ------------------------------------------------------------------------


def test_patterns_that_make_others_slow_are_harmless(open_store):
    """With a regular expression that gives back what it took, this would take longer than the universe has."""
    tell = Teller(open_store())
    tell.executor.store.put(b"a" * 5000, b"")
    assert tell(["KEYS", b"*a" * 40 + b"*b"]) == b"*0\r\n"
    assert tell(["KEYS", b"*" * 10_000]) == b"*1\r\n$5000\r\n" + b"a" * 5000 + b"\r\n"
    assert tell(["KEYS", b"x" * 16_385]) == b"-ERR pattern too long\r\n"


def scan(tell: Teller, *options: str) -> list[bytes]:
    found, cursor = [], b"0"
    while True:
        reply = parts(tell(["SCAN", cursor, *options]))
        found += items(reply[1])
        cursor = items(b"*1\r\n" + reply[0])[0]
        if cursor == b"0":
            return found


def test_a_scan_gives_each_key_once_whatever_is_written_meanwhile(open_store):
    store = open_store()
    tell = Teller(store)
    store.update({f"{number:03}": "" for number in range(100)})
    assert scan(tell) == list(store)
    assert scan(tell, "COUNT", "7", "MATCH", "05?") == [b"%03d" % number for number in range(50, 60)]
    assert scan(tell, "TYPE", "string", "COUNT", "1000") == list(store)
    assert scan(tell, "TYPE", "list") == []
    first = parts(tell("SCAN 0 COUNT 50"))
    cursor = items(b"*1\r\n" + first[0])[0]
    store.update({"000a": "", "075a": ""})
    del store["075"]
    again = [items(parts(tell(["SCAN", cursor, "COUNT", 100]))[1]) for _ in range(2)]
    assert again[0] == again[1], "a cursor may be used twice"
    assert b"075a" in again[0]
    assert items(first[1]) + [key for key in again[0] if key != b"075a"] == [b"%03d" % n for n in range(100) if n != 75]


def test_cursors_are_bounded_and_forgotten_ones_are_an_error(open_store, monkeypatch):
    monkeypatch.setattr(work_module, "_MAX_CURSORS", 3)
    store = open_store()
    tell = Teller(store)
    store.update(dict.fromkeys("abcdef", ""))
    cursors = [items(b"*1\r\n" + parts(tell(f"SCAN 0 COUNT {count}"))[0])[0] for count in (1, 2, 3)]
    assert items(parts(tell(["SCAN", cursors[0], "COUNT", "1"]))[1]) == [b"b"]  # used again, and a fourth one made
    assert items(parts(tell(["SCAN", cursors[0], "COUNT", "5"]))[1]) == [b"b", b"c", b"d", b"e", b"f"]
    assert tell(["SCAN", cursors[1]]).startswith(b"-ERR unknown cursor")
    for wrong in ("x", "-1", "99999999999999999999999", "1_0", "+1", ""):
        assert tell(["SCAN", wrong]) == b"-ERR invalid cursor\r\n"
    assert tell("SCAN 77").startswith(b"-ERR unknown cursor")


# --- limits --------------------------------------------------------------------------------------


def test_a_key_that_is_too_long_is_refused_where_something_would_be_stored(open_store):
    tell = Teller(open_store())
    long = b"k" * 65_536
    for command in (
        ["SET", long, "v"],
        ["SET", long, "v", "GET"],
        ["MSET", "a", "1", long, "v"],
        ["APPEND", long, "v"],
    ):
        assert tell(command).startswith(b"-ERR ")
        assert b"65535" in tell(command).replace(b",", b"")
    assert tell(["GET", long]) == b"$-1\r\n"
    assert tell(["DEL", long, "none"]) == b":0\r\n"
    replies = parts(tell(Block([words(["MSET", "b", "1", long, "v"]), words("SET c 1")], {})))
    assert replies[1] == b"+OK\r\n"
    assert items(tell("KEYS *")) == [b"c"], "MSET is all or nothing within a block, too"


def test_values_grow_to_the_limit_of_an_argument_and_not_beyond(open_store):
    tell = Teller(open_store())
    too_long = b"-ERR string exceeds maximum allowed size (proto-max-bulk-len)\r\n"
    assert tell(["SETRANGE", "k", 512 << 20, "x"]) == too_long
    assert tell(["SETRANGE", "k", (1 << 63) - 1, "x"]) == too_long
    assert tell("EXISTS k") == b":0\r\n"


def test_one_command_reads_a_bounded_number_of_bytes(open_store, monkeypatch):
    monkeypatch.setattr(work_module, "_MAX_REPLY_BYTES", 1000)
    tell = Teller(open_store())
    tell(["SET", "k", "v" * 400])
    assert len(items(tell("MGET k k"))) == 2
    assert tell("MGET k k k").startswith(b"-ERR the reply would have more than 1000 bytes")
    assert tell("BKV.RANGE a z WITHVALUES")[:1] == b"*"


#: Limits of one unit of work, a block that exceeds them after it has written, and what is said of it.
TOO_MUCH = {
    "_MAX_REPLY_BYTES": (block("SET n 1", "GET k", "INCR n", "GET k", "GET k"), b"the reply would have more than 1000"),
    "_MAX_BLOCK_WRITE_BYTES": (
        block("SET n 1", "APPEND k " + "w" * 200, "SETRANGE m 990 x"),
        b"more than 1000 bytes would",
    ),
    "_MAX_MOVED_BYTES": (block("SET n 1", "STRLEN k", "STRLEN k", "APPEND k x"), b"more than 1000 bytes would be read"),
}


@pytest.mark.parametrize("limit", TOO_MUCH)
def test_a_block_that_is_too_large_is_not_carried_out_by_halves(open_store, monkeypatch, limit):
    """70 EXPIRE of one value of 8 MiB looked at 560 MiB: 64 were carried out, and 6 were refused."""
    monkeypatch.setattr(work_module, limit, 1000)
    too_large, said = TOO_MUCH[limit]
    store = open_store()
    tell = Teller(store)
    tell(["SET", "k", "v" * 400])
    expected = b"-EXECABORT Transaction discarded because of: " + said
    assert tell(too_large).startswith(expected)
    assert set(store) == {b"k"}
    replies = tell.executor.run_many([([words("SET a 1")], False), ([too_large], False), ([words("SET b 1")], False)])
    assert replies[0] == replies[2] == [b"+OK\r\n"], "others in the same batch have nothing to do with it"
    assert replies[1][0].startswith(expected)
    assert set(store) == {b"k", b"a", b"b"}


def test_a_block_may_look_at_one_value_as_often_as_it_likes(open_store, monkeypatch):
    for limit in ("_MAX_REPLY_BYTES", "_MAX_BLOCK_WRITE_BYTES", "_MAX_MOVED_BYTES"):
        monkeypatch.setattr(work_module, limit, 1000)
    tell = Teller(open_store())
    tell(["SET", "k", "v" * 400])
    assert tell(block(*["EXPIRE k 100"] * 70)) == b"*70\r\n" + b":1\r\n" * 70


def test_what_was_overwritten_and_deleted_in_a_unit_counts_no_more(open_store, monkeypatch):
    for limit in ("_MAX_WRITE_BYTES", "_MAX_BLOCK_WRITE_BYTES"):
        monkeypatch.setattr(work_module, limit, 1000)
    value = "v" * 700
    tell = Teller(open_store())
    assert b"-" not in tell(
        block(f"SET k {value}", f"SET k {value}", "DEL k", f"SET l {value}", "FLUSHALL", f"SET m {value}")
    )
    assert tell(f"MSET a {value} b {value}").startswith(b"-ERR more than 1000 bytes would be written at once")
    assert set(tell.executor.store) == {b"m"}


def test_a_block_makes_less_out_of_nothing_than_a_command_may_write(open_store, monkeypatch):
    """Three SETRANGE of 300 MiB in a block took 1.8 GB, and everybody else waited nine seconds for it."""
    monkeypatch.setattr(work_module, "_MAX_WRITE_BYTES", 2000)
    monkeypatch.setattr(work_module, "_MAX_BLOCK_WRITE_BYTES", 1000)
    tell = Teller(open_store())
    assert tell(block("SETRANGE a 1500 x")).startswith(b"-EXECABORT Transaction discarded because of: more than 1000 ")
    assert tell("SETRANGE a 1500 x") == b":1501\r\n"
    alone, other = words("SETRANGE b 1500 x"), words("SET c 1")
    assert tell.executor.run_many([([other], False), ([alone], False)]) == [[b"+OK\r\n"], [b":1501\r\n"]]


@pytest.mark.parametrize("command", ["SETRANGE r{} 314572799 x", "APPEND r x"])
def test_what_would_be_too_large_is_not_made_first(open_store, monkeypatch, command):
    """Each SETRANGE of a block made its 300 MiB before the batch, which holds 1 GiB, was refused: 18 KB took 90 GB."""
    store = open_store()
    store["r"] = bytes(4 << 20)
    monkeypatch.setattr(work_module, "_MAX_BLOCK_WRITE_BYTES", 1 << 20)
    tell = Teller(store)
    tracemalloc.start()
    try:
        reply = tell(block(*(command.format(number) for number in range(6))))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert reply.startswith(b"-EXECABORT")
    assert peak < 10 << 20  # it may read what is there


def test_lists_of_keys_are_bounded_within_a_block_too(open_store, monkeypatch):
    monkeypatch.setattr(work_module, "_MAX_REPLY_BYTES", 2000)
    store = open_store()
    store.update({f"{number:0100}": "" for number in range(10)})
    tell = Teller(store)
    for command in ("KEYS *", "BKV.RANGE 0 1", "SCAN 0 COUNT 100"):
        assert tell(command)[:1] == b"*"
        assert tell(block(command, "SET n 1", command)).startswith(b"-EXECABORT")
        store.update({f"{number:0100}": "" for number in range(10, 20)})
        assert tell(command).startswith(b"-ERR the reply would have more than 2000 bytes")
        for number in range(10, 20):
            del store[f"{number:0100}"]
    assert b"n" not in store


def test_without_memory_a_block_is_not_carried_out_by_halves(open_store, monkeypatch):
    def fails(work: object, arguments: object) -> None:
        raise MemoryError

    monkeypatch.setitem(COMMANDS, b"strlen", dataclasses.replace(COMMANDS[b"strlen"], handler=fails))
    store = open_store()
    tell = Teller(store)
    assert tell("STRLEN k").startswith(b"-OOM the server has not enough memory")
    assert tell(block("SET n 1", "STRLEN k", "SET n 2")).startswith(b"-EXECABORT")
    replies = tell.executor.run_many([([words("SET a 1"), words("STRLEN k"), words("SET b 1")], False)])
    assert [reply[:4] for reply in replies[0]] == [b"+OK\r", b"-OOM", b"+OK\r"]
    assert set(store) == {b"a", b"b"}


def test_a_batch_that_writes_much_leaves_the_rest_for_the_next(open_store, monkeypatch):
    """What is left keeps its order, what does not share a batch included."""
    monkeypatch.setattr(executor_module, "_MAX_BATCH_BYTES", 1000)
    store = open_store()
    tell = Teller(store)
    large, entry = words("APPEND k " + "v" * 600), words("BKV.ENTRY k")
    shares = [([large, large], False), ([large, entry, large], False), ([entry], False)]
    replies = tell.executor.run_many(shares)
    assert [len(each) for each in replies] == [2, 0, 0]
    assert len(store["k"]) == 1200
    get = words("GET k")
    assert [len(each) for each in tell.executor.run_many([([get, get], False), ([get], False)])] == [1, 0]


def test_an_entry_that_was_written_in_the_same_batch_has_its_seq(open_store):
    """With sync="always" the reply to BKV.ENTRY behind a write in the same pipeline had no seq."""
    tell = Teller(open_store())
    set_, entry = words("SET k v"), words("BKV.ENTRY k")
    ((_, alone),) = [[tell(set_), tell(entry)]]
    ((_, together),) = tell.executor.run_many([([set_, entry], False)])
    assert b":1\r\n" in alone
    assert together == alone.replace(b":1\r\n", b":2\r\n")


def test_a_client_with_large_replies_gets_the_rest_of_them_with_the_next_batch(open_store, monkeypatch):
    monkeypatch.setattr(executor_module, "_MAX_REPLIES_BYTES", 1000)
    tell = Teller(open_store())
    tell(["SET", "k", "v" * 600])
    get, add = words("GET k"), words("INCR n")
    replies = tell.executor.run_many(
        [([get, get, get, add], False), ([add], False), ([get, words("FLUSHALL"), get], False)]
    )
    assert [len(each) for each in replies] == [2, 1, 3]
    assert replies[1] == [b":1\r\n"]
    assert replies[2][1:] == [b"+OK\r\n", b"$-1\r\n"], "the items of one client keep their order, FLUSHALL included"
    assert tell.executor.store.get("n") is None


# --- errors of the store ---------------------------------------------------------------------------


def test_errors_of_the_store_become_those_of_redis(caplog):
    def told(error: Exception) -> bytes:
        return error_of(error).text

    assert told(ReplyError(b"ERR x")) == b"ERR x"
    assert told(bytekv.ReadOnlyError("x")).startswith(b"READONLY ")
    assert told(bytekv.DiskFullError(errno.ENOSPC, "No space left", "x")).startswith(b"MISCONF ")
    assert told(bytekv.StoreIOError(errno.EIO, "Input/output error", "x")).startswith(b"MISCONF ")
    assert told(bytekv.StoreFailedError("x")).startswith(b"MISCONF ")
    assert told(bytekv.LimitError("too long")) == b"ERR too long"
    assert told(bytekv.StoreClosedError("closed")) == b"ERR closed"
    assert not caplog.records
    assert b"secret" not in told(bytekv.CorruptionError("/secret/1.seg", 5, "bad"))
    assert "/secret/1.seg" in caplog.text
    assert b"secret" not in told(ZeroDivisionError("secret"))
    assert "ZeroDivisionError" in caplog.text


def test_a_store_that_is_opened_read_only_is_read(open_store, path):
    open_store().put("k", "v")
    tell = Teller(open_store("r"))
    assert tell("GET k") == b"$1\r\nv\r\n"
    assert tell("SET k w").startswith(b"-READONLY ")
    assert tell("FLUSHALL").startswith(b"-READONLY ")
    assert tell.executor.fast_paths(False, writes=True)[b"GET"](words("GET k")) == b"$1\r\nv\r\n"
    replies = parts(tell(block("GET k", "SET k w", "GET k")))
    assert replies[0] == replies[2] == b"$1\r\nv\r\n"
    assert replies[1].startswith(b"-READONLY ")


def test_a_closed_store_answers_errors(open_store):
    store = open_store()
    tell = Teller(store)
    store.close()
    for item in ("GET k", "SET k v", "DBSIZE", "SCAN 0", block("GET k")):
        assert tell(item).startswith(b"-ERR "), item
    assert [each[0][:5] for each in tell.executor.run_many([([words("SET k v")], False)] * 2)] == [b"-ERR "] * 2


def test_an_open_transaction_of_the_same_thread_is_an_error_and_no_deadlock(open_store):
    store = open_store()
    tell = Teller(store)
    with store.transaction() as tx:
        tx["k"] = "v"
        assert b"transaction" in tell("SET k w")
        assert tell("GET k") == b"$-1\r\n"
    assert tell("GET k") == b"$1\r\nv\r\n"


def test_damage_is_told_without_the_damaged_bytes(open_store, path, caplog):
    store = open_store(io="pread")
    tell = Teller(store)
    tell("MSET good 1 bad 2222")
    segment = next(path.glob("*.seg"))
    damage(segment, segment.read_bytes().index(b"2222"))
    assert tell("GET bad").startswith(b"-ERR the entry is damaged")
    replies = parts(tell(block("GET good", "GET bad", "SET other 3")))
    assert replies[1].startswith(b"-ERR the entry is damaged")
    assert (replies[0], replies[2]) == (b"$1\r\n1\r\n", b"+OK\r\n")
    damage(segment, segment.read_bytes().index(b"3222"))


def test_a_full_disk_fails_what_does_not_fit_and_no_more(open_store):
    """Many items share a batch; when it does not fit, nothing has happened, and those that fit alone are stored."""
    store = open_store(sync="always", segment_size_bytes=1 << 20)
    tell = Teller(store)
    tell("SET first 1")
    with SystemCalls() as calls:
        calls.fail("allocate", 1, errno.ENOSPC, for_ever=True)
        shares = [
            ([words("SET a 1")], False),
            ([words(["SET", "b", "x" * 300_000])], False),
            ([words("SET c 3")], False),
        ]
        replies = [each[0] for each in tell.executor.run_many(shares)]
    assert replies[1].startswith(b"-MISCONF Errors writing to the log")
    assert (replies[0], replies[2]) == (b"+OK\r\n", b"+OK\r\n")
    assert sorted(store) == [b"a", b"c", b"first"]


def test_a_failed_sync_acknowledges_nothing(path):
    files = FailingSyncs()
    store = Store(str(path), "c", bytekv.Options(sync="always", auto_compact=False), files)
    tell = Teller(store)
    tell("SET before 1")
    files.fail_sync(1)
    replies = tell.executor.run_many([([words("SET a 1"), words("GET before")], False), ([block("INCR n")], False)])
    assert all(reply.startswith(b"-MISCONF ") for each in replies for reply in each)
    assert tell("GET before") == b"$1\r\n1\r\n"
    assert tell("SET a 1").startswith(b"-MISCONF ")
    with pytest.raises(bytekv.StoreFailedError):
        store.close()


def test_a_batch_of_many_clients_is_one_sync(open_store):
    store = open_store(sync="always")
    executor = Executor(store)
    executor.run_one(words("SET warm 1"), False)
    with SystemCalls() as calls:
        calls.count()
        executor.run_many([([words(f"SET k{client} 1"), words("INCR n")], False) for client in range(50)])
        assert calls.counts["sync"] == 1
    assert store[b"n"] == b"50"
    assert store.durable_seq == store.last_seq


# --- watching and slowness -------------------------------------------------------------------------


def test_a_block_is_carried_out_only_if_what_it_watched_is_as_it_was(open_store):
    store = open_store()
    tell = Teller(store)
    seq = store.put("k", "v")
    assert tell(block("SET k w", k=seq, none=0)) == b"*1\r\n+OK\r\n"
    assert tell(block("SET k x", k=seq)) == b"*-1\r\n"
    assert tell(block("SET k x", none=5)) == b"*-1\r\n"
    assert store[b"k"] == b"w"
    now = store.entry("k").seq
    replies = tell.executor.run_many([([words("SET k y")], False), ([block("SET k z", k=now)], False)])
    assert replies == [[b"+OK\r\n"], [b"*-1\r\n"]], "another client's write in the same batch counts"


def test_what_takes_long_is_noted(open_store, monkeypatch):
    monkeypatch.setattr(executor_module, "_SLOW_S", 0.0)
    tell = Teller(open_store())
    tell(["MSET", "k", "v" * 1000, *["k", "v"] * 50])
    tell(block("GET k"))
    assert tell.executor.slow[0].arguments == [b"EXEC"]
    noted = tell.executor.slow[1]
    assert noted.arguments[:2] == [b"MSET", b"k"]
    assert len(noted.arguments) == 32
    assert max(map(len, noted.arguments)) == 128
