"""The taps of a model that a module is built from, where nobody has named them."""

from collections.abc import Collection
from typing import Any

from ndkd.errors import NdkdError, shortened
from ndkd.models.config import ModelConfig
from ndkd.models.features import FeatureExtractor
from ndkd.models.taps import known_taps


def add_known_taps(module: Any, role: str, model: FeatureExtractor, used: Collection[str]) -> None:
    """Where loss terms ask for a model's feature maps and nobody has named its taps, those of its family, if known.

    Raises:
        NdkdError: they are not; it says how to name them.
    """
    if f"{role}.feature_maps" not in used or model.taps or not module.needs_taps:
        return
    source = module.sources[role]
    name = source.name if isinstance(source, ModelConfig) else type(model.model).__name__
    taps = known_taps(name, model.model)
    if not taps:
        ready = f"FeatureExtractor({role}, taps=[LAYER, …])"
        how = f"model.init_args.{role}.taps: [LAYER, …]" if isinstance(source, ModelConfig) else ready
        layers = shortened([layer for layer, _ in model.model.named_children()], most=6)
        raise NdkdError(
            f"the losses want {role}.feature_maps, and the taps of {name} are not known: name them, shallow to deep, "
            f"with {how}; its layers are {layers}"
        )
    model.add_taps(taps)
