"""A store that is called from a signal handler or a finaliser, in the middle of a call of its own thread.

It is refused with `ReentryError`, or it does what it always does; nothing that was acknowledged is lost, nothing
waits for itself, and the store opens afterwards.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bytekv.errors import ReentryError
from bytekv.store import Store
from tests.harness import FakeFiles, open_store


class Struck(FakeFiles):
    """Files that call a handler once, when the ``number``-th call of the method ``name`` returns."""

    def __init__(self) -> None:
        super().__init__()
        self.handler: Callable[[], object] = lambda: None
        self.name, self.number = "", 1

    def __getattribute__(self, attribute: str) -> Any:
        found = super().__getattribute__(attribute)
        if attribute != super().__getattribute__("name"):
            return found

        def call(*arguments: Any, **more: Any) -> Any:
            result = found(*arguments, **more)
            self.number -= 1
            if self.number == 0:
                self.name = ""
                self.handler()
            return result

        return call


def _filled(path: Path, files: FakeFiles, **options: Any) -> Store:
    store = open_store(path, files=files, segment_size_bytes=4096, auto_compact=False, **options)
    for number in range(200):
        store[_key(number)] = b"x" * 50
    return store


def _key(number: int) -> bytes:
    return b"k%d" % (number if number % 4 else number % 50)  # so that each segment holds some that live


KEYS = {_key(number) for number in range(200)}


def _overwrite(store: Store, home: Path) -> None:
    for turn in range(50):
        store.put(_key(turn), b"y" * 50)


ACTS: dict[str, Callable[[Store, Path], object]] = {
    "compact": lambda store, home: store.compact(),
    "sync": lambda store, home: store.sync(),
    "verify": lambda store, home: store.verify(),
    "backup": lambda store, home: store.backup(home.with_name(f"{home.name}-backup")),
    "close": lambda store, home: store.close(),
    "put": _overwrite,
}


@pytest.mark.parametrize("name", ["sync", "replace"])
@pytest.mark.parametrize("call", ACTS)
@pytest.mark.parametrize("sync", ["interval", "always"])
def test_a_write_of_a_handler_is_refused_or_kept(path: Path, call: str, name: str, sync: str) -> None:
    """A put while a segment was being sealed was acknowledged, and the store did not open after a clean close."""
    for number in range(1, 30):
        files = Struck()
        home = path.parent / f"store-{number}"
        store = _filled(home, files, sync=sync)
        told: list[str] = []

        def stop(store: Store = store, told: list[str] = told) -> None:
            try:
                store["stopped"] = b"yes"
                told.append("kept")
            except ReentryError:
                told.append("refused")

        files.handler, files.name, files.number = stop, name, number
        ACTS[call](store, home)
        files.name = ""
        store.close()
        with open_store(home) as again:
            assert again.keys() == KEYS | ({b"stopped"} if told == ["kept"] else set())
            assert again.verify().ok
        if not told:
            break
    else:
        assert call in ("compact", "backup", "put", "verify"), f"{name} was called more often than expected"


@pytest.mark.parametrize("name", ["replace", "sync_directory"])
@pytest.mark.parametrize("call", ["compact", "put"])
def test_an_error_out_of_a_handler_is_not_taken_for_the_systems(path: Path, call: str, name: str) -> None:
    """Right behind the rename of the manifest it was read as "nothing has happened", and listed files were removed."""
    for number in range(1, 10):
        files = Struck()
        home = path.parent / f"store-{number}"
        store = _filled(home, files)
        files.handler, files.name, files.number = lambda store=store: store.put("mine", "1"), name, number  # type: ignore[misc]
        try:
            if call == "compact":
                store.compact()
            else:
                for turn in range(200):
                    store[_key(turn)] = b"y" * 50
        except ReentryError:
            files.name = ""
            killed = home.with_name(f"{number}-killed")
            os.system(f"cp -r {home} {killed}")
            with open_store(killed) as again:
                assert again.keys() >= KEYS
                assert again.verify().ok
        files.name = ""
        store["after"] = b"1"
        assert store.verify().ok
        store.compact()
        store.close()
        with open_store(home) as again:
            assert again.keys() - {b"mine"} == KEYS | {b"after"}
            assert again.verify().ok
            assert sorted(again._directory.segments_on_disk()) == sorted(again._segments.lengths())
