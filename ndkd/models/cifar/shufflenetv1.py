"""ShuffleNetV1 for small images: https://arxiv.org/abs/1707.01083."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ndkd.models.layers import stage

GROUPS, STEM_WIDTH = 3, 24


class Block(nn.Module):
    """Grouped 1×1, depthwise 3×3 and grouped 1×1 convolutions beside a shortcut.

    The shortcut is added, or at stride 2 pooled and appended; ``preact`` sees the result before the last ReLU.
    """

    def __init__(self, in_width: int, width: int, stride: int):
        super().__init__()
        branch_width = width - in_width if stride == 2 else width
        mid_width = branch_width // 4
        self.stride = stride
        self.groups = 1 if in_width == STEM_WIDTH else GROUPS  # the stem's channels are too few to be grouped
        self.conv1 = nn.Conv2d(in_width, mid_width, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(mid_width)
        self.conv2 = nn.Conv2d(mid_width, mid_width, 3, stride, 1, groups=mid_width, bias=False)
        self.bn2 = nn.BatchNorm2d(mid_width)
        self.conv3 = nn.Conv2d(mid_width, branch_width, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(branch_width)
        self.preact = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.channel_shuffle(F.relu(self.bn1(self.conv1(x))), self.groups)
        y = F.relu(self.bn2(self.conv2(y)))  # the paper has no ReLU here, the published models have
        y = self.bn3(self.conv3(y))
        y = torch.cat([y, F.avg_pool2d(x, 3, 2, 1)], dim=1) if self.stride == 2 else y + x
        return F.relu(self.preact(y))


class ShuffleNetV1(nn.Module):
    """Three stages behind a 1×1 convolution; the embedding has 960 channels.

    Maps to tap: ``layer1``, ``layer2``, ``layer3`` (after the ReLU); ``layer1.3.preact``, ``layer2.7.preact`` and
    ``layer3.3.preact`` (before it); ``avgpool``. Convolutions start as PyTorch makes them, as in the published model.

    Args:
        num_classes: number of logits.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, STEM_WIDTH, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_WIDTH)
        self.layer1 = stage(Block, STEM_WIDTH, 240, blocks=4, stride=2)
        self.layer2 = stage(Block, 240, 480, blocks=8, stride=2)
        self.layer3 = stage(Block, 480, 960, blocks=4, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(960, num_classes)
        nn.init.zeros_(self.linear.bias)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.avgpool(x).flatten(1))
