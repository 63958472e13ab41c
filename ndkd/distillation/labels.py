"""Which images of a batch a loss term sees where not all of them have a label.

The labelled ones come first, and their number is known on the host: to count them on a GPU would wait for it. For the
same reason, images of which the teacher is not sure are replaced and not taken out.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ndkd.errors import NdkdError

WHOLE = "class_means"  # the output that is not of single images, of several teachers class_means.NAME
Values = list[tuple[str, Any]]  # outputs with the names that a loss term has for them, in its order


def check_pseudo_labels(confidence: Any) -> None:
    """Raise ``NdkdError`` unless it is a number above 0 and at most 1."""
    if isinstance(confidence, bool) or not isinstance(confidence, int | float) or not 0 < confidence <= 1:
        raise NdkdError(f"pseudo_labels: wanted a confidence above 0 and at most 1, got {confidence}")


def check_is_for_labels(name: str, inputs: Sequence[str], has_class_weights: bool) -> None:
    """Raise ``NdkdError`` if a term with these inputs can do nothing with pseudo-labels."""
    if "target" not in inputs:
        raise NdkdError(
            f"loss {name}: pseudo_labels are for a term that reads target; this one reads {', '.join(inputs)} and sees "
            "images without labels anyway; leave pseudo_labels out"
        )
    if has_class_weights:
        raise NdkdError(f"loss {name}: class_weights count labels, and pseudo_labels are none; leave one of both out")


def value_of(loss: Callable[..., Tensor], values: Values) -> Tensor:
    """What a loss makes of outputs."""
    return loss(*(value for _, value in values))


def of_labeled(values: Values, number: int, labeled: int) -> Values:
    """The outputs of the images that have labels.

    Args:
        values: of all images.
        number: of these.
        labeled: how many of them have labels; they come first.
    """
    return _of_rows(values, number, lambda rows: rows[:labeled])


def mean_with_pseudo_labels(
    loss: Callable[..., Tensor], values: Values, labeled: int, teacher_logits: Tensor, confidence: float
) -> Tensor:
    r"""The mean of a loss over the images with labels and those without of which the teacher is sure.

    Such an image has the class k that the teacher finds likeliest, $p^t_k \ge$ ``confidence``. An image of which the
    teacher is not sure is replaced by the first one of the batch without a gradient, and what that adds to the mean is
    taken off again: for m of N images that are used, and $l_1$ of the first,

    $$
    \frac{1}{m} \sum_{i\ \mathrm{used}} l_i = \frac{N L - (N - m)\, l_1}{m}
    $$

    where L is the mean over all N after the replacement. Nothing waits for a GPU to know m.

    Args:
        loss: the mean of a value for each image; called with ``values`` in their order.
        values: outputs of N images, ``target`` among them.
        labeled: how many of them have labels; they come first.
        teacher_logits: (N, C).
        confidence: from which on the teacher is sure.
    """
    number, target = len(teacher_logits), _target(values)
    probability, predicted = teacher_logits.detach().float().softmax(dim=1).max(dim=1)
    has_label = torch.arange(number, device=target.device) < labeled
    is_used = has_label | (probability >= confidence)
    classes = F.one_hot(predicted, target.shape[1]) if target.ndim == 2 else predicted  # beside soft labels
    target = torch.where(_beside(has_label, target), target, classes.to(target.dtype))
    values = [(name, target if name == "target" else value) for name, value in values]
    filled = _of_rows(values, number, lambda rows: torch.where(_beside(is_used, rows), rows, rows[:1].detach()))
    mean = value_of(loss, filled)
    with torch.no_grad():
        first = value_of(loss, _of_rows(values, number, lambda rows: rows[:1]))
    used = is_used.sum()
    return (number * mean - (number - used) * first) / used.clamp_min(1)


def check_is_a_mean(loss: Callable[..., Tensor], values: Values) -> None:
    """Raise ``ValueError`` unless a loss is the mean of a value for each image, tried on random numbers.

    Args:
        loss: called with ``values`` in their order.
        values: outputs of some images, of which the shapes count, ``target`` among them.
    """
    random, number = torch.Generator().manual_seed(0), len(_target(values))

    def drawn(rows: Tensor) -> Tensor:
        if not rows.is_floating_point():
            return torch.arange(3, device=rows.device) % 2
        return torch.rand(3, *rows.shape[1:], generator=random).to(rows)

    def different(name: str, value: Any) -> Any:
        """Class means that are all alike would hide much."""
        return torch.rand(value.shape, generator=random).to(value) if name.startswith(WHOLE) else value

    tried = _of_rows([(name, different(name, value)) for name, value in values], number, drawn)
    parts = tried, _of_rows(tried, 3, lambda rows: rows[:1]), _of_rows(tried, 3, lambda rows: rows[1:])
    whole, one, two = (value_of(loss, part).double() for part in parts)
    if not torch.allclose(whole, (one + 2 * two) / 3, rtol=1e-3, atol=1e-5):
        raise ValueError(
            "pseudo_labels want a loss that is the mean over its images; this one is not (a sum, or images that count "
            "differently); leave pseudo_labels out"
        )


def _of_rows(values: Values, number: int, change: Callable[[Tensor], Tensor]) -> Values:
    """The same with another choice of images, in all that has a row for each."""

    def changed(value: Any) -> Any:
        if isinstance(value, Tensor):
            return change(value) if value.ndim and len(value) == number else value
        return [changed(each) for each in value] if isinstance(value, list | tuple) else value  # feature maps

    return [(name, value if name.startswith(WHOLE) else changed(value)) for name, value in values]


def _target(values: Values) -> Tensor:
    return next(value for name, value in values if name == "target")


def _beside(mask: Tensor, rows: Tensor) -> Tensor:
    """A mask (N,) in as many dimensions as rows (N, …) have."""
    return mask.view(-1, *[1] * (rows.ndim - 1))
