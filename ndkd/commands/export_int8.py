"""An ONNX network with weights and activations of eight bits, and what that costs in accuracy."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor

from ndkd.commands.export_formats import Network, in_onnxruntime, quietly
from ndkd.data.base import DataModule
from ndkd.data.classification import ClassificationDataModule
from ndkd.data.from_config import evaluation_batches
from ndkd.errors import NdkdError

CALIBRATION, MAX_DROP = 300, 1.0  # images, and points of accuracy


@quietly()
def quantized(file: Path, batches: Iterable[Tensor]) -> Network:
    """Put a network of eight bits, static QDQ with a scale per channel, in the place of an ONNX file; read back.

    Args:
        file: the network in float32.
        batches: images as it takes them; the ranges of the activations are those that they cause.
    """
    from onnxruntime.quantization import QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    plain, small = file.with_suffix(".plain.onnx"), file.with_suffix(".int8.onnx")
    quant_pre_process(file, plain, skip_symbolic_shape=True)  # folds BatchNorm and constants
    quantize_static(plain, small, Fed(iter(batches)), quant_format=QuantFormat.QDQ, per_channel=True)
    plain.unlink()
    small.chmod(file.stat().st_mode)
    small.replace(file)
    return in_onnxruntime(file)


class Fed:
    """Hands batches to ONNX Runtime's calibration."""

    def __init__(self, batches: Iterator[Tensor]):
        self.batches = batches

    def get_next(self) -> dict[str, Any] | None:
        """The next batch by the name of the network's input, None after the last."""
        batch = next(self.batches, None)
        return None if batch is None else {"images": batch.numpy()}


def training_images(data: L.LightningDataModule, number: int) -> Iterator[Tensor]:
    """Batches of so many training images in [0, 1], drawn at random, without augmentation where the data can do that.

    Args:
        data: ready to evaluate on.
        number: of images; there may be fewer.
    """
    if isinstance(data, ClassificationDataModule):
        data.unlabeled = None  # of no use here, and the folder may be gone
    data.setup("fit")
    batches: Iterable[Any] = (
        data.loader("train", shuffle=True) if isinstance(data, DataModule) else data.train_dataloader()
    )
    left = number
    for images, *_ in batches:
        images = images[:left].float() / (255 if images.dtype == torch.uint8 else 1)
        left -= len(images)
        yield images.contiguous()
        if not left:
            return
    if left == number:
        raise NdkdError(f"{type(data).__name__} gives no training image to calibrate on")


def accuracies(
    networks: dict[str, Network], data: L.LightningDataModule, prepare: Network
) -> tuple[dict[str, float], int]:
    """The accuracy of each network in percent on the test images, else the validation images, and their number."""
    right, seen = dict.fromkeys(networks, 0), 0
    for pixels, target in evaluation_batches(data):
        images, seen = prepare(pixels.contiguous()), seen + len(target)
        for name, network in networks.items():
            right[name] += int((network(images).argmax(dim=1) == target).sum())
    return {name: 100 * number / seen for name, number in right.items()}, seen
