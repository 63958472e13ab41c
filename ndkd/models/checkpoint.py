"""Weights from files, however they were saved."""

import argparse
import pickle
import re
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ndkd.errors import NdkdError, shortened
from ndkd.models.run_checkpoint import TAKE_ANOTHER

WRAPPERS = ("state_dict", "model")
NUMPY_SCALAR = np.float64(0).__reduce__()[0]
# What research code keeps beside the weights: its options, and accuracies as NumPy's numbers. They hold values only.
VALUES: list[Any] = [
    argparse.Namespace,
    (NUMPY_SCALAR, "numpy.core.multiarray.scalar"),  # its name before NumPy 2
    (NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64", "bool")),
]
PREFIXES = ("module.", "_orig_mod.", "student.", "model.")


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint file, read without running code from it.

    Raises:
        NdkdError: no such file, or one that is not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise NdkdError(f"checkpoint {path} does not exist; train it first or correct the path")
    try:
        with torch.serialization.safe_globals(VALUES):
            content = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        wrong = _wrong_record(path)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        why = f"it holds a {found[1]}" if found else "it cannot be unpickled"
        raise NdkdError(f"checkpoint {path} is no plain weights file: {why}. Save its state_dict() instead") from error
    except Exception as error:  # damaged bytes raise errors of many kinds
        why = f"{type(error).__name__} {error}".splitlines()[0]
        raise NdkdError(f"checkpoint {path} is damaged or no checkpoint: {why}") from error
    if wrong:
        raise NdkdError(f"checkpoint {path} is damaged: {wrong} has other bytes than were written; {TAKE_ANOTHER}")
    if not isinstance(content, dict):
        raise NdkdError(f"checkpoint {path}: wanted a dictionary of tensors, got a {type(content).__name__}")
    return content


def _wrong_record(path: Path) -> str | None:
    """Of torch's archives the first record whose checksum is wrong: torch writes them, and does not look."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()


def model_weights(content: dict[str, Any], wanted: Collection[str] = ()) -> dict[str, Tensor]:
    """The model's own state dict inside a checkpoint's content.

    Unwraps ``{"state_dict": …}`` and ``{"model": …}``, keeps only the ``student.`` part where there is one (a
    distillation checkpoint), and strips the prefixes that wrappers leave (``module.``, ``student.``, ``model.``),
    until the keys are the ``wanted`` ones or nothing is left to strip.
    """
    for wrapper in WRAPPERS:
        if isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    weights = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    while weights and set(weights) != set(wanted):
        weights = {key: value for key, value in weights.items() if key.startswith("student.")} or weights
        prefix = next((prefix for prefix in PREFIXES if all(key.startswith(prefix) for key in weights)), None)
        if prefix is None:
            break
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights


def load_weights(model: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Copy weights into a model whose keys and shapes they match exactly.

    Raises:
        NdkdError: lists the missing, the unexpected and the wrongly shaped keys.
    """
    own = model.state_dict()
    counters = {key: value for key, value in own.items() if key.endswith("num_batches_tracked")}
    weights = counters | weights  # frozen BatchNorms do not count
    check_keys(own, weights, source)
    model.load_state_dict(weights)


def check_keys(wanted: dict[str, Tensor], found: dict[str, Tensor], source: str) -> None:
    """Raise ``NdkdError`` with the missing, the unexpected and the wrongly shaped keys, if there are any."""
    shapes = [
        f"{key} {tuple(found[key].shape)} instead of {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in found and found[key].shape != value.shape
    ]
    differences = {
        "missing": [key for key in wanted if key not in found],
        "unexpected": [key for key in found if key not in wanted],
        "wrongly shaped": shapes,
    }
    parts = [f"{kind}: {shortened(keys)}" for kind, keys in differences.items() if keys]
    if parts:
        raise NdkdError(f"{source} does not fit the model; {'; '.join(parts)}. Is it another architecture or data set?")
