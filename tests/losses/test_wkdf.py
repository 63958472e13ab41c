"""WKD-F: Gaussians of feature maps against loops over cells and channels, and the adapters of the student's maps."""

import inspect
import re
from math import ceil

import pytest
import torch
from torch import nn

from ndkd.losses import WKDFLoss, wkdf_loss
from tests.losses.conftest import random_maps


def naive_gaussian(pixels, eps):
    mean = sum(pixels) / len(pixels)
    squares = sum((pixel - mean) ** 2 for pixel in pixels)
    return mean, (squares / max(len(pixels) - 1, 1) + eps) ** 0.5


def naive_cells(image, grid):
    """The pixels of every cell of one channel; cells overlap where the grid is no divisor."""
    rows, columns = (
        [range(i * length // grid, ceil((i + 1) * length / grid)) for i in range(grid)] for length in image.shape
    )
    return [[image[y, x] for y in ys for x in xs] for ys in rows for xs in columns]


def naive(student, teacher, mean_weight, grid, eps):
    total = 0
    for s, t in zip(student.flatten(0, 1), teacher.flatten(0, 1), strict=True):  # the channels of all images
        for cells in zip(naive_cells(s, grid), naive_cells(t, grid), strict=True):
            (s_mean, s_deviation), (t_mean, t_deviation) = (naive_gaussian(pixels, eps) for pixels in cells)
            total = total + mean_weight * (s_mean - t_mean) ** 2 + (s_deviation - t_deviation) ** 2
    return total / (len(student) * grid**2)


@pytest.mark.parametrize(
    ("student", "teacher", "options"),
    [
        ((4, 4), (4, 4), (4.0, 1, 1e-5)),
        ((4, 4), (2, 2), (2.0, 2, 1e-5)),
        ((5, 3), (4, 7), (0.0, 3, 0.1)),
        ((4, 6), (5, 4), (1.0, 4, 1e-3)),
        ((1, 1), (3, 3), (4.0, 1, 1e-5)),
    ],
)
def test_naive_reference(agree, student, teacher, options):
    student, teacher = torch.randn(2, 3, *student), torch.randn(2, 3, *teacher)
    agree(lambda s, t: wkdf_loss([s], [t], *options), lambda s, t: naive(s, t, *options), student, teacher)


def test_by_hand():
    """Two images with one channel of three pixels, weight 2 on the means, and eps so small that it does not show.

    Image 1: (0, 0, 3) has mean 1 and variance (1 + 1 + 4)/2 = 3; (1, 2, 6) has mean 3 and (4 + 1 + 9)/2 = 7. So
    2 · 4 + (√7 - √3)² = 8 + 0.8348 = 8.8348. Image 2: (1, 1, 1) has mean 1 and deviation 0; (2, 1, 0) has 1 and 1:
    0 + 1 = 1. The mean of the two is 4.9174.
    """
    student, teacher = (
        torch.tensor(rows)[:, None, None] for rows in ([[0.0, 0, 3], [1, 1, 1]], [[1.0, 2, 6], [2, 1, 0]])
    )
    value = wkdf_loss([student], [teacher], mean_weight=2, eps=1e-12)
    torch.testing.assert_close(value, torch.tensor(4.9174), rtol=0, atol=1e-4)


def test_sum_over_the_pairs():
    student, teacher = ([torch.randn(2, 3, size, size) for size in (8, 4, 1)] for _ in range(2))
    alone = [wkdf_loss([s], [t]) for s, t in zip(student, teacher, strict=True)]
    torch.testing.assert_close(wkdf_loss(student, teacher), sum(alone))


def test_the_order_of_the_pixels_does_not_matter():
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    mixed = student.flatten(2)[:, :, torch.randperm(16)].view_as(student)
    torch.testing.assert_close(wkdf_loss([mixed], [teacher]), wkdf_loss([student], [teacher]))
    assert not torch.allclose(wkdf_loss([mixed], [teacher], grid=2), wkdf_loss([student], [teacher], grid=2), rtol=0.01)


def test_a_common_shift_changes_nothing():
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(wkdf_loss([student + 5], [teacher + 5]), wkdf_loss([student], [teacher]))


def test_zero_at_the_teachers_distribution(value_and_grad):
    teacher = torch.randn(2, 3, 4, 4)
    value, gradient = value_and_grad(lambda s: wkdf_loss([s], [teacher]), teacher.flip(3))
    torch.testing.assert_close(value, torch.tensor(0.0), rtol=0, atol=1e-6)
    torch.testing.assert_close(gradient, torch.zeros_like(teacher), rtol=0, atol=1e-5)


def test_maps_without_variance_have_a_finite_gradient(value_and_grad):
    value, gradient = value_and_grad(lambda s: wkdf_loss([s], [torch.randn(2, 3, 4, 4)]), torch.ones(2, 3, 4, 4))
    assert value.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("grid", [1, 2])
def test_gradient(grid):
    student, teacher = (torch.randn(2, 2, 3, 4, dtype=torch.float64) for _ in range(2))
    assert wkdf_loss([student], [teacher]).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda s: wkdf_loss([s], [teacher], grid=grid), student.requires_grad_())


@pytest.mark.parametrize(
    ("student", "teacher", "options", "message"),
    [
        ([(2, 3, 4, 4)] * 2, [(2, 3, 4, 4)], {}, "wanted as many student_maps as teacher_maps, got 2 and 1"),
        ([], [], {}, "wanted at least one pair of feature maps, got none"),
        (
            [(2, 3, 4, 4)], [(2, 1, 4, 4)], {},
            "wanted maps (B, c, h, w) of equal B and c, got (2, 3, 4, 4) and (2, 1, 4, 4)",
        ),
        ([(2, 3)], [(2, 3)], {}, "wanted maps (B, c, h, w) of equal B and c, got (2, 3) and (2, 3)"),
        (
            [(2, 3, 8, 8)], [(2, 3, 4, 2)], {"grid": 4},
            "grid: wanted at most 2, the pixels of a 4×2 map, got 4",
        ),
    ],
)  # fmt: skip
def test_maps_that_do_not_fit(student, teacher, options, message):
    student, teacher = ([torch.zeros(shape) for shape in shapes] for shapes in (student, teacher))
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        wkdf_loss(student, teacher, **options)


# ---- adapters ---------------------------------------------------------------------------------------------------


@pytest.fixture
def wkdf(with_maps):
    """WKD-F for maps of the shapes, and such maps."""
    return lambda student, teacher, **options: with_maps(WKDFLoss(**options), student, teacher)


def test_an_adapter_by_hand(wkdf):
    loss, (student,), (teacher,) = wkdf([(3, 8, 8)], [(5, 4, 4)], mean_weight=2.0, grid=2)
    (adapter,) = loss.adapters
    conv, norm, _ = adapter
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    maps = torch.einsum("tc,bchw->bthw", conv.weight[:, :, 0, 0], student)
    mean, var = maps.mean(dim=(0, 2, 3)), maps.var(dim=(0, 2, 3), unbiased=False)
    maps = (maps - mean[:, None, None]) / (var[:, None, None] + norm.eps).sqrt()
    maps = (maps * norm.weight[:, None, None] + norm.bias[:, None, None]).clamp_min(0)
    torch.testing.assert_close(loss([student], [teacher]), wkdf_loss([maps], [teacher], 2.0, 2), rtol=1e-5, atol=1e-6)


def test_everything_gets_a_gradient(wkdf):
    loss, student_maps, teacher_maps = wkdf([(3, 8, 8), (4, 1, 1)], [(5, 4, 4), (6, 1, 1)])
    for student_map in student_maps:
        student_map.requires_grad_()
    loss(student_maps, teacher_maps).backward()
    got = dict(enumerate(m.grad for m in student_maps))
    got |= {name: p.grad for name, p in loss.named_parameters()}
    assert not [name for name, gradient in got.items() if gradient is None or not gradient.isfinite().all()]
    assert not [name for name, gradient in got.items() if not gradient.any()]


def test_the_options_are_those_of_the_function():
    of_function, of_module = (
        {name: p.default for name, p in inspect.signature(each).parameters.items() if p.default is not p.empty}
        for each in (wkdf_loss, WKDFLoss)
    )
    assert of_function == of_module


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast(wkdf, dtype):
    loss, *maps = wkdf([(3, 8, 8)], [(5, 4, 4)])
    plain = loss(*maps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(*([m.to(dtype) for m in model] for model in maps))
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, plain, rtol=0.02, atol=0)
    assert all(parameter.grad.isfinite().all() for parameter in loss.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps(dtype):
    student, teacher = ([torch.randn(2, 3, 4, 4).to(dtype)] for _ in range(2))
    value = wkdf_loss(student, teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, wkdf_loss([student[0].float()], [teacher[0].float()]))


def test_a_second_build_starts_over(wkdf, built):
    loss, *maps = wkdf([(3, 4, 4)], [(5, 4, 4)])
    first = list(loss.adapters)
    built(loss, *maps)
    assert len(loss.adapters) == 1
    assert not set(loss.adapters) & set(first)


def test_forward_before_build():
    with pytest.raises(ValueError, match="^built for 0 maps, got 1: call build first$"):
        WKDFLoss()(random_maps((3, 4, 4)), random_maps((3, 4, 4)))


@pytest.mark.parametrize(
    ("student", "teacher"), [([(3, 4, 4), (5, 1, 1)], [(3, 4, 4)]), ([(3,)], [(3, 4, 4)]), ([], [])]
)
def test_taps_that_do_not_pair(wkdf, student, teacher):
    message = "WKD-F wants as many student taps as teacher taps, each a map (c, h, w), got"
    with pytest.raises(ValueError, match=f"^{re.escape(f'{message} {student} and {teacher}')}$"):
        wkdf(student, teacher)
