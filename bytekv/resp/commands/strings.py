"""The commands on values: GET and SET in all their forms, numbers, parts of values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from ..arguments import Options, add_floats, integer_of, milliseconds_of
from ..protocol import OK, Limits, Reply, ReplyError
from ..work import Found, Work
from .table import ALL, ONE, PAIRS, command, wrong_arity

Buffer = bytes | memoryview
__all__: list[str] = []

_MAX_VALUE_BYTES: Final = Limits().bulk_bytes
_MAX_INTEGER: Final = (1 << 63) - 1


@command("get", 2, "read", "key", "Return a value.", keys=ONE)
def _get(work: Work, arguments: list[bytes]) -> Reply:
    return work.value(arguments[1])


_SET_OPTIONS: Final = frozenset((b"NX", b"XX", b"GET", b"KEEPTTL", b"IFEQ"))


@command(
    "set",
    -3,
    "write",
    "key value [NX | XX | IFEQ value] [GET] [EX seconds | PX milliseconds | EXAT time | PXAT time | KEEPTTL]",
    "Store a value, if it does not exist (NX), exists (XX) or has a certain value (IFEQ).",
    keys=ONE,
)
def _set(work: Work, arguments: list[bytes]) -> Reply:
    _, key, value, *rest = arguments
    options = Options(rest, _SET_OPTIONS, b"set")
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


@command("setnx", 3, "write", "key value", "Store a value if the key does not exist.", keys=ONE)
def _setnx(work: Work, arguments: list[bytes]) -> Reply:
    if work.exists(arguments[1]):
        return 0
    work.put(arguments[1], arguments[2])
    return 1


@command("setex", 4, "write", "key seconds value", "Store a value for some seconds.", keys=ONE)
@command("psetex", 4, "write", "key milliseconds value", "Store a value for some milliseconds.", keys=ONE)
def _setex(work: Work, arguments: list[bytes]) -> Reply:
    name, key, given, value = arguments
    name = name.lower()
    work.put(key, value, milliseconds_of(given, 1 if name == b"psetex" else 1000, work.now_ms, name))
    return OK


@command("getset", 3, "write", "key value", "Store a value and return the one before.", keys=ONE)
def _getset(work: Work, arguments: list[bytes]) -> Reply:
    old = work.value(arguments[1])
    work.put(arguments[1], arguments[2])
    return old


@command("getdel", 2, "write", "key", "Return a value and delete the key.", keys=ONE)
def _getdel(work: Work, arguments: list[bytes]) -> Reply:
    old = work.value(arguments[1])
    if old is not None:
        work.delete(arguments[1])
    return old


@command(
    "getex",
    -2,
    "write",
    "key [EX seconds | PX milliseconds | EXAT time | PXAT time | PERSIST]",
    "Return a value and change when it expires.",
    keys=ONE,
)
def _getex(work: Work, arguments: list[bytes]) -> Reply:
    _, key, *rest = arguments
    options = Options(rest, frozenset((b"PERSIST",)), b"getex")
    found = work.find(key)
    if found is None:
        return None
    expires_ms = options.expires_ms(work.now_ms)
    if expires_ms or (b"PERSIST" in options.flags and found.expires_ms):
        work.put(key, found.value, expires_ms)
    return found.value


@command("mget", -2, "read", "key [key ...]", "Return several values.", keys=ALL)
def _mget(work: Work, arguments: list[bytes]) -> Reply:
    return work.gather(work.value(key) for key in arguments[1:])


@command("mset", -3, "write", "key value [key value ...]", "Store several values, all or nothing.", keys=PAIRS)
@command(
    "msetnx",
    -3,
    "write",
    "key value [key value ...]",
    "Store several values if none of the keys exists.",
    keys=PAIRS,
)
def _mset(work: Work, arguments: list[bytes]) -> Reply:
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


@command("strlen", 2, "read", "key", "Return the length of a value.", keys=ONE)
def _strlen(work: Work, arguments: list[bytes]) -> Reply:
    return len(work.value(arguments[1]) or b"")


@command("append", 3, "write", "key value", "Append to a value and return its length.", keys=ONE)
def _append(work: Work, arguments: list[bytes]) -> Reply:
    found = work.find(arguments[1])
    old, expires_ms, _ = found or Found(b"")
    return _put_long(work, arguments[1], len(old) + len(arguments[2]), lambda: (old, arguments[2]), expires_ms)


@command("getrange substr", 4, "read", "key start end", "Return a part of a value, both ends included.", keys=ONE)
def _getrange(work: Work, arguments: list[bytes]) -> Reply:
    start, end = integer_of(arguments[2]), integer_of(arguments[3])
    value = work.value(arguments[1]) or b""
    if start < 0 and end < 0 and start > end:
        return b""
    start = max(0, start + len(value) if start < 0 else start)
    end = max(0, end + len(value) if end < 0 else end)
    return value[start : end + 1]


@command("setrange", 4, "write", "key offset value", "Overwrite a part of a value and return its length.", keys=ONE)
def _setrange(work: Work, arguments: list[bytes]) -> Reply:
    _, key, given, part = arguments
    offset = integer_of(given)
    if offset < 0:
        raise ReplyError(b"ERR offset is out of range")
    old, expires_ms, _ = work.find(key) or Found(b"")
    if not part:
        return len(old)
    length = max(len(old), offset + len(part))
    rest = memoryview(old)
    make = lambda: (rest[:offset], bytes(max(0, offset - len(old))), part, rest[offset + len(part) :])  # noqa: E731
    return _put_long(work, key, length, make, expires_ms)


def _put_long(work: Work, key: bytes, length: int, parts: Callable[[], Sequence[Buffer]], expires_ms: int) -> int:
    """Store a value that becomes so long, once it is known that it may; return its length."""
    if length > _MAX_VALUE_BYTES:
        raise ReplyError(b"ERR string exceeds maximum allowed size (proto-max-bulk-len)")
    work.make_room(key, length)
    work.put(key, b"".join(parts()), expires_ms)
    return length


@command("incr", 2, "write", "key", "Add 1 to a number.", keys=ONE)
@command("decr", 2, "write", "key", "Subtract 1 from a number.", keys=ONE)
def _incr(work: Work, arguments: list[bytes]) -> Reply:
    return _add(work, arguments[1], 1 if arguments[0].lower() == b"incr" else -1)


@command("incrby", 3, "write", "key amount", "Add to a number.", keys=ONE)
@command("decrby", 3, "write", "key amount", "Subtract from a number.", keys=ONE)
def _incrby(work: Work, arguments: list[bytes]) -> Reply:
    amount = integer_of(arguments[2])
    if arguments[0].lower() == b"incrby":
        return _add(work, arguments[1], amount)
    if amount == -_MAX_INTEGER - 1:
        raise ReplyError(b"ERR decrement would overflow")
    return _add(work, arguments[1], -amount)


def _add(work: Work, key: bytes, amount: int) -> int:
    old, expires_ms, _ = work.find(key) or Found(b"0")
    total = integer_of(old) + amount
    if not -_MAX_INTEGER - 1 <= total <= _MAX_INTEGER:
        raise ReplyError(b"ERR increment or decrement would overflow")
    work.put(key, b"%d" % total, expires_ms)
    return total


@command("incrbyfloat", 3, "write", "key amount", "Add to a number with a fraction.", keys=ONE)
def _incrbyfloat(work: Work, arguments: list[bytes]) -> Reply:
    old, expires_ms, _ = work.find(arguments[1]) or Found(b"0")
    total = add_floats(old, arguments[2])
    work.put(arguments[1], total, expires_ms)
    return total
