"""From a name to a model."""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from ndkd.errors import NdkdError, suggestion, words_of
from ndkd.models.cifar import MODELS as CIFAR_MODELS
from ndkd.models.detectors import build_detector
from ndkd.models.hubs import from_timm, from_torchvision, torchvision_names
from ndkd.models.mobilenetv1 import MobileNetV1

ZOO: dict[str, dict[str, Callable[..., nn.Module]]] = {"cifar": CIFAR_MODELS, "imagenet": {"mobilenet_v1": MobileNetV1}}


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

    Examples:
        >>> build_model("cifar/resnet20", num_classes=10).fc.out_features
        10
    """
    family, _, model = name.partition("/")
    make: Callable[..., Any] | None = partial(FAMILIES[family], model) if model and family in FAMILIES else None
    make = partial(_from_callable, name) if make is None and ":" in name else make
    if make is not None:
        return _made(name, partial(make, num_classes, pretrained, **kwargs), kwargs)
    raise NdkdError(
        f"unknown model {name!r}; {suggestion(name, known_models())} "
        "A name is cifar/…, imagenet/…, torchvision/…, timm/… or package.module:callable"
    )


def known_models() -> list[str]:
    """The names of our zoo's and of torchvision's models."""
    return [f"{zoo}/{m}" for zoo in ZOO for m in ZOO[zoo]] + [f"torchvision/{m}" for m in torchvision_names()]


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


def _from_zoo(zoo: str, model: str, num_classes: int, pretrained: bool, **kwargs) -> nn.Module:
    if model not in ZOO[zoo]:
        elsewhere = [known for known in known_models() if known.endswith(f"/{model}")]
        known = elsewhere or [f"{zoo}/{known}" for known in ZOO[zoo]]
        raise NdkdError(f"unknown model '{zoo}/{model}'; {suggestion(f'{zoo}/{model}', known)}")
    if pretrained:
        raise NdkdError(f"{zoo}/{model} has no weights on a hub: give a file as checkpoint instead of pretrained")
    return ZOO[zoo][model](num_classes=num_classes, **kwargs)


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


FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "detector": build_detector,
    **{zoo: partial(_from_zoo, zoo) for zoo in ZOO},
    "torchvision": from_torchvision,
    "timm": from_timm,
}
