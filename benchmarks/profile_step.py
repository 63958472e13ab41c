"""Where the time of a KD++ step goes on a CPU: convolutions, the rest of the models, and everything else.

Every operation of torch is timed by its profiler inside ``ndkd fit``, without the operations in it; what no operation
accounts for is Python's.

    python benchmarks/profile_step.py
    python benchmarks/profile_step.py --pairs r32x4_r8x4 -- --trainer.precision bf16-mixed
"""

import time
from pathlib import Path

import lightning.pytorch as L
from quiet import fit_with
from synthetic_cifar import for_each_pair
from torch.profiler import ProfilerActivity, profile

STEPS, SKIPPED = 40, 5
CONVOLUTIONS = ("mkldnn_convolution", "convolution_backward", "_convolution", "conv2d", "slow_conv2d", "thnn_conv2d")
NORMS = ("batch_norm", "native_batch_norm")


class Profiled(L.Callback):
    """The operations of the steps after the first few."""

    seconds = 0.0
    shares: dict[str, float] = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == SKIPPED:
            self.profiler = profile(activities=[ProfilerActivity.CPU])
            self.profiler.start()
            self.started = time.perf_counter()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == STEPS - 1:
            Profiled.seconds = (time.perf_counter() - self.started) / (STEPS - SKIPPED)
            self.profiler.stop()
            own = {event.key: event.self_cpu_time_total / 1e6 for event in self.profiler.key_averages()}
            Profiled.shares = shares_of(own, Profiled.seconds * (STEPS - SKIPPED))


def shares_of(seconds: dict[str, float], whole: float) -> dict[str, float]:
    """Shares of the time by kind; ``seconds`` are the operations' own."""
    found = dict.fromkeys(("convolutions", "batch norms", "other operations of torch"), 0.0)
    for name, time_ in seconds.items():
        if not name.startswith(("aten::", "mkldnn")):
            continue  # the profiler's and autograd's own labels
        kind = "convolutions" if any(word in name for word in CONVOLUTIONS) else "other operations of torch"
        kind = "batch norms" if any(word in name for word in NORMS) else kind
        found[kind] += time_ / whole
    return found | {"Python and between operations": 1 - sum(found.values())}


def measure(pair: str, config: Path, options: list[str]) -> None:
    names = {"teacher asked": [], "teacher read from a recording": ["--teacher_cache", config.parent / "recorded"]}
    for name, more in names.items():
        for _ in range(1 + bool(more)):  # the first one records
            fit_with(Profiled, config, *more, *options)
        shown = ", ".join(f"{kind} {share:.0%}" for kind, share in Profiled.shares.items())
        print(f"{pair}, {name}: {1e3 * Profiled.seconds:.0f} ms a step; {shown}", flush=True)


if __name__ == "__main__":
    for_each_pair(measure, STEPS)
