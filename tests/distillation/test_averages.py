"""What an epoch's losses come to, and which of them broke first."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ndkd.callbacks import checkpoint_callbacks
from ndkd.distillation.objective import LossTerm
from ndkd.errors import NdkdError
from ndkd.models import build_model
from ndkd.runs import Run
from tests.distillation.watching import Spoiled


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_loss_that_is_not_finite(fit, make_module, terms, tmp_path, value):
    run = Run(tmp_path)
    losses = terms("ce") | {"spoiled": LossTerm(Spoiled(step=5, value=value))}  # the last of two epochs' six steps
    message = f"^loss spoiled became {value} in epoch 1, the last checkpoint is of epoch 0; lower the learning rate"
    with pytest.raises(NdkdError, match=message):
        fit(make_module(losses), *checkpoint_callbacks(run), epochs=3)
    assert torch.load(run.checkpoint("last"), weights_only=True)["epoch"] == 0


def test_the_term_that_broke_is_named_though_it_spoils_the_others(fit, make_module, terms, tmp_path):
    run = Run(tmp_path)
    losses = terms("ce") | {"spoiled": LossTerm(Spoiled(step=0, value=float("nan")))}
    with pytest.raises(NdkdError, match="^loss spoiled became nan in epoch 0, there is no checkpoint yet; lower the"):
        fit(make_module(losses), *checkpoint_callbacks(run))
    assert not list(tmp_path.rglob("*.ckpt"))


class Overflowing(nn.Module):
    """A teacher whose logits are not finite for bright images."""

    def __init__(self):
        super().__init__()
        self.model = build_model("cifar/resnet8", 10)
        self.fc = nn.Linear(10, 10)

    def forward(self, images):
        return self.fc(self.model(images)) / (images.mean((1, 2, 3)) < 0.9).float()[:, None]


@pytest.mark.parametrize("names", [("ce", "kd"), ("kd",)])
def test_a_teacher_that_breaks_is_told_from_a_student(fit, make_module, terms, names):
    images = torch.rand(8, 3, 8, 8)
    images[5] = 1.0
    loader = DataLoader(TensorDataset(images, torch.arange(8)), batch_size=4)
    message = "^the teacher's outputs became nan or inf in epoch 0, there is no checkpoint yet; look at its weights"
    with pytest.raises(NdkdError, match=message):
        fit(make_module(terms(*names), teacher=Overflowing(), num_classes=10), loaders={"train_dataloaders": loader})


def test_a_student_that_breaks_beside_a_sound_teacher(fit, make_module, terms):
    losses = terms("kd") | {"spoiled": LossTerm(Spoiled(step=0, value=float("inf")))}
    with pytest.raises(NdkdError, match="^loss spoiled became nan in epoch 0"):
        fit(make_module(losses))


def test_a_teacher_whose_weights_are_no_numbers(fit, make_module, terms):
    teacher = build_model("cifar/resnet8", 10)
    nn.init.constant_(teacher.fc.bias, float("nan"))
    with pytest.raises(NdkdError, match="^teacher: not all numbers in fc.bias are finite; is its checkpoint damaged"):
        fit(make_module(terms("kd"), teacher=teacher))
