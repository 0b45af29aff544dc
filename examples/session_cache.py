"""Sessions of a web site: they end by themselves, and stay as long as somebody is there.

python examples/session_cache.py

Each use puts the end of a session off (sliding expiry), though not at every request: that would turn each read into a
write. What is stored under is a hash of the token, so that who reads the files cannot pose as a visitor.
"""

import hashlib
import secrets
import tempfile
import time

import bytekv


class Sessions:
    """Sessions in a store; a token is what the visitor's cookie holds."""

    def __init__(self, db: bytekv.Store, ttl: float) -> None:
        self.db, self.ttl = db, ttl

    @staticmethod
    def _key(token: str) -> str:
        return "session/" + hashlib.sha256(token.encode()).hexdigest()

    def begin(self, user: str) -> str:
        token = secrets.token_urlsafe(32)
        self.db.put(self._key(token), user, ttl=self.ttl)
        return token

    def user(self, token: str) -> str | None:
        """Return whose session it is, None if it has ended; one that is in use goes on."""
        key = self._key(token)
        try:
            left = self.db.ttl(key)
            user = self.db[key].decode()
        except KeyError:
            return None
        if left is not None and left < self.ttl / 2:
            # One that was ended by another thread just now is not brought back: expire() only finds what is there.
            self.db.expire(key, self.ttl)
        return user

    def end(self, token: str) -> bool:
        return self.db.delete(self._key(token))

    def count(self) -> int:
        return sum(1 for _ in self.db.scan_keys("session/"))


def main() -> None:
    with tempfile.TemporaryDirectory() as place, bytekv.open(place) as db:
        sessions = Sessions(db, ttl=0.5)
        ann, bob, eve = (sessions.begin(user) for user in ("Ann", "Bob", "Eve"))
        print(f"{sessions.count()} visitors; Eve signs out: {sessions.end(eve)}, and once more: {sessions.end(eve)}")
        for _ in range(4):
            time.sleep(0.2)
            sessions.user(ann)  # a click
        print("0.8 seconds later, of which Ann was there and Bob was not:")
        print(f"  Ann's cookie is {sessions.user(ann)}'s, Bob's {sessions.user(bob)}'s, Eve's {sessions.user(eve)}'s")
        print(f"  {sessions.count()} session, and {db.last_seq} writes for it all")


if __name__ == "__main__":
    main()
