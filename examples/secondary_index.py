"""Find records by something else than their key: an index that is never out of step with what it points at.

python examples/secondary_index.py [DIRECTORY]

    book/<isbn>                                the record, as JSON
    author/<author> NUL <year> NUL <isbn>      nothing: the key says it all, sorted by author, then by year

A record and its index key are written in one transaction: no crash, no other thread ever finds one without the other.
"""

import json
import sys
from collections.abc import Iterator

import bytekv

Book = dict[str, str]


def by_author(isbn: str, book: Book) -> str:
    if "\0" in book["author"]:
        raise ValueError("an author's name must not hold the separator, NUL")
    return f"author/{book['author']}\0{book['year']}\0{isbn}"


class Shelf:
    """Books by number, and by author."""

    def __init__(self, db: bytekv.Store) -> None:
        self.db = db

    def put(self, isbn: str, book: Book) -> None:
        with self.db.transaction() as tx:
            self._forget(tx, isbn)  # what the old record was found by, it is found by no more
            tx[f"book/{isbn}"] = json.dumps(book)
            tx[by_author(isbn, book)] = b""

    def remove(self, isbn: str) -> bool:
        with self.db.transaction() as tx:
            return self._forget(tx, isbn)

    @staticmethod
    def _forget(tx: bytekv.Transaction, isbn: str) -> bool:
        old = tx.pop(f"book/{isbn}", None)
        if old is not None:
            del tx[by_author(isbn, json.loads(old))]
        return old is not None

    def of(self, author: str) -> Iterator[tuple[str, Book]]:
        """Yield the books of an author, the oldest first, as they are at one moment."""
        with self.db.snapshot() as now:
            for key in now.scan_keys(f"author/{author}\0"):
                isbn = key.decode().rpartition("\0")[2]
                yield isbn, json.loads(now[f"book/{isbn}"])

    def rebuild(self) -> None:
        """Make the index anew from the records, as one step: for a new kind of index on old records."""
        with self.db.transaction() as tx:
            for key in list(tx.scan_keys("author/")):
                del tx[key]
            for key, value in tx.scan("book/"):
                tx[by_author(key.decode()[5:], json.loads(value))] = b""


def main(path: str) -> None:
    with bytekv.open(path) as db:
        shelf = Shelf(db)
        shelf.put("0-14-303943-3", {"author": "Steinbeck", "year": "1939", "title": "The Grapes of Wrath"})
        shelf.put("0-14-017739-6", {"author": "Steinbeck", "year": "1937", "title": "Of Mice and Men"})
        shelf.put("0-618-57494-8", {"author": "Steinbeck", "year": "1954", "title": "The Fellowship of the Ring"})
        print("Steinbeck:", [book["title"] for _, book in shelf.of("Steinbeck")])
        shelf.put("0-618-57494-8", {"author": "Tolkien", "year": "1954", "title": "The Fellowship of the Ring"})
        print("corrected:", [book["title"] for _, book in shelf.of("Steinbeck")])
        print("Tolkien:  ", [book["title"] for _, book in shelf.of("Tolkien")])


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "books")
