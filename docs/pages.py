"""A hook of mkdocs: pages that are not written in docs/ but included from where they are kept."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

#: Files at the root of the repository, and the pages that they are.
INCLUDED = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}


def on_config(config: Any) -> Any:
    """Add to each section the pages of its folder that it does not name, so that a new page is found."""
    docs = Path(config.docs_dir)
    for entry in config.nav:
        (section,) = entry.values()
        if isinstance(section, list):
            named = [page if isinstance(page, str) else next(iter(page.values())) for page in section]
            folder = (docs / named[0]).parent
            pages = sorted(str(page.relative_to(docs)) for page in folder.glob("*.md"))
            section.extend(page for page in pages if page not in named)
    return config


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages; what they link to, as seen from the root, is linked as seen from docs/."""
    root = Path(config.config_file_path).parent
    for name, page in INCLUDED.items():
        text = (root / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=re.sub(r"\]\(([^)#]+)", _moved, text)))
    return files


def _moved(link: re.Match[str]) -> str:
    target = link[1]
    return f"]({INCLUDED.get(target, target.removeprefix('docs/'))}"
