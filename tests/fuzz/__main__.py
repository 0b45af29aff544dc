"""Run one target with atheris, beginning with the golden stores: ``python -m tests.fuzz TARGET --seconds N``.

An input that finds a bug is kept in the current directory (``--keep``), with the traceback on standard error and an
exit status other than 0. A directory that holds it, given as ``--corpus``, tries it again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", help="entry, header, hint, manifest, segment, directory, source, lines, resp or http")
    parser.add_argument("--seconds", type=int, default=60, help="how long (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations; 0: a new one each time")
    parser.add_argument("--corpus", type=Path, help="inputs to begin with, and where new ones are kept")
    parser.add_argument("--keep", type=Path, default=Path(), help="where an input that finds a bug is kept")
    arguments = parser.parse_args()
    try:
        import atheris
    except ImportError:
        parser.error("this needs atheris: pip install -e '.[fuzz]'")
    with atheris.instrument_imports(include=["bytekv"]):
        from tests.fuzz.targets import TARGETS, corpus
    if arguments.target not in TARGETS:
        parser.error(f"there is no target {arguments.target!r}; there are {', '.join(TARGETS)}")
    with tempfile.TemporaryDirectory(prefix="bytekv-corpus-") as temporary:
        folder = arguments.corpus or Path(temporary)
        folder.mkdir(exist_ok=True)
        for number, piece in enumerate(corpus(arguments.target)):
            (folder / f"golden-{number}").write_bytes(piece)
        options = [
            f"-max_total_time={arguments.seconds}",
            f"-seed={arguments.seed}",
            f"-artifact_prefix={arguments.keep}/",
            "-max_len=65536",
            "-rss_limit_mb=1024",
            "-timeout=20",
            "-print_final_stats=1",
        ]
        atheris.Setup([sys.argv[0], *options, str(folder)], TARGETS[arguments.target])
        atheris.Fuzz()


main()
