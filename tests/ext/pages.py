"""The programs that the pages of docs/bots/ show."""

from __future__ import annotations

import re

from tests import ROOT

PAGES = ROOT / "docs" / "bots"


def program(page: str, heading: str) -> str:
    """Return the first Python block under a heading of a page: `program("aiogram", "Before")`."""
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    found = re.search(rf"^#+ {re.escape(heading)}\n.*?```python\n(.*?)```", text, re.DOTALL | re.MULTILINE)
    assert found is not None, f"docs/bots/{page}.md has no Python under {heading!r}"
    return found[1]
