"""A program written for Redis, without a Redis: redis-py talks to a store in this process. Run it twice.

pip install bytekv redis && python examples/redis_drop_in.py [DIRECTORY]

The first three functions know redis-py and nothing else. They would work on a Redis server, too: only the line that
releases the lock needs bytekv, or Redis 8.4.
"""

import sys
import uuid
from collections.abc import Callable

import redis

import bytekv
from bytekv.resp import Server


def cached(client: redis.Redis, name: str, seconds: int, make: Callable[[], str]) -> str:
    """Return a value that is made anew when it has expired."""
    value = client.get(name)
    if value is None:
        value = make().encode()
        client.set(name, value, ex=seconds)
    return value.decode()


def visit(client: redis.Redis, page: str, visitor: str) -> int:
    """Count a visit and remember who came last, both or neither; return the number of visits."""
    with client.pipeline() as pipe:  # MULTI … EXEC: one crash-atomic batch of the store
        pipe.incr(f"visits:{page}")
        pipe.set(f"last:{page}", visitor)
        visits, _ = pipe.execute()
    return int(visits)


def exclusively(client: redis.Redis, name: str, work: Callable[[], None]) -> bool:
    """Do something unless another process is at it; a lock that its owner cannot free is gone after ten seconds."""
    token = uuid.uuid4().hex
    if not client.set(f"lock:{name}", token, nx=True, px=10_000):
        return False
    try:
        work()
    finally:
        client.execute_command("DELEX", f"lock:{name}", "IFEQ", token)  # only if it is still ours
    return True


def main(path: str) -> None:
    with bytekv.open(path) as db, Server(db, port=0) as server, redis.Redis(port=server.address[1]) as client:
        print(f"serving {path} at {server.url}")
        print("front page:", cached(client, "page:front", 60, lambda: "made with much effort"))
        for visitor in ("Ann", "Bob"):
            print(f"visit {visit(client, 'front', visitor)} by {visitor}")
        print("cleaned up:", exclusively(client, "cleanup", lambda: print("  ... cleaning up")))

        # The same keys without a server: what a report needs is in order, and no further than a loop.
        for key, value in db.scan("visits:"):
            print(f"{key.decode()} = {int(value)}, last {db['last:' + key.decode().partition(':')[2]].decode()}")
        print(f"the front page is kept for another {db.ttl('page:front') or 0:.0f} seconds")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "redis-data")
