"""README and the pages of docs/, as the tests read them."""

import re

from tests.command import REPOSITORY

PAGES = {file.stem: file for file in [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]}


def text(page):
    """A page's text; README is a page too."""
    return PAGES[page].read_text()


def section(page, title):
    """The text below a heading of the second level."""
    return text(page).split(f"\n## {title}\n")[1].split("\n## ")[0]


def blocks(page, language):
    """What stands between fences of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text(page), flags=re.DOTALL | re.MULTILINE)


def commands(page, *languages):
    """The lines of ``ndkd`` in a page's blocks, in order."""
    lines = "\n".join(block for language in languages for block in blocks(page, language))
    lines = lines.replace("\\\n", " ").splitlines()
    parts = [part.strip() for line in lines for part in re.split(r"\s#|^#", line)[0].split("&&")]
    return [part for part in parts if re.search(r"(^|\s)(-m )?ndkd ", part)]


def shipped(words):
    """Words of a command, in which the names of shipped configurations are files of the repository."""
    return [",".join(_file(name) for name in word.split(",")) for word in words]


def _file(name):
    is_one = name.endswith(".yaml") and (REPOSITORY / "configs" / name).is_file()
    return f"configs/{name}" if is_one else name
