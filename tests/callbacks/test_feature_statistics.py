"""Norms and angles, epoch by epoch."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ndkd.callbacks import FeatureStatistics
from ndkd.callbacks.feature_statistics import ANGLE_EDGES, NORM_EDGES
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


def test_without_class_means_there_is_no_angle(fitted, terms, tiny_data):
    _, run, logged = fitted(terms("ce", "kd"), tiny_data())
    wanted = summary("student_norm", torch.zeros(1)).keys() | summary("teacher_norm", torch.zeros(1)).keys()
    assert logged.keys() == wanted | {"features/longer_than_teacher"}


def test_the_teacher_embeds_the_evaluation_set_once(fitted, terms, tiny_data, monkeypatch):
    from ndkd.distillation import DistillationModule

    seen, original = [], DistillationModule.teacher_embeddings
    monkeypatch.setattr(
        DistillationModule, "teacher_embeddings", lambda self, batch: seen.append(0) or original(self, batch)
    )
    fitted(terms("ce", "kd"), tiny_data(val_size=16), epochs=3)
    assert len(seen) == 2


def test_nothing_is_kept_without_validation(fitted, terms, tiny_data):
    _, run, logged = fitted(terms("ce"), tiny_data(), limit_val_batches=0)
    assert not run.path.joinpath("features").exists()
    assert not logged
