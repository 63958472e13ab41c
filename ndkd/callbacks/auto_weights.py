"""Weights of loss terms that are given as shares, found before the first step."""

from typing import Any

import lightning.pytorch as L

from ndkd.callbacks.epoch_lines import shows_bars
from ndkd.distillation.proxy_run import measure_terms


class AutoWeights(L.Callback):
    """Set the weights of terms with ``weight: {auto: SHARE}`` on fit start, by ``measure_terms``; others stay.

    They are part of the checkpoint: a resumed run keeps them and measures nothing. It comes after ``ClassMeans``, since
    a term may want the class means.

    Raises:
        NdkdError: a term that cannot have its share.
    """

    def __init__(self) -> None:
        self.weights: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        return dict(self.weights)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.weights = dict(state_dict)

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        shares = pl_module.objective.shares
        if shares.keys() - self.weights.keys():
            found = measure_terms(trainer, pl_module, shares, shows_bars(trainer)).weights
            self.weights = {name: found[name] for name in shares}
        pl_module.objective.set_weights({name: self.weights[name] for name in shares})
