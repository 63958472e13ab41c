"""What a fit says first: the objective, and what it trains on."""

from typing import Any

import lightning.pytorch as L


class Opening(L.Callback):
    """Print ``objective: …`` and, where the DataModule tells, ``data: …`` before the first epoch."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        print(f"objective: {pl_module.objective}")
        if hasattr(trainer.datamodule, "sizes"):
            print(f"data: {described(trainer.datamodule)}")


def described(data: Any) -> str:
    """The numbers of a DataModule's images and classes.

    Args:
        data: a :class:`ndkd.data.base.DataModule` that is set up.
    """
    sizes = data.sizes
    chosen_on = " (= test)" if data.validates_on_test else ""
    numbers = f"{sizes['train']:,} images, {data.num_classes:,} classes, validation {sizes['val']:,}{chosen_on}"
    return "; ".join([numbers, *data.remarks])
