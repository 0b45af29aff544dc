"""The tunables of a store: each with its unit, its default and its reason.

This module knows what a user may choose and rejects nonsense early. It knows nothing of how the
choices are carried out.
"""

from __future__ import annotations

from ._lean import TYPE_CHECKING, dataclass
from .errors import LimitError

if TYPE_CHECKING:
    from typing import Literal, TypedDict

    from .events import Listener

    Flag = Literal["r", "w", "c", "n"]
    SyncMode = Literal["interval", "always", "os"]
    IOMode = Literal["auto", "mmap", "pread"]
    RecoverMode = Literal["strict", "salvage"]

    class OpenOptions(TypedDict, total=False):
        """The keyword arguments of `bytekv.open`, for type checkers; `Options` says what they mean."""

        sync: SyncMode
        sync_interval_s: float
        segment_size_bytes: int
        io: IOMode
        verify_reads: bool
        auto_compact: bool
        compact_dead_ratio: float
        compact_dead_bytes: int
        compact_small_files: int
        compact_rate_bytes_s: int | None
        keep_changes_bytes: int | None
        expiry_grace_s: float
        max_open_segments: int | None
        recover: RecoverMode
        shared: bool
        busy_timeout_s: float
        follow: float | None
        listener: Listener | None


__all__ = ["Options"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "sync": ("interval", "always", "os"),
    "io": ("auto", "mmap", "pread"),
    "recover": ("strict", "salvage"),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Hold what ``bytekv.open`` was asked for, checked.

    >>> Options(sync="always").sync
    'always'
    >>> Options(sync="sometimes")
    Traceback (most recent call last):
    ...
    ValueError: sync must be one of 'interval', 'always', 'os', not 'sometimes'
    """

    #: When writes become durable (survive power loss). "interval": in the background, at most
    #: ``sync_interval_s`` after the first unsynced write. "always": before the call returns.
    #: "os": when the operating system likes, and at every seal, compaction, ``sync()`` and ``close()``.
    sync: SyncMode = "interval"

    #: Seconds. One second is what Redis (appendfsync everysec) and most users accept to lose.
    sync_interval_s: float = 1.0

    #: Bytes at which a segment is sealed in a large store. A small one has smaller segments, a sixteenth of its
    #: live bytes, down to 4 MiB, so that it stays small. 64 MiB keep 100 GB in 1,600 files, and one compaction step
    #: under a second.
    segment_size_bytes: int = 64 * 1024 * 1024

    #: "mmap" appends through a preallocated mapping: no system call for a write, and safe against
    #: ``kill -9``. "pread" uses ``pread``/``pwrite``. "auto" takes "mmap" where the file system
    #: preallocates natively and writes in place.
    io: IOMode = "auto"

    #: Check the CRC32C of an entry at every read. 60 ns for 128 bytes; a wrong bit becomes an
    #: error instead of an answer.
    verify_reads: bool = True

    #: Reclaim space in the background without being asked.
    auto_compact: bool = True

    #: Share of a segment's bytes that are dead before it is worth rewriting. One half bounds the
    #: store at about twice its live bytes.
    compact_dead_ratio: float = 0.5

    #: Dead bytes a segment must have besides the ratio: rewriting for less costs more syncs than it frees. At most
    #: a quarter of the current segment size counts, for more would never be reached.
    compact_dead_bytes: int = 1024 * 1024

    #: Sealed neighbours, each smaller than a quarter of the current segment size, that are merged into one.
    compact_small_files: int = 8

    #: Bytes of segments that background compaction may read a second; None: as many as it can beside the
    #: application, which it slows down only when dead bytes outgrow the live ones. With a limit that is too
    #: low for what is written the store grows beyond that.
    compact_rate_bytes_s: int | None = None

    #: Bytes at the end of the log that background compaction leaves alone, so that ``changes()`` reaches back
    #: that far: as much as is written in the longest time that a reader of the feed may be away. None: 8 MiB, and
    #: nothing where ``segment_size_bytes`` is less than 4 MiB. ``compact()`` rewrites everything all the same.
    keep_changes_bytes: int | None = None

    #: Seconds for which an expired entry stays on disk before a compaction may drop it for good,
    #: so that a clock set wrong for a moment destroys nothing.
    expiry_grace_s: float = 60.0

    #: Sealed segments kept open at most; None: half of the process's limit on open files, at most 4,096. A reader (flag
    #: "r") of more segments than that may need one that the writer has compacted away: the read then raises
    #: ``StoreIOError`` (ENOENT), and works again after ``refresh()``, because a reader does not move on without one.
    max_open_segments: int | None = None

    #: What ``open`` does about damage to what was durable. "strict": raise ``CorruptionError``.
    #: "salvage": repair as ``bytekv.repair`` does; what was lost is in ``Store.recovery.salvaged``.
    recover: RecoverMode = "strict"

    #: Let other processes that say so, too, write to the store at the same time. All must run on one machine, and the
    #: file system must be ext4, xfs, tmpfs or an overlay of these, else ``UnsupportedError``; beside a writer that does
    #: not share, ``StoreLockedError``. What concerns all is as the first one has chosen: ``segment_size_bytes``,
    #: ``keep_changes_bytes``, ``expiry_grace_s``.
    shared: bool = False

    #: Seconds for which a call on a shared store waits for the other processes, of which one may be stopped or have a
    #: transaction open; then ``StoreBusyError`` names it. 0: it does not wait.
    busy_timeout_s: float = 30.0

    #: Seconds between two looks at what the writer has done, with flag "r"; None: only when ``refresh()`` is called.
    follow: float | None = None

    #: Called with each event of the store, a named tuple of ``bytekv.events``, in the thread in which it happens and
    #: without the locks that reads and writes need. What it raises is logged and changes nothing.
    listener: Listener | None = None

    if not TYPE_CHECKING:

        def __init__(self, **given):
            if unknown := given.keys() - set(self.names()):
                raise TypeError(f"unknown option {min(unknown)!r}; there are {', '.join(self.names())}")
            self.__dict__.update(given)  # what was not given is the class's
            self._check()

        def __setattr__(self, name, value=None):
            raise AttributeError(f"options cannot be changed: {name}")

        __delattr__ = __setattr__

        def __repr__(self):
            return f"Options({', '.join(f'{name}={getattr(self, name)!r}' for name in self.names())})"

    def _check(self) -> None:
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}")
        self._number("sync_interval_s", 0.001, 86_400.0)
        self._number("segment_size_bytes", 256, 1 << 30)
        self._number("compact_dead_ratio", 0.01, 1.0)
        self._number("compact_dead_bytes", 0, 1 << 40)
        self._number("compact_small_files", 2, 1 << 20)
        if self.keep_changes_bytes is not None:
            self._number("keep_changes_bytes", 0, 1 << 50)
        self._number("expiry_grace_s", 0.0, 1e9)
        if self.compact_rate_bytes_s is not None:
            self._number("compact_rate_bytes_s", 1, 1 << 50)
        if not isinstance(self.shared, bool):
            raise TypeError(f"shared must be True or False, not {self.shared!r}")
        self._number("busy_timeout_s", 0.0, 86_400.0)
        if self.follow is not None:
            self._number("follow", 0.001, 86_400.0)
        if self.max_open_segments is not None:
            self._number("max_open_segments", 1, 1 << 20)
        if not (self.listener is None or callable(self.listener)):
            raise TypeError(f"listener must be callable, not {type(self.listener).__name__}")
        if self.listener is not None:
            from . import events  # noqa: F401  # now, for later there may be no descriptor left to read it with

    def _number(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        wanted = int if isinstance(low, int) else (int, float)
        if isinstance(value, bool) or not isinstance(value, wanted):
            raise TypeError(f"{name} must be a number, not {type(value).__name__}")
        if not low <= value <= high:
            raise LimitError(f"{name} must lie between {low} and {high}, not {value}")

    @classmethod
    def names(cls) -> list[str]:
        """List the names of all options."""
        return list(cls.__annotations__)
