"""Images without labels in a step: which loss terms see them, and with which class."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from ndkd.callbacks import TeacherCache
from ndkd.commands.compare_plan import teachers_of
from ndkd.data.base import PartlyLabeled
from ndkd.distillation.batches import check_labels
from ndkd.distillation.detection import DetectionDistillationModule
from ndkd.distillation.objective import LossTerm, Objective, StepOutput
from ndkd.distillation.term_gradients import term_gradients
from ndkd.errors import NdkdError
from ndkd.losses import (
    CosineLoss,
    DISTLoss,
    DKDLoss,
    InfoNCELoss,
    KDLoss,
    NDLoss,
    NKDLoss,
    ReviewKDLoss,
    RLDLoss,
    SIFNLoss,
    kd_loss,
    nd_loss,
)
from ndkd.models import ModelConfig
from ndkd.models.output import ModelOutput
from tests.distillation.watching import Watch, copied
from tests.tiny_data import TinyData, TinyWithUnlabeled

NAMED = {"inputs": ["student.logits", "target"]}
WITH_TARGET = [NDLoss, CosineLoss, InfoNCELoss, DKDLoss, NKDLoss, RLDLoss]


def output(labeled=3, seed=0, soft=False):
    """Seven images of four classes; of the fourth and the last the teacher is sure, and wrong about the first."""
    random = torch.Generator().manual_seed(seed)
    student, teacher = (
        ModelOutput(torch.randn(7, 4, generator=random), torch.randn(7, 8, generator=random)) for _ in range(2)
    )
    teacher.logits[[0, 3, 6], [2, 1, 3]] += 12
    student.logits.requires_grad_()
    student.embedding.requires_grad_()
    target = torch.tensor([0, 1, 2, -1, -1, -1, -1])
    if soft:
        target = torch.cat([torch.rand(3, 4, generator=random).softmax(dim=1), torch.zeros(4, 4)])
    return StepOutput(student, target, teacher, torch.randn(4, 8, generator=random), labeled)


def of(whole, rows, target=None):
    """Some of the images, all of them with labels."""
    student, teacher = (ModelOutput(m.logits[rows], m.embedding[rows]) for m in (whole.student, whole.teacher))
    return StepOutput(student, whole.target[rows] if target is None else target, teacher, whole.class_means)


def gradients(value, whole):
    return torch.autograd.grad(value, [whole.student.logits, whole.student.embedding], allow_unused=True)


def assert_same(found, wanted, whole):
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    for one, other in zip(gradients(found, whole), gradients(wanted, whole), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


# ---- which images a term sees -----------------------------------------------------------------------------------


def test_the_gradients_of_a_step_are_those_of_a_computation_by_hand(fit, make_module, terms):
    module, watch = make_module(terms(ce=1.0, kd=0.5, nd=2.0)), Watch()
    fit(module, watch, data=TinyWithUnlabeled(), limit_train_batches=1)
    (batch,) = watch.batches
    assert (len(batch.images), batch.labeled, batch.target[8:].tolist()) == (16, 8, [-1] * 8)
    student, teacher, means = module.student, module.teacher, module.class_means
    student.load_state_dict(watch.start)
    student.train()
    images = batch.images.to(memory_format=torch.channels_last)
    with torch.no_grad():
        taught = teacher(images)
    said, target = student(images), batch.target[:8]
    by_hand = F.cross_entropy(said.logits[:8], target) + 0.5 * kd_loss(said.logits, taught.logits)
    by_hand = by_hand + 2 * nd_loss(said.embedding[:8], taught.embedding[:8], means, target)
    torch.testing.assert_close(watch.losses[0], by_hand.detach())
    wanted = torch.autograd.grad(by_hand, list(student.parameters()))
    for one, other in zip(watch.gradients[0], wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("soft", [False, True])
def test_terms_with_a_target_see_those_with_labels(soft):
    whole = output(soft=soft)
    kinds = [NDLoss, CosineLoss, InfoNCELoss, NKDLoss] if soft else WITH_TARGET
    for term in [*(LossTerm(kind()) for kind in kinds), LossTerm(nn.CrossEntropyLoss(), **NAMED)]:
        criterion = Objective({"x": term})
        assert not criterion.uses_unlabeled
        assert_same(criterion(whole)[0], criterion(of(whole, slice(3)))[0], whole)


@pytest.mark.parametrize("kind", [KDLoss, DISTLoss, SIFNLoss])
def test_terms_without_see_all(kind):
    whole, criterion = output(), Objective({"x": LossTerm(kind())})
    assert criterion.uses_unlabeled
    assert_same(criterion(whole)[0], criterion(of(whole, slice(7)))[0], whole)


def test_feature_maps_are_of_all_images_and_of_the_labelled_ones_beside_a_target():
    class Seen(nn.Module):
        def forward(self, maps, norm, target):
            self.seen = [len(each) for each in maps], len(norm), len(target)
            return maps[0].mean()

    maps = [torch.randn(7, 2, 8, 8), torch.randn(7, 4, 4, 4)]
    both = [ModelOutput(torch.randn(7, 4), torch.randn(7, 8), feature_maps=list(maps)) for _ in range(2)]
    whole = StepOutput(both[0], torch.tensor([0, 1, -1, -1, -1, -1, -1]), both[1], labeled=2)
    review, seen = Objective({"x": LossTerm(ReviewKDLoss())}), Seen()
    review.build(StepOutput(both[0], torch.zeros(7, dtype=torch.long), both[1]))
    assert review(whole)[0] == review(StepOutput(both[0], whole.target, both[1]))[0]
    names = ["student.feature_maps", "teacher.norm", "target"]
    Objective({"x": LossTerm(seen, inputs=names)})(whole)
    assert seen.seen == ([2, 2], 2, 2)


def test_class_means_are_whole_even_where_there_are_as_many_classes_as_images():
    whole = output()
    random = torch.Generator().manual_seed(3)
    whole.class_means = torch.randn(7, 8, generator=random)
    criterion = Objective({"nd": LossTerm(NDLoss())})
    assert_same(criterion(whole)[0], criterion(of(whole, slice(3)))[0], whole)


def test_the_same_input_twice():
    class Twice(nn.Module):
        def forward(self, one, other, target):
            return (one * other).mean() + 0 * target.sum()

    criterion = Objective({"x": LossTerm(Twice(), inputs=["student.logits", "student.logits", "target"])})
    assert criterion(output())[0] == output().student.logits[:3].square().mean()


# ---- pseudo-labels ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WITH_TARGET)
@pytest.mark.parametrize(("confidence", "sure"), [(0.99, [3, 6]), (1e-6, [3, 4, 5, 6]), (1, [])])
def test_images_of_which_the_teacher_is_sure_have_its_class(kind, confidence, sure):
    whole = output()
    rows = [0, 1, 2, *sure]
    target = torch.where(torch.arange(7) < 3, whole.target, whole.teacher.logits.argmax(dim=1))[rows]
    criterion = Objective({"x": LossTerm(kind(), pseudo_labels=confidence)})
    assert criterion.uses_unlabeled
    assert "teacher.logits" in criterion.inputs
    wanted = Objective({"x": LossTerm(kind())})(of(whole, rows, target))[0]
    assert_same(criterion(whole)[0], wanted, whole)


def test_beside_soft_labels_they_are_one_hot():
    whole = output(soft=True)
    target = torch.cat([whole.target[:3], torch.eye(4)[[1, 3]]])
    criterion = Objective({"x": LossTerm(NDLoss(), pseudo_labels=0.99)})
    assert_same(criterion(whole)[0], Objective({"x": LossTerm(NDLoss())})(of(whole, [0, 1, 2, 3, 6], target))[0], whole)


def test_where_all_images_have_labels_nothing_changes():
    whole = of(output(), slice(3))
    plain, other = (Objective({"x": LossTerm(NDLoss(), pseudo_labels=p)}) for p in (None, 0.5))
    assert plain(whole)[0] == other(whole)[0]


def test_an_objective_says_so():
    term = LossTerm(NDLoss(), weight=2.0, pseudo_labels=0.9)
    assert str(Objective({"nd": term})) == "2·nd (pseudo-labels from 0.9)"


@pytest.mark.parametrize("kind", [*WITH_TARGET, nn.CrossEntropyLoss])
@pytest.mark.parametrize("confidence", [None, 0.99, 1.0])
def test_a_batch_without_any_label_is_no_nan(kind, confidence):
    whole = output(labeled=0)
    whole.target.fill_(-1)
    term = LossTerm(kind(), pseudo_labels=confidence, inputs=NAMED["inputs"] if kind is nn.CrossEntropyLoss else None)
    total, _ = Objective({"x": term})(whole)
    found = [g for g in gradients(total, whole) if g is not None]
    assert total.isfinite()
    assert all(g.isfinite().all() for g in found)
    if confidence != 0.99:
        assert total.abs() < 1e-5
        assert not any(g.any() for g in found)


# ---- in a training ----------------------------------------------------------------------------------------------


def test_a_recorded_teacher_knows_the_whole_batch(fit, make_module, terms, tmp_path, capsys):
    """With pseudo-labels, which want its logits."""

    def trained(*callbacks, data=None):
        losses = terms("ce", "kd", "nd")
        losses["nd"].pseudo_labels = 0.2
        module = make_module(losses, narrow=True)
        fit(module, *callbacks, data=data or TinyWithUnlabeled(pad=2), epochs=2)
        return copied(module.student)

    def same(one, other):
        return all(torch.equal(one[name], other[name]) for name in one)

    plain = trained()
    assert same(trained(TeacherCache(tmp_path / "cache")), plain)
    assert same(trained(TeacherCache(tmp_path / "cache")), plain)
    assert "all 2 epochs, and not loaded" in capsys.readouterr().out
    assert not same(trained(data=TinyWithUnlabeled(pad=2, seed=1)), plain)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    trained(TeacherCache(tmp_path / "cache"), data=TinyData(pad=2))
    assert len(list((tmp_path / "cache").iterdir())) == 2


def partly(samples):
    """A batch of other people's data: the last two of five images have no label."""
    images, target = (torch.stack(parts) for parts in zip(*samples, strict=True))
    return PartlyLabeled(images, torch.cat([target[:3], target.new_full((2,), -1)]), 3)


def test_class_means_are_those_of_the_labelled_images(fit, make_module, terms):
    images, target = torch.randn(10, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(10) % 2
    kept = [0, 1, 2, 5, 6, 7]
    mixed = DataLoader(TensorDataset(images, target), 5, collate_fn=partly)
    plain = DataLoader(TensorDataset(images[kept], target[kept]), 3)
    means = []
    for loader in (mixed, plain):
        module = make_module(terms("kd", "nd"), num_classes=10)
        module.allows_empty_classes = True
        fit(module, loaders={"train_dataloaders": loader}, limit_train_batches=1)
        means.append(module.class_means)
    assert torch.equal(*means)


def test_the_terms_gradients_are_measured(terms):
    whole = output()
    criterion = Objective(terms("kd", "nd"))  # no cross-entropy to compare with: it is made
    _, values = criterion(whole)
    leaves = [nn.Parameter(torch.zeros(7, 4))]
    whole.student.logits = whole.student.logits + leaves[0]
    _, values = criterion(whole)
    found = term_gradients(criterion, whole, values, leaves)
    assert found["kd"].norm > 0
    assert -1 <= found["kd"].cosine_to_ce <= 1


def test_pseudo_labels_where_all_images_have_labels(fit, make_module, terms, capsys):
    said = "ndkd: pseudo_labels of ce have no effect: all images have labels\n"
    for number, data in enumerate((None, TinyWithUnlabeled())):
        losses = terms("ce", "kd")
        losses["ce"].pseudo_labels = 0.9
        fit(make_module(losses), data=data, limit_train_batches=1)
        assert (said in capsys.readouterr().out) == (number == 0)


# ---- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("ce",), ("ce", "nd")])
@pytest.mark.parametrize("teacher", [True, False])
def test_images_that_no_term_would_use(fit, make_module, terms, names, teacher):
    module = make_module(terms(*names), **({} if teacher else {"teacher": None}))
    message = f"^the 12 images without labels would be read for nothing: each loss term \\({', '.join(names)}\\) reads "
    with pytest.raises(NdkdError, match=message):
        fit(module, data=TinyWithUnlabeled())
    if not teacher:
        losses = terms("ce")
        losses["ce"].pseudo_labels = 0.9
        with pytest.raises(NdkdError, match=r"^the losses want teacher.logits, but there is no teacher"):
            fit(make_module(losses, teacher=None), data=TinyWithUnlabeled())


@pytest.mark.parametrize("confidence", [0, -0.5, 1.01, float("nan"), True, "high"])
def test_a_confidence_that_is_none(confidence):
    with pytest.raises(
        NdkdError, match=f"^pseudo_labels: wanted a confidence above 0 and at most 1, got {confidence}$"
    ):
        LossTerm(NDLoss(), pseudo_labels=confidence)


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (
            LossTerm(KDLoss(), pseudo_labels=0.9),
            "loss x: pseudo_labels are for a term that reads target; this one reads",
        ),
        (
            LossTerm(nn.CrossEntropyLoss(), pseudo_labels=0.9, class_weights="balanced", **NAMED),
            "loss x: class_weights count labels, and pseudo_labels are none; leave one of both out",
        ),
    ],
)
def test_terms_that_have_no_use_for_pseudo_labels(term, message):
    with pytest.raises(NdkdError, match=f"^{message}"):
        Objective({"x": term})


@pytest.mark.parametrize(
    "loss", [nn.CrossEntropyLoss(reduction="sum"), nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5, 1, 1]))]
)
def test_a_loss_that_is_no_mean_over_its_images(loss):
    criterion = Objective({"x": LossTerm(loss, pseudo_labels=0.9, **NAMED)})
    example = of(output(), slice(3))
    with pytest.raises(NdkdError, match="^loss x: pseudo_labels want a loss that is the mean over its images"):
        criterion.build(example)
    for kind in WITH_TARGET:
        Objective({"x": LossTerm(kind(), pseudo_labels=0.9)}).build(example)


def test_nobody_is_sure_without_a_teacher():
    whole = output()
    whole.teacher = None
    criterion = Objective({"x": LossTerm(nn.CrossEntropyLoss(), pseudo_labels=0.9, **NAMED)})
    with pytest.raises(NdkdError, match=r"^loss x: nothing provides 'teacher.logits'; on offer: "):
        criterion(whole)
    config = {
        "weight": 1,
        "inputs": NAMED["inputs"],
        "loss": {"class_path": "torch.nn.CrossEntropyLoss"},
        "pseudo_labels": 0.9,
    }
    resolved = {"model": {"init_args": {"losses": {"ce": config}, "teacher": {"name": "cifar/resnet8"}}}}
    assert teachers_of(resolved) == [{"name": "cifar/resnet8"}]


def test_a_detector_has_no_use_for_them():
    losses = {"nd": LossTerm(NDLoss(), pseudo_labels=0.9)}
    with pytest.raises(NdkdError, match="^loss nd: each of a detector's regions has a class; leave pseudo_labels out$"):
        DetectionDistillationModule(ModelConfig("detector/resnet18"), losses)


@pytest.mark.parametrize(
    ("target", "labeled", "message"),
    [
        ([0, 1, -1, 2], 2, "PartlyLabeled: wanted -1 as the target of all images behind the first 2, got 2; put"),
        ([0, -1, -1, -1], 2, "wanted labels from 0 to 9, the data has -1 to 0"),
        ([0, 10, -1, -1], 2, "wanted labels from 0 to 9, the data has 0 to 10"),
        ([0, 1, -1, -1], 5, "PartlyLabeled: labeled: wanted a number of images, 0 to 4, got 5"),
        ([0, 1, -1, -1], 1.0, "PartlyLabeled: labeled: wanted a number of images, 0 to 4, got 1.0"),
    ],
)
def test_batches_that_say_something_else(target, labeled, message):
    batch = PartlyLabeled(torch.zeros(4, 3, 8, 8), torch.tensor(target), labeled)
    with pytest.raises(NdkdError, match=f"^{re.escape(message)}"):
        check_labels(batch, 10, may_lack=True)


def test_images_without_labels_are_for_training_alone():
    batch = PartlyLabeled(torch.zeros(4, 3, 8, 8), torch.tensor([0, 1, -1, -1]), 2)
    check_labels(batch, 10, may_lack=True)
    for other in (batch, tuple(batch[:2])):
        with pytest.raises(NdkdError, match="^wanted labels from 0 to 9, the data has -1 to 1$"):
            check_labels(other, 10)
