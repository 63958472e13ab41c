"""Models by name, with or without weights of a hub."""

import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import timm
import torch
import torchvision
from torch import nn
from torchvision.models import WeightsEnum

from ndkd.models import FeatureExtractor, build_model
from ndkd.models.cifar import MODELS
from ndkd.models.hubs import default_statistics
from tests.command import refusal

NAMES = " A name is cifar/…, imagenet/…, torchvision/…, timm/… or package.module:callable"


@pytest.fixture
def own_package(tmp_path, monkeypatch):
    folder = tmp_path / "ndkd_test_package"
    folder.mkdir()
    (folder / "models.py").write_text(
        "from torch import nn\n\nsize = 3\n\n\ndef linear(num_classes, width=4):\n"
        "    return nn.Linear(width, num_classes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "ndkd_test_package.models"
    for name in [name for name in sys.modules if name.startswith("ndkd_test_package")]:
        del sys.modules[name]


@pytest.fixture
def hub(monkeypatch):
    """Torchvision's hub: answers with ``hub.state`` or raises it."""

    class Hub:
        state = None
        asked = ()

    def get_state_dict(weights, *args, **options):
        Hub.asked = weights, options
        if isinstance(Hub.state, Exception):
            raise Hub.state
        return dict(Hub.state)

    monkeypatch.setattr(WeightsEnum, "get_state_dict", get_state_dict)
    return Hub


def random_weights(model, **kwargs):
    """For ImageNet's 1000 classes."""
    state = torchvision.models.get_model(model, weights=None, **kwargs).state_dict()
    return {key: torch.rand_like(value) if value.is_floating_point() else value for key, value in state.items()}


# ---- names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "kwargs"),
    [
        ("cifar/resnet8", "ResNet", {"widths": (8, 8, 8, 16)}),
        ("cifar/wrn_16_1", "WideResNet", {}),
        ("imagenet/mobilenet_v1", "MobileNetV1", {}),
        ("torchvision/mobilenet_v3_small", "MobileNetV3", {"dropout": 0.1}),
        ("timm/resnet10t", "ResNet", {"drop_rate": 0.1}),
    ],
)
def test_families(name, kind, kwargs):
    model = build_model(name, num_classes=7, **kwargs)
    assert type(model).__name__ == kind
    assert model.eval()(torch.rand(2, 3, 32, 32)).shape == (2, 7)


def test_zoo_by_name():
    for name in MODELS:
        assert FeatureExtractor(build_model(f"cifar/{name}", num_classes=3)).num_classes == 3
    assert build_model("cifar/resnet8", 3, widths=(8, 8, 8, 24)).fc.in_features == 24


def test_own_callable(own_package):
    model = build_model(f"{own_package}:linear", num_classes=7, width=5)
    assert (model.in_features, model.out_features) == (5, 7)
    assert build_model(f"{own_package}:linear", num_classes=7).in_features == 4


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("cifar/resnet21", ("did you mean ", "resnet20", "?")),
        ("cifar/zzz", ("known: cifar/resnet8, ", "cifar/shufflenet_v2")),
        ("torchvision/resnet19", ("did you mean torchvision/resnet18, ", "?")),
        ("timm/resnet10x", ("did you mean timm/resnet10t, ", "?")),
        ("resnet20", ("did you mean cifar/resnet20", f"?{NAMES}")),
        ("tv/resnet18", ("did you mean torchvision/resnet18", f"?{NAMES}")),
        ("resnet18", ("did you mean torchvision/resnet18", f"?{NAMES}")),
        ("vgg13", ("did you mean cifar/vgg13, torchvision/vgg13", f"?{NAMES}")),
        ("cifar/resnet18", ("did you mean torchvision/resnet18?",)),
        ("zzz", ("known: cifar/resnet8, ", f", …{NAMES}")),
        ("cifar/", ("did you mean cifar/", NAMES)),
    ],
)
def test_unknown_names(refused, name, parts):
    with refused(f"unknown model {name!r}; {parts[0]}", *parts[1:]):
        build_model(name, 10)


def test_unknown_tag_of_timm(refused):
    with refused("", "resnet10t", "zzz", ""):
        build_model("timm/resnet10t.zzz", 10)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ndkd_no_such_package.models:build", "No module named 'ndkd_no_such_package'"),
        ("PACKAGE:zzz", "module 'ndkd_test_package.models' has no attribute 'zzz'"),
        ("PACKAGE:", "module 'ndkd_test_package.models' has no attribute ''"),
    ],
)
def test_callable_that_is_not_there(refused, own_package, name, reason):
    name = name.replace("PACKAGE", own_package)
    with refused(f"cannot find model {name!r}: {reason}; is its package installed or on PYTHONPATH?"):
        build_model(name, 10)


@pytest.mark.parametrize("name", ["cifar/resnet8", "torchvision/resnet18", "timm/resnet10t", "PACKAGE:linear"])
def test_misspelt_keyword(refused, own_package, name):
    name = name.replace("PACKAGE", own_package)
    with refused(f"model {name} with kwargs {{'widht': 3}}: ", "unexpected keyword argument 'widht'", ""):
        build_model(name, 10, widht=3)


@pytest.mark.parametrize("name", [":linear", "PACKAGE:size"])
def test_callable_that_is_none(refused, own_package, name):
    name = name.replace("PACKAGE", own_package)
    with refused("", f"model {name!r}", ""):
        build_model(name, 10)


def test_without_timm(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with refused("timm/resnet10t needs timm: python -m pip install 'ndkd[timm]'"):
        build_model("timm/resnet10t", 10)


# ---- weights of a hub -------------------------------------------------------------------------------------------


def test_models_without_a_hub(refused, own_package):
    with refused("cifar/resnet8 has no weights on a hub: give a file as checkpoint instead of pretrained"):
        build_model("cifar/resnet8", 10, pretrained=True)
    own = f"{own_package}:linear"
    with refused(f"{own} is your own function: give a file as checkpoint instead of pretrained"):
        build_model(own, 10, pretrained=True)


@pytest.mark.parametrize(("model", "classifier"), [("resnet18", "fc"), ("mobilenet_v3_small", "classifier.3")])
@pytest.mark.parametrize("num_classes", [10, 1000])
def test_pretrained(hub, model, classifier, num_classes):
    hub.state = random_weights(model)
    state = build_model(f"torchvision/{model}", num_classes, pretrained=True).state_dict()
    weights, options = hub.asked
    assert weights is torchvision.models.get_model_weights(model).DEFAULT
    assert options["check_hash"] is True
    differ = [key for key, value in state.items() if not torch.equal(value, hub.state[key])]
    assert differ == ([] if num_classes == 1000 else [f"{classifier}.weight", f"{classifier}.bias"])
    assert state[f"{classifier}.weight"].shape[0] == num_classes


@pytest.mark.parametrize("tag", ["IMAGENET1K_V1", "IMAGENET1K_V2"])
def test_pretrained_with_a_tag(hub, tag):
    hub.state = random_weights("resnet50")
    model = build_model(f"torchvision/resnet50.{tag}", None, pretrained=True)
    assert hub.asked[0].name == tag
    assert model.fc.out_features == 1000
    assert build_model(f"torchvision/resnet50.{tag}", 7).fc.out_features == 7
    assert default_statistics(f"torchvision/resnet50.{tag}", model) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_unknown_tag_of_torchvision(refused):
    with refused("unknown weights 'torchvision/resnet50.V1'; did you mean ", "resnet50.IMAGENET1K_V1", "?"):
        build_model("torchvision/resnet50.V1", 10)


def test_pretrained_from_the_hubs_own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder, state = tmp_path / "hub" / "checkpoints", random_weights("shufflenet_v2_x0_5")
    folder.mkdir(parents=True)
    torch.save(state, folder / "shufflenetv2_x0.5-f707e7126e.pth")
    model = build_model("torchvision/shufflenet_v2_x0_5", 10, pretrained=True)
    assert torch.equal(model.conv1[0].weight, state["conv1.0.weight"])


def test_pretrained_without_a_linear_classifier(refused, hub):
    hub.state = random_weights("squeezenet1_1")
    with refused("cannot tell which layer of SqueezeNet is the classifier; it has no Linear layer"):
        build_model("torchvision/squeezenet1_1", 10, pretrained=True)


def test_pretrained_googlenet(hub):
    hub.state = random_weights("googlenet", init_weights=False)
    model = build_model("torchvision/googlenet", 10, pretrained=True, init_weights=False)
    assert torch.equal(model.conv1.conv.weight, hub.state["conv1.conv.weight"])
    assert model.transform_input  # as torchvision sets it with these weights


@pytest.mark.parametrize(
    "error",
    [
        URLError("no route to host"),
        ConnectionResetError("connection reset"),
        RuntimeError('invalid hash value (expected "f37072fd", got "00000000")'),
    ],
    ids=lambda error: type(error).__name__,
)
def test_pretrained_without_network(refused, hub, error, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    hub.state = error
    file = "resnet18-f37072fd.pth"
    with refused(
        f"cannot download the weights of torchvision/resnet18 ({error}); "
        f"get https://download.pytorch.org/models/{file} elsewhere and put it "
        f"at {tmp_path}/hub/checkpoints/{file}, or give it as checkpoint beside pretrained: true"
    ):
        build_model("torchvision/resnet18", 10, pretrained=True)


def test_pretrained_timm(refused, monkeypatch):
    asked = {}

    def create_model(model, **options):
        asked.update(options, model=model)
        if options.get("pretrained"):
            raise OSError("offline\nsecond line")
        return nn.Linear(2, options["num_classes"])

    monkeypatch.setattr(timm, "create_model", create_model)
    assert build_model("timm/resnet10t", 10, drop_rate=0.1).out_features == 10
    assert asked == {"model": "resnet10t", "num_classes": 10, "drop_rate": 0.1}
    file = "https://huggingface.co/timm/resnet10t.c3_in1k/resolve/main/model.safetensors"
    reason = f"(OSError); without a network, get {file} elsewhere and give it as checkpoint beside pretrained: true"
    with refused(f"cannot load the hub weights of timm/resnet10t.c3_in1k {reason}"):
        build_model("timm/resnet10t.c3_in1k", 10, pretrained=True)
    assert asked["model"] == "resnet10t.c3_in1k"


# ---- normalisation ----------------------------------------------------------------------------------------------


def test_statistics_of_torchvision():
    found, wanted = {}, {}
    for model in torchvision.models.list_models(module=torchvision.models):
        transforms = torchvision.models.get_model_weights(model).DEFAULT.transforms()
        wanted[model] = tuple(transforms.mean), tuple(transforms.std)
        found[model] = default_statistics(f"torchvision/{model}", nn.Identity())
    assert found == wanted


def test_statistics_of_other_families():
    model = nn.Identity()
    assert default_statistics("cifar/resnet8", model) is None
    assert default_statistics("package.module:callable", model) is None
    assert default_statistics("timm/own_model", model) is None
    model.pretrained_cfg = {"mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3]}
    assert default_statistics("timm/vit", model) == ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    assert default_statistics("timm/resnet10t", build_model("timm/resnet10t", 10)) == (
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
    )


@pytest.mark.parametrize("made", ["None", "(1, 2)", "dict()", "1 / 0"])
def test_a_function_that_makes_no_model(folder, monkeypatch, made):
    Path("handmade.py").write_text(f"def build(num_classes): return {made}")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "handmade", raising=False)
    assert refusal(build_model, "handmade:build", 3).startswith("model handmade:build: ")
