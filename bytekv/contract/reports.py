"""Reports: what long calls return, and what the feed of changes yields."""

from __future__ import annotations

from .._lean import TYPE_CHECKING, NamedTuple
from .convert import counted

if TYPE_CHECKING:
    from typing import Literal

__all__ = [
    "BackupReport",
    "Change",
    "Compaction",
    "Damage",
    "Progress",
    "Report",
    "SegmentStats",
    "Stats",
]


class Progress(NamedTuple):
    """How far a long operation is."""

    done_bytes: int
    total_bytes: int


class Compaction(NamedTuple):
    """What a compaction did; the result of `Store.compact`."""

    segments_before: int
    segments_after: int
    bytes_before: int
    bytes_after: int

    @property
    def reclaimed_bytes(self) -> int:
        """Return how many bytes less the segments take."""
        return self.bytes_before - self.bytes_after


class SegmentStats(NamedTuple):
    """The bytes of one segment, oldest first in `Stats.segments`."""

    segment_id: int
    length_bytes: int
    dead_bytes: int
    tombstone_bytes: int


class Stats(NamedTuple):
    """What `Store.stats` tells; bytes are file bytes, headers included.

    Every byte of a segment is live or dead; its header counts as live. Any compaction of their segment gives dead
    entries back; tombstones go only with all that is older, and count as dead, too. An expired entry is live until its
    grace is over; then a compaction leaves a tombstone of it, and so much of it counts as dead already.

    ``throttled`` says why writers are slowed down now, with the figures that it was decided by, None while they are
    not; ``throttled_s`` for how many seconds all of them together have slept for that since the store was opened.
    """

    keys: int
    last_seq: int
    durable_seq: int
    total_bytes: int
    live_bytes: int
    dead_bytes: int
    open_segments: int
    compactions: int
    background_error: str | None
    open_views: int
    pinned_bytes: int
    expired_keys: int
    throttled: str | None
    throttled_s: float
    segments: tuple[SegmentStats, ...]


class Change(NamedTuple):
    """One operation of the log; ``expires`` in seconds since 1970.

    ``op`` "clear" deletes every key and has none itself. ``more`` says that the next change belongs to the same
    batch: a program that applies changes elsewhere must apply both together.
    """

    seq: int
    op: Literal["put", "delete", "clear"]
    key: bytes
    value: bytes
    expires: float | None
    more: bool


class Damage(NamedTuple):
    """One place that fails its check; ``key`` where it is known whose entry it was."""

    path: str
    offset: int
    reason: str
    key: bytes | None = None

    def __str__(self) -> str:
        return f"{self.path}: offset {self.offset}: {self.reason}" + ("" if self.key is None else f", key {self.key!r}")


class Report:
    """What `Store.verify` or `bytekv.repair` found. ``ok`` if there is no damage."""

    __slots__ = ("_is_repair", "checked_bytes", "damage", "entries", "keys", "quarantined", "segments")

    def __init__(self, *, is_repair: bool = False) -> None:
        self._is_repair = is_repair
        self.segments: int = 0
        self.entries: int = 0
        #: Counted by `Store.verify` only; a repair leaves it at 0.
        self.keys: int = 0
        self.checked_bytes: int = 0
        self.damage: list[Damage] = []
        #: Files that a repair moved or copied into quarantine/.
        self.quarantined: list[str] = []

    @property
    def ok(self) -> bool:
        """Tell whether nothing was found."""
        return not self.damage

    def __str__(self) -> str:
        keys = "" if self._is_repair else f", {counted(self.keys, 'key')}"
        text = f"{counted(self.segments, 'segment')}, {counted(self.entries, 'entry', 'entries')}{keys}"
        text += f", {counted(self.checked_bytes, 'byte')} checked"
        lines = [
            text + (": ok" if self.ok else f": {counted(len(self.damage), 'damaged place')}"),
            *map(str, self.damage),
        ]
        return "\n".join([*lines, *(f"kept in {path}" for path in self.quarantined)])


class BackupReport(NamedTuple):
    """What `Store.backup` did.

    ``seq``: the newest operation in the backup. Its ``segments`` are those ``kept`` from an earlier backup, those
    ``linked``, which share their file with the store, and those copied, of ``copied_bytes`` together.
    """

    seq: int
    segments: int
    kept: int
    linked: int
    copied_bytes: int
