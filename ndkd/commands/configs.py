"""``ndkd configs``: which configurations come with ndkd, and what stands in one."""

import os
import re
import sys
from itertools import groupby, takewhile
from pathlib import Path

import yaml

from ndkd.configuration.checks import ENDINGS, OVERLAYS, PARTS
from ndkd.configuration.shipped import find_shipped, shipped_folder, shipped_names

WIDTH = 46  # of the column of names
END = "+ is an overlay: give it after a configuration. For a copy of one to edit: ndkd configs NAME > mine.yaml"


def configs(name: str | None = None) -> None:
    """List the shipped configurations, each with what its first sentence says of it, or print one that stands alone.

    Args:
        name: of one, or of a folder that is to be listed.

    Raises:
        NdkdError: a name that none has.
    """
    listed = [known for known in shipped_names() if Path(known).parent.name not in PARTS]
    if name:
        folder = f"{Path(name).as_posix().removeprefix('configs/')}/"
        listed = [known for known in listed if known.startswith(folder)]
    text = listing(listed) if listed else standing_alone(find_shipped(name or ""))
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8")  # as configurations are read
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:  # of head, which has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def listing(names: list[str]) -> str:
    """A line for each of these, below the name of the dataset's folder; those in no folder come first."""
    lines = []
    for dataset, group in groupby(sorted(names, key=_place), key=lambda name: _place(name)[0]):
        lines += [f"\n{dataset}"] if dataset else []
        for name in group:
            sign = "+" if {*Path(name).parts} & {*OVERLAYS} else " "
            lines.append(f"{sign} {name:<{WIDTH}} {_first_sentence(name)}")
    return "\n".join([*lines, "", END, ""]).lstrip("\n")


def standing_alone(file: Path) -> str:
    """The text of a configuration with the files that it names written out in their places.

    Comments stay, those of the files too.
    """
    text = file.read_text(encoding="utf-8")
    named = _named(yaml.compose(text, Loader=yaml.SafeLoader), file.parent)
    for value, column in sorted(named, key=lambda place: place[0].start_mark.index, reverse=True):
        before, after = text[: value.start_mark.index], text[value.end_mark.index :]
        whole = standing_alone(file.parent / value.value)
        if column is None:
            put = yaml.safe_dump(yaml.safe_load(whole), default_flow_style=True, width=float("inf")).strip()
        else:
            before, indent = before.rstrip(" "), " " * (column + 2)
            put = "".join(f"\n{indent}{line}" for line in whole.rstrip().splitlines())
        text = before + put + after
    return text


def _named(node: yaml.Node, folder: Path, column: int | None = None) -> list[tuple[yaml.Node, int | None]]:
    """The values that name files of the folder, each with its key's column where a block may stand in its place."""
    if isinstance(node, yaml.ScalarNode):
        return [(node, column)] if node.value.endswith(ENDINGS) and (folder / node.value).is_file() else []
    if isinstance(node, yaml.SequenceNode):
        return [found for part in node.value for found in _named(part, folder)]
    columns = [None if node.flow_style else key.start_mark.column for key, _ in node.value]
    parts = zip(node.value, columns, strict=True)
    return [found for (_, value), column in parts for found in _named(value, folder, column)]


def _place(name: str) -> tuple[str, bool, str]:
    """By dataset, within it configurations before overlays."""
    *folders, _ = Path(name).parts
    return folders[0] if folders else "", bool({*folders} & {*OVERLAYS}), name


def _first_sentence(name: str) -> str:
    """What the comment says that a configuration begins with, up to its first stop."""
    lines = (shipped_folder() / name).read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.lstrip("# ").strip() for line in takewhile(lambda line: line.startswith("#"), lines))
    return re.split(r"(?<=[.:;]) ", comment)[0].rstrip(".:;")
