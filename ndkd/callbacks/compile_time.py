"""What compiling costs, said once."""

import time
from typing import Any

import lightning.pytorch as L


class CompileTime(L.Callback):
    """Print how long the first training step took where models are compiled in it; a student's is compiled there.

    A teacher that passes over images for class means or its accuracy was compiled then. One that is read from a full
    recording is not compiled.
    """

    def __init__(self) -> None:
        self.started: float | None = None
        self.is_said = False

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.is_compiled and not self.is_said:
            self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.started is None or self.is_said:
            return
        self.is_said = True
        pl_module.print(f"compiled: the first training step took {time.perf_counter() - self.started:.0f} s")
