"""Norms and angles, epoch by epoch."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from ndkd.callbacks import ClassMeans, FeatureStatistics, checkpoint_callbacks
from ndkd.callbacks.class_means_file import StoredMeans
from ndkd.callbacks.feature_statistics import ANGLE_EDGES, NORM_EDGES
from ndkd.errors import NdkdError
from ndkd.runs import Run


@pytest.fixture
def fitted(fit, make_module, terms, tmp_path):
    """Fit on tiny images with the statistics kept: module, run, what was logged."""

    def run(losses, data, narrow=False, **options):
        module, kept = make_module(losses, narrow), Run(tmp_path)
        trainer = fit(module, FeatureStatistics(kept), data=data, **options)
        logged = {name: value.item() for name, value in trainer.callback_metrics.items() if "features/" in name}
        return module, kept, logged

    return run


def histogram(values, edges):
    return np.histogram(values.detach().double().numpy().clip(edges[0], edges[-1]), edges)[0]


def summary(name, values):
    """Mean and quantiles as they are logged."""
    values = values.detach().double().numpy()
    found = {f"features/{name}_q{percent:02}": np.percentile(values, percent) for percent in (5, 50, 95)}
    return found | {f"features/{name}_mean": values.mean()}


def off_by(counts, wanted):
    """How many values lie in other bins: on an edge, rounding decides."""
    return np.abs(counts - wanted).sum()


@pytest.mark.parametrize("narrow", [False, True])
def test_histograms_are_those_of_the_evaluation_set(fitted, terms, tiny_data, narrow):
    data = tiny_data(val_size=19)
    module, run, logged = fitted(terms("ce", "nd"), data, narrow, epochs=2)
    images, target = (torch.cat(parts) for parts in zip(*data.val_dataloader(), strict=True))
    module.eval()
    output = module.forward_pair((images, target))
    angle = F.cosine_similarity(output.student.projected, module.class_means[target]).acos().rad2deg()
    norms = {"student_norm": output.student.embedding, "teacher_norm": output.teacher.embedding}
    if narrow:
        norms["projected_norm"] = output.student.projected
    norms = {name: embedding.norm(dim=1) for name, embedding in norms.items()}
    wanted = {name: histogram(values, NORM_EDGES) for name, values in norms.items()}
    wanted["angle"] = histogram(angle, ANGLE_EDGES)
    first, last = run.read_epoch("features", 0), run.read_epoch("features", 1)
    assert last.keys() == first.keys() == wanted.keys() | {"norm_edges", "angle_edges"}
    for name, counts in wanted.items():
        assert last[name].sum() == 19
        assert off_by(last[name], counts) <= 2, name
    assert np.array_equal(first["teacher_norm"], last["teacher_norm"])  # the frozen teacher is asked once
    assert not np.array_equal(first["student_norm"], last["student_norm"])

    others = [
        min(
            F.cosine_similarity(row, mean, dim=0).acos().rad2deg().item()
            for k, mean in enumerate(module.class_means)
            if k != label
        )
        for row, label in zip(output.student.projected, target.tolist(), strict=True)
    ]
    expected = summary("angle", angle) | summary("separability", torch.tensor(others))
    for name, values in norms.items():
        expected |= summary(name, values)
    longer = output.student.projected.norm(dim=1) >= norms["teacher_norm"]
    expected["features/longer_than_teacher"] = longer.float().mean().item()
    expected["features/relative_norm"] = (
        output.student.projected.norm(dim=1).mean() / norms["teacher_norm"].mean()
    ).item()
    assert logged == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_without_images_takes_part(monkeypatch, tmp_path, rank):
    shards = [np.array([[1.0, 0.5, 1.0], [5.0, 4.0, 4.0]], dtype=np.float32), ()]
    asked = []
    monkeypatch.setattr(
        "torch.distributed.all_gather_object", lambda out, own: asked.append(own) or out.__setitem__(slice(2), shards)
    )
    trainer = SimpleNamespace(
        world_size=2, is_global_zero=rank == 0, current_epoch=0, global_step=1, loggers=[], callback_metrics={}
    )
    statistics = FeatureStatistics(Run(tmp_path))
    if rank == 0:
        student, projected, statistics._teacher_norms = torch.from_numpy(shards[0].T)
        statistics._batches = {"student_norm": [student], "projected_norm": [projected]}
    statistics.on_train_epoch_end(trainer, SimpleNamespace(teacher="frozen"))
    assert np.array_equal(asked, [shards[rank]])
    if rank == 0:
        assert trainer.callback_metrics["features/student_norm_mean"] == 3
        assert trainer.callback_metrics["features/longer_than_teacher"] == 0.5  # projected, and as long counts
        assert statistics.run.read_epoch("features", 0)["student_norm"].sum() == 2
    else:
        assert not trainer.callback_metrics
        assert not list(tmp_path.iterdir())


def test_a_student_by_itself_has_norms_alone(fitted, terms, tiny_data):
    _, run, logged = fitted(terms("ce"), tiny_data())
    assert run.read_epoch("features", 0).keys() == {"norm_edges", "angle_edges", "student_norm"}
    assert logged.keys() == summary("student_norm", torch.zeros(1)).keys()


def test_a_teacher_gives_angles_where_no_loss_asks_for_its_means(fitted, terms, tiny_data, teacher_checkpoint):
    """By hand: the means over the plain training images, and the angles of the validation images to them."""
    data = tiny_data(val_size=19, pad=2)
    module, run, logged = fitted(terms("ce", "kd"), data)
    assert module.class_means is None
    assert not [name for name in module.state_dict() if "means" in name]
    embedding, target = zip(*(module.teacher_embeddings(batch) for batch in data.class_mean_dataloader()), strict=True)
    embedding, target = torch.cat(embedding), torch.cat(target)
    means = torch.stack([embedding[target == k].mean(dim=0) for k in range(10)])
    images, target = (torch.cat(parts) for parts in zip(*data.val_dataloader(), strict=True))
    output = module.eval().forward_pair((images, target))
    angle = F.cosine_similarity(output.student.embedding, means[target]).acos().rad2deg()
    assert off_by(run.read_epoch("features", 0)["angle"], histogram(angle, ANGLE_EDGES)) <= 2
    assert logged["features/angle_mean"] == pytest.approx(angle.mean().item(), rel=1e-4)
    ratio = output.student.embedding.norm(dim=1).mean() / output.teacher.embedding.norm(dim=1).mean()
    assert logged["features/relative_norm"] == pytest.approx(ratio.item(), rel=1e-4)


@pytest.mark.parametrize("names", [["ce", "kd"], ["ce"]])
def test_measuring_changes_no_weight(fit, make_module, terms, tiny_data, tmp_path, names):
    StoredMeans(torch.randn(10, 64), teacher_norm=2.0).write(tmp_path / "means.safetensors")
    measured, plain = (make_module(terms(*names)) for _ in range(2))
    fit(measured, ClassMeans(file=tmp_path / "means.safetensors"), FeatureStatistics(Run(tmp_path)), epochs=2)
    if names == ["ce", "kd"]:
        again = make_module(terms(*names))
        fit(again, FeatureStatistics(Run(tmp_path)), epochs=2)
    fit(plain, epochs=2)
    for module in (measured, *([again] if names == ["ce", "kd"] else [])):
        for (name, tensor), other in zip(module.state_dict().items(), plain.state_dict().values(), strict=True):
            assert torch.equal(tensor, other), name


def test_foreign_data_is_not_passed_over_for_a_measurement(fit, make_module, terms, tmp_path):
    """A pass could change its order."""
    passes = []

    class Counted(DataLoader):
        def __iter__(self):
            passes.append(0)
            return super().__iter__()

    loader = Counted(TensorDataset(torch.rand(20, 3, 8, 8), torch.arange(20) % 10), batch_size=10)
    loaders = {"train_dataloaders": loader, "val_dataloaders": DataLoader(loader.dataset, batch_size=10)}
    module = make_module(terms("ce", "kd"), num_classes=10)
    fit(module, FeatureStatistics(Run(tmp_path)), loaders=loaders)
    dry, training = 1, 1
    assert len(passes) == dry + training
    assert "angle" not in Run(tmp_path).read_epoch("features", 0)


def with_file(fit, module, file, folder, **options):
    """Fit with class means from a file; what was logged."""
    trainer = fit(module, ClassMeans(file=file), FeatureStatistics(Run(folder)), **options)
    return {name: value.item() for name, value in trainer.callback_metrics.items() if "features/" in name}


def test_a_student_by_itself_is_measured_against_a_file(fit, make_module, terms, tiny_data, tmp_path):
    means, file = torch.randn(10, 64), tmp_path / "means.safetensors"
    data = tiny_data()
    StoredMeans(means, list(data.class_names), teacher_norm=2.0).write(file)
    module = make_module(terms("ce"), teacher=None)
    logged = with_file(fit, module, file, tmp_path, data=data)
    images, target = (torch.cat(parts) for parts in zip(*data.val_dataloader(), strict=True))
    embedding = module.eval().forward_pair((images, target)).student.embedding
    angle = F.cosine_similarity(embedding, means[target]).acos().rad2deg()
    assert logged["features/angle_mean"] == pytest.approx(angle.mean().item(), rel=1e-4)
    assert logged["features/relative_norm"] == pytest.approx(embedding.norm(dim=1).mean().item() / 2, rel=1e-4)
    assert "features/longer_than_teacher" not in logged
    assert module.class_means is None


def test_another_width_is_not_measured_and_said(fit, fitted, make_module, terms, tiny_data, tmp_path, capsys):
    logged = fitted(terms("ce", "kd"), tiny_data(), narrow=True)[2]
    assert "features/angle_mean" not in logged
    assert "features/relative_norm" in logged
    assert capsys.readouterr().out == (
        "ndkd: no angles to class means: the student's embeddings are 16 wide, the teacher's 64\n"
    )
    file = tmp_path / "means.safetensors"
    StoredMeans(torch.randn(10, 64), teacher_norm=2.0).write(file)
    logged = with_file(fit, make_module(terms("ce"), narrow=True, teacher=None), file, tmp_path)
    assert "features/angle_mean" not in logged
    assert "features/relative_norm" in logged
    said = f"ndkd: no angles to class means: the embeddings are 16 wide, those of {file} 64\n"
    assert capsys.readouterr().out == said


def test_a_class_without_images_ends_no_run_that_does_not_ask_for_means(fitted, terms, tiny_data, capsys):
    logged = fitted(terms("ce", "kd"), tiny_data(size=9))[2]
    assert "features/angle_mean" not in logged
    assert (
        "no angles to class means: no training image of class class 9: its mean is unknown" in capsys.readouterr().out
    )


def test_a_run_goes_on_without_the_file(fit, make_module, terms, tmp_path, capsys):
    run, file = Run(tmp_path), tmp_path / "means.safetensors"
    StoredMeans(torch.randn(10, 64)).write(file)

    def train(epochs, **options):
        module = make_module(terms("ce"), teacher=None)
        callbacks = ClassMeans(file=file), FeatureStatistics(run), *checkpoint_callbacks(run)
        return fit(module, *callbacks, epochs=epochs, **options).callback_metrics

    assert "features/angle_mean" in train(1)
    file.unlink()
    assert "features/angle_mean" not in train(2, ckpt_path=run.checkpoint("last"))
    assert capsys.readouterr().out.splitlines() == [f"ndkd: no angles to class means: class means {file} are gone"]
    with pytest.raises(NdkdError, match="does not exist; correct class_means.file or leave it out"):
        train(1)


def test_the_teacher_embeds_the_evaluation_set_once(fitted, terms, tiny_data, monkeypatch):
    from ndkd.distillation.module import DistillationModule

    seen, original = [], DistillationModule.teacher_embeddings
    monkeypatch.setattr(
        DistillationModule, "teacher_embeddings", lambda self, batch: seen.append(0) or original(self, batch)
    )
    fitted(terms("ce", "kd"), tiny_data(val_size=16), epochs=3)
    training, validation = 3, 2  # batches; the training images for the class means
    assert len(seen) == training + validation


def test_nothing_is_kept_without_validation(fitted, terms, tiny_data):
    _, run, logged = fitted(terms("ce", "kd"), tiny_data(), limit_val_batches=0)
    assert not run.path.joinpath("features").exists()
    assert not logged


@pytest.mark.parametrize("precision", ["bf16-true", "64-true", "16-true", "16-mixed"])
def test_every_precision(fit, make_module, terms, tmp_path, precision):
    module = make_module(terms("ce", "kd", "nd", "review"), narrow=True, lr=0.01)
    trainer = fit(module, FeatureStatistics(Run(tmp_path)), precision=precision)
    assert 0 < trainer.callback_metrics["features/angle_mean"] < 180
