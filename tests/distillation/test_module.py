"""A module from start to end: the same start for all methods, targets, metrics."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from ndkd.distillation.module import DistillationModule
from ndkd.distillation.objective import LossTerm
from ndkd.errors import NdkdError
from ndkd.losses import CosineLoss, KDLoss, L2Loss, ReviewKDLoss, SIFNLoss, kd_loss, nd_loss
from ndkd.models import ModelConfig, build_model
from tests.distillation.watching import (
    Watch,
    assert_equal,
    foreign_loader,
)
from tests.tiny_data import TinyData


def test_weight_0_is_as_without_the_term(fit, make_module, terms):
    without, with_0 = make_module(terms("ce", "kd"), narrow=True), make_module(terms("ce", "kd", nd=0.0), narrow=True)
    metrics = fit(without, epochs=2).callback_metrics, fit(with_0, epochs=2).callback_metrics
    assert list(with_0.objective.terms) == ["ce", "kd"]
    assert with_0.projector is None
    assert_equal(without.state_dict(), with_0.state_dict())
    assert_equal(*metrics)


def test_every_method_has_the_same_start_and_data(fit, make_module, terms, tiny_data):
    seen = []
    for names in (["ce"], ["ce", "kd"], ["ce", "kd", "nd"], ["ce", "review"]):
        watch = Watch()
        fit(make_module(terms(*names), narrow=True), watch, data=tiny_data(pad=1), epochs=2)
        images, targets = (torch.cat(parts) for parts in zip(*watch.batches, strict=True))
        seen.append(watch.start | {"images": images, "targets": targets})
    for other in seen[1:]:
        assert_equal(seen[0], other)
    assert not torch.equal(images[:20], images[20:])  # another order in the second epoch


def test_linear_std_draws_the_classifier_and_nothing_else(fit, make_module, terms):
    found = {}
    for std, names in ((None, ["ce"]), (0.5, ["ce"]), (0.5, ["ce", "kd", "nd"])):
        watch = Watch()
        fit(make_module(terms(*names), linear_std=std), watch)
        found[std, len(names)] = watch.start
    plain, drawn, other_method = found.values()
    assert_equal(drawn, other_method)
    classifier = {name for name in plain if not torch.equal(plain[name], drawn[name])}
    assert classifier == {"model.fc.weight", "model.fc.bias"}
    assert drawn["model.fc.weight"].std() == pytest.approx(0.5, rel=0.1)
    assert drawn["model.fc.bias"].std() == pytest.approx(0.5, rel=0.6)


def test_linear_std_leaves_weights_that_the_student_brings(fit, make_module, terms, teacher_checkpoint):
    watch = Watch()
    student = ModelConfig("cifar/resnet8", checkpoint=teacher_checkpoint)
    fit(make_module(terms("ce"), student=student, linear_std=1.0), watch)
    wanted = torch.load(teacher_checkpoint, weights_only=True)
    assert torch.equal(watch.start["model.fc.weight"], wanted["fc.weight"])


@pytest.mark.parametrize("name", ["projector_std", "linear_std"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_a_standard_deviation_that_is_none(make_module, terms, name, value):
    with pytest.raises(NdkdError, match=f"^{name}: wanted a standard deviation, got {value}$"):
        make_module(terms("ce"), **{name: value})


def test_another_seed_is_another_student(fit, make_module, terms):
    first, second = Watch(), Watch()
    fit(make_module(terms("ce")), first, seed=0)
    fit(make_module(terms("ce")), second, seed=1)
    assert not torch.equal(first.start["model.conv1.weight"], second.start["model.conv1.weight"])


@pytest.mark.parametrize(
    ("losses", "narrow", "built"),
    [
        ({"ce": (nn.CrossEntropyLoss(), ["student.logits", "target"])}, True, set()),
        ({"sifn": (SIFNLoss(), None)}, True, set()),
        ({"kd": (KDLoss(), None)}, True, {"teacher"}),
        ({"l2": (L2Loss(), None)}, False, {"teacher"}),
        ({"l2": (L2Loss(), None)}, True, {"teacher", "projector"}),
        ({"cosine": (CosineLoss(), None)}, False, {"teacher", "class_means"}),
        ({"cosine": (CosineLoss(), None)}, True, {"teacher", "projector", "class_means"}),
        ({"cosine": (CosineLoss(), ["teacher.embedding", "class_means", "target"]), "sifn": (SIFNLoss(), None)}, True,
         {"teacher", "class_means"}),
    ],
)  # fmt: skip
def test_declared_inputs_decide_what_is_built(fit, make_module, losses, narrow, built):
    module = make_module({name: LossTerm(loss, inputs=inputs) for name, (loss, inputs) in losses.items()}, narrow)
    fit(module)
    parts = {"teacher": module.teacher, "projector": module.projector, "class_means": module.class_means}
    assert {name for name, part in parts.items() if part is not None} == built


def test_total_is_the_weighted_sum(fit, make_module, terms):
    losses = terms(ce=0.5, kd=2.0, nd=1.5)
    losses["kd"].warmup_epochs = 2
    module, watch = make_module(losses, lr=1e-30), Watch()
    fit(module, watch, epochs=3, limit_train_batches=1)
    module.train()
    for epoch, (images, target) in enumerate(watch.batches):
        student, teacher = module.student(images), module.teacher(images)
        ce = F.cross_entropy(student.logits, target)
        kd = kd_loss(student.logits, teacher.logits)
        nd = nd_loss(student.embedding, teacher.embedding, module.class_means, target)
        total = 0.5 * ce + 2.0 * min(1, epoch / 2) * kd + 1.5 * nd
        torch.testing.assert_close(watch.losses[epoch], total.detach())
        gradients = torch.autograd.grad(total, list(module.student.parameters()))
        torch.testing.assert_close(watch.gradients[epoch], list(gradients))
    assert len(watch.batches) == 3


# ---- mistakes ---


@pytest.mark.parametrize(
    ("losses", "options", "message"),
    [
        ({"ce": LossTerm(nn.CrossEntropyLoss(), inputs=["student.logit", "target"])}, {},
         "loss ce: nothing provides 'student.logit'; on offer: student.logits, student.embedding, student.norm, "
         "student.projected, student.feature_maps, target"),
        ({"mse": LossTerm(nn.MSELoss(), inputs=["student.logits", "teacher.score"])}, {},
         "loss mse: nothing provides 'teacher.score'; on offer: student.logits, student.embedding, student.norm, "
         "student.projected, student.feature_maps, target, teacher.logits, teacher.embedding, teacher.norm, "
             "teacher.projected, teacher.feature_maps"),
        ({"mse": LossTerm(nn.MSELoss())}, {},
         "loss mse: MSELoss does not say its inputs; set losses.mse.inputs"),
        ({"review": LossTerm(ReviewKDLoss())}, {"student": build_model("cifar/resnet8", 10)},
         "the losses want student.feature_maps, and the taps of ResNet are not known: name them, shallow to deep, with "
         "FeatureExtractor(student, taps=[LAYER, …]); its layers are conv1, bn1, "),
        ({"review": LossTerm(ReviewKDLoss())}, {"student": ModelConfig("cifar/resnet8", taps=["layer3"])},
         "loss review: ReviewKD wants as many student taps as teacher taps, each a map (c, h, w), got [(64, 2, 2)] "
         "and [(16, 8, 8), (32, 4, 4), (64, 2, 2), (64, 1, 1)]"),
        ({"l2": LossTerm(L2Loss(), inputs=["student.embedding", "teacher.embedding"])}, {"narrow": True},
         "loss l2: wanted tensors of one shape (N, D), got student_embedding (2, 16) and teacher_embedding (2, 64)"),
        ({"kd": LossTerm(KDLoss(), inputs=["student.logits"])}, {},
         "loss kd: KDLoss.forward() missing 1 required positional argument: 'teacher_logits'"),
        ({"kd": LossTerm(KDLoss())}, {"teacher": None},
         "the losses want teacher.logits, but there is no teacher: set teacher.name, teacher.checkpoint"),
        ({"kd": LossTerm(KDLoss())}, {"teacher": ModelConfig("cifar/resnet8")},
         "teacher cifar/resnet8 has no weights: set teacher.checkpoint to a file, or pretrained: true"),
        ({"kd": LossTerm(KDLoss())}, {"teacher": ModelConfig("cifar/resnet8", checkpoint="nowhere.pth")},
         "checkpoint nowhere.pth does not exist; train it first or correct the path"),
        ({"kd": LossTerm(KDLoss(), weight=0.0)}, {},
         "no loss has a weight other than 0; give at least one term under losses"),
        (None, {}, "no loss has a weight other than 0; give at least one term under losses"),
    ],
)  # fmt: skip
def test_mistakes(fit, make_module, losses, options, message):
    with pytest.raises(NdkdError, match=f"^{re.escape(message)}"):
        fit(make_module(losses, **options))


def test_number_of_classes_unknown(fit, make_module, terms):
    with pytest.raises(
        NdkdError, match="^the number of classes is unknown: use a DataModule with num_classes, or give"
    ):
        fit(make_module(terms("ce")), loaders={"train_dataloaders": foreign_loader()})
    module = make_module(terms("ce"), num_classes=10)
    fit(module, loaders={"train_dataloaders": foreign_loader()})
    assert module.student.num_classes == 10


# ---- targets and images ---


class Mixed(TinyData):
    """Training images with soft targets."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        images, target = batch
        return (images, F.one_hot(target, 10).float().roll(1, 0) / 2 + 0.05) if self.trainer.training else batch


def test_soft_targets(fit, make_module, terms):
    """ND compares with a mixture of class means, which are those of the plain images."""
    plain, module, watch = make_module(terms("nd")), make_module(terms("ce", "nd")), Watch()
    fit(plain, data=Mixed(), limit_train_batches=0)
    trainer = fit(module, watch, data=Mixed(), limit_train_batches=1)
    assert torch.equal(module.class_means, plain.class_means)
    assert watch.batches[0][1].shape == (8, 10)
    assert 0 <= trainer.callback_metrics["val/acc1"] <= 1
    with torch.no_grad():
        output = module.forward_pair(watch.batches[0])
        means = watch.batches[0][1] @ module.class_means
        s, t = output.student.projected, output.teacher.embedding
        cosine = (s * F.normalize(means)).sum(dim=1) / torch.maximum(s.norm(dim=1), t.norm(dim=1))
        torch.testing.assert_close(module.losses["nd"].loss(s, t, module.class_means, output.target), 1 - cosine.mean())


def test_bytes_are_as_good_as_numbers(fit, make_module, terms):
    images, target = torch.randint(0, 256, (10, 3, 32, 32), dtype=torch.uint8), torch.arange(10)
    found = []
    for kind in (images, images.float().div(255)):
        module = make_module(terms("ce", "kd", "nd"), num_classes=10)
        loader = DataLoader(TensorDataset(kind, target), batch_size=5)
        trainer = fit(module, loaders={"train_dataloaders": loader, "val_dataloaders": loader})
        found.append({name: value.item() for name, value in trainer.callback_metrics.items()})
    assert found[0] == found[1]


# ---- metrics ---


@pytest.mark.parametrize("num_classes", [3, 10])
def test_metrics(fit, make_module, terms, tiny_data, num_classes):
    data = tiny_data(num_classes=num_classes, val_size=19)
    module = make_module(terms("ce"))
    trainer = fit(module, data=data)
    images, target = (torch.cat(parts) for parts in zip(*data.val_dataloader(), strict=True))
    logits = module.eval().student(images).logits.detach()
    ranked = logits.argsort(dim=1, descending=True)
    hits = ranked == target[:, None]
    wanted = {"acc1": hits[:, 0].float().mean()}
    if num_classes > 5:
        wanted["acc5"] = hits[:, :5].any(dim=1).float().mean()
    wanted["balanced_acc"] = torch.stack([hits[target == k, 0].float().mean() for k in range(num_classes)]).mean()
    wanted["cross_entropy"] = F.cross_entropy(logits, target)
    found = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    assert found.keys() == {f"val/{name}" for name in wanted}
    for name, value in wanted.items():
        torch.testing.assert_close(found[f"val/{name}"], value)
    tested = trainer.test(module, datamodule=data, verbose=False)[0]
    assert tested == {name.replace("val/", "test/"): pytest.approx(value.item()) for name, value in found.items()}


@pytest.mark.parametrize("num_classes", [2, 1001])
def test_few_and_many_classes(fit, terms, tiny_data, tmp_path, num_classes):
    torch.save(build_model("cifar/resnet8", num_classes).state_dict(), tmp_path / "teacher.pth")
    teacher = ModelConfig("cifar/resnet8", tmp_path / "teacher.pth")
    module = DistillationModule(ModelConfig("cifar/resnet8"), terms("ce", "kd", "nd"), teacher)
    data = tiny_data(size=num_classes * 2, num_classes=num_classes, val_size=num_classes, batch_size=500)
    metrics = fit(module, data=data).callback_metrics
    assert module.class_means.shape == (num_classes, 64)
    assert 0 <= metrics["val/acc1"] <= 1
    assert ("val/acc5" in metrics) == (num_classes > 5)


def test_epoch_means_of_the_losses(fit, make_module, terms):
    losses = terms("ce", kd=3.0)
    values = {name: [] for name in losses}
    for name, term in losses.items():
        term.loss.register_forward_hook(lambda *args, kept=values[name]: kept.append(args[-1].item()))
    metrics = fit(make_module(losses), epochs=2).callback_metrics
    means = {name: sum(kept[-3:]) / 3 for name, kept in values.items()}  # three steps an epoch, the last epoch's
    assert metrics["train/ce"].item() == pytest.approx(means["ce"])
    assert metrics["train/kd"].item() == pytest.approx(means["kd"])
    assert metrics["train/loss"].item() == pytest.approx(means["ce"] + 3 * means["kd"])
    assert metrics["train/lr"].item() == pytest.approx(0.1)


def test_predictions(fit, make_module, terms, tiny_data):
    data, module = tiny_data(), make_module(terms("ce"))
    rows = [row for batch in fit(module, data=data).predict(module, datamodule=data) for row in batch]
    images, target = (torch.cat(parts) for parts in zip(*data.val_dataloader(), strict=True))
    confidence, predicted = module.eval().student(images).logits.softmax(dim=1).max(dim=1)
    assert [row["prediction"] for row in rows] == [f"class {k}" for k in predicted]
    assert [row["target"] for row in rows] == [f"class {k}" for k in target]
    assert [row["confidence"] for row in rows] == pytest.approx(confidence.tolist(), abs=1e-5)
