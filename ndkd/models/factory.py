"""From a name to a model."""

import importlib

import torchvision
from torch import nn

from ndkd.errors import NdkdError, one_of
from ndkd.models.cifar import MODELS as CIFAR_MODELS
from ndkd.models.features import find_classifier


def build_model(name: str, num_classes: int, pretrained: bool = False, **kwargs) -> nn.Module:
    """Build a classifier by its name.

    Args:
        name: ``cifar/resnet20`` (our zoo), ``torchvision/resnet34``, ``timm/vit_small_patch16_224``, or
            ``package.module:callable``, which is called with ``num_classes`` and the keyword arguments.
        num_classes: number of logits.
        pretrained: weights of torchvision's or timm's hub; the classifier is new where its classes differ.
        kwargs: go to the model's constructor.

    Raises:
        NdkdError: an unknown name (the nearest are suggested), a missing package, weights that cannot be fetched.

    Example:
        >>> build_model("cifar/resnet20", num_classes=10).fc.out_features
        10
    """
    family, _, model = name.partition("/")
    try:
        if model and family in FAMILIES:
            return FAMILIES[family](model, num_classes, pretrained, **kwargs)
        if ":" in name:
            return _from_callable(name, num_classes, pretrained, **kwargs)
    except TypeError as error:
        if not kwargs:
            raise
        raise NdkdError(f"model {name} with kwargs {kwargs}: {error}") from error
    known = [f"cifar/{m}" for m in CIFAR_MODELS] + [f"torchvision/{m}" for m in _torchvision_names()]
    raise NdkdError(
        f"unknown model {name!r}; {one_of(name, known)} "
        "A name is cifar/…, torchvision/…, timm/… or package.module:callable"
    )


def default_statistics(name: str, model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation that torchvision's or timm's weights want; None where the data's are right."""
    timm_config = getattr(model, "pretrained_cfg", None)
    if name.startswith("timm/") and timm_config:
        return tuple(timm_config["mean"]), tuple(timm_config["std"])
    if not name.startswith("torchvision/"):
        return None
    transforms = torchvision.models.get_model_weights(name.partition("/")[2]).DEFAULT.transforms()
    return tuple(transforms.mean), tuple(transforms.std)


def _from_zoo(model: str, num_classes: int, pretrained: bool, **kwargs) -> nn.Module:
    if model not in CIFAR_MODELS:
        raise NdkdError(f"unknown model 'cifar/{model}'; {one_of(model, list(CIFAR_MODELS))}")
    if pretrained:
        raise NdkdError(f"cifar/{model} has no weights on a hub: give a file as checkpoint instead of pretrained")
    return CIFAR_MODELS[model](num_classes=num_classes, **kwargs)


def _from_torchvision(model: str, num_classes: int, pretrained: bool, **kwargs) -> nn.Module:
    if model not in _torchvision_names():
        raise NdkdError(f"unknown model 'torchvision/{model}'; {one_of(model, _torchvision_names())}")
    if not pretrained:
        return torchvision.models.get_model(model, weights=None, num_classes=num_classes, **kwargs)
    weights = torchvision.models.get_model_weights(model).DEFAULT
    try:
        built = torchvision.models.get_model(model, weights=weights, **kwargs)
    except (OSError, RuntimeError) as error:  # no network, or a damaged download
        file = weights.url.rsplit("/", 1)[-1]
        raise NdkdError(
            f"cannot download the weights of torchvision/{model} ({error}); get {weights.url} elsewhere and put it "
            f"at $TORCH_HOME/hub/checkpoints/{file}, or give it as checkpoint"
        ) from error
    for name in find_classifier(built):
        layer = built.get_submodule(name)
        if layer.out_features != num_classes:
            built.set_submodule(name, nn.Linear(layer.in_features, num_classes))
    return built


def _from_timm(model: str, num_classes: int, pretrained: bool, **kwargs) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise NdkdError(f"timm/{model} needs timm: python -m pip install 'ndkd[timm]'") from error
    if not timm.is_model(model.split(".")[0]):
        raise NdkdError(f"unknown model 'timm/{model}'; {one_of(model, timm.list_models())}")
    try:
        return timm.create_model(model, pretrained=pretrained, num_classes=num_classes, **kwargs)
    except Exception as error:
        if "Invalid pretrained tag" in str(error):
            tags = timm.list_pretrained(f"{model.split('.')[0]}.*")
            raise NdkdError(f"unknown model 'timm/{model}'; {one_of(model, tags)}") from error
        if not pretrained:
            raise
        raise NdkdError(
            f"cannot load the hub weights of timm/{model} ({type(error).__name__}); without a network, get the file "
            "elsewhere and give it as checkpoint"
        ) from error


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


FAMILIES = {"cifar": _from_zoo, "torchvision": _from_torchvision, "timm": _from_timm}
