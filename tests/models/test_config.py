"""A model from its configuration: weights, normalisation, classifier and taps."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from ndkd.models import ModelConfig, build_model
from tests.command import refusal

DATA = ((0.11, 0.12, 0.13), (0.14, 0.15, 0.16))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
EXPLICIT = ([0.21, 0.22, 0.23], [0.24, 0.25, 0.26])
STORED = ([0.31, 0.32, 0.33], [0.34, 0.35, 0.36])
KWARGS = {"cifar/resnet8": {"widths": (4, 4, 4, 4)}, "timm/vit_tiny_patch16_224": {"img_size": 32, "depth": 1}}


def statistics(extractor):
    return tuple(tuple(round(x, 5) for x in values.flatten().tolist()) for values in (extractor.mean, extractor.std))


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint of a run of ours, with these hyper-parameters."""

    def save(name, hyper_parameters):
        state = build_model(name, 5, **KWARGS.get(name, {})).state_dict()
        state = {f"student.model.{key}": value for key, value in state.items()}
        torch.save({"state_dict": state, "hyper_parameters": hyper_parameters}, tmp_path / "last.ckpt")
        return tmp_path / "last.ckpt"

    return save


def two_layers(num_classes):
    return nn.Sequential(OrderedDict(fc=nn.Linear(4, 3), last=nn.Linear(3, num_classes)))


def student(mean=None, std=None):
    return {"student": {"name": "cifar/resnet8", "mean": mean, "std": std}}


@pytest.mark.parametrize(
    ("name", "explicit", "stored", "wanted"),
    [
        ("cifar/resnet8", EXPLICIT, student(*STORED), EXPLICIT),
        ("cifar/resnet8", (None, None), student(*STORED), STORED),
        ("cifar/resnet8", EXPLICIT, None, EXPLICIT),
        ("cifar/resnet8", (None, None), None, DATA),
        ("cifar/resnet8", (None, None), student(), DATA),
        ("cifar/resnet8", (None, None), {"student": None}, DATA),
        ("cifar/resnet8", (None, None), {"lr": 0.1}, DATA),
        ("cifar/resnet8", (None, None), {}, DATA),
        ("torchvision/shufflenet_v2_x0_5", EXPLICIT, student(*STORED), EXPLICIT),
        ("torchvision/shufflenet_v2_x0_5", (None, None), student(*STORED), STORED),
        ("torchvision/shufflenet_v2_x0_5", (None, None), None, IMAGENET),
        ("torchvision/shufflenet_v2_x0_5", (None, None), student(), IMAGENET),
        ("timm/vit_tiny_patch16_224", EXPLICIT, None, EXPLICIT),
        ("timm/vit_tiny_patch16_224", (None, None), student(*STORED), STORED),
        ("timm/vit_tiny_patch16_224", (None, None), None, HALF),
    ],
)
def test_whose_normalisation(checkpoint, name, explicit, stored, wanted):
    path = None if stored is None else checkpoint(name, stored)
    mean, std = explicit
    config = ModelConfig(name, path, mean=mean, std=std, kwargs=KWARGS.get(name, {}))
    assert statistics(config.build(5, *DATA)) == tuple(map(tuple, wanted))


def test_no_normalisation():
    extractor = ModelConfig("cifar/resnet8").build(5, None, None)
    assert (extractor.mean, extractor.std) == (None, None)


@pytest.mark.parametrize("half", [{"mean": EXPLICIT[0]}, {"std": EXPLICIT[1]}])
def test_half_of_the_normalisation(refused, half):
    with refused("", "mean", "std", ""):
        ModelConfig("cifar/resnet8", **half).build(5, *DATA)


@pytest.mark.parametrize("foreign", [{"student": "resnet20"}, {"student": ["a"]}, "text"])
def test_hyper_parameters_of_another_program(checkpoint, foreign):
    path = checkpoint("cifar/resnet8", foreign)
    config = ModelConfig("cifar/resnet8", path, kwargs=KWARGS["cifar/resnet8"])
    assert statistics(config.build(5, *DATA)) == DATA


def test_weights(teacher_checkpoint):
    saved = torch.load(teacher_checkpoint, weights_only=True)
    for path in (teacher_checkpoint, str(teacher_checkpoint)):
        extractor = ModelConfig("cifar/resnet8", checkpoint=path).build(10, *DATA)
        assert all(torch.equal(value, saved[key]) for key, value in extractor.model.state_dict().items())


PUBLISHED = {
    # as the published CIFAR teachers are kept, in the format of their time
    "model": lambda state: {"epoch": 240, "model": state, "best_acc": torch.tensor(75.6), "optimizer": {"state": {}}},
    "bare": lambda state: state,
    "DataParallel": lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
}


@pytest.mark.parametrize("name", ["resnet56", "resnet110", "resnet32x4", "resnet50", "wrn_40_2", "vgg13"])
def test_published_teachers(tmp_path, name):
    """That keys and shapes are the published ones is shown with the models."""
    path, images = tmp_path / "weights.pth", torch.rand(2, 3, 8, 8)
    saved = build_model(f"cifar/{name}", 100).eval()
    for buffer_name, buffer in saved.named_buffers():
        if buffer_name.endswith("running_mean"):
            buffer.normal_(std=0.1)
    with torch.no_grad():
        wanted = saved(images)
        for kind, wrap in PUBLISHED.items():
            torch.save(wrap(saved.state_dict()), path, _use_new_zipfile_serialization=kind != "model")
            loaded = ModelConfig(f"cifar/{name}", path).build(100, None, None).eval()
            assert torch.equal(loaded(images).logits, wanted), kind


def test_pretrained_and_kwargs_go_to_the_factory(monkeypatch):
    asked = []

    def build(*args, **kwargs):
        asked.append((args, kwargs))
        return build_model("cifar/resnet8", 5)

    monkeypatch.setattr("ndkd.models.config.build_model", build)
    ModelConfig("x/y", pretrained=True, kwargs={"a": 1}).build(5, *DATA)
    ModelConfig("x/y", kwargs={"a": 1}).build(5, *DATA)
    assert asked == [(("x/y", None, True), {"a": 1}), (("x/y", 5, False), {"a": 1})]


def test_classifier_and_taps():
    extractor = ModelConfig("torchvision/mobilenet_v3_small", classifier=["classifier.0"], taps=["features.1"])
    extractor = extractor.build(5, *DATA)
    assert (extractor.classifier, extractor.embedding_dim) == (["classifier.0"], 576)
    assert extractor.taps == ["features.1"]
    default = ModelConfig("cifar/resnet8").build(5, *DATA)
    assert (default.classifier, default.taps) == (["fc"], [])


# ---- refused ----------------------------------------------------------------------------------------------------


def test_classifier_that_does_not_make_the_logits(refused):
    with refused(
        f"model {__name__}:two_layers: fc has 3 outputs, wanted 5 classes; "
        "set classifier to the layer that makes the logits"
    ):
        ModelConfig(f"{__name__}:two_layers").build(5, *DATA)
    named = ModelConfig(f"{__name__}:two_layers", classifier=["last"]).build(5, *DATA)
    assert named.num_classes == 5


def test_another_number_of_classes(refused, teacher_checkpoint):
    with refused(
        f"checkpoint {teacher_checkpoint} has 10 classes without names, the data has 7: with pretrained: true it gets "
        "a new classifier"
    ):
        ModelConfig("cifar/resnet8", checkpoint=teacher_checkpoint).build(7, *DATA)


def test_another_architecture(refused, teacher_checkpoint):
    with refused(
        f"checkpoint {teacher_checkpoint} does not fit the model; missing: layer1.1.conv1.weight, ", " and 26 more.", ""
    ):
        ModelConfig("cifar/resnet14", checkpoint=teacher_checkpoint).build(10, *DATA)


@pytest.mark.parametrize("content", [{}, {"model": {}}, {"epoch": 3}])
def test_file_without_weights(refused, tmp_path, content):
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with refused(f"checkpoint {path} ", ""):
        ModelConfig("cifar/resnet8", checkpoint=path).build(10, *DATA)


def test_file_that_is_not_there(refused, tmp_path):
    path = tmp_path / "weights.pth"
    with refused(f"checkpoint {path} does not exist; train it first or correct the path"):
        ModelConfig("cifar/resnet8", checkpoint=path).build(10, *DATA)


@pytest.mark.parametrize(
    "options",
    [
        {"mean": [], "std": []},
        {"classifier": []},
        {"taps": []},
        {"kwargs": None},
        {"mean": [0.5], "std": [0]},
        {"mean": [0.5], "std": [-1]},
        {"mean": [float("nan")], "std": [1]},
        {"mean": [0.5], "std": [float("inf")]},
        {"mean": [0.5, 0.5], "std": [0.5]},
    ],
)
def test_an_option_of_a_model(options):
    assert refusal(ModelConfig, "cifar/resnet8", **options).startswith("model cifar/resnet8: ")
