"""Callbacks: class means, weights, frozen parts, statistics of features and gradients, accuracy, the run folder."""

from ndkd.callbacks.auto_weights import AutoWeights
from ndkd.callbacks.checkpoints import AtomicCheckpoints, checkpoint_callbacks
from ndkd.callbacks.class_means import ClassMeans
from ndkd.callbacks.detection_pictures import DetectionPictures
from ndkd.callbacks.epoch_lines import EpochLines
from ndkd.callbacks.feature_statistics import FeatureStatistics
from ndkd.callbacks.freezing import Freezing
from ndkd.callbacks.run_recorder import RunRecorder, in_order
from ndkd.callbacks.teacher_accuracy import TeacherAccuracy
from ndkd.callbacks.teacher_cache import TeacherCache
from ndkd.callbacks.term_gradients import TermGradients
