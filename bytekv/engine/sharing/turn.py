"""Turn of a process: who of those that share a store may append, and change the set of segments.

One thread of one process has it at a time: ``gate`` keeps the threads of this process apart, the control page's TURN
the processes. It is held for one change, or by a transaction until its end, while the gate is open for maintenance.

*Interrupts.* `HOLDER` on the page names who has the turn, until everything that was begun in it is finished and
published. A turn that ends otherwise leaves it there: the next process takes over and finds out from the log what has
happened; if that is this one again, it goes on where it was interrupted.
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from functools import partial

from ..._lean import TYPE_CHECKING
from ...errors import ReentryError, StoreBusyError, StoreFailedError
from ...options import Options
from ..log.control_page import (
    ALLOCATED,
    APPENDED,
    CHANGES,
    DURABLE_ROLL,
    DURABLE_SYNC,
    END,
    FAILED,
    GENERATION,
    HOLDER,
    NEXT_ID,
    SEGMENT,
    ControlPage,
)
from ..state import ENTERED, REENTRY, State, Turn, owned
from ..write.turn import WriteTurn
from .durability import SharedDurability
from .neighbours import Neighbours

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

__all__ = ["SharedTurn"]

_numbers = itertools.count(1)  # of the stores that this process has opened, so that each is a holder of its own


class SharedTurn(WriteTurn, Turn):
    """Keep the writers of a shared store apart: its processes, their threads, their transactions."""

    def __init__(self, state: State, page: ControlPage, neighbours: Neighbours, durability: SharedDurability) -> None:
        super().__init__(state, durability)
        self._segments = state.segments
        self._page, self._neighbours = page, neighbours
        self._timeout_s = state.options.busy_timeout_s
        self.gate: Any = threading.RLock()
        self.is_mine = owned(self.gate)
        self._given = threading.Condition(self.gate)
        self.name = os.getpid() | (next(_numbers) & 0x7FFFFFFF) << 32
        self.try_take, self.give_back = page.try_turn, page.give_turn_back  # for the fast put
        # --- guarded by `gate`
        self.is_held = False  # TURN
        self._is_unfinished = False  # `HOLDER` names this store
        self._is_current = False  # and it has caught up since, so what it knows of the log's end is right

    @property
    def _words(self) -> memoryview:
        return self._page.words

    def begin(self, options: Options) -> None:
        """Fill the page of a store that this process has to itself, and has recovered."""
        words, seq = self._words, self._state.seq
        words[DURABLE_SYNC] = words[DURABLE_ROLL] = seq
        self._page.agree(options)
        self.publish()

    # --- for one change ------------------------------------------------------------------------

    def __enter__(self) -> None:
        """Take the turn for maintenance, which a transaction of this process does not keep out. Inside `gate`."""
        try:
            return self.start(for_maintenance=True)
        except BaseException:
            self.stop_surely()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it back."""
        self.stop_surely()

    def check_reentry(self) -> None:
        """Raise `ReentryError` if this thread has the turn: a handler or a finaliser, in the middle of its change."""
        if self.is_mine():
            raise ReentryError(REENTRY)

    def start(self, owner: object = None, *, for_maintenance: bool = False) -> None:
        """Take the turn and catch up with the others; `StoreBusyError` if that takes too long. Inside `gate`.

        ``owner``: a transaction that has it already.
        """
        files, words = self._state.files, self._words
        until = files.monotonic() + self._timeout_s
        if not for_maintenance:
            self._wait_for_owner(owner, until)
        if self._state.refusal is not None:
            raise self._state.refusal()
        if not self.is_held:
            self._page.take_turn(max(0.0, until - files.monotonic()))
            self.is_held = True
        if words[FAILED] and self._state.failure is None:
            self._fail()
            self._state.refuse_after_failure()
        if self._is_unfinished:
            if words[HOLDER] != self.name:
                self._lost()
            self._finish()
        neighbours = self._neighbours
        with neighbours.following:
            if words[HOLDER]:
                neighbours.take_over(self)
                self.publish()
            self._is_current = False
            words[HOLDER] = self.name
            self._is_unfinished = True
            if not neighbours.catch_up_in_turn():
                self._is_unfinished = False  # if this is interrupted, the next turn takes over
                neighbours.take_over(self)
                self.publish()
                self._is_unfinished = True
                neighbours.catch_up_in_turn()
            self._is_current = True

    def stop(self) -> None:
        """Finish what was begun, tell the others and let them in. Inside `gate`; once more is harmless."""
        try:
            self._finish()
        finally:
            if self.is_held and self._state.failure is not None:
                self._words[FAILED] = 1
            owner = self.owner
            if owner is None or owner() is None:
                self.owner = None
                self._page.give_turn_back()
                self.is_held = False

    def stop_surely(self) -> None:
        """Do what `stop` does, whatever strikes in the middle."""
        try:
            self.stop()
        except BaseException:
            self.stop()
            raise

    def _finish(self) -> None:
        if not self._is_unfinished:
            return
        state, segments = self._state, self._segments
        if not self._is_current:  # nothing was begun, and others know better where the log ends
            self._words[HOLDER] = 0
            self._is_unfinished = False
            return
        if state.intent is not None or segments.is_unsettled:
            with state.lock, state:
                if segments.is_unsettled and state.failure is None:
                    segments.settle()
                if state.intent is not ENTERED:
                    state.redo()
        self.publish()
        self._words[HOLDER] = 0
        self._is_unfinished = False

    def redo(self) -> None:
        """Have an interrupted change carried out, in a turn."""
        if self._is_unfinished and self._state.intent not in (None, ENTERED) and not self.is_mine():
            with self.gate:
                try:
                    self.start(for_maintenance=True)
                finally:
                    try:
                        self.stop_surely()
                    except BaseException:
                        self.stop_surely()
                        raise

    def _fail(self) -> None:
        state = self._state
        with state.lock, state:
            state.fail(self._page.failed_elsewhere())

    def _lost(self) -> None:
        """Refuse everything: this process was interrupted in its turn, twice, and another one has taken over."""
        state = self._state
        refusal = partial(
            StoreFailedError,
            f"{state.segments.directory.path}: interrupted in the middle of a write, which another process had to "
            "finish; close the store and open it again",
        )
        state.refusal = refusal
        state.intent = None
        raise refusal()

    # --- what the others are told --------------------------------------------------------------

    def announce(self) -> None:
        """Tell the other processes how far the log goes, before anybody sees it here. Under the lock."""
        if self._is_unfinished and self._is_current:
            self.publish()

    def publish(self) -> None:
        """Write down where the log ends and which segments there are. In the turn."""
        words, segments, writer = self._words, self._segments, self._segments.writer
        segment = end = allocated = 0
        if writer is not None:
            segment, end, allocated = writer.header.segment_id, writer.end, writer.allocated
        manifest = segments.manifest
        if words[SEGMENT] != segment or words[GENERATION] != manifest.generation or words[CHANGES] & 1:
            words[NEXT_ID] = max(words[NEXT_ID], manifest.next_id)
            self._page.move(
                generation=manifest.generation,
                segment=segment,
                end=end,
                allocated=allocated,
                appended=self._state.seq,
            )
        else:
            if words[NEXT_ID] < manifest.next_id:
                words[NEXT_ID] = manifest.next_id
            words[ALLOCATED] = allocated
            words[END] = end
            words[APPENDED] = self._state.seq

    def sealed(self) -> None:
        """Note that everything is durable, because a segment was sealed. In the turn."""
        self._words[DURABLE_ROLL] = max(self._words[DURABLE_ROLL], self._state.seq)

    # --- for a transaction ---------------------------------------------------------------------

    def take(self, owner: object) -> None:
        """Let no other writer in until ``owner`` gives the turn back, has given up or is gone; wait for it."""
        self._state.check_write()
        self.check_reentry()
        with self.gate:
            try:
                self.start()
                self.owner, self._thread = weakref.ref(owner, self._dropped), threading.get_ident()
            finally:
                if self.owner is None:
                    try:
                        self.stop_surely()
                    except BaseException:
                        self.stop_surely()
                        raise
        # What it reads is durable, in every mode in which that matters.
        if self._state.always:
            self._durability.sync_to(self._state.seq)

    def give(self, owner: object) -> None:
        """Let the other writers in again; nothing if ``owner`` does not have the turn."""
        if self.owner is None or self.owner() is not owner:
            return
        with self.gate:
            self.end(owner)
            self.stop_surely()

    def end_all(self) -> None:
        """End a transaction: the store is being closed. Inside `gate`."""
        self.owner = None

    def wait(self) -> None:
        """Return: who is inside `gate` has waited."""

    def tidy(self) -> None:
        """Give back what a transaction has kept that was dropped, or a call that was interrupted."""
        owner = self.owner
        if self.is_held and (owner is None or owner() is None) and not self.is_mine() and self.gate.acquire(False):
            try:
                self.stop_surely()
            finally:
                self.gate.release()

    def _dropped(self, _: object) -> None:
        self.tidy()

    def _wait_for_owner(self, owner: object, until: float) -> None:
        while self.owner is not None and self.owner() is not owner and self._is_taken():
            left_s = until - self._state.files.monotonic()
            if left_s <= 0:
                raise StoreBusyError(self._segments.directory.path, os.getpid(), "in a transaction of another thread")
            self._given.wait(timeout=min(1.0, left_s))
