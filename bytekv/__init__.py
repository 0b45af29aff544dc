"""An embeddable, log-structured key-value store: open a directory, use it as a dict.

>>> import bytekv, tempfile
>>> with bytekv.open(tempfile.mkdtemp()) as db:
...     db["colour"] = "blue"
...     db[b"colour"]
b'blue'
"""

from .batch import Batch
from .compactor import Compaction, Progress
from .errors import (
    AccessDeniedError,
    BytekvError,
    ChangesLostError,
    ConflictError,
    CorruptionError,
    DiskFullError,
    ForkedStoreError,
    LimitError,
    NotAStoreError,
    ReadOnlyError,
    ReentryError,
    StoreClosedError,
    StoreFailedError,
    StoreIOError,
    StoreLockedError,
    StoreNotFoundError,
    UnsupportedFormatError,
)
from .options import Options
from .recovery import Recovery
from .store import Entry, Store, open, repair

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .backup import BackupReport
    from .changes import Change
    from .check import Damage, Report
    from .snapshot import Snapshot
    from .stats import SegmentStats, Stats
    from .transaction import Transaction
else:
    _LATER = {
        "BackupReport": "backup",
        "Change": "changes",
        "Damage": "check",
        "Report": "check",
        "SegmentStats": "stats",
        "Snapshot": "snapshot",
        "Stats": "stats",
        "Transaction": "transaction",
    }

    def __getattr__(name):
        """Import what few programs name when it is asked for."""
        if name in _LATER:
            from importlib import import_module

            return getattr(import_module(f".{_LATER[name]}", __name__), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__version__ = "0.1.0"

__all__ = [
    "AccessDeniedError",
    "BackupReport",
    "Batch",
    "BytekvError",
    "Change",
    "ChangesLostError",
    "Compaction",
    "ConflictError",
    "CorruptionError",
    "Damage",
    "DiskFullError",
    "Entry",
    "ForkedStoreError",
    "LimitError",
    "NotAStoreError",
    "Options",
    "Progress",
    "ReadOnlyError",
    "Recovery",
    "ReentryError",
    "Report",
    "SegmentStats",
    "Snapshot",
    "Stats",
    "Store",
    "StoreClosedError",
    "StoreFailedError",
    "StoreIOError",
    "StoreLockedError",
    "StoreNotFoundError",
    "Transaction",
    "UnsupportedFormatError",
    "open",
    "repair",
]
