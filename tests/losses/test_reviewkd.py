"""ReviewKD: the distance of feature maps at several sizes, and the fusion of the student's maps."""

import re
from math import ceil

import pytest
import torch
from torch.nn import functional as F

from ndkd.losses import ReviewKDLoss, hcl_loss
from tests.losses.conftest import random_maps

# ---- hierarchical context loss ----------------------------------------------------------------------------------


def bins(length, size):
    """Ranges of equal length, which overlap where the size is no divisor."""
    return [slice(i * length // size, ceil((i + 1) * length / size)) for i in range(size)]


def naive_pool(maps, size):
    rows, columns = (bins(length, size) for length in maps.shape[2:])
    return torch.stack([torch.stack([maps[:, :, r, c].mean(dim=(2, 3)) for c in columns]) for r in rows])


def naive_hcl(student, teacher, sizes):
    distances = [(student - teacher).square().mean()]
    distances += [(naive_pool(student, size) - naive_pool(teacher, size)).square().mean() for size in sizes]
    weights = [0.5**level for level in range(len(distances))]
    return sum(w * distance for w, distance in zip(weights, distances, strict=True)) / sum(weights)


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((8, 8), (4, 2, 1)),
        ((5, 5), (4, 2, 1)),
        ((4, 4), (2, 1)),
        ((3, 3), (2, 1)),
        ((2, 2), (1,)),
        ((1, 1), ()),
        ((6, 3), (4, 2, 1)),
        ((3, 6), (2, 1)),
        ((2, 7), (1,)),
        ((1, 5), ()),
    ],
)
def test_pooled_sizes(agree, shape, sizes):
    student, teacher = torch.randn(2, 3, *shape), torch.randn(2, 3, *shape)
    agree(lambda s, t: hcl_loss([s], [t]), lambda s, t: naive_hcl(s, t, sizes), student, teacher)


def test_sum_over_the_pairs():
    student, teacher = ([torch.randn(2, 3, size, size) for size in (8, 4, 1)] for _ in range(2))
    alone = [hcl_loss([s], [t]) for s, t in zip(student, teacher, strict=True)]
    torch.testing.assert_close(hcl_loss(student, teacher), sum(alone))


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ([(2, 3, 4, 4)] * 2, [(2, 3, 4, 4)], "wanted as many student_maps as teacher_maps, got 2 and 1"),
        ([], [], "wanted at least one pair of feature maps, got none"),
        ([(2, 3, 4, 4)], [(2, 3, 4, 2)], "wanted maps of one shape (B, c, h, w), got (2, 3, 4, 4) and (2, 3, 4, 2)"),
        ([(2, 3, 4, 4)], [(2, 1, 4, 4)], "wanted maps of one shape (B, c, h, w), got (2, 3, 4, 4) and (2, 1, 4, 4)"),
        ([(2, 3)], [(2, 3)], "wanted maps of one shape (B, c, h, w), got (2, 3) and (2, 3)"),
    ],
)
def test_maps_that_do_not_pair(student, teacher, message):
    student, teacher = ([torch.zeros(shape) for shape in shapes] for shapes in (student, teacher))
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        hcl_loss(student, teacher)


# ---- fusion -----------------------------------------------------------------------------------------------------

SHAPES = {
    "equal": ([(4, 8, 8), (6, 4, 4), (7, 2, 2)], [(4, 8, 8), (6, 4, 4), (7, 2, 2)]),
    "upsample": ([(3, 4, 4), (5, 2, 2)], [(6, 8, 8), (9, 4, 4)]),
    "downsample": ([(6, 8, 8), (9, 4, 4)], [(3, 4, 4), (5, 2, 2)]),
    "not square": ([(3, 5, 4), (5, 3, 2)], [(4, 5, 7), (6, 2, 3)]),
    "pooled embedding": ([(3, 8, 8), (4, 4, 4), (4, 1, 1)], [(5, 4, 4), (8, 4, 4), (8, 1, 1)]),
    "one map": ([(3, 4, 4)], [(5, 2, 2)]),
}


@pytest.fixture(params=SHAPES)
def shapes(request):
    """(c, h, w) of the student's maps and of the teacher's, shallow to deep."""
    return SHAPES[request.param]


@pytest.fixture
def review(with_maps):
    """ReviewKD for maps of the shapes, and such maps."""
    return lambda student, teacher, **options: with_maps(ReviewKDLoss(**options), student, teacher)


def normalised(maps, norm):
    mean, var = maps.mean(dim=(0, 2, 3)), maps.var(dim=(0, 2, 3), unbiased=False)
    maps = (maps - mean[:, None, None]) / (var[:, None, None] + norm.eps).sqrt()
    return maps * norm.weight[:, None, None] + norm.bias[:, None, None]


def resized(maps, size):
    rows, columns = ([i * old // new for i in range(new)] for old, new in zip(maps.shape[2:], size, strict=True))
    return maps[:, :, rows][:, :, :, columns]


def narrowed(fusion, maps):
    conv, norm = fusion.narrow
    return normalised(torch.einsum("mc,bchw->bmhw", conv.weight[:, :, 0, 0], maps), norm)


def widened(fusion, maps, size):
    conv, norm = fusion.widen
    return normalised(F.conv2d(resized(maps, size), conv.weight, padding=1), norm)


def test_two_maps_by_hand(review):
    loss, (shallow, deep), teacher_maps = review([(3, 8, 8), (5, 2, 2)], [(4, 4, 4), (6, 4, 4)])
    for name, parameter in loss.named_parameters():
        if "attention" in name or parameter.ndim == 1:
            torch.nn.init.normal_(parameter)
    value = loss([shallow.requires_grad_(), deep.requires_grad_()], teacher_maps)
    deeper, shallower = loss.fusions
    review = narrowed(deeper, deep)
    own, review_up = narrowed(shallower, shallow), resized(review, (8, 8))
    conv = shallower.attention[0]
    scores = torch.einsum("mc,bchw->bmhw", conv.weight[:, :, 0, 0], torch.cat([own, review_up], dim=1))
    attention = 1 / (1 + (-scores - conv.bias[:, None, None]).exp())
    mixed = own * attention[:, :1] + review_up * attention[:, 1:]
    fused = widened(shallower, mixed, (4, 4)), widened(deeper, review, (4, 4))
    wanted = sum(naive_hcl(s, t, (2, 1)) for s, t in zip(fused, teacher_maps, strict=True))
    torch.testing.assert_close(value, wanted, rtol=1e-5, atol=0)
    found, wanted = (torch.autograd.grad(total, [shallow, deep]) for total in (value, wanted))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_one_fusion_per_map_from_deep_to_shallow(review, shapes):
    student, teacher = shapes
    fusions = review(*shapes)[0].fusions
    assert [fusion.narrow[0].in_channels for fusion in fusions] == [c for c, _, _ in reversed(student)]
    assert [fusion.widen[0].out_channels for fusion in fusions] == [c for c, _, _ in reversed(teacher)]
    assert [fusion.attention is None for fusion in fusions] == [True] + [False] * (len(student) - 1)


@pytest.mark.parametrize(("options", "wanted"), [({}, 9), ({"max_mid_channels": 4}, 4), ({"max_mid_channels": 10}, 9)])
def test_mid_channels(review, options, wanted):
    fusions = review(*SHAPES["downsample"], **options)[0].fusions
    assert [(f.narrow[0].out_channels, f.widen[0].in_channels) for f in fusions] == [(wanted, wanted)] * 2


def test_at_most_512_mid_channels(review):
    loss, *_ = review([(2, 2, 2), (513, 1, 1)], [(2, 2, 2), (2, 1, 1)])
    assert [fusion.narrow[0].out_channels for fusion in loss.fusions] == [512, 512]


def test_everything_gets_a_gradient(review, shapes):
    loss, student_maps, teacher_maps = review(*shapes)
    for student_map in student_maps:
        student_map.requires_grad_()
    value = loss(student_maps, teacher_maps)
    value.backward()
    assert value > 0
    got = {name: p.grad for name, p in loss.named_parameters()} | dict(enumerate(m.grad for m in student_maps))
    assert not [name for name, gradient in got.items() if gradient is None or not gradient.any()]
    assert not [name for name, gradient in got.items() if not gradient.isfinite().all()]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps(dtype):
    student, teacher = (random_maps(*shapes) for shapes in [SHAPES["equal"][0]] * 2)
    student, teacher = ([maps.to(dtype) for maps in model] for model in (student, teacher))
    value = hcl_loss(student, teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, hcl_loss(*([maps.float() for maps in model] for model in (student, teacher))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast(review, dtype):
    loss, *maps = review(*SHAPES["pooled embedding"])
    plain = loss(*maps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(*([m.to(dtype) for m in model] for model in maps))
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, plain, rtol=0.02, atol=0)
    assert all(parameter.grad.isfinite().all() for parameter in loss.parameters())


def test_other_sizes_than_built_for(review):
    """As a detector's images are, from batch to batch."""
    loss, *_ = review([(3, 8, 8), (4, 4, 4)], [(5, 8, 8), (6, 4, 4)])
    found = loss(random_maps((3, 6, 10), (4, 3, 5)), random_maps((5, 12, 20), (6, 3, 5)))
    assert found.isfinite()


def test_a_second_build_starts_over(review, built):
    loss, *maps = review(*SHAPES["upsample"])
    first = list(loss.fusions)
    built(loss, *maps)
    assert len(loss.fusions) == len(first)
    assert not set(loss.fusions) & set(first)


# ---- mistakes ---------------------------------------------------------------------------------------------------


def test_forward_before_build():
    with pytest.raises(ValueError, match="^built for 0 maps, got 2: call build first$"):
        ReviewKDLoss()(*(random_maps(*shapes) for shapes in SHAPES["upsample"]))


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (1, 2, "built for 2 maps, got 1: call build first"),
        (2, 1, "wanted as many teacher_maps as student_maps, got 1"),
        (0, 0, "built for 2 maps, got 0: call build first"),
    ],
)
def test_other_numbers_of_maps_than_built_for(review, student, teacher, message):
    loss, student_maps, teacher_maps = review(*SHAPES["upsample"])
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        loss(student_maps[:student], teacher_maps[:teacher])


def test_other_channels_than_built_for(review):
    loss, student_maps, teacher_maps = review([(3, 4, 4)], [(5, 4, 4)])
    message = "wanted maps of one shape (B, c, h, w), got (4, 5, 4, 4) and (4, 6, 4, 4)"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        loss(student_maps, random_maps((6, 4, 4)))


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ([(3, 4, 4), (5, 1, 1)], [(3, 4, 4)]),
        ([(3, 4, 4)], []),
        ([(3,)], [(3, 4, 4)]),
        ([(3, 4, 4)], [(3, 4)]),
        ([], []),
    ],
)
def test_taps_that_do_not_pair(review, student, teacher):
    message = "ReviewKD wants as many student taps as teacher taps, each a map (c, h, w), got"
    with pytest.raises(ValueError, match=f"^{re.escape(f'{message} {student} and {teacher}')}$"):
        review(student, teacher)
