"""What a model hands to the losses."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from torch import Tensor


@dataclass
class ModelOutput:
    """Named outputs of one forward pass; N is the number of images (or of regions, in detection)."""

    logits: Tensor
    """(N, C)."""
    embedding: Tensor
    """(N, D): the input of the classifier layer, before a dropout that precedes it."""
    projected: Tensor | None = None
    """(N, D of the teacher): the embedding through the projector; the embedding itself where the widths agree."""
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
