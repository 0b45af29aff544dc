"""Time bytekv beside its peers: ``python -m tests.benchmarks --help``.

Each engine runs in a process of its own, engines in turn, several rounds; what is printed are medians
and, below them, the ratios bytekv/peer (below 1: bytekv is faster). Workloads, in this order:

put        random 16-byte keys into an empty store, one at a time
get        every key once, in random order
overwrite  every key once, in another random order
scan       all entries in key order
reopen     close, then open again: keys per second (bytekv: with hint files)
delete     every key, in random order
heap       bytes of Python heap per key besides the key itself (bytekv and dict only)
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable
from typing import Any

from .engines import DURABILITY, ENGINES, installed

COLUMNS = ("put", "get", "overwrite", "scan", "delete")


def _per_call(calls: int, work: Callable[[], Any]) -> float:
    gc.collect()
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) / calls * 1e6


def _each(function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> None:
    for argument in arguments:
        function(*argument)


def run_one(name: str, keys: int, value_size: int, folder: str, seed: int) -> dict[str, float]:
    """Run every workload on one engine; µs per operation, but keys/s for reopen and bytes for heap."""
    source = random.Random(seed)
    names = [source.randbytes(16) for _ in range(keys)]
    value = source.randbytes(value_size)
    shuffled = source.sample(names, keys)
    again = source.sample(names, keys)
    path = os.path.join(folder, name)
    make = ENGINES[name][0]
    result: dict[str, float] = {}
    engine = make(path)
    put, get, delete = engine.put, engine.get, engine.delete

    # Plain loops, written out: a call of a helper for each operation would cost as much as the operation.
    def put_all() -> None:
        for key in names:
            put(key, value)

    def get_all() -> None:
        for key in shuffled:
            get(key)

    def overwrite_all() -> None:
        for key in again:
            put(key, value)

    def scan_all() -> None:
        assert sum(1 for _ in engine.scan()) == keys

    def delete_all() -> None:
        for key in shuffled:
            delete(key)

    result["put"] = _per_call(keys, put_all)
    result["get"] = _per_call(keys, get_all)
    result["overwrite"] = _per_call(keys, overwrite_all)
    result["scan"] = _per_call(keys, scan_all)
    engine.close()
    began = time.perf_counter()
    engine = make(path)
    result["reopen"] = keys / (time.perf_counter() - began)
    put, get, delete = engine.put, engine.get, engine.delete
    if name != "dict":
        result["delete"] = _per_call(keys, delete_all)
    engine.close()
    if name in ("bytekv", "dict"):
        tracemalloc.start()
        engine = make(path + "-heap")
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        _each(engine.put, ((key, value) for key in names))
        gc.collect()
        result["heap"] = (tracemalloc.get_traced_memory()[0] - before) / keys
        tracemalloc.stop()
        engine.close()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--value-size", type=int, default=100, metavar="BYTES")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engines", nargs="*", choices=sorted(ENGINES), default=list(ENGINES))
    parser.add_argument("--dir", default=tempfile.gettempdir(), help="where the stores are made")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="bytekv-benchmark-", dir=options.dir)
    try:
        if options.one:
            print(json.dumps(run_one(options.one, options.keys, options.value_size, folder, options.seed)))
            return
        _compare(options)
    finally:
        shutil.rmtree(folder)


def _compare(options: argparse.Namespace) -> None:
    print(
        f"{options.keys:,} random 16-byte keys, {options.value_size}-byte values, {options.rounds} rounds; "
        f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.machine()}"
    )
    results: dict[str, list[dict[str, float]]] = {}
    for number in range(options.rounds):
        for name in options.engines:
            if not installed(name):
                if number == 0:
                    print(f"  {name}: skipped, pip install {ENGINES[name][1]}")
                continue
            command = [sys.executable, "-m", "tests.benchmarks", "--one", name, "--seed", str(number)]
            command += ["--keys", str(options.keys), "--value-size", str(options.value_size), "--dir", options.dir]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{name} failed:\n{done.stderr}")
            results.setdefault(name, []).append(json.loads(done.stdout))
    medians = {
        name: {column: statistics.median(run[column] for run in runs) for column in runs[0]}
        for name, runs in results.items()
    }
    print(f"\n{'µs per operation':16}" + "".join(f"{column:>11}" for column in COLUMNS) + "     reopen  heap/key")
    for name, row in medians.items():
        cells = "".join(f"{row[column]:11.2f}" if column in row else f"{'':11}" for column in COLUMNS)
        heap = f"{row['heap']:8.0f} B" if "heap" in row else ""
        print(f"{name:16}{cells}{row['reopen'] / 1e6:8.2f} M/s{heap}   {DURABILITY[name]}")
    if "bytekv" in medians:
        print("\nbytekv / peer (paired by round, median; below 1 bytekv is faster)")
        for name, runs in results.items():
            if name == "bytekv":
                continue
            pairs = list(zip(results["bytekv"], runs, strict=True))
            cells = "".join(
                f"{statistics.median(ours[column] / theirs[column] for ours, theirs in pairs):11.2f}"
                if column in runs[0]
                else f"{'':11}"
                for column in COLUMNS
            )
            print(f"{name:16}{cells}")


if __name__ == "__main__":
    main()
