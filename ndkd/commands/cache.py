"""``ndkd cache``: what is recorded of teachers in a folder, and away with it."""

import shutil
import time
from pathlib import Path

from ndkd.callbacks.teacher_cache import in_words
from ndkd.distillation.recorded_teacher import ABOUT, Recording
from ndkd.distillation.recordings import recordings_in
from ndkd.errors import NdkdError

DAY = 24 * 3600


def cache(folder: Path, older_than: float | None = None, teacher: str | None = None, delete: bool = False) -> None:
    """Print the recordings in a folder, or delete them.

    Args:
        folder: that ``--teacher_cache`` was given; of a comparison it is ``OUT/teacher_cache``.
        older_than: only what nothing has been added to for so many days.
        teacher: only of teachers whose name or checkpoint has this in it.
        delete: remove what would be printed.

    Raises:
        NdkdError: no such folder.
    """
    if not folder.is_dir():
        raise NdkdError(f"{folder} is no folder; give the one that --teacher_cache was given")
    if older_than is not None and not older_than >= 0:
        raise NdkdError(f"older-than: wanted a number of days from 0 on, got {older_than}")
    recordings = list(recordings_in(folder))
    found = {each.folder: _described(each) for each in recordings if teacher is None or teacher in _teacher(each)}
    if teacher is None:  # of whose teacher nobody can tell
        known = {recording.folder for recording in recordings}
        others = sorted({file.parent for file in folder.glob("*/epoch-*.rows")} - known)
        found |= {place: f"{place.name}: its {ABOUT} cannot be read, {in_words(_size(place))}" for place in others}
    if older_than is not None:
        found = {place: line for place, line in found.items() if time.time() - _written(place) > older_than * DAY}
    if not found:
        like_that = "" if teacher is None and older_than is None else " like that"
        print(f"{folder} has no recording{like_that}")
        return
    print(*found.values(), sep="\n")
    total = in_words(sum(map(_size, found)))
    for place in found if delete else ():
        shutil.rmtree(place)
    print(f"deleted: {total}" if delete else f"{total}; --delete removes what is listed")


def _described(recording: Recording) -> str:
    epochs = {file.name.split("-")[1] for file in recording.folder.glob("epoch-*.rows")}
    identity = recording.identity
    parts = [
        f"{recording.folder.name}: {_teacher(recording)}",
        f"seed {identity['seed']}",
        f"batch size {identity['batch size'] * identity['processes']}",
        identity["precision"],
        f"{len(epochs)} epoch{'' if len(epochs) == 1 else 's'}",
        in_words(_size(recording.folder)),
        f"last written {time.strftime('%Y-%m-%d', time.localtime(_written(recording.folder)))}",
    ]
    return ", ".join(parts)


def _teacher(recording: Recording) -> str:
    teacher = recording.identity["teacher"]
    return f"{teacher['name']} {teacher.get('checkpoint') or ''}".strip()


def _size(place: Path) -> int:
    return sum(file.stat().st_size for file in place.iterdir())


def _written(place: Path) -> float:
    return max(file.stat().st_mtime for file in place.iterdir())
