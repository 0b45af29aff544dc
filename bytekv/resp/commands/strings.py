"""The commands on values: GET and SET in all their forms, numbers, parts of values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from ..arguments import SetOptions, add_floats, integer_of, milliseconds_of
from ..protocol import OK, Limits, Reply, ReplyError
from ..work import StoredValue, UnitOfWork
from .command import wrong_arity

Buffer = bytes | memoryview
__all__: list[str] = []

_MAX_VALUE_BYTES: Final = Limits().bulk_bytes
_MAX_INTEGER: Final = (1 << 63) - 1


def get(work: UnitOfWork, arguments: list[bytes]) -> Reply:
    return work.value(arguments[1])


_SET_OPTIONS: Final = frozenset((b"NX", b"XX", b"GET", b"KEEPTTL", b"IFEQ"))


def set_(work: UnitOfWork, arguments: list[bytes]) -> Reply:
    _, key, value, *rest = arguments
    options = SetOptions(rest, _SET_OPTIONS, b"set")
    expires_ms = options.expires_ms(work.now_ms)
    found = work.find(key) if options.flags or options.equals is not None else None
    old: Reply = None if found is None else found.value
    wanted = found is None if b"NX" in options.flags else found is not None or b"XX" not in options.flags
    if options.equals is not None:
        wanted = old == options.equals
    if wanted:
        if b"KEEPTTL" in options.flags and found is not None:
            expires_ms = found.expires_ms
        work.put(key, value, expires_ms)
    return old if b"GET" in options.flags else OK if wanted else None


def setnx(work: UnitOfWork, arguments: list[bytes]) -> Reply:
    if work.exists(arguments[1]):
        return 0
    work.put(arguments[1], arguments[2])
    return 1


def setex(work: UnitOfWork, arguments: list[bytes]) -> Reply:
    name, key, given, value = arguments
    name = name.lower()
    work.put(key, value, milliseconds_of(given, 1 if name == b"psetex" else 1000, work.now_ms, name))
    return OK


def getset(work: UnitOfWork, arguments: list[bytes]) -> Reply:
    old = work.value(arguments[1])
    work.put(arguments[1], arguments[2])
    return old


def getdel(work: UnitOfWork, arguments: list[bytes]) -> Reply:
    old = work.value(arguments[1])
    if old is not None:
        work.delete(arguments[1])
    return old


def getex(work: UnitOfWork, arguments: list[bytes]) -> Reply:
    _, key, *rest = arguments
    options = SetOptions(rest, frozenset((b"PERSIST",)), b"getex")
    found = work.find(key)
    if found is None:
        return None
    expires_ms = options.expires_ms(work.now_ms)
    if expires_ms or (b"PERSIST" in options.flags and found.expires_ms):
        work.put(key, found.value, expires_ms)
    return found.value


def mget(work: UnitOfWork, arguments: list[bytes]) -> Reply:
    return work.gather(work.value(key) for key in arguments[1:])


def mset(work: UnitOfWork, arguments: list[bytes]) -> Reply:
    name = arguments[0].lower()
    if len(arguments) % 2 == 0:
        raise wrong_arity(name)
    keys = arguments[1::2]
    if name == b"msetnx" and any(work.exists(key) for key in keys):
        return 0
    for key in keys:
        work.check_key(key)
    for key, value in zip(keys, arguments[2::2], strict=True):
        work.put(key, value)
    return 1 if name == b"msetnx" else OK


def strlen(work: UnitOfWork, arguments: list[bytes]) -> Reply:
    return len(work.value(arguments[1]) or b"")


def append(work: UnitOfWork, arguments: list[bytes]) -> Reply:
    found = work.find(arguments[1])
    old, expires_ms, _ = found or StoredValue(b"")
    return _put_long(work, arguments[1], len(old) + len(arguments[2]), lambda: (old, arguments[2]), expires_ms)


def getrange(work: UnitOfWork, arguments: list[bytes]) -> Reply:
    start, end = integer_of(arguments[2]), integer_of(arguments[3])
    value = work.value(arguments[1]) or b""
    if start < 0 and end < 0 and start > end:
        return b""
    start = max(0, start + len(value) if start < 0 else start)
    end = max(0, end + len(value) if end < 0 else end)
    return value[start : end + 1]


def setrange(work: UnitOfWork, arguments: list[bytes]) -> Reply:
    _, key, given, part = arguments
    offset = integer_of(given)
    if offset < 0:
        raise ReplyError(b"ERR offset is out of range")
    old, expires_ms, _ = work.find(key) or StoredValue(b"")
    if not part:
        return len(old)
    length = max(len(old), offset + len(part))
    rest = memoryview(old)
    make = lambda: (rest[:offset], bytes(max(0, offset - len(old))), part, rest[offset + len(part) :])  # noqa: E731
    return _put_long(work, key, length, make, expires_ms)


def _put_long(work: UnitOfWork, key: bytes, length: int, parts: Callable[[], Sequence[Buffer]], expires_ms: int) -> int:
    """Store a value that becomes so long, once it is known that it may; return its length."""
    if length > _MAX_VALUE_BYTES:
        raise ReplyError(b"ERR string exceeds maximum allowed size (proto-max-bulk-len)")
    work.make_room(key, length)
    work.put(key, b"".join(parts()), expires_ms)
    return length


def incr(work: UnitOfWork, arguments: list[bytes]) -> Reply:
    return _add(work, arguments[1], 1 if arguments[0].lower() == b"incr" else -1)


def incrby(work: UnitOfWork, arguments: list[bytes]) -> Reply:
    amount = integer_of(arguments[2])
    if arguments[0].lower() == b"incrby":
        return _add(work, arguments[1], amount)
    if amount == -_MAX_INTEGER - 1:
        raise ReplyError(b"ERR decrement would overflow")
    return _add(work, arguments[1], -amount)


def _add(work: UnitOfWork, key: bytes, amount: int) -> int:
    old, expires_ms, _ = work.find(key) or StoredValue(b"0")
    total = integer_of(old) + amount
    if not -_MAX_INTEGER - 1 <= total <= _MAX_INTEGER:
        raise ReplyError(b"ERR increment or decrement would overflow")
    work.put(key, b"%d" % total, expires_ms)
    return total


def incrbyfloat(work: UnitOfWork, arguments: list[bytes]) -> Reply:
    old, expires_ms, _ = work.find(arguments[1]) or StoredValue(b"0")
    total = add_floats(old, arguments[2])
    work.put(arguments[1], total, expires_ms)
    return total
