"""What a model hands to the losses."""

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
