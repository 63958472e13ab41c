"""Gradients of single terms, against those that a backward pass of each leaves."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ndkd.distillation.objective import LossTerm, Objective, StepOutput
from ndkd.distillation.term_gradients import term_gradients
from ndkd.losses import KDLoss, NDLoss
from ndkd.models.output import ModelOutput


class Silent(nn.Module):
    """A loss that does not depend on the student."""

    inputs = ("student.logits",)

    def forward(self, logits):
        return logits.detach().mean()


@pytest.fixture
def step():
    """A student of two layers, of which the class means see the first, and an output of it."""
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    embedding = student[:2](torch.randn(8, 6))
    logits = student[2](embedding)
    teacher = ModelOutput(torch.randn(8, 3), torch.randn(8, 5))
    output = StepOutput(ModelOutput(logits, embedding), torch.arange(8) % 3, teacher, torch.randn(3, 5))
    return SimpleNamespace(student=student, output=output)


def terms(**losses):
    inputs = ["student.logits", "target"]
    own = {
        "ce": LossTerm(nn.CrossEntropyLoss(), 3.0, inputs=inputs),
        "kd": LossTerm(KDLoss()),
        "nd": LossTerm(NDLoss()),
    }
    return Objective({**own, **losses})


def plain(student, value):
    """The gradient of a value on all parameters, by a backward pass."""
    student.zero_grad()
    value.backward(retain_graph=True)
    return torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in student.parameters()]
    )


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_norms_and_cosines_are_those_of_backward_passes(step, scale):
    objective = terms(silent=LossTerm(Silent()))
    total, values = objective(step.output)
    found = term_gradients(objective, step.output, values, step.student.parameters(), scale)
    assert all(parameter.grad is None for parameter in step.student.parameters())
    total.backward(retain_graph=True)  # the graph is still there
    toward = plain(step.student, values["ce"])
    for name in ("ce", "kd", "nd"):
        own = plain(step.student, values[name])
        assert found[name].norm == pytest.approx(own.norm().item(), rel=1e-5)
        assert found[name].cosine_to_ce == pytest.approx(F.cosine_similarity(own, toward, dim=0).item(), abs=1e-5)
    assert found["ce"].cosine_to_ce == pytest.approx(1)
    assert found["silent"] == (0, 0)


def test_without_a_term_of_the_cross_entropy_one_is_made(step):
    objective = Objective({"kd": LossTerm(KDLoss())})
    _, values = objective(step.output)
    found = term_gradients(objective, step.output, values, step.student.parameters())
    toward = plain(step.student, F.cross_entropy(step.output.student.logits, step.output.target))
    own = plain(step.student, values["kd"])
    assert found["kd"].cosine_to_ce == pytest.approx(F.cosine_similarity(own, toward, dim=0).item(), abs=1e-5)


def test_frozen_parameters_do_not_count(step):
    objective = terms()
    _, values = objective(step.output)
    kept = list(step.student[2].parameters())
    for parameter in kept:
        parameter.requires_grad_(False)
    found = term_gradients(objective, step.output, values, step.student.parameters())
    for parameter in kept:
        parameter.requires_grad_(True)
    own = plain(step.student[0], values["kd"])
    assert found["kd"].norm == pytest.approx(own.norm().item(), rel=1e-5)


def test_of_many_parameters_the_small_ones_count():
    """Of 20 million numbers that are added one to the next, the last ones change nothing."""
    weight = nn.Parameter(torch.zeros(20_000_000))
    pull = (weight * 0.1).sum()
    student = ModelOutput(torch.stack([pull, -pull])[None], torch.zeros(1, 1))
    objective = Objective({"ce": LossTerm(nn.CrossEntropyLoss(), inputs=["student.logits", "target"])})
    output = StepOutput(student, torch.zeros(1, dtype=torch.long))
    found = term_gradients(objective, output, objective(output)[1], [weight])["ce"]
    assert found.norm == pytest.approx(0.1 * 20_000_000**0.5, rel=1e-6)
    assert found.cosine_to_ce == pytest.approx(1, abs=1e-6)
