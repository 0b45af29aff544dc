"""An embeddable, log-structured key-value store: open a directory, use it as a dict.

>>> import bytekv, tempfile
>>> with bytekv.open(tempfile.mkdtemp()) as db:
...     db["colour"] = "blue"
...     db[b"colour"]
b'blue'
"""

from .contract.batch import Batch
from .engine.recovery import Recovery
from .engine.space.compactor import Compaction, Progress
from .engine.store import Entry, Store, open, repair
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

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .contract.snapshot import Snapshot
    from .contract.transaction import Transaction
    from .engine.integrity.repair import Damage, Report
    from .engine.replication.backup import BackupReport
    from .engine.replication.feed import Change
    from .engine.stats import SegmentStats, Stats
else:
    _LATER = {
        "BackupReport": "engine.replication.backup",
        "Change": "engine.replication.feed",
        "Damage": "engine.integrity.repair",
        "Report": "engine.integrity.repair",
        "SegmentStats": "engine.stats",
        "Snapshot": "contract.snapshot",
        "Stats": "engine.stats",
        "Transaction": "contract.transaction",
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
