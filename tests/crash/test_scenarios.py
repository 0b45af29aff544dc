"""Scenarios as pages to read: commands in; what becomes durable, and what the directory holds then, out.

Each page of tests/scenarios is a list of commands, each followed by ``----`` and what it did. A page that says
something else than what happens fails; ``pytest tests/crash/test_scenarios.py --rewrite-scenarios`` writes what
happens into the pages, and the difference shows what a change has changed. Nothing depends on time or chance: the
clock is set by hand, random bytes come from a seed, nothing runs in the background.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bytekv import BytekvError
from bytekv.contract.snapshot import Snapshot
from bytekv.engine.store import Store
from tests.support import harness
from tests.support.crash_files import CrashFiles

pytestmark = pytest.mark.once

PAGES = sorted((Path(__file__).parents[1] / "scenarios").glob("*.txt"))
OPTIONS: dict[str, Any] = {"io": "pread", "sync": "os", "sync_interval_s": 86_400.0, "expiry_grace_s": 0.0}


class ToldFiles(CrashFiles):
    """A disk that says what is done to names, and what is synced."""

    def __init__(self, root: Path, life: int) -> None:
        super().__init__(root, life=life)
        self.told: list[str] = []

    def tell(self, verb: str, *paths: str) -> None:
        self.told.append(f"{verb} {' -> '.join(os.path.relpath(path, self.root) for path in paths)}")

    def make_directory(self, path: str) -> bool:
        if made := super().make_directory(path):
            self.tell("make directory", path)
        return made

    def open(self, path: str, *, write: bool = False, create: bool = False, exclusive: bool = False) -> int:
        is_new = path not in self.names
        descriptor = super().open(path, write=write, create=create, exclusive=exclusive)
        if is_new and path in self.names:
            self.tell("create", path)
        return descriptor

    def replace(self, source: str, target: str) -> None:
        super().replace(source, target)
        self.tell("rename", source, target)

    def unlink(self, path: str) -> bool:
        if removed := super().unlink(path):
            self.tell("remove", path)
        return removed

    def sync(self, descriptor: int, path: str) -> None:
        super().sync(descriptor, path)
        self.tell("sync", path)

    def sync_directory(self, path: str) -> None:
        super().sync_directory(path)
        self.tell("sync directory", path)


class Machine:
    """A machine with one store, and what a page may ask of it."""

    def __init__(self, root: Path) -> None:
        self.root, self.life = root, 0
        self.disk = self._disk()
        self.db: Store | None = None
        self.snapshot: Snapshot | None = None

    def _disk(self) -> ToldFiles:
        place = self.root / str(self.life)
        place.mkdir(exist_ok=True)
        return ToldFiles(place, self.life)

    def do(self, command: str) -> str:
        """Carry out one command; return what it says, what it did to the disk, and what that holds now."""
        verb, *words = shlex.split(command)
        do: Callable[..., list[str]] = getattr(self, f"do_{verb}")
        given = dict(word.split("=", 1) for word in words if "=" in word)
        try:
            said = do(*[word for word in words if "=" not in word], **given)
        except BytekvError as error:
            said = [type(error).__name__]
        told, self.disk.told = self.disk.told, []
        return "".join(f"{line}\n" for line in [*said, *told])

    @property
    def store(self) -> Store:
        assert self.db is not None
        return self.db

    def do_open(self, **given: str) -> list[str]:
        options = {name: int(value) if value.isdigit() else value for name, value in given.items()}
        path = Path(self.disk.root) / "store"
        self.db = db = harness.open_store(path, files=self.disk, **OPTIONS | options)
        found = db.recovery
        said = [f"seq {db.last_seq}, {len(db)} keys"]
        if found.torn_bytes:
            said.append(f"torn: {found.torn_bytes} bytes in {os.path.basename(found.quarantined[0])}")
        return said

    def do_put(self, key: str, value: str, ttl: str | None = None) -> list[str]:
        text, _, times = value.partition("*")
        return [f"seq {self.store.put(key, text * int(times or 1), ttl=float(ttl) if ttl else None)}"]

    def do_batch(self, *keys: str) -> list[str]:
        with self.store.batch() as batch:
            for key in keys:
                batch.put(key, "in a batch")
        return [f"seq {self.store.last_seq}"]

    def do_delete(self, key: str) -> list[str]:
        return [str(self.store.delete(key)).lower()]

    def do_sync(self) -> list[str]:
        self.store.sync()
        return [f"durable up to seq {self.store.durable_seq}"]

    def do_compact(self) -> list[str]:
        self.store.compact()
        return []

    def do_wait(self, seconds: str) -> list[str]:
        self.disk.sleep(float(seconds))
        return []

    def do_snapshot(self) -> list[str]:
        self.snapshot = self.store.snapshot()
        return []

    def do_look(self) -> list[str]:
        assert self.snapshot is not None
        return _entries(self.snapshot)

    def do_release(self) -> list[str]:
        assert self.snapshot is not None
        self.snapshot.close()
        return []

    def do_content(self) -> list[str]:
        return _entries(self.store)

    def do_directory(self) -> list[str]:
        """List the files; of the lock, which holds a process's number, not the size."""
        found = []
        for folder, _, names in sorted(os.walk(self.store.path)):
            for name in sorted(names):
                path = os.path.join(folder, name)
                size = "" if name == "LOCK" else f" {os.path.getsize(path)} bytes"
                found.append(f"{os.path.relpath(path, self.store.path)}{size}")
        return found

    def do_segments(self) -> list[str]:
        return [
            f"{row.segment_id}: {row.length_bytes} bytes, {row.dead_bytes} of them dead"
            for row in self.store.stats().segments
        ]

    def do_close(self) -> list[str]:
        self.store.close()
        self.db = None
        return []

    def do_kill(self) -> list[str]:
        """End the process: what it has written is with the kernel."""
        harness.crash(self.store)
        self.db = self.snapshot = None
        return []

    def do_cut(self) -> list[str]:
        """Cut the power: of what was not synced, nothing is left."""
        image = next(self.disk.images(2))
        self.end()
        self.life += 1
        (self.root / str(self.life)).mkdir()
        image.put_into(self.root / str(self.life))
        now_ns = self.disk.time_ns
        self.disk = self._disk()
        self.disk.time_ns = now_ns
        return []

    def end(self) -> None:
        if self.db is not None:
            self.do_kill()


def _entries(view: Any) -> list[str]:
    return [f"{key.decode()}: {_short(value.decode())}" for key, value in view.items()]


def _short(text: str) -> str:
    return text if len(text) <= 20 else f"{text[:8]}… ({len(text)} bytes)"


def play(page: str, root: Path) -> str:
    """Carry out the commands of a page; return the page with what they did."""
    machine, made = Machine(root), ""
    try:
        with harness.patched(harness.NO_WORKER):
            for part in page.strip().split("\n\n"):
                command = part.partition("\n----")[0]
                made += f"{command}\n"
                asked = [line for line in command.splitlines() if not line.startswith("#")]
                if asked:
                    made += f"----\n{''.join(machine.do(line) for line in asked)}"
                made += "\n"
    finally:
        machine.end()
    return made.rstrip("\n") + "\n"


@pytest.fixture
def root(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_a_page_says_what_happens(page: Path, root: Path, request: pytest.FixtureRequest) -> None:
    before = page.read_text(encoding="utf-8")
    made = play(before, root)
    if request.config.getoption("--rewrite-scenarios"):
        page.write_text(made, encoding="utf-8")
    else:
        assert made == before, "python -m pytest tests/crash/test_scenarios.py --rewrite-scenarios"


def test_the_pages_show_the_ways_of_a_store() -> None:
    assert {page.stem for page in PAGES} >= {"open", "roll", "compact", "crash", "recover", "snapshot", "expiry"}


def test_the_same_page_twice_says_the_same(root: Path) -> None:
    page = "open\n\nput a 1\n\nsync\n\ncut\n\nopen\n\ncontent\n\nclose\n"
    made = [play(page, folder) for folder in (root / "one", root / "two") if not folder.mkdir()]  # type: ignore[func-returns-value]
    assert made[0] == made[1]
    assert "durable up to seq 1" in made[0]
