"""The process in which one engine is measured.

Reads requests from standard input, one JSON object a line, and answers each with one line: figures, or what went
wrong. Started by `runner`; the two other forms are for workloads that need a process of their own.
"""

from __future__ import annotations

import json
import sys
import traceback

from . import pauses, processes, stalls, workloads  # noqa: F401 - these register theirs
from .dataset import DataSet
from .engines import ENGINES
from .workloads import Session, fill_and_die, print_memory


def serve(engine: str, count: int, value_size: int, seed: int, folder: str, seconds: float, budget_s: float) -> None:
    """Answer requests until standard input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # an engine that prints must not get between
    data = DataSet(count, value_size, seed)
    session = Session(ENGINES[engine], data, folder, seconds=seconds, budget_s=budget_s)
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        try:
            answer: dict[str, object] = {"figures": session.run(json.loads(line))}
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)
    session.close()


def main(arguments: list[str]) -> None:
    match arguments:
        case ["--fill-and-die", engine, path, count, value_size, seed]:
            fill_and_die(ENGINES[engine], path, int(count), int(value_size), int(seed))
        case ["--memory", engine, path, value_size, key]:
            print_memory(ENGINES[engine], path, int(value_size), bytes.fromhex(key))
        case ["--processes", workload, engine, path, value_size, seconds]:
            processes.print_figures(workload, ENGINES[engine], path, int(value_size), float(seconds))
        case ["--puts", engine, path, value_size]:
            processes.put_when_told(ENGINES[engine], path, int(value_size))
        case [engine, count, value_size, seed, folder, seconds, budget_s]:
            serve(engine, int(count), int(value_size), int(seed), folder, float(seconds), float(budget_s))
        case _:
            sys.exit("started by python -m tests.benchmarks")


if __name__ == "__main__":
    main(sys.argv[1:])
