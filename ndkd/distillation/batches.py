"""What a batch brings, of whatever data: images as a model wants them, and one class index for each."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ndkd.data.base import PartlyLabeled
from ndkd.errors import NdkdError

WANTED = "wanted batches (images, targets)"
SINGLE = (
    "a batch has one image, and of one BatchNorm has no variance: give the DataLoader drop_last=True or another "
    "batch_size"
)


def images_and_target(batch: Any, dtype: torch.dtype, num_classes: int) -> tuple[Tensor, Tensor]:
    """Images in [0, 1] of a precision, and class indices (N,) as int64 or soft labels (N, C).

    Bytes are divided by 255: they are a quarter of what has to be moved. Integers of any kind are indices, (N, 1) too;
    one-hot rows are soft labels.

    Args:
        batch: images and targets.
        dtype: of the models' weights.
        num_classes: C.

    Raises:
        NdkdError: anything else, or another number of targets than of images.

    Examples:
        >>> batch = torch.full((2, 3, 8, 8), 255, dtype=torch.uint8), [0, 1]
        >>> images, target = images_and_target(batch, torch.float32, num_classes=10)
        >>> images.mean(), target
        (tensor(1.), tensor([0, 1]))
    """
    images, target = _pair(batch)
    target = labels_of(target, num_classes)
    if not isinstance(images, Tensor):
        raise NdkdError(f"{WANTED}, images being one tensor (N, c, h, w), got a {type(images).__name__}")
    if len(images) != len(target):
        raise NdkdError(f"{WANTED}, got {len(images)} images and {len(target)} targets")
    target = target.to(images.device)
    if images.dtype == torch.uint8:
        return images.to(dtype).div_(255), target
    if not images.is_floating_point():
        raise NdkdError(f"images: wanted bytes (uint8) from 0 to 255, or floats from 0 to 1, got {images.dtype}")
    return images.to(dtype), target


def labels_of(target: Any, num_classes: int) -> Tensor:
    """Class indices (N,) as int64, or soft labels (N, C) as float32.

    Raises:
        NdkdError: targets of another kind or shape.
    """
    if isinstance(target, list | tuple) and target and all(isinstance(label, int | Tensor) for label in target):
        target = torch.stack([torch.as_tensor(label) for label in target])
    if not isinstance(target, Tensor):
        raise NdkdError(f"{WANTED}, targets being class indices (N,), got a {type(target).__name__}")
    if target.ndim == 2 and target.shape[1] == 1:
        target = target[:, 0]
    if target.ndim == 2 and target.shape[1] == num_classes and not target.is_complex():
        return target.float()
    if target.ndim != 1:
        found = tuple(target.shape)
        raise NdkdError(f"targets: wanted class indices (N,) or soft labels (N, {num_classes}), got a tensor {found}")
    if target.is_floating_point() or target.is_complex():
        raise NdkdError(f"targets: wanted class indices as integers, got {target.dtype}; convert them with .long()")
    return target.long()


def on_device(trainer: Any, module: Any, batch: Any) -> Any:
    """A batch of a loader as a step of the trainer gets it, in its precision and on its device."""
    batch = module._on_before_batch_transfer(trainer.precision_plugin.convert_input(batch))
    return trainer.strategy.batch_to_device(batch)


def hard(target: Tensor) -> Tensor:
    """The likeliest class of soft labels, indices as they are."""
    return target.argmax(dim=1) if target.ndim == 2 else target


def check_labels(batch: Any, num_classes: int, may_lack: bool = False) -> None:
    """Raise ``NdkdError`` for labels that are no classes: a GPU would end with an error that cannot be caught.

    What is on a GPU already is not looked at, since that would wait for it; nor is a batch that is no pair, of which
    a task that reads others knows what it is.

    Args:
        batch: of a loader.
        num_classes: C.
        may_lack: whether images may be without a label, as those of a batch that is ``PartlyLabeled``.
    """
    if not isinstance(batch, list | tuple) or len(batch) < 2:
        return
    target = labels_of(batch[1], num_classes)
    if may_lack and isinstance(batch, PartlyLabeled):
        target = _labeled(target, batch.labeled)
    if target.ndim == 2 or target.device.type != "cpu" or not len(target):
        return
    low, high = (int(extreme) for extreme in target.aminmax())
    if low < 0 or high >= num_classes:
        raise NdkdError(f"wanted labels from 0 to {num_classes - 1}, the data has {low} to {high}")


def _labeled(target: Tensor, number: int) -> Tensor:
    """The labels of the first so many images, of which a batch says that the others have none."""
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= len(target):
        raise NdkdError(f"PartlyLabeled: labeled: wanted a number of images, 0 to {len(target)}, got {number!r}")
    if target.ndim == 1 and target.device.type == "cpu" and (wrong := target[number:][target[number:] != -1].tolist()):
        raise NdkdError(
            f"PartlyLabeled: wanted -1 as the target of all images behind the first {number}, got {wrong[0]}; put "
            "the images that have labels first"
        )
    return target[:number]


def check_last_batch(trainer: Any) -> None:
    """Raise ``NdkdError`` if a DataLoader ends on a single image, of which a projector's BatchNorm has no variance."""
    loader = trainer.train_dataloader
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset) or not loader.batch_size:
        return
    left = len(loader.sampler) % loader.batch_size  # type: ignore[arg-type]  # it has a length
    is_met = trainer.num_training_batches == len(loader) and not loader.drop_last
    if loader.batch_size == 1 or (left == 1 and is_met):
        raise NdkdError(SINGLE)


def _pair(batch: Any) -> tuple[Any, Any]:
    if not isinstance(batch, list | tuple) or len(batch) < 2:
        found = f"{len(batch)} part" if isinstance(batch, list | tuple) else f"a {type(batch).__name__}"
        raise NdkdError(f"{WANTED}, got {found}")
    return batch[0], batch[1]
