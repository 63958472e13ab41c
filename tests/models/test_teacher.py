"""BatchNorm folded into the convolutions of a teacher."""

import copy

import pytest
import torch
from torch import nn

from ndkd.models import FeatureExtractor, build_model
from ndkd.models.teacher import fold_batchnorm, freeze


def lived_in(model):
    """A model as training leaves it: BatchNorm has statistics, scales and shifts of its own."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return freeze(model)


def net(*layers):
    return lived_in(nn.Sequential(*layers))


def norms(model):
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def conv(**options):
    return nn.Conv2d(4, 4, 3, padding=1, **options)


class Net(nn.Module):
    """One forward pass or another over a convolution and a norm."""

    def __init__(self, forward):
        super().__init__()
        self.conv, self.other, self.norm = conv(), conv(), nn.BatchNorm2d(4)
        self.compute = forward

    def forward(self, x):
        return self.compute(self, x)


STAYING = {"wrn_16_1": 7}  # BatchNorms that do not follow a convolution
TAPS = {
    "resnet8": ["layer1.0.preact", "layer2", "avgpool"],
    "wrn_16_1": ["block2.layer.0.bn1", "block3.layer.0.bn1", "bn1"],
    "vgg8": [],
    "mobilenet_v2_half": ["blocks.1"],
    "shufflenet_v2": ["layer1"],
    "shufflenet_v1": ["layer1"],
    "resnet50": ["layer1.2.preact"],
}


@pytest.mark.parametrize("name", TAPS)
@torch.no_grad()
def test_folded_zoo_gives_the_same(name):
    torch.manual_seed(0)
    plain = lived_in(FeatureExtractor(build_model(f"cifar/{name}", 10), taps=TAPS[name]))
    images = torch.rand(2, 3, 32, 32)
    before = plain(images)
    count = norms(plain)
    folded = fold_batchnorm(plain.model)
    assert norms(plain) == count - folded == STAYING.get(name, 0)
    after = plain(images)
    for wanted, got in zip(
        [before.logits, before.embedding, *before.feature_maps],
        [after.logits, after.embedding, *after.feature_maps],
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())


@torch.no_grad()
def test_torchvision_models_fold():
    torch.manual_seed(0)
    model = lived_in(build_model("torchvision/mobilenet_v3_small", 10))
    images = torch.rand(2, 3, 32, 32)
    before = model(images)
    assert fold_batchnorm(model) == 34
    assert norms(model) == 0
    torch.testing.assert_close(model(images), before, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_every_kind_of_pair(bias, affine):
    model = nn.Sequential(conv(bias=bias, groups=2, stride=2), nn.BatchNorm2d(4, affine=affine, eps=0.1))
    nn.init.uniform_(model[1].running_mean)
    nn.init.uniform_(model[1].running_var)
    freeze(model)
    x = torch.randn(2, 4, 8, 8)
    before = model(x)
    assert fold_batchnorm(model) == 1
    assert type(model[1]) is nn.Identity
    assert not any(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)


class Scaled(nn.Conv2d):
    """A convolution with a mind of its own."""

    def forward(self, x):
        return 2 * super().forward(x)


def two_uses(self, x):
    map = self.conv(x)
    return self.norm(map) + map


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(net(nn.BatchNorm2d(4), conv()), id="norm first"),
        pytest.param(net(conv(), nn.ReLU(), nn.BatchNorm2d(4)), id="not neighbours"),
        pytest.param(net(Scaled(4, 4, 3), nn.BatchNorm2d(4)), id="subclass"),
        pytest.param(net(conv(), nn.BatchNorm2d(4, track_running_stats=False, affine=False)), id="batch statistics"),
        pytest.param(lived_in(Net(two_uses)), id="map used twice"),
        pytest.param(lived_in(Net(lambda self, x: self.norm(self.conv(self.conv(x))))), id="convolution called twice"),
        pytest.param(lived_in(Net(lambda self, x: self.norm(self.other(self.norm(x))))), id="norm called twice"),
        pytest.param(lived_in(Net(lambda self, x: self.norm(self.conv(x)) * self.norm.weight.sum())), id="weight read"),
        pytest.param(lived_in(Net(lambda self, x: self.norm(self.conv(x + 1 if x.sum() > 0 else x)))), id="branch"),
    ],
)
@torch.no_grad()
def test_what_cannot_be_folded_is_left(model):
    x = torch.randn(2, 4, 8, 8)
    before, state = model(x), copy.deepcopy(model.state_dict())
    assert fold_batchnorm(model) == 0
    assert model.state_dict().keys() == state.keys()
    assert torch.equal(model(x), before)


@pytest.mark.parametrize(
    ("tap", "folds"),
    [("0.0", 0), ("0.1", 0), ("0.1:input", 0), ("0", 1), ("1:input", 1), ("inner", 0)],
)
@torch.no_grad()
def test_a_tap_between_convolution_and_norm_keeps_them_apart(tap, folds):
    block = nn.Sequential(conv(), nn.BatchNorm2d(4)) if tap != "inner" else nn.Sequential()
    model = nn.Sequential(block, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    if tap == "inner":  # a container that holds the convolution alone
        model.insert(0, nn.Sequential(conv()))
        model.insert(1, nn.BatchNorm2d(4))
    extractor = lived_in(FeatureExtractor(model, taps=[tap.replace("inner", "0")]))
    images = torch.rand(2, 4, 8, 8)
    before = extractor(images).feature_maps[0]
    assert fold_batchnorm(extractor.model) == folds
    torch.testing.assert_close(extractor(images).feature_maps[0], before, rtol=1e-5, atol=1e-5)
