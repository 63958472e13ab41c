"""What is in a folder of images, links that lead nowhere among it."""

import os
from collections.abc import Callable
from pathlib import Path

from ndkd.errors import NdkdError


def leads_nowhere(path: Path | str) -> bool:
    """Whether it is a link to something that is not there, or to itself; whoever follows it finds nothing."""
    return os.path.islink(path) and not os.path.exists(path)


def check_link(path: Path | str) -> None:
    """Raise ``NdkdError`` for a link that leads nowhere."""
    if leads_nowhere(path):
        raise NdkdError(f"{path} is a link to {os.readlink(path)}, which leads nowhere: mend or remove it")


def folder_names(folder: Path, is_wanted: Callable[[str], bool] = bool) -> list[str]:
    """The names of the folders in a folder, in alphabetical order; what is hidden, by a dot, never counts.

    Args:
        folder: that is there.
        is_wanted: whether a folder of such a name counts.

    Raises:
        NdkdError: a link of such a name that leads nowhere.
    """
    names = [name for name in sorted(os.listdir(folder)) if not name.startswith(".") and is_wanted(name)]
    for name in names:
        check_link(folder / name)
    return [name for name in names if (folder / name).is_dir()]
