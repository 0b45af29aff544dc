"""The parser and the encoder of the RESP door: what comes in may be cut up anyhow, and may be anything."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from bytekv.resp.protocol import (
    NIL_ARRAY,
    OK,
    UNTRUSTED,
    Limits,
    Parser,
    ReplyError,
    Simple,
    Verbatim,
    encode,
    encode_bulks,
    encode_error,
    integer,
    parse_run,
)
from tests.support.resp_harness import request

Commands = list[list[bytes]]

#: Bytes, and the commands that they are.
GOOD: list[tuple[bytes, Commands]] = [
    (b"*1\r\n$4\r\nPING\r\n", [[b"PING"]]),
    (b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n", [[b"GET", b"k"]]),
    (b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n", [[b"SET", b"k", b"v"]]),
    (b"*3\r\n$3\r\nSET\r\n$0\r\n\r\n$0\r\n\r\n", [[b"SET", b"", b""]]),
    (b"*3\r\n$3\r\nSET\r\n$4\r\na\r\nb\r\n$2\r\n\r\n\r\n", [[b"SET", b"a\r\nb", b"\r\n"]]),
    (b"*2\r\n$4\r\nECHO\r\n$14\r\n*1\r\n$4\r\nPING\r\n\r\n", [[b"ECHO", b"*1\r\n$4\r\nPING\r\n"]]),
    (b"*2\r\n$4\r\nECHO\r\n$3\r\n$1\r\r\n", [[b"ECHO", b"$1\r"]]),
    (b"*2\r\n$4\r\nECHO\r\n$3\r\n\n\n\n\r\n", [[b"ECHO", b"\n\n\n"]]),
    (request("MSET", *(b"%d" % n for n in range(200))), [[b"MSET", *(b"%d" % n for n in range(200))]]),
    (request("SET", "k", b"v" * 5000), [[b"SET", b"k", b"v" * 5000]]),
    (request("A") + request("B", "b") + request("C", "\r\n"), [[b"A"], [b"B", b"b"], [b"C", b"\r\n"]]),
    (b"*0\r\n*-1\r\n*-7\r\n*1\r\n$1\r\nA\r\n", [[b"A"]]),
    (b"PING\r\n", [[b"PING"]]),
    (b"PING\n", [[b"PING"]]),
    (b"  SET\tk  v \r\n", [[b"SET", b"k", b"v"]]),
    (b"\r\n\n \r\nPING\r\n\r\n", [[b"PING"]]),
    (b"SET \"a b\" 'c d'\r\n", [[b"SET", b"a b", b"c d"]]),
    (b'SET "\\x00\\xfF\\n\\r\\t\\b\\a\\"\\\\\\q" \'\\\'\\n\'\r\n', [[b"SET", b'\x00\xff\n\r\t\b\a"\\q', b"'\\n"]]),
    (b'SET a"b c"\r\n', [[b"SET", b"ab c"]]),
    (b"PING\r\n*1\r\n$4\r\nPING\r\nPING\r\n", [[b"PING"]] * 3),
]  # fmt: skip

#: Bytes, the commands before what is wrong, and what is said of it.
BAD: list[tuple[bytes, Commands, bytes]] = [
    (b"*x\r\n", [], b"invalid multibulk length"),
    (b"*\r\n", [], b"invalid multibulk length"),
    (b"*1 \r\n", [], b"invalid multibulk length"),
    (b"*01\r\n", [], b"invalid multibulk length"),
    (b"*+1\r\n", [], b"invalid multibulk length"),
    (b"*1_0\r\n", [], b"invalid multibulk length"),
    (b"*-0\r\n", [], b"invalid multibulk length"),
    (b"*1048577\r\n", [], b"invalid multibulk length"),
    (b"*99999999999999999999\r\n", [], b"invalid multibulk length"),
    (b"*1\r\n4\r\nPING\r\n", [], b"expected '$', got '4'"),
    (b"*1\r\n\r\n", [], b"expected '$', got ''"),
    (b"*1\r\n$\r\n", [], b"invalid bulk length"),
    (b"*1\r\n$-1\r\n", [], b"invalid bulk length"),
    (b"*1\r\n$+4\r\nPING\r\n", [], b"invalid bulk length"),
    (b"*1\r\n$ 4\r\nPING\r\n", [], b"invalid bulk length"),
    (b"*1\r\n$04\r\nPING\r\n", [], b"invalid bulk length"),
    (b"*1\r\n$536870913\r\n", [], b"invalid bulk length"),
    (b"*1\r\n$4\r\nPINGPONG\r\n", [], b"expected CRLF after a bulk string"),
    (b"*1\r\n$5\r\nPING\r\nX", [], b"expected CRLF after a bulk string"),
    (b'SET "a\r\n', [], b"unbalanced quotes in request"),
    (b"SET 'a\r\n", [], b"unbalanced quotes in request"),
    (b"SET 'a\\'\r\n", [], b"unbalanced quotes in request"),
    (b'SET "a"b\r\n', [], b"unbalanced quotes in request"),
    (request("A", "\r\n") + b"*1\r\n:1\r\n" + request("C"), [[b"A", b"\r\n"]], b"expected '$', got ':'"),
    (b"A\r\n*1\r\n$x\r\n", [[b"A"]], b"invalid bulk length"),
    (b"x" * 70_000, [], b"too big inline request"),
    (b"x" * 70_000 + b"\r\n", [], b"too big inline request"),
    (b"*" + b"1" * 70_000, [], b"too big mbulk count string"),
    (b"*1\r\n$" + b"1" * 70_000, [], b"too big bulk count string"),
]  # fmt: skip


def parse(*chunks: bytes, limits: Limits | None = None) -> tuple[Commands, bytes | None, bool]:
    """Feed chunks; return the commands, the complaint, and whether something is under way."""
    parser = Parser(Limits() if limits is None else limits)
    commands = [command for chunk in chunks for command in parser.feed(chunk)]
    error = None if parser.error is None else parser.error.removeprefix(b"ERR Protocol error: ")
    return commands, error, parser.is_partial


def single_bytes(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def test_requests_whole_in_bytes_in_halves_and_followed():
    for data, commands in GOOD:
        done = (commands, None, False)
        assert parse(data) == done
        assert parse(*single_bytes(data)) == done
        for cut in range(0, len(data), max(1, len(data) // 200)):
            assert parse(data[:cut], data[cut:]) == done, (data, cut)
        assert parse(data, data) == (commands * 2, None, False)
        assert parse(data + b"*2\r\n$3\r\nGE", b"T\r\n$1\r\nk\r\n") == ([*commands, [b"GET", b"k"]], None, False)
        assert parse(data + b"*2\r\n$3") == (commands, None, True)
        assert parse(data + b"PI") == (commands, None, True)


def test_what_is_wrong_whole_and_in_bytes():
    for data, commands, complaint in BAD:
        wrong = (commands, complaint, False)
        assert parse(data) == wrong
        assert parse(*single_bytes(data)) == wrong
        assert parse(data, request("PING")) == wrong, "nothing may be parsed after it"


@given(
    st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=6), max_size=8),
    st.lists(st.integers(1, 60), max_size=30),
)
def test_any_requests_cut_up_anyhow(commands, cuts):
    data = b"".join(request(*command) for command in commands)
    chunks, at = [], 0
    for size in cuts:
        chunks.append(data[at : at + size])
        at += size
    assert parse(*chunks, data[at:]) == (commands, None, False)


pieces = st.sampled_from(
    [b"*", b"$", b"1", b"2", b"0", b"-", b"\r\n", b"\r", b"\n", b"G", b'"', b"'", b" ", b"\\", b"*1\r\n", b"$1\r\n"]
)  # fmt: skip


@given(st.lists(pieces | st.binary(max_size=5), max_size=40).map(b"".join))
def test_any_bytes_are_parsed_the_same_however_they_arrive(data):
    commands, error, _ = parse(data)
    assert parse(*single_bytes(data))[:2] == (commands, error)
    assert all(commands), "no command without a name"


# --- limits ------------------------------------------------------------------------------------


def test_a_client_without_password_may_ask_for_little():
    def complaint(data: bytes) -> bytes | None:
        return parse(data, limits=UNTRUSTED)[1]

    assert complaint(request(*["x"] * 10)) is None
    assert complaint(request(*["x"] * 11)) == b"unauthenticated multibulk length"
    assert complaint(request("AUTH", "x" * 16384)) is None
    assert complaint(request("AUTH", "x" * 16385)) == b"unauthenticated bulk length"
    assert complaint(b"AUTH" + b" x" * 10 + b"\r\n") == b"too many arguments"
    assert complaint(b"*1\r\n$1048577") is None
    assert complaint(b"*1\r\n$1048577\r\n") == b"unauthenticated bulk length"


def test_a_client_without_password_gets_one_command_at_a_time():
    """AUTH may be followed by what only a client with the password may send, in the same packet."""
    parser = Parser(UNTRUSTED)
    large = request("SET", "k", "v" * 20_000)
    assert parser.feed(request("AUTH", "secret") + large + request("PING")) == [[b"AUTH", b"secret"]]
    parser.limits = Limits()
    assert parser.feed(b"") == [[b"SET", b"k", b"v" * 20_000], [b"PING"]]
    assert not parser.is_partial

    parser = Parser(UNTRUSTED)
    assert parser.feed(request("PING") + large) == [[b"PING"]]
    assert parser.feed(b"") == []
    assert parser.error == b"ERR Protocol error: unauthenticated bulk length"


def test_a_request_may_not_grow_beyond_its_limit():
    limits = Limits(arguments=100, bulk_bytes=5000, request_bytes=6500)
    assert parse(request(*["x" * 36] * 65), limits=limits)[1] is None  # each costs 100
    assert parse(request(*["x" * 36] * 66), limits=limits)[1] == b"request too big"
    assert parse(request(*["x"] * 101), limits=limits)[1] == b"invalid multibulk length"
    assert parse(request("x" * 5001), limits=limits)[1] == b"invalid bulk length"


def test_nothing_is_allocated_because_it_was_announced():
    tracemalloc.start()
    try:
        parsers = [Parser(Limits()) for _ in range(100)]
        for parser in parsers:
            parser.feed(b"*1048576\r\n$536870912\r\nabc")
            assert parser.is_partial
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


def test_a_large_value_in_chunks_is_held_once():
    value = bytes(range(256)) * 16384  # 4 MiB, with line breaks
    data = request("SET", "k", value)
    parser = Parser(Limits())
    commands = []
    for at in range(0, len(data), 65536):
        commands += parser.feed(data[at : at + 65536])
        assert parser.partial_bytes <= at + 65536 + 1000
    assert commands == [[b"SET", b"k", value]]
    assert parser.partial_bytes == 0


# --- numbers -----------------------------------------------------------------------------------


def test_integers():
    for text in ("0", "7", "-7", "9223372036854775807", "-9223372036854775808"):
        assert integer(text.encode()) == int(text)


NO_INTEGERS = [
    *("", "-", "+5", " 5", "5 ", "5\n", "05", "-0", "-05", "1_000", "0x10", "1e3", "1.0", "٣"),
    *("9223372036854775808", "-9223372036854775809", "1" * 5000),
]


def test_what_python_takes_for_an_integer_and_redis_does_not():
    for text in NO_INTEGERS:
        assert integer(text.encode()) is None, text


# --- replies -----------------------------------------------------------------------------------


#: A reply, and its bytes in RESP2 and, if they differ, in RESP3.
REPLIES = [
    (b"", b"$0\r\n\r\n", None),
    (b"a\r\n", b"$3\r\na\r\n\r\n", None),
    (7, b":7\r\n", None),
    (-1, b":-1\r\n", None),
    (True, b":1\r\n", None),
    (None, b"$-1\r\n", b"_\r\n"),
    (NIL_ARRAY, b"*-1\r\n", b"_\r\n"),
    (OK, b"+OK\r\n", None),
    (Simple(b"PONG"), b"+PONG\r\n", None),
    ([], b"*0\r\n", None),
    ([b"a", [1, None]], b"*2\r\n$1\r\na\r\n*2\r\n:1\r\n$-1\r\n", b"*2\r\n$1\r\na\r\n*2\r\n:1\r\n_\r\n"),
    ({b"a": 1}, b"*2\r\n$1\r\na\r\n:1\r\n", b"%1\r\n$1\r\na\r\n:1\r\n"),
    ({}, b"*0\r\n", b"%0\r\n"),
    (Verbatim(b"text"), b"$4\r\ntext\r\n", b"=8\r\ntxt:text\r\n"),
    (ReplyError(b"ERR no"), b"-ERR no\r\n", None),
    ([ReplyError(b"ERR no")], b"*1\r\n-ERR no\r\n", None),
]


def test_replies():
    for reply, resp2, resp3 in REPLIES:
        assert encode(reply, resp3=False) == resp2
        assert encode(reply, resp3=True) == (resp2 if resp3 is None else resp3)


def test_an_error_is_one_line_whatever_a_client_put_into_it():
    assert encode_error(b"ERR bad 'a\r\n+OK\r\n'") == b"-ERR bad 'a  +OK  '\r\n"
    assert encode_error(b"ERR bad \r\n") == b"-ERR bad \r\n"


# --- runs ----------------------------------------------------------------------------------------

#: Strings that look like what stands between them.
STRINGS = st.one_of(
    st.sampled_from([b"", b"k", b"\r\n", b"*2\r\n$3\r\nGET\r\n$1\r\nk", b"$1", b"1\r\n", b"x" * 4095, b"x" * 4096]),
    st.binary(max_size=6),
)
ONE_NAME = st.one_of(
    st.tuples(st.sampled_from(["GET", "get"]), st.lists(st.tuples(STRINGS), max_size=5)),
    st.tuples(st.sampled_from(["SET", "set"]), st.lists(st.tuples(STRINGS, STRINGS), max_size=5)),
)


@given(ONE_NAME, st.sampled_from([b"", b"\r\n", b"*2\r\n$3\r\nGET\r\n$1\r\nk", b"PING\r\n"]), st.integers(0, 40))
def test_a_run_is_what_the_parser_finds(given: tuple[str, list[tuple[bytes, ...]]], rest: bytes, cut: int) -> None:
    name, commands = given
    whole = b"".join(request(name, *each) for each in commands)
    for data in (whole, whole + rest, whole[: len(whole) - cut]):
        run = parse_run(data)
        if run is not None:
            parser = Parser(Limits())
            assert run.commands(0) == parser.feed(data)
            assert (parser.is_partial, parser.error) == (False, None)


def test_what_a_run_is() -> None:
    for name in ("GET", "get"):
        run = parse_run(request(name, "a") + request(name, "") + request(name, "ccc"))
        assert run is not None
        assert run.commands(1) == [[name.encode(), b""], [name.encode(), b"ccc"]]
    for name in ("SET", "set"):
        run = parse_run(request(name, "a", "1") * 2 + request(name, "", ""))
        assert run is not None
        assert run.commands(1) == [[name.encode(), b"a", b"1"], [name.encode(), b"", b""]]
    get, put = request("GET", "k"), request("SET", "k", "v")
    others = [
        b"",
        get,
        put,
        get + put,
        put + get,
        get * 2 + b"*",
        request("DEL", "k") * 2,
        get * 2 + request("get", "k"),
    ]
    others += [each.replace(b"$1\r\nk", b"$5\r\nk") * 2 for each in (get, put)]
    others.append(get + request("GET", "")[:-2])
    # An inline command, then what is no argument: cut at other places it would be GET of "a" and of "b".
    others.append(b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n$1\r\n*2\r\n$3\r\nGET\r\nb\r\n")
    for data in others:
        assert parse_run(data) is None


@given(st.lists(st.none() | STRINGS, max_size=5), st.booleans())
def test_replies_of_a_run_are_those_of_each(values: list[bytes | None], resp3: bool) -> None:
    assert encode_bulks(values, resp3) == b"".join(encode(value, resp3) for value in values)
