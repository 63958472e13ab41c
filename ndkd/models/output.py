"""What a model hands to the losses."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


@dataclass
class ModelOutput:
    """Named outputs of one forward pass; N is the number of images (or of regions, in detection)."""

    logits: Tensor
    """(N, C)."""
    embedding: Tensor
    """(N, D): the input of the classifier layer, before a dropout that precedes it."""
    projected: Tensor | dict[str, Tensor] | None = None
    """(N, D of the teacher): the embedding through the projector; the embedding itself where the widths agree. Of
    several teachers, one for each by its name."""
    feature_maps: list[Tensor] = field(default_factory=list)
    """Shallow to deep, each (B, c, h, w)."""
    extra: SimpleNamespace = field(default_factory=SimpleNamespace)
    """What only some models have: of one with several classifier layers the logits (N, C) of each, by its name."""

    def __post_init__(self) -> None:
        if self.projected is None:
            self.projected = self.embedding

    @property
    def norm(self) -> Tensor:
        """(N,): the length of the embedding, in float32; a loss that needs no more of a teacher should ask for this."""
        length: Tensor = torch.linalg.vector_norm(self.embedding.float(), dim=1)
        return length


@dataclass
class EnsembleOutput:
    """What several teachers say of the same images.

    Args:
        each: the outputs of each, by its name: a ``ModelOutput``, or what was recorded of one.
    """

    each: dict[str, Any]

    @property
    def logits(self) -> Tensor:
        r"""(N, C), in float32: the mean $\frac{1}{K} \sum_k t^k$ over the K teachers."""
        mean: Tensor = torch.stack([output.logits.float() for output in self.each.values()]).mean(dim=0)
        return mean


def mapped(function: Callable[[Tensor], Any], output: Any) -> Any:
    """What a function makes of each tensor of an output, in an output of the same kind.

    >>> mapped(torch.numel, [SimpleNamespace(logits=torch.rand(4, 10)), None])
    [namespace(logits=40), None]
    """
    if output is None or isinstance(output, Tensor):
        return output if output is None else function(output)
    if isinstance(output, list | tuple):
        return [mapped(function, each) for each in output]
    if isinstance(output, dict):
        return {name: mapped(function, each) for name, each in output.items()}
    return type(output)(**mapped(function, vars(output)))


def tensors_in(output: Any) -> list[Tensor]:
    """All tensors of an output, in the order of its parts."""
    found: list[Tensor] = []
    mapped(found.append, output)
    return found
