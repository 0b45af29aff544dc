"""Pacer: divide long work into slices, so that other threads have the interpreter in between."""

from __future__ import annotations

from .._lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final

    from .log.files import Files

__all__ = ["Pacer"]

_SLICE_S: Final = 0.0006  # of work in one go: a put that waits for it stays below a millisecond
_BREAK_S: Final = 0.00005  # the shortest sleep that another thread can use


class Pacer:
    """Divide work into slices, so that other threads have the interpreter in between.

    A thread that merely yields the interpreter has it back before another wakes; so a slice ends in a sleep. Threads
    that are busy then keep it for `sys.getswitchinterval`, 5 ms: the work has a share of a tenth beside them, and none
    of them waits for it longer than a slice.
    """

    def __init__(self, files: Files, rate_bytes_s: int | None = None) -> None:
        self._files, self._rate_bytes_s = files, rate_bytes_s
        self._slice_ends = self._paid_until = 0.0

    def rest(self, worked_bytes: int, *, hurries: bool = False) -> bool:
        """Sleep if it is time to, and tell whether it was; to be asked until it was not, every few dozen µs of work.

        ``worked_bytes`` since the last call count against the rate, unless it ``hurries``: somebody waits for the work.
        """
        now = self._files.monotonic()
        ahead_s = 0.0
        if self._rate_bytes_s is not None and not hurries:
            # Time is paid for with bytes; a tenth of a second may be paid in advance.
            self._paid_until = max(self._paid_until, now) + worked_bytes / self._rate_bytes_s
            ahead_s = self._paid_until - now - 0.1
        if now < self._slice_ends and ahead_s <= 0:
            return False
        self._files.pause(min(max(ahead_s, _BREAK_S), 0.05))
        self._slice_ends = self._files.monotonic() + _SLICE_S
        return True

    def go_on(self) -> None:
        """Let waiting threads in, where the work is what the caller waits for."""
        now = self._files.monotonic()
        if now >= self._slice_ends:
            self._files.yield_cpu()
            self._slice_ends = self._files.monotonic() + _SLICE_S
