"""Stores: what a path, a flag and options open.

A store that only this process writes to is a `Store`; one that it shares with others is a `SharedStore`, whose modules
are imported by the first that is opened.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from .._lean import TYPE_CHECKING
from ..errors import StoreLockedError, translated
from ..options import Options
from .log.directory import Directory
from .log.files import Files
from .store import Store
from .tuning import TUNING, Tuning

if TYPE_CHECKING:
    from typing import Unpack

    from ..contract.reports import Progress, Report
    from ..options import Flag, OpenOptions

__all__ = ["open", "repair", "repair_path"]


def repair(path: str | os.PathLike[str], *, progress: Callable[[Progress], object] | None = None) -> Report:
    """Make a damaged store usable again, keeping every undamaged entry; return what was lost.

    Nothing is thrown away: damaged segments are kept in quarantine/. A lost manifest is rebuilt from
    the segments. ``progress`` is called after each segment. A store without damage is left as it is.
    docs/how-to/recover.md says exactly what is kept.

    Raises `StoreLockedError` while a writer has it, `UnsupportedFormatError`, `DiskFullError` (the
    replacements need room beside the originals); after an error the store is as before. Durability: the repaired
    store is durable on return. Complexity: O(bytes), about 1 µs an entry.

    >>> import bytekv, tempfile
    >>> path = tempfile.mkdtemp()
    >>> with bytekv.open(path) as db:
    ...     db["a"] = "1"
    >>> bytekv.repair(path).ok
    True
    """
    return repair_path(path, progress, TUNING)


def repair_path(path: str | os.PathLike[str], progress: Callable[[Progress], object] | None, tuning: Tuning) -> Report:
    """Do what `repair` does, with other constants."""
    with translated("bytekv.engine.integrity.repair"):
        from .integrity.repair import repair_directory

    directory = Directory(os.path.abspath(os.fsdecode(path)), Files(), tuning=tuning)
    try:
        directory.find(lost_manifest_allowed=True)
        directory.acquire()
        return repair_directory(directory, Options().segment_size_bytes, progress)
    except StoreLockedError as error:
        raise StoreLockedError(error.path, error.pid, error.shared, "alone" if error.shared else error.wanted) from None
    finally:
        directory.release()


def open(path: str | os.PathLike[str], flag: Flag = "c", **options: Unpack[OpenOptions]) -> Store:
    """Open the store in a directory.

    ``flag``: "r" read-only, beside a writer, too · "w" an existing store · "c" create it if missing, with
    its parent directories · "n" a new and empty one, deleting what the store holds. ``options``: see `Options`.

    Raises `StoreNotFoundError`, `NotAStoreError`, `StoreLockedError`, `CorruptionError`,
    `UnsupportedFormatError`, `AccessDeniedError`; nothing was created or changed then. Durability: what
    was recovered is durable when this returns. Complexity: O(number of keys), about 0.4 µs a key with
    hint files.

    >>> import tempfile
    >>> with open(tempfile.mkdtemp(), sync="always") as db:
    ...     db["a"] = b"1"
    ...     len(db)
    1
    """
    if flag not in ("r", "w", "c", "n"):
        raise ValueError(f"flag must be one of 'r', 'w', 'c', 'n', not {flag!r}")
    if flag != "r" and options.get("follow") is not None:
        raise ValueError("follow is for readers: it needs flag 'r'")
    chosen = Options(**options)
    kind: type[Store] = Store
    if chosen.shared and flag != "r":
        with translated("bytekv.engine.shared_store"):
            from .shared_store import SharedStore

        kind = SharedStore
    return kind(os.path.abspath(os.fsdecode(path)), flag, chosen, Files())
