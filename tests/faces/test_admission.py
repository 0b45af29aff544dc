"""Strangers cost nothing: places for connections, what is logged, and what is left for clients that have the secret."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import resource
import socket
import sys
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from unittest import mock

import pytest

from bytekv.server import sockets
from bytekv.server.sockets import Pace, Places, Seldom, connection_share, listen
from tests.support import strangers


class FakeGuest:
    """A connection that notes that it was evicted."""

    def __init__(self) -> None:
        self.is_evicted = False

    def evict(self) -> None:
        assert not self.is_evicted
        self.is_evicted = True


@pytest.fixture
def limit(monkeypatch) -> Iterator[object]:
    """Set how many files the process may open, as `Places` sees it."""

    def set_limit(soft: int) -> None:
        monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, soft))

    return set_limit


@pytest.fixture
def places() -> Iterator[object]:
    opened: list[Places] = []

    def build(most: int, *, guarded: bool = True) -> Places:
        opened.append(Places(most, guarded=guarded))
        opened[-1].open()
        return opened[-1]

    yield build
    for each in opened:
        each.close()
    assert not sockets._doors


def test_half_of_the_descriptors_are_the_stores_and_some_are_left(limit):
    """The cap was 10,000 connections, whatever the process may open: strangers took every descriptor."""
    for soft, share in ((256, 96), (1024, 384), (65536, 53248), (8, 4), (resource.RLIM_INFINITY, 913408)):
        limit(soft)
        assert connection_share() == share


def test_the_oldest_stranger_makes_room_for_the_next(places):
    door = places(40)
    strangers = [FakeGuest() for _ in range(12)]
    assert all(map(door.admit, strangers))
    assert [each.is_evicted for each in strangers] == [True, True] + [False] * 10
    assert len(door) == 10, "a quarter of all places"


def test_strangers_make_room_for_those_who_have_shown_the_secret_and_never_the_other_way_round(places):
    door = places(8)
    known = [FakeGuest() for _ in range(8)]
    for guest in known[:7]:
        assert door.admit(guest)
        door.note(guest, known=True)
    stranger = FakeGuest()
    assert door.admit(stranger)
    assert door.admit(known[7])
    assert stranger.is_evicted
    door.note(known[7], known=True)
    assert not door.admit(FakeGuest())
    door.leave(known[0])
    door.leave(known[0])
    assert door.admit(FakeGuest())
    assert not any(each.is_evicted for each in known)


def test_a_client_that_forgets_the_secret_is_a_stranger_again(places):
    door = places(4)
    guest, other = FakeGuest(), FakeGuest()
    door.admit(guest)
    door.note(guest, known=True)
    door.note(guest, known=True)
    door.note(guest, known=False)
    assert door.admit(other)
    assert guest.is_evicted
    door.note(guest, known=True)
    assert len(door) == 1, "what was evicted has no place any more"


def test_without_a_secret_nobody_is_a_stranger(places):
    door = places(3, guarded=False)
    guests = [FakeGuest() for _ in range(4)]
    assert [door.admit(each) for each in guests] == [True, True, True, False]
    assert not any(each.is_evicted for each in guests)


def test_strangers_have_a_tenth_of_the_processor_and_the_others_as_much_as_they_like():
    now = 100.0
    door = Places(1000, guarded=True, clock=lambda: now)
    door.open()
    try:
        assert door.debt_s < 0
        for _ in range(101):
            guest = FakeGuest()
            door.admit(guest)
            door.leave(guest)
        assert 0 < door.debt_s < 0.02, "the credit is used up"
        door.charge(1.0)
        assert 10 < door.debt_s < 10.02
        now += 10.5
        assert door.debt_s < 0
        for _ in range(1000):
            guest = FakeGuest()
            door.admit(guest)
            door.note(guest, known=True)
            door.leave(guest)
        assert door.debt_s < 0
    finally:
        door.close()
    open_to_all = Places(1000, guarded=False, clock=lambda: now)
    open_to_all.charge(1000.0)
    assert open_to_all.debt_s < 0


def test_while_strangers_have_used_too_much_no_connection_is_accepted(caplog):
    now = 100.0
    places = Places(10, guarded=True, clock=lambda: now)
    places.charge(100.0)
    asleep: list[float] = []

    async def run() -> None:
        async def sleep(seconds: float) -> None:
            nonlocal now
            asleep.append(seconds)
            now += 400.0
            if len(asleep) == 3:
                raise asyncio.CancelledError

        with mock.patch.object(sockets.asyncio, "sleep", sleep), contextlib.suppress(asyncio.CancelledError):
            await sockets.accepting(None, asyncio.Protocol, places, Seldom(logging.getLogger("bytekv")))

    asyncio.run(run())
    assert asleep == [1.0, 1.0, 1.0]
    assert len(caplog.records) == 1


def test_all_doors_of_a_process_share_its_descriptors(places, limit):
    limit(32)
    one, other = places(100, guarded=False), places(100, guarded=False)
    assert connection_share() == 12
    assert [one.admit(FakeGuest()) for _ in range(8)] == [True] * 8
    assert [other.admit(FakeGuest()) for _ in range(5)] == [True] * 4 + [False]
    one.close()
    assert other.admit(FakeGuest())


def test_the_limit_of_the_process_is_raised_as_far_as_it_may(monkeypatch):
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: asked.append(limits))
    infinity = resource.RLIM_INFINITY
    for found in (
        (1024, 4096),
        (1024, 1 << 20),
        (1024, infinity),
        (1 << 20, 1 << 20),
        (4096, 4096),
        (infinity, infinity),
    ):
        monkeypatch.setattr(resource, "getrlimit", lambda which, found=found: found)
        sockets.raise_descriptor_limit()
    assert asked == [(4096, 4096), (65536, 1 << 20), (65536, infinity)]


def test_of_each_kind_of_refusal_a_line_a_second_is_logged(caplog):
    """330 connections too many made 430 KB of tracebacks."""
    now = 0.0
    seldom = Seldom(logging.getLogger("bytekv"), lambda: now)
    for number in range(1000):
        now = number / 400
        seldom.warn("too many", f"number {number}")
        seldom.warn("too slow")
    assert [record.getMessage() for record in caplog.records] == [
        "too many: number 0",
        "too slow",
        "too many: number 400 (and 399 times before)",
        "too slow (and 399 times before)",
        "too many: number 800 (and 399 times before)",
        "too slow (and 399 times before)",
    ]


def test_what_strangers_want_is_done_at_a_pace_and_in_order():
    """270 of them with 400 requests each left nothing of the processor to clients with a token."""
    done: list[tuple[int, float]] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        pace = Pace(0.001)
        for number in range(5):
            pace.do(FakeGuest(), lambda number=number: done.append((number, loop.time())))
        assert [number for number, _ in done] == [0], "the first need not wait"
        while len(done) < 5:
            await asyncio.sleep(0)

    asyncio.run(run())
    assert [number for number, _ in done] == [0, 1, 2, 3, 4]
    assert all(later - earlier >= 0.0009 for (_, earlier), (_, later) in pairwise(done))


def test_a_client_that_has_left_waits_for_nothing():
    done = []

    async def run() -> None:
        pace, guests = Pace(0.001), [FakeGuest() for _ in range(4)]
        for guest in guests:
            pace.do(guest, partial(done.append, guest))
        for gone in (guests[1], guests[2], guests[1]):
            pace.leave(gone)
        assert len(pace) == 1
        while len(pace):
            await asyncio.sleep(0)
        assert done == [guests[0], guests[3]]
        pace.do(gone, partial(done.append, gone))
        pace.leave(gone)
        last = FakeGuest()
        pace.do(last, partial(done.append, last))
        while done[-1] is not last:
            await asyncio.sleep(0)
        assert done == [guests[0], guests[3], last]

    asyncio.run(run())


def test_without_descriptors_accepting_goes_on_later_and_says_so_in_a_line(monkeypatch, caplog):
    """asyncio accepts a hundred at once, and writes a traceback for each that it has no descriptor for."""
    monkeypatch.setattr(sockets, "_RETRY_S", 0)
    places = Places(1, guarded=False)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        connected = asyncio.Event()
        (listener,) = listen("127.0.0.1", 0, secret="", is_set=True)
        accept, failures = (
            loop.sock_accept,
            [OSError(errno.EMFILE, "Too many open files"), ConnectionAbortedError()] * 20,
        )

        async def fails_at_first(listener: socket.socket) -> object:
            if failures:
                raise failures.pop()
            return await accept(listener)

        monkeypatch.setattr(loop, "sock_accept", fails_at_first)

        class Guest(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                transport.close()
                connected.set()

        seldom = Seldom(logging.getLogger("bytekv"))
        task = asyncio.ensure_future(sockets.accepting(listener, Guest, places, seldom))
        _, writer = await asyncio.open_connection(*listener.getsockname())
        await asyncio.wait_for(connected.wait(), 30)
        writer.close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        listener.close()

    asyncio.run(run())
    assert [record.getMessage() for record in caplog.records] == ["no connection can be accepted: Too many open files"]


@pytest.mark.deep
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory and descriptors are read from /proc")
@pytest.mark.parametrize("name", strangers.ATTACKS)
def test_strangers_cost_nothing(name):
    """For a minute at both doors, if asked to; the latencies are printed, because they are the machine's, too."""
    pytest.importorskip("uvicorn", reason="uvicorn is not installed")
    figures = strangers.measure(name, float(os.environ.get("BYTEKV_DEEP_SECONDS", "5")))
    print(figures)
    assert figures.requests > 0
    assert figures.refused == 0
    assert figures.memory_mib < 200
    assert figures.files < strangers.FILES // 2
    assert figures.log_bytes < 20_000
