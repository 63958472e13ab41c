"""ShuffleNetV2 for small images: https://arxiv.org/abs/1807.11164."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """Half of the channels pass by; ``preact`` sees them beside the other half's result before its last ReLU."""

    def __init__(self, width: int):
        super().__init__()
        half = width // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, 1, 1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.preact = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        passed, y = x.chunk(2, dim=1)
        y = F.relu(self.bn1(self.conv1(y)))
        y = self.bn3(self.conv3(self.bn2(self.conv2(y))))
        y = self.preact(torch.cat([passed, y], dim=1))
        return F.channel_shuffle(F.relu(y), 2)  # what passed comes from a ReLU: another leaves it as it is


class DownBlock(nn.Module):
    """Two branches of stride 2, each with half of the outgoing channels."""

    def __init__(self, in_width: int, width: int):
        super().__init__()
        half = width // 2
        self.conv1 = nn.Conv2d(in_width, in_width, 3, 2, 1, groups=in_width, bias=False)
        self.bn1 = nn.BatchNorm2d(in_width)
        self.conv2 = nn.Conv2d(in_width, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(in_width, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, half, 3, 2, 1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        left = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        right = F.relu(self.bn3(self.conv3(x)))
        right = self.bn5(self.conv5(self.bn4(self.conv4(right))))
        return F.channel_shuffle(F.relu(torch.cat([left, right], dim=1)), 2)


class ShuffleNetV2(nn.Module):
    """Three stages behind a 1×1 convolution; the embedding has 1024 channels.

    Maps to tap: ``layer1``, ``layer2``, ``layer3`` (after the ReLU, shuffled); ``layer1.3.preact``,
    ``layer2.7.preact`` and ``layer3.3.preact`` (before it, not shuffled); ``avgpool``. Convolutions start as PyTorch
    makes them, as in the published model.

    Args:
        num_classes: number of logits.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 24, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.layer1 = self._stage(24, 116, blocks=4)
        self.layer2 = self._stage(116, 232, blocks=8)
        self.layer3 = self._stage(232, 464, blocks=4)
        self.conv2 = nn.Conv2d(464, 1024, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(1024)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(1024, num_classes)
        nn.init.zeros_(self.linear.bias)

    @staticmethod
    def _stage(in_width: int, width: int, blocks: int) -> nn.Sequential:
        return nn.Sequential(DownBlock(in_width, width), *(BasicBlock(width) for _ in range(blocks - 1)))

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.linear(self.avgpool(x).flatten(1))
