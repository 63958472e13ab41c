"""Some training and validation images, and what teacher and student make of them before the first step."""

import hashlib
import os
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from tqdm import tqdm

from ndkd.callbacks.class_sums import ClassSums
from ndkd.callbacks.teacher_accuracy import as_in_validation, is_of_these_classes
from ndkd.data.base import HasClassMeanLoader, labeled_part
from ndkd.data.samplers import ShardedOrder
from ndkd.distillation.batches import hard, on_device
from ndkd.distillation.building import training_loader
from ndkd.errors import NdkdError


@dataclass
class Sample:
    """N images, chosen at random where the data allows it.

    Args:
        target: class indices (N,).
        logits: the teacher's (N, C); None for a teacher of other classes than the data's.
        teacher: its embeddings (N, D of the teacher).
        student: the student's, before the first step (N, D of the student).
        projected: the same behind the projector, if there is one.
        digests: of the images as the models get them, to know the same one again.
        names: files, or numbers in the order of the data.
        is_plain: whether they are free of augmentation.
    """

    target: Tensor
    logits: Tensor | None
    teacher: Tensor
    student: Tensor
    projected: Tensor
    digests: list[bytes]
    names: list[str]
    is_plain: bool

    def __len__(self) -> int:
        return len(self.target)


def sample(trainer: Any, module: Any, split: str, most: int, shows_bar: bool) -> Sample | None:
    """Pass images of a split through both models; None where there are none to validate on.

    Args:
        trainer: with data.
        module: built, on its device.
        split: ``training`` or ``validation``.
        most: so many images.
        shows_bar: of the images.

    Raises:
        NdkdError: no image.
    """
    loader, is_plain = _loader(trainer, split)
    if loader is None:
        return None
    sampler = getattr(loader, "sampler", None)
    order = None
    if isinstance(sampler, ShardedOrder):
        sampler.shuffle = True  # in order, the first images may be of few classes
        order = sampler.indices()
    rows: list[tuple[Tensor, ...]] = []
    digests: list[bytes] = []
    knows_classes = is_of_these_classes(module)
    with (
        isolate_rng(),
        as_in_validation(trainer, module),
        tqdm(total=most, desc=f"{split} images", disable=not shows_bar, leave=False, unit="image") as bar,
    ):
        for batch in map(labeled_part, loader):
            digests += _digests(batch[0])
            with trainer.precision_plugin.val_step_context():
                output = module.forward_pair(on_device(trainer, module, batch))
            logits = output.teacher.logits if knows_classes else output.student.logits[:, :0]
            found = logits, output.teacher.embedding, output.student.embedding, output.student.projected
            rows.append((hard(output.target).cpu(), *(tensor.float().cpu() for tensor in found)))
            bar.update(len(rows[-1][0]))
            if len(digests) >= most:
                break
    if not rows:
        raise NdkdError(f"there is no {split} image to look at")
    parts = (torch.cat(parts)[:most].clone() for parts in zip(*rows, strict=True))
    target, logits, teacher, student, projected = parts
    names = _names(loader, order, split, len(target))
    known = logits if knows_classes else None
    return Sample(target, known, teacher, student, projected, digests[:most], names, is_plain)


def class_means(seen: Sample, names: list[str], num_classes: int) -> tuple[Tensor, list[str]]:
    """The teacher's class means (C, D) over a sample, and the classes without an image, whose mean is zero."""
    sums = ClassSums(num_classes, seen.teacher.shape[1], seen.teacher.device)
    sums.add(seen.teacher, seen.target)
    return sums.means(names, may_be_absent=True)


def _loader(trainer: Any, split: str) -> tuple[Any, bool]:
    """The images without augmentation, if the data has them so."""
    data = trainer.datamodule
    if split == "training":
        is_plain = isinstance(data, HasClassMeanLoader)
        return (data.class_mean_dataloader() if is_plain else training_loader(trainer)), is_plain
    if not trainer.limit_val_batches or not is_overridden("val_dataloader", data):
        return None, True
    loader = data.val_dataloader()
    return (loader[0] if isinstance(loader, list | tuple) and loader else loader or None), True


def _digests(images: Tensor) -> list[bytes]:
    rows = images.detach().cpu().contiguous()
    return [hashlib.blake2b(row.contiguous().numpy().tobytes(), digest_size=16).digest() for row in rows]


def _names(loader: Any, order: Any, split: str, count: int) -> list[str]:
    """Of the images in the order in which they were seen."""
    paths = getattr(getattr(loader, "dataset", None), "paths", None)
    if order is None:
        return [f"{split} image {number} of the sample" for number in range(count)]
    if paths is None:
        return [f"{split} image {number}" for number in order[:count]]
    return [os.fsdecode(paths[number]) for number in order[:count]]
