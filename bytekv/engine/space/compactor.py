"""Compactor: replace a run of segments by copies of its live entries.

The run's segments (the victims) are neighbours in the log; `Copier` says what of them is copied. That a newer entry
exists of what is not copied must hold after a power cut, too: so the active segment is synced before the victims go.

Order, and what a crash in between leaves:
(1) outputs synced, (2) their names synced, (3) the active segment synced -> unlisted files, swept;
(4) manifest -> both sets of files, the outputs valid, the victims swept;
(5) keydir pointed at the copies where it still pointed at the originals, a little at a time;
(6) victims unlinked, oldest first -> the rest is swept.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from ..._lean import TYPE_CHECKING, log
from ...errors import BytekvError, DiskFullError, StoreFailedError, is_about
from ..codec.manifest import SEGMENT_HEADER_SIZE
from ..listener import tell
from ..log.builder import SegmentBuilder
from ..state import State
from ..write.durability import Durability
from .copier import Copier, Pause, Run
from .undo_copier import copy_undo

if TYPE_CHECKING:
    from ...events import Listener

__all__ = ["Compactor"]


class _Job:
    """A published compaction whose victims are still zombies."""

    __slots__ = ("hinted", "outputs", "recounts", "tombstones", "victims")

    def __init__(self, victims: list[int], outputs: list[SegmentBuilder]) -> None:
        self.victims = victims
        self.outputs = outputs
        self.tombstones = {output.header.segment_id: output.tombstone_bytes for output in outputs}
        self.hinted = {output.header.segment_id: output.end for output in outputs}
        self.recounts = 0


class Compactor:
    """Carry out compactions of one store, one at a time; the caller sees to that."""

    def __init__(self, state: State, durability: Durability, listener: Listener | None) -> None:
        self._tuning = state.tuning
        self._state, self._durability = state, durability
        self._segments = state.segments
        self._keydir = state.keydir
        self._listener = listener
        self._copier: Copier | None = None
        self._job: _Job | None = None
        self._read_bytes = 0

    @property
    def read_bytes(self) -> int:
        """Return how many bytes of victims have been read, ever: what a limit of the rate is about."""
        return self._read_bytes + (self._copier.read_bytes if self._copier is not None else 0)

    def run(self, victims: list[int], pause: Pause, advance: Callable[[int], None], *, in_order: bool = False) -> None:
        """Replace one run of victims; ``advance`` is told the bytes read, ``pause`` is called between slices.

        ``in_order``: copy in the order of the keys, so that a scan reads one piece of file after the other.

        Raises `CorruptionError` if an entry is damaged and `DiskFullError` if there is no room for the
        copies; nothing has changed then. Durability: the outputs are durable before a victim goes.
        Complexity: reads every victim once, what lives of it twice if ``in_order``; 1 to 3 µs an entry.
        """
        self.finish(pause)
        if self._listener is None:
            self._run(victims, pause, advance, in_order)
        else:
            self._run_and_tell(self._listener, victims, pause, advance, in_order)

    def _run_and_tell(
        self, listener: Listener, victims: list[int], pause: Pause, advance: Callable[[int], None], in_order: bool
    ) -> None:
        from ...events import CompactionBegan, CompactionEnded

        path, segment_ids, lengths = self._segments.directory.path, tuple(victims), self._segments.lengths()
        before = after = sum(lengths[segment_id] for segment_id in victims)
        reason: str | None = None
        tell(listener, CompactionBegan(path, segment_ids, before))
        try:
            before, after = self._run(victims, pause, advance, in_order)
        except BaseException as error:
            reason = str(error) or type(error).__name__
            raise
        finally:
            tell(listener, CompactionEnded(path, segment_ids, before, after, reason))

    def _run(self, victims: list[int], pause: Pause, advance: Callable[[int], None], in_order: bool) -> tuple[int, int]:
        try:
            before, after = self._replace(victims, pause, advance, in_order)
            self._finish(pause)
        except StoreFailedError as error:
            self._poison(error)
            raise
        log.debug("compacted segments %s: %d bytes became %d", victims, before, after)
        return before, after

    def _replace(
        self, victims: list[int], pause: Pause, advance: Callable[[int], None], in_order: bool
    ) -> tuple[int, int]:
        state, segments = self._state, self._segments
        state.purge(pause)
        with state.lock, state:
            state.ready()
            run = self._run_of(victims)
            if state.queue.changes:  # a seal was interrupted before it showed them: what is not shown looks dead
                state.became_durable(run.rows[-1].last_seq)
            copier = Copier(state, run, pause, advance)
        self._check_room(run)
        outputs = copier.outputs
        try:
            self._copier = copier
            try:
                if in_order:
                    copier.copy_in_key_order()
                else:
                    copier.copy_in_log_order()
            finally:
                self._read_bytes, self._copier = self.read_bytes, None
            new_rows = [output.finish(run.rows[-1].last_seq, pause) for output in outputs]
            if outputs:
                segments.directory.sync()
            # Newer entries decided what is dead; they must not be lost where the old ones are gone.
            self._durability.sync_to(state.seq)
        except BaseException:
            for output in outputs:
                output.discard()
            raise
        job = _Job(victims, outputs)
        with state.turn.gate, state.turn, state.lock, state:
            state.ready()
            self._job = job
            job.recounts = self._keydir.recounts
            try:
                segments.replace_run(victims, new_rows)
                self._count_tombstones(job)
            except StoreFailedError as error:
                if is_about(error, segments.directory.path):
                    self._job = None  # which manifest survives is open: both sets of files stay
                raise
            except BytekvError:
                segments.settle()
                self._forget_unpublished(job)
                raise
        return run.length, sum(row.length for row in new_rows)

    def _run_of(self, victims: list[int]) -> Run:
        rows = self._segments.manifest.segments
        first = next(number for number, row in enumerate(rows) if row.segment_id == victims[0])
        previous = (rows[first - 1].segment_id, rows[first - 1].last_seq) if first else (0, 0)
        return Run(rows[first : first + len(victims)], previous)

    def _check_room(self, run: Run) -> None:
        """Raise `DiskFullError` if there is no room for the copies."""
        segments, keydir = self._segments, self._keydir
        needed = run.length - sum(keydir.usage.dead_bytes(segment_id) for segment_id in run.segment_ids)
        if run.is_oldest:
            needed -= sum(map(keydir.usage.hiding_bytes, run.segment_ids))
        directory = segments.directory
        free = directory.files.free_bytes(directory.folder)
        if needed > free and needed > len(run.rows) * SEGMENT_HEADER_SIZE:
            raise DiskFullError(
                errno.ENOSPC, f"compacting needs {needed} bytes for copies, {free} are free", directory.path
            )
        log.debug(
            "compacting segments %s: %d of their %d bytes are dead", run.segment_ids, run.length - needed, run.length
        )

    def finish(self, pause: Pause) -> None:
        """Carry an interrupted compaction to its end, if there is one."""
        try:
            self._finish(pause)
        except StoreFailedError as error:
            self._poison(error)
            raise

    def _poison(self, error: StoreFailedError) -> None:
        with self._state.lock, self._state:
            self._state.fail(error)

    def _finish(self, pause: Pause) -> None:
        """Point the keydir at the copies and free the victims of a published compaction.

        Interrupted, it goes on at the next call: until then both places are readable.
        """
        job, state, keydir = self._job, self._state, self._keydir
        if job is None:
            if self._segments.obsolete.has_replaced:  # perhaps only for a snapshot that was dropped without close()
                with state.lock, state:
                    free = self._segments.reap(keydir.noted_segments())
                self._segments.obsolete.remove(free)
            return
        with state.lock, state:
            state.ready()
            if self._forget_unpublished(job):
                return
            self._count_tombstones(job)
            keydir.usage.drop_segments(job.victims)  # before the first key is moved: see `Usage.is_whole`
        try:
            self._move_all(job, pause)
        except BaseException:
            state.count_again()
            raise
        with state.lock, state:
            free = self._free_victims(job)
        self._segments.obsolete.remove(free)
        self._segments.directory.sync()
        copy_undo(self._state, pause)

    def _count_tombstones(self, job: _Job) -> None:
        for segment, size in job.tombstones.items():
            self._keydir.usage.set_tombstones(segment, size)

    def _forget_unpublished(self, job: _Job) -> bool:
        """Give a compaction up if the manifest still lists its victims: it has not happened. Under the lock."""
        listed = {row.segment_id for row in self._segments.manifest.segments}
        if listed.isdisjoint(job.victims):
            return False
        self._job = None
        self._keydir.usage.drop_segments(list(job.hinted))
        for output in job.outputs:
            output.discard()
        return True

    # The loops below have functions of their own: from Python 3.12 on a loop's jump back may lie outside
    # what an enclosing `with` protects, and an interrupt there would leave the lock held for ever.

    def _move_all(self, job: _Job, pause: Pause) -> None:
        while job.outputs:
            with self._state.lock, self._state:
                self._move_some(job)
            pause()

    def _move_some(self, job: _Job) -> None:
        """Move some keys of the first output, the last ones first, and forget them by and by: freeing a million at once
        would hold the GIL for milliseconds. Interrupted, it moves some once more, and dead bytes are counted anew."""
        output = job.outputs[0]
        if not output.untold:
            if not output.copied:
                del job.outputs[0]
                return
            piece = output.copied[-1]
            output.told = piece._replace(keys=tuple(piece.keys))
            output.untold = len(piece.positions)
            output.copied.pop()
        keys, originals, positions = output.told
        begin = max(0, output.untold - self._tuning.moved_keys)
        part = slice(begin, output.untold)
        copies = list(map(output.base.__or__, positions[part]))
        self._keydir.move_all(keys[part], list(originals[part]), copies, self._segments.open.entry_size)
        output.untold = begin

    def _free_victims(self, job: _Job) -> list[int]:
        keydir = self._keydir
        keydir.usage.drop_segments(job.victims)
        for segment_id in job.hinted:
            keydir.usage.open_segment(segment_id)
        if keydir.recounts != job.recounts:
            self._state.count_again()  # somebody counted while half of the keys had been moved
        self._segments.obsolete.replace(job.victims)
        self._segments.hinted.update(job.hinted)
        self._job = None
        return self._segments.reap(keydir.noted_segments())
