"""One process at a time in a folder: a lock that says who has it, and that ends with its process."""

import errno
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ndkd.errors import NdkdError
from ndkd.stopping import is_alive

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PATIENCE = 3.0  # seconds that a process that was just stopped may take to end
BUSY = (errno.EACCES, errno.EAGAIN)


class Lock:
    """The file ``lock`` in a folder, with the number and the machine of the process that holds it.

    The operating system holds it for the process and lets go when that ends, however it ends; on a file system that
    cannot, what the file says counts. Forked processes, such as workers of a DataLoader, do not hold it.
    """

    def __init__(self, folder: Path):
        self.path, self._file = folder / "lock", -1

    def take(self) -> str | None:
        """Hold it, or say who does."""
        file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        said = os.read(file, 1000).decode(errors="replace").strip()
        is_free = _try(file, said)
        if is_free and _is_at(self.path, file):
            os.ftruncate(file, 0)
            os.pwrite(file, f"{os.getpid()} on {platform.node()}\n".encode(), 0)
            self._file = file
            return None
        os.close(file)
        return self.take() if is_free else said or "that has just begun"  # its holder has just removed it

    @property
    def is_kept(self) -> bool:
        """Whether the folder is still there, and nobody has put another in its place."""
        return _is_at(self.path, self._file)

    def release(self) -> None:
        if self.is_kept:
            self.path.unlink()
        os.close(self._file)


def _try(file: int, said: str) -> bool:
    """Whether nobody else holds the lock; then it is ours."""
    try:
        if fcntl is not None:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except OSError as error:
        if error.errno in BUSY:
            return False
    number, _, machine = said.partition(" on ")
    return not said or machine == platform.node() and number.isdigit() and not is_alive(int(number))


def _is_at(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except OSError:
        return False


@contextmanager
def locked(folder: Path, what: str, otherwise: str) -> Iterator[Lock]:
    """Hold the lock of a folder, which is made for it; if it stays empty, it is taken away.

    Raises:
        NdkdError: another process holds it; the message calls the folder ``what``, and says what to do ``otherwise``.
    """
    made = [above for above in (folder, *folder.parents) if not above.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock, ends = Lock(folder), time.monotonic() + PATIENCE
    while holder := lock.take():
        if time.monotonic() > ends:
            raise NdkdError(f"{what} {folder} is in use by process {holder}: wait for it, stop it, or {otherwise}")
        time.sleep(0.1)
    try:
        yield lock
    finally:
        lock.release()
        with suppress(OSError):  # something is in it
            for above in made:
                above.rmdir()
