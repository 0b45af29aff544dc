"""Results as tables: on a terminal, and as Markdown for the documentation.

Knows how figures are rounded, named and laid out. Each table is made once and rendered in both forms.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .engines import ENGINES
from .results import PROCESSES, RATIO_TARGET_SIZES, RATIO_TARGETS, Results, Size, ratio_target
from .workloads import WORKLOADS, Figures

_RATES = ("keys/s", "ops/s")
_TIMED = [name for name, about in WORKLOADS.items() if about.unit in ("µs", *_RATES) and "segments" not in name]
_SEGMENTS = [name for name in WORKLOADS if name.startswith("segments_")]
_GROWTH = ("put", "get", "scan", "open", "open_no_hints")


@dataclass
class Table:
    """A table with a title, the names of its columns, its rows, and a remark below."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    remark: str = ""
    is_prose: bool = False  # text in its cells, not figures

    def as_text(self) -> str:
        """Lay out for a terminal."""
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]
        side = "<" if self.is_prose else ">"
        lines = [self.title, *(self._line(row, widths, side) for row in (self.columns, *self.rows))]
        return "\n".join([*lines, *([self.remark] if self.remark else [])])

    @staticmethod
    def _line(row: Sequence[str], widths: Sequence[int], side: str) -> str:
        first, *rest = zip(row, widths, strict=True)
        return "  ".join([f"{first[0]:{first[1]}}", *(f"{cell:{side}{width}}" for cell, width in rest)]).rstrip()

    def as_markdown(self) -> str:
        """Lay out for the documentation."""
        rule = ["---", *["---" if self.is_prose else "--:"] * (len(self.columns) - 1)]
        lines = [f"| {' | '.join(row)} |" for row in (self.columns, rule, *self.rows)]
        return "\n".join([f"**{self.title}**", "", *lines, *(["", self.remark] if self.remark else [])])


def _number(value: float) -> str:
    """Round to three digits or so."""
    if 0 < value < 0.1:
        return f"{value:.3f}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _rate(value: float) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{_number(value / size)} {unit}"
    return _number(value)


def _time(figures: Figures | None, unit: str, clock: str) -> str:
    if figures is None:
        return "–"
    return _rate(1e6 / figures[clock]) if unit in _RATES else _number(figures[clock])


def _named(name: str) -> str:
    about = WORKLOADS[name]
    return f"{about.title} [{about.unit}]"


# --- tables ------------------------------------------------------------------------------------


def times(results: Results, size: Size, clock: str) -> Table | None:
    """Time or rate of every workload on every engine."""
    engines = results.engines(size)
    rows = []
    for workload in _TIMED:
        found = [results.figures(workload, engine, size) for engine in engines]
        if any(found):
            rows.append([_named(workload), *(_time(each, WORKLOADS[workload].unit, clock) for each in found)])
    title = f"{size}: {'elapsed' if clock == 'wall' else 'CPU'} time of one operation, or operations in a second"
    return Table(title, ["", *engines], rows) if rows else None


def ratios(results: Results, size: Size) -> Table | None:
    """bytekv's times divided by the peers', elapsed and CPU."""
    peers = [engine for engine in results.engines(size) if engine != "bytekv"]
    rows = []
    for workload in _TIMED:
        cells = []
        for peer in peers:
            wall, cpu = (results.ratio(workload, peer, size, clock) for clock in ("wall", "cpu"))
            cells.append("–" if wall is None or cpu is None else f"{_number(wall)} / {_number(cpu)}")
        if set(cells) - {"–"}:
            rows.append([WORKLOADS[workload].title, *cells])
    title = f"{size}: bytekv / peer, elapsed / CPU (below 1: bytekv is faster)"
    return Table(title, ["", *peers], rows) if rows else None


def targets(results: Results, size: Size, clock: str) -> Table | None:
    """The ratios that were set as targets, each with its limit."""
    peers = list(RATIO_TARGETS["put"])
    rows, met, counted = [], 0, 0
    for workload in RATIO_TARGETS:
        cells = []
        for peer in peers:
            ratio, limit = results.ratio(workload, peer, size, clock), ratio_target(workload, peer, size.keys)
            if limit is None or ratio is None:
                cells.append("" if limit is None else "–")
                continue
            is_met = round(ratio, 3) <= limit
            met, counted = met + is_met, counted + 1
            cells.append(f"{_number(ratio)} ≤ {limit:g} {'✓' if is_met else '✗'}")
        if set(cells) - {"–", ""}:
            rows.append([WORKLOADS[workload].title, *cells])
    title = f"{size}: targets, bytekv / peer, {'elapsed' if clock == 'wall' else 'CPU'} time: {met} of {counted} met"
    return Table(title, ["", *peers], rows) if counted else None


def goals(results: Results) -> Table | None:
    """The other targets."""
    rows = [[goal.text, goal.wanted, goal.measured, "✓" if goal.is_met else "✗"] for goal in results.goals()]
    return Table("Other targets", ["", "wanted", "measured", "met"], rows) if rows else None


def latencies(results: Results, size: Size) -> Table | None:
    """Percentiles of single gets and puts."""
    shown = {"p50": "p50", "p90": "p90", "p99": "p99", "p999": "p99.9", "p9999": "p99.99", "max": "max"}
    rows = []
    for workload in ("get_latency", "put_latency"):
        for engine in results.engines(size):
            figures = results.figures(workload, engine, size)
            if figures:
                name = f"{workload.partition('_')[0]}, {ENGINES[engine].title}"
                rows.append([name, *(_number(figures[key]) for key in shown)])
    return Table(f"{size}: latency of single operations [µs]", ["", *shown.values()], rows) if rows else None


def space(results: Results, size: Size) -> Table | None:
    """Heap for a key and disk for a byte."""
    columns = {
        "heap": ("written", "opened", "ordered"),
        "memory": ("opened", "ordered"),
        "disk": ("loaded", "overwritten", "compacted"),
    }
    rows = []
    for engine in results.engines(size):
        cells = []
        for workload, names in columns.items():
            figures = results.figures(workload, engine, size) or {}
            cells += [_number(figures[name]) if name in figures else "–" for name in names]
        if set(cells) - {"–"}:
            rows.append([ENGINES[engine].title, *cells])
    heads = [f"{workload}, {name}" for workload, names in columns.items() for name in names]
    remark = "heap, memory: bytes for a key; disk: bytes for a live byte"
    return Table(f"{size}: space", ["", *heads], rows, remark) if rows else None


_PAUSES = (
    ("idle", "nothing"),
    ("busy", "a loop of Python that counts"),
    ("order", "the first ordered use"),
    ("order_again", "an ordered use after an eighth has changed"),
    ("overwrite", "an overwrite of each under a snapshot"),
    ("first_scan", "the first scan of that snapshot"),
    ("update", "`update()` of all"),
    ("delete", "a batch that deletes all"),
    ("clear", "`clear()`"),
    ("clear_viewed", "`clear()` under an open snapshot"),
)


def stalls(results: Results) -> Table | None:
    """What an application feels of what happens in the background."""
    rows = []
    shown = ("p50", "p99", "p999", "max")
    for size in results.sizes(["put_while_compacting", "gil_while_compacting", "put_while_expiring"]):
        for workload, prefix, text in (
            ("put_while_compacting", "without_", "put without compaction"),
            ("put_while_compacting", "", "put while compacting"),
            ("gil_while_compacting", "", "GIL held in one go"),
            ("gil_while_compacting", "outside_", "another thread waits for the GIL"),
            ("put_while_expiring", "without_", "put without expiry"),
            ("put_while_expiring", "", "put while as many keys expire"),
        ):
            figures = results.figures(workload, "bytekv", size)
            if figures:
                late = "" if prefix or workload.startswith("gil") else f"{figures['throughput']:.0%}"
                done = "" if prefix == "without_" else "yes" if figures[f"{prefix}finished"] else "no"
                cells = [_number(figures[prefix + name]) for name in shown]
                rows.append([f"{size.keys:,} entries: {text}", *cells, late, done])
    columns = ["", "p50", "p99", "p99.9", "max", "throughput", "finished"]
    return Table("Background compaction [µs]", columns, rows) if rows else None


def steady_space(results: Results) -> Table | None:
    """How large a store is while it is overwritten for ever."""
    rows = []
    for size in results.sizes(["steady_space"]):
        if figures := results.figures("steady_space", "bytekv", size):
            rows.append(
                [
                    str(size),
                    f"{figures['live_bytes'] / 2**20:.1f}",
                    f"{figures['most']:.2f}",
                    f"{figures['beyond_twice_bytes'] / 2**20:.1f}",
                    f"{figures['at_end']:.2f}",
                    *(f"{figures[name]:.2f}" for name in ("close_s", "open_s", "throttled_s")),
                    f"{figures['throughput']:.0%}",
                ]
            )
    columns = ["", "live [MiB]", "disk at most [×]", "beyond twice [MiB]", "at the end [×]"]
    columns += ["close [s]", "open [s]", "throttled [s]", "throughput"]
    return Table("Overwritten for ever", columns, rows) if rows else None


def processes(results: Results) -> Table | None:
    """How much several processes do with one store."""
    rows = []
    for size in results.sizes([name for name, about in WORKLOADS.items() if about.unit == "processes"])[:1]:
        for workload, about in WORKLOADS.items():
            for engine in results.engines(size) if about.unit == "processes" else ():
                figures = results.figures(workload, engine, size) or {}
                cells = [
                    f"{_rate(1e6 / figures[f'wall_{count}'])} · {figures[f'share_{count}']:.2f}"
                    if f"wall_{count}" in figures
                    else "–"
                    for count in PROCESSES
                ]
                cells += [_number(figures[name]) if name in figures else "–" for name in ("p50", "p99")]
                if set(cells) - {"–"}:
                    rows.append([f"{about.title}, {ENGINES[engine].title}", *cells])
    columns = ["", *(str(count) for count in PROCESSES), "p50 [µs]", "p99 [µs]"]
    remark = "operations in a second · what the slowest did, divided by what the fastest did"
    return Table("Processes that share a store", columns, rows, remark) if rows else None


def snapshot_space(results: Results) -> Table | None:
    """How large a store is while it is overwritten under an open snapshot."""
    rows = []
    for size in results.sizes(["snapshot_space"]):
        if figures := results.figures("snapshot_space", "bytekv", size):
            live = f"{figures['live_bytes'] / 2**20:.1f}"
            rows.append([str(size), live, f"{figures['most']:.2f}", f"{figures['pinned']:.2f}"])
    columns = ["", "live [MiB]", "disk at most [×]", "kept for the snapshot [×]"]
    return Table("Overwritten under a snapshot", columns, rows) if rows else None


def pauses(results: Results) -> Table | None:
    """How long a writer waits beside another thread that does something with all keys."""
    rows = []
    for size in results.sizes(["pauses"]):
        if figures := results.figures("pauses", "bytekv", size):
            for name, text in _PAUSES:
                pause_ms, took_s = figures[f"{name}_pause"] / 1000, figures[f"{name}_s"]
                rows.append([f"{size.keys:,} keys: {text}", f"{pause_ms:.1f}", f"{took_s:.2f}"])
    columns = ["beside", "longest pause [ms]", "took itself [s]"]
    return Table("A writer beside what is done with all keys", columns, rows) if rows else None


def growth(results: Results) -> Table | None:
    """How times change with the number of keys."""
    sizes = [size for size in results.sizes(_GROWTH) if size.value_size == 100]
    engines = [
        engine for engine in results.engines() if sum(bool(results.figures("get", engine, size)) for size in sizes) > 2
    ]
    rows = []
    for workload in (*_GROWTH, "memory"):
        for engine in engines:
            found = [results.figures(workload, engine, size) for size in sizes]
            if not any(found):
                continue
            unit = WORKLOADS[workload].unit
            cells = [
                "–" if each is None else _number(each["opened"]) if workload == "memory" else _time(each, unit, "wall")
                for each in found
            ]
            rows.append([f"{_named(workload)}, {engine}", *cells])
    columns = ["", *(f"{size.keys:,}" for size in sizes)]
    return Table("Growth with the number of keys, values of 100 B", columns, rows) if rows and len(sizes) > 2 else None


def segments(results: Results) -> Table | None:
    """What many segments cost."""
    rows = []
    for size in results.sizes(_SEGMENTS):
        for workload in _SEGMENTS:
            figures = results.figures(workload, "bytekv", size)
            if figures:
                times = [_number(figures[name]) for name in ("wall", "put_wall")]
                rows.append([f"{figures['segments']:,.0f}", *times, _rate(1e6 / figures["open_wall"])])
    columns = ["segments", "get [µs]", "put [µs]", "open [keys/s]"]
    return Table("Growth with the number of segments (bytekv)", columns, rows) if rows else None


def durability(engines: Iterable[str]) -> Table:
    """What each engine was asked for."""
    rows = [[ENGINES[name].title, ENGINES[name].durability, ENGINES[name].durable or "–"] for name in engines]
    remark = "crash: a write that has returned survives the death of the process, and nobody waits for the disk"
    return Table("What survives", ["", "single writes, batches", "durable puts"], rows, remark, is_prose=True)


def about(results: Results) -> str:
    """Tell where the figures come from, in one sentence."""
    facts = results.about
    versions = ", ".join(
        f"{ENGINES[name].package or name} {version}"
        for name, version in facts["versions"].items()
        if name != "lmdb-writemap"
    )
    return (
        f"{facts['date']}, commit {facts['commit']}; {facts['python']} on {facts['system']}, {facts['file_system']}; "
        f"{facts['processor']}, {facts['cores']} cores, {facts['memory_gb']} GB. {versions}."
    )


def tables(results: Results, clock: str) -> list[Table]:
    """Make every table for which there are figures."""
    found: list[Table | None] = [durability(results.engines())]
    for size in results.sizes():
        found += [times(results, size, clock), ratios(results, size)]
        if size in RATIO_TARGET_SIZES or (len(results.sizes()) == 1 and size.value_size == 100):
            found.append(targets(results, size, clock))
        found += [latencies(results, size), space(results, size)]
    found += [stalls(results), steady_space(results), snapshot_space(results), pauses(results), processes(results)]
    found += [growth(results), segments(results), goals(results)]
    return [table for table in found if table is not None]


# --- the page ----------------------------------------------------------------------------------

_READING = re.compile(r"<!-- reading -->\n.*?<!-- /reading -->", re.DOTALL)
_NO_READING = "<!-- reading -->\n<!-- /reading -->"


def write_page(results: Results, page: Path, plots: Sequence[tuple[str, str]]) -> None:
    """Write docs/explanation/benchmarks.md anew; what stands between its reading marks is kept."""
    before = page.read_text(encoding="utf-8") if page.exists() else ""
    kept = _READING.search(before)
    page.write_text(render_page(results, page.stem, plots, kept.group() if kept else _NO_READING), encoding="utf-8")


def render_page(results: Results, stem: str, plots: Sequence[tuple[str, str]], reading: str) -> str:
    """Return the page; ``plots`` are file names with what they show."""
    parts = [
        "# How fast it is",
        "<!-- Made by `python -m tests.benchmarks --write-docs`; only what stands between the reading marks is written "
        "by hand and kept. -->",
        "bytekv beside other stores for Python, each used as its documentation recommends, from Python, in a process "
        "of its own, every answer compared byte for byte with what was stored. A workload runs on one engine after "
        "the other, several rounds; shown are medians. A ratio is taken within a round.",
        about(results),
        reading,
        *(f"![{text}]({stem}/{name})" for name, text in plots),
        "## Same durability on both sides",
        durability(results.engines()).as_markdown().partition("\n\n")[2],
        "## Targets",
    ]
    chosen: list[Table | None] = []
    for keys, value_size in RATIO_TARGET_SIZES:
        chosen += [targets(results, Size(keys, value_size), clock) for clock in ("wall", "cpu")]
    chosen.append(goals(results))
    parts += [table.as_markdown() for table in chosen if table is not None]
    parts.append("## All figures")
    for size in results.sizes(_TIMED):
        found = [times(results, size, "wall"), ratios(results, size), latencies(results, size), space(results, size)]
        parts += [table.as_markdown() for table in found if table is not None]
    parts += [
        table.as_markdown()
        for table in (
            stalls(results),
            steady_space(results),
            snapshot_space(results),
            pauses(results),
            growth(results),
            segments(results),
        )
        if table is not None
    ]
    parts.append("## The workloads")
    parts.append("\n".join(f"- *{entry.title}* (`{name}`): {entry.text}." for name, entry in WORKLOADS.items()))
    parts.append("## Once more, on your machine")
    parts.append(
        "```sh\npython -m pip install -e '.[bench]'\npython -m tests.benchmarks --quick     # a minute\n"
        "python -m tests.benchmarks             # 100,000 keys, everything\npython -m tests.benchmarks --help\n```"
    )
    return "\n\n".join(part for part in parts if part) + "\n"
