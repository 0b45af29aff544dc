"""Open segments: the files that are open for reading, at most a fixed number of them.

`OpenSegments.table` is what the hot path in `Store` reads without a lock: segment id to (file, CRC seed).
Entries appear when first needed and are dropped, oldest first, when too many files are open; a file in
a reader's hands stays valid. A reader that finds no entry asks `OpenSegments.get` for a new one.
"""

from __future__ import annotations

import errno
import mmap
import weakref

from ..._lean import TYPE_CHECKING
from ...errors import BytekvError, StoreIOError, StoreNotFoundError
from ..codec.checksum import seed_of
from ..codec.entry import StoredEntry, decode_entry, measure_entry, unpack_location
from ..codec.manifest import SegmentRow
from .directory import Directory
from .files import Files

if TYPE_CHECKING:
    from typing import Protocol

    class Segments(Protocol):
        """Which segments there are."""

        def row_of(self, segment_id: int) -> SegmentRow | None:
            """Return the row of a segment that may be read, None if it is gone."""

        def is_zombie(self, segment_id: int) -> bool:
            """Tell whether a segment was replaced, so that its file may be gone from the disk."""

        @property
        def active_id(self) -> int:
            """Return the id of the active segment, 0 if there is none."""


__all__ = ["OpenSegments", "PreadFile", "SegmentFile", "reaches"]


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


def reaches(file: SegmentFile, length: int) -> bool:
    """Tell whether a file shows the first ``length`` bytes of its segment as that is now.

    A file grows while it is open; one that has been replaced under its name does not.
    """
    try:
        return (file.size() if isinstance(file, PreadFile) else len(file)) >= length
    except BytekvError:
        return False


class OpenSegments:
    """Hold the files that are open for reading. Without a lock."""

    def __init__(self, directory: Directory, segments: Segments, *, mapped: bool, most: int | None) -> None:
        self._directory, self._mapped = directory, mapped
        self._segments: Segments = weakref.proxy(segments)  # no circle: a store that is forgotten goes at once
        self.table: dict[int, tuple[SegmentFile, int]] = {}
        if most is None:
            # Half of what the process may have: the other half is the application's. Each open segment
            # is one descriptor, held by the mapping (Python duplicates it) or by the file.
            most = max(4, min(4096, directory.files.open_file_limit() // 2 - 8))
        self.most = most

    def get(self, segment_id: int) -> tuple[SegmentFile, int]:
        """Return the file and the seed of a segment, opening it if need be; KeyError if it was replaced and reaped."""
        found = self.table.get(segment_id)
        if found is not None:
            return found
        row = self._segments.row_of(segment_id)
        if row is None:
            raise KeyError(segment_id)
        while True:
            try:
                found = self._open(row), seed_of(row.salt)
                break
            except StoreIOError as error:
                if error.errno == errno.ENOENT and self._segments.row_of(segment_id) is None:
                    raise KeyError(segment_id) from error  # reaped since the row was found
                if not self.give_back_for(error):
                    raise
        # Another thread may have opened it meanwhile. No lock keeps threads apart here, for a signal handler that waits
        # for the store's would keep it from the thread that holds that one.
        self._evict(self.most - 1)  # not before: for a reader that is in vain if the file is gone from the disk
        found = self.table.setdefault(segment_id, found)
        if self._segments.row_of(segment_id) is None:  # asked after: `reap` takes the row away before it looks here
            self.table.pop(segment_id, None)
        return found

    def _open(self, row: SegmentRow) -> SegmentFile:
        path, files = self._directory.segment_path(row.segment_id), self._directory.files
        try:
            descriptor = files.open(path)
        except StoreNotFoundError as error:
            self._directory.check_there()
            raise StoreIOError(
                errno.ENOENT,
                "was compacted away by the writer, and this reader had more segments than it may hold open "
                "(max_open_segments); close snapshots and scans, refresh() and look again",
                path,
            ) from error
        try:
            return self.file_of(descriptor, row.segment_id, row.length)
        finally:
            files.close(descriptor)

    def file_of(self, descriptor: int, segment_id: int, size: int) -> SegmentFile:
        """Return the first ``size`` bytes of an open segment as a file; the descriptor stays the caller's."""
        path, files = self._directory.segment_path(segment_id), self._directory.files
        if self._mapped:
            return files.map(descriptor, size, path)
        return PreadFile(files.duplicate(descriptor, path), path, files)

    def forget(self, segment_id: int) -> None:
        """Drop a segment from the table; a reader that has its file keeps it."""
        self.table.pop(segment_id, None)

    def give_back_for(self, error: StoreIOError) -> bool:
        """Drop half of what is open if descriptors or address space ran out; False if that is no help.

        The application has taken them, or may have no more: do with fewer, down to the one that is needed.
        """
        return error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM) and self._evict(len(self.table) // 2)

    def _evict(self, keep: int) -> bool:
        """Drop the segments that have been open longest until ``keep`` are left; False if none was dropped."""
        active = self._segments.active_id
        # Replaced in place: the hot path holds this very dict. Those that may be gone from the disk come last.
        sealed = sorted(
            (segment_id for segment_id in list(self.table) if segment_id != active), key=self._segments.is_zombie
        )
        dropped = sealed[: max(0, len(self.table) - keep)]
        for segment_id in dropped:
            self.table.pop(segment_id, None)
        return bool(dropped)

    # --- entries -------------------------------------------------------------------------------

    def raw(self, location: int) -> tuple[bytes, int, int, int]:
        """Return the unchecked bytes of an entry with its seed, segment id and offset; KeyError if it was reaped."""
        segment_id, offset, size = unpack_location(location)
        file, seed = self.get(segment_id)
        if not size:
            size = measure_entry(file[offset : offset + 7])
        return file[offset : offset + size], seed, segment_id, offset

    def read(self, location: int) -> StoredEntry:
        """Return the entry at a location, checked; KeyError if its segment was reaped meanwhile."""
        raw, seed, segment_id, offset = self.raw(location)
        return decode_entry(raw, seed, self._directory.segment_path(segment_id), offset)

    def entry_size(self, location: int) -> int:
        """Return the bytes that the entry at a location takes."""
        segment_id, offset, size = unpack_location(location)
        return size or measure_entry(self.get(segment_id)[0][offset : offset + 7])
