"""The DataModule of a run, from its configuration."""

from typing import Any

import lightning.pytorch as L
from jsonargparse import ArgumentError, ArgumentParser

import ndkd.data  # so that a config can say DigitsDataModule
from ndkd.errors import NdkdError
from ndkd.parser_errors import one_line

DATA_MODULES = [name for name in vars(ndkd.data) if name.endswith("DataModule")]


def configured(config: dict[str, Any]) -> L.LightningDataModule:
    """Make the DataModule that the ``data`` entry of a run's config.yaml names.

    Raises:
        NdkdError: a class that is not there (any more), or options that it does not take.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(L.LightningDataModule, "data", required=True)
    try:
        return parser.instantiate(parser.parse_object({"data": config})).data
    except ArgumentError as error:
        raise NdkdError(one_line(str(error), {"data": DATA_MODULES})) from error
