"""How long a command for one key takes, and importing bytekv: ``python -m tests.benchmarks.one_shot [DIR]``.

Starts the programs in turn, 30 times each, and prints the medians: wall clock and processor time, also as multiples
of ``python -c pass``. Beside other work only the processor time says something, and not much. Modules must have been
compiled before (the first round is thrown away), so not with PYTHONDONTWRITEBYTECODE.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROUNDS = 30


def once(arguments: list[str]) -> tuple[float, float]:
    """Run a program; return its wall clock and processor seconds."""
    began = time.perf_counter()
    child = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{arguments} ended with {child.returncode}")
    return time.perf_counter() - began, used.ru_utime + used.ru_stime


def main() -> None:
    """Measure and print."""
    folder = tempfile.mkdtemp(dir=sys.argv[1] if len(sys.argv) > 1 else None)
    program = [sys.executable, "-c", "from bytekv.__main__ import run; run()", "-d", os.path.join(folder, "store")]
    programs = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "bytekv set": [*program, "set", "key", "value"],
        "bytekv get": [*program, "get", "key"],
        "bytekv delete": [*program, "delete", "key"],
        "import bytekv": [sys.executable, "-c", "import bytekv"],
        "import sqlite3": [sys.executable, "-c", "import sqlite3"],
    }
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for _ in range(ROUNDS + 1):
        for name, arguments in programs.items():
            took[name].append(once(arguments))
    medians = {
        name: [statistics.median(column) * 1e3 for column in zip(*each[1:], strict=True)] for name, each in took.items()
    }
    base = medians["python -c pass"]
    for name, (wall, used) in medians.items():
        multiples = f"({wall / base[0]:.2f} x) {used:7.1f} ms of processor ({used / base[1]:.2f} x)"
        print(f"{name:15} {wall:7.1f} ms {multiples}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
