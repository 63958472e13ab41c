"""Options of the trainer that make no sense."""

import pytest

from ndkd.commands.trainer_options import check_length, check_trainer
from tests.command import refusal

TRAINER = {
    "accumulate_grad_batches": [0, -1],
    "check_val_every_n_epoch": [0],
    "val_check_interval": [0, 0.0, -1, float("nan")],
    "gradient_clip_val": [-1, float("nan"), float("inf")],
    "limit_train_batches": [-1],
    "log_every_n_steps": [-1],
    "num_nodes": [0],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in TRAINER.items() for value in values])
def test_an_option_of_the_trainer(name, value):
    assert refusal(check_trainer, {name: value}).startswith(f"trainer.{name}: wanted ")


@pytest.mark.parametrize("options", [{}, {"max_epochs": 0}, {"max_epochs": -1}, {"max_epochs": -2}, {"max_steps": 0}])
def test_how_long_to_train(options):
    assert refusal(check_length, options).startswith("trainer.max_")


def test_other_ways_to_say_how_long_to_train():
    for options in ({"max_epochs": 1}, {"max_steps": 5, "max_epochs": -1}, {"max_time": "00:00:01:00"}):
        check_length(options)
