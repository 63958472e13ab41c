"""DataModules: images in [0, 1], each model normalises for itself."""

from ndkd.data.cifar import CIFAR10DataModule, CIFAR100DataModule
from ndkd.data.digits import DigitsDataModule
from ndkd.data.image_folder import InMemoryImageFolderDataModule

__all__ = ["CIFAR100DataModule", "CIFAR10DataModule", "DigitsDataModule", "InMemoryImageFolderDataModule"]
