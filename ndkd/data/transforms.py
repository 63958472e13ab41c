"""What happens to an image between the file and the model: torchvision's transforms, and what they lack."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision.transforms import v2

from ndkd.errors import NdkdError
from ndkd.seeds import seed_others

DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")  # Pillow's modes of more than eight bits
BITS_PER_SAMPLE, SAMPLE_FORMAT, SIGNED = 258, 339, 2  # of TIFF


class CropWhileDecoding(v2.RandomResizedCrop):
    """``RandomResizedCrop`` of an image that is not decoded yet: detail that the crop would lose is not decoded."""

    def forward(self, image: Image.Image) -> Image.Image:
        if image.mode in DEEP:  # as a whole: a part has lost what its file says about its type
            image = _with_exif_of(image, _rgb(image))
        box, (width, height) = self.make_params([image]), image.size
        shrink = min(box["height"] / self.size[0], box["width"] / self.size[1])
        image.draft("RGB", (int(width / shrink), int(height / shrink)))  # JPEG at 1/2, 1/4 or 1/8
        if image.size == (width, height):  # torch resizes bytes in half of PIL's time, but needs whole pixels to cut
            right, bottom = box["left"] + box["width"], box["top"] + box["height"]
            part = _rgb(image.crop((box["left"], box["top"], right, bottom)))
            pixels = v2.functional.resize(Pixels()(part), self.size, self.interpolation)
            return _with_exif_of(image, Image.fromarray(pixels.permute(1, 2, 0).numpy()))
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
        seed_others()
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
    chosen = [kind(alpha=float(alpha), num_classes=num_classes) for kind, alpha in kinds if alpha > 0]
    return v2.RandomChoice(chosen) if chosen else None


def _with_exif_of(image: Image.Image, other: Image.Image) -> Image.Image:
    other.info = image.info
    return other


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in DEEP:
        image = _in_bytes(image)
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # the same colours; straight to RGB, Pillow warns
    return image if image.mode == "RGB" else image.convert("RGB")


def _in_bytes(image: Image.Image) -> Image.Image:
    """A deep grey image in 256 steps, by the range of its type; Pillow would cut off what is above 255.

    Raises:
        ValueError: numbers of which nobody can tell how they are meant.
    """
    pixels = np.asarray(image)
    if image.mode == "F":
        low, high = pixels.min(), pixels.max()
        if not (np.isfinite(pixels).all() and low >= 0 and high <= 1):
            raise ValueError(
                f"wanted brightness from 0 to 1 in a file of floats, got {low:g} to {high:g}; scale it first"
            )
        most = 1.0
    else:
        tags = getattr(image, "tag_v2", {})
        bits = 16 if image.mode != "I" or image.format != "TIFF" else tags.get(BITS_PER_SAMPLE, (32,))[0]
        is_signed = tags.get(SAMPLE_FORMAT, (1,))[0] == SIGNED
        most = 2.0 ** (bits - is_signed) - 1
        pixels = pixels.astype(np.float64)
        if bits == 32 and not is_signed:
            pixels = np.where(pixels < 0, pixels + 2.0**32, pixels)  # Pillow reads them as signed
        if pixels.min() < 0:
            raise ValueError(f"wanted brightness from 0 on, got {pixels.min():g}; scale it first")
        if bits == 32 and 0 < pixels.max() < 2**16:  # eight, twelve or sixteen bits of something; it would be black
            raise ValueError(
                f"wanted brightness of 32 bits, got 0 to {pixels.max():g}, as of fewer; save it with 8 or 16 bits"
            )
    return Image.fromarray((pixels * (255 / most)).round().astype(np.uint8))
