"""The objective, the models and the checkpoints of a run, whatever its loss terms."""

import re
import shutil
from functools import partial

import lightning.pytorch as L
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from ndkd.callbacks import checkpoint_callbacks
from ndkd.distillation.module import DistillationModule
from ndkd.distillation.objective import LossTerm
from ndkd.errors import NdkdError
from ndkd.losses import CosineLoss, HardKDLoss, KDLoss, L2Loss, NDLoss, ReviewKDLoss, SIFNLoss, kd_loss, nd_loss
from ndkd.models import FeatureExtractor, ModelConfig, build_model
from ndkd.runs import Run
from ndkd.schedules import WarmupCosineLR
from tests.tiny_data import TAPS, TinyData


class Watch(L.Callback):
    """Keeps student and teacher at the start, and batch, modes, loss and gradients of every step."""

    def on_train_start(self, trainer, pl_module):
        self.start = copied(pl_module.student)
        self.teacher = pl_module.teacher and copied(pl_module.teacher)
        self.batches, self.modes, self.losses, self.gradients = [], [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch)
        teacher = pl_module.teacher
        self.modes.append((is_training(pl_module.student), teacher is not None and is_training(teacher)))

    def on_after_backward(self, trainer, pl_module):
        self.gradients.append([p.grad.clone() for p in pl_module.student.parameters()])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"])


class Spoiled(nn.Module):
    """A loss whose value and gradient are not finite from one step on."""

    inputs = ("student.logits",)

    def __init__(self, step, value):
        super().__init__()
        self.step, self.value, self.calls = step, value, 0

    def forward(self, logits):
        self.calls += self.training
        return logits.square().mean() * (self.value if self.calls > self.step else 1.0)


class Viewing(nn.Module):
    """A classifier that flattens its maps with ``view``."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4 * 6 * 6, 10)

    def forward(self, images):
        return self.fc(self.conv(images).view(len(images), -1))


class Small(nn.Module):
    """A student that compiles in a moment."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, num_classes)

    def forward(self, images):
        return self.fc(self.norm(self.conv(images)).relu().mean((2, 3)))


def is_training(module):
    """Whether all parts are in train mode; None where they differ."""
    modes = {part.training for part in module.modules()}
    return modes.pop() if len(modes) == 1 else None


def copied(module):
    """The state of a module, which training then leaves alone."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_equal(left, right):
    assert left.keys() == right.keys()
    assert not [name for name in left if not torch.equal(left[name], right[name])]


def foreign_loader(size=20, shuffle=False):
    random = torch.Generator().manual_seed(0)
    images, target = torch.rand(size, 3, 8, 8, generator=random), torch.arange(size) % 10
    return DataLoader(TensorDataset(images, target), batch_size=8, shuffle=shuffle)


# ---- terms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("warmup_epochs", "epoch", "factor"), [(0, 0, 2.0), (4, 0, 0.0), (4, 1, 0.5), (4, 4, 2.0), (4, 9, 2.0)]
)
def test_factor(warmup_epochs, epoch, factor):
    assert LossTerm(nn.MSELoss(), weight=2.0, warmup_epochs=warmup_epochs).factor(epoch) == factor


@pytest.mark.parametrize(("epoch", "factor"), [(0, 0.5), (2, 1.5), (3, 2.0), (9, 2.0)])
def test_epochs_of_the_warmup_may_be_counted_from_one(epoch, factor):
    assert LossTerm(nn.MSELoss(), weight=2.0, warmup_epochs=4, warmup_from=1).factor(epoch) == factor


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


@pytest.mark.parametrize("name", ["warmup_epochs", "warmup_from"])
def test_negative_warmup(name):
    with pytest.raises(NdkdError, match=f"^{name}: wanted 0 or more, got -1$"):
        LossTerm(nn.MSELoss(), **{name: -1})


# ---- mistakes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "options", "message"),
    [
        ({"ce": LossTerm(nn.CrossEntropyLoss(), inputs=["student.logit", "target"])}, {},
         "loss ce: nothing provides 'student.logit'; on offer: student.logits, student.embedding, student.projected, "
         "student.feature_maps, target"),
        ({"mse": LossTerm(nn.MSELoss(), inputs=["student.logits", "teacher.score"])}, {},
         "loss mse: nothing provides 'teacher.score'; on offer: student.logits, student.embedding, student.projected, "
         "student.feature_maps, target, teacher.logits, teacher.embedding, teacher.projected, teacher.feature_maps"),
        ({"mse": LossTerm(nn.MSELoss())}, {},
         "loss mse: MSELoss does not say its inputs; set losses.mse.inputs"),
        ({"review": LossTerm(ReviewKDLoss())}, {"student": ModelConfig("cifar/resnet8")},
         "loss review: nothing provides 'student.feature_maps'; set taps of the student; on offer: student.logits"),
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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_loss_that_is_not_finite(fit, make_module, terms, tmp_path, value):
    run = Run(tmp_path)
    losses = terms("ce") | {"spoiled": LossTerm(Spoiled(step=5, value=value))}  # the last of two epochs' six steps
    message = f"^loss spoiled became {value} in epoch 1, the last checkpoint is of epoch 0; lower the learning rate"
    with pytest.raises(NdkdError, match=message):
        fit(make_module(losses), *checkpoint_callbacks(run), epochs=3)
    assert torch.load(run.checkpoint("last"), weights_only=True)["epoch"] == 0


def test_the_term_that_broke_is_named_though_it_spoils_the_others(fit, make_module, terms, tmp_path):
    run = Run(tmp_path)
    losses = terms("ce") | {"spoiled": LossTerm(Spoiled(step=0, value=float("nan")))}
    with pytest.raises(NdkdError, match="^loss spoiled became nan in epoch 0, there is no checkpoint yet; lower the"):
        fit(make_module(losses), *checkpoint_callbacks(run))
    assert not list(tmp_path.rglob("*.ckpt"))


# ---- models -----------------------------------------------------------------------------------------------------


def test_baseline_reads_no_teacher(fit, make_module, terms):
    module = make_module(terms("ce", kd=0.0), teacher=ModelConfig("cifar/resnet8", checkpoint="nowhere.pth"))
    fit(module)
    assert module.teacher is None


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_evaluation_needs_no_teacher(make_module, make_trainer, terms, tiny_data, command):
    module = make_module(terms("kd", "nd"), teacher=ModelConfig("cifar/resnet8", checkpoint="nowhere.pth"))
    assert getattr(make_trainer(), command)(module, datamodule=tiny_data())
    assert module.teacher is None


@pytest.mark.parametrize("ready", [False, True])
def test_teacher_is_frozen_and_all_else_is_trained(fit, make_module, terms, ready_models, ready):
    options = {"teacher": FeatureExtractor(ready_models[1], taps=TAPS)} if ready else {}
    module, watch = make_module(terms("ce", "kd", "nd", "review"), narrow=True, **options), Watch()
    before = copied(ready_models[1])
    trainer = fit(module, watch, epochs=2)
    assert_equal(module.teacher.state_dict(), watch.teacher)
    assert_equal(ready_models[1].state_dict(), before)
    assert set(watch.modes) == {(True, False)}
    assert all(p.grad is None and not p.requires_grad for p in module.teacher.parameters())
    names = {f"teacher.{name}" for name, _ in (*module.teacher.named_parameters(), *module.teacher.named_buffers())}
    assert set(module._ddp_params_and_buffers_to_ignore) == names | {"class_means"}
    trained = [*module.student.parameters(), *module.projector.parameters(), *module.objective.parameters()]
    in_optimizer = trainer.optimizers[0].param_groups[0]["params"]
    assert {id(p) for p in in_optimizer} == {id(p) for p in trained}
    assert [(p.in_features, p.out_features) for p in module.projector if isinstance(p, nn.Linear)] == [(16, 64)]
    assert len(list(module.objective.get_submodule("review").fusions)) == 4
    assert not [name for name, tensor in module.student.state_dict().items() if torch.equal(tensor, watch.start[name])]


def test_a_teacher_from_a_file_is_folded_and_a_ready_one_is_not(fit, make_module, terms, ready_models):
    images = torch.rand(2, 3, 8, 8)
    module, ready = make_module(terms("ce", "kd")), ready_models[1]
    before = ready.eval()(images)
    fit(module)
    assert not [name for name in module.teacher.state_dict() if "bn" in name]
    fit(make_module(terms("ce", "kd"), teacher=ready))
    torch.testing.assert_close(ready(images), before)
    assert "bn1.running_mean" in ready.state_dict()


@pytest.fixture
def ready_models():
    """A narrow student, handed out in evaluation mode, and a teacher."""
    torch.manual_seed(0)
    return build_model("cifar/resnet8", 10, widths=[8, 8, 8, 16]).eval(), build_model("cifar/resnet8", 10)


def test_ready_models_and_a_plain_loader(fit, terms, ready_models):
    student, teacher = ready_models
    module, watch = DistillationModule(student, terms("ce", "kd", "nd"), teacher), Watch()
    loaders = {"train_dataloaders": foreign_loader(shuffle=True), "val_dataloaders": foreign_loader(10)}
    trainer = fit(module, watch, loaders=loaders)
    assert set(watch.modes) == {(True, False)}
    assert module.student.model is student
    images, target = next(iter(DataLoader(foreign_loader().dataset, 20)))
    embedding = module.teacher(images).embedding
    means = torch.stack([embedding[target == k].mean(dim=0) for k in range(10)])
    torch.testing.assert_close(module.class_means, means, rtol=1e-5, atol=1e-6)
    assert {"train/nd", "val/acc1", "val/acc5"} <= set(trainer.callback_metrics)


def test_checkpoint_of_ready_models(fit, terms, ready_models, tmp_path):
    student, teacher = ready_models
    run, module = Run(tmp_path), DistillationModule(student, terms("ce", "nd"), teacher)
    loaders = {"train_dataloaders": foreign_loader(), "val_dataloaders": foreign_loader(10)}
    fit(module, *checkpoint_callbacks(run), loaders=loaders)
    content = torch.load(run.checkpoint("last"), weights_only=True)
    assert {key.split(".")[0] for key in content["state_dict"]} == {"student", "projector", "class_means"}
    other = build_model("cifar/resnet8", 10, widths=[8, 8, 8, 16])
    loaded = DistillationModule.load_from_checkpoint(run.checkpoint("last"), student=other, weights_only=True)
    assert_equal(loaded.student.model.state_dict(), student.state_dict())


def test_a_ready_extractor_is_used_as_it_is(fit, make_module, terms):
    extractor = FeatureExtractor(build_model("cifar/resnet8", 10), mean=[0.5] * 3, std=[0.5] * 3)
    module = make_module(terms("ce"), student=extractor.eval())
    fit(module)
    assert module.student is extractor


@pytest.mark.parametrize("channels_last", [True, False])
def test_channels_last(fit, make_module, terms, channels_last):
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    layouts = []
    model = build_model("cifar/resnet8", 10)
    model.register_forward_pre_hook(
        lambda _, inputs: layouts.append(inputs[0].is_contiguous(memory_format=memory_format))
    )
    module = make_module(terms("ce", "kd"), student=model, channels_last=channels_last)
    fit(module)
    weights = [module.student.model.layer2[0].conv1.weight, module.teacher.model.layer2[0].conv1.weight]
    assert all(weight.is_contiguous(memory_format=memory_format) for weight in weights)
    assert layouts
    assert all(layouts)


def test_a_model_that_views(fit, make_module, terms):
    message = "^a model cannot work on channels-last images: set channels_last: false$"
    with pytest.raises(NdkdError, match=message):
        fit(make_module(terms("ce"), student=Viewing()))
    trainer = fit(make_module(terms("ce"), student=Viewing(), channels_last=False))
    assert "val/acc1" in trainer.callback_metrics


class Picky(Viewing):
    """A classifier for images of another size."""

    def forward(self, images):
        raise AssertionError("Input height (8) doesn't match model (224).")


def test_a_model_for_other_images(fit, make_module, terms):
    message = "^a model does not accept images of 3 × 8 × 8: Input height \\(8\\) doesn't match model \\(224\\)\\.$"
    with pytest.raises(NdkdError, match=message):
        fit(make_module(terms("ce"), student=Picky()))


def test_class_means_that_nobody_computes(make_module, make_trainer, terms, tiny_data):
    with pytest.raises(NdkdError, match=r"^there are no class means: give the trainer callbacks=\[ClassMeans\(\)\]$"):
        make_trainer().fit(make_module(terms("ce", "nd")), datamodule=tiny_data())


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_models_train_as_plain_ones(fit, make_module, terms, tiny_data, tmp_path):
    name, weights, runs = f"{__name__}:Small", tmp_path / "small.pth", []
    torch.save(Small(10).state_dict(), weights)
    for mode in (None, "default"):
        models = {"student": ModelConfig(name, compile=mode), "teacher": ModelConfig(name, weights, compile=mode)}
        module, watch, run = make_module(terms("ce", "kd"), **models), Watch(), Run(tmp_path / str(mode))
        fit(module, watch, *checkpoint_callbacks(run), data=tiny_data(size=16, val_size=8))
        runs.append(watch)
        assert {model._compiled_call_impl is None for model in (module.student, module.teacher)} == {mode is None}
    torch.testing.assert_close(runs[1].losses, runs[0].losses, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(runs[1].gradients, runs[0].gradients, rtol=1e-3, atol=1e-4)
    content = torch.load(run.checkpoint("last"), weights_only=True)
    assert content["hyper_parameters"]["student"]["compile"] is None
    assert "student.model.fc.weight" in content["state_dict"]


def test_losses_are_in_float32_under_autocast(fit, make_module, terms):
    seen, losses = [], terms("ce", "kd", "nd", "review")
    for term in losses.values():
        term.loss.register_forward_hook(lambda loss, inputs, value: seen.append((inputs[0], value)))
    trainer = fit(make_module(losses, narrow=True), precision="bf16-mixed")
    assert {value.dtype for inputs, value in seen} == {torch.float32}
    assert torch.bfloat16 in {inputs.dtype for inputs, value in seen if torch.is_tensor(inputs)}
    assert all(value.isfinite() for value in trainer.callback_metrics.values())


@pytest.mark.parametrize(("interval", "rate"), [("epoch", 0.5**2), ("step", 0.5**6)])
def test_lr_interval(fit, make_module, terms, interval, rate):
    schedule = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    module = make_module(terms("ce"), lr=1.0, lr_scheduler=schedule, lr_interval=interval)
    metrics = fit(module, epochs=3).callback_metrics
    assert metrics["train/lr"].item() == rate  # at the start of the last epoch, after two epochs of three steps


@pytest.fixture
def of_letters(teacher_checkpoint, tmp_path):
    """A model whose checkpoint names its classes a to j."""
    content = {"model": torch.load(teacher_checkpoint, weights_only=True)}
    torch.save(content | {"hyper_parameters": {"class_names": list("abcdefghij")}}, tmp_path / "letters.ckpt")
    return ModelConfig("cifar/resnet8", tmp_path / "letters.ckpt")


def test_a_teacher_of_other_classes(fit, make_module, terms, tiny_data, of_letters):
    watch = Watch()
    with pytest.raises(NdkdError, match="letters.ckpt does not know 10 of the data's 10 classes: class 0, class 1, "):
        fit(make_module(terms("kd"), teacher=of_letters), watch)
    assert not hasattr(watch, "start")
    data = tiny_data()
    data.class_names = "abcdefghij"
    module = make_module(terms("kd"), teacher=of_letters)
    fit(module, data=data, limit_train_batches=1)
    assert module.class_names == list("abcdefghij")


def test_a_student_may_start_from_other_classes(fit, make_module, terms, tiny_data, of_letters):
    data = tiny_data()
    data.class_names = range(10)
    module = make_module(terms("kd"), student=of_letters)
    fit(module, data=data, limit_train_batches=1)
    assert module.class_names == list("0123456789")


def test_a_teacher_of_other_classes_will_do_for_its_embedding(fit, make_module, terms, tmp_path):
    """A classifier of 7 classes, which no term asks for its logits."""
    torch.save(build_model("cifar/resnet8", 7).state_dict(), tmp_path / "seven.pth")
    teacher = ModelConfig("cifar/resnet8", tmp_path / "seven.pth", pretrained=True)
    module = make_module(terms("ce", "nd"), teacher=teacher)
    fit(module, limit_train_batches=1)
    assert module.class_means.isfinite().all()
    with pytest.raises(NdkdError, match=r"seven.pth has 7 classes without names, the data has 10: train a teacher on"):
        fit(make_module(terms("ce", "kd"), teacher=teacher))


def test_a_teacher_of_more_classes(fit, make_module, terms, tiny_data, tmp_path):
    names = [f"class {k}" for k in reversed(range(12))]
    state = build_model("cifar/resnet8", 12).state_dict()
    torch.save({"model": state, "hyper_parameters": {"class_names": names}}, tmp_path / "twelve.ckpt")
    module = make_module(terms("kd"), teacher=ModelConfig("cifar/resnet8", tmp_path / "twelve.ckpt"))
    fit(module, limit_train_batches=1)
    assert torch.equal(module.teacher.model.fc.weight, state["fc.weight"].flip(0)[:10])


# ---- several classifiers ------------------------------------------------------------------------------------------


class TwoHeads(nn.Module):
    """As DeiT's students: the logits are the mean of two heads."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 64, 8), nn.Flatten())
        self.head, self.head_dist = nn.Linear(64, 10), nn.Linear(64, 10)

    def forward(self, images):
        x = self.body(images)
        return (self.head(x) + self.head_dist(x.relu())) / 2


def test_a_term_for_each_head(fit, make_module):
    losses = {
        "ce": LossTerm(nn.CrossEntropyLoss(label_smoothing=0.1), inputs=["student.extra.head", "target"]),
        "hard": LossTerm(HardKDLoss(), 0.5, inputs=["student.extra.head_dist", "teacher.logits"]),
        "nd": LossTerm(NDLoss(), 1.5),
    }
    student = FeatureExtractor(TwoHeads(), ["head", "head_dist"])
    watch, module = Watch(), make_module(losses, student=student)
    fit(module, watch, limit_train_batches=1)
    module.train()
    output = module.forward_pair(watch.batches[0])
    x = student.model.body(watch.batches[0][0])
    torch.testing.assert_close(output.student.embedding, (x + x.relu()) / 2)
    torch.testing.assert_close(output.student.extra.head, student.model.head(x))
    torch.testing.assert_close(output.student.extra.head_dist, student.model.head_dist(x.relu()))
    torch.testing.assert_close(output.student.logits, (output.student.extra.head + output.student.extra.head_dist) / 2)
    assert all(gradient.any() for gradient in watch.gradients[0])


def test_a_head_that_is_not_there(fit, make_module):
    losses = {"ce": LossTerm(nn.CrossEntropyLoss(), inputs=["student.extra.head", "target"])}
    offer = "on offer: student.logits, student.embedding, student.projected, student.feature_maps, target"
    with pytest.raises(NdkdError, match=f"loss ce: nothing provides 'student.extra.head'; {offer}$"):
        fit(make_module(losses))


# ---- targets and images -------------------------------------------------------------------------------------------


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


# ---- optimizer ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", ["all", "matrices", "recommended"])
def test_which_parameters_decay(fit, make_module, terms, decay):
    optimizer = partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.3)
    module = make_module(terms("ce", "nd"), narrow=True, optimizer=optimizer, decay=decay)
    fit(module, limit_train_batches=1)
    (optimizer,) = module.trainer.optimizers
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    names = {id(p): name for name, p in module.named_parameters() if p.requires_grad}
    assert decays.keys() == names.keys()
    for key, found in decays.items():
        name = names[key]
        is_vector = name.endswith(".bias") or ".bn" in name or "downsample.1" in name or name == "projector.0.weight"
        assert found == (0.3 if decay == "all" or not is_vector else 0), name


@pytest.mark.parametrize(
    ("decay", "exempt"), [("matrices", set()), ("recommended", {"cls_token", "dist_token", "pos_embed"})]
)
def test_timms_own_exceptions(fit, make_module, terms, decay, exempt):
    kwargs = {"img_size": 8, "patch_size": 4, "depth": 1, "embed_dim": 12, "num_heads": 2}
    student = ModelConfig("timm/deit_tiny_distilled_patch16_224", kwargs=kwargs)
    module = make_module(terms("ce"), student=student, decay=decay)
    fit(module, limit_train_batches=1)
    spared = {id(p) for p in module.trainer.optimizers[0].param_groups[1]["params"]}
    found = {name for name, p in module.student.model.named_parameters() if id(p) in spared and p.ndim > 1}
    assert found == exempt


@pytest.mark.parametrize(("interval", "total"), [("step", 6), ("epoch", 2)])
def test_a_schedule_is_told_how_long_it_is(fit, make_module, terms, interval, total):
    asked = []

    def schedule(optimizer, total_steps):
        asked.append(total_steps)
        return WarmupCosineLR(optimizer, total_steps)

    module = make_module(terms("ce"), lr_scheduler=partial(schedule, total_steps=None), lr_interval=interval)
    fit(module, epochs=2)
    assert set(asked) == {total}  # of the rehearsal and of the run
    assert module.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)
    module = make_module(terms("ce"), lr_scheduler=partial(schedule, total_steps=7), lr_interval=interval)
    fit(module)
    assert set(asked) == {total, 7}


def test_a_schedule_over_a_training_without_end(fit, make_module, terms):
    module = make_module(terms("ce"), lr_scheduler=partial(WarmupCosineLR, total_steps=None), lr_interval="step")
    with pytest.raises(NdkdError, match="^lr_scheduler: it must know how long the training is: set trainer.max_epochs"):
        fit(module, epochs=-1)


# ---- metrics ----------------------------------------------------------------------------------------------------


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


# ---- checkpoints ------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(fit, make_module, terms, tmp_path):
    """A module with a projector and fusions, and the file of its last checkpoint."""
    run, module = Run(tmp_path), make_module(terms("ce", "kd", "nd", "review"), narrow=True)
    fit(module, *checkpoint_callbacks(run))
    return module, run.checkpoint("last")


def is_primitive(value):
    if isinstance(value, dict):
        return all(is_primitive(part) for part in (*value, *value.values()))
    if isinstance(value, list):
        return all(map(is_primitive, value))
    return value is None or type(value) in (bool, int, float, str)


def test_content_of_a_checkpoint(trained):
    module, file = trained
    content = torch.load(file, weights_only=True)
    parts = {key.split(".")[0] for key in content["state_dict"]}
    assert parts == {"student", "projector", "objective", "class_means"}
    torch.testing.assert_close(content["state_dict"]["class_means"], module.class_means, rtol=0, atol=0)
    stored = content["hyper_parameters"]
    assert is_primitive(stored)
    assert stored["format"] == 1
    assert stored["num_classes"] == 10
    assert stored["class_names"] == [f"class {k}" for k in range(10)]
    assert stored["student"]["name"] == "cifar/resnet8"
    assert stored["student"]["kwargs"] == {"widths": [8, 8, 8, 16]}
    assert stored["student"]["mean"] == [0.4, 0.5, 0.6]
    assert stored["student"]["std"] == [0.2, 0.3, 0.2]


def test_loading_needs_no_teacher_and_no_losses(trained, tiny_data):
    module, file = trained
    loaded = DistillationModule.load_from_checkpoint(file, weights_only=True)
    assert loaded.teacher is None
    images = next(iter(tiny_data().val_dataloader()))[0]
    logits = [m.eval().student(images.to(memory_format=torch.channels_last)).logits for m in (module, loaded)]
    assert torch.equal(*logits)
    assert torch.equal(loaded.class_means, module.class_means)
    assert loaded.class_names == [f"class {k}" for k in range(10)]


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (ModelConfig("cifar/resnet14", kwargs={"widths": [8, 8, 8, 16]}),
         "the checkpoint does not fit the model; missing: student.model.layer1.1.conv1.weight, "),
        (ModelConfig("cifar/resnet8", kwargs={"widths": [8, 8, 8, 24]}),
         "the checkpoint does not fit the model; wrongly shaped: student.model.layer3.0.conv1.weight (16, 8, 3, 3) "
         "instead of (24, 8, 3, 3), "),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["fit", "test"])
def test_checkpoint_of_another_architecture(
    trained, make_module, make_trainer, terms, tiny_data, student, message, command
):
    module = make_module(terms("ce"), student=student)
    entry = getattr(make_trainer(epochs=2), command)
    with pytest.raises(NdkdError, match=f"^{re.escape(message)}"):
        entry(module, datamodule=tiny_data(), ckpt_path=trained[1], weights_only=True)


def test_configuration_that_differs_from_the_checkpoint(trained, make_module, make_trainer, terms, tiny_data, capsys):
    kwargs, taps = {"widths": [8, 8, 8, 16]}, ["layer1", "layer2", "layer3", "avgpool"]
    for mean, said in (
        (None, ""),
        (
            [0.5, 0.5, 0.5],
            "ndkd: student.mean is [0.5, 0.5, 0.5] in the configuration, [0.4, 0.5, 0.6] in the checkpoint\n",
        ),
    ):
        config = ModelConfig("cifar/resnet8", taps=taps, mean=mean, std=mean and [0.2, 0.3, 0.2], kwargs=kwargs)
        module = make_module(terms("ce"), student=config)
        make_trainer().test(module, datamodule=tiny_data(), ckpt_path=trained[1], weights_only=True, verbose=False)
        assert capsys.readouterr().out == said
    assert module.student.mean.flatten().tolist() == [0.5, 0.5, 0.5]


class Shuffled(L.Callback):
    """Uses up random numbers before training, as another process would have."""

    def on_train_start(self, trainer, pl_module):
        torch.rand(7)


@pytest.mark.parametrize("stopped_after", [1, 2])
def test_resume_is_bit_identical(fit, make_module, terms, tiny_data, tmp_path, stopped_after):
    schedule = partial(torch.optim.lr_scheduler.MultiStepLR, milestones=[1, 2])

    def run(folder, epochs, *callbacks, ckpt_path=None):
        module = make_module(terms("ce", "kd", "nd", "review"), narrow=True, lr_scheduler=schedule)
        callbacks = (*checkpoint_callbacks(Run(tmp_path / folder)), *callbacks)
        trainer = fit(module, *callbacks, data=tiny_data(pad=1), epochs=epochs, ckpt_path=ckpt_path)
        return module.state_dict(), dict(trainer.callback_metrics), trainer.optimizers[0].state_dict()["state"]

    unbroken = run("unbroken", 3)
    run("resumed", stopped_after)
    resumed = run("resumed", 3, Shuffled(), ckpt_path=Run(tmp_path / "resumed").checkpoint("last"))
    assert_equal(unbroken[0], resumed[0])
    assert_equal(unbroken[1], resumed[1])
    for number, state in unbroken[2].items():
        assert_equal(state, resumed[2][number])
