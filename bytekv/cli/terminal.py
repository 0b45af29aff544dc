"""Terminal output: progress bars, tables, sizes for people.

Progress goes to standard error and only if that is a terminal, so that scripts and logs stay clean. With `rich`
(the extra ``cli``) there is a bar with the time that is left, without it a percentage that counts up in place.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import TracebackType

from .._lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any, TextIO

    from ..contract.reports import Progress

__all__ = ["Bar", "quantity", "table"]


def quantity(size: float) -> str:
    """Return a number of bytes as people read it.

    >>> quantity(999), quantity(1536), quantity(5 << 30)
    ('999 B', '1.5 KiB', '5.0 GiB')
    """
    if size < 1000:
        return f"{size:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 1000:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} TiB"


class Bar:
    """Show the progress of a long operation, by a ``progress`` callback. Outside a terminal

    it shows nothing, and `callback` is None, so that nothing is counted needlessly.
    """

    def __init__(self, what: str, stream: TextIO | None = None, *, is_hidden: bool = False) -> None:
        self._what = what
        self._stream = sys.stderr if stream is None else stream
        self._rich: Any = None
        self._shown = -1
        self.callback: Callable[[Progress], object] | None = None
        if self._stream.isatty() and not is_hidden:
            self.callback = self.show

    def __enter__(self) -> Bar:
        if self.callback is not None:
            try:
                from rich import console, progress
            except ImportError:
                return self
            self._rich = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.TaskProgressColumn(),
                progress.TimeRemainingColumn(),
                console=console.Console(file=self._stream),
                transient=True,
            )
            self._task = self._rich.add_task(self._what, total=None)
            self._rich.start()
        return self

    def show(self, progress: Progress) -> None:
        """Show a new state; ``total_bytes`` may grow meanwhile."""
        done, total = progress
        if self._rich is not None:
            self._rich.update(self._task, completed=done, total=total)
            return
        percent = 100 * done // total if total else 0
        if percent != self._shown:
            self._shown = percent
            self._stream.write(f"\r{self._what} {percent} %")
            self._stream.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rich is not None:
            self._rich.stop()
        elif self._shown >= 0:
            self._stream.write("\r" + " " * (len(self._what) + 6) + "\r")
            self._stream.flush()


def table(head: Sequence[str], rows: Sequence[Sequence[object]], stream: TextIO | None = None) -> None:
    """Write a table of numbers: columns aligned by blanks, or drawn by `rich` on a terminal."""
    stream = sys.stdout if stream is None else stream
    texts = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    if stream.isatty():
        try:
            from rich import console
            from rich import table as rich_table
        except ImportError:
            pass
        else:
            drawn = rich_table.Table(*head)
            for column in drawn.columns:
                column.justify = "right"
            for row in texts:
                drawn.add_row(*row)
            console.Console(file=stream).print(drawn, markup=False)
            return
    widths = [max(map(len, column)) for column in zip(head, *texts, strict=True)]
    for row in [list(head), *texts]:
        stream.write("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) + "\n")
