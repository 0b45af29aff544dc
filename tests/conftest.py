"""Fixtures; after every test nothing may be left open, and every store that a test opened must verify."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from bytekv.engine.store import Store
from tests.support import harness

settings.register_profile(
    "default", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.load_profile("default")

# A shell starts what it puts into the background with SIGINT ignored, and nohup with SIGHUP; children would inherit it.
for _signal, _usual in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
    if hasattr(signal, _signal) and signal.getsignal(getattr(signal, _signal)) is signal.SIG_IGN:
        signal.signal(getattr(signal, _signal), _usual)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the pages of tests/scenarios be written anew."""
    parser.addoption("--rewrite-scenarios", action="store_true", help="write what happens into tests/scenarios/*.txt")


def pytest_collection_finish() -> None:
    """Keep what is there by now out of the garbage collection after each test, which took 70 ms for that."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def path() -> Iterator[Path]:
    """A name for a store, in a directory of its own; in memory where the machine has such, for the many syncs."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    parent = Path(tempfile.mkdtemp(prefix="bytekv-", dir=base))
    yield parent / "store"
    for folder, _, _ in os.walk(parent):
        os.chmod(folder, 0o700)
    shutil.rmtree(parent)


@pytest.fixture
def open_store(path: Path) -> Iterator[Callable[..., Store]]:
    """Open the test's store; at the end each one left open must verify, close, and verify when reopened."""
    opened: list[Store] = []

    def open_it(flag: str = "c", *, at: Path = path, **options: Any) -> Store:
        store = harness.open_store(at, flag, **options)
        opened.append(store)
        return store

    yield open_it
    for store in opened:
        if store.closed:
            continue
        report = store.verify()
        assert report.ok, report
        with store._commit.state.lock:
            assert store._segments.check() == []
            assert store._keydir.check() == []
        content = dict(store.items())
        store.close()
        with harness.open_store(store.path, "r", files=store._files) as again:
            assert dict(again.items()) == content
            report = again.verify()
            assert report.ok, report


@pytest.fixture
def door(open_store: Callable[..., Store]) -> Iterator[Callable[..., Any]]:
    """Make the HTTP application of a store, the test's one if none is given, and return a client of it."""
    from bytekv.http import Application
    from tests.support.http_client import Client

    made = []

    def make(
        store: Store | None = None, *, headers: dict[str, str] | None = None, root_path: str = "", **settings: Any
    ) -> Client:
        application = Application(open_store() if store is None else store, **settings)
        made.append(application)
        return Client(application, headers, root_path)

    yield make
    for application in made:
        application.close()


def _descriptors() -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{name} -> {os.readlink('/proc/self/fd/' + name)}")
        except OSError:
            continue  # the one that listed the directory
    return found


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    """Compare open files, mappings and threads before and after."""
    if not os.path.isdir("/proc/self/fd"):
        yield
        return
    before, threads = _descriptors(), set(threading.enumerate())
    yield
    gc.collect()
    # First: a store that was dropped while its worker was at work is closed by the worker, a moment later.
    running = [thread for thread in threading.enumerate() if thread not in threads and thread.is_alive()]
    for thread in running:
        thread.join(5)
    gc.collect()
    gc.freeze()  # what survived this test is not looked through after each that follows
    left = {name for name in _descriptors() - before if "bytekv" in name or ".seg" in name}
    assert not left, f"left open: {left}"
    assert not [thread for thread in running if thread.is_alive()], f"still running: {running}"
    with open("/proc/self/maps") as maps:
        mapped = [line for line in maps if "bytekv-" in line and ".seg" in line]
    assert not mapped, f"still mapped: {mapped}"
