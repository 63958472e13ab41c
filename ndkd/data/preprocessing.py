"""What a DataModule's transform does with a photo, in terms that other programs can follow."""

from typing import Any

from PIL import Image
from torchvision.transforms import v2

from ndkd.data.transforms import InRGB, Pixels

MIDDLES: tuple[tuple[type, ...], ...] = ((), (v2.Resize,), (v2.CenterCrop,), (v2.Resize, v2.CenterCrop))


def photo_steps(transform: Any) -> dict[str, Any] | None:
    """The steps between a photo's file and its pixels, in the order in which they are taken.

    Args:
        transform: of a DataModule, see ``ndkd.data.base.HasTransform``.

    Returns:
        ``upright``, whether it is turned as its EXIF data says; ``resize``, to a length of the shorter side, to
        [height, width] or, if None, not at all; ``interpolation``, by the name of one of Pillow's; ``crop``, the
        [height, width] of the middle that is cut out, or None. None where the transform takes other steps.

    Example:
        >>> photo_steps(v2.Compose([InRGB(upright=True), v2.Resize(73), v2.CenterCrop(64), Pixels()]))
        {'upright': True, 'resize': 73, 'interpolation': 'bilinear', 'crop': [64, 64]}
    """
    steps: list[Any] = list(getattr(transform, "transforms", ()))
    if tuple(map(type, steps)) not in {(InRGB, *middle, Pixels) for middle in MIDDLES}:
        return None
    found: dict[str, Any] = {"upright": steps[0].upright, "resize": None, "interpolation": None, "crop": None}
    for step in steps[1:-1]:
        size = [int(length) for length in step.size]
        if isinstance(step, v2.CenterCrop):
            found["crop"] = size
            continue
        kind = str(getattr(step.interpolation, "value", step.interpolation))
        if step.max_size is not None or kind.upper() not in Image.Resampling.__members__:
            return None
        found |= {"resize": size[0] if len(size) == 1 else size, "interpolation": kind}
    return found
