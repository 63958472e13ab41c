"""What of a module goes into a checkpoint and comes back from it: the student and what trained it, not the teacher."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from ndkd.configuration.entries import differences
from ndkd.models.checkpoint import check_keys
from ndkd.models.config import ModelConfig
from ndkd.models.features import FeatureExtractor

# "loss_modules." is the objective of earlier versions
TRAINING_ONLY = ("teacher.", "projector.", "objective.", "loss_modules.", "class_means")


def without_teacher(module: nn.Module) -> None:
    """Have the module's ``state_dict`` leave the teacher out, and ``load_state_dict`` not miss it."""
    module.register_state_dict_post_hook(_drop_teacher)
    module.register_load_state_dict_post_hook(_forgive_teacher)


def portable(config: ModelConfig, built: FeatureExtractor) -> dict[str, Any]:
    """Primitives from which the model is built again without any other file."""
    buffers = built.mean, built.std
    mean, std = (None if b is None else [round(v, 6) for v in b.flatten().tolist()] for b in buffers)
    config = replace(config, checkpoint=None, pretrained=False, compile=None)
    return asdict(replace(config, classifier=built.classifier, mean=mean, std=std))


def say_what_differs(hyper_parameters: Mapping[str, Any], checkpoint: dict[str, Any]) -> None:
    """A line for each entry that a checkpoint knows otherwise; the configuration wins."""
    stored = checkpoint.get("hyper_parameters", {})
    for name, (value, before) in differences(dict(hyper_parameters), stored).items():
        print(f"ndkd: {name} is {value} in the configuration, {before} in the checkpoint")


def keep_what_is_built(module: Any, checkpoint: dict[str, Any]) -> None:
    """Leave in a checkpoint what this stage has built; the class means come with it.

    Raises:
        NdkdError: weights that do not fit.
    """
    weights: dict[str, Tensor] = checkpoint["state_dict"]
    if module.class_means is None and "class_means" in weights:
        module.class_means = torch.empty_like(weights["class_means"])
    own = module.state_dict()
    kept = {key: value for key, value in weights.items() if key in own or not key.startswith(TRAINING_ONLY)}
    check_keys(own, kept, "the checkpoint")
    checkpoint["state_dict"] = kept


def _drop_teacher(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, metadata: dict) -> None:
    for key in [key for key in state_dict if key.startswith(f"{prefix}teacher.")]:
        del state_dict[key]


def _forgive_teacher(module: nn.Module, keys: Any) -> None:
    keys.missing_keys[:] = [key for key in keys.missing_keys if not key.startswith("teacher.")]
