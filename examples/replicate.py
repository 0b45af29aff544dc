"""Keep a copy of a store up to date, in another directory or on another disk, by sending over what has changed.

python examples/replicate.py

The replica remembers how far it has come, in the same batch as the changes themselves: whenever the copying is killed,
it goes on from there. The source may be opened with flag "r", beside the process that writes it.
"""

import os
import tempfile
from contextlib import suppress

import bytekv

POSITION = b"\0replicated up to"  # a key of the replica's own; the source must not use it
BATCH = 1000


def replicate(source: bytekv.Store, replica: bytekv.Store) -> str:
    """Bring a replica up to date and return what was done; nobody else may write to the replica."""
    source.refresh()  # a reader sees what its writer has done since
    since = int(replica.get(POSITION, b"0"))
    try:
        changes = source.changes(since)
    except bytekv.ChangesLostError as lost:
        # Compacted away: only the newest value of each key is still there, and not the way that led to it.
        return f"the changes from {since} to {lost.first_seq} are gone; copied all {copy(source, replica)} keys"
    count, batch = 0, replica.batch()
    for change in changes:
        count += 1
        if change.op == "put":
            batch.put(change.key, change.value, expires=change.expires)
        elif change.op == "delete":
            batch.delete(change.key)
        else:
            replica.clear()
            batch = replica.batch()
        since = change.seq
        if not change.more and len(batch) >= BATCH:  # what was one batch stays one
            batch[POSITION] = str(since)
            batch.commit()
            batch = replica.batch()
    if count:
        batch[POSITION] = str(since)
        batch.commit()
    return f"{count} changes, up to {since}"


def copy(source: bytekv.Store, replica: bytekv.Store) -> int:
    """Make the replica equal to a moment of the source; killed in the middle, it begins anew the next time."""
    with source.snapshot() as moment:
        for key in replica.scan_keys():
            if key not in moment and key != POSITION:
                del replica[key]
        for key in moment.scan_keys():
            with suppress(KeyError):  # expired meanwhile
                entry = moment.entry(key)
                replica.put(key, entry.value, expires=entry.expires)
        replica[POSITION] = str(moment.seq)  # last
        return len(moment)


def main(folder: str) -> None:
    paths = os.path.join(folder, "source"), os.path.join(folder, "replica")
    with bytekv.open(paths[0]) as db, bytekv.open(paths[0], "r") as source, bytekv.open(paths[1]) as replica:
        db.update({f"city/{name}": "" for name in ("Ghent", "Lviv", "Porto")})
        db["city/Porto"] = "231,000"
        print(replicate(source, replica))
        del db["city/Ghent"]
        print(replicate(source, replica), "-", replicate(source, replica))
        db["city/Lviv"] = "717,000"
        db.compact()  # while the replica was away
        print(replicate(source, replica))
        print(dict(replica.scan("city/")))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(place)
