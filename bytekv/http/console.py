"""The console: one page for people, and the policy under which a browser may run it.

The page holds nothing of the store; it asks the same API as everybody, with the token that it asks the user
for. Its script and its style are named in the policy by their hashes: nothing else runs, nothing is loaded.
"""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from importlib.resources import files
from typing import Final

__all__ = ["PAGE", "PAGE_POLICY"]


def _hash_of(element: str) -> str:
    found = re.findall(rf"<{element}>(.*?)</{element}>", PAGE, re.DOTALL)
    assert len(found) == 1
    return f"'sha256-{b64encode(sha256(found[0].encode()).digest()).decode()}'"


PAGE: Final = files(__package__).joinpath("console.html").read_text(encoding="utf-8")
PAGE_POLICY: Final = "; ".join(
    [
        "default-src 'none'",
        f"script-src {_hash_of('script')}",
        f"style-src {_hash_of('style')}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)
