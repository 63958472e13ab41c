"""A small set of drawn shapes in COCO's format, which needs no download."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ndkd.data.coco import CocoDataModule
from ndkd.data.disk_loader import check_least
from ndkd.errors import NdkdError
from ndkd.seeds import generator

# by id, with gaps as in COCO: name, corners, radius of every other corner, radius of the hole
SHAPES: dict[int, tuple[str, int, float, float]] = {
    2: ("circle", 60, 1, 0),
    3: ("square", 4, 1, 0),
    7: ("triangle", 3, 1, 0),
}
SHAPES |= {40: ("star", 10, 0.45, 0), 90: ("ring", 60, 1, 0.5)}
CATEGORIES = [{"id": number, "name": shape[0]} for number, shape in SHAPES.items()]


class DrawnShapesDataModule(CocoDataModule):
    """Circles, squares, triangles, stars and rings, some over others, one crowd and one empty image.

    They are drawn when they are first wanted, the same for the same numbers.

    Args:
        root: the folder that they are kept in.
        train_size: number of training images.
        val_size: number of images to validate and test on.
        size: height and width in pixels.
        drawing_seed: of the drawing; the images do not depend on a run's seed.
        batch_size: training images per step and process.
        flip: mirror half of the training images.
        num_workers: processes that read images; by default one for each core, 16 at most.

    Raises:
        NdkdError: numbers that are too small, or a folder that holds something else.
    """

    def __init__(
        self,
        root: Path = Path("data/shapes"),
        train_size: int = 300,
        val_size: int = 100,
        size: int = 96,
        drawing_seed: int = 0,
        batch_size: int = 2,
        flip: bool = True,
        num_workers: int | None = None,
    ):
        check_least(train_size=(train_size, 3), val_size=(val_size, 3), size=(size, 64), drawing_seed=(drawing_seed, 0))
        self.root = Path(root)
        self.drawn = {"train": train_size, "val": val_size, "size": size, "seed": drawing_seed}
        train, val = (self.root / "annotations" / f"instances_{split}.json" for split in ("train", "val"))
        super().__init__(train, val, batch_size=batch_size, flip=flip, num_workers=num_workers)

    def prepare_data(self) -> None:
        if not self.root.exists():
            draw_set(self.root, **self.drawn)

    def setup(self, stage: str | None = None) -> None:
        try:
            found = json.loads(self.train.read_bytes())["info"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise NdkdError(f"{self.root} holds no drawn shapes: remove it, or name another root") from error
        if found != self.drawn:
            shown = ", ".join(f"{name} {number}" for name, number in found.items())
            raise NdkdError(f"{self.root} holds shapes drawn with {shown}: remove it, or name another root")
        super().setup(stage)


def draw_set(folder: Path, train: int, val: int, size: int, seed: int = 0) -> None:
    """Draw the images and write their boxes, all or nothing.

    Args:
        folder: is not there yet.
        train: number of training images.
        val: number of images to validate on.
        size: height and width in pixels.
        seed: of the drawing.
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    numbers = {"train": train, "val": val, "size": size, "seed": seed}
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as beside:
        whole = Path(beside, "whole")
        (whole / "annotations").mkdir(parents=True)
        for number, split in enumerate(("train", "val")):
            (whole / split).mkdir()
            images: list[dict[str, Any]] = []
            boxes: list[dict[str, Any]] = []
            for image in range(1, numbers[split] + 1):
                picture, found = draw(image, size, generator(seed, number, image))
                picture.save(whole / split / f"{image:06d}.png")
                images.append({"id": image, "file_name": f"{image:06d}.png", "width": size, "height": size})
                boxes += [{"id": n, "image_id": image, **box} for n, box in enumerate(found, len(boxes) + 1)]
            content = {"info": numbers, "images": images, "annotations": boxes, "categories": CATEGORIES}
            (whole / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        whole.rename(folder)


def draw(number: int, size: int, random: np.random.Generator) -> tuple[Image.Image, list[dict]]:
    """An image and its annotations; the first has no shape, the second a crowd of small ones."""
    coarse = Image.fromarray(random.integers(40, 216, (5, 5, 3), np.uint8))
    pixels = np.array(coarse.resize((size, size), Image.Resampling.BICUBIC), float)
    owner = np.full((size, size), -1)  # of each pixel, the shape on top
    drawn: list[Any] = []
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
