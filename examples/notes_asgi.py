"""Notes over HTTP: an ASGI application of its own on a store, with bytekv's HTTP door mounted below /kv.

pip install 'bytekv[http]' && python examples/notes_asgi.py [DIRECTORY [PORT]]

curl -d 'Buy milk' http://127.0.0.1:8000/                  adds a note, tells its number
curl http://127.0.0.1:8000/                                lists the notes, newest first
curl http://127.0.0.1:8000/kv/note:00000001                the same note through the door: values, batches,
curl 'http://127.0.0.1:8000/kv/v1/kv?prefix=note:'         listings, the change feed, the console at /kv/-/console
"""

import asyncio
import sys
from typing import Any

import bytekv
import bytekv.http


class Notes:
    """The application; its store is open from the server's start to its end."""

    def __init__(self, path: str) -> None:
        self.path = path

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.live(receive, send)
        elif scope["type"] == "http" and scope["path"].startswith("/kv/"):
            await self.door({**scope, "root_path": "/kv"}, receive, send)  # what Mount does in Starlette and FastAPI
        elif scope["type"] == "http" and scope["path"] == "/" and scope["method"] in ("GET", "POST"):
            # A write may wait for the disk: in a thread, so that the event loop goes on.
            if scope["method"] == "GET":
                await reply(send, 200, await asyncio.to_thread(self.newest, 20))
            elif (text := await whole_body(receive)) is not None:
                await reply(send, 200, await asyncio.to_thread(self.add, text))
            else:
                await reply(send, 413, b"A note is shorter than 64 KiB\n")
        elif scope["type"] == "http":
            await reply(send, 404, b"There are only / and /kv/\n")

    async def live(self, receive: Any, send: Any) -> None:
        await receive()
        self.db = bytekv.open(self.path)
        self.door = bytekv.http.app(self.db)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.door.close()
        self.db.close()
        await send({"type": "lifespan.shutdown.complete"})

    def add(self, text: bytes) -> bytes:
        with self.db.transaction() as tx:  # the number and the note, both or neither, and no number twice
            number = int(tx.get("notes", b"0")) + 1
            tx["notes"] = str(number)
            tx[f"note:{number:08}"] = text
        return b"%d\n" % number

    def newest(self, count: int) -> bytes:
        return b"".join(text + b"\n" for _, text in self.db.scan("note:", reverse=True, limit=count))


async def whole_body(receive: Any) -> bytes | None:
    """Return what was sent; None if that was more than 64 KiB, or broken off: half a note is none."""
    body, more = b"", True
    while more and len(body) < 1 << 16 and (message := await receive())["type"] == "http.request":
        body, more = body + message.get("body", b""), message.get("more_body", False)
    return None if more else body


async def reply(send: Any, status: int, body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(
        Notes(sys.argv[1] if len(sys.argv) > 1 else "notes"), port=int(sys.argv[2]) if len(sys.argv) > 2 else 8000
    )
