"""A run knows how many images it had, and says so where they are others later."""

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as L

from ndkd.data.base import HasSizes, HasUnlabeled
from ndkd.runs import Run


class ImageCounts(L.Callback):
    """Keep the number of images of each split in status.json, and compare later uses of the run with it.

    A share that is split off for validation or testing is another one once images are added or taken away: what is
    measured on then may have been trained on.

    Args:
        run: the run folder.
    """

    def __init__(self, run: Run):
        self.run = run

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        data = getattr(trainer, "datamodule", None)
        if not (trainer.is_global_zero and isinstance(data, HasSizes)):
            return
        before = self.run.known_status().get("images") or {}
        if found := changes(before, counts(data)):
            print(f"ndkd: the images are not those of the run so far: {found}; some may have changed their split")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data: Any = getattr(trainer, "datamodule", None)
        if trainer.is_global_zero and isinstance(data, HasSizes):
            self.run.update_status(images=counts(data))


def counts(data: Any) -> dict[str, int]:
    """The number of images of each split of its own, and in training of those without labels."""
    splits = ("train", "val") if data.validates_on_test else ("train", "val", "test")
    found = {name: data.sizes[name] for name in splits if name in data.sizes}
    if isinstance(data, HasUnlabeled) and data.unlabeled_size:
        found["unlabelled"] = data.unlabeled_size
    return found


def changes(before: Mapping[str, int], now: Mapping[str, int]) -> str:
    """The splits whose number of images is another, in words; nothing where no number was kept.

    >>> changes({"train": 1200, "val": 35, "test": 35}, {"train": 1206, "val": 35, "test": 38})
    'train 1,206 instead of 1,200, test 38 instead of 35'
    """
    names = [name for name in now if before.get(name, now[name]) != now[name]]
    return ", ".join(f"{name} {now[name]:,} instead of {before[name]:,}" for name in names)
