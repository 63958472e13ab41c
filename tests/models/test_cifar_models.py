"""The CIFAR zoo against the published models' shapes and numbers."""

import json
import zlib
from functools import cache
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ndkd.models import FeatureExtractor
from ndkd.models.cifar import MODELS
from ndkd.models.cifar.mobilenetv2 import MobileNetV2
from ndkd.models.cifar.vgg import VGG
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
    if isinstance(model, MobileNetV2):
        return ["conv1", "blocks.1", "blocks.2", "blocks.4", "blocks.6"]
    if isinstance(model, VGG):
        return [f"block{n}" for n in range(5)]
    names = [name for name, _ in model.named_children() if name.startswith(("layer", "block"))]
    return [f"{names[0]}:input", *names]


def preactivations(model):
    """What enters the stages' last ReLU, or in a WRN the ReLU that follows the stage."""
    if isinstance(model, MobileNetV2):
        return []  # its stages end without a ReLU
    if isinstance(model, WideResNet):
        return ["block2.layer.0.bn1", "block3.layer.0.bn1", "bn1"]
    if isinstance(model, VGG):
        return [f"block{n}.preact" for n in range(1, 5)]
    return [f"{name}.{len(model.get_submodule(name)) - 1}.preact" for name in stages(model)[1:]]


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
    """The filled model's output on the golden images, and its maps by kind; computed once per model."""

    @cache
    def output(name):
        model = MODELS[name](num_classes=100)
        model.load_state_dict({key: filled(key, value) for key, value in model.state_dict().items()})
        taps = {"stages": stages(model), "preactivations": preactivations(model), "pooled": ["avgpool"]}
        with torch.no_grad():
            found = FeatureExtractor(model, taps=list(chain(*taps.values()))).eval()(numbers["images"])
        maps = iter(found.feature_maps)
        return found, {kind: list(islice(maps, len(names))) for kind, names in taps.items()}

    return output


def assert_near(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * wanted.abs().max().item())


def means(maps):
    return torch.stack([values.mean() for values in maps])


def test_every_golden_model_is_there():
    assert set(MODELS) == set(GOLDEN)


@every_model
def test_structure(name):
    model, golden = MODELS[name](num_classes=100), GOLDEN[name]
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == golden["state_dict"]
    assert sum(parameter.numel() for parameter in model.parameters()) == golden["num_parameters"]
    assert FeatureExtractor(model).embedding_dim == golden["embedding_dim"]


@every_model
def test_numbers(name, run, numbers):
    output, maps = run(name)
    assert_near(output.logits, numbers[f"{name}/logits"])
    assert_near(output.embedding, numbers[f"{name}/embedding"])
    assert [list(values.shape[1:]) for values in maps["stages"]] == GOLDEN[name]["feature_shapes"]
    assert_near(means(maps["stages"]), numbers[f"{name}/feature_means"])


@pytest.mark.parametrize("name", [name for name in MODELS if name != "mobilenet_v2_half"])
def test_preactivations(name, run, numbers):
    _, maps = run(name)
    stem, *wanted = numbers[f"{name}/preact_means"]
    assert stem == numbers[f"{name}/feature_means"][0]  # it has no map of its own
    assert_near(means(maps["preactivations"]), torch.stack(wanted))
    assert [list(values.shape[1:]) for values in maps["preactivations"]] == GOLDEN[name]["feature_shapes"][1:]
    assert all(values.min() < 0 for values in maps["preactivations"])


def test_stages_that_end_without_relu(run, numbers):
    """They serve as pre-activations: the published model has no others."""
    assert numbers["mobilenet_v2_half/preact_means"].numel() == 0
    _, maps = run("mobilenet_v2_half")
    assert all(values.min() < 0 for values in maps["stages"][1:])


@every_model
def test_pooled_map_is_the_embedding(name, run):
    output, maps = run(name)
    assert torch.equal(maps["pooled"][0].flatten(1), output.embedding)


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
