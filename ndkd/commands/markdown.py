"""Names and paths of other people as text in Markdown: never as HTML, as a link, or as a row of a table."""

import re
from typing import Any


def one_row(text: Any) -> str:
    """Without line breaks or other control characters, which are written as Python writes them.

    >>> one_row("a\\nb")
    'a\\\\nb'
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
    return shown.encode("utf-8", "backslashreplace").decode()


def inline(text: Any) -> str:
    """In a line of prose or in a cell of a table.

    >>> inline("a|b <b>c</b> [d](e)")
    'a\\\\|b &lt;b&gt;c&lt;/b&gt; \\\\[d](e)'
    """
    shown = one_row(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    shown = re.sub(r"[`*|\\]", r"\\\g<0>", shown)
    return re.sub(r"\[(?=[^\]]*\][(\[])", r"\\[", shown)  # a list of numbers stays as it is


def code(text: Any) -> str:
    """As code in a line, whatever backticks it has.

    >>> code("a`b")
    '``a`b``'
    """
    shown = one_row(text)
    ticks = "`" * (longest_run(shown) + 1)
    space = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{ticks}{space}{shown}{space}{ticks}"


def fence(text: Any) -> str:
    """A line that encloses a block of code, longer than any in the text."""
    return "`" * max(3, longest_run(str(text)) + 1)


def longest_run(text: str) -> int:
    """The number of backticks in a row."""
    return max((len(run) for run in re.findall("`+", text)), default=0)


def python_text(text: Any) -> str:
    """A text in Python, in double quotes.

    >>> python_text('a"b')
    '"a\\\\"b"'
    """
    shown = str(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{one_row(shown)}"'
