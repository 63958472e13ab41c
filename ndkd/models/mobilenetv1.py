"""MobileNetV1 for ImageNet: https://arxiv.org/abs/1704.04861."""

from torch import Tensor, nn

from ndkd.models.layers import ConvNormReLU

# Table 1 of the paper: width and stride of each depthwise-separable block
BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))


class SeparableBlock(nn.Module):
    """Depthwise 3×3 and 1×1 convolution; ``preact`` sees what enters the last ReLU."""

    def __init__(self, in_width: int, width: int, stride: int):
        super().__init__()
        self.depthwise = ConvNormReLU(in_width, in_width, 3, stride, groups=in_width)
        self.pointwise = ConvNormReLU(in_width, width, 1, activation_layer=None)
        self.preact = nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.preact(self.pointwise(self.depthwise(x))))


class MobileNetV1(nn.Module):
    """Thirteen depthwise-separable blocks; the embedding has 1024 channels.

    Maps to tap: ``blocks.2``, ``blocks.4``, ``blocks.10``, ``blocks.12``, the last block of each resolution (before its
    ReLU: ``blocks.2.preact`` …), and ``avgpool``. The weights start as torch draws them, as in the published models.

    Args:
        num_classes: number of logits.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        width, blocks = 32, []
        self.stem = ConvNormReLU(3, width, 3, stride=2)
        for out_width, stride in BLOCKS:
            blocks.append(SeparableBlock(width, out_width, stride))
            width = out_width
        self.blocks = nn.Sequential(*blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)  # of 7×7 at 224 pixels
        self.fc = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.avgpool(self.blocks(self.stem(images))).flatten(1))
