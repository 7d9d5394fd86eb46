"""For mkdocs: links that lead out of docs/ (CONTRIBUTING.md, deploy/) go to the repository on the site, if the file is there."""

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """mkdocs calls it for each page."""
    folder = posixpath.dirname(page.file.src_uri)

    def replaced(link: re.Match[str]) -> str:
        path, hash_sign, anchor = link[1].partition("#")
        target = posixpath.normpath(posixpath.join("docs", folder, path))
        if target.startswith("docs/") or not (ROOT / target).exists():
            return link[0]  # mkdocs says so if it is broken
        kind = "tree" if (ROOT / target).is_dir() else "blob"
        return f"]({config['repo_url']}/{kind}/main/{target}{hash_sign}{anchor})"

    return re.sub(r"\]\((\.\./[^)\s]+)\)", replaced, markdown)
