"""Commands: a name, arguments and the function that carries them out.

A command on data gets a `UnitOfWork` and the arguments, the name of the command first. It returns a reply or raises
`ReplyError`, and writes only after it has looked at everything that may be wrong. A command on the connection or the
server is a `SessionCommand`, in `session`. Replies and errors are those of Redis 7.0, word for word, except where the
page docs/reference/resp.md says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from ... import Store
from ..protocol import Reply, ReplyError
from ..work import UnitOfWork

__all__ = [
    "ALL",
    "NONE",
    "ONE",
    "PAIRS",
    "TWO",
    "Command",
    "CommandTable",
    "DataCommand",
    "KeyPositions",
    "wrong_arity",
]

#: Which arguments are keys: the first, the last (negative: from the end), and the step between them.
KeyPositions = tuple[int, int, int]
NONE: Final[KeyPositions] = (0, 0, 0)
ONE: Final[KeyPositions] = (1, 1, 1)
TWO: Final[KeyPositions] = (1, 2, 1)
ALL: Final[KeyPositions] = (1, -1, 1)
PAIRS: Final[KeyPositions] = (1, -1, 2)


@dataclass(frozen=True, slots=True)
class Command:
    """One row of the table.

    ``arity`` counts the name, too; negative: at least that many. A "read" or "write" touches data, the rest belongs to
    the "session". ``before_password``: clients that have not shown the password may send it. ``at_once``: it is not
    queued between MULTI and EXEC.
    """

    name: bytes
    arity: int
    kind: Literal["read", "write", "session"]
    keys: KeyPositions
    group: str
    syntax: str
    summary: str
    before_password: bool = field(default=False, kw_only=True)
    at_once: bool = field(default=False, kw_only=True)

    def check(self, arguments: list[bytes]) -> None:
        """Raise `ReplyError` if the number of arguments is wrong."""
        given = len(arguments)
        if given != self.arity and (self.arity > 0 or given < -self.arity):
            raise wrong_arity(self.name)

    @property
    def may_pass(self) -> bool:
        """Tell whether an authenticated session outside of MULTI need not be asked about it."""
        return False


@dataclass(frozen=True, slots=True)
class DataCommand(Command):
    """A command on data.

    ``on_store``: a shorter path for a command that is the only one of its unit. ``for_session``: it changes the
    session, too, and so never goes past it.
    """

    handler: Callable[[UnitOfWork, list[bytes]], Reply]
    on_store: Callable[[Store, list[bytes]], Reply] | None = None
    for_session: bool = False

    @property
    def may_pass(self) -> bool:
        """Tell whether an authenticated session outside of MULTI need not be asked about it."""
        return not self.for_session


class CommandTable(dict[bytes, Command]):
    """Commands by their names in lower case; ``refused``: names of Redis that bytekv will not have, and why."""

    def __init__(self, commands: Iterable[Command], refused: Mapping[bytes, bytes]) -> None:
        super().__init__((each.name, each) for each in commands)
        self._refused = refused

    def find(self, arguments: list[bytes]) -> Command:
        """Return the command that arguments call, their number checked; raise `ReplyError` as Redis does."""
        found = self.get(arguments[0].lower())
        if found is None:
            raise self._unknown(arguments)
        found.check(arguments)
        return found

    def _unknown(self, arguments: list[bytes]) -> ReplyError:
        name = arguments[0][:128]
        reason = self._refused.get(arguments[0].lower())
        if reason is not None:
            return ReplyError(b"ERR unknown command '%b': bytekv has no %b" % (name, reason))
        shown = b""
        for argument in arguments[1:]:
            if len(shown) >= 128:
                break
            shown += b"'%b' " % argument[: 128 - len(shown)]
        return ReplyError(b"ERR unknown command '%b', with args beginning with: %b" % (name, shown))


def wrong_arity(name: bytes) -> ReplyError:
    """Return the error for a wrong number of arguments."""
    return ReplyError(b"ERR wrong number of arguments for '%b' command" % name)
