"""Optimizers and schedules that cannot do what they will have to are refused before the first step."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, MultiStepLR, OneCycleLR, SequentialLR, StepLR

from ndkd.distillation.rehearsal import rehearsed
from ndkd.errors import NdkdError
from ndkd.schedules import WarmupCosineLR, WarmupMultiStepLR
from tests.command import refusal

SGD = partial(torch.optim.SGD, lr=0.1)


def rehearse(optimizer=SGD, scheduler=None, steps=20):
    weights = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
    return rehearsed(optimizer, list(weights.parameters()), scheduler, steps)


@pytest.mark.parametrize(
    "optimizer",
    [
        partial(SGD, lr=0.0),
        partial(SGD, lr=float("nan")),
        partial(SGD, lr=-1),
        partial(SGD, lr=None),
        partial(SGD, momentum=1.0),
        partial(SGD, momentum=-0.1),
        partial(SGD, weight_decay=float("inf")),
        partial(torch.optim.Adam, betas=(0.9, 1.0)),
        torch.optim.SparseAdam,
        torch.optim.LBFGS,
        torch.optim.Muon if hasattr(torch.optim, "Muon") else torch.optim.SparseAdam,
        lambda parameters: None,
    ],
)
def test_an_optimizer(optimizer):
    refusal(rehearse, optimizer)


@pytest.mark.parametrize(
    "scheduler",
    [
        partial(StepLR, step_size=0),
        partial(StepLR, step_size=-1),
        partial(StepLR, step_size=5, gamma=float("nan")),
        partial(StepLR, step_size=5, gamma=-0.1),
        partial(CosineAnnealingLR, T_max=0),
        partial(CosineAnnealingLR, T_max=-3),
        partial(CosineAnnealingLR, T_max=5, eta_min=-1),
        partial(MultiStepLR, milestones=[-1, 3]),
        partial(MultiStepLR, milestones=[5, 3]),
        partial(WarmupMultiStepLR, milestones=[5, 3]),
        partial(WarmupMultiStepLR, milestones=[3], warmup_steps=-1),
        partial(WarmupMultiStepLR, milestones=[3], warmup_factor=float("nan")),
        partial(WarmupCosineLR, total_steps=20, min_lr=float("nan")),
        partial(OneCycleLR, max_lr=0.1, total_steps=5),
        partial(LinearLR, total_iters=0),
        lambda o: SequentialLR(o, [StepLR(o, 1), StepLR(o, 0)], [3]),
        lambda o: SequentialLR(o, [StepLR(o, 1), StepLR(o, 2), StepLR(o, 2)], [5, 3]),
    ],
)
def test_a_schedule(scheduler):
    refusal(rehearse, scheduler=scheduler)


def test_a_schedule_that_ends_before_the_training():
    with pytest.raises(NdkdError, match="^lr_scheduler OneCycleLR: total_steps is 5, and the training goes on: leave "):
        rehearse(scheduler=partial(OneCycleLR, max_lr=0.1, total_steps=5))


def test_a_rehearsal_leaves_no_trace():
    optimizer, scheduler = rehearse(scheduler=partial(MultiStepLR, milestones=[3, 5]))
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert not optimizer.state
    assert scheduler.last_epoch == 0
    assert rehearse()[1] is None
