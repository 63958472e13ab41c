"""Wide residual networks: https://arxiv.org/abs/1605.07146."""

from torch import Tensor, nn
from torch.nn import functional as F

from ndkd.models.layers import initialise, stage


class BasicBlock(nn.Module):
    """BatchNorm and ReLU before each of two 3×3 convolutions, and before the shortcut where the width changes."""

    def __init__(self, in_width: int, width: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_width)
        self.conv1 = nn.Conv2d(in_width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.convShortcut = nn.Conv2d(in_width, width, 1, stride, bias=False) if in_width != width else None

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(activated)
        return shortcut + self.conv2(F.relu(self.bn2(self.conv1(activated))))


class Stage(nn.Module):
    """A row of blocks, kept under ``layer`` as in published checkpoints."""

    def __init__(self, in_width: int, width: int, blocks: int, stride: int):
        super().__init__()
        self.layer = stage(BasicBlock, in_width, width, blocks, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """Three stages of pre-activation blocks.

    Maps to tap: ``block1``, ``block2``, ``block3`` (raw sums); ``block2.layer.0.bn1``, ``block3.layer.0.bn1`` and
    ``bn1`` (the same, normalised, before their ReLU); ``avgpool``.

    Args:
        num_classes: number of logits.
        depth: 6n + 4 layers.
        widen: factor on the widths 16, 32, 64.
    """

    def __init__(self, num_classes: int, depth: int, widen: int):
        super().__init__()
        blocks, widths = (depth - 4) // 6, [16 * widen, 32 * widen, 64 * widen]
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.block1 = Stage(16, widths[0], blocks, stride=1)
        self.block2 = Stage(widths[0], widths[1], blocks, stride=2)
        self.block3 = Stage(widths[1], widths[2], blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(widths[2])
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[2], num_classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(images))))
        return self.fc(self.avgpool(F.relu(self.bn1(x))).flatten(1))
