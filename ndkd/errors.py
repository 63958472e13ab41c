"""Errors in the words of the person at the keyboard."""

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # a disk, a user's share of it, the largest file that is allowed


class NdkdError(Exception):
    """A mistake in the input; its message says in one line what was wrong, what was found and what to do."""

    def __init__(self, message: str):
        # a DataLoader wraps what its worker raised in the traceback
        super().__init__(message.rpartition(f"{__name__}.NdkdError: ")[2].strip())


def words_of(error: Exception) -> str:
    """What an exception of another package says in one line, with its kind where the text alone says little.

    >>> words_of(KeyError("lr"))
    "KeyError: 'lr'"
    """
    text = " ".join(str(error).split())[:400]
    plain = type(error).__name__ in ("ValueError", "TypeError", "RuntimeError", "MisconfigurationException")
    return text if plain and text else f"{type(error).__name__}: {text}"


class Damaged(NdkdError):
    """A file of a run that is not as it was written.

    Args:
        file: its path.
        why: what was found.
        to_do: by whoever reads it.
    """

    def __init__(self, file: str | Path, why: str, to_do: str):
        super().__init__(f"{file} is damaged: {' '.join(why.split())[:200]}; {to_do}")


def full_disk(error: OSError, path: str | Path) -> NdkdError | None:
    """What to say where a file could not be written for want of space; None for any other error."""
    if error.errno not in FULL:
        return None
    folder = next(folder for folder in Path(path).absolute().parents if folder.exists())
    free = shutil.disk_usage(folder).free / 1e6
    to_do = "make room and run it again; a fit that has finished an epoch resumes with --ckpt_path last"
    return NdkdError(f"{path} cannot be written: {error.strerror}; {free:,.1f} MB are free there; {to_do}")


def plain_words(error: BaseException) -> str | None:
    """The line that tells what an error means, None if only its traceback does."""
    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, NdkdError):
        return said
    lost = isinstance(error, ConnectionError | EOFError) and _is_of_a_loader(error)
    if lost or "DataLoader worker (pid" in said:
        return (
            f"a process that reads images was killed, as happens when memory runs out ({said}): lower "
            "data.init_args.num_workers or batch_size"
        )
    if isinstance(error, RuntimeError) and ("by peer" in said or "closed connection" in said):
        return "another process of the run has ended: see what it says; --ckpt_path last continues"
    if isinstance(error, OSError):
        if full := full_disk(error, error.filename or Path.cwd()):
            return str(full)
        return f"{error.strerror or said}: {path_text(error.filename)}" if error.filename else said
    return None


def _is_of_a_loader(error: BaseException) -> bool:
    step = error.__traceback__
    while step is not None and not step.tb_frame.f_globals.get("__name__", "").startswith("torch.utils.data"):
        step = step.tb_next
    return step is not None


def suggestion(name: str, known: list[str], most: int = 5) -> str:
    """The part of an error message that offers the known names nearest to an unknown one.

    >>> suggestion("resnet21", ["resnet20", "vgg8"])
    'did you mean resnet20?'
    >>> suggestion("resnet18", ["cifar/resnet8", "torchvision/resnet18"])
    'did you mean torchvision/resnet18?'
    """
    import difflib

    if not known:
        return "correct it, or leave it out"
    words = [other.rpartition("/")[2] for other in known]  # in front of it stands a family or a folder
    word = name.rpartition("/")[2]
    close = [word] if "/" in known[0] and word in words else difflib.get_close_matches(word, words, n=most, cutoff=0.6)
    near = [other for match in dict.fromkeys(close) for other, last in zip(known, words, strict=True) if last == match]
    near = near or [other for other in known if name.lower() in other.lower()]
    near = near[:most]
    if near:
        return f"did you mean {', '.join(near)}?"
    return f"known: {', '.join(known[: 4 * most])}{', …' if len(known) > 4 * most else ''}"


def path_text(path: object) -> str:
    """A path as text, bytes among them.

    >>> path_text(b"a/b.jpg")
    'a/b.jpg'
    """
    return os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else str(path)


def shortened(names: Sequence[str], most: int = 4) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
