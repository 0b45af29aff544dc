"""Schemathesis against a real server: what the OpenAPI document says and what the server does, at random."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bytekv.http import running

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

#: That a cursor fits its listing cannot be said in a schema, and a feed that follows has no end; other tests do both.
HOOKS = """
import re

import schemathesis

@schemathesis.hook
def before_call(context, case, kwargs):
    query = case.query or {}
    if re.fullmatch("[A-Za-z0-9_-]{8,}", str(query.get("cursor", ""))):
        del query["cursor"]
    if str(query.get("follow", "")).lower() == "true":
        query["follow"] = "false"
"""


@pytest.mark.deep
def test_schemathesis_finds_nothing(open_store, tmp_path):
    for module in ("schemathesis", "uvicorn"):
        pytest.importorskip(module, reason=f"{module} is not installed")
    db = open_store()
    db.update({"a": "1", "b": "2"})
    with running(db, tokens={TOKEN: "read write admin"}) as url:
        fuzz(url, tmp_path)


def fuzz(url: str, tmp_path: Path) -> None:
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
