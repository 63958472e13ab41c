"""The share of an epoch that ``ndkd fit`` spends on the feature statistics, with all that they compute, log and write.

KD++ on the digits, from the first run of the teacher, and on images of CIFAR's size; the epoch is the run's own
``time/epoch``. In the first epoch the teacher embeds the evaluation set.

    python benchmarks/feature_statistics.py
"""

import tempfile
from pathlib import Path

import lightning.pytorch as L
import numpy as np
from quiet import quiet_fit
from synthetic_cifar import written

from ndkd.callbacks import FeatureStatistics
from ndkd.cli import main as ndkd
from ndkd.runs import Run

SIZES = 2560, 512  # training and evaluation images, CIFAR's ratio


class Durations(L.Callback):
    """Seconds in the statistics' hooks, of the run that has ended: for each hook of its epochs those of each call."""

    seconds: dict[str, list[float]] = {}

    def on_fit_end(self, trainer, pl_module):
        recorded = trainer.profiler.recorded_durations
        hooks = [name for name in vars(FeatureStatistics) if name[:3] == "on_" and name != "on_fit_start"]  # once a run
        own = {name: f"[Callback]FeatureStatistics.{name}" for name in hooks}
        Durations.seconds = {name: recorded[full] for name, full in own.items()}


def measure(name: str, config: str | Path, epochs: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        options = [f"--trainer.max_epochs={epochs}", "--trainer.num_sanity_val_steps=0", "--run_dir", folder]
        callback = f"--trainer.callbacks+={__name__}.Durations"
        quiet_fit(config, "--trainer.profiler=simple", callback, *options)
        epoch = np.array([float(row["time/epoch"]) for row in Run(folder).metrics()])
    seconds = sum(np.reshape(calls, (epochs, -1)).sum(axis=1) for calls in Durations.seconds.values())
    share = seconds / epoch
    print(
        f"{name}: {np.median(share[1:]):.2%} of an epoch of {np.median(epoch[1:]):.2f} s "
        f"(from {share[1:].min():.2%} to {share[1:].max():.2%}), {share[0]:.2%} of the first of {epoch[0]:.2f} s",
        flush=True,
    )


def main() -> None:
    if not Run("runs/digits/teacher").is_used:
        assert ndkd(["fit", "--config", "configs/digits/teacher.yaml"]) == 0
    measure("digits, resnet20 to resnet8", "configs/digits/kd++.yaml", 60)
    with written("r56_r20", *SIZES) as config:
        measure("CIFAR's size, resnet56 to resnet20", config, 3)


if __name__ == "__main__":
    main()
