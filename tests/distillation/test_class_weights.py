"""How much each class counts."""

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.nn import functional as F

from ndkd.distillation.class_weights import class_weights, set_class_weights
from ndkd.distillation.objective import LossTerm, Objective, StepOutput
from ndkd.losses import KDLoss
from ndkd.models.output import ModelOutput
from tests.command import refusal

CE = ["student.logits", "target"]


def output():
    random = torch.Generator().manual_seed(0)
    logits, embedding = (torch.randn(6, 3, generator=random) for _ in range(2))
    return StepOutput(ModelOutput(logits, embedding), torch.arange(6) % 3, ModelOutput(logits.flip(0), embedding))


def objective(wanted, loss=None, **options):
    return Objective({"ce": LossTerm(loss or nn.CrossEntropyLoss(), inputs=CE, class_weights=wanted, **options)})


def test_balanced_weights_are_scikit_learns():
    target = [0] * 7 + [1] * 2 + [2]
    wanted = compute_class_weight("balanced", classes=np.arange(3), y=target)
    assert torch.allclose(class_weights("balanced", 3, [7, 2, 1]).double(), torch.tensor(wanted))


@pytest.mark.parametrize(("wanted", "weights"), [("balanced", [0.5, 3.0, 1.5]), ([1, 0, 2.5], [1.0, 0.0, 2.5])])
@pytest.mark.parametrize("kind", [nn.CrossEntropyLoss, nn.MultiMarginLoss])
def test_a_loss_is_weighted(wanted, weights, kind):
    found = objective(wanted, kind())
    found.build(output(), [6, 1, 2])
    step = output()
    _, values = found(step)
    assert torch.equal(values["ce"], kind(weight=torch.tensor(weights))(step.student.logits, step.target))
    assert not found.state_dict()  # they come from the data
    assert next(found.buffers()).tolist() == pytest.approx(weights)  # and go where the module goes


class Own(nn.Module):
    """A loss whose weight is no buffer yet."""

    def __init__(self):
        super().__init__()
        self.weight = None

    def forward(self, logits, target):
        return F.cross_entropy(logits, target, self.weight)


def test_a_loss_of_ones_own_is_weighted():
    loss = Own()
    set_class_weights(loss, torch.ones(3))
    assert loss.double().weight.dtype == torch.float64


@pytest.mark.parametrize(
    ("term", "counts", "message"),
    [
        ({"wanted": [1, 2]}, None, "loss ce: class_weights: wanted 3 numbers, one per class, got 2"),
        ({"wanted": "balanced"}, None, "loss ce: class_weights: balanced wants data with class_counts; give a list, "
            "one number per class"),
        ({"wanted": "balanced"}, [1, 0, 3], "loss ce: class_weights: balanced wants a training image of each class, "
            "class 1 has none"),
        ({"wanted": "balanced"}, [1, 2], "loss ce: class_weights: the data counts images of 2 classes, the student "
            "has 3"),
        ({"wanted": [1, 1, 1], "loss": nn.L1Loss}, None, "loss ce: L1Loss has no weight per class; class_weights are "
            "for losses that have one, such as torch.nn.CrossEntropyLoss"),
    ],
)  # fmt: skip
def test_what_does_not_fit(term, counts, message):
    found = objective(term["wanted"], term.get("loss", nn.CrossEntropyLoss)())
    assert refusal(found.build, output(), counts) == message


def test_layers_are_no_weights():
    loss = nn.Bilinear(2, 2, 1)
    pytest.raises(ValueError, set_class_weights, loss, torch.ones(2)).match("^Bilinear has no weight per class; ")


@pytest.mark.parametrize("wanted", ["equal", [1, -1], [0, 0], [float("nan")], []])
def test_weights_that_are_none(wanted):
    message = refusal(LossTerm, nn.CrossEntropyLoss(), class_weights=wanted)
    assert message == f"class_weights: wanted balanced or a list of numbers from 0 on, not all 0, got {wanted}"


def test_they_are_not_forgotten_where_nothing_is_built():
    message = "class_weights are not known yet: call build(output, class_counts) before the first step"
    assert refusal(objective("balanced"), output()) == message


def test_they_are_shown():
    found = Objective(
        {
            "ce": LossTerm(nn.CrossEntropyLoss(), inputs=CE, class_weights="balanced", warmup_epochs=2),
            "kd": LossTerm(KDLoss()),
        }
    )
    assert str(found) == "1·ce (warm-up 2 epochs, class weights) + 1·kd"
    found.build(output(), [60, 30, 3])
    assert str(found) == "1·ce (warm-up 2 epochs, class weights 0.517 to 10.3) + 1·kd"


def test_they_come_from_the_training_images(fit, make_module, terms, tiny_data):
    data = tiny_data(num_classes=3)
    data.class_counts = {"train": [10, 20, 40], "val": [1, 1, 1]}
    losses = terms("ce")
    losses["ce"].class_weights = "balanced"
    module = make_module(losses, teacher=None)
    fit(module, data=data)
    assert module.objective.terms["ce"].loss.weight.tolist() == pytest.approx([70 / 30, 70 / 60, 70 / 120])
