"""Ctrl-C, SIGTERM and SIGHUP: one way to stop, heard at any time, and processes that end with their parent."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
CALLBACKS = [("multiprocessing.popen_fork", "_launch"), ("importlib._bootstrap", "cb")]  # of forks and import locks
CALLBACKS += [("weakref", "remove"), ("_weakrefset", "_remove")]  # and of dead keys
PARENT = "NDKD_PARENT"  # in the environment of a process that ends with the one that started it: whose id, which signal


class Stopped(KeyboardInterrupt):
    """A signal to stop. Like Ctrl-C, it is no error, so that nothing takes it for one."""


class Stop:
    """The signal that was heard, 0 until there is one."""

    number = 0
    advice: Callable[[], str] = str  # how to go on

    def begin(self) -> None:
        """Listen to what comes from now on."""
        self.number, self.is_raised, self.process, self.advice = 0, False, os.getpid(), str

    def hear(self, number: int, frame: FrameType | None) -> None:
        """Raise ``Stopped``, once: a second signal would break off what the first has begun to put in order."""
        if self.is_raised or os.getpid() != self.process:  # a worker that was just forked
            return
        self.number = self.number or number
        if hasattr(signal, "SIGCHLD"):  # the end of a DataLoader's worker is no error any more
            signal.signal(signal.SIGCHLD, lambda *_: None)
        if _would_be_lost(frame) and hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0.02)  # try again
            return
        self.is_raised = True
        raise Stopped


def _would_be_lost(frame: FrameType | None) -> bool:
    """Whether an exception would go no further, or leave workers half made, which says so when they are taken down."""
    while frame is not None:
        name, module = frame.f_code.co_name, frame.f_globals.get("__name__", "")
        loading = module == "torch.utils.data.dataloader" and name in ("__init__", "_shutdown_workers")
        if loading or name == "__del__" or (module, name) in CALLBACKS:
            return True
        frame = frame.f_back
    return False


stop = Stop()


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, every signal to stop raises ``Stopped``; one that the process was started to ignore stays ignored."""
    stop.begin()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    others = [getattr(signal, name) for name in ("SIGALRM", "SIGCHLD") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in [*SIGNALS, *others]}
    for number in [*SIGNALS, *others[:1]]:
        if before[number] != signal.SIG_IGN:
            signal.signal(number, stop.hear)
    try:
        yield
    finally:
        for worker in multiprocessing.active_children() if stop.number else ():  # one that hangs would be waited for
            worker.kill()
        if stop.number and hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def parent_of(number: int) -> dict[str, str]:
    """What the environment of a process says that is to get this signal when we end."""
    return {PARENT: f"{os.getpid()} {int(number)}"}


def end_with_parent() -> None:
    """Ask for the signal that the environment names, if it was our parent that put it there, or it is no more."""
    parent, _, number = os.environ.get(PARENT, "").partition(" ")
    if parent == str(os.getppid()) or parent and not is_alive(int(parent)):
        at_end_of(int(parent), int(number))


def at_end_of(parent: int, number: int) -> None:
    """Get a signal when the parent ends, in whatever way."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # too late
            os.kill(os.getpid(), number)
    else:
        threading.Thread(target=_watch, args=(parent, number), daemon=True).start()


def _watch(parent: int, number: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), number)


def is_alive(process: int) -> bool:
    """Whether there is such a process on this machine."""
    try:
        os.kill(process, 0)
    except PermissionError:  # someone else's
        return True
    except OSError:
        return False
    return True


@contextmanager
def held() -> Iterator[None]:
    """Inside, signals to stop wait; so they do in the processes that are forked there, until ``as_worker``."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def as_worker(worker: int) -> None:
    """In a DataLoader's worker: signals to stop are its parent's business, and it ends with it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    sys.excepthook = _unless_the_parent_left
    parent = multiprocessing.parent_process()
    if hasattr(signal, "SIGKILL") and parent is not None and parent.pid is not None:
        at_end_of(parent.pid, signal.SIGKILL)


def _unless_the_parent_left(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """What a worker's thread that hands tensors over says where nobody takes them any more."""
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)
