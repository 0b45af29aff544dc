"""Commit of a shared store: a change in its turn.

Nothing is written here twice: in the turn, and caught up, a process is a writer as any other. What is appended is
announced before it is shown, so no process shows it while another one's reader might still be shown the time before.
"""

from __future__ import annotations

from collections.abc import Callable

from ..._lean import TYPE_CHECKING
from ..log.control_page import WANT, ControlPage
from ..log.segment import Writer
from ..state import State
from ..write.commit import Committer
from .durability import SharedDurability
from .neighbours import Neighbours
from .turn import SharedTurn

if TYPE_CHECKING:
    from ..codec.manifest import Manifest
    from ..write.change import AtomicChange, DeleteRun, PutRun
    from ..write.commit import Decision

__all__ = ["SharedCommitter"]


class SharedCommitter(Committer):
    """Serialise the changes of one process with those of all others."""

    durability: SharedDurability
    turn: SharedTurn

    def __init__(self, state: State, wake: Callable[[], bool], page: ControlPage, published: Manifest) -> None:
        super().__init__(state, wake)
        self._page = page
        self.durability = SharedDurability(state, self.throttle, wake, page)
        self.neighbours = Neighbours(state, page, published, self.durability)
        self.turn = state.turn = SharedTurn(state, page, self.neighbours, self.durability)

    def _carry_out(self, decide: Callable[[int], Decision], turn_owner: object) -> tuple[int, Exception | None]:
        turn = self.turn
        turn.check_reentry()
        self.neighbours.catch_up()  # most of it before the others have to wait
        with turn.gate:
            try:
                turn.start(turn_owner)
                done = super()._carry_out(decide, turn_owner)
            finally:
                try:
                    turn.stop_surely()
                except BaseException:  # it was interrupted before it began
                    turn.stop_surely()
                    raise
        if self._page.words[WANT]:
            self._page.let_waiters_in()
        return done

    def _append(self, change: AtomicChange | DeleteRun | PutRun, now_ms: int) -> int:
        state = self.state
        self.durability.mark()
        waited, state.readers_must_wait = state.readers_must_wait, True  # what is announced must be seen here, too
        seq = super()._append(change, now_ms)
        state.readers_must_wait = waited
        return seq

    def prepare_next(self) -> None:
        """Prepare nothing: another process may be the one that rolls."""
        self.state.wants_next = False

    def _sealed(self, old: Writer) -> None:
        self.turn.sealed()
        super()._sealed(old)

    def would_wait(self, size: int | None) -> bool:
        """Tell whether a call would wait: a write may, always, for another process."""
        return size is not None or self.neighbours.is_behind or super().would_wait(size)
