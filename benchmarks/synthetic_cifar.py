"""Random images in CIFAR-10's files, teachers with random weights, and configurations of KD++ for ``ndkd fit``."""

import argparse
import contextlib
import json
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torchvision import datasets

from ndkd.data import CIFAR10DataModule
from ndkd.models import build_model

PAIRS = {
    "r56_r20": ("cifar/resnet56", "cifar/resnet20"),
    "wrn_40_2_wrn_40_1": ("cifar/wrn_40_2", "cifar/wrn_40_1"),
    "r32x4_r8x4": ("cifar/resnet32x4", "cifar/resnet8x4"),
    "r50_mv2": ("cifar/resnet50", "cifar/mobilenet_v2_half"),
}
BATCH_SIZE, TEMPERATURE = 64, 4
SGD = {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}


class SyntheticCIFAR10(datasets.CIFAR10):
    """CIFAR-10 without its checksums."""

    train_list = [[name, None] for name, _ in datasets.CIFAR10.train_list]
    test_list = [[name, None] for name, _ in datasets.CIFAR10.test_list]
    meta = datasets.CIFAR10.meta | {"md5": None}


class SyntheticCIFAR10DataModule(CIFAR10DataModule):
    dataset = SyntheticCIFAR10


def write_images(root: Path, train_size: int, test_size: int) -> None:
    """Write the files of an unpacked archive; every class has as many images."""
    folder, random = root / SyntheticCIFAR10.base_folder, np.random.default_rng(0)
    folder.mkdir(parents=True)
    for files, size in ((SyntheticCIFAR10.train_list, train_size), (SyntheticCIFAR10.test_list, test_size)):
        for (name, _), part in zip(files, np.array_split(np.arange(size), len(files)), strict=True):
            data = random.integers(0, 256, (len(part), 3072), dtype=np.uint8)
            (folder / name).write_bytes(pickle.dumps({"data": data, "labels": (part % 10).tolist()}))
    meta = SyntheticCIFAR10.meta
    (folder / meta["filename"]).write_bytes(pickle.dumps({meta["key"]: [f"class {k}" for k in range(10)]}))


def write_config(root: Path, pair: str) -> Path:
    """Write a teacher's weights and KD++'s configuration for the images in ``root``; the configuration's path."""
    teacher, student = PAIRS[pair]
    torch.manual_seed(0)
    torch.save(build_model(teacher, 10).state_dict(), root / f"{pair}.pth")
    losses = {
        "ce": {"loss": "torch.nn.CrossEntropyLoss", "inputs": ["student.logits", "target"]},
        "kd": {"loss": {"class_path": "KDLoss", "init_args": {"temperature": TEMPERATURE}}},
        "nd": {"loss": "NDLoss"},
    }
    model = {
        "teacher": {"name": teacher, "checkpoint": str(root / f"{pair}.pth")},
        "student": {"name": student},
        "losses": losses,
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": SGD},
    }
    data = {
        "class_path": "synthetic_cifar.SyntheticCIFAR10DataModule",
        "init_args": {"root": str(root), "batch_size": BATCH_SIZE},
    }
    config = {"trainer": {"max_epochs": 1}, "model": {"class_path": "DistillationModule", "init_args": model}}
    path = root / f"{pair}.yaml"
    path.write_text(json.dumps(config | {"data": data}))  # YAML as well
    return path


@contextlib.contextmanager
def written(pair: str, train_size: int, test_size: int = BATCH_SIZE) -> Iterator[Path]:
    """The path of a pair's configuration, in a folder with its images that is removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), train_size, test_size)
        yield write_config(Path(folder), pair)


def for_each_pair(measure: Callable[[str, Path, list[str]], None], steps: int) -> None:
    """Call it with each pair that the command line names, its configuration and the options for ``ndkd fit``."""
    parser = argparse.ArgumentParser(usage="%(prog)s [--pairs PAIR …] [-- OPTION_OF_NDKD_FIT …]")
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=["r56_r20", "r32x4_r8x4"])
    parser.add_argument("options", nargs="*")
    arguments = parser.parse_args()
    os.environ["PYTHONWARNINGS"] = "ignore"
    for pair in arguments.pairs:
        with written(pair, BATCH_SIZE * steps) as config:
            measure(pair, config, arguments.options)
