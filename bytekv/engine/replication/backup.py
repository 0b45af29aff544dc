"""Backup: a copy of one moment of a store, made while its writer goes on; the next one takes only what is new.

Sealed segments never change, so where the file system allows it the backup's are the store's own files under
a second name (hard links): no bytes are copied and no space is taken until the store drops its own name. The
active segment, which grows, is copied up to the moment, and is a sealed one in the backup.

The result is an ordinary store whose manifest carries a flag, BACKUP, which the first change of it as a store
takes away, and the number of its store's history: an earlier backup of that may be brought up to date, anything
else of a user's is never overwritten. In another history the same segment ids mean other files.

Order: (1) the files durable; (2) their names durable; (3) the manifest; (4) what it no longer lists is removed.
Until (3) the earlier backup is whole; before the first one the directory carries a marker, and no store opens.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable

from ..._lean import TYPE_CHECKING, NamedTuple, suppress
from ...contract.reports import BackupReport, Progress
from ...errors import BytekvError, CorruptionError, NotAStoreError, StoreFailedError, StoreIOError
from ..codec.manifest import BACKUP, HISTORY, SEALED, SEGMENT_HEADER_SIZE, Manifest, SegmentRow
from ..log.directory import Directory
from ..log.obsolete import Pin
from ..log.scan import header_of
from ..state import State
from ..write.durability import Durability

if TYPE_CHECKING:
    from typing import Final

__all__ = ["Moment", "back_up", "moment_of"]

_PIECE: Final = 1 << 20


class Moment(NamedTuple):
    """What a backup copies: rows with the lengths that count, and which of them are sealed on disk."""

    store_uuid: bytes
    compat_flags: int
    next_id: int
    seq: int
    rows: list[SegmentRow]
    sealed: set[int]


def moment_of(
    state: State, durability: Durability, when_closed: Callable[[], None], *, readonly: bool
) -> tuple[Pin, Moment]:
    """Return what a store holds now; ``when_closed`` is called when the pin keeps its files no longer.

    A backup holds nothing that a power cut could take from the store, so that is made durable first.
    """
    segments = state.segments
    state.check_idle()
    if readonly:
        sealed = _sealed(segments.directory.load(for_writing=False).segments)
        state.redo_interrupted()
    else:
        durability.sync()
    with state.sync_lock, state.lock, state:
        if not readonly:
            durability.sync_what_waits()
            sealed = _sealed(segments.manifest.segments)
        seq, manifest, pin = state.seq, segments.manifest, segments.pin(when_closed, is_call=True)
    rows = _rows_of(pin.rows, pin.lengths, seq)
    listed = {row.segment_id for row in rows if (row.segment_id, row.length) in sealed}
    return pin, Moment(manifest.store_uuid, manifest.compat_flags, manifest.next_id, seq, rows, listed)


def _sealed(rows: Iterable[SegmentRow]) -> set[tuple[int, int]]:
    return {(row.segment_id, row.length) for row in rows if row.state == SEALED}


def back_up(
    source: Directory, moment: Moment, target: Directory, progress: Callable[[Progress], object] | None
) -> BackupReport:
    """Make ``target`` hold exactly a moment of ``source``. The caller keeps the files of the moment in place.

    Raises `NotAStoreError` if the target holds anything but an earlier backup of this store,
    `StoreNotFoundError` if a file of the source has vanished; the earlier backup is as before then.
    """
    try:
        target.make_for_backup()
        target.acquire(network_allowed=True)
        is_first = target.begin_backup()
        old = Manifest(moment.store_uuid, 1, 0)
        if not is_first:
            old = target.load(for_writing=True)
            _check_target(target, old, moment)
        target.sweep(old)
        kept = linked = copied = 0
        total = sum(row.length for row in moment.rows)
        done = 0
        there = {row.segment_id: row for row in old.segments}
        for row in moment.rows:
            if there.get(row.segment_id) == row and _holds_segment(target, row, moment.store_uuid):
                kept += 1
            elif row.segment_id in moment.sealed and _link(source, target, row):
                linked += 1
            else:
                copied += _copy(source, target, row, lambda size, done=done: _tell(progress, done + size, total))  # type: ignore[misc]
            done += row.length
            _tell(progress, done, total)
        target.sync()
        manifest = Manifest(
            moment.store_uuid,
            moment.next_id,
            moment.seq,
            old.generation + 1,
            tuple(moment.rows),
            moment.compat_flags | BACKUP,
        )
        target.save(manifest)
        target.finish_backup()
        target.sweep(manifest)
    except StoreFailedError as error:  # of the target: the store itself has nothing to fear
        raise StoreIOError(errno.EIO, f"the backup is not durable ({error}); make it anew", target.path) from error
    finally:
        target.release()
    return BackupReport(moment.seq, len(moment.rows), kept, linked, copied)


def _tell(progress: Callable[[Progress], object] | None, done: int, total: int) -> None:
    if progress is not None:
        progress(Progress(done, total))


def _check_target(target: Directory, old: Manifest, moment: Moment) -> None:
    if old.store_uuid != moment.store_uuid:
        raise NotAStoreError(f"{target.path}: holds another store, or a backup of another; use an empty directory")
    if not old.compat_flags & BACKUP:
        raise NotAStoreError(
            f"{target.path}: was a backup of this store and has been written to since; use an empty directory"
        )
    files = {row.segment_id: row.salt for row in moment.rows}
    if (old.compat_flags ^ moment.compat_flags) & HISTORY or any(
        files.get(row.segment_id, row.salt) != row.salt for row in old.segments
    ):
        raise NotAStoreError(
            f"{target.path}: a backup of another history of this store: one of them was repaired, or a backup written "
            "to as a store; keep it, and use an empty directory"
        )
    if old.last_seq > moment.seq:
        raise NotAStoreError(
            f"{target.path}: this backup reaches up to seq {old.last_seq}, the store only up to {moment.seq}; "
            "keep it, and use an empty directory"
        )


def _holds_segment(target: Directory, row: SegmentRow, uuid: bytes) -> bool:
    try:
        descriptor, _ = header_of(target, row, uuid, for_writing=False)
    except CorruptionError:
        return False
    try:
        return target.files.size(descriptor, target.segment_path(row.segment_id)) >= row.length
    finally:
        target.files.close(descriptor)


def _link(source: Directory, target: Directory, row: SegmentRow) -> bool:
    """Give a sealed segment a second name in the target; False where the file system does not do that.

    False, too, where the file has more bytes, a torn tail that could not be cut off: what was set aside of it stays in
    the store, and nothing in the backup would tell a repair that it does not count. Or fewer, which `_copy` reports.
    """
    files, temporary, path = target.files, target.segment_new_path, source.segment_path(row.segment_id)
    descriptor = files.open(path)
    try:
        is_exact = files.size(descriptor, path) == row.length
    finally:
        files.close(descriptor)
    if not is_exact or not files.link(path, temporary):
        return False
    files.replace(temporary, target.segment_path(row.segment_id))
    # Were both names of one file, the temporary one is still there; the sweep at the end takes it.
    with suppress(BytekvError):  # only a hint: the backup's first opening does without
        if files.link(source.hint_path(row.segment_id), temporary):
            files.replace(temporary, target.hint_path(row.segment_id))
    return True


def _copy(source: Directory, target: Directory, row: SegmentRow, advance: Callable[[int], None]) -> int:
    files, temporary = target.files, target.segment_new_path
    path = source.segment_path(row.segment_id)
    origin = source.files.open(path)
    try:
        copy = files.open_new(temporary)
        try:
            done = 0
            while done < row.length:
                piece = source.files.read(origin, min(_PIECE, row.length - done), done, path)
                if not piece:
                    raise CorruptionError(path, done, f"cut short: {done} bytes of {row.length}")
                files.write(copy, piece, done, temporary)
                done += len(piece)
                advance(done)
            files.sync(copy, temporary)
        finally:
            files.close(copy)
        files.replace(temporary, target.segment_path(row.segment_id))
    except BaseException:
        with suppress(BytekvError):  # a leftover with a known name: the next backup sweeps it
            files.unlink(temporary)
        raise
    finally:
        source.files.close(origin)
    return row.length


def _rows_of(rows: tuple[SegmentRow, ...], lengths: list[int], seq: int) -> list[SegmentRow]:
    """Return the rows that a backup lists: all sealed, the active segment at the length that it has now."""
    return [
        row._replace(length=length, last_seq=row.last_seq if row.state == SEALED else seq, state=SEALED)
        for row, length in zip(rows, lengths, strict=True)
        if length > SEGMENT_HEADER_SIZE
    ]
