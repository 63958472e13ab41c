"""KD++ on images of CIFAR's size: all of ``ndkd fit``'s loop against a plain PyTorch script, as published code is.

One epoch of training and an evaluation, each in a process of its own. Ours is timed from the start of training to its
end, with checkpoints and everything else that a run writes; neither side's time has start-up, the class means, the
teacher's compilation or ndkd's final test in it. What follows ``--`` goes to ``ndkd fit``.

    python benchmarks/cifar.py
    python benchmarks/cifar.py --pairs r56_r20 -- --model.init_args.teacher.compile default
    python benchmarks/cifar.py --recorded -- --trainer.precision bf16-mixed   # also ours from a full recording
"""

import argparse
import os
import statistics
import time
from pathlib import Path

import lightning.pytorch as L
import torch
from loader import AUGMENTATION
from losses import loop_over_samples
from quiet import alone, fit_with
from synthetic_cifar import BATCH_SIZE, PAIRS, SGD, TEMPERATURE, SyntheticCIFAR10, written
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms

from ndkd.data import CIFAR10DataModule
from ndkd.models import FeatureExtractor, build_model
from ndkd.models.projector import Projector

TRAIN_SIZE = {"r56_r20": 2560, "wrn_40_2_wrn_40_1": 1920, "r32x4_r8x4": 1280}
WANTED = {"r56_r20": 1.5, "wrn_40_2_wrn_40_1": 1.4, "r32x4_r8x4": 1.2}
TEST_SIZE = BATCH_SIZE  # one whole batch: ndkd runs the teacher on these once a run, and a part would compile it anew


class FitTimer(L.Callback):
    """Seconds from the start of training to its end."""

    seconds = 0.0

    def on_train_start(self, trainer, pl_module):
        self.started = time.perf_counter()

    def on_fit_end(self, trainer, pl_module):
        FitTimer.seconds = time.perf_counter() - self.started


def ours(config: Path, options: list[str]) -> float:
    fit_with(FitTimer, config, *options)
    return FitTimer.seconds


def plain_loop(root: Path, pair: str, class_means: dict[str, list[float]]) -> float:
    teacher, student = (FeatureExtractor(build_model(name, 10)) for name in PAIRS[pair])
    teacher.model.load_state_dict(torch.load(root / f"{pair}.pth"))
    teacher.eval()
    same_width = student.embedding_dim == teacher.embedding_dim
    projector = nn.Identity() if same_width else Projector(student.embedding_dim, teacher.embedding_dim)
    optimizer = torch.optim.SGD([*student.parameters(), *projector.parameters()], **SGD)
    normalize = transforms.Normalize(CIFAR10DataModule.mean, CIFAR10DataModule.std)
    train = SyntheticCIFAR10(root, True, transforms.Compose([*AUGMENTATION, normalize]))
    test = SyntheticCIFAR10(root, False, transforms.Compose([transforms.ToTensor(), normalize]))
    log = []

    student.train()
    warm_up = torch.rand(BATCH_SIZE, 3, 32, 32)
    with torch.no_grad():
        teacher(warm_up)
    student(warm_up).logits.sum().backward()

    started = time.perf_counter()
    for images, target in DataLoader(train, BATCH_SIZE, shuffle=True):
        s = student(images)
        with torch.no_grad():
            t = teacher(images)
        ce = F.cross_entropy(s.logits, target)
        soft_s, soft_t = F.log_softmax(s.logits / TEMPERATURE, dim=1), F.softmax(t.logits / TEMPERATURE, dim=1)
        kd = F.kl_div(soft_s, soft_t, reduction="batchmean") * TEMPERATURE**2
        nd = loop_over_samples(projector(s.embedding), t.embedding, class_means, target)
        loss = ce + kd + nd
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        log.append([loss.item(), ce.item(), kd.item(), nd.item(), (s.logits.argmax(1) == target).float().mean().item()])
    student.eval()
    with torch.no_grad():
        for images, target in DataLoader(test, BATCH_SIZE):
            logits = student(images).logits
            log.append([F.cross_entropy(logits, target).item(), (logits.argmax(1) == target).float().mean().item()])
    return time.perf_counter() - started


def compare(pair: str, repeats: int, options: list[str], recorded: bool) -> None:
    names = ["plain loop", *(["recording", "replayed"] if recorded else ["ndkd fit"])]
    size = TRAIN_SIZE[pair]
    with written(pair, size, TEST_SIZE) as config:
        root, width = config.parent, FeatureExtractor(build_model(PAIRS[pair][0], 10)).embedding_dim
        class_means = {str(k): row for k, row in enumerate(torch.rand(10, width).tolist())}  # the loop's speed is equal
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for number in range(repeats):
            given = [*options, "--teacher_cache", str(root / f"recorded-{number}")] if recorded else options
            seconds[names[0]].append(alone(plain_loop, root, pair, class_means))
            for name in names[1:]:  # the first records what the second reads
                seconds[name].append(alone(ours, config, given))
    slow = seconds.pop(names[0])
    print(f"{pair}, batch {BATCH_SIZE}: {names[0]} {size / statistics.median(slow):.0f} images/s", flush=True)
    for name, fast in seconds.items():
        ratios = [a / b for a, b in zip(slow, fast, strict=True)]
        print(
            f"  {name} {size / statistics.median(fast):.0f} images/s, ratio {statistics.median(ratios):.2f}, "
            f"from {min(ratios):.2f} to {max(ratios):.2f}" + ("" if recorded else f" (wanted at least {WANTED[pair]})"),
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        usage="%(prog)s [--pairs PAIR …] [--repeats N] [--recorded] [-- OPTION_OF_NDKD_FIT …]"
    )
    parser.add_argument("--pairs", nargs="+", choices=TRAIN_SIZE, default=list(TRAIN_SIZE))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--recorded", action="store_true", help="with a recording of the teacher: written, then read")
    parser.add_argument("options", nargs="*")
    arguments = parser.parse_args()
    os.environ["PYTHONWARNINGS"] = "ignore"
    for pair in arguments.pairs:
        compare(pair, arguments.repeats, arguments.options, arguments.recorded)


if __name__ == "__main__":
    main()
