"""The RESP door beside redis-server: ``python -m tests.benchmarks.resp [ROUNDS]``.

redis-benchmark (50 clients; SET and GET; one command at a time, and 16 in a pipeline) runs against redis-server
``--appendonly yes --appendfsync everysec`` and against bytekv with its default options, in turn, several rounds. What
is compared is the best round of each, in operations per second; beside it stands the processor time that the server
itself took for an operation, which other work on the machine disturbs less.

Goals: 0.6 of Redis without a pipeline, 0.25 with 16.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.support.resp_harness import redis_server
from tests.support.resp_process import Process

GOALS = {1: 0.6, 16: 0.25}
OPERATIONS = {1: 100_000, 16: 400_000}


class Figure(NamedTuple):
    """One run of redis-benchmark."""

    per_second: float
    cpu_us: float


@contextmanager
def redis(directory: Path) -> Iterator[tuple[int, int]]:
    """Yield port and process id of a redis-server."""
    pid_file = directory / "redis.pid"
    options = ["--appendonly", "yes", "--appendfsync", "everysec", "--pidfile", str(pid_file)]
    with redis_server(directory / "redis", *options) as (_, port):
        yield port, int(pid_file.read_text())


@contextmanager
def bytekv(directory: Path) -> Iterator[tuple[int, int]]:
    """Yield port and process id of a server of bytekv."""
    with Process(directory / "bytekv") as process:
        yield process.address[1], process.pid


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(port: int, pid: int, test: str, pipeline: int) -> Figure:
    """Run redis-benchmark once."""
    count = OPERATIONS[pipeline]
    options = ["-p", str(port), "-t", test, "-c", "50", "-n", str(count), "-P", str(pipeline), "-q"]
    before = cpu_s(pid)
    done = subprocess.run(["redis-benchmark", *options], capture_output=True, text=True, check=True)
    found = re.findall(r"([0-9.]+) requests per second", done.stdout)
    return Figure(float(found[-1]), (cpu_s(pid) - before) / count * 1e6)


def main(rounds: int) -> int:
    """Print the table; return 1 if a goal was missed."""
    figures: dict[tuple[str, int, str], list[Figure]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as directory:
        for _ in range(rounds):
            for name, server in (("redis", redis), ("bytekv", bytekv)):
                with server(Path(directory)) as (port, pid):
                    for pipeline in GOALS:
                        for test in ("set", "get"):
                            figures[test, pipeline, name].append(measure(port, pid, test, pipeline))
    missed = 0
    print(f"{'':14}{'redis/s':>12}{'bytekv/s':>12}{'ratio':>8}{'goal':>6}{'redis µs':>10}{'bytekv µs':>11}")
    for pipeline, goal in GOALS.items():
        for test in ("set", "get"):
            best = [max(figures[test, pipeline, name]).per_second for name in ("redis", "bytekv")]
            cpu = [min(each.cpu_us for each in figures[test, pipeline, name]) for name in ("redis", "bytekv")]
            ratio = best[1] / best[0]
            missed += ratio < goal
            print(
                f"{test.upper()} pipeline {pipeline:<3}{best[0]:>11,.0f}{best[1]:>12,.0f}{ratio:>8.2f}{goal:>6}", end=""
            )
            print(f"{cpu[0]:>10.2f}{cpu[1]:>11.2f}")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 3))
