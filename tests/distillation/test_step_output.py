"""The names of outputs, and an objective on those of several teachers without a module."""

from types import SimpleNamespace

import pytest
import torch

from ndkd.distillation.objective import LossTerm, Objective
from ndkd.distillation.step_output import StepOutput
from ndkd.errors import NdkdError
from ndkd.losses import KDLoss, NDLoss, kd_loss, nd_loss
from ndkd.models.output import EnsembleOutput, ModelOutput


@pytest.fixture
def step():
    """Of a student, and of teachers a and b; b is recorded."""
    random = torch.Generator().manual_seed(0)
    student, a = (ModelOutput(*torch.randn(2, 4, 3, generator=random)) for _ in range(2))
    b = SimpleNamespace(logits=torch.randn(4, 3, generator=random), norm=torch.rand(4, generator=random))
    student.projected = {"a": student.embedding, "b": 2 * student.embedding}
    means = {name: torch.randn(3, 3, generator=random) for name in "ab"}
    return StepOutput(student, torch.tensor([0, 1, 2, 0]), EnsembleOutput({"a": a, "b": b}), means)


def test_values_by_name(step):
    assert step.value("target") is step.target
    assert step.value("b.norm") is step.teacher.each["b"].norm
    assert step.value("class_means.b") is step.class_means["b"]
    assert step.value("student.projected.b") is step.student.projected["b"]
    assert torch.equal(step.value("teacher.logits"), (step.value("a.logits") + step.value("b.logits")) / 2)
    for name in ("b.embedding", "c.logits", "class_means.c", "student.projected.c", "nothing", ""):
        with pytest.raises(LookupError):
            step.value(name)


def test_an_objective_by_hand(step):
    objective = Objective({"kd": LossTerm(KDLoss()), "nd": LossTerm(NDLoss(), teacher="b")})
    _, values = objective(step)
    assert torch.equal(values["kd"], kd_loss(step.student.logits, step.value("teacher.logits")))
    arguments = step.student.projected["b"], step.value("b.norm"), step.class_means["b"], step.target
    assert torch.equal(values["nd"], nd_loss(*arguments))
    assert str(objective) == "1·kd + 1·nd"


def test_what_is_on_offer(step):
    objective = Objective({"kd": LossTerm(KDLoss(), inputs=["student.logits", "c.logits"])})
    of_a = [f"a.{name}" for name in ("logits", "embedding", "norm", "projected")]
    offer = ["student.logits", "student.embedding", "student.norm", "student.projected.a", "student.projected.b"]
    offer += ["target", "teacher.logits", *of_a, "b.logits", "b.norm", "class_means.a", "class_means.b"]
    with pytest.raises(NdkdError, match=f"nothing provides 'c.logits'; on offer: {', '.join(offer)}$"):
        objective(step)
