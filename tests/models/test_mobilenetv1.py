"""MobileNetV1 is the paper's."""

import pytest
import torch
from torch import nn

from ndkd.models import FeatureExtractor, build_model

TAPS = ["blocks.2", "blocks.4", "blocks.10", "blocks.12", "avgpool"]


def test_size():
    """4.2 million parameters and 569 million multiplications, as in the paper's table 8."""
    model = build_model("imagenet/mobilenet_v1", 1000)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == 4.2
    multiplications = []

    def count(layer, inputs, output):
        places = output[0, 0].numel() if output.ndim == 4 else 1
        multiplications.append(places * layer.weight.numel())

    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(count)
    with torch.device("meta"):
        model.to("meta").eval()(torch.empty(1, 3, 224, 224))
    assert round(sum(multiplications) / 1e6) == 569


@pytest.mark.parametrize("before_relu", [False, True])
def test_maps_and_embedding(before_relu):
    taps = [f"{tap}.preact" if before_relu and "." in tap else tap for tap in TAPS]
    extractor = FeatureExtractor(build_model("imagenet/mobilenet_v1", 7), taps=taps).eval()
    with torch.no_grad():
        output = extractor(torch.rand(2, 3, 64, 64))
    shapes = [tuple(m.shape[1:]) for m in output.feature_maps]
    assert shapes == [(128, 16, 16), (256, 8, 8), (512, 4, 4), (1024, 2, 2), (1024, 1, 1)]
    assert [bool((m < 0).any()) for m in output.feature_maps] == [before_relu] * 4 + [False]
    assert torch.equal(output.feature_maps[-1].flatten(1), output.embedding)


def test_weights_start_as_torch_draws_them():
    """Uniform within 1 / √fan_in, the classifier's bias too; He's normal distribution has a third of that again."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model("imagenet/mobilenet_v1", 1000)
    layers = [layer for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 28
    for layer in layers:
        bound = layer.weight[0].numel() ** -0.5
        drawn = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
        for values in drawn:
            assert 0.9 * bound < values.abs().max() <= bound
            assert values.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert model.fc.bias is not None
