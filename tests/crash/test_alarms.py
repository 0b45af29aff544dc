"""What a signal handler raises in the middle of a system call is an interrupt, whatever class it is of.

``TimeoutError`` out of an alarm's handler is the usual way to bound a call, and an `OSError`. It was taken for the
system's word: in a sync it poisoned the store ("sync failed (None)"), elsewhere it became a `StoreIOError`, "the name
is taken", "there is no such file", or nothing at all.
"""

from __future__ import annotations

import errno
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from bytekv.engine.log import files
from bytekv.engine.log.files import Files
from bytekv.engine.store import Store
from bytekv.errors import StoreFailedError, StoreIOError, from_os_error, is_interrupt
from tests.support.fault_files import SystemCalls
from tests.support.harness import NO_WORKER, open_store, patched, tuned

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs alarms")

#: What handlers raise, and where it would be misunderstood if it were taken for the system's.
RAISED: dict[str, Callable[[], OSError]] = {
    "TimeoutError without an errno": lambda: TimeoutError("took too long"),
    "ConnectionRefusedError": lambda: ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
    "FileNotFoundError": lambda: FileNotFoundError(errno.ENOENT, "No such file or directory"),
    "FileExistsError": lambda: FileExistsError(errno.EEXIST, "File exists"),
    "ENOSPC": lambda: OSError(errno.ENOSPC, "No space left on device"),
}


class Alarmed(SystemCalls):
    """The real system calls, after one of which an alarm goes off: no error is the system's.

    Before one that opens something: an interrupt right behind such a call, before its result is kept, leaks that.
    """

    def __init__(self) -> None:
        super().__init__()
        self.number = 0
        self.calls = 0
        self.struck_in = ""

    def __enter__(self) -> Alarmed:
        super().__enter__()
        for module in (files.os, files.mmap, files.fcntl):
            for name, call in list(vars(module).items()):
                if callable(call):
                    setattr(module, name, functools.partial(self._call, name, call))
        files._pread = functools.partial(self._call, "pread", files._pread)
        files._pwrite = functools.partial(self._call, "pwrite", files._pwrite)
        return self

    def _call(self, name: str, call: Callable[..., Any], /, *arguments: Any, **named: Any) -> Any:
        self.calls += 1
        if self.calls != self.number:
            return call(*arguments, **named)
        self.struck_in = name
        if name not in ("open", "dup"):
            call(*arguments, **named)
        signal.raise_signal(signal.SIGALRM)
        raise AssertionError("the handler has raised nothing")


@pytest.fixture
def alarm() -> Iterator[Callable[[Callable[[], BaseException]], list[BaseException]]]:
    """Install a handler that raises what it is told to; return what it has raised."""
    before = signal.getsignal(signal.SIGALRM)
    made: list[list[BaseException]] = []

    def install(make: Callable[[], BaseException]) -> list[BaseException]:
        raised: list[BaseException] = []
        made.append(raised)

        def handler(number: int, frame: FrameType | None) -> None:
            raised.append(make())
            raise raised[-1]

        signal.signal(signal.SIGALRM, handler)
        return raised

    yield install
    signal.signal(signal.SIGALRM, before)
    for raised in made:
        raised.clear()


def _life(path: Path) -> Iterator[Callable[[], object]]:
    """Yield the calls of a store's life, one by one; what they have made is on the disk."""
    stores: list[Store] = []
    yield lambda: stores.append(open_store(path, sync="always", segment_size_bytes=1500))
    db = stores[-1]
    for number in range(12):
        yield functools.partial(db.put, b"%d" % (number % 7), b"v" * 200)
    yield functools.partial(db.delete, b"3")
    yield db.compact
    yield db._work
    yield functools.partial(db.backup, path.with_name("copy"))
    yield lambda: stores.append(open_store(path, "r"))
    reader = stores[-1]
    yield functools.partial(db.put, b"new", b"1")
    yield reader.refresh
    yield reader.close
    yield lambda: db.failure and pytest.fail(f"poisoned: {db.failure}")
    yield db.close


def _strike(path: Path, number: int, raised: list[BaseException]) -> bool:
    """Live a store's life in which the ``number``-th system call meets the alarm; False if there are not so many."""
    ignored: list[BaseException | None] = []
    with patched({"sys.unraisablehook": lambda found: ignored.append(found.exc_value)}), Alarmed() as calls:
        calls.number = number
        for call in _life(path):
            struck = len(raised)
            error: BaseException | None = None
            try:
                call()
            except Exception as found:
                error = found
            if len(raised) > struck:
                is_done = error is None  # of a finaliser no error comes out; Python says so
                if is_done:
                    error = ignored.pop()
                assert error is raised[-1], f"{error!r} in place of what was raised in {calls.struck_in} of {call}"
                raised[-1] = error = None  # type: ignore[call-overload]  # and with it the frames that it has seen
                if not is_done:
                    call()  # it was interrupted, and can be done once more
            else:
                assert error is None, f"{error!r} after an alarm in {calls.struck_in}"
        return bool(calls.struck_in)


@pytest.mark.parametrize("step", [17, pytest.param(1, marks=pytest.mark.deep)])
@pytest.mark.parametrize("kind", RAISED)
def test_at_every_system_call_what_a_handler_raises_comes_out_and_nothing_is_broken(
    kind: str, step: int, path: Path, alarm: Callable[..., list[BaseException]]
) -> None:
    raised = alarm(RAISED[kind])
    number = 1 + 5 * list(RAISED).index(kind) % step
    path.mkdir()
    with patched(NO_WORKER | tuned(hint_from=100)):
        while True:
            place = path / str(number)
            place.mkdir()
            if not _strike(place / "store", number, raised):
                break
            with open_store(place / "store", "r") as db:
                assert {key: len(value) for key, value in db.items()} == {
                    **dict.fromkeys((b"0", b"1", b"2", b"4", b"5", b"6"), 200),
                    b"new": 1,
                }
                assert db.verify().ok
            number += step
    assert number > 300
    assert len(raised) >= 300 // step


def test_an_alarm_in_a_sync_is_no_failed_sync(path: Path, alarm: Callable[..., list[BaseException]]) -> None:
    raised = alarm(RAISED["TimeoutError without an errno"])
    with open_store(path, sync="always") as db:
        db["a"] = "1"
        real = os.fdatasync

        def sync(descriptor: int) -> None:
            real(descriptor)
            signal.raise_signal(signal.SIGALRM)

        with patched({"os.fdatasync": sync}), pytest.raises(TimeoutError) as found:
            db["b"] = "2"
        assert found.value is raised[0]
        assert db.failure is None
        db["c"] = "3"
        assert dict(db) == {b"a": b"1", b"b": b"2", b"c": b"3"}


@pytest.mark.parametrize("kind", RAISED)
def test_an_alarm_while_a_file_is_closed_is_not_swallowed(
    kind: str, path: Path, alarm: Callable[..., list[BaseException]]
) -> None:
    raised = alarm(RAISED[kind])
    path.write_bytes(b"")
    real = os.close

    def close(descriptor: int) -> None:
        real(descriptor)
        signal.raise_signal(signal.SIGALRM)

    descriptor = Files().open(str(path))
    with patched({"os.close": close}), pytest.raises(OSError, match=r".") as found:
        Files().close(descriptor)
    assert found.value is raised[0]


# --- which is which ------------------------------------------------------------------------------


def _from_system() -> OSError:
    try:
        os.stat("/nowhere/at/all")
    except OSError as error:
        return error
    raise AssertionError


def _from_handler(handler: Any, previous: Any = None) -> BaseException:
    previous = signal.signal(signal.SIGALRM, handler)
    try:
        signal.raise_signal(signal.SIGALRM)
    except BaseException as error:
        return error
    finally:
        signal.signal(signal.SIGALRM, previous)
    raise AssertionError


def _nested(number: int, frame: FrameType | None) -> None:
    def deeper() -> None:
        os.stat("/nowhere/at/all")

    deeper()


class _Method:
    def __call__(self, *arguments: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    handle = __call__


HANDLERS: dict[str, Any] = {
    "two arguments": _nested,
    "any arguments": lambda *_: os.stat("/nowhere/at/all"),
    "an object": _Method(),
    "a method": _Method().handle,
    "a partial": functools.partial(_nested),
}


@pytest.mark.parametrize("handler", HANDLERS)
def test_the_systems_errors_in_a_handler_are_the_handlers(handler: str) -> None:
    """The handler has looked for a file of its own, and there was none: it is not ours that is missing."""
    error = _from_handler(HANDLERS[handler])
    assert isinstance(error, OSError)
    assert error.errno
    assert is_interrupt(error)
    assert not is_interrupt(_from_system())


def test_an_error_without_a_number_is_nobodys_word_but_ours() -> None:
    assert is_interrupt(TimeoutError("too long"))
    assert is_interrupt(OSError())
    assert not is_interrupt(StoreIOError(None, "on a network file system", "path"))
    assert not is_interrupt(StoreFailedError("sync failed"))
    assert not is_interrupt(from_os_error(_from_system(), "path"))


def test_what_a_tracer_raises_is_an_interrupt() -> None:
    def tracer(frame: FrameType, event: str, argument: object) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    before = sys.gettrace()
    error: BaseException | None = None
    try:
        sys.settrace(tracer)
        try:
            _from_system()
        finally:
            sys.settrace(before)
    except OSError as found:
        error = found
    assert error is not None
    assert is_interrupt(error)
