"""State of an open store: log, index, locks, and why writes are refused.

Everything that changes a store takes the State: the committer and its durability, the compactor, a follower, a backup.

*Locks*, in this order: `compacting` (one compaction, verification or refresh at a time), `sync_lock` (one sync at a
time), `lock` (everything else). No user code, logging included, runs under `sync_lock` or `lock`.

*Interrupted calls.* KeyboardInterrupt and MemoryError may strike between any two bytecodes. So a call that is about to
change something says in `intent` what that is, as absolute facts, and the next call carries it out once more before it
does anything else. write/change.py draws the states of `intent`.

*Handlers.* A signal handler or a finaliser runs in the middle of its own thread's call, and the lock lets its own
thread in once more. So a thread that takes the lock says so, ``with state.lock, state:``, and a call of the user's asks
first: `check_reentry`, `check_write`, `check_idle`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from .._lean import TYPE_CHECKING, log
from ..errors import BytekvError, CorruptionError, ReentryError, StoreFailedError, SystemErrors, is_about
from ..options import Options
from .codec.entry import SIZE_MASK
from .index.keydir import PURGED_AT_ONCE, Keydir
from .index.order import Ordered, dismantle, ordered
from .listener import tell
from .log.segment_manager import SegmentManager
from .log.sizes import sizes_of

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, Final, NoReturn, Protocol

    from ..events import Event

    class Intent(Protocol):
        """What a call is about to do, as absolute facts: to carry it out twice is the same as once."""

        def redo(self, state: State) -> None:
            """Carry it out, perhaps for the second time. Under the lock."""


__all__ = ["ALONE", "ENTERED", "REENTRY", "State", "Turn", "owned"]

REENTRY: Final = "a signal handler, a finaliser or a callback called a store in the middle of its own thread's call"
_BREATH_S: Final = 0.001
_MOST_SLICES: Final = 1000  # of changed keys, after which an index is brought up to date at once: writers are faster


def owned(lock: Any) -> Callable[[], bool]:
    """Return what tells whether the calling thread holds a lock; see decision 0163 for why the lock is asked."""
    return lock._is_owned  # type: ignore[no-any-return]


class _Entered:
    """A thread is inside the lock, and nothing has to be carried out again."""

    __slots__ = ()

    def redo(self, state: State) -> None:
        """Do nothing."""


ENTERED: Final = _Entered()


class Turn:
    """The right to change the log and the set of segments; of a store that no other process writes to, always there."""

    def __init__(self) -> None:
        self.gate: Any = self  # what keeps the threads of this process apart, to be entered first

    def __enter__(self) -> None:
        """Wait for the turn and catch up with what the other processes have written. Without the store's locks."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell the other processes what has changed, and let them in."""

    def redo(self) -> None:
        """Have an interrupted change carried out, in a turn."""

    def announce(self) -> None:
        """Tell the other processes of what has been appended, before anybody sees it here. Under the lock."""


ALONE: Final = Turn()


class State:
    """What an open store is at this moment."""

    __slots__ = (
        "always",
        "compacting",
        "deferred_events",
        "dirty_since",
        "durable_seq",
        "failure",
        "files",
        "intent",
        "is_uncounted",
        "keydir",
        "lock",
        "lock_is_owned",
        "mode",
        "options",
        "queue",
        "readers_must_wait",
        "refusal",
        "segments",
        "seq",
        "sync_lock",
        "sync_lock_is_owned",
        "synced_seq",
        "throttles",
        "tuning",
        "turn",
        "wants_next",
        "wants_worker",
    )

    def __init__(self, segments: SegmentManager, keydir: Keydir, options: Options, last_seq: int) -> None:
        # --- the locks; replaced only in a child process and at the end of this one
        self.compacting: Any = threading.RLock()
        self.sync_lock: Any = threading.RLock()
        self.lock: Any = threading.RLock()
        self.lock_is_owned, self.sync_lock_is_owned = owned(self.lock), owned(self.sync_lock)

        # --- set once
        self.files = segments.directory.files
        self.tuning = segments.directory.tuning
        self.options = options
        self.mode = options.sync
        self.always = options.sync == "always"  # or False where nothing is written
        self.segments = segments  # readers use `open` without a lock
        self.keydir = keydir  # readers use `locations` without a lock
        self.turn: Turn = ALONE  # of this process, among those that share the store; taken before the locks

        # --- guarded by `lock`
        self.intent: Intent | None = None  # None: nobody is inside
        self.seq = last_seq  # of the last operation appended
        #: What has been appended and is not visible because it is not durable; durability.CommitQueue, its only user
        #: but for what changes put there.
        self.queue: Any = None
        self.failure: StoreFailedError | None = None  # a sync has failed; only `fail` sets it
        self.dirty_since: float | None = None  # when the oldest operation that is not durable was appended
        self.wants_next = False  # the worker should make the next segment, because this one is soon full
        self.wants_worker = False  # a segment was sealed: hints and a compaction may be due
        self.deferred_events: deque[tuple[Callable[..., None], Any, tuple[object, ...]]] = deque()  # for `emit`
        #: Fewer bytes may be counted as dead than are: a key was pointed elsewhere and not yet counted.
        self.is_uncounted = False

        # --- changed under `lock`, read without it
        self.refusal: Callable[[], BytekvError] | None = None  # closed, read-only, forked; set by the store
        self.durable_seq = last_seq  # and visible; set by Durability and a follower
        self.synced_seq = last_seq  # durable, though perhaps not all of it is visible yet
        #: Readers look at this before they read without the lock, and come to it if it is set. There are two causes: a
        #: batch is being shown, and nobody may see half of it; or a call was interrupted, and what it left on disk has
        #: happened, so that it has to be shown.
        self.readers_must_wait = False
        self.throttles = False  # a worker compacts, and writers that outrun it are slowed down; set by Maintenance

        self.measure()

    # --- who is inside -------------------------------------------------------------------------

    def __enter__(self) -> None:
        """Say, once the lock has been taken, that this thread is in the middle of something."""
        if self.intent is None:
            self.intent = ENTERED

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.intent is ENTERED:  # else an interrupted change, for the next call
            self.intent = None

    @property
    def is_entered(self) -> bool:
        """Tell whether this thread holds the lock: it is in the middle of a write."""
        return self.lock_is_owned()

    def check_reentry(self) -> None:
        """Raise `ReentryError` if this thread holds the lock; the first thing before it is taken."""
        if self.lock_is_owned():
            raise ReentryError(REENTRY)

    def check_write(self) -> None:
        """Raise `ReentryError` if this thread may not write, be it that it would have to wait for its own sync."""
        if self.lock_is_owned() or (self.always and self.sync_lock_is_owned()):
            raise ReentryError(REENTRY)

    def check_idle(self) -> None:
        """Raise `ReentryError` if this thread holds the lock or syncs; the first thing before a wait for a sync."""
        if self.lock_is_owned() or self.sync_lock_is_owned():
            raise ReentryError(REENTRY)

    def replace_locks(self, replacement: Callable[[Any], Any]) -> None:
        """Have all locks, which the caller holds, taken by way of their replacements from now on."""
        self.compacting = replacement(self.compacting)
        self.lock, self.sync_lock = replacement(self.lock), replacement(self.sync_lock)
        self.lock_is_owned, self.sync_lock_is_owned = owned(self.lock), owned(self.sync_lock)

    def forget_after_fork(self) -> None:
        """In a child process: the thread that held a lock does not exist, what it was at is the parent's to finish."""
        self.compacting, self.lock, self.sync_lock = threading.RLock(), threading.RLock(), threading.RLock()
        self.intent, self.readers_must_wait = None, False
        self.lock_is_owned, self.sync_lock_is_owned = owned(self.lock), owned(self.sync_lock)

    # --- what an interrupted call left ---------------------------------------------------------

    def ready(self) -> None:
        """Check that the store is usable and finish what was interrupted. Under the lock, which is said to be held."""
        if self.refusal is not None:
            raise self.refusal()
        if self.intent is None:
            self.intent = ENTERED
        segments = self.segments  # `is_unsettled` is written out
        if (segments.publishing is not None or segments.changing is not None) and self.failure is None:
            segments.settle()
        if self.intent is not ENTERED or self.is_uncounted:
            self.redo()
        if self.failure is not None:
            self.refuse_after_failure()

    def redo_interrupted(self) -> None:
        """Carry out what an interrupted call left; waits for a call that is under way in another thread."""
        self.check_reentry()
        with self.lock, self:
            if self.intent is not ENTERED or self.is_uncounted:
                self.redo()

    def redo(self) -> None:
        """Carry out the intent, if there is one, and count what an interrupted call has not counted. Under the lock."""
        intent = self.intent
        if intent is not None and intent is not ENTERED:
            self.is_uncounted = True
            intent.redo(self)
        self.intent = ENTERED
        if self.is_uncounted:
            self.recount()

    # --- why writes are refused ----------------------------------------------------------------

    def require_slow_path(self) -> None:
        """Have the next put go the long way, which looks at everything that the short one does not."""
        if self.segments.writer is not None:
            self.segments.writer.fast_end = 0

    def fail(self, error: BaseException) -> None:
        """Refuse writes from now on. What waited for the failed sync stays invisible; the next open decides.

        What another store says, in a signal handler or a callback, is an interrupt like any other.
        """
        if isinstance(error, StoreFailedError) and not is_about(error, self.segments.directory.path):
            return
        if self.failure is None:
            # A copy: the error itself keeps the frames it went through, and with them files and the store.
            self.failure = StoreFailedError(str(error) if isinstance(error, BytekvError) else repr(error))
            self.defer(log.info, "%s; no more writes until then", str(self.failure))
        if self.queue.changes:
            self.became_durable(self.synced_seq)  # an earlier sync's: half of a change may have been shown
        self.queue.forget_all()
        self.require_slow_path()

    def refuse_after_failure(self) -> NoReturn:
        """Raise `StoreFailedError`: writes have been refused since `failure`."""
        raise StoreFailedError(
            f"{self.segments.directory.path}: writes have been refused since this: {self.failure}; reading goes on, "
            "for writing close the store and open it again"
        ) from self.failure

    def only_read(self, durable_seq: int, refusal: Callable[[], BytekvError]) -> None:
        """Refuse writes; what was read is visible in every mode, whether it is known to be durable or not."""
        self.durable_seq, self.refusal = durable_seq, refusal
        self.always = False

    # --- what is visible -----------------------------------------------------------------------

    @property
    def visible_seq(self) -> int:
        """Return the seq of the newest operation that readers see."""
        return self.durable_seq if self.always else self.seq

    def became_durable(self, seq: int, began: float | None = None) -> None:
        """Note that everything up to ``seq`` is durable and show what waited for that. Under the lock.

        ``began``: when the sync began; what was appended since is that old at most.
        """
        self.synced_seq = max(self.synced_seq, seq)
        self.queue.show(seq, self)
        if self.is_uncounted:
            self.recount_what_is_shown()
        self.durable_seq = max(self.durable_seq, seq)
        if self.durable_seq == self.seq:
            self.dirty_since = None
            if self.mode == "interval":
                self.require_slow_path()  # where the next put wakes the worker
        elif self.mode == "interval":
            self.dirty_since = began

    # --- events --------------------------------------------------------------------------------

    def defer(self, say: Callable[..., None], text: str, *values: object) -> None:
        """Have something logged once the lock is free."""
        self.deferred_events.append((say, text, values))

    def emit(self) -> None:
        """Log what happened under the lock, and tell the listener. Without the lock: both are user code."""
        events = self.deferred_events  # never another one: a thread may be about to append to this
        while events:
            try:
                say, text, values = events.popleft()
            except IndexError:  # another thread has taken the last one
                return
            say(text, *values)

    def tell_later(self, event: Event) -> None:
        """Have the listener told of an event once the lock is free."""
        self.deferred_events.append((tell, self.options.listener, (event,)))

    # --- counts --------------------------------------------------------------------------------

    def count_again(self) -> None:
        """Have the dead bytes counted anew before the next write: the caller was interrupted while counting."""
        self.is_uncounted = True

    def count_if_due(self) -> None:
        """Count the dead bytes anew if `count_again` asked for it. Under the lock."""
        if self.is_uncounted:
            self.recount()

    def recount(self) -> None:
        """Count the dead bytes anew, or leave it to `became_durable` if a change that waits is shown by half."""
        if not self.queue.changes:
            self.recount_what_is_shown()

    def recount_what_is_shown(self) -> None:
        """Count the dead bytes anew; of what waits nothing has been shown, so it is neither dead nor live."""
        entry_bytes = self.segments.lengths_of_entries()
        for change in self.queue.changes:
            entry_bytes[change.writer.header.segment_id] -= change.end - change.offset
        self.keydir.recount(entry_bytes, self.size_of)
        self.is_uncounted = False

    def size_of(self, location: int | None) -> int:
        """Return the bytes that an entry takes, 0 for None and for one that cannot be read."""
        if location is None:
            return 0
        if size := location & SIZE_MASK:
            return size
        try:
            return self.segments.open.entry_size(location)
        except (*SystemErrors, CorruptionError, KeyError):
            return 0  # only a count, and the entry itself says what is wrong when it is read

    def measure(self) -> int:
        """Let everything be as large as suits what lives now; return the dead bytes. Under the lock.

        Complexity: O(number of segments).
        """
        dead = self.keydir.usage.total_gone()
        self.segments.resize(sizes_of(sum(self.segments.lengths().values()) - dead, self.options, self.tuning))
        return dead

    # --- time and order ------------------------------------------------------------------------

    def purge(self, pause: Callable[[], object]) -> None:
        """Take every key out of the keydir whose time has come, some at a time, with a ``pause`` between them."""
        while self.purge_slice(PURGED_AT_ONCE):
            pause()

    def purge_slice(self, count: int) -> bool:
        """Take the lock and do what `purge_some` does."""
        self.check_reentry()
        with self.lock, self:
            return self.purge_some(count)

    def purge_some(self, count: int = PURGED_AT_ONCE) -> bool:
        """Take ``count`` keys at most out of the keydir whose time has come; tell whether there may be more.

        Under the lock, which is said to be held. Complexity: about 1.5 µs a key.
        """
        uncounted, self.is_uncounted = self.is_uncounted, True
        is_more = self.keydir.purge_some(self.files.now_ms(), self.size_of, count)
        self.is_uncounted = uncounted
        return is_more

    def order(self, kept: Ordered) -> None:
        """Do the long part of bringing an index up to date, and let writers in meanwhile. Without the lock."""
        self.check_reentry()
        if not kept.is_order_due:
            return
        with self.lock, self:
            new = kept.begin_order()
        if new is not None:
            order, keys = new
            dismantle(order[0])
            index = ordered(keys, self.tuning.sorted_keys)
            with self.lock, self:
                kept.end_order(order, index)
        for _ in range(_MOST_SLICES):
            if not kept.is_order_due:
                return
            with self.lock, self:
                kept.order_some()
            self.files.pause(_BREATH_S)  # else this thread has the lock again before anybody wakes
