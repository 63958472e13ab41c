"""A training step, and cutting its batch, never make the host wait for the GPU.

The GPU is played by the device ``meta``: its tensors have no values, so that whatever reads one fails.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ndkd.data.base import PartlyLabeled
from ndkd.data.in_memory_loader import InMemoryLoader
from ndkd.data.samplers import ShardedOrder
from ndkd.data.unlabeled import UnlabeledBeside
from ndkd.distillation.objective import LossTerm
from ndkd.losses import (
    CosineLoss,
    DISTLoss,
    DKDLoss,
    HardKDLoss,
    InfoNCELoss,
    KDLoss,
    L2Loss,
    NDLoss,
    NKDLoss,
    ReviewKDLoss,
    RLDLoss,
    SIFNLoss,
    TTMLoss,
    WKDFLoss,
    WTTMLoss,
)

METHODS = {
    "KD++": (KDLoss, NDLoss),
    "DKD++": (DKDLoss, NDLoss),
    "DIST++": (DISTLoss, NDLoss),
    "ReviewKD++": (ReviewKDLoss, NDLoss),
    "NKD++, TTM, WTTM": (NKDLoss, TTMLoss, WTTMLoss, NDLoss),
    "RLD++": (RLDLoss, NDLoss),
    "WKD-F++": (WKDFLoss, NDLoss),
    "all others": (HardKDLoss, CosineLoss, InfoNCELoss, SIFNLoss, L2Loss),
}
aten = torch.ops.aten
COPIES = (aten._to_copy, aten.copy_)
INDEXING = (aten.index, aten.index_put, aten.index_put_)


class NoHostSyncs(TorchDispatchMode):
    """Refuses what ``meta`` lets pass: copies between host and device that are waited for, and masks as indices."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result, kind = function(*args, **(kwargs or {})), function.overloadpacket
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        # a number from the host's memory travels with the kernel, unless it is copied by itself
        devices = {tensor.device.type for tensor in tensors if tensor.ndim or kind in COPIES}
        if len(devices) > 1 and not (kwargs or {}).get("non_blocking"):
            raise RuntimeError(f"{function} copies between {' and '.join(sorted(devices))}")
        if kind in INDEXING and any(index.dtype == torch.bool for index in args[1] if index is not None):
            raise RuntimeError(f"{function} counts a mask")
        return result


class NoNewTensors(TorchFunctionMode):
    """Refuses tensors made on the device from numbers of the host, which ``meta`` does without a copy."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function in (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor) and not result.is_cpu:
            raise RuntimeError(f"{function.__name__} copies from the host to {result.device}")
        return result


class Waiting(nn.Module):
    """A loss that reads the logits in one way or another."""

    inputs = ("student.logits",)

    def __init__(self, read):
        super().__init__()
        self.read = read

    def forward(self, logits):
        self.read(logits.detach().clone())
        return logits.square().mean()


SYNCS = {
    "item": lambda x: x.sum().item(),
    "truth": lambda x: bool(x.isfinite().all()),
    "comparison": lambda x: torch.equal(x, x),
    "list": lambda x: x.tolist(),
    "mask": lambda x: x[x > 0],
    "assignment by a mask": lambda x: x.__setitem__(x > 0, 0.0),
    "masked_select": lambda x: x.masked_select(x > 0),
    "nonzero": lambda x: (x > 0).nonzero(),
    "unique": lambda x: x.argmax(dim=1).unique(),
    "bincount": lambda x: x.argmax(dim=1).bincount(),
    "to the host": lambda x: x.cpu(),
    "to the host, in place": lambda x: torch.empty(x.shape).copy_(x),
    "from the host": lambda x: torch.tensor([0.5, 2.0], device=x.device),
    "a number from the host": lambda x: torch.tensor(0.5).to(x.device),
    "index on the host": lambda x: x[torch.tensor([0, 1])],
}


@pytest.fixture
def steps(fit, make_module):
    """Build a module as a fit does, and take two steps on a device without values; the module."""

    def run(losses, labeled=None, pseudo_labels=None):
        sure = {type(loss).__name__: pseudo_labels if "target" in loss.inputs else None for loss in losses}
        losses = {type(loss).__name__: LossTerm(loss, warmup_epochs=2) for loss in losses}
        losses = {name: replace(term, pseudo_labels=sure[name]) for name, term in losses.items()}
        losses["ce"] = LossTerm(nn.CrossEntropyLoss(), inputs=["student.logits", "target"])
        module = make_module(losses, narrow=True)
        fit(module, limit_train_batches=1, limit_val_batches=0)
        module.to("meta").train()
        optimizer = module.configure_optimizers()
        batch = torch.empty(8, 3, 8, 8, device="meta"), torch.empty(8, dtype=torch.long, device="meta")
        if labeled is not None:
            batch = PartlyLabeled(*batch, labeled)
        module.on_train_epoch_start()
        with NoHostSyncs(), NoNewTensors():
            for number in range(2):
                optimizer.zero_grad()
                module.training_step(batch, number).backward()
                optimizer.step()
        return module

    return run


@pytest.mark.parametrize("method", METHODS)
def test_a_step_never_waits(steps, method):
    module = steps([loss() for loss in METHODS[method]])
    assert module.averages.sums.is_meta
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    assert trained
    assert all(parameter.grad.is_meta for parameter in trained)


@pytest.mark.parametrize("pseudo_labels", [None, 0.9])
@pytest.mark.parametrize("method", ["KD++", "DKD++", "ReviewKD++", "NKD++, TTM, WTTM", "RLD++", "all others"])
def test_a_step_with_unlabelled_images_never_waits(steps, method, pseudo_labels):
    steps([loss() for loss in METHODS[method]], labeled=5, pseudo_labels=pseudo_labels)


@pytest.mark.parametrize("sync", SYNCS)
def test_a_wait_would_be_noticed(steps, sync):
    with pytest.raises((RuntimeError, NotImplementedError), match="(?i)meta|mask|unimplemented"):
        steps([Waiting(SYNCS[sync])])


def test_a_batch_with_unlabelled_images_is_cut_without_waiting():
    images, target = np.zeros((20, 6, 6, 3), np.uint8), np.array([0, 1] * 5 + [-1] * 10)
    order = UnlabeledBeside(ShardedOrder(10, True, 0, 0, 1), 10, 4, 1.0)
    loader = InMemoryLoader(images, target, order.batch_size, order, pad=1, flip=True, device="meta")
    with NoHostSyncs(), NoNewTensors():
        batches = list(loader)
    assert [(tuple(batch.images.shape), batch.labeled) for batch in batches] == [
        ((8, 3, 6, 6), 4),
        ((8, 3, 6, 6), 4),
        ((4, 3, 6, 6), 2),
    ]


def test_a_batch_is_cut_without_waiting():
    images, target = np.zeros((20, 6, 6, 3), np.uint8), np.arange(20) % 10
    loader = InMemoryLoader(images, target, 8, ShardedOrder(20, True, 0, 0, 1), pad=1, flip=True, device="meta")
    with NoHostSyncs(), NoNewTensors():
        batches = list(loader)
    assert [tuple(images.shape) for images, _ in batches] == [(8, 3, 6, 6), (8, 3, 6, 6), (4, 3, 6, 6)]
    assert all(images.is_meta and target.is_meta for images, target in batches)
