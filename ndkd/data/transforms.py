"""What happens to an image between the file and the model: torchvision's transforms, and what they lack."""

import random
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision.transforms import v2

from ndkd.errors import NdkdError


class CropWhileDecoding(v2.RandomResizedCrop):
    """``RandomResizedCrop`` of an image that is not decoded yet: detail that the crop would lose is not decoded."""

    def forward(self, image: Image.Image) -> Image.Image:
        box, (width, height) = self.make_params([image]), image.size
        shrink = min(box["height"] / self.size[0], box["width"] / self.size[1])
        image.draft("RGB", (int(width / shrink), int(height / shrink)))  # JPEG at 1/2, 1/4 or 1/8
        if image.size == (width, height):  # torch resizes bytes in half of PIL's time, but needs whole pixels to cut
            right, bottom = box["left"] + box["width"], box["top"] + box["height"]
            part = _rgb(image.crop((box["left"], box["top"], right, bottom)))
            pixels = v2.functional.resize(Pixels()(part), self.size, self.interpolation)
            resized = Image.fromarray(pixels.permute(1, 2, 0).numpy())
            resized.info = image.info  # the EXIF data
            return resized
        x, y = image.width / width, image.height / height
        right, bottom = (box["left"] + box["width"]) * x, (box["top"] + box["height"]) * y
        corners = box["left"] * x, box["top"] * y, min(right, image.width), min(bottom, image.height)
        return _rgb(image).resize(self.size[::-1], Image.Resampling[self.interpolation.name], box=corners)


class InRGB(nn.Module):
    """RGB, turned as the EXIF data says if ``upright``."""

    def __init__(self, upright: bool):
        super().__init__()
        self.upright = upright

    def forward(self, image: Image.Image) -> Image.Image:
        if self.upright:
            ImageOps.exif_transpose(image, in_place=True)  # the other way copies what is upright already
        return _rgb(image)

    def extra_repr(self) -> str:
        return f"upright={self.upright}"


class Pixels(nn.Module):
    """A tensor of bytes (c, h, w), pixel by pixel in memory."""

    def forward(self, image: Image.Image) -> Tensor:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


class RandAugment(nn.Module):
    """Timm's RandAugment, https://arxiv.org/abs/1909.13719.

    Args:
        policy: such as ``rand-m9-mstd0.5-inc1``.
        image_size: height and width of the images.
        mean: per channel, what moves in at the borders.

    Raises:
        NdkdError: timm is missing, or does not know the policy.
    """

    def __init__(self, policy: str, image_size: int, mean: Sequence[float]):
        super().__init__()
        try:
            from timm.data.auto_augment import rand_augment_transform
        except ImportError as error:
            raise NdkdError("rand_augment needs timm: python -m pip install 'ndkd[timm]'") from error
        options = {"translate_const": int(image_size * 0.45), "img_mean": tuple(round(255 * m) for m in mean)}
        try:
            self.augment = rand_augment_transform(policy, options)
        except (AssertionError, ValueError) as error:
            raise NdkdError(f"rand_augment: timm does not know {policy!r}; try rand-m9-mstd0.5-inc1") from error
        self.policy = policy

    def forward(self, image: Image.Image) -> Image.Image:
        seed = int(torch.randint(2**31, ()))  # it draws with Python's and NumPy's generators
        random.seed(seed)
        np.random.seed(seed)
        return self.augment(image)

    def extra_repr(self) -> str:
        return self.policy


def erasing(probability: float, mean: Sequence[float], std: Sequence[float]) -> list[nn.Module]:
    """Noise in a rectangle of an image, drawn from N(mean, std): https://arxiv.org/abs/1708.04896."""
    if not probability:
        return []
    back = v2.Normalize([-m / s for m, s in zip(mean, std, strict=True)], [1 / s for s in std])
    noise = v2.RandomErasing(probability, value="random")  # N(0, 1), for normalised pixels
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std), noise, back]


def mixing(mixup: float, cutmix: float, num_classes: int) -> nn.Module | None:
    """MixUp, CutMix or, where both alphas are above 0, one of them at random: soft targets (B, C) for indices (B,).

    Sources: https://arxiv.org/abs/1710.09412, https://arxiv.org/abs/1905.04899.
    """
    kinds = [(v2.MixUp, mixup), (v2.CutMix, cutmix)]
    chosen = [kind(alpha=alpha, num_classes=num_classes) for kind, alpha in kinds if alpha > 0]
    return v2.RandomChoice(chosen) if chosen else None


def _rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")
