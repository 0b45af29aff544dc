"""Every method of testing at length, and a table of what it found: ``python -m tests.deep --budget 600 --seed 7``.

The methods are those of the tests, from the modules where the default run takes a sample of them: iterators of cases.
Here each has a process of its own, so that none disturbs another and one that dies is a finding, and a share of the
time. What a method that comes to its end has left goes to those after it. Progress is on standard error, the table on
standard output, and the exit status is 1 if anything went wrong.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.support.harness import WRONG, Case

PAGE = Path(__file__).parent.parent / "docs/explanation/durability.md"
BEGIN, END = "<!-- deep: begin -->\n", "<!-- deep: end -->\n"
VIOLATIONS = 10  # after so many a method stops
PROGRESS_S = 10.0


class Method(NamedTuple):
    """A share of the time, and what yields cases: a function of a directory and a seed."""

    share: float
    function: str


METHODS = {
    "crash_images": Method(20, "crash.test_crash_images:crash_images"),
    "kills": Method(12, "support.kills:kills"),
    "flips_and_cuts": Method(12, "engine.integrity.test_sweeps:flips_and_cuts"),
    "system_calls": Method(12, "crash.test_faults:failed_calls"),
    "failed_syncs": Method(3, "crash.test_failed_sync:failed_syncs"),
    "interrupts": Method(10, "crash.test_interrupts:count_interrupts"),
    "signals": Method(10, "crash.test_handlers:count_signals"),
    "finalisers": Method(6, "crash.test_handlers:count_finalisers"),
    "memory_errors": Method(6, "crash.test_memory_errors:count_memory_errors"),
    "lives": Method(6, "model.test_state_machine:lives"),
    "shared_lives": Method(4, "engine.sharing.test_machine:shared_lives"),
    "short_stories": Method(3, "crash.test_second_crash:short_stories"),
    "expiry_stories": Method(3, "engine.test_expiry:expiry_stories"),
    "repairs": Method(6, "engine.integrity.test_repair_model:repairs"),
    "hostile": Method(4, "support.hostile:hostile_directories"),
    "fuzz": Method(3, "model.test_fuzz:fuzz_cases"),
    "shared_kills": Method(6, "engine.sharing.test_shared_kills:kills"),
    "shared_interrupts": Method(6, "engine.sharing.test_shared_interrupts:interrupts"),
    "mutants": Method(12, "mutants:mutants_caught"),
}
#: These take a budget and a seed, and return (cases, violations, seed) at their end; no cases if they cannot be made.
TALLIES = {
    "interrupts": "KeyboardInterrupt at each opcode",
    "signals": "signals at each opcode",
    "finalisers": "finalisers at each opcode",
    "memory_errors": "MemoryError at each allocation",
}


class Row(NamedTuple):
    """What is known of one kind of cases."""

    kind: str
    cases: int
    violations: int
    seed: int
    is_all: bool = False

    def cells(self) -> tuple[str, str, str, str]:
        return self.kind, f"{self.cases:,}{' (all)' if self.is_all else ''}", str(self.violations), str(self.seed)


TITLES = ("method", "cases", "violations", "seed")


# --- one method, in a process of its own -------------------------------------------------------


def cases_of(name: str, place: Path, seed: int, budget_s: float) -> Iterator[Case]:
    module, _, function = METHODS[name].function.partition(":")
    made = getattr(importlib.import_module(f"tests.{module}"), function)
    if name not in TALLIES:
        yield from made(place, seed)
        return
    began = time.monotonic()
    cases, violations, _ = made(budget_s, seed)
    if cases:  # none where this Python cannot do it, and the method has said so
        yield Case(TALLIES[name], count=cases, is_last=time.monotonic() - began < budget_s)
    for violation in violations:
        yield Case(TALLIES[name], AssertionError(violation), count=0)


def run_here(name: str, budget_s: float, seed: int) -> list[Row]:
    """Go through the cases of one method for so long; say on standard error how far it is, and what went wrong."""
    began = said = time.monotonic()
    rows: dict[str, Row] = {}
    is_over = False
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    place = Path(tempfile.mkdtemp(prefix="bytekv-deep-", dir=base))
    cases = cases_of(name, place, seed, budget_s)
    try:
        is_told = name in TALLIES  # whatever time it took, all that was found
        while is_told or (
            time.monotonic() - began < budget_s and sum(row.violations for row in rows.values()) < VIOLATIONS
        ):
            broken: BaseException | None = None
            try:
                case = next(cases, None)
            except WRONG as error:  # of the method itself, which has come to its end by that
                broken = error
                case = Case(name.replace("_", " "), error, count=0)
            if case is None:
                is_over = not is_told
                break
            row = rows.setdefault(case.kind, Row(case.kind, 0, 0, seed))
            rows[case.kind] = row._replace(
                cases=row.cases + case.count,
                violations=row.violations + (case.error is not None),
                is_all=row.is_all or case.is_last,
            )
            if case.error is not None:
                print(
                    f"\n{case.kind}, seed {seed}:", *traceback.format_exception(case.error), sep="\n", file=sys.stderr
                )
            if broken is not None:
                break
            if time.monotonic() - said > PROGRESS_S:
                said = time.monotonic()
                far = "; ".join(f"{row.cases:,} {row.kind}, {row.violations} violations" for row in rows.values())
                print(f"{said - began:.0f} of {budget_s:.0f} s: {far}", file=sys.stderr, flush=True)
    finally:
        cases.close()
        shutil.rmtree(place, ignore_errors=True)
    return [row._replace(is_all=row.is_all or is_over) for row in rows.values()]


def run_apart(name: str, budget_s: float, seed: int) -> list[Row]:
    """Run one method in a process of its own and return what it reports; that it died is one violation."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report"
        command = [sys.executable, "-m", "tests.deep", "--only", name, "--report", str(report)]
        command += ["--budget", str(budget_s), "--seed", str(seed)]
        done = subprocess.run(command, cwd=Path(__file__).parent.parent, check=False)
        if not report.exists():
            print(f"{name}: the process ended with {done.returncode}", file=sys.stderr)
            return [Row(name.replace("_", " "), 0, 1, seed)]
        return [Row(*row) for row in json.loads(report.read_text())]


# --- all of them -------------------------------------------------------------------------------


def run_all(names: list[str], budget_s: float, seed: int) -> list[Row]:
    """Run methods one after the other, each for its share of the time that is left."""
    until = time.monotonic() + budget_s
    rows: list[Row] = []
    for number, name in enumerate(names):
        share = METHODS[name].share / sum(METHODS[other].share for other in names[number:])
        given = max(0.5, share * (until - time.monotonic()))
        print(f"{name}: up to {given:.0f} s", file=sys.stderr, flush=True)
        rows += run_apart(name, given, seed)
    return rows


def as_text(rows: list[Row]) -> str:
    table = [TITLES, *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "".join(
        f"{line[0]:<{widths[0]}}"
        + "".join(f"  {cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True))
        + "\n"
        for line in table
    )


def as_markdown(rows: list[Row]) -> str:
    lines = [TITLES, ("---", "---:", "---:", "---:"), *(row.cells() for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _machine() -> str:
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next((line.partition(": ")[2].strip() for line in file if line.startswith("model name")), model)
    except OSError:
        pass
    return f"{model}, {os.cpu_count()} cores, {platform.system()} {platform.release()}"


def section(rows: list[Row], budget_s: float, seed: int) -> str:
    """Return what stands between the markers of the page."""
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return (
        f"`python -m tests.deep --budget {budget_s:g} --seed {seed}` on {time.strftime('%Y-%m-%d')}, {python}, "
        f"{_machine()}:\n\n{as_markdown(rows)}"
    )


def write_into(page: str, text: str) -> str:
    """Return a page with another text between its markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks {BEGIN.strip()} or {END.strip()}")
    return f"{before}{BEGIN}{text}{END}{after}"


def main(arguments: list[str] | None = None) -> int:
    """Carry out what the command line says and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.deep", description=__doc__.partition(":")[0])
    parser.add_argument("--budget", type=float, default=600.0, metavar="SECONDS", help="for all of it (%(default)g)")
    parser.add_argument("--seed", type=int, default=None, help="of whatever is left to chance; else a new one")
    parser.add_argument("--only", action="append", choices=METHODS, metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument("--markdown", action="store_true", help="print the table for the documentation")
    parser.add_argument("--write", action="store_true", help=f"put it into {PAGE.name}, too")
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    seed = given.seed if given.seed is not None else time.time_ns() % 1_000_000
    if given.report is not None:
        (name,) = given.only
        logging.disable()  # what a damaged store has to say is what it is asked for here
        given.report.write_text(json.dumps(run_here(name, given.budget, seed)))
        return 0
    rows = run_all(given.only or [*METHODS], given.budget, seed)
    print(as_markdown(rows) if given.markdown else as_text(rows), end="")
    if given.write:
        PAGE.write_text(
            write_into(PAGE.read_text(encoding="utf-8"), section(rows, given.budget, seed)), encoding="utf-8"
        )
    return int(any(row.violations for row in rows))


if __name__ == "__main__":
    sys.exit(main())
