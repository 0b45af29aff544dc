"""Keep a copy of a store up to date, in another directory or on another disk, by sending over what has changed.

python examples/replicate.py

The replica remembers how far it has come, in the same batch as the changes themselves: whenever the copying is killed,
it goes on from there. The source may be opened with flag "r", beside the process that writes it.
"""

import tempfile
from collections.abc import Iterable, Iterator

import bytekv
from bytekv import Change, Snapshot, Store

POSITION = b"\0replicated up to"  # a key of the replica's own; the source must not use it
BATCH, BATCH_BYTES = 1000, 1 << 20  # values may be large: what is written at once is limited by bytes, too


def replicate(source: Store, replica: Store) -> str:
    """Bring a replica up to date and return what was done; nobody else may write to the replica."""
    source.refresh()  # a reader sees what its writer has done since
    since = int(replica.get(POSITION, b"0"))
    try:
        write(replica, source.changes(since))
    except bytekv.ChangesLostError as lost:
        # Compacted away: only the newest value of each key is still there, and not the way that led to it.
        with source.snapshot() as moment:
            write(replica, everything(moment, replica))
            return f"the changes from {since} to {lost.first_seq} are gone; copied all {len(moment)} keys"
    return f"{(reached := int(replica.get(POSITION, b'0'))) - since} changes, up to {reached}"


def everything(moment: Snapshot, replica: Store) -> Iterator[Change]:
    """Yield changes that make a replica equal to a moment; the last has its seq: killed before, it begins anew."""
    # Each key of either, by one look at it: one that expires meanwhile must not keep an older value here.
    for key in sorted({*moment.scan_keys(), *replica.scan_keys()}):
        try:
            entry = moment.entry(key)
            yield Change(0, "put", key, entry.value, entry.expires, False)
        except KeyError:
            yield Change(0, "delete", key, b"", None, False)
    yield Change(moment.seq, "put", POSITION, b"", None, False)


def write(replica: Store, changes: Iterable[Change]) -> None:
    """Write changes in batches; what was one batch of the source stays one."""
    batch, size, together = replica.batch(), 0, list[Change]()
    for change in changes:
        together.append(change)
        if not change.more:
            more = sum(len(part.key) + len(part.value) for part in together)
            if len(batch) >= BATCH or size + more > BATCH_BYTES:
                batch.commit()
                batch, size = replica.batch(), 0
            for part in together:
                if part.op == "put":
                    batch.put(part.key, part.value, expires=part.expires)
                elif part.op == "delete":
                    batch.delete(part.key)
                else:
                    replica.clear()  # the position goes, too: killed here, the copying begins anew
                    batch = replica.batch()
            if change.seq:
                batch[POSITION] = str(change.seq)
            size, together = size + more, []
    batch.commit()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place, bytekv.open(f"{place}/source") as db:
        db.update({f"city/{name}": "" for name in ("Ghent", "Lviv", "Porto")})
        db["city/Porto"] = "231,000"
        with bytekv.open(f"{place}/source", "r") as source, bytekv.open(f"{place}/replica") as replica:
            print(replicate(source, replica))
            del db["city/Ghent"]
            print(replicate(source, replica), "-", replicate(source, replica))
            db["city/Lviv"] = "717,000"
            db.compact()  # while the replica was away
            print(replicate(source, replica))
            print(dict(replica.scan("city/")))
