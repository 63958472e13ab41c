"""Which models a module builds, and how."""

import shutil
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from ndkd.callbacks import checkpoint_callbacks
from ndkd.distillation.module import DistillationModule
from ndkd.distillation.objective import LossTerm
from ndkd.errors import NdkdError
from ndkd.losses import HardKDLoss, NDLoss
from ndkd.models import FeatureExtractor, ModelConfig, build_model
from ndkd.runs import Run
from tests.distillation.watching import Small, Viewing, Watch, assert_equal, copied, foreign_loader
from tests.tiny_data import TAPS


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
    parts = {name.split(".")[0] for name, _ in (*module.named_parameters(), *module.named_buffers())}
    assert parts == {"student", "projector", "objective"}  # neither copied, nor averaged, nor synchronised
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


# ---- several classifiers ---


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
    offer = "on offer: student.logits, student.embedding, student.norm, student.projected, student.feature_maps, target"
    with pytest.raises(NdkdError, match=f"loss ce: nothing provides 'student.extra.head'; {offer}$"):
        fit(make_module(losses))
