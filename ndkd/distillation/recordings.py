"""The recordings in a folder: which one is of a teacher and a stream of images, and why another is not."""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ndkd.data.base import HasMixing
from ndkd.distillation.compression import Compression
from ndkd.distillation.recorded_teacher import ABOUT, Recording
from ndkd.models.checkpoint_files import existing_file
from ndkd.models.config import ModelConfig
from ndkd.models.features import FeatureExtractor

FORMAT = 1


def recordings_in(folder: Path) -> Iterator[Recording]:
    """All that can be read, in the order of their names."""
    for file in sorted(folder.glob(f"*/{ABOUT}")):
        try:
            about = json.loads(file.read_text(encoding="utf-8"))
            identity = about.pop("identity")
            compression = Compression(**identity["compression"])
            if identity["format"] == FORMAT and about["fields"] and about["embedding_dim"] and about["num_classes"]:
                yield Recording(file.parent, identity, compression, about)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # half a folder, or somebody else's


def find_recording(folder: Path, identity: dict[str, Any], names: Collection[str]) -> Recording | str | None:
    """The recording of this identity that has these outputs; or why the nearest one has not; None if there is none.

    Args:
        folder: of recordings.
        identity: of ``identity_of``; a teacher whose file is gone is known again by where it was.
        names: outputs of the teacher.
    """
    nearest: list[list[str]] = []
    for recording in recordings_in(folder):
        differences = _differences(identity, recording.identity)
        if missing := sorted({*names} - recording.names):
            differences.append(f"it lacks the teacher's {' and '.join(missing)}")
        if not differences:
            return recording
        nearest.append(differences)
    return min(nearest, key=lambda found: len(found))[0] if nearest else None


def new_recording(folder: Path, identity: dict[str, Any], names: Collection[str]) -> Recording:
    """One of its own for an identity."""
    digest = hashlib.sha256(json.dumps([identity, sorted(names)], sort_keys=True).encode()).hexdigest()
    return Recording(folder / digest[:16], identity, Compression(**identity["compression"]))


def is_in_a_file(source: ModelConfig | Any) -> bool:
    """Whether a teacher is known by its file, and need not be built for that."""
    return isinstance(source, ModelConfig) and source.checkpoint is not None


def identity_of(
    source: ModelConfig | Any, teacher: FeatureExtractor | None, stream: dict[str, Any], compression: Compression
) -> dict[str, Any]:
    """What the outputs of a teacher on a stream of images depend on, as primitives.

    Args:
        source: the teacher's configuration, or a ready model.
        teacher: built, which one that brings no file has to be.
        stream: of ``stream_of``.
        compression: of the outputs.
    """
    about: dict[str, Any] = {"name": type(source).__name__}
    if isinstance(source, ModelConfig):
        about = {**asdict(source), "checkpoint": str(source.checkpoint) if source.checkpoint else None}
        del about["compile"], about["taps"]  # neither changes what is recorded
    if teacher is not None:
        weights: str | None = digest_of_weights(teacher)
    else:
        weights = digest_of_file(str(source.checkpoint))
    return {"format": FORMAT, "teacher": about, "weights": weights, **stream, "compression": asdict(compression)}


def stream_of(trainer: Any, loader: Any, class_names: Any) -> dict[str, Any]:
    """What the images of all steps of training depend on.

    Args:
        trainer: that will train, of the first process: the others' images follow from its.
        loader: of the training images, with a ``fingerprint``; it is left at epoch 0.
        class_names: of the data, in order.
    """
    loader.sampler.set_epoch(0)
    data, order = trainer.datamodule, loader.sampler
    images = [loader.fingerprint(), class_names, repr(data.mixing) if isinstance(data, HasMixing) else None]
    limits = [trainer.limit_train_batches, trainer.overfit_batches]
    return {  # what others follow from comes first
        "seed": int(order.seed),
        "processes": trainer.world_size,
        "batch size": loader.batch_size,
        "precision": trainer.precision,
        "images": digest_of(images),
        "order": digest_of(repr(list(order))),
        "batches": digest_of([len(loader), *limits]),
    }


def digest_of_weights(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    add_tensors(digest, model.state_dict())
    return digest.hexdigest()[:16]


def add_tensors(digest: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Let a digest of ``hashlib`` depend on tensors and their names, such as a model's weights."""
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy())  # NumPy knows no bfloat16


def digest_of_file(name: str | Path) -> str | None:
    """None of a file that is gone, or cannot be fetched."""
    path = existing_file(name)
    if path is None:
        return None
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()[:16]


def digest_of(parts: Any) -> str:
    """Of anything that can be written as JSON; of what cannot, its text counts."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]


def _differences(wanted: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """In words, what is different, the first of which tells most."""
    wrong = []
    for name, value in wanted.items():
        other = found.get(name)
        if name == "weights" and value is None:  # the file is gone: its path and options must do
            continue
        if name == "teacher" and wanted["weights"] and value | {"checkpoint": 0} == (other or {}) | {"checkpoint": 0}:
            continue  # the same file by another name
        if value != other:
            wrong.append(_in_words(name, value, other))
    return wrong


def _in_words(name: str, value: Any, other: Any) -> str:
    if name in ("seed", "batch size", "processes", "precision"):
        return f"its {name} is {other}, this run's {value}"
    if name == "teacher" and isinstance(other, dict) and isinstance(value, dict) and value["name"] != other.get("name"):
        return f"its teacher is {other.get('name')}, this run's {value['name']}"
    words = {
        "teacher": "its teacher has other options",
        "weights": "its teacher has other weights",
        "images": "it is of other images or augmentation",
        "order": "its images come in another order",
        "batches": "it has other batches",
        "compression": "it was compressed otherwise",
        "format": "it is of another version of ndkd",
    }
    return words[name]
