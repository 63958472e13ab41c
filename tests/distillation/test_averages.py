"""What an epoch's losses come to, and which of them broke first."""

import pytest
import torch

from ndkd.callbacks import checkpoint_callbacks
from ndkd.distillation.objective import LossTerm
from ndkd.errors import NdkdError
from ndkd.runs import Run
from tests.distillation.watching import Spoiled


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_loss_that_is_not_finite(fit, make_module, terms, tmp_path, value):
    run = Run(tmp_path)
    losses = terms("ce") | {"spoiled": LossTerm(Spoiled(step=5, value=value))}  # the last of two epochs' six steps
    message = f"^loss spoiled became {value} in epoch 1, the last checkpoint is of epoch 0; lower the learning rate"
    with pytest.raises(NdkdError, match=message):
        fit(make_module(losses), *checkpoint_callbacks(run), epochs=3)
    assert torch.load(run.checkpoint("last"), weights_only=True)["epoch"] == 0


def test_the_term_that_broke_is_named_though_it_spoils_the_others(fit, make_module, terms, tmp_path):
    run = Run(tmp_path)
    losses = terms("ce") | {"spoiled": LossTerm(Spoiled(step=0, value=float("nan")))}
    with pytest.raises(NdkdError, match="^loss spoiled became nan in epoch 0, there is no checkpoint yet; lower the"):
        fit(make_module(losses), *checkpoint_callbacks(run))
    assert not list(tmp_path.rglob("*.ckpt"))
