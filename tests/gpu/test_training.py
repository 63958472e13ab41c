"""A module on a GPU: no step waits, precisions, resuming, compiled models, class means, memory."""

from functools import partial

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging

from ndkd.callbacks import ClassMeans, TeacherCache
from ndkd.data import DigitsDataModule
from ndkd.models import ModelConfig
from tests.tiny_data import TAPS


class NothingWaits(L.Callback):
    """From the second batch of an epoch to its last, a step that waits for the GPU is an error."""

    def __init__(self):
        self.steps = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx:
            torch.cuda.set_sync_debug_mode("error")
            self.steps += 1

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx + 1 == trainer.num_training_batches:
            torch.cuda.set_sync_debug_mode("default")

    def on_exception(self, trainer, pl_module, exception):
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def digits():
    """All four batches of an epoch."""
    return partial(DigitsDataModule, train_size=128, batch_size=32)


@pytest.fixture
def on_device(fit, accelerator):
    return partial(fit, accelerator=accelerator)


def weights(module):
    return {name: tensor.cpu() for name, tensor in module.student.state_dict().items()}


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("losses", [("ce",), ("ce", "kd", "nd"), ("ce", "review")])
def test_no_training_step_waits_for_the_gpu(on_device, make_module, terms, digits, losses, precision):
    on_device(make_module(terms(*losses)), watch := NothingWaits(), data=digits(), precision=precision, epochs=2)
    assert watch.steps == 6


@pytest.mark.cuda
def test_no_step_waits_for_a_recorded_teacher(on_device, make_module, terms, digits, tmp_path):
    on_device(make_module(terms("ce", "kd", "nd")), TeacherCache(tmp_path), data=digits())
    callbacks = [TeacherCache(tmp_path), watch := NothingWaits()]
    on_device(make_module(terms("ce", "kd", "nd")), *callbacks, data=digits())
    assert watch.steps == 3


def test_a_recorded_teacher_gives_the_same_weights(on_device, make_module, terms, digits, tmp_path):
    modules = [make_module(terms("ce", "kd", "nd")) for _ in range(2)]
    for module in modules:
        on_device(module, TeacherCache(tmp_path), data=digits(), deterministic="warn")
    for name, one in weights(modules[0]).items():
        assert torch.equal(one, weights(modules[1])[name]), name


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision(on_device, make_module, terms, digits, precision, accelerator):
    if (accelerator, precision) == ("cpu", "16-mixed"):
        pytest.skip("no scaler of gradients on a CPU")
    module = make_module(terms("ce", "kd", "nd", "review"), narrow=True)
    trainer = on_device(module, data=digits(), precision=precision, epochs=2)
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    assert trainer.callback_metrics["val/cross_entropy"].isfinite()


def test_resumed_on_a_gpu(on_device, make_module, terms, digits, tmp_path):
    options = {"data": digits(), "deterministic": "warn"}
    whole, cut, resumed = (make_module(terms("ce", "kd", "nd")) for _ in range(3))
    on_device(whole, epochs=3, **options)
    on_device(cut, epochs=2, **options).save_checkpoint(tmp_path / "last.ckpt")
    on_device(resumed, epochs=3, ckpt_path=tmp_path / "last.ckpt", **options)
    for name, one in weights(whole).items():
        assert torch.equal(one, weights(resumed)[name]), name


def test_the_first_steps_are_those_of_the_cpu(fit, on_device, make_module, terms, digits):
    modules = [make_module(terms("ce", "kd", "nd"), lr=0.01) for _ in range(2)]
    for module, train in zip(modules, (fit, on_device), strict=True):
        train(module, data=digits(), max_steps=2)
    torch.testing.assert_close(*map(weights, modules), rtol=1e-3, atol=1e-4)


def test_class_means_are_those_of_the_cpu(fit, on_device, make_module, terms, digits):
    modules = [make_module(terms("ce", "nd")) for _ in range(2)]
    for module, train in zip(modules, (fit, on_device), strict=True):
        train(module, ClassMeans(), data=digits(), max_steps=1)
    torch.testing.assert_close(*(module.class_means.cpu() for module in modules), rtol=1e-4, atol=1e-5)


@pytest.mark.cuda  # on a CPU there are no CUDA graphs
def test_cuda_graphs(on_device, make_module, terms, digits, teacher_checkpoint):
    models = [
        {
            "student": ModelConfig("cifar/resnet8", taps=TAPS, compile=mode),
            "teacher": ModelConfig("cifar/resnet8", checkpoint=teacher_checkpoint, taps=TAPS, compile=mode),
        }
        for mode in (None, "reduce-overhead")
    ]
    modules = [make_module(terms("ce", "kd", "nd"), lr=0.01, **options) for options in models]
    for module in modules:
        on_device(module, data=digits(), epochs=2)
    torch.testing.assert_close(*map(weights, modules), rtol=1e-2, atol=1e-2)


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("losses", [("ce",), ("ce", "kd", "nd"), ("ce", "review")])
def test_a_replayed_graph_gives_the_same_weights(on_device, make_module, terms, losses, precision):
    modules = [make_module(terms(*losses), narrow=True, graph=graph) for graph in (False, True)]
    data = partial(DigitsDataModule, train_size=150, batch_size=32)  # four batches of 32 and one of 22
    for module in modules:
        on_device(module, data=data(), epochs=3, precision=precision, deterministic="warn")
    assert modules[1].graphed_step.key is not None
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if precision == "32-true" else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(*map(weights, modules), **tolerance)


@pytest.mark.cuda
def test_a_graph_follows_warm_up_and_recording(on_device, make_module, terms, digits, tmp_path):
    found = []
    for graph in (False, True, True):
        losses = terms("ce", "kd", "nd")
        losses["kd"].warmup_epochs = 3
        module, callbacks = make_module(losses, graph=graph), [TeacherCache(tmp_path)] if graph else []
        on_device(module, *callbacks, data=digits(), epochs=4, deterministic="warn")
        found.append(weights(module))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)  # while it is recorded
    torch.testing.assert_close(found[0], found[2], rtol=1e-4, atol=1e-4)  # from the recording


@pytest.mark.cuda
@pytest.mark.parametrize("graph", [False, True])
def test_what_is_validated_in_a_fit_is_what_is_tested_afterwards(on_device, make_module, terms, digits, graph):
    """Between both the trainer moves the module away from the GPU and back."""
    data, module = digits(), make_module(terms("ce", "kd"), graph=graph)
    trainer = on_device(module, data=data, epochs=5)
    wanted = trainer.callback_metrics["val/cross_entropy"].item()
    kept = [torch.empty(1 << k, device="cuda") for k in range(24)]  # memory is dealt out otherwise
    for _ in range(2):
        found = trainer.validate(module, datamodule=data, verbose=False)[0]["val/cross_entropy"]
        assert found == pytest.approx(wanted, rel=1e-5)
    assert kept


@pytest.mark.cuda
def test_averages_of_weights_are_what_is_validated(on_device, make_module, terms, digits):
    found = []
    for graph in (False, True):
        module, data = make_module(terms("ce"), lr=0.02, graph=graph), digits()
        averages = EMAWeightAveraging(decay=0.9)
        trainer = on_device(module, averages, data=data, epochs=5, deterministic="warn")
        found.append(trainer.callback_metrics["val/cross_entropy"].item())
    assert found[0] == pytest.approx(found[1], rel=1e-3)


@pytest.mark.cuda
def test_no_replayed_step_waits_for_the_gpu(on_device, make_module, terms, digits):
    class AfterTheCapture(NothingWaits):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.current_epoch > 1:
                super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    module = make_module(terms("ce", "kd", "nd"), graph=True)
    on_device(module, watch := AfterTheCapture(), data=digits(), epochs=4)
    assert watch.steps == 6


@pytest.mark.cuda
def test_memory_does_not_grow(on_device, make_module, terms, digits):
    peaks = []

    class Peak(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            torch.cuda.reset_peak_memory_stats()

        def on_train_epoch_end(self, trainer, pl_module):
            peaks.append(torch.cuda.max_memory_allocated())

    on_device(make_module(terms("ce", "kd", "nd")), Peak(), data=digits(), epochs=6)
    assert peaks[-1] <= peaks[1]
