"""Objects as values: a dict of anything that JSON knows, with changes that do not overwrite each other.

python examples/json_values.py [DIRECTORY]

A store keeps bytes and does not guess. JSON is readable in twenty years and runs no code when it is read, which pickle
does. What is read is a copy: changing it changes nothing in the store. `change` reads, lets you alter, and writes.
"""

import json
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import bytekv


def encode(value: Any) -> bytes:
    """Return JSON as bytes, equal for equal objects; `TypeError` or `ValueError` for what JSON does not know."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, allow_nan=False, separators=(",", ":")).encode()


class Objects(MutableMapping[str, Any]):
    """A mapping of text to objects, on the keys of a store that begin with a prefix."""

    def __init__(self, db: bytekv.Store, prefix: str) -> None:
        self._db, self._prefix = db, prefix

    def __getitem__(self, name: str) -> Any:
        return json.loads(self._db[self._prefix + name])

    def __setitem__(self, name: str, value: Any) -> None:
        self._db[self._prefix + name] = encode(value)

    def __delitem__(self, name: str) -> None:
        del self._db[self._prefix + name]

    def __iter__(self) -> Iterator[str]:
        skip = len(self._prefix.encode())
        return (key[skip:].decode() for key in self._db.scan_keys(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self._db.scan_keys(self._prefix))

    @contextmanager
    def change(self, name: str, default: Any) -> Iterator[Any]:
        """Give out an object to be altered in place, and store it at the end of the block, unless that fails."""
        with self._db.transaction() as tx:  # two threads that change one object do so one after the other
            found = tx.get(self._prefix + name)
            value = default if found is None else json.loads(found)
            yield value
            tx[self._prefix + name] = encode(value)


def main(path: str) -> None:
    with bytekv.open(path) as db:
        recipes = Objects(db, "recipe/")
        recipes["leek soup"] = {"serves": 4, "needs": ["leek", "potatoes", "salt"]}
        recipes["crêpes"] = {"serves": 2, "needs": ["flour", "eggs", "milk"]}

        with recipes.change("leek soup", {}) as soup:
            soup["needs"].append("nutmeg")
        try:
            with recipes.change("crêpes", {}) as pancakes:
                pancakes["needs"].clear()
                raise RuntimeError("the phone rings")  # nothing is stored
        except RuntimeError as error:
            print(f"({error})")

        for name, recipe in recipes.items():
            print(f"{name}, for {recipe['serves']}: {', '.join(recipe['needs'])}")
        print("stored as", db["recipe/crêpes"].decode())


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "recipes")
