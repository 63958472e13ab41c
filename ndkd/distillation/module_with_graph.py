"""What a module that replays its steps as a CUDA graph does otherwise."""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as L
from torch import Tensor

from ndkd.distillation.cuda_graph import GraphedStep, forget_graphs


class ModuleWithGraph(L.LightningModule):
    """A module whose steps may be replayed: their gradients are there before Lightning asks for them."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = False
        self.graphed_step: GraphedStep | None = None  # while it is trained

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Behind ``to``, ``cpu``, ``bfloat16`` and the like: a graph would still read what was there before."""
        forget_graphs(self)
        return super()._apply(fn, recurse)

    def backward(self, loss: Tensor, *args: Any, **options: Any) -> None:
        if self.graphed_step is not None and not loss.requires_grad:  # a replay has been through it
            self.graphed_step.backward()
        else:
            super().backward(loss, *args, **options)

    def on_train_end(self) -> None:
        self.graphed_step = None  # its memory is free again, and the module can be copied
