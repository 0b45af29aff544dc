"""Each example is run as a user runs it, twice, with a change between; warnings are errors there, too."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

import bytekv

ROOT = Path(__file__).resolve().parent.parent
SEARCH = ROOT / "examples" / "search_stdlib.py"
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
