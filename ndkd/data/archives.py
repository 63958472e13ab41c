"""Whether an archive can be unpacked without harm: nothing outside its folder, and not more than there is room for."""

import shutil
import tarfile
from pathlib import Path, PurePosixPath
from typing import IO

from ndkd.errors import NdkdError, words_of

LARGEST = 2 * 1024**3  # bytes of a member; ImageNet's largest class has a quarter of a GiB


def check_archive(archive: Path, folder: Path, largest: int = LARGEST) -> None:
    """Raise ``NdkdError`` unless all that is in a tar file, and in the tar files in it, can be unpacked into a folder.

    Args:
        archive: compressed or not.
        folder: an existing one on the disk that it is unpacked to.
        largest: bytes that a member may have.
    """
    free = shutil.disk_usage(folder).free
    try:
        with tarfile.open(archive) as tar:
            _check_members(tar, str(archive), free, largest)
    except (tarfile.TarError, EOFError) as error:
        raise NdkdError(f"archive {archive} is damaged ({words_of(error)}): download it again") from error


def _check_members(tar: tarfile.TarFile, name: str, free: int, largest: int) -> int:
    """The bytes that the members take, checked from one to the next: a bomb is not read to its end."""
    total = 0
    for member in tar:
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
            kind = "leads out of its folder" if member.isfile() or member.isdir() else "is not an ordinary file"
            raise NdkdError(f"archive {name}: {member.name!r} {kind}; it is not unpacked")
        if member.size > largest:
            raise NdkdError(f"archive {name}: {member.name!r} has {_gb(member.size)}; it is not unpacked")
        total += member.size
        if path.suffix == ".tar" and (inner := tar.extractfile(member)) is not None:
            total += _check_inner(inner, f"{name}, {member.name}", free - total, largest)
        if total > free:
            raise NdkdError(f"archive {name} has more than the {_gb(free)} that are free; make room")
    return total


def _check_inner(file: IO[bytes], name: str, free: int, largest: int) -> int:
    with tarfile.open(fileobj=file) as tar:
        return _check_members(tar, name, free, largest)


def _gb(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"
