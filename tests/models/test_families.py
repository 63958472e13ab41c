"""The families of models that people use: embedding, feature maps and ReviewKD, and the page's table of them."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ndkd.losses import ReviewKDLoss
from ndkd.models import FeatureExtractor, build_model
from ndkd.models.cifar import MODELS as CIFAR_MODELS
from ndkd.models.output import ModelOutput
from ndkd.models.taps import known_taps
from tests.pages import section

SWIN = {"img_size": 64}
VIT = {"img_size": 32, "depth": 6}  # the page's tap is in the sixth block
DROP = {"dropout": 0.5}

# classifier, width of the embedding and arguments; timm's models get a dropout of 0.5 as well
MODELS = {
    "cifar/resnet8": ("fc", 64, {}),
    "cifar/wrn_16_1": ("fc", 64, {}),
    "torchvision/resnet18": ("fc", 512, {}),
    "torchvision/resnext50_32x4d": ("fc", 2048, {}),
    "torchvision/regnet_y_400mf": ("fc", 440, {}),
    "torchvision/mobilenet_v2": ("classifier.1", 1280, DROP),
    "torchvision/mobilenet_v3_small": ("classifier.3", 1024, DROP),
    "torchvision/mobilenet_v3_large": ("classifier.3", 1280, DROP),
    "torchvision/efficientnet_b0": ("classifier.1", 1280, DROP),
    "torchvision/efficientnet_v2_s": ("classifier.1", 1280, DROP),
    "torchvision/convnext_tiny": ("classifier.2", 768, {}),
    "torchvision/densenet121": ("classifier", 1024, {}),
    "torchvision/shufflenet_v2_x0_5": ("fc", 1024, {}),
    "torchvision/mnasnet0_5": ("classifier.1", 1280, DROP),
    "torchvision/googlenet": ("fc", 1024, {"init_weights": False, "aux_logits": False, **DROP}),
    "torchvision/vit_b_16": ("heads.head", 768, {"image_size": 32}),
    "torchvision/swin_t": ("head", 768, {}),
    "torchvision/swin_v2_t": ("head", 768, {}),
    "timm/resnet18": ("fc", 512, {"zero_init_last": False}),  # else no map is negative at the start
    "timm/resnet10t": ("fc", 512, {}),
    "timm/seresnet18": ("fc", 512, {}),
    "timm/regnetx_002": ("head.fc", 368, {}),
    "timm/regnety_002": ("head.fc", 368, {}),
    "timm/efficientnet_b0": ("classifier", 1280, {}),
    "timm/tf_efficientnetv2_b0": ("classifier", 1280, {}),
    "timm/mobilenetv1_100": ("classifier", 1024, {}),
    "timm/mobilenetv2_100": ("classifier", 1280, {}),
    "timm/mobilenetv3_small_100": ("classifier", 1024, {}),
    "timm/mobilenetv3_large_100": ("classifier", 1280, {}),
    "timm/mobilenetv4_conv_small": ("classifier", 1280, {}),
    "timm/convnext_atto": ("head.fc", 320, {}),
    "timm/convnextv2_atto": ("head.fc", 320, {}),
    "timm/hgnetv2_b0": ("head.fc", 2048, {}),
    "timm/repvgg_a0": ("head.fc", 1280, {}),
    "timm/edgenext_xx_small": ("head.fc", 168, {}),
    "timm/vit_tiny_patch16_224": ("head", 192, VIT),
    "timm/deit3_small_patch16_224": ("head", 384, VIT),
    "timm/eva02_tiny_patch14_224": ("head", 192, {**VIT, "img_size": 28}),
    "timm/swin_tiny_patch4_window7_224": ("head.fc", 768, SWIN),
}
TWO_HEADS = "timm/deit_tiny_distilled_patch16_224"
CONVOLUTIONS = {
    "torchvision/squeezenet1_1": "SqueezeNet",
    "timm/dla34": "DLA",
    "timm/dpn68": "DPN",
    "timm/resnetv2_18": "ResNetV2",
}
UNLIKE = {
    "timm/crossvit_9_240": "head.0, head.1 read (2, 128), (2, 256)",
    "timm/volo_d1_224": "head, aux_head read (2, 384), (2, 196, 384)",
    "timm/efficientvim_m1": "heads.0, heads.1, heads.2, heads.3 read (2, 128), (2, 192), (2, 320), (2, 320)",
}
PREACT_TAPS = {
    "torchvision/resnet18": [*(f"layer{k}.1.relu:input" for k in range(1, 5)), "avgpool"],
    "timm/resnet18": [*(f"layer{k}.1.act2:input" for k in range(1, 5)), "global_pool"],
}


def extractor(name, taps=(), dropout=True):
    kwargs = VIT if name == TWO_HEADS else MODELS[name][2]
    if dropout and name.startswith("timm/"):
        kwargs = {**kwargs, "drop_rate": 0.5}
    built = FeatureExtractor(build_model(name, 7, **kwargs), taps=taps)
    for classifier in built.classifier:  # some start with zeros, on which any embedding would do
        for parameter in built.model.get_submodule(classifier).parameters():
            nn.init.normal_(parameter)
    return built


def images(name, size=32):
    kwargs = MODELS.get(name, (None, None, VIT))[2]
    return torch.rand(2, 3, *2 * [kwargs.get("img_size", kwargs.get("image_size", size))])


def logits_from(layer, embedding):
    return F.linear(embedding, layer.weight, layer.bias)


# ---- embedding --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_embedding(name):
    classifier, width, kwargs = MODELS[name]
    model = extractor(name).eval()
    assert (model.classifier, model.embedding_dim, model.num_classes) == ([classifier], width, 7)
    layer = model.model.get_submodule(classifier)
    with torch.no_grad():
        output = model(images(name))
    assert output.embedding.shape == (2, width)
    assert output.projected is output.embedding
    assert output.feature_maps == []
    torch.testing.assert_close(logits_from(layer, output.embedding), output.logits)

    entered = []
    layer.register_forward_pre_hook(lambda layer, inputs: entered.append(inputs[0]))
    with torch.no_grad():
        embedding = model.train()(images(name)).embedding
    if name.startswith("timm/") or "dropout" in kwargs:  # then a dropout is directly in front
        dropped = (entered[0] == 0) & (embedding != 0)
        assert 0.3 < dropped.sum() / (embedding != 0).sum() < 0.7
        embedding = torch.where(dropped, 0, 2 * embedding)
    torch.testing.assert_close(entered[0], embedding)


def test_embedding_of_two_classifiers_is_their_mean():
    model = extractor(TWO_HEADS).eval()
    assert model.classifier == ["head", "head_dist"]
    assert model.embedding_dim == 192
    heads, entered = [model.model.get_submodule(name) for name in model.classifier], []
    for head in heads:
        head.register_forward_pre_hook(lambda layer, inputs: entered.append(inputs[0]))
    with torch.no_grad():
        output = model(images(TWO_HEADS))
        logits = [logits_from(*pair) for pair in zip(heads, entered, strict=True)]
    assert not torch.allclose(*entered)
    torch.testing.assert_close(output.embedding, (entered[0] + entered[1]) / 2)
    torch.testing.assert_close(output.logits, (logits[0] + logits[1]) / 2)


@pytest.mark.parametrize(("name", "kind"), CONVOLUTIONS.items())
def test_convolution_as_classifier(refused, name, kind):
    with torch.device("meta"):
        model = build_model(name, 7)
    with refused(f"cannot tell which layer of {kind} is the classifier; it has no Linear layer"):
        FeatureExtractor(model)
    last = [layer for layer, module in model.named_modules() if isinstance(module, nn.Conv2d)][-1]
    with refused(f"classifier: wanted a Linear layer, {last} is a Conv2d"):
        FeatureExtractor(model, last)


@pytest.mark.parametrize("name", UNLIKE)
def test_classifiers_of_unlike_features(refused, name):
    with torch.device("meta"):
        model = FeatureExtractor(build_model(name, 7)).eval()
        with refused(f"classifier: wanted layers that read (B, D), all of one width; {UNLIKE[name]}"):
            model(torch.empty(2, *model.model.pretrained_cfg["input_size"]))


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_classifiers(refused, name):
    with torch.device("meta"):
        model = FeatureExtractor(build_model(f"torchvision/{name}", 7, init_weights=False))
        outputs = "GoogLeNetOutputs" if name == "googlenet" else "InceptionOutputs"
        hint = "switch auxiliary classifiers off, for torchvision's with kwargs: {aux_logits: false}"
        with refused("", f" returns {outputs}, wanted logits; {hint}"):
            model.train()(torch.empty(2, 3, 299, 299))
        assert model.eval()(torch.empty(2, 3, 299, 299)).logits.shape == (2, 7)


# ---- the page's table ---------------------------------------------------------------------------------------------


SECTION = section("models", "Which models")


def columns_of_models():
    """Columns of the table by the names of the models; of the taps also the shape that it gives."""
    table = {}
    for row in re.findall(r"^\| .*`.*$", SECTION, flags=re.MULTILINE):
        names, embedding, taps, review = (column.strip() for column in row.strip("|").split("|"))
        shape = re.search(r"\(B, .*?\)", taps)
        for name in re.findall("`([a-z]+/[^`]+)`", names):
            assert name not in table
            table[name] = embedding, re.findall("`(.+?)`", taps), shape and shape[0], review
    return table


TABLE = columns_of_models()
REVIEWABLE = [(name, taps) for name, (_, taps, _, review) in TABLE.items() if review == "yes"]


@pytest.mark.parametrize("name", TABLE)
def test_known_taps_are_those_of_the_page(name):
    _, taps, _, review = TABLE[name]
    kwargs = MODELS[name][2] if name in MODELS else {}
    assert known_taps(name, build_model(name, 7, **kwargs)) == (taps if review == "yes" else [])


@pytest.mark.parametrize("name", CIFAR_MODELS)
def test_known_taps_of_the_zoo(name):
    model = build_model(f"cifar/{name}", 7)
    taps = known_taps(f"cifar/{name}", model)
    with torch.no_grad():
        maps = FeatureExtractor(model, taps=taps)(torch.rand(2, 3, 32, 32)).feature_maps
    sides = [values.shape[-1] for values in maps]
    assert sides == sorted(sides, reverse=True)
    assert sides[-1] == 1
    assert len(set(sides)) >= 4


def test_a_model_that_has_a_familys_name_alone():
    with torch.device("meta"):
        assert known_taps("timm/resnet51q", build_model("timm/resnet51q", 7)) == []


def feature_maps(name, taps):
    model = extractor(name, taps, dropout=False).train()
    return model, model(images(name, size=64))


@pytest.fixture(scope="module")
def resnet18():
    """The output of a ResNet-18, for either role."""
    with torch.no_grad():
        return feature_maps("torchvision/resnet18", TABLE["torchvision/resnet18"][1])[1]


def review(student, teacher):
    """ReviewKD's gradient on the student's maps and on whatever is behind them."""
    loss = ReviewKDLoss(max_mid_channels=16)
    loss.build(student, teacher)
    loss(student.feature_maps, [values.detach() for values in teacher.feature_maps]).backward()
    assert all(parameter.grad.isfinite().all() for parameter in loss.parameters())


def test_the_page_names_what_is_tested():
    able = {name: columns for name, columns in TABLE.items() if columns[0] == "yes"}
    assert set(able) == {name for name in MODELS if not name.startswith("cifar/")} | {TWO_HEADS}
    assert {(shape, review) for _, _, shape, review in able.values()} == {
        (None, "yes"),
        ("(B, N, C)", "no"),
        ("(B, h, w, C)", "no"),
    }
    unable = {name: columns for name, columns in TABLE.items() if name not in able}
    assert unable == dict.fromkeys([*CONVOLUTIONS, *UNLIKE], ("no", [], None, "no"))
    assert " ".join(f"`{tap}`" for tap in PREACT_TAPS["torchvision/resnet18"]) in SECTION


@pytest.mark.parametrize(("name", "taps"), [*REVIEWABLE, *PREACT_TAPS.items()])
def test_reviewkd(name, taps, resnet18):
    model, output = feature_maps(name, taps)
    assert [values.shape[2:] for values in output.feature_maps] == [(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)]
    review(output, resnet18)  # as the student
    first = next(model.parameters()).grad
    assert first.isfinite().all()
    assert first.any()
    leaves = [values.clone().requires_grad_() for values in resnet18.feature_maps]
    review(ModelOutput(None, None, feature_maps=leaves), output)  # as the teacher
    assert all(values.grad.any() for values in leaves)


@pytest.mark.parametrize("name", PREACT_TAPS)
def test_maps_before_the_activation(name):
    before, after = (feature_maps(name, taps)[0] for taps in (PREACT_TAPS[name], TABLE[name][1]))
    after.load_state_dict(before.state_dict())
    batch = images(name)
    with torch.no_grad():
        pairs = zip(before(batch).feature_maps, after(batch).feature_maps, strict=True)
    for k, (entered, left) in enumerate(pairs):
        assert torch.equal(entered.relu(), left)
        assert (entered.min() < 0) == (k < 4)


@pytest.mark.parametrize("name", [name for name, columns in TABLE.items() if columns[2]])
def test_no_maps(name):
    _, taps, shape, _ = TABLE[name]
    with torch.device("meta"):
        maps = feature_maps(name, taps)[1].feature_maps
    if shape == "(B, N, C)":
        assert [values.ndim for values in maps] == [3]
    else:
        width = maps[0].shape[-1]
        assert [tuple(values.shape) for values in maps] == [(2, 16 >> k, 16 >> k, width << k) for k in range(4)]
