"""Servers and clients for the tests of the RESP door: raw bytes out, raw replies in."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
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
        line = self.file.readline()
        kind = line[:1]
        if kind in b"$=!" and line:
            size = int(line[1:])
            return line if size < 0 else line + self.file.read(size + 2)
        if kind in b"*~>%" and line:
            count = int(line[1:]) * (2 if kind == b"%" else 1)
            return line + b"".join(self.reply() for _ in range(count))
        return line

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
