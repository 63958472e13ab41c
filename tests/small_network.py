"""A student of one's own that trains and is traced in no time, in a file that knows no ndkd."""

from collections import OrderedDict

from torch import nn

CONFIG = """
trainer: {max_epochs: %d, accelerator: cpu}
model:
  class_path: DistillationModule
  init_args:
    student: {name: 'tests.small_network:small_network'}
    losses: {ce: {loss: torch.nn.CrossEntropyLoss, inputs: [student.logits, target]}}
    optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.1}}
data: %s
"""


def configuration(epochs: int, data: str) -> str:
    """YAML that trains it by itself, on the CPU.

    Args:
        epochs: for so long.
        data: the entry of the images, in one line.
    """
    return CONFIG % (epochs, data)


def small_network(num_classes: int) -> nn.Sequential:
    """Two convolutions and a classifier."""
    layers = {
        "conv": nn.Conv2d(3, 16, 3, stride=2, bias=False),
        "norm": nn.BatchNorm2d(16),
        "relu": nn.ReLU(),
        "deeper": nn.Conv2d(16, 32, 3, stride=2),
        "relu2": nn.ReLU(),
        "pool": nn.AdaptiveAvgPool2d(2),
        "flat": nn.Flatten(),
        "fc": nn.Linear(128, num_classes),
    }
    return nn.Sequential(OrderedDict(layers))
