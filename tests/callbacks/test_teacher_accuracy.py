"""The teacher's own accuracy: the right number, paid once, and no trace of it in the training."""

import json
import shutil

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from ndkd.callbacks import RunRecorder, TeacherAccuracy, TeacherCache, checkpoint_callbacks, teacher_accuracy
from ndkd.distillation.module import DistillationModule
from ndkd.errors import NdkdError
from ndkd.models import FeatureExtractor, ModelConfig, build_model
from ndkd.models.checkpoint import read_checkpoint
from ndkd.models.teacher import freeze
from ndkd.runs import Run
from tests.command import SHORT, ndkd


@pytest.fixture
def measured(monkeypatch):
    """For each pass of a teacher over validation images the sizes of its batches."""
    passes, update, measure = [], DistillationModule.update_metrics, teacher_accuracy.measure

    def passed(trainer, module, *arguments):
        passes.append([])
        with pytest.MonkeyPatch.context() as inside:
            inside.setattr(DistillationModule, "update_metrics", counted)
            return measure(trainer, module, *arguments)

    def counted(module, output):
        passes[-1].append(len(output.target))
        update(module, output)

    monkeypatch.setattr(teacher_accuracy, "measure", passed)
    return passes


@pytest.fixture
def taught(fit, make_module, terms, tiny_data, tmp_path):
    """Fit with the measurement; the module and what was found."""

    def run(*names, folder="run", module=None, data=None, callbacks=(), **options):
        module = module or make_module(terms(*(names or ("ce", "kd"))))
        accuracy = TeacherAccuracy(Run(tmp_path / folder))
        data = {} if "loaders" in options else {"data": data or tiny_data(val_size=19)}
        fit(module, *callbacks, accuracy, **data, **options)
        return module, accuracy.found

    return run


@pytest.fixture
def run_checkpoint(tmp_path, teacher_checkpoint):
    """The teacher's weights, in a run folder of their own."""
    run = Run(tmp_path / "teacher")
    run.start("seed_everything: 0\n", 0)
    run.checkpoints.mkdir()
    shutil.copy(teacher_checkpoint, run.checkpoint("last"))
    return run.checkpoint("last")


def by_hand(module, batches):
    """The teacher's accuracy on batches."""
    with torch.no_grad():
        right = [module.teacher(images).logits.argmax(dim=1) == target for images, target in batches]
    return torch.cat(right).float().mean().item()


# ---- the number -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "batches"), [(None, 3), (2, 2), (0.4, 1)])
def test_it_is_the_teachers_on_the_images_of_val_acc1(taught, tiny_data, tmp_path, measured, capsys, limit, batches):
    data = tiny_data(val_size=19)
    module, found = taught(data=data, limit_val_batches=limit)
    wanted = by_hand(module, list(data.val_dataloader())[:batches])
    assert found["val/acc1"] == pytest.approx(wanted, abs=1e-6)
    assert found.keys() == {"val/acc1", "val/acc5", "val/balanced_acc", "val/cross_entropy", "digest"}
    assert Run(tmp_path / "run").status()["teacher"] == found
    assert measured == [[8, 8, 3][:batches]]
    assert capsys.readouterr().out == f"teacher: validation accuracy {wanted:.2%}\n"


def test_a_student_that_is_its_teacher_has_its_figures(taught, teacher_checkpoint, make_module, terms):
    """The same metrics, on the same images, in the same mode."""
    same = make_module(terms("ce", "kd"), student=ModelConfig("cifar/resnet8", checkpoint=teacher_checkpoint))
    _, found = taught(module=same, limit_train_batches=0)
    student = same.trainer.validate(same, datamodule=same.trainer.datamodule, verbose=False)[0]
    assert student == pytest.approx({name: value for name, value in found.items() if name != "digest"}, rel=1e-4)


def test_training_does_not_see_it(fit, make_module, terms, taught, tiny_data):
    plain = make_module(terms("ce", "kd"))
    fit(plain, data=tiny_data(val_size=19, pad=2), epochs=2)
    module, _ = taught(data=tiny_data(val_size=19, pad=2), epochs=2)
    assert plain.state_dict().keys() == module.state_dict().keys()
    assert all(torch.equal(tensor, module.state_dict()[name]) for name, tensor in plain.state_dict().items())
    assert module.student.training == plain.student.training


def test_other_loaders_are_measured_too(taught, make_module, terms, fit):
    def loaders():
        torch.manual_seed(5)
        images = TensorDataset(torch.rand(20, 3, 8, 8), torch.arange(20) % 10)
        shuffled = DataLoader(images, batch_size=10, shuffle=True)
        return {"train_dataloaders": shuffled, "val_dataloaders": DataLoader(images, batch_size=10)}

    plain = make_module(terms("ce", "kd"), num_classes=10)
    fit(plain, loaders=loaders(), epochs=2)
    given = loaders()
    module, found = taught(module=make_module(terms("ce", "kd"), num_classes=10), loaders=given, epochs=2)
    assert found["val/acc1"] == pytest.approx(by_hand(module, given["val_dataloaders"]), abs=1e-6)
    assert all(torch.equal(tensor, module.state_dict()[name]) for name, tensor in plain.state_dict().items())


@pytest.mark.parametrize("precision", ["bf16-true", "64-true", "bf16-mixed"])
def test_every_precision(taught, precision):
    assert 0 <= taught(precision=precision)[1]["val/acc1"] <= 1


def test_validation_images_of_unknown_classes_are_refused_in_a_line(taught, tiny_data):
    data = tiny_data(val_size=19)
    data.val_target[3] = 17
    with pytest.raises(NdkdError, match="17"):
        taught(data=data)


# ---- teachers that are not measured ---------------------------------------------------------------------------------


def test_nothing_is_measured_without_teacher_or_images(taught, make_module, terms, tmp_path):
    Run(tmp_path / "run").update_status(teacher={"val/acc1": 0.5})  # of an earlier start
    assert taught(module=make_module(terms("ce"), teacher=None))[1] is None
    assert "teacher" not in Run(tmp_path / "run").status()
    assert taught("ce", "kd", limit_val_batches=0)[1] is None


@pytest.mark.parametrize(
    ("names", "is_measured"), [([f"class {k}" for k in range(10)], True), (list("abcdefghij"), False)]
)
def test_a_teacher_of_other_classes_is_not_measured(taught, make_module, terms, tmp_path, names, is_measured):
    """Of as many, by their names; the ND loss asks for its embeddings alone."""
    hyper_parameters = {"num_classes": 10, "class_names": names, "student": {}}
    weights = {f"student.model.{key}": value for key, value in build_model("cifar/resnet8", 10).state_dict().items()}
    torch.save({"state_dict": weights, "hyper_parameters": hyper_parameters}, tmp_path / "other.ckpt")
    module = make_module(terms("ce", "nd"), teacher=ModelConfig("cifar/resnet8", checkpoint=tmp_path / "other.ckpt"))
    assert (taught(module=module)[1] is not None) == is_measured


def test_a_teacher_of_another_number_of_classes_is_not_measured(taught, make_module, terms):
    model = build_model("cifar/resnet8", 7)
    module = make_module(terms("ce", "nd"), teacher=freeze(FeatureExtractor(model)))
    assert taught(module=module)[1] is None


# ---- paid once ------------------------------------------------------------------------------------------------------


def test_a_second_run_reads_it_beside_the_teacher(taught, make_module, terms, run_checkpoint, measured, capsys):
    def again(folder, **options):
        module = make_module(terms("ce", "kd"), teacher=ModelConfig("cifar/resnet8", checkpoint=run_checkpoint))
        return taught(module=module, folder=folder, **options)[1]

    first = again("one")
    said = capsys.readouterr().out
    assert again("two") == first
    assert len(measured) == 1
    assert capsys.readouterr().out == said
    again("three", limit_val_batches=1)  # other images
    assert [len(batches) for batches in measured] == [3, 1]
    weights = read_checkpoint(run_checkpoint)
    torch.save(
        {name: tensor + 0.5 * torch.rand_like(tensor.float()) for name, tensor in weights.items()}, run_checkpoint
    )
    again("four")  # another teacher
    assert len(measured) == 3


@pytest.mark.parametrize("content", ["[", "{}", "[3]", '[{"digest": "x", "val/acc1": "high"}]', "null"])
def test_what_is_damaged_is_measured_again(taught, make_module, terms, run_checkpoint, measured, content):
    kept = run_checkpoint.parent.parent / "as_teacher.json"
    kept.write_text(content)
    module = make_module(terms("ce", "kd"), teacher=ModelConfig("cifar/resnet8", checkpoint=run_checkpoint))
    _, found = taught(module=module)
    assert found in json.loads(kept.read_text())
    assert len(measured) == 1


def test_a_folder_that_cannot_be_written_to_ends_no_run(taught, make_module, terms, run_checkpoint):
    (run_checkpoint.parent.parent / "as_teacher.json").mkdir()
    module = make_module(terms("ce", "kd"), teacher=ModelConfig("cifar/resnet8", checkpoint=run_checkpoint))
    assert taught(module=module)[1] is not None


def test_a_resumed_run_does_not_measure_again(fit, make_module, terms, tmp_path, measured):
    run = Run(tmp_path / "run")

    def train(**options):
        recorder, accuracy = RunRecorder(run, "seed_everything: 0\n"), TeacherAccuracy(run)
        fit(make_module(terms("ce", "kd")), recorder, accuracy, *checkpoint_callbacks(run), **options)
        return accuracy.found

    first = train(epochs=1)
    assert train(epochs=2, ckpt_path=run.checkpoint("last")) == first == run.status()["teacher"]
    assert len(measured) == 1
    run.update_status(teacher=None)
    assert train(epochs=3, ckpt_path=run.checkpoint("last")) == first
    assert len(measured) == 2


def test_a_recording_keeps_it_and_the_teacher_is_not_built(taught, tmp_path, measured, tiny_data):
    def recorded():
        return taught(callbacks=[TeacherCache(tmp_path / "cache")], data=tiny_data(val_size=19), folder="other")

    first = recorded()[1]
    (tmp_path / "other" / "status.json").unlink()
    module, again = recorded()
    assert again == first is not None
    assert not module.teacher.is_asked
    assert len(measured) == 1
    (tmp_path / "other" / "status.json").unlink()
    next((tmp_path / "cache").glob("*/as_teacher.json")).unlink()
    module, unknown = recorded()
    assert unknown is None
    assert not module.teacher.is_asked


def test_the_command_says_and_keeps_it(workplace):
    status, out, err = ndkd("fit", "--config", "configs/digits/kd++.yaml", *SHORT, "--run_dir", "runs/measured")
    assert status == 0, err
    found = Run("runs/measured").status()["teacher"]
    assert out.splitlines()[2] == f"teacher: validation accuracy {found['val/acc1']:.2%}"
    assert Run("runs/digits/teacher").as_teacher.is_file()
    teacher = Run("runs/digits/teacher").metrics()[-1]
    assert found["val/acc1"] == pytest.approx(float(teacher["val/acc1"]))
