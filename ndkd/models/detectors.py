"""Faster R-CNN with a feature pyramid: https://arxiv.org/abs/1506.01497, https://arxiv.org/abs/1612.03144."""

from pathlib import Path
from typing import Any

from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from ndkd.errors import NdkdError
from ndkd.models.checkpoint import load_weights, model_weights, read_checkpoint
from ndkd.models.hubs import from_torchvision

MOBILENET_V2 = {"3": 24, "6": 32, "13": 96, "17": 320}  # the last block of each resolution, and its width


def build_detector(
    backbone: str, num_classes: int, pretrained: bool = False, checkpoint: str | Path | None = None, **options: Any
) -> FasterRCNN:
    """Torchvision's Faster R-CNN on four stages of a ResNet or of MobileNetV2.

    A backbone that starts from weights for ImageNet keeps their BatchNorm; a ResNet also its first stage, as is usual.

    Args:
        backbone: ``resnet18``, ``resnet50``, ``resnet101``, …, ``mobilenet_v2``.
        num_classes: with the background, which is class 0.
        pretrained: start from weights for ImageNet, of torchvision's hub or of ``checkpoint``.
        checkpoint: file with a classifier's weights.
        options: of torchvision's ``FasterRCNN``: ``min_size``, ``max_size``, …

    Raises:
        NdkdError: an unknown backbone, or weights that do not fit or cannot be fetched.
    """
    if "resne" not in backbone and backbone != "mobilenet_v2":
        raise NdkdError(
            f"unknown model 'detector/{backbone}'; wanted a ResNet such as detector/resnet18, or mobilenet_v2"
        )
    norm = SteadyBatchNorm2d if pretrained else nn.BatchNorm2d
    network: Any = from_torchvision(backbone, 1000, pretrained and checkpoint is None, norm_layer=norm)
    if backbone == "mobilenet_v2":
        network.classifier, body, widths = nn.Identity(), network.features[:18], MOBILENET_V2
        first_stage = []  # published MobileNetV2 detectors train all of it
    else:
        deepest = network.fc.in_features  # each stage is twice as wide as the one before
        widths = {"layer1": deepest // 8, "layer2": deepest // 4, "layer3": deepest // 2, "layer4": deepest}
        network.fc, body = nn.Identity(), network
        first_stage = [network.conv1, network.layer1]
    if checkpoint is not None:
        own = network.state_dict()
        weights = {k: v for k, v in model_weights(read_checkpoint(checkpoint), own).items() if k in own}
        load_weights(network, weights, f"checkpoint {checkpoint}")
    if pretrained:
        for part in first_stage:
            part.requires_grad_(False)
    levels = {name: str(level) for level, name in enumerate(widths)}
    pyramid = BackboneWithFPN(body, levels, list(widths.values()), 256, LastLevelMaxPool())
    return FasterRCNN(pyramid, num_classes, **options)


class SteadyBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm that stays as it was loaded; its keys are BatchNorm's, so that its weights serve either."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "SteadyBatchNorm2d":
        return super().train(False)
