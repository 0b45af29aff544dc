"""What the pages say of options, errors, limits, modules and of who may do what, made from the code.

``python -m tests.reference_pages`` writes it into the pages; tests/project/test_reference_pages.py compares.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

from bytekv import errors, options
from bytekv.contract import convert
from bytekv.engine.codec import entry as codec
from bytekv.engine.codec.manifest import MAX_NUMBER, MAX_SEGMENT_SIZE, MAX_SEGMENTS
from bytekv.http.access import SCOPES, STEP_SCOPES
from bytekv.http.routes import ROUTES
from bytekv.options import Options
from bytekv.resp.commands.table import COMMANDS
from tests.project.test_layers import ARROWS, PACKAGE, inner_imports, nearest, sources_of

REFERENCE = Path(__file__).resolve().parent.parent / "docs" / "reference"
DESIGN = REFERENCE.parent / "explanation" / "design.md"

_LONGEST_LINE = 75  # characters of what the map says of a module


def option_table() -> str:
    """Return a section for each option, from the comments above the fields."""
    found = re.findall(r"((?:    #: .*\n)+)    (\w+): ([^=]+) = (.*)\n", inspect.getsource(options), re.MULTILINE)
    assert [name for _, name, _, _ in found] == Options.names(), "a field lacks its comment"
    made = ""
    for comment, name, kind, default in found:
        choices = options._CHOICES.get(name)
        kind = ", ".join(f'`"{choice}"`' for choice in choices) if choices else f"`{kind}`"
        text = " ".join(line.strip().removeprefix("#: ") for line in comment.splitlines()).replace("``", "`")
        text = re.sub(r'(?<![`=\w])("\w+")(?!`)', r"`\1`", text)
        made += f"### `{name}`\n\n{kind} · default `{default}`{_value_of(default)}\n\n{text}\n\n"
    return made


def _value_of(default: str) -> str:
    """Return what an arithmetic expression comes to, in words that people use."""
    if "*" not in default:
        return ""
    size = eval(default)  # of our own source
    return f", {size >> 20} MiB"


def error_tree() -> str:
    """Return the tree that the module draws."""
    tree = (errors.__doc__ or "").partition("::\n\n")[2].partition("\n\nA missing")[0]
    return "```\n" + inspect.cleandoc(tree) + "\n```\n"


def error_list() -> str:
    """Return a section for each exception, from its docstring."""
    made = ""
    for name in errors.__all__:
        kind = getattr(errors, name)
        first, _, rest = inspect.getdoc(kind).partition("\n\n")
        text = " ".join(f"{first} {rest}".split()).replace("``", "`")
        made += f"### `{name}`\n\n{text}\n\n"
    return made


def limit_table() -> str:
    """Return the table of limits."""
    ranges = dict(re.findall(r'_number\("(\w+)", ([^)]+)\)', inspect.getsource(options)))
    rows = [
        ("key", f"0 to {convert.MAX_KEY_SIZE:,} bytes", "its length is a u16; the empty key is a key"),
        ("value", f"0 bytes to {convert.MAX_VALUE_SIZE >> 30} GiB", "the empty value is a value"),
        (
            "batch, transaction",
            f"{convert.MAX_BATCH_SIZE >> 30} GiB + 1 MiB, overhead included",
            "it is never split over segments",
        ),
        (
            "overhead of an entry",
            f"{codec.OVERHEAD} bytes, {codec.OVERHEAD + 8} with an expiry",
            "on disk, beside key and value",
        ),
        (
            "segment",
            f"{MAX_SEGMENT_SIZE:,} bytes",
            "an offset has 31 bits; `segment_size_bytes` says when one is sealed",
        ),
        ("segments of a store", f"{MAX_SEGMENTS:,}", "what a manifest may list"),
        ("seq", f"2⁶³ − 1 = {MAX_NUMBER:,}", "a million operations a second for 292,000 years"),
        (
            "decimal integer of `incr`",
            f"{convert.MAX_DIGITS:,} digits",
            "Python itself refuses more than 4,300",
        ),
        ("keys", "what memory holds", "about 100 bytes each, besides the key"),
    ]
    made = "| what | how much | why |\n|---|---|---|\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)
    made += "\n| option | from | to |\n|---|---|---|\n"
    for name in Options.names():
        if name in ranges:
            low, high = (eval(bound) for bound in ranges[name].split(", "))
            made += f"| `{name}` | {low:,} | {high:,} |\n"
    return made


def scope_table() -> str:
    """Return who may ask for what over HTTP."""
    asked = [(f"{route.method} {route.path}", route.scopes) for route in ROUTES if route.operation != "run_batch"]
    asked += [(f"POST /v1/batch: {step}", (scope,)) for step, scope in STEP_SCOPES.items()]
    made = f"| request | no token | {' | '.join(SCOPES)} |\n|---|---|{'---|' * len(SCOPES)}\n"
    for request, scopes in asked:
        cells = ["—" if scopes else "yes", *("yes" if not scopes or scope in scopes else "—" for scope in SCOPES)]
        made += f"| `{request}` | {' | '.join(cells)} |\n"
    return made


def state_table() -> str:
    """Return which command a Redis client may say in which state."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for each in COMMANDS.values():
        within = "at once" if each.at_once else "refused" if each.kind == "session" else "queued"
        states = "yes" if each.before_password else "`-NOAUTH`", "yes", within
        groups.setdefault(states, []).append(f"`{each.name.decode().upper()}`")
    made = "| commands | before the password | after it | between MULTI and EXEC |\n|---|---|---|---|\n"
    return made + "".join(f"| {', '.join(names)} | {' | '.join(states)} |\n" for states, names in groups.items())


def module_map() -> str:
    """Return every folder and module with what its docstring says first, from the top down.

    A line for a module of a folder shows only its name; a module is drawn above those of its room that it imports.
    """
    sources = sources_of(PACKAGE)
    imports = inner_imports(sources)
    made = ""
    for room in reversed(ARROWS):
        left = {name for name in sources if name and nearest(name, ARROWS) == room}
        folder = PACKAGE / room.replace(".", "/")
        if room and folder.is_dir():
            made += _map_line(f"bytekv/{room.replace('.', '/')}/", (folder / "__init__.py").read_text(encoding="utf-8"))
            left.discard(room)  # its own names are what the folder's line tells
        while left:
            name = min(name for name in left if not any(name in imports[other] for other in left - {name}))
            left.remove(name)
            inner = name.removeprefix(f"{room}.").replace(".", "/")
            shown = f"bytekv/{room.replace('.', '/')}.py" if name == room else f"    {inner}.py"
            made += _map_line(shown, sources[name])
    return f"```\n{made}```\n"


def _map_line(shown: str, source: str) -> str:
    """Return one line of the map: what the first line of a docstring says, without a noun that is the module's name."""
    first = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
    noun, _, said = first.partition(": ")
    name = shown.removesuffix(".py").rstrip("/").rpartition("/")[2]
    text = said if said and _letters(name).startswith(_letters(noun).removeprefix("the")) else first
    text = text[:1].upper() + text[1:]
    return f"{shown:36}{_shortened(text)}\n"


def _letters(text: str) -> str:
    return re.sub("[^a-z]", "", text.lower())


def _shortened(text: str) -> str:
    """Return a text up to its first full stop; what is too long for the map ends at a colon, or at a comma."""
    text = re.split(r"[.;]( |$)", text)[0]
    if len(text) > _LONGEST_LINE and text.find(": ") > _LONGEST_LINE / 3:
        text = text.partition(": ")[0]
    while len(text) > _LONGEST_LINE and "," in text:
        text = text.rpartition(",")[0]
    return text


#: page, name of the part, what makes it
PARTS = [
    (REFERENCE / "options.md", "options", option_table),
    (REFERENCE / "errors.md", "tree", error_tree),
    (REFERENCE / "errors.md", "errors", error_list),
    (REFERENCE / "limits.md", "limits", limit_table),
    (REFERENCE / "http.md", "scopes", scope_table),
    (REFERENCE / "resp.md", "states", state_table),
    (DESIGN, "map", module_map),
]


def between(text: str, name: str) -> tuple[str, str, str]:
    """Return what is before, in and after a part of a page."""
    before, begin, rest = text.partition(f"<!-- {name} -->\n")
    part, end, after = rest.partition(f"<!-- end of {name} -->")
    assert begin, f"no part {name}"
    assert end, f"part {name} has no end"
    return before + begin, part, end + after


def main() -> None:
    """Write the parts into the pages."""
    for page, name, make in PARTS:
        before, _, after = between(page.read_text(encoding="utf-8"), name)
        page.write_text(before + make() + after, encoding="utf-8")


if __name__ == "__main__":
    main()
