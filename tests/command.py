"""``ndkd`` as the tests call it."""

import contextlib
import io
import os
import signal
from pathlib import Path

import lightning.pytorch as L
from lightning.pytorch.utilities.exceptions import SIGTERMException

from ndkd.cli import main

REPOSITORY = Path(__file__).parent.parent
SHORT = ["--trainer.max_epochs=2", "--trainer.limit_test_batches=2", "--data.init_args.train_size=40"]


def ndkd(*arguments):
    """Run a command in this process: exit status, standard output, standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(argument) for argument in arguments])
    return status, out.getvalue(), err.getvalue()


class Terminated(L.Callback):
    """What the trainer does in the second epoch when a scheduler sends SIGTERM."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == 1:
            raise SIGTERMException


class BrokenOff(L.Callback):
    """A signal to the own process in the third epoch."""

    def __init__(self, number: int):
        self.number = number
        signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background would ignore it

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == 2:
            os.kill(os.getpid(), self.number)
