"""Keys and values, made before the clock starts, and what a store has to answer.

Knows what every key's value should be at each moment: a value is made from the number of its key and a version,
the versions are kept here, so whatever an engine returns can be checked byte for byte without a second copy of
all values. Knows nothing of engines or clocks.

Keys are 16 random bytes, in random order; each hundred of them share their first eight, so that prefixes of a
hundred entries exist. Values do not compress.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from struct import Struct

GROUP = 100
_STAMP = Struct("<IH")  # number and version: the beginning of every value
_WINDOW = 1 << 20


class WrongAnswerError(AssertionError):
    """An engine returned something else than what was stored."""


class DataSet:
    """``count`` keys with values of ``value_size`` bytes (8 at least), the same for the same seed."""

    def __init__(self, count: int, value_size: int, seed: int = 0) -> None:
        source = random.Random(seed)
        self.count, self.value_size, self.seed = count, value_size, seed
        self.prefixes = [source.randbytes(7) + b"p" for _ in range((count + GROUP - 1) // GROUP)]
        keys = [self.prefixes[number // GROUP] + source.randbytes(8) for number in range(count)]
        source.shuffle(keys)
        self.keys: list[bytes] = keys
        self.versions = array("H", bytes(2 * count))  # 0: not in the store
        self._random = source
        self._block = source.randbytes(_WINDOW + value_size)
        self._sorted: list[bytes] | None = None

    # --- values --------------------------------------------------------------------------------

    def value(self, number: int, version: int) -> bytes:
        """Return the value that a key has in one of its versions."""
        start = (number * 2_654_435_761 + version * 40_503) % _WINDOW
        return _STAMP.pack(number, version) + self._block[start : start + self.value_size - _STAMP.size]

    def renew(self, numbers: Iterable[int]) -> list[tuple[bytes, bytes]]:
        """Return keys with new values, which the store is expected to hold from now on."""
        keys, versions, value = self.keys, self.versions, self.value
        pairs = []
        for number in numbers:
            version = versions[number] = versions[number] + 1
            pairs.append((keys[number], value(number, version)))
        return pairs

    def forget(self, numbers: Iterable[int]) -> None:
        """Expect these keys to be gone."""
        for number in numbers:
            self.versions[number] = 0

    def absent(self) -> list[int]:
        """List the numbers of the keys that the store should not hold."""
        return [number for number, version in enumerate(self.versions) if not version]

    def expected(self, number: int) -> bytes | None:
        """Return the value that the store should hold for a key."""
        version = self.versions[number]
        return self.value(number, version) if version else None

    # --- orders and choices --------------------------------------------------------------------

    def shuffled(self) -> Sequence[int]:
        """Return all key numbers in a new random order."""
        numbers = array("I", range(self.count))
        self._random.shuffle(numbers)
        return numbers

    def some(self, most: int) -> Sequence[int]:
        """Return all key numbers, or ``most`` of them, in random order."""
        return self.shuffled() if self.count <= most else self._random.sample(range(self.count), most)

    def missing(self, count: int) -> list[bytes]:
        """Make keys that lie between those of the store and do not exist."""
        known = set(self.keys) if self.count <= 100_000 else ()  # 64 random bits; above, chance does
        made = [
            self.prefixes[self._random.randrange(len(self.prefixes))] + self._random.randbytes(8) for _ in range(count)
        ]
        return [key for key in made if key not in known]

    def zipfian(self, count: int) -> list[int]:
        """Draw key numbers as YCSB does: the r-th most popular with a weight of 1/r^0.99."""
        weights = list(accumulate(rank**-0.99 for rank in range(1, self.count + 1)))
        return self._random.choices(range(self.count), cum_weights=weights, k=count)

    def coin(self, share: float, count: int) -> Iterator[bool]:
        """Toss a coin that falls on True with a probability of ``share``."""
        return (self._random.random() < share for _ in range(count))

    def lengths(self, count: int) -> Iterator[int]:
        """Draw the lengths of YCSB's scans: 1 to 100, all equally likely."""
        return (self._random.randint(1, GROUP) for _ in range(count))

    def sorted_keys(self) -> list[bytes]:
        """Return all keys in order; the caller that adds keys keeps it up."""
        if self._sorted is None:
            self._sorted = sorted(self.keys)
        return self._sorted

    # --- checks --------------------------------------------------------------------------------

    def check_values(self, numbers: Iterable[int], found: Iterable[bytes | None]) -> None:
        """Compare what was read for single keys with what was stored."""
        for number, value in zip(numbers, found, strict=True):
            if value != self.expected(number):
                raise WrongAnswerError(f"key {self.keys[number].hex()}: {_shown(value)} was read")

    def check_pairs(self, found: Iterable[tuple[bytes, bytes]], after: bytes | None = None) -> bytes | None:
        """Check entries that came in ascending order from ``after`` on; return the last key.

        Each value tells its key. Ascending keys, right values and the right number of them, which the
        caller counts, leave no way for an entry to be missing.
        """
        for key, value in found:
            if after is not None and key <= after:
                raise WrongAnswerError(f"key {key.hex()} came after {after.hex()}")
            number = _STAMP.unpack_from(value)[0] if value and len(value) >= _STAMP.size else len(self.keys)
            if number >= len(self.keys) or self.keys[number] != key or value != self.expected(number):
                raise WrongAnswerError(f"key {key.hex()}: {_shown(value)} was read")
            after = key
        return after


def _shown(value: bytes | None) -> str:
    return "nothing" if value is None else f"{value[:12].hex()}… ({len(value)} bytes)"
