"""A teacher does not learn."""

from torch import nn


def freeze(teacher: nn.Module) -> nn.Module:
    """Evaluation mode and no gradients, in place; whoever owns the teacher keeps ``train()`` away from it."""
    return teacher.eval().requires_grad_(False)
