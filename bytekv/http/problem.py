"""Problems: everything that can go wrong with a request, each with its name and status.

A problem is raised wherever it is noticed and becomes an ``application/problem+json`` reply (RFC 9457) in
one place. `PROBLEMS` is the whole list; the reference page is compared with it. This module also knows
which problem each error of the engine is. Texts go to the client: they never hold a path of this machine.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from ..errors import (
    BytekvError,
    ChangesLostError,
    CorruptionError,
    DiskFullError,
    ForkedStoreError,
    LimitError,
    ReadOnlyError,
    StoreBusyError,
    StoreClosedError,
    StoreFailedError,
)

__all__ = ["PROBLEMS", "Header", "Problem", "changes_lost", "problem_of"]

Header = tuple[bytes, bytes]

logger = logging.getLogger("bytekv.http")

#: code -> (status, title). The code is for programs, the title for people; both are part of the interface.
PROBLEMS: Final[dict[str, tuple[int, str]]] = {
    "malformed": (400, "The request is malformed"),
    "unknown-host": (400, "The Host is not one of this server's"),
    "unauthorized": (401, "A valid bearer token is needed"),
    "forbidden": (403, "The token's scopes do not allow this"),
    "cross-origin": (403, "Another site's page sent this request"),
    "no-such-key": (404, "There is no such key"),
    "no-such-path": (404, "There is nothing at this path"),
    "wrong-method": (405, "The path does not know this method"),
    "too-slow": (408, "The body took too long to arrive"),
    "read-only": (409, "The store is open for reading only"),
    "already-running": (409, "A compaction is running already"),
    "changes-lost": (410, "The feed does not go on from there"),
    "precondition-failed": (412, "A precondition does not hold; nothing was changed"),
    "too-large": (413, "The request or its answer is larger than allowed"),
    "wrong-media-type": (415, "The body is of a type that is not understood"),
    "bad-range": (416, "The range lies outside of the value"),
    "too-many-requests": (429, "The server is busy; try again soon"),
    "internal": (500, "Something is wrong with the server"),
    "damaged": (500, "The stored bytes are damaged"),
    "unavailable": (503, "The store is not available"),
    "disk-full": (507, "There is no space left; nothing was changed"),
}


class Problem(Exception):
    """A request that is not carried out, and why; ``members`` go into the JSON object beside the usual ones."""

    def __init__(self, code: str, detail: str, *, headers: Sequence[Header] = (), **members: object) -> None:
        super().__init__(detail)
        self.code = code
        self.status, self.title = PROBLEMS[code]
        self.detail = detail
        self.headers = headers
        self.members = members

    def document(self) -> dict[str, object]:
        """Return the JSON object that describes it.

        >>> Problem("no-such-key", "no key of these 3 bytes").document()["status"]
        404
        """
        return {
            "type": "about:blank",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            **self.members,
        }


def changes_lost(why: str, **members: object) -> Problem:
    """Return the problem of changes that do not exist any more, or not yet."""
    problem = Problem("changes-lost", f"{why}; begin with a listing: its Bytekv-Seq says where the changes go on")
    problem.members |= members
    return problem


def problem_of(error: BaseException) -> Problem:
    """Return what a client is told of an exception; log what it must not or need not know."""
    match error:
        case Problem():
            return error
        case ChangesLostError():
            return changes_lost("they have been compacted away", first_seq=error.first_seq)
        case LimitError():
            return Problem("malformed", str(error))
        case ReadOnlyError():
            return Problem("read-only", "writing needs a store that was opened for writing")
        case StoreClosedError() | ForkedStoreError():
            return Problem("unavailable", "the store is closed")
        case StoreFailedError():
            return Problem("unavailable", "a sync or a write has failed; reading goes on, writes are refused")
        case StoreBusyError():
            logger.warning("%s", str(error))  # what logging keeps would keep the page, by its traceback
            busy = "another process has kept the store for too long; nothing was changed"
            return Problem("unavailable", busy, headers=[(b"retry-after", b"1")])
        case DiskFullError():
            return Problem("disk-full", "the disk is full; reading and deleting go on")
        case CorruptionError():
            logger.error("%s", error)
            return Problem("damaged", "an entry fails its checksum; the server's log says where")
        case BytekvError():
            logger.error("%s", error)
            return Problem("internal", "the store reported an error; the server's log has it")
        case _:
            logger.error("unexpected %s", type(error).__name__, exc_info=error)
            return Problem("internal", "an unexpected error; the server's log has it")
