"""Train a student from a frozen teacher on any sum of loss terms."""

from ndkd.distillation.module import DistillationModule
from ndkd.distillation.objective import LossTerm, Objective, StepOutput
