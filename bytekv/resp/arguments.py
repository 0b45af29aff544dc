"""Arguments: floats, times, options and patterns, read and printed as Redis does.

Knows no command and no store. Integers are in `protocol`, which needs them for lengths.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Final

from .protocol import ReplyError, integer

__all__ = ["Pattern", "SetOptions", "add_floats", "integer_of", "milliseconds_of", "syntax_error", "word"]

_MAX_MS: Final = 1 << 61  # of time: 73 million years; a store takes no much later one
_MAX_PATTERN_BYTES: Final = 16 * 1024  # compiling one takes some µs a byte

# --- numbers -----------------------------------------------------------------------------------


def word(argument: bytes) -> bytes:
    """Return a keyword as the tables have it, in capitals."""
    return argument.upper()


def integer_of(argument: bytes) -> int:
    """Return a signed 64-bit integer or raise the error that Redis answers."""
    number = integer(argument)
    if number is None:
        raise ReplyError(b"ERR value is not an integer or out of range")
    return number


def milliseconds_of(argument: bytes, unit_ms: int, since_ms: int, command: bytes, *, past: bool = False) -> int:
    """Return a time since 1970 from one in units of ``unit_ms`` milliseconds after ``since_ms``.

    Without ``past`` it must lie after ``since_ms``.
    """
    number = integer_of(argument)
    if (number <= 0 and not past) or not -_MAX_MS <= number * unit_ms + since_ms <= _MAX_MS:
        raise ReplyError(b"ERR invalid expire time in '%b' command" % command)
    return number * unit_ms + since_ms


_FLOAT: Final = re.compile(rb"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,6})?")
_INFINITE: Final = re.compile(rb"[+-]?inf(?:inity)?", re.IGNORECASE)
_MANTISSA_BITS: Final = 64
_MAX_FLOAT: Final = (2**_MANTISSA_BITS - 1) * 2 ** (16384 - _MANTISSA_BITS)
_MIN_FLOAT: Final = Fraction(1, 2**16382)
_MAX_FLOAT_BYTES: Final = 5 * 1024


def add_floats(value: bytes, increment: bytes) -> bytes:
    """Return the sum of two decimal numbers, digit for digit as Redis on x86-64 prints it.

    Redis calculates in long doubles, of 64 bits mantissa, and prints 17 digits after the point; with Python's
    floats 10.5 + 0.1 would be 10.59999999999999964.

    >>> add_floats(b"10.5", b"0.1"), add_floats(b"5.0e3", b"2.0e2")
    (b'10.6', b'5200')
    """
    left, right = _float_of(value), _float_of(increment)
    if left is None or right is None or abs(total := _rounded(left + right)) > _MAX_FLOAT:
        raise ReplyError(b"ERR increment would produce NaN or Infinity")
    return _printed(total)


def _float_of(argument: bytes) -> Fraction | None:
    """Return a finite number, None for an infinite one."""
    if len(argument) < _MAX_FLOAT_BYTES and _FLOAT.fullmatch(argument):
        mantissa, _, exponent = argument.lower().partition(b"e")
        power = int(exponent or b"0")
        if abs(power) <= 2 * _MAX_FLOAT_BYTES:  # beyond, a power of ten would take long; and it is out of range
            # Decimal, here and below, because int and str refuse more than 4300 digits.
            number = _rounded(Fraction(Decimal(mantissa.decode())) * Fraction(10) ** power)
            if abs(number) <= _MAX_FLOAT and (not number or abs(number) >= _MIN_FLOAT):
                return number
    elif _INFINITE.fullmatch(argument):
        return None
    raise ReplyError(b"ERR value is not a valid float")


def _rounded(number: Fraction) -> Fraction:
    """Return the nearest number of 64 significant bits, the even one of two."""
    if not number:
        return number
    shift = abs(number.numerator).bit_length() - number.denominator.bit_length() - _MANTISSA_BITS
    unit = Fraction(2) ** shift
    if abs(number) >= unit * 2**_MANTISSA_BITS:
        unit *= 2
    return round(number / unit) * unit


def _printed(number: Fraction) -> bytes:
    digits = str(Decimal(abs(round(number * 10**17)))).encode().zfill(18)
    text = (digits[:-17] + b"." + digits[-17:]).rstrip(b"0").rstrip(b".")
    return b"-" + text if number < 0 and text != b"0" else text


# --- options -----------------------------------------------------------------------------------


def syntax_error() -> ReplyError:
    """Return the error for options that do not go together, or do not exist."""
    return ReplyError(b"ERR syntax error")


_TIMES: Final = {b"EX": (1000, True), b"PX": (1, True), b"EXAT": (1000, False), b"PXAT": (1, False)}


class SetOptions:
    """The options of SET and GETEX: a time of expiry, or flags."""

    def __init__(self, arguments: list[bytes], allowed: frozenset[bytes], name: bytes) -> None:
        self.flags: set[bytes] = set()
        self.equals: bytes | None = None
        self._time: tuple[bytes, bytes] | None = None
        self._name = name
        rest = iter(arguments)
        for argument in rest:
            option = word(argument)
            if option in _TIMES or (option == b"IFEQ" and option in allowed):
                value = next(rest, None)
                if value is None:
                    raise syntax_error()
                if option == b"IFEQ":
                    self.equals = value
                elif self._time is not None and self._time[0] != option:
                    raise syntax_error()
                else:
                    self._time = option, value
            elif option in allowed:
                self.flags.add(option)
            else:
                raise syntax_error()
        conditions = len(self.flags & {b"NX", b"XX"}) + (self.equals is not None)
        expiries = len(self.flags & {b"KEEPTTL", b"PERSIST"}) + (self._time is not None)
        if conditions > 1 or expiries > 1:
            raise syntax_error()

    def expires_ms(self, now_ms: int) -> int:
        """Return the time that was given, 0 if there was none."""
        if self._time is None:
            return 0
        option, value = self._time
        unit_ms, relative = _TIMES[option]
        return milliseconds_of(value, unit_ms, now_ms if relative else 0, self._name)


# --- patterns ----------------------------------------------------------------------------------


class Pattern:
    """A glob pattern of KEYS and SCAN.

    >>> pattern = Pattern(b"user:[0-9]*")
    >>> pattern.prefix, pattern.matches(b"user:7!"), pattern.matches(b"user:x")
    (b'user:', True, False)
    """

    __slots__ = ("matches", "prefix")

    def __init__(self, pattern: bytes) -> None:
        if len(pattern) > _MAX_PATTERN_BYTES:
            raise ReplyError(b"ERR pattern too long")
        segments = _segments(pattern)
        #: What every key that matches begins with: where in the order of keys to look.
        self.prefix: bytes = _literal(segments[0])
        expression = b"".join(segments[0])
        # The part between two stars may take the first place where it fits, and never has to give it back: so the
        # groups are atomic, and no pattern makes a look at a key take more than (key x pattern) steps.
        for segment in segments[1:-1]:
            expression += b"(?>.*?%b)" % b"".join(segment)
        if len(segments) > 1:
            expression += b".*%b" % b"".join(segments[-1])
        found = re.compile(expression, re.DOTALL).fullmatch
        #: Tell whether a key matches.
        self.matches: Callable[[bytes], bool] = lambda key: found(key) is not None


def _segments(pattern: bytes) -> list[list[bytes]]:
    """Return the parts between the stars: for each character of a key a regular expression."""
    segments: list[list[bytes]] = [[]]
    at = 0
    while at < len(pattern):
        char = pattern[at : at + 1]
        at += 1
        if char == b"*":
            if segments[-1] or len(segments) == 1:
                segments.append([])
        elif char == b"?":
            segments[-1].append(b".")
        elif char == b"[":
            expression, at = _class(pattern, at)
            segments[-1].append(expression)
        else:
            if char == b"\\" and at < len(pattern):
                char = pattern[at : at + 1]
                at += 1
            segments[-1].append(re.escape(char))
    return segments


def _class(pattern: bytes, at: int) -> tuple[bytes, int]:
    """Return a regular expression for the class that begins at ``at``, and where it ends."""
    negated = pattern[at : at + 1] == b"^"
    at += negated
    ranges: list[tuple[int, int]] = []
    while at < len(pattern) and pattern[at : at + 1] != b"]":
        if pattern[at : at + 1] == b"\\" and at + 1 < len(pattern):
            ranges.append((pattern[at + 1], pattern[at + 1]))
            at += 2
        elif pattern[at + 1 : at + 2] == b"-" and at + 2 < len(pattern):
            low, high = sorted((pattern[at], pattern[at + 2]))
            ranges.append((low, high))
            at += 3
        else:
            ranges.append((pattern[at], pattern[at]))
            at += 1
    inner = b"".join(b"\\x%02x-\\x%02x" % each for each in ranges)
    if not inner:
        return (b"." if negated else b"(?!)"), at + 1
    return b"[%b%b]" % (b"^" if negated else b"", inner), at + 1


def _literal(segment: list[bytes]) -> bytes:
    """Return the characters at the beginning of a segment that match only themselves."""
    found = bytearray()
    for expression in segment:
        plain = expression.removeprefix(b"\\") if len(expression) == 2 else expression
        if len(plain) != 1 or expression == b".":
            break
        found += plain
    return bytes(found)
