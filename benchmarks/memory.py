"""Peak resident memory of ``ndkd fit`` with all of CIFAR-10 in memory: KD++, a few training steps, a whole evaluation.

Options go to ``ndkd fit``.

    python benchmarks/memory.py
"""

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from synthetic_cifar import write_config, write_images


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_images(root, 50_000, 10_000)
        command = [sys.executable, "-m", "ndkd", "fit", "--config", str(write_config(root, "r56_r20"))]
        options = ["--run_dir", str(root / "run"), "--trainer.limit_train_batches", "100"]
        options += ["--trainer.enable_progress_bar", "false", *sys.argv[1:]]
        path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        subprocess.run([*command, *options], check=True, env=os.environ | {"PYTHONPATH": path})
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20  # from KiB
    print(f"peak resident memory with 60,000 images: {peak:.2f} GiB (wanted under 2 GiB)")


if __name__ == "__main__":
    main()
