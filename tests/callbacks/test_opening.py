"""What a fit says first."""

import pytest
import torch

from ndkd.callbacks.opening import computes_in_bfloat16, described
from ndkd.data import DigitsDataModule
from tests.command import SHORT, ndkd


def test_a_fit_begins_with_its_objective_and_its_data(workplace):
    status, out, err = ndkd("fit", "--config", "configs/digits/kd++.yaml", *SHORT, "--run_dir", "runs/opening")
    assert status == 0, err
    first, second, *_ = out.splitlines()
    assert first == "objective: 1·ce + 1·kd (warm-up 10 epochs) + 1·nd"
    assert second == "data: 40 images, 10 classes, validation 200, test 1,000"


@pytest.mark.parametrize(
    ("has_units", "options", "is_said"),
    [(True, [], True), (False, [], False), (True, ["--trainer.precision", "32-true"], False)],
)
def test_bfloat16_is_offered_where_nobody_has_chosen(has_units, options, is_said, workplace, tmp_path, monkeypatch):
    monkeypatch.setattr("ndkd.callbacks.opening.computes_in_bfloat16", lambda device: has_units)
    arguments = ["--config", "digits/student.yaml", "--trainer.fast_dev_run=true", "--run_dir", tmp_path / "run"]
    status, out, err = ndkd("fit", *arguments, *options)
    assert status == 0, err
    assert ("ndkd: this CPU computes in bfloat16: --config trainer/bf16.yaml trains" in out) == is_said


def test_the_overlay_that_is_offered(workplace, tmp_path):
    configs = ["--config", "digits/kd++.yaml", "--config", "trainer/bf16.yaml"]
    status, out, err = ndkd("fit", *configs, "--trainer.fast_dev_run=true", "--run_dir", tmp_path / "run")
    assert status == 0, err
    assert "bfloat16" not in out


@pytest.mark.parametrize(
    ("found", "expected"), [({"amx_bf16": True}, True), ({"avx512_bf16": False, "avx2": True}, False)]
)
def test_units_of_a_cpu(found, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert computes_in_bfloat16(torch.device("cpu")) == expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not computes_in_bfloat16(torch.device("cpu"))


@pytest.mark.parametrize(("val_size", "validation"), [(0, "1,000 (= test)"), (200, "200, test 1,000")])
def test_where_best_is_chosen(val_size, validation):
    data = DigitsDataModule(val_size=val_size)
    data.setup()
    assert described(data) == f"{data.sizes['train']:,} images, 10 classes, validation {validation}"
