"""The command `serve`: its addresses and secrets, and the doors that they open."""

from __future__ import annotations

import asyncio
import os

from .._lean import TYPE_CHECKING
from ..server.lifecycle import Service, StartError, Stopped, address_of, ending_on_sigterm, serve_all
from ..server.sockets import raise_descriptor_limit
from .commands import DONE, UsageError, opened, reading, say

if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Final

    from ..http.server import ServeOptions
    from ..resp.server import ServerOptions

__all__ = ["serve"]

_MAX_SECRETS_SIZE: Final = 1 << 20


def serve(arguments: Namespace) -> int:
    """Serve the store at one or two doors until told to stop."""
    services: list[Service] = []
    addresses: list[str] = []
    with ending_on_sigterm() as check_stopped:
        try:
            password, tokens = _secrets(arguments)
            if arguments.resp is not None:
                from ..resp import serve as serve_resp

                host, port = _address(arguments.resp, 6379)
                at_resp: ServerOptions = {"password": password, "backup_dir": arguments.backup_dir}
                services.append(lambda started: serve_resp(store, host, port, started=started, **at_resp))
                addresses.append(arguments.resp)
            if arguments.http is not None:
                from ..http import serve as serve_http

                http_host, http_port = _address(arguments.http, 8080)
                at_http: ServeOptions = {"tokens": tokens, "allowed_hosts": arguments.allowed_host}
                services.append(lambda started: serve_http(store, http_host, http_port, started=started, **at_http))
                addresses.append(arguments.http)
            if not services:
                raise UsageError("say where to serve: --resp HOST:PORT, --http HOST:PORT, or both")
            raise_descriptor_limit()
            with opened(arguments, "c", sync=arguments.sync, shared=arguments.shared) as store:
                check_stopped()
                ready = lambda where: say(f"serving {store.path} at {' and '.join(where)}")  # noqa: E731
                asyncio.run(serve_all(store, services, ready))
        except StartError as error:
            raise UsageError(f"cannot serve at {addresses[error.number]}: {error}") from None
        except Stopped:
            pass
    return DONE


def _address(text: str, default_port: int) -> tuple[str, int]:
    try:
        return address_of(text, default_port)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _secrets(arguments: Namespace) -> tuple[bytes | None, str | dict[str, str] | None]:
    """Return the password of Redis clients and the tokens of HTTP; a secret that is given guards both doors.

    Neither is ever silently missing: it is an error if one door would stay open beside a guarded one, or if a secret or
    its file is empty, too long or cut off.
    """
    for option in ("resp", "http", "password", "password_file", "token", "token_file", "backup_dir"):
        if getattr(arguments, option) == "":
            raise UsageError(f"--{option.replace('_', '-')} is empty; is a variable not set?")
    if "" in arguments.allowed_host:
        raise UsageError("--allowed-host is empty; is a variable not set?")
    if arguments.backup_dir is not None and not os.path.isdir(arguments.backup_dir):
        raise UsageError(f"--backup-dir {arguments.backup_dir}: no such directory; create it first")
    where, password = "--password", None if arguments.password is None else os.fsencode(arguments.password)
    if arguments.password_file is not None:
        where, password = _first_line(arguments.password_file)
    tokens = arguments.token if arguments.token_file is None else _tokens(arguments.token_file)
    if tokens is not None and arguments.resp is not None and password is None and not arguments.no_password:
        if not isinstance(tokens, str):
            raise UsageError(
                f"everybody who can connect to {arguments.resp} could do everything as a Redis client, without a token:"
                " give --password-file, too, or --no-password if that is meant"
            )
        where, password = "--token", tokens.encode()
    if password is not None:
        from ..resp.protocol import UNTRUSTED

        if len(password) > UNTRUSTED.bulk_bytes:
            raise UsageError(f"{where}: a password of {len(password)} bytes; clients can show {UNTRUSTED.bulk_bytes:,}")
        if arguments.http is not None and tokens is None and not arguments.no_token:
            tokens = password.decode(errors="replace")
            if wrong := _wrong_token(tokens):
                raise UsageError(
                    f"everybody who can connect to {arguments.http} could do everything over HTTP, because the password"
                    f" cannot be its token: {wrong}; give --token-file, too, or --no-token if that is meant"
                )
    return password, tokens


def _first_line(path: str) -> tuple[str, bytes]:
    line = _lines(path)[0]
    if not line:
        raise UsageError(f"{path}: the first line is empty, and no password")
    return f"{path}, line 1", line.encode()


def _tokens(path: str) -> dict[str, str]:
    """Return tokens with their scopes from lines like ``TOKEN read write``; a token alone may do everything."""
    tokens: dict[str, str] = {}
    for number, line in enumerate(_lines(path), 1):
        token, *scopes = line.split() or ["#"]
        if token.startswith("#"):
            continue
        if token in tokens:
            raise UsageError(f"{path}: the token of line {number} is there twice")
        tokens[token] = " ".join(scopes) or "read write admin"
        if wrong := _wrong_token(token, tokens[token]):
            raise UsageError(f"{path}, line {number}: {wrong}")
    if not tokens:
        raise UsageError(f"{path}: has no token")
    return tokens


def _wrong_token(token: str, scopes: str = "read") -> str:
    """Return what is wrong with a token, nothing if it can be used."""
    from ..http.access import Access

    try:
        Access({token: scopes}, ())
    except ValueError as error:
        return str(error)
    return ""


def _lines(path: str) -> list[str]:
    """Return the lines of a file of secrets as they are; only a line break ends one."""
    try:
        with reading(path) as file:
            raw = file.read(_MAX_SECRETS_SIZE + 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    if len(raw) > _MAX_SECRETS_SIZE:
        raise UsageError(f"{path}: more than {_MAX_SECRETS_SIZE:,} bytes, and no file of secrets")
    try:
        return [line.removesuffix("\r") for line in raw.decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not UTF-8") from None
