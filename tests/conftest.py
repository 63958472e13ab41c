"""What the tests of training share: a tiny teacher, tiny images, and a quiet way to fit."""

import gc
import logging
import os
import signal
import sys
from functools import partial
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint, ProgressBar

from ndkd.callbacks import ClassMeans
from ndkd.distillation.module import DistillationModule
from ndkd.distillation.objective import LossTerm
from ndkd.losses import KDLoss, NDLoss, ReviewKDLoss
from ndkd.models import ModelConfig, build_model
from tests.command import REPOSITORY, SHORT, ndkd
from tests.tiny_data import TAPS, TinyData

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start; see one_thread


def pytest_configure(config):
    gc.set_threshold(20_000, 20, 20)  # parsers of a configuration leave so much that a fifth of the time went to it
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup, the processes that tests start would ignore it
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for meant in (
        "in eval mode",
        "many workers",
        "treespec, LeafSpec",
        "is not empty",
        "callbacks used to create the checkpoint",
        "WeightAveraging",
        "overridden `on_before_batch_transfer`",
    ):
        config.addinivalue_line("filterwarnings", f"ignore:.*{meant}")


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Threads do not pay on tiny images, and sums in another order would not be bit-identical."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def same_words_on_every_cpu():
    """What a fit says of bfloat16 depends on the hardware."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ndkd.callbacks.opening.computes_in_bfloat16", lambda device: False)
        yield


@pytest.fixture(scope="session")
def teacher_checkpoint(tmp_path_factory):
    """Random weights of cifar/resnet8 for 10 classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = build_model("cifar/resnet8", 10)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer += 0.1
    path = tmp_path_factory.mktemp("teacher") / "resnet8.pth"
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder, the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def images(folder):
    """A folder of two classes, each with one file by the name of an image."""
    for name in "ab":
        Path("train", name).mkdir(parents=True)
        Path("train", name, "1.png").touch()
    return Path()


@pytest.fixture
def tiny_data():
    """The class of the tiny DataModule."""
    return TinyData


@pytest.fixture
def terms():
    """Loss terms by their names: ``terms("ce", "kd", nd=2.0)``; numbers are weights."""

    def make(*names, **weights):
        losses = {
            "ce": (torch.nn.CrossEntropyLoss(), ["student.logits", "target"]),
            "kd": (KDLoss(), None),
            "nd": (NDLoss(), None),
            "review": (ReviewKDLoss(), None),
        }
        chosen = dict.fromkeys(names, 1.0) | weights
        return {name: LossTerm(losses[name][0], weight, 0, losses[name][1]) for name, weight in chosen.items()}

    return make


@pytest.fixture
def make_module(teacher_checkpoint):
    """A module on cifar/resnet8, as wide as the teacher (64) or, with ``narrow=True``, 16 wide."""

    def make(losses, narrow=False, lr=0.1, **options):
        widths = {"widths": [8, 8, 8, 16]} if narrow else {}
        options.setdefault("student", ModelConfig("cifar/resnet8", taps=TAPS, kwargs=widths))
        options.setdefault("teacher", ModelConfig("cifar/resnet8", checkpoint=teacher_checkpoint, taps=TAPS))
        options.setdefault("optimizer", partial(torch.optim.SGD, lr=lr, momentum=0.9))
        return DistillationModule(losses=losses, **options)

    return make


@pytest.fixture
def make_trainer():
    """A quiet trainer on one CPU."""

    def make(*callbacks, epochs=1, **options):
        options = {"accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0, "logger": False} | options
        return L.Trainer(
            max_epochs=epochs,
            callbacks=list(callbacks),
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
            enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
            enable_model_summary=False,
            **options,
        )

    return make


@pytest.fixture
def fit(make_trainer, tiny_data, monkeypatch):
    """Fit a module on tiny images, with a seed and with class means; the trainer."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # given back after the test, whatever seed it sets

    def run(module, *callbacks, data=None, loaders=None, seed=0, epochs=1, ckpt_path=None, **options):
        if not any(isinstance(callback, ClassMeans) for callback in callbacks):
            callbacks = (ClassMeans(), *callbacks)
        L.seed_everything(seed, verbose=False)
        trainer = make_trainer(*callbacks, epochs=epochs, **options)
        given = loaders or {"datamodule": data or tiny_data()}
        trainer.fit(module, **given, ckpt_path=ckpt_path, weights_only=True)
        return trainer

    return run


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with the shipped configs and a teacher trained for one epoch, as the working directory."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "configs").symlink_to(REPOSITORY / "configs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["ndkd"])
        patch.setenv("PL_GLOBAL_SEED", "0")
        assert ndkd("fit", "--config", "configs/digits/teacher.yaml", *SHORT, "--trainer.max_epochs=1")[0] == 0
        yield folder
