"""Maintenance of a shared store: the process that has UPKEEP compacts; each sees to what the others have left."""

from __future__ import annotations

import os
from collections.abc import Callable

from ..._lean import TYPE_CHECKING
from ...errors import BytekvError
from ..log.control_page import APPENDED, UPKEEPER, ControlPage
from ..space.maintenance import Maintenance

if TYPE_CHECKING:
    from typing import Final, TypeVar

    from ...contract.reports import Compaction, Progress
    from .commit import SharedCommitter

    T = TypeVar("T")

__all__ = ["SharedMaintenance"]

_LOOK_S: Final = 1.0  # between two looks at what the others have written


class SharedMaintenance(Maintenance):
    """See to one process's part of a shared store's durability and space."""

    def share(self, committer: SharedCommitter, page: ControlPage) -> None:
        """Take what is shared; before the first use."""
        self._page, self._neighbours, self._turn = page, committer.neighbours, committer.turn

    def work(self) -> float | None:
        """Do what is due, and come back within a sync interval: a neighbour may have died before it synced."""
        self._turn.tidy()
        try:
            self._neighbours.catch_up_with_set()
        except BytekvError as error:
            self.background_error = str(error)
        delay_s = super().work()
        if self._state.refusal is not None:
            return delay_s
        interval_s = self._options.sync_interval_s if self._options.sync == "interval" else _LOOK_S
        return interval_s if delay_s is None else min(delay_s, interval_s)

    def _sync_if_due(self) -> float | None:
        state = self._state
        if state.dirty_since is None and self._page.words[APPENDED] > max(state.durable_seq, self._page.durable_seq):
            state.dirty_since = state.files.monotonic()
        return super()._sync_if_due()

    def _build_a_hint(self) -> bool:
        return self._if_upkeep(super()._build_a_hint)

    def _compact_a_run(self) -> bool:
        return self._if_upkeep(super()._compact_a_run)

    def _if_upkeep(self, work: Callable[[], bool]) -> bool:
        done: list[bool] = []
        self._page.upkeep.try_run(lambda: done.append(self._with_upkeep(work)))
        return any(done)

    def _with_upkeep(self, work: Callable[[], T]) -> T:
        """Do what only one process may at a time, after seeing to what the one before has left."""
        words = self._page.words
        self._neighbours.catch_up_with_set()  # it may have replaced what is known here
        if words[UPKEEPER]:
            self._sweep()
        words[UPKEEPER] = os.getpid()
        try:
            return work()
        finally:
            words[UPKEEPER] = 0

    def _sweep(self) -> None:
        """Remove the files of a process that died while it compacted, unless a view somewhere may need some of them."""
        segments, state = self._segments, self._state
        with state.turn.gate, state.turn:
            if not self._page.is_pinned_elsewhere(segments.manifest.generation):
                zombies = segments.obsolete.zombies
                segments.directory.sweep(segments.manifest, [*zombies, *segments.obsolete.replaced])

    def compact(self, progress: Callable[[Progress], object] | None) -> Compaction:
        """Give back whatever is dead; what `Store.compact` promises."""
        self.check_reentry("compact")

        def work() -> Compaction:
            return super(SharedMaintenance, self).compact(progress)

        return self._page.upkeep.run(lambda: self._with_upkeep(work), self._options.busy_timeout_s)

    def refresh(self) -> bool:
        """Catch up with the other processes; tell whether there was anything new."""
        before = self._state.seq
        self._neighbours.catch_up_with_set()
        return self._state.seq != before

    def catch_up(self) -> bool:
        """Do what `refresh` does, for a caller that holds `compacting`."""
        return self.refresh()
