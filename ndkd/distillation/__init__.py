"""Train a student from a frozen teacher on any sum of loss terms."""

from typing import Any

from ndkd.distillation.objective import LossTerm, Objective
from ndkd.distillation.step_output import StepOutput


def __getattr__(name: str) -> Any:
    """``DistillationModule`` when it is asked for: it needs Lightning, the objective does not."""
    if name == "DistillationModule":
        from ndkd.distillation.module import DistillationModule

        return DistillationModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
