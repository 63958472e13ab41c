"""The student of a run, for photos that it has not seen."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ndkd.data.base import HasTransform
from ndkd.data.from_config import made
from ndkd.data.image_files import open_image
from ndkd.errors import NdkdError
from ndkd.models import FeatureExtractor, ModelConfig
from ndkd.models.checkpoint import read_checkpoint
from ndkd.models.run_checkpoint import Known, check_run_checkpoint
from ndkd.runs import Run
from ndkd.trust import Trust

SINGLE = (str, Path, Image.Image)
Photo = str | Path | Image.Image | Tensor


class Prediction(NamedTuple):
    """What a classifier makes of one photo.

    Args:
        name: of the likeliest class.
        confidence: its probability, 0 to 1.
        top: up to five classes and their probabilities, the likeliest first.
    """

    name: str
    confidence: float
    top: list[tuple[str, float]]


class Classifier:
    """A student with the names of its classes and the way from a photo to its input.

    Args:
        student: reads images (B, c, h, w) in [0, 1].
        class_names: in the order of its logits.
        transform: from a PIL image to bytes (c, h, w).

    Example:
        >>> classifier = load("runs/imagefolder/kd++")  # doctest: +SKIP
        >>> classifier.predict(["a.jpg", "b.png"])[0].name  # doctest: +SKIP
        'tulips'
    """

    def __init__(self, student: FeatureExtractor, class_names: Sequence[str], transform: Callable[[Any], Tensor]):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.student = student.eval().requires_grad_(False).to(self.device)
        self.class_names, self.transform = tuple(class_names), transform

    def predict(self, photos: Iterable[Photo], batch_size: int = 64) -> list[Prediction]:
        """The classes of photos: files, PIL images, or tensors (c, h, w) that are ready, bytes or in [0, 1].

        Args:
            photos: any number, in order.
            batch_size: most of them at once.

        Raises:
            NdkdError: names a photo that cannot be read, or whose numbers are no brightness.
        """
        if isinstance(photos, (*SINGLE, Tensor)) and not (isinstance(photos, Tensor) and photos.ndim == 4):
            raise NdkdError(f"wanted a list of photos, got one {type(photos).__name__}: predict([photo])")
        found: list[Prediction] = []
        for batch in _batches((self._pixels(photo, number) for number, photo in enumerate(photos)), batch_size):
            found += self._predicted(batch.to(self.device))
        return found

    @torch.no_grad()
    def _predicted(self, images: Tensor) -> Iterator[Prediction]:
        images = images.float() / 255 if images.dtype == torch.uint8 else images
        probability, index = self.student(images).logits.float().softmax(dim=1).sort(dim=1, descending=True)
        for values, numbers in zip(probability[:, :5].tolist(), index[:, :5].tolist(), strict=True):
            top = [(self.class_names[number], value) for number, value in zip(numbers, values, strict=True)]
            yield Prediction(*top[0], top)

    def _pixels(self, photo: Photo, number: int) -> Tensor:
        if isinstance(photo, Tensor):
            return _checked(photo, number)
        if not isinstance(photo, SINGLE):
            kind = type(photo).__name__
            raise NdkdError(f"photo {number}: wanted a file, a PIL image or a tensor, got {kind}; try Image.fromarray")
        if isinstance(photo, Image.Image):
            return self.transform(photo)
        if not Path(photo).is_file():
            raise NdkdError(f"image {photo} does not exist; correct the path")
        with open_image(bytes(Path(photo))) as image:
            return self.transform(image)


def _checked(pixels: Tensor, number: int) -> Tensor:
    """A tensor that can be an image's."""
    if pixels.ndim != 3 or not (pixels.dtype == torch.uint8 or pixels.is_floating_point()):
        shape = tuple(pixels.shape)
        raise NdkdError(f"photo {number}: wanted bytes or floats (c, h, w), got {pixels.dtype} {shape}")
    low, high = (pixels.min().item(), pixels.max().item()) if pixels.numel() else (0, 0)
    if pixels.is_floating_point() and not (low >= 0 and high <= 1):  # NaN neither
        raise NdkdError(f"photo {number}: wanted floats in [0, 1], got {low:g} to {high:g}; divide bytes by 255")
    return pixels


def load(run: str | Path, checkpoint: str = "best", trust: Sequence[str] = ()) -> Classifier:
    """The classifier of a run; neither its teacher nor its images need be there.

    Args:
        run: the run folder.
        checkpoint: ``best`` or ``last``.
        trust: packages of your own that the run may name, see ``ndkd.trust.Trust``.

    Raises:
        NdkdError: no such run or checkpoint, one of a detector, a name that is not trusted, data that does not say how
            a photo becomes one of its images.
    """
    return of_checkpoint(Run.existing(run).checkpoint(checkpoint), trust)[0]


def of_checkpoint(file: Path, trust: Sequence[str] = ()) -> tuple[Classifier, Run]:
    """The classifier in a checkpoint, and the run whose folder it lies in; errors as of ``load``."""
    read = read_run(file, Trust(trust), "ndkd predict without --images writes its detections")
    data = made(read.settings["data"])
    if not isinstance(data, HasTransform):
        kind = type(data).__name__
        raise NdkdError(f"{kind} does not say how a photo becomes one of its images: give it a transform")
    names = read.known.class_names or [str(number) for number in range(read.num_classes)]
    student = read.model.build(read.num_classes, None, None)
    return Classifier(student, names, data.transform), read.run


class ReadRun(NamedTuple):
    """A classifier's checkpoint and the run that it is of.

    Args:
        content: of the checkpoint.
        known: what it knows of its student.
        model: how the student is built, with the weights of the checkpoint.
        num_classes: of the data.
        run: whose folder it lies in.
        settings: the run's configuration.
    """

    content: dict[str, Any]
    known: Known
    model: ModelConfig
    num_classes: int
    run: Run
    settings: dict[str, Any]


def read_run(checkpoint: Path, trusted: Trust, of_detectors: str) -> ReadRun:
    """Read a checkpoint whose student can be built, and whose names are trusted.

    Args:
        checkpoint: of ``ndkd fit``, in its run folder.
        trusted: which names it may have.
        of_detectors: what to say of a detector's.

    Raises:
        NdkdError: one that is not a classifier's or not in its run folder, or a name that is not trusted.
    """
    content, run = read_checkpoint(checkpoint), Run.of_checkpoint(checkpoint)
    known = Known.of(content)
    if not {"name", "classifier"} <= known.student.keys():
        raise NdkdError(
            f"checkpoint {checkpoint} was not written by ndkd fit: it does not say how its student is built"
        )
    if str((known.student["classifier"] or [""])[:1]).startswith("['roi_heads."):
        raise NdkdError(f"checkpoint {checkpoint} is of a detector, {known.student['name']}; {of_detectors}")
    check_run_checkpoint(content, checkpoint)
    if run is None:
        raise NdkdError(f"checkpoint {checkpoint} is not in a run folder, whose config.yaml would say on which images")
    settings = run.read_config()
    trusted.check_model(known.student, f"checkpoint {checkpoint}: student")
    trusted.check_data(settings.get("data"), str(run.config))
    num_classes: Any = known.num_classes  # an int, as was checked
    model = ModelConfig(**{**known.student, "checkpoint": checkpoint})
    return ReadRun(content, known, model, num_classes, run, settings)


def _batches(images: Iterator[Tensor], size: int) -> Iterator[Tensor]:
    """Batches of images that have one shape and type."""
    while chunk := list(islice(images, size)):
        start = 0
        for place in range(1, len(chunk) + 1):
            kind = (chunk[start].shape, chunk[start].dtype)
            if place == len(chunk) or (chunk[place].shape, chunk[place].dtype) != kind:
                yield torch.stack(chunk[start:place])
                start = place
