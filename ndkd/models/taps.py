"""Where the usual families have their feature maps: the layers after which each resolution is done, and the pooled end.

The table of ``docs/models.md`` is tested against it.
"""

import re

from torch import nn

STAGES = ["layer1", "layer2", "layer3", "layer4"]
# the first expression that fits a model's whole name
TAPS: dict[str, list[str]] = {
    # for small images
    r"cifar/resnet50": [*STAGES, "avgpool"],
    r"cifar/(resnet\d+(x4)?|shufflenet_v[12])": [*STAGES[:3], "avgpool"],
    r"cifar/wrn_.*": ["block1", "block2", "block3", "avgpool"],
    r"cifar/mobilenet_v2_half": ["blocks.1", "blocks.2", "blocks.4", "blocks.6", "avgpool"],
    r"cifar/vgg\d+": ["block1", "block2", "block3", "block4", "avgpool"],
    r"imagenet/mobilenet_v1": ["blocks.2", "blocks.4", "blocks.10", "blocks.12", "avgpool"],
    # torchvision
    r"torchvision/(wide_)?res(net|next).*": [*STAGES, "avgpool"],
    r"torchvision/regnet_.*": [*(f"trunk_output.block{k}" for k in range(1, 5)), "avgpool"],
    r"torchvision/mobilenet_v2.*": [*(f"features.{k}" for k in (3, 6, 13, 17)), "classifier.0:input"],
    r"torchvision/mobilenet_v3_small.*": [*(f"features.{k}" for k in (1, 3, 8, 11)), "avgpool"],
    r"torchvision/mobilenet_v3_large.*": [*(f"features.{k}" for k in (3, 6, 12, 15)), "avgpool"],
    r"torchvision/efficientnet_.*": [*(f"features.{k}" for k in (2, 3, 5, 6)), "avgpool"],
    r"torchvision/convnext_.*": [*(f"features.{k}" for k in (1, 3, 5, 7)), "avgpool"],
    r"torchvision/densenet.*": [*(f"features.denseblock{k}" for k in range(1, 5)), "classifier:input"],
    r"torchvision/shufflenet_v2_.*": ["maxpool", "stage2", "stage3", "conv5", "fc:input"],
    r"torchvision/googlenet.*": ["conv3", "inception3b", "inception4e", "inception5b", "avgpool"],
    r"torchvision/mnasnet.*": [*(f"layers.{k}" for k in (8, 9, 11, 13)), "classifier.0:input"],
    # timm
    r"timm/(se|eca|ecase|sk|ska|wide_|tv_|gluon_)*res(net|next)\d.*": [*STAGES, "global_pool"],
    r"timm/regnet[xy]_.*": ["s1", "s2", "s3", "s4", "head.global_pool"],
    r"timm/(mobilenetv3_small|mobilenetv4_conv_small).*": [*(f"blocks.{k}" for k in (0, 1, 2, 4)), "global_pool"],
    r"timm/mobilenetv1_.*": [*(f"blocks.{k}" for k in range(1, 5)), "global_pool"],
    r"timm/((tf_)?efficientnet(v2)?_|mobilenetv2_|mobilenetv3_large_).*": [
        *(f"blocks.{k}" for k in (1, 2, 4, 5)),
        "global_pool",
    ],
    r"timm/(convnext(v2)?|hgnetv2|repvgg|edgenext)_.*": [*(f"stages.{k}" for k in range(4)), "head.global_pool"],
}


def known_taps(name: str, model: nn.Module) -> list[str]:
    """The taps of a model's family, shallow to deep: one for each resolution and the pooled end; empty if unknown.

    Args:
        name: of ``ndkd.models.build_model``.
        model: that was built by it; some have a family's name alone.

    Examples:
        >>> from ndkd.models import build_model
        >>> known_taps("cifar/resnet20", build_model("cifar/resnet20", 10))
        ['layer1', 'layer2', 'layer3', 'avgpool']
    """
    taps = next((taps for pattern, taps in TAPS.items() if re.fullmatch(pattern, name)), [])
    layers = dict(model.named_modules())
    return list(taps) if all(tap.partition(":")[0] in layers for tap in taps) else []
