"""Logits, embedding and feature maps of any classifier, read by hooks: the model itself is not edited."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ndkd.errors import NdkdError, suggestion
from ndkd.models.output import ModelOutput

HEADS = ("fc", "classifier", "head", "heads", "linear")


class FeatureExtractor(nn.Module):
    """A classifier that returns a ``ModelOutput`` for images in [0, 1].

    The embedding is what enters the classifier layer, taken before a dropout directly in front of it: an
    ``nn.Dropout``, or the ``F.dropout`` of timm's models that have a ``drop_rate``.

    Args:
        model: maps normalised images (B, c, h, w) to logits (B, C).
        classifier: name of the classifier layer (``"fc"``), or of several, whose inputs are averaged
            (``["head", "head_dist"]``) and whose logits are in ``extra`` by their names; by default it is found by
            itself, see ``find_classifier``.
        taps: names of the modules whose outputs are the feature maps, shallow to deep; ``"NAME:input"`` takes the
            input of the module's last call instead. A pooled (B, c) becomes a map (B, c, 1, 1).
        mean: per channel, subtracted from the images.
        std: per channel, the images are divided by it.

    Raises:
        NdkdError: a layer that the model does not have, or a classifier that cannot be found.
    """

    mean: Tensor | None
    std: Tensor | None
    knows_classes = True  # whether the logits are those of the data's classes, as far as can be known

    def __init__(
        self,
        model: nn.Module,
        classifier: str | Sequence[str] | None = None,
        taps: Sequence[str] = (),
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ):
        super().__init__()
        if (mean is None) != (std is None):
            raise NdkdError("mean and std: set both or neither")
        self.model = model
        self.classifier = [classifier] if isinstance(classifier, str) else list(classifier or find_classifier(model))
        self.taps: list[str] = []
        channels = (-1, 1, 1)
        self.register_buffer("mean", None if mean is None else torch.tensor(mean).view(channels), persistent=False)
        self.register_buffer("std", None if std is None else torch.tensor(std).view(channels), persistent=False)
        self._captured: dict[str, Tensor] = {}
        self._dropped: tuple[Tensor, Tensor] | None = None  # what a dropout has made, and of what
        # a mode costs some microseconds for every function of torch: only where it may be needed
        self._calls_dropout = any(getattr(module, "drop_rate", 0) for module in model.modules())
        self._hook_classifiers()
        self._follow_dropouts()
        self.add_taps(taps)

    def add_taps(self, taps: Sequence[str]) -> None:
        """Take the feature maps from these layers, after those of earlier ones."""
        self.taps += taps
        for module in self.model.modules() if taps else ():
            if getattr(module, "inplace", False) is True:  # nothing overwrites a map
                module.inplace = False  # type: ignore[assignment]
        self._hook_taps(taps)

    @property
    def classifier_layers(self) -> list[nn.Linear]:
        """The classifier layers themselves."""
        layers = (self.model.get_submodule(name) for name in self.classifier)
        return [layer for layer in layers if isinstance(layer, nn.Linear)]

    @property
    def embedding_dim(self) -> int:
        """Width D of the embedding."""
        return self.classifier_layers[0].in_features

    @property
    def num_classes(self) -> int:
        """Number of logits C."""
        return self.classifier_layers[0].out_features

    def forward(self, images: Tensor) -> ModelOutput:
        if self.mean is not None and self.std is not None:
            if len(self.mean) not in (1, images.shape[1]):
                raise NdkdError(f"mean and std are for {len(self.mean)} channels, the images have {images.shape[1]}")
            images = (images - self.mean) / self.std
        self._captured, self._dropped = {}, None  # whatever a forward pass that failed has left
        watched = self._calls_dropout and self.model.training
        with DropoutCalls(self._remember_dropout) if watched else nullcontext():
            logits = self.model(images)
        captured, self._captured, self._dropped = self._captured, {}, None
        for name in (*self.classifier, *self.taps):
            if name not in captured:
                raise NdkdError(f"{type(self.model).__name__} does not call its layer {name}: choose another")
        if not isinstance(logits, Tensor):
            raise NdkdError(
                f"{type(self.model).__name__} returns {type(logits).__name__}, wanted logits; switch auxiliary "
                "classifiers off, for torchvision's with kwargs: {aux_logits: false}"
            )
        embeddings = [captured[name] for name in self.classifier]
        shapes = [tuple(embedding.shape) for embedding in embeddings]
        if len(set(shapes)) > 1 or len(shapes[0]) != 2:
            names, read = ", ".join(self.classifier), ", ".join(map(str, shapes))
            raise NdkdError(f"classifier: wanted layers that read (B, D), all of one width; {names} read {read}")
        embedding = embeddings[0] if len(embeddings) == 1 else torch.stack(embeddings).mean(dim=0)
        heads = {name.replace(".", "_"): captured[f"{name}:logits"] for name in self.classifier if len(embeddings) > 1}
        maps = [captured[tap] for tap in self.taps]
        maps = [m[:, :, None, None] if m.ndim == 2 else m for m in maps]
        return ModelOutput(logits, embedding, feature_maps=maps, extra=SimpleNamespace(**heads))

    def _hook_classifiers(self) -> None:
        for name in self.classifier:
            layer = self._submodule(name, "classifier")
            if not isinstance(layer, nn.Linear):
                raise NdkdError(f"classifier: wanted a Linear layer, {name} is a {type(layer).__name__}")
            layer.register_forward_pre_hook(partial(self._keep_embedding, name))
            if len(self.classifier) > 1:
                layer.register_forward_hook(partial(self._keep_output, f"{name}:logits"))

    def _follow_dropouts(self) -> None:
        """Watch what may stand before the classifier; nothing overwrites the embedding."""
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.register_forward_hook(self._remember_dropout)
            if isinstance(module, nn.Flatten):
                module.register_forward_hook(self._follow_flatten)
            if isinstance(module, nn.Dropout) and module.inplace:
                module.inplace = False

    def _hook_taps(self, taps: Sequence[str]) -> None:
        for tap in taps:
            name, _, side = tap.partition(":")
            module = self._submodule(name, "taps")
            if side == "input":
                module.register_forward_pre_hook(partial(self._keep_input, tap))
            elif tap == name:
                module.register_forward_hook(partial(self._keep_output, tap))
            else:
                raise NdkdError(f"taps: wanted NAME or NAME:input, got {tap}")

    def _submodule(self, name: str, option: str) -> nn.Module:
        modules = dict(self.model.named_modules())
        if name not in modules or not name:
            known = [known for known in modules if known]
            raise NdkdError(f"{option}: {type(self.model).__name__} has no layer {name!r}; {suggestion(name, known)}")
        return modules[name]

    def _keep_embedding(self, name: str, layer: nn.Module, inputs: tuple) -> None:
        self._captured[name] = self._before_dropout(inputs[0])

    def _remember_dropout(self, layer: nn.Module | None, inputs: tuple, output: Tensor) -> None:
        self._dropped = (output, inputs[0])

    def _follow_flatten(self, layer: nn.Flatten, inputs: tuple, output: Tensor) -> None:
        before = self._before_dropout(inputs[0])
        if before is not inputs[0]:
            self._dropped = (output, before.flatten(layer.start_dim, layer.end_dim))

    def _before_dropout(self, entering: Tensor) -> Tensor:
        """What a dropout was given, where its output is what enters; else that itself."""
        if self._dropped is None:
            return entering
        output, before = self._dropped
        return before if entering is output else entering

    def _keep_input(self, tap: str, layer: nn.Module, inputs: tuple) -> None:
        self._captured[tap] = inputs[0]

    def _keep_output(self, tap: str, layer: nn.Module, inputs: tuple, output: Tensor) -> None:
        self._captured[tap] = output


class DropoutCalls(TorchFunctionMode):
    """Tells of every ``F.dropout``, as a hook would of an ``nn.Dropout``."""

    def __init__(self, hook: Callable[[None, tuple, Tensor], None]):
        super().__init__()
        self.hook = hook

    def __torch_function__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        if function is F.dropout:
            self.hook(None, args, output)
        return output


def find_classifier(model: nn.Module) -> list[str]:
    """The name of the classifier layer: timm's own word for it, or the last Linear below a usual name, or the only one.

    Raises:
        NdkdError: none of these tells; the message lists the Linear layers to choose from.
    """
    timm_config = getattr(model, "pretrained_cfg", None) or {}
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    named = timm_config.get("classifier") or ()
    named = [named] if isinstance(named, str) else list(named)
    if named and all(name in linears for name in named):
        return named
    if detector := [name for name in linears if name.startswith("roi_heads.box_predictor.")]:
        return detector
    for head in HEADS:
        if below := [name for name in linears if name == head or name.startswith(f"{head}.")]:
            return below[-1:]
    if len(linears) == 1:
        return linears
    choice = f"set classifier to one of: {', '.join(linears[-8:])}" if linears else "it has no Linear layer"
    raise NdkdError(f"cannot tell which layer of {type(model).__name__} is the classifier; {choice}")
