"""README.md and the durability contract: what they show runs, what they point to exists."""

from __future__ import annotations

import builtins
import doctest
import importlib.util
import os
import re
from pathlib import Path

import pytest

import bytekv
from bytekv.contract import convert

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRACT = (ROOT / "docs" / "explanation" / "durability.md").read_text(encoding="utf-8")


def test_python_blocks_run_and_print_what_they_say(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    blocks = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    session = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, "README.md", "README.md", 0)
    assert len(session.examples) > 5
    report: list[str] = []
    result = doctest.DocTestRunner().run(session, out=report.append)
    assert result.failed == 0, "".join(report)


@pytest.mark.parametrize("name", ["example", "test"])
def test_commands_are_single_lines(name):
    found = re.findall(rf"^<!-- ci: {name} -->\n```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert len(found) == 1, "the automatic checks take the command from below this marker"
    (command,) = found
    assert command.count("\n") == 1
    assert command.endswith("\n")
    assert not command.startswith((" ", "$"))
    assert "\\" not in command
    assert command.startswith("python3 -m venv .venv && .venv/bin/python -m pip install -q -e ")


def test_limits_are_those_of_the_format():
    assert f"{convert.MAX_KEY_SIZE:,} bytes" in README
    assert convert.MAX_VALUE_SIZE == 1 << 30
    assert "value 0 bytes to 1 GiB" in README


def test_sync_modes_and_their_default_are_the_options():
    table = re.findall(r'^\| `"(\w+)"`(.*?)\|', README, re.MULTILINE)
    assert [name for name, _ in table] == ["interval", "always", "os"]
    assert [name for name, note in table if "default" in note] == [bytekv.Options().sync]
    assert f"`sync_interval_s` ({bytekv.Options().sync_interval_s:g} second)" in README


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/explanation/durability.md"])
def test_links_and_paths_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    paths = re.findall(r"`((?:docs|tests|examples|\.ci)/[\w./-]*)`", text)
    missing = [link for link in links if not ((ROOT / page).parent / link).exists()]
    missing += [path for path in paths if not (ROOT / path).exists()]
    assert not missing


def test_the_contract_has_twelve_clauses_and_accounts_for_each():
    wanted = [f"D{number}" for number in range(1, 13)]
    assert re.findall(r"^\*\*(D\d+) ", CONTRACT, re.MULTILINE) == wanted
    shown = {"D12"}  # assumptions
    for files, clauses in re.findall(r"^\|[^|]*\|([^|]*`tests/[^|]*)\|([^|]*)\|$", CONTRACT, re.MULTILINE):
        assert all((ROOT / file).is_file() for file in re.findall(r"`(tests/[^`]+)`", files)), files
        for first, last in re.findall(r"D(\d+)(?:–D(\d+))?", clauses):
            shown |= {f"D{number}" for number in range(int(first), int(last or first) + 1)}
    assert shown == set(wanted)


def test_the_contract_uses_names_that_exist():
    for name in re.findall(r"`(\w+Error)`", CONTRACT):
        assert hasattr(bytekv, name) or hasattr(builtins, name), name
    for name in re.findall(r"`db\.(\w+)", README + CONTRACT):
        assert hasattr(bytekv.Store, name), name


def test_every_action_of_a_developer_has_a_name_and_a_command_that_exists():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    actions = dict(re.findall(r"^\| ([\w-]+) \| `([^`]+)` \|", page, re.MULTILINE))
    assert {"check", "test", "deep", "docs", "bench", "fuzz"} <= set(actions)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for action, command in actions.items():
        program, *arguments = command.split()
        if program == ".venv/bin/python":
            assert arguments[0] == "-m", action
            module = arguments[1]
            if module.startswith("tests."):
                assert importlib.util.find_spec(module) is not None, action
            else:
                assert module == "coverage" or re.search(rf'"{module}\b', project), (
                    f"{action}: which extra has {module}?"
                )
        else:
            assert os.access(ROOT / program, os.X_OK), action
        for path in re.findall(r"tests/\S+", command):
            assert (ROOT / path).exists(), action
