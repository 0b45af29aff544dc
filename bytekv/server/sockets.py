"""Listening sockets, and a bound on connections that leaves descriptors for the store.

Sockets listen on each address of a host, and on loopback only as long as nobody has to show a secret. What a client has
done to deserve its place, and what is served, is not known here.

*Theory of operation.* A connection is a descriptor, and a store without descriptors refuses writes. So all doors of a
process together hold fewer connections than it may open files (`Places`), and take them in one by one (`accepting`).
Clients that have not shown the secret have a small part of the places; when another one comes, the one that has waited
longest goes. So strangers disturb strangers only, and somebody who has the secret has the time of some hundred others'
arrivals to show it. The processor is for the others, too: strangers have a tenth of it. What they use is charged
(`Places.charge`), and while they have used too much no connection is accepted; what one asks for after the other is
done at a pace (`Pace`).
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

__all__ = ["Guest", "Pace", "Places", "Seldom", "accepting", "connection_share", "listen", "raise_descriptor_limit"]

_BACKLOG: Final = 511  # connections that the operating system holds until they are accepted
_PACE_S: Final = 0.02  # between two things that are done for strangers where there are many
_STRANGERS_SHARE: Final = 0.1  # of the processor, once they have used up their credit
_CREDIT_S: Final = 1.0
_ACCEPT_COST_S: Final = 0.001  # more than what a connection costs that comes and goes
_RETRY_S: Final = 0.5  # after which a connection is accepted that there was no descriptor for
_MOST_STRANGERS: Final = 256
_STORE_DESCRIPTORS: Final = 4096  # at most, or half of what there is
_WANTED_DESCRIPTORS: Final = 65536


def listen(host: str, port: int, *, secret: str, is_set: bool) -> list[socket.socket]:
    """Return sockets that listen on each address of a host, all on the same port; 0: a free one.

    Raises `ValueError` if one of the addresses is not loopback and the ``secret``, "a token" say, is not set;
    `OSError` if one cannot be had, after closing the others.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    # With its protocol, else asyncio does not know that it is TCP and leaves Nagle's algorithm on: 40 ms a small reply.
    addresses = list(dict.fromkeys((family, protocol, sockaddr) for family, _, protocol, _, sockaddr in found))
    for *_, sockaddr in addresses:
        # The address itself is looked at, not the name, and it is the one that is bound below.
        if not is_set and not ipaddress.ip_address(str(sockaddr[0]).partition("%")[0]).is_loopback:
            raise ValueError(
                f"{host} is not a loopback address: anyone who can reach it could do everything; set {secret}"
            )
    sockets: list[socket.socket] = []
    try:
        for family, protocol, sockaddr in addresses:
            listener = socket.socket(family, socket.SOCK_STREAM, protocol)
            sockets.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((sockaddr[0], sockets[0].getsockname()[1] or port, *sockaddr[2:]))
            listener.listen(_BACKLOG)
            listener.setblocking(False)
    except BaseException:
        for listener in sockets:
            listener.close()
        raise
    return sockets


async def accepting(
    listener: socket.socket, protocol: Callable[[], asyncio.BaseProtocol], places: Places, seldom: Seldom
) -> None:
    """Accept connections until cancelled, each with a protocol of its own.

    One by one, and not as many as the operating system holds: then those that there is no place for would take the last
    descriptors before anybody has looked at them.
    """
    loop = asyncio.get_running_loop()
    while True:
        while (debt_s := places.debt_s) > 0:
            seldom.warn("many clients come and do not show the secret; new ones have to wait")
            await asyncio.sleep(min(debt_s, 1.0))
        try:
            connection, _ = await loop.sock_accept(listener)
        except ConnectionError:
            continue  # it has gone before it was accepted
        except OSError as error:
            seldom.warn("no connection can be accepted", error.strerror or str(error))
            await asyncio.sleep(_RETRY_S)
            continue
        try:
            await loop.connect_accepted_socket(protocol, connection)
        except Exception as error:  # whatever it is, the next one shall be accepted
            connection.close()
            seldom.warn("a connection failed as it began", repr(error))


# --- descriptors -------------------------------------------------------------------------------


def raise_descriptor_limit() -> None:
    """Let this process open as many files as it is allowed to ask for, up to what doors have use for."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _WANTED_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # some systems have another limit below the one that they tell
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def connection_share() -> int:
    """Return how many connections all doors of this process may hold: what is left beside the store's files.

    A store keeps half of the descriptors for its segments, and an eighth is for the rest of the program.
    """
    if resource is None:
        return _WANTED_DESCRIPTORS  # on Windows sockets are no descriptors
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = 1 << 20 if soft == resource.RLIM_INFINITY else soft
    return max(4, limit - min(_STORE_DESCRIPTORS, limit // 2) - limit // 8)


# --- places ------------------------------------------------------------------------------------


class Guest(Protocol):
    """A connection, as `Places` sees it."""

    def evict(self) -> None:
        """Close the connection at once: its place is another's now."""


_doors_lock: Final = threading.Lock()
_doors: Final[list[Places]] = []  # those that are open in this process


class Places:
    """The connections of one door.

    ``most``: how many it may have, if the process has descriptors for them; ``guarded``: clients are strangers until
    they have shown a secret.
    """

    def __init__(self, most: int, *, guarded: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._paid_at = 0.0  # when strangers will have paid for what they have used
        #: Whether clients are strangers at first.
        self.guarded = guarded
        self._share = self._most_strangers = 0
        self._known: dict[Guest, None] = {}
        self._strangers: dict[Guest, None] = {}  # the one that came first is first

    def open(self) -> None:
        """Begin to count; to be followed by `close`."""
        self._share = connection_share()
        self._most_strangers = max(1, min(_MOST_STRANGERS, self.most // 4))
        with _doors_lock:
            _doors.append(self)

    def close(self) -> None:
        """Count no more; again does nothing."""
        with _doors_lock:
            if self in _doors:
                _doors.remove(self)

    @property
    def most(self) -> int:
        """Return how many connections there may be."""
        return min(self._most, self._share)

    def __len__(self) -> int:
        return len(self._known) + len(self._strangers)

    def admit(self, guest: Guest) -> bool:
        """Give a connection a place, in exchange for that of a stranger if need be; tell whether there is one."""
        if self.guarded and len(self._strangers) >= self._most_strangers:
            self._evict_one()
        while len(self) >= self._most or self._taken() >= self._share:
            if not self._strangers:
                return False
            self._evict_one()
        (self._strangers if self.guarded else self._known)[guest] = None
        self.charge(_ACCEPT_COST_S)
        return True

    def charge(self, seconds: float) -> None:
        """Charge strangers with time of the processor."""
        if self.guarded:
            self._paid_at = max(self._paid_at, self._clock()) + seconds / _STRANGERS_SHARE

    @property
    def debt_s(self) -> float:
        """Return for how long strangers have to wait, because they have used too much."""
        return self._paid_at - self._clock() - _CREDIT_S

    def _evict_one(self) -> None:
        guest = next(iter(self._strangers))
        del self._strangers[guest]
        guest.evict()

    def _taken(self) -> int:
        with _doors_lock:
            return sum(map(len, _doors))

    def note(self, guest: Guest, *, known: bool) -> None:
        """Note that a guest has shown the secret, or has to show it again."""
        if self.guarded and guest in (self._strangers if known else self._known):
            del (self._strangers if known else self._known)[guest]
            (self._known if known else self._strangers)[guest] = None
            if known:
                self.charge(-_ACCEPT_COST_S)  # clients that come often and show the secret need not wait

    def leave(self, guest: Guest) -> None:
        """Take a connection's place back; again does nothing."""
        self._known.pop(guest, None)
        self._strangers.pop(guest, None)


class Pace:
    """Does things in the order in which they come, not more than one in a while, and of each guest one at a time."""

    def __init__(self, interval_s: float = _PACE_S) -> None:
        self._interval_s = interval_s
        self._waiting: OrderedDict[Guest, Callable[[], object]] = OrderedDict()
        self._turn: asyncio.TimerHandle | None = None
        self._not_before = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def do(self, guest: Guest, thing: Callable[[], object]) -> None:
        """Do a thing for a guest now, or when it is its turn."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if self._turn is None and now >= self._not_before:
            self._not_before = now + self._interval_s
            thing()
            return
        self._waiting[guest] = thing
        if self._turn is None:
            self._turn = loop.call_at(self._not_before, self._go_on)

    def leave(self, guest: Guest) -> None:
        """Forget what a guest waits for; again does nothing."""
        self._waiting.pop(guest, None)

    def _go_on(self) -> None:
        self._turn = None
        if not self._waiting:
            return
        loop = asyncio.get_running_loop()
        self._not_before = loop.time() + self._interval_s
        _, thing = self._waiting.popitem(last=False)
        if self._waiting:
            self._turn = loop.call_at(self._not_before, self._go_on)
        thing()


# --- the log -----------------------------------------------------------------------------------


class Seldom:
    """Warnings that strangers cause: of each kind one line a second at most, and how many there were."""

    def __init__(self, logger: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._clock = clock
        self._told: dict[str, tuple[float, int]] = {}

    def warn(self, kind: str, text: str = "", exc_info: object = None) -> None:
        """Warn with ``kind``, which is one of a few, and what there is to say of this case."""
        now = self._clock()
        at, untold = self._told.get(kind, (float("-inf"), 0))
        if now - at < 1:
            self._told[kind] = at, untold + 1
            return
        self._told[kind] = now, 0
        more = f" (and {untold} times before)" if untold else ""
        self._logger.warning("%s%s%s", kind, text and f": {text}", more, exc_info=exc_info)  # type: ignore[arg-type]
