"""Tiny images to train on; in a file of its own, so that a spawned process can import it."""

import lightning.pytorch as L
import numpy as np

from ndkd.data.disk_loader import sharded
from ndkd.data.in_memory_loader import InMemoryLoader
from ndkd.data.unlabeled import UnlabeledBeside

TAPS = ["layer1", "layer2", "layer3", "avgpool"]  # of the models that are trained on them


class TinyData(L.LightningDataModule):
    """Random images: class by class in turn, so that every class has some."""

    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.2)

    def __init__(self, size=20, num_classes=10, val_size=10, batch_size=8, side=8, pad=0, seed=0):
        super().__init__()
        self.num_classes, self.batch_size, self.pad = num_classes, batch_size, pad
        self.class_names = tuple(f"class {k}" for k in range(num_classes))
        self.image_shape = (3, side, side)
        random = np.random.default_rng(seed)
        self.train_images, self.val_images = (
            random.integers(0, 256, (n, side, side, 3), dtype=np.uint8) for n in (size, val_size)
        )
        self.train_target, self.val_target = (np.arange(n) % num_classes for n in (size, val_size))

    def loader(self, images, target, shuffle=False, pad=0):
        return InMemoryLoader(images, target, self.batch_size, sharded(self, len(target), shuffle), pad)

    def train_dataloader(self):
        return self.loader(self.train_images, self.train_target, shuffle=True, pad=self.pad)

    def class_mean_dataloader(self, augment=False):
        return self.loader(self.train_images, self.train_target, pad=self.pad if augment else 0)

    def val_dataloader(self):
        return self.loader(self.val_images, self.val_target)

    test_dataloader = predict_dataloader = val_dataloader


class TinyWithUnlabeled(TinyData):
    """The same with 12 images without labels, one beside each labelled one."""

    unlabeled_size = 12

    def train_dataloader(self):
        others = np.random.default_rng(7).integers(0, 256, (12, *self.train_images.shape[1:]), dtype=np.uint8)
        images = np.concatenate([self.train_images, others])
        target = np.concatenate([self.train_target, np.full(12, -1)])
        order = UnlabeledBeside(sharded(self, len(self.train_target), True), 12, self.batch_size, 1.0)
        return InMemoryLoader(images, target, order.batch_size, order, self.pad)
