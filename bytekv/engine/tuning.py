"""Tuning: the engine's own constants, which users do not choose and tests shrink.

What is rare in a large store is common in one whose steps are small. So an open store is handed its constants, and a
test hands it others, instead of changing those of a module under every store of the process.
"""

from __future__ import annotations

from .._lean import NamedTuple

__all__ = ["TUNING", "Tuning"]


class Tuning(NamedTuple):
    """Hold the constants of one open store, with the reason for each."""

    # --- the active segment; all in bytes
    #: Kept back so that a full disk can be emptied (D11). Deletes may use all but the last: (48 - 16) KiB / (27 + 16) =
    #: 762 deletes of 16-byte keys. Those are for the next manifest, of up to 400 segments: sealing gives them back to
    #: the disk, and without a manifest nothing can be freed.
    reserve: int = 48 * 1024
    manifest_room: int = 16 * 1024
    first_step: int = 64 * 1024  # allocated at first: a store killed while tiny stays tiny
    prepare_from: int = 1024 * 1024  # a segment of this size is worth preparing the next for

    # --- sizes; in bytes
    smallest_segment: int = 4 * 1024 * 1024  # that a store makes, unless the option says less
    kept_changes: int = 8 * 1024 * 1024  # of the log, for readers of `changes()`, unless the options say otherwise
    hint_from: int = 64 * 1024  # a smaller segment is scanned as fast as its hint is read

    # --- compaction
    copied_entries: int = 32  # of a compaction between two chances for other threads: less than 200 µs
    copied_keys: int = 512  # whose entries are copied together where keys come in order: 500 µs
    moved_keys: int = 256  # that are pointed at their copies at once: less than 50 µs
    undo_keys: int = 1000  # of views that are looked at, or pointed elsewhere, at once: less than half a millisecond
    flushed_bytes: int = 1 << 16  # of copies that are written at once: what is done to as many takes 200 µs
    retry_s: float = 1.0  # before background work that went wrong is tried again

    # --- batches
    few_writes: int = 64  # that take less time one by one than all at once

    # --- writers that are slowed down; in bytes, less where a segment is small
    seldom_looked: int = 1024 * 1024  # between two looks at what is dead
    paid: int = 32 * 1024  # between two payments

    # --- waiting for others
    patience_s: float = 0.1  # after this long a waiter looks whether there still is a leader, then less and less often
    tries: int = 50  # a writer that seals every few milliseconds may replace what is read several times in a row

    # --- key order and scans; in keys
    sorted_keys: int = 10_000  # that are sorted at once while others wait
    few_changes: int = 1000  # that an index is brought up to date with at once
    few_noted: int = 10_000  # changed since a view was opened and looked at under the lock, in some 5 ms
    first_chunk: int = 128  # of a scan
    last_chunk: int = 1024


TUNING = Tuning()
