"""MobileNetV2 at half width for small images: https://arxiv.org/abs/1801.04381."""

from functools import partial

from torch import Tensor, nn

from ndkd.models.layers import ConvNormReLU, initialise, stage

# Table 2 of the paper with half its widths and, in the second row, stride 1: expansion, width, blocks, stride.
STAGES = (
    (1, 8, 1, 1),
    (6, 12, 2, 1),
    (6, 16, 3, 2),
    (6, 32, 4, 2),
    (6, 48, 3, 1),
    (6, 80, 3, 2),
    (6, 160, 1, 1),
)


class InvertedResidual(nn.Module):
    """1×1 convolution to more channels, depthwise 3×3, 1×1 back to few, with no ReLU after the last."""

    def __init__(self, in_width: int, width: int, stride: int, expansion: int):
        super().__init__()
        mid_width = expansion * in_width
        self.conv = nn.Sequential(
            *ConvNormReLU(in_width, mid_width, 1),
            *ConvNormReLU(mid_width, mid_width, 3, stride, groups=mid_width),
            *ConvNormReLU(mid_width, width, 1, activation_layer=None),
        )
        self.has_shortcut = stride == 1 and in_width == width

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.has_shortcut else self.conv(x)


class MobileNetV2(nn.Module):
    """Seven stages of inverted residuals; the embedding has 1280 channels.

    Maps to tap: ``blocks.1``, ``blocks.2``, ``blocks.4`` and ``blocks.6``, the last stage of each resolution, and
    ``avgpool``. The stages end without a ReLU, so that these maps serve as pre-activations too.

    Args:
        num_classes: number of logits.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        width, stages = 16, []
        self.conv1 = ConvNormReLU(3, width, 3, stride=2)
        for expansion, out_width, blocks, stride in STAGES:
            stages.append(stage(partial(InvertedResidual, expansion=expansion), width, out_width, blocks, stride))
            width = out_width
        self.blocks = nn.Sequential(*stages)
        self.conv2 = ConvNormReLU(width, 1280, 1)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        linear = nn.Linear(1280, num_classes)
        self.classifier = nn.Sequential(linear)
        initialise(self)
        nn.init.normal_(linear.weight, std=0.01)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv2(self.blocks(self.conv1(images)))
        return self.classifier(self.avgpool(x).flatten(1))
