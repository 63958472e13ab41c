"""Wide residual networks: https://arxiv.org/abs/1605.07146."""

import math

from torch import Tensor, nn
from torch.nn import functional as F


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
        first = BasicBlock(in_width, width, stride)
        self.layer = nn.Sequential(first, *(BasicBlock(width, width, 1) for _ in range(blocks - 1)))

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
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(images))))
        return self.fc(self.avgpool(F.relu(self.bn1(x))).flatten(1))
