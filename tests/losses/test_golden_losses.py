"""Values and gradients of the losses against numbers from the published implementations."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from ndkd.losses import dist_loss, dkd_loss, hcl_loss, kd_loss, nd_loss

with np.load(Path(__file__).parents[1] / "golden" / "losses.npz") as file:
    ARRAYS = {name: torch.from_numpy(file[name]) for name in file.files}
INPUT = re.compile(r"(student|teacher)_(embedding|logits|map\d)|class_means|target")
ENTRIES = [name for name in ARRAYS if not INPUT.fullmatch(name.split("/")[1])]
LOGITS = ("student_logits", "teacher_logits")
LOSSES = {
    "nd": (nd_loss, ("student_embedding", "teacher_embedding", "class_means", "target"), {}),
    "kd": (kd_loss, LOGITS, {}),
    "dkd": (dkd_loss, (*LOGITS, "target"), {}),
    "dist": (dist_loss, LOGITS, {"beta": 1.0, "gamma": 1.0}),
}
OPTIONS = {"T": "temperature", "a": "alpha", "b": "beta", "tau": "temperature"}


def maps(case, model):
    return [ARRAYS[f"{case}/{model}_map{number}"] for number in range(4)]


def compute(entry):
    """The golden entry by our losses: a value, or the gradient with respect to the student's input."""
    case, name = entry.split("/")
    kind, *options = name.removesuffix(".grad").split("_")
    if kind == "hcl":
        return hcl_loss(maps(case, "student"), maps(case, "teacher"))
    loss, inputs, fixed = LOSSES[kind]
    named = [re.fullmatch(r"([A-Za-z]+)([\d.]+)", option).groups() for option in options]
    student, *rest = (ARRAYS[f"{case}/{name}"] for name in inputs)
    student = student.clone().requires_grad_()
    value = loss(student, *rest, **fixed, **{OPTIONS[key]: float(number) for key, number in named})
    return torch.autograd.grad(value, student)[0] if name.endswith(".grad") else value


@pytest.mark.parametrize("entry", ENTRIES)
def test_golden(entry):
    found, wanted = compute(entry), ARRAYS[entry]
    assert found.shape == wanted.shape
    assert (found - wanted).norm() <= 1e-5 * wanted.norm()


def test_no_entry_is_left_out():
    with_grad = ["nd", "kd_T1", "kd_T4", "dkd_a1_b8_T4", "dkd_a0.5_b6_T4", "dkd_a1_b1_T1", "dist_tau1", "dist_tau4"]
    names = [*with_grad, *(f"{name}.grad" for name in with_grad), "hcl"]
    assert sorted(ENTRIES) == sorted(f"case{number}/{name}" for number in range(3) for name in names)
