"""What a fit says first: the objective, what it trains on, and which classes it will not measure."""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as L
import torch

from ndkd.data.base import HasClassCounts, HasRemarks, HasSizes, HasUnlabeled
from ndkd.errors import shortened


class Opening(L.Callback):
    """Print ``objective: …`` and, where the DataModule tells, ``data: …`` before the first epoch.

    A line more for validation and for test images that do not show all classes, and one where nobody has chosen a
    precision and the hardware could be faster.
    """

    def __init__(self, precision_is_given: bool = True):
        """Args: precision_is_given: whether the user has chosen ``trainer.precision``."""
        self.precision_is_given = precision_is_given

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        print(f"objective: {pl_module.objective}")
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, HasSizes):
            print(f"data: {described(data)}")
        if isinstance(data, HasClassCounts):
            for line in unmeasured_splits(data, pl_module.class_names):
                print(f"ndkd: {line}")
        if not self.precision_is_given and computes_in_bfloat16(trainer.strategy.root_device):
            print(f"ndkd: {BFLOAT16_ADVICE[trainer.strategy.root_device.type]}")


BFLOAT16_ADVICE = {
    "cpu": "this CPU computes in bfloat16: --config trainer/bf16.yaml trains ResNets 1.4 times as fast (losses stay in "
    "float32); --trainer.precision 32-true keeps float32 and silences this line",
    "cuda": "this GPU computes in bfloat16: --config trainer/bf16.yaml is usually faster (losses stay in float32); "
    "--trainer.precision 32-true keeps float32 and silences this line",
}


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether a device has units for it; of a CPU older versions of torch cannot tell."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return device.type == "cpu" and any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def described(data: Any) -> str:
    """The numbers of a DataModule's images and classes.

    Args:
        data: a ``ndkd.data.base.DataModule`` that is set up.
    """
    sizes = data.sizes
    chosen_on = " (= test)" if data.validates_on_test else ""
    numbers = f"{sizes['train']:,} images, {data.num_classes:,} classes, validation {sizes['val']:,}{chosen_on}"
    if "test" in sizes and not data.validates_on_test:
        numbers += f", test {sizes['test']:,}"
    if isinstance(data, HasUnlabeled) and data.unlabeled_size:
        numbers += f", unlabelled {data.unlabeled_size:,}"
    return "; ".join([numbers, *(data.remarks if isinstance(data, HasRemarks) else ())])


def unmeasured_splits(data: Any, class_names: Sequence[str] | None) -> list[str]:
    """What there is to say of the validation and the test images of a DataModule; once where they are the same."""
    splits = {"val": "validation", "test": "test"}
    if getattr(data, "validates_on_test", False):
        del splits["val"]
    counts = data.class_counts
    found = [unmeasured(counts[split], class_names, word) for split, word in splits.items() if split in counts]
    return [line for line in found if line is not None]


def unmeasured(counts: Sequence[int], class_names: Sequence[str] | None, word: str) -> str | None:
    """That some classes have no image, so that an accuracy says nothing about them; None if all have some.

    Args:
        counts: the images of each class.
        class_names: in the same order.
        word: which images these are.

    >>> unmeasured([0, 3, 0], ("cat", "dog", "fox"), "test")
    'all test images are of one class, dog: their accuracy says nothing about the other 2'
    """
    names = [str(name) for name in class_names or range(len(counts))]
    there, absent = ([name for name, n in zip(names, counts, strict=True) if (n > 0) == has] for has in (True, False))
    if len(there) == 1:
        others = "the other" if len(absent) == 1 else f"the other {len(absent)}"
        return f"all {word} images are of one class, {there[0]}: their accuracy says nothing about {others}"
    if absent and there:
        it = "it" if len(absent) == 1 else "them"
        return f"no {word} image of class {shortened(absent)}: nothing is measured of {it}"
    return None
