"""The lifecycle of a serving process: several servers on one store and one event loop, until a signal.

This module knows how a process that serves begins and ends; what is spoken at a door is the door's business. A door is
a coroutine that serves until it is cancelled, and finishes then what it has acknowledged. On SIGTERM or SIGINT, or
when one door ends by itself, all are cancelled, and once they have ended the store is synced and closed. A second
signal ends the process at once; what was acknowledged survives that as it survives any death of a process. Before that,
while the store is still being opened, SIGTERM ends the process by an exception (`ending_on_sigterm`).

The first process of a container is special: to it a signal without a handler does nothing.

Under systemd (``Type=notify``) it says when it is ready and when it stops, as sd_notify(3) has it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager, suppress

from .. import Store
from .._lean import TYPE_CHECKING, log

if TYPE_CHECKING:
    from typing import Any

__all__ = ["Service", "StartError", "Stopped", "address_of", "ending_on_sigterm", "serve_all"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

#: Called with a function to be told the address once connections are accepted.
Service = Callable[[Callable[[str], object]], Coroutine[object, object, None]]


class StartError(Exception):
    """Raised with the ``number`` of a service that cannot start: its address is wrong, taken or open to anyone."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.number = number


class Stopped(BaseException):
    """Raised by `ending_on_sigterm`."""


def address_of(text: str, default_port: int) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT``, ``HOST``, ``:PORT`` or ``[V6]:PORT``; raises `ValueError`.

    The host is 127.0.0.1 if it is left out.

    >>> address_of("127.0.0.1:6380", 6379), address_of("[::1]", 6379), address_of(":0", 6379)
    (('127.0.0.1', 6380), ('::1', 6379), ('127.0.0.1', 0))
    """
    host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon:
        host = text
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r}: put an IPv6 address in brackets: [{text}]:{default_port}")
    if colon and not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) < 65536):
        raise ValueError(f"{text!r} is not HOST:PORT")
    return host or "127.0.0.1", int(port) if colon else default_port


@contextmanager
def ending_on_sigterm() -> Iterator[Callable[[], None]]:
    """Let SIGTERM raise `Stopped` in the block, until `serve_all` takes the signal over.

    Gives a function that raises it if the signal has come, because an exception in a finaliser would get lost.
    """
    seen: list[int] = []

    def stop(number: int, frame: object) -> None:
        seen.append(number)
        raise Stopped

    def check() -> None:
        if seen:
            raise Stopped

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # only the main thread may
        yield check
        return
    try:
        yield check
    finally:
        signal.signal(signal.SIGTERM, before)


async def serve_all(store: Store, services: Iterable[Service], ready: Callable[[list[str]], object]) -> None:
    """Serve a store at all doors until a signal or the end of one of them; then sync it and close it.

    ``ready`` is called with the addresses once all doors are open. Raises `StartError`, or what a door has raised
    later, after the others have ended and the store is closed.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for signal_number in _SIGNALS:
        with suppress(NotImplementedError):  # on Windows an interrupt cancels this coroutine instead
            loop.add_signal_handler(signal_number, _stop_once, loop, signal_number, stop)
    addresses: list[str] = []
    tasks: list[asyncio.Task[None]] = []
    try:
        for number, service in enumerate(services):
            opened: asyncio.Future[str] = loop.create_future()
            task = asyncio.ensure_future(_pass(number, service, opened))
            tasks.append(task)
            waited_for: list[asyncio.Future[Any]] = [task, opened]
            await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                break  # it has failed, and says so below
            addresses.append(opened.result())
        else:
            _notify("READY=1")
            ready(addresses)
            stopping = asyncio.ensure_future(stop.wait())
            waited_for = [stopping, *tasks]
            await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
    finally:
        _notify("STOPPING=1")
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        # Off the loop, because other doors of the application may still be served on it.
        await asyncio.to_thread(store.close)
        _let_signals_through(loop)
    for end in ends:
        if isinstance(end, BaseException) and not isinstance(end, asyncio.CancelledError):
            raise end


async def _pass(number: int, service: Service, opened: asyncio.Future[str]) -> None:
    def started(address: str) -> None:
        if not opened.done():
            opened.set_result(address)

    try:
        await service(started)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if opened.done():
            raise
        raise StartError(getattr(error, "strerror", None) or str(error), number) from error
    finally:
        opened.cancel()


def _stop_once(loop: asyncio.AbstractEventLoop, number: signal.Signals, stop: asyncio.Event) -> None:
    log.info("%s: finishing what was acknowledged", number.name)
    stop.set()
    _let_signals_through(loop)  # the next one does what it does to any program


def _let_signals_through(loop: asyncio.AbstractEventLoop) -> None:
    for number in _SIGNALS:
        with suppress(NotImplementedError):
            loop.remove_signal_handler(number)
        if _is_first_process():
            signal.signal(number, _end_now)


def _is_first_process() -> bool:
    return os.getpid() == 1


def _end_now(number: int, frame: object) -> None:
    os._exit(128 + number)


def _notify(state: str) -> None:
    """Tell the service manager, if one has asked to be told."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path or not hasattr(socket, "AF_UNIX"):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        try:
            channel.connect("\0" + path[1:] if path.startswith("@") else path)
            channel.sendall(state.encode())
        except OSError as error:
            log.warning("the service manager cannot be told %s: %s", state, error.strerror)
