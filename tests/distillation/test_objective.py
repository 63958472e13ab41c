"""The sum of loss terms, with and without a trainer."""

import dataclasses
import doctest
import re

import pytest
import torch
from torch import nn

from ndkd.distillation import objective
from ndkd.distillation.objective import LossTerm, Objective, StepOutput, check_names
from ndkd.errors import NdkdError
from ndkd.losses import KDLoss
from ndkd.models.output import ModelOutput
from tests.command import refusal
from tests.distillation.watching import (
    Watch,
    assert_equal,
    copied,
)


@pytest.mark.parametrize(
    ("warmup_epochs", "epoch", "factor"), [(0, 0, 2.0), (4, 0, 0.0), (4, 1, 0.5), (4, 4, 2.0), (4, 9, 2.0)]
)
def test_factor(warmup_epochs, epoch, factor):
    assert LossTerm(nn.MSELoss(), weight=2.0, warmup_epochs=warmup_epochs).factor(epoch) == factor


@pytest.mark.parametrize(("epoch", "factor"), [(0, 0.5), (2, 1.5), (3, 2.0), (9, 2.0)])
def test_epochs_of_the_warmup_may_be_counted_from_one(epoch, factor):
    assert LossTerm(nn.MSELoss(), weight=2.0, warmup_epochs=4, warmup_from=1).factor(epoch) == factor


@pytest.mark.parametrize("name", ["warmup_epochs", "warmup_from"])
def test_negative_warmup(name):
    with pytest.raises(NdkdError, match=f"^{name}: wanted 0 or more, got -1$"):
        LossTerm(nn.MSELoss(), **{name: -1})


def output(narrow=False, seed=0):
    """What a student and a teacher make of six images of four classes."""
    random = torch.Generator().manual_seed(seed)
    student, teacher = (
        ModelOutput(torch.randn(6, 4, generator=random), torch.randn(6, 8, generator=random)) for _ in range(2)
    )
    student.embedding.requires_grad_()
    means = torch.randn(4, 8, generator=random)
    return StepOutput(student, torch.arange(6) % 4, teacher, means)


def test_doctest():
    assert doctest.testmod(objective).failed == 0


def test_kd_plus_plus_in_a_loop_of_ones_own_is_bit_for_bit_the_trainers(fit, make_module, terms):
    """Warm-up, class means and optimizer included, without Lightning."""
    losses = terms(ce=1.0, kd=2.0, nd=1.5)
    losses["kd"].warmup_epochs = 3
    module, watch = make_module(losses), Watch()
    fit(module, watch, epochs=2)
    trained, student = copied(module.student), module.student
    student.load_state_dict(watch.start)
    optimizer, criterion = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9), Objective(losses)
    for step, (images, target) in enumerate(watch.batches):
        images = images.to(memory_format=torch.channels_last)
        with torch.no_grad():
            teacher = module.teacher(images)
        total, _ = criterion(StepOutput(student(images), target, teacher, module.class_means), epoch=step // 3)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert_equal(copied(student), trained)


def test_the_callers_terms_are_left_as_they_are(terms):
    losses = terms(kd=1.0, nd=0.0)
    before = {name: dataclasses.replace(term) for name, term in losses.items()}
    criterion = Objective(losses)
    criterion(output())
    assert losses == before
    assert criterion.terms["kd"].inputs == ["student.logits", "teacher.logits"]
    assert losses["kd"].inputs is None


def test_by_default_every_warmup_is_over(terms):
    losses = terms(ce=1.0, kd=2.0)
    losses["kd"].warmup_epochs = 4
    total, values = Objective(losses)(output())
    assert total == values["ce"] + 2 * values["kd"]
    halfway, _ = Objective(losses)(output(), epoch=2)
    assert halfway == values["ce"] + values["kd"]


def test_other_factors_than_the_epochs(terms):
    objective, made = Objective(terms(ce=1.0, kd=3.0)), output()
    assert objective.factors() == {"ce": 1.0, "kd": 3.0}
    total, values = objective(made, factors={"ce": 0.5, "kd": torch.tensor(2.0)})
    assert torch.equal(total, 0.5 * values["ce"] + 2 * values["kd"])


def test_what_a_loss_learns_belongs_to_the_objective(terms):
    criterion = Objective(terms("ce", "review"))
    assert not list(criterion.parameters())
    maps = [torch.randn(2, 4, 8, 8), torch.randn(2, 8, 4, 4)]
    both = [ModelOutput(torch.randn(2, 4), torch.randn(2, 8), feature_maps=list(maps)) for _ in range(2)]
    criterion.build(StepOutput(both[0], torch.tensor([0, 1]), both[1]))
    assert all(name.startswith("review.") for name, _ in criterion.named_parameters())
    assert list(criterion.parameters())


def test_an_objective_reads_as_a_sum(terms):
    losses = terms(ce=1.0, kd=0.9, nd=1e-3)
    losses["kd"].warmup_epochs = 1
    assert str(Objective(losses)) == "1·ce + 0.9·kd (warm-up 1 epoch) + 0.001·nd"


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ({}, "no loss has a weight other than 0; give at least one term under losses"),
        ({"ce": LossTerm(nn.CrossEntropyLoss(), 0.0)}, "no loss has a weight other than 0"),
        ({"ce": LossTerm(nn.CrossEntropyLoss())}, "loss ce: CrossEntropyLoss does not say its inputs; set losses.ce"),
        ({"ce": LossTerm(nn.MSELoss(), inputs=["target", "target"])}, "no loss reads anything of the student"),
        ({"build": LossTerm(KDLoss())}, "losses: 'build' is taken; name the term otherwise"),
        ({"a b": LossTerm(KDLoss())}, "losses: 'a b' is not a word; name the term otherwise"),
    ],
)
def test_an_objective_that_is_none(losses, message):
    with pytest.raises(NdkdError, match=re.escape(message)):
        Objective(losses)


def test_an_output_that_is_not_there(terms):
    without = StepOutput(output().student, torch.arange(6) % 4)
    with pytest.raises(NdkdError, match="loss kd: nothing provides 'teacher.logits'; on offer: student.logits, "):
        Objective(terms("ce", "kd"))(without)


def test_a_value_that_a_loss_refuses(terms):
    beyond = dataclasses.replace(output(), target=torch.full((6,), 4))
    with pytest.raises(NdkdError, match="^loss nd: "):
        Objective(terms("nd"))(beyond)


@pytest.mark.parametrize("weight", [None, -1, float("nan"), float("inf")])
def test_the_weight_of_a_term(weight):
    assert "weight: wanted a number from 0 on, got " in refusal(LossTerm, nn.L1Loss(), weight)


def test_other_options_of_a_term():
    assert "warmup_epochs: wanted 0 or more, got None" in refusal(LossTerm, nn.L1Loss(), warmup_epochs=None)
    assert "warmup_from: wanted 0 or more, got -1" in refusal(LossTerm, nn.L1Loss(), warmup_from=-1)
    assert "inputs: wanted the names" in refusal(LossTerm, nn.L1Loss(), inputs=[])
    assert "loss: wanted a loss" in refusal(LossTerm, None)


@pytest.mark.parametrize(
    "name", ["a.b", "../x", "", "1", 1, True, "a b", "train", "forward", "build", "terms", "loss", "lr"]
)
def test_the_name_of_a_term(name):
    assert "name the term otherwise" in refusal(check_names, [name])


def test_names_that_terms_may_have():
    check_names(["kd", "kd++", "kd-2", "ND", "größe", "_x"])
