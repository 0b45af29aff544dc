"""Store directory: names, manifest, sweep, quarantine.

========================  ======================================================================
name                      losing it
========================  ======================================================================
``LOCK``                  harmless while no writer runs; one that runs writes no more. Never unlinked by us
``SHARED``                harmless while no writer runs: those that share the store meet in it. Never unlinked by us
``MANIFEST``              the store refuses to open (it would otherwise seem empty)
``MANIFEST.new``          harmless: a manifest that was not yet published
``BACKUP.unfinished``     there is no store yet: a first backup has not come to its end
``segment.new``           harmless: a segment that a backup has not finished
``NNNNNNNNNN.seg``        the entries of that segment; the store refuses to open
``NNNNNNNNNN.hint``       harmless: rebuilt from its segment
``quarantine/``           what recovery cut off or set aside, for a person to look at
========================  ======================================================================

File names are made from integers and parsed back strictly; no string from disk ever names a file.
Nothing else in the directory is touched.

The directory is opened once and held: names are looked up in it, not along a path that may lead elsewhere tomorrow.
Before each change of a name `files` makes sure that the lock file is still there: a writer whose store was deleted or
replaced changes nothing any more.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from operator import eq

from ..._lean import suppress
from ...errors import (
    BytekvError,
    CorruptionError,
    NotAStoreError,
    StoreIOError,
    StoreLockedError,
    StoreNotFoundError,
)
from ..codec.entry import is_zero
from ..codec.manifest import MAX_NUMBER, Manifest, decode_manifest, encode_manifest
from ..tuning import TUNING, Tuning
from .files import Files, Folder
from .lock import LOCK, SHARED, Lock

__all__ = ["Directory"]

_MANIFEST = "MANIFEST"
_MANIFEST_NEW = "MANIFEST.new"
_QUARANTINE = "quarantine"
_UNFINISHED = "BACKUP.unfinished"
_IDS_AHEAD = 1 << 32  # more segments than a store makes; a file whose id lies further ahead is not its own
_SEGMENT_NEW = "segment.new"
_PIECE = 1 << 20  # bytes read at once
_SMALL = 4096

# A manifest of the most segments that the format allows takes 36 MiB; nothing larger is read.
_MAX_MANIFEST_SIZE = 64 << 20


def parse_name(name: str) -> tuple[int, str] | None:
    """Return (segment id, "seg" or "hint") of a file name, None if it is no such name.

    >>> parse_name("0000000012.seg")
    (12, 'seg')
    >>> parse_name("00000000012.seg") is None  # not how 12 is written
    True
    """
    digits, _, kind = name.partition(".")
    if kind not in ("seg", "hint") or not 10 <= len(digits) <= 19 or not (digits.isascii() and digits.isdigit()):
        return None
    segment_id = int(digits)
    return (segment_id, kind) if digits == f"{segment_id:010d}" and 0 < segment_id < MAX_NUMBER else None


class Directory:
    """Own the names of one store."""

    def __init__(self, path: str, files: Files, folder: Folder | None = None, tuning: Tuning = TUNING) -> None:
        self.path = path
        self.files = files
        self.tuning = tuning  # what was handed to the store, for all that is made of it
        self.folder = folder = files.folder(path) if folder is None else folder
        self._lock = Lock(path, files, folder)

    # --- names ---------------------------------------------------------------------------------

    def segment_path(self, segment_id: int) -> str:
        """Return the path of a segment."""
        return self.folder.place(f"{segment_id:010d}.seg")

    def hint_path(self, segment_id: int) -> str:
        """Return the path of a segment's hint file."""
        return self.folder.place(f"{segment_id:010d}.hint")

    @property
    def manifest_path(self) -> str:
        """Return the path of the manifest."""
        return self.folder.place(_MANIFEST)

    @property
    def segment_new_path(self) -> str:
        """Return the path under which a backup makes a segment."""
        return self.folder.place(_SEGMENT_NEW)

    def sync(self) -> None:
        """Make the names in the directory durable."""
        self.files.sync_directory(self.folder)

    def share(self) -> Directory:
        """Return the same directory for a reader that goes on after the store was closed; to be released by itself."""
        return Directory(self.path, self.files, self.folder.share(), self.tuning)

    def check_there(self) -> None:
        """Raise the error for it if the store itself has gone, and not one file of it."""
        self.folder.prove()
        if self.files.is_gone(self.folder):
            raise StoreIOError(
                errno.ESTALE, "the directory was removed; close this store and open what is there now", self.path
            )

    # --- finding or creating a store -----------------------------------------------------------

    def find(self, *, lost_manifest_allowed: bool = False) -> None:
        """Check that a store is here; raise the error that says what is here instead."""
        if self._holds_store(set(self.files.list(self.folder)), lost_manifest_allowed=lost_manifest_allowed):
            return
        raise NotAStoreError(f"{self.path}: a directory without a store (it has no {_MANIFEST})")

    def find_or_make(self, *, lost_manifest_allowed: bool = False) -> bool:
        """Check that a store is here or may be made here; True if it is to be made.

        Creates the directory and its missing parents, and nothing else: a directory that holds foreign
        files is left exactly as it is.
        """
        try:
            is_made = self.files.make_directory(self.path)
        except StoreNotFoundError:
            made: list[str] = []
            try:
                self._make_parents(made)
                is_made = self.files.make_directory(self.path)
            except BaseException:
                for parent in reversed(made):  # a name that is too long, a disk that is full: nothing has changed
                    with suppress(BytekvError):
                        self.files.remove_directory(parent)
                raise
        if is_made:
            self._sync_parent()
        names = set(self.files.list(self.folder))
        if self._holds_store(names, lost_manifest_allowed=lost_manifest_allowed):
            return False
        if strangers := names - {LOCK, SHARED, _MANIFEST_NEW}:
            raise NotAStoreError(
                f"{self.path}: a directory with other files ({min(strangers)!r}) but no store; use an empty or new one"
            )
        return True

    def _make_parents(self, made: list[str]) -> None:
        """Create the missing parents of the directory, which join ``made``, and make the name of each durable."""
        missing = []
        path = os.path.dirname(self.path)
        while not self.files.exists(path) and os.path.dirname(path) != path:
            missing.append(path)
            path = os.path.dirname(path)
        for path in reversed(missing):
            if self.files.make_directory(path):  # else another process has meanwhile, and perhaps not synced it yet
                made.append(path)
            self.files.sync_directory(os.path.dirname(path))

    def make_for_backup(self) -> None:
        """Check that a backup may be written here, before anything is made but the directory."""
        if self.files.make_directory(self.path):
            self._sync_parent()
        self._is_without_backup()

    def begin_backup(self) -> bool:
        """Mark the directory if a backup here is the first; True if it is. Under the lock: another may just have been
        made."""
        is_first = self._is_without_backup()
        if is_first:
            self.files.close(self.files.open_new(self.folder.place(_UNFINISHED)))
            self.sync()
        return is_first

    def _is_without_backup(self) -> bool:
        names = set(self.files.list(self.folder))
        if _MANIFEST in names:
            return False
        ours = {LOCK, SHARED, _MANIFEST_NEW, _SEGMENT_NEW, _UNFINISHED}
        if _UNFINISHED in names:
            ours |= {name for name in names if parse_name(name)}
        if strangers := names - ours:
            raise NotAStoreError(
                f"{self.path}: a directory with other files ({min(strangers)!r}); use an empty or new one for a backup"
            )
        return True

    def finish_backup(self) -> None:
        """Take the mark of an unfinished backup away; its manifest is durable."""
        if self.files.unlink(self.folder.place(_UNFINISHED)):
            self.sync()

    def _holds_store(self, names: set[str], *, lost_manifest_allowed: bool) -> bool:
        if _MANIFEST in names:
            return True
        if _UNFINISHED in names:
            raise NotAStoreError(f"{self.path}: an unfinished backup; make it once more")
        if not any(map(parse_name, names)):
            return False
        if not lost_manifest_allowed:
            raise CorruptionError(
                self.manifest_path,
                0,
                "missing, but there are segments; restore it, or have bytekv.repair(path) or bytekv repair make it",
            )
        return True

    def _sync_parent(self) -> None:
        self.files.sync_directory(self.folder.parent)

    # --- the lock ------------------------------------------------------------------------------

    def acquire(self, *, network_allowed: bool = False, shared: bool = False) -> bool:
        """Become the writer, or one of several; tell whether there is no other, see `Lock.acquire`."""
        return self._lock.acquire(network_allowed=network_allowed, shared=shared)

    def not_alone(self) -> StoreLockedError:
        """Return the error of a writer that shares the store, but had to be the first, see `Lock.not_alone`."""
        return self._lock.not_alone()

    def share_lock(self) -> None:
        """Let others share the store from now on, see `Lock.share`."""
        self._lock.share()

    def try_alone(self) -> bool:
        """Become the only one who has the store, or lose the lock, see `Lock.try_alone`."""
        return self._lock.try_alone()

    def release(self) -> None:
        """Give the lock back and close the directory; the second call does nothing."""
        self._lock.release()
        self.folder.close()

    def abandon(self) -> None:
        """Close what is held without unlocking it: in a child process that would free the parent's lock."""
        self._lock.abandon()

    # --- the manifest --------------------------------------------------------------------------

    def load(self, *, for_writing: bool) -> Manifest:
        """Read and check the manifest."""
        path, files = self.manifest_path, self.files
        try:
            descriptor = files.open(path)
        except StoreNotFoundError as error:
            self.check_there()
            raise CorruptionError(path, 0, "the manifest is missing, or has just vanished") from error
        try:
            size = files.size(descriptor, path)
            if size > _MAX_MANIFEST_SIZE:
                raise CorruptionError(path, 0, f"{size} bytes are too many for a manifest")
            data = files.read(descriptor, size, 0, path)
        finally:
            files.close(descriptor)
        return decode_manifest(data, path, for_writing=for_writing)

    def save(self, manifest: Manifest) -> None:
        """Replace the manifest; when this returns, the new one is durable.

        The order is the promise: (1) the new bytes are durable under another name, else a crash
        could leave an empty MANIFEST; (2) the rename, atomic for this and other processes; (3) the
        directory is durable, else a crash could bring back the old list, whose files we unlink next.
        Raises `DiskFullError` before anything changed, `StoreFailedError` if a sync failed.
        """
        files = self.files
        path = self.folder.place(_MANIFEST_NEW)
        try:
            descriptor = files.open_new(path)
            try:
                files.write(descriptor, encode_manifest(manifest), 0, path)
                files.sync(descriptor, path)
            finally:
                files.close(descriptor)
            files.replace(path, self.manifest_path)
        except BytekvError:
            with suppress(BytekvError):  # a leftover with a known name: the next open sweeps it
                files.unlink(path)
            raise
        self.sync()

    def create(self, manifest: Manifest) -> None:
        """Publish the first manifest of a store, or one that empties it."""
        self.save(manifest)
        self._sync_parent()  # a kill between mkdir and here left the directory's own name unsynced

    def sync_names(self, manifest: Manifest) -> None:
        """Make durable what a killed predecessor may have renamed but not synced."""
        self.sync()
        if manifest.generation <= 1:
            self._sync_parent()

    # --- leftovers -----------------------------------------------------------------------------

    def sweep(self, manifest: Manifest, kept: Iterable[int] = ()) -> list[str]:
        """Remove files of interrupted work; return their names.

        Only under the lock. Only names that bytekv makes, and only what the manifest does not list, nor ``kept`` does.
        """
        listed = {*(row.segment_id for row in manifest.segments), *kept}
        removed: list[str] = []
        for name in sorted(self.files.list(self.folder)):
            parsed = parse_name(name)
            if name in (_MANIFEST_NEW, _SEGMENT_NEW) or (parsed and parsed[0] not in listed):
                with suppress(BytekvError):  # a directory of that name, say: not ours, and not in the way
                    self.files.unlink(self.folder.place(name))
                    removed.append(name)
        if removed:
            self.sync()
        return removed

    def remove_segments(self, segment_ids: list[int]) -> None:
        """Remove segments and their hints; the oldest come first, so that no put outlives its tombstone."""
        for segment_id in segment_ids:
            self.files.unlink(self.segment_path(segment_id))
            self.files.unlink(self.hint_path(segment_id))

    def unused_id(self, next_id: int) -> int:
        """Return ``next_id``, or the id above those that files of interrupted work have: none is used twice."""
        limit = next_id + _IDS_AHEAD
        for name in filter(None, map(parse_name, self.files.list(self.folder))):
            if name[0] < limit:
                next_id = max(next_id, name[0] + 1)
        return next_id

    def segments_on_disk(self) -> list[int]:
        """List the ids of all segment files, for a repair without a manifest."""
        return sorted(name[0] for name in map(parse_name, self.files.list(self.folder)) if name and name[1] == "seg")

    # --- quarantine ----------------------------------------------------------------------------

    def quarantine(self, name: str, pieces: Iterable[bytes]) -> str:
        """Keep bytes that are about to be cut off; durable on return. Repeating it is harmless."""
        folder = self._quarantine([])
        try:
            return self._keep_pieces(folder, name, pieces)
        finally:
            folder.close()

    def quarantine_file(self, descriptor: int, path: str, name: str, size: int, made: list[str]) -> str:
        """Keep the first ``size`` bytes of a file that is about to be removed; durable on return.

        What is made for it is noted in ``made``, see `forget_quarantine`. The same file is kept once, and another
        one that was kept under this name stays. A second name takes no room on a full disk.
        """
        files = self.files
        folder = self._quarantine(made)
        try:
            stem, _, kind = name.rpartition(".")
            target, number = folder.place(name), 1
            while files.exists(target):
                if self._holds(target, descriptor, path, size):
                    files.sync_directory(folder)
                    return str(target)
                number += 1
                target = folder.place(f"{stem}-{number}.{kind}")
            made.append(target.name)
            files.sync(descriptor, path)
            is_ours = files.size(descriptor, path) == size and not files.has_other_names(descriptor, path)
            if is_ours and files.link(path, target):
                files.make_private(descriptor, path)
                files.sync_directory(folder)
                return str(target)
            return self._keep_pieces(folder, target.name, self._pieces_of(descriptor, path, size))
        finally:
            folder.close()

    def _quarantine(self, made: list[str]) -> Folder:
        place = self.folder.place(_QUARANTINE)
        if not self.files.exists(place):
            made.append("")
        if self.files.make_directory(place):
            self.sync()
        return self.files.folder(place)

    def _keep_pieces(self, folder: Folder, name: str, pieces: Iterable[bytes]) -> str:
        files = self.files
        target, temporary = folder.place(name), folder.place(name + ".new")
        descriptor = files.open_new(temporary)
        try:
            try:
                offset = 0
                for piece in pieces:
                    if not is_zero(piece):  # holes stay holes: what seems a terabyte may be empty
                        files.write(descriptor, piece, offset, temporary)
                    offset += len(piece)
                files.truncate(descriptor, offset, temporary)
                files.sync(descriptor, temporary)
            finally:
                files.close(descriptor)
            files.replace(temporary, target)
        except BaseException:
            with suppress(BytekvError):  # or half of it holds what is left of a full disk
                files.unlink(temporary)
            raise
        files.sync_directory(folder)
        return str(target)

    def _holds(self, target: str, descriptor: int, path: str, size: int) -> bool:
        """Tell whether a file in quarantine has the first bytes of another, and no more."""
        files = self.files
        kept = files.open(target)
        try:
            pieces = self._pieces_of(kept, target, size), self._pieces_of(descriptor, path, size)
            return files.size(kept, target) == size and all(map(eq, *pieces))
        finally:
            files.close(kept)

    def _pieces_of(self, descriptor: int, path: str, size: int) -> Iterator[bytes]:
        for at in range(0, size, _PIECE):
            yield self.files.read(descriptor, min(_PIECE, size - at), at, path)

    def forget_quarantine(self, made: list[str]) -> None:
        """Remove from quarantine what a repair that came to nothing has made there."""
        place = self.folder.place(_QUARANTINE)
        folder = self.files.folder(place)
        try:
            for name in reversed(made):
                with suppress(BytekvError):  # harmless, if it stays
                    if name:
                        self.files.unlink(folder.place(name + ".new"))
                        self.files.unlink(folder.place(name))
                    else:
                        self.files.remove_directory(place)
        finally:
            folder.close()

    def torn_tails(self, segment_id: int) -> Iterator[tuple[int, bytes]]:
        """Yield what recoveries have set aside of a segment: the offset that it followed, and how it begins."""
        place = self.folder.place(_QUARANTINE)
        if not self.files.exists(place):
            return
        folder = self.files.folder(place)
        try:
            for name in self.files.list(folder):
                stem, _, kind = name.partition(".")
                digits, _, offset = stem.partition("-")
                is_offset = offset.isascii() and offset.isdigit() and len(offset) <= 10
                if kind == "torn" and is_offset and parse_name(f"{digits}.seg") == (segment_id, "seg"):
                    torn = folder.place(name)
                    try:
                        descriptor = self.files.open(torn)
                    except StoreIOError as error:
                        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
                            raise
                        continue  # something else of that name
                    try:
                        yield int(offset), self.files.read(descriptor, _SMALL, 0, torn)
                    finally:
                        self.files.close(descriptor)
        finally:
            folder.close()

    def forget_new_manifest(self) -> None:
        """Remove a manifest that was not published."""
        with suppress(BytekvError):  # harmless, and swept by the next open
            self.files.unlink(self.folder.place(_MANIFEST_NEW))
