"""Listener: call the application's callable with an event, whatever it raises."""

from __future__ import annotations

from .._lean import TYPE_CHECKING, log

if TYPE_CHECKING:
    from ..events import Event, Listener

__all__ = ["tell"]


def tell(listener: Listener | None, event: Event) -> None:
    """Call the listener, if there is one. Without the store's locks: it is user code."""
    if listener is None:
        return
    try:
        listener(event)
    except Exception as error:  # an interrupt goes on, for it is not the listener's
        log.error("the listener of %s failed on %s: %s", event.path, type(event).__name__, repr(error))
