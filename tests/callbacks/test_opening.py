"""What a fit says first."""

import pytest

from ndkd.callbacks.opening import described
from ndkd.data import DigitsDataModule
from tests.command import SHORT, ndkd


def test_a_fit_begins_with_its_objective_and_its_data(workplace):
    status, out, err = ndkd("fit", "--config", "configs/digits/kd++.yaml", *SHORT, "--run_dir", "runs/opening")
    assert status == 0, err
    first, second, *_ = out.splitlines()
    assert first == "objective: 1·ce + 1·kd (warm-up 10 epochs) + 1·nd"
    assert second == "data: 40 images, 10 classes, validation 200"


@pytest.mark.parametrize(("val_size", "validation"), [(0, "1,000 (= test)"), (200, "200")])
def test_where_best_is_chosen(val_size, validation):
    data = DigitsDataModule(val_size=val_size)
    data.setup()
    assert described(data) == f"{data.sizes['train']:,} images, 10 classes, validation {validation}"
