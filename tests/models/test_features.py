"""Embedding, logits and feature maps of any classifier, and how its classifier is found."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ndkd.models import FeatureExtractor, build_model
from ndkd.models.features import HEADS, find_classifier


def net(**layers):
    return nn.Sequential(OrderedDict(layers))


def conv_net(**options):
    """A map before an in-place activation."""
    activation = nn.ReLU(inplace=True)
    layers = {
        "conv": nn.Conv2d(3, 4, 3),
        "norm": nn.BatchNorm2d(4),
        "relu": activation,
        "pool": nn.AdaptiveAvgPool2d(1),
    }
    return net(**layers, flatten=nn.Flatten(), **options, fc=nn.Linear(4, 5))


class Shared(nn.Module):
    """One activation, called twice, and a layer that is called in training only."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.fc = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.relu, self.auxiliary = nn.ReLU(inplace=True), nn.Identity()

    def forward(self, x):
        self.entered = [self.first(x)]
        self.entered.append(self.second(self.relu(self.entered[0].clone())))
        x = self.relu(self.entered[1].clone())
        return self.fc(self.auxiliary(x) if self.training else x)


class Fails(nn.Module):
    """Raises where a batch has three images."""

    def forward(self, x):
        if len(x) == 3:
            raise ValueError("three")
        return x


def logits_from(extractor, embedding):
    layer = extractor.model.get_submodule(extractor.classifier[0])
    return F.linear(embedding, layer.weight, layer.bias)


# ---- embedding --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inplace", [False, True])
def test_dropout_elsewhere_is_none_of_its_business(inplace):
    layers = {"drop": nn.Dropout(0.5, inplace), "fc1": nn.Linear(4, 4), "relu": nn.ReLU(), "fc": nn.Linear(4, 2)}
    extractor = FeatureExtractor(net(**layers)).train()
    output = extractor(torch.rand(8, 4))
    torch.testing.assert_close(logits_from(extractor, output.embedding), output.logits)


@pytest.mark.parametrize("inplace", [False, True])
def test_dropout_that_is_flattened(inplace):
    layers = {"conv": nn.Conv2d(3, 4, 2), "drop": nn.Dropout(0.5, inplace), "flatten": nn.Flatten()}
    extractor = FeatureExtractor(net(**layers, fc=nn.Linear(4, 2))).train()
    images = torch.rand(8, 3, 2, 2)
    with torch.no_grad():
        assert torch.equal(extractor(images).embedding, extractor.model.conv(images).flatten(1))


def test_gradients_flow_from_every_output():
    extractor = FeatureExtractor(build_model("cifar/resnet8", 5), taps=["layer1"])
    output = extractor(torch.rand(2, 3, 8, 8))
    for value in (output.logits, output.embedding, output.feature_maps[0]):
        extractor.zero_grad()
        value.square().sum().backward(retain_graph=True)
        assert extractor.model.conv1.weight.grad.abs().sum() > 0


# ---- classifier -------------------------------------------------------------------------------------------------


def linears(*names):
    model = nn.Module()
    for name in names:
        *parents, last = name.split(".")
        parent = model
        for part in parents:
            if not hasattr(parent, part):
                parent.add_module(part, nn.Module())
            parent = getattr(parent, part)
        parent.add_module(last, nn.Linear(3, 2))
    return model


@pytest.mark.parametrize("word", ["last", ["last"], ("first", "last")])
def test_the_word_of_timm_comes_first(word):
    model = linears("first", "last", "fc")
    model.pretrained_cfg = {"classifier": word}
    assert find_classifier(model) == (["last"] if isinstance(word, str) else list(word))


@pytest.mark.parametrize("word", ["gone", ("fc", "gone"), None])
def test_the_word_of_timm_for_a_layer_that_is_gone(word):
    model = linears("first", "fc")
    model.pretrained_cfg = {"classifier": word}
    assert find_classifier(model) == ["fc"]


@pytest.mark.parametrize("head", HEADS)
def test_usual_names(head):
    assert find_classifier(linears("a", head, "b")) == [head]
    assert find_classifier(linears("a", f"{head}.0", f"{head}.3", "b")) == [f"{head}.3"]
    assert find_classifier(linears(f"deep.{head}", head, f"{head}1")) == [head]


def test_the_only_linear():
    assert find_classifier(linears("deep.odd")) == ["deep.odd"]


def test_no_rule_tells(refused):
    many = [f"layer{k}" for k in range(10)]
    unknown = "cannot tell which layer of Module is the classifier; "
    with refused(f"{unknown}set classifier to one of: {', '.join(many[-8:])}"):
        find_classifier(linears(*many))
    with refused(f"{unknown}it has no Linear layer"):
        find_classifier(nn.Module())


@pytest.mark.parametrize("classifier", ["a", ["a"]])
def test_classifier_by_name(classifier):
    extractor = FeatureExtractor(net(a=nn.Linear(3, 4), fc=nn.Linear(4, 2)), classifier)
    assert (extractor.classifier, extractor.embedding_dim, extractor.num_classes) == (["a"], 3, 4)
    images = torch.rand(2, 3)
    assert torch.equal(extractor(images).embedding, images)


# ---- taps -------------------------------------------------------------------------------------------------------


def test_maps_in_the_order_of_the_taps():
    model = build_model("cifar/resnet8", 5).eval()
    images = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        maps = FeatureExtractor(model, taps=["layer2", "layer1", "layer2:input"])(images).feature_maps
        first = model.layer1(F.relu(model.bn1(model.conv1(images))))
        assert torch.equal(maps[0], model.layer2(first))
    assert torch.equal(maps[1], first)
    assert torch.equal(maps[2], first)


def test_input_of_the_last_call():
    model = Shared()
    extractor = FeatureExtractor(model, taps=["relu:input", "relu"])
    entered, left = (values[:, :, 0, 0] for values in extractor(torch.randn(5, 3)).feature_maps)
    assert torch.equal(entered, model.entered[1])
    assert torch.equal(left, model.entered[1].relu())


@pytest.mark.parametrize("tap", ["norm", "relu:input"])
def test_activation_in_place_does_not_overwrite_a_map(tap):
    torch.manual_seed(0)
    model = conv_net().eval()
    assert FeatureExtractor(model).model.relu.inplace  # nothing is tapped: left as it is
    images = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        wanted, logits = model.norm(model.conv(images)), model(images)
        output = FeatureExtractor(model, taps=[tap])(images)
    assert wanted.min() < 0
    assert torch.equal(output.feature_maps[0], wanted)
    assert torch.equal(output.logits, logits)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"classifier": "fcc"}, ("classifier: Sequential has no layer 'fcc'; did you mean fc?",)),
        ({"classifier": ""}, ("classifier: Sequential has no layer ''; ", "")),
        ({"classifier": ["fc", "zzz"]}, ("classifier: Sequential has no layer 'zzz'; known: conv, norm, ", "fc")),
        ({"taps": ["relux"]}, ("taps: Sequential has no layer 'relux'; did you mean relu?",)),
        ({"taps": ["norm", "nrom:input"]}, ("taps: Sequential has no layer 'nrom'; did you mean norm?",)),
        ({"taps": [""]}, ("taps: Sequential has no layer ''; ", "")),
        ({"taps": ["norm:inptu"]}, ("taps: wanted NAME or NAME:input, got norm:inptu",)),
        ({"taps": ["norm:output"]}, ("taps: wanted NAME or NAME:input, got norm:output",)),
        ({"taps": ["norm:"]}, ("taps: wanted NAME or NAME:input, got norm:",)),
    ],
)
def test_layers_that_are_not_there(refused, options, parts):
    with refused(*parts):
        FeatureExtractor(conv_net(), **options)


@pytest.mark.parametrize("before", ["nothing", "a forward of the model alone"])
def test_tap_that_is_not_called(refused, before):
    extractor = FeatureExtractor(Shared(), taps=["auxiliary"])
    assert extractor.train()(torch.rand(4, 3)).feature_maps[0].shape == (4, 4, 1, 1)
    if before != "nothing":
        extractor.model(torch.rand(4, 3))
    with refused("", "auxiliary", ""):
        extractor.eval()(torch.rand(4, 3))


# ---- normalisation ----------------------------------------------------------------------------------------------


def test_images_are_normalised():
    images, statistics = torch.rand(2, 3, 4, 4), ((0.1, 0.2, 0.3), [0.5, 0.6, 0.7])
    model = net(flatten=nn.Flatten(), fc=nn.Linear(48, 2))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in statistics)
    embedding = FeatureExtractor(model, None, (), *statistics)(images).embedding
    torch.testing.assert_close(embedding, ((images - mean) / std).flatten(1))
    assert torch.equal(FeatureExtractor(model)(images).embedding, images.flatten(1))


@pytest.mark.parametrize("statistics", [{"mean": [0.5] * 3}, {"std": [0.5] * 3}])
def test_half_of_the_normalisation(refused, statistics):
    with refused("", "mean", "std", ""):
        FeatureExtractor(conv_net(), **statistics)


def test_statistics_move_with_the_model_and_are_not_saved():
    extractor = FeatureExtractor(conv_net(), mean=[0.5] * 3, std=[0.5] * 3).double()
    assert extractor.mean.dtype == extractor.std.dtype == torch.float64
    assert list(extractor.state_dict()) == [f"model.{key}" for key in conv_net().state_dict()]
    assert extractor.eval()(torch.rand(1, 3, 8, 8, dtype=torch.float64)).logits.dtype == torch.float64


# ---- the model stays as it is -----------------------------------------------------------------------------------


def test_the_model_is_not_edited():
    model = build_model("torchvision/mobilenet_v2", 7).eval()
    before, classes = copy.deepcopy(model.state_dict()), [type(module) for module in model.modules()]
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        logits = model(images)
        extractor = FeatureExtractor(model, taps=["features.3", "features.5:input"])
        assert extractor.model is model
        assert torch.equal(extractor(images).logits, logits)
        assert torch.equal(model(images), logits)
    assert [type(module) for module in model.modules()] == classes
    assert list(extractor.state_dict()) == [f"model.{key}" for key in before]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_nothing_is_kept_between_forwards():
    extractor = FeatureExtractor(conv_net(drop=nn.Dropout()), taps=["norm", "relu:input"])
    for _ in range(2):
        assert len(extractor(torch.rand(2, 3, 8, 8)).feature_maps) == 2
        assert extractor._captured == {}
        assert extractor._dropped is None


def test_the_forward_after_a_failed_one():
    model = net(first=nn.Linear(4, 4), drop=nn.Dropout(), fails=Fails(), fc=nn.Linear(4, 2)).train()
    extractor = FeatureExtractor(model, taps=["first", "drop:input"])
    with pytest.raises(ValueError, match="^three$"):
        extractor(torch.rand(3, 4))
    images = torch.rand(2, 4)
    output = extractor(images)
    wanted = F.linear(images, model.first.weight, model.first.bias)
    maps = [values[:, :, 0, 0] for values in output.feature_maps]
    assert all(torch.equal(found, wanted) for found in (output.embedding, *maps))


def test_copies_are_independent():
    extractor = FeatureExtractor(build_model("cifar/resnet8", 5), taps=["layer1", "layer3:input"]).eval()
    copied = copy.deepcopy(extractor)
    images = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        wanted = extractor(images)
        for parameter in extractor.parameters():
            parameter.zero_()
        output = copied(images)
        assert not extractor(images).logits.any()
    assert torch.equal(output.logits, wanted.logits)
    assert torch.equal(output.embedding, wanted.embedding)
    assert all(map(torch.equal, output.feature_maps, wanted.feature_maps))
    assert extractor._captured == copied._captured == {}


def test_two_extractors_of_one_model():
    model = build_model("cifar/resnet8", 5).eval()
    first, second = FeatureExtractor(model, taps=["layer1"]), FeatureExtractor(model, taps=["layer2"])
    images = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        assert first(images).feature_maps[0].shape == (2, 16, 8, 8)
        assert second(images).feature_maps[0].shape == (2, 32, 4, 4)
