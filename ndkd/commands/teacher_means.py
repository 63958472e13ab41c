"""A teacher's class means in a file, for runs that have no teacher of their own."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ndkd.callbacks.class_means_file import StoredMeans, noise, read_class_means
from ndkd.callbacks.class_sums import ClassSums
from ndkd.data.from_config import configured
from ndkd.errors import NdkdError
from ndkd.models import FeatureExtractor, ModelConfig
from ndkd.models.teacher import fold_batchnorm, freeze


@torch.no_grad()
def write_teacher_means(file: Path, teacher: dict[str, Any], data: dict[str, Any]) -> None:
    """Write the means over the plain training images, and the mean norm over the validation images.

    A file of the same teacher, classes and images is left as it is.

    Args:
        file: ``.safetensors``.
        teacher: the entry of a configuration.
        data: likewise.

    Raises:
        NdkdError: a teacher or images that are not there or do not fit, a class without an image.
    """
    images: Any = configured(data)
    loader = images.class_mean_dataloader()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = _built(teacher, images).to(device)

    def embed(batch: Tensor) -> Tensor:
        batch = batch.to(device)
        return model(batch / 255 if batch.dtype == torch.uint8 else batch).embedding

    names, digest = [str(name) for name in images.class_names], loader.fingerprint()
    if file.is_file() and _is_current(file, names, digest, embed):
        return
    print(f"the teacher's class means, one pass over the training images: {file}", flush=True)
    sums = ClassSums(images.num_classes, model.embedding_dim, device)
    for batch, target in tqdm(loader, desc="class means", disable=None, leave=False, unit="batch"):
        sums.add(embed(batch), target.to(device))
    means, _ = sums.means(names)
    norms = torch.cat([embed(batch).norm(dim=1) for batch, _ in images.val_dataloader()])
    shape = tuple(images.image_shape)
    StoredMeans(means, names, embed(noise(shape)), shape, digest, norms.mean().item()).write(file)


def _built(teacher: dict[str, Any], data: Any) -> FeatureExtractor:
    config = ModelConfig(**{**teacher, "taps": None, "compile": None})
    model = freeze(config.build(data.num_classes, data.mean, data.std, data.class_names))
    fold_batchnorm(model.model)
    return model


def _is_current(file: Path, names: list[str], digest: str, embed: Any) -> bool:
    try:
        stored = read_class_means(file)
        stored.check(file, names, embed)
    except NdkdError:
        return False
    return stored.images == digest and stored.probe is not None and stored.teacher_norm is not None
