"""An embeddable, log-structured key-value store: open a directory, use it as a dict.

>>> import bytekv, tempfile
>>> with bytekv.open(tempfile.mkdtemp()) as db:
...     db["colour"] = "blue"
...     db[b"colour"]
b'blue'
"""

from .engine.recovery import Recovery
from .engine.store import Entry, EntryStat, Store
from .engine.stores import open, repair
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
    StoreBusyError,
    StoreClosedError,
    StoreFailedError,
    StoreIOError,
    StoreLockedError,
    StoreNotFoundError,
    UnsupportedError,
    UnsupportedFormatError,
)
from .options import Options

TYPE_CHECKING = False  # as in `_lean`; what is imported here is public
if TYPE_CHECKING:
    from .contract.batch import Batch
    from .contract.reports import (
        BackupReport,
        Change,
        Compaction,
        Damage,
        Progress,
        Report,
        SegmentStats,
        Stats,
    )
    from .contract.snapshot import Snapshot
    from .contract.transaction import Transaction
else:
    _LATER = {
        "BackupReport": "contract.reports",
        "Batch": "contract.batch",
        "Change": "contract.reports",
        "Compaction": "contract.reports",
        "Damage": "contract.reports",
        "Progress": "contract.reports",
        "Report": "contract.reports",
        "SegmentStats": "contract.reports",
        "Snapshot": "contract.snapshot",
        "Stats": "contract.reports",
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
    "EntryStat",
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
    "StoreBusyError",
    "StoreClosedError",
    "StoreFailedError",
    "StoreIOError",
    "StoreLockedError",
    "StoreNotFoundError",
    "Transaction",
    "UnsupportedError",
    "UnsupportedFormatError",
    "open",
    "repair",
]
