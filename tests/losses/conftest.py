"""What the tests of the losses share: a seed, tensors for the inputs, and how losses are compared and refused."""

import re

import pytest
import torch
from torch.nn import functional as F

from ndkd.models import ModelOutput


@pytest.fixture(autouse=True)
def seed():
    """The same random numbers in every test, and the outer ones untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def tensors():
    """By the names that losses ask for: 6 samples, 5 classes, embeddings 64 wide, 2 maps."""
    teacher = torch.randn(6, 64)
    # the student's norm from half of the teacher's to 1.5 times
    norm = teacher.norm(dim=1, keepdim=True) * torch.tensor([[0.5], [0.7], [0.9], [1.1], [1.3], [1.5]])
    student = F.normalize(torch.randn(6, 64)) * norm
    return {
        "student.embedding": student,
        "student.projected": student,
        "teacher.embedding": teacher,
        "teacher.norm": teacher,  # the embedding, of which nd_loss takes the norm
        "class_means": torch.randn(5, 64),
        "target": torch.tensor([0, 4, 2, 2, 1, 3]),
        "student.logits": 3 * torch.randn(6, 5),
        "teacher.logits": 3 * torch.randn(6, 5),
        "student.feature_maps": [torch.randn(4, 3, 8, 8), torch.randn(4, 6, 1, 1)],
        "teacher.feature_maps": [torch.randn(4, 2, 4, 4), torch.randn(4, 5, 1, 1)],
    }


@pytest.fixture
def inputs_of(tensors):
    """The inputs of a loss, in its order; tensors given by name take the place of others."""

    def choose(loss, given=None):
        return [(tensors | (given or {}))[name] for name in loss.inputs]

    return choose


@pytest.fixture
def rejected(inputs_of):
    """Assert that a loss refuses the inputs, of which some are given by name, with a message."""

    def check(loss, given, message):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            loss(*inputs_of(loss, given))

    return check


@pytest.fixture
def value_and_grad():
    """Value of a loss and its gradient with respect to its first argument."""

    def run(loss, student, *rest):
        student = student.detach().clone().requires_grad_()
        value = loss(student, *rest)
        return value.detach(), *torch.autograd.grad(value, student)

    return run


@pytest.fixture
def agree(value_and_grad):
    """Assert that two losses of the same arguments have one value and one gradient."""

    def check(loss, other, *arguments, **options):
        found, wanted = (value_and_grad(function, *arguments, **options) for function in (loss, other))
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)

    return check


@pytest.fixture
def built():
    """A loss with the layers that it makes for the feature maps, where it makes any."""

    def make(loss, student_maps, teacher_maps):
        if hasattr(loss, "build"):
            loss.build(*(ModelOutput(None, None, feature_maps=maps) for maps in (student_maps, teacher_maps)))
        return loss

    return make


def random_maps(*shapes, batch=4, **options):
    """Feature maps of the shapes (c, h, w)."""
    return [torch.randn(batch, *shape, **options) for shape in shapes]


@pytest.fixture
def with_maps(built):
    """A loss with its layers for maps of the shapes, and such maps of student and teacher."""

    def make(loss, student, teacher):
        maps = random_maps(*student), random_maps(*teacher)
        return built(loss, *maps), *maps

    return make


@pytest.fixture(params=["hard", "soft"])
def target(request, tensors):
    """Class indices, and soft labels that mix the classes."""
    return tensors["target"] if request.param == "hard" else torch.rand(6, 5).softmax(dim=1)
