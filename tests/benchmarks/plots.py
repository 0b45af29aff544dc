"""Results as pictures for the documentation (matplotlib, extra ``bench``).

Each function draws one question and its answer; `draw` makes those for which there are figures. The files are the
same for the same figures: no date, no random ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from .engines import ENGINES
from .results import RATIO_TARGETS, Results, Size, ratio_target
from .workloads import WORKLOADS

_OURS = "#c2410c"
#: Colours that people with any kind of colour vision tell apart (Okabe and Ito), the peers' own throughout.
_COLOURS = {
    "bytekv": _OURS,
    "lmdb-writemap": "#0072b2",
    "lmdb": "#56b4e9",
    "leveldb": "#009e73",
    "rocksdb": "#b8a000",
    "sqlite": "#cc79a7",
    "semidbm": "#7f7f7f",
    "diskcache": "#6b4c9a",
    "dbm.dumb": "#9c755f",
    "dict": "#222222",
}
_STYLE = {
    "svg.hashsalt": "bytekv",
    "svg.fonttype": "path",
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e5e5",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "figure.facecolor": "white",
}


def draw(results: Results, folder: Path) -> list[tuple[str, str]]:
    """Draw everything into a folder; return the names of the files with what they show."""
    drawn = []
    for name, text, function in _PLOTS:
        with mpl.rc_context(_STYLE):
            figure = function(results)
            if figure is not None:
                figure.savefig(folder / name, metadata={"Date": None}, bbox_inches="tight", dpi=160)
                drawn.append((name, text))
    return drawn


def _best_size(results: Results, workloads: Sequence[str]) -> Size | None:
    """Return the largest number of keys with values of 100 bytes for which most engines were measured."""
    sizes = [size for size in results.sizes(workloads) if size.value_size == 100]
    count = {
        size: sum(bool(results.figures(workloads[0], engine, size)) for engine in results.engines()) for size in sizes
    }
    wide = [size for size in sizes if count[size] >= min(6, max(count.values()))]
    return max(wide, default=None)


def times(results: Results) -> Figure | None:
    """How long an operation takes: a panel for each operation, a line for each engine."""
    shown = ["put", "get", "delete", "batch_put", "scan", "overwrite"]
    size = _best_size(results, shown)
    if size is None:
        return None
    shown = [workload for workload in shown if results.figures(workload, "bytekv", size)]
    figure = Figure(figsize=(9, 5.6 if len(shown) > 3 else 2.8), layout="constrained")
    for axes, workload in zip_longest(figure.subplots(1 + (len(shown) > 3), 3).flat, shown):
        if workload is None:
            axes.set_visible(False)
            continue
        found = {name: results.figures(workload, name, size) for name in results.engines(size)}
        rows = sorted(((each["wall"], name) for name, each in found.items() if each), reverse=True)
        names = [ENGINES[name].title for _, name in rows]
        colours = [_OURS if name == "bytekv" else "#111111" if name == "dict" else "#7d8fa1" for _, name in rows]
        left, right = min(time for time, _ in rows) / 2, max(time for time, _ in rows) * 6
        axes.hlines(names, left, [time for time, _ in rows], color=colours, linewidth=1.6, alpha=0.55)
        axes.scatter([time for time, _ in rows], names, color=colours, s=26, zorder=3)
        for place, (time, _) in enumerate(rows):
            axes.annotate(_short(time), (time, place), (6, 0), textcoords="offset points", va="center", fontsize=8)
        axes.set_xscale("log")
        axes.set_xlim(left, right)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_title(WORKLOADS[workload].title)
        axes.xaxis.set_major_locator(LogLocator(numticks=4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        for label, (_, name) in zip(axes.get_yticklabels(), rows, strict=True):
            label.set_fontweight("bold" if name == "bytekv" else "normal")
    figure.suptitle(f"µs per operation, left is faster ({size}; logarithmic)", fontsize=10, x=0.01, ha="left")
    return figure


def ratios(results: Results) -> Figure | None:
    """How many times faster or slower bytekv is: a panel for each operation of the targets, a bar for each peer."""
    size = _best_size(results, list(RATIO_TARGETS))
    if size is None:
        return None
    panels = [workload for workload in RATIO_TARGETS if results.figures(workload, "bytekv", size)]
    peers = [name for name in RATIO_TARGETS["put"] if name in results.engines(size)]
    if not peers:
        return None
    figure = Figure(figsize=(9, 2.9), layout="constrained")
    rows = range(len(peers))
    for index, (axes, workload) in enumerate(
        zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True)
    ):
        found = [results.ratio(workload, peer, size) for peer in peers]
        limits = [ratio_target(workload, peer, size.keys) for peer in peers]
        for row, ratio, limit in zip(rows, found, limits, strict=True):
            if ratio is not None:
                is_met = limit is None or ratio <= limit
                axes.barh(
                    row,
                    ratio - 1,
                    left=1,
                    color="#2a9d6f" if ratio <= 1 else "#d1603d",
                    height=0.66,
                    alpha=1 if is_met else 0.55,
                )
                axes.annotate(
                    _short(ratio), (max(ratio, 1), row), (4, 0), textcoords="offset points", va="center", fontsize=8
                )
            if limit is not None:
                axes.plot([limit, limit], [row - 0.42, row + 0.42], color="#222222", linewidth=1.4)
        axes.set_xscale("log")
        axes.set_xlim(0.012, 80)
        axes.axvline(1, color="#222222", linewidth=0.8)
        axes.set_xticks([0.1, 1, 10], ["0.1", "1", "10"])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_title(WORKLOADS[workload].title.replace(", after compaction", ""))
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        if index == 0:
            axes.set_yticks(rows, [ENGINES[peer].title for peer in peers])
            axes.invert_yaxis()
    figure.suptitle(
        f"bytekv's time / the peer's, left of 1 bytekv is faster ({size}; black: the target, pale: missed)",
        fontsize=10,
        x=0.01,
        ha="left",
    )
    return figure


def growth(results: Results) -> Figure | None:
    """What changes with the number of keys; memory only where fixed costs do not hide it."""
    panels: list[tuple[str, str, Callable[[dict[str, float]], float]]] = [
        ("put", "put [µs]", lambda figures: figures["wall"]),
        ("get", "get [µs]", lambda figures: figures["wall"]),
        ("scan", "scan after compaction [µs/entry]", lambda figures: figures["wall"]),
        ("open", "open", lambda figures: figures["wall"] / 1e6),
        ("open_no_hints", "open without hints", lambda figures: figures["wall"] / 1e6),
        ("memory", "memory after open [bytes/key]", lambda figures: figures["opened"]),
    ]
    sizes = [size for size in results.sizes(["get"]) if size.value_size == 100]
    engines = [name for name in ENGINES if sum(bool(results.figures("get", name, size)) for size in sizes) > 2]
    engines = [name for name in engines if name in ("bytekv", "lmdb-writemap", "leveldb", "dict")]
    if len(sizes) < 3 or not engines:
        return None
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    handles: dict[str, Any] = {}
    for axes, (workload, title, value) in zip(figure.subplots(2, 3).flat, panels, strict=True):
        is_time_of_all = workload.startswith("open")
        for name in engines:
            points = [(size.keys, each) for size in sizes if (each := results.figures(workload, name, size))]
            points = [point for point in points if workload != "memory" or point[0] >= 100_000]
            if points:
                (handles[name],) = axes.plot(
                    [keys for keys, _ in points],
                    [value(each) * (keys if is_time_of_all else 1) for keys, each in points],
                    marker="o",
                    markersize=4,
                    linewidth=2.2 if name == "bytekv" else 1.4,
                    color=_COLOURS[name],
                    zorder=3 if name == "bytekv" else 2,
                )
        axes.set_xscale("log")
        axes.set_xlim(sizes[0].keys / 1.5, sizes[-1].keys * 1.5)
        if is_time_of_all:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _microseconds(value * 1e6, _)))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_ylim(bottom=0)
        axes.set_title(title)
        axes.set_xticks([size.keys for size in sizes], [_keys(size.keys) for size in sizes])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
    figure.legend(
        handles.values(), [ENGINES[name].title for name in handles], loc="outside lower center", ncols=len(handles)
    )
    span = f"From {_keys(sizes[0].keys)} to {_keys(sizes[-1].keys)} keys, values of 100 B"
    figure.suptitle(span, fontsize=10, x=0.01, ha="left")
    return figure


def latency(results: Results) -> Figure | None:
    """How late the latest are: percentiles of single puts and gets."""
    size = _best_size(results, ["put_latency", "get_latency"])
    if size is None:
        return None
    shares = {"p50": "50 %", "p90": "90 %", "p99": "99 %", "p999": "99.9 %", "p9999": "99.99 %", "max": "100 %"}
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    handles: dict[str, Any] = {}
    for axes, workload in zip(figure.subplots(1, 2, sharey=True), ("put_latency", "get_latency"), strict=True):
        for name in results.engines(size):
            figures = results.figures(workload, name, size)
            if figures and name not in ("dict", "dbm.dumb"):
                (handles[name],) = axes.plot(
                    list(shares.values()),
                    [figures[share] for share in shares],
                    marker="o",
                    markersize=4,
                    linewidth=2.4 if name == "bytekv" else 1.3,
                    color=_COLOURS[name],
                    zorder=3 if name == "bytekv" else 2,
                )
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(_microseconds))
        axes.set_title(workload.partition("_")[0])
        axes.set_xlabel("this share of the calls took at most")
    figure.legend(handles.values(), [ENGINES[name].title for name in handles], loc="outside right center")
    figure.suptitle(f"Latency of single operations ({size})", fontsize=10, x=0.01, ha="left")
    return figure


def durable(results: Results) -> Figure | None:
    """How many durable puts a second, with how many threads."""
    threads = (1, 8, 32)
    size = _best_size(results, ["durable_put_1"])
    if size is None:
        return None
    engines = [name for name in results.engines(size) if results.figures("durable_put_1", name, size)]
    figure = Figure(figsize=(9, 2.9), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(engines)
    for index, name in enumerate(engines):
        found = [results.figures(f"durable_put_{count}", name, size) for count in threads]
        rates = [1e6 / each["wall"] / 1000 if each else 0 for each in found]
        bars = axes.bar(
            [place + (index - (len(engines) - 1) / 2) * width for place in range(len(threads))],
            rates,
            width * 0.9,
            color=_COLOURS[name],
            label=ENGINES[name].title,
        )
        axes.bar_label(bars, [f"{rate:.0f}" if rate >= 10 else f"{rate:.1f}" for rate in rates], fontsize=7, padding=1)
    axes.set_xticks(range(len(threads)), [f"{count} thread{'s'[: count > 1]}" for count in threads])
    axes.set_ylabel("thousands a second")
    axes.grid(axis="x", visible=False)
    figure.legend(loc="outside right center")
    figure.suptitle(
        "Puts that survive a power cut before they return, longer is faster", fontsize=10, x=0.01, ha="left"
    )
    return figure


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _keys(count: int) -> str:
    return f"{count // 1_000_000} M" if count >= 1_000_000 else f"{count // 1000} k"


def _microseconds(value: float, _: object) -> str:
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if value >= size * 0.999:
            return f"{value / size:g} {unit}"
    return f"{value:g} µs"


_PLOTS: list[tuple[str, str, Callable[[Results], Figure | None]]] = [
    ("times.svg", "Microseconds per operation, each engine", times),
    ("ratios.svg", "bytekv's time divided by each peer's, with the targets", ratios),
    ("latency.svg", "Percentiles of single puts and gets", latency),
    ("durable.svg", "Durable puts per second with 1, 8 and 32 threads", durable),
    ("growth.svg", "From ten thousand to ten million keys", growth),
]
