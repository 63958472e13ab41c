"""Callbacks: class means, feature statistics, the run folder."""

from ndkd.callbacks.class_means import ClassMeans
from ndkd.callbacks.detection_pictures import DetectionPictures
from ndkd.callbacks.feature_statistics import FeatureStatistics
from ndkd.callbacks.run_recorder import AtomicCheckpoints, RunRecorder, checkpoint_callbacks, in_order
