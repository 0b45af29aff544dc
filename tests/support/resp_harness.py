"""Servers and clients for the tests of the RESP door: raw bytes out, raw replies in."""

from __future__ import annotations

import io
import random
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SECONDS = 30  # until a test that waits for a reply gives up

Argument = bytes | str | int | float


def request(*arguments: Argument) -> bytes:
    """Return the bytes of a command."""
    return b"*%d\r\n" % len(arguments) + b"".join(
        b"$%d\r\n%b\r\n" % (len(each), each) for each in map(encoded, arguments)
    )


def encoded(argument: Argument) -> bytes:
    """Return an argument as bytes."""
    return argument if isinstance(argument, bytes) else str(argument).encode()


def read_reply(file: io.BufferedReader) -> bytes:
    """Return the next reply as it came; b"" at the end."""
    line = file.readline()
    kind = line[:1]
    if kind in b"$=!" and line:
        size = int(line[1:])
        return line if size < 0 else line + file.read(size + 2)
    if kind in b"*~>%" and line:
        count = int(line[1:]) * (2 if kind == b"%" else 1)
        return line + b"".join(read_reply(file) for _ in range(count))
    return line


class Client:
    """A connection that sends bytes and returns replies byte for byte."""

    def __init__(self, address: tuple[str, int], *, receive_bytes: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(SECONDS)
        try:
            self.socket.connect(address)
        except BaseException:
            self.socket.close()
            raise
        self.file = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.socket.sendall(data)

    def reply(self) -> bytes:
        """Return the next reply as it came; b"" at the end."""
        return read_reply(self.file)

    def __call__(self, *arguments: Argument) -> bytes:
        """Send a command and return the reply."""
        self.send(request(*arguments))
        return self.reply()

    def pipeline(self, commands: Sequence[Sequence[Argument]]) -> list[bytes]:
        """Send commands at once and return the replies."""
        self.send(b"".join(request(*each) for each in commands))
        return [self.reply() for _ in commands]

    def rest(self) -> bytes:
        """Return everything until the server closes the connection."""
        return self.file.read()

    def close(self) -> None:
        """Close the connection."""
        self.file.close()
        self.socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def redis_server(directory: Path, *options: str) -> Iterator[tuple[str, int]]:
    """Run Debian's redis-server on a free loopback port with a directory of its own; yield its address."""
    binary = shutil.which("redis-server")
    assert binary is not None
    directory.mkdir(exist_ok=True)
    for _ in range(5):  # another process may take the port between
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = probe.getsockname()
        command = [binary, "--port", str(address[1]), "--bind", "127.0.0.1", "--dir", str(directory), "--save", ""]
        with subprocess.Popen(
            [*command, "--databases", "1", "--daemonize", "no", "--logfile", "", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            try:
                if any(b"eady to accept connections" in line for line in process.stdout):
                    yield address
                    return
            finally:
                process.terminate()
    raise AssertionError("redis-server does not start")


# --- random commands ---------------------------------------------------------------------------

#: Milliseconds by which two clocks, looked at one after the other, may differ.
TOLERANCE_MS = 20_000

KEYS = [b"a", b"b", b"ab", b"user:1", b"user:2", b"\x00\xff\r\n", b""]
FAR = 4_000_000_000  # seconds since 1970
Reply = bytes


class Commands:
    """Makes commands: mostly sensible ones, now and then something that is not."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._different_s = 0
        self.makers: list[Callable[[], list[Argument]]] = [
            getattr(self, name) for name in dir(self) if name.startswith("make_")
        ]

    def one(self) -> list[Argument]:
        command = self.random.choice(self.makers)()
        if self.random.random() < 0.05:
            self.spoil(command)
        if self.random.random() < 0.3:
            command[0] = self.random.choice((str.lower, str.title))(str(command[0]))
        return command

    def spoil(self, command: list[Argument]) -> None:
        how = self.random.randrange(4)
        if how == 0:
            command.append(self.word())
        elif how == 1 and len(command) > 1:
            command.pop()
        elif how == 2 and len(command) > 1:
            command[self.random.randrange(1, len(command))] = self.word()
        else:
            command.insert(self.random.randrange(1, len(command) + 1), self.word())

    # --- arguments

    def word(self) -> Argument:
        words = [
            "",
            "NX",
            "XX",
            "EX",
            "PX",
            "KEEPTTL",
            "GET",
            "GT",
            "LT",
            "-1",
            "0",
            "1.5",
            "x",
            "9" * 20,
            "\r\n",
            "PERSIST",
        ]
        return self.random.choice(words)

    def key(self) -> bytes:
        return self.random.choice(KEYS)

    def keys(self) -> list[bytes]:
        return [self.key() for _ in range(self.random.randint(1, 3))]

    def value(self) -> Argument:
        plain: list[Argument] = [b"", b"x", b"hello world", b"\x00\r\n\xff", b"y" * 5000]
        amount = self.integer()
        return self.random.choice([*plain, 7 if amount == b"0x10" else amount, self.decimal()])

    def integer(self) -> Argument:
        odd = [
            b"01",
            b"+1",
            b" 1",
            b"-0",
            b"1_0",
            b"0x10",
            b"9223372036854775807",
            b"-9223372036854775808",
            b"9223372036854775808",
        ]
        return self.random.choice([*odd, *range(-3, 12)])

    def decimal(self) -> Argument:
        odd = [
            "1e3",
            "-1.5e-3",
            ".5",
            "5.",
            "abc",
            "",
            "1e400",
            "inf",
            "1e5000",
            "1e4300",
            "9" * 4400,
            "3.0",
            "0.1",
            "1e-20",
            "-0.0",
            " 1",
        ]
        return self.random.choice([*odd, round(self.random.uniform(-1e6, 1e6), self.random.randint(0, 12))])

    def offset(self) -> Argument:
        return self.random.choice([*range(-8, 9), 5000, -5000, "x"])

    def expiry(self) -> list[Argument]:
        option = self.random.choice(["EX", "PX", "EXAT", "PXAT", "ex", "pxat"])
        return [option, self.time(option.upper())]

    def time(self, option: str) -> Argument:
        unit = 1000 if option.startswith("P") else 1
        start = FAR * unit if option.endswith("AT") else 0
        later = (
            start + self.random.randrange(10**4, 10**9) * unit
        )  # never the same twice: a millisecond may pass between
        return self.random.choice([later, later + 1, 0, -1, "x", "9" * (13 if unit > 1 else 12), "9" * 19])

    def pattern(self) -> Argument:
        pieces = [
            "*",
            "?",
            "a",
            "b",
            "user:",
            "[a-c]",
            "[^a]",
            "[",
            "]",
            "\\*",
            "\\",
            "[]",
            "[^]",
            "[a",
            "1",
            "-",
            "[b-a]",
            "[\\]]",
        ]
        return "".join(self.random.choice(pieces) for _ in range(self.random.randint(1, 4)))

    # --- commands

    def make_get(self) -> list[Argument]:
        return [self.random.choice(["GET", "STRLEN", "TYPE", "GETDEL", "INCR", "DECR", "PERSIST"]), self.key()]

    def make_time(self) -> list[Argument]:
        return [self.random.choice(["TTL", "PTTL", "EXPIRETIME", "PEXPIRETIME"]), self.key()]

    def make_set(self) -> list[Argument]:
        command: list[Argument] = ["SET", self.key(), self.value()]
        for option in self.random.sample(
            [["NX"], ["XX"], ["GET"], ["KEEPTTL"], self.expiry()], self.random.choice([0, 0, 1, 1, 2, 3])
        ):
            command += option
        return command

    def make_pair(self) -> list[Argument]:
        return [self.random.choice(["SETNX", "GETSET", "APPEND"]), self.key(), self.value()]

    def make_setex(self) -> list[Argument]:
        name = self.random.choice(["SETEX", "PSETEX"])
        return [name, self.key(), self.time("PX" if name == "PSETEX" else "EX"), self.value()]

    def make_getex(self) -> list[Argument]:
        return ["GETEX", self.key(), *self.random.choice([[], ["PERSIST"], self.expiry()])]

    def make_many(self) -> list[Argument]:
        name = self.random.choice(["MGET", "DEL", "UNLINK", "EXISTS", "TOUCH"])
        return [name, *self.keys()]

    def make_mset(self) -> list[Argument]:
        return [self.random.choice(["MSET", "MSETNX"]), *(part for key in self.keys() for part in (key, self.value()))]

    def make_range(self) -> list[Argument]:
        return [self.random.choice(["GETRANGE", "SUBSTR"]), self.key(), self.offset(), self.offset()]

    def make_setrange(self) -> list[Argument]:
        return ["SETRANGE", self.key(), self.offset(), self.value()]

    def make_incrby(self) -> list[Argument]:
        return [self.random.choice(["INCRBY", "DECRBY"]), self.key(), self.integer()]

    def make_incrbyfloat(self) -> list[Argument]:
        return ["INCRBYFLOAT", self.key(), self.decimal()]

    def make_rename(self) -> list[Argument]:
        return [self.random.choice(["RENAME", "RENAMENX"]), self.key(), self.key()]

    def make_copy(self) -> list[Argument]:
        return [
            "COPY",
            self.key(),
            self.key(),
            *self.random.choice([[], ["REPLACE"], ["DB", "0"], ["DB", "1"], ["DB"]]),
        ]

    def make_expire(self) -> list[Argument]:
        name = self.random.choice(["EXPIRE", "PEXPIRE", "EXPIREAT", "PEXPIREAT"])
        option = ("P" if name[0] == "P" else "E") + ("XAT" if name.endswith("AT") else "X")
        conditions = self.random.sample(["NX", "XX", "GT", "LT", "gt"], self.random.choice([0, 0, 0, 1, 1, 2]))
        key, time = self.key(), self.time(option)
        if option[-1] == "X" and {"GT", "LT"} & {each.upper() for each in conditions} and str(time).isdigit():
            # The same time to live again, a millisecond later: whether that is later depends on whose clock has ticked.
            self._different_s += 100_000
            time = str(int(time) + self._different_s)
        return [name, key, time, *conditions]

    def make_keys(self) -> list[Argument]:
        return ["KEYS", self.pattern()]

    def make_server(self) -> list[Argument]:
        return self.random.choice(
            [["DBSIZE"], ["PING"], ["PING", "hi"], ["ECHO", "hi"], ["SELECT", "0"], ["SELECT", "1"]]
        )

    def make_rare(self) -> list[Argument]:
        rare: list[list[Argument]] = [
            ["FLUSHALL"],
            ["FLUSHDB", "ASYNC"],
            ["FLUSHALL", "x"],
            ["NOSUCH", "a", "b\r\nc"],
            ["RANDOMKEY"],
        ]
        return self.random.choice(rare) if self.random.random() < 0.3 else ["PING"]

    def make_transaction(self) -> list[Argument]:
        return self.random.choice([["MULTI"], ["EXEC"], ["EXEC"], ["DISCARD"], ["WATCH", *self.keys()], ["UNWATCH"]])


# --- replies -----------------------------------------------------------------------------------


def same(command: list[Argument], ours: Reply, theirs: Reply) -> bool:
    """Tell whether replies say the same: the order of KEYS and clocks aside."""
    if ours == theirs:
        return True
    name = str(command[0]).upper()
    if name == "KEYS":
        return set(items(ours)) - {b""} == set(items(theirs)) - {b""}
    if name in ("TTL", "PTTL") and min(len(ours), len(theirs)) > 5:
        unit = 1 if name == "PTTL" else 1000
        return abs(int(ours[1:]) - int(theirs[1:])) * unit < TOLERANCE_MS
    if name in ("PEXPIRETIME", "EXPIRETIME"):
        unit = 1 if name == "PEXPIRETIME" else 1000
        return abs(int(ours[1:]) - int(theirs[1:])) * unit < TOLERANCE_MS < int(theirs[1:]) * unit
    if name == "RANDOMKEY":
        return (ours[:2] == theirs[:2] == b"$-") or (ours[:1] == theirs[:1] == b"$")
    return False


def items(reply: Reply) -> list[bytes]:
    """Return the strings of an array."""
    assert reply[:1] == b"*"
    found, rest = [], reply.partition(b"\r\n")[2]
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        found.append(rest[: int(size[1:])])
        rest = rest[int(size[1:]) + 2 :]
    return found


def parts(reply: Reply) -> list[Reply]:
    """Return the replies within an array."""

    file = io.BufferedReader(io.BytesIO(reply))
    head = file.readline()
    return [read_reply(file) for _ in range(int(head[1:]))] if head[:1] == b"*" else [reply]
