"""All that is to know about one model, in one place of a configuration."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from ndkd.errors import NdkdError, shortened
from ndkd.models.checkpoint import keys_in, load_weights, model_weights, read_checkpoint
from ndkd.models.checkpoint_files import hub_file
from ndkd.models.classes import Names, fit_classes, new_classes, published_class_names
from ndkd.models.factory import build_model
from ndkd.models.features import FeatureExtractor
from ndkd.models.hubs import default_statistics
from ndkd.models.run_checkpoint import Known

Channels = Sequence[float] | None  # a number per channel
Statistics = tuple[Channels, Channels]  # mean and std


@dataclass
class ModelConfig:
    """How to build a teacher or a student.

    Args:
        name: ``cifar/…``, ``torchvision/…``, ``timm/…`` or ``package.module:callable``, see ``build_model``.
        checkpoint: file with the weights: a plain state dict, ``{"model": …}``, ``{"state_dict": …}``, a checkpoint
            of ndkd, or safetensors; ``hf://REPO/FILE`` or ``hf://REPO@REVISION/FILE`` is one on the Hugging Face Hub.
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
    checkpoint: str | Path | None = None
    pretrained: bool = False
    classifier: list[str] | None = None
    taps: list[str] | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    compile: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] | None = None

    def __post_init__(self) -> None:
        if self.checkpoint is not None:
            wanted = hub_file(self.checkpoint)
            self.checkpoint = str(wanted) if wanted else Path(self.checkpoint)
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
        known = Known.of(content)
        from_hub = self.pretrained and not self.checkpoint
        model = build_model(self.name, None if from_hub else num_classes, from_hub, **self.kwargs)
        mean, std = self._statistics(known, default_statistics(self.name, model), (mean, std))
        extractor = FeatureExtractor(model, self.classifier, self.taps or (), mean, std)
        source = f"checkpoint {self.checkpoint}" if self.checkpoint else f"pretrained {self.name}"
        if self.checkpoint:
            _load(extractor, content, num_classes, source)
        if self.checkpoint or from_hub:
            layers = extractor.classifier_layers
            names = self._names(known, layers[0].out_features, class_names)
            extractor.knows_classes = fit_classes(
                layers, names, class_names, num_classes, strict, self.pretrained, source
            )
        if self.classifier is None and extractor.num_classes != num_classes:
            raise NdkdError(
                f"model {self.name}: {extractor.classifier[0]} has {extractor.num_classes} outputs, wanted "
                f"{num_classes} classes; set classifier to the layer that makes the logits"
            )
        return extractor

    def _statistics(self, known: Known, of_hub: Statistics | None, of_data: Statistics) -> Statistics:
        """The first mean and std that there are: given here, stored in the checkpoint, of the hub, of the data."""
        given = self.mean, self.std
        stored = known.student.get("mean"), known.student.get("std")
        for pair in (given, stored, of_hub):
            if pair is not None and any(pair):
                return pair
        return of_data

    def _names(self, known: Known, num_outputs: int, of_data: Names) -> Names:
        """The names of the classifier's own classes, None where they are unknown."""
        if known.class_names is not None or of_data is None:
            return known.class_names
        published = published_class_names(num_outputs, of_data)
        if published is None or not self.checkpoint:
            return published
        is_likely = set(of_data) <= set(published)
        return published if is_likely else None  # of a file one can only guess


def _load(extractor: FeatureExtractor, content: dict[str, Any], num_classes: int, source: str) -> None:
    """Fill a model with a checkpoint's weights, as many classes as they are of."""
    own = extractor.model.state_dict()
    weights = model_weights(content, own)
    if not weights.keys() & own.keys():
        raise NdkdError(f"{source} has no weights of this model; it has {shortened(keys_in(content)) or 'nothing'}")
    rows = weights.get(f"{extractor.classifier[0]}.weight")
    if rows is not None and rows.ndim == 2 and len(rows) != num_classes:
        new_classes(extractor.classifier_layers, len(rows))
    load_weights(extractor.model, weights, source)
