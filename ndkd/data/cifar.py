"""CIFAR-10 and CIFAR-100: https://www.cs.toronto.edu/~kriz/cifar.html."""

from pathlib import Path

import numpy as np
from torchvision import datasets
from torchvision.datasets.utils import check_integrity
from torchvision.transforms import v2

from ndkd.data.in_memory import InMemoryDataModule, Split
from ndkd.data.transforms import InRGB, Pixels
from ndkd.errors import NdkdError


class CIFAR10DataModule(InMemoryDataModule):
    """CIFAR-10: 50,000 training and 10,000 test images, 32×32, read by torchvision.

    Args:
        root: folder that holds the archive or the unpacked files.
        download: fetch them if they are not there.
        options: of ``InMemoryDataModule``.

    Raises:
        NdkdError: files that are neither there nor to be had, or are damaged.
    """

    dataset = datasets.CIFAR10
    num_classes = 10
    image_shape = (3, 32, 32)
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2471, 0.2435, 0.2616)

    def __init__(self, root: Path = Path("data"), download: bool = True, **options):
        super().__init__(**options)
        self.root, self.download = Path(root), download

    def prepare_data(self) -> None:
        name, archive = self.dataset.__name__, self.root / self.dataset.filename
        if self.root.is_file():
            raise NdkdError(f"{name}: wanted a folder as root, {self.root} is a file")
        # torchvision unpacks an archive that is whole; for any other it would go to the network
        fetch = self.download or check_integrity(archive, self.dataset.tgz_md5)
        try:
            self.dataset(self.root, train=False, download=fetch)  # it checks the training files too
        except (OSError, RuntimeError) as error:
            tried = f", and a download did not help ({' '.join(str(error).split())});" if fetch else ";"
            to_do = "" if fetch else "set download: true, or "
            raise NdkdError(
                f"{name}: {self._what_is_wrong(archive)}{tried} {to_do}get {self.dataset.url} elsewhere and put it at "
                f"{archive}"
            ) from error

    def _what_is_wrong(self, archive: Path) -> str:
        data, unpacked = self.dataset, self.root / self.dataset.base_folder
        listed = [*data.train_list, *data.test_list, (data.meta["filename"], data.meta["md5"])]
        files = {archive: data.tgz_md5} | {unpacked / file: md5 for file, md5 in listed}
        there = [file for file in files if file.is_file()]
        damaged = [file for file in there if not check_integrity(file, files[file])]
        if damaged:
            return f"{damaged[0]} is damaged"
        return f"{unpacked} is incomplete" if there else f"neither {archive} nor {unpacked} is there"

    @property
    def transform(self) -> v2.Compose:
        """What becomes of a photo: an image of the set's size."""
        return v2.Compose([InRGB(upright=True), v2.Resize(self.image_shape[1:]), Pixels()])

    def setup(self, stage: str | None = None) -> None:
        if not self.splits:
            train, test = (self.dataset(self.root, train=is_train) for is_train in (True, False))
            self.class_names = tuple(train.classes)
            self.keep({"train": _arrays(train), "test": _arrays(test)})
        self.keep_unlabeled(stage, self.transform, {})


class CIFAR100DataModule(CIFAR10DataModule):
    """CIFAR-100: as ``CIFAR10DataModule``, with 100 classes."""

    dataset = datasets.CIFAR100
    num_classes = 100
    mean = (0.5071, 0.4867, 0.4408)
    std = (0.2675, 0.2565, 0.2761)


def _arrays(dataset: datasets.CIFAR10) -> Split:
    return np.ascontiguousarray(dataset.data), np.array(dataset.targets, dtype=np.int64)
