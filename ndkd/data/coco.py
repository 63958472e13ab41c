"""Anyone's images with boxes, as COCO writes them down: https://cocodataset.org/#format-data."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import Dataset

from ndkd.data.base import DataModule
from ndkd.data.disk_loader import ImageLoader, check_least, sharded, worker_options
from ndkd.data.image_files import open_image
from ndkd.data.image_folder import ImageFolderDataModule
from ndkd.data.samplers import GroupedOrder
from ndkd.data.transforms import InRGB, Pixels
from ndkd.errors import NdkdError

# what is read of each entry
FIELDS = {
    "categories": {"id": int, "name": str},
    "images": {"id": int, "file_name": str, "width": int, "height": int},
    "annotations": {"id": int, "image_id": int, "category_id": int, "bbox": list},
}


class CocoDataModule(DataModule):
    """Images with boxes, listed in two JSON files of COCO's format: own data needs two paths.

    The images of ``ROOT/annotations/instances_NAME.json`` lie in ``ROOT/NAME/``. A batch is a list of images (3, h, w)
    of bytes, of any sizes and as they are stored, whatever their EXIF data says, and a list of targets: ``boxes``
    (n, 4) with left, top, right and bottom in pixels, ``labels`` (n,) from 1 in the order of the categories' ids,
    ``iscrowd`` (n,), ``area`` (n,) and ``image_id``. Training leaves out crowds and boxes without width or height, and
    cuts boxes off at the border; images without boxes stay. Elsewhere an image comes by itself: padded beside a larger
    one, its features would be others.

    Args:
        train: JSON file of the training images.
        val: JSON file of the images to validate, test and predict.
        train_images: folder of the training images, if it is another one.
        val_images: folder of the other images, if it is another one.
        batch_size: training images per step and process.
        flip: mirror half of the training images, chosen by (seed, epoch, image).
        group_by_shape: train on batches of either upright or other images, which need less padding; of each epoch
            fewer than two batches of images are left out.
        num_workers: processes that read images, for each process that trains; by default one for each core, 16 at most.

    Raises:
        NdkdError: a file that is missing or not in COCO's format, ids that occur twice or refer to nothing, boxes that
            are no boxes or outside their image, missing images, categories that differ between the files, no box to
            train on; in use, an image that cannot be read or has another size than its entry says.
    """

    mean, std = ImageFolderDataModule.mean, ImageFolderDataModule.std

    def __init__(
        self,
        train: Path,
        val: Path,
        train_images: Path | None = None,
        val_images: Path | None = None,
        batch_size: int = 2,
        flip: bool = True,
        group_by_shape: bool = False,
        num_workers: int | None = None,
    ):
        super().__init__()
        check_least(batch_size=(batch_size, 1), num_workers=(num_workers or 0, 0))
        self.train, self.val, self.images = Path(train), Path(val), {"train": train_images, "val": val_images}
        self.batch_size, self.num_workers, self.flip, self.grouped = batch_size, num_workers, flip, group_by_shape

    def setup(self, stage: str | None = None) -> None:
        if self.splits:
            return
        splits = {name: read_split(getattr(self, name), self.images[name], name) for name in ("train", "val")}
        categories, others = (split.categories.items() for split in splits.values())
        if alone := ", ".join(f"{number} ({name})" for number, name in sorted(categories ^ others)[:5]):
            raise NdkdError(f"{self.train} and {self.val} have different categories; only in one of them: {alone}")
        self.category_ids = (0, *splits["train"].categories)
        self.class_names = ("__background__", *splits["train"].categories.values())
        self.num_classes = len(self.class_names)
        self.splits = {"train": trainable(splits["train"], self.train), "val": splits["val"], "test": splits["val"]}

    def loader(self, split: str, augment: bool = False, shuffle: bool = False) -> ImageLoader:
        images, batch_size = self.splits[split], self.batch_size if shuffle else 1
        order = sharded(self, len(images.paths), shuffle)
        if shuffle and self.grouped:
            order = GroupedOrder(order, np.diff(images.sizes)[:, 0] > 0, batch_size)
        dataset, options = CocoDataset(images, self.flip and augment), worker_options(self, persistent=shuffle)
        return ImageLoader(dataset, batch_size=batch_size, sampler=order, collate_fn=collate_lists, **options)


class Split(NamedTuple):
    """The images of a JSON file (N) and all their boxes (M), as arrays that processes can share."""

    categories: dict[int, str]  # by id, in order
    paths: np.ndarray  # (N,) of bytes
    ids: np.ndarray  # (N,)
    sizes: np.ndarray  # (N, 2) width, height
    boxes: np.ndarray  # (M, 8) image, left, top, right, bottom, label, iscrowd, area; by image
    digest: bytes  # of the file


def read_split(file: Path, folder: Path | None, name: str) -> Split:
    """The content of a JSON file, checked, and where its images are.

    Raises:
        NdkdError: names the file and the entry that is wrong.
    """
    try:
        if file.exists() and not file.is_file():  # reading a pipe would wait for ever
            raise OSError(0, "not an ordinary file")
        content = file.read_bytes()
        tables = json.loads(content)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or f"not JSON: {error}"
        raise NdkdError(f"{file} cannot be read ({why}): set data.init_args.{name} to a file like COCO's") from error
    categories, images, annotations = (_by_id(file, tables, kind) for kind in FIELDS)
    folder = Path(folder or file.parent.parent / file.stem.removeprefix("instances_"))
    paths = [os.fsencode(folder / image["file_name"]) for image in images.values()]
    for number, path in zip(images, paths, strict=True):
        inside = Path(images[number]["file_name"])
        if inside.is_absolute() or ".." in inside.parts:
            raise NdkdError(f"{file}: image {number} lies outside {folder}: file_name {str(inside)!r}; correct it")
        if not os.path.isfile(path):
            todo = f"add it, or set data.init_args.{name}_images to the folder"
            raise NdkdError(f"{file}: image {number} is missing, there is no file {os.fsdecode(path)}; {todo}")
    names = {number: categories[number]["name"] for number in sorted(categories)}
    sizes = np.array([(image["width"], image["height"]) for image in images.values()])
    boxes = _boxes(file, annotations, list(images), sizes, list(names))
    return Split(names, np.array(paths), np.array(list(images)), sizes, boxes, hashlib.sha256(content).digest())


def _by_id(file: Path, tables: Any, kind: str) -> dict[int, dict[str, Any]]:
    entries = tables.get(kind) if isinstance(tables, dict) else None
    found: dict[int, Any] = {}
    if not isinstance(entries, list) or not entries and kind != "annotations":
        raise NdkdError(f"{file} is not in COCO's format: wanted a list {kind!r}, it is missing, empty or no list")
    for place, entry in enumerate(entries):
        for field, wanted in FIELDS[kind].items():
            value = entry.get(field) if isinstance(entry, dict) else None
            if not isinstance(value, wanted):
                where = f"{kind}[{place}]" + (f" (id {entry['id']})" if field != "id" else "")
                raise NdkdError(f"{file}: {where}: wanted {field!r} as {wanted.__name__}, got {value!r}; correct it")
        if found.setdefault(entry["id"], entry) is not entry:
            raise NdkdError(f"{file}: two of the {kind} have the id {entry['id']}; give each its own")
    return found


def _boxes(file: Path, annotations: dict, images: list[int], sizes: np.ndarray, categories: list[int]) -> np.ndarray:
    entries = list(annotations.values())
    places, labels = ({number: n for n, number in enumerate(ids)} for ids in (images, [None, *categories]))
    image = np.array([places.get(entry["image_id"], -1) for entry in entries], int)
    label = np.array([labels.get(entry["category_id"], 0) for entry in entries], int)
    crowd = np.array([bool(entry.get("iscrowd")) for entry in entries], bool)
    box = np.array([_numbers(entry["bbox"], 4) for entry in entries]).reshape(-1, 4)
    area = np.array([_numbers([entry.get("area")], 1) for entry in entries]).reshape(-1)
    corner, size = box[:, :2], box[:, 2:]
    outside = (corner >= sizes[image]) | (corner + size <= 0)
    for wanted, wrong in {
        "wanted the id of one of the images": image < 0,
        f"wanted one of the categories, {', '.join(map(str, categories))}": label == 0,
        "wanted a bbox of four numbers, left, top, width and height": np.isnan(box).any(axis=1),
        "wanted no negative width or height": ~crowd & (size < 0).any(axis=1),
        "wanted a box inside the image": ~crowd & (size > 0).all(axis=1) & outside.any(axis=1),
    }.items():
        if wrong.any():
            entry = entries[wrong.argmax()]
            found = f"annotation {entry['id']} of image {entry['image_id']}, category {entry['category_id']}"
            raise NdkdError(f"{file}: {found}, bbox {entry['bbox']}: {wanted}; correct or remove it")
    area = np.where(np.isnan(area), size.prod(axis=1), area)
    return np.column_stack([image, corner, corner + size, label, crowd, area])[image.argsort(kind="stable")]


def _numbers(values: list[Any], count: int) -> list[float]:
    """NaN unless these are so many finite numbers."""
    good = len(values) == count and all(isinstance(n, int | float) and abs(n) < 1e9 for n in values)
    return values if good else [float("nan")] * count


def trainable(split: Split, file: Path) -> Split:
    """The boxes to train on: no crowds, and none that reach over the border.

    Boxes without width or height are left out with a warning: COCO's own train2017 has two.

    Raises:
        NdkdError: there is no box.
    """
    boxes = split.boxes[split.boxes[:, 6] == 0]
    boxes[:, 1:5] = boxes[:, 1:5].clip(0, np.tile(split.sizes[boxes[:, 0].astype(int)], 2))
    kept = (boxes[:, 3:5] - boxes[:, 1:3] > 1e-3).all(axis=1)  # float32 could lose less when it is mirrored
    if not kept.any():
        raise NdkdError(f"{file}: no image has a box to train on, crowds left out; add annotations")
    if not kept.all():
        first = split.ids[int(boxes[~kept][0, 0])]
        rank_zero_warn(f"{file}: boxes without area are left out: {(~kept).sum()}, the first of image {first}")
    return split._replace(boxes=boxes[kept])


class CocoDataset(Dataset):
    """Image ``index`` and its boxes, mirrored for half of the seeds if ``flip``: ``dataset[index, seed]``.

    Raises:
        NdkdError: names the file that cannot be read or has another size.
    """

    def __init__(self, split: Split, flip: bool):
        self.split, self.is_random, self.transform = split, flip, "flip" if flip else None
        self.paths, self.target = split.paths, split.digest
        self.starts = np.searchsorted(split.boxes[:, 0], np.arange(len(self.paths) + 1))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, dict[str, Tensor]]:
        index, seed = item
        path, number, (width, height) = self.paths[index], self.split.ids[index], self.split.sizes[index].tolist()
        with open_image(path) as file:
            image = Pixels()(InRGB(upright=False)(file))
        if image.shape[1:] != (height, width):  # its boxes would lie elsewhere
            found = f"{image.shape[2]}×{image.shape[1]}, its entry (id {number}) says {width}×{height}"
            raise NdkdError(f"image {os.fsdecode(path)} is {found}; correct the one that is wrong")
        rows = torch.from_numpy(self.split.boxes[self.starts[index] : self.starts[index + 1]])
        boxes = rows[:, 1:5].float()
        if self.is_random and seed % 2:
            image = image.flip(2)
            boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
        target = {"boxes": boxes, "labels": rows[:, 5].long(), "iscrowd": rows[:, 6].long(), "area": rows[:, 7].float()}
        return image, {**target, "image_id": torch.tensor(number)}


def collate_lists(samples: list[tuple[Tensor, dict]]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Images and targets, as torchvision's detectors want them."""
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)
