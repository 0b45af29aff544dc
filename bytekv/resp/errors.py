"""What a client is told of an exception: each error of the store as Redis would word it."""

from __future__ import annotations

import logging

from .. import (
    BytekvError,
    CorruptionError,
    DiskFullError,
    ReadOnlyError,
    StoreFailedError,
    StoreIOError,
)
from .protocol import ReplyError

__all__ = ["error_of"]

logger = logging.getLogger("bytekv")


def error_of(error: Exception) -> ReplyError:
    """Return what a client is told of an exception."""
    if isinstance(error, ReplyError):
        return error
    if isinstance(error, ReadOnlyError):
        return ReplyError(b"READONLY You can't write against a read only replica.")
    if isinstance(error, (DiskFullError, StoreFailedError, StoreIOError)):
        return ReplyError(b"MISCONF Errors writing to the log: %b" % _text(error))
    if isinstance(error, CorruptionError):
        logger.error("a client asked for something damaged: %s", str(error))
        return ReplyError(b"ERR the entry is damaged on disk; see the log of the server, and bytekv repair")
    if isinstance(error, BytekvError):
        return ReplyError(b"ERR %b" % _text(error))
    if isinstance(error, MemoryError):
        return ReplyError(b"OOM the server has not enough memory for this; nothing was changed")
    logger.error("a command failed", exc_info=error)
    return ReplyError(b"ERR internal error; see the log of the server")


def _text(error: Exception) -> bytes:
    return str(error).encode("utf-8", "replace")
