"""People's own augmentation, from classes of torchvision that a configuration names."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from ndkd.errors import NdkdError, words_of
from ndkd.seeds import drawing_from, seed_others

FAR_FROM_1 = 16  # noise in [0, 1] stays below, bytes do not


class OwnTransforms(nn.Module):
    """Transforms of a training image, one after the other, and a check of what becomes of it.

    An image is a tensor (3, h, w) of bytes before, and of bytes or of floats in [0, 1] afterwards.

    Args:
        steps: of ``torchvision.transforms.v2``.
        size: (h, w) that the images must have afterwards.

    Raises:
        NdkdError: a step that normalises or mixes, which is done elsewhere; in use, a step that fails, or images of
            which no batch can be made.
    """

    def __init__(self, steps: Sequence[nn.Module], size: Sequence[int]):
        super().__init__()
        self.steps, self.size = nn.ModuleList(steps), tuple(size)
        for step in _all(steps):
            if isinstance(step, v2.Normalize):
                raise NdkdError("transforms: Normalize: each model normalises for itself; leave it out")
            if isinstance(step, v2.MixUp | v2.CutMix):
                name = type(step).__name__
                raise NdkdError(
                    f"transforms: {name} mixes whole batches; leave it out, and set {name.lower()} of an "
                    "ImageFolderDataModule"
                )

    def forward(self, image: Tensor) -> Tensor:
        before = _shown(image)
        seed_others()  # one's own classes may draw with other generators than torch's
        for step in self.steps:
            try:
                image = step(image)
            except Exception as error:  # of whatever kind torchvision or one's own class raises
                raise NdkdError(
                    f"transforms: {type(step).__name__} fails on {_shown(image)}: {words_of(error)}"
                ) from error
        wanted = (3, *self.size)
        good = isinstance(image, Tensor) and image.dtype in (torch.uint8, torch.float32)
        if not good or tuple(image.shape) != wanted:
            last = type(self.steps[-1]).__name__ if len(self.steps) else "no transform"
            raise NdkdError(
                f"transforms: wanted bytes or float32 of {_size(wanted)} after the last one ({last}), got "
                f"{_shown(image)} from {before}; add or correct a transform such as "
                f"RandomResizedCrop(size={list(self.size)})"
            )
        if image.is_floating_point() and image.max() > FAR_FROM_1:
            raise NdkdError(
                f"transforms: wanted bytes or floats in [0, 1], got floats up to {image.max():g}; scale them"
            )
        return image.as_subclass(Tensor)

    def try_on(self, image: Tensor) -> None:
        """Raise what would be raised in training, before it begins; nothing is drawn that training would draw."""
        with drawing_from(0):
            self(image)


def _all(steps: Iterable[Any]) -> Iterator[Any]:
    """Transforms, and those that they are made of."""
    for step in steps:
        yield step
        yield from _all(getattr(step, "transforms", ()))


def _shown(image: object) -> str:
    if not isinstance(image, Tensor):
        return f"a {type(image).__name__}"
    return f"{str(image.dtype).removeprefix('torch.')} of {_size(image.shape)}"


def _size(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))
