"""Projector, frozen teacher and the output's default."""

import pytest
import torch
from torch import nn

from ndkd.models import ModelOutput, build_model
from ndkd.models.projector import Projector
from ndkd.models.teacher import freeze


def test_projector_layers():
    projector = Projector(6, 9)
    assert [type(layer) for layer in projector] == [nn.BatchNorm1d, nn.Dropout, nn.Linear]
    assert projector(torch.rand(4, 6)).shape == (4, 9)
    assert projector[1].p == 0.5
    assert not projector[2].bias.any()
    assert projector[2].weight.any()


def test_projector_drops_before_the_linear():
    projector = Projector(6, 9, dropout=1.0)
    nn.init.ones_(projector[2].bias)
    assert torch.equal(projector(torch.rand(4, 6)), torch.ones(4, 9))


def test_projector_forgets_the_scale():
    torch.manual_seed(0)
    projector, x = Projector(6, 9, dropout=0.0).train(), 5 * torch.randn(32, 6)
    torch.testing.assert_close(projector(100 * x), projector(x), rtol=1e-4, atol=1e-5)


def test_frozen_teacher():
    model = build_model("cifar/resnet8", 10)
    assert freeze(model) is model
    assert not any(part.training for part in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model(torch.rand(1, 3, 8, 8)).requires_grad


def test_projected_is_the_embedding_by_default():
    logits, embedding, projected = torch.rand(2, 3), torch.rand(2, 4), torch.rand(2, 5)
    assert ModelOutput(logits, embedding).projected is embedding
    assert ModelOutput(logits, embedding, projected).projected is projected
    first, second = ModelOutput(logits, embedding).feature_maps, ModelOutput(logits, embedding).feature_maps
    assert first == []
    assert first is not second


def test_start_of_its_linear_layer():
    torch.manual_seed(0)
    linear = Projector(300, 200, std=0.01)[2]
    assert linear.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert linear.bias.std().item() == pytest.approx(0.01, rel=0.2)
    assert not Projector(300, 200)[2].bias.any()
