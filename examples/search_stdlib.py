"""Index the source of Python's standard library; find files by the beginnings of words.

    python examples/search_stdlib.py                   bring the index up to date, ask a few questions
    python examples/search_stdlib.py asyncio gather    files with words that begin with both of these

The first run reads every file. The next one finds the index and updates only the files that changed.
The store holds two kinds of keys, and their order is what makes a search fast:

    word:<word> NUL <path>    the numbers of the lines on which the word stands
    file:<path>               mtime and size, then the file's words: where its postings are found again

The words that begin with "gath" are one range of keys. All that belongs to one file is written in one
batch, so an interrupted run leaves each file's postings old or new, never mixed; the next run goes on.
"""

import argparse
import os
import re
import shutil
import sys
import sysconfig
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import bytekv

# Case is ignored. A newline is a token, too, so that one pass over a file yields words and line numbers.
# The bound on a word keeps encoded data in string literals from becoming long keys.
TOKEN = re.compile(rb"\n|[a-z_\x80-\xff][a-z0-9_\x80-\xff]{1,99}")
BATCH_WRITES = 20_000  # several files to a batch: fewer, longer writes
SHOWN_FILES = 4
QUESTIONS = ("asyncio gather", "contextman", "json dump", "heap merge", "__missing__")


def python_files(source: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the path of each Python file below ``source`` and a stamp that changes when the file does."""
    for folder, folders, names in os.walk(source):
        folders[:] = [name for name in folders if name not in (b"site-packages", b"dist-packages", b"__pycache__")]
        for path in (os.path.join(folder, name) for name in names if name.endswith(b".py")):
            if os.path.isfile(path) and os.access(path, os.R_OK):
                status = os.stat(path)
                yield os.path.relpath(path, source), b"%d %d\n" % (status.st_mtime_ns, status.st_size)


def postings(content: bytes) -> dict[bytes, list[bytes]]:
    """Return the words of a file, each with the numbers of its lines."""
    lines_of: dict[bytes, list[bytes]] = {}
    number, line = 1, b"1"
    for token in TOKEN.findall(content.lower()):
        if token == b"\n":
            number += 1
            line = b"%d" % number
        elif token not in lines_of:
            lines_of[token] = [line]
        elif lines_of[token][-1] is not line:
            lines_of[token].append(line)
    return lines_of


def update(db: bytekv.Store, source: bytes) -> str:
    """Bring the index up to date with the files; tell what was done."""
    began = time.perf_counter()
    present = dict(python_files(source))
    known = {key.removeprefix(b"file:"): entry for key, entry in db.scan("file:")}
    vanished = sorted(known.keys() - present.keys())
    changed = [path for path, stamp in present.items() if not known.get(path, b"").startswith(stamp)]
    if not vanished and not changed:
        return f"nothing to update: {len(present):,} files compared in {time.perf_counter() - began:.2f} s"
    written, deleted, batch = 0, 0, db.batch()
    for done, path in enumerate(vanished + changed, 1):
        new: dict[bytes, list[bytes]] = {}
        if path in present:
            with open(os.path.join(source, path), "rb") as file:
                new = postings(file.read())
            batch.put(b"file:" + path, present[path] + b" ".join(new))
        else:
            batch.delete(b"file:" + path)
        for word, lines in new.items():
            batch.put(b"word:%b\0%b" % (word, path), b" ".join(lines))
        obsolete = [word for word in known.get(path, b"").partition(b"\n")[2].split() if word not in new]
        for word in obsolete:
            batch.delete(b"word:%b\0%b" % (word, path))
        written, deleted = written + len(new), deleted + len(obsolete)
        if len(batch) >= BATCH_WRITES:
            batch.commit()
            batch = db.batch()
            progress(f"{done:,} of {len(vanished) + len(changed):,} files")
    batch.commit()
    next(db.scan_keys(limit=1), None)  # the first ordered use sorts the keys; let it count here, not in a search
    progress("")
    took_s = time.perf_counter() - began
    files = f"{len(changed):,} files indexed, {len(vanished):,} removed"
    return f"{files}: {written:,} postings written, {deleted:,} deleted, all sorted in {took_s:.2f} s"


def search(db: bytekv.Store, prefixes: list[bytes]) -> list[tuple[bytes, list[int]]]:
    """Return the files with a word for every prefix, best first, each with the lines to look at."""
    found: list[dict[bytes, list[bytes]]] = []
    for prefix in prefixes:
        keys_of: dict[bytes, list[bytes]] = {}
        for key in db.scan_keys(b"word:" + prefix):  # from memory: no file is read for this
            keys_of.setdefault(key.partition(b"\0")[2], []).append(key)
        found.append(keys_of)
    ranked = []
    for path in set.intersection(*map(set, found)):
        lines = [{int(number) for key in keys_of[path] for number in db[key].split()} for keys_of in found]
        rarest, together = min(lines, key=len), set.intersection(*lines)
        named = sum(part.startswith(prefix) for prefix in prefixes for part in path.lower().split(b"/"))
        is_test = b"test" in path  # a use in a test says less than one in the module itself
        candidates = sorted(together) + sorted(rarest) + sorted(set.union(*lines))
        ranked.append((is_test, -named, -len(rarest), path, candidates))
    return [(path, lines) for *_, path, lines in sorted(ranked)]


def answer(db: bytekv.Store, source: bytes, question: str) -> None:
    """Print the files that answer a question, each with a line of it: a definition if there is one."""
    prefixes = re.findall(rb"[a-z0-9_\x80-\xff]+", question.lower().encode(errors="replace"))
    if not prefixes:
        sys.exit(f"search_stdlib: no word in {question!r}")
    began = time.perf_counter()
    files = search(db, prefixes)
    took_ms = (time.perf_counter() - began) * 1000
    print(f"\n{bold(question)}  {len(files):,} {'file' if len(files) == 1 else 'files'} in {took_ms:.1f} ms")
    begins = rf"(?<!\w)(?:{b'|'.join(prefixes).decode()})"
    definition = re.compile(rb"\s*(?:async\s+def|def|class)\s+" + begins.encode(), re.IGNORECASE)
    rows = []
    for path, numbers in files[:SHOWN_FILES]:
        lines = Path(os.fsdecode(os.path.join(source, path))).read_bytes().split(b"\n")
        number = next((number for number in numbers if definition.match(lines[number - 1])), numbers[0])
        text = " ".join(lines[number - 1].decode(errors="replace").split())
        rows.append((f"{path.decode(errors='replace')}:{number}", text))
    indent = max((len(place) for place, _ in rows), default=0)
    width = max(20, shutil.get_terminal_size((110, 24)).columns - indent - 4)
    for place, text in rows:
        marked = re.sub(begins, lambda match: bold(match[0]), text[:width], flags=re.IGNORECASE)
        print(f"  {place:<{indent}}  {marked}")
    if len(files) > SHOWN_FILES:
        print(f"  and {len(files) - SHOWN_FILES:,} more")


def bold(text: str) -> str:
    """Return the text as a terminal shows it in bold."""
    return f"\x1b[1m{text}\x1b[0m" if sys.stdout.isatty() and "NO_COLOR" not in os.environ else text


def progress(text: str) -> None:
    """Show how far the work is, in one line that is written over; only to a person."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def main() -> None:
    """Open the store, update it, answer."""
    parser = argparse.ArgumentParser(description="Search the source of Python's standard library by prefixes of words.")
    parser.add_argument("words", nargs="*", help="find files with words that begin with each of these")
    parser.add_argument("--source", default=sysconfig.get_path("stdlib"), help="index this directory instead")
    parser.add_argument("--store", help="keep the index here; by default in the user's cache")
    parser.add_argument("--rebuild", action="store_true", help="begin with an empty index")
    arguments = parser.parse_args()
    source = os.fsencode(os.path.realpath(arguments.source))
    if not os.path.isdir(source):
        parser.error(f"no such directory: {arguments.source}")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = f"{os.path.basename(os.fsdecode(source))}-{zlib.crc32(source):08x}"  # one index for each source
    store = Path(arguments.store or cache / "bytekv-search" / name)
    store.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a letter of the source shows "?"
    began = time.perf_counter()
    with bytekv.open(store, "n" if arguments.rebuild else "c") as db:
        print(f"source  {os.fsdecode(source)}")
        print(f"store   {store}")
        print(f"opened  {len(db):,} keys in {time.perf_counter() - began:.2f} s", flush=True)
        print(f"index   {update(db, source)}", flush=True)
        for question in [" ".join(arguments.words)] if arguments.words else QUESTIONS:
            answer(db, source, question)
        stats, began = db.stats(), time.perf_counter()
    closed_s = time.perf_counter() - began  # all is on disk now, with a hint file that makes the next opening fast
    size_mb = sum(file.stat().st_size for file in store.iterdir() if file.is_file()) / 1e6
    print(f"\nclosed  {stats.keys:,} keys, {size_mb:.1f} MB on disk, in {closed_s:.2f} s")


if __name__ == "__main__":
    try:
        main()
    except (bytekv.BytekvError, OSError) as error:
        sys.exit(f"search_stdlib: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; the next run goes on from here")
