"""No two accounts with one address: something besides the key that must be unique, also when two sign up at once.

python examples/unique_index.py

    user/<name>          the address
    address/<address>    the name of who has it

Looking first and writing then is two steps, and between them somebody else looks. A transaction is one.
"""

import tempfile
import threading

import bytekv


class TakenError(Exception):
    """Raised when somebody else has a name or an address."""


def sign_up(db: bytekv.Store, name: str, address: str) -> None:
    """Make an account; `TakenError`, and nothing has changed, if there is one of that name or address."""
    with db.transaction() as tx:
        if tx.get(f"user/{name}") is not None:
            raise TakenError(f"the name {name} is taken")
        _take(tx, name, address)
        tx[f"user/{name}"] = address.casefold()


def move(db: bytekv.Store, name: str, address: str) -> None:
    """Give an account another address, and free its old one for others."""
    with db.transaction() as tx:
        old = tx[f"user/{name}"].decode()
        del tx[f"address/{old}"]
        _take(tx, name, address)
        tx[f"user/{name}"] = address.casefold()


def _take(tx: bytekv.Transaction, name: str, address: str) -> None:
    key = f"address/{address.casefold()}"
    if tx.get(key) is not None:
        raise TakenError(f"{address} is taken")
    tx[key] = name


def race(db: bytekv.Store, address: str, names: list[str]) -> list[str]:
    """Let all of them sign up with one address at the same moment; return who was told that it worked."""
    welcome, refused = [], []
    start = threading.Barrier(len(names))

    def attempt(name: str) -> None:
        start.wait()
        try:
            sign_up(db, name, address)
            welcome.append(name)
        except TakenError as error:
            refused.append(f"  {name}: {error}")

    threads = [threading.Thread(target=attempt, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(*refused, sep="\n")
    return welcome


def main() -> None:
    with tempfile.TemporaryDirectory() as place, bytekv.open(place) as db:
        (winner,) = race(db, "Info@example.org", [f"user{number}" for number in range(8)])
        print(f"  {winner}: welcome!")
        move(db, winner, f"{winner}@example.org")
        sign_up(db, "latecomer", "info@EXAMPLE.org")
        print("in the end:", {key.decode()[8:]: name.decode() for key, name in db.scan("address/")})


if __name__ == "__main__":
    main()
