"""What an evaluation says of each class."""

from operator import itemgetter
from typing import Any

from ndkd.callbacks.opening import unmeasured
from ndkd.distillation.accuracies import BalancedAccuracy

MOST = 20  # classes


def counts_of(module: Any) -> list[list[int]]:
    """Right and all images of each class in a module's last evaluation; none where a task measures something else."""
    found: Any = dict(getattr(module, "metrics", {})).get("balanced_acc")
    is_known = isinstance(found, BalancedAccuracy) and found.measured is not None
    return found.measured.tolist() if is_known else []


def of_each_class(module: Any) -> list[str]:
    """A line per class of the last evaluation, the least accurate first: accuracy, images, name."""
    counts = counts_of(module)
    names = module.class_names or [str(number) for number in range(len(counts))]
    rows = [
        (right / images, right, images, name) for (right, images), name in zip(counts, names, strict=False) if images
    ]
    lines = [f"{share:8.2%}  {right:,} of {n:,}  {name}" for share, right, n, name in sorted(rows, key=itemgetter(0))]
    more = [f"and {len(lines) - MOST:,} classes of a higher one"] if len(lines) > MOST else []
    return ["accuracy of each class:", *lines[:MOST], *more] if lines else []


def of_unmeasured(module: Any, word: str) -> list[str]:
    """The line that the last evaluation did not show all classes, see ``ndkd.callbacks.opening.unmeasured``."""
    counts = counts_of(module)
    line = unmeasured([images for _, images in counts], module.class_names, word) if counts else None
    return [f"ndkd: {line}"] if line else []
