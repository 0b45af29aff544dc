"""Conversions and limits: what a key, a value and a time to live may be.

Every store takes and returns the same, whatever keeps the bytes. The limits are those of the local store's format,
in which they are frozen.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

from .._lean import TYPE_CHECKING, NamedTuple
from ..errors import LimitError

if TYPE_CHECKING:
    from typing import Final

__all__ = [
    "DELETE_COST",
    "MAX_BATCH_SIZE",
    "MAX_DIGITS",
    "MAX_EXPIRES_MS",
    "MAX_KEY_SIZE",
    "MAX_VALUE_SIZE",
    "NEVER",
    "Bytes",
    "Entry",
    "EntryStat",
    "Expiry",
    "check_sizes",
    "counted",
    "expiry_of",
    "fitting",
    "increased",
    "key_of",
    "limit_of",
    "number_of",
    "to_bytes",
    "ttl_to_ms",
    "value_of",
]

Bytes = bytes | bytearray | memoryview | str

MAX_KEY_SIZE: Final = 0xFFFF  # 65,535 bytes: the key length is a u16
MAX_VALUE_SIZE: Final = 1 << 30  # 1 GiB
MAX_BATCH_SIZE: Final = (1 << 30) + (1 << 20)  # 1 GiB + 1 MiB: holds one largest value; offsets stay below 2**31
MAX_EXPIRES_MS: Final = (1 << 63) - 1
MAX_DIGITS: Final = 4000  # of an integer that `incr` takes; Python itself refuses more than 4300
DELETE_COST: Final = 27  # bytes that a delete takes in a batch, besides the key
_MOST_S: Final = MAX_EXPIRES_MS / 2000  # of a ttl or a time, so that their sum stays below


class Entry(NamedTuple):
    """A key's entry with what is known of it; times in seconds since 1970."""

    key: bytes
    value: bytes
    seq: int
    modified: float
    expires: float | None


class EntryStat(NamedTuple):
    """What is known of a key's entry besides its value; ``size`` is that of the value in bytes, times as in `Entry`."""

    key: bytes
    size: int
    seq: int
    modified: float
    expires: float | None


def check_sizes(key: bytes, value: bytes = b"") -> None:
    """Raise `LimitError` if a key or a value is too long for the format."""
    if len(key) > MAX_KEY_SIZE:
        raise LimitError(f"a key of {len(key)} bytes; the limit is {MAX_KEY_SIZE}")
    if len(value) > MAX_VALUE_SIZE:
        raise LimitError(f"a value of {len(value)} bytes; the limit is {MAX_VALUE_SIZE}")


def to_bytes(what: str, given: object) -> bytes:
    """Return a key or a value as bytes; ``what`` names it in the `TypeError`."""
    if type(given) is bytes:
        return given
    if isinstance(given, str):
        return given.encode()
    try:
        return bytes(memoryview(given))  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"a {what} must be bytes-like or str, not {type(given).__name__}") from None


def key_of(key: Bytes) -> bytes:
    """Return a key to write under, checked."""
    if type(key) is not bytes:
        key = to_bytes("key", key)
    check_sizes(key)
    return key


def value_of(value: Bytes) -> bytes:
    """Return a value to write, checked."""
    if type(value) is not bytes:
        value = to_bytes("value", value)
    check_sizes(b"", value)
    return value


def pair_of(key: Bytes, value: Bytes) -> tuple[bytes, bytes]:
    """Return a key and a value to write, checked."""
    return key_of(key), value_of(value)


def ttl_to_ms(ttl: float) -> int:
    """Return a time to live in milliseconds, at least 1; raise `TypeError` or `LimitError`."""
    if type(ttl) is int and 0 < ttl < _MOST_S:
        return ttl * 1000
    if isinstance(ttl, bool) or not isinstance(ttl, (int, float)):
        raise TypeError(f"a ttl must be a number of seconds, not {type(ttl).__name__}")
    if not 0 < ttl < _MOST_S:  # NaN fails, too
        raise LimitError(f"a ttl must be more than 0 seconds and finite, not {ttl}")
    return -int(-ttl * 1000 // 1)  # rounded up


class Expiry(NamedTuple):
    """When a key expires, in milliseconds: a time after the write, or one since 1970; both 0: never."""

    ttl_ms: int
    expires_ms: int

    def at(self, now_ms: int) -> int:
        """Return when a key expires that is written now, in milliseconds since 1970; 0 for never."""
        return now_ms + self.ttl_ms if self.ttl_ms else self.expires_ms


def expiry_of(ttl: float | None, expires: float | None) -> Expiry:
    """Return when a key expires that is written with these arguments; raise `TypeError` or `LimitError`."""
    if type(expires) is float and 1 <= expires < _MOST_S and ttl is None:
        return Expiry(0, round(expires * 1000))
    if expires is None:
        return NEVER if ttl is None else Expiry(ttl_to_ms(ttl), 0)
    if ttl is not None:
        raise TypeError("give either ttl or expires, not both")
    if isinstance(expires, bool) or not isinstance(expires, (int, float)):
        raise TypeError(f"expires must be a number of seconds since 1970, not {type(expires).__name__}")
    if not 0 < expires < _MOST_S:
        raise LimitError(f"expires must be a time after 1970 and finite, not {expires}")
    return Expiry(0, max(1, round(expires * 1000)))


NEVER: Final = Expiry(0, 0)


def number_of(what: str, given: int) -> int:
    """Return an int, checked; ``what`` names it in the `TypeError`."""
    if isinstance(given, bool) or not isinstance(given, int):
        raise TypeError(f"{what} must be an int, not {type(given).__name__}")
    return given


def increased(key: bytes, value: bytes, amount: int) -> int:
    """Return the decimal integer that a value is, plus ``amount``; `ValueError` if it is none."""
    digits = value.removeprefix(b"-")
    if not digits.isdigit() or len(digits) > MAX_DIGITS:
        raise ValueError(f"the value of {key!r} is not a decimal integer")
    return amount + int(value)


def fitting(keys: list[bytes]) -> int:
    """Return how many of the first of these keys one batch can delete."""
    if DELETE_COST * len(keys) + sum(map(len, keys)) <= MAX_BATCH_SIZE:
        return len(keys)
    return bisect_right(list(accumulate(DELETE_COST + len(key) for key in keys)), MAX_BATCH_SIZE)


def limit_of(limit: int | None) -> int | None:
    """Return a scan's limit, checked."""
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int)):
        raise TypeError(f"limit must be an int or None, not {type(limit).__name__}")
    if limit is not None and limit < 0:
        raise LimitError(f"limit must not be negative: {limit}")
    return limit


def counted(number: int, one: str, many: str = "") -> str:
    """Return a number with the noun that fits it.

    >>> counted(1, "entry", "entries"), counted(2, "segment")
    ('1 entry', '2 segments')
    """
    return f"{number} {one if number == 1 else many or one + 's'}"
