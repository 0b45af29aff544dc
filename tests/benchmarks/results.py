"""What was measured, kept and compared: records, medians, ratios, targets.

Knows the records of a run, the machine they come from and the targets that bytekv has set itself. Knows nothing
of how they are shown.

A ratio is bytekv's figure divided by the peer's, taken within each round and then the median over the rounds: what
both were slowed down by cancels out. Below 1, bytekv is faster.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from .engines import ENGINES
from .runner import Record
from .workloads import WORKLOADS, Figures

#: Ratios that bytekv has to stay below, with values of 100 bytes; where there are two, at 100,000 and a million keys.
RATIO_TARGETS: Final[dict[str, dict[str, float | tuple[float, float]]]] = {
    "put": {"lmdb-writemap": 1.1, "lmdb": 0.4, "leveldb": 1.0, "rocksdb": 0.65, "sqlite": 0.06},
    "get": {"lmdb-writemap": 1.3, "lmdb": 1.2, "leveldb": 0.6, "rocksdb": (0.9, 0.25), "sqlite": 0.25},
    "delete": {"lmdb-writemap": 1.0, "lmdb": 0.35, "leveldb": 1.2, "rocksdb": 0.85, "sqlite": 0.06},
    "batch_put": {
        "lmdb-writemap": 1.2,
        "lmdb": (0.7, 0.45),
        "leveldb": (1.45, 1.0),
        "rocksdb": 1.0,
        "sqlite": 0.06,
    },
    "scan_before": {
        "lmdb-writemap": (3.5, 5.0),
        "lmdb": (3.5, 5.0),
        "leveldb": (1.5, 2.5),
        "rocksdb": (1.5, 2.5),
        "sqlite": 1.7,
    },
    "compact": {"leveldb": 3.0, "rocksdb": 3.0},
    "scan": {"lmdb-writemap": 1.3, "lmdb": 1.0, "leveldb": 0.9, "rocksdb": 0.8, "sqlite": 0.6},
    "prefix_scan": {"lmdb-writemap": 1.6, "lmdb": 1.2, "leveldb": 1.1, "rocksdb": 0.9, "sqlite": 0.9},
}


def ratio_target(workload: str, peer: str, keys: int) -> float | None:
    """Return the ratio that bytekv has to stay below, None if there is none."""
    limit = RATIO_TARGETS[workload].get(peer)
    return limit[keys >= 1_000_000] if isinstance(limit, tuple) else limit


RATIO_TARGET_SIZES: Final = ((100_000, 100), (1_000_000, 100))

PROCESSES: Final = (1, 2, 4, 8)

#: How much 1, 2, 4 and 8 processes have to do with bytekv, as a multiple of what they do with a peer.
PROCESS_TARGETS: Final[dict[str, dict[str, tuple[float, float, float, float]]]] = {
    "put": {"sqlite": (5, 5, 5, 5), "diskcache": (20, 20, 20, 20), "lmdb-writemap": (0.4, 0.4, 0.4, 0.4)},
    "batch": {"sqlite": (1.5, 3, 3, 3), "lmdb-writemap": (0.25, 0.5, 0.5, 0.5)},
    "get_put": {
        "sqlite": (3.5, 3.5, 3.5, 3.5),
        "diskcache": (10, 10, 10, 10),
        "lmdb-writemap": (0.6, 0.6, 0.6, 0.6),
    },
    "gets_put": {"sqlite": (3.5, 3.5, 3.5, 3.5), "lmdb-writemap": (0.6, 0.6, 0.6, 0.6)},
}


class Size(NamedTuple):
    """How many keys, and how long their values."""

    keys: int
    value_size: int

    def __str__(self) -> str:
        size = f"{self.value_size // 1024} KiB" if self.value_size % 1024 == 0 else f"{self.value_size} B"
        return f"{self.keys:,} keys, values of {size}"


class Goal(NamedTuple):
    """A target that is not one of the ratios, and what was measured."""

    text: str
    wanted: str
    measured: str
    is_met: bool


class Results:
    """All records of one or several runs, with what is known about them."""

    def __init__(self, about: dict[str, Any], records: Iterable[Record] = ()) -> None:
        self.about = about
        self.records = list(records)

    # --- files ---------------------------------------------------------------------------------

    @classmethod
    def load(cls, paths: Sequence[str]) -> Results:
        """Read what `save` has written; several files become one, described as the last of them.

        A workload of one size comes whole from the last file that has it: ratios must not pair one run with another.
        """
        about: dict[str, Any] = {}
        measured: dict[tuple[str, int, int], list[Record]] = {}
        for path in paths:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            about = content["about"]
            newer: dict[tuple[str, int, int], list[Record]] = {}
            for row in content["records"]:
                record = Record(**row)
                newer.setdefault((record.workload, record.keys, record.value_size), []).append(record)
            measured |= newer
        return cls(about, (record for records in measured.values() for record in records))

    def save(self, path: str) -> None:
        """Write everything as JSON, one record a line."""
        rows = ",\n".join(json.dumps(record._asdict()) for record in self.records)
        about = json.dumps(self.about, indent=1, ensure_ascii=False)
        temporary = Path(path + ".tmp")
        temporary.write_text(f'{{"about": {about},\n"records": [\n{rows}\n]}}\n', encoding="utf-8")
        temporary.replace(path)

    # --- figures -------------------------------------------------------------------------------

    def sizes(self, workloads: Iterable[str] | None = None) -> list[Size]:
        """List the sizes that were measured, the smallest values first."""
        wanted = None if workloads is None else set(workloads)
        found = {Size(r.keys, r.value_size) for r in self.records if wanted is None or r.workload in wanted}
        return sorted(found, key=lambda size: (size.value_size, size.keys))

    def engines(self, size: Size | None = None) -> list[str]:
        """List the engines that were measured, in the usual order."""
        found = {r.engine for r in self.records if size is None or (r.keys, r.value_size) == size}
        return [name for name in ENGINES if name in found]

    def figures(self, workload: str, engine: str, size: Size) -> Figures | None:
        """Return the medians over all rounds, None if it was not measured."""
        rounds = list(self._rounds(workload, engine, size).values())
        if not rounds:
            return None
        return {name: statistics.median(each[name] for each in rounds if name in each) for name in rounds[0]}

    def ratio(self, workload: str, peer: str, size: Size, clock: str = "wall") -> float | None:
        """Return bytekv's time divided by a peer's, None if they were not measured in the same round."""
        ours, theirs = self._rounds(workload, "bytekv", size), self._rounds(workload, peer, size)
        both = [(ours[number].get(clock), theirs[number].get(clock)) for number in ours.keys() & theirs.keys()]
        pairs = [mine / other for mine, other in both if mine is not None and other]
        return statistics.median(pairs) if pairs else None

    def _rounds(self, workload: str, engine: str, size: Size) -> dict[int, Figures]:
        return {
            r.round: r.figures
            for r in self.records
            if (r.workload, r.engine, r.keys, r.value_size) == (workload, engine, *size)
        }

    # --- targets -------------------------------------------------------------------------------

    def goals(self) -> list[Goal]:
        """Compare with the targets that are not ratios, as far as they were measured; the largest size counts."""
        return [
            *self._rates("open", "opening with hints", 3e6),
            *self._rates("open_no_hints", "replaying a log without hints", 1e6),
            *self._heap(),
            *self._durable(),
            *self._stalls(),
            *self._processes(),
        ]

    def _largest(self, workload: str) -> tuple[Size, Figures] | None:
        measured = [size for size in self.sizes([workload]) if self.figures(workload, "bytekv", size)]
        if not measured:
            return None
        size = max(measured, key=lambda size: (size.value_size == 100, size.keys))
        return size, self.figures(workload, "bytekv", size) or {}

    def _rates(self, workload: str, text: str, wanted: float) -> list[Goal]:
        for keys in (1_000_000, 100_000):
            figures = self.figures(workload, "bytekv", Size(keys, 100))
            if figures:
                rate = 1e6 / figures["wall"]
                return [
                    Goal(f"{text}, {keys:,} keys", f"≥ {wanted / 1e6:.0f} M/s", f"{rate / 1e6:.2f} M/s", rate >= wanted)
                ]
        return []

    def _heap(self) -> list[Goal]:
        goals = []
        if found := self._largest("heap"):
            worst = max(found[1]["written"], found[1]["opened"])
            goals.append(Goal(f"heap besides the key, {found[0]}", "≤ 90 B", f"{worst:.0f} B", worst <= 90))
        total = self.figures("memory", "bytekv", Size(10_000_000, 100))
        if total:
            gigabytes = total["opened"] * 10_000_000 / 1e9
            goals.append(
                Goal("memory of 10 million keys, keys included", "≤ 1.5 GB", f"{gigabytes:.2f} GB", gigabytes <= 1.5)
            )
        return goals

    def _durable(self) -> list[Goal]:
        goals = []
        for threads, peer, factor in ((1, "leveldb", 1), (8, "leveldb", 1), (32, "leveldb", 1), (32, "sqlite", 5)):
            name = f"durable_put_{threads}"
            for size in self.sizes([name])[:1]:
                ratio = self.ratio(name, peer, size)
                if ratio:
                    text = f"durable puts, {threads} thread{'s'[: threads > 1]}, beside {ENGINES[peer].title}"
                    goals.append(Goal(text, f"≥ {factor}×", f"{1 / ratio:.2f}×", 1 / ratio >= factor))
        return goals

    def _stalls(self) -> list[Goal]:
        goals = []
        if found := self._largest("put_while_compacting"):
            size, figures = found
            late, share = figures["p999"] / 1000, figures["throughput"]
            text = f"compacting {size.keys:,} entries"
            goals.append(Goal(f"p99.9 of put, {text}", "≤ 2 ms", f"{late:.2f} ms", late <= 2))
            goals.append(Goal(f"throughput of put, {text}", "≥ 60 %", f"{share:.0%}", share >= 0.6))
        if found := self._largest("gil_while_compacting"):
            longest = found[1]["max"] / 1000
            text = f"GIL held in one go, compacting {found[0].keys:,} entries"
            goals.append(Goal(text, "≤ 1 ms", f"{longest:.2f} ms", longest <= 1))
        if found := self._largest("put_while_expiring"):
            size, figures = found
            ratio, held = figures["p999"] / figures["without_p999"], figures["held_bytes"]
            text = f"beside {size.keys:,} keys that expire together"
            goals.append(Goal(f"p99.9 of put, {text}", "≤ 1.5×", f"{ratio:.2f}×", ratio <= 1.5))
            goals.append(Goal("held afterwards, for each of them", "≤ 10 bytes", f"{held:.0f} bytes", held <= 10))
        return goals

    def _processes(self) -> list[Goal]:
        goals = []
        for workload, limits in PROCESS_TARGETS.items():
            name = f"processes_{workload}"
            for size in self.sizes([name])[:1]:
                for peer, wanted in limits.items():
                    ratios = [self.ratio(name, peer, size, f"wall_{count}") for count in PROCESSES]
                    faster = [1 / ratio for ratio in ratios if ratio]
                    if len(faster) == len(wanted):
                        text = f"{WORKLOADS[name].title}, 1, 2, 4 and 8 processes, beside {ENGINES[peer].title}"
                        is_met = all(each >= least for each, least in zip(faster, wanted, strict=True))
                        goals.append(Goal(text, "≥ " + _joined(wanted, "g"), _joined(faster, ".2f") + "×", is_met))
        if size := next(iter(self.sizes(["processes_put"])), None):
            one, eight = ((self.figures("processes_put", "bytekv", size) or {}).get(f"wall_{n}") for n in (1, 8))
            if one and eight:
                share = one / eight
                goals.append(Goal("put, 8 processes beside 1", "≥ 0.8×", f"{share:.2f}×", share >= 0.8))
        for size in self.sizes(["processes_paced"])[:1]:
            for which in ("p50", "p99"):
                ratio = self.ratio("processes_paced", "sqlite", size, which)
                if ratio:
                    text = f"put every 2 ms beside a process that only puts, {which}, beside SQLite"
                    goals.append(Goal(text, "≤ 1×", f"{ratio:.2f}×", ratio <= 1))
        for size in self.sizes(["processes_durable"])[:1]:
            for peer in ("sqlite", "lmdb"):
                ratio = self.ratio("processes_durable", peer, size, "wall_8")
                if ratio:
                    text = f"durable puts, 8 processes, beside {ENGINES[peer].title.removesuffix(' nosync')}"
                    goals.append(Goal(text, "≥ 5×", f"{1 / ratio:.2f}×", 1 / ratio >= 5))
        for name, figure, most, text in (
            ("processes_alone", "put_ratio", 2.2, "shared put, alone, beside an exclusive one"),
            ("processes_alone", "get_ratio", 1.05, "shared get, nothing new, beside an exclusive one"),
            ("processes_follow", "first_ratio", 4, "first get after another process's put, in exclusive puts"),
            ("processes_follow", "replay_ratio", 1.2, "catching up in bulk, for each put, in exclusive puts"),
        ):
            if found := self._largest(name):
                ratio = found[1][figure]
                goals.append(Goal(text, f"≤ {most:g}×", f"{ratio:.2f}×", ratio <= most))
        return goals


def _joined(figures: Iterable[float], form: str) -> str:
    return " / ".join(f"{each:{form}}" for each in figures)


def describe_machine(folder: str) -> dict[str, Any]:
    """Tell where and with what the figures were made."""
    root = Path(__file__).parents[2]
    git = subprocess.run(["git", "-C", str(root), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": git.stdout.strip(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(_memory_bytes() / 1e9, 1),
        "file_system": _file_system(folder),
        "versions": {name: version for name, engine in ENGINES.items() if (version := engine.version())},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0


def _file_system(folder: str) -> str:
    """Return the type of the file system under a folder, as far as the system tells."""
    try:
        rows = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return "unknown"
    real = os.path.realpath(folder)
    over = [row for row in rows if real == row[1] or real.startswith(row[1].rstrip("/") + "/")]
    return max(over, key=lambda row: len(row[1]))[2] if over else "unknown"
