"""Access control: bearer tokens with scopes, the Host allow-list, requests from other sites' pages.

- A token is compared in constant time, as the digest of what was sent with the digests of all that are known.
- A Host that is neither an IP address, nor localhost, nor on the list is refused: a page whose name has been
  rebound to this machine's address (DNS rebinding) sends its own name, and cannot send another.
- A browser says which page a request comes from. What changes something and comes from another site is
  refused; there is no CORS, so no other site can read an answer either. That matters on loopback, where a
  server may have no token.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Final

from .problem import Problem

__all__ = ["SCOPES", "STEP_SCOPES", "Access", "Tokens", "require_scopes"]

#: What a token may allow. None implies another.
SCOPES: Final = ("read", "write", "admin")

#: The scope that each step of a batch needs; a batch needs those of all its steps. What each path needs is in `routes`.
#: One without steps only asks whether its preconditions hold, which is reading.
STEP_SCOPES: Final = {"put": "write", "delete": "write", "get": "read"}

#: One token for everything, or tokens with their scopes: a text of words, or several texts.
Tokens = str | Mapping[str, str | Iterable[str]]

_TOKEN: Final = re.compile(r"[\x21-\x7e]{1,8192}")  # servers take a head of twice that and little more
_BEARER: Final = re.compile(r"bearer[ ]+([\x21-\x7e]+)[ ]*", re.IGNORECASE)
_HOST: Final = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::[0-9]{1,5})?")
_MAX_KNOWN_HOSTS: Final = 64
_ORIGIN: Final = re.compile(r"https?://([^/?#]+)")
_SAFE_METHODS: Final = ("GET", "HEAD", "OPTIONS", "TRACE")


class Access:
    """Decide about requests by their headers.

    Raises `ValueError` for a token that no client could send and for an unknown scope.
    """

    def __init__(self, tokens: Tokens | None, allowed_hosts: Iterable[str]) -> None:
        given = {tokens: SCOPES} if isinstance(tokens, str) else dict(tokens or {})
        self._scopes_of: dict[bytes, frozenset[str]] = {}
        for token, words in given.items():
            scopes = frozenset(words.split() if isinstance(words, str) else words)
            if not _TOKEN.fullmatch(token):
                raise ValueError("a token consists of 1 to 8,192 visible ASCII characters")
            if unknown := sorted(scopes - set(SCOPES)):
                raise ValueError(f"unknown scope {unknown[0]!r}; there are {', '.join(SCOPES)}")
            self._scopes_of[_digest(token)] = scopes
        if tokens is not None and not self._scopes_of:
            raise ValueError("tokens must not be empty; None means that none is asked for")
        self._known_hosts: set[str] = set()  # that have been found right, as most requests have the same
        self._hosts = frozenset(host.lower().rstrip(".") for host in allowed_hosts)

    @property
    def asks_for_token(self) -> bool:
        """Tell whether a token is needed."""
        return bool(self._scopes_of)

    def check_host(self, hosts: list[str], http_version: str) -> None:
        """Raise the problem unless the request is meant for this server."""
        if not hosts and http_version == "1.0":
            return  # has no Host header, and no browser sends it
        if len(hosts) == 1 and hosts[0] in self._known_hosts:
            return
        found = _HOST.fullmatch(hosts[0].lower()) if len(hosts) == 1 else None
        if found is None:
            raise Problem("malformed", "a request has one Host, a name or an address with or without a port")
        name = found[1].rstrip(".")
        if not (name == "localhost" or _is_address(name) or name in self._hosts or "*" in self._hosts):
            raise Problem("unknown-host", "start the server with this name among its allowed_hosts")
        if len(self._known_hosts) < _MAX_KNOWN_HOSTS:
            self._known_hosts.add(hosts[0])

    def check_origin(self, method: str, host: str, origin: str | None, fetch_site: str | None) -> None:
        """Raise the problem if a page of another site sends a request that changes something."""
        if method in _SAFE_METHODS:
            return
        if fetch_site is None:  # no browser, or an old one, which sends at least Origin
            found = _ORIGIN.fullmatch(origin or "")
            allowed = origin is None or (found is not None and found[1].lower() == host.lower())
        else:
            allowed = fetch_site in ("same-origin", "none")
        if not allowed:
            raise Problem("cross-origin", "only pages of this server itself may send requests that change something")

    def check_token(self, scopes: tuple[str, ...], authorization: list[str]) -> frozenset[str]:
        """Return what the sender may do; raise the problem unless that is one of ``scopes``, or there are none."""
        if not scopes or not self._scopes_of:
            return frozenset(SCOPES)
        sent = _BEARER.fullmatch(authorization[0]) if len(authorization) == 1 else None
        digest = _digest(sent[1]) if sent else b""
        allowed: frozenset[str] | None = None
        for known, its_scopes in self._scopes_of.items():  # all of them, whichever it is
            if hmac.compare_digest(known, digest):
                allowed = its_scopes
        if allowed is None:
            text = "send Authorization: Bearer TOKEN" if sent is None else "the token is not known here"
            raise Problem("unauthorized", text, headers=[(b"www-authenticate", b'Bearer realm="bytekv"')])
        if allowed.isdisjoint(scopes):
            raise _forbidden(scopes, " or ")
        return allowed


def require_scopes(needed: set[str], allowed: frozenset[str]) -> None:
    """Raise the problem unless all of these scopes are allowed."""
    if not needed <= allowed:
        raise _forbidden(sorted(needed, key=SCOPES.index), " and ")


def _forbidden(scopes: Sequence[str], between: str) -> Problem:
    challenge = b'Bearer realm="bytekv", error="insufficient_scope", scope="%b"' % " ".join(scopes).encode()
    text = f"this needs the scope {between.join(scopes)}"
    return Problem("forbidden", text, headers=[(b"www-authenticate", challenge)])


def _digest(token: str) -> bytes:
    return sha256(token.encode()).digest()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
