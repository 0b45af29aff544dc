"""Segment manager: which segments a store has, in which order, and which is active.

Owns the manifest, and therefore the only places where the set changes: roll (a new active segment),
replace (a compaction's outputs for its victims), seal (recovery, close). It does not know keys. Which
files are open is the secret of `open_segments`, when a replaced one may be removed that of `obsolete`.

The set is one immutable tuple, the manifest's rows: each change makes a new one, and a backup or
a feed, which needs one moment, holds the tuple of that moment by a `Pin`.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from functools import partial

from ..._lean import suppress
from ...errors import (
    BytekvError,
    CorruptionError,
    DiskFullError,
    LimitError,
    StoreFailedError,
    StoreIOError,
    SystemErrors,
)
from ...options import Options
from ..codec.hint import Hint
from ..codec.manifest import (
    ACTIVE,
    BACKUP,
    LOG,
    MAX_SEGMENTS,
    SEALED,
    SEGMENT_HEADER_SIZE,
    Manifest,
    SegmentRow,
    another_history,
)
from .directory import Directory
from .obsolete import Obsolete, Pin
from .open_segments import OpenSegments, SegmentFile, reaches
from .segment import Writer, header_for
from .sizes import Sizes, sizes_of
from .summary import build_hint, write_hint

__all__ = ["SegmentManager"]


def _unpin(kept: object, when_closed: Callable[[], None]) -> None:
    """Let the other processes remove files that were ``kept`` until now by being referenced here."""
    when_closed()


class SegmentManager:
    """Hold the segments of one open store. Changes need the store's lock; reading does not."""

    def __init__(
        self, directory: Directory, manifest: Manifest, options: Options, *, mapped: bool, readonly: bool = False
    ) -> None:
        self.directory = directory
        self.manifest = manifest
        self.mapped = mapped
        #: Preallocate, with blocks kept back for deletes, even where `pwrite` fills them.
        self._reserves = directory.files.maps_safely(directory.folder)
        self.writer: Writer | None = None
        self.prepared: Writer | None = None  # what `roll` will begin: made beforehand, durable, listed nowhere
        self.obsolete = Obsolete(directory, readonly=readonly)
        self.hinted: dict[int, int] = {}  # segment -> how many of its bytes a hint file speaks for, or was tried to
        self.publishing: Manifest | None = None  # set while a manifest is being replaced
        self.changing: tuple[Writer | None, Writer | None] | None = None  # (old, new) likewise
        self.sizes = sizes_of(0, options, directory.tuning)  # until the committer has measured
        self.open = OpenSegments(directory, self, mapped=mapped, most=options.max_open_segments)

    # --- what there is -------------------------------------------------------------------------

    def lengths(self) -> dict[int, int]:
        """Return the bytes used in each segment, in logical order."""
        lengths = {row.segment_id: row.length for row in self.manifest.segments}
        if self.writer is not None:
            lengths[self.writer.header.segment_id] = self.writer.end
        return lengths

    def with_keys(self) -> set[int]:
        """Return all segments into which a key may point: those listed, and victims whose keys are being moved.

        What is dead there is not asked: while keys are moved, the counts may be wrong.
        """
        return {*self.lengths(), *self.obsolete.zombies}.difference(self.obsolete.replaced)

    def lengths_of_entries(self) -> dict[int, int]:
        """Return the bytes of entries in each segment, the header not counted."""
        return {segment_id: length - SEGMENT_HEADER_SIZE for segment_id, length in self.lengths().items()}

    def sealed(self) -> list[SegmentRow]:
        """Return the rows of the sealed segments in logical order, oldest first."""
        return [row for row in self.manifest.segments if row.state == SEALED]

    def resize(self, sizes: Sizes) -> None:
        """Let segments be so large from now on, the active one included. Under the lock."""
        self.sizes = sizes
        if self.writer is not None:
            self.writer.limit = sizes.segment

    # --- beside other processes ----------------------------------------------------------------

    def as_read(self, last_seq: int) -> Manifest:
        """Return the manifest of what this process has read: its last segment ends there, as if it were sealed."""
        manifest, writer = self.manifest, self.writer
        if writer is None:
            return manifest
        *older, row = manifest.segments
        if writer.end > SEGMENT_HEADER_SIZE:
            older.append(row._replace(length=writer.end, last_seq=last_seq, state=SEALED))
        return manifest._replace(segments=tuple(older))

    def detach(self, last_seq: int) -> None:
        """Leave the active segment, which is another one now, as far as it has been read. Under the lock; repeatable.

        Nothing is cut off: that is done by the process that sealed it. The descriptor closes with its last user, for a
        sync may be under way.
        """
        self.manifest, self.writer = self.as_read(last_seq), None

    def attach(self, manifest: Manifest, end: int) -> None:
        """Go on with the active segment that another process has published; it has been read up to ``end``.

        Under the lock; repeatable.
        """
        rows = manifest.segments
        if rows and rows[-1].state == ACTIVE:
            self.writer = Writer.attach(self.directory, rows[-1].segment_id, end, self.sizes.segment)
        self.manifest = manifest
        self.show_writer()

    # --- hints ---------------------------------------------------------------------------------

    def needs_hint(self, row: SegmentRow) -> bool:
        """Tell whether a hint would save the next open much of a scan: it lacks more than a quarter."""
        is_large = row.length >= self.directory.tuning.hint_from
        return is_large and self.hinted.get(row.segment_id, 0) < row.length * 3 // 4

    def build_hint(self, row: SegmentRow, pause: Callable[[], None]) -> None:
        """Write the hint file of a segment, tried once; ``pause`` is called now and then. Without the lock."""
        build_hint(self.directory, self.manifest.store_uuid, row, pause)
        self.hinted[row.segment_id] = row.length

    def write_hint(self, row: SegmentRow, hint: Hint) -> None:
        """Write the hint file of a segment from what is known of it, tried once."""
        write_hint(self.directory, self.manifest.store_uuid, row, hint)
        self.hinted[row.segment_id] = row.length

    # --- reading -------------------------------------------------------------------------------

    def row_of(self, segment_id: int) -> SegmentRow | None:
        """Return the row of a segment into which a key or a view may point, None if it is gone. Without the lock."""
        # In this order: `replace_run` makes a segment a zombie before it takes it off the list.
        listed = (row for row in self.manifest.segments if row.segment_id == segment_id)
        return next(listed, None) or self.obsolete.zombies.get(segment_id)

    def is_zombie(self, segment_id: int) -> bool:
        """Tell whether a segment was replaced, so that its file may be gone from the disk."""
        return segment_id in self.obsolete.zombies

    @property
    def active_id(self) -> int:
        """Return the id of the active segment, 0 if there is none."""
        writer = self.writer
        return 0 if writer is None else writer.header.segment_id

    def give_back_for(self, error: StoreIOError) -> bool:
        """Give back what another write can do without: blocks, descriptors, address space; False if that is no help.

        Of a full disk, the file that was made for the next roll. Else half of what is open for reading.
        """
        if isinstance(error, DiskFullError):
            return self.discard_prepared()
        return self.open.give_back_for(error)

    # --- changing the set ----------------------------------------------------------------------
    # Each change is one new manifest. Whatever it names is durable before, whatever it no longer
    # names is removed after; a kill in between leaves files that the next open sweeps.

    def publish(self, rows: Iterable[SegmentRow], *, next_id: int | None = None, last_seq: int | None = None) -> None:
        """Replace the manifest."""
        old = self.manifest
        manifest = old._replace(
            segments=tuple(rows),
            generation=old.generation + 1,
            next_id=old.next_id if next_id is None else next_id,
            last_seq=old.last_seq if last_seq is None else max(last_seq, old.last_seq),
            compat_flags=self._flags_of_writer(),
        )
        if len(manifest.segments) > MAX_SEGMENTS:
            raise LimitError(
                f"{self.directory.path}: more than {MAX_SEGMENTS} segments; use a larger segment_size_bytes"
            )
        # Whatever strikes after the rename, an interrupt or an error out of a signal handler, disk and memory
        # then differ in what they think is published. No error says on which side it was raised, so the disk is asked;
        # see `settle`.
        self.publishing = manifest
        self.directory.save(manifest)
        self.manifest = manifest
        self.publishing = None

    def _flags_of_writer(self) -> int:
        flags = self.manifest.compat_flags
        if flags & BACKUP:  # written to, it becomes another store, whose history differs from that of the first
            return another_history(flags & ~BACKUP, self.directory.files.random(4))
        return flags

    def resume(self) -> None:
        """Continue the active segment of a store that was closed cleanly.

        One that has a second name is sealed instead: a copy of the directory by hard links must not change.
        """
        *older, row = self.manifest.segments
        writer = Writer.resume(
            self.directory, row.segment_id, row.length, self.sizes.segment, mapped=self.mapped, reserves=self._reserves
        )
        if writer.has_other_names:
            writer.close()
            self.publish([*older, row._replace(state=SEALED)])
            return
        self.writer = writer
        self.show_writer()

    def show_writer(self) -> None:
        """Let readers see the active segment as it is mapped now."""
        writer = self.writer
        if writer is None or (writer.map is None and self.mapped):
            return  # nothing appended yet: what it holds is read like a sealed segment
        found = self.open.table.get(writer.header.segment_id)
        if found is None or (self.mapped and found[0] is not writer.map):
            self.open.table[writer.header.segment_id] = writer.readable(), writer.seed

    def room_for(self, size: int, roll: Callable[[], Writer], *, only_deletes: bool, fast: bool) -> Writer:
        """Return the active segment once ``size`` more bytes have room in it; ``roll`` begins the next one.

        ``only_deletes``: on a full disk use what is kept back, so that a full store can be emptied, beyond the
        segment's limit if need be. ``fast``: let the hot path write there without asking, while there is room.
        """
        writer = self.writer
        if writer is None or writer.end + size > min(writer.room_end, writer.limit):
            writer = self._make_room(size, roll, only_deletes=only_deletes)
        writer.open_room(fast=fast)
        return writer

    def _make_room(self, size: int, roll: Callable[[], Writer], *, only_deletes: bool) -> Writer:
        while True:
            try:
                try:
                    writer = self.writer
                    if writer is None or not writer.fits(size):
                        writer = roll()
                    writer.make_room(size)
                except DiskFullError:
                    writer = self.writer
                    if writer is None or not only_deletes:
                        raise
                    writer.make_room(size, use_reserve=True)
                # First, then `open_room`: a writer that does not come here must be sure that readers see the mapping.
                self.show_writer()
                return writer
            except StoreIOError as error:
                if not self.give_back_for(error):  # what is open for reading, so that there is room to write
                    raise

    def roll(self, last_seq: int) -> None:
        """Seal the active segment, if there is one, and begin the next.

        Order: (1) the new file, header and name durable, most of which a worker may have seen to; (2) the old file
        durable, else a crash could keep the new one's entries and lose older ones (D2); (3) the manifest; (4) the
        old file trimmed, which only now no reader of the published length can notice. `DiskFullError` changes nothing.
        """
        old, rows = self.writer, list(self.manifest.segments)
        previous = (rows[-1].segment_id if rows else 0, last_seq)
        new = self._begin_prepared(previous) or self.create_writer(self.manifest.next_id, previous)
        if old is not None:
            rows = self._sealed_rows(old, last_seq)
        rows.append(SegmentRow(new.header.segment_id, new.header.salt, SEGMENT_HEADER_SIZE, last_seq, ACTIVE))
        self._change_writer(old, new, rows, last_seq)

    def create_writer(self, segment_id: int, previous: tuple[int, int]) -> Writer:
        """Make a segment's file, durable with its name; it is no part of the store until a manifest lists it."""
        header = header_for(self.directory, self.manifest.store_uuid, segment_id, LOG, previous)
        return Writer.create(self.directory, header, self.sizes.segment, mapped=self.mapped, reserves=self._reserves)

    def _begin_prepared(self, previous: tuple[int, int]) -> Writer | None:
        new = self.prepared
        if new is None:
            return None
        self.prepared = None
        try:
            new.begin(previous, self.sizes.segment)
        except BaseException:
            self._unmake(new)
            raise
        return new

    def _unmake(self, writer: Writer) -> None:
        writer.close()
        with suppress(*SystemErrors):  # else it is a leftover; `Files.open_new` or the next open removes it
            self.directory.files.unlink(writer.path)

    def discard_prepared(self) -> bool:
        """Remove the file that was made for the next roll; False if there is none."""
        writer, self.prepared = self.prepared, None
        if writer is not None:
            self._unmake(writer)
        return writer is not None

    def seal(self, last_seq: int) -> None:
        """Seal the active segment and begin none; the next write does."""
        assert self.writer is not None
        self._change_writer(self.writer, None, self._sealed_rows(self.writer, last_seq), last_seq)

    def _sealed_rows(self, writer: Writer, last_seq: int) -> list[SegmentRow]:
        rows = list(self.manifest.segments)
        row = SegmentRow(writer.header.segment_id, writer.header.salt, writer.end, last_seq, SEALED)
        # One that holds nothing disappears; its id stays used.
        rows[-1:] = [row] if writer.end > SEGMENT_HEADER_SIZE else []
        return rows

    def _change_writer(self, old: Writer | None, new: Writer | None, rows: list[SegmentRow], last_seq: int) -> None:
        if old is not None:
            old.fast_end = 0
        self.changing = old, new
        try:
            if old is not None:
                old.sync()
            next_id = self.manifest.next_id if new is None else max(self.manifest.next_id, new.header.segment_id + 1)
            try:
                self.publish(rows, next_id=next_id, last_seq=last_seq)
            except DiskFullError:
                if self._has_published():
                    raise
                # A manifest needs a block, and what is reserved has some. A segment that is trimmed too
                # early is merely one that was not closed cleanly.
                if old is not None:
                    old.trim()
                if new is not None:
                    new.shrink_to_fit()
                self.publish(rows, next_id=next_id, last_seq=last_seq)
        except StoreFailedError:
            raise  # poisoned: the next open decides
        except BytekvError:
            self.settle()
            raise
        self._writer_changed(old, new)

    def _writer_changed(self, old: Writer | None, new: Writer | None) -> None:
        self.writer = new
        self.show_writer()
        if old is not None:
            self.open.forget(old.header.segment_id)
            # The descriptor closes with its last user: a sync of the same file may be under way.
            with suppress(*SystemErrors):  # sealed at its length all the same; the next open trims what is too long
                old.trim()
            if old.end == SEGMENT_HEADER_SIZE:
                with suppress(*SystemErrors):  # listed nowhere; the next open sweeps it
                    self.directory.files.unlink(old.path)
        self.changing = None

    def _writer_kept(self, new: Writer | None) -> None:
        self.changing = None
        if new is not None:
            self._unmake(new)

    @property
    def is_unsettled(self) -> bool:
        """Tell whether a change of the set was interrupted."""
        return self.publishing is not None or self.changing is not None

    def settle(self) -> None:
        """Find out what an interrupted change of the set has come to, and act on it."""
        self._has_published()
        if self.changing is not None:
            old, new = self.changing
            active = [row.segment_id for row in self.manifest.segments if row.state == ACTIVE]
            if active == ([new.header.segment_id] if new is not None else []):
                self._writer_changed(old, new)
            else:
                self._writer_kept(new)

    def _has_published(self) -> bool:
        """Find out whether a manifest has been replaced that was about to be; False if none was."""
        if self.publishing is None:
            return False
        found = self.directory.load(for_writing=True).generation == self.publishing.generation
        if found:
            self.manifest = self.publishing
        else:
            for row in self.manifest.segments:
                self.obsolete.zombies.pop(row.segment_id, None)
        self.publishing = None
        return found

    def prepare(self, new: Writer, old: Writer) -> bool:
        """Let the next roll begin ``new``; False, and it is removed, if ``old`` is not the active segment any more.

        A roll has been faster then, and its segment has a higher id: a repair without a manifest relies on ids that
        grow along the log.
        """
        if self.writer is not old:
            self._unmake(new)
            return False
        self.prepared = new
        return True

    def reserve_ids(self, count: int) -> int:
        """Set ``count`` segment ids aside and return the first; they are never used again, published or not.

        Not while the set is unsettled: the manifest that was about to be published may be there, with these ids in it.
        """
        first = self.manifest.next_id
        # Not durable by itself: a crash forgets the reservation together with the files that used it.
        self.manifest = self.manifest._replace(next_id=first + count)
        return first

    def replace_run(self, victims: list[int], outputs: list[SegmentRow]) -> None:
        """Put ``outputs`` into the place of a contiguous run of victims."""
        rows = list(self.manifest.segments)
        first = next(number for number, row in enumerate(rows) if row.segment_id == victims[0])
        if [row.segment_id for row in rows[first : first + len(victims)]] != victims:
            raise CorruptionError(self.directory.manifest_path, 0, f"segments {victims} are no contiguous run")
        # Until neither the keydir nor an open view points at them, readers may still ask for them.
        self.obsolete.zombies.update({row.segment_id: row for row in rows[first : first + len(victims)]})
        if self.obsolete.page is not None:
            self.obsolete.retired.update(dict.fromkeys(victims, self.manifest.generation))
        self.publish([*rows[:first], *outputs, *rows[first + len(victims) :]])

    def adopt(self, manifest: Manifest, files: dict[int, tuple[SegmentFile, int]], gone: Container[int]) -> None:
        """See the set as another process has published it. For a follower; repeatable."""
        self.obsolete.zombies.update({row.segment_id: row for row in self.manifest.segments if row.segment_id in gone})
        self.open.table.update(files)
        lengths = self.lengths()
        for row in manifest.segments:
            if lengths.get(row.segment_id) == row.length:
                continue
            found = self.open.table.get(row.segment_id)
            if found is not None and not reaches(found[0], row.length):
                self.open.forget(row.segment_id)
        self.manifest = manifest

    def pin(self, when_closed: Callable[[], None], *, is_call: bool) -> Pin:
        """Keep the files of this moment; ``when_closed`` is called when they are no longer kept. Under the lock.

        ``is_call``: they are needed by a call that goes on to its end even if the store is closed meanwhile.
        """
        lengths = self.lengths()
        rows = self.manifest.segments
        if self.obsolete.page is not None:
            when_closed = partial(_unpin, self.obsolete.page.pin(self.manifest.generation), when_closed)
        return self.obsolete.pin(rows, [lengths[row.segment_id] for row in rows], when_closed, is_call=is_call)

    def reap(self, remembered: Container[int]) -> list[int]:
        """Forget the zombies that neither a view has ``remembered`` nor a pin lists; return them, oldest first.

        Their files may be removed now.
        """
        free = self.obsolete.reap(remembered)
        for segment_id in free:
            self.open.forget(segment_id)
            self.hinted.pop(segment_id, None)
        return free

    def close(self, last_seq: int) -> None:
        """Write a clean end: the active segment synced, trimmed, and its length published.

        Order: (1) bytes durable; (2) trimmed; (3) the manifest says that length. A file of exactly the
        published length was closed cleanly; a kill before (3) leaves a longer one, which is recovered.
        """
        self.discard_prepared()
        writer = self.writer
        if writer is None:
            return
        if writer.dirty:
            writer.trim()
            writer.sync()
            row = SegmentRow(writer.header.segment_id, writer.header.salt, writer.end, last_seq, ACTIVE)
            self.publish([*self.manifest.segments[:-1], row], last_seq=last_seq)
            writer.dirty = False
        else:
            writer.trim()

    def drop(self) -> None:
        """Close every file, without writing anything."""
        self.changing = self.publishing = None
        if self.writer is not None:
            self.writer.close()
            self.writer = None
        if self.prepared is not None:
            self.prepared.close()
            self.prepared = None
        self.open.table.clear()
        self.manifest = self.manifest._replace(segments=())  # so that no late reader opens a file again

    # --- invariants ----------------------------------------------------------------------------

    def check(self) -> list[str]:
        """Return what is wrong with the set, in words; nothing while a change of it is unsettled. Under the lock.

        For tests. Complexity: O(number of segments), with a system call for each that is open and not mapped.
        """
        if self.is_unsettled:
            return []
        manifest, zombies, table = self.manifest, self.obsolete.zombies, self.open.table
        lengths = self.lengths()
        wrong = [] if self.writer is None else self.writer.check()
        if len(lengths) < len(manifest.segments):
            wrong.append("a segment is listed twice")
        if any(row.state == ACTIVE for row in manifest.segments[:-1]):
            wrong.append("an active segment is not the last")
        if self.writer is not None and (not manifest.segments or manifest.segments[-1].segment_id != self.active_id):
            wrong.append(f"segment {self.active_id} is written to, and is not the last that is listed")
        made = [self.prepared.header.segment_id] if self.prepared is not None else []
        wrong += [f"id {each} will be used again" for each in [*lengths, *zombies, *made] if each >= manifest.next_id]
        wrong += [f"prepared segment {each} is listed" for each in made if each in lengths]
        wrong += [f"segment {each} is listed and a zombie" for each in zombies if each in lengths]
        known = lengths.keys() | zombies.keys()
        wrong += [f"segment {each} is open, and is neither listed nor a zombie" for each in table if each not in known]
        wrong += [f"segment {each} is gone, and its hint is counted" for each in self.hinted if each not in known]
        wrong += [
            f"segment {row.segment_id} is open, and not up to its {row.length} bytes"
            for row in manifest.segments
            if row.segment_id in table and not reaches(table[row.segment_id][0], row.length)
        ]
        return wrong
