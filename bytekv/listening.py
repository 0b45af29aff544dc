"""Where a server listens: on each address of a host, and on loopback only as long as nobody has to show a secret.

Knows sockets and nothing of what is served.
"""

from __future__ import annotations

import ipaddress
import socket

__all__ = ["listen"]

_BACKLOG = 511  # connections that the operating system holds until they are accepted


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
                f"{host} is not a loopback address: whoever can reach it could do everything; set {secret}"
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
