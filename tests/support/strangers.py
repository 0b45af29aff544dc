"""Strangers at both doors of `bytekv serve`, and what they cost a client that has the secret.

``python -m tests.support.strangers [SECONDS]`` prints, for each kind of attack, the latency of a client with the
password (quiet, and under attack), how often it was refused, the most memory and descriptors that the server had, and
what it logged. Figures of latency mean something only on a machine that has nothing else to do.
"""

from __future__ import annotations

import http.client
import os
import re
import selectors
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from tests.support.resp_harness import request

SECRET = "s3cret"
FILES = 1024  # descriptors that the server may have

_CONSOLE = b"GET /-/console HTTP/1.1\r\nHost: localhost\r\n\r\n"
_PUT = b"PUT /v1/kv/%d HTTP/1.1\r\nHost: localhost\r\nContent-Length: 16000000\r\n\r\n" + bytes(10_000)
_MULTI = b"MULTI\r\n" + b"".join(b"SETRANGE r%d 314572799 x\r\n" % number for number in range(6)) + b"EXEC\r\n"

#: name of an attack: connections at each door, what each sends to Redis's and to HTTP's, whether it reads
ATTACKS = {
    "replies that nobody reads": (270, b"PING\r\n" * 400, _CONSOLE * 400, False),
    "connections that say nothing": (400, b"", b"", True),
    "small requests for much memory": (50, _MULTI, _PUT, True),
}


class Figures(NamedTuple):
    """What one attack did."""

    attack: str
    quiet_ms: tuple[float, float]  # p50 and p99 of Redis's door
    attacked_ms: tuple[float, float]
    quiet_http_ms: tuple[float, float]
    attacked_http_ms: tuple[float, float]
    quiet_cpu_ms: float  # of the server, for a request at each door and what else it did meanwhile
    attacked_cpu_ms: float
    requests: int
    refused: int
    strangers: int
    memory_mib: float
    files: int
    log_bytes: int


# --- the attackers, in a process of their own ----------------------------------------------------


def attack(name: str, resp: int, http_: int, seconds: float) -> int:
    """Hold connections, and open another for each that the server closes; return how many there were."""
    count, to_resp, to_http, reads = ATTACKS[name]
    ends, opened = time.monotonic() + seconds, 0
    with selectors.DefaultSelector() as selector:

        def come(port: int, data: bytes) -> None:
            stranger = socket.socket()
            if not reads:
                stranger.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stranger.setblocking(False)
            stranger.connect_ex(("127.0.0.1", port))
            selector.register(stranger, selectors.EVENT_WRITE, (port, data, data))

        for port, data in ((resp, to_resp), (http_, to_http)):
            for _ in range(count):
                come(port, data)
                opened += 1
        while time.monotonic() < ends:
            for key, events in selector.select(0.1):
                port, whole, left = key.data
                stranger = key.fileobj
                assert isinstance(stranger, socket.socket)
                try:
                    if events & selectors.EVENT_WRITE and left:
                        left = left[stranger.send(left) :]
                    gone = bool(events & selectors.EVENT_READ) and not stranger.recv(65536 if reads else 1)
                except BlockingIOError:
                    gone = False
                except OSError:
                    gone = True
                if gone:
                    selector.unregister(stranger)
                    stranger.close()
                    come(port, whole)
                    opened += 1
                    continue
                # One that does not read hears of its end when it is reset.
                wanted = (selectors.EVENT_WRITE if left else 0) | (selectors.EVENT_READ if reads or not left else 0)
                selector.modify(stranger, wanted, (port, whole, left))
            time.sleep(0.001)
    return opened


# --- the client that has the secret --------------------------------------------------------------


class Holder:
    """A client with the password at each door, which asks at a steady pace."""

    def __init__(self, resp: int, http_: int) -> None:
        self._resp = socket.create_connection(("127.0.0.1", resp), timeout=30)
        self._resp.sendall(request("AUTH", SECRET))
        assert self._resp.recv(100) == b"+OK\r\n"
        self._http = http.client.HTTPConnection("127.0.0.1", http_, timeout=30)

    def ask(self, seconds: float) -> tuple[list[float], list[float], int]:
        """Return the seconds that each request at either door took, and how many were refused."""
        over_resp: list[float] = []
        over_http: list[float] = []
        refused = 0
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            began = time.perf_counter()
            self._resp.sendall(request("SET", "mine", "x" * 100))
            refused += self._resp.recv(1000) != b"+OK\r\n"
            over_resp.append(time.perf_counter() - began)
            began = time.perf_counter()
            self._http.request("GET", "/v1/kv/mine", headers={"Authorization": f"Bearer {SECRET}"})
            reply = self._http.getresponse()
            refused += reply.read() != b"x" * 100
            over_http.append(time.perf_counter() - began)
            time.sleep(0.005)
        return over_resp, over_http, refused

    def close(self) -> None:
        """End."""
        self._resp.close()
        self._http.close()


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _percentiles(seconds: list[float]) -> tuple[float, float]:
    found = sorted(seconds)
    return found[len(found) // 2] * 1000, found[len(found) * 99 // 100] * 1000


@contextmanager
def _server(place: Path) -> Iterator[tuple[subprocess.Popen[bytes], int, int, Path]]:
    (place / "password").write_text(SECRET + "\n")
    log = place / "log"
    command = [sys.executable, "-m", "bytekv", "-d", str(place / "store"), "serve", "--resp", ":0", "--http", ":0"]
    command += ["--password-file", str(place / "password")]
    limited = ["bash", "-c", f'ulimit -n {FILES}; exec "$@"', "server", *command]
    with log.open("wb") as said, subprocess.Popen(limited, stderr=said) as process:
        try:
            while not (found := re.search(r"redis://.*?:(\d+) and http://.*?:(\d+)", log.read_text())):
                assert process.poll() is None, log.read_text()
                time.sleep(0.02)
            yield process, int(found[1]), int(found[2]), log
        finally:
            process.terminate()
            process.wait(60)


def measure(name: str, seconds: float) -> Figures:
    """Carry out an attack for some seconds, with the client beside it."""
    with ExitStack() as stack:
        place = stack.enter_context(tempfile.TemporaryDirectory())
        process, resp, http_, log = stack.enter_context(_server(Path(place)))
        holder = stack.enter_context(closing(Holder(resp, http_)))
        holder.ask(min(1.0, seconds))
        began = _cpu_s(process.pid)
        quiet = holder.ask(seconds)
        quiet_cpu_s = _cpu_s(process.pid) - began
        said_before = log.stat().st_size
        attackers = [sys.executable, "-m", "tests.support.strangers", name, str(resp), str(http_), str(seconds + 1)]
        attacking = subprocess.Popen(attackers, stdout=subprocess.PIPE)
        most = {"files": 0}
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.05):
                with suppress(OSError):
                    most["files"] = max(most["files"], len(os.listdir(f"/proc/{process.pid}/fd")))

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            time.sleep(0.5)
            began = _cpu_s(process.pid)
            attacked = holder.ask(seconds)
            attacked_cpu_s = _cpu_s(process.pid) - began
        finally:
            done.set()
            watching.join()
            strangers, _ = attacking.communicate(timeout=60)
        status = Path(f"/proc/{process.pid}/status").read_text()
        memory = int(status.partition("VmHWM:")[2].split()[0]) / 1024
        return Figures(
            name,
            _percentiles(quiet[0]),
            _percentiles(attacked[0]),
            _percentiles(quiet[1]),
            _percentiles(attacked[1]),
            quiet_cpu_s / len(quiet[0]) * 1000,
            attacked_cpu_s / len(attacked[0]) * 1000,
            2 * len(attacked[0]),
            attacked[2],
            int(strangers),
            memory,
            most["files"],
            log.stat().st_size - said_before,
        )


def main() -> None:
    """Print the table."""
    if len(sys.argv) > 2:
        name, resp, http_, seconds = sys.argv[1:]
        print(attack(name, int(resp), int(http_), float(seconds)))
        return
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    for name in ATTACKS:
        print(measure(name, seconds), flush=True)


if __name__ == "__main__":
    main()
