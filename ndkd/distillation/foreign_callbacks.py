"""Lightning's callbacks that change what is trained: which of them can work here."""

from collections.abc import Iterable

from lightning.pytorch.callbacks import BackboneFinetuning, Callback, StochasticWeightAveraging, WeightAveraging

from ndkd.errors import NdkdError

REFUSED: dict[type[Callback], str] = {
    BackboneFinetuning: "it wants a module with a part named backbone; use ndkd.callbacks.Freezing",
    StochasticWeightAveraging: "it copies the student before it is built, and adds an epoch; use EMAWeightAveraging",
}


def check_callbacks(callbacks: Iterable[Callback]) -> None:
    """Raise ``NdkdError`` for a callback that would end in an error, or in another training than is asked for."""
    for callback in callbacks:
        for kind, why in REFUSED.items():
            if isinstance(callback, kind):
                raise NdkdError(f"trainer.callbacks: {type(callback).__name__} cannot be used: {why}")


def averages_weights(callbacks: Iterable[Callback]) -> bool:
    """Whether one of them trains on, and evaluates and stores averages of the weights instead."""
    return any(isinstance(callback, WeightAveraging) for callback in callbacks)
