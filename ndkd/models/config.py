"""All that is to know about one model, in one place of a configuration."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from ndkd.errors import NdkdError, shortened
from ndkd.models.checkpoint import keys_in, load_weights, model_weights, read_checkpoint
from ndkd.models.classes import Names, fit_classes, new_classes, published_class_names
from ndkd.models.factory import build_model
from ndkd.models.features import FeatureExtractor
from ndkd.models.hubs import default_statistics
from ndkd.models.run_checkpoint import Known

Channels = Sequence[float] | None  # a number per channel


@dataclass
class ModelConfig:
    """How to build a teacher or a student.

    Args:
        name: ``cifar/…``, ``torchvision/…``, ``timm/…`` or ``package.module:callable``, see :func:`build_model`.
        checkpoint: file with the weights: a plain state dict, ``{"model": …}``, ``{"state_dict": …}``, a checkpoint
            of ndkd, or safetensors.
        pretrained: weights from torchvision's or timm's hub or, with ``checkpoint``, from that file in the hub's place:
            where their classes are not the data's, the classifier is new.
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

    def __post_init__(self):
        for name in ("classifier", "taps", "mean", "std"):
            if getattr(self, name) is not None and not len(getattr(self, name)):
                raise NdkdError(f"model {self.name}: {name}: wanted at least one, got none; leave it out")
        if not all(isfinite(number) for number in (*(self.mean or ()), *(self.std or ()))):
            raise NdkdError(f"model {self.name}: mean and std: wanted finite numbers, got {self.mean} and {self.std}")
        if any(number <= 0 for number in self.std or ()):
            raise NdkdError(f"model {self.name}: std: wanted numbers above 0, got {self.std}")
        if self.mean and self.std and len(self.mean) != len(self.std):
            raise NdkdError(f"model {self.name}: wanted as many std as mean, got {self.std} and {self.mean}")
        if not isinstance(self.kwargs, dict):
            raise NdkdError(f"model {self.name}: kwargs: wanted entries, got {self.kwargs}; leave it out")

    @property
    def brings_weights(self) -> bool:
        """Whether the weights come from a file or a hub, and are not drawn."""
        return self.checkpoint is not None or self.pretrained

    def build(
        self, num_classes: int, mean: Channels, std: Channels, class_names: Names = None, strict: bool = False
    ) -> FeatureExtractor:
        """The model with its weights, reading images in [0, 1].

        A model of more classes than the data's, or of the same in another order, keeps the logits of the data's.

        Args:
            num_classes: of the data.
            mean: of the data, per channel.
            std: of the data, per channel.
            class_names: of the data; a classifier whose own names are known is fitted to them.
            strict: the weights must be those of a classifier of the data's classes; a student's need not.

        Raises:
            NdkdError: anything that cannot be found or does not fit.
        """
        content = read_checkpoint(self.checkpoint) if self.checkpoint else {}
        from_hub = self.pretrained and not self.checkpoint
        model = build_model(self.name, None if from_hub else num_classes, from_hub, **self.kwargs)
        known = Known.of(content)
        stored = known.student.get("mean"), known.student.get("std")
        candidates = [(self.mean, self.std), stored, default_statistics(self.name, model)]
        mean, std = next((pair for pair in candidates if pair and any(pair)), (mean, std))
        extractor = FeatureExtractor(model, self.classifier, self.taps or (), mean, std)
        layers = extractor.classifier_layers
        source = f"checkpoint {self.checkpoint}" if self.checkpoint else f"pretrained {self.name}"
        if self.checkpoint:
            weights = model_weights(content, model.state_dict())
            if not weights.keys() & model.state_dict().keys():
                found = shortened(keys_in(content)) or "nothing"
                raise NdkdError(f"{source} has no weights of {self.name}; it has {found}")
            rows = weights.get(f"{extractor.classifier[0]}.weight")
            if rows is not None and rows.ndim == 2 and len(rows) != num_classes:
                new_classes(layers, len(rows))
            load_weights(model, weights, source)
        if self.checkpoint or from_hub:
            names: Names = known.class_names
            if names is None and class_names is not None:
                names = published_class_names(layers[0].out_features, class_names)
                if self.checkpoint and names is not None and not set(class_names) <= set(names):
                    names = None  # of a file one can only guess
            fit_classes(layers, names, class_names, num_classes, strict, self.pretrained, source)
        if self.classifier is None and extractor.num_classes != num_classes:
            raise NdkdError(
                f"model {self.name}: {extractor.classifier[0]} has {extractor.num_classes} outputs, wanted "
                f"{num_classes} classes; set classifier to the layer that makes the logits"
            )
        return extractor
