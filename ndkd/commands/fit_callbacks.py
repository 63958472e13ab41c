"""The callbacks that ``ndkd fit`` adds to those of a configuration."""

from typing import Any

import lightning.pytorch as L

from ndkd.callbacks.auto_weights import AutoWeights
from ndkd.callbacks.checkpoints import checkpoint_callbacks
from ndkd.callbacks.compile_time import CompileTime
from ndkd.callbacks.detection_pictures import DetectionPictures
from ndkd.callbacks.epoch_lines import EpochLines
from ndkd.callbacks.feature_statistics import FeatureStatistics
from ndkd.callbacks.opening import Opening
from ndkd.callbacks.run_recorder import RunRecorder
from ndkd.callbacks.teacher_accuracy import TeacherAccuracy
from ndkd.runs import Run


def of_the_start(trainer_options: Any) -> list[L.Callback]:
    """What a training begins with."""
    return [AutoWeights(), Opening(precision_is_given=trainer_options["precision"] is not None), CompileTime()]


def of_a_run(run: Run, config: str, monitored: str, writes_lines: bool) -> list[L.Callback]:
    """What keeps a run in its folder; the order is that in which they measure, write and save an epoch.

    Args:
        run: the run folder.
        config: the resolved configuration as YAML.
        monitored: the metric that the best epoch is chosen by.
        writes_lines: print a line an epoch.
    """
    return [
        FeatureStatistics(run),
        DetectionPictures(run),
        RunRecorder(run, config, is_tested=True),
        *([EpochLines()] if writes_lines else []),
        TeacherAccuracy(run),
        *checkpoint_callbacks(run, monitored),
    ]
