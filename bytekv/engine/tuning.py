"""Tuning: the engine's own constants, which users do not choose and tests shrink.

What is rare in a large store is common in one whose steps are small. So an open store is handed its constants, and a
test hands it others, instead of changing those of a module under every store of the process.
"""

from __future__ import annotations

from .._lean import NamedTuple

__all__ = ["TUNING", "Tuning"]


class Tuning(NamedTuple):
    """Hold the constants of one open store, with the reason for each."""

    copied_entries: int = 32  # of a compaction between two chances for other threads: less than 200 µs
    copied_keys: int = 256  # whose entries are copied together where keys come in order: 300 µs
    moved_keys: int = 256  # that are pointed at their copies at once: less than 50 µs


TUNING = Tuning()
