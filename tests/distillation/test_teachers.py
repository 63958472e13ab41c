"""Several teachers of one student: each is what it would be alone, and their mean is of all."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ndkd.callbacks import ClassMeans, FeatureStatistics, TeacherAccuracy, TeacherCache
from ndkd.distillation.module import DistillationModule
from ndkd.distillation.objective import LossTerm
from ndkd.errors import NdkdError
from ndkd.losses import KDLoss, L2Loss, NDLoss, ReviewKDLoss
from ndkd.models import FeatureExtractor, ModelConfig, build_model
from ndkd.runs import Run
from tests.distillation.watching import copied, same, unbroken_and_resumed
from tests.tiny_data import TAPS


@pytest.fixture
def one(teacher_checkpoint):
    return ModelConfig("cifar/resnet8", checkpoint=teacher_checkpoint, taps=TAPS)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Another teacher, 128 wide."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = build_model("cifar/resnet8", 10, widths=[8, 8, 8, 128])
    path = tmp_path_factory.mktemp("wide") / "wide.pth"
    torch.save(model.state_dict(), path)
    return ModelConfig("cifar/resnet8", checkpoint=path, taps=TAPS, kwargs={"widths": [8, 8, 8, 128]})


@pytest.fixture
def make(make_module):
    """A module with teachers by name, 16 wide where nothing else is said."""

    def made(losses, narrow=True, **teachers):
        return make_module(losses, narrow=narrow, teacher=None, teachers=teachers)

    return made


def by(terms, teacher, *names):
    """The same terms, of one of several teachers."""
    return {name: replace(term, teacher=teacher) if name in names else term for name, term in terms.items()}


def of_both(terms):
    return terms("ce", "kd") | {f"nd_{name}": LossTerm(NDLoss(), 2.0, teacher=name) for name in ("a", "b")}


# ---- what a term reads ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("narrow", [True, False])
def test_one_of_several_is_what_it_is_alone(fit, make_module, make, terms, one, wide, narrow):
    alone = make_module(terms("ce", "kd", "nd", "review"), narrow=narrow)
    fit(alone, epochs=2)
    several = make(by(terms("ce", "kd", "nd", "review"), "a", "kd", "nd", "review"), narrow, a=one, b=wide)
    fit(several, epochs=2)
    assert same(copied(several.student), copied(alone.student))
    assert torch.equal(several.class_means["a"], alone.class_means)
    assert list(several.teachers) == ["a"]  # nothing was asked of the other


def test_logits_of_the_teacher_are_the_mean_of_all(fit, make, terms, one, wide):
    module = make(terms("ce", "kd"), a=one, b=wide)
    fit(module)
    images = torch.rand(4, 3, 8, 8)
    output = module.forward_pair((images, torch.arange(4)))
    logits = [teacher(images).logits for teacher in module.teachers.values()]
    _, values = module.objective(output)
    assert torch.equal(values["kd"], KDLoss()(output.student.logits, (logits[0] + logits[1]) / 2))
    assert not torch.allclose(*logits)


def test_twice_the_same_teacher_is_that_teacher(fit, make_module, make, terms, one):
    modules = make_module(terms("ce", "kd"), narrow=True), make(terms("ce", "kd"), a=one, b=one)
    for module in modules:
        fit(module, epochs=2)
    assert same(*(copied(module.student) for module in modules))


def test_each_has_its_class_means_and_its_projector(fit, make_module, make, terms, one, wide):
    module = make(of_both(terms), a=one, b=wide)
    fit(module)
    assert {name: tuple(means.shape) for name, means in module.class_means.items()} == {"a": (10, 64), "b": (10, 128)}
    for name, teacher in {"a": one, "b": wide}.items():
        alone = make_module(terms("ce", "nd"), narrow=True, teacher=teacher)
        fit(alone, limit_train_batches=1)
        assert torch.equal(module.class_means[name], alone.class_means)
    widths = {name: (part[2].in_features, part[2].out_features) for name, part in module.projector.items()}
    assert widths == {"a": (16, 64), "b": (16, 128)}
    output = module.forward_pair((torch.rand(4, 3, 8, 8), torch.arange(4)))
    assert output.value("student.projected.b").shape == (4, 128)
    assert output.on_offer() == [
        *(f"student.{name}" for name in ("logits", "embedding", "norm", "projected.a", "projected.b", "feature_maps")),
        "target",
        "teacher.logits",
        *(f"{teacher}.{name}" for teacher in "ab"
          for name in ("logits", "embedding", "norm", "projected", "feature_maps")),
        "class_means.a",
        "class_means.b",
    ]  # fmt: skip


def test_an_equal_width_needs_no_projector(fit, make, terms, one, wide, tiny_data):
    module = make(by(terms("ce", "nd"), "a", "nd"), narrow=False, a=one, b=wide)
    fit(module, data=tiny_data(size=17))  # a last batch of one image, which a BatchNorm could not take
    assert not list(module.projector.parameters())
    output = module.forward_pair((torch.rand(2, 3, 8, 8), torch.arange(2)))
    assert output.student.projected["a"] is output.student.embedding


def test_inputs_can_be_written_out(fit, make, terms, one, wide):
    spelled = {"l2": LossTerm(L2Loss(), inputs=["student.projected.b", "b.embedding"]),
               "review": LossTerm(ReviewKDLoss(), inputs=["student.feature_maps", "b.feature_maps"])}  # fmt: skip
    short = {"l2": LossTerm(L2Loss(), teacher="b"), "review": LossTerm(ReviewKDLoss(), teacher="b")}
    weights = []
    for losses in (spelled, short):
        module = make(terms("ce") | losses, a=one, b=wide)
        fit(module)
        weights.append(copied(module.student))
    assert same(*weights)


def test_ready_models(fit, terms, one):
    models = [build_model("cifar/resnet8", 10) for _ in range(3)]
    module = DistillationModule(models[0], of_both(terms), teachers={"a": models[1], "b": FeatureExtractor(models[2])})
    fit(module)
    assert not any(model.training or next(model.parameters()).requires_grad for model in models[1:])
    assert {name.split(".")[0] for name, _ in module.named_parameters()} == {"student"}


def test_pseudo_labels_are_those_of_the_mean_or_of_one(fit, make, terms, one, wide):
    losses = terms("ce", "kd") | {
        "mean": LossTerm(nn.CrossEntropyLoss(), inputs=["student.logits", "target"], pseudo_labels=1e-6),
        "b": LossTerm(nn.CrossEntropyLoss(), inputs=["student.logits", "target"], pseudo_labels=1e-6, teacher="b"),
    }
    module = make(losses, a=one, b=wide)
    fit(module, limit_train_batches=1)
    images = torch.rand(4, 3, 8, 8)
    output = module.forward_pair((images, torch.full((4,), -1)))
    logits = {name: output.value(f"{name}.logits") for name in ("teacher", "b")}
    _, values = module.objective(replace(output, labeled=0))
    for name, source in {"mean": "teacher", "b": "b"}.items():
        expected = nn.functional.cross_entropy(output.student.logits, logits[source].argmax(dim=1))
        torch.testing.assert_close(values[name], expected)


# ---- what a run keeps -----------------------------------------------------------------------------------------------


def test_resumed_it_is_the_same_run(fit, make, terms, one, wide, tmp_path):
    left, right = unbroken_and_resumed(fit, lambda: make(of_both(terms), a=one, b=wide), tmp_path)
    for part in ("state_dict", "optimizer_states"):
        assert same(left[part], right[part]), part
    assert {name for name in left["state_dict"] if name.startswith("class_means")} == {"class_means.a", "class_means.b"}
    assert not [name for name in left["state_dict"] if name.startswith("teacher")]


def test_each_has_its_recording(fit, make_module, make, terms, one, wide, tmp_path, tiny_data, capsys):
    plain, folder = make(of_both(terms), a=one, b=wide), tmp_path / "cache"
    fit(plain, data=tiny_data(pad=2), epochs=2)
    alone = make_module(terms("ce", "kd", "nd"), narrow=True, teacher=wide)
    fit(alone, TeacherCache(folder), data=tiny_data(pad=2), epochs=2)
    capsys.readouterr()
    for _ in range(2):
        module = make(of_both(terms), a=one, b=wide)
        fit(module, TeacherCache(folder), data=tiny_data(pad=2), epochs=2)
        assert same(copied(module), copied(plain))
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("teacher")]
    assert [line.split(" from ")[0].split(" in ")[0] for line in said] == [
        "teacher b: read", "teacher a: recorded", "teacher a: read", "teacher b: read",
    ]  # fmt: skip
    assert len(list(folder.iterdir())) == 2  # that of the one alone is read


def test_a_recording_that_cannot_be_made_names_the_teacher(fit, make, terms, one, wide, tmp_path, capsys):
    losses = terms("ce", "kd") | {"review": LossTerm(ReviewKDLoss(), teacher="b")}
    fit(make(losses, a=one, b=wide), TeacherCache(tmp_path), limit_train_batches=1)
    said = "ndkd: teacher b's outputs are not recorded: a loss reads b.feature_maps, which would take too much space\n"
    assert said in capsys.readouterr().out


def test_accuracy_is_that_of_the_mean(fit, make, terms, one, wide, tmp_path, capsys, tiny_data):
    module, run, data = make(terms("ce", "kd"), a=one, b=wide), Run(tmp_path / "run"), tiny_data()
    fit(module, TeacherAccuracy(run), data=data)
    images, target = next(iter(data.loader(data.val_images, data.val_target)))
    mean = module.eval().forward_pair((images, target)).teacher.logits
    accuracy = float((mean.argmax(dim=1) == target).float().mean())
    assert accuracy == pytest.approx(run.status()["teacher"]["val/acc1"] * 10 / 8, abs=0.26)  # 8 of 10 images
    assert "teachers, by the mean of their logits: validation accuracy " in capsys.readouterr().out


def test_accuracy_is_known_again_where_nothing_is_loaded(fit, make, terms, one, wide, tmp_path, capsys):
    for name in ("first", "second"):
        recorder = TeacherAccuracy(Run(tmp_path / name))
        fit(make(terms("ce", "kd"), a=one, b=wide), TeacherCache(tmp_path / "cache"), recorder)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("teachers, by the mean")]
    assert len(said) == 2
    assert said[0] == said[1]


def test_of_features_there_are_the_students_own_norms(fit, make, terms, one, wide, tmp_path, capsys):
    run = Run(tmp_path / "run")
    trainer = fit(make(of_both(terms), a=one, b=wide), FeatureStatistics(run))
    names = {name.split("/")[1].rsplit("_", 1)[0] for name in trainer.callback_metrics if name.startswith("features/")}
    assert names == {"student_norm"}
    fit(make(terms("ce", "kd"), a=one, b=wide), FeatureStatistics(run))
    assert "ndkd: no angles to class means: there are several teachers\n" in capsys.readouterr().out


# ---- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({}, r"teachers: wanted one or more by name, \{a: \{name: …, checkpoint: …\}, b: …\}$"),
        ({"student": 1}, "teachers: 'student' is taken; name the teacher otherwise, for example a$"),
        ({"target": 1}, "'target' is taken"),
        ({"keys": 1}, "'keys' is taken"),
        ({"a.b": 1}, "'a.b' is not a word"),
        ({1: 1}, "1 is not a word"),
    ],
)
def test_names_that_are_none(make_module, terms, one, names, said):
    with pytest.raises(NdkdError, match=said):
        make_module(terms("ce"), teacher=None, teachers=dict.fromkeys(names, one))


def test_teacher_and_teachers(make_module, terms, one):
    with pytest.raises(NdkdError, match=r"there are both teacher and teachers; leave one of them out \(teacher: null"):
        make_module(terms("ce"), teacher=one, teachers={"a": one})


def test_a_term_that_does_not_say_whose(fit, make, terms, one, wide):
    said = (
        r"loss nd reads teacher.norm, and there are several teachers \(a, b\): set losses.nd.teacher to one of them, "
    )
    with pytest.raises(NdkdError, match=said + r"or name it in its inputs \(a.norm\)$"):
        fit(make({"nd": replace(terms("nd")["nd"], inputs=["student.embedding", "teacher.norm"])}, a=one, b=wide))
    with pytest.raises(NdkdError, match="loss nd reads student.projected, and there are several teachers"):
        fit(make(terms("nd"), a=one, b=wide))


def test_a_teacher_that_there_is_not(fit, make, make_module, terms, one):
    with pytest.raises(NdkdError, match=r"losses.nd.teacher: there is no teacher c; .*\ba\b"):
        fit(make(by(terms("nd"), "c", "nd"), a=one))
    with pytest.raises(NdkdError, match="losses.nd.teacher: there is but one teacher, not a; leave it out$"):
        fit(make_module(by(terms("nd"), "a", "nd")))
    with pytest.raises(NdkdError, match="loss kd: nothing provides 'c.logits'; on offer: student.logits, "):
        fit(make(terms("ce") | {"kd": LossTerm(KDLoss(), inputs=["student.logits", "c.logits"])}, a=one))


def test_a_teacher_of_other_classes_is_named(fit, make, terms, one, tmp_path):
    torch.save(build_model("cifar/resnet8", 7).state_dict(), tmp_path / "seven.pth")
    seven = ModelConfig("cifar/resnet8", tmp_path / "seven.pth", pretrained=True)
    with pytest.raises(NdkdError, match=r"^teacher b: .*seven.pth has 7 classes without names, the data has 10"):
        fit(make(terms("ce", "kd"), a=one, b=seven))
    module = make(terms("ce") | {"nd": LossTerm(NDLoss(), teacher="b")}, a=one, b=seven)
    fit(module, limit_train_batches=1)  # its embedding will do
    with pytest.raises(NdkdError, match="teacher b, cifar/resnet8 has no weights: set teachers.b.checkpoint to a file"):
        fit(make(terms("ce", "kd"), a=one, b=ModelConfig("cifar/resnet8")))


def test_a_file_of_class_means_is_of_one(fit, make, terms, one, tmp_path):
    with pytest.raises(NdkdError, match="class_means.file is for one teacher, and there are several; leave it out"):
        fit(make(by(terms("nd"), "a", "nd"), a=one), ClassMeans(file=tmp_path / "means.npz"))


def test_outputs_that_are_no_numbers_name_the_teachers(fit, make, terms, one):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3 * 8 * 8, 10)

        def forward(self, images):
            return self.fc(images.flatten(1)) * float("inf")

    with pytest.raises(NdkdError, match="the teacher's outputs became nan or inf in epoch 0"):
        fit(make(by(terms("ce", "kd"), "a", "kd") | {"l2": LossTerm(nn.MSELoss(), 0.0, inputs=["student.logits",
            "b.logits"])}, a=Broken(), b=one))  # fmt: skip
