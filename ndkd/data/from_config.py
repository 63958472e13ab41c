"""The DataModule of a run, from its configuration."""

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch.utilities.model_helpers import is_overridden
from PIL import Image
from torch import Tensor

import ndkd.data  # so that a config can say DigitsDataModule
from ndkd.configuration.parser_errors import one_line
from ndkd.data.base import HasTransform
from ndkd.errors import NdkdError

DATA_MODULES = [name for name in vars(ndkd.data) if name.endswith("DataModule")]


def made(config: dict[str, Any]) -> L.LightningDataModule:
    """Make the DataModule that the ``data`` entry of a run's config.yaml names; its images need not be there.

    Raises:
        NdkdError: a class that is not there (any more), or options that it does not take.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(L.LightningDataModule, "data", required=True)
    try:
        return parser.instantiate(parser.parse_object({"data": config})).data
    except ArgumentError as error:
        raise NdkdError(one_line(str(error), {"data": DATA_MODULES})) from error


def configured(config: dict[str, Any]) -> L.LightningDataModule:
    """The same, ready to evaluate on.

    Raises:
        NdkdError: also for images that are not there.
    """
    data = made(config)
    data.prepare_data()
    data.setup("test" if has_test(data) else "validate")
    return data


def noise_photos(data: HasTransform) -> Tensor | None:
    """Eight photos of noise as the data would show them, (8, c, h, w) in [0, 1]; None if each has a size of its own."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 256, 320, 3), dtype=np.uint8)
    upright = [photo if number % 2 else photo.swapaxes(0, 1) for number, photo in enumerate(pixels)]
    photos = [data.transform(Image.fromarray(np.ascontiguousarray(photo))) for photo in upright]
    return torch.stack(photos) / 255 if len({photo.shape for photo in photos}) == 1 else None


def has_test(data: L.LightningDataModule) -> bool:
    """Whether there are images to test on; not all data have them."""
    return is_overridden("test_dataloader", data, L.LightningDataModule)


def evaluation_batches(data: L.LightningDataModule) -> Iterator[tuple[Tensor, Tensor]]:
    """The test images or else the validation images, (B, c, h, w) in [0, 1], and their classes (B,)."""
    for images, target in data.test_dataloader() if has_test(data) else data.val_dataloader():
        yield images / (255 if images.dtype == torch.uint8 else 1), target
