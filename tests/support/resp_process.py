"""A server in a process of its own: what `bytekv serve --resp` does, for tests that kill it or look at its memory.

``python -m tests.support.resp_process DIRECTORY SYNC`` prints the port once clients can connect.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, cast

import bytekv
from bytekv.resp import serve

ROOT = Path(__file__).resolve().parents[2]


class Process:
    """The server as its tests see it."""

    def __init__(self, path: Path, sync: str = "interval") -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tests.support.resp_process", str(path), sync],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the server did not start"
        self.address = ("127.0.0.1", int(line))
        self.pid = self._process.pid

    def memory_bytes(self, field: str = "VmHWM") -> int:
        """Return the most memory that the process has ever had resident, or has now (VmRSS)."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(field + ":"))

    def kill(self) -> None:
        """End it with `kill -9`."""
        self._process.kill()
        self._wait()

    def stop(self) -> int:
        """End it with SIGTERM; return its exit status."""
        self._process.terminate()
        return self._wait()

    def _wait(self) -> int:
        assert self._process.stdout is not None
        self._process.stdout.close()
        return self._process.wait(60)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.returncode is None:
            self.kill()


async def _main(path: str, sync: str) -> None:
    task = cast("asyncio.Task[Any]", asyncio.current_task())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    mode = cast(Literal["interval", "always", "os"], sync)
    with bytekv.open(path, sync=mode) as store, suppress(asyncio.CancelledError):
        await serve(
            store,
            port=0,
            group_commit=sync == "always",
            started=lambda url: print(url.rpartition(":")[2], flush=True),
        )


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
