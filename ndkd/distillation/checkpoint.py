"""What of a module goes into a checkpoint and comes back from it: the student and what trained it, not the teacher."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor

from ndkd.configuration.entries import differences
from ndkd.distillation.step_output import ONE, of_teacher
from ndkd.models.checkpoint import check_keys
from ndkd.models.config import ModelConfig
from ndkd.models.features import FeatureExtractor

# "loss_modules." is the objective of earlier versions
TRAINING_ONLY = ("teacher.", "projector.", "objective.", "loss_modules.", "class_means")
TRAINED = "current_model_state"  # beside the averages, by Lightning's WeightAveraging


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


def keep_class_means(module: Any, checkpoint: dict[str, Any]) -> None:
    """Store the class means among the weights: they are none of the module's, and a resumed run keeps them."""
    for teacher, means in module.means_by_teacher.items():
        checkpoint["state_dict"][of_teacher("class_means", teacher)] = means


def keep_what_is_built(module: Any, checkpoint: dict[str, Any], goes_on: bool, averages: bool) -> None:
    """Leave in a checkpoint what this stage has built; the class means come with it.

    Args:
        module: whose weights will be loaded.
        checkpoint: of a run; where weights were averaged, the averages are its weights.
        goes_on: a training does, with the weights that it had.
        averages: it still averages them.

    Raises:
        NdkdError: weights that do not fit.
    """
    _take_class_means(module, checkpoint["state_dict"])
    if goes_on and not averages:
        checkpoint["state_dict"] = checkpoint.get(TRAINED, checkpoint["state_dict"])
    if not (goes_on and averages):  # else Lightning's callback would take them in a test, too
        checkpoint.pop(TRAINED, None)
    own = module.state_dict()
    for name in ("state_dict", TRAINED):
        if name in checkpoint:
            weights: dict[str, Tensor] = checkpoint[name]
            kept = {key: value for key, value in weights.items() if key in own or not key.startswith(TRAINING_ONLY)}
            check_keys(own, kept, "the checkpoint")
            checkpoint[name] = kept


def _take_class_means(module: Any, weights: dict[str, Tensor]) -> None:
    found = {}
    for teacher, wanted in (module.means_by_teacher or {ONE: None}).items():
        name = of_teacher("class_means", teacher)
        if name not in weights:
            continue
        if wanted is not None:
            check_keys({name: wanted}, {name: weights[name]}, "the checkpoint")
        found[teacher] = weights[name].to(module.device, module.dtype)
    if ONE in found:
        module.class_means = found[ONE]
    elif found:
        module.class_means = {**module.class_means, **found}
