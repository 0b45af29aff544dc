"""Measure bytekv beside its peers: ``python -m tests.benchmarks --help``."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import textwrap
from pathlib import Path

from . import report, runner
from .engines import ENGINES
from .results import RATIO_TARGETS, Results, describe_machine
from .runner import Plan
from .workloads import WORKLOADS

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "benchmarks.md"

#: Names for several workloads.
SETS = {
    "targets": tuple(RATIO_TARGETS),
    "ttl": tuple(name for name in WORKLOADS if name.startswith("ttl_")),
    "durable": ("durable_put_1", "durable_put_8", "durable_put_32"),
    "mixed": ("ycsb_a", "ycsb_b", "ycsb_c", "ycsb_e"),
    "space": ("heap", "memory", "disk"),
    "stalls": (
        "put_while_compacting",
        "gil_while_compacting",
        "put_while_expiring",
        "steady_space",
        "snapshot_space",
        "pauses",
    ),
    "processes": tuple(name for name in WORKLOADS if name.startswith("processes_")),
    "segments": tuple(name for name in WORKLOADS if name.startswith("segments_")),
    "growth": ("put", "get", "scan", "open", "open_no_hints", "memory"),
}
SETS["standard"] = tuple(
    name for name in WORKLOADS if name not in SETS["segments"] + SETS["stalls"] + SETS["processes"]
)
SETS["core"] = tuple(name for name in SETS["standard"] if name not in (*SETS["durable"], "put_sequential", "disk"))
SETS["sizes"] = ("batch_put", "put", "get", "overwrite", "scan_before", "compact", "scan", "delete", "disk")

_EXAMPLES = """
examples:
  python -m tests.benchmarks --quick                         a minute: 10,000 keys, one round
  python -m tests.benchmarks                                 100,000 keys, all engines
  python -m tests.benchmarks --workloads targets --keys 100000 1000000 --engines bytekv lmdb lmdb-writemap
  python -m tests.benchmarks --growth --json growth.json     10 thousand to 10 million keys, 1 to 1,000 segments
  python -m tests.benchmarks --write-docs --quick            the same in ten minutes, less what is not in the targets
  python -m tests.benchmarks --write-docs                    everything, then docs/explanation/benchmarks.md
  python -m tests.benchmarks --write-docs --from a.json b.json    the page again from earlier figures

workloads:
"""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    width = 100
    listed = [
        textwrap.fill(f"{name}: {about.text}", width, initial_indent="  ", subsequent_indent="      ")
        for name, about in WORKLOADS.items()
    ]
    listed += [
        textwrap.fill(f"{name} = {' '.join(each)}", width, initial_indent="  ", subsequent_indent="      ")
        for name, each in SETS.items()
    ]
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description=__doc__,
        epilog=_EXAMPLES + "\n".join(listed),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--engines", nargs="+", choices=list(ENGINES), metavar="NAME", help=f"of {', '.join(ENGINES)}")
    add("--workloads", nargs="+", choices=[*WORKLOADS, *SETS], default=["standard"], metavar="NAME", help="see below")
    add("--keys", nargs="+", type=int, default=[100_000], metavar="N", help="numbers of keys (100000)")
    add("--values", nargs="+", type=int, default=[100], metavar="BYTES", help="sizes of values, 8 at least (100)")
    add("--rounds", type=int, default=3, metavar="N")
    add("--quick", action="store_true", help="10,000 keys, one round, short durable runs")
    add(
        "--growth",
        action="store_true",
        help="10 thousand to 10 million keys, 1 to 1,000 segments; needs 8 GB of memory",
    )
    add(
        "--max-gb", type=float, default=1.0, metavar="GB", help="cut the number of keys so that a store stays below (1)"
    )
    add("--seconds", type=float, default=2.0, metavar="S", help="for workloads that run for a time (2)")
    add("--budget", type=float, default=60.0, metavar="S", help="after which reading and deleting is cut short (60)")
    add("--clock", choices=("wall", "cpu"), default="wall", help="which time the tables show (wall)")
    add("--dir", default=tempfile.gettempdir(), help="where the stores are made")
    add("--json", metavar="FILE", help="keep every figure there, written anew after each workload")
    add("--from", dest="earlier", nargs="+", metavar="FILE", help="measure nothing, show what --json has kept")
    add("--write-docs", action="store_true", help="write docs/explanation/benchmarks.md with its plots")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or min(options.keys) < 1 or min(options.values) < 8 or options.budget <= 0:
        parser.error("--rounds and --keys must be 1 at least, --values 8 at least, --budget more than 0")
    return options


def plans(options: argparse.Namespace) -> list[Plan]:
    """Turn the command line into what is to be measured."""
    named = tuple(options.engines or ENGINES)
    installed = tuple(name for name in named if ENGINES[name].version() is not None)
    fast = tuple(name for name in installed if options.engines or not ENGINES[name].is_slow)
    growing = tuple(name for name in ("bytekv", "lmdb-writemap", "leveldb", "dict") if name in installed)
    growth = [
        *(Plan(keys, 100, SETS["growth"], growing, rounds) for keys, rounds in ((10_000, 5), (10_000_000, 1))),
        Plan(100_000, 100, SETS["segments"], ("bytekv",), 3),
    ]
    if options.write_docs and options.quick:  # ten minutes
        peers = tuple(
            name for name in ("bytekv", "lmdb-writemap", "lmdb", "leveldb", "rocksdb", "sqlite") if name in fast
        )
        mortal = tuple(name for name in ("bytekv", "sqlite", "diskcache", "redis") if name in installed)
        return [
            Plan(100_000, 100, (*SETS["targets"], "open", "heap"), peers, 3),
            Plan(100_000, 100, SETS["ttl"], mortal, 1),
            Plan(1_000_000, 100, SETS["targets"], peers, 1),
            Plan(10_000, 100, SETS["growth"], growing, 2),
            Plan(10_000_000, 100, SETS["growth"], ("bytekv",), 1),
        ]
    if options.write_docs:
        return [
            Plan(100_000, 100, SETS["standard"], installed, 5),
            Plan(1_000_000, 100, SETS["core"], fast, 3),
            Plan(100_000, 1024, SETS["sizes"], fast, 3),
            Plan(10_000, 65_536, SETS["sizes"], fast, 3),
            Plan(1_000_000, 100, SETS["stalls"], ("bytekv",), 2),
            Plan(10_000, 100, SETS["processes"], installed, 5),
            *growth,
        ]
    if options.growth:
        return [
            Plan(100_000, 100, SETS["growth"], growing, 3),
            Plan(1_000_000, 100, SETS["growth"], growing, 2),
            *growth,
        ]
    wanted = {name for given in options.workloads for name in SETS.get(given, (given,))}
    workloads = tuple(name for name in WORKLOADS if name in wanted)
    keys, rounds = ([10_000], 1) if options.quick else (options.keys, options.rounds)
    found = []
    for value_size in options.values:
        most = max(100, int(options.max_gb * 1e9) // value_size)
        for count in dict.fromkeys(min(each, most) for each in keys):
            engines = installed if count <= runner.SLOW_ABOVE else fast
            found.append(Plan(count, value_size, workloads, engines, rounds))
    return found


def say(text: str) -> None:
    """Tell what is going on."""
    print(text, file=sys.stderr, flush=True)


def show_progress(text: str) -> None:
    """Tell what is going on, on one line where that is possible."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
    else:
        say(text)


def measure(options: argparse.Namespace) -> tuple[Results, list[str]]:
    """Measure everything that was asked for; return it and what failed."""
    for name in options.engines or ENGINES:
        if ENGINES[name].version() is None:
            say(f"{name}: skipped, it is not installed (pip install {ENGINES[name].package})")
    results = Results(describe_machine(options.dir) | {"command": " ".join(sys.argv[1:])})
    failures: list[str] = []

    def keep(record: runner.Record) -> None:
        results.records.append(record)
        if options.json:
            results.save(options.json)

    for plan in plans(options):
        left_out = [name for name in ENGINES if plan.keys > runner.SLOW_ABOVE and ENGINES[name].is_slow]
        if left_out and not options.engines:
            say(f"{plan.keys:,} keys: {' and '.join(left_out)} left out; name them with --engines if you have the time")
        try:
            failures += runner.measure(
                plan,
                options.dir,
                seconds=0.2 if options.quick else options.seconds,
                budget_s=options.budget,
                tell=show_progress,
                keep=keep,
            )
        except KeyboardInterrupt:
            failures.append("interrupted: what had been measured by then is shown")
            break
    if sys.stderr.isatty():
        say("")
    return results, failures


def main(arguments: list[str] | None = None) -> int:
    """Measure or read, then show, then write the page if asked to."""
    options = parse(arguments)
    failures: list[str] = []
    if options.write_docs:
        from . import plots  # first, so that a missing matplotlib is known before hours of measuring

        options.json = options.json or str(PAGE.with_suffix(".json"))
    if options.earlier:
        results = Results.load(options.earlier)
    else:
        results, failures = measure(options)
        options.write_docs = options.write_docs and not failures
    print(report.about(results))
    for table in report.tables(results, options.clock):
        print("\n" + table.as_text())
    if options.write_docs:
        folder = PAGE.with_suffix("")
        os.makedirs(folder, exist_ok=True)
        report.write_page(results, PAGE, plots.draw(results, folder))
        say(f"wrote {PAGE}")
    for failure in failures:
        say("FAILED: " + failure)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
