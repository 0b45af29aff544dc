"""Schemathesis against a real server: what the OpenAPI document says and what the server does, at random."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bytekv.http import Application
from tests import harness

TOKEN = "s3cret"
#: How many cases for each operation, and the seed; a run prints both.
EXAMPLES = int(os.environ.get("BYTEKV_FUZZ_EXAMPLES", "100"))
SEED = int(os.environ.get("BYTEKV_FUZZ_SEED", "1"))

#: What depends on what is stored (preconditions, ranges, a change that is gone) is no refusal of the form.
CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "3xx", 401, 403, 404, 409, 410, 412, 416, 429]

[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 405, 413, 415, 429]
"""

#: That a cursor fits its listing cannot be said in a schema; other tests do.
HOOKS = """
import re

import schemathesis

@schemathesis.hook
def before_call(context, case, kwargs):
    if re.fullmatch("[A-Za-z0-9_-]{8,}", str((case.query or {}).get("cursor", ""))):
        del case.query["cursor"]
"""


@pytest.fixture
def url(path: Path) -> Iterator[str]:
    """A server on a store of a few keys, whose streams do not go on for ever."""
    uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed")
    with harness.open_store(path) as db:
        db.update({"a": "1", "b": "2"})
        application = Application(db, tokens={TOKEN: "read write admin"})
        application.end_streams()
        config = uvicorn.Config(application, port=0, lifespan="off", log_config=None, access_log=False)
        server, ready = uvicorn.Server(config), threading.Event()
        startup = server.startup

        async def start_and_tell(sockets: object = None) -> None:
            await startup(sockets)
            ready.set()

        server.startup = start_and_tell
        thread = threading.Thread(target=server.run)
        thread.start()
        assert ready.wait(30)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        server.should_exit = True
        thread.join()
        application.close()
        assert db.verify().ok


@pytest.mark.deep
def test_schemathesis_finds_nothing(url, tmp_path):
    if importlib.util.find_spec("schemathesis") is None:
        pytest.skip("schemathesis is not installed")
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    (tmp_path / "hooks.py").write_text(HOOKS)
    report = tmp_path / "report.ndjson"
    run = [sys.executable, "-m", "schemathesis.cli", "--config-file", "schemathesis.toml", "run"]
    run += [f"{url}/v1/openapi.json", "--header", f"Authorization: Bearer {TOKEN}", "--checks", "all", "--no-color"]
    run += ["--max-examples", str(EXAMPLES), "--seed", str(SEED), "--report-ndjson-path", str(report)]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800)
    print(done.stdout[-4000:])
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
    assert "18 selected / 18 total" in done.stdout, "an operation was left out"
    assert report.stat().st_size > 0
    assert json.loads(report.read_text().splitlines()[0])
