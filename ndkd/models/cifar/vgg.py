"""VGGs with batch normalisation for small images: https://arxiv.org/abs/1409.1556."""

from torch import Tensor, nn
from torch.nn import functional as F

from ndkd.models.layers import initialise


class Block(nn.Sequential):
    """3×3 convolutions of one size; ``preact`` sees the map before the last ReLU."""

    def __init__(self, in_width: int, width: int, convolutions: int):
        layers = []
        for _ in range(convolutions):
            layers += [nn.Conv2d(in_width, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU()]
            in_width = width
        super().__init__(*layers[:-1])
        self.preact = nn.Identity()
        self.relu = nn.ReLU()


class VGG(nn.Module):
    """Five blocks and one linear layer; the embedding has 512 channels.

    Maps to tap: ``block1`` to ``block4`` (after the ReLU), ``block1.preact`` to ``block4.preact`` (before it),
    ``avgpool``. The published models pool 64×64 images once more, before ``block4``; this one does not.

    Args:
        num_classes: number of logits.
        depth: 5n + 3 layers, counting the paper's three linear ones.
    """

    def __init__(self, num_classes: int, depth: int):
        super().__init__()
        convolutions = (depth - 3) // 5
        self.block0 = Block(3, 64, convolutions)
        self.block1 = Block(64, 128, convolutions)
        self.block2 = Block(128, 256, convolutions)
        self.block3 = Block(256, 512, convolutions)
        self.block4 = Block(512, 512, convolutions)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(512, num_classes)
        initialise(self)
        nn.init.normal_(self.classifier.weight, std=0.01)

    def forward(self, images: Tensor) -> Tensor:
        x = F.max_pool2d(self.block0(images), 2)
        x = F.max_pool2d(self.block1(x), 2)
        x = F.max_pool2d(self.block2(x), 2)
        x = self.block4(self.block3(x))
        return self.classifier(self.avgpool(x).flatten(1))
