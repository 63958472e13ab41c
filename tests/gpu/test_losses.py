"""Every loss on a GPU is that of the CPU, and none makes the CPU wait."""

import pytest
import torch

from tests.losses.test_common import ALL, and_soft, target_of


def moved(inputs, device):
    """Copies on a device, the student's as leaves of the graph."""
    return [
        [tensor.to(device) for tensor in given] if isinstance(given, list) else given.to(device) for given in inputs
    ]


@pytest.fixture
def made(built, tensors):
    """A loss with its layers, from a seed."""

    def make(loss_class):
        torch.manual_seed(2)
        return built(loss_class(), tensors["student.feature_maps"], tensors["teacher.feature_maps"])

    return make


def gradients(loss, inputs):
    student = [each.requires_grad_() for each in (inputs[0] if isinstance(inputs[0], list) else inputs[:1])]
    value = loss(*inputs)
    return [value.detach(), *torch.autograd.grad(value, student)]


@and_soft(ALL)
def test_value_and_gradient_are_those_of_the_cpu(made, inputs_of, device, loss_class, kind):
    inputs = inputs_of(loss_class, target_of(kind))
    wanted = gradients(made(loss_class), moved(inputs, "cpu"))
    found = gradients(made(loss_class).to(device), moved(inputs, device))
    assert all(each.device.type == device.type for each in found)
    torch.testing.assert_close([each.cpu() for each in found], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@and_soft(ALL)
def test_autocast_leaves_losses_in_float32(made, inputs_of, device, loss_class, kind, dtype):
    inputs = moved(inputs_of(loss_class, target_of(kind)), device)
    with torch.autocast(device.type, dtype=dtype):
        value = made(loss_class).to(device)(*inputs)
    assert value.dtype == torch.float32
    assert value.isfinite()


@pytest.mark.cuda
@and_soft(ALL)
def test_nothing_waits_for_the_gpu(made, inputs_of, device, loss_class, kind):
    loss, inputs = made(loss_class).to(device), moved(inputs_of(loss_class, target_of(kind)), device)
    gradients(loss, inputs)  # libraries are loaded
    torch.cuda.set_sync_debug_mode("error")
    try:
        gradients(loss, inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
