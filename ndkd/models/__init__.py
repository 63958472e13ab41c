"""Models: built by name, read by hooks."""

from ndkd.models.config import ModelConfig
from ndkd.models.factory import build_model
from ndkd.models.features import FeatureExtractor
from ndkd.models.output import ModelOutput
