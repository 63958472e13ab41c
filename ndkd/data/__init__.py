"""DataModules: images in [0, 1] or bytes, each model normalises for itself."""

from ndkd.data.cifar import CIFAR10DataModule, CIFAR100DataModule
from ndkd.data.coco import CocoDataModule
from ndkd.data.digits import DigitsDataModule
from ndkd.data.drawn_shapes import DrawnShapesDataModule
from ndkd.data.image_folder import ImageFolderDataModule
from ndkd.data.imagenet import ImageNetDataModule
from ndkd.data.in_memory_image_folder import InMemoryImageFolderDataModule
