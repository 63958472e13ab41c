"""Photos of every kind that image folders hold: turned, grey, deep, with an alpha channel, in other shapes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

TURNED = Image.Exif()
TURNED[0x0112] = 6  # by 90 degrees clockwise


def write_class_folders(root: Path, counts: dict[str, int], names: Sequence[str], shape: tuple[int, int]) -> None:
    """Photos that are told apart at once, ``root/SPLIT/NAME/N.png``: a colour for each of three names.

    Args:
        root: a folder.
        counts: of the photos of each class, by split.
        names: of the classes.
        shape: height and width.
    """
    random = np.random.default_rng(0)
    for split, count in counts.items():
        for place, name in enumerate(names):
            for number in range(count):
                file = root / split / name / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                pixels = random.integers(0, 80, (*shape, 3)) + np.eye(3, dtype=int)[place] * 150
                Image.fromarray(pixels.astype(np.uint8)).save(file)


def write_odd_photos(folder: Path) -> list[Path]:
    """One photo of each kind, with smooth colours and some noise; the files."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:45, :71]
    waves = np.stack([np.sin(x / 9 + y / 5), np.cos(y / 7), np.sin((x - y) / 11)], axis=2)
    colour = Image.fromarray((waves * 90 + 128 + random.normal(0, 12, waves.shape)).clip(0, 255).astype(np.uint8))
    grey = np.asarray(colour.convert("L")).astype(np.float64)
    pictures = {
        "wide.png": colour,
        "high.png": colour.rotate(90, expand=True),
        "long.png": colour.resize((211, 37)),
        "small.png": colour.resize((13, 9)),
        "alpha.png": Image.merge("RGBA", (*colour.split(), colour.getchannel(1))),
        "grey.png": colour.convert("L"),
        "grey_alpha.png": colour.convert("LA"),
        "palette.png": colour.quantize(16),
        "bits.png": colour.convert("1"),
        "cmyk.jpg": colour.convert("CMYK"),
        "deep.png": Image.fromarray((grey * 257).astype(np.uint16)),
        "deep.tif": Image.fromarray((grey * 257).astype(np.uint16)),
        "deeper.tif": Image.fromarray((grey * 2**23).astype(np.int32)),
        "floats.tif": Image.fromarray((grey / 255).astype(np.float32)),
    }
    for name, picture in pictures.items():
        picture.save(folder / name)
    for name in ("turned.jpg", "turned.png"):
        colour.save(folder / name, exif=TURNED)
    Image.fromarray((grey * 257).astype(np.uint16)).save(folder / "turned_deep.png", exif=TURNED)
    return sorted(folder.iterdir())
