"""``ndkd fit`` without a word, unless it fails, and processes of their own for what is timed."""

import contextlib
import io
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ndkd.cli import main as ndkd


def quiet_fit(config: object, *options: object) -> None:
    """Run it in this process."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        status = ndkd(["fit", "--config", str(config), *map(str, options)])
    assert status == 0, errors.getvalue()


def fit_with(callback: type, config: object, *options: object) -> None:
    """Run it in this process with a callback that keeps what it finds in its class; the run's folder is removed."""
    with tempfile.TemporaryDirectory() as folder:
        added = f"--trainer.callbacks+={callback.__module__}.{callback.__name__}"
        quiet_fit(config, "--run_dir", folder, added, *options)


def ndkd_process(*arguments: object, silent: bool = False) -> None:
    """Run ``ndkd`` in a process that finds the classes of this folder."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "ndkd", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=silent, env=os.environ | {"PYTHONPATH": path})


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call it in a process of its own: ndkd's allocator settings would speed the other up too."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)
