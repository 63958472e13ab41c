"""A teacher does not learn, and is made fast."""

from typing import Any, TypeVar

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

Module = TypeVar("Module", bound=nn.Module)


def freeze(teacher: Module) -> Module:
    """Evaluation mode and no gradients, in place; whoever owns the teacher keeps ``train()`` away from it."""
    return teacher.eval().requires_grad_(False)


def fold_batchnorm(model: nn.Module) -> int:
    r"""Fold each BatchNorm into the convolution before it, in place; an ``nn.Identity`` stays behind.

    In evaluation mode BatchNorm is affine: with scale $a = \gamma / \sqrt{\sigma^2 + \epsilon}$ the convolution
    takes the weight $a w$ and the bias $a (b - \mu) + \beta$. Names and hooks of all other modules stay. A
    pair that a hook would see the inside of is left as it is, and so is a model whose forward cannot be traced.

    Args:
        model: in evaluation mode, without gradients.

    Returns:
        The number of BatchNorms that are gone.

    Examples:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval().requires_grad_(False)
        >>> fold_batchnorm(model)
        1
        >>> model[1]
        Identity()
    """
    try:
        nodes = fx.Tracer().trace(model).nodes
    except Exception:  # whatever a model's forward does with what is no tensor
        return 0
    pairs = _foldable(model, list(nodes))
    for convolution, norm in pairs:
        conv: Any = model.get_submodule(convolution)
        bn: Any = model.get_submodule(norm)
        statistics = (bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias)
        conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)
        model.set_submodule(norm, nn.Identity())
    return len(pairs)


def _foldable(model: nn.Module, nodes: list[fx.Node]) -> list[tuple[str, str]]:
    """Names of (convolution, norm) that follow each other and are called once, unhooked in between."""
    calls = [node for node in nodes if node.op == "call_module"]
    read = [str(node.target) for node in nodes if node.op == "get_attr"]  # weights that forward uses by themselves
    modules = dict(model.named_modules(remove_duplicate=False))
    called = [modules[str(node.target)] for node in calls]
    hooked = [name for name, m in modules.items() if m._forward_hooks or m._forward_pre_hooks]
    pairs = []
    for node in calls:
        before = node.args[0] if node.args else None
        if not (isinstance(before, fx.Node) and before.op == "call_module" and len(before.users) == 1):
            continue
        names = str(before.target), str(node.target)
        conv, bn = (modules[name] for name in names)
        # subclasses compute something else
        if type(conv) is not nn.Conv2d or type(bn) is not nn.BatchNorm2d or bn.running_mean is None:
            continue
        once = called.count(conv) == called.count(bn) == 1
        seen = any(_inside(names[0], hook) != _inside(names[1], hook) for hook in hooked)
        if once and not seen and not any(_inside(weight, name) for weight in read for name in names):
            pairs.append(names)
    return pairs


def _inside(name: str, parent: str) -> bool:
    return not parent or name == parent or name.startswith(f"{parent}.")
