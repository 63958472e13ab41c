"""The paper's tables: the pages' command for each row, and the recipe that a command resolves to."""

import re
import shlex
from string import Template

import yaml

from tests.command import ndkd
from tests.pages import section, shipped

# The entries of init_args that make a recipe, where a class has them.
LOSS = ("temperature", "alpha_temperature", "alpha", "beta", "gamma", "standardize", "max_mid_channels")
LOSS += ("mean_weight", "grid")
OPTIMIZER = ("lr", "momentum", "betas", "nesterov", "weight_decay")
SCHEDULER = ("milestones", "gamma", "warmup", "min_lr")
DATA = ("batch_size", "pad", "flip", "image_size", "interpolation", "rand_augment", "erase", "mixup", "cutmix")


def rows(page, title):
    """The arguments of every command by pair and row, from a section's tables."""
    found = section(page, title)
    settings = [dict(part.split("=") for part in line.split()) for line in re.findall(r"`(PAIR=.*?)`", found)]
    commands = re.findall(r"^\| (.+?) \| `ndkd (fit .+?)` \|$", found, flags=re.MULTILINE)
    return {
        (values["PAIR"], row): shipped(shlex.split(Template(command).substitute(values)))
        for values in settings
        for row, command in commands
    }


def resolved(arguments):
    """The configuration of a command."""
    status, out, err = ndkd(*arguments, "--print_config")
    assert status == 0, err
    return yaml.safe_load(out)


def read(config):
    """The entries of a resolved configuration that make a recipe."""
    model = config["model"]["init_args"]
    student, teacher, losses = model["student"], model["teacher"] or {}, model["losses"]
    return {
        "epochs": config["trainer"]["max_epochs"],
        "student": student["name"],
        "teacher": teacher.get("name"),
        "weights": teacher.get("checkpoint") or teacher.get("pretrained"),
        "taps": (student["taps"], teacher.get("taps")),
        "starts": (model["linear_std"], model["projector_std"] if "nd" in losses else None),
        "losses": {
            name: (
                term["loss"]["class_path"].split(".")[-1],
                _options(term["loss"].get("init_args", {})),
                term["weight"],
                term["warmup_epochs"],
                term["warmup_from"],
            )
            for name, term in losses.items()
        },
        "inputs": {name: term["inputs"] for name, term in losses.items() if term["inputs"]},
        "optimizer": _numbers(model["optimizer"], OPTIMIZER),
        "lr_scheduler": _numbers(model["lr_scheduler"], SCHEDULER),
        "data": _numbers(config["data"], DATA),
    }


def _options(arguments):
    return {key: value for key, value in arguments.items() if key in LOSS and value is not False}


def _numbers(entry, keys):
    arguments = entry["init_args"]
    return (entry["class_path"], *(arguments[key] for key in keys if key in arguments))
