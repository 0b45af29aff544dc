"""Events: what an operator wants to know of an open store, told to the option `listener`.

Each is a named tuple that begins with the ``path`` of the store. docs/how-to/listen.md says when they come, and what
a listener may do.
"""

from __future__ import annotations

from ._lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "CompactionBegan",
    "CompactionEnded",
    "Event",
    "Quarantined",
    "Recovered",
    "SegmentSealed",
    "SyncSlow",
    "ThrottleBegan",
    "ThrottleEnded",
]


class SegmentSealed(NamedTuple):
    """The active segment is full, or a compaction of everything begins: it will not change any more."""

    path: str
    segment_id: int
    length_bytes: int
    last_seq: int


class CompactionBegan(NamedTuple):
    """A run of neighbouring segments is being rewritten."""

    path: str
    segment_ids: tuple[int, ...]
    length_bytes: int


class CompactionEnded(NamedTuple):
    """A compaction has ended; ``error`` says why it changed nothing, or what it left for the next, None: it is done."""

    path: str
    segment_ids: tuple[int, ...]
    bytes_before: int
    bytes_after: int
    error: str | None


class ThrottleBegan(NamedTuple):
    """Writers are slowed down from now on: more is dead than ``free_bytes``, and a compaction is due or under way."""

    path: str
    dead_bytes: int
    live_bytes: int
    free_bytes: int


class ThrottleEnded(NamedTuple):
    """Writers go at full speed again; they have slept for ``throttled_s`` seconds since the store was opened."""

    path: str
    throttled_s: float


class SyncSlow(NamedTuple):
    """A sync took a second or longer; writers that need it have waited for it."""

    path: str
    duration_s: float


class Recovered(NamedTuple):
    """The store was not closed by its last process, or was repaired while it was opened."""

    path: str
    last_seq: int
    torn_bytes: int
    is_repaired: bool
    duration_s: float


class Quarantined(NamedTuple):
    """Recovery or a repair has set a file aside, for a person to look at."""

    path: str
    file: str


Event = (
    SegmentSealed
    | CompactionBegan
    | CompactionEnded
    | ThrottleBegan
    | ThrottleEnded
    | SyncSlow
    | Recovered
    | Quarantined
)

if TYPE_CHECKING:
    Listener = Callable[[Event], object]
