"""The Redis protocol without I/O: bytes in, commands out; replies in, bytes out.

Knows RESP2, RESP3 and inline commands, and nothing of what a command means. A request is an array of bulk strings,
``*2\\r\\n$3\\r\\nGET\\r\\n$1\\r\\nk\\r\\n``, or a line of words. The format: https://redis.io/docs/latest/develop/reference/protocol-spec/

*Theory of operation.* Nearly all bytes that arrive are whole requests of a few short arguments. `_parse_whole` takes
them apart with one ``split`` and compares each length with what was announced: if they agree, the split is what the
lengths say, because no argument holds a line break. It leaves everything else (a request that is not all there, an
argument with a line break, a long one, an inline command, nonsense) to `_parse_one`, which goes byte by byte through
the buffer, keeps its place between two calls, and therefore looks at each byte once however the bytes were cut up.
A pipeline of nothing but GET, or of nothing but SET, need not become a list for each command: `parse_run` cuts it where
the next command begins, again by one ``split``, and compares the lengths.

Nothing is allocated because a client announced it, only for what has arrived, and never beyond `Limits`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

__all__ = [
    "NIL_ARRAY",
    "OK",
    "UNTRUSTED",
    "CommandRun",
    "Limits",
    "Parser",
    "Reply",
    "ReplyError",
    "Simple",
    "Verbatim",
    "encode",
    "encode_bulks",
    "encode_error",
    "integer",
    "parse_run",
]

_CRLF: Final = b"\r\n"
_STAR: Final = ord("*")
_DOLLAR: Final = ord("$")
_MAX_LINE_BYTES: Final = 64 * 1024  # of an inline command, as in Redis
_MAX_EMPTY: Final = 32  # requests of nothing that are taken from a client without password
_ARGUMENT_COST: Final = 64  # bytes that an argument costs beside its own

# What `_parse_whole` looks for: small arrays of short strings.
_COUNTS: Final = {b"*%d" % count: count for count in range(1, 65)}
_SIZES: Final = [b"$%d" % size for size in range(4096)]

# And `parse_run`: how each command of a run begins.
_RUNS: Final = {
    b"*%d\r\n$3\r\n%b\r\n" % (count, name): (name, count == 3)
    for count, name in ((2, b"GET"), (2, b"get"), (3, b"SET"), (3, b"set"))
}
_HEAD_SIZE: Final = len(next(iter(_RUNS)))

_INTEGER: Final = re.compile(rb"0|-?[1-9][0-9]{0,18}")


def integer(text: bytes) -> int | None:
    """Return a signed 64-bit integer, None if ``text`` is not exactly how Redis writes one.

    ``int`` would also take ``b"1_000"``, ``b" 12 "``, ``b"+5"`` and ``b"007"``.

    >>> integer(b"-5"), integer(b"+5"), integer(b"9223372036854775808")
    (-5, None, None)
    """
    if _INTEGER.fullmatch(text) is None:
        return None
    number = int(text)
    return number if -(1 << 63) <= number < 1 << 63 else None


# --- requests ----------------------------------------------------------------------------------


class Limits(NamedTuple):
    """What one request may ask for; 64 arguments of less than 4 KiB are always allowed, except to the `UNTRUSTED`."""

    arguments: int = 1024 * 1024
    bulk_bytes: int = 512 * 1024 * 1024  # Redis's proto-max-bulk-len
    request_bytes: int = 1024 * 1024 * 1024  # of all arguments together, with what they cost in memory


#: For clients that have not shown the password: enough for HELLO with AUTH and SETNAME.
UNTRUSTED: Final = Limits(10, 16 * 1024, 1024 * 1024)


class _Wrong(Exception):
    """What arrived is not the protocol."""


class Parser:
    """Take the bytes of one connection apart.

    >>> parser = Parser(Limits())
    >>> parser.feed(b"*2\\r\\n$3\\r\\nGET\\r\\n$1\\r\\nk\\r\\nPI")
    [[b'GET', b'k']]
    >>> parser.feed(b"NG\\r\\n")
    [[b'PING']]
    """

    __slots__ = (
        "_arguments",
        "_buffer",
        "_bulk",
        "_empty",
        "_missing",
        "_searched",
        "_size",
        "error",
        "is_partial",
        "limits",
    )

    def __init__(self, limits: Limits) -> None:
        #: May be replaced between two calls. With `UNTRUSTED`, `feed` returns one command at a time, because the
        #: command may be the one that makes the client trusted.
        self.limits = limits
        #: What was wrong, once something was. Nothing is parsed after that.
        self.error: bytes | None = None
        #: Whether a request has begun to arrive and is not all there, or what arrived has not been looked at.
        self.is_partial = False
        self._buffer = bytearray()  # what has arrived and is not parsed
        self._arguments: list[bytes] | None = None  # of the request under way
        self._empty = 0  # requests of nothing
        self._missing = 0  # its arguments that are still to come
        self._bulk = -1  # announced size of the next one, -1 while that is not known
        self._size = 0  # bytes that it costs so far
        self._searched = 0  # bytes of the buffer that hold no line break

    @property
    def partial_bytes(self) -> int:
        """Return how many bytes of the request under way are held."""
        return len(self._buffer) + self._size

    def feed(self, data: bytes) -> list[list[bytes]]:
        """Return the commands that are complete now; `error` says if what follows them is wrong.

        Complexity: O(len(data)), and memory for what `limits` allow.
        """
        commands: list[list[bytes]] = []
        if not self.is_partial and self.limits is not UNTRUSTED and self.error is None:
            data = _parse_whole(data, commands)
            if not data:
                return commands
        if self.error is None:
            try:
                self._feed(data, commands)
            except _Wrong as wrong:
                self.error = b"ERR Protocol error: " + wrong.args[0]
                self._buffer.clear()
                self._arguments = None
            self.is_partial = bool(self._buffer) or self._arguments is not None
        return commands

    def _feed(self, data: bytes, commands: list[list[bytes]]) -> None:
        """Parse what is out of the ordinary, and what follows it."""
        one_only = self.limits is UNTRUSTED
        to_its_end = not self.is_partial and not one_only  # of what has just arrived
        self._buffer += data
        while (command := self._parse_one()) is not None:
            commands.append(command)
            if one_only:
                return
            if not to_its_end:
                # What was under way is complete; what follows may well be ordinary again.
                rest = _parse_whole(bytes(self._buffer), commands)
                self._buffer[:] = rest
                to_its_end = True

    def _parse_one(self) -> list[bytes] | None:
        """Take the next command off the buffer; None if it is not all there, or wrong."""
        while self._buffer:
            if self._arguments is None:
                if self._buffer[0] != _STAR:
                    line = self._line(b"\n", b"too big inline request")
                    if line is None:
                        return None
                    words = _words(line.removesuffix(b"\r"))
                    if words is None:
                        raise _Wrong(b"unbalanced quotes in request")
                    if len(words) > self.limits.arguments:
                        raise _Wrong(b"too many arguments")
                    if words:
                        return words
                    self._count_empty()
                    continue  # redis-cli --pipe sends empty lines
                line = self._line(_CRLF, b"too big mbulk count string")
                if line is None:
                    return None
                count = integer(line[1:])
                if count is None:
                    raise _Wrong(b"invalid multibulk length")
                if count > self.limits.arguments:
                    raise _Wrong(self._too_much + b" multibulk length")
                if count <= 0:
                    self._count_empty()
                    continue
                self._arguments, self._missing, self._size = [], count, 0
            elif not self._take_argument(self._arguments):
                return None
            elif not self._missing:
                command, self._arguments, self._size = self._arguments, None, 0
                return command
        return None

    def _count_empty(self) -> None:
        """Count a request of nothing: to look at many of them takes time, which is not for those without password."""
        self._empty += 1
        if self._empty > _MAX_EMPTY and self.limits is UNTRUSTED:
            raise _Wrong(b"unauthenticated empty requests")

    def _take_argument(self, arguments: list[bytes]) -> bool:
        buffer, size = self._buffer, self._bulk
        if size < 0:
            line = self._line(_CRLF, b"too big bulk count string")
            if line is None:
                return False
            if not line or line[0] != _DOLLAR:
                raise _Wrong(b"expected '$', got '%b'" % line[:1])
            given = integer(line[1:])
            if given is None or given < 0:
                raise _Wrong(b"invalid bulk length")
            if given > self.limits.bulk_bytes:
                raise _Wrong(self._too_much + b" bulk length")
            if self._size + given + _ARGUMENT_COST > self.limits.request_bytes:
                raise _Wrong(b"request too big")
            self._bulk = size = given
        if len(buffer) < size + 2:
            return False
        if buffer[size : size + 2] != _CRLF:
            raise _Wrong(b"expected CRLF after a bulk string")
        with memoryview(buffer) as view:
            arguments.append(bytes(view[:size]))
        del buffer[: size + 2]
        self._bulk = -1
        self._missing -= 1
        self._size += size + _ARGUMENT_COST
        return True

    @property
    def _too_much(self) -> bytes:
        return b"unauthenticated" if self.limits is UNTRUSTED else b"invalid"

    def _line(self, end: bytes, complaint: bytes) -> bytes | None:
        """Take a line off the buffer; None if it is not all there."""
        buffer = self._buffer
        at = buffer.find(end, max(0, self._searched - 1))
        if at < 0:
            self._searched = len(buffer)
            if len(buffer) > _MAX_LINE_BYTES:
                raise _Wrong(complaint)
            return None
        self._searched = 0
        if at > _MAX_LINE_BYTES:
            raise _Wrong(complaint)
        line = bytes(buffer[:at])
        del buffer[: at + len(end)]
        return line


def _parse_whole(data: bytes, commands: list[list[bytes]]) -> bytes:
    """Append the ordinary requests at the beginning of ``data`` to ``commands``; return what follows them.

    0.4 µs a request; `_parse_one` takes 4.
    """
    parts = data.split(_CRLF)
    counts, sizes, last, at = _COUNTS, _SIZES, len(parts) - 1, 0
    try:
        while at < last:
            count = counts[parts[at]]
            stop = at + 1 + 2 * count
            if stop > last:
                break
            arguments = parts[at + 2 : stop : 2]
            if count == 3:
                name, key, value = arguments
                if (
                    parts[at + 1] != sizes[len(name)]
                    or parts[at + 3] != sizes[len(key)]
                    or parts[at + 5] != sizes[len(value)]
                ):
                    break
            elif count == 2:
                name, key = arguments
                if parts[at + 1] != sizes[len(name)] or parts[at + 3] != sizes[len(key)]:
                    break
            elif parts[at + 1 : stop : 2] != [sizes[len(argument)] for argument in arguments]:
                break
            commands.append(arguments)
            at = stop
    except LookupError:
        pass  # not in the tables: not an array, a large one, or a long string
    if at == last:
        return parts[at]
    return _CRLF.join(parts[at:]) if at else data


class CommandRun(NamedTuple):
    """Commands that arrived together and have one name, GET or SET: what `parse_run` finds."""

    name: bytes
    keys: list[bytes]
    values: list[bytes]  # of SET; none of GET

    def commands(self, first: int) -> list[list[bytes]]:
        """Return the commands from number ``first`` on as `Parser.feed` does."""
        if self.values:
            pairs = zip(self.keys[first:], self.values[first:], strict=True)
            return [[self.name, key, value] for key, value in pairs]
        return [[self.name, key] for key in self.keys[first:]]


def parse_run(data: bytes) -> CommandRun | None:
    """Return several GET with a key, or SET with a key and a value, that are all of ``data``; None if it is not so.

    A piece between two beginnings of a command is what the lengths say if its size is what they announce. 0.2 µs a
    GET and 0.3 a SET.
    """
    head = data[:_HEAD_SIZE]
    kind = _RUNS.get(head)
    if kind is None or data[-2:] != _CRLF:
        return None
    name, has_values = kind
    pieces = data[_HEAD_SIZE:-2].split(_CRLF + head)
    if len(pieces) < 2:
        return None
    keys: list[bytes] = []
    values: list[bytes] = []
    sizes, add_key, add_value = _SIZES, keys.append, values.append
    try:
        if has_values:
            for piece in pieces:
                key_size, key, value_size, value = piece.split(_CRLF)
                if key_size != sizes[len(key)] or value_size != sizes[len(value)]:
                    return None
                add_key(key)
                add_value(value)
        else:
            for piece in pieces:
                key_size, key = piece.split(_CRLF)
                if key_size != sizes[len(key)]:
                    return None
                add_key(key)
    except (LookupError, ValueError):
        return None  # a long string, one with a line break, or one that is not there
    return CommandRun(name, keys, values)


_ESCAPES: Final = {"n": 10, "r": 13, "t": 9, "b": 8, "a": 7}
_PIECE: Final = re.compile(
    rb"""
      (?P<blank> \s+ )
    | (?P<plain> [^\s"']+ )
    | " (?P<double> (?: [^"\\] | \\. )*+ ) " (?= \s | \Z )
    | ' (?P<single> (?: \\' | [^'] )*+ ) ' (?= \s | \Z )
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPE: Final = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|(.))", re.DOTALL)


def _words(line: bytes) -> list[bytes] | None:
    r"""Split an inline command as redis-cli and Redis do; None if quotes do not match.

    >>> _words(rb'SET k "a\x41"')
    [b'SET', b'k', b'aA']
    """
    if b'"' not in line and b"'" not in line:
        return line.split()
    words: list[bytes] = []
    at, within = 0, False
    while at < len(line):
        piece = _PIECE.match(line, at)
        if piece is None:
            return None
        at, kind = piece.end(), piece.lastgroup
        if kind == "blank":
            within = False
            continue
        text = piece[kind or 0]
        if kind == "double":
            text = _ESCAPE.sub(_unescape, text)
        elif kind == "single":
            text = text.replace(b"\\'", b"'")
        if within:
            words[-1] += text
        else:
            words.append(text)
        within = True
    return words


def _unescape(found: re.Match[bytes]) -> bytes:
    if found[1] is not None:
        return bytes.fromhex(found[1].decode())
    return bytes((_ESCAPES.get(found[2].decode("latin-1"), found[2][0]),))


# --- replies -----------------------------------------------------------------------------------


class ReplyError(Exception):
    """An error as a client sees it: a code in capitals, a space, a sentence."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        super().__init__(text.decode("utf-8", "replace"))


class Simple(NamedTuple):
    """A status, such as OK."""

    text: bytes


class Verbatim(NamedTuple):
    """Text for people; a plain string in RESP2."""

    text: bytes


class _NilArray:
    """What EXEC answers when a watched key has changed: in RESP2 another null than that of a missing value."""


OK: Final = Simple(b"OK")
NIL_ARRAY: Final = _NilArray()

#: What a command may answer. None is the null, a dict a map (in RESP2 a flat array).
Reply: TypeAlias = "bytes | int | list[Reply] | dict[bytes, Reply] | Simple | Verbatim | ReplyError | _NilArray | None"


def encode(reply: Reply, resp3: bool) -> bytes:
    """Return the bytes of a reply. Complexity: O(size).

    >>> encode([b"a", None, 7], resp3=False)
    b'*3\\r\\n$1\\r\\na\\r\\n$-1\\r\\n:7\\r\\n'
    >>> encode({b"a": None}, resp3=True)
    b'%1\\r\\n$1\\r\\na\\r\\n_\\r\\n'
    """
    parts: list[bytes] = []
    _encode(reply, resp3, parts.append)
    return b"".join(parts)


def _encode(reply: Reply, resp3: bool, add: Callable[[bytes], None]) -> None:
    if isinstance(reply, bytes):
        add(b"$%d\r\n%b\r\n" % (len(reply), reply))
    elif isinstance(reply, int):
        add(b":%d\r\n" % reply)
    elif reply is None:
        add(b"_\r\n" if resp3 else b"$-1\r\n")
    elif isinstance(reply, Simple):
        add(b"+%b\r\n" % reply.text)
    elif isinstance(reply, list):
        add(b"*%d\r\n" % len(reply))
        for item in reply:
            _encode(item, resp3, add)
    elif isinstance(reply, dict):
        add(b"%b%d\r\n" % (b"%" if resp3 else b"*", len(reply) * (1 if resp3 else 2)))
        for key, item in reply.items():
            _encode(key, resp3, add)
            _encode(item, resp3, add)
    elif isinstance(reply, ReplyError):
        add(encode_error(reply.text))
    elif isinstance(reply, Verbatim):
        head = b"=%d\r\ntxt:%b\r\n" % (len(reply.text) + 4, reply.text)
        add(head if resp3 else b"$%d\r\n%b\r\n" % (len(reply.text), reply.text))
    else:
        add(b"_\r\n" if resp3 else b"*-1\r\n")


def encode_bulks(values: list[bytes | None], resp3: bool) -> bytes:
    """Return the replies to several commands, each a string or a null: `encode` of each in a fifth of the time."""
    try:
        parts = [_CRLF] * (2 * len(values) + 1)
        parts[:-1:2] = map(_SIZES.__getitem__, map(len, values))  # type: ignore[arg-type]
        parts[1::2] = values  # type: ignore[assignment]
        parts[-1] = b""
        return _CRLF.join(parts)
    except (LookupError, TypeError):  # a long one, or a null
        null = encode(None, resp3)
        return b"".join([null if value is None else b"$%d\r\n%b\r\n" % (len(value), value) for value in values])


def encode_error(text: bytes) -> bytes:
    """Return an error reply; a line break that a client has smuggled into it becomes a space."""
    return b"-%b\r\n" % text.strip(_CRLF).replace(b"\r", b" ").replace(b"\n", b" ")
