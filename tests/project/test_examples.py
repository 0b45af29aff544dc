"""Each example is run as a user runs it, where warnings are errors; and what it shows is put to the test.

`examples/redis_drop_in.py` and `examples/notes_asgi.py` have their tests beside those of the doors.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import logging
import math
import os
import random
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bytekv
from tests.support.harness import FakeFiles, crash, open_store

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
SEARCH = EXAMPLES / "search_stdlib.py"
MINUTES = 5 * 60

#: Runs the script like a user, but the process dies after so many batches, as `kill -9` would have it: without
#: another line of Python. Every file is a batch of its own here.
DYING = """
import os, runpy, sys
from bytekv import Batch
sys.argv = sys.argv[1:]
left, commit = int(sys.argv.pop()), Batch.commit
def commit_and_maybe_die(batch):
    global left
    commit(batch)
    left -= 1
    if left == 0:
        os._exit(9)
Batch.commit, Batch.__len__ = commit_and_maybe_die, lambda batch: 1 << 30
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def python(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run this Python with this checkout's bytekv, and with warnings as errors."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", "COLUMNS": "120"}
    command = [sys.executable, "-W", "error", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=MINUTES
    )


def load(name: str) -> ModuleType:
    """Import an example, so that its parts can be used."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str, *arguments: object, cwd: Path) -> str:
    """Run an example to its good end; return what it printed."""
    done = python(EXAMPLES / f"{name}.py", *arguments, cwd=cwd)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def together(*functions: Callable[[], object]) -> None:
    """Run functions in threads, all at once, and raise what one of them raised."""
    errors: list[BaseException] = []
    start = threading.Barrier(len(functions))

    def call(function: Callable[[], object]) -> None:
        start.wait()
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=call, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        raise error


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.py")), ids=lambda file: file.stem)
def test_each_says_how_to_run_it_and_is_short(file):
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= (200 if file == SEARCH else 80)
    docstring = text[3 : text.index('"""', 3)]
    assert f"python examples/{file.name}" in docstring
    assert docstring.partition("\n")[0].endswith((".", "?"))
    assert '\nif __name__ == "__main__":\n' in text


# --- quickstart ------------------------------------------------------------------------------------


def test_quickstart_remembers_its_runs(path):
    first, second = run("quickstart", path, cwd=path.parent), run("quickstart", path, cwd=path.parent)
    assert first.startswith("run 1;")
    assert second.startswith("run 2;")
    assert re.findall(r"run/(\d+)", second) == ["000002", "000001"]
    assert "fruit before: apple, pear, quince\nfruit now:    apple, pear\n" in second
    assert re.search(r"^4 apples sold in all; the offer holds for (60|5\d) seconds$", second, re.MULTILINE)


# --- prefix_scan -----------------------------------------------------------------------------------


@pytest.fixture
def tree(path: Path) -> Path:
    """A folder with names around the slash: "-", "." and "0" are its neighbours in the order of bytes."""
    top = path.parent / "tree"
    for number, name in enumerate(
        ["a", "a-b/1", "a.b/2", "a0", "ab/c/3", "ab/c/4", "ab/c.txt", "ab/d", "b/b/b", "z/ü", "z/~"]
    ):
        write(top / name, "x" * number)
    return top


def test_prefix_scan_lists_a_folder_as_the_system_does(path, tree):
    example = load("prefix_scan")
    with bytekv.open(path) as db:
        assert example.fill(db, str(tree)) == 11
        for folder, folders, files in os.walk(os.fsencode(tree)):
            key = os.path.relpath(folder, os.fsencode(tree)) + b"/" if folder != os.fsencode(tree) else b""
            assert sorted(example.listing(db, key)) == sorted([*files, *(name + b"/" for name in folders)])
        assert list(example.listing(db, b"nowhere/")) == []
        assert (example.size(db, b"ab/"), example.size(db, b"ab/c/"), example.size(db)) == (4 + 5 + 6 + 7, 9, 55)


def test_prefix_scan_leaps_over_what_lies_deeper(path, monkeypatch):
    example, looks = load("prefix_scan"), 0
    with bytekv.open(path) as db:
        db.update({f"{folder}/{number}": "1" for folder in "abc" for number in range(1000)})
        scan_keys = db.scan_keys

        def count(*arguments: Any, **named: Any) -> Any:
            nonlocal looks
            looks += 1
            return scan_keys(*arguments, **named)

        monkeypatch.setattr(db, "scan_keys", count)
        assert list(example.listing(db)) == [b"a/", b"b/", b"c/"]
    assert looks == 4


def test_prefix_scan_removes_a_folder_and_nothing_beside_it(path, tree):
    example = load("prefix_scan")
    with bytekv.open(path) as db:
        example.fill(db, str(tree))
        assert example.remove(db, b"ab/") == 4
        assert list(example.listing(db)) == [b"a", b"a-b/", b"a.b/", b"a0", b"b/", b"z/"]


def test_prefix_scan_runs(path, tree):
    printed = run("prefix_scan", tree, cwd=path.parent)
    assert printed.startswith("11 files in ")
    assert re.findall(r"^  (\S+)", printed, re.MULTILINE) == ["ab/", "z/", "b/", "a.b/", "a-b/"]
    assert "without ab/ and its 4 files" in printed


# --- ordered_numbers -------------------------------------------------------------------------------

NUMBERS = load("ordered_numbers")


@given(*[st.one_of(st.integers(-5, 5), st.integers(-(2**63), 2**63 - 1))] * 2)
def test_integers_sort_as_bytes_as_they_do_as_numbers(one, other):
    assert (NUMBERS.int_key(one) < NUMBERS.int_key(other)) == (one < other)
    assert (NUMBERS.int_key(one) == NUMBERS.int_key(other)) == (one == other)
    assert NUMBERS.int_of(NUMBERS.int_key(one)) == one


@given(*[st.floats(allow_nan=False)] * 2)
def test_floats_sort_as_bytes_as_they_do_as_numbers(one, other):
    assert (NUMBERS.float_key(one) < NUMBERS.float_key(other)) == (one < other)
    assert (NUMBERS.float_key(one) == NUMBERS.float_key(other)) == (one == other)  # 0.0 and -0.0, too
    assert NUMBERS.float_of(NUMBERS.float_key(one)) == one


def test_numbers_without_a_place_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        NUMBERS.float_key(math.nan)
    for number in (2**63, -(2**63) - 1):
        with pytest.raises(OverflowError):
            NUMBERS.int_key(number)


def test_ordered_numbers_runs(path):
    printed = run("ordered_numbers", -7.2, cwd=path.parent)
    assert re.findall(r"^ +(-?\d+\.\d)  (\w+)", printed, re.MULTILINE) == [
        ("-38.8", "mercury"),
        ("-218.8", "oxygen"),
        ("-259.2", "hydrogen"),
        ("-272.2", "helium"),
    ]
    assert "the next to melt: bromine, at -7.2 °C" in printed
    assert re.findall(r"^ +(-?\d+)  ", printed, re.MULTILINE) == ["-776", "-44", "79"]


# --- json_values -----------------------------------------------------------------------------------


def test_json_values_are_a_mapping_beside_other_keys(path):
    example = load("json_values")
    with bytekv.open(path) as db:
        db["object0"] = db["objec"] = "not one of them"
        objects = example.Objects(db, "object/")
        model = {"é": [1, None], "": {"b": 1.5, "a": ""}, "z/z": True}
        objects.update(model)
        assert dict(objects) == model
        assert len(objects) == 3
        assert db["object/"] == b'{"a":"","b":1.5}'
        del objects["é"]
        with pytest.raises(KeyError):
            objects["é"]
        with pytest.raises(TypeError):
            objects["z/z"] = {1, 2}
        with pytest.raises(ValueError, match="JSON"):
            objects["z/z"] = math.nan
        assert objects["z/z"] is True


def test_json_values_changes_do_not_overwrite_each_other(path):
    example = load("json_values")
    with bytekv.open(path) as db:
        objects = example.Objects(db, "")

        def visit(name: str) -> None:
            for _ in range(50):
                with objects.change("page", {"total": 0}) as page:
                    page["total"] += 1
                    page[name] = page.get(name, 0) + 1

        together(*[lambda name=name: visit(name) for name in "abcd"])
        assert objects["page"] == {"total": 200, **dict.fromkeys("abcd", 50)}


def test_json_values_runs(path):
    printed = run("json_values", path, cwd=path.parent)
    assert "crêpes, for 2: flour, eggs, milk\n" in printed
    assert "leek soup, for 4: leek, potatoes, salt, nutmeg\n" in printed


# --- secondary_index -------------------------------------------------------------------------------


def in_step(db: bytekv.Store) -> bool:
    """Tell whether the index says what the records say."""
    records = {key.decode()[5:]: json.loads(value) for key, value in db.scan("book/")}
    wanted = {f"author/{book['author']}\0{book['year']}\0{isbn}".encode() for isbn, book in records.items()}
    return wanted == set(db.scan_keys("author/"))


def test_secondary_index_stays_in_step(path):
    example, chance = load("secondary_index"), random.Random(7)
    with bytekv.open(path) as db:
        shelf, model = example.Shelf(db), {}
        for _ in range(200):
            isbn = str(chance.randrange(8))
            if chance.random() < 0.3:
                assert shelf.remove(isbn) == (model.pop(isbn, None) is not None)
            else:
                model[isbn] = {"author": chance.choice("AB"), "year": str(chance.randrange(1900, 1903)), "title": "…"}
                shelf.put(isbn, model[isbn])
            assert in_step(db)
        for author in "AB":
            wanted = sorted((book["year"], isbn) for isbn, book in model.items() if book["author"] == author)
            assert [(book["year"], isbn) for isbn, book in shelf.of(author)] == wanted


def test_secondary_index_changes_nothing_where_it_refuses(path):
    example = load("secondary_index")
    with bytekv.open(path) as db:
        shelf = example.Shelf(db)
        shelf.put("1", {"author": "A", "year": "1900", "title": "…"})
        before = dict(db)
        with pytest.raises(ValueError, match="NUL"):
            shelf.put("1", {"author": "A\0", "year": "1900", "title": "…"})
        assert db == before
        assert in_step(db)


def test_secondary_index_is_rebuilt_from_the_records(path):
    example = load("secondary_index")
    with bytekv.open(path) as db:
        shelf = example.Shelf(db)
        for number in range(5):
            shelf.put(str(number), {"author": f"{number % 2}", "year": "1900", "title": "…"})
        del db["author/0\x001900\x000"]
        db["author/nobody\x001900\x0077"] = ""
        assert not in_step(db)
        shelf.rebuild()
        assert in_step(db)


def test_secondary_index_runs(path):
    printed = run("secondary_index", path, cwd=path.parent)
    assert printed.splitlines()[1:] == [
        "corrected: ['Of Mice and Men', 'The Grapes of Wrath']",
        "Tolkien:   ['The Fellowship of the Ring']",
    ]


# --- unique_index ----------------------------------------------------------------------------------


def test_unique_index_lets_one_of_two_threads_have_an_address(path):
    example, interval = load("unique_index"), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with bytekv.open(path) as db:
            for number in range(30):
                told: Counter[str] = Counter()

                def attempt(name: str, address: str, told: Counter[str] = told) -> None:
                    try:
                        example.sign_up(db, name, address)
                        told["welcome"] += 1
                    except example.TakenError:
                        told["taken"] += 1

                address = f"{number}@Example.org"
                together(
                    lambda address=address, number=number: attempt(f"one{number}", address),
                    lambda address=address, number=number: attempt(f"two{number}", address.upper()),
                )
                assert told == {"welcome": 1, "taken": 1}
            users = {key[5:]: address for key, address in db.scan("user/")}
            assert users == {name: key[8:] for key, name in db.scan("address/")}
            assert len(users) == 30
    finally:
        sys.setswitchinterval(interval)


def test_unique_index_moves_or_changes_nothing(path):
    example = load("unique_index")
    with bytekv.open(path) as db:
        example.sign_up(db, "ann", "ann@example.org")
        example.sign_up(db, "bob", "bob@example.org")
        before = dict(db)
        with pytest.raises(example.TakenError):
            example.move(db, "bob", "ANN@example.org")
        with pytest.raises(example.TakenError):
            example.sign_up(db, "bob", "other@example.org")
        assert db == before
        example.move(db, "bob", "bob@example.com")
        assert (db["user/bob"], db["address/bob@example.com"]) == (b"bob@example.com", b"bob")
        assert b"address/bob@example.org" not in db


def test_unique_index_runs(path):
    printed = run("unique_index", cwd=path.parent)
    assert printed.count("is taken") == 7
    assert printed.count("welcome!") == 1
    assert "'info@example.org': 'latecomer'" in printed


# --- session_cache ---------------------------------------------------------------------------------


def test_sessions_end_unless_they_are_used(path):
    example, files = load("session_cache"), FakeFiles()
    with open_store(path, files=files) as db:
        sessions = example.Sessions(db, ttl=100)
        used, idle = sessions.begin("Ann"), sessions.begin("Bob")
        assert used != idle
        seq = db.last_seq
        files.sleep(40)
        assert sessions.user(used) == "Ann"
        assert db.last_seq == seq, "what has more than half of its time writes nothing"
        files.sleep(20)
        assert sessions.user(used) == "Ann"
        assert db.last_seq == seq + 1
        files.sleep(41)
        assert (sessions.user(used), sessions.user(idle)) == ("Ann", None)
        assert sessions.count() == 1
        assert sessions.end(used)
        assert not sessions.end(used)
        assert sessions.user(used) is None
        assert sessions.user("made up") is None


def test_session_that_was_ended_in_between_is_not_brought_back(path, monkeypatch):
    example, files = load("session_cache"), FakeFiles()
    with open_store(path, files=files) as db:
        sessions = example.Sessions(db, ttl=100)
        token = sessions.begin("Ann")
        files.sleep(60)
        expire = db.expire
        monkeypatch.setattr(db, "expire", lambda key, ttl: (sessions.end(token), expire(key, ttl))[1])
        sessions.user(token)
        assert sessions.user(token) is None


def test_session_tokens_are_not_on_the_disk(path):
    example = load("session_cache")
    with bytekv.open(path) as db:
        token = example.Sessions(db, ttl=100).begin("Ann")
    assert not any(token.encode() in file.read_bytes() for file in path.iterdir())


def test_session_cache_runs(path, monkeypatch, capsys):
    files = FakeFiles()
    monkeypatch.setattr(bytekv, "open", lambda place: open_store(place, files=files))
    monkeypatch.setattr(time, "sleep", files.sleep)
    load("session_cache").main()
    printed = capsys.readouterr().out
    assert "Ann's cookie is Ann's, Bob's None's, Eve's None's" in printed
    assert "1 session, and 6 writes for it all" in printed


# --- job_queue -------------------------------------------------------------------------------------


def states(db: bytekv.Store) -> dict[str, int]:
    return {state: sum(1 for _ in db.scan_keys(state + "/")) for state in ("todo", "doing", "done", "failed")}


def test_jobs_are_done_once_by_many_threads(path):
    example, done = load("job_queue"), Counter()
    with bytekv.open(path) as db:
        queue = example.Queue(db)
        for number in range(200):
            queue.add(str(number))
        assert queue.claim() == ("0000000001", "0"), "in the order in which they came"
        queue._try_again("0000000001")

        def do(job: str) -> str:
            done[job] += 1
            return job * 2

        together(*[lambda: queue.work(do)] * 4)
        assert done == dict.fromkeys(map(str, range(200)), 1)
        assert states(db) == {"todo": 0, "doing": 0, "done": 200, "failed": 0}
        assert [value.decode() for _, value in db.scan("done/")] == [str(number) * 2 for number in range(200)]


def test_jobs_left_by_the_dead_are_done_again(path, monkeypatch):
    """Workers end in the middle of a job, or of writing down its result: each time the queue is opened anew."""

    class Death(BaseException):
        """Nothing catches it."""

    example, chance, begun, commit = load("job_queue"), random.Random(3), Counter(), bytekv.Batch.commit
    with bytekv.open(path) as db:
        queue = example.Queue(db)
        for number in range(40):
            queue.add(str(number))

    def do(job: str) -> str:
        begun[job] += 1
        if begun[job] == 1 and chance.random() < 0.2:
            raise Death
        return job

    def commit_or_die(batch: bytekv.Batch) -> None:
        if chance.random() < 0.1:
            raise Death
        commit(batch)

    deaths = 0
    while True:
        with bytekv.open(path) as db:
            queue = example.Queue(db)
            assert len(queue.left_behind) == (1 if deaths else 0)
            monkeypatch.setattr(bytekv.Batch, "commit", commit_or_die)
            try:
                queue.work(do)
                break
            except Death:
                deaths += 1
                assert states(db)["doing"] == 1
                assert sum(states(db).values()) == 40
            finally:
                monkeypatch.setattr(bytekv.Batch, "commit", commit)
    assert deaths
    with bytekv.open(path, "r") as db:
        assert states(db) == {"todo": 0, "doing": 0, "done": 40, "failed": 0}
        assert sorted(int(value) for _, value in db.scan("done/")) == list(range(40))
    assert sum(begun.values()) == 40 + deaths, "no finished job began again"


def test_jobs_that_always_fail_are_given_up(path, capsys):
    example, begun = load("job_queue"), Counter()
    with bytekv.open(path) as db:
        queue = example.Queue(db)
        queue.add("bad")
        queue.add("good")

        def do(job: str) -> str:
            begun[job] += 1
            return str(1 // len(job.replace("bad", "")))

        queue.work(do)
        assert begun == {"bad": 3, "good": 1}
        assert states(db) == {"todo": 0, "doing": 0, "done": 1, "failed": 1}
    assert capsys.readouterr().out.count("division") == 3


def test_job_queue_runs(path):
    printed = run("job_queue", cwd=path.parent)
    assert "status 9: ['todo']" in printed
    assert "{'todo/': 0, 'doing/': 0, 'done/': 19, 'failed/': 1}" in printed


# --- shared_counter, shared_queue ------------------------------------------------------------------


def test_shared_counter_counts_each_file_once_and_whole(path, source):
    """Two count the same files; before, one gave up in the middle of a transaction."""
    one, two = load("shared_counter"), load("shared_counter")
    files = [str(file) for file in source.rglob("*.py") if file.exists()]
    words = Counter(word for file in files for word in one.WORD.findall(Path(file).read_bytes().lower()))

    def give_up(_: object) -> int:
        raise KeyboardInterrupt

    with bytekv.open(path, shared=True) as db, bytekv.open(path, shared=True) as other:
        one.begin(db)
        two.begin(other)
        one.int = give_up
        with pytest.raises(KeyboardInterrupt):
            one.count(files[0])
        del one.int
        assert not other
        counted: list[int] = []
        together(*[lambda of=of: counted.extend(of.count(file) for file in files) for of in (one, two)])
        assert sum(counted) == words.total()
        assert {key[5:]: int(times) for key, times in other.scan("word/")} == words
        assert int(db["total"]) == words.total() == sum(int(number) for _, number in db.scan("file/"))


def test_shared_counter_runs(path, source):
    files = [file for file in source.rglob("*.py") if file.exists()]
    lines = run("shared_counter", *files, cwd=path.parent).splitlines()
    total = sum(len(re.findall("[a-z]{2,}", file.read_text().lower())) for file in files)
    assert lines[0].startswith(f"{len(files)} files, the last with ")
    assert lines[0].endswith(f"; {total} in all")
    assert re.match("(peel|apple) ", lines[1])


def test_shared_queue_gives_a_job_to_one_worker(path):
    example = load("shared_queue")
    with bytekv.open(path, shared=True) as db:
        db.update({f"todo/{number:03}": "easy" for number in range(100)})
        workers = {name: bytekv.open(path, shared=True) for name in "abc"}
        assert example.claim(workers["a"], "a") == ("000", "easy")
        assert example.claim(workers["b"], "b") == ("001", "easy")
        assert example.give_back(db, "a") == ["000"]
        assert example.give_back(db, "a") == []
        assert [*db.scan_keys("doing/")] == [b"doing/b/001"]
        assert example.give_back(workers["a"], "b") == ["001"]

        def close() -> None:
            while any(db.scan_keys("todo/")):
                db.wait(timeout=60)
            db["todo/late"] = "easy"  # they are all waiting by now, or about to
            while b"done/late" not in db:
                db.wait(timeout=60)
            db["closed"] = ""

        together(*[lambda name=name: example.work(workers[name], name) for name in "abc"], close)
        assert all(worker.closed for worker in workers.values())
        assert [key for key in db if not key.startswith((b"done/", b"here/"))] == [b"closed"]
        assert sum(1 for _ in db.scan_keys("done/")) == 101


def test_shared_queue_does_what_came_while_a_worker_was_looking(path):
    """It found no job, then the last one came, and that there will be none: it must look once more."""
    example = load("shared_queue")
    claim = example.claim

    def slow_claim(store: bytekv.Store, worker: str) -> tuple[str, str] | None:
        found = claim(store, worker)
        if not db:
            db.update({"todo/1": "easy", "closed": ""})
        return found

    with bytekv.open(path, shared=True) as db, bytekv.open(path, shared=True) as other:
        example.claim = slow_claim
        other.put = lambda *_: None  # it is not said that there is a worker, so that nothing is there
        example.work(other, "a")
        assert dict(db) == {b"closed": b"", b"done/1": b"a"}


def test_shared_queue_runs(path):
    died, done = run("shared_queue", cwd=path.parent).splitlines()
    assert re.fullmatch(r"(ann|bob) died with status 9, and job \['007'\] is to do again", died)
    by_each = re.fullmatch(r"done by each: \{(.*)\}", done)[1]
    assert sum(map(int, re.findall(r": (\d+)", by_each))) == 100


# --- rolling_log -----------------------------------------------------------------------------------


@pytest.fixture
def log(path: Path) -> Any:
    example = load("rolling_log")
    with bytekv.open(path) as db:
        handler = example.StoreHandler(db, timedelta(hours=1))
        yield handler
        handler.close()


def say(handler: logging.Handler, when: float, text: str) -> None:
    record = logging.LogRecord("test", logging.INFO, __file__, 0, text, (), None)
    record.created = when
    handler.handle(record)


def test_log_lines_are_found_by_time(log):
    for when in (1000.0, 1000.000001, 1000.5, 999.0, 1001.0):
        say(log, when, f"at {when}")
    say(log, 1000.5, "again")  # in the same microsecond
    assert [line for _, line in log.lines(1000.0, 1001.0)] == ["at 1000.0", "at 1000.000001", "at 1000.5", "again"]
    assert [when.timestamp() for when, _ in log.lines(0, 1000.000001)] == [999.0, 1000.0]


def test_log_drops_what_is_older(log):
    for minute in range(200):
        say(log, 60.0 * minute, str(minute))
    kept = [int(line) for _, line in log.lines(0, 1e6)]
    assert kept == list(range(139, 200))  # an hour before the 200th line, at which the last drop was
    assert log.drop(before=60.0 * 150) == 11
    assert log.drop(before=60.0 * 150) == 0


def test_log_leaves_errors_to_the_logging_module(log, monkeypatch):
    handled = []
    monkeypatch.setattr(log, "handleError", handled.append)
    log.db.close()
    say(log, 1.0, "nobody hears it")
    assert len(handled) == 1


def test_rolling_log_runs(path):
    printed = run("rolling_log", cwd=path.parent)
    assert re.findall(r"^  (06:\d\d)  \d+ °C$", printed, re.MULTILINE) == [f"06:{minute}0" for minute in range(6)]
    kept = int(re.search(r"(\d,\d+) lines kept", printed)[1].replace(",", ""))
    assert 7 * 144 <= kept <= 7 * 144 + 100


# --- backup_while_open -----------------------------------------------------------------------------


def test_backup_while_open_runs(path, capsys):
    path.mkdir()
    load("backup_while_open").main(str(path))
    printed = capsys.readouterr().out
    backups = [
        [int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", line)] for line in printed.splitlines()
    ]
    seqs, segments, kept, linked, _, bookings = zip(*backups[:3], strict=True)
    assert list(seqs) == [3 * count for count in bookings], "each is a moment between two batches"
    assert seqs[0] < seqs[1] < seqs[2]
    assert kept[0] == 0 < kept[1] < kept[2] < segments[2]
    assert all(linked)
    with bytekv.open(path / "restored") as db:
        assert db.verify().ok
        assert db.last_seq == seqs[2] + 1
    with bytekv.open(path / "backup", "r") as db:
        assert db.last_seq == seqs[2]


# --- replicate -------------------------------------------------------------------------------------


def entries(db: bytekv.Store) -> dict[bytes, tuple[bytes, float | None]]:
    """Return the values and expiries of a store, without a replica's own key."""
    found = {key: db.entry(key) for key in db if not key.startswith(b"\0")}
    return {key: (entry.value, entry.expires) for key, entry in found.items()}


class Killed(BaseException):
    """The end of a process in the middle of copying."""


def change_at_random(db: bytekv.Store, chance: random.Random) -> None:
    """Carry out one to eight operations in one of many ways."""
    keys = [f"{chance.randrange(20)}" for _ in range(chance.randint(1, 8))]
    way = chance.random()
    if way < 0.5:
        with db.batch() as batch:
            for key in keys:
                if chance.random() < 0.3:
                    del batch[key]
                else:
                    batch.put(key, str(chance.random()), expires=chance.choice([None, 4e9, 5e9]))
    elif way < 0.95:
        db.put(keys[0], str(chance.random()))
    elif way < 0.99:
        db.clear()
    else:
        db.compact()


class Countdown:
    """Kill the process before or after the step that is counted down to: each change of a replica is one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, example: ModuleType) -> None:
        self.left = 1 << 30
        for name in ("batch", "clear"):
            monkeypatch.setattr(example.Store, name, self._wrap(getattr(example.Store, name)))
        monkeypatch.setattr(bytekv.Batch, "commit", self._wrap(bytekv.Batch.commit))

    def step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed

    def _wrap(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            self.step()
            result = method(*arguments)
            self.step()
            return result

        return wrapped

    def each(self, iterable: Iterable[Any]) -> Iterator[Any]:
        for item in iterable:
            self.step()
            yield item


def test_replica_equals_its_source_wherever_it_is_killed(path, monkeypatch):
    """Killed before and after each step of the copying, it goes on from there."""
    example, chance = load("replicate"), random.Random(5)
    monkeypatch.setattr(example, "BATCH", 5)
    monkeypatch.setattr(example, "BATCH_BYTES", 150)
    countdown = Countdown(monkeypatch, example)
    everything, said, kills = example.everything, [], 0
    monkeypatch.setattr(example, "everything", lambda *given: countdown.each(everything(*given)))
    copy, before = path.with_name("replica"), path.with_name("before")
    with bytekv.open(path, auto_compact=False) as db, bytekv.open(path, "r") as source:
        open_store(before).close()
        for number in range(9):
            for _ in range(chance.randint(1, 9)):
                change_at_random(db, chance)
            if number % 3 == 2:
                db.compact()
            for steps in itertools.count():
                shutil.rmtree(copy, ignore_errors=True)
                shutil.copytree(before, copy)
                replica, countdown.left = open_store(copy), steps
                try:
                    said.append(example.replicate(source, replica))
                    replica.close()
                except Killed:
                    kills += 1
                    crash(replica)
                countdown.left = 1 << 30
                with open_store(copy) as replica:
                    said.append(example.replicate(source, replica))
                    assert entries(replica) == entries(db)
                    assert example.replicate(source, replica).startswith("0 changes")
                if said[-1].startswith("0 changes"):
                    break
            shutil.rmtree(before)
            copy.rename(before)
    assert kills > 50
    assert {"changes," in line for line in said} == {True, False}


def test_replica_stops_between_two_batches_of_the_source(path, monkeypatch):
    example, chance = load("replicate"), random.Random(6)
    monkeypatch.setattr(example, "BATCH", 5)
    countdown = Countdown(monkeypatch, example)
    with bytekv.open(path, auto_compact=False) as db, bytekv.open(path.with_name("replica")) as replica:
        history = [{}]
        for _ in range(60):
            change_at_random(db, chance)
            history.append(entries(db))
        for steps in range(200):
            countdown.left = steps % 7
            with suppress(Killed):
                example.replicate(db, replica)
            countdown.left = 1 << 30
            assert entries(replica) in history
        assert entries(replica) == history[-1]


def test_replica_forgets_what_expired_while_everything_was_copied(path):
    """It was not yet expired when keys were deleted, and not there when they were copied: its old value stayed."""
    example, files = load("replicate"), FakeFiles()
    with open_store(path, files=files) as db, open_store(path.with_name("replica"), files=files) as replica:
        db.update({"a": "old", "b": "1", "z": "old"})
        example.replicate(db, replica)
        db.update({"b": "2", "c": "3"})
        db.put("a", "new", ttl=10)
        db.put("z", "new", ttl=10)
        db.compact()
        taken = []

        def everything(*given: Any, everything: Any = example.everything) -> Iterator[Any]:
            for change in everything(*given):
                taken.append(change)
                yield change
                if change.key == b"b":
                    files.sleep(11)

        example.everything = everything
        assert "copied all" in example.replicate(db, replica)
        assert [(change.op, change.key) for change in taken if change.key in (b"a", b"z")] == [
            ("put", b"a"),
            ("delete", b"z"),
        ]
        assert entries(replica) == entries(db) == {b"b": (b"2", None), b"c": (b"3", None)}


def test_replica_takes_large_values(path, monkeypatch):
    """Batches were limited by count alone: a thousand large values were more than a batch may be, at every try."""
    example, sizes, commit = load("replicate"), [], bytekv.Batch.commit

    def measured(batch: bytekv.Batch) -> int | None:
        sizes.append(sum(len(value) for value in batch._writes.values() if isinstance(value, bytes)))
        return commit(batch)

    with bytekv.open(path) as db, bytekv.open(path.with_name("replica")) as replica:
        for number in range(30):
            db[f"{number}"] = bytes(300_000)
        db["largest"] = bytes(3 << 20)
        monkeypatch.setattr(bytekv.Batch, "commit", measured)
        example.replicate(db, replica)
        assert max(sizes) <= (3 << 20) + 16
        assert sorted(sizes)[-2] <= example.BATCH_BYTES + 16
        for number in range(30):
            db[f"{number}"] = bytes(300_001)
        db.compact()
        sizes.clear()
        assert "copied all" in example.replicate(db, replica)
        assert sorted(sizes)[-2] <= example.BATCH_BYTES + 16
        assert entries(replica) == entries(db)


def test_replicate_runs(path):
    first, second, third, cities = run("replicate", cwd=path.parent).splitlines()
    assert (first, second) == ("4 changes, up to 4", "1 changes, up to 5 - 0 changes, up to 5")
    assert third == "the changes from 5 to 6 are gone; copied all 2 keys"
    assert cities == "{b'city/Lviv': b'717,000', b'city/Porto': b'231,000'}"


# --- reader_process, crash_demo --------------------------------------------------------------------


def test_reader_process_sees_whole_transfers(path):
    printed = run("reader_process", cwd=path.parent)
    moments, seq, wrong, writer = re.search(
        r"it saw ([\d,]+) more moments up to seq ([\d,]+); in (\d+) of them .*\nthe writer is at seq ([\d,]+),", printed
    ).groups()
    assert printed.startswith("the reader sees 1000\n")
    assert (seq, wrong) == (writer, "0")
    assert moments != "0"


def test_crash_demo_misses_nothing(path):
    printed = run("crash_demo", path, cwd=path.parent)
    lives = re.findall(
        r"killed \(-9\) after (\d+) .*; (\d+) found, 0 missing, clean end: False, verified: True", printed
    )
    assert len(lives) == 3
    acknowledged = 0
    for said, found in lives:
        acknowledged += int(said)
        assert acknowledged <= int(found) <= acknowledged + 3
    assert printed.splitlines()[-1] == f"{acknowledged} acknowledged in 3 lives, all there: True"
    with bytekv.open(path, "r") as db:
        for life in (b"1", b"2", b"3"):
            numbers = [int(key[6:]) % 1_000_000 for key in db.scan_keys(b"order/" + life)]
            assert numbers == list(range(1, len(numbers) + 1)), "no hole"


# --- search_stdlib ---------------------------------------------------------------------------------


@pytest.fixture
def source(path: Path) -> Path:
    """A small tree of source files."""
    top = path.parent / "source"
    write(top / "fruit" / "apple.py", "class Apple:\n    def peel(self):\n        return apple_peeler()\n")
    write(top / "fruit" / "pear.py", "from .apple import Apple\n\n\npeeled = Apple().peel()\n")
    write(top / "tools.py", "def apple_peeler():\n    return 'peel'\n")
    write(top / "empty.py", "")
    write(top / "notes.txt", "apple peel")
    write(top / "site-packages" / "other.py", "apple = peel = 1")
    (top / "gone.py").symlink_to(top / "nowhere.py")
    return top


def write(file: Path, text: str) -> None:
    """Write a file whose time of change is later than that of its last version."""
    later = file.stat().st_mtime + 10 if file.exists() else None
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    if later is not None:
        os.utime(file, (later, later))


@pytest.fixture
def search(path: Path, source: Path) -> Callable[..., str]:
    """Run the example on the small tree; return what it prints."""

    def search(*arguments: object) -> str:
        done = python(SEARCH, "--source", source, "--store", path, *arguments, cwd=path.parent)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return search


def answers(printed: str) -> list[str]:
    """Return the places that were printed as answers."""
    return [line.split()[0] for line in printed.splitlines() if line.startswith("  ")]


def content(store: Path) -> dict[bytes, bytes]:
    """Return all that a store holds."""
    with bytekv.open(store, "r") as db:
        assert db.verify().ok
        return dict(db.items())


def test_search_finds_files_by_the_beginnings_of_words(search):
    printed = search("app", "PEEL")
    assert "4 files indexed, 0 removed" in printed
    assert answers(printed) == ["fruit/apple.py:2", "fruit/pear.py:4", "tools.py:1"]
    assert "def peel(self):" in printed
    assert answers(search("apple_p")) == ["fruit/apple.py:3", "tools.py:1"]
    assert "nobody  0 files" in search("nobody")


def test_search_updates_nothing_when_nothing_changed(search, path):
    search("apple")
    before = content(path)
    assert "nothing to update: 4 files compared" in search("apple")
    assert content(path) == before


def test_search_updates_what_changed_and_forgets_what_is_gone(search, source, path):
    search("apple")
    write(source / "tools.py", "def cherry_stoner():\n    return 'peel'\n")
    write(source / "new.py", "cherry = 1")
    (source / "fruit" / "pear.py").unlink()

    printed = search("cherry")
    assert "2 files indexed, 1 removed" in printed
    assert answers(printed) == ["new.py:1", "tools.py:1"]
    assert answers(search("apple")) == ["fruit/apple.py:1"]
    assert "nothing to update: 4 files compared" in search("apple")

    updated = content(path)
    assert "4 files indexed" in search("--rebuild", "apple")
    assert updated == content(path)  # no posting of a former version is left


def test_search_explains_what_it_cannot_do(path, source):
    def refusal(*arguments: object) -> str:
        done = python(SEARCH, *arguments, cwd=path.parent)
        assert done.returncode != 0
        assert "Traceback" not in done.stderr
        return done.stderr

    assert "no such directory" in refusal("--source", path / "nowhere")
    assert "no store" in refusal("--source", source, "--store", source)  # other files lie there
    assert "no word" in refusal("--source", source, "--store", path, "?!")
    with bytekv.open(path):
        assert "search_stdlib: " in refusal("--source", source, "--store", path)  # one writer at a time


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two real packages of the standard library."""
    top = tmp_path_factory.mktemp("library")
    for package in ("asyncio", "json"):
        shutil.copytree(Path(sysconfig.get_path("stdlib")) / package, top / package)
    return top


def test_search_on_real_packages(path, library):
    arguments = (SEARCH, "--source", library, "--store", path)
    first = python(*arguments, "asyncio", "gather", cwd=path.parent)
    assert first.returncode == 0, first.stderr
    place, found = next(line for line in first.stdout.splitlines() if line.startswith("  ")).split(maxsplit=1)
    assert place.startswith("asyncio/tasks.py:")
    assert found.startswith("def gather(")

    questions = python(*arguments, cwd=path.parent)  # without words it asks a few of its own
    assert "nothing to update" in questions.stdout
    assert any(place.startswith("json/__init__.py:") for place in answers(questions.stdout))


@pytest.mark.parametrize("batches", [1, 7, 30])
def test_search_goes_on_where_a_killed_run_stopped(path, library, batches):
    whole = path.with_name("whole")
    arguments = ("--source", library, "--store")
    assert python(SEARCH, *arguments, whole, cwd=path.parent).returncode == 0

    killed = python("-c", DYING, SEARCH, *arguments, path, batches, cwd=path.parent)
    assert killed.returncode == 9, killed.stderr
    files = sum(key.startswith(b"file:") for key in content(path))
    assert files == batches

    resumed = python(SEARCH, *arguments, path, cwd=path.parent)
    total = sum(key.startswith(b"file:") for key in content(whole))
    assert f"index   {total - batches:,} files indexed" in resumed.stdout
    assert content(path) == content(whole)
