"""ResNets for small images: https://arxiv.org/abs/1512.03385, section 4.2."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from ndkd.models.layers import initialise, stage


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut; ``preact`` sees their sum before the last ReLU."""

    def __init__(self, in_width: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.preact = nn.Identity()
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_width != width:
            self.downsample = nn.Sequential(nn.Conv2d(in_width, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.preact(self.bn2(self.conv2(y)) + self.downsample(x)))


class ResNet(nn.Module):
    """Three stages of basic blocks, the embedding as wide as the last one.

    Maps to tap: ``layer1``, ``layer2``, ``layer3`` (after the ReLU), ``layerN.LAST.preact`` (before it), ``avgpool``.

    Args:
        num_classes: number of logits.
        depth: 6n + 2 layers.
        widths: channels of the stem and of the three stages.
    """

    def __init__(self, num_classes: int, depth: int, widths: Sequence[int] = (16, 16, 32, 64)):
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = stage(BasicBlock, widths[0], widths[1], blocks, stride=1)
        self.layer2 = stage(BasicBlock, widths[1], widths[2], blocks, stride=2)
        self.layer3 = stage(BasicBlock, widths[2], widths[3], blocks, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[3], num_classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))
