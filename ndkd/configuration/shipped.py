"""Configurations by name: a file of the working folder, else one that comes with ndkd."""

import os
from pathlib import Path

from ndkd.errors import NdkdError

FOLDER = "configs"  # of a checkout; its name may be left in front of a shipped configuration's


def shipped_folder() -> Path:
    """Where the configurations lie that come with ndkd: in the package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / FOLDER
    return inside if inside.is_dir() else package.parent / FOLDER


def shipped_names() -> list[str]:
    """Their names, such as ``digits/kd++.yaml``."""
    folder = shipped_folder()
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.yaml"))


def find_config(name: str | Path) -> Path:
    """The file that a configuration's name stands for.

    Args:
        name: a path from the working folder, as which it is looked for first, or a shipped configuration's name, with
            ``configs/`` in front of it or without.

    Raises:
        NdkdError: no file; those of about that name are named.
    """
    if not str(name).strip():
        raise NdkdError("config: wanted the name of a file, got none; see ndkd configs")
    if str(name).startswith("--"):
        raise NdkdError(f"config: wanted the name of a file, got the option {name}; see ndkd configs")
    try:
        if (found := lookup(name)) is not None:
            return found
        is_folder = Path(name).is_dir() or _shipped(name).is_dir()
    except OSError as error:
        raise NdkdError(f"config {name} cannot be read: {error.strerror}; correct the path") from error
    if is_folder:
        raise NdkdError(f"config {name} is a folder; name a file in it")
    raise NdkdError(f"config {name} does not exist; {_hint(Path(name))}")


def lookup(name: str | Path) -> Path | None:
    """The same, None where there is no file."""
    return next((file for file in (Path(name), _shipped(name)) if file.is_file()), None)


def find_shipped(name: str) -> Path:
    """A shipped configuration, whatever the working folder has.

    Raises:
        NdkdError: there is none of this name.
    """
    file = _shipped(name)
    if shipped_name(file) and file.is_file():
        return file
    hint = _did_you_mean(Path(name), [_as_typed(Path(name), known) for known in shipped_names()])
    raise NdkdError(f"no configuration {name} comes with ndkd; {hint or 'ndkd configs lists them'}")


def shipped_name(file: Path) -> Path | None:
    """What a shipped configuration is called below its folder; None for any other file."""
    path, folder = (Path(os.path.abspath(path)) for path in (file, shipped_folder()))
    return path.relative_to(folder) if path.is_relative_to(folder) else None


def _shipped(name: str | Path) -> Path:
    """The file that a shipped configuration of this name would be; a path that leads elsewhere is none."""
    parts = Path(name).parts
    if Path(name).is_absolute() or ".." in parts:
        return Path(name)
    return shipped_folder().joinpath(*(parts[1:] if parts[:1] == (FOLDER,) else parts))


def _as_typed(typed: Path, known: str) -> str:
    """A name with ``configs/`` in front of it where that was typed, and without it elsewhere."""
    known = known.removeprefix(f"{FOLDER}/")
    return f"{FOLDER}/{known}" if typed.parts[:1] == (FOLDER,) else known


def _hint(name: Path) -> str:
    """Files of about that name, here and among the shipped ones."""
    shipped = [_as_typed(name, known) for known in shipped_names()]
    here = {*name.parent.glob("*.yaml"), *Path(FOLDER).rglob("*.yaml")}
    own = sorted(file.as_posix() for file in here if _as_typed(name, file.as_posix()) not in shipped)
    hint = _did_you_mean(name, [*own, *shipped])
    return hint or "correct the path, or choose of those that ndkd configs lists"


def _did_you_mean(name: Path, known: list[str], most: int = 5) -> str:
    """The known names that are nearest to a name, whatever its ending; nothing if none is near."""
    import difflib

    words = {_word(Path(other)): other for other in known}
    near = difflib.get_close_matches(_word(name), words, n=most, cutoff=0.6)
    near = near or sorted((word for word in words if _word(name) in word), key=len)[:most]
    return f"did you mean {', '.join(words[word] for word in near)}?" if near else ""


def _word(name: Path) -> str:
    """What is compared of a name: without ``configs/`` and the ending."""
    return name.as_posix().removeprefix(f"{FOLDER}/").removesuffix(name.suffix)
