"""A small set of drawn shapes in COCO's format: ``python tests/drawn_shapes.py FOLDER``."""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ndkd.errors import NdkdError
from ndkd.seeds import generator

# by id, with gaps as in COCO: name, corners, radius of every other corner, radius of the hole
SHAPES = {2: ("circle", 60, 1, 0), 3: ("square", 4, 1, 0), 7: ("triangle", 3, 1, 0)}
SHAPES |= {40: ("star", 10, 0.45, 0), 90: ("ring", 60, 1, 0.5)}
CATEGORIES = [{"id": number, "name": shape[0]} for number, shape in SHAPES.items()]


def main(arguments: list[str] | None = None) -> None:
    """Draw the images and write their boxes.

    Raises:
        NdkdError: a folder that is not empty, a number that is too small.
    """
    parser = argparse.ArgumentParser(prog="python tests/drawn_shapes.py", description=__doc__.partition(":")[0])
    parser.add_argument("folder", type=Path)
    for name, default in {"train": 400, "val": 100, "size": 160, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args(arguments)
    if min(options.train, options.val) < 3 or options.size < 64 or options.seed < 0:
        raise NdkdError("wanted at least --train 3, --val 3, --size 64 and --seed 0")
    folder = options.folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise NdkdError(f"{folder} is not empty: remove it or give another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as beside:
        whole = Path(beside, "whole")  # or nothing
        (whole / "annotations").mkdir(parents=True)
        for number, split in enumerate(("train", "val")):
            (whole / split).mkdir()
            images, boxes = [], []
            for image in range(1, getattr(options, split) + 1):
                picture, found = draw(image, options.size, generator(options.seed, number, image))
                picture.save(whole / split / f"{image:06d}.png")
                size = {"width": options.size, "height": options.size}
                images.append({"id": image, "file_name": f"{image:06d}.png", **size})
                boxes += [{"id": n, "image_id": image, **box} for n, box in enumerate(found, len(boxes) + 1)]
            content = {"images": images, "annotations": boxes, "categories": CATEGORIES}
            (whole / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        whole.rename(folder)


def draw(number: int, size: int, random: np.random.Generator) -> tuple[Image.Image, list[dict]]:
    """An image and its annotations; the first has no shape, the second a crowd of small ones."""
    coarse = Image.fromarray(random.integers(40, 216, (5, 5, 3), np.uint8))
    pixels = np.array(coarse.resize((size, size), Image.Resampling.BICUBIC), float)
    owner, drawn = np.full((size, size), -1), []  # of each pixel, the shape on top
    crowd, low, start = number == 2, size / (27 if number == 2 else 12), random.uniform(0.25, 0.75, 2) * size
    for _ in range({1: 0, 2: 12}.get(number, random.integers(1, 6))):
        kind = 40 if crowd else random.choice(list(SHAPES)).item()
        radius = low if crowd else low * np.exp(random.uniform(0, np.log(3)))
        center = start + random.normal(0, 2 * low, 2) if crowd else random.uniform(radius, size - radius, 2)
        mask = outline(kind, size, center, radius, random.uniform(0, 2 * np.pi))
        seen = [np.sum((owner == below) & ~mask) / area for below, (_, area) in enumerate(drawn)]
        if crowd or min(seen, default=1) > 0.5:  # enough is left of what lies below
            owner[mask] = len(drawn)
            drawn.append((kind, mask.sum()))
            pixels[mask] = random.integers(0, 256, 3)
    parts = [(40, owner >= 0)] if crowd else [(kind, owner == part) for part, (kind, _) in enumerate(drawn)]
    boxes = []
    for kind, part in parts:
        (top, left), (bottom, right) = (edge(np.argwhere(part), axis=0).tolist() for edge in (np.min, np.max))
        box = [left, top, right + 1 - left, bottom + 1 - top]
        boxes.append({"category_id": kind, "bbox": box, "area": int(part.sum()), "iscrowd": int(crowd)})
    pixels += random.normal(0, 16, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), boxes


def outline(kind: int, size: int, center: np.ndarray, radius: float, angle: float) -> np.ndarray:
    """The pixels (size, size) that a shape covers."""
    _, corners, inner, hole = SHAPES[kind]
    mask, turn = Image.new("1", (size, size)), angle + np.arange(corners) * 2 * np.pi / corners
    far = radius * np.where(np.arange(corners) % 2, inner, 1)
    points = far[:, None] * np.column_stack([np.cos(turn), np.sin(turn)])
    for scale in (1, hole) if hole else (1,):
        ImageDraw.Draw(mask).polygon([*map(tuple, (center + scale * points).tolist())], fill=int(scale == 1))
    return np.array(mask)


if __name__ == "__main__":
    try:
        main()
    except NdkdError as error:
        sys.exit(f"shapes: {error}")
