"""What holds for many losses: modules and functions, soft targets, half precision, refused inputs, no GPU sync."""

import doctest
import importlib
import inspect
import pkgutil
import re

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from ndkd import losses
from ndkd.losses import (
    CosineLoss,
    DISTLoss,
    DKDLoss,
    HardKDLoss,
    InfoNCELoss,
    KDLoss,
    L2Loss,
    NDLoss,
    NKDLoss,
    ReviewKDLoss,
    RLDLoss,
    SIFNLoss,
    TTMLoss,
    WKDFLoss,
    WTTMLoss,
    cosine_loss,
    dist_loss,
    dkd_loss,
    hard_kd_loss,
    infonce_loss,
    kd_loss,
    l2_loss,
    nd_loss,
    nkd_loss,
    rld_loss,
    sifn_loss,
    ttm_loss,
    wttm_loss,
)

FUNCTIONS = {
    NDLoss: (nd_loss, {"eps": 8.0}),
    KDLoss: (kd_loss, {"temperature": 2.0, "standardize": True}),
    HardKDLoss: (hard_kd_loss, {}),
    DKDLoss: (dkd_loss, {"alpha": 0.5, "beta": 2.0, "temperature": 3.0, "standardize": True}),
    DISTLoss: (dist_loss, {"beta": 0.5, "gamma": 3.0, "temperature": 2.0}),
    NKDLoss: (nkd_loss, {"gamma": 0.5, "temperature": 3.0}),
    TTMLoss: (ttm_loss, {"gamma": 0.5}),
    WTTMLoss: (wttm_loss, {"gamma": 0.5}),
    RLDLoss: (rld_loss, {"alpha": 0.5, "beta": 2.0, "temperature": 3.0, "alpha_temperature": 2.0}),
    CosineLoss: (cosine_loss, {"eps": 8.0}),
    InfoNCELoss: (infonce_loss, {"temperature": 0.5}),
    L2Loss: (l2_loss, {}),
    SIFNLoss: (sifn_loss, {"step": 0.5}),
}
OF_MAPS = [ReviewKDLoss, WKDFLoss]  # with layers of their own, which their functions do not have
ALL = [*FUNCTIONS, *OF_MAPS]
OF_CLASS_MEANS = [NDLoss, CosineLoss, InfoNCELoss]
OF_SOFT_TARGETS = [*OF_CLASS_MEANS, NKDLoss]
OF_TARGETS = [*OF_SOFT_TARGETS, DKDLoss, RLDLoss]
OF_LOGITS = [loss for loss in FUNCTIONS if loss.inputs[0] == "student.logits"]

every_loss = pytest.mark.parametrize("loss_class", ALL)
every_function = pytest.mark.parametrize("loss_class", FUNCTIONS)
with_soft_targets = pytest.mark.parametrize("loss_class", OF_SOFT_TARGETS)
with_class_means = pytest.mark.parametrize("loss_class", OF_CLASS_MEANS)


def and_soft(loss_classes):
    """Parametrise over the losses, and once more over those that take soft targets."""
    cases = [(loss, "hard") for loss in loss_classes] + [(loss, "soft") for loss in OF_SOFT_TARGETS]
    return pytest.mark.parametrize(("loss_class", "kind"), cases)


def target_of(kind):
    return {"target": torch.rand(6, 5).softmax(dim=1)} if kind == "soft" else {}


def one_hot(target, num_classes=5):
    return F.one_hot(target, num_classes).float()


def argument_names(loss_class):
    return list(inspect.signature(loss_class.forward).parameters)[1:]


# ---- modules and functions --------------------------------------------------------------------------------------


def test_no_loss_is_left_out():
    public = {part for name, part in vars(losses).items() if callable(part) and not name.startswith("_")}
    assert {loss for loss in public if isinstance(loss, type)} == set(ALL)
    assert public - set(ALL) == {function for function, _ in FUNCTIONS.values()} | {losses.hcl_loss, losses.wkdf_loss}


@every_loss
def test_inputs_fit_the_forward(loss_class):
    short = {"projected": "embedding", "norm": "embedding", "feature_maps": "maps"}
    parts = [source.split(".") for source in loss_class.inputs]
    assert argument_names(loss_class) == ["_".join(short.get(part, part) for part in names) for names in parts]


@every_function
def test_module_is_its_function(inputs_of, loss_class):
    function, options = FUNCTIONS[loss_class]
    arguments = inputs_of(loss_class)
    assert torch.equal(loss_class()(*arguments), function(*arguments))
    for name, value in options.items():
        chosen = loss_class(**{name: value})(*arguments)
        assert torch.equal(chosen, function(*arguments, **{name: value}))
        assert chosen != function(*arguments)


@pytest.mark.parametrize("name", ["", *(module.name for module in pkgutil.iter_modules(losses.__path__))])
def test_docstring_examples(name):
    assert doctest.testmod(importlib.import_module(f"ndkd.losses.{name}".rstrip("."))).failed == 0


@every_loss
def test_every_loss_has_an_example(loss_class):
    (found,) = doctest.DocTestFinder(recurse=False).find(loss_class)
    assert any(loss_class.__name__ in example.source for example in found.examples)


@every_loss
def test_every_argument_is_documented(loss_class):
    options = list(inspect.signature(loss_class).parameters) if "__init__" in vars(loss_class) else []
    documented = re.findall(r"^    (\w+): ", inspect.getdoc(loss_class).partition("Args:")[2], re.MULTILINE)
    assert documented[: len(options)] == options
    assert re.search(r"\((N|B), ", inspect.getdoc(loss_class)), "shapes of what it reads"


@every_function
def test_a_loss_and_its_function_take_the_same_options(loss_class):
    function, _ = FUNCTIONS[loss_class]
    of_function = {name: p.default for name, p in inspect.signature(function).parameters.items()}
    options = {name: default for name, default in of_function.items() if default is not inspect.Parameter.empty}
    own = inspect.signature(loss_class).parameters if "__init__" in vars(loss_class) else {}
    assert {name: parameter.default for name, parameter in own.items()} == options


# ---- soft targets -----------------------------------------------------------------------------------------------


@with_soft_targets
def test_one_hot_is_the_hard_target(agree, inputs_of, loss_class):
    *arguments, target = inputs_of(loss_class)
    loss = loss_class()
    agree(lambda *inputs: loss(*inputs, one_hot(target)), lambda *inputs: loss(*inputs, target), *arguments)


@pytest.mark.parametrize("loss_class", [NDLoss, CosineLoss])
def test_soft_target_mixes_the_class_means(agree, inputs_of, loss_class):
    *arguments, class_means, _ = inputs_of(loss_class)
    soft = 0.7 * one_hot(torch.tensor([0, 1, 2, 3, 4, 0])) + 0.3 * one_hot(torch.tensor([3, 3, 0, 1, 2, 4]))
    mixed = torch.stack([sum(soft[i, k] * class_means[k] for k in range(5)) for i in range(6)])
    agree(
        lambda *inputs: loss_class()(*inputs, class_means, soft),
        lambda *inputs: loss_class()(*inputs, mixed, torch.arange(6)),
        *arguments,
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
@pytest.mark.parametrize("loss_class", OF_TARGETS)
def test_any_integer_type_of_class_indices(inputs_of, loss_class, dtype):
    *arguments, target = inputs_of(loss_class)
    assert torch.equal(loss_class()(*arguments, target.to(dtype)), loss_class()(*arguments, target))


# ---- half precision ---------------------------------------------------------------------------------------------

half = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
SCALES = {"plain": (1, 1), "huge": (1e4, 1e4), "student 0": (0, 1), "teacher 0": (1, 0), "both 0": (0, 0)}


def cast(tensor, dtype):
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


@half
@pytest.mark.parametrize("scales", SCALES)
@every_function
def test_half_precision(value_and_grad, inputs_of, loss_class, scales, dtype):
    of_student, of_teacher = SCALES[scales]
    student, *rest = (cast(tensor, dtype) for tensor in inputs_of(loss_class))
    rest = [tensor * of_teacher if tensor.is_floating_point() else tensor for tensor in rest]
    inputs = [student * of_student, *rest]
    value, gradient = value_and_grad(loss_class(), *inputs)
    wanted, wanted_gradient = value_and_grad(loss_class(), *(cast(tensor, torch.float32) for tensor in inputs))
    assert (value.dtype, gradient.dtype) == (torch.float32, dtype)
    assert value.isfinite()
    assert gradient.isfinite().all()
    torch.testing.assert_close(value, wanted, rtol=1e-6, atol=1e-6)
    info = torch.finfo(dtype)
    torch.testing.assert_close(gradient.float(), wanted_gradient, rtol=info.eps, atol=info.smallest_normal)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@and_soft(FUNCTIONS)
def test_autocast(value_and_grad, inputs_of, loss_class, kind, dtype):
    inputs = [cast(tensor, dtype) for tensor in inputs_of(loss_class, target_of(kind))]
    loss = loss_class()
    wanted = value_and_grad(loss, *inputs)
    found = value_and_grad(torch.autocast("cpu", dtype=torch.bfloat16)(loss.forward), *inputs)
    assert found[0].dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


# ---- double precision -------------------------------------------------------------------------------------------


def double(inputs):
    return [cast(tensor, torch.float64) for tensor in inputs]


@pytest.mark.parametrize("loss_class", OF_LOGITS)
def test_double_precision(value_and_grad, inputs_of, loss_class):
    value, gradient = value_and_grad(loss_class(), *double(inputs_of(loss_class)))
    assert (value.dtype, gradient.dtype) == (torch.float64, torch.float64)


@pytest.mark.parametrize("options", [False, True], ids=["by default", "with options"])
@pytest.mark.parametrize("loss_class", OF_LOGITS)
def test_gradient(inputs_of, loss_class, options):
    loss = loss_class(**(FUNCTIONS[loss_class][1] if options else {}))
    student, *rest = double(inputs_of(loss_class))
    assert torch.autograd.gradcheck(lambda s: loss(s, *rest), student.requires_grad_())


# ---- refused inputs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("student_shape", "teacher_shape"),
    [((6, 4), (6, 3)), ((5, 4), (6, 4)), ((4,), (4,)), ((6, 4, 1, 1), (6, 4, 1, 1)), ((6, 1), (6,))],
)
@pytest.mark.parametrize("loss_class", [NDLoss, L2Loss, *OF_LOGITS])
def test_shapes_that_differ_or_are_not_two_dimensional(rejected, loss_class, student_shape, teacher_shape):
    if (loss_class, teacher_shape) == (NDLoss, (6,)):
        return  # norms, which will do
    student, teacher = argument_names(loss_class)[:2]
    given = dict(zip(loss_class.inputs, (torch.zeros(student_shape), torch.zeros(teacher_shape)), strict=False))
    found = f"{student} {student_shape} and {teacher} {teacher_shape}"
    rejected(loss_class(), given, f"wanted tensors of one shape (N, D), got {found}")


@pytest.mark.parametrize("shape", [(6,), (6, 4, 1, 1)])
@pytest.mark.parametrize("loss_class", [CosineLoss, InfoNCELoss])
def test_embedding_that_is_not_two_dimensional(rejected, loss_class, shape):
    given = {"student.projected": torch.zeros(shape)}
    rejected(loss_class(), given, f"wanted a tensor (N, D), got student_embedding {shape}")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
@pytest.mark.parametrize(
    ("loss_class", "position"),
    [(loss, i) for loss in FUNCTIONS for i, source in enumerate(loss.inputs) if source != "target"],
)
def test_numbers_that_are_not_floating_point(rejected, tensors, loss_class, position, dtype):
    source, name = loss_class.inputs[position], argument_names(loss_class)[position]
    given = {source: tensors[source].to(dtype)}
    rejected(loss_class(), given, f"wanted floating point numbers in {name}, got {dtype}")


@pytest.mark.parametrize(
    ("target", "found"),
    [
        (torch.zeros(6, 4), "torch.float32 (6, 4)"),
        (torch.zeros(5, 5), "torch.float32 (5, 5)"),
        (torch.zeros(6), "torch.float32 (6,)"),
        (torch.zeros(5, dtype=torch.long), "torch.int64 (5,)"),
        (torch.zeros(6, 5, dtype=torch.long), "torch.int64 (6, 5)"),
        (torch.zeros(6, 1, dtype=torch.long), "torch.int64 (6, 1)"),
        (torch.zeros(6, dtype=torch.bool), "torch.bool (6,)"),
    ],
)
@with_soft_targets
def test_target_that_is_neither_hard_nor_soft(rejected, loss_class, target, found):
    message = f"wanted a target of class indices (6,) or soft labels (6, 5), got {found}"
    rejected(loss_class(), {"target": target}, message)


@pytest.mark.parametrize(
    ("target", "found"), [(torch.zeros(6, 5), "torch.float32 (6, 5)"), (torch.zeros(6), "torch.float32 (6,)")]
)
@pytest.mark.parametrize("loss_class", [DKDLoss, RLDLoss])
def test_soft_target_of_a_loss_of_class_indices(rejected, loss_class, target, found):
    rejected(loss_class(), {"target": target}, f"wanted a target of class indices (6,), got {found}")


@pytest.mark.parametrize("gap", [100.0, 1e4])
@pytest.mark.parametrize("loss_class", [DKDLoss, NKDLoss, RLDLoss])
def test_finite_where_one_class_has_all_the_probability(value_and_grad, loss_class, gap):
    function, _ = FUNCTIONS[loss_class]
    student, teacher = torch.randn(3, 4), torch.randn(3, 4)
    student[:, 0] += gap
    teacher[:, 1] += gap
    for target in range(4):
        value, gradient = value_and_grad(function, student, teacher, torch.full((3,), target))
        assert value.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("target", "found"), [([0, 1, 2, 3, 4, -1], -1), ([0, 1, 2, 3, 4, 5], 5), ([-7, 1, 2, 3, 4, 9], -7)]
)
@pytest.mark.parametrize("loss_class", OF_TARGETS)
def test_target_outside_the_classes(rejected, loss_class, target, found):
    rejected(loss_class(), {"target": torch.tensor(target)}, f"wanted a target from 0 to 4, got {found}")


@pytest.mark.parametrize("shape", [(5, 63), (64,), (5, 64, 1)])
@with_class_means
def test_class_means_of_another_width(rejected, loss_class, shape):
    message = (
        f"wanted class_means (C, 64), as wide as the embedding, got {shape}; "
        "where the widths differ, project the student's embedding first"
    )
    rejected(loss_class(), {"class_means": torch.zeros(shape)}, message)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@with_class_means
def test_class_means_that_are_not_finite(rejected, tensors, loss_class, number):
    class_means = tensors["class_means"].clone()
    class_means[3, 7] = class_means[1, 2] = class_means[1, 3] = number
    message = "wanted finite class_means, got non-finite numbers in 2, first class 1"
    rejected(loss_class(), {"class_means": class_means}, message)


# ---- no GPU sync, no graph break --------------------------------------------------------------------------------

SYNCS = {
    "item": lambda tensor: tensor.sum().item(),
    "int": lambda tensor: int(tensor.sum()),
    "if": lambda tensor: bool(tensor.sum() > 0),
    "nonzero": lambda tensor: tensor.nonzero(),
    "mask": lambda tensor: tensor[tensor > 0],
    "tolist": lambda tensor: tensor.tolist(),
    "cpu": lambda tensor: tensor.cpu(),
}


@pytest.fixture
def made(built, tensors):
    """A loss with its layers."""
    return lambda loss_class: built(loss_class(), tensors["student.feature_maps"], tensors["teacher.feature_maps"])


def moved(inputs, device):
    """Inputs as empty tensors of a device, the student's as leaves of the graph."""
    if isinstance(inputs, list):
        return [moved(tensor, device) for tensor in inputs]
    empty = torch.empty_like(inputs, device=device)
    return empty.requires_grad_() if empty.is_floating_point() else empty


@pytest.fixture
def on_device(made, inputs_of):
    """A loss and its inputs, without values, on a device."""

    def make(loss_class, kind, device):
        with torch.device(device):
            loss = made(loss_class)
        return loss, moved(inputs_of(loss_class, target_of(kind)), device)

    return make


@and_soft(ALL)
def test_step_on_tensors_without_values(on_device, loss_class, kind):
    loss, inputs = on_device(loss_class, kind, "meta")
    value = loss(*inputs)
    value.backward()
    assert (value.shape, value.dtype, value.device.type) == ((), torch.float32, "meta")
    for student in inputs[0] if isinstance(inputs[0], list) else inputs[:1]:
        assert student.grad.shape == student.shape


@and_soft(ALL)
def test_forward_on_a_fake_gpu(on_device, loss_class, kind):
    with FakeTensorMode(allow_non_fake_inputs=True):
        loss, inputs = on_device(loss_class, kind, "cuda")
        value = loss(*inputs)
    assert (value.shape, value.dtype, value.device.type) == ((), torch.float32, "cuda")


@pytest.mark.parametrize("sync", SYNCS)
def test_sync_would_be_noticed(sync):
    with pytest.raises((RuntimeError, NotImplementedError)):
        SYNCS[sync](torch.empty(6, 4, device="meta"))
    if sync != "cpu":
        with FakeTensorMode(), pytest.raises(RuntimeError):
            SYNCS[sync](torch.empty(6, 4, device="cuda"))


@and_soft(ALL)
def test_compiles_without_graph_break(made, inputs_of, loss_class, kind):
    loss, inputs = made(loss_class), inputs_of(loss_class, target_of(kind))
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*inputs), loss(*inputs))


BAD = [None, 0, -1, float("nan"), float("inf")]


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize(
    ("loss", "option"),
    [
        ("KDLoss", "temperature"),
        ("DKDLoss", "temperature"),
        ("DISTLoss", "temperature"),
        ("NKDLoss", "temperature"),
        ("TTMLoss", "gamma"),
        ("WTTMLoss", "gamma"),
        ("RLDLoss", "temperature"),
        ("RLDLoss", "alpha_temperature"),
        ("InfoNCELoss", "temperature"),
        ("NDLoss", "eps"),
        ("CosineLoss", "eps"),
        ("SIFNLoss", "step"),
        ("ReviewKDLoss", "max_mid_channels"),
        ("WKDFLoss", "grid"),
        ("WKDFLoss", "eps"),
    ],
)
def test_an_option_of_a_loss(loss, option, value):
    with pytest.raises(ValueError, match=f"^{option}: wanted a number above 0, got "):
        getattr(losses, loss)(**{option: value})


@pytest.mark.parametrize(
    ("loss", "one", "other"),
    [("DKDLoss", "alpha", "beta"), ("DISTLoss", "beta", "gamma"), ("RLDLoss", "alpha", "beta")],
)
def test_weights_inside_a_loss(loss, one, other):
    make = getattr(losses, loss)
    make(**{one: 0})
    for value in (-1, float("nan"), float("inf"), None):
        with pytest.raises(ValueError, match=f"^{one}: wanted a number from 0 on, got "):
            make(**{one: value})
    with pytest.raises(ValueError, match=f"^{one} and {other}: wanted a number above 0, all are 0"):
        make(**{one: 0, other: 0})


@pytest.mark.parametrize("value", [None, -1, float("nan"), float("inf")])
@pytest.mark.parametrize(("loss_class", "option"), [(NKDLoss, "gamma"), (WKDFLoss, "mean_weight")])
def test_an_option_of_a_loss_that_may_be_0(loss_class, option, value):
    loss_class(**{option: 0})
    with pytest.raises(ValueError, match=f"^{option}: wanted a number from 0 on, got "):
        loss_class(**{option: value})


def test_every_number_among_the_options_is_checked():
    """Each is named in a test above: so a loss that is added without a check is noticed."""
    for loss_class in ALL:
        options = inspect.signature(loss_class).parameters if "__init__" in vars(loss_class) else {}
        for name, option in options.items():
            if not isinstance(option.default, bool):
                with pytest.raises(ValueError, match=f"{name}: wanted "):
                    loss_class(**{name: -1})
