"""`kill -9` of the server while clients write, with an oracle of what they were told; and SIGTERM."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import bytekv
from tests.support.resp_harness import Client
from tests.support.resp_process import Process

CLIENTS = 4
OK = b"+OK\r\n"


class Writer(threading.Thread):
    """A client that writes a counter to keys of its own and notes what was acknowledged."""

    def __init__(self, number: int, address: tuple[str, int], first: int, enough: threading.Semaphore) -> None:
        super().__init__()
        self.number, self.address, self.first, self.enough = number, address, first, enough
        self.acknowledged = self.sent = first - 1
        self.error: AssertionError | None = None

    def run(self) -> None:
        try:
            with Client(self.address) as client:
                for count in range(self.first, self.first + 10**6):
                    self.sent = count
                    pair = ["MULTI"], ["SET", f"a{self.number}", count], ["SET", f"b{self.number}", count], ["EXEC"]
                    replies = client.pipeline([["SET", f"{self.number}:{count}", count], *pair])
                    if replies[-1] != b"*2\r\n+OK\r\n+OK\r\n":
                        assert b"" in replies, replies  # the connection is gone
                        return
                    self.acknowledged = count
                    self.enough.release()
        except (ConnectionError, ValueError):
            return  # killed in the middle of a reply
        except AssertionError as error:
            self.error = error


def check(path: Path, writers: list[Writer]) -> None:
    """All that was acknowledged is there, no more than was sent, and no half of a transaction."""
    with bytekv.open(path, "r") as store:
        assert store.verify().ok
        for writer in writers:
            assert writer.error is None
            there = [int(store[key]) for key in store.scan_keys(f"{writer.number}:")]
            assert sorted(there) == list(range(len(there))), "no hole"
            assert writer.acknowledged < len(there) <= writer.sent + 1
            halves = {store.get(f"{half}{writer.number}") for half in "ab"}
            assert len(halves) == 1, "EXEC is all or nothing"
            assert writer.acknowledged <= int(halves.pop() or b"-1") <= writer.sent


@pytest.mark.parametrize("sync", ["interval", "always"])
@pytest.mark.parametrize("rounds", [3, pytest.param(50, marks=pytest.mark.deep)])
def test_killed_again_and_again_nothing_acknowledged_is_lost(path, sync, rounds):
    first = [0] * CLIENTS
    for round_ in range(rounds):
        enough = threading.Semaphore(0)
        with Process(path, sync) as server:
            writers = [Writer(number, server.address, first[number], enough) for number in range(CLIENTS)]
            for writer in writers:
                writer.start()
            for _ in range(40 + 37 * round_ % 100):
                enough.acquire()
            server.kill()
            for writer in writers:
                writer.join()
        check(path, writers)
        with bytekv.open(path, "r") as store:
            first = [sum(1 for _ in store.scan_keys(f"{number}:")) for number in range(CLIENTS)]


def test_a_signal_to_end_keeps_everything_acknowledged(path):
    enough = threading.Semaphore(0)
    with Process(path) as server:
        writers = [Writer(number, server.address, 0, enough) for number in range(CLIENTS)]
        for writer in writers:
            writer.start()
        for _ in range(200):
            enough.acquire()
        assert server.stop() == 0
        for writer in writers:
            writer.join()
    check(path, writers)
    with bytekv.open(path) as store:
        assert store.recovery.clean, "it closed the store"
