"""Maintenance: when an open store syncs, builds hint files and compacts.

The background thread calls `work` when it has been woken or a delay is over. What a user asks for is done by the
asking thread, in slices all the same. One thing happens at a time: the thread that compacts, builds a hint, verifies
or catches up with a writer holds `State.compacting`. How bytes are moved is
the compactor's business; how a sync makes them durable, the committer's; which thread calls, and that the store is not
dropped meanwhile, the store's.

*Trouble.* Damage ends compactions until the store is opened again: it is reported, not met again and again. A full disk
puts them off until the next segment is full. Without memory everything is tried again. A failed sync needs no word
from here, for each writer meets it. Any other surprise refuses writes. While no compaction is to be expected, writers
that outrun it are not slowed down. `background_error` says what is the matter for as long as it lasts.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial

from ..._lean import TYPE_CHECKING, log, suppress
from ...errors import (
    BytekvError,
    CorruptionError,
    DiskFullError,
    ReentryError,
    StoreClosedError,
    StoreFailedError,
    SystemErrors,
    translated,
)
from ...options import Options
from ..pacer import Pacer
from ..state import owned
from ..write.commit import Committer
from .worker import StopWork, Worker

if TYPE_CHECKING:
    from typing import Final

    from ...contract.reports import Compaction, Progress
    from ..codec.manifest import SegmentRow
    from ..replication.follower import Follower
    from .compactor import Compactor
    from .picker import SegmentUsage

__all__ = ["Maintenance"]

_SORTED_FOR_COMPACTION: Final = 1 << 20  # keys; sorting so many takes half a second
_NO_THREAD: Final = (
    "no thread can be started: every write with sync='interval' is a sync, nothing is compacted unless compact() is "
    "called, and a reader follows only when refresh() is called"
)
_KEYS_AN_ENTRY: Final = 4  # to look at so many keys takes as long as to read an entry
_FEW_EXPIRED: Final = 32  # keys, 50 µs
_MANY_EXPIRED: Final = 300  # 0.5 ms
_BREAK_S: Final = 0.00005  # the shortest sleep that another thread can use
_LONG_BREAK_S: Final = 0.1  # while others get more done than this thread would
_BUSY_S: Final = 0.002  # when it takes so much longer, another thread was busy
_NO_MEMORY: Final = "no memory for the work in the background"  # made beforehand: there is none to make it


class _Waiter:
    """A caller that waits, for as long as it is referenced: one that is interrupted waits no more."""

    __slots__ = ("__weakref__",)


def _has_work(maintenance: weakref.ref[Maintenance]) -> bool:
    there = maintenance()
    return there is not None and there._look_for_work()


class Maintenance:
    """See to one store's durability and space."""

    def __init__(self, committer: Committer, options: Options, worker: Worker, follower: Follower | None) -> None:
        self._state, self._committer = committer.state, committer
        self._segments = self._state.segments
        self._keydir = self._state.keydir
        self._files = self._state.segments.directory.files
        self._path = self._state.segments.directory.path
        self._options = options
        self._worker = worker
        self._follower = follower  # of a store that is open beside its writer
        self._pacer = Pacer(self._files, options.compact_rate_bytes_s)
        self._paced_bytes = 0
        self._waiting: weakref.WeakSet[_Waiter] = weakref.WeakSet()
        self.refusal: Callable[[], BytekvError] | None = None  # closed, forked
        self._compactor: Compactor | None = None
        self.compactions = 0
        self.background_error: str | None = None
        self.may_compact = options.auto_compact  # in the background
        self._is_due = False  # a compaction, as far as is known: there were victims at the last look
        committer.throttle.is_due = partial(_has_work, weakref.ref(self))
        self._let_throttle()
        if self.may_compact and follower is None:
            _ = self.compactor  # now, for the worker should import nothing: a fork might catch it in the middle

    @property
    def compactor(self) -> Compactor:
        """Return what carries out compactions; a command for one key needs none."""
        if self._compactor is None:
            with translated("bytekv.engine.space.compactor"):
                from .compactor import Compactor

            self._compactor = Compactor(self._state, self._committer.durability, self._options.listener)
        return self._compactor

    def _let_throttle(self) -> None:
        self._state.throttles = self.may_compact and self._options.compact_rate_bytes_s is None

    def check_reentry(self, call: str) -> None:
        """Raise `ReentryError` if this thread is in the middle of what has the store to itself."""
        if owned(self._state.compacting)():
            raise ReentryError(f"{call}() was called from a progress callback, a signal handler or a finaliser")
        self._state.check_idle()

    def hurry(self) -> _Waiter:
        """Let work in the background go on without its rate limit for as long as the result is kept.

        For a caller that has to wait for `compacting`: the limit protects the disk's other users, not this one.
        """
        waiter = _Waiter()
        self._waiting.add(waiter)
        return waiter

    # --- in the background ---------------------------------------------------------------------

    def _follow(self) -> float | None:
        """Catch up with the writer; what goes wrong is in `background_error`, and `refresh` raises it."""
        try:
            self.refresh()
            self._purge()
            self.background_error = None
        except (StopWork, StoreClosedError):
            return None
        except BytekvError as error:
            if self.background_error is None:
                log.error("%s does not follow its writer: %s", self._path, str(error))
            self.background_error = str(error)
        return self._options.follow

    def works_alone(self) -> None:
        """Say that no thread can be started: writers sync by themselves, nothing else happens in the background."""
        if self.background_error is None:
            self.background_error = _NO_THREAD
            log.warning("%s: %s", self._path, _NO_THREAD)

    def work(self) -> float | None:
        """Sync when it is time, build hints, compact; return the seconds until it is time again."""
        if self._follower is not None:
            return self._follow()
        try:
            self._sync_if_due()
            self._prepare_if_wanted()
            self._purge()
            try:
                while self._compact_a_run() or self._build_a_hint():
                    self.background_error = None
                self._let_throttle()
            except CorruptionError as error:
                # Reported, not repeated: the damage stays until someone looks at it.
                self.background_error = str(error)
                self.may_compact = self._state.throttles = False
                log.error("compaction stopped, nothing was changed: %s", str(error))
            except (StoreFailedError, StoreClosedError):
                raise
            except BytekvError as error:
                self.background_error = str(error)
                self._state.throttles = False  # waiting for it would be in vain
                log.warning("compaction put off until the next segment is full: %s", str(error))
            self._state.emit()
            delay = self._sync_if_due()
            if self.background_error is _NO_MEMORY:
                self.background_error = None
            return delay
        except (StopWork, StoreFailedError, StoreClosedError):
            return None  # a failed sync is known to every writer already

    def work_failed(self, error: BaseException) -> bool:
        """Say what ended the work, and tell whether to try again."""
        if isinstance(error, MemoryError):
            # There may be some again. Until then writers sync themselves, and need not wait for a compaction.
            self._state.throttles = False
            if self.background_error is None:
                self.background_error = _NO_MEMORY
                log.warning("%s: %s; it is tried again and again", self._path, _NO_MEMORY)
            return True
        if isinstance(error, (StoreFailedError, StoreClosedError)):
            return False  # known already: writes raise it
        self.background_error = repr(error)
        log.error("the background worker of %s died: %s", self._path, repr(error))
        with self._state.lock, self._state:
            self._state.fail(error)
        return False

    def _sync_if_due(self) -> float | None:
        since = self._state.dirty_since
        if since is None:
            return None
        rest = since + self._options.sync_interval_s - self._files.monotonic()
        if rest > 0:
            return rest
        self._committer.durability.sync_to(self._state.seq)
        return self._options.sync_interval_s

    def _purge(self) -> None:
        """Take out what has expired, in slices that writers do not notice.

        An occasional writer waits for a slice, so slices are short. A busy one holds the interpreter for milliseconds
        and notices each turn of another thread; but its puts take out some keys, too, so few turns are needed.
        """
        keydir, count = self._keydir, _FEW_EXPIRED
        rest_s = _BREAK_S
        while self._state.purge_slice(count):
            if self._worker.is_stopping:
                raise StopWork
            self._sync_if_due()
            self._prepare_if_wanted()
            left, began = keydir.expiring_count, self._files.monotonic()
            self._files.pause(rest_s)
            is_busy = self._files.monotonic() - began > rest_s + _BUSY_S
            count = _MANY_EXPIRED if is_busy else _FEW_EXPIRED
            rest_s = _LONG_BREAK_S if left - keydir.expiring_count > _MANY_EXPIRED else _BREAK_S

    def _prepare_if_wanted(self) -> None:
        if self._state.wants_next:
            self._committer.prepare_next()

    def _build_a_hint(self) -> bool:
        with self._state.compacting:  # so that no segment is replaced meanwhile
            row = next((row for row in self._segments.sealed() if self._segments.needs_hint(row)), None)
            if row is not None:
                self._segments.build_hint(row, self._pause)
        return row is not None

    def _compact_a_run(self) -> bool:
        if not self.may_compact:
            return False
        with self._state.compacting:
            self.compactor.finish(self._pause)
            victims = self.pick()
            self._note_due(is_due=bool(victims))
            if victims:
                self.compactor.run(victims, self._pause, lambda _: None)
                self.compactions += 1
        return bool(victims)

    def _pause(self) -> None:
        read = 0
        if self._compactor is not None:
            read, self._paced_bytes = self._compactor.read_bytes - self._paced_bytes, self._compactor.read_bytes
        while self._pacer.rest(read, hurries=bool(self._waiting)):
            if self._worker.is_stopping:
                raise StopWork
            self._sync_if_due()
            self._prepare_if_wanted()
            read = 0

    def refresh(self) -> bool:
        """Catch up with the writer, if this is a follower; tell whether there was anything new."""
        if self._follower is None:
            return False
        self.check_reentry("refresh")
        with self._state.compacting:
            return self.catch_up()

    def catch_up(self) -> bool:
        """Do what `refresh` does, for a caller that holds `compacting`."""
        if self.refusal is not None:
            raise self.refusal()
        return self._follower is not None and self._follower.refresh()

    # --- what there is to compact --------------------------------------------------------------

    def usage(self) -> list[SegmentUsage]:
        """Return the usage of every sealed segment in logical order."""
        with self._state.lock, self._state:
            return self._usage()

    def pick(self) -> list[int]:
        """Return the run that a compaction in the background would take now."""
        with self._state.lock, self._state:
            return self._pick()

    def _usage(self) -> list[SegmentUsage]:
        with translated("bytekv.engine.space.picker"):
            from .picker import usage_of

        self._state.measure()
        return usage_of(self._segments, self._keydir)

    def _pick(self) -> list[int]:
        with translated("bytekv.engine.space.picker"):
            from .picker import pick

        uses, writer = self._usage(), self._segments.writer
        return pick(uses, self._segments.sizes, 0 if writer is None else writer.end)

    def _note_due(self, *, is_due: bool) -> None:
        with self._state.lock, self._state:
            self._is_due = is_due
            if not is_due:
                self._committer.throttle.lift(self._state)

    def _look_for_work(self) -> bool:
        """Tell a writer whether a compaction is due or under way, and have it begin. Under the lock, in its change."""
        if not self._is_due and self._pick():
            self._is_due = self._state.wants_worker = True
        return self._is_due

    # --- because it is asked -------------------------------------------------------------------

    def compact(self, progress: Callable[[Progress], object] | None) -> Compaction:
        """Give back whatever is dead; what `Store.compact` promises."""
        self.check_reentry("compact")
        self._state.redo_interrupted()
        waiter: object = self.hurry()
        with self._state.compacting:
            waiter = None  # noqa: F841
            result = self._compact_all(progress)
        self._state.emit()
        log.info("compacted %s: %d bytes reclaimed", self._path, result.reclaimed_bytes)
        return result

    def _compact_all(self, progress: Callable[[Progress], object] | None) -> Compaction:
        with translated("bytekv.contract.reports"):
            from ...contract.reports import Compaction, Progress
            from .picker import pick_all, pick_small

        state, pause = self._state, Pacer(self._files).go_on
        done = total = 0

        def advance(size: int) -> None:
            nonlocal done
            done += size
            if progress is not None:
                progress(Progress(done, total))

        self.compactor.finish(pause)
        state.purge(pause)
        before = self._segments.lengths()
        with state.lock, state:
            active = self._segments.writer
            untidy = active is not None and self._keydir.usage.gone_bytes(active.header.segment_id) > 0
        if untidy or any(pick_all(self.usage())):
            self._committer.seal()
        while True:
            runs = pick_all(self.usage())
            total = done + sum(self._segments.lengths()[segment] for run in runs for segment in run)
            try:
                for run in runs:
                    self.compactor.run(run, pause, advance, in_order=self._keydir.is_ordered(_SORTED_FOR_COMPACTION))
                break
            except DiskFullError:
                if not self._compact_one_segment():
                    raise
        while small := pick_small(self.usage(), self._segments.sizes, 2):
            self.compactor.run(small, pause, lambda _: None)
        self.compactions += 1
        after = self._segments.lengths()
        return Compaction(len(before), len(after), sum(before.values()), sum(after.values()))

    def _compact_one_segment(self) -> bool:
        """On a nearly full disk: rewrite the segment whose copy is smallest; False if there is no room for any."""
        uses = sorted((use for use in self.usage() if use.dead), key=lambda use: use.length - use.dead)
        for use in uses:
            with suppress(DiskFullError):
                self.compactor.run([use.segment_id], self._files.yield_cpu, lambda _: None)
                return True
        return False

    def build_hints(self) -> None:
        """Build the hint files that are missing, at the end of a store. Under all locks.

        From the keydir as far as it knows all that a hint says; else the segment is read.
        """
        with suppress(CorruptionError, *SystemErrors):  # only hints
            segments = self._segments
            missing = list(filter(segments.needs_hint, segments.manifest.segments))
            if not missing:
                return
            found = self._keys_of(missing)
            for row in missing:
                hint = None
                if row.segment_id in found:
                    keys, locations = found.pop(row.segment_id)
                    hint = self._keydir.hint_for(row, keys, locations, self._state.size_of)
                if hint is not None:
                    segments.write_hint(row, hint)
                else:
                    segments.build_hint(row, lambda: None)

    def _keys_of(self, rows: list[SegmentRow]) -> dict[int, tuple[list[bytes], list[int]]]:
        """Return keys and locations of those segments of which the keydir knows all.

        A bulk load's keys are the ones that came last, so no more are looked at than it would cost to read the rest.
        """
        self._state.count_if_due()
        active, usage = self._segments.active_id, self._keydir.usage
        known = {row.segment_id for row in rows if usage.tells_all(row.segment_id, active)}
        entries = previous = 0
        for row in self._segments.manifest.segments:
            entries += row.last_seq - previous if row.segment_id in known else 0
            previous = row.last_seq
        return self._keydir.keys_in(known, _KEYS_AN_ENTRY * entries) if known else {}
