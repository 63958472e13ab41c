"""Batches of other people's data: what works, and what is refused in one line."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ndkd.errors import NdkdError
from ndkd.models import FeatureExtractor, build_model
from tests.distillation.watching import Small, assert_equal, copied

IMAGES, TARGET = torch.randn(10, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(10)
ONE_HOT = torch.eye(10)


def loaders(images, target, collate=None, **options):
    options = {"batch_size": 5} | options
    loader = DataLoader(TensorDataset(images, target), collate_fn=collate, **options)
    return {"train_dataloaders": loader, "val_dataloaders": loader}


@pytest.fixture
def fitted(fit, make_module, terms):
    """The weights that come of data, and its class means."""

    def run(given, *names, **options):
        module = make_module(terms(*(names or ("ce", "kd", "nd"))), num_classes=10, **options)
        fit(module, loaders=given)
        return copied(module) | {"class_means": module.class_means}

    return run


def as_lists(samples):
    images, target = zip(*samples, strict=True)
    return torch.stack(images), [int(label) for label in target]


@pytest.mark.parametrize(
    ("images", "target", "collate"),
    [
        (IMAGES, TARGET[:, None], None),
        (IMAGES, TARGET.int(), None),
        (IMAGES, TARGET.to(torch.uint8)[:, None], None),
        (IMAGES, TARGET, as_lists),
        (IMAGES.double(), TARGET, None),
    ],
)
def test_other_ways_to_say_the_same(fitted, images, target, collate):
    assert_equal(fitted(loaders(images, target, collate)), fitted(loaders(IMAGES, TARGET)))


@pytest.mark.parametrize("one_hot", [ONE_HOT, ONE_HOT.long(), ONE_HOT.double()])
def test_one_hot_rows(fitted, one_hot):
    found, wanted = fitted(loaders(IMAGES, one_hot)), fitted(loaders(IMAGES, TARGET))
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def test_soft_labels_share_an_image_among_the_class_means(fitted):
    soft = 0.9 * ONE_HOT + 0.01
    found, hard = fitted(loaders(IMAGES, soft))["class_means"], fitted(loaders(IMAGES, TARGET))["class_means"]
    torch.testing.assert_close(found, 0.9 * hard + 0.01 * hard.sum(dim=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("images", "target", "message"),
    [
        (
            IMAGES,
            TARGET.float(),
            "targets: wanted class indices as integers, got torch.float32; convert them with .long",
        ),
        (IMAGES, TARGET.float()[:, None], "targets: wanted class indices as integers, got torch.float32"),
        (
            IMAGES,
            torch.rand(10, 7),
            "targets: wanted class indices \\(N,\\) or soft labels \\(N, 10\\), got .* \\(5, 7\\)",
        ),
        (IMAGES, torch.rand(10, 10, 2), "targets: wanted class indices"),
        (IMAGES, TARGET + 1, "wanted labels from 0 to 9, the data has 6 to 10"),
        (IMAGES, TARGET - 1, "wanted labels from 0 to 9, the data has -1 to 3"),
        (
            (255 * IMAGES).long(),
            TARGET,
            "images: wanted bytes \\(uint8\\) from 0 to 255, or floats .*, got torch.int64",
        ),
    ],
)
@pytest.mark.parametrize("names", [("ce",), ("ce", "kd", "nd")])
def test_what_cannot_be_meant(fitted, names, images, target, message):
    with pytest.raises(NdkdError, match=f"^(wanted labels .*|{message})" if names[-1] == "nd" else f"^{message}"):
        fitted(loaders(images, target), *names)


@pytest.mark.parametrize(
    ("collate", "message"),
    [
        (
            lambda samples: torch.stack([image for image, _ in samples]),
            "wanted batches .images, targets., got a Tensor",
        ),
        (
            lambda samples: [torch.stack([image for image, _ in samples])],
            "wanted batches .images, targets., got 1 part",
        ),
        (lambda samples: {"images": 1}, "wanted batches .images, targets., got a dict"),
        (lambda samples: (IMAGES[:5], ["cat"] * 5), "wanted batches .*, targets being class indices .N,., got a list"),
        (lambda samples: (IMAGES[:5], TARGET[:4]), "wanted batches .images, targets., got 5 images and 4 targets"),
    ],
)
def test_batches_of_another_make(fitted, collate, message):
    with pytest.raises(NdkdError, match=f"^{message}"):
        fitted(loaders(IMAGES, TARGET, collate), "ce")


@pytest.mark.parametrize("options", [{"batch_size": 3}, {"batch_size": 1}, {"batch_size": 9, "shuffle": True}])
def test_a_single_image_and_a_projector(fitted, options):
    with pytest.raises(
        NdkdError, match="^a batch has one image, and of one BatchNorm has no variance: give .* drop_last"
    ):
        fitted(loaders(IMAGES, TARGET, **options), "ce", "nd", student=FeatureExtractor(Small(10)))


def test_a_single_image_that_no_batchnorm_minds(fitted):
    images, target = IMAGES.repeat(3, 1, 1, 1)[:22], TARGET.repeat(3)[:22]
    options = {"student": FeatureExtractor(Small(10))}
    fitted(loaders(images, target, batch_size=3, drop_last=True), "ce", "nd", **options)
    fitted(loaders(images, target, batch_size=3), "ce", "nd")  # no projector, and maps of more than one pixel


class Flat(nn.Module):
    """BatchNorm on a vector."""

    def __init__(self):
        super().__init__()
        self.norm, self.fc = nn.BatchNorm1d(3), nn.Linear(3, 10)

    def forward(self, images):
        return self.fc(self.norm(images.mean((2, 3))))


def test_a_single_image_and_a_students_batchnorm(fitted):
    with pytest.raises(NdkdError, match="^a batch has one image"):
        fitted(loaders(IMAGES, TARGET, batch_size=3), "ce", student=Flat())


def test_one_model_as_both(fitted):
    model = build_model("cifar/resnet8", 10)
    message = "^teacher and student share conv1.weight, .* and \\d+ more: the teacher is frozen, .*copy.deepcopy"
    for teacher in (model, FeatureExtractor(model)):
        with pytest.raises(NdkdError, match=message):
            fitted(loaders(IMAGES, TARGET), student=model, teacher=teacher)
    assert all(parameter.requires_grad for parameter in model.parameters())
    fitted(loaders(IMAGES, TARGET), student=model, teacher=deepcopy(model))


def test_a_layer_that_both_share(fitted):
    student, teacher = (build_model("cifar/resnet8", 10) for _ in range(2))
    teacher.fc = student.fc
    with pytest.raises(NdkdError, match="^teacher and student share fc.weight, fc.bias: "):
        fitted(loaders(IMAGES, TARGET), student=student, teacher=teacher)


def test_a_student_that_is_frozen(fitted):
    student = build_model("cifar/resnet8", 10).requires_grad_(False)
    with pytest.raises(NdkdError, match="^the student has nothing to train: all of its parameters are frozen"):
        fitted(loaders(IMAGES, TARGET), student=student)
    student.fc.requires_grad_(True)
    before = copied(student)
    fitted(loaders(IMAGES, TARGET), "ce", student=student)
    changed = {name for name, value in student.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {"fc.weight", "fc.bias"}


def test_a_teacher_in_train_mode(fitted):
    teacher = build_model("cifar/resnet8", 10).train()
    before = copied(teacher)
    fitted(loaders(IMAGES, TARGET), teacher=teacher)
    assert_equal(copied(teacher), before)
