"""Obsolete segments: replaced by a compaction, and removed once nobody reads them.

A replaced segment is a *zombie* as long as a key, a view or a pin may need it: keys until they point at its
replacement, when `replace` is called; views while they remember a location in it; pins while they are open. A zombie
that nobody needs is reaped under the lock, and its file is removed without it.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Container

from ..._lean import TYPE_CHECKING, suppress
from ...errors import StoreClosedError, SystemErrors
from ..codec.manifest import SegmentRow
from .directory import Directory

if TYPE_CHECKING:
    from .control_page import ControlPage

__all__ = ["Obsolete", "Pin"]


class Pin:
    """The segments of one moment, whose files stay until this is closed or dropped."""

    __slots__ = ("__weakref__", "_when_closed", "is_call", "lengths", "rows")

    def __init__(
        self, rows: tuple[SegmentRow, ...], lengths: list[int], when_closed: Callable[[Pin], None], is_call: bool
    ) -> None:
        self.is_call = is_call  # of a call that is under way, and ends by itself
        self.rows = rows
        self.lengths = lengths  # of each; the active segment is longer than its row says
        self._when_closed = when_closed

    def close(self) -> None:
        """Keep the files no longer; the second call does nothing."""
        self._when_closed(self)


class Obsolete:
    """Hold the segments that were replaced until their files may go. Needs the store's lock, but for `remove`."""

    def __init__(self, directory: Directory, *, readonly: bool) -> None:
        self._directory, self._readonly = directory, readonly
        self.zombies: dict[int, SegmentRow] = {}  # replaced, and perhaps still read
        self.replaced: list[int] = []  # those of them into which no key points; and those whose files are still there
        self._pins: dict[int, weakref.ref[Pin]] = {}
        self._pin_numbers = itertools.count()
        #: Of a store that other processes share: those may need a file, too, and say so on the page.
        self.page: ControlPage | None = None
        self.foreign: set[int] = set()  # replaced by another process, which removes the files
        self.retired: dict[int, int] = {}  # the newest generation of the manifest that listed a segment

    def replace(self, victims: list[int]) -> None:
        """Have the files of victims removed as soon as no view and no pin needs them; no key points there any more."""
        self.replaced += (victim for victim in victims if victim not in self.replaced)

    def add(self, row: SegmentRow) -> None:
        """Keep a file that is listed nowhere as long as views need it."""
        self.replaced.append(row.segment_id)  # in this order: a zombie that is not among these would stay
        self.zombies[row.segment_id] = row

    def kept_for(self, remembered: Container[int]) -> list[SegmentRow]:
        """Return the zombies into which no key points and that only the views keep that have ``remembered`` them."""
        pinned = self._pinned()
        kept = [segment_id for segment_id in self.replaced if segment_id in remembered and segment_id not in pinned]
        return [self.zombies[segment_id] for segment_id in kept if segment_id in self.zombies]

    def _pinned(self) -> set[int]:
        pins = [pin for reference in list(self._pins.values()) if (pin := reference()) is not None]
        return {row.segment_id for pin in pins for row in pin.rows}

    def pin(
        self, rows: tuple[SegmentRow, ...], lengths: list[int], when_closed: Callable[[], None], *, is_call: bool
    ) -> Pin:
        """Keep the files of these rows; ``when_closed`` is called when they are no longer kept. Under the lock."""
        pins, number = self._pins, next(self._pin_numbers)

        def unpin(_: object) -> None:
            if pins.pop(number, None) is not None:
                when_closed()

        pin = Pin(rows, lengths, unpin, is_call)
        pins[number] = weakref.ref(pin, unpin)  # one that leaks closes itself
        return pin

    def forget_pins(self) -> None:
        """Keep nothing for iterators any more: the store is being closed."""
        for number, reference in list(self._pins.items()):
            pin = reference()
            if pin is None or not pin.is_call:
                self._pins.pop(number, None)

    def reap(self, remembered: Container[int]) -> list[int]:
        """Forget the zombies that neither a view has ``remembered`` nor a pin lists; return them, oldest first."""
        pinned = self._pinned()
        free = [segment_id for segment_id in self.replaced if segment_id not in remembered and segment_id not in pinned]
        for segment_id in free:
            self.zombies.pop(segment_id, None)
        return free

    def remove(self, free: list[int]) -> None:
        """Remove files that were reaped; without the lock, for a large file takes milliseconds.

        What cannot be removed now waits for the next call, and what a backup outlives its store with for the next open.
        """
        for segment_id in free:
            try:
                if not self._unlink(segment_id):
                    continue  # another process needs it
            except SystemErrors:
                continue  # it is listed nowhere; at the latest the next open sweeps it
            except StoreClosedError:
                if not self._directory.folder.is_closed:
                    raise  # of a signal handler's
                return
            with suppress(ValueError):  # another thread was at it, too
                self.replaced.remove(segment_id)

    def _unlink(self, segment_id: int) -> bool:
        if self._readonly or segment_id in self.foreign:
            self.foreign.discard(segment_id)
            return True
        retired = self.retired.get(segment_id)
        if self.page is not None and retired is not None and self.page.is_pinned_elsewhere(retired):
            return False
        self._directory.remove_segments([segment_id])
        self.retired.pop(segment_id, None)
        return True

    @property
    def has_replaced(self) -> bool:
        """Tell whether replaced segments wait for a view to be closed."""
        return bool(self.replaced)

    @property
    def pinned_bytes(self) -> int:
        """Return how many bytes of replaced segments wait for a view to be closed."""
        replaced = set(self.replaced)
        return sum(row.length for victim, row in self.zombies.items() if victim in replaced)
