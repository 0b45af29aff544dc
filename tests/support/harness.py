"""What the tests build with: a store on injected files, a clock that is set by hand."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest

from bytekv.contract.reports import Report
from bytekv.engine.log.files import Files
from bytekv.engine.store import Store
from bytekv.engine.stores import repair_path
from bytekv.engine.tuning import Tuning
from bytekv.options import Options

#: What says that a case went wrong: `pytest.fail`, and a `pytest.raises` that met nothing, raise no `Exception`.
WRONG = (Exception, pytest.fail.Exception)


class Case(NamedTuple):
    """One case of a method of testing: of which kind, and what went wrong, if anything did.

    A method is an iterator of cases. The default run takes the first few and raises what went wrong; `tests.deep`
    goes on for as long as it is told to, and counts.
    """

    kind: str
    error: BaseException | None = None
    detail: str = ""  # of which there is a count on request
    count: int = 1
    is_last: bool = False  # there are no more of this kind


def expect_no_violation(cases: Iterable[Case]) -> Counter[str]:
    """Go through the cases of a method, raise what went wrong, and count the kinds and details."""
    counts: Counter[str] = Counter()
    for case in cases:
        if case.error is not None:
            raise case.error
        counts[case.kind] += case.count
        counts[case.detail] += case.count
    return counts


@contextlib.contextmanager
def patched(values: Mapping[str, object]) -> Iterator[None]:
    """Set module attributes, by their full names, for a while; what methods run under outside of pytest, too."""
    with contextlib.ExitStack() as stack:
        for name, value in values.items():
            stack.enter_context(mock.patch(name, value))
        yield


def _stays_asleep(worker: object) -> bool:
    return True


#: Nothing happens in the background; what the worker would do is a step like any other.
NO_WORKER: dict[str, object] = {"bytekv.engine.space.worker.Worker.wake": _stays_asleep}


#: What the stores of a test are handed.
TUNING = Tuning()


def tuned(**values: float) -> dict[str, object]:
    """Return what gives stores that are opened here other constants, for `patched`; the others are those of now."""
    return {"tests.support.harness.TUNING": TUNING._replace(**values)}


def tune(monkeypatch: pytest.MonkeyPatch, **values: float) -> None:
    """Give stores that are opened here other constants until the test ends; the others are those of now."""
    for name, value in tuned(**values).items():
        monkeypatch.setattr(name, value)


class FakeFiles(Files):
    """The real files with a wall clock that moves only when told to."""

    def __init__(self, now_s: float = 1_700_000_000.0) -> None:
        self.time_ns = int(now_s * 1e9)
        self.clock_ns = lambda: self.time_ns  # type: ignore[method-assign]

    def sleep(self, seconds: float) -> None:
        """Let time pass (or, if negative, jump back)."""
        self.time_ns += int(seconds * 1e9)


class QuickFiles(FakeFiles):
    """Do without the question which file system this is: asked at every opening, and dear."""

    def file_system(self, path: str) -> str:
        return "tmpfs"


def open_store(path: str | os.PathLike[str], flag: Any = "c", *, files: Files | None = None, **options: Any) -> Store:
    """Open a store on the given files; no background compaction unless asked for, so that tests decide."""
    options.setdefault("auto_compact", False)
    return Store(os.path.abspath(os.fsdecode(path)), flag, Options(**options), files or Files(), TUNING)


def repair(path: str | os.PathLike[str]) -> Report:
    """Do what `bytekv.repair` does, with the constants that stores are handed here."""
    return repair_path(path, None, TUNING)


def crash(store: Store) -> None:
    """Leave a store as a killed process does: nothing flushed, nothing said, the lock gone with the process."""
    store._after_fork()  # gives up every descriptor and mapping without a word to the disk
    from bytekv.engine.exit_and_fork import unregister

    store._worker.stop()
    unregister(store)
    store._is_closed = True


def segment_files(path: Path) -> list[Path]:
    """List the segments of a store, oldest id first."""
    return sorted(path.glob("*.seg"))


def damage(file: Path, offset: int, mask: int = 0x01) -> None:
    """Flip bits of one byte."""
    content = bytearray(file.read_bytes())
    content[offset] ^= mask
    file.write_bytes(content)


def snapshot_of(path: Path) -> dict[str, bytes]:
    """Return every file of a directory with its bytes, to show that nothing was changed."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def fresh(path: Path) -> Path:
    """Return a new folder for an example of hypothesis's; `path` is the same for all of them."""
    path.mkdir(exist_ok=True)
    folder = path / str(len(os.listdir(path)))
    folder.mkdir()
    return folder
