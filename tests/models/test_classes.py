"""A classifier of other classes: which logits are kept, when it is new, and when it is refused."""

import sys

import pytest
import torch
from torch import nn
from torchvision.models import WeightsEnum

from ndkd.models import ModelConfig, build_model
from ndkd.models.classes import fit_classes, new_classes, published_class_names

TEACHER = "Train a teacher on this data, or give its classes the teacher's names"


def layers(num_classes=4, heads=1, bias=True):
    return [nn.Linear(3, num_classes, bias) for _ in range(heads)]


def fitted(found, wanted, num_classes=None, strict=True, renew=False, heads=1, own=4):
    """The rows of the old classifier that the new one has."""
    head = layers(own, heads)
    before = [layer.weight.detach().clone() for layer in head]
    biases = [layer.bias.detach().clone() for layer in head]
    fit_classes(head, found, wanted, num_classes or len(wanted), strict, renew, "model x")
    rows = [[w.tolist().index(row.tolist()) for row in layer.weight] for w, layer in zip(before, head, strict=True)]
    for layer, bias, kept in zip(head, biases, rows, strict=True):
        assert layer.out_features == len(kept)
        assert torch.equal(layer.bias, bias[kept])
    assert all(kept == rows[0] for kept in rows)
    return rows[0]


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize(
    ("wanted", "rows"),
    [("abcd", [0, 1, 2, 3]), ("ca", [2, 0]), ("dcba", [3, 2, 1, 0]), ("b", [1])],
)
def test_logits_are_picked_by_name(heads, wanted, rows):
    assert fitted(list("abcd"), tuple(wanted), heads=heads) == rows


def test_without_a_bias():
    head = layers(bias=False)
    fit_classes(head, list("abcd"), list("ca"), 2, True, False, "model x")
    assert head[0].bias is None
    assert head[0](torch.rand(2, 3)).shape == (2, 2)


@pytest.mark.parametrize(("found", "wanted"), [(None, "abcd"), (list("abcd"), None), (None, None)])
def test_unknown_names_of_as_many_classes(found, wanted):
    assert fitted(found, wanted, num_classes=4) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("found", "wanted", "knows"),
    [
        ("abcd", "abcd", True),
        ("abcd", "dcba", True),
        ("abcd", "ca", True),
        (None, "abcd", True),
        ("abcd", "efgh", False),
        ("abcd", "ax", False),
        (None, "ab", False),
    ],
)
def test_it_says_whether_the_logits_are_of_the_datas_classes(found, wanted, knows):
    assert fit_classes(layers(), found, wanted, len(wanted), False, True, "model x") is knows


def test_a_student_keeps_a_classifier_of_as_many_other_classes():
    assert fitted(list("abcd"), list("efgh"), strict=False) == [0, 1, 2, 3]


def test_a_new_classifier():
    for found, wanted in ((list("abcd"), list("ax")), (None, None)):
        head = layers()
        before = head[0].weight
        fit_classes(head, found, wanted, 2, False, True, "model x")
        assert head[0].weight.shape == (2, 3)
        assert not torch.isin(head[0].weight, before).any()
        assert head[0].weight.requires_grad


@pytest.mark.parametrize(
    ("found", "wanted", "difference"),
    [
        ("abcd", "ax", "1 of the data's 2 classes: x; it has a, b, c, d"),
        ("abcdefgh", "opqrstab", "6 of the data's 8 classes: o, p, q, r and 2 more; it has a, b, c, d and 4 more"),
        ("abac", "ab", "1 of the data's 2 classes: a; it has a, b, a, c"),  # which of both?
        ("", "ab", "2 of the data's 2 classes: a, b; it has "),
    ],
)
def test_classes_that_a_teacher_does_not_know(refused, found, wanted, difference):
    for renew in (False, True):
        with refused(f"model x does not know {difference}. {TEACHER}"):
            fitted(list(found), list(wanted), renew=renew, own=len(found))


@pytest.mark.parametrize(
    ("strict", "to_do"),
    [(True, "train a teacher on this data"), (False, "with pretrained: true it gets a new classifier")],
)
def test_another_number_of_classes_without_names(refused, strict, to_do):
    with refused(f"model x has 4 classes without names, the data has 5: {to_do}"):
        fitted(None, list("abcde"), strict=strict)


def test_new_classes_are_drawn_anew():
    torch.manual_seed(0)
    head, other = layers(), layers()
    torch.manual_seed(1)
    new_classes(head, 6)
    torch.manual_seed(1)
    new_classes(other, 6)
    assert torch.equal(head[0].weight, other[0].weight)
    assert 0 < head[0].weight.abs().max() <= 3**-0.5


# ---- names ------------------------------------------------------------------------------------------------------


def test_names_of_imagenet():
    words = published_class_names(1000, ["goldfish", "tench"])
    assert (len(words), words[:2], words[-1]) == (1000, ["tench", "goldfish"], "toilet tissue")
    numbers = published_class_names(1000, ["n01443537", "n01440764"])
    assert (len(numbers), numbers[:2]) == (1000, ["n01440764", "n01443537"])
    assert published_class_names(11, ["goldfish"]) is None
    assert published_class_names(12, ["n01443537"]) is None
    assert "n01443537" in published_class_names(21841, ["n01443537"])


def test_names_of_imagenet_without_timm(monkeypatch):
    wanted = published_class_names(1000, ["n01443537"])
    monkeypatch.setitem(sys.modules, "timm.data", None)
    assert published_class_names(1000, ["n01443537"]) is None
    assert published_class_names(1000, wanted) == wanted  # there is but one order


# ---- through a configuration -------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    """A checkpoint of cifar/resnet8 whose classes are a, b, c, d."""
    model = build_model("cifar/resnet8", 4).eval()
    state = {f"student.model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": {"class_names": list("abcd")}}, tmp_path / "x.ckpt")
    return model, tmp_path / "x.ckpt"


def test_a_checkpoint_of_more_classes(saved):
    model, file = saved
    extractor = ModelConfig("cifar/resnet8", file).build(2, None, None, ("d", "b"), strict=True).eval()
    assert extractor.num_classes == 2
    images = torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(extractor(images).logits, model(images)[:, [3, 1]])


def test_a_checkpoint_in_place_of_the_hub(saved, refused):
    model, file = saved
    with refused(f"checkpoint {file} has 4 classes without names, the data has 3: with pretrained: true it gets ", ""):
        ModelConfig("cifar/resnet8", file).build(3, None, None)
    extractor = ModelConfig("cifar/resnet8", file, pretrained=True).build(3, None, None, ("a", "b", "x"))
    assert torch.equal(extractor.model.conv1.weight, model.conv1.weight)
    assert extractor.num_classes == 3
    with refused(f"checkpoint {file} does not know 1 of the data's 3 classes: x; ", TEACHER):
        ModelConfig("cifar/resnet8", file, pretrained=True).build(3, None, None, ("a", "b", "x"), strict=True)


def test_a_hub_teacher_of_a_few_of_imagenets_classes(monkeypatch, refused):
    state = build_model("torchvision/resnet18", 1000).state_dict()
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *args, **options: dict(state))
    config = ModelConfig("torchvision/resnet18", pretrained=True)
    for names in (("tench", "goldfish"), ("n01440764", "n01443537")):
        extractor = config.build(2, None, None, names[::-1], strict=True)
        assert torch.equal(extractor.model.fc.weight, state["fc.weight"][[1, 0]])
    with refused("pretrained torchvision/resnet18 does not know 1 of the data's 2 classes: my cat; it has tench, ", ""):
        config.build(2, None, None, ("tench", "my cat"), strict=True)
    extractor = config.build(2, None, None, ("tench", "my cat"))
    assert torch.equal(extractor.model.conv1.weight, state["conv1.weight"])
    assert extractor.num_classes == 2
