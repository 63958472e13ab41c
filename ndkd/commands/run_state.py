"""What a run has come to when it goes on, and when it ends."""

import sys
from typing import Any

import yaml

from ndkd.configuration.entries import differences
from ndkd.errors import Damaged, NdkdError, plain_words
from ndkd.runs import Run


def check_epochs_left(checkpoint: dict[str, Any], max_epochs: int | None) -> None:
    """Raise ``NdkdError`` if a run has more epochs behind it than it is to have."""
    done = checkpoint["epoch"] + 1
    if max_epochs is not None and 0 < max_epochs < done:
        raise NdkdError(
            f"trainer.max_epochs: the run has {done} finished epochs, wanted at least as many, got {max_epochs}; start "
            "a shorter one elsewhere with --run_dir DIR"
        )


def end_of_run(run: Run, error: BaseException | None = None) -> None:
    """However it ends, nothing runs in the folder any more: one that was killed may have left this to the next.

    Args:
        run: that was started here, or found so.
        error: with which it ends.
    """
    if not run.is_kept or run.known_status().get("state") != "running":
        return
    if isinstance(error, Exception):
        run.update_status(state="failed", error=plain_words(error) or str(error).split("\n")[0])
    else:
        run.update_status(state="interrupted")


def say_what_changed(run: Run, config: str) -> None:
    """Before a resume, a line for each entry of the configuration that differs from the run's so far."""
    try:
        before = run.read_config() if run.config.is_file() else {}
    except Damaged as error:  # the run that starts writes it
        return print(f"ndkd: {error}", file=sys.stderr)
    for name, (value, old) in differences(yaml.safe_load(config), before).items():
        if name != "trainer.max_epochs":
            kept = "; a resumed optimizer keeps its own" if ".optimizer." in name else ""
            old = str(old)[:200]
            print(f"ndkd: {name} is {str(value)[:200]} in the configuration, {old} in the run so far{kept}")
    return None
