"""The CIFAR model zoo that published teacher checkpoints are made for; every entry takes ``num_classes``."""

from collections.abc import Callable
from functools import partial

from torch import nn

from ndkd.models.cifar.mobilenetv2 import MobileNetV2
from ndkd.models.cifar.resnet import ResNet
from ndkd.models.cifar.resnet50 import ResNet50
from ndkd.models.cifar.shufflenetv1 import ShuffleNetV1
from ndkd.models.cifar.shufflenetv2 import ShuffleNetV2
from ndkd.models.cifar.vgg import VGG
from ndkd.models.cifar.wrn import WideResNet

MODELS: dict[str, Callable[..., nn.Module]] = {
    **{f"resnet{depth}": partial(ResNet, depth=depth) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": partial(ResNet, depth=depth, widths=(32, 64, 128, 256)) for depth in (8, 32)},
    "resnet50": ResNet50,
    **{f"wrn_{d}_{w}": partial(WideResNet, depth=d, widen=w) for d, w in ((16, 1), (16, 2), (40, 1), (40, 2))},
    **{f"vgg{depth}": partial(VGG, depth=depth) for depth in (8, 13)},
    "mobilenet_v2_half": MobileNetV2,
    "shufflenet_v1": ShuffleNetV1,
    "shufflenet_v2": ShuffleNetV2,
}
