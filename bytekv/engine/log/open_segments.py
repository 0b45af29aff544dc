"""Open segments: the files that are open for reading, by segment."""

from __future__ import annotations

import mmap

from .files import Files

__all__ = ["PreadFile", "SegmentFile"]


class PreadFile:
    """Look like a mapping, read with ``pread``: a failing disk raises instead of killing the process."""

    __slots__ = ("_descriptor", "_files", "_path")

    def __init__(self, descriptor: int, path: str, files: Files) -> None:
        self._descriptor, self._path, self._files = descriptor, path, files

    def __getitem__(self, part: slice) -> bytes:
        start: int = part.start
        return self._files.read(self._descriptor, part.stop - start, start, self._path)

    def size(self) -> int:
        """Return the length of the file, as a mapping does."""
        return self._files.size(self._descriptor, self._path)

    def __del__(self) -> None:
        if hasattr(self, "_files"):  # else __init__ was interrupted
            self._files.close(self._descriptor)


SegmentFile = mmap.mmap | PreadFile
