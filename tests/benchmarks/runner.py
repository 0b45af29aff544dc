"""Who is measured when: processes, rounds, pairs.

Each engine has a process of its own, for one round of one size. The processes live side by side, but only one
works: a workload runs on one engine after the other, so that what is compared was measured within seconds of each
other; who begins rotates from round to round. Knows nothing of what a workload does.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .engines import ENGINES

Progress = Callable[[str], None]
SLOW_ABOVE = 100_000


class Record(NamedTuple):
    """What one workload on one engine gave in one round."""

    workload: str
    engine: str
    keys: int
    value_size: int
    round: int
    figures: dict[str, float]


@dataclass(frozen=True)
class Plan:
    """One size, with what is to run on it."""

    keys: int
    value_size: int
    workloads: tuple[str, ...]
    engines: tuple[str, ...]
    rounds: int

    def jobs(self) -> list[tuple[str, list[str]]]:
        """List the workloads, each with the engines that can run it."""
        return [
            (workload, [name for name in self.engines if workload not in ENGINES[name].lacks])
            for workload in self.workloads
        ]


class WorkerError(Exception):
    """A workload failed; what it said is the message."""


class _Worker:
    def __init__(self, engine: str, plan: Plan, seed: int, folder: str, seconds: float, budget_s: float) -> None:
        self.engine = engine
        self._folder = tempfile.mkdtemp(prefix=f"bytekv-benchmark-{engine}-", dir=folder)
        command = [sys.executable, "-m", "tests.benchmarks.worker", engine, str(plan.keys), str(plan.value_size)]
        command += [str(seed), self._folder, str(seconds), str(budget_s)]
        self._process = subprocess.Popen(
            command,
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for us: we end the workers
        )

    def wait_until_ready(self) -> None:
        self._answer()

    def run(self, workload: str) -> dict[str, float]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(workload) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it is dead; `_answer` says so
        answer = self._answer()
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer["figures"]  # type: ignore[no-any-return]

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(f"the process of {self.engine} ended with status {self._process.wait()}")
        return json.loads(line)

    def end(self, *, at_once: bool = False) -> None:
        """Let the process finish, or kill it; remove its stores."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            if at_once:
                self._process.kill()
            self._process.stdin.close()
            self._process.wait(60)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def measure(
    plan: Plan,
    folder: str,
    *,
    seconds: float,
    budget_s: float,
    tell: Progress,
    keep: Callable[[Record], None],
) -> list[str]:
    """Run a plan, handing over each record as it comes; return what failed."""
    failures = []
    for number in range(plan.rounds):
        engines = _rotated(plan.engines, number)
        began = time.monotonic()
        workers = {name: _Worker(name, plan, number, folder, seconds, budget_s) for name in engines}
        try:
            for name, worker in list(workers.items()):
                try:
                    worker.wait_until_ready()
                except WorkerError as error:
                    failures.append(str(error))
                    workers.pop(name).end()
            for workload, able in plan.jobs():
                for name in engines:
                    if name not in workers or name not in able:
                        continue
                    tell(f"{plan.keys:,} × {plan.value_size} B, round {number + 1}/{plan.rounds}: {workload}, {name}")
                    try:
                        figures = workers[name].run(workload)
                    except WorkerError as error:
                        failures.append(f"{workload} on {name}:\n{error}")
                        workers.pop(name).end()
                        continue
                    keep(Record(workload, name, plan.keys, plan.value_size, number, figures))
        except BaseException:
            for worker in workers.values():
                worker.end(at_once=True)
            raise
        for worker in workers.values():
            worker.end()
        tell(f"{plan.keys:,} × {plan.value_size} B, round {number + 1}/{plan.rounds}: {time.monotonic() - began:.0f} s")
    return failures


def _rotated(names: Sequence[str], number: int) -> list[str]:
    by = number % len(names)
    return [*names[by:], *names[:by]]
