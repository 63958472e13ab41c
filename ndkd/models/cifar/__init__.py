"""The CIFAR model zoo that published teacher checkpoints are made for; every entry takes ``num_classes``."""

from functools import partial

from ndkd.models.cifar.resnet import ResNet
from ndkd.models.cifar.wrn import WideResNet

MODELS = {
    **{f"resnet{depth}": partial(ResNet, depth=depth) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": partial(ResNet, depth=depth, widths=(32, 64, 128, 256)) for depth in (8, 32)},
    **{f"wrn_{d}_{w}": partial(WideResNet, depth=d, widen=w) for d, w in ((16, 1), (16, 2), (40, 1), (40, 2))},
}
