"""docs/reference/resp.md says what the table of commands, the limits and the options of the server say."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from bytekv.resp import Server, connection, session, work
from bytekv.resp.commands.table import COMMANDS, REFUSED
from bytekv.resp.protocol import UNTRUSTED, Limits

PAGE = Path(__file__).resolve().parents[3] / "docs" / "reference" / "resp.md"
TEXT = PAGE.read_text(encoding="utf-8")

TITLES = {
    "string": "Strings",
    "generic": "Keys and expiry",
    "transactions": "Transactions",
    "connection": "Connections",
    "server": "The server",
    "bytekv": "bytekv's own",
}


def row(name: bytes, syntax: str, summary: str) -> str:
    """Return a line of a table of commands."""
    usage = f"{name.decode().upper()} {syntax}".strip().replace("|", "\\|")
    return f"| `{usage}` | {summary} |\n"


def tables() -> str:
    """Return the tables of commands as the page should have them."""
    made = ""
    for group, title in TITLES.items():
        made += f"### {title}\n\n| command | what it does |\n|---|---|\n"
        for each in COMMANDS.values():
            if each.group == group:
                made += row(each.name, each.syntax, each.summary)
                for name, below in getattr(each, "subcommands", {}).items():
                    made += row(each.name + b" " + name, below.syntax, below.summary)
        made += "\n"
    return made


def refusals() -> str:
    """Return the list of what bytekv has not, as the page should have it."""
    reasons: dict[bytes, list[str]] = {}
    for name, reason in REFUSED.items():
        reasons.setdefault(reason, []).append(name.decode().upper())
    return "".join(f"- **no {reason.decode()}:** {', '.join(names)}\n" for reason, names in reasons.items())


def test_every_command_is_described_as_in_the_table():
    assert {each.group for each in COMMANDS.values()} == set(TITLES)
    assert between("commands") == tables(), "paste this into the page:\n" + tables()


def test_every_refused_command_is_listed_with_its_reason():
    assert not set(REFUSED) & set(COMMANDS)
    assert between("refused") == refusals(), "paste this into the page:\n" + refusals()


def between(name: str) -> str:
    return TEXT.partition(f"<!-- {name} -->\n")[2].partition(f"<!-- end of {name} -->")[0]


def test_limits_are_those_of_the_code():
    limits = dict(re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|$", TEXT.partition("## Limits\n")[2], re.MULTILINE))
    assert limits["arguments of a command"] == f"{Limits().arguments:,}"
    assert limits["an argument"] == f"{Limits().bulk_bytes >> 20} MiB"
    assert limits["all arguments of a command"] == f"{Limits().request_bytes >> 30} GiB"
    size, seconds = UNTRUSTED.bulk_bytes >> 10, round(connection.AUTHENTICATION_S)
    before = limits["the same, before the password"]
    assert before == f"{UNTRUSTED.arguments} arguments, {size} KiB each, {seconds} seconds"
    assert limits["commands before the password"] == str(connection._STRANGER_COMMANDS)
    assert limits["commands between MULTI and EXEC"] == f"{session._MAX_QUEUE_BYTES >> 20} MiB"
    assert limits["keys under WATCH"] == f"{session._MAX_WATCHED_BYTES >> 20} MiB"
    both = "a command, or of all between MULTI and EXEC"
    assert limits[f"replies of {both}"] == f"{work._MAX_REPLY_BYTES >> 20} MiB"
    assert limits["what a command writes"] == f"{work._MAX_WRITE_BYTES >> 20:,} MiB"
    assert limits["what all between MULTI and EXEC write"] == f"{work._MAX_BLOCK_WRITE_BYTES >> 20} MiB"
    assert limits["what all between MULTI and EXEC read and copy"] == f"{work._MAX_MOVED_BYTES >> 30} GiB"
    assert limits["replies that wait for a client"] == f"{connection.WRITE_BYTES >> 10} KiB"
    assert limits["connections"] == f"{default('max_connections'):,}"
    assert (
        limits["a request that is arriving"] == f"{default('request_timeout_s'):.0f} seconds and one more for each KiB"
    )


def default(name: str) -> float:
    found = inspect.signature(Server).parameters[name].default
    assert isinstance(found, (int, float))
    return found


def test_every_option_of_the_server_is_described():
    options = {name for name in inspect.signature(Server).parameters if name not in ("store", "host", "port")}
    assert set(re.findall(r"^- `(\w+)=`", TEXT, re.MULTILINE)) == options
    assert all(f"``{name}``" in (Server.__doc__ or "") for name in options)


def test_every_command_has_a_summary_and_the_keys_that_its_syntax_shows():
    for each in COMMANDS.values():
        assert each.summary.endswith("."), each.name
        first_is_key = re.match(r"(?:key|source)\b", each.syntax) is not None
        assert (each.keys[0] == 1) == first_is_key, each.name
        required = re.sub(r"\[.*\]", "", each.syntax).split()
        assert abs(each.arity) == 1 + len(required), each.name
        assert (each.arity < 0) == ("[" in each.syntax or each.name == b"quit"), each.name
