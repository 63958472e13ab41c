"""fit, validate, test and predict."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import yaml
from tqdm import tqdm

from ndkd.commands import class_help
from ndkd.commands.build_errors import in_one_line
from ndkd.commands.library_errors import in_our_words
from ndkd.commands.process import keep_freed_memory, quiet
from ndkd.commands.training_cli import TrainingCLI


@in_one_line()
def run_command(arguments: list[str], cli: Callable[[list[str]], TrainingCLI] = TrainingCLI) -> int:
    """Run one of the four commands; the exit status.

    Args:
        arguments: the command and its options.
        cli: what reads and runs them.
    """
    quiet()
    if (page := class_help.asked_for(arguments)) is not None:
        print(page)
        return 0
    keep_freed_memory()
    try:
        with in_our_words(arguments), _closed_bars():
            cli(arguments)
    except SystemExit as exit:  # after the parser's help
        return int(exit.code or 0)
    return 0


class ConfigurationCLI(TrainingCLI):
    """Reads a configuration, and does nothing with it."""

    def before_instantiate_classes(self) -> None:
        pass

    def instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass


@in_one_line()
def resolved_config(options: list[str]) -> dict[str, Any]:
    """The configuration that ``ndkd fit`` makes of these options.

    Raises:
        NdkdError: a mistake in it.
    """
    quiet()
    with in_our_words(options):
        return yaml.safe_load(ConfigurationCLI(["fit", *options]).resolved())


@contextmanager
def _closed_bars() -> Iterator[None]:
    """Close the bars that an error leaves open, so that the message gets a line of its own."""
    try:
        yield
    finally:
        for bar in list(tqdm._instances):
            bar.close()
