"""A log that keeps the last week: lines by time, any hour of them at once, old ones dropped as one range.

python examples/rolling_log.py

A key is the time in microseconds, in eight bytes that sort like the number, and four more that keep apart what happens
in the same microsecond. The space of dropped lines comes back by itself, in the background.
"""

import logging
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import bytekv


def key_at(when: float) -> bytes:
    """Return where the lines of a time begin, in seconds since 1970."""
    return b"log/" + round(when * 1_000_000).to_bytes(8, "big")


class StoreHandler(logging.Handler):
    """A handler of the logging module that writes into a store and keeps what is not older than ``keep``."""

    def __init__(self, db: bytekv.Store, keep: timedelta) -> None:
        super().__init__()
        self.db, self.keep = db, keep
        self._count = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._count += 1
            number = (self._count % (1 << 32)).to_bytes(4, "big")
            self.db[key_at(record.created) + number] = self.format(record)
            if self._count % 100 == 0:
                self.drop(before=record.created - self.keep.total_seconds())
        except bytekv.BytekvError:  # a full disk, say: what the module does with errors of handlers
            self.handleError(record)

    def drop(self, before: float) -> int:
        """Delete the lines before a time; return how many."""
        with self.db.batch() as batch:
            for key in self.db.scan_keys("log/", stop=key_at(before)):
                del batch[key]
            return len(batch)

    def lines(self, start: float, stop: float) -> Iterator[tuple[datetime, str]]:
        """Yield the lines from one time on up to, not including, another."""
        for key, line in self.db.scan(start=key_at(start), stop=key_at(stop)):
            yield datetime.fromtimestamp(int.from_bytes(key[4:12], "big") / 1_000_000, UTC), line.decode()


def main() -> None:
    with tempfile.TemporaryDirectory() as place, bytekv.open(place) as db:
        handler = StoreHandler(db, keep=timedelta(days=7))
        logger = logging.Logger("oven")
        logger.addHandler(handler)

        # Four weeks, a line every ten minutes: records with a time of their own, for the sake of the demonstration.
        first = datetime(2026, 3, 1, tzinfo=UTC)
        for minute in range(0, 4 * 7 * 24 * 60, 10):
            degrees = 180 + (minute // 10 * 37) % 41
            record = logger.makeRecord("oven", logging.INFO, __file__, 0, "%d °C", (degrees,), None)
            record.created = (first + timedelta(minutes=minute)).timestamp()
            logger.handle(record)

        hour = datetime(2026, 3, 27, 6, tzinfo=UTC)
        print("on the 27th, from 6 to 7:")
        for when, line in handler.lines(hour.timestamp(), (hour + timedelta(hours=1)).timestamp()):
            print(f"  {when:%H:%M}  {line}")
        oldest = next(handler.lines(0, hour.timestamp()))[0]
        print(f"{db.last_seq:,} operations, {len(db):,} lines kept, the oldest of {oldest:%d %B}")
        before, after = db.stats().total_bytes, db.compact().bytes_after
        print(f"{before:,} bytes, {after:,} without what was dropped")


if __name__ == "__main__":
    main()
