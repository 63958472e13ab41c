"""What the models of the zoo have in common: layers, stages of blocks, and how their weights start."""

from collections.abc import Callable
from functools import partial

from torch import nn
from torchvision.ops import Conv2dNormActivation

ConvNormReLU = partial(Conv2dNormActivation, inplace=False)


def stage(block: Callable[..., nn.Module], in_width: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    """A row of blocks ``block(in_width, width, stride)``; the first changes width and resolution."""
    return nn.Sequential(block(in_width, width, stride), *(block(width, width, 1) for _ in range(blocks - 1)))


def initialise(model: nn.Module) -> None:
    """Draw convolutions from He's normal distribution (https://arxiv.org/abs/1502.01852); biases start at zero."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.zeros_(module.bias)


def draw_linear_layers(model: nn.Module, std: float) -> None:
    """Draw weights and biases of all linear layers from N(0, std)."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            for parameter in module.parameters():
                nn.init.normal_(parameter, std=std)
