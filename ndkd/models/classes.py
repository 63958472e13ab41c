"""Which classes a model's logits stand for, and how they become the data's."""

import re
from collections import Counter
from collections.abc import Sequence

import torchvision
from torch import nn

from ndkd.errors import NdkdError, shortened

Names = Sequence[str] | None  # of classes, where they are known
WNID = re.compile(r"n\d{8}")  # WordNet's number of a class of ImageNet


def published_class_names(num_classes: int, wanted: Sequence[str]) -> list[str] | None:
    """The names of COCO's or ImageNet's classes in the order of published weights, None where they are not known.

    In words as torchvision has them or, where the data names its classes so, as WordNet's numbers.
    """
    if num_classes == 91:
        return torchvision.models.detection.FasterRCNN_ResNet50_FPN_Weights.DEFAULT.meta["categories"]
    if not all(WNID.fullmatch(name) for name in wanted):
        return torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"] if num_classes == 1000 else None
    if num_classes == len(wanted) == 1000:
        return sorted(wanted)
    try:
        from timm.data import ImageNetInfo, infer_imagenet_subset
    except ImportError:
        return None
    subset = infer_imagenet_subset({"num_classes": num_classes})
    return ImageNetInfo(subset).label_names() if subset else None


def fit_classes(
    layers: list[nn.Linear], found: Names, wanted: Names, num_classes: int, strict: bool, renew: bool, source: str
) -> bool:
    """Make a classifier one of the data's classes, in place.

    Where it knows them all, it keeps their logits, in the data's order.

    Args:
        layers: the classifier, one layer per head.
        found: the names of its classes.
        wanted: the names of the data's.
        num_classes: number of the data's classes.
        strict: the logits must be right as they are.
        renew: where the number of classes differs, a new classifier may take its place.
        source: names the model in a message.

    Returns:
        Whether its logits are those of the data's classes, as far as can be known.

    Raises:
        NdkdError: classes that the model does not know.
    """
    own = layers[0].out_features  # a detector's second layer has four outputs for each class
    is_other = False
    if found is not None and wanted is not None and list(found) != list(wanted):
        times = Counter(found)
        missing = [name for name in wanted if times[name] != 1]  # a name of two classes tells neither
        if not missing:
            _keep(layers, [list(found).index(name) for name in wanted])
            return True
        if strict:
            raise NdkdError(
                f"{source} does not know {len(missing)} of the data's {len(wanted)} classes: {shortened(missing)}; "
                f"it has {shortened(found)}. Train a teacher on this data, or give its classes the teacher's names"
            )
        is_other = True
    if own == num_classes:
        return not is_other
    if strict or not renew:
        to_do = "train a teacher on this data" if strict else "with pretrained: true it gets a new classifier"
        raise NdkdError(f"{source} has {own} classes without names, the data has {num_classes}: {to_do}")
    new_classes(layers, num_classes)
    return False


def new_classes(layers: list[nn.Linear], num_classes: int) -> None:
    """Give a classifier another number of classes, with new weights, in place."""
    _keep(layers, [0] * num_classes)  # any of the old ones
    for layer in layers:
        layer.reset_parameters()


def _keep(layers: list[nn.Linear], rows: list[int]) -> None:
    own = layers[0].out_features
    for layer in layers:
        layer.out_features = layer.out_features // own * len(rows)
        for name, parameter in layer.named_parameters():
            setattr(layer, name, nn.Parameter(parameter.detach().unflatten(0, (own, -1))[rows].flatten(0, 1)))
