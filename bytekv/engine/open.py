"""Opening: from a path and a flag to the state of an open store.

The flag decides whether the directory must exist, whether its lock is needed and whether the store is emptied. From
then on a writer has the store to itself. A reader opens it beside a writer that may roll, compact and append meanwhile,
so it tries until it has seen a whole state. What the files of that state contain is the business of `recovery`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from .._lean import TYPE_CHECKING, NamedTuple, log
from ..errors import BytekvError, CorruptionError, ReadOnlyError, UnsupportedError, translated
from ..options import Options
from . import recovery
from .codec.manifest import Manifest
from .fast import DurableCommitter, FastCommitter
from .index.keydir import Keydir
from .log.directory import Directory
from .log.files import Files
from .log.segment_manager import SegmentManager
from .recovery import Kept, Recovery
from .state import State
from .tuning import Tuning
from .write.commit import Committer

if TYPE_CHECKING:
    from typing import Any

    from ..options import Flag
    from .log.control_page import ControlPage

__all__ = ["Opened", "open_directory", "open_shared"]


class Opened(NamedTuple):
    """What an open store consists of; the committer's state has its segments and its keydir."""

    directory: Directory
    committer: Committer
    recovery: Recovery


def open_directory(
    path: str, flag: Flag, options: Options, files: Files, tuning: Tuning, wake: Callable[[], bool]
) -> Opened:
    """Open the store in a directory; ``wake`` is for its committer. An error leaves everything as it was."""
    directory = Directory(path, files, tuning=tuning)
    try:
        if flag in ("r", "w"):
            directory.find(lost_manifest_allowed=flag == "w" and options.recover == "salvage")
        else:
            directory.find_or_make(lost_manifest_allowed=options.recover == "salvage")
        if flag == "r":
            with translated("bytekv.engine.replication.follower"):
                from .replication.follower import try_again

            tries = _Tries(directory, options, wake)
            return try_again(tries.attempt, files.yield_cpu, tries.generation, tuning.tries)
        directory.acquire()
        if flag == "n" or (flag == "c" and directory.find_or_make(lost_manifest_allowed=True)):
            directory.create(_fresh_manifest(directory))
        return _recover_or_repair(directory, options, wake)
    except BaseException:
        directory.release()
        raise


def open_shared(
    path: str, flag: Flag, options: Options, files: Files, tuning: Tuning, wake: Callable[[], bool]
) -> tuple[Opened, ControlPage]:
    """Open the store in a directory that other processes write to, or may from now on.

    The first one recovers it as always. The others read it as a reader does, and wait for nobody.
    """
    with translated("bytekv.engine.sharing.commit"):
        from .log.control_page import ControlPage

    if options.io == "pread":
        raise UnsupportedError(f"{path}: a store that processes share is mapped in all of them; leave out io='pread'")
    directory = Directory(path, files, tuning=tuning)
    page: ControlPage | None = None
    try:
        salvages = options.recover == "salvage"
        if flag == "w":
            directory.find(lost_manifest_allowed=salvages)
        else:
            directory.find_or_make(lost_manifest_allowed=salvages)
        page = ControlPage(directory)
        shared = _Shared(directory, page, flag, options, wake)
        return page.door.run(shared.open, options.busy_timeout_s), page
    except BaseException:
        if page is not None:
            page.close()
        directory.release()
        raise


class _Shared:
    """Opening among the processes that share a store; inside DOOR."""

    def __init__(
        self, directory: Directory, page: ControlPage, flag: Flag, options: Options, wake: Callable[[], bool]
    ) -> None:
        self._directory, self._page = directory, page
        self._flag, self._options, self._wake = flag, options, wake

    def open(self) -> Opened:
        directory, flag = self._directory, self._flag
        if directory.acquire(shared=True):
            return self._open_first()
        if flag == "n" or self._options.recover == "salvage":
            raise directory.not_alone()
        return self._open_beside_others()

    def _open_first(self) -> Opened:
        directory, page, options = self._directory, self._page, self._options
        if self._flag == "n" or (self._flag == "c" and directory.find_or_make(lost_manifest_allowed=True)):
            directory.create(_fresh_manifest(directory))
        opened = _recover_or_repair(directory, options, self._wake, page)
        committer: Any = opened.committer
        segments = committer.state.segments
        try:
            page.make(segments.manifest.store_uuid)
            committer.turn.begin(options)
            directory.share_lock()
        except BaseException:
            segments.drop()
            raise
        return opened

    def _open_beside_others(self) -> Opened:
        directory, page = self._directory, self._page
        page.join(directory.load(for_writing=True).store_uuid)
        self._options = page.agreed(self._options)
        with translated("bytekv.engine.replication.follower"):
            from .replication.follower import try_again

        tries = _Tries(directory, self._options, self._wake, page)
        opened = try_again(tries.attempt, directory.files.yield_cpu, tries.generation, directory.tuning.tries)
        committer: Any = opened.committer
        try:
            committer.neighbours.begin()
        except BaseException:
            committer.state.segments.drop()
            raise
        return opened


class _Tries:
    """Opening beside a writer: each try keeps what it has read for the next."""

    def __init__(
        self, directory: Directory, options: Options, wake: Callable[[], bool], page: ControlPage | None = None
    ) -> None:
        self._directory, self._options, self._wake, self._page = directory, options, wake, page
        self._kept: Kept | None = None

    def attempt(self) -> Opened:
        known = self._kept
        if known is None:
            self._kept = {}  # the first try, mostly the last, keeps nothing
        return _recover(self._directory, self._options, self._wake, self._page, readonly=True, kept=known)

    def generation(self) -> int:
        return self._directory.load(for_writing=False).generation


def _fresh_manifest(directory: Directory) -> Manifest:
    """Return the manifest of an empty store; ids go on from what lies in the directory."""
    try:
        next_id = directory.load(for_writing=True).next_id
    except BytekvError:
        next_id = 1  # none yet, or damaged; recovery raises it above every file that it sees
    return Manifest(directory.files.random(16), next_id, 0, 1)


def _recover_or_repair(
    directory: Directory, options: Options, wake: Callable[[], bool], page: ControlPage | None = None
) -> Opened:
    try:
        return _recover(directory, options, wake, page, readonly=False)
    except CorruptionError as error:
        if options.recover != "salvage":
            raise
        with translated("bytekv.engine.integrity.repair"):
            from .integrity.repair import repair_directory

        log.warning("%s is damaged and will be salvaged: %s", directory.path, str(error))
        report = repair_directory(directory, options.segment_size_bytes)
        opened = _recover(directory, options, wake, page, readonly=False)
        opened.recovery.salvaged = report
        return opened


def _recover(
    directory: Directory,
    options: Options,
    wake: Callable[[], bool],
    page: ControlPage | None = None,
    *,
    readonly: bool,
    kept: Kept | None = None,
) -> Opened:
    files = directory.files
    manifest = directory.load(for_writing=not readonly)
    mapped = options.io == "mmap" or (options.io == "auto" and files.maps_safely(directory.folder))
    keydir = Keydir(round(options.expiry_grace_s * 1000), files.now_ms, directory.tuning)
    segments = SegmentManager(directory, manifest, options, mapped=mapped, readonly=readonly and page is None)
    try:
        report = recovery.recover(segments, keydir, readonly=readonly, kept=kept)
        state = State(segments, keydir, options, report.last_seq)
        if page is not None:
            return Opened(directory, _shared_committer(state, wake, page, manifest), report)
        made = DurableCommitter if options.sync == "always" else FastCommitter
        committer = made(state, wake)
        if readonly:
            state.only_read(report.durable_seq, partial(ReadOnlyError, f"{directory.path}: opened with flag 'r'"))
            # Opened now, so that a compaction of the writer cannot take them away later.
            for row in segments.manifest.segments[: segments.open.most]:
                segments.open.get(row.segment_id)
    except BaseException:
        segments.drop()
        raise
    return Opened(directory, committer, report)


def _shared_committer(state: State, wake: Callable[[], bool], page: ControlPage, manifest: Manifest) -> Committer:
    with translated("bytekv.engine.sharing.commit"):
        from .sharing.commit import SharedCommitter
        from .sharing.fast import FastSharedCommitter

    state.segments.obsolete.page = page
    made = SharedCommitter if state.always else FastSharedCommitter
    return made(state, wake, page, manifest)
