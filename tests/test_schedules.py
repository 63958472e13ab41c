"""Warm-up and cosine."""

import math

import pytest
import torch

from ndkd.schedules import WarmupCosineLR, WarmupMultiStepLR


def rates(**options):
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)]}, {"params": [torch.zeros(1)], "lr": 2.0}], lr=1.0)
    schedule, found = WarmupCosineLR(optimizer, **options), []
    for _ in range(13):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return found


def test_warm_up_then_cosine():
    found = rates(total_steps=10, warmup=0.2, min_lr=0.1)
    for k, highest in enumerate((1.0, 2.0)):
        low, high = 0.1, highest - 0.1
        cosine = [low + high * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(9)]
        wanted = [low, low + high / 2, *cosine, low, low]
        assert [rate[k] for rate in found] == pytest.approx(wanted)


def test_without_a_warm_up():
    found = rates(total_steps=4)
    assert [rate[0] for rate in found[:6]] == pytest.approx([1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0, 0])


def test_goes_on_after_a_resume():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = WarmupCosineLR(optimizer, 10, 0.3)
    for _ in range(5):
        optimizer.step()
        schedule.step()
    resumed = WarmupCosineLR(torch.optim.SGD([torch.zeros(1)], lr=1.0), 10, 0.3)
    resumed.load_state_dict(schedule.state_dict())
    for one in (schedule, resumed):
        one.optimizer.step()
        one.step()
    assert resumed.get_last_lr() == schedule.get_last_lr()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "total_steps: wanted at least 1, got None"),
        ({"total_steps": 0}, "total_steps: wanted at least 1, got 0"),
        ({"total_steps": 5, "warmup": 1.0}, r"warmup: wanted a share of the training, 0 to 1, got 1\.0"),
    ],
)
def test_wrong(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        rates(**options)


def test_warm_up_then_steps():
    optimizer, found = torch.optim.SGD([torch.zeros(1)], lr=1.0), []
    schedule = WarmupMultiStepLR(optimizer, milestones=[6, 8], warmup_steps=4, warmup_factor=0.2)
    for _ in range(10):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert found == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 0.1, 0.1, 0.01, 0.01])
