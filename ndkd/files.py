"""Files are written whole or not at all."""

import csv
import errno
import io
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from ndkd.errors import NdkdError, full_disk


def check_folder(path: Path, option: str) -> Path:
    """The part of a path that exists; ``NdkdError`` that names the option if the rest cannot be made there."""
    above = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise NdkdError(
            f"folder {path} cannot be made: {above} is not a folder to write in; choose another with {option}"
        )
    return above


def write_atomically(path: Path, write: Callable[[BinaryIO], Any], shown: Path | None = None) -> Path:
    """Let ``write`` fill a temporary file, then give it its name: nobody ever meets half of it.

    Neither a reader nor a kill does, and after a power cut there is the old file or the new one: its bytes are on the
    disk before its name is.

    Args:
        path: the file.
        write: fills it.
        shown: what to call it in a message, where the path is not the last one.

    Raises:
        NdkdError: a full disk, with what is free on it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    raw: _RememberingFile | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = _RememberingFile(temporary, "wb")
        with io.BufferedWriter(raw, 1 << 20) as file:
            write(file)
            file.flush()
            _sync(raw.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except Exception as error:
        temporary.unlink(missing_ok=True)  # its room is free again
        if isinstance(error, OSError) and error.filename == str(temporary):
            error.filename = str(shown or path)
        cause = raw.error if raw and raw.error else error  # torch's writer of archives hides what it has met
        if isinstance(cause, OSError) and (full := full_disk(cause, shown or path)):
            raise full from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Path:
    """Write rows as CSV, whole or not at all; what a row lacks stays empty.

    It is UTF-8, but for names of files that are not, whose bytes it keeps.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="")
    if columns:
        writer.writeheader()
    writer.writerows(rows)
    return write_atomically(path, lambda file: file.write(text.getvalue().encode(errors="surrogateescape")))


class _RememberingFile(io.FileIO):
    """A file that keeps the error of a write that failed."""

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk, where the file system and the platform know how."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _sync(descriptor: int) -> None:
    """Put a file's bytes on the disk; on some file systems of networks and devices there is no such thing."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
