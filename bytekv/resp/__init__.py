"""A door for Redis clients: serve an open store over RESP2 and RESP3.

`Server` runs in a thread of its own or on an event loop; `serve` is the coroutine of ``bytekv serve --resp``.
Which commands there are, and what differs from Redis: docs/reference/resp.md.
"""

from .server import Server, serve

__all__ = ["Server", "serve"]
