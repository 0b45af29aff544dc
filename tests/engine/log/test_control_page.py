"""The control page: its words, its locks, and what is left of them when a process is killed, interrupted or forked.

The kernel gives these locks to an open file. So two openings in one process are to each other what two processes are.
"""

from __future__ import annotations

import dis
import errno
import gc
import itertools
import os
import random
import signal
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType
from typing import Any, ClassVar

import pytest

from bytekv.engine.log import control_page as module
from bytekv.engine.log.control_page import CHANGES, HOLDER, WANT, ControlPage, RangeLock, Where
from bytekv.engine.log.directory import Directory
from bytekv.engine.log.files import Files
from bytekv.engine.log.lock import Lock
from bytekv.errors import (
    BytekvError,
    DiskFullError,
    ReentryError,
    StoreBusyError,
    StoreClosedError,
    StoreIOError,
    StoreLockedError,
    UnsupportedError,
)
from tests.crash.test_interrupts import InterruptAt
from tests.support.fault_files import SystemCalls
from tests.support.harness import QuickFiles, open_store

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only there are stores shared")

UUID = bytes(range(16))


class Clock(QuickFiles):
    """Time passes only in pauses; ``then`` is called in each."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1000.0
        self.pauses: list[float] = []
        self.then: Callable[[], object] = lambda: None

    def monotonic(self) -> float:
        return self.now_s

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now_s += seconds
        self.then()

    def yield_cpu(self) -> None:
        self.then()


class Pages:
    """Openings of one store's page."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self.path, self.file = path, path / "SHARED"
        self.opened: list[ControlPage] = []

    def open(self, files: Files | None = None) -> ControlPage:
        page = ControlPage(Directory(str(self.path), files or QuickFiles()))
        self.opened.append(page)
        return page

    def make(self, files: Files | None = None) -> ControlPage:
        page = self.open(files)
        page.door.run(lambda: page.make(UUID), 1.0)
        return page

    def join(self, files: Files | None = None) -> ControlPage:
        page = self.open(files)
        page.door.run(lambda: page.join(UUID), 1.0)
        return page


@pytest.fixture
def pages(path: Path) -> Iterator[Pages]:
    pages = Pages(path)
    yield pages
    for page in pages.opened:
        page.close()
        page._directory.folder.close()


# --- the page ------------------------------------------------------------------------------------


def test_what_one_writes_another_reads(pages: Pages) -> None:
    first, second = pages.make(), pages.join()
    assert not any(second.words[8:80])
    first.words[HOLDER] = 7
    assert second.words[HOLDER] == 7
    assert pages.file.stat().st_size == 4096
    assert stat.S_IMODE(pages.file.stat().st_mode) == 0o600


def test_it_is_not_mapped_from_the_descriptor_that_has_the_locks(pages: Pages) -> None:
    """A mapping keeps a descriptor of its own. Had it been one of the opening with the locks, a forked child that let
    go of everything else would have kept a killed parent's turn for ever."""
    page = pages.make()
    page.take_turn(0)
    page._file.close()
    other = pages.join()
    other.take_turn(0)
    other.give_turn_back()


def test_a_page_of_before_is_made_anew_by_the_one_who_is_alone(pages: Pages) -> None:
    first = pages.make()
    first.words[HOLDER] = 7
    first.close()
    inode = pages.file.stat().st_ino
    assert not any(pages.make().words[8:80])
    assert pages.file.stat().st_ino == inode, "the locks are on this file"


@pytest.mark.parametrize("left", [b"", b"bytekvSH", bytes(100), bytes(4096), bytes(8) + b"x" * 4088], ids=len)
def test_what_a_crash_left_of_it_is_made_anew(pages: Pages, left: bytes) -> None:
    pages.file.write_bytes(left)
    pages.make()
    pages.join()


@pytest.mark.parametrize("content", [b"mine", b"x" * 4096, bytes(5000)], ids=len)
def test_a_file_of_somebody_elses_is_left_as_it_is(pages: Pages, content: bytes) -> None:
    pages.file.write_bytes(content)
    with pytest.raises(StoreIOError, match="not made; give it another name"):
        pages.make()
    assert pages.file.read_bytes() == content


def _zero(page: bytearray) -> None:
    page[:] = bytes(4096)


def _cut(page: bytearray) -> None:
    del page[100:]


def _lengthen(page: bytearray) -> None:
    page.append(0)


def _flip(offset: int) -> Callable[[bytearray], None]:
    def flip(page: bytearray) -> None:
        page[offset] ^= 1

    return flip


WRONG: dict[str, tuple[Callable[[bytearray], None], type[BytekvError], str]] = {
    "zeroed": (_zero, StoreIOError, "damaged, or not bytekv's"),
    "shorter": (_cut, StoreIOError, "another size"),
    "longer": (_lengthen, StoreIOError, "another size"),
    "magic": (_flip(0), StoreIOError, "damaged, or not bytekv's"),
    "layout": (_flip(9), UnsupportedError, "layout 257, not 1"),
    "uuid": (_flip(31), StoreIOError, "that of another store"),
    "boot id": (_flip(32), UnsupportedError, "another machine"),
}


@pytest.mark.parametrize(("change", "kind", "text"), WRONG.values(), ids=WRONG)
def test_a_page_that_is_not_theirs_is_refused_and_left_as_it_is(
    pages: Pages, change: Callable[[bytearray], None], kind: type[BytekvError], text: str
) -> None:
    pages.make()
    content = bytearray(pages.file.read_bytes())
    change(content)
    pages.file.write_bytes(content)
    with pytest.raises(kind, match=text) as caught:
        pages.join()
    assert str(pages.file) in str(caught.value)
    assert pages.file.read_bytes() == content
    assert not any(pages.opened[-1].words)


@pytest.mark.parametrize("what", ["link", "dangling link", "pipe", "directory"])
def test_what_is_no_file_is_refused(pages: Pages, what: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    if what == "link":
        target.write_bytes(bytes(4096))
    if what.endswith("link"):
        pages.file.symlink_to(target)
    elif what == "pipe":
        os.mkfifo(pages.file)
    else:
        pages.file.mkdir()
    with pytest.raises(StoreIOError, match="not a regular file"):
        pages.open()
    assert target.exists() == (what == "link")
    assert what != "link" or target.read_bytes() == bytes(4096)


def test_a_file_with_a_second_name_is_left_as_it_is(pages: Pages, tmp_path: Path) -> None:
    pages.make().close()
    os.link(pages.file, pages.path.with_name("second"))
    content = pages.file.read_bytes()
    for attempt in (pages.make, pages.join):
        with pytest.raises(StoreIOError, match="second name"):
            attempt()
    assert pages.file.read_bytes() == content


def test_a_file_that_is_replaced_meanwhile_is_left_as_it_is(pages: Pages) -> None:
    page = pages.open()
    pages.file.unlink()
    pages.file.write_bytes(bytes(4096))
    with pytest.raises(StoreIOError, match="replaced just now"):
        page.make(UUID)
    assert pages.file.read_bytes() == bytes(4096)


def test_a_file_system_that_does_not_show_what_was_mapped_is_noticed(pages: Pages) -> None:
    class Incoherent(QuickFiles):
        def read(self, descriptor: int, size: int, offset: int, path: str) -> bytes:
            return super().read(descriptor, size, offset, path) if offset == 0 else bytes(size)

    with pytest.raises(UnsupportedError, match="what was written to a mapping"):
        pages.make(Incoherent())
    pages.make()
    with pytest.raises(UnsupportedError, match="what was written to a mapping"):
        pages.join(Incoherent())


@pytest.mark.parametrize("kind", ["open", "write", "map", "stat", "chmod", "read"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_the_systems_errors_are_told(pages: Pages, kind: str, code: int) -> None:
    pages.make().close()
    expected = DiskFullError if code == errno.ENOSPC else StoreIOError
    for number in range(1, 3):
        with SystemCalls() as calls:
            calls.fail(kind, number, code)
            if kind in ("chmod", "map", "read", "write") and number > 1 and kind != "read":
                break
            with pytest.raises(expected):
                pages.make()
            calls.lift()
    pages.make()


def test_after_its_end_the_page_is_empty_and_refuses(pages: Pages) -> None:
    page = pages.make()
    page.words[HOLDER] = 7
    for _ in range(2):
        page.close()
        assert not any(page.words)
        page.give_turn_back()
        page.sync.give_back()
        for act in (lambda: page.take_turn(0), page.sync.try_take, lambda: page.pin(1)):
            with pytest.raises(StoreClosedError):
                act()


# --- where it can be -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ext4", "xfs", "tmpfs", "overlay"])
def test_file_systems_that_write_in_place_are_taken(pages: Pages, kind: str) -> None:
    class There(Files):
        def file_system(self, path: str) -> str:
            return kind

    pages.make(There())


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("nfs4", "nfs4: it is remote"),
        ("9p", "9p: it is remote"),
        ("virtiofs", "this is a guest"),
        ("fuse.other", "process of its own"),
        ("btrfs", "may find the disk full"),
        ("", "of an unknown type: it is not known"),
        ("f2fs", "it is not known"),
    ],
)
def test_other_file_systems_are_refused_by_name(pages: Pages, kind: str, reason: str) -> None:
    class There(Files):
        def file_system(self, path: str) -> str:
            return kind

    with pytest.raises(UnsupportedError, match=reason):
        pages.open(There())
    assert not pages.file.exists()


@pytest.mark.parametrize(("system", "reason"), [("darwin", "on macOS"), ("win32", "on Windows")])
def test_other_systems_are_refused_by_name(
    pages: Pages, monkeypatch: pytest.MonkeyPatch, system: str, reason: str
) -> None:
    files = QuickFiles()
    folder = files.folder(str(pages.path))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", system)
        assert reason in (files.sharing_refused(folder) or "")
    with monkeypatch.context() as patch:
        patch.setattr(Files, "boot_id", lambda self: None)
        assert "/proc" in (files.sharing_refused(folder) or "")


# --- words ---------------------------------------------------------------------------------------


def test_words_that_belong_together_are_read_together(pages: Pages) -> None:
    first, second = pages.make(), pages.join()
    first.move(generation=3, segment=4, end=5, allocated=6, appended=7)
    assert second.where() == Where(3, 4, 5, 6, 7)
    first.move(end=8)
    assert second.where() == Where(3, 4, 8, 6, 7)


def test_a_change_that_is_interrupted_anywhere_is_not_believed(pages: Pages) -> None:
    """Until it is made again; then it holds, and the next is read as always."""
    writer, reader = pages.make(), pages.join()
    old, new = Where(1, 2, 3, 4, 5), Where(10, 20, 30, 40, 50)
    number, struck, kept = 0, True, 0
    while struck:
        number += 1
        writer.move(**old._asdict())
        struck = InterruptAt(number).carry_out(lambda: writer.move(**new._asdict()))
        found = reader.where()
        assert found in (old, new, None)
        kept += found is None
        writer.move(**new._asdict())
        assert reader.where() == new
    assert kept > 5


def test_a_reader_sees_no_mixture_of_two_changes(pages: Pages) -> None:
    """A change comes between any two words that it reads."""
    clock = Clock()
    writer, reader = pages.make(), pages.join(clock)
    turn = 0

    class Words:
        def __init__(self, words: memoryview, moment: int) -> None:
            self.words, self.moment = words, moment

        def __getitem__(self, index: int) -> int:
            nonlocal turn
            self.moment -= 1
            if self.moment == 0:
                turn += 1
                writer.move(generation=turn, segment=turn, end=turn, allocated=turn, appended=turn)
            return self.words[index]

    words = reader.words
    for moment in range(1, 10):
        reader.words = Words(words, moment)  # type: ignore[assignment]
        found = reader.where()
        assert found is not None
        assert len(set(found)) == 1, (moment, found)
    reader.words = words


def test_a_reader_gives_up_on_a_change_without_end(pages: Pages) -> None:
    clock = Clock()
    looks = []
    clock.then = lambda: looks.append(1)
    page = pages.make(clock)
    page.words[CHANGES] = 7
    assert page.where() is None
    assert 10 < len(looks) < 1000


def test_any_words_are_read_without_harm(pages: Pages) -> None:
    page, chance = pages.make(), random.Random(0)
    for _ in range(200):
        for index in range(8, 88):
            page.words[index] = chance.choice((0, 1, chance.getrandbits(64), 2**64 - 1))
        found = page.where()
        assert (found is None) == bool(page.words[CHANGES] & 1)
        assert found is None or found.end == page.words[module.END]
        pid, _ = page.who_holds()
        assert pid == (page.words[HOLDER] & 0xFFFFFFFF if page.words[HOLDER] else None)
        page.take_turn(0)
        page.give_turn_back()


# --- TURN ----------------------------------------------------------------------------------------


def _is_free(page: ControlPage) -> bool:
    """Tell whether another process could have the turn."""
    try:
        page.take_turn(0)
    except StoreBusyError:
        return False
    page.give_turn_back()
    return True


def test_one_at_a_time_has_the_turn(pages: Pages) -> None:
    first, second = pages.make(), pages.join()
    first.take_turn(0)
    assert not _is_free(second)
    second.give_turn_back()  # has none
    assert not _is_free(second)
    first.give_turn_back()
    assert _is_free(second)


def test_waiting_says_so_pauses_longer_and_longer_and_ends(pages: Pages) -> None:
    clock = Clock()
    first, second = pages.make(), pages.join(clock)
    first.take_turn(0)
    first.words[HOLDER] = os.getpid()
    wants = []
    clock.then = lambda: wants.append(first.words[WANT])
    with pytest.raises(StoreBusyError, match=rf"waited too long for process {os.getpid()} \(running\)") as caught:
        second.take_turn(0.5)
    assert (caught.value.pid, caught.value.doing) == (os.getpid(), "running")
    assert set(wants) == {1_000_000_000}
    assert first.words[WANT] == 0
    assert clock.pauses[:3] == [20e-6, 40e-6, 80e-6]
    assert max(clock.pauses) == 0.001
    assert sum(clock.pauses) == pytest.approx(0.5)
    clock.then = first.give_turn_back
    second.take_turn(0.5)
    assert first.words[WANT] == 0


def test_no_time_to_wait_is_one_look(pages: Pages) -> None:
    clock = Clock()
    first, second = pages.make(), pages.join(clock)
    first.take_turn(0)
    with pytest.raises(StoreBusyError, match="waited too long for another process,"):
        second.take_turn(0)
    assert clock.pauses == []


def test_a_writer_without_a_pause_lets_others_in(pages: Pages) -> None:
    clock = Clock()
    page = pages.make(clock)
    page.let_waiters_in()
    page.words[WANT] = int(clock.now_s * 1e6) - 4000
    page.let_waiters_in()
    assert clock.pauses == []
    page.words[WANT] -= 2000
    page.let_waiters_in()
    page.let_waiters_in()  # the one that wanted it has died
    assert clock.pauses == [0.002]


def test_a_signal_handlers_error_is_not_the_systems(pages: Pages) -> None:
    """A handler may raise what a lock raises that is held."""
    page = pages.make()
    for error in (BlockingIOError("from a handler"), TimeoutError("from a handler")):

        def strike(error: OSError = error) -> None:
            raise error

        page.try_turn = strike
        with pytest.raises(type(error), match="from a handler"):
            page.take_turn(0)


def _turn(page: ControlPage) -> None:
    try:
        page.take_turn(0)
        page.words[HOLDER] = 1
        page.words[HOLDER] = 0
    finally:
        try:
            page.give_turn_back()
        except BaseException:
            page.give_turn_back()
            raise


#: As if it were bytekv's, so that the caller's part of `take_turn` is struck, too.
_turn.__code__ = _turn.__code__.replace(co_filename=module.__file__)


def _wait_for_a_turn(pages: Pages) -> Callable[[ControlPage], object]:
    holder = pages.join()

    def wait(page: ControlPage) -> None:
        files: Any = page._files
        files.then = holder.give_turn_back
        try:
            holder.take_turn(0)
            page.take_turn(1.0)
        finally:
            try:
                page.give_turn_back()
            except BaseException:
                page.give_turn_back()
                raise
            finally:
                files.then = lambda: None
                holder.give_turn_back()

    return wait


def _pinned(page: ControlPage) -> None:
    page.pin(3).release()


def _try_upkeep(page: ControlPage) -> None:
    assert page.upkeep.try_run(lambda: None)


def _door(page: ControlPage) -> None:
    page.door.run(lambda: None, 1.0)


def _unlinking(page: ControlPage) -> None:
    assert not page.is_pinned_elsewhere(5)


INTERRUPTED: dict[str, Callable[[Pages], Callable[[ControlPage], object]]] = {
    "turn": lambda pages: _turn,
    "turn after a wait": _wait_for_a_turn,
    "door": lambda pages: _door,
    "upkeep": lambda pages: _try_upkeep,
    "pin": lambda pages: _pinned,
    "unlink": lambda pages: _unlinking,
}


class Interrupt(InterruptAt):
    """Does not strike where an ``except`` begins or hands its error on: no handler can, and it would stay."""

    @staticmethod
    def left_out(code: CodeType) -> frozenset[int] | None:
        found = InterruptAt.left_out(code)
        pairs = itertools.pairwise(dis.get_instructions(code))
        return found and found | {
            one.offset for one, two in pairs if one.opname == "PUSH_EXC_INFO" or two.opname == "POP_EXCEPT"
        }


@pytest.mark.parametrize("name", INTERRUPTED)
def test_an_interrupt_anywhere_leaves_no_lock(pages: Pages, name: str) -> None:
    pages.make()
    act = INTERRUPTED[name](pages)
    other = pages.join()
    page = pages.join(Clock())
    number, struck = 0, True
    while struck:
        number += 1
        interrupt = Interrupt(number)
        struck = interrupt.carry_out(lambda: act(page))
        gc.collect()
        where = interrupt.where
        assert _is_free(other), where
        assert other.door.try_run(lambda: None), where
        assert other.sync.try_run(lambda: None), where
        assert other.upkeep.try_run(lambda: None), where
        assert not other.is_pinned_elsewhere(10), where
        assert not any(lock.is_mine() for lock in (page.door, page.sync, page.upkeep)), where
        assert not page.is_pinned_elsewhere(10), where
    assert number > 10


# --- DOOR, SYNC, UPKEEP --------------------------------------------------------------------------

LOCKS: dict[str, Callable[[ControlPage], RangeLock]] = {
    "door": lambda page: page.door,
    "sync": lambda page: page.sync,
    "upkeep": lambda page: page.upkeep,
}


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_keeps_other_processes_out_and_nobody_else(pages: Pages, name: str) -> None:
    clock = Clock()
    first, second = pages.make(), pages.join(clock)
    mine, other = LOCKS[name](first), LOCKS[name](second)

    def meanwhile() -> int:
        assert not other.try_run(lambda: None)
        with pytest.raises(StoreBusyError) as caught:
            other.run(lambda: None, 0.01)
        assert caught.value.doing
        assert sum(clock.pauses) == pytest.approx(0.01)
        assert all(LOCKS[each](second).try_run(lambda: None) for each in LOCKS if each != name)
        assert _is_free(second)
        return 5

    assert mine.run(meanwhile, 0.0) == 5
    assert other.try_run(lambda: None)
    with pytest.raises(ZeroDivisionError):
        mine.run(lambda: 1 // 0, 0.0)
    assert other.try_run(lambda: None)


def test_what_the_work_says_is_not_taken_for_a_lock_that_is_held(pages: Pages) -> None:
    page = pages.make()

    def work() -> None:
        raise StoreBusyError("elsewhere", None, None)

    with pytest.raises(StoreBusyError, match="elsewhere"):
        page.upkeep.try_run(work)


def test_threads_of_one_process_exclude_each_other(pages: Pages) -> None:
    """To the kernel they are one, and each would give the other's lock back."""
    page, other = pages.make(), pages.join()
    inside, most, done = [0], [0], []
    go = threading.Barrier(3)

    def work() -> None:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        assert not other.sync.try_take()
        for _ in range(100):
            Files().yield_cpu()
        inside[0] -= 1
        done.append(1)

    def thread() -> None:
        go.wait()
        page.sync.run(work, 10.0)

    threads = [threading.Thread(target=thread) for _ in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert (most, len(done)) == ([1], 3)


def test_a_handler_that_needs_the_lock_of_its_own_thread_is_refused(pages: Pages) -> None:
    page, other = pages.make(), pages.join()

    def again() -> None:
        with pytest.raises(ReentryError):
            page.sync.run(lambda: None, 0.0)
        assert not other.sync.try_take()

    page.sync.run(again, 0.0)


# --- pins ----------------------------------------------------------------------------------------


def test_a_pin_keeps_what_its_generation_lists_and_not_what_is_newer(pages: Pages) -> None:
    first, second, third = pages.make(), pages.join(), pages.join()
    pins = [first.pin(5), first.pin(5), second.pin(7)]
    assert [third.is_pinned_elsewhere(generation) for generation in range(4, 7)] == [False, True, True]
    assert [second.is_pinned_elsewhere(generation) for generation in range(4, 7)] == [False, True, True]
    assert [first.is_pinned_elsewhere(generation) for generation in range(4, 8)] == [False, False, False, True], (
        "not its own, of which it knows more than that"
    )
    pins[0].release()
    pins[0].release()
    assert third.is_pinned_elsewhere(5)
    del pins[1]
    assert not third.is_pinned_elsewhere(6)
    assert third.is_pinned_elsewhere(7)
    assert not second.is_pinned_elsewhere(7)
    assert first.is_pinned_elsewhere(2**62)
    pins.clear()
    assert not third.is_pinned_elsewhere(2**62)


def test_a_pin_that_is_dropped_amid_another_ends(pages: Pages) -> None:
    """A finaliser runs in the middle of its own thread's call."""

    class Collecting(Files):
        dropped: ClassVar[list[object]] = []

        def lock_range(self, descriptor: int, start: int, size: int, path: str, *, shared: bool = False) -> bool:
            self.dropped.clear()
            return super().lock_range(descriptor, start, size, path, shared=shared)

    first, second = pages.make(), pages.join(Collecting())
    Collecting.dropped.append(second.pin(3))
    assert first.is_pinned_elsewhere(3)
    pin = second.pin(5)
    assert Collecting.dropped == []
    second.pin(8).release()
    assert not first.is_pinned_elsewhere(4)
    assert first.is_pinned_elsewhere(5)
    pin.release()


# --- processes -----------------------------------------------------------------------------------


class Process:
    """Another process, which says a word when it has come so far."""

    def __init__(self, path: Path, script: str) -> None:
        head = f"""
            import os, sys
            from bytekv.engine.log.control_page import HOLDER, ControlPage
            from bytekv.engine.log.directory import Directory
            from bytekv.engine.log.files import Files
            page = ControlPage(Directory({str(path)!r}, Files()))
            page.door.run(lambda: page.join({UUID!r}), 10.0)
            def say(word):
                print(word, flush=True)
        """
        code = textwrap.dedent(head) + textwrap.dedent(script)
        self.child = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
        )

    def expect(self, word: str) -> None:
        assert self.child.stdout
        assert self.child.stdout.readline().strip() == word

    def end(self) -> None:
        self.child.kill()
        self.child.communicate()


def test_a_killed_process_leaves_its_name_and_no_lock(pages: Pages) -> None:
    page = pages.make()
    process = Process(
        pages.path,
        """
        page.take_turn(0)
        page.words[HOLDER] = os.getpid()
        assert page.sync.try_take() and page.upkeep.try_take() and page.door.try_take()
        pin = page.pin(1)
        say("in")
        sys.stdin.read()
        """,
    )
    try:
        process.expect("in")
        assert not _is_free(page)
        assert not any(LOCKS[name](page).try_run(lambda: None) for name in LOCKS)
        assert page.is_pinned_elsewhere(1)
        os.kill(process.child.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, process.child.pid, os.WSTOPPED)
        with pytest.raises(StoreBusyError, match=rf"process {process.child.pid} \(stopped\)"):
            page.take_turn(0)
    finally:
        process.end()
    assert _is_free(page)
    assert all(LOCKS[name](page).try_run(lambda: None) for name in LOCKS)
    assert not page.is_pinned_elsewhere(1)
    assert page.who_holds() == (process.child.pid, None)


def test_a_forked_child_keeps_no_lock_and_frees_none(pages: Pages) -> None:
    """It closes what it has inherited without unlocking it, which would free the parent's; then these end with it."""
    page = pages.make()
    process = Process(
        pages.path,
        """
        page.take_turn(0)
        pin = page.pin(1)
        if os.fork() == 0:
            page.abandon()
            page.give_turn_back()
            pin.release()
            del pin
            page.close()
            say("abandoned")
            sys.stdin.read()
            os._exit(0)
        sys.stdin.read()
        """,
    )
    try:
        process.expect("abandoned")
        assert not _is_free(page)
        assert page.is_pinned_elsewhere(1)
        process.child.kill()
        process.child.wait()
        assert _is_free(page)
        assert not page.is_pinned_elsewhere(1)
    finally:
        process.end()


# --- the store's lock, shared --------------------------------------------------------------------


def _lock(path: Path) -> Lock:
    files = QuickFiles()
    return Lock(str(path), files, files.folder(str(path)))


@pytest.fixture
def locks(path: Path) -> Iterator[list[Lock]]:
    path.mkdir()
    made = [_lock(path) for _ in range(3)]
    yield made
    for lock in made:
        lock.release()
        lock._folder.close()


def test_several_may_share_and_the_first_knows_that_it_is_alone(locks: list[Lock], path: Path) -> None:
    first, second, third = locks
    assert first.acquire(shared=True)
    with pytest.raises(StoreLockedError):
        second.acquire(shared=True)  # before the first has said that it shares
    first.share()
    assert not second.acquire(shared=True)
    with pytest.raises(StoreLockedError):
        third.acquire()
    with pytest.raises(StoreLockedError):
        open_store(path)
    first.release()
    with pytest.raises(StoreLockedError):
        third.acquire()
    second.release()
    assert third.acquire()
    assert (path / "LOCK").read_bytes() == b"%d\n" % os.getpid() + b" " * (19 - len(str(os.getpid())))


def test_nobody_shares_with_one_who_does_not(locks: list[Lock]) -> None:
    first, second, _ = locks
    assert first.acquire()
    with pytest.raises(StoreLockedError, match="by this process"):
        second.acquire(shared=True)
    first.release()
    assert second.acquire(shared=True)


def test_the_table_of_this_process_knows_who_shares(locks: list[Lock], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the only wall where the system's locks are those of a process."""
    for wall in ("lock", "lock_directory"):
        monkeypatch.setattr(Files, wall, lambda *_, **__: True)
    first, second, third = locks
    first.acquire()
    with pytest.raises(StoreLockedError, match="by this process"):
        second.acquire(shared=True)
    first.release()
    second.acquire(shared=True)
    third.acquire(shared=True)
    second.release()
    with pytest.raises(StoreLockedError, match="by this process"):
        first.acquire()


def test_the_last_one_is_alone_and_one_who_is_not_has_lost_the_lock(locks: list[Lock]) -> None:
    first, second, third = locks
    first.acquire(shared=True)
    first.share()
    second.acquire(shared=True)
    assert not first.try_alone()
    assert second.try_alone()
    with pytest.raises(StoreLockedError):
        third.acquire(shared=True)
    second.share()
    assert not third.acquire(shared=True)


@pytest.mark.parametrize("wall", ["lock", "lock_directory"])
def test_a_writer_that_slips_in_before_the_lock_is_shared_wins(
    locks: list[Lock], monkeypatch: pytest.MonkeyPatch, wall: str
) -> None:
    """The conversion is no single step."""
    first, second, _ = locks
    first.acquire(shared=True)
    with monkeypatch.context() as patch:
        patch.setattr(Files, wall, lambda *_, **__: False)
        with pytest.raises(StoreLockedError):
            first.share()
    assert second.acquire()


def test_no_process_frees_the_locks_of_another_by_an_exclusive_wall(locks: list[Lock]) -> None:
    """Either wall alone keeps an exclusive writer out of a store that is shared, and a sharing one out of another."""
    first, second, third = locks
    first.acquire(shared=True)
    first.share()
    file, folder = first._file, first._folder
    assert file is not None
    files = first._files
    files.unlock(file.fileno())
    with pytest.raises(StoreLockedError):
        second.acquire()
    assert files.lock(file.fileno(), "LOCK", shared=True)
    files.unlock_directory(folder)
    with pytest.raises(StoreLockedError):
        second.acquire()
    assert not third.acquire(shared=True)
