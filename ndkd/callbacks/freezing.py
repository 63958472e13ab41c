"""Parts of the student that do not learn, or not from the start."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import lightning.pytorch as L
from torch import nn

from ndkd.errors import NdkdError, suggestion

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Freezing(L.Callback):
    """Keep parts of the student as they start, with their BatchNorm in evaluation mode, for good or up to an epoch.

    Parts that learn later are the optimizer's from the start, so that its groups, its learning rates and a resumed run
    know nothing of it; until then they have no gradients, and neither momentum nor weight decay moves them.

    Args:
        freeze: names of the student's layers or parameters, ``layer1``, ``blocks.[0-3]`` or ``*.bias``; a layer's name
            stands for all that is in it.
        until_epoch: they learn from this epoch on, the first being epoch 0; by default never.

    Raises:
        NdkdError: a name that nothing in the student has, or an epoch before 1.
    """

    def __init__(self, freeze: Sequence[str], until_epoch: int | None = None):
        if isinstance(freeze, str) or not freeze or not all(isinstance(pattern, str) for pattern in freeze):
            raise NdkdError(f"freeze: wanted a list of names such as [conv1, layer1], got {freeze!r}")
        if until_epoch is not None and until_epoch < 1:
            raise NdkdError(f"until_epoch: wanted at least 1, got {until_epoch}; leave it out to freeze for good")
        self.patterns, self.until_epoch = list(freeze), until_epoch
        self._parameters: list[nn.Parameter] = []
        self._norms: list[nn.Module] = []

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        pl_module.configure_model()
        model = pl_module.student.model
        names = frozen_names(model, self.patterns)
        self._parameters = [value for name, value in model.named_parameters() if name in names and value.requires_grad]
        norms = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, BATCH_NORMS)]
        self._norms = [layer for name, layer in norms if name in names]
        if self.until_epoch is None:  # the optimizer and DDP are not made yet
            _require_grad(self._parameters, False)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self._is_over(trainer):
            _require_grad(self._parameters, True)
            for norm in self._norms:
                norm.train()
            return
        for norm in self._norms:
            norm.eval()
        if _is_alone(trainer):
            _require_grad(self._parameters, False)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        if not self._is_over(trainer):
            for parameter in self._parameters:
                parameter.grad = None

    def _is_over(self, trainer: L.Trainer) -> bool:
        return self.until_epoch is not None and trainer.current_epoch >= self.until_epoch


def frozen_names(model: nn.Module, patterns: Iterable[str]) -> set[str]:
    """The layers and parameters of a model that patterns stand for.

    Raises:
        NdkdError: a pattern that nothing matches.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        >>> sorted(frozen_names(model, ["1", "*.bias"]))
        ['0.bias', '1', '1.bias', '1.weight']
    """
    layers = [name for name, _ in model.named_modules() if name]
    known = [*layers, *(name for name, _ in model.named_parameters())]
    found = set()
    for pattern in patterns:
        matched = [name for name in known if fnmatchcase(name, pattern)]
        if not matched:
            kind = type(model).__name__
            raise NdkdError(f"freeze: {kind} has nothing named {pattern!r}; {suggestion(pattern, known)}")
        inside = tuple(f"{name}." for name in matched)
        found |= {name for name in known if name in matched or name.startswith(inside)}
    return found


def _is_alone(trainer: L.Trainer) -> bool:
    """Without DDP, which waits for the gradients of all that it was made for."""
    return trainer.world_size == 1


def _require_grad(parameters: Iterable[nn.Parameter], value: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(value)
