"""``ndkd fit`` without a word, unless it fails, and a process of its own for what is timed."""

import contextlib
import io
import multiprocessing
from collections.abc import Callable
from typing import Any

from ndkd.cli import main as ndkd


def quiet_fit(config: object, *options: object) -> None:
    """Run it in this process."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        status = ndkd(["fit", "--config", str(config), *map(str, options)])
    assert status == 0, errors.getvalue()


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call it in a process of its own: ndkd's allocator settings would speed the other up too."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)
