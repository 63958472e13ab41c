"""ImageNet (ILSVRC 2012): https://image-net.org."""

from torchvision import datasets
from torchvision.datasets.imagenet import ARCHIVE_META

from ndkd.data.archives import check_archive
from ndkd.data.image_folder import ImageFolderDataModule
from ndkd.errors import NdkdError


class ImageNetDataModule(ImageFolderDataModule):
    """ImageNet in ``root/train/n01440764/*.JPEG``, ``root/val/n01440764/*.JPEG``, or as the archives one downloads.

    Where the folders are missing, torchvision unpacks ``ILSVRC2012_img_train.tar``, ``ILSVRC2012_img_val.tar`` and
    ``ILSVRC2012_devkit_t12.tar.gz`` from ``root``. Images are not turned by their EXIF data, as in published
    evaluations. The options are those of ``ImageFolderDataModule``.

    Raises:
        NdkdError: neither folders nor archives, or archives that are damaged, hold what they should not, or more than
            the disk has room for.
    """

    upright = False

    def prepare_data(self) -> None:
        for split in ("train", "val"):
            if not (self.root / split).is_dir():
                try:
                    self._check_archives(split)
                    datasets.ImageNet(self.root, split)
                except (OSError, RuntimeError, ImportError) as error:
                    raise NdkdError(
                        f"ImageNet: there is no folder {self.root / split}, and no archive that can be unpacked "
                        f"({' '.join(str(error).split())}); set data.init_args.root to the folder with train and val"
                    ) from error

    def _check_archives(self, split: str) -> None:
        for part in ("devkit", split):
            archive = self.root / ARCHIVE_META[part][0]
            if archive.is_file():
                check_archive(archive, self.root)
