"""``ndkd`` as the tests call it."""

import contextlib
import fcntl
import io
import os
import pty
import signal
import struct
import termios
import threading
import time
from pathlib import Path

import lightning.pytorch as L
import pytest

from ndkd.cli import main
from ndkd.errors import NdkdError
from ndkd.stopping import is_alive

REPOSITORY = Path(__file__).parent.parent
SHORT = ["--trainer.max_epochs=2", "--trainer.limit_test_batches=2", "--data.init_args.train_size=40"]


def ndkd(*arguments):
    """Run a command in this process: exit status, standard output, standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(argument) for argument in arguments])
    return status, out.getvalue(), err.getvalue()


def in_terminal(*arguments):
    """The same with a terminal for both outputs: exit status, and what the terminal was sent."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    sent = []

    def read():
        with contextlib.suppress(OSError):  # raised at the terminal's end
            while received := os.read(ours, 4096):
                sent.append(received)

    reader = threading.Thread(target=read)
    reader.start()
    with open(theirs, "w") as terminal, contextlib.redirect_stdout(terminal), contextlib.redirect_stderr(terminal):
        status = main([str(argument) for argument in arguments])
    reader.join()
    os.close(ours)
    return status, b"".join(sent).decode()


def gone(process, within=5):
    """Whether a process that is not our child ends; one that waits for its parent's look has."""
    ends = time.monotonic() + within
    while is_alive(process) and time.monotonic() < ends:
        time.sleep(0.02)
        with contextlib.suppress(OSError):
            if Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] == "Z":
                return True
    return not is_alive(process)


class BrokenOff(L.Callback):
    """A signal to the own process, at a hook of the trainer, from an epoch on."""

    def __init__(self, number: int, hook: str = "on_train_batch_end", epoch: int = 2):
        self.number, self.epoch, self.is_sent = number, epoch, False
        setattr(self, hook, self.send)
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # of tests in the background
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def send(self, trainer, *args, **kwargs):
        if trainer.current_epoch >= self.epoch and not self.is_sent:
            self.is_sent = True
            os.kill(os.getpid(), self.number)


class Terminated(BrokenOff):
    """What a scheduler does in the second epoch."""

    def __init__(self):
        super().__init__(signal.SIGTERM, epoch=1)


def refusal(function, *arguments, **options):
    """The message, of one line, with which a call is refused."""
    with pytest.raises(NdkdError) as caught:
        function(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message
