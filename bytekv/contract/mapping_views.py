"""Mapping views: the keys, pairs and values of an ordered mapping, which also iterate backwards."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, ValuesView

__all__ = ["Items", "Keys", "Values"]


class Keys(KeysView[bytes]):
    """The keys of a mapping, in key order."""

    def __reversed__(self) -> Iterator[bytes]:
        return reversed(self._mapping)  # type: ignore[attr-defined]


class Items(ItemsView[bytes, bytes]):
    """The pairs of a mapping, in key order."""

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        return self._mapping.scan()  # type: ignore[attr-defined,no-any-return]

    def __reversed__(self) -> Iterator[tuple[bytes, bytes]]:
        return self._mapping.scan(reverse=True)  # type: ignore[attr-defined,no-any-return]


class Values(ValuesView[bytes]):
    """The values of a mapping, in key order."""

    def __iter__(self) -> Iterator[bytes]:
        return (value for _, value in self._mapping.scan())  # type: ignore[attr-defined]

    def __contains__(self, value: object) -> bool:
        return any(value == found for found in self)  # the inherited one looks up keys that may be gone by then

    def __reversed__(self) -> Iterator[bytes]:
        return (value for _, value in self._mapping.scan(reverse=True))  # type: ignore[attr-defined]
