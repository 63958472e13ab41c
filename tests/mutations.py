"""Configurations with a mistake in them, drawn at random from ones that run."""

import copy
import inspect
import random
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as L
import yaml

NAN, INFINITE = float("nan"), float("inf")
VALUES = [
    *(None, 0, -1, 1, 7, 0.5, -0.5, 10**12, 1e30, NAN, INFINITE, -INFINITE, True, False, "", "x", "none", "1e-3"),
    *(
        "a.b",
        "../x",
        "NDLoss",
        "SGD",
        [],
        [0],
        [-1, 2],
        [None],
        ["x"],
        [3, 1],
        {},
        {"x": 1},
        {"class_path": "KDLoss"},
        [[]],
    ),
]
# more than a moment, or another machine: no question of what is a mistake
UNTRIED = {"self", "max_time", "profiler", "logger", "fast_dev_run", "detect_anomaly"}
MODEL = "model", "init_args"
MODEL_OPTIONS = "name checkpoint pretrained classifier taps mean std kwargs compile"
OPTIONS = {
    (): "class_means seed_everything ckpt_path optimizer train trainer model data",
    ("trainer",): " ".join(inspect.signature(L.Trainer.__init__).parameters.keys() - UNTRIED),
    ("class_means",): "augment file cache_dir max_images background_last",
    MODEL: "optimizer lr_scheduler lr_interval decay projector_std linear_std channels_last num_classes class_names",
    (*MODEL, "student"): MODEL_OPTIONS,
    (*MODEL, "teacher"): MODEL_OPTIONS,
    (*MODEL, "losses"): "a.b ../x 1 true train forward parameters loss é",
    (*MODEL, "losses", "kd"): "weight warmup_epochs warmup_from inputs loss",
    (*MODEL, "losses", "nd"): "weight warmup_epochs warmup_from inputs loss",
    (*MODEL, "losses", "kd", "loss", "init_args"): "temperature",
    (*MODEL, "optimizer"): "class_path init_args",
    (*MODEL, "optimizer", "init_args"): "lr momentum dampening weight_decay nesterov maximize foreach fused",
    (*MODEL, "lr_scheduler"): "class_path init_args",
    (*MODEL, "lr_scheduler", "init_args"): "milestones gamma T_max eta_min last_epoch step_size warmup min_lr",
    ("data", "init_args"): (
        "root train_size val_size batch_size pad flip image_size resize interpolation rand_augment erase mixup cutmix "
        "num_workers download drop_last"
    ),
}
CLASSES = {
    "optimizer": ["SGD", "Adam", "SparseAdam", "LBFGS", "Adadelta", "Muon", "Adafactor", "ASGD", "Rprop", "Optimizer"],
    "lr_scheduler": [
        *("StepLR", "CosineAnnealingLR", "OneCycleLR", "ExponentialLR", "LambdaLR", "CyclicLR", "ReduceLROnPlateau"),
        *("ConstantLR", "PolynomialLR", "SequentialLR", "CosineAnnealingWarmRestarts", "LRScheduler"),
    ],
    "loss": ["torch.nn.L1Loss", "torch.nn.Identity", "InfoNCELoss", "torch.nn.NLLLoss", "DISTLoss", "torch.nn.Module"],
}


def mutation(config: dict[str, Any], draw: random.Random) -> str:
    """The configuration as YAML with one change, sometimes two."""
    config = copy.deepcopy(config)
    for _ in range(draw.choice([1, 1, 1, 2])):
        draw.choice([replace, replace, add, add, change_class, remove, misspell, nest])(config, draw)
    lines = yaml.safe_dump(config, sort_keys=False, allow_unicode=True).splitlines()
    if draw.random() < 0.05:
        twice = draw.randrange(len(lines))
        lines.insert(twice, lines[twice])
    return "\n".join(lines)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every dictionary or list inside a configuration with each of its keys."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(value[key])


def replace(config: dict, draw: random.Random) -> None:
    """Another value instead of any."""
    block, key = draw.choice([*places(config), (config, "x")])
    block[key] = copy.deepcopy(draw.choice(VALUES))


def add(config: dict, draw: random.Random) -> None:
    """An option that could be there, with any value."""
    path = draw.choice(list(OPTIONS))
    block = config
    for key in path:
        block = block.setdefault(key, {}) if isinstance(block, dict) else None
    if isinstance(block, dict):
        block[draw.choice(sorted(OPTIONS[path].split()))] = copy.deepcopy(draw.choice(VALUES))


def change_class(config: dict, draw: random.Random) -> None:
    """Another class, with options or without."""
    found = [(block, key) for block, key in places(config) if key in CLASSES]
    if found:
        block, key = draw.choice(found)
        name = draw.choice(CLASSES[key])
        block[key] = draw.choice([{"class_path": name}, name, {"class_path": name, "init_args": {"lr": 0.1}}])


def remove(config: dict, draw: random.Random) -> None:
    """An entry or an item of a list."""
    block, key = draw.choice([*places(config), ({0: 0}, 0)])
    del block[key]


def misspell(config: dict, draw: random.Random) -> None:
    """A letter of a key."""
    found = [(block, key) for block, key in places(config) if isinstance(block, dict) and isinstance(key, str) and key]
    if found:
        block, key = draw.choice(found)
        place = draw.randrange(len(key))
        block[key[:place] + draw.choice("xé_.- ") + key[place + 1 :]] = block.pop(key)


def nest(config: dict, draw: random.Random) -> None:
    """A value one level deeper."""
    block, key = draw.choice([*places(config), ({0: 0}, 0)])
    block[key] = draw.choice([[block[key]], {"init_args": block[key]}, {key: block[key]}, str(block[key])])
