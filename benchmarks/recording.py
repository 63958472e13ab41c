"""Writing and reading what a teacher says of ImageNet's training images: an epoch of 1,281,167 rows for 1,000 classes.

Logits are random, a teacher that takes no time: what is timed is the recording alone.

    python benchmarks/recording.py
    python benchmarks/recording.py --top-k 50 --dtype float16
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from ndkd.distillation.compression import Compression
from ndkd.distillation.recording import EpochReader, EpochWriter, Rows

IMAGES, CLASSES, BATCH_SIZE, POOL = 1_281_167, 1000, 256, 16


def main() -> None:
    parser = argparse.ArgumentParser(usage="%(prog)s [--top-k N] [--dtype exact|float16]")
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--dtype", choices=("exact", "float16"), default="exact")
    arguments = parser.parse_args()
    compression = Compression(arguments.dtype, arguments.top_k)
    logits = torch.randn(POOL, BATCH_SIZE, CLASSES)
    outputs = [{"logits": some, "norm": some.norm(dim=1)} for some in logits]
    sizes = [BATCH_SIZE] * (IMAGES // BATCH_SIZE) + [IMAGES % BATCH_SIZE]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "epoch.rows"
        rows = Rows.of(compression.pack(outputs[0]))
        started = time.perf_counter()
        writer = EpochWriter(file, rows)
        for number, size in enumerate(sizes):
            said = {name: tensor[:size] for name, tensor in outputs[number % POOL].items()}
            writer.add(compression.pack(said))
        writer.commit()
        written = time.perf_counter()
        space = file.stat().st_size
        reader = EpochReader(file, rows)
        checked = time.perf_counter()
        for size in sizes:
            kept = reader.take(size)
            assert kept is not None
            found = compression.unpack(kept, CLASSES)["logits"]
        reader.close()
        read = time.perf_counter()
        assert found.shape == (sizes[-1], CLASSES)
    print(
        f"top_k {arguments.top_k}, {arguments.dtype}: {space / 1e9:.2f} GB an epoch; written at "
        f"{IMAGES / (written - started):,.0f} images/s, checked in {checked - written:.1f} s, read at "
        f"{IMAGES / (read - checked):,.0f} images/s"
    )


if __name__ == "__main__":
    main()
