"""Weights from files, however they were saved."""

import argparse
import pickle
import re
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ndkd.errors import NdkdError, shortened
from ndkd.models.checkpoint_files import SUFFIXES, checkpoint_file, hub_file
from ndkd.models.run_checkpoint import TAKE_ANOTHER

WRAPPERS = ("state_dict", "model", "model_state_dict", "net", "network", "params", "weights")
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
    """The content of a checkpoint file, of this machine or ``hf://REPO/FILE``, read without running code from it.

    Raises:
        NdkdError: no such file, or one that is not a checkpoint.
    """
    shown, path = hub_file(path) or path, checkpoint_file(path)
    if path.is_dir():
        inside = [str(file) for file in sorted(path.iterdir()) if file.suffix in SUFFIXES]
        raise NdkdError(
            f"checkpoint {path} is a folder; name a file in it" + (f": {shortened(inside)}" if inside else "")
        )
    if not path.is_file():
        raise NdkdError(f"checkpoint {shown} does not exist; train it first or correct the path")
    try:
        with torch.serialization.safe_globals(VALUES):
            content = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        wrong = _wrong_record(path)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        why = f"it holds a {found[1]}" if found else "it cannot be unpickled"
        raise NdkdError(
            f"checkpoint {shown} is not a plain weights file: {why}. Save its state_dict() instead"
        ) from error
    except Exception as error:  # damaged bytes raise errors of many kinds
        why = f"{type(error).__name__} {error}".splitlines()[0] if path.stat().st_size else "it is empty"
        why = "torch.save did not write it" if isinstance(error, KeyError) else why  # of a text, for example
        raise NdkdError(f"checkpoint {shown} is damaged, or not a checkpoint: {why}") from error
    if wrong:
        raise NdkdError(f"checkpoint {shown} is damaged: {wrong} has other bytes than were written; {TAKE_ANOTHER}")
    if not isinstance(content, dict):
        raise NdkdError(f"checkpoint {shown}: wanted a dictionary of tensors, got a {type(content).__name__}")
    return content


def _wrong_record(path: Path) -> str | None:
    """Of torch's archives the first record whose checksum is wrong: torch writes them, and does not look."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()


def model_weights(content: dict[str, Any], wanted: Collection[str] = ()) -> dict[str, Tensor]:
    """The model's own state dict inside a checkpoint's content.

    It is the first of the dictionaries in it, and the first prefix of their keys, under which all ``wanted`` keys are:
    ``{"state_dict": …}``, ``{"net": …}``, ``module.``, ``backbone.``, ``student.`` and whatever else people save.
    Weights that are trained come before their moving averages. Where none fits, what wrappers usually leave is
    stripped.

    Args:
        content: of ``read_checkpoint``.
        wanted: the keys of the model.
    """
    counted = [key for key in wanted if not key.endswith("num_batches_tracked")]  # frozen BatchNorms do not count
    dictionaries = list(_dictionaries(content))
    for weights in dictionaries if counted else ():
        for prefix in _prefixes(weights, counted[0]):
            if all(f"{prefix}{key}" in weights for key in counted):
                return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    return _stripped(dictionaries[0] if dictionaries else {}, wanted)


def _dictionaries(content: dict[str, Any]) -> Iterator[dict[str, Tensor]]:
    """The dictionaries of tensors in a file, the likeliest first."""
    inner = {name: value for name, value in content.items() if isinstance(value, dict)}
    usual = [name for name in WRAPPERS if name in inner]
    others = sorted((name for name in inner if name not in WRAPPERS), key=lambda name: "ema" in str(name).lower())
    for name in (*usual, *others):
        yield from _dictionaries(inner[name])
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if tensors:
        yield tensors


def _prefixes(weights: dict[str, Tensor], first: str) -> list[str]:
    """What the keys may begin with so that the first wanted one is among them; a student's before others."""
    found = [key[: -len(first)] for key in weights if key.endswith(first)]
    return sorted(found, key=lambda prefix: (prefix != "", "student." not in prefix))


def _stripped(weights: dict[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
    """Without the prefixes that wrappers leave, until the keys are the wanted ones or nothing is left to strip."""
    while weights and set(weights) != set(wanted):
        weights = {key: value for key, value in weights.items() if key.startswith("student.")} or weights
        prefix = next((prefix for prefix in PREFIXES if all(key.startswith(prefix) for key in weights)), None)
        if prefix is None:
            break
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights


def keys_in(content: dict[str, Any], above: str = "") -> list[str]:
    """The names of all that a checkpoint's content holds, those of inner dictionaries behind their own.

    >>> keys_in({"epoch": 3, "net": {"fc.weight": 0}})
    ['epoch', 'net: fc.weight']
    """
    found: list[str] = []
    for key, value in content.items():
        found += keys_in(value, f"{above}{key}: ") if isinstance(value, dict) and value else [f"{above}{key}"]
    return found


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
