"""What decays, and how long a schedule is."""

from functools import partial

import pytest
import torch

from ndkd.errors import NdkdError
from ndkd.models import ModelConfig
from ndkd.schedules import WarmupCosineLR


@pytest.mark.parametrize("decay", ["all", "matrices", "recommended"])
def test_which_parameters_decay(fit, make_module, terms, decay):
    optimizer = partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.3)
    module = make_module(terms("ce", "nd"), narrow=True, optimizer=optimizer, decay=decay)
    fit(module, limit_train_batches=1)
    (optimizer,) = module.trainer.optimizers
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    names = {id(p): name for name, p in module.named_parameters() if p.requires_grad}
    assert decays.keys() == names.keys()
    for key, found in decays.items():
        name = names[key]
        is_vector = name.endswith(".bias") or ".bn" in name or "downsample.1" in name or name == "projector.0.weight"
        assert found == (0.3 if decay == "all" or not is_vector else 0), name


@pytest.mark.parametrize(
    ("decay", "exempt"), [("matrices", set()), ("recommended", {"cls_token", "dist_token", "pos_embed"})]
)
def test_timms_own_exceptions(fit, make_module, terms, decay, exempt):
    kwargs = {"img_size": 8, "patch_size": 4, "depth": 1, "embed_dim": 12, "num_heads": 2}
    student = ModelConfig("timm/deit_tiny_distilled_patch16_224", kwargs=kwargs)
    module = make_module(terms("ce"), student=student, decay=decay)
    fit(module, limit_train_batches=1)
    spared = {id(p) for p in module.trainer.optimizers[0].param_groups[1]["params"]}
    found = {name for name, p in module.student.model.named_parameters() if id(p) in spared and p.ndim > 1}
    assert found == exempt


@pytest.mark.parametrize(("interval", "total"), [("step", 6), ("epoch", 2)])
def test_a_schedule_is_told_how_long_it_is(fit, make_module, terms, interval, total):
    asked = []

    def schedule(optimizer, total_steps):
        asked.append(total_steps)
        return WarmupCosineLR(optimizer, total_steps)

    module = make_module(terms("ce"), lr_scheduler=partial(schedule, total_steps=None), lr_interval=interval)
    fit(module, epochs=2)
    assert set(asked) == {total}  # of the rehearsal and of the run
    assert module.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)
    module = make_module(terms("ce"), lr_scheduler=partial(schedule, total_steps=7), lr_interval=interval)
    fit(module)
    assert set(asked) == {total, 7}


def test_a_schedule_over_a_training_without_end(fit, make_module, terms):
    module = make_module(terms("ce"), lr_scheduler=partial(WarmupCosineLR, total_steps=None), lr_interval="step")
    with pytest.raises(NdkdError, match="^lr_scheduler: it must know how long the training is: set trainer.max_epochs"):
        fit(module, epochs=-1)
