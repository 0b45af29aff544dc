"""Segment writer: append to the active segment.

A segment is *active* while a `Writer` appends to it and *sealed* for ever after. The writer has two
ways to the same bytes. With a mapping, the file is preallocated in steps and an append is one copy
into memory that the kernel owns, so it survives the process without a system call; what follows
the last entry is zeros, and 0 is no entry's first byte. Without one, an append is a ``pwrite``.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterator
from itertools import pairwise

from ..._lean import TYPE_CHECKING, suppress
from ...errors import (
    BytekvError,
    DiskFullError,
    LimitError,
    StoreFailedError,
    SystemErrors,
    is_about,
)
from ..codec.checksum import seed_of
from ..codec.entry import SEGMENT_SHIFT
from ..codec.manifest import (
    MAX_NUMBER,
    MAX_SEQ_TO_BEGIN_AFTER,
    SEGMENT_HEADER_SIZE,
    SegmentHeader,
    encode_segment_header,
)
from .directory import Directory
from .open_segments import PreadFile, SegmentFile
from .scan import open_segment

if TYPE_CHECKING:
    from typing import Final

__all__ = ["Writer", "header_for"]

_LAST_STEP: Final = 32 * 1024 * 1024
_POPULATE: Final = 1024 * 1024


class Writer:
    """Append to one segment. Not thread-safe: the caller holds the store's lock.

    ``limit`` is the size at which it is full, which may change; ``end`` is where the next entry goes; ``room_end``
    is how far `map` may be written without asking (allocated, populated, and below the limit); ``fast_end`` is the
    same, or less where the committer must be asked all the same. The short cuts in engine/fast.py use them.
    """

    __slots__ = (
        "_descriptor",
        "_files",
        "_largest_step",
        "_mapped",
        "_populated",
        "_reserves",
        "_sync_failed",
        "_tuning",
        "allocated",
        "base",
        "dirty",
        "end",
        "fast_end",
        "header",
        "limit",
        "map",
        "path",
        "room_end",
        "seed",
    )

    def __init__(
        self,
        descriptor: int,
        header: SegmentHeader,
        end: int,
        limit: int,
        directory: Directory,
        *,
        mapped: bool,
        reserves: bool = False,
    ) -> None:
        self._files = directory.files
        self._tuning = directory.tuning
        self._descriptor: int | None = descriptor
        self.limit = limit
        self._mapped = mapped
        self._reserves = reserves or mapped
        self.allocated = end
        self._largest_step = _LAST_STEP
        self._populated = end
        self.path = directory.segment_path(header.segment_id)
        self.header = header
        self.seed = seed_of(header.salt)
        self.base = header.segment_id << SEGMENT_SHIFT
        self.map: mmap.mmap | None = None
        self.end = end
        self.fast_end = self.room_end = 0
        self._sync_failed = False
        self.dirty = False  # whether bytes were appended since the segment was opened

    @classmethod
    def create(
        cls, directory: Directory, header: SegmentHeader, limit: int, *, mapped: bool, reserves: bool = False
    ) -> Writer:
        """Create a segment whose header and name are durable; `DiskFullError` leaves nothing behind."""
        path = directory.segment_path(header.segment_id)
        files = directory.files
        descriptor = files.open_new(path)
        writer = cls(descriptor, header, SEGMENT_HEADER_SIZE, limit, directory, mapped=mapped, reserves=reserves)
        try:
            files.write(descriptor, encode_segment_header(header), 0, path)
            if writer._reserves:
                writer._grow(SEGMENT_HEADER_SIZE + 1, use_reserve=True)
            files.sync(descriptor, path)
            directory.sync()
        except BaseException:
            # A failed posix_fallocate keeps what it got, perhaps the last free blocks of the disk.
            writer.close()
            with suppress(BytekvError):  # else it is a leftover; `Files.open_new` removes it
                files.unlink(path)
            raise
        return writer

    def begin(self, previous: tuple[int, int], limit: int) -> None:
        """Let a segment that was made beforehand, and is listed nowhere yet, follow this one; durable on return."""
        assert self._descriptor is not None
        self.limit = limit
        self.header = self.header._replace(previous_id=previous[0], previous_seq=previous[1])
        self._files.write(self._descriptor, encode_segment_header(self.header), 0, self.path)
        self._files.sync(self._descriptor, self.path)

    @classmethod
    def resume(
        cls, directory: Directory, segment_id: int, end: int, limit: int, *, mapped: bool, reserves: bool = False
    ) -> Writer:
        """Continue a segment that was closed cleanly at ``end``."""
        descriptor, header = open_segment(directory, segment_id, for_writing=True)
        return cls(descriptor, header, end, limit, directory, mapped=mapped, reserves=reserves)

    @classmethod
    def attach(cls, directory: Directory, segment_id: int, end: int, limit: int) -> Writer:
        """Append to a segment that other processes append to, too; ``end`` is how far it has been read."""
        descriptor, header = open_segment(directory, segment_id, for_writing=True)
        writer = cls(descriptor, header, end, limit, directory, mapped=True)
        try:
            writer.see(end, directory.files.size(descriptor, writer.path))
        except BaseException:
            writer.close()
            raise
        return writer

    def see(self, end: int, allocated: int) -> bool:
        """Note how far another process has appended and allocated; True if `map` is another one now.

        Nobody may touch what lies after ``end`` without the turn: a segment that is sealed is cut off there.
        """
        assert self._descriptor is not None
        is_new = self.map is None or allocated != self.allocated
        if is_new:
            self.map = self._files.map(self._descriptor, allocated, self.path, write=True)
            self.fast_end = self.room_end = 0
        self.allocated = allocated
        self._populated = min(max(self._populated, end), allocated)
        self.end = end
        self.dirty = True
        return is_new

    def measure(self) -> int:
        """Return how long the file is by now; another process may have made it longer."""
        assert self._descriptor is not None
        return self._files.size(self._descriptor, self.path)

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes of the file."""
        assert self._descriptor is not None
        return self._files.read(self._descriptor, size, offset, self.path)

    @property
    def has_other_names(self) -> bool:
        """Tell whether the file has a second name elsewhere."""
        assert self._descriptor is not None
        return self._files.has_other_names(self._descriptor, self.path)

    # --- room ----------------------------------------------------------------------------------

    def fits(self, size: int) -> bool:
        """Tell whether ``size`` bytes more stay within the segment's limit, or it is still empty."""
        return self.end + size <= self.limit or self.end == SEGMENT_HEADER_SIZE

    def make_room(self, size: int, *, use_reserve: bool = False) -> None:
        """Allocate and populate so that ``size`` bytes can be appended; `DiskFullError` changes nothing.

        Only after `open_room` may more than that be used.
        """
        if not self._reserves:
            return
        stop = self.end + size
        kept_back = self._tuning.manifest_room if use_reserve else self._tuning.reserve
        if stop + kept_back > self.allocated:
            self._grow(stop, use_reserve=use_reserve)
        if self.map is None:
            return
        if stop > self._populated:
            ahead = min(max(stop, self._populated + _POPULATE), self.allocated)
            self._files.populate(self.map, self._populated, ahead)
            self._populated = ahead

    def open_room(self, *, fast: bool) -> None:
        """Say how far may be written from now on without asking, on the hot path, too, if ``fast``."""
        if self.map is not None:
            self.room_end = min(self._populated, self.limit, self.allocated - self._tuning.reserve)
            self.fast_end = self.room_end if fast else 0

    def reserve_holds(self, size: int) -> bool:
        """Tell whether ``size`` bytes fit into what is kept back for deletes."""
        return not self._reserves or self.end + size + self._tuning.manifest_room <= self.allocated

    def _grow(self, stop: int, *, use_reserve: bool) -> None:
        """Allocate generously; where the disk is nearly full, less, down to what is needed."""
        assert self._descriptor is not None
        targets = list(dict.fromkeys(self._targets(stop, use_reserve=use_reserve)))
        while True:
            target = targets.pop(0)
            try:
                self._files.reserve(self._descriptor, target, self.path)
                break
            except BytekvError as error:
                with suppress(BytekvError):  # the error that matters is the first
                    self._files.truncate(self._descriptor, self.allocated, self.path)
                if not isinstance(error, DiskFullError) or not targets:
                    raise
                # Half of it, for each refusal costs a millisecond.
                self._largest_step = max(self._tuning.first_step, (target - self.allocated) // 2)
        if self._mapped:
            self.map = self._files.map(self._descriptor, target, self.path, write=True)
        self.allocated = target
        self._populated = min(self._populated, self.end)

    def _targets(self, stop: int, *, use_reserve: bool) -> Iterator[int]:
        reserve, first_step = self._tuning.reserve, self._tuning.first_step
        whole = max(self.limit, stop) + reserve
        at_most = max(first_step, min(self._largest_step, self.limit // 8))  # what is allocated ahead takes space, too
        step = min(max(first_step, self.allocated), at_most)
        while step >= first_step:
            yield min(max(self.allocated + step, stop + reserve), whole)
            step //= 2
        yield stop + reserve
        if use_reserve:
            yield stop + self._tuning.manifest_room

    # --- bytes ---------------------------------------------------------------------------------

    def write(self, offset: int, parts: list[bytes]) -> None:
        """Put ``parts`` at ``offset``; room must have been made. Repeating it is harmless.

        Through a mapping this cannot fail. With ``pwrite`` a part may be there when it raises; see `take_back`.
        """
        self.dirty = True
        if self.map is not None:
            for part in parts:
                stop = offset + len(part)
                self.map[offset:stop] = part
                offset = stop
            return
        assert self._descriptor is not None
        self._files.write(self._descriptor, b"".join(parts), offset, self.path)

    def take_back(self, offset: int, parts: list[bytes]) -> bool:
        """Cut off what a `write` that raised has left; False if the file may hold all of it nevertheless.

        A part of it lies after ``end``, fails its check, and is overwritten by the next append.
        """
        if self.map is not None:
            return False
        assert self._descriptor is not None
        try:
            self._files.truncate(self._descriptor, offset, self.path)
            self.allocated = offset
        except BytekvError:
            piece = b"".join(parts)
            try:
                return self._files.read(self._descriptor, len(piece), offset, self.path) != piece
            except SystemErrors:
                return False
        return True

    def readable(self) -> SegmentFile:
        """Return what readers slice: the mapping, or a reader of the file."""
        if self.map is not None:
            return self.map
        assert self._descriptor is not None
        return PreadFile(self._files.duplicate(self._descriptor, self.path), self.path, self._files)

    def sync(self) -> None:
        """Make everything appended durable. Blocks; the GIL is free meanwhile.

        The kernel tells an error once, and a call that was interrupted as it was told has told nobody: once one has
        failed, all do.
        """
        assert self._descriptor is not None
        if self._sync_failed:
            raise StoreFailedError(f"{self.path}: an earlier sync has failed; close the store and open it again")
        try:
            self._files.sync(self._descriptor, self.path)
        except StoreFailedError as error:
            self._sync_failed = True  # first, for an interrupt may follow
            self._sync_failed = is_about(error, self.path)
            raise
        except BaseException as interrupt:
            # A signal waits while the system syncs, and its handler runs where the error is met.
            met = interrupt.__context__
            while met is not None:
                trace = met.__traceback__
                is_told_here = trace is not None and trace.tb_frame.f_back is sys._getframe()  # not in the handler
                if is_told_here and isinstance(met, (OSError, StoreFailedError)):
                    self._sync_failed = True
                met = met.__context__
            raise

    def shrink_to_fit(self) -> None:
        """Give back what was allocated and is not needed yet, so that a manifest finds a block."""
        if self._descriptor is not None and self.allocated > self.end:
            self._files.truncate(self._descriptor, self.end, self.path)
            self.allocated = self._populated = self.end
            self.fast_end = self.room_end = 0
            self.map = None

    def trim(self) -> None:
        """Give back what was allocated after the last entry. Only once nothing will be appended."""
        if self._descriptor is not None and self.allocated != self.end:
            self._files.truncate(self._descriptor, self.end, self.path)
            self.allocated = self.end
            self.fast_end = self.room_end = 0

    def check(self) -> list[str]:
        """Return what is wrong with how far it may be written, in words. Under the lock, for tests."""
        marks = {
            "header": SEGMENT_HEADER_SIZE,
            "end": self.end,
            "allocated": self.allocated if self._reserves else self.end,
        }
        pairs = pairwise(marks.items())
        wrong = [f"{low} {here} > {high} {there}" for (low, here), (high, there) in pairs if here > there]
        if self.fast_end > self.room_end:
            wrong.append(f"fast_end {self.fast_end} > room_end {self.room_end}")
        if self.map is not None and self.room_end > self._populated:
            wrong.append(f"room_end {self.room_end} > populated {self._populated}")
        if self.map is not None and self._populated > self.allocated:  # a sync mark may lie beyond what is populated
            wrong.append(f"populated {self._populated} > allocated {self.allocated}")
        return wrong

    def close(self) -> None:
        """Close the descriptor; a mapping in a reader's hands stays valid."""
        descriptor, self._descriptor = self._descriptor, None
        self.fast_end = self.room_end = 0
        self.map = None
        if descriptor is not None:
            self._files.close(descriptor)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):  # else __init__ was interrupted
            self.close()


def header_for(
    directory: Directory, uuid: bytes, segment_id: int, kind: int, previous: tuple[int, int]
) -> SegmentHeader:
    """Return the header of a new segment, with a salt of its own; `LimitError` if ids or seqs are used up."""
    if segment_id >= MAX_NUMBER or previous[1] > MAX_SEQ_TO_BEGIN_AFTER:
        raise LimitError(f"{directory.path}: no segment {segment_id} can begin after seq {previous[1]}")
    salt = int.from_bytes(directory.files.random(8), "little")
    return SegmentHeader(uuid, segment_id, salt, kind, *previous)
