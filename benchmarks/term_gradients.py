"""What ``TermGradients`` costs: measured steps against the others of the same run of KD++ on digits.

Needs the teacher that ``ndkd fit --config digits/teacher.yaml`` trains; run it from the same folder.

    python benchmarks/term_gradients.py
"""

import inspect
import os
import statistics
import tempfile
import time

import lightning.pytorch as L
from quiet import quiet_fit

from ndkd.callbacks import TermGradients

EPOCHS, BATCH_SIZE = 30, 64
SECONDS: dict[bool, list[float]] = {True: [], False: []}  # of steps that are measured, and of others


class StepTimer(L.Callback):
    """Time of each step; every second one is measured."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.started, self.is_measured = time.perf_counter(), trainer.global_step % 2 == 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        SECONDS[self.is_measured].append(time.perf_counter() - self.started)


def main() -> None:
    os.environ["PYTHONWARNINGS"] = "ignore"
    callbacks = "[{class_path: __main__.StepTimer}, {class_path: TermGradients, init_args: {every_n_steps: 2}}]"
    data = ["--data.init_args.train_size", "null", "--data.init_args.batch_size", BATCH_SIZE]
    with tempfile.TemporaryDirectory() as folder:
        options = ["--trainer.max_epochs", EPOCHS, "--run_dir", folder, "--trainer.callbacks", callbacks]
        quiet_fit("digits/kd++.yaml", *data, *options)
    measured, plain = (statistics.median(SECONDS[kind][10:]) for kind in (True, False))
    every = inspect.signature(TermGradients).parameters["every_n_steps"].default
    print(f"a step: {1e3 * plain:.1f} ms, a measured one: {1e3 * measured:.1f} ms, {measured / plain:.2f} times that")
    print(f"at one step in {every}: {(measured / plain - 1) / every:.2%} of the time")


if __name__ == "__main__":
    main()
