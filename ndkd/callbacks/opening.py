"""What a fit says first: the objective, and what it trains on."""

from typing import Any

import lightning.pytorch as L

from ndkd.data.base import HasRemarks, HasSizes


class Opening(L.Callback):
    """Print ``objective: …`` and, where the DataModule tells, ``data: …`` before the first epoch."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        print(f"objective: {pl_module.objective}")
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, HasSizes):
            print(f"data: {described(data)}")


def described(data: Any) -> str:
    """The numbers of a DataModule's images and classes.

    Args:
        data: a ``ndkd.data.base.DataModule`` that is set up.
    """
    sizes = data.sizes
    chosen_on = " (= test)" if data.validates_on_test else ""
    numbers = f"{sizes['train']:,} images, {data.num_classes:,} classes, validation {sizes['val']:,}{chosen_on}"
    return "; ".join([numbers, *(data.remarks if isinstance(data, HasRemarks) else ())])
