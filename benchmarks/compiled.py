"""What compiling is worth once it is paid: an epoch of KD++ through ``ndkd fit`` in bfloat16, and what came before it.

Each side trains for three epochs in a process of its own. The last epoch's time is compared, in turns; "start" is by
how much the whole training took longer than three such epochs, compilation included. What follows ``--`` goes to every
run.

    python benchmarks/compiled.py --pairs r56_r20
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path

from quiet import alone, quiet_fit
from synthetic_cifar import BATCH_SIZE, PAIRS, written

from ndkd.runs import Run

TEACHER, STUDENT = (f"--model.init_args.{role}.compile=default" for role in ("teacher", "student"))
SIDES = {"neither": [], "teacher": [TEACHER], "student": [STUDENT], "both": [TEACHER, STUDENT]}
EPOCHS = 3


def seconds_of(config: Path, options: list[str]) -> tuple[float, float]:
    """Of the last epoch, and of the start."""
    with tempfile.TemporaryDirectory() as folder:
        quiet_fit(config, "--run_dir", folder, "--trainer.max_epochs", EPOCHS, *options)
        epochs = [float(row["time/epoch"]) for row in Run(folder).metrics()]
        return epochs[-1], sum(epochs) - EPOCHS * epochs[-1]


def main() -> None:
    parser = argparse.ArgumentParser(usage="%(prog)s [--pairs PAIR …] [--steps N] [--repeats N] [-- OPTION_OF_A_RUN …]")
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=["r56_r20"])
    parser.add_argument("--steps", type=int, default=40, help="of an epoch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("options", nargs="*")
    arguments = parser.parse_args()
    os.environ |= {"PYTHONWARNINGS": "ignore", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    images, given = BATCH_SIZE * arguments.steps, ["--trainer.precision=bf16-mixed", *arguments.options]
    for pair in arguments.pairs:
        with written(pair, images) as config:
            times = [
                {side: alone(seconds_of, config, [*given, *options]) for side, options in SIDES.items()}
                for _ in range(arguments.repeats)
            ]
        for side in SIDES:
            ratios = [found["neither"][0] / found[side][0] for found in times]
            epoch, start = (statistics.median(found[side][k] for found in times) for k in (0, 1))
            print(
                f"{pair}, compiled: {side:<8} {images / epoch:.0f} images/s, ratio {statistics.median(ratios):.2f}, "
                f"from {min(ratios):.2f} to {max(ratios):.2f}; start {start:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
