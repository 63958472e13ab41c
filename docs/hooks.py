"""Pages of the site that are files of the repository's root, so that nothing is written twice."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def on_page_markdown(markdown, page, **_):
    """The file of the root, with links that lead from docs/."""
    source = SOURCES.get(page.file.src_uri)
    if source is None:
        return markdown
    text = (ROOT / source).read_text(encoding="utf-8")
    text = re.sub(r"\]\(docs/", "](", text)
    for target, name in SOURCES.items():
        text = text.replace(f"]({name}", f"]({target}")
    return text
