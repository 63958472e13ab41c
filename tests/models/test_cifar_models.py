"""The CIFAR zoo against the published models' shapes and numbers."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ndkd.models import FeatureExtractor
from ndkd.models.cifar import MODELS
from ndkd.models.cifar.resnet import ResNet
from ndkd.models.cifar.wrn import WideResNet

FILES = Path(__file__).parents[1] / "golden"
GOLDEN = json.loads((FILES / "cifar_models.json").read_text())
every_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="module")
def numbers():
    with np.load(FILES / "cifar_models.npz") as file:
        return {name: torch.from_numpy(array) for name, array in file.items()}


def stages(model):
    """The stem's map and the stages' outputs."""
    names = {ResNet: ("layer1", "layer2", "layer3"), WideResNet: ("block1", "block2", "block3")}[type(model)]
    return [f"{names[0]}:input", *names]


def preactivations(model):
    """What enters the stages' last ReLU, or in a WRN the ReLU that follows the stage."""
    if isinstance(model, WideResNet):
        return ["block2.layer.0.bn1", "block3.layer.0.bn1", "bn1"]
    return [f"layer{n}.{len(getattr(model, f'layer{n}')) - 1}.preact" for n in (1, 2, 3)]


def filled(key, old):
    """The entry of the state dict that the golden numbers were computed with."""
    if not old.is_floating_point():
        return old
    a = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(old.shape).astype(np.float32)
    if key.endswith("running_var"):
        a = 1 + 0.1 * np.abs(a)
    elif key.endswith("running_mean"):
        a = 0.1 * a
    elif a.ndim == 1:
        a = 0.1 * a + key.endswith("weight")
    else:
        a = a * np.sqrt(1 / np.prod(a.shape[1:]))
    return torch.from_numpy(a.astype(np.float32))


@pytest.fixture(scope="module")
def run(numbers):
    """The filled model's output on the golden images, the maps of ``taps(model)`` with it."""

    def output(name, taps):
        model = MODELS[name](num_classes=100)
        model.load_state_dict({key: filled(key, value) for key, value in model.state_dict().items()})
        with torch.no_grad():
            return FeatureExtractor(model, taps=taps(model)).eval()(numbers["images"])

    return output


def assert_near(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * wanted.abs().max().item())


def means(maps):
    return torch.stack([values.mean() for values in maps])


def test_every_model_is_golden():
    assert len(MODELS) > 0
    assert set(MODELS) <= set(GOLDEN)


@every_model
def test_structure(name):
    model, golden = MODELS[name](num_classes=100), GOLDEN[name]
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == golden["state_dict"]
    assert sum(parameter.numel() for parameter in model.parameters()) == golden["num_parameters"]
    assert FeatureExtractor(model).embedding_dim == golden["embedding_dim"]


@every_model
def test_numbers(name, run, numbers):
    output = run(name, stages)
    assert_near(output.logits, numbers[f"{name}/logits"])
    assert_near(output.embedding, numbers[f"{name}/embedding"])
    assert [list(values.shape[1:]) for values in output.feature_maps] == GOLDEN[name]["feature_shapes"]
    assert_near(means(output.feature_maps), numbers[f"{name}/feature_means"])


@every_model
def test_preactivations(name, run, numbers):
    output = run(name, preactivations)
    stem, *wanted = numbers[f"{name}/preact_means"]
    assert stem == numbers[f"{name}/feature_means"][0]  # it has no map of its own
    assert_near(means(output.feature_maps), torch.stack(wanted))
    assert [list(values.shape[1:]) for values in output.feature_maps] == GOLDEN[name]["feature_shapes"][1:]
    assert all(values.min() < 0 for values in output.feature_maps)


@every_model
def test_pooled_map_is_the_embedding(name, run):
    output = run(name, lambda model: ["avgpool"])
    assert torch.equal(output.feature_maps[0].flatten(1), output.embedding)


@every_model
def test_small_images_train(name):
    torch.manual_seed(0)
    model = MODELS[name](num_classes=5)
    logits = model(torch.rand(3, 3, 8, 8))
    assert logits.shape == (3, 5)
    F.cross_entropy(logits, torch.arange(3)).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters() if parameter.ndim > 1)


@every_model
def test_biases_of_the_classifier_start_at_zero(name):
    biases = [layer.bias for layer in MODELS[name](num_classes=5).modules() if isinstance(layer, nn.Linear)]
    assert len(biases) > 0
    assert all(not bias.any() for bias in biases)
