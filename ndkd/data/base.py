"""What a DataModule may offer, and what ours have in common.

Any ``LightningDataModule`` will do. The protocols say what is asked of it beyond Lightning's own methods, each of them
optional and by whom it is asked for; ``docs/extending.md`` has a worked example.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import lightning.pytorch as L
from torch import Tensor


@runtime_checkable
class HasClasses(Protocol):
    """The number of classes; without it the module's own ``num_classes`` is wanted."""

    num_classes: int


@runtime_checkable
class HasClassNames(Protocol):
    """The names of the classes, in order: a teacher of other classes is fitted by them or refused."""

    class_names: Sequence[str]


@runtime_checkable
class HasNormalisation(Protocol):
    """Mean and standard deviation per channel of images in [0, 1], for models that bring none of their own."""

    mean: Sequence[float]
    std: Sequence[float]


@runtime_checkable
class HasImageShape(Protocol):
    """(c, h, w) of the images; without it a first batch is looked at."""

    image_shape: Sequence[int]


@runtime_checkable
class HasBatchSize(Protocol):
    """Images per step and process, of which the loggers are told the global batch size."""

    batch_size: int


@runtime_checkable
class HasClassMeanLoader(Protocol):
    """One pass over the training images in order, augmented or not.

    Without it the class means come from the training images as they are loaded, and angles are measured only where a
    loss asks for class means.
    """

    def class_mean_dataloader(self, augment: bool = False) -> Iterable[Any]: ...


@runtime_checkable
class HasFingerprint(Protocol):
    """Of the loader of a class mean pass: a text that changes with its images, wanted by ``class_means.cache_dir``."""

    def fingerprint(self) -> str: ...


@runtime_checkable
class HasSizes(Protocol):
    """The number of images of each split, and whether "best" is chosen on the test images: what a fit says first.

    A DataModule with ``sizes`` has ``validates_on_test`` and ``num_classes`` too.
    """

    sizes: Mapping[str, int]
    validates_on_test: bool


@runtime_checkable
class HasClassCounts(Protocol):
    """How many images of each class an epoch of each split shows: what ``class_weights: balanced`` makes up for, and
    which classes validation and test do not measure."""

    class_counts: Mapping[str, Sequence[int]]


@runtime_checkable
class HasMixing(Protocol):
    """What mixes images of a batch with one another; its ``repr`` tells a recording of the teacher from another."""

    mixing: Any


@runtime_checkable
class HasRemarks(Protocol):
    """What else to say of the images in that line: how they lay there, what was left out."""

    remarks: Sequence[str]


@runtime_checkable
class HasTransform(Protocol):
    """What becomes of a photo, a PIL image, before it is evaluated: bytes (c, h, w), for ``predict --images``."""

    @property
    def transform(self) -> Callable[[Any], Tensor]: ...


@runtime_checkable
class HasFiles(Protocol):
    """The files of the images that ``ndkd predict`` passes over, in order."""

    predict_files: Sequence[str]


@runtime_checkable
class HasBoxes(Protocol):
    """What a detector's evaluation wants: COCO's category of each label, and the annotations to validate on."""

    category_ids: Sequence[int]
    val: Path


@runtime_checkable
class HasUnlabeled(Protocol):
    """The number of training images without labels: said at the start, and refused where no loss term would use them.

    They come in batches that are ``PartlyLabeled``.
    """

    unlabeled_size: int


class PartlyLabeled(NamedTuple):
    """A batch to train on in which some images have no label.

    The images that have one come first, at least one in each batch. ``target`` is their class index (B,) and -1 for the
    others; of soft labels (B, C), the others' rows are 0. How many have labels is a number on the host, so that no step
    waits for a GPU to count them.
    """

    images: Tensor
    target: Tensor
    labeled: int


def labeled_part(batch: Any) -> Any:
    """The images of a batch that have labels, and these; of any other kind of batch all of it."""
    if not isinstance(batch, PartlyLabeled):
        return batch
    return batch.images[: batch.labeled], batch.target[: batch.labeled]


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

    def loader(self, split: str, augment: bool = False, shuffle: bool = False) -> Any:
        raise NotImplementedError

    def train_dataloader(self) -> Iterable:
        loader = self.loader("train", augment=True, shuffle=True)
        if self.trainer is not None:
            trainer: Any = self.trainer
            loader.sampler.is_fixed = bool(trainer.overfit_batches)  # the same batches again and again
            # of a resumed run; the trainer tells it only after workers have begun to draw
            progress = trainer.fit_loop.epoch_progress.current
            loader.sampler.set_epoch(progress.processed)
        return loader

    def class_mean_dataloader(self, augment: bool = False) -> Iterable:
        """One pass over the training images, in order."""
        return self.loader("train", augment)

    def val_dataloader(self) -> Iterable:
        return self.loader("val")

    def test_dataloader(self) -> Iterable:
        return self.loader("test")

    predict_dataloader = test_dataloader
