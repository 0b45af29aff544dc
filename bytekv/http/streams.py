"""Blocking iterators as streams: pieces of bytes, taken in a thread, a slice at a time.

A slice is large enough that a hop between threads costs little, and small enough that a slow client holds
back the iterator instead of filling the memory. Whatever happens, the iterator is closed, in a thread, and
never while it is running: what it holds on to (a snapshot, files) is free again when the stream has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator
from contextlib import aclosing
from functools import partial
from typing import Any, Final

from .. import Store
from .operations import change_line

__all__ = ["ChangeStream", "in_slices"]

_SLICE_BYTES: Final = 64 * 1024
_SLICE_ITEMS: Final = 512
_HEARTBEAT_S: Final = 15.0

InThread = Callable[[Callable[[], Any]], Awaitable[Any]]


async def in_slices(run: InThread, lines: Generator[bytes, None, None]) -> AsyncGenerator[bytes, None]:
    """Yield what ``lines`` yields, joined to larger pieces; ``run`` calls a function in a thread."""
    taking: asyncio.Future[bytes] | None = None
    try:
        while True:
            taking = asyncio.ensure_future(run(partial(_take, lines)))
            piece = await asyncio.shield(taking)
            if not piece:
                return
            yield piece
    finally:
        if taking is not None and not taking.done():  # cancelled meanwhile; a running generator cannot be closed
            await asyncio.wait([taking])
        await run(lines.close)


def _take(lines: Iterator[bytes]) -> bytes:
    taken, size = [], 0
    for line in lines:
        taken.append(line)
        size += len(line)
        if size >= _SLICE_BYTES or len(taken) >= _SLICE_ITEMS:
            break
    return b"".join(taken)


class ChangeStream:
    """The changes of a store after a seq, as lines of JSON or as server-sent events."""

    def __init__(self, store: Store, since: int, *, follow: bool, events: bool, poll_s: float) -> None:
        self._store, self._position = store, since
        self._has_begun = False
        self._follow, self._events, self._poll_s = follow, events, poll_s

    async def pieces(self, run: InThread, ends: Callable[[], bool]) -> AsyncGenerator[bytes, None]:
        """Yield pieces until there are no more, or for ever if it follows, until ``ends`` says so."""
        clock = asyncio.get_running_loop().time
        while True:
            seen = self._store.last_seq
            async with aclosing(in_slices(run, self._lines())) as pieces:
                async for piece in pieces:
                    yield piece
            # What was visible when this began has come; what compaction has dropped will not.
            self._position = max(self._position, seen)
            if not self._follow:
                return
            quiet_since = clock()
            while self._store.last_seq <= self._position:
                if ends() or self._store.closed:
                    return
                yield b""  # sending it shows whether the client has left
                if clock() - quiet_since >= _HEARTBEAT_S:
                    yield b":\n\n" if self._events else b"\n"
                    quiet_since = clock()
                await asyncio.sleep(self._poll_s)

    def _lines(self) -> Generator[bytes, None, None]:
        changes = self._store.changes(self._position)  # raises, at once, if it does not reach back so far
        if self._events and not self._has_begun:
            yield b"retry: 2000\n\n"
        self._has_begun = True
        for change in changes:
            line = change_line(change)
            if self._events:
                line = b"id: %d\nevent: %b\ndata: %b\n" % (change.seq, change.op.encode(), line)
            yield line
            self._position = change.seq
