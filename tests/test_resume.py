"""A run that was broken off goes on to the weights of an unbroken one, bit for bit, whatever its data."""

import os
import time
from datetime import timedelta
from types import SimpleNamespace

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from PIL import Image
from torchvision.transforms import v2

from ndkd.callbacks import RunRecorder, checkpoint_callbacks
from ndkd.data import (
    CocoDataModule,
    DigitsDataModule,
    ImageFolderDataModule,
    ImageNetDataModule,
    InMemoryImageFolderDataModule,
)
from ndkd.data.drawn_shapes import draw_set
from ndkd.runs import Run

EPOCHS = 4
TIMEOUT = 60  # seconds until a hang is a failure


class Mean(L.LightningModule):
    """Weights that depend on every pixel and on the order of the batches."""

    headline = "acc1", "accuracy"

    def __init__(self):
        super().__init__()
        self.student = SimpleNamespace(model=torch.nn.Identity())
        self.weight = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))

    def training_step(self, batch, batch_idx):
        images, _ = batch  # a list of detection's
        means = torch.stack([image.double().mean((1, 2)) for image in images])
        return ((means / means.max() * self.weight).sum(1) - torch.arange(len(means)) - 1).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Break(L.Callback):
    """Ctrl-C in a batch of an epoch, or at its end."""

    def __init__(self, epoch, batch=None):
        self.epoch, self.batch = epoch, batch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (self.epoch, self.batch):
            raise KeyboardInterrupt

    def on_train_epoch_start(self, trainer, pl_module):
        if self.batch is None and trainer.current_epoch == self.epoch:
            raise KeyboardInterrupt


def fit(data, folder, *callbacks, resume=False, **options):
    """Train with checkpoints in a folder; the weights."""
    if options.get("devices") == 2:
        options["strategy"] = DDPStrategy(cluster_environment=TorchElasticEnvironment())
    os.environ["PL_GLOBAL_SEED"] = "0"
    run, module = Run(folder), Mean()
    options = {"max_epochs": EPOCHS, "accelerator": "cpu", "devices": 1, "logger": False} | options
    options |= {
        "limit_val_batches": 0,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = L.Trainer(**options, callbacks=[*callbacks, RunRecorder(run, "{}"), *checkpoint_callbacks(run)])
    trainer.fit(module, datamodule=data, ckpt_path=run.checkpoint("last") if resume else None, weights_only=True)
    return module.weight.detach()


def resumed(make, folder, breaks, **options):
    """The weights of an unbroken run, and of one that is broken off in each of these places."""
    found = [fit(make(), folder / "unbroken", **options)]
    for number, place in enumerate(breaks):
        with pytest.raises(SystemExit):
            fit(make(), folder / str(number), Break(*place), **options)
        found.append(fit(make(), folder / str(number), resume=True, **options))
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Nine images in two classes, and six with boxes."""
    root, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 9), ("val", 2), ("test", 2)):
        for number in range(count):
            file = root / split / f"class{number % 2}" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (12, 12, 3), np.uint8)).save(file)
    draw_set(root / "shapes", train=8, val=3, size=64)
    return root


def own():
    return [v2.RandomResizedCrop(8), v2.ColorJitter(brightness=0.5)]


@pytest.fixture(params=["folder", "imagenet", "coco", "grouped", "in memory", "digits", "own", "own in memory"])
def make(request, folders):
    """Makes one of our DataModules, with workers where it has them."""
    boxes = [folders / "shapes" / "annotations" / f"instances_{split}.json" for split in ("train", "val")]
    makers = {
        "folder": lambda: ImageFolderDataModule(folders, batch_size=2, image_size=8, num_workers=2),
        "imagenet": lambda: ImageNetDataModule(
            folders, batch_size=2, image_size=8, num_workers=2, rand_augment="rand-m9-mstd0.5-inc1", erase=0.5
        ),
        "coco": lambda: CocoDataModule(*boxes, batch_size=2, num_workers=2),
        "grouped": lambda: CocoDataModule(*boxes, batch_size=2, num_workers=2, group_by_shape=True),
        "in memory": lambda: InMemoryImageFolderDataModule(folders, batch_size=2),
        "digits": lambda: DigitsDataModule(train_size=40, batch_size=8),
        "own": lambda: ImageFolderDataModule(
            folders, batch_size=2, image_size=8, num_workers=2, balanced_sampling=True, transforms=own()
        ),
        "own in memory": lambda: InMemoryImageFolderDataModule(
            folders, batch_size=2, image_size=8, balanced_sampling=True, transforms=own()
        ),
    }
    return makers[request.param]


def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(make, tmp_path):
    unbroken, *others = resumed(make, tmp_path, [(1, None), (2, 1)])
    assert unbroken.isfinite().all()
    assert not torch.equal(unbroken, torch.ones(3))
    assert all(torch.equal(other, unbroken) for other in others)


@pytest.mark.parametrize("make", ["folder"], indirect=True)
@pytest.mark.parametrize(
    "options",
    [
        {"limit_train_batches": 2, "accumulate_grad_batches": 2},
        {"reload_dataloaders_every_n_epochs": 1},
        {"max_epochs": -1, "max_steps": 4 * EPOCHS - 1},
    ],
)
def test_the_same_with_options_of_the_trainer(make, tmp_path, options):
    unbroken, other = resumed(make, tmp_path, [(2, None)], **options)
    assert torch.equal(other, unbroken)


def of_rank(rank, make, folder):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "WORLD_SIZE": "2"}
    meet = f"file://{folder}/meet"
    torch.distributed.init_process_group("gloo", meet, timedelta(seconds=TIMEOUT), world_size=2, rank=rank)
    found = resumed(make, folder, [(1, None), (2, 1)], devices=2)
    torch.save(found, folder / f"{rank}.pt")


@pytest.mark.parametrize("make", ["folder", "grouped", "digits"], indirect=True)
def test_the_same_with_two_processes(make, tmp_path):
    context = torch.multiprocessing.start_processes(
        of_rank, (make, tmp_path), nprocs=2, join=False, start_method="fork"
    )
    ends = time.monotonic() + TIMEOUT
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < ends, "the processes wait for each other"
    finally:
        for process in context.processes:
            process.kill()
    for rank in range(2):
        unbroken, *others = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert all(torch.equal(other, unbroken) for other in others)
