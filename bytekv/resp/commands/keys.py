"""The commands on keys: delete, rename, list, expire; and bytekv's own, ranges and compare-and-set."""

from __future__ import annotations

from itertools import islice
from random import randint
from typing import Any, Final

from ... import Store
from ..arguments import Pattern, SetOptions, integer_of, milliseconds_of, syntax_error, word
from ..protocol import OK, Reply, ReplyError, Simple, integer
from ..work import Cursors, UnitOfWork

__all__: list[str] = []


# --- keys --------------------------------------------------------------------------------------


def delete(work: UnitOfWork, arguments: list[bytes]) -> Reply:
    return sum(work.delete(key) for key in arguments[1:])


def delex(work: UnitOfWork, arguments: list[bytes]) -> Reply:
    if len(arguments) == 2:
        return int(work.delete(arguments[1]))
    if len(arguments) != 4 or word(arguments[2]) not in (b"IFEQ", b"IFNE"):
        raise syntax_error()
    value = work.value(arguments[1])
    if value is None or (value == arguments[3]) != (word(arguments[2]) == b"IFEQ"):
        return 0
    return int(work.delete(arguments[1]))


def exists(work: UnitOfWork, arguments: list[bytes]) -> Reply:
    return sum(work.exists(key) for key in arguments[1:])


def type_(work: UnitOfWork, arguments: list[bytes]) -> Reply:
    return Simple(b"string" if work.exists(arguments[1]) else b"none")


def rename(work: UnitOfWork, arguments: list[bytes]) -> Reply:
    name, key, other = arguments
    careful = name.lower() == b"renamenx"
    found = work.find(key)
    if found is None:
        raise ReplyError(b"ERR no such key")
    if careful and work.exists(other):
        return 0
    if key != other:
        work.put(other, found.value, found.expires_ms)
        work.delete(key)
    return 1 if careful else OK


def copy(work: UnitOfWork, arguments: list[bytes]) -> Reply:
    _, source, destination, *rest = arguments
    replace = False
    options = iter(rest)
    for option in options:
        if word(option) == b"REPLACE":
            replace = True
        elif word(option) == b"DB" and (database := next(options, None)) is not None:
            if integer_of(database) != 0:
                raise ReplyError(b"ERR DB index is out of range")
        else:
            raise syntax_error()
    if source == destination:
        raise ReplyError(b"ERR source and destination objects are the same")
    found = work.find(source)
    if found is None or (work.exists(destination) and not replace):
        return 0
    work.put(destination, found.value, found.expires_ms)
    return 1


def randomkey(work: UnitOfWork, arguments: list[bytes]) -> Reply:
    first, last = next(work.keys(limit=1), None), next(work.keys(limit=1, reverse=True), None)
    if first is None or last is None:
        return None
    # The first key after a random place between both ends: cheap, and not all keys are equally likely.
    common = 0
    while common < min(len(first), len(last)) and first[common] == last[common]:
        common += 1
    low, high = (int.from_bytes(key[common : common + 8].ljust(8, b"\0")) for key in (first, last))
    place = first[:common] + randint(low, high).to_bytes(8)
    return next(work.keys(start=place, limit=1), last)


def list_keys(work: UnitOfWork, arguments: list[bytes]) -> Reply:
    pattern = Pattern(arguments[1])
    return work.gather(key for key in work.keys(pattern.prefix) if pattern.matches(key))


def scan(work: UnitOfWork, arguments: list[bytes]) -> Reply:
    cursor = integer(arguments[1]) if len(arguments[1]) < 20 else None
    if cursor is None or cursor < 0:
        raise ReplyError(b"ERR invalid cursor")
    pattern, count, wanted = Pattern(b"*"), 10, True
    options = iter(arguments[2:])
    for option in options:
        value = next(options, None)
        if value is None or word(option) not in (b"MATCH", b"COUNT", b"TYPE"):
            raise syntax_error()
        if word(option) == b"MATCH":
            pattern = Pattern(value)
        elif word(option) == b"COUNT":
            count = integer_of(value)
            if count < 1:
                raise syntax_error()
        else:
            wanted = value.lower() == b"string"
    after = None
    if cursor and (after := work.cursors.key(cursor)) is None:
        raise ReplyError(b"ERR unknown cursor; too many scans are under way, or the server was restarted")
    keys: list[Any] = work.gather(work.keys(pattern.prefix, after, include_start=False, limit=count))
    following = work.cursors.add(keys[-1]) if len(keys) == count else 0
    return [b"%d" % following, [key for key in keys if pattern.matches(key)] if wanted else []]


def dbsize(work: UnitOfWork, arguments: list[bytes]) -> Reply:
    return len(work)


def flush_store(store: Store, arguments: list[bytes]) -> Reply:
    _check_flush(arguments)
    store.clear()
    return OK


def flush(work: UnitOfWork, arguments: list[bytes]) -> Reply:
    _check_flush(arguments)
    work.clear()
    return OK


def _check_flush(arguments: list[bytes]) -> None:
    if len(arguments) > 2 or (len(arguments) == 2 and word(arguments[1]) not in (b"ASYNC", b"SYNC")):
        raise syntax_error()


# --- expiry ------------------------------------------------------------------------------------

_EXPIRE: Final = {
    b"expire": (1000, True),
    b"pexpire": (1, True),
    b"expireat": (1000, False),
    b"pexpireat": (1, False),
}


def expire(work: UnitOfWork, arguments: list[bytes]) -> Reply:
    name, key, given, *rest = arguments
    name = name.lower()
    conditions = _conditions(rest)
    unit_ms, relative = _EXPIRE[name]
    expires_ms = milliseconds_of(given, unit_ms, work.now_ms if relative else 0, name, past=True)
    found = work.find(key)
    if found is None:
        return 0
    now = found.expires_ms
    if (
        (b"NX" in conditions and now)
        or (b"XX" in conditions and not now)
        or (b"GT" in conditions and (not now or expires_ms <= now))
        or (b"LT" in conditions and now and expires_ms >= now)
    ):
        return 0
    work.put(key, found.value, expires_ms or -1)
    return 1


def _conditions(options: list[bytes]) -> set[bytes]:
    conditions = {word(option) for option in options}
    for option in options:
        if word(option) not in (b"NX", b"XX", b"GT", b"LT"):
            raise ReplyError(b"ERR Unsupported option %b" % option)
    if b"NX" in conditions and len(conditions) > 1:
        raise ReplyError(b"ERR NX and XX, GT or LT options at the same time are not compatible")
    if {b"GT", b"LT"} <= conditions:
        raise ReplyError(b"ERR GT and LT options at the same time are not compatible")
    return conditions


def ttl(work: UnitOfWork, arguments: list[bytes]) -> Reply:
    ttl_ms = work.ttl_ms(arguments[1])
    return ttl_ms if ttl_ms < 0 or arguments[0].lower() == b"pttl" else (ttl_ms + 500) // 1000


def expiretime(work: UnitOfWork, arguments: list[bytes]) -> Reply:
    found = work.find(arguments[1])
    if found is None:
        return -2
    if not found.expires_ms:
        return -1
    return found.expires_ms if arguments[0].lower() == b"pexpiretime" else (found.expires_ms + 500) // 1000


def persist(work: UnitOfWork, arguments: list[bytes]) -> Reply:
    found = work.find(arguments[1])
    if found is None or not found.expires_ms:
        return 0
    work.put(arguments[1], found.value)
    return 1


# --- bytekv's own ------------------------------------------------------------------------------


def _range(
    arguments: list[bytes], allowed: tuple[bytes, ...]
) -> tuple[bytes | None, bytes | None, set[bytes], int | None]:
    _, start, stop, *rest = arguments
    flags: set[bytes] = set()
    limit = None
    options = iter(rest)
    for option in options:
        if word(option) not in allowed:
            raise syntax_error()
        if word(option) == b"LIMIT":
            value = next(options, None)
            if value is None:
                raise syntax_error()
            limit = integer_of(value)
            if limit < 0:
                raise syntax_error()
        flags.add(word(option))
    return start or None, stop or None, flags, limit


def bkv_range(work: UnitOfWork, arguments: list[bytes]) -> Reply:
    start, stop, flags, limit = _range(arguments, (b"REV", b"LIMIT", b"WITHVALUES"))
    keys = work.keys(start=start, stop=stop, reverse=b"REV" in flags, limit=limit)
    if b"WITHVALUES" not in flags:
        return work.gather(keys)
    values = ((key, value) for key in keys if (value := work.value(key)) is not None)
    return work.gather(part for pair in values for part in pair)


def bkv_delrange(work: UnitOfWork, arguments: list[bytes]) -> Reply:
    start, stop, _, limit = _range(arguments, (b"LIMIT",))
    keys = list(islice(work.keys(start=start, stop=stop), limit))
    return sum(work.delete(key) for key in keys)


def bkv_cas(work: UnitOfWork, arguments: list[bytes]) -> Reply:
    _, key, given, value, *rest = arguments
    options = SetOptions(rest, frozenset((b"KEEPTTL",)), b"bkv.cas")
    seq, expires_ms = integer_of(given), options.expires_ms(work.now_ms)
    if seq < 0:
        raise ReplyError(b"ERR seq is out of range")
    found = work.find(key)
    if seq != (0 if found is None else found.seq):
        return 0
    work.put(key, value, found.expires_ms if found is not None and options.flags else expires_ms)
    return 1


def entry_of(store: Store, arguments: list[bytes]) -> Reply:
    return bkv_entry(UnitOfWork(store, Cursors()), arguments)


def bkv_entry(work: UnitOfWork, arguments: list[bytes]) -> Reply:
    found = work.find(arguments[1])
    if found is None:
        return None
    seq = None if found.seq < 0 else found.seq  # written in this block; it gets one when that is committed
    return {b"value": found.value, b"seq": seq, b"expires": found.expires_ms or None}


def bkv_stats(work: UnitOfWork, arguments: list[bytes]) -> Reply:
    stats = work.store.stats()
    names = ("keys", "last_seq", "durable_seq", "total_bytes", "live_bytes", "dead_bytes", "compactions", "open_views")
    found: dict[bytes, Reply] = {name.encode(): getattr(stats, name) for name in names}
    found[b"segments"] = len(stats.segments)
    return found
