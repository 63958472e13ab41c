"""All that is to know about one model, in one place of a configuration."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ndkd.models.checkpoint import check_class_names, load_weights, model_weights, read_checkpoint
from ndkd.models.factory import build_model, default_statistics
from ndkd.models.features import FeatureExtractor


@dataclass
class ModelConfig:
    """How to build a teacher or a student.

    Args:
        name: ``cifar/…``, ``torchvision/…``, ``timm/…`` or ``package.module:callable``, see :func:`build_model`.
        checkpoint: file with the weights: a plain state dict, ``{"model": …}``, ``{"state_dict": …}``, a checkpoint
            of ndkd, or safetensors.
        pretrained: weights from torchvision's or timm's hub.
        classifier: name of the classifier layer; found by itself for the usual families.
        taps: layers whose outputs (``layer3``) or inputs (``layer3:input``) are the feature maps, shallow to deep.
        mean: per channel; by default the checkpoint's own, torchvision's or timm's, else the data's.
        std: per channel, likewise.
        kwargs: for the model's constructor.
        compile: ``torch.compile`` it for training, in this mode; ``reduce-overhead`` uses CUDA graphs. It costs about
            a minute at the start, and needs a C++ compiler.
    """

    name: str
    checkpoint: Path | None = None
    pretrained: bool = False
    classifier: list[str] | None = None
    taps: list[str] | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    compile: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] | None = None

    def build(
        self,
        num_classes: int,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        class_names: Sequence[str] | None = None,
    ) -> FeatureExtractor:
        """The model with its weights, reading images in [0, 1]; ``mean`` and ``std`` are the data's.

        Where ``class_names`` are given, a checkpoint that names its classes must name the same.

        Raises:
            NdkdError: anything that cannot be found or does not fit.
        """
        content = read_checkpoint(self.checkpoint) if self.checkpoint else {}
        if class_names is not None:
            check_class_names(content, class_names, f"checkpoint {self.checkpoint}")
        model = build_model(self.name, num_classes, self.pretrained, **self.kwargs)
        if self.checkpoint:
            load_weights(model, model_weights(content, model.state_dict()), f"checkpoint {self.checkpoint}")
        known = [(self.mean, self.std), _stored_statistics(content), default_statistics(self.name, model)]
        mean, std = next((pair for pair in known if pair and any(pair)), (mean, std))
        return FeatureExtractor(model, self.classifier, self.taps or (), mean, std)


def _stored_statistics(content: dict[str, Any]) -> tuple[list[float] | None, list[float] | None]:
    """Mean and standard deviation inside a checkpoint of ours; other programs keep other things there."""
    found: Any = content
    for key in ("hyper_parameters", "student"):
        found = found.get(key) if isinstance(found, dict) else None
    return (found.get("mean"), found.get("std")) if isinstance(found, dict) else (None, None)
