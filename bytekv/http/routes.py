"""Routes: the table of paths and methods, and which row a raw path belongs to.

Fixed paths are compared before anything is decoded. What is left is a key of the simple surface, unless its
decoded form looks like one of the fixed paths: then a proxy that decodes earlier than this module would take it
for that path, so it is refused rather than understood in two ways.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from .message import unquote
from .operations import check_key
from .problem import Problem

__all__ = ["ROUTES", "Route", "route_of"]


class Route(NamedTuple):
    """One thing that can be asked for, with a token that has one of the ``scopes``; none: by anybody."""

    method: str
    path: str
    scopes: tuple[str, ...]
    operation: str


ROUTES: Final = (
    Route("GET", "/{key}", ("read",), "get_text"),
    Route("PUT", "/{key}", ("write",), "put_text"),
    Route("DELETE", "/{key}", ("write",), "delete_text"),
    Route("GET", "/v1/kv/{key}", ("read",), "get_value"),
    Route("PUT", "/v1/kv/{key}", ("write",), "put_value"),
    Route("DELETE", "/v1/kv/{key}", ("write",), "delete_value"),
    Route("GET", "/v1/kv", ("read",), "list_keys"),
    Route("DELETE", "/v1/kv", ("write",), "delete_range"),
    Route("GET", "/v1/stat/{key}", ("read",), "get_stat"),
    Route("GET", "/v1/count", ("read",), "count_keys"),
    Route("POST", "/v1/batch", ("read", "write"), "run_batch"),  # and then what its steps need
    Route("GET", "/v1/changes", ("read",), "get_changes"),
    Route("GET", "/v1/stats", ("read",), "get_stats"),
    Route("POST", "/v1/admin/compact", ("admin",), "compact"),
    Route("POST", "/v1/admin/sync", ("admin",), "sync"),
    Route("GET", "/v1/openapi.json", (), "get_openapi"),
    Route("GET", "/metrics", ("read",), "get_metrics"),
    Route("GET", "/-/healthy", (), "get_health"),
    Route("GET", "/-/ready", (), "get_readiness"),
    Route("GET", "/-/console", (), "get_console"),
    Route("GET", "/", (), "get_root"),
)

_KEY_PATH: Final = b"/v1/kv/"
_STAT_PATH: Final = b"/v1/stat/"


def _rows(path: str) -> dict[str, Route]:
    return {route.method: route for route in ROUTES if route.path == path}


_FIXED: Final = {route.path.encode(): _rows(route.path) for route in ROUTES if "{" not in route.path}
_VALUES: Final = _rows("/v1/kv/{key}")
_STATS: Final = _rows("/v1/stat/{key}")
_TEXTS: Final = _rows("/{key}")


def route_of(method: str, path: bytes) -> tuple[Route, bytes]:
    """Return the row for a method and a raw path, and the key in the path, empty where there is none.

    >>> route_of("GET", b"/v1/kv/a%2Fb/%FF")
    (Route(method='GET', path='/v1/kv/{key}', scopes=('read',), operation='get_value'), b'a/b/\\xff')
    """
    key = b""
    rows = _FIXED.get(path)
    if rows is None and path.startswith(_KEY_PATH):
        rows, key = _VALUES, check_key(unquote(path[len(_KEY_PATH) :]))
    elif rows is None and path.startswith(_STAT_PATH):
        rows, key = _STATS, check_key(unquote(path[len(_STAT_PATH) :]))
    elif rows is None:
        rows, key = _TEXTS, check_key(unquote(path[1:]))
        if key in (b"v1", b"-", b"metrics") or key.startswith((b"v1/", b"-/")):
            raise Problem("no-such-path", "keys that look like a path of the server are at /v1/kv/KEY")
    route = rows.get("GET" if method == "HEAD" else method)
    if route is None:
        allowed = sorted([*rows, *(["HEAD"] if "GET" in rows else [])])
        raise Problem(
            "wrong-method", f"this path knows {', '.join(allowed)}", headers=[(b"allow", ", ".join(allowed).encode())]
        )
    return route, key
