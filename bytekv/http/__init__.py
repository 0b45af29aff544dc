"""A store over HTTP: a plain ASGI application, and a server to run it.

`app` makes the application for an open store. It can be run by any ASGI server, mounted into an application of
Starlette or FastAPI, or handed to `serve`, which runs it on uvicorn (the extra ``bytekv[http]``). The store
stays the caller's: it is neither opened nor closed here, and may be used beside the door at the same time.

The interface is described in docs/reference/http.md and, for programs, at ``/v1/openapi.json``.
"""

from __future__ import annotations

from collections.abc import Iterable

from .. import Store
from .access import Tokens
from .application import Application
from .server import running, serve

__all__ = ["Application", "app", "running", "serve"]


def app(
    store: Store,
    *,
    tokens: Tokens | None = None,
    allowed_hosts: Iterable[str] = (),
    max_body_bytes: int = 16 * 1024 * 1024,
    max_requests: int = 256,
    body_timeout_s: float = 60.0,
    send_timeout_s: float = 60.0,
) -> Application:
    """Return an ASGI application that serves an open store; it never closes it.

    ``tokens``: a text that allows everything, or a mapping of tokens to scopes (``"read write"``; the scopes are
    read, write and admin); None: everybody may do everything, which is for loopback. ``allowed_hosts``: names,
    besides localhost and IP addresses, under which the server is known; ``"*"`` for any. ``max_body_bytes``: the
    largest value and batch. ``max_requests``: those under way at once; more are told to come again.
    ``body_timeout_s``: seconds within which a body must have arrived. ``send_timeout_s``: seconds within which a
    client must have taken a piece of its reply, of 64 KiB at most.

    Raises `ValueError` for a token that no client could send and for an unknown scope. Durability: a reply to a
    write means what the return of `Store.put` means. Run it in one process: one process writes to a store.

    >>> import bytekv, tempfile
    >>> db = bytekv.open(tempfile.mkdtemp())
    >>> door = app(db, tokens={"s3cret": "read"})
    >>> db.close()
    """
    return Application(
        store,
        tokens=tokens,
        allowed_hosts=allowed_hosts,
        max_body_bytes=max_body_bytes,
        max_requests=max_requests,
        body_timeout_s=body_timeout_s,
        send_timeout_s=send_timeout_s,
    )
