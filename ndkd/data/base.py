"""What all DataModules have in common."""

from collections.abc import Iterable
from typing import Any

import lightning.pytorch as L


class DataModule(L.LightningDataModule):
    """Images in the splits ``train``, ``val`` and ``test``; a subclass fills them and says how one becomes batches."""

    def __init__(self):
        super().__init__()
        self.splits: dict[str, Any] = {}
        self.remarks: list[str] = []  # on how the images were found, for a line at the start of a run

    @property
    def sizes(self) -> dict[str, int]:
        """The number of images of each split, which the second entry of a split is as long as."""
        return {name: len(split[1]) for name, split in self.splits.items()}

    @property
    def validates_on_test(self) -> bool:
        """Whether "best" is chosen on the test images."""
        return self.splits["val"] is self.splits["test"]

    def loader(self, split: str, augment: bool = False, shuffle: bool = False) -> Iterable:
        raise NotImplementedError

    def train_dataloader(self) -> Iterable:
        loader = self.loader("train", augment=True, shuffle=True)
        if self.trainer is not None:
            # of a resumed run; the trainer tells it only after workers have begun to draw
            loader.sampler.set_epoch(self.trainer.fit_loop.epoch_progress.current.processed)
        return loader

    def class_mean_dataloader(self, augment: bool = False) -> Iterable:
        """One pass over the training images, in order."""
        return self.loader("train", augment)

    def val_dataloader(self) -> Iterable:
        return self.loader("val")

    def test_dataloader(self) -> Iterable:
        return self.loader("test")

    predict_dataloader = test_dataloader
