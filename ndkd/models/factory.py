"""From a name to a model."""

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from ndkd.errors import NdkdError, one_of, words_of
from ndkd.models.cifar import MODELS as CIFAR_MODELS
from ndkd.models.classes import new_classes
from ndkd.models.features import find_classifier
from ndkd.models.mobilenetv1 import MobileNetV1

ZOO = {"cifar": CIFAR_MODELS, "imagenet": {"mobilenet_v1": MobileNetV1}}


def build_model(name: str, num_classes: int | None, pretrained: bool = False, **kwargs) -> nn.Module:
    """Build a classifier by its name.

    Args:
        name: ``cifar/resnet20`` or ``imagenet/mobilenet_v1`` (our zoo), ``torchvision/resnet34``,
            ``timm/vit_small_patch16_224``, or ``package.module:callable``, which is called with ``num_classes`` and
            the keyword arguments.
        num_classes: number of logits; None for as many as the pretrained weights have.
        pretrained: weights of torchvision's or timm's hub, the newest or those with the tag in the name
            (``torchvision/resnet50.IMAGENET1K_V1``); the classifier is new where the number of classes differs.
        kwargs: go to the model's constructor.

    Raises:
        NdkdError: an unknown name (the nearest are suggested), a missing package, weights that cannot be fetched.

    Example:
        >>> build_model("cifar/resnet20", num_classes=10).fc.out_features
        10
    """
    family, _, model = name.partition("/")
    make = partial(FAMILIES[family], model) if model and family in FAMILIES else None
    make = partial(_from_callable, name) if make is None and ":" in name else make
    if make is not None:
        return _made(name, partial(make, num_classes, pretrained, **kwargs), kwargs)
    known = [f"{zoo}/{m}" for zoo in ZOO for m in ZOO[zoo]] + [f"torchvision/{m}" for m in _torchvision_names()]
    raise NdkdError(
        f"unknown model {name!r}; {one_of(name, known)} "
        "A name is cifar/…, imagenet/…, torchvision/…, timm/… or package.module:callable"
    )


def _made(name: str, make: Callable[[], Any], kwargs: dict[str, Any]) -> nn.Module:
    try:
        model = make()
    except (NdkdError, OSError):
        raise
    except Exception as error:  # of whatever kind constructors raise for arguments that they do not check
        given = f" with kwargs {kwargs}" if kwargs else ""
        raise NdkdError(f"model {name}{given}: {words_of(error)}") from error
    if not isinstance(model, nn.Module):
        raise NdkdError(f"model {name}: wanted a torch.nn.Module, its function returns {type(model).__name__}")
    return model


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


def _from_zoo(zoo: str, model: str, num_classes: int, pretrained: bool, **kwargs) -> nn.Module:
    if model not in ZOO[zoo]:
        raise NdkdError(f"unknown model '{zoo}/{model}'; {one_of(model, list(ZOO[zoo]))}")
    if pretrained:
        raise NdkdError(f"{zoo}/{model} has no weights on a hub: give a file as checkpoint instead of pretrained")
    return ZOO[zoo][model](num_classes=num_classes, **kwargs)


def _from_torchvision(model: str, num_classes: int | None, pretrained: bool, **kwargs) -> nn.Module:
    weights, architecture = _torchvision_weights(model), model.partition(".")[0]
    if architecture in _detectors():
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
    known = [*_torchvision_names(), *_detectors()]
    if architecture not in known:
        raise NdkdError(f"unknown model 'torchvision/{model}'; {one_of(architecture, known)}")
    weights = torchvision.models.get_model_weights(architecture)
    if tag and tag not in weights.__members__:
        known = [f"{architecture}.{name}" for name in weights.__members__]
        raise NdkdError(f"unknown weights 'torchvision/{model}'; {one_of(model, known)}")
    return weights[tag] if tag else weights.DEFAULT


def _with_classes(model: nn.Module, num_classes: int | None) -> nn.Module:
    layers = [model.get_submodule(name) for name in find_classifier(model)]
    if num_classes is not None and layers[0].out_features != num_classes:
        new_classes(layers, num_classes)
    return model


def _from_timm(model: str, num_classes: int, pretrained: bool, **kwargs) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise NdkdError(f"timm/{model} needs timm: python -m pip install 'ndkd[timm]'") from error
    has_tag = "." in model
    known = timm.list_models(include_tags=has_tag)
    if not timm.is_model(model) or (has_tag and model not in known):
        raise NdkdError(f"unknown model 'timm/{model}'; {one_of(model, known)}")
    if not pretrained:
        return timm.create_model(model, num_classes=num_classes, **kwargs)
    try:
        built = timm.create_model(model, pretrained=True, **kwargs)
    except Exception as error:
        page = timm.get_pretrained_cfg(model).hf_hub_id
        raise NdkdError(
            f"cannot load the hub weights of timm/{model} ({type(error).__name__}); without a network, get "
            f"https://huggingface.co/{page}/resolve/main/model.safetensors elsewhere and give it as checkpoint beside "
            "pretrained: true"
        ) from error
    return _with_classes(built, num_classes)


def _from_callable(name: str, num_classes: int, pretrained: bool, **kwargs) -> nn.Module:
    if pretrained:
        raise NdkdError(f"{name} is your own function: give a file as checkpoint instead of pretrained")
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise NdkdError(f"cannot find model {name!r}: {error}; is its package installed or on PYTHONPATH?") from error
    if not callable(function):
        raise NdkdError(f"model {name!r} is a {type(function).__name__}, wanted a function")
    return function(num_classes=num_classes, **kwargs)


def _torchvision_names() -> list[str]:
    return torchvision.models.list_models(module=torchvision.models)


def _detectors() -> list[str]:
    return torchvision.models.list_models(module=torchvision.models.detection, include="fasterrcnn*")


def _from_detector(backbone: str, num_classes: int, pretrained: bool, **kwargs) -> nn.Module:
    from ndkd.models.detectors import build_detector

    return build_detector(backbone, num_classes, pretrained, **kwargs)


FAMILIES = {
    "detector": _from_detector,
    **{zoo: partial(_from_zoo, zoo) for zoo in ZOO},
    "torchvision": _from_torchvision,
    "timm": _from_timm,
}
