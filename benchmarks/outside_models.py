"""What a KD++ step of ``ndkd fit`` costs beside the models' arithmetic, on a CPU.

After each step the same images go through the same models once more, forward and backward, and nothing else is done;
what the step took longer is the cost of reading and augmenting images, losses, optimizer, metrics, callbacks and
Lightning. Both are timed in turns, in one process.

    python benchmarks/outside_models.py
    python benchmarks/outside_models.py --pairs r32x4_r8x4 -- --trainer.precision bf16-mixed
"""

import statistics
import time
from pathlib import Path

import lightning.pytorch as L
import torch
from quiet import fit_with
from synthetic_cifar import for_each_pair

STEPS, SKIPPED = 60, 10


class ModelsAlone(L.Callback):
    """Times of whole steps, and of the models' part done once more, in seconds."""

    reads = False  # the teacher is not asked
    steps: list[float] = []
    models: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        now = time.perf_counter()
        if batch_idx > SKIPPED:
            ModelsAlone.steps.append(now - self.ended)
        now = time.perf_counter()
        images = batch[0].to(memory_format=pl_module.memory_format)
        with trainer.precision_plugin.forward_context():
            if not ModelsAlone.reads:
                with torch.no_grad():
                    pl_module.teacher.itself(images)(images)
            student = pl_module.student(images)
            ends = [student.logits, student.embedding]
        torch.autograd.grad(ends, list(pl_module.student.parameters()), [torch.ones_like(end) for end in ends])
        if batch_idx > SKIPPED:
            ModelsAlone.models.append(time.perf_counter() - now)
        self.ended = time.perf_counter()


def measure(pair: str, config: Path, options: list[str]) -> None:
    for name, ModelsAlone.reads in (("asked and recorded", False), ("read", True)):
        ModelsAlone.steps, ModelsAlone.models = [], []
        fit_with(ModelsAlone, config, "--teacher_cache", config.parent / "recorded", *options)
        shares = [1 - part / whole for whole, part in zip(ModelsAlone.steps, ModelsAlone.models, strict=True)]
        print(
            f"{pair}, teacher {name}: {1e3 * statistics.median(ModelsAlone.steps):.0f} ms a step, "
            f"outside of the models {statistics.median(shares):.1%} (wanted at most 5 %)",
            flush=True,
        )


if __name__ == "__main__":
    for_each_pair(measure, STEPS)
