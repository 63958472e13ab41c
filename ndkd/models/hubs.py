"""Models of torchvision and timm, with or without the weights of their hubs."""

from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from ndkd.errors import NdkdError, suggestion
from ndkd.models.classes import new_classes
from ndkd.models.features import find_classifier


def default_statistics(name: str, model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation that torchvision's or timm's weights want; None where the data's are right."""
    timm_config = getattr(model, "pretrained_cfg", None)
    if name.startswith("timm/") and timm_config:
        return tuple(timm_config["mean"]), tuple(timm_config["std"])
    if not name.startswith("torchvision/"):
        return None
    transforms = _torchvision_weights(name.partition("/")[2]).transforms()
    if not hasattr(transforms, "mean"):  # a detector normalises by itself
        return None
    return tuple(transforms.mean), tuple(transforms.std)


def from_torchvision(model: str, num_classes: int | None, pretrained: bool, **kwargs) -> nn.Module:
    """A classifier or detector of torchvision; ``NdkdError`` for an unknown name, or weights that cannot be fetched."""
    weights, architecture = _torchvision_weights(model), model.partition(".")[0]
    if architecture in detector_names():
        kwargs.setdefault("weights_backbone", None)  # by default it would be fetched
    if not pretrained:
        return torchvision.models.get_model(architecture, weights=None, num_classes=num_classes, **kwargs)
    try:
        built = torchvision.models.get_model(architecture, weights=weights, **kwargs)
    except (OSError, RuntimeError) as error:  # no network, or a damaged download
        file = Path(torch.hub.get_dir(), "checkpoints", weights.url.rsplit("/", 1)[-1])
        raise NdkdError(
            f"cannot download the weights of torchvision/{model} ({error}); get {weights.url} elsewhere and put it at "
            f"{file}, or give it as checkpoint beside pretrained: true"
        ) from error
    return _with_classes(built, num_classes)


def _torchvision_weights(model: str) -> torchvision.models.WeightsEnum:
    """The newest weights of a model, or those with the tag behind its name."""
    architecture, _, tag = model.partition(".")
    known = [*torchvision_names(), *detector_names()]
    if architecture not in known:
        names = [f"torchvision/{name}" for name in known]
        raise NdkdError(f"unknown model 'torchvision/{model}'; {suggestion(f'torchvision/{architecture}', names)}")
    weights = torchvision.models.get_model_weights(architecture)
    if tag and tag not in weights.__members__:
        known = [f"torchvision/{architecture}.{name}" for name in weights.__members__]
        raise NdkdError(f"unknown weights 'torchvision/{model}'; {suggestion(f'torchvision/{model}', known)}")
    return weights[tag] if tag else weights.DEFAULT


def _with_classes(model: nn.Module, num_classes: int | None) -> nn.Module:
    layers: list[Any] = [model.get_submodule(name) for name in find_classifier(model)]
    if num_classes is not None and layers[0].out_features != num_classes:
        new_classes(layers, num_classes)
    return model


def from_timm(model: str, num_classes: int, pretrained: bool, **kwargs) -> nn.Module:
    """A classifier of timm; ``NdkdError`` as for torchvision's, and where timm is not installed."""
    try:
        import timm
    except ImportError as error:
        raise NdkdError(f"timm/{model} needs timm: python -m pip install 'ndkd[timm]'") from error
    has_tag = "." in model
    known = timm.list_models(include_tags=has_tag)
    if not timm.is_model(model) or (has_tag and model not in known):
        names = [f"timm/{name}" for name in known]
        raise NdkdError(f"unknown model 'timm/{model}'; {suggestion(f'timm/{model}', names)}")
    if not pretrained:
        return timm.create_model(model, num_classes=num_classes, **kwargs)
    try:
        built = timm.create_model(model, pretrained=True, **kwargs)
    except Exception as error:
        published: Any = timm.get_pretrained_cfg(model)
        page = published.hf_hub_id
        raise NdkdError(
            f"cannot load the hub weights of timm/{model} ({type(error).__name__}); without a network, get "
            f"https://huggingface.co/{page}/resolve/main/model.safetensors elsewhere and give it as checkpoint beside "
            "pretrained: true"
        ) from error
    return _with_classes(built, num_classes)


def torchvision_names() -> list[str]:
    """Torchvision's classifiers."""
    return torchvision.models.list_models(module=torchvision.models)


def detector_names() -> list[str]:
    """Torchvision's Faster R-CNNs."""
    return torchvision.models.list_models(module=torchvision.models.detection, include="fasterrcnn*")
