"""How much each class counts in a loss."""

from collections.abc import Sequence
from math import isfinite
from typing import Literal

import torch
from torch import Tensor, nn

from ndkd.errors import NdkdError, shortened

ClassWeights = Literal["balanced"] | list[float]


def check_class_weights(wanted: ClassWeights) -> None:
    """Raise ``NdkdError`` unless it is the word ``balanced`` or a list of weights."""
    if wanted == "balanced":
        return
    if isinstance(wanted, str) or not all(isfinite(weight) and weight >= 0 for weight in wanted) or not any(wanted):
        raise NdkdError(f"class_weights: wanted balanced or a list of numbers from 0 on, not all 0, got {wanted}")


def class_weights(wanted: ClassWeights, num_classes: int, counts: Sequence[int] | None) -> Tensor:
    r"""The weights (C,) of the classes; ``balanced`` are $n / (C n_c)$ for $n_c$ of n training images.

    Args:
        wanted: ``balanced``, or the weights themselves.
        num_classes: C.
        counts: the training images of each class, where the data tells them.

    Raises:
        ValueError: numbers that are not one per class, or counts that are unknown or 0.

    Examples:
        >>> class_weights("balanced", 2, [30, 10])
        tensor([0.6667, 2.0000])
    """
    if wanted != "balanced":
        if len(wanted) != num_classes:
            raise ValueError(f"class_weights: wanted {num_classes} numbers, one per class, got {len(wanted)}")
        return torch.tensor([float(weight) for weight in wanted])
    if counts is None:
        raise ValueError("class_weights: balanced wants data with class_counts; give a list, one number per class")
    if len(counts) != num_classes:
        raise ValueError(
            f"class_weights: the data counts images of {len(counts)} classes, the student has {num_classes}"
        )
    if absent := [str(number) for number, count in enumerate(counts) if not count]:
        raise ValueError(
            f"class_weights: balanced wants a training image of each class, class {shortened(absent)} has none"
        )
    found = torch.tensor(counts, dtype=torch.float64)
    return (found.sum() / (num_classes * found)).float()


def set_class_weights(loss: nn.Module, weights: Tensor) -> None:
    """Give a loss its ``weight``, which moves with it and is in no checkpoint: it comes from the data again.

    Args:
        loss: has ``weight`` (C,), None or a tensor that is not learnt, as ``torch.nn.CrossEntropyLoss``.
        weights: (C,).

    Raises:
        ValueError: a loss that has none.
    """
    if not hasattr(loss, "weight") or isinstance(loss.weight, nn.Parameter):
        raise ValueError(
            f"{type(loss).__name__} has no weight per class; class_weights are for losses that have one, such as "
            "torch.nn.CrossEntropyLoss"
        )
    if "weight" in vars(loss):  # no buffer
        del loss.weight
    loss.register_buffer("weight", weights, persistent=False)
