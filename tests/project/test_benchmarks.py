"""The benchmark: every workload runs on every installed engine and notices wrong answers; no times are asserted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import instructions, pauses, processes, report, stalls
from tests.benchmarks.__main__ import PAGE, SETS, main, parse, plans
from tests.benchmarks.dataset import GROUP, DataSet, WrongAnswerError
from tests.benchmarks.engines import ENGINES, Bytekv, Engine
from tests.benchmarks.results import RATIO_TARGETS, Results, Size, ratio_target
from tests.benchmarks.runner import Plan, Record, measure
from tests.benchmarks.workloads import _RUN, WORKLOADS, Session, spread

pytestmark = pytest.mark.once

INSTALLED = [name for name, engine in ENGINES.items() if engine.version() is not None]
KEYS, VALUE_SIZE = 200, 100
IN_A_PROCESS_OF_ITS_OWN = ("open_crash", "memory", *SETS["processes"][:-2])


def session(engine: type[Engine], path: Path, **options: Any) -> Session:
    path.mkdir()
    data = DataSet(KEYS, VALUE_SIZE, seed=1)
    return Session(engine, data, str(path), seconds=0.02, settles=False, **options)


# --- workloads on engines ----------------------------------------------------------------------


def test_every_workload_is_explained_and_there():
    assert set(_RUN) == set(WORKLOADS)
    assert stalls.__doc__
    assert pauses.__doc__
    assert processes.__doc__
    for name, engine in ENGINES.items():
        assert engine.name == name
        assert set(engine.lacks) <= set(WORKLOADS)


@pytest.mark.parametrize(
    ("name", "workload"),
    [
        (name, workload)
        for name in INSTALLED
        for workload in WORKLOADS
        if workload not in ENGINES[name].lacks and workload not in IN_A_PROCESS_OF_ITS_OWN
    ],
)
def test_a_workload_runs_on_an_engine(name, workload, path):
    engine = ENGINES[name]
    one = session(engine, path)
    try:
        figures = one.run(workload)
    finally:
        one.close()
    assert figures
    assert all(figure >= 0 for figure in figures.values())
    if "wall" in figures:
        assert figures["wall"] > 0
    left = {each.name for each in path.iterdir()}
    assert left <= {"main"}, "scratch stores are removed"


@pytest.mark.parametrize("name", ["bytekv", "dbm.dumb"])
@pytest.mark.parametrize("workload", IN_A_PROCESS_OF_ITS_OWN)
def test_a_workload_with_a_process_of_its_own(workload, name, path):
    if workload in ENGINES[name].lacks:
        pytest.skip(ENGINES[name].lacks[workload])
    one = session(ENGINES[name], path)
    try:
        figures = one.run(workload)
    finally:
        one.close()
    assert figures.get("lost", 0) == 0


def test_workloads_in_any_order_in_one_session(path):
    one = session(Bytekv, path)
    slow = ("segments_", "durable_", "processes_", *SETS["stalls"], *IN_A_PROCESS_OF_ITS_OWN)
    order = [each for each in WORKLOADS if not each.startswith(slow)]
    for workload in [*order, *reversed(order)]:
        one.run(workload)
    assert len(one.data.keys) == KEYS
    one.close()


def test_a_budget_cuts_short_and_says_how_much_was_done(path):
    one = session(ENGINES["dict"], path, budget_s=1e-9)
    assert one.run("get")["ops"] == len(next(one.chunks(range(KEYS)))) < KEYS
    one.close()


# --- an engine that is wrong is caught ---------------------------------------------------------


MARK = bytes(4)  # how every value of key number 0 begins, which the mixed workloads like best


class Liar(Bytekv):
    """Answers like bytekv, but what it reads for key number 0 is ``lie``."""

    lie: bytes | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        get, get_many = self.get, self.get_many
        self.get = lambda key: self.twist(get(key))
        self.get_many = lambda keys: dict(self.twisted(get_many(keys).items()))

    def twist(self, value: bytes | None) -> bytes | None:
        return self.lie if value is not None and value.startswith(MARK) else value

    def twisted(self, pairs: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        found = [(key, self.twist(value)) for key, value in pairs]
        return [(key, value) for key, value in found if value is not None]

    def scan(self) -> Any:
        return nullcontext(iter(self.twisted(self.db.scan())))

    def scan_prefix(self, prefix: bytes) -> list[tuple[bytes, bytes]]:
        return self.twisted(super().scan_prefix(prefix))

    def scan_from(self, key: bytes, count: int) -> list[tuple[bytes, bytes]]:
        return self.twisted(super().scan_from(key, count))


READING = ["get", "get_many", "get_latency", "scan_before", "scan", "prefix_scan", "ycsb_a", "ycsb_c", "ycsb_e", "open"]


@pytest.mark.parametrize("workload", READING)
def test_a_wrong_answer_ends_the_run(workload, path):
    one = session(Bytekv, path)
    one.loaded()
    one.close()
    for lie in (None, b"", MARK, MARK + bytes(VALUE_SIZE - 4)):
        one.engine_type = type("Liar", (Liar,), {"lie": lie})
        with pytest.raises(WrongAnswerError):
            one.run(workload)
        one.close()


def test_an_answer_for_a_key_that_does_not_exist_ends_the_run(path):
    one = session(type("Liar", (Liar,), {"twist": lambda self, value: value or b"something"}), path)
    with pytest.raises(WrongAnswerError):
        one.run("get_missing")
    one.close()


@pytest.mark.parametrize("workload", ["scan", "prefix_scan"])
def test_entries_out_of_order_end_the_run(workload, path):
    one = session(type("Liar", (Liar,), {"twisted": lambda self, pairs: list(pairs)[::-1]}), path)
    with pytest.raises(WrongAnswerError):
        one.run(workload)
    one.close()


class Forgetful(Bytekv):
    """Loses the puts of key number 0, its delete, and, in a compaction, the key."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        put, delete, put_batch, compact = self.put, self.delete, self.put_batch, self.compact
        self.puts = 0
        self.put = lambda key, value: self.unless_marked(value, put, key, value)
        self.put_batch = lambda pairs: put_batch([pair for pair in pairs if not pair[1].startswith(MARK)])
        self.delete = lambda key: self.unless_marked(self.db[key], delete, key)
        self.compact = lambda: (compact(), delete(next(iter(self.db))))

    def unless_marked(self, value: bytes, function: Callable[..., object], *arguments: bytes) -> None:
        if not value.startswith(MARK):
            function(*arguments)


@pytest.mark.parametrize(
    "workload", ["put", "put_sequential", "batch_put", "overwrite", "put_latency", "ycsb_a", "disk"]
)
def test_a_lost_put_ends_the_run(workload, path):
    one = session(Forgetful, path)
    with pytest.raises(WrongAnswerError):
        one.run(workload)
    one.close()


@pytest.mark.parametrize("workload", ["delete", "compact", "scan"])
def test_a_lost_delete_or_a_lost_key_ends_the_run(workload, path):
    one = session(Bytekv, path)
    one.loaded()
    one.close()
    one.engine_type = Forgetful
    with pytest.raises(WrongAnswerError):
        one.run(workload)
    one.close()


# --- keys and values ---------------------------------------------------------------------------


def test_the_same_seed_makes_the_same_data_and_each_version_differs():
    one, two = DataSet(KEYS, VALUE_SIZE, seed=3), DataSet(KEYS, VALUE_SIZE, seed=3)
    assert one.keys == two.keys != DataSet(KEYS, VALUE_SIZE, seed=4).keys
    assert {len(key) for key in one.keys} == {16}
    assert len(set(one.keys)) == KEYS
    assert [sum(key.startswith(prefix) for key in one.keys) for prefix in one.prefixes] == [GROUP] * 2
    values = {one.value(number, version) for number in range(KEYS) for version in (1, 2, 3)}
    assert len(values) == 3 * KEYS
    assert {len(value) for value in values} == {VALUE_SIZE}
    assert not set(one.missing(1000)) & set(one.keys)


def test_zipf_prefers_the_first():
    drawn = DataSet(KEYS, VALUE_SIZE).zipfian(10_000)
    counts = [drawn.count(number) for number in range(KEYS)]
    assert counts[0] == max(counts)
    assert sum(counts[:20]) > sum(counts[20:])


def test_percentiles():
    figures = spread(range(0, 1_000_001, 1000))
    assert figures == {"p50": 500, "p90": 900, "p99": 990, "p999": 999, "p9999": 1000, "max": 1000, "ops": 1001}


# --- processes that share a store --------------------------------------------------------------


def test_what_a_process_reads_is_compared_with_what_it_has_put():
    part = processes._Part(Bytekv.__new__(Bytekv), 1, 2, VALUE_SIZE)
    [(key, value)] = part.pairs(1)
    part.check([key, b"x" * 16], [value, b"x" * 30], [value, None])
    for lie in (None, b"", key + b"00000000", b"x" * len(value)):
        with pytest.raises(WrongAnswerError):
            part.check([key], [lie], [value])
    assert {len(each) for _, each in part.pairs(16)} == {VALUE_SIZE}
    assert set(map(len, part.keys())) == {16}


def test_processes_are_shown_and_compared():
    size, records = Size(1000, 100), []
    for engine, wall in (("bytekv", 2.0), ("sqlite", 20.0)):
        figures = {f"wall_{count}": wall * count for count in (1, 2, 4, 8)} | {"share_1": 1.0, "share_2": 0.5}
        records.append(Record("processes_put", engine, *size, 0, figures | {"share_4": 0.25, "share_8": 0.125}))
    results = Results(made_up().about, records)
    table = report.processes(results)
    assert table is not None
    assert table.rows[0][1:] == ["500 k · 1.00", "250 k · 0.50", "125 k · 0.25", "62.5 k · 0.12", "–", "–"]
    beside_sqlite, beside_one = results.goals()
    assert (beside_sqlite.measured, beside_sqlite.is_met) == ("10.00 / 10.00 / 10.00 / 10.00×", True)
    assert (beside_one.measured, beside_one.is_met) == ("0.12×", False)


# --- results -----------------------------------------------------------------------------------


def made_up() -> Results:
    """Three rounds in which bytekv takes half of a peer's time, while the machine gets slower and slower."""
    records = []
    for number, slowness in enumerate((1.0, 10.0, 100.0)):
        for engine, factor in (("bytekv", 1.0), ("leveldb", 2.0), ("sqlite", 40.0)):
            for workload in RATIO_TARGETS:
                figures = {"wall": slowness * factor, "cpu": factor, "ops": 100_000}
                records.append(Record(workload, engine, 100_000, 100, number, figures))
    return Results({"versions": {"sqlite": "3"}, **dict.fromkeys(ABOUT, "x")}, records)


ABOUT = ("date", "commit", "python", "system", "processor", "cores", "memory_gb", "file_system")


def test_ratios_are_taken_within_a_round():
    results, size = made_up(), Size(100_000, 100)
    assert results.ratio("put", "leveldb", size) == 0.5
    assert results.ratio("put", "sqlite", size, "cpu") == 1 / 40
    assert results.ratio("put", "lmdb", size) is None
    assert results.figures("put", "bytekv", size) == {"wall": 10, "cpu": 1, "ops": 100_000}


def test_targets_are_met_or_not():
    table = report.targets(made_up(), Size(100_000, 100), "wall")
    assert table is not None
    cells = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert cells["put"]["leveldb"] == "0.50 ≤ 1 ✓"
    assert cells["put"]["sqlite"] == "0.025 ≤ 0.06 ✓"
    assert cells["put"]["lmdb"] == "–"
    assert cells["compact"]["sqlite"] == ""
    assert cells["scan, before compaction"]["leveldb"] == "0.50 ≤ 1.5 ✓"
    assert "15 of 15 met" in table.title
    assert ratio_target("batch_put", "lmdb", 100_000) == 0.7
    assert ratio_target("batch_put", "lmdb", 1_000_000) == 0.45, "the larger store has a limit of its own"
    slower = made_up()
    slower.records = [
        record._replace(figures={"wall": 3 * record.figures["wall"], "cpu": 1}) if record.engine == "bytekv" else record
        for record in slower.records
    ]
    table = report.targets(slower, Size(100_000, 100), "wall")
    assert table is not None
    assert "1.50 ≤ 1 ✗" in table.rows[0]


def test_results_survive_a_file(path):
    path.mkdir()
    results = made_up()
    results.save(str(path / "a.json"))
    again = Results.load([str(path / "a.json")])
    assert again.about == results.about
    assert sorted(again.records) == sorted(results.records)


def test_joined_files_never_pair_one_run_with_another(path):
    """A file with a new run of bytekv alone, laid over an older one, took the older run's peers for its own."""
    path.mkdir()
    older, size = made_up(), Size(100_000, 100)
    older.save(str(path / "a.json"))
    newer = Results({**older.about, "commit": "y"}, [Record("put", "bytekv", *size, 0, {"wall": 7.0, "cpu": 7.0})])
    newer.save(str(path / "b.json"))
    joined = Results.load([str(path / "a.json"), str(path / "b.json")])
    assert joined.about["commit"] == "y"
    assert joined.figures("put", "bytekv", size) == {"wall": 7, "cpu": 7}
    assert joined.figures("put", "leveldb", size) is None
    assert joined.ratio("put", "leveldb", size) is None
    assert joined.ratio("get", "leveldb", size) == 0.5


def test_tables_are_rectangular_in_both_forms():
    tables = report.tables(made_up(), "wall")
    assert len(tables) > 3
    for table in tables:
        assert {len(row) for row in table.rows} == {len(table.columns)}
        rows = [line for line in table.as_markdown().splitlines() if line.startswith("|")]
        assert {line.count("|") for line in rows} == {len(table.columns) + 1}
        assert table.as_text().startswith(table.title)


def test_the_page_keeps_what_was_written_by_hand(path):
    path.mkdir()
    page = path / "page.md"
    report.write_page(made_up(), page, [("put.svg", "How long a put takes")])
    text = page.read_text()
    assert "![How long a put takes](page/put.svg)" in text
    assert text.count("✓") == 30, "elapsed and CPU time"
    page.write_text(text.replace("<!-- reading -->\n", "<!-- reading -->\nThe curve bends.\n"))
    report.write_page(made_up(), page, [])
    assert "The curve bends." in page.read_text()
    assert "put.svg" not in page.read_text()


# --- the command -------------------------------------------------------------------------------


def test_the_command_measures_in_processes_and_keeps_every_figure(path, capsys):
    path.mkdir()
    kept = path / "kept.json"
    arguments = ["--engines", "bytekv", "sqlite", "--workloads", "targets", "open_crash", "--keys", str(KEYS)]
    status = main([*arguments, "--rounds", "2", "--dir", str(path), "--json", str(kept)])
    shown = capsys.readouterr()
    assert status == 0, shown.err
    rows = json.loads(kept.read_text())["records"]
    wanted = [
        (name, engine, number)
        for number in (0, 1)
        for name in (*RATIO_TARGETS, "open_crash")
        for engine in ("bytekv", "sqlite")
    ]
    assert sorted((row["workload"], row["engine"], row["round"]) for row in rows) == sorted(wanted)
    assert "put [µs]" in shown.out
    assert re.search(r"targets, .* of 7 met", shown.out)
    assert [each.name for each in path.iterdir()] == ["kept.json"], "the stores are removed"
    assert main(["--from", str(kept)]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == shown.out.splitlines()[1:]


def test_what_fails_is_told_and_the_others_go_on(path):
    path.mkdir()
    plan = Plan(KEYS, VALUE_SIZE, ("put", "no_such_workload", "get"), ("bytekv",), 2)
    records: list[Record] = []
    failures = measure(plan, str(path), seconds=0.1, budget_s=1, tell=lambda _: None, keep=records.append)
    assert [record.workload for record in records] == ["put", "put"]
    assert len(failures) == 2
    assert all("no_such_workload" in failure for failure in failures)
    assert not list(path.iterdir())


def test_an_interrupted_run_leaves_neither_processes_nor_stores(path):
    path.mkdir()
    plan = Plan(KEYS, VALUE_SIZE, ("put", "get"), ("bytekv", "sqlite"), 1)

    def interrupt(record: Record) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(plan, str(path), seconds=0.1, budget_s=1, tell=lambda _: None, keep=interrupt)
    assert not list(path.iterdir())


def test_sets_name_workloads_and_plans_fit_the_machine():
    for names in SETS.values():
        assert set(names) <= set(WORKLOADS)
    assert set(SETS["standard"]) | set(SETS["stalls"]) | set(SETS["segments"]) | set(SETS["processes"]) == set(
        WORKLOADS
    )
    (plan,) = plans(parse(["--keys", "1000000", "--values", "65536", "--engines", "bytekv"]))
    assert plan.keys * plan.value_size <= 1e9
    large = plans(parse(["--keys", "1000000"]))[0]
    assert not {name for name in large.engines if ENGINES[name].is_slow}
    for plan in plans(parse(["--write-docs"])):
        assert all(workload in WORKLOADS for workload in plan.workloads)


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--values", "7"], ["--keys", "0"], ["--workloads", "fly"]])
def test_wrong_use_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as refused:
        parse(arguments)
    assert refused.value.code == 2
    assert capsys.readouterr().err


def test_plots_are_drawn(path):
    plots = pytest.importorskip("tests.benchmarks.plots", exc_type=ImportError)
    path.mkdir()
    drawn = plots.draw(made_up(), path)
    assert [name for name, _ in drawn] == ["times.svg", "ratios.svg"]
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    plots.draw(made_up(), path)
    assert before == {file.name: file.read_bytes() for file in path.iterdir()}, "the same figures, the same files"


def test_the_page_is_where_the_others_are():
    assert PAGE.parent.is_dir()


def test_instructions_that_have_grown_are_told():
    kept = {"1000": {"put": 1000, "get": 100}}
    assert instructions.compare({"1000": {"put": 1030, "get": 50}}, kept) == []
    assert instructions.compare({"1000": {"put": 1031, "get": 50}}, kept) == [
        "put, 1000 keys: 1031 instructions instead of 1000"
    ]
    assert instructions.compare({"1000": {"scan": 1}, "7": {"put": 1}}, kept) == [
        "scan, 1000 keys: no figure is kept; add it with --write",
        "put, 7 keys: no figure is kept; add it with --write",
    ]


def test_every_figure_of_instructions_is_kept():
    for figures in json.loads(instructions.FILE.read_text()).values():
        assert {int(size): set(cases) for size, cases in figures.items()} == {
            size: set(instructions.CASES) for size in instructions.SIZES
        }
