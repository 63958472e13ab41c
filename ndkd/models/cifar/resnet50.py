"""ResNet-50 for small images: https://arxiv.org/abs/1512.03385, section 4.1, with the stem of section 4.2."""

from torch import Tensor, nn
from torch.nn import functional as F

from ndkd.models.layers import initialise, stage


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions beside a shortcut; ``preact`` sees their sum before the last ReLU."""

    def __init__(self, in_width: int, width: int, stride: int):
        super().__init__()
        mid_width = width // 4
        self.conv1 = nn.Conv2d(in_width, mid_width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(mid_width)
        self.conv2 = nn.Conv2d(mid_width, mid_width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(mid_width)
        self.conv3 = nn.Conv2d(mid_width, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.preact = nn.Identity()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_width != width:
            self.shortcut = nn.Sequential(nn.Conv2d(in_width, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.preact(self.bn3(self.conv3(y)) + self.shortcut(x)))


class ResNet50(nn.Module):
    """Four stages of bottlenecks behind a 3×3 convolution; the embedding has 2048 channels.

    Maps to tap: ``layer1`` to ``layer4`` (after the ReLU); ``layer1.2.preact``, ``layer2.3.preact``,
    ``layer3.5.preact`` and ``layer4.2.preact`` (before it); ``avgpool``.

    Args:
        num_classes: number of logits.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = stage(Bottleneck, 64, 256, blocks=3, stride=1)
        self.layer2 = stage(Bottleneck, 256, 512, blocks=4, stride=2)
        self.layer3 = stage(Bottleneck, 512, 1024, blocks=6, stride=2)
        self.layer4 = stage(Bottleneck, 1024, 2048, blocks=3, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(2048, num_classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(self.avgpool(x).flatten(1))
