"""What mkdocs does to a page: links to files of the repository outside of `docs/` become names, numbers stay whole."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\[([^\]]+)\]\(\.\./([^)#\s]+)(?:#[^)\s]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """The text of a page; a link to a file that does not exist stays, for mkdocs to refuse."""

    def named(match: re.Match[str]) -> str:
        text, path = match.groups()
        if not (ROOT / path).exists():
            return match[0]
        plain = text.strip("`")
        return f"`{path}`" if path.endswith(plain) else f"{text} (`{path}`)"

    # A no-break space on both sides: an accuracy and its interval are read together.
    return re.sub(r"(\d) ± (\d)", "\\1\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}\\2", LINK.sub(named, markdown))
