"""Callbacks: class means, feature statistics, the run folder."""

from ndkd.callbacks.class_means import ClassMeans
from ndkd.callbacks.feature_statistics import FeatureStatistics
from ndkd.callbacks.run_recorder import RunRecorder, checkpoint_callbacks

__all__ = ["ClassMeans", "FeatureStatistics", "RunRecorder", "checkpoint_callbacks"]
