"""KD++ on a GPU, images a second: all of ``ndkd fit``, a plain PyTorch script as published code is, and a step's floor.

The floor is the step captured in one CUDA graph, both models, losses, backward and optimizer, and replayed with nothing
in between; ndkd's own loop also augments, logs and counts. All are timed after warming up, over as many steps.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --pairs r56_r20 --recorded -- --model.init_args.student.compile reduce-overhead
    python benchmarks/gpu.py --device cpu --pairs r56_r20 --batch_size 8 --steps 3   # a try without a GPU, no floor
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as L
import torch
from loader import AUGMENTATION
from losses import loop_over_samples
from quiet import fit_with
from synthetic_cifar import PAIRS, SGD, TEMPERATURE, SyntheticCIFAR10, write_config, write_images
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms

from ndkd.data import CIFAR10DataModule
from ndkd.losses import kd_loss, nd_loss
from ndkd.models import FeatureExtractor, build_model
from ndkd.models.projector import Projector

PHOTOS = {"photos_r34_r18": ("torchvision/resnet34", "torchvision/resnet18")}
EPOCHS = 4  # the first warms up


class EpochTimer(L.Callback):
    """Seconds of the training part of each epoch."""

    seconds: list[float] = []

    def on_train_epoch_start(self, trainer, pl_module):
        wait(pl_module.device)
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx + 1 == trainer.num_training_batches:
            wait(pl_module.device)
            EpochTimer.seconds.append(time.perf_counter() - self.started)


class RandomPhotos(L.LightningDataModule):
    """Batches of one random tensor of the size of ImageNet's crops, which costs no decoding."""

    mean, std, num_classes = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1000
    class_names, image_shape = tuple(map(str, range(1000))), (3, 224, 224)

    def __init__(self, batch_size: int = 64, steps: int = 50):
        super().__init__()
        self.batch = torch.rand(batch_size, 3, 224, 224), torch.arange(batch_size) % 1000
        self.steps = steps

    def train_dataloader(self):
        return DataLoader([self.batch] * self.steps, batch_size=None)

    def class_mean_dataloader(self, augment=False):
        images, _ = self.batch
        return [(images, torch.arange(start, start + len(images)) % 1000) for start in range(0, 1000, len(images))]

    def val_dataloader(self):
        return DataLoader([self.batch], batch_size=None)

    test_dataloader = val_dataloader


def autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed")


class Step(nn.Module):
    """The models of a pair and the loss of a batch."""

    def __init__(self, pair: str, device: torch.device):
        super().__init__()
        num_classes = 1000 if pair in PHOTOS else 10
        teacher, student = (FeatureExtractor(build_model(name, num_classes)) for name in {**PAIRS, **PHOTOS}[pair])
        same_width = student.embedding_dim == teacher.embedding_dim
        self.student, self.teacher = student, teacher
        self.projector = nn.Identity() if same_width else Projector(student.embedding_dim, teacher.embedding_dim)
        self.class_means = torch.rand(num_classes, teacher.embedding_dim, device=device)
        self.to(device, memory_format=torch.channels_last)
        self.teacher.eval().requires_grad_(False)
        trained = [*self.student.parameters(), *self.projector.parameters()]
        self.optimizer = torch.optim.SGD(trained, **SGD)

    def outputs(self, images: Tensor) -> tuple:
        with torch.no_grad():
            teacher = self.teacher(images)
        student = self.student(images)
        return student, teacher, self.projector(student.embedding)

    def loss(self, images: Tensor, target: Tensor) -> Tensor:
        student, teacher, projected = self.outputs(images)
        loss = F.cross_entropy(student.logits.float(), target) + kd_loss(student.logits, teacher.logits, TEMPERATURE)
        return loss + nd_loss(projected, teacher.embedding, self.class_means, target)

    def train_on(self, images: Tensor, target: Tensor, precision: str) -> None:
        with autocast(images.device, precision):
            loss = self.loss(images, target)
        self.optimizer.zero_grad(set_to_none=False)
        loss.backward()
        self.optimizer.step()


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds_of(step: Callable[[], object], steps: int, device: torch.device) -> float:
    wait(device)
    started = time.perf_counter()
    for _ in range(steps):
        step()
    wait(device)
    return time.perf_counter() - started


def of_fit(config: Path, options: list[str]) -> float:
    EpochTimer.seconds = []
    fit_with(EpochTimer, config, "--trainer.max_epochs", EPOCHS, *options)
    return statistics.median(EpochTimer.seconds[1:])


def of_plain_script(root: Path, pair: str, batch_size: int, steps: int, device: torch.device) -> float:
    """Images from PIL, float32, the ND loss as a loop over samples, ``.item()`` in every step."""
    made, log = Step(pair, device), list[float]()
    class_means = {str(k): row for k, row in enumerate(made.class_means.tolist())}
    normalize = transforms.Normalize(CIFAR10DataModule.mean, CIFAR10DataModule.std)
    data = SyntheticCIFAR10(root, True, transforms.Compose([*AUGMENTATION, normalize]))
    batches = iter(DataLoader(data, batch_size, shuffle=True, num_workers=8 * (device.type == "cuda"), drop_last=True))

    def step() -> None:
        images, target = (tensor.to(device) for tensor in next(batches))
        student, teacher, projected = made.outputs(images)
        kd = kd_loss(student.logits, teacher.logits, TEMPERATURE)
        nd = loop_over_samples(projected, teacher.embedding, class_means, target)
        loss = F.cross_entropy(student.logits, target) + kd + nd
        made.optimizer.zero_grad()
        loss.backward()
        made.optimizer.step()
        log.append(loss.item())

    seconds_of(step, 2, device)
    return seconds_of(step, steps, device)


def batch_of(pair: str, batch_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    side = 224 if pair in PHOTOS else 32
    images = torch.rand(batch_size, 3, side, side, device=device).to(memory_format=torch.channels_last)
    return images, torch.arange(batch_size, device=device) % 10


def of_floor(pair: str, batch_size: int, steps: int, device: torch.device, precision: str) -> float:
    made, batch = Step(pair, device), batch_of(pair, batch_size, device)
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):  # as capturing wants it
        for _ in range(5):
            made.train_on(*batch, precision)
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made.train_on(*batch, precision)
    graph.replay()
    return seconds_of(graph.replay, steps, device)


def of_parts(pair: str, batch_size: int, steps: int, device: torch.device, precision: str) -> dict[str, float]:
    made, (images, target) = Step(pair, device), batch_of(pair, batch_size, device)

    @autocast(device, precision)
    @torch.no_grad()
    def teacher() -> None:
        made.teacher(images)

    def student() -> None:
        with autocast(device, precision):
            logits = made.student(images).logits
        F.cross_entropy(logits.float(), target).backward()

    parts = {
        "teacher": teacher,
        "student, forward and backward": student,
        "step": lambda: made.train_on(images, target, precision),
    }
    found = {}
    for name, part in parts.items():
        seconds_of(part, 3, device)
        found[name] = seconds_of(part, steps, device)
    return found


def write_photos_config(root: Path, pair: str) -> Path:
    """KD++ on random photos: the configuration of CIFAR's pairs with other models and data."""
    teacher, student = PHOTOS[pair]
    torch.save(build_model(teacher, 1000).state_dict(), root / f"{pair}.pth")
    text = write_config(root, "r56_r20").read_text()
    for old, new in {"cifar/resnet56": teacher, "cifar/resnet20": student, "r56_r20.pth": f"{pair}.pth"}.items():
        text = text.replace(old, new)
    text = text.replace("synthetic_cifar.SyntheticCIFAR10DataModule", f"{__name__}.RandomPhotos")
    (root / f"{pair}.yaml").write_text(text.replace(f'"root": "{root}", ', ""))
    return root / f"{pair}.yaml"


def measure(pair: str, arguments: argparse.Namespace, device: torch.device) -> None:
    batch_size, steps, precision = arguments.batch_size, arguments.steps, arguments.precision
    options = ["--trainer.precision", precision, "--data.init_args.batch_size", str(batch_size)]
    options += ["--trainer.limit_train_batches", str(steps), "--trainer.enable_progress_bar", "false"]
    options += ["--trainer.accelerator", "cpu" if device.type == "cpu" else "gpu", *arguments.options]
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if pair in PHOTOS:
            config = write_photos_config(root, pair)
            options += ["--data.init_args.steps", str(steps)]
        else:
            write_images(root, batch_size * (steps + 4), 10 * batch_size)
            config = write_config(root, pair)
            seconds["plain script"] = of_plain_script(root, pair, batch_size, steps, device)
        seconds["ndkd fit"] = of_fit(config, options)
        if arguments.recorded and pair not in PHOTOS:
            cache = ["--teacher_cache", str(root / "recorded")]
            seconds["ndkd fit, recording"] = of_fit(config, [*options, *cache])
            seconds["ndkd fit, replayed"] = of_fit(config, [*options, *cache])
    if device.type == "cuda":
        seconds["floor"] = of_floor(pair, batch_size, steps, device, precision)
    print(f"{pair}, batch {batch_size}, {precision}, {steps} steps")
    for name, time_ in seconds.items():
        ratio = f", {time_ / seconds['floor']:.2f} times the floor" if "floor" in seconds else ""
        print(f"  {name}: {batch_size * steps / time_:,.0f} images/s{ratio}", flush=True)
    for name, time_ in of_parts(pair, batch_size, steps, device, precision).items():
        print(f"  {name} alone: {1e3 * time_ / steps:.2f} ms", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(usage="%(prog)s [--pairs PAIR …] [--recorded] [-- OPTION_OF_NDKD_FIT …]")
    pairs = [*PAIRS, *PHOTOS]
    parser.add_argument("--pairs", nargs="+", choices=pairs, default=pairs)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=200, help="of an epoch")
    parser.add_argument("--precision", choices=["bf16-mixed", "32-true"], default="bf16-mixed")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--recorded", action="store_true", help="with a recording of the teacher: written, then read")
    parser.add_argument("options", nargs="*")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("gpu.py: there is no GPU, torch.cuda.is_available() is False; --device cpu tries it without")
    device = torch.device(arguments.device)
    print(torch.cuda.get_device_name() if device.type == "cuda" else "CPU", f"torch {torch.__version__}", sep=", ")
    for pair in arguments.pairs:
        measure(pair, arguments, device)


if __name__ == "__main__":
    main()
