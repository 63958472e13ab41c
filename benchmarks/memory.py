"""Peak resident memory of ``ndkd fit`` with all of CIFAR-10 in memory: KD++, a few training steps, a whole evaluation.

Options go to ``ndkd fit``.

    python benchmarks/memory.py
"""

import resource
import sys

from quiet import ndkd_process
from synthetic_cifar import written


def main() -> None:
    options = ["--trainer.limit_train_batches", "100", "--trainer.enable_progress_bar", "false", *sys.argv[1:]]
    with written("r56_r20", 50_000, 10_000) as config:
        ndkd_process("fit", "--config", config, "--run_dir", config.parent / "run", *options)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20  # from KiB
    print(f"peak resident memory with 60,000 images: {peak:.2f} GiB (wanted under 2 GiB)")


if __name__ == "__main__":
    main()
