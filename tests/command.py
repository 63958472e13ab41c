"""``ndkd`` as the tests call it."""

import contextlib
import io
from pathlib import Path

from ndkd.cli import main

REPOSITORY = Path(__file__).parent.parent
SHORT = ["--trainer.max_epochs=2", "--trainer.limit_test_batches=2", "--data.init_args.train_size=40"]


def ndkd(*arguments):
    """Run a command in this process: exit status, standard output, standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(argument) for argument in arguments])
    return status, out.getvalue(), err.getvalue()
