"""What several losses share: checks of their inputs, unit vectors, and the class-mean row of each sample."""

from contextlib import AbstractContextManager, nullcontext
from math import inf, isfinite

import torch
from torch import Tensor


def check_positive(**options: float) -> None:
    """Raise ``ValueError`` unless each option is a finite number above 0."""
    for name, value in options.items():
        if value is None or not 0 < value < inf:
            raise ValueError(f"{name}: wanted a number above 0, got {value}")


def check_not_negative(**options: float) -> None:
    """Raise ``ValueError`` unless each option is a finite number from 0 on."""
    for name, value in options.items():
        if value is None or not 0 <= value < inf:
            raise ValueError(f"{name}: wanted a number from 0 on, got {value}")


def check_weights(**options: float) -> None:
    """Raise ``ValueError`` unless the options are finite numbers from 0 on, of which one is above 0."""
    check_not_negative(**options)
    if not any(options.values()):
        raise ValueError(f"{' and '.join(options)}: wanted a number above 0, all are 0")


def check_same_shape(**tensors: Tensor) -> None:
    """Raise ``ValueError`` unless the tensors are floating point, two-dimensional and, where several, of one shape."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 2 for shape in shapes.values()):
        got = " and ".join(f"{name} {shape}" for name, shape in shapes.items())
        wanted = "tensors of one shape" if len(shapes) > 1 else "a tensor"
        raise ValueError(f"wanted {wanted} (N, D), got {got}")
    for name, tensor in tensors.items():
        check_floating(name, tensor)


def check_floating(name: str, tensor: Tensor) -> None:
    """Raise ``ValueError`` unless the tensor is floating point."""
    if not tensor.is_floating_point():
        raise ValueError(f"wanted floating point numbers in {name}, got {tensor.dtype}")


def check_target(target: Tensor, num_samples: int, num_classes: int, soft: bool = True) -> None:
    """Raise ``ValueError`` unless the target is class indices (N,) or, where allowed, soft labels (N, C)."""
    hard_ok = target.shape == (num_samples,) and not target.is_floating_point() and target.dtype != torch.bool
    soft_ok = soft and target.shape == (num_samples, num_classes) and target.is_floating_point()
    if not (hard_ok or soft_ok):
        wanted = f"class indices ({num_samples},)" + (f" or soft labels ({num_samples}, {num_classes})" if soft else "")
        raise ValueError(f"wanted a target of {wanted}, got {target.dtype} {tuple(target.shape)}")
    if hard_ok and num_samples and values_are_at_hand(target):
        low, high = (int(extreme) for extreme in target.aminmax())
        if low < 0 or high >= num_classes:
            raise ValueError(f"wanted a target from 0 to {num_classes - 1}, got {low if low < 0 else high}")


def check_class_means(class_means: Tensor, width: int) -> None:
    """Raise ``ValueError`` unless the class means are finite numbers (C, width)."""
    if class_means.ndim != 2 or class_means.shape[1] != width:
        raise ValueError(
            f"wanted class_means (C, {width}), as wide as the embedding, got {tuple(class_means.shape)}; "
            "where the widths differ, project the student's embedding first"
        )
    check_floating("class_means", class_means)
    # the sum is quick to tell that all is well
    if values_are_at_hand(class_means) and not isfinite(class_means.sum(dtype=torch.float32).item()):
        wrong = (~class_means.isfinite().all(dim=1)).nonzero().flatten().tolist()
        raise ValueError(f"wanted finite class_means, got non-finite numbers in {len(wrong)}, first class {wrong[0]}")


def values_are_at_hand(tensor: Tensor) -> bool:
    """Whether reading the values costs no device synchronisation and breaks no compiled graph."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def in_float32(device: torch.device) -> AbstractContextManager[object]:
    """A context in which autocast does not turn products of float32 into half precision."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def unit_vectors(vectors: Tensor, eps: float = 1e-8) -> Tensor:
    """Rows of length 1, in float32; a row shorter than eps is 0 and has no gradient, instead of a huge one."""
    vectors = vectors.float()
    norm: Tensor = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    empty = norm < eps
    return (vectors / norm.masked_fill(empty, 1.0)).masked_fill(empty, 0.0)


def target_means(class_means: Tensor, target: Tensor) -> Tensor:
    """The class mean that each sample is compared with, in float32.

    Class indices (N,) gather a row; soft labels (N, C) mix the rows, ``target @ class_means``.
    """
    class_means = class_means.float()
    if not target.is_floating_point():
        return class_means[target.long()]
    with in_float32(target.device):
        return target.float() @ class_means


def check_against_means(student_embedding: Tensor, class_means: Tensor, target: Tensor) -> None:
    """Raise ``ValueError`` unless embeddings (N, D), class means (C, D) and a target fit each other."""
    check_same_shape(student_embedding=student_embedding)
    check_class_means(class_means, student_embedding.shape[1])
    check_target(target, len(student_embedding), len(class_means))
